"""Frozen towers: features that are computed once, what heads may change of them, and how that folds into plain heads.

Legend as in `saqm.network`; N windows of an image, D features of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from saqm.image import Image
from saqm.loop import bf16_pays
from saqm.network import SAQM
from saqm.patches import CHUNK, cut
from saqm.recipes import Recipe

DENSE_STRIDE = 24  # pixels between the windows that heads on frozen towers are taught with
LADDER_STRIDE = 48  # the same for degraded copies, of which there are many

Picture = Image | Tensor  # an image; or the features (N, D) of its windows, through the towers that it will meet


class Features:
    """Features of an image's judged windows on a dense grid, through frozen towers; those that are features stay."""

    def __init__(self, network: SAQM, recipe: Recipe) -> None:
        self.network, self.preparation = network, recipe.preparation
        self.coarse = recipe.teaching.features == "bf16" and bf16_pays()

    def __call__(self, image: Picture, stride: int) -> Tensor:
        if isinstance(image, Tensor):
            return image
        self.network.eval()
        windows = cut(image, self.preparation, stride=stride)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.coarse):
            made = [self.network.embed(torch.from_numpy(batch)).float() for batch in windows.batches(CHUNK)]
        return torch.cat(made).clone()


class Neck(nn.Module):
    """x + Δx + b on standardised features (N, D), the identity at first: what alignment may change of frozen towers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.change = nn.Linear(features, features)
        nn.init.zeros_(self.change.weight)  # weight decay then draws it to the identity
        nn.init.zeros_(self.change.bias)

    def forward(self, feature_BD: Tensor) -> Tensor:
        return feature_BD + cast("Tensor", self.change(feature_BD))

    def fold_into(self, network: SAQM) -> None:
        """Make each head take what stands before the neck."""
        with torch.no_grad():
            for first in first_layers(network):
                first.bias.add_(first.weight @ self.change.bias)
                first.weight.add_(first.weight @ self.change.weight)


def first_layers(network: SAQM) -> Iterator[nn.Linear]:
    """The layer of each head that meets the features."""
    for head in network.heads:
        yield next(layer for layer in head.modules() if isinstance(layer, nn.Linear))


def fold_standardisation(network: SAQM, mean_D: Tensor, sd_D: Tensor) -> None:
    """Make heads that take (x - mean) / sd take x. With -mean / sd and 1 / sd: the other way round."""
    with torch.no_grad():
        for first in first_layers(network):
            first.weight.div_(sd_D)
            first.bias.sub_(first.weight @ mean_D)


def mean_and_sd(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and sd (D,) of features over all windows of images, each (N, D); a dead feature's sd is 0.001."""
    features = torch.cat(list(images))
    return features.mean(0), features.std(0) + 1e-3
