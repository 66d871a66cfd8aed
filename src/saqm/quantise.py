"""An ONNX graph's 3x3 convolutions in 8-bit integers: static, one scale a tensor or weight channel, from real windows.

The first convolution (three channels: the input's precision matters most, the cost least), the 1x1 projections, the
attention and the heads stay in 32 bits. Axes: N windows, C channels, O output channels, P side of an activation,
K side of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saqm.errors import MissingExtra, ModelFileError

LARGEST = 255  # of an activation: after a ReLU nothing is below 0, so 8 bits unsigned hold more than signed ones
# Of a weight, 7 bits: two products still fit the 16 bits in which processors without VNNI add them, so none saturates
# (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "reduce_range").
LARGEST_WEIGHT = 63
BINS = 4096  # of the histogram that a scale is chosen from
TRIED = np.linspace(
    0.2, 1.0, 81
)  # shares of the largest value seen, of which the one with the least error is clipped at
STEP = 16  # windows looked at together: bounds the memory that all activations of a wide network take

Floats = NDArray[np.float32]


class _Seen(NamedTuple):
    """What an activation was over the windows: its scale, and its means (C, P, P) before and after rounding."""

    scale: np.float32
    mean_CPP: NDArray[np.float64]
    rounded_mean_CPP: NDArray[np.float64]


def quantise(graph: bytes, windows_N3PP: Floats) -> bytes:
    """The graph with quantised convolutions (QDQ form), calibrated on N windows as its network is given them.

    Activations: the scale with the least squared rounding error over the windows. Weights: one scale an output channel.
    Biases take up the shift that rounding makes in a channel's mean (bias correction of Nagel et al., ICCV 2019).
    Raises ModelFileError for a graph without such convolutions, MissingExtra without onnx.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "train", "export to int8") from error
    model = onnx.load_from_string(graph)
    nodes, weights = list(model.graph.node), {one.name: one for one in model.graph.initializer}
    maker = {output: node for node in nodes for output in node.output}
    after = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
    convolutions = {node.output[0]: node for node in nodes if _is_quantised(node, weights) and node.output[0] in after}
    if not convolutions or any(node.op_type == "QuantizeLinear" for node in nodes):
        raise ModelFileError("this graph has no 3x3 convolution in 32 bits, with a ReLU after it, to quantise")

    def source(tensor: str) -> str:
        """The tensor whose numbers these are, before any pooling, which makes no new ones."""
        while maker[tensor].op_type == "MaxPool":
            tensor = maker[tensor].input[0]
        return tensor

    given = {convolution.input[0] for convolution in convolutions.values()}
    rounded = {source(tensor) for tensor in given} | {after[output] for output in convolutions}
    seen = _observed(graph, {tensor: source(tensor) for tensor in given | rounded}, windows_N3PP)

    added = [onnx.numpy_helper.from_array(np.uint8(0), "zero")]
    added += [onnx.numpy_helper.from_array(seen[tensor].scale, f"{tensor}/scale") for tensor in sorted(rounded)]
    new: list[Any] = []
    renamed: dict[str, str] = {}  # what reads a tensor reads its rounded form
    for node in nodes:
        inputs, output = [renamed.get(tensor, tensor) for tensor in node.input], node.output[0]
        if output in convolutions:
            weight_OCKK, *bias = (onnx.numpy_helper.to_array(weights[tensor]) for tensor in node.input[1:])
            bias_O = bias[0] if bias else np.zeros(len(weight_OCKK), np.float32)
            made = _integers(weight_OCKK, bias_O, seen[node.input[0]])
            for part, (values, step_O) in zip((f"{output}/weight", f"{output}/bias"), made, strict=True):
                names = [f"{part}/integers", f"{part}/scale"]
                added += [
                    onnx.numpy_helper.from_array(values, names[0]),
                    onnx.numpy_helper.from_array(step_O, names[1]),
                ]
                new.append(onnx.helper.make_node("DequantizeLinear", names, [f"{part}/rounded"], axis=0))
            inputs[1:] = [f"{output}/weight/rounded", f"{output}/bias/rounded"]
        now = onnx.NodeProto()
        now.CopyFrom(node)
        now.ClearField("input")
        now.input.extend(inputs)
        new.append(now)
        if output in rounded or (node.op_type == "MaxPool" and source(output) in rounded):
            scale, renamed[output] = f"{source(output)}/scale", f"{output}/rounded"
            names = [f"{output}/integers", scale, "zero"]
            new.append(onnx.helper.make_node("QuantizeLinear", [output, *names[1:]], names[:1]))
            new.append(onnx.helper.make_node("DequantizeLinear", names, [renamed[output]]))

    read = {tensor for node in new for tensor in node.input}
    kept = [one for one in model.graph.initializer if one.name in read]
    for field, filling in (("node", new), ("initializer", kept + added), ("value_info", [])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(filling)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _is_quantised(node: Any, weights: Mapping[str, Any]) -> bool:
    """A convolution with taps that does not read the windows themselves."""
    if node.op_type != "Conv" or node.input[0] == "windows" or not {*node.input[1:]} <= weights.keys():
        return False
    return list(weights[node.input[1]].dims)[2:] != [1, 1]


def _integers(weight_OCKK: Floats, bias_O: Floats, seen: _Seen) -> Iterator[tuple[NDArray[Any], Floats]]:
    """Weights and biases as integers, each with its scales (O,)."""
    taps = weight_OCKK.shape[-1]
    largest_O = np.abs(weight_OCKK).max((1, 2, 3))
    scale_O = np.where(largest_O > 0, largest_O / LARGEST_WEIGHT, 1).astype(np.float32)
    integers_OCKK = np.rint(weight_OCKK / scale_O[:, None, None, None])
    yield integers_OCKK.astype(np.int8), scale_O
    right_O = np.einsum("ockl,ckl->o", weight_OCKK, _under_taps(seen.mean_CPP, taps))
    wrong_O = np.einsum("ockl,ckl->o", integers_OCKK, _under_taps(seen.rounded_mean_CPP, taps)) * scale_O
    step_O = scale_O * seen.scale
    yield np.rint((bias_O + right_O - wrong_O) / step_O).astype(np.int32), step_O


def _under_taps(mean_CPP: NDArray[np.float64], taps: int) -> NDArray[np.float64]:
    """The mean of what lies under each tap of a K x K convolution that fills the border with zeros, (C, K, K)."""
    reach = taps // 2
    padded = np.pad(mean_CPP, ((0, 0), (reach, reach), (reach, reach)))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, mean_CPP.shape[1:], (1, 2)).mean((-2, -1)))


def _observed(graph: bytes, tensors: Mapping[str, str], windows_N3PP: Floats) -> dict[str, _Seen]:
    """Each tensor as it is over the windows in 32 bits, rounded by the scale of the tensor that it comes from."""
    names = sorted(set(tensors) | set(tensors.values()))
    largest = dict.fromkeys(names, 0.0)
    for made in _activations(graph, names, windows_N3PP):
        largest |= {name: max(largest[name], float(values.max())) for name, values in made.items()}
    if dead := [name for name in names if not largest[name] > 0]:
        raise ModelFileError(
            f"{dead[0]} is zero for every window given: calibrate on other images, or the network is dead"
        )
    counts = {name: np.zeros(BINS) for name in names}
    for made in _activations(graph, names, windows_N3PP):
        for name, values in made.items():
            counts[name] += np.histogram(values, BINS, (0, largest[name]))[0]
    scales = {name: _scale(counts[name], largest[name]) for name in names}
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    for made in _activations(graph, names, windows_N3PP):
        for name, values in made.items():
            scale = scales[tensors.get(name, name)]
            rounded = np.clip(np.rint(values / scale), 0, LARGEST) * scale
            sums[name] += np.stack([values.sum(0, np.float64), rounded.sum(0, np.float64)])
    return {name: _Seen(scales[tensors[name]], *(sums[name] / len(windows_N3PP))) for name in tensors}


def _activations(graph: bytes, names: list[str], windows_N3PP: Floats) -> Iterator[dict[str, Floats]]:
    """The named tensors, (STEP, C, P, P) each, a few windows after the other."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(graph)
    model.graph.ClearField("output")
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for start in range(0, len(windows_N3PP), STEP):
        yield dict(zip(names, session.run(names, {"windows": windows_N3PP[start : start + STEP]}), strict=True))


def _scale(counts: NDArray[np.float64], largest: float) -> np.float32:
    """The scale of 8 bits with the least squared error: what is clipped against how coarse the rest becomes."""
    middle = (np.arange(BINS) + 0.5) / BINS * largest
    counts = counts.copy()
    counts[0] = 0  # mostly exact zeros, which no scale rounds

    def error(share: float) -> float:
        scale = share * largest / LARGEST
        return float(counts @ (middle - np.clip(np.rint(middle / scale), 0, LARGEST) * scale) ** 2)

    return np.float32(min(TRIED, key=error) * largest / LARGEST)
