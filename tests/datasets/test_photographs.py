"""Sets of photographs, on made copies of their published layout: names and score files as published, pixels empty."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from saqm.datasets import csiq, kadid10k, koniq10k, live, tid2013
from saqm.datasets._matlab import variables
from saqm.datasets.photographs import LIVE_FOLDERS, TID2013_DISTORTIONS
from saqm.errors import ManifestError
from saqm.manifest import Manifest, folds, normalised, read_manifest, write_manifest
from saqm.statistics import plcc, srocc


def touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def comes_back(manifest: Manifest, path: Path) -> bool:
    """Whether the manifest reads as it was written: every row is on its scale and at its place."""
    write_manifest(manifest, path)
    return read_manifest(path).sha256 == manifest.sha256


# TID2013


def tid_scores(shared: Path) -> list[dict[str, str]]:
    with (shared / "data" / "tid2013_scores" / "all3000.csv").open() as file:
        return list(csv.DictReader(file))


def tid_copy(root: Path, rows: list[dict[str, str]], distortions: tuple[str, ...] = ("09",)) -> Path:
    """The whole lists as published; on disk some distortions, names in lower case, as after some unpackers."""
    (root / "mos_with_names.txt").write_text("".join(f"{row['score']} {row['image']}\r\n" for row in rows))
    (root / "mos_std.txt").write_text("".join(f"{row['score_std']}\r\n" for row in rows))
    touch(root / "distorted_images", [row["image"].lower() for row in rows if row["image"][4:6] in distortions])
    touch(root / "reference_images", [f"I{scene:02d}.BMP" for scene in range(1, 25)] + ["i25.bmp"])
    return root


@pytest.fixture(scope="module")
def tid(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tid_copy(tmp_path_factory.mktemp("tid2013"), tid_scores(shared), ("01", "09", "24"))


def test_tid2013_has_25_scenes_of_24_distortions_at_5_levels(tid: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="2625 of 3000 files are missing"):
        tid2013(tid)
    manifest = tid2013(tid, distortions=(1, 9, 24))
    assert manifest.scale is not None
    assert (manifest.scale.low, manifest.scale.high, manifest.scale.higher_is_better) == (0, 9, True)
    assert "10.1016/j.image.2014.10.009" in str(manifest.scale.citation)
    assert manifest.scale.name == "TID2013 mean opinion score"
    assert set(Counter(row.scene for row in manifest.rows).values()) == {15}
    assert set(Counter(row.method for row in manifest.rows).values()) == {25}
    first = manifest.rows[0]
    assert (first.score, first.scene, first.method) == (5.51429, "tid2013-i01", "additive Gaussian noise 1")
    assert (first.aspects, first.score_sd, first.reference) == ({"mos_se": 0.13013}, None, False)
    assert comes_back(manifest, tmp_path / "tid.csv")


def test_the_denoised_images_of_the_paper_are_nearly_told_by_their_level(tid: Path, shared: Path) -> None:
    """Values of the scores' README: "minus the level" reaches SROCC 0.941 and PLCC 0.938."""
    manifest = tid2013(tid, distortions="denoised")
    assert len(manifest.rows) == 125
    assert len({row.scene for row in manifest.rows}) == 25
    assert {str(row.method)[:-2] for row in manifest.rows} == {"image denoising"}
    level = np.array([-int(str(row.method)[-1]) for row in manifest.rows], float)
    opinion = np.array([row.score for row in manifest.rows], float)
    assert round(srocc(level, opinion), 3) == 0.941
    assert round(plcc(level, opinion), 3) == 0.938
    with (shared / "data" / "tid2013_scores" / "denoised125.csv").open() as file:
        listed = {row["image"].lower(): float(row["mos"]) for row in csv.DictReader(file)}
    assert {row.path.name: row.score for row in manifest.rows} == listed
    for fold in folds(manifest, 5, seed=1):
        assert not {manifest.rows[i].scene for i in fold.train} & {manifest.rows[i].scene for i in fold.test}


def test_the_published_deviation_is_the_standard_error_of_whole_number_opinions(shared: Path) -> None:
    """Why mos_std is no score_sd: with n opinions 0 to 9, n² se² + n mean² is their sum of squares, a whole number."""

    def fits(mean: float, spread: float, n: int, power: int) -> bool:
        whole = round(mean * n)
        squares = spread**2 * n**power + whole**2 / n
        rounding = spread * n**power * 1e-5 + 1e-6
        return abs(mean * n - whole) <= 0.6e-5 * n and abs(squares - round(squares)) <= rounding

    pairs = [(float(row["score"]), float(row["score_std"])) for row in tid_scores(shared)]
    as_error, as_deviation = (
        sum(any(fits(mean, spread, n, power) for n in range(30, 46)) for mean, spread in pairs) for power in (2, 1)
    )
    assert as_error == 3000
    assert as_deviation < 10


def test_tid2013_takes_some_distortions_and_the_references(tid: Path) -> None:
    manifest = tid2013(tid, distortions=(9, 24), references=True)
    originals = [row for row in manifest.rows if row.reference]
    assert len(manifest.rows) == 2 * 125 + 25
    assert {row.score for row in originals} == {None}
    assert {row.scene for row in originals} == {row.scene for row in manifest.rows}
    assert originals[-1].path.name == "i25.bmp"  # the lists say I25.BMP
    with pytest.raises(ManifestError, match=r'wanted some of 1\.\.24, "denoised", or None'):
        tid2013(tid, distortions=[25])
    with pytest.raises(ManifestError, match="distortions 'blurred'"):
        tid2013(tid, distortions="blurred")  # type: ignore[arg-type]


@pytest.fixture
def small_tid(tmp_path: Path) -> Path:
    """The first two scenes, distortion 9 only: a partial copy."""
    rows = [
        {"image": f"i{scene:02d}_09_{level}.bmp", "score": str(6 - level), "score_std": "0.1"}
        for scene in (1, 2)
        for level in range(1, 6)
    ]
    return tid_copy(tmp_path, rows)


def test_a_partial_copy_is_read_when_asked_for_and_says_so(small_tid: Path) -> None:
    with pytest.raises(ManifestError, match=r"10 lines, wanted 3000") as caught:
        tid2013(small_tid, distortions="denoised")
    assert "10 images are listed, wanted 125; a partial copy is read with partial=True" in str(caught.value)
    (small_tid / "distorted_images" / "i02_09_5.bmp").unlink()
    manifest = tid2013(small_tid, distortions="denoised", partial=True)
    assert len(manifest.rows) == 9
    assert manifest.scale is not None
    assert str(manifest.scale.name).endswith("; partial copy: 9 of 125 images")


def test_a_missing_file_is_named(shared: Path, tmp_path: Path) -> None:
    root = tid_copy(tmp_path, tid_scores(shared))
    for level in range(1, 6):
        (root / "distorted_images" / f"i07_09_{level}.bmp").unlink()
    (root / "reference_images" / "I07.BMP").unlink()
    with pytest.raises(ManifestError, match="6 of 150 files are missing; get them from https") as caught:
        tid2013(root, distortions="denoised", references=True)
    assert str(Path("distorted_images") / "i07_09_3.bmp") in str(caught.value)
    assert str(Path("reference_images") / "I07.BMP") in str(caught.value)
    (root / "distorted_images" / "i01_08_1.bmp").touch()
    assert len(tid2013(root, distortions=[8], partial=True).rows) == 1  # what is not asked for may be absent


def test_long_lists_of_missing_files_are_cut(shared: Path, tmp_path: Path) -> None:
    root = tid_copy(tmp_path, tid_scores(shared))
    for path in (root / "distorted_images").iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match=r"125 of 125 files are missing[\s\S]*\n  and 105 more$"):
        tid2013(root, distortions="denoised")
    with pytest.raises(ManifestError, match="none of its images is there"):
        tid2013(root, distortions="denoised", partial=True)


def test_bad_lines_are_refused_even_in_a_partial_copy(small_tid: Path) -> None:
    lines = ["5.0 i01_09_1.bmp", "5.0 I01_09_1.BMP", "nan i01_09_2.bmp", "12 i01_09_3.bmp", "4.0 i26_09_4.bmp", "4.0"]
    (small_tid / "mos_with_names.txt").write_text("\n".join(lines))
    with pytest.raises(ManifestError) as caught:
        tid2013(small_tid, partial=True)
    message = str(caught.value)
    assert "mos_std.txt has 10 entries, mos_with_names.txt 6" in message
    assert "line 2: I01_09_1.BMP stands there twice" in message
    assert "line 3: nan is no number" in message
    assert "i01_09_3.bmp: score 12 is off the scale 0 to 9" in message
    assert "line 5: 'i26_09_4.bmp' is no name like i01_09_3.bmp" in message
    assert "line 6: '4.0' is no score with a name" in message


def test_two_spellings_of_one_name_are_refused(small_tid: Path) -> None:
    (small_tid / "distorted_images" / "I01_09_1.bmp").touch()
    if len(list((small_tid / "distorted_images").iterdir())) == 10:
        pytest.skip("this file system knows no case")
    with pytest.raises(ManifestError, match="one name in two spellings"):
        tid2013(small_tid, partial=True)


LOADERS: dict[Callable[..., Manifest], str] = {
    tid2013: r"no reference_images and no distorted_images and no mos_with_names\.txt.*ponomarenko\.info",
    kadid10k: r"no images and no dmos\.csv.*kadid-10k-database",
    koniq10k: r"no 1024x768 and no koniq10k_scores_and_distributions\.csv.*koniq-10k-database",
    live: r"no dmos_realigned\.mat and no refnames_all\.mat and no refimgs.*live\.ece\.utexas\.edu",
    csiq: r"no src_imgs and no dst_imgs and no csiq\.DMOS\.xlsx.*csiq\.html",
}


@pytest.mark.parametrize("loader", LOADERS)
def test_another_folder_is_refused_with_what_was_looked_for_and_where_to_get_it(
    loader: Callable[..., Manifest], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=LOADERS[loader]):
        loader(tmp_path)
    with pytest.raises(ManifestError, match="no such folder; wanted a folder with"):
        loader(tmp_path / "none")


# KADID-10k


def kadid_copy(root: Path, scenes: int) -> Path:
    """The list of so many scenes, and the files of the first two."""
    names = [f"I{s:02d}_{d:02d}_{v:02d}.png" for s in range(1, scenes + 1) for d in range(1, 26) for v in range(1, 6)]
    touch(root / "images", [name for name in [*names, "I01.png", "I02.png"] if name < "I03"])
    lines = [f"{name},{name[:3]}.png,{5 - int(name[8]) / 2:g},0.496" for name in names]
    (root / "dmos.csv").write_text("\n".join(["dist_img,ref_img,dmos,var", *lines]) + "\n")
    return root


def test_kadid10k_counts_10125_images_and_higher_is_better(tmp_path: Path) -> None:
    root = kadid_copy(tmp_path, 81)
    with pytest.raises(ManifestError, match="9954 of 10206 files are missing"):
        kadid10k(root, references=True)
    manifest = kadid10k(root, references=True, partial=True)
    scored = [row for row in manifest.rows if not row.reference]
    assert (len(scored), len(manifest.rows)) == (250, 252)
    assert (scored[0].score, scored[0].score_sd, scored[0].method) == (4.5, 0.496, "Gaussian blur 1")
    assert normalised(4.5, manifest.scale) > normalised(2.5, manifest.scale)  # although the column is called dmos
    assert {row.scene for row in manifest.rows if row.reference} == {row.scene for row in scored}


def test_kadid10k_refuses_what_contradicts_itself(tmp_path: Path) -> None:
    root = kadid_copy(tmp_path, 1)
    with (root / "dmos.csv").open("a") as file:
        file.write(
            "I01_26_01.png,I01.png,3,0.5\nI01_01_01.png,I02.png,3,0.5\nI01_02_01.png,I01.png,x,0.5\nI01_03_01.png\n"
        )
    with pytest.raises(ManifestError) as caught:
        kadid10k(root, partial=True)
    message = str(caught.value)
    assert "line 127: 'I01_26_01.png' is no name like I01_09_03.png" in message
    assert "line 128: I01_01_01.png has the reference 'I02.png', wanted I01.png" in message
    assert "line 129: could not convert string to float: 'x'" in message
    assert "line 130: I01_03_01.png has the reference '', wanted I01.png" in message
    (root / "dmos.csv").write_text("image,mos\n")
    with pytest.raises(ManifestError, match="no column dist_img and no ref_img and no dmos and no var"):
        kadid10k(root)


# KonIQ-10k

KONIQ_HEADER = '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"'
KONIQ_LINES = [  # opinions as published for these two
    '"10004473376.jpg",0,0,25,73,7,105,3.82857142857143,0.527277894494,77.3836206897',
    '"10007357496.jpg",0,3,45,47,1,96,3.47916666666667,0.580003024795,68.7285714286',
]


def koniq_copy(root: Path, lines: list[str]) -> Path:
    """The list of these lines, and the files of the first ten."""
    touch(root / "1024x768", [line.split(",")[0].strip('"') for line in lines[:10]])
    (root / "koniq10k_scores_and_distributions.csv").write_text("\n".join([KONIQ_HEADER, *lines]) + "\n")
    return root


def test_koniq10k_is_on_1_to_5_with_one_scene_a_photograph(tmp_path: Path) -> None:
    koniq_copy(tmp_path, KONIQ_LINES)
    first, second = koniq10k(tmp_path, partial=True).rows
    assert (first.score, first.score_sd, first.raters) == (3.82857142857143, 0.527277894494, 105)
    assert (first.scene, second.scene, first.split) == ("koniq10k-10004473376", "koniq10k-10007357496", None)
    (tmp_path / "koniq10k_distributions_sets.csv").write_text(
        "image_name,set\n10004473376.jpg,training\n10007357496.jpg,test\n"
    )
    assert [row.split for row in koniq10k(tmp_path, partial=True).rows] == ["training", "test"]
    with pytest.raises(ManifestError, match="2 images are listed, wanted 10073"):
        koniq10k(tmp_path)
    with pytest.raises(ManifestError, match="no 512x384"):
        koniq10k(tmp_path, size="512x384")


def test_koniq10k_counts_10073_photographs(tmp_path: Path) -> None:
    koniq_copy(tmp_path, [f'"{number}.jpg",0,0,1,1,0,2,3.5,0.7071,60' for number in range(10073)])
    with pytest.raises(ManifestError, match="10063 of 10073 files are missing"):
        koniq10k(tmp_path)
    manifest = koniq10k(tmp_path, partial=True)
    assert len({row.scene for row in manifest.rows}) == 10
    assert manifest.scale is not None
    assert str(manifest.scale.name).endswith("; partial copy: 10 of 10073 images")


def test_koniq10k_refuses_a_mean_that_its_opinions_do_not_give(tmp_path: Path) -> None:
    lines = [
        KONIQ_LINES[0],
        KONIQ_LINES[1].replace("3.47916666666667", "68.7"),
        '"3.jpg",0,0,0,0,0,0,3,0,1',
        KONIQ_LINES[0],
    ]
    koniq_copy(tmp_path, lines)
    (tmp_path / "koniq10k_distributions_sets.csv").write_text("image_name,set\n10004473376.jpg,training\n")
    with pytest.raises(ManifestError) as caught:
        koniq10k(tmp_path, partial=True)
    assert "line 3: 10007357496.jpg: MOS is 68.7, but c1 to c5 give 3.4792" in str(caught.value)
    assert "line 4: 3.jpg: MOS is 3, but c1 to c5 give nan" in str(caught.value)
    assert "10004473376.jpg stands there twice" in str(caught.value)


# LIVE


def live_scores(root: Path, *, score: float = 15.5, orgs: int = 203) -> Path:
    total = sum(LIVE_FOLDERS.values())
    copies = np.zeros(total)
    copies[2 : 2 + orgs] = 1
    scores = np.where(copies == 1, 0.0, np.linspace(-2.64, 111.77, total))
    scores[1] = score
    savemat(root / "dmos_realigned.mat", {"dmos_new": scores, "dmos_std": np.full(total, 5.0), "orgs": copies})
    cells = np.empty(total, object)
    cells[:] = [f"photo{index % 29}.bmp" for index in range(total)]
    savemat(root / "refnames_all.mat", {"refnames_all": cells})
    return root


@pytest.fixture(scope="module")
def live_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("live")
    for folder, count in LIVE_FOLDERS.items():
        touch(root / folder, [f"img{number}.bmp" for number in range(1, count + 1)])
    touch(root / "refimgs", [f"photo{index}.bmp" for index in range(29)])
    return root


def test_live_leaves_out_the_copies_of_the_references(live_files: Path, tmp_path: Path) -> None:
    manifest = live(live_scores(live_files), references=True)
    scored = [row for row in manifest.rows if not row.reference]
    assert (len(scored), len({row.scene for row in scored}), len(manifest.rows)) == (779, 29, 779 + 29)
    assert Counter(row.method for row in scored)["jp2k"] == 227 - 203
    second, after, last = scored[1], scored[2], scored[-1]
    assert (second.score, second.scene, second.aspects) == (15.5, "live-photo1", {"dmos_std": 5.0})
    assert after.path == live_files / "jp2k" / "img206.bmp"
    assert last.path == live_files / "fastfading" / "img174.bmp"
    assert {row.scene for row in manifest.rows if row.reference} == {row.scene for row in scored}
    assert comes_back(manifest, tmp_path / "live.csv")
    assert normalised(0, manifest.scale) > normalised(100, manifest.scale)


def test_live_counts_and_checks_its_scores(live_files: Path) -> None:
    with pytest.raises(ManifestError, match="780 images are listed, wanted 779"):
        live(live_scores(live_files, orgs=202), partial=True)
    with pytest.raises(ManifestError, match=r"jp2k.img2\.bmp: nan is no number"):
        live(live_scores(live_files, score=float("nan")))
    with pytest.raises(ManifestError, match=r"img2\.bmp: score 140 is off the scale -3 to 112"):
        live(live_scores(live_files, score=140))
    savemat(live_files / "dmos_realigned.mat", {"dmos": np.zeros(982)})
    with pytest.raises(ManifestError, match="no variable dmos_new and no dmos_std and no orgs of numbers or words"):
        live(live_files)
    savemat(live_files / "dmos_realigned.mat", {name: np.zeros(981) for name in ("dmos_new", "dmos_std", "orgs")})
    with pytest.raises(ManifestError, match=r"its \.mat files have 981 scores and 982 names, not 982"):
        live(live_files)
    (live_files / "dmos_realigned.mat").write_bytes(b"no matrix " * 50)
    with pytest.raises(ManifestError, match=r"no MATLAB file of version 5 to 7\.2"):
        live(live_files)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_matlab_file_reads_as_scipy_wrote_it(tmp_path: Path, *, compressed: bool) -> None:
    cells = np.empty((1, 3), object)
    cells[0] = ["a.bmp", "a longer name.bmp", "ünïcode"]
    numbers = np.array([[1.5, -2.0], [np.nan, 1e300]])
    content = {"words": cells, "numbers": numbers, "flags": np.array([[0, 1]], np.uint8), "text": "no cell"}
    path = tmp_path / "x.mat"
    savemat(path, content, do_compression=compressed)
    words, found, flags = variables(path, "words", "numbers", "flags")
    assert words == list(cells[0])
    np.testing.assert_array_equal(np.array(found, float), numbers.ravel("F"))
    assert flags == [0, 1]
    with pytest.raises(ManifestError, match="no variable text of numbers or words"):
        variables(path, "text")


def test_a_damaged_matlab_file_is_refused_or_read_but_never_fatal(tmp_path: Path) -> None:
    cells = np.empty(5, object)
    cells[:] = ["a.bmp"] * 5
    path = tmp_path / "x.mat"
    savemat(path, {"refnames_all": cells, "dmos_new": np.arange(5.0)})
    sound, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(sound[: rng.integers(100, len(sound))] if rng.random() < 0.3 else sound)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            variables(path, "refnames_all", "dmos_new")
        except ManifestError:
            refused += 1
    assert refused > 100


# CSIQ

SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
CSIQ_KINDS = {
    "noise": "AWGN",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
    "fnoise": "fnoise",
    "blur": "BLUR",
    "contrast": "contrast",
}


def workbook(path: Path, rows: list[list[object]], sheet: str = "all_by_image") -> None:
    """A minimal .xlsx: rows from D4 on, words as shared strings, as spreadsheet programs write them."""
    words: list[str] = []

    def cell(column: int, row: int, value: object) -> str:
        place = f"{chr(ord('D') + column)}{row}"
        if not isinstance(value, str):
            return "" if value is None else f'<c r="{place}"><v>{value}</v></c>'
        words.append(value)
        return f'<c r="{place}" t="s"><v>{len(words) - 1}</v></c>'

    body = "".join(
        f'<row r="{n}">' + "".join(cell(column, n, value) for column, value in enumerate(row)) + "</row>"
        for n, row in enumerate(rows, 4)
    )
    above = '<row r="1"><c r="A1" t="inlineStr"><is><t>CSIQ</t></is></c></row><row r="2"/><row r="3"/>'
    related = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet5.xml", f'<worksheet xmlns="{SHEET}"><sheetData>{above}{body}</sheetData></worksheet>'
        )
        strings = "".join(f"<si><r><t>{word[:1]}</t></r><r><t>{word[1:]}</t></r></si>" for word in words)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{SHEET}">{strings}</sst>')
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{SHEET}" xmlns:r="{related}"><sheets>'
            f'<sheet name="{sheet}" sheetId="5" r:id="rId7"/></sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            '<Relationship Id="rId7" Target="worksheets/sheet5.xml"/></Relationships>',
        )


HEADING: list[object] = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]


def csiq_copy(root: Path) -> Path:
    """30 scenes × (5 + 5 + 5 + 5 + 5 + 4 levels), without the last four: 866."""
    images: list[object] = [1600, *(f"scene_{number}" for number in range(29))]
    rows: list[list[object]] = [
        [image, index, kind, level, 0.1, round(level / 6, 3)]
        for image in images
        for index, kind in enumerate(CSIQ_KINDS, 1)
        for level in range(1, 5 if kind == "contrast" else 6)
    ][:866]
    for row in rows:
        kind = CSIQ_KINDS[str(row[2])]
        touch(root / "dst_imgs" / kind.lower(), [f"{row[0]}.{kind}.{row[3]}.png"])
    touch(root / "src_imgs", [f"{image}.png" for image in images])
    workbook(root / "csiq.DMOS.xlsx", [HEADING, *rows, []])
    return root


def test_csiq_reads_the_workbook_itself(tmp_path: Path) -> None:
    manifest = csiq(csiq_copy(tmp_path), references=True)
    scored = [row for row in manifest.rows if not row.reference]
    assert (len(scored), len({row.scene for row in scored}), len(manifest.rows)) == (866, 30, 896)
    first = scored[0]
    assert first.path == tmp_path / "dst_imgs" / "awgn" / "1600.AWGN.1.png"
    assert (first.scene, first.method, first.score, first.aspects) == ("csiq-1600", "awgn 1", 0.167, {"dmos_std": 0.1})
    assert normalised(0, manifest.scale) == 1  # lower is better
    assert comes_back(manifest, tmp_path / "csiq.csv")


def test_csiq_finds_images_without_folders(tmp_path: Path) -> None:
    touch(tmp_path / "dst_imgs", ["1600.awgn.1.png"])
    touch(tmp_path / "src_imgs", ["1600.png"])
    workbook(tmp_path / "csiq.DMOS.xlsx", [HEADING, [1600, 1, "noise", 1, 0.05, 0.061989]])
    (row,) = csiq(tmp_path, partial=True).rows
    assert (row.score, row.path.name) == (0.061989, "1600.awgn.1.png")


def test_csiq_refuses_another_workbook(tmp_path: Path) -> None:
    touch(tmp_path / "dst_imgs", ["a.png"])
    touch(tmp_path / "src_imgs", [])
    book = tmp_path / "csiq.DMOS.xlsx"
    rows: list[list[object]] = [["a", 1, "snow", 1, 0.1, 0.2], ["a", 1, "noise", 1, 0.1], ["a", 1, "noise", 1, 0.1, 2]]
    workbook(book, [HEADING, *rows])
    with pytest.raises(ManifestError) as caught:
        csiq(tmp_path, partial=True)
    assert "row 5 of all_by_image: unknown dst_type 'snow'" in str(caught.value)
    assert "row 6 of all_by_image: no dmos" in str(caught.value)
    assert "a.AWGN.1.png: score 2 is off the scale 0 to 1" in str(caught.value)
    workbook(book, [HEADING[:3]])
    with pytest.raises(ManifestError, match="no row of all_by_image holds image, dst_type, dst_lev, dmos_std, dmos"):
        csiq(tmp_path)
    workbook(book, [HEADING], sheet="Sheet1")
    with pytest.raises(ManifestError, match="not a workbook with a sheet 'all_by_image'"):
        csiq(tmp_path)
    book.write_bytes(b"no workbook")
    with pytest.raises(ManifestError, match="File is not a zip file"):
        csiq(tmp_path)


def test_scenes_of_different_sets_have_different_names(
    small_tid: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pooled manifests must not take TID2013's photograph I01 for KADID-10k's."""
    other = kadid_copy(tmp_path_factory.mktemp("kadid"), 2)
    assert not {r.scene for r in tid2013(small_tid, partial=True).rows} & {
        r.scene for r in kadid10k(other, partial=True).rows
    }
    assert len(set(TID2013_DISTORTIONS)) == 24
