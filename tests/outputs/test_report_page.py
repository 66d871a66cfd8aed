"""The report in a browser: headless Chromium opens real scores, sorts, filters, opens an image, exports and prints.

With SAQM_SCREENSHOTS=docs/images the pictures of docs/report.md are taken anew.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

import saqm.models
from saqm.batch import Settings, score_many
from saqm.image import read_image
from saqm.outputs.report import with_acquisition, write_report
from saqm.outputs.table import read_records, save_records
from saqm.scorer import ModelScorer, Score, load_scorer, score

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

TEST_FILES = ("CT_small.dcm", "693_J2KI.dcm", "image_dfl.dcm", "JPEG2000.dcm", "SC_rgb_small_odd.dcm")
OPINIONS = (1.0, 5.0)  # the scale of the out-of-fold predictions: the readers' own
VIEW = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return load_scorer(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pydicom's files lie; scored from there, so that paths are short and say nothing of this machine."""
    made = tmp_path_factory.mktemp("scored")
    (made / "incoming").mkdir()
    for name in TEST_FILES:
        shutil.copy(str(get_testdata_file(name, download=False)), made / "incoming" / name)
    return made


@pytest.fixture(scope="module")
def records(scorer: ModelScorer, folder: Path) -> list[dict[str, object]]:
    """More than 300 real scores: what the shipped model gave images of folds it had not seen, and pydicom's files.

    Of the former there are no files here, and their days and devices are made up: one device does worse in the end.
    """
    table = Path(next(iter(saqm.models.__path__))) / "saqm-ct.out_of_fold.csv"
    low, high = OPINIONS
    rows = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            value = 100 * (float(row["prediction"]) - low) / (high - low)
            told = Score(
                path=f"study/{row['path']}", sha256=row["sha256"], modality="CT", status="scored",
                score=min(max(value, 0.0), 100.0), score_raw=float(row["prediction"]), model=scorer.model,
            )  # fmt: skip
            rows.append(told.to_record())
    for device in "AB":
        for number, row in enumerate(rows["AB".index(device) :: 2]):
            late = device == "B" and float(str(row["score"])) < 50
            day = 23 + number % 6 if late else 1 + number % 22
            row |= {"device": f"made-up scanner {device}", "acquired": f"1997-06-{day:02}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scored = score_many([f"incoming/{name}" for name in TEST_FILES], Settings())
        return [*rows, *map(dict, with_acquisition(each.to_record() for each in scored))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        # --no-sandbox is needed where the tests run as the superuser, for instance in a container
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Watched:
    """A page that fails where it complains, or asks anybody for anything but its own file."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(viewport=VIEW, **options)
        self.complaints: list[str] = []
        self.address = file.resolve().as_uri()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(self.address)
        assert self.complaints == []
        self.page.wait_for_selector("#pane .rows .row, #image:not([hidden])")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"asked for {request.url}")


@pytest.fixture(scope="module")
def report(records: list[dict[str, object]], scorer: ModelScorer, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_report(records, "report.html", title="CT, spring", pictures=400, scorer=scorer)
    return folder / "report.html"


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Page]:
    watched = Watched(browser, report)
    yield watched.page
    watched.page.close()
    assert watched.complaints == []


def shot(page: Page, name: str, **options: Any) -> None:
    """A screenshot, kept where SAQM_SCREENSHOTS says; taken in any case."""
    folder = os.environ.get("SAQM_SCREENSHOTS")
    picture = page.screenshot(**options)
    assert len(picture) > 10_000
    if folder is not None:
        with pillow.open(io.BytesIO(picture)) as whole:
            whole.convert("RGB").save(Path(folder) / f"{name}.png", optimize=True)


def shown_names(page: Page) -> list[str]:
    return page.locator("#pane .rows .file > span:first-child").all_inner_texts()


def shown_scores(page: Page) -> list[float]:
    return [float(text) for text in page.locator("#pane .rows .cell-value b").all_inner_texts()]


def count(page: Page) -> str:
    return page.locator("#count").inner_text()


def test_the_worst_come_first_and_a_click_on_a_heading_sorts(
    opened: Page, records: list[dict[str, Any]], report: Path
) -> None:
    assert opened.title() == "CT, spring"
    assert count(opened) == f"{len(records)} images"
    worst = sorted(row["score"] for row in records if row["score"] is not None)
    first = shown_scores(opened)
    assert first == [round(value, 1) for value in worst[: len(first)]]
    heading = opened.get_by_role("columnheader", name="Score")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert shown_scores(opened)[0] == round(worst[-1], 1)
    opened.get_by_role("columnheader", name="Image").get_by_role("button").click()
    paths = [each.get_attribute("title") or "" for each in opened.locator("#pane .rows .file").all()]
    assert paths == sorted((str(row["path"]) for row in records), key=str.lower)[: len(paths)]
    assert report.stat().st_size < 5e6


def test_search_and_filters_narrow_the_selection(opened: Page) -> None:
    opened.fill("#search", "brain set04")
    assert count(opened).endswith("of 313 images")
    assert shown_names(opened)
    assert all("brain_set04" in name for name in shown_names(opened))
    opened.get_by_role("button", name="Clear filters").click()
    assert count(opened) == "313 images"
    opened.get_by_label("Type").select_option("NM")
    assert shown_names(opened) == ["JPEG2000.dcm"]
    opened.get_by_label("Type").select_option("")
    opened.get_by_label("Highest score").fill("20")
    assert all(value <= 20 for value in shown_scores(opened))
    opened.get_by_role("button", name="Clear filters").click()
    opened.get_by_label("First day").fill("1997-06-20")
    assert 0 < int(count(opened).split()[0]) < 100
    opened.get_by_role("button", name="Clear filters").click()
    opened.fill("#search", "no such image")
    assert count(opened) == "0 of 313 images"
    assert opened.locator("#pane .rows .row").count() == 0


def test_plot_and_table_point_at_each_other(opened: Page) -> None:
    row = opened.locator("#pane .rows .row").nth(3)
    name = row.locator(".file > span").first.inner_text()
    row.hover()
    assert opened.locator("#plots circle.ring[visibility=visible]").count() >= 1
    assert opened.locator("#plots figcaption").nth(1).inner_text().startswith(f"{name}: ")
    box = opened.locator("#plots svg").nth(1).bounding_box()
    assert box
    opened.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 80)
    hovered = opened.locator("#pane .row.hovered .file > span:first-child")
    assert hovered.count() == 1
    assert opened.locator("#plots figcaption").nth(1).inner_text().startswith(f"{hovered.inner_text()}: ")


def test_dragging_over_the_distribution_chooses_its_scores(opened: Page) -> None:
    box = opened.locator("#plots svg").first.bounding_box()
    assert box
    left, width = box["x"] + 34, box["width"] - 44
    opened.mouse.move(left + 0.41 * width, box["y"] + 60)
    opened.mouse.down()
    opened.mouse.move(left + 0.58 * width, box["y"] + 60)
    opened.mouse.up()
    values = shown_scores(opened)
    assert values
    assert all(40 <= value <= 60 for value in values)
    assert opened.get_by_label("Lowest score").input_value() == "40"
    assert "of 313 images" in count(opened)


def test_an_image_has_its_page_with_picture_map_and_what_was_read(opened: Page) -> None:
    opened.fill("#search", "ct_small")
    opened.locator("#pane .rows .row").first.click()
    image = opened.locator("#image")
    text = image.inner_text()
    assert opened.url.endswith("#image=309")
    for said in (
        "CT_small.dcm",
        "rescale",
        "window",
        "center 40",
        "GE MEDICAL SYSTEMS RHAPSODE",
        "1997-04-30",
        "saqm-ct",
    ):
        assert said in text
    pictures = image.locator(".stack img")
    assert pictures.count() == 2
    for each in pictures.all():
        assert each.evaluate("(picture) => picture.decode().then(() => picture.naturalWidth)") == 128
    image.get_by_label("Opacity of the map").fill("20")
    assert pictures.nth(1).evaluate("(each) => each.style.opacity") == "0.2"
    image.get_by_role("button", name="Copy").click()
    image.get_by_role("button", name="Copied").or_(image.get_by_role("button", name="Selected")).wait_for()
    opened.keyboard.press("Escape")
    image.wait_for(state="hidden")
    assert count(opened) == "1 of 313 images"  # as it was left


def test_an_address_leads_to_its_image_and_says_what_is_not_there(browser: Browser, report: Path) -> None:
    watched = Watched(browser, report)
    image = watched.page.locator("#image")
    watched.page.goto(f"{watched.address}#image=1")
    image.get_by_role("heading", name="abdomen_set01_LDCT.png").wait_for()
    assert "No picture: no such file." in image.inner_text()
    watched.page.goto(f"{watched.address}#image=313")
    image.get_by_role("heading", name="SC_rgb_small_odd.dcm").wait_for()
    assert "not scored" in image.inner_text()
    assert "smaller than one 32x32 window" in image.inner_text()
    watched.page.goto(f"{watched.address}#image=9999")
    watched.page.locator("#overview").wait_for()
    assert watched.complaints == []


def test_everything_can_be_done_from_the_keyboard(opened: Page) -> None:
    opened.keyboard.press("/")
    opened.keyboard.type("abdomen_set03")
    opened.keyboard.press("Enter")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("j")
    name = opened.locator("#pane [aria-selected=true] .file > span").first.inner_text()
    assert name == shown_names(opened)[2]
    opened.keyboard.press("Enter")
    assert name in opened.locator("#image h2").inner_text()
    opened.keyboard.press("ArrowLeft")
    assert shown_of(opened) == 2
    opened.keyboard.press("ArrowRight")
    assert shown_of(opened) == 3
    opened.keyboard.press("Escape")
    assert opened.locator("#pane").evaluate("(pane) => pane === document.activeElement")
    opened.keyboard.press("End")
    assert opened.locator("#pane [aria-selected=true] .file > span").first.inner_text() == shown_names(opened)[-1]
    dark = "document.documentElement.dataset.theme === 'dark'"
    assert not opened.evaluate(dark)
    opened.keyboard.press("t")
    assert opened.evaluate(dark)
    opened.keyboard.press("?")
    assert opened.locator("#keys").is_visible()
    opened.keyboard.press("Escape")
    assert not opened.locator("#keys").is_visible()
    with opened.expect_download():
        opened.keyboard.press("e")


def shown_of(page: Page) -> int:
    """Which of the selection the open image is, from 1."""
    return int(page.locator("#image nav .quiet").inner_text().split(" of ")[0])


def test_the_exported_selection_is_read_back_bit_by_bit(
    opened: Page, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    opened.get_by_role("columnheader", name="Image").get_by_role("button").click()
    opened.fill("#search", "incoming")
    with opened.expect_download() as download:
        opened.get_by_role("button", name="Export 5 rows (TSV)").click()
    download.value.save_as(tmp_path / "selection.tsv")
    wanted = [row for row in records if "incoming" in row["path"]]
    ordered = sorted(wanted, key=lambda row: row["path"].lower())
    plain = [{key: value for key, value in row.items() if key not in ("device", "acquired")} for row in ordered]
    save_records(plain, tmp_path / "wanted.tsv")
    assert list(read_records(tmp_path / "selection.tsv")) == list(read_records(tmp_path / "wanted.tsv"))
    assert len(plain) == 5


def test_paper_gets_the_summary_and_the_first_hundred_rows(opened: Page, tmp_path: Path) -> None:
    opened.evaluate(
        "addEventListener('beforeprint', () => { window.laidOut = document.querySelectorAll('#printed .row').length })"
    )
    opened.pdf(path=tmp_path / "report.pdf")
    assert opened.evaluate("window.laidOut") == 101  # the headings are a row
    assert opened.locator("#printed").count() == 0
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 4


def test_the_screenshots_of_the_documentation(browser: Browser, report: Path) -> None:
    light = Watched(browser, report, color_scheme="light", device_scale_factor=1)
    row = light.page.get_by_text("CT_small.dcm")
    for place in range(0, 313, 4):  # only the rows in sight are there
        light.page.locator("#pane").evaluate("(pane, top) => { pane.scrollTop = top }", 44 * place)
        light.page.wait_for_timeout(50)
        if row.count():
            break
    row.evaluate("(name) => name.scrollIntoView({block: 'start'})")
    light.page.locator("#pane").evaluate("(pane) => { pane.scrollTop -= 3 * 44; window.scrollTo(0, 0) }")
    row.hover()
    shot(light.page, "report")
    light.page.goto(f"{light.address}#image=310")
    light.page.locator("#image .stack img").first.wait_for()
    shot(light.page, "report_image")
    dark = Watched(browser, report, color_scheme="dark")
    assert dark.page.evaluate("document.documentElement.dataset.theme") == "dark"
    dark.page.locator("#drift .canvas svg").first.wait_for()
    dark.page.locator("#drift").scroll_into_view_if_needed()
    shot(dark.page.locator("#drift"), "report_drift")  # type: ignore[arg-type]
    assert light.complaints == dark.complaints == []


def test_words_have_enough_contrast_in_both_themes(browser: Browser, report: Path) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, on paper and on cards."""
    for scheme in ("light", "dark"):
        watched = Watched(browser, report, color_scheme=scheme)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        colours = {name: watched.page.evaluate(f"{style}('--{name}')") for name in ("paper", "card", "ink", "quiet")}
        for ground in ("paper", "card"):
            for word in ("ink", "quiet"):
                assert contrast(colours[word], colours[ground]) >= 4.5, (scheme, word, ground)


def contrast(one: str, other: str) -> float:
    def luminance(code: str) -> float:
        parts = [int(code.strip()[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_a_file_name_that_is_markup_is_only_text(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='got you'\"><script>document.title='got you'</script>.dcm"
    model = {"name": "toy", "version": "1", "sha256": "a" * 64}
    finding = {"name": evil, "value": 1.0, "unit": evil, "threshold": 2.0, "direction": evil}
    told = Score(
        path=evil, status="scored", score=5.0, score_raw=1.0, model=model, warnings=(evil,), findings=(finding,)
    )
    rows = [told.to_record() | {"device": evil, "acquired": "2026-03-14"}]
    write_report(rows, tmp_path / "report.html", title="safe", pictures=None)
    watched = Watched(browser, tmp_path / "report.html")
    assert shown_names(watched.page) == [evil.rpartition("/")[2]]
    watched.page.goto(f"{watched.address}#image=1")
    watched.page.locator("#image code", has_text=evil).wait_for()
    assert watched.page.title() == "safe"
    assert watched.page.locator("img").count() == 0
    assert watched.complaints == []


def test_models_and_metrics_of_the_same_images_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    ct = read_image(str(get_testdata_file("CT_small.dcm", download=False)))
    first, second = load_scorer(), load_scorer("marziliano")
    rows = [score(ct, first).to_record(), score(ct, second).to_record()]
    rows += [replace(score(ct, second), path="b.dcm", score_raw=99.0).to_record()]
    write_report(rows, tmp_path / "report.html")
    page = Watched(browser, tmp_path / "report.html").page
    assert count(page) == "1 image"
    page.get_by_label("Model").select_option(label=f"marziliano {second.model['version']}")
    assert count(page) == "2 images"
    assert shown_names(page)[0] == "b.dcm"  # wide edges are blurred ones: the largest is the worst
    assert "Median marziliano" in page.locator("#summary").inner_text()
    page.locator("#pane .rows .row").nth(1).click()
    assert "By other models" in page.locator("#image").inner_text()
    assert "lower is better" in page.locator("#image").inner_text()


def test_ten_thousand_rows_scroll_and_search_with_few_elements(browser: Browser, tmp_path: Path) -> None:
    model = {"name": "toy", "version": "1", "sha256": "a" * 64}
    rows = [
        Score(path=f"s/{k:05}.dcm", status="scored", score=k * 37 % 1000 / 10, score_raw=0.0, model=model).to_record()
        for k in range(10_000)
    ]
    write_report(rows, tmp_path / "report.html", pictures=None)
    watched = Watched(browser, tmp_path / "report.html")
    page = watched.page
    assert count(page) == "10,000 images"
    page.locator("#pane").evaluate("(pane) => { pane.scrollTop = pane.scrollHeight }")
    page.locator("#pane .row[aria-rowindex='10001']").wait_for()
    assert shown_scores(page)[-1] == 99.9
    assert page.locator("#pane .row").count() < 100
    page.fill("#search", "09999")
    assert shown_names(page) == ["09999.dcm"]
    assert page.evaluate("typeof change") == "undefined"  # the page's names are its own
    assert watched.complaints == []
