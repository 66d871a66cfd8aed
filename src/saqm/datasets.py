"""A downloaded folder becomes a Manifest: one function a data set."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from saqm.errors import ManifestError
from saqm.manifest import DEFAULT_DOMAIN, Manifest, Row, Scale

CT_READER_STUDY_SCALE = Scale(
    low=1,
    high=5,
    higher_is_better=True,
    name="MTD-GAN blind reader study: (contrast + structure) / 2, three radiologists",
    licence="MIT (repository babbu3682/MTD-GAN at 621a161c); the abdomen slices derive from the AAPM/Mayo low-dose CT "
    "challenge, whose own terms apply: do not redistribute the images",
    citation="MTD-GAN, IEEE Transactions on Medical Imaging 2024, doi 10.1109/TMI.2024.3449647",
)
_ANCHORS = ("LDCT", "NDCT")  # 1 and 5 by the protocol of the study, not judged
_READERS = ("r1", "r2", "r3")
_ROUNDING = 1e-3  # mos_cs_1to5 is the mean of two means, each rounded to four digits


def ct_reader_study(root: str | Path) -> Manifest:
    """Denoised CT with the blind scores of three radiologists: a folder with scores.csv and images/.

    Scores are the study's mos_cs_1to5, 1 to 5, 5 best. LDCT and NDCT are anchors: raters 0. A reader's own score is the
    mean of his entries for contrast and structure; an entry off the scale 1 to 5 is left out, as in mos_cs_1to5, which
    is recomputed and compared. Aspects: contrast, structure (1 to 5), noise_closeness (0 to 1).
    Raises ManifestError that lists every bad row and missing image.
    """
    root = Path(root).absolute()
    table = root / "scores.csv"
    if not table.is_file() or not (root / "images").is_dir():
        raise ManifestError(f"{root}: not the CT reader study; wanted a folder with scores.csv and images/")
    rows: list[Row] = []
    problems: list[str] = []
    with table.open(encoding="utf-8-sig", newline="") as file:
        for line, cells in enumerate(csv.DictReader(file), 2):
            try:
                row, recomputed = _study_row(cells, root)
            except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
                problems.append(f"line {line}: {type(error).__name__}: {error}")
                continue
            if row.score is None or abs(row.score - recomputed) > _ROUNDING:
                problems.append(
                    f"line {line}: mos_cs_1to5 is {row.score}, but the readers' entries give {recomputed:.4f}"
                )
            if not row.path.is_file():
                problems.append(f"line {line}: missing file {row.path}")
            rows.append(row)
    if problems or not rows:
        raise ManifestError("\n  ".join([f"{table}: {len(problems)} problems", *(problems or ["no rows"])]))
    return Manifest(tuple(rows), CT_READER_STUDY_SCALE)


def _study_row(cells: Mapping[str, str], root: Path) -> tuple[Row, float]:
    """The row and its opinion score recomputed from the readers' entries."""

    def entries(reader: str, *aspects: str) -> list[float]:
        given = [float(cells[f"{reader}_{aspect}"]) for aspect in aspects]
        return [entry for entry in given if CT_READER_STUDY_SCALE.low <= entry <= CT_READER_STUDY_SCALE.high]

    contrast = [entry for reader in _READERS for entry in entries(reader, "contrast")]
    structure = [entry for reader in _READERS for entry in entries(reader, "structure")]
    by_reader = [entries(reader, "contrast", "structure") for reader in _READERS]
    anchor = cells["method"] in _ANCHORS
    row = Row(
        path=root / cells["filename"],
        score=float(cells["mos_cs_1to5"]),
        scene=f"{cells['organ']}-{int(cells['set']):02d}",
        domain=f"ct-{cells['organ']}",
        raters=0 if anchor else len(_READERS),
        reference=cells["method"] == "NDCT",
        method=cells["method"],
        rater_scores=None if anchor else tuple(_mean(own) if own else None for own in by_reader),
        aspects={
            "contrast": float(cells["mean_contrast"]),
            "structure": float(cells["mean_structure"]),
            "noise_closeness": float(cells["noise_closeness_0to1"]),
        },
    )
    return row, (_mean(contrast) + _mean(structure)) / 2


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def folder(
    root: str | Path,
    pattern: str = "*",
    *,
    scene_from: str | None = None,
    method_from: str | None = None,
    domain: str = DEFAULT_DOMAIN,
) -> Manifest:
    """Every image under a folder as a row without score, to be filled in by hand.

    pattern: which of them, by their path below `root` ("*" crosses folders: "*_v2.png").
    scene_from, method_from: regular expressions searched in that path; their first group is the scene (else the file's
    stem, so that a/01.png and b/01.png are two versions of one scene) and the method (else unknown).
    Raises ManifestError for no image, or for files that an expression does not match, all of them listed.
    """
    from saqm.image import find_images

    root = Path(root).absolute()
    if not root.is_dir():
        raise ManifestError(f"{root}: not a folder")
    rows: list[Row] = []
    unmatched: list[str] = []
    for name in find_images([root]):
        path = Path(name).absolute()
        below = path.relative_to(root).as_posix()
        if not fnmatch(below, pattern):
            continue
        scene, method = _group(scene_from, below, unmatched), _group(method_from, below, unmatched)
        rows.append(Row(path=path, score=None, scene=scene or path.stem, domain=domain, method=method))
    if unmatched:
        raise ManifestError("\n  ".join([f"{root}: {len(unmatched)} names are not matched", *unmatched]))
    if not rows:
        raise ManifestError(f"{root}: no image matches {pattern!r}")
    return Manifest(tuple(rows))


def _group(expression: str | None, below: str, unmatched: list[str]) -> str | None:
    """The first group of a regular expression searched in a path; what it does not match is added to `unmatched`."""
    if expression is None:
        return None
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ManifestError(f"{expression!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise ManifestError(f"{expression!r} has no group; put the part that is wanted in ( )")
    match = compiled.search(below)
    if match is None or not match[1]:
        unmatched.append(f"{below} by {expression!r}")
        return None
    return match[1]
