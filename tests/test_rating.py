"""A reader study: order, journal, manifest, and the server that only this machine may ask."""

from __future__ import annotations

import http.client
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image as Pillow

from saqm import cli
from saqm.datasets import folder
from saqm.errors import ImageError, ManifestError, OutputError
from saqm.manifest import Manifest, Row, Scale, read_manifest, write_manifest
from saqm.rating import server as serving
from saqm.rating.journal import Journal, begin, read_ratings
from saqm.rating.server import RatingServer
from saqm.rating.study import LEAST_REPEATED, REST, Shown, Study, plan

GRADES = Scale(1, 5, name="How good?")
POINTS = Scale(0, 100, name="How good?")


def made_study(count: int, **changes: Any) -> Study:
    """A study of images that are nowhere."""
    images = tuple(Shown(Row(Path(f"/none/{index}.png"), None, str(index)), "0" * 64) for index in range(count))
    return Study(images, **({"scale": GRADES, "seed": 0} | changes))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six small pictures of two patients, each brighter than the one before."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(6):
        grey = np.random.default_rng(number).integers(0, 60, (40, 48)) + 60 + 25 * number
        Pillow.fromarray(grey.astype(np.uint8)).save(root / f"patient{number // 3}_secret{number}.png")
    return root


@pytest.fixture
def study(images: Path) -> Study:
    rows = folder(images, scene_from=r"(patient\d)", method_from=r"(secret\d)", domain="ct-made").rows
    return plan(rows, GRADES, seed=3)[0]


@pytest.fixture
def journal(tmp_path: Path, study: Study) -> Journal:
    return begin(tmp_path / "study.csv", study)


def grade(image: int) -> int:
    """What everybody says of the image with this number: 1, 2, 3, 4, 5, 5."""
    return min(image + 1, 5)


def rate_all(journal: Journal, reader: str, *, fickle: bool = False) -> None:
    """Everything, by its number; who is fickle says another grade, one away, the second time."""
    order, _ = journal.standing(reader)
    for place, image in enumerate(order):
        again = fickle and image in order[:place]
        journal.rate(reader, place, (grade(image) - 1 or 2) if again else grade(image))


# Order


def test_every_reader_has_an_order_of_his_own_and_keeps_it() -> None:
    study = made_study(40)
    assert study.order("ada") == study.order("Ada") == made_study(40).order("ada")
    assert study.order("ada") != study.order("ben")
    assert study.order("ada") != made_study(40, seed=1).order("ada")
    assert set(study.order("ada")) == set(range(40))


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40, 101])
@pytest.mark.parametrize("repeats", [0.1, 0.5])
def test_repeats_are_far_apart(count: int, repeats: float) -> None:
    for reader in "abcdefgh":
        order = made_study(count, repeats=repeats).order(reader)
        twice = [image for image in set(order) if order.count(image) == 2]
        assert len(order) == count + len(twice)
        assert len(twice) == min(count // 2, max(LEAST_REPEATED, round(count * repeats)))
        for image in twice:
            first, second = (place for place, shown in enumerate(order) if shown == image)
            assert second - first > count // REST


def test_no_repeats_where_none_are_wanted() -> None:
    assert sorted(made_study(12, repeats=0.0).order("ada")) == list(range(12))


def test_first_places_are_not_always_the_same_images() -> None:
    firsts = {made_study(10).order(f"reader {number}")[0] for number in range(60)}
    assert firsts == set(range(10))


def test_a_study_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"repeats 0\.6: a share of the images, 0 to 0\.5, is wanted"):
        made_study(5, repeats=0.6)
    with pytest.raises(ManifestError, match="scale 5 1: the lower end comes first"):
        made_study(5, scale=Scale(5, 1))


# What can be shown


def test_files_that_cannot_be_shown_are_left_out_with_the_reason(images: Path) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    study, reasons = plan(folder(images).rows, GRADES, seed=0)
    assert len(study.images) == 6
    (reason,) = reasons
    assert "broken.png" in reason


def test_nothing_to_show_is_refused_with_every_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ManifestError, match=r"none of 1 images can be shown\n.*broken\.png"):
        plan(folder(tmp_path).rows, GRADES, seed=0)


@pytest.mark.parametrize(("which", "frame"), [("first", 0), ("middle", 5), (7, 7)])
def test_one_frame_of_several_is_shown(tmp_path: Path, which: Any, frame: int) -> None:
    frames = [Pillow.fromarray(np.full((40, 48), 20 * number, np.uint8)) for number in range(10)]
    frames[0].save(tmp_path / "cine.tif", save_all=True, append_images=frames[1:])
    study, _ = plan(folder(tmp_path).rows, GRADES, seed=0, which=which)
    assert study.images[0].frame == frame
    assert study.picture(0).source.frame == frame


def test_what_is_known_of_an_image_is_not_taken_along(images: Path) -> None:
    rows = [Row(row.path, 4.0, row.scene, raters=3, rater_scores=(4.0,)) for row in folder(images).rows]
    study, _ = plan(rows, GRADES, seed=0)
    assert all(shown.row.score is None and shown.row.rater_scores is None for shown in study.images)


def test_an_image_that_changed_is_not_shown(study: Study) -> None:
    path = study.images[2].row.path
    Pillow.new("L", (40, 48), 77).save(path)
    with pytest.raises(ImageError, match="changed since the study began"):
        study.picture(2)


# Journal


def test_a_rating_is_on_the_disk_at_once_and_undone_without_trace_in_the_scores(journal: Journal) -> None:
    journal.standing("ada")
    journal.rate("ada", 0, 4)
    journal.rate("ada", 1, 2)
    assert [rating.score for rating in read_ratings(journal.path).by_reader["ada"]] == [4, 2]
    journal.withdraw("ada", 1)
    journal.withdraw("ada", 0)
    journal.rate("ada", 0, 5)
    assert [rating.score for rating in read_ratings(journal.path).by_reader["ada"]] == [5]
    assert len(journal.path.read_text().splitlines()) == 7  # nothing was taken from the file


def test_a_study_goes_on_where_a_crash_stopped_it(journal: Journal, study: Study) -> None:
    journal.rate("ada", 0, 4)
    journal.rate("ada", 1, 3)
    with journal.path.open("ab") as file:
        file.write(b'{"reader": "ada", "place": 2, "ima')  # the machine went down here
    again = Journal(journal.path, study)
    order, ratings = again.standing("Ada ")
    assert len(ratings) == 2
    again.rate("ada", 2, 1)
    assert [r.score for r in read_ratings(journal.path).by_reader["ada"]] == [4, 3, 1]
    assert [r.image for r in read_ratings(journal.path).by_reader["ada"]] == list(order[:3])


def test_an_order_that_was_begun_is_kept(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of numpy may shuffle otherwise; the journal knows what the reader was promised."""
    order, _ = journal.standing("ada")
    monkeypatch.setattr(Study, "order", lambda *_: tuple(range(6)))
    assert journal.standing("ada")[0] == order


def test_only_the_next_showing_is_rated_and_only_the_last_withdrawn(journal: Journal) -> None:
    with pytest.raises(ManifestError, match="showing 1 is not the next one; 0 of 9 are rated"):
        journal.rate("ada", 1, 3)
    with pytest.raises(ManifestError, match="showing 0 is not the last rated; 0 are rated"):
        journal.withdraw("ada", 0)
    rate_all(journal, "ada")
    with pytest.raises(ManifestError, match="showing 9 is not the next one; 9 of 9 are rated"):
        journal.rate("ada", 9, 3)


@pytest.mark.parametrize(
    ("scale", "score", "message"),
    [
        (GRADES, 6, "score 6: a number from 1 to 5"),
        (GRADES, 2.5, r"score 2\.5: one of the grades 1 to 5"),
        (GRADES, True, "score True: a number"),
        (GRADES, "4", "score '4': a number"),
        (POINTS, float("nan"), "score nan: a number from 0 to 100"),
        (POINTS, -1, "score -1: a number"),
    ],
)
def test_a_score_off_the_scale_is_refused(scale: Scale, score: Any, message: str) -> None:
    assert made_study(3, scale=scale).refusal(3) is None
    refusal = made_study(3, scale=scale).refusal(score)
    assert refusal is not None
    with pytest.raises(ManifestError, match=message):
        raise ManifestError(refusal)


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "a\x07b"])
def test_a_reader_needs_a_name(journal: Journal, name: str) -> None:
    with pytest.raises(ManifestError, match="a name of 1 to 60 letters is wanted"):
        journal.standing(name)


def test_a_study_begun_otherwise_is_told_what_differs(journal: Journal, images: Path) -> None:
    Pillow.new("L", (40, 48), 9).save(images / "patient0_secret1.png")
    Pillow.new("L", (40, 48), 9).save(images / "new.png")
    (images / "patient1_secret5.png").unlink()
    other, _ = plan(folder(images, method_from="(secret[0-9]|new)").rows, POINTS, seed=4)
    with pytest.raises(ManifestError, match="begun otherwise; give the same options") as refused:
        Journal(journal.path, other)
    told = str(refused.value)
    for part in (
        "scale was [1.0, 5.0], is [0.0, 100.0]",
        "seed was 3, is 4",
        "images/new.png: new",
        "images/patient1_secret5.png: gone, or cannot be shown",
        "images/patient0_secret1.png: sha256 was",
        "images/patient0_secret0.png: scene was 'patient0', is",
    ):
        assert part in told


def test_two_windows_of_one_reader_do_no_harm(journal: Journal) -> None:
    journal.rate("ada", 0, 4)
    line = journal.path.read_text().splitlines()[-1]
    with journal.path.open("a") as file:
        file.write(line.replace("4.0", "2.0") + "\n")
    assert [rating.score for rating in read_ratings(journal.path).by_reader["ada"]] == [2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 3 is no entry of a journal"),
        (
            '{"reader": "ada", "place": 5, "image": 0, "score": 3}',
            "line 3 does not follow .* showing 5 is not the next",
        ),
        ('{"reader": "ben", "place": 0, "image": 0, "score": 3}', "line 3 does not follow"),
        ('{"reader": "ada", "withdrawn": 0}', "line 3 does not follow"),
    ],
)
def test_a_damaged_journal_is_refused_with_the_line(journal: Journal, line: str, message: str) -> None:
    journal.standing("ada")
    with journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ManifestError, match=message):
        read_ratings(journal.path)


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "a.ratings.jsonl").write_text('{"path": "a.png"}\n')
    with pytest.raises(ManifestError, match=r"no journal of ratings; wanted a file that saqm rate wrote"):
        read_ratings(tmp_path / "a.ratings.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_ratings(tmp_path / "none.ratings.jsonl")


def test_a_manifest_of_another_origin_is_not_overwritten(tmp_path: Path, study: Study) -> None:
    (tmp_path / "mine.csv").write_text("path,scene\n")
    with pytest.raises(OutputError, match=r"mine\.csv: is there already, and not from ratings"):
        begin(tmp_path / "mine.csv", study)
    with pytest.raises(ManifestError, match=r"a manifest is a \.csv or a \.jsonl file"):
        begin(tmp_path / "mine.txt", study)


# Manifest


def test_ratings_become_a_manifest(journal: Journal, tmp_path: Path) -> None:
    rate_all(journal, "ada")
    rate_all(journal, "ben", fickle=True)
    server = RatingServer(journal, tmp_path / "study.csv", on_problem=pytest.fail)
    server.server_close()
    ratings = server.export()
    found = read_manifest(tmp_path / "study.csv")
    assert found.scale == Scale(1, 5, name="How good?")
    assert [row.domain for row in found.rows] == ["ct-made"] * 6
    assert {row.scene for row in found.rows} == {"patient0", "patient1"}
    assert found.rows[4].method == "secret4"
    halved = {image for image, scores in ratings.of_images("ben").items() if len(scores) == 2}
    assert len(halved) == 3
    for image, row in enumerate(found.rows):
        one = float(grade(image))
        other = (one + (grade(image) - 1 or 2)) / 2 if image in halved else one
        assert row.rater_scores == (one, other)
        assert row.score == (one + other) / 2
        assert row.score_sd == pytest.approx(abs(one - other) / np.sqrt(2))
        assert row.raters == 2
    assert set(ratings.repeats()) == {"ada", "ben"}
    assert all(first == second for first, second in ratings.repeats()["ada"])


def test_an_image_that_nobody_rated_has_no_score(journal: Journal) -> None:
    journal.rate("ada", 0, 4)
    rows = read_ratings(journal.path).manifest().rows
    assert sorted(row.score is not None for row in rows) == [False] * 5 + [True]
    (rated,) = (row for row in rows if row.score is not None)
    assert (rated.score, rated.score_sd, rated.raters, rated.rater_scores) == (4, None, 1, (4,))


# The server


class Page:
    """What asks in place of the page."""

    def __init__(self, server: RatingServer) -> None:
        self.at = urlsplit(server.url)
        self.problems: list[str] = []

    def ask(
        self, path: str, body: Any = None, *, root: str | None = None, raw: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(str(self.at.hostname), self.at.port, timeout=10)
        sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
        asked = {} if sent is None else {"Content-Type": "application/json"}
        asked |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            "GET" if sent is None else "POST", (self.at.path if root is None else root) + path, sent, asked
        )
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def json(self, path: str, body: Any = None) -> Any:
        status, content, _ = self.ask(path, body)
        assert status == 200, content
        return json.loads(content)


@pytest.fixture
def server(journal: Journal, tmp_path: Path) -> Iterator[RatingServer]:
    problems: list[str] = []
    made = RatingServer(journal, tmp_path / "study.csv", on_problem=problems.append)
    made.problems = problems  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def page(server: RatingServer) -> Page:
    return Page(server)


def test_a_whole_study_by_http(page: Page, server: RatingServer, study: Study) -> None:
    assert page.json("study") == {
        "question": "How good?", "low": 1, "high": 5, "graded": True, "reader": None,
        "words": ["Bad", "Poor", "Fair", "Good", "Excellent"],
    }  # fmt: skip
    state = page.json("begin", {"reader": "Ada"})
    assert state == {"number": 0, "place": 0, "total": 9}
    for place, image in enumerate(study.order("ada")):
        status, png, headers = page.ask(f"image/0/{place}")
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/png", "no-store")
        shown = np.asarray(Pillow.open(io.BytesIO(png)))
        assert shown.dtype == np.uint8
        assert np.array_equal(shown, np.rint(study.picture(image).pixels * 255))
        state = page.json("rating", {"number": 0, "place": place, "score": min(image + 1, 5)})
        assert state == {"place": place + 1, "total": 9}
    assert [row.score for row in read_manifest(server.manifest).rows] == [1, 2, 3, 4, 5, 5]


def test_undo_and_a_second_reader(page: Page, server: RatingServer) -> None:
    page.json("begin", {"reader": "ada"})
    page.json("rating", {"number": 0, "place": 0, "score": 2})
    assert page.json("withdrawal", {"number": 0, "place": 0}) == {"place": 0, "total": 9}
    page.json("rating", {"number": 0, "place": 0, "score": 3})
    assert page.json("begin", {"reader": "ben"})["number"] == 1
    page.json("rating", {"number": 1, "place": 0, "score": 5})
    assert page.json("begin", {"reader": "ada"}) == {"number": 0, "place": 1, "total": 9}
    page.json("pause", {})
    assert sum(row.raters or 0 for row in read_manifest(server.manifest).rows) == 2


def test_the_page_learns_nothing_that_is_to_be_blind(page: Page) -> None:
    page.json("begin", {"reader": "ada"})
    told = b""
    for path in ("", "page.js", "page.css", "study", "image/0/0", "image/0/1"):
        status, content, headers = page.ask(path)
        assert status == 200
        told += content + str(headers).encode()
    told += json.dumps(page.json("rating", {"number": 0, "place": 0, "score": 2})).encode()
    for secret in (b"secret", b"patient", b".png", b"ct-made"):
        assert secret not in told.lower()


def test_pages_from_elsewhere_get_nothing(page: Page) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        status, content, _ = page.ask("study", Host=host)
        assert status == 421
        assert b"127.0.0.1 and localhost only" in content
    assert page.ask("study", Host="localhost:1234")[0] == 200  # a tunnel


@pytest.mark.parametrize(
    "root",
    ["/", "/study", "/wrong/", "//", "/../", "/%2e%2e/"],
    ids=["none", "bare", "wrong", "empty", "up", "escaped"],
)
def test_without_the_token_there_is_nothing(page: Page, root: str) -> None:
    for body in (None, {"reader": "ada"}):
        status, content, _ = page.ask("begin" if body else "study", body, root=root)
        assert status == 404
        assert b"use the address that saqm rate printed" in content


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "%2e%2e/server.py", "static/page.html", "page.html", "image/0/../../x", "image/0/-1", "image"],
)
def test_no_path_leads_to_other_files(page: Page, path: str) -> None:
    page.json("begin", {"reader": "ada"})
    status, content, _ = page.ask(path)
    assert status in (400, 404)
    assert "error" in json.loads(content)


@pytest.mark.parametrize(
    ("path", "raw", "headers", "status"),
    [
        ("rating", b"{", {}, 400),
        ("rating", b"[1]", {}, 400),
        ("rating", b'{"number": 0, "place": 0}', {}, 400),
        ("rating", b'{"number": 7, "place": 0, "score": 3}', {}, 400),
        ("rating", b'{"number": 0, "place": "x", "score": 3}', {}, 400),
        ("rating", b'{"number": 0, "place": 0, "score": NaN}', {}, 409),
        ("rating", b'{"number": 0, "place": 0, "score": 1e999}', {}, 409),
        ("rating", b'{"number": 0, "place": 3, "score": 3}', {}, 409),
        ("begin", b'{"reader": "\\ud800"}', {}, 409),
        ("else", b"{}", {}, 404),
        ("rating", b"{}", {"Content_Type": "text/plain"}, 415),
        ("rating", b" " * 5000, {}, 413),
    ],
)
def test_what_is_not_understood_is_refused(
    page: Page, path: str, raw: bytes, headers: dict[str, str], status: int
) -> None:
    page.json("begin", {"reader": "ada"})
    answered, content, _ = page.ask(path, raw=raw, **headers)
    assert answered == status
    assert json.loads(content)["error"]
    assert page.json("begin", {"reader": "ada"})["place"] == 0


def test_an_image_that_is_gone_is_told_at_the_terminal_only(page: Page, server: RatingServer, study: Study) -> None:
    page.json("begin", {"reader": "ada"})
    path = study.images[study.order("ada")[0]].row.path
    path.unlink()
    status, content, _ = page.ask("image/0/0")
    assert status == 409
    assert path.name.encode() not in content
    (problem,) = server.problems  # type: ignore[attr-defined]
    assert path.name in problem


def test_only_this_machine_is_listened_to(server: RatingServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 22  # 128 bits
    assert "unsafe" not in serving.HEADERS["Content-Security-Policy"]


def test_a_port_that_is_taken_is_said(server: RatingServer, journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"port \d+ cannot be had: .*leave --port out"):
        RatingServer(journal, tmp_path / "study.csv", on_problem=pytest.fail, port=server.server_port)


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the study stops it as soon as it is served."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RatingServer, "serve_forever", interrupted)


def test_ctrl_c_ends_the_session_with_a_manifest(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.rate("ada", 0, 4)
    made = RatingServer(journal, tmp_path / "study.csv", on_problem=pytest.fail, reader="ada")

    press_ctrl_c(monkeypatch)
    assert list(made.serve_until_interrupted().by_reader) == ["ada"]
    manifest: Manifest = read_manifest(tmp_path / "study.csv")
    assert sum(row.score is not None for row in manifest.rows) == 1


# The commands


Saqm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def saqm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Saqm:
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saqm", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (int(stopped.value.code or 0), *capsys.readouterr())

    return run


def test_rate_says_where_and_what_was_left_out(
    saqm: Saqm, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(monkeypatch)
    (images / "broken.png").write_bytes(b"no picture")
    code, out, err = saqm("rate", images, "--out", tmp_path / "s.csv", "--no-browser", "--json", "--domain", "ct")
    assert code == 1
    assert json.loads(out) == {
        "manifest": str(tmp_path / "s.csv"),
        "ratings": str(tmp_path / "s.ratings.jsonl"),
        "images": 6,
        "left_out": 1,
        "readers": {},
    }
    assert "left out: " in err
    assert "broken.png" in err
    assert re.search(r"rate on http://127\.0\.0\.1:\d+/[\w-]{22}/", err)
    assert {row.domain for row in read_manifest(tmp_path / "s.csv").rows} == {"ct"}


def test_rate_takes_the_rows_of_a_manifest(
    saqm: Saqm, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(monkeypatch)
    listed = Manifest(folder(images, "*secret[12]*", scene_from=r"(patient\d)", domain="mr").rows)
    write_manifest(listed, tmp_path / "listed.csv")
    code, _, _ = saqm("rate", tmp_path / "listed.csv", "--out", tmp_path / "s.csv", "--no-browser")
    assert code == 0
    assert [(row.scene, row.domain) for row in read_manifest(tmp_path / "s.csv").rows] == [("patient0", "mr")] * 2
    code, _, err = saqm("rate", tmp_path / "listed.csv", "--out", tmp_path / "t.csv", "--domain", "ct")
    assert code == 2
    assert "a manifest says scene, method and domain itself" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frame", "last"], "--frame last: first, middle, or a number from 0"),
        (["--scale", "5", "1"], "scale 5 1: the lower end comes first"),
    ],
)
def test_rate_refuses_what_makes_no_study(
    saqm: Saqm, images: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, err = saqm("rate", images, "--out", tmp_path / "s.csv", "--no-browser", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "s.ratings.jsonl").exists()


def test_agreement_reads_the_ratings_with_what_was_shown_twice(saqm: Saqm, journal: Journal) -> None:
    rate_all(journal, "ada")
    rate_all(journal, "ben", fickle=True)
    code, out, _ = saqm("agreement", journal.path, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["groups"][0]["correlations"][0]["first"] == "ada"
    ada, ben = found["constancies"]
    assert (ada["n"], ada["mean_difference"]) == (3, 0)
    assert (ben["reader"], ben["mean_difference"]) == ("ben", 1)


def test_agreement_puts_a_model_beside_the_readers(saqm: Saqm, journal: Journal, toy_model: Path) -> None:
    """In the toy model brightness is quality, and so it is in what the readers said; the last two are alike to them."""
    rate_all(journal, "ada")
    rate_all(journal, "ben")
    code, out, err = saqm("agreement", journal.path, "--model", toy_model)
    assert (code, err) == (0, "")
    assert re.search(r"toy - opinion score +6 +0\.986", out)
    assert re.search(r"^ada +3 .* 0\.000 +0\.000$", out, re.MULTILINE)
