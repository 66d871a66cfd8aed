"""The services under load and attack: `saqm node` and `saqm serve` as real processes on the loopback.

    python benchmarks/service.py [--quick] [--instances 1000] [--clients 64] [--seconds 120] [--workers N]
                                 [--only node http attacks] [--out FOLDER]

Node: instances made from the DICOM files that ship with pydicom, each with a UID of its own, are sent by C-STORE as
fast as the sender can, which tries again what the node puts off (0xA700); a receiver collects the structured reports.
Once a mixture of fifteen kinds, once CT slices of 512x512. An instance is lost if no report names it, told twice if two
do. The rate, from the first instance sent to the last report received, stands beside that of `saqm.batch.score_many` on
the same files with as many processes, one half of them before and one half after. Sender and receiver run on the same
machine and take their share of it.

HTTP: clients that each post one file after another over a connection of their own, and wait as long as Retry-After says
where they are told 429.

Attacks: service_attacks.py. Memory is Linux's, from /proc: elsewhere this does not run. Writes service.json, service.md
made from it, and, after a full run, the sizing table of docs/deploy.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from provenance import RESULTS, ROOT, commit, processor
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SegmentationStorage,
)
from service_attacks import Dimse, Outcome, Web, client_tls, echoed, on_http, on_node, on_tls, outcomes
from service_pages import goals, markdown, put_sizing
from service_running import SAQM, Certificates, Command, Instance, ct_series, free_port, leaks, mixture

from saqm.batch import Settings, score_many

PAGE = ROOT / "docs" / "deploy.md"
# Posted by the HTTP clients: single pictures of several kinds, none large.
POSTED = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_RLE.dcm")
QUEUE = 32  # requests that the HTTP service lets wait: fewer than the clients, so that 429 is seen
READ_SECONDS = 5.0
NODE, SENDER, ELSEWHERE = "SAQM", "MODALITY", "ELSEWHERE"  # AE titles; the last is known from another host only
REPORTS = (Comprehensive3DSRStorage, KeyObjectSelectionDocumentStorage, ParametricMapStorage, SegmentationStorage)
BODY_MB = 64.0  # the largest body, and the largest instance, that the attacked take
STABLE = {"stable_seconds": 3, "released_seconds": 1}  # short, so that waiting is not what is measured
BOUNDS = {"acse_seconds": 5, "dimse_seconds": 5, "network_seconds": 5, "max_object_mb": BODY_MB}  # under attack
OUT_OF_RESOURCES = 0xA700
AT_ONCE = 100  # instances in one association
LEAST_LOOKS = 30  # at the memory, a second apart, to speak of growth
PATIENCE = 300.0  # seconds without a new report after which the rest counts as lost


PARTS = ("node", "http", "attacks")


@dataclass(frozen=True)
class Load:
    """How much is asked of them."""

    instances: int
    clients: int
    seconds: float
    workers: int


# Node


class Receiver:
    """A C-STORE SCP that keeps what it is sent as files, in the order of arrival, and answers success."""

    title, port = "ARCHIVE", 0

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.came = folder, free_port(), list[float]()
        self.reports: dict[str, set[str]] = {}  # what each names
        self._read: set[Path] = set()
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        entity = AE(self.title)
        entity.supported_contexts = [build_context(each) for each in REPORTS]
        handlers = [(evt.EVT_C_STORE, self._keep)]
        self.server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        return self

    def _keep(self, event: evt.Event) -> int:
        beside = self.folder / f"{len(self.came):06}.part"
        beside.write_bytes(event.encoded_dataset())
        beside.replace(beside.with_suffix(".dcm"))
        self.came.append(time.monotonic())
        return 0x0000

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def named(self) -> Counter[str]:
        """How many different reports name an instance. The same report sent twice is one: an archive keeps one."""
        for path in sorted(set(self.folder.glob("*.dcm")) - self._read):
            report = dcmread(path)
            self._read.add(path)
            self.reports[str(report.SOPInstanceUID)] = {
                str(instance.ReferencedSOPInstanceUID)
                for study in report.CurrentRequestedProcedureEvidenceSequence
                for series in study.ReferencedSeriesSequence
                for instance in series.ReferencedSOPSequence
            }
        return Counter(uid for held in self.reports.values() for uid in held)


def send(port: int, paths: Sequence[str], told: Connection) -> None:
    """Send files one after the other, and what was put off again until it is taken: (seconds, put off, failed)."""
    _config.STORE_SEND_CHUNKED_DATASET = True  # straight from the file, so that the sender costs little
    waiting, put_off, failed, began = list(paths), 0, list[str](), time.monotonic()
    while waiting:
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        metas = [read_file_meta_info(path) for path in some]
        entity = AE(SENDER)
        for pair in {(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in metas}:
            entity.add_requested_context(*pair)
        association = entity.associate("127.0.0.1", port, ae_title=NODE)
        again = []
        for path in some:
            status = association.send_c_store(path).get("Status") if association.is_established else None
            if status is None or status == OUT_OF_RESOURCES:
                again.append(path)
            elif status != 0:
                failed.append(f"0x{status:04X}")
        if association.is_established:
            association.release()
        if again:
            put_off += len(again)
            waiting += again
            time.sleep(1)
    told.send((time.monotonic() - began, put_off, failed))


def node_load(folder: Path, instances: Sequence[Instance], workers: int) -> dict[str, Any]:
    """Push them all through the node, with the scorer's own time for the same files before and after."""
    names = [str(each.path) for each in instances]
    own = own_seconds(names[0::2], workers)
    with Receiver(folder / "received") as receiver, node(folder, receiver.port, workers) as (command, port):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        sender = context.Process(target=send, args=(port, names, there), daemon=True)
        sender.start()
        while not here.poll(1) and command.alive and sender.is_alive():
            pass
        sent_seconds, put_off, failed = here.recv()
        ended = time.monotonic()
        began = ended - sent_seconds
        wanted, seen = {each.uid for each in instances}, 0
        while not wanted <= (named := receiver.named()).keys():
            if (len(named) == seen and time.monotonic() - max([ended, *receiver.came]) > PATIENCE) or not command.alive:
                break
            seen = len(named)
            time.sleep(1)
        last = max(receiver.came, default=ended)
        stopped = command.stop()
    own += own_seconds(names[1::2], workers)
    queue = b"".join(each.read_bytes() for each in folder.rglob("*.sqlite*"))
    return {
        "instances": len(instances),
        "frames": sum(each.frames for each in instances),
        "megabytes": sum(each.path.stat().st_size for each in instances) / 2**20,
        "workers": workers,
        "sent_seconds": sent_seconds,
        "put_off": put_off,
        "failed": failed,
        "seconds": last - began,
        "reports": len(receiver.reports),
        "reports_sent_again": len(receiver.came) - len(receiver.reports),
        "lost": sum(named[uid] == 0 for uid in wanted),
        "twice": sum(named[uid] > 1 for uid in wanted),
        "rate": len(instances) / (last - began),
        "own_rate": len(instances) / own,
        "share": own / (last - began),
        "memory": memory([(at, mb) for at, mb in command.memory if at <= last - command.began]),
        "stopped_seconds": stopped,
        "exit_code": command.process.returncode,
        "leaks": leaks(command.said() + queue.decode("latin-1")),
    }


def own_seconds(names: Sequence[str], workers: int) -> float:
    """What scoring files takes without a node, as `saqm score --jobs` does it, the start of its processes left out."""
    done = subprocess.run(
        [sys.executable, __file__, "--own", str(workers), *names], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def time_own(names: Sequence[str], workers: int) -> float:
    """Seconds from the first row on, for the other files; as if for all."""
    rows = score_many(names, Settings(), jobs=workers)
    first = next(rows).path
    began, others = time.monotonic(), set[str]()
    for row in rows:
        others.add(row.path)
    return (time.monotonic() - began) * len(names) / max(len(others - {first}), 1)


@contextmanager
def node(
    folder: Path, archive: int, workers: int, tls: Mapping[str, str] | None = None, **more: float
) -> Iterator[tuple[Command, int]]:
    """`saqm node` that reports to a port of this machine, until the block ends: the command and its port."""
    port = free_port()
    settings = {"folder": "queue", "title": NODE, "port": port, "workers": workers, **STABLE, **more}
    allowed = ({"title": SENDER, "hosts": ["127.0.0.1"]}, {"title": ELSEWHERE, "hosts": ["192.0.2.7"]})
    destination = {"name": "archive", "title": Receiver.title, "host": "127.0.0.1", "port": archive}
    lines = "[node]\n" + toml(settings) + "".join("[[node.allow]]\n" + toml(each) for each in allowed)
    lines += "[[node.destination]]\n" + toml(destination) + ("[node.tls]\n" + toml(tls) if tls else "")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "node.toml"
    config.write_text(lines, encoding="utf-8")
    with Command(("node", "--config", str(config)), folder / "node.log") as command:
        command.wait_for_port(port)
        command.memory.clear()  # of the start
        yield command, port


# HTTP


@dataclass
class Client:
    """What one client saw: statuses, seconds of those answered 200, refusals that named no time to wait."""

    statuses: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    unnamed: int = 0

    def run(self, port: int, key: str, bodies: Sequence[bytes], until: float) -> None:
        """Post one file after the other until the time is over."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        head = {"Authorization": f"Bearer {key}", "Content-Type": "application/dicom"}
        number = 0
        while time.monotonic() < until:
            number += 1
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/score?name=x.dcm", bodies[number % len(bodies)], head)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
                continue
            self.statuses[str(answer.status)] += 1
            if answer.status == 200:
                self.took.append(time.monotonic() - began)
            elif answer.status == 429:
                wait = answer.getheader("Retry-After")
                self.unnamed += wait is None
                time.sleep(max(0.0, min(float(wait or 1), until - time.monotonic())))
        connection.close()


def http_load(folder: Path, load: Load) -> dict[str, Any]:
    """Many clients for a while; then whether it stops in good order and leaves nothing behind."""
    bodies = [Path(str(get_testdata_file(name, download=False))).read_bytes() for name in POSTED]
    with serve(folder, load.workers) as (command, port, key):
        until = time.monotonic() + load.seconds
        clients = [Client() for _ in range(load.clients)]
        threads = [threading.Thread(target=each.run, args=(port, key, bodies, until)) for each in clients]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.monotonic() - began
        stopped = command.stop()
    statuses = sum((each.statuses for each in clients), Counter())
    took = sorted(second for each in clients for second in each.took)
    left = [each for each in (folder / "uploads").rglob("*") if each.is_file()]
    return {
        "clients": load.clients,
        "seconds": lasted,
        "workers": load.workers,
        "queue": QUEUE,
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum(count for status, count in statuses.items() if status[:1] == "5"),
        "broken": sum(count for status, count in statuses.items() if not status.isdigit()),
        "refused_without_retry_after": sum(each.unnamed for each in clients),
        "scored_a_second": len(took) / lasted,
        "p50": at_share(took, 0.5),
        "p99": at_share(took, 0.99),
        "memory": memory(command.memory),
        "stopped_seconds": stopped,
        "exit_code": command.process.returncode,
        "files_left": len(left),
        "leaks": leaks(command.said()),
    }


@contextmanager
def serve(folder: Path, workers: int) -> Iterator[tuple[Command, int, str]]:
    """`saqm serve` with one key, until the block ends: the command, its port, the key."""
    port = free_port()
    settings = {
        "port": port,
        "keys": str(folder / "keys.json"),
        "workers": workers,
        "queue": QUEUE,
        "max_body_mb": BODY_MB,
        "read_seconds": READ_SECONDS,
        "folder": str(folder / "uploads"),
    }
    (folder / "uploads").mkdir(parents=True)
    config = folder / "serve.toml"
    config.write_text("[serve]\n" + toml(settings), encoding="utf-8")
    words = [str(SAQM), "serve", "--config", str(config), "--add-key", "benchmark"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    key = next(word for word in said.split() if word.startswith("saqm_"))
    with Command(("serve", "--config", str(config)), folder / "serve.log") as command:
        command.wait_for_port(port)
        command.memory.clear()  # of the start
        yield command, port, key


def toml(settings: Mapping[str, object]) -> str:
    """Plain settings as lines of TOML, whose strings, numbers and lists are those of JSON."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


# Attacks


def attack(folder: Path) -> list[Outcome]:
    """All of them, each on a service started for the purpose."""
    found: list[Outcome] = []
    with serve(folder / "http", 1) as (command, port, key):
        web = Web(port, key, READ_SECONDS, BODY_MB)
        found += outcomes("HTTP", command, on_http(web), web.honest)
        found.append(silent("HTTP", command))
    with (
        Receiver(folder / "dicom" / "received") as receiver,
        node(folder / "dicom", receiver.port, 1, **BOUNDS) as (command, port),
    ):
        target = target_of(folder / "dicom", port, receiver)
        found += outcomes("DICOM", command, on_node(target), target.honest)
        found.append(silent("DICOM", command))
    certificates = Certificates.made(folder / "tls")
    if certificates is None:
        print("openssl is not at hand: TLS not attacked", file=sys.stderr)
        return found
    tls = {"certificate": certificates["server.pem"], "key": certificates["server.key"], "ca": certificates["ca.pem"]}
    with (
        Receiver(folder / "dicom-tls" / "received") as receiver,
        node(folder / "dicom-tls", receiver.port, 1, tls, **BOUNDS) as (command, port),
    ):
        target = target_of(folder / "dicom-tls", port, receiver)

        def honest() -> bool:
            return echoed(target.associate(tls=client_tls(certificates, "client")))

        found += outcomes("DICOM TLS", command, on_tls(target, certificates), honest)
    return found


def target_of(folder: Path, port: int, receiver: Receiver) -> Dimse:
    """A node as what is attacked."""

    def answered_for(uid: str, patience: float) -> str:
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if uid in receiver.named():
                return "reported"
            if uid in aside(folder / "node.toml"):
                return "set aside with its reason"
            time.sleep(2)
        return ""

    return Dimse(port, NODE, SENDER, ELSEWHERE, BOUNDS["network_seconds"], BODY_MB, answered_for, folder)


def aside(config: Path) -> set[str]:
    """The instances that a node has set aside, as it tells whoever asks."""
    words = [str(SAQM), "node", "--config", str(config), "--status", "--json"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return {each.get("instance", "") for each in json.loads(said)["aside"]}


def silent(on: str, command: Command) -> Outcome:
    """What was logged meanwhile holds nothing of a patient."""
    found = leaks(command.said())
    return Outcome(on, "patients' names in the log", "none", ", ".join(found) or "none", not found, command.alive, 0.0)


# What was found


def memory(looks: Sequence[tuple[float, float]]) -> dict[str, float]:
    """MB: the median of each fifth of the run, the most, and by what share the last fifth is above the second."""
    fifths = [[mb for _, mb in looks[len(looks) * n // 5 : len(looks) * (n + 1) // 5]] for n in range(5)]
    if len(looks) < LEAST_LOOKS:  # too short to say
        return {"peak_mb": max((mb for _, mb in looks), default=0.0)}
    medians = [statistics.median(fifth) for fifth in fifths]
    return {
        **{f"fifth_{n}_mb": mb for n, mb in enumerate(medians, 1)},
        "peak_mb": max(mb for _, mb in looks),
        "growth": medians[4] / medians[1] - 1,
    }


def at_share(sorted_values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of them does not exceed; None of none."""
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)] if sorted_values else None


def measure(folder: Path, load: Load, parts: Sequence[str]) -> dict[str, Any]:
    """Run the parts that are asked for."""
    found: dict[str, Any] = {}
    if "node" in parts:
        found["node"] = {}
        for name, make in (("a mixture", mixture), ("CT 512x512", ct_series)):
            where = folder / make.__name__
            found["node"][name] = node_load(where, make(where / "sent", load.instances), load.workers)
    if "http" in parts:
        found["http"] = http_load(folder / "http", load)
    if "attacks" in parts:
        found["attacks"] = [asdict(each) for each in attack(folder / "attacks")]
    return found


def main() -> None:
    """Measure, print, and write service.json, service.md and the table in docs/deploy.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few instances, few seconds: whether it runs at all")
    parser.add_argument("--instances", type=int, default=1000, help="of each kind of load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120, help="of the load on HTTP")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="scoring processes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--own", nargs="+", help=argparse.SUPPRESS)  # WORKERS FILE..: the scorer's own time for files
    options = parser.parse_args()
    if options.own:
        print(time_own(options.own[1:], int(options.own[0])))
        return
    if options.quick:
        options.instances, options.seconds = min(options.instances, 60), min(options.seconds, 8)
    load = Load(options.instances, options.clients, options.seconds, options.workers)
    made: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/service.py", *sys.argv[1:]]),
        "commit": commit(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("saqm", "pynetdicom", "uvicorn", "fastapi", "onnxruntime")},
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="saqm-service-") as folder:
        made |= measure(Path(folder), load, options.only)
    made["seconds"] = time.monotonic() - began
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "service.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (options.out / "service.md").write_text(markdown(made), encoding="utf-8")
    print(markdown(made))
    if options.out == RESULTS and not options.quick and set(options.only) == set(PARTS):
        PAGE.write_text(put_sizing(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    sys.exit(not all(met for _, _, met in goals(made)))


if __name__ == "__main__":
    main()
