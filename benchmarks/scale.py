"""What it costs to score very many images: measured here by the image, projected in the open (docs/scale.md).

    python benchmarks/scale.py [--out benchmarks/results] [--repeats 7] [--slices FOLDER]

Times are seconds of processor time on one thread, which a busy machine changes little; those of starting are seconds on
the clock. Pictures are 512x512: CT slices of the reader study where they are at hand (SAQM_SHARED), else made ones.
What Ray itself costs is measured where Ray is installed, and left out where it is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image as pillow
from provenance import RESULTS, ROOT, commit, processor
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from saqm.batch import Settings, score_many
from saqm.errors import SaqmError
from saqm.image import read_image
from saqm.outputs.table import save_records
from saqm.scorer import load_scorer, score, scorer_names

SIDE, SLICES = 512, 8
ARCHIVES = {"a million images": 10**6, "a thousand million images": 10**9}
CORES = 64  # of a machine in the projection
GPU_RATE = 2000.0  # images a second that a GPU is assumed to score: no GPU has been measured
WRITTEN = 5000  # rows that the writer of parts is timed with
CHEAP = 3200  # names that nobody has to read, for what Ray costs by itself
START = "import saqm; saqm.score(saqm.read_image({!r}), saqm.load_scorer())"
DOCS = ROOT / "docs" / "scale.md"


def processor_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of the processor time of a piece of work, after one run to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def slices(given: Path | None, folder: Path) -> tuple[list[Path], str]:
    """Files of 512x512 slices to score, and what they are."""
    study = given or Path(os.environ.get("SAQM_SHARED", ROOT.parent / "shared")) / "data/ct_reader_study/images"
    found = sorted(study.glob("*.png"))
    if found:
        return found[:: max(1, len(found) // SLICES)][:SLICES], "CT slices of the reader study, 8-bit PNG"
    made = [folder / f"made{number}.png" for number in range(SLICES)]
    for number, path in enumerate(made):
        pillow.fromarray(picture(number).astype(np.uint8)).save(path)
    return made, "made pictures, 8-bit PNG"


def picture(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A smooth disc with noise on 0..255, dark outside: what matters to a decoder."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    inside = np.hypot(rows, columns) < 0.45 * SIDE
    shade = 110 + 60 * np.sin(rows / 37) * np.cos(columns / 53)
    return np.clip(np.where(inside, shade + np.random.default_rng(seed).normal(0, 8, inside.shape), 0), 0, 255)


def dicom_files(folder: Path) -> dict[str, Path]:
    """One 512x512 slice of 12 bits as DICOM in several transfer syntaxes."""
    plain = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    plain.Rows = plain.Columns = SIDE
    plain.PixelRepresentation, plain.RescaleIntercept, plain.RescaleSlope = 0, -1024, 1
    plain.BitsStored, plain.HighBit = 12, 11
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
        if name in plain:
            delattr(plain, name)
    plain.PixelData = (picture(0) * 16).astype("<u2").tobytes()
    plain.WindowCenter, plain.WindowWidth = 40, 400
    found = {"DICOM, not compressed": folder / "plain.dcm"}
    plain.save_as(found["DICOM, not compressed"])
    for name, syntax in (("RLE", RLELossless), ("JPEG-LS", JPEGLSLossless), ("JPEG 2000", JPEG2000Lossless)):
        packed = pydicom.dcmread(found["DICOM, not compressed"])
        packed.compress(syntax)
        found[f"DICOM, {name}"] = folder / f"{syntax}.dcm"
        packed.save_as(found[f"DICOM, {name}"])
    return found


def reading(files: dict[str, Path], repeats: int) -> dict[str, float]:
    return {name: processor_seconds(lambda path=path: read_image(path), repeats) for name, path in files.items()}


def scoring(files: Sequence[Path], repeats: int, only: Sequence[str]) -> dict[str, float]:
    """Seconds an image of each scorer: the picture is read already."""
    images = [read_image(path) for path in files]
    found: dict[str, float] = {}
    for name in only:
        try:
            scorer = load_scorer(name, threads=1)
        except SaqmError as error:
            print(f"left out: {name}: {error}")
            continue
        few = images if scorer.name.startswith("saqm") else images[:2]
        taken = processor_seconds(lambda s=scorer, f=few: [score(image, s) for image in f], repeats)
        found[f"{name} ({scorer.model['engine']})"] = taken / len(few)
    return found


def starting(path: Path) -> float:
    """Seconds on the clock until a fresh process has scored its first image."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", START.format(str(path))], check=True)
        taken.append(time.perf_counter() - began)
    return min(taken)


def writing(files: Sequence[Path], folder: Path) -> float:
    """Rows a second that go into a part."""
    [one] = score_many([str(files[0])], Settings())
    rows = [one.to_record()] * WRITTEN
    return WRITTEN / processor_seconds(lambda: save_records(rows, folder / "part.parquet"), 3)


def on_ray() -> dict[str, float] | None:
    """What Ray takes: seconds until the first row, and files that a processor second of the driver deals with."""
    if importlib.util.find_spec("ray") is None:
        return None
    from saqm.scale import TOGETHER, score_on_ray

    began = time.perf_counter()
    rows = score_on_ray([f"/nowhere/{number}" for number in range(CHEAP)], Settings(), workers=1)
    next(rows)
    first, used = time.perf_counter() - began, time.process_time()
    seen = sum(1 for _ in rows)
    return {
        "seconds_to_first_row": first,
        "files_per_driver_second": seen / (time.process_time() - used),
        "seconds_per_piece": (time.perf_counter() - began - first) / (seen / TOGETHER),
    }


def markdown(made: dict[str, Any]) -> str:
    """The tables of docs/scale.md."""
    cost, ray = made["seconds_per_image"], made["ray"]
    default = next(iter(cost))
    worst = max(made["reading_seconds"].values())
    lines = [
        f"Pictures: {SIDE}x{SIDE}, {made['pictures']}. Processor seconds on one thread, median of {made['repeats']}."
    ]
    lines += ["", "| scorer | ms an image | images an hour and core |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {1e3 * s:,.1f} | {3600 / s:,.0f} |" for name, s in cost.items()]
    lines += ["", "| reading (decoding, windowing, foreground, hash) | ms an image |", "| --- | ---: |"]
    lines += [f"| {name} | {1e3 * s:.1f} |" for name, s in made["reading_seconds"].items()]
    lines += ["", "| else | |", "| --- | ---: |"]
    lines += [f"| a fresh process until its first score, on the clock | {made['start_seconds']:.1f} s |"]
    lines += [f"| rows into Parquet parts, by the one that collects them | {made['rows_per_second']:,.0f} /s |"]
    if ray is not None:
        lines += [
            f"| Ray's own time for a piece of work of one worker, on the clock | {ray['seconds_per_piece']:.2f} s |"
        ]
        lines += [f"| Ray, started here, until the first row, on the clock | {ray['seconds_to_first_row']:.1f} s |"]
        lines += [f"| files a second that a driver's core deals with | {ray['files_per_driver_second']:,.0f} /s |"]
    lines += ["", f"Projected for {default}, reading the dearest kind of file above:", ""]
    lines += [
        f"| | core hours | days on one machine of {CORES} cores | machines for one day |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, count in ARCHIVES.items():
        hours = count * (cost[default] + worst) / 3600
        days = hours / CORES / 24
        lines += [f"| {name} | {hours:,.0f} | {days:,.2f} | {max(1, int(np.ceil(days))):,} |"]
    lines += [
        "",
        f"On GPUs, **assuming** {GPU_RATE:,.0f} images/s each (nothing was measured), with the reading on cores:",
        "",
    ]
    lines += ["| | GPU hours | core hours of reading | cores a GPU needs to be fed |", "| --- | ---: | ---: | ---: |"]
    for name, count in ARCHIVES.items():
        lines += [
            f"| {name} | {count / GPU_RATE / 3600:,.1f} | {count * worst / 3600:,.0f} | {GPU_RATE * worst:,.0f} |"
        ]
    lines += [
        "",
        f"{made['processor']}, commit {made['commit'][:10]}, {made['measured']}, load {made['load_average']}.",
        "",
    ]
    return "\n".join(lines)


def fill(page: Path, benchmark: str, text: str) -> None:
    """Put what a benchmark measured between its marks in a page."""
    begin, end = f"<!-- benchmarks/{benchmark}.py -->\n", f"<!-- end of benchmarks/{benchmark}.py -->\n"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}{text}{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    """Measure, print, write scale.json; where that goes to its place, put the tables into docs/scale.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--slices", type=Path, help="folder of 512x512 PNG slices")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, what = slices(options.slices, folder)
        kinds = {"PNG": files[0], **dicom_files(folder)}
        named = ["saqm-ct", *(n for n in scorer_names("all") if n != "saqm-ct")]
        twin = ROOT / "src/saqm/models/saqm-ct.safetensors"
        if importlib.util.find_spec("torch") is not None and twin.is_file():
            named.insert(1, str(twin))
        cost = scoring(files, options.repeats, named)
        made = {
            "commit": commit(),
            "processor": processor(),
            "measured": time.strftime("%Y-%m-%d", time.gmtime()),
            "load_average": round(os.getloadavg()[0], 1),
            "repeats": options.repeats,
            "pictures": what,
            "seconds_per_image": {Path(n).name if "/" in n else n: s for n, s in cost.items()},
            "reading_seconds": reading(kinds, options.repeats),
            "start_seconds": starting(files[0]),
            "rows_per_second": writing(files, folder),
            "ray": on_ray(),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scale.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    tables = markdown(made)
    print(tables)
    if options.out == RESULTS:
        fill(DOCS, "scale", tables)


if __name__ == "__main__":
    main()
