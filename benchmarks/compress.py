"""What compression does to the default: narrower, low-rank and depthwise members, int8, convolutions run once.

A student is taught by the shipped weights in 32 bits, on windows of the scenes that one fold trains on, without any
opinion score; it is judged on the scenes that the fold keeps out, by how near it stays to its teacher. The teacher has
met the opinions of all scenes, so this says what compression does, not how good a model is: `make front` says that.
Students and what was measured of them are kept below runs/compress and not made twice. Writes
benchmarks/results/compress.* and docs/images/compress.png.

    python benchmarks/compress.py [--teach]      # teach what is missing; then judge and write
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
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cost import SIDE, WINDOWS
from evidence import fill
from front import (
    FOLDS,
    PREPARATION,
    SEED,
    Course,
    Lesson,
    lesson,
    milliseconds,
    pooled,
    session,
    some_windows,
    teach,
)
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, commit, processor
from torch import Tensor, nn

from saqm.datasets import ct_reader_study
from saqm.engine import load_engine
from saqm.export import load_network, onnx_graph
from saqm.image import read_image
from saqm.manifest import Row, folds
from saqm.modelfile import DEFAULT_MODEL, open_model
from saqm.network import SAQM, attend, fuse_norms
from saqm.patches import PATCH_SIDE, Windows, cut, grid, planes, pool
from saqm.quantise import quantise
from saqm.recipes import SLIM
from saqm.scorer import ModelScorer
from saqm.statistics import plcc, srocc

Percent = Callable[[NDArray[np.floating]], NDArray[np.float64]]  # raw scores to points, 0 to 100, as calibrated

FOLD = 0  # of `folds(manifest, FOLDS, SEED)`: its scenes are kept out
NARROW = Fraction(1, 8)
BATCH, PER_IMAGE = 48, 50  # windows a step, and of each image; fewer than front.py's: one slow core had half an hour
DOWN = 4  # pixels from feature to feature: two poolings by two
STRIDES = {32: 20, 16: 20, 8: 5}  # the score's and maps'; and on how many images each is looked at
ROUNDS, SHARING_ROUNDS = 3, 2  # of timing
TOGETHER = 64  # windows attended to at a time
HINT = 1.0  # weight of the error in the features, where a student has its teacher's


class Student(NamedTuple):
    """A compressed member: how it comes from its teacher, and how it is taught on.

    made: from the teacher and some windows. file: its name below runs/compress. hint: as in Course.
    int8: whether quantise covers it: it takes convolutions with taps that have a ReLU before and after them.
    """

    name: str
    file: str
    made: Callable[[SAQM, Tensor], SAQM]
    steps: int
    rate: float
    hint: float
    int8: bool


# Where a student comes from


def narrowed(teacher: SAQM, windows_N3PP: Tensor) -> SAQM:
    """A student of width NARROW with those channels of the teacher's that count most for the layer after them."""
    student = SAQM(replace(SLIM, width=float(NARROW)), seed=SEED)
    power = powers(teacher, windows_N3PP)
    old, new = list(teacher.trunk), list(student.trunk)
    places = [i for i, module in enumerate(old) if isinstance(module, nn.Conv2d)]
    projections = [teacher.query[0], teacher.key[0], teacher.value[0]]
    given = torch.arange(3)
    for place, following in zip(places, [*places[1:], None], strict=True):
        readers = projections if following is None else [old[following]]
        reach_C = sum(reader.weight.square().sum((0, 2, 3)) for reader in readers)
        kept = most(power[place] * reach_C, new[place].out_channels)
        take(new[place], old[place], kept, given)
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(new[place + 1], part).data.copy_(getattr(old[place + 1], part)[kept])
        given = kept
    value = teacher.architecture.value_channels
    for name in ("query", "key", "value"):
        before, after = getattr(teacher, name)[0], getattr(student, name)[0]
        if name == "value":
            firsts = [head.body[0].weight for head in teacher.heads]
            count = sum(first.square().sum(0) for first in firsts).view(2, value).sum(0) * power[name]
        else:
            count = power[name]
        kept = most(count, after.out_channels)
        take(after, before, kept, given)
    pooled = torch.cat([kept, kept + value])  # the mean's, then the maximum's
    for before, after in zip(teacher.heads, student.heads, strict=True):
        after.load_state_dict({**before.state_dict(), "body.0.weight": before.body[0].weight[:, pooled]})
    student.gamma.data.copy_(teacher.gamma)
    return student


@torch.no_grad()  # not inference_mode, whose tensors no later sum may meet
def powers(network: SAQM, windows_N3PP: Tensor) -> dict[int | str, Tensor]:
    """The mean square of each channel after its ReLU, by the place of its convolution or the name of its projection."""
    found: dict[int | str, Tensor] = {}
    made = windows_N3PP
    for place, module in enumerate(network.trunk):
        made = module(made)
        if isinstance(module, nn.ReLU):
            found[place - 2] = made.square().mean((0, 2, 3))
    for name in ("query", "key", "value"):
        found[name] = getattr(network, name)(made).square().mean((0, 2, 3))
    return found


def most(counts_C: Tensor, number: int) -> Tensor:
    """The places of the largest, in order."""
    return counts_C.topk(number).indices.sort().values


def take(into: nn.Conv2d, of: nn.Conv2d, outputs: Tensor, inputs: Tensor) -> None:
    """Copy some outputs' weights for some inputs."""
    into.weight.data.copy_(of.weight.data[outputs][:, inputs])
    into.bias.data.copy_(of.bias.data[outputs])


def factored(teacher: SAQM, pair: Callable[[nn.Conv2d, Tensor], tuple[nn.Conv2d, nn.Conv2d]]) -> SAQM:
    """The teacher with each 3x3 convolution but the first as a pair, its batch normalisation after it as before.

    `pair` is given the convolution and what the normalisation multiplies each output by, so that it may weigh errors
    as if that were folded in. The first convolution reads three channels and costs a tenth: it stays.
    """
    student = copy.deepcopy(teacher)
    modules: list[nn.Module] = []
    for module, after in zip(student.trunk, [*student.trunk[1:], nn.Identity()], strict=True):
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            scale_O = after.weight.data.abs() / (after.running_var + after.eps).sqrt()
            modules += pair(module, scale_O.clamp_min(1e-3 * float(scale_O.max())))
        else:
            modules.append(module)
    student.trunk = nn.Sequential(*modules)
    return student


def low_rank(share: Fraction) -> Callable[[nn.Conv2d, Tensor], tuple[nn.Conv2d, nn.Conv2d]]:
    """3x3 as 3x1 to a share of the outputs, then 1x3: the nearest of that rank (Jaderberg et al., BMVC 2014)."""

    def pair(whole: nn.Conv2d, scale_O: Tensor) -> tuple[nn.Conv2d, nn.Conv2d]:
        rank = min(int(whole.out_channels * share), 3 * whole.in_channels)
        first = nn.Conv2d(whole.in_channels, rank, (3, 1), padding=(1, 0), bias=False)
        second = nn.Conv2d(rank, whole.out_channels, (1, 3), padding=(0, 1))
        weight_OCKL = whole.weight.data * scale_O[:, None, None, None]
        outputs, inputs = weight_OCKL.shape[:2]
        flat = weight_OCKL.permute(1, 2, 0, 3).reshape(inputs * 3, outputs * 3)  # (input, down), (output, along)
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        root = values[:rank].sqrt()
        first.weight.data.copy_((left[:, :rank] * root).T.reshape(rank, inputs, 3, 1))
        along = (root[:, None] * right[:rank]).reshape(rank, outputs, 1, 3).swapaxes(0, 1)
        second.weight.data.copy_(along / scale_O[:, None, None, None])
        second.bias.data.copy_(whole.bias.data)
        return first, second

    return pair


def depthwise(whole: nn.Conv2d, scale_O: Tensor) -> tuple[nn.Conv2d, nn.Conv2d]:
    """3x3 as one 3x3 a channel, then 1x1: for each input the nearest of rank one."""
    inputs, outputs = whole.in_channels, whole.out_channels
    first = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    second = nn.Conv2d(inputs, outputs, 1)
    weight_COT = (whole.weight.data * scale_O[:, None, None, None]).swapaxes(0, 1).flatten(2)
    left, values, right = torch.linalg.svd(weight_COT, full_matrices=False)
    root_C = values[:, 0].sqrt()
    first.weight.data.copy_((root_C[:, None] * right[:, 0]).view(inputs, 1, 3, 3))
    second.weight.data.copy_((left[:, :, 0] * root_C[:, None]).T[:, :, None, None] / scale_O[:, None, None, None])
    second.bias.data.copy_(whole.bias.data)
    return first, second


def low_rank_of(share: Fraction) -> Callable[[SAQM, Tensor], SAQM]:
    return lambda teacher, _: factored(teacher, low_rank(share))


STUDENTS = (
    Student("low rank, 1/2", "rank-1-2", low_rank_of(Fraction(1, 2)), 250, 1e-3, HINT, int8=False),
    Student("depthwise", "depthwise", lambda teacher, _: factored(teacher, depthwise), 350, 2e-3, HINT, int8=False),
    Student("low rank, 1/4", "rank-1-4", low_rank_of(Fraction(1, 4)), 250, 1e-3, HINT, int8=False),
    Student("width 1/8", "width-1-8", narrowed, 400, 2e-3, 0.0, int8=True),
)


def students(teacher: SAQM, train: list[Row], runs: Path) -> list[SAQM]:
    """All students; those that are not there yet are taught."""
    windows = torch.from_numpy(some_windows(train))
    found = []
    for each in STUDENTS:
        path = runs / "compress" / f"{each.file}.pt"
        student = each.made(teacher, windows)
        if not path.is_file():
            taught = kept_lesson(teacher, train, path.with_name("lesson.pt"))
            print(f"{each.name}: {len(taught.windows)} windows", flush=True)
            began = time.time()
            # neither mirrored, for it is this teacher's word that is wanted, nor coarse, for which this is no machine
            course = Course(each.steps, BATCH, each.rate, mirrored=False, hint=each.hint, coarse=False)
            student = teach(student, taught, course, each.name)
            torch.save(student.state_dict(), path)
            print(f"{each.name}: {time.time() - began:.0f} s", flush=True)
        student.load_state_dict(torch.load(path, weights_only=True))
        found.append(student.eval())
    return found


def kept_lesson(teacher: SAQM, train: list[Row], path: Path) -> Lesson:
    """The lesson, kept in a file: running the teacher takes as long as teaching one student."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        network = fuse_norms(teacher).to(memory_format=torch.channels_last)
        torch.save(tuple(lesson(network, train, PER_IMAGE)), path)
    return Lesson(*torch.load(path, weights_only=True))


# Judging


class Member(NamedTuple):
    """A member to be judged: its graph, its multiply-accumulates a window, and how many steps it was taught."""

    name: str
    file: str
    graph: bytes
    macs: int
    steps: int


def members(teacher: SAQM, taught: list[SAQM], calibrated_on: NDArray[np.float32]) -> list[Member]:
    """The teacher and its students, in 32 bits, and in int8 where quantise covers them."""
    found = []
    rows = [("the default", "teacher", teacher, 0, True)]
    rows += [(s.name, s.file, network, s.steps, s.int8) for s, network in zip(STUDENTS, taught, strict=True)]
    for name, file, network, steps, int8 in rows:
        graph, macs = onnx_graph(network), sum(multiply_accumulates(network))
        found.append(Member(name, file, graph, macs, steps))
        if int8:
            found.append(Member(f"{name}, int8", f"{file}-int8", quantise(graph, calibrated_on), macs, steps))
    return found


@torch.inference_mode()
def multiply_accumulates(network: SAQM) -> tuple[int, int]:
    """Of one window: what is done at each place of it (convolutions), and what once (attention and heads)."""
    at_places, once = 0, 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal at_places, once
        if isinstance(module, nn.Conv2d):
            at_places += output[0].numel() * module.weight[0].numel()
        else:
            once += output[0].numel() * module.weight.shape[1]

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network(torch.zeros(1, 3, PATCH_SIDE, PATCH_SIDE))
    for handle in handles:
        handle.remove()
    channels = network.query[0].out_channels + network.value[0].out_channels
    return at_places, once + (PATCH_SIDE // DOWN) ** 4 * channels


def fidelity(rows: list[Row], each: list[Member], percent: Percent, runs: Path) -> list[dict[str, Any]]:
    """Each member's scores of some rows' images beside those of the first; cost."""
    times = milliseconds([member.graph for member in each], (1,), ROUNDS, time.process_time)
    scores_RM = percent(np.array([said(rows, member, runs) for member in each])).T
    opinions = np.array([row.score for row in rows])
    domains = np.array([row.domain for row in rows])
    found = []
    for at, (member, least) in enumerate(zip(each, times, strict=True)):
        apart = np.abs(scores_RM[:, at] - scores_RM[:, 0])
        row: dict[str, Any] = {
            "member": member.name,
            "steps": member.steps,
            "mega_mac_window": member.macs / 1e6,
            "megabytes": len(member.graph) / 1e6,
            "milliseconds_one_thread": least[1],
            "mean_difference": float(apart.mean()),
            "largest_difference": float(apart.max()),
            "domains": {},
        }
        for domain in sorted(set(domains)):
            here = domains == domain
            own, first = (srocc(scores_RM[here, one], opinions[here]) for one in (at, 0))
            row["domains"][domain] = {
                "images": int(here.sum()),
                "srocc_teacher": srocc(scores_RM[here, at], scores_RM[here, 0]),
                "srocc_readers": own,
                "change": own - first,
            }
        found.append(row)
    return found


def said(rows: list[Row], member: Member, runs: Path) -> list[float]:
    """What a member says of each row's image, raw; kept."""

    def make() -> list[float]:
        run = session(member.graph, 1)
        return [pooled([run], row)[0] for row in rows]

    return kept(runs / "compress" / f"{member.file}.json", make)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds; made first where there is none."""
    if not path.is_file():
        made = json.dumps(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


# Convolutions run once over the whole image


@torch.inference_mode()
def run_once(network: SAQM, windows: Windows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score and weight of each window, (N,), cut from the features of the whole image; normalisation folded in before.

    Not exact: alone, a window is padded with zeros at its own border; here only the picture is. The windows must lie
    whole features apart, in planes of the whole image. Raises ValueError where they do not.
    """
    if windows.corner != (0, 0) or (windows.positions_N2 % DOWN).any():
        raise ValueError(f"windows of a whole image are wanted, multiples of {DOWN} pixels apart, as the features are")
    image = torch.from_numpy(windows.planes_CHW)[None].contiguous(memory_format=torch.channels_last)
    features = network.trunk(image)
    side = windows.patch // DOWN
    # each (channels, h, w, side, side): views, of which a few windows are copied at a time
    views = [
        part(features)[0].unfold(1, side, 1).unfold(2, side, 1) for part in (network.query, network.key, network.value)
    ]
    rows, columns = torch.from_numpy(windows.positions_N2 // DOWN).T
    scores, weights = [], []
    for start in range(0, len(rows), TOGETHER):
        here = slice(start, start + TOGETHER)
        query, key, value = (view[:, rows[here], columns[here]].swapaxes(0, 1).flatten(2) for view in views)
        attended_BCN, _ = attend(query, key, value, network.gamma)
        output = network.judge(torch.cat([attended_BCN.mean(-1), attended_BCN.amax(-1)], -1))
        scores.append(output.score)
        weights.append(output.weight)
    return torch.cat(scores).numpy(), torch.cat(weights).numpy()


@torch.inference_mode()
def run_alone(network: SAQM, windows: Windows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score and weight of each window, (N,), each run by itself: as the network is taught and served."""
    parts = [
        network(torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)) for batch in windows.batches()
    ]
    return torch.cat([part.score for part in parts]).numpy(), torch.cat([part.weight for part in parts]).numpy()


def sharing(teacher: SAQM, rows: list[Row], percent: Percent) -> list[dict[str, Any]]:
    """Convolutions run once beside windows run alone, at each stride: how far apart, and how long."""
    network = fuse_norms(teacher).to(memory_format=torch.channels_last)
    at_places, once = multiply_accumulates(network)
    whole = planes(read_image(rows[0].path), PREPARATION)
    found = []
    for stride, number in STRIDES.items():
        images = [read_image(rows[at].path) for at in np.linspace(0, len(rows) - 1, number).astype(int)]
        scores, alone_N, once_N = [], [], []
        for image in images:
            windows = replace(cut(image, PREPARATION, stride), planes_CHW=planes(image, PREPARATION), corner=(0, 0))
            both = run_alone(network, windows), run_once(network, windows)
            scores.append(percent(np.array([pool(*one) for one in both])))
            alone_N.append(both[0][0])
            once_N.append(both[1][0])
        apart = np.diff(np.array(scores), axis=1)[:, 0]
        alone, shared = np.concatenate(alone_N), np.concatenate(once_N)
        every = Windows(whole, grid(SIDE, SIDE, PATCH_SIDE, stride), PATCH_SIDE, 0)
        times: dict[Any, list[float]] = {run_alone: [], run_once: []}
        for _ in range(SHARING_ROUNDS):
            for run, taken in times.items():
                began = time.process_time()
                run(network, every)
                taken.append(1000 * (time.process_time() - began))
        row = {
            "stride": stride,
            "images": number,
            "windows": len(every),
            "giga_mac_alone": len(every) * (at_places + once) / 1e9,
            "giga_mac_once": ((SIDE / PATCH_SIDE) ** 2 * at_places + len(every) * once) / 1e9,
            "milliseconds_alone": min(times[run_alone]),
            "milliseconds_once": min(times[run_once]),
            "mean_difference": float(np.abs(apart).mean()),
            "largest_difference": float(np.abs(apart).max()),
            "mean_signed_difference": float(apart.mean()),
            "srocc_images": srocc(np.array(scores)[:, 1], np.array(scores)[:, 0]),
            "correlation_windows": plcc(shared, alone),
            "mean_difference_windows": 100 * float(np.abs(shared - alone).mean()),
        }
        print(row, flush=True)
        found.append(row)
    return found


# Writing


def to_markdown(record: dict[str, Any]) -> str:
    """Both tables, and how they were made."""
    domains = list(record["members"][0]["domains"])
    organs = [domain.removeprefix("ct-") for domain in domains]
    lines = table(
        [
            "member", "steps", "M MAC a window", "MB", "ms", "points from the teacher, mean (largest)",
            *(f"SROCC with the teacher, {organ}" for organ in organs),
            *(f"change of SROCC with readers, {organ}" for organ in organs),
        ],
        [
            [
                row["member"], f"{row['steps']:,}" if row["steps"] else "-", f"{row['mega_mac_window']:.0f}",
                f"{row['megabytes']:.2f}", f"{row['milliseconds_one_thread']:.0f}",
                f"{row['mean_difference']:.2f} ({row['largest_difference']:.1f})",
                *(f"{row['domains'][domain]['srocc_teacher']:.3f}" for domain in domains),
                *(f"{row['domains'][domain]['change']:+.3f}" for domain in domains),
            ]
            for row in record["members"]
        ],
    )  # fmt: skip
    first = record["members"][0]["domains"]
    own = " and ".join(
        f"{first[domain]['srocc_readers']:.3f} ({organ})" for domain, organ in zip(domains, organs, strict=True)
    )
    lines.append(
        f"\nTeacher: the shipped weights in 32 bits. It has met the opinions of these scenes, so its own SROCC with "
        f"the readers here, {own}, is no test of it; a change says what compression does, not how good a member is. "
        f"Students: {record['windows_a_step']} windows a step, from {record['windows_an_image']} of each of "
        f"{record['taught_images']} images of other scenes, no opinion read. Judged on {record['judged']} images of "
        f"{record['scenes']} scenes. Time of the network alone for the {WINDOWS} windows of a {SIDE}x{SIDE} slice in "
        f"ONNX Runtime: processor time of one thread, least of {ROUNDS} rounds in turns. Low-rank and depthwise "
        f"members are in 32 bits only: no ReLU stands between the two convolutions of a pair, and `saqm.quantise` "
        f"takes none without.\n"
    )
    lines += table(
        [
            "stride", "windows", "G MAC: alone", "once", "ms: alone", "once", "points apart, mean (largest)",
            "with sign", "SROCC of the scores", "windows: points apart, mean", "correlation", "images",
        ],
        [
            [
                f"{row['stride']}", f"{row['windows']:,}", f"{row['giga_mac_alone']:.0f}",
                f"{row['giga_mac_once']:.0f}", f"{row['milliseconds_alone']:,.0f}", f"{row['milliseconds_once']:,.0f}",
                f"{row['mean_difference']:.1f} ({row['largest_difference']:.1f})",
                f"{row['mean_signed_difference']:+.1f}", f"{row['srocc_images']:.3f}",
                f"{row['mean_difference_windows']:.1f}", f"{row['correlation_windows']:.3f}", f"{row['images']}",
            ]
            for row in record["sharing"]
        ],
    )  # fmt: skip
    lines.append(
        f"\nConvolutions run once over the whole image, beside each window alone: the default in 32 bits, on some of "
        f"the judged images. Processor time in PyTorch, one thread, of a {SIDE}x{SIDE} slice all of which is judged, "
        f"least of {SHARING_ROUNDS} rounds in turns. Scores as calibrated; windows in hundredths of the raw score. "
        f"Both made by `{record['command']}` at commit `{record['commit'][:10]}` on {record['machine']}, "
        f"{record['made']}."
    )
    return "\n".join(lines) + "\n"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table, numbers to the right of a name."""
    parts = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in parts]


def draw(record: dict[str, Any], path: Path) -> None:
    """Cost against fidelity."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.8), sharex=True, layout="constrained")
    for row in record["members"]:
        int8, ms = "int8" in row["member"], row["milliseconds_one_thread"]
        values = row["mean_difference"], min(one["srocc_teacher"] for one in row["domains"].values())
        for axis, value in zip(axes, values, strict=True):
            axis.plot(ms, value, "s" if int8 else "o", color="#0072b2" if int8 else "#d55e00")
            if not int8:  # its twin in int8 lies beside it
                axis.annotate(row["member"], (ms, value), (0, 13), textcoords="offset points", ha="center")
    for axis in axes:
        axis.set(xlabel="ms of processor time a 512x512 slice", xscale="log")
        axis.minorticks_off()
        axis.set_xticks([250, 500, 1000, 1500], ["250", "500", "1000", "1500"])
        axis.margins(x=0.2, y=0.15)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("points from the teacher, mean")
    axes[1].set_ylabel("SROCC with the teacher, the lower organ's")
    for label, color, marker in (("32 bits", "#d55e00", "o"), ("int8", "#0072b2", "s")):
        axes[0].plot([], [], marker, color=color, label=label)
    axes[0].legend(loc="lower left")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--teach", action="store_true", help="only teach the students that are missing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    manifest = ct_reader_study(study)
    fold = folds(manifest, FOLDS, SEED)[FOLD]
    file = open_model(DEFAULT_MODEL, "safetensors")
    teacher = load_network(file)[0]
    train, test = ([manifest.rows[i] for i in part] for part in (fold.train, fold.test))
    taught = students(teacher, train, options.runs)
    if options.teach:
        return
    judged = [row for row in test if row.judged and row.score is not None]
    percent = ModelScorer(load_engine(file, threads=1)).percent
    record = {
        "command": "make compress",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "windows_a_step": BATCH,
        "windows_an_image": PER_IMAGE,
        "taught_images": len(train),
        "judged": len(judged),
        "scenes": len({row.scene for row in judged}),
        "members": fidelity(judged, members(teacher, taught, some_windows(train)), percent, options.runs),
        "sharing": kept(options.runs / "compress" / "sharing.json", lambda: sharing(teacher, judged, percent)),
    }
    (RESULTS / "compress.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "compress.md").write_text(to_markdown(record), encoding="utf-8")
    draw(record, ROOT / "docs" / "images" / "compress.png")
    fill(ROOT / "docs" / "models.md", "compress", to_markdown(record))
    print(to_markdown(record))


if __name__ == "__main__":
    main()
