"""Pictures for people: where the score comes from, and what was judged. Numpy and Pillow only.

Axes: H W picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saqm.errors import OutputError
from saqm.image import Image
from saqm.patches import luminance
from saqm.writing import replacing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from saqm.scorer import QualityMap, Score

# Score 0 to 100: ColorBrewer's YlOrRd, nine classes, reversed (colorbrewer2.org, Harrower and Brewer 2003). Dark red is
# bad, pale yellow is good; lightness rises all the way, so that no colour vision is needed to read it.
RAMP = ("800026", "bd0026", "e31a1c", "fc4e2a", "fd8d3c", "feb24c", "fed976", "ffeda0", "ffffcc")
OPACITY = 0.5  # of the colours over the picture
LIFT = 0.35  # black is raised to this much of white under the colours: dark tissue must not make a good score look bad
DIMMED = 0.45  # brightness of what was not judged
OUTLINE = (0, 200, 255)  # the mask's edge: a cyan that neither a grey picture nor colour Doppler's red has
LEAST_SIDE = 512  # pixels; smaller pictures are enlarged by a whole factor, so that the numbers can be read
_PAPER, _INK = 24, 235  # grey levels of the margin and of the text in it


def save_heatmap(image: Image, quality_map: QualityMap, path: str | Path, score: Score | None = None) -> None:
    """Draw the map over the grey picture, with its colour bar (dark red 0, pale yellow 100) and the score, as PNG.

    What was not judged stays grey and is dimmed. With the suffix .npy the numbers are written instead: float32 (H, W),
    NaN where not judged. Raises OutputError where the path cannot be written, and what stood there is intact.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        with replacing(path) as beside, beside.open("wb") as file:
            np.save(file, quality_map.score_HW, allow_pickle=False)
        return
    grey_HW3 = np.repeat(luminance(image)[..., None], 3, 2)
    judged_HW1 = quality_map.weight_HW[..., None] > 0
    colours = colour(np.where(judged_HW1[..., 0], quality_map.score_HW, 0))
    under = 255 * LIFT + (1 - LIFT) * grey_HW3
    over = np.where(judged_HW1, (1 - OPACITY) * under + OPACITY * colours, DIMMED * grey_HW3)
    shown = quality_map.mean if score is None or score.score is None else score.score
    _save(_framed(_enlarged(over), f"score {shown:.1f}", colour_bar=True), path)


def save_mask_picture(image: Image, path: str | Path) -> None:
    """Draw the picture with the edge of its mask, what is not judged dimmed, and the share judged, as PNG.

    Raises OutputError where the path cannot be written, and what stood there is intact.
    """
    pixels = image.pixels if image.pixels.ndim == 3 else np.repeat(image.pixels[..., None], 3, 2)
    over = _enlarged(pixels * np.where(image.mask, 255, 255 * DIMMED)[..., None])
    over[_edge(_enlarged(image.mask))] = OUTLINE
    _save(_framed(over, f"judged {image.judged_share:.0%}", colour_bar=False), Path(path))


def colour(score: NDArray[np.floating]) -> NDArray[np.float64]:
    """The ramp's colour of each score, (..., 3), 0 to 255. Scores beyond 0 and 100 have the colour of the end."""
    levels = np.array([list(bytes.fromhex(code)) for code in RAMP], np.float64)
    at = np.linspace(0, 100, len(RAMP))
    return np.stack([np.interp(score, at, levels[:, channel]) for channel in range(3)], -1)


def _enlarged(picture: NDArray[np.generic]) -> NDArray[np.generic]:
    factor = -(-LEAST_SIDE // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _edge(mask_HW: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside of it, two wide; the picture's own border is none."""
    inner = mask = np.asarray(mask_HW, bool)
    for _ in range(2):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _framed(over_HW3: NDArray[np.generic], caption: str, *, colour_bar: bool) -> Picture:
    """The picture with a line of text above and, where asked for, the colour bar on the right."""
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    height, width = over_HW3.shape[:2]
    size = max(14, min(height, width) // 24)  # of the text, pixels
    font = ImageFont.load_default(size)
    top, right = round(1.8 * size), 4 * size if colour_bar else 0
    framed = pillow.new("RGB", (width + right, top + height + size // 2), (_PAPER,) * 3)
    framed.paste(pillow.fromarray(np.clip(np.rint(over_HW3), 0, 255).astype(np.uint8)), (0, top))
    draw = ImageDraw.Draw(framed)
    draw.text((size // 2, top // 2), caption, (_INK,) * 3, font, anchor="lm")
    if colour_bar:
        column = colour(np.linspace(100, 0, height))[:, None].repeat(size, 1)
        left = width + size // 2
        framed.paste(pillow.fromarray(np.rint(column).astype(np.uint8)), (left, top))
        for mark in (0, 25, 50, 75, 100):
            row = top + round((100 - mark) / 100 * (height - 1))
            draw.text((left + 1.5 * size, row), str(mark), (_INK,) * 3, font, anchor="lm")
    return framed


def _save(picture: Picture, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: a picture is written as .png (a map's numbers as .npy)")
    with replacing(path) as beside:
        picture.save(beside, format="PNG")
