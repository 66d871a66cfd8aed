"""Runs a model file: ONNX Runtime for .onnx, torch for .safetensors, behind one call.

Axes: N windows, C channels (3), P side of a window, D features of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from saqm.errors import MissingExtra, ModelFileError, NotScorable, SaqmError
from saqm.modelfile import ModelFile, ModelHeader, read_model, unpack
from saqm.patches import CHUNK, Preparation

if TYPE_CHECKING:
    from saqm.network import SAQM

EngineName = Literal["auto", "onnx", "torch"]
Forward = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]  # (CHUNK, 3, P, P) -> score, weight, feature

_INPUT, _OUTPUTS = "windows", ("score", "weight", "feature")
_NEEDS = {"onnx": ".onnx", "torch": ".safetensors"}


class WindowOutputs(NamedTuple):
    """What a model says of N windows: raw scores (N,), weights (N,) above 0, features (N, D); float32, finite."""

    scores_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]
    features_ND: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Engine:
    """A loaded model. `name` is what runs it ("onnx", "torch"); `sha256` and `path` are those of the model file."""

    name: str
    header: ModelHeader
    sha256: str
    forward: Forward
    path: Path

    @property
    def preparation(self) -> Preparation:
        """How the model's windows are cut."""
        return Preparation(**{f.name: getattr(self.header.preparation, f.name) for f in fields(Preparation)})

    def run(self, windows_N3PP: NDArray[np.float32]) -> WindowOutputs:
        """Judge N >= 1 windows, float32 (N, 3, P, P).

        The network always meets CHUNK windows at a time, the last batch filled up with zeros, so that a window's result
        has the same bits whatever else is judged with it, and memory stays bounded. Raises NotScorable for pixels that
        are not finite, and ModelFileError for a graph that gives anything but finite numbers and positive weights.
        """
        if not np.isfinite(windows_N3PP).all():
            raise NotScorable("pixels that are not finite (NaN or infinite)")
        parts = [self._chunk(windows_N3PP[start : start + CHUNK]) for start in range(0, len(windows_N3PP), CHUNK)]
        return WindowOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _chunk(self, windows_N3PP: NDArray[np.float32]) -> WindowOutputs:
        patch, count = self.header.preparation.patch, len(windows_N3PP)
        full = np.zeros((CHUNK, 3, patch, patch), np.float32)
        full[:count] = windows_N3PP
        made = self.forward(full)
        if [part.shape[:1] for part in made] != [(CHUNK,)] * 3 or [part.ndim for part in made] != [1, 1, 2]:
            shapes = ", ".join(f"{name} {part.shape}" for name, part in zip(_OUTPUTS, made, strict=True))
            raise self._broken(f"{CHUNK} windows gave {shapes}; wanted (N,), (N,), (N, D)")
        score, weight, feature = (np.asarray(part[:count], np.float32) for part in made)
        for name, part in zip(_OUTPUTS, (score, weight, feature), strict=True):
            if not np.isfinite(part).all():
                raise self._broken(f"{name} is not finite for sound windows")
        if weight.min() <= 0:
            raise self._broken(f"a window's weight is {weight.min():g}; weights are above 0")
        return WindowOutputs(score, weight, feature)

    def _broken(self, what: str) -> ModelFileError:
        return ModelFileError(f"model {self.header.name} {self.header.version} is broken: {what}")


def load_engine(path: str | Path, engine: EngineName = "auto", threads: int | None = None) -> Engine:
    """Load and verify a model file; "auto" goes by its suffix. `threads` is for one run; None leaves it to the engine.

    torch knows only one number of threads for the whole process: setting it here sets it there. Raises ModelFileError
    for a file that is refused, SaqmError for an engine that does not run it, MissingExtra without torch.
    """
    path = Path(path)
    if engine not in get_args(EngineName):
        raise SaqmError(f"unknown engine {engine!r}; choose {', '.join(get_args(EngineName))}")
    chosen = engine if engine != "auto" else "torch" if path.suffix == ".safetensors" else "onnx"
    if path.suffix != _NEEDS[chosen] and path.suffix in _NEEDS.values():
        raise SaqmError(f"{path}: engine {chosen} runs {_NEEDS[chosen]} files; use engine auto, or `saqm export`")
    model = read_model(path)
    forward = _onnx(path, model, threads) if chosen == "onnx" else _torch(path, model, threads)
    return Engine(chosen, model.header, model.sha256, forward, path)


def _onnx(path: Path, model: ModelFile, threads: int | None) -> Forward:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # its Windows build sends some
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only; they reach the caller as exceptions
    try:
        session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise ModelFileError(f"{path}: ONNX Runtime cannot load this graph: {error}") from error
    inputs, outputs = [i.name for i in session.get_inputs()], {o.name for o in session.get_outputs()}
    if inputs != [_INPUT] or not outputs.issuperset(_OUTPUTS):
        raise ModelFileError(
            f"{path}: foreign graph: {', '.join(inputs)} -> {', '.join(sorted(outputs))}; "
            f"wanted {_INPUT} -> {', '.join(_OUTPUTS)}"
        )

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            return tuple(session.run(_OUTPUTS, {_INPUT: windows}))
        except Exception as error:  # as above
            raise ModelFileError(f"{path}: ONNX Runtime cannot run this graph: {error}") from error

    return forward


def _torch(path: Path, model: ModelFile, threads: int | None) -> Forward:
    network = _network(path, model, "engine torch")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with torch.inference_mode():
            output = network(torch.from_numpy(windows))
        return tuple(cast("NDArray[np.float32]", getattr(output, name).numpy()) for name in _OUTPUTS)

    return forward


def attend(path: str | Path, windows_N3PP: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """What a .safetensors model attends to in N windows: (N, L, J), how far query L looks at key J; and gamma of Eq 3.

    Rows sum to one. Raises ModelFileError for a file that is refused, and MissingExtra without torch.
    """
    path = Path(path)
    network = _network(path, read_model(path), "attention")
    import torch

    with torch.inference_mode():
        _, attention_NLJ = network.attend(torch.from_numpy(windows_N3PP))
    return attention_NLJ.numpy(), network.gamma.item()


def _network(path: Path, model: ModelFile, purpose: str) -> SAQM:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtra("torch", "train", purpose) from error
    from saqm.network import SAQM

    try:
        network = SAQM.from_header(model.header)
        network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in unpack(model).items()})
    except RuntimeError as error:  # missing, foreign or misshapen tensors
        raise ModelFileError(f"{path}: the tensors are not those of its architecture: {error}") from error
    return network.eval()
