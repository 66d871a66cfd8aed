"""Manifests: everything is checked at once, nothing is divided within a scene."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqm.errors import ManifestError, OutputError
from saqm.manifest import (
    Manifest,
    Row,
    Scale,
    check_disjoint,
    folds,
    normalised,
    read_manifest,
    split,
    write_manifest,
)

SCALE = {"scale": [1, 5], "higher_is_better": True}


def write(folder: Path, text: str, sidecar: object = SCALE, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    if sidecar is not None:
        path.with_suffix(".json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))
    for image in ("a.png", "b.png", "c.png"):
        (folder / image).touch()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return str(caught.value)


def study(scenes: int = 6, methods: int = 6) -> tuple[Row, ...]:
    """Two organs; each scene has a fixed normal-dose reference and `methods` judged versions."""
    rows = []
    for organ in ("abdomen", "brain"):
        for scene in range(scenes):
            common = {"scene": f"{organ}-{scene}", "domain": organ}
            rows.append(Row(Path(f"/x/{organ}{scene}N.png"), 5, method="NDCT", raters=0, reference=True, **common))
            rows += [
                Row(Path(f"/x/{organ}{scene}{m}.png"), 1 + m % 5, method=f"m{m}", raters=3, **common)
                for m in range(methods)
            ]
    return tuple(rows)


# Reading


def test_every_column_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffpath,score,scene,domain,score_sd,raters,reference,method,split,weight,score_r1,score_r2,aspect_noise\n"
        "a.png,3.5,s1,ct,0.5,2,no,RED,train,2,3,4,0.25\n"
        "b.png,,s2,,,,TRUE,,,,,4,\n",
    )
    first, second = read_manifest(path).rows
    assert first == Row(
        tmp_path / "a.png", 3.5, "s1", "ct", 0.5, 2, False, "RED", "train", 2, (3, 4), {"noise": 0.25}
    )  # fmt: skip
    assert second == Row(tmp_path / "b.png", None, "s2", reference=True, rater_scores=(None, 4))


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    a = write(tmp_path, "path,score,scene,raters\na.png,3,s1,\nb.png,,s2,0\n")
    lines = '{"path": "a.png", "score": 3, "scene": "s1"}\n\n{"path": "b.png", "scene": "s2", "raters": 0}\n'
    b = write(tmp_path, lines, name="m.jsonl")
    assert read_manifest(a).rows == read_manifest(b).rows
    assert read_manifest(a).sha256 == read_manifest(b).sha256


def test_every_bad_row_is_reported_with_its_line(tmp_path: Path) -> None:
    message = refusal(
        write(
            tmp_path,
            "path,score,scene,reference,weight,split\n"
            "a.png,3,s1,,,train\n"
            "gone.png,3,s2,,,\n"
            "./a.png,3,s3,,,\n"
            "b.png,good,s3,,,\n"
            "c.png,nan,s1,,,test\n"
            "d.png,5.5,,maybe,-1,\n"
            "e.png\n",
        )
    )
    assert "10 problems" in message
    for problem in (
        r"line 3: missing file",
        r"line 4: duplicate path './a.png', also on line 2",
        r"line 5: score 'good' is not a number",
        r"line 6: score is nan; leave it empty when unknown",
        r"line 7: score 5.5 is off the scale 1 to 5",
        r"line 7: reference 'maybe' is neither true nor false",
        r"line 7: weight -1 is negative",
        r"line 7: scene is empty",
        r"line 8: 1 cells, but the header has 6",
        r"scene 's1' is on both sides of the split: train (line 2), test (line 6)",
    ):
        assert problem in message


def test_a_scene_on_both_sides_of_the_split_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "path,scene,split\na.png,s1,train\nb.png,s1,test\nc.png,s2,test\n"))
    assert "scene 's1' is on both sides of the split: train (line 2), test (line 3)" in message
    assert "s2" not in message


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("path,scene,scroe", "line 1: unknown column 'scroe'; did you mean 'score'?"),
        ("path,scene,zzz", "line 1: unknown column 'zzz'; known are path, score"),
        ("path,score,domain", "line 1: missing required column 'scene'"),
        ("path,scene,scene", "line 1: column 'scene' stands there twice"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str, problem: str) -> None:
    assert problem in refusal(write(tmp_path, f"{header}\na.png,s1,\n"))


@pytest.mark.parametrize(
    ("sidecar", "problem"),
    [
        ({**SCALE, "licens": "MIT"}, "unknown key 'licens'; did you mean 'licence'?"),
        ({"scale": [5, 1], "higher_is_better": True}, r'"scale" must be [low, high] with low < high, not [5, 1]'),
        ({"scale": [1, 5]}, '"higher_is_better" must be true or false, not null'),
        ({**SCALE, "name": 3}, '"name" must be text'),
        ("{", "m.json: not JSON"),
        ("[]", "m.json: wanted an object"),
    ],
)
def test_a_wrong_sidecar_is_refused(tmp_path: Path, sidecar: object, problem: str) -> None:
    assert problem in refusal(write(tmp_path, "path,scene\na.png,s1\n", sidecar))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("m.csv", "", "missing required column 'path'"),
        ("m.csv", "path,scene\n", "empty: no rows"),
        ("m.jsonl", "", "empty: no rows"),
        ("m.csv", 'path,scene\n"a.png,s1\n', "not CSV"),
        ("m.jsonl", "{'path'}\n", "line 1: not JSON"),
        ("m.jsonl", "[1]\n", "line 1: wanted an object, not list"),
        ("m.jsonl", '{"path": "a.png", "scene": ["s"]}\n', "line 1: scene must be one value"),
        ("m.jsonl", '{"path": "a.png", "scene": "s", "score": true}\n', "line 1: score 'true' is not a number"),
        ("m.jsonl", '{"path": "a.png"}\n', "line 1: missing required column 'scene'"),
        ("m.txt", "path,scene\n", "a manifest is a .csv or a .jsonl file, not '.txt'"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert problem in refusal(write(tmp_path, text, name=name))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,scene\nä.png,s".encode("latin-1"))
    assert "not UTF-8 at byte 11" in refusal(tmp_path / "m.csv")
    assert "cannot be read: No such file" in refusal(tmp_path / "none.csv")


def test_files_need_not_be_there_when_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "path,scene\nelsewhere.png,s1\n")
    assert len(read_manifest(path, check_files=False).rows) == 1


def test_a_row_may_name_a_member_of_a_zip(tmp_path: Path) -> None:
    (tmp_path / "study.zip").touch()
    path = write(tmp_path, "path,scene\nstudy.zip!/1.dcm,s1\nother.zip!/1.dcm,s2\n")
    message = refusal(path)
    assert "1 problem\n" in message
    assert "other.zip" in message


# Writing


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a, b.png").touch()
    rows = (
        Row(
            tmp_path / "images" / "a, b.png", 1 / 3, "s 1", "ü", 0.1, 2, True, "m", "train", 0.5,
            (None, 0.5), {"noise": 0.1},
        ),
    )  # fmt: skip
    manifest = Manifest(rows, Scale(0, 1, False, "n", "MIT", "cite"))
    for name in ("m.csv", "m.jsonl"):
        write_manifest(manifest, tmp_path / name)
        again = read_manifest(tmp_path / name)
        assert (again.rows, again.scale, again.sha256) == (manifest.rows, manifest.scale, manifest.sha256)
    assert '"images/a, b.png"' in (tmp_path / "m.csv").read_text(encoding="utf-8")  # relative to the manifest


def test_an_old_manifest_survives_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(OutputError, match=r"m\.csv"):
        write_manifest(Manifest(study()), tmp_path / "m.csv")
    with pytest.raises(OutputError, match=r"cannot be written"):
        write_manifest(Manifest(study()), tmp_path / "none" / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_a_manifest_without_scale_is_not_written_beside_an_old_scale(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(OutputError, match="an old scale would be read with this manifest"):
        write_manifest(Manifest(study()), tmp_path / "m.csv")


def test_the_hash_knows_content_not_place() -> None:
    here = Manifest(study(), Scale(1, 5))
    there = Manifest(tuple(replace(row, path=Path("/y/z") / row.path.name) for row in study()), Scale(1.0, 5.0))
    changed = Manifest((replace(here.rows[0], score=4), *here.rows[1:]), Scale(1, 5))
    assert here.sha256 == there.sha256
    assert len({here.sha256, changed.sha256, Manifest(here.rows, Scale(1, 6)).sha256}) == 3


def test_normalised_puts_the_best_at_one() -> None:
    assert normalised(4, Scale(1, 5)) == 0.75
    assert normalised(4, Scale(1, 5, higher_is_better=False)) == 0.25
    with pytest.raises(ManifestError, match=r"scores without a scale: write .* to NAME\.json"):
        normalised(4, None)


# Dividing


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_folds_share_no_scene_and_test_every_row_once(k: int, seed: int) -> None:
    rows = study()
    made = folds(rows, k, seed)
    assert sorted(i for fold in made for i in fold.test) == list(range(len(rows)))
    for fold in made:
        check_disjoint([rows[i] for i in fold.train], [rows[i] for i in fold.test])
        assert sorted(fold.train + fold.test) == list(range(len(rows)))


def test_folds_spread_each_domain_evenly() -> None:
    rows = study(scenes=5)
    for fold in folds(rows, 3, 0):
        counts = Counter(domain for domain, _ in {(rows[i].domain, rows[i].scene) for i in fold.test})
        assert all(1 <= counts[domain] <= 2 for domain in ("abdomen", "brain"))


def test_folds_depend_on_the_seed_not_on_the_order_of_rows() -> None:
    rows = study()
    turned = rows[::-1]

    def tests(made: tuple[Row, ...], seed: int) -> list[set[Path]]:
        return [{made[i].path for i in fold.test} for fold in folds(made, 3, seed)]

    assert tests(rows, 1) == tests(turned, 1) == tests(rows, 1)
    assert tests(rows, 1) != tests(rows, 2)


def test_cells_share_neither_scene_nor_method() -> None:
    rows = study()
    cells = folds(rows, 3, 4, by=("scene", "method"))
    assert len(cells) == 9
    tested = [i for cell in cells for i in cell.test]
    assert sorted(tested) == [i for i, row in enumerate(rows) if row.judged]  # anchors are never tested
    for cell in cells:
        train, test = [rows[i] for i in cell.train], [rows[i] for i in cell.test]
        check_disjoint(train, test)
        assert not {row.method for row in train} & {row.method for row in test}
        anchored = {row.scene for row in train if row.raters == 0}  # those of the training scenes stay
        assert anchored == {row.scene for row in rows} - {row.scene for row in test}


def test_a_row_without_method_stays_in_training() -> None:
    rows = (*study(), Row(Path("/x/photo.png"), 4, "photo", "photo"))
    for cell in folds(rows, 3, 0, by=("scene", "method")):
        assert len(rows) - 1 not in cell.test


@pytest.mark.parametrize("k", [0, 1, 13])
def test_an_impossible_number_of_folds_is_refused(k: int) -> None:
    with pytest.raises(ManifestError, match=f"12 scenes cannot be divided into {k} folds; wanted 2 to 12"):
        folds(study(), k, 0)


def test_folds_need_methods_to_keep_apart() -> None:
    with pytest.raises(ManifestError, match="2 judged methods cannot be divided into 3 folds"):
        folds(study(methods=2), 3, 0, by=("scene", "method"))
    with pytest.raises(ManifestError, match="wanted"):
        folds(study(), 3, 0, by=("method",))


def test_split_holds_out_scenes_of_every_domain() -> None:
    rows = study()
    fold = split(Manifest(rows), 0.33, 7)
    check_disjoint([rows[i] for i in fold.train], [rows[i] for i in fold.test])
    assert Counter(rows[i].domain for i in fold.test) == {"abdomen": 14, "brain": 14}
    assert fold == split(rows, 0.33, 7) != split(rows, 0.33, 8)


@pytest.mark.parametrize(("share", "message"), [(0, "not between 0 and 1"), (1, "not between"), (0.01, "too few")])
def test_split_refuses_an_impossible_share(share: float, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        split(study(), share, 0)


def test_sharing_a_scene_or_a_file_is_refused() -> None:
    rows = study()
    with pytest.raises(ManifestError, match="training and test share 1 scenes: abdomen-0"):
        check_disjoint(rows[:2], rows[2:3])
    with pytest.raises(ManifestError, match=r"share 1 files: .*abdomen0N\.png"):
        check_disjoint(rows[:1], [replace(rows[0], scene="renamed")])


def test_an_anchor_is_not_judged() -> None:
    anchor, version = study()[:2]
    assert (anchor.judged, version.judged, replace(version, score=None).judged) == (False, True, False)
