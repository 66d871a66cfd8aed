"""The page of `saqm serve` in a real browser, before the real service: pydicom's own files are dropped and judged.

With SAQM_SCREENSHOTS=docs/images the pictures of docs/page.md are taken anew.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image as pillow
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames

from saqm.findings import CAUSES
from saqm.image import read_image
from saqm.outputs.heatmap import RAMP
from saqm.scorer import Score, load_scorer, score

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

STATIC = Path(__file__).parents[2] / "src" / "saqm" / "service" / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CINE, CT, J2K, PLAN = "examples_ybr_color.dcm", "CT_small.dcm", "693_J2KI.dcm", "rtplan.dcm"
FEW = 4  # frames of the cine that is made short
VIEW = {"width": 1280, "height": 800}
TIMEOUT = 15_000  # milliseconds
NARROW = {"width": 390, "height": 780}
TEXT, LARGE_TEXT, EDGES = 4.5, 3.0, 3.0  # WCAG 2.2, AA: 1.4.3 and 1.4.11


def sample(name: str) -> Path:
    """A file that ships with pydicom."""
    return Path(str(get_testdata_file(name, download=False)))


# What needs no browser


def test_the_page_asks_nobody_else_and_keeps_to_its_policy() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        outside = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert outside == set(), file.name
        assert not re.search(r"\binnerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]


def test_causes_and_colours_are_those_of_the_library() -> None:
    script = (STATIC / "causes.js").read_text(encoding="utf-8")
    table = script[script.index("{") : script.rindex("}") + 1]
    plain = re.sub(r",(\s*})", r"\1", re.sub(r"^(\s+)(measured|advice):", r'\1"\2":', table, flags=re.MULTILINE))
    assert json.loads(plain) == {
        name: {"measured": cause.measured, "advice": cause.advice} for name, cause in CAUSES.items()
    }
    ramp = re.search(r"RAMP = (\[.*?\]);", (STATIC / "pictures.js").read_text(encoding="utf-8"))
    assert ramp
    assert tuple(json.loads(ramp[1])) == RAMP


# In the browser


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
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`saqm serve` on a free port, ended as a person would."""
    for extra in ("fastapi", "uvicorn", "highdicom"):
        pytest.importorskip(extra, reason=f"no {extra}: pip install 'saqm[serve]'")
    command = [sys.executable, "-m", "saqm.cli", "serve", "--port", "0"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as said, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as running:
        while (found := re.search(r"serves on (http://\S+?/)", log.read_text())) is None:
            assert running.poll() is None, log.read_text()
            time.sleep(0.05)
        try:
            yield found[1]
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
    assert running.returncode == 0, log.read_text()


@contextmanager
def opened(browser: Browser, address: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """The page, on which nothing may go wrong but what is expected, and which may ask nobody else."""
    page = browser.new_page(**{"viewport": VIEW, **options})
    page.set_default_timeout(TIMEOUT)
    wrong: list[str] = []

    def complained(text: str) -> None:
        if not any(re.search(each, text) for each in expected):
            wrong.append(text)

    page.on("console", lambda message: complained(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complained(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((address, "blob:", "data:")) else wrong.append(asked.url)
    )
    page.goto(address)
    yield page
    page.close()
    assert wrong == []


def drop(page: Page, *paths: Path) -> None:
    """Drag files or folders from the desktop onto the page, as the browser gets them from the system."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    session.detach()


def settle(page: Page) -> None:
    """Wait until nothing is sent or scored any more, and the picture is there."""
    page.locator(".drop").first.wait_for()
    for bar in page.locator(".drop progress").all():
        bar.wait_for(state="hidden", timeout=60_000)


def ready(page: Page) -> None:
    """Wait until every pane shows what its caption says, with its map."""
    for pane in page.locator(".pane").all():
        pane.and_(page.locator("[aria-busy=false]")).wait_for()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(page: Page, pane: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What a pane's canvas shows, (H, W, 4)."""
    data = page.locator(".stage canvas").nth(pane).evaluate("canvas => canvas.toDataURL()")
    with pillow.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))


def centred(shown: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    """The middle of what is shown, where a picture at one pixel each stands."""
    top, left = ((room - side + 1) // 2 for room, side in zip(shown.shape, (height, width), strict=False))
    return shown[top : top + height, left : left + width]


def number(locator: Locator) -> float:
    return float(locator.input_value())


@pytest.fixture(scope="module")
def cine_scores() -> list[Score]:
    scorer = load_scorer(threads=1)
    return [score(read_image(sample(CINE), frame), scorer) for frame in (0, 9, 29)]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of the cine: where thirty would only take time."""
    dataset = dcmread(sample(CINE))
    frames = [*generate_frames(dataset.PixelData, number_of_frames=30)][:FEW]
    dataset.PixelData, dataset.NumberOfFrames = encapsulate(frames), FEW
    path = tmp_path_factory.mktemp("short") / "short.dcm"
    dataset.save_as(path)
    return path


def shown_score(page: Page) -> float:
    found = re.match(r"([\d.]+) of 100", page.locator("#result .big").inner_text())
    assert found
    return float(found[1])


def screenshot(page: Page, name: str) -> None:
    """For the documentation, where it is asked for."""
    if folder := os.environ.get("SAQM_SCREENSHOTS"):
        page.mouse.move(5, 5)
        page.evaluate("() => { scrollTo(0, 0); document.activeElement.blur(); }")
        page.screenshot(path=Path(folder) / f"page_{name}.png")


@pytest.mark.slow
def test_a_cine_is_dropped_looked_through_judged_and_reported(
    browser: Browser, address: str, cine_scores: list[Score], tmp_path: Path
) -> None:
    first, tenth, last = (each.score for each in cine_scores)
    assert None not in (first, tenth, last)
    with opened(browser, address) as page:
        drop(page, sample(CINE))
        settle(page)
        page.get_by_text("Frame 1 of 30", exact=True).wait_for()
        assert shown_score(page) == pytest.approx(first, abs=0.051)
        low, high = cine_scores[0].interval or (0, 0)
        assert f"Interval {low:.1f} – {high:.1f}" in page.locator("#result .interval").inner_text()
        assert "not guaranteed" in page.locator("#result .interval").inner_text()
        alarm = page.locator("#result .alarm").inner_text()
        assert "The score is no ground for a verdict here" in alarm
        assert "modality US (trained on CT)" in alarm
        said = page.locator("#live").inner_text()
        assert said.startswith(f"{CINE}: score {first:.1f} of 100, interval {low:.1f} to {high:.1f}.")
        assert "no ground for a verdict" in said

        for _ in range(9):
            page.keyboard.press("ArrowRight")
        page.get_by_text("Frame 10 of 30", exact=True).wait_for()
        assert shown_score(page) == pytest.approx(tenth, abs=0.051)
        assert page.locator("#frame").get_attribute("aria-valuetext") == f"Frame 10 of 30, score {tenth:.1f}"
        page.locator("#frame").fill("30")
        page.get_by_text("Frame 30 of 30", exact=True).wait_for()
        assert shown_score(page) == pytest.approx(last, abs=0.051)
        page.locator("#frame").press("ArrowLeft")  # the slider's own key
        page.get_by_text("Frame 29 of 30", exact=True).wait_for()
        page.locator("#panes .pane").focus()
        page.keyboard.press("Home")
        page.keyboard.press("1")
        page.get_by_text("Frame 1 of 30", exact=True).wait_for()
        ready(page)
        truth = np.rint(255 * read_image(sample(CINE), 0).pixels)
        assert np.array_equal(centred(pixels(page), 240, 320)[..., :3], truth)

        page.keyboard.press(" ")  # runs, and goes on beyond the last frame
        page.get_by_text(re.compile(r"^Frame ([4-9]|[12]\d|30) of 30$")).wait_for()  # a busy machine may skip some
        page.keyboard.press(" ")
        assert page.locator("#play").inner_text() == "Play"
        page.locator("#lowest").click()
        lowest = re.search(r"frame (\d+), ([\d.]+)", page.locator("#lowest").inner_text())
        assert lowest
        page.get_by_text(f"Frame {lowest[1]} of 30", exact=True).wait_for()
        assert shown_score(page) == float(lowest[2])
        page.keyboard.press("r")
        page.keyboard.press("m")
        page.locator(".ramp").wait_for()
        ready(page)
        screenshot(page, "cine")

        saved = {}
        for button, suffix in (("JSON", ".saqm.json"), ("TSV", ".saqm.tsv"), ("DICOM SR", ".sr.dcm")):
            with page.expect_download() as coming:
                page.get_by_role("button", name=button, exact=True).click()
            assert coming.value.suggested_filename == CINE.replace(".dcm", suffix)
            saved[button] = tmp_path / coming.value.suggested_filename
            coming.value.save_as(saved[button])
    from saqm.outputs.dicom import read_report
    from saqm.outputs.table import read_records

    records = json.loads(saved["JSON"].read_text(encoding="utf-8"))["records"]
    assert [record["frame"] for record in records] == list(range(30))
    reported = read_report(saved["DICOM SR"])
    assert [each.score for each in reported] == [record["score"] for record in records]
    assert [each.frame for each in reported] == list(range(30))
    assert [row["score"] for row in read_records(saved["TSV"])] == pytest.approx(
        [record["score"] for record in records]
    )
    assert [records[frame]["score"] for frame in (0, 9, 29)] == [first, tenth, last]


@pytest.mark.slow
def test_the_window_is_dragged_typed_and_reset(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.set_input_files("#files", sample(CT))
        settle(page)
        page.locator("#result .big").wait_for()
        ready(page)  # a picture that comes later is fitted to the stage
        page.keyboard.press("1")
        ready(page)
        judged = np.rint(255 * read_image(sample(CT)).pixels)
        as_judged = centred(pixels(page), 128, 128)[..., 0]
        assert np.array_equal(as_judged, judged)
        assert (number(page.locator("#centre")), number(page.locator("#width"))) == (40, 400)

        box = page.locator(".stage").bounding_box()
        assert box
        x, y = box["x"] + 300, box["y"] + 300
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 100, y - 40, steps=4)
        page.mouse.up()
        page.get_by_text("Window changed for viewing only").wait_for()
        assert (number(page.locator("#centre")), number(page.locator("#width"))) == (0, 500)
        assert page.locator(".unit").inner_text() == "HU"
        values = read_image(sample(CT), window=(0.5, 501)).pixels * 255  # DICOM's LINEAR: half a unit and one off
        ready(page)
        assert np.abs(centred(pixels(page), 128, 128)[..., 0] - values).max() <= 1
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert re.fullmatch(r"column \d+, row \d+ · -?[\d.]+ HU", page.locator(".readout").inner_text())

        page.mouse.dblclick(x, y)
        assert page.locator(".viewing").is_hidden()
        assert (number(page.locator("#centre")), number(page.locator("#width"))) == (40, 400)
        page.keyboard.press("1")
        ready(page)
        assert np.array_equal(centred(pixels(page), 128, 128)[..., 0], judged)

        page.locator("#centre").fill("300")
        page.locator("#centre").press("Enter")
        ready(page)
        assert centred(pixels(page), 128, 128)[..., 0].mean() < judged.mean() - 20  # a higher centre is darker


@pytest.mark.slow
def test_the_map_lies_over_the_picture(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.set_input_files("#files", sample(CT))
        settle(page)
        page.locator("#result .big").wait_for()
        ready(page)  # a picture that comes later is fitted to the stage
        page.keyboard.press("1")
        ready(page)
        before = pixels(page)
        assert np.ptp(before[..., :3].astype(int), axis=-1).max() == 0  # grey
        page.locator("#map").click()
        page.locator(".ramp").wait_for()
        ready(page)
        page.locator("#opacity").fill("100")
        ready(page)
        shown = centred(pixels(page), 128, 128)[..., :3]
        from saqm.outputs.heatmap import colour
        from saqm.scorer import score_and_map

        quality = score_and_map(read_image(sample(CT)), load_scorer(threads=1))[1].score_HW  # type: ignore[arg-type]
        judged = ~np.isnan(quality)
        assert np.abs(shown[judged] - colour(quality[judged])).max() <= 2
        page.locator("#opacity").fill("0")
        ready(page)
        assert np.array_equal(pixels(page), before)


@pytest.mark.slow
def test_two_are_compared_with_linked_zoom_window_and_frame(
    browser: Browser, address: str, short: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.dcm"
    shutil.copy(short, again)
    with opened(browser, address) as page:
        drop(page, short, again)
        settle(page)
        page.get_by_text("Frame 1 of 4", exact=True).wait_for()
        page.keyboard.press("c")
        panes = page.locator(".pane")
        assert panes.count() == 2
        page.locator(".pane.active").get_by_text(short.name).wait_for()  # files stand in natural order
        page.keyboard.press("ArrowRight")
        for pane in panes.all():
            pane.get_by_text("frame 2 of 4", exact=True).wait_for()
        ready(page)
        page.keyboard.press("+")
        page.keyboard.press("]")
        ready(page)
        assert np.array_equal(pixels(page, 0), pixels(page, 1))
        screenshot(page, "compare")
        page.locator("#link").click()
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        panes.nth(1).get_by_text("frame 3 of 4", exact=True).wait_for()
        assert panes.nth(0).get_by_text("frame 2 of 4", exact=True).is_visible()
        ready(page)
        assert not np.array_equal(pixels(page, 0), pixels(page, 1))
        page.keyboard.press("c")
        assert panes.count() == 1


@pytest.mark.slow
def test_a_folder_is_taken_whole_and_errors_stand_beside_their_files(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(sample(CT), folder / "slice2.dcm")
    shutil.copy(sample(CT), folder / "slice10.dcm")
    shutil.copy(sample(J2K), folder / "deep" / "slice2.dcm")
    shutil.copy(sample(PLAN), folder / PLAN)
    (folder / ".hidden").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    with opened(browser, address) as page:
        drop(page, folder)
        page.get_by_text("1 hidden file left out").wait_for()
        settle(page)
        rows = {row.locator(".file-name").inner_text(): row.inner_text() for row in page.locator(".file").all()}
        assert list(rows) == ["slice2.dcm", "notes.txt", PLAN, "study_slice2.dcm", "slice10.dcm"]
        assert "a radiotherapy plan" in rows[PLAN]
        assert "not scored" in rows["notes.txt"]
        assert str(tmp_path) not in json.dumps(rows)
        assert page.locator("#live").inner_text() == "5 files: scored. 2 files without a score."
        page.locator(".file").filter(has_text=PLAN).click()
        assert "not scored" in page.locator("#result .big").inner_text()
        page.get_by_text("there is no picture").wait_for()
        page.locator(".file").filter(has_text="slice2.dcm").first.click()
        causes = page.locator(".causes").inner_text()
        assert "Over smoothing" in causes
        assert "below the limit of 4" in causes
        assert "lower the strength of the denoiser" in causes
        ready(page)
        screenshot(page, "causes")


@pytest.mark.slow
def test_thresholds_give_a_verdict_with_its_reasons(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.keyboard.press("s")
        assert page.locator("[name=fail_below]").is_disabled()  # of no use alone
        page.locator("[name=pass_at]").fill("60")
        page.locator("[name=fail_below]").fill("40")
        screenshot(page, "settings")
        page.keyboard.press("Escape")
        page.set_input_files("#files", sample(CT))
        settle(page)
        assert page.locator("#result .tag").inner_text() == "? review"
        assert (
            "is no ground for a verdict"
            in page.locator("#result").get_by_text("unlike the images that the model knows").first.inner_text()
        )
        page.keyboard.press("s")
        page.locator("[name=strict]").check()
        page.locator("#again").click()
        settle(page)
        assert page.locator(".file").count() == 2
        assert "not scored" in page.locator("#result .big").inner_text()


@pytest.mark.slow
def test_a_job_is_cancelled_and_forgotten_by_the_service(browser: Browser, address: str, tmp_path: Path) -> None:
    for number_ in range(12):
        shutil.copy(sample(CINE), tmp_path / f"{number_}.dcm")
    with opened(browser, address) as page:
        with page.expect_response(lambda answer: answer.request.method == "POST") as started:
            drop(page, tmp_path)
        job = started.value.json()["id"]
        page.get_by_text(re.compile(r"scoring, \d+ of 12")).wait_for()
        with page.expect_response(lambda answer: answer.request.method == "DELETE"):
            page.get_by_role("button", name="Cancel").click()
        page.get_by_text("12 files · cancelled").wait_for()
        assert page.locator(".file").last.get_by_text("cancelled").is_visible()
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{address}v1/jobs/{job}")


@pytest.mark.slow
def test_leaving_the_page_deletes_what_was_sent(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        with page.expect_response(lambda answer: answer.request.method == "POST") as started:
            page.set_input_files("#files", sample(CT))
        job = f"{address}v1/jobs/{started.value.json()['id']}"
        settle(page)
        with urlopen(job) as answer:
            assert json.load(answer)["state"] == "done"
        page.goto(address)
        page.wait_for_timeout(500)
        with pytest.raises(HTTPError, match="404"):
            urlopen(job)


def problem(route: Route, status: int, title: str, detail: str, **headers: str) -> None:
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
    route.fulfill(status=status, body=body, content_type="application/problem+json", headers=headers)


@pytest.mark.slow
def test_a_key_is_asked_for_kept_and_asked_again_where_it_is_refused(browser: Browser, address: str) -> None:
    seen: list[str | None] = []

    def guard(route: Route) -> None:
        key = route.request.headers.get("authorization")
        seen.append(key)
        if key == "Bearer right":
            route.continue_()
        else:
            problem(route, 401, "Unauthorized", "a key is needed", **{"WWW-Authenticate": "Bearer"})

    with opened(browser, address, expected=("401",)) as page:
        page.route("**/v1/jobs**", guard)
        page.set_input_files("#files", sample(CT))
        page.get_by_text("This service asks for a key").wait_for()
        page.locator("#key-field").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The key was refused").wait_for()
        page.locator("#key-field").fill("right")
        page.keyboard.press("Enter")
        settle(page)
        page.locator("#result .big").wait_for()
        assert seen[:3] == [None, "Bearer wrong", "Bearer right"]
        assert set(seen[2:]) == {"Bearer right"}
        assert page.evaluate("() => [localStorage.length, sessionStorage.getItem('saqm.key')]") == [0, "right"]


@pytest.mark.slow
def test_a_busy_service_is_asked_again_when_it_said_and_no_sooner(browser: Browser, address: str) -> None:
    asked: list[float] = []

    def busy(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) < 3:
            problem(route, 429, "Too Many Requests", "64 requests are at work", **{"Retry-After": "1"})
        else:
            route.continue_()

    with opened(browser, address, expected=("429",)) as page:
        page.route("**/v1/jobs?**", busy)
        page.set_input_files("#files", sample(CT))
        page.get_by_text("64 requests are at work Trying again in 1 s.").wait_for()
        settle(page)
        page.locator("#result .big").wait_for()
    assert len(asked) == 3
    assert np.diff(asked).min() >= 0.95


@pytest.mark.slow
def test_refusals_are_told_beside_the_file(browser: Browser, address: str, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(bytes(300_000))
    limits = {"max_body_bytes": 200_000, "max_files": 2, "max_pixels": 1, "keys": False, "models": ["saqm-ct"]}
    with opened(browser, address, expected=("422", "ERR_FAILED")) as page:
        page.route("**/v1/limits", lambda route: route.fulfill(json=limits))
        page.reload()
        page.set_input_files("#files", [sample(CT), large, sample(PLAN), sample("MR_small.dcm")])
        settle(page)
        page.get_by_text("larger than this service takes (0.3 MB of 0.2 MB)").wait_for()
        assert page.locator(".drop").count() == 2  # two files at a time
        page.get_by_text("a radiotherapy plan").first.wait_for()
        page.route("**/v1/jobs?**", lambda route: problem(route, 422, "Unprocessable", "pass_at: a number is wanted"))
        page.set_input_files("#files", sample(CT))
        page.get_by_text("Unprocessable: pass_at: a number is wanted").first.wait_for()
        page.unroute("**/v1/jobs?**")
        page.route("**/v1/jobs?**", lambda route: route.abort())
        page.set_input_files("#files", sample(CT))
        page.get_by_text("The service does not answer").first.wait_for()


@pytest.mark.slow
def test_a_picture_is_pasted(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.evaluate("""() => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [96, 96];
            const drawn = canvas.getContext('2d'), made = drawn.createImageData(96, 96);
            made.data.forEach((_, i) => { made.data[i] = i % 4 === 3 ? 255 : (i * 7919) % 251; });
            drawn.putImageData(made, 0, 0);
            canvas.toBlob((blob) => {
                const data = new DataTransfer();
                data.items.add(new File([blob], 'image.png', { type: 'image/png' }));
                document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
            });
        }""")
        settle(page)
        page.locator("#result .big").wait_for()
        assert page.locator(".file-name").inner_text() == "image.png"
        page.get_by_text("none of it is DICOM").wait_for()


# For everybody

NAMELESS = """() => {
    const wanted = 'button, input, select, canvas, img, svg[role=img], dialog, #viewer, #panel, #session';
    const named = (each) => each.getAttribute('aria-label') || each.getAttribute('aria-labelledby')
        || each.textContent.trim() || each.labels?.length;
    return [...document.querySelectorAll(wanted)].filter((each) => !named(each)).map((each) => each.outerHTML);
}"""

# Text against what is behind it, and edges of controls: { text, ratio, wanted } of all that is shown.
CONTRASTS = """({ text, large, edges }) => {
    const parse = (colour) => {
        const found = colour.match(/^rgba?\\(([^)]+)\\)$/);
        if (!found) throw new Error(colour);
        const [r, g, b, a = 1] = found[1].split(/[ ,/]+/).map(Number);
        return [r, g, b, a];
    };
    const over = (top, under) => [...[0, 1, 2].map((k) => top[k] * top[3] + under[k] * (1 - top[3])), 1];
    const behind = (node) => {
        const layers = [];
        for (let each = node; each; each = each.parentElement) layers.unshift(getComputedStyle(each).backgroundColor);
        return layers.map(parse).reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
    };
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const shares = [0.2126, 0.7152, 0.0722];
    const light = (colour) => shares.reduce((sum, share, k) => sum + share * linear(colour[k] / 255), 0);
    const ratio = (a, b) => {
        const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const edged = 'button:not(.file, .link), select, input:not([type=range], [type=checkbox], [type=file])';
    const found = [];
    for (const node of document.querySelectorAll('body *')) {
        if (!node.checkVisibility({ visibilityProperty: true }) || node.closest(':disabled, .unseen, .skip')) continue;
        const style = getComputedStyle(node), ground = behind(node);
        if (node.matches(edged)) {
            const around = behind(node.parentElement), edge = over(parse(style.borderTopColor), around);
            const best = Math.max(ratio(edge, around), ratio(ground, around));
            found.push({ text: `edge of ${node.id || node.textContent}`, ratio: best, wanted: edges });
        }
        const own = [...node.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data.trim()).join('');
        if (!own) continue;
        const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const ink = over(parse(node.namespaceURI.endsWith('svg') ? style.fill : style.color), ground);
        found.push({ text: own, ratio: ratio(ink, ground), wanted: isLarge ? large : text });
    }
    return found;
}"""

# All that can be used, numbered; and which number has the focus, and whether one sees it.
CONTROLS = """() => [...document.querySelectorAll('button, input, select, summary, .pane')]
    .filter((each) => each.checkVisibility() && !each.disabled && !each.closest('dialog'))
    .map((each, k) => { each.dataset.k = k; return String(k); })"""
FOCUSED = """() => {
    const at = document.activeElement, style = getComputedStyle(at);
    return [at.dataset.k ?? null, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read(browser: Browser, address: str, short: Path, scheme: str) -> None:
    with opened(browser, address, color_scheme=scheme) as page:

        def check(least: int) -> None:
            found = page.evaluate(CONTRASTS, {"text": TEXT, "large": LARGE_TEXT, "edges": EDGES})
            assert len(found) >= least
            assert [each for each in found if each["ratio"] < each["wanted"]] == []

        check(10)
        page.keyboard.press("s")
        page.locator("[name=pass_at]").fill("60")
        check(20)
        page.keyboard.press("Escape")
        page.set_input_files("#files", [sample(J2K), sample(PLAN), short])
        settle(page)
        page.keyboard.press("m")
        ready(page)
        if scheme == "dark":
            screenshot(page, "dark")
        for details in page.locator("#result summary").all():
            details.click()
        check(40)
        page.locator(".file").filter(has_text=short.name).click()
        page.get_by_text("Frame 1 of 4", exact=True).wait_for()
        check(40)
        page.keyboard.press("c")
        check(40)
        page.locator(".file").filter(has_text=PLAN).click()
        check(30)
        page.keyboard.press("?")
        check(40)
        ground = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) > 127) == (scheme == "light")


@pytest.mark.slow
def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Browser, address: str, short: Path) -> None:
    with opened(browser, address) as page:
        page.set_input_files("#files", [short, sample(CT)])
        settle(page)
        page.get_by_text("Frame", exact=False).first.wait_for()
        page.locator(".file").filter(has_text=short.name).click()
        page.keyboard.press("m")
        assert page.evaluate(NAMELESS) == []
        wanted = page.evaluate(CONTROLS)
        page.evaluate("() => document.activeElement.blur()")
        reached, unseen = set(), []
        for _ in range(len(wanted) + 15):
            page.keyboard.press("Tab")
            k, outline = page.evaluate(FOCUSED)
            if k is not None:
                reached.add(k)
                unseen += [] if outline else [k]
        assert set(wanted) == reached
        assert unseen == []
        page.locator(".pane").focus()
        page.keyboard.press("?")
        assert page.get_by_role("dialog").get_by_text("Keyboard and mouse").is_visible()
        page.locator("#letters").uncheck()  # WCAG 2.1.4: single keys can be turned off
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        assert page.locator(".pane").count() == 1
        page.get_by_role("button", name="Forget all").click()
        page.get_by_text("Drop a picture here").wait_for()
        assert page.locator(".file").count() == 0


@pytest.mark.slow
def test_a_phone_is_wide_enough_and_nothing_moves_for_those_who_asked(
    browser: Browser, address: str, short: Path
) -> None:
    with opened(browser, address, viewport=NARROW, reduced_motion="reduce", has_touch=True) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        page.set_input_files("#files", short)
        settle(page)
        page.get_by_text("Frame 1 of 4", exact=True).wait_for()
        page.locator("#map").tap()
        page.locator(".ramp").wait_for()
        ready(page)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("() => document.getAnimations().length") == 0
        assert page.locator("#play").inner_text() == "Play"  # nothing runs by itself
        stage = page.locator(".stage").bounding_box()
        assert stage
        assert stage["width"] == NARROW["width"]
        screenshot(page, "narrow")


@pytest.mark.slow
def test_a_picture_never_stands_under_the_name_of_another(browser: Browser, address: str) -> None:
    held: list[Route] = []
    with opened(browser, address) as page:
        page.set_input_files("#files", [sample(CT), sample(J2K)])
        settle(page)
        ready(page)
        assert pixels(page).any()
        page.route("**/picture", lambda route: held.append(route))  # noqa: PLW0108 - it takes no built-in
        page.keyboard.press("ArrowDown")
        page.get_by_text("Reading …").wait_for()
        assert not pixels(page).any()
        held[0].continue_()
        ready(page)
        assert pixels(page).any()


@pytest.mark.slow
def test_a_window_of_a_colour_picture_is_of_its_levels(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.set_input_files("#files", sample("SC_rgb_small_odd.dcm"))
        settle(page)
        page.locator("#result .big").wait_for()
        ready(page)
        assert page.locator(".unit").inner_text() == "levels"
        before = pixels(page).astype(int)
        page.locator("#centre").fill("60")
        page.locator("#centre").press("Enter")
        ready(page)
        assert pixels(page).astype(int).sum() > before.sum()  # a lower centre is brighter
