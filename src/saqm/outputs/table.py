"""Score records as tables: CSV, TSV, JSON Lines, JSON, Parquet, and a table for the terminal.

A record is one object of contract 4.4 (`Score.to_record()`). Flat columns have the same names, nested keys joined
with "_"; lists are joined with "; ". What is missing is empty in CSV and "n/a" in TSV. Records are taken one at a time:
no format but Parquet holds them all.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast, get_args

from saqm.errors import MissingExtra, OutputError
from saqm.writing import replacing

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, object]
TextFormat = Literal["csv", "tsv", "jsonl", "json"]
Format = Literal["csv", "tsv", "jsonl", "json", "parquet"]
Kind = Literal["text", "integer", "number", "flag", "texts", "numbers", "object"]

TSV_MISSING = "n/a"  # BIDS: a TSV never has an empty cell
LIST_SEPARATOR = "; "
_CARRIES_TEXT = ("text", "texts", "object")
_FORMULA = tuple("=+-@\t\r")  # OWASP "CSV injection": a spreadsheet takes a cell that begins so for a formula


@dataclass(frozen=True)
class Column:
    """One flat column: its name, the way to its value in the record, and how its cell is read back."""

    name: str
    way: tuple[str | int, ...]
    kind: Kind = "text"


def _column(way: str, kind: Kind = "text") -> Column:
    return Column(way.replace(".", "_"), tuple(way.split(".")), kind)


Columns = tuple[Column, ...]

COLUMNS: Columns = (
    _column("path"),
    _column("sha256"),
    _column("frame", "integer"),
    _column("modality"),
    _column("uids.study"),
    _column("uids.series"),
    _column("uids.instance"),
    _column("uids.sop_class"),
    _column("status"),
    _column("score", "number"),
    _column("score_raw", "number"),
    Column("interval_low", ("interval", 0), "number"),
    Column("interval_high", ("interval", 1), "number"),
    _column("coverage", "number"),
    _column("out_of_domain.statistic", "number"),
    _column("out_of_domain.p", "number"),
    _column("out_of_domain.flag", "flag"),
    _column("verdict"),
    _column("reasons", "texts"),
    _column("findings", "object"),
    _column("model.name"),
    _column("model.version"),
    _column("model.sha256"),
    _column("model.engine"),
    _column("model.direction"),
    _column("model.definition"),
    _column("preparation.channels"),
    _column("preparation.mean", "numbers"),
    _column("preparation.sd", "numbers"),
    _column("preparation.patch", "integer"),
    _column("preparation.stride", "integer"),
    _column("preparation.min_coverage", "number"),
    _column("preparation.window", "object"),
    _column("preparation.mask", "object"),
    _column("preparation.judged_share", "number"),
    _column("preparation.steps", "object"),
    _column("preparation.snap", "flag"),
    _column("preparation.flat_fraction", "number"),
    _column("preparation.parameters"),
    _column("preparation.options", "object"),
    _column("patches.used", "integer"),
    _column("patches.masked", "integer"),
    _column("warnings", "texts"),
    _column("software"),
    _column("created"),
)


def format_of(path: str | Path) -> Format:
    """The format that a file's suffix names. Raises OutputError for any other."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in get_args(Format):
        raise OutputError(f"{path}: cannot tell the format; name it {', '.join('.' + f for f in get_args(Format))}")
    return cast("Format", suffix)


def flatten(record: Record) -> dict[str, object]:
    """A record as one value a column, in the order of COLUMNS; None where the record has nothing."""
    return {column.name: _value(record, column.way) for column in COLUMNS}


def write_records(records: Iterable[Record], stream: IO[str], form: TextFormat, columns: Columns = COLUMNS) -> None:
    """Write records one by one to an open text stream, flushed after each, so that a pipe sees them as they come.

    `columns` are those of CSV and TSV; other records than scores bring their own.
    """
    if form == "csv":
        _write_separated(records, stream, columns, separator=",", missing="", guard=True)
    elif form == "tsv":
        _write_separated(records, stream, columns, separator="\t", missing=TSV_MISSING, guard=False)
    elif form == "jsonl":
        _write_jsonl(records, stream)
    else:
        _write_json(records, stream)


def save_records(records: Iterable[Record], path: str | Path, columns: Columns = COLUMNS) -> None:
    """Write records to a file of the format its suffix names: beside it first, put in its place when all are there.

    Whatever goes wrong, what stood at `path` stays whole. Raises OutputError where it cannot be written, and
    MissingExtra for Parquet without polars.
    """
    path = Path(path)
    form = format_of(path)
    if form == "parquet":
        _save_parquet(records, path, columns)
        return
    with replacing(path) as temporary, _opened(temporary, "w") as stream:
        write_records(records, stream, form, columns)


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a file that `save_records` wrote (not Parquet), one by one.

    From CSV and TSV a list comes back as its joined parts. Raises OutputError where a line is not such a record.
    """
    path = Path(path)
    form = format_of(path)
    if form == "parquet":
        raise OutputError(f"{path}: Parquet is not read back; use .jsonl, .csv or .tsv")
    try:
        with _opened(path, "r") as stream:
            if form in ("csv", "tsv"):
                rows = csv.DictReader(stream, dialect="excel" if form == "csv" else "excel-tab")
                wanted = [column.name for column in COLUMNS]
                if rows.fieldnames != wanted:
                    raise OutputError(
                        f"{path}: not a table of scores: its columns are {', '.join(rows.fieldnames or ())}"
                    )
                yield from (_unflatten(row, guarded=form == "csv") for row in rows)
            elif form == "jsonl":
                yield from map(json.loads, stream)
            else:
                yield from json.load(stream)
    except (ValueError, csv.Error) as error:
        raise OutputError(f"{path}: not a table of scores: {error}") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


def table(records: Iterable[Record]) -> Table:
    """The table for the terminal: file, score, raw value, share judged (of the windows, or of the picture), notes.

    Where there are several models, or a metric, it names them, and which direction of a raw value is better.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [flatten(record) for record in records]
    folder = _common_folder([str(row["path"]) for row in cells])
    named = len({row["model_name"] for row in cells} - {None}) > 1 or any(row["model_direction"] for row in cells)
    title = Text(printable(f"in {folder}")) if folder else None
    made = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, header_style="bold")
    made.add_column("file", overflow="fold", ratio=3)
    if named:
        made.add_column("model", overflow="fold")
    for name in ("score", "raw", *(["better"] if named else []), "judged"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("modality", no_wrap=True)
    made.add_column("notes", overflow="fold", ratio=4)
    for row in cells:
        path = str(row["path"])
        frame = "" if row["frame"] is None else f" [{row['frame']}]"
        notes = [note.removeprefix(f"{path}: ") for note in _texts(row["reasons"]) + _texts(row["warnings"])]
        better = str(row["model_direction"] or "higher is better").removesuffix(" is better")
        made.add_row(
            Text(printable(path[len(folder) :] + frame)),
            *([Text(printable(row["model_name"] or "-"))] if named else []),
            Text(_rounded(row["score"], "{:.1f}"), style="bold"),
            _rounded(row["score_raw"], "{:#.4g}" if row["model_direction"] else "{:.3f}"),
            *([Text(printable(better))] if named else []),
            _rounded(_share(row), "{:.0%}"),
            Text(printable(row["modality"] or "-")),
            Text(printable(LIST_SEPARATOR.join(notes))),
        )
    return made


def printable(text: object) -> str:
    """Text from a file or its name, safe for a terminal: control characters become their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _value(record: Record, way: tuple[str | int, ...]) -> object:
    value: object = record
    for key in way:
        if value is None:
            return None
        value = value.get(key) if isinstance(value, Mapping) else cast("list[object]", value)[cast("int", key)]
    return value


def _write_separated(
    records: Iterable[Record], stream: IO[str], columns: Columns, *, separator: str, missing: str, guard: bool
) -> None:
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for record in records:
        cells = [_cell(_value(record, column.way), column.kind) or missing for column in columns]
        if guard:  # numbers keep their minus sign; only text can carry a formula
            cells = [
                "'" + cell if column.kind in _CARRIES_TEXT and cell.startswith(_FORMULA) else cell
                for cell, column in zip(cells, columns, strict=True)
            ]
        writer.writerow(cells)
        stream.flush()


def _write_jsonl(records: Iterable[Record], stream: IO[str]) -> None:
    for record in records:
        stream.write(json.dumps(record, allow_nan=False) + "\n")
        stream.flush()


def _write_json(records: Iterable[Record], stream: IO[str]) -> None:
    before = "[\n"
    for record in records:
        stream.write(before + json.dumps(record, allow_nan=False))
        before = ",\n"
    stream.write("\n]\n" if before != "[\n" else "[]\n")


def _save_parquet(records: Iterable[Record], path: Path, columns: Columns) -> None:
    try:
        import polars
    except ImportError as error:
        raise MissingExtra("polars", "parquet", "writing Parquet") from error
    types: dict[Kind, object] = {
        "text": polars.String,
        "integer": polars.Int64,
        "number": polars.Float64,
        "flag": polars.Boolean,
        "texts": polars.List(polars.String),
        "numbers": polars.List(polars.Float64),
        "object": polars.String,
    }
    schema = {column.name: types[column.kind] for column in columns}
    with replacing(path) as temporary:
        rows = [
            {c.name: _cell(v, c.kind) or None if c.kind == "object" else v for c in columns for v in [_value(r, c.way)]}
            for r in records
        ]
        polars.DataFrame(rows, schema=schema).write_parquet(temporary)


def _opened(path: Path, mode: Literal["r", "w"]) -> IO[str]:
    """Our way to open text: UTF-8, our own line ends; a file name that is no UTF-8 goes out as the bytes it came as."""
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


def _cell(value: object, kind: Kind) -> str:
    """The text of one cell, "" for what is missing; a number is the shortest text that gives its bits back."""
    if value is None:
        return ""
    if kind == "object":
        return json.dumps(value)
    if kind in ("texts", "numbers"):
        return LIST_SEPARATOR.join(str(part) for part in cast("list[object]", value))
    return str(value).lower() if kind == "flag" else str(value)


_READ: dict[Kind, Callable[[str], object]] = {
    "text": str,
    "integer": int,
    "number": float,
    "flag": lambda cell: cell == "true",
    "texts": lambda cell: cell.split(LIST_SEPARATOR),
    "numbers": lambda cell: [float(part) for part in cell.split(LIST_SEPARATOR)],
    "object": json.loads,
}


def _unflatten(row: Mapping[str, str], guarded: bool) -> Record:
    """The record whose flat row this is: the inverse of writing it."""
    record: dict[str, object] = {}
    for column in COLUMNS:
        cell = row[column.name]
        if guarded and cell[:1] == "'" and cell[1:].startswith(_FORMULA):
            cell = cell[1:]
        missing = cell in ("", TSV_MISSING)
        value = ([] if column.kind == "texts" else None) if missing else _READ[column.kind](cell)
        first, *rest = column.way
        if not rest:
            record[str(first)] = value
        elif isinstance(rest[0], int):
            low_high = cast("list[object] | None", record.setdefault(str(first), None if missing else []))
            if low_high is not None:
                low_high.append(value)
        else:
            part = cast("dict[str, object] | None", record.get(str(first)))
            record[str(first)] = part if missing else {**(part or {}), rest[0]: value}
    return record


def _common_folder(paths: list[str]) -> str:
    """The folder that all paths share, with its last slash; "" where it is none or there is but one path."""
    shared = os.path.commonprefix(paths) if len(paths) > 1 else ""  # noqa: RUF071  cut at its last slash below
    return shared[: max(shared.rfind("/"), shared.rfind(os.sep)) + 1]


def _rounded(value: object, form: str) -> str:
    return "-" if value is None else form.format(value)


def _share(row: Mapping[str, object]) -> object:
    """Of the windows, where there are windows; else of the picture."""
    used, masked = row["patches_used"], row["patches_masked"]
    if not isinstance(used, int) or not isinstance(masked, int) or used + masked == 0:
        return row["preparation_judged_share"] if row["model_direction"] else None
    return used / (used + masked)


def _texts(value: object) -> list[str]:
    return [] if value is None else [str(part) for part in cast("list[object]", value)]
