"""What this machine can do at most: matrix products in 32, 16 and 8 bits, and memory. `python benchmarks/limits.py`

Each product is timed by each library that is here, in a process of its own, for some machines kill what uses the units
they list. The limit of a precision is the best rate that any library reached. Writes benchmarks/results/limits.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from provenance import RESULTS, commit, processor

SIDE = 1024  # of the square matrices: past the caches of one core, and 2 G operations
COPIED = 1 << 28  # bytes that are copied: past any cache
LEAST_SECONDS, LEAST_RUNS = 0.5, 5  # of timing, whichever takes longer; the least time counts
OPERATIONS = 2 * SIDE**3
PATIENCE = 120


def product(library: str, precision: str, threads: int) -> Callable[[], object]:
    """One SIDE x SIDE x SIDE product by a library, ready to be called."""
    if library == "torch":
        return _by_torch(precision, threads)
    data = _graph(precision)
    given = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    if library == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"a": given})
    import io

    import openvino

    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    core = openvino.Core()
    request = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings).create_infer_request()
    return lambda: request.infer({"a": given})


def _by_torch(precision: str, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    if precision == "int8":
        a, b = (torch.randint(-127, 127, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE).to(kind) for _ in range(2))
    return lambda: a @ b


def _graph(precision: str) -> bytes:
    """a (in 32 bits) times a constant; in 8 bits rounded before and after, as a quantised network does it."""
    from onnx import numpy_helper, parser

    body = "made = MatMul(a, b)"
    if precision == "int8":
        body = """ai = QuantizeLinear(a, s, zero)
                  ad = DequantizeLinear(ai, s, zero)
                  bd = DequantizeLinear(b, s)
                  m = MatMul(ad, bd)
                  mi = QuantizeLinear(m, s, zero)
                  made = DequantizeLinear(mi, s, zero)"""
    kind = "int8" if precision == "int8" else "float"
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[{SIDE},{SIDE}] a, {kind}[{SIDE},{SIDE}] b, float s, uint8 zero) => (float[{SIDE},{SIDE}] made)
        {{ {body} }}""")
    rng = np.random.default_rng(1)
    b = (
        rng.integers(-63, 64, (SIDE, SIDE)).astype(np.int8)
        if precision == "int8"
        else rng.standard_normal((SIDE, SIDE))
    )
    for name, values in (
        ("b", b if precision == "int8" else b.astype(np.float32)),
        ("s", np.float32(0.03)),
        ("zero", np.uint8(128)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    del model.graph.input[1:]
    return bytes(model.SerializeToString())


def least_seconds(call: Callable[[], object], threads: int = 1) -> float:
    """The least time of a call, after one to warm up: processor time of one thread, which others at work do not touch,
    and time on the wall of several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    call()
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < LEAST_SECONDS:
        began = clock()
        call()
        times.append(clock() - began)
    return min(times)


def gigabytes_copied() -> float:
    """GB/s of one thread's copy, what is read and what is written both counted."""
    source, target = np.ones(COPIED // 8), np.zeros(COPIED // 8)
    return 2 * COPIED / least_seconds(lambda: np.copyto(target, source)) / 1e9


def rates(threads: int) -> dict[str, Any]:
    """G operations a second by precision and library, or why there is none; and the limit of each precision."""
    found: dict[str, dict[str, float | str]] = {}
    for precision in ("fp32", "bf16", "int8"):
        libraries = [name for name in ("torch", "onnxruntime", "openvino") if importlib.util.find_spec(name)]
        if precision == "bf16":
            libraries = [name for name in libraries if name != "onnxruntime"]  # has no such kernels on x86
        found[precision] = {name: _in_a_child(name, precision, threads) for name in libraries}
    best = {
        precision: max((rate for rate in each.values() if isinstance(rate, float)), default=None)
        for precision, each in found.items()
    }
    return {"threads": threads, "gops": found, "limit_gops": best}


def _in_a_child(library: str, precision: str, threads: int) -> float | str:
    command = [sys.executable, __file__, "--child", library, precision, "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"not within {PATIENCE} s"
    if done.returncode != 0:
        return f"died with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}"
    return float(done.stdout.split()[-1])


def measure() -> dict[str, Any]:
    """Everything, with one thread and with as many as there are cores."""
    cores = os.cpu_count() or 1
    return {
        "machine": processor(),
        "cores": cores,
        "commit": commit(),
        "load_before": os.getloadavg()[0],
        "copy_gb_per_second": gigabytes_copied(),
        "rates": [rates(threads) for threads in sorted({1, cores})],
    }


def keep(made: dict[str, Any]) -> None:
    """File a machine's limits in limits.json, beside those of processors of other kinds."""
    path = RESULTS / "limits.json"
    known = {**json.loads(path.read_text(encoding="utf-8")), made["machine"]: made}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, and write limits.json."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--child", nargs=2, metavar=("LIBRARY", "PRECISION"))
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    if given.child:
        print(OPERATIONS / least_seconds(product(*given.child, given.threads), given.threads) / 1e9)
        return
    made = measure()
    keep(made)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
