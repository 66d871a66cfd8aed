"""How fast the network is taught: each measure by itself against a plain loop, and all of them in the loop of saqm.

    python benchmarks/train_speed.py [--out benchmarks/results] [--rounds 5] [--threads 2] [--quick]

The plain loop is what one would write first: float32, three separate towers, pictures prepared and cut anew in every
step, Adam. The pictures are noise: speed does not depend on what is in them. The arms take turns, so that a busy
machine slows them alike; the median of their steps counts. Memory per patch is the growth of a process's peak from one
batch size to the next, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from provenance import RESULTS, commit, processor
from scale import DOCS, fill

from saqm.frozen import DENSE_STRIDE
from saqm.image import Image, from_array
from saqm.loop import LoopConfig, bf16_pays, fit
from saqm.network import SAQM, Architecture
from saqm.opinions import OpinionTask, Sample
from saqm.patches import Preparation, cut, planes
from saqm.recipes import PAPER, SLIM, Recipe

PICTURES, SIDE = 16, 256
WINDOWS_EACH = 4  # of an image in a step, as in the paper's recipe
LEAST_GROWTH = 100e6  # bytes; less is lost in what a process takes to start
LEARNING_RATE = 5e-4  # the paper's; speed does not depend on it


@dataclass(frozen=True)
class Arm:
    """What differs from the plain loop."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    shared: bool = False
    cached: bool = False


ALONE = (
    Arm("plain loop"),
    Arm("bf16", bf16=True),
    Arm("channels last", channels_last=True),
    Arm("one shared trunk", shared=True),
    Arm("pictures prepared once", cached=True),
)
TOGETHER = Arm("all of them", bf16=True, channels_last=True, shared=True, cached=True)
LOOP_AS_PLAIN = "saqm's loop, separate towers, float32"
LOOP_SHARED = "saqm's loop, one trunk, float32"
LOOP_FAST = "saqm's loop, one trunk, bf16"
HEADS = "saqm's loop, heads alone on frozen towers (the default recipe)"
SIZES = {"width 3/16, as shipped": (3 / 16, 8), "width 1, as in the paper": (1.0, 2)}  # width, images a step


def pictures() -> list[Image]:
    rng = np.random.default_rng(0)
    return [from_array(rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)) for _ in range(PICTURES)]


def architecture(width: float, shared: bool) -> Architecture:
    return replace(PAPER.architecture, width=width, trunks="shared" if shared else "separate")


def plain_step(arm: Arm, width: float, images: int) -> Callable[[], None]:
    """A step of the plain loop with the measures of an arm."""
    network = SAQM(architecture(width, arm.shared), seed=0)
    if arm.channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    rng, shown, preparation = np.random.default_rng(1), pictures(), Preparation()
    kept = [cut(image, preparation, stride=8) for image in shown] if arm.cached else []

    def windows(index: int) -> torch.Tensor:
        if arm.cached:
            return torch.from_numpy(kept[index].take(rng.integers(len(kept[index]), size=WINDOWS_EACH)))
        made = planes(shown[index], preparation)
        corners = rng.integers(SIDE - preparation.patch, size=(WINDOWS_EACH, 2))
        side = preparation.patch
        return torch.from_numpy(np.stack([made[:, r : r + side, c : c + side] for r, c in corners]))

    def step() -> None:
        batch = torch.cat([windows(index) for index in rng.integers(PICTURES, size=images)])
        if arm.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        truth = torch.rand(len(batch))
        with torch.autocast("cpu", torch.bfloat16) if arm.bf16 else nullcontext():
            logit = network(batch).logit[:, 0]
        loss = F.binary_cross_entropy_with_logits(logit.float(), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def recipe(width: float, images: int, *, shared: bool, bf16: bool) -> Recipe:
    loop = LoopConfig(learning_rate=LEARNING_RATE, precision="bf16" if bf16 else "32")
    teaching = replace(PAPER.teaching, loop=loop, images_per_step=images, windows_per_image=WINDOWS_EACH)
    return replace(PAPER, architecture=architecture(width, shared), preparation=Preparation(), teaching=teaching)


def loop_seconds(chosen: Recipe, network: SAQM, steps: int) -> list[float]:
    """The seconds that the loop itself notes of each step but the first."""
    rng = np.random.default_rng(2)
    samples = [Sample(image, float(rng.random()), "d") for image in pictures()]
    per_epoch = -(-len(samples) // chosen.teaching.images_per_step)
    teaching = replace(chosen.teaching, epochs=-(-(steps + 1) // per_epoch))
    task = OpinionTask(network, samples, [], replace(chosen, teaching=teaching), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        fit(task, teaching.loop, seed=0, folder=Path(folder))
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines][1 : steps + 1]


def speeds(width: float, images: int, rounds: int) -> dict[str, float]:
    """Median patches a second of every arm; the arms take turns."""
    usable = [arm for arm in (*ALONE, TOGETHER) if not arm.bf16 or bf16_pays()]
    steps = {arm.name: plain_step(arm, width, images) for arm in usable}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    loops = {
        LOOP_AS_PLAIN: recipe(width, images, shared=False, bf16=False),
        LOOP_SHARED: recipe(width, images, shared=True, bf16=False),
    }
    if bf16_pays():
        loops[LOOP_FAST] = recipe(width, images, shared=True, bf16=True)
    for step in steps.values():
        step()  # to warm up
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
        for name, chosen in loops.items():
            network = SAQM(chosen.architecture, seed=0)
            seconds.setdefault(name, []).extend(loop_seconds(chosen, network, 1))
    patches = images * WINDOWS_EACH
    return {name: patches / statistics.median(taken) for name, taken in seconds.items()}


def heads_speed(steps: int) -> float:
    """Patches a second of the default recipe, whose features are made once; making them is left out here."""
    teaching = replace(PAPER.teaching, trains="heads", loss="smooth-l1", level="image", images_per_step=16)
    teaching = replace(teaching, windows_per_image=96)
    chosen = replace(PAPER, architecture=SLIM, preparation=Preparation(), teaching=teaching)
    return 16 * 96 / statistics.median(loop_seconds(chosen, SAQM(SLIM, seed=0), steps))


def memory_child(name: str, width: float, images: int) -> None:
    """Print this process's peak in bytes after a step of an arm."""
    arm = next(arm for arm in (*ALONE, TOGETHER) if arm.name == name)
    plain_step(arm, width, images)()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def peak(name: str, width: float, images: int) -> int:
    """Bytes that a fresh process takes at most for a step of an arm."""
    command = [sys.executable, __file__, "--memory", name, str(width), str(images)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory_per_patch(width: float, images: int) -> dict[str, float]:
    """Bytes of peak for each further patch of a step."""
    found = {}
    for arm in (*ALONE, TOGETHER):
        alone = arm.cached and arm is not TOGETHER  # where pictures come from is no matter here
        if alone or (arm.bf16 and not bf16_pays()):
            continue
        for scale in (4, 16):  # where a process's start takes more than the smaller steps, larger ones tell
            counts = (scale * images, 3 * scale * images)
            small, large = (peak(arm.name, width, count) for count in counts)
            if large - small > LEAST_GROWTH:
                found[arm.name] = (large - small) / ((counts[1] - counts[0]) * WINDOWS_EACH)
                break
    return found


def markdown(made: dict[str, Any]) -> str:
    """The tables of docs/scale.md."""
    lines = []
    for size, rows in made["sizes"].items():
        plain = rows["plain loop"]["patches_per_second"]
        lines += [
            f"**{size}**",
            "",
            "| | patches/s | against the plain loop | MB a patch |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, row in rows.items():
            memory = row.get("bytes_per_patch")
            shown = "" if memory is None else f"{memory / 1e6:.2f}"
            speed = row["patches_per_second"]
            lines.append(f"| {name} | {speed:,.1f} | {speed / plain:.2f} | {shown} |")
        lines.append("")
    lines += [
        f"{made['processor']}, {made['threads']} threads, torch {made['torch']}, "
        f"commit {made['commit'][:10]}, load {made['load_average']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write train_speed.json; where that goes to its place, put the tables into docs/scale.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="the shipped width alone")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, width, images = options.memory
        memory_child(name, float(width), int(images))
        return
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for size, (width, images) in SIZES.items():
        if options.quick and width == 1:
            continue
        rows = {name: {"patches_per_second": speed} for name, speed in speeds(width, images, options.rounds).items()}
        for name, memory in memory_per_patch(width, images).items():
            rows[name]["bytes_per_patch"] = memory
        if width < 1:
            rows[HEADS] = {"patches_per_second": heads_speed(20)}
        tables[size] = rows
    made: dict[str, Any] = {
        "commit": commit(),
        "processor": processor(),
        "threads": options.threads,
        "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load_average": round(os.getloadavg()[0], 1),
        "dense_stride": DENSE_STRIDE,
        "bf16_pays": bf16_pays(),
        "sizes": tables,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "train_speed.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    text = markdown(made)
    print(text)
    if options.out == RESULTS:
        fill(DOCS, "train_speed", text)


if __name__ == "__main__":
    main()
