"""Pictures for people: where the score comes from, what was judged, what a window attends to. Numpy and Pillow only.

Axes: H W picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saqm.errors import NotScorable, OutputError
from saqm.image import Image
from saqm.patches import luminance
from saqm.writing import replacing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as PlainFont

    from saqm.maps import Attention, QualityMap
    from saqm.scorer import Score

# Score 0 to 100: ColorBrewer's YlOrRd, nine classes, reversed (colorbrewer2.org, Harrower and Brewer 2003). Dark red is
# bad, pale yellow is good; lightness rises all the way, so that no colour vision is needed to read it.
RAMP = ("800026", "bd0026", "e31a1c", "fc4e2a", "fd8d3c", "feb24c", "fed976", "ffeda0", "ffffcc")
OPACITY, FAINT = 0.5, 0.1  # of the colours over the picture: where a pixel counts as the mean one or more; at least
LIFT = 0.35  # black is raised to this much of white under the colours: dark tissue must not make a good score look bad
DIMMED = 0.45  # brightness of what was not judged
OUTLINE = (0, 200, 255)  # the mask's edge: a cyan that neither a grey picture nor colour Doppler's red has
# A share of attention, 0 to its largest: ColorBrewer's Blues, nine classes, reversed; more is lighter.
SHARES = ("08306b", "08519c", "2171b5", "4292c6", "6baed6", "9ecae1", "c6dbef", "deebf7", "f7fbff")
SLIGHT = 0.05  # gamma below which the picture says that attention hardly matters: 5 % beside the position's own feature
HUNDRED = tuple((mark / 100, str(mark)) for mark in (0, 25, 50, 75, 100))
LEAST_SIDE = 512  # pixels; smaller pictures are enlarged by a whole factor, so that the numbers can be read
FAINTER = "the fainter a colour, the less it counts"
GAP = 12  # pixels between pictures side by side
_PAPER, _INK = 24, 235  # grey levels of the margin and of the text in it


def save_heatmap(image: Image, quality_map: QualityMap, path: str | Path, score: Score | None = None) -> None:
    """Draw the map over the grey picture, as PNG, with the score, its interval and its findings, and the colour bar.

    Dark red is 0, pale yellow is 100; the less a place counts in the map's mean, the fainter its colour. What was not
    judged stays grey and is dimmed. Raises NotScorable where the score says that the image was not scored, and
    OutputError where the path cannot be written, and what stood there is intact.
    """
    _save(heatmap(image, quality_map, score), Path(path))


def heatmap(image: Image, quality_map: QualityMap, score: Score | None = None) -> Picture:
    """The picture that `save_heatmap` writes. Raises NotScorable as it does."""
    refuse_unscored(score)
    shown = quality_map.mean if score is None or score.score is None else score.score
    bar = _Bar(RAMP, HUNDRED, shown / 100)
    return _framed(_enlarged(overlay(image, quality_map)), _caption(quality_map, score), bar)


def overlay(image: Image, quality_map: QualityMap) -> NDArray[np.float64]:
    """The map's colours over the grey picture, (H, W, 3), 0 to 255."""
    grey_HW3 = np.repeat(luminance(image)[..., None], 3, 2)
    judged_HW = quality_map.weight_HW > 0
    counts_HW = quality_map.weight_HW * np.count_nonzero(judged_HW)  # the mean pixel counts 1
    opacity_HW1 = np.clip(OPACITY * counts_HW, FAINT, OPACITY)[..., None]
    colours = colour(np.where(judged_HW, quality_map.score_HW, 0))
    under = 255 * LIFT + (1 - LIFT) * grey_HW3
    over = np.where(judged_HW[..., None], (1 - opacity_HW1) * under + opacity_HW1 * colours, DIMMED * grey_HW3)
    return np.asarray(over)


def refuse_unscored(score: Score | None) -> None:
    """Raise NotScorable for the record of an image that has no score: it has no map either."""
    if score is not None and score.status == "not_scored":
        raise NotScorable(f"{score.path}: was not scored, so it has no quality map: {'; '.join(score.reasons)}")


def save_mask_picture(image: Image, path: str | Path) -> None:
    """Draw the picture with the edge of its mask, what is not judged dimmed, and the share judged, as PNG.

    Raises OutputError where the path cannot be written, and what stood there is intact.
    """
    over = _enlarged(_coloured(image) * np.where(image.mask, 1, DIMMED)[..., None])
    over[_edge(_enlarged(image.mask))] = OUTLINE
    _save(_framed(over, [f"judged {image.judged_share:.0%}"]), Path(path))


def save_attention(image: Image, attention: Attention, path: str | Path) -> None:
    """Draw the picture with a window framed, that window, and what one position of it (framed) attends to, as PNG.

    The caption says how much that matters: gamma. Raises OutputError where the path cannot be written, and what stood
    there is intact.
    """
    (top, left), side = attention.corner, attention.side
    whole = _coloured(image)
    window = whole[top : top + side, left : left + side]
    largest = float(attention.weight_QQ.max())
    factor = -(-LEAST_SIDE // side)
    cell = side // len(attention.weight_QQ)
    shares = _ramped(np.kron(attention.weight_QQ / largest, np.ones((cell, cell))), SHARES)
    row, column = (cell * at for at in attention.query)
    tiles = [
        _fitted(_boxed(_enlarged(whole), _factor(whole), top, left, side), factor * side),
        *(_boxed(tile.repeat(factor, 0).repeat(factor, 1), factor, row, column, cell) for tile in (window, shares)),
    ]
    gap = np.full((factor * side, GAP, 3), _PAPER)
    strip = np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], 1)
    bar = _Bar(SHARES, ((0.0, "0"), (1.0, f"{largest:.0%}")))
    _save(_framed(strip, _attention_caption(attention, largest), bar), Path(path))


def colour(score: NDArray[np.floating]) -> NDArray[np.float64]:
    """The ramp's colour of each score, (..., 3), 0 to 255. Scores beyond 0 and 100 have the colour of the end."""
    return _ramped(np.asarray(score) / 100, RAMP)


class _Bar(NamedTuple):
    """A colour bar: its colours from 0 to 1, what is written beside which of them, and where a mark points at it."""

    ramp: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    mark: float | None = None


def _ramped(share: NDArray[np.floating], ramp: tuple[str, ...]) -> NDArray[np.float64]:
    levels = np.array([list(bytes.fromhex(code)) for code in ramp], np.float64)
    at = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(share, at, levels[:, channel]) for channel in range(3)], -1)


def _coloured(image: Image) -> NDArray[np.float64]:
    """The pixels as colours, (H, W, 3), 0 to 255."""
    pixels = image.pixels if image.pixels.ndim == 3 else np.repeat(image.pixels[..., None], 3, 2)
    return np.asarray(pixels * 255.0)


def _factor(picture: NDArray[np.generic]) -> int:
    return -(-LEAST_SIDE // int(max(picture.shape[:2])))


def _enlarged(picture: NDArray[np.generic]) -> NDArray[np.generic]:
    factor = _factor(picture)
    return picture.repeat(factor, 0).repeat(factor, 1)


def _boxed(picture: NDArray[np.generic], factor: int, top: int, left: int, side: int) -> NDArray[np.generic]:
    """The enlarged picture with a square of its pixels framed; given in pixels before it was enlarged."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[factor * top : factor * (top + side), factor * left : factor * (left + side)] = True
    picture = picture.copy()
    picture[_edge(inside)] = OUTLINE
    return picture


def _fitted(picture: NDArray[np.generic], height: int) -> NDArray[np.generic]:
    """The picture at a height, its width in proportion."""
    drawn = _pillow(picture)
    return np.asarray(drawn.resize((round(drawn.width * height / drawn.height), height)), np.float64)


def _edge(mask_HW: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside of it, two wide; the picture's own border is none."""
    inner = mask = np.asarray(mask_HW, bool)
    for _ in range(2):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _caption(quality_map: QualityMap, score: Score | None) -> list[str]:
    """What the picture of a map says above itself; of a finer map than the score's, what its own mean is."""
    if score is None or score.score is None:
        return [f"score {quality_map.mean:.1f}", FAINTER]
    lines = [f"score {score.score:.1f}"]
    if score.interval is not None:
        low, high = score.interval
        lines[0] += f", {low:.0f} to {high:.0f}"
        lines[0] += " with no promise" if score.coverage is None else f" at {score.coverage:.0%}"
    if (score.out_of_domain or {}).get("flag"):
        lines.append("unlike the images that the model was trained on")
    if score.findings:
        lines.append(", ".join(str(finding["name"]) for finding in score.findings))
    if score.preparation is not None and score.preparation.get("stride") != quality_map.stride:
        lines.append(f"map every {quality_map.stride} pixels: its own mean is {quality_map.mean:.1f}")
    return [*lines, FAINTER]


def _attention_caption(attention: Attention, largest: float) -> list[str]:
    top, left = attention.corner
    slight = ": attention hardly matters here" if abs(attention.gamma) < SLIGHT else ""
    return [
        f"window at row {top}, column {left}: what its position {attention.query} attends to, at most {largest:.1%} of "
        f"it in one place ({1 / attention.weight_QQ.size:.1%} if it preferred none)",
        f"gamma: what it attends to counts {attention.gamma:.2g}, its own feature 1{slight}",
    ]


def _wrapped(text: str, font: FreeTypeFont | PlainFont, width: int) -> Iterator[str]:
    """The text in lines no longer than `width` pixels, broken between words."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}".lstrip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _pillow(picture_HW3: NDArray[np.generic]) -> Picture:
    from PIL import Image as pillow

    return pillow.fromarray(np.clip(np.rint(picture_HW3), 0, 255).astype(np.uint8))


def _framed(over_HW3: NDArray[np.generic], caption: list[str], bar: _Bar | None = None) -> Picture:
    """The picture with lines of text above and, where there is one, the colour bar on the right."""
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    height, width = over_HW3.shape[:2]
    size = max(14, min(height, width) // 24)  # of the text, pixels
    font = ImageFont.load_default(size)
    lines = [part for line in caption for part in _wrapped(line, font, width - size)]
    step = round(1.5 * size)
    top, right = step * len(lines), 4 * size if bar else 0
    framed = pillow.new("RGB", (width + right, top + height + size // 2), (_PAPER,) * 3)
    framed.paste(_pillow(over_HW3), (0, top))
    draw = ImageDraw.Draw(framed)
    for number, line in enumerate(lines):
        draw.text((size // 2, number * step + step // 2), line, (_INK,) * 3, font, anchor="lm")
    if bar:
        left, last = width + size // 2, height - 1
        framed.paste(_pillow(_ramped(np.linspace(1, 0, height), bar.ramp)[:, None].repeat(size, 1)), (left, top))
        for at, text in bar.ticks:
            draw.text((left + 1.5 * size, top + round((1 - at) * last)), text, (_INK,) * 3, font, anchor="lm")
        if bar.mark is not None:
            row, half = top + round((1 - min(max(bar.mark, 0.0), 1.0)) * last), size // 3
            draw.polygon([(left, row), (left - half, row - half), (left - half, row + half)], (_INK,) * 3)
    return framed


def _save(picture: Picture, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: a picture is written as .png")
    with replacing(path) as beside:
        picture.save(beside, format="PNG")
