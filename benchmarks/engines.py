"""Engines and precisions side by side in one run: speed against plain PyTorch and against the machine, and accuracy.

    python benchmarks/engines.py [--images N]

The shipped model on real windows, and the paper's network with untaught weights (cost does not depend on them). Rates
are of one thread, in processor time, interleaved; the share is of the limit that `limits.py` finds in the same run.
Accuracy is against ONNX Runtime in 32 bits, over the reader study below SAQM_SHARED: every slice, or the first N of an
even spread. Writes limits.json, engines.json and engines.md, in which each kind of processor has its own part, and the
block of docs/engines.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import limits
import numpy as np
import torch
from evidence import fill
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, UNITS, commit

from saqm import modelfile
from saqm.calibration import Observation, familiarity
from saqm.datasets import ct_reader_study
from saqm.engine import Engine, EngineName, form_of, load_engine
from saqm.evaluate import srocc
from saqm.export import export_onnx, load_network, save_network
from saqm.image import read_image
from saqm.manifest import Manifest, Row
from saqm.modelfile import DEFAULT_MODEL, ModelHeader, open_model, read_header
from saqm.network import SAQM, Architecture, multiply_accumulates
from saqm.patches import CHUNK, cut
from saqm.quantise import quantise
from saqm.scorer import ModelScorer

EAGER = "PyTorch, plain"  # SAQM as it is written, float32, no layout, nothing folded
REPEATS, PAPER_REPEATS = 5, 2
SLICE = 256  # windows of a 512x512 slice all of which is judged

Forward = Callable[[NDArray[np.float32]], object]


def spread(rows: int, count: int) -> list[int]:
    """Row numbers, evenly over all."""
    return [int(i) for i in np.linspace(0, rows - 1, count)]


def forms(folder: Path) -> dict[str, Path]:
    """The shipped model by form: in int8 as it ships, and from its weights in 32 bits."""
    weights = open_model(DEFAULT_MODEL, "safetensors")
    export_onnx(*load_network(weights), folder / "shipped.onnx")
    return {"onnx": folder / "shipped.onnx", "safetensors": weights, "int8": open_model(DEFAULT_MODEL)}


def paper_forms(folder: Path, windows_N3PP: NDArray[np.float32]) -> dict[str, Path]:
    """The paper's network, untaught, by form."""
    network = SAQM(Architecture(), seed=0).eval()
    shipped = read_header(open_model(DEFAULT_MODEL))
    return written(network, shipped.model_copy(update={"name": "paper", "calibration": None}), windows_N3PP, folder)


def written(network: SAQM, header: ModelHeader, windows_N3PP: NDArray[np.float32], folder: Path) -> dict[str, Path]:
    """A network by form, under a header that is given its architecture; int8 calibrated on the windows."""
    arch, name = network.architecture, header.name
    named = {name: getattr(arch, name) for name in ("width", "trunks", "norm", "pool", "hidden", "members", "weighted")}
    header = header.model_copy(update={"architecture": modelfile.Architecture(**named, init=arch.init)})
    save_network(network, header, folder / f"{name}.safetensors")
    export_onnx(network, header, folder / f"{name}.onnx")
    small = quantise(modelfile.read_model(folder / f"{name}.onnx").data, windows_N3PP)
    modelfile.write_onnx(small, header, folder / f"{name}-int8.onnx")
    return by_form(folder, name)


def by_form(folder: Path, name: str) -> dict[str, Path]:
    """Where `written` puts each form."""
    return {
        "onnx": folder / f"{name}.onnx", "safetensors": folder / f"{name}.safetensors",
        "int8": folder / f"{name}-int8.onnx",
    }  # fmt: skip


def engines(
    files: dict[str, Path], threads: int, names: Sequence[EngineName] = get_args(EngineName)[1:]
) -> dict[str, Engine]:
    """Every engine that is here, by its name; one that a trial refused is left out, and said."""
    found = {}
    for name in names:
        if name.startswith("cuda") or (name.startswith("openvino") and not importlib.util.find_spec("openvino")):
            continue
        for form in ("int8", form_of(name)) if form_of(name) == "onnx" and "-" not in name else (form_of(name),):
            engine = load_engine(files[form], name, threads)
            if engine.warnings:
                print(*engine.warnings)
            else:
                found[engine.name] = engine
    return found


def eager(file: Path) -> Forward:
    """The network as it is written."""
    network = load_network(file)[0]

    def forward(windows_N3PP: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(windows_N3PP))

    return forward


def seconds(
    calls: dict[str, Forward], windows_N3PP: NDArray[np.float32], threads: int, repeats: int
) -> dict[str, float]:
    """The least time of each, taken in turns after one run of each to warm up."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = clock()
            call(windows_N3PP)
            times[name].append(clock() - began)
    return {name: min(each[1:]) for name, each in times.items()}


def speed(
    files: dict[str, Path], windows_N3PP: NDArray[np.float32], gmac: float, limit: dict[str, float], repeats: int
) -> list[dict[str, Any]]:
    """One row an engine: seconds, against plain PyTorch, and the share of the machine's limit for its precision."""
    torch.set_num_threads(1)
    calls: dict[str, Forward] = {EAGER: eager(files["safetensors"])}
    calls |= {name: engine.forward for name, engine in engines(files, 1).items()}
    taken = seconds(calls, windows_N3PP, 1, repeats)
    rows = []
    for name, each in taken.items():
        precision = next((part for part in ("bf16", "int8") if name.endswith(part)), "fp32")
        rate = 2 * gmac * len(windows_N3PP) / each
        rows.append(
            {
                "engine": name,
                "seconds_window": each / len(windows_N3PP),
                "times_eager": taken[EAGER] / each,
                "gops": rate,
                "share_of_limit": rate / limit[precision],
            }
        )
    return rows


def accuracy(files: dict[str, Path], manifest: Manifest, index: Sequence[int]) -> list[dict[str, Any]]:
    """One row an engine: points to the scores of ONNX Runtime in 32 bits, and what that does to ranks."""
    scorers = {name: ModelScorer(engine) for name, engine in engines(files, 1).items()}
    seen: dict[str, list[Observation]] = {name: [] for name in scorers}
    for i in index:
        image = read_image(manifest.rows[i].path)
        for name, scorer in scorers.items():
            seen[name].append(scorer.observe(image))
    rows = [manifest.rows[i] for i in index]
    known = scorers["onnx"].header.calibration
    assert known is not None
    percents = {
        name: np.clip(scorers[name].percent(np.array([one.raw for one in each])), 0, 100) for name, each in seen.items()
    }
    flags = {name: [familiarity(known.familiar, one.views).flag for one in each] for name, each in seen.items()}
    found = []
    for name, percent in percents.items():
        apart = np.abs(percent - percents["onnx"])
        found.append(
            {
                "engine": name,
                "images": len(rows),
                "mean_difference": float(apart.mean()),
                "largest_difference": float(apart.max()),
                "srocc_change": ranks_changed(percent, percents["onnx"], rows),
                "flags_changed": int(np.sum(np.array(flags[name]) != np.array(flags["onnx"]))),
            }
        )
    return found


def ranks_changed(percent: NDArray[np.float64], before: NDArray[np.float64], rows: Sequence[Row]) -> dict[str, float]:
    """By how much the rank correlation with the opinions differs from what it was, per domain, on judged rows."""
    now, then = agreement(percent, rows), agreement(before, rows)
    return {domain: now[domain] - then[domain] for domain in now}


def agreement(percent: NDArray[np.float64], rows: Sequence[Row]) -> dict[str, float]:
    """Rank correlation with the opinions per domain, on judged rows."""
    judged = np.array([row.judged and row.score is not None for row in rows])
    opinions, domains = np.array([row.score or 0.0 for row in rows]), np.array([row.domain for row in rows])
    return {
        str(domain): srocc(percent[which], opinions[which])
        for domain in sorted(set(domains))
        if (which := judged & (domains == domain)).sum() > 2
    }


def slice_times(files: dict[str, Path], windows_N3PP: NDArray[np.float32], threads: int) -> dict[str, float]:
    """Seconds of the wall for a whole slice by ONNX Runtime."""
    whole = np.concatenate([windows_N3PP] * (SLICE // len(windows_N3PP)))
    calls: dict[str, Forward] = {
        load_engine(files[form]).name: load_engine(files[form], threads=threads).run for form in ("onnx", "int8")
    }
    return seconds(calls, whole, 2, REPEATS)


def markdown(known: dict[str, dict[str, Any]]) -> str:
    """The tables of docs/engines.md, the processor with the widest units first."""
    units = [*UNITS.values()]
    order = sorted(known, key=lambda name: next((i for i, unit in enumerate(units) if f"({unit})" in name), len(units)))
    return "\n".join(f"### {name}\n\n{_tables(known[name])}" for name in order)


def _tables(made: dict[str, Any]) -> str:
    lines = []
    for network in ("shipped", "paper"):
        lines += [f"| {network} network, one thread | ms a window | times plain PyTorch | G op/s | of the limit |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {r['engine']} | {1e3 * r['seconds_window']:.3g} | {r['times_eager']:.2f} | {r['gops']:.0f} "
            f"| {r['share_of_limit']:.0%} |"
            for r in made[network]
        ]
        lines += [""]
    lines += ["| shipped model | mean difference, points | largest | SROCC, change | flags changed |"]
    lines += ["| --- | ---: | ---: | --- | ---: |"]
    for r in made["accuracy"]:
        ranks = ", ".join(f"{name} {change:+.4f}" for name, change in r["srocc_change"].items())
        lines += [
            f"| {r['engine']} | {r['mean_difference']:.3f} | {r['largest_difference']:.2f} | {ranks} "
            f"| {r['flags_changed']} of {r['images']} |"
        ]
    whole = ", ".join(f"{name} {1e3 * each:.0f} ms" for name, each in made["slice"]["seconds"].items())
    lines += ["", f"A slice of {SLICE} judged windows on {made['slice']['threads']} threads: {whole}."]
    load = made["load_before"]
    lines += [f"{made['machine']}, {made['cores']} cores, load {load:.1f} by others when it began."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, help="of the study, for accuracy; all by itself")
    given = options.parse_args()
    shared = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data"
    manifest = ct_reader_study(shared / "ct_reader_study")
    bounds = limits.measure()
    limit = bounds["rates"][0]["limit_gops"]
    cores = os.cpu_count() or 1
    index = spread(len(manifest.rows), given.images or len(manifest.rows))
    with tempfile.TemporaryDirectory() as folder:
        files = forms(Path(folder))
        windows = cut(read_image(manifest.rows[0].path), load_engine(files["onnx"]).preparation).take(slice(0, CHUNK))
        arch = read_header(files["onnx"]).architecture
        small = Architecture(
            width=arch.width, trunks=arch.trunks, pool=arch.pool, hidden=arch.hidden, members=arch.members
        )
        made: dict[str, Any] = {
            "machine": bounds["machine"], "cores": cores, "commit": commit(), "load_before": bounds["load_before"],
            "shipped": speed(files, windows, multiply_accumulates(small) / 1e9, limit, REPEATS),
            "slice": {"threads": cores, "seconds": slice_times(files, windows, cores)},
            "accuracy": accuracy(files, manifest, index),
        }  # fmt: skip
        files = paper_forms(Path(folder), windows)
        made["paper"] = speed(files, windows, multiply_accumulates(Architecture()) / 1e9, limit, PAPER_REPEATS)
    limits.keep(bounds)
    kept = RESULTS / "engines.json"
    known = {**json.loads(kept.read_text(encoding="utf-8")), made["machine"]: made}
    kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "engines.md").write_text(markdown(known), encoding="utf-8")
    fill(ROOT / "docs" / "engines.md", "engines", markdown(known))
    print(_tables(made))


if __name__ == "__main__":
    main()
