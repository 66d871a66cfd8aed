"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from saqm.modelfile import ModelHeader

# A shell that starts the suite in the background has Ctrl-C ignored, and so would what the tests start and end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that is no part of the project (SAQM_SHARED, default ../shared)."""
    folder = Path(os.environ.get("SAQM_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_absolute():
        folder = Path(__file__).parents[1] / folder
    if not (folder / "data").is_dir():
        pytest.skip(f"reference data not at hand: {folder} (set SAQM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def ct_study(shared: Path) -> Path:
    """The CT reader study, a folder with scores.csv and images/."""
    return shared / "data" / "ct_reader_study"


@pytest.fixture
def header() -> ModelHeader:
    """The header of a toy model whose raw score is 1 to 5 and that was trained on CT."""
    from saqm import modelfile

    return modelfile.ModelHeader(
        name="toy",
        version="0.1",
        architecture=modelfile.Architecture(
            width=0.125, trunks="shared", norm="batch", pool="mean", hidden=(8,), weighted=True, init="kaiming"
        ),
        preparation=modelfile.PreparationPolicy(
            channels="gray",
            mean=(0, 0, 0),
            sd=(1, 1, 1),
            patch=32,
            stride=32,
            min_coverage=0.95,
            window="as it comes",
            mask="as it comes",
        ),
        score_scale=modelfile.ScoreScale(low=1, high=5, higher_is_better=True, meaning="toy points"),
        domain=modelfile.Domain(modalities=("CT",), description="toy slices"),
        calibration=None,
        training=modelfile.Training(
            recipe="toy", manifests={"toy": "0" * 64}, seed=7, epochs=1, steps=2, commit="0", results={"srocc": 0.5}
        ),
        licence="Apache-2.0",
        card="For tests.",
    )


@pytest.fixture
def toy_onnx() -> Callable[..., bytes]:
    """Makes ONNX graphs in which brightness is quality: score 1 + 4 * mean of a window, weight 1, feature per channel.

    `score`, `weight` and `feature` are formulas of ONNX's text form over the values named in the graph below.
    """
    from onnx import parser

    def make(
        score: str = "Add(scaled, one)",
        weight: str = "Identity(ones)",
        feature: str = "Identity(mean_N3)",
        windows: str = "windows",
        side: int = 32,
    ) -> bytes:
        model = parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 17]>
            toy (float[N,3,{side},{side}] {windows}) => (float[N] score, float[N] weight, float[N,D] feature)
            {{
                one = Constant<value_float = 1.0>()
                four = Constant<value_float = 4.0>()
                mean_N3 = ReduceMean<axes = [2, 3], keepdims = 0>({windows})
                mean_N = ReduceMean<axes = [1], keepdims = 0>(mean_N3)
                scaled = Mul(mean_N, four)
                zeros = Sub(mean_N, mean_N)
                ones = Add(zeros, one)
                score = {score}
                weight = {weight}
                feature = {feature}
            }}""")
        return bytes(model.SerializeToString())

    return make


@pytest.fixture
def toy_model(tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]) -> Path:
    """A model file in which brightness is quality: an image's score is 100 times the mean of its judged pixels."""
    from saqm.modelfile import write_onnx

    write_onnx(toy_onnx(), header, tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


@pytest.fixture
def niqe_file(tmp_path: Path) -> Path:
    """A parameter file of NIQE with made numbers: mean 0, covariance the identity."""
    import numpy as np

    from saqm.metrics.parameters import Parameters, save_parameters

    made = Parameters("niqe", "niqe-toy", {"mean": np.zeros(36), "covariance": np.eye(36)}, version="0.1")
    save_parameters(made, tmp_path / "niqe-toy.safetensors")
    return tmp_path / "niqe-toy.safetensors"
