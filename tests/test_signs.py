"""benchmarks/signs.py: what it reads of the runs of table2, and that a sign is judged inside folds."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saqm.manifest import Manifest, Row, Scale

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "signs.py"


@pytest.fixture(scope="module")
def signs() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("signs_of_adaptation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(module: ModuleType, fold: int, mmd: float, srocc: float | None, **more: Any) -> Any:
    made = {"direction": "a → b", "configuration": "pooled", "seed": 0, "group": module.UNREAD, "images": 9}
    return module.Run(**{**made, "fold": fold, "signs": {"mmd": mmd}, "srocc": srocc, **more})


def keep(folder: Path, shares: Sequence[float], test: Sequence[Path], *steps: dict[str, float]) -> None:
    (folder / "opinions").mkdir(parents=True)
    asked = {"test": [str(path) for path in test], "recipe": {"scored_on": ["source"]}}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "predictions.json").write_text(json.dumps(list(shares)))
    (folder / "opinions" / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def test_a_run_is_read_with_its_last_signs_and_the_srocc_of_its_judged_images(
    signs: ModuleType, tmp_path: Path
) -> None:
    """On a scale where low is best predictions are turned; an anchor (0 raters) does not count; a running one waits."""
    paths = [tmp_path / f"{place}.png" for place in range(5)]
    rows = [Row(path, score, "s", "b") for path, score in zip(paths[:4], (1, 2, 3, 4), strict=True)]
    anchor = Row(paths[4], 5, "s", "b", raters=0)
    target = Manifest((*rows, anchor), Scale(1, 5, higher_is_better=False))
    source = Manifest((Row(tmp_path / "x.png", 1, "t", "a"),), Scale(1, 5))
    here = tmp_path / "fold-1" / "a-to-b" / "unsupervised,-CORAL"
    keep(here / "seed-2", [0.9, 0.7, 0.8, 0.1, 0.0], paths, {"mmd": 0.5}, {"mmd": 0.25, "loss": 1.0})
    keep(here / "seed-0", [0.9, 0.7, 0.8, 0.1, 0.0], paths, {"mmd": 0.5})
    (here / "seed-0" / "predictions.json").unlink()
    (found,) = signs.read_runs(tmp_path, [source, target])
    assert (found.direction, found.configuration, found.seed, found.fold) == ("a → b", "unsupervised, CORAL", 2, 1)
    assert (found.group, found.signs, found.images) == (signs.UNREAD, {"mmd": 0.25}, 4)
    assert found.srocc == pytest.approx(0.8)
    assert signs.to_csv([found]).splitlines()[1].endswith("0.2500,,,,,,,4,0.8000")


def test_a_sign_that_is_right_inside_every_fold_is_borne_out_though_folds_differ_in_ease(signs: ModuleType) -> None:
    """The folds that are easier have the larger distance: over all of them the sign looks upside down."""
    runs = [
        run(signs, fold, mmd=fold + 0.1 * place, srocc=0.3 * fold - 0.1 * place)
        for fold in range(3)
        for place in range(3)
    ]
    found = signs.judge("mmd", runs)
    assert found.by_fold == pytest.approx((-1, -1, -1))
    assert found.correlation > 0.5
    assert found.held is True
    assert found.chosen == pytest.approx(0.1) == found.best  # the smallest distance, less the mean of the three
    assert found.interval[0] < found.correlation
    assert "as hoped: mmd; the other way round: none." in signs.to_markdown(runs)


def test_a_sign_that_speaks_both_ways_is_not_borne_out(signs: ModuleType) -> None:
    runs = [run(signs, fold, mmd=place, srocc=(place - 1) * (1 - 2 * fold)) for fold in range(2) for place in range(3)]
    found = signs.judge("mmd", runs)
    assert found.by_fold == pytest.approx((1, -1))
    assert found.held is None
    assert found.interval is None  # two folds are nothing to draw from
    assert found.chosen == pytest.approx(0)
    assert found.best == pytest.approx(1)
    assert "as hoped: none; the other way round: none." in signs.to_markdown(runs)


def test_runs_without_the_sign_or_without_a_srocc_do_not_count(signs: ModuleType) -> None:
    runs = [run(signs, 0, 1, 0.1), run(signs, 0, 2, 0.2), run(signs, 0, 3, None), run(signs, 0, 0, 0.5, signs={})]
    assert signs.judge("mmd", runs) is None
    assert signs.judge("mmd", [*runs, run(signs, 1, 4, 0.4)]).runs == 3
    assert "meet one domain alone: pooled." in signs.to_markdown(runs)
