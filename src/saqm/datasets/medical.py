"""The data sets of medical images."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from saqm.datasets._published import Published, assembled, finite, found_by_name, located, table, text_of
from saqm.datasets.unscored import folder
from saqm.errors import ManifestError
from saqm.manifest import DEFAULT_DOMAIN, Manifest, Row, Scale, read_manifest

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


LDCTIQAC2023 = Published(
    title="LDCTIQAC 2023",
    domain="ldctiqac2023",
    scale=Scale(
        low=0,
        high=4,
        name="LDCTIQAC 2023: mean of five radiologists, 0 bad to 4 excellent",
        licence="Creative Commons; users state both CC BY 4.0 and CC BY-NC-SA 4.0: read the Zenodo record. Made from "
        "the AAPM/Mayo low-dose CT challenge, whose own terms apply",
        citation="Lee et al., Low-dose computed tomography perceptual image quality assessment, Medical Image Analysis "
        "2025, doi 10.1016/j.media.2024.103343; data doi 10.5281/zenodo.7833096",
    ),
    layout="a folder with train.json and image/, or test.json and images/, or the folder above (LDCTIQAG2023_train, "
    "LDCTIQAC_test)",
    source="https://doi.org/10.5281/zenodo.7833096",
)
_LDCT_PARTS = {  # folder as unpacked, score file, folder of images, how many, raters
    "train": ("LDCTIQAG2023_train", "train.json", "image", 1000, 5),
    "test": ("LDCTIQAC_test", "test.json", "images", 300, None),
}


def ldctiqac2023(root: str | Path, *, scenes: str | Path | Mapping[str, str], partial: bool = False) -> Manifest:
    """LDCTIQAC 2023: abdominal CT slices with noise and streaks, mean of five radiologists 0 to 4, 4 best.

    scenes: the published names (0000.tif) tell neither patient nor slice, and one slice stands there with several
    degradations, so this has to be said: a CSV file with the columns image and scene (or a mapping), or "image" for
    each image on its own. Then a split shares content between its sides, its figures are too good, and the scale's name
    says so. The split is the authors': train, test. partial: take what is there.
    Images are 32-bit float TIFF, already windowed to 0..1 (width 350, level 40); read_image takes them as they are.
    Seen: layout and scores of the training part; of the test part (300 images, handed out apart) only that two programs
    read it so. Raises ManifestError for another layout, missing files, and every bad entry.
    """
    where, *_ = located(LDCTIQAC2023, root)
    problems, rows, wanted = list[str](), list[Row](), 0
    scene_of = _scenes(scenes)
    for part, (unpacked, list_name, image_folder, count, raters) in _LDCT_PARTS.items():
        entries = found_by_name(where)
        if list_name not in entries and unpacked.lower() in entries:
            entries = found_by_name(entries[unpacked.lower()])
        if list_name not in entries or image_folder not in entries:
            continue
        wanted += count
        files = found_by_name(entries[image_folder])
        for name, score in _json_scores(entries[list_name], problems):
            scene = f"{part}-{Path(name).stem}" if scene_of is None else scene_of.get(name)
            if not scene:
                problems.append(f"{list_name}: {name} has no scene")
                continue
            rows.append(
                Row(
                    path=files.get(name.lower(), entries[image_folder] / name),
                    score=score,
                    scene=f"{LDCTIQAC2023.domain}-{scene}",
                    domain=LDCTIQAC2023.domain,
                    raters=raters,
                    split=part,
                )
            )
    if not wanted:
        raise LDCTIQAC2023.refused(where, "neither train.json with image/ nor test.json with images/")
    both = {r.scene for r in rows if r.split == "train"} & {r.scene for r in rows if r.split == "test"}
    problems += [f"scene {scene!r} is in the training and the test part" for scene in sorted(both)]
    made = assembled(LDCTIQAC2023, where, rows, problems, images=wanted, partial=partial)
    if scene_of is None and made.scale is not None:
        name = f"{made.scale.name}; each image taken as its own scene, although images share patients and slices"
        made = replace(made, scale=replace(made.scale, name=name))
    return made


def _scenes(scenes: str | Path | Mapping[str, str]) -> Mapping[str, str] | None:
    """The scene of each image by its file's name; None: each image is its own."""
    if isinstance(scenes, Mapping) or scenes == "image":
        return scenes if isinstance(scenes, Mapping) else None
    path = Path(scenes)
    if not path.is_file():
        raise ManifestError(f'scenes {str(scenes)!r}: wanted a CSV file with the columns image and scene, or "image"')
    found: dict[str, str] = {}
    for line, cells in table(LDCTIQAC2023, path, "image", "scene"):
        name = cells["image"]
        if name in found:
            raise ManifestError(f"{path}: line {line}: {name} stands there twice")
        found[name] = cells["scene"]
    return found


def _json_scores(path: Path, problems: list[str]) -> list[tuple[str, float]]:
    """Names and scores of a JSON object, entries named twice included."""
    try:
        pairs = json.loads(text_of(path), object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON: {error}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise LDCTIQAC2023.refused(path, 'no object like {"0000.tif": 2.8, …}')
    scores = []
    for name, score in pairs:
        if isinstance(score, bool) or not isinstance(score, int | float):
            problems.append(f"{path.name}: {name} has the score {score!r}, wanted a number")
            continue
        try:
            scores.append((name, finite(score)))
        except ValueError as error:
            problems.append(f"{path.name}: {name}: {error}")
    return scores


MD72_DOMAIN = "md72"
MD72_SCENES, MD72_METHODS = 12, 5
MD72_ORIGINAL = ("original", "reference")  # how the file of the undegraded version is called
_MD72_MANIFESTS = ("md72.csv", "md72.jsonl")
_MD72_CITATION = "Outtas et al., Physics in Medicine and Biology 63(18) 185014, 2018"


def md72(root: str | Path, *, partial: bool = False) -> Manifest:
    """The SAQM paper's MD72: ultrasound of the liver, 12 scenes, each the original and five despeckled versions.

    It is private and its layout unpublished: this one is ours. `root` is a manifest in saqm's own form, or a folder
    that holds it as md72.csv (or .jsonl) with its scale in md72.json; every image needs scene and method, and the
    originals are marked as references. Without one, `root` has a folder a scene, each with original.png (or
    reference.png, or another format) and five more, named by their method, alike in all; scores are then unknown.
    Raises ManifestError that names each scene that is not so. partial: the number of scenes and versions is free.
    """
    root = Path(root).absolute()
    beside = [root / name for name in _MD72_MANIFESTS if (root / name).is_file()]
    if root.is_file() or beside:
        made = read_manifest(root if root.is_file() else beside[0])
        rows = [replace(r, domain=MD72_DOMAIN) if r.domain == DEFAULT_DOMAIN else r for r in made.rows]
        if made.scale is None and any(row.score is not None for row in rows):
            raise ManifestError(f"{made.path}: scores without a scale; write it to {root.stem}.json (docs/data.md)")
        scale = made.scale and replace(made.scale, citation=made.scale.citation or _MD72_CITATION)
    else:
        named = folder(root, "*/*", scene_from="^([^/]+)/", method_from=r"([^/]+)\.[^./]+$", domain=MD72_DOMAIN)
        rows = [replace(row, reference=str(row.method).lower() in MD72_ORIGINAL) for row in named.rows]
        scale = None
    problems = [] if partial else _unlike_md72(rows)
    if problems:
        head = f"{root}: not the 12 scenes × (original + 5 versions) of MD72; a part of it is read with partial=True"
        raise ManifestError("\n  ".join([head, *problems]))
    wanted = MD72_SCENES * (1 + MD72_METHODS)
    if scale is not None and len(rows) < wanted:
        scale = replace(scale, name=f"{scale.name or 'MD72'}; partial copy: {len(rows)} of {wanted} images")
    return Manifest(tuple(rows), scale)


def _unlike_md72(rows: list[Row]) -> list[str]:
    scenes: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        scenes[row.scene].append(row)
    problems = [] if len(scenes) == MD72_SCENES else [f"{len(scenes)} scenes, wanted {MD72_SCENES}"]
    methods = sorted({str(row.method) for row in rows if not row.reference})
    if len(methods) != MD72_METHODS:
        problems.append(f"{len(methods)} methods ({', '.join(methods)}), wanted {MD72_METHODS}")
    for scene, versions in scenes.items():
        originals = sum(row.reference for row in versions)
        if originals != 1:
            problems.append(f"scene {scene!r}: {originals} originals, wanted 1")
        if sorted(str(row.method) for row in versions if not row.reference) != methods:
            problems.append(f"scene {scene!r}: wanted each of {', '.join(methods)} once")
    return problems
