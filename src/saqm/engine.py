"""Runs a model file: ONNX Runtime or OpenVINO for .onnx, torch for .safetensors, behind one call.

Axes: N windows, C channels (3), P side of a window, D features of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from saqm.engine_trial import computes_bf16, refusal
from saqm.errors import MissingExtra, ModelFileError, NotScorable, SaqmError
from saqm.modelfile import Form, ModelFile, ModelHeader, read_model, unpack
from saqm.patches import CHUNK, Preparation

if TYPE_CHECKING:
    from torch import Tensor

    from saqm.network import SAQM

EngineName = Literal["auto", "onnx", "openvino", "openvino-bf16", "torch", "torch-bf16", "cuda", "cuda-bf16"]
Forward = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]  # (N, 3, P, P) -> score, weight, feature

# Windows that a GPU meets at a time: CHUNK of them, 1.7 G multiply-accumulates in the shipped network, would be over
# before the next could be launched. Not measured: no GPU was at hand.
GPU_CHUNK = 64

_INPUT, _OUTPUTS = "windows", ("score", "weight", "feature")
_INT8 = b"\x22\x0eQuantizeLinear"  # NodeProto's op_type as it stands in the file: the graph is in 8-bit integers
_PACKAGE = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch", "cuda": "torch"}
_TRIAL = "from saqm.engine import rehearse; rehearse(sys.argv[1], sys.argv[2])"


class WindowOutputs(NamedTuple):
    """What a model says of N windows: raw scores (N,), weights (N,) above 0, features (N, D); float32, finite."""

    scores_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]
    features_ND: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Engine:
    """A loaded model. `sha256` and `path` are those of the model file.

    name: what runs it, and in which precision if not 32 bits: "onnx", "onnx-int8", "openvino-bf16", "torch".
    warnings: what else a record should say of how it was run. batch: how many windows `forward` takes, always.
    """

    name: str
    header: ModelHeader
    sha256: str
    forward: Forward
    path: Path
    warnings: tuple[str, ...] = ()
    batch: int = CHUNK

    @property
    def preparation(self) -> Preparation:
        """How the model's windows are cut."""
        return Preparation(**{f.name: getattr(self.header.preparation, f.name) for f in fields(Preparation)})

    def run(self, windows_N3PP: NDArray[np.float32]) -> WindowOutputs:
        """Judge N >= 1 windows, float32 (N, 3, P, P).

        The network always meets `batch` windows at a time, the last batch filled up with zeros, so that a window's
        result has the same bits whatever else is judged with it, and memory stays bounded. Raises NotScorable for
        pixels that are not finite, and ModelFileError for a graph that gives anything but finite numbers and positive
        weights.
        """
        if not np.isfinite(windows_N3PP).all():
            raise NotScorable("pixels that are not finite (NaN or infinite)")
        starts = range(0, len(windows_N3PP), self.batch)
        parts = [self._judge(windows_N3PP[start : start + self.batch]) for start in starts]
        return WindowOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _judge(self, windows_N3PP: NDArray[np.float32]) -> WindowOutputs:
        patch, count = self.header.preparation.patch, len(windows_N3PP)
        full = np.zeros((self.batch, 3, patch, patch), np.float32)
        full[:count] = windows_N3PP
        made = self.forward(full)
        if [part.shape[:1] for part in made] != [(self.batch,)] * 3 or [part.ndim for part in made] != [1, 1, 2]:
            shapes = ", ".join(f"{name} {part.shape}" for name, part in zip(_OUTPUTS, made, strict=True))
            raise self._broken(f"{self.batch} windows gave {shapes}; wanted (N,), (N,), (N, D)")
        score, weight, feature = (np.asarray(part[:count], np.float32) for part in made)
        for name, part in zip(_OUTPUTS, (score, weight, feature), strict=True):
            if not np.isfinite(part).all():
                raise self._broken(f"{name} is not finite for sound windows")
        if weight.min() <= 0:
            raise self._broken(f"a window's weight is {weight.min():g}; weights are above 0")
        return WindowOutputs(score, weight, feature)

    def _broken(self, what: str) -> ModelFileError:
        return ModelFileError(f"model {self.header.name} {self.header.version} is broken: {what}")


def form_of(engine: EngineName) -> Form:
    """Which form of a model file an engine runs; "auto" means the one that needs no torch."""
    return "safetensors" if engine.startswith(("torch", "cuda")) else "onnx"


def load_engine(path: str | Path, engine: EngineName = "auto", threads: int | None = None) -> Engine:
    """Load and verify a model file; "auto" goes by its suffix: onnx, or torch. The precision is the file's.

    `threads` is for one run; None leaves it to the engine. torch knows only one number of threads for the whole
    process: setting it here sets it there. Whatever computes in less than 32 bits on a CPU is tried in a child process
    first; if that dies, or the processor has no bfloat16, the same model runs in 32 bits, and the engine's name and
    warnings say so.
    Raises ModelFileError for a file that is refused, SaqmError for an engine that does not run it or a GPU that is not
    there, MissingExtra without the engine's package.
    """
    path = Path(path)
    if engine not in get_args(EngineName):
        raise SaqmError(f"unknown engine {engine!r}; choose {', '.join(get_args(EngineName))}")
    chosen = engine if engine != "auto" else "torch" if path.suffix == ".safetensors" else "onnx"
    if path.suffix != f".{form_of(chosen)}" and path.suffix in (f".{form}" for form in get_args(Form)):
        raise SaqmError(f"{path}: engine {chosen} runs .{form_of(chosen)} files; use engine auto, or `saqm export`")
    model = read_model(path)
    name = _named(path, model, chosen)
    warnings: tuple[str, ...] = ()
    library, _, precision = name.partition("-")
    if library == "openvino" and find_spec("openvino") is None:  # asked for by name: nothing else runs in its place
        raise MissingExtra("openvino", "openvino", "engine openvino")
    if precision and library != "cuda":
        if precision == "bf16" and computes_bf16() is False:
            reason: str | None = "its processor has no instructions for bfloat16"
        else:
            reason = refusal(_TRIAL, str(path), chosen, package=_PACKAGE[library], about=f"{name} {model.sha256}")
        if reason is not None:
            plain = "onnx" if precision == "int8" else library
            warnings = (f"engine {name} is not used on this machine ({reason}): {plain} ran the model in 32 bits",)
            name = plain
    forward, batch = _forward(path, model, name, threads), GPU_CHUNK if library == "cuda" else CHUNK
    return Engine(name, model.header, model.sha256, forward, path, warnings, batch)


def rehearse(path: str | Path, engine: EngineName) -> None:
    """Run a model file once, untried, as the child process of a trial does."""
    path = Path(path)
    model = read_model(path)
    name = _named(path, model, engine)
    patch = model.header.preparation.patch
    windows = np.random.default_rng(0).standard_normal((CHUNK, 3, patch, patch), np.float32)
    _forward(path, model, name, threads=1)(windows)


def _named(path: Path, model: ModelFile, chosen: str) -> str:
    """The engine's name with the precision it will run this file in."""
    if path.suffix == ".safetensors" or _INT8 not in model.data:
        return chosen
    if "-" in chosen:
        raise SaqmError(f"{path}: is in 8-bit integers and cannot be run by {chosen}; use engine auto")
    return f"{chosen}-int8"


def _forward(path: Path, model: ModelFile, name: str, threads: int | None) -> Forward:
    library, _, precision = name.partition("-")
    if library == "onnx":
        return _onnx(path, model, threads, whole=precision == "")
    if library == "openvino":
        return _openvino(path, model, threads, "bf16" if precision == "bf16" else "f32")
    return _torch(path, model, threads, cuda=library == "cuda", coarse=precision == "bf16")


def _onnx(path: Path, model: ModelFile, threads: int | None, *, whole: bool) -> Forward:
    """`whole`: a graph in 8-bit integers, too, is computed in 32 bits; its numbers are rounded as they would be."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # its Windows build sends some
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only; they reach the caller as exceptions
    options.add_session_config_entry("session.disable_quant_qdq", str(int(whole)))
    try:
        session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise ModelFileError(f"{path}: ONNX Runtime cannot load this graph: {error}") from error
    _refuse_foreign(path, [i.name for i in session.get_inputs()], {o.name for o in session.get_outputs()})

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            return tuple(session.run(_OUTPUTS, {_INPUT: windows}))
        except Exception as error:  # as above
            raise ModelFileError(f"{path}: ONNX Runtime cannot run this graph: {error}") from error

    return forward


def _openvino(path: Path, model: ModelFile, threads: int | None, precision: Literal["f32", "bf16"]) -> Forward:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtra("openvino", "openvino", "engine openvino") from error
    from io import BytesIO

    patch = model.header.preparation.patch
    # Without the hint it takes bf16 wherever the machine has it; 8-bit integers are the graph's own and stay.
    wanted: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if threads is not None:
        wanted["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino.Core()
        graph = core.read_model(BytesIO(model.data))
        _refuse_foreign(path, [_name_of(i) for i in graph.inputs], {_name_of(o) for o in graph.outputs})
        graph.reshape({_INPUT: [CHUNK, 3, patch, patch]})
        request = core.compile_model(graph, "CPU", wanted).create_infer_request()
    except RuntimeError as error:
        raise ModelFileError(f"{path}: OpenVINO cannot load this graph: {error}") from error

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            made = request.infer({_INPUT: windows})
        except RuntimeError as error:
            raise ModelFileError(f"{path}: OpenVINO cannot run this graph: {error}") from error
        return tuple(np.array(made[output]) for output in _OUTPUTS)

    return forward


def _name_of(port: Any) -> str:
    return str(port.get_any_name())


def _refuse_foreign(path: Path, inputs: list[str], outputs: set[str]) -> None:
    if inputs != [_INPUT] or not outputs.issuperset(_OUTPUTS):
        raise ModelFileError(
            f"{path}: foreign graph: {', '.join(inputs)} -> {', '.join(sorted(outputs))}; "
            f"wanted {_INPUT} -> {', '.join(_OUTPUTS)}"
        )


def _torch(path: Path, model: ModelFile, threads: int | None, *, cuda: bool, coarse: bool) -> Forward:
    """`coarse`: the towers in bfloat16; the heads, which cost nothing, stay in 32 bits."""
    network = _network(path, model, "engine cuda" if cuda else "engine torch")
    import torch

    from saqm.network import fuse_norms

    if threads is not None:
        torch.set_num_threads(threads)
    if cuda and not torch.cuda.is_available():
        raise SaqmError("engine cuda was asked for and torch finds no GPU here; use engine auto")
    device = "cuda" if cuda else "cpu"
    network = fuse_norms(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judged(windows_N3PP: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device, torch.bfloat16, enabled=coarse, cache_enabled=False):
            feature_ND = network.embed(windows_N3PP)
        output = network.judge(feature_ND.float())
        return tuple(getattr(output, name) for name in _OUTPUTS)

    run = _recorded(judged, model.header.preparation.patch) if cuda else judged

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with torch.inference_mode():
            made = run(torch.from_numpy(windows).contiguous(memory_format=torch.channels_last))
        return tuple(cast("NDArray[np.float32]", part.cpu().numpy()) for part in made)

    return forward


def _recorded(judged: Callable[[Tensor], tuple[Tensor, ...]], patch: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The same on a GPU as one CUDA graph, for a chunk is far shorter than the launches of its kernels.

    Written by the book and never run: no GPU was at hand (https://docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False  # 32 bits are 32 bits
    given = torch.zeros(GPU_CHUNK, 3, patch, patch, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are chosen and memory is taken before the recording
            for _ in range(3):
                judged(given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = judged(given)

    def replay(windows_N3PP: Tensor) -> tuple[Tensor, ...]:
        given.copy_(windows_N3PP)
        graph.replay()
        return made

    return replay


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
