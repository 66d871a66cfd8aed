"""What a run has come to so far, in one line."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from typing import cast

from saqm.outputs.table import Record


class Tally:
    """Counts rows as they pass. Keeps numbers, never records."""

    def __init__(self) -> None:
        self.scored = self.not_scored = self.out_of_domain = 0
        self.verdicts: Counter[str] = Counter()
        self._scores: list[float] = []  # in order
        self._models: set[object] = set()

    def note(self, record: Record) -> None:
        """Take one row into account."""
        domain, model = record["out_of_domain"], record["model"]
        if record["status"] == "scored":
            self.scored += 1
        else:
            self.not_scored += 1
        if isinstance(domain, Mapping) and domain["flag"]:
            self.out_of_domain += 1
        if record["verdict"] is not None:
            self.verdicts[str(record["verdict"])] += 1
        if record["score"] is not None:
            insort(self._scores, cast("float", record["score"]))
            self._models.add(cast("Mapping[str, object]", model or {}).get("name"))

    @property
    def median(self) -> float | None:
        """The median score so far, 0 to 100; None before the first, and where several models gave them."""
        if not self._scores or len(self._models) > 1:
            return None
        middle = len(self._scores) // 2
        return (self._scores[middle] + self._scores[~middle]) / 2

    def line(self) -> str:
        """The numbers in words; what has not come up is left out, but for the first two."""
        parts = [f"{self.scored} scored", f"{self.not_scored} not scored"]
        if self.median is not None:
            parts.append(f"median {self.median:.1f}")
        if self.out_of_domain:
            parts.append(f"{self.out_of_domain} unlike training")
        parts += [
            f"{self.verdicts[verdict]} {verdict}" for verdict in ("pass", "review", "fail") if self.verdicts[verdict]
        ]
        return ", ".join(parts)
