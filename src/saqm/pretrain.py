"""Dense labels for windows, which need no opinions: teach the towers the fine scale first (docs/method.md).

Four kinds, each switched by its weight: statistics of the window itself; its difference to the same window of a twin
(the undegraded version of its scene); which method made it; and degraded copies, whose twin is the original.
All of them are proxies for quality, never opinion scores. Legend as in `saqm.network`; S targets, M margin, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.errors import NotScorable, TrainingError
from saqm.image import Image
from saqm.loop import Group, Log, LoopConfig, Step, fit
from saqm.network import SAQM, Architecture
from saqm.patches import BINOMIAL, MARGIN, PATCH_SIDE, Preparation, compress, coverage, grid, luminance
from saqm.together import of_all, own_share

RADIAL_BANDS = 14  # rings of equal width in spatial frequency, up to the corner of the spectrum
_LAGS = ((1, 0), (0, 1), (1, 1), (1, -1))  # neighbours whose products say how far grain reaches
_GRADIENT_SHARES = (0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95)
STATISTICS = RADIAL_BANDS + 3 * (3 + len(_LAGS)) + len(_GRADIENT_SHARES)  # 42
DIFFERENCES = 3 * 3
_HIDDEN = 128  # of the probe that reads the targets off the features; thrown away afterwards


@dataclass(frozen=True)
class PretrainConfig:
    """What the towers are taught, and how.

    statistics, differences, makers: weights of the losses on the window's own statistics, on its difference to the
    twin, and on which method made it, whatever the domain. degraded, blended: shares of windows that are replaced by
    a degraded copy, or by a blend with another version of the same scene (both then leave the loss on makers).
    attention: False keeps gamma at 0, so that windows are pooled without attention: the ablation of Eq 3.
    """

    architecture: Architecture = field(
        default_factory=lambda: Architecture(width=3 / 16, trunks="shared", norm="batch", pool="mean-max")
    )
    preparation: Preparation = field(default_factory=Preparation)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            learning_rate=3e-3,
            optimiser="adamw",
            weight_decay=1e-2,
            schedule="one-cycle",
            clip_norm=5.0,
            precision="auto",
        )
    )
    steps: int = 800
    images_per_step: int = 32
    windows_per_image: int = 4
    statistics: float = 1.0
    differences: float = 2.0
    makers: float = 1.0
    degraded: float = 0.2
    blended: float = 0.1
    attention: bool = True
    then: PretrainConfig | None = None  # another stage, which goes on from the towers of this one


# What ships: first everything, degraded copies and blends among it; then, at a lower rate, nearly the pictures alone
TWO_STAGES = PretrainConfig(
    then=PretrainConfig(
        loop=replace(PretrainConfig().loop, learning_rate=2e-3),
        steps=900,
        images_per_step=64,
        windows_per_image=2,
        degraded=0.1,
        blended=0.0,
    )
)


@dataclass(frozen=True, eq=False)
class Version:
    """One image to learn from. `scene` and `maker` (the method) may be unknown; a `reference` is a twin.

    One maker in all domains: a denoiser's fingerprint in one organ is then looked for in the other as well, which is
    what lets features taught here serve there.
    """

    image: Image
    scene: str | None = None
    maker: str | None = None
    reference: bool = False


class PretrainTask:
    """Windows of many images with their dense labels, as a task for `saqm.loop.fit`."""

    def __init__(
        self, versions: Sequence[Version], config: PretrainConfig, *, seed: int, start: SAQM | None = None
    ) -> None:
        if config.preparation.channels != "bands" or config.preparation.patch != PATCH_SIDE:
            raise TrainingError("pre-training teaches bands of 32x32 windows; use channels='bands', patch=32")
        self.config, self.steps = config, config.steps
        self._pictures: list[Tensor] = []
        self._corners: list[NDArray[np.int_]] = []
        kept: list[Version] = []
        for version in versions:
            corners = judged_corners(version.image, config.preparation, stride=8)
            if len(corners):
                kept.append(version)
                padded = np.pad(luminance(version.image), MARGIN, mode="edge")
                self._pictures.append(torch.from_numpy(padded))
                self._corners.append(corners)
        if not kept:
            raise NotScorable(f"none of {len(versions)} images has a judged window to learn from")
        references = {v.scene: index for index, v in enumerate(kept) if v.reference and v.scene is not None}
        self._twins = [references.get(v.scene) if v.scene is not None else None for v in kept]
        for index, twin in enumerate(self._twins):
            if twin is not None and self._pictures[twin].shape != self._pictures[index].shape:
                raise TrainingError(
                    f"{kept[index].image.source.path}: its twin has another size; twins must be registered"
                )
        makers = sorted({v.maker for v in kept if v.maker is not None})
        self._makers = [-1 if v.maker is None else makers.index(v.maker) for v in kept]
        self._relatives = [[j for j, w in enumerate(kept) if w.scene is not None and w.scene == v.scene] for v in kept]
        network = SAQM(config.architecture, seed=seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if start is not None:
            if start.architecture != config.architecture:
                raise TrainingError(f"towers of {start.architecture} cannot go on as {config.architecture}")
            network.load_state_dict(start.state_dict())
        generator = torch.Generator().manual_seed(seed)
        wide = config.architecture.features
        probe = nn.Sequential(nn.Linear(wide, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, STATISTICS + DIFFERENCES))
        maker = nn.Linear(wide, max(1, len(makers)))
        for module in (probe[0], probe[2], maker):
            assert isinstance(module, nn.Linear)
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(module.bias)
        self.module = nn.ModuleDict({"network": network, "probe": probe, "maker": maker, "scaler": _Scaler()})

    @property
    def network(self) -> SAQM:
        network = self.module["network"]
        assert isinstance(network, SAQM)
        return network

    def parameters(self) -> list[Group]:
        probe, maker, gamma = self.module["probe"], self.module["maker"], self.network.gamma
        towers = [one for one in self.network.tower_parameters() if self.config.attention or one is not gamma]
        return [Group([*towers, *probe.parameters(), *maker.parameters()])]

    def loss(self, step: int, rng: np.random.Generator) -> Step:  # noqa: ARG002  every step is alike
        config = self.config
        window_BHW, twin_BHW, has_twin_B, maker_B = self._draw(rng)
        with torch.autocast("cpu", enabled=False):  # labels are made on the CPU and never rounded to bfloat16
            bands = band_planes(window_BHW)
            truth_BS = torch.cat([statistics(window_BHW, bands), differences(bands, band_planes(twin_BHW))], 1)
        device = self.network.gamma.device
        truth_BS = self.module["scaler"](truth_BS.to(device))
        has_twin_B, maker_B = has_twin_B.to(device), maker_B.to(device)
        input_B3PP = network_input(bands)
        feature_BD = of_all(self.network.embed(own_share(input_B3PP).to(device)), len(input_B3PP))
        guess_BS = self.module["probe"](feature_BD).float()
        own = F.smooth_l1_loss(guess_BS[:, :STATISTICS], truth_BS[:, :STATISTICS])
        loss, logs = config.statistics * own, {"statistics": float(own.detach())}
        if config.differences and bool(has_twin_B.any()):
            guess, truth = guess_BS[has_twin_B, STATISTICS:], truth_BS[has_twin_B, STATISTICS:]
            to_twin = F.smooth_l1_loss(guess, truth)
            loss, logs["differences"] = loss + config.differences * to_twin, float(to_twin.detach())
        known_B = maker_B >= 0
        if config.makers and bool(known_B.any()):
            logits = self.module["maker"](feature_BD[known_B]).float()
            named = F.cross_entropy(logits, maker_B[known_B])
            loss, logs["makers"] = loss + config.makers * named, float(named.detach())
            logs["makers_right"] = float((logits.argmax(1) == maker_B[known_B]).float().mean())
        return Step(loss, feature_BD, logs)

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Windows with a margin (B, P+2M, P+2M), their twins, whether there is one, and who made them (-1 unknown)."""
        config = self.config
        windows, twins, has_twin, makers = [], [], [], []
        for index in rng.choice(len(self._pictures), config.images_per_step):
            corners = self._corners[index][rng.integers(len(self._corners[index]), size=config.windows_per_image)]
            own = self._crops(index, corners)
            twin = self._twins[index]
            clean = own if twin is None else self._crops(twin, corners)
            maker = np.full(len(corners), self._makers[index])
            known = np.full(len(corners), twin is not None)
            if config.blended and len(self._relatives[index]) > 1:
                chosen = rng.random(len(corners)) < config.blended
                share = torch.from_numpy(np.where(chosen, rng.random(len(corners)), 0).astype(np.float32))[
                    :, None, None
                ]
                other = self._crops(self._relatives[index][rng.integers(len(self._relatives[index]))], corners)
                own, maker = (1 - share) * own + share * other, np.where(chosen, -1, maker)
            if config.degraded:
                own = own.clone()
                for place in np.flatnonzero(rng.random(len(corners)) < config.degraded):
                    kind = str(rng.choice(list(DEGRADATIONS)))
                    strength = rng.uniform(0, 1) * LADDERS[kind][-1]
                    own[place] = torch.from_numpy(DEGRADATIONS[kind](own[place].numpy(), strength, rng))
                    maker[place], known[place] = -1, True
            windows.append(own)
            twins.append(clean)
            makers.append(maker)
            has_twin.append(known)
        window, twin_ = torch.cat(windows), torch.cat(twins)
        for axis in (1, 2):  # mirrored alike, which changes no quality
            if rng.random() < 0.5:
                window, twin_ = window.flip(axis), twin_.flip(axis)
        return window, twin_, torch.from_numpy(np.concatenate(has_twin)), torch.from_numpy(np.concatenate(makers))

    def _crops(self, index: int, corners: NDArray[np.int_]) -> Tensor:
        side = PATCH_SIDE + 2 * MARGIN
        views = self._pictures[index].unfold(0, side, 1).unfold(1, side, 1)
        return views[corners[:, 0], corners[:, 1]]


class _Scaler(nn.Module):
    """Standardises targets by the mean and sd of the first batch, and keeps them with the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(STATISTICS + DIFFERENCES))
        self.register_buffer("sd", torch.zeros(STATISTICS + DIFFERENCES))

    def forward(self, targets_BS: Tensor) -> Tensor:
        mean, sd = self.get_buffer("mean"), self.get_buffer("sd")
        if not bool(sd.any()):
            mean.copy_(targets_BS.mean(0))
            sd.copy_(targets_BS.std(0) + 1e-3)
        return (targets_BS - mean) / sd


def pretrain(
    versions: Sequence[Version],
    config: PretrainConfig,
    *,
    seed: int,
    folder: Path | None = None,
    start: SAQM | None = None,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> tuple[SAQM, Log]:
    """Towers taught on dense labels, from `start` or from scratch, and the log. The heads of the network are untrained.

    Raises NotScorable when no image has a judged window, TrainingError as `saqm.loop.fit`.
    """
    task = PretrainTask(versions, config, seed=seed, start=start)
    also = None if config.attention else {"attention": False}
    log = fit(task, config.loop, seed=seed, folder=folder, on_step=on_step, also=also)
    towers = task.network.eval()
    if config.then is None:
        return towers, log
    further = None if folder is None else folder / "then"
    towers, more = pretrain(versions, config.then, seed=seed, folder=further, start=towers, on_step=on_step)
    return towers, [*log, *({**entry, "step": entry["step"] + len(log)} for entry in more)]


def judged_corners(image: Image, preparation: Preparation, stride: int) -> NDArray[np.int_]:
    """Corners (N, 2) of the windows on a dense grid that are judged; none where the image is too small."""
    height, width = image.mask.shape
    if min(height, width) < preparation.patch:
        return np.empty((0, 2), int)
    corners = grid(height, width, preparation.patch, stride)
    return corners[coverage(image.mask, corners, preparation.patch) >= preparation.min_coverage]


def band_planes(padded_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fine, middle and shade of windows that come with their margin, (B, P, P) each: `saqm.patches.planes` in torch."""
    taps = torch.from_numpy(BINOMIAL)
    kernel = (taps[:, None] * taps)[None, None]
    grey = padded_BHW[:, None]
    smooth = F.conv2d(grey, kernel)
    smoother = F.conv2d(smooth, kernel, dilation=2)[:, 0]
    grey, smooth = grey[:, 0, MARGIN:-MARGIN, MARGIN:-MARGIN], smooth[:, 0, 4:-4, 4:-4]
    return grey - smooth, smooth - smoother, smoother


def network_input(bands: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The three channels of `saqm.patches.planes` from band-passed windows, (B, 3, P, P), channels last."""
    return torch.stack(compress(bands, torch.asinh), 1).contiguous(memory_format=torch.channels_last)


def statistics(window_BHW: Tensor, bands: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """42 statistics of each window, (B, 42): log power in rings; spread, tails, skew and neighbour products of each
    band; percentiles of the gradient. Luminance on 0..255; `window_BHW` still has its margin."""
    inner = window_BHW[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    count = len(inner)
    taper = torch.hann_window(PATCH_SIDE, periodic=False)
    rings_FR = _rings()
    spectrum = torch.fft.rfft2((inner - inner.mean((1, 2), keepdim=True)) * (taper[:, None] * taper))
    power = spectrum.abs().square().reshape(count, -1) @ rings_FR / rings_FR.sum(0).clamp(min=1)
    parts = [torch.log(power + 1)]
    for band in bands:
        centred = band - band.mean((1, 2), keepdim=True)
        sd = (centred.square().mean((1, 2)) + 0.05).sqrt()
        z = centred / sd[:, None, None]
        moments = [sd.log(), torch.log1p(z.pow(4).mean((1, 2))), z.pow(3).mean((1, 2)).clamp(-3, 3)]
        moments += [_neighbour_product(z, *lag) for lag in _LAGS]
        parts.append(torch.stack(moments, 1))
    down, right = inner[:, 1:, :-1] - inner[:, :-1, :-1], inner[:, :-1, 1:] - inner[:, :-1, :-1]
    gradient = (down.square() + right.square() + 0.01).sqrt().reshape(count, -1)
    parts.append(torch.log(torch.quantile(gradient, torch.tensor(_GRADIENT_SHARES), dim=1).T + 0.3))
    return torch.cat(parts, 1)


def differences(bands: tuple[Tensor, ...], twin_bands: tuple[Tensor, ...]) -> Tensor:
    """How each band differs from the twin's, (B, 9): log mean-square difference, log energy ratio, correlation."""
    parts = []
    for index, (own, twin) in enumerate(zip(bands, twin_bands, strict=True)):
        x, t = own, twin
        if index == 2:  # the shade's level is anatomy
            x, t = x - x.mean((1, 2), keepdim=True), t - t.mean((1, 2), keepdim=True)
        distance, energy, twin_energy = (v.square().mean((1, 2)) for v in (x - t, x, t))
        correlation = ((x * t).mean((1, 2)) + 0.05) / ((energy * twin_energy).sqrt() + 0.05)
        parts += [torch.log(distance + 0.1), torch.log((energy + 0.1) / (twin_energy + 0.1)), correlation]
    return torch.stack(parts, 1)


def _rings() -> Tensor:
    """Membership (F, R) of each frequency of a window's half spectrum in each ring; the mean itself in none."""
    rows, columns = torch.fft.fftfreq(PATCH_SIDE)[:, None], torch.fft.rfftfreq(PATCH_SIDE)[None]
    radius = (rows.square() + columns.square()).sqrt().reshape(-1)
    ring = (radius / (math.sqrt(0.5) + 1e-6) * RADIAL_BANDS).long()
    members = F.one_hot(ring, RADIAL_BANDS).float()
    members[0] = 0
    return members


def _neighbour_product(z_BHW: Tensor, down: int, right: int) -> Tensor:
    if right < 0:
        z_BHW, right = z_BHW.flip(2), -right
    height, width = z_BHW.shape[1:]
    return (z_BHW[:, down:, right:] * z_BHW[:, : height - down, : width - right]).mean((1, 2))
