"""`saqm node` as it runs: a process, real sockets, real images, a PACS that counts; and what it leaves readable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset
from tests.node.conftest import BIRTH, NAME, Pacs, Process, image, send, wait_for
from tests.node.test_work import broken

from saqm.errors import SaqmError
from saqm.node.queue import status

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PATIENT = [word.encode() for word in (NAME, *NAME.split("^"), BIRTH, "4711-0815")]


def saqm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "saqm.cli", *arguments], capture_output=True, text=True, check=False)


def test_images_become_a_report_and_nothing_else_tells_of_the_patient(
    process: Callable[..., Process], pacs: Pacs, tmp_path: Path
) -> None:
    node = process()
    images = [image(0), image(1), broken(2)]
    hostile = image(3)
    hostile.PatientBirthDate = f"{BIRTH}x"  # what parsers warn about, they quote
    hostile.add_new(0x00281050, "LO", NAME)  # the centre of the window is no number
    assert send(node.port, [*images, hostile]) == [0] * 4
    wait_for(lambda: len(pacs.instances) == 4)
    (report,) = pacs.stored.values()
    assert report.PatientName == NAME
    assert pacs.instances == sorted(each.SOPInstanceUID for each in [*images, hostile])
    config = str(node.config)
    assert saqm("node", "--config", config, "--port", str(node.port), "--echo").returncode == 0

    found = saqm("node", "--config", config, "--status", "--json")
    assert found.returncode == 1  # something is set aside
    told = json.loads(found.stdout)
    assert told["running"]
    assert images[2].SOPInstanceUID in [each["instance"] for each in told["aside"]]
    with pytest.raises(AssertionError, match="association refused"):
        send(node.port, [image()], title="NOBODY")
    assert node.stop() == 0
    assert [line["event"] for line in node.said("stopped")] == ["stopped"]

    queue = tmp_path / "queue"
    seen = node.log.read_bytes() + b"".join(path.read_bytes() for path in queue.glob("queue.sqlite*"))
    seen += (found.stdout + found.stderr).encode()
    assert images[0].SOPInstanceUID.encode() in seen  # this would find a name
    assert [word for word in PATIENT if word in seen] == []
    assert saqm("node", "--config", config, "--forget").stdout.startswith("given up: ")
    plain = saqm("node", "--config", config, "--status")
    assert plain.returncode == 0
    assert plain.stdout.startswith("node: does not run\ninstances: 0 waiting, 0 scored, 0 reported, 4 done, 0 aside")


def send_until_accepted(node: Process, images: list[Dataset], accepted: set[str]) -> None:
    """Send what was not confirmed yet; a node that ends meanwhile is no surprise."""
    left = [each for each in images if each.SOPInstanceUID not in accepted]
    try:
        answers = send(node.port, left, patience=3)
    except (AssertionError, RuntimeError):
        return
    accepted.update(each.SOPInstanceUID for each, answer in zip(left, answers, strict=True) if answer == 0)


def test_a_node_that_is_killed_again_and_again_reports_each_instance_exactly_once(
    process: Callable[..., Process], pacs: Pacs, tmp_path: Path
) -> None:
    from threading import Thread

    images = [image(number, series=f"1.2.3.{number % 3}") for number in range(12)]
    accepted: set[str] = set()
    node = process(attempts=9)  # one may be in hand at each of the kills, and is not to be given up for them

    sending = Thread(target=send_until_accepted, args=(node, images, accepted))
    sending.start()
    wait_for(lambda: len(node.said("accepted")) >= 5)
    node.kill()  # while images come
    sending.join()

    node.start()
    send_until_accepted(node, images, accepted)
    wait_for(lambda: node.said("scored"))
    node.kill()  # while they are scored

    node.start()
    send_until_accepted(node, images, accepted)
    wait_for(lambda: node.said("reported"))
    node.kill()  # while reports are made and sent

    node.start()
    send_until_accepted(node, images, accepted)
    assert len(accepted) == 12
    wait_for(lambda: status(tmp_path / "queue", now=0)["instances"]["done"] == 12)
    assert pacs.instances == sorted(each.SOPInstanceUID for each in images)  # `stored` compares those sent twice
    assert node.stop() == 0
    assert status(tmp_path / "queue", now=0)["aside"] == []


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from saqm.cli import app

    refused = CliRunner().invoke(app, ["node", "--folder", str(tmp_path)])
    with pytest.raises(SaqmError, match="allow: Field required; destination: Field required"):
        raise refused.exception or AssertionError
    twice = CliRunner().invoke(app, ["node", "--status", "--retry"])
    assert twice.exit_code == 2
    assert "one at a time" in twice.stderr
