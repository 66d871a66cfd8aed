"""How often each finding of saqm.findings is right, and where its thresholds come from: `make findings`.

    python benchmarks/findings.py [--thresholds | --tables] [--out benchmarks/results]

Three parts. Good pictures: the range each measure keeps, the threshold that follows from it (RULE below), and how often
the finding fires all the same, also with thresholds made without the picture's own patient. Ladders: copies of good
pictures, worse by known steps. The CT reader study: real low-dose and denoised slices beside what three radiologists
said of their noise.

Writes findings.csv (every count), findings.md (the same to read) and the block of docs/findings.md. `--thresholds`
stops after the first part and prints what CAUSES should say; `--tables` writes the texts anew from findings.csv. Reads
the reference data below SAQM_SHARED, and pictures that come with pydicom, nibabel and scikit-image.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.findings import CAUSES, DEFAULT, Cause, evidence
from saqm.image import Image, from_array, read_frames, read_image
from saqm.patches import luminance
from saqm.writing import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "findings.md"
BEGIN, END = "<!-- findings:begin -->\n", "\n<!-- findings:end -->"

KINDS = {"CT": "CT", "US": "US", "MR": "MR", "photograph": None}  # kind of picture -> what its file says
SERIES = "cdefijk"  # first letters of the abdominal frames: probably a patient or series each
MARGIN = 1.25  # times beyond the worst good picture
ON_EACH_LADDER = 8  # pictures of a kind
RULE = (
    "the worst value of the good pictures of a kind, and a quarter beyond. CT (22 scenes) and US (9 series) have "
    "thresholds of their own where kinds differ; all else has the most lenient of the four kinds'"
)

TEXTS = ("fires", "unit", "code", "step")  # columns of the tables that hold no numbers

Grey = NDArray[np.float32]
Values = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Good:
    """A picture taken for good. kind: of KINDS. group: patient, series or scene. lossy: it was compressed before."""

    kind: str
    group: str
    image: Image
    lossy: bool = False


@dataclass(frozen=True)
class Row:
    """One line of findings.csv.

    pictures: "good", a ladder, or a group of the reader study. images: how many; measured: on how many the measure has
    a value; fired: on how many the finding fires; left_out: the same with thresholds made without the picture's own
    group, or its kind (`limit_without`), for good pictures only. extreme: of the values, on the bad side.
    """

    kind: str
    pictures: str
    strength: float | None
    finding: str
    threshold: float | None
    images: int
    measured: int
    fired: int
    left_out: int | None = None
    median: float | None = None
    extreme: float | None = None


# The pictures


def good_pictures(shared: Path) -> Iterator[Good]:
    """All pictures taken for good, in a fixed order."""
    import nibabel
    import skimage
    from pydicom.data import get_testdata_file

    data = shared / "data"
    for path in sorted((data / "ct_reader_study" / "images").glob("*_NDCT.png")):
        yield Good("CT", path.stem, as_kind(read_image(path), "CT"))
    for letter in "cdefijk":  # of a series each, five frames spread over it
        frames = sorted(
            (data / "abdominal_ultrasound" / "images").glob(f"{letter}*.jpg"), key=lambda p: int(p.stem[1:])
        )
        for path in frames[:: math.ceil(len(frames) / 5)]:
            pixels = np.asarray(PIL.Image.open(path))
            yield Good("US", letter, from_array(pixels, modality="US", mask="auto"), lossy=True)
    # without examples_palette, a sector almost without echoes; jpeg2k and rgb_color show one lymph node
    for name, group, frame in (("jpeg2k", "node", None), ("rgb_color", "node", None), ("ybr_color", "heart", 0)):
        path = Path(str(get_testdata_file(f"examples_{name}.dcm", download=False)))
        yield Good("US", group, read_image(path, frame=frame), lossy=name == "ybr_color")
    for name in ("examples_overlay.dcm", "MR_small.dcm"):
        yield Good("MR", name, read_image(str(get_testdata_file(name, download=False))))
    volume = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    for number, slice_ in enumerate(read_frames(volume, axis=2)):
        if number in range(2, 24, 4):  # of the first of its two volumes
            yield Good("MR", volume.name, as_kind(slice_, "MR"))
    names = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "motorcycle_left")
    bundled = [Path(skimage.__file__).parent / "data" / f"{name}.png" for name in names]
    for path in (*sorted((data / "kodak24").glob("kodim*.png")), *bundled):
        yield Good("photograph", path.stem, read_image(path))


def spread(frames: Path, letter: str) -> list[Path]:
    """At most five frames, spread over a series."""
    own = sorted(frames.glob(f"{letter}*.jpg"), key=lambda path: int(path.stem[1:]))
    return own[:: math.ceil(len(own) / 5)]


def as_image(path: Path) -> Image:
    """An ultrasound frame, masked as one."""
    return from_array(np.asarray(PIL.Image.open(path)), modality="US", mask="auto")


def as_kind(image: Image, modality: str) -> Image:
    """A picture whose file does not say what made it."""
    return replace(image, modality=modality)


# The ladders: those of saqm.degradations, and five more for what they do not touch


def flatter(grey: Grey, strength: float) -> Grey:
    """Contrast divided by `strength`, about the middle grey."""
    return 127.5 + (grey - 127.5) / np.float32(strength)


def whiter(grey: Grey, strength: float) -> Grey:
    """Brighter by `strength` grey levels, clipped at white."""
    return np.minimum(grey + np.float32(strength), 255)


def blacker(grey: Grey, strength: float) -> Grey:
    """Darker by `strength` grey levels, clipped at black."""
    return np.maximum(grey - np.float32(strength), 0)


def coarser(grey: Grey, strength: float) -> Grey:
    """Grey levels `strength` apart."""
    return np.rint(grey / np.float32(strength)) * np.float32(strength)


def holes(grey: Grey, strength: float) -> Grey:
    """A square of one middle grey in the middle, `strength` percent of the picture."""
    side = max(1, round(math.sqrt(grey.size * strength / 100)))
    top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
    holed = grey.copy()
    holed[max(0, top) : top + side, max(0, left) : left + side] = 77
    return holed


MORE: Mapping[str, tuple[Callable[[Grey, float], Grey], tuple[float, ...]]] = {
    "flatter": (flatter, (1.5, 2.0, 4.0, 8.0)),
    "whiter": (whiter, (30.0, 60.0, 90.0, 120.0)),
    "blacker": (blacker, (30.0, 60.0, 90.0, 120.0)),
    "coarser": (coarser, (2.0, 4.0, 8.0, 16.0)),
    "holes": (holes, (0.5, 1.0, 2.0, 5.0)),
}
# ladder -> the findings that are right to fire on it
RIGHT: Mapping[str, tuple[str, ...]] = {
    "noise": ("noise", "grain"),
    "grain": ("noise", "grain"),
    "blur": ("blur", "over-smoothing"),
    "median": ("blur", "over-smoothing"),
    "shrink": ("blur", "over-smoothing"),
    "compression": ("blocking",),
    "flatter": ("low-contrast",),
    "whiter": ("white-clipping",),
    "blacker": ("black-clipping",),
    "coarser": ("banding",),
    "holes": ("missing-content",),
}
STEPS = {**LADDERS, **{name: steps for name, (_, steps) in MORE.items()}}
UNITS = {
    "noise": "sd, grey levels",
    "grain": "sd, grey levels",
    "blur": "sd, pixels",
    "median": "side, pixels",
    "shrink": "factor",
    "compression": "100 - JPEG quality",
    "flatter": "contrast divided by",
    "whiter": "grey levels added",
    "blacker": "grey levels taken",
    "coarser": "step, grey levels",
    "holes": "% of the picture",
}


def worsened(image: Image, ladder: str, strength: float, seed: int) -> Image:
    """The picture one step down, in whole grey levels as an 8-bit file holds them; what is judged stays."""
    grey = luminance(image)
    if ladder in MORE:
        made = MORE[ladder][0](grey, strength)
    else:
        made = DEGRADATIONS[ladder](grey, strength, np.random.default_rng(seed))
    return replace(image, pixels=np.asarray(np.rint(made) / np.float32(255), np.float32))


# The rule


def limit_of(name: str, values: Iterable[tuple[Good, Values]]) -> float | None:
    """The threshold that RULE makes of good pictures, before rounding; None where nothing was measured."""
    cause = CAUSES[name]
    measured = [found[name] for _, found in values if name in found]
    if not measured:
        return None
    return max(measured) * MARGIN if cause.direction == "above" else min(measured) / MARGIN


def limit_for(name: str, modality: str, values: Sequence[tuple[Good, Values]]) -> float | None:
    """The threshold of a modality, or of DEFAULT: from all good pictures, but of blocking those never compressed.

    Ultrasound is commonly kept as lossy JPEG: its own limit of blocking allows for that.
    """
    if modality != DEFAULT:
        return limit_of(name, [v for v in values if v[0].kind == modality])
    return limit_of(name, [v for v in values if name != "blocking" or not v[0].lossy])


def proposed(name: str, values: Sequence[tuple[Good, Values]]) -> dict[str, float]:
    """The thresholds that RULE gives a finding, to two digits, for the modalities that CAUSES judges."""
    limits = {modality: limit_for(name, modality, values) for modality in CAUSES[name].thresholds}
    return {modality: float(f"{limit:.2g}") for modality, limit in limits.items() if limit is not None}


def limit_without(name: str, good: Good, values: Sequence[tuple[Good, Values]]) -> float | None:
    """The threshold for a good picture had it not been there: nor its patient or series, nor, for DEFAULT, its kind."""
    thresholds = CAUSES[name].thresholds
    if good.kind in thresholds:
        return limit_for(name, good.kind, [v for v in values if v[0].group != good.group])
    return limit_for(name, DEFAULT, [v for v in values if v[0].kind != good.kind]) if DEFAULT in thresholds else None


# Measuring


def fires(name: str, value: float | None, threshold: float | None) -> bool:
    if value is None or threshold is None:
        return False
    return value > threshold if CAUSES[name].direction == "above" else value < threshold


def counted(
    kind: str, pictures: str, strength: float | None, found: Sequence[Values], left_out: Mapping[str, int] | None = None
) -> Iterator[Row]:
    """A row for each finding on some pictures of one kind; `left_out`: what is known of good pictures alone."""
    for name, cause in CAUSES.items():
        threshold = cause.threshold(KINDS[kind])
        values = [measured[name] for measured in found if name in measured]
        worst = (max if cause.direction == "above" else min)(values, default=None)
        yield Row(
            kind,
            pictures,
            strength,
            name,
            threshold,
            len(found),
            len(values),
            sum(fires(name, value, threshold) for value in values),
            None if left_out is None or threshold is None else left_out[name],
            float(np.median(values)) if values else None,
            worst,
        )


def on_good(values: Sequence[tuple[Good, Values]]) -> Iterator[Row]:
    for kind in KINDS:
        own = [v for v in values if v[0].kind == kind]
        left_out = {
            name: sum(fires(name, measured.get(name), limit_without(name, good, values)) for good, measured in own)
            for name in CAUSES
        }
        yield from counted(kind, "good", None, [measured for _, measured in own], left_out)


def on_ladders(pictures: Sequence[Good], say: Callable[[str], None]) -> Iterator[Row]:
    for kind in KINDS:
        own = [good for good in pictures if good.kind == kind]
        own = own[:: math.ceil(len(own) / ON_EACH_LADDER)]
        for ladder, steps in STEPS.items():
            for strength in steps:
                found = [evidence(worsened(good.image, ladder, strength, seed)) for seed, good in enumerate(own)]
                rows = list(counted(kind, ladder, strength, found))
                yield from rows
                yield hits(kind, ladder, strength, found)
            say(f"{kind} {ladder}")


def hits(kind: str, ladder: str, strength: float, found: Sequence[Values]) -> Row:
    """On how many pictures any of the findings fires that are right to."""
    limits = {name: CAUSES[name].threshold(KINDS[kind]) for name in RIGHT[ladder]}
    fired = sum(any(fires(name, measured.get(name), limit) for name, limit in limits.items()) for measured in found)
    known = sum(any(name in measured for name in limits) for measured in found)
    return Row(kind, ladder, strength, "any of " + ", ".join(RIGHT[ladder]), None, len(found), known, fired)


def on_the_rest(frames: Path) -> Iterator[Row]:
    """The abdominal frames that are not among the good pictures: of the same series, but never looked at."""
    used = {path for letter in SERIES for path in spread(frames, letter)}
    rest = (as_image(path) for path in sorted(frames.glob("*.jpg")) if path not in used)
    yield from counted("US", "real: ultrasound frames of the same series", None, [evidence(image) for image in rest])


def on_the_study(study: Path) -> Iterator[Row]:
    """Low-dose slices, and denoised ones by the readers' noise grade: 7 is like normal dose, more is smoother."""
    groups: dict[str, list[Values]] = {
        "low dose": [],
        "denoised, graded noisy (below 6)": [],
        "denoised, graded like normal dose (6 to 8)": [],
        "denoised, graded smooth (above 8 to 11)": [],
        "denoised, graded over-smoothed (above 11)": [],
    }
    low_dose, noisy, alike, smooth, smoothest = groups
    with (study / "scores.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == "NDCT":
                continue
            grade = float(row["mean_noise"])
            group = noisy if grade < 6 else alike if grade <= 8 else smooth if grade <= 11 else smoothest
            image = as_kind(read_image(study / row["filename"]), "CT")
            groups[low_dose if row["method"] == "LDCT" else group].append(evidence(image))
    for name, found in groups.items():
        yield from counted("CT", f"real: {name}", None, found)


# Telling


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows; floats to four digits."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        names = list(Row.__dataclass_fields__)
        table.writerow(names)
        table.writerows([shown(getattr(row, name)) for name in names] for row in rows)


def shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def read_csv(path: Path) -> list[Row]:
    def number(text: str) -> float | None:
        return float(text) if text else None

    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                each["kind"],
                each["pictures"],
                number(each["strength"]),
                each["finding"],
                number(each["threshold"]),
                int(each["images"]),
                int(each["measured"]),
                int(each["fired"]),
                int(each["left_out"]) if each["left_out"] else None,
                number(each["median"]),
                number(each["extreme"]),
            )
            for each in csv.DictReader(file)
        ]


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Markdown; numbers to the right."""
    rules = ("---" if name in TEXTS or name == head[0] else "---:" for name in head)
    made = ["| " + " | ".join(head) + " |", "| " + " | ".join(rules) + " |"]
    return "\n".join([*made, *("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)])


def block(rows: Sequence[Row]) -> str:
    """What docs/findings.md quotes: thresholds, false alarms, hits on the ladders, the reader study."""
    good = {(row.finding, row.kind): row for row in rows if row.pictures == "good"}
    number = {kind: next(row.images for row in rows if row.kind == kind and row.pictures == "good") for kind in KINDS}
    parts = [
        "### Thresholds",
        table(
            ["finding", "fires", "unit", "CT", "US", "all else", "code"],
            (
                (
                    f"[{name}](#{name})",
                    cause.direction,
                    cause.unit,
                    *(limit(cause.threshold(modality)) for modality in ("CT", "US", None)),
                    codes(cause),
                )
                for name, cause in CAUSES.items()
            ),
        ),
        "–: not judged.",
        "### False alarms",
        "Good pictures on which the finding would fire, had the threshold been made without them: without their "
        "patient or series where the modality has its own, without their whole kind where it has not. With the "
        f"thresholds as they are, it does on {sum(row.fired for row in good.values())}: they lie beyond all of them.",
        table(
            ["finding", *(f"{kind}, {number[kind]}" for kind in KINDS)],
            ((name, *(alarms(good[name, kind]) for kind in KINDS)) for name in CAUSES),
        ),
        "### Hits",
        "Copies of good pictures, worse by known steps: share on which a finding fires that is right to.",
        table(
            ["ladder, right findings", "step", *KINDS],
            (
                (
                    f"{ladder}: {', '.join(RIGHT[ladder])}" if step == STEPS[ladder][0] else "",
                    f"{step:g} ({UNITS[ladder]})" if step == STEPS[ladder][0] else f"{step:g}",
                    *(share(hit(rows, kind, ladder, step)) for kind in KINDS),
                )
                for ladder in RIGHT
                for step in STEPS[ladder]
            ),
        ),
        "### On real pictures",
        "The CT reader study: low-dose and denoised slices, by the mean noise grade of three radiologists (7: like "
        "normal dose). And the abdominal ultrasound frames that no threshold was made from.",
        table(
            ["pictures", "number", *CAUSES],
            (
                (
                    name.removeprefix("real: "),
                    group["noise"].images,
                    *(share(group[finding]) for finding in CAUSES),
                )
                for name, group in real_groups(rows).items()
            ),
        ),
    ]
    return "\n\n".join(parts)


def real_groups(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.pictures.startswith("real: "):
            groups.setdefault(row.pictures, {})[row.finding] = row
    return groups


def hit(rows: Sequence[Row], kind: str, ladder: str, strength: float) -> Row:
    return next(
        row
        for row in rows
        if (row.kind, row.pictures, row.strength) == (kind, ladder, strength) and row.finding.startswith("any of ")
    )


def limit(threshold: float | None) -> str:
    return "–" if threshold is None else f"{threshold:g}"


def codes(cause: Cause) -> str:
    told: dict[str, list[str]] = {}
    for modality, code in cause.codes.items():
        told.setdefault(f"{code.value} {code.meaning}", []).append(modality)
    return "; ".join(code + ("" if DEFAULT in who else f" ({', '.join(who)})") for code, who in told.items())


def alarms(row: Row) -> str:
    return "–" if row.threshold is None else f"{row.left_out}"


def share(row: Row) -> str:
    """The share of pictures that fired; a dash where the finding is not judged, or could not be measured on any."""
    judged = row.threshold is not None or row.finding.startswith("any of ")
    return f"{row.fired / row.images:.0%}" if judged and row.measured else "–"


def markdown(rows: Sequence[Row]) -> str:
    """findings.md: the block, and every finding on every step, for who wants to see what else fires."""
    head = "# How often each finding is right\n\nMade by `make findings`. Thresholds: " + RULE + ".\n"
    cross = []
    for kind in KINDS:
        lines = []
        for ladder, steps in STEPS.items():
            for step in steps:
                found = {r.finding: r for r in rows if (r.kind, r.pictures, r.strength) == (kind, ladder, step)}
                lines.append((f"{ladder} {step:g}", *(share(found[name]) for name in CAUSES)))
        cross.append(f"### All findings on every step: {kind}\n\n" + table(["step", *CAUSES], lines))
    text = block(rows)
    for name in CAUSES:
        text = text.replace(f"[{name}](#{name})", name)
    return "\n".join([head, text, "", "\n\n".join(cross), ""])


def write_texts(rows: Sequence[Row], folder: Path) -> None:
    for path, text in ((folder / "findings.md", markdown(rows)), (PAGE, page(rows))):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


def page(rows: Sequence[Row]) -> str:
    """docs/findings.md with its block made anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{block(rows)}{END}{after}"


def main() -> None:
    """Measure, and write findings.csv, findings.md and the block of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT / os.environ.get("SAQM_SHARED", "../shared"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--thresholds", action="store_true", help="only print what the rule makes of the good pictures")
    parser.add_argument("--tables", action="store_true", help="measure nothing: only write the texts from findings.csv")
    options = parser.parse_args()
    if options.tables:
        write_texts(read_csv(options.out / "findings.csv"), options.out)
        return
    began = time.time()

    def say(what: str) -> None:
        print(f"{time.time() - began:6.0f} s  {what}", flush=True)

    pictures = list(good_pictures(options.shared))
    values = [(good, evidence(good.image)) for good in pictures]
    say("good pictures")
    for name, cause in CAUSES.items():
        wanted = proposed(name, values)
        same = wanted == cause.thresholds
        say(f"{name}: {wanted}" + ("" if same else f"  CAUSES has {dict(cause.thresholds)}"))
    if options.thresholds:
        return
    data = options.shared / "data"
    rows = [*on_good(values), *on_ladders(pictures, say)]
    rows += [*on_the_study(data / "ct_reader_study"), *on_the_rest(data / "abdominal_ultrasound" / "images")]
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / "findings.csv")
    write_texts(read_csv(options.out / "findings.csv"), options.out)
    say("written")


if __name__ == "__main__":
    main()
