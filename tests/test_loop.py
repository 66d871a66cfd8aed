"""The loop: a stopped run goes on bit for bit, a run that blows up stops and says what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from torch import Tensor, nn

from saqm import loop
from saqm.errors import MissingExtra, TrainingError
from saqm.loop import WARM_UP_STEPS, Group, Log, LoopConfig, Step, fit, save_curve

STEPS = 12
CONFIG = LoopConfig(
    learning_rate=1e-2, optimiser="adamw", weight_decay=1e-2, schedule="one-cycle", clip_norm=1.0, checkpoint_every=3
)


class Line:
    """Noisy points of a line, with a normalisation whose running statistics must be kept as well."""

    def __init__(self, steps: int = STEPS, spoil: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None):
        torch.manual_seed(11)  # the start is the task's own, whatever the run's seed
        self.module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.steps = steps
        self.spoil = spoil or (lambda step, loss, features: (loss, features))  # noqa: ARG005

    def parameters(self) -> list[Group]:
        return [Group(list(self.module.parameters()))]

    def loss(self, step: int, rng: np.random.Generator) -> Step:
        x = torch.from_numpy(rng.standard_normal((16, 3), np.float32))
        features = self.module[:3](x)
        loss = (self.module[3](features)[:, 0] - x.sum(1)).square().mean()
        loss, features = self.spoil(step, loss, features)
        return Step(loss, features, {"twice": 2 * float(loss.detach())})


class Stopped(Exception):
    """The power went."""


def stop_after(steps: int) -> Callable[[int, int, Mapping[str, float]], None]:
    def on_step(step: int, of: int, logs: Mapping[str, float]) -> None:  # noqa: ARG001
        if step == steps:
            raise Stopped

    return on_step


def weights(task: Line) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in task.module.state_dict().items()}


def taught(folder: Path | None = None, seed: int = 5, config: LoopConfig = CONFIG) -> tuple[dict[str, bytes], Log]:
    task = Line()
    log = fit(task, config, seed=seed, folder=folder)
    return weights(task), log


def without_seconds(path: Path) -> Log:
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in path.read_text().splitlines()
    ]


# Seeds and resuming


def test_loss_falls_and_every_step_is_logged_and_told() -> None:
    told: list[tuple[int, int]] = []
    task = Line(steps=150)
    log = fit(task, CONFIG, seed=1, on_step=lambda step, of, logs: told.append((step, of)))  # noqa: ARG005
    assert np.mean([entry["loss"] for entry in log[-10:]]) < 0.3 * np.mean([entry["loss"] for entry in log[:10]])
    assert told == [(step, 150) for step in range(1, 151)]
    assert [entry["step"] for entry in log] == list(range(150))
    assert all(entry["twice"] == 2 * entry["loss"] for entry in log)
    assert all(0 <= entry["dead_units"] <= 1 for entry in log)


def test_same_seed_same_bits_other_seed_other() -> None:
    assert taught() == taught()
    assert taught(seed=6)[0] != taught()[0]


def test_a_folder_changes_no_bit(tmp_path: Path) -> None:
    assert taught(tmp_path / "run") == taught()
    assert without_seconds(tmp_path / "run" / "log.jsonl") == taught()[1]


@pytest.mark.parametrize("steps", [1, 3, 4, 8, 11])  # before the first checkpoint, on one, between two
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, steps: int) -> None:
    with pytest.raises(Stopped):
        fit(Line(), CONFIG, seed=5, folder=tmp_path, on_step=stop_after(steps))
    assert taught(tmp_path) == taught()
    assert without_seconds(tmp_path / "log.jsonl") == taught()[1]


def test_a_run_stopped_twice_goes_on(tmp_path: Path) -> None:
    for steps in (4, 8):
        with pytest.raises(Stopped):
            fit(Line(), CONFIG, seed=5, folder=tmp_path, on_step=stop_after(steps))
    assert taught(tmp_path) == taught()


def test_a_finished_run_is_read_not_done_again(tmp_path: Path) -> None:
    finished = taught(tmp_path)
    task = Line()
    log = fit(task, CONFIG, seed=5, folder=tmp_path, on_step=stop_after(1))  # would stop if a step were done
    assert (weights(task), log) == finished


def test_what_a_dying_process_left_does_not_hurt(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(Line(), CONFIG, seed=5, folder=tmp_path, on_step=stop_after(8))  # checkpoint at 6, two lines more
    with (tmp_path / "log.jsonl").open("a") as journal:
        journal.write('{"step": 8, "loss": 0.')  # cut off in the middle
    (tmp_path / "checkpoint.safetensors.part").write_bytes(b"half a checkpoint")
    assert taught(tmp_path) == taught()
    assert without_seconds(tmp_path / "log.jsonl") == taught()[1]
    assert not (tmp_path / "checkpoint.safetensors.part").exists()


@pytest.mark.parametrize(
    ("seed", "config"), [(6, CONFIG), (5, replace(CONFIG, learning_rate=2e-2)), (5, replace(CONFIG, clip_norm=None))]
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, seed: int, config: LoopConfig) -> None:
    taught(tmp_path)
    with pytest.raises(TrainingError, match=r"checkpoint.safetensors is of a run with another configuration; choose"):
        taught(tmp_path, seed, config)


def test_a_run_from_before_momentum_was_a_choice_goes_on(tmp_path: Path) -> None:
    taught(tmp_path)
    with safetensors.safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        mark = json.loads(file.metadata()["configuration"])
    assert mark.keys() == {
        "learning_rate", "optimiser", "weight_decay", "schedule", "clip_norm", "precision", "accelerator", "devices",
        "checkpoint_every", "seed", "steps",
    }  # fmt: skip
    with pytest.raises(TrainingError, match="another configuration"):
        taught(tmp_path, config=replace(CONFIG, momentum=0.5))


def test_what_else_marks_a_run_is_minded(tmp_path: Path) -> None:
    fit(Line(), CONFIG, seed=5, folder=tmp_path, also={"alignment": {"weight": 1.0}})
    fit(Line(), CONFIG, seed=5, folder=tmp_path, also={"alignment": {"weight": 1.0}})
    for other in ({"alignment": {"weight": 2.0}}, None):
        with pytest.raises(TrainingError, match="another configuration"):
            fit(Line(), CONFIG, seed=5, folder=tmp_path, also=other)


# Groups


class Grouped(Line):
    """The last layer at a pace of its own."""

    def __init__(self, pace: float, spoil: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None):
        super().__init__(spoil=spoil)
        self.pace = pace

    def parameters(self) -> list[Group]:
        return [Group(list(self.module[:3].parameters())), Group(list(self.module[3].parameters()), self.pace)]


def test_a_group_is_taught_at_its_pace() -> None:
    one = replace(CONFIG, optimiser="adam", weight_decay=0, clip_norm=None, schedule="constant")
    moved = []
    for pace in (1.0, 3.0):
        task = Grouped(pace)
        before = [parameter.detach().clone() for parameter in task.module.parameters()]
        with pytest.raises(Stopped):
            fit(task, one, seed=5, on_step=stop_after(1))
        moved.append([float((p.detach() - b).norm()) for p, b in zip(task.module.parameters(), before, strict=True)])
    assert moved[1][:4] == moved[0][:4]
    assert moved[1][4:] == pytest.approx([3 * distance for distance in moved[0][4:]], rel=1e-4)


def test_groups_are_clipped_apart() -> None:
    """A group with a huge gradient takes nothing from another's."""
    sgd = replace(CONFIG, optimiser="adam", weight_decay=0, clip_norm=0.5, schedule="constant")
    found = []
    for grouped in (True, False):
        task = Grouped(1.0) if grouped else Line()
        with pytest.raises(Stopped):
            fit(task, sgd, seed=5, on_step=stop_after(1))
        found.append([float(p.grad.norm()) for p in task.module.parameters() if p.grad is not None])
    norms = [float(np.linalg.norm(found[0][:4])), float(np.linalg.norm(found[0][4:])), float(np.linalg.norm(found[1]))]
    assert norms == pytest.approx([0.5, 0.5, 0.5], rel=1e-3)


def test_a_grouped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, stopped = Grouped(3.0), Grouped(3.0)
    fit(whole, CONFIG, seed=5)
    with pytest.raises(Stopped):
        fit(stopped, CONFIG, seed=5, folder=tmp_path, on_step=stop_after(8))
    again = Grouped(3.0)
    fit(again, CONFIG, seed=5, folder=tmp_path)
    assert weights(again) == weights(whole)


def test_a_checkpoint_of_another_length_is_refused(tmp_path: Path) -> None:
    taught(tmp_path)
    with pytest.raises(TrainingError, match="another configuration"):
        fit(Line(steps=STEPS + 1), CONFIG, seed=5, folder=tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    taught(tmp_path)
    other = Line()
    other.module[3] = nn.Linear(8, 2)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is of a run with another network"):
        fit(other, CONFIG, seed=5, folder=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    taught(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: is no whole checkpoint .* remove it"):
        taught(tmp_path)


@pytest.mark.parametrize("lines", [None, 5])
def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path, lines: int | None) -> None:
    taught(tmp_path)
    log = tmp_path / "log.jsonl"
    kept = log.read_text().splitlines(keepends=True)[:lines]
    log.unlink()
    if lines is not None:
        log.write_text("".join(kept))
    with pytest.raises(TrainingError, match=rf"log\.jsonl has {lines or 0} of the 12 steps .*; remove both"):
        taught(tmp_path)


def test_a_task_without_steps_is_refused() -> None:
    with pytest.raises(TrainingError, match="0 steps teach nothing"):
        fit(Line(steps=0), CONFIG, seed=5)


# Runs that blow up


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(bad: float) -> None:
    task = Line(spoil=lambda step, loss, features: (loss * (bad if step == 4 else 1), features))
    with pytest.raises(TrainingError, match=rf"step 4: the loss is {bad}; lower the learning rate, set clip_norm"):
        fit(task, CONFIG, seed=5)


def test_a_bad_loss_leaves_the_weights_of_the_step_before() -> None:
    sound = Line(steps=STEPS)
    with pytest.raises(Stopped):
        fit(sound, CONFIG, seed=5, on_step=stop_after(4))
    task = Line(spoil=lambda step, loss, features: (loss * (float("nan") if step == 4 else 1), features))
    with pytest.raises(TrainingError, match="step 4"):
        fit(task, CONFIG, seed=5)
    for (name, ours), theirs in zip(task.module.named_parameters(), sound.module.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("step", [3, WARM_UP_STEPS + 2])
def test_exploding_features_stop_the_run(step: int) -> None:
    def spoil(at: int, loss: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return loss, features * (1e5 if at == step else 1)

    with pytest.raises(TrainingError, match=rf"step {step}: features explode .* times that of the first steps.*norm="):
        fit(Line(steps=30, spoil=spoil), CONFIG, seed=5)


def test_dead_features_that_explode_stop_the_run() -> None:
    task = Line(spoil=lambda at, loss, features: (loss, features * (0 if at < 5 else 1)))
    with pytest.raises(TrainingError, match=r"step 5: features explode .*inf times"):
        fit(task, CONFIG, seed=5)


def test_features_may_grow_twentyfold() -> None:
    fit(Line(spoil=lambda at, loss, f: (loss, f * (20 if at > 8 else 1))), CONFIG, seed=5)


def test_the_measure_of_growth_outlives_a_stop(tmp_path: Path) -> None:
    def spoil(at: int, loss: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return loss, features * (1e5 if at >= 6 else 1)

    with pytest.raises(Stopped):
        fit(Line(spoil=spoil), CONFIG, seed=5, folder=tmp_path, on_step=stop_after(6))
    with pytest.raises(TrainingError, match="step 6: features explode"):
        fit(Line(spoil=spoil), CONFIG, seed=5, folder=tmp_path)


# Machine and precision


@pytest.mark.parametrize("precision", ["32", "auto", "bf16"])
def test_cuda_where_there_is_none_is_refused(precision: loop.Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"accelerator='cuda' was asked for and there is none here.*'cpu'"):
        fit(Line(), replace(CONFIG, accelerator="cuda", precision=precision), seed=5)


def test_bf16_is_refused_where_its_trial_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bf16_pays", lambda: False)
    with pytest.raises(
        TrainingError, match=r"precision='bf16': .*no instructions.*a trial.*failed; use precision='32'"
    ):
        taught(config=replace(CONFIG, precision="bf16"))


def test_auto_falls_back_to_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bf16_pays", lambda: False)
    assert taught(config=replace(CONFIG, precision="auto")) == taught()


def test_full_precision_asks_for_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial() -> bool:
        raise AssertionError("a child process was started for nothing")

    monkeypatch.setattr(loop, "bf16_pays", trial)
    taught()


def test_a_child_killed_by_its_kernels_is_no_survivor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\nkill -ILL $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    monkeypatch.setattr(loop, "computes_bf16", lambda: True)
    assert not loop.bf16_pays.__wrapped__()  # past what this process remembers


def test_a_processor_without_instructions_for_bf16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial would come through: torch emulates them, far slower than in 32 bits."""

    def trial(*_: object, **__: object) -> None:
        raise AssertionError("a child process was started for nothing")

    monkeypatch.setattr(loop, "refusal", trial)
    monkeypatch.setattr(loop, "computes_bf16", lambda: False)
    assert not loop.bf16_pays.__wrapped__()


def test_without_lightning_training_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(MissingExtra, match=r"lightning.*saqm\[train\]"):
        taught()


# Schedule and curve


def test_constant_schedule_is_constant() -> None:
    rates = {entry["learning_rate"] for entry in taught(config=replace(CONFIG, schedule="constant"))[1]}
    assert rates == {CONFIG.learning_rate}


def test_one_cycle_rises_for_three_tenths_and_falls_to_nearly_nothing() -> None:
    log = fit(Line(steps=100), CONFIG, seed=5)
    rates = np.array([entry["learning_rate"] for entry in log]) / CONFIG.learning_rate
    assert rates[0] == pytest.approx(0.04)
    assert rates[30] == rates.max() == pytest.approx(1)
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()
    assert 0 < rates[-1] < 0.001


def test_curve_is_a_picture_that_grows_with_its_keys(tmp_path: Path) -> None:
    log = taught()[1]
    save_curve(log, tmp_path / "one.png")
    save_curve(log, tmp_path / "two.png", keys=("loss", "twice"))
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.format == two.format == "PNG"
        assert (two.width, two.height) == (one.width, 2 * one.height)
        assert len(np.unique(np.asarray(one.convert("L")))) > 10  # something is drawn


def test_curve_without_matplotlib_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*saqm\[plot\]"):
        save_curve(taught()[1], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
