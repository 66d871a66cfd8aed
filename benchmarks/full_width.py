"""The paper's full network, taught, in every engine and precision: `make full-width` (needs the study; an hour).

To teach the paper's network from scratch takes days on a GPU. Here it is widened from the shipped weights instead: its
channels are copies of the shipped ones, whose outgoing weights share what the one had (Net2WiderNet of Chen et al.,
ICLR 2016), and then every weight of its towers is moved a little at random, so that no two copies stay equal. Its
towers are those of the paper's Table 1; the pooling and the heads are those of the shipped model.

Each slice is judged from the same few windows in every engine. What is judged is kept below runs/wide, and a run that
was stopped goes on. Writes benchmarks/results/full_width.* and the table of docs/engines.md.

    python benchmarks/full_width.py [--minutes M]     # of judging; then what there is is compared
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
from saqm.engine import Engine, EngineName
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
WINDOWS, ROUNDS = 4, 2  # of each slice, and how often all slices are gone through for them: each time for some
SLICES = CHUNK // (WINDOWS // ROUNDS)  # that share one batch
THINNED = 2  # every which of the windows that int8 is calibrated on
ROUNDED = "torch-bf16, computed in 32 bits"
SHIPPED = "shipped: "
# Every how many batches an engine judges one; those not named judge all. The other two libraries in 32 bits differ
# from ONNX Runtime by the order of sums only.
SPARE = {"openvino": 13, "torch": 13}

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


def everything(files: dict[str, Path], shipped: dict[str, Path]) -> dict[str, Engine]:
    """Every engine that runs here for the wide network, and ONNX Runtime for the shipped one beside it.

    Without instructions for bfloat16 torch takes seconds a window and OpenVINO computes in 32 bits: neither is asked.
    """
    names: tuple[EngineName, ...] = ("onnx", "openvino", "torch")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found = engines(files, 1, (*names, "openvino-bf16", "torch-bf16"))
    else:
        found = engines(files, 1, names)
        found[ROUNDED] = replace(found["torch"], name=ROUNDED, forward=rounded(load_network(files["safetensors"])[0]))
    return found | {f"{SHIPPED}{name}": each for name, each in engines(shipped, 1, ("onnx",)).items()}


# Judging


class Batch(NamedTuple):
    """Rows of the study, and which of their windows are judged together."""

    rows: NDArray[np.int_]
    windows: slice


class Said(NamedTuple):
    """What each engine said, by its name; NaN where it has not been asked.

    outputs: score and weight of each slice's windows, (images, WINDOWS, 2). seconds: of each batch, (batches,).
    """

    outputs: dict[str, NDArray[np.float32]]
    seconds: dict[str, NDArray[np.float32]]


def in_batches(order: NDArray[np.int_]) -> list[Batch]:
    """All slices for some of their windows, then for others: a run that is cut short has seen every slice."""
    return [
        Batch(order[start : start + SLICES], slice(part, None, ROUNDS))
        for part in range(ROUNDS)
        for start in range(0, len(order), SLICES)
    ]


def windows_of(manifest: Manifest, batch: Batch) -> NDArray[np.float32]:
    """A batch's windows, slice after slice. WINDOWS of a slice lie evenly over what is judged of it."""
    parts = []
    for row in batch.rows:
        found = cut(read_image(manifest.rows[row].path), PREPARATION)
        parts.append(found.take(((np.arange(WINDOWS) + 0.5) / WINDOWS * len(found)).astype(int)[batch.windows]))
    return np.concatenate(parts)


def judge(manifest: Manifest, found: dict[str, Engine], batches: list[Batch], kept: Path, minutes: float) -> Said:
    """Ask each engine of the batches that are its own, keeping every answer at once, until time is up."""
    said = _read(kept, list(found), len(manifest.rows), len(batches))
    began = time.time()
    for number, batch in enumerate(batches):
        asked = [
            name
            for name in found
            if number % SPARE.get(name, 1) == 0 and np.isnan(said.outputs[name][batch.rows, batch.windows]).any()
        ]
        if not asked:
            continue
        if time.time() - began > 60 * minutes:
            break
        windows = windows_of(manifest, batch)
        for name in asked:
            start = time.process_time()
            made = found[name].run(windows)
            said.seconds[name][number] = time.process_time() - start
            both = np.stack([made.scores_N, made.weights_N], -1)
            said.outputs[name][batch.rows, batch.windows] = both.reshape(len(batch.rows), -1, 2)
        _keep(kept, said)
        print(f"{number + 1} of {len(batches)} batches, {time.time() - began:.0f} s", flush=True)
    return said


def _read(kept: Path, names: list[str], images: int, batches: int) -> Said:
    said = Said(
        {name: np.full((images, WINDOWS, 2), np.nan, np.float32) for name in names},
        {name: np.full(batches, np.nan, np.float32) for name in names},
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


Percent = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def compared(manifest: Manifest, said: Said, percent: Percent) -> list[dict[str, Any]]:
    """One row an engine, beside ONNX Runtime in 32 bits on what both judged; the last row is shipped beside wide."""
    shipped = f"{SHIPPED}onnx"
    pairs = {name: shipped if name.startswith(SHIPPED) else "onnx" for name in said.outputs if name != shipped}
    rows = []
    for name, other in {**pairs, shipped: "onnx"}.items():
        outputs, before = said.outputs[name], said.outputs[other]
        both = ~np.isnan(outputs[..., 0]) & ~np.isnan(before[..., 0])
        index = np.flatnonzero(both.any(1))
        if not len(index):
            continue
        now, then = (
            np.clip(percent(np.array([pool(*made[i, both[i]].T) for i in index])), 0, 100) for made in (outputs, before)
        )
        those = [manifest.rows[i] for i in index]
        rows.append(
            {
                "engine": name,
                "beside": other,
                "images": len(index),
                "windows": int(both.sum()),
                "seconds_window": float(np.nanmedian(said.seconds[name])) / CHUNK,  # the engine fills a batch up
                "mean_difference": float(np.abs(now - then).mean()),
                "largest_difference": float(np.abs(now - then).max()),
                "srocc": agreement(now, those),
                "srocc_change": ranks_changed(now, then, those),
            }
        )
    return rows


def markdown(made: dict[str, Any]) -> str:
    """The table of docs/engines.md."""
    *engines, shipped = made["engines"]
    lines = [
        "| full width, widened | slices | windows | ms a window | mean difference, points | largest | SROCC, change |"
    ]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for row in engines:
        ranks = ", ".join(f"{name} {change:+.4f}" for name, change in row["srocc_change"].items())
        lines += [
            f"| {row['engine']} | {row['images']} | {row['windows']} | {1e3 * row['seconds_window']:.3g} "
            f"| {row['mean_difference']:.3f} | {row['largest_difference']:.2f} | {ranks} |"
        ]
    wide = next(row for row in engines if row["engine"] == "onnx")
    ranks = "; ".join(
        f"{name} {each:.3f}, shipped {shipped['srocc'][name]:.3f}" for name, each in wide["srocc"].items()
    )
    least, most = made["windows"]
    count = f"{least} to {most}" if least < most else f"{most}"
    return "\n".join(lines) + (
        f"\n\nWidened from the shipped weights ({made['parameters'] / 1e6:.1f} M parameters, "
        f"{made['gmac_window']:.1f} G multiply-accumulates a window), every weight of the towers jittered by "
        f"{made['jitter']:.0%}, not taught further. Before the jitter scores are the shipped ones within "
        f"{100 * made['apart']:.4f} points. After it they lie {shipped['mean_difference']:.2f} points from them on "
        f"average, {shipped['largest_difference']:.1f} at most, and their SROCC with the readers is {ranks}. "
        f"Each slice is judged from {count} windows spread over it, the same in every engine: so few windows average "
        f"less than a whole slice's, so these differences are rather too large. One thread, processor time. "
        f"Made by `{made['command']}` at commit `{made['commit'][:10]}` on {made['machine']}.\n"
    )


def main() -> None:
    """Widen, judge what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--minutes", type=float, default=np.inf, help="of judging; no limit by itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    manifest = ct_reader_study(study)
    folder = options.runs / "wide" / f"jitter-{JITTER:g}-seed-{SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    batches = in_batches(rng.permutation(len(manifest.rows)))
    narrow, header = load_network(open_model(DEFAULT_MODEL, "safetensors"))
    plain = widen(narrow, WIDTH, rng)
    probe = windows_of(manifest, batches[0])
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
    found = everything(files, forms(folder))
    said = judge(manifest, found, batches, folder / "said.npz", options.minutes)
    judged = (~np.isnan(said.outputs["onnx"][..., 0])).sum(1)
    judged = judged[judged > 0]
    record = {
        "command": "make full-width",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "gmac_window": multiply_accumulates(plain.architecture) / 1e9,
        "jitter": JITTER,
        "seed": SEED,
        "windows": [int(judged.min()), int(judged.max())],
        "apart": apart,
        "engines": compared(manifest, said, ModelScorer(found["onnx"]).percent),
    }
    (RESULTS / "full_width.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "full_width.md").write_text(markdown(record), encoding="utf-8")
    fill(ROOT / "docs" / "engines.md", "full-width", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
