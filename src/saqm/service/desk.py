"""What the service does, apart from HTTP: takes files in, has them scored, keeps jobs, says when it is full or done."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

from saqm import __version__
from saqm.batch import Settings
from saqm.errors import ModelFileError, SaqmError
from saqm.gating import Thresholds, gate
from saqm.outputs.dicom import Maker
from saqm.outputs.pictures import Packed, heatmap_png, packed_map, packed_values, picture_png
from saqm.scorer import not_scored
from saqm.service.jobs import ENDED, Job, Jobs, State
from saqm.service.lanes import GROUP, Lane
from saqm.service.problems import Problem, busy
from saqm.service.reports import Reportable, report_of
from saqm.service.settings import ServeSettings
from saqm.service.telemetry import Telemetry, log
from saqm.service.uploads import Limits, Parcel, Receive, Store, Upload, receive_upload
from saqm.workers import Task, Workers

if TYPE_CHECKING:
    from saqm.maps import QualityMap
    from saqm.scorer import Score
    from saqm.service.schemas import Options, ScoreOptions

T = TypeVar("T")

SWEEP = 5.0  # seconds between looks for what has expired
LOOKING = 1  # workers of each model beside those that score, so that a page need not wait for a long job
RUNNING = 4  # jobs at a time; the others are queued
NOT_READ = 415  # what a picture, values or a map cannot be had of


@dataclass(frozen=True)
class Served:
    """Workers of one model, with the queue before them, and the one that is kept for those who look at a picture."""

    workers: Workers
    scoring: Lane
    looking: Lane


class Desk:
    """One service, from `async with` to its end. To be used from one event loop."""

    def __init__(self, settings: ServeSettings, pools: Sequence[Workers], telemetry: Telemetry, maker: Maker) -> None:
        """pools: the workers of each model, the default's first: `settings.workers` + LOOKING processes each.

        Raises SaqmError where the folder for uploads is none.
        """
        if settings.folder is not None and not settings.folder.is_dir():
            raise SaqmError(f"{settings.folder}: uploads are to stand there for a while, and it is no folder; make it")
        self.settings, self.telemetry, self.maker = settings, telemetry, maker
        self.models = tuple(pool.models[0] for pool in pools)
        self.keys_needed = settings.keys is not None
        self._pools = {
            model["name"]: Served(pool, Lane(pool, settings.workers, on_group=telemetry.grouped), Lane(pool, LOOKING))
            for model, pool in zip(self.models, pools, strict=True)
        }
        self._turns = asyncio.Semaphore(RUNNING)
        self.jobs = Jobs(settings.max_jobs, timedelta(minutes=settings.job_minutes))
        self._upload_limits = Limits(settings.max_body, settings.max_files, settings.read_seconds)
        self._store: Store | None = None
        self._at_work = 0
        self._draining = False
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._store = Store(self.settings.folder, self.settings.max_stored)
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all work, and remove all files."""
        self._draining = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for job in self.jobs:
            self.jobs.forget(job)
        for pool in self._pools.values():
            pool.scoring.close()
            pool.looking.close()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    # How it is

    def limits(self) -> dict[str, object]:
        """What a client has to know."""
        return {
            "max_body_bytes": self.settings.max_body,
            "max_files": self.settings.max_files,
            "max_pixels": self.settings.max_pixels,
            "keys": self.keys_needed,
            "models": list(self._pools),
            "software": f"saqm {__version__}",
        }

    def refuse_unready(self) -> None:
        """Raises Problem where new work is not taken."""
        if self._draining:
            raise Problem(503, "the service comes to its end", headers={"Retry-After": "5"})
        if not all(pool.workers.alive for pool in self._pools.values()):
            raise Problem(503, "no scoring process runs", headers={"Retry-After": "5"})

    def metrics(self) -> bytes:
        """Counters, as Prometheus reads them."""
        told = self.telemetry
        told.waiting.set(sum(pool.scoring.waiting for pool in self._pools.values()))
        told.workers.set(sum(pool.workers.alive for pool in self._pools.values()))
        told.stored.set(self._store.bytes if self._store else 0)
        told.busy.set(self._at_work)
        told.draining.set(self._draining)
        for state in get_args(State):
            told.jobs.labels(state).set(sum(job.state == state for job in self.jobs))
        return told.text()

    async def drain(self) -> None:
        """Take nothing new; wait for what runs, as long as the settings have it; then stop it."""
        self._draining = True
        log("draining", requests=self._at_work, jobs=self.jobs.running)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                while self._at_work or self.jobs.running:
                    await asyncio.sleep(0.05)
        for job in self.jobs:
            self.jobs.cancel(job, "the service came to its end")
        log("drained", requests=self._at_work)

    # What is sent

    @asynccontextmanager
    async def received(self, receive: Receive, headers: Mapping[str, str], options: Options) -> AsyncIterator[Parcel]:
        """The files of a request, removed when the block ends; counted as work for as long. Raises Problem."""
        self._pool(options)
        with self._working():
            parcel = self._parcel()
            try:
                await receive_upload(receive, headers, options.name, parcel, self._upload_limits)
                yield parcel
            finally:
                await asyncio.to_thread(parcel.remove)

    async def begin_job(self, receive: Receive, headers: Mapping[str, str], options: Options) -> Job:
        """Files that are kept and scored in their turn. Raises Problem."""
        self._pool(options)
        self.jobs.admit()
        with self._working():
            parcel = self._parcel()
            try:
                await receive_upload(receive, headers, options.name, parcel, self._upload_limits)
                self.jobs.admit()
            except BaseException:
                await asyncio.to_thread(parcel.remove)
                raise
            job = self.jobs.add(parcel, options)
            job.runs = asyncio.create_task(self._run(job))
            return job

    # Scoring

    async def score_now(self, parcel: Parcel, options: ScoreOptions) -> list[dict[str, object]]:
        """The records of all files, in their order. Raises Problem, 422 with them where not one could be read."""
        rows = await self._score_all(parcel, options, maps=options.map == "png")
        records = [record for of_file in rows for record in of_file]
        _refuse_unread(records)
        return records

    async def report_now(self, parcel: Parcel, options: Options) -> bytes:
        """The structured report of files that are of one study. Raises Problem: 406."""
        rows = await self._score_all(parcel, options)
        _refuse_unread([record for of_file in rows for record in of_file])
        found = _reportable(zip(parcel.files, rows, strict=True), by=("study",))
        if len(found) != 1 or len(found[0]) != len(parcel.files):
            raise Problem(406, "a report is of DICOM images of one study; ask for JSON, or send them as a job")
        return (await self._reports(found, self._pool(options)))[0][1]

    async def report_of(self, job: Job) -> tuple[str, bytes]:
        """A file's name, and what is in it: the report of a job, zipped where there are several. Raises Problem."""
        if job.state not in ENDED:
            raise Problem(409, f"the job is {job.state}; its report can be had when it is done")
        of_file: dict[int, list[dict[str, Any]]] = {}
        for record in job.records():
            of_file.setdefault(record["file"], []).append(dict(record))
        found = _reportable(((job.files[file], records) for file, records in of_file.items()), by=("study", "series"))
        if not found:
            raise Problem(406, "none of these files is a DICOM image that can be reported on")
        with self._working():
            made = await self._reports(found, self._pool(job.options))
        return made[0] if len(made) == 1 else ("reports.zip", await asyncio.to_thread(_zipped, made))

    async def _score_all(
        self, parcel: Parcel, options: Options, *, maps: bool = False
    ) -> list[list[dict[str, object]]]:
        """The records of each file."""
        rows: list[list[dict[str, object]]] = [[] for _ in parcel.files]
        created, images = _now(), 0

        def add(number: int, record: dict[str, object]) -> None:
            nonlocal images
            images += 1
            if images > self.settings.max_frames:
                raise Problem(413, f"more than {self.settings.max_frames} images in one answer; send them as a job")
            rows[number].append(record)

        await _together(
            self._score(number, upload, options, created, partial(add, number), maps=maps)
            for number, upload in enumerate(parcel.files)
        )
        return rows

    async def _score(
        self,
        number: int,
        upload: Upload,
        options: Options,
        created: str,
        add: Callable[[dict[str, object]], None],
        *,
        maps: bool = False,
        patient: bool = False,
    ) -> None:
        """Have a file scored; its records go to `add` as they are made, their maps' pictures into them at the end."""
        pool = self._pool(options)
        most, rows = self.settings.max_frames, 0
        drawn: list[asyncio.Task[None]] = []

        def seen(score: Score, quality: QualityMap | None) -> None:
            nonlocal rows
            rows += 1
            if rows > most:
                raise _TooManyFrames
            judged = _judged(score, options)
            record = {**judged.to_record(), "file": number}
            self.telemetry.images.labels(judged.status).inc()
            add(record)
            if quality is not None:
                drawn.append(asyncio.create_task(self._draw(upload, judged, quality, options, record)))

        def refused(why: str) -> None:
            add(
                {
                    **_judged(not_scored(upload.name, why, model=pool.workers.models[0]), options).to_record(),
                    "file": number,
                }
            )
            self.telemetry.images.labels("not_scored").inc()

        task = Task(str(upload.path), upload.name, self._settings(options, created), maps=maps)
        try:
            with _saqm_errors_told():
                if upload.refused is None:
                    await pool.scoring.score(task, upload.size, seen, patient=patient)
                    await asyncio.gather(*drawn)
                else:
                    refused(upload.refused)
        except _TooManyFrames:
            refused(f"{upload.name}: more than {most} frames; those beyond are left out")
        finally:
            for each in drawn:
                each.cancel()
            self.telemetry.files.inc()

    async def _draw(
        self, upload: Upload, score: Score, quality: QualityMap, options: Options, record: dict[str, object]
    ) -> None:
        """Put the map's picture into the record."""
        asked = self._settings(options, None)
        png = await self._pool(options).looking.run(
            partial(heatmap_png, window=asked.window, axis=asked.axis, max_pixels=asked.max_pixels),
            str(upload.path),
            score.frame,
            quality,
            score,
        )
        record["map"] = {"png": base64.b64encode(png).decode()}

    async def _run(self, job: Job) -> None:
        """The life of a job: after others, and then a few files at a time, so that all get their turn."""
        try:
            async with self._turns:
                job.state = "running"
                await self._score_in_turn(job)
            job.end("done")
        except Problem as problem:
            job.end("failed", problem.detail)
        except OSError as error:
            log("job failed", level=logging.ERROR, error=error)
            job.end("failed", "its records cannot be kept: the disk is full or cannot be written")
        except Exception as error:
            log("job failed", level=logging.ERROR, error=error)
            job.end("failed", "a fault of the service; its log says more")
        finally:
            log("job", state=job.state, files=len(job.files), images=job.images)

    async def _score_in_turn(self, job: Job) -> None:
        created, running = _now(), set[asyncio.Task[None]]()

        async def score(number: int, upload: Upload) -> None:
            await self._score(
                number, upload, job.options, created, lambda record: job.add(number, record), patient=True
            )
            job.file_ended(number)

        files = iter(enumerate(job.files))
        try:
            while True:
                while len(running) < self.settings.workers + GROUP and (file := next(files, None)) is not None:
                    running.add(asyncio.create_task(score(*file)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
        finally:
            for each in running:
                each.cancel()

    # Looking at an image of a job

    async def picture(self, job: Job, number: int) -> bytes:
        """Its picture, as PNG. Raises Problem."""
        upload, record = _image(job, number)
        asked = self._settings(job.options, None)
        draw = partial(picture_png, window=asked.window, axis=asked.axis, max_pixels=asked.max_pixels)
        return await self._look(job, upload, draw, record["frame"])

    async def values(self, job: Job, number: int) -> Packed:
        """The values behind it. Raises Problem."""
        upload, record = _image(job, number)
        asked = self._settings(job.options, None)
        read = partial(packed_values, axis=asked.axis, max_pixels=asked.max_pixels)
        return await self._look(job, upload, read, record["frame"])

    async def map(self, job: Job, number: int) -> tuple[bytes, int, int]:
        """Its quality map: 32-bit floats, rows, columns. Raises Problem."""
        upload, record = _image(job, number)
        if record["status"] != "scored":
            raise Problem(404, f"{upload.name}: was not scored, so it has no map")
        frames: int | Literal["all"] = "all" if record["frame"] is None else int(record["frame"])
        settings = replace(self._settings(job.options, None), frames=frames)
        found: list[tuple[Score, QualityMap | None]] = []
        with self._working(), _saqm_errors_told():
            lane = self._pool(job.options).looking
            await lane.score(
                Task(str(upload.path), upload.name, settings, maps=True), upload.size, lambda *row: found.append(row)
            )
        score, quality = found[0]
        if quality is None:
            raise Problem(404, "; ".join(score.reasons) or f"{upload.name}: metrics have no maps")
        return packed_map(quality)

    async def _look(self, job: Job, upload: Upload, function: Callable[..., T], frame: int | None) -> T:
        with self._working(), _saqm_errors_told(NOT_READ, str(upload.path), upload.name):
            return await self._pool(job.options).looking.run(function, str(upload.path), frame)

    # Within

    def _pool(self, options: Options) -> Served:
        """Those who serve the model asked for. Raises Problem."""
        name = options.model or next(iter(self._pools))
        if name not in self._pools:
            raise Problem(422, f"model: not served; there are {', '.join(self._pools)}")
        return self._pools[name]

    def _settings(self, options: Options, created: str | None) -> Settings:
        """What a request asks for, in the words of a batch."""
        center_width = None if options.window is None else tuple(map(float, options.window.split(",")))
        return Settings(
            frames="all" if options.frame == "all" else int(options.frame),
            window=center_width,  # type: ignore[arg-type]
            mask=options.mask,
            axis=None if options.axis is None else int(options.axis),
            stride=options.stride,
            max_pixels=self.settings.max_pixels,
            strict=options.strict,
            created=created,
        )

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One request that needs a worker, counted. Raises Problem where there are too many, or at the end."""
        self.refuse_unready()
        if self._at_work >= self.settings.queue:
            wait = max(pool.scoring.wait_seconds for pool in self._pools.values())
            raise busy(f"{self._at_work} requests are at work or waiting, no more are taken", min(wait, 60))
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def _parcel(self) -> Parcel:
        if self._store is None:
            raise RuntimeError("the desk is not open")
        try:
            return self._store.parcel()
        except OSError as error:
            raise Problem(507, "an upload cannot be kept: its disk is full or cannot be written") from error

    async def _reports(self, found: Sequence[Sequence[Reportable]], pool: Served) -> list[tuple[str, bytes]]:
        with _saqm_errors_told(406):
            return [await pool.looking.run(report_of, group, self.maker, datetime.now(UTC)) for group in found]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.jobs.forget_expired()


class _TooManyFrames(Exception):
    """A file goes on beyond what is taken."""


def _judged(score: Score, options: Options) -> Score:
    """The score with its verdict, where thresholds were given. Raises Problem for those that mean nothing."""
    if options.pass_at is None:
        return score
    try:
        return gate(score, Thresholds(pass_at=options.pass_at, fail_below=options.fail_below, sure=options.sure))
    except SaqmError as error:
        raise Problem(422, str(error)) from error


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it at once; the first that fails ends the others, and its error is raised as it is."""
    running = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*running)
    finally:
        for each in running:
            each.cancel()


def _refuse_unread(records: Sequence[Mapping[str, Any]]) -> None:
    if all(record["sha256"] is None for record in records):
        raise Problem(422, "not one file could be read; the records say why", extra={"records": records})


def _reportable(files: Iterable[tuple[Upload, list[dict[str, Any]]]], by: Sequence[str]) -> list[list[Reportable]]:
    """The DICOM images among files, with their records, together where these of their UIDs are the same."""
    found: dict[tuple[str, ...], list[Reportable]] = {}
    for upload, records in files:
        named = [record for record in records if {"study", "series", "instance"} <= record["uids"].keys()]
        if named:  # frames that could not be read say of no image
            key = tuple(named[0]["uids"][uid] for uid in by)
            found.setdefault(key, []).append((str(upload.path), upload.name, named))
    return list(found.values())


def _image(job: Job, number: int) -> tuple[Upload, Mapping[str, Any]]:
    record = job.record(number)
    return job.files[record["file"]], record


@contextmanager
def _saqm_errors_told(status: int = 422, path: str = "", name: str = "") -> Iterator[None]:
    """Errors of the library as problems, without the path of an upload. A broken model is our fault, not theirs."""
    try:
        yield
    except ModelFileError:
        raise
    except SaqmError as error:
        text = str(error)
        raise Problem(status, text.replace(path, name) if path else text) from error


def _zipped(made: Sequence[tuple[str, bytes]]) -> bytes:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in made:
            archive.writestr(name, data)
    return buffer.getvalue()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
