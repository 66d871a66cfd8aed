"""A model file is the network: the same numbers from torch and from ONNX, and refusals where it is not."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from saqm.engine import load_engine
from saqm.errors import MissingExtra, ModelFileError, OutputError
from saqm.experiments import header_for
from saqm.export import export_command, export_onnx, load_network, save_network
from saqm.image import from_array
from saqm.modelfile import ModelHeader, read_header
from saqm.network import SAQM, Architecture, fuse_norms
from saqm.patches import CHUNK
from saqm.recipes import RECIPES
from saqm.scorer import load_scorer, score
from saqm.train import predict

SLIM = Architecture(
    width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(8, 8), members=3, weighted=True
)
PLAIN = Architecture(width=1 / 32, trunks="separate", norm="none", pool="max", hidden=(8,))
MEAN = replace(PLAIN, norm="batch", pool="mean", members=2)
ARCHITECTURES = {"slim": SLIM, "plain": PLAIN, "mean": MEAN}


def lively(architecture: Architecture) -> SAQM:
    """A network as if it were taught: attention that counts, running statistics, heads that tell windows apart."""
    network = SAQM(architecture, seed=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        network.gamma.fill_(0.7)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low, high in (
                    (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2), (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.4),
                ):  # fmt: skip
                    assert values is not None
                    values.uniform_(low, high, generator=generator)
        for head in network.heads:
            for parameter in head.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.eval()


def header_of(network: SAQM) -> ModelHeader:
    recipe = replace(RECIPES["target-only"], architecture=network.architecture)
    return header_for(
        network, recipe, {}, [],
        name="toy", version="1", seed=0, steps=1, epochs=1, commit="unknown", results={}, licence="none", card="A toy.",
    )  # fmt: skip


def windows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


# Weights


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_saved_network_is_loaded_bit_for_bit(tmp_path: Path, architecture: Architecture) -> None:
    network = lively(architecture)
    written = save_network(network, header_of(network), tmp_path / "toy.safetensors")
    loaded, header = load_network(tmp_path / "toy.safetensors")
    assert header == written == read_header(tmp_path / "toy.safetensors")
    assert loaded.architecture == architecture
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded(torch.from_numpy(windows(3))).score, network(torch.from_numpy(windows(3))).score)


def test_torch_engine_runs_a_saved_network(tmp_path: Path) -> None:
    network = lively(SLIM)
    save_network(network, header_of(network), tmp_path / "toy.safetensors")
    outputs = load_engine(tmp_path / "toy.safetensors").run(windows(5))
    with torch.inference_mode():
        wanted = network(torch.from_numpy(windows(5)))
    np.testing.assert_allclose(outputs.scores_N, wanted.score.numpy(), atol=1e-6)
    np.testing.assert_allclose(outputs.weights_N, wanted.weight.numpy(), rtol=1e-5)


@pytest.mark.parametrize("other", [replace(SLIM, width=1 / 16), replace(SLIM, members=2), replace(SLIM, norm="none")])
def test_weights_that_do_not_fit_their_header_are_refused(tmp_path: Path, other: Architecture) -> None:
    save_network(lively(SLIM), header_of(SAQM(other, seed=0)), tmp_path / "toy.safetensors")
    with pytest.raises(
        ModelFileError, match=r"toy\.safetensors: its weights do not fit the architecture in its header"
    ):
        load_network(tmp_path / "toy.safetensors")


def test_architectures_this_version_cannot_build_are_refused(tmp_path: Path) -> None:
    network = lively(SLIM)
    header = header_of(network)
    strange = header.model_copy(update={"architecture": header.architecture.model_copy(update={"key_ratio": 4})})
    save_network(network, strange, tmp_path / "toy.safetensors")
    with pytest.raises(ModelFileError, match=r"builds no network with .*'key_ratio': 4.*upgrade saqm"):
        load_network(tmp_path / "toy.safetensors")


# Batch normalisation


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_fused_norms_are_the_same_function(architecture: Architecture) -> None:
    network = lively(architecture)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused = fuse_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.inference_mode():
        ours, theirs = fused(torch.from_numpy(windows(6))), network(torch.from_numpy(windows(6)))
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)
    assert theirs.score.std() > 1e-3  # the windows are told apart, or nothing is shown
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # a copy was fused


def test_fusing_a_network_in_training_leaves_it_in_training() -> None:
    network = lively(SLIM).train()
    fused = fuse_norms(network)
    assert network.training
    assert not fused.training


# ONNX: each export takes long, so two networks stand for the family


class Exported(NamedTuple):
    network: SAQM
    path: Path


@pytest.fixture(scope="module", params=["slim", "plain"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = lively(ARCHITECTURES[request.param])
    path = tmp_path_factory.mktemp(request.param) / "toy.onnx"
    header = export_onnx(network, header_of(network), path)
    assert header == read_header(path)
    return Exported(network, path)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, CHUNK, CHUNK + 1])
def test_onnx_says_what_torch_says_for_any_number_of_windows(exported: Exported, count: int) -> None:
    given = windows(count, seed=count)
    outputs = load_engine(exported.path, "onnx").run(given)
    with torch.inference_mode():
        wanted = exported.network(torch.from_numpy(given))
    np.testing.assert_allclose(outputs.scores_N, wanted.score.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs.weights_N, wanted.weight.numpy(), rtol=1e-4)
    scale = float(wanted.feature.abs().max())
    np.testing.assert_allclose(outputs.features_ND, wanted.feature.numpy(), rtol=0, atol=1e-5 * max(1, scale))
    assert outputs.features_ND.shape == (count, exported.network.architecture.features)
    if count > 1:
        assert outputs.scores_N.std() > 1e-3
    if not exported.network.architecture.weighted:
        np.testing.assert_array_equal(outputs.weights_N, 1)


@pytest.mark.slow
def test_onnx_takes_windows_one_by_one_without_its_batch_size_in_it(exported: Exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("windows", [3, 32, 32])
    assert isinstance(given.shape[0], str)
    assert [output.name for output in session.get_outputs()] == ["score", "weight", "feature"]
    one = session.run(["score"], {"windows": windows(7)[2:3]})[0]
    np.testing.assert_allclose(one, session.run(["score"], {"windows": windows(7)})[0][2:3], atol=1e-6)


@pytest.mark.slow
def test_scorer_gives_what_training_s_predict_gives(exported: Exported) -> None:
    rng = np.random.default_rng(2)
    mask = np.ones((150, 201), bool)
    mask[:40, :60] = False
    for pixels, given in ((rng.random((150, 201)), mask), (rng.random((70, 70)), None)):
        image = from_array(pixels.astype(np.float32), modality="CT", mask=given)
        found = score(image, load_scorer(exported.path))
        wanted = predict(exported.network, image, RECIPES["target-only"].preparation)
        assert found.score_raw == pytest.approx(wanted, abs=1e-4)
        assert found.score == pytest.approx(100 * wanted, abs=1e-2)


@pytest.mark.slow
def test_header_travels_with_the_graph(exported: Exported) -> None:
    header = read_header(exported.path)
    assert SAQM.from_header(header).architecture == exported.network.architecture
    assert header.architecture.model_dump().items() >= asdict(exported.network.architecture).items()
    assert header.weights_sha256


# The command


def test_other_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot export to 'int4'; wanted 'onnx' or 'int8'"):
        export_command(tmp_path / "toy.safetensors", to="int4", out=None)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"toy\.safetensors"):
        export_command(tmp_path / "toy.safetensors", to="onnx", out=None)
    assert not (tmp_path / "toy.onnx").exists()


def test_export_command_writes_beside_the_weights_or_where_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_onnx: object
) -> None:
    assert callable(toy_onnx)
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    network = lively(SLIM)
    save_network(network, header_of(network), tmp_path / "toy.safetensors")
    beside = export_command(tmp_path / "toy.safetensors", to="onnx", out=None)
    told = export_command(tmp_path / "toy.safetensors", to="onnx", out=tmp_path / "other.onnx")
    assert Path(str(beside["model"])) == tmp_path / "toy.onnx"
    assert Path(str(told["model"])) == tmp_path / "other.onnx"
    assert told["name"] == read_header(tmp_path / "other.onnx").name == "toy"
    with pytest.raises(OutputError, match="cannot be written"):
        export_command(tmp_path / "toy.safetensors", to="onnx", out=tmp_path / "none" / "other.onnx")


def test_without_the_exporter_s_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    network = lively(SLIM)
    with pytest.raises(MissingExtra, match=r"onnxscript.*saqm\[train\]"):
        export_onnx(network, header_of(network), tmp_path / "toy.onnx")
    assert not (tmp_path / "toy.onnx").exists()
