"""Opinion scores reach the network: order and level are learnt, towers stay frozen where they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage, stats

from saqm.adaptation import ALIGNMENTS
from saqm.degradations import LADDERS, noise
from saqm.errors import ImageError, NotScorable, TrainingError
from saqm.frozen import DENSE_STRIDE, Features, Picture
from saqm.image import Image, from_array
from saqm.loop import LoopConfig
from saqm.manifest import Manifest, Row, Scale
from saqm.network import SAQM, Architecture
from saqm.opinions import LEAST_APART, Ladder, OpinionTask, Sample, distance
from saqm.patches import cut, luminance, pool
from saqm.recipes import RECIPES, Recipe, Side
from saqm.train import (
    ORDERED_RUNGS,
    Cache,
    adopt_towers,
    make_ladders,
    predict,
    read_material,
    read_samples,
    read_versions,
    train,
)

TINY = Architecture(
    width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(16,), members=2, weighted=True
)
HEADS = replace(
    RECIPES["target-only"],
    architecture=TINY,
    teaching=replace(
        RECIPES["target-only"].teaching, ladders=0.0, features="32", epochs=60, images_per_step=8, windows_per_image=16,
        loop=LoopConfig(learning_rate=1e-2, schedule="one-cycle"),
    ),
)  # fmt: skip


def teaching(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, teaching=replace(recipe.teaching, **changes))


ALL = teaching(HEADS, trains="all", epochs=12, windows_per_image=4)


def texture(seed: int, sigma: float = 1.0, sd: float = 25.0, side: int = 72) -> NDArray[np.float32]:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((side, side)), sigma)
    return np.asarray(np.clip(120 + sd * field / field.std(), 0, 255), np.float32)


def image(grey: NDArray[np.float32]) -> Image:
    return from_array(grey, value_range=(0, 255))


def two_kinds() -> list[Sample]:
    """Twelve images whose score is how much soft texture is in them, and how little fine."""
    shares = np.linspace(0.05, 0.95, 12)
    return [
        Sample(image(share * texture(n, 2.5) + (1 - share) * texture(100 + n, 0.5)), float(share), "made")
        for n, share in enumerate(shares)
    ]


def noise_ladders(count: int, first: int) -> list[Ladder]:
    made = []
    for seed in range(first, first + count):
        grey, rng = texture(seed, 2.0), np.random.default_rng(seed)
        made.append(Ladder((image(grey), *(image(noise(grey, s, rng)) for s in LADDERS["noise"]))))
    return made


def pixels(picture: Picture) -> Image:
    assert isinstance(picture, Image)
    return picture


def predictions(network: SAQM, images: Sequence[Picture]) -> list[float]:
    return [predict(network, one, HEADS.preparation) for one in images]


# Learning


def srocc_after(recipe: Recipe) -> float:
    network, samples = SAQM(TINY, seed=0), two_kinds()
    train(network, samples, [], recipe, seed=0)
    found = predictions(network, [sample.image for sample in samples])
    assert all(0 < value < 1 for value in found)
    return float(stats.spearmanr(found, [sample.score for sample in samples]).statistic)


def test_scores_are_learnt_by_heads() -> None:
    assert srocc_after(HEADS) > 0.9


@pytest.mark.parametrize(("loss", "level"), [("bce", "window"), ("smooth-l1", "image")])
@pytest.mark.slow
def test_scores_are_learnt_by_the_whole_network(loss: str, level: str) -> None:
    recipe = teaching(ALL, loss=loss, level=level, order=0.0, loop=LoopConfig(learning_rate=3e-3))
    assert srocc_after(recipe) > 0.9


def test_order_of_ladders_is_learnt_for_pictures_never_seen() -> None:
    network = SAQM(TINY, seed=0)
    samples = [Sample(image(texture(seed, 2.0)), 0.5, "made") for seed in range(4)]  # say nothing of noise
    train(network, samples, noise_ladders(4, 0), teaching(HEADS, ladders=1.0, order=0.0), seed=0)
    for ladder in noise_ladders(2, 50):
        found = predictions(network, list(ladder.rungs))
        assert found == sorted(found, reverse=True)


def test_ladders_teach_nothing_where_their_weight_is_nothing() -> None:
    logs = train(SAQM(TINY, seed=0), two_kinds()[:4], noise_ladders(1, 0), teaching(HEADS, epochs=1), seed=0)
    assert "ladders" not in logs[0]


def test_same_seed_same_bits_other_seed_other() -> None:
    def taught(seed: int) -> list[float]:
        network = SAQM(TINY, seed=1)
        train(network, two_kinds()[:4], noise_ladders(1, 0), teaching(HEADS, ladders=1.0, epochs=3), seed=seed)
        return predictions(network, [two_kinds()[0].image])

    assert taught(0) == taught(0)
    assert taught(0) != taught(1)


def test_a_finished_training_is_read_back_to_the_same_network(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        network = SAQM(TINY, seed=1)
        train(network, two_kinds()[:4], [], teaching(HEADS, epochs=3), seed=0, folder=tmp_path)
        found.append(predictions(network, [two_kinds()[0].image]))
    assert found[0] == found[1]  # the standardisation is folded in both times, once each


# Frozen towers


def test_heads_leave_the_towers_and_their_statistics_bit_for_bit() -> None:
    network = SAQM(TINY, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, two_kinds()[:4], [], teaching(HEADS, epochs=2), seed=0)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)
    assert not network.training


def test_the_whole_network_is_changed_where_all_is_trained() -> None:
    network = SAQM(TINY, seed=0)
    before = {name: value.clone() for name, value in network.named_parameters()}
    train(network, two_kinds()[:4], [], teaching(ALL, epochs=2), seed=0)
    same = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    assert not any(name.startswith("trunk") for name in same)
    assert not network.training


@pytest.mark.parametrize("hidden", [(16,), (8, 4), ()])
def test_folded_heads_judge_plain_features_as_the_heads_judged_standardised_ones(hidden: tuple[int, ...]) -> None:
    network, samples = SAQM(replace(TINY, hidden=hidden), seed=0), two_kinds()[:4]
    for parameter in network.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    task = OpinionTask(network, samples, [], HEADS)
    with torch.inference_mode():
        inside = [network.judge(features) for features in task.inputs if isinstance(features, torch.Tensor)]
    task.fold_in()
    for sample, output in zip(samples, inside, strict=True):
        wanted = pool(output.score.numpy(), output.weight.numpy())
        dense = replace(HEADS.preparation, stride=DENSE_STRIDE)
        assert predict(network, sample.image, dense) == pytest.approx(wanted, abs=1e-5)


def test_standardised_features_have_mean_0_and_sd_1() -> None:
    task = OpinionTask(SAQM(TINY, seed=0), two_kinds()[:4], [], HEADS)
    features = torch.cat([source for source in task.inputs if isinstance(source, torch.Tensor)])
    torch.testing.assert_close(features.mean(0), torch.zeros(TINY.features), atol=1e-4, rtol=0)
    assert (features.std(0) < 1.001).all()


# The loss


@pytest.mark.parametrize("score", [0.2, 0.5, 0.93])
@pytest.mark.parametrize("loss", ["bce", "smooth-l1"])
def test_loss_is_nothing_at_the_perfect_logit_and_rises_on_both_sides(loss: str, score: float) -> None:
    truth = torch.tensor(score)
    logits = truth.logit() + torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    losses = distance(logits, truth, loss)
    assert float(losses[2]) == pytest.approx(0, abs=1e-6)
    assert (losses[:3].diff() < 0).all()
    assert (losses[2:].diff() > 0).all()


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_loss_is_finite_at_the_ends_of_the_scale(score: float) -> None:
    losses = distance(torch.tensor([-30.0, 0.0, 30.0]), torch.tensor(score), "bce")
    assert losses.isfinite().all()
    assert losses.min() == pytest.approx(0, abs=1e-6)


def test_window_level_loss_of_a_network_that_says_the_score_is_nothing() -> None:
    network = SAQM(replace(TINY, weighted=False), seed=0)
    samples = [replace(sample, score=0.3) for sample in two_kinds()[:4]]
    for head in network.heads:
        out = head.get_submodule("out")
        assert isinstance(out, torch.nn.Linear)
        torch.nn.init.zeros_(out.weight)
        torch.nn.init.constant_(out.bias, float(np.log(0.3 / 0.7)))
    for changes in ({"loss": "bce", "level": "window"}, {"loss": "bce", "level": "image"}, {"loss": "smooth-l1"}):
        step = OpinionTask(network, samples, [], teaching(HEADS, **changes)).loss(0, np.random.default_rng(0))
        assert step.logs["opinion"] == pytest.approx(0, abs=1e-6)


def test_ties_and_scores_nearly_equal_have_no_order() -> None:
    close = [replace(sample, score=0.5 + 0.9 * LEAST_APART * (n % 2)) for n, sample in enumerate(two_kinds()[:4])]
    log = train(SAQM(TINY, seed=0), close, [], teaching(HEADS, epochs=2), seed=0)
    assert all("order" not in entry and np.isfinite(entry["loss"]) for entry in log)


def test_images_of_two_domains_are_not_put_in_order() -> None:
    apart = [replace(sample, domain=f"domain {n}") for n, sample in enumerate(two_kinds()[:4])]
    assert "order" not in train(SAQM(TINY, seed=0), apart, [], teaching(HEADS, epochs=1), seed=0)[0]
    assert "order" in train(SAQM(TINY, seed=0), two_kinds()[:4], [], teaching(HEADS, epochs=1), seed=0)[0]


def test_pairs_are_those_of_a_domain_whose_scores_are_apart() -> None:
    task = OpinionTask(
        SAQM(TINY, seed=0), [replace(s, domain="ab"[n // 2]) for n, s in enumerate(two_kinds()[:4])], [], HEADS
    )
    worse, better = task._ordered_pairs(np.array([3, 0, 1, 2]), torch.tensor([0.9, 0.5, 0.2, 0.1]))
    assert set(zip(worse, better, strict=True)) == {(2, 1), (3, 0)}


def test_weights_are_shares_of_the_loss() -> None:
    samples = two_kinds()[:4]

    def opinion(weights: tuple[float, ...]) -> float:
        weighted = [replace(sample, weight=weight) for sample, weight in zip(samples, weights, strict=True)]
        task = OpinionTask(SAQM(TINY, seed=0), weighted, [], HEADS)
        return task.loss(0, np.random.default_rng(0)).logs["opinion"]

    alone = [opinion(tuple(float(n == m) for m in range(4))) for n in range(4)]
    assert len({round(value, 6) for value in alone}) > 1
    assert opinion((1, 1, 1, 1)) == pytest.approx(np.mean(alone), rel=1e-5)
    assert opinion((2, 2, 2, 2)) == pytest.approx(np.mean(alone), rel=1e-5)
    assert opinion((3, 1, 0, 0)) == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-5)


def test_every_image_is_met_once_an_epoch_and_no_step_has_one_alone() -> None:
    samples = (two_kinds() * 2)[:17]
    task = OpinionTask(SAQM(TINY, seed=0), samples, [], teaching(HEADS, epochs=2))
    assert task.steps == 2 * 3
    chosen = [task._chosen(step, np.random.default_rng(step)) for step in range(task.steps)]
    assert [len(step) for step in chosen] == [8, 8, 2] * 2
    for epoch in (chosen[:3], chosen[3:]):
        assert set(np.concatenate(epoch).tolist()) == set(range(17))
    assert not np.array_equal(chosen[0], chosen[3])


def test_fewer_than_two_images_are_refused() -> None:
    with pytest.raises(TrainingError, match="1 scored images; training needs at least 2"):
        train(SAQM(TINY, seed=0), two_kinds()[:1], [], HEADS, seed=0)


def test_one_image_a_step_is_refused() -> None:
    with pytest.raises(TrainingError, match="images_per_step = 1: one image alone has no order"):
        train(SAQM(TINY, seed=0), two_kinds()[:4], [], teaching(HEADS, images_per_step=1), seed=0)


def test_an_image_with_nothing_to_judge_stops_the_training() -> None:
    flat = Sample(image(np.full((72, 72), 9, np.float32)), 0.5, "made")
    for recipe in (HEADS, ALL):
        with pytest.raises(NotScorable, match="constant image"):
            train(SAQM(TINY, seed=0), [*two_kinds()[:2], flat], [], recipe, seed=0)


def test_predict_pools_windows_as_they_say_they_count() -> None:
    network = SAQM(TINY, seed=0).eval()
    for head in network.heads:
        out = head.get_submodule("out")
        assert isinstance(out, torch.nn.Linear)
        out.weight.data.mul_(50)
    one = image(texture(1, side=120))
    with torch.inference_mode():
        output = network(torch.from_numpy(cut(one, HEADS.preparation).take(slice(None))))
    scores, weights = output.score.numpy().astype(float), output.weight.numpy().astype(float)
    assert predict(network.train(), one, HEADS.preparation) == pytest.approx(np.average(scores, weights=weights))
    assert abs(np.average(scores, weights=weights) - scores.mean()) > 1e-5
    assert not network.training


# Towers


def test_towers_are_adopted_without_their_heads() -> None:
    network, towers = SAQM(TINY, seed=0), SAQM(replace(TINY, members=1, weighted=False), seed=1)
    heads = {name: value.clone() for name, value in network.heads.state_dict().items()}
    adopt_towers(network, towers)
    for name, value in towers.state_dict().items():
        if not name.startswith("heads."):
            assert torch.equal(network.state_dict()[name], value)
    assert all(torch.equal(value, heads[name]) for name, value in network.heads.state_dict().items())


@pytest.mark.parametrize("changes", [{"width": 1 / 16}, {"norm": "none"}, {"trunks": "separate"}])
def test_towers_of_another_architecture_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"towers of .* do not fit a network of .*'width': 0.03125"):
        adopt_towers(SAQM(TINY, seed=0), SAQM(replace(TINY, **changes), seed=0))


# From manifests


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = []
    for n, (score, reference, method) in enumerate([(4.0, True, None), (2.0, False, "net"), (None, False, "net")]):
        Pillow.fromarray(texture(n).astype(np.uint8)).save(tmp_path / f"{n}.png")
        rows.append(
            Row(tmp_path / f"{n}.png", score, "s", "ct-made", reference=reference, method=method,
                weight=0.5 if n == 1 else None)
        )  # fmt: skip
    return Manifest(tuple(rows), Scale(0, 4, higher_is_better=False))


def test_samples_are_the_scored_rows_with_one_best(manifest: Manifest) -> None:
    samples = read_samples(manifest, manifest.rows)
    assert [(sample.score, sample.weight, sample.domain) for sample in samples] == [
        (0.0, 1.0, "ct-made"),
        (0.5, 0.5, "ct-made"),
    ]
    np.testing.assert_allclose(luminance(pixels(samples[1].image)), np.trunc(texture(1)), atol=1e-3)


def test_versions_know_scene_and_maker_and_no_score(manifest: Manifest) -> None:
    versions = read_versions(manifest.rows)
    assert [(one.scene, one.maker, one.reference) for one in versions] == [
        ("s", None, True),
        ("s", "net", False),
        ("s", "net", False),
    ]

    assert not hasattr(versions[0], "score")


def test_ladders_go_down_from_every_reference(manifest: Manifest) -> None:
    ladders = make_ladders(manifest.rows, seed=0)
    assert len(ladders) == len(ORDERED_RUNGS)
    for ladder, strengths in zip(ladders, ORDERED_RUNGS.values(), strict=True):
        assert len(ladder.rungs) == 1 + len(strengths)
        first, *worse = [pixels(rung) for rung in ladder.rungs]
        assert all(np.array_equal(rung.mask, first.mask) for rung in worse)
        distances = [float(np.square(rung.pixels - first.pixels).mean()) for rung in (first, *worse)]
        assert distances == sorted(set(distances))
    same, again, other = (pixels(make_ladders(manifest.rows, seed=seed)[0].rungs[1]).pixels for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_ladders_of_two_sides_share_no_noise(manifest: Manifest) -> None:
    sides: dict[Side, Manifest] = {"source": manifest, "target": manifest}
    recipe = teaching(RECIPES["pooled"], ladders=0.3)
    made = read_material(sides, recipe, seed=0).ladders
    assert [ladder.side for ladder in made] == ["source"] * 4 + ["target"] * 4
    for one, other in zip(made[:4], made[4:], strict=True):
        assert np.array_equal(pixels(one.rungs[0]).pixels, pixels(other.rungs[0]).pixels)
    assert not np.array_equal(pixels(made[0].rungs[1]).pixels, pixels(made[4].rungs[1]).pixels)  # noise


def test_a_target_without_references_has_ladders_where_rank_aligns_it(manifest: Manifest) -> None:
    plain = replace(manifest, rows=tuple(replace(row, reference=False) for row in manifest.rows))
    recipe = teaching(replace(RECIPES["unsupervised"], alignment=ALIGNMENTS["rank"]), ladders=0.0)
    made = read_material({"source": manifest, "target": plain}, recipe, seed=0).ladders
    assert [ladder.side for ladder in made] == ["target"] * 4 * len(plain.rows)


def test_a_cache_reads_each_file_once_and_gives_what_the_task_would_make(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, recipe = SAQM(TINY, seed=0), teaching(RECIPES["pooled"], features="32", ladders=0.3)
    recipe = replace(recipe, architecture=TINY)
    sides: dict[Side, Manifest] = {"source": manifest, "target": manifest}
    cache = Cache(network, recipe)
    plain, cached = (read_material(sides, recipe, seed=0, look=look) for look in (None, cache))
    wanted, found = (OpinionTask(network, one.samples, one.ladders[:4], recipe) for one in (plain, cached))
    for ours, theirs in zip(
        [*found.inputs, *(r for ladder in found.ladders for r in ladder)],
        [*wanted.inputs, *(r for ladder in wanted.ladders for r in ladder)],
        strict=True,
    ):
        assert isinstance(ours, torch.Tensor)
        assert isinstance(theirs, torch.Tensor)
        torch.testing.assert_close(ours, theirs)
    path = manifest.rows[0].path
    image = pixels(plain.samples[0].image)
    assert predict(network, cache.for_scoring(path), recipe.preparation) == pytest.approx(
        predict(network, image, recipe.preparation), abs=1e-6
    )
    monkeypatch.setattr(Features, "__call__", None)  # nothing is computed again
    assert cache(path) is cached.samples[0].image


def test_a_file_that_cannot_be_read_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"1\.png"):
        read_samples(manifest, manifest.rows)
