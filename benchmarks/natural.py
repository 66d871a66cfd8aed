"""Photographs as the source, as in the paper: on to CT, and on to ultrasound. `make natural`; takes hours.

    python benchmarks/natural.py [--jobs 2] [--seeds 3] [--quick]

The source is made of the Kodak photographs: noise, then denoisers, and SSIM in place of opinions: a surrogate, called
so wherever its numbers appear (`saqm data surrogate`). BM3D, TID2013's denoiser, takes part where its package is
installed. Two questions, on towers that were taught in one short stage:

- natural → CT: the configurations of table 2, judged by the opinions of the CT reader study.
- natural → ultrasound: nobody scored those frames, so nothing is said of their quality. Whether worse copies of frames
  of other series score lower, how far the domains are apart, and whether the scores still differ at all.

Reads below SAQM_SHARED. What is finished in --runs is not done again; natural.csv, .md, .json and the pictures are
written after each target, with the targets finished so far.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saqm import watching
from saqm.adaptation import order_concordance
from saqm.datasets import ct_reader_study, folder, surrogate
from saqm.datasets.surrogate import DEFAULT_DENOISERS
from saqm.errors import TrainingError
from saqm.evaluate import shown, shown_interval
from saqm.frozen import Features
from saqm.image import read_image, sha256_of
from saqm.loop import described, fit
from saqm.manifest import Manifest, Row, check_disjoint, read_manifest
from saqm.network import SAQM
from saqm.opinions import OpinionTask
from saqm.outputs.forest import forest
from saqm.pretrain import TWO_STAGES, PretrainConfig, Version, pretrain
from saqm.recipes import Recipe, Side
from saqm.table2 import COMPARED, CONFIGURATIONS, Configuration, Table2, folder_of, table2
from saqm.train import ORDERED_RUNGS, Cache, adopt_towers, degraded, predict, read_material, read_versions
from saqm.writing import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ULTRASOUND = "us-abdomen"
CT = ("ct-abdomen", "ct-brain")
TO_CT = (
    "source-only",
    "source-only, by domain",
    "unsupervised, CORAL",
    "unsupervised, GRL",
    "semi-supervised, 10 %",
    "semi-supervised",
    "target-only",
)
TO_ULTRASOUND = (
    "source-only",
    "source-only, by domain",
    "unsupervised, CORAL",
    "unsupervised, GRL",
    "unsupervised, MMD",
    "unsupervised, rank",
)
# Frames of each series (the first letter of a name, probably a patient) that are taught with, and that are tried
TAUGHT = {"c": 12, "d": 12, "e": 12, "f": 12}
TRIED = {"i": 8, "j": 8, "k": 8}
ROUNDING = 1e-9  # one swap of five gives -0.9 only nearly
FALLS = -0.9  # Spearman of score and strength up to which a ladder counts as falling: of five rungs, one swap


SHORT = replace(TWO_STAGES, then=None)  # one stage of 800 steps


@dataclass(frozen=True)
class Plan:
    """How much is done. `fewer`: scenes of a CT organ, photographs, and frames a series; None for all."""

    k: int = 4
    seeds: int = 3
    pretraining: PretrainConfig = SHORT
    hurried: bool = False
    fewer: int | None = None

    def configurations(self, names: Sequence[str]) -> list[Configuration]:
        by_name = {one.name: one for one in CONFIGURATIONS}
        chosen = [by_name[name] for name in names]
        if not self.hurried:
            return chosen
        # in 32 bits, for whether bf16 runs is tried in a process of its own, once a head
        short = {"epochs": 2, "windows_per_image": 16, "features": "32"}
        return [
            replace(one, recipe=replace(one.recipe, teaching=replace(one.recipe.teaching, **short))) for one in chosen
        ]


HURRIED = replace(SHORT, steps=6, images_per_step=8, loop=replace(SHORT.loop, precision="32"))
QUICK = Plan(k=2, seeds=1, pretraining=HURRIED, hurried=True, fewer=4)


@dataclass(frozen=True)
class Tried:
    """One head on frames of series that nothing was taught with; by kind of degradation where it says so.

    neighbours: share (0 to 1) of neighbouring rungs of which the worse scores lower; 0.5 is blind. falling: share of
    whole ladders with a Spearman of at most FALLS. spread: sd of the frames' scores (0..1). apart: `watching.apart` of
    the photographs and those frames, as the head meets them. source_srocc: with the surrogate, on the photographs that
    it was taught with. stopped: why there is none of this.
    """

    configuration: str
    seed: int
    neighbours: Mapping[str, float]
    falling: Mapping[str, float]
    spread: float | None
    apart: Mapping[str, float]
    source_srocc: float | None
    stopped: str = ""


def photographs(shared: Path, runs: Path, plan: Plan) -> Manifest:
    """The surrogate set, made once below `runs`."""
    out = runs / "source"
    if not out.is_dir():
        with_bm3d = ("bm3d",) if find_spec("bm3d") is not None and not plan.hurried else ()  # it takes its time
        surrogate(shared / "data" / "kodak24", out, seed=0, denoisers=(*DEFAULT_DENOISERS, *with_bm3d))
    return fewer(read_manifest(out / "manifest.csv"), plan.fewer)


def organ(shared: Path, domain: str, plan: Plan) -> Manifest:
    study = ct_reader_study(shared / "data" / "ct_reader_study")
    return fewer(replace(study, rows=tuple(row for row in study.rows if row.domain == domain)), plan.fewer)


def fewer(manifest: Manifest, scenes: int | None) -> Manifest:
    """The first scenes of a manifest, or all."""
    kept = sorted({row.scene for row in manifest.rows})[:scenes]
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.scene in kept))


def frames(root: Path, wanted: Mapping[str, int], most: int | None) -> tuple[Row, ...]:
    """Ultrasound frames, evenly spread over each series, no picture twice; the series is the scene."""
    rows = folder(root, scene_from=r"^([a-z])", domain=ULTRASOUND).rows
    first: dict[str, Row] = {}
    for row in rows:
        if row.scene in wanted:
            first.setdefault(sha256_of(row.path), row)
    chosen: list[Row] = []
    for series, count in wanted.items():
        own = [row for row in first.values() if row.scene == series]
        chosen += [own[int(place)] for place in watching.spread(len(own), min(count, most or count))]
    return tuple(chosen)


# natural -> ultrasound


def try_ultrasound(
    source: Manifest,
    taught: Sequence[Row],
    tried: Sequence[Row],
    plan: Plan,
    *,
    runs: Path,
    say: Callable[[str], None],
) -> list[Tried]:
    """Every head of TO_ULTRASOUND on one tower and `plan.seeds` seeds; kept in `runs`, head by head."""
    check_disjoint([*source.rows, *taught], tried)
    torch.set_num_threads(1)
    # without a scene: two frames of a series are no versions of one picture, which might be blended
    unnamed = [Version(read_image(row.path)) for row in taught]
    versions = [*read_versions(source.rows), *unnamed]
    towers, _ = pretrain(versions, plan.pretraining, seed=0, folder=runs / "towers")
    say("towers")
    chosen = plan.configurations(TO_ULTRASOUND)
    cache = Cache(towers, chosen[0].recipe)
    ladders = ladders_of(tried, towers, chosen[0].recipe)
    say(f"{len(ladders)} ladders")
    sides: dict[Side, Manifest] = {"source": source, "target": Manifest(tuple(taught))}
    weights = b"".join(value.numpy().tobytes() for value in towers.state_dict().values())
    asked = {
        "towers": hashlib.sha256(weights).hexdigest(),
        "source": source.sha256, "taught": [row.path.name for row in taught], "tried": [row.path.name for row in tried],
    }  # fmt: skip
    found = []
    for one in chosen:
        for seed in range(plan.seeds):
            here = runs / folder_of(one.name) / f"seed-{seed}"
            kept = here / "tried.json"
            wanted = json.loads(json.dumps({**asked, "recipe": described(one.recipe)}))
            if kept.is_file():
                before = json.loads(kept.read_text(encoding="utf-8"))
                if before["asked"] != wanted:
                    raise TrainingError(f"{here} holds another run; choose another --runs, or remove it")
                found.append(Tried(**before["found"]))
                continue
            made = try_head(one, sides, towers, cache, tried=tried, ladders=ladders, seed=seed, run=here / "opinions")
            found.append(made)
            with replacing(kept) as beside:
                beside.write_text(json.dumps({"asked": wanted, "found": asdict(made)}, indent=1), encoding="utf-8")
            say(f"{one.name}, seed {seed}")
    return found


def ladders_of(rows: Sequence[Row], towers: SAQM, recipe: Recipe) -> list[tuple[str, list[Tensor]]]:
    """(kind, features of the frame and of its worse copies), for each frame and kind, at the stride of scoring."""
    features = Features(towers, recipe)
    made = []
    for number, row in enumerate(rows):
        image = read_image(row.path)
        first = features(image, recipe.preparation.stride)
        for place, (kind, strengths) in enumerate(ORDERED_RUNGS.items()):
            worse = degraded(image, kind, strengths, seed=(0, number, place))
            made.append((kind, [first, *(features(one, recipe.preparation.stride) for one in worse)]))
    return made


def try_head(
    one: Configuration,
    sides: Mapping[Side, Manifest],
    towers: SAQM,
    cache: Cache,
    *,
    tried: Sequence[Row],
    ladders: Sequence[tuple[str, Sequence[Tensor]]],
    seed: int,
    run: Path,
) -> Tried:
    """Teach a head and try it; `train.train` would fold away what lies between features and heads."""
    recipe = one.recipe
    network = SAQM(recipe.architecture, seed=seed)
    adopt_towers(network, towers)
    given = read_material(sides, recipe, seed=seed, look=cache)
    task = OpinionTask(network, given.samples, given.ladders, recipe, given.unscored, seed=seed)
    also = {"alignment": asdict(recipe.alignment)} if recipe.aligned else None
    try:
        fit(task, recipe.teaching.loop, seed=seed, folder=run, also=also)
    except TrainingError as error:
        return Tried(one.name, seed, {}, {}, None, {}, None, stopped=str(error))
    source = sides["source"].rows
    apart = watching.apart(_met(task, source, "source", cache), _met(task, tried, "target", cache), seed=seed)
    task.fold_in()
    network.eval()

    def score(feature_ND: Tensor) -> float:
        return predict(network, feature_ND, recipe.preparation)

    by_kind: dict[str, list[list[float]]] = {kind: [] for kind in ORDERED_RUNGS}
    for kind, rungs in ladders:
        by_kind[kind].append([score(rung) for rung in rungs])
    # `fold_in` made the heads take the target's features: the source's are brought to them
    (mean, sd), (mine, my_sd) = task.statistics["source"], task.statistics["target"]
    of_source = [score((cache.for_scoring(row.path) - mean) / sd * my_sd + mine) for row in source]
    return Tried(
        one.name,
        seed,
        {kind: neighbours_in_order(made) for kind, made in by_kind.items()},
        {kind: share_falling(made) for kind, made in by_kind.items()},
        float(np.std([score(cache.for_scoring(row.path)) for row in tried])),
        apart,
        watching.rank_correlation(of_source, [row.score for row in source if row.score is not None]),
    )


def _met(task: OpinionTask, rows: Sequence[Row], side: Side, cache: Cache) -> watching.Rows:
    """Features of images as the heads and the alignment meet them."""
    mean, sd = task.statistics[side]
    made = []
    for row in rows:
        feature_ND = (cache.for_scoring(row.path) - mean) / sd
        with torch.inference_mode():
            made.append((feature_ND if task.neck is None else task.neck(feature_ND), row.scene))
    return watching.gather(made)


def neighbours_in_order(ladders: Sequence[Sequence[float]]) -> float:
    """Share of neighbouring rungs (scores, best first) of which the worse scores lower, 0 to 1; ties count half."""
    return order_concordance([pair for ladder in ladders for pair in pairwise(ladder)])


def share_falling(ladders: Sequence[Sequence[float]]) -> float:
    """Share of ladders (scores, best first) that fall along their length: Spearman at most FALLS; 0 to 1."""
    found = [watching.rank_correlation(ladder, range(len(ladder))) for ladder in ladders]
    return float(np.mean([value is not None and value <= FALLS + ROUNDING for value in found]))


# Writing


def to_markdown(source: Manifest, tables: Sequence[Table2], heads: Sequence[Tried], record: Mapping[str, Any]) -> str:
    """What was found for the targets that are finished, and how to read it."""
    warning = ["**--quick: hardly taught, on a few images. These numbers show that it runs and mean nothing.**"]
    assert source.scale is not None
    references = sum(row.reference for row in source.rows)
    parts = [
        "# Photographs as the source",
        *(warning if record["quick"] else []),
        f"The source: {references} Kodak photographs and {len(source.rows) - references} denoised versions. Its scores "
        f"are a **{source.scale.name}** ({source.scale.citation}). "
        f"Towers: one stage of {record['steps']} steps, not the two stages of table 2; they met the photographs and "
        "the target's training images, and no score of either.",
    ]
    for table in tables:
        parts += [f"## natural-surrogate → {table.target}", ct_table(table)]
    if tables:
        parts.append("\n".join(f"- {remark}" for remark in CT_REMARKS))
    if heads:
        parts += [f"## natural-surrogate → {ULTRASOUND}", order_table(heads), distance_table(heads)]
        parts.append("\n".join(f"- {remark}" for remark in ultrasound_remarks(record)))
    how = "`{command}` at commit {commit}, {date}; {machine}; {seconds} s of wall time, {taught_seconds} s of teaching."
    return "\n\n".join([*parts, how.format(**record)]) + "\n"


CT_REMARKS = (
    "SROCC with the readers; scene-disjoint folds, judged images, the mean prediction of the seeds; intervals and "
    "differences by resampling whole scenes. \\*\\*: p < 0.05 after Holm's correction within the target.",
    "Inductive: no pixel of a test scene was met, neither by pre-training nor by alignment. Pre-training knew the "
    "denoisers' names and the twins of the training scenes, of the source and of the target.",
    "target-only and the semi-supervised read opinions of the target; the others know quality by the surrogate alone.",
)


def ct_table(table: Table2) -> str:
    """One target: every configuration with its intervals, each seed's own SROCC, and its distance to source-only."""
    head = ["configuration", "images", "SROCC", "95 % (scenes)", "95 % (scenes and methods)", "by seed", "PLCC"]
    lines = [[*head, f"SROCC - {COMPARED}"], ["---", *["---:"] * 7]]
    for r in table.evaluation.results:
        against = next((c for c in table.evaluation.comparisons if c.second == r.name), None)
        apart = ""
        if against is not None:
            low, high = -against.interval[1], -against.interval[0]
            apart = f"{-against.difference:+.2f} [{low:.2f}, {high:.2f}]" + "\\*\\*" * (against.p_holm < 0.05)
        seeds = [s for run in table.runs if run.configuration == r.name and (s := table.srocc_of(run)) is not None]
        lines.append([
            r.name, str(r.n), shown(r.srocc), shown_interval(r.srocc_interval),
            shown_interval(r.srocc_interval_methods), of_seeds(seeds) if len(seeds) > 1 else "", shown(r.plcc), apart,
        ])  # fmt: skip
    stopped = [f"\nStopped: {name}, {why}" for name, why in table.stopped.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *stopped])


def order_table(heads: Sequence[Tried]) -> str:
    """Worse copies of frames never seen: what scores lower, by kind of degradation."""
    lines = [["head", *(f"{kind}: neighbours / ladders" for kind in ORDERED_RUNGS)]]
    lines.append(["---", *["---:"] * len(ORDERED_RUNGS)])
    for name, own in by_head(heads):
        cells = [
            f"{of_seeds([one.neighbours[kind] for one in own])} / {of_seeds([one.falling[kind] for one in own])}"
            for kind in ORDERED_RUNGS
        ]
        lines.append([name, *cells])
    stopped = [f"\nStopped: {one.configuration}, seed {one.seed}: {one.stopped}" for one in heads if one.stopped]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *stopped])


def distance_table(heads: Sequence[Tried]) -> str:
    """How far the domains are apart as the heads meet them, and what the heads say at all."""
    names = {"mmd": "MMD", "coral": "CORAL", "proxy_a_distance": "proxy A-distance", "effective_rank": "effective rank"}
    lines = [["head", *names.values(), "sd of scores, 0 to 100", "SROCC with the surrogate, seen"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, own in by_head(heads):
        cells = [of_seeds([one.apart[key] for one in own if key in one.apart], 3) for key in names]
        cells.append(of_seeds([100 * one.spread for one in own if one.spread is not None], 1))
        cells.append(of_seeds([one.source_srocc for one in own if one.source_srocc is not None]))
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_head(heads: Sequence[Tried]) -> Iterator[tuple[str, list[Tried]]]:
    """The seeds of each head that were not stopped."""
    for name in dict.fromkeys(one.configuration for one in heads):
        if own := [one for one in heads if one.configuration == name and not one.stopped]:
            yield name, own


def of_seeds(values: Sequence[float], digits: int = 2) -> str:
    """The mean over seeds, and the smallest and largest where they differ; empty where there is none."""
    if not values:
        return ""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def ultrasound_remarks(record: Mapping[str, Any]) -> Iterator[str]:
    rungs = ", ".join(f"{kind} {'/'.join(f'{s:g}' for s in strengths)}" for kind, strengths in ORDERED_RUNGS.items())
    yield (
        "**No opinion of these frames exists: nothing here says how well a score agrees with people**, nor whether "
        "adaptation helps anybody."
    )
    yield (
        f"{record['frames_tried']} frames of the series {', '.join(TRIED)}, never met in any way; taught with "
        f"{record['frames_taught']} frames of the series {', '.join(TAUGHT)}, without scores. One tower; "
        + (
            "one seed of each head."
            if record["seeds"] == 1
            else f"{record['seeds']} seeds of each head: mean and range."
        )
    )
    yield (
        "neighbours: share of neighbouring rungs of which the worse scores lower; 0.5 is blind, and below it upside "
        f"down. ladders: share that fall along their length (Spearman at most {FALLS}). Rungs: the frame, then {rungs}."
    )
    yield (
        "The head by rank was taught to put these very kinds and strengths in order, on the frames it was taught with. "
        "Towers met degraded copies of all of these kinds, in every row."
    )
    yield (
        "Distances: of the photographs and the frames tried, standardised and changed as the heads meet them; smaller "
        "is closer. CORAL makes its own distance small, and MMD its own: no fair sign of themselves."
    )
    yield "sd of scores: over the frames tried; near 0 a head has collapsed and says the same of everything."


def to_csv(tables: Sequence[Table2], heads: Sequence[Tried]) -> str:
    """One line for each target, configuration, seed and measure."""
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["target", "configuration", "seed", "measure", "value"])
    for one in tables:
        for run in one.runs:
            if (value := one.srocc_of(run)) is not None:
                table.writerow([one.target, run.configuration, run.seed, "srocc", f"{value:.4f}"])
    for head in heads:
        measures = {f"neighbours in order, {kind}": value for kind, value in head.neighbours.items()}
        measures |= {f"ladders falling, {kind}": value for kind, value in head.falling.items()}
        measures |= head.apart
        measures |= {} if head.spread is None else {"sd of scores": head.spread}
        measures |= {} if head.source_srocc is None else {"srocc with the surrogate, seen": head.source_srocc}
        for measure, value in measures.items():
            table.writerow([ULTRASOUND, head.configuration, head.seed, measure, f"{value:.4f}"])
    return buffer.getvalue()


def draw_orders(heads: Sequence[Tried], path: Path) -> None:
    """Share of neighbouring rungs in order as PNG: a panel a kind, a line a head, a dot a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = list(by_head(heads))
    figure = Figure(figsize=(10, 0.4 * len(named) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ORDERED_RUNGS), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, ORDERED_RUNGS, strict=True):
        for place, (_, own) in enumerate(named):
            values = [one.neighbours[kind] for one in own]
            axes.plot(values, [place] * len(values), "o", color="#3b75af", markersize=6, alpha=0.6, clip_on=False)
        axes.axvline(0.5, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.set(title=kind, xlim=(0, 1), ylim=(len(named) - 0.5, -0.5))
        axes.set_yticks(range(len(named)), [name for name, _ in named])
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of neighbouring rungs of which the worse scores lower; 0.5: blind", fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    with replacing(path) as beside:
        beside.write_bytes(buffer.getvalue())


def write(
    out: Path, source: Manifest, tables: Sequence[Table2], heads: Sequence[Tried], record: Mapping[str, Any]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    everything = {
        **record,
        "source": {"name": source.scale and source.scale.name, "images": len(source.rows), "sha256": source.sha256},
        "ct": [json.loads(one.evaluation.to_json()) for one in tables],
        "ultrasound": [asdict(one) for one in heads],
    }
    texts = {
        "natural.md": to_markdown(source, tables, heads, record),
        "natural.csv": to_csv(tables, heads),
        "natural.json": json.dumps(everything, indent=1) + "\n",
    }
    for name, text in texts.items():
        with replacing(out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    if tables:
        panels = {f"natural-surrogate → {one.target}": one.evaluation.results for one in tables}
        forest(panels, out / "natural.png", strong=set(TO_CT))
    if heads:
        draw_orders(heads, out / "natural_ultrasound.png")


def taught_seconds(runs: Path) -> float:
    """Seconds that all steps below a folder took, by their logs: of this call and of those before."""
    logs = (path.read_text(encoding="utf-8").splitlines() for path in runs.rglob("log.jsonl"))
    return sum(json.loads(line)["seconds"] for lines in logs for line in lines)


def commit() -> str:
    """The commit measured, with a plus where the sources held changes besides."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--short", "src"], capture_output=True, text=True, check=False).stdout
    return (head or "unknown") + ("+" if changed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT / os.environ.get("SAQM_SHARED", "../shared"))
    parser.add_argument("--runs", type=Path, default=None, help="what is kept; by default runs/natural, or -quick")
    parser.add_argument("--out", type=Path, default=None, help="by default benchmarks/results; with --quick, --runs")
    parser.add_argument("--jobs", type=int, default=2, help="folds at a time")
    parser.add_argument("--seeds", type=int, default=None, help="of each configuration; by default 3")
    parser.add_argument("--quick", action="store_true", help="hardly taught, on a few images: to see that it runs")
    given = parser.parse_args()
    plan = QUICK if given.quick else Plan()
    plan = plan if given.seeds is None else replace(plan, seeds=given.seeds)
    runs = (given.runs or ROOT / "runs" / ("natural-quick" if given.quick else "natural")).resolve()
    out = given.out or (runs if given.quick else RESULTS)
    began = time.time()

    def say(what: str) -> None:
        print(f"{time.time() - began:7.0f} s  {what}", flush=True)

    runs.mkdir(parents=True, exist_ok=True)
    shared = given.shared.resolve()
    source = photographs(shared, runs, plan)
    say(f"source: {len(source.rows)} pictures")
    images = shared / "data" / "abdominal_ultrasound" / "images"
    taught, tried = (frames(images, wanted, plan.fewer) for wanted in (TAUGHT, TRIED))
    tables: list[Table2] = []

    def keep() -> None:
        write(out, source, tables, heads, {
            "command": f"python benchmarks/natural.py --seeds {plan.seeds}" + " --quick" * given.quick,
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "seconds": round(time.time() - began),
            "taught_seconds": round(taught_seconds(runs)),
            "quick": given.quick, "steps": plan.pretraining.steps, "k": plan.k, "seeds": plan.seeds,
            "frames_taught": len(taught), "frames_tried": len(tried),
        })  # fmt: skip

    heads = try_ultrasound(source, taught, tried, plan, runs=runs / ULTRASOUND, say=say)
    keep()
    for domain in CT:
        tables.append(
            table2(
                source,
                organ(shared, domain, plan),
                k=plan.k,
                seeds=plan.seeds,
                folder=runs / domain,
                pretraining=plan.pretraining,
                configurations=plan.configurations(TO_CT),
                jobs=given.jobs,
            )
        )
        say(domain)
        keep()
    print(to_markdown(source, tables, heads, json.loads((out / "natural.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
