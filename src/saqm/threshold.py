"""Which threshold? Chosen from images with opinions, so that no more than a share of the bad ones pass unseen.

An image passes at `pass_at` or better; the others are looked at: that is the workload. The higher the threshold, the
fewer bad images are missed and the more are looked at. Taken is the lowest one for which

    (missed share, summed over the units with bad images + 1) / (their number + 1) <= miss_at_most,

the conformal risk control of Angelopoulos et al. 2022 (arXiv 2208.02814, Theorem 1): whatever the scores are, of a new
unit like these no more than that share of its bad images is missed, in the mean over many such choices. A unit is a
scene, because images of one scene stand and fall together; or an image, where each is of a scene of its own.
Axes: N images, R bootstrap replicates.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ManifestError, UndefinedScore
from saqm.evaluate import Evaluation
from saqm.gating import Thresholds
from saqm.manifest import Scale, normalised
from saqm.statistics import LEVEL, REPLICATES, Floats, Interval, cluster_weights, interval

Unit = Literal["scene", "image"]
Bools = NDArray[np.bool_]

_EXACT = 1e-9  # slack of sums of shares: 3 x 1/3 is one
_DECIMALS = 17  # tell any two floats apart


@dataclass(frozen=True)
class Share:
    """A share of images: `count` of `of`, and its 95 % percentile interval over scenes, None where it has none."""

    count: int
    of: int
    interval: Interval | None

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.count / self.of

    def __str__(self) -> str:
        bounds = "" if self.interval is None else " [{:.1%}, {:.1%}]".format(*self.interval)
        return f"{self.value:.1%}{bounds} ({self.count} of {self.of})"


@dataclass(frozen=True)
class Choice:
    """Thresholds, what was promised for them, and what they do on the images they were chosen from.

    pass_at, fail_below: on the scale of the scorer, 0 to 100 or a metric's own (`direction`).
    bad: what counts as bad, in words. unit, units: what the promise counts, and how many of them hold bad images.
    missed: share of the bad that pass. missed_upper: one-sided 95 % bound on a unit's chance to have one missed (exact,
    Clopper & Pearson 1934). reviewed: the workload, share of all that do not pass. passed_good: specificity, share of
    the good that pass. failed_good: share of the good that fail, None without fail_below. auc: the chance that a good
    image scores better than a bad one.
    by_domain: (domain, share of its bad missed or None, share of its images not passed).
    """

    scorer: str | None
    direction: str
    bad: str
    miss_at_most: float
    unit: Unit
    units: int
    scenes: int
    pass_at: float
    fail_below: float | None
    missed: Share
    missed_upper: float
    reviewed: Share
    passed_good: Share
    failed_good: Share | None
    auc: float
    auc_interval: Interval | None
    by_domain: tuple[tuple[str, Share | None, Share], ...]
    protocol: str
    seed: int
    replicates: int
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def thresholds(self) -> Thresholds:
        """As `saqm.gate` takes them."""
        return Thresholds(pass_at=self.pass_at, fail_below=self.fail_below)

    def to_json(self) -> str:
        """One JSON object."""
        content = asdict(self) | {
            name: {**asdict(share), "value": share.value}
            for name in ("missed", "reviewed", "passed_good", "failed_good")
            if (share := getattr(self, name)) is not None
        }
        content["by_domain"] = [
            {"domain": domain, "missed": missed and missed.value, "reviewed": reviewed.value}
            for domain, missed, reviewed in self.by_domain
        ]
        content["remarks"] = list(self._remarks())
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """For a terminal: the thresholds, what they do here, and what they promise."""
        lower = self.direction == "lower is better"
        gate = f"--pass {_shown(self.pass_at)}" + (
            "" if self.fail_below is None else f" --fail {_shown(self.fail_below)}"
        )
        lines = [
            ("passes", f"{'at or below' if lower else 'at or above'} {_shown(self.pass_at)}"),
            *(
                []
                if self.fail_below is None
                else [("fails", f"{'above' if lower else 'below'} {_shown(self.fail_below)}")]
            ),
            ("bad", f"{self.bad}: {self.missed.of} of {self.reviewed.of} images, {self.scenes} scenes in all"),
            ("workload", f"{self.reviewed}: not passed, to be looked at"),
            ("missed", f"{self.missed}: bad, and passed"),
            ("sensitivity", f"{1 - self.missed.value:.1%}: of the bad, not passed"),
            ("specificity", f"{self.passed_good}: of the good, passed"),
            *([] if self.failed_good is None else [("false fails", f"{self.failed_good}: good, and failed")]),
            (
                "ROC AUC",
                f"{self.auc:.3f}"
                + ("" if self.auc_interval is None else " [{:.3f}, {:.3f}]".format(*self.auc_interval)),
            ),
        ]
        if len(self.by_domain) > 1:
            for domain, missed, reviewed in self.by_domain:
                bad = "no bad image" if missed is None else f"missed {missed.value:.1%} of {missed.of} bad"
                lines.append((domain, f"{bad}, workload {reviewed.value:.1%} of {reviewed.of}"))
        width = max(len(name) for name, _ in lines)
        table = [f"{name.ljust(width)}  {text}" for name, text in lines]
        model = "" if self.scorer is None else f" --model {self.scorer}"
        return "\n".join([*table, "", f"saqm gate PATHS{model} {gate}", "", *self._remarks()]) + "\n"

    def _remarks(self) -> Iterator[str]:
        scenes = self.unit == "scene"
        yield (
            f"Promise: in the mean no more than {self.miss_at_most:.3g} of the bad images "
            f"{'of a new scene ' if scenes else ''}like these pass (conformal risk control over {self.units} "
            f"{'scenes with bad images' if scenes else 'bad images, each taken for one of a scene of its own'})."
        )
        bounded = f"bad images pass in no more than {self.missed_upper:.1%} of such scenes"
        if not scenes:
            bounded = f"no more than {self.missed_upper:.1%} of such images pass"
        text = f"With {LEVEL:.0%} confidence, {bounded}"
        if self.missed_upper > self.miss_at_most:
            wanted = units_for_confidence(self.miss_at_most)
            text += (
                f"; to say {self.miss_at_most:.3g} takes {wanted} {'scenes' if scenes else 'bad images'}, none missed"
            )
        yield f"{text}."
        yield (
            f"Workload and shares hold where the images are like these, {self.missed.of / self.reviewed.of:.0%} of "
            "them bad; with another share the workload is another. What a gate holds back as unlike the images that "
            "the model knows, or because it has no score, comes on top."
        )
        yield (
            f"Intervals: {LEVEL:.0%}, whole scenes resampled, {self.replicates} replicates, seed {self.seed}; none "
            "where a share is 0 or 1, which resampling cannot move."
        )
        yield f"Protocol: {self.protocol}."
        if self.reviewed.count == self.reviewed.of:
            yield "No image here would pass: this scorer does not tell bad from good well enough for such a promise."
        if self.failures:
            yield f"Not scored, so for review, and not counted above: {len(self.failures)}."
        for path, reason in self.failures:
            yield f"{path}: {reason}"


def choose_thresholds(
    evaluation: Evaluation,
    scale: Scale | None,
    *,
    scorer: str | None = None,
    bad_below: float,
    miss_at_most: float,
    seed: int,
    false_fail_at_most: float | None = None,
    unit: Unit = "scene",
    replicates: int = REPLICATES,
) -> Choice:
    """Thresholds from predictions and opinions (`saqm.evaluate.evaluate`): out-of-fold ones where it was trained on.

    bad_below: an opinion worse than this is bad, on the manifest's own scale; where lower opinions are the better ones,
    above it. miss_at_most: share of the bad that may pass. false_fail_at_most: share of the good that may fail; chooses
    fail_below in the same way, never above pass_at; None: no such threshold. scorer: its name, for the words.
    Raises ManifestError for a manifest without scale, and UndefinedScore for a share that is none, where there is no
    good or no bad image, and where they are too few for the promise: it says how many are wanted.
    """
    for name, share in (("miss_at_most", miss_at_most), ("false_fail_at_most", false_fail_at_most)):
        if share is not None and not 0 < share < 1:
            raise UndefinedScore(f"{name} {share:g} is no share between 0 and 1")
    if scale is None:
        normalised(0, None)  # says how to give one
        raise ManifestError("scores without a scale")
    rows, lower = evaluation.rows, False
    if evaluation.orientation is None:
        values = np.array([100 * normalised(value, scale) for value in evaluation.predictions])
    else:  # a metric keeps its own scale
        values, lower = np.array(evaluation.predictions), evaluation.orientation.direction == "lower is better"
    opinions = np.array([row.score for row in rows], np.float64)
    bad = opinions < bad_below if scale.higher_is_better else opinions > bad_below
    side = "below" if scale.higher_is_better else "above"
    words = f"opinion {side} {bad_below:g} (scale {scale.low:g} to {scale.high:g})"
    if bad.all() or not bad.any():
        raise UndefinedScore(
            f"{words}: {'all' if bad.all() else 'none'} of {len(bad)} images; a threshold needs bad and good ones. "
            f"The opinions reach from {opinions.min():g} to {opinions.max():g}"
        )
    scenes = [row.scene for row in rows]
    labels = scenes if unit == "scene" else list(range(len(rows)))
    sign = -1.0 if lower else 1.0
    quality = sign * values  # higher is better from here on
    units_with = "scenes with {} images" if unit == "scene" else "{} images"
    not_to_pass = _first_beyond(quality, _shares(labels, bad), miss_at_most, units_with.format("bad"))
    pass_at = shortest_between(not_to_pass, quality[quality > not_to_pass].min(initial=math.inf))
    fail_below = None
    if false_fail_at_most is not None:
        not_to_fail = -_first_beyond(-quality, _shares(labels, ~bad), false_fail_at_most, units_with.format("good"))
        below = quality[quality < not_to_fail].max(initial=-math.inf)
        fail_below = min(shortest_between(below, not_to_fail), pass_at)

    passes = quality >= pass_at
    weights_RN = cluster_weights(scenes, replicates=replicates, seed=seed)
    missing = {label for label, is_bad, does_pass in zip(labels, bad, passes, strict=True) if is_bad and does_pass}
    units = len({label for label, is_bad in zip(labels, bad, strict=True) if is_bad})
    domains = [row.domain for row in rows]
    return Choice(
        scorer=scorer,
        direction="lower is better" if lower else "higher is better",
        bad=words,
        miss_at_most=miss_at_most,
        unit=unit,
        units=units,
        scenes=len(set(scenes)),
        pass_at=_signed(sign, pass_at),
        fail_below=None if fail_below is None else _signed(sign, fail_below),
        missed=_share(passes, bad, weights_RN),
        missed_upper=clopper_pearson_upper(len(missing), units),
        reviewed=_share(~passes, np.ones_like(bad), weights_RN),
        passed_good=_share(passes, ~bad, weights_RN),
        failed_good=None if fail_below is None else _share(quality < fail_below, ~bad, weights_RN),
        auc=float(auc_replicates(quality, ~bad, np.ones((1, len(bad)), np.int64))[0]),
        auc_interval=interval(auc_replicates(quality, ~bad, weights_RN)),
        by_domain=tuple(
            _of_domain(name, np.array([d == name for d in domains]), passes, bad) for name in Counter(domains)
        ),
        protocol=evaluation.protocol,
        seed=seed,
        replicates=replicates,
        failures=evaluation.failures,
    )


def units_for_promise(at_most: float) -> int:
    """How many units with bad images a promise in the mean takes at least: (0 + 1) / (n + 1) <= at_most."""
    return math.ceil(1 / at_most - 1 - _EXACT)


def units_for_confidence(at_most: float) -> int:
    """How many units, with none missed, bring the exact 95 % bound 1 - 0.05 ** (1 / n) down to the share."""
    return math.ceil(math.log(1 - LEVEL) / math.log(1 - at_most) - _EXACT)


def clopper_pearson_upper(count: int, of: int) -> float:
    """The exact one-sided 95 % upper bound of a share (Clopper & Pearson 1934, Biometrika 26). 1 where all are hit."""
    from scipy.special import betaincinv

    return 1.0 if count == of else float(betaincinv(count + 1, of - count, LEVEL))


def auc_replicates(quality: Floats, good: Bools, weights_RN: NDArray[np.int64]) -> Floats:
    """ROC AUC of each replicate, (R,): the chance that a good image has more quality than a bad one, ties half.

    Weight 2 is the image standing there twice. NaN where a replicate has no good or no bad image.
    """
    order = np.argsort(quality, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(quality[order]) > 0))
    good_RT, bad_RT = (np.add.reduceat(weights_RN[:, order] * kind[order], first, axis=1) for kind in (good, ~good))
    better = np.sum(good_RT * (bad_RT.cumsum(1) - bad_RT / 2), axis=1)
    pairs = good_RT.sum(1) * bad_RT.sum(1)
    return np.asarray(np.divide(better, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def shortest_between(low: float, high: float) -> float:
    """The number of fewest decimals above `low` and not above `high`: what is printed is what is used."""
    if math.isinf(high):
        return float(math.floor(low) + 1)
    written = Decimal(repr(float(high)))
    for decimals in range(_DECIMALS):
        rounded = float(written.quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR))
        if rounded > low:
            return rounded
    return float(high)


def _shares(labels: Sequence[Hashable], of: Bools) -> Floats:
    """What each image counts: those of a unit 1 together, where they are among `of`; the others 0. (N,)"""
    counts = Counter(label for label, counted in zip(labels, of, strict=True) if counted)
    return np.array([1 / counts[label] if counted else 0.0 for label, counted in zip(labels, of, strict=True)])


def _first_beyond(values: Floats, shares: Floats, at_most: float, units: str) -> float:
    """The highest value that must stay below the threshold: with it, more than is allowed would reach over."""
    n = round(float(shares.sum()))
    allowed = at_most * (n + 1) - 1
    if allowed < -_EXACT:
        wanted = units_for_promise(at_most)
        raise UndefinedScore(
            f"{n} {units} are too few to promise {at_most:g}: that takes {wanted}, {wanted - n} more (and "
            f"{units_for_confidence(at_most)} to promise it with {LEVEL:.0%} confidence). Collect more, or allow "
            f"{math.ceil(1000 / (n + 1)) / 1000:g}, which is the least that {n} can promise"
        )
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) < 0, True))  # of each run of equal values
    reached = shares[order].cumsum()[last]  # by this value and all above it
    return float(values[order][last][reached > allowed + _EXACT][0])


def _share(hit: Bools, of: Bools, weights_RN: NDArray[np.int64]) -> Share:
    count, whole = int((hit & of).sum()), int(of.sum())
    bounds = None
    if 0 < count < whole:
        hits, all_ = weights_RN @ (hit & of), weights_RN @ of
        bounds = interval(np.divide(hits, all_, out=np.full(len(all_), np.nan), where=all_ > 0))
    return Share(count, whole, bounds)


def _of_domain(name: str, here: Bools, passes: Bools, bad: Bools) -> tuple[str, Share | None, Share]:
    """What becomes of one domain's images; without intervals."""
    missed = Share(int((here & bad & passes).sum()), int((here & bad).sum()), None) if (here & bad).any() else None
    return name, missed, Share(int((here & ~passes).sum()), int(here.sum()), None)


def _signed(sign: float, value: float) -> float:
    return sign * value + 0.0  # no -0


def _shown(value: float) -> str:
    """Every digit, so that the threshold read is the threshold meant."""
    return repr(value).removesuffix(".0")
