"""Processes that score files, kept warm: for whoever is sent file after file, and must outlive every one of them.

    with Workers(("saqm-ct",), count=2) as workers:
        answers = workers.score([Task("upload.tmp", "scan.dcm", Settings())])

Each worker is a process with the models loaded and one thread for its engine, so the numbers are the same bits whatever
`count`, and the same as `saqm score` gives. A file that kills its process, or takes too long, costs its own rows alone.
The calling script needs the usual `if __name__ == "__main__":`, because workers are started afresh (spawn).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from saqm.batch import Scorers, Settings, called, reason_of, unread
from saqm.errors import ImageError, ModelFileError, SaqmError
from saqm.modelfile import DEFAULT_MODEL

if TYPE_CHECKING:
    from saqm.engine import EngineName
    from saqm.image import Image
    from saqm.maps import QualityMap
    from saqm.scorer import AnyScorer, Score

TOGETHER = 1 << 20  # pixels whose windows share the engine's batches: enough to fill them, few enough to hold
PULSE = 0.1  # seconds between looks at whether the caller wants to stop
GROWN = 256  # MB that a process may have gained since it was ready; then another takes its place between two calls
START = 120.0  # seconds that a process may take to load its models

T = TypeVar("T")
Seen = Callable[[int, "Score", "QualityMap | None"], None]


@dataclass(frozen=True)
class Task:
    """One file to score.

    path: what is read. name: what its records, reasons and warnings call it. settings: as for a batch; their model and
    engine are those of the workers, and maps go to the caller, not to a folder. maps: also give each frame's map.
    """

    path: str
    name: str
    settings: Settings = field(default_factory=Settings)
    maps: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """The rows of one task: one for each frame and model, never none; with a map beside each where asked for."""

    scores: tuple[Score, ...]
    maps: tuple[QualityMap | None, ...]


class WorkerError(SaqmError):
    """A worker died at a piece of work, or was ended because that took too long or its caller stopped it."""


class Workers:
    """A fixed number of scoring processes. Safe to use from several threads; each call has one worker to itself."""

    def __init__(
        self,
        models: Sequence[str | Path | None] = (None,),
        *,
        count: int = 1,
        seconds: float | None = 300,
        engine: EngineName = "auto",
    ) -> None:
        """Start them and wait until they have loaded their models, named as `load_scorer` takes them.

        seconds: how long a frame may take, reading the file included; None: any time. Raises ModelFileError for a model
        that is refused, and SaqmError where a process cannot be started.
        """
        if count < 1:
            raise SaqmError(f"{count} workers; at least 1 is needed")
        self._settings = Settings(model=tuple(DEFAULT_MODEL if m is None else m for m in models), engine=engine)
        self._seconds = seconds
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        self._lock, self._all, self._closed = Lock(), set[_Worker](), False
        try:
            started = [self._start() for _ in range(count)]
            self.models: tuple[dict[str, str], ...] = [worker.ready() for worker in started][-1]
        except BaseException:
            self.close()
            raise
        for worker in started:
            self._idle.put(worker)

    @property
    def alive(self) -> int:
        """How many processes run."""
        with self._lock:
            return sum(worker.process.is_alive() for worker in self._all)

    def score(
        self, tasks: Sequence[Task], *, seen: Seen | None = None, stop: Callable[[], bool] = lambda: False
    ) -> list[Answer]:
        """Score files on the next free worker, together: an answer for each, in order, whatever is wrong with it.

        seen: told each row as it is made, with the number of its task; the maps then go to it alone. stop: looked at
        while waiting; once it is true the worker is ended, and what has no row yet gets one that says so.
        Raises ModelFileError for a model that is found broken, and SaqmError once closed.
        """
        kept: list[list[tuple[Score, QualityMap | None]]] = [[] for _ in tasks]

        def keep(number: int, place: int, score: Score, quality: QualityMap | None) -> None:
            if place < len(kept[number]):  # made before, by a worker that died after it
                return
            kept[number].append((score, quality if seen is None else None))
            if seen is not None:
                seen(number, score, quality)

        def run(numbers: Sequence[int]) -> None:
            work = [(number, tasks[number]) for number in numbers]
            try:
                self._call(_score_tasks, (work,), keep, stop)
            except WorkerError as error:
                if len(numbers) > 1 and not stop():  # nothing says at which file: each by itself
                    for number in numbers:
                        run([number])
                    return
                for number in numbers:
                    self._close_rows(number, tasks[number], str(error), kept[number], keep)

        if tasks:
            run(range(len(tasks)))
        return [Answer(tuple(s for s, _ in rows), tuple(m for _, m in rows)) for rows in kept]

    def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function of a module gives, called in the next free worker.

        Raises the SaqmError that it raises, WorkerError where the process died or took too long; an exception of any
        other kind comes as an ImageError with its type, as decoders raise whatever they like.
        """
        result: T = self._call(_call_function, (function, arguments), lambda *_: None, lambda: False)
        return result

    def close(self) -> None:
        """End all processes, whatever they do; a call that waits for one raises."""
        with self._lock:
            self._closed = True
            workers, self._all = self._all, set()
        for worker in workers:
            worker.end()
        self._idle.put(None)  # wakes whoever waits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, work: Callable[..., object], arguments: tuple[object, ...], keep: Keep, stop: Callable[[], bool]
    ) -> Any:
        worker = self._idle.get()
        if worker is None or self._closed:
            self._idle.put(None)
            raise SaqmError(CLOSED)
        try:
            answer = worker.call(work, arguments, keep, stop, self._seconds)
        except BaseException as error:  # it is gone, or goes on saying what nobody wants to hear any more
            self._replace(worker)
            if self._closed:
                raise SaqmError(CLOSED) from error
            raise
        if worker.gained() > GROWN:  # decoders and large reports leave holes that are never given back
            self._replace(worker)
        else:
            self._idle.put(worker)
        if isinstance(answer, SaqmError):
            raise answer
        return answer

    def _close_rows(
        self, number: int, task: Task, why: str, rows: list[tuple[Score, QualityMap | None]], keep: Keep
    ) -> None:
        for score in unread(task.name, f"{task.name}: {why}", self.models):
            keep(number, len(rows), score, None)

    def _start(self) -> _Worker:
        worker = _Worker(self._settings)
        with self._lock:
            closed = self._closed
            if not closed:
                self._all.add(worker)
        if closed:
            worker.end()
            raise SaqmError(CLOSED)
        return worker

    def _replace(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()
        with suppress(SaqmError):  # closed meanwhile
            self._idle.put(self._start())


Keep = Callable[[int, int, "Score", "QualityMap | None"], None]


class _Worker:
    """The caller's end of one process."""

    def __init__(self, settings: Settings) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, settings), daemon=True, name="saqm-worker")
        self.process.start()
        theirs.close()  # so that its end is told by an end of file
        self._models: tuple[dict[str, str], ...] | None = None
        self._lean = 0.0

    def ready(self) -> tuple[dict[str, str], ...]:
        """What the records say of its models, once they are loaded."""
        if self._models is None:
            kind, said = self._hear(START, lambda: False)
            if kind != "ready":
                raise ModelFileError(said) if kind == "refused" else SaqmError(f"a worker cannot start: {said}")
            self._models, self._lean = said, _megabytes(self.process.pid)
        return self._models

    def gained(self) -> float:
        """MB of memory that it has more than when it was ready; 0 where the system does not tell."""
        return _megabytes(self.process.pid) - self._lean

    def call(
        self,
        work: Callable[..., object],
        arguments: tuple[object, ...],
        keep: Keep,
        stop: Callable[[], bool],
        seconds: float | None,
    ) -> object:
        """Have it do a piece of work; its rows go to `keep`. Raises WorkerError; the worker is then to be ended."""
        self.ready()
        try:
            self._pipe.send((work, arguments))
        except OSError as error:
            raise WorkerError(DIED) from error
        while True:
            kind, said = self._hear(seconds, stop)
            if kind == "done":
                return said
            keep(*said)

    def end(self) -> None:
        """End the process and wait for it."""
        self._pipe.close()
        self.process.kill()
        self.process.join()

    def _hear(self, seconds: float | None, stop: Callable[[], bool]) -> tuple[str, Any]:
        waited = 0.0
        try:
            while True:
                if stop():
                    raise WorkerError("stopped before it was scored")
                if self._pipe.poll(PULSE):
                    break
                waited += PULSE
                if seconds is not None and waited >= seconds:
                    raise WorkerError(f"took longer than {seconds:g} s, so its process was ended")
            said: tuple[str, Any] = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(DIED) from error
        return said


def _megabytes(pid: int | None) -> float:
    """Resident memory of a process, from Linux's statm; 0 elsewhere."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


CLOSED = "the workers are closed"
DIED = "the process that scored it died (out of memory, or a crash inside a decoder)"


# In the worker


class _Made(NamedTuple):
    number: int  # of its task
    task: Task
    image: Image


def _serve(pipe: Connection, settings: Settings) -> None:
    """The life of a worker: load, then do what is asked until the caller's end closes."""
    from saqm.batch import load_scorers

    for number in (signal.SIGINT, signal.SIGTERM):  # the caller's to answer
        signal.signal(number, signal.SIG_IGN)
    try:
        scorers = load_scorers(settings)
    except SaqmError as error:
        pipe.send(("refused", str(error)))
        return
    pipe.send(("ready", tuple(scorer.model for scorer in scorers)))
    with suppress(EOFError, OSError):
        while True:
            work, arguments = pipe.recv()
            try:
                answer = work(*arguments, scorers, lambda *row: pipe.send(("row", row)))
            except SaqmError as error:  # of the model, not of a file
                answer = error
            pipe.send(("done", answer))


def _call_function(
    function: Callable[..., object], arguments: tuple[object, ...], scorers: Scorers, tell: Keep
) -> object:
    del scorers, tell
    try:
        return function(*arguments)
    except SaqmError as error:
        return error if type(error).__init__ is Exception.__init__ else SaqmError(str(error))  # has to travel
    except Exception as error:
        return ImageError(f"{type(error).__name__}: {error}")


def _score_tasks(work: Sequence[tuple[int, Task]], scorers: Scorers, tell: Keep) -> None:
    """Score files, small pictures together whatever file they are of; each row is told as soon as it is there."""
    places: dict[int, int] = {}

    def row(number: int, task: Task, score: Score, quality: QualityMap | None = None) -> None:
        place = places.get(number, 0)
        places[number], path = place + 1, os.fspath(task.path)
        tell(number, place, replace(called(score, path, task.name), created=task.settings.created), quality)

    waiting: list[_Made] = []

    def flush() -> None:
        for made, score, quality in _score_images(waiting, scorers):
            row(made.number, made.task, score, quality)
        waiting.clear()

    for number, task in work:
        try:
            for image in _images(task):
                waiting.append(_Made(number, task, image))
                if sum(made.image.mask.size for made in waiting) >= TOGETHER:
                    flush()
        except Exception as error:
            flush()  # its earlier frames come first
            for score in unread(task.path, reason_of(task.path, error), [scorer.model for scorer in scorers]):
                row(number, task, score)
    flush()


def _images(task: Task) -> Iterator[Image]:
    from saqm.batch import images

    yield from images(task.path, task.settings)


def _score_images(waiting: Sequence[_Made], scorers: Scorers) -> Iterator[tuple[_Made, Score, QualityMap | None]]:
    """Every row of these pictures, a picture's together; those that are cut alike share the engine's batches."""
    from saqm.scorer import ModelScorer

    rows: dict[int, list[tuple[Score, QualityMap | None]]] = {at: [] for at in range(len(waiting))}
    for scorer in scorers:
        alike: dict[_Asked, list[int]] = {}
        for at, made in enumerate(waiting):
            asked = made.task.settings
            key = _Asked(asked.stride, asked.tolerance, made.task.maps, asked.map_stride)
            alike.setdefault(key if isinstance(scorer, ModelScorer) else _Asked(), []).append(at)
        for key, members in alike.items():
            found = _together([waiting[at].image for at in members], scorer, key)
            for at, (score, quality) in zip(members, found, strict=True):
                rows[at].append((_withheld(score, waiting[at].task.settings), quality))
    for at, made in enumerate(waiting):
        for score, quality in rows[at]:
            yield made, score, quality


class _Asked(NamedTuple):
    """How windows are cut and what is made of them; a metric, which judges the picture as a whole, is asked nothing."""

    stride: int | None = None
    tolerance: float | None = None
    maps: bool = False
    map_stride: int | None = None


def _together(pictures: Sequence[Image], scorer: AnyScorer, asked: _Asked) -> list[tuple[Score, QualityMap | None]]:
    """A picture at which something breaks costs its own row."""
    from saqm.scorer import not_scored, score, score_together

    stride, tolerance, maps, map_stride = asked
    try:
        if tolerance is None:
            return score_together(pictures, scorer, stride=stride, maps=maps, map_stride=map_stride)
        if len(pictures) == 1:
            return [(score(pictures[0], scorer, stride=stride, tolerance=tolerance), None)]
    except Exception as error:
        if len(pictures) == 1:
            path = pictures[0].source.path
            return [(not_scored(path, reason_of(path, error), pictures[0], model=scorer.model), None)]
    return [row for image in pictures for row in _together([image], scorer, asked)]


def _withheld(score: Score, settings: Settings) -> Score:
    from saqm.scorer import withheld

    return withheld(score) if settings.strict else score
