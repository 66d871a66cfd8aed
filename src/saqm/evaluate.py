"""How well predictions follow opinion scores, with what certainty, and beside what baselines.

Predictions and opinions stand on the same scale and in the same direction. A statistic that has no value raises
UndefinedScore; in the table of an Evaluation it is None and printed as "undefined", never as a number.
Axes: N images, R bootstrap replicates.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import ImageError, ManifestError, MissingExtra, NotScorable, UndefinedScore
from saqm.manifest import Manifest, Row, Scale, normalised
from saqm.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saqm.scorer import Scorer

Floats = NDArray[np.float64]
Interval = tuple[float, float]

REPLICATES = 2000  # of a bootstrap: the usual number for 95 % percentile intervals (Efron & Tibshirani 1993, ch. 14)
LEVEL = 0.95  # of every interval
LEAST = 3  # pairs of which a correlation is taken
LEAST_LOGISTIC = 6  # pairs for a curve of four parameters; below, a straight line is fitted and said to be
_BLOCK = 2_000_000  # cells of replicates x images handled at once, so that memory is bounded
PREDICTION = "prediction"
ORACLE = "oracle: mean of the method on other scenes"
CONSTANT = "constant: mean of other scenes"
READERS_MEAN = "readers: mean of these"
EVERYTHING = "all"  # the name of all domains together


# Correlations and errors


def srocc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank, -1 to 1, higher is better.

    Raises UndefinedScore for fewer than 3 pairs, a value that is not finite, or a constant.
    """
    x, y = _pairs(predictions, opinions)
    return float(srocc_replicates(x, y, np.ones((1, len(x)), np.int64))[0])


def plcc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Pearson's linear correlation, -1 to 1, higher is better. Raises UndefinedScore as srocc does."""
    x, y = _pairs(predictions, opinions)
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def krocc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Kendall's rank correlation tau-b (with ties), -1 to 1, higher is better. Raises UndefinedScore as srocc does."""
    from scipy.stats import kendalltau

    x, y = _pairs(predictions, opinions)
    return float(kendalltau(x, y).statistic)


def rmse(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Root mean square error in points of the opinion scale, lower is better."""
    x, y = _finite(predictions, opinions, 1)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def mae(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Mean absolute error in points of the opinion scale, lower is better."""
    x, y = _finite(predictions, opinions, 1)
    return float(np.mean(np.abs(x - y)))


def srocc_by_scene(predictions: ArrayLike, opinions: ArrayLike, scenes: Sequence[Hashable]) -> dict[Hashable, float]:
    """srocc inside each scene; a scene where it is undefined (constant, fewer than 3) is left out."""
    x, y = _finite(predictions, opinions, 1)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        members[scene].append(index)
    values = {scene: _defined(srocc, x[index], y[index]) for scene, index in members.items()}
    return {scene: value for scene, value in values.items() if value is not None}


def _finite(predictions: ArrayLike, opinions: ArrayLike, least: int) -> tuple[Floats, Floats]:
    x, y = np.asarray(predictions, np.float64), np.asarray(opinions, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UndefinedScore(f"predictions {x.shape} and opinions {y.shape} are not two lists of the same length")
    if len(x) < least:
        raise UndefinedScore(f"{len(x)} pairs; wanted {least} or more")
    for name, values in (("predictions", x), ("opinions", y)):
        if not np.isfinite(values).all():
            raise UndefinedScore(f"{name} hold {int((~np.isfinite(values)).sum())} values that are not finite")
    return x, y


def _pairs(predictions: ArrayLike, opinions: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _finite(predictions, opinions, LEAST)
    for name, values in (("predictions", x), ("opinions", y)):
        if np.ptp(values) == 0:
            raise UndefinedScore(f"{name} are constant ({values[0]:.4g}): a correlation has no value")
    return x, y


def _defined(statistic: Callable[[ArrayLike, ArrayLike], float], x: ArrayLike, y: ArrayLike) -> float | None:
    try:
        return statistic(x, y)
    except UndefinedScore:
        return None


# The logistic between predictions and opinions


@dataclass(frozen=True)
class Logistic:
    """b1 + (b2 - b1) / (1 + exp(-(x - b3) / |b4|)), or a straight line b1 + b2 x where `fallback` says why."""

    parameters: tuple[float, ...]
    fallback: str | None = None

    def __call__(self, predictions: ArrayLike) -> Floats:
        """Predictions mapped onto the opinion scale, (N,)."""
        x = np.asarray(predictions, np.float64)
        if self.fallback is not None:
            intercept, slope = self.parameters
            return np.asarray(intercept + slope * x)
        low, high, middle, width = self.parameters
        return np.asarray(low + (high - low) * (1 + np.tanh((x - middle) / abs(width) / 2)) / 2)  # no overflow


def fit_logistic(predictions: ArrayLike, opinions: ArrayLike) -> Logistic:
    """The increasing four-parameter logistic of least squares (VQEG 2003), from several starts within bounds.

    A straight line takes its place, and `fallback` says so, below 6 pairs or where no start does better than the line.
    Increasing only: predictions that run against the opinions must not be turned round in silence.
    """
    from scipy.optimize import least_squares

    x, y = _pairs(predictions, opinions)
    (x0, x1), (y0, y1) = (float(x.mean()), float(x.std())), (float(y.mean()), float(y.std()))
    u, v = (x - x0) / x1, (y - y0) / y1
    slope = max(0.0, float(u @ v) / len(u))
    line = (y0 - slope * y1 / x1 * x0, slope * y1 / x1)
    if len(x) < LEAST_LOGISTIC:
        return Logistic(line, f"{len(x)} pairs are too few for four parameters")

    def residuals(p: Floats) -> Floats:  # p: low, height, middle, width, in standard deviations
        return np.asarray(p[0] + p[1] * (1 + np.tanh((u - p[2]) / p[3] / 2)) / 2 - v)

    def slopes(p: Floats) -> Floats:
        z = (u - p[2]) / p[3]
        rise = (1 + np.tanh(z / 2)) / 2
        steep = p[1] * rise * (1 - rise) / p[3]
        return np.stack([np.ones_like(u), rise, -steep, -steep * z], 1)

    reach, height = float(np.ptp(u)), float(np.ptp(v))
    lower = np.array([v.min() - height, 0.0, u.min() - reach, reach / 100])
    upper = np.array([v.max(), 3 * height, u.max() + reach, 3 * reach])
    best, least = None, float(np.sum((v - slope * u) ** 2))
    for middle in np.quantile(u, [0.2, 0.5, 0.8]):
        for width in (reach / 20, reach / 5, reach):
            start = np.array([v.min(), height, middle, width])
            found = least_squares(residuals, start, slopes, bounds=(lower, upper), max_nfev=200)
            if 2 * found.cost < least:
                best, least = found.x, 2 * float(found.cost)
    if best is None:
        return Logistic(line, "no logistic comes closer than the straight line")
    low = y0 + y1 * best[0]
    return Logistic((float(low), float(low + y1 * best[1]), float(x0 + x1 * best[2]), float(x1 * best[3])))


def plcc_logistic(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """plcc after fit_logistic **on these same data**: an upper bound, to be reported as fitted on the test data."""
    return plcc(fit_logistic(predictions, opinions)(predictions), opinions)


# Bootstrap


def cluster_weights(*labels: Sequence[Hashable], replicates: int, seed: int) -> NDArray[np.int64]:
    """How often each image stands in each bootstrap replicate, (R, N).

    Whole clusters are drawn with replacement. With two lists of labels (scenes and methods) each is drawn on its own
    and an image counts the product: the two-way bootstrap (Owen 2007, Annals of Applied Statistics 1(2)).
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((replicates, len(labels[0])), np.int64)
    for names in labels:
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        drawn = rng.multinomial(len(order), np.full(len(order), 1 / len(order)), size=replicates)
        weights *= drawn[:, [order[name] for name in names]]
    return weights


def srocc_replicates(predictions: ArrayLike, opinions: ArrayLike, weights_RN: NDArray[np.int64]) -> Floats:
    """srocc of every replicate, (R,); NaN where a replicate is constant. Weight 2 is the image standing there twice."""
    x, y = _finite(predictions, opinions, 1)
    values = np.empty(len(weights_RN))
    block = max(1, _BLOCK // len(x))
    for start in range(0, len(values), block):
        part = weights_RN[start : start + block]
        ranks_x, ranks_y = _centred_ranks(x, part), _centred_ranks(y, part)
        # Twice the ranks are whole numbers, so the sums are exact and a constant gives exactly zero.
        covariance, own_x, own_y = (
            np.einsum("rn,rn,rn->r", part, a, b)
            for a, b in ((ranks_x, ranks_y), (ranks_x, ranks_x), (ranks_y, ranks_y))
        )
        product = np.sqrt(own_x * own_y)
        values[start : start + block] = np.divide(
            covariance, product, out=np.full(len(part), np.nan), where=product > 0
        )
    return np.clip(values, -1, 1)


def _centred_ranks(values: Floats, weights_RN: NDArray[np.int64]) -> Floats:
    """Mean ranks among the replicate's images, minus their mean, (R, N)."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(values[order]) > 0))
    tied = np.add.reduceat(weights_RN[:, order], first, axis=1)
    ranks = tied.cumsum(1) - tied / 2 - weights_RN.sum(1, keepdims=True) / 2
    place = np.empty(len(values), np.intp)
    place[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    return np.asarray(ranks[:, place])


def interval(replicates: ArrayLike) -> Interval | None:
    """The 95 % percentile interval; undefined replicates (NaN) are left out, and None where they are the majority."""
    values = np.asarray(replicates, np.float64)
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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


def compare(
    first: ArrayLike, second: ArrayLike, opinions: ArrayLike, weights_RN: NDArray[np.int64]
) -> tuple[float, Interval, float]:
    """srocc(first) - srocc(second), its 95 % interval and two-sided p over the same replicates (cluster_weights).

    Raises UndefinedScore where either correlation, or most replicates, have no value.
    """
    difference = srocc(first, opinions) - srocc(second, opinions)
    differences = srocc_replicates(first, opinions, weights_RN) - srocc_replicates(second, opinions, weights_RN)
    bounds = interval(differences)
    if bounds is None:
        raise UndefinedScore("most bootstrap replicates are constant")
    known = differences[np.isfinite(differences)]
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return difference, bounds, min(1.0, 2 * (tail + 1) / (len(known) + 1))  # + 1: never zero (Davison & Hinkley 1997)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6), in the same order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


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


@dataclass(frozen=True)
class Evaluation:
    """The results of every predictor on every domain, how they were made, and what could not be scored.

    rows and predictions are the evaluated images, in order; failures are (path, reason).
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
        def number(value: float | None) -> str:
            return "undefined" if value is None else f"{value:.3f}"

        def bounds(value: Interval | None) -> str:
            return "-" if value is None else f"[{value[0]:.2f}, {value[1]:.2f}]"

        head = ["images", "scenes", "SROCC", "95 % (scenes)", "95 % (scenes and methods)", "within scene"]
        head += ["PLCC", "PLCC logistic*", "KROCC", "RMSE", "MAE"]
        tables = []
        for domain in dict.fromkeys(result.domain for result in self.results):
            body = [
                [r.name, str(r.n), str(r.scenes)]
                + [number(r.srocc), bounds(r.srocc_interval), bounds(r.srocc_interval_methods)]
                + [number(v) for v in (r.within_scene_srocc, r.plcc, r.plcc_logistic, r.krocc, r.rmse, r.mae)]
                for r in self.results
                if r.domain == domain
            ]
            tables.append([[domain, *head], *body])
        if self.comparisons:
            tables.append([["SROCC compared", "domain", "images", "difference", "95 %", "p", "p (Holm)", "in words"]])
            for c in self.comparisons:
                numbers = [f"{c.difference:+.3f}", bounds(c.interval), f"{c.p:.4f}", f"{c.p_holm:.4f}"]
                tables[-1].append([f"{c.first} - {c.second}", c.domain, str(c.n), *numbers, c.verdict])
        return tables

    def _remarks(self) -> Iterable[str]:
        yield f"Protocol: {self.protocol}."
        yield (
            f"Intervals: percentile bootstrap of whole scenes (and of methods, where named), {self.replicates} "
            f"replicates, seed {self.seed}; RMSE and MAE in points of the opinion scale."
        )
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
) -> Evaluation:
    """Results of out-of-fold `predictions`, domain by domain and in all.

    predictions: on the opinion scale, None where not predicted.
    by: what the folds kept apart, as in manifest.folds; with "method" in it there is no oracle, for the method is new.
    judged_only: leave out the anchors. others: further predictors by name, compared with the first. by_seed: the same
    predictor trained from other seeds, whose spread is shown apart from the images' intervals.
    Raises UndefinedScore for a prediction that is not finite, a list of another length, or nothing to evaluate.
    """
    predictors = {name: predictions, **(others or {})}
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
                results.append(
                    _result(domain, label, here, values, seed=seed, replicates=replicates, by_seed=own_seeds)
                )
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
    protocol = f"no {' and no '.join(by)} in both training and test" if by else "one model, not cross-validated here"
    protocol += "; judged images only" if judged_only else "; anchors fixed by the protocol of the study included"
    if len(kept) < len(wanted):
        protocol += f"; {len(wanted) - len(kept)} of {len(wanted)} images have no prediction"
    known = tuple(float(value) for value in table[name] if value is not None)
    return Evaluation(
        tuple(results), comparisons, protocol, seed, replicates, manifest_sha256, failures, tuple(chosen), known
    )


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
        plcc_logistic=_defined(plcc, fitted(x), y),
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
    return _defined(srocc, [v for v, _ in known], [score for _, score in known])


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
    scorer: Scorer, manifest: Manifest, *, seed: int, judged_only: bool = True, replicates: int = REPLICATES
) -> Evaluation:
    """Score every image of a manifest that has an opinion score, and evaluate. One broken file is one listed failure.

    Scores of 0..100 are put on the manifest's scale. Not cross-validated: where the model's file says
    that it was trained on some of these images, the protocol says how many.
    Raises ManifestError for a manifest without scale, UndefinedScore when no image could be scored.
    """
    from saqm.image import read_image
    from saqm.scorer import ModelScorer, score

    trained_on = frozenset(scorer.header.training.images_sha256 if isinstance(scorer, ModelScorer) else ())
    seen: list[str] = []

    def score_file(path: str) -> float | None:
        image = read_image(path)
        if image.source.sha256 in trained_on:
            seen.append(path)
        return score(image, scorer).score

    rows = [row for row in manifest.rows if row.score is not None and (row.judged or not judged_only)]
    if manifest.scale is None:
        normalised(0, None)  # says how to give one
    predictions, failures = score_rows(rows, manifest.scale, score_file)
    evaluation = evaluate_predictions(
        rows,
        predictions,
        seed=seed,
        replicates=replicates,
        by=(),
        judged_only=judged_only,
        failures=failures,
        manifest_sha256=manifest.sha256,
    )
    if seen:
        warning = f"the model was trained on {len(seen)} of these {len(rows)} images, so this is no test of it"
        evaluation = replace(evaluation, protocol=f"{evaluation.protocol}; {warning}")
    return evaluation


def score_rows(
    rows: Sequence[Row], scale: Scale | None, score_file: Callable[[str], float | None]
) -> tuple[tuple[float | None, ...], tuple[tuple[str, str], ...]]:
    """Predictions on `scale` from scores of 0..100 (higher is better), and the failures as (path, reason)."""
    predictions: list[float | None] = []
    failures: list[tuple[str, str]] = []
    for row in rows:
        try:
            value = score_file(str(row.path))
        except (ImageError, NotScorable) as error:
            value = None
            failures.append((str(row.path), str(error)))
        predictions.append(None if value is None else _on_scale(value / 100, scale))
    return tuple(predictions), tuple(failures)


def _on_scale(share: float, scale: Scale | None) -> float:
    """The inverse of manifest.normalised."""
    if scale is None:
        return share
    return scale.low + (scale.high - scale.low) * (share if scale.higher_is_better else 1 - share)


# The table of predictions


@dataclass(frozen=True)
class Prediction:
    """One line of a table of out-of-fold predictions; score and prediction on the manifest's scale."""

    sha256: str  # of the image file
    path: str  # its name, without folders
    scene: str
    domain: str
    method: str | None
    fold: int | None
    seed: int | None
    score: float | None
    prediction: float | None


_PREDICTION_COLUMNS = ("sha256", "path", "scene", "domain", "method", "fold", "seed", "score", "prediction")


def write_predictions(
    path: str | Path,
    rows: Sequence[Row],
    predictions: Sequence[float | None],
    folds: Sequence[int | None],
    seeds: Sequence[int | None] | int | None = None,
) -> None:
    """Write out-of-fold predictions as CSV, one line a row; an image may stand there once for every seed.

    An old file is replaced whole. Raises OutputError when it cannot be written, ImageError for a missing image.
    """
    from saqm.image import sha256_of

    listed = [seeds] * len(rows) if seeds is None or isinstance(seeds, int) else list(seeds)
    if not len(rows) == len(predictions) == len(folds) == len(listed):
        raise UndefinedScore(
            f"{len(rows)} rows, {len(predictions)} predictions, {len(folds)} folds, {len(listed)} seeds"
        )
    hashes: dict[Path, str] = {}
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_PREDICTION_COLUMNS)
    for row, prediction, fold, seed in zip(rows, predictions, folds, listed, strict=True):
        if row.path not in hashes:
            hashes[row.path] = sha256_of(row.path)
        cells = (hashes[row.path], row.path.name, row.scene, row.domain, row.method, fold, seed)
        numbers = [None if value is None else repr(float(value)) for value in (row.score, prediction)]
        table.writerow(["" if cell is None else cell for cell in (*cells, *numbers)])
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue().encode())


def read_predictions(path: str | Path) -> tuple[Prediction, ...]:
    """Read what write_predictions wrote. Raises ManifestError that lists every bad line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != _PREDICTION_COLUMNS:
        raise ManifestError(f"{path}: wanted the columns {', '.join(_PREDICTION_COLUMNS)}, not {reader.fieldnames}")
    made: list[Prediction] = []
    problems: list[str] = []
    for line, cells in enumerate(reader, 2):
        if None in cells or None in cells.values():  # DictReader's way of saying more, or fewer
            problems.append(f"line {line}: wanted {len(_PREDICTION_COLUMNS)} cells")
            continue
        try:
            made.append(
                Prediction(
                    cells["sha256"],
                    cells["path"],
                    cells["scene"],
                    cells["domain"],
                    cells["method"] or None,
                    int(cells["fold"]) if cells["fold"] else None,
                    int(cells["seed"]) if cells["seed"] else None,
                    float(cells["score"]) if cells["score"] else None,
                    float(cells["prediction"]) if cells["prediction"] else None,
                )
            )
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        raise ManifestError("\n  ".join([f"{path}: {len(problems)} problems", *problems]))
    return tuple(made)


def predictions_of(rows: Sequence[Row], table: Sequence[Prediction]) -> tuple[tuple[float | None, ...], ...]:
    """The predictions of a table for `rows`, a tuple for each of its seeds; images are told by their SHA-256.

    None where an image was not predicted. Raises ManifestError where the table has none of these images, or one twice.
    """
    from saqm.image import sha256_of

    found: dict[int | None, dict[str, float | None]] = defaultdict(dict)
    for line in table:
        if line.sha256 in found[line.seed]:
            raise ManifestError(f"{line.path}: predicted twice with seed {line.seed}; leave one line")
        found[line.seed][line.sha256] = line.prediction
    hashes = [sha256_of(row.path) for row in rows]
    if not any(sha256 in known for known in found.values() for sha256 in hashes):
        raise ManifestError(f"none of the {len(table)} predictions is of one of these {len(rows)} images")
    return tuple(tuple(known.get(sha256) for sha256 in hashes) for known in found.values())


def mean_of_seeds(by_seed: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """For each image the mean of the seeds that predicted it, None where none did."""
    known = [[value for value in values if value is not None] for values in zip(*by_seed, strict=True)]
    return tuple(sum(values) / len(values) if values else None for values in known)


# The picture


def scatter(evaluation: Evaluation, path: str | Path) -> None:
    """Draw opinion against prediction as PNG, a panel a domain, each method's mean by name. Needs the extra `plot`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a scatter plot") from error

    domains = sorted({row.domain for row in evaluation.rows})
    figure = Figure(figsize=(5.2 * len(domains), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, domain in zip(figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True):
        index = [i for i, row in enumerate(evaluation.rows) if row.domain == domain]
        _panel(axes, evaluation, domain, index)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def _panel(axes: Axes, evaluation: Evaluation, domain: str, index: Sequence[int]) -> None:
    x = np.array([evaluation.predictions[i] for i in index])
    y = np.array([evaluation.rows[i].score for i in index], np.float64)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.75", linewidth=1, linestyle="--", label="prediction = opinion", zorder=1)
    axes.scatter(x, y, s=18, color="#3b75af", alpha=0.45, linewidths=0, label="image", zorder=2)
    if np.ptp(x) > 0 and np.ptp(y) > 0 and len(x) >= LEAST:
        fitted = fit_logistic(x, y)
        grid = np.linspace(x.min(), x.max(), 200)
        label = "logistic" if fitted.fallback is None else "straight line"
        axes.plot(grid, fitted(grid), color="#c1440e", linewidth=1.5, label=f"{label}, fitted here", zorder=3)
    _name_methods(axes, evaluation, index, limits)
    result = next(r for r in evaluation.results if r.domain == domain)
    value = "undefined" if result.srocc is None else f"{result.srocc:.2f}"
    bounds = "" if result.srocc_interval is None else " [{:.2f}, {:.2f}]".format(*result.srocc_interval)
    axes.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        xlabel="prediction",
        ylabel="opinion score",
        title=f"{domain}: SROCC {value}{bounds}\n{result.n} images of {result.scenes} scenes; diamonds: method means",
    )
    axes.title.set_fontsize(10)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)


def _name_methods(axes: Axes, evaluation: Evaluation, index: Sequence[int], limits: Interval) -> None:
    """A diamond at each method's mean, its name on the right edge in the same order, a thin line between the two."""
    by_method: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in index:
        row = evaluation.rows[i]
        if row.method is not None and row.score is not None:
            by_method[row.method].append((evaluation.predictions[i], row.score))
    side = limits[1] - limits[0]
    line, below = side / 26, -math.inf  # a line of text, in data units
    for method, places in sorted(by_method.items(), key=lambda item: float(np.mean(item[1], axis=0)[1])):
        x, y = np.mean(places, axis=0)
        below = max(y, below + line)
        at = (limits[1] + 0.02 * side, below)
        axes.plot(x, y, marker="D", color="0.15", markersize=4, zorder=5)
        axes.plot((x, limits[1], at[0]), (y, below, below), color="0.6", linewidth=0.5, clip_on=False, zorder=4)
        axes.text(*at, f" {method}", fontsize=8, color="0.15", va="center")
