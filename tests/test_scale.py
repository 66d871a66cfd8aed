"""Scoring on Ray: the records of a local run, whatever dies; and names, objects and parts, which need no Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import polars
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file
from typer import BadParameter
from typer.testing import CliRunner

from saqm import scale
from saqm.batch import Record, Settings, score_many
from saqm.cli import app, scaling
from saqm.cli.terminal import found
from saqm.errors import ImageError, MissingExtra, ModelFileError, OutputError, SaqmError
from saqm.scale import begin_parts, find_everywhere, names_in, save_parts, score_on_ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (600 MB): pip install 'saqm[ray]'"
)
on_ray = [needs_ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five grey pictures, an empty file, a text, a hidden picture, and two pictures in an archive."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 30, (64, 96))
        pillow.fromarray((30 * number + noise).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    (folder / "5.png").rename(folder / ".hidden.png")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for number in (6, 7):
            archive.write(folder / f"{number}.png", f"{number}.png")
            (folder / f"{number}.png").unlink()
    return folder


@pytest.fixture
def settings(toy_model: Path) -> Settings:
    return Settings(model=toy_model, mask="none")


def local(names: Sequence[str], settings: Settings) -> list[Record]:
    """What a run on this machine gives, as it is read back from JSON."""
    return [json.loads(json.dumps(score.to_record())) for score in score_many(names, settings)]


# On Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all tests here; it has room for two workers."""
    import ray

    scale._ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def processes_below(parent: int) -> Iterator[tuple[int, str]]:
    """Number and command of every process that descends from one."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = status.read_text().split(" (", 1)
            command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if int(rest.rsplit(") ", 1)[1].split()[1]) == parent:
            yield int(number), command
            yield from processes_below(int(number))


@pytest.mark.usefixtures("cluster")
class TestOnRay:
    pytestmark = on_ray

    def test_the_records_are_those_of_a_local_run(self, pictures: Path, settings: Settings) -> None:
        cine = get_testdata_file("SC_rgb_rle_2frame.dcm")
        names = [*find_everywhere([str(pictures)]), str(pictures / "missing.png"), str(cine)]
        both = replace(settings, model=(str(settings.model), "marziliano"))
        records = list(score_on_ray(names, both, workers=2))
        assert records == local(names, both)
        assert len(records) > 2 * len(names)  # frames of the cine
        assert {record["status"] for record in records} == {"scored", "not_scored"}

    def test_objects_are_fetched_and_archives_among_them_opened(self, pictures: Path, settings: Settings) -> None:
        names = list(find_everywhere([pictures.as_uri(), "file:///nowhere/1.png"]))
        records = list(score_on_ray(names, settings, workers=1))
        paths = [str(record["path"]).removeprefix(f"{pictures.as_uri()}/") for record in records]
        members = ["more.zip!/6.png", "more.zip!/7.png"]
        assert paths == [*(f"{n}.png" for n in range(5)), *members, "file:///nowhere/1.png"]
        assert "cannot be fetched: FileNotFoundError" in str(records[-1]["reasons"])
        there = [f"{pictures}/{path}" for path in paths[:-1]]
        assert [record["score"] for record in records[:-1]] == [record["score"] for record in local(there, settings)]
        assert all(
            "/tmp" not in str(record["reasons"]) or str(pictures) in str(record["reasons"]) for record in records
        )

    def test_a_file_at_which_the_scoring_process_dies_costs_its_own_row(
        self, pictures: Path, settings: Settings
    ) -> None:
        pipe = pictures / "endless.png"
        os.mkfifo(pipe)

        def kill_its_reader() -> None:
            with pipe.open("wb"):  # goes on as soon as somebody reads
                for number, what in processes_below(os.getpid()):
                    if "spawn_main" in what:
                        os.kill(number, signal.SIGKILL)

        Thread(target=kill_its_reader, daemon=True).start()
        names = [str(pictures / "0.png"), str(pipe), str(pictures / "1.png")]
        records = list(score_on_ray(names, settings, workers=1))
        assert [record["status"] for record in records] == ["scored", "not_scored", "scored"]
        assert "the process that scored it died" in str(records[1]["reasons"])

    def test_a_worker_killed_on_the_way_costs_nothing(self, tmp_path: Path) -> None:
        names = []
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 256, (192, 192)).astype(np.uint8)
            names.append(str(tmp_path / f"{number:02}.png"))
            pillow.fromarray(noise).save(names[-1])
        killed, records = 0, []
        for record in score_on_ray(names, Settings(), workers=2):
            if not killed:
                killed = next(
                    number for number, what in processes_below(os.getpid()) if what.startswith("ray::MapWork")
                )
                os.kill(killed, signal.SIGKILL)
            records.append(record)
        assert killed
        assert [record["path"] for record in records] == names
        assert records == local(names, Settings())

    def test_a_broken_model_ends_the_run_and_not_a_file(self, pictures: Path, settings: Settings) -> None:
        del settings
        with pytest.raises(ModelFileError, match="nowhere"):
            list(score_on_ray([str(pictures / "0.png")], Settings(model="nowhere.onnx")))

    def test_a_run_that_was_stopped_left_nothing_behind_and_another_may_follow(
        self, pictures: Path, settings: Settings
    ) -> None:
        names = list(find_everywhere([str(pictures)]))
        running = score_on_ray(names, settings)
        assert next(running)["path"] == names[0]
        running.close()
        assert list(score_on_ray(names, settings)) == local(names, settings)


# Without Ray


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"scoring on Ray needs ray: pip install 'saqm\[ray\]'"):
        score_on_ray(["a.png"], settings)


def test_ray_is_told_to_report_nothing(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra):
        score_on_ray(["a.png"], settings)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_what_cannot_work_is_refused_before_the_work(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SaqmError, match="0 workers; at least 1"):
        score_on_ray([], settings, workers=0)
    with pytest.raises(SaqmError, match="quality maps are not written on Ray"):
        score_on_ray([], replace(settings, map_folder=tmp_path))
    with pytest.raises(ModelFileError, match="nowhere"):
        score_on_ray([], Settings(model="nowhere.onnx"))


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty bucket in memory, which one process has for itself."""
    store = fsspec.filesystem("memory")
    store.mkdir("/bucket")
    yield "memory:///bucket"
    store.rm("/bucket", recursive=True)


def test_objects_are_found_as_files_are(pictures: Path) -> None:
    found = list(find_everywhere([pictures.as_uri()]))
    files = [
        path.as_uri() for path in sorted(pictures.iterdir()) if path.suffix in (".png", ".zip") and path.name[0] != "."
    ]
    assert found == files
    assert list(find_everywhere([f"{pictures.as_uri()}/[01].png"])) == files[:2]
    assert list(find_everywhere([f"{pictures.as_uri()}/missing.png"])) == [f"{pictures.as_uri()}/missing.png"]
    assert list(find_everywhere([str(pictures / "0.png")])) == [str(pictures / "0.png")]


def test_an_object_without_suffix_is_known_by_its_mark() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/archive/IM0001": b"\0" * 128 + b"DICM", "/archive/README": b"text"})
    try:
        assert list(find_everywhere(["memory://archive"])) == ["memory:///archive/IM0001"]
    finally:
        store.rm("/archive", recursive=True)


def test_an_object_is_fetched_with_its_name(tmp_path: Path, pictures: Path, settings: Settings) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/archive/a.png", (pictures / "0.png").read_bytes())
    try:
        [task] = scale._tasks("memory://archive/a.png", settings, str(tmp_path))
    finally:
        store.rm("/archive", recursive=True)
    assert task.name == "memory://archive/a.png"
    assert Path(task.path).read_bytes() == (pictures / "0.png").read_bytes()


def test_what_a_folder_of_objects_holds_is_what_a_folder_of_files_would(bucket: str) -> None:
    store = fsspec.filesystem("memory")
    for inside in ("a/1.png", "a/2[x].png", "a/.hidden/3.png", "a/.4.png", "a/notes.txt", "a/empty", "b/5.dcm"):
        store.pipe(f"{bucket}/{inside}", b"" if inside == "a/empty" else b"content")
    shown = [f"{bucket}/a/1.png", f"{bucket}/a/2[x].png"]
    assert list(find_everywhere([f"{bucket}/a"])) == shown
    assert list(find_everywhere([f"{bucket}/[a]"])) == shown  # a pattern may stand for folders
    assert list(find_everywhere([f"{bucket}/**/*.png"])) == shown
    assert list(find_everywhere([f"{bucket}/a/.*.png"])) == [f"{bucket}/a/.4.png"]
    assert list(find_everywhere([shown[1]])) == [shown[1]]  # a name, not a pattern
    assert list(find_everywhere([f"{bucket}/c/*.png"])) == [f"{bucket}/c/*.png"]  # a row with a reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("teapot://a/b", "Protocol not known: teapot"),
        pytest.param(
            "gs://bucket/b",
            "install gcsfs",
            marks=pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is here"),
        ),
    ],
)
def test_a_store_that_nothing_opens_is_told(url: str, reason: str, settings: Settings) -> None:
    with pytest.raises(ImageError, match=rf"{url}: cannot be opened: .*{reason}"):
        list(find_everywhere([url]))
    with pytest.raises(OutputError, match=rf"{url}: cannot be opened: .*{reason}"):
        begin_parts(url, settings)


def test_without_s3fs_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings) -> None:
    def absent(url: str) -> None:
        raise ImportError(f"Install s3fs to access {url}")  # as fsspec has it

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    for attempt in (
        lambda: list(find_everywhere(["s3://bucket/a.png"])),
        lambda: scale._tasks("s3://bucket/a.png", settings, str(tmp_path)),
        lambda: save_parts([{"path": "a.png"}], "s3://bucket/a.png"),
    ):
        with pytest.raises(MissingExtra, match=r"s3://bucket/a.png needs s3fs: pip install 'saqm\[s3\]'"):
            attempt()


def test_an_archive_without_images_is_told(tmp_path: Path, settings: Settings) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ImageError, match=r"empty\.zip: no image in this archive"):
        scale._tasks((tmp_path / "empty.zip").as_uri(), settings, str(tmp_path))


def test_parts_hold_whole_files_in_order(pictures: Path, settings: Settings, tmp_path: Path) -> None:
    names, parts = list(find_everywhere([str(pictures)])), tmp_path / "parts"
    made = local(names, replace(settings, model=(str(settings.model), "marziliano")))
    assert begin_parts(parts, settings) == set()
    save_parts(made, parts, rows=3)
    written = [polars.read_parquet(part)["path"].to_list() for part in sorted(parts.iterdir())]
    assert [len(part) for part in written] == [4, 4, 4, 2]
    assert [name for part in written for name in part] == [record["path"] for record in made]
    assert names_in(parts) == set(names)


def test_a_stopped_run_goes_on_with_what_is_missing(pictures: Path, settings: Settings, tmp_path: Path) -> None:
    names, parts = list(find_everywhere([str(pictures)])), tmp_path / "parts"

    def stopped() -> Iterator[Record]:
        yield from local(names[:5], settings)
        raise KeyboardInterrupt

    begin_parts(parts, settings)
    with pytest.raises(KeyboardInterrupt):
        save_parts(stopped(), parts, rows=2)
    known = begin_parts(parts, settings, resume=True)
    assert known == set(names[:4])  # the fifth waited for its part to be full
    save_parts(local([name for name in names if name not in known], settings), parts, rows=2)
    table = polars.read_parquet(parts)
    assert table["path"].to_list() == names
    assert table["score"].to_list() == [record["score"] for record in local(names, settings)]


def test_parts_of_another_run_are_left_alone(pictures: Path, settings: Settings, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    begin_parts(parts, settings)
    save_parts(local([str(pictures / "0.png")], settings), parts)
    with pytest.raises(OutputError, match="has the parts of an earlier run; --resume goes on with it"):
        begin_parts(parts, settings)
    with pytest.raises(OutputError, match="begun with another model, version or other options"):
        begin_parts(parts, replace(settings, stride=16), resume=True)
    (tmp_path / "parts.run.json").unlink()
    with pytest.raises(OutputError, match="begun with another model, version or other options"):
        begin_parts(parts, settings, resume=True)


def test_parts_lie_in_an_object_store_as_in_a_folder(bucket: str, pictures: Path, settings: Settings) -> None:
    names, parts = list(find_everywhere([str(pictures)])), f"{bucket}/2024/scores/"
    made = local(names, settings)
    assert begin_parts(parts, settings) == set()
    save_parts(made[:4], parts, rows=3)
    with pytest.raises(OutputError, match="has the parts of an earlier run; --resume goes on with it"):
        begin_parts(parts, settings)
    with pytest.raises(OutputError, match=rf"begun with another model, .* \({bucket}/2024/scores\.run\.json\)"):
        begin_parts(parts, replace(settings, stride=16), resume=True)
    assert begin_parts(parts, settings, resume=True) == set(names[:4])
    save_parts(made[4:], parts, rows=3)
    store = fsspec.filesystem("memory")
    written = [f"/bucket/2024/scores/part-{number:06d}.parquet" for number in range(3)]
    assert store.find("/bucket") == ["/bucket/2024/scores.run.json", *written]
    tables = [polars.read_parquet(store.cat_file(part)) for part in written]
    assert [table.height for table in tables] == [3, 1, 3]
    assert polars.concat(tables)["score"].to_list() == [record["score"] for record in made]


def test_an_archive_in_a_store_is_one_object_to_whoever_goes_on(bucket: str) -> None:
    rows = [{"path": f"s3://b/more.ZIP!/{member}.png"} for member in range(4)]
    rows += [{"path": "s3://b/last.png"}, {"path": "here.zip!/a.png"}, {"path": "here.zip!/b.png"}]
    save_parts(rows, f"{bucket}/scores", rows=2)
    assert names_in(f"{bucket}/scores") == {"s3://b/more.ZIP", "s3://b/last.png", "here.zip!/a.png", "here.zip!/b.png"}
    first = polars.read_parquet(fsspec.filesystem("memory").cat_file("/bucket/scores/part-000000.parquet"))
    assert first["path"].to_list() == [row["path"] for row in rows[:4]]


def test_a_store_that_refuses_is_told(bucket: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    with pytest.raises(OutputError, match="memory://bucket: a whole bucket; name a folder in it"):
        begin_parts("memory://bucket", settings)
    begin_parts(f"{bucket}/scores", settings)
    store = type(fsspec.filesystem("memory"))
    fsspec.filesystem("memory").pipe_file("/bucket/IM0001", b"content")
    with monkeypatch.context() as patched:
        patched.setattr(store, "cat_file", refuse)
        with pytest.raises(ImageError, match=rf"^{bucket}: cannot be listed: PermissionError: Access Denied"):
            list(find_everywhere([bucket]))  # what it might have held is not left out
    for method, what, attempt in (
        ("ls", "listed", lambda: names_in(f"{bucket}/scores")),
        ("put_file", "written", lambda: save_parts([{"path": "a.png"}], f"{bucket}/scores")),
        ("pipe_file", "written", lambda: begin_parts(f"{bucket}/other", settings)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(store, method, refuse)
            with pytest.raises(OutputError, match=rf"^{bucket}/.* cannot be {what}: PermissionError: Access Denied"):
                attempt()
    fsspec.filesystem("memory").pipe_file("/bucket/scores/part-000000.parquet", b"torn")
    with pytest.raises(OutputError, match=rf"{bucket}/scores/part-000000\.parquet: cannot be read: ComputeError"):
        names_in(f"{bucket}/scores")


# The command


def watched(records: Iterable[Record]) -> Iterator[Record]:
    """What the command does with records on their way: here it marks them."""
    return ({**record, "verdict": "pass"} for record in records)


def test_the_command_writes_a_folder_and_goes_on_with_it(
    pictures: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def instead(names: Sequence[str], settings: Settings, *, workers: int) -> Generator[Record]:
        asked.append(names)
        assert workers == 2
        yield from local(names, settings)

    monkeypatch.setattr(scale, "score_on_ray", instead)
    names = scaling.found_everywhere([str(pictures)])
    scaling.score_on_ray(names[:3], settings, 2, tmp_path / "parts", watched, resume=False)
    scaling.score_on_ray(names, settings, 2, tmp_path / "parts", watched, resume=True)
    assert asked == [names[:3], names[3:]]
    table = polars.read_parquet(tmp_path / "parts")
    assert table["path"].to_list() == names
    assert set(table["verdict"]) == {"pass"}
    scaling.score_on_ray(names, settings, 2, f"{(tmp_path / 'more').as_uri()}/", watched, resume=False)
    assert polars.read_parquet(tmp_path / "more").equals(table)
    scaling.score_on_ray(names, settings, 2, tmp_path / "one.parquet", watched, resume=False)
    assert polars.read_parquet(tmp_path / "one.parquet").equals(table)


def test_the_command_says_what_it_needs(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="--on ray writes a file or a folder"):
        scaling.score_on_ray(["a.png"], settings, 1, None, watched, resume=False)
    with pytest.raises(BadParameter, match="--resume on Ray goes on with a folder of parts"):
        scaling.score_on_ray(["a.png"], settings, 1, tmp_path / "one.parquet", watched, resume=True)
    with pytest.raises(BadParameter, match=r"--out s3://b/a\.parquet: an object store takes a folder of parts"):
        scaling.score_on_ray(["a.png"], settings, 1, "s3://b/a.parquet", watched, resume=False)
    with pytest.raises(OutputError, match="cannot tell the format"):
        scaling.score_on_ray(["a.png"], settings, 1, tmp_path / "one.xlsx", watched, resume=False)
    with pytest.raises(ImageError, match="no image found in"):
        scaling.found_everywhere([str(tmp_path)])


def test_object_stores_are_for_ray_alone() -> None:
    done = CliRunner().invoke(app, ["score", "a.png", "--out", "s3://bucket/scores/"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "--out s3://bucket/scores/: only --on ray writes to an object store" in done.output
    with pytest.raises(ImageError, match=r"s3://bucket/a\.png: object stores are read by saqm score --on ray alone"):
        found(["s3://bucket/a.png"])


# The page


@pytest.mark.parametrize("benchmark", ["scale", "train_speed"])
def test_the_page_quotes_what_was_measured(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{benchmark}", root / "benchmarks" / f"{benchmark}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    made = json.loads((root / "benchmarks" / "results" / f"{benchmark}.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"<!-- benchmarks/{benchmark}.py -->\n{module.markdown(made)}<!-- end of" in page
