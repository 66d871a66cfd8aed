"""Opinion scores into a network, and the images of another domain beside them: the task that the loop teaches.

Legend as in `saqm.network`; I images of a step, W windows of an image, D features of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from saqm import watching
from saqm.adaptation import (
    Aligned,
    Aligner,
    LadderOrder,
    build,
    guard,
    health,
    ladder_order,
    order_concordance,
    self_test,
)
from saqm.errors import TrainingError
from saqm.frozen import DENSE_STRIDE, LADDER_STRIDE, Features, Neck, Picture, fold_standardisation, mean_and_sd
from saqm.loop import WARM_UP_STEPS, Group, Step
from saqm.network import SAQM, Output, _pool
from saqm.patches import Preparation, Windows, cut
from saqm.recipes import Recipe, Side
from saqm.together import of_all, own_share

LEAST_APART = 0.04  # scores (0..1) closer than this are not asked to be in order: a reader's step is 0.08 to 0.25
TEMPERATURE = 0.05  # score difference (0..1) at which an ordered pair is nearly settled
LADDERS_PER_STEP = 4
ALIGNED_ROWS = 256  # windows of a domain that an alignment compares in one step: kernels cost their square


@dataclass(frozen=True, eq=False)
class Sample:
    """One scored image as the task sees it. `score` is 0..1, 1 best; `weight` its share in the loss."""

    image: Picture
    score: float
    domain: str
    weight: float = 1.0
    side: Side = "target"
    scene: str | None = None


@dataclass(frozen=True, eq=False)
class Unscored:
    """One image of which no opinion is read: it is there to be aligned with, or to be standardised by."""

    image: Picture
    side: Side
    scene: str | None = None


@dataclass(frozen=True, eq=False)
class Ladder:
    """Versions of one picture, best first."""

    rungs: tuple[Picture, ...]
    side: Side = "target"


class OpinionTask:
    """Scored images, ladders, and unscored images where the recipe has them, as a task for `saqm.loop.fit`.

    Without alignment a step draws scored images alone. With it, one half of its images is of the source and the other
    of the target, scored or not, and an epoch is a pass over the larger side that has scores. `taught`: the heads
    score already, and go on from there.
    """

    def __init__(
        self,
        network: SAQM,
        samples: Sequence[Sample],
        ladders: Sequence[Ladder],
        recipe: Recipe,
        unscored: Sequence[Unscored] = (),
        *,
        seed: int = 0,
        taught: bool = False,
    ) -> None:
        self.network, self.recipe, self.seed = network, recipe, seed
        teaching = recipe.teaching
        self.samples, self._ladder_sides = list(samples), [one.side for one in ladders]
        self.frozen = teaching.trains == "heads"
        source = Features(network, recipe) if self.frozen else _Windows(recipe.preparation)
        self.shown: list[Sample | Unscored] = [*samples, *unscored]
        self.inputs: list[Tensor | Windows] = [source(one.image, DENSE_STRIDE) for one in self.shown]
        wanted = teaching.ladders or (recipe.aligned and recipe.alignment.kind == "rank")
        self.ladders: list[list[Tensor | Windows]] = [
            [source(rung, LADDER_STRIDE) for rung in ladder.rungs] for ladder in ladders if wanted
        ]
        self.sides = np.array([one.side for one in self.shown])
        self._domains = np.array([sample.domain for sample in self.samples])
        self._per_epoch = -(-len(self.samples) // teaching.images_per_step)
        self.neck: Neck | None = None
        self.aligner: nn.Module | None = None
        self._norms: list[float] = []
        trained: nn.Module = network.heads if self.frozen else network
        if self.frozen:
            network.eval()  # batch statistics of the towers stay as they were taught
            self._standardise(taught)
        if recipe.aligned:
            trained = self._prepare_alignment(trained)
        self._module = trained

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def steps(self) -> int:
        return self.recipe.teaching.epochs * self._per_epoch

    def parameters(self) -> list[Group]:
        if self.aligner is None:
            return [Group(list(self._module.parameters()))]
        own = list(self.aligner.parameters())
        known = {id(parameter) for parameter in own}
        others = [parameter for parameter in self._module.parameters() if id(parameter) not in known]
        groups = [Group(others), Group(own, self.recipe.alignment.pace)]
        return [group for group in groups if group.parameters]

    def loss(self, step: int, rng: np.random.Generator) -> Step:
        teaching, count = self.recipe.teaching, len(self.samples)
        index = self._both_sides(step) if self.recipe.aligned else self._chosen(step, rng)
        inputs = [self._draw(self.inputs[i], rng) for i in index]
        taught = [self.ladders[i] for i in rng.permutation(len(self.ladders))[:LADDERS_PER_STEP]]
        taught = taught if teaching.ladders else []
        of_target = self._target_ladders(rng)
        rungs: list[list[Tensor]] = []
        for ladder in (*taught, *of_target):  # the same places on every rung, so that only the degradation differs
            places = rng.integers(min(map(len, ladder)), size=teaching.windows_per_image)
            rungs.append([_take(rung, places) for rung in ladder])
        output, tapped = self._run(torch.cat([*inputs, *(rung for ladder in rungs for rung in ladder)]))
        images = len(index)
        logit_IWM, share_IW = _by_image(output, images + sum(map(len, rungs)))
        score_IM = (share_IW[..., None] * logit_IWM.sigmoid()).sum(1)
        device = score_IM.device
        scored = [place for place, i in enumerate(index) if i < count]
        here = index[scored]
        truth_I = torch.tensor([self.samples[i].score for i in here], device=device)
        weight_I = torch.tensor([self.samples[i].weight for i in here], device=device)
        scored_IM = score_IM[:images] if len(scored) == images else score_IM[scored]
        if teaching.level == "window":
            logits = logit_IWM[:images] if len(scored) == images else logit_IWM[scored]
            per_image = distance(logits, truth_I[:, None, None], teaching.loss).mean((1, 2))
        else:
            per_image = distance(scored_IM.logit(1e-6), truth_I[:, None], teaching.loss).mean(1)
        loss = (weight_I * per_image).sum() / weight_I.sum().clamp(min=1e-6)  # all weights may be 0
        logs = {"opinion": float(loss.detach())}
        if teaching.order:
            worse, better = self._ordered_pairs(here, truth_I)
            if len(worse):
                order = F.softplus((scored_IM[worse] - scored_IM[better]) / TEMPERATURE).mean() * TEMPERATURE * 4
                loss, logs["order"] = loss + teaching.order * order, float(order.detach())
        by_ladder = list(torch.split(score_IM[images:], [len(ladder) for ladder in rungs])) if rungs else []
        if taught:
            order = ladder_order(by_ladder[: len(taught)])
            loss, logs["ladders"] = loss + teaching.ladders * order, float(order.detach())
        if self.aligner is not None:
            rows_IWD = tapped.reshape(len(share_IW), -1, tapped.shape[-1])[:images]
            aligned = self._align(step, rows_IWD, self.sides[index], by_ladder[len(taught) :])
            self._watch(step, rows_IWD.flatten(0, 1), score_IM[:images].mean(1))
            loss, logs = loss + aligned.loss, logs | aligned.logs
        if step % watching.EVERY == 0 or step == self.steps - 1:
            logs |= self.look()
        return Step(loss, output.feature[: images * share_IW.shape[1]], logs)

    def look(self) -> dict[str, float]:
        """How far the domains are apart now, and what else shows without target labels; nothing with one side alone.

        `source_srocc` is of the source images that are learnt from; `order_concordance` of the target's ladders.
        """
        if len(set(self.sides.tolist())) < 2:
            return {}
        few = 32 if self.frozen else 4  # windows of an image: towers take their time
        made = [self._features_of(source, few) for source in self.inputs]
        groups = [one.scene or number for number, one in enumerate(self.shown)]
        rows = {
            side: watching.gather([(made[i], groups[i]) for i in np.flatnonzero(self.sides == side)])
            for side in ("source", "target")
        }
        found = watching.apart(rows["source"], rows["target"], seed=self.seed)
        scored = [i for i, sample in enumerate(self.samples) if sample.side == "source"]
        srocc = watching.rank_correlation(
            [self._score(made[i]) for i in scored], [self.samples[i].score for i in scored]
        )
        if srocc is not None:
            found["source_srocc"] = srocc
        ladders = [self.ladders[i] for i in self._of_target()]
        if ladders:
            scores = [[self._score(self._features_of(rung, few)) for rung in ladder] for ladder in ladders]
            found["order_concordance"] = order_concordance(scores)
        return found

    def fold_in(self) -> None:
        """Fold neck and standardisation of frozen features into each head's first layer: the file holds plain layers.

        Where each side has its own standardisation it is the target's, for the file serves the target.
        """
        if not self.frozen:
            return
        if self.neck is not None:
            self.neck.fold_into(self.network)
        fold_standardisation(self.network, *self.statistics["target" if "target" in self.statistics else "source"])

    def _features_of(self, source: Tensor | Windows, count: int) -> Tensor:
        """Features that heads and alignment meet, of at most `count` windows, evenly spread; nothing is taught."""
        device = next(self._module.parameters()).device
        taken = _take(source, watching.spread(len(source), count).numpy()).to(device)
        training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            if isinstance(source, Windows):
                taken = self.network.embed(taken).float()
            elif self.neck is not None:
                taken = self.neck(taken)
        self.network.train(training)
        return taken

    def _score(self, feature_ND: Tensor) -> float:
        with torch.inference_mode():
            output = self.network.judge(feature_ND)
            return float((output.weight * output.score).sum() / output.weight.sum())

    # Standardisation

    def _standardise(self, taught: bool) -> None:
        """Bring the frozen features to mean 0 and sd 1; `fold_in` moves that into the heads when they are taught."""
        scored = range(len(self.samples))
        if self.recipe.teaching.standardise == "by-domain":
            groups = {side: [i for i, one in enumerate(self.sides) if one == side] for side in ("source", "target")}
            if not all(groups.values()):
                raise TrainingError(
                    "standardise='by-domain' wants images of both sides: give unscored images of the other one"
                )
        else:
            groups = {side: list(scored) for side in ("source", "target")}
        self.statistics = {side: self._mean_and_sd(index) for side, index in groups.items()}
        if taught:
            mean, sd = self.statistics["target"]
            fold_standardisation(self.network, -mean / sd, 1 / sd)
        for place, source in enumerate(self.inputs):
            self.inputs[place] = self._standard(source, str(self.sides[place]))
        for ladder, side in zip(self.ladders, self._ladder_sides, strict=False):
            for place, source in enumerate(ladder):
                ladder[place] = self._standard(source, side)

    def _mean_and_sd(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        return mean_and_sd([cast("Tensor", self.inputs[i]) for i in index])

    def _standard(self, source: Tensor | Windows, side: str) -> Tensor | Windows:
        if not isinstance(source, Tensor):
            return source
        mean, sd = self.statistics[side]
        return (source - mean) / sd

    # Alignment

    def _prepare_alignment(self, trained: nn.Module) -> nn.Module:
        """Build what the alignment needs beside the network; all that is trained or saved, as one module."""
        alignment, wide = self.recipe.alignment, self.network.architecture.features
        pools = {side: np.flatnonzero(self.sides == side) for side in ("source", "target")}
        for side, pool in pools.items():
            if not len(pool):
                raise TrainingError(f"recipe {self.recipe.name!r} aligns two domains, and there is no {side} image")
        self._pools = pools
        half = max(1, self.recipe.teaching.images_per_step // 2)
        scored = set(self.sides[: len(self.samples)].tolist())
        self._per_epoch = max(-(-len(pool) // half) for side, pool in pools.items() if side in scored)
        parts = {"heads" if self.frozen else "network": trained}
        if alignment.compares == "ladders":
            if not self._of_target():
                raise TrainingError("alignment kind='rank' has no ladder of the target to put in order; make some")
        elif self.frozen:
            if alignment.tap == "value":
                raise TrainingError("tap='value' lies inside the frozen towers; use tap='window', or trains='all'")
            self.neck = parts["neck"] = Neck(wide)
        if alignment.tap == "value":
            wide = self.network.architecture.value_channels * (wide // self.network.architecture.value_channels)
        self.aligner = parts["aligner"] = build(alignment, wide, seed=self.seed)
        return nn.ModuleDict(parts)

    def _both_sides(self, step: int) -> NDArray[np.int_]:
        """Half of a step's images from each side; each cycles through its own in an order that hangs on the round."""
        half = max(1, self.recipe.teaching.images_per_step // 2)
        chosen = []
        for number, pool in enumerate(self._pools.values()):
            places = np.arange(step * half, (step + 1) * half)
            rounds = {int(r): _order(int(r), number, len(pool)) for r in np.unique(places // len(pool))}
            chosen += [pool[rounds[int(place // len(pool))][place % len(pool)]] for place in places]
        return np.array(chosen)

    def _of_target(self) -> list[int]:
        return [i for i, side in enumerate(self._ladder_sides[: len(self.ladders)]) if side == "target"]

    def _target_ladders(self, rng: np.random.Generator) -> list[list[Tensor | Windows]]:
        """Ladders of the target for alignment by rank, none otherwise."""
        if not isinstance(self.aligner, LadderOrder):
            return []
        return [self.ladders[i] for i in rng.permutation(self._of_target())[:LADDERS_PER_STEP]]

    def _align(self, step: int, rows_IWD: Tensor, sides_I: NDArray[np.str_], ladders: Sequence[Tensor]) -> Aligned:
        progress = step / self.steps
        if not isinstance(self.aligner, Aligner):
            return cast("Aligned", cast("nn.Module", self.aligner)(ladders, progress))
        source, target = (
            _tap(rows_IWD[torch.from_numpy(sides_I == side)], self.recipe.alignment.tap)
            for side in ("source", "target")
        )
        if step == 0:
            encoder = self.network.tower_parameters() if self.neck is None else self.neck.parameters()
            self_test(self.aligner, source, target, encoder)
        return cast("Aligned", self.aligner(source, target, progress))

    def _watch(self, step: int, rows_BD: Tensor, score_I: Tensor) -> None:
        """Stop a run that the alignment has spoilt; what only teaching can give is asked after a tenth of it."""
        signs = health(rows_BD, score_I)
        if step < max(WARM_UP_STEPS, self.steps // 10):  # an untaught network says much the same of everything
            signs |= {"dead_units": 0.0, "spread": 1.0}
        if self._norms:
            guard(signs, self.recipe.alignment, usual_norm=float(np.median(self._norms)))
        if len(self._norms) < WARM_UP_STEPS:
            self._norms.append(signs["feature_norm"])

    # Drawing

    def _chosen(self, step: int, rng: np.random.Generator) -> NDArray[np.int_]:
        """The images of a step: each once an epoch, in an order that hangs on the epoch alone."""
        size = self.recipe.teaching.images_per_step
        epoch, part = divmod(step, self._per_epoch)
        order = np.random.default_rng([epoch, len(self.samples)]).permutation(len(self.samples))
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

    def _run(self, inputs: Tensor) -> tuple[Output, Tensor]:
        """What the network says, and the rows (B, D) that alignment compares."""
        inputs = inputs.to(next(self._module.parameters()).device)
        if self.frozen:
            output = self.network.judge(inputs if self.neck is None else self.neck(inputs))
            return output, output.feature
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        hook = self.network.value.register_forward_hook(lambda module, given, made: kept.append(made))  # noqa: ARG005
        output = self.network.judge(of_all(self.network.embed(own_share(inputs)), len(inputs)))
        hook.remove()
        if self.aligner is None or self.recipe.alignment.tap != "value":
            return output, output.feature
        return output, of_all(_pool(kept[0].flatten(2), self.network.architecture.pool), len(inputs))

    def _ordered_pairs(self, index: NDArray[np.int_], truth_I: Tensor) -> tuple[list[int], list[int]]:
        domains = self._domains[index]
        worse, better = [], []
        for a, b in combinations(range(len(index)), 2):
            apart = float(truth_I[a] - truth_I[b])
            if domains[a] == domains[b] and abs(apart) > LEAST_APART:
                worse.append(a if apart < 0 else b)
                better.append(b if apart < 0 else a)
        return worse, better


class _Windows:
    """Judged windows of an image on a dense grid, as pixels."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation

    def __call__(self, image: Picture, stride: int) -> Windows:
        if isinstance(image, Tensor):
            raise TrainingError("features were given where the whole network is taught; give images")
        return cut(image, self.preparation, stride=stride // 4)


def distance(logit: Tensor, truth: Tensor, loss: str) -> Tensor:
    """Loss of each logit against a score on 0..1; BCE is less its floor, the soft label's entropy: 0 is perfect."""
    truth = truth.expand_as(logit)
    if loss == "smooth-l1":
        return F.smooth_l1_loss(logit.sigmoid(), truth, beta=0.1, reduction="none")
    entropy = -(torch.xlogy(truth, truth) + torch.xlogy(1 - truth, 1 - truth))
    return F.binary_cross_entropy_with_logits(logit, truth, reduction="none") - entropy


def _take(source: Tensor | Windows, places: NDArray[np.int_]) -> Tensor:
    if isinstance(source, Windows):
        return torch.from_numpy(source.take(places))
    return source[torch.from_numpy(places)]


def _tap(rows_IWD: Tensor, tap: str) -> Tensor:
    """One side's rows (B, D) for the alignment: an image's mean, or at most ALIGNED_ROWS windows, as many of each."""
    if tap == "image":
        return rows_IWD.mean(1)
    return rows_IWD[:, : max(1, ALIGNED_ROWS // len(rows_IWD))].flatten(0, 1)


def _order(turn: int, side: int, length: int) -> NDArray[np.int_]:
    return np.random.default_rng([turn, length, side]).permutation(length)


def _by_image(output: Output, images: int) -> tuple[Tensor, Tensor]:
    """Logits (I, W, M), and each window's share of its image's mean (I, W)."""
    logit_IWM = output.logit.float().reshape(images, -1, output.logit.shape[-1])
    weight_IW = output.weight.float().reshape(images, -1)
    return logit_IWM, weight_IW / weight_IW.sum(1, keepdim=True)
