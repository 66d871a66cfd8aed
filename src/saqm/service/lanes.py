"""Micro-batching: whatever waits goes to the next free worker together, small files of all requests alike.

Nothing waits for company: a file that finds a free worker goes at once. Only what had to wait anyway goes together.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from saqm.workers import Task, Workers

if TYPE_CHECKING:
    from saqm.maps import QualityMap
    from saqm.scorer import Score

GROUP = 16  # files that go together at most
SMALL = 4 << 20  # bytes of a file that may go with others; a longer one would keep them waiting
FAIR = 4  # of so many pieces of work one is a job's, where others wait too
ROWS = 8  # rows that are let go by of a file that nobody wants any more, before its worker is ended
MEMORY = 0.1  # weight of the newest piece of work in the mean of what one takes

T = TypeVar("T")
Seen = Callable[["Score", "QualityMap | None"], None]


class Stopped(Exception):
    """The work was no longer wanted."""


class _Item:
    """A file that waits to be scored, or is being scored. `seen` is told its rows in the loop's own thread."""

    def __init__(self, task: Task, size: int, seen: Seen, done: asyncio.Future[None]) -> None:
        self.task, self.size, self.seen, self.done = task, size, seen, done
        self.rows = self.told = self.ignored = 0  # of this try, of all tries, while unwanted

    @property
    def unwanted(self) -> bool:
        return self.done.done()


class Lane:
    """A queue before some of the workers' processes. To be used from one event loop."""

    def __init__(self, workers: Workers, slots: int, *, on_group: Callable[[int, float], None] | None = None) -> None:
        """slots: pieces of work at a time. on_group: told how many files went together, and the seconds they took."""
        self._workers, self._slots, self._free = workers, slots, slots
        self._urgent, self._patient = deque[_Item](), deque[_Item]()
        self._turn = 0
        self._threads = ThreadPoolExecutor(slots, "saqm-lane")
        self._on_group = on_group
        self._mean = 1.0  # seconds of a piece of work
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Files that have no worker yet."""
        return len(self._urgent) + len(self._patient)

    @property
    def wait_seconds(self) -> float:
        """How long a new file would wait, as the last ones took."""
        return self._mean * (len(self._urgent) + 1) / self._slots

    async def score(self, task: Task, size: int, seen: Seen, *, patient: bool = False) -> None:
        """Score one file; `seen` is told each row as it is made. Cancelling it takes the file back.

        patient: lets others go first, most of the time. Raises SaqmError as `Workers.score`, and what `seen` raises.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._patient if patient else self._urgent).append(_Item(task, size, seen, done))
        self._pump()
        await done  # cancelled with us: the item is unwanted then

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function gives in a worker of this lane's. Raises SaqmError as `Workers.run`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._workers.run(function, *arguments))

    def close(self) -> None:
        """Forget what waits; end the threads. The workers are to be closed first."""
        self._urgent.clear()
        self._patient.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _pump(self) -> None:
        while self._free and (group := self._taken()):
            self._free -= 1
            running = asyncio.get_running_loop().create_task(self._go(group))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    def _taken(self) -> list[_Item]:
        """The next files that go together: the free workers share what waits."""
        for queue in (self._urgent, self._patient):
            while queue and queue[0].unwanted:
                queue.popleft()
        self._turn += 1
        patient = self._patient and (not self._urgent or self._turn % FAIR == 0)
        queue = self._patient if patient else self._urgent
        share = min(GROUP, -(-len(queue) // self._free))
        group: list[_Item] = []
        while queue and len(group) < share:
            if group and max(queue[0].size, group[0].size) > SMALL:
                break
            item = queue.popleft()
            if not item.unwanted:
                group.append(item)
        return group

    async def _go(self, group: Sequence[_Item]) -> None:
        loop = asyncio.get_running_loop()

        def seen(number: int, score: Score, quality: QualityMap | None) -> None:
            item = group[number]
            item.ignored += item.unwanted
            if item.ignored > ROWS or all(each.unwanted for each in group):
                raise Stopped
            loop.call_soon_threadsafe(_tell, item, score, quality)

        def work() -> None:
            tasks = [item.task for item in group]
            self._workers.score(tasks, seen=seen, stop=lambda: all(item.unwanted for item in group))

        began = time.monotonic()
        try:
            await loop.run_in_executor(self._threads, work)
        except Stopped:  # a file that nobody wants held its worker: that is gone, and the others start again
            again = [item for item in group if not item.unwanted]
            for item in again:
                item.rows = 0
            self._urgent.extendleft(reversed(again))
        except Exception as error:
            for item in group:
                if not item.unwanted:
                    item.done.set_exception(error)
        else:
            for item in group:
                if not item.unwanted:
                    item.done.set_result(None)
        finally:
            taken = time.monotonic() - began
            self._mean += MEMORY * (taken / len(group) - self._mean)
            if self._on_group is not None:
                self._on_group(len(group), taken)
            self._free += 1
            self._pump()


def _tell(item: _Item, score: Score, quality: QualityMap | None) -> None:
    item.rows += 1
    if item.unwanted or item.rows <= item.told:
        return
    item.told = item.rows
    try:
        item.seen(score, quality)
    except Exception as error:
        item.done.set_exception(error)
