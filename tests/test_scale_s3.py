"""An S3 store, which moto plays on loopback: what is listed, scored on Ray, written, and gone on with."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from saqm.batch import Record, Settings, score_many
from saqm.cli import app
from saqm.errors import OutputError
from saqm.image import find_images
from saqm.scale import begin_parts, find_everywhere, save_parts

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'saqm[s3]'")
server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'saqm[dev]'")

FILES = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm")  # pydicom's own


@pytest.fixture(scope="module")
def store() -> Iterator[s3fs.S3FileSystem]:
    """An empty store with a bucket; what the environment says leads s3fs and Ray's workers to it and nowhere else."""
    playing = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    playing.start()
    host, port = playing.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "nowhere",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        yield store
        store.close_session(store.loop, store.s3)
        s3fs.S3FileSystem.clear_instance_cache()
    playing.stop()


@pytest.fixture(scope="module")
def archive(store: s3fs.S3FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DICOM files and its like, and the same in the bucket: s3://bucket/archive."""
    folder = tmp_path_factory.mktemp("store") / "archive"
    (folder / "inner [1]").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(Path(str(get_testdata_file(name))).read_bytes())
    (folder / "inner [1]" / "IM0001").write_bytes((folder / FILES[0]).read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "empty").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    with zipfile.ZipFile(folder / "more.zip", "w") as packed:
        packed.write(folder / FILES[0], "a/CT")
        packed.write(folder / FILES[1], "b/MR.dcm")
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"bucket/archive/{path.relative_to(folder)}", path.read_bytes())
    store.call_s3("put_object", Bucket="bucket", Key="archive/", Body=b"")  # as a console makes a folder
    return folder


def local(folder: Path, settings: Settings) -> list[Record]:
    """The records of files here, as those in the bucket are called."""
    made = [json.dumps(score.to_record()) for score in score_many(sorted(find_images([folder])), settings)]
    return [json.loads(record.replace(str(folder), "s3://bucket/archive")) for record in made]


def written(store: s3fs.S3FileSystem, folder: str) -> polars.DataFrame:
    return polars.concat([polars.read_parquet(store.cat_file(part)) for part in store.ls(folder, detail=False)])


def test_a_folder_and_a_pattern_find_what_they_would_find_here(archive: Path) -> None:
    files = {name.removeprefix(str(archive)).partition("!")[0] for name in find_images([archive])}
    expected = sorted(f"s3://bucket/archive{file}" for file in files)
    assert len(expected) == 6
    for url in ("s3://bucket", "s3://bucket/archive", "s3://bucket/archive/", "s3://bucket/arch*"):
        assert list(find_everywhere([url])) == expected
    assert list(find_everywhere(["s3://bucket/archive/*.dcm"])) == [f"s3://bucket/archive/{name}" for name in FILES]
    assert list(find_everywhere(["s3://bucket/archive/inner [1]/"])) == ["s3://bucket/archive/inner [1]/IM0001"]


def test_parts_are_put_into_a_bucket_and_gone_on_with(store: s3fs.S3FileSystem, archive: Path, toy_model: Path) -> None:
    settings, parts = Settings(model=toy_model, mask="none"), "s3://bucket/results/parts/"
    made = local(archive, settings)
    assert begin_parts(parts, settings) == set()
    save_parts(made[:4], parts, rows=2)
    known = begin_parts(parts, settings, resume=True)
    assert known == {record["path"] for record in made[:4]}
    save_parts([record for record in made if record["path"] not in known], parts, rows=2)
    table = written(store, "bucket/results/parts")
    assert table["path"].to_list() == [record["path"] for record in made]
    with pytest.raises(
        OutputError, match=r"s3://absent/parts\.run\.json: cannot be written: FileNotFoundError: .*bucket"
    ):
        begin_parts("s3://absent/parts", settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'saqm[s3]'")
def test_the_command_scores_a_bucket_on_ray_as_files_here(
    store: s3fs.S3FileSystem, archive: Path, toy_model: Path
) -> None:
    expected = local(archive, Settings(model=toy_model, mask="none"))
    command = ["score", "s3://bucket/archive/", "--on", "ray", "--jobs", "2", "--out", "s3://bucket/results/ray/"]
    command += ["--model", str(toy_model), "--mask", "none"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output  # some were not scored
    table = written(store, "bucket/results/ray")
    assert table["path"].to_list() == [record["path"] for record in expected]
    assert table["score"].to_list() == [record["score"] for record in expected]
    assert table["sha256"].to_list() == [record["sha256"] for record in expected]
    assert table["reasons"].to_list() == [record["reasons"] for record in expected]
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert "0 scored, 0 not scored" in done.output
    assert written(store, "bucket/results/ray").equals(table)
