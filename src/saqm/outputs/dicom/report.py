"""Scores as a DICOM structured report.

Comprehensive 3D SR of template TID 1500, a measurement group (TID 1501) for each image or frame:

    Tracking identifier and UID           the image or frame, whoever judges it
    Finding = Image Quality
    Algorithm name, version, parameters   the model, the SHA-256 of its file, its engine, how the image was prepared
    NUM  Image Quality Rating             {0:100}, higher is better
    NUM  -, + range of uncertainty        the interval, as what lies below and above the rating
    CODE Quality Assessment               only where there is a verdict, with the standard it is given against
    CODE Quality Finding                  what is wrong, with its measure
    TEXT Comment                          interval, domain, warnings and reasons in words
    IMAGE                                 the image, and the frame

What was not scored has CODE (Image Quality Rating = Measurement failure) in place of the number: an empty NUM would
keep highdicom from reading the report. docs/sr.md says why each item is as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saqm.errors import SaqmError
from saqm.outputs.dicom import building
from saqm.outputs.dicom.building import RATING, RATING_UNIT, coded, highdicom_at_work
from saqm.outputs.dicom.maker import PROJECT, Coded, Maker, derived_uid
from saqm.outputs.dicom.reported import Record, Reported
from saqm.scorer import SOFTWARE

if TYPE_CHECKING:
    from datetime import datetime

    from highdicom import sr
    from pydicom.dataset import Dataset

    from saqm.scorer import Score

    Scores = Sequence[Score | Record]

WHAT = "a structured report"
TITLE = Coded("126000", "DCM", "Imaging Measurement Report")
PROCEDURE = Coded("363679005", "SCT", "Imaging procedure")  # in CID 100; 133887000 (image quality analysis) is not
LOWER = Coded("371885007", "SCT", "-, range of lower measurement uncertainty")
UPPER = Coded("371886008", "SCT", "+, range of upper measurement uncertainty")
ASSESSMENT = Coded("111050", "DCM", "Quality Assessment")
STANDARD = Coded("111051", "DCM", "Quality Control Standard")
FINDING = Coded("111052", "DCM", "Quality Finding")
COMMENT = Coded("121106", "DCM", "Comment")
FAILURE = Coded("114006", "DCM", "Measurement failure")
VERDICTS: Mapping[str, Coded] = {  # CID 6044
    "pass": Coded("111237", "DCM", "Usable - Meets the quality control standard"),
    "review": Coded("111236", "DCM", "Usable - Does not meet the quality control standard"),
    "fail": Coded("111235", "DCM", "Unusable - Quality renders image unusable"),
}
SHOWN_DIGITS = 2  # decimals of NumericValue, which viewers show; FloatingPointValue beside it has all
DESCRIPTION = "Image quality (saqm)"

# How comments begin; what stands behind is read back.
INTERVAL, DOMAIN, REASON, WARNING = "Interval", "Domain", "Not scored", "Warning"
REMARK = "Reason"
KNOWN = "like the images that the model knows"
UNKNOWN = "OUT OF DOMAIN, unlike the images that the model knows"
NO_GROUND = ": the rating is no ground for a verdict"


def quality_report(images: Sequence[tuple[Dataset, Scores]], maker: Maker, *, now: datetime) -> Dataset:
    """A report of images of one study, each a `header_of` with the scores of its frames (or their records).

    SeriesInstanceUID and SOPInstanceUID are made of the maker and of what the report says, so the same images, judged
    alike, are the same report, and a copy of it is recognised wherever it is sent; the order of images does not matter,
    nor does `now`. Raises SaqmError for several studies, for a metric's values, and for a score that is of another
    image; ImageError where a header cannot be referred to; MissingExtra without highdicom.
    """
    headers = building.one_study(header for header, _ in images)
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    said = _said(images)
    models = sorted({each.model.get("sha256", "") for each in said})
    series = sorted({each.uids["series"] for each in said})
    with highdicom_at_work(WHAT, next(iter(by_uid))):
        from highdicom import sr

        stubs = [building.stub_of(header) for header in headers]
        groups = [_group(each, by_uid[each.uids["instance"]], maker) for each in said]

        def content(groups: list[sr.MeasurementsAndQualitativeEvaluations], images: list[Dataset]) -> Dataset:
            made = sr.MeasurementReport(
                observation_context=sr.ObservationContext(observer_device_context=building.observer(maker)),
                procedure_reported=coded(PROCEDURE),
                imaging_measurements=groups,
                title=coded(TITLE),
                referenced_images=images,
            )
            _set_out(made)
            root: Dataset = made[0]
            return root

        # highdicom copies and searches the content of a document again and again, for 10 ms an image: it is given that
        # of one image, and the whole is put in its place.
        one = next(stub for stub in stubs if str(stub.SOPInstanceUID) == said[0].uids["instance"])
        document = sr.Comprehensive3DSR(
            evidence=[one],
            content=content(groups[:1], [one]),
            series_instance_uid=derived_uid("report series", maker.device_uid, SOFTWARE, series, models),
            series_number=building.REPORT_SERIES,
            sop_instance_uid=derived_uid(
                "report", maker.device_uid, SOFTWARE, maker.standard, [each.content() for each in said]
            ),
            instance_number=1,
            series_description=DESCRIPTION,
            is_complete=True,
            is_final=False,
            is_verified=False,
            **building.equipment(maker),
        )
        building.given_to(document, headers[0], now)
        report = building.plain(document)
        report.ContentSequence = content(groups, stubs).ContentSequence
        report.CurrentRequestedProcedureEvidenceSequence = building.evidence_of(headers)
        return report


def _said(images: Sequence[tuple[Dataset, Scores]]) -> list[Reported]:
    """Everything to be said, once, in an order of its own. Raises SaqmError for a score of another image."""
    said: dict[str, tuple[Any, Reported]] = {}
    for header, scores in images:
        uids = building.uids_of(header)
        if not scores:
            raise SaqmError(f"image {uids['instance']}: no score, and no reason why: nothing to report")
        for score in scores:
            record: Record = score if isinstance(score, Mapping) else score.to_record()
            own: Any = record.get("uids") or {}
            if own.get("instance", uids["instance"]) != uids["instance"]:
                raise SaqmError(f"image {uids['instance']}: the score is of another one, {own['instance']}")
            each = Reported.of(record, uids)
            frame = -1 if each.frame is None else each.frame
            key = (*building.place_of(header), frame, each.model.get("name", ""), repr(each))
            said[repr(key)] = key, each
    return [each for _, each in sorted(said.values(), key=lambda pair: pair[0])]


def _group(said: Reported, header: Dataset, maker: Maker) -> sr.MeasurementsAndQualitativeEvaluations:
    from highdicom import sr

    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid("image quality of", said.uids["instance"], said.frame), identifier=_identifier(said, header)
        ),
        finding_type=coded(building.QUALITY),
        algorithm_id=sr.AlgorithmIdentification(
            name=said.model.get("name", "not said"),
            version=said.model.get("version", "not said"),
            manufacturer=PROJECT,
            parameters=_parameters(said),
        ),
        measurements=list(_numbers(said)) or None,
        qualitative_evaluations=list(_evaluations(said, maker)) or None,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                said.uids["sop_class"],
                said.uids["instance"],
                None if said.frame is None else [said.frame + 1],  # DICOM counts frames from 1
            )
        ],
    )
    content = group[0].ContentSequence
    for line in _comments(said):
        content.insert(len(content) - 1, _text(line, "CONTAINS"))  # before the image
    return group


def _set_out(content: Sequence[Dataset]) -> None:
    """Let viewers show each item by itself and with its name, not as running text; and tell no false modality.

    highdicom takes the modality of an image from its class; of a class that any modality may use it makes "Other",
    which is no code of CID 29.
    """
    for item in content:
        if item.ValueType == "CONTAINER":
            item.ContinuityOfContent = "SEPARATE"
        if item.ValueType == "IMAGE" and "ContentSequence" in item:
            kept = [each for each in item.ContentSequence if not _is_other(each)]
            item.ContentSequence = type(item.ContentSequence)(kept)
        _set_out(item.get("ContentSequence") or ())


def _is_other(item: Dataset) -> bool:
    return bool(item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue == "OT")


def _identifier(said: Reported, header: Dataset) -> str:
    number = building.number_of(header)
    image = "" if number is None else f" {number}"
    return f"image{image}" if said.frame is None else f"image{image}, frame {said.frame + 1}"


def _parameters(said: Reported) -> list[str]:
    """What decides the number besides the image, as NAME=VALUE."""
    named = {
        "weights": f"sha256:{said.model['sha256']}" if "sha256" in said.model else None,
        "engine": said.model.get("engine"),
        "software": said.software or None,
        **said.settings,
    }
    return [f"{name}={value}" for name, value in named.items() if value is not None]


def _numbers(said: Reported) -> Iterator[sr.Measurement]:
    if said.score is None:
        return
    yield _number(RATING, said.score)
    if said.interval is not None:
        yield _number(LOWER, said.score - said.interval[0])
        yield _number(UPPER, said.interval[1] - said.score)


def _number(name: Coded, value: float) -> sr.Measurement:
    from highdicom import sr
    from pydicom.valuerep import DS

    measurement = sr.Measurement(name=coded(name), value=value, unit=coded(RATING_UNIT))
    measurement[0].MeasuredValueSequence[0].NumericValue = DS(f"{value:.{SHOWN_DIGITS}f}")
    return measurement


def _evaluations(said: Reported, maker: Maker) -> Iterator[sr.QualitativeEvaluation]:
    from highdicom import sr

    if said.score is None:
        yield sr.QualitativeEvaluation(coded(RATING), coded(FAILURE))
    if said.verdict is not None:
        yield sr.QualitativeEvaluation(coded(ASSESSMENT), coded(VERDICTS[said.verdict]))
        yield sr.QualitativeEvaluation(coded(STANDARD), coded(maker.standard))
    for finding in said.findings:
        code: Any = finding["code"]
        evaluation = sr.QualitativeEvaluation(
            coded(FINDING), coded(Coded(code["value"], code["scheme"], code["meaning"]))
        )
        evaluation[0].ContentSequence = sr.ContentSequence([_text(_measured(finding), "HAS PROPERTIES")])
        yield evaluation


def _text(line: str, relationship: str) -> sr.TextContentItem:
    from highdicom import sr

    return sr.TextContentItem(name=coded(COMMENT), value=line, relationship_type=relationship)


def _comments(said: Reported) -> Iterator[str]:
    """What people read, a line each; `saqm.outputs.dicom.reading` reads them back."""
    if said.interval is not None:
        low, high = said.interval
        promise = "coverage not promised" if said.coverage is None else f"coverage {said.coverage!r}"
        yield f"{INTERVAL}: {low:.1f} to {high:.1f}, {promise}"
    if said.out_of_domain is not None:
        flag = said.out_of_domain.get("flag")
        facts = ", ".join(f"{name} {value}" for name, value in said.out_of_domain.items() if name != "flag")
        yield f"{DOMAIN}: {UNKNOWN if flag else KNOWN} ({facts}){NO_GROUND if flag else ''}"
    for reason in said.reasons:
        yield f"{REMARK if said.status == 'scored' else REASON}: {reason}"
    for warning in said.warnings:
        yield f"{WARNING}: {warning}"


def _measured(finding: Mapping[str, object]) -> str:
    """A finding in words: "blur: 0.31 ratio, below 0.43"."""
    unit = f" {finding['unit']}" if finding["unit"] else ""
    return f"{finding['name']}: {finding['value']!r}{unit}, {finding['direction']} {finding['threshold']!r}"
