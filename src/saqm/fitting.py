"""The trained part of a classical metric, fitted to one's own pictures: the distance of NIQE, two regressions.

NIQE (and NIQE-K, which takes its parameters) needs pristine pictures and no opinions; BRISQUE and BLIINDS-II need
opinion scores. Fitted metrics keep the direction of the originals: lower is better. Axes: I pictures, B blocks,
F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import ImageError, MissingExtra, NotScorable, OutputError, TrainingError
from saqm.image import Image, MaskMode, read_image
from saqm.manifest import Manifest, Row, Scale, normalised, read_manifest
from saqm.metrics._nss import REACH, covered, deviation, half_mask
from saqm.metrics._pixels import judged, luminance
from saqm.metrics.bliinds import bliinds_features
from saqm.metrics.brisque import brisque_features
from saqm.metrics.niqe import BLOCK, LEAST_SHARE, block_sharpness, niqe_features
from saqm.metrics.parameters import Parameters, Provenance, import_official, save_parameters
from saqm.scorer import metric_input

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Say = Callable[[str], None]
OnStep = Callable[[str, int, int, Mapping[str, float]], None]  # what, step, steps, no logs

SHARP = 0.75  # share of the sharpest block's sharpness that a block of the same picture must exceed; the NIQE release
GAMMA, COST, EPSILON = 0.05, 1024.0, 0.1  # of BRISQUE's regression: its released model; epsilon is libsvm's default
ADVISED = 100  # pristine pictures; the NIQE release took 125
PARAMETERS_OF = {"niqe": "niqe", "niqe-k": "niqe", "brisque": "brisque", "bliinds": "bliinds"}  # metric -> whose
LOWER = "lower is better"
SCALES = {
    "niqe": f"distance to the statistics of the pristine pictures it was fitted on, 0 and up without end; {LOWER}",
    "brisque": f"predicted score on the scale of the scores it was fitted on, not clamped; {LOWER}",
    "bliinds": f"predicted score, as released one point below the regression and clamped to 0..99; {LOWER}",
}


class Example(NamedTuple):
    """What a fit takes from one picture: the features (B, 36) of its sharp blocks, or one vector for a regression."""

    features: Floats
    sha256: str  # of the picture's file
    snapped: bool
    blocks: int = 1  # that the picture has, sharp or not


def niqe_example(image: Image) -> Example:
    """The block features of a pristine picture, of its sharp blocks only. Raises NotScorable."""
    levels, mask, snap = metric_input(image)
    features_BF, sharpness_B = niqe_features(levels, mask=mask, snap=snap), _sharpness(levels, mask)
    sharp_B = sharpness_B > SHARP * sharpness_B.max()
    return Example(features_BF[sharp_B], image.source.sha256, snap, len(features_BF))


def brisque_example(image: Image) -> Example:
    """The 36 features of BRISQUE. Raises NotScorable."""
    levels, mask, snap = metric_input(image)
    return Example(brisque_features(levels, mask=mask, snap=snap), image.source.sha256, snap)


def bliinds_example(image: Image) -> Example:
    """The 24 features of BLIINDS-II, which knows no snap. Raises NotScorable."""
    levels, mask, _ = metric_input(image)
    return Example(bliinds_features(levels, mask=mask), image.source.sha256, snapped=False)


EXAMPLE_OF: Mapping[str, Callable[[Image], Example]] = {
    "niqe": niqe_example, "brisque": brisque_example, "bliinds": bliinds_example,
}  # fmt: skip


def _sharpness(levels: Floats, mask: Mask | None) -> Floats:
    """The mean local deviation of each block that `niqe_features` takes, in its order; of judged windows only."""
    if mask is None:
        return block_sharpness(levels)
    grey_HW, mask = judged(luminance(levels), mask, "niqe", BLOCK)
    if mask is None:
        return block_sharpness(grey_HW)
    rows, columns = (length // BLOCK for length in grey_HW.shape)
    grey_HW, mask = grey_HW[: rows * BLOCK, : columns * BLOCK], mask[: rows * BLOCK, : columns * BLOCK]
    fine_HW, coarse_HW = covered(mask, REACH, REACH), covered(half_mask(mask), REACH, REACH)

    def mean(values_HW: NDArray[Any], side: int) -> Floats:
        return np.asarray(values_HW.reshape(rows, side, columns, side).mean((1, 3)).ravel())

    share_B = mean(fine_HW, BLOCK)
    taken_B = np.minimum(share_B, mean(coarse_HW, BLOCK // 2)) >= LEAST_SHARE
    return mean(deviation(grey_HW, "nearest") * fine_HW, BLOCK)[taken_B] / share_B[taken_B]


# The fits


def fit_niqe(images: Iterable[Image], *, name: str = "niqe-fitted") -> Parameters:
    """NIQE's (and NIQE-K's) parameters: mean and covariance of the features of the sharp blocks of pristine pictures.

    Sharp is a block whose mean local deviation exceeds 0.75 of that of its picture's sharpest block, as in the release
    (utlive/niqe). The mean of a feature leaves out what is undefined, the covariance blocks with anything undefined.
    Raises NotScorable for a picture without blocks, TrainingError where the blocks do not fix a covariance.
    """
    return fit_niqe_examples([niqe_example(image) for image in images], name=name)


def fit_niqe_examples(examples: Sequence[Example], *, name: str = "niqe-fitted") -> Parameters:
    """`fit_niqe` where the features are known already."""
    if not examples:
        raise TrainingError("niqe: no pristine picture to fit to")
    features_BF = np.concatenate([example.features for example in examples])
    complete_BF = features_BF[~np.isnan(features_BF).any(1)]
    blocks = sum(example.blocks for example in examples)
    told = f"{len(complete_BF)} sharp blocks (of {blocks}) of {len(examples)} pictures"
    covariance_FF = np.asarray(np.cov(complete_BF, rowvar=False)) if len(complete_BF) > 1 else np.zeros((36, 36))
    rank = _rank(covariance_FF)
    if rank < 36:
        raise TrainingError(
            f"niqe: {told} give a covariance of rank {rank}, not 36: give more pictures, of many contents; {ADVISED} "
            "are advised"
        )
    parameters = Parameters(
        metric="niqe",
        name=name,
        arrays={"mean": np.nanmean(features_BF, 0), "covariance": covariance_FF},
        version="1",
        scale=SCALES["niqe"],
    )
    return _of(parameters, examples, f"{told}, taken to be pristine", sharpness=SHARP, blocks=len(complete_BF))


def fit_brisque(features_IF: ArrayLike, scores_I: ArrayLike, *, name: str = "brisque-fitted") -> Parameters:
    """BRISQUE's regression from 36 features (I, 36) to scores (I,): epsilon-SVR with gamma 0.05, C 1024, epsilon 0.1.

    The fitted metric has the scale and the direction of the scores: give scores of which lower is better. Each feature
    is brought to -1..1 by its range here. Raises TrainingError, and MissingExtra without scikit-learn.
    """
    regression = _support_vector_regression()
    features, scores = _checked("brisque", features_IF, scores_I, 36)
    low, high = features.min(0), features.max(0)
    scaled = -1 + 2 * (features - low) / (high - low)
    machine = regression(kernel="rbf", gamma=GAMMA, C=COST, epsilon=EPSILON).fit(scaled, scores)
    arrays = {
        "support_vectors": machine.support_vectors_,
        "coefficients": machine.dual_coef_[0],
        "gamma": np.array(GAMMA),
        "rho": np.array(-machine.intercept_[0]),
        "minimum": low,
        "maximum": high,
        "lower": np.array(-1.0),
        "upper": np.array(1.0),
    }
    return Parameters(metric="brisque", name=name, arrays=arrays, version="1", scale=SCALES["brisque"])


def fit_bliinds(features_IF: ArrayLike, scores_I: ArrayLike, *, name: str = "bliinds-fitted") -> Parameters:
    """BLIINDS-II's regression from 24 features (I, 24) to scores (I,): least squares with intercept.

    Stored as the release has it, as mean and inverse covariance (I - 1) of features and score together: the most
    probable score for given features is then the least-squares prediction. Direction as in `fit_brisque`; the released
    scores run from 0 to 99 and so should these. Raises TrainingError.
    """
    features, scores = _checked("bliinds", features_IF, scores_I, 24)
    joint = np.column_stack([features, scores])
    correlation = np.asarray(np.corrcoef(joint, rowvar=False))  # well scaled, where the covariance spans eight orders
    rank = int(np.linalg.matrix_rank(correlation, hermitian=True))
    if rank < 25:
        raise TrainingError(
            f"bliinds: the features and scores of {len(scores)} pictures depend on each other (rank {rank}, not 25): "
            "give more pictures, of many contents"
        )
    deviation_F = joint.std(0, ddof=1)
    inverse = np.linalg.inv(correlation) / np.outer(deviation_F, deviation_F)
    arrays = {"mean": joint.mean(0), "inverse_covariance": inverse}
    return Parameters(metric="bliinds", name=name, arrays=arrays, version="1", scale=SCALES["bliinds"])


def _support_vector_regression() -> Any:
    try:
        from sklearn.svm import SVR
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "train", "fitting BRISQUE") from error
    return SVR


def _checked(metric: str, features_IF: ArrayLike, scores_I: ArrayLike, width: int) -> tuple[Floats, Floats]:
    features, scores = np.asarray(features_IF, np.float64), np.asarray(scores_I, np.float64)
    least = width + 2  # as many as a plane through them has freedoms, and one for an error to be seen
    if len(scores) < least:
        raise TrainingError(f"{metric}: {len(scores)} scored pictures; {least} are the least, hundreds are advised")
    if scores.ndim != 1 or features.shape != (len(scores), width):
        raise TrainingError(f"{metric}: features {features.shape}, scores {scores.shape}; wanted (I, {width}) and (I,)")
    if not (np.isfinite(features).all() and np.isfinite(scores).all()):
        raise TrainingError(f"{metric}: NaN or infinity among features or scores; leave such pictures out")
    if not np.ptp(scores):
        raise TrainingError(f"{metric}: all {len(scores)} scores are {scores[0]:g}: there is nothing to learn")
    constant = np.flatnonzero(np.ptp(features, axis=0) == 0)
    if len(constant):
        raise TrainingError(
            f"{metric}: feature {constant[0] + 1} is the same in all {len(scores)} pictures; give others"
        )
    return features, scores


def _rank(covariance: Floats) -> int:
    """Whatever the units of the variables; 0 where one does not vary."""
    deviation_F = np.sqrt(np.diag(covariance))
    if not deviation_F.all():
        return 0
    return int(np.linalg.matrix_rank(covariance / np.outer(deviation_F, deviation_F), hermitian=True))


def _of(parameters: Parameters, examples: Sequence[Example], trained_on: str, **settings: str | float) -> Parameters:
    """The parameters with their provenance."""
    snapped = sum(example.snapped for example in examples)
    return replace(
        parameters,
        provenance=Provenance(
            trained_on=trained_on,
            licence="that of whoever fitted it; the pictures' own terms apply",
            settings={"snap": f"{snapped} of {len(examples)} pictures", **settings},
            images_sha256=tuple(sorted({example.sha256 for example in examples})),
        ),
    )


def fit_rows(metric: str, manifest: Manifest, examples: Sequence[tuple[Row, Example]], *, name: str) -> Parameters:
    """BRISQUE's or BLIINDS-II's regression to the opinion scores of rows of a manifest, anchors among them.

    Opinions become 0 (best) to 100 (worst), so that lower stays better. Raises as the two fits, and ManifestError where
    the scale of the scores is not known.
    """
    scale = _scale(manifest)
    scores = [100 * (1 - normalised(row.score, scale)) for row, _ in examples if row.score is not None]
    features = np.array([example.features for _, example in examples])
    parameters = (fit_brisque if metric == "brisque" else fit_bliinds)(features, scores, name=name)
    ends = (scale.high, scale.low) if scale.higher_is_better else (scale.low, scale.high)
    source = scale.name or (manifest.path.name if manifest.path else "a manifest")
    anchors = sum(not row.judged for row, _ in examples)
    told = f"{len(examples)} pictures with opinion scores, {anchors} of them fixed by the protocol: {source}"
    parameters = replace(
        parameters, scale=f"{parameters.scale}; 0 is an opinion of {ends[0]:g}, 100 one of {ends[1]:g}"
    )
    return _of(parameters, [example for _, example in examples], told, manifest=manifest.sha256)


def _scale(manifest: Manifest) -> Scale:
    if manifest.scale is None:
        raise TrainingError(
            f"{manifest.path or 'manifest'}: its scores have no scale; write "
            '{"scale": [low, high], "higher_is_better": true} to a file of the same stem that ends in .json'
        )
    return manifest.scale


# The command


def fit_command(
    metric: str | None,
    *,
    pristine: Iterable[str] | None = None,
    manifest: Path | None = None,
    import_file: Path | None = None,
    mask: MaskMode = "auto",
    out: Path,
    say: Say,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """`saqm fit`: parameters from pristine pictures, from scored pictures or from the authors' file, into OUT.

    A picture that cannot be read or judged is said and left out. mask: as `read_image` has it. Opinions become 0 (best)
    to 100 (worst), so that the metric keeps its direction. metric: may be None with `import_file`, which says itself
    whose it is. Raises TrainingError for what does not fit together, and what the readers raise.
    """
    if metric is None and import_file is None:
        raise TrainingError(f"which metric is to be fitted: {', '.join(PARAMETERS_OF)}?")
    if metric is not None and metric not in PARAMETERS_OF:
        raise TrainingError(f"{metric!r} has no parameters to fit; those that have are {', '.join(PARAMETERS_OF)}")
    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: a parameter file is named .safetensors")
    whose, left_out = "" if metric is None else PARAMETERS_OF[metric], 0
    if [pristine, manifest, import_file].count(None) != 2:
        raise TrainingError(f"{metric}: give pristine pictures, a manifest or an official file to import, one of them")
    if import_file is not None:
        parameters = import_official(import_file)
        if whose:
            parameters.expect(whose)
        if not parameters.official:
            say(f"{import_file}: not, byte for byte, what the authors released")
    elif whose == "niqe":
        if pristine is None:
            raise TrainingError(f"{metric} is fitted to pristine pictures, without scores: give those, no manifest")
        names = list(pristine)
        examples = _examples(names, whose, mask, say, on_step)
        left_out = len(names) - len(examples)
        parameters = fit_niqe_examples(list(examples.values()), name=out.stem)
        if len(examples) < ADVISED:
            say(f"{len(examples)} pictures are few: {ADVISED} are advised, or the distance depends on which they are")
    else:
        if manifest is None:
            raise TrainingError(f"{metric} is fitted to opinion scores: give a manifest that has them")
        if whose == "brisque":
            _support_vector_regression()  # without it there is no need to read the pictures
        read = read_manifest(manifest)
        _scale(read)
        rows = [row for row in read.rows if row.score is not None]
        examples = _examples([str(row.path) for row in rows], whose, mask, say, on_step)
        left_out = len(read.rows) - len(examples)
        if len(rows) < len(read.rows):
            say(f"{len(read.rows) - len(rows)} rows have no score and are left out")
        parameters = fit_rows(whose, read, [(rows[place], found) for place, found in examples.items()], name=out.stem)
    save_parameters(parameters, out)
    say(f"{parameters.metric}: {parameters.provenance.trained_on}")
    return {
        "parameters": str(out),
        "name": parameters.name,
        "metric": parameters.metric,
        "sha256": parameters.sha256,
        "images": len(parameters.provenance.images_sha256),
        "left_out": left_out,
        "scale": parameters.scale,
    }


def _examples(
    names: Sequence[str], metric: str, mask: MaskMode, say: Say, on_step: OnStep | None
) -> dict[int, Example]:
    """What the fit takes of each picture, by its place in `names`; a picture that gives nothing is said."""
    found = {}
    for place, name in enumerate(names):
        try:
            found[place] = EXAMPLE_OF[metric](read_image(name, mask=mask))
        except (ImageError, NotScorable) as error:
            say(f"left out: {error}" if name in str(error) else f"left out: {name}: {error}")
        if on_step is not None:
            on_step("pictures", place + 1, len(names), {})
    return found
