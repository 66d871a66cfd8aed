"""A taught network becomes a model file: .safetensors to train on, .onnx to score without torch, int8 to do so fast."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saqm.engine import Engine, load_engine
from saqm.errors import MissingExtra, ModelFileError
from saqm.image import Image
from saqm.modelfile import ModelHeader, read_header, read_model, read_tensors, write_onnx, write_safetensors
from saqm.network import SAQM, fuse_norms
from saqm.patches import CHUNK, cut
from saqm.quantise import quantise
from saqm.scorer import ModelScorer

OPSET = 18
WINDOWS = 256  # that int8 is calibrated on; half and twice as many gave scores as near to those in 32 bits


def save_network(network: SAQM, header: ModelHeader, path: str | Path) -> ModelHeader:
    """Write a network's weights as NAME.safetensors under a header; the header as written. Raises OutputError."""
    tensors = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    return write_safetensors(tensors, header, path)


def load_network(path: str | Path) -> tuple[SAQM, ModelHeader]:
    """The network of a .safetensors model file, ready to score. Raises ModelFileError."""
    header = read_header(path)
    network = SAQM.from_header(header)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in read_tensors(path).items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: its weights do not fit the architecture in its header: {error}") from error
    return network.eval(), header


def export_onnx(network: SAQM, header: ModelHeader, path: str | Path) -> ModelHeader:
    """Write the network as a graph windows -> score, weight, feature, batch normalisation folded in.

    Raises MissingExtra without onnx, OutputError where the path cannot be written.
    """
    return write_onnx(onnx_graph(network), header, path)


def onnx_graph(network: SAQM) -> bytes:
    """The serialised graph, weights inside, any number of windows."""
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it and says so less plainly
    except ImportError as error:
        raise MissingExtra("onnxscript", "train", "export to ONNX") from error
    side = 32
    example = torch.zeros(CHUNK, 3, side, side)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals, not of this graph
            program = torch.onnx.export(
                _Outputs(fuse_norms(network)),
                (example,),
                input_names=["windows"],
                output_names=["score", "weight", "feature"],
                dynamic_shapes={"windows_B3PP": {0: torch.export.Dim("N")}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            return _without_traces(program.model_proto)
    finally:
        quiet.setLevel(level)


def _without_traces(proto: Any) -> bytes:
    """The graph's bytes without the exporter's notes, which hold stack traces: the paths of whoever exported it."""
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    data: bytes = proto.SerializeToString()
    return data


def export_int8(model: str | Path, images: Sequence[Image], path: str | Path, *, name: str) -> ModelHeader:
    """Write a model's network in 8-bit integers under `name`, calibrated on windows of real images; the header written.

    Calibration, domain and results are those of the model; `training.results["int8"]` says how many images the integers
    were calibrated on, and by how many points scores of these images differ. Raises ModelFileError for a model that is
    in int8 already, NotScorable for an image without windows, MissingExtra without onnx, OutputError.
    """
    given = load_engine(model, threads=1)
    graph = read_model(given.path).data if given.path.suffix == ".onnx" else onnx_graph(load_network(model)[0])
    small = quantise(graph, _windows_of(images, given))
    header = given.header.model_copy(update={"name": name})
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "int8.onnx"
        write_onnx(small, header, trial)
        apart = np.abs(
            _scores(ModelScorer(load_engine(trial, threads=1)), images) - _scores(ModelScorer(given), images)
        )
    found = {"images": len(images), "mean_difference": float(apart.mean()), "largest_difference": float(apart.max())}
    training = header.training.model_copy(update={"results": {**header.training.results, "int8": found}})
    return write_onnx(small, header.model_copy(update={"training": training}), path)


def _windows_of(images: Sequence[Image], engine: Engine) -> NDArray[np.float32]:
    """About WINDOWS windows, as many of each image, evenly over what is judged of it."""
    parts = []
    for image in images:
        windows = cut(image, engine.preparation)
        count = min(len(windows), max(1, WINDOWS // len(images)))
        parts.append(windows.take(np.linspace(0, len(windows) - 1, count).astype(int)))
    return np.concatenate(parts)


def _scores(scorer: ModelScorer, images: Sequence[Image]) -> NDArray[np.float64]:
    return scorer.percent(np.array([scorer.observe(image).raw for image in images]))


def export_command(model: Path, *, to: str, out: Path | None, calibrate: Sequence[str] = ()) -> dict[str, Any]:
    """`saqm export`: a model into the form asked for, int8 calibrated on the image files named; what was written."""
    if to == "int8":
        return _export_int8(model, out, calibrate)
    if to != "onnx":
        raise ModelFileError(f"cannot export to {to!r}; wanted 'onnx' or 'int8'")
    network, header = load_network(model)
    path = out if out is not None else Path(model).with_suffix(".onnx")
    written = export_onnx(network, header, path)
    return {"model": str(path), "name": written.name, "weights_sha256": written.weights_sha256}


def _export_int8(model: Path, out: Path | None, calibrate: Sequence[str]) -> dict[str, Any]:
    from saqm.image import read_frames

    if not calibrate:
        raise ModelFileError("int8 is calibrated on real images: name some of those to be scored with --calibrate")
    name = f"{read_header(model).name}-int8"
    path = out if out is not None else Path(model).with_name(f"{name}.onnx")
    images = [image for file in calibrate for image in read_frames(file)]
    written = export_int8(model, images, path, name=name)
    found = written.training.results["int8"]
    made = {"model": str(path), "name": written.name, "weights_sha256": written.weights_sha256}
    return {**made, **(found if isinstance(found, dict) else {})}


class _Outputs(nn.Module):
    def __init__(self, network: SAQM) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows_B3PP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.network(windows_B3PP)
        return output.score, output.weight, output.feature
