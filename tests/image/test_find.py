"""What is found under folders, globs, DICOMDIR and archives, and what comes though it is not there."""

from __future__ import annotations

import shutil
import zipfile
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from saqm.errors import ImageError
from saqm.image import find_images, read_image


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as it lies on a disk: images, UID-named files, notes, hidden files, an archive."""
    root = tmp_path / "study"
    (root / "b").mkdir(parents=True)
    (root / ".cache").mkdir()
    for name in ("b/ct.dcm", "a.dcm", "1.2.840.5.7", "noSuffix", ".hidden.dcm", ".cache/ct.dcm", "Z.IMA"):
        shutil.copy(bundled("CT_small.dcm"), root / name)
    shutil.copy(bundled("CT_small.dcm"), root / "looks.txt")
    (root / "notes.md").write_text("no image")
    (root / "README").write_text("no image either")
    (root / "slice.nii.gz").write_bytes(b"broken, but an image by its name")
    shutil.copy(bundled("dicomdirtests/DICOMDIR"), root / "DICOMDIR")
    return root


def test_a_folder_gives_its_images_in_a_fixed_order(folder: Path) -> None:
    expected = ["1.2.840.5.7", "Z.IMA", "a.dcm", "b/ct.dcm", "noSuffix", "slice.nii.gz"]
    assert [str(Path(name).relative_to(folder)) for name in find_images([folder])] == expected


def test_a_path_given_explicitly_always_comes(folder: Path) -> None:
    for name in ("looks.txt", "notes.md", "missing.dcm", ".hidden.dcm", "README"):
        assert list(find_images([folder / name])) == [str(folder / name)]


def test_globs_are_expanded_and_one_that_matches_nothing_comes_as_it_is(folder: Path) -> None:
    assert list(find_images([str(folder / "*.dcm")])) == [str(folder / "a.dcm")]
    assert list(find_images([str(folder / "**/*.dcm")])) == [str(folder / "a.dcm"), str(folder / "b/ct.dcm")]
    nothing = str(folder / "*.png")
    assert list(find_images([nothing])) == [nothing]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].dcm"
    odd.write_bytes(b"x")
    assert list(find_images([odd])) == [str(odd)]


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit"])
def test_a_dicomdir_stands_for_the_images_it_names(name: str) -> None:
    found = list(find_images([bundled(f"dicomdirtests/{name}")]))
    assert len(found) == 31
    assert sum(Path(path).is_file() for path in found) == 31
    assert read_image(found[0], mask="none").modality == "CR"


def test_images_that_a_dicomdir_names_and_that_are_not_there_still_come(tmp_path: Path) -> None:
    shutil.copy(bundled("dicomdirtests/DICOMDIR"), tmp_path / "DICOMDIR")
    found = list(find_images([tmp_path / "DICOMDIR"]))
    assert len(found) == 31
    with pytest.raises(ImageError, match="no such file"):
        read_image(found[0])


def test_a_damaged_dicomdir_comes_itself(tmp_path: Path) -> None:
    whole = bundled("dicomdirtests/DICOMDIR").read_bytes()
    (tmp_path / "DICOMDIR").write_bytes(whole[:380])
    assert list(find_images([tmp_path / "DICOMDIR"])) == [str(tmp_path / "DICOMDIR")]


def test_members_of_an_archive_are_found_and_read_like_files(tmp_path: Path) -> None:
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.write(bundled("MR_small.dcm"), "s/2.dcm")
        made.write(bundled("CT_small.dcm"), "s/1")
        made.writestr("s/readme.txt", "no image")
        made.writestr("__MACOSX/s/._2.dcm", "no image")
        made.writestr("s/.hidden.dcm", "no image")
    names = list(find_images([tmp_path]))
    assert names == [f"{archive}!/s/1", f"{archive}!/s/2.dcm"]
    image, plain = read_image(names[1]), read_image(bundled("MR_small.dcm"))
    assert np.array_equal(image.pixels, plain.pixels)
    assert image.source.sha256 == plain.source.sha256
    assert image.source.path == names[1]
    assert list(find_images([names[0]])) == [names[0]]


def encrypted(path: Path) -> Path:
    """An archive whose member says that it is encrypted (zipfile cannot write one)."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.dcm", bytes(300))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def test_an_encrypted_archive_comes_itself_and_says_why(tmp_path: Path) -> None:
    archive = encrypted(tmp_path / "secret.zip")
    assert list(find_images([archive])) == [str(archive)]
    with pytest.raises(ImageError, match=r"secret\.zip: encrypted archive"):
        read_image(archive)


def test_a_damaged_archive_and_a_missing_member_say_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and no more")
    assert list(find_images([broken])) == [str(broken)]
    with pytest.raises(ImageError, match="damaged archive"):
        read_image(broken)
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as made:
        made.write(bundled("CT_small.dcm"), "ct.dcm")
    with pytest.raises(ImageError, match=r"no member mr\.dcm"):
        read_image(f"{tmp_path}/good.zip!/mr.dcm")
    with pytest.raises(ImageError, match="find_images lists its members"):
        read_image(tmp_path / "good.zip")
    with pytest.raises(ImageError, match=r"gone\.zip: no such file"):
        read_image(f"{tmp_path}/gone.zip!/mr.dcm")


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros.dcm", bytes(1_000_000))
    with pytest.raises(ImageError, match=r"zeros\.dcm: unpacks to 1,000,000 bytes, limit 80,000: .*max_pixels="):
        read_image(f"{tmp_path}/bomb.zip!/zeros.dcm", max_pixels=10_000)


def test_links_in_circles_end(tmp_path: Path) -> None:
    shutil.copy(bundled("CT_small.dcm"), tmp_path / "a.dcm")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list(find_images([tmp_path])) == [str(tmp_path / "a.dcm")]


def test_finding_is_lazy(folder: Path) -> None:
    endless = chain([folder / "a.dcm"], (f"{folder}/missing{number}" for number in count()))
    assert list(islice(find_images(endless), 2)) == [str(folder / "a.dcm"), f"{folder}/missing0"]
