"""What a report says of one image or frame, in the words of a score's record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from saqm.errors import SaqmError

Record = Mapping[str, object]

DIGITS = 6  # significant ones, of what a report says in words: a finding's value, how far out of domain


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One image or frame, as a report has it. The names are those of `saqm.scorer.Score`.

    Not in a report are path, sha256 of the file, raw score, counts of windows, and the time; reasons come without the
    path. Numbers said in words (those of findings, and out_of_domain) have six digits; score and interval have all.
    A verdict is of a score: what was not scored has none here, and its reasons tell why.
    settings: how the image was prepared: patch, stride, window, mask.
    """

    uids: Mapping[str, str]
    frame: int | None = None
    status: Literal["scored", "not_scored"]
    score: float | None = None
    interval: tuple[float, float] | None = None
    coverage: float | None = None
    out_of_domain: Mapping[str, object] | None = None
    verdict: Literal["pass", "review", "fail"] | None = None
    reasons: tuple[str, ...] = ()
    findings: tuple[Mapping[str, object], ...] = ()
    model: Mapping[str, str] = field(default_factory=dict)  # name, version, sha256, engine
    settings: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    software: str = ""

    @classmethod
    def of(cls, record: Record, uids: Mapping[str, str]) -> Reported:
        """Of a score's record, and the image it is of. Raises SaqmError for a score that is not on 0 to 100."""
        model: Any = record.get("model") or {}
        path = str(record.get("path"))
        if "direction" in model:
            raise SaqmError(
                f"{path}: {model.get('name')} is a metric with a scale of its own; a DICOM report holds ratings of 0 "
                "to 100: score with a model"
            )
        scored = record["status"] == "scored"
        score: Any = record["score"] if scored else None
        if scored and not (isinstance(score, int | float) and 0 <= score <= 100):
            raise SaqmError(f"{path}: a score of {score}; a DICOM report holds ratings of 0 to 100")
        around: Any = record.get("interval")
        domain: Any = record.get("out_of_domain")
        return cls(
            uids=dict(uids),
            frame=record.get("frame"),  # type: ignore[arg-type]
            status="scored" if scored else "not_scored",
            score=None if score is None else float(score),
            interval=None if around is None else (float(around[0]), float(around[1])),
            coverage=record.get("coverage"),  # type: ignore[arg-type]
            out_of_domain=None if domain is None else {key: _rounded(value) for key, value in domain.items()},
            verdict=record.get("verdict") if scored else None,  # type: ignore[arg-type]
            reasons=_without_path(record.get("reasons"), path),
            findings=tuple(_finding(each) for each in _many(record.get("findings"))),
            model={key: str(model[key]) for key in ("name", "version", "sha256", "engine") if key in model},
            settings=_settings(record.get("preparation")),
            warnings=_without_path(record.get("warnings"), path),
            software=str(record.get("software") or ""),
        )

    def content(self) -> dict[str, Any]:
        """Everything in it, in plain types."""
        return asdict(self)


def _many(values: object) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else ()


def _without_path(texts: object, path: str) -> tuple[str, ...]:
    """Texts in one line of ASCII each, without the file's path: a report leaves the house.

    ASCII, because an object is written in the character set of its patient's name, whatever that is.
    """
    lines = (" ".join(str(text).replace(f"{path}: ", "").split()) for text in _many(texts))
    return tuple(ascii_text(line) for line in lines if line)


def ascii_text(text: str) -> str:
    """A text with escapes for what is not ASCII."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _rounded(value: object) -> object:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    return value


def _finding(finding: Record) -> Mapping[str, object]:
    code: Any = finding["code"]
    return {
        "name": str(finding["name"]),
        "value": _rounded(float(finding["value"])),  # type: ignore[arg-type]
        "unit": str(finding["unit"]),
        "threshold": _rounded(float(finding["threshold"])),  # type: ignore[arg-type]
        "direction": str(finding["direction"]),
        "code": {"value": str(code["value"]), "scheme": str(code["scheme"]), "meaning": str(code["meaning"])},
    }


def _settings(preparation: object) -> Mapping[str, str]:
    """How the image came to the model, a word for each setting."""
    if not isinstance(preparation, Mapping):
        return {}
    said = {key: str(preparation[key]) for key in ("patch", "stride") if preparation.get(key) is not None}
    window, mask = preparation.get("window"), preparation.get("mask")
    if isinstance(window, Mapping) and "center" in window and "width" in window:
        said["window"] = f"{window['center']:g}/{window['width']:g} ({window.get('from')})"
    if isinstance(mask, Mapping) and "mode" in mask:
        said["mask"] = str(mask["mode"])
    return {key: ascii_text(value) for key, value in said.items()}
