"""Ways a picture gets worse, by known amounts: ladders for training, for the demo and for tests of meaning.

Every function takes luminance on 0..255, (H, W), and gives the same back, clipped to 0..255. Strength 0 is the picture.
Blur, median and shrink stand for over-smoothing; none of them is a denoiser of the reader study.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

# Strengths from slight to heavy. noise, grain: standard deviation in grey levels; blur: in pixels;
# compression: 100 - JPEG quality; median: side of the window; shrink: factor of a resampling down and up again.
LADDERS: Mapping[str, tuple[float, ...]] = {
    "noise": (2.0, 5.0, 10.0, 20.0),
    "grain": (2.0, 5.0, 10.0, 20.0),
    "blur": (0.7, 1.2, 2.0, 3.0),
    "compression": (50.0, 75.0, 90.0, 95.0),
    "median": (3.0, 5.0, 7.0),
    "shrink": (1.5, 2.0, 3.0),
}


def noise(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """White Gaussian noise of the given standard deviation (grey levels)."""
    return _clip(picture + strength * rng.standard_normal(picture.shape, dtype=np.float32))


def grain(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Noise whose neighbours agree, as after a soft reconstruction kernel; `strength` is its standard deviation."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(rng.standard_normal(picture.shape, dtype=np.float32), 0.8, mode="wrap")
    return _clip(picture + strength * field / field.std())


def blur(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:  # noqa: ARG001
    """Gaussian blur of the given standard deviation (pixels)."""
    from scipy import ndimage

    return _clip(ndimage.gaussian_filter(picture, strength, mode="nearest") if strength else picture)


def compression(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:  # noqa: ARG001
    """JPEG at quality 100 - strength."""
    if not strength:
        return _clip(picture)
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.rint(_clip(picture)).astype(np.uint8)).save(file, "JPEG", quality=round(100 - strength))
    return np.asarray(Image.open(file), np.float32)


def median(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:  # noqa: ARG001
    """Median over a square window of the given side (pixels)."""
    from scipy import ndimage

    side = round(strength)
    return _clip(ndimage.median_filter(picture, size=side, mode="nearest") if side > 1 else picture)


def shrink(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:  # noqa: ARG001
    """Resampled down by the given factor and up again: fine detail lost, edges kept soft."""
    if strength <= 1:
        return _clip(picture)
    from PIL import Image

    height, width = picture.shape
    small = (max(1, round(width / strength)), max(1, round(height / strength)))
    once = Image.fromarray(np.asarray(picture, np.float32)).resize(small, Image.Resampling.BICUBIC)
    return _clip(np.asarray(once.resize((width, height), Image.Resampling.BICUBIC), np.float32))


DEGRADATIONS: Mapping[str, Callable[[Picture, float, np.random.Generator], Picture]] = {
    "noise": noise,
    "grain": grain,
    "blur": blur,
    "compression": compression,
    "median": median,
    "shrink": shrink,
}


def _clip(picture: NDArray[np.floating]) -> Picture:
    clipped: Picture = np.clip(picture, 0, 255).astype(np.float32)
    return clipped
