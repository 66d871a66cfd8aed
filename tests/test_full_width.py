"""benchmarks/full_width.py: a widened network is the same function, and the page quotes what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from saqm.network import SAQM, Architecture, Pooling

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec = importlib.util.spec_from_file_location("benchmark_full_width", ROOT / "benchmarks" / "full_width.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def taught(pool: Pooling, hidden: tuple[int, ...]) -> SAQM:
    """A small network in which nothing is as it was at birth: norms have seen pictures, attention counts."""
    arch = Architecture(1 / 16, "shared", "batch", pool, hidden, members=2, weighted=True)
    network = SAQM(arch, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        network.gamma.fill_(0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=rng)
                module.bias.uniform_(-0.2, 0.2, generator=rng)
        network(torch.randn(8, 3, 32, 32, generator=rng))
    return network.eval()


@pytest.mark.parametrize("width", [1 / 8, 5 / 32])  # twice as many channels, and not a whole number of times
@pytest.mark.parametrize(("pool", "hidden"), [("mean-max", (8, 8)), ("max", ())])
@torch.inference_mode()
def test_a_widened_network_is_the_same_function(
    benchmark: ModuleType, width: float, pool: Pooling, hidden: tuple[int, ...]
) -> None:
    narrow = taught(pool, hidden)
    wide = benchmark.widen(narrow, width, np.random.default_rng(3))
    assert (wide.architecture.trunks, wide.architecture.norm, wide.architecture.width) == ("separate", "none", width)
    windows = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    before, after = narrow(windows), wide(windows)
    assert before.score.std() > 0
    torch.testing.assert_close(after.logit, before.logit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.weight, before.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.attend(windows)[1], narrow.attend(windows)[1], rtol=1e-3, atol=1e-5)


def test_each_old_channel_has_copies_whose_shares_sum_to_one(benchmark: ModuleType) -> None:
    made = benchmark.copies(24, 128, np.random.default_rng(0))
    assert set(np.bincount(made.of)) == {5, 6}
    np.testing.assert_allclose(np.bincount(made.of, made.share), 1, rtol=1e-6)
    assert len(set(made.share)) == 128


@torch.inference_mode()
def test_jitter_moves_a_copy_and_leaves_heads_alone(benchmark: ModuleType) -> None:
    network = taught("max", ())
    moved = benchmark.jittered(network, 0.05, np.random.default_rng(0))
    for (name, one), other in zip(network.named_parameters(), moved.parameters(), strict=True):
        if one.dim() == 4:
            ratio = (other / one).flatten()
            assert abs(ratio.mean() - 1) < 0.03
            assert 0.02 < ratio.std() < 0.08
        else:
            assert torch.equal(one, other), name


@torch.inference_mode()
def test_bfloat16_in_32_bits_rounds_as_bfloat16_does(benchmark: ModuleType) -> None:
    network = benchmark.widen(taught("mean-max", (8, 8)), 1 / 8, np.random.default_rng(0))
    windows = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", torch.bfloat16):
        feature = network.embed(windows)
    made = torch.from_numpy(benchmark.rounded(network)(windows.numpy())[2])
    exact = network.embed(windows)
    apart, error = (made - feature.float()).abs().mean(), (feature - exact).abs().mean()
    assert apart < error / 2  # what is left: sums in another order, which round elsewhere


def test_the_page_quotes_what_was_measured(benchmark: ModuleType) -> None:
    made = json.loads((ROOT / "benchmarks" / "results" / "full_width.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"<!-- full-width:begin -->\n{benchmark.markdown(made)}<!-- full-width:end -->" in page
