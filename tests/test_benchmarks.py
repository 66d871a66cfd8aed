"""The benchmarks: what the table of the metrics says, a program that fails listed with the reason; the tools' plot."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "metrics.py"
AROUND: dict[str, Any] = {
    "cpu": "a processor",
    "python": "3.11",
    "numpy": "2",
    "scipy": "1",
    "made": "2000-01-01",
    "cores": 2,
    "parameters": {"niqe": "niqe-natural"},
}


@pytest.fixture(scope="module")
def metrics() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_of_metrics", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def row(metric: str, program: str, side: int, seconds: float | None, **more: object) -> dict[str, Any]:
    memory = {"loaded_mb": 100.0, "peak_mb": 150.0}
    said = {"metric": metric, "program": program, "picture": "photo", "side": side, "cpu_seconds": seconds}
    return {**said, **memory, "score": 3.25, "stable": True, "load": 0.5, **more}


def test_each_program_stands_beside_ours_with_its_ratio(metrics: ModuleType) -> None:
    made = {
        **AROUND,
        "results": [row("brisque", "saqm", 512, 0.02), row("brisque", "OpenCV (C++)", 512, 0.05, load=1.5)],
    }
    text = metrics.markdown(made)
    assert "| photo 512² | saqm | 0.02 |  | 150 | 50 | 3.25 |" in text
    assert "| photo 512² | OpenCV (C++) | 0.05 | 2.5 | 150 | 50 | 3.25 |" in text
    assert "* OpenCV (C++): not conformant:" in text
    assert "Load of the machine 0.5 to 1.5 on 2 cores" in text


def test_what_fails_is_listed_with_the_reason_and_what_did_not_settle_says_so(metrics: ModuleType) -> None:
    failed = row("niqe", "pyiqa", 512, None, failed="ModuleNotFoundError: No module named 'x'", score=None)
    text = metrics.markdown({**AROUND, "results": [failed, row("niqe", "saqm", 512, 0.03, stable=False)]})
    assert "| photo 512² | pyiqa | failed: ModuleNotFoundError: No module named 'x' | | | | |" in text
    assert "| photo 512² | saqm | 0.03 (not settled) |" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.07, "0.07 | met |"), (0.0701, "0.0701 | **missed** |"), (None, "not measured | not measured |")],
)
def test_an_upper_bound(metrics: ModuleType, seconds: float | None, said: str) -> None:
    text = metrics.markdown({**AROUND, "results": [row("niqe", "saqm", 512, seconds)]})
    assert f"| niqe: at most 0.07 CPU s at 512² | {said}" in text


@pytest.mark.parametrize(("theirs", "said"), [(0.32, "1.6 | met |"), (0.28, "1.4 | **missed** |")])
def test_a_ratio_that_has_to_be_reached(metrics: ModuleType, theirs: float, said: str) -> None:
    rows = [row("niqe", "saqm", 2048, 0.2), row("niqe", "scikit-video, mended", 2048, theirs)]
    text = metrics.markdown({**AROUND, "results": rows})
    assert f"| niqe: at least 1.5 times as fast as scikit-video at 2048² | {said}" in text


def test_the_peak_of_a_metric_is_that_of_its_hungriest_picture_and_unknown_where_one_failed(
    metrics: ModuleType,
) -> None:
    rows = [row("biqaa", "saqm", 4096, 1.0), row("biqaa", "saqm", 4096, 1.0, picture="colour", peak_mb=1001.0)]
    text = metrics.markdown({**AROUND, "results": rows})
    assert "| biqaa: under 1000 MB at 4096², grey and colour, Python included | 1001 | **missed** |" in text
    rows[0]["peak_mb"] = None
    assert "Python included | 1001" not in metrics.markdown({**AROUND, "results": rows})


def test_the_pictures_are_as_said(metrics: ModuleType) -> None:
    pytest.importorskip("skimage", reason="the pictures come with scikit-image")
    photo, disc, colour = (metrics.draw(name, 600) for name in ("photo", "disc", "colour"))
    assert (photo.shape, disc.shape, colour.shape) == ((600, 600), (600, 600), (600, 600, 3))
    assert np.array_equal(photo, metrics.draw("photo", 600))
    assert np.array_equal(photo[disc > 0], disc[disc > 0])
    assert 0.40 < (disc == 0).mean() < 0.41


@pytest.mark.slow
def test_programs_take_turns_and_a_missing_one_says_what_is_missing(metrics: ModuleType, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision"):
        pytest.skip("pyiqa may work here")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", pixels)
    metrics.write_parameters(tmp_path)
    files = {"picture": tmp_path / "noise.npy", "parameters": tmp_path}
    found = metrics.take_turns("niqe", "photo", 200, peers=Path(sys.executable), **files)
    by_name = {result.program: result for result in found}
    assert [result.program for result in found][:2] == ["saqm", "saqm, snap=True"]
    own = by_name["saqm"]
    assert own.failed is None
    assert own.score > 0
    assert own.cpu_seconds > 0
    assert own.rounds > 5
    assert own.peak_mb > own.loaded_mb > 10
    assert by_name["pyiqa"].failed.startswith("ModuleNotFoundError: No module named")
    assert by_name["pyiqa"].cpu_seconds is None
    without = metrics.take_turns("niqe", "photo", 200, peers=None, **files)
    assert {result.failed for result in without} == {None, "not tried: no environment given with --peers"}


def test_the_tools_are_drawn_from_the_record_without_those_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmark_of_peers", SCRIPT.with_name("peers.py"))
    assert spec is not None
    assert spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, peers)
    spec.loader.exec_module(peers)
    record = json.loads((SCRIPT.parent / "results" / "peers.json").read_text(encoding="utf-8"))
    peers.draw(record, tmp_path / "all.png")
    record["tools"][1]["images_second"] = None
    peers.draw(record, tmp_path / "fewer.png")
    with pillow.open(tmp_path / "all.png") as every, pillow.open(tmp_path / "fewer.png") as fewer:
        assert every.size[0] == fewer.size[0]
        assert every.size[1] > fewer.size[1]
