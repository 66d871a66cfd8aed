"""Manifests into a taught network: whose scores are read, ladders, training, prediction, towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.errors import TrainingError
from saqm.frozen import DENSE_STRIDE, LADDER_STRIDE, Features, Picture
from saqm.image import Image, from_array, read_image
from saqm.loop import Log, fit
from saqm.manifest import Manifest, Row, normalised
from saqm.network import SAQM
from saqm.opinions import Ladder, OpinionTask, Sample, Unscored
from saqm.patches import CHUNK, Preparation, cut, luminance, pool
from saqm.pretrain import Version
from saqm.recipes import Recipe, Side

Look = Callable[[Path], Picture]  # an image file as the task wants it

# Rungs that must be in order, each below the picture itself. Readers forgave slight smoothing: only heavy counts.
ORDERED_RUNGS: Mapping[str, tuple[float, ...]] = {
    "noise": LADDERS["noise"],
    "blur": LADDERS["blur"][1:],
    "compression": LADDERS["compression"][1:],
    "shrink": LADDERS["shrink"][1:],
}
LADDER_IMAGES = 24  # of a target without references, whose copies an alignment by rank puts in order


class Material(NamedTuple):
    """What a network is taught with."""

    samples: list[Sample]
    ladders: list[Ladder]
    unscored: list[Unscored]

    @property
    def shown(self) -> list[Sample | Unscored]:
        """All images, scored ones first."""
        return [*self.samples, *self.unscored]


class Cache:
    """Features of image files and of their ladders through frozen towers: made once, for many runs on these towers.

    Called with a path it gives what heads are taught with. A file's ladder keeps the noise of the first that asked.
    """

    def __init__(self, network: SAQM, recipe: Recipe) -> None:
        self._features = Features(network, recipe)
        self._stride = recipe.preparation.stride
        self._known: dict[tuple[Path, object], Tensor] = {}

    def __call__(self, path: Path) -> Tensor:
        return self._at(path, DENSE_STRIDE, read_image)

    def for_scoring(self, path: Path) -> Tensor:
        """What `predict` takes."""
        return self._at(path, self._stride, read_image)

    def rungs(self, path: Path, kind: str, make: Callable[[], Sequence[Image]]) -> list[Tensor]:
        first = self._at(path, LADDER_STRIDE, read_image)
        if (path, (kind, 0)) not in self._known:
            for place, image in enumerate(make()):
                self._known[path, (kind, place)] = self._features(image, LADDER_STRIDE)
        return [first, *(self._known[path, (kind, place)] for place in range(len(ORDERED_RUNGS[kind])))]

    def _at(self, path: Path, stride: int, read: Callable[[Path], Image]) -> Tensor:
        if (path, stride) not in self._known:
            self._known[path, stride] = self._features(read(path), stride)
        return self._known[path, stride]


def train(
    network: SAQM,
    samples: Sequence[Sample],
    ladders: Sequence[Ladder],
    recipe: Recipe,
    *,
    seed: int,
    unscored: Sequence[Unscored] = (),
    taught: bool = False,
    folder: Path | None = None,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> Log:
    """Teach a network, in place, the opinion scores of images; the log, one entry a step. The last epoch is kept.

    `taught`: its heads score already, and go on. Raises TrainingError without samples, where the recipe wants images
    of a side that has none, or as `saqm.loop.fit`; NotScorable for an image with nothing to judge.
    """
    if len(samples) < 2:
        raise TrainingError(f"{len(samples)} scored images; training needs at least 2")
    if recipe.teaching.images_per_step < 2:
        raise TrainingError(f"images_per_step = {recipe.teaching.images_per_step}: one image alone has no order")
    task = OpinionTask(network, samples, ladders, recipe, unscored, seed=seed, taught=taught)
    also = {"alignment": asdict(recipe.alignment)} if recipe.aligned else None
    log = fit(task, recipe.teaching.loop, seed=seed, folder=folder, on_step=on_step, also=also)
    task.fold_in()
    network.eval()
    return log


def predict(network: SAQM, image: Picture, preparation: Preparation) -> float:
    """The score of an image or of its features, 0 to 1, higher is better, pooled as engines do. Raises NotScorable."""
    network.eval()
    scores, weights = [], []
    with torch.inference_mode():
        if isinstance(image, Tensor):
            outputs = [network.judge(image)]
        else:
            outputs = [network(torch.from_numpy(batch)) for batch in cut(image, preparation).batches(CHUNK)]
        for output in outputs:
            scores.append(output.score.numpy())
            weights.append(output.weight.numpy())
    return pool(np.concatenate(scores), np.concatenate(weights))


# Reading


def readable(sides: Mapping[Side, Manifest], recipe: Recipe, *, seed: int) -> dict[Side, Manifest]:
    """The rows that a recipe may meet, with the opinions that it may read: all others are gone from what it gets.

    This is the one place where that is decided. Where only a share of the target's scores is read (`labelled`), the
    images are the first of one random order, so that a larger share holds a smaller one.
    """
    found: dict[Side, Manifest] = {}
    for side in recipe.meets:
        if side not in sides:
            continue
        rows = sides[side].rows
        scored = [i for i, row in enumerate(rows) if row.score is not None] if side in recipe.scored_on else []
        if side == "target" and recipe.labelled < 1:
            order = np.random.default_rng([seed, len(scored)]).permutation(len(scored))
            scored = [scored[i] for i in order[: round(recipe.labelled * len(scored))]]
        kept = set(scored)
        found[side] = replace(sides[side], rows=tuple(row if i in kept else blinded(row) for i, row in enumerate(rows)))
    return found


def blinded(row: Row) -> Row:
    """A row without anything that people said of it."""
    return replace(row, score=None, score_sd=None, raters=None, rater_scores=None, aspects={}, weight=None)


def read_material(sides: Mapping[Side, Manifest], recipe: Recipe, *, seed: int, look: Look | None = None) -> Material:
    """Everything that a recipe is taught with, read from manifests of training images.

    `look` turns a file into what the task meets: a `Cache` where many runs share towers. Raises TrainingError for a
    side without rows or without the scores that the recipe reads, ImageError for a file that cannot be read.
    """
    look = read_image if look is None else look
    met = readable(sides, recipe, seed=seed)
    for side in recipe.meets:
        if side not in met or not met[side].rows:
            raise TrainingError(f"recipe {recipe.name!r} needs images of the {side}, and there is none")
    samples: list[Sample] = []
    unscored: list[Unscored] = []
    ladders: list[Ladder] = []
    for side, manifest in met.items():
        found = read_samples(manifest, manifest.rows, side=side, look=look)
        _check_scores([sample.score for sample in found], side, recipe)
        samples += found
        if recipe.aligned or recipe.teaching.standardise == "by-domain":
            unscored += [Unscored(look(row.path), side, row.scene) for row in manifest.rows if row.score is None]
        of_rank = recipe.aligned and recipe.alignment.kind == "rank" and side == "target"
        if recipe.teaching.ladders or of_rank:
            firsts = [row for row in manifest.rows if row.reference]
            if of_rank and not firsts:
                order = np.random.default_rng(seed).permutation(len(manifest.rows))[:LADDER_IMAGES]
                firsts = [manifest.rows[i] for i in sorted(order)]
            ladders += make_ladders(firsts, seed=seed, of="all", side=side, look=look, first=len(ladders))
    return Material(samples, ladders, unscored)


def _check_scores(scores: Sequence[float], side: Side, recipe: Recipe) -> None:
    """Refuse what cannot teach an order. Raises TrainingError."""
    if side not in recipe.scored_on:
        return
    if not scores and not (side == "target" and recipe.labelled < 1):
        raise TrainingError(
            f"recipe {recipe.name!r} learns from the {side}'s scores, and none of its images has one; fill in the "
            "manifest's score column, or choose a recipe that reads the other side"
        )
    if len(scores) > 1 and len(set(scores)) == 1:
        raise TrainingError(f"all {len(scores)} scores of the {side} are equal: nothing tells better from worse")


def read_samples(
    manifest: Manifest, rows: Sequence[Row], *, side: Side = "target", look: Look = read_image
) -> list[Sample]:
    """The scored rows of a manifest with their pictures. Raises ImageError for the first file that cannot be read."""
    return [
        Sample(
            look(row.path),
            normalised(row.score, manifest.scale),
            row.domain,
            1.0 if row.weight is None else row.weight,
            side,
            row.scene,
        )
        for row in rows
        if row.score is not None
    ]


def read_versions(rows: Sequence[Row]) -> list[Version]:
    """Rows as pictures to pre-train on; their opinion scores are not read. A method is one maker in every domain."""
    return [Version(read_image(row.path), row.scene, row.method, row.reference) for row in rows]


def make_ladders(
    rows: Iterable[Row],
    *,
    seed: int,
    of: Literal["references", "all"] = "references",
    side: Side = "target",
    look: Look = read_image,
    first: int = 0,
) -> list[Ladder]:
    """One ladder of each kind from every reference image among the rows, or from all of them.

    `first`: how many ladders of the same seed there are already, so that no two share their noise.
    """
    ladders = []
    chosen = [row for row in rows if row.reference or of == "all"]
    for number, row in enumerate(chosen, first // len(ORDERED_RUNGS)):
        image = read_image(row.path)
        for place, (kind, strengths) in enumerate(ORDERED_RUNGS.items()):
            worse = partial(degraded, image, kind, strengths, seed=(seed, number, place))
            rungs = look.rungs(row.path, kind, worse) if isinstance(look, Cache) else [image, *worse()]
            ladders.append(Ladder(tuple(rungs), side))
    return ladders


def degraded(image: Image, kind: str, strengths: Sequence[float], *, seed: tuple[int, ...]) -> list[Image]:
    """Worse copies of an image, by one kind of degradation at rising strengths; its mask stays."""
    grey, rng = luminance(image), np.random.default_rng(seed)
    worse = [DEGRADATIONS[kind](grey, strength, rng) for strength in strengths]
    return [from_array(rung, value_range=(0, 255), mask=image.mask) for rung in worse]


# Towers


def adopt_towers(network: SAQM, towers: SAQM) -> None:
    """Copy all but the heads from pre-trained towers. Raises TrainingError when they are of another architecture."""
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith("heads.")}
    given = {name: value for name, value in towers.state_dict().items() if not name.startswith("heads.")}
    shapes = {name: value.shape for name, value in wanted.items()}
    if shapes != {name: value.shape for name, value in given.items()}:
        raise TrainingError(
            f"towers of {asdict(towers.architecture)} do not fit a network of {asdict(network.architecture)}"
        )
    network.load_state_dict(given, strict=False)
