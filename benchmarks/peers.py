"""Whole tools side by side on one CT slice: images a second, peak memory, cold start: `make benchmark-peers`.

    python benchmarks/peers.py [--peers peers/bin/python] [--rounds N] [--out FOLDER]
    python benchmarks/peers.py --draw     # the plot anew, of what was measured

The others live in an environment of their own, made as benchmarks/metrics.py says. Each program has a process of its
own and one thread. Programs take turns, round after round, so that what else the machine does hits them alike; the
least CPU time of a call counts, and of a cold start (process begun to first score) the least wall time.

What is scored: a 512x512 slice in 8 bits (scikit-image's phantom in noise; its air is black), as each tool is meant to
be called. The paper's network is measured with untaught weights, for cost does not depend on them, on PART of its 256
windows, and multiplied. Deep metrics of other libraries (pyiqa; ARNIQA and CLIP-IQA of torchmetrics; CLIP-IQA of piq)
fetch their weights from the network when they are first called, and pyiqa and torchmetrics need torchvision: they do
not run offline, so they are not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from metrics import (
    ONE_THREAD,
    RESULTS,
    Pixels,
    Timed,
    brisque_package_mended,
    memory,
    opencv,
    ours,
    piq_mended,
    scikit_video_mended,
    write_parameters,
)

SIDE = 512
PART = 8  # of the 256 windows of a slice, for the paper's network
WINDOWS = 256
OURS, THEIRS = "#d55e00", "#7f7f7f"  # colours of the plot


def saqm_ct(engine: str) -> Callable[[Path], Timed]:
    def load(_: Path) -> Timed:
        from saqm.image import from_array
        from saqm.scorer import load_scorer, score

        scorer = load_scorer(threads=1, engine=engine)  # type: ignore[arg-type]
        return lambda pixels: score(from_array(pixels, modality="CT", mask="auto"), scorer).score or 0.0

    return load


def paper(run: Callable[[Any, Any], Callable[[Any], object]]) -> Callable[[Path], Timed]:
    """The paper's network on PART windows."""

    def load(_: Path) -> Timed:
        import torch

        from saqm.network import SAQM, Architecture

        torch.set_num_threads(1)
        network = SAQM(Architecture(), seed=0).eval()
        windows = torch.from_numpy(np.random.default_rng(0).standard_normal((PART, 3, 32, 32), np.float32))
        called = run(network, windows)
        return lambda _: float(bool(called(windows))) * 0.0

    return load


def eager(network: Any, windows: Any) -> Callable[[Any], object]:
    import torch

    del windows

    def call(given: Any) -> object:
        with torch.inference_mode():
            return network(given).score.tolist()

    return call


def onnx(network: Any, windows: Any) -> Callable[[Any], object]:
    import onnxruntime

    from saqm.export import onnx_graph

    del windows
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_graph(network), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(["score"], {"windows": given.numpy()})


@dataclass(frozen=True)
class Contestant:
    """A tool. other: in the peers' environment. share: of a slice that one call does."""

    name: str
    load: Callable[[Path], Timed]
    other: bool = False
    share: float = 1.0
    remark: str = ""


CONTESTANTS = (
    Contestant(
        "saqm-ct", saqm_ct("auto"), remark="score, interval, out of domain, findings; mask and windows included"
    ),
    Contestant(
        "SAQM of the paper, PyTorch eager", paper(eager), share=PART / WINDOWS, remark="network alone, untaught"
    ),
    Contestant("SAQM of the paper, ONNX Runtime", paper(onnx), share=PART / WINDOWS, remark="network alone, untaught"),
    Contestant("saqm, niqe", ours("niqe")),
    Contestant("scikit-video, niqe", scikit_video_mended, True, remark="mended"),
    Contestant("saqm, brisque", ours("brisque")),
    Contestant("OpenCV, brisque (C++)", opencv, True),
    Contestant("brisque 0.2.0", brisque_package_mended, True, remark="mended"),
    Contestant("piq, brisque", piq_mended, True, remark="mended"),
)


@dataclass
class Measured:
    """What was found; None where it was not measured, and `failed` says why."""

    name: str
    remark: str
    cold_seconds: float | None = None
    cpu_seconds_image: float | None = None
    images_second: float | None = None
    peak_mb: float | None = None
    failed: str | None = None
    calls: list[float] = field(default_factory=list, repr=False)


def serve(number: int, picture: Path, parameters: Path, calls: int) -> None:
    """The process of a tool: load, score once, then `calls` more."""
    contestant, pixels = CONTESTANTS[number], np.load(picture)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    said: dict[str, object] = {}
    try:
        timed = contestant.load(parameters)
        timed(pixels)
        said["first"] = time.time()
        times = []
        for _ in range(calls):
            began = time.process_time()
            timed(pixels)
            times.append(time.process_time() - began)
        said |= {"times": times, "peak_mb": memory("VmHWM")}
    except Exception as error:  # whatever a program dies of is its result
        said["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    answers.write(json.dumps(said))
    answers.close()


def measure(peers: Path | None, rounds: int, calls: int) -> list[Measured]:
    """All tools, in turns."""
    found = [Measured(each.name, each.remark) for each in CONTESTANTS]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "slice.npy")
        np.save(picture, slice_of_noise())
        write_parameters(Path(folder))
        for _ in range(rounds):
            for number, (contestant, one) in enumerate(zip(CONTESTANTS, found, strict=True)):
                python = peers if contestant.other else Path(sys.executable)
                if python is None:
                    one.failed = "not tried: no environment given with --peers"
                    continue
                command = [str(python), __file__, "--serve", str(number), str(picture), folder, str(calls)]
                began = time.time()
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, **ONE_THREAD}, check=False
                )
                with contextlib.suppress(ValueError):
                    said = json.loads(done.stdout)
                    note(one, said, began, contestant.share)
                    continue
                one.failed = f"its process ended with {done.returncode}"
    return found


def note(one: Measured, said: dict[str, Any], began: float, share: float) -> None:
    if "failed" in said:
        one.failed = said["failed"]
        return
    one.calls += said["times"]
    one.cpu_seconds_image = min(one.calls) / share
    one.images_second = 1 / one.cpu_seconds_image
    one.peak_mb = max(one.peak_mb or 0.0, said["peak_mb"])
    one.cold_seconds = min(one.cold_seconds or np.inf, said["first"] - began)


def slice_of_noise() -> Pixels:
    from skimage.data import shepp_logan_phantom
    from skimage.transform import resize

    head = resize(shepp_logan_phantom(), (SIDE, SIDE), anti_aliasing=True)
    noisy = 255 * head + 12 * np.random.default_rng(0).standard_normal((SIDE, SIDE)) * (head > 0)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def markdown(record: dict[str, Any]) -> str:
    """The table, and how it came about."""
    lines = [
        "| tool | images a second (one thread) | CPU s an image | peak MB | cold start, s | remark |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in record["tools"]:
        if one["cpu_seconds_image"] is None:
            lines.append(f"| {one['name']} | | | | | {one['failed']} |")
            continue
        lines.append(
            f"| {one['name']} | {one['images_second']:.3g} | {one['cpu_seconds_image']:.3g} | {one['peak_mb']:.0f} | "
            f"{one['cold_seconds']:.2f} | {one['remark']} |"
        )
    return "\n".join(lines) + (
        f"\n\nOne {SIDE}x{SIDE} CT-like slice, 8 bits; least of {record['rounds']} rounds in turns, one thread. Made "
        f"by `{record['command']}` at commit `{record['commit'][:10]}` on {record['machine']}, {record['made']}.\n"
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Images a second as bars, the fastest on top; those of saqm in a colour of their own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    tools = sorted((one for one in record["tools"] if one["images_second"]), key=lambda one: one["images_second"])
    rates = [one["images_second"] for one in tools]
    figure = Figure(figsize=(9, 0.6 + 0.36 * len(tools)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    bars = axis.barh(
        [one["name"] for one in tools],
        rates,
        color=[OURS if one["name"].startswith("saqm") else THEIRS for one in tools],
    )
    axis.bar_label(bars, [f"{rate:.3g}" for rate in rates], padding=4)
    axis.set(
        xscale="log",
        xlim=(min(rates) / 3, max(rates) * 3),
        xlabel=f"images of {SIDE}x{SIDE} a second, one thread (log)",
    )
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        handles=[Patch(color=OURS, label="saqm"), Patch(color=THEIRS, label="other tools, and the paper's network")],
        loc="lower right",
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, and write peers.json, peers.md and the plot."""
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        return
    from evidence import fill
    from provenance import ROOT, commit, processor

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, help="python of the environment with the other tools")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="timed calls a round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the plot, of the peers.json in --out")
    options = parser.parse_args()
    picture = ROOT / "docs" / "images" / "peers.png" if options.out == RESULTS else options.out / "peers.png"
    if options.draw:
        draw(json.loads((options.out / "peers.json").read_text(encoding="utf-8")), picture)
        return
    record: dict[str, Any] = {
        "command": "make benchmark-peers",
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "rounds": options.rounds,
        "tools": [
            {key: value for key, value in asdict(one).items() if key != "calls"}
            for one in measure(options.peers, options.rounds, options.calls)
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "peers.md").write_text(markdown(record), encoding="utf-8")
    draw(record, picture)
    if options.out == RESULTS:
        fill(ROOT / "README.md", "peers", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
