"""How far people who judged the same images agree: with each other, with themselves, and with a model.

Intraclass correlations: Shrout and Fleiss 1979, Psychological Bulletin 86(2), with the intervals of McGraw and Wong
1996, Psychological Methods 1(1), table 7. They take the images as independent of each other; the intervals of the rank
correlations resample whole scenes. A statistic without value is None and printed as "undefined". Axes: N images,
K raters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from saqm.errors import ManifestError, UndefinedScore
from saqm.evaluate import EVERYTHING, Evaluation, shown, shown_interval
from saqm.manifest import Manifest, Row
from saqm.statistics import (
    LEAST,
    LEVEL,
    REPLICATES,
    Floats,
    Interval,
    cluster_weights,
    defined,
    interval,
    srocc,
    srocc_replicates,
)

LEAST_RELIABLE = 0.5  # below it reliability is poor, and the interval decides: Koo & Li 2016, J Chiropr Med 15(2)
# The same source's words, each from its bound on.
RELIABLE = ((0.9, "excellent"), (0.75, "good or better"), (LEAST_RELIABLE, "moderate or better"))
OTHERS = "mean of the others"
OPINION = "opinion score"
_ROUNDING = 1e-12  # a mean square below this share of the largest is what rounding leaves of zero

Pair = tuple[float, float]  # one reader's two scores of one image, the first first
Judge = Callable[[Row], float | None]


@dataclass(frozen=True)
class Reliability:
    """An intraclass correlation, at most 1, higher is better, with its 95 % interval.

    name: ICC(2,1), one reader's score in place of another's; ICC(2,k), the mean of k readers in place of that of k
    others; ICC(3,1), as ICC(2,1), but a reader who is stricter throughout counts as agreeing.
    """

    name: str
    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Correlation:
    """srocc of two judges on the n images that both judged; 95 % interval, scenes resampled."""

    first: str
    second: str
    n: int
    srocc: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Constancy:
    """One reader's agreement with himself on the images that he was shown twice.

    mean_difference: absolute, and within_sd: standard deviation of one score about the reader's own mean for the image,
    sqrt(mean(difference²) / 2) (Bland and Altman 1996, BMJ 313, 744); both in points of the scale.
    """

    reader: str
    n: int
    srocc: float | None
    mean_difference: float
    within_sd: float


@dataclass(frozen=True)
class Group:
    """The agreement on the images of one domain. complete: images that every reader judged, of which the ICCs are."""

    domain: str
    images: int
    readers: int
    complete: int
    reliabilities: tuple[Reliability, ...]
    correlations: tuple[Correlation, ...]
    verdict: str


@dataclass(frozen=True)
class Agreement:
    """Domain by domain, and in all where there are several. unscored: why the scorer had nothing to say of an image."""

    groups: tuple[Group, ...]
    constancies: tuple[Constancy, ...]
    seed: int
    replicates: int
    protocol: str | None = None  # of the scorer's predictions
    unscored: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One JSON object; no paths but of what could not be scored, and no names but the readers'."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """Tables for a terminal, each domain's verdict below its own."""
        parts = []
        for group in self.groups:
            head = f"{group.domain}: {group.images} images, {group.readers} readers, {group.complete} judged by all"
            icc = [[r.name, shown(r.value), shown_interval(r.interval)] for r in group.reliabilities]
            rank = [
                [f"{c.first} - {c.second}", str(c.n), shown(c.srocc), shown_interval(c.interval)]
                for c in group.correlations
            ]
            tables = [["reliability", "ICC", "95 %"], *icc], [["SROCC between", "images", "value", "95 %"], *rank]
            parts += [head, *(_columns(table) for table in tables if len(table) > 1), group.verdict]
        if self.constancies:
            table = [["shown twice", "images", "SROCC", "mean difference", "within-reader sd"]]
            table += [
                [c.reader, str(c.n), shown(c.srocc), f"{c.mean_difference:.3f}", f"{c.within_sd:.3f}"]
                for c in self.constancies
            ]
            parts.append(_columns(table))
        return "\n\n".join([*parts, "\n".join(self._remarks())]) + "\n"

    def _remarks(self) -> Iterator[str]:
        yield (
            "Intervals: 95 %; of the ICCs by F, images taken as independent; of SROCC by percentile bootstrap of "
            f"whole scenes, {self.replicates} replicates, seed {self.seed}."
        )
        if self.protocol is not None:
            yield f"Predictions: {self.protocol}."
        yield from (f"Not scored: {reason}" for reason in self.unscored)


def agreement(
    manifest: Manifest,
    *,
    seed: int,
    names: Sequence[str] = (),
    repeats: Mapping[str, Sequence[Pair]] | None = None,
    evaluation: Evaluation | None = None,
    scorer: str = "model",
    replicates: int = REPLICATES,
) -> Agreement:
    """How far the readers of a manifest (score_r1, score_r2, …) agree.

    names: theirs, in that order; else "reader 1" and so on. repeats: of images shown twice, by reader.
    evaluation: of a scorer of that name on this manifest: it is compared with each reader and with the opinion score.
    Raises ManifestError where no single reader's scores are known.
    """
    rows = [row for row in manifest.rows if row.rater_scores]
    if not rows:
        raise ManifestError(
            f"{manifest.path or 'the manifest'}: no reader's own scores; wanted the columns score_r1, score_r2, … "
            "(saqm rate writes them)"
        )
    count = max(len(row.rater_scores or ()) for row in rows)
    named = [*names, *(f"reader {number}" for number in range(len(names) + 1, count + 1))]
    domains = sorted({row.domain for row in rows})
    groups = [(domain, [row for row in rows if row.domain == domain]) for domain in domains]
    if len(domains) > 1:
        groups.append((EVERYTHING, rows))
    predicted = {} if evaluation is None else _predictions(evaluation)
    return Agreement(
        groups=tuple(
            _group(domain, here, names=named, predicted=predicted, scorer=scorer, seed=seed, replicates=replicates)
            for domain, here in groups
        ),
        constancies=tuple(_constancy(reader, pairs) for reader, pairs in (repeats or {}).items() if pairs),
        seed=seed,
        replicates=replicates,
        protocol=None if evaluation is None else evaluation.protocol,
        unscored=() if evaluation is None else tuple(reason for _, reason in evaluation.failures),
    )


def intraclass(scores_NK: Floats) -> tuple[Reliability, ...]:
    """ICC(2,1), ICC(2,k) and ICC(3,1) of N images that each of K readers judged.

    None where an estimate of variance comes out below zero, so that the share has no value. Raises UndefinedScore for
    fewer than 3 images or 2 readers, values that are not finite, or scores that are the same for every image.
    """
    n, k = scores_NK.shape
    if n < LEAST or k < 2:
        raise UndefinedScore(f"{n} images judged by all of {k} readers; wanted {LEAST} images and 2 readers, or more")
    if not np.isfinite(scores_NK).all():
        raise UndefinedScore(f"scores hold {int((~np.isfinite(scores_NK)).sum())} values that are not finite")
    images, raters, error = _mean_squares(scores_NK)
    if images == error == 0:
        raise UndefinedScore("every image has the same scores")

    def one(images: float, raters: float, error: float) -> float | None:
        return _share(n * (images - error), n * images + k * raters + (k * n - k - n) * error)

    def mean(images: float, raters: float, error: float) -> float | None:
        return _share(n * (images - error), n * images + raters - error)

    def consistent(images: float, raters: float, error: float) -> float | None:
        del raters
        return _share(images - error, images + (k - 1) * error)

    df, df_error = _freedom(n, k, raters, error, one(images, raters, error)), (n - 1.0) * (k - 1)
    made = []
    for name, share, freedom in (("ICC(2,1)", one, df), (f"ICC(2,{k})", mean, df), ("ICC(3,1)", consistent, df_error)):
        above, below = _f_quantile(n - 1, freedom), _f_quantile(freedom, n - 1)
        low = share(images, above * raters, above * error)
        high = share(below * images, raters, error)
        made.append(
            Reliability(name, share(images, raters, error), None if low is None or high is None else (low, high))
        )
    return tuple(made)


def _mean_squares(scores_NK: Floats) -> tuple[float, float, float]:
    """Between images, between raters, and of the rest, in the two-way analysis of variance."""
    n, k = scores_NK.shape
    mean = scores_NK.mean()
    of_image, of_rater = scores_NK.mean(1) - mean, scores_NK.mean(0) - mean
    rest_NK = scores_NK - mean - of_image[:, None] - of_rater
    squares = np.array(
        [
            k * (of_image @ of_image) / (n - 1),
            n * (of_rater @ of_rater) / (k - 1),
            np.sum(rest_NK**2) / ((n - 1) * (k - 1)),
        ]
    )
    squares[squares < _ROUNDING * np.sum(scores_NK**2)] = 0
    return float(squares[0]), float(squares[1]), float(squares[2])


def _freedom(n: int, k: int, raters: float, error: float, icc: float | None) -> float:
    """Satterthwaite's degrees of freedom of raters and rest together, for ICC(2,1) and ICC(2,k); NaN for none."""
    if icc is None or icc >= 1 or raters == error == 0:
        return (n - 1.0) * (k - 1)  # the readers agree to the last digit: the bounds are 1 whatever F is
    a = k * icc / (n * (1 - icc))
    b = 1 + a * (n - 1)
    spread = (a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    return (a * raters + b * error) ** 2 / spread if spread > 0 else math.nan


def _f_quantile(numerator: float, denominator: float) -> float:
    from scipy.stats import f

    return float(f.ppf((1 + LEVEL) / 2, numerator, denominator))


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 and math.isfinite(part) else None


# One domain


def _group(
    domain: str,
    rows: Sequence[Row],
    *,
    names: Sequence[str],
    predicted: Mapping[Path, float],
    scorer: str,
    seed: int,
    replicates: int,
) -> Group:
    present = [place for place in range(len(names)) if any(_of(row, place) is not None for row in rows)]
    complete = [own for row in rows if None not in (own := [_of(row, place) for place in present])]
    reliabilities: tuple[Reliability, ...] = ()
    reason = ""
    try:
        reliabilities = intraclass(np.array(complete, np.float64).reshape(len(complete), len(present)))
    except UndefinedScore as error:
        reason = str(error)

    def between(first: str, second: str, judge: Judge, other: Judge) -> Correlation:
        both = [(row.scene, x, y) for row in rows if (x := judge(row)) is not None and (y := other(row)) is not None]
        scenes, xs, ys = ([entry[place] for entry in both] for place in range(3))
        value, bounds = defined(srocc, xs, ys), None
        if value is not None and len(set(scenes)) > 1:
            bounds = interval(srocc_replicates(xs, ys, cluster_weights(scenes, replicates=replicates, seed=seed)))
        return Correlation(first, second, len(both), value, bounds)

    def reader(place: int) -> Judge:
        return lambda row: _of(row, place)

    correlations = [between(names[a], names[b], reader(a), reader(b)) for a, b in combinations(present, 2)]
    if len(present) > 2:  # of two, the others' mean is the other
        correlations += [between(names[place], OTHERS, reader(place), _others(place)) for place in present]
    if predicted:
        second = [(names[place], reader(place)) for place in present]
        second += [(OPINION, lambda row: row.score)] if len(present) > 1 else []
        correlations += [between(scorer, name, lambda row: predicted.get(row.path), judge) for name, judge in second]
    return Group(
        domain=domain,
        images=len(rows),
        readers=len(present),
        complete=len(complete),
        reliabilities=reliabilities,
        correlations=tuple(correlations),
        verdict=_verdict(len(present), reliabilities, reason),
    )


def _of(row: Row, place: int) -> float | None:
    scores = row.rater_scores or ()
    return scores[place] if place < len(scores) else None


def _others(place: int) -> Judge:
    def mean(row: Row) -> float | None:
        known = [s for other, s in enumerate(row.rater_scores or ()) if other != place and s is not None]
        return float(np.mean(known)) if known else None

    return mean


def _verdict(readers: int, reliabilities: Sequence[Reliability], reason: str) -> str:
    """Whether a model can be fitted to the mean of these readers, in a sentence."""
    if readers < 2:
        return "One reader: whether others would agree is not known; ask a second."
    if not reliabilities:
        return f"Whether these ratings can be fitted is not known: {reason}."
    _, mean, _ = reliabilities
    said = f"{mean.name} is {shown(mean.value)} {shown_interval(mean.interval)}"
    if mean.interval is not None and mean.interval[0] >= LEAST_RELIABLE:
        word = next(word for least, word in RELIABLE if mean.interval[0] >= least)
        return f"The mean of these {readers} readers can be fitted: {said}, reliability {word}."
    wanted = f"a lower bound of {LEAST_RELIABLE} is wanted"
    if mean.value is not None and mean.value >= LEAST_RELIABLE:
        return f"These ratings cannot be fitted yet: {said}; {wanted}. Have more images judged, or ask more readers."
    return (
        f"These ratings cannot be fitted: {said}; {wanted}. The readers disagree: agree on what is judged, with "
        "examples, and rate again."
    )


# One reader, and a scorer


def _constancy(reader: str, pairs: Sequence[Pair]) -> Constancy:
    first, second = np.array(pairs, np.float64).T
    apart = np.abs(first - second)
    return Constancy(
        reader=reader,
        n=len(pairs),
        srocc=defined(srocc, first, second),
        mean_difference=float(apart.mean()),
        within_sd=float(np.sqrt(np.mean(apart**2) / 2)),
    )


def _predictions(evaluation: Evaluation) -> dict[Path, float]:
    """By image, in the direction of the opinions."""
    values: Iterable[float | None] = evaluation.predictions
    if evaluation.orientation is not None:
        values = evaluation.orientation.oriented(values)
    return {row.path: value for row, value in zip(evaluation.rows, values, strict=True) if value is not None}


def _columns(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table)
    return "\n".join(line.rstrip() for line in lines)
