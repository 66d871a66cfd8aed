"""Table 2 written and drawn: what `saqm experiment table2` leaves in its folder, and the block that pages quote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d

from saqm.adaptation import ALIGNMENTS
from saqm.evaluate import ORACLE, READERS_MEAN, Evaluation, Result, shown, shown_interval
from saqm.image import read_image
from saqm.manifest import Manifest, read_manifest
from saqm.outputs.curves import label_curve, learning_curves
from saqm.outputs.feature_map import feature_map
from saqm.outputs.forest import forest
from saqm.outputs.scatter import scatter
from saqm.pretrain import TWO_STAGES
from saqm.statistics import Floats
from saqm.table2 import (
    CONFIGURATIONS,
    MAPPED,
    TEXTURE,
    Configuration,
    OnStep,
    Table2,
    folder_of,
    table2,
)
from saqm.texture import texture_statistics
from saqm.writing import replacing

FOLLOWED = ("unsupervised, GRL", MAPPED)  # whose learning is drawn
LOGGED: Mapping[str, str] = {  # as a run's log has it -> as the picture says it
    "domain_accuracy": "domain classifier,\naccuracy (0.5: fooled)",
    "proxy_a_distance": "proxy A-distance",
    "mmd": "MMD",
    "coral": "CORAL distance",
}
_POINTS = 101  # of a drawn run: every hundredth of its steps
_SMOOTHED = 20  # a running mean over this part of what is logged in every step

REMARKS = (
    "Scene-disjoint folds of the target, judged images, the mean prediction of the seeds; intervals and differences by "
    "resampling whole scenes. \\*\\*: p < 0.05 after Holm's correction within the direction.",
    "Inductive: no pixel of a test scene was met, neither by pre-training nor by alignment. Pre-training knew the "
    "denoisers' names and the normal-dose twins of the training scenes of both organs, and no opinion.",
    "Texture statistics: no network; ridge regression of the source's opinions on mean and sd over windows of the 42 "
    "statistics that towers are pre-trained on; by domain: each domain's by their own mean and sd.",
    "\\* SROCC / PLCC of the paper's Table 2 on 72 liver ultrasound images: other data; no split, no interval given.",
)


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
    """`saqm experiment table2`: OUT/table2.md, .json, _runs.csv and pictures; with `both`, the other way as well."""
    pretraining, configurations = TWO_STAGES, CONFIGURATIONS
    a, b = read_manifest(source), read_manifest(target)
    if quick:
        a, b = _fewer(a), _fewer(b)
        k, seeds, pretraining, configurations = 2, 1, _QUICK, [_hurried(one) for one in CONFIGURATIONS]
    textures = {row.path: texture_statistics(read_image(row.path)) for row in (*a.rows, *b.rows)}
    tables = [
        table2(
            x, y, k=k, seeds=seeds, folder=out / "runs", pretraining=pretraining, configurations=configurations,
            textures=textures, jobs=jobs, on_step=on_step,
        )
        for x, y in ([(a, b), (b, a)] if both else [(a, b)])
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table2.md": to_markdown(tables, quick=quick),
        "table2.json": to_json(tables),
        "table2_runs.csv": to_csv(tables),
    }
    for name, text in texts.items():
        with replacing(out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    draw(tables, out)
    return tables


# Texts


def to_markdown(tables: Sequence[Table2], *, quick: bool = False) -> str:
    """All directions, what each configuration is, and how to read it."""
    warning = ["**--quick: hardly taught, on a few scenes. These numbers show that it runs and mean nothing.**"]
    told = [f"- {one.name}: {one.says}." for one in CONFIGURATIONS]
    parts = [*(warning if quick else []), *map(_direction, tables), "\n".join(told)]
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in REMARKS)]) + "\n"


def _direction(table: Table2) -> str:
    """Mean prediction of the seeds, each seed's own SROCC, distance to the first row."""
    results = table.evaluation.results
    head = ["SROCC", "95 % (scenes)", "95 % (scenes and methods)", "by seed", "PLCC", f"SROCC - {results[0].name}"]
    lines = [[f"| {table.source} → {table.target}", "images", *head, "paper: MD72\\*"], ["| ---", *["---:"] * 8]]
    published = {one.name: one.published for one in CONFIGURATIONS}
    against = {c.second: c for c in table.evaluation.comparisons}
    for r in results:
        apart = ""
        if (c := against.get(r.name)) is not None:
            sure = "\\*\\*" if c.p_holm < 0.05 else ""
            apart = f"{-c.difference:+.2f} [{-c.interval[1]:.2f}, {-c.interval[0]:.2f}]{sure}"
        seeds = [s for run in table.runs if run.configuration == r.name and (s := table.srocc_of(run)) is not None]
        spread = f"{min(seeds):.2f} to {max(seeds):.2f}" if len(seeds) > 1 else ""
        paper = published.get(r.name)
        lines.append([
            f"| {r.name}", str(r.n),
            shown(r.srocc), shown_interval(r.srocc_interval), shown_interval(r.srocc_interval_methods),
            spread, shown(r.plcc), apart, "" if paper is None else f"{paper[1]:.3f} / {paper[0]:.3f}",
        ])  # fmt: skip
    lines += [[f"| {name}", f"stopped: {why}", *[""] * 7] for name, why in table.stopped.items()]
    return "\n".join(" | ".join(line) + " |" for line in lines)


def to_json(tables: Sequence[Table2]) -> str:
    """A list of directions: the evaluation, and what it was made of."""
    objects = [
        {
            "source": one.source, "target": one.target, "folds": one.folds, "seeds": one.seeds,
            "stopped": dict(one.stopped), **json.loads(one.evaluation.to_json()),
        }
        for one in tables
    ]  # fmt: skip
    return json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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


def to_block(directions: Sequence[Mapping[str, Any]], results: str) -> str:
    """The table as pages quote it, from the objects of table2.json. `results`: the page's way to table2.md."""
    first = directions[0]
    heads = " | ".join(f"{one['source']} → {one['target']}" for one in directions)
    lines = [
        f"| SROCC with the readers, new scenes of the target | {heads} | paper, MD72* |",
        f"| --- |{' ---: |' * (len(directions) + 1)}",
    ]
    paper = {one.name: one.published for one in CONFIGURATIONS}
    for name in (*(one.name for one in CONFIGURATIONS), *TEXTURE, ORACLE, READERS_MEAN):
        cells = [_cell(one, name) for one in directions]
        if any(cells):
            published = paper.get(name)
            lines.append(f"| {name} | {' | '.join(cells)} | {'' if published is None else f'{published[1]:.2f}'} |")
    return "\n".join([
        *lines, "",
        "\\* SROCC that the paper prints for its four configurations on 72 liver ultrasound images, from photographs: "
        "other data, no",
        f"intervals. In brackets: 95 %, whole scenes resampled. Made by `make table2`: {first['seeds']} seeds, "
        f"{first['folds']} folds apart in scenes, frozen",
        f"towers; every row with its differences in [benchmarks/results/table2.md]({results}).",
    ])  # fmt: skip


def _cell(direction: Mapping[str, Any], name: str) -> str:
    """SROCC and interval of one row, "stopped", or nothing where there is no such row."""
    if name in direction["stopped"]:
        return "stopped"
    for found in direction["results"]:
        if found["name"] == name:
            if found["srocc"] is None:
                return "undefined"
            bounds = found["srocc_interval"]
            return f"{found['srocc']:.2f}" + ("" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]")
    return ""


# Pictures


def draw(tables: Sequence[Table2], out: Path) -> None:
    """Every picture that the finished rows allow, into `out`, where the runs are as well. Raises MissingExtra."""
    forest(
        {_title(one): one.evaluation.results for one in tables},
        out / "table2.png",
        strong={one.name for one in CONFIGURATIONS},
    )
    shares = {_title(one): _shares(one) for one in tables}
    if all(shares.values()):
        label_curve(shares, out / "table2_labels.png", lines={_title(one): _levels(one) for one in tables})
    logged = {_title(one): _logged(one, out / "runs") for one in tables}
    if all(logged.values()):
        learning_curves(logged, out / "table2_learning.png")
    if not any(MAPPED in one.stopped for one in tables):
        readers = {
            r.domain: r.rmse
            for one in tables
            for r in one.evaluation.results
            if r.name == READERS_MEAN and r.rmse is not None
        }
        joined = _joined([one.evaluation_of(MAPPED) for one in tables])
        scatter(joined, out / "table2_scatter.png", of_one_reader=readers)
    for one in tables:
        if one.mapped is not None:
            feature_map(
                one.mapped.before,
                out / f"table2_features_{one.source}_to_{one.target}.png",
                after=one.mapped.after,
                quality=one.mapped.quality,
                titles=(f"before: all on the scale of {one.source}", f"after: {MAPPED}"),
            )


def _title(table: Table2) -> str:
    return f"{table.source} → {table.target}"


def _shares(table: Table2) -> list[tuple[float, Result]]:
    """Rows that differ in how many opinions of the target they read alone, by that share, rising."""
    found = {r.name: r for r in table.evaluation.results}
    shares = {
        one.name: one.recipe.labelled if "target" in one.recipe.scored_on else 0.0
        for one in CONFIGURATIONS
        if one.recipe.aligned and one.recipe.alignment == ALIGNMENTS["coral"]
    }
    return sorted(((share, found[name]) for name, share in shares.items() if name in found), key=lambda pair: pair[0])


def _levels(table: Table2) -> dict[str, float]:
    """What a share of opinions is compared with."""
    wanted = {"target-only": "target-only", ORACLE: "oracle (denoiser's mean)", READERS_MEAN: "one reader"}
    found = {r.name: r.srocc for r in table.evaluation.results}
    return {label: value for name, label in wanted.items() if (value := found.get(name)) is not None}


def _joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of the same predictor on different domains as one, to be drawn."""
    return replace(
        evaluations[0],
        results=tuple(result for one in evaluations for result in one.results),
        rows=tuple(row for one in evaluations for row in one.rows),
        predictions=tuple(value for one in evaluations for value in one.predictions),
    )


def _logged(table: Table2, runs: Path) -> dict[str, dict[str, Floats]]:
    """What FOLLOWED runs logged, by LOGGED's words and configuration, (runs, points) over their steps."""
    found: dict[str, dict[str, Floats]] = {}
    for name in FOLLOWED:
        here = f"fold-*/{table.source}-to-{table.target}/{folder_of(name)}/seed-*/opinions/log.jsonl"
        logs = [
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in sorted(runs.glob(here))
        ]
        for key, words in LOGGED.items():
            if logs and all(any(key in entry for entry in log) for log in logs):
                found.setdefault(words, {})[name] = np.stack([_over_the_run(log, key) for log in logs])
    return found


def _over_the_run(log: Sequence[Mapping[str, float]], key: str) -> Floats:
    """A logged number at every hundredth of a run's steps; what is logged in every step as a running mean."""
    steps = [entry["step"] for entry in log if key in entry]
    values = np.array([entry[key] for entry in log if key in entry], np.float64)
    smooth = uniform_filter1d(values, max(1, len(values) // _SMOOTHED), mode="reflect")
    found: Floats = np.interp(np.linspace(0, log[-1]["step"], _POINTS), steps, smooth)
    return found


# --quick


# float32 throughout: the trials whether bfloat16 survives would take longer than all the rest
_QUICK = replace(TWO_STAGES, steps=6, then=None, images_per_step=8, loop=replace(TWO_STAGES.loop, precision="32"))


def _fewer(manifest: Manifest, scenes: int = 4) -> Manifest:
    kept = sorted({row.scene for row in manifest.rows})[:scenes]
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.scene in kept))


def _hurried(one: Configuration) -> Configuration:
    teaching = replace(one.recipe.teaching, epochs=2, windows_per_image=16, features="32")
    return replace(one, recipe=replace(one.recipe, teaching=teaching))
