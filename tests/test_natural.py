"""Photographs as the source: how heads are tried on frames nobody scored, and what the tables say."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter

from saqm.degradations import LADDERS
from saqm.errors import ManifestError, TrainingError
from saqm.manifest import Manifest, Row, Scale
from saqm.table2 import table2

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "natural.py"
SIDE = 96
RECORD: dict[str, Any] = {
    "command": "python benchmarks/natural.py", "commit": "abc", "date": "2000-01-01", "machine": "a machine",
    "seconds": 1, "taught_seconds": 1, "quick": False, "steps": 800, "k": 4, "seeds": 3,
    "frames_taught": 48, "frames_tried": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def natural() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_of_photographs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def texture(seed: int, grain: float) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), grain)
    return np.asarray(128 + 40 * field / field.std())


def written(pixels: np.ndarray, path: Path) -> Path:
    PillowImage.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three photographs with two noisier versions each, scored by a surrogate."""
    root, rows = tmp_path_factory.mktemp("source"), []
    for scene in range(3):
        clean = texture(scene, 2.0)
        for place, score in enumerate((1.0, 0.7, 0.4)):
            noisy = clean + 25 * place * np.random.default_rng([scene, place]).normal(size=clean.shape)
            path = written(noisy, root / f"{scene}_{place}.png")
            method = ("photograph", "tv", "nlm")[place]
            rows.append(
                Row(path, score, f"photograph-{scene}", "natural-surrogate", reference=not place, method=method)
            )
    return Manifest(tuple(rows), Scale(0, 1, name="surrogate: SSIM to the photograph, not an opinion; made here"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of each series, one of them twice."""
    root = tmp_path_factory.mktemp("frames")
    for place, series in enumerate("cdefijk"):
        for number in range(3):
            written(texture(100 + 10 * place + number, 1.2), root / f"{series}{number}.png")
    (root / "c9.png").write_bytes((root / "c0.png").read_bytes())
    return root


def test_neighbours_count_pair_by_pair_and_ties_half(natural: ModuleType) -> None:
    assert natural.neighbours_in_order([[0.9, 0.5, 0.1]]) == 1
    assert natural.neighbours_in_order([[0.1, 0.5, 0.9]]) == 0
    assert natural.neighbours_in_order([[0.9, 0.5, 0.6], [0.2, 0.2, 0.2]]) == (1 + 0 + 0.5 + 0.5) / 4


def test_a_ladder_falls_where_its_scores_do_and_a_constant_one_does_not(natural: ModuleType) -> None:
    assert natural.share_falling([[5, 4, 3, 2, 1], [5, 4, 3, 1, 2], [1, 2, 3, 4, 5], [3, 3, 3, 3, 3]]) == 0.5
    assert natural.share_falling([[3, 2, 1], [3, 1, 2]]) == 0.5  # of three rungs all must be in order


def test_no_series_is_taught_and_tried(natural: ModuleType) -> None:
    assert not set(natural.TAUGHT) & set(natural.TRIED)
    assert (sum(natural.TAUGHT.values()), sum(natural.TRIED.values())) == (48, 24)


def test_frames_are_spread_over_their_series_and_none_is_there_twice(natural: ModuleType, frames: Path) -> None:
    taught = natural.frames(frames, natural.TAUGHT, None)
    assert sorted(row.path.name for row in taught) == [f"{series}{n}.png" for series in "cdef" for n in range(3)]
    assert {row.scene for row in taught} == set("cdef")
    assert all(row.score is None for row in taught)
    assert [row.path.name for row in natural.frames(frames, {"i": 8}, 2)] == ["i0.png", "i2.png"]


def test_photographs_are_taken_by_scene(natural: ModuleType, source: Manifest) -> None:
    assert {row.scene for row in natural.fewer(source, 2).rows} == {"photograph-0", "photograph-1"}
    assert natural.fewer(source, None).rows == source.rows


@pytest.fixture(scope="module")
def heads(
    natural: ModuleType, source: Manifest, frames: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Any], Path]:
    runs = tmp_path_factory.mktemp("runs")
    taught, tried = (natural.frames(frames, which, 1) for which in (natural.TAUGHT, natural.TRIED))
    return natural.try_ultrasound(source, taught, tried, natural.QUICK, runs=runs, say=print), runs


@pytest.mark.slow
def test_every_head_is_tried_on_every_kind(natural: ModuleType, heads: tuple[list[Any], Path]) -> None:
    assert [one.configuration for one in heads[0]] == list(natural.TO_ULTRASOUND)
    for one in heads[0]:
        assert one.stopped == ""
        assert set(one.neighbours) == set(one.falling) == set(natural.ORDERED_RUNGS) <= set(LADDERS)
        assert all(0 <= share <= 1 for share in (*one.neighbours.values(), *one.falling.values()))
        assert one.spread > 0
        assert -1 <= one.source_srocc <= 1
        assert {"mmd", "coral", "proxy_a_distance"} <= set(one.apart)
    by_name = {one.configuration: one for one in heads[0]}
    # standardised each by its own, the domains are closer; a head by rank changes no feature
    assert by_name["source-only, by domain"].apart["coral"] < by_name["source-only"].apart["coral"]
    assert by_name["unsupervised, rank"].apart == by_name["source-only, by domain"].apart
    assert by_name["unsupervised, CORAL"].apart != by_name["source-only, by domain"].apart


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_another_run_is_refused(
    natural: ModuleType, source: Manifest, frames: Path, heads: tuple[list[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, runs = heads
    taught, tried = (natural.frames(frames, which, 1) for which in (natural.TAUGHT, natural.TRIED))
    monkeypatch.delattr(natural, "try_head")
    again = natural.try_ultrasound(source, taught, tried, natural.QUICK, runs=runs, say=print)
    assert again == found
    with pytest.raises(TrainingError, match="holds another run; choose another --runs, or remove it"):
        natural.try_ultrasound(source, taught, tried[:-1], natural.QUICK, runs=runs, say=print)
    with pytest.raises(ManifestError, match="share 1 scenes: i"):
        natural.try_ultrasound(source, (*taught, tried[0]), tried, natural.QUICK, runs=runs, say=print)
    assert natural.taught_seconds(runs) > 0


def tried(natural: ModuleType, name: str, seed: int, share: float, **more: Any) -> Any:
    by_kind = dict.fromkeys(natural.ORDERED_RUNGS, share)
    apart = {"mmd": 0.1, "coral": 0.2, "effective_rank": 9.0, "proxy_a_distance": 1.5}
    return natural.Tried(name, seed, by_kind, by_kind, 0.05, apart, 0.9, **more)


def test_the_tables_say_surrogate_and_that_there_are_no_opinions(natural: ModuleType, source: Manifest) -> None:
    made = [tried(natural, "source-only", 0, 0.4), tried(natural, "source-only", 1, 0.6)]
    made.append(natural.Tried("unsupervised, GRL", 0, {}, {}, None, {}, None, stopped="step 9: it blew up"))
    text = natural.to_markdown(source, [], made, RECORD)
    assert "Its scores are a **surrogate: SSIM to the photograph, not an opinion" in text
    assert "**No opinion of these frames exists: nothing here says how well a score agrees with people**" in text
    assert "| source-only | 0.50 (0.40 to 0.60) / 0.50 (0.40 to 0.60) |" in text
    assert "| source-only | 0.100 | 0.200 | 1.500 | 9.000 | 5.0 | 0.90 |" in text
    assert "Stopped: unsupervised, GRL, seed 0: step 9: it blew up" in text
    assert "at commit abc" in text
    assert "mean nothing" not in text
    assert "These numbers show that it runs and mean nothing" in natural.to_markdown(
        source, [], made, {**RECORD, "quick": True}
    )
    lines = natural.to_csv([], made).splitlines()
    assert 'us-abdomen,source-only,1,"neighbours in order, noise",0.6000' in lines
    assert not any("GRL" in line for line in lines)


@pytest.mark.slow
def test_ct_is_judged_as_in_table_2(natural: ModuleType, source: Manifest, tmp_path: Path) -> None:
    rows = []
    for scene in range(4):
        for place, score in enumerate((4.0, 3.0, 1.5)):
            noise = 20 * place * np.random.default_rng([9, scene, place]).normal(size=(SIDE, SIDE))
            path = written(texture(50 + scene, 1.0) + noise, tmp_path / f"{scene}_{place}.png")
            rows.append(Row(path, score + 0.1 * scene, f"ct-{scene}", "ct-made", method=f"m{place}", raters=3))
    target = Manifest(tuple(rows), Scale(1, 5))
    plan = replace(natural.QUICK, pretraining=replace(natural.QUICK.pretraining, steps=2, images_per_step=4))
    table = table2(
        source, target, k=2, seeds=1, folder=tmp_path / "runs", pretraining=plan.pretraining,
        configurations=plan.configurations(("source-only", "target-only")), replicates=50,
    )  # fmt: skip
    text = natural.to_markdown(source, [table], [], RECORD)
    assert "## natural-surrogate → ct-made" in text
    assert "| source-only | 12 |" in text
    assert "us-abdomen" not in text
    assert "ct-made,target-only,0,srocc," in natural.to_csv([table], [])
    natural.write(tmp_path / "out", source, [table], [tried(natural, "source-only", 0, 0.4)], RECORD)
    kept = json.loads((tmp_path / "out" / "natural.json").read_text(encoding="utf-8"))
    assert kept["source"]["name"].startswith("surrogate: ")
    assert kept["commit"] == "abc"
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.png")}
    assert set(pictures) == {"natural.png", "natural_ultrasound.png"}
    assert min(pictures.values()) > 5_000
