"""The loop in a real PACS: scanner -> Orthanc -> `saqm node` -> reports -> Orthanc, and its DICOMweb.

Needs Orthanc with its DICOMweb plug-in: sh tests/pacs/install.sh. Without them these tests are skipped; with
SAQM_PACS=required, as `make test-pacs` and CI have it, they fail. Everything listens on this machine alone, on free
ports, below a temporary folder; each process is ended by its recorded number.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from saqm import dicomweb
from saqm.dicomweb import Found, Query, Server

ORTHANC = shutil.which("Orthanc")
PLUGIN = next(iter(sorted(Path("/usr").glob("*/orthanc/plugins/libOrthancDicomWeb.so*"))), None)
REQUIRED = os.environ.get("SAQM_PACS") == "required"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (ORTHANC is None or PLUGIN is None) and not REQUIRED,
        reason="Orthanc with DICOMweb is not installed: sh tests/pacs/install.sh",
    ),
]

USER, PASSWORD = "saqm", "a password"
# Real files, CT, MR, US, CR, NM and SC, in every coding: what ships with pydicom. The last two are no images.
IMAGES = (
    "CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm",
    "examples_jpeg2k.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm",
    "SC_rgb_rle_2frame.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_small_odd.dcm", "JPEG2000.dcm", "image_dfl.dcm",
    "dicomdirtests/77654033/CR1/6154", "dicomdirtests/77654033/CR2/6247", "dicomdirtests/77654033/CR3/6278",
    "dicomdirtests/77654033/CT2/17106", "dicomdirtests/77654033/CT2/17136", "dicomdirtests/77654033/CT2/17166",
    "dicomdirtests/98892001/CT2N/6293", "dicomdirtests/98892003/MR1/15820", "dicomdirtests/98892003/MR2/4950",
)  # fmt: skip
NOT_IMAGES = ("rtdose.dcm", "liver_1frame.dcm")


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path, name
    return Path(str(path))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def within(seconds: float, happened: Callable[[], Any], what: str) -> Any:
    """What `happened` gives once it is true. Fails the test where that takes too long."""
    until = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return result


def stopped(process: subprocess.Popen[bytes], with_signal: signal.Signals = signal.SIGTERM) -> int:
    if process.poll() is None:
        process.send_signal(with_signal)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@dataclass
class Orthanc:
    """A PACS of our own below a folder; its number stands in FOLDER/orthanc.pid while it runs."""

    folder: Path
    node_port: int
    settings: dict[str, Any] = field(default_factory=dict)  # over those of orthanc.json
    http: int = field(default_factory=free_port)
    dicom: int = field(default_factory=free_port)

    def __enter__(self) -> Orthanc:
        assert ORTHANC is not None, "SAQM_PACS=required, but Orthanc is not installed: sh tests/pacs/install.sh"
        assert PLUGIN is not None, "SAQM_PACS=required, but there is no DICOMweb plug-in: sh tests/pacs/install.sh"
        for name in ("db", "plugins"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "plugins" / PLUGIN.name).symlink_to(PLUGIN)  # the package's own folder may hold others
        settings = json.loads((Path(__file__).parent / "orthanc.json").read_text())
        settings |= {"HttpPort": self.http, "DicomPort": self.dicom}
        settings["DicomModalities"]["saqm"]["Port"] = self.node_port
        settings["DicomModalities"]["saqm"] |= self.settings.pop("saqm", {})
        (self.folder / "orthanc.json").write_text(json.dumps(settings | self.settings))
        with (self.folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen([ORTHANC, "orthanc.json"], cwd=self.folder, stdout=log, stderr=log)
        (self.folder / "orthanc.pid").write_text(str(self.process.pid))
        try:
            within(30, self._ready, "Orthanc answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stopped(self.process)
        (self.folder / "orthanc.pid").unlink()

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", self.http)) != 0:
                return False
        try:
            return "Version" in self.rest("/system")
        except OSError:  # it has just begun to listen
            return False

    @property
    def server(self) -> Server:
        return Server(url=f"http://localhost:{self.http}/dicom-web", user=USER, password=PASSWORD)

    def rest(self, path: str, body: object = None, accept: str = "application/json") -> Any:
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {secret}", "Accept": accept}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://localhost:{self.http}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def take(self, names: tuple[str, ...], tls: ssl.SSLContext | None = None) -> set[str]:
        """Store files by C-STORE, each as it is coded, as a scanner would; the SOP instance UIDs."""
        from pynetdicom import AE

        datasets = [pydicom.dcmread(bundled(name)) for name in names]
        entity = AE("SCANNER")
        for pair in {(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in datasets}:
            entity.add_requested_context(*pair)
        secured = None if tls is None else (tls, "localhost")
        association = entity.associate("localhost", self.dicom, ae_title="ORTHANC", tls_args=secured)
        assert association.is_established
        statuses = {name: association.send_c_store(each).Status for name, each in zip(names, datasets, strict=True)}
        association.release()
        assert set(statuses.values()) == {0}, statuses
        uids = {str(each.SOPInstanceUID) for each in datasets}
        assert len(uids) == len(names)
        return uids

    def push(self, instances: set[str]) -> str:
        """Have it push instances that it holds to the node; the number of the job."""
        query = {"SOPInstanceUID": "\\".join(sorted(instances))}
        found = self.rest("/tools/find", {"Level": "Instance", "Query": query})
        assert len(found) == len(instances)
        return str(self.rest("/modalities/saqm/store", {"Resources": found, "Synchronous": False})["ID"])

    def pushed(self, instances: set[str]) -> bool:
        """The same, and wait: whether the node took all of them. The first that it does not take ends the job."""
        job = self.push(instances)
        told = within(60, lambda: self._finished(job), "Orthanc has pushed")
        return bool(told["State"] == "Success")

    def _finished(self, job: str) -> dict[str, Any] | None:
        told: dict[str, Any] = self.rest(f"/jobs/{job}")
        return told if told["State"] in ("Success", "Failure") else None

    def reports(self) -> list[Found]:
        """The structured reports it holds, by QIDO."""
        return list(dicomweb.search(self.server, Query(modality="SR")))

    def fetched(self, found: Found) -> pydicom.Dataset:
        """An instance, by WADO."""
        with dicomweb.fetched(dicomweb.name_of(self.server, found), self.server) as path:
            return pydicom.dcmread(path)


@dataclass
class Node:
    """`saqm node` as a process of its own, as often as it is started."""

    folder: Path
    port: int
    config: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "saqm.toml").write_text(self.config)
        begun = len(self.log())
        command = [sys.executable, "-m", "saqm.cli", "node", "--config", str(self.folder / "saqm.toml")]
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.wait_for("listening", begun=begun)

    def kill(self) -> None:
        assert self.process is not None
        stopped(self.process, signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None:
            stopped(self.process)

    def log(self) -> list[str]:
        path = self.folder / "node.log"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def wait_for(self, event: str, *, begun: int = 0) -> None:
        """Until its log tells of an event, from a line on."""

        def told() -> bool:
            assert self.process is None or self.process.poll() is None, "\n".join(self.log()[-20:])
            return any(f'"{event}"' in line for line in self.log()[begun:])

        within(60, told, f"the node tells: {event}")

    def finished(self) -> bool:
        """Whether nothing waits to be scored, reported or sent."""
        from saqm.node.queue import status

        told = status(self.folder / "queue", now=time.time())
        pending = sum(each["pending"] for each in told["destinations"].values())
        return told["instances"]["waiting"] + told["instances"]["scored"] + pending == 0

    def status(self) -> dict[str, Any]:
        """What the command tells."""
        command = [sys.executable, "-m", "saqm.cli", "node", "--config", str(self.folder / "saqm.toml")]
        done = subprocess.run([*command, "--status", "--json"], capture_output=True, timeout=60, check=False)
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def settings_of(orthanc: Orthanc, folder: Path, destination: str, extra: str = "") -> str:
    return f"""
[node]
folder = "{folder / "queue"}"
title = "SAQM"
port = {orthanc.node_port}
stable_seconds = 2
released_seconds = 0.3
retry_first_seconds = 0.2
reserve_mb = 1
{extra}

[[node.allow]]
title = "ORTHANC"
hosts = ["127.0.0.1"]

[[node.destination]]
name = "pacs"
{destination}
"""


def by_store(orthanc: Orthanc) -> str:
    return f'title = "ORTHANC"\nhost = "localhost"\nport = {orthanc.dicom}'


def by_stow(orthanc: Orthanc, folder: Path) -> str:
    (folder / "password").write_text(PASSWORD + "\n")
    return f'url = "{orthanc.server.url}"\nuser = "{USER}"\npassword_file = "{folder / "password"}"'


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc", free_port()) as running:
        yield running


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(orthanc: Orthanc, destination: str, extra: str = "") -> Node:
        folder = tmp_path / f"node{len(made)}"
        made.append(Node(folder, orthanc.node_port, settings_of(orthanc, folder, destination, extra)))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def frames_in(orthanc: Orthanc, images: set[str]) -> Counter[tuple[str, str, int | None]]:
    """(study, instance, frame) of each picture that has to be reported, once."""
    held = [found for found in dicomweb.search(orthanc.server) if found.instance in images]
    assert {found.instance for found in held} == images
    expected: Counter[tuple[str, str, int | None]] = Counter()
    for found in held:
        frames = int(orthanc.fetched(found).get("NumberOfFrames", None) or 1)
        expected.update((found.study, found.instance, n if frames > 1 else None) for n in range(frames))
    return expected


def frames_reported(orthanc: Orthanc) -> Counter[tuple[str, str, int | None]]:
    """(study of the report, instance, frame) of each group of each report; report, images and metadata agree."""
    from saqm.outputs.dicom import read_report

    told: Counter[tuple[str, str, int | None]] = Counter()
    for found in orthanc.reports():
        report = orthanc.fetched(found)
        assert str(report.StudyInstanceUID) == found.study
        said = read_report(report)
        path = f"/dicom-web/studies/{found.study}/series/{found.series}/instances/{found.instance}/metadata"
        metadata = pydicom.Dataset.from_json(orthanc.rest(path, accept="application/dicom+json")[0])
        assert metadata.CurrentRequestedProcedureEvidenceSequence == report.CurrentRequestedProcedureEvidenceSequence
        assert metadata.ContentSequence[-1].ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
        for each in said:
            assert each.uids["study"] == found.study
            told[found.study, each.uids["instance"], each.frame] += 1
            assert (each.status == "scored") == (each.score is not None)
            assert each.status == "scored" or each.reasons
    return told


def all_reported(orthanc: Orthanc, images: set[str], node: Node) -> None:
    """Until the queue is empty; then every picture is in exactly one report."""
    within(90, node.finished, "everything is reported and sent")
    assert frames_reported(orthanc) == frames_in(orthanc, images)
    told = node.status()
    assert (told["instances"]["done"], told["aside"]) == (len(images), [])


def no_names_in(log: list[str]) -> None:
    """No name of a patient is in the log: not the files' own, nor a part of it."""
    names = {str(pydicom.dcmread(bundled(name), stop_before_pixels=True).get("PatientName", "")) for name in IMAGES}
    parts = {part for name in names for part in name.replace("^", " ").split() if len(part) > 3}
    assert parts
    assert [part for part in parts if any(part in line for line in log)] == []


@pytest.mark.parametrize("way", ["store", "stow"])
def test_every_image_that_flows_through_comes_back_reported_once(
    orthanc: Orthanc, node: Callable[..., Node], tmp_path: Path, way: str
) -> None:
    images = orthanc.take(IMAGES)
    others = orthanc.take(NOT_IMAGES)
    scorer = node(orthanc, by_store(orthanc) if way == "store" else by_stow(orthanc, tmp_path))
    scorer.start()
    assert orthanc.pushed(images)
    for other in others:  # the node offers no context for what is no image
        assert not orthanc.pushed({other})
    all_reported(orthanc, images, scorer)
    before = {found: hash_of(orthanc, found) for found in orthanc.reports()}
    assert orthanc.pushed(images)
    assert sum('"known already"' in line for line in scorer.log()) == len(images)
    time.sleep(1)  # longer than it waits before it reports
    all_reported(orthanc, images, scorer)
    assert {found: hash_of(orthanc, found) for found in orthanc.reports()} == before
    scorer.stop()
    no_names_in(scorer.log())


def hash_of(orthanc: Orthanc, found: Found) -> str:
    with dicomweb.fetched(dicomweb.name_of(orthanc.server, found), orthanc.server) as path:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_node_that_is_killed_again_and_again_reports_each_image_exactly_once(
    orthanc: Orthanc, node: Callable[..., Node]
) -> None:
    images = orthanc.take(IMAGES)
    # on a slow machine one image may be in hand at each of the four kills, and is not to be given up for them
    scorer = node(orthanc, by_store(orthanc), "attempts = 9")
    for moment in ("accepted", "scored", "reported", "delivered"):
        begun = len(scorer.log())
        scorer.start()
        orthanc.push(images)
        scorer.wait_for(moment, begun=begun)
        scorer.kill()
    scorer.start()
    assert orthanc.pushed(images)  # as a PACS does where a push has failed
    all_reported(orthanc, images, scorer)


def test_reports_wait_for_a_pacs_that_is_away(tmp_path: Path, node: Callable[..., Node]) -> None:
    with Orthanc(tmp_path / "images", free_port()) as source:
        images = source.take(IMAGES[:3])
        archive = Orthanc(tmp_path / "reports", free_port())
        scorer = node(source, by_stow(archive, tmp_path))
        scorer.start()
        assert source.pushed(images)
        scorer.wait_for("unreachable")
        with archive:
            within(60, lambda: len(archive.reports()) == 3, "the reports have come")
            assert {instance for _, instance, _ in frames_reported(archive)} == images


# TLS


@dataclass(frozen=True)
class Certificates:
    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def table(self) -> str:
        return f'[node.tls]\ncertificate = "{self.certificate}"\nkey = "{self.key}"\nca = "{self.ca}"'


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    folder = tmp_path / "tls"
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    san = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
    openssl(*new, "-subj", "/CN=ca", "-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.pem")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
    openssl(*new, "-subj", "/CN=localhost", *san, *signed, "-keyout", "own.key", "-out", "own.pem")
    return Certificates(*(folder / name for name in ("ca.pem", "own.pem", "own.key")))


def test_the_loop_over_tls(tmp_path: Path, node: Callable[..., Node], certificates: Certificates) -> None:
    """DICOM TLS both ways, with certificates on both sides by an authority of our own.

    Not STOW over HTTPS: Orthanc 1.10.1 of Debian 12 dies at the first HTTPS request (segmentation fault).
    """
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(certificates.certificate),
        "DicomTlsPrivateKey": str(certificates.key),
        "DicomTlsTrustedCertificates": str(certificates.ca),
        "saqm": {"UseDicomTls": True},
    }
    with Orthanc(tmp_path / "orthanc", free_port(), settings) as orthanc:
        images = orthanc.take(IMAGES[:4], certificates.context())
        scorer = node(orthanc, f"{by_store(orthanc)}\ntls = true\n{certificates.table()}")
        scorer.start()
        assert orthanc.pushed(images)
        all_reported(orthanc, images, scorer)


def test_a_pacs_without_our_certificate_cannot_send(
    orthanc: Orthanc, node: Callable[..., Node], certificates: Certificates
) -> None:
    images = orthanc.take(IMAGES[:1])
    scorer = node(orthanc, f"{by_store(orthanc)}\n{certificates.table()}")
    scorer.start()
    assert not orthanc.pushed(images)
    assert sum(scorer.status()["instances"].values()) == 0
    assert orthanc.reports() == []


# DICOMweb


def saqm(*arguments: str, user: str = USER) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAQM_DICOMWEB_USER": user, "SAQM_DICOMWEB_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "saqm.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def url_of(orthanc: Orthanc) -> str:
    return orthanc.server.url.replace("http://", "dicomweb://")


def test_what_is_pulled_is_what_was_stored(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.take(IMAGES)
    done = saqm("pull", url_of(orthanc), "--out", str(tmp_path / "in"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{len(IMAGES)} fetched\n"
    pulled = {path.stem: path for path in map(Path, done.stdout.splitlines())}
    for name in IMAGES:
        sent = pydicom.dcmread(bundled(name))
        kept = pydicom.dcmread(pulled[str(sent.SOPInstanceUID)])
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert kept.PixelData == sent.PixelData
    done = saqm("pull", url_of(orthanc), "--out", str(tmp_path / "us"), "--modality", "US", "--json")
    assert len(json.loads(done.stdout)) == 4
    refused = saqm("pull", url_of(orthanc), "--out", str(tmp_path / "no"), user="nobody")
    assert refused.returncode == 2
    assert "401 Unauthorized" in refused.stderr
    assert PASSWORD not in refused.stderr


def test_a_url_scores_as_its_files_do(orthanc: Orthanc) -> None:
    orthanc.take((*IMAGES[:4], NOT_IMAGES[0]))
    remote = saqm("score", url_of(orthanc), "--format", "jsonl", "--jobs", "2")
    local = saqm("score", *(str(bundled(name)) for name in (*IMAGES[:4], NOT_IMAGES[0])), "--format", "jsonl")
    assert remote.returncode == local.returncode == 1  # one of them is no image
    kept = ("score", "interval", "status", "frame", "findings")
    records = [[json.loads(line) for line in each.stdout.splitlines()] for each in (remote, local)]
    first, second = (sorted(json.dumps([record[key] for key in kept]) for record in each) for each in records)
    assert first == second
    assert all(record["path"].startswith(url_of(orthanc)) for record in records[0])
    (dose,) = [record for record in records[0] if record["status"] == "not_scored"]
    assert "a radiotherapy dose grid" in dose["reasons"][0]


def test_reports_made_at_home_are_stored_by_stow(orthanc: Orthanc, tmp_path: Path) -> None:
    images = orthanc.take(IMAGES[:3])
    done = saqm("pull", url_of(orthanc), "--out", str(tmp_path / "in"))
    assert done.returncode == 0, done.stderr
    done = saqm("score", str(tmp_path / "in"), "--dicom-sr", str(tmp_path / "sr"), "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    done = saqm("push", str(tmp_path / "sr"), "--to", url_of(orthanc))
    assert (done.returncode, done.stderr) == (0, "3 stored\n")
    assert {instance for _, instance, _ in frames_reported(orthanc)} == images
