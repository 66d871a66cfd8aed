"""Write docs/conformance/: what independent validators say of the DICOM objects that saqm makes, word for word.

python docs/generate_conformance.py

Needs dciodvfy and dcentvfy (dicom3tools), DicomSRValidator (pixelmed-apps, Java), dsrdump and dsr2html (dcmtk), and
saqm[dicom]. The images are those that ship with pydicom, one for each modality, and the default model scores them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset

from saqm.errors import NotScorable
from saqm.gating import Thresholds, gate
from saqm.image import Image, read_frames
from saqm.maps import QualityMap
from saqm.outputs.dicom import (
    Maker,
    header_of,
    quality_map,
    quality_note,
    quality_report,
    rejection_note,
    save_object,
)
from saqm.scorer import ModelScorer, Score, load_scorer, not_scored, score_and_map

FOLDER = Path(__file__).with_name("conformance")
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MAKER = Maker.named("conformance")
THRESHOLDS = Thresholds(pass_at=60, fail_below=48)
# Java's own limits are too low for the rules of the templates.
JAVA = " ".join(f"-Djdk.xml.{limit}=0" for limit in ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit"))
SHOWN = 70  # lines of a dump; the rest repeats itself

IMAGES = {  # name of the object -> file that ships with pydicom
    "ct": "CT_small.dcm",
    "mr": "examples_overlay.dcm",
    "us": "examples_palette.dcm",
    "us-cine": "examples_ybr_color.dcm",
    "cr": "dicomdirtests/77654033/CR1/6154",
    "nm": "JPEG2000.dcm",
    "sc": "SC_rgb_small_odd.dcm",
}
MAPS = ("ct", "us", "us-cine")


class Made(NamedTuple):
    """An object, what it is, and the image it is of."""

    name: str
    what: str
    dataset: Dataset
    source: Path


def main() -> int:
    """Write the folder; exit code 1 where a validator finds an error."""
    FOLDER.mkdir(exist_ok=True)
    for old in (*FOLDER.glob("*.txt"), *FOLDER.glob("*.html")):
        old.unlink()
    rows, errors = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for made in _objects():
            path = Path(folder) / f"{made.name}.dcm"
            save_object(made.dataset, path)
            said = dict(_said(made, path))
            (FOLDER / f"{made.name}.txt").write_text(_listing(made, said), encoding="utf-8")
            if made.name == "report-us":
                _run("dsr2html", path, FOLDER / f"{made.name}.html")
            rows.append(_row(made, said))
            errors += sum(_count(text, "Error") for text in said.values())
    (FOLDER / "README.md").write_text(PAGE.format(rows="\n".join(rows)), encoding="utf-8")
    sys.stdout.write(f"{len(rows)} objects, {errors} errors\n")
    return 1 if errors else 0


def _objects() -> Iterator[Made]:
    scorer = load_scorer()
    for name, file in IMAGES.items():
        source = SAMPLES / file
        header = header_of(source)
        scores = []
        for image in read_frames(source):
            score, quality = _scored(scorer, image)
            scores.append(gate(score, THRESHOLDS))
            if name in MAPS and quality is not None and image.source.frame in (None, 1):
                yield Made(f"map-{name}", "quality map", quality_map(header, quality, score, MAKER, now=NOW), source)
        images = [(header, scores)]
        yield Made(f"report-{name}", "structured report", quality_report(images, MAKER, now=NOW), source)
        if name == "us":
            yield Made("note-us", "quality note", quality_note(images, MAKER, now=NOW), source)
            failed = [(header, [replace(scores[0], verdict="fail")])]
            note = rejection_note(failed, MAKER, reason="other-artifact", confirmed="for this page", now=NOW)
            yield Made("rejection-us", "rejection note", note, source)


def _scored(scorer: ModelScorer, image: Image) -> tuple[Score, QualityMap | None]:
    try:
        return score_and_map(image, scorer)
    except NotScorable as error:
        return not_scored(image.source.path, str(error), image, model=scorer.model), None


def _said(made: Made, path: Path) -> Iterator[tuple[str, str]]:
    yield "dciodvfy -new", _run("dciodvfy", "-new", path)
    yield "dcentvfy", _run("dcentvfy", path, made.source)
    if made.dataset.Modality == "SR":
        yield "DicomSRValidator", _run("DicomSRValidator", path)
        yield "dsrdump", _run("dsrdump", "+Pl", path)


def _run(*command: object) -> str:
    environment = {**os.environ, "JAVA_TOOL_OPTIONS": JAVA}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    lines = (done.stdout + done.stderr).splitlines()
    said = "\n".join(line for line in lines if not line.startswith("Picked up"))
    for part in command:
        if isinstance(part, Path):
            said = said.replace(f"{part.parent}/", "")
    return said


def _listing(made: Made, said: dict[str, str]) -> str:
    parts = [f"{made.what} of {made.source.name} (pydicom's test files)"]
    for tool, text in said.items():
        lines = text.splitlines()
        more = [] if len(lines) <= SHOWN else [f"... {len(lines) - SHOWN} lines more"]
        parts.append("\n".join([f"== {tool}", *lines[:SHOWN], *more]))
    return "\n\n".join(parts) + "\n"


def _row(made: Made, said: dict[str, str]) -> str:
    cells = [f"[{made.name}]({made.name}.txt)", made.what, made.source.name]
    for tool in ("dciodvfy -new", "dcentvfy", "DicomSRValidator"):
        text = said.get(tool)
        cells.append("-" if text is None else f"{_count(text, 'Error')} / {_count(text, 'Warning')}")
    return f"| {' | '.join(cells)} |"


def _count(text: str, kind: str) -> int:
    return sum(line.startswith(kind) for line in text.splitlines())


PAGE = """# What validators say

Made by `docs/generate_conformance.py`, word for word; each name leads to the full output. Errors / warnings:

| object | what | image | dciodvfy | dcentvfy | DicomSRValidator |
| --- | --- | --- | --- | --- | --- |
{rows}

Where the warnings come from: [sr.md](../sr.md#validators). How a report reads, as dsr2html shows it:
[report-us.html](report-us.html).
"""


if __name__ == "__main__":
    sys.exit(main())
