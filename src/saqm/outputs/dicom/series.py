"""Reports of a batch: scores come in any order, and in the end each series has its report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saqm.errors import ImageError, SaqmError
from saqm.outputs.dicom.building import need_highdicom
from saqm.outputs.dicom.header import header_of
from saqm.outputs.dicom.maker import Maker
from saqm.outputs.dicom.notes import check_rejection, quality_note, rejection_note
from saqm.outputs.dicom.report import quality_report
from saqm.writing import replacing

if TYPE_CHECKING:
    from datetime import datetime

    from pydicom.dataset import Dataset

    from saqm.outputs.dicom.reported import Record


@dataclass(frozen=True)
class Rejection:
    """A person's decision to reject what fails: a key of REJECTION_REASONS, and who looked. Raises SaqmError."""

    reason: str
    confirmed: str

    def __post_init__(self) -> None:
        check_rejection(self.reason, self.confirmed)


class SeriesReports:
    """Collects the records of a batch and writes, into a folder, a report of each series.

    SR.SERIES.dcm is the report, KO.SERIES.dcm the note of what does not pass, KO.rejected.SERIES.dcm the rejection
    note, each where it is asked for and there is something to note. Records wait in a temporary file, and headers are
    read when their series' turn comes: memory holds one series, however large the batch.

    left_out: how many files have no report; why_left_out: of the first of them: it is no DICOM, or a metric judged it.
    Raises MissingExtra without highdicom.
    """

    def __init__(self, folder: Path, maker: Maker, *, note: bool = False, rejection: Rejection | None = None) -> None:
        self.folder, self.maker, self.note, self.rejection = folder, maker, note, rejection
        need_highdicom("a structured report")
        self.left_out, self.why_left_out = 0, ""
        self._last_left_out = ""
        self._waiting = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._places: dict[tuple[str, str], list[int]] = {}  # study and series -> where their records begin

    def add(self, record: Record) -> None:
        """Keep a record for its series' report."""
        path, model, uids = str(record["path"]), record.get("model"), record.get("uids")
        if path == self._last_left_out:
            return
        if isinstance(model, Mapping) and "direction" in model:
            self._leave_out(path, f"{path}: {model.get('name')} has a scale of its own, no 0 to 100")
            return
        if not (isinstance(uids, Mapping) and {"study", "series"} <= set(uids)):
            try:
                header = header_of(path)
            except ImageError as error:
                self._leave_out(path, str(error))
                return
            uids = {"study": str(header.StudyInstanceUID), "series": str(header.SeriesInstanceUID)}
        place = self._waiting.seek(0, 2)
        self._waiting.write(json.dumps(record).encode() + b"\n")
        self._places.setdefault((str(uids["study"]), str(uids["series"])), []).append(place)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records as they come, each kept."""
        for record in records:
            self.add(record)
            yield record

    def write(self, *, now: datetime) -> Iterator[Path]:
        """Write every object, and give out its path. Raises OutputError; what cannot be referred to is left out."""
        for (_, series), places in sorted(self._places.items()):
            images = self._images(places)
            if not images:
                continue
            try:
                yield from self._objects(images, series, now)
            except ImageError as error:  # of a SOP class that no report can refer to
                for _, records in images:
                    self._leave_out(str(records[0]["path"]), str(error))

    def _objects(self, images: list[tuple[Dataset, list[Record]]], series: str, now: datetime) -> Iterator[Path]:
        """The report of a series, and its notes."""
        yield self._save(quality_report(images, self.maker, now=now), f"SR.{series}.dcm")
        verdicts = {record.get("verdict") for _, records in images for record in records}
        if self.note and verdicts & {"review", "fail"}:
            yield self._save(quality_note(images, self.maker, now=now), f"KO.{series}.dcm")
        if self.rejection is not None and "fail" in verdicts:
            made = rejection_note(
                images, self.maker, reason=self.rejection.reason, confirmed=self.rejection.confirmed, now=now
            )
            yield self._save(made, f"KO.rejected.{series}.dcm")

    def _images(self, places: list[int]) -> list[tuple[Dataset, list[Record]]]:
        """Each image of a series with its records."""
        found = []
        for path, records in groupby(map(self._record, places), key=lambda record: str(record["path"])):
            try:
                found.append((header_of(path), list(records)))
            except ImageError as error:
                self._leave_out(path, str(error))
        return found

    def _leave_out(self, path: str, reason: str) -> None:
        self.left_out += 1
        self.why_left_out = self.why_left_out or reason
        self._last_left_out = path

    def _record(self, place: int) -> Record:
        self._waiting.seek(place)
        record: Record = json.loads(self._waiting.readline())
        return record

    def _save(self, made: Dataset, name: str) -> Path:
        save_object(made, self.folder / name)
        return self.folder / name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.close()


def save_object(made: Dataset, path: Path) -> None:
    """Write an object as a DICOM file, beside and put in its place. Raises OutputError."""
    with replacing(path) as beside:
        try:
            made.save_as(beside, enforce_file_format=True)
        except ValueError as error:
            raise SaqmError(f"{path}: cannot be written as DICOM: {type(error).__name__}") from error
