"""Findings: each measure means what it says, the table holds what was measured, and good pictures are left in peace."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes
from scipy import ndimage

from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.findings import CAUSES, DEFAULT, Judged, evidence, findings
from saqm.image import Image, Step, from_array, read_frames, read_image

ROOT = Path(__file__).parents[1]
Grey = NDArray[np.float32]


def textured(side: int = 192, seed: int = 3) -> Grey:
    """Soft shapes with sharp borders and some texture, inside 20..235, as whole grey levels."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.standard_normal((side, side)), 8)
    fine = ndimage.gaussian_filter(rng.standard_normal((side, side)), 0.7)
    picture = 100 + 60 * (soft > 0) + 25 * soft / soft.std() + 2.5 * fine / fine.std()
    return np.asarray(np.rint(np.clip(picture, 20, 235)), np.float32)


def picture(grey: NDArray[np.floating], modality: str | None = None, mask: NDArray[np.bool_] | None = None) -> Image:
    return from_array(grey, value_range=(0, 255), modality=modality, mask=mask)


def value(name: str, image: Image) -> float:
    return evidence(image)[name]


def names(image: Image) -> list[object]:
    return [finding["name"] for finding in findings(image)]


def climb(name: str, ladder: str, grey: Grey) -> list[float]:
    """The measure on the picture and on each step of a ladder."""
    steps = (DEGRADATIONS[ladder](grey, s, np.random.default_rng(0)) for s in LADDERS[ladder])
    return [value(name, picture(step)) for step in (grey, *steps)]


# The measures


@pytest.mark.parametrize("sd", [2.0, 10.0, 20.0])
@pytest.mark.parametrize("name", ["noise", "grain"])
def test_white_noise_is_read_as_what_it_is(name: str, sd: float) -> None:
    flat = 128 + sd * np.random.default_rng(0).standard_normal((256, 256))
    measured = value(name, picture(np.clip(flat, 0, 255)))
    assert 0.8 * sd < measured < sd  # the quietest tenth of windows is a little below the mean


def test_grain_sees_noise_that_spreads_over_neighbours_better_than_noise_does() -> None:
    soft = picture(DEGRADATIONS["grain"](np.full((256, 256), 128, np.float32), 10.0, np.random.default_rng(0)))
    assert value("grain", soft) > 2 * value("noise", soft)


@pytest.mark.parametrize(
    ("name", "ladder", "rises"),
    [
        ("noise", "noise", True),
        ("grain", "noise", True),
        ("grain", "grain", True),
        ("over-smoothing", "blur", False),
        ("blur", "blur", False),
        ("blur", "shrink", False),
        ("blocking", "compression", True),
    ],
)
def test_a_measure_follows_its_ladder_at_every_step(name: str, ladder: str, rises: bool) -> None:
    steps = climb(name, ladder, textured())
    assert steps == sorted(set(steps), reverse=not rises)


def test_sharpness_does_not_mind_gain_and_offset() -> None:
    grey = textured()
    assert value("blur", picture(0.5 * grey + 40)) == pytest.approx(value("blur", picture(grey)), rel=1e-4)


def test_contrast_is_measured_in_grey_levels() -> None:
    ramp = np.tile(np.linspace(30, 230, 201), (200, 1))
    assert value("low-contrast", picture(ramp)) == pytest.approx(180, abs=0.5)
    assert value("low-contrast", picture(127.5 + (ramp - 127.5) / 4)) == pytest.approx(45, abs=0.2)


def test_clipping_is_the_share_shown_white_or_black() -> None:
    grey = textured()
    grey[:48], grey[48:72] = 255, 0
    assert value("white-clipping", picture(grey)) == pytest.approx(25)
    assert value("black-clipping", picture(grey)) == pytest.approx(12.5)


@pytest.mark.parametrize("step", [1, 2, 8, 16])
def test_banding_is_the_step_between_grey_levels(step: int) -> None:
    assert value("banding", picture(np.rint(textured() / step) * step)) == step


def test_banding_asks_for_the_channel_with_the_finest_steps() -> None:
    grey = textured()
    coarse = np.rint(grey / 16) * 16
    assert value("banding", picture(np.dstack([coarse, coarse, coarse]))) == 16
    assert value("banding", picture(np.dstack([coarse, grey, coarse]))) == 1


def test_more_bits_are_no_banding_and_read_the_same() -> None:
    rng = np.random.default_rng(0)
    fine = textured() + rng.uniform(-0.5, 0.5, (192, 192))
    deep = from_array(np.rint(fine * 257).astype(np.uint16))
    shallow = from_array(np.rint(fine).astype(np.uint8))
    assert value("banding", deep) < 0.2
    for name, measured in evidence(shallow).items():
        if name not in ("banding", "missing-content"):
            assert value(name, deep) == pytest.approx(measured, rel=0.05, abs=1), name


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 5), (7, 1)])
def test_the_grid_of_blocks_is_found_wherever_it_lies(down: int, right: int) -> None:
    compressed = DEGRADATIONS["compression"](textured(), 90.0, np.random.default_rng(0))
    assert value("blocking", picture(compressed[down:, right:])) > 30
    assert value("blocking", picture(textured()[down:, right:])) < CAUSES["blocking"].thresholds[DEFAULT]


def test_stripes_along_one_axis_are_no_blocks() -> None:
    grey = textured()
    grey[:, ::8] += 20
    assert value("blocking", picture(grey)) < CAUSES["blocking"].thresholds[DEFAULT]


def test_an_enlarged_picture_repeats_but_not_in_blocks() -> None:
    noisy = DEGRADATIONS["noise"](textured(), 10.0, np.random.default_rng(0))
    enlarged = DEGRADATIONS["shrink"](noisy, 2.0, np.random.default_rng(0))
    assert value("blocking", picture(enlarged)) < CAUSES["blocking"].thresholds[DEFAULT]


def test_a_strong_border_of_the_subject_counts_little() -> None:
    grey = textured()
    grey[64:128, 64:128] = np.clip(grey[64:128, 64:128] + 120, 0, 255)  # all four sides on the grid: the worst case
    assert value("blocking", picture(grey)) < 10  # 60 without a limit for single jumps


def test_a_hole_is_measured_in_percent() -> None:
    grey = textured(200)
    assert value("missing-content", picture(grey)) == 0
    grey[50:90, 60:120] = 77
    assert value("missing-content", picture(grey)) == pytest.approx(100 * 40 * 60 / 200**2)


@pytest.mark.parametrize("level", [0, 90, 255])
def test_lost_lines_are_missing_content(level: int) -> None:
    grey = textured(200)
    grey[50:52], grey[:, 99] = level, level
    assert value("missing-content", picture(grey)) == pytest.approx(100 * (2 * 200 + 200 - 2) / 200**2)


def test_background_at_the_rim_of_the_mask_is_no_lost_line() -> None:
    grey = np.pad(textured(), 8)
    assert value("missing-content", picture(grey)) == 0


def test_a_broken_file_is_missing_content_and_padding_is_not() -> None:
    grey = textured(200)
    grey[150:] = 128
    broken = from_array(grey.astype(np.uint8), mask="auto")
    assert not broken.mask[150:].any()  # the bar is not judged, but it is not forgotten
    assert value("missing-content", broken) == pytest.approx(25)
    for padding in (0, 255):
        grey[150:] = padding
        assert value("missing-content", from_array(grey.astype(np.uint8), mask="auto")) == 0


def test_a_background_that_is_not_black_is_no_broken_file() -> None:
    grey = np.full((200, 200), 90, np.float32)
    grey[40:160, 50:150] = textured(120)[:, :100]
    mask = np.zeros(grey.shape, np.bool_)
    mask[40:160, 50:150] = True
    assert value("missing-content", picture(grey, mask=mask)) == 0


def test_an_empty_area_does_not_pass_for_texture_that_was_smoothed() -> None:
    grey = DEGRADATIONS["noise"](textured(), 6.0, np.random.default_rng(0))
    before = value("over-smoothing", picture(grey))
    grey[41:120, 41:120] = 77
    assert value("over-smoothing", picture(grey)) == pytest.approx(before, rel=0.1)
    assert value("blocking", picture(grey)) < CAUSES["blocking"].thresholds[DEFAULT]


def test_clipped_shapes_that_are_no_rectangles_are_not_missing() -> None:
    grey = textured()
    rows, columns = np.ogrid[:192, :192]
    grey[(rows - 90) ** 2 + (columns - 90) ** 2 < 40**2] = 255
    assert value("missing-content", picture(grey)) == 0


# What is judged


def test_only_what_the_mask_holds_counts() -> None:
    grey = textured()
    mask = np.zeros(grey.shape, np.bool_)
    mask[40:150, 30:160] = True
    noise = np.random.default_rng(1).integers(0, 256, grey.shape)
    # six pixels more: the reach of the bands, and of a window's own filter
    elsewhere = np.where(ndimage.binary_dilation(mask, np.ones((13, 13))), grey, noise)
    assert evidence(picture(elsewhere, mask=mask)) == evidence(picture(grey, mask=mask))


def test_too_little_to_measure_is_no_finding() -> None:
    grey = textured()
    for rows, columns in ((31, 32), (15, 100), (1, 192)):
        assert evidence(picture(grey[:rows, :columns])) == {}
        assert findings(picture(grey[:rows, :columns])) == ()
    nothing = np.zeros(grey.shape, np.bool_)
    assert findings(picture(grey, mask=nothing)) == ()
    thin = evidence(picture(grey[:16, :100]))  # enough pixels, too few windows for texture
    assert "low-contrast" in thin
    assert not {"noise", "grain", "over-smoothing", "blur"} & thin.keys()


def test_a_constant_picture_is_empty_and_nothing_is_divided_by_zero() -> None:
    found = findings(picture(np.full((64, 64), 80.0)))
    assert [(each["name"], each["value"]) for each in found] == [("low-contrast", 0.0), ("missing-content", 100.0)]


@pytest.mark.parametrize("shape", [(16, 64), (33, 47), (64, 17)])
@pytest.mark.parametrize("made", [np.zeros, np.ones])
def test_extremes_of_any_shape_have_finite_values(shape: tuple[int, int], made: Callable[..., Grey]) -> None:
    noise = np.random.default_rng(0).choice([0.0, 255.0], shape)
    for image in (picture(noise), picture(255 * made(shape))):
        assert np.isfinite(list(evidence(image).values())).all()


def test_the_picture_is_left_alone_and_the_same_comes_twice() -> None:
    image = picture(textured())
    before = image.pixels.copy()
    assert findings(image) == findings(image)
    np.testing.assert_array_equal(image.pixels, before)


def test_judged_crops_to_the_mask() -> None:
    mask = np.zeros((192, 192), np.bool_)
    mask[40:150, 30:160] = True
    judged = Judged.of(picture(textured(), mask=mask))
    assert judged is not None
    assert judged.grey_HW.shape == judged.mask_HW.shape == (110, 130)


# Findings


def test_a_good_picture_has_none() -> None:
    assert names(picture(textured())) == []


def test_a_finding_says_what_where_the_threshold_was_and_its_code() -> None:
    noisy = picture(DEGRADATIONS["noise"](textured(), 20.0, np.random.default_rng(0)), "MR")
    (found,) = findings(noisy)
    assert found == {
        "name": "noise",
        "value": value("noise", noisy),
        "unit": "grey levels",
        "threshold": CAUSES["noise"].thresholds[DEFAULT],
        "direction": "above",
        "code": {"value": "130578", "scheme": "DCM", "meaning": "Poor SNR"},
    }
    assert json.loads(json.dumps(found)) == found


def test_the_worst_comes_first() -> None:
    grey = np.clip(127 + (textured() - 127) / 8, 0, 255)  # contrast a little low, ...
    grey[40:120, 40:120] = 131  # ... much of it gone
    found = findings(picture(grey))
    assert [each["name"] for each in found] == ["missing-content", "low-contrast"]
    for each in found:
        excess = CAUSES[str(each["name"])].excess(float(str(each["value"])), float(str(each["threshold"])))
        assert excess > 1


def test_the_threshold_is_the_modality_s_own_else_the_default() -> None:
    noisy = DEGRADATIONS["noise"](textured(), 5.0, np.random.default_rng(0))
    assert "noise" in names(picture(noisy, "CT"))
    assert "noise" not in names(picture(noisy))
    assert "noise" not in names(picture(noisy, "NM"))
    assert CAUSES["grain"].threshold("US") is None
    assert "grain" not in names(picture(DEGRADATIONS["grain"](textured(), 20.0, np.random.default_rng(0)), "US"))


def test_smooth_ct_is_over_smoothed_unless_a_wide_window_hides_its_grain() -> None:
    smooth = picture(DEGRADATIONS["median"](textured(), 7.0, np.random.default_rng(0)), "CT")
    assert "over-smoothing" in names(smooth)

    def windowed(width: float) -> Image:
        step = Step("window", {"center": 40.0, "width": width})
        return replace(smooth, source=replace(smooth.source, steps=(step, *smooth.source.steps)))

    assert "over-smoothing" in names(windowed(400.0))
    assert "over-smoothing" not in names(windowed(1500.0))


def test_a_slice_compressed_338_times_has_lost_its_texture() -> None:
    """JPEG 2000 as it comes with pydicom: the brain in it is one grey."""
    found = findings(read_image(str(get_testdata_file("693_J2KI.dcm", download=False))))
    assert found[0]["name"] == "over-smoothing"
    assert found[0]["value"] == 0


def test_files_that_the_thresholds_never_saw_are_left_in_peace() -> None:
    import nibabel

    assert names(read_image(str(get_testdata_file("CT_small.dcm", download=False)))) == []
    assert names(read_image(str(get_testdata_file("JPEG2000.dcm", download=False)))) == []  # nuclear medicine
    volume = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    for number, slice_ in enumerate(read_frames(volume, axis=2)):
        if number in (4, 12, 20):  # between the slices that the thresholds were set on
            assert names(replace(slice_, modality="MR")) == []


# On real pictures


def study_slice(ct_study: Path, name: str) -> Image:
    return replace(read_image(ct_study / "images" / f"{name}.png"), modality="CT")


@pytest.mark.parametrize("scene", ["abdomen_set01", "brain_set02"])
def test_low_dose_slices_have_grain_and_normal_dose_slices_have_no_finding(ct_study: Path, scene: str) -> None:
    assert names(study_slice(ct_study, f"{scene}_NDCT")) == []
    assert "grain" in names(study_slice(ct_study, f"{scene}_LDCT"))


@pytest.mark.parametrize(
    ("ladder", "expected"),
    [("noise", "noise"), ("blur", "blur"), ("median", "over-smoothing"), ("compression", "blocking")],
)
def test_a_worsened_slice_is_called_by_the_right_name(ct_study: Path, ladder: str, expected: str) -> None:
    good = study_slice(ct_study, "abdomen_set05_NDCT")
    grey = np.asarray(good.pixels[100:400, 100:400] * 255, np.float32)
    strength = LADDERS[ladder][1] if ladder == "median" else LADDERS[ladder][2]
    made = DEGRADATIONS[ladder](grey, strength, np.random.default_rng(0))
    assert expected not in names(picture(grey, "CT"))
    assert expected in names(picture(made, "CT"))


def test_speckle_is_not_noise(shared: Path) -> None:
    for frame in ("d10", "f10", "k50"):
        pixels = np.asarray(PIL.Image.open(shared / "data" / "abdominal_ultrasound" / "images" / f"{frame}.jpg"))
        assert names(from_array(pixels, modality="US", mask="auto")) == []


# The table, and what was measured


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_told_in_full(name: str) -> None:
    cause = CAUSES[name]
    assert cause.measured
    assert cause.unit in ("grey levels", "%", "ratio")
    assert cause.advice.endswith(".")
    assert cause.thresholds
    assert all(threshold > 0 for threshold in cause.thresholds.values())
    assert DEFAULT in cause.codes


def test_every_code_is_one_of_dicom_s_quality_findings() -> None:
    known = {}
    for group in (codes.cid6135, codes.cid6315):
        for word in group.dir():
            concept = getattr(group, word)
            known[concept.value, concept.scheme_designator] = concept.meaning
    for cause in CAUSES.values():
        for code in cause.codes.values():
            assert known[code.value, code.scheme] == code.meaning


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_of_findings", ROOT / "benchmarks" / "findings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def measured_range(benchmark: ModuleType) -> Mapping[tuple[str, str], float]:
    """(finding, kind) -> the worst value of the good pictures, from the committed table."""
    rows = benchmark.read_csv(benchmark.RESULTS / "findings.csv")
    return {(row.finding, row.kind): row.extreme for row in rows if row.pictures == "good" and row.extreme is not None}


def test_the_thresholds_are_those_that_the_rule_makes_of_the_measured_ranges(benchmark: ModuleType) -> None:
    worst = measured_range(benchmark)
    for name, cause in CAUSES.items():
        above = cause.direction == "above"
        for modality, threshold in cause.thresholds.items():
            kinds = [modality] if modality != DEFAULT else list(benchmark.KINDS)
            if name == "blocking" and modality == DEFAULT:
                kinds.remove("US")  # lossy JPEG nearly all
            values = [worst[name, kind] for kind in kinds]
            wanted = max(values) * benchmark.MARGIN if above else min(values) / benchmark.MARGIN
            assert threshold == pytest.approx(wanted, rel=0.05), (name, modality)  # two digits


def test_no_finding_fires_on_the_good_pictures_and_each_on_its_strongest_damage(benchmark: ModuleType) -> None:
    rows = benchmark.read_csv(benchmark.RESULTS / "findings.csv")
    assert {row.finding: row.fired for row in rows if row.pictures == "good" and row.fired} == {}
    for ladder, right in benchmark.RIGHT.items():
        last = benchmark.hit(rows, "CT", ladder, benchmark.STEPS[ladder][-1])
        assert last.fired > 0, f"{ladder}: {right}"


def test_the_page_quotes_what_was_measured(benchmark: ModuleType) -> None:
    rows = benchmark.read_csv(benchmark.RESULTS / "findings.csv")
    assert benchmark.PAGE.read_text(encoding="utf-8") == benchmark.page(rows), "run benchmarks/findings.py --tables"
    assert (benchmark.RESULTS / "findings.md").read_text(encoding="utf-8") == benchmark.markdown(rows)


def test_every_finding_has_its_section_on_the_page(benchmark: ModuleType) -> None:
    text = benchmark.PAGE.read_text(encoding="utf-8")
    assert [line[4:] for line in text.splitlines() if line.startswith("### ") and line[4:] in CAUSES] == list(CAUSES)


def test_the_rule_and_what_is_left_out(benchmark: ModuleType) -> None:
    image = picture(textured())
    made = [
        (benchmark.Good("CT", "a", image), {"noise": 2.0, "blur": 0.8}),
        (benchmark.Good("CT", "b", image), {"noise": 3.0, "blur": 0.5}),
        (benchmark.Good("US", "c", image, lossy=True), {"noise": 4.0, "blocking": 40.0}),
        (benchmark.Good("MR", "d", image), {"noise": 1.0, "blur": 0.4, "blocking": 4.0}),
    ]
    assert benchmark.proposed("noise", made) == {DEFAULT: 5.0, "CT": 3.8, "US": 5.0}
    assert benchmark.proposed("blur", made) == {DEFAULT: 0.32, "CT": 0.4}  # none was measured in US
    assert benchmark.proposed("blocking", made) == {DEFAULT: 5.0, "US": 50.0}
    assert benchmark.limit_without("noise", made[1][0], made) == pytest.approx(2.5)  # its patient's is not there
    assert benchmark.limit_without("blur", made[3][0], made) == pytest.approx(0.4)  # its whole kind is not
    assert benchmark.limit_without("grain", made[3][0], made) is None  # not judged in MR


@pytest.mark.parametrize("name", ["flatter", "whiter", "blacker", "coarser", "holes"])
def test_the_benchmark_s_own_ladders_climb(benchmark: ModuleType, name: str) -> None:
    (finding,) = benchmark.RIGHT[name]
    image = picture(textured())
    steps = [value(finding, benchmark.worsened(image, name, s, 0)) for s in benchmark.STEPS[name]]
    assert steps == sorted(steps, reverse=CAUSES[finding].direction == "below")
    assert steps[-1] != value(finding, image)
