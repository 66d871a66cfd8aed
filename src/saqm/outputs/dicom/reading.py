"""What stands in a report of `quality_report`, read back in the words of a score's record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saqm.errors import ImageError, SaqmError
from saqm.outputs.dicom import report as written
from saqm.outputs.dicom.building import RATING
from saqm.outputs.dicom.maker import Coded
from saqm.outputs.dicom.reported import Reported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom.dataset import Dataset

MEASUREMENTS, GROUP, SOURCE = "126010", "125007", "121112"  # Imaging Measurements, Measurement Group, its image
NAME, VERSION, PARAMETERS = "111001", "111003", "111002"  # of the algorithm
VERDICTS = {code.value: verdict for verdict, code in written.VERDICTS.items()}
FINDING = re.compile(r"(?P<name>.+?): (?P<value>\S+)(?: (?P<unit>.+?))?, (?P<direction>above|below) (?P<threshold>\S+)")
COVERAGE = re.compile(r"coverage (\d\S*)$")
DOMAIN = re.compile(r"(?P<kind>.+?) \((?P<facts>.*)\)")


def read_report(report: Dataset | str | Path) -> list[Reported]:
    """What a report of `quality_report`, or its file, says of each image or frame, in its order.

    Raises ImageError for what is no such report.
    """
    import pydicom

    name = str(report) if isinstance(report, str | Path) else "report"
    try:
        dataset = pydicom.dcmread(report) if isinstance(report, str | Path) else report
        groups = [group for part in _items(dataset, MEASUREMENTS) for group in _items(part, GROUP)]
        evidence = dict(_evidence(dataset)) if groups else {}
        read = [_read(group, evidence) for group in groups]
    except SaqmError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: not a report of image quality that can be read ({type(error).__name__})") from error
    if not read:
        raise ImageError(f"{name}: not a report of image quality: no measurement group of TID 1500 is in it")
    return read


def _read(group: Dataset, evidence: Mapping[str, Mapping[str, str]]) -> Reported:
    image = next(_items(group, SOURCE)).ReferencedSOPSequence[0]
    frames = image.get("ReferencedFrameNumber")
    score = _number(group, RATING)
    below, above = _number(group, written.LOWER), _number(group, written.UPPER)
    verdict = next(_items(group, written.ASSESSMENT.value), None)
    parameters = dict(item.TextValue.split("=", 1) for item in _items(group, PARAMETERS))
    weights = parameters.pop("weights", "").removeprefix("sha256:")
    model = {
        "name": next(_items(group, NAME)).TextValue,
        "version": next(_items(group, VERSION)).TextValue,
        **({"sha256": weights} if weights else {}),
        **({"engine": parameters.pop("engine")} if "engine" in parameters else {}),
    }
    said = [str(item.TextValue).partition(": ")[::2] for item in _items(group, written.COMMENT.value)]
    return Reported(
        uids={**evidence[image.ReferencedSOPInstanceUID], "sop_class": str(image.ReferencedSOPClassUID)},
        frame=None if frames is None else int(frames) - 1,
        status="not_scored" if score is None else "scored",
        score=score,
        interval=None if score is None or below is None or above is None else (score - below, score + above),
        coverage=_coverage(said),
        out_of_domain=_domain(said),
        verdict=None if verdict is None else VERDICTS[verdict.ConceptCodeSequence[0].CodeValue],  # type: ignore[arg-type]
        reasons=_behind(said, written.REASON, written.REMARK),
        findings=tuple(_finding(item) for item in _items(group, written.FINDING.value)),
        model=model,
        software=parameters.pop("software", ""),
        settings=parameters,
        warnings=_behind(said, written.WARNING),
    )


def _items(parent: Dataset, concept: str) -> Iterator[Dataset]:
    """The content items below another one that have this concept as their name."""
    for item in parent.get("ContentSequence") or ():
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeValue == concept:
            yield item


def _evidence(report: Dataset) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every image that a report refers to, with study and series, by its instance UID."""
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for image in series.ReferencedSOPSequence:
                instance = str(image.ReferencedSOPInstanceUID)
                uids = {"study": str(study.StudyInstanceUID), "series": str(series.SeriesInstanceUID)}
                yield instance, {**uids, "instance": instance}


def _number(group: Dataset, concept: Coded) -> float | None:
    for item in _items(group, concept.value):
        if item.ValueType == "NUM":
            measured = item.MeasuredValueSequence[0]
            return float(measured.get("FloatingPointValue", measured.NumericValue))
    return None


def _finding(item: Dataset) -> dict[str, object]:
    code = item.ConceptCodeSequence[0]
    measured = FINDING.fullmatch(next(_items(item, written.COMMENT.value)).TextValue)
    if measured is None:
        raise ImageError("a finding without its measure: not written by saqm")
    return {
        "name": measured["name"],
        "value": float(measured["value"]),
        "unit": measured["unit"] or "",
        "threshold": float(measured["threshold"]),
        "direction": measured["direction"],
        "code": {"value": code.CodeValue, "scheme": code.CodingSchemeDesignator, "meaning": code.CodeMeaning},
    }


def _behind(said: Iterable[Sequence[str]], *beginnings: str) -> tuple[str, ...]:
    """What stands behind these beginnings of comments."""
    return tuple(rest for beginning, rest in said if beginning in beginnings)


def _coverage(said: Iterable[Sequence[str]]) -> float | None:
    found = [COVERAGE.search(line) for line in _behind(said, written.INTERVAL)]
    return float(found[0][1]) if found and found[0] else None


def _domain(said: Iterable[Sequence[str]]) -> dict[str, object] | None:
    for line in _behind(said, written.DOMAIN):
        if found := DOMAIN.match(line):
            facts = [fact.partition(" ")[::2] for fact in found["facts"].split(", ")]
            values = {name: float(value) if name in ("statistic", "p") else value for name, value in facts}
            return {**values, "flag": found["kind"] == written.UNKNOWN}
    return None
