"""What members of the family cost: parameters, operations, size and time of a 512x512 image on one thread.

    python benchmarks/cost.py [--out benchmarks/results] [--only NAME]

The weights are untaught: cost does not depend on them. Accuracy stands elsewhere, and only for what was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime

from saqm.export import onnx_graph
from saqm.network import SAQM, Architecture, multiply_accumulates
from saqm.patches import CHUNK, grid
from saqm.recipes import PAPER, SLIM

FAMILY = {
    "paper (width 1, separate towers)": PAPER.architecture,
    "width 1, shared trunk": Architecture(trunks="shared"),
    "default (width 3/16, shared trunk, three heads)": SLIM,
}
SIDE = 512  # pixels of the image that is timed, all of it judged
WINDOWS = len(grid(SIDE, SIDE, 32, 32))
LEAST_SECONDS, LEAST_RUNS = 2.0, 3  # of timing, whichever takes longer; the least time counts


def cost(arch: Architecture) -> dict[str, float]:
    """Parameters, G multiply-accumulates a window, MB of ONNX, seconds an image."""
    network = SAQM(arch, seed=0).eval()
    graph = onnx_graph(network)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gmac_window": multiply_accumulates(arch) / 1e9,
        "onnx_mb": len(graph) / 1e6,
        "seconds_image": seconds_of_a_batch(graph) * WINDOWS / CHUNK,
    }


def seconds_of_a_batch(graph: bytes) -> float:
    """The least time of CHUNK windows through ONNX Runtime on one thread, after one run to warm up."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    windows = {"windows": np.random.default_rng(0).standard_normal((CHUNK, 3, 32, 32)).astype(np.float32)}
    session.run(None, windows)
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < LEAST_SECONDS:
        began = time.perf_counter()
        session.run(None, windows)
        times.append(time.perf_counter() - began)
    return min(times)


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """The same as a table."""
    lines = ["| network | parameters | G MAC a window | MB of ONNX | seconds an image |", "| --- |" + " ---: |" * 4]
    lines += [
        f"| {name} | {r['parameters']:,} | {r['gmac_window']:.3f} | {r['onnx_mb']:.1f} | {r['seconds_image']:.2f} |"
        for name, r in rows.items()
    ]
    return "\n".join([*lines, "", f"One {SIDE}x{SIDE} image, {WINDOWS} windows, one thread, {platform.machine()}.", ""])


def main() -> None:
    """Measure, print, and write cost.json and cost.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--only", default="", help="those whose name contains this")
    options = parser.parse_args()
    rows = {name: cost(arch) for name, arch in FAMILY.items() if options.only in name}
    made = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "windows": WINDOWS, "networks": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cost.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (options.out / "cost.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
