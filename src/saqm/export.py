"""A taught network becomes a model file: .safetensors to train on, .onnx to score without torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saqm.errors import MissingExtra, ModelFileError
from saqm.modelfile import ModelHeader, read_header, read_tensors, write_onnx, write_safetensors
from saqm.network import SAQM, fuse_norms
from saqm.patches import CHUNK

OPSET = 18


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


def export_command(model: Path, *, to: str, out: Path | None) -> dict[str, Any]:
    """`saqm export`: a .safetensors model into the form asked for; what was written."""
    if to != "onnx":
        raise ModelFileError(f"cannot export to {to!r}; wanted 'onnx'")
    network, header = load_network(model)
    path = out if out is not None else Path(model).with_suffix(".onnx")
    written = export_onnx(network, header, path)
    return {"model": str(path), "name": written.name, "weights_sha256": written.weights_sha256}


class _Outputs(nn.Module):
    def __init__(self, network: SAQM) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows_B3PP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.network(windows_B3PP)
        return output.score, output.weight, output.feature
