"""SAQM in PyTorch: Table 1 and Eqs 1-3 of Tliba et al. (ICIP 2022), and the slimmer members of its family.

Legend: B windows, C value channels, K key channels (C / 8), N positions (8x8 = 64; L query, J key), D pooled features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saqm.errors import ModelFileError

if TYPE_CHECKING:
    from saqm.modelfile import ModelHeader

Trunks = Literal["separate", "shared"]
Norm = Literal["none", "batch"]
Pooling = Literal["max", "mean", "mean-max"]
Init = Literal["kaiming", "pytorch"]

# Table 1, rows 1 to 16: what every tower is made of, at width 1. Rows 17, 18 are a 1x1 convolution and its ReLU.
TABLE_1: tuple[tuple[str, int], ...] = (
    ("conv", 128), ("relu", 0), ("conv", 256), ("relu", 0),
    ("conv", 256), ("relu", 0), ("conv", 256), ("relu", 0), ("maxpool", 2),
    ("conv", 512), ("relu", 0), ("conv", 512), ("relu", 0), ("conv", 512), ("relu", 0), ("maxpool", 2),
)  # fmt: skip
VALUE_CHANNELS = 512  # C, row 17
KEY_RATIO = 8  # "the number of channels (C = 512) is divided by 8" for Q and K


@dataclass(frozen=True)
class Architecture:
    """One member of the family; the defaults are the paper's network.

    width: factor on every channel count of Table 1.
    trunks: "separate" towers for Q, K and V (paper), or one "shared" trunk under three 1x1 convolutions.
    norm: "none" (paper) or "batch" after each 3x3 convolution.
    pool: "max" (paper), "mean", or both beside each other.
    hidden: sizes of the hidden layers of the MLP (the paper: "shallow"; 256 is ours).
    members: how many MLPs score the same features; their mean is the score (1 in the paper).
    weighted: whether a window also says how much it counts in the image's mean (the paper: no).
    init: "kaiming", or "pytorch", whose defaults leave all windows looking alike after eight plain layers.
    """

    width: float = 1.0
    trunks: Trunks = "separate"
    norm: Norm = "none"
    pool: Pooling = "max"
    hidden: tuple[int, ...] = (256,)
    members: int = 1
    weighted: bool = False
    init: Init = "kaiming"

    @property
    def value_channels(self) -> int:
        return max(KEY_RATIO, round(VALUE_CHANNELS * self.width))

    @property
    def features(self) -> int:
        """D, the length of a window's pooled vector."""
        return self.value_channels * (2 if self.pool == "mean-max" else 1)


class Output(NamedTuple):
    """What SAQM says of B windows.

    logit: (B, members); score: (B,), 0 to 1, higher is better; weight: (B,), positive; feature: (B, D).
    """

    logit: Tensor
    score: Tensor
    weight: Tensor
    feature: Tensor


class SAQM(nn.Module):
    """Self-attention quality network: windows in, one score each (paper, section 2 and Table 1)."""

    def __init__(self, architecture: Architecture | None = None, *, seed: int) -> None:
        super().__init__()
        self.architecture = arch = architecture or Architecture()
        value, key = arch.value_channels, arch.value_channels // KEY_RATIO
        if arch.trunks == "separate":
            self.query = nn.Sequential(*_trunk(arch), *_project(arch, key))
            self.key = nn.Sequential(*_trunk(arch), *_project(arch, key))
            self.value = nn.Sequential(*_trunk(arch), *_project(arch, value))
        else:
            self.trunk = nn.Sequential(*_trunk(arch))
            self.query = nn.Sequential(*_project(arch, key))
            self.key = nn.Sequential(*_project(arch, key))
            self.value = nn.Sequential(*_project(arch, value))
        self.gamma = nn.Parameter(torch.zeros(()))  # Eq 3: "initialized as 0"
        self.heads = nn.ModuleList(Head(arch) for _ in range(arch.members))
        self._initialise(seed)

    @classmethod
    def from_header(cls, header: ModelHeader) -> Self:
        """An untaught network of the architecture that a model file's header names; its weights are to be loaded."""
        named = header.architecture.model_dump()
        fixed = {name: named.pop(name) for name in ("key_ratio", "patch", "final_relu")}
        if fixed != {"key_ratio": KEY_RATIO, "patch": 32, "final_relu": True}:
            raise ModelFileError(f"this saqm builds no network with {fixed}: upgrade saqm")
        return cls(Architecture(**named), seed=0)

    def embed(self, windows_B3PP: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B D"]:
        """Pooled features of each window, after the attention: the vector that scores and that adaptation aligns."""
        attended_BCN, _ = self.attend(windows_B3PP)
        return _pool(attended_BCN, self.architecture.pool)

    def attend(self, windows_B3PP: Float[Tensor, "B 3 P P"]) -> tuple[Float[Tensor, "B C N"], Float[Tensor, "B L J"]]:
        """Features at each position after Eq 3, and the attention of each query L over the keys J (rows sum to one)."""
        if self.architecture.trunks == "shared":
            windows_B3PP = self.trunk(windows_B3PP)
        query_BKN = self.query(windows_B3PP).flatten(2)
        key_BKN = self.key(windows_B3PP).flatten(2)
        value_BCN = self.value(windows_B3PP).flatten(2)
        return attend(query_BKN, key_BKN, value_BCN, self.gamma)

    def judge(self, feature_BD: Float[Tensor, "B D"]) -> Output:
        """Score and weight of windows whose features are known."""
        members = [head(feature_BD) for head in self.heads]
        logit_BM = torch.stack([logit for logit, _ in members], -1)
        score_B = logit_BM.sigmoid().mean(-1)
        log_weight_B = torch.stack([log_weight for _, log_weight in members], -1).mean(-1)
        return Output(logit_BM, score_B, log_weight_B.exp(), feature_BD)

    def forward(self, windows_B3PP: Float[Tensor, "B 3 P P"]) -> Output:
        return self.judge(self.embed(windows_B3PP))

    def tower_parameters(self) -> Iterator[nn.Parameter]:
        """Everything but the heads: what pre-training teaches and what a frozen tower keeps."""
        for name, parameter in self.named_parameters():
            if not name.startswith("heads."):
                yield parameter

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if self.architecture.init == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(cast("Tensor", module.bias))
            else:  # torch's own defaults, drawn from our generator so that a seed means the same everywhere
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(cast("Tensor", module.bias), -bound, bound, generator=generator)
        for head in self.heads:
            cast("Head", head).start_small()


class Head(nn.Module):
    """The MLP of the paper: features to one logit, and (where asked for) a log weight within +-LOG_WEIGHT_LIMIT."""

    LOG_WEIGHT_LIMIT = 3.0  # a window may count e^3 = 20 times, or a 20th; keeps one window from being the image

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        sizes = (arch.features, *arch.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.weighted = arch.weighted
        self.out = nn.Linear(sizes[-1], 2 if arch.weighted else 1)

    def forward(self, feature_BD: Float[Tensor, "B D"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        out_BO = self.out(self.body(feature_BD))
        if not self.weighted:
            return out_BO[:, 0], torch.zeros_like(out_BO[:, 0])
        return out_BO[:, 0], self.LOG_WEIGHT_LIMIT * torch.tanh(out_BO[:, 1] / self.LOG_WEIGHT_LIMIT)

    def start_small(self) -> None:
        """Scale the last layer down: scores start near the middle, where the sigmoid has a gradient."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)


def attend(
    query_BKN: Float[Tensor, "B K N"],
    key_BKN: Float[Tensor, "B K N"],
    value_BCN: Float[Tensor, "B C N"],
    gamma: Float[Tensor, ""],
) -> tuple[Float[Tensor, "B C N"], Float[Tensor, "B N N"]]:
    """Self-attention over the positions of a window; Eqs 1 to 3. No 1/sqrt(K), as in the paper.

    The paper's A_{j,l} sums to one over j for each l; here that is row l of the attention returned.
    """
    similarity_BLJ = torch.einsum("bkl,bkj->blj", query_BKN, key_BKN)  # Eq 1
    attention_BLJ = similarity_BLJ.softmax(dim=-1)  # Eq 2: over the keys j
    context_BCL = torch.einsum("bcj,blj->bcl", value_BCN, attention_BLJ)
    return gamma * context_BCL + value_BCN, attention_BLJ  # Eq 3


def multiply_accumulates(arch: Architecture, patch: int = 32) -> int:
    """Multiply-accumulates for one window, convolutions and attention and MLP (a FLOP count is twice this)."""
    value, key = arch.value_channels, arch.value_channels // KEY_RATIO
    side, before, trunk = patch, 3, 0
    for kind, number in TABLE_1:
        if kind == "conv":
            after = _channels(number, arch.width)
            trunk += side * side * before * after * 9
            before = after
        elif kind == "maxpool":
            side //= number
    positions = side * side
    trunks = 3 if arch.trunks == "separate" else 1
    attention = positions * positions * (key + value)
    sizes = (arch.features, *arch.hidden, 2 if arch.weighted else 1)
    mlp = arch.members * sum(a * b for a, b in pairwise(sizes))
    return trunks * trunk + positions * before * (2 * key + value) + attention + mlp


def fuse_norms(network: SAQM) -> SAQM:
    """A copy for scoring with each batch normalisation folded into the convolution before it; the same function."""
    import copy

    fused = copy.deepcopy(network).eval()
    for parent in fused.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        for index in range(len(parent) - 1):
            convolution, norm = parent[index], parent[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent[index] = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
                parent[index + 1] = nn.Identity()
    return fused


def _trunk(arch: Architecture) -> Iterator[nn.Module]:
    before = 3
    for kind, number in TABLE_1:
        if kind == "conv":
            after = _channels(number, arch.width)
            yield nn.Conv2d(before, after, 3, padding=1)
            if arch.norm == "batch":
                yield nn.BatchNorm2d(after)
            before = after
        elif kind == "relu":
            yield nn.ReLU()
        else:
            yield nn.MaxPool2d(number)


def _project(arch: Architecture, channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(_channels(VALUE_CHANNELS, arch.width), channels, 1), nn.ReLU()  # rows 17 and 18


def _channels(number: int, width: float) -> int:
    return max(KEY_RATIO, round(number * width))


def _pool(features_BCN: Float[Tensor, "B C N"], pool: Pooling) -> Float[Tensor, "B D"]:
    if pool == "max":
        return features_BCN.amax(-1)
    if pool == "mean":
        return features_BCN.mean(-1)
    return torch.cat([features_BCN.mean(-1), features_BCN.amax(-1)], -1)
