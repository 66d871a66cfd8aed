"""Many files: one row for each whatever happens to it, in the order they came, on any number of processes.

    settings = Settings(model=("saqm-ct", "niqe"), window=(40, 400))
    for score in score_many(find_images(["study/"]), settings, jobs=4):
        print(score.path, score.model["name"], score.score, score.score_raw, score.reasons)

With several models each image is read once and gives a row for each of them, in the order they were named.

Every worker runs its engine on one thread, so the numbers are the same bits whatever `jobs`; on a GPU all of them read
and cut, and use the one engine of the calling process. With `jobs` above 1 the
calling script needs the usual `if __name__ == "__main__":`, because workers are started afresh (spawn).
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self, TypeGuard, cast

from saqm import __version__
from saqm.errors import ImageError, ModelFileError, OutputError, SaqmError
from saqm.image import DEFAULT_MAX_PIXELS, MaskMode

if TYPE_CHECKING:
    from datetime import datetime

    from saqm.engine import EngineName
    from saqm.image import Image
    from saqm.lending import Loan
    from saqm.outputs.dicom import Maker
    from saqm.outputs.map_files import MapFiles, MapFormat
    from saqm.scorer import AnyScorer, ModelScorer, Score

Record = Mapping[str, object]
Scorers = tuple["AnyScorer", ...]
Loans = tuple["Loan | None", ...]  # of each scorer whose engine another process lends
Pools = Callable[[int], ProcessPoolExecutor]  # a pool of so many workers
Groups = Generator[tuple[str, "tuple[Score, ...] | None"]]  # each file's name with its rows

PENDING_PER_JOB = 4  # files waiting for each worker: enough to keep it busy, few enough to bound memory


@dataclass(frozen=True)
class Settings:
    """How every file of a batch is read and scored.

    model: a name or file as `load_scorer` takes it, or several; None is the default. engine, stride and the map's
    options are for those that have windows, and refused where none has.
    frames: "all" gives a row for each frame or slice; a number (0-based) that one alone.
    window: centre and width, in the file's own units after rescale; None: the file's.
    axis: which axis of a volume its slices are cut along; volumes need one.
    stride: pixels between windows; None: the model's. tolerance: look at windows only until the standard error left by
    the others is so many points; None: at all of them.
    map_folder: where the quality map of each scored image goes; None: nowhere. map_formats: as which files.
    map_maker: who makes the maps that are DICOM objects, and when; needed for those alone.
    map_stride: pixels between the map's windows; None: as between the score's, so that its mean is the score.
    strict: withhold the score of an image that is unlike those the model knows; refused where a model cannot tell.
    created: time to note in the records; None keeps them the same from run to run.
    """

    model: str | Path | tuple[str | Path, ...] | None = None
    engine: EngineName = "auto"
    frames: int | Literal["all"] = "all"
    window: tuple[float, float] | None = None
    mask: MaskMode = "auto"
    axis: int | None = None
    stride: int | None = None
    tolerance: float | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    map_folder: Path | None = None
    map_formats: tuple[MapFormat, ...] = ("png",)
    map_maker: tuple[Maker, datetime] | None = None
    map_stride: int | None = None
    strict: bool = False
    created: str | None = None


def score_many(names: Iterable[str], settings: Settings, *, jobs: int = 1) -> Generator[Score]:
    """Score files as `find_images` names them: rows in that order, one for each frame and model, streamed.

    What cannot be scored is a row with its reason. Names are taken as they are needed; a few per job wait at most.
    Raises ModelFileError at once where a model is refused, and OutputError where a map cannot be written.
    """
    return _rows(_groups(names, settings, load_scorers(settings), jobs, lambda _: False))


def score_journaled(
    names: Iterable[str], settings: Settings, journal: Journal, *, jobs: int = 1, once: bool = False
) -> Generator[Record]:
    """`score_many` as records, noted in the journal before they are given out; known files are not scored again.

    `once`: of files with the same bytes the first is scored, and the others get its rows with a warning that names it.
    Raises SaqmError for that with maps, which would be missing.
    """
    if once and settings.map_folder is not None:
        raise SaqmError("of files with the same bytes one alone would have a map: leave out the maps, or once")
    known = journal.knows_the_bytes if once else journal.knows
    return _noted(_groups(names, settings, journal.scorers, jobs, known), journal)


def journal_path(result: Path) -> Path:
    """Where the journal of a result stands until that is whole."""
    return result.with_name(f"{result.name}.partial.jsonl")


class Journal:
    """Finished records, kept line by line beside a result until it is whole, so that a stopped run can go on.

    The first line says what decides the numbers; each further line holds one file's records. A last line that was torn
    when the run stopped is dropped. A file counts as known where its bytes are those that were scored.
    """

    def __init__(self, result: Path, settings: Settings, *, resume: bool) -> None:
        """Open the journal of `result`; `resume` takes over what it has.

        Raises OutputError where it cannot be written, or was begun with other settings than these; ModelFileError.
        """
        self.path = journal_path(result)
        self.scorers, self._settings = load_scorers(settings), settings
        self._places: dict[str, tuple[str, int]] = {}  # file name -> hash of its bytes, offset of its line
        self._first: dict[tuple[str, str], str] = {}  # hash and suffix -> the first file that had them
        self._copies: dict[str, str] = {}  # file name -> the first file with its bytes
        models = [scorer.model for scorer in self.scorers]
        header = {"saqm": __version__, "models": models, "settings": decisive(settings)}
        try:
            self._file: IO[bytes] = self.path.open("r+b" if resume and self.path.exists() else "w+b")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            if not self._take_over(header):
                self._append(header)
        except BaseException:
            self._let_go()
            raise

    def adopt(self, records: Iterable[Record]) -> None:
        """Take over what a finished result tells was made as it would be made now; the rest is scored again."""
        for name, group in groupby(records, lambda record: str(record["path"])):
            taken = list(group)
            if (
                name not in self._places
                and len(taken) == len(self.scorers)
                and all(map(self._would_make, taken, self.scorers))
            ):
                self.add(name, taken)

    def knows(self, name: str) -> bool:
        """Whether the file was scored and has not changed since; what could not be read is tried again."""
        from saqm.image import sha256_of

        place = self._places.get(name)
        if "://" in name:  # an instance never changes under its UID
            return place is not None and place[0] != str(None)
        try:
            return place is not None and place[0] == sha256_of(name, max_pixels=self._settings.max_pixels)
        except ImageError:
            return False

    def knows_the_bytes(self, name: str) -> bool:
        """`knows`, or a file of the same bytes is scored already, or under way: this one will get its rows."""
        from saqm.image import sha256_of

        known = self.knows(name)
        if "://" in name:  # not fetched to find out
            return known
        try:
            digest = self._places[name][0] if known else sha256_of(name, max_pixels=self._settings.max_pixels)
        except ImageError:
            return False
        first = self._first.setdefault((digest, Path(name).suffix.lower()), name)  # a suffix may choose the reader
        if not known and first != name:
            self._copies[name] = first
        return known or first != name

    def copied(self, name: str) -> list[Record] | None:
        """The rows of the first file with the same bytes, as this file's; None for a file that was scored itself."""
        first = self._copies.pop(name, None)
        if first is None:
            return None
        said = f"the same bytes as {first}: scored once"
        return [
            {
                **record,
                "path": name,
                "reasons": [str(each).replace(first, name) for each in cast("list[str]", record["reasons"])],
                "warnings": [*cast("list[str]", record["warnings"]), said],
            }
            for record in self.records(first)
        ]

    def add(self, name: str, records: Sequence[Record]) -> None:
        """Note one file's records; they are on their way to the disk when this returns."""
        hashes = {record["sha256"] for record in records}
        known = hashes.pop() if len(hashes) == 1 else None
        place = self._append({"name": name, "sha256": known, "records": records})
        self._places[name] = (str(known), place)

    def records(self, name: str) -> list[Record]:
        """What was noted for a file."""
        self._file.seek(self._places[name][1])
        return list(json.loads(self._file.readline())["records"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the journal; it is removed where its result was finished."""
        self._let_go()
        if kind is None:
            self.path.unlink(missing_ok=True)

    def _would_make(self, record: Record, scorer: AnyScorer) -> bool:
        """Whether a record says that this saqm, scorer and settings made it. Frames and slices do not say enough."""
        from saqm.scorer import SOFTWARE, ModelScorer

        settings, preparation = self._settings, _part(record, "preparation")
        window, mask = _part(preparation, "window"), _part(preparation, "mask")
        asked = (window.get("center"), window.get("width")) if window.get("from") == "caller" else None
        own = scorer.header.preparation.stride if isinstance(scorer, ModelScorer) else None
        withheld = settings.strict and own is not None and _part(record, "out_of_domain").get("flag") is not False
        return (
            record.get("software") == SOFTWARE
            and record.get("status") == "scored"
            and record.get("frame") is None
            and not withheld
            and record.get("model") == scorer.model
            and preparation.get("stride") == (own and (settings.stride or own))
            and (_part(preparation, "sampled").get("tolerance") == settings.tolerance or own is None)
            and mask.get("mode") == settings.mask
            and asked == settings.window
        )

    def _append(self, entry: Mapping[str, object]) -> int:
        try:
            place = self._file.seek(0, 2)
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
        except OSError as error:  # a full disk; the torn line is dropped by the next run
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        return place

    def _let_go(self) -> None:
        with suppress(OSError):  # what could not be written was told when it was tried
            self._file.close()

    def _take_over(self, header: Mapping[str, object]) -> bool:
        """Index the lines that are there; False where there is not even a header."""
        place = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            if place == 0 and entry != json.loads(json.dumps(header)):
                raise OutputError(
                    f"{self.path}: begun with another model, version or other options than these; "
                    "give the same, or start afresh without --resume"
                )
            if place:
                self._places[entry["name"]] = (str(entry["sha256"]), place)
            place += len(line)
        self._file.truncate(place)
        return place > 0


def decisive(settings: Settings) -> dict[str, object]:
    """The settings that decide what a record says; the model is told by its hash."""
    return {
        k: str(v) if isinstance(v, Path) else v
        for k, v in asdict(settings).items()
        if k not in ("model", "created", "map_maker")
    }


def _part(record: Record, key: str) -> Record:
    """A nested part of a record, empty where it is missing."""
    part = record.get(key)
    return part if isinstance(part, Mapping) else {}


def _rows(groups: Groups) -> Generator[Score]:
    with closing(groups):
        for _, scores in groups:
            yield from scores or ()


def _noted(groups: Groups, journal: Journal) -> Generator[Record]:
    with closing(groups):
        for name, scores in groups:
            records = journal.copied(name) if scores is None else [score.to_record() for score in scores]
            if records is not None:
                journal.add(name, records)
            yield from journal.records(name)


def _groups(
    names: Iterable[str], settings: Settings, scorers: Scorers, jobs: int, known: Callable[[str], bool]
) -> Groups:
    """Each name with its rows, in order; None in place of rows where the name is known already."""
    if jobs < 1:
        raise SaqmError(f"jobs={jobs}; at least 1 process is needed")
    if jobs > 1:
        return _parallel(names, settings, scorers, jobs, known)
    return ((name, None if known(name) else _score_file(name, settings, scorers)) for name in names)


def _parallel(
    names: Iterable[str], settings: Settings, scorers: Scorers, jobs: int, known: Callable[[str], bool]
) -> Groups:
    from saqm.lending import lend

    with ExitStack() as stack:
        loans = tuple(stack.enter_context(lend(scorer.engine)) if _lends(scorer) else None for scorer in scorers)
        models = [scorer.model for scorer in scorers]
        yield from _by_workers(names, jobs, known, partial(_pool, settings, loans), models)


def _lends(scorer: AnyScorer) -> TypeGuard[ModelScorer]:
    """Whether all workers use this process's engine: a GPU's."""
    from saqm.scorer import ModelScorer

    return isinstance(scorer, ModelScorer) and scorer.engine.name.startswith("cuda")


def _by_workers(
    names: Iterable[str], jobs: int, known: Callable[[str], bool], pool_of: Pools, models: Sequence[Mapping[str, str]]
) -> Groups:
    waiting: deque[tuple[str, ProcessPoolExecutor, Future[tuple[Score, ...]] | None]] = deque()
    todo = iter(names)
    pool = pool_of(jobs)
    future: Future[tuple[Score, ...]] | None
    try:
        while True:
            while len(waiting) < jobs * PENDING_PER_JOB and (name := next(todo, None)) is not None:
                if known(name):
                    waiting.append((name, pool, None))
                    continue
                try:
                    future = pool.submit(_work, name)
                except BrokenProcessPool:
                    pool = pool_of(jobs)
                    future = pool.submit(_work, name)
                waiting.append((name, pool, future))
            if not waiting:
                return
            name, its_pool, future = waiting.popleft()
            try:
                scores = None if future is None else future.result()
            except BrokenProcessPool:
                # A worker died, and nothing says at which file. All that were under way raise this in their turn;
                # each is tried in a process of its own, and the one that kills that too is the one at fault.
                if its_pool is pool:
                    pool = pool_of(jobs)
                scores = _score_alone(name, pool_of, models)
            yield name, scores
    finally:
        pool.shutdown(cancel_futures=True)


def _score_alone(name: str, pool_of: Pools, models: Sequence[Mapping[str, str]]) -> tuple[Score, ...]:
    with pool_of(1) as single:
        try:
            return single.submit(_work, name).result()
        except BrokenProcessPool:
            reason = f"{name}: the process that scored it died (out of memory, or a crash inside a decoder)"
            return unread(name, reason, models)


def _pool(settings: Settings, loans: Loans, jobs: int) -> ProcessPoolExecutor:
    # spawn: ONNX Runtime and torch hold threads, which a forked process would find dead
    return ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(settings, loans)
    )


_worker: tuple[Settings, Scorers] | None = None  # set once in each worker process, never in the caller's


def _begin_worker(settings: Settings, loans: Loans) -> None:
    global _worker  # noqa: PLW0603  a process pool has no other place to keep what it loads once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    _worker = (settings, load_scorers(settings, loans))


def _work(name: str) -> tuple[Score, ...]:
    if _worker is None:
        raise RuntimeError("a worker was given work before it had loaded its model")
    return _score_file(name, *_worker)


def load_scorers(settings: Settings, loans: Loans = ()) -> Scorers:
    """What scores each image, in order; where there is a loan, by the engine that another process lends.

    Raises SaqmError for an option that none of them has a use for.
    """
    from saqm.lending import borrow
    from saqm.scorer import ModelScorer, load_scorer

    one = settings.model is None or isinstance(settings.model, str | Path)
    models = cast("Sequence[str | Path | None]", (settings.model,) if one else settings.model)
    scorers = tuple(
        load_scorer(model, engine=settings.engine, threads=1) if loan is None else ModelScorer(borrow(loan))
        for model, loan in zip_longest(models, loans)
    )
    names = [scorer.name for scorer in scorers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SaqmError(f"two of the models are called {twice}, so their rows could not be told apart")
    if not any(isinstance(scorer, ModelScorer) for scorer in scorers):
        for option, given in (
            (f"engine {settings.engine}", settings.engine != "auto"),
            (f"a stride of {settings.stride}", settings.stride is not None),
            ("a tolerance", settings.tolerance is not None),
            ("a quality map", settings.map_folder is not None),
            ("strict", settings.strict),
        ):
            if given:
                raise SaqmError(
                    f"{option} is for models; metrics have no use for it ({', '.join(names)}): leave it out"
                )
    if settings.tolerance is not None and settings.map_folder is not None:
        raise SaqmError("a quality map needs every window: leave the tolerance out")
    if settings.strict:
        _refuse_strict(scorers)
    return scorers


def _refuse_strict(scorers: Scorers) -> None:
    """Raise SaqmError for a model that cannot tell what is unlike its training images: nothing would be withheld."""
    from saqm.scorer import ModelScorer

    for scorer in scorers:
        known = scorer.header.calibration if isinstance(scorer, ModelScorer) else None
        if isinstance(scorer, ModelScorer) and (known is None or not known.familiar):
            raise SaqmError(f"strict: {scorer.name} cannot tell which images are unlike those it knows: leave it out")


def _score_file(name: str, settings: Settings, scorers: Scorers) -> tuple[Score, ...]:
    """Every row of one file: each frame by each scorer, a frame's rows together; what a URL names is fetched for it."""
    if "://" not in name:
        return _score_local(name, settings, scorers)
    from saqm.dicomweb import DicomwebError, fetched

    try:
        with fetched(name) as path:
            return tuple(called(row, str(path), name) for row in _score_local(str(path), settings, scorers))
    except DicomwebError as error:
        rows = unread(name, str(error), [scorer.model for scorer in scorers])
        return tuple(replace(row, created=settings.created) for row in rows)


def called(score: Score, path: str, name: str) -> Score:
    """The row with the name that the caller gave, wherever the path of the file stands."""
    reasons, warnings = (tuple(text.replace(path, name) for text in texts) for texts in (score.reasons, score.warnings))
    return replace(score, path=score.path.replace(path, name), reasons=reasons, warnings=warnings)


def _score_local(name: str, settings: Settings, scorers: Scorers) -> tuple[Score, ...]:
    rows: list[Score] = []
    with _map_files(settings) as maps:
        try:
            for image in images(name, settings):
                rows += [_score_image(image, settings, scorer, maps, several=len(scorers) > 1) for scorer in scorers]
        except Exception as error:
            rows += unread(name, reason_of(name, error), [scorer.model for scorer in scorers])
    return tuple(replace(row, created=settings.created) for row in rows)


def _map_files(settings: Settings) -> AbstractContextManager[MapFiles | None]:
    if settings.map_folder is None:
        return nullcontext()
    from saqm.outputs.map_files import MapFiles

    return MapFiles(settings.map_folder, settings.map_formats, settings.map_maker)


def reason_of(name: str, error: Exception) -> str:
    """Why a row has no score. A broken model, or a map that cannot be written, is no fault of the file: raised again.

    Any other exception is a reason, on purpose: pixel decoders and their C libraries raise whatever they like on broken
    bytes; one broken file costs its own rows, not the batch. Such a row names the type, so that a fault of our own is
    seen and told.
    """
    if isinstance(error, ModelFileError | OutputError):
        raise error
    return str(error) if isinstance(error, SaqmError) else f"{name}: {type(error).__name__}: {error}"


def unread(name: str, reason: str, models: Iterable[Mapping[str, str]]) -> tuple[Score, ...]:
    """The rows of a file that could not be read: one for each model, by what the records say of it."""
    from saqm.scorer import not_scored

    return tuple(not_scored(name, reason, model=model) for model in models)


def images(name: str, settings: Settings) -> Iterator[Image]:
    """The pictures of one file that are to be scored, one in memory at a time. Raises ImageError."""
    from saqm.image import read_frames, read_image

    window, mask, axis, max_pixels = settings.window, settings.mask, settings.axis, settings.max_pixels
    if settings.frames == "all":
        yield from read_frames(name, window, mask=mask, axis=axis, max_pixels=max_pixels)
    else:
        yield read_image(name, settings.frames, window, mask=mask, axis=axis, max_pixels=max_pixels)


def _score_image(image: Image, settings: Settings, scorer: AnyScorer, maps: MapFiles | None, *, several: bool) -> Score:
    """The row of one image by one scorer; `several` puts the scorer's name into that of the map."""
    from saqm.scorer import ModelScorer, not_scored, score, score_and_map, withheld

    try:
        if not isinstance(scorer, ModelScorer):
            return score(image, scorer)
        if maps is None:
            made, quality = score(image, scorer, stride=settings.stride, tolerance=settings.tolerance), None
        else:
            made, quality = score_and_map(image, scorer, stride=settings.stride, map_stride=settings.map_stride)
    except Exception as error:
        return not_scored(image.source.path, reason_of(image.source.path, error), image, model=scorer.model)
    if settings.strict:
        made = withheld(made)
    if maps is not None and quality is not None and made.status == "scored":
        notes = maps.add(image, quality, made, scorer.name if several else None)
        made = replace(made, warnings=(*made.warnings, *notes))
    return made
