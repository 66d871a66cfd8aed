"""What benchmarks/service.py runs and feeds: the real commands as processes, their memory, instances with new UIDs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SAQM = Path(sys.executable).with_name("saqm")  # the installed command, as a user calls it
# All that ship with pydicom and can be judged or are at least images, of the modalities that the node takes.
MIX = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "examples_jpeg2k.dcm", "examples_overlay.dcm", "examples_palette.dcm",
    "examples_rgb_color.dcm", "examples_ybr_color.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEG2000.dcm",
    "dicomdirtests/77654033/CR1/6154",
)  # fmt: skip
SERIES = "J2K_pixelrep_mismatch.dcm"  # a CT slice of 512x512, decompressed for the series
IN_A_SERIES = 50  # instances
# Must be found in no log, answer or column of a queue.
SECRETS = ("Leakcheck", "LEAK-4711", "19330505")


@dataclass(frozen=True)
class Instance:
    """A file to send. `frames`: how many pictures it holds."""

    path: Path
    uid: str
    frames: int


def mixture(folder: Path, count: int) -> list[Instance]:
    """So many instances of all kinds in turn, in series of one kind each."""
    sources = [dcmread(get_testdata_file(name, download=False)) for name in MIX]  # type: ignore[arg-type]
    made, series = [], {}
    for number in range(count):
        which = number % len(sources)
        turn = number // len(sources)
        series[which] = generate_uid() if turn % IN_A_SERIES == 0 else series[which]
        made.append(_written(folder, sources[which], series[which], turn % IN_A_SERIES + 1))
    return made


def ct_series(folder: Path, count: int) -> list[Instance]:
    """So many slices of 512x512, uncompressed, no two alike, in series of IN_A_SERIES."""
    source = dcmread(get_testdata_file(SERIES, download=False))  # type: ignore[arg-type]
    source.decompress()
    pixels = source.pixel_array
    made, series = [], ""
    for number in range(count):
        if number % IN_A_SERIES == 0:
            series = generate_uid()
        source.PixelData = np.roll(pixels, 7 * number, axis=0).tobytes()
        source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.append(_written(folder, source, series, number % IN_A_SERIES + 1))
    return made


def _written(folder: Path, source: Dataset, series: str, number: int) -> Instance:
    """One instance of a series with a UID of its own, and a patient who must not be seen in any log."""
    source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    source.SeriesInstanceUID, source.StudyInstanceUID = series, f"{series[:60]}.1"
    source.InstanceNumber = number
    source.PatientName, source.PatientID, source.PatientBirthDate = f"{SECRETS[0]}^Test", SECRETS[1], SECRETS[2]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source.SOPInstanceUID}.dcm"
    source.save_as(path, enforce_file_format=True)
    return Instance(path, str(source.SOPInstanceUID), int(source.get("NumberOfFrames") or 1))


def free_port() -> int:
    """A port of the loopback on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def family(pid: int) -> list[int]:
    """A process and all that descend from it, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its descendants; pages that several share are counted once for each."""
    pages = 0
    for each in family(pid):
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Command:
    """A saqm command that runs until it is stopped; `log` holds what it wrote. Memory is looked at all the time."""

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)  # (seconds since start, MB)
    pulse: float = 1.0  # seconds between looks

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(SAQM), *self.words],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            )
        self.began = time.monotonic()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(self.pulse) and self.alive:
            self.memory.append((time.monotonic() - self.began, resident_mb(self.process.pid)))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def wait_for_port(self, port: int, seconds: float = 120) -> None:
        """Until somebody listens there. Raises where the command ends before, with what it said last."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.alive:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{' '.join(self.words)} did not listen on {port}: {self.said()[-2000:]}")

    def said(self) -> str:
        """All that it wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self, seconds: float = 120) -> float:
        """Ask it to stop; the seconds that took. Killed where it does not."""
        began = time.monotonic()
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"{' '.join(self.words)} did not stop in {seconds} s") from None
        return time.monotonic() - began

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self.alive:
            self.stop()


@dataclass(frozen=True)
class Certificates:
    """PEM files for tests, made by openssl: one authority with a server and a client, and a stranger of another one."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Self | None:
        """None where openssl is not at hand."""
        if shutil.which("openssl") is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        for authority, holders in (("ca", ("server", "client")), ("other", ("stranger",))):
            _openssl(folder, *f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority}".split(),
                     *f"-keyout {authority}.key -out {authority}.pem".split())  # fmt: skip
            for holder in holders:
                _openssl(folder, *f"req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {holder}.key".split(),
                         "-out", f"{holder}.csr")  # fmt: skip
                (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="utf-8")
                _openssl(folder, *f"x509 -req -in {holder}.csr -CA {authority}.pem -CAkey {authority}.key".split(),
                         *f"-CAcreateserial -days 2 -extfile names -out {holder}.pem".split())  # fmt: skip
        return cls(folder)

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def leaks(text: str) -> list[str]:
    """The secrets of the sent patients that stand in a text."""
    return [secret for secret in SECRETS if secret in text]


def chunks(items: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    """Items in their order, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
