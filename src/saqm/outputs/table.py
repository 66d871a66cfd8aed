"""Score records as tables: CSV, TSV, JSON Lines, JSON, Parquet, and a table for the terminal.

A record is one object of contract 4.4 (`Score.to_record()`). Flat columns have the same names, nested keys joined
with "_"; lists are joined with "; ". What is missing is empty in CSV and "n/a" in TSV. Records are taken one at a time:
no format but Parquet holds them all.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast, get_args

from saqm.errors import MissingExtra, OutputError
from saqm.writing import replacing

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

Record = Mapping[str, object]
TextFormat = Literal["csv", "tsv", "jsonl", "json"]
Format = Literal["csv", "tsv", "jsonl", "json", "parquet"]
Kind = Literal["text", "integer", "number", "flag", "texts", "numbers", "object"]

BAR = 10  # cells of a score's bar in the terminal
GAP = 2  # cells between columns, and before a note
LEAST_COLUMN = 12  # cells that a column is not narrowed below
EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_COLOURS = {"pass": "green", "review": "yellow", "fail": "red"}  # they only repeat the word
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
    _column("out_of_domain.view"),
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
                made = json.load(stream)
                if not isinstance(made, list):
                    raise OutputError(f"{path}: not a table of scores: wanted a JSON list of records")
                yield from made
    except (ValueError, csv.Error) as error:
        raise OutputError(f"{path}: not a table of scores: {error}") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


def table(records: Iterable[Record]) -> RichTable:
    """The table for a terminal, as wide as that is: file, bar, score, interval, verdict, cause, and a row's notes.

    Columns without content are left out. Where there are several models, or a metric, it names them; of a metric the
    raw value, and which direction of it is better. What is noted of every row stands below, once. Where the terminal
    has no Unicode, the bars are drawn in ASCII. Colours only repeat what words say.
    """
    return RichTable(tuple(records))


@dataclass(frozen=True)
class RichTable:
    """Records that rich can print."""

    records: tuple[Record, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        folder = _common_folder([str(record["path"]) for record in self.records])
        notes = [_notes(record) for record in self.records]
        shared = [note for note in notes[0] if all(note in others for others in notes)] if len(notes) > 1 else []
        columns, cells = _shown(self.records, len(folder), plain=options.ascii_only)
        names = [(column.name, "bold") for column in columns]
        widths = _widths(columns, [names, *cells], options.max_width)

        def line(row: list[tuple[str, str]]) -> Table:
            made = Table.grid(padding=(0, GAP, 0, 0))
            for column, width in zip(columns, widths, strict=True):
                made.add_column(justify=column.justify, width=width, overflow="fold")
            made.add_row(*(Text(text, style) for text, style in row))
            return made

        if folder:
            yield Text(printable(f"in {folder}"), "dim")
        yield line(names)
        for record, row, noted in zip(self.records, cells, notes, strict=True):
            yield line(row)
            if own := LIST_SEPARATOR.join(note for note in noted if note not in shared):
                yield Padding(Text(printable(own), "dim" if record["status"] == "scored" else "red"), (0, 0, 0, GAP))
        if shared:
            yield Text(printable(f"all: {LIST_SEPARATOR.join(shared)}"), "dim")


def _widths(columns: list[_Shown], rows: list[list[tuple[str, str]]], width: int) -> list[int]:
    """Of each column what its widest cell takes; those that wrap give way where the terminal is too narrow."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[number][0]) for row in rows) for number in range(len(columns))]
    excess = sum(widths) + GAP * len(widths) - width
    for number in (number for number, column in enumerate(columns) if column.wraps):
        taken = min(max(excess, 0), max(widths[number] - LEAST_COLUMN, 0))
        widths[number] -= taken
        excess -= taken
    return widths


@dataclass(frozen=True)
class _Shown:
    """A column of the terminal's table; `cell` gives text and style, "" where there is nothing to say."""

    name: str
    cell: Callable[[Record], tuple[str, str]]
    justify: Literal["left", "right"] = "left"
    wraps: bool = False


def _shown(records: Sequence[Record], folder: int, *, plain: bool) -> tuple[list[_Shown], list[list[tuple[str, str]]]]:
    """The columns that have something to say, and each row's text and style in them.

    `folder` is the length of what all paths begin with.
    """
    models = {_value(record, ("model", "name")) for record in records} - {None}
    metrics = any(_value(record, ("model", "direction")) for record in records)
    score = "{:.0f}" if any(record["interval"] for record in records) else "{:.1f}"  # finer than an interval is noise
    columns = [
        _Shown("file", lambda record: (f"{record['path']}{_frame(record)}"[folder:], ""), wraps=True),
        _Shown("model", lambda record: (str(_value(record, ("model", "name")) or "-"), "")),
        _Shown("", lambda record: (_bar(record, plain=plain), _bar_style(record))),
        _Shown("score", lambda record: (_rounded(record["score"], score), "bold"), "right"),
        _Shown(_interval_name(records), lambda record: (_interval(record), "")),
        _Shown("verdict", lambda record: (str(record["verdict"] or ""), _COLOURS.get(str(record["verdict"]), ""))),
        _Shown("cause", lambda record: (_causes(record), ""), wraps=True),
        _Shown("raw", lambda record: (_rounded(record["score_raw"], "{:#.4g}"), ""), "right"),
        _Shown("better", lambda record: (_better(record), "")),
    ]
    named = len(models) > 1 or metrics
    left_out = {*([] if named else ["model"]), *([] if metrics else ["raw", "better"])}
    rows = [[column.cell(record) for column in columns] for record in records]
    kept = [
        number
        for number, column in enumerate(columns)
        if column.name not in left_out and (column.name == "file" or any(row[number][0] for row in rows))
    ]
    return [columns[n] for n in kept], [[(printable(row[n][0]), row[n][1]) for n in kept] for row in rows]


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


def _frame(record: Record) -> str:
    return "" if record["frame"] is None else f" [{record['frame']}]"


def _bar(record: Record, *, plain: bool) -> str:
    """The score as a bar of ten cells, or that there is none; "" for a metric."""
    score = record["score"]
    if not isinstance(score, int | float):
        return "" if record["status"] == "scored" else "not scored"
    if plain:
        return f"{'#' * round(score / 100 * BAR)}".ljust(BAR, ".")
    whole, eighths = divmod(round(score / 100 * BAR * 8), 8)
    return f"{'█' * whole}{EIGHTHS[eighths]}".ljust(BAR, "·")


def _bar_style(record: Record) -> str:
    return "red" if record["status"] != "scored" else _COLOURS.get(str(record["verdict"]), "cyan")


def _interval_name(records: Sequence[Record]) -> str:
    """What all the intervals promise, where that is the same."""
    promised = {record["coverage"] for record in records} - {None}
    return f"{promised.pop():.0%} interval" if len(promised) == 1 else "interval"


def _interval(record: Record) -> str:
    """The interval; with a question mark where nothing is promised of it."""
    if record["interval"] is None:
        return ""
    low, high = cast("list[float]", record["interval"])
    return f"[{low:.0f}, {high:.0f}]{'' if record['coverage'] is not None else '?'}"


def _causes(record: Record) -> str:
    return ", ".join(str(finding["name"]) for finding in cast("list[Record]", record.get("findings") or []))


def _better(record: Record) -> str:
    direction = _value(record, ("model", "direction")) or ("" if record["score"] is None else "higher is better")
    return str(direction).removesuffix(" is better")


def _notes(record: Record) -> list[str]:
    """What a person is to know of a row: that it is out of domain, why it has no score, its warnings."""
    path, domain = str(record["path"]), record["out_of_domain"]
    notes = [note.removeprefix(f"{path}: ") for note in _texts(record["reasons"]) + _texts(record["warnings"])]
    if isinstance(domain, Mapping) and domain["flag"] and not any(note.startswith("unlike ") for note in notes):
        notes.append(f"unlike training (p = {domain['p']:.2g})")
    return sorted(notes, key=lambda note: not note.startswith("unlike "))


def _texts(value: object) -> list[str]:
    return [] if value is None else [str(part) for part in cast("list[object]", value)]
