"""What readers are shown, on which scale, and in which order: all that is decided before the first rating."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from saqm.errors import ImageError, ManifestError
from saqm.image import Image, read_frames, read_image
from saqm.manifest import Row, Scale

# Recommendation ITU-R BT.500, absolute category rating: the words of the five-grade quality scale, worst first.
WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")
CATEGORIES = (1.0, float(len(WORDS)))  # the scale on which these are the only scores; any other is continuous
QUESTION = "How good is the quality of this image?"
REPEATED = 0.1  # share of the images shown twice
MOST_REPEATED = 0.5
LEAST_REPEATED = 5  # where any is: fewer tell nothing of a reader
REST = 4  # images / REST lie between the two showings of one, or more

Which = int | Literal["first", "middle"]  # frame of a file that holds several


@dataclass(frozen=True)
class Shown:
    """One image of a study: its row without score, its file's SHA-256, and its frame where the file holds several."""

    row: Row
    sha256: str
    frame: int | None = None


@dataclass(frozen=True)
class Study:
    """All that is decided before the first rating. scale: `name` is what readers are asked; 1 to 5 has five grades.

    repeats: share of the images that each reader is shown twice, 0 to MOST_REPEATED.
    """

    images: tuple[Shown, ...]
    scale: Scale
    seed: int
    repeats: float = REPEATED
    axis: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.repeats <= MOST_REPEATED:
            raise ManifestError(f"repeats {self.repeats:g}: a share of the images, 0 to {MOST_REPEATED}, is wanted")
        if not -math.inf < self.scale.low < self.scale.high < math.inf:
            raise ManifestError(f"scale {self.scale.low:g} {self.scale.high:g}: the lower end comes first")

    @property
    def graded(self) -> bool:
        """Whether the five grades are the only scores."""
        return (self.scale.low, self.scale.high) == CATEGORIES

    def order(self, reader: str) -> tuple[int, ...]:
        """The images as this reader is shown them, as indices: his own random order, some of them twice, far apart.

        The first half is seen once before any comes back; then, after another images / REST, the rest and the returns
        are mixed.
        """
        entropy = hashlib.sha256(reader.casefold().encode()).digest()
        rng = np.random.default_rng([self.seed, *entropy])
        shuffled = rng.permutation(len(self.images))
        half = len(shuffled) // 2
        count = max(LEAST_REPEATED, round(self.repeats * len(shuffled))) if self.repeats else 0
        again = rng.permutation(shuffled[:half])[:count]
        start = half + len(shuffled) // REST
        mixed = rng.permutation(np.concatenate([shuffled[start:], again]))
        return tuple(int(index) for index in (*shuffled[:start], *mixed))

    def refusal(self, score: object) -> str | None:
        """Why this is no score on the scale; None where it is one."""
        low, high = self.scale.low, self.scale.high
        if isinstance(score, bool) or not isinstance(score, int | float) or not low <= score <= high:
            return f"score {score!r}: a number from {low:g} to {high:g} is wanted"
        if self.graded and score != int(score):
            return f"score {score!r}: one of the grades {low:g} to {high:g} is wanted"
        return None

    def picture(self, image: int) -> Image:
        """The image as a model sees it. Raises ImageError, also where the file is not what it was."""
        shown = self.images[image]
        read = read_image(shown.row.path, shown.frame, mask="none", axis=self.axis)
        if read.source.sha256 != shown.sha256:
            raise ImageError(f"{shown.row.path}: changed since the study began")
        return read


def plan(
    rows: Sequence[Row],
    scale: Scale,
    *,
    seed: int,
    repeats: float = REPEATED,
    which: Which = "first",
    axis: int | None = None,
) -> tuple[Study, tuple[str, ...]]:
    """A study of the images that can be shown, and the reasons for those that cannot.

    which: the frame or slice of a file that holds several. Every file is decoded once. What rows say of opinions is
    dropped. Raises ManifestError where no image is left.
    """
    images: list[Shown] = []
    reasons: list[str] = []
    for row in rows:
        try:
            source = _chosen(row.path, which, axis).source
        except ImageError as error:
            reasons.append(str(error))
            continue
        blind = Row(row.path, None, row.scene, row.domain, reference=row.reference, method=row.method)
        images.append(Shown(blind, source.sha256, source.frame if source.frames > 1 else None))
    if not images:
        raise ManifestError("\n  ".join([f"none of {len(rows)} images can be shown", *reasons]))
    return Study(tuple(images), scale, seed, repeats, axis), tuple(reasons)


def _chosen(path: Path, which: Which, axis: int | None) -> Image:
    with closing(read_frames(path, mask="none", axis=axis)) as frames:  # type: ignore[type-var]
        first = next(frames)
    count = first.source.frames
    wanted = which if isinstance(which, int) else {"first": 0, "middle": count // 2}[which]
    if count == 1 or wanted == 0:
        return first
    return read_image(path, wanted, mask="none", axis=axis)
