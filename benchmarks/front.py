"""Accuracy against cost: narrower members distilled from the default: `make front`, after `make train-default`.

For each scene fold, the fold's own model teaches narrower networks what it says of unlabelled windows of the scenes
that it was taught on; both are then judged on the scenes that neither has met. No opinion score is read meanwhile.
Students are kept below runs/front and not made twice. Writes benchmarks/results/front.* and docs/images/front.png.

    python benchmarks/front.py [--distil]      # distil what is missing; then judge and write
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from cost import SIDE, WINDOWS
from evidence import fill
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, commit, processor
from torch import Tensor, nn

from saqm.datasets import ct_reader_study
from saqm.evaluate import evaluate_predictions
from saqm.export import load_network, onnx_graph
from saqm.image import read_image
from saqm.loop import bf16_pays
from saqm.manifest import Manifest, Row, folds
from saqm.network import SAQM, multiply_accumulates
from saqm.patches import CHUNK, Preparation, cut, pool
from saqm.quantise import quantise
from saqm.recipes import SLIM

SEED, FOLDS = 0, 4  # those of `make train-default`
WIDTHS = (Fraction(1, 8), Fraction(1, 16))
DEFAULT = Fraction(3, 16)
CALIBRATED_ON, EACH = 22, 12  # training images, and windows of each, that int8 is calibrated on
ROUNDS = 8  # of timing
STRIDE, PER_IMAGE = 16, 300  # of the windows that are taught from: this many at random of each image's
STEPS, BATCH, RATE, DECAY = 1000, 96, 3e-3, 1e-2
WEIGHT = 0.3  # of the error in how much a window counts, beside that in its score; both in sd of the teacher's
PREPARATION = Preparation()


class Lesson(NamedTuple):
    """Windows float16 (N, 3, P, P), and what the teacher says of them.

    said: logit and log weight, standardised by mean and sd, (N, 2). features: pooled, as they are, float16 (N, D).
    """

    windows: Tensor
    said: Tensor
    mean: Tensor
    sd: Tensor
    features: Tensor


class Course(NamedTuple):
    """How a student is taught.

    mirrored: whether every second step sees its windows mirrored, of which the teacher is taken to say the same.
    hint: weight of the error in the pooled features, in sd of the teacher's; 0 where a student has others.
    coarse: bfloat16 where the machine runs it.
    """

    steps: int
    batch: int
    rate: float
    mirrored: bool
    hint: float
    coarse: bool


def lesson(teacher: SAQM, rows: list[Row], per_image: int = PER_IMAGE) -> Lesson:
    """The windows of some rows' images, so many at random of each, and the teacher's word on them."""
    rng, windows, said, features = np.random.default_rng(SEED), [], [], []
    for row in rows:
        found = cut(read_image(row.path), PREPARATION, STRIDE)
        chosen = np.sort(rng.permutation(len(found))[:per_image])
        for start in range(0, len(chosen), CHUNK):
            batch = torch.from_numpy(found.take(chosen[start : start + CHUNK]))
            with torch.inference_mode():
                output = teacher(batch)
                said.append(torch.stack([output.score.logit(), output.weight.log()], 1))
            windows.append(batch.half())
            features.append(output.feature.half())
    both = torch.cat(said)
    mean, sd = both.mean(0), both.std(0)
    return Lesson(torch.cat(windows), (both - mean) / sd, mean, sd, torch.cat(features))


def distil(taught: Lesson, width: Fraction) -> SAQM:
    """A student of that width, taught from scratch what the teacher says."""
    student = SAQM(replace(SLIM, width=float(width)), seed=SEED)
    course = Course(STEPS, BATCH, RATE, mirrored=True, hint=0.0, coarse=bf16_pays())
    return teach(student, taught, course, f"width {width}")


def teach(student: SAQM, taught: Lesson, course: Course, name: str) -> SAQM:
    """The student, taught to say of a window what the teacher says of it; ready to score."""
    student = student.to(memory_format=torch.channels_last)
    rng = np.random.default_rng(SEED)
    optimiser = torch.optim.AdamW(student.parameters(), course.rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, course.rate, total_steps=course.steps)
    spread = taught.features.float().std(0).clamp_min(1e-3) if course.hint else None
    student.train()
    for step in range(course.steps):
        chosen = rng.integers(0, len(taught.windows), course.batch)
        windows = taught.windows[chosen].float()
        if course.mirrored and step % 2:
            windows = windows.flip(3)
        # entered anew each step: within one context autocast keeps the weights that it has rounded
        with torch.autocast("cpu", torch.bfloat16, enabled=course.coarse):
            output = student(windows.contiguous(memory_format=torch.channels_last))
        given = torch.stack([output.logit.float().mean(-1), output.weight.float().log()], 1)
        error = nn.functional.smooth_l1_loss((given - taught.mean) / taught.sd, taught.said[chosen], reduction="none")
        loss = (error * torch.tensor([1.0, WEIGHT])).sum(1).mean()
        if spread is not None:
            wanted = taught.features[chosen].float()
            loss = loss + course.hint * nn.functional.smooth_l1_loss(output.feature.float() / spread, wanted / spread)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(f"  {name} step {step + 1}/{course.steps} loss {loss.item():.3f}", flush=True)
    return student.eval()


def students(manifest: Manifest, number: int, widths: tuple[Fraction, ...], runs: Path) -> dict[Fraction, SAQM]:
    """The students of one fold; those that are not there yet are taught."""
    paths = {width: runs / "front" / f"scene-{number}" / f"width-{str(width).replace('/', '-')}.pt" for width in widths}
    taught: Lesson | None = None
    made = {}
    for width, path in paths.items():
        if not path.is_file():
            if taught is None:
                teacher, _ = load_network(runs / "default" / f"scene-{number}" / "model.safetensors")
                taught = lesson(teacher.eval(), [manifest.rows[i] for i in folds(manifest, FOLDS, SEED)[number].train])
                print(f"fold {number}: {len(taught.windows)} windows", flush=True)
            began = time.time()
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(distil(taught, width).state_dict(), path)
            print(f"fold {number}, width {width}: {time.time() - began:.0f} s", flush=True)
        student = SAQM(replace(SLIM, width=float(width)), seed=SEED)
        student.load_state_dict(torch.load(path, weights_only=True))
        made[width] = student.eval()
    return made


# Judging


class Member(NamedTuple):
    """A member of the front: its graph in each fold, and its architecture."""

    name: str
    graphs: list[bytes]
    width: Fraction
    int8: bool


def members(manifest: Manifest, widths: tuple[Fraction, ...], runs: Path) -> list[Member]:
    """The teacher and its students, in 32 bits and in int8, a graph a fold."""
    by_width: dict[Fraction, list[SAQM]] = {DEFAULT: [], **{width: [] for width in widths}}
    calibrated_on = []
    for number, fold in enumerate(folds(manifest, FOLDS, SEED)):
        by_width[DEFAULT].append(load_network(runs / "default" / f"scene-{number}" / "model.safetensors")[0].eval())
        for width, student in students(manifest, number, widths, runs).items():
            by_width[width].append(student)
        calibrated_on.append(some_windows([manifest.rows[i] for i in fold.train]))
    found = []
    for width, networks in by_width.items():
        graphs = [onnx_graph(network) for network in networks]
        title = f"width {width}" + (", the default" if width == DEFAULT else ", distilled")
        found.append(Member(title, graphs, width, False))
        small = [quantise(graph, windows) for graph, windows in zip(graphs, calibrated_on, strict=True)]
        found.append(Member(f"{title}, int8", small, width, True))
    return found


def some_windows(rows: list[Row]) -> NDArray[np.float32]:
    """Windows of training images to choose int8's scales on."""
    chosen = [rows[at] for at in np.linspace(0, len(rows) - 1, CALIBRATED_ON).astype(int)]
    parts = []
    for row in chosen:
        found = cut(read_image(row.path), PREPARATION)
        parts.append(found.take(np.linspace(0, len(found) - 1, EACH).astype(int)))
    return np.concatenate(parts)


def predictions(manifest: Manifest, each: list[Member]) -> list[list[float | None]]:
    """What each member says of every judged row, by the fold that has not met its scene; None of others."""
    made: list[list[float | None]] = [[None] * len(manifest.rows) for _ in each]
    for number, fold in enumerate(folds(manifest, FOLDS, SEED)):
        sessions = [session(member.graphs[number], 1) for member in each]
        for i in fold.test:
            row = manifest.rows[i]
            if not row.judged or row.score is None:
                continue
            for values, said in zip(made, pooled(sessions, row), strict=True):
                values[i] = said
    return made


def pooled(sessions: list[Any], row: Row) -> list[float]:
    """What each graph says of a row's image, raw, 0 to 1."""
    batches = list(cut(read_image(row.path), PREPARATION).batches(CHUNK))
    found = []
    for run in sessions:
        parts = [run.run(["score", "weight"], {"windows": batch}) for batch in batches]
        found.append(pool(*(np.concatenate(column) for column in zip(*parts, strict=True))))
    return found


def session(graph: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def milliseconds(
    graphs: list[bytes],
    numbers: tuple[int, ...] = (1, 2),
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[int, float]]:
    """The least time of WINDOWS windows on these numbers of threads, all graphs in turns."""
    windows = np.random.default_rng(0).standard_normal((WINDOWS, 3, 32, 32)).astype(np.float32)
    found: list[dict[int, float]] = [{} for _ in graphs]
    for threads in numbers:
        sessions = [session(graph, threads) for graph in graphs]
        for _ in range(rounds):
            for least, run in zip(found, sessions, strict=True):
                began = clock()
                run.run(["score"], {"windows": windows})
                least[threads] = min(least.get(threads, np.inf), 1000 * (clock() - began))
    return found


def measure(manifest: Manifest, each: list[Member]) -> list[dict[str, Any]]:
    """Each member's cost, and its accuracy beside the default's in 32 bits."""
    made, times = predictions(manifest, each), milliseconds([member.graphs[0] for member in each])
    others = {member.name: values for member, values in zip(each[1:], made[1:], strict=True)}
    judged = evaluate_predictions(manifest.rows, made[0], seed=SEED, others=others, name=each[0].name)
    rows = []
    for member, values, least in zip(each, made, times, strict=True):
        alone = evaluate_predictions(manifest.rows, values, seed=SEED)
        architecture = replace(SLIM, width=float(member.width))
        row: dict[str, Any] = {
            "member": member.name,
            "mega_mac_window": multiply_accumulates(architecture) / 1e6,
            "megabytes": len(member.graphs[0]) / 1e6,
            "milliseconds_one_thread": least[1],
            "milliseconds_two_threads": least[2],
            "accuracy": {},
        }
        for domain in sorted({r.domain for r in manifest.rows}):
            result, default = alone.result(domain), judged.result(domain, each[0].name)
            row["accuracy"][domain] = {
                "srocc": result.srocc,
                "interval": list(result.srocc_interval or ()),
                "change": (result.srocc or 0.0) - (default.srocc or 0.0),
            }
        rows.append(row)
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The front as a table."""
    domains = list(record["members"][0]["accuracy"])
    head = ["member", "M MAC a window", "MB", "ms, 1 thread", "ms, 2 threads"]
    lines = [
        "| " + " | ".join([*head, *(f"SROCC {d.removeprefix('ct-')} (change)" for d in domains)]) + " |",
        "| --- |" + " ---: |" * (len(head) - 1 + len(domains)),
    ]
    for row in record["members"]:
        cells = [
            row["member"], f"{row['mega_mac_window']:.0f}", f"{row['megabytes']:.2f}",
            f"{row['milliseconds_one_thread']:.0f}", f"{row['milliseconds_two_threads']:.0f}",
        ]  # fmt: skip
        for domain in domains:
            one = row["accuracy"][domain]
            low, high = one["interval"]
            cells.append(f"{one['srocc']:.3f} [{low:.2f}, {high:.2f}] ({one['change']:+.3f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        f"\n\nTime of the network alone for the {WINDOWS} windows of a {SIDE}x{SIDE} slice, least of {ROUNDS} rounds "
        f"in turns. SROCC on {record['judged']} judged images, scenes kept out of teacher and student, outputs as they "
        f"are (not calibrated); in brackets 95 % by scene. Made by `{record['command']}` at commit "
        f"`{record['commit'][:10]}` on {record['machine']}.\n"
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Cost against accuracy."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    for axis, domain in zip(axes, record["members"][0]["accuracy"], strict=True):
        for row in record["members"]:
            one, int8 = row["accuracy"][domain], "int8" in row["member"]
            low, high = one["interval"]
            axis.errorbar(
                row["milliseconds_two_threads"], one["srocc"], [[one["srocc"] - low], [high - one["srocc"]]],
                fmt="s" if int8 else "o", color="#0072b2" if int8 else "#d55e00", capsize=3,
            )  # fmt: skip
            width = row["member"].split(",")[0].removeprefix("width ")
            axis.annotate(width, (row["milliseconds_two_threads"], one["srocc"]), (5, 5), textcoords="offset points")
        axis.set(title=domain.removeprefix("ct-"), xlabel="ms a 512x512 slice, two threads", xscale="log")
        axis.minorticks_off()
        axis.set_xticks([25, 50, 100, 200], ["25", "50", "100", "200"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("SROCC, new scenes")
    for label, color, marker in (("32 bits", "#d55e00", "o"), ("int8", "#0072b2", "s")):
        axes[0].plot([], [], marker, color=color, label=label)
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Distil what is missing, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--distil", action="store_true", help="only teach the students that are missing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    manifest = ct_reader_study(study)
    if options.distil:
        for number in range(FOLDS):
            students(manifest, number, WIDTHS, options.runs)
        return
    each = members(manifest, WIDTHS, options.runs)
    record = {
        "command": "make front",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "judged": sum(row.judged and row.score is not None for row in manifest.rows),
        "members": measure(manifest, each),
    }
    (RESULTS / "front.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "front.md").write_text(markdown(record), encoding="utf-8")
    draw(record, ROOT / "docs" / "images" / "front.png")
    fill(ROOT / "docs" / "models.md", "front", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
