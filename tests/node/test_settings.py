"""What a node is told, from where, and what is refused."""

from __future__ import annotations

import logging
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from saqm.errors import SaqmError
from saqm.node.logs import LOGGER, JsonLines, tell, tell_error
from saqm.node.settings import Allowed, read_settings

FILE = """
[serve]
port = 80

[gate]
pass_at = 60

[node]
folder = "queue"
title = "QA"
model = "models/own.onnx"
[[node.allow]]
title = "CT1"
hosts = ["10.0.0.7", "10.1.0.0/16"]
[[node.destination]]
name = "pacs"
title = "PACS"
host = "10.0.0.1"
port = 104
[node.tls]
certificate = "node.pem"
key = "/etc/node.key"
ca = "ca.pem"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "saqm.toml"
    path.write_text(FILE)
    return path


def test_a_file_is_read_with_its_gate_and_paths_of_its_own(config: Path) -> None:
    told = read_settings(config, {})
    assert (told.title, told.port, told.host) == ("QA", 11112, "127.0.0.1")
    assert told.gate is not None
    assert told.gate.pass_at == 60
    assert told.folder == config.parent / "queue"
    assert told.model == str(config.parent / "models/own.onnx")
    assert told.tls is not None
    assert (told.tls.certificate, told.tls.key) == (config.parent / "node.pem", Path("/etc/node.key"))


def test_the_environment_overrules_the_file_and_flags_overrule_both(config: Path) -> None:
    environment = {"SAQM_NODE_PORT": "105", "SAQM_NODE_WORKERS": "3", "PATH": "/bin", "SAQM_SERVE_PORT": "x"}
    told = read_settings(config, environment, {"port": 106, "host": None})
    assert (told.port, told.workers, told.host) == (106, 3, "127.0.0.1")


def test_tables_come_as_json_from_the_environment(tmp_path: Path) -> None:
    told = read_settings(
        None,
        {
            "SAQM_NODE_FOLDER": str(tmp_path),
            "SAQM_NODE_ALLOW": '[{"title": "CT1", "hosts": ["10.0.0.1"]}]',
            "SAQM_NODE_DESTINATION": '[{"name": "web", "url": "https://pacs/dicom-web"}]',
        },
    )
    assert told.destination[0].url == "https://pacs/dicom-web"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("colour = 1", "colour: Extra inputs are not permitted"),
        ("port = 70000", "port: Input should be less than or equal to 65535"),
        ('title = "AN AE TITLE TOO LONG"', "is no AE title: 1 to 16 printable ASCII"),
        ('title = "A\\\\B"', "is no AE title"),
        ("window = [40, 0]", "window: the width must be above 0"),
        ('device_uid = "1..2"', "device_uid: digits and dots"),
        ("attempts = 1", "attempts: Input should be greater than or equal to 2"),
    ],
)
def test_what_cannot_be_is_told_by_its_name(config: Path, line: str, match: str) -> None:
    text = FILE.replace('title = "QA"\n', "") if line.startswith("title") else FILE
    config.write_text(text.replace("[node]\n", f"[node]\n{line}\n"))
    with pytest.raises(SaqmError, match=match):
        read_settings(config, {})


DESTINATION = '[[node.destination]]\nname = "pacs"\ntitle = "PACS"\nhost = "10.0.0.1"\nport = 104\n'


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ('name = "x"\nhost = "h"', "x: give title, host and port for C-STORE, or url for STOW"),
        ('name = "x"\nhost = "h"\nport = 1\ntitle = "T"\nurl = "http://h"', "x: give title, host and port"),
        ('name = "x"\nurl = "ftp://h"', "url: String should match pattern"),
        ('name = "x"\nurl = "http://h"\nuser = "me"', "x: user goes with password_file"),
        ('name = "x"\nhost = "h"\nport = 1\ntitle = "T"\ntoken_file = "t"', "are for STOW"),
        ('name = "x"\nurl = "https://h"\ntls = true', "STOW over TLS has an https:// url"),
        ('name = "pacs"\nurl = "http://h"', "two destinations have the same name"),
        ('name = "a b"\nurl = "http://h"', "name: String should match pattern"),
    ],
)
def test_destinations_that_say_too_little_or_too_much(config: Path, told: str, match: str) -> None:
    config.write_text(f"{FILE}\n[[node.destination]]\n{told}\n")
    with pytest.raises(SaqmError, match=match):
        read_settings(config, {})


def test_all_faults_are_told_at_once_and_no_value() -> None:
    with pytest.raises(SaqmError, match=r"folder: Field required; port: Input .* integer; allow: Field req") as told:
        read_settings(None, {"SAQM_NODE_PORT": "s3cret"})
    assert "destination: Field required" in str(told.value)
    assert "s3cret" not in str(told.value)


def test_tls_of_a_destination_and_a_note_need_what_they_rest_on(config: Path) -> None:
    config.write_text(FILE[: FILE.index("[node.tls]")] + "tls = true\n")
    with pytest.raises(SaqmError, match=r"tls = true, which needs \[node.tls\]"):
        read_settings(config, {})
    config.write_text(FILE.replace("[gate]\npass_at = 60\n", "").replace("[node]\n", "[node]\nnote = true\n"))
    with pytest.raises(SaqmError, match=r"did not pass, which needs \[gate\]"):
        read_settings(config, {})


@pytest.mark.parametrize(("text", "match"), [("[node", "no TOML"), ("node = 1", r"write \[node\]")])
def test_a_file_that_is_none(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(SaqmError, match=match):
        read_settings(path, {})
    with pytest.raises(SaqmError, match="nowhere: cannot be opened: No such file"):
        read_settings(Path("nowhere"), {})


def test_an_address_is_known_in_any_of_its_forms() -> None:
    allowed = Allowed.model_validate({"title": "CT1", "hosts": ["10.0.0.7", "10.1.0.0/16", "fe80::/64"]})
    assert [allowed.holds(host) for host in ("10.0.0.7", "::ffff:10.1.2.3", "fe80::1%eth0")] == [True] * 3
    assert not allowed.holds("10.0.0.8")


# The log


@pytest.fixture
def log() -> Any:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    yield stream
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(before[0])
    LOGGER.propagate = before[1]


def test_a_line_is_json_whatever_is_told(log: StringIO) -> None:
    tell("refused", title='X"\n{', host="10.0.0.1")
    (line,) = log.getvalue().splitlines()
    assert line.endswith('"level": "info", "event": "refused", "title": "X\\"\\n{", "host": "10.0.0.1"}')


def test_an_error_is_told_by_its_type_and_place_and_not_by_what_it_quotes(log: StringIO) -> None:
    try:
        raise ValueError("invalid value 'Zebedee^Quixote'")
    except ValueError as error:
        tell_error("a step failed", error)
        LOGGER.exception("said by somebody")
    assert "Zebedee" not in log.getvalue()
    assert '"error": "ValueError", "at": "test_settings.py:' in log.getvalue()
