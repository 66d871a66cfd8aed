"""Good photographs become a scored set: noise, then denoisers, with a full-reference metric in place of opinions.

What the SAQM paper's natural source was made of (TID2013's distortion 9), for whoever has the photographs and not the
opinions. The scores are a surrogate: what SSIM says of the difference to the photograph, and nobody's judgement.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from saqm.errors import ImageError, ManifestError, MissingExtra, OutputError
from saqm.image import Image, find_images, read_image
from saqm.manifest import Manifest, Row, Scale, read_manifest, write_manifest
from saqm.patches import PATCH_SIDE, luminance

DOMAIN = "natural-surrogate"
UNTOUCHED = "photograph"  # the method of the photographs themselves
CROP = (384, 512)  # rows, columns of what is taken from the middle; turned for an upright photograph. TID2013's size
LEAST_SIDE = 2 * PATCH_SIDE  # pixels: less holds too few windows to say anything of
NOISE_LEVELS = (10.0, 20.0, 30.0, 40.0)  # sd of white noise in grey levels of 255; ours, SSIM comes out at 0.5 to 0.97
LEVELS_EACH = 2  # noise levels that each denoiser meets in one photograph, drawn from those

Unit = NDArray[np.float64]  # luminance on 0..1, (H, W)


def wavelet(noisy: Unit, sd: float) -> Unit:
    """Soft thresholds of wavelet coefficients, one a band (BayesShrink: Chang, Yu, Vetterli, TIP 9(9) 2000).

    Wavelet and four scales are theirs; a small picture has as many scales as its shorter side holds.
    """
    denoise = _restoration().denoise_wavelet
    scales = min(4, int(np.log2(min(noisy.shape) / 15)))  # of a filter with 16 taps
    try:
        made: Unit = denoise(noisy, sigma=sd, wavelet="sym8", wavelet_levels=scales, method="BayesShrink")
        return made
    except ImportError as error:  # scikit-image runs without it, but for this function
        raise MissingExtra("PyWavelets", "train", "denoiser 'wavelet'") from error


def tv(noisy: Unit, sd: float) -> Unit:
    """Total variation (Chambolle, JMIV 20, 2004), its weight the noise's sd: the weight is ours."""
    made: Unit = _restoration().denoise_tv_chambolle(noisy, weight=sd)
    return made


def nlm(noisy: Unit, sd: float) -> Unit:
    """Non-local means (Buades et al. 2005), the fast one, with the settings of scikit-image's own example."""
    made: Unit = _restoration().denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.8 * sd, sigma=sd, fast_mode=True
    )
    return made


def bilateral(noisy: Unit, sd: float) -> Unit:
    """Bilateral filter (Tomasi, Manduchi 1998) over 7x7 pixels; twice the noise's sd in grey levels is ours."""
    made: Unit = _restoration().denoise_bilateral(noisy, win_size=7, sigma_color=2 * sd, sigma_spatial=2)
    return made


def bm3d(noisy: Unit, sd: float) -> Unit:
    """BM3D (Dabov et al., TIP 16(8) 2007), the denoiser of TID2013. Its package is free for non-commercial use only."""
    try:
        from bm3d import bm3d as package  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ManifestError(
            "denoiser 'bm3d' needs the package bm3d, which is for non-commercial use only and no part of saqm: "
            "pip install bm3d, or leave bm3d out"
        ) from error
    made: Unit = np.asarray(package(noisy, sd), np.float64)
    return made


DENOISERS: Mapping[str, Callable[[Unit, float], Unit]] = {
    "wavelet": wavelet,
    "tv": tv,
    "nlm": nlm,
    "bilateral": bilateral,
    "bm3d": bm3d,
}
DEFAULT_DENOISERS = ("wavelet", "tv", "nlm")


def surrogate(
    root: str | Path, out: str | Path, *, seed: int, denoisers: Sequence[str] = DEFAULT_DENOISERS
) -> Manifest:
    """A folder of good photographs as a scored set in `out`: PNGs, manifest.csv and its sidecar; that manifest.

    From the middle of each photograph CROP pixels (all of a smaller one), as luminance: next to grey targets colour
    would tell the domains apart, and an alignment would learn to hide colour, not texture. White noise of LEVELS_EACH
    of the NOISE_LEVELS for each denoiser, rounded to 8 bits, then denoised with the level known. The score is SSIM to
    the photograph on 0..1, 1 best, with the settings of Wang et al. 2004; nobody judged anything. The photographs are
    references and anchors: 1, raters 0. The same file, seed and denoisers give the same pictures.

    Raises ManifestError for no photograph, two of one name, or an unknown denoiser, ImageError for one that cannot be
    read or is too small, OutputError where `out` holds something, MissingExtra without scikit-image or PyWavelets.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    _check_denoisers(denoisers)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out}: is there already; name a new folder")
    if not root.is_dir():
        raise ManifestError(f"{root}: not a folder")
    paths = list(find_images([root]))
    if not paths:
        raise ManifestError(f"{root}: no picture in it; wanted a folder of good photographs")
    names = ["-".join(Path(path).relative_to(root).with_suffix("").parts) for path in paths]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ManifestError(f"{root}: several pictures are named {', '.join(twice)}; rename all but one")
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        rows = [
            row
            for path, name in zip(paths, names, strict=True)
            for row in _versions(read_image(path), name, beside, denoisers, seed)
        ]
        write_manifest(Manifest(tuple(rows), _scale(denoisers, seed)), beside / "manifest.csv")
        beside.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read_manifest(out / "manifest.csv")


def similarity(picture: NDArray[np.float64], original: NDArray[np.float64]) -> float:
    """SSIM of two pictures on 0..255, (H, W), -1 to 1, 1 where they are the same (Wang et al., TIP 13(4) 2004)."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingExtra("scikit-image", "train", "a surrogate score") from error
    return float(
        structural_similarity(
            picture, original, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
    )


def _versions(photograph: Image, name: str, folder: Path, denoisers: Sequence[str], seed: int) -> list[Row]:
    """One photograph and its denoised versions, written to `folder`."""
    original = _middle(photograph)
    # of the file alone, so that a photograph has the same versions whatever lies beside it
    rng = np.random.default_rng([seed, int(photograph.source.sha256[:16], 16)])
    made = [_written(original, 1.0, folder / f"{name}.png", name=name, method=UNTOUCHED)]
    for denoiser in denoisers:
        for level in np.sort(rng.choice(NOISE_LEVELS, LEVELS_EACH, replace=False)):
            noisy = _eight_bits(original + level * rng.standard_normal(original.shape))
            denoised = _eight_bits(255 * DENOISERS[denoiser](noisy / 255, level / 255))
            path = folder / f"{name}_{denoiser}_{level:.0f}.png"
            score = similarity(denoised, original)
            made.append(_written(denoised, score, path, name=name, method=denoiser, noise=level))
    return made


def _middle(photograph: Image) -> NDArray[np.float64]:
    """What is taken of a photograph: whole grey levels on 0..255, (H, W)."""
    grey = _eight_bits(luminance(photograph))
    if min(grey.shape) < LEAST_SIDE:
        height, width = grey.shape
        raise ImageError(
            f"{photograph.source.path}: {height}x{width} pixels; a surrogate wants at least {LEAST_SIDE}x{LEAST_SIDE}"
        )
    upright = grey.shape[0] > grey.shape[1]
    box = []
    for length, most in zip(grey.shape, CROP[::-1] if upright else CROP, strict=True):
        start = max(0, length - most) // 2
        box.append(slice(start, start + most))
    return grey[tuple(box)]


def _written(
    grey: NDArray[np.float64], score: float, path: Path, *, name: str, method: str, noise: float | None = None
) -> Row:
    PillowImage.fromarray(grey.astype(np.uint8)).save(path)
    return Row(
        path=path,
        score=score,
        scene=f"photograph-{name}",
        domain=DOMAIN,
        raters=0 if noise is None else None,
        reference=noise is None,
        method=method,
        aspects={} if noise is None else {"noise_sd": noise},
    )


def _eight_bits(grey: NDArray[np.floating]) -> NDArray[np.float64]:
    """As a file of 8 bits holds it: whole grey levels, what lies beyond black and white cut off."""
    return np.rint(np.clip(np.asarray(grey, np.float64), 0, 255))


def _scale(denoisers: Sequence[str], seed: int) -> Scale:
    packages = ("scikit-image", *(("bm3d",) if "bm3d" in denoisers else ()))
    programs = ", ".join(f"{package} {version(package)}" for package in packages)
    return Scale(
        low=0,
        high=1,
        name=f"surrogate: SSIM to the photograph, not an opinion; white noise of sd {NOISE_LEVELS[0]:g} to "
        f"{NOISE_LEVELS[-1]:g}, then {', '.join(denoisers)}; {programs}; seed {seed}",
        licence="that of the photographs" + ("; BM3D is for non-commercial use only" if "bm3d" in denoisers else ""),
        citation="Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE "
        "Transactions on Image Processing 13(4), 2004, doi 10.1109/TIP.2003.819861"
        + ("; Dabov et al., BM3D, ibid. 16(8), 2007, doi 10.1109/TIP.2007.901238" if "bm3d" in denoisers else ""),
    )


def _check_denoisers(denoisers: Sequence[str]) -> None:
    if not denoisers:
        raise ManifestError(f"no denoiser; choose of {', '.join(DENOISERS)}")
    for name in denoisers:
        if name not in DENOISERS:
            raise ManifestError(f"no denoiser {name!r}; known are {', '.join(DENOISERS)}")
    if len(set(denoisers)) < len(denoisers):
        raise ManifestError(f"denoisers {', '.join(denoisers)}: one stands there twice")


def _restoration() -> ModuleType:
    try:
        from skimage import restoration
    except ImportError as error:
        raise MissingExtra("scikit-image", "train", "a denoiser") from error
    made: ModuleType = restoration
    return made
