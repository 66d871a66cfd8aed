"""Which law each metric obeys, on photographs, CT, MR and ultrasound: `make laws`.

    python benchmarks/laws.py [--jobs 2] [--only METRIC ...] [--out benchmarks/results]

Two kinds of law. Ladders (saqm.degradations): a picture made worse step by step must be called worse, by the metric's
own declared direction. Invariances: a picture that shows the same must score the same. Every metric runs as
`saqm score --model METRIC` runs it, with each of the parameters that ship.

Writes laws.csv (a row per metric, modality and law), laws_values.csv (what the undamaged pictures score, and the span
that changes are measured against) and laws.json (how it was made). docs/metrics.md is made from them. Reads the
reference data below SAQM_SHARED, and pictures that come with pydicom, nibabel and scikit-image.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import scipy
from numpy.typing import NDArray

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.errors import NotScorable
from saqm.image import Image, from_array, read_frames, read_image, sha256_of
from saqm.metrics import METRICS, luminance
from saqm.metrics.parameters import shipped_parameters
from saqm.scorer import MetricScorer, load_scorer, metric_input

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEED = 0
SAME = 0.01  # a change up to this share of the metric's span counts as none
AIR = 64  # pixels of air added on each side
CLEAN = "clean"
MODALITIES = ("natural", "CT", "MR", "ultrasound")

Grey = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Picture(NamedTuple):
    """Grey levels in whole steps on 0..255, what of them is judged, and whether flat areas are snapped."""

    modality: str
    name: str
    sha256: str  # of the file
    grey: Grey
    mask: Mask
    snap: bool


# The pictures


def pictures(shared: Path) -> Iterator[Picture]:
    """All pictures of the study, in a fixed order."""
    data = shared / "data"
    yield from photographs(data / "kodak24")
    for path in sorted((data / "ct_reader_study" / "images").glob("*_NDCT.png")):
        yield prepared("CT", read_image(path))
    yield from magnetic_resonance()
    yield from ultrasound(data / "abdominal_ultrasound" / "images")


def photographs(kodak: Path) -> Iterator[Picture]:
    """Eight of Kodak's 24, to which NIQE's parameters were fitted, and six of scikit-image, to which nothing was."""
    import skimage

    bundled = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    for path in (*sorted(kodak.glob("kodim*.png"))[::3], *(bundled / name for name in names)):
        yield prepared("natural", read_image(path))


def magnetic_resonance() -> Iterator[Picture]:
    """The abdomen and the small one of pydicom, and six slices of the echo-planar brain that comes with nibabel."""
    import nibabel
    from pydicom.data import get_testdata_file

    for name in ("examples_overlay.dcm", "MR_small.dcm"):
        yield prepared("MR", read_image(str(get_testdata_file(name, download=False))))
    volume = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    for number, slice_ in enumerate(read_frames(volume, axis=2)):
        if number in range(2, 24, 4):  # of the first of its two volumes
            yield prepared("MR", slice_)


def ultrasound(folder: Path) -> Iterator[Picture]:
    """The four ultrasound files of pydicom, and ten abdominal frames spread over the six large series and one small."""
    from pydicom.data import get_testdata_file

    for name, frame in (("jpeg2k", None), ("palette", None), ("rgb_color", None), ("ybr_color", 0)):
        bundled = get_testdata_file(f"examples_{name}.dcm", download=False)
        yield prepared("ultrasound", read_image(str(bundled), frame=frame))
    for number in ("c10", "c40", "d10", "e10", "e40", "f10", "i10", "j10", "j60", "k50"):
        path = folder / f"{number}.jpg"
        frame_image = from_array(np.asarray(PIL.Image.open(path)), modality="US", mask="auto")
        yield prepared("ultrasound", frame_image)._replace(name=path.name, sha256=sha256_of(path))


def prepared(modality: str, image: Image) -> Picture:
    """The picture as a metric is given it, but in whole grey levels, as an 8-bit file holds them."""
    levels, _, snap = metric_input(image)
    frame = "" if image.source.frame is None else f"#{image.source.frame}"
    name = Path(image.source.path).name + frame
    return Picture(modality, name, image.source.sha256, np.rint(luminance(levels)), image.mask, snap)


# The laws


def mirrored(axis: int) -> Callable[[Grey, Mask], tuple[Grey, Mask]]:
    return lambda grey, mask: (np.flip(grey, axis), np.flip(mask, axis))


def padded(grey: Grey, mask: Mask) -> tuple[Grey, Mask]:
    return np.pad(grey, AIR), np.pad(mask, AIR)


def cropped(grey: Grey, mask: Mask) -> tuple[Grey, Mask]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return grey[box], mask[box]


# A picture and its mask, changed in a way that ought to leave a quality score alone.
INVARIANCES: Mapping[str, Callable[[Grey, Mask], tuple[Grey, Mask]]] = {
    "flip left-right": mirrored(1),
    "flip up-down": mirrored(0),
    "rotate 90°": lambda grey, mask: (np.rot90(grey), np.rot90(mask)),
    "transpose": lambda grey, mask: (grey.T, mask.T),
    "gain 0.5": lambda grey, mask: (0.5 * grey, mask),
    "offset +20": lambda grey, mask: (grey + 20, mask),  # not clipped: up to 275
    "pad air": padded,
    "crop air": cropped,
    "brighten air": lambda grey, mask: (np.where(mask, grey, grey + 10), mask),
    "pad air, no mask": lambda grey, mask: (np.pad(grey, AIR), np.ones_like(np.pad(mask, AIR))),
}


def unmasked(name: str) -> bool:
    """Whether an invariance is measured without the mask, before and after."""
    return name.endswith("no mask")


def rungs(picture: Picture, ladder: str, number: int) -> list[Grey]:
    """The steps of a ladder, the same field of noise at each; in whole grey levels, as an 8-bit file holds them."""
    return [
        np.rint(DEGRADATIONS[ladder](picture.grey.astype(np.float32), strength, np.random.default_rng([SEED, number])))
        .astype(np.float64)
        for strength in LADDERS[ladder]
    ]  # fmt: skip


# Measuring

Values = dict[str, list[float | None]]  # law -> scores: of the steps, or of the changed picture; None is not scorable


def measured(number: int, picture: Picture, metrics: Sequence[str]) -> dict[str, Values]:
    """metric -> law -> scores of one picture; "clean" has the picture's own, with its mask and without."""
    found: dict[str, Values] = {metric: {} for metric in metrics}
    everything = np.ones_like(picture.mask)
    changed = {CLEAN: [(picture.grey, picture.mask), (picture.grey, everything)]}
    changed |= {ladder: [(rung, picture.mask) for rung in rungs(picture, ladder, number)] for ladder in LADDERS}
    for law, change in INVARIANCES.items():
        changed[law] = [change(picture.grey, everything if unmasked(law) else picture.mask)]
    for law, versions in changed.items():
        for metric in metrics:
            found[metric][law] = [score(metric, *version, snap=picture.snap) for version in versions]
    return found


def score(metric: str, grey: Grey, mask: Mask, *, snap: bool) -> float | None:
    """As the scorer has it, but with the same snapping for all versions of a picture; None where it refuses."""
    scorer = scorer_of(metric)
    trained = () if scorer.parameters is None else (scorer.parameters,)
    options = {**scorer.metric.options, **({"snap": snap} if scorer.metric.takes_snap else {})}
    try:
        return float(scorer.metric.function(grey, *trained, mask=mask, **options))
    except NotScorable:
        return None


def scorer_names() -> Iterator[str]:
    """Every metric with its default parameters, then with the others that ship for it."""
    for metric in METRICS.values():
        yield metric.name
        for parameters in shipped_parameters():
            if parameters.partition("-")[0] == metric.parameters and parameters != metric.default:
                yield f"{metric.name}:{parameters}"


@cache
def scorer_of(metric: str) -> MetricScorer:
    scorer = load_scorer(metric)
    assert isinstance(scorer, MetricScorer)
    return scorer


# Summing up


@dataclass(frozen=True)
class Law:
    """How one metric kept one law on the pictures of one modality.

    check: "every step" and "last step" of a ladder, "unchanged" of an invariance. images: those scored; refused: those
    that the metric cannot score. obeyed: share of `images`. worst_points: on the metric's own scale, for a ladder the
    smallest rise in badness (negative: called better), for an invariance the largest change, inf where only one of the
    two pictures could be scored. worst_span: the same as a share of the metric's span on that modality. The last three
    are None where nothing was scored.
    """

    metric: str
    modality: str
    law: str
    check: str
    images: int
    refused: int
    obeyed: float | None
    worst_span: float | None
    worst_points: float | None


@dataclass(frozen=True)
class Typical:
    """What undamaged pictures of a modality score; span: from the 5th to the 95th percentile with all ladders in.

    fitted_on: how many of the pictures the metric's parameters were fitted on.
    """

    metric: str
    modality: str
    images: int
    refused: int
    fitted_on: int
    smallest: float | None
    median: float | None
    largest: float | None
    span: float | None


def typical(metric: str, modality: str, of_pictures: Sequence[Values], fitted_on: int) -> Typical:
    clean = [values[CLEAN][0] for values in of_pictures]
    scored = [value for value in clean if value is not None]
    if not scored:
        return Typical(metric, modality, 0, len(clean), fitted_on, None, None, None, None)
    steps = [step for values in of_pictures for ladder in LADDERS for step in values[ladder] if step is not None]
    low, high = np.percentile([*scored, *steps], (5, 95))
    middle, span = float(np.median(scored)), float(high - low)
    refused = len(clean) - len(scored)
    return Typical(metric, modality, len(scored), refused, fitted_on, min(scored), middle, max(scored), span)


def laws(metric: str, modality: str, of_pictures: Sequence[Values], span: float | None) -> Iterator[Law]:
    """The rows of one metric on one modality."""
    for ladder in LADDERS:
        climbs = [climb(values, ladder, scorer_of(metric).metric.higher_is_better) for values in of_pictures]
        for check, rise in (("every step", least_step), ("last step", first_to_last)):
            yield law_of(metric, modality, ladder, check, [None if c is None else rise(c) for c in climbs], span=span)
    for law in INVARIANCES:
        yield law_of(metric, modality, law, "unchanged", [change(values, law) for values in of_pictures], span=span)


def climb(values: Values, ladder: str, higher_is_better: bool) -> list[float] | None:
    """Badness from the untouched picture to the last step; None where one of them has no score."""
    steps = [values[CLEAN][0], *values[ladder]]
    scored = [-step if higher_is_better else step for step in steps if step is not None]
    return scored if len(scored) == len(steps) else None


def least_step(climbed: Sequence[float]) -> float:
    return float(np.diff(climbed).min())


def first_to_last(climbed: Sequence[float]) -> float:
    return climbed[-1] - climbed[0]


def change(values: Values, law: str) -> float | None:
    """How far the score moved; infinity where only one of the two pictures has one, None where neither has."""
    before, (after,) = values[CLEAN][unmasked(law)], values[law]
    if before is None and after is None:
        return None
    return math.inf if before is None or after is None else abs(after - before)


def law_of(
    metric: str, modality: str, law: str, check: str, points: Sequence[float | None], *, span: float | None
) -> Law:
    """One row. `points`: of each picture, the rise in badness, or the change where nothing should have changed."""
    scored = [each for each in points if each is not None]
    refused = len(points) - len(scored)
    if not scored or not span:
        return Law(metric, modality, law, check, len(scored), refused, None, None, None)
    if check == "unchanged":
        obeyed, worst = [each <= SAME * span for each in scored], max(scored)
    else:
        obeyed, worst = [each > 0 for each in scored], min(scored)
    return Law(metric, modality, law, check, len(scored), refused, float(np.mean(obeyed)), worst / span, worst)


# The command


def write_csv(rows: Sequence[Law] | Sequence[Typical], kept: Sequence[dict[str, str]], path: Path) -> None:
    """The new rows and those kept, in the order of the metrics; four digits, mere rounding of float64 as 0."""
    order = list(scorer_names())
    new = [{name: shown(value) for name, value in asdict(row).items()} for row in rows]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *new], key=lambda row: order.index(row["metric"])))


def shown(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return "0" if abs(value) < 1e-9 else f"{value:.4g}"
    return "" if value is None else str(value)


def others(path: Path, measured_now: Sequence[str]) -> list[dict[str, str]]:
    """The rows of metrics that are not measured now."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        wanted = set(scorer_names()) - set(measured_now)
        return [row for row in csv.DictReader(stream) if row["metric"] in wanted]


def commit() -> str:
    """The commit measured, with a plus where the sources held changes besides."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--short", "src"], capture_output=True, text=True, check=False).stdout
    return (head or "unknown") + ("+" if changed else "")


def record(path: Path, metrics: Sequence[str], all_pictures: Sequence[Picture], seconds: float) -> None:
    """laws.json: the pictures and ladders, and for each metric the commit and the parameters it was measured with."""
    before = json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.is_file() else {}
    now = {
        "commit": commit(),
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, scipy {scipy.__version__}",
    }
    for name in metrics:
        parameters = scorer_of(name).parameters
        sha256 = {"parameters": parameters.name, "sha256": parameters.sha256} if parameters else {}
        before[name] = {**now, **sha256}
    made = {
        "command": "make laws",
        "seed": SEED,
        "same": SAME,
        "ladders": LADDERS,
        "pictures": {m: [p.name for p in all_pictures if p.modality == m] for m in MODALITIES},
        "metrics": {name: before[name] for name in scorer_names() if name in before},
    }
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, and write laws.csv, laws_values.csv and laws.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT / os.environ.get("SAQM_SHARED", "../shared"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", nargs="+", choices=list(scorer_names()), metavar="METRIC", help="the others' rows stay"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    began = time.time()
    metrics = options.only or list(scorer_names())
    for name in metrics:
        scorer_of(name)  # now, so that all workers have the parameters that laws.json names
    all_pictures = list(pictures(options.shared))
    with ProcessPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(measured, number, each, metrics) for number, each in enumerate(all_pictures)]
        found = []
        for picture, job in zip(all_pictures, jobs, strict=True):
            found.append(job.result())
            print(f"{time.time() - began:6.0f} s  {picture.modality} {picture.name}", flush=True)
    values: list[Typical] = []
    rows: list[Law] = []
    for metric in metrics:
        trained_on = scorer_of(metric).trained_on
        for modality in MODALITIES:
            own = [f[metric] for f, p in zip(found, all_pictures, strict=True) if p.modality == modality]
            seen = sum(p.sha256 in trained_on for p in all_pictures if p.modality == modality)
            values.append(typical(metric, modality, own, seen))
            rows += laws(metric, modality, own, values[-1].span)
    options.out.mkdir(parents=True, exist_ok=True)
    for table, name in ((rows, "laws.csv"), (values, "laws_values.csv")):
        write_csv(table, others(options.out / name, metrics), options.out / name)
    record(options.out / "laws.json", metrics, all_pictures, time.time() - began)


if __name__ == "__main__":
    main()
