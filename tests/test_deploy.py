"""What is handed to those who run it: image, compose, units, settings, statement and how-tos say what the code does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from saqm.node.settings import Allowed, Destination, Gate, Tls
from saqm.node.settings import Settings as NodeSettings
from saqm.node.settings import read_settings as read_node_settings
from saqm.service.settings import ServeSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SAQM = Path(sys.executable).with_name("saqm")
SECONDS = 60.0  # that a command may take to start, or an answer to come


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def module(path: Path) -> ModuleType:
    """A script as a module; its neighbours can be imported by it."""
    spec = importlib.util.spec_from_file_location(f"of_deploy_{path.stem}", path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(path.parent))
    return made


@contextmanager
def running(*words: str | Path, cwd: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command until the block ends; then it must stop by itself within SECONDS."""
    with (cwd / "log").open("ab") as log:
        process = subprocess.Popen(
            list(map(str, words)), cwd=cwd, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def until(true: Any, what: str) -> Any:
    """What a condition gives once it holds."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {SECONDS} s: {what}")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# The image


def instructions() -> list[tuple[str, str]]:
    """Verb and rest of each instruction of the Dockerfile, read otherwise than check.sh does."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    return [(verb, " ".join(rest.split())) for verb, rest in re.findall(r"^([A-Z]+) (.+)$", text, re.MULTILINE)]


def test_the_check_runs_every_step_of_the_dockerfile() -> None:
    said = subprocess.run([DEPLOY / "check.sh", "--steps"], check=True, capture_output=True, text=True).stdout
    steps = [(verb, rest) for verb, rest in instructions() if verb in ("COPY", "RUN")]
    left_out = [rest for verb, rest in steps if rest.startswith("--from=") or "useradd" in rest]
    assert len(left_out) == 2, "between stages, and the account: nothing else goes unchecked"
    assert said.splitlines() == [f"{verb} {rest}" for verb, rest in steps if rest not in left_out]


def test_the_image_is_run_by_nobody_in_particular_and_asks_itself_whether_it_is_well() -> None:
    said = dict(instructions())
    assert said["USER"] == "10001:10001"
    assert "--uid 10001 --gid 10001" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(said["ENTRYPOINT"]) == ["saqm"]
    assert json.loads(said["CMD"])[0] == "serve"
    assert "/healthz" in said["HEALTHCHECK"]
    assert "curl" not in said["HEALTHCHECK"]
    defaults = {name: field.default for name, field in ServeSettings.model_fields.items()}
    assert f":{defaults['port']}/" in said["HEALTHCHECK"]
    assert said["EXPOSE"].split() == [str(defaults["port"]), str(NodeSettings.model_fields["port"].default)]
    for verb, rest in instructions():
        if verb == "RUN" and " pip install" in rest:
            assert "--no-cache-dir" in rest
            assert "--constraint /build/constraints.txt" in rest


def test_the_builder_is_given_what_the_dockerfile_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    given = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word for verb, rest in instructions() if verb == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert "*" in lines
    assert given == copied
    assert all((ROOT / name).exists() for name in given)


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([str(HADOLINT), ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# Compose


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="compose.yaml is read with PyYAML")
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8")))


def test_compose_gives_saqm_no_more_than_it_needs() -> None:
    services = compose()["services"]
    for name in ("serve", "node"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), "nothing on the machine's network by itself"
    files = [volume for service in services.values() for volume in service["volumes"] if volume.startswith("./")]
    assert len(files) == 3
    assert all((ROOT / file.split(":")[0]).is_file() for file in files)


def test_compose_waits_longer_than_its_services_take_to_stop() -> None:
    grace = int(compose()["services"]["serve"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServeSettings.model_fields["drain_seconds"].default
    assert grace > NodeSettings.model_fields["stop_seconds"].default


def test_the_environment_of_compose_is_that_of_settings() -> None:
    for name in compose()["services"]["serve"]["environment"]:
        assert name.removeprefix("SAQM_SERVE_").lower() in ServeSettings.model_fields


def test_node_and_archive_of_compose_know_each_other() -> None:
    node = read_node_settings(DEPLOY / "compose-node.toml", {})
    archive = orthanc_settings()
    peer = archive["DicomModalities"]["saqm"]
    services = compose()["services"]
    assert (peer["AET"], peer["Port"]) == (node.title, node.port)
    assert peer["Host"] in services
    (destination,) = node.destination
    assert (destination.title, destination.port) == (archive["DicomAet"], archive["DicomPort"])
    assert destination.host in services
    (allowed,) = node.allow
    assert allowed.title == archive["DicomAet"]
    assert str(allowed.hosts[0]) == compose()["networks"]["dicom"]["ipam"]["config"][0]["subnet"]


def orthanc_settings() -> dict[str, Any]:
    text = (DEPLOY / "orthanc.json").read_text(encoding="utf-8")
    return dict(json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)))


# Units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["serve", "node"])
def test_the_units_are_sound_and_leave_little_open(name: str, tmp_path: Path) -> None:
    unit = DEPLOY / f"saqm-{name}.service"
    # the command need not be installed here for the rest to be looked at
    there = tmp_path / unit.name
    there.write_text(unit.read_text("utf-8").replace("/opt/saqm/bin/saqm", shutil.which("true") or ""), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, about_it) == (0, [])
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", unit]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("name", ["serve", "node"])
def test_the_units_give_time_to_stop(name: str) -> None:
    text = (DEPLOY / f"saqm-{name}.service").read_text(encoding="utf-8")
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert found
    takes = NodeSettings.model_fields["stop_seconds"] if name == "node" else ServeSettings.model_fields["drain_seconds"]
    assert int(found[1]) > 2 * takes.default
    assert f"saqm {name} --config" in text
    assert f"SAQM_{name.upper()}_" in text


# Settings


def example() -> dict[str, Any]:
    """The example with every setting taken out of its comment; and which of its lines are examples, not defaults."""
    text = (DEPLOY / "saqm.toml").read_text(encoding="utf-8")
    return tomllib.loads(re.sub(r"^# (\[|\w+ = )", r"\1", text, flags=re.MULTILINE))


def are_examples(table: str) -> set[str]:
    """The settings of the example whose value is no default: their comment says "e.g."."""
    text = (DEPLOY / "saqm.toml").read_text(encoding="utf-8").split(f"\n{table}\n")[1].split("\n# [")[0].split("\n[")[0]
    return set(re.findall(r"^# (\w+) = .*# e\.g\.; ", text, re.MULTILINE))


def test_the_example_settings_say_nothing_until_they_are_changed() -> None:
    assert tomllib.loads((DEPLOY / "saqm.toml").read_text(encoding="utf-8")) == {"serve": {}, "node": {}}


def test_every_setting_of_the_service_stands_in_the_example_with_its_default() -> None:
    told = example()["serve"]
    assert told.keys() == ServeSettings.model_fields.keys()
    for name, field in ServeSettings.model_fields.items():
        if name in are_examples("[serve]"):
            assert field.default is None, name
        else:
            assert told[name] == (list(field.default) if isinstance(field.default, tuple) else field.default), name
    ServeSettings.model_validate(told)


def test_every_setting_of_the_node_stands_in_the_example_with_its_default() -> None:
    whole = example()
    told, tables = whole["node"], {"allow": Allowed, "destination": Destination, "tls": Tls}
    assert told.keys() == NodeSettings.model_fields.keys() - {"gate"}
    for name, field in NodeSettings.model_fields.items():
        if name in tables or name == "gate":
            continue
        if name in are_examples("[node]"):
            assert field.is_required() or field.default is None, name
        else:
            assert told[name] == field.default, name
    assert told["allow"][0].keys() == Allowed.model_fields.keys()
    assert {name for each in told["destination"] for name in each} == Destination.model_fields.keys()
    assert told["tls"].keys() == Tls.model_fields.keys()
    assert whole["gate"].keys() == Gate.model_fields.keys()


# What the pages say


def test_the_tables_of_statement_and_deployment_are_those_of_the_code() -> None:
    statement = module(ROOT / "docs" / "generate_statement.py")
    marks = set()
    for path in statement.PAGES:
        text = path.read_text(encoding="utf-8")
        assert text == statement.page(path), "run python docs/generate_statement.py"
        marks |= set(re.findall(r"<!-- ([a-z-]+):begin -->", text))
    assert marks - {"sizing"} == statement.TABLES.keys()


def test_the_statement_tells_every_status_that_the_node_answers() -> None:
    from saqm.node import listener

    statement = module(ROOT / "docs" / "generate_statement.py")
    constants = {value for name, value in vars(listener).items() if name.isupper() and isinstance(value, int)}
    answered = {value for value in constants if 0xFF < value <= 0xFFFF} | {
        listener.SUCCESS
    }  # the others are of associations
    assert {int(code, 16) for code in re.findall(r"0x[0-9A-F]{4}", statement.statuses())} == answered


def test_objects_are_of_the_classes_that_the_statement_names() -> None:
    from datetime import UTC, datetime

    from saqm import load_scorer, read_image, score
    from saqm.outputs.dicom import Maker, header_of, quality_report

    statement = module(ROOT / "docs" / "generate_statement.py")
    path = sample("CT_small.dcm")
    scored = score(read_image(path), load_scorer())
    report = quality_report([(header_of(path), [scored])], Maker("2.25.1"), now=datetime(2026, 1, 1, tzinfo=UTC))
    assert report.SOPClassUID in statement.SENT
    assert str(report.SOPInstanceUID).startswith("2.25.")
    for code in (
        item.ConceptNameCodeSequence[0] for item in report.ContentSequence[-1].ContentSequence[0].ContentSequence
    ):
        if (code.CodingSchemeDesignator, code.CodeValue) in {("DCM", "111029"), ("SCT", "371885007")}:
            assert f"`{code.CodeValue}`" in statement.codes()


def test_the_sizing_table_is_that_of_the_benchmark() -> None:
    pages = module(ROOT / "benchmarks" / "service_pages.py")
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert text.count(pages.BEGIN) == text.count(pages.END) == 1
    results = ROOT / "benchmarks" / "results" / "service.json"
    if not results.exists():
        pytest.skip("benchmarks/service.py has not been run in full")
    made = json.loads(results.read_text(encoding="utf-8"))
    assert text == pages.put_sizing(text, made)
    assert (results.with_suffix(".md")).read_text(encoding="utf-8") == pages.markdown(made)


# What the how-to of the service shows, done


def shell_lines(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are written for curl")
def test_the_examples_with_curl_do_what_is_said(tmp_path: Path) -> None:
    """Every block that begins with curl, in order, against a service that runs."""
    for name, source in (("scan.dcm", "CT_small.dcm"), ("cine.dcm", "SC_rgb_rle_2frame.dcm")):
        shutil.copy(sample(source), tmp_path / name)
    shutil.copy(next((ROOT / "docs" / "images").glob("*.png")), tmp_path / "picture.png")
    port, config = free_port(), DEPLOY / "saqm.toml"
    words = (SAQM, "serve", "--config", config, "--port", port)
    key = subprocess.run(
        [*map(str, words), "--keys", "keys.json", "--add-key", "me"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    blocks = [block for block in shell_lines("serve.md") if block.startswith("curl")]
    assert len(blocks) >= 6
    said = []
    with running(*words, cwd=tmp_path):
        until(lambda: listens(port), "the service listens")
        for block in blocks:
            script = "set -euo pipefail\n" + block.replace("127.0.0.1:8787", f"127.0.0.1:{port}")
            done = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
                env={**os.environ, "SAQM_KEY": key},
            )  # fmt: skip
            said.append(done.stdout)
    one, several, judged, _, mapped, job, models = said
    assert [record["status"] for record in json.loads(one)["records"]] == ["scored"]
    assert {record["path"] for record in json.loads(several)["records"]} == {"scan.dcm", "picture.png"}
    assert json.loads(judged)["records"][0]["verdict"] in ("pass", "review", "fail")
    assert dcmread(tmp_path / "report.dcm").Modality == "SR"
    assert json.loads(mapped)["records"][0]["map"]["png"]
    assert json.loads(job.partition("}")[0] + "}")["files"] == 2
    assert (tmp_path / "scores.tsv").exists()
    assert json.loads(models)["models"]


# A queue saved while its node runs


def node_config(folder: Path, port: int, archive: int) -> Path:
    config = folder / "node.toml"
    config.write_text(
        f'[node]\nfolder = "queue"\nport = {port}\nstable_seconds = 0\nreleased_seconds = 0\n'
        "retry_first_seconds = 1\nretry_most_seconds = 1\nreserve_mb = 0\n"
        '[[node.allow]]\ntitle = "CT1"\nhosts = ["127.0.0.1"]\n'
        f'[[node.destination]]\nname = "pacs"\ntitle = "PACS"\nhost = "127.0.0.1"\nport = {archive}\n',
        encoding="utf-8",
    )
    return config


def push(port: int, *names: str) -> list[str]:
    """Send files as CT1; their UIDs."""
    from pynetdicom import AE

    datasets = [dcmread(sample(name)) for name in names]
    entity = AE("CT1")
    for dataset in datasets:
        entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="SAQM")
    assert association.is_established
    assert all(association.send_c_store(dataset).Status == 0 for dataset in datasets)
    association.release()
    return [str(dataset.SOPInstanceUID) for dataset in datasets]


@contextmanager
def archive(port: int) -> Iterator[dict[str, set[str]]]:
    """A destination: the reports that came, by UID, with the instances that each names."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import Comprehensive3DSRStorage

    came: dict[str, set[str]] = {}

    def keep(event: evt.Event) -> int:
        report = event.dataset
        came[str(report.SOPInstanceUID)] = {
            str(instance.ReferencedSOPInstanceUID)
            for study in report.CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for instance in series.ReferencedSOPSequence
        }
        return 0x0000

    entity = AE("PACS")
    entity.add_supported_context(Comprehensive3DSRStorage)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])  # type: ignore[arg-type]
    try:
        yield came
    finally:
        server.shutdown()


def status(config: Path) -> dict[str, Any]:
    words = [SAQM, "node", "--config", config, "--status", "--json"]
    return dict(json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the page uses sqlite3's own command")
def test_a_queue_saved_while_its_node_runs_can_be_restored(tmp_path: Path) -> None:
    """By the page's own lines; a report that was delivered after the copy comes again under the same UID."""
    port, to = free_port(), free_port()
    config = node_config(tmp_path, port, to)
    (lines,) = [block for block in shell_lines("deploy.md") if ".backup" in block]
    with running(SAQM, "node", "--config", config, cwd=tmp_path):
        until(lambda: listens(port), "the node listens")
        sent = push(port, "CT_small.dcm", "MR_small.dcm")
        until(lambda: status(config)["instances"]["reported"] == 2, "both are reported, with nobody to take it")
        subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=tmp_path, check=True)
        with archive(to) as came:
            until(lambda: set().union(*came.values()) == set(sent), "both are delivered")
            first = dict(came)
    assert sqlite3.connect(tmp_path / "backup" / "queue.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shutil.rmtree(tmp_path / "queue")
    (tmp_path / "backup").rename(tmp_path / "queue")
    with archive(to) as came, running(SAQM, "node", "--config", config, cwd=tmp_path):
        until(lambda: set().union(*came.values()) == set(sent), "both are delivered again")
        assert came == first, "the same reports, so that an archive keeps them once"
        until(lambda: status(config)["instances"]["done"] == 2, "nothing is left to do")
        assert status(config)["aside"] == []


# Compose without containers


def ask_orthanc(port: int, method: str, path: str, body: bytes = b"") -> Any:
    import base64
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    (user, password), *_ = orthanc_settings()["RegisteredUsers"].items()
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    try:
        connection.request(method, path, body, {"Authorization": f"Basic {token}"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="Orthanc is not installed")
def test_an_image_put_into_the_archive_of_compose_comes_back_with_a_report(tmp_path: Path) -> None:
    """compose-node.toml, orthanc.json and score.lua as they are, but for ports, hosts and folders."""
    http, dicom, node = free_port(), free_port(), free_port()
    archive = orthanc_settings() | {
        "StorageDirectory": "db", "IndexDirectory": "db", "Plugins": [], "HttpPort": http, "DicomPort": dicom,
        "StableAge": 1, "LuaScripts": [str(DEPLOY / "score.lua")],
    }  # fmt: skip
    archive["DicomModalities"]["saqm"] |= {"Host": "127.0.0.1", "Port": node}
    (tmp_path / "orthanc.json").write_text(json.dumps(archive), encoding="utf-8")
    text = (DEPLOY / "compose-node.toml").read_text(encoding="utf-8")
    for there, here in (
        ("/var/lib/saqm/queue", "queue"),
        ("0.0.0.0", "127.0.0.1"),
        ("11112", str(node)),
        ("4242", str(dicom)),
        ("172.31.255.0/28", "127.0.0.1"),
        ('host = "orthanc"', 'host = "127.0.0.1"'),
    ):
        assert there in text
        text = text.replace(there, here)
    (tmp_path / "node.toml").write_text(text, encoding="utf-8")
    with (
        running("/usr/sbin/Orthanc", "orthanc.json", cwd=tmp_path),
        running(SAQM, "node", "--config", "node.toml", cwd=tmp_path, SAQM_NODE_RELEASED_SECONDS="0"),
    ):
        until(lambda: listens(http) and listens(node), "both listen")
        echo = subprocess.run([SAQM, "node", "--config", "node.toml", "--echo"], cwd=tmp_path, check=False)
        assert echo.returncode == 0, "the health check of compose"
        study = ask_orthanc(http, "POST", "/instances", sample("CT_small.dcm").read_bytes())["ParentStudy"]
        until(lambda: len(ask_orthanc(http, "GET", f"/studies/{study}")["Series"]) == 2, "the report is in the study")
        time.sleep(3)  # longer than StableAge: the report's own series has been looked at, too
        modalities = [
            each["MainDicomTags"]["Modality"] for each in ask_orthanc(http, "GET", f"/studies/{study}/series")
        ]
        assert sorted(modalities) == ["CT", "SR"], "a report is not sent to be scored"
    log = (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
    assert '"event": "delivered"' in log
