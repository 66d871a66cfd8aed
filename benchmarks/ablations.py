"""Which parts of the paper's system matter, one changed at a time: `make ablations`, after `make table2`. Takes hours.

    python benchmarks/ablations.py [--jobs 2] [--only VARIANT ...] [--quick] [--towers runs/table2/runs]

On the towers of table2: the stride of scoring, attention switched off, and settings of gradient reversal (GRL). On
towers taught anew, shortly: attention, pooling, and one trunk against three. Both directions between the study's two
organs, on table2's folds; GRL beside CORAL, MMD and the others stands in table2 itself. What is finished in --runs is
not done again, and after each variant the tables are written with all that is finished: ablations.csv, .md, .json and
.png. `tap = "value"` is missing: it lies inside the towers, and heads on frozen towers cannot align it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saqm.errors import TrainingError
from saqm.evaluate import evaluate_predictions, shown, shown_interval
from saqm.experiments import on_scale, transfer
from saqm.loop import described
from saqm.manifest import Fold, Manifest, Row, folds, read_manifest
from saqm.network import KEY_RATIO, SAQM, TABLE_1, Architecture, multiply_accumulates
from saqm.outputs.predictions import mean_of_seeds
from saqm.patches import PATCH_SIDE
from saqm.pretrain import TWO_STAGES, PretrainConfig, pretrain
from saqm.recipes import Recipe, Side
from saqm.statistics import REPLICATES, Interval
from saqm.table2 import CONFIGURATIONS, Configuration
from saqm.train import Cache, adopt_towers, predict, read_material, read_versions, train
from saqm.writing import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDS = 4  # as in table2
TAUGHT_FOLDS = 2  # of them, where towers are taught anew: half the images, half the hours
SHORT = replace(TWO_STAGES, then=None, steps=500)
REVIVED = 1e-3  # of a score (0..1): what another machine's bfloat16 may change when a run's heads are taken up again


@dataclass(frozen=True)
class Variant:
    """One part of the system changed, and nothing else.

    beside: the variant that it is compared with, "" where it is itself one. stride, gamma: where one is given, nothing
    is taught: the heads are those of `beside`, and only the test images are looked at otherwise.
    """

    name: str
    says: str
    towers: str
    pretraining: PretrainConfig
    configurations: tuple[Configuration, ...]
    seeds: int
    folds: int = FOLDS  # how many of the division's are tested, the first ones
    beside: str = ""
    stride: int | None = None
    gamma: float | None = None

    @property
    def rescores(self) -> bool:
        return self.stride is not None or self.gamma is not None

    @property
    def operations(self) -> float:
        """10^9 multiply-accumulates a window, without those that a gamma of 0 makes superfluous."""
        arch = self.configurations[0].recipe.architecture
        off = self.gamma == 0 or not self.pretraining.attention
        return (multiply_accumulates(arch) - (attention_alone(arch) if off else 0)) / 1e9


def attention_alone(arch: Architecture) -> int:
    """Of `multiply_accumulates`, what a network without attention saves: queries, keys and Eqs 1 to 3; one trunk."""
    if arch.trunks != "shared":
        raise TrainingError("three trunks: without attention two of them fall away whole; count that another way")
    value = arch.value_channels
    positions: int = (PATCH_SIDE // 2 ** sum(kind == "maxpool" for kind, _ in TABLE_1)) ** 2
    return positions**2 * (value // KEY_RATIO + value) + positions * value * 2 * (value // KEY_RATIO)


def _named(name: str) -> Configuration:
    return next(one for one in CONFIGURATIONS if one.name == name)


def _aligned(one: Configuration, **changes: Any) -> tuple[Configuration]:
    return (replace(one, recipe=replace(one.recipe, alignment=replace(one.recipe.alignment, **changes))),)


def _of_table2() -> Iterator[Variant]:
    grl, target_only = _named("unsupervised, GRL"), _named("target-only")
    base = Variant("base", "as in table2: GRL of λ 0.1", "table2", TWO_STAGES, (grl, target_only), 1)
    yield base
    change = partial(replace, base, beside="base")
    yield change(name="gamma-0", says="attention switched off when scoring; heads as they are", gamma=0.0)
    for stride, times in ((16, "4 times the windows"), (48, "0.4 times the windows"), (64, "a quarter of the windows")):
        yield change(name=f"stride-{stride}", says=f"scored every {stride} pixels, not 32: {times}", stride=stride)
    yield change(name="lambda-0.01", says="GRL of λ 0.01", configurations=_aligned(grl, weight=0.01))
    yield change(name="lambda-1", says="GRL of λ 1", configurations=_aligned(grl, weight=1.0))
    yield change(
        name="tap-image", says="GRL on an image's mean, not on windows", configurations=_aligned(grl, tap="image")
    )
    yield change(
        name="normalise-none", says="GRL on features as they are", configurations=_aligned(grl, normalise="none")
    )
    yield change(
        name="paper-loss",
        says="GRL to the letter of the paper: λ 1 from the start, features as they are, one learning rate",
        configurations=_aligned(grl, weight=1.0, schedule="constant", normalise="none", pace=1.0),
    )


def _of_short() -> Iterator[Variant]:
    two = (_named("unsupervised, CORAL"), _named("target-only"))
    base = Variant("short", "one trunk, mean and max, attention", "short", SHORT, two, 1, TAUGHT_FOLDS)
    yield base
    yield replace(
        base, name="short-gamma-0", says="attention switched off when scoring; heads as they are", gamma=0.0,
        beside="short",
    )  # fmt: skip

    def taught(name: str, says: str, *, attention: bool = True, **changes: Any) -> Variant:
        pretraining = replace(SHORT, attention=attention, architecture=replace(SHORT.architecture, **changes))
        configurations = tuple(
            replace(one, recipe=replace(one.recipe, architecture=replace(one.recipe.architecture, **changes)))
            for one in two
        )
        return Variant(name, says, name, pretraining, configurations, 1, TAUGHT_FOLDS, "short")

    yield taught("no-attention", "gamma kept at 0 from the start", attention=False)
    yield taught("max", "max pooling (the paper): half as many features", pool="max")
    yield taught("mean", "mean pooling: half as many features", pool="mean")
    yield taught("separate", "three trunks, for Q, K and V (the paper)", trunks="separate")


VARIANTS: Mapping[str, Variant] = {one.name: one for one in (*_of_table2(), *_of_short())}  # in the order of work


def hurried(variant: Variant) -> Variant:
    """Hardly taught: to see that it runs."""
    configurations = tuple(
        replace(one, recipe=replace(one.recipe, teaching=replace(one.recipe.teaching, epochs=2, windows_per_image=16)))
        for one in variant.configurations
    )
    pretraining = replace(variant.pretraining, steps=6, then=None, images_per_step=8)
    return replace(variant, pretraining=pretraining, configurations=configurations, seeds=1)


# One variant on one fold


class Study(NamedTuple):
    """Two manifests of one domain each, in the order of their names; into how many folds; where runs are kept."""

    manifests: tuple[Manifest, Manifest]
    k: int
    folder: Path

    def fold(self, number: int) -> Fold:
        return folds(self.rows, self.k, 0)[number]

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.manifests[0].rows, *self.manifests[1].rows)

    @property
    def directions(self) -> dict[str, tuple[Manifest, Manifest]]:
        a, b = self.manifests
        return {f"{x.rows[0].domain} → {y.rows[0].domain}": (x, y) for x, y in ((a, b), (b, a))}


class Task(NamedTuple):
    """A direction on a fold: manifests of its training images; its test images, and their places in the target."""

    direction: str
    sides: dict[Side, Manifest]
    places: list[int]
    test: list[Row]


@dataclass
class Bench:
    """Towers of one fold with what was made through them, kept while variants on the same towers follow each other."""

    folder: Path
    towers: SAQM
    cache: Cache
    heads: dict[Path, SAQM] = field(default_factory=dict)


_benches: dict[tuple[Path, str, int], Bench] = {}


def bench_of(study: Study, variant: Variant, number: int) -> Bench:
    key = (study.folder, variant.towers, number)
    if key not in _benches:
        for old in [one for one in _benches if one[:2] != key[:2]]:
            del _benches[old]
        training = [study.rows[i] for i in study.fold(number).train]
        folder = fold_folder(study, variant, number)
        towers, _ = pretrain(read_versions(training), variant.pretraining, seed=0, folder=folder / "towers")
        _benches[key] = Bench(folder, towers, Cache(towers, variant.configurations[0].recipe))
    return _benches[key]


def tasks(study: Study, number: int) -> Iterator[Task]:
    """Both directions of a fold, as table2 divides them."""
    allowed = {study.rows[i].path for i in study.fold(number).train}
    for direction, (source, target) in study.directions.items():
        sides: dict[Side, Manifest] = {
            "source": replace(source, rows=tuple(row for row in source.rows if row.path in allowed)),
            "target": replace(target, rows=tuple(row for row in target.rows if row.path in allowed)),
        }
        places = [i for i, row in enumerate(target.rows) if row.path not in allowed and row.judged]
        yield Task(direction, sides, places, [target.rows[i] for i in places])


def finish(study: Study, variant: Variant, beside: Variant | None, number: int) -> dict[str, Any]:
    """All runs of a variant on a fold, on one thread: scores 0..1 by place in the target, or why a run was stopped."""
    began = time.time()
    torch.set_num_threads(1)
    bench = bench_of(study, variant, number)
    score = rescoring(variant, bench) if variant.rescores else None
    runs = []
    for task in tasks(study, number):
        for one in variant.configurations:
            for seed in range(variant.seeds):
                stopped = None
                if score is not None and beside is not None:
                    network = heads(bench, task, beside, one, seed)
                    values = [
                        predict(network, score.for_scoring(row.path), one.recipe.preparation) for row in task.test
                    ]
                else:
                    folder = run_folder(bench.folder, variant, task.direction, one, seed)
                    values, stopped = run(task, one.recipe, bench, seed, folder)
                runs.append({
                    "direction": task.direction, "configuration": one.name, "seed": seed, "stopped": stopped,
                    "values": dict(zip(task.places, values, strict=stopped is None)),
                })  # fmt: skip
    gamma = float(bench.towers.gamma.detach()) if variant.gamma is None else variant.gamma
    return {"gamma": gamma, "seconds": round(time.time() - began, 1), "runs": runs}


def run(task: Task, recipe: Recipe, bench: Bench, seed: int, folder: Path) -> tuple[list[float], str | None]:
    """Scores of the test images; none, and the message, where a guard stopped the run while it was taught.

    An error before the first step is no result, and raised.
    """
    steps = 0

    def told(*_: object) -> None:
        nonlocal steps
        steps += 1

    try:
        values = transfer(
            task.sides, task.test, recipe, bench.towers, seed=seed, folder=folder, cache=bench.cache, on_step=told
        )
    except TrainingError as error:
        if not steps:
            raise
        return [], str(error)
    return values, None


def rescoring(variant: Variant, bench: Bench) -> Cache:
    """The features of images as the variant sees them when it scores."""
    recipe = variant.configurations[0].recipe
    towers = bench.towers
    if variant.gamma is not None:
        towers = deepcopy(towers)
        with torch.no_grad():
            towers.gamma.fill_(variant.gamma)
    if variant.stride is not None:
        recipe = replace(recipe, preparation=replace(recipe.preparation, stride=variant.stride))
    return Cache(towers, recipe)


def heads(bench: Bench, task: Task, variant: Variant, one: Configuration, seed: int) -> SAQM:
    """The network of a finished run, taken up again from its last checkpoint; it must say what it said.

    Raises TrainingError where it does not.
    """
    folder = run_folder(bench.folder, variant, task.direction, one, seed)
    if folder not in bench.heads:
        known, stopped = run(task, one.recipe, bench, seed, folder)
        if stopped is not None:
            raise TrainingError(f"{variant.name}, {one.name}: {stopped}; there are no heads to score with otherwise")
        network = SAQM(one.recipe.architecture, seed=seed)
        adopt_towers(network, bench.towers)
        given = read_material(task.sides, one.recipe, seed=seed, look=bench.cache)
        train(
            network, given.samples, given.ladders, one.recipe,
            seed=seed, unscored=given.unscored, folder=folder / "opinions",
        )  # fmt: skip
        again = [predict(network, bench.cache.for_scoring(row.path), one.recipe.preparation) for row in task.test]
        apart = float(np.abs(np.subtract(known, again)).max())
        if apart > REVIVED:
            raise TrainingError(f"{folder}: its heads now say other scores, up to {apart:.2g}; remove it to start anew")
        bench.heads[folder] = network
    return bench.heads[folder]


def fold_folder(study: Study, variant: Variant, number: int) -> Path:
    return study.folder / variant.towers / f"fold-{number}"


def run_folder(fold: Path, variant: Variant, direction: str, one: Configuration, seed: int) -> Path:
    names = (direction.replace(" → ", "-to-"), one.name.replace(" ", "-"), f"seed-{seed}")
    return fold.joinpath(variant.name, *names)


def take_over(study: Study, made: Path, variant: Variant) -> None:
    """Copy table2's towers and the variant's runs on them, where they are not yet. Raises TrainingError if missing."""
    for number in range(study.k):
        there, here = made / f"fold-{number}", fold_folder(study, variant, number)
        wanted = {there / "towers": here / "towers"}
        for direction in study.directions:
            for one in variant.configurations:
                to = run_folder(here, variant, direction, one, 0).parent
                wanted[there / to.parent.name / to.name] = to
        for source, target in wanted.items():
            if not source.is_dir():
                raise TrainingError(f"{source} is missing; `make table2` makes it, or name another folder by --towers")
            if not target.exists():
                half = target.with_name(target.name + ".part")
                shutil.copytree(source, half, dirs_exist_ok=True)
                half.replace(target)


# All folds of a variant, and what is kept of them


def asked(study: Study, variant: Variant) -> dict[str, Any]:
    """What marks the results of a variant: another question has another answer."""
    of_variant = {
        "pretraining": described(variant.pretraining), "stride": variant.stride, "gamma": variant.gamma,
        "recipes": {one.name: described(one.recipe) for one in variant.configurations}, "seeds": variant.seeds,
        "manifests": [manifest.sha256 for manifest in study.manifests], "folds": study.k,
    }  # fmt: skip
    made: dict[str, Any] = json.loads(json.dumps(of_variant))
    return made


def kept_at(study: Study, variant: Variant, number: int) -> Path:
    return fold_folder(study, variant, number) / f"{variant.name}.json"


def finished(study: Study, variant: Variant) -> list[dict[str, Any] | None]:
    """What is kept of each fold, None where there is nothing. Raises TrainingError where other settings made it."""
    made: list[dict[str, Any] | None] = []
    for number in range(min(study.k, variant.folds)):
        path = kept_at(study, variant, number)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if kept is not None and kept["asked"] != asked(study, variant):
            raise TrainingError(f"{path} is of other settings or other images; remove it, or choose another --runs")
        made.append(kept)
    return made


def keep(study: Study, variant: Variant, number: int, made: Mapping[str, Any], commit: str) -> None:
    with replacing(kept_at(study, variant, number)) as beside:
        beside.write_text(json.dumps({"asked": asked(study, variant), "commit": commit, **made}), encoding="utf-8")


class Line(NamedTuple):
    """A variant in one direction and configuration. The difference is to `beside`, paired; None is undefined.

    stopped: messages of the runs that a guard stopped; where there is one, there is no SROCC.
    """

    variant: str
    direction: str
    configuration: str
    images: int
    runs: int
    srocc: float | None = None
    interval: Interval | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    stopped: tuple[str, ...] = ()


def lines_of(
    study: Study, made: Mapping[str, list[dict[str, Any]]], variants: Mapping[str, Variant], replicates: int
) -> list[Line]:
    """All finished variants, judged on all folds together by the mean prediction of their seeds."""
    found: list[Line] = []
    for base in (one for one in variants.values() if not one.beside and one.name in made):
        family = [one for one in variants.values() if one.name in made and base.name in (one.name, one.beside)]
        for direction, (_, target) in study.directions.items():
            for configuration in base.configurations:
                members = [one.name for one in family if configuration.name in {c.name for c in one.configurations}]
                runs = {
                    name: [
                        run
                        for fold in made[name]
                        for run in fold["runs"]
                        if (run["direction"], run["configuration"]) == (direction, configuration.name)
                    ]
                    for name in members
                }
                found += _judged(target, direction, configuration.name, runs, replicates)
    order = list(variants)
    return sorted(found, key=lambda line: order.index(line.variant))


def _judged(
    target: Manifest, direction: str, configuration: str, runs: Mapping[str, list[dict[str, Any]]], replicates: int
) -> Iterator[Line]:
    """Lines of one direction and configuration; the first of `runs` is what the others are compared with."""
    stopped = {name: tuple(r["stopped"] for r in of if r["stopped"] is not None) for name, of in runs.items()}
    means = {name: _mean(of, target) for name, of in runs.items() if not stopped[name]}
    base = next(iter(runs))
    if base not in means:
        raise TrainingError(f"{base}, {configuration}: {stopped[base][0]}; there is nothing to compare with")
    evaluation = evaluate_predictions(
        target.rows, means.pop(base), seed=0, replicates=replicates, name=base, others=means
    )
    results = {one.name: one for one in evaluation.results}
    differences = {one.second: one for one in evaluation.comparisons}
    for name, of in runs.items():
        line = Line(name, direction, configuration, 0, len(of), stopped=stopped[name])
        if name in results:
            line = line._replace(
                images=results[name].n, srocc=results[name].srocc, interval=results[name].srocc_interval
            )
        if name in differences:
            low, high = differences[name].interval
            line = line._replace(difference=-differences[name].difference, difference_interval=(-high, -low))
        yield line


def _mean(runs: Sequence[Mapping[str, Any]], target: Manifest) -> tuple[float | None, ...]:
    """Of the seeds, on the target's scale, by row."""
    by_seed: dict[int, list[float | None]] = {}
    for one in runs:
        values = by_seed.setdefault(one["seed"], [None] * len(target.rows))
        for place, share in one["values"].items():
            values[int(place)] = on_scale(share, target.scale)
    return mean_of_seeds(list(by_seed.values()))


# Writing


def to_csv(lines: Sequence[Line], gammas: Mapping[str, Sequence[float]], variants: Mapping[str, Variant]) -> str:
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([
        "variant", "beside", "source", "target", "configuration", "seeds", "images", "srocc", "low", "high",
        "difference", "difference_low", "difference_high", "runs", "stopped", "gamma", "gmac",
    ])  # fmt: skip
    for line in lines:
        variant = variants[line.variant]
        numbers = [line.srocc, *(line.interval or (None, None))]
        numbers += [line.difference, *(line.difference_interval or (None, None))]
        table.writerow([
            line.variant, variant.beside, *line.direction.split(" → "), line.configuration, variant.seeds, line.images,
            *("" if number is None else f"{number:.4f}" for number in numbers), line.runs, len(line.stopped),
            f"{np.mean(gammas[line.variant]):.4f}", f"{variant.operations:.4f}",
        ])  # fmt: skip
    return buffer.getvalue()


def to_markdown(
    lines: Sequence[Line], gammas: Mapping[str, Sequence[float]], variants: Mapping[str, Variant], *, quick: bool
) -> str:
    """A table for each set of towers, with what is finished of it."""
    parts = ["# Ablations: one part changed at a time"]
    if quick:
        parts.append("**--quick: hardly taught, on a few scenes. These numbers show that it runs and mean nothing.**")
    titles = {"table2": "On the towers of table 2", "short": f"On towers taught anew, {SHORT.steps} steps each"}
    for base in (one for one in variants.values() if not one.beside and one.name in gammas):
        columns = list(dict.fromkeys((x.direction, x.configuration) for x in lines if x.variant == base.name))
        seeds = f"{base.seeds} seed{'s' if base.seeds > 1 else ''}"
        parts.append(f"## {titles[base.towers]}; {seeds}, {base.folds} of {FOLDS} folds tested")
        head = ["variant", "what changes", *(f"{c}: {d}" for d, c in columns), "gamma by fold", "GMAC a window"]
        table = [head, ["---", "---", *["---:"] * (len(columns) + 2)]]
        for variant in variants.values():
            if variant.name not in gammas or base.name not in (variant.name, variant.beside):
                continue
            own = {(x.direction, x.configuration): x for x in lines if x.variant == variant.name}
            table.append([
                variant.name, variant.says, *(_cell(own.get(column), variant) for column in columns),
                " ".join(f"{gamma:.2f}" for gamma in gammas[variant.name]), f"{variant.operations:.3f}",
            ])  # fmt: skip
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in table))
    if why := [f"- {x.variant}, {x.direction}: {x.stopped[0]}." for x in lines if x.stopped]:
        parts.append("What stopped a run first:\n\n" + "\n".join(why))
    if missing := [name for name in variants if name not in gammas]:
        parts.append(f"Not finished: {', '.join(missing)}.")
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in REMARKS)]) + "\n"


REMARKS = (
    "SROCC with the readers on the target's judged images, all scene-disjoint folds together, mean prediction of the "
    "seeds. First row: [95 % over scenes]. Others: SROCC, then the difference to the first row [95 %, paired, whole "
    "scenes resampled]; no correction for the number of comparisons.",
    "Empty: the variant changes nothing there. GMAC: 10^9 multiply-accumulates; with gamma 0 without the attention.",
    'GRL on `tap = "value"` cannot be had here: it lies inside the frozen towers. GRL beside CORAL, MMD and the other '
    "alignments: table2.md.",
    "Towers are pre-trained once a fold (one seed): between towers, differences carry the chance of one training.",
)


def _cell(line: Line | None, variant: Variant) -> str:
    if line is None:
        return ""
    if line.stopped:
        return f"stopped in {len(line.stopped)} of {line.runs} runs"
    if not variant.beside:
        return f"{shown(line.srocc)} {shown_interval(line.interval)}"
    if line.difference is None:
        return shown(line.srocc)
    return f"{shown(line.srocc)}, {line.difference:+.3f} {shown_interval(line.difference_interval)}"


COLOURS = ("#0072b2", "#d55e00")  # Okabe and Ito's blue and vermilion, told apart by all; shapes differ as well


def picture(lines: Sequence[Line], variants: Mapping[str, Variant], path: Path) -> None:
    """The differences with their intervals: a panel for alignment and one for target-only, a colour a direction."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bases = [one for one in variants.values() if not one.beside and any(x.variant == one.name for x in lines)]
    names = list(dict.fromkeys(x.variant for x in lines))
    directions = list(dict.fromkeys(x.direction for x in lines))
    figure = Figure(figsize=(11.5, 0.42 * len(names) + 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True, squeeze=False)[0]
    for axes, which in zip(panels, (0, 1), strict=True):
        wanted = {base.configurations[which].name for base in bases}
        for number, direction in enumerate(directions):
            for line in (x for x in lines if x.direction == direction and x.configuration in wanted):
                place = names.index(line.variant) + (number - 0.5) * 0.3
                row, colour = names.index(line.variant), COLOURS[number]
                if not variants[line.variant].beside:
                    said, away, side = f"SROCC {shown(line.srocc)}", (-6, 6)[number], ("right", "left")[number]
                    axes.annotate(
                        said, (0, row), (away, 0), textcoords="offset points", color=colour, ha=side, va="center"
                    )
                elif line.stopped:
                    said = _cell(line, variants[line.variant])
                    axes.annotate(said, (0, place), (6, 0), textcoords="offset points", color=colour, va="center")
                elif line.difference is not None and line.difference_interval is not None:
                    axes.plot(line.difference_interval, (place, place), color=colour, linewidth=2)
                    axes.plot([line.difference], [place], "os"[number], color=colour, markersize=5)
        axes.axvline(0, color="0.6", linewidth=1, zorder=0)
        for base in bases[1:]:
            axes.axhline(names.index(base.name) - 0.5, color="0.8", linewidth=1)
        titles = list(dict.fromkeys(base.configurations[which].name for base in bases))
        axes.set(title=titles[0] if len(titles) == 1 else f"{titles[0]} (above), {titles[1]} (below)")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        panels[0].plot([], [], marker="os"[n], color=COLOURS[n], label=direction)[0]
        for n, direction in enumerate(directions)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("SROCC less that of the base, 95 % over scenes (paired)", fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def write(study: Study, variants: Mapping[str, Variant], out: Path, *, quick: bool, replicates: int) -> str:
    """ablations.csv, .md, .json and .png of all that is finished; the Markdown."""
    made: dict[str, list[dict[str, Any]]] = {}
    for name, variant in variants.items():
        kept = [fold for fold in finished(study, variant) if fold is not None]
        if len(kept) == min(study.k, variant.folds) and (not variant.beside or variant.beside in made):
            made[name] = kept
    gammas = {name: [fold["gamma"] for fold in kept] for name, kept in made.items()}
    lines = lines_of(study, made, variants, replicates)
    text = to_markdown(lines, gammas, variants, quick=quick)
    record = {
        "command": "make ablations",
        "quick": quick,
        "commits": sorted({fold["commit"] for kept in made.values() for fold in kept}),
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, numpy {np.__version__}",
        "replicates": replicates,
        "seconds": round(sum(fold["seconds"] for kept in made.values() for fold in kept)),
        "variants": [
            {
                "name": name, "says": variants[name].says, "beside": variants[name].beside or None,
                "seconds": round(sum(fold["seconds"] for fold in kept)), "gamma": gammas[name],
                "gmac": variants[name].operations,
                "results": [x._asdict() for x in lines if x.variant == name],
            }
            for name, kept in made.items()
        ],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "ablations.md": text,
        "ablations.csv": to_csv(lines, gammas, variants),
        "ablations.json": json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, content in texts.items():
        with replacing(out / name) as beside:
            beside.write_text(content, encoding="utf-8")
    picture(lines, variants, out / "ablations.png")
    return text


# The command


def commit() -> str:
    """The commit measured, with a plus where the sources held changes besides."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--short", "src", "benchmarks"], capture_output=True, text=True, check=False
    ).stdout
    return (head or "unknown") + ("+" if changed else "")


def fewer(manifest: Manifest, scenes: int = 4) -> Manifest:
    kept = sorted({row.scene for row in manifest.rows})[:scenes]
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.scene in kept))


def with_bases(names: Sequence[str]) -> list[str]:
    """Those variants and what they are compared with, in the order of work."""
    wanted = {*names, *(VARIANTS[name].beside for name in names)}
    return [name for name in VARIANTS if name in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifests", type=Path, nargs=2, default=[ROOT / "runs/abdomen.csv", ROOT / "runs/brain.csv"])
    parser.add_argument("--towers", type=Path, default=ROOT / "runs/table2/runs", help="what `make table2` left")
    parser.add_argument("--runs", type=Path, default=None, help="default: runs/ablations, or runs/ablations-quick")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results, or --runs where --quick")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT", default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=1, help="folds at once, one thread each")
    parser.add_argument("--quick", action="store_true", help="hardly taught, on few scenes and new towers")
    options = parser.parse_args(arguments)
    quick = options.quick
    runs = options.runs or ROOT / "runs" / ("ablations-quick" if quick else "ablations")
    a, b = sorted(map(read_manifest, options.manifests), key=lambda manifest: manifest.rows[0].domain)
    study = Study((fewer(a), fewer(b)) if quick else (a, b), 2 if quick else FOLDS, runs)
    variants = {name: hurried(one) if quick else one for name, one in VARIANTS.items()}
    if not quick and any(variants[name].towers == "table2" for name in options.only):
        take_over(study, options.towers, variants["base"])
    measured, out, replicates = commit(), options.out or (runs if quick else RESULTS), 200 if quick else REPLICATES
    with ExitStack() as stack:  # a fold stays with one process, which keeps the fold's features
        spawn = get_context("spawn")
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn))
            for _ in range(options.jobs if options.jobs > 1 else 0)
        ]
        for name in with_bases(options.only):
            variant, began = variants[name], time.time()
            beside = variants.get(variant.beside)
            todo = [number for number, kept in enumerate(finished(study, variant)) if kept is None]
            jobs = [pools[n % len(pools)].submit(finish, study, variant, beside, n) for n in todo if pools]
            for place, number in enumerate(todo):
                made = jobs[place].result() if jobs else finish(study, variant, beside, number)
                keep(study, variant, number, made, measured)
            text = write(study, variants, out, quick=quick, replicates=replicates)
            print(f"{time.time() - began:6.0f} s  {name}", flush=True)
    print(text)


if __name__ == "__main__":
    main()
