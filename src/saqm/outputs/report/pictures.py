"""Pictures for the page, small enough to be mailed: thumbnails, and for the worst a larger one with its map.

Axes: H W picture.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import SaqmError
from saqm.image import Image, MaskMode, read_frames, read_image
from saqm.outputs.heatmap import overlay
from saqm.outputs.table import Record

if TYPE_CHECKING:
    from saqm.maps import QualityMap
    from saqm.scorer import ModelScorer

THUMBNAILS = 1000  # images with a small picture: some 4 MB
SMALL, LARGE = 128, 512  # longest side, pixels
JPEG_QUALITY = {SMALL: 70, LARGE: 85}
SAME_SCORE = 0.05  # points between the record's score and the map's; engines differ by less


@dataclass(frozen=True)
class Pictures:
    """What the page shows.

    images: each with `thumbnail`, `picture`, `map`, `map_row`, `aspect`, `size` and `note`, as far as there.
    of_row: for each row the number of its image, None where it has none.
    """

    images: list[dict[str, object]] = field(default_factory=list)
    of_row: list[int | None] = field(default_factory=list)


def pictures_of(
    rows: Sequence[Record],
    order: Sequence[int],
    large: int,
    scorer: ModelScorer | None,
    on_image: Callable[[int, int], None] | None,
) -> Pictures:
    """Read the first images of `order` (one row each) and draw them: all of them small, the first `large` large too.

    An image is read as it was when it was scored. Where its file is gone or another, its note says so.
    """
    wanted = order[: max(THUMBNAILS, large)]
    images: list[dict[str, object]] = [{} for _ in wanted]
    done = 0
    for places in _by_file(rows, wanted).values():
        with_map = scorer is not None and min(places) < large
        for place, image in _opened(rows, wanted, places, with_map=with_map):
            row = wanted[place]
            images[place] = (
                {"note": image}
                if isinstance(image, str)
                else _drawn(image, rows[row], row, scorer if place < large else None, is_large=place < large)
            )
            done += 1
            if on_image is not None:
                on_image(done, len(wanted))
    place_of = {_key(rows[row]): place for place, row in enumerate(wanted)}
    return Pictures(images, [place_of.get(_key(row)) for row in rows])


def _key(row: Record) -> tuple[object, object]:
    return row["path"], row.get("frame")


def _by_file(rows: Sequence[Record], wanted: Sequence[int]) -> dict[object, list[int]]:
    """The places in `wanted` of each file's images: a file is opened once."""
    files: dict[object, list[int]] = defaultdict(list)
    for place, row in enumerate(wanted):
        files[rows[row]["path"]].append(place)
    return files


def _opened(
    rows: Sequence[Record], wanted: Sequence[int], places: list[int], *, with_map: bool
) -> Iterator[tuple[int, Image | str]]:
    """Each place with its image, or with the reason why there is none."""
    left = {rows[wanted[place]].get("frame"): place for place in places}
    first = rows[wanted[places[0]]]
    path = str(first["path"])
    try:
        reading = _reading(first, with_map=with_map)
        if len(left) == 1:
            frame = next(iter(left))
            found: Iterator[Image] = iter([read_image(path, frame if isinstance(frame, int) else None, **reading)])
        else:
            found = read_frames(path, **reading)
        for image in found:
            if image.source.frame in left:
                place = left.pop(image.source.frame)
                same = image.source.sha256 == rows[wanted[place]].get("sha256")
                yield place, image if same else "the file is no longer the one that was scored"
            if not left:
                return
        reason = "the file has no such frame any more"
    except Exception as error:  # decoders raise whatever they like on broken bytes; that must not cost the report
        reason = str(error) if isinstance(error, SaqmError) else f"{type(error).__name__}: {error}"
    for place in left.values():
        yield place, reason.removeprefix(f"{path}: ")


def _reading(row: Record, *, with_map: bool) -> dict[str, Any]:
    """The options of `read_image` with which the row's image was read, as its preparation tells them.

    Only a map needs to know what was judged; a picture shows it all.
    """
    preparation = row.get("preparation")
    if not isinstance(preparation, Mapping):
        return {"mask": "auto" if with_map else "none"}
    window, mask = (part if isinstance(part := preparation.get(k), Mapping) else {} for k in ("window", "mask"))
    steps = preparation.get("steps")
    axes = [step.get("axis") for step in steps or () if isinstance(step, Mapping) and step.get("step") == "orientation"]
    mode: MaskMode = "auto" if with_map and mask.get("mode") != "none" else "none"
    return {
        "window": (window["center"], window["width"]) if window.get("from") == "caller" else None,
        "axis": axes[0] if axes else None,
        "mask": mode,
    }


def _drawn(image: Image, row: Record, number: int, scorer: ModelScorer | None, *, is_large: bool) -> dict[str, object]:
    pixels = _levels(255 * image.pixels)
    height, width = pixels.shape[:2]
    down, right = image.spacing_mm or (1.0, 1.0)
    made: dict[str, object] = {"thumbnail": _jpeg(pixels, SMALL), "aspect": round(width * right / (height * down), 4)}
    if is_large:
        made |= {"picture": _jpeg(pixels, LARGE), "size": [width, height]}
    if scorer is not None:
        drawn = _map(image, row, scorer)
        made |= (
            {"note": f"No map: {drawn}."}
            if isinstance(drawn, str)
            else {"map": _jpeg(_levels(overlay(image, drawn)), LARGE), "map_row": number}
        )
    return made


def _map(image: Image, row: Record, scorer: ModelScorer) -> QualityMap | str:
    """The map of the very score in the row, or the reason why there is none."""
    from saqm.scorer import score_and_map

    if row["status"] != "scored":
        return "the image was not scored"
    model, preparation = row["model"], row.get("preparation")
    if not isinstance(model, Mapping) or model.get("sha256") != scorer.model["sha256"]:
        return f"{scorer.name} {scorer.model['version']} draws the maps, and another model gave this score"
    stride = preparation.get("stride") if isinstance(preparation, Mapping) else None
    try:
        score, quality = score_and_map(image, scorer, stride=stride)
    except SaqmError as error:
        return str(error)
    recorded = row["score"]
    if score.score is None or not isinstance(recorded, int | float) or abs(score.score - recorded) > SAME_SCORE:
        return f"scored anew the image gets {score.score}, not {recorded}"
    return quality


def _levels(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _jpeg(pixels: NDArray[np.uint8], side: int) -> str:
    from PIL import Image as pillow

    picture = pillow.fromarray(pixels)
    picture.thumbnail(
        (side, side), pillow.Resampling.BOX if max(pixels.shape) > 4 * side else pillow.Resampling.LANCZOS
    )
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=JPEG_QUALITY[side], optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
