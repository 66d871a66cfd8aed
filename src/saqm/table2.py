"""Table 2 of the paper on a study of one's own: what the opinions of one domain are worth on another.

The paper's four configurations and the controls it lacks, on folds apart in scenes, several seeds each. Towers are
pre-trained without any image of the test scenes, then frozen; every configuration of a fold stands on the same ones.
Pre-training sees training images of both domains, without opinions: their pixels, their twins and their denoisers'
names. So "source-only" here means: no opinion of the target, and no alignment.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saqm.adaptation import ALIGNMENTS
from saqm.errors import ManifestError
from saqm.evaluate import Evaluation, evaluate_predictions, shown, shown_interval
from saqm.experiments import on_scale, transfer
from saqm.manifest import Fold, Manifest, Row, folds, read_manifest
from saqm.outputs.forest import forest
from saqm.outputs.predictions import mean_of_seeds
from saqm.pretrain import TWO_STAGES, PretrainConfig, pretrain
from saqm.recipes import RECIPES, Recipe, Side
from saqm.statistics import REPLICATES, defined, srocc
from saqm.train import Cache, read_versions
from saqm.writing import replacing

OnStep = Callable[[str, int, int, Mapping[str, float]], None]
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Configuration:
    """One row of the table. published: PLCC and SROCC of the paper on its MD72, of the row of this number."""

    name: str
    recipe: Recipe
    says: str
    number: int | None = None
    published: tuple[float, float] | None = None


def _row(name: str, **changes: Any) -> Recipe:
    """A recipe of the table without ladders, which would cost far more than all the rest and concern no opinion."""
    recipe = RECIPES[name]
    teaching = replace(recipe.teaching, ladders=0.0, **changes.pop("teaching", {}))
    return replace(recipe, teaching=teaching, **changes)


_GRL_LOOP = replace(RECIPES["unsupervised"].teaching.loop, momentum=0.5)

CONFIGURATIONS: Sequence[Configuration] = (
    Configuration("target-only", _row("target-only"), "opinions of the target alone", 1, (0.557, 0.670)),
    Configuration("source-only", _row("source-only"), "opinions of the source alone", 2, (0.685, 0.560)),
    Configuration(
        "source-only, by domain",
        _row("source-only", teaching={"standardise": "by-domain"}),
        "the same; features of each domain by their own mean and sd",
    ),
    Configuration(
        "unsupervised, CORAL", _row("unsupervised"), "by domain, and second moments aligned", 3, (0.756, 0.769)
    ),
    Configuration(
        "unsupervised, MMD",
        _row("unsupervised", alignment=ALIGNMENTS["mmd"]),
        "by domain, and the distributions brought together by kernels",
    ),
    Configuration(
        "unsupervised, GRL",
        _row("unsupervised", alignment=ALIGNMENTS["grl"], teaching={"loop": _GRL_LOOP}),
        "by domain, and gradient reversal as in the paper, on normalised features",
        3,
        (0.756, 0.769),
    ),
    *(
        Configuration(
            f"semi-supervised, {share} %",
            _row("semi-supervised", labelled=share / 100),
            f"CORAL, and {share} % of the target's training opinions",
        )
        for share in (10, 25, 50)
    ),
    Configuration(
        "semi-supervised",
        _row("semi-supervised"),
        "CORAL, and all of the target's training opinions",
        4,
        (0.810, 0.812),
    ),
    Configuration("pooled", _row("pooled"), "opinions of both, no alignment: the control that the paper lacks"),
    Configuration(
        "pooled, by domain",
        _row("pooled", teaching={"standardise": "by-domain"}),
        "the same; features of each domain by their own mean and sd",
    ),
)
COMPARED = "source-only"  # what adaptation must be better than


@dataclass(frozen=True)
class Run:
    """Out-of-fold predictions of one configuration, direction and seed, on the target's scale, by row of the target."""

    source: str
    target: str
    configuration: str
    seed: int
    predictions: Values


@dataclass(frozen=True)
class Table2:
    """One direction: an Evaluation whose first row is source-only, and every run behind it."""

    source: str
    target: str
    evaluation: Evaluation
    runs: tuple[Run, ...]
    folds: int

    def to_markdown(self) -> str:
        """The table of the direction: mean prediction of the seeds, each seed's own SROCC, distance to source-only."""
        head = ["SROCC", "95 % (scenes)", "95 % (scenes and methods)", "by seed", "PLCC", f"SROCC - {COMPARED}"]
        lines = [[f"| {self.source} → {self.target}", "images", *head, "paper: MD72\\*"], ["| ---", *["---:"] * 8]]
        published = {one.name: one.published for one in CONFIGURATIONS}
        for r in self.evaluation.results:
            against = next((c for c in self.evaluation.comparisons if c.second == r.name), None)
            apart = ""
            if against is not None:
                low, high = -against.interval[1], -against.interval[0]
                sure = "\\*\\*" if against.p_holm < 0.05 else ""
                apart = f"{-against.difference:+.2f} [{low:.2f}, {high:.2f}]{sure}"
            seeds = [s for run in self.runs if run.configuration == r.name and (s := self.srocc_of(run)) is not None]
            spread = f"{min(seeds):.2f} to {max(seeds):.2f}" if len(seeds) > 1 else ""
            paper = published.get(r.name)
            lines.append([
                f"| {r.name}", str(r.n),
                shown(r.srocc), shown_interval(r.srocc_interval), shown_interval(r.srocc_interval_methods),
                spread, shown(r.plcc), apart, "" if paper is None else f"{paper[1]:.3f} / {paper[0]:.3f}",
            ])  # fmt: skip
        return "\n".join(" | ".join(line) + " |" for line in lines) + "\n"

    def srocc_of(self, run: Run) -> float | None:
        """The SROCC of one seed, all folds together; None where it is undefined."""
        pairs = [
            (value, row.score)
            for row, value in zip(self.evaluation.rows, self._judged(run), strict=True)
            if value is not None and row.score is not None
        ]
        return defined(srocc, *map(np.array, zip(*pairs, strict=True))) if pairs else None

    def _judged(self, run: Run) -> list[float | None]:
        return [value for value in run.predictions if value is not None]


REMARKS = (
    "Scene-disjoint folds of the target, judged images, the mean prediction of the seeds; intervals and differences by "
    "resampling whole scenes. \\*\\*: p < 0.05 after Holm's correction within the direction.",
    "Inductive: no pixel of a test scene was met, neither by pre-training nor by alignment. Pre-training knew the "
    "denoisers' names and the normal-dose twins of the training scenes of both organs, and no opinion.",
    "\\* SROCC / PLCC of the paper's Table 2 on 72 liver ultrasound images: other data; no split, no interval given.",
)


def table2(
    source: Manifest,
    target: Manifest,
    *,
    k: int,
    seeds: int,
    folder: Path,
    pretraining: PretrainConfig = TWO_STAGES,
    configurations: Sequence[Configuration] = CONFIGURATIONS,
    jobs: int = 1,
    replicates: int = REPLICATES,
    on_step: OnStep | None = None,
) -> Table2:
    """Every configuration from `source` to `target`, each on `seeds` seeds and `k` folds; kept in `folder`, run by run.

    Raises ManifestError where the two are one domain or share a scene, TrainingError as `transfer`.
    """
    rows = _joint(source, target)
    divided = folds(rows, k, 0)
    todo = [
        (number, fold, source, target, seeds, folder, pretraining, tuple(configurations))
        for number, fold in enumerate(divided)
    ]
    found: dict[tuple[str, int], list[float | None]] = {
        (one.name, seed): [None] * len(target.rows) for one in configurations for seed in range(seeds)
    }
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(_fold_of, todo))
    else:
        made = []
        for done, one in enumerate(todo):
            made.append(_fold_of(one))
            if on_step is not None:
                on_step("folds", done + 1, len(todo), {})
    for part in made:
        for (name, seed, place), value in part.items():
            found[name, seed][place] = on_scale(value, target.scale)
    names = _domain(source), _domain(target)
    runs = tuple(Run(*names, name, seed, tuple(values)) for (name, seed), values in found.items())
    means = {
        one.name: mean_of_seeds([r.predictions for r in runs if r.configuration == one.name]) for one in configurations
    }
    first = COMPARED if COMPARED in means else next(iter(means))
    evaluation = evaluate_predictions(
        target.rows,
        means.pop(first),
        seed=0,
        replicates=replicates,
        name=first,
        others=means,
        manifest_sha256=target.sha256,
    )
    return Table2(*names, evaluation, runs, k)


def table2_command(
    source: Path,
    target: Path,
    *,
    both: bool,
    k: int,
    seeds: int,
    quick: bool,
    jobs: int,
    out: Path,
    on_step: OnStep | None = None,
) -> list[Table2]:
    """`saqm experiment table2`: OUT/table2.md, .json, _runs.csv and .png; with `both`, the other direction as well."""
    pretraining, configurations = TWO_STAGES, CONFIGURATIONS
    a, b = read_manifest(source), read_manifest(target)
    if quick:
        a, b = _fewer(a), _fewer(b)
        k, seeds, pretraining, configurations = 2, 1, _QUICK, [_hurried(one) for one in CONFIGURATIONS]
    tables = [
        table2(
            x, y, k=k, seeds=seeds, folder=out / "runs", pretraining=pretraining, configurations=configurations,
            jobs=jobs, on_step=on_step,
        )
        for x, y in ([(a, b), (b, a)] if both else [(a, b)])
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table2.md": to_markdown(tables, quick=quick),
        "table2.json": json.dumps([json.loads(one.evaluation.to_json()) for one in tables], indent=2) + "\n",
        "table2_runs.csv": to_csv(tables),
    }
    for name, text in texts.items():
        with replacing(out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    panels = {f"{one.source} → {one.target}": one.evaluation.results for one in tables}
    forest(panels, out / "table2.png", strong={one.name for one in configurations})
    return tables


def to_markdown(tables: Sequence[Table2], *, quick: bool = False) -> str:
    """All directions, what each configuration is, and how to read it."""
    warning = ["**--quick: hardly taught, on a few scenes. These numbers show that it runs and mean nothing.**"]
    told = [f"- {one.name}: {one.says}." for one in CONFIGURATIONS]
    parts = [*(warning if quick else []), *(one.to_markdown().rstrip() for one in tables), "\n".join(told)]
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in REMARKS)]) + "\n"


def to_csv(tables: Sequence[Table2]) -> str:
    """One line for each direction, configuration and seed."""
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["source", "target", "configuration", "seed", "folds", "images", "srocc"])
    for one in tables:
        for run in one.runs:
            value = one.srocc_of(run)
            known = sum(v is not None for v in run.predictions)
            table.writerow([
                run.source, run.target, run.configuration, run.seed, one.folds, known,
                "" if value is None else f"{value:.4f}",
            ])  # fmt: skip
    return buffer.getvalue()


_Todo = tuple[int, Fold, Manifest, Manifest, int, Path, PretrainConfig, tuple[Configuration, ...]]


def _fold_of(todo: _Todo) -> dict[tuple[str, int, int], float]:
    """All runs of one fold: 0..1 by configuration, seed and place in the target's rows. On one thread."""
    number, fold, source, target, seeds, folder, pretraining, configurations = todo
    torch.set_num_threads(1)
    rows = _joint(source, target)
    training = [rows[i] for i in fold.train]
    here = folder / f"fold-{number}"
    towers, _ = pretrain(read_versions(training), pretraining, seed=0, folder=here / "towers")
    cache = Cache(towers, configurations[0].recipe)
    allowed = {row.path for row in training}
    sides: dict[Side, Manifest] = {
        "source": replace(source, rows=tuple(row for row in source.rows if row.path in allowed)),
        "target": replace(target, rows=tuple(row for row in target.rows if row.path in allowed)),
    }
    places = [
        i for i, row in enumerate(target.rows) if row.path not in allowed and row.judged and row.score is not None
    ]
    test = [target.rows[i] for i in places]
    found = {}
    for one in configurations:
        for seed in range(seeds):
            run = here / f"{_domain(source)}-to-{_domain(target)}" / one.name.replace(" ", "-") / f"seed-{seed}"
            values = transfer(sides, test, one.recipe, towers, seed=seed, folder=run, cache=cache)
            found.update({(one.name, seed, place): value for place, value in zip(places, values, strict=True)})
    return found


def _joint(source: Manifest, target: Manifest) -> tuple[Row, ...]:
    """The rows of both, in an order that does not depend on which is which."""
    names = _domain(source), _domain(target)
    if names[0] == names[1]:
        raise ManifestError(f"source and target are both of the domain {names[0]!r}: there is nothing to adapt to")
    first, second = (source, target) if names[0] < names[1] else (target, source)
    return (*first.rows, *second.rows)


def _domain(manifest: Manifest) -> str:
    domains = sorted({row.domain for row in manifest.rows})
    if len(domains) != 1:
        raise ManifestError(
            f"{manifest.path or 'manifest'} has the domains {', '.join(domains) or 'none'}: wanted is one a manifest"
        )
    return domains[0]


_QUICK = replace(TWO_STAGES, steps=6, then=None, images_per_step=8)


def _fewer(manifest: Manifest, scenes: int = 4) -> Manifest:
    kept = sorted({row.scene for row in manifest.rows})[:scenes]
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.scene in kept))


def _hurried(one: Configuration) -> Configuration:
    teaching = replace(one.recipe.teaching, epochs=2, windows_per_image=16)
    return replace(one, recipe=replace(one.recipe, teaching=teaching))
