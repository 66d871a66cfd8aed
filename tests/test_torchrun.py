"""Two processes under torchrun teach what one teaches alone, also when one of them is killed on the way.

This file is what they run, too: `torchrun ... tests/test_torchrun.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from saqm.image import from_array
from saqm.loop import fit
from saqm.network import SAQM, Architecture
from saqm.opinions import Ladder, OpinionTask, Sample
from saqm.pretrain import PretrainConfig, PretrainTask, Version
from saqm.recipes import RECIPES
from saqm.together import normalised_together, of_all, own_share, processes

TINY = Architecture(width=1 / 16, trunks="separate", hidden=(8,))
SLIM = Architecture(width=1 / 16, trunks="shared", norm="batch", pool="mean-max", hidden=(8,))
STEPS = 6
KILLED_AT = 4  # two steps after a checkpoint


def opinions() -> OpinionTask:
    """The whole network, without batch statistics; the loss compares images and ladders, and nothing divides evenly."""
    rng = np.random.default_rng(3)
    pictures = [from_array(rng.integers(0, 60 * (i + 1), (64, 64)).astype(np.uint8)) for i in range(4)]
    paper = RECIPES["paper"]
    teaching = replace(
        paper.teaching, order=1.0, ladders=0.3, images_per_step=3, windows_per_image=3, epochs=STEPS // 2
    )
    teaching = replace(teaching, loop=replace(teaching.loop, checkpoint_every=2))
    samples = [Sample(picture, score, "d") for picture, score in zip(pictures, (0.9, 0.6, 0.4, 0.1), strict=True)]
    recipe = replace(paper, architecture=TINY, teaching=teaching)
    return OpinionTask(SAQM(TINY, seed=1), samples, [Ladder(tuple(pictures[:2]))], recipe, seed=5)


def dense_labels() -> PretrainTask:
    """A network whose batch normalisations see all windows, whoever embeds them."""
    rng = np.random.default_rng(4)
    versions = [Version(from_array(rng.integers(0, 200, (64, 64)).astype(np.uint8)), "s", str(i)) for i in range(3)]
    config = PretrainConfig(SLIM, steps=4, images_per_step=3, windows_per_image=3)
    return PretrainTask(versions, replace(config, loop=replace(config.loop, precision="32")), seed=5)


def teach(folder: Path) -> None:
    """Both tasks; the second process dies once, as if by the kernel's hand."""

    def on_step(step: int, steps: int, logs: Mapping[str, float]) -> None:  # noqa: ARG001
        if step == KILLED_AT and os.environ.get("RANK") == "1" and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    task = opinions()
    fit(task, task.recipe.teaching.loop, seed=5, folder=folder / "opinions", on_step=on_step)
    dense = dense_labels()
    fit(dense, dense.config.loop, seed=5, folder=folder / "dense")
    (folder / f"rank{os.environ.get('RANK', '0')}").write_text(str(processes()))


def kept(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    state = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    return log, {name: value for name, value in state.items() if name.startswith("module.")}


@pytest.mark.slow
def test_two_processes_one_of_them_killed_teach_what_one_teaches_alone(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*command, __file__, str(together)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (together / "killed").exists()
    assert [(together / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    teach(alone)
    for what, steps in (("opinions", STEPS), ("dense", 4)):
        (log, weights), (wanted_log, wanted) = kept(together / what), kept(alone / what)
        assert [entry["step"] for entry in log] == list(range(steps))
        for name in ("loss", "feature_norm"):
            found, expected = ([entry[name] for entry in one] for one in (log, wanted_log))
            assert found[0] == pytest.approx(expected[0], rel=1e-5)  # then Adam makes much of rounding
            assert found == pytest.approx(expected, rel=2e-3), name
        if what == "opinions":  # a bias before a normalisation changes nothing, so Adam moves it by rounding alone
            torch.testing.assert_close(weights, wanted, rtol=1e-3, atol=1e-4)


# Alone, nothing is shared


def test_alone_a_process_has_all_windows_and_its_norms_are_torchs() -> None:
    windows, norm = torch.randn(5, 3, 8, 8), nn.BatchNorm2d(3)
    assert processes() == 1
    assert own_share(windows) is windows
    assert of_all(windows, 5) is windows
    with normalised_together(norm):
        assert "forward" not in vars(norm)


if __name__ == "__main__":
    teach(Path(sys.argv[1]))
