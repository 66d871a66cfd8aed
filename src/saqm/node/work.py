"""What a node does with what it has accepted: scores it as it comes, and reports on a series once that is complete.

Files are opened, and objects made, in the scoring processes only: the node itself reads no more of an image than which
one it is, so that nothing in a file can end the node, and its memory stays flat.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol

from saqm.batch import Settings as Reading
from saqm.errors import ModelFileError, OutputError, SaqmError
from saqm.gating import Thresholds, gate
from saqm.image import DEFAULT_MAX_PIXELS
from saqm.node.logs import tell, tell_error
from saqm.node.queue import Made, Queue, QueueFull, Scored, Waiting
from saqm.node.settings import Settings
from saqm.outputs.dicom import Maker
from saqm.scorer import Score, not_scored
from saqm.workers import DIED, Answer, Task, WorkerError
from saqm.writing import replacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from saqm.maps import QualityMap

TOGETHER = 16  # instances that one worker is given at a time
LOOK = 1.0  # seconds between looks at the queue where nothing calls
PAUSE = 10.0  # seconds before trying again what a full disk has stopped


class Pool(Protocol):
    """What is needed of saqm.workers.Workers."""

    models: tuple[dict[str, str], ...]

    def score(self, tasks: Sequence[Task], *, stop: Callable[[], bool]) -> list[Answer]: ...

    def run(self, function: Callable[..., Any], *arguments: object) -> Any: ...

    def close(self) -> None: ...


class Work:
    """The threads that score and report."""

    def __init__(self, settings: Settings, queue: Queue, pool: Pool, *, clock: Callable[[], float]) -> None:
        self._settings, self._queue, self._pool, self._clock = settings, queue, pool, clock
        self._maker = Maker(device_uid=queue.device_uid)
        self._stopping, self._abandon = Event(), Event()
        self.failed: BaseException | None = None
        self._arrived, self._reportable = Event(), Event()
        self.reported: Callable[[], None] = lambda: None
        names = [f"scoring {number}" for number in range(settings.workers)]
        self._threads = [Thread(target=self._run, args=(self._score_some,), name=name) for name in names]
        self._threads.append(Thread(target=self._run, args=(self._report_some,), name="reporting"))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def arrived(self) -> None:
        """Something is to be scored, or a series may be complete."""
        self._arrived.set()
        self._reportable.set()

    def stop(self, *, seconds: float) -> None:
        """Finish what is in hand; where that takes longer, leave it as it was. The pool is closed then."""
        self._stopping.set()
        self.arrived()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._abandon.set()
        self._pool.close()
        for thread in self._threads:
            thread.join()

    def _run(self, step: Callable[[], bool]) -> None:
        """Do one step after another; wait where there is nothing to be done."""
        called = self._arrived if step == self._score_some else self._reportable
        while not self._stopping.is_set():
            try:
                called.clear()
                if not step():
                    called.wait(LOOK)
            except QueueFull as error:
                tell("waiting for the disk", why=str(error))
                self._stopping.wait(PAUSE)
            except OutputError:  # a file of scores; its message names a path, which is no more than that
                tell("waiting for the disk", why="scores cannot be written")
                self._stopping.wait(PAUSE)
            except ModelFileError as error:
                self.failed = error
                self._stopping.set()
            except Exception as error:
                if not self._abandon.is_set():
                    tell_error("a step failed", error)
                self._stopping.wait(PAUSE)

    # Scoring

    def _score_some(self) -> bool:
        share = -(-max(self._queue.waiting(), 1) // self._settings.workers)
        taken = self._queue.take(min(TOGETHER, share), attempts=self._settings.attempts)
        if not taken:
            return False
        try:
            self._score(taken)
        except BaseException:
            self._put_back(taken)
            raise
        self._reportable.set()
        return True

    def _score(self, taken: Sequence[Waiting]) -> None:
        given_up = [each for each in taken if each.attempts > self._settings.attempts]
        for each in given_up:
            reason = f"{each.uid}: the node ended {each.attempts - 1} times while this was in hand"
            self._keep(each, [not_scored(each.uid, reason, model=model) for model in self._pool.models], [])
        tried = [each for each in taken if each not in given_up]
        answers = self._pool.score([self._task(each) for each in tried], stop=self._abandon.is_set)
        stopped = [
            each
            for each, answer in zip(tried, answers, strict=True)
            if self._abandon.is_set() and _unread(answer.scores)
        ]
        noted: list[tuple[Waiting, str | None]] = [(each, "ended the node") for each in given_up]
        told: list[dict[str, object]] = []
        for each, answer in zip(tried, answers, strict=True):
            if each in stopped:
                continue
            self._keep(each, answer.scores, answer.maps)
            why = _why_aside(answer.scores)
            noted.append((each, why))
            scored = sum(score.status == "scored" for score in answer.scores)
            frames = len(answer.scores)
            told.append({"instance": each.uid, "frames": frames, "not_scored": frames - scored, "why": why})
        self._queue.note_scored(noted)
        for one in told:  # only now: no crash can take it back
            tell("scored", **one)
        self._put_back(stopped)

    def _put_back(self, instances: Sequence[Waiting]) -> None:
        """Leave them untried; on a disk that is full, as soon as there is room to say so."""
        while True:
            try:
                self._queue.put_back(instances)
                return
            except sqlite3.OperationalError as error:
                tell("waiting for the disk", why=str(error))
                if self._stopping.wait(PAUSE):
                    return

    def _task(self, waiting: Waiting) -> Task:
        told = self._settings
        reading = Reading(
            window=told.window,
            mask=told.mask,
            max_pixels=told.max_pixels or DEFAULT_MAX_PIXELS,
            strict=told.strict,
        )
        return Task(str(waiting.path), waiting.uid, reading, maps=told.map)

    def _keep(self, waiting: Waiting, scores: Sequence[Score], maps: Sequence[QualityMap | None]) -> None:
        """Write down what scoring gave, and the maps as objects, which are made while they are at hand."""
        made = []
        for number, (score, quality) in enumerate(zip(scores, maps, strict=False)):
            if quality is not None and score.status == "scored":
                content = self._made_map(waiting, quality, score)
                if content is not None:
                    name = f"{waiting.path.stem}-{number}.map"
                    (self._queue.scores / name).write_bytes(content.content)
                    made.append({"file": name, "uid": content.uid, "class": content.sop_class})
        records = [self._gated(score).to_record() for score in scores]
        with replacing(self._queue.scores_path(waiting.uid)) as beside:
            beside.write_text(json.dumps({"records": records, "maps": made}), encoding="utf-8")

    def _gated(self, score: Score) -> Score:
        thresholds = thresholds_of(self._settings)
        return score if thresholds is None else gate(score, thresholds)

    def _made_map(self, waiting: Waiting, quality: QualityMap, score: Score) -> Made | None:
        try:
            made: Made = self._pool.run(make_map, str(waiting.path), quality, score, self._maker, self._now())
        except SaqmError as error:
            tell("no map", instance=waiting.uid, frame=score.frame, error=type(error).__name__)
            return None
        return made

    # Reporting

    def _report_some(self) -> bool:
        done = False
        for instances in self._queue.due():
            if self._stopping.is_set():
                break
            self._report(instances)
            done = True
        return done

    def _report(self, instances: Sequence[Scored]) -> None:
        """Report on a series. Where that fails, its halves are tried, until the instance at fault is alone."""
        kept = [(instance, _read_scores(instance.scores)) for instance in instances]
        lost = [instance for instance, read in kept if read is None or _lost_maps(instance, read)]
        if lost:
            tell("scores lost", instances=len(lost))
            self._queue.score_again(lost)
            self._arrived.set()
            return
        images = [(str(instance.path), read["records"]) for instance, read in kept if read is not None]
        try:
            made: list[Made] = self._pool.run(make_objects, images, self._maker, self._settings.note, self._now())
        except SaqmError as error:
            if self._abandon.is_set():
                return
            if len(instances) > 1:
                middle = len(instances) // 2
                self._report(instances[:middle])
                self._report(instances[middle:])
                return
            why = "making its report ended a process" if isinstance(error, WorkerError) else "no report can be made"
            tell("set aside", instance=instances[0].uid, why=why, error=type(error).__name__)
            self._queue.set_aside(instances[0], why)
            return
        made += [each for instance, read in kept if read is not None for each in _maps(instance, read)]
        self._queue.report(instances, made, [destination.name for destination in self._settings.destination])
        for instance, read in kept:
            for each in read["maps"] if read is not None else ():
                (instance.scores.parent / each["file"]).unlink(missing_ok=True)
        tell("reported", report=made[0].uid, instances=len(instances), objects=len(made))
        self.reported()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def thresholds_of(settings: Settings) -> Thresholds | None:
    """The thresholds of the gate; None where there is none."""
    told = settings.gate
    if told is None:
        return None
    return Thresholds(pass_at=told.pass_at, fail_below=told.fail_below, sure=told.sure, not_scored=told.not_scored)


def check_model(settings: Settings) -> None:
    """Raise SaqmError for a model whose scores a report has no place for, or that the gate cannot judge by."""
    from saqm.scorer import ModelScorer, load_scorer

    scorer = load_scorer(settings.model, threads=1)
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} is a metric with a scale of its own; a report needs a model's 0 to 100")
    known = scorer.header.calibration
    if settings.strict and (known is None or not known.familiar):
        raise SaqmError(f"strict: {scorer.name} cannot tell which images are unlike those it knows: leave it out")
    thresholds = thresholds_of(settings)
    if thresholds is not None:
        around = (50.0, 50.0) if known is not None and known.interval is not None else None
        gate(Score(path="", status="scored", score=50.0, interval=around, model=scorer.model), thresholds)


# In a scoring process


def make_objects(
    images: Sequence[tuple[str, list[dict[str, Any]]]], maker: Maker, note: bool, now: datetime
) -> list[Made]:
    """The report on images of a series, and the note where that is wanted and one of them did not pass.

    Raises SaqmError.
    """
    from saqm.outputs.dicom import header_of, quality_note, quality_report

    headed = [(header_of(path), records) for path, records in images]
    made = [_made("report", quality_report(headed, maker, now=now))]
    if note and any(record["verdict"] in ("review", "fail") for _, records in headed for record in records):
        made.append(_made("note", quality_note(headed, maker, now=now)))
    return made


def make_map(path: str, quality: QualityMap, score: Score, maker: Maker, now: datetime) -> Made:
    """A quality map as an object. Raises SaqmError."""
    from saqm.outputs.dicom import header_of, quality_map

    return _made("map", quality_map(header_of(path), quality, score, maker, now=now))


def _made(kind: str, dataset: Dataset) -> Made:
    from io import BytesIO

    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return Made(kind, str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), buffer.getvalue())


# What stands in a file of scores


def _read_scores(path: Path) -> dict[str, Any] | None:
    """What scoring an instance gave; None where a crash has left nothing whole of it."""
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(read, dict) and read.get("records"):
            return read
    return None


def _lost_maps(instance: Scored, read: dict[str, Any]) -> bool:
    return any(not (instance.scores.parent / each["file"]).is_file() for each in read["maps"])


def _maps(instance: Scored, read: dict[str, Any]) -> Iterator[Made]:
    for each in read["maps"]:
        content = (instance.scores.parent / each["file"]).read_bytes()
        yield Made("map", each["uid"], each["class"], content)


def _unread(scores: Sequence[Score]) -> bool:
    """Whether not even the file could be read: a row that was made of a picture has the hash of its file."""
    return all(score.sha256 is None for score in scores)


def _why_aside(scores: Sequence[Score]) -> str | None:
    """Why a person should look at an instance, in words of our own; None where it was read."""
    if not _unread(scores):
        return None
    reasons = " ".join(reason for score in scores for reason in score.reasons)
    if DIED in reasons:
        return "the process that scored it died"
    return "took too long" if "took longer than" in reasons else "cannot be read as an image"
