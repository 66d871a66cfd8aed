"""The paper's full network, taught, in every engine and precision: `make full-width` (needs the study; an hour).

To teach the paper's network from scratch takes days on a GPU. Here it is widened from the shipped weights instead: its
channels are copies of the shipped ones, whose outgoing weights share what the one had (Net2WiderNet of Chen et al.,
ICLR 2016), and then every weight of its towers is moved a little at random, so that no two copies stay equal. Its
towers are those of the paper's Table 1; the pooling and the heads are those of the shipped model.

Each slice is judged from the same few windows in every engine. What is judged is kept below runs/wide, and a run that
was stopped goes on. Writes benchmarks/results/full_width.* and the table of docs/engines.md.

    python benchmarks/full_width.py [--images N]     # of the study, in a fixed random order; all by itself
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from engines import agreement, by_form, engines, forms, ranks_changed, written
from evidence import fill
from front import PREPARATION, some_windows
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, commit, processor
from torch import Tensor, nn

from saqm.datasets import ct_reader_study
from saqm.engine import Engine
from saqm.export import load_network
from saqm.image import read_image
from saqm.manifest import Manifest
from saqm.modelfile import DEFAULT_MODEL, open_model
from saqm.network import SAQM, fuse_norms, multiply_accumulates
from saqm.patches import CHUNK, cut, pool
from saqm.scorer import ModelScorer
from saqm.writing import replacing

SEED = 0
WIDTH = 1.0
JITTER = 0.05  # standard deviation of what each weight of the towers is multiplied with, around 1
SAME = 1e-4  # of a score of 0 to 1: how far the widened network may be from the shipped one before it is jittered
WINDOWS = 4  # of each slice
SLICES = CHUNK // WINDOWS  # that share one batch
THINNED = 2  # every which of the windows that int8 is calibrated on
ROUNDED = "torch-bf16, computed in 32 bits"
SHIPPED = "shipped: "
# Every how many batches an engine judges one; those not named judge all. The other two libraries in 32 bits differ
# from ONNX Runtime by the order of sums only, and bfloat16 without the instructions for it takes seconds a window.
SPARE = {"openvino": 8, "torch": 8, "torch-bf16": 24, ROUNDED: 2}

Forward = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]


class Copies(NamedTuple):
    """Which old channel each new one is a copy of, and its share of that one's outgoing weights; both (new,)."""

    of: NDArray[np.int_]
    share: NDArray[np.float32]


def copies(old: int, new: int, rng: np.random.Generator) -> Copies:
    """As many copies of each old channel as of any other, or one more; unequal shares that sum to one."""
    of = rng.permutation(np.arange(new) % old)
    share = rng.uniform(0.5, 1.5, new)
    return Copies(of, (share / np.bincount(of, share)[of]).astype(np.float32))


@torch.no_grad()
def widen(narrow: SAQM, width: float, rng: np.random.Generator) -> SAQM:
    """The same function at a larger width, with three towers in place of one shared trunk and nothing to normalise.

    A copied channel gives what the old one gave, so whatever reads it sums over the copies by their shares. Similarity
    is such a sum over key channels: query and key are copied alike, and the shares are multiplied into the query.
    """
    narrow = fuse_norms(narrow)
    wide = SAQM(replace(narrow.architecture, width=width, trunks="separate", norm="none"), seed=0).eval()
    few, many = narrow.architecture.value_channels, wide.architecture.value_channels
    value = copies(few, many, rng)
    key = copies(len(convolutions(narrow.key)[-1].weight), len(convolutions(wide.key)[-1].weight), rng)
    for name, last in (("query", key), ("key", key), ("value", value)):
        old = convolutions(narrow.trunk) + convolutions(getattr(narrow, name))
        widen_tower(old, convolutions(getattr(wide, name)), last, rng)
    similarity = convolutions(wide.query)[-1]
    for part in (similarity.weight, similarity.bias):
        part.mul_(_shaped(key.share, part))  # a ReLU lets a positive factor through
    parts = wide.architecture.features // many  # of a feature: the mean and the largest, each over all channels
    of = np.concatenate([part * few + value.of for part in range(parts)])
    for old, new in zip(narrow.heads, wide.heads, strict=True):
        weights = old.state_dict()
        first = next(iter(weights))  # the only weight that reads features
        weights[first] = weights[first][:, of] * torch.from_numpy(np.tile(value.share, parts))
        new.load_state_dict(weights)
    wide.gamma.copy_(narrow.gamma)
    return wide


def widen_tower(old: list[nn.Conv2d], new: list[nn.Conv2d], last: Copies, rng: np.random.Generator) -> None:
    """Fill a tower's convolutions with those of a narrower one; its last channels are copies as `last` says."""
    before = Copies(np.arange(old[0].in_channels), np.ones(old[0].in_channels, np.float32))
    for narrow, wide in zip(old, new, strict=True):
        after = last if wide is new[-1] else copies(narrow.out_channels, wide.out_channels, rng)
        weight = narrow.weight[after.of][:, before.of]
        wide.weight.copy_(weight * torch.from_numpy(before.share)[:, None, None])
        wide.bias.copy_(narrow.bias[after.of])
        before = after


def convolutions(part: nn.Module) -> list[nn.Conv2d]:
    """The convolutions, in the order in which they run."""
    return [module for module in part.modules() if isinstance(module, nn.Conv2d)]


def _shaped(values: NDArray[np.float32], like: Tensor) -> Tensor:
    """One value an output channel."""
    return torch.from_numpy(values).reshape(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
def jittered(network: SAQM, by: float, rng: np.random.Generator) -> SAQM:
    """A copy, each weight of its convolutions multiplied with its own factor of mean 1 and standard deviation `by`."""
    moved = copy.deepcopy(network)
    for convolution in convolutions(moved):
        noise = torch.from_numpy(rng.standard_normal(convolution.weight.shape, np.float32))
        convolution.weight.mul_(1 + by * noise)
    return moved


# Engines


class Rounded(nn.Module):
    """A convolution that rounds to bfloat16 what one of bfloat16 rounds, and computes in 32 bits between."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = copy.deepcopy(convolution).bfloat16().float()

    def forward(self, windows: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.convolution(windows.bfloat16().float()).bfloat16()


def rounded(network: SAQM) -> Forward:
    """What torch-bf16 computes, for processors without its instructions: all but the convolutions is torch-bf16."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, Rounded(child))

    @torch.inference_mode()
    def forward(windows_N3PP: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            feature = network.embed(torch.from_numpy(windows_N3PP).contiguous(memory_format=torch.channels_last))
        output = network.judge(feature.float())
        return output.score.numpy(), output.weight.numpy(), output.feature.numpy()

    return forward


def everything(files: dict[str, Path], shipped: dict[str, Path], probe: NDArray[np.float32]) -> dict[str, Engine]:
    """Every engine that runs here for the wide network, and ONNX Runtime for the shipped one beside it."""
    found = engines(files, 1)
    if "openvino-bf16" in found and _same(found["openvino-bf16"], found["openvino"], probe):
        print("openvino-bf16: OpenVINO computes in 32 bits on this processor; left out")
        del found["openvino-bf16"]
    network = load_network(files["safetensors"])[0]
    found[ROUNDED] = replace(found["torch"], name=ROUNDED, forward=rounded(network))
    small = {f"{SHIPPED}{name}": each for name, each in engines(shipped, 1).items() if name in ("onnx", "onnx-int8")}
    return found | small


def _same(one: Engine, other: Engine, probe: NDArray[np.float32]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.run(probe), other.run(probe), strict=True))


# Judging


class Said(NamedTuple):
    """What each engine said, by its name; NaN where it has not been asked.

    outputs: score and weight of each slice's windows, (images, WINDOWS, 2). seconds: a window's, (images,).
    """

    outputs: dict[str, NDArray[np.float32]]
    seconds: dict[str, NDArray[np.float32]]


def judge(manifest: Manifest, found: dict[str, Engine], batches: list[NDArray[np.int_]], kept: Path) -> Said:
    """Ask each engine of the batches of slices that are its own, keeping every answer at once."""
    said = _read(kept, list(found), len(manifest.rows))
    began = time.time()
    for number, batch in enumerate(batches):
        asked = [
            name
            for name, outputs in said.outputs.items()
            if number % SPARE.get(name, 1) == 0 and np.isnan(outputs[batch]).any()
        ]
        if not asked:
            continue
        windows = np.concatenate([spread_windows(manifest.rows[i].path) for i in batch])
        for name in asked:
            start = time.process_time()
            made = found[name].run(windows)
            spent = (time.process_time() - start) / CHUNK  # a batch that is not full costs as much as a full one
            both = np.stack([made.scores_N, made.weights_N], -1)
            said.outputs[name][batch] = both.reshape(len(batch), WINDOWS, 2)
            said.seconds[name][batch] = spent
        _keep(kept, said)
        print(f"{number + 1} of {len(batches)} batches, {time.time() - began:.0f} s", flush=True)
    return said


def spread_windows(path: Path) -> NDArray[np.float32]:
    """A few windows of a slice, evenly over what is judged of it."""
    found = cut(read_image(path), PREPARATION)
    return found.take(((np.arange(WINDOWS) + 0.5) / WINDOWS * len(found)).astype(int))


def _read(kept: Path, names: list[str], images: int) -> Said:
    said = Said(
        {name: np.full((images, WINDOWS, 2), np.nan, np.float32) for name in names},
        {name: np.full(images, np.nan, np.float32) for name in names},
    )
    if kept.is_file():
        with np.load(kept) as file:
            for key in file.files:
                part, name = key.split("/", 1)
                getattr(said, part)[name] = file[key]
    return said


def _keep(kept: Path, said: Said) -> None:
    columns = {f"{part}/{name}": values for part in said._fields for name, values in getattr(said, part).items()}
    with replacing(kept) as beside, beside.open("wb") as file:
        np.savez(file, **columns)


def compared(
    manifest: Manifest, said: Said, percent: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One row an engine, beside ONNX Runtime in 32 bits on the slices that both judged; and wide beside shipped."""
    points = {}
    for name, outputs in said.outputs.items():
        raw = [np.nan if np.isnan(one).any() else pool(one[:, 0], one[:, 1]) for one in outputs]
        points[name] = np.clip(percent(np.array(raw)), 0, 100)
    rows = []
    for name, each in points.items():
        before = points[f"{SHIPPED}onnx" if name.startswith(SHIPPED) else "onnx"]
        index = np.flatnonzero(~np.isnan(each) & ~np.isnan(before))
        if not len(index):
            continue
        those = [manifest.rows[i] for i in index]
        apart = np.abs(each[index] - before[index])
        rows.append(
            {
                "engine": name,
                "images": len(index),
                "seconds_window": float(np.nanmedian(said.seconds[name])),
                "mean_difference": float(apart.mean()),
                "largest_difference": float(apart.max()),
                "srocc": agreement(each[index], those),
                "srocc_change": ranks_changed(each[index], before[index], those),
            }
        )
    both = np.abs(points["onnx"] - points[f"{SHIPPED}onnx"])
    return rows, {"mean": float(np.nanmean(both)), "largest": float(np.nanmax(both))}


def markdown(made: dict[str, Any]) -> str:
    """The table of docs/engines.md."""
    lines = ["| full width, widened | slices | ms a window | mean difference, points | largest | SROCC, change |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
    for row in made["engines"]:
        ranks = ", ".join(f"{name} {change:+.4f}" for name, change in row["srocc_change"].items())
        lines += [
            f"| {row['engine']} | {row['images']} | {1e3 * row['seconds_window']:.3g} | {row['mean_difference']:.3f} "
            f"| {row['largest_difference']:.2f} | {ranks} |"
        ]
    moved, by_engine = made["moved"], {row["engine"]: row for row in made["engines"]}
    ranks = "; ".join(
        f"{name} {wide:.3f}, shipped {by_engine[f'{SHIPPED}onnx']['srocc'][name]:.3f}"
        for name, wide in by_engine["onnx"]["srocc"].items()
    )
    return "\n".join(lines) + (
        f"\n\nWidened from the shipped weights ({made['parameters'] / 1e6:.1f} M parameters, "
        f"{made['gmac_window']:.1f} G multiply-accumulates a window), every weight of the towers jittered by "
        f"{made['jitter']:.0%}, not trained further. Before the jitter its scores are the shipped ones within "
        f"{100 * made['apart']:.0e} points; after it they lie {moved['mean']:.1f} points from them on average, "
        f"{moved['largest']:.0f} at most, and SROCC with the readers is {ranks}. Each slice is judged from "
        f"{made['windows']} windows spread over it, the same in every engine; one thread, processor time. Made by "
        f"`{made['command']}` at commit `{made['commit'][:10]}` on {made['machine']}.\n"
    )


def main() -> None:
    """Widen, judge what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--images", type=int, help="of the study; all by itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    manifest = ct_reader_study(study)
    folder = options.runs / "wide" / f"jitter-{JITTER:g}-windows-{WINDOWS}-seed-{SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(manifest.rows))[: options.images]
    batches = [order[start : start + SLICES] for start in range(0, len(order), SLICES)]
    narrow, header = load_network(open_model(DEFAULT_MODEL, "safetensors"))
    plain = widen(narrow, WIDTH, rng)
    probe = np.concatenate([spread_windows(manifest.rows[i].path) for i in batches[0]])
    with torch.inference_mode():
        apart = float((plain(torch.from_numpy(probe)).score - narrow(torch.from_numpy(probe)).score).abs().max())
    print(f"widened, not jittered: scores of 0 to 1 differ by {apart:.1e}", flush=True)
    if apart > SAME:
        raise SystemExit(f"the widened network is another function: scores differ by {apart:.1e}, more than {SAME:g}")
    files = by_form(folder, "wide")
    if not files["int8"].is_file():  # the last one that is written
        calibrated_on = some_windows(list(manifest.rows))[::THINNED]
        began = time.time()
        written(jittered(plain, JITTER, rng), header.model_copy(update={"name": "wide"}), calibrated_on, folder)
        print(f"int8 calibrated on {len(calibrated_on)} windows, {time.time() - began:.0f} s", flush=True)
    found = everything(files, forms(folder), probe)
    said = judge(manifest, found, batches, folder / "said.npz")
    rows, moved = compared(manifest, said, ModelScorer(found["onnx"]).percent)
    record = {
        "command": "make full-width",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "gmac_window": multiply_accumulates(plain.architecture) / 1e9,
        "jitter": JITTER,
        "seed": SEED,
        "windows": WINDOWS,
        "apart": apart,
        "moved": moved,
        "engines": rows,
    }
    (RESULTS / "full_width.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "full_width.md").write_text(markdown(record), encoding="utf-8")
    fill(ROOT / "docs" / "engines.md", "full-width", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
