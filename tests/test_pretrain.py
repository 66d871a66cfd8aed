"""Dense labels: they mean what they say, and the towers learn them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from saqm.degradations import DEGRADATIONS
from saqm.errors import NotScorable, TrainingError
from saqm.image import Image, from_array
from saqm.loop import LoopConfig, described
from saqm.network import Architecture
from saqm.patches import MARGIN, Preparation, planes
from saqm.pretrain import (
    DIFFERENCES,
    RADIAL_BANDS,
    STATISTICS,
    PretrainConfig,
    PretrainTask,
    Version,
    band_planes,
    differences,
    judged_corners,
    network_input,
    pretrain,
    statistics,
)

SIDE = 32 + 2 * MARGIN
TINY = Architecture(width=1 / 64, trunks="shared", norm="batch", pool="mean-max", hidden=(8,))
CONFIG = PretrainConfig(
    architecture=TINY, loop=LoopConfig(learning_rate=3e-3), steps=40, images_per_step=8, windows_per_image=4,
    degraded=0.0, blended=0.0,
)  # fmt: skip


def picture(seed: int, height: int = 60, width: int = 72, sigma: float = 1.0, sd: float = 20.0) -> NDArray[np.float32]:
    """Texture of the given softness, on 0..255."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), sigma)
    return np.asarray(np.clip(120 + sd * field / field.std(), 0, 255), np.float32)


def image(grey: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> Image:
    return from_array(grey, value_range=(0, 255), mask=mask)


def noises(sigma: float, sd: float, count: int = 24) -> Tensor:
    """Windows with their margin of noise blurred by sigma, around 120; standard deviation kept."""
    fields = np.random.default_rng(0).standard_normal((count, SIDE, SIDE))
    fields = ndimage.gaussian_filter(fields, (0, sigma, sigma))
    return torch.from_numpy((120 + sd * fields / fields.std()).astype(np.float32))


def labels(windows: Tensor) -> Tensor:
    return statistics(windows, band_planes(windows)).mean(0)


def of_band(statistics_S: Tensor, band: int) -> Tensor:
    """Log sd, log tails, skew and four neighbour products of one band: 0 fine, 1 middle, 2 shade."""
    start = RADIAL_BANDS + 7 * band
    return statistics_S[start : start + 7]


# Windows


def test_windows_of_pre_training_are_those_of_scoring() -> None:
    grey = picture(1)
    whole = planes(image(grey), Preparation())
    padded = torch.from_numpy(np.pad(grey, MARGIN, mode="edge"))
    corners = [(6, 8), (14, 20), (MARGIN, MARGIN), (60 - 32 - MARGIN, 72 - 32 - MARGIN)]  # no border within the margin
    windows = torch.stack([padded[top : top + SIDE, left : left + SIDE] for top, left in corners])
    made = network_input(band_planes(windows)).numpy()
    for window, (top, left) in zip(made, corners, strict=True):
        np.testing.assert_allclose(
            window, whole[:, top : top + 32, left : left + 32], rtol=0, atol=3e-5
        )  # float32 at 255


def test_network_input_is_four_dimensional_and_channels_last() -> None:
    made = network_input(band_planes(noises(1, 10, count=3)))
    assert made.shape == (3, 3, 32, 32)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_corners_lie_inside_the_mask() -> None:
    mask = np.zeros((80, 90), bool)
    mask[10:70, 20:85] = True
    corners = judged_corners(image(picture(1, 80, 90), mask), Preparation(min_coverage=1.0), stride=8)
    assert len(corners)
    assert all(mask[top : top + 32, left : left + 32].all() for top, left in corners)
    assert judged_corners(image(picture(1, 31, 90)), Preparation(), stride=8).shape == (0, 2)
    assert not len(judged_corners(image(picture(1, 80, 90), np.zeros((80, 90), bool)), Preparation(), stride=8))


# Statistics


def test_statistics_and_differences_have_their_columns() -> None:
    windows = noises(1, 10, count=5)
    bands = band_planes(windows)
    assert (STATISTICS, DIFFERENCES) == (42, 9)
    assert statistics(windows, bands).shape == (5, 42)
    assert differences(bands, bands).shape == (5, 9)


def test_statistics_of_a_flat_window_are_finite() -> None:
    flat = torch.full((2, SIDE, SIDE), 77.0)
    bands = band_planes(flat)
    assert statistics(flat, bands).isfinite().all()
    assert differences(bands, bands).isfinite().all()


def test_blurred_noise_has_less_fine_detail_and_neighbours_that_agree() -> None:
    white, soft = labels(noises(0, 10)), labels(noises(1.5, 10))
    assert of_band(soft, 0)[0] < of_band(white, 0)[0] - 1  # log sd of the fine band
    assert (of_band(soft, 0)[3:] > of_band(white, 0)[3:]).all()  # products with four neighbours
    assert of_band(soft, 2)[0] > of_band(white, 2)[0] + 0.5  # what is left is shading
    assert (soft[RADIAL_BANDS + 21 :] < white[RADIAL_BANDS + 21 :]).all()  # every percentile of the gradient


def test_white_noise_has_the_same_power_in_every_ring_and_blur_takes_the_outer() -> None:
    white, soft = labels(noises(0, 10))[:RADIAL_BANDS], labels(noises(1.5, 10))[:RADIAL_BANDS]
    assert white[1:].max() - white[1:].min() < 0.5
    assert (soft[1:].diff()[:6] < 0).all()
    assert soft[-1] < white[-1] - 3


@pytest.mark.parametrize("band", [0, 1, 2])
def test_twice_the_contrast_is_one_log_two_more(band: int) -> None:
    once, twice = of_band(labels(noises(0.7, 10)), band), of_band(labels(noises(0.7, 20)), band)
    assert float(twice[0] - once[0]) == pytest.approx(np.log(2), abs=0.01)
    torch.testing.assert_close(once[1:], twice[1:], atol=0.02, rtol=0)  # shape of the values, not their size


def test_spikes_have_heavy_tails_and_their_skew() -> None:
    spikes = noises(0, 2)
    spikes[:, ::7, ::7] += 100
    plain, bright, dark = (of_band(labels(windows), 0) for windows in (noises(0, 2), spikes, 240 - spikes))
    assert bright[1] > plain[1] + 0.5
    assert bright[2] > 0.5
    assert dark[2] < -0.5
    assert abs(plain[2]) < 0.2


def test_statistics_do_not_hang_on_the_level() -> None:
    windows = noises(0.7, 10)
    torch.testing.assert_close(labels(windows), labels(windows + 40), atol=2e-3, rtol=0)


def test_margin_is_seen_by_the_bands_alone() -> None:
    windows = noises(0.7, 10)
    changed = windows.clone()
    changed[:, :MARGIN] = 0
    same = statistics(windows, band_planes(windows)) == statistics(changed, band_planes(changed))
    assert same[:, :RADIAL_BANDS].all()
    assert same[:, RADIAL_BANDS + 21 :].all()


# Differences


def test_a_window_is_no_different_from_itself() -> None:
    bands = band_planes(noises(0.7, 10))
    distance, energy, correlation = differences(bands, bands).reshape(-1, 3, 3).unbind(2)
    assert (distance == torch.log(torch.tensor(0.1))).all()  # the least there is
    torch.testing.assert_close(energy, torch.zeros_like(energy))
    torch.testing.assert_close(correlation, torch.ones_like(correlation))


def test_noise_adds_energy_and_blur_takes_it() -> None:
    clean = noises(1.0, 20)
    noisy = clean + noises(0, 15).flip(0) - 120
    soft = torch.from_numpy(ndimage.gaussian_filter(clean.numpy(), (0, 1.5, 1.5)))

    def fine(windows: Tensor) -> Tensor:
        return differences(band_planes(windows), band_planes(clean)).mean(0)[:3]

    same, with_noise, blurred = fine(clean), fine(noisy), fine(soft)
    assert same[0] < min(with_noise[0], blurred[0])
    assert blurred[1] < -0.5 < same[1] < 0.5 < with_noise[1]
    assert max(with_noise[2], blurred[2]) < 0.9


def test_the_shade_s_level_is_no_difference() -> None:
    clean = noises(1.0, 20)
    lifted = differences(band_planes(clean + 30), band_planes(clean))
    torch.testing.assert_close(lifted, differences(band_planes(clean), band_planes(clean)), atol=1e-3, rtol=0)


# The task


def versions(scenes: int = 3) -> list[Version]:
    """Per scene a reference, a noisy and a blurred version, by makers of one domain."""
    made = []
    for scene in range(scenes):
        clean = picture(scene)
        rng = np.random.default_rng(scene)
        for maker in ("clean", "noise", "blur"):
            grey = clean if maker == "clean" else DEGRADATIONS[maker](clean, 2.0 if maker == "blur" else 15.0, rng)
            made.append(Version(image(grey), f"scene {scene}", f"made {maker}", maker == "clean"))
    return made


Drawn = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(learnt: Sequence[Version], seed: int = 0, **changes: float) -> Drawn:
    task = PretrainTask(learnt, replace(CONFIG, **changes), seed=0)  # type: ignore[arg-type]
    return task._draw(np.random.default_rng(seed))


def test_each_window_comes_with_the_same_window_of_its_scene_s_reference() -> None:
    window, twin, has_twin, maker = drawn(versions())
    assert window.shape == twin.shape == (32, SIDE, SIDE)
    assert has_twin.all()
    assert set(maker.tolist()) == {0, 1, 2}  # blur, clean, noise
    distance = (window - twin).square().mean((1, 2))
    assert (distance[maker == 1] == 0).all()
    assert (distance[maker != 1] > 1).all()
    for pair in zip(window.flatten(1), twin.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.4  # another place, or another mirroring, would have none


def test_twin_of_another_size_is_refused() -> None:
    odd = Version(image(picture(0, 60, 73)), "scene 0", "made noise")
    with pytest.raises(TrainingError, match="its twin has another size; twins must be registered"):
        PretrainTask([*versions(1), odd], CONFIG, seed=0)


def test_only_bands_of_32_are_taught() -> None:
    with pytest.raises(TrainingError, match="use channels='bands', patch=32"):
        PretrainTask(versions(1), replace(CONFIG, preparation=Preparation(channels="gray")), seed=0)


def test_images_without_a_judged_window_are_left_out() -> None:
    small, masked = image(picture(8, 31, 90)), image(picture(9), np.zeros((60, 72), bool))
    task = PretrainTask([Version(small), *versions(1), Version(masked)], CONFIG, seed=0)
    other = PretrainTask(versions(1), CONFIG, seed=0)
    for ours, theirs in zip(task._draw(np.random.default_rng(0)), other._draw(np.random.default_rng(0)), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(NotScorable, match="none of 2 images has a judged window to learn from"):
        PretrainTask([Version(small), Version(masked)], CONFIG, seed=0)


def test_an_image_without_scene_has_no_twin_and_without_maker_no_class() -> None:
    window, twin, has_twin, maker = drawn([Version(image(picture(0))), Version(image(picture(1)), reference=True)])
    assert not has_twin.any()
    assert (maker == -1).all()
    assert torch.equal(window, twin)


def test_images_of_unknown_makers_teach_no_makers() -> None:
    known = [Version(v.image, v.scene, None, v.reference) for v in versions()]
    task = PretrainTask(known, CONFIG, seed=0)
    logs = task.loss(0, np.random.default_rng(0)).logs
    assert "makers" not in logs
    assert logs["differences"] > 0
    assert task.module["maker"].weight.shape[0] == 1  # type: ignore[index]


def test_degraded_copies_have_their_original_as_twin_and_no_maker() -> None:
    alone = [Version(image(picture(seed)), None, "made clean") for seed in range(4)]
    window, twin, has_twin, maker = drawn(alone, degraded=0.5)
    copies = (window != twin).flatten(1).any(1)
    assert 4 < copies.sum() < 28
    assert has_twin[copies].all()
    assert (maker[copies] == -1).all()
    plain = ~has_twin
    assert torch.equal(window[plain], twin[plain])
    assert (maker[plain] == 0).all()


def test_blends_lie_between_two_versions_and_have_no_maker() -> None:
    window, twin, has_twin, maker = drawn(versions(), blended=1.0)
    assert (maker == -1).all()
    assert has_twin.all()
    distances = (window - twin).square().mean((1, 2)).tolist()
    assert len({round(distance, 3) for distance in distances if distance > 0}) > 10  # many shares, not three versions


@pytest.mark.parametrize(("weight", "missing"), [("differences", "differences"), ("makers", "makers")])
def test_a_weight_of_nothing_leaves_its_loss_out(weight: str, missing: str) -> None:
    task = PretrainTask(versions(), replace(CONFIG, **{weight: 0.0}), seed=0)  # type: ignore[arg-type]
    step = task.loss(0, np.random.default_rng(0))
    assert missing not in step.logs
    assert "statistics" in step.logs


def test_loss_is_its_parts_by_their_weights() -> None:
    step = PretrainTask(versions(), CONFIG, seed=0).loss(0, np.random.default_rng(0))
    parts = step.logs["statistics"] + 2 * step.logs["differences"] + step.logs["makers"]
    assert float(step.loss.detach()) == pytest.approx(parts, rel=1e-5)
    assert step.features.shape == (32, TINY.features)


def test_task_draws_from_its_generator_alone() -> None:
    for ours, theirs in zip(
        drawn(versions(), 3, degraded=0.3, blended=0.3), drawn(versions(), 3, degraded=0.3, blended=0.3), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not torch.equal(drawn(versions(), 3)[0], drawn(versions(), 4)[0])


def test_heads_are_left_untaught_and_towers_are_not() -> None:
    task = PretrainTask(versions(), replace(CONFIG, steps=2), seed=0)
    before = {name: value.clone() for name, value in task.network.named_parameters()}
    network, log = pretrain(versions(), replace(CONFIG, steps=2), seed=0)
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("heads.") for name in changed)
    assert not network.training
    assert len(log) == 2


def test_without_attention_gamma_stays_nothing_and_all_that_still_counts_is_taught() -> None:
    plain = replace(CONFIG, steps=3, attention=False, loop=replace(CONFIG.loop, optimiser="adamw", weight_decay=0.1))
    before = dict(PretrainTask(versions(), plain, seed=0).network.named_parameters())
    network, _ = pretrain(versions(), plain, seed=0)
    assert float(network.gamma.detach()) == 0.0
    after = dict(network.named_parameters())
    counts = [name for name in after if name.startswith(("trunk.", "value."))]
    assert len(counts) > 10
    assert [name for name in counts if torch.equal(before[name], after[name])] == []
    taught, _ = pretrain(versions(), replace(plain, attention=True), seed=0)
    assert float(taught.gamma.detach()) != 0.0


def test_a_run_with_attention_does_not_go_on_without_and_one_from_before_the_field_does(tmp_path: Path) -> None:
    once = replace(CONFIG, steps=1)
    _, log = pretrain(versions(), once, seed=0, folder=tmp_path)
    assert "attention" not in (tmp_path / "checkpoint.safetensors").read_bytes().decode("latin-1")
    assert "attention" not in described(once)
    with pytest.raises(TrainingError, match="is of a run with another configuration"):
        pretrain(versions(), replace(once, attention=False), seed=0, folder=tmp_path)
    assert pretrain(versions(), once, seed=0, folder=tmp_path)[1] == log


@pytest.mark.slow
def test_towers_learn_the_labels() -> None:
    network, log = pretrain(versions(), replace(CONFIG, degraded=0.2, blended=0.1), seed=0)
    early, late = log[:6], log[-6:]
    for key in ("loss", "statistics", "differences"):
        assert np.mean([e[key] for e in late]) < 0.75 * np.mean([e[key] for e in early]), key
    assert np.mean([e["makers_right"] for e in late]) > 0.6  # chance is a third
    assert network.architecture == TINY
