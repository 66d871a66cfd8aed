"""A node, those who send to it, and a PACS that counts what it gets; all on 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs saqm[dicom]")
pytest.importorskip("highdicom", reason="needs saqm[dicom]")

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from saqm.node.settings import Settings
from saqm.outputs.dicom import Reported, read_report

NAME, BIRTH = "Zebedee^Quixote", "19121224"  # of the patient; to be found nowhere but in the files
SECONDS = 30.0  # that anything may take here


def wait_for(what: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "did not come about in time"
        time.sleep(0.02)


def image(number: int = 0, *, series: str = "1.2.3.4", source: str = "CT_small.dcm", entropy: str = "") -> Dataset:
    """A small real image as another instance: its own UID and its own pixels, the made patient's."""
    dataset = dcmread(get_testdata_file(source, download=False))
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number), entropy])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2.3"
    dataset.InstanceNumber = number + 1
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientID = NAME, BIRTH, "4711-0815"
    return dataset


def send(
    port: int,
    datasets: Sequence[Dataset],
    *,
    title: str = "CT1",
    called: str = "SAQM",
    patience: float = SECONDS,
    **how: Any,
) -> list[int | None]:
    """C-STORE, each in its own transfer syntax: the statuses, None where there was no answer in `patience` seconds."""
    entity = AE(title)
    entity.dimse_timeout = patience
    for pair in sorted({(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in datasets}):
        entity.add_requested_context(*pair)
    assoc = entity.associate("127.0.0.1", port, ae_title=called, **how)
    assert assoc.is_established, "association refused"
    connection = assoc.dul.socket.socket
    answers = []
    try:
        for each in datasets:
            answer = assoc.send_c_store(each) if assoc.is_established else Dataset()
            answers.append(answer.get("Status"))
        if assoc.is_established:
            assoc.release()
    finally:
        connection.close()  # pynetdicom does not, where the other end was faster
    return answers


@dataclass
class Pacs:
    """Keeps what it is sent, and says `status`."""

    port: int = 0
    status: int = 0
    got: list[Dataset] = field(default_factory=list)
    _server: Any = None

    def start(self, **how: Any) -> None:
        entity = AE("PACS")
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax)
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)], **how
        )
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, event: Any) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.got.append(dataset)
        return self.status

    @property
    def stored(self) -> dict[str, Dataset]:
        """What it holds, by SOP Instance UID: the same one sent twice is held once."""
        held: dict[str, Dataset] = {}
        for each in self.got:
            assert held.setdefault(each.SOPInstanceUID, each) == each, "same UID, other content"
        return held

    @property
    def reported(self) -> list[Reported]:
        """What its reports say, image by image."""
        reports = [each for each in self.stored.values() if each.Modality == "SR"]
        return [said for report in reports for said in read_report(report)]

    @property
    def instances(self) -> list[str]:
        return sorted(each.uids["instance"] for each in self.reported)


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    made = Pacs()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def told(tmp_path: Path, pacs: Pacs) -> dict[str, Any]:
    """The settings of a quick node."""
    return {
        "folder": tmp_path / "queue",
        "port": 0,
        "allow": [{"title": "CT1", "hosts": ["127.0.0.1"]}],
        "destination": [{"name": "pacs", "title": "PACS", "host": "127.0.0.1", "port": pacs.port}],
        "stable_seconds": 0.4,
        "released_seconds": 0.1,
        "reserve_mb": 1,
        "retry_first_seconds": 0.2,
        "retry_most_seconds": 0.5,
        "stop_seconds": 10,
        "network_seconds": 5,
        "acse_seconds": 2,
        "dimse_seconds": 5,
    }


@dataclass
class Process:
    """`saqm node` as a process of its own."""

    config: Path
    log: Path
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SAQM_NODE_")}
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "saqm.cli", "node", "--config", str(self.config)],
                stderr=stream,
                env=environment,
            )
        wait_for(lambda: self._process.poll() is not None or b'"listening"' in self.log.read_bytes()[before:])
        lines = [json.loads(line) for line in self.log.read_bytes()[before:].decode().splitlines()]
        self.port = next(line["port"] for line in lines if line["event"] == "listening")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(SECONDS)

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log about an event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def process(tmp_path: Path, told: dict[str, Any], toy_model: Path) -> Iterator[Callable[..., Process]]:
    """Starts nodes as processes, with other settings where they are given."""
    made: list[Process] = []

    def start(**other: Any) -> Process:
        config = tmp_path / "saqm.toml"
        config.write_text(toml({**told, "model": str(toy_model), **other}), encoding="utf-8")
        each = Process(config, tmp_path / "log.jsonl")
        made.append(each)
        each.start()
        return each

    yield start
    for each in made:
        each.stop()


def toml(told: dict[str, Any]) -> str:
    """Settings as TOML; what JSON writes of texts, numbers and lists is TOML as well."""
    lines = ["[node]"]
    tables = {key: value for key, value in told.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in told.items() if isinstance(value, list)}
    for key, value in told.items():
        if key not in tables and key not in arrays:
            lines.append(f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}")
    for key, table in tables.items():
        lines += [f"[node.{key}]"] + [f"{name} = {json.dumps(value, default=str)}" for name, value in table.items()]
    for key, entries in arrays.items():
        for entry in entries:
            lines += [f"[[node.{key}]]"] + [f"{name} = {json.dumps(value)}" for name, value in entry.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture
def settings(told: dict[str, Any]) -> Callable[..., Settings]:
    """The settings of a quick node, with others where they are given."""
    return lambda **other: Settings.model_validate({**told, **other})
