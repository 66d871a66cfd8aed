"""One engine for several processes: whoever reads and cuts pictures sends windows, and gets what it says of them.

    with lend(engine) as loan:          # in the process that holds the model
        ...                             # in others, which were given the loan:
        borrow(loan).run(windows)

It is for a GPU, whose memory one process should hold, and which one core that decodes pictures cannot keep busy. On a
CPU an engine in each process is faster: nothing travels, and cores are all there is.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from saqm.engine import Engine, WindowOutputs
from saqm.errors import SaqmError
from saqm.modelfile import ModelHeader

BORROWERS = 64  # that may knock at the same time; more wait
TOGETHER = 256  # windows that travel at a time: those of a 512x512 slice, 3 MB


@dataclass(frozen=True)
class Loan:
    """What a process needs to know to use another's engine; made to be sent there."""

    address: str
    key: bytes
    name: str
    header: ModelHeader
    sha256: str
    path: Path
    warnings: tuple[str, ...]


class BorrowedEngine(Engine):
    """An engine in another process, which pads and checks; the same bits as there."""

    def run(self, windows_N3PP: NDArray[np.float32]) -> WindowOutputs:
        """Judge N >= 1 windows, as `Engine.run`. Raises as it does, and SaqmError where the lender is gone."""
        return WindowOutputs(*self.forward(windows_N3PP))


@contextmanager
def lend(engine: Engine) -> Iterator[Loan]:
    """Let other processes of this machine use an engine until the block ends; they take turns."""
    key = secrets.token_bytes(32)
    with Listener(backlog=BORROWERS, authkey=key) as listener:
        address = cast("str", listener.address)
        over, turn = threading.Event(), threading.Lock()

        def receive() -> None:
            while True:
                with suppress(OSError, EOFError, AuthenticationError):  # a borrower that came and went
                    connection = listener.accept()
                    threading.Thread(target=_answer, args=(connection, engine, turn, over), daemon=True).start()
                if over.is_set():
                    return

        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        try:
            yield Loan(address, key, engine.name, engine.header, engine.sha256, engine.path, engine.warnings)
        finally:
            over.set()
            Client(address).close()  # nothing else wakes a thread that waits for a borrower
            receiver.join()


def borrow(loan: Loan) -> BorrowedEngine:
    """The engine of another process, as long as that lends it. Raises SaqmError where it does no more."""
    gone = f"the process that held the model {loan.header.name} lends it no more: it has ended, or is ending"
    try:
        lender = Client(loan.address, authkey=loan.key)
    except (OSError, EOFError) as error:
        raise SaqmError(gone) from error

    def forward(windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            lender.send(windows)
            answer = lender.recv()
        except (OSError, EOFError) as error:
            raise SaqmError(gone) from error
        if isinstance(answer, SaqmError):
            raise answer
        return cast("WindowOutputs", answer)

    return BorrowedEngine(loan.name, loan.header, loan.sha256, forward, loan.path, loan.warnings, batch=TOGETHER)


def _answer(connection: Connection, engine: Engine, turn: threading.Lock, over: threading.Event) -> None:
    """One borrower's windows, until it or the loan ends."""
    with connection, suppress(OSError, EOFError):
        while True:
            windows = connection.recv()
            if over.is_set():
                return
            answer: WindowOutputs | SaqmError
            try:
                with turn:
                    answer = engine.run(windows)
            except SaqmError as error:
                answer = error
            except Exception as error:  # of a library beneath; the borrower waits, so it has to be told something
                answer = SaqmError(f"engine {engine.name} failed: {type(error).__name__}: {error}")
            connection.send(answer)
