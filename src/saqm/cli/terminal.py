"""What the commands share: options, progress, and how results and remarks are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from saqm.errors import ImageError, MissingExtra, OutputError

if TYPE_CHECKING:
    from datetime import datetime

    from rich.progress import TaskID

    from saqm.batch import Record
    from saqm.outputs.dicom import Maker
    from saqm.outputs.map_files import MapFormat
    from saqm.outputs.tally import Tally

Engine = Literal["auto", "onnx", "openvino", "openvino-bf16", "torch", "torch-bf16", "cuda", "cuda-bf16"]
Mask = Literal["auto", "none"]
Shown = Literal["table", "json", "jsonl", "csv", "tsv"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A shipped model, a model file, or a metric: niqe, niqe:ct, niqe:FILE."),
]
ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[,NAME...]",
        help="Shipped models, model files, metrics (niqe, niqe:ct, niqe:FILE), or all; see saqm models list.",
    ),
]
ModelArgument = Annotated[str, typer.Argument(help="A shipped model, a model file, or a metric: niqe, niqe:ct.")]
FrameOption = Annotated[str, typer.Option("--frame", metavar="N|all", help="One frame or slice, from 0; or all.")]
AxisOption = Annotated[int | None, typer.Option("--axis", min=0, max=2, help="The axis a volume is sliced along.")]
WindowOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--window", metavar="CENTRE WIDTH", help="Instead of the file's own (HU in CT)."),
]
MaskOption = Annotated[Mask, typer.Option("--mask", help="Leave out air, borders and text, or judge everything.")]
MaxPixels = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Refuse frames larger than this before decoding them.")
]


def from_training(module: str, function: str) -> Any:
    """A function of the training modules, some of which import torch at their top."""
    from importlib import import_module

    try:
        return getattr(import_module(f"saqm.{module}"), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "saqm":
            raise
        raise MissingExtra(error.name, "train", "training") from error


@contextmanager
def stages() -> Iterator[Callable[[str, int, int, Mapping[str, float]], None] | None]:
    """A bar on stderr for every stage of a training, where that is a terminal: steps done, loss, rate, time left."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        stages: dict[str, TaskID] = {}

        def on_step(what: str, step: int, steps: int, logs: Mapping[str, float]) -> None:
            if what not in stages or step < bar.tasks[stages[what]].completed:  # a new stage, or the next fold's
                stages[what] = bar.add_task(what, total=steps, shown="")
            speed = bar.tasks[stages[what]].speed
            rate = "" if speed is None else f"{speed:.1f} steps/s"
            bar.update(
                stages[what], completed=step, shown=f"loss {logs['loss']:.4f} {rate}" if "loss" in logs else rate
            )

        yield on_step


def print_made(made: dict[str, Any], as_json: bool) -> None:
    """What a training command gives back: what it wrote and how it went, by name."""
    if as_json:
        print_json(made)
        return
    for name, value in made.items():
        typer.echo(f"{name}: {value}")


def found(paths: Sequence[str]) -> list[str]:
    """The images that paths, folders, globs and dicomweb URLs name. Raises ImageError where there is none."""
    names = [name for path in paths for name in _named(path)]
    if not names:
        raise ImageError(f"no image found in {', '.join(paths)}")
    return names


def _named(path: str) -> Iterator[str]:
    if "://" in path:
        from saqm.dicomweb import from_environment, is_url, name_of, query_of, search

        if is_url(path):
            server = from_environment(path)
            return (name_of(server, each) for each in search(server, query_of(path)))
        raise ImageError(f"{path}: object stores are read by saqm score --on ray alone; name files here")
    from saqm.image import find_images

    return find_images([path])


def with_progress(records: Iterable[Record], files: int, tally: Tally | None = None) -> Iterator[Record]:
    """The records, noted in the tally; where stderr is a terminal, it shows files done, rate, time left, the tally."""
    from saqm.outputs.tally import Tally

    tally = Tally() if tally is None else tally
    with _live(files, tally) as advance:
        path: object = None
        for record in records:
            tally.note(record)
            if record["path"] != path:
                path = record["path"]
                advance()
            yield record


@contextmanager
def _live(files: int, tally: Tally) -> Iterator[Callable[[], None]]:
    """A display on stderr that is gone when the run is over; gives what to call for each file."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar = Progress(*columns, auto_refresh=False)
    task = bar.add_task("", total=files, rate="")

    def advance() -> None:
        speed = bar.tasks[task].speed
        bar.update(task, advance=1, rate="files" if speed is None else f"files, {speed:.1f}/s")

    def drawn() -> Group:
        return Group(bar, Text(tally.line(), no_wrap=True, overflow="ellipsis"))

    with Live(get_renderable=drawn, console=Console(stderr=True), transient=True):
        yield advance


def frames_of(text: str) -> int | Literal["all"]:
    """What --frame says. Raises BadParameter."""
    if text == "all":
        return "all"
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(f"--frame {text}: a number from 0, or all")


def window_of(window: tuple[float, float] | None) -> tuple[float, float] | None:
    """What --window says, checked. Raises BadParameter."""
    if window is not None and not window[1] > 0:
        raise typer.BadParameter(f"--window {window[0]:g} {window[1]:g}: the width must be above 0")
    return window


def map_formats_of(text: str) -> tuple[MapFormat, ...]:
    """What --map-format says: "png,nii". Raises BadParameter."""
    from saqm.outputs.map_files import MapFormat

    names = tuple(part.strip() for part in text.split(","))
    if not set(names) <= set(get_args(MapFormat)) or len(set(names)) < len(names):
        raise typer.BadParameter(f"--map-format {text}: {', '.join(get_args(MapFormat))}, each at most once")
    return cast("tuple[MapFormat, ...]", names)


def made_folder(folder: Path | None) -> Path | None:
    """The folder, made where it was not there. Raises OutputError."""
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def save_text(path: Path, text: str) -> None:
    """Write a text beside and put it in its place."""
    from saqm.writing import replacing

    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def now() -> str:
    """The time, for --timestamp."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def moment() -> datetime:
    """The time, with its zone, for objects that have to say when they were made."""
    from datetime import datetime

    return datetime.now().astimezone()


def this_maker() -> Maker:
    """This machine as the maker of DICOM objects: the same name, the same device."""
    import platform

    from saqm.outputs.dicom import Maker

    return Maker.named(platform.node())


def print_json(value: object) -> None:
    """Print JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_rich(what: object) -> None:
    """Print what rich draws, on stdout; what its encoding lacks comes as escapes."""
    from rich.console import Console

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    Console().print(what)


def say(text: str) -> None:
    """A remark for the person at the terminal, on stderr; nothing in it can move the cursor."""
    typer.echo("\n".join(_plain(line) for line in text.split("\n")), err=True)


def _plain(line: str) -> str:
    from saqm.outputs.table import printable

    return printable(line)
