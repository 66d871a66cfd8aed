"""Records for the page: checked, put in order, and packed so that what repeats is written once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from saqm.errors import ImageError, OutputError
from saqm.outputs.table import COLUMNS, Record, flatten

NEEDED = ("path", "status", "score", "score_raw", "model")  # other keys may be missing: the page says less then
ACQUISITION = ("device", "acquired")  # what `with_acquisition` adds
LOWER = "lower is better"
SHARED = 0.5  # texts are pooled where at most this share of them differs

__all__ = ["Record", "checked", "models_of", "packed", "value_of", "with_acquisition", "worst_first"]


def with_acquisition(
    records: Iterable[Record], *, dates: bool = True, on_image: Callable[[int, int], None] | None = None
) -> list[Record]:
    """The records with `device` and `acquired` ("2026-03-14"), out of the DICOM headers of files that are still there.

    A header counts where its instance UID is that of the record. What is not known is None; so is every day without
    `dates`. on_image(done, of) is called after each record. No pixel is decoded. Raises OutputError as `checked`.
    """
    rows = checked(records)
    made: list[Record] = []
    for row in rows:
        device, day = _acquisition(row)
        made.append({**row, "device": device, "acquired": day if dates else None})
        if on_image is not None:
            on_image(len(made), len(rows))
    return made


def _acquisition(row: Record) -> tuple[str | None, str | None]:
    from saqm.image import read_acquisition

    uids = row.get("uids")
    instance = uids.get("instance") if isinstance(uids, Mapping) else None
    if instance is None:  # no DICOM image
        return None, None
    try:
        found = read_acquisition(str(row.get("path")))
    except ImageError:
        return None, None
    return (found.device, found.date) if found.instance == instance else (None, None)


def checked(records: Iterable[Record]) -> list[Record]:
    """The records as a list. Raises OutputError where there is none, or one is none of `saqm score`; it says which."""
    rows: list[Record] = []
    for number, row in enumerate(records, 1):
        if not isinstance(row, Mapping):
            raise OutputError(
                f"record {number}: {json.dumps(row)[:40]}: an object, as `saqm score` writes it, is wanted"
            )
        if missing := [key for key in NEEDED if key not in row]:
            raise OutputError(f"record {number} has no {', '.join(missing)}: a result file of `saqm score` is wanted")
        if row["status"] not in ("scored", "not_scored"):
            raise OutputError(f"record {number}: status {row['status']!r}; scored or not_scored is wanted")
        for key in ("score", "score_raw"):
            if not (row[key] is None or (isinstance(row[key], int | float) and math.isfinite(cast("float", row[key])))):
                raise OutputError(f"record {number}: {key} is {row[key]!r}; a finite number, or nothing, is wanted")
        if row["status"] == "scored" and value_of(row) is None:
            raise OutputError(f"record {number} is scored, but has neither score nor score_raw")
        rows.append(row)
    if not rows:
        raise OutputError("no records, so there is nothing to report: score some images first (`saqm score`)")
    return rows


def value_of(row: Record) -> float | None:
    """The score of 0 to 100; where there is none, the raw score on its own scale; None where not scored."""
    return cast("float | None", row["score"] if row["score"] is not None else row["score_raw"])


def models_of(rows: Sequence[Record]) -> tuple[list[dict[str, object]], list[int]]:
    """Who scored: every model or metric once, in the order they come; and which one scored each row."""
    models: dict[tuple[object, ...], dict[str, object]] = {}
    of_row = []
    for row in rows:
        told = row["model"] if isinstance(row["model"], Mapping) else {}
        key = tuple(told.get(part) for part in ("name", "version", "sha256"))
        if key not in models:
            models[key] = {"number": len(models), **told, "has_score": False, "rows": 0}
        model = models[key]
        model["rows"] = cast("int", model["rows"]) + 1
        model["has_score"] = model["has_score"] or row["score"] is not None
        of_row.append(cast("int", model["number"]))
    return list(models.values()), of_row


def worst_first(rows: Sequence[Record]) -> list[int]:
    """One row for each image, the worst image first, those without a score last.

    Judged by the model that the first row names; images that only another one scored come after its own.
    """
    _, of_row = models_of(rows)
    places: dict[tuple[object, object], int] = {}
    for number, row in enumerate(rows):
        places.setdefault((row["path"], row.get("frame")), number)

    def badness(number: int) -> tuple[int, bool, float]:
        value = value_of(rows[number])
        model = rows[number]["model"]
        turned = isinstance(model, Mapping) and model.get("direction") == LOWER
        return of_row[number], value is None, 0.0 if value is None else -value if turned else value

    return sorted(places.values(), key=badness)


def packed(rows: Sequence[Record], numbers: Mapping[str, Sequence[int | None]]) -> dict[str, object]:
    """Every flat column of the records, device and day, and further columns of `numbers`, for the page's `unpack`.

    A column is `plain` (its values), `pooled` (where each value stands in the pool) or `lists` (the same for the parts
    of each value). `table` names the columns of `saqm score --out`, in order, with their kinds.
    """
    pool: list[object] = []
    places: dict[tuple[bool, str], int] = {}  # a text, or another value as JSON -> where it stands in the pool

    def place(value: object) -> int:
        key = (True, value) if isinstance(value, str) else (False, json.dumps(value, allow_nan=False))
        if key not in places:
            places[key] = len(pool)
            pool.append(value)
        return places[key]

    flat = [{**_flat(row, number), **{n: row.get(n) for n in ACQUISITION}} for number, row in enumerate(rows, 1)]
    columns: dict[str, dict[str, object]] = {name: {"plain": list(values)} for name, values in numbers.items()}
    for name, kind in [(column.name, column.kind) for column in COLUMNS] + [(name, "text") for name in ACQUISITION]:
        for number, row in enumerate(flat, 1):
            if row[name] is not None and not _IS[kind](row[name]):
                raise OutputError(f"record {number}: {name} is {str(row[name])[:40]!r}, which is no {_CALLED[kind]}")
        columns[name] = _column([row[name] for row in flat], kind, place)
    return {
        "rows": len(rows),
        "table": [{"name": column.name, "kind": column.kind} for column in COLUMNS],
        "columns": columns,
        "pool": pool,
    }


def _flat(row: Record, number: int) -> dict[str, object]:
    try:
        return flatten(row)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise OutputError(f"record {number} is nested otherwise than `saqm score` writes it ({error})") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _all(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(is_one, value))


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


_IS: dict[str, Callable[[object], bool]] = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int),
    "number": _is_number,
    "flag": lambda value: isinstance(value, bool),
    "texts": _all(lambda value: isinstance(value, str)),
    "numbers": _all(_is_number),
    "object": lambda value: _is_object(value) or _all(_is_object)(value),
}
_CALLED = {
    "text": "text",
    "integer": "whole number",
    "number": "finite number",
    "flag": "true or false",
    "texts": "list of texts",
    "numbers": "list of finite numbers",
    "object": "object or list of objects",
}


def _column(values: list[object], kind: str, place: Callable[[object], int]) -> dict[str, object]:
    if any(isinstance(value, list | tuple) for value in values):
        parts = [None if value is None else [place(part) for part in cast("list[object]", value)] for value in values]
        return {"lists": parts}
    if kind == "object" or (kind == "text" and len(set(values)) <= SHARED * len(values)):
        return {"pooled": [None if value is None else place(value) for value in values]}
    return {"plain": values}
