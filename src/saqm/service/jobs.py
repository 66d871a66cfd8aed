"""Jobs: uploads that are scored while their sender does something else, and kept until they expire or are forgotten.

A job's records stand on the disk, a line each, so that memory does not grow with what is kept.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from saqm.service.problems import Problem, busy
from saqm.service.uploads import Parcel, Upload

State = Literal["queued", "running", "done", "cancelled", "failed"]
ENDED = ("done", "cancelled", "failed")
RECORDS = "records.jsonl"

Record = Mapping[str, Any]


@dataclass(eq=False)
class Job:
    """One upload on its way. `options` are those of the request; `rows` are told by the file they belong to."""

    id: str
    parcel: Parcel
    options: Any
    kept: timedelta
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: State = "queued"
    detail: str | None = None
    files_done: int = 0
    ended: datetime | None = None
    runs: asyncio.Task[None] | None = None
    _places: array[int] = field(default_factory=lambda: array("q"))
    _end: int = 0
    _early: dict[int, list[Record]] = field(default_factory=dict)
    _finished: set[int] = field(default_factory=set)

    @property
    def files(self) -> list[Upload]:
        """What was sent."""
        return self.parcel.files

    @property
    def images(self) -> int:
        """Records there are."""
        return len(self._places)

    @property
    def expires(self) -> datetime | None:
        """When it will be forgotten; not before it has ended."""
        return None if self.ended is None else self.ended + self.kept

    def status(self) -> dict[str, object]:
        """What its sender is told."""
        return {
            "id": self.id,
            "state": self.state,
            "detail": self.detail,
            "files": len(self.files),
            "files_done": self.files_done,
            "images": self.images,
            "created": _iso(self.created),
            "expires": None if self.expires is None else _iso(self.expires),
        }

    def add(self, file: int, record: Record) -> None:
        """Note a row of a file. Rows come out in the order of the files, whoever is scored first."""
        if self.state in ENDED:  # forgotten while this row was under way
            return
        if file == self.files_done:
            self._write([record])
        else:
            self._early.setdefault(file, []).append(record)

    def file_ended(self, file: int) -> None:
        """No further row of this file will come."""
        if self.state in ENDED:
            return
        self._finished.add(file)
        while self.files_done in self._finished:
            self._finished.discard(self.files_done)
            self.files_done += 1
            self._write(self._early.pop(self.files_done, []))

    def end(self, state: State, detail: str | None = None) -> None:
        """No further row will come at all."""
        if self.state not in ENDED:
            self.state, self.detail, self.ended = state, detail, datetime.now(UTC)
            self._early.clear()

    def record(self, number: int) -> Record:
        """One row. Raises Problem where there is none (yet)."""
        for found in self.records(number, number + 1):
            return found
        raise Problem(404, f"no image {number}: this job has {self.images} so far")

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Rows from one number up to another, as many as there are now."""
        stop = self.images if stop is None else min(stop, self.images)
        if not 0 <= start < stop:
            return
        with (self.parcel.folder / RECORDS).open("rb") as stream:
            stream.seek(self._places[start])
            for _ in range(start, stop):
                yield json.loads(stream.readline())

    def _write(self, records: list[Record]) -> None:
        lines = [json.dumps(record, allow_nan=False).encode() + b"\n" for record in records]
        self.parcel.take(sum(map(len, lines)))
        with (self.parcel.folder / RECORDS).open("ab") as stream:
            for line in lines:
                stream.write(line)
        for line in lines:
            self._places.append(self._end)
            self._end += len(line)


class Jobs:
    """All jobs that are kept."""

    def __init__(self, most: int, kept: timedelta, on_end: Callable[[Job], None] = lambda _: None) -> None:
        self._jobs: dict[str, Job] = {}
        self._most, self._kept = most, kept
        self.on_end = on_end

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    @property
    def running(self) -> int:
        """Jobs that have not ended."""
        return sum(job.state not in ENDED for job in self)

    def admit(self) -> None:
        """Raises Problem where no further job can be kept."""
        self.forget_expired()
        if len(self._jobs) >= self._most:
            soonest = min((job.expires for job in self if job.expires is not None), default=None)
            wait = 30.0 if soonest is None else (soonest - datetime.now(UTC)).total_seconds()
            raise busy(f"{self._most} jobs are kept, no more; forget one that is done (DELETE), or ask again", wait)

    def add(self, parcel: Parcel, options: Any) -> Job:
        """A new job, with a name that nobody guesses."""
        job = Job(secrets.token_urlsafe(16), parcel, options, self._kept)
        self._jobs[job.id] = job
        return job

    def get(self, name: str) -> Job:
        """The job of that name. Raises Problem."""
        self.forget_expired()
        if name not in self._jobs:
            raise Problem(404, "no such job: it has expired, was forgotten, or never was")
        return self._jobs[name]

    def forget(self, job: Job) -> None:
        """Stop it, and remove its files."""
        self._jobs.pop(job.id, None)
        self.cancel(job, "forgotten")
        job.parcel.remove()

    def cancel(self, job: Job, why: str) -> None:
        """Stop it; what it has stays."""
        job.end("cancelled", why)
        if job.runs is not None:
            job.runs.cancel()

    def forget_expired(self) -> None:
        """Forget what is kept no longer."""
        now = datetime.now(UTC)
        for job in self:
            if job.expires is not None and job.expires <= now:
                self.forget(job)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
