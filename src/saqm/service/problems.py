"""What is refused, as RFC 9457 has it: a status, and in words what came, what was wanted, the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is not answered as it was meant to be. `detail` names no path and no patient."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers, self.extra = dict(headers or {}), dict(extra or {})

    @property
    def body(self) -> bytes:
        """The answer."""
        said = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return json.dumps({**said, "detail": self.detail, **self.extra}, allow_nan=False).encode()


def fault_told(request: str) -> Problem:
    """What a client is told of a fault of ours."""
    return Problem(500, f"a fault of the service; its log says more under {request}")


def busy(detail: str, seconds: float) -> Problem:
    """What is refused for now, and after how many seconds to ask again."""
    return Problem(429, detail, headers={"Retry-After": str(max(1, round(seconds)))})
