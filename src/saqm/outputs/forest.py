"""Correlations with their intervals, drawn one below the other. Needs the extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saqm.errors import MissingExtra
from saqm.writing import replacing

if TYPE_CHECKING:
    from saqm.evaluate import Result

_STRONG, _WEAK = "#3b75af", "0.55"


def forest(results: Mapping[str, Sequence[Result]], path: str | Path, *, strong: Collection[str]) -> None:
    """Draw the SROCC of every predictor as PNG, a panel a domain, in the order given; `strong` ones in colour.

    Thick: 95 % interval over scenes; thin: over scenes and methods. Raises MissingExtra, OutputError.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a plot of correlations") from error

    shown = {domain: [line for line in lines if line.srocc is not None] for domain, lines in results.items()}
    rows = max(map(len, shown.values()))
    alike = len({tuple(line.name for line in lines) for lines in shown.values()}) == 1  # then named once, at the left
    width = 3.2 + 3.4 * len(results) if alike else 6.4 * len(results)
    figure = Figure(figsize=(width, 0.3 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (domain, known) in zip(
        figure.subplots(1, len(results), squeeze=False, sharey=alike)[0], shown.items(), strict=True
    ):
        for place, line in enumerate(known):
            colour = _STRONG if line.name in strong else _WEAK
            for interval, width in ((line.srocc_interval_methods, 1.0), (line.srocc_interval, 3.0)):
                if interval is not None:
                    axes.plot(interval, (place, place), color=colour, linewidth=width, solid_capstyle="butt")
            axes.plot([line.srocc], [place], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(known)), [line.name for line in known])
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.axvline(0, color="0.8", linewidth=1, zorder=0)
        axes.set(title=domain, xlim=(-1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "SROCC with the readers. Thick: 95 % over scenes; thin: over scenes and methods", fontsize="medium"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())
