"""Manifests: which image has which opinion score, of which scene, from which domain. No torch, no pixels.

A manifest is a CSV (UTF-8, header) or JSON Lines file; the score scale stands beside it in a sidecar of the same stem:
NAME.json, `{"scale": [1, 5], "higher_is_better": true, "name": ..., "licence": ..., "citation": ...}`.
A scene is the content of a picture: what may never be on both sides of a split.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from saqm.errors import ManifestError, OutputError
from saqm.writing import replacing

REQUIRED_COLUMNS = ("path", "scene")
OPTIONAL_COLUMNS = ("score", "domain", "score_sd", "raters", "reference", "method", "split", "weight")
COLUMNS = ("path", "score", "scene", "domain", "score_sd", "raters", "reference", "method", "split", "weight")
RATER_COLUMN = re.compile(r"score_r([1-9]\d*)")
ASPECT_COLUMN = re.compile(r"aspect_(\w+)")
SIDECAR_KEYS = ("scale", "higher_is_better", "name", "licence", "citation")
DEFAULT_DOMAIN = "default"  # the domain of every row of a manifest without that column
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True)
class Scale:
    """The scale of the opinion scores, its direction, and where the scores come from."""

    low: float
    high: float
    higher_is_better: bool = True
    name: str | None = None
    licence: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Row:
    """One image. `score` is on the manifest's scale, None when unknown; the same holds for every optional field.

    raters: how many people judged; 0 with a score means that the protocol fixed it (an anchor).
    reference: the undegraded version of its scene.
    rater_scores: one entry a rater, in the order of score_r1, score_r2, …; None where that rater gave none.
    aspects: further opinions by name, each on its own scale.
    """

    path: Path
    score: float | None
    scene: str
    domain: str = DEFAULT_DOMAIN
    score_sd: float | None = None
    raters: int | None = None
    reference: bool = False
    method: str | None = None
    split: str | None = None
    weight: float | None = None
    rater_scores: tuple[float | None, ...] | None = None
    aspects: Mapping[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """True when people gave the score: known, and not an anchor fixed by the protocol."""
        return self.score is not None and self.raters != 0


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set, their scale, and the file they were read from (None when made in memory)."""

    rows: tuple[Row, ...]
    scale: Scale | None = None
    path: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of rows and scale, the same for CSV and JSON Lines and wherever the folder lies."""
        root = os.path.commonpath([row.path.parent for row in self.rows]) if self.rows else ""
        digest = hashlib.sha256(json.dumps(_sidecar(self.scale), sort_keys=True).encode())
        for row in self.rows:
            digest.update(json.dumps(_cells(row, Path(root)), sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Fold:
    """One division of the rows, as indices into them; no scene is in both."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def normalised(score: float, scale: Scale | None) -> float:
    """An opinion score on 0..1, 1 best. Raises ManifestError when the scale is unknown."""
    if scale is None:
        raise ManifestError(
            'scores without a scale: write {"scale": [low, high], "higher_is_better": true} to NAME.json'
        )
    share = (score - scale.low) / (scale.high - scale.low)
    return share if scale.higher_is_better else 1 - share


# Reading


def read_manifest(path: str | Path, *, check_files: bool = True) -> Manifest:
    """Read and check a .csv or .jsonl manifest with its sidecar.

    Raises ManifestError that lists every bad row with its line number, not the first. `check_files=False` leaves out
    whether the images exist.
    """
    path = Path(os.path.abspath(path))
    kind = _kind(path)
    text = _read_text(path)
    problems: list[str] = []
    scale = _read_sidecar(path.with_suffix(".json"), problems)
    lines = _csv_lines(text, problems) if kind == ".csv" else _json_lines(text, problems)
    rows: list[Row] = []
    seen: dict[Path, int] = {}
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    count = 0
    for line, cells in lines:
        count += 1
        found: list[str] = []
        row = _row(cells, path.parent, scale, found)
        if row is not None:
            if check_files and not _exists(row.path):
                found.append(f"missing file {row.path}")
            first = seen.setdefault(row.path, line)
            if first != line:
                found.append(f"duplicate path {cells['path']!r}, also on line {first}")
            if row.split is not None:
                splits[row.scene].setdefault(row.split, line)
            rows.append(row)
        problems += [f"line {line}: {problem}" for problem in found]
    for scene, sides in splits.items():
        if len(sides) > 1:
            where = ", ".join(f"{split} (line {line})" for split, line in sides.items())
            problems.append(f"scene {scene!r} is on both sides of the split: {where}")
    if not count and not problems:
        problems.append("empty: no rows")
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise ManifestError("\n  ".join([f"{path}: {len(problems)} {noun}", *problems]))
    return Manifest(tuple(rows), scale, path)


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise ManifestError(f"{path}: a manifest is a .csv or a .jsonl file, not {kind or 'a file without suffix'!r}")
    return kind


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def _read_sidecar(path: Path, problems: list[str]) -> Scale | None:
    if not path.exists():
        return None
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        problems.append(f"{path.name}: not JSON: {error}")
        return None
    if not isinstance(content, dict):
        problems.append(f"{path.name}: wanted an object with the keys {', '.join(SIDECAR_KEYS)}")
        return None
    before = len(problems)
    problems += [f"{path.name}: {_unknown('key', key, SIDECAR_KEYS)}" for key in content if key not in SIDECAR_KEYS]
    bounds, upward = content.get("scale"), content.get("higher_is_better")
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) in (int, float) for bound in bounds)
    if not numbers or not (-math.inf < bounds[0] < bounds[1] < math.inf):  # type: ignore[index]
        problems.append(f'{path.name}: "scale" must be [low, high] with low < high, not {json.dumps(bounds)}')
    if not isinstance(upward, bool):
        problems.append(f'{path.name}: "higher_is_better" must be true or false, not {json.dumps(upward)}')
    words = {key: content.get(key) for key in ("name", "licence", "citation")}
    problems += [
        f'{path.name}: "{key}" must be text' for key, word in words.items() if not isinstance(word, str | None)
    ]
    if len(problems) > before:
        return None
    return Scale(float(bounds[0]), float(bounds[1]), bool(upward), **words)  # type: ignore[index]


def _csv_lines(text: str, problems: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row; problems of header and shape are added to `problems`."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        repeated = [name for name, times in Counter(header).items() if times > 1]
        problems += [f"line 1: column {name!r} stands there twice" for name in repeated]
        problems += [f"line 1: {_unknown('column', name, COLUMNS)}" for name in header if not _known(name)]
        problems += [f"line 1: missing required column {name!r}" for name in REQUIRED_COLUMNS if name not in header]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problems.append(f"line {reader.line_num}: {len(cells)} cells, but the header has {len(header)}")
                continue
            yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: not CSV: {error}")


def _json_lines(text: str, problems: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except json.JSONDecodeError as error:
            problems.append(f"line {line}: not JSON: {error.msg}")
            continue
        if not isinstance(values, dict):
            problems.append(f"line {line}: wanted an object, not {type(values).__name__}")
            continue
        problems += [f"line {line}: {_unknown('column', name, COLUMNS)}" for name in values if not _known(name)]
        problems += [f"line {line}: missing required column {c!r}" for c in REQUIRED_COLUMNS if c not in values]
        nested = [name for name, value in values.items() if isinstance(value, list | dict)]
        problems += [f"line {line}: {name} must be one value, not a list or an object" for name in nested]
        yield line, {name: _as_cell(value) for name, value in values.items() if name not in nested}


def _as_cell(value: object) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _known(column: str) -> bool:
    return column in COLUMNS or bool(RATER_COLUMN.fullmatch(column) or ASPECT_COLUMN.fullmatch(column))


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    if what == "column" and not close:
        hint += ", score_rN and aspect_NAME"
    return f"unknown {what} {name!r}; {hint}"


def _row(cells: dict[str, str], folder: Path, scale: Scale | None, problems: list[str]) -> Row | None:
    """The row of some cells; None when it cannot be placed. What is wrong is added to `problems`."""

    def number(name: str, *, on_scale: bool = False, least: float = -math.inf) -> float | None:
        cell = cells.get(name, "")
        if not cell:
            return None
        try:
            value = float(cell)
        except ValueError:
            problems.append(f"{name} {cell!r} is not a number")
            return None
        if not math.isfinite(value):
            problems.append(f"{name} is {cell}; leave it empty when unknown")
            return None
        if value < least:
            problems.append(f"{name} {cell} is negative" if least == 0 else f"{name} {cell} is below {least:g}")
            return None
        if on_scale and scale is not None and not scale.low <= value <= scale.high:
            problems.append(f"{name} {cell} is off the scale {scale.low:g} to {scale.high:g}")
        return value

    raters = number("raters", least=0)
    if raters is not None and raters != int(raters):
        problems.append(f"raters {cells['raters']} is not a whole number")
    reference = cells.get("reference", "").lower()
    if reference not in _TRUE + _FALSE:
        problems.append(f"reference {cells['reference']!r} is neither true nor false")
    numbered = {int(match[1]): name for name in cells if (match := RATER_COLUMN.fullmatch(name))}
    given = {rater: number(name, on_scale=True) for rater, name in numbered.items()}
    by_rater = tuple(given.get(rater) for rater in range(1, max(given, default=0) + 1))
    named = {match[1]: number(name) for name in cells if (match := ASPECT_COLUMN.fullmatch(name))}
    score = number("score", on_scale=True)
    score_sd, weight = number("score_sd", least=0), number("weight", least=0)
    problems += [f"{name} is empty" for name in REQUIRED_COLUMNS if name in cells and not cells[name]]
    if not cells.get("path") or not cells.get("scene"):
        return None
    return Row(
        path=Path(os.path.abspath(folder / cells["path"])),
        score=score,
        scene=cells["scene"],
        domain=cells.get("domain") or DEFAULT_DOMAIN,
        score_sd=score_sd,
        raters=None if raters is None else int(raters),
        reference=reference in _TRUE,
        method=cells.get("method") or None,
        split=cells.get("split") or None,
        weight=weight,
        rater_scores=by_rater if any(value is not None for value in by_rater) else None,
        aspects={name: value for name, value in named.items() if value is not None},
    )


def _exists(path: Path) -> bool:
    archive, inside, _ = str(path).partition("!" + os.sep)  # a member of a zip: "archive.zip!/member"
    return Path(archive).is_file() if inside else path.is_file()


# Writing


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a .csv or .jsonl manifest and its sidecar, paths relative to its folder; an old file is replaced whole.

    Raises OutputError when it cannot be written, or when a manifest without scale would be read with an old sidecar's.
    """
    path = Path(os.path.abspath(path))
    kind = _kind(path)
    sidecar = path.with_suffix(".json")
    if manifest.scale is None and sidecar.exists():
        raise OutputError(f"{sidecar}: an old scale would be read with this manifest, which has none; remove it")
    written = [_cells(row, path.parent) for row in manifest.rows]
    used = {name for cells in written for name in cells}
    if kind == ".jsonl":
        text = "".join(json.dumps(cells, ensure_ascii=False) + "\n" for cells in written)
    else:
        raters = sorted((c for c in used if RATER_COLUMN.fullmatch(c)), key=lambda c: int(c.removeprefix("score_r")))
        header = [c for c in COLUMNS if c in used or c in ("path", "score", "scene", "domain")] + raters
        header += sorted(c for c in used if ASPECT_COLUMN.fullmatch(c))
        buffer = io.StringIO(newline="")
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(header)
        table.writerows([_as_cell(cells.get(name)) for name in header] for cells in written)
        text = buffer.getvalue()
    if manifest.scale is not None:
        scale = json.dumps(_sidecar(manifest.scale), indent=2, ensure_ascii=False) + "\n"
        with replacing(sidecar) as beside:
            beside.write_bytes(scale.encode())
    with replacing(path) as beside:
        beside.write_bytes(text.encode())


def _cells(row: Row, folder: Path) -> dict[str, object]:
    """What is known of a row, by column; the path relative to `folder` where there is a way."""
    try:
        path = os.path.relpath(row.path, folder)
    except ValueError:  # another drive
        path = str(row.path)
    values: dict[str, object] = {
        "path": Path(path).as_posix(),
        "score": row.score,
        "scene": row.scene,
        "domain": row.domain,
        "score_sd": row.score_sd,
        "raters": row.raters,
        "reference": row.reference or None,
        "method": row.method,
        "split": row.split,
        "weight": row.weight,
    }
    values |= {f"score_r{rater}": value for rater, value in enumerate(row.rater_scores or (), 1)}
    values |= {f"aspect_{name}": value for name, value in row.aspects.items()}
    whole = ("raters", "reference")  # any other number is a float, so that 4 and 4.0 are the same row
    return {
        name: float(value) if isinstance(value, int) and name not in whole else value
        for name, value in values.items()
        if value is not None
    }


def _sidecar(scale: Scale | None) -> dict[str, object] | None:
    if scale is None:
        return None
    words = {"name": scale.name, "licence": scale.licence, "citation": scale.citation}
    content: dict[str, object] = {
        "scale": [float(scale.low), float(scale.high)],
        "higher_is_better": scale.higher_is_better,
    }
    return content | {key: word for key, word in words.items() if word is not None}


# Dividing


def folds(rows: Manifest | Sequence[Row], k: int, seed: int, *, by: tuple[str, ...] = ("scene",)) -> tuple[Fold, ...]:
    """Folds that share no scene; each domain's scenes are spread evenly over them.

    by=("scene",): k folds, each row tested once.
    by=("scene", "method"): k x k cells; a cell tests the judged rows of one scene fold made by one method fold, and
    trains on rows of neither. There a row without method, a reference and an anchor are never tested.
    The same rows and seed give the same folds, whatever the order of the rows. Raises ManifestError for too few scenes.
    """
    rows = rows.rows if isinstance(rows, Manifest) else rows
    scene_fold = _deal_scenes(rows, k, np.random.default_rng(seed))
    numbers = range(len(rows))
    if by == ("scene",):
        made = [
            Fold(
                train=tuple(i for i in numbers if scene_fold[rows[i].scene] != fold),
                test=tuple(i for i in numbers if scene_fold[rows[i].scene] == fold),
            )
            for fold in range(k)
        ]
    elif by == ("scene", "method"):
        tested = [row.judged and row.method is not None and not row.reference for row in rows]
        methods = sorted({str(row.method) for row, is_tested in zip(rows, tested, strict=True) if is_tested})
        if len(methods) < k:
            raise ManifestError(f"{len(methods)} judged methods cannot be divided into {k} folds")
        order = np.random.default_rng([seed, 1]).permutation(len(methods))
        method_fold = {methods[method]: place % k for place, method in enumerate(order)}
        places = [(scene_fold[row.scene], method_fold.get(row.method or "", -1)) for row in rows]
        made = [
            Fold(
                train=tuple(i for i in numbers if places[i][0] != scenes and places[i][1] != group),
                test=tuple(i for i in numbers if places[i] == (scenes, group) and tested[i]),
            )
            for scenes in range(k)
            for group in range(k)
        ]
    else:
        raise ManifestError(f'folds by {by}: wanted ("scene",) or ("scene", "method")')
    return tuple(fold for fold in made if fold.test)


def split(rows: Manifest | Sequence[Row], held_out: float, seed: int) -> Fold:
    """One scene-disjoint division with about the share `held_out` (0 to 1) of each domain's scenes in `test`."""
    rows = rows.rows if isinstance(rows, Manifest) else rows
    if not 0 < held_out < 1:
        raise ManifestError(f"held_out {held_out} is not between 0 and 1")
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for scenes in _scenes_by_domain(rows).values():
        chosen |= {scenes[i] for i in rng.permutation(len(scenes))[: round(held_out * len(scenes))]}
    fold = Fold(
        train=tuple(i for i, row in enumerate(rows) if row.scene not in chosen),
        test=tuple(i for i, row in enumerate(rows) if row.scene in chosen),
    )
    if not fold.test or not fold.train:
        raise ManifestError(
            f"{len({r.scene for r in rows})} scenes are too few to hold out {held_out:.0%} of each domain"
        )
    return fold


def check_disjoint(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> None:
    """Refuse two sets that share a scene or a file: raises ManifestError that names them."""
    scenes = {row.scene for row in train_rows} & {row.scene for row in test_rows}
    if scenes:
        raise ManifestError(f"training and test share {len(scenes)} scenes: {', '.join(sorted(scenes))}")
    files = {row.path for row in train_rows} & {row.path for row in test_rows}
    if files:
        raise ManifestError(f"training and test share {len(files)} files: {', '.join(sorted(map(str, files)))}")


def _scenes_by_domain(rows: Sequence[Row]) -> dict[tuple[str, ...], list[str]]:
    """Sorted scenes of each domain; a scene that is in several domains stands under all of them together."""
    domains: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        domains[row.scene].add(row.domain)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for scene in sorted(domains):
        groups[tuple(sorted(domains[scene]))].append(scene)
    return dict(sorted(groups.items()))


def _deal_scenes(rows: Sequence[Row], k: int, rng: np.random.Generator) -> dict[str, int]:
    """The fold of each scene: dealt like cards, one domain after the other."""
    groups = _scenes_by_domain(rows)
    total = sum(len(scenes) for scenes in groups.values())
    if k < 2 or k > total:
        raise ManifestError(f"{total} scenes cannot be divided into {k} folds; wanted 2 to {total}")
    dealt = [scenes[i] for scenes in groups.values() for i in rng.permutation(len(scenes))]
    return {scene: place % k for place, scene in enumerate(dealt)}
