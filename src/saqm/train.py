"""Opinion scores into a network: the task that the loop teaches.

Legend as in `saqm.network`; I images of a step, W windows of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.errors import TrainingError
from saqm.image import Image, from_array, read_image
from saqm.loop import Log, Step, bf16_survives, fit
from saqm.manifest import Manifest, Row, normalised
from saqm.network import SAQM, Output
from saqm.patches import CHUNK, Preparation, Windows, cut, luminance, pool
from saqm.pretrain import Version
from saqm.recipes import Recipe

DENSE_STRIDE = 24  # pixels between the windows that heads on frozen towers are taught with
LADDER_STRIDE = 48  # the same for degraded copies, of which there are many
LEAST_APART = 0.04  # scores (0..1) closer than this are not asked to be in order: a reader's step is 0.08 to 0.25
TEMPERATURE = 0.05  # score difference (0..1) at which an ordered pair is nearly settled
# Rungs that must be in order, each below the picture itself. Readers forgave slight smoothing: only heavy counts.
ORDERED_RUNGS: Mapping[str, tuple[float, ...]] = {
    "noise": LADDERS["noise"],
    "blur": LADDERS["blur"][1:],
    "compression": LADDERS["compression"][1:],
    "shrink": LADDERS["shrink"][1:],
}
LADDERS_PER_STEP = 4


@dataclass(frozen=True, eq=False)
class Sample:
    """One scored image as the task sees it. `score` is 0..1, 1 best; `weight` its share in the loss."""

    image: Image
    score: float
    domain: str
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Ladder:
    """Versions of one picture, best first."""

    rungs: tuple[Image, ...]


class OpinionTask:
    """Scored images, and ladders where the recipe has them, as a task for `saqm.loop.fit`."""

    def __init__(self, network: SAQM, samples: Sequence[Sample], ladders: Sequence[Ladder], recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        teaching = recipe.teaching
        self._samples = list(samples)
        self._frozen = teaching.trains == "heads"
        source = _Features(network, recipe) if self._frozen else _Windows(recipe.preparation)
        self._inputs: list[Tensor | Windows] = [source(sample.image, DENSE_STRIDE) for sample in self._samples]
        self._ladders: list[list[Tensor | Windows]] = [
            [source(rung, LADDER_STRIDE) for rung in ladder.rungs] for ladder in ladders if teaching.ladders
        ]
        self._per_epoch = -(-len(self._samples) // teaching.images_per_step)
        self._domains = np.array([sample.domain for sample in self._samples])
        self._module = network.heads if self._frozen else network
        if self._frozen:
            network.eval()  # batch statistics of the towers stay as they were taught
            self._standardise()

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def steps(self) -> int:
        return self.recipe.teaching.epochs * self._per_epoch

    def parameters(self) -> list[nn.Parameter]:
        return list(self._module.parameters())

    def loss(self, step: int, rng: np.random.Generator) -> Step:
        teaching = self.recipe.teaching
        index = self._chosen(step, rng)
        inputs = [self._draw(self._inputs[i], rng) for i in index]
        ladders = [self._ladders[i] for i in rng.permutation(len(self._ladders))[:LADDERS_PER_STEP]]
        rungs: list[list[Tensor]] = []
        for ladder in ladders:  # the same places on every rung, so that only the degradation differs
            places = rng.integers(min(map(len, ladder)), size=teaching.windows_per_image)
            rungs.append([_take(rung, places) for rung in ladder])
        output = self._run(torch.cat([*inputs, *(rung for ladder in rungs for rung in ladder)]))
        images = len(index)
        logit_IWM, share_IW = _by_image(output, images + sum(map(len, rungs)))
        score_IM = (share_IW[..., None] * logit_IWM.sigmoid()).sum(1)
        device = score_IM.device
        truth_I = torch.tensor([self._samples[i].score for i in index], device=device)
        weight_I = torch.tensor([self._samples[i].weight for i in index], device=device)
        if teaching.level == "window":
            per_image = _distance(logit_IWM[:images], truth_I[:, None, None], teaching.loss).mean((1, 2))
        else:
            per_image = _distance(score_IM[:images].logit(1e-6), truth_I[:, None], teaching.loss).mean(1)
        loss = (weight_I * per_image).sum() / weight_I.sum().clamp(min=1e-6)  # all weights may be 0
        logs = {"opinion": float(loss.detach())}
        if teaching.order:
            worse, better = self._ordered_pairs(index, truth_I)
            if len(worse):
                order = F.softplus((score_IM[worse] - score_IM[better]) / TEMPERATURE).mean() * TEMPERATURE * 4
                loss, logs["order"] = loss + teaching.order * order, float(order.detach())
        if rungs:
            order = self._ladder_order(score_IM[images:], [len(ladder) for ladder in rungs])
            loss, logs["ladders"] = loss + teaching.ladders * order, float(order.detach())
        return Step(loss, output.feature[: images * share_IW.shape[1]], logs)

    def _standardise(self) -> None:
        """Bring the frozen features to mean 0 and sd 1; `fold_in` moves that into the heads when they are taught."""
        features = torch.cat([source for source in self._inputs if isinstance(source, Tensor)])
        self._mean, self._sd = features.mean(0), features.std(0) + 1e-3
        for listed in (self._inputs, *self._ladders):
            for place, source in enumerate(listed):
                if isinstance(source, Tensor):
                    listed[place] = (source - self._mean) / self._sd

    def fold_in(self) -> None:
        """Fold the standardisation of frozen features into each head's first layer: the file holds plain layers."""
        if not self._frozen:
            return
        with torch.no_grad():
            for head in self.network.heads:
                first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
                first.weight.div_(self._sd)
                first.bias.sub_(first.weight @ self._mean)

    def _chosen(self, step: int, rng: np.random.Generator) -> NDArray[np.int_]:
        """The images of a step: each once an epoch, in an order that hangs on the epoch alone."""
        size = self.recipe.teaching.images_per_step
        epoch, part = divmod(step, self._per_epoch)
        order = np.random.default_rng([epoch, len(self._samples)]).permutation(len(self._samples))
        chosen = order[part * size : (part + 1) * size]
        if len(chosen) < 2 <= len(order):  # one image alone has no order and no batch statistics
            chosen = np.append(chosen, rng.choice(order[: part * size]))
        return chosen

    def _draw(self, source: Tensor | Windows, rng: np.random.Generator) -> Tensor:
        """Windows or features of one image at random places, mirrored at random where there are pixels."""
        places = rng.integers(len(source), size=self.recipe.teaching.windows_per_image)
        taken = _take(source, places)
        if isinstance(source, Windows):
            for axis in (2, 3):
                if rng.random() < 0.5:
                    taken = taken.flip(axis)
        return taken

    def _run(self, inputs: Tensor) -> Output:
        inputs = inputs.to(next(self._module.parameters()).device)
        if self._frozen:
            return self.network.judge(inputs)
        return self.network(inputs.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def _ordered_pairs(self, index: NDArray[np.int_], truth_I: Tensor) -> tuple[list[int], list[int]]:
        domains = self._domains[index]
        worse, better = [], []
        for a, b in combinations(range(len(index)), 2):
            apart = float(truth_I[a] - truth_I[b])
            if domains[a] == domains[b] and abs(apart) > LEAST_APART:
                worse.append(a if apart < 0 else b)
                better.append(b if apart < 0 else a)
        return worse, better

    @staticmethod
    def _ladder_order(score_RM: Tensor, lengths: Sequence[int]) -> Tensor:
        losses, start = [], 0
        for length in lengths:
            score_LM = score_RM[start : start + length]
            fall_PM = torch.cat([score_LM[:-1] - score_LM[1:], (score_LM[:1] - score_LM[1:])])
            losses.append(F.softplus((TEMPERATURE - fall_PM) / TEMPERATURE).mean() * TEMPERATURE * 4)
            start += length
        return torch.stack(losses).mean()


class _Windows:
    """Judged windows of an image on a dense grid, as pixels."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation

    def __call__(self, image: Image, stride: int) -> Windows:
        return cut(image, self.preparation, stride=stride // 4)


class _Features:
    """Features of an image's judged windows on a dense grid, through frozen towers."""

    def __init__(self, network: SAQM, recipe: Recipe) -> None:
        self.network, self.preparation = network, recipe.preparation
        self.coarse = recipe.teaching.features == "bf16" and bf16_survives()

    def __call__(self, image: Image, stride: int) -> Tensor:
        self.network.eval()
        windows = cut(image, self.preparation, stride=stride)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.coarse):
            made = [self.network.embed(torch.from_numpy(batch)).float() for batch in windows.batches(CHUNK)]
        return torch.cat(made).clone()


def train(
    network: SAQM,
    samples: Sequence[Sample],
    ladders: Sequence[Ladder],
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> Log:
    """Teach a network, in place, the opinion scores of images; the log, one entry a step. The last epoch is kept.

    Raises TrainingError without samples, or as `saqm.loop.fit`; NotScorable for an image with nothing to judge.
    """
    if len(samples) < 2:
        raise TrainingError(f"{len(samples)} scored images; training needs at least 2")
    if recipe.teaching.images_per_step < 2:
        raise TrainingError(f"images_per_step = {recipe.teaching.images_per_step}: one image alone has no order")
    task = OpinionTask(network, samples, ladders, recipe)
    log = fit(task, recipe.teaching.loop, seed=seed, folder=folder, on_step=on_step)
    task.fold_in()
    network.eval()
    return log


def predict(network: SAQM, image: Image, preparation: Preparation) -> float:
    """The score of an image, 0 to 1, higher is better, as the engines pool it. Raises NotScorable."""
    network.eval()
    windows = cut(image, preparation)
    scores, weights = [], []
    with torch.inference_mode():
        for batch in windows.batches(CHUNK):
            output = network(torch.from_numpy(batch))
            scores.append(output.score.numpy())
            weights.append(output.weight.numpy())
    return pool(np.concatenate(scores), np.concatenate(weights))


def read_samples(manifest: Manifest, rows: Sequence[Row]) -> list[Sample]:
    """The scored rows of a manifest with their pictures. Raises ImageError for the first file that cannot be read."""
    return [
        Sample(
            read_image(row.path),
            normalised(row.score, manifest.scale),
            row.domain,
            1.0 if row.weight is None else row.weight,
        )
        for row in rows
        if row.score is not None
    ]


def read_versions(rows: Sequence[Row]) -> list[Version]:
    """Rows as pictures to pre-train on; their opinion scores are not read."""
    return [
        Version(
            read_image(row.path), row.scene, None if row.method is None else f"{row.domain} {row.method}", row.reference
        )
        for row in rows
    ]


def make_ladders(rows: Sequence[Row], *, seed: int) -> list[Ladder]:
    """One ladder of each kind from every reference image among the rows."""
    ladders = []
    for number, row in enumerate(row for row in rows if row.reference):
        image = read_image(row.path)
        grey = luminance(image)
        for place, (kind, strengths) in enumerate(ORDERED_RUNGS.items()):
            rng = np.random.default_rng([seed, number, place])
            worse = [DEGRADATIONS[kind](grey, strength, rng) for strength in strengths]
            rungs = [from_array(rung, value_range=(0, 255), mask=image.mask) for rung in worse]
            ladders.append(Ladder((image, *rungs)))
    return ladders


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


def _take(source: Tensor | Windows, places: NDArray[np.int_]) -> Tensor:
    if isinstance(source, Windows):
        return torch.from_numpy(source.take(places))
    return source[torch.from_numpy(places)]


def _by_image(output: Output, images: int) -> tuple[Tensor, Tensor]:
    """Logits (I, W, M), and each window's share of its image's mean (I, W)."""
    logit_IWM = output.logit.float().reshape(images, -1, output.logit.shape[-1])
    weight_IW = output.weight.float().reshape(images, -1)
    return logit_IWM, weight_IW / weight_IW.sum(1, keepdim=True)


def _distance(logit: Tensor, truth: Tensor, loss: str) -> Tensor:
    """Loss of each logit against a score on 0..1; BCE is less its floor, the soft label's entropy: 0 is perfect."""
    truth = truth.expand_as(logit)
    if loss == "smooth-l1":
        return F.smooth_l1_loss(logit.sigmoid(), truth, beta=0.1, reduction="none")
    entropy = -(torch.xlogy(truth, truth) + torch.xlogy(1 - truth, 1 - truth))
    return F.binary_cross_entropy_with_logits(logit, truth, reduction="none") - entropy
