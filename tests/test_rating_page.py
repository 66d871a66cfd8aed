"""The page of `saqm rate` in a real browser: by keyboard, with an undo, to a manifest that a network is taught with."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage, stats

from saqm.manifest import Manifest, read_manifest
from saqm.rating.journal import read_ratings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUALITIES = (1, 2, 3, 4, 5)  # of the five images: how much soft texture is in them, and how little fine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        # a container's superuser has no sandbox
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rated") / "images"
    root.mkdir()
    for quality in QUALITIES:
        share = (quality - 0.5) / 5
        soft, fine = (
            ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((96, 96)), sigma)
            for seed, sigma in ((quality, 2.5), (10 + quality, 0.5))
        )
        grey = 120 + 25 * (share * soft / soft.std() + (1 - share) * fine / fine.std())
        Pillow.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(root / f"quality{quality}.png")
    return root


@contextmanager
def rating(images: Path, out: Path, *options: str) -> Iterator[str]:
    """`saqm rate` while the block lasts: the address of its page; ended as a person would, with Ctrl-C."""
    command = [sys.executable, "-m", "saqm.cli", "rate", str(images), "--out", str(out), "--no-browser", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        said = ""
        try:
            while (address := re.search(r"http://\S+", said)) is None:
                line = running.stderr.readline()
                assert line, said
                said += line
            yield address[0]
        finally:
            running.send_signal(signal.SIGINT)
            printed, more = running.communicate(timeout=60)
        assert running.returncode == 0, said + more
        assert "5 images" in printed


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """The page, on which nothing may go wrong and which may ask nobody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((address, "blob:", "data:")) else wrong.append(asked.url)
    )
    page.goto(address)
    yield page
    page.close()
    assert wrong == []


def at(page: Page, place: int, total: int) -> None:
    """Wait until the image of this place is on the screen."""
    page.get_by_text(f"{place} of {total}", exact=True).wait_for()
    page.locator("#picture").wait_for(state="visible")


def quality_shown(page: Page, images: Path) -> int:
    """Which image is on the screen, by its pixels; the page itself does not know."""
    first = page.evaluate("""() => {
        const canvas = document.createElement('canvas'), shown = document.getElementById('picture');
        [canvas.width, canvas.height] = [shown.naturalWidth, shown.naturalHeight];
        const drawn = canvas.getContext('2d');
        drawn.drawImage(shown, 0, 0);
        return Array.from(drawn.getImageData(0, 0, 96, 1).data).filter((_, i) => i % 4 === 0);
    }""")
    for quality in QUALITIES:
        with Pillow.open(images / f"quality{quality}.png") as picture:
            if np.array_equal(np.asarray(picture)[0], first):
                return quality
    raise AssertionError("an image of no file")


def trained_srocc(manifest: Manifest) -> float:
    """A tiny network taught what the manifest says, and how it ranks the same images."""
    pytest.importorskip("torch", reason="no torch")
    from saqm.loop import LoopConfig
    from saqm.network import SAQM, Architecture
    from saqm.recipes import RECIPES
    from saqm.train import predict, read_material, train

    recipe = RECIPES["target-only"]
    tiny = Architecture(width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(16,), members=2)
    loop = LoopConfig(learning_rate=1e-2, schedule="one-cycle")
    teaching = replace(recipe.teaching, ladders=0.0, features="32", epochs=60, images_per_step=5, windows_per_image=9)
    recipe = replace(recipe, architecture=tiny, teaching=replace(teaching, loop=loop))
    material = read_material({"target": manifest}, recipe, seed=0)
    network = SAQM(tiny, seed=0)
    train(network, material.samples, material.ladders, recipe, seed=0)
    scores = [predict(network, sample.image, recipe.preparation) for sample in material.samples]  # type: ignore[arg-type]
    return float(stats.spearmanr(scores, [row.score for row in manifest.rows]).statistic)


def test_five_images_are_rated_by_keyboard_and_train_a_network(browser: Browser, images: Path, tmp_path: Path) -> None:
    out, total = tmp_path / "study.csv", 7  # two of the five come twice
    with rating(images, out, "--domain", "made") as address, opened(browser, address) as page:
        page.get_by_label("Your name").fill("Ada")
        page.keyboard.press("Enter")
        at(page, 1, total)
        page.keyboard.press("1" if quality_shown(page, images) != 1 else "2")  # a slip of the finger
        at(page, 2, total)
        page.keyboard.press("u")
        for place in (1, 2, 3):
            at(page, place, total)
            page.keyboard.press(str(quality_shown(page, images)))
        at(page, 4, total)
        page.keyboard.press("p")
        page.get_by_text("Kept: 3 of 7").wait_for()
        assert sum(row.score is not None for row in read_manifest(out).rows) == 3
    again = rating(images, out, "--domain", "made", "--rater", "ada")  # after the coffee
    with again as address, opened(browser, address) as page:
        at(page, 4, total)
        for _ in range(quality_shown(page, images)):  # arrows and Enter do the same as a digit
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        for place in (5, 6, 7):
            at(page, place, total)
            page.keyboard.press(str(quality_shown(page, images)))
        page.get_by_text("All 7 images are rated").wait_for()
    manifest = read_manifest(out)
    assert [row.score for row in manifest.rows] == list(QUALITIES)
    assert {row.domain for row in manifest.rows} == {"made"}
    ratings = read_ratings(tmp_path / "study.ratings.jsonl")
    assert len(ratings.repeats()["ada"]) == 2
    assert trained_srocc(manifest) > 0.8


def test_a_slider_says_nothing_until_it_is_moved(browser: Browser, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.csv"
    points = rating(images, out, "--rater", "ada", "--scale", "0", "100", "--repeats", "0")
    with points as address, opened(browser, address) as page:
        at(page, 1, 5)
        page.keyboard.press("Enter")
        page.get_by_text("Move the slider first").wait_for()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        at(page, 2, 5)
        assert page.locator("#confirm").is_disabled()  # the last score is no start for the next
    assert [given.score for given in read_ratings(tmp_path / "study.ratings.jsonl").by_reader["ada"]] == [47]


def test_zoom_shows_whole_pixels_and_can_be_moved(browser: Browser, images: Path, tmp_path: Path) -> None:
    with rating(images, tmp_path / "study.csv", "--rater", "ada") as address, opened(browser, address) as page:
        at(page, 1, 7)
        fitting = page.locator("#picture").bounding_box()
        page.keyboard.press("z")
        enlarged = page.locator("#picture").bounding_box()
        assert fitting
        assert enlarged
        assert fitting["width"] % 96 == 0
        assert enlarged["width"] == 2 * fitting["width"]
        page.keyboard.press("Shift+ArrowDown")
        moved = page.locator("#picture").bounding_box()
        assert moved
        assert moved["y"] == enlarged["y"] - 60
        page.keyboard.press("z")
        assert page.locator("#picture").bounding_box() == fitting


def test_a_page_whose_program_has_stopped_says_so(browser: Browser, images: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    with rating(images, tmp_path / "study.csv", "--rater", "ada") as address:
        page.goto(address)
        at(page, 1, 7)
    page.keyboard.press("3")
    page.get_by_text("has stopped. Every score you gave is kept").wait_for()
    assert page.locator("#status").inner_text() == "1 of 7"
    page.close()
