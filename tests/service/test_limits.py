"""Who is kept out, what is too much, too slow or not what it says; and what is told of it all: no names."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from saqm.errors import SaqmError

from .conftest import Served, Told, sample, serving, until

pytest.importorskip("fastapi")

from saqm.service.keys import Keys, add_key
from saqm.service.server import Service
from saqm.service.settings import ServeSettings, read_settings
from saqm.service.uploads import Store, image_suffix, shown_name

BODY = 20_000  # bytes that the small service takes


@pytest.fixture
def small(told: Told, tmp_path: Path) -> Iterator[Served]:
    """A service with tight limits."""
    told.go.set()
    settings = ServeSettings(
        port=0, max_body_mb=BODY / 2**20, max_stored_mb=3 * BODY / 2**20, max_files=3, max_frames=4, read_seconds=0.5,
        folder=tmp_path, drain_seconds=1,
    )  # fmt: skip
    with serving(settings, [told]) as running:
        yield running


def file(size: int, name: str = "a.png") -> tuple[str, tuple[str, bytes]]:
    """A part of a form."""
    return "file", (name, b"x" * size)


def kept(folder: Path) -> list[Path]:
    """Files of uploads below a folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def status(answer: bytes) -> int:
    """Of a raw answer."""
    found = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert found, answer[:200]
    return int(found[1])


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    said = b""
    while piece := connection.recv(65536):
        said += piece
    return said


# What is too much


def test_a_body_that_is_too_long_is_refused_by_its_length(small: Served, tmp_path: Path) -> None:
    answer = small.client.post("/v1/score", files=[file(BODY)])
    assert (answer.status_code, answer.json()["detail"]) == (413, f"more than {BODY:,} bytes; send less at a time")
    assert kept(tmp_path) == []


def test_a_body_without_length_is_stopped_where_it_is_too_long(small: Served, tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1000
            yield bytes(1000)

    headers = {"Content-Type": "application/dicom"}
    answer = small.client.post("/v1/score", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert answer.headers["Connection"] == "close"
    assert kept(tmp_path) == []


def test_a_body_of_the_very_limit_is_taken(small: Served) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    assert small.client.post("/v1/score", content=bytes(BODY), headers=headers).status_code == 422  # but no image
    assert small.client.post("/v1/score", content=bytes(BODY + 1), headers=headers).status_code == 413


def test_too_many_files_are_refused(small: Served, tmp_path: Path) -> None:
    assert small.client.post("/v1/jobs", files=[file(9)] * 3).status_code == 202
    answer = small.client.post("/v1/score", files=[file(10)] * 4)
    assert (answer.status_code, answer.json()["detail"]) == (413, "more than 3 files; send them in several requests")
    assert len(kept(tmp_path)) == 4  # of the job, with its records


def test_a_file_with_too_many_frames_ends_at_the_limit(small: Served, told: Told) -> None:
    told.rows = 6
    answer = small.client.post("/v1/score", files=[file(10)])
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "more than 4 images in one answer; send them as a job",
    )
    place = small.client.post("/v1/jobs", files=[file(10), file(10, "b.png")]).headers["Location"]
    while small.client.get(place).json()["state"] != "done":
        time.sleep(0.01)
    records = small.client.get(f"{place}/records").json()["records"]
    assert [(r["path"], r["frame"]) for r in records] == [
        *[("a.png", frame) for frame in (0, 1, 2, 3, None)], *[("b.png", frame) for frame in (0, 1, 2, 3, None)]
    ]  # fmt: skip
    assert records[4]["reasons"] == ["a.png: more than 4 frames; those beyond are left out"]


def test_a_full_store_asks_to_come_again(small: Served, tmp_path: Path) -> None:
    places = [small.client.post("/v1/jobs", files=[file(BODY - 1000)]).headers["Location"] for _ in range(3)]
    answer = small.client.post("/v1/score", files=[file(BODY - 1000)])
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "30")
    assert "all the room for uploads is in use" in answer.json()["detail"]
    for place in places:
        small.client.delete(place)
    assert kept(tmp_path) == []
    assert small.client.post("/v1/score", files=[file(BODY - 1000)]).status_code == 422


def test_a_volume_that_unpacks_to_too_much_is_refused(served: Served) -> None:
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype("u1")
    header.set_data_shape((3000, 3000, 2000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    bomb = gzip.compress(header.binaryblock + bytes(4) + bytes(20_000_000))
    answer = served.client.post("/v1/score", files=[("file", ("b.nii.gz", bomb))], params={"axis": 2})
    assert answer.status_code == 422
    assert "b.nii.gz: " in answer.json()["records"][0]["reasons"][0]


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(served: Served) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
    )
    answer = served.client.post("/v1/score", files=[("file", ("bomb.png", bomb))])
    assert answer.status_code == 422
    assert "bomb.png" in answer.json()["records"][0]["reasons"][0]


# What is too slow


def test_a_slow_body_is_given_up(small: Served) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    for piece in (b"", b"x"):  # silent; or a drop now and then
        with small.raw() as connection:
            connection.sendall(head)
            began, stop = time.monotonic(), threading.Event()

            def drip(
                connection: socket.socket = connection, piece: bytes = piece, stop: threading.Event = stop
            ) -> None:
                while not stop.wait(0.1):
                    try:
                        connection.sendall(piece)
                    except OSError:
                        return

            dripping = threading.Thread(target=drip)
            dripping.start()
            answer = connection.recv(65536)
            stop.set()
            dripping.join()
            assert status(answer) == 408
            assert 0.4 < time.monotonic() - began < 5
    assert small.client.get("/healthz").status_code == 200


def test_a_head_that_does_not_come_is_not_waited_for(small: Served) -> None:
    with small.raw() as silent, small.raw() as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        for connection in (silent, slow):
            assert all_of(connection) == b""


def test_an_answered_connection_may_ask_again_and_slowly_not(small: Served) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with small.raw() as connection:
        for _ in range(2):
            connection.sendall(ask)
            said = b""
            while not said.endswith(b"}"):
                said += connection.recv(65536)
            assert status(said) == 200
            time.sleep(0.1)
        connection.sendall(ask[:20])
        assert all_of(connection) == b""


# What is not what it says


@pytest.mark.parametrize(
    ("headers", "body", "wanted", "said"),
    [
        ({"Content-Type": "text/html"}, b"x", 415, "multipart/form-data is wanted"),
        ({}, b"x", 415, "multipart/form-data is wanted"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, b"x", 415, "a packed body"),
        ({"Content-Type": "multipart/form-data"}, b"x", 422, "without its boundary"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"x", 422, "no multipart/form-data: "),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 422, "no file came"),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx',
            422,
            "ends before its last boundary",
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n',
            422,
            "a part that is not called 'file'",
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
            422,
            "a part 'file' without a file name",
        ),
    ],
)
def test_a_body_that_is_not_what_it_says(
    small: Served, headers: dict[str, str], body: bytes, *, wanted: int, said: str, tmp_path: Path
) -> None:
    answer = small.client.post("/v1/score", content=body, headers=headers)
    assert answer.status_code == wanted
    assert said in answer.json()["detail"]
    assert kept(tmp_path) == []


def test_what_is_no_http_is_refused_and_others_are_served(small: Served) -> None:
    with small.raw() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert status(all_of(connection)) == 400
    with small.raw() as connection, suppress(ConnectionError):  # it closes on us while we still send
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2_000_000 + b"\r\n\r\n")
        assert not all_of(connection).endswith(b"}")
    assert small.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("name", "shown", "suffix"),
    [
        ("../../etc/passwd", "passwd", ""),
        ("C:\\study\\a.DCM", "a.DCM", ".dcm"),
        ("/", "upload", ""),
        ("..", "upload", ""),
        ("", "upload", ""),
        ("a\x00b\r\n\x1b[31m\u202ec.nii.gz", "ab[31mc.nii.gz", ".nii.gz"),
        ("a.php", "a.php", ""),
        ("a.zip", "a.zip", ""),
        ("x" * 300 + ".png", "x" * 251 + ".png", ".png"),
    ],
)
def test_a_clients_file_name_is_no_path(name: str, shown: str, suffix: str) -> None:
    assert (shown_name(name), image_suffix(name)) == (shown, suffix)


def test_a_name_that_climbs_stays_in_its_folder(small: Served, tmp_path: Path) -> None:
    small.client.post("/v1/jobs", files=[file(10, "../../../../escaped.png")])
    (upload,) = [path for path in kept(tmp_path) if path.suffix == ".png"]
    assert re.fullmatch(r"saqm-serve-\w+/[0-9a-f]{32}/[0-9a-f]{16}\.png", str(upload.relative_to(tmp_path)))
    assert list(tmp_path.parent.rglob("escaped*")) == []


# Who is kept out


def test_a_key_is_demanded_and_compared(told: Told, tmp_path: Path) -> None:
    told.go.set()
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ward-3")
    assert key not in keys.read_text()
    assert keys.stat().st_mode & 0o777 == 0o600
    with serving(ServeSettings(port=0, keys=keys, drain_seconds=1), [told]) as served:
        for wrong in (None, "", "Bearer", f"Bearer {key}x", f"Bearer {key[:-1]}", f"Basic {key}", "Bearer \udcff"):
            headers = {} if wrong is None else {"Authorization": wrong.encode("utf-8", "surrogateescape")}
            answer = served.client.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for path in ("/v1/jobs/x", "/metrics", "/v1/unknown"):
            assert served.client.get(path).status_code == 401
        assert served.client.post("/v1/score", files=[file(5)]).status_code == 401
        for path in ("/", "/healthz", "/readyz", "/v1/limits", "/openapi.json", "/static/page.js"):
            assert served.client.get(path).status_code == 200
        assert served.client.get("/v1/limits").json()["keys"] is True
        bearer = {"Authorization": f"Bearer {key}"}
        assert served.client.get("/v1/models", headers=bearer).status_code == 200
        another = add_key(keys, "ward-4")  # comes without a restart
        assert served.client.get("/v1/models", headers={"Authorization": f"bearer {another}"}).status_code == 200
        keys.write_text(json.dumps({"ward-4": json.loads(keys.read_text())["ward-4"]}))  # and goes
        assert served.client.get("/v1/models", headers=bearer).status_code == 401
        keys.unlink()
        assert served.client.get("/v1/models", headers={"Authorization": f"Bearer {another}"}).status_code == 401


def test_a_file_of_keys_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(SaqmError, match="cannot be read: No such file"):
        Keys(path)
    path.write_text("{}")
    with pytest.raises(SaqmError, match="holds no key; make one with saqm serve"):
        Keys(path)
    path.write_text("saqm_secret")
    with pytest.raises(SaqmError, match="no file of keys"):
        Keys(path)
    path.write_text("[1]")
    with pytest.raises(SaqmError, match="names with their hashes are wanted"):
        Keys(path)
    path.unlink()
    add_key(path, "a")
    with pytest.raises(SaqmError, match="there is a key a already"):
        add_key(path, "a")
    with pytest.raises(SaqmError, match="1 to 64 letters"):
        add_key(path, "Ward 3")


def test_others_than_this_machine_need_keys(told: Told) -> None:
    with pytest.raises(SaqmError, match=r"host 0\.0\.0\.0: others than this machine could ask, so keys are needed"):
        Service(ServeSettings(host="0.0.0.0"), [told])  # type: ignore[list-item]


def test_a_page_of_another_site_gets_nothing(small: Served) -> None:
    own = f"127.0.0.1:{small.port}"
    for host in ("evil.example", f"evil.example:{small.port}", "127.0.0.1.evil.example", ""):
        answer = small.client.get("/v1/limits", headers={"Host": host})
        assert (answer.status_code, "addressed by another name" in answer.text) == (421, True)
    for host in (own, "localhost", "localhost:1", "[::1]:8787"):
        assert small.client.get("/v1/limits", headers={"Host": host}).status_code == 200
    for origin in ("http://evil.example", "null", f"http://{own}.evil.example"):
        assert small.client.get("/v1/limits", headers={"Origin": origin}).status_code == 403
    assert small.client.get("/v1/limits", headers={"Origin": f"http://{own}"}).status_code == 200
    crossing = {"Sec-Fetch-Site": "cross-site"}
    assert small.client.post("/v1/jobs", files=[file(5)], headers=crossing).status_code == 403
    assert small.client.get("/", headers={**crossing, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link
    assert small.client.get("/", headers=crossing).status_code == 403


def test_files_beside_the_page_are_not_served(small: Served) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/",
    ):
        with small.raw() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert status(all_of(connection)) == 404, path


# What is told


def told_by(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The fields of our own lines of that kind."""
    return [each.fields for each in caplog.records if each.name == "saqm.service" and each.getMessage() == event]  # type: ignore[attr-defined]


def test_no_name_gets_into_logs_or_counters(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    import io

    import pydicom

    dataset = pydicom.dcmread(sample("CT_small.dcm"))
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Leakcheck^Ada", "LEAK-4711", "19330505"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    broken = buffer.getvalue()[:-5000]
    with caplog.at_level(logging.DEBUG):
        for data in (buffer.getvalue(), broken):
            for accept in ("application/json", "application/dicom"):
                served.client.post(
                    "/v1/score", files=[("file", ("Leakcheck_Ada.dcm", data))], headers={"Accept": accept},
                    params={"name": "Leakcheck"},
                )  # fmt: skip
            served.client.get("/v1/Leakcheck/LEAK-4711?x=19330505", headers={"User-Agent": "Leakcheck"})
        served.client.post("/v1/score", files=[("file", ("Leakcheck.dcm", broken))], params={"frame": "Leakcheck"})
        until(lambda: len(told_by(caplog, "request")) == 7)
    ours = (record for record in caplog.records if not record.name.startswith("http"))  # the client's own
    told = "".join(str(record.__dict__) for record in ours) + served.client.get("/metrics").text
    assert not re.search("leakcheck|LEAK-4711|19330505", told, re.IGNORECASE)
    fields = told_by(caplog, "request")[0]
    assert {"id", "method", "route", "status", "seconds", "bytes_in", "bytes_out", "holder"} == set(fields)
    assert fields["route"] == "/v1/score"


def test_a_fault_is_told_without_what_was_sent(small: Served, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    told.fault = RuntimeError("secret of Leakcheck^Ada")
    with caplog.at_level(logging.INFO):
        answer = small.client.post("/v1/score", files=[file(5)])
        until(lambda: told_by(caplog, "fault"))
    assert answer.status_code == 500
    (fields,) = told_by(caplog, "fault")
    assert (fields["id"], fields["error"]) == (answer.headers["X-Request-ID"], "RuntimeError")
    assert answer.json()["detail"].endswith(fields["id"])
    assert any("conftest.py" in place for place in fields["at"])
    assert "Leakcheck" not in caplog.text + answer.text + str(fields)
    place = small.client.post("/v1/jobs", files=[file(5)]).headers["Location"]
    while small.client.get(place).json()["state"] != "failed":
        time.sleep(0.01)
    assert small.client.get(place).json()["detail"] == "a fault of the service; its log says more"


def test_log_lines_are_json() -> None:
    from saqm.service.telemetry import JsonLines

    record = logging.LogRecord("x", logging.WARNING, "", 0, "said %s", ("so",), None)
    record.fields = {"status": 200}
    line = json.loads(JsonLines().format(record))
    assert {k: v for k, v in line.items() if k != "time"} == {"level": "warning", "event": "said so", "status": 200}


# How it is set up


def test_settings_come_from_a_file_the_environment_and_flags(tmp_path: Path) -> None:
    config = tmp_path / "saqm.toml"
    config.write_text('[serve]\nport = 1\nworkers = 2\nqueue = 3\nmodels = ["a", "b"]\n[node]\nport = 104\n')
    environment = {"SAQM_SERVE_WORKERS": "4", "SAQM_SERVE_QUEUE": "5", "SAQM_SERVE_HOSTS": "a.example, b", "PATH": "x"}
    settings = read_settings(config, environment, {"queue": 6, "port": None})
    assert (settings.port, settings.workers, settings.queue) == (1, 4, 6)
    assert (settings.models, settings.hosts) == (("a", "b"), ("a.example", "b"))
    assert read_settings(None, {}) == ServeSettings()


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("[serve]\nprot = 1", {}, "prot: Extra inputs are not permitted"),
        ("[serve]\nport = 'x'\nqueue = 0", {}, "port: .*; queue: "),
        ("serve = 1", {}, r"serve is no table; write \[serve\]"),
        ("[serve", {}, "no TOML"),
        ("", {"SAQM_SERVE_WORKER": "2"}, "worker: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_setting_is_told(tmp_path: Path, text: str, environment: dict[str, str], said: str) -> None:
    config = tmp_path / "saqm.toml"
    config.write_text(text)
    with pytest.raises(SaqmError, match=said):
        read_settings(config, environment)
    with pytest.raises(SaqmError, match=r"nowhere\.toml: cannot be opened"):
        read_settings(tmp_path / "nowhere.toml", {})


def test_what_a_crashed_service_left_is_removed_and_no_more(tmp_path: Path) -> None:
    running = Store(tmp_path, 10)
    left = tmp_path / "saqm-serve-crashed"
    (left / "uploads").mkdir(parents=True)
    (left / "lock").touch()
    (left / "uploads" / "a.dcm").touch()
    foreign = tmp_path / "saqm-serve-foreign"
    foreign.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "saqm-serve-link").symlink_to(tmp_path / "elsewhere")
    with_another = Store(tmp_path, 10)
    assert not left.exists()
    assert running.folder.exists()
    assert foreign.exists()
    assert (tmp_path / "elsewhere" / "lock").exists()
    assert with_another.folder.stat().st_mode & 0o777 == 0o700
    for store in (running, with_another):
        store.close()
        assert not store.folder.exists()


def test_the_command_makes_a_key(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from saqm.cli import app

    keys = tmp_path / "keys.json"
    made = CliRunner().invoke(app, ["serve", "--keys", str(keys), "--add-key", "ward-3"])
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert Keys(keys).holder(key) == "ward-3"
    refused = CliRunner().invoke(app, ["serve", "--add-key", "ward-3"])
    assert "--add-key needs to know where keys are kept" in str(refused.exception)
