"""What readers said: a journal that becomes a manifest.

A JSON Lines file, NAME.ratings.jsonl. Its first line is the study; then there is a line for each reader's order, and
for each rating or withdrawal, on the disk before the next image is shown. No line is ever changed, so a study goes on
where it stopped, whatever stopped it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from saqm import __version__
from saqm.errors import ManifestError, OutputError
from saqm.manifest import Manifest, Row, Scale
from saqm.rating.study import Shown, Study
from saqm.writing import replacing

SUFFIX = ".ratings.jsonl"
FORMAT = 1
LONGEST_NAME = 60  # of a reader


@dataclass(frozen=True)
class Rating:
    """What one reader said of one showing. image: index into the study's images; score on its scale."""

    image: int
    score: float


@dataclass(frozen=True)
class Ratings:
    """A journal as it stands: what each reader said in the order he was asked, withdrawn ratings gone."""

    study: Study
    by_reader: Mapping[str, tuple[Rating, ...]]

    def of_images(self, reader: str) -> dict[int, list[float]]:
        """One or two scores of each image that this reader rated, the first first."""
        given: dict[int, list[float]] = defaultdict(list)
        for rating in self.by_reader[reader]:
            given[rating.image].append(rating.score)
        return given

    def repeats(self) -> dict[str, list[tuple[float, float]]]:
        """The two scores of each image that a reader rated twice, by reader."""
        return {
            reader: [(scores[0], scores[1]) for scores in self.of_images(reader).values() if len(scores) > 1]
            for reader in self.by_reader
        }

    def manifest(self) -> Manifest:
        """Every image of the study; its score is the mean over readers of each one's own mean, None where nobody rated.

        score_sd: between readers, of two or more. score_r1, score_r2, …: the readers in the order of `by_reader`.
        """
        by_reader = [self.of_images(reader) for reader in self.by_reader]
        rows = []
        for index, shown in enumerate(self.study.images):
            own = tuple(float(np.mean(given[index])) if index in given else None for given in by_reader)
            known = [score for score in own if score is not None]
            row = shown.row
            if known:
                sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
                row = replace(row, score=float(np.mean(known)), score_sd=sd, raters=len(known), rater_scores=own)
            rows.append(row)
        return Manifest(tuple(rows), self.study.scale)


def begin(manifest: str | Path, study: Study) -> Journal:
    """The journal of the ratings that are to become `manifest`, begun or gone on with: NAME.ratings.jsonl beside it.

    Raises ManifestError for a manifest of another kind or a study begun otherwise; OutputError where another manifest
    stands there.
    """
    manifest = Path(manifest)
    if manifest.suffix.lower() not in (".csv", ".jsonl"):
        raise ManifestError(f"{manifest}: a manifest is a .csv or a .jsonl file")
    journal = manifest.with_suffix(SUFFIX)
    for old in (manifest, manifest.with_suffix(".json")):
        if old.exists() and not journal.exists():
            raise OutputError(f"{old}: is there already, and not from ratings; name another manifest")
    return Journal(journal, study)


def read_ratings(path: str | Path) -> Ratings:
    """A journal as it stands; a last line that a crash cut off does not count.

    Raises ManifestError where it cannot be read or is no journal, with the line.
    """
    path = Path(os.path.abspath(path))
    study, orders, standing = _replayed(path)
    del orders
    return Ratings(study, {reader: tuple(ratings) for reader, ratings in standing.items() if ratings})


class Journal:
    """The journal of a study. Every change is on the disk when its call returns; the file is the only memory."""

    def __init__(self, path: str | Path, study: Study) -> None:
        """Begin, or go on with what was begun alike. Raises ManifestError for another study, OutputError."""
        self.path, self.study = Path(os.path.abspath(path)), study
        header = _header(study, self.path.parent)
        if not self.path.exists():
            with replacing(self.path) as beside:
                beside.write_bytes(_line(header))
        elif differences := _differences(_lines(self.path)[0], header):
            raise ManifestError(
                "\n  ".join(
                    [
                        f"{self.path}: begun otherwise; give the same options, or another manifest with --out",
                        *differences,
                    ]
                )
            )

    def standing(self, reader: str) -> tuple[tuple[int, ...], tuple[Rating, ...]]:
        """The images in this reader's order, and what he said so far, in the same order.

        A reader is known by his name in any case; the first time, his order is settled and noted.
        """
        name = _name(reader)
        _, orders, standing = _replayed(self.path)
        if name not in orders:
            orders[name] = list(self.study.order(name))
            self._append({"reader": name, "order": orders[name]})
        return tuple(orders[name]), tuple(standing.get(name, ()))

    def rate(self, reader: str, place: int, score: float) -> None:
        """Note the score of the showing at `place` of the reader's order, which must be the next.

        Raises ManifestError for another place or a score off the scale.
        """
        order, ratings = self.standing(reader)
        if place != len(ratings) or place >= len(order):
            raise ManifestError(f"showing {place} is not the next one; {len(ratings)} of {len(order)} are rated")
        if refusal := self.study.refusal(score):
            raise ManifestError(refusal)
        self._append({"reader": _name(reader), "place": place, "image": order[place], "score": float(score)})

    def withdraw(self, reader: str, place: int) -> None:
        """Take the last rating back, which must be that at `place`. Raises ManifestError for another."""
        _, ratings = self.standing(reader)
        if not ratings or place != len(ratings) - 1:
            raise ManifestError(f"showing {place} is not the last rated; {len(ratings)} are rated")
        self._append({"reader": _name(reader), "withdrawn": place})

    def _append(self, entry: Mapping[str, object]) -> None:
        try:
            with self.path.open("r+b") as file:
                file.seek(file.read().rfind(b"\n") + 1)  # over what a crash cut off
                file.truncate()
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error


def _name(reader: str) -> str:
    """A reader's name as the journal has it. Raises ManifestError."""
    name = " ".join(reader.split()).casefold()
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ManifestError(f"reader {reader[:LONGEST_NAME]!r}: a name of 1 to {LONGEST_NAME} letters is wanted")
    return name


def _line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal. Raises ManifestError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ManifestError(f"{path}: line {number} is no entry of a journal: {error}") from error
    if not lines or lines[0].get("saqm_ratings") != FORMAT:
        raise ManifestError(f"{path}: no journal of ratings; wanted a file that saqm rate wrote (NAME{SUFFIX})")
    return lines


def _replayed(path: Path) -> tuple[Study, dict[str, list[int]], dict[str, list[Rating]]]:
    """The study, each reader's order, and the ratings that stand, in the order in which the readers came."""
    first, *rest = _lines(path)
    orders: dict[str, list[int]] = {}
    standing: dict[str, list[Rating]] = {}
    try:
        study = _study_of(first, path.parent)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path}: line 1 is no study: {error!r}") from error
    for number, entry in enumerate(rest, 2):
        try:
            reader = entry["reader"]
            if "order" in entry:
                orders.setdefault(reader, entry["order"])  # a second window may have settled the same one
            elif "withdrawn" in entry:
                del standing[reader][entry["withdrawn"] :]
            else:  # replaces what a second window said of the same showing
                before = standing.setdefault(reader, [])[: entry["place"]]
                if len(before) != entry["place"] or orders[reader][entry["place"]] != entry["image"]:
                    raise ValueError(f"showing {entry['place']} is not the next one")
                if refusal := study.refusal(entry["score"]):
                    raise ValueError(refusal)
                standing[reader] = [*before, Rating(entry["image"], float(entry["score"]))]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: line {number} does not follow from those before: {error}") from error
    return study, orders, standing


def _header(study: Study, folder: Path) -> dict[str, Any]:
    return {
        "saqm_ratings": FORMAT,
        "software": f"saqm {__version__}",
        "question": study.scale.name,
        "scale": [float(study.scale.low), float(study.scale.high)],
        "seed": study.seed,
        "repeats": study.repeats,
        "axis": study.axis,
        "images": [
            {
                "path": _relative(shown.row.path, folder),
                "sha256": shown.sha256,
                "frame": shown.frame,
                "scene": shown.row.scene,
                "domain": shown.row.domain,
                "method": shown.row.method,
                "reference": shown.row.reference,
            }
            for shown in study.images
        ],
    }


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _study_of(header: Mapping[str, Any], folder: Path) -> Study:
    low, high = header["scale"]
    return Study(
        images=tuple(
            Shown(
                Row(
                    path=Path(os.path.abspath(folder / entry["path"])),
                    score=None,
                    scene=entry["scene"],
                    domain=entry["domain"],
                    method=entry["method"],
                    reference=entry["reference"],
                ),
                entry["sha256"],
                entry["frame"],
            )
            for entry in header["images"]
        ),
        scale=Scale(float(low), float(high), name=header["question"]),
        seed=header["seed"],
        repeats=header["repeats"],
        axis=header["axis"],
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was decided otherwise, in words."""
    told = [
        f"{key} was {before.get(key)!r}, is {now[key]!r}"
        for key in ("question", "scale", "seed", "repeats", "axis")
        if before.get(key) != now[key]
    ]
    old, new = ({entry["path"]: entry for entry in header["images"]} for header in (before, now))
    told += [f"{path}: new" for path in new if path not in old]
    told += [f"{path}: gone, or cannot be shown" for path in old if path not in new]
    for path in (path for path in new if path in old):
        for key in new[path]:
            if old[path].get(key) != new[path][key]:
                told.append(f"{path}: {key} was {old[path].get(key)!r}, is {new[path][key]!r}")
    return told
