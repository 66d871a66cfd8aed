"""LDCTIQAC 2023 and MD72, on made copies. The CT reader study is tested in tests/test_datasets.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from saqm.datasets import ldctiqac2023, md72
from saqm.errors import ManifestError
from saqm.image import read_image
from saqm.manifest import Manifest, Row, Scale, read_manifest, write_manifest

# LDCTIQAC 2023

SCORES = {"0000.tif": 2.8, "0001.tif": 1.8, "0002.tif": 3.4, "0003.tif": 2.0}  # as published


def ldct_copy(root: Path, scores: dict[str, object] | None = None, part: str = "train", images: str = "image") -> Path:
    scores = dict(SCORES) if scores is None else scores
    (root / images).mkdir(parents=True)
    (root / f"{part}.json").write_text(json.dumps(scores))
    for name in list(scores)[:10]:
        (root / images / name).touch()
    return root


def test_ldctiqac_of_1000_images(tmp_path: Path) -> None:
    scores: dict[str, object] = {f"{number:04d}.tif": number % 21 / 5 for number in range(1000)}
    root = ldct_copy(tmp_path / "LDCTIQAG2023_train", scores)
    with pytest.raises(ManifestError, match="990 of 1000 files are missing"):
        ldctiqac2023(root, scenes="image")
    manifest = ldctiqac2023(root, scenes="image", partial=True)
    assert (len(manifest.rows), len({row.scene for row in manifest.rows})) == (10, 10)
    first = manifest.rows[0]
    assert (first.score, first.scene, first.raters, first.split) == (0.0, "ldctiqac2023-train-0000", 5, "train")
    assert manifest.scale is not None
    assert (manifest.scale.low, manifest.scale.high, manifest.scale.higher_is_better) == (0, 4, True)
    assert "each image taken as its own scene" in str(manifest.scale.name)
    assert "10.5281/zenodo.7833096" in str(manifest.scale.citation)
    write_manifest(manifest, tmp_path / "ldct.csv")
    assert read_manifest(tmp_path / "ldct.csv").sha256 == manifest.sha256


def test_ldctiqac_takes_scenes_from_a_table(tmp_path: Path) -> None:
    root = ldct_copy(tmp_path / "LDCTIQAG2023_train")
    table = tmp_path / "patients.csv"
    table.write_text("image,scene\n" + "".join(f"{name},L{index // 2}\n" for index, name in enumerate(SCORES)))
    by_table = ldctiqac2023(root, scenes=table, partial=True)
    assert [row.scene[-2:] for row in by_table.rows] == ["L0", "L0", "L1", "L1"]
    assert by_table.scale is not None
    assert str(by_table.scale.name).endswith("; partial copy: 4 of 1000 images")
    assert ldctiqac2023(root, scenes=dict.fromkeys(SCORES, "one"), partial=True).rows[3].scene == "ldctiqac2023-one"
    with pytest.raises(ManifestError, match=r"train\.json: 0003\.tif has no scene"):
        ldctiqac2023(root, scenes=dict.fromkeys(list(SCORES)[:3], "one"), partial=True)
    with pytest.raises(ManifestError, match='wanted a CSV file with the columns image and scene, or "image"'):
        ldctiqac2023(root, scenes="patient")
    table.write_text("image,scene\n0000.tif,a\n0000.tif,b\n")
    with pytest.raises(ManifestError, match=r"line 3: 0000\.tif stands there twice"):
        ldctiqac2023(root, scenes=table)


def test_ldctiqac_keeps_training_and_test_apart(tmp_path: Path) -> None:
    ldct_copy(tmp_path / "LDCTIQAG2023_train")
    ldct_copy(tmp_path / "LDCTIQAC_test", {"0000.tiff": 1.0}, "test", "images")
    both = ldctiqac2023(tmp_path, scenes="image", partial=True)
    assert [row.split for row in both.rows] == ["train"] * 4 + ["test"]
    assert len({row.scene for row in both.rows}) == 5  # 0000.tif and 0000.tiff are two pictures
    with pytest.raises(ManifestError, match="scene 'ldctiqac2023-p' is in the training and the test part"):
        ldctiqac2023(tmp_path, scenes=dict.fromkeys([*SCORES, "0000.tiff"], "p"), partial=True)
    only = ldctiqac2023(tmp_path / "LDCTIQAC_test", scenes="image", partial=True)
    assert [row.raters for row in only.rows] == [None]


def test_ldctiqac_refuses_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"neither train\.json with image/ .*zenodo\.7833096"):
        ldctiqac2023(tmp_path, scenes="image")
    root = ldct_copy(tmp_path / "a", {"0000.tif": 2.8, "0001.tif": 9, "0002.tif": "good", "0003.tif": True})
    with pytest.raises(ManifestError) as caught:
        ldctiqac2023(root, scenes="image")
    message = str(caught.value)
    assert "0001.tif: score 9 is off the scale 0 to 4" in message
    assert "0002.tif has the score 'good', wanted a number" in message
    assert "0003.tif has the score True" in message
    assert "2 images are listed, wanted 1000" in message
    (root / "train.json").write_text('{"0000.tif": 1, "0000.tif": 2}')
    with pytest.raises(ManifestError, match=r"0000\.tif stands there twice"):
        ldctiqac2023(root, scenes="image", partial=True)
    (root / "train.json").write_text('{"0000.tif": NaN}')
    with pytest.raises(ManifestError, match=r"0000\.tif: nan is no number"):
        ldctiqac2023(root, scenes="image", partial=True)
    (root / "train.json").write_text("[1, 2]")
    with pytest.raises(ManifestError, match="no object like"):
        ldctiqac2023(root, scenes="image")
    (root / "train.json").write_text("{")
    with pytest.raises(ManifestError, match="not JSON"):
        ldctiqac2023(root, scenes="image")


def test_its_float_tiff_is_taken_as_it_is(tmp_path: Path) -> None:
    """Windowed to 0..1 by its authors: no second window, no rounding, nothing stretched, even below 1."""
    values = np.random.default_rng(3).uniform(0.1, 0.8, (64, 64)).astype(np.float32)
    tifffile.imwrite(tmp_path / "0000.tif", values)
    image = read_image(tmp_path / "0000.tif")
    np.testing.assert_array_equal(image.pixels, values)
    assert image.source.warnings == ()


# MD72

FILTERS = ("srad", "nlm", "bilateral", "median", "wavelet")


def md72_folders(root: Path, scenes: int = 12) -> Path:
    for scene in range(1, scenes + 1):
        (root / f"liver{scene:02d}").mkdir(parents=True)
        for name in ("original", *FILTERS):
            (root / f"liver{scene:02d}" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def test_md72_by_folder_has_12_scenes_without_scores(tmp_path: Path) -> None:
    manifest = md72(md72_folders(tmp_path))
    assert (len(manifest.rows), len({row.scene for row in manifest.rows}), manifest.scale) == (72, 12, None)
    assert sum(row.reference for row in manifest.rows) == 12
    assert {row.method for row in manifest.rows if not row.reference} == set(FILTERS)
    assert {(row.domain, row.score) for row in manifest.rows} == {("md72", None)}


def test_md72_by_manifest_keeps_its_scores_and_scale(tmp_path: Path) -> None:
    rows = [
        Row(row.path, 3.0 + row.reference, row.scene, reference=row.reference, method=row.method)
        for row in md72(md72_folders(tmp_path)).rows
    ]
    write_manifest(Manifest(tuple(rows), Scale(1, 5, name="radiologists")), tmp_path / "md72.csv")
    for root in (tmp_path, tmp_path / "md72.csv"):
        manifest = md72(root)
        assert manifest.scale is not None
        assert (manifest.scale.high, manifest.scale.name) == (5, "radiologists")
        assert "185014" in str(manifest.scale.citation)
        assert {(row.domain, row.score) for row in manifest.rows} == {("md72", 3.0), ("md72", 4.0)}
    write_manifest(Manifest(tuple(rows[:6]), Scale(1, 5)), tmp_path / "md72.csv")
    part = md72(tmp_path, partial=True).scale
    assert part is not None
    assert part.name == "MD72; partial copy: 6 of 72 images"
    (tmp_path / "md72.json").unlink()
    with pytest.raises(ManifestError, match="scores without a scale"):
        md72(tmp_path, partial=True)


def test_md72_names_what_is_not_as_expected(tmp_path: Path) -> None:
    root = md72_folders(tmp_path, scenes=11)
    (root / "liver01" / "original.png").unlink()
    (root / "liver02" / "srad.png").rename(root / "liver02" / "lee.png")
    with pytest.raises(ManifestError, match="a part of it is read with partial=True") as caught:
        md72(root)
    message = str(caught.value)
    assert "11 scenes, wanted 12" in message
    assert "6 methods (bilateral, lee, median, nlm, srad, wavelet), wanted 5" in message
    assert "scene 'liver01': 0 originals, wanted 1" in message
    assert "scene 'liver02': wanted each of" in message
    assert len(md72(root, partial=True).rows) == 65
