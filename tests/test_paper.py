"""The paper, line by line: Table 1, Eqs 1 to 5, and the arithmetic that docs/paper.md quotes.

Tliba et al., Deep-based quality assessment of medical images through domain adaptation, ICIP 2022 (arXiv 2210.10533).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saqm.adaptation import ALIGNMENTS, Aligner, reverse_gradient, self_test
from saqm.network import SAQM, TABLE_1, Architecture, attend, multiply_accumulates
from saqm.recipes import RECIPES

# Table 1 as printed: row, layer, parameters of the Value tower (the Q and K towers differ in row 17 only)
TABLE_1_PARAMETERS = {
    1: 3_584, 3: 295_168, 5: 590_080, 7: 590_080,
    10: 1_180_160, 12: 2_359_808, 14: 2_359_808,
    17: 262_656,
}  # fmt: skip
TABLE_1_SHAPES = [  # after each row, for a 3x32x32 window
    *[(128, 32, 32)] * 2, *[(256, 32, 32)] * 6, (256, 16, 16), *[(512, 16, 16)] * 6, *[(512, 8, 8)] * 3,
]  # fmt: skip

SMALL = Architecture(width=1 / 16)


@pytest.fixture(scope="module")
def paper() -> SAQM:
    return SAQM(RECIPES["paper"].architecture, seed=0).eval()


@pytest.fixture
def small() -> SAQM:
    return SAQM(SMALL, seed=0).eval()


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_recipe_is_the_paper_s_network() -> None:
    arch = RECIPES["paper"].architecture
    assert (arch.width, arch.trunks, arch.norm, arch.pool) == (1.0, "separate", "none", "max")
    assert (arch.members, arch.weighted) == (1, False)


def test_value_tower_has_table_1_s_parameters_row_by_row(paper: SAQM) -> None:
    rows = {number: count(layer) for number, layer in enumerate(paper.value, start=1) if count(layer)}
    assert rows == TABLE_1_PARAMETERS


def test_value_tower_has_table_1_s_shapes_row_by_row(paper: SAQM, windows: torch.Tensor) -> None:
    shapes, features = [], windows[:1]
    with torch.inference_mode():
        for layer in paper.value:
            features = layer(features)
            shapes.append(tuple(features.shape[1:]))
    assert shapes == TABLE_1_SHAPES


def test_towers_have_the_published_totals(paper: SAQM) -> None:
    assert count(paper.query) == count(paper.key) == 7_411_520
    assert count(paper.value) == 7_641_344
    towers = count(paper.query) + count(paper.key) + count(paper.value)
    assert towers == 22_464_384
    assert count(paper) == towers + 1 + 131_585  # gamma, and the MLP 512-256-1


def test_shared_trunk_is_the_documented_7_7_million() -> None:
    shared = SAQM(Architecture(trunks="shared"), seed=0)
    assert count(shared) - 1 - 131_585 == 7_707_008


def test_cost_of_a_window_is_what_the_docs_quote() -> None:
    full = multiply_accumulates(Architecture())
    assert round(full / 1e9, 3) == 9.094  # GMAC, so 18.2 GFLOP
    assert round(2 * full * 256 / 1e12, 2) == 4.66  # TFLOP for a 512x512 slice, stride 32
    assert round(2 * full * 192 / 1e12, 2) == 3.49  # TFLOP for a 512x384 photograph of TID2013
    assert multiply_accumulates(Architecture(trunks="shared")) < full / 2.9


def test_cost_counts_what_the_layers_do(small: SAQM, windows: torch.Tensor) -> None:
    """The formula against hooks that count the convolutions and linear layers as they run."""
    counted = 0

    def convolution(layer: nn.Conv2d, _: object, made: torch.Tensor) -> None:
        nonlocal counted
        counted += made[0].numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    def linear(layer: nn.Linear, *_: object) -> None:
        nonlocal counted
        counted += layer.in_features * layer.out_features

    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
    small(windows[:1])
    value, key = SMALL.value_channels, SMALL.value_channels // 8
    assert multiply_accumulates(SMALL) == counted + 64 * 64 * (key + value)


def test_attention_sums_to_one_over_the_keys(small: SAQM, windows: torch.Tensor) -> None:
    _, attention_BLJ = small.attend(windows)
    assert attention_BLJ.shape == (4, 64, 64)
    torch.testing.assert_close(attention_BLJ.sum(-1), torch.ones(4, 64))  # the columns of the paper's A_{j,l}
    assert (attention_BLJ >= 0).all()


def test_equations_1_to_3_written_out_as_loops() -> None:
    """Index by index for one window: S_lj = Q_l . K_j, A = softmax over j, Out_l = gamma sum_j A V_j + V_l."""
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    value, gamma = torch.randn(3, 5, generator=generator), torch.tensor(0.7)
    out, _ = attend(query[None], key[None], value[None], gamma)
    for place in range(5):
        scores = [float(query[:, place] @ key[:, j]) for j in range(5)]
        exponents = [torch.tensor(s).exp() for s in scores]
        weights = [e / sum(exponents) for e in exponents]
        expected = gamma * sum(w * value[:, j] for j, w in enumerate(weights)) + value[:, place]
        torch.testing.assert_close(out[0, :, place], expected)


def test_gamma_starts_at_zero_and_then_gives_the_value(small: SAQM, windows: torch.Tensor) -> None:
    assert float(small.gamma.detach()) == 0
    attended_BCN, _ = small.attend(windows)
    torch.testing.assert_close(attended_BCN, small.value(windows).flatten(2), rtol=0, atol=0)


def test_gamma_is_learnt(small: SAQM, windows: torch.Tensor) -> None:
    small(windows).score.sum().backward()
    assert small.gamma.grad is not None
    assert float(small.gamma.grad.abs()) > 0


def test_permuting_the_positions_permutes_the_attended_features() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, n, 64, generator=generator) for n in (4, 4, 8))
    order = torch.randperm(64, generator=generator)
    gamma = torch.tensor(1.3)
    out, attention = attend(query, key, value, gamma)
    permuted, permuted_attention = attend(query[..., order], key[..., order], value[..., order], gamma)
    torch.testing.assert_close(permuted, out[..., order])
    torch.testing.assert_close(permuted_attention, attention[:, order][:, :, order])


@pytest.mark.parametrize("pool", ["max", "mean", "mean-max"])
def test_pooling_forgets_where_a_position_was(pool: str) -> None:
    from saqm.network import _pool

    features = torch.rand(2, 8, 64, generator=torch.Generator().manual_seed(4))
    pooled = _pool(features, pool)
    assert pooled.shape == (2, 16 if pool == "mean-max" else 8)
    torch.testing.assert_close(_pool(features.flip(-1), pool), pooled)
    if pool == "max":
        torch.testing.assert_close(pooled, features.max(-1).values)


def test_windows_do_not_see_each_other(small: SAQM, windows: torch.Tensor) -> None:
    together = small(windows).score
    alone = torch.cat([small(window[None]).score for window in windows])
    torch.testing.assert_close(together, alone)


def test_score_is_between_0_and_1_and_weight_positive() -> None:
    network = SAQM(Architecture(width=1 / 16, trunks="shared", norm="batch", weighted=True, members=3), seed=0).eval()
    output = network(100 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    assert output.logit.shape == (8, 3)
    assert ((output.score >= 0) & (output.score <= 1)).all()
    assert (output.weight > 0).all()


def test_same_seed_same_network_and_other_seed_another() -> None:
    one, same, other = (SAQM(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["value.0.weight"], other["value.0.weight"])


def test_kaiming_keeps_windows_apart_where_torch_s_defaults_do_not(windows: torch.Tensor) -> None:
    """Method note 6: after the plain layers, torch's defaults leave all windows looking alike."""

    def likeness(init: str) -> float:
        network = SAQM(Architecture(width=1 / 4, init=init), seed=0).eval()
        with torch.inference_mode():
            features = network.embed((windows - 0.45) / 0.25)
        return float(torch.nn.functional.cosine_similarity(features[0], features[1], dim=0))

    assert likeness("pytorch") > 0.995
    assert likeness("kaiming") < likeness("pytorch")


def test_width_scales_every_row() -> None:
    widths = [Architecture(width=w).value_channels for w in (1, 1 / 2, 1 / 4, 3 / 16, 1 / 8)]
    assert widths == [512, 256, 128, 96, 64]
    half = SAQM(Architecture(width=1 / 2), seed=0)
    convolutions = [layer.out_channels for layer in half.value if isinstance(layer, nn.Conv2d)]
    assert convolutions == [number // 2 for kind, number in TABLE_1 if kind == "conv"] + [256]


# Eqs 4 and 5: gradient reversal and domain classifier


def test_equation_4_is_the_identity_forward_and_minus_lambda_backward() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(6)).requires_grad_()
    reversed_x = reverse_gradient(x, 0.25)
    assert torch.equal(reversed_x, x)
    (gradient,) = torch.autograd.grad(reversed_x.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, -0.25))


def test_equation_5_has_no_lambda_and_a_classifier_like_the_quality_head(paper: SAQM) -> None:
    aligner = Aligner(ALIGNMENTS["paper"], paper.architecture.features, seed=0)
    assert count(aligner) == 131_585  # 512-256-1
    features = torch.rand(6, 512, generator=torch.Generator().manual_seed(7))
    assert [aligner(features, features, progress).logs["strength"] for progress in (0.0, 0.5, 1.0)] == [1, 1, 1]


def test_equation_5_is_cross_entropy_of_the_domain_on_the_features_as_they_are(
    small: SAQM, windows: torch.Tensor
) -> None:
    source, target = small.embed(windows), small.embed(1 - windows)
    aligner = Aligner(ALIGNMENTS["paper"], small.architecture.features, seed=0)
    assert aligner.classifier is not None
    logit, domain = aligner.classifier(torch.cat([source, target])), torch.tensor([0.0] * 4 + [1.0] * 4)
    expected = nn.functional.binary_cross_entropy_with_logits(logit, domain)
    torch.testing.assert_close(aligner(source, target, 0.5).loss, expected)
    self_test(aligner, source, target, small.tower_parameters())
