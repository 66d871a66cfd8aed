"""The model file: what is written is what is read, and anything else is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from saqm import modelfile
from saqm.errors import ModelFileError, OutputError
from saqm.modelfile import (
    ModelHeader,
    open_model,
    read_card,
    read_header,
    read_model,
    read_tensors,
    shipped,
    write_onnx,
    write_safetensors,
)
from saqm.patches import Preparation

TENSORS = {
    "trunk.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "gamma": np.array(0.25, np.float32),  # a scalar stays one
    "steps": np.array([3], np.int64),
}


@pytest.fixture
def toy_tensors(tmp_path: Path, header: ModelHeader) -> Path:
    write_safetensors(TENSORS, header, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


@pytest.fixture(params=["toy_model", "toy_tensors"])
def toy(request: pytest.FixtureRequest) -> Path:
    """The toy in both forms."""
    path: Path = request.getfixturevalue(request.param)
    return path


def rewritten(path: Path, old: str, new: str) -> Path:
    """The file with a piece of its header's text replaced by one of the same length."""
    assert len(old) == len(new)
    plain, escaped = old.encode(), json.dumps(old)[1:-1].encode()
    data = path.read_bytes()
    path.write_bytes(data.replace(plain, new.encode()).replace(escaped, json.dumps(new)[1:-1].encode()))
    assert path.read_bytes() != data
    return path


def test_the_header_comes_back_with_its_hashes(toy: Path, header: ModelHeader):
    read = read_header(toy)
    assert read.weights_sha256
    assert read.header_sha256
    assert read.model_copy(update={"weights_sha256": None, "header_sha256": None}) == header


def test_writing_returns_the_header_as_written(tmp_path: Path, header: ModelHeader):
    written = write_safetensors(TENSORS, header, tmp_path / "a.safetensors")
    assert written == read_header(tmp_path / "a.safetensors")


def test_tensors_come_back_bit_for_bit_and_in_shape(toy_tensors: Path):
    read = read_tensors(toy_tensors)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor, strict=True)


def test_a_transposed_tensor_is_written_as_it_looks(tmp_path: Path, header: ModelHeader):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors({"w": turned}, header, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.safetensors")["w"], turned)


def test_the_same_model_is_the_same_file(tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]):
    for name in ("a", "b"):
        write_onnx(toy_onnx(), header, tmp_path / f"{name}.onnx")
        write_safetensors(TENSORS, header, tmp_path / f"{name}.safetensors")
    for form in ("onnx", "safetensors"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


def test_onnx_itself_reads_our_metadata(toy_model: Path):
    import onnx

    model = onnx.load(toy_model)
    onnx.checker.check_model(model)
    (entry,) = model.metadata_props
    assert entry.key == "saqm"
    assert json.loads(entry.value)["name"] == "toy"


def test_a_new_header_replaces_the_old_and_keeps_foreign_metadata(tmp_path: Path, header: ModelHeader, toy_model: Path):
    import onnx

    model = onnx.load(toy_model)
    model.metadata_props.add(key="made by", value="somebody")
    renamed = header.model_copy(update={"name": "renamed"})
    write_onnx(model.SerializeToString(), renamed, tmp_path / "new.onnx")
    assert read_header(tmp_path / "new.onnx").name == "renamed"
    assert [entry.key for entry in onnx.load(tmp_path / "new.onnx").metadata_props] == ["made by", "saqm"]


def test_other_weights_have_another_hash(tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]):
    first = write_onnx(toy_onnx(), header, tmp_path / "a.onnx")
    second = write_onnx(toy_onnx(score="Identity(scaled)"), header, tmp_path / "a.onnx")
    assert first.weights_sha256 != second.weights_sha256


def test_any_flipped_byte_is_refused(toy: Path):
    whole = toy.read_bytes()
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 0x01
        toy.write_bytes(changed)
        with pytest.raises(ModelFileError):
            pytest.fail(f"byte {at} of {len(whole)} changed unnoticed: {read_header(toy)}")


def test_changed_weights_are_named(toy_tensors: Path):
    data = bytearray(toy_tensors.read_bytes())
    data[-1] ^= 0x80
    toy_tensors.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"toy\.safetensors: wrong hash: these are not the weights"):
        read_tensors(toy_tensors)


def test_a_changed_header_is_named(toy: Path):
    with pytest.raises(ModelFileError, match=r"wrong hash: the header was changed after it was written"):
        read_header(rewritten(toy, '"srocc": 0.5', '"srocc": 0.9'))


def test_a_newer_format_asks_for_a_newer_saqm(toy: Path):
    with pytest.raises(ModelFileError, match=r"format 2 is newer than this saqm reads \(1\): upgrade saqm"):
        read_header(rewritten(toy, '"format_version": 1', '"format_version": 2'))


def test_a_missing_field_is_named(toy: Path):
    with pytest.raises(ModelFileError, match=r"bad saqm header: training\.seed: Field required; training\.need: Extra"):
        read_header(rewritten(toy, '"seed":', '"need":'))


def test_a_header_without_format_version_is_refused(toy: Path):
    with pytest.raises(ModelFileError, match="damaged saqm header: no format_version"):
        read_header(rewritten(toy, '"format_version"', '"format-version"'))


def test_foreign_files_are_refused(tmp_path: Path, toy_onnx: Callable[..., bytes]):
    from safetensors.numpy import save_file

    (tmp_path / "a.onnx").write_bytes(toy_onnx())
    with pytest.raises(ModelFileError, match="foreign ONNX: no saqm header"):
        read_header(tmp_path / "a.onnx")
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="foreign safetensors: no saqm header"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a model", b"\xff" * 40, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_files_that_are_something_else_are_refused(tmp_path: Path, form: str, data: bytes):
    path = tmp_path / f"a.{form}"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=rf"a\.{form}: (not a {form} file|foreign)"):
        read_header(path)


def test_a_truncated_file_is_refused(toy: Path):
    whole = toy.read_bytes()
    for stop in (7, 9, len(whole) // 2, len(whole) - 1):
        toy.write_bytes(whole[:stop])
        with pytest.raises(ModelFileError):
            read_header(toy)


def test_only_the_two_forms_are_model_files(tmp_path: Path, header: ModelHeader):
    with pytest.raises(ModelFileError, match=r"model\.pt: a model file is named \.onnx or \.safetensors"):
        read_header(tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"a model file is named \.safetensors"):
        write_safetensors(TENSORS, header, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="no ONNX model"):
        write_onnx(b"\xff\xff", header, tmp_path / "model.onnx")


def test_only_safetensors_hold_weights_to_train_on(toy_model: Path):
    with pytest.raises(ModelFileError, match="an ONNX file only scores"):
        read_tensors(toy_model)


def test_a_header_that_json_cannot_hold_is_refused(tmp_path: Path, header: ModelHeader):
    training = header.training.model_copy(update={"results": {"srocc": float("nan")}})
    with pytest.raises(ModelFileError, match="'toy': the header cannot be written"):
        write_safetensors(TENSORS, header.model_copy(update={"training": training}), tmp_path / "a.safetensors")


def test_a_write_that_fails_leaves_the_old_file(
    toy_tensors: Path, header: ModelHeader, monkeypatch: pytest.MonkeyPatch
):
    before = read_model(toy_tensors)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"toy\.safetensors: cannot be written: No space left"):
        write_safetensors({"w": np.zeros(3)}, header, toy_tensors)
    assert read_model(toy_tensors) == before
    assert [file.name for file in toy_tensors.parent.iterdir()] == ["toy.safetensors"]


def test_a_folder_that_is_not_there_or_is_in_the_way_is_an_output_error(tmp_path: Path, header: ModelHeader):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        write_safetensors(TENSORS, header, tmp_path / "nowhere" / "a.safetensors")
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(OutputError, match="not an ordinary file"):
        write_safetensors(TENSORS, header, tmp_path / "a.safetensors")


def test_a_header_cannot_be_changed_or_hold_unknown_words(header: ModelHeader):
    with pytest.raises(ValidationError, match="frozen"):
        header.name = "other"
    with pytest.raises(ValidationError, match="colour"):
        ModelHeader.model_validate({**header.model_dump(), "colour": "red"})


def test_a_header_that_contradicts_itself_is_refused(header: ModelHeader):
    wrong = header.model_dump()
    wrong["architecture"]["patch"] = 48
    with pytest.raises(ValidationError, match="windows of 32 pixels for a network of 48"):
        ModelHeader.model_validate(wrong)
    with pytest.raises(ValidationError, match="low 5 is not below high 1"):
        modelfile.ScoreScale(low=5, high=1, higher_is_better=True, meaning="")


def test_the_preparation_in_the_header_mirrors_the_cutters():
    ours = {field.name for field in dataclasses.fields(Preparation)}
    assert set(modelfile.PreparationPolicy.model_fields) == ours | {"window", "mask"}


def test_a_shipped_model_has_a_name_and_a_card(toy_model: Path, toy_tensors: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modelfile, "MODELS", toy_model.parent)
    assert shipped() == ("toy",)
    assert open_model("toy") == toy_model
    assert open_model("toy", "safetensors") == toy_tensors
    with pytest.raises(ModelFileError, match=r"toy\.md: this model has no card"):
        read_card("toy")
    (toy_model.parent / "toy.md").write_text("# Toy\n", encoding="utf-8")
    assert read_card("toy") == read_card(toy_model) == "# Toy\n"


def test_a_path_is_opened_as_it_is(toy: Path):
    assert open_model(toy) == open_model(str(toy)) == toy


def test_an_unknown_name_lists_the_known(toy_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modelfile, "MODELS", toy_model.parent)
    with pytest.raises(ModelFileError, match=r"no model 'saqm-xy-0\.1': shipped are toy; or give a \.onnx"):
        open_model("saqm-xy-0.1")
    with pytest.raises(ModelFileError, match=r"nowhere\.onnx: no such file"):
        open_model("nowhere.onnx")


def test_reading_a_header_loads_no_engine(toy: Path):
    code = f"""
import sys
from saqm.modelfile import read_header
read_header({str(toy)!r})
assert not {{"onnx", "onnxruntime", "torch", "scipy", "pydicom"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
