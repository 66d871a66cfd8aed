"""Tables of out-of-fold predictions: each image by its SHA-256, what was predicted by a model that never saw it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saqm.errors import ManifestError, UndefinedScore
from saqm.image import sha256_of
from saqm.manifest import Row
from saqm.writing import replacing


@dataclass(frozen=True)
class Prediction:
    """One line of a table of out-of-fold predictions; score and prediction on the manifest's scale."""

    sha256: str  # of the image file
    path: str  # its name, without folders
    scene: str
    domain: str
    method: str | None
    fold: int | None
    seed: int | None
    score: float | None
    prediction: float | None


_PREDICTION_COLUMNS = ("sha256", "path", "scene", "domain", "method", "fold", "seed", "score", "prediction")


def write_predictions(
    path: str | Path,
    rows: Sequence[Row],
    predictions: Sequence[float | None],
    folds: Sequence[int | None],
    seeds: Sequence[int | None] | int | None = None,
) -> None:
    """Write out-of-fold predictions as CSV, one line a row; an image may stand there once for every seed.

    An old file is replaced whole. Raises OutputError when it cannot be written, ImageError for a missing image.
    """
    listed = [seeds] * len(rows) if seeds is None or isinstance(seeds, int) else list(seeds)
    if not len(rows) == len(predictions) == len(folds) == len(listed):
        raise UndefinedScore(
            f"{len(rows)} rows, {len(predictions)} predictions, {len(folds)} folds, {len(listed)} seeds"
        )
    hashes: dict[Path, str] = {}
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_PREDICTION_COLUMNS)
    for row, prediction, fold, seed in zip(rows, predictions, folds, listed, strict=True):
        if row.path not in hashes:
            hashes[row.path] = sha256_of(row.path)
        cells = (hashes[row.path], row.path.name, row.scene, row.domain, row.method, fold, seed)
        numbers = [None if value is None else repr(float(value)) for value in (row.score, prediction)]
        table.writerow(["" if cell is None else cell for cell in (*cells, *numbers)])
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue().encode())


def read_predictions(path: str | Path) -> tuple[Prediction, ...]:
    """Read what write_predictions wrote. Raises ManifestError that lists every bad line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != _PREDICTION_COLUMNS:
        raise ManifestError(f"{path}: wanted the columns {', '.join(_PREDICTION_COLUMNS)}, not {reader.fieldnames}")
    made: list[Prediction] = []
    problems: list[str] = []
    for line, cells in enumerate(reader, 2):
        if None in cells or None in cells.values():  # DictReader's way of saying more, or fewer
            problems.append(f"line {line}: wanted {len(_PREDICTION_COLUMNS)} cells")
            continue
        try:
            made.append(
                Prediction(
                    cells["sha256"],
                    cells["path"],
                    cells["scene"],
                    cells["domain"],
                    cells["method"] or None,
                    int(cells["fold"]) if cells["fold"] else None,
                    int(cells["seed"]) if cells["seed"] else None,
                    float(cells["score"]) if cells["score"] else None,
                    float(cells["prediction"]) if cells["prediction"] else None,
                )
            )
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        raise ManifestError("\n  ".join([f"{path}: {len(problems)} problems", *problems]))
    return tuple(made)


def predictions_of(rows: Sequence[Row], table: Sequence[Prediction]) -> tuple[tuple[float | None, ...], ...]:
    """The predictions of a table for `rows`, a tuple for each of its seeds; images are told by their SHA-256.

    None where an image was not predicted. Raises ManifestError where the table has none of these images, or one twice.
    """
    found: dict[int | None, dict[str, float | None]] = defaultdict(dict)
    for line in table:
        if line.sha256 in found[line.seed]:
            raise ManifestError(f"{line.path}: predicted twice with seed {line.seed}; leave one line")
        found[line.seed][line.sha256] = line.prediction
    hashes = [sha256_of(row.path) for row in rows]
    if not any(sha256 in known for known in found.values() for sha256 in hashes):
        raise ManifestError(f"none of the {len(table)} predictions is of one of these {len(rows)} images")
    return tuple(tuple(known.get(sha256) for sha256 in hashes) for known in found.values())


def mean_of_seeds(by_seed: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """For each image the mean of the seeds that predicted it, None where none did."""
    known = [[value for value in values if value is not None] for values in zip(*by_seed, strict=True)]
    return tuple(sum(values) / len(values) if values else None for values in known)
