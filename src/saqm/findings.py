"""What is wrong with a picture, by name: simple measures, each against the range that good pictures keep.

    for finding in findings(read_image("scan.dcm")):
        print(finding["name"], finding["value"], finding["unit"])

A finding says that one measure lies outside that range: no diagnosis, no cause proven, no score. What is measured, the
thresholds by modality and the DICOM code of each finding stand in one table, CAUSES; where the thresholds come from and
how often each finding is right is measured by benchmarks/findings.py and told in docs/findings.md.

Only pixels inside the image's mask count. Grey levels are luminance on 0..255 as shown: after the window, and never
rounded. Axes: H W the box around the mask, W windows of 8x8 pixels that lie whole inside the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from saqm.image import Image
from saqm.patches import BINOMIAL, luminance

SIDE = 8  # pixels, side of a window
LEAST_PIXELS = 1024  # judged pixels below which nothing is measured
LEAST_SIDE = 16  # pixels; nothing is measured in a strip thinner than this
LEAST_WINDOWS = 32  # windows below which no texture is measured
QUIET = 10  # percentile over the windows: the quietest tenth holds little but noise
STRUCTURED = 70  # percentile of middle detail from which a window holds edges
CLIPPED_SHARE = 0.1  # a window with more clipped pixels than this says nothing of texture
WHITE, BLACK = 254.5, 0.5  # grey levels from which an 8-bit screen shows white, and up to which it shows black
BLOCK = 8  # pixels; JPEG, MPEG-2 and H.264 code blocks of this side
TALLEST_JUMP = 3.0  # mean jumps; edges of the subject count no more than this
FINEST_STEP = 1 / 16  # grey levels; finer steps are no banding anybody could see
LEAST_BLANK = 16  # pixels, least side of a rectangle of one value that counts as missing
RECTANGULAR = 0.95  # share of its bounding box that such an area fills
LIGHTEST_PADDING = 51.0  # grey levels; a bar up to this is padding: a fifth of white, where saqm.image ends air
BACKGROUND = 0.1  # share of the line beside a bar from which the bar's value is that of the background
WIDEST_WINDOW = 400.0  # HU; the usual one for soft tissue: a wider one hides the grain that CT has
DEFAULT = "default"  # modalities that are not named, and pictures whose file names none

# What white noise of sd 1 leaves in the two bands: 1 - 2 c^2 + (sum of squares)^2 with the taps of BINOMIAL, and the
# 36 of Immerkaer's mask.
_FINE_GAIN = math.sqrt(1 - 2 * float(BINOMIAL[2]) ** 2 + float((BINOMIAL**2).sum()) ** 2)
_FINEST_GAIN = 6.0

Direction = Literal["above", "below"]
Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]
Energies = NDArray[np.float64]


# The measures: each takes what is judged and gives its value, or None where it cannot be measured.


@dataclass(frozen=True, eq=False)
class Judged:
    """The part of an image that the measures see, and what several of them need, made when the first one asks.

    image: the whole. box: rows and columns around its mask.
    """

    image: Image
    box: tuple[slice, slice]

    @classmethod
    def of(cls, image: Image) -> Judged | None:
        """None where there is too little: fewer than LEAST_PIXELS pixels, or less than LEAST_SIDE along an axis."""
        if np.count_nonzero(image.mask) < LEAST_PIXELS:
            return None
        lines = (np.flatnonzero(image.mask.any(axis)) for axis in (1, 0))
        rows, columns = (slice(int(at[0]), int(at[-1]) + 1) for at in lines)
        return (
            cls(image, (rows, columns))
            if min(rows.stop - rows.start, columns.stop - columns.start) >= LEAST_SIDE
            else None
        )

    @cached_property
    def grey(self) -> Grey:
        """The luminance of the whole picture."""
        return luminance(self.image)

    @cached_property
    def grey_HW(self) -> Grey:
        return np.ascontiguousarray(self.grey[self.box])

    @cached_property
    def mask_HW(self) -> Mask:
        return np.ascontiguousarray(self.image.mask[self.box])

    @cached_property
    def inside_N(self) -> Grey:
        """The judged pixels."""
        return self.grey_HW[self.mask_HW]

    @cached_property
    def smooth_HW(self) -> Grey:
        return _low_pass(self.grey_HW, 1)

    @cached_property
    def rectangles_HW(self) -> Mask:
        """The judged pixels that lie in rectangles of one value."""
        return _blank_rectangles(self.grey_HW) & self.mask_HW

    @cached_property
    def usable(self) -> Mask:
        """Which windows lie whole inside the mask, and are neither clipped nor empty."""
        whole = _window_means(self.mask_HW & ~self.rectangles_HW) == 1
        clipped = _window_means((self.grey_HW <= BLACK) | (self.grey_HW >= WHITE))
        return np.asarray(whole & (clipped <= CLIPPED_SHARE), np.bool_)

    @cached_property
    def fine_W(self) -> Energies | None:
        """What the low-pass takes away."""
        return self.energies(self.grey_HW - self.smooth_HW)

    def energies(self, band_HW: Grey) -> Energies | None:
        """Mean square of a band in each usable window, (W,); None with fewer than LEAST_WINDOWS of them."""
        energies_W = _window_means(band_HW * band_HW)[self.usable]
        return energies_W if len(energies_W) >= LEAST_WINDOWS else None


def noise(judged: Judged) -> float | None:
    """Standard deviation of noise from pixel to pixel, in grey levels: higher is noisier.

    Root mean square of Immerkaer's mask (1996, Computer Vision and Image Understanding 64(2)) in the quietest tenth of
    the windows, so that edges and texture do not count. White noise is read true; noise that spreads over neighbours
    (a soft kernel, a resampled picture) reads low: see `grain`.
    """
    second = np.diff(np.diff(judged.grey_HW, 2, axis=0), 2, axis=1)
    energies = judged.energies(np.pad(second, 1, mode="edge"))
    return None if energies is None else _quiet_sd(energies) / _FINEST_GAIN


def grain(judged: Judged) -> float | None:
    """Standard deviation of fine detail in the quietest tenth of the windows, in grey levels of white noise.

    What a low-pass of five binomial taps takes away. Sees noise that spreads over two or three pixels as well, as CT
    has it, but takes speckle and texture for grain. Too much is noise, too little over-smoothing.
    """
    return None if judged.fine_W is None else _quiet_sd(judged.fine_W) / _FINE_GAIN


def smoothed_grain(judged: Judged) -> float | None:
    """`grain`, where its absence tells something: not where a window wider than WIDEST_WINDOW hides it."""
    widths = [step.details.get("width") for step in judged.image.source.steps if step.name == "window"]
    hidden = any(isinstance(width, int | float) and width > WIDEST_WINDOW for width in widths)
    return None if hidden else grain(judged)


def sharpness(judged: Judged) -> float | None:
    """Fine detail over middle detail where there is structure: lower is blurrier. A ratio of two amplitudes.

    In the windows with the most middle detail (the upper 30%): sharp edges and texture hold both, blurred ones little
    fine detail. Free of brightness and contrast; but pixels that were interpolated up read as blurred, which they are.
    """
    fine = judged.fine_W
    middle = judged.energies(judged.smooth_HW - _low_pass(judged.smooth_HW, 2))
    if fine is None or middle is None:
        return None
    structured = middle >= np.percentile(middle, STRUCTURED)
    total = float(middle[structured].sum())
    return math.sqrt(float(fine[structured].sum()) / total) if total > 0 else None


def contrast(judged: Judged) -> float:
    """From the 5th to the 95th percentile of the judged pixels, lightly smoothed, in grey levels: lower is flatter."""
    low, high = np.percentile(judged.smooth_HW[judged.mask_HW], (5, 95))
    return float(high - low)


def white(judged: Judged) -> float:
    """Percentage of the judged pixels that are shown white."""
    return 100 * float((judged.inside_N >= WHITE).mean())


def black(judged: Judged) -> float:
    """Percentage of the judged pixels that are shown black."""
    return 100 * float((judged.inside_N <= BLACK).mean())


def banding(judged: Judged) -> float | None:
    """Typical step from a grey level that occurs to the next that does, in grey levels: higher is coarser.

    The median over the judged pixels; 1 for an honest 8-bit picture, less for more bits. Of a colour picture, the
    channel with the finest steps. None where every judged pixel is the same.
    """
    inside = judged.image.pixels[judged.image.mask].reshape(len(judged.inside_N), -1)
    steps = [step for channel in inside.T if (step := _median_step(channel * np.float32(255))) is not None]
    return min(steps, default=None)


def blocking(judged: Judged) -> float | None:
    """By how much jumps between neighbours are larger across a grid of 8x8 pixels than beside it, %: 0 without one.

    Of the eight places where the grid may lie, the one with the largest jumps stands against the next: an enlarged
    picture repeats every other pixel, not every eighth alone. Of the two axes the fainter counts: stripes of the
    subject run along one. None where nothing changes between neighbours.
    """
    counted_HW = judged.mask_HW & ~judged.rectangles_HW
    across, along = _grid_excess(judged.grey_HW, counted_HW), _grid_excess(judged.grey_HW.T, counted_HW.T)
    return None if across is None or along is None else min(across, along)


def missing(judged: Judged) -> float:
    """Percentage of the picture to be judged that is empty: rectangles and lines of exactly one value.

    Rectangles of at least 16 pixels a side inside the mask; rows and columns of it that hold one value, between others
    that do not; and bars of one grey along a whole side of the picture that cut it off, as a broken file leaves them.
    Black and white bars are as often padding: they are not counted.
    """
    rows = _blank_rows(judged.grey_HW, judged.mask_HW)
    columns = _blank_rows(judged.grey_HW.T, judged.mask_HW.T).T
    inside = int(np.count_nonzero(judged.rectangles_HW | rows | columns))
    bars = _bars(judged.grey, judged.image.mask)
    return 100 * (inside + bars) / (len(judged.inside_N) + bars)


# The table


@dataclass(frozen=True)
class Code:
    """A coded concept of DICOM, as a structured report takes it."""

    value: str
    scheme: str
    meaning: str


OTHER = Code("111215", "DCM", "Artifact(s) other than grid or detector artifact")
PROCESSING = Code("111219", "DCM", "Inappropriate image processing")
UNDER_EXPOSED = Code("111211", "DCM", "Under exposed")
OVER_EXPOSED = Code("111212", "DCM", "Over exposed")
POOR_SNR = Code("130578", "DCM", "Poor SNR")
INCOMPLETE = Code("130576", "DCM", "Anatomy coverage incomplete")


@dataclass(frozen=True)
class Cause:
    """One thing that can be wrong.

    measure: of what is judged, to a value in `unit`; None where it cannot be measured. `measured` says it in words.
    direction: on which side of the threshold the finding lies. thresholds: by modality, DEFAULT for the others; a
    modality without any is not judged. codes: DICOM's quality finding (CID 6135; for MR also CID 6315), likewise.
    advice: for people: what it looks like, and what to do.
    """

    measure: Callable[[Judged], float | None]
    measured: str
    unit: str
    direction: Direction
    thresholds: Mapping[str, float]
    codes: Mapping[str, Code]
    advice: str

    def threshold(self, modality: str | None) -> float | None:
        return self.thresholds.get(modality or DEFAULT, self.thresholds.get(DEFAULT))

    def code(self, modality: str | None) -> Code:
        return self.codes.get(modality or DEFAULT, self.codes[DEFAULT])

    def excess(self, value: float, threshold: float) -> float:
        """How many times beyond the threshold: above 1 is a finding."""
        if self.direction == "above":
            return value / threshold
        return threshold / value if value > 0 else math.inf


CAUSES: Mapping[str, Cause] = {
    "noise": Cause(
        measure=noise,
        measured="noise from pixel to pixel in the quietest windows",
        unit="grey levels",
        direction="above",
        thresholds={DEFAULT: 7.9, "CT": 2.9, "US": 4.1},
        codes={DEFAULT: OTHER, "MR": POOR_SNR},
        advice="Noise hides faint detail: check dose, signal averages or gain, or denoise with care.",
    ),
    "grain": Cause(
        measure=grain,
        measured="fine detail in the quietest windows",
        unit="grey levels",
        direction="above",
        thresholds={"CT": 9.6},
        codes={DEFAULT: OTHER},
        advice="More grain than a normal-dose slice: check dose, slice thickness and kernel, and whether the window is "
        "narrower than usual.",
    ),
    "over-smoothing": Cause(
        measure=smoothed_grain,
        measured="fine detail in the quietest windows",
        unit="grey levels",
        direction="below",
        thresholds={"CT": 4.0},
        codes={DEFAULT: PROCESSING},
        advice="Texture is missing that a slice of this kind has: lower the strength of the denoiser, or look at the "
        "slice before it.",
    ),
    "blur": Cause(
        measure=sharpness,
        measured="fine over middle detail in the structured windows",
        unit="ratio",
        direction="below",
        thresholds={DEFAULT: 0.43, "CT": 0.53, "US": 0.48},
        codes={DEFAULT: OTHER},
        advice="Edges are soft: look for motion, focus, a soft kernel, or a picture that was enlarged.",
    ),
    "low-contrast": Cause(
        measure=contrast,
        measured="spread of the grey levels, 5th to 95th percentile",
        unit="grey levels",
        direction="below",
        thresholds={DEFAULT: 37.0, "CT": 150.0, "US": 46.0},
        codes={DEFAULT: OTHER},
        advice="The picture uses few of the grey levels there are: take a narrower window, or check gain and exposure.",
    ),
    "white-clipping": Cause(
        measure=white,
        measured="judged pixels shown white",
        unit="%",
        direction="above",
        thresholds={DEFAULT: 35.0, "CT": 35.0, "US": 2.8},
        codes={DEFAULT: PROCESSING, "CR": UNDER_EXPOSED, "DX": UNDER_EXPOSED, "MG": UNDER_EXPOSED},
        advice="Bright areas are plain white, without detail: widen or raise the window, or check gain and exposure.",
    ),
    "black-clipping": Cause(
        measure=black,
        measured="judged pixels shown black",
        unit="%",
        direction="above",
        thresholds={DEFAULT: 65.0, "CT": 65.0, "US": 22.0},
        codes={DEFAULT: PROCESSING, "CR": OVER_EXPOSED, "DX": OVER_EXPOSED, "MG": OVER_EXPOSED},
        advice="Dark areas are plain black, without detail: widen or lower the window, or check gain and exposure.",
    ),
    "banding": Cause(
        measure=banding,
        measured="typical step between grey levels that occur",
        unit="grey levels",
        direction="above",
        thresholds={DEFAULT: 3.8},
        codes={DEFAULT: PROCESSING},
        advice="Too few grey levels: soft shading breaks into steps; go back to the file with its full bit depth.",
    ),
    "blocking": Cause(
        measure=blocking,
        measured="how much larger jumps are across a grid of 8x8 pixels than beside it",
        unit="%",
        direction="above",
        thresholds={DEFAULT: 5.3, "US": 46.0},
        codes={DEFAULT: PROCESSING},
        advice="A grid of 8x8 pixels, the trace of lossy compression (JPEG, video): go back to the file before it, or "
        "compress less.",
    ),
    "missing-content": Cause(
        measure=missing,
        measured="what should be judged but is one single value in rectangles, lines or bars",
        unit="%",
        direction="above",
        thresholds={DEFAULT: 0.54},
        codes={DEFAULT: OTHER, "MR": INCOMPLETE},
        advice="Part of the picture is empty: look for lost lines, a broken transfer, or areas painted over.",
    ),
}


# What is found


def evidence(image: Image) -> dict[str, float]:
    """The value of every cause that can be measured on this picture, in the order of CAUSES, whatever its threshold.

    Empty where there is too little to judge (`Judged.of`).
    """
    judged = Judged.of(image)
    if judged is None:
        return {}
    values = {name: cause.measure(judged) for name, cause in CAUSES.items()}
    return {name: value for name, value in values.items() if value is not None}


def findings(image: Image) -> tuple[Mapping[str, object], ...]:
    """What is wrong with the picture, worst first: by how many times a value lies beyond its threshold.

    Each is {"name", "value", "unit", "threshold", "direction" ("above" or "below" the threshold), "code" (of DICOM)}.
    Empty where nothing stands out, and where there is too little to measure: no finding is no proof of quality.
    """
    found = []
    for name, value in evidence(image).items():
        cause = CAUSES[name]
        threshold = cause.threshold(image.modality)
        if threshold is not None and (excess := cause.excess(value, threshold)) > 1:
            found.append((excess, _record(name, value, threshold, image.modality)))
    return tuple(record for _, record in sorted(found, key=lambda each: -each[0]))


def _record(name: str, value: float, threshold: float, modality: str | None) -> Mapping[str, object]:
    cause = CAUSES[name]
    code = cause.code(modality)
    return {
        "name": name,
        "value": value,
        "unit": cause.unit,
        "threshold": threshold,
        "direction": cause.direction,
        "code": {"value": code.value, "scheme": code.scheme, "meaning": code.meaning},
    }


# What the measures are made of


def _low_pass(grey_HW: Grey, dilation: int) -> Grey:
    """Five binomial taps, `dilation` apart, along both axes; borders repeat the edge pixel."""
    taps = np.zeros(4 * dilation + 1, np.float32)
    taps[::dilation] = BINOMIAL
    for axis in (0, 1):
        grey_HW = ndimage.correlate1d(grey_HW, taps, axis, mode="nearest")
    return grey_HW


def _window_means(values_HW: NDArray[np.generic]) -> Energies:
    """Means over the windows that fit."""
    rows, columns = (side // SIDE for side in values_HW.shape)
    whole = values_HW[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE)
    return np.asarray(whole.mean((1, 3), dtype=np.float64))


def _quiet_sd(energies_W: Energies) -> float:
    return math.sqrt(float(np.percentile(energies_W, QUIET)))


def _median_step(levels_N: NDArray[np.floating]) -> float | None:
    """Median over the pixels of the step from their grey level to the next that occurs; None for a single level."""
    counts = np.bincount(np.rint(levels_N / FINEST_STEP).astype(np.intp))
    levels = np.flatnonzero(counts)
    steps, weights = np.diff(levels), counts[levels[:-1]]
    if not len(steps):
        return None
    order = np.argsort(steps, kind="stable")
    reached = weights[order].cumsum()
    return float(steps[order][np.searchsorted(reached, reached[-1] / 2)]) * FINEST_STEP


def _grid_excess(grey_HW: Grey, mask_HW: Mask) -> float | None:
    """By how much the mean jump between columns is larger at one of the grid's eight places than at any other, %."""
    counted = mask_HW[:, 1:] & mask_HW[:, :-1]
    jumps = np.abs(np.diff(grey_HW, axis=1)) * counted
    pairs = counted.sum(0)
    if not jumps.any():
        return None
    sums = np.minimum(jumps, TALLEST_JUMP * jumps.sum(dtype=np.float64) / pairs.sum()).sum(0, dtype=np.float64)
    place = np.arange(len(sums)) % BLOCK
    sums_8, pairs_8 = (np.bincount(place, each, BLOCK) for each in (sums, pairs))
    if not pairs_8.all():
        return None
    second, first = np.sort(sums_8 / pairs_8)[-2:]
    return 100 * float(first / second - 1) if second > 0 else None


def _blank_rectangles(grey_HW: Grey) -> Mask:
    """Rectangles of exactly one value, at least LEAST_BLANK pixels a side."""
    blank = np.zeros(grey_HW.shape, np.bool_)
    beside = grey_HW[:, 1:] == grey_HW[:, :-1]
    below = grey_HW[1:, 1:] == grey_HW[:-1, 1:]
    same = beside[1:] & beside[:-1] & below  # squares of 2x2 pixels; neighbours share two, so a component has one value
    labels, _ = ndimage.label(same)
    areas = np.bincount(labels.ravel())
    least = LEAST_BLANK - 1
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero(areas[1:] >= RECTANGULAR * least**2) + 1:
        rows, columns = boxes[label - 1]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) >= least and areas[label] >= RECTANGULAR * height * width:
            blank[rows.start : rows.stop + 1, columns.start : columns.stop + 1] = True
    return blank


def _blank_rows(grey_HW: Grey, mask_HW: Mask) -> Mask:
    """The judged pixels of rows that hold one value, between rows that do not: those at the rim are background."""
    highest = np.where(mask_HW, grey_HW, -np.inf).max(1)
    lowest = np.where(mask_HW, grey_HW, np.inf).min(1)
    blank = (highest == lowest) & (mask_HW.sum(1) >= LEAST_BLANK)
    alive = np.flatnonzero(highest > lowest)
    if len(alive):
        blank[: alive[0]] = blank[alive[-1] :] = False
    return np.asarray(blank[:, None] & mask_HW, np.bool_)


def _bars(grey: Grey, mask: Mask) -> int:
    """Unjudged pixels in bars of one value at the four sides of the picture, where they cut it off.

    Dark and white bars are padding; a bar that goes on beside the subject, in the line next to it, is background.
    """
    bars = np.zeros(grey.shape, np.bool_)
    for turned, marked in ((grey, bars), (grey[::-1], bars[::-1]), (grey.T, bars.T), (grey.T[::-1], bars.T[::-1])):
        level = turned[0, 0]
        differs = (turned != level).any(1)
        thick = int(differs.argmax())
        if thick and LIGHTEST_PADDING < level < WHITE and (turned[thick] == level).mean() < BACKGROUND:
            marked[:thick] = True
    return int(np.count_nonzero(bars & ~mask))
