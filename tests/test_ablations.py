"""benchmarks/ablations.py: a variant changes one thing, heads are taken up again whole, a stopped run is a result."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter

from saqm.errors import TrainingError
from saqm.manifest import read_manifest
from saqm.network import SAQM, Architecture, multiply_accumulates

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ablations.py"
SIDE = 72
VERSIONS = {"clean": (0.0, 0.0, 5.0), "grainy": (15.0, 0.0, 3.0), "noisy": (45.0, 0.0, 1.5), "soft": (0.0, 2.0, 2.5)}


@pytest.fixture(scope="module")
def ablations() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("ablations_of_the_system", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def write_domain(folder: Path, domain: str, grain: float) -> Path:
    """Four scenes of a texture, three versions each beside the clean one, as a manifest."""
    lines = ["path,score,scene,domain,method,reference"]
    for scene in range(4):
        rng = np.random.default_rng([scene, int(10 * grain)])
        clean = gaussian_filter(rng.normal(size=(SIDE, SIDE)), grain)
        clean = 128 + 40 * clean / clean.std()
        for method, (noise, blur, score) in VERSIONS.items():
            pixels = gaussian_filter(clean, blur) + noise * rng.normal(size=clean.shape)
            name = f"{domain}_{scene}_{method}.png"
            PillowImage.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(folder / name)
            reference = str(method == "clean").lower()
            lines.append(f"{name},{score + 0.05 * scene},{domain}-{scene},{domain},{method},{reference}")
    (folder / f"{domain}.json").write_text('{"scale": [1, 6], "higher_is_better": true}', encoding="utf-8")
    path = folder / f"{domain}.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    return write_domain(folder, "fine", 1.0), write_domain(folder, "coarse", 2.5)


@pytest.fixture
def study(ablations: ModuleType, manifests: tuple[Path, Path], tmp_path: Path) -> Any:
    fine, coarse = map(read_manifest, manifests)
    return ablations.Study((coarse, fine), 2, tmp_path)


def exact(variant: Any) -> Any:
    """Hurried, and in float32 throughout, which asks no child process whether bfloat16 lives."""
    loop = replace(variant.pretraining.loop, precision="32")
    configurations = tuple(
        replace(one, recipe=replace(one.recipe, teaching=replace(one.recipe.teaching, features="32")))
        for one in variant.configurations
    )
    return replace(variant, pretraining=replace(variant.pretraining, loop=loop), configurations=configurations)


def differing(one: Any, other: Any) -> set[str]:
    """Names of the innermost fields in which two frozen dataclasses differ."""
    found: set[str] = set()
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if mine != its:
            found |= differing(mine, its) if hasattr(mine, "__dataclass_fields__") else {field.name}
    return found


# What a variant is


@pytest.mark.parametrize(
    ("name", "in_recipe", "in_towers"),
    [
        ("gamma-0", set(), set()),
        ("stride-16", set(), set()),
        ("lambda-0.01", {"weight"}, set()),
        ("lambda-1", {"weight"}, set()),
        ("tap-image", {"tap"}, set()),
        ("normalise-none", {"normalise"}, set()),
        ("paper-loss", {"weight", "schedule", "normalise", "pace"}, set()),
        ("short-gamma-0", set(), set()),
        ("no-attention", set(), {"attention"}),
        ("max", {"pool"}, {"pool"}),
        ("mean", {"pool"}, {"pool"}),
        ("separate", {"trunks"}, {"trunks"}),
    ],
)
def test_a_variant_changes_what_it_says_and_nothing_else(
    ablations: ModuleType, name: str, in_recipe: set[str], in_towers: set[str]
) -> None:
    variant = ablations.VARIANTS[name]
    base = ablations.VARIANTS[variant.beside]
    before = {one.name: one.recipe for one in base.configurations}
    for one in variant.configurations:
        assert differing(before[one.name], one.recipe) == in_recipe
    assert differing(base.pretraining, variant.pretraining) == in_towers
    assert (variant.towers == base.towers) == (not in_towers)
    assert variant.seeds == base.seeds


def test_heads_are_of_the_architecture_of_their_towers(ablations: ModuleType) -> None:
    for variant in ablations.VARIANTS.values():
        for one in variant.configurations:
            of_heads = differing(one.recipe.architecture, variant.pretraining.architecture)
            assert of_heads <= {"hidden", "members", "weighted"}, variant.name


def test_what_a_variant_is_compared_with_comes_before_it(ablations: ModuleType) -> None:
    assert ablations.with_bases(["max", "stride-16"]) == ["base", "stride-16", "short", "max"]
    order = list(ablations.VARIANTS)
    assert all(order.index(v.beside) < order.index(v.name) for v in ablations.VARIANTS.values() if v.beside)


def test_attention_costs_what_the_network_counts_for_it(ablations: ModuleType) -> None:
    """Queries, keys and their products, by the sizes of the weights themselves; 64 positions of 96 channels."""
    arch = ablations.SHORT.architecture
    network = SAQM(arch, seed=0)
    convolutions = sum(layer[0].weight.numel() for layer in (network.query, network.key)) * 64  # type: ignore[operator,union-attr]
    assert ablations.attention_alone(arch) == convolutions + 64 * 64 * (12 + 96)
    assert ablations.attention_alone(arch) < 0.1 * multiply_accumulates(arch)
    with pytest.raises(TrainingError, match="two of them fall away whole"):
        ablations.attention_alone(Architecture())


def test_three_trunks_cost_more_than_one_and_no_attention_less(ablations: ModuleType) -> None:
    cost = {name: variant.operations for name, variant in ablations.VARIANTS.items()}
    assert 2.5 < cost["separate"] / cost["short"] < 3
    assert cost["gamma-0"] == cost["short-gamma-0"] == cost["no-attention"] < cost["short"] == cost["base"]
    assert cost["max"] == cost["mean"] < cost["short"]  # half the features for the heads


# Runs


@pytest.mark.slow
def test_rescored_heads_say_the_same_where_nothing_is_changed_and_else_not(ablations: ModuleType, study: Any) -> None:
    """The attention is given a weight first, for six steps hardly teach one."""
    base = exact(ablations.hurried(ablations.VARIANTS["base"]))
    bench = ablations.bench_of(study, base, 0)
    with torch.no_grad():
        bench.towers.gamma.fill_(0.7)
    taught = ablations.finish(study, base, None, 0)
    for change, same in (
        ({"stride": 32}, True),
        ({"gamma": 0.7}, True),
        ({"gamma": 0.0}, False),
        ({"stride": 16}, False),
    ):
        again = ablations.finish(study, replace(base, name="again", beside="base", **change), base, 0)
        for one, other in zip(taught["runs"], again["runs"], strict=True):
            assert {**one, "values": 0} == {**other, "values": 0}
            assert len(one["values"]) == 8  # two scenes of four images
            assert (one["values"] == pytest.approx(other["values"], abs=1e-6)) == same, (change, one["configuration"])
        assert again["gamma"] == pytest.approx(change.get("gamma", 0.7))


@pytest.mark.slow
def test_heads_that_say_other_scores_than_their_run_are_refused(ablations: ModuleType, study: Any) -> None:
    base = exact(ablations.hurried(ablations.VARIANTS["base"]))
    ablations.finish(study, base, None, 0)
    (kept,) = study.folder.glob("table2/fold-0/base/coarse-to-fine/target-only/seed-0/predictions.json")
    kept.write_text(json.dumps([value + 0.01 for value in json.loads(kept.read_text())]))
    with pytest.raises(TrainingError, match=r"its heads now say other scores, up to 0\.01; remove it to start anew"):
        ablations.finish(study, replace(base, beside="base", stride=48), base, 0)


def test_a_run_that_a_guard_stops_is_a_result_and_one_that_cannot_start_is_not(
    ablations: ModuleType, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = exact(ablations.hurried(ablations.VARIANTS["base"]))
    bench, task = ablations.bench_of(study, base, 0), next(ablations.tasks(study, 0))

    def breaks_after(steps: int) -> Any:
        def transfer(*_: Any, on_step: Any, **__: Any) -> list[float]:
            for step in range(steps):
                on_step("opinions", step, 9, {})
            raise TrainingError("features explode")

        return transfer

    monkeypatch.setattr(ablations, "transfer", breaks_after(3))
    assert ablations.run(task, base.configurations[0].recipe, bench, 0, study.folder) == ([], "features explode")
    monkeypatch.setattr(ablations, "transfer", breaks_after(0))
    with pytest.raises(TrainingError, match="features explode"):
        ablations.run(task, base.configurations[0].recipe, bench, 0, study.folder)


def test_towers_and_runs_of_table2_are_taken_over_and_never_touched(
    ablations: ModuleType, study: Any, tmp_path: Path
) -> None:
    base, made = ablations.VARIANTS["base"], tmp_path / "made"
    with pytest.raises(TrainingError, match=r"fold-0.towers is missing; `make table2` makes it, or .* --towers"):
        ablations.take_over(study, made, base)
    for fold in ("fold-0", "fold-1"):
        for direction in ("coarse-to-fine", "fine-to-coarse"):
            for one in ("unsupervised,-GRL", "target-only"):
                (made / fold / direction / one / "seed-0").mkdir(parents=True)
                (made / fold / direction / one / "seed-0" / "predictions.json").write_text(
                    f'"{fold} {direction} {one}"'
                )
        (made / fold / "towers").mkdir()
        (made / fold / "towers" / "log.jsonl").write_text(fold)
    ablations.take_over(study, made, base)
    run = ablations.run_folder(
        ablations.fold_folder(study, base, 1), base, "fine → coarse", base.configurations[0], seed=0
    )
    assert (run / "predictions.json").read_text() == '"fold-1 fine-to-coarse unsupervised,-GRL"'
    log = study.folder / "table2" / "fold-1" / "towers" / "log.jsonl"
    assert log.read_text() == "fold-1"
    log.write_text("gone on")
    ablations.take_over(study, made, base)
    assert log.read_text() == "gone on"  # what is there stays
    assert (made / "fold-1" / "towers" / "log.jsonl").read_text() == "fold-1"


# Results


def kept(variant: Any, fold: int, values: Any, *, stopped: str | None = None, gamma: float = 0.25) -> dict[str, Any]:
    """A finished fold of a made variant: images 8 to 15 of each domain are tested in fold 1, the others in fold 0."""
    places = range(8) if fold == 0 else range(8, 16)
    runs = [
        {
            "direction": direction, "configuration": one.name, "seed": seed, "stopped": stopped,
            "values": {} if stopped else {str(place): values(place, seed) for place in places},
        }
        for direction in ("coarse → fine", "fine → coarse")
        for one in variant.configurations
        for seed in range(variant.seeds)
    ]  # fmt: skip
    return {"gamma": gamma, "seconds": 1.5, "commit": "abc", "runs": runs}


SHARES = {"clean": 0.8, "grainy": 0.4, "noisy": 0.1, "soft": 0.3}  # in the order of the scores of VERSIONS


def right(place: int, seed: int) -> float:
    return list(SHARES.values())[place % 4] + 0.01 * (place // 4) + 0.001 * seed


def half_right(place: int, seed: int) -> float:
    """The two in the middle the other way round."""
    return {1: 0.3, 2: 0.1, 3: 0.4}.get(place % 4, 0.8) + 0.01 * (place // 4) + 0.001 * seed


def test_differences_are_variant_less_base_and_a_stopped_one_has_no_srocc(ablations: ModuleType, study: Any) -> None:
    variants = {name: ablations.VARIANTS[name] for name in ("base", "gamma-0", "lambda-1")}
    made = {
        "base": [kept(variants["base"], fold, right) for fold in (0, 1)],
        "gamma-0": [kept(variants["gamma-0"], fold, half_right) for fold in (0, 1)],
        "lambda-1": [
            kept(variants["lambda-1"], 0, right),
            kept(variants["lambda-1"], 1, right, stopped="step 7: features explode"),
        ],
    }
    lines = ablations.lines_of(study, made, variants, 100)
    by = {(x.variant, x.direction, x.configuration): x for x in lines}
    assert len(by) == len(lines) == 4 + 4 + 2
    base, worse = (by[name, "coarse → fine", "target-only"] for name in ("base", "gamma-0"))
    assert base.images == worse.images == 16
    assert base.difference is None
    assert worse.difference == pytest.approx(worse.srocc - base.srocc)
    assert worse.difference_interval[0] <= worse.difference <= worse.difference_interval[1] < 0
    gone = by["lambda-1", "fine → coarse", "unsupervised, GRL"]
    assert (gone.srocc, gone.difference, gone.images) == (None, None, 0)
    assert (len(gone.stopped), gone.runs) == (1, 2)
    text = ablations.to_markdown(lines, {name: [0.25, 0.5] for name in variants}, variants, quick=False)
    (row,) = [line for line in text.splitlines() if line.startswith("| lambda-1 ")]
    assert row.count("stopped in 1 of 2 runs") == 2
    assert row.split(" | ")[-2] == "0.25 0.50"
    assert "- lambda-1, fine → coarse: step 7: features explode." in text


@pytest.mark.slow
def test_the_command_does_the_bases_as_well_and_nothing_twice(
    ablations: ModuleType, manifests: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ablations, "VARIANTS", {name: exact(one) for name, one in ablations.VARIANTS.items()})
    asked = ["--quick", "--manifests", *map(str, manifests), "--runs", str(tmp_path / "runs"), "--only", "no-attention"]
    ablations.main(asked)
    said = capsys.readouterr().out
    assert "These numbers show that it runs and mean nothing" in said
    assert "Not finished: base, gamma-0, stride-16" in said
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs" / "ablations.csv").read_text(encoding="utf-8"))))
    assert [row["variant"] for row in rows] == ["short"] * 4 + ["no-attention"] * 4
    assert {(row["source"], row["target"]) for row in rows} == {("fine", "coarse"), ("coarse", "fine")}
    assert all(row["images"] == "16" and row["stopped"] == "0" for row in rows)
    assert all(float(row["gamma"]) == 0 for row in rows[4:])
    assert any(float(row["gamma"]) != 0 for row in rows[:4])
    record = json.loads((tmp_path / "runs" / "ablations.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in record["variants"]] == ["short", "no-attention"]
    assert (tmp_path / "runs" / "ablations.png").stat().st_size > 10_000
    monkeypatch.setattr(ablations, "finish", None)  # would raise if anything were done again
    ablations.main(asked)
    assert capsys.readouterr().out.splitlines()[2:] == said.splitlines()[2:]
    other = ablations.VARIANTS["short"]
    monkeypatch.setitem(ablations.VARIANTS, "short", replace(other, configurations=other.configurations[:1]))
    with pytest.raises(
        TrainingError, match="is of other settings or other images; remove it, or choose another --runs"
    ):
        ablations.main(asked)
