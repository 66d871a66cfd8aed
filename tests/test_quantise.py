"""Integers: what is quantised and what is not, how near the scores stay, and what happens where a machine cannot."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saqm import engine as engine_module
from saqm import quantise as quantise_module
from saqm.engine import EngineName, load_engine
from saqm.errors import MissingExtra, ModelFileError, SaqmError
from saqm.export import export_command
from saqm.image import read_image
from saqm.modelfile import DEFAULT_MODEL, Form, ModelHeader, open_model, read_header, write_onnx
from saqm.patches import CHUNK
from saqm.quantise import LARGEST_WEIGHT, quantise
from saqm.scorer import ModelScorer, load_scorer

Array = np.ndarray


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # one trial for all tests


@pytest.fixture(scope="module")
def graph() -> bytes:
    """A network like SAQM's in small: four 3x3 convolutions, two poolings, a projection."""
    from onnx import numpy_helper, parser

    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,32,32] windows, float[8,3,3,3] k1, float[8] b1, float[16,8,3,3] k2, float[16] b2,
             float[16,16,3,3] k3, float[16] b3, float[24,16,3,3] k4, float[24] b4, float[12,24,1,1] k5, float[12] b5)
            => (float[N] score, float[N] weight, float[N,D] feature)
        {
            a = Conv<pads = [1, 1, 1, 1]>(windows, k1, b1)
            ra = Relu(a)
            b = Conv<pads = [1, 1, 1, 1]>(ra, k2, b2)
            rb = Relu(b)
            pb = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rb)
            c = Conv<pads = [1, 1, 1, 1]>(pb, k3, b3)
            rc = Relu(c)
            d = Conv<pads = [1, 1, 1, 1]>(rc, k4, b4)
            rd = Relu(d)
            pd = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rd)
            e = Conv(pd, k5, b5)
            re = Relu(e)
            places = Constant<value_ints = [2, 3]>()
            parts = Constant<value_ints = [1]>()
            feature = ReduceMean<keepdims = 0>(re, places)
            score = ReduceMean<keepdims = 0>(feature, parts)
            weight = Exp(score)
        }""")
    rng = np.random.default_rng(5)
    for given in list(model.graph.input)[1:]:
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), given.name))
    del model.graph.input[1:]
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def windows() -> Array:
    return np.random.default_rng(3).standard_normal((2 * CHUNK + 9, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def small(graph: bytes, windows: Array) -> bytes:
    return quantise(graph, windows[:48])


@pytest.fixture
def models(tmp_path: Path, header: ModelHeader, graph: bytes, small: bytes) -> tuple[Path, Path]:
    """The same network in 32 bits and in 8."""
    write_onnx(graph, header, tmp_path / "net.onnx")
    write_onnx(small, header, tmp_path / "net-int8.onnx")
    return tmp_path / "net.onnx", tmp_path / "net-int8.onnx"


def openvino_or_skip(engine: str) -> None:
    if engine.startswith("openvino") and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'saqm[openvino]'")


# The graph


def test_inner_3x3_convolutions_have_integer_weights_and_the_rest_has_not(small: bytes) -> None:
    import onnx

    model = onnx.load_from_string(small)
    kinds = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    inputs = {node.output[0]: list(node.input) for node in model.graph.node if node.op_type == "Conv"}
    assert inputs["a"] == ["windows", "k1", "b1"]
    assert inputs["e"] == ["pd/rounded", "k5", "b5"]
    assert inputs["b"] == ["ra/rounded", "b/weight/rounded", "b/bias/rounded"]
    assert {name for name, values in kinds.items() if values.dtype == np.int8} == {
        f"{c}/weight/integers" for c in "bcd"
    }
    for convolution, outputs in (("b", 16), ("c", 16), ("d", 24)):
        integers = kinds[f"{convolution}/weight/integers"]
        np.testing.assert_array_equal(np.abs(integers).max((1, 2, 3)), LARGEST_WEIGHT)  # each channel by its own scale
        assert kinds[f"{convolution}/weight/scale"].shape == (outputs,)
        assert kinds[f"{convolution}/bias/integers"].dtype == np.int32
    assert not {"k2", "b2"} & set(kinds)


def test_no_two_products_overflow_16_bits() -> None:
    assert 2 * quantise_module.LARGEST * LARGEST_WEIGHT < 2**15


def test_onnx_runtime_computes_it_in_integers(small: bytes, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "made.onnx")
    onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "made.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1  # at the two ends, none between


def test_scores_stay_near(models: tuple[Path, Path], windows: Array) -> None:
    whole, small = (load_engine(path).run(windows) for path in models)
    np.testing.assert_allclose(small.scores_N, whole.scores_N, rtol=0, atol=0.25 * whole.scores_N.std())
    assert np.corrcoef(whole.scores_N, small.scores_N)[0, 1] > 0.995
    assert not np.array_equal(whole.scores_N, small.scores_N)


def test_biases_take_up_what_rounding_shifts(graph: bytes, windows: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def shift(quantised: bytes) -> float:
        """Mean distance of the features' means, over the windows, from those in 32 bits."""
        means = []
        for data in (graph, quantised):
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            means.append(session.run(["feature"], {"windows": windows})[0].mean(0))
        return float(np.abs(means[1] - means[0]).mean())

    monkeypatch.setattr(quantise_module, "LARGEST_WEIGHT", 7)  # coarse, so that there is a shift to see
    mended = shift(quantise(graph, windows))
    monkeypatch.setattr(quantise_module, "_under_taps", lambda mean_CPP, taps: np.zeros((len(mean_CPP), taps, taps)))
    assert mended < 0.3 * shift(quantise(graph, windows))


def test_a_scale_weighs_clipping_against_coarseness() -> None:
    even, outlier = np.ones(quantise_module.BINS), np.ones(quantise_module.BINS)
    outlier[quantise_module.BINS // 4 :] = 0
    outlier[-1] = 1e-4  # one value in ten million lies four times as far as the others
    assert quantise_module._scale(even, 255.0) == pytest.approx(1.0, abs=0.02)
    assert quantise_module._scale(outlier, 255.0) == pytest.approx(0.25, abs=0.02)


def test_the_same_windows_give_the_same_file(graph: bytes, small: bytes, windows: Array) -> None:
    assert quantise(graph, windows[:48]) == small


def test_what_cannot_be_quantised_is_refused(graph: bytes, small: bytes, toy_onnx: Callable[..., bytes]) -> None:
    windows = np.zeros((2, 3, 32, 32), np.float32)
    for data in (small, toy_onnx()):
        with pytest.raises(ModelFileError, match=r"no 3x3 convolution in 32 bits, .* to quantise"):
            quantise(data, windows)
    import onnx

    model = onnx.load_from_string(graph)
    dead = next(one for one in model.graph.initializer if one.name == "b2")
    dead.CopyFrom(onnx.numpy_helper.from_array(np.full(16, -1e6, np.float32), "b2"))
    with pytest.raises(ModelFileError, match=r"(pb|rb) is zero for every window given: calibrate on other images"):
        quantise(model.SerializeToString(), windows + 1)


def test_without_onnx_the_extra_is_named(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"export to int8 needs onnx: pip install 'saqm\[train\]'"):
        quantise(graph, np.zeros((1, 3, 32, 32), np.float32))


def test_a_convolution_without_bias_gets_one(graph: bytes, windows: Array) -> None:
    import onnx
    import onnxruntime

    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        if node.op_type == "Conv":
            del node.input[2:]
    made = []
    for data in (model.SerializeToString(), quantise(model.SerializeToString(), windows[:48])):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        made.append(session.run(["score"], {"windows": windows})[0])
    np.testing.assert_allclose(made[1], made[0], rtol=0, atol=0.25 * made[0].std())


# The engines


@pytest.mark.parametrize("engine", ["auto", "onnx", "openvino"])
def test_an_int8_file_is_run_in_int8_and_says_so(models: tuple[Path, Path], windows: Array, engine: EngineName) -> None:
    openvino_or_skip(engine)
    loaded, reference = load_engine(models[1], engine), load_engine(models[1])
    assert loaded.name == f"{'onnx' if engine == 'auto' else engine}-int8"
    assert loaded.warnings == ()
    scores = reference.run(windows).scores_N
    np.testing.assert_allclose(loaded.run(windows).scores_N, scores, atol=0.02 * scores.std())


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_integers_have_the_same_bits_in_any_company_and_number_of_threads(
    models: tuple[Path, Path], windows: Array, engine: EngineName
) -> None:
    openvino_or_skip(engine)
    together = load_engine(models[1], engine, threads=1).run(windows)
    alone = load_engine(models[1], engine, threads=2).run(windows[5:12])
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours[5:12], theirs)


def test_where_integer_kernels_die_the_same_numbers_come_in_32_bits(
    models: tuple[Path, Path], windows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load_engine(models[1]).run(windows)
    monkeypatch.setattr(engine_module, "_TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    loaded = load_engine(models[1])
    assert loaded.name == "onnx"
    (warning,) = loaded.warnings
    assert warning == (
        "engine onnx-int8 is not used on this machine (a trial of it died of an illegal instruction): "
        "onnx ran the model in 32 bits"
    )
    found = loaded.run(windows)
    np.testing.assert_allclose(found.scores_N, wanted.scores_N, atol=0.02 * wanted.scores_N.std())


def test_a_file_in_32_bits_asks_for_no_trial(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(*_: object, **__: object) -> str:
        raise AssertionError("a child process was started for nothing")

    monkeypatch.setattr(engine_module, "refusal", trial)
    assert load_engine(models[0]).name == "onnx"


def test_bf16_of_an_int8_file_is_refused(models: tuple[Path, Path]) -> None:
    with pytest.raises(SaqmError, match=r"in 8-bit integers and cannot be run by openvino-bf16; use engine auto"):
        load_engine(models[1], "openvino-bf16")


def test_a_card_that_speaks_of_integers_makes_no_int8_model(
    tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]
) -> None:
    write_onnx(toy_onnx(), header.model_copy(update={"card": "Not QuantizeLinear."}), tmp_path / "a.onnx")
    assert load_engine(tmp_path / "a.onnx").name == "onnx"


@pytest.mark.parametrize("which", [0, 1], ids=["32 bits", "int8"])
def test_openvino_missing_names_the_install_line(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"engine openvino needs openvino: pip install 'saqm\[openvino\]'"):
        load_engine(models[which], "openvino")


def test_openvino_agrees_in_32_bits_and_nearly_in_bf16(models: tuple[Path, Path], windows: Array) -> None:
    openvino_or_skip("openvino")
    whole = load_engine(models[0]).run(windows)
    same, coarse = load_engine(models[0], "openvino"), load_engine(models[0], "openvino-bf16")
    assert same.name == "openvino"
    for ours, theirs in zip(same.run(windows), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    if coarse.name == "openvino-bf16":  # else this machine refused, and said so
        np.testing.assert_allclose(coarse.run(windows).scores_N, whole.scores_N, atol=0.1 * whole.scores_N.std())
        assert not np.array_equal(coarse.run(windows).scores_N, whole.scores_N)
    else:
        assert "32 bits" in coarse.warnings[0]


@pytest.mark.parametrize(("form", "plain"), [("onnx", "openvino"), ("safetensors", "torch")])
def test_without_instructions_for_bf16_it_is_not_used_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, models: tuple[Path, Path], form: Form, plain: str
) -> None:
    """A trial would come through: torch emulates it slowly, OpenVINO computes in 32 bits without a word."""
    openvino_or_skip(plain)
    monkeypatch.setattr(engine_module, "computes_bf16", lambda: False)
    path = models[0] if form == "onnx" else open_model(DEFAULT_MODEL, form)
    loaded = load_engine(path, f"{plain}-bf16")  # type: ignore[arg-type]
    assert loaded.name == plain
    assert "no instructions for bfloat16" in loaded.warnings[0]
    assert f"{plain} ran the model in 32 bits" in loaded.warnings[0]


def test_openvino_refuses_a_foreign_and_a_broken_graph(
    tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]
) -> None:
    openvino_or_skip("openvino")
    write_onnx(toy_onnx(windows="pictures"), header, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match=r"foreign graph: pictures -> feature, score, weight"):
        load_engine(tmp_path / "a.onnx", "openvino")
    write_onnx(b"\x08\x08", header, tmp_path / "b.onnx")
    with pytest.raises(ModelFileError, match="OpenVINO cannot load this graph"):
        load_engine(tmp_path / "b.onnx", "openvino")


# The shipped model


@pytest.mark.slow
def test_torch_in_bf16_scores_the_shipped_model_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "computes_bf16", lambda: True)  # where it is not, torch emulates it
    windows = np.random.default_rng(1).standard_normal((CHUNK, 3, 32, 32), np.float32)
    path = open_model(DEFAULT_MODEL, "safetensors")
    whole, coarse = load_engine(path, "torch"), load_engine(path, "torch-bf16")
    assert whole.name == "torch"
    if coarse.name == "torch-bf16":
        apart = np.abs(coarse.run(windows).scores_N - whole.run(windows).scores_N)
        assert 0 < apart.mean() < 0.01
    else:
        assert "32 bits" in coarse.warnings[0]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaqmError, match="engine cuda was asked for and torch finds no GPU here"):
        load_engine(open_model(DEFAULT_MODEL, "safetensors"), "cuda")


@pytest.mark.slow
def test_the_shipped_integers_keep_scores_and_flags_of_the_weights_in_32_bits(ct_study: Path) -> None:
    """Scores within 0.5 of 100 in the mean; the whole study is in benchmarks/results/engines.json."""
    files = sorted((ct_study / "images").rglob("*.png"))[5::47]  # 14 versions of a scene: seven of them
    whole, small = (ModelScorer(load_engine(open_model(DEFAULT_MODEL, form))) for form in ("safetensors", "onnx"))
    pairs = [(whole.rate(image), small.rate(image)) for image in map(read_image, files)]
    assert np.mean([abs((a.score or 0) - (b.score or 0)) for a, b in pairs]) < 0.5
    for a, b in pairs:
        assert a.out_of_domain is not None
        assert b.out_of_domain is not None
        assert a.out_of_domain["flag"] == b.out_of_domain["flag"]


# The command


def test_int8_asks_for_images(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"calibrated on real images.*--calibrate"):
        export_command(tmp_path / "toy.onnx", to="int8", out=None)


def test_the_command_writes_beside_the_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for n in range(2):
        Image.fromarray(rng.integers(0, 255, (70, 90), np.uint8)).save(tmp_path / f"{n}.png")
    files = [str(tmp_path / f"{n}.png") for n in range(2)]
    made = export_command(models[0], to="int8", out=None, calibrate=files)
    assert Path(str(made["model"])) == tmp_path / "toy-int8.onnx"
    assert load_engine(tmp_path / "toy-int8.onnx").name == "onnx-int8"
    scores = [
        [float(load_scorer(path).percent(load_scorer(path).observe(read_image(file)).raw)) for file in files]
        for path in (models[0], tmp_path / "toy-int8.onnx")
    ]
    apart = np.abs(np.subtract(*scores))
    assert read_header(tmp_path / "toy-int8.onnx").training.results["int8"] == {
        "images": 2, "mean_difference": pytest.approx(apart.mean()), "largest_difference": pytest.approx(apart.max())
    }  # fmt: skip
