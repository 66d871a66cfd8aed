"""What can be seen of two domains without a label of the target: logged while a network is taught, never chosen by.

Legend: S source rows, T target rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from saqm.adaptation import coral, effective_rank, mmd, proxy_a_distance
from saqm.adaptation import normalised as brought_to_scale

EVERY = 100  # steps between two looks
ROWS = 512  # windows of a domain that a look compares: kernels cost their square


class Rows(NamedTuple):
    """Features of one domain's windows (N, D), and of which scene or image each is."""

    features: Tensor
    groups: Sequence[object]


def gather(images: Sequence[tuple[Tensor, object]]) -> Rows:
    """At most about ROWS windows of images, each (features, group): as many of each, evenly spread over the image."""
    each = max(1, ROWS // max(1, len(images)))
    chosen = [(features[spread(len(features), each)], group) for features, group in images]
    return Rows(torch.cat([rows for rows, _ in chosen]), [group for rows, group in chosen for _ in range(len(rows))])


def spread(length: int, count: int) -> Tensor:
    """At most `count` places, evenly spread over `length`."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def apart(source: Rows, target: Rows, *, seed: int) -> dict[str, float]:
    """How far two domains are apart, smaller is closer: `mmd`, `coral` (both at unit scale), `proxy_a_distance`.

    And `effective_rank` of the target, which falls where features collapse. A side with one group has no A-distance.
    """
    source_SD, target_TD = (rows.features.detach().cpu().float() for rows in (source, target))
    scaled = brought_to_scale(source_SD, target_TD, "batch")
    found = {"mmd": float(mmd(*scaled)), "coral": float(coral(*scaled)), "effective_rank": effective_rank(target_TD)}
    if min(len(set(source.groups)), len(set(target.groups))) > 1:
        found["proxy_a_distance"] = proxy_a_distance(
            source_SD, target_TD, seed=seed, source_groups=source.groups, target_groups=target.groups
        )
    return found


def rank_correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """SROCC, -1 to 1; None where one side is constant."""
    if len(scores) < 2 or not np.ptp(scores) or not np.ptp(truth):
        return None
    return float(stats.spearmanr(scores, truth).statistic)
