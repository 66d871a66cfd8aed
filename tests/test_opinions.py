"""Two domains in one task: no label is read that may not be, both are drawn alike, and what was learnt folds away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saqm import watching
from saqm.adaptation import ALIGNMENTS, Alignment
from saqm.errors import TrainingError
from saqm.frozen import Picture
from saqm.image import from_array
from saqm.loop import LoopConfig
from saqm.manifest import Manifest, Row, Scale
from saqm.network import SAQM, Architecture
from saqm.opinions import Ladder, OpinionTask, Sample, Unscored
from saqm.recipes import RECIPES, Recipe, Side
from saqm.train import Material, blinded, predict, read_material, readable, train

TINY = Architecture(width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(8,), members=2, weighted=True)
WIDE = TINY.features


def tiny(name: str, alignment: Alignment | str | None = None, **changes: Any) -> Recipe:
    recipe = RECIPES[name]
    small = {"ladders": 0.0, "features": "32", "epochs": 4, "images_per_step": 8, "windows_per_image": 6,
             "loop": LoopConfig(learning_rate=1e-2)}  # fmt: skip
    if isinstance(alignment, str):
        alignment = ALIGNMENTS[alignment]
    return replace(
        recipe,
        architecture=TINY,
        alignment=recipe.alignment if alignment is None else alignment,
        teaching=replace(recipe.teaching, **{**small, **changes}),
    )


def features(seed: int, quality: float, shift: float = 0.0) -> Tensor:
    """Windows of an image whose first feature is its quality; the domain moves every third."""
    made = torch.randn(20, WIDE, generator=torch.Generator().manual_seed(seed))
    made[:, 0] += 4 * quality
    made[:, ::3] += shift
    return made


def two_domains(sources: int = 12, targets: int = 10, shift: float = 3.0) -> tuple[list[Sample], list[Unscored]]:
    share = np.linspace(0.1, 0.9, sources).tolist()
    scored = [Sample(features(n, q), q, "a", side="source", scene=f"a{n % 4}") for n, q in enumerate(share)]
    rest = np.linspace(0.1, 0.9, targets).tolist()
    return scored, [Unscored(features(50 + n, q, shift), "target", f"b{n % 4}") for n, q in enumerate(rest)]


def falling(seed: int, side: Side) -> Ladder:
    return Ladder(tuple(features(seed, 0.9 - 0.3 * rung) for rung in range(3)), side)


def weights(network: SAQM) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def taught(material: Material, recipe: Recipe, seed: int = 0, folder: Path | None = None) -> dict[str, bytes]:
    network = SAQM(TINY, seed=0)
    train(
        network, material.samples, material.ladders, recipe, seed=seed, unscored=material.unscored, folder=folder
    )  # fmt: skip
    return weights(network)


# Which labels may be read


def rows_of(domain: str, count: int, shift: float = 0.0) -> tuple[Manifest, dict[Path, Tensor]]:
    share = np.linspace(0.05, 0.95, count).tolist()
    rows, seen = [], {}
    for n, quality in enumerate(share):
        path = Path(f"/{domain}/{n}.png")
        seen[path] = features(n + len(domain) * 100, quality, shift)
        rows.append(
            Row(path, quality * 4, f"{domain} {n // 2}", domain, score_sd=0.1, raters=3, rater_scores=(1.0, 2.0),
                aspects={"noise": 2.0}, weight=0.5 + quality)
        )  # fmt: skip
    return Manifest(tuple(rows), Scale(0, 4)), seen


BLIND = {
    "source-only": tiny("source-only"),
    "by-domain": tiny("source-only", standardise="by-domain"),
    "unsupervised": tiny("unsupervised"),
    "grl": tiny("unsupervised", "grl"),
    "transductive": replace(tiny("unsupervised"), transductive=True),
}


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("told", ["other numbers", "nothing"])
def test_target_scores_change_no_bit_where_they_may_not_be_read(name: str, told: str) -> None:
    source, seen = rows_of("one", 8)
    target, more = rows_of("other", 7, 2.0)
    seen |= more
    changed = replace(target, rows=tuple(
        blinded(row) if told == "nothing" else
        replace(row, score=3.9 - row.score, raters=9, rater_scores=(4.0,), aspects={}, weight=7.0)
        for row in target.rows if row.score is not None
    ))  # fmt: skip
    found = [
        taught(
            read_material({"source": source, "target": which}, BLIND[name], seed=0, look=seen.__getitem__), BLIND[name]
        )
        for which in (target, changed)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["semi-supervised", "pooled"])
def test_target_scores_do_change_what_reads_them(name: str) -> None:
    source, seen = rows_of("one", 8)
    target, more = rows_of("other", 7, 2.0)
    changed = replace(target, rows=tuple(replace(row, score=3.9 - (row.score or 0)) for row in target.rows))
    look = {**seen, **more}.__getitem__
    found = [
        taught(read_material({"source": source, "target": which}, tiny(name), seed=0, look=look), tiny(name))
        for which in (target, changed)
    ]
    assert found[0] != found[1]


def test_a_row_that_may_not_be_read_has_nothing_that_people_said() -> None:
    target, _ = rows_of("other", 3)
    source, _ = rows_of("one", 3)
    met = readable({"source": source, "target": target}, RECIPES["unsupervised"], seed=0)
    assert met["source"] == source
    for row, was in zip(met["target"].rows, target.rows, strict=True):
        assert row == Row(was.path, None, was.scene, was.domain)
    assert list(readable({"source": source, "target": target}, RECIPES["source-only"], seed=0)) == ["source"]


def test_a_larger_share_of_labels_holds_a_smaller_one() -> None:
    source, _ = rows_of("one", 8)
    target, seen = rows_of("other", 20)
    held = []
    for share in (0.0, 0.05, 0.25, 0.5, 1.0):
        recipe = replace(RECIPES["semi-supervised"], labelled=share)
        met = readable({"source": source, "target": target}, recipe, seed=3)
        assert sum(row.score is not None for row in met["source"].rows) == 8
        held.append({row.path for row in met["target"].rows if row.score is not None})
    assert [len(one) for one in held] == [0, 1, 5, 10, 20]
    assert held[0] <= held[1] <= held[2] <= held[3] <= held[4] == set(seen)


def given(source: Mapping[str, Any], target: Mapping[str, Any], recipe: Recipe) -> Material:
    sides: dict[Side, Manifest] = {}
    seen: dict[Path, Tensor] = {}
    for side, name, changes in (("source", "one", source), ("target", "other", target)):
        manifest, more = rows_of(name, 6)
        seen |= more
        rows = () if changes.get("empty") else tuple(
            replace(row, score=changes["score"]) if "score" in changes else row for row in manifest.rows
        )  # fmt: skip
        sides[side] = replace(manifest, rows=rows)  # type: ignore[index]
    return read_material(sides, recipe, seed=0, look=seen.__getitem__)


@pytest.mark.parametrize(
    ("source", "target", "name", "message"),
    [
        ({"score": None}, {}, "unsupervised", r"learns from the source's scores, and none of its images has one; fill"),
        ({}, {"score": None}, "semi-supervised", r"learns from the target's scores, and none of its images has one"),
        ({"score": 2.0}, {}, "unsupervised", r"all 6 scores of the source are equal: nothing tells better from worse"),
        ({}, {"empty": True}, "unsupervised", r"'unsupervised' needs images of the target, and there is none"),
        ({"empty": True}, {}, "source-only", r"'source-only' needs images of the source, and there is none"),
    ],
)  # fmt: skip
def test_material_that_teaches_nothing_is_refused(
    source: dict[str, Any], target: dict[str, Any], name: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        given(source, target, RECIPES[name])


# Drawing


def test_each_step_is_half_of_each_side_and_each_side_is_cycled() -> None:
    scored, unscored = two_domains(sources=10, targets=3)
    task = OpinionTask(SAQM(TINY, seed=0), scored, [], tiny("unsupervised"), unscored)
    assert task.steps == 4 * 3  # the source has scores: 10 images, 4 a step
    chosen = np.array([task._both_sides(step) for step in range(5)])
    assert [(task.sides[step] == "source").sum() for step in chosen] == [4] * 5
    assert sorted(chosen[:, :4].ravel()[:10]) == sorted(chosen[:, :4].ravel()[10:]) == list(range(10))
    turns = chosen[:, 4:].ravel()[:18].reshape(6, 3)
    assert all(sorted(turn) == [10, 11, 12] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_semi_supervised_reads_scores_on_both_sides_and_takes_its_length_from_the_larger() -> None:
    scored, unscored = two_domains(sources=6, targets=12)
    some = [Sample(one.image, 0.2 + n / 10, "b", side="target") for n, one in enumerate(unscored[:4])]
    task = OpinionTask(SAQM(TINY, seed=0), [*scored, *some], [], tiny("semi-supervised"), unscored[4:])
    assert task.steps == 4 * 3  # 12 target images, 4 a step
    assert {str(side) for side in task.sides[: len(task.samples)]} == {"source", "target"}
    log = train(SAQM(TINY, seed=0), [*scored, *some], [], tiny("semi-supervised"), seed=0, unscored=unscored[4:])
    assert all(np.isfinite(entry["loss"]) and {"opinion", "order", "alignment"} <= entry.keys() for entry in log)


# Standardisation


def test_by_domain_each_side_has_mean_0_and_sd_1() -> None:
    scored, unscored = two_domains()
    for standardise, alike in (("by-domain", True), ("shared", False)):
        recipe = tiny("unsupervised", standardise=standardise)
        task = OpinionTask(SAQM(TINY, seed=0), scored, [falling(9, "target")], recipe, unscored)
        for side in ("source", "target"):
            mine = torch.cat([task.inputs[i] for i in np.flatnonzero(task.sides == side)])  # type: ignore[misc]
            near = bool((mine.mean(0).abs() < 1e-4).all() and ((mine.std(0) - 1).abs() < 5e-3).all())
            assert near == (alike or side == "source")


def test_by_domain_without_the_other_domain_is_refused() -> None:
    recipe = tiny("source-only", standardise="by-domain")
    with pytest.raises(TrainingError, match="standardise='by-domain' wants images of both sides"):
        OpinionTask(SAQM(TINY, seed=0), two_domains()[0], [], recipe)


@pytest.mark.parametrize("hidden", [(8,), ()])
@pytest.mark.parametrize("standardise", ["shared", "by-domain"])
def test_neck_and_standardisation_fold_into_plain_heads(hidden: tuple[int, ...], standardise: str) -> None:
    scored, unscored = two_domains()
    recipe = tiny("unsupervised", standardise=standardise)
    network = SAQM(replace(TINY, hidden=hidden), seed=0)
    task = OpinionTask(network, scored, [], replace(recipe, architecture=network.architecture), unscored)
    for parameter in task.module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    wanted = [task._score(task._features_of(one, 99)) for one in task.inputs]
    task.fold_in()
    found = [predict(network, one.image, recipe.preparation) for one in task.shown]
    served = slice(len(scored), None) if standardise == "by-domain" else slice(None)  # the file serves the target
    assert found[served] == pytest.approx(wanted[served], abs=1e-5)
    if standardise == "by-domain":
        assert found[: len(scored)] != pytest.approx(wanted[: len(scored)], abs=1e-2)


def test_taught_heads_go_on_from_what_they_say() -> None:
    scored, _ = two_domains()
    recipe = tiny("source-only")
    network = SAQM(TINY, seed=0)
    train(network, scored, [], recipe, seed=0)
    before = [predict(network, one.image, recipe.preparation) for one in scored]
    task = OpinionTask(network, scored, [], recipe, taught=True)
    assert [task._score(task._features_of(one, 99)) for one in task.inputs] == pytest.approx(before, abs=1e-5)
    task.fold_in()
    assert [predict(network, one.image, recipe.preparation) for one in scored] == pytest.approx(before, abs=1e-5)


# Alignment


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_every_alignment_teaches_heads_on_frozen_towers(name: str) -> None:
    scored, unscored = two_domains()
    ladders = [falling(9, "target"), falling(10, "source")]
    recipe = tiny("unsupervised", name, epochs=2)
    network = SAQM(TINY, seed=0)
    towers = {key: value for key, value in weights(network).items() if not key.startswith("heads.")}
    log = train(network, scored, ladders, recipe, seed=0, unscored=unscored)
    assert all(np.isfinite(entry["alignment"]) for entry in log)
    assert ("domain_accuracy" in log[0]) == (name in ("paper", "grl"))
    assert {"mmd", "coral", "proxy_a_distance", "effective_rank", "source_srocc"} <= log[0].keys()
    assert ("order_concordance" in log[0]) == (name == "rank")
    assert towers.items() <= weights(network).items()


@pytest.mark.parametrize("name", ["coral", "mmd", "grl"])
def test_alignment_brings_the_domains_together(name: str) -> None:
    scored, unscored = two_domains(shift=0.7)  # where a classifier is sure of every window it has no gradient left
    alignment = replace(ALIGNMENTS[name], schedule="constant", weight=1.0)
    loop = LoopConfig(learning_rate=3e-3, momentum=0.5 if name == "grl" else 0.9)
    recipe = tiny("unsupervised", alignment, standardise="shared", epochs=60, loop=loop)
    log = train(SAQM(TINY, seed=0), scored, [], recipe, seed=0, unscored=unscored)
    assert log[-1]["mmd"] < 0.65 * log[0]["mmd"]
    assert log[-1]["source_srocc"] > 0.8


@pytest.mark.parametrize("tap", ["window", "value", "image"])
@pytest.mark.parametrize("name", ["grl", "coral"])
def test_the_whole_network_is_aligned_at_its_tap(tap: str, name: str) -> None:
    samples, others = pictures()
    recipe = tiny(
        "unsupervised", replace(ALIGNMENTS[name], tap=tap, schedule="constant"),  # type: ignore[arg-type]
        trains="all", standardise="shared", epochs=1, images_per_step=4, windows_per_image=3,
    )  # fmt: skip
    network = SAQM(TINY, seed=0)
    before = weights(network)
    log = train(network, samples, [], recipe, seed=0, unscored=others)
    assert all(np.isfinite(entry["alignment"]) for entry in log)
    assert weights(network)["trunk.0.weight"] != before["trunk.0.weight"]
    assert list(weights(network)) == list(before)  # the classifier is not part of what is kept


def pictures() -> tuple[list[Sample], list[Unscored]]:
    def one(seed: int, sd: float) -> Picture:
        grey = 120 + sd * np.random.default_rng(seed).standard_normal((48, 48))
        return from_array(np.clip(grey, 0, 255).astype(np.float32), value_range=(0, 255))

    return (
        [Sample(one(n, 10 + 10 * n), 0.9 - 0.2 * n, "a", side="source") for n in range(4)],
        [Unscored(one(9 + n, 25), "target", str(n)) for n in range(3)],
    )


def test_features_do_for_heads_alone() -> None:
    scored, unscored = two_domains()
    with pytest.raises(TrainingError, match="features were given where the whole network is taught; give images"):
        OpinionTask(SAQM(TINY, seed=0), scored, [], tiny("unsupervised", trains="all"), unscored)


def test_the_paper_s_reversal_without_normalisation_explodes_and_the_message_says_what_to_change() -> None:
    samples, others = pictures()
    plain = replace(TINY, norm="none", pool="max", weighted=False, members=1)
    recipe = replace(
        tiny("paper-unsupervised", replace(ALIGNMENTS["paper"], weight=30.0), epochs=100, images_per_step=4,
             windows_per_image=3, loop=LoopConfig(learning_rate=2e-2)),
        architecture=plain,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"lower alignment.weight \(now 30.0\).*normalise='layer' \(now 'none'\)"):
        train(SAQM(plain, seed=0), samples, [], recipe, seed=0, unscored=others)


def test_one_domain_alone_cannot_be_aligned() -> None:
    scored, _ = two_domains()
    with pytest.raises(TrainingError, match="recipe 'unsupervised' aligns two domains, and there is no target image"):
        OpinionTask(SAQM(TINY, seed=0), scored, [], tiny("unsupervised", standardise="shared"))


def test_rank_without_ladders_of_the_target_is_refused() -> None:
    scored, unscored = two_domains()
    with pytest.raises(TrainingError, match="kind='rank' has no ladder of the target to put in order; make some"):
        OpinionTask(SAQM(TINY, seed=0), scored, [falling(1, "source")], tiny("unsupervised", "rank"), unscored)


def test_a_tap_inside_frozen_towers_is_refused() -> None:
    scored, unscored = two_domains()
    recipe = tiny("unsupervised", replace(ALIGNMENTS["coral"], tap="value"))
    with pytest.raises(TrainingError, match="tap='value' lies inside the frozen towers; use tap='window'"):
        OpinionTask(SAQM(TINY, seed=0), scored, [], recipe, unscored)


def test_looking_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, others = pictures()
    recipe = tiny("unsupervised", trains="all", standardise="shared", epochs=2, images_per_step=4, windows_per_image=3)
    found = [taught(Material(samples, [], others), recipe)]
    monkeypatch.setattr(watching, "EVERY", 1)
    found.append(taught(Material(samples, [], others), recipe))
    assert found[0] == found[1]


def test_an_aligned_run_that_was_stopped_goes_on_bit_for_bit_and_only_as_itself(tmp_path: Path) -> None:
    scored, unscored = two_domains()
    recipe = tiny("unsupervised", "grl", loop=LoopConfig(learning_rate=1e-2, clip_norm=1.0, checkpoint_every=3))
    material = Material(scored, [], unscored)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, logs: Mapping[str, float]) -> None:  # noqa: ARG001
        if step == 7:
            raise Stopped

    with pytest.raises(Stopped):
        train(SAQM(TINY, seed=0), scored, [], recipe, seed=0, unscored=unscored, folder=tmp_path, on_step=stop)
    assert taught(material, recipe, folder=tmp_path) == taught(material, recipe)
    other = replace(recipe, alignment=replace(recipe.alignment, weight=0.2))
    with pytest.raises(TrainingError, match="another configuration"):
        taught(material, other, folder=tmp_path)
