"""Table 2 of the paper on a study of one's own: what the opinions of one domain are worth on another.

The paper's four configurations and the controls it lacks, on folds apart in scenes, several seeds each. Towers are
pre-trained without any image of the test scenes, then frozen; every configuration of a fold stands on the same ones.
Pre-training sees training images of both domains, without opinions: their pixels, their twins and their denoisers'
names. So "source-only" here means: no opinion of the target, and no alignment. What is written of it, and drawn:
`saqm.table2_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from saqm.adaptation import ALIGNMENTS
from saqm.errors import ManifestError, TrainingError
from saqm.evaluate import Evaluation, evaluate_predictions
from saqm.experiments import on_scale, transfer
from saqm.frozen import Neck, mean_and_sd
from saqm.manifest import Fold, Manifest, Row, folds, normalised
from saqm.outputs.predictions import mean_of_seeds
from saqm.pretrain import TWO_STAGES, PretrainConfig, pretrain
from saqm.recipes import RECIPES, Recipe, Side
from saqm.statistics import REPLICATES, Floats, defined, srocc
from saqm.texture import fit_ridge, standardised
from saqm.train import Cache, read_versions

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
    Configuration("unsupervised, CORAL", _row("unsupervised"), "by domain, and second moments aligned"),
    Configuration(
        "unsupervised, MMD",
        _row("unsupervised", alignment=ALIGNMENTS["mmd"]),
        "by domain, and the distributions brought together by kernels",
    ),
    Configuration(
        "unsupervised, DARE-GRAM",
        _row("unsupervised", alignment=ALIGNMENTS["dare-gram"]),
        "by domain, and inverse Gram matrices aligned",
    ),
    Configuration(
        "unsupervised, GRL",
        _row("unsupervised", alignment=ALIGNMENTS["grl"], teaching={"loop": _GRL_LOOP}),
        "by domain, and gradient reversal as in the paper, on normalised features",
        3,
        (0.756, 0.769),
    ),
    Configuration(
        "unsupervised, rank",
        _row("unsupervised", alignment=ALIGNMENTS["rank"]),
        "by domain, and degraded copies of the target's references put in order",
    ),
    *(
        Configuration(
            f"semi-supervised, {share} %",
            _row("semi-supervised", labelled=share / 100),
            f"CORAL, and {share} % of the target's training opinions",
        )
        for share in (5, 10, 25, 50)
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
MAPPED = "unsupervised, CORAL"  # whose features are looked at before and after

# No network: a ridge regression of the source's opinions on `texture_statistics`; whether each domain has its own scale
TEXTURE: Mapping[str, bool] = {"texture statistics": False, "texture statistics, by domain": True}


@dataclass(frozen=True)
class Run:
    """Out-of-fold predictions of one configuration, direction and seed, on the target's scale, by row of the target."""

    source: str
    target: str
    configuration: str
    seed: int
    predictions: Values


@dataclass(frozen=True, eq=False)
class Mapped:
    """Mean features (N, D) of the judged images of one fold's held-out scenes by domain, and their opinions (N,), 0..1.

    before: on the one scale that source-only gives them. after: by domain, and changed as the alignment of MAPPED does.
    """

    before: Mapping[str, Floats]
    after: Mapping[str, Floats]
    quality: Mapping[str, Floats]


@dataclass(frozen=True)
class Table2:
    """One direction: an Evaluation whose first row is COMPARED, and every run behind it.

    stopped: configurations that a guard stopped in some fold, by name, with its message; they have no result.
    mapped: features of the first fold, where MAPPED was among the configurations and was not stopped there.
    """

    source: str
    target: str
    evaluation: Evaluation
    runs: tuple[Run, ...]
    folds: int
    seeds: int
    stopped: Mapping[str, str] = field(default_factory=dict)
    mapped: Mapped | None = field(default=None, repr=False)

    def srocc_of(self, run: Run) -> float | None:
        """The SROCC of one seed, all folds together; None where it is undefined."""
        pairs = [
            (value, row.score)
            for row, value in zip(self.evaluation.rows, self._judged(run), strict=True)
            if value is not None and row.score is not None
        ]
        return defined(srocc, *map(np.array, zip(*pairs, strict=True))) if pairs else None

    def evaluation_of(self, name: str) -> Evaluation:
        """That of one configuration alone, with its predictions. Raises UndefinedScore where it has no row."""
        own = self.evaluation.result(self.target, name)
        values = mean_of_seeds([self._judged(run) for run in self.runs if run.configuration == name])
        known = tuple(value for value in values if value is not None)
        return replace(self.evaluation, results=(own,), comparisons=(), predictions=known)

    def _judged(self, run: Run) -> list[float | None]:
        return [value for value in run.predictions if value is not None]


def table2(
    source: Manifest,
    target: Manifest,
    *,
    k: int,
    seeds: int,
    folder: Path,
    pretraining: PretrainConfig = TWO_STAGES,
    configurations: Sequence[Configuration] = CONFIGURATIONS,
    textures: Mapping[Path, Floats] | None = None,
    jobs: int = 1,
    replicates: int = REPLICATES,
    on_step: OnStep | None = None,
) -> Table2:
    """Every configuration from `source` to `target`, each on `seeds` seeds and `k` folds; kept in `folder`, run by run.

    textures: `texture_statistics` of every image, by path, where the rows of TEXTURE are wanted as well.
    A configuration that is stopped (TrainingError) in any fold has no result, and the others go on. Raises
    ManifestError where the two are one domain or share a scene, TrainingError where all are stopped.
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
    stopped: dict[str, str] = {}
    for part in made:
        stopped = part.stopped | stopped
        for (name, seed, place), value in part.values.items():
            found[name, seed][place] = on_scale(value, target.scale)
    finished = [one.name for one in configurations if one.name not in stopped]
    if not finished:
        raise TrainingError(
            f"every configuration was stopped; {configurations[0].name}: {stopped[configurations[0].name]}"
        )
    names = _domain(source), _domain(target)
    runs = tuple(Run(*names, name, seed, tuple(values)) for (name, seed), values in found.items() if name in finished)
    means = {name: mean_of_seeds([r.predictions for r in runs if r.configuration == name]) for name in finished}
    if textures is not None:
        means |= {
            name: _of_texture(source, target, divided, textures, by_domain) for name, by_domain in TEXTURE.items()
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
    return Table2(*names, evaluation, runs, k, seeds, stopped, made[0].mapped if MAPPED in finished else None)


_Todo = tuple[int, Fold, Manifest, Manifest, int, Path, PretrainConfig, tuple[Configuration, ...]]


class _Made(NamedTuple):
    """A fold: 0..1 by configuration, seed and place in the target's rows; what was stopped, with its message."""

    values: dict[tuple[str, int, int], float]
    stopped: dict[str, str]
    mapped: Mapped | None


def _fold_of(todo: _Todo) -> _Made:
    """All runs of one fold, on one thread."""
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
    places = _held_out(target, allowed)
    test = [target.rows[i] for i in places]
    direction = here / f"{_domain(source)}-to-{_domain(target)}"
    values: dict[tuple[str, int, int], float] = {}
    stopped: dict[str, str] = {}
    for one in configurations:
        for seed in range(seeds):
            run = direction / folder_of(one.name) / f"seed-{seed}"
            try:
                found = transfer(sides, test, one.recipe, towers, seed=seed, folder=run, cache=cache)
            except TrainingError as error:
                stopped[one.name] = f"fold {number}, seed {seed}: {error}"
                break
            values.update({(one.name, seed, place): value for place, value in zip(places, found, strict=True)})
    mapped = None
    if number == 0 and any(one.name == MAPPED for one in configurations) and MAPPED not in stopped:
        shown = [source.rows[i] for i in _held_out(source, allowed)], test
        mapped = _mapped(sides, shown, cache, direction / folder_of(MAPPED) / "seed-0" / "opinions")
    return _Made(values, stopped, mapped)


def folder_of(configuration: str) -> str:
    """The folder of a configuration's runs, inside its direction's."""
    return configuration.replace(" ", "-")


def _held_out(manifest: Manifest, allowed: Collection[Path]) -> list[int]:
    """The judged rows of scenes that are not trained on."""
    rows = enumerate(manifest.rows)
    return [i for i, row in rows if row.path not in allowed and row.judged and row.score is not None]


def _mapped(sides: Mapping[Side, Manifest], shown: tuple[Sequence[Row], ...], cache: Cache, run: Path) -> Mapped:
    """Features of held-out images of both sides, as the heads of source-only and those of a run meet them."""
    own = {side: mean_and_sd([cache(row.path) for row in manifest.rows]) for side, manifest in sides.items()}
    shared = mean_and_sd([cache(row.path) for row in sides["source"].rows if row.score is not None])
    kept = safetensors.torch.load_file(run / "checkpoint.safetensors")
    neck = Neck(len(shared[0]))
    prefix = "module.neck."
    neck.load_state_dict({name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)})
    before, after, quality = {}, {}, {}
    with torch.inference_mode():
        for (side, manifest), rows in zip(sides.items(), shown, strict=True):
            means_ND = torch.stack([cache(row.path).mean(0) for row in rows])
            domain = _domain(manifest)
            before[domain] = ((means_ND - shared[0]) / shared[1]).double().numpy()
            after[domain] = neck((means_ND - own[side][0]) / own[side][1]).double().numpy()
            quality[domain] = _scores(rows, manifest)
    by_domain = sorted(quality)
    return Mapped(*({domain: found[domain] for domain in by_domain} for found in (before, after, quality)))


def _of_texture(
    source: Manifest, target: Manifest, divided: Sequence[Fold], textures: Mapping[Path, Floats], by_domain: bool
) -> Values:
    """Out-of-fold predictions of a ridge regression, on the target's scale, by row of the target."""
    joint = _joint(source, target)
    found: list[float | None] = [None] * len(target.rows)
    for fold in divided:
        allowed = {joint[i].path for i in fold.train}
        own = [row for row in source.rows if row.path in allowed]
        scored = [row for row in own if row.score is not None]
        standard = _textures(own, textures)
        weights, offset = fit_ridge(standardised(_textures(scored, textures), standard), _scores(scored, source))
        if by_domain:
            standard = _textures([row for row in target.rows if row.path in allowed], textures)
        places = _held_out(target, allowed)
        values = standardised(_textures([target.rows[i] for i in places], textures), standard) @ weights + offset
        for place, value in zip(places, values, strict=True):
            found[place] = on_scale(float(value), target.scale)
    return tuple(found)


def _textures(rows: Sequence[Row], textures: Mapping[Path, Floats]) -> Floats:
    return np.stack([textures[row.path] for row in rows])


def _scores(rows: Sequence[Row], manifest: Manifest) -> Floats:
    return np.array([normalised(row.score, manifest.scale) for row in rows if row.score is not None])


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
