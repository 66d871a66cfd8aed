"""Domain adaptation: losses that draw two domains' features together, among them the paper's (Eqs 4 and 5).

They take features, or scores of degraded copies, and know no model and no loop. Whoever calls them chooses the layer
to align (`Alignment.tap`), draws both domains in every step, adds `Aligned.loss` to the loss of the opinions, and
teaches `aligner.parameters()` along with the rest. Legend: S source rows, T target rows, B rows, D features, R rungs.

Only "rank" tells which way is worse, by the order of degraded copies. The others make the domains look alike, and where
the domains really differ in quality they can erase just that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqm.errors import TrainingError, UndefinedScore

Kind = Literal["grl", "coral", "mmd", "dare-gram", "rank"]
Schedule = Literal["constant", "ramp"]
Normalise = Literal["none", "layer", "batch"]
Tap = Literal["window", "value", "image"]

RAMP = 10.0  # steepness of the ramp; Ganin et al., JMLR 17 (2016), section 5.2.2
EPS = 1e-5  # variance added in a normalisation, as torch's layer and batch norms: a dead feature becomes 0
KERNELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # MMD: bandwidths as multiples of the median; ours, the usual powers of two
# DARE-GRAM: of the released code for dSprites (github.com/ismailnejjar/DARE-GRAM, 5bbb90d): threshold 0.9, angle 0.05,
# scale 0.001 of a Gram matrix summed over 36 rows. Ours is the mean over rows, so that S and T may differ.
GRAM_SHARE = 0.9
GRAM_SCALE = 0.001 / 0.05 * 36
RUNG_APART = 0.05  # scores (0..1) by which a rung should lie below; also the softness of that demand

EXPLODED = 100.0  # times the first feature norm; "paper" on a narrow plain network went from 4 to 1e9, "grl" to 22
MOST_DEAD = 0.7  # share of dead units; ours: runs of that network which went on learning had up to 0.6
LEAST_SPREAD = 1e-3  # sd of scores (0..1) below which a network says the same of everything


@dataclass(frozen=True)
class Alignment:
    """How two domains are aligned; the rows of ALIGNMENTS are its sensible values.

    kind: "grl", a domain classifier behind a gradient reversal (paper); "coral", mean and covariance; "mmd", several
        Gaussian kernels; "dare-gram", inverse Gram matrices; "rank", the order of degraded copies of target images.
    weight: the largest λ, the factor on the encoder's gradient; 1 in Eq 5. The classifier learns at full strength.
    schedule: λ is "constant" (paper), or rises along the "ramp" 2 / (1 + exp(-10 p)) - 1 over the run's progress p.
    normalise: of the features, before anything else: "none" (paper), each row by "layer" norm, or each feature by the
        mean and sd of both domains' "batch", which count alike. Without it, what is aligned can be bought by scale.
    hidden: sizes of the domain classifier's hidden layers ("grl" only; "shallow" in the paper, 256 is ours).
    pace: learning rate of the domain classifier over the encoder's, for the caller's optimiser ("grl" only; paper: 1).
        A classifier that lags is fooled by turning away from it: its accuracy says 0.5 while a fresh one still tells
        the domains apart. On the toy problem of tests/test_adaptation.py (λ = 1, Adam with beta 1 = 0.5, median of 6
        seeds) the proxy A-distance ends at 0.8 with pace 1 and at 0.4 with pace 10; 1.6 without alignment.
    tap: what the caller hands over: pooled vectors of "window"s after attention, their pooled "value"s before it, or
        the mean over an "image"'s windows.
    """

    kind: Kind
    weight: float
    schedule: Schedule
    normalise: Normalise
    hidden: tuple[int, ...] = (256,)
    pace: float = 10.0
    tap: Tap = "window"

    @property
    def compares(self) -> Literal["domains", "ladders"]:
        """What the loss is called with: features of both domains, or scores of target ladders."""
        return "ladders" if self.kind == "rank" else "domains"


# "paper" is Eq 5 to the letter, which has no λ: so λ is 1. It easily blows up in a network without normalisation.
ALIGNMENTS: Mapping[str, Alignment] = {
    "paper": Alignment("grl", weight=1.0, schedule="constant", normalise="none", pace=1.0),
    "grl": Alignment("grl", weight=0.1, schedule="ramp", normalise="layer"),
    "coral": Alignment("coral", weight=1.0, schedule="ramp", normalise="batch"),
    "mmd": Alignment("mmd", weight=1.0, schedule="ramp", normalise="batch"),
    "dare-gram": Alignment("dare-gram", weight=0.05, schedule="ramp", normalise="batch"),
    "rank": Alignment("rank", weight=0.3, schedule="constant", normalise="none"),
}


class Aligned(NamedTuple):
    """What an alignment gives for one step: a loss, λ included, to add to the others', and numbers to log.

    logs: `alignment`, the loss before λ; `strength`, λ; of "grl" also `domain_accuracy`, 0.5 where it is fooled.
    """

    loss: Tensor
    logs: dict[str, float]


def build(alignment: Alignment, features: int, *, seed: int) -> nn.Module:
    """The module for an alignment of rows of `features` numbers: an `Aligner`, or a `LadderOrder` for "rank"."""
    if alignment.compares == "ladders":
        return LadderOrder(alignment)
    return Aligner(alignment, features, seed=seed)


class Aligner(nn.Module):
    """Aligns (S, D) with (T, D): `aligner(source, target, progress) -> Aligned`. S and T may differ; each counts half.

    Always computes in float32. Raises TrainingError on other shapes, fewer than two rows of a domain, NaN or infinity.
    """

    def __init__(self, alignment: Alignment, features: int, *, seed: int) -> None:
        super().__init__()
        if alignment.compares != "domains":
            raise TrainingError("kind='rank' aligns no features; use LadderOrder, which takes scores of ladders")
        _known(alignment)
        self.alignment, self.features = alignment, features
        self.classifier = DomainClassifier(features, alignment.hidden, seed=seed) if alignment.kind == "grl" else None

    def forward(self, source_SD: Tensor, target_TD: Tensor, progress: float) -> Aligned:
        strength = strength_at(self.alignment, progress)
        with torch.autocast(source_SD.device.type, enabled=False):
            source_SD, target_TD = self._prepared(source_SD, target_TD)
            if self.classifier is None:
                distance = DISTANCES[self.alignment.kind](source_SD, target_TD)
                return Aligned(strength * distance, {"alignment": float(distance.detach()), "strength": strength})
            source_S = self.classifier(reverse_gradient(source_SD, strength))
            target_T = self.classifier(reverse_gradient(target_TD, strength))
            loss = domain_loss(source_S, target_T)
        accuracy = domain_accuracy(source_S, target_T)
        logs = {"alignment": float(loss.detach()), "strength": strength, "domain_accuracy": accuracy}
        return Aligned(loss, logs)

    def unreversed(self, source_SD: Tensor, target_TD: Tensor) -> Tensor:
        """The alignment's own loss, without λ and reversal: what the self-test compares with."""
        with torch.autocast(source_SD.device.type, enabled=False):
            source_SD, target_TD = self._prepared(source_SD, target_TD)
            if self.classifier is None:
                return DISTANCES[self.alignment.kind](source_SD, target_TD)
            return domain_loss(self.classifier(source_SD), self.classifier(target_TD))

    def _prepared(self, source_SD: Tensor, target_TD: Tensor) -> tuple[Tensor, Tensor]:
        _check(source_SD, target_TD)
        if source_SD.shape[1] != self.features:
            raise TrainingError(
                f"rows of {source_SD.shape[1]} features for an alignment of {self.features}; build it for those"
            )
        return normalised(source_SD.float(), target_TD.float(), self.alignment.normalise)


class LadderOrder(nn.Module):
    """Order of degraded target images: `order(ladders, progress) -> Aligned`, a ladder's scores (R,) or (R, members).

    The first rung is the image itself, each further one a worse copy. No label is read, and it is the one alignment
    that tells which way is worse. Raises TrainingError without ladders, on fewer than two rungs, NaN or infinity.
    """

    def __init__(self, alignment: Alignment) -> None:
        super().__init__()
        if alignment.compares != "ladders":
            raise TrainingError(f"kind={alignment.kind!r} takes no ladders; use Aligner, which takes features")
        _known(alignment)
        self.alignment = alignment

    def forward(self, ladders: Sequence[Tensor], progress: float) -> Aligned:
        strength = strength_at(self.alignment, progress)
        loss = ladder_order(ladders)
        return Aligned(strength * loss, {"alignment": float(loss.detach()), "strength": strength})


# The paper's: Eqs 4 and 5


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Gradient reversal (Eq 4): x itself forward, -strength times the gradient backward. Any shape; strength >= 0."""
    if not (math.isfinite(strength) and strength >= 0):
        raise TrainingError(f"strength={strength}: a reversal's strength is 0 or more; it brings its own minus sign")
    return cast("Tensor", _Reversal.apply(x, strength))  # type: ignore[no-untyped-call]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


class DomainClassifier(nn.Module):
    """Logits (B,) that rows (B, D) are of the target: the shallow MLP under Eq 5's loss, ReLU between its layers."""

    def __init__(self, features: int, hidden: tuple[int, ...] = (256,), *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise((features, *hidden, 1)):
            layer = nn.Linear(before, after)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])  # no ReLU, and above all no softmax, on the one logit

    def forward(self, feature_BD: Tensor) -> Tensor:
        return cast("Tensor", self.body(feature_BD))[:, 0]


def domain_loss(source_S: Tensor, target_T: Tensor) -> Tensor:
    """L_d of Eq 5: cross-entropy of the domain logits, the mean over each domain counting half. log 2 when fooled."""
    return (F.softplus(source_S).mean() + F.softplus(-target_T).mean()) / 2


def strength_at(alignment: Alignment, progress: float) -> float:
    """λ at a point of the run, progress 0 (start) to 1 (end). Raises TrainingError outside."""
    if not 0 <= progress <= 1:
        raise TrainingError(f"progress={progress}: the share of the run that is done, 0 to 1")
    if alignment.schedule == "constant":
        return alignment.weight
    return alignment.weight * (2 / (1 + math.exp(-RAMP * progress)) - 1)


def normalised(source_SD: Tensor, target_TD: Tensor, how: Normalise) -> tuple[Tensor, Tensor]:
    """Features brought to a bounded scale by one map for both domains; the gradient sees through it.

    So no gain is left in growing the features (which is how λ = 1 explodes) or in shrinking them.
    """
    if how == "layer":
        return tuple(F.layer_norm(rows, rows.shape[1:], eps=EPS) for rows in (source_SD, target_TD))  # type: ignore[return-value]
    if how == "batch":
        mean_D = (source_SD.mean(0) + target_TD.mean(0)) / 2
        variance_D = ((source_SD - mean_D).square().mean(0) + (target_TD - mean_D).square().mean(0)) / 2
        sd_D = (variance_D + EPS).sqrt()
        return (source_SD - mean_D) / sd_D, (target_TD - mean_D) / sd_D
    return source_SD, target_TD


# Other losses, which are distances to log as well: (S, D), (T, D) -> a scalar, smaller is closer


def coral(source_SD: Tensor, target_TD: Tensor) -> Tensor:
    """Distance of the covariances, |C_S - C_T|² / 4 D² (Sun & Saenko 2016, Eq 1), plus that of the means, |m|² / D.

    0 where both agree. The means are our addition: covariances alone do not see a shift.
    """
    _check(source_SD, target_TD)
    features = source_SD.shape[1]
    shift_D = source_SD.mean(0) - target_TD.mean(0)
    covariances_DD = torch.cov(source_SD.T) - torch.cov(target_TD.T)
    return shift_D.square().sum() / features + covariances_DD.square().sum() / (4 * features**2)


def mmd(source_SD: Tensor, target_TD: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, Eq 3), mean over KERNELS; up to 2.

    Around 0, and as often below as above, where the domains are the same. Bandwidth: the median squared distance of
    two rows, whichever their domain. Raises TrainingError where all rows are equal.
    """
    _check(source_SD, target_TD)
    sources = len(source_SD)
    rows_BD = torch.cat([source_SD, target_TD])
    length_B = rows_BD.square().sum(1)
    distance_BB = (length_B[:, None] + length_B - 2 * rows_BD @ rows_BD.T).clamp(min=0)  # rounding goes below 0
    pair = torch.ones_like(distance_BB, dtype=torch.bool).triu(1)
    median = distance_BB.detach()[pair].median()
    if not median > 0:
        raise TrainingError("all rows have the same features: the encoder has collapsed; lower alignment.weight")
    kernel_BB = torch.stack([torch.exp(-distance_BB / (width * median)) for width in KERNELS]).mean(0)
    kernel_BB = kernel_BB - torch.diag_embed(kernel_BB.diagonal())
    within_S = kernel_BB[:sources, :sources].sum() / (sources * (sources - 1))
    within_T = kernel_BB[sources:, sources:].sum() / (len(target_TD) * (len(target_TD) - 1))
    return within_S + within_T - 2 * kernel_BB[:sources, sources:].mean()


def dare_gram(source_SD: Tensor, target_TD: Tensor) -> Tensor:
    """DARE-GRAM (Nejjar et al., CVPR 2023): angle and scale of `gram_gaps`, weighted as in the released code."""
    angle, scale = gram_gaps(source_SD, target_TD)
    return angle + GRAM_SCALE * scale


def gram_gaps(source_SD: Tensor, target_TD: Tensor, *, share: float = GRAM_SHARE) -> tuple[Tensor, Tensor]:
    """How far the domains' Gram matrices of (1, features) are apart: what a least-squares head would feel.

    Angle, 0 to 2: mean over columns of 1 - cosine between the pseudo-inverses. Scale, 0 and up: distance of the leading
    eigenvalues over their number. As many eigenvalues count as in the released code for `share`, of the domain that
    needs more; never more than both domains have, which that code leaves to chance. Wants more rows than eigenvalues.
    """
    _check(source_SD, target_TD)
    gram = [_gram(rows) for rows in (source_SD, target_TD)]
    eigen = [torch.linalg.eigvalsh(matrix).flip(0) for matrix in gram]  # largest first
    kept = min(max(_leading(values, share) for values in eigen), *(_rank(values) for values in eigen))
    inverse = []
    for matrix, values in zip(gram, eigen, strict=True):
        below = values[kept] if kept < len(values) else torch.zeros_like(values[0])
        cut = ((values[kept - 1] + below.clamp(min=0)) / 2).detach()
        inverse.append(torch.linalg.pinv(matrix, atol=cut, rtol=0.0, hermitian=True))
    angle = (1 - F.cosine_similarity(inverse[0], inverse[1], dim=0, eps=1e-6)).mean()
    scale = torch.linalg.vector_norm(eigen[0][:kept] - eigen[1][:kept]) / kept
    return angle, scale


DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"coral": coral, "mmd": mmd, "dare-gram": dare_gram}


def ladder_order(ladders: Sequence[Tensor]) -> Tensor:
    """How far scores (0..1) are from falling by RUNG_APART at each rung, and from the image to each; 0 and up.

    Each ladder is (R,) or (R, members), best first; ladders count alike.
    """
    if not ladders:
        raise TrainingError("no ladders; make some of target images, or choose another kind")
    losses = []
    for score in ladders:
        if score.ndim not in (1, 2) or len(score) < 2:
            raise TrainingError(f"a ladder's scores are {tuple(score.shape)}; wanted (rungs,) with two rungs or more")
        if not bool(torch.isfinite(score).all()):
            raise TrainingError("NaN or infinite scores of a ladder: the run has blown up; lower the learning rate")
        fall = torch.cat([score[:-1] - score[1:], score[:1] - score[1:]])
        losses.append(F.softplus((RUNG_APART - fall) / RUNG_APART).mean() * RUNG_APART * 4)
    return torch.stack(losses).mean()


# Self-test, to be run before the first step


class Reversal(NamedTuple):
    """What `check_reversal` found: cosine and ratio of the encoder's gradient to the plain one; norms of gradients."""

    cosine: float
    ratio: float
    encoder: float
    classifier: float


def self_test(aligner: Aligner, source_SD: Tensor, target_TD: Tensor, encoder: Iterable[nn.Parameter]) -> None:
    """Check, on features that still hang on the encoder's graph, that an alignment pushes the encoder the right way.

    Raises TrainingError that says what is wrong: features cut off, nothing to learn, a wrong sign or size.
    """
    strength = _something(strength_at(aligner.alignment, 1.0))
    parameters = [parameter for parameter in encoder if parameter.requires_grad]
    aligned = aligner(source_SD, target_TD, 1.0).loss
    if aligner.classifier is None:
        _gradient(aligned, parameters, "encoder")
        return
    plain = aligner.unreversed(source_SD, target_TD)
    check_reversal(aligned, plain, encoder=parameters, classifier=aligner.classifier.parameters(), strength=strength)


def check_reversal(
    reversed_loss: Tensor,
    plain_loss: Tensor,
    *,
    encoder: Iterable[nn.Parameter],
    classifier: Iterable[nn.Parameter],
    strength: float,
) -> Reversal:
    """Compare a domain loss as it is trained with the same without reversal: the signs must be right (Eq 4).

    The encoder must get -strength times the plain gradient, the classifier the plain one, and neither nothing. Raises
    TrainingError that says what is wrong. Allows for bfloat16: 1 % in size.
    """
    _something(strength)
    encoder, classifier = list(encoder), list(classifier)
    wanted, found = _gradient(plain_loss, encoder, "encoder"), _gradient(reversed_loss, encoder, "encoder")
    own, head = (_gradient(loss, classifier, "domain classifier") for loss in (plain_loss, reversed_loss))
    cosine = float(F.cosine_similarity(found, wanted, dim=0))
    ratio = float(found.norm() / wanted.norm())
    if cosine > -0.99:
        raise TrainingError(
            f"the encoder's gradient of the domain loss is not reversed (cosine to the plain one {cosine:.3f}, wanted "
            "-1); reverse once, between the features and the classifier"
        )
    if not math.isclose(ratio, strength, rel_tol=0.01):
        raise TrainingError(f"the encoder's reversed gradient is {ratio:.3g} times the plain one; wanted λ, {strength}")
    if not bool(torch.linalg.vector_norm(head - own) <= 0.01 * own.norm()):
        raise TrainingError("the domain classifier's gradient is reversed or scaled; reverse before it, not after")
    return Reversal(cosine, ratio, float(found.norm()), float(head.norm()))


def _something(strength: float) -> float:
    if strength == 0:
        raise TrainingError("alignment.weight is 0: nothing is aligned; raise it, or train without alignment")
    return strength


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], whose: str) -> Tensor:
    """The gradient as one vector. Raises TrainingError where there is none."""
    nothing = TrainingError(
        f"the alignment gives the {whose} no gradient: nothing there would be adapted; check that its parameters are "
        "trained and that the features are not detached or made in inference mode"
    )
    if not parameters or not loss.requires_grad:
        raise nothing
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    filled = (
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    )
    vector = torch.cat([gradient.detach().flatten().float() for gradient in filled])
    if not bool(vector.any()):
        raise nothing
    return vector


# Diagnostics: to log, and to choose by where there are no labels


def domain_accuracy(source_S: Tensor, target_T: Tensor) -> float:
    """Share of domain logits (target positive) on the right side, 0 to 1, each domain counting half; ties count half.

    0.5: the classifier is fooled, or has learnt nothing. 1: it tells every row's domain.
    """
    right = [(side > 0).double().mean() + (side == 0).double().mean() / 2 for side in (-source_S, target_T)]
    return float((right[0] + right[1]) / 2)


def proxy_a_distance(
    source_SD: Tensor,
    target_TD: Tensor,
    *,
    seed: int,
    source_groups: Sequence[object] | None = None,
    target_groups: Sequence[object] | None = None,
) -> float:
    """2 (1 - 2 error) of a held-out linear domain classifier (Ben-David et al. 2007): about 0 alike, 2 separable.

    May come out a little below 0 by chance. Logistic regression with unit ridge on standardised features, fitted on
    a random half and tried on the other, both ways; each domain counts half. Rows of one group (an image, a scene)
    stay together: rows of one image told apart from another's would pass for a distance of domains.
    """
    _check(source_SD, target_TD)
    rng = torch.Generator().manual_seed(seed)
    source = source_SD.detach().double().cpu()
    target = target_TD.detach().double().cpu()
    first_S = _first_half(len(source), source_groups, rng, "source")
    first_T = _first_half(len(target), target_groups, rng, "target")
    errors = []
    for here_S, here_T in ((first_S, first_T), (~first_S, ~first_T)):
        judge = _logistic(source[here_S], target[here_T])
        errors.append(1 - domain_accuracy(judge(source[~here_S]), judge(target[~here_T])))
    return 2 * (1 - sum(errors))  # the mean error of two halves, twice


def effective_rank(feature_BD: Tensor) -> float:
    """exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2023): 1 to min(B, D).

    1: all rows on one line, the features have collapsed. Higher is richer. Raises UndefinedScore for zeros alone.
    """
    values = torch.linalg.svdvals(feature_BD.detach().double())
    if not bool(torch.isfinite(values).all()) or not values.sum() > 0:
        raise UndefinedScore("features that are all zero, NaN or infinite have no effective rank")
    share = values / values.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def order_concordance(ladders: Sequence[Sequence[float]]) -> float:
    """Share of pairs on a ladder (scores, best first) where the worse copy scores lower, 0 to 1; ties count half.

    1: every degradation is seen. 0.5: blind. 0: upside down. Raises UndefinedScore without a pair, or on NaN.
    """
    falls = [better - worse for ladder in ladders for better, worse in combinations(map(float, ladder), 2)]
    if not falls or any(math.isnan(fall) for fall in falls):
        raise UndefinedScore(f"{len(falls)} pairs on {len(ladders)} ladders, or NaN among the scores: no concordance")
    return sum(1.0 if fall > 0 else 0.5 if fall == 0 else 0.0 for fall in falls) / len(falls)


def health(feature_BD: Tensor, score_B: Tensor) -> dict[str, float]:
    """Signs of life: `feature_norm`, mean length of a row; `dead_units`, share of features (0..1) that are the same
    on every row; `spread`, sd of the scores (0..1). A dying network has more of the second and less of the third."""
    feature_BD, score_B = feature_BD.detach().float(), score_B.detach().float()
    return {
        "feature_norm": float(feature_BD.norm(dim=1).mean()),
        "dead_units": float((feature_BD == feature_BD[:1]).all(0).float().mean()),
        "spread": float(score_B.std(correction=0)),
    }


def guard(signs: Mapping[str, float], alignment: Alignment, *, usual_norm: float) -> None:
    """Stop a run whose `health` is gone. `usual_norm`: the feature norm of its first steps. Raises TrainingError."""
    way_out = (
        f"lower alignment.weight (now {alignment.weight}) or the learning rate, use schedule='ramp', or "
        f"normalise='layer' (now {alignment.normalise!r})"
    )
    norm = signs["feature_norm"]
    if not norm <= EXPLODED * usual_norm:
        raise TrainingError(
            f"alignment makes features explode: mean norm {norm:.3g}, first {usual_norm:.3g}; {way_out}"
        )
    if signs["dead_units"] > MOST_DEAD:
        raise TrainingError(f"alignment killed {signs['dead_units']:.0%} of the features; {way_out}")
    if not signs["spread"] >= LEAST_SPREAD:
        raise TrainingError(f"all images get the same score (sd {signs['spread']:.2g}); {way_out}")


def _known(alignment: Alignment) -> None:
    """Raise TrainingError for values outside their range; the literals are checked where a recipe is read."""
    if not (math.isfinite(alignment.weight) and alignment.weight >= 0):
        raise TrainingError(f"alignment.weight={alignment.weight}; wanted 0 or more")
    if not (math.isfinite(alignment.pace) and alignment.pace > 0):
        raise TrainingError(f"alignment.pace={alignment.pace}; wanted more than 0")
    if any(size < 1 for size in alignment.hidden):
        raise TrainingError(f"alignment.hidden={alignment.hidden}; wanted sizes of 1 or more")


def _check(source_SD: Tensor, target_TD: Tensor) -> None:
    for whose, rows in (("source", source_SD), ("target", target_TD)):
        if rows.ndim != 2:
            raise TrainingError(f"{whose} features are {tuple(rows.shape)}; wanted (rows, features)")
        if len(rows) < 2:
            raise TrainingError(f"{len(rows)} {whose} rows; draw two or more of each domain in every step")
        if not bool(torch.isfinite(rows).all()):
            raise TrainingError(
                f"NaN or infinite {whose} features: the run has blown up; lower the learning rate or alignment.weight"
            )
    if source_SD.shape[1] != target_TD.shape[1]:
        raise TrainingError(
            f"{source_SD.shape[1]} source features, {target_TD.shape[1]} target features; wanted as many"
        )


def _gram(rows_BD: Tensor) -> Tensor:
    """Mean over rows of (1, features)' (1, features): (D + 1, D + 1)."""
    with_one = torch.cat([torch.ones_like(rows_BD[:, :1]), rows_BD], 1)
    return with_one.T @ with_one / len(rows_BD)


def _leading(eigen: Tensor, share: float) -> int:
    """How many leading eigenvalues count: the place of the last that keeps the sum within `share`, at least 1."""
    reached = (eigen.detach().cumsum(0) / eigen.detach().sum()).tolist()
    allowed = max(share, reached[1])
    return max(place for place, sum_here in enumerate(reached) if sum_here <= allowed)


def _rank(eigen: Tensor) -> int:
    floor = eigen[0].detach() * len(eigen) * torch.finfo(eigen.dtype).eps
    return int((eigen.detach() > floor).sum())


def _first_half(rows: int, groups: Sequence[object] | None, rng: torch.Generator, whose: str) -> Tensor:
    """A mask of rows: those of a random half of the groups (of the rows, without groups)."""
    named = range(rows) if groups is None else groups
    if len(named) != rows:
        raise TrainingError(f"{len(named)} {whose} groups for {rows} rows; wanted one each")
    places = {name: place for place, name in enumerate(dict.fromkeys(named))}
    if len(places) < 2:
        raise TrainingError(f"all {whose} rows are of one group; held-out rows need two groups or more")
    chosen = set(torch.randperm(len(places), generator=rng)[: len(places) // 2].tolist())
    return torch.tensor([places[name] in chosen for name in named])


_LEAST_SD = 0.01  # of the median sd: a feature that hardly ever fires is not brought to unit sd


def _logistic(source_SD: Tensor, target_TD: Tensor) -> Callable[[Tensor], Tensor]:
    """Logits (target positive) by ridge logistic regression, each domain counting half; float64, deterministic."""
    mean, sd = (statistic(torch.cat([source_SD, target_TD]), 0) for statistic in (torch.mean, torch.std))
    # a constant feature tells nothing, and one that fires in a row of thousands must not be blown up to tell all
    sd = torch.where(sd > 0, sd.clamp(min=_LEAST_SD * float(sd.median())), torch.ones_like(sd))
    source_SD, target_TD = (source_SD - mean) / sd, (target_TD - mean) / sd
    ridge = 1 / (len(source_SD) + len(target_TD))
    weight = torch.zeros(source_SD.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = (rows @ weight[:-1] + weight[-1] for rows in (source_SD, target_TD))
        loss = domain_loss(*logits) + ridge * weight[:-1].square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    return lambda rows: (rows - mean) / sd @ fitted[:-1] + fitted[-1]
