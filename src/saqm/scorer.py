"""The hinge: an image and a scorer in, a Score out.

Axes: N windows, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from saqm import __version__
from saqm.engine import Engine, EngineName, load_engine
from saqm.errors import SaqmError
from saqm.image import Image
from saqm.modelfile import DEFAULT_MODEL, ModelHeader, ScoreScale, open_model
from saqm.patches import Preparation, Windows, cut, pool

SOFTWARE = f"saqm {__version__}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One image's score and how it was made (contract 4.4). Holds no patient names.

    score: 0 to 100, higher is better, None if not scored; score_raw: on the model's own scale.
    """

    path: str
    sha256: str | None = None
    frame: int | None = None
    modality: str | None = None
    uids: Mapping[str, str] = field(default_factory=dict)
    status: Literal["scored", "not_scored"]
    score: float | None = None
    score_raw: float | None = None
    interval: tuple[float, float] | None = None
    coverage: float | None = None
    out_of_domain: Mapping[str, object] | None = None
    verdict: Literal["pass", "review", "fail"] | None = None
    reasons: tuple[str, ...] = ()
    model: Mapping[str, str] | None = None  # name, version, sha256 (of the file), engine
    preparation: Mapping[str, object] | None = None
    patches: Mapping[str, int] | None = None  # used, masked
    warnings: tuple[str, ...] = ()
    software: str = SOFTWARE
    created: str | None = None  # ISO 8601; only who may read the clock fills it in

    def to_record(self) -> dict[str, object]:
        """The record as JSON has it: plain types, always the same keys in the same order."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, eq=False)
class QualityMap:
    """Where the score comes from.

    score_HW: float32, the mean score of the windows over each pixel, each counted by its weight; 0 to 100 like the
    score (a single window may lie outside), NaN where no window was judged.
    weight_HW: float64, the pixel's share in the image's score: each window spreads its weight evenly. Sums to 1.
    """

    score_HW: NDArray[np.float32]
    weight_HW: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The map's weighted mean: the score of the same stride, before clipping, to the rounding of float32 (1e-4)."""
        judged = self.weight_HW > 0
        return float(np.sum(self.weight_HW[judged] * self.score_HW[judged], dtype=np.float64))


class Scorer(Protocol):
    """Anything that rates images: a model, or a metric with its calibration."""

    @property
    def name(self) -> str: ...

    def rate(self, image: Image, stride: int | None = None) -> Score:
        """The image's score. Raises NotScorable."""


class _Judged(NamedTuple):
    windows: Windows
    stride: int
    scores_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ModelScorer:
    """A model file as a scorer: windows through the engine, pooled by weight."""

    engine: Engine

    @property
    def name(self) -> str:
        return self.header.name

    @property
    def header(self) -> ModelHeader:
        return self.engine.header

    def rate(self, image: Image, stride: int | None = None) -> Score:
        """The image's score. Raises NotScorable."""
        return self._score(image, self._judge(image, stride))

    def rate_and_map(self, image: Image, stride: int | None = None) -> tuple[Score, QualityMap]:
        """The score and where it comes from, for the price of one. Raises NotScorable."""
        judged = self._judge(image, stride)
        return self._score(image, judged), self._map(image, judged)

    def _judge(self, image: Image, stride: int | None) -> _Judged:
        preparation = preparation_of(self.header)
        windows = cut(image, preparation, stride)
        outputs = [self.engine.run(batch) for batch in windows.batches()]
        return _Judged(
            windows,
            preparation.stride if stride is None else stride,
            np.concatenate([output.scores_N for output in outputs]),
            np.concatenate([output.weights_N for output in outputs]),
        )

    def _score(self, image: Image, judged: _Judged) -> Score:
        header, source = self.header, image.source
        raw = pool(judged.scores_N, judged.weights_N)
        percent = float(to_percent(raw, header.score_scale))
        clipped = min(max(percent, 0.0), 100.0)
        warnings = [*source.warnings, *self._domain_warnings(image)]
        if clipped != percent:
            low, high = header.score_scale.low, header.score_scale.high
            warnings.append(
                f"raw score {raw:.4g} is off the model's scale {low:g} to {high:g}: score clipped to {clipped:g}"
            )
        return Score(
            **_identity(image),
            status="scored",
            score=clipped,
            score_raw=raw,
            model={
                "name": header.name,
                "version": header.version,
                "sha256": self.engine.sha256,
                "engine": self.engine.name,
            },
            preparation=_preparation_record(image, header, judged.stride),
            patches={"used": len(judged.windows), "masked": judged.windows.total - len(judged.windows)},
            warnings=tuple(warnings),
        )

    def _map(self, image: Image, judged: _Judged) -> QualityMap:
        percent_N = to_percent(judged.scores_N, self.header.score_scale)
        share_N = judged.weights_N.astype(np.float64) / judged.weights_N.sum(dtype=np.float64) / judged.windows.patch**2
        total, weight = (np.zeros(image.mask.shape) for _ in range(2))
        for (top, left), percent, share in zip(judged.windows.positions_N2, percent_N, share_N, strict=True):
            window = np.s_[top : top + judged.windows.patch, left : left + judged.windows.patch]
            total[window] += share * percent
            weight[window] += share
        score = np.full(image.mask.shape, np.nan, np.float32)
        np.divide(total, weight, out=score, where=weight > 0, casting="same_kind")
        return QualityMap(score, weight)

    def _domain_warnings(self, image: Image) -> list[str]:
        domain, warnings = self.header.domain, []
        trained = ", ".join(domain.modalities)
        if image.modality is None:
            warnings.append(f"modality unknown: the model was trained on {trained}")
        elif image.modality not in domain.modalities:
            warnings.append(f"outside the model's domain: modality {image.modality} (trained on {trained})")
        if image.source.sha256 in self.header.training.images_sha256:
            warnings.append("the model was trained on this very picture: its score is no test of the model")
        return warnings


def load_scorer(
    name_or_file: str | Path | None = None, *, engine: EngineName = "auto", threads: int | None = None
) -> ModelScorer:
    """A shipped model by name (None: the default), or a model file, ready to score.

    `threads` for one run of the engine, None for as many as there are cores. Raises ModelFileError.
    """
    path = open_model(name_or_file or DEFAULT_MODEL, "safetensors" if engine == "torch" else "onnx")
    return ModelScorer(load_engine(path, engine, threads))


def score(image: Image, scorer: Scorer, *, stride: int | None = None) -> Score:
    """Score an image: 0 to 100, higher is better. Same image, same scorer: same bits. Raises NotScorable.

    `stride` in pixels overrides the model's own: smaller looks more closely and takes longer.
    """
    return scorer.rate(image, stride)


def quality_map(image: Image, scorer: Scorer, *, stride: int | None = None) -> QualityMap:
    """Where the score comes from, pixel by pixel. Raises NotScorable, and SaqmError for a scorer that has no map."""
    return score_and_map(image, scorer, stride=stride)[1]


def score_and_map(image: Image, scorer: Scorer, *, stride: int | None = None) -> tuple[Score, QualityMap]:
    """`score` and `quality_map` for the price of one. Raises as they do."""
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} judges the picture as a whole: it has no quality map")
    return scorer.rate_and_map(image, stride)


def not_scored(path: str | Path, reason: str, image: Image | None = None, *, frame: int | None = None) -> Score:
    """The row of a file, or of a frame of it, that has no score, with the reason."""
    if image is None:
        return Score(path=str(path), frame=frame, status="not_scored", reasons=(reason,))
    return Score(**_identity(image), status="not_scored", reasons=(reason,), warnings=image.source.warnings)


def preparation_of(header: ModelHeader) -> Preparation:
    """How the model's windows are cut."""
    return Preparation(**{f.name: getattr(header.preparation, f.name) for f in fields(Preparation)})


def to_percent(raw: float | NDArray[np.floating], scale: ScoreScale) -> NDArray[np.float64]:
    """Raw scores on the model's scale as 0 to 100, higher is better; linear, not clipped."""
    low, high = (scale.low, scale.high) if scale.higher_is_better else (scale.high, scale.low)
    return np.asarray(100 * (np.asarray(raw, np.float64) - low) / (high - low))


def _identity(image: Image) -> dict[str, Any]:
    source = image.source
    return {
        "path": source.path,
        "sha256": source.sha256,
        "frame": source.frame,
        "modality": image.modality,
        "uids": source.uids,
    }


def _preparation_record(image: Image, header: ModelHeader, stride: int) -> dict[str, object]:
    """The model's preparation, with what was really done to this picture in place of the policies in words."""
    steps = [{"step": step.name, **step.details} for step in image.source.steps]
    done = {name: next((step for step in steps if step["step"] == name), None) for name in ("window", "mask")}
    return {
        **header.preparation.model_dump(),
        "stride": stride,
        **done,
        "judged_share": image.judged_share,
        "steps": steps,
    }


def _plain(value: object) -> object:
    """The same in JSON's own types; what has no finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(cast("object", value.tolist()))
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
