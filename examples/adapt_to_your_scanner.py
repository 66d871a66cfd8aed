"""What adaptation does to a model that meets another scanner, on data that is made here. Needs no data of yours.

    python examples/adapt_to_your_scanner.py [--out FOLDER] [--seed 0]

Two made scanners take pictures of made phantoms; B is softer, darker and of coarser grain than A. How much a picture
was damaged is known, for it was made so: that stands for the opinion scores. A small model learns on A. B is then met
in three more ways, of which only the last reads scores of B. FOLDER/adapted/ holds what `saqm adapt` leaves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from scipy import ndimage

import saqm
from saqm.adapt import adapt_command, window_statistics
from saqm.adaptation import order_concordance
from saqm.experiments import header_for
from saqm.export import load_network, save_network
from saqm.image import read_image
from saqm.loop import LoopConfig
from saqm.manifest import Manifest, Row, Scale
from saqm.network import SAQM, Architecture
from saqm.opinions import Ladder
from saqm.pretrain import PretrainConfig, pretrain
from saqm.recipes import RECIPES, Recipe, Side
from saqm.statistics import srocc
from saqm.train import Cache, adopt_towers, make_ladders, predict, read_material, read_versions, train

SIDE = 96  # pixels
LEVELS = 5  # of damage, from none to much
COUNTS = {"training": 30, "test": 20}  # pictures of each scanner; no phantom is seen twice
TRIED = 8  # test pictures whose worse copies are put in order
LABELLED = 0.3  # share of B's training pictures whose scores the last way reads

# Small enough for a minute: what ships is six times as wide, and was taught far longer, on real slices
TINY = Architecture(
    width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(16,), members=2, weighted=True
)
TOWERS = PretrainConfig(
    architecture=TINY, loop=LoopConfig(learning_rate=3e-3, optimiser="adamw", schedule="one-cycle"),
    steps=80, images_per_step=16, differences=0.0, makers=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Scanner:
    """How a made scanner shows a phantom: grey levels of black and white, sigma (pixels) of its blur, its noise (sd in
    grey levels), and sigma (pixels) of the noise's grain."""

    name: str
    black: float
    white: float
    blur: float
    noise: float
    grain: float


A = Scanner("scanner-a", black=30, white=220, blur=0.4, noise=2, grain=0)
B = Scanner("scanner-b", black=20, white=140, blur=0.9, noise=4, grain=0.7)


SCANNERS: Mapping[Side, Scanner] = {"source": A, "target": B}


class Measured(NamedTuple):
    """Of test pictures: share (0..1) of worse copies that score lower, and SROCC with the known making (-1..1)."""

    concordance: float
    srocc: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="by itself a new temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="saqm-adapt-")) if options.out is None else options.out
    if (out / "adapted" / "model.safetensors").exists():
        parser.error(f"{out / 'adapted'} holds a model already; choose another --out")
    run(out, options.seed)


def run(out: Path, seed: int) -> None:
    learnt = {side: take_pictures(scanner, out, "training", seed) for side, scanner in SCANNERS.items()}
    test = {side: take_pictures(scanner, out, "test", seed) for side, scanner in SCANNERS.items()}
    towers, _ = pretrain(read_versions(learnt["source"].rows), TOWERS, seed=seed)
    cache = Cache(towers, small("source-only"))  # all ways share these towers, so each feature is made once
    first, steps = taught("source-only", learnt, towers, cache, seed)
    save_model(first, steps, learnt["source"], out / "model-of-a.safetensors", seed)

    said: list[str] = []
    found = adapt_command(
        model=out / "model-of-a.safetensors", names=[row.path for row in learnt["target"].rows], manifest=None,
        out=out / "adapted", seed=seed, say=said.append,
    )  # fmt: skip
    few = round(LABELLED * COUNTS["training"])
    ways = {
        "A alone (source-only)": first,
        "saqm adapt: that model, and images of B": load_network(found["weights"])[0],
        "scores of A, images of B (unsupervised)": taught("unsupervised", learnt, towers, cache, seed)[0],
        f"and scores of {few} of B (semi-supervised)": taught("semi-supervised", learnt, towers, cache, seed)[0],
    }
    ladders = make_ladders(test["target"].rows[:TRIED], seed=seed, of="all", look=cache)
    rows = {way: measure(network, test["target"], ladders, cache) for way, network in ways.items()}
    ladders = make_ladders(test["source"].rows[:TRIED], seed=seed, of="all", look=cache)
    at_home = measure(first, test["source"], ladders, cache)

    print(f"Learnt from {COUNTS['training']} pictures of each scanner, tested on {COUNTS['test']} new ones of B.\n")
    print_table(rows | {"the first, on new ones of A": at_home})
    before, after = list(rows.values())[:2]
    print("\n".join(report(found, said, before, after)))
    print_scores(test["target"], Path(found["model"]))
    print("\nA made example: a tiny model, few pictures, one seed. It shows how, and says nothing of your scanner.")


# Data


def take_pictures(scanner: Scanner, out: Path, use: str, seed: int) -> Manifest:
    """PNG files of new phantoms, damaged by rising levels in turn, as a manifest whose scores are 1 - damage."""
    folder = out / scanner.name
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *f"{scanner.name} {use}".encode()])
    rows = []
    for number in range(COUNTS[use]):
        damage = number % LEVELS / (LEVELS - 1)
        path = folder / f"{use}-{number:02}.png"
        pillow.fromarray(picture(scanner, damage, blurred=number // LEVELS % 2 == 1, rng=rng)).save(path)
        rows.append(Row(path, 1 - damage, f"{scanner.name} {use} {number}", scanner.name, reference=damage == 0))
    return Manifest(tuple(rows), Scale(0, 1, name="known by construction"))


def picture(scanner: Scanner, damage: float, *, blurred: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A phantom as the scanner shows it, (SIDE, SIDE) grey levels; damage 0..1 is more blur, or else more noise."""
    blur = scanner.blur + (1.6 * damage if blurred else 0)
    noise = scanner.noise + (0 if blurred else 14 * damage)
    grain = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), scanner.grain, mode="wrap")
    grey = scanner.black + (scanner.white - scanner.black) * ndimage.gaussian_filter(phantom(rng), blur)
    shown: NDArray[np.uint8] = np.clip(grey + noise * grain / grain.std(), 0, 255).astype(np.uint8)
    return shown


def phantom(rng: np.random.Generator) -> NDArray[np.float64]:
    """Discs on a soft texture, (SIDE, SIDE), about 0..1."""
    soft = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 3)
    made: NDArray[np.float64] = 0.5 + 0.08 * soft / soft.std()
    down, right = np.mgrid[:SIDE, :SIDE]
    for _ in range(12):
        y, x = rng.uniform(0, SIDE, 2)
        made[(down - y) ** 2 + (right - x) ** 2 < rng.uniform(3, 14) ** 2] += rng.uniform(-0.25, 0.25)
    return made.clip(0, 1)


# Models


def small(name: str) -> Recipe:
    """A recipe of the table for the tiny network, taught briefly."""
    recipe = RECIPES[name]
    teaching = replace(recipe.teaching, features="32", epochs=40, windows_per_image=16)
    return replace(recipe, architecture=TINY, teaching=teaching, labelled=LABELLED)


def taught(name: str, learnt: Mapping[Side, Manifest], towers: SAQM, cache: Cache, seed: int) -> tuple[SAQM, int]:
    """A network taught by a recipe, and in how many steps. It meets the scores that the recipe may read, no others."""
    recipe = small(name)
    network = SAQM(TINY, seed=seed)
    adopt_towers(network, towers)
    material = read_material(learnt, recipe, seed=seed, look=cache)
    log = train(network, material.samples, material.ladders, recipe, seed=seed, unscored=material.unscored)
    return network, len(log)


def save_model(network: SAQM, steps: int, manifest: Manifest, path: Path, seed: int) -> None:
    """The file that somebody with scanner B is given: weights, and what features its training images had."""
    recipe = small("source-only")
    images = [read_image(row.path) for row in manifest.rows]
    header = header_for(
        network, recipe, {"source": manifest}, images, name="model-of-a", version="1", seed=seed, steps=steps,
        epochs=recipe.teaching.epochs, commit="none", results={}, licence="none: made data", card="A made example.",
        features=window_statistics(network, images, recipe),
    )  # fmt: skip
    save_network(network, header, path)


# What came of it


def measure(network: SAQM, test: Manifest, ladders: Sequence[Ladder], cache: Cache) -> Measured:
    preparation = small("source-only").preparation
    scores = [predict(network, cache.for_scoring(row.path), preparation) for row in test.rows]
    rungs = [[predict(network, rung, preparation) for rung in ladder.rungs] for ladder in ladders]
    known = [row.score for row in test.rows if row.score is not None]
    return Measured(order_concordance(rungs), srocc(scores, known))


def print_table(rows: Mapping[str, Measured]) -> None:
    wide = max(map(len, rows))
    print(f"{'new pictures of B':<{wide}}  worse copies lower  SROCC with the making")
    for name, row in rows.items():
        print(f"{name:<{wide}}  {row.concordance:>18.1%}  {row.srocc:>21.2f}")


def report(found: Mapping[str, Any], said: Sequence[str], before: Measured, after: Measured) -> list[str]:
    """What somebody with scanner B would be told, and below it what only a made example knows."""
    return [
        "\nWhat saqm adapt says, from images of B alone:",
        *(f"  {line}" for line in said),
        f"  of worse copies of {found['tried_on']} images kept out, {found['concordance_before']:.0%} scored lower "
        f"before, {found['concordance_after']:.0%} after; helped: {'yes' if found['helped'] else 'no'}",
        f"  scores moved by {found['moved_mean']:.1f} of 100, at most {found['moved_max']:.1f}",
        "What it cannot know, and would take scores of B:",
        f"  SROCC with the making {'rose' if after.srocc > before.srocc else 'did not rise'}, "
        f"from {before.srocc:.2f} to {after.srocc:.2f}",
    ]


def print_scores(test: Manifest, model: Path) -> None:
    """The adapted model at work, without torch, as `saqm score` runs it."""
    scorer = saqm.load_scorer(model)
    scores = [saqm.score(read_image(row.path), scorer).score for row in test.rows[:LEVELS]]
    print(f"\n{model} scores {LEVELS} pictures of B, from untouched to most damaged:")
    print("  " + " ".join("none" if score is None else f"{score:.1f}" for score in scores))


if __name__ == "__main__":
    main()
