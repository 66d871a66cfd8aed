"""Score the real DICOM files that come with pydicom, then one of them made worse step by step. Needs no data of yours.

    python examples/demo.py [--out demo] [--model NAME|FILE]

Leaves in the folder: scores.tsv, ladder.csv, ladder.png (score against strength), map.png (where the score comes from).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as pillow
from pydicom.data import get_testdata_file
from rich.console import Console

import saqm
from saqm.batch import Settings, score_many
from saqm.degradations import DEGRADATIONS
from saqm.image import Image, from_array
from saqm.outputs.heatmap import save_heatmap, save_mask_picture
from saqm.outputs.table import save_records, table
from saqm.patches import luminance
from saqm.scorer import ModelScorer, score_and_map

FILES = {
    "CT_small.dcm": "CT, a thorax cut to 128 x 128",
    "693_J2KI.dcm": "CT head, JPEG 2000 so strong that the brain is gone",
    "J2K_pixelrep_mismatch.dcm": "CT head, sound",
    "examples_overlay.dcm": "MR",
    "examples_ybr_color.dcm": "ultrasound cine, 30 frames",
    "examples_palette.dcm": "ultrasound, palette colours",
    "examples_jpeg2k.dcm": "ultrasound, JPEG 2000",
}
# The CT slice of the ladder: 512 x 512, a head with its noise and its anatomy. The other of that size, 693_J2KI.dcm,
# was compressed until nothing but the skull was left: there is nothing to make worse.
LADDER_FILE = "J2K_pixelrep_mismatch.dcm"
SEED = 7  # of the noise
MAP_RUNG = 3  # of the noise ladder, shown beside the untouched slice


@dataclass(frozen=True)
class Ladder:
    """One way to make a picture worse (a name of `saqm.degradations`): what its numbers mean, from nothing to much."""

    name: str
    unit: str
    strengths: tuple[float, ...]


LADDERS = (
    Ladder("noise", "standard deviation, grey levels of 255", (0, 5, 10, 20, 40, 80)),
    Ladder("blur", "sigma of the Gaussian, pixels", (0, 0.5, 1, 2, 4, 8)),
    Ladder("compression", "JPEG, 100 - quality", (0, 50, 70, 85, 92, 97)),
    Ladder("median", "denoising: side of the median filter, pixels", (0, 3, 5, 7, 11, 15)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--model", default=None, help="a shipped model's name, or a model file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    paths = {name: str(get_testdata_file(name, download=False)) for name in FILES}

    score_files(list(paths.values()), options.model, options.out)
    scorer = saqm.load_scorer(options.model)
    image = saqm.read_image(paths[LADDER_FILE])
    rows = score_ladders(image, scorer)
    save_ladder(rows, options.out)
    draw_ladder(rows, options.out / "ladder.png")
    draw_map(image, scorer, options.out / "map.png")
    print(advice(options.out, scorer, rows))


def score_files(paths: list[str], model: str | None, out: Path) -> None:
    """scores.tsv, and on the screen a line for each file: of a cine its first frame."""
    records = [score.to_record() for score in score_many(paths, Settings(model=model))]
    save_records(records, out / "scores.tsv")
    Console(width=None if sys.stdout.isatty() else 120).print(
        table(record for record in records if record["frame"] in (None, 0))
    )
    print(f"\n{len(records)} rows, one for each frame, are in {out / 'scores.tsv'}.")


def score_ladders(image: Image, scorer: ModelScorer) -> list[tuple[Ladder, float, float]]:
    rows = []
    for ladder in LADDERS:
        for strength in ladder.strengths:
            score = saqm.score(degraded(image, ladder, strength), scorer).score
            if score is not None:  # a picture that cannot be scored raises NotScorable
                rows.append((ladder, strength, score))
    return rows


def degraded(image: Image, ladder: Ladder, strength: float) -> Image:
    """The slice made worse, as it would be shown; the same pixels are judged as in the untouched one."""
    grey = DEGRADATIONS[ladder.name](luminance(image), strength, np.random.default_rng(SEED))
    return from_array(grey, value_range=(0, 255), modality=image.modality, mask=image.mask)


def save_ladder(rows: list[tuple[Ladder, float, float]], out: Path) -> None:
    with (out / "ladder.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["degradation", "strength", "unit", "score"])
        writer.writerows([ladder.name, strength, ladder.unit, round(score, 3)] for ladder, strength, score in rows)


def draw_ladder(rows: list[tuple[Ladder, float, float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ladder in zip(figure.subplots(1, len(LADDERS), sharey=True), LADDERS, strict=True):
        points = [(strength, score) for rung, strength, score in rows if rung is ladder]
        places = range(len(points))
        axes.axhline(points[0][1], color="0.7", linewidth=1, linestyle="--")
        axes.plot(places, [score for _, score in points], marker="o", color="#3b75af")
        for place, (_, score) in zip(places, points, strict=True):
            axes.annotate(f"{score:.0f}", (place, score), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.set_xticks(places, [f"{strength:g}" if strength else "none" for strength, _ in points])
        axes.set(title=ladder.name, xlabel=ladder.unit, ylim=(0, 108))
        axes.grid(axis="y", color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
    figure.get_axes()[0].set_ylabel("score, 0 to 100, higher is better")
    figure.suptitle(f"{LADDER_FILE} made worse (dashed: untouched)", fontsize=11)
    figure.savefig(path, dpi=130)


def draw_map(image: Image, scorer: ModelScorer, path: Path) -> None:
    """What was judged, the map of the untouched slice, and the map with noise, side by side."""
    noisy = degraded(image, LADDERS[0], LADDERS[0].strengths[MAP_RUNG])
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{number}.png" for number in range(3)]
        save_mask_picture(image, parts[0])
        for shown, part in ((image, parts[1]), (noisy, parts[2])):
            score, quality = score_and_map(shown, scorer, stride=16)
            save_heatmap(shown, quality, part, score)
        pictures = [pillow.open(part).convert("RGB") for part in parts]
    whole = pillow.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    whole.save(path)


def advice(out: Path, scorer: ModelScorer, rows: list[tuple[Ladder, float, float]]) -> str:
    """What to look at, with the numbers that came out."""
    lines = [f"{LADDER_FILE} made worse, scores from untouched to worst:"]
    for ladder in LADDERS:
        scores = [score for rung, _, score in rows if rung is ladder]
        lines.append(f"  {ladder.name:<12}" + " -> ".join(f"{score:.0f}" for score in scores))
    domain = scorer.header.domain
    noise = LADDERS[0].strengths[MAP_RUNG]
    lines += [
        "",
        "What to look at",
        f"  {out / 'scores.tsv'}   every row with its reasons and warnings. This model was trained on "
        f"{', '.join(domain.modalities)} ({domain.description.rstrip('.')}); for anything else the row says so,",
        "                    and the number is shown but should not be relied on.",
        f"  {out / 'ladder.png'}   the score against the strength of noise, blur, compression and denoising.",
        f"  {out / 'map.png'}      left: what was judged; middle: where the score comes from; right: the same with",
        f"                    noise of {noise:g} grey levels. Dark red is bad, pale yellow is good.",
        "",
        f"Model {scorer.name} {scorer.header.version}. Not a medical device.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
