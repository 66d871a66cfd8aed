"""Key object notes: which images do not meet the standard, and, on a person's word, which are rejected.

A quality note is advice: archives and viewers show it, and do nothing. A rejection note is an order (IHE Imaging Object
Change Management): an archive may hide the images it names, answer that they do not exist, or delete them. That is why
it is made by a function of its own, for a reason of DICOM's list and in the name of a person who looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from saqm.errors import SaqmError
from saqm.outputs.dicom import building
from saqm.outputs.dicom.building import coded, highdicom_at_work
from saqm.outputs.dicom.maker import Coded, Maker, derived_uid
from saqm.outputs.dicom.reported import ascii_text
from saqm.scorer import SOFTWARE

if TYPE_CHECKING:
    from datetime import datetime

    from pydicom.dataset import Dataset

    from saqm.outputs.dicom.report import Scores

WHAT = "a key object note"
ISSUE = Coded("113010", "DCM", "Quality Issue")
REJECTED = Coded("113001", "DCM", "Rejected for Quality Reasons")
MODIFIER = Coded("113011", "DCM", "Document Title Modifier")
DESCRIPTION = "Image quality note (saqm)"

REJECTION_REASONS: Mapping[str, Coded] = {  # CID 7011, by the words that the command line takes
    "image-artifact": Coded("111207", "DCM", "Image artifact(s)"),
    "grid-artifact": Coded("111208", "DCM", "Grid artifact(s)"),
    "positioning": Coded("111209", "DCM", "Positioning"),
    "motion-blur": Coded("111210", "DCM", "Motion blur"),
    "under-exposed": Coded("111211", "DCM", "Under exposed"),
    "over-exposed": Coded("111212", "DCM", "Over exposed"),
    "no-image": Coded("111213", "DCM", "No image"),
    "detector-artifact": Coded("111214", "DCM", "Detector artifact(s)"),
    "other-artifact": Coded("111215", "DCM", "Artifact(s) other than grid or detector artifact"),
    "mechanical-failure": Coded("111216", "DCM", "Mechanical failure"),
    "electrical-failure": Coded("111217", "DCM", "Electrical failure"),
    "software-failure": Coded("111218", "DCM", "Software failure"),
    "inappropriate-processing": Coded("111219", "DCM", "Inappropriate image processing"),
    "other-failure": Coded("111220", "DCM", "Other failure"),
    "unknown-failure": Coded("111221", "DCM", "Unknown failure"),
    "double-exposure": Coded("113026", "DCM", "Double exposure"),
}


def quality_note(images: Sequence[tuple[Dataset, Scores]], maker: Maker, *, now: datetime) -> Dataset:
    """A key object note "Quality Issue" of the images, of one study, that have a verdict other than pass.

    Its text tells each verdict and why. Raises SaqmError where there is none, and as `quality_report` does.
    """
    return _note(images, _Kind(ISSUE, ("review", "fail")), maker, now)


def rejection_note(
    images: Sequence[tuple[Dataset, Scores]], maker: Maker, *, reason: str, confirmed: str, now: datetime
) -> Dataset:
    """A note "Rejected for Quality Reasons" of the images that fail: an archive may hide or delete them.

    reason: a key of REJECTION_REASONS. confirmed: who looked at the images and rejects them, in words. Raises SaqmError
    for a reason that is not of the list, without a confirmation, and where no image fails.
    """
    check_rejection(reason, confirmed)
    said = f"Rejection confirmed by a person: {ascii_text(' '.join(confirmed.split()))}. "
    return _note(images, _Kind(REJECTED, ("fail",), REJECTION_REASONS[reason], said), maker, now)


def check_rejection(reason: str, confirmed: str) -> None:
    """Raise SaqmError for a reason that is not of the list, and where nobody confirms."""
    if reason not in REJECTION_REASONS:
        raise SaqmError(f"{reason!r} is no reason to reject an image; there are {', '.join(REJECTION_REASONS)}")
    if not confirmed.strip():
        raise SaqmError(
            "a rejection note can make an archive hide or delete images: say who looked at them and rejects them"
        )


class _Kind(NamedTuple):
    """A note: its title, which verdicts it names, the reason that modifies its title, and how its text begins."""

    title: Coded
    verdicts: tuple[str, ...]
    reason: Coded | None = None
    first: str = ""


def _note(images: Sequence[tuple[Dataset, Scores]], kind: _Kind, maker: Maker, now: datetime) -> Dataset:
    headers = building.one_study(header for header, _ in images)
    held_back: dict[str, list[str]] = {}
    for header, scores in images:
        lines = held_back.setdefault(str(header.SOPInstanceUID), [])
        lines += [line for line in _lines(header, scores, kind.verdicts) if line not in lines]
    named = [header for header in headers if held_back[str(header.SOPInstanceUID)]]
    if not named:
        raise SaqmError(f"no image with the verdict {' or '.join(kind.verdicts)}: there is nothing to note")
    description = kind.first + "; ".join(
        line for header in named for line in sorted(held_back[str(header.SOPInstanceUID)])
    )
    instances = [str(header.SOPInstanceUID) for header in named]
    key = (maker.device_uid, SOFTWARE, kind.title, str(headers[0].StudyInstanceUID))
    with highdicom_at_work(WHAT, instances[0]):
        from highdicom import ko, sr

        stubs = [building.stub_of(header) for header in named]
        content = ko.KeyObjectSelection(
            document_title=coded(kind.title),
            referenced_objects=stubs,
            observer_device_context=building.observer(maker),
            description=description,
        )
        if kind.reason is not None:  # highdicom has no argument for it
            modifier = sr.CodeContentItem(
                name=coded(MODIFIER), value=coded(kind.reason), relationship_type="HAS CONCEPT MOD"
            )
            content[0].ContentSequence.insert(0, modifier)
        note: Dataset = ko.KeyObjectSelectionDocument(
            evidence=stubs,
            content=content,
            series_instance_uid=derived_uid("note series", *key),
            series_number=building.NOTE_SERIES,
            sop_instance_uid=derived_uid("note", *key, kind.reason, instances, description),
            instance_number=1,
            series_description=DESCRIPTION,
            **building.equipment(maker),
        )
        building.given_to(note, headers[0], now)
        return note


def _lines(header: Dataset, scores: Scores, verdicts: tuple[str, ...]) -> Iterator[str]:
    """What is said of an image's frames that have one of the verdicts."""
    number = building.number_of(header)
    image = "image" if number is None else f"image {number}"
    for score in scores:
        record: Any = score if isinstance(score, Mapping) else score.to_record()
        if record["verdict"] not in verdicts:
            continue
        frame = "" if record["frame"] is None else f", frame {record['frame'] + 1}"
        reasons = " - ".join(str(reason).replace(f"{record['path']}: ", "") for reason in record["reasons"])
        yield ascii_text(f"{image}{frame}: {record['verdict']}{f' ({reasons})' if reasons else ''}")
