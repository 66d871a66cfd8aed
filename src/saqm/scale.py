"""Scoring on many machines with Ray Data: the records of `saqm.batch`, bit for bit, from folders or object stores.

What is scored, and the rows, may lie in an object store: a URL that fsspec knows.

    names = list(find_everywhere(["s3://bucket/archive/", "study/"]))
    for record in score_on_ray(names, Settings(), workers=8):
        print(record["path"], record["score"])

Each Ray worker keeps one scoring process of `saqm.workers` with the models loaded, so a file that kills its process
or takes too long costs its own rows alone. A Ray worker that dies is started anew and does its files again. Rows come
in the order of the names, each file's once. RAY_ADDRESS names a cluster to join; without it one is started here, for
this run alone. On a cluster saqm, model files and local folders have to be at the same place on every machine.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from saqm import __version__
from saqm.batch import Record, Settings, decisive, load_scorers, unread
from saqm.errors import ImageError, MissingExtra, ModelFileError, OutputError, SaqmError
from saqm.image.find import HEAD, IMAGE_SUFFIXES, MEMBER, OTHER_SUFFIXES, counts_as_image, find_images
from saqm.modelfile import DEFAULT_MODEL
from saqm.outputs.table import save_records
from saqm.workers import Task, Workers
from saqm.writing import replacing

if TYPE_CHECKING:
    from types import ModuleType

    from saqm.scorer import Score

TOGETHER = 32  # files of one piece of work: seconds of it, against milliseconds that Ray takes for a piece
PIECES_PER_WORKER = (
    4  # at least, where there are files enough, so that the last worker does not keep the others waiting
)
PART_ROWS = 1000  # of one file of a folder of parts; what a stopped run has to do again at most, and some pieces
REMOTE = "://"
ARCHIVE = ".zip"
AT_ONCE = 1000  # objects whose first bytes are asked for together
S3 = ("s3://", "s3a://")
# Nothing is reported to anyone, and Ray's own remarks go to its log files. Whoever has set these is left alone.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


def find_everywhere(paths: Iterable[str]) -> Iterator[str]:
    """`find_images`, for URLs that fsspec knows as well: s3://bucket/folder, gs://..., file:///folder/*.dcm.

    An archive in an object store comes by its own name; its members become rows when it is scored. Raises ImageError
    for a kind of URL that nothing here opens, or a place that cannot be listed; MissingExtra without fsspec, or without
    s3fs for s3://.
    """
    for path in paths:
        yield from _objects(path) if REMOTE in path else find_images([path])


def score_on_ray(
    names: Sequence[str], settings: Settings, *, workers: int = 1, seconds: float | None = 300
) -> Generator[Record]:
    """Score files as `find_everywhere` names them: their records in order, streamed.

    What cannot be scored is a record with its reason. workers: Ray workers, each on one core. seconds: how long a frame
    may take. Raises ModelFileError at once where a model is refused, SaqmError for maps (they would be written
    wherever a worker runs) and where Ray gives up, MissingExtra without Ray.
    """
    if workers < 1:
        raise SaqmError(f"{workers} workers; at least 1 is needed")
    if settings.map_folder is not None:
        raise SaqmError("quality maps are not written on Ray: leave the map out, or score those files here")
    load_scorers(settings)  # what is refused is told before a cluster is started
    return _scored(names, settings, workers, seconds, _ray())


def begin_parts(folder: str | Path, settings: Settings, *, resume: bool = False) -> set[str]:
    """Make a folder ready for `save_parts`, here or in a store; the names that it has rows of, to be left out.

    They are known by name, not by content. Raises OutputError where there are parts and `resume` is not asked for, they
    were made with another model, version or other settings, or it cannot be written; ModelFileError, MissingExtra.
    """
    header = {"saqm": __version__, "models": [s.model for s in load_scorers(settings)], "settings": decisive(settings)}
    asked = json.dumps(header, sort_keys=True)
    where = _where(folder)
    if isinstance(where, Path):
        with _telling(folder, "written"):
            where.mkdir(parents=True, exist_ok=True)
    elif "/" not in where[1].strip("/"):
        raise OutputError(f"{folder}: a whole bucket; name a folder in it")
    mark = f"{str(folder).rstrip('/')}.run.json"  # beside it: whoever reads the folder meets Parquet alone
    if not _parts(folder):
        _write(mark, asked)
        return set()
    if not resume:
        raise OutputError(f"{folder}: has the parts of an earlier run; --resume goes on with it, or name another")
    if _read(mark, missing=b"").decode("utf-8") != asked:
        raise OutputError(
            f"{folder}: begun with another model, version or other options than these ({mark}); give the same, or "
            "name another folder"
        )
    return names_in(folder)


def save_parts(records: Iterable[Record], folder: str | Path, *, rows: int = PART_ROWS) -> None:
    """Write records into a folder of Parquet files of about `rows` rows, here or in a store: memory stays flat.

    A file's rows lie in one part, so what is there of a stopped run is whole. Raises OutputError, and MissingExtra
    without polars.
    """
    part = 1 + max((int(PurePosixPath(name).stem.removeprefix("part-")) for name in _parts(folder)), default=-1)
    held: list[Record] = []
    for _, of_file in groupby(records, lambda record: _listed_as(str(record["path"]))):
        held += of_file
        if len(held) >= rows:
            _save(held, _inside(folder, f"part-{part:06d}.parquet"))
            held, part = [], part + 1
    if held:
        _save(held, _inside(folder, f"part-{part:06d}.parquet"))


def names_in(folder: str | Path) -> set[str]:
    """What a folder of parts has rows of, as `find_everywhere` names it. Raises OutputError, MissingExtra."""
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingExtra("polars", "parquet", "reading Parquet") from error
    names: set[str] = set()
    for part in _parts(folder):
        with _telling(part, "read"):
            names.update(map(_listed_as, polars.read_parquet(_read(part), columns=["path"])["path"]))
    return names


# Here


def _scored(
    names: Sequence[str], settings: Settings, workers: int, seconds: float | None, ray: ModuleType
) -> Generator[Record]:
    if not names:
        return
    pieces = -(-len(names) // TOGETHER)
    pieces = min(len(names), max(pieces, workers * PIECES_PER_WORKER))
    with _cluster(ray, workers):
        items = [{"place": place, "name": os.fsencode(name)} for place, name in enumerate(names)]
        dataset = ray.data.from_items(items, override_num_blocks=pieces).map_batches(
            _Scoring,
            fn_constructor_args=(settings, seconds),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=None,  # a piece at a time
            num_cpus=1,
        )
        due = 0
        try:
            for piece in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for answer in piece.to_pylist():
                    if answer["error"]:
                        raise ModelFileError(answer["error"])
                    if answer["place"] != due:
                        raise SaqmError(f"Ray gave file {answer['place']} where {due} was due: a fault, please report")
                    due += 1
                    yield from json.loads(answer["records"])
        except ray.exceptions.RayError as error:
            raise SaqmError(f"Ray gave up after {due} of {len(names)} files: {error}") from error
        if due != len(names):
            raise SaqmError(f"Ray gave {due} of {len(names)} files: a fault, please report")


def _ray() -> ModuleType:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray", "scoring on Ray") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    module: ModuleType = ray
    return module


@contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    """The cluster that is there, that RAY_ADDRESS names, or one started here and ended again."""
    joined = ray.is_initialized()
    if not joined:
        own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "num_cpus": workers}
        ray.init(**own, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
        if not joined:
            ray.shutdown()


# Where rows go: a path, or a URL


def _where(name: str | Path) -> Path | tuple[Any, str]:
    """A path of this machine, or a store with the path in it. Raises OutputError, MissingExtra."""
    if REMOTE not in str(name):
        return Path(name)
    try:
        store, path = _store(str(name))
    except ImageError as error:
        raise OutputError(str(error)) from error
    return Path(path) if "file" in store.protocol else (store, path)


def _inside(folder: str | Path, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"


def _parts(folder: str | Path) -> list[str]:
    """The parts in a folder, in order; a store that has no such folder has none."""
    where = _where(folder)
    if isinstance(where, Path):
        return sorted(str(path) for path in where.glob("part-*.parquet"))
    store, root = where
    with _telling(folder, "listed"):
        store.invalidate_cache()  # another may have written since
        try:
            there = [PurePosixPath(path).name for path in store.ls(root, detail=False)]
        except FileNotFoundError:
            return []
    return sorted(_inside(folder, name) for name in there if name.startswith("part-") and name.endswith(".parquet"))


def _listed_as(path: str) -> str:
    """The file or object that a row's path is of: an archive in a store is one object, whatever its members."""
    end = path.lower().find(f"{ARCHIVE}{MEMBER}") if REMOTE in path else -1
    return path if end < 0 else path[: end + len(ARCHIVE)]


def _read(name: str, missing: bytes | None = None) -> bytes:
    """What a file or object holds; `missing` where it is not there, unless that is None."""
    where = _where(name)
    with _telling(name, "read"):
        try:
            content: bytes = where.read_bytes() if isinstance(where, Path) else where[0].cat_file(where[1])
        except FileNotFoundError:
            if missing is None:
                raise
            return missing
    return content


def _save(records: Iterable[Record], name: str) -> None:
    """`save_records`; what goes to a store is made here, and put there whole."""
    where = _where(name)
    if isinstance(where, Path):
        save_records(records, where)
        return
    store, path = where
    with tempfile.TemporaryDirectory(prefix="saqm-") as folder:
        made = Path(folder, PurePosixPath(path).name)
        save_records(records, made)
        with _telling(name, "written"):
            store.put_file(str(made), path)


def _write(name: str, text: str) -> None:
    where = _where(name)
    if isinstance(where, Path):
        with replacing(where) as beside:
            beside.write_text(text, encoding="utf-8")
        return
    with _telling(name, "written"):
        where[0].pipe_file(where[1], text.encode("utf-8"))


@contextmanager
def _telling(name: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong in it is an OutputError: every store raises its own."""
    try:
        yield
    except SaqmError:
        raise
    except Exception as error:
        raise OutputError(f"{name}: cannot be {what}: {_reason(error)}") from error


# Object stores


def _objects(url: str) -> Iterator[str]:
    store, root = _store(url)
    try:
        store.invalidate_cache()  # another may have written since
        found = list(_listed(store, root))
    except Exception as error:  # every store raises its own
        raise ImageError(f"{url}: cannot be listed: {_reason(error)}") from error
    for path in found:
        yield store.unstrip_protocol(path)


def _listed(store: Any, root: str) -> Iterator[str]:
    """The objects that a path in a store stands for, as `find_images` has it for files."""
    if store.isdir(root):
        yield from _in_folder(store, root)
        return
    if glob.has_magic(root) and not store.isfile(root):
        matches = store.glob(root, detail=True)
        shown = [path for path in sorted(matches) if _hidden(root) or not _hidden(path)]
        for path in shown:
            yield from _in_folder(store, path) if matches[path]["type"] == "directory" else [path]
        if shown:
            return
    yield root  # there or not: it is to be a row with a reason


def _in_folder(store: Any, root: str) -> Iterator[str]:
    """The objects in a folder that are worth fetching, as `find_images` has it for files."""
    about = store.find(root, detail=True)
    shown = [path for path in sorted(about) if not _hidden(path.removeprefix(root))]
    unnamed = [path for path in shown if not path.lower().endswith(IMAGE_SUFFIXES + OTHER_SUFFIXES)]
    # an empty object, such as stands for a folder, has no first bytes: a store refuses to give them
    heads = _heads(store, [path for path in unnamed if about[path].get("size") != 0])
    dicom = {path for path, head in heads if counts_as_image(path, partial(bytes, head))}
    return (path for path in shown if path in dicom or path.lower().endswith((*IMAGE_SUFFIXES, ARCHIVE)))


def _heads(store: Any, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The first bytes of objects, many asked for at once where the store can: one by one an archive takes hours."""
    for start in range(0, len(paths), AT_ONCE):
        few = paths[start : start + AT_ONCE]
        for path, head in zip(few, store.cat_ranges(few, [0] * len(few), [HEAD] * len(few)), strict=True):
            if isinstance(head, Exception):
                raise head
            yield path, head


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _store(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise MissingExtra("fsspec", "ray", "reading from object stores") from error
    try:
        store, path = url_to_fs(url)
    except (ImportError, ValueError) as error:  # a store whose package is missing; a protocol that nobody knows
        if isinstance(error, ImportError) and url.startswith(S3):
            raise MissingExtra("s3fs", "s3", url) from error
        raise ImageError(f"{url}: cannot be opened: {error}") from error
    return store, path


def _tasks(name: str, settings: Settings, folder: str) -> list[Task]:
    """What is to be done for one name: an object is fetched first, into `folder`. Raises ImageError."""
    if REMOTE not in name:
        return [Task(name, name, settings)]
    store, path = _store(name)
    fetched = Path(tempfile.mkdtemp(dir=folder)) / (PurePosixPath(path).name or "object")
    try:
        store.get_file(path, str(fetched))
    except Exception as error:  # every store raises its own
        raise ImageError(f"{name}: cannot be fetched: {_reason(error)}") from error
    if fetched.suffix.lower() != ARCHIVE:
        return [Task(str(fetched), name, settings)]
    members = list(find_images([fetched]))
    if not members:
        raise ImageError(f"{name}: no image in this archive")
    return [Task(member, member.replace(str(fetched), name, 1), settings) for member in members]


# In a Ray worker


class _Scoring:
    """What a Ray worker keeps from piece to piece: one scoring process with its models."""

    def __init__(self, settings: Settings, seconds: float | None) -> None:
        self._settings = settings
        given = settings.model if isinstance(settings.model, tuple) else (settings.model or DEFAULT_MODEL,)
        self._workers = Workers(given, engine=settings.engine, seconds=seconds)

    def __call__(self, piece: dict[str, Any]) -> dict[str, Any]:
        names = [os.fsdecode(name) for name in piece["name"]]
        try:
            with tempfile.TemporaryDirectory(prefix="saqm-") as folder:
                records, error = [json.dumps(made, allow_nan=False) for made in self._score(names, folder)], ""
        except ModelFileError as broken:  # no fault of a file: the run ends with it
            records, error = [""] * len(names), str(broken)
        return {"place": piece["place"], "records": records, "error": [error] * len(names)}

    def _score(self, names: Sequence[str], folder: str) -> list[list[Record]]:
        """The records of each file; those of a piece share the engine's batches."""
        work: list[list[Task] | tuple[Score, ...]] = []
        for name in names:
            try:
                work.append(_tasks(name, self._settings, folder))
            except (ImageError, MissingExtra) as error:  # or a machine of the cluster lacks a package
                work.append(unread(name, str(error), self._workers.models))
        answers = iter(self._workers.score([task for part in work if isinstance(part, list) for task in part]))
        return [
            [
                score.to_record()
                for score in (
                    chain.from_iterable(next(answers).scores for _ in part) if isinstance(part, list) else part
                )
            ]
            for part in work
        ]
