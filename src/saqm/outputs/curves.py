"""Curves of adaptation, drawn: what opinions of the target add, and what a run logs. Needs the extra `plot`.

Axes: R runs, P points of a run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import MissingExtra, OutputError
from saqm.outputs.feature_map import COLOURS
from saqm.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from saqm.evaluate import Result

_STYLES = ("--", "-.", ":")  # of horizontal lines, told apart without colour


def label_curve(
    panels: Mapping[str, Sequence[tuple[float, Result]]],
    path: str | Path,
    *,
    lines: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw SROCC and its interval over scenes against the share (0..1) of opinions read, as PNG, a panel a direction.

    lines: SROCC by name and panel, drawn across it. Raises MissingExtra; OutputError where a panel has no point.
    """
    for name, points in panels.items():
        if not points:
            raise OutputError(f"{name}: no share of opinions to draw")
    figure, drawn = _figure(1, len(panels), width=5.4, height=4.2)
    for axes, (name, points) in zip(drawn[0], panels.items(), strict=True):
        for style, (label, value) in zip(_STYLES, lines.get(name, {}).items(), strict=False):
            axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=label)
        places = [math.sqrt(share) for share, _ in points]  # the first few opinions are what is asked about
        known = [(place, r.srocc, r.srocc_interval) for place, (_, r) in zip(places, points, strict=True)]
        known = [one for one in known if one[1] is not None]
        axes.plot([one[0] for one in known], [one[1] for one in known], "o-", color=COLOURS[0], zorder=3)
        for place, _, interval in known:
            if interval is not None:
                axes.plot((place, place), interval, color=COLOURS[0], linewidth=3, alpha=0.35, solid_capstyle="butt")
        axes.set_xticks(places, [f"{100 * share:.0f}" for share, _ in points])
        axes.set(title=name, xlim=(-0.03, 1.03), ylabel="SROCC with the readers, held-out scenes")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
        axes.set_xlabel("opinions of the target that are read, % (square-root scale)")
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    _legend_below(figure, drawn[0][0])
    _save(figure, path)


def learning_curves(panels: Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]], path: str | Path) -> None:
    """Draw what runs logged, as PNG: a column a direction, a row a quantity, the mean and the range of the runs.

    panels: direction, quantity, configuration, then (R, P), evenly spaced from a run's first step to its last. Raises
    MissingExtra; OutputError where there is nothing to draw.
    """
    quantities = list(dict.fromkeys(quantity for panel in panels.values() for quantity in panel))
    names = list(dict.fromkeys(name for panel in panels.values() for runs in panel.values() for name in runs))
    if not names or len(names) > len(COLOURS):
        raise OutputError(f"runs of {len(names)} configurations; learning curves have colours for 1 to {len(COLOURS)}")
    figure, drawn = _figure(len(quantities), len(panels), width=4.6, height=1.7, sharey="row")
    for column, (direction, panel) in enumerate(panels.items()):
        drawn[0][column].set_title(direction)
        drawn[-1][column].set_xlabel("share of the steps, %")
        for row, quantity in enumerate(quantities):
            axes = drawn[row][column]
            for name, runs_RP in panel.get(quantity, {}).items():
                x, colour = np.linspace(0, 100, runs_RP.shape[1]), COLOURS[names.index(name)]
                axes.fill_between(x, runs_RP.min(0), runs_RP.max(0), color=colour, alpha=0.2, linewidth=0)
                axes.plot(x, runs_RP.mean(0), color=colour, label=name)
            axes.set_xlim(0, 100)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.grid(color="0.93")
            if not column:
                axes.set_ylabel(quantity)
    _legend_below(figure, *(axes for row in drawn for axes in row), title="line: mean of the runs; band: their range")
    _save(figure, path)


def _figure(rows: int, columns: int, *, width: float, height: float, **more: Any) -> tuple[Figure, Sequence[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a plot of curves") from error
    figure = Figure(figsize=(width * columns, height * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _legend_below(figure: Figure, *panels: Axes, title: str | None = None) -> None:
    found = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=len(found), frameon=False, fontsize=9,
            title=title, title_fontsize=9,
        )  # fmt: skip


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())
