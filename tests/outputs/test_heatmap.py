"""Pictures: the colours mean what the bar says, and a failed write leaves the old file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from saqm.errors import NotScorable, OutputError
from saqm.image import Image, Source
from saqm.maps import Attention, QualityMap
from saqm.outputs.heatmap import (
    DIMMED,
    FAINT,
    GAP,
    OUTLINE,
    SHARES,
    colour,
    save_attention,
    save_heatmap,
    save_mask_picture,
)
from saqm.scorer import Score


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
    return QualityMap(score, image.mask / image.mask.sum(), 32)


def test_the_ramp_gets_lighter_from_bad_to_good():
    steps = colour(np.linspace(0, 100, 101))
    assert (np.diff(luminance(steps)) > 0).all()
    red, green, blue = colour(np.array(0.0))
    assert red > 100 > max(green, blue)  # the worst is dark red
    np.testing.assert_array_equal(colour(np.array([-20.0, 130.0])), colour(np.array([0.0, 100.0])))


def shown(path: Path) -> np.ndarray:
    """The picture itself, fourfold, without the text above it and the bar beside it."""
    return drawn(path)[-10 - 4 * 128 : -10, : 4 * 160]


def test_the_picture_shows_where_it_is_bad_and_what_was_not_judged(image: Image, quality: QualityMap, tmp_path: Path):
    save_heatmap(image, quality, tmp_path / "map.png")
    picture = shown(tmp_path / "map.png")
    unjudged, bad, good = (picture[row, column] for row, column in ((250, 60), (100, 400), (400, 400)))
    assert unjudged.tolist() == [round(127.5 * DIMMED)] * 3
    assert luminance(bad) < luminance(good)
    for pixel, value in ((bad, 10.0), (good, 90.0)):
        toned = pixel - colour(np.array(value)) / 2
        assert np.ptp(toned) <= 1  # half the ramp's colour, the rest is grey


def test_what_counts_little_is_faint(image: Image, quality: QualityMap, tmp_path: Path):
    weight = quality.weight_HW.copy()
    weight[:64] /= 1000
    save_heatmap(image, QualityMap(quality.score_HW, weight / weight.sum(), 32), tmp_path / "map.png")
    faint, strong = shown(tmp_path / "map.png")[[100, 400], 400]
    assert np.ptp(faint - FAINT * colour(np.array(10.0))) <= 1
    assert np.ptp(strong - colour(np.array(90.0)) / 2) <= 1


def test_the_bar_on_the_right_runs_from_the_best_to_the_worst_and_points_at_the_score(
    image: Image, quality: QualityMap, tmp_path: Path
):
    save_heatmap(image, quality, tmp_path / "map.png", Score(path="", status="scored", score=20.0))
    picture = drawn(tmp_path / "map.png")
    assert picture.shape[1] > 4 * 160
    bar = picture[:, 4 * 160 + 21]
    best, worst = (np.rint(colour(np.array(value))) for value in (100.0, 0.0))
    (at_best,), (at_worst,) = (np.flatnonzero((bar == end).all(1)) for end in (best, worst))
    assert at_worst - at_best == 4 * 128 - 1
    mark = np.flatnonzero((picture[at_best:, 4 * 160 + 9] > 200).all(1))  # its tip, beside the bar
    assert np.ptp(mark) <= 4
    assert mark.mean() == pytest.approx(0.8 * (4 * 128 - 1), abs=1)


@pytest.mark.parametrize(
    "changed",
    [
        {"score": 97.0},
        {"interval": (3.0, 20.0), "coverage": 0.9},
        {"interval": (4.0, 20.0), "coverage": None},
        {"findings": ({"name": "noise"},)},
        {"out_of_domain": {"flag": True, "p": 0.01}},
        {"preparation": {"stride": 64}},  # of the score; the map's is 32
    ],
)
def test_the_line_above_tells_what_is_known(
    image: Image, quality: QualityMap, tmp_path: Path, changed: dict[str, object]
):
    base = {"score": 12.0, "interval": (4.0, 20.0), "coverage": 0.9, "preparation": {"stride": 32}}
    for name, fields in (("a", base), ("b", base | changed)):
        save_heatmap(image, quality, tmp_path / f"{name}.png", Score(path="", status="scored", **fields))
    plain, told = (drawn(tmp_path / f"{name}.png") for name in "ab")
    assert plain.shape != told.shape or (plain[:40] != told[:40]).any()
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), shown(tmp_path / "b.png"))


def test_without_a_score_it_is_the_maps_own(image: Image, quality: QualityMap, tmp_path: Path):
    save_heatmap(image, quality, tmp_path / "a.png")
    save_heatmap(image, quality, tmp_path / "b.png", Score(path="", status="scored", score=quality.mean))
    np.testing.assert_array_equal(drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png"))


def test_what_was_not_scored_has_no_map(image: Image, quality: QualityMap, tmp_path: Path):
    refused = Score(path="a.dcm", status="not_scored", reasons=("withheld",))
    with pytest.raises(NotScorable, match=r"a\.dcm: was not scored, so it has no quality map: withheld"):
        save_heatmap(image, quality, tmp_path / "map.png", refused)
    assert list(tmp_path.iterdir()) == []


def test_attention_is_drawn_beside_the_picture_and_the_window(image: Image, tmp_path: Path):
    weight = np.zeros((8, 8), np.float32)
    weight[7, 7] = 1
    for name, gamma in (("a", 0.35), ("b", 0.001)):
        save_attention(image, Attention(weight, (0, 1), (64, 96), 32, gamma), tmp_path / f"{name}.png")
    picture, slight = (drawn(tmp_path / f"{name}.png") for name in "ab")
    np.testing.assert_array_equal(picture[-512:], slight[-512:])
    assert picture.shape != slight.shape or (picture[:80] != slight[:80]).any()  # that it hardly matters is said

    whole, beside = 640, 512 + GAP  # 128 x 160 at a height of 512, and the window sixteenfold
    top = picture.shape[0] - 512 - 10
    corner, least, most = (
        picture[top + row, whole + GAP + column].tolist()
        for row, column in ((0, 65), (300, beside + 9), (511, beside + 511))
    )
    assert corner == list(OUTLINE)  # the position asked is framed in the window
    assert (least, most) == tuple(list(bytes.fromhex(code)) for code in (SHARES[0], SHARES[-1]))
    framed = (np.abs(picture[top : top + 512, :whole] - OUTLINE).sum(-1) < 60).nonzero()
    assert [(int(at.min()) // 4, -(-int(at.max()) // 4)) for at in framed] == [(64, 96), (96, 128)]


def test_the_same_map_is_the_same_file(image: Image, quality: QualityMap, tmp_path: Path):
    for name in ("a.png", "b.png"):
        save_heatmap(image, quality, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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


def test_a_folder_that_is_not_there_is_an_output_error(image: Image, quality: QualityMap, tmp_path: Path):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        save_heatmap(image, quality, tmp_path / "nowhere" / "map.png")


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
