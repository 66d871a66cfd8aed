"""How well predictions follow opinion scores, with what certainty, and beside what baselines.

Predictions and opinions stand on the same scale and in the same direction; a metric, which keeps its own of both, is
turned round where it must be, and the Evaluation says so (Orientation). In the table of an Evaluation a statistic
without value is None and printed as "undefined", never as a number. The statistics themselves: `saqm.statistics`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqm.errors import ImageError, NotScorable, UndefinedScore
from saqm.manifest import Manifest, Row, Scale, normalised
from saqm.modelfile import out_of_fold_path
from saqm.outputs.predictions import Prediction, read_predictions
from saqm.statistics import (
    LEVEL,
    REPLICATES,
    Floats,
    Interval,
    cluster_weights,
    compare,
    defined,
    fit_logistic,
    holm,
    interval,
    krocc,
    mae,
    plcc,
    rmse,
    srocc,
    srocc_by_scene,
    srocc_replicates,
)

if TYPE_CHECKING:
    from saqm.scorer import Scorer

PREDICTION = "prediction"
ORACLE = "oracle: mean of the method on other scenes"
CONSTANT = "constant: mean of other scenes"
READERS_MEAN = "readers: mean of these"
EVERYTHING = "all"  # the name of all domains together
_SAME_SCORE = 1e-6  # two opinion scores closer than this are the same, written by two programs


# Baselines: what is reached without looking at the image, and what people reach


def method_oracle(rows: Sequence[Row]) -> tuple[float | None, ...]:
    """For each row the mean score of its method on the other scenes of its domain; None where there is none.

    It never looks at the image. It does not exist where the method is new.
    """
    known: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.method is not None and row.score is not None:
            known[row.domain, row.method].append(row)

    def elsewhere(row: Row) -> list[float]:
        same = known.get((row.domain, row.method or ""), [])
        return [other.score for other in same if other.scene != row.scene and other.score is not None]

    return tuple(float(np.mean(scores)) if (scores := elsewhere(row)) else None for row in rows)


def constant(rows: Sequence[Row]) -> tuple[float | None, ...]:
    """For each row the mean score of all other scenes; None where there is none. For errors only: see CONSTANT."""
    totals: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            totals[row.scene].append(row.score)
    total, count = math.fsum(s for scores in totals.values() for s in scores), sum(map(len, totals.values()))

    def elsewhere(scene: str) -> float | None:
        own = totals.get(scene, [])
        return (total - math.fsum(own)) / (count - len(own)) if count > len(own) else None

    by_scene = {scene: elsewhere(scene) for scene in {row.scene for row in rows}}
    return tuple(by_scene[row.scene] for row in rows)


def readers(rows: Sequence[Row]) -> tuple[tuple[list[int], Floats, Floats], ...]:
    """Reader by reader, against the mean of the others: (indices of the rows, own scores, the others' mean)."""
    made = []
    for reader in range(max((len(row.rater_scores or ()) for row in rows), default=0)):
        index, own, others = [], [], []
        for place, row in enumerate(rows):
            scores = row.rater_scores or ()
            rest = [score for other, score in enumerate(scores) if other != reader and score is not None]
            mine = scores[reader] if reader < len(scores) else None
            if mine is not None and rest:
                index.append(place)
                own.append(mine)
                others.append(float(np.mean(rest)))
        if index:
            made.append((index, np.array(own), np.array(others)))
    return tuple(made)


# The table


@dataclass(frozen=True)
class Comparison:
    """srocc of one predictor minus another's on the same images; two-sided p from the paired cluster bootstrap."""

    domain: str
    first: str
    second: str
    n: int
    difference: float
    interval: Interval
    p: float
    p_holm: float

    @property
    def verdict(self) -> str:
        """In words, at 5 % after Holm's correction."""
        if self.p_holm >= 1 - LEVEL:
            return "not significant"
        return "significantly higher" if self.difference > 0 else "significantly lower"


@dataclass(frozen=True)
class Result:
    """One predictor on one domain. None is undefined, or an interval that cannot be made.

    srocc_interval: 95 %, scenes resampled. srocc_interval_methods: 95 %, scenes and methods resampled, None where a
    row names no method. within_scene_srocc: mean over the scenes where it is defined. plcc_logistic: fitted on these
    same data. rmse, mae: points of the opinion scale. srocc_by_seed: of each training seed alone.
    """

    domain: str
    name: str
    n: int
    scenes: int
    srocc: float | None = None
    srocc_interval: Interval | None = None
    srocc_interval_methods: Interval | None = None
    within_scene_srocc: float | None = None
    plcc: float | None = None
    plcc_logistic: float | None = None
    krocc: float | None = None
    rmse: float | None = None
    mae: float | None = None
    srocc_by_seed: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()


def shown(value: float | None) -> str:
    """A statistic as the tables have it."""
    return "undefined" if value is None else f"{value:.3f}"


def shown_interval(value: Interval | None) -> str:
    """An interval as the tables have it."""
    return "-" if value is None else f"[{value[0]:.2f}, {value[1]:.2f}]"


@dataclass(frozen=True)
class Orientation:
    """A predictor that keeps its own scale, and how it was brought into the direction of the opinions.

    direction: of its values. turned: whether they were negated before the correlations, so that a positive correlation
    means agreement with the opinions; a negative one is a metric that runs against its own claim.
    """

    name: str
    direction: str
    turned: bool

    @classmethod
    def of(cls, name: str, *, higher_is_better: bool, scale: Scale) -> Orientation:
        """That of a metric of this direction beside opinions on this scale."""
        direction = "higher is better" if higher_is_better else "lower is better"
        return cls(name, direction, turned=higher_is_better != scale.higher_is_better)

    def oriented(self, values: Iterable[float | None]) -> list[float | None]:
        """The values as the correlations take them."""
        return [-value if value is not None and self.turned else value for value in values]


@dataclass(frozen=True)
class Evaluation:
    """The results of every predictor on every domain, how they were made, and what could not be scored.

    rows and predictions are the evaluated images, in order; failures are (path, reason). orientation: of a metric,
    whose `predictions` are its own values, while the `results` are in the direction of the opinions.
    """

    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    protocol: str
    seed: int
    replicates: int
    manifest_sha256: str | None = None
    failures: tuple[tuple[str, str], ...] = ()
    rows: tuple[Row, ...] = field(default=(), repr=False)
    predictions: tuple[float, ...] = field(default=(), repr=False)
    orientation: Orientation | None = None

    def result(self, domain: str, name: str = PREDICTION) -> Result:
        """The row of that name. Raises UndefinedScore naming those there are."""
        for result in self.results:
            if (result.domain, result.name) == (domain, name):
                return result
        there = ", ".join(f"{result.domain} / {result.name}" for result in self.results)
        raise UndefinedScore(f"no result {domain} / {name}; there are: {there}")

    def to_json(self) -> str:
        """One JSON object: results, comparisons, failures and how they were made; no paths but of the failures."""
        content = {
            "protocol": self.protocol,
            "seed": self.seed,
            "replicates": self.replicates,
            "manifest_sha256": self.manifest_sha256,
            "orientation": None if self.orientation is None else asdict(self.orientation),
            "results": [asdict(result) for result in self.results],
            "comparisons": [asdict(c) | {"verdict": c.verdict} for c in self.comparisons],
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
            "remarks": list(self._remarks()),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Tables in Markdown with the remarks below."""
        parts = []
        for table in self._tables():
            head, *body = table
            lines = [head, ["---", *("---:" for _ in head[1:])], *body]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join([*parts, *(f"- {remark}" for remark in self._remarks())]) + "\n"

    def to_text(self) -> str:
        """The same for a terminal: columns of equal width."""
        parts = []
        for table in self._tables():
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            cells = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in table)
            parts.append("\n".join("  ".join(line).rstrip() for line in cells))
        return "\n\n".join([*parts, "\n".join(self._remarks())]) + "\n"

    def _tables(self) -> list[list[list[str]]]:
        head = ["images", "scenes", "SROCC", "95 % (scenes)", "95 % (scenes and methods)", "within scene"]
        head += ["PLCC", "PLCC logistic*", "KROCC", "RMSE", "MAE"]
        tables = []
        for domain in dict.fromkeys(result.domain for result in self.results):
            body = [
                [r.name, str(r.n), str(r.scenes)]
                + [shown(r.srocc), shown_interval(r.srocc_interval), shown_interval(r.srocc_interval_methods)]
                + [shown(v) for v in (r.within_scene_srocc, r.plcc, r.plcc_logistic, r.krocc, r.rmse, r.mae)]
                for r in self.results
                if r.domain == domain
            ]
            tables.append([[domain, *head], *body])
        if self.comparisons:
            tables.append([["SROCC compared", "domain", "images", "difference", "95 %", "p", "p (Holm)", "in words"]])
            for c in self.comparisons:
                numbers = [f"{c.difference:+.3f}", shown_interval(c.interval), f"{c.p:.4f}", f"{c.p_holm:.4f}"]
                tables[-1].append([f"{c.first} - {c.second}", c.domain, str(c.n), *numbers, c.verdict])
        return tables

    def _remarks(self) -> Iterable[str]:
        yield f"Protocol: {self.protocol}."
        yield (
            f"Intervals: percentile bootstrap of whole scenes (and of methods, where named), {self.replicates} "
            f"replicates, seed {self.seed}; RMSE and MAE in points of the opinion scale."
        )
        if self.orientation is not None:
            yield from self._orientation_remarks(self.orientation)
        yield "* PLCC after a four-parameter logistic fitted on the test data: an upper bound."
        concerned: dict[str, list[str]] = defaultdict(list)
        for result in self.results:
            for note in result.notes:
                concerned[note].append(f"{result.domain}, {result.name}")
        for note, whom in concerned.items():
            yield f"{note[0].upper()}{note[1:]} ({'; '.join(whom)})."
        if self.failures:
            yield f"Not scored: {len(self.failures)}."
        for path, reason in self.failures:
            yield f"{path}: {reason}"

    def _orientation_remarks(self, orientation: Orientation) -> Iterable[str]:
        done = "are negated before the correlations" if orientation.turned else "need no turning"
        yield (
            f"Orientation: {orientation.name} keeps its own scale ({orientation.direction}); its values {done}, so "
            "that a correlation above 0 agrees with the opinions, and one below 0 runs against the metric's own claim."
        )
        sign = -1 if orientation.turned else 1
        firsts = {
            result.domain: result for result in reversed(self.results)
        }  # a domain's first row is the prediction's
        raw = [f"{r.domain} {sign * r.srocc:+.3f}" for r in reversed(firsts.values()) if r.srocc is not None]
        if raw:
            yield f"SROCC of the values as they are, not turned: {', '.join(raw)}."


def evaluate_predictions(
    rows: Sequence[Row],
    predictions: Sequence[float | None],
    *,
    seed: int,
    replicates: int = REPLICATES,
    by: tuple[str, ...] = ("scene",),
    judged_only: bool = True,
    name: str = PREDICTION,
    others: Mapping[str, Sequence[float | None]] | None = None,
    by_seed: Sequence[Sequence[float | None]] = (),
    failures: tuple[tuple[str, str], ...] = (),
    manifest_sha256: str | None = None,
    made: str | None = None,
    orientation: Orientation | None = None,
) -> Evaluation:
    """Results of out-of-fold `predictions`, domain by domain and in all.

    predictions: on the opinion scale, None where not predicted.
    by: what the folds kept apart, as in manifest.folds; with "method" in it there is no oracle, for the method is new.
    judged_only: leave out the anchors. others: further predictors by name, compared with the first. by_seed: the same
    predictor trained from other seeds, whose spread is shown apart from the images' intervals.
    made: in place of what `by` says, how the predictions were made, in words for the protocol.
    orientation: where `predictions` (not `others`) keep a scale of their own; they have no RMSE and MAE then.
    Raises UndefinedScore for a prediction that is not finite, a list of another length, or nothing to evaluate.
    """
    oriented = predictions if orientation is None else orientation.oriented(predictions)
    predictors = {name: oriented, **(others or {})}
    for label, values in [*predictors.items(), *(("seed", values) for values in by_seed)]:
        if len(values) != len(rows):
            raise UndefinedScore(f"{label}: {len(values)} predictions for {len(rows)} rows")
        if broken := [
            row.path.name for row, v in zip(rows, values, strict=True) if v is not None and not np.isfinite(v)
        ]:
            raise UndefinedScore(f"{label}: predictions that are not finite: {', '.join(broken)}")
    wanted = [i for i, row in enumerate(rows) if row.score is not None and (row.judged or not judged_only)]
    kept = [i for i in wanted if predictions[i] is not None]
    if not kept:
        raise UndefinedScore(
            f"nothing to evaluate: {len(rows)} rows, {len(wanted)} with a score that counts, 0 predicted"
        )
    chosen = [rows[i] for i in kept]
    table = {label: [values[i] for i in kept] for label, values in predictors.items()}
    seeds = [[values[i] for i in kept] for values in by_seed]
    if "method" not in by:
        table[ORACLE] = list(method_oracle(chosen))

    domains = sorted({row.domain for row in chosen})
    groups = {domain: [i for i, row in enumerate(chosen) if row.domain == domain] for domain in domains}
    if len(domains) > 1:
        groups[EVERYTHING] = list(range(len(chosen)))
    results: list[Result] = []
    pairs: list[tuple[str, str, int, tuple[float, Interval, float]]] = []
    for domain, group in groups.items():
        here = [chosen[i] for i in group]
        columns = {label: [values[i] for i in group] for label, values in table.items()}
        by_seed_here = tuple(_by_seed(here, [values[i] for i in group]) for values in seeds)
        for label, values in columns.items():
            if any(value is not None for value in values):
                own_seeds = by_seed_here if label == name else ()
                found = _result(domain, label, here, values, seed=seed, replicates=replicates, by_seed=own_seeds)
                results.append(found if orientation is None or label != name else _without_errors(found))
        if len({row.scene for row in here}) > 1:
            results.append(_constant_result(domain, here))
        results += _reader_results(domain, here, seed, replicates)
        for label, values in columns.items():
            if label != name and (pair := _paired(here, columns[name], values, seed, replicates)):
                pairs.append((domain, label, *pair))
    corrected = holm([found[2] for _, _, _, found in pairs])
    comparisons = tuple(
        Comparison(domain, name, label, n, *found, p_holm)
        for (domain, label, n, found), p_holm in zip(pairs, corrected, strict=True)
    )
    kept_apart = f"no {' and no '.join(by)} in both training and test" if by else "one model, not cross-validated here"
    protocol = made or kept_apart
    protocol += "; judged images only" if judged_only else "; anchors fixed by the protocol of the study included"
    if len(kept) < len(wanted):
        protocol += f"; {len(wanted) - len(kept)} of {len(wanted)} images have no prediction"
    known = tuple(float(value) for i in kept if (value := predictions[i]) is not None)
    return Evaluation(
        tuple(results),
        comparisons,
        protocol,
        seed,
        replicates,
        manifest_sha256,
        failures,
        tuple(chosen),
        known,
        orientation,
    )


def _without_errors(result: Result) -> Result:
    """The row of a predictor whose values are no points of the opinion scale."""
    note = "RMSE and MAE are left out: its values are not on the scale of the opinions"
    return replace(result, rmse=None, mae=None, notes=(*result.notes, note))


def _result(
    domain: str,
    name: str,
    rows: Sequence[Row],
    values: Sequence[float | None],
    *,
    seed: int,
    replicates: int,
    by_seed: tuple[float | None, ...] = (),
    opinions: Sequence[float] | None = None,
) -> Result:
    """The row of the table for one predictor; `opinions` are the rows' scores unless given."""
    kept = [i for i, value in enumerate(values) if value is not None]
    here = [rows[i] for i in kept]
    x = np.array([values[i] for i in kept], np.float64)
    y = np.array(
        [row.score if opinions is None else opinions[i] for i, row in zip(kept, here, strict=True)], np.float64
    )
    scenes = [row.scene for row in here]
    methods = [row.method for row in here]
    notes: list[str] = []

    def bounds(what: str, *labels: Sequence[Hashable]) -> Interval | None:
        if any(len(set(names)) < 2 or None in names for names in labels):
            return None
        values_R = srocc_replicates(x, y, cluster_weights(*labels, replicates=replicates, seed=seed))
        if missing := int(np.isnan(values_R).sum()):
            notes.append(f"{missing} of {replicates} replicates of {what} are constant and left out")
        return interval(values_R)

    try:
        correlation: float | None = srocc(x, y)
    except UndefinedScore as error:
        notes.append(f"correlations undefined: {error}")
        bare = Result(domain, name, len(x), len(set(scenes)), srocc_by_seed=by_seed, notes=tuple(notes))
        return replace(bare, rmse=rmse(x, y), mae=mae(x, y))
    inside = srocc_by_scene(x, y, scenes)
    if len(inside) < len(set(scenes)):
        notes.append(f"SROCC within the scene is defined in {len(inside)} of {len(set(scenes))} scenes")
    fitted = fit_logistic(x, y)
    if fitted.fallback is not None:
        notes.append(f"a straight line stands for the logistic: {fitted.fallback}")
    if by_seed:
        notes.append(f"SROCC of {len(by_seed)} training seeds: {_spread(by_seed)}")
    return Result(
        domain=domain,
        name=name,
        n=len(x),
        scenes=len(set(scenes)),
        srocc=correlation,
        srocc_interval=bounds("scenes", scenes),
        srocc_interval_methods=bounds("scenes and methods", scenes, methods),
        within_scene_srocc=_mean(inside.values()),
        plcc=plcc(x, y),
        plcc_logistic=defined(plcc, fitted(x), y),
        krocc=krocc(x, y),
        rmse=rmse(x, y),
        mae=mae(x, y),
        srocc_by_seed=by_seed,
        notes=tuple(notes),
    )


def _constant_result(domain: str, rows: Sequence[Row]) -> Result:
    # The mean of the *other* scenes runs against a scene's own scores, so its correlation over scenes would be an
    # artefact of leaving out: correlations of the constant are undefined by what it is.
    values, opinions = np.array(constant(rows), np.float64), np.array([row.score for row in rows], np.float64)
    scenes = len({row.scene for row in rows})
    return Result(domain, CONSTANT, len(rows), scenes, rmse=rmse(values, opinions), mae=mae(values, opinions))


def _reader_results(domain: str, rows: Sequence[Row], seed: int, replicates: int) -> list[Result]:
    """Each reader against the mean of the others, and the mean of these rows."""
    each = []
    for number, (index, own, rest) in enumerate(readers(rows), 1):
        name, here, opinions = f"reader {number} against the others", [rows[i] for i in index], list(rest)
        each.append(_result(domain, name, here, list(own), seed=seed, replicates=replicates, opinions=opinions))
    if len(each) < 2:
        return each
    mean = Result(  # without intervals: each reader's stand above
        domain=domain,
        name=READERS_MEAN,
        n=max(result.n for result in each),
        scenes=max(result.scenes for result in each),
        srocc=_mean(result.srocc for result in each),
        within_scene_srocc=_mean(result.within_scene_srocc for result in each),
        plcc=_mean(result.plcc for result in each),
        plcc_logistic=_mean(result.plcc_logistic for result in each),
        krocc=_mean(result.krocc for result in each),
        rmse=_mean(result.rmse for result in each),
        mae=_mean(result.mae for result in each),
    )
    return [*each, mean]


def _paired(
    rows: Sequence[Row], first: Sequence[float | None], second: Sequence[float | None], seed: int, replicates: int
) -> tuple[int, tuple[float, Interval, float]] | None:
    """The comparison on the rows where both are known; None where it has no value."""
    kept = [i for i in range(len(rows)) if first[i] is not None and second[i] is not None]
    scenes = [rows[i].scene for i in kept]
    if len(set(scenes)) < 2:
        return None
    x, other, y = ([column[i] for i in kept] for column in (first, second, [row.score for row in rows]))
    try:
        weights = cluster_weights(scenes, replicates=replicates, seed=seed)
        return len(kept), compare(x, other, y, weights)  # type: ignore[arg-type]
    except UndefinedScore:
        return None


def _by_seed(rows: Sequence[Row], values: Sequence[float | None]) -> float | None:
    known = [(v, row.score) for v, row in zip(values, rows, strict=True) if v is not None and row.score is not None]
    return defined(srocc, [v for v, _ in known], [score for _, score in known])


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None when there is nothing, or something undefined, to be averaged."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return float(np.mean(known)) if known and len(known) == len(listed) else None


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ", ".join(f"{value:.3f}" for value in known) or "undefined"
    return f"mean {np.mean(known):.3f}, sd {np.std(known, ddof=1):.3f}, {min(known):.3f} to {max(known):.3f}"


# A scorer on a manifest


def evaluate(
    scorer: Scorer,
    manifest: Manifest,
    *,
    seed: int,
    judged_only: bool = True,
    as_trained: bool = False,
    replicates: int = REPLICATES,
) -> Evaluation:
    """Score every image of a manifest that has an opinion score, and evaluate. One broken file is one listed failure.

    Scores of 0..100 are put on the manifest's scale; a metric keeps its own (Orientation). An image that the model was
    trained on (its header lists them by SHA-256, as fitted parameters of a metric do) gets the out-of-fold prediction
    recorded beside the model file instead, and is a failure without one: a model is not tested on what it was taught.
    `as_trained` scores it all the same, and the protocol says so.
    Raises ManifestError for a manifest without scale, UndefinedScore when no image has a prediction.
    """
    from saqm.image import read_image, sha256_of
    from saqm.scorer import MetricScorer, ModelScorer, score

    if manifest.scale is None:
        normalised(0, None)  # says how to give one
    rows = [row for row in manifest.rows if row.score is not None and (row.judged or not judged_only)]
    trained_on: frozenset[str] = frozenset()
    recorded, orientation = _Recorded(), None
    if isinstance(scorer, ModelScorer | MetricScorer):
        trained_on = scorer.trained_on
    if isinstance(scorer, ModelScorer) and trained_on and not as_trained:
        recorded = _Recorded.read(out_of_fold_path(scorer.engine.path))
    if isinstance(scorer, MetricScorer) and manifest.scale is not None:
        better = scorer.metric.higher_is_better
        orientation = Orientation.of(scorer.name, higher_is_better=better, scale=manifest.scale)
    seen: list[str | None] = []  # SHA-256 of each row that was trained on

    def predict(row: Row) -> float | None:
        seen.append(None)
        if trained_on and (sha256 := sha256_of(row.path)) in trained_on:
            seen[-1] = sha256
            if not as_trained:
                return recorded.prediction(sha256, row)
        found = score(read_image(row.path), scorer)
        if orientation is not None:
            return found.score_raw
        return None if found.score is None else _on_scale(found.score / 100, manifest.scale)

    predictions, failures = predict_rows(rows, predict)
    if failures and len(failures) == len(rows):
        raise UndefinedScore(f"none of {len(rows)} images has a prediction; the first: {': '.join(failures[0])}")
    count = len(rows) - seen.count(None)
    made = f"{count} of {len(rows)} images were trained on: "
    made += (
        "RESUBSTITUTION: they are scored by the very model that was taught their scores, which is no test of it"
        if as_trained
        else "their recorded out-of-fold predictions are used"
    )
    return evaluate_predictions(
        rows,
        predictions,
        seed=seed,
        replicates=replicates,
        by=(),
        judged_only=judged_only,
        by_seed=recorded.by_seed(seen) if count == len(rows) else (),
        failures=failures,
        manifest_sha256=manifest.sha256,
        made=made if count else None,
        orientation=orientation,
    )


def predict_rows(
    rows: Sequence[Row], predict: Callable[[Row], float | None]
) -> tuple[tuple[float | None, ...], tuple[tuple[str, str], ...]]:
    """What `predict` gives for each row, None where it refuses the image, and the refusals as (path, reason)."""
    predictions: list[float | None] = []
    failures: list[tuple[str, str]] = []
    for row in rows:
        try:
            predictions.append(predict(row))
        except (ImageError, NotScorable) as error:
            predictions.append(None)
            failures.append((str(row.path), str(error)))
    return tuple(predictions), tuple(failures)


@dataclass(frozen=True)
class _Recorded:
    """Out-of-fold predictions that stand beside a model file, by seed and SHA-256."""

    name: str = ""
    lines: Mapping[int | None, Mapping[str, Prediction]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Recorded:
        if not path.is_file():
            return cls()
        lines: dict[int | None, dict[str, Prediction]] = defaultdict(dict)
        for line in read_predictions(path):
            lines[line.seed][line.sha256] = line
        return cls(path.name, lines)

    def prediction(self, sha256: str, row: Row) -> float:
        """The mean over the seeds. Raises NotScorable where none is recorded, or for another opinion score."""
        found = [known[sha256] for known in self.lines.values() if sha256 in known]
        values = [line.prediction for line in found if line.prediction is not None]
        if not values:
            where = f"{self.name} has none" if self.name else "no table of them stands beside the model file"
            raise NotScorable(
                f"the model was trained on this image, so its out-of-fold prediction is wanted, and {where}; "
                "--as-trained (as_trained=True) scores it all the same, which is no test of the model"
            )
        if row.score is None or any(abs((line.score or 0) - row.score) > _SAME_SCORE for line in found):
            raise NotScorable(
                f"the model was trained on this image with the opinion score {found[0].score}, which is {row.score} "
                "here: its recorded prediction may stand on another scale"
            )
        return math.fsum(values) / len(values)

    def by_seed(self, sha256s: Sequence[str | None]) -> tuple[tuple[float | None, ...], ...]:
        """The predictions of each seed, where there are several."""
        if len(self.lines) < 2:
            return ()
        return tuple(
            tuple(known[sha256].prediction if sha256 is not None and sha256 in known else None for sha256 in sha256s)
            for known in self.lines.values()
        )


def _on_scale(share: float, scale: Scale | None) -> float:
    """The inverse of manifest.normalised."""
    if scale is None:
        return share
    return scale.low + (scale.high - scale.low) * (share if scale.higher_is_better else 1 - share)
