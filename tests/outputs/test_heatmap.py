"""Pictures: the colours mean what the bar says, and a failed write leaves the old file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from saqm.errors import OutputError
from saqm.image import Image, Source
from saqm.outputs.heatmap import DIMMED, OUTLINE, colour, save_heatmap, save_mask_picture
from saqm.scorer import QualityMap, Score


def drawn(path: Path) -> np.ndarray:
    """The PNG as signed numbers, (H, W, 3)."""
    with pillow.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture).astype(int)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


@pytest.fixture
def image() -> Image:
    """A grey picture, 128 high and 160 wide, whose left fifth is not judged."""
    pixels = np.full((128, 160), 0.5, np.float32)
    mask = np.ones((128, 160), bool)
    mask[:, :32] = False
    return Image(pixels, mask, None, "CT", Source("a.dcm", "0" * 64, "dicom"))


@pytest.fixture
def quality(image: Image) -> QualityMap:
    """Bad on top, good below."""
    score = np.full((128, 160), np.nan, np.float32)
    score[:64, 32:], score[64:, 32:] = 10, 90
    return QualityMap(score, image.mask / image.mask.sum())


def test_the_ramp_gets_lighter_from_bad_to_good():
    steps = colour(np.linspace(0, 100, 101))
    assert (np.diff(luminance(steps)) > 0).all()
    red, green, blue = colour(np.array(0.0))
    assert red > 100 > max(green, blue)  # the worst is dark red
    np.testing.assert_array_equal(colour(np.array([-20.0, 130.0])), colour(np.array([0.0, 100.0])))


def test_the_picture_shows_where_it_is_bad_and_what_was_not_judged(image: Image, quality: QualityMap, tmp_path: Path):
    save_heatmap(image, quality, tmp_path / "map.png")
    picture = drawn(tmp_path / "map.png")
    top = picture.shape[0] - 4 * 128 - 10  # enlarged fourfold, text above, a margin below
    unjudged, bad, good = (picture[top + row, column] for row, column in ((250, 60), (100, 400), (400, 400)))
    assert unjudged.tolist() == [round(127.5 * DIMMED)] * 3
    assert luminance(bad) < luminance(good)
    for pixel, value in ((bad, 10.0), (good, 90.0)):
        toned = pixel - colour(np.array(value)) / 2
        assert np.ptp(toned) <= 1  # half the ramp's colour, the rest is grey


def test_the_bar_on_the_right_runs_from_the_best_to_the_worst(image: Image, quality: QualityMap, tmp_path: Path):
    save_heatmap(image, quality, tmp_path / "map.png")
    picture = drawn(tmp_path / "map.png")
    assert picture.shape[1] > 4 * 160
    bar = picture[:, 4 * 160 + 21]
    best, worst = (np.rint(colour(np.array(value))) for value in (100.0, 0.0))
    (at_best,), (at_worst,) = (np.flatnonzero((bar == end).all(1)) for end in (best, worst))
    assert at_worst - at_best == 4 * 128 - 1


def test_the_score_is_written_above(image: Image, quality: QualityMap, tmp_path: Path):
    scores = {
        "a": Score(path="", status="scored", score=12.0),
        "b": Score(path="", status="scored", score=97.0),
        "c": None,
    }
    for name, score in scores.items():
        save_heatmap(image, quality, tmp_path / f"{name}.png", score)
    first, second, third = (drawn(tmp_path / f"{name}.png") for name in scores)
    differ = np.flatnonzero((first != second).any((1, 2)))
    assert differ.max() < first.shape[0] - 4 * 128 - 10  # nothing but the line above
    assert (third != first).any()
    save_heatmap(image, quality, tmp_path / "d.png", Score(path="", status="scored", score=quality.mean))
    np.testing.assert_array_equal(drawn(tmp_path / "d.png"), third)  # without a score, the map's own


def test_the_same_map_is_the_same_file(image: Image, quality: QualityMap, tmp_path: Path):
    for name in ("a.png", "b.png"):
        save_heatmap(image, quality, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_numbers_themselves_are_written_as_npy(image: Image, quality: QualityMap, tmp_path: Path):
    save_heatmap(image, quality, tmp_path / "map.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy", allow_pickle=False), quality.score_HW)
    assert [file.name for file in tmp_path.iterdir()] == ["map.npy"]


def test_a_large_picture_is_not_enlarged(tmp_path: Path):
    pixels = np.random.default_rng(0).random((600, 700), np.float32)
    image = Image(pixels, np.ones((600, 700), bool), None, "CT", Source("a", "0", "array"))
    save_mask_picture(image, tmp_path / "mask.png")
    assert drawn(tmp_path / "mask.png").shape[1] == 700


def test_the_mask_has_an_edge_and_its_outside_is_dimmed(image: Image, tmp_path: Path):
    save_mask_picture(image, tmp_path / "mask.png")
    picture = drawn(tmp_path / "mask.png")
    row = picture[-200]
    assert row[60].tolist() == [round(127.5 * DIMMED)] * 3
    assert row[300].tolist() == [128] * 3
    assert [column for column in range(640) if row[column].tolist() == list(OUTLINE)] == [128, 129]  # 32 times four


def test_a_colour_picture_keeps_its_colours(image: Image, tmp_path: Path):
    colours = np.zeros((128, 160, 3), np.float32)
    colours[..., 0] = 1
    save_mask_picture(Image(colours, image.mask, None, "US", image.source), tmp_path / "mask.png")
    assert drawn(tmp_path / "mask.png")[-200, 300].tolist() == [255, 0, 0]


def test_a_picture_is_written_as_png_only(image: Image, quality: QualityMap, tmp_path: Path):
    with pytest.raises(OutputError, match=r"map\.jpg: a picture is written as \.png"):
        save_heatmap(image, quality, tmp_path / "map.jpg")


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_a_folder_that_is_not_there_is_an_output_error(image: Image, quality: QualityMap, tmp_path: Path, suffix: str):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        save_heatmap(image, quality, tmp_path / "nowhere" / f"map.{suffix}")


def test_a_write_that_fails_leaves_the_old_picture(
    image: Image, quality: QualityMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_heatmap(image, quality, tmp_path / "map.png")
    before = (tmp_path / "map.png").read_bytes()

    def full(_self: pillow.Image, path: Path, **_options: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pillow.Image, "save", full)
    with pytest.raises(OutputError, match=r"map\.png: cannot be written: No space left"):
        save_mask_picture(image, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
