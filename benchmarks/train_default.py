"""Train the shipped model, and measure it out of fold first: `make train-default`.

Reads the CT reader study below SAQM_SHARED; keeps every finished part below runs/ and goes on from there. Writes
src/saqm/models/saqm-ct.* (model, weights, card, out-of-fold predictions) and benchmarks/results/default_*.

The recipe was settled before these folds were judged as a whole; the last epoch is kept; no test score is ever selected on.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from saqm.datasets import ct_reader_study
from saqm.experiments import build, finish_fold
from saqm.manifest import folds
from saqm.pretrain import PretrainConfig
from saqm.recipes import TARGET_ONLY

SEED = 0
SCENE_FOLDS = 4
CELLS = 3  # scene folds x method folds of the second protocol
ROOT = Path(__file__).parents[1]


def run(part: str, study: Path, runs: Path) -> str:
    """One part, named scene-N, cell-N or final; a process of its own with one thread."""
    torch.set_num_threads(1)
    manifest = ct_reader_study(study)

    def say(what: str, step: int, steps: int, logs: object) -> None:
        if step % 100 == 0 or step == steps:
            shown = {k: round(v, 3) for k, v in dict(logs).items() if k not in ("step", "learning_rate")}  # type: ignore[call-overload]
            print(f"{part} {what} {step}/{steps} {shown}", flush=True)

    kind, _, number = part.partition("-")
    if kind == "final":
        build(manifest.rows, manifest, TARGET_ONLY, PretrainConfig(), seed=SEED, folder=runs / part, on_step=say)
    else:
        by = ("scene",) if kind == "scene" else ("scene", "method")
        fold = folds(manifest, SCENE_FOLDS if kind == "scene" else CELLS, SEED, by=by)[int(number)]
        finish_fold(manifest, fold, TARGET_ONLY, PretrainConfig(), seed=SEED, folder=runs / part, on_step=say)
    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "default")
    options = parser.parse_args()
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    parts = [f"scene-{n}" for n in range(SCENE_FOLDS)] + ["final"] + [f"cell-{n}" for n in range(CELLS * CELLS)]
    with ProcessPoolExecutor(options.jobs) as pool:
        for part in [pool.submit(run, part, study, options.runs) for part in parts]:
            print("done:", part.result(), flush=True)


if __name__ == "__main__":
    main()
