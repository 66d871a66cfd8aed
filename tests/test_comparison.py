"""Two sides compared: who is whose partner, what the tests say, and what they must not be made to say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from saqm.comparison import (
    EXACT_UP_TO,
    PAIR_COLUMNS,
    PairedResult,
    cohen_dz,
    compare,
    mean_interval,
    median_interval,
    rank_biserial,
    sign_p,
    signed_rank_p,
)
from saqm.errors import SaqmError
from saqm.manifest import Manifest, Row
from saqm.outputs.differences import differences
from saqm.outputs.table import save_records

Record = dict[str, Any]
MODEL = {"name": "saqm-ct", "version": "1", "sha256": "0" * 64, "engine": "onnx"}
NIQE = {"name": "niqe", "version": "1", "direction": "lower is better"}


def record(path: str, score: float | None, frame: int | None = None, **more: Any) -> Record:
    status = "not_scored" if score is None else "scored"
    given = {"model": MODEL, "status": status, "score": score, **more}
    return {"path": path, "frame": frame, "sha256": None, "reasons": [], "warnings": [], **given}


def side(folder: str, scores: Iterable[float], **more: Any) -> list[Record]:
    return [record(f"{folder}/{place:03}.png", score, **more) for place, score in enumerate(scores)]


def result(first: list[Record], second: list[Record], **options: Any) -> PairedResult:
    (only,) = compare(first, second, **options).results
    return only


def names(made: PairedResult) -> set[str]:
    return {pair.name for pair in made.pairs}


# The published values of others

SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]  # Student 1908: hours of sleep more, by two drugs
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Hollander & Wolfe 1973, p. 29: depression before and after, the example of R's wilcox.test
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def test_the_mean_and_its_interval_are_those_of_students_sleep_data() -> None:
    made = result(side("a", SLEEP_1), side("b", SLEEP_2))
    assert made.mean == pytest.approx(1.58)
    assert made.mean_interval == pytest.approx((0.7001142, 2.4598858), abs=1e-7)  # R: t.test(..., paired = TRUE)
    assert made.dz == pytest.approx(4.062128 / math.sqrt(10), abs=1e-6)  # R's t of the same test
    assert (made.better, made.equal, made.worse) == (9, 1, 0)
    assert made.sign_p == pytest.approx(2 / 2**9)
    assert any("1 pairs are equal on both sides; the tests leave them out" in note for note in made.notes)


def test_the_signed_rank_test_is_that_of_hollander_and_wolfe() -> None:
    p, exact = signed_rank_p(np.subtract(BEFORE, AFTER))
    assert exact
    assert p == pytest.approx(0.0390625)  # R: V = 40, one-sided p = 0.01953
    assert rank_biserial(np.subtract(BEFORE, AFTER)) == pytest.approx((40 - 5) / 45)


# The statistics


@pytest.mark.parametrize("kind", ["plain", "tied", "zeros"])
def test_the_exact_p_is_that_of_trying_all_signs(kind: str) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0.6, 1, 9) if kind == "plain" else rng.integers(1, 4, 9) * rng.choice([-1, 1, 1], 9)
    if kind == "zeros":
        values = np.append(values, [0, 0, 0])
    changed = values[values != 0]
    sizes = np.abs(changed)
    ranks = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])
    sums = np.array([ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=len(ranks))])
    own = ranks[changed > 0].sum()
    expected = min(1, 2 * min(np.mean(sums <= own + 1e-9), np.mean(sums >= own - 1e-9)))
    assert signed_rank_p(values) == (pytest.approx(expected), True)
    assert signed_rank_p(-values) == (pytest.approx(expected), True)


def test_many_units_have_the_normal_p_and_it_joins_the_exact_one() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, EXACT_UP_TO + 1)
    approximate, exact = signed_rank_p(values)
    counted, is_exact = signed_rank_p(values[:-1])
    assert (exact, is_exact) == (False, True)
    assert approximate is not None
    assert counted is not None
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    n = len(values)
    z = (ranks[values > 0].sum() - n * (n + 1) / 4) / math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    assert approximate == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert abs(math.log(approximate / counted)) < 0.2


@pytest.mark.parametrize("n", [6, 10, 17])
def test_the_medians_interval_is_what_the_sign_test_does_not_reject(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    bounds = median_interval(values)
    assert bounds is not None
    low, high = bounds
    for median, kept in ((low - 1e-9, False), (low + 1e-9, True), (high - 1e-9, True), (high + 1e-9, False)):
        p = sign_p(values - median)
        assert p is not None
        assert (p > 0.05) is kept


def test_too_few_values_have_no_interval_and_equal_ones_no_test() -> None:
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert mean_interval([1]) is None
    assert mean_interval([2, 2, 2]) == (2, 2)
    assert (sign_p([0, 0]), signed_rank_p([0, 0]), rank_biserial([0, 0])) == (None, (None, True), None)
    assert (cohen_dz([1]), cohen_dz([2, 2])) == (None, None)
    assert rank_biserial([1, 2, 3]) == 1
    assert rank_biserial([-1, -2, -3]) == -1


# Who is better


def test_a_gain_of_every_pair_is_found_and_the_largest_loss_comes_first() -> None:
    first = [50.0 + i for i in range(10)]
    made = result(
        side("a", first), side("b", [value + 2 + 0.1 * i for i, value in enumerate(first)]), labels=("x", "y")
    )
    assert (made.better, made.worse) == (10, 0)
    assert made.sign_p == made.wilcoxon_p == pytest.approx(2 / 2**10)
    assert made.verdict.startswith("y is better than x (p = 0.002")
    assert [pair.gain for pair in made.pairs] == sorted(pair.gain for pair in made.pairs)
    swapped = result(side("b", [pair.second for pair in made.pairs]), side("a", [pair.first for pair in made.pairs]))
    assert swapped.mean == -made.mean
    assert "B is worse than A" in swapped.verdict
    assert "Largest losses of B:" in swapped.to_text()
    assert "Largest losses" not in made.to_text()


def test_of_a_metric_lower_values_are_the_gain() -> None:
    first, second = (
        [record(f"{name}/{i}.png", None, status="scored", score_raw=5.0 + i - drop, model=NIQE) for i in range(8)]
        for name, drop in (("a", 0), ("b", 1.5))
    )
    made = result(first, second)
    assert (made.mean, made.direction) == (pytest.approx(1.5), "lower is better")
    assert "B is better" in made.verdict


def test_five_pairs_cannot_show_a_difference_and_it_is_said() -> None:
    made = result(side("a", [1, 2, 3, 4, 5]), side("b", [11, 12.5, 13, 14, 16]))
    assert made.sign_p == pytest.approx(0.0625)
    assert made.verdict.startswith("no difference shown")
    assert any("the smallest p they allow is 0.062; 6 is the least" in note for note in made.notes)
    six = result(side("a", range(6)), side("b", range(10, 16)))
    assert "B is better" in six.verdict


def test_equal_sides_are_called_equal() -> None:
    made = result(side("a", [1, 2, 3]), side("b", [1, 2, 3]))
    assert (made.wilcoxon_p, made.sign_p, made.dz, made.equal) == (None, None, None, 3)
    assert made.verdict == "A and B are equal in every pair"
    assert "p undefined" in made.to_text()


def test_one_pair_is_a_difference_without_interval_or_proof() -> None:
    made = result(side("a", [1]), side("b", [4]))
    assert (made.mean, made.mean_interval, made.median_interval) == (3, None, None)
    assert made.sign_p == 1


def test_several_models_have_a_result_each_and_share_the_risk() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(40, 60, 12)
    other = {"model": {**MODEL, "name": "other"}}
    first = side("a", base) + side("a", base, **other)
    second = side("b", base + 3 + rng.normal(0, 3, 12)) + side("b", base + rng.normal(0, 3, 12), **other)
    results = compare(first, second).results
    assert [made.model for made in results] == ["saqm-ct", "other"]
    own, none = (made.wilcoxon_p or 0 for made in results)
    assert own < none
    assert results[0].wilcoxon_p_holm == pytest.approx(2 * own)
    assert results[1].wilcoxon_p_holm == pytest.approx(none)
    assert "Holm" in results[0].to_text()


# Units


def test_slices_of_one_file_are_one_unit() -> None:
    """Forty slices of two volumes prove nothing about volumes."""
    first, second = (
        [record(f"{name}/{volume}.nii.gz", 50 + more, frame) for volume in "uv" for frame in range(20)]
        for name, more in (("a", 0), ("b", 4))
    )
    made = result(first, second)
    assert (made.unit, made.units, len(made.pairs)) == ("file", 2, 40)
    assert made.sign_p == 0.5
    assert made.verdict.startswith("no difference shown")
    assert {(pair.name, pair.frame) for pair in made.pairs} == {(name, frame) for name in "uv" for frame in range(20)}


def manifest_of(scenes: dict[str, str]) -> Manifest:
    return Manifest(tuple(Row(Path(path).absolute(), None, scene) for path, scene in scenes.items()))


def test_pairs_of_one_scene_are_one_unit_with_their_mean_gain() -> None:
    scenes = {f"{name}/{i:03}.png": f"patient{i // 3}" for name in "ab" for i in range(9)}
    gains = [1, 2, 3, -1, 0, 1, 5, 5, 8]
    made = result(side("a", [50] * 9), side("b", [50 + gain for gain in gains]), manifest=manifest_of(scenes))
    assert (made.unit, made.units, len(made.pairs)) == ("scene", 3, 9)
    assert (made.better, made.equal, made.worse) == (2, 1, 0)
    assert made.median == 2
    assert {pair.unit for pair in made.pairs} == {"patient0", "patient1", "patient2"}


def test_by_scene_the_means_of_all_images_of_a_scene_are_paired() -> None:
    scenes = {"a/1.png": "s", "a/2.png": "s", "b/x.png": "s", "a/3.png": "t", "b/y.png": "u"}
    first = [record("a/1.png", 40), record("a/2.png", 50), record("a/3.png", 70), record("a/4.png", 80)]
    made = result(first, [record("b/x.png", 55), record("b/y.png", 60)], by="scene", manifest=manifest_of(scenes))
    (pair,) = made.pairs
    assert (pair.name, pair.first, pair.second, pair.gain) == ("s", 45, 55, 10)
    assert pair.first_paths == ("a/1.png", "a/2.png")
    reasons = {lost.path: lost.reason for lost in made.unpaired}
    assert reasons == {"a/4.png": "not in the manifest", "a/3.png": "no partner in B", "b/y.png": "no partner in A"}
    with pytest.raises(SaqmError, match="pairs by scene need a manifest"):
        compare(first, first, by="scene")


def test_partners_of_two_scenes_are_no_pair() -> None:
    scenes = {"a/000.png": "s", "b/000.png": "t", "a/001.png": "u"}
    made = result(side("a", [1, 2, 3]), side("b", [1, 2, 3]), manifest=manifest_of(scenes))
    assert names(made) == {"001"}  # one side in the manifest is enough
    reasons = {lost.path: lost.reason for lost in made.unpaired}
    assert reasons["a/000.png"] == "partners of two scenes, s and t"
    assert reasons["b/002.png"] == "not in the manifest"


# Pairing


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["a/x.png", "a/y.png"], ["b/y.dcm", "b/x.tif"], {"x", "y"}),
        (["a/x.nii.gz"], ["b/X.nii", "b/x.nii"], {"x"}),
        (["a/1.2.840.1", "a/1.2.840.2"], ["b/1.2.840.1", "b/1.2.840.2"], {"1.2.840.1", "1.2.840.2"}),  # no suffix
        (["a/p/1.png", "a/q/1.png"], ["b/p/1.png", "b/q/1.png"], {"p/1", "q/1"}),
        (["a.zip!/p/1.dcm", "a.zip!/q/1.dcm"], ["b/p/1.dcm"], {"p/1"}),
    ],
)
def test_files_are_paired_by_as_much_of_their_names_as_it_takes(
    first: list[str], second: list[str], expected: set[str]
) -> None:
    assert names(result([record(path, 1) for path in first], [record(path, 2) for path in second])) == expected


def test_what_has_no_partner_or_no_score_is_listed_with_the_reason() -> None:
    first = [record("a/1.png", 5), record("a/2.png", 5), record("a/3.png", None, reasons=["constant image"])]
    made = result(first, [record("b/1.png", 6), record("b/3.png", 7), record("b/9.png", 8)])
    assert names(made) == {"1"}
    assert {(lost.side, lost.path, lost.reason) for lost in made.unpaired} == {
        (0, "a/2.png", "no partner in B"),
        (0, "a/3.png", "constant image"),
        (1, "b/3.png", "no partner in A"),
        (1, "b/9.png", "no partner in A"),
    }
    assert "Without partner: 4\n" in made.to_text()


def test_a_long_list_is_cut_in_the_text_and_whole_elsewhere(tmp_path: Path) -> None:
    compared = compare(side("a", range(30)), side("b", range(2)))
    (made,) = compared.results
    assert "and 18 more; --json and --out list them all" in made.to_text()
    assert len(json.loads(compared.to_json())["results"][0]["unpaired"]) == 28
    rows = list(compared.to_rows())
    assert len(rows) == 30
    assert [set(row) for row in rows] == [{column.name for column in PAIR_COLUMNS}] * 30
    save_records(rows, tmp_path / "pairs.csv", PAIR_COLUMNS)
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert len(lines) == 31
    assert lines[1] == "saqm-ct,000,,000,0.0,0.0,0.0,a/000.png,b/000.png,"
    assert lines[-1] == "saqm-ct,029,,,,,,a/029.png,,no partner in B"


Sides = tuple[list[Record], list[Record]]


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (([], [record("b/1.png", 1)]), "A: no image; nothing to compare"),
        (
            ([record("a/1.png", 1)], [record("b/2.png", 1)]),
            r"no pair by name \(A: a/1\.png: no partner in B; .* by scene",
        ),
        (([record("a/1.png", None)], [record("b/1.png", 1)]), r"no pair by name \(A: a/1\.png: not scored"),
        (([record("a/1.png", 1)] * 2, [record("b/1.png", 1)]), "A: a/1.png is there twice for saqm-ct; leave one row"),
        (
            ([record("a/1.png", 1), record("a/1.dcm", 1)], [record("b/1.png", 1)]),
            r"A: a/1\.dcm and a/1\.png have one name without suffix",
        ),
        (
            ([record("a/1.png", 1)], [record("b/1.png", None, model=NIQE, status="scored", score_raw=1)]),
            "different models, A by saqm-ct and B by niqe: score both sides with the same",
        ),
        (
            ([record("a/1.png", 1)], [record("b/1.png", 1, model={**MODEL, "version": "2"})]),
            r"saqm-ct is not one model here \(version 1, .* version 2, .*\): score both sides anew",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_out(sides: Sides, message: str) -> None:
    with pytest.raises(SaqmError, match=message):
        compare(*sides)


# What to mind


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"sha256": "same"}, "8 of 8 pairs hold the same file on both sides"),
        (
            {"out_of_domain": {"p": 0.001, "flag": True}},
            "8 of 8 pairs hold an image unlike those the model knows",
        ),
        ({"warnings": ["outside the model's domain: modality MR"]}, "8 of 8 pairs hold an image unlike"),
        ({"warnings": ["the model was trained on this very picture: x"]}, "8 of 8 pairs hold a picture that the model"),
    ],
)
def test_what_makes_a_gain_doubtful_is_noted(change: dict[str, Any], note: str) -> None:
    made = result(side("a", range(8), **change), side("b", range(1, 9), **change))
    assert any(note in each for each in made.notes), made.notes
    assert all(pair.notes for pair in made.pairs)
    assert not result(side("a", range(8)), side("b", range(1, 9))).notes


def test_different_windows_are_noted() -> None:
    soft, bone = ({"preparation": {"window": {"center": c, "width": w}}} for c, w in ((40, 400), (500, 2000)))
    made = result(side("a", range(8), **soft), side("b", range(1, 9), **bone))
    assert any("8 of 8 pairs were shown with different windows" in note for note in made.notes)
    assert not result(side("a", range(8), **soft), side("b", range(1, 9), **soft)).notes


def test_a_picture_that_the_model_was_trained_on_is_told_by_its_own_warning(toy_model: Path, tmp_path: Path) -> None:
    from saqm import read_image, score
    from saqm.image import sha256_of
    from saqm.modelfile import read_header, write_onnx
    from saqm.scorer import load_scorer

    grey = np.random.default_rng(0).integers(90, 200, (64, 64), np.uint8)
    for name in "ab":
        (tmp_path / name).mkdir()
        pillow.fromarray(grey + (name == "b")).save(tmp_path / name / "x.png")
    header = read_header(toy_model)
    taught = header.training.model_copy(update={"images_sha256": (sha256_of(tmp_path / "a" / "x.png"),)})
    write_onnx(toy_model.read_bytes(), header.model_copy(update={"training": taught}), tmp_path / "taught.onnx")
    scorer = load_scorer(tmp_path / "taught.onnx")
    first, second = ([score(read_image(tmp_path / name / "x.png"), scorer).to_record()] for name in "ab")
    assert any(
        "1 of 1 pairs hold a picture that the model was trained on" in note for note in result(first, second).notes
    )


# The picture


@pytest.mark.parametrize("shape", ["usual", "equal", "one"])
def test_the_picture_is_drawn_whatever_the_pairs(tmp_path: Path, shape: str) -> None:
    sides: dict[str, Callable[[], Sides]] = {
        "usual": lambda: (side("a", range(8)), side("b", [3, 0, 4, 5, 6, 7, 8, 9])),
        "equal": lambda: (side("a", [5, 5]), side("b", [5, 5])),
        "one": lambda: (side("a", [5]), side("b", [4])),
    }
    differences(compare(*sides[shape]()), tmp_path / "pairs.png")
    with pillow.open(tmp_path / "pairs.png") as picture:
        assert picture.width > picture.height > 400
