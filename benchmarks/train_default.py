"""Train the shipped model, and measure it out of fold first: `make train-default`.

Reads the CT reader study below SAQM_SHARED. Every part is kept below runs/ and gone on from there. Writes
src/saqm/models/saqm-ct.* (model, weights, card, out-of-fold predictions) and benchmarks/results/default_*.

The recipe is fixed here and the last epoch is kept: no test score selects anything. docs/method.md says on which
scenes the recipe had been tried before.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import SCENE_FOLDS, Study, fill, measure
from provenance import RESULTS, ROOT, commit, processor

from saqm.adapt import window_statistics
from saqm.datasets import ct_reader_study
from saqm.evaluate import ORACLE, READERS_MEAN, Evaluation
from saqm.experiments import OutOfFold, build, finish_fold, header_for, judge_out_of_fold, save_out_of_fold
from saqm.export import export_int8, export_onnx, load_network, save_network
from saqm.image import read_image
from saqm.loop import save_curve
from saqm.manifest import Manifest, Row, folds
from saqm.modelfile import DEFAULT_MODEL, MODELS, ModelHeader, out_of_fold_path, read_header
from saqm.network import SAQM, multiply_accumulates
from saqm.outputs.scatter import scatter
from saqm.pretrain import TWO_STAGES
from saqm.recipes import TARGET_ONLY
from saqm.train import read_samples

VERSION = "1.2.0"
SEED = 0
CELLS = 3  # scene folds x method folds of the second protocol, of which the diagonal is run:
DIAGONAL = (0, 4, 8)  # every scene and every denoiser is tested once, at a third of the cost
CALIBRATED_ON = 22  # slices that the scales of int8 are chosen on, evenly over the study
STEPS = TWO_STAGES.steps + (TWO_STAGES.then.steps if TWO_STAGES.then else 0)
LICENCE = (
    "Apache-2.0. Trained on slices of the MTD-GAN blind reader study (repository licence MIT), whose abdomen part "
    "derives from the AAPM/Mayo low-dose CT challenge; no image is contained or redistributed."
)
SUMMARY = (
    "Rates denoised CT slices of abdomen and head, windowed for display, as three radiologists rated contrast and "
    "structure. Not a medical device. Not for other modalities, for kernels or windows far from the study's, "
    "nor for ranking denoisers it was not trained on."
)


def run(part: str, study: Path, runs: Path) -> str:
    """One part, named scene-N, cell-N or final, in a process of its own with one thread."""
    torch.set_num_threads(1)
    manifest = ct_reader_study(study)
    began = time.time()

    def say(what: str, step: int, steps: int, logs: Any) -> None:
        if step % 100 == 0 or step == steps:
            numbers = {name: round(value, 3) for name, value in logs.items() if name not in ("step", "learning_rate")}
            print(f"{part} {what} {step}/{steps} {numbers}", flush=True)

    kind, _, number = part.partition("-")
    if kind == "final":
        model_of(manifest.rows, manifest, runs / part, DEFAULT_MODEL, say)
    else:
        fold = (folds(manifest, SCENE_FOLDS, SEED) if kind == "scene" else cells(manifest))[int(number)]
        finish_fold(manifest, fold, TARGET_ONLY, TWO_STAGES, seed=SEED, folder=runs / part, on_step=say)
        if kind == "scene":
            model_of([manifest.rows[i] for i in fold.train], manifest, runs / part, "model", say)
    return f"{part} in {time.time() - began:.0f} s"


def cells(manifest: Manifest) -> Any:
    return folds(manifest, CELLS, SEED, by=("scene", "method"))


def model_of(rows: Sequence[Row], manifest: Manifest, folder: Path, name: str, say: Any) -> None:
    """The model of some scenes, FOLDER/NAME.safetensors; its header still without results and calibration."""
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return
    network, log = build(rows, manifest, TARGET_ONLY, TWO_STAGES, seed=SEED, folder=folder, on_step=say)
    save_curve(log, folder / "curve.png", keys=("loss", "opinion", "order", "ladders"))
    images = [sample.image for sample in read_samples(manifest, rows)]
    header = header_for(
        network, TARGET_ONLY, {"ct_reader_study": manifest}, images,
        name=DEFAULT_MODEL, version=VERSION, seed=SEED, steps=STEPS + len(log),
        epochs=TARGET_ONLY.teaching.epochs, commit=commit(), results={}, licence=LICENCE, card=SUMMARY,
        features=window_statistics(network, images, TARGET_ONLY),
    )  # fmt: skip
    save_network(network, header, path)


def record_seconds(runs: Path) -> float:
    """Seconds of all training steps that the logs record, whatever was interrupted in between."""
    logs = [line for log in runs.rglob("log.jsonl") for line in log.read_text(encoding="utf-8").splitlines()]
    return sum(float(json.loads(line)["seconds"]) for line in logs)


def out_of_fold(manifest: Manifest, divided: Any, kind: str, runs: Path) -> OutOfFold:
    fold_of, value = {}, {}
    for number, fold in enumerate(divided):
        if kind == "cell" and number not in DIAGONAL:
            continue
        found = finish_fold(manifest, fold, TARGET_ONLY, TWO_STAGES, seed=SEED, folder=runs / f"{kind}-{number}")
        fold_of |= dict.fromkeys(found, number)
        value |= found
    return OutOfFold(SEED, fold_of, value)


def package(study: Path, runs: Path, seconds: float) -> None:
    """Judge the folds, write results, model files and card."""
    manifest = ct_reader_study(study)
    seen = Study(manifest, SCENE_FOLDS, runs, DEFAULT_MODEL)
    made = {
        "scenes": OutOfFold(SEED, seen.fold_of, seen.scores()),
        "scenes_and_methods": out_of_fold(manifest, cells(manifest), "cell", runs),
    }
    judged = {
        name: judge_out_of_fold(manifest, [one], by_method=name != "scenes", judged_only=True, seed=SEED)
        for name, one in made.items()
    }
    RESULTS.mkdir(exist_ok=True)
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    record: dict[str, Any] = {
        "command": "make train-default",
        "commit": commit(),
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "seconds": round(seconds),
        "seed": SEED,
        "scene_folds": SCENE_FOLDS,
        "cells": f"{CELLS} scene folds x {CELLS} method folds, the diagonal: {DIAGONAL}",
        "pretraining": asdict(TWO_STAGES),
        "recipe": asdict(TARGET_ONLY),
    }
    for name, evaluation in judged.items():
        save_out_of_fold(manifest, [made[name]], RESULTS / f"default_{name}.csv")
        (RESULTS / f"default_{name}.md").write_text(evaluation.to_markdown(), encoding="utf-8")
        scatter(evaluation, ROOT / "docs" / "images" / f"default_{name}.png")
        record[name] = json.loads(evaluation.to_json())
    (RESULTS / "default.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    network, header = load_network(runs / "final" / f"{DEFAULT_MODEL}.safetensors")
    results = {name: shortly(evaluation) for name, evaluation in judged.items()}
    training = header.training.model_copy(update={"results": results})
    calibration = seen.calibration()
    full = header.model_copy(
        update={"version": VERSION, "card": SUMMARY, "training": training, "calibration": calibration}
    )
    save_network(network, full, MODELS / f"{DEFAULT_MODEL}.safetensors")
    serve(network, full, manifest)
    save_out_of_fold(manifest, [made["scenes"]], out_of_fold_path(MODELS / f"{DEFAULT_MODEL}.onnx"))
    evidence = measure(seen, calibration, study.parent, runs)
    (MODELS / f"{DEFAULT_MODEL}.md").write_text(card(full, judged, record, evidence), encoding="utf-8")
    fill(ROOT / "README.md", "results", brief_table(judged, record))
    parts = (f"### New scenes\n\n{judged['scenes'].to_markdown()}", "![scatter](images/default_scenes.png)\n")
    more = f"### New scenes and new denoisers\n\n{judged['scenes_and_methods'].to_markdown()}"
    fill(ROOT / "docs" / "method.md", "results", "\n".join([*parts, more]))
    fill(ROOT / "docs" / "models.md", "results", accuracy_table(judged["scenes"], full))


def serve(network: SAQM, header: ModelHeader, manifest: Manifest) -> None:
    """Write what is served: the network in 8-bit integers, whose cost and accuracy `make front` has beside others."""
    every = np.linspace(0, len(manifest.rows) - 1, CALIBRATED_ON).astype(int)
    images = [read_image(manifest.rows[i].path) for i in every]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{DEFAULT_MODEL}.onnx"
        export_onnx(network, header, plain)
        export_int8(plain, images, MODELS / plain.name, name=DEFAULT_MODEL)


def brief_table(judged: dict[str, Evaluation], record: dict[str, Any]) -> str:
    """SROCC of prediction, oracle and readers, by protocol and organ, for the README."""
    titles = {"scenes": "new scenes", "scenes_and_methods": "new scenes **and** new denoisers"}
    lines = [
        "| test images | organ | n | saqm-ct, SROCC [95 % by scene] | oracle | one reader |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for protocol, evaluation in judged.items():
        for domain in sorted({result.domain for result in evaluation.results} - {"all"}):
            ours = evaluation.result(domain, "prediction")
            low, high = ours.srocc_interval or (float("nan"), float("nan"))
            others = [result for result in evaluation.results if result.domain == domain]
            oracle = next((one.srocc for one in others if one.name == ORACLE), None)
            readers = next((one.srocc for one in others if one.name == READERS_MEAN), None)
            cells_ = [
                titles[protocol],
                domain.removeprefix("ct-"),
                str(ours.n),
                f"{ours.srocc:.2f} [{low:.2f}, {high:.2f}]",
            ]
            cells_ += ["–" if value is None else f"{value:.2f}" for value in (oracle, readers)]
            lines.append("| " + " | ".join(cells_) + " |")
    made = f"Made by `{record['command']}` at commit `{record['commit'][:10]}`, seed {record['seed']}"
    return "\n".join(lines) + f"\n\n{made}, on {record['machine']}; details in `benchmarks/results/`.\n"


def accuracy_table(evaluation: Evaluation, header: ModelHeader) -> str:
    """One measured model beside its cost, for docs/models.md; other members join when they are trained."""
    lines = [
        "| model | organ | SROCC, new scenes [95 % by scene] | G multiply-accumulates a window | MB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    megabytes = (MODELS / f"{DEFAULT_MODEL}.onnx").stat().st_size / 1e6
    giga = multiply_accumulates(TARGET_ONLY.architecture) / 1e9
    for domain, found in shortly(evaluation).items():
        low, high = found["interval"]
        shown = f"{found['srocc']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {header.name} {header.version} | {domain} | {shown} | {giga:.3f} | {megabytes:.1f} |")
    return "\n".join(lines)


def shortly(evaluation: Evaluation) -> dict[str, Any]:
    """SROCC with its interval by domain: what the header carries."""
    domains = sorted({result.domain for result in evaluation.results} - {"all"})
    found = {domain: evaluation.result(domain, "prediction") for domain in domains}
    return {
        domain: {"n": one.n, "srocc": one.srocc, "interval": list(one.srocc_interval or ()), "plcc": one.plcc}
        for domain, one in found.items()
    }


def card(header: ModelHeader, judged: dict[str, Evaluation], record: dict[str, Any], evidence: str) -> str:
    """The model card, from the template beside this file."""
    size = (MODELS / f"{DEFAULT_MODEL}.onnx").stat().st_size / 1e6
    int8: Any = read_header(MODELS / f"{DEFAULT_MODEL}.onnx").training.results["int8"]
    template = (Path(__file__).parent / "default_card.md").read_text(encoding="utf-8")
    return template.format(
        name=header.name,
        version=header.version,
        size=f"{size:.1f}",
        apart=int8["mean_difference"],
        most=int8["largest_difference"],
        calibrated=int8["images"],
        licence=header.licence,
        scenes=judged["scenes"].to_markdown(),
        cells=judged["scenes_and_methods"].to_markdown(),
        evidence=evidence,
        commit=record["commit"],
        machine=record["machine"],
        minutes=round(record["seconds"] / 60),
        folds=SCENE_FOLDS,
        cell_folds=CELLS,
        images=len(header.training.images_sha256),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "default")
    parser.add_argument("--package", action="store_true", help="only judge and package what was trained before")
    options = parser.parse_args()
    study = Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")).resolve() / "data" / "ct_reader_study"
    parts = [f"scene-{n}" for n in range(SCENE_FOLDS)] + ["final"]
    parts += [f"cell-{n}" for n in DIAGONAL]
    if options.package:
        package(study, options.runs, record_seconds(options.runs))
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        for part in [pool.submit(run, part, study, options.runs) for part in parts]:
            print("done:", part.result(), flush=True)
    package(study, options.runs, record_seconds(options.runs))


if __name__ == "__main__":
    main()
