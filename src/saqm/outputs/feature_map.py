"""Features of images of several domains, drawn on a plane, before and after alignment. Needs the extra `plot`.

Legend: N images, D features. A plane shows the two directions of most variance and hides all others: domains that lie
on each other here may still be told apart. `saqm.adaptation.proxy_a_distance` measures that; a picture does not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saqm.errors import MissingExtra, OutputError
from saqm.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
ByDomain = Mapping[str, NDArray[np.floating]]

# Okabe & Ito's, told apart by colour-blind readers; blue and orange differ in lightness as well, for grey prints
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
THIRDS = (("v", "worst third"), ("o", "middle third"), ("^", "best third"))  # markers, by quality inside a domain


def feature_map(
    features: ByDomain,
    path: str | Path,
    *,
    after: ByDomain | None = None,
    quality: ByDomain | None = None,
    titles: tuple[str, str] = ("before", "after"),
) -> None:
    """Draw images' mean features, (N, D) a domain, as PNG on their two principal axes, coloured by domain.

    after: the same images' features after standardisation or alignment, a panel of its own on axes of its own.
    quality: (N,) a domain, higher is better; its thirds inside the domain then have their shapes.
    Raises MissingExtra; OutputError for domains or shapes that do not fit, NaN, or a file that cannot be written.
    """
    panels = [features] if after is None else [features, after]
    _check(panels, quality)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a map of features") from error

    figure = Figure(figsize=(5.0 * len(panels), 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel, title in zip(drawn, panels, titles, strict=False):
        _panel(axes, panel, quality, title)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(features), frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def plane(domains: ByDomain) -> tuple[dict[str, Floats], tuple[float, float]]:
    """Each domain's rows (N, D) on the two principal axes of all, (N, 2), and the shares of variance (0..1) they hold.

    Each domain counts alike, however many its rows. The axes' signs are fixed: the largest loading is positive. Raises
    OutputError where all rows are equal.
    """
    rows = [np.asarray(values, np.float64) for values in domains.values()]
    if not np.ptp(np.concatenate(rows), axis=0).any():
        raise OutputError("all images have the same features: there is no plane to draw them on")
    centre = np.mean([values.mean(0) for values in rows], axis=0)
    weighted = np.concatenate([(values - centre) / np.sqrt(len(values)) for values in rows])
    _, singular, axes = np.linalg.svd(weighted, full_matrices=False)
    variance = singular**2
    axes = axes[:2] * np.sign(np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(1)[:, None], 1))
    points = {domain: (values - centre) @ axes.T for domain, values in zip(domains, rows, strict=True)}
    first, second = variance[:2] / variance.sum()
    return points, (float(first), float(second))


def thirds(quality: NDArray[np.floating]) -> NDArray[np.int_]:
    """0, 1 or 2 (best) for each value (N,), by its place in the order; equal values go with the middle of theirs."""
    values = np.asarray(quality, np.float64)
    below = (values[:, None] > values).sum(1)
    tied = (values[:, None] == values).sum(1)
    middle = (below + tied / 2) / len(values)  # 0..1
    return np.asarray(np.minimum((3 * middle).astype(np.int_), 2))


def _panel(axes: Axes, domains: ByDomain, quality: ByDomain | None, title: str) -> None:
    points, shares = plane(domains)
    for (domain, xy), colour in zip(points.items(), COLOURS, strict=False):
        third = np.ones(len(xy), int) if quality is None else thirds(quality[domain])
        for place, (marker, says) in enumerate(THIRDS):
            here = xy[third == place]
            label = domain if quality is None else f"{domain}, {says}"
            if quality is not None or len(here):
                axes.scatter(
                    here[:, 0], here[:, 1], color=colour, marker=marker, label=label, s=22, alpha=0.7, linewidths=0.4,
                    edgecolors="0.2",
                )  # fmt: skip
    axes.set(title=title, xlabel=_axis(1, shares[0]), ylabel=_axis(2, shares[1]))
    axes.set_aspect("equal", adjustable="datalim")  # a distance on the picture is one of features
    axes.set_box_aspect(1)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)


def _axis(number: int, share: float) -> str:
    return f"principal axis {number} ({100 * share:.0f} % of variance)"


def _check(panels: list[ByDomain], quality: ByDomain | None) -> None:
    domains = {domain: len(values) for domain, values in panels[0].items()}
    if not 1 <= len(domains) <= len(COLOURS):
        raise OutputError(f"{len(domains)} domains; a map of features has colours for 1 to {len(COLOURS)}")
    for panel in panels:
        for domain, values in panel.items():
            if np.ndim(values) != 2 or len(values) < 2 or np.shape(values)[1] < 2:
                raise OutputError(
                    f"features of {domain!r} are {np.shape(values)}; wanted (images, features), 2 or more"
                )
            if not np.isfinite(values).all():
                raise OutputError(f"features of {domain!r} hold NaN or infinity; leave those images out")
        if len({np.shape(values)[1] for values in panel.values()}) > 1:
            raise OutputError("domains have different numbers of features; give those of one network")
        if {domain: len(values) for domain, values in panel.items()} != domains:
            raise OutputError("before and after are not of the same domains and images")
    if quality is not None and {domain: np.shape(values) for domain, values in quality.items()} != {
        domain: (count,) for domain, count in domains.items()
    }:
        raise OutputError("quality wants one number for each image of each domain")
    if quality is not None and not all(np.isfinite(values).all() for values in quality.values()):
        raise OutputError("quality holds NaN or infinity; leave images without a score out")
