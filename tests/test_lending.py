"""One engine for several processes: the same bits as its own, errors that travel, borrowers that come and go."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as pillow

import saqm.batch
from saqm.batch import Settings, score_many
from saqm.engine import Engine, load_engine
from saqm.errors import ModelFileError, NotScorable, SaqmError
from saqm.lending import TOGETHER, borrow, lend
from saqm.patches import CHUNK
from saqm.scorer import ModelScorer


@pytest.fixture
def windows() -> NDArray[np.float32]:
    return np.random.default_rng(3).random((2 * CHUNK + 9, 3, 32, 32), np.float32)


@pytest.fixture
def engine(toy_model: Path) -> Engine:
    return load_engine(toy_model, threads=1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Six pictures of noise, of several sizes, and an empty file in third place."""
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 250, (64 + 32 * number, 96))
        pillow.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"")
    return [str(path) for path in sorted(tmp_path.glob("*.png"))]


class Deadly(str):
    """A name that ends the process that receives it, as a crash in a decoder does."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


def test_what_is_borrowed_gives_the_same_bits(engine: Engine, windows: NDArray[np.float32]) -> None:
    with lend(engine) as loan:
        borrowed = borrow(loan)
        for count in (1, CHUNK, len(windows)):
            for ours, theirs in zip(engine.run(windows[:count]), borrowed.run(windows[:count]), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert (borrowed.name, borrowed.sha256, borrowed.header) == (engine.name, engine.sha256, engine.header)
    assert borrowed.batch == TOGETHER, "a picture travels whole, not batch by batch"


def test_many_borrowers_at_once_each_get_their_own(engine: Engine, windows: NDArray[np.float32]) -> None:
    def ask(number: int) -> bool:
        mine = windows[number : number + 20]
        borrowed = borrow(loan)
        return all(
            np.array_equal(ours, theirs)
            for _ in range(5)
            for ours, theirs in zip(expected[number], borrowed.run(mine), strict=True)
        )

    expected = [engine.run(windows[number : number + 20]) for number in range(8)]
    with lend(engine) as loan, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_the_engine_is_run_by_one_borrower_at_a_time(engine: Engine, windows: NDArray[np.float32]) -> None:
    busy, met = threading.Lock(), []

    def forward(given: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        met.append(busy.acquire(blocking=False))
        try:
            return engine.forward(given)
        finally:
            busy.release()

    with lend(replace(engine, forward=forward)) as loan, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: borrow(loan).run(windows), range(8)))
    assert met == [True] * len(met)
    assert len(met) == 8 * 3


def test_an_error_travels_and_the_loan_goes_on(engine: Engine, windows: NDArray[np.float32]) -> None:
    with lend(engine) as loan:
        borrowed = borrow(loan)
        with pytest.raises(NotScorable, match="not finite"):
            borrowed.run(np.full_like(windows, np.nan))
        assert len(borrowed.run(windows).scores_N) == len(windows)


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (ModelFileError("the model is broken"), ModelFileError, "^the model is broken$"),
        (RuntimeError("CUDA out of memory"), SaqmError, "engine onnx failed: RuntimeError: CUDA out of memory"),
    ],
)
def test_whatever_the_engine_dies_of_is_told(
    engine: Engine, windows: NDArray[np.float32], raised: Exception, kind: type[SaqmError], said: str
) -> None:
    def forward(_: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        raise raised

    with lend(replace(engine, forward=forward)) as loan, pytest.raises(kind, match=said):
        borrow(loan).run(windows)


def test_a_borrower_that_goes_away_harms_nobody(engine: Engine, windows: NDArray[np.float32]) -> None:
    with lend(engine) as loan:
        stayed = borrow(loan)
        rude = Client(loan.address, authkey=loan.key)
        rude.send(windows)
        rude.close()  # before the answer
        with pytest.raises(Exception, match="digest"):
            Client(loan.address, authkey=b"a stranger")
        assert len(stayed.run(windows).scores_N) == len(windows)
        assert len(borrow(loan).run(windows).scores_N) == len(windows)


def test_after_the_loan_the_borrower_is_told(engine: Engine, windows: NDArray[np.float32]) -> None:
    with lend(engine) as loan:
        borrowed = borrow(loan)
    for ask in (lambda: borrowed.run(windows), lambda: borrow(loan)):
        with pytest.raises(SaqmError, match="lends it no more"):
            ask()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this machine are lent to the workers, as a GPU's would be."""
    monkeypatch.setattr(saqm.batch, "_lends", lambda scorer: isinstance(scorer, ModelScorer))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("models", [(), ("marziliano",)])
def test_rows_are_the_same_with_one_engine_for_all(
    pictures: list[str], toy_model: Path, models: tuple[str, ...]
) -> None:
    settings = Settings(model=(toy_model, *models), mask="none")
    alone = [row.to_record() for row in score_many(pictures, settings)]
    assert [row.to_record() for row in score_many(pictures, settings, jobs=2)] == alone
    assert len(alone) == len(pictures) * (1 + len(models))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_worker_that_dies_costs_its_own_row_with_one_engine_too(pictures: list[str], toy_model: Path) -> None:
    names = [*pictures[:3], Deadly(pictures[3]), *pictures[4:]]
    rows = list(score_many(names, Settings(model=toy_model, mask="none"), jobs=2))
    assert [row.status for row in rows] == ["scored", "scored", "not_scored", "not_scored", "scored", "scored"]
    assert "died" in rows[3].reasons[0]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_stopping_early_leaves_no_thread_behind(pictures: list[str], toy_model: Path) -> None:
    before = threading.active_count()
    rows = score_many(pictures, Settings(model=toy_model, mask="none"), jobs=2)
    next(rows)
    rows.close()
    assert threading.active_count() <= before


def test_engines_of_a_cpu_are_not_lent(toy_model: Path) -> None:
    scorer = ModelScorer(load_engine(toy_model, threads=1))
    assert not saqm.batch._lends(scorer)
    assert saqm.batch._lends(ModelScorer(replace(scorer.engine, name="cuda-bf16")))
