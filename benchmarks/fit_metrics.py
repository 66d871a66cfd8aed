"""Fit the parameters that ship with the trained metrics: `make fit-metrics`.

Reads the Kodak photographs, the CT reader study, the reference set and, where it is at hand, the authors' parameters
below SAQM_SHARED. Writes NAME.safetensors and its card NAME.md below src/saqm/models/metrics. About ten minutes.

Everything is fixed here: nothing is selected by any of the numbers in the cards. No opinion score of TID2013 is used.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from saqm.datasets import ct_reader_study
from saqm.errors import NotScorable
from saqm.evaluate import method_oracle
from saqm.fitting import (
    Example,
    bliinds_example,
    brisque_example,
    fit_bliinds,
    fit_brisque,
    fit_niqe_examples,
    fit_rows,
    niqe_example,
)
from saqm.image import Image, from_array, read_image
from saqm.manifest import Row, folds
from saqm.metrics._pixels import luminance
from saqm.metrics.bliinds import bliinds, bliinds_features
from saqm.metrics.brisque import brisque_features, predicted
from saqm.metrics.niqe import niqe
from saqm.metrics.parameters import SHIPPED, Parameters, Provenance, import_official, save_parameters
from saqm.patches import grey_levels
from saqm.statistics import REPLICATES, cluster_weights, interval, plcc, srocc, srocc_by_scene, srocc_replicates

VERSION = "1.0.0"
SEED = 0
SCENE_FOLDS = 4
ROOT = Path(__file__).parents[1]
SHARED = ROOT / os.environ.get("SAQM_SHARED", "../shared")
TITLES = {"niqe": "NIQE", "brisque": "BRISQUE", "bliinds": "BLIINDS-II"}
OFFICIAL_FILE = {"niqe": "niqe", "brisque": "brisque", "bliinds": "bliinds2"}  # below official_params
OFFICIAL_ROW = {  # metric and implementation in scores.csv
    "niqe": ("NIQE", "utlive/niqe@d80aead297 (Octave 7.3)"),
    "brisque": ("BRISQUE", "LIVE release features"),
    "bliinds": ("BLIINDS-II", "NumPy cross-check"),
}
KODAK_LICENCE = (
    "Apache-2.0. Fitted to the 24 Kodak photographs, 'released by the Eastman Kodak Company for unrestricted usage'; "
    "no picture is contained."
)
CT_LICENCE = (
    "Apache-2.0. Fitted to slices of the MTD-GAN blind reader study (repository licence MIT), whose abdomen part "
    "derives from the AAPM/Mayo low-dose CT challenge; no image is contained or redistributed."
)

# The ladder of degradations that the photographs go through; the four kinds that LIVE has without fading channels.
NOISE = (4, 8, 16, 32, 64)  # standard deviation in grey levels
BLUR = (0.6, 1.0, 1.8, 3.0, 5.0)  # sigma in pixels
JPEG = (80, 40, 20, 10, 5)  # Pillow's quality
JPEG_2000 = (12, 24, 48, 96, 192)  # compression ratio
SURROGATE = 350  # points for a GMSD of 1: the worst of the ladder then come near 100

Floats = NDArray[np.float64]
Settings = dict[str, str | int | float | bool]


@dataclass
class Made:
    """Parameters ready to ship, and the parts of their card."""

    parameters: Parameters
    what: str
    protocol: list[str]
    found: list[str]  # what was measured, paragraphs and tables


# Photographs


def degraded(photograph: NDArray[np.uint8], rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The photograph (H, W, 3) and its degraded copies, with what was done to each."""

    def rounded(levels: Floats) -> NDArray[np.uint8]:
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)

    def coded(form: str, **options: object) -> NDArray[np.uint8]:
        file = io.BytesIO()
        PIL.Image.fromarray(photograph).save(file, form, **options)
        return np.array(PIL.Image.open(file))

    levels = photograph.astype(np.float64)
    yield "original", photograph
    for sigma in NOISE:
        yield f"noise {sigma}", rounded(levels + rng.normal(0, sigma, levels.shape))
    for blur in BLUR:
        yield f"blur {blur}", rounded(gaussian_filter(levels, (blur, blur, 0), mode="nearest"))
    for quality in JPEG:
        yield f"JPEG {quality}", coded("JPEG", quality=quality)
    for ratio in JPEG_2000:
        yield f"JPEG 2000 1:{ratio}", coded("JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)


def gmsd(reference: Floats, distorted: Floats) -> float:
    """Gradient magnitude similarity deviation of two luminances on 0..255: 0 is equal, higher is worse.

    W. Xue, L. Zhang, X. Mou, A. C. Bovik, IEEE TIP 23(2), 2014: 2 x 2 mean, every second pixel, Prewitt, T = 170.
    """
    similar = []
    for picture in (reference, distorted):
        small = uniform_filter(picture, 2, mode="constant", origin=-1)[::2, ::2]
        padded = np.pad(small, 1)
        right = sum(padded[1 + dy : padded.shape[0] - 1 + dy, 2:] - padded[1 + dy : padded.shape[0] - 1 + dy, :-2]
                    for dy in (-1, 0, 1)) / 3  # fmt: skip
        down = sum(padded[2:, 1 + dx : padded.shape[1] - 1 + dx] - padded[:-2, 1 + dx : padded.shape[1] - 1 + dx]
                   for dx in (-1, 0, 1)) / 3  # fmt: skip
        similar.append(np.hypot(right, down))
    first, second = similar
    return float(np.std((2 * first * second + 170) / (first**2 + second**2 + 170)))


class Photographs(NamedTuple):
    """Kodak's photographs and their degraded copies: whose copy each is, its surrogate label, its features."""

    photograph: NDArray[np.int_]
    label: Floats
    features: dict[str, Floats]
    sha256: tuple[str, ...]


def read_photographs(folder: Path) -> Photographs:
    photograph, label, hashes = [], [], []
    features: dict[str, list[Floats]] = {"brisque": [], "bliinds": []}
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        original = np.array(PIL.Image.open(path).convert("RGB"))
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
        for _, copy in degraded(original, np.random.default_rng([SEED, number])):
            photograph.append(number)
            label.append(SURROGATE * gmsd(luminance(original), luminance(copy)))
            features["brisque"].append(brisque_features(copy))
            features["bliinds"].append(bliinds_features(copy))
        print(f"{path.name}: {len(label)} copies", flush=True)
    stacked = {metric: np.array(rows) for metric, rows in features.items()}
    return Photographs(np.array(photograph), np.array(label), stacked, tuple(hashes))


def natural(shared: Path) -> Iterator[Made]:
    """The three sets of parameters for photographs."""
    folder = shared / "data" / "kodak24"
    pristine = [niqe_example(read_image(path, mask="none")) for path in sorted(folder.glob("*.png"))]
    parameters = fit_niqe_examples(pristine, name="niqe-natural")
    settings: Settings = {"sharpness": 0.75, "snap": False, "mask": "none"}
    yield Made(
        shipped(parameters, f"the 24 Kodak photographs, {blocks(pristine)}", KODAK_LICENCE, settings),
        "the statistics of photographs: NIQE's mean and covariance, to be used by NIQE-K too",
        [
            f"Pristine: the 24 Kodak photographs whole, {blocks(pristine)}. Kept are blocks whose mean local deviation "
            "exceeds 0.75 of their picture's sharpest, as in the release. The release took 125 photographs: 24 are "
            "few, and the distance depends on which they are.",
        ],
        [against_official(parameters, shared)],
    )
    data = read_photographs(folder)
    ladder = (
        f"Each of the 24 Kodak photographs and {len(data.label) // 24 - 1} degraded copies, {len(data.label)} "
        f"pictures: white noise (sigma {listed(NOISE)} grey levels), Gaussian blur (sigma {listed(BLUR)} pixels), "
        f"JPEG (quality {listed(JPEG)}), JPEG 2000 (ratio {listed(JPEG_2000)})."
    )
    surrogate = (
        f"**Surrogate labels, no opinions**: {SURROGATE} x GMSD (Xue et al. 2014, a full-reference measure) between "
        "the photograph and its copy, 0 for the photograph itself. Nobody looked at these pictures."
    )
    for metric, fit, width in (("brisque", fit_brisque, 36), ("bliinds", fit_bliinds, 24)):
        parameters = fit(data.features[metric], data.label, name=f"{metric}-natural")
        settings = {"label": f"surrogate: {SURROGATE} x GMSD", "snap": False, "mask": "none"}
        scale = f"{parameters.scale}; 0 is undegraded, {SURROGATE} x GMSD a surrogate label, not an opinion"
        parameters = replace(parameters, scale=scale)
        out = np.full(len(data.label), np.nan)
        for fold in range(SCENE_FOLDS):
            test = data.photograph % SCENE_FOLDS == fold
            out[test] = predictions(fit(data.features[metric][~test], data.label[~test]), data.features[metric][test])
        held_out = (
            f"Against the surrogate labels, {SCENE_FOLDS} folds apart in photographs: SROCC "
            f"{srocc(out, data.label):.3f}, PLCC {plcc(out, data.label):.3f}. That says how well the surrogate is "
            "learnt, not what people would say."
        )
        trained_on = f"the 24 Kodak photographs and {len(data.label) - 24} degraded copies, surrogate labels (GMSD)"
        yield Made(
            shipped(parameters, trained_on, KODAK_LICENCE, settings, data.sha256),
            f"a regression from the {width} features of {TITLES[metric]} to a surrogate of quality",
            [ladder, surrogate],
            [held_out, against_official(parameters, shared)],
        )


# CT


def ct(shared: Path) -> Iterator[Made]:
    """The three sets of parameters for CT slices."""
    study = ct_reader_study(shared / "data" / "ct_reader_study")
    images = [read_image(row.path) for row in study.rows]
    divided = folds(study, SCENE_FOLDS, SEED)
    judged = [place for place, row in enumerate(study.rows) if row.judged]
    pristine = {place: niqe_example(images[place]) for place, row in enumerate(study.rows) if row.reference}
    print(f"{len(images)} slices, {len(judged)} judged, {len(pristine)} normal-dose", flush=True)

    parameters = fit_niqe_examples(list(pristine.values()), name="niqe-ct")
    out: dict[int, float] = {}
    for fold in divided:
        own = fit_niqe_examples([pristine[place] for place in fold.train if place in pristine])
        out |= {place: value(own, images[place]) for place in fold.test if study.rows[place].judged}
    settings: Settings = {"sharpness": 0.75, "snap": True, "mask": "auto"}
    slices = f"the 22 normal-dose slices of the MTD-GAN blind reader study, {blocks(list(pristine.values()))}"
    yield Made(
        shipped(parameters, slices, CT_LICENCE, settings),
        "the statistics of normal-dose CT of abdomen and head: NIQE's mean and covariance, to be used by NIQE-K too",
        [
            f"Taken to be pristine: {slices} inside the body. No opinion was used. Kept are blocks whose mean local "
            "deviation exceeds 0.75 of their slice's sharpest, as in the release; 22 slices are few.",
        ],
        [against_readers(parameters, study.rows, images, out, shared), against_official(parameters, shared)],
    )
    for metric, example_of in (("brisque", brisque_example), ("bliinds", bliinds_example)):
        examples = [example_of(image) for image in images]
        pairs = list(zip(study.rows, examples, strict=True))
        parameters = fit_rows(metric, study, pairs, name=f"{metric}-ct")
        out = {}
        for fold in divided:
            own = fit_rows(metric, study, [pairs[place] for place in fold.train], name="fold")
            test = [place for place in fold.test if study.rows[place].judged]
            out |= dict(
                zip(test, predictions(own, np.array([examples[place].features for place in test])), strict=True)
            )
        settings = {"snap": metric == "brisque", "mask": "auto", "manifest": study.sha256}
        trained_on = (
            f"the {len(pairs)} slices of the MTD-GAN blind reader study with three radiologists' scores; "
            f"{len(pairs) - len(judged)} of them anchors fixed by its protocol"
        )
        yield Made(
            shipped(parameters, trained_on, CT_LICENCE, settings, parameters.provenance.images_sha256),
            f"a regression from the features of {TITLES[metric]} to radiologists' scores of denoised CT",
            [
                f"All {len(pairs)} slices of the study with their score, (contrast + structure) / 2, mean of three "
                f"radiologists, turned to 0 (5, best) .. 100 (1, worst). {len(pairs) - len(judged)} are anchors that "
                "the protocol fixed and nobody judged (low dose 1, normal dose 5): fitted to, left out of the table "
                "below. Pictures inside the mask of the body.",
            ],
            [against_readers(parameters, study.rows, images, out, shared), against_official(parameters, shared)],
        )


# What is measured


def value(parameters: Parameters, image: Image) -> float:
    """The metric as a scorer has it; BLIINDS-II in its continuous form."""
    levels, mask = grey_levels(image), None if image.mask.all() else image.mask
    snap = image.modality is not None or mask is not None
    if parameters.metric == "niqe":
        return niqe(levels, parameters, mask=mask, snap=snap)
    if parameters.metric == "brisque":
        return predicted(brisque_features(levels, mask=mask, snap=snap), parameters)
    return bliinds(levels, parameters, mask=mask, continuous=True)


def predictions(parameters: Parameters, features: Floats) -> Floats:
    """Of known features; BLIINDS-II as its regression, a point above its continuous form."""
    if parameters.metric == "brisque":
        return np.array([predicted(row, parameters) for row in features])
    mean, inverse = parameters.arrays["mean"], parameters.arrays["inverse_covariance"]
    return np.asarray(mean[24] - (features - mean[:24]) @ inverse[24, :24] / inverse[24, 24])


def against_official(parameters: Parameters, shared: Path) -> str:
    """SROCC and PLCC with the authors' program over the reference set."""
    folder = shared / "data" / "metric_reference"
    metric, implementation = OFFICIAL_ROW[parameters.metric]
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        official = {
            row["image"]: float(row["score"])
            for row in csv.DictReader(file)
            if row["metric"] == metric and row["implementation"].startswith(implementation)
        }
    pairs = {}
    for name, score in sorted(official.items()):
        try:
            own = value(parameters, from_array(np.array(PIL.Image.open(folder / "images" / name))))
        except NotScorable:
            continue
        if np.isfinite(score):
            pairs[name] = own, score
    real = [pair for name, pair in pairs.items() if not name.startswith("syn_")]
    ours, theirs = np.array(real).T
    every, official_every = np.array(list(pairs.values())).T
    return (
        f"Against the official scores on the {len(real)} real pictures of a reference set (photographs, ultrasound, "
        f"CT, MR; pristine and degraded), whole and unsnapped: **SROCC {srocc(ours, theirs):.3f}, PLCC "
        f"{plcc(ours, theirs):.3f}**, median absolute difference {np.median(np.abs(ours - theirs)):.2f}. With "
        f"those of its made patterns that have a {TITLES[parameters.metric]}, {len(pairs)} of 32: SROCC "
        f"{srocc(every, official_every):.3f}, PLCC {plcc(every, official_every):.3f}.{form(parameters)}"
    )


def form(parameters: Parameters) -> str:
    return " Measured in the continuous form, not clamped." if parameters.metric == "bliinds" else ""


def against_readers(
    parameters: Parameters, rows: Sequence[Row], images: Sequence[Image], out: Mapping[int, float], shared: Path
) -> str:
    """A table of rank correlations with the radiologists, organ by organ, on judged slices."""
    metric, out = parameters.metric, dict(sorted(out.items()))
    columns: dict[str, Mapping[int, float]] = {f"{parameters.name}, out of fold": out}
    official = shared / "data" / "official_params" / OFFICIAL_FILE[metric]
    if official.is_dir():
        own = import_official(official)
        columns["official parameters"] = {place: value(own, images[place]) for place in out}
    lines = [
        "| judged slices | predictor | SROCC | 95 % (scenes) | within scene | PLCC |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    oracle = dict(zip(out, method_oracle([rows[place] for place in out]), strict=True))
    for domain in sorted({row.domain for row in rows}):
        places = [place for place in out if rows[place].domain == domain]
        opinions = np.array([rows[place].score for place in places], float)
        scenes = [rows[place].scene for place in places]
        known = {name: [-column[place] for place in places] for name, column in columns.items()}
        known["oracle: mean of the method on other scenes"] = [oracle[place] or np.nan for place in places]
        for name, values in known.items():
            weights = cluster_weights(scenes, replicates=REPLICATES, seed=SEED)
            ends = interval(srocc_replicates(np.array(values), opinions, weights))
            told = "-" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
            within = float(np.mean(list(srocc_by_scene(values, opinions, scenes).values())))
            numbers = f"{srocc(values, opinions):.3f} | {told} | {within:.3f} | {plcc(values, opinions):.3f}"
            lines.append(f"| {domain} ({len(places)}) | {name} | {numbers} |")
    table = "\n".join(lines)
    return (
        f"Against the radiologists, signs turned so that positive is agreement; {SCENE_FOLDS} folds apart in scenes, "
        "the shipped parameters are fitted to all. Anchors are left out. The oracle knows the denoiser's name and "
        f"never looks at the picture; near 0 a metric does not follow the radiologists at all.{form(parameters)}"
        f"\n\n{table}"
    )


# What is written


def shipped(
    parameters: Parameters,
    trained_on: str,
    licence: str,
    settings: Settings,
    images_sha256: tuple[str, ...] = (),
) -> Parameters:
    hashes = images_sha256 or parameters.provenance.images_sha256
    return replace(parameters, version=VERSION, provenance=Provenance(trained_on, licence, settings, hashes))


def blocks(examples: Sequence[Example]) -> str:
    kept, found = sum(len(example.features) for example in examples), sum(example.blocks for example in examples)
    return f"{kept} sharp blocks of {found}"


def listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def card(made: Made) -> str:
    parameters = made.parameters
    title = TITLES[parameters.metric]
    used = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn", "pillow"))
    range_ = {"niqe": "0 and up", "brisque": "nominally 0 to 100, not clamped", "bliinds": "0 to 99 in steps of 0.5"}
    parts = [
        f"# {parameters.name} {parameters.version}",
        f"Parameters of {title}: {made.what}. **These are not the official parameters**, and a score made with them is "
        f"not the official {title}: for that, import the authors' file (`saqm fit {parameters.metric} --import FILE`).",
        f"**What the number means.** {parameters.scale[0].upper()}{parameters.scale[1:]}. Range: "
        f"{range_[parameters.metric]}.",
        "## How it was fitted",
        *made.protocol,
        "## What was measured",
        *made.found,
        "## Provenance",
        parameters.provenance.licence,
        f"Made by `make fit-metrics` with {used}. SHA-256 of the file: `{parameters.sha256}`. The header of the file "
        f"lists the SHA-256 of the {len(parameters.provenance.images_sha256)} pictures it was fitted to: no test of "
        "these parameters may use them.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--only", choices=("natural", "ct"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Path], Iterator[Made]]] = {"natural": natural, "ct": ct}
    for name, part in parts.items():
        for made in part(SHARED) if chosen.only in (None, name) else ():
            path = chosen.out / f"{made.parameters.name}.safetensors"
            save_parameters(made.parameters, path)
            path.with_suffix(".md").write_text(card(made), encoding="utf-8")
            print(card(made), flush=True)


if __name__ == "__main__":
    main()
