"""Gates: a score and thresholds in, a verdict out - pass, review or fail - with its reasons in plain words.

    made = saqm.gate(saqm.score(image, scorer), Thresholds(pass_at=60, fail_below=40))
    print(made.verdict, made.reasons)

What has no score, or whose score is no ground for a verdict (out of domain), never passes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, overload

from saqm.errors import SaqmError
from saqm.outputs.table import Column, Columns
from saqm.scorer import Score

Record = Mapping[str, object]
Verdict = Literal["pass", "review", "fail"]

EXIT_CODES: Mapping[Verdict, int] = {"pass": 0, "review": 10, "fail": 20}  # of `saqm gate`; the worst unit decides
EXCLUSION_COLUMNS: Columns = (
    Column("path", ("path",)),
    Column("frame", ("frame",), "integer"),
    Column("verdict", ("verdict",)),
    Column("reasons", ("reasons",), "texts"),
)
_WRONG_MODALITY = "outside the model's domain"  # how ModelScorer's warning begins


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a gate opens. Raises SaqmError for what is no number.

    pass_at: this score, or a better one, passes. fail_below: a worse one than this fails; None: none fails by its
    score. What is between is for review. Of a metric both are on its own scale, and where lower is better they are
    read the other way round: at or below `pass_at` passes, above `fail_below` fails.
    sure: not the score but the whole of its interval has to be on that side. not_scored: the verdict of what has none.
    """

    pass_at: float
    fail_below: float | None = None
    sure: bool = False
    not_scored: Literal["review", "fail"] = "review"

    def __post_init__(self) -> None:
        for name, value in (("pass_at", self.pass_at), ("fail_below", self.fail_below)):
            if value is not None and not math.isfinite(value):
                raise SaqmError(f"{name} {value} is no threshold; give a number")


@overload
def gate(scored: Score, thresholds: Thresholds) -> Score: ...
@overload
def gate(scored: Record, thresholds: Thresholds) -> dict[str, object]: ...


def gate(scored: Score | Record, thresholds: Thresholds) -> Score | dict[str, object]:
    """The score, or its record, with `verdict` and `reasons`, ours first; those of an earlier verdict are replaced.

    Raises SaqmError for thresholds that stand the wrong way round, and for `sure` where there is no interval.
    """
    record = scored.to_record() if isinstance(scored, Score) else scored
    verdict, reasons = _judge(record, thresholds)
    if record.get("verdict") is None and record.get("status") == "scored":
        reasons += tuple(_texts(record, "reasons"))
    if isinstance(scored, Score):
        return replace(scored, verdict=verdict, reasons=reasons)
    return {**scored, "verdict": verdict, "reasons": list(reasons)}


def gate_all(records: Iterable[Record], thresholds: Thresholds) -> Iterator[dict[str, object]]:
    """`gate`, record by record. Raises SaqmError for records of several models, and where there is not one record.

    Thresholds of one model mean nothing to another; and nothing at all must not look like a pass.
    """
    first: str | None = None
    for record in records:
        name = model_name(record)
        if first is None:
            first = name
        elif name != first:
            raise SaqmError(f"rows of {first} and of {name}: thresholds are those of one model; choose it with --model")
        yield gate(record, thresholds)
    if first is None:
        raise SaqmError("no image to judge: nothing passes where there is nothing")


def of_models(records: Iterable[Record], names: Collection[str]) -> Iterator[Record]:
    """The records of these models, by the names that stand in them. Raises SaqmError where one of them has none."""
    there: dict[str, None] = {}
    for record in records:
        there[model_name(record)] = None
        if model_name(record) in names:
            yield record
    if missing := [name for name in names if name not in there]:
        raise SaqmError(f"no row of {', '.join(missing)}; there are rows of {', '.join(there) or 'no model'}")


def model_name(record: Record) -> str:
    """Which model made a record."""
    model = record.get("model")
    return str(model.get("name")) if isinstance(model, Mapping) else "a model without name"


def lower_is_better(record: Record) -> bool:
    """Whether the record is of a metric whose lower values are the better ones."""
    model = record.get("model")
    return isinstance(model, Mapping) and model.get("direction") == "lower is better"


def value_of(record: Record) -> float | None:
    """What is judged: the score, of a metric its own value; None where it was not scored.

    Raises SaqmError for a record that says neither.
    """
    if record.get("status") != "scored":
        return None
    score = record.get("score")
    if score is None and isinstance(model := record.get("model"), Mapping) and model.get("direction"):
        score = record.get("score_raw")
    if not isinstance(score, int | float):
        raise SaqmError(
            f"{record.get('path')}: scored, but neither a score of 0 to 100 nor a metric's value with its direction; "
            "score it again with this version"
        )
    return float(score)


def unlike_known(record: Record) -> str | None:
    """Why the record's score is no ground for a verdict, in words; None where nothing speaks against it."""
    domain = record.get("out_of_domain")
    if isinstance(domain, Mapping) and domain.get("flag"):
        p = domain.get("p")
        how = f" (p = {p:.2g})" if isinstance(p, int | float) else ""
        return f"unlike the images that the model knows{how}"
    return next((text for text in _texts(record, "warnings") if text.startswith(_WRONG_MODALITY)), None)


def _judge(record: Record, thresholds: Thresholds) -> tuple[Verdict, tuple[str, ...]]:
    lower = lower_is_better(record)
    _check_order(thresholds, lower, model_name(record))
    value = value_of(record)
    if value is None:
        return thresholds.not_scored, tuple(_texts(record, "reasons")) or ("not scored, and no reason is given",)
    if unlike := unlike_known(record):
        return "review", (f"{unlike}: its score of {value:.6g} is no ground for a verdict", *_findings(record))
    verdict, reason = _by_score(value, thresholds, lower)
    if thresholds.sure:
        verdict, reason = _by_interval(verdict, reason, record, thresholds)
    return verdict, (reason,) if verdict == "pass" else (reason, *_findings(record))


def _check_order(thresholds: Thresholds, lower: bool, name: str) -> None:
    pass_at, fail_below = thresholds.pass_at, thresholds.fail_below
    if fail_below is None or (fail_below >= pass_at if lower else fail_below <= pass_at):
        return
    direction = "lower is better" if lower else "higher is better"
    raise SaqmError(
        f"pass at {pass_at:g} and fail at {fail_below:g} stand the wrong way round for {name} ({direction}): "
        f"what fails must be {'above' if lower else 'below'} what passes"
    )


def _by_score(value: float, thresholds: Thresholds, lower: bool) -> tuple[Verdict, str]:
    at_or_better, worse = ("at or below", "above") if lower else ("at or above", "below")
    pass_at, fail_below = thresholds.pass_at, thresholds.fail_below
    what = f"{'value' if lower else 'score'} {value:.6g} is"
    if value <= pass_at if lower else value >= pass_at:
        return "pass", f"{what} {at_or_better} {pass_at:g}"
    if fail_below is None:
        return "review", f"{what} {worse} {pass_at:g}"
    if value > fail_below if lower else value < fail_below:
        return "fail", f"{what} {worse} {fail_below:g}"
    return "review", f"{what} {worse} {pass_at:g} and not {worse} {fail_below:g}"


def _by_interval(verdict: Verdict, reason: str, record: Record, thresholds: Thresholds) -> tuple[Verdict, str]:
    """The verdict of a score where the far end of its interval bears it out; else review."""
    interval = record.get("interval")
    if not isinstance(interval, list | tuple):
        raise SaqmError(
            f"{model_name(record)} gives no intervals, which a verdict that is sure needs: leave sure (--sure) out, "
            "or use a model with a calibration"
        )
    low, high = (float(end) for end in interval)
    shown = f"its interval {low:.6g} to {high:.6g}"
    if verdict == "pass" and low < thresholds.pass_at:
        return "review", f"{reason}, but {shown} reaches below"
    if verdict == "fail" and thresholds.fail_below is not None and high >= thresholds.fail_below:
        return "review", f"{reason}, but {shown} is not wholly so"
    return verdict, reason if verdict == "review" else f"{reason}, and so is {shown}"


def _findings(record: Record) -> Iterator[str]:
    """What is wrong with the image, a line each, worst first."""
    for finding in cast("Iterable[Record]", record.get("findings") or ()):
        value, threshold = finding.get("value"), finding.get("threshold")
        if isinstance(value, int | float) and isinstance(threshold, int | float):
            unit = f" {finding['unit']}" if finding.get("unit") else ""
            yield f"{finding.get('name')}: {value:.3g}{unit}, {finding.get('direction')} {threshold:.3g}"
        else:
            yield str(finding.get("name"))


def _texts(record: Record, key: str) -> list[str]:
    return [str(text) for text in cast("Iterable[object]", record.get(key) or ())]
