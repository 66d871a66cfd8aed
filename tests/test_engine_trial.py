"""Trials: what dies, dies in a child; the verdict is kept, and one that may change tomorrow is not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from saqm import engine_trial
from saqm.engine_trial import BELOW_AMX, CAP, computes_bf16, refusal

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
CURED = f"import os, signal; os.environ.get({CAP!r}) or os.kill(os.getpid(), signal.SIGILL)"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(CAP, raising=False)
    return tmp_path / "saqm" / "trials"


def counting(tmp_path: Path, then: str) -> str:
    """A script that leaves a line behind each time it runs."""
    return f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{then}"


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text())


def test_what_comes_through_may_run_and_is_tried_once(tmp_path: Path, cache: Path) -> None:
    script = counting(tmp_path, "pass")
    assert [refusal(script, package="numpy") for _ in range(3)] == [None] * 3
    assert runs(tmp_path) == 1
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["verdict"] == {"cap": "", "ended": ""}


def test_what_dies_of_an_instruction_is_refused_and_remembered(tmp_path: Path) -> None:
    script = counting(tmp_path, DIES)
    said = {refusal(script, package="numpy") for _ in range(3)}
    assert said == {"a trial of it died of an illegal instruction"}
    assert runs(tmp_path) == 2  # as it is, and with the instruction set capped


def test_where_the_cap_cures_it_a_package_not_loaded_yet_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, CAP, "")  # put back after the test
    del os.environ[CAP]
    assert "not_loaded_yet" not in sys.modules
    assert refusal(CURED, package="not_loaded_yet") is None
    assert os.environ[CAP] == BELOW_AMX


def test_where_the_cap_comes_too_late_it_is_said_how_to_set_it() -> None:
    assert refusal(CURED, package="numpy") == (
        f"a trial of it died of an illegal instruction; it runs where {CAP}={BELOW_AMX} is set before Python starts"
    )
    assert CAP not in os.environ


def test_a_failure_that_may_pass_is_refused_but_tried_again(tmp_path: Path, cache: Path) -> None:
    script = counting(tmp_path, "raise MemoryError('no room')")
    assert [refusal(script, package="numpy") for _ in range(2)] == ["a trial of it failed: MemoryError: no room"] * 2
    assert runs(tmp_path) == 2
    assert not cache.exists()


def test_a_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_trial, "PATIENCE", 0.2)
    assert refusal("import time; time.sleep(9)", package="numpy") == "a trial of it took longer than 0.2 s"


def test_without_an_interpreter_to_start_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    said = refusal("pass", package="numpy")
    assert said == "a trial of it could not be started: No such file or directory"


def test_an_unwritable_cache_costs_a_trial_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    script = counting(tmp_path, "pass")
    assert [refusal(script, package="numpy") for _ in range(2)] == [None, None]
    assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"verdict": {"cap": "", "more": 1}}', '{"verdict": 3}', '{"verdict": {"cap": 5}}']
)
def test_a_damaged_verdict_is_no_verdict(tmp_path: Path, cache: Path, text: str) -> None:
    script = counting(tmp_path, "pass")
    refusal(script, package="numpy")
    (kept,) = cache.iterdir()
    kept.write_text(text)
    assert refusal(script, package="numpy") is None
    assert runs(tmp_path) == 2


def test_another_version_file_or_interpreter_is_another_verdict(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = counting(tmp_path, "pass")
    refusal(script, package="numpy", about="one")
    refusal(script, package="numpy", about="other")
    monkeypatch.setattr(engine_trial, "_version", lambda package: f"{package} of tomorrow")
    refusal(script, package="numpy", about="one")
    assert runs(tmp_path) == len(list(cache.iterdir())) == 3


def test_the_child_finds_what_its_parent_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").touch()
    assert "No module named 'only_here'" in str(refusal("import only_here", package="numpy"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refusal("import only_here, sys; assert sys.argv[1] == 'given'", "given", package="numpy") is None


@pytest.mark.parametrize(
    ("flags", "features", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", "", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "", False),
        ("", "Features\t: fp asimd bf16", True),
        ("", "Features\t: fp asimd", False),
        ("", "", None),
    ],
)
def test_bf16_is_computed_where_the_processor_lists_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, features: str, has: bool | None
) -> None:
    monkeypatch.setattr(engine_trial, "_machine", lambda: ("x86_64", "model name\t: AMD bf16 EPYC", flags, features))
    assert computes_bf16() is has
