"""Engines: the same window gives the same bits whatever else is judged, and a broken graph gives no number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from saqm.engine import Engine, load_engine
from saqm.errors import MissingExtra, ModelFileError, NotScorable, SaqmError
from saqm.modelfile import ModelHeader, write_onnx, write_safetensors
from saqm.patches import CHUNK


@pytest.fixture
def convolutions(tmp_path: Path, header: ModelHeader) -> Path:
    """A model file with real convolutions and matrix products, whose sums come in many orders."""
    from onnx import numpy_helper, parser

    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,32,32] windows, float[24,3,3,3] k1, float[40,24,3,3] k2, float[2560,33] w1, float[33,1] w2)
            => (float[N] score, float[N] weight, float[N,D] feature)
        {
            a = Conv<pads = [1, 1, 1, 1]>(windows, k1)
            b = Relu(a)
            c = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(b)
            d = Conv<pads = [1, 1, 1, 1]>(c, k2)
            e = Flatten(d)
            feature = MatMul(e, w1)
            scores = MatMul(feature, w2)
            axis = Constant<value_ints = [1]>()
            score = Squeeze(scores, axis)
            weight = Exp(score)
        }""")
    rng = np.random.default_rng(5)
    for name, shape in {"k1": (24, 3, 3, 3), "k2": (40, 24, 3, 3), "w1": (2560, 33), "w2": (33, 1)}.items():
        values = rng.standard_normal(shape) / np.sqrt(shape[0] if len(shape) == 2 else np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    del model.graph.input[1:]
    write_onnx(model.SerializeToString(), header, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def windows() -> np.ndarray:
    """More than two chunks, and a part of a third."""
    return np.random.default_rng(3).random((2 * CHUNK + 9, 3, 32, 32), np.float32)


def test_a_graph_gives_score_weight_and_feature_of_each_window(toy_model: Path, windows: np.ndarray):
    scores, weights, features = load_engine(toy_model).run(windows)
    np.testing.assert_allclose(scores, 1 + 4 * windows.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(weights, 1)
    np.testing.assert_allclose(features, windows.mean((2, 3)), rtol=1e-5)
    assert [part.dtype for part in (scores, weights, features)] == [np.float32] * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_engine_says_what_it_runs(toy_model: Path, header: ModelHeader):
    engine = load_engine(toy_model)
    assert engine.name == "onnx"
    assert engine.header.name == header.name
    assert len(engine.sha256) == 64


@pytest.mark.parametrize("threads", [1, 2])
def test_a_window_has_the_same_bits_alone_and_in_any_company(convolutions: Path, windows: np.ndarray, threads: int):
    engine = load_engine(convolutions, threads=threads)
    together = engine.run(windows)
    order = np.random.default_rng(1).permutation(len(windows))
    for ours, shuffled in zip(together, engine.run(windows[order]), strict=True):
        np.testing.assert_array_equal(ours[order], shuffled)
    for count in (1, 7, CHUNK, CHUNK + 1):
        for ours, fewer in zip(together, engine.run(windows[:count]), strict=True):
            np.testing.assert_array_equal(ours[:count], fewer)


def test_the_number_of_threads_changes_no_bit(convolutions: Path, windows: np.ndarray):
    one, two = (load_engine(convolutions, threads=threads).run(windows) for threads in (1, 2))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_network_always_meets_full_chunks(header: ModelHeader, windows: np.ndarray):
    met = []

    def forward(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        met.append(batch)
        return batch.mean((1, 2, 3)), np.ones(len(batch), np.float32), batch.mean((2, 3))

    Engine("toy", header, "", forward, Path("toy.onnx")).run(windows)
    assert [batch.shape for batch in met] == [(CHUNK, 3, 32, 32)] * 3
    np.testing.assert_array_equal(met[2][9:], 0)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"weight": "Identity(zeros)"}, "a window's weight is 0; weights are above 0"),
        ({"weight": "Neg(ones)"}, "a window's weight is -1"),
        ({"score": "Div(zeros, zeros)"}, "score is not finite for sound windows"),
        ({"weight": "Div(ones, zeros)"}, "weight is not finite"),
        ({"feature": "Identity(ones)"}, r"16 windows gave score \(16,\), weight \(16,\), feature \(16,\)"),
        ({"score": "ReduceMean(ones)"}, r"16 windows gave score \(1,\)"),
        ({"side": 48}, "ONNX Runtime cannot run this graph: .*Got invalid dimensions"),
        ({"score": "Identity(one)"}, "16 windows gave score"),
    ],
)
def test_a_broken_graph_gives_an_error_and_no_number(
    toy_model: Path, header: ModelHeader, toy_onnx: Callable[..., bytes], graph: dict[str, str], message: str
):
    write_onnx(toy_onnx(**graph), header, toy_model)
    with pytest.raises(ModelFileError, match=message):
        load_engine(toy_model).run(np.full((3, 3, 32, 32), 0.5, np.float32))


def test_a_graph_with_other_doors_is_foreign(tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]):
    write_onnx(toy_onnx(windows="pictures"), header, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match=r"foreign graph: pictures -> feature, score, weight; wanted windows -> "):
        load_engine(tmp_path / "a.onnx")


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path, header: ModelHeader):
    write_onnx(b"\x08\x08", header, tmp_path / "a.onnx")  # a ModelProto that only says its version
    with pytest.raises(ModelFileError, match="ONNX Runtime cannot load this graph"):
        load_engine(tmp_path / "a.onnx")


def test_pixels_that_are_not_finite_are_the_images_fault(toy_model: Path, windows: np.ndarray):
    windows[3, 0, 0, 0] = np.nan
    with pytest.raises(NotScorable, match="not finite"):
        load_engine(toy_model).run(windows)


def test_a_changed_file_is_not_loaded(toy_model: Path):
    data = bytearray(toy_model.read_bytes())
    data[40] ^= 1
    toy_model.write_bytes(data)
    with pytest.raises(ModelFileError):
        load_engine(toy_model)


def test_unknown_and_unfitting_engines_say_what_fits(toy_model: Path):
    with pytest.raises(SaqmError, match="unknown engine 'tensorrt'; choose auto, onnx, openvino, openvino-bf16, torch"):
        load_engine(toy_model, "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(SaqmError, match=r"toy\.onnx: engine torch runs \.safetensors files"):
        load_engine(toy_model, "torch")
    with pytest.raises(ModelFileError, match="a model file is named"):
        load_engine(toy_model.with_suffix(".pt"))


@pytest.fixture
def toy_tensors(tmp_path: Path, header: ModelHeader) -> Path:
    write_safetensors({"factor": np.array(4, np.float32)}, header, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_torch_missing_names_the_install_line(toy_tensors: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"engine torch needs torch: pip install 'saqm\[train\]'"):
        load_engine(toy_tensors)


def toy_network() -> ModuleType:
    """A stand-in for saqm.network in which brightness is quality, as in the toy graph."""
    from types import SimpleNamespace

    import torch

    class SAQM(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.0))

        @classmethod
        def from_header(cls, header: ModelHeader) -> SAQM:
            assert header.name == "toy"
            return cls()

        def embed(self, windows: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return windows.mean((2, 3))

        def judge(self, feature: torch.Tensor) -> SimpleNamespace:
            assert feature.dtype == torch.float32
            score = 1 + self.factor * feature.mean(1)
            return SimpleNamespace(score=score, weight=torch.ones_like(score), feature=feature)

    module = ModuleType("saqm.network")
    module.SAQM = SAQM  # type: ignore[attr-defined]
    module.fuse_norms = lambda network: network.eval()  # type: ignore[attr-defined]
    return module


def test_torch_runs_safetensors_and_agrees_with_onnx(
    toy_model: Path, toy_tensors: Path, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "saqm.network", toy_network())
    engine = load_engine(toy_tensors)
    assert engine.name == "torch"
    for ours, theirs in zip(engine.run(windows), load_engine(toy_model).run(windows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_tensors_of_another_architecture_are_refused(
    tmp_path: Path, header: ModelHeader, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "saqm.network", toy_network())
    write_safetensors({"other": np.zeros(3, np.float32)}, header, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="the tensors are not those of its architecture"):
        load_engine(tmp_path / "a.safetensors")
