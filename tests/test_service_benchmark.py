"""The benchmark of the services: what counts as lost, as flat, as met; and that its bombs are bombs."""

from __future__ import annotations

import copy
import importlib
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydicom import dcmread

pytest.importorskip("pynetdicom", reason="pip install 'saqm[dicom]'")

FOLDER = Path(__file__).parents[1] / "benchmarks"
MEMORY = {f"fifth_{n}_mb": 500.0 for n in range(1, 6)} | {"peak_mb": 510.0, "growth": 0.0}
RUN: dict[str, Any] = {
    "instances": 1000, "frames": 2000, "megabytes": 100.0, "workers": 2, "sent_seconds": 9.0, "put_off": 0,
    "failed": [], "seconds": 500.0, "reports": 20, "reports_sent_again": 0, "lost": 0, "twice": 0, "rate": 2.0,
    "own_rate": 2.2, "share": 0.91, "memory": dict(MEMORY), "stopped_seconds": 1.0, "exit_code": 0, "leaks": [],
}  # fmt: skip
HTTP: dict[str, Any] = {
    "clients": 64, "seconds": 120.0, "workers": 2, "queue": 32, "statuses": {"200": 600, "429": 50}, "server_errors": 0,
    "broken": 0, "refused_without_retry_after": 0, "scored_a_second": 5.0, "p50": 1.0, "p99": 3.0,
    "memory": dict(MEMORY),
    "stopped_seconds": 1.0, "exit_code": 0, "files_left": 0, "leaks": [],
}  # fmt: skip
ATTACK = {
    "on": "HTTP",
    "attack": "a|b",
    "wanted": "401",
    "came": "401",
    "refused": True,
    "alive": True,
    "added_mb": 0.0,
}
MADE: dict[str, Any] = {
    "command": "python benchmarks/service.py", "commit": "0" * 40, "cpu": "a processor", "cores": 2, "load": 0.1,
    "python": "3.11", "made": "2000-01-01T00:00:00", "quick": False, "node": {"a mixture": RUN}, "http": HTTP,
    "attacks": [ATTACK],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The scripts can be imported, as they are when one of them is run."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def missed(made: dict[str, Any]) -> list[str]:
    return [goal for goal, _, met in script("service_pages").goals(made) if not met]


def test_what_is_as_wanted_is_met() -> None:
    assert missed(MADE) == []
    text = script("service_pages").markdown(MADE)
    assert "**missed**" not in text
    assert "| HTTP | a\\|b | 401 | 401 | 0 | refused, alive |" in text
    assert "short run" not in text


@pytest.mark.parametrize(
    ("where", "value", "goal"),
    [
        (("node", "a mixture", "lost"), 1, "exactly one report"),
        (("node", "a mixture", "twice"), 1, "exactly one report"),
        (("node", "a mixture", "share"), 0.849, "at least 85%"),
        (("node", "a mixture", "memory", "growth"), 0.11, "memory flat"),
        (("node", "a mixture", "leaks"), ["LEAK"], "nothing of a patient"),
        (("http", "server_errors"), 1, "no 5xx"),
        (("http", "broken"), 1, "no 5xx"),
        (("http", "statuses"), {"200": 600}, "429 with Retry-After"),
        (("http", "refused_without_retry_after"), 1, "429 with Retry-After"),
        (("http", "files_left"), 1, "leaves no file"),
        (("http", "leaks"), ["LEAK"], "HTTP: nothing of a patient"),
        (("attacks", 0, "alive"), False, "attacks refused"),
        (("attacks", 0, "refused"), False, "attacks refused"),
    ],
)
def test_what_is_not_is_missed_and_said(where: tuple[Any, ...], value: object, goal: str) -> None:
    made = copy.deepcopy(MADE)
    place: Any = made
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    (found,) = missed(made)
    assert goal in found
    assert "**missed**" in script("service_pages").markdown(made)


def test_the_sizing_table_goes_between_its_marks() -> None:
    pages = script("service_pages")
    page = pages.put_sizing(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n", MADE)
    assert page.startswith("before\n")
    assert page.endswith(f"{pages.END}\nafter\n")
    assert "old" not in page
    assert "| node: a mixture | 120 | 510 with 2 |" in page  # 2000 pictures in 500 s on 2 cores


def test_growth_is_from_the_second_fifth_to_the_last_and_not_told_of_a_short_run() -> None:
    service = script("service")
    looks = [(float(second), 100.0 + (second >= 80) * 20) for second in range(100)]
    found = service.memory(looks)
    assert found["growth"] == pytest.approx(0.2)
    assert found["peak_mb"] == 120
    assert service.memory(looks[:10]) == {"peak_mb": 100.0}


def test_shares_are_values_that_were_seen() -> None:
    at_share = script("service").at_share
    values = [float(n) for n in range(1, 101)]
    assert (at_share(values, 0.5), at_share(values, 0.99), at_share([7.0], 0.99)) == (50, 99, 7)
    assert at_share([], 0.5) is None


def test_instances_have_uids_of_their_own_and_a_patient_to_look_for(tmp_path: Path) -> None:
    running = script("service_running")
    made = running.mixture(tmp_path / "mix", 2 * len(running.MIX))
    headers = [dcmread(each.path, stop_before_pixels=True) for each in made]
    assert len({header.SOPInstanceUID for header in headers}) == len(made)
    assert len({header.SeriesInstanceUID for header in headers}) == len(running.MIX)
    assert all(running.leaks(str(header.PatientName)) for header in headers)
    slices = [dcmread(each.path) for each in running.ct_series(tmp_path / "ct", 3)]
    assert {(each.Rows, each.Columns, each.Modality) for each in slices} == {(512, 512, "CT")}
    assert len({each.PixelData for each in slices}) == 3, "no two alike"
    assert len({each.SeriesInstanceUID for each in slices}) == 1


def test_memory_is_that_of_a_process_and_its_children() -> None:
    import os

    running = script("service_running")
    assert running.family(os.getpid())[0] == os.getpid()
    assert running.resident_mb(os.getpid()) > 10


def test_bombs_are_small_and_promise_much() -> None:
    attacks = script("service_attacks")
    packed = attacks.deflated_bomb(1 << 24)
    assert len(packed) < (1 << 24) / 200
    assert len(dcmread(io.BytesIO(packed)).PixelData) == 1 << 24
    with pytest.raises(RecursionError):
        dcmread(io.BytesIO(attacks.nested_bomb(5000)))
    promised = dcmread(io.BytesIO(attacks.dicom_bomb(65535, 65535)))
    assert (promised.Rows, len(promised.PixelData)) == (65535, 8)
    with zipfile.ZipFile(io.BytesIO(attacks.zip_bomb(1 << 24))) as archive:
        assert archive.infolist()[0].file_size == 1 << 24
        assert archive.infolist()[0].compress_size < (1 << 24) / 200
