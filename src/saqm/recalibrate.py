"""A model brought to somebody's own readers: its scores, intervals and gate, from a few dozen images they scored.

The weights stay as they are. What changes is the map from raw output to score, the interval around it, and, where
one's own images are unlike those the model knows and there are enough of them, which images it knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqm.agreement import LEAST_RELIABLE, intraclass
from saqm.calibration import (
    LEAST_IMAGES,
    UNLIKE,
    Observation,
    View,
    cross_fitted,
    distance,
    familiarity,
    fit_interval,
    fit_score_map,
    held,
    reliability,
)
from saqm.errors import NotScorable, SaqmError, UndefinedScore
from saqm.evaluate import evaluate_predictions, predict_rows
from saqm.image import read_image, sha256_of
from saqm.manifest import Manifest, Row, Scale, normalised
from saqm.modelfile import (
    Calibration,
    Familiar,
    Gate,
    Group,
    ModelHeader,
    ScoreMap,
    read_model,
    unpack,
    write_onnx,
    write_safetensors,
)
from saqm.scorer import ModelScorer, in_points
from saqm.statistics import defined, rmse, srocc
from saqm.threshold import choose_thresholds

STEADY_SCENES = 8  # below so many the measured coverage says little
MISSED = 0.1  # share of the bad that the gate lets pass, where nothing else is asked for
KNOWN_FROM = 60  # own images from which they are made known: p goes down to 2 / 61 then
FAMILIAR_ENOUGH = 0.1  # share of own images flagged up to which nothing needs to be made known


@dataclass(frozen=True)
class Recalibrated:
    """A model's header with the new calibration, and what was found; every number is of scenes that were kept out.

    covered: share of opinions inside their 90 % interval, by domain and over "all". width: its mean width, points.
    before, after: RMSE in points with the map that there was and with the new one.
    """

    header: ModelHeader
    images: int
    scenes: int
    srocc: float | None
    before: float
    after: float
    covered: dict[str, float]
    width: float
    reliability: tuple[dict[str, float], ...]
    flagged: float | None
    failures: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the calibration among it."""
        found = {name: getattr(self, name) for name in ("images", "scenes", "srocc", "covered", "width", "flagged")}
        known = self.header.calibration
        fitted = {} if known is None else known.model_dump(mode="json", include={"score", "interval", "gate"})
        return {
            **found, "rmse_before": self.before, "rmse_after": self.after, "reliability": list(self.reliability),
            "failures": [list(one) for one in self.failures], "remarks": list(self.remarks), **fitted,
        }  # fmt: skip

    def to_text(self) -> str:
        """For a terminal."""
        order = "-" if self.srocc is None else f"{self.srocc:.2f}"
        lines = [f"{self.images} images of {self.scenes} scenes; SROCC {order}"]
        lines.append(f"RMSE {self.before:.1f} points before, {self.after:.1f} after, on scenes kept out")
        covered = ", ".join(f"{name} {share:.0%}" for name, share in self.covered.items())
        lines.append(f"90 % intervals hold {covered} of the opinions on scenes kept out; {self.width:.0f} points wide")
        known = self.header.calibration
        if known is not None and known.gate is not None:
            lines.append(f"gate: pass at {known.gate.pass_at:g}; {known.gate.promise}")
        if self.flagged is not None:
            lines.append(f"{self.flagged:.0%} of the images are unlike those the model knew")
        lines += ["score  opinion  sd  images"]
        lines += [f"{b['score']:5.0f}  {b['opinion']:7.0f}  {b['sd']:2.0f}  {b['n']:6.0f}" for b in self.reliability]
        lines += [f"not used: {path}: {reason}" for path, reason in self.failures]
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def recalibrate(
    scorer: ModelScorer,
    manifest: Manifest,
    *,
    bad_below: float | None = None,
    miss_at_most: float = MISSED,
    on_image: Callable[[int, int], None] | None = None,
) -> Recalibrated:
    """Fit a model's calibration to the opinions of a manifest; its weights stay as they are.

    bad_below: an opinion worse than this, on the manifest's scale, is bad: then the gate's cut-off is chosen as well,
    so that no more than a share `miss_at_most` of the bad passes (`saqm.threshold`); else the gate that there was goes,
    for it was of other scores. Images that the model was trained on are no use here and are left out, with the reason.
    Raises SaqmError for fewer than LEAST_IMAGES usable images, one scene alone, or opinions that are all equal;
    ManifestError without a scale; as `choose_thresholds` where a promise takes more bad images than there are.
    """
    rows = [row for row in manifest.rows if row.score is not None and row.judged]
    seen, failures = _observed(scorer, rows, on_image)
    used = [row for row in rows if row.path in seen]
    if len(used) < LEAST_IMAGES:
        first = f"; the first left out: {failures[0][1]}" if failures else ""
        raise SaqmError(
            f"{len(used)} usable scored images ({len(failures)} left out); a calibration needs at least "
            f"{LEAST_IMAGES}, better 50, from several scenes{first}"
        )
    header, before = scorer.header, scorer.percent
    opinions = np.array([100 * normalised(row.score or 0.0, manifest.scale) for row in used])
    raw = np.array([seen[row.path].raw for row in used])
    spread = np.array([in_points(seen[row.path].spread, header.score_scale) for row in used])
    scenes = [row.scene for row in used]
    start = _start(scorer)
    curve = fit_score_map(raw, opinions, start)
    scores = np.clip(cross_fitted(raw, opinions, scenes, start), 0, 100)
    inside, width = held(raw, opinions, spread, scenes, start)
    domains = np.array([row.domain for row in used])
    covered = {name: float(inside[domains == name].mean()) for name in sorted(set(domains.tolist()))}
    conformal = fit_interval(opinions - scores, spread, scenes).model_copy(update={"found": covered})
    remarks = [*_agreement(used), *_remarks(used, failures)]
    familiar, flagged = _made_known(header, used, seen, remarks)
    calibration = Calibration(
        score=curve,
        interval=conformal,
        familiar=familiar,
        gate=None if bad_below is None else _gate(used, scores, manifest.scale, bad_below, miss_at_most),
        fitted_on={Path(manifest.path).name if manifest.path else "manifest": manifest.sha256},
    )
    old = np.clip(before(raw), 0, 100)
    if rmse(scores, opinions) >= rmse(old, opinions):
        remarks.append("on scenes kept out the new map is no better than the old one: what is new is the interval")
    return Recalibrated(
        header=header.model_copy(update={
            "calibration": calibration,
            "card": f"{header.card} Calibrated anew on {len(used)} images of {len(set(scenes))} scenes of one's own.",
        }),
        images=len(used), scenes=len(set(scenes)), srocc=defined(srocc, raw, opinions),
        before=rmse(old, opinions), after=rmse(scores, opinions),
        covered={"all": float(inside.mean()), **(covered if len(covered) > 1 else {})}, width=float(width.mean()),
        reliability=tuple(reliability(scores, opinions, bins=min(5, len(used) // 10))),
        flagged=flagged, failures=failures, remarks=tuple(remarks),
    )  # fmt: skip


def save_recalibrated(found: Recalibrated, model: Path, out: Path) -> ModelHeader:
    """Write the model under its new header; OUT's suffix is the model's. Returns the header as written."""
    if out.suffix != model.suffix:
        raise SaqmError(f"{out}: the model is a {model.suffix} file, and its calibrated copy is one, too")
    header = found.header.model_copy(update={"name": out.stem})
    read = read_model(model)
    if model.suffix == ".onnx":
        return write_onnx(read.data, header, out)
    return write_safetensors(unpack(read), header, out)


def _observed(
    scorer: ModelScorer, rows: list[Row], on_image: Callable[[int, int], None] | None
) -> tuple[dict[Path, Observation], tuple[tuple[str, str], ...]]:
    seen: dict[Path, Observation] = {}

    def look(row: Row) -> float | None:
        if on_image is not None:
            on_image(len(seen), len(rows))
        if sha256_of(row.path) in scorer.trained_on:
            raise NotScorable("the model was trained on this image: its score there says nothing about others")
        seen[row.path] = scorer.observe(read_image(row.path))
        return None

    _, failures = predict_rows(rows, look)
    return seen, failures


def _gate(used: list[Row], scores: NDArray[np.float64], scale: Scale | None, bad_below: float, missed: float) -> Gate:
    """The cut-off, from scores that were calibrated without the image's scene."""
    if scale is None:
        normalised(0, None)  # says how to give one
        raise AssertionError
    shares = scores / 100 if scale.higher_is_better else 1 - scores / 100
    values = (scale.low + (scale.high - scale.low) * shares).tolist()
    evaluation = evaluate_predictions(used, values, seed=0, replicates=200)
    choice = choose_thresholds(evaluation, scale, bad_below=bad_below, miss_at_most=missed, seed=0, replicates=200)
    promise = f"{choice.bad}: at most {missed:.0%} of them pass; {choice.reviewed.value:.0%} of all images do not"
    return Gate(pass_at=choice.pass_at, fail_below=choice.fail_below, promise=promise)


def _start(scorer: ModelScorer) -> ScoreMap:
    """The map that there was; the straight one where there was none."""
    known, scale = scorer.header.calibration, scorer.header.score_scale
    if known is not None:
        return known.score
    return ScoreMap(raw=(scale.low, scale.high), score=(0.0, 100.0) if scale.higher_is_better else (100.0, 0.0))


def _agreement(used: list[Row]) -> list[str]:
    """What the readers' agreement says of their mean, where their single scores are there. Raises SaqmError for none.

    Of the images that all readers scored; ICC(2, k) is that of the mean.
    """
    scores = [row.rater_scores for row in used if row.rater_scores and None not in row.rater_scores]
    if len(scores) < LEAST_IMAGES or len(scores[0]) < 2:
        return []
    try:
        of_mean = intraclass(np.array(scores, np.float64))[1]
    except UndefinedScore:
        return []
    low, high = of_mean.interval or (0.0, 1.0)
    if of_mean.value is None or high < LEAST_RELIABLE:
        found = "below 0" if of_mean.value is None else f"{of_mean.value:.2f}"
        raise SaqmError(
            f"the {len(scores[0])} readers disagree so much that their mean cannot be fitted: {of_mean.name} {found} "
            f"[{low:.2f}, {high:.2f}] on {len(scores)} images; see `saqm agreement`, and agree on what is asked first"
        )
    if low < LEAST_RELIABLE:
        return [f"the readers hardly agree: {of_mean.name} {of_mean.value:.2f} [{low:.2f}, {high:.2f}]"]
    return []


def _remarks(used: list[Row], failures: tuple[tuple[str, str], ...]) -> list[str]:
    remarks = []
    scenes = Counter(row.scene for row in used)
    if len(scenes) < STEADY_SCENES:
        remarks.append(f"{len(scenes)} scenes are few: the coverage measured on them may be far off")
    if len(used) < 2 * LEAST_IMAGES:
        remarks.append(f"{len(used)} images are few: the interval is nearly the largest error among them")
    if failures:
        remarks.append(f"{len(failures)} images were left out, each with its reason")
    return remarks


def _made_known(
    header: ModelHeader, used: list[Row], seen: dict[Path, Observation], remarks: list[str]
) -> tuple[dict[View, Familiar], float | None]:
    """What the model knows, one's own images too where that is needed and can be had; and the share flagged before.

    A domain of one's own gets a mean, and distances to means that had not met the scene. The covariance stays.
    """
    old = dict(header.calibration.familiar) if header.calibration is not None else {}
    if not old:
        return old, None
    flagged = float(np.mean([familiarity(old, seen[row.path].views).flag for row in used]))
    if flagged <= FAMILIAR_ENOUGH:
        return old, flagged
    for domain in sorted({row.domain for row in used}):
        own = [row for row in used if row.domain == domain]
        if len(own) < KNOWN_FROM or len({row.scene for row in own}) < 2:
            remarks.append(
                f"{len(own)} images of {domain} are too few to be made known (wanted {KNOWN_FROM}, several scenes): "
                f"{flagged:.0%} stay flagged, and their intervals without a promise"
            )
            continue
        for view, known in old.items():
            numbers = np.array([seen[row.path].views[view] for row in own])
            scenes = np.array([row.scene for row in own])
            away = []
            for numbers_D, scene in zip(numbers, scenes, strict=True):
                without = Group(mean=tuple(numbers[scenes != scene].mean(0)), kept_out=(1.0,))
                away.append(distance(known.model_copy(update={"groups": {"own": without}}), numbers_D)["own"])
            group = Group(mean=tuple(map(float, numbers.mean(0))), kept_out=tuple(sorted(away)))
            old[view] = known.model_copy(update={"groups": {**known.groups, f"own {domain}": group}})
        remarks.append(f"images like those of {domain} are known now (p < {UNLIKE} flags 1 of 20 of them)")
    return old, flagged
