"""Two sides compared, drawn: each pair, and the gain of B with its interval. Needs the extra `plot`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqm.errors import MissingExtra
from saqm.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saqm.comparison import PairedComparison, PairedResult

_GAIN, _LOSS, _EQUAL = "#0072b2", "#d55e00", "0.6"  # Okabe & Ito: told apart by the colour-blind
_NAMED = 3  # losses, the largest ones, that have their name beside them


def differences(comparison: PairedComparison, path: str | Path) -> None:
    """Draw the pairs as PNG, a row a model: B against A, and the gains in order. Raises MissingExtra, OutputError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a picture of a comparison") from error

    results = comparison.results
    figure = Figure(figsize=(10.5, 4.6 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), result in zip(figure.subplots(len(results), 2, squeeze=False), results, strict=True):
        _sides(left, result)
        _gains(right, result)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def _colours(result: PairedResult) -> list[str]:
    return [_GAIN if pair.gain > 0 else _LOSS if pair.gain < 0 else _EQUAL for pair in result.pairs]


def _sides(axes: Axes, result: PairedResult) -> None:
    x, y = (np.array([getattr(pair, side) for pair in result.pairs]) for side in ("first", "second"))
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.06 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.75", linewidth=1, linestyle="--", zorder=1)
    axes.scatter(x, y, s=24, c=_colours(result), alpha=0.75, linewidths=0, zorder=2)
    first, second = result.labels
    axes.set(
        xlim=limits,
        ylim=limits,
        xlabel=f"{first} ({result.model}, {result.direction})",
        ylabel=second,
        title=f"{len(result.pairs)} pairs (dashed: equal)",
    )
    axes.set_box_aspect(1)
    _plain(axes)


def _gains(axes: Axes, result: PairedResult) -> None:
    gains = np.array([pair.gain for pair in result.pairs])
    places = np.arange(1, len(gains) + 1)
    axes.axhline(0, color="0.4", linewidth=1, zorder=1)
    if result.mean_interval is not None:
        axes.axhspan(*result.mean_interval, color="0.88", linewidth=0, zorder=0)
    axes.axhline(result.mean, color="0.15", linewidth=1.5, zorder=2)
    axes.vlines(places, 0, gains, colors=_colours(result), linewidth=1, alpha=0.6, zorder=3)
    axes.scatter(places, gains, s=20, c=_colours(result), linewidths=0, zorder=4)
    for place, pair in zip(places[:_NAMED], result.pairs, strict=False):
        if pair.gain < 0:
            name = pair.name if pair.frame is None else f"{pair.name} [{pair.frame}]"
            axes.annotate(name, (place, pair.gain), (6, -3), textcoords="offset points", fontsize=8, color="0.25")
    band = "" if result.mean_interval is None else ", 95 %: {:+.3g} to {:+.3g}".format(*result.mean_interval)
    axes.set(
        xlim=(0.2, len(gains) + 0.8),
        xlabel="pairs, the largest loss first",
        ylabel=f"gain of {result.labels[1]} (above 0: better)",
        title=f"mean gain over {result.units} {result.unit}s {result.mean:+.3g}{band}\n{result.verdict}",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.title.set_fontsize(10)
    axes.grid(color="0.94")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
