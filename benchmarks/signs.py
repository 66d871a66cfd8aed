"""Which label-free sign would have told a good adaptation from a bad one: `make signs`, seconds, after `make table2`.

A run of `saqm experiment table2` that met both domains logs, every hundred steps and without an opinion of the target,
how far the domains are apart and what else shows. Here the signs of its last step stand beside the SROCC that the run
really had on the target's judged test images of its fold. Nothing was ever chosen by either. Reads the runs below
runs/table2 and the manifests that they were made of; writes benchmarks/results/signs.csv and signs.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqm.experiments import on_scale
from saqm.manifest import Manifest, read_manifest
from saqm.statistics import REPLICATES, cluster_weights, defined, interval, srocc, srocc_replicates
from saqm.table2 import CONFIGURATIONS
from saqm.writing import replacing

ROOT = Path(__file__).parents[1]
SIGNS: Mapping[str, int] = {  # which way one would hope: 1, the larger the better; -1, the smaller
    "mmd": -1,
    "coral": -1,
    "proxy_a_distance": -1,
    "domain_accuracy": -1,  # of gradient reversal alone
    "effective_rank": 1,
    "source_srocc": 1,
    "order_concordance": 1,  # where the target has ladders
}
NAMES = {one.name.replace(" ", "-"): one.name for one in CONFIGURATIONS}  # by folder
LEAST_FOLDS = 3  # to draw from; of two there are three different draws
UNREAD, READ = "no opinion of the target read", "opinions of the target read"


@dataclass(frozen=True)
class Run:
    """A finished run: signs of its last step; SROCC (-1 to 1) on its judged test images, None where undefined."""

    direction: str
    configuration: str
    seed: int
    fold: int
    group: str
    signs: Mapping[str, float]
    images: int
    srocc: float | None


# Reading


def read_runs(folder: Path, manifests: Sequence[Manifest]) -> list[Run]:
    """The finished runs of table2 below a folder; by direction, then as in table2, then seed and fold."""
    of = {manifest.rows[0].domain: manifest for manifest in manifests}
    found = []
    for done in folder.glob("fold-*/*-to-*/*/seed-*/predictions.json"):
        seed, configuration, direction, fold = (part.name for part in done.parents[:4])
        source, target = direction.split("-to-")
        asked = _read(done.with_name("asked.json"))
        images, value = _judged(asked["test"], _read(done), of[target])
        found.append(
            Run(
                f"{source} → {target}",
                NAMES[configuration],
                int(seed.removeprefix("seed-")),
                int(fold.removeprefix("fold-")),
                READ if "target" in asked["recipe"]["scored_on"] else UNREAD,
                _last_signs(done.parent / "opinions" / "log.jsonl"),
                images,
                value,
            )
        )
    order = list(NAMES.values())
    return sorted(found, key=lambda run: (run.direction, order.index(run.configuration), run.seed, run.fold))


def _judged(test: Sequence[str], shares: Sequence[float], manifest: Manifest) -> tuple[int, float | None]:
    """How many of the test images are judged, and the SROCC on them."""
    rows = {str(row.path): row for row in manifest.rows}
    pairs = [
        (on_scale(share, manifest.scale), row.score)
        for row, share in zip((rows[path] for path in test), shares, strict=True)
        if row.judged and row.score is not None
    ]
    return len(pairs), defined(srocc, *map(np.array, zip(*pairs, strict=True))) if pairs else None


def _last_signs(log: Path) -> dict[str, float]:
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return {name: float(last[name]) for name in SIGNS if name in last}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Judging the signs


@dataclass(frozen=True)
class Judgement:
    """What one sign was worth among comparable runs of one direction; correlations as they are, not turned.

    by_fold: the correlation inside each fold, where no fold is easier than another; folds where it is undefined left
    out. chosen, best: mean over folds of the SROCC of the run that the sign would have chosen there, and of the best
    one, each less that of any run (their mean).
    """

    sign: str
    runs: int
    folds: int
    correlation: float | None
    interval: tuple[float, float] | None
    by_fold: tuple[float, ...]
    chosen: float
    best: float

    @property
    def held(self) -> bool | None:
        """True where every fold bears the sign out, False where every fold speaks against it, None in between."""
        turned = [SIGNS[self.sign] * value for value in self.by_fold]
        if len(turned) < max(2, self.folds):
            return None
        return True if min(turned) > 0 else False if max(turned) < 0 else None


def judge(sign: str, runs: Sequence[Run]) -> Judgement | None:
    """One sign among runs of one direction and group; None where fewer than 3 of them have it."""
    known = [(run.fold, run.signs[sign], run.srocc) for run in runs if sign in run.signs and run.srocc is not None]
    if len(known) < 3:
        return None
    fold, value, truth = (np.array(column) for column in zip(*known, strict=True))
    folds = sorted(set(fold.tolist()))
    found = defined(srocc, value, truth)
    bounds = None
    if found is not None and len(folds) >= LEAST_FOLDS:
        weights = cluster_weights(fold.tolist(), replicates=REPLICATES, seed=0)
        bounds = interval(srocc_replicates(value, truth, weights))
    inside = [defined(srocc, value[fold == one], truth[fold == one]) for one in folds]
    return Judgement(
        sign,
        len(known),
        len(folds),
        found,
        bounds,
        tuple(one for one in inside if one is not None),
        _mean_of_folds(fold, truth, SIGNS[sign] * value),
        _mean_of_folds(fold, truth, truth),
    )


def _mean_of_folds(fold: NDArray[np.int_], truth: NDArray[np.float64], by: NDArray[np.float64]) -> float:
    """Mean over folds of the SROCC of the run that is largest in `by` (of all that tie), less that of any run."""
    places = [np.flatnonzero(fold == one) for one in np.unique(fold)]
    return float(np.mean([truth[here][by[here] == by[here].max()].mean() - truth[here].mean() for here in places]))


# Writing


def to_csv(runs: Sequence[Run]) -> str:
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["direction", "configuration", "seed", "fold", "group", *SIGNS, "images", "srocc"])
    for run in runs:
        signs = [f"{run.signs[name]:.4f}" if name in run.signs else "" for name in SIGNS]
        value = "" if run.srocc is None else f"{run.srocc:.4f}"
        table.writerow([run.direction, run.configuration, run.seed, run.fold, run.group, *signs, run.images, value])
    return buffer.getvalue()


def to_markdown(runs: Sequence[Run]) -> str:
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.signs:
            groups[run.direction, run.group].append(run)
    judged = {
        key: [one for sign in SIGNS if (one := judge(sign, members)) is not None]
        for key, members in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] != UNREAD))
    }
    parts = ["# Signs without labels beside the true SROCC", summary(judged)]
    for (direction, group), found in judged.items():
        here = groups[direction, group]
        names = dict.fromkeys(run.configuration for run in here)
        parts += [f"## {direction}: {group}", f"{len(here)} runs: {'; '.join(names)}.", _table(found)]
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in remarks(runs))]) + "\n"


def summary(judged: Mapping[tuple[str, str], Sequence[Judgement]]) -> str:
    """Which signs spoke the same in every fold of every direction, among runs that read no opinion of the target."""
    held: dict[str, set[bool | None]] = defaultdict(set)
    for (_, group), found in judged.items():
        for one in found if group == UNREAD else ():
            held[one.sign].add(one.held)
    told = {
        words: [sign for sign, verdicts in held.items() if verdicts == wanted]
        for words, wanted in (("as hoped", {True}), ("the other way round", {False}))
    }
    return " ".join([
        "Among runs that read no opinion of the target, signs that went with the true SROCC in every fold of every",
        "direction:", "; ".join(f"{words}: {', '.join(signs) or 'none'}" for words, signs in told.items()) + ".",
    ])  # fmt: skip


def _table(found: Sequence[Judgement]) -> str:
    head = ["sign", "hoped for", "runs", "folds", "Spearman", "95 % (folds)", "inside a fold", "chosen", "best"]
    lines = [head, ["---", "---", *["---:"] * 7]]
    for one in found:
        inside = "undefined"
        if one.by_fold:
            inside = f"{np.mean(one.by_fold):+.2f} ({min(one.by_fold):+.2f} to {max(one.by_fold):+.2f})"
        lines.append([
            one.sign, "larger" if SIGNS[one.sign] > 0 else "smaller", str(one.runs), str(one.folds),
            "undefined" if one.correlation is None else f"{one.correlation:+.2f}",
            "-" if one.interval is None else f"[{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]", inside,
            f"{one.chosen:+.3f}", f"{one.best:+.3f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(runs: Sequence[Run]) -> Iterator[str]:
    folds = len({run.fold for run in runs})
    blind = [name for name in NAMES.values() if any(r.configuration == name and not r.signs for r in runs)]
    yield (
        "Spearman: of the sign at the last step with the run's true SROCC on the judged test images of its fold, over "
        f"runs. {len(runs)} finished runs; without signs, for they meet one domain alone: {', '.join(blind) or 'none'}."
    )
    yield "Over all folds it mixes in that some folds are easier; inside a fold (mean, lowest to highest) it does not."
    yield (
        f"The interval draws whole folds {REPLICATES} times, seed 0; there are {folds}, which make "
        f"{math.comb(2 * folds - 1, folds)} different draws: it is too narrow. The runs of a fold share towers and "
        "test images, and those of all folds share training images."
    )
    yield (
        "chosen: SROCC of the run that the sign would choose in each fold, less the mean of the runs that have the "
        "sign; mean over folds. best: the same of the best run, which only labels can tell."
    )
    yield (
        "What an alignment makes small is no fair sign of it: CORAL lowers coral, and gradient reversal spoils the "
        "classifier behind domain_accuracy. Many signs on few folds: one may stand out by chance."
    )
    yield (
        "proxy_a_distance brings every feature to the same sd. One that fires in hardly a window then tells domains "
        "standardised apart by its two constants: near 2 in such a fold, however alike the rest is."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "table2" / "runs")
    manifests = [ROOT / "runs" / "abdomen.csv", ROOT / "runs" / "brain.csv"]
    parser.add_argument("--manifests", type=Path, nargs=2, default=manifests)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    runs = read_runs(given.runs, [read_manifest(path, check_files=False) for path in given.manifests])
    if not runs:
        parser.error(f"no finished run below {given.runs}: make table2")
    for name, text in (("signs.csv", to_csv(runs)), ("signs.md", to_markdown(runs))):
        with replacing(given.out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    print(to_markdown(runs))


if __name__ == "__main__":
    main()
