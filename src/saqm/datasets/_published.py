"""What the loaders of published data sets share: how a name finds its file, and what is refused."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saqm.errors import ManifestError
from saqm.manifest import Manifest, Row, Scale

SHOWN = 20  # of the missing files, in a message; the others are counted


@dataclass(frozen=True)
class Published:
    """What is known of a data set before its folder is opened."""

    title: str
    domain: str
    scale: Scale
    layout: str  # what is looked for, in words
    source: str  # where it is got

    def refused(self, where: Path, reason: str) -> ManifestError:
        """The error for a folder or a file that is not this data set as published."""
        return ManifestError(
            f"{where}: not {self.title} as published: {reason}; wanted {self.layout}. Get it from {self.source}"
        )


def found_by_name(folder: Path, pattern: str = "*") -> dict[str, Path]:
    """What matches below a folder by its name in lower case: published names differ in case from their own lists.

    Hidden files are left out. Raises ManifestError for two names that differ in nothing else.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        if path.name.startswith("."):
            continue
        other = found.setdefault(path.name.lower(), path)
        if other != path:
            raise ManifestError(f"{path} and {other} are one name in two spellings; remove the one that is wrong")
    return found


def located(published: Published, root: str | Path, *names: str) -> tuple[Path, ...]:
    """The folder itself and its entries of these names, in any case. Raises ManifestError that names what is absent."""
    root = Path(root).absolute()
    if not root.is_dir():
        raise published.refused(root, "no such folder")
    entries = found_by_name(root)
    absent = [name for name in names if name.lower() not in entries]
    if absent:
        raise published.refused(root, f"no {' and no '.join(absent)}")
    return root, *(entries[name.lower()] for name in names)


def text_of(path: Path) -> str:
    """A text file, UTF-8. Raises ManifestError when it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a text in UTF-8: {error}") from error


def table(published: Published, path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a CSV file that must have these columns; a cell that is not there is empty."""
    reader = csv.DictReader(text_of(path).splitlines())
    try:
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise published.refused(path, f"no column {' and no '.join(absent)}")
        for cells in reader:
            if None in cells:
                raise ManifestError(f"{path}: line {reader.line_num}: more cells than the heading has columns")
            yield reader.line_num, {name: (cell or "").strip() for name, cell in cells.items()}
    except csv.Error as error:
        raise ManifestError(f"{path}: line {reader.line_num}: not CSV: {error}") from error


def assembled(
    published: Published, root: Path, rows: Sequence[Row], problems: Sequence[str], *, images: int, partial: bool
) -> Manifest:
    """The manifest of the rows, once everything about them is as published.

    images: how many rows there should be, not counting reference images. Missing files and a wrong number are refused,
    or with `partial` left out and said in the scale's name. Anything else (problems, a score off the scale, a file
    twice) is refused in any case. Raises ManifestError.
    """
    scale, said = published.scale, list(problems)
    for row in rows:
        if row.score is not None and not scale.low <= row.score <= scale.high:  # NaN too
            said.append(f"{row.path.name}: score {row.score:g} is off the scale {scale.low:g} to {scale.high:g}")
    said += [f"{path.name} stands there twice" for path, n in Counter(row.path for row in rows).items() if n > 1]
    listed = sum(not row.reference for row in rows)
    if listed > images or (listed < images and not partial):
        said.append(f"{listed} images are listed, wanted {images}; a partial copy is read with partial=True")
    if said:
        noun = "problem" if len(said) == 1 else "problems"
        raise ManifestError("\n  ".join([f"{root}: {published.title}: {len(said)} {noun}", *said]))
    kept = [row for row in rows if row.path.is_file()]
    if len(kept) < len(rows) and not partial:
        raise _incomplete(published, root, [row.path for row in rows if not row.path.is_file()], len(rows))
    there = sum(not row.reference for row in kept)
    if not there:
        raise published.refused(root, "none of its images is there")
    if there < images:
        scale = replace(scale, name=f"{scale.name}; partial copy: {there} of {images} images")
    return Manifest(tuple(kept), scale)


def _incomplete(published: Published, root: Path, missing: Sequence[Path], wanted: int) -> ManifestError:
    lines = [str(path.relative_to(root)) for path in missing[:SHOWN]]
    lines += [f"and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    head = (
        f"{root}: {published.title}: {len(missing)} of {wanted} files are missing; get them from {published.source}, "
        "or take what is there with partial=True"
    )
    return ManifestError("\n  ".join([head, *lines]))


def finite(text: str | float) -> float:
    """A number from a score file. Raises ValueError for anything else, NaN and infinity included."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value
