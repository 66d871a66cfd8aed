"""Data sets: what a downloaded folder says becomes a manifest, and what is wrong in it is said."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from saqm.datasets import ct_reader_study, folder
from saqm.errors import ManifestError
from saqm.manifest import read_manifest, write_manifest

HEADER = [
    "filename", "organ", "set", "method",
    *(f"r{reader}_{aspect}" for reader in (1, 2, 3) for aspect in ("noise", "contrast", "structure")),
    "mean_contrast", "mean_structure", "mos_cs_1to5", "noise_closeness_0to1",
]  # fmt: skip


def small_study(root: Path, *rows: list[object]) -> Path:
    (root / "images").mkdir()
    with (root / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    for row in rows:
        (root / str(row[0])).touch()
    return root


# Reader 2 wrote 6 for structure: off the scale, so structure is the mean of readers 1 and 3.
OFF_SCALE = ["images/a.png", "abdomen", 10, "DPM", 5, 2, 2, 5, 2, 6, 5, 3, 2, 2.3333, 2.0, 2.1666, 0.6667]
ANCHOR = ["images/n.png", "abdomen", 10, "NDCT", 7, 5, 5, 7, 5, 5, 7, 5, 5, 5.0, 5.0, 5.0, 1.0]


def test_an_entry_off_the_scale_is_left_out(tmp_path: Path) -> None:
    judged, anchor = ct_reader_study(small_study(tmp_path, OFF_SCALE, ANCHOR)).rows
    assert (judged.scene, judged.domain, judged.method, judged.score) == ("abdomen-10", "ct-abdomen", "DPM", 2.1666)
    assert judged.rater_scores == (2.0, 2.0, 2.5)  # reader 2 by contrast alone
    assert (judged.raters, judged.reference, judged.judged) == (3, False, True)
    assert (anchor.raters, anchor.reference, anchor.judged, anchor.rater_scores) == (0, True, False, None)


def test_a_study_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    wrong = [*OFF_SCALE[:15], 2.8333, OFF_SCALE[16]]  # with the entry off the scale counted in
    missing = ["images/none.png", *ANCHOR[1:]]
    garbled = [*OFF_SCALE[:4], "x", *OFF_SCALE[5:]]
    garbled[5] = "two"
    root = small_study(tmp_path, wrong, missing, ["images/g.png", *garbled[1:]])
    (root / "images" / "none.png").unlink()
    with pytest.raises(ManifestError) as caught:
        ct_reader_study(root)
    message = str(caught.value)
    assert "3 problems" in message
    assert "line 2: mos_cs_1to5 is 2.8333, but the readers' entries give 2.1667" in message
    assert "line 3: missing file" in message
    assert "line 4: ValueError: could not convert string to float: 'two'" in message


def test_another_folder_is_not_the_study(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"wanted a folder with scores\.csv and images/"):
        ct_reader_study(tmp_path)


def test_the_study_holds_together(ct_study: Path, tmp_path: Path) -> None:
    manifest = ct_reader_study(ct_study)
    scenes = Counter(row.scene for row in manifest.rows)
    assert set(scenes.values()) == {14}  # two anchors and twelve denoisers
    assert {row.domain for row in manifest.rows} == {"ct-abdomen", "ct-brain"}
    assert all(row.scene.startswith(row.domain.removeprefix("ct-")) for row in manifest.rows)
    assert sum(row.judged for row in manifest.rows) == 12 * len(scenes)
    assert {(row.method, row.score) for row in manifest.rows if not row.judged} == {("LDCT", 1.0), ("NDCT", 5.0)}
    assert {row.method for row in manifest.rows if row.reference} == {"NDCT"}
    # Apart from rounding and entries off the scale, the score is the mean of the readers.
    gaps = [
        abs(float(np.mean([given for given in row.rater_scores if given is not None])) - row.score)
        for row in manifest.rows
        if row.rater_scores and row.score
    ]
    assert sum(gap > 1e-3 for gap in gaps) <= 0.03 * len(gaps)
    write_manifest(manifest, tmp_path / "study.csv")
    assert read_manifest(tmp_path / "study.csv").sha256 == manifest.sha256


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    from PIL import Image

    for name in ("RED/p01_s3.png", "RED/p02_s1.png", "WGAN/p01_s3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_lists_its_images_without_scores(tree: Path) -> None:
    rows = folder(tree, domain="ct").rows
    assert [(row.path.relative_to(tree).as_posix(), row.scene) for row in rows] == [
        ("RED/p01_s3.png", "p01_s3"),
        ("RED/p02_s1.png", "p02_s1"),
        ("WGAN/p01_s3.png", "p01_s3"),
    ]
    assert {(row.score, row.domain, row.method) for row in rows} == {(None, "ct", None)}


def test_scene_and_method_come_from_the_path(tree: Path) -> None:
    rows = folder(tree, "*p01*", scene_from=r"(p\d+)", method_from="^([^/]+)/").rows
    assert [(row.scene, row.method) for row in rows] == [("p01", "RED"), ("p01", "WGAN")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene_from": "(p02)"}, r"2 names are not matched\n  RED/p01_s3\.png by '\(p02\)'"),
        ({"scene_from": "p02"}, "has no group; put the part that is wanted in"),
        ({"method_from": "("}, "is not a regular expression"),
        ({"pattern": "*.dcm"}, r"no image matches '\*\.dcm'"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tree: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        folder(tree, **options)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a folder"):
        folder(tmp_path / "none")
