"""The hinge: an image and a scorer in, a Score out.

Axes: N windows, H W image.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

from saqm import __version__
from saqm.calibration import (
    Familiarity,
    Observation,
    familiarity,
    feature_statistics,
    interval,
    picture_statistics,
    to_score,
)
from saqm.engine import Engine, EngineName, WindowOutputs, form_of, load_engine
from saqm.errors import ModelFileError, NotScorable, SaqmError
from saqm.image import Image
from saqm.maps import QualityMap, in_score_units, spread_windows
from saqm.modelfile import DEFAULT_MODEL, ModelHeader, ScoreScale, open_model, read_model, shipped
from saqm.patches import CHUNK, Windows, cut, grey_levels, in_full_batches, pool, refuse_blank
from saqm.sampling import LEAST, order, standard_error

if TYPE_CHECKING:
    from saqm.calibration import View
    from saqm.metrics import Metric
    from saqm.metrics.parameters import Parameters

SOFTWARE = f"saqm {__version__}"
ALL = "all"  # in place of names: every shipped model and every metric
FLAT = (
    0.1  # share of flat pixels from which the trained metrics are not to be relied on; Mittal's statistics need texture
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One image's score and how it was made (contract 4.4). Holds no patient names.

    score: 0 to 100, higher is better; None if not scored, and for a metric, which keeps its own scale.
    score_raw: on the model's or the metric's own scale; which direction is better, a metric says in `model`.
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
    coverage: float | None = None  # share of images whose opinion the interval holds; None: nothing is promised
    out_of_domain: Mapping[str, object] | None = None
    verdict: Literal["pass", "review", "fail"] | None = None
    reasons: tuple[str, ...] = ()
    findings: tuple[Mapping[str, object], ...] = ()  # what is wrong, as `saqm.findings` names it, worst first
    model: Mapping[str, str] | None = None  # name, version, sha256 (of the file), engine; of a metric more
    preparation: Mapping[str, object] | None = None
    patches: Mapping[str, int] | None = None  # used, masked
    warnings: tuple[str, ...] = ()
    software: str = SOFTWARE
    created: str | None = None  # ISO 8601; only who may read the clock fills it in

    def to_record(self) -> dict[str, object]:
        """The record as JSON has it: plain types, always the same keys in the same order."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


class Scorer(Protocol):
    """Anything that rates images: a model, or a metric with its parameters."""

    @property
    def name(self) -> str: ...

    def rate(self, image: Image, stride: int | None = None) -> Score:
        """The image's score. Raises NotScorable."""


class _Judged(NamedTuple):
    windows: Windows
    stride: int
    scores_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]
    features_ND: NDArray[np.float32]
    sampled: Mapping[str, float] | None = None  # where not all windows were looked at


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

    @property
    def trained_on(self) -> frozenset[str]:
        """SHA-256 of the files that the model was trained on."""
        return frozenset(self.header.training.images_sha256)

    @property
    def model(self) -> dict[str, str]:
        """What the records say of the model."""
        return {
            "name": self.header.name,
            "version": self.header.version,
            "sha256": self.engine.sha256,
            "engine": self.engine.name,
        }

    def rate(self, image: Image, stride: int | None = None) -> Score:
        """The image's score. Raises NotScorable."""
        return self._score(image, self._judge(image, stride))

    def rate_until(self, image: Image, tolerance: float, stride: int | None = None) -> Score:
        """The score of as few windows as bring its standard error down to `tolerance` points. Raises NotScorable."""
        return self._score(image, self._judge_until(image, tolerance, stride))

    def rate_and_map(
        self, image: Image, stride: int | None = None, map_stride: int | None = None
    ) -> tuple[Score, QualityMap]:
        """The score and where it comes from, for the price of one where `map_stride` is None. Raises NotScorable."""
        judged = self._judge(image, stride)
        mapped = judged if map_stride in (None, judged.stride) else self._judge(image, map_stride)
        return self._score(image, judged), self._map(image, mapped)

    def rate_together(
        self, images: Sequence[Image], stride: int | None = None, *, maps: bool = False, map_stride: int | None = None
    ) -> list[tuple[Score, QualityMap | None] | NotScorable]:
        """What `rate`, or `rate_and_map`, gives of each, the same bits; small pictures share the engine's batches."""
        judged = self._judge_together(images, stride)
        mapped = judged if not maps or map_stride in (None, stride) else self._judge_together(images, map_stride)
        found: list[tuple[Score, QualityMap | None] | NotScorable] = []
        for image, whole, fine in zip(images, judged, mapped, strict=True):
            if isinstance(whole, NotScorable) or isinstance(fine, NotScorable):
                found.append(whole if isinstance(whole, NotScorable) else fine)  # type: ignore[arg-type]
            else:
                found.append((self._score(image, whole), self._map(image, fine) if maps else None))
        return found

    def observe(self, image: Image) -> Observation:
        """What a calibration is fitted on. Raises NotScorable."""
        return _observation(image, self._judge(image, None))

    def percent(self, raw: float | NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw scores as 0 to 100, higher is better, not clipped: as calibrated, or linear on the score scale."""
        known = self.header.calibration
        return to_percent(raw, self.header.score_scale) if known is None else to_score(known.score, raw)

    def _judge(self, image: Image, stride: int | None) -> _Judged:
        (judged,) = self._judge_together([image], stride)
        if isinstance(judged, NotScorable):
            raise judged
        return judged

    def _judge_together(self, images: Sequence[Image], stride: int | None) -> list[_Judged | NotScorable]:
        """The windows of several images through batches that are full, whichever image each is of."""
        cuts = [self._cut(image, stride) for image in images]
        sound = [each for each in cuts if isinstance(each, Windows)]
        if not sound:
            return [each for each in cuts if isinstance(each, NotScorable)]
        columns = zip(*map(self.engine.run, in_full_batches(sound, self.engine.batch)), strict=True)
        ends = np.cumsum([len(windows) for windows in sound])[:-1]
        scores, weights, features = (np.split(np.concatenate(column), ends) for column in columns)
        apart = self.engine.preparation.stride if stride is None else stride
        judged = iter([_Judged(w, apart, s, c, f) for w, s, c, f in zip(sound, scores, weights, features, strict=True)])
        return [each if isinstance(each, NotScorable) else next(judged) for each in cuts]

    def _judge_until(self, image: Image, tolerance: float, stride: int | None) -> _Judged:
        """Batch after batch of windows spread over the picture. The picture's own bytes decide which come first."""
        preparation = self.engine.preparation
        whole = cut(image, preparation, stride)
        first_to_last = order(len(whole), seed=int(image.source.sha256[:16], 16))
        parts: list[WindowOutputs] = []
        error = math.inf
        for start in range(0, len(whole), CHUNK):
            parts.append(self.engine.run(whole.take(first_to_last[start : start + CHUNK])))
            looked_at = min(start + CHUNK, len(whole))
            if looked_at >= LEAST or looked_at == len(whole):
                scores, weights = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
                raw, off = pool(scores, weights), standard_error(scores, weights, len(whole))
                error = abs(float(self.percent(raw + off)) - float(self.percent(raw - off))) / 2
                if error <= tolerance:
                    break
        chosen = first_to_last[: sum(len(part.scores_N) for part in parts)]
        reading = np.argsort(chosen)
        scores, weights, features = (np.concatenate(column)[reading] for column in zip(*parts, strict=True))
        left_out = len(whole) - len(chosen)
        windows = replace(whole, positions_N2=whole.positions_N2[chosen[reading]], total=whole.total - left_out)
        said = {"windows": len(chosen), "of": len(whole), "standard_error": error, "tolerance": tolerance}
        apart = preparation.stride if stride is None else stride
        return _Judged(windows, apart, scores, weights, features, said)

    def _cut(self, image: Image, stride: int | None) -> Windows | NotScorable:
        try:
            return cut(image, self.engine.preparation, stride)
        except NotScorable as error:
            return error

    def _score(self, image: Image, judged: _Judged) -> Score:
        from saqm.findings import findings  # scipy is slow to load

        header, source, known = self.header, image.source, self.header.calibration
        seen = _observation(image, judged)
        raw = seen.raw
        percent = float(self.percent(raw))
        clipped = min(max(percent, 0.0), 100.0)
        warnings = [*self.engine.warnings, *source.warnings, *self._domain_warnings(image)]
        if clipped != percent:
            warnings.append(f"raw score {raw:.4g} is off the model's scale: {percent:.1f} clipped to {clipped:g}")
        likeness = familiarity(known.familiar, seen.views) if known is not None and known.familiar else None
        around, promise = None, None
        if known is not None and known.interval is not None:
            group = None if likeness is None else likeness.group
            around = interval(known.interval, clipped, in_points(seen.spread, header.score_scale), group)
            promise = known.interval.coverage
        if likeness is not None and likeness.flag:
            promise = None
            warnings.append(unlike(likeness))
        return Score(
            **_identity(image),
            status="scored",
            score=clipped,
            score_raw=raw,
            interval=around,
            coverage=promise,
            out_of_domain=None
            if likeness is None
            else {"statistic": likeness.statistic, "p": likeness.p, "flag": likeness.flag, "view": likeness.view},
            findings=findings(image),
            model=self.model,
            preparation=_preparation_record(image, header, judged),
            patches={"used": len(judged.windows), "masked": judged.windows.total - len(judged.windows)},
            warnings=tuple(warnings),
        )

    def _map(self, image: Image, judged: _Judged) -> QualityMap:
        windows = judged.windows
        pooled = pool(judged.scores_N, judged.weights_N)
        score_N = in_score_units(judged.scores_N, pooled, self.percent)
        return spread_windows(windows, score_N, judged.weights_N, judged.stride, image.mask.shape)

    def _domain_warnings(self, image: Image) -> list[str]:
        domain, warnings = self.header.domain, []
        trained = ", ".join(domain.modalities)
        if image.modality is None:
            warnings.append(f"modality unknown: the model was trained on {trained}")
        elif image.modality not in domain.modalities:
            warnings.append(f"outside the model's domain: modality {image.modality} (trained on {trained})")
        if image.source.sha256 in self.trained_on:
            warnings.append("the model was trained on this very picture: its score is no test of the model")
        return warnings


@dataclass(frozen=True, eq=False)
class MetricScorer:
    """A classical metric as a scorer. It has no 0..100: `score` is None, `score_raw` the metric's own value.

    parameters: of a trained metric, else None. name: "niqe", or "niqe:niqe-ct" with other parameters than its default.
    """

    metric: Metric
    parameters: Parameters | None
    name: str

    @property
    def trained_on(self) -> frozenset[str]:
        """SHA-256 of the files that the parameters were fitted on."""
        return frozenset() if self.parameters is None else frozenset(self.parameters.provenance.images_sha256)

    @property
    def model(self) -> dict[str, str]:
        """What the records say of the metric."""
        if self.parameters is None:
            version = {"version": __version__}
        else:
            version = {"version": self.parameters.version or "not said", "sha256": self.parameters.sha256}
        return {
            "name": self.name,
            **version,
            "engine": "numpy",
            "direction": self.metric.direction,
            "definition": self.metric.exact,
        }

    def rate(self, image: Image, stride: int | None = None) -> Score:
        """The image's value on the metric's own scale. Raises NotScorable, and SaqmError for a stride."""
        if stride is not None:
            raise SaqmError(f"{self.name} judges the picture as a whole: it has no windows, so leave the stride out")
        levels, mask, snapped = metric_input(image)
        snap = {"snap": snapped} if self.metric.takes_snap else {}
        given = () if self.parameters is None else (self.parameters,)
        value = self.metric.function(levels, *given, mask=mask, **snap, **self.metric.options)
        if not math.isfinite(value):
            raise SaqmError(f"{self.name} gave {value} where it should have refused: a fault of saqm, please report it")
        flat = self._flat_fraction(levels, mask)
        return Score(
            **_identity(image),
            status="scored",
            score_raw=float(value),
            model=self.model,
            preparation={
                **_done(image),
                "snap": snap.get("snap"),
                "flat_fraction": flat,
                "parameters": None if self.parameters is None else self.parameters.name,
                "options": self.metric.options,
            },
            warnings=(*image.source.warnings, *self._warnings(image, flat)),
        )

    def _flat_fraction(self, levels: NDArray[np.float64], mask: NDArray[np.bool_] | None) -> float | None:
        """The share of the judged pixels without any texture, of a trained metric; the others do not mind."""
        if self.parameters is None:
            return None
        from saqm.metrics import flat_fraction

        return float(flat_fraction(levels, mask))

    def _warnings(self, image: Image, flat: float | None) -> list[str]:
        warnings = []
        if flat is not None and flat > FLAT:
            warnings.append(f"{flat:.0%} of what is judged is flat: {self.metric.title} is made for textured pictures")
        if self.metric.exact == "reconstruction":
            warnings.append(f"{self.metric.title} is a reconstruction, not its authors' code")
        if self.parameters is not None and not self.parameters.official:
            warnings.append(f"parameters {self.parameters.name} are not the authors' own")
        if image.source.sha256 in self.trained_on:
            warnings.append("the parameters were fitted on this very picture: its value is no test of the metric")
        return warnings


AnyScorer = ModelScorer | MetricScorer


def metric_input(image: Image) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None, bool]:
    """What a metric is given of an image: pixels on 0..255, the mask (None: all is judged), and whether to snap.

    Medical pictures, and those with a mask, are snapped: their flat areas would make the value depend on rounding. A
    whole photograph is judged as the authors' release does. Raises NotScorable for an empty mask or a constant image.
    """
    levels, mask = grey_levels(image), None if image.mask.all() else image.mask
    refuse_blank(levels, image.mask)
    return levels, mask, image.modality is not None or mask is not None


@overload
def load_scorer(
    name_or_file: Path | None = None, *, engine: EngineName = "auto", threads: int | None = None
) -> ModelScorer:
    """The default, or a model file."""


@overload
def load_scorer(
    name_or_file: str | Path | None, *, engine: EngineName = "auto", threads: int | None = None
) -> AnyScorer:
    """Whatever a name stands for."""


def load_scorer(
    name_or_file: str | Path | None = None, *, engine: EngineName = "auto", threads: int | None = None
) -> AnyScorer:
    """A shipped model by name (None: the default), a model file, or a metric, ready to score.

    A trained metric is followed by its parameters: "niqe" (its default), "niqe:niqe-ct" or for short "niqe:ct", and
    "niqe:FILE". `engine` and `threads` (of one run; None: as many as there are cores) are for models.
    Raises ModelFileError, which lists the names there are.
    """
    asked = DEFAULT_MODEL if name_or_file is None else name_or_file
    if isinstance(asked, str) and asked not in shipped():
        if found := metric_named(asked):
            return _metric_scorer(*found)
        if _is_bare(asked):
            raise ModelFileError(_no_such_scorer(asked))
    path = open_model(asked, form_of(engine))
    return ModelScorer(load_engine(path, engine, threads))


def scorer_names(text: str) -> tuple[str, ...]:
    """The names in "brisque,niqe:ct,saqm-ct"; "all" stands for every shipped model and every metric.

    A comma inside the name of a file that is there does not count. Raises SaqmError for a name given twice, or none.
    """
    if text == ALL:
        from saqm.metrics import METRICS

        return (*shipped(), *METRICS)
    names = (text,) if Path(text).is_file() else tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise SaqmError(f"{text!r}: a name is missing; separate names by single commas")
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise SaqmError(f"{text!r}: {twice} is there twice")
    return names


def metric_named(name: str) -> tuple[Metric, str | None] | None:
    """The metric that "niqe" or "niqe:ct" names, and its parameters, a shipped name or a file; None for a model's name.

    Raises ModelFileError where the metric has no such parameters, or none at all.
    """
    from saqm.metrics import METRICS

    word, colon, asked = name.partition(":")
    if word not in METRICS:
        return None
    metric = METRICS[word]
    if not colon:
        return metric, metric.default
    if metric.parameters is None:
        raise ModelFileError(f"{name}: {word} has no parameters; leave ':{asked}' out")
    from saqm.metrics.parameters import shipped_parameters

    own = parameters_for(metric)
    short = {each.removeprefix(f"{metric.parameters}-"): each for each in own}
    if asked not in (*shipped_parameters(), *short) and _is_bare(asked):
        raise ModelFileError(
            f"no parameters {asked!r} for {word}: shipped are {', '.join(own) or 'none'}"
            f"{_nearest(asked, (*own, *short))}; or give a .safetensors file"
        )
    return metric, short.get(asked, asked)


def parameters_for(metric: Metric) -> tuple[str, ...]:
    """Names of the shipped parameters that the metric can be given."""
    from saqm.metrics.parameters import shipped_parameters

    return tuple(name for name in shipped_parameters() if name.startswith(f"{metric.parameters}-"))


def shipped_files() -> tuple[str, ...]:
    """Names of the model and parameter files that come with the package, as `file_sha256` takes them."""
    from saqm.metrics.parameters import shipped_parameters

    return (*shipped(), *shipped_parameters())


def file_sha256(name: str) -> str:
    """SHA-256 of a model file, or of a metric's parameter file, once it is verified. Raises ModelFileError."""
    from saqm.metrics.parameters import load_parameters, shipped_parameters

    if name in shipped_parameters():
        return load_parameters(name).sha256
    found = metric_named(name)
    if found is None:
        return read_model(open_model(name)).sha256
    parameters = _metric_scorer(*found).parameters
    if parameters is None:
        raise ModelFileError(f"{name}: has no parameters, so there is no file to verify")
    return parameters.sha256


def _metric_scorer(metric: Metric, chosen: str | None) -> MetricScorer:
    if metric.parameters is None or chosen is None:
        return MetricScorer(metric, None, metric.name)
    from saqm.metrics.parameters import load_parameters

    parameters = load_parameters(chosen)
    parameters.expect(metric.parameters)
    is_default = chosen == metric.default
    return MetricScorer(metric, parameters, metric.name if is_default else f"{metric.name}:{parameters.name}")


def _is_bare(text: str) -> bool:
    """Whether the text is a name and not a file's path."""
    path = Path(text)
    return not text or (path.name == text and not path.suffix and not path.exists())


def _no_such_scorer(name: str) -> str:
    from saqm.metrics import METRICS
    from saqm.metrics.parameters import shipped_parameters

    models = ", ".join(shipped()) or "none"
    near = _nearest(name, (*shipped(), *METRICS, *(each.replace("-", ":", 1) for each in shipped_parameters())))
    return (
        f"no model {name!r}: shipped are {models}; metrics are {', '.join(METRICS)}{near}; "
        "or give a .onnx or .safetensors file"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def score(image: Image, scorer: Scorer, *, stride: int | None = None, tolerance: float | None = None) -> Score:
    """Score an image: 0 to 100, higher is better; a metric keeps its own scale. Same image, same scorer: same bits.

    `stride` in pixels overrides the model's own: smaller looks more closely and takes longer. `tolerance` in points
    (0.5, say) looks at windows only until the standard error that is left by the others is no larger; how many they
    were stands in `preparation`. Raises NotScorable, and SaqmError for a stride or tolerance where the scorer has no
    windows, and a tolerance that is no positive number.
    """
    if tolerance is None:
        return scorer.rate(image, stride)
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} judges the picture as a whole: it has no windows to leave out")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise SaqmError(f"tolerance {tolerance}: points of the score, above 0, are wanted")
    return scorer.rate_until(image, tolerance, stride)


def quality_map(image: Image, scorer: Scorer, *, stride: int | None = None) -> QualityMap:
    """Where the score comes from, pixel by pixel. Raises NotScorable, and SaqmError for a scorer that has no map."""
    return score_and_map(image, scorer, stride=stride)[1]


def score_and_map(
    image: Image, scorer: Scorer, *, stride: int | None = None, map_stride: int | None = None
) -> tuple[Score, QualityMap]:
    """`score` and `quality_map` for the price of one. Raises as they do.

    `map_stride` is for a map that looks more closely than the score does: the score stays that of `stride`, the map's
    mean is the score of `map_stride`.
    """
    if not isinstance(scorer, ModelScorer):
        raise SaqmError(f"{scorer.name} judges the picture as a whole: it has no quality map")
    return scorer.rate_and_map(image, stride, map_stride)


def score_together(
    images: Sequence[Image],
    scorer: AnyScorer,
    *,
    stride: int | None = None,
    maps: bool = False,
    map_stride: int | None = None,
) -> list[tuple[Score, QualityMap | None]]:
    """`score`, or `score_and_map`, of several images, faster where they are small; the numbers are the same bits.

    What cannot be scored is a row with its reason. Raises ModelFileError for a broken model, and SaqmError for a stride
    where the scorer has no windows. All images are in memory at once: give few of them at a time.
    """
    if isinstance(scorer, ModelScorer):
        found = scorer.rate_together(images, stride, maps=maps, map_stride=map_stride)
    else:
        found = [_rated(image, scorer, stride) for image in images]
    return [
        (not_scored(image.source.path, str(each), image, model=scorer.model), None)
        if isinstance(each, NotScorable)
        else each
        for image, each in zip(images, found, strict=True)
    ]


def _rated(image: Image, scorer: MetricScorer, stride: int | None) -> tuple[Score, None] | NotScorable:
    try:
        return scorer.rate(image, stride), None
    except NotScorable as error:
        return error


def not_scored(
    path: str | Path,
    reason: str,
    image: Image | None = None,
    *,
    frame: int | None = None,
    model: Mapping[str, str] | None = None,
) -> Score:
    """The row of a file, or of a frame of it, that has no score, with the reason; `model` is who was to score it."""
    if image is None:
        return Score(path=str(path), frame=frame, status="not_scored", reasons=(reason,), model=model)
    identity = _identity(image)
    return Score(**identity, status="not_scored", reasons=(reason,), model=model, warnings=image.source.warnings)


def withheld(score: Score) -> Score:
    """A score whose image is unlike those the model knows, taken back; any other as it is: `saqm score --strict`."""
    found = score.out_of_domain
    if score.status != "scored" or found is None or not found["flag"]:
        return score
    reason = f"{score.path}: withheld: unlike the images that the model knows (p = {found['p']:.3g})"
    nothing = {"score": None, "score_raw": None, "interval": None, "coverage": None}
    return replace(score, status="not_scored", reasons=(reason,), **nothing)  # type: ignore[arg-type]


def unlike(likeness: Familiarity) -> str:
    """What a flagged image is told."""
    seen = "the picture itself" if likeness.view == "picture" else "what the network sees in it"
    return (
        f"unlike the images that the model knows ({seen} lies {likeness.statistic:.1f} times as far from them as 19 of "
        f"20 known ones, p = {likeness.p:.3g}): the interval is not guaranteed"
    )


def in_points(raw_width: float, scale: ScoreScale) -> float:
    """A width on the raw scale in points of 0 to 100."""
    return 100 * raw_width / (scale.high - scale.low)


def to_percent(raw: float | NDArray[np.floating], scale: ScoreScale) -> NDArray[np.float64]:
    """Raw scores on the model's scale as 0 to 100, higher is better; linear, not clipped."""
    low, high = (scale.low, scale.high) if scale.higher_is_better else (scale.high, scale.low)
    return np.asarray(100 * (np.asarray(raw, np.float64) - low) / (high - low))


def _observation(image: Image, judged: _Judged) -> Observation:
    raw = pool(judged.scores_N, judged.weights_N)
    apart_N = np.asarray(judged.scores_N, np.float64) - raw
    spread = math.sqrt(pool(apart_N**2, judged.weights_N))
    views = {"picture": picture_statistics(image), "features": feature_statistics(judged.features_ND)}
    return Observation(raw, spread, cast("Mapping[View, NDArray[np.float64]]", views))


def _identity(image: Image) -> dict[str, Any]:
    source = image.source
    return {
        "path": source.path,
        "sha256": source.sha256,
        "frame": source.frame,
        "modality": image.modality,
        "uids": source.uids,
    }


def _preparation_record(image: Image, header: ModelHeader, judged: _Judged) -> dict[str, object]:
    """The model's preparation, with what was really done to this picture in place of the policies in words."""
    sampled = {} if judged.sampled is None else {"sampled": judged.sampled}
    return {**header.preparation.model_dump(), "stride": judged.stride, **sampled, **_done(image)}


def _done(image: Image) -> dict[str, object]:
    """What was done to this picture before it came to the scorer."""
    steps = [{"step": step.name, **step.details} for step in image.source.steps]
    done = {name: next((step for step in steps if step["step"] == name), None) for name in ("window", "mask")}
    return {**done, "judged_share": image.judged_share, "steps": steps}


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
