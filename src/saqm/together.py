"""Several processes of a torchrun teach as one: each takes its share of a step's windows, all get every window's row.

What comes after the rows (losses that compare images, ladders, domains) is then computed by each process alike, so a
step has the loss and the gradient that one process alone would have of all windows, whatever the loss is.

Legend: B windows of the step, S windows of a process's share, D features of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn


def processes() -> int:
    """How many processes teach together; 1 where none were started to."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_share(windows: Tensor) -> Tensor:
    """The windows that this process embeds: all, or one of as many runs of them as there are processes."""
    if processes() == 1:
        return windows
    size = _share(len(windows))
    start = distributed.get_rank() * size
    return windows[start : start + size]


def of_all(rows_SD: Tensor, total: int) -> Tensor:
    """The rows (B, D) of all `total` windows, from the rows that each process has of its own share, in order."""
    return rows_SD if processes() == 1 else cast("Tensor", _OfAll.apply(rows_SD, total))  # type: ignore[no-untyped-call]


class _OfAll(torch.autograd.Function):
    """Gather rows; the gradient of a process's own is at hand, for all of them compute the same loss.

    It is taken as often as there are processes, because the mean of their gradients is what is taught.
    """

    @staticmethod
    def forward(ctx: Any, rows_SD: Tensor, total: int) -> Tensor:
        ctx.own, size = len(rows_SD), _share(total)
        padded = rows_SD.new_zeros((size, *rows_SD.shape[1:]))
        padded[: len(rows_SD)] = rows_SD
        parts = [torch.empty_like(padded) for _ in range(processes())]
        distributed.all_gather(parts, padded)
        return torch.cat(parts)[:total]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start = distributed.get_rank() * _share(len(gradients[0]))
        return gradients[0][start : start + ctx.own] * processes(), None


def _share(total: int) -> int:
    return -(-total // processes())


@contextmanager
def normalised_together(module: nn.Module) -> Iterator[None]:
    """Batch normalisations in `module` use mean and variance over all shares (torch's own does so on CUDA only)."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)] if processes() > 1 else []
    for norm in norms:
        norm.forward = MethodType(_normalise, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's own is seen again


def _normalise(norm: nn.BatchNorm2d, x_SCHW: Tensor) -> Tensor:
    """`BatchNorm2d.forward` with the statistics of all processes while it is taught."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x_SCHW)
    x = x_SCHW.float()
    count = _sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean_C = _sum(x.sum((0, 2, 3))) / count
    centred = x - mean_C[:, None, None]
    variance_C = _sum(centred.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        if norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None:
            norm.running_mean.lerp_(mean_C, norm.momentum)
            norm.running_var.lerp_(variance_C * count / (count - 1), norm.momentum)
            cast("Tensor", norm.num_batches_tracked).add_(1)
    scale_C = norm.weight * (variance_C + norm.eps).rsqrt()
    return (centred * scale_C[:, None, None] + norm.bias[:, None, None]).to(x_SCHW.dtype)


def _sum(value: Tensor) -> Tensor:
    """Over all processes; its gradient is summed as well."""
    return cast("Tensor", _Sum.apply(value))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
