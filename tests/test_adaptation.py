"""Adaptation: gradients have the right sign, domains really come together, and what is wrong is said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from saqm.adaptation import (
    ALIGNMENTS,
    DISTANCES,
    GRAM_SCALE,
    Aligner,
    Alignment,
    DomainClassifier,
    LadderOrder,
    Normalise,
    build,
    check_reversal,
    coral,
    dare_gram,
    domain_accuracy,
    domain_loss,
    effective_rank,
    gram_gaps,
    guard,
    health,
    ladder_order,
    mmd,
    normalised,
    order_concordance,
    proxy_a_distance,
    reverse_gradient,
    self_test,
    strength_at,
)
from saqm.errors import TrainingError, UndefinedScore

GRL = ALIGNMENTS["grl"]
OVER_DOMAINS = [name for name, row in ALIGNMENTS.items() if row.compares == "domains"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(rows: int, features: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def gradient(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, retain_graph=True)


# Reversal


def test_reversal_is_the_identity_forward() -> None:
    x = normal(4, 3, 0)
    assert torch.equal(reverse_gradient(x, 0.3), x)


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 2.5])
def test_reversed_gradient_is_minus_strength_times_the_finite_difference(strength: float) -> None:
    x = normal(5, 3, 1, torch.float64).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return (x.tanh() * torch.arange(3)).square().sum()

    (found,) = gradient(loss(reverse_gradient(x, strength)), x)
    step = 1e-6
    for place in ((0, 1), (2, 2), (4, 0)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        slope = (loss(x + nudge) - loss(x - nudge)) / (2 * step)
        assert float(found[place].detach()) == pytest.approx(-strength * float(slope.detach()), abs=1e-7)


def test_reversed_gradient_is_exact_to_the_bit() -> None:
    x = normal(5, 3, 1).requires_grad_()
    (plain,) = gradient(x.exp().sum(), x)
    (found,) = gradient(reverse_gradient(x, 0.7).exp().sum(), x)
    assert torch.equal(found, -0.7 * plain)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_a_reversal_of_negative_strength_is_refused(strength: float) -> None:
    with pytest.raises(TrainingError, match=r"strength=.*0 or more; it brings its own minus sign"):
        reverse_gradient(torch.zeros(1), strength)


# Domain classifier and its loss


def test_classifier_ends_in_one_free_logit() -> None:
    """A softmax over one logit, as another library had it, has no gradient at all."""
    classifier = DomainClassifier(8, (16,), seed=0)
    logit = classifier(normal(64, 8, 2))
    assert logit.shape == (64,)
    assert logit.min() < 0 < logit.max()
    assert all(bool(g.any()) for g in gradient(domain_loss(logit[:32], logit[32:]), *classifier.parameters()))


def test_same_seed_same_classifier() -> None:
    one, same, other = (DomainClassifier(8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["body.0.weight"], other["body.0.weight"])


def test_domain_loss_is_cross_entropy_of_balanced_batches() -> None:
    source, target = normal(6, 1, 3)[:, 0], normal(6, 1, 4)[:, 0]
    both, truth = torch.cat([source, target]), torch.tensor([0.0] * 6 + [1.0] * 6)
    expected = nn.functional.binary_cross_entropy_with_logits(both, truth)
    torch.testing.assert_close(domain_loss(source, target), expected)
    assert float(domain_loss(torch.zeros(3), torch.zeros(5))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["paper", "grl", "coral", "dare-gram"])
def test_each_domain_counts_half_whatever_its_rows(name: str) -> None:
    """The source repeated is the same source; sample covariances (n - 1) agree for many rows."""
    source, target = normal(400, 4, 5), 1 + 2 * normal(90, 4, 6)
    aligner = Aligner(ALIGNMENTS[name], 4, seed=0)
    once, thrice = aligner(source, target, 1.0), aligner(source.repeat(3, 1), target, 1.0)
    torch.testing.assert_close(once.loss, thrice.loss, rtol=5e-3, atol=1e-5)


# Normalisation


def test_what_is_aligned_cannot_be_bought_by_scale() -> None:
    source, target = normal(16, 6, 7).requires_grad_(), (1 + normal(24, 6, 8)).requires_grad_()
    for how in ("layer", "batch"):
        aligner = Aligner(replace(GRL, normalise=how), 6, seed=0)
        loss = aligner(source, target, 1.0).loss
        torch.testing.assert_close(aligner(1000 * source, 1000 * target, 1.0).loss, loss, rtol=1e-3, atol=1e-4)
        by_source, by_target = gradient(loss, source, target)
        radial = (source * by_source).sum() + (target * by_target).sum()  # what growing all features would gain
        assert abs(float(radial.detach())) < 1e-4 * float(by_source.norm() * source.detach().norm())
    unbounded = Aligner(replace(GRL, normalise="none"), 6, seed=0)
    assert unbounded(1000 * source, 1000 * target, 1.0).loss > 10 * unbounded(source, target, 1.0).loss


def test_batch_normalisation_keeps_what_tells_domains_apart_and_survives_dead_features() -> None:
    source, target = normal(50, 3, 9), 5 + normal(20, 3, 10)
    source[:, 2] = target[:, 2] = 0.0
    one, other = normalised(source, target, "batch")
    torch.testing.assert_close((one.mean(0) + other.mean(0)) / 2, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        (one.square().mean(0) + other.square().mean(0))[:2] / 2, torch.ones(2), atol=1e-3, rtol=0
    )
    assert (other.mean(0) - one.mean(0))[:2].min() > 1.5
    assert not one[:, 2].any()


@pytest.mark.parametrize(("how", "low", "high"), [("none", 1e5, math.inf), ("layer", 1, 1e3), ("batch", 1, 1e3)])
def test_lambda_1_explodes_a_plain_network_unless_features_are_normalised(
    how: Normalise, low: float, high: float
) -> None:
    rng = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for before in (8, *[32] * 7):
        linear = nn.Linear(before, 32)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=rng)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    encoder, aligner = nn.Sequential(*layers), Aligner(replace(ALIGNMENTS["paper"], normalise=how), 32, seed=0)
    optimiser = torch.optim.Adam([*encoder.parameters(), *aligner.parameters()], lr=5e-3)
    for _ in range(100):
        source = encoder(torch.randn(16, 8, generator=rng))
        target = encoder(torch.randn(16, 8, generator=rng) + 0.5)
        optimiser.zero_grad()
        backward(aligner(source, target, 1.0).loss)
        optimiser.step()
    assert low < float(source.detach().norm(dim=1).mean()) < high


# λ


def test_ramp_is_ganin_s_and_stays_below_its_weight() -> None:
    ramp = replace(GRL, weight=1.0, schedule="ramp")
    assert strength_at(ramp, 0.0) == 0
    assert [round(strength_at(ramp, p), 2) for p in (0.1, 0.2, 1.0)] == [0.46, 0.76, 1.0]
    assert strength_at(replace(ramp, weight=0.1), 0.2) == pytest.approx(0.1 * strength_at(ramp, 0.2))
    assert strength_at(ALIGNMENTS["paper"], 0.0) == strength_at(ALIGNMENTS["paper"], 1.0) == 1


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_the_run_is_refused(progress: float) -> None:
    with pytest.raises(TrainingError, match=r"progress=.*0 to 1"):
        strength_at(GRL, progress)


def test_lambda_scales_what_the_encoder_gets_and_never_what_the_classifier_gets() -> None:
    source, target = normal(8, 4, 11).requires_grad_(), normal(8, 4, 12).requires_grad_()
    aligner = Aligner(GRL, 4, seed=0)
    assert aligner.classifier is not None
    head = list(aligner.classifier.parameters())
    early, late = (gradient(aligner(source, target, p).loss, source, *head) for p in (0.0, 1.0))
    assert not early[0].any()
    assert late[0].any()
    assert all(torch.equal(a, b) for a, b in zip(early[1:], late[1:], strict=True))


@pytest.mark.parametrize("kind", DISTANCES)
def test_lambda_scales_a_distance(kind: str) -> None:
    source, target = normal(9, 3, 13), 1 + normal(8, 3, 14)
    aligner = Aligner(replace(ALIGNMENTS[kind], schedule="constant", weight=0.25), 3, seed=0)
    aligned, plain = aligner(source, target, 0.5), aligner.unreversed(source, target)
    torch.testing.assert_close(aligned.loss, 0.25 * plain)
    assert aligned.logs == {"alignment": float(plain), "strength": 0.25}


# Distances


@pytest.mark.parametrize("kind", ["coral", "mmd"])
def test_a_distance_is_near_0_for_the_same_domain_and_grows_with_shift_and_spread(kind: str) -> None:
    distance = DISTANCES[kind]
    source, same = normal(300, 4, 15, torch.float64), normal(200, 4, 16, torch.float64)
    near = abs(float(distance(source, same)))
    assert near < 0.35 * float(distance(source, same + 0.7))
    assert near < 0.35 * float(distance(source, 2 * same))


def test_coral_is_the_published_formula_and_the_means() -> None:
    source, target = normal(7, 3, 17, torch.float64), normal(5, 3, 18, torch.float64)
    covariances = [(x - x.mean(0)).T @ (x - x.mean(0)) / (len(x) - 1) for x in (source, target)]
    published = (covariances[0] - covariances[1]).norm() ** 2 / (4 * 3**2)
    shift = (source.mean(0) - target.mean(0)).norm() ** 2 / 3
    torch.testing.assert_close(coral(source, target), published + shift)
    torch.testing.assert_close(coral(source, target + shift), coral(source - shift, target))


def test_mmd_by_hand() -> None:
    """Two rows at 0 and 1 against two at 0 and 2: squared distances 1; 4; and 0, 4, 1, 1. Their median is 1."""
    source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    kernel = [sum(math.exp(-d / w) for w in (0.25, 0.5, 1, 2, 4)) / 5 for d in (0, 1, 4)]
    assert float(mmd(source, target)) == pytest.approx(
        kernel[1] + kernel[2] - (kernel[0] + kernel[2] + 2 * kernel[1]) / 2
    )


def test_mmd_is_unbiased_around_0() -> None:
    values = torch.tensor([float(mmd(normal(20, 3, seed), normal(12, 3, 1000 + seed))) for seed in range(200)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(200)
    assert 0.2 < float((values < 0).float().mean()) < 0.8


def waves(rows: int, features: int, phase: float) -> Tensor:
    row, feature = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(1, features + 1, dtype=torch.float64)
    return torch.sin(phase + 0.7 * row * feature + feature) / feature


@pytest.mark.parametrize(
    ("share", "angle", "scale"),
    [
        (0.90, 1.3570682016482498, 8.787126935536106),
        (0.95, 0.6224877114257659, 4.871943203332794),
        (0.99, 0.5533270910239528, 2.4655133390355193),
    ],
)
def test_dare_gram_is_the_released_code_s(share: float, angle: float, scale: float) -> None:
    """Values of DARE_GRAM_LOSS of github.com/ismailnejjar/DARE-GRAM, commit 5bbb90d, code/dSprites/dare_gram.py, run in
    float64 on these rows; its Gram matrix is a sum over the 12 rows, ours their mean."""
    source, target = waves(12, 6, 0.0), 0.3 + 1.5 * waves(12, 6, 1.0)
    found = gram_gaps(source, target, share=share)
    assert float(found[0]) == pytest.approx(angle, rel=1e-10)
    assert float(found[1]) == pytest.approx(scale / 12, rel=1e-10)


def test_dare_gram_by_hand() -> None:
    """Rows (1, ±a) give the diagonal Gram matrix (1, a²): one eigenvalue counts, so the second column is cut off."""
    source, target = torch.tensor([[2.0], [-2.0]]), torch.tensor([[3.0], [-3.0]])
    angle, scale = gram_gaps(source, target)
    assert float(angle) == pytest.approx(0.5)  # the kept columns agree; of the cut one, all zero, nothing is said
    assert float(scale) == pytest.approx(9 - 4)
    assert float(dare_gram(source, target)) == pytest.approx(0.5 + GRAM_SCALE * 5)


def test_dare_gram_sees_features_that_turn_or_grow() -> None:
    """Two factors behind six features: the angle sees other loadings, the scale more spread or a shift."""
    loadings = torch.tensor([[2.0, 2, 2, 2, 2, 2], [1, 1, 1, -1, -1, -1]])
    source, same = (normal(rows, 2, rows) @ loadings + 0.1 * normal(rows, 6, rows + 1) for rows in (300, 200))
    turned = same * torch.tensor([1, -1, 1, 1, 1, -1])
    (near, level), (far, _), (still, grown), (_, shifted) = (
        map(float, gram_gaps(source, target)) for target in (same, turned, 1.5 * same, same + 3)
    )
    assert near < 0.05
    assert still < 0.05
    assert far > 0.5
    assert min(grown, shifted) > 5 * level


def test_dare_gram_s_gradient_is_finite_with_fewer_rows_than_features() -> None:
    source, target = normal(6, 20, 19).requires_grad_(), (1 + normal(9, 20, 20)).requires_grad_()
    found = gradient(dare_gram(source, target), source, target)
    assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in found)


@pytest.mark.parametrize("kind", ["coral", "mmd"])
def test_descending_a_distance_aligns_two_gaussians(kind: str) -> None:
    """A linear map of the target learns to look like the source: its mean and its covariance."""
    source = normal(150, 3, 21) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]) + 1
    target = 2 * normal(100, 3, 22) - 1
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
        linear.bias.zero_()
    optimiser = torch.optim.Adam(linear.parameters(), lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        backward(DISTANCES[kind](source, linear(target)))
        optimiser.step()
    mapped = linear(target).detach()
    assert float((mapped.mean(0) - source.mean(0)).norm()) < 0.1
    assert float((mapped.T.cov() - source.T.cov()).norm()) < 0.2 * float((target.T.cov() - source.T.cov()).norm())
    assert proxy_a_distance(source, target, seed=0) > 1.2
    assert abs(proxy_a_distance(source, mapped, seed=0)) < 0.3


# Adaptation on a problem where it must help: a nuisance follows quality in the source only, and sits elsewhere


def nuisance(rows: int, domain: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    quality = torch.randn(rows, generator=rng)
    honest = quality[:, None] + 0.3 * torch.randn(rows, 4, generator=rng)
    follows = quality[:, None] + 0.1 * torch.randn(rows, 2, generator=rng)
    elsewhere = 2 + torch.randn(rows, 2, generator=rng)
    return torch.cat([honest, follows if domain == "source" else elsewhere], 1), quality


def adapted(alignment: Alignment | None, seed: int) -> dict[str, float]:
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoder, head = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 1)
    aligner = Aligner(alignment or GRL, 8, seed=seed)
    groups = [
        {"params": [*encoder.parameters(), *head.parameters()], "lr": 3e-3},
        {"params": [*aligner.parameters()], "lr": 3e-3 * aligner.alignment.pace},
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.5, 0.999))
    rates = [group["lr"] for group in optimiser.param_groups]
    steps, accuracies = 400, []
    for step in range(steps):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        (source, quality), (target, _) = nuisance(64, "source", rng), nuisance(48, "target", rng)
        source, target = encoder(source), encoder(target)
        loss = (head(source)[:, 0] - quality).square().mean()
        if alignment is not None:
            aligned = aligner(source, target, step / steps)
            loss = loss + aligned.loss
            accuracies.append(aligned.logs.get("domain_accuracy", math.nan))
        optimiser.zero_grad()
        backward(loss)
        optimiser.step()
    with torch.no_grad():
        (source, quality), (target, target_quality) = nuisance(400, "source", rng), nuisance(400, "target", rng)
        source, target = encoder(source), encoder(target)
        return {
            "source": float((head(source)[:, 0] - quality).square().mean()),
            "target": float((head(target)[:, 0] - target_quality).square().mean()),
            "distance": proxy_a_distance(*normalised(source, target, aligner.alignment.normalise), seed=0),
            "early": sum(accuracies[20:60]) / 40,
            "late": sum(accuracies[-40:]) / 40,
        }


@pytest.mark.slow
@pytest.mark.parametrize("alignment", [replace(GRL, weight=1.0), ALIGNMENTS["coral"], ALIGNMENTS["mmd"]])
def test_alignment_forgets_the_domain_keeps_the_quality_and_helps_the_target(alignment: Alignment) -> None:
    alone, helped = adapted(None, seed=1), adapted(alignment, seed=1)
    assert alone["target"] > 0.5
    assert alone["distance"] > 1.4
    assert helped["target"] < 0.3 * alone["target"]
    assert helped["source"] < 0.1  # of a variance of 1: still predictable
    assert helped["distance"] < 0.8
    if alignment.kind == "grl":
        assert helped["early"] > 0.7
        assert abs(helped["late"] - 0.5) < 0.15


def test_same_seed_same_run() -> None:
    for name in OVER_DOMAINS:
        once, again = (build(ALIGNMENTS[name], 4, seed=3) for _ in range(2))
        assert torch.equal(*(aligner(normal(9, 4, 23), normal(8, 4, 24), 0.5).loss for aligner in (once, again)))


# Degradation rank


def test_ladder_order_asks_scores_to_fall_and_weighs_no_label() -> None:
    falling, level, rising = (torch.tensor(scores) for scores in ([0.9, 0.6, 0.3], [0.5] * 3, [0.3, 0.6, 0.9]))
    assert ladder_order([falling]) < 0.01 < ladder_order([level]) < ladder_order([rising])
    torch.testing.assert_close(ladder_order([falling, rising]), (ladder_order([falling]) + ladder_order([rising])) / 2)
    members = torch.stack([falling, rising], 1)  # (R, members): each member on its own
    torch.testing.assert_close(ladder_order([members]), ladder_order([falling, rising]))


def test_ladder_order_tells_which_way_is_worse() -> None:
    """A network that has quality upside down turns round, from degraded copies alone."""
    blur = torch.linspace(0, 1, 5)[:, None]
    slope = torch.tensor([0.5], requires_grad=True)
    order = LadderOrder(ALIGNMENTS["rank"])
    optimiser = torch.optim.Adam([slope], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        backward(order([torch.sigmoid(slope * blur)], 0.5).loss)
        optimiser.step()
    assert float(slope.detach()) < -1


def test_ladders_that_are_none_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"no ladders; make some of target images"):
        ladder_order([])
    with pytest.raises(TrainingError, match=r"a ladder's scores are \(1,\); wanted \(rungs,\) with two rungs"):
        ladder_order([torch.zeros(1)])
    with pytest.raises(TrainingError, match=r"NaN or infinite scores of a ladder"):
        ladder_order([torch.tensor([0.1, math.nan])])


# Self-test


def encoder_and_rows() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), normal(12, 6, 25), 1 + normal(10, 6, 26)


@pytest.mark.parametrize("name", OVER_DOMAINS)
def test_self_test_passes_every_alignment_that_is_plugged_in_right(name: str) -> None:
    encoder, source, target = encoder_and_rows()
    aligner = Aligner(ALIGNMENTS[name], 5, seed=0)
    self_test(aligner, encoder(source), encoder(target), encoder.parameters())
    assert all(parameter.grad is None for parameter in (*encoder.parameters(), *aligner.parameters()))


def test_self_test_measures_sign_and_size() -> None:
    encoder, source, target = encoder_and_rows()
    classifier = DomainClassifier(5, seed=0)
    features = encoder(source), encoder(target)
    plain = domain_loss(*map(classifier, features))
    flipped = domain_loss(*(classifier(reverse_gradient(rows, 0.3)) for rows in features))
    found = check_reversal(
        flipped, plain, encoder=encoder.parameters(), classifier=classifier.parameters(), strength=0.3
    )
    assert found.cosine == pytest.approx(-1, abs=1e-5)
    assert found.ratio == pytest.approx(0.3, rel=1e-4)
    assert found.encoder > 0
    assert found.classifier > 0


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("not reversed", r"not reversed \(cosine to the plain one 1\.000, wanted -1\)"),
        ("reversed twice", r"not reversed"),
        ("other strength", r"0\.5 times the plain one; wanted λ, 1"),
        ("after the classifier", r"domain classifier's gradient is reversed or scaled; reverse before it"),
        ("strength 0", r"gives the encoder no gradient"),
        ("detached", r"gives the encoder no gradient.*not detached or made in inference mode"),
        ("softmax", r"gives the encoder no gradient"),
        ("frozen classifier", r"gives the domain classifier no gradient"),
        ("lambda 0", r"alignment\.weight is 0: nothing is aligned"),
    ],
)
def test_self_test_names_each_known_mistake(mistake: str, message: str) -> None:
    encoder, source, target = encoder_and_rows()
    classifier = DomainClassifier(5, seed=0)
    if mistake == "frozen classifier":
        classifier.requires_grad_(False)
    features = [encoder(source), encoder(target)]

    def logit(rows: Tensor, reverse: bool) -> Tensor:
        if mistake == "detached":
            rows = rows.detach()
        if reverse and mistake not in {"not reversed", "after the classifier"}:
            rows = reverse_gradient(rows, {"other strength": 0.5, "strength 0": 0.0}.get(mistake, 1.0))
        if reverse and mistake == "reversed twice":
            rows = reverse_gradient(rows, 1.0)
        made: Tensor = classifier(rows)
        if mistake == "softmax":
            made = made[:, None].softmax(1)[:, 0]
        return reverse_gradient(made, 1.0) if reverse and mistake == "after the classifier" else made

    plain, flipped = (domain_loss(*(logit(rows, reverse) for rows in features)) for reverse in (False, True))
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    with pytest.raises(TrainingError, match=message):
        check_reversal(
            flipped,
            plain,
            encoder=encoder.parameters(),
            classifier=parameters,
            strength=0.0 if mistake == "lambda 0" else 1.0,
        )


@pytest.mark.parametrize("name", OVER_DOMAINS)
def test_self_test_refuses_a_frozen_encoder_and_cut_off_features(name: str) -> None:
    encoder, source, target = encoder_and_rows()
    aligner = Aligner(ALIGNMENTS[name], 5, seed=0)
    with pytest.raises(TrainingError, match=r"gives the encoder no gradient"):
        self_test(aligner, encoder(source).detach(), encoder(target).detach(), encoder.parameters())
    encoder.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"gives the encoder no gradient"):
        self_test(aligner, encoder(source), encoder(target), encoder.parameters())


@pytest.mark.parametrize("name", OVER_DOMAINS)
def test_self_test_refuses_a_weight_of_0(name: str) -> None:
    encoder, source, target = encoder_and_rows()
    aligner = Aligner(replace(ALIGNMENTS[name], weight=0.0), 5, seed=0)
    with pytest.raises(TrainingError, match=r"alignment\.weight is 0: nothing is aligned"):
        self_test(aligner, encoder(source), encoder(target), encoder.parameters())


# Diagnostics


def test_domain_accuracy_weighs_domains_alike_and_calls_ties_chance() -> None:
    assert domain_accuracy(torch.tensor([-1.0, -1.0, 1.0, -1.0]), torch.tensor([2.0])) == pytest.approx(0.875)
    assert domain_accuracy(torch.zeros(3), torch.zeros(2)) == 0.5


def test_a_distance_is_2_for_separable_domains_and_about_0_for_the_same() -> None:
    source = normal(200, 5, 27)
    assert proxy_a_distance(source, normal(80, 5, 28) + 20, seed=0) == 2
    values = [proxy_a_distance(source, normal(200, 5, 29 + seed), seed=seed) for seed in range(10)]
    assert abs(sum(values) / 10) < 0.15
    assert min(values) < 0  # not clamped
    assert proxy_a_distance(source, normal(200, 5, 28), seed=3) == proxy_a_distance(source, normal(200, 5, 28), seed=3)


def test_a_distance_keeps_rows_of_one_image_together() -> None:
    """Images that each look like themselves and not like their domain: only held-out images tell that."""
    images = normal(16, 12, 40).repeat_interleave(20, 0) + 0.05 * normal(320, 12, 41)
    group = [row // 20 for row in range(160)]
    naive = proxy_a_distance(images[:160], images[160:], seed=0)
    by_image = [
        proxy_a_distance(images[:160], images[160:], seed=s, source_groups=group, target_groups=group) for s in range(5)
    ]
    assert naive > 1.5
    assert sum(by_image) / 5 < 0.7


def test_effective_rank_of_isotropic_and_of_rank_one() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(normal(2000, 8, 42)) == pytest.approx(8, rel=0.01)
    assert effective_rank(normal(50, 1, 43) * torch.ones(7)) == pytest.approx(1, abs=1e-4)
    with pytest.raises(UndefinedScore, match=r"all zero, NaN or infinite"):
        effective_rank(torch.zeros(4, 3))


def test_order_concordance() -> None:
    assert order_concordance([[0.9, 0.5, 0.1], [0.2, 0.1]]) == 1
    assert order_concordance([[0.1, 0.5, 0.9]]) == 0
    assert order_concordance([[0.5, 0.5, 0.5]]) == 0.5
    assert order_concordance([[0.9, 0.1, 0.5]]) == pytest.approx(2 / 3)
    with pytest.raises(UndefinedScore, match=r"0 pairs on 1 ladders"):
        order_concordance([[0.4]])
    with pytest.raises(UndefinedScore, match=r"NaN among the scores"):
        order_concordance([[0.4, math.nan]])


def test_health_counts_dead_units_and_spread() -> None:
    features = torch.tensor([[3.0, 4.0, 0.0, 0.0], [3.0, -4.0, 0.0, 0.0]])
    assert health(features, torch.tensor([0.4, 0.6])) == pytest.approx(
        {"feature_norm": 5, "dead_units": 0.75, "spread": 0.1}
    )


@pytest.mark.parametrize(
    ("sign", "value", "message"),
    [
        ("feature_norm", 501.0, r"features explode: mean norm 501, first 5; lower alignment.weight \(now 1.0\)"),
        ("feature_norm", math.nan, r"features explode"),
        ("dead_units", 0.8, r"killed 80% of the features; .* use schedule='ramp'"),
        ("spread", 1e-4, r"all images get the same score \(sd 0.0001\); .*normalise='layer' \(now 'none'\)"),
        ("spread", math.nan, r"all images get the same score"),
    ],
)
def test_guard_stops_a_run_that_has_died_and_says_what_to_change(sign: str, value: float, message: str) -> None:
    well = {"feature_norm": 5.0, "dead_units": 0.2, "spread": 0.2}
    guard(well, ALIGNMENTS["paper"], usual_norm=5.0)
    with pytest.raises(TrainingError, match=message):
        guard({**well, sign: value}, ALIGNMENTS["paper"], usual_norm=5.0)


# What is refused


@pytest.mark.parametrize("name", OVER_DOMAINS)
def test_wrong_features_are_refused(name: str) -> None:
    aligner = Aligner(ALIGNMENTS[name], 3, seed=0)
    good = normal(6, 3, 44)
    cases = [
        (good, normal(6, 4, 45), r"3 source features, 4 target features; wanted as many"),
        (normal(6, 4, 45), normal(6, 4, 46), r"rows of 4 features for an alignment of 3; build it for those"),
        (good, good[:0], r"0 target rows; draw two or more of each domain in every step"),
        (good[:1], good, r"1 source rows; draw two or more"),
        (good[0], good, r"source features are \(3,\); wanted \(rows, features\)"),
        (good, good * math.nan, r"NaN or infinite target features: the run has blown up"),
        (good * math.inf, good, r"NaN or infinite source features: the run has blown up"),
    ]
    for source, target, message in cases:
        with pytest.raises(TrainingError, match=message):
            aligner(source, target, 0.5)


def test_mmd_of_collapsed_features_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"all rows have the same features: the encoder has collapsed"):
        mmd(torch.ones(4, 2), torch.ones(3, 2))


def test_held_out_rows_need_two_groups_of_the_right_number() -> None:
    rows = normal(4, 2, 47)
    with pytest.raises(TrainingError, match=r"all source rows are of one group"):
        proxy_a_distance(rows, rows, seed=0, source_groups=["a"] * 4)
    with pytest.raises(TrainingError, match=r"3 target groups for 4 rows; wanted one each"):
        proxy_a_distance(rows, rows, seed=0, target_groups=["a", "b", "c"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -0.1}, r"alignment.weight=-0.1; wanted 0 or more"),
        ({"weight": math.nan}, r"alignment.weight=nan"),
        ({"hidden": (0,)}, r"alignment.hidden=\(0,\); wanted sizes of 1 or more"),
        ({"pace": 0.0}, r"alignment.pace=0.0; wanted more than 0"),
        ({"kind": "rank"}, r"kind='rank' aligns no features; use LadderOrder"),
    ],
)
def test_wrong_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Aligner(Alignment(**{**asdict(GRL), **changes}), 3, seed=0)


def test_every_row_of_the_table_builds() -> None:
    for name, row in ALIGNMENTS.items():
        module = build(row, 7, seed=0)
        assert isinstance(module, LadderOrder if name == "rank" else Aligner)
        assert bool(list(module.parameters())) == (row.kind == "grl")
    with pytest.raises(TrainingError, match=r"kind='grl' takes no ladders; use Aligner"):
        LadderOrder(GRL)


def test_lower_precision_around_it_changes_nothing() -> None:
    source, target = normal(16, 6, 48), 1 + normal(16, 6, 49)
    for name in OVER_DOMAINS:
        aligner = Aligner(ALIGNMENTS[name], 6, seed=0)
        with torch.autocast("cpu", torch.bfloat16):
            inside = aligner(source, target, 1.0).loss
        assert torch.equal(inside, aligner(source, target, 1.0).loss)
