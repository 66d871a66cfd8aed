"""What goes in and out, as OpenAPI has it, with examples."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from saqm.service.uploads import BARE, LONGEST_NAME


def _strict_bool(value: object) -> object:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("true or false")
        return value == "true"
    return value


def _pair(text: str) -> str:
    center, width = map(float, text.split(","))
    if not width > 0:
        raise ValueError("centre, width: the width must be above 0")
    if not abs(center) + width < float("inf"):
        raise ValueError("centre, width: finite numbers")
    return text


NUMBER = r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?"
Flag = Annotated[bool, BeforeValidator(_strict_bool)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Options(BaseModel):
    """How the files of a request are read, scored and judged: the query of /v1/jobs."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=100, description="One of /v1/models; the first is the default.")
    frame: str = Field(
        "all",
        pattern=r"^(all|[0-9]{1,9})$",
        description="all frames or slices, or one of them, from 0.",
        examples=["all"],
    )
    axis: Literal["0", "1", "2"] | None = Field(
        None, description="The axis that a volume (NIfTI, NRRD, MHA) is sliced along: sagittal, coronal, axial."
    )
    window: Annotated[str, AfterValidator(_pair)] | None = Field(
        None, pattern=rf"^{NUMBER},{NUMBER}$", description="Centre and width instead of the file's own (HU in CT).",
        examples=["40,400"],
    )  # fmt: skip
    mask: Literal["auto", "none"] = Field("auto", description="Leave out air, borders and text, or judge everything.")
    stride: int | None = Field(None, ge=1, le=1024, description="Pixels between windows; the model's own by default.")
    strict: Flag = Field(False, description="Withhold scores of images unlike those that the model knows.")
    pass_at: Finite | None = Field(None, description="Verdict: this score or a better one passes.", examples=[60])
    fail_below: Finite | None = Field(None, description="Verdict: a worse score than this fails.", examples=[40])
    sure: Flag = Field(False, description="Verdict: the whole interval has to be on that side, not the score alone.")
    name: str | None = Field(None, max_length=LONGEST_NAME, description="What to call a file that is the body itself.")

    @model_validator(mode="after")
    def _thresholds(self) -> Self:
        if self.pass_at is None and (self.fail_below is not None or self.sure):
            raise ValueError("fail_below and sure need pass_at")
        return self


class ScoreOptions(Options):
    """The query of /v1/score. The maps of a job are asked for one by one."""

    map: Literal["none", "png"] = Field("none", description="png: with each record its quality map, base64.")


class Problem(BaseModel):
    """What was refused and why (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    records: list[Record] | None = Field(None, description="The rows, where not one file could be read.")


class Map(BaseModel):
    """A quality map over its picture."""

    png: str = Field(description="PNG, base64")


class Record(BaseModel):
    """One image, frame or slice. `score`: 0 to 100, 100 is best; null where there is none, with `reasons`."""

    model_config = ConfigDict(extra="allow")

    path: str = Field(description="the name of the file as it was sent, without folders")
    file: int = Field(description="which file of the request it is of, from 0")
    sha256: str | None
    frame: int | None = Field(description="from 0; null for a single image")
    modality: str | None
    uids: dict[str, str]
    status: Literal["scored", "not_scored"]
    score: float | None = Field(ge=0, le=100)
    score_raw: float | None
    interval: list[float] | None
    coverage: float | None
    out_of_domain: dict[str, Any] | None
    verdict: Literal["pass", "review", "fail"] | None
    reasons: list[str]
    findings: list[dict[str, Any]]
    model: dict[str, str] | None
    preparation: dict[str, Any] | None
    patches: dict[str, int] | None
    warnings: list[str]
    software: str
    created: str | None
    map: Map | None = None


class Records(BaseModel):
    """The rows of a request, files in the order they came, frames in theirs."""

    records: list[Record]


class JobRecords(BaseModel):
    """Rows of a job from number `after` on; ask again from `next`, until the job has ended."""

    records: list[Record]
    after: int
    next: int
    state: str


class Job(BaseModel):
    """How far a job is. `images` grows while it runs."""

    id: str
    state: Literal["queued", "running", "done", "cancelled", "failed"]
    detail: str | None
    files: int
    files_done: int
    images: int
    created: str
    expires: str | None


class Model(BaseModel):
    """A model or metric that is served."""

    name: str
    version: str
    engine: str
    sha256: str | None = None
    direction: str | None = None
    definition: str | None = None


class Models(BaseModel):
    """All that are served; the first is the default."""

    models: list[Model]


class LimitsTold(BaseModel):
    """What a page has to know before it asks."""

    max_body_bytes: int
    max_files: int
    max_pixels: int
    keys: bool = Field(description="whether a key is needed")
    models: list[str]
    software: str


class Health(BaseModel):
    """Whether the service is there."""

    status: Literal["ok"]


RECORD: dict[str, object] = {
    "path": "slice.dcm",
    "file": 0,
    "sha256": "6b1c0c8f0ab6e7fb3c1a3fd6a1b0b9f4a2a2c6b1f1d6a7e8c9d0e1f2a3b4c5d6",
    "frame": None,
    "modality": "CT",
    "uids": {"study": "1.2.3", "series": "1.2.3.4", "instance": "1.2.3.4.5", "sop_class": "1.2.840.10008.5.1.4.1.1.2"},
    "status": "scored",
    "score": 63.2,
    "score_raw": 0.632,
    "interval": [51.7, 74.6],
    "coverage": 0.9,
    "out_of_domain": {"statistic": 0.41, "p": 0.37, "flag": False, "view": "picture"},
    "verdict": "pass",
    "reasons": ["score 63.2 is at or above 60"],
    "findings": [],
    "model": {"name": "saqm-ct", "version": "1.1.0", "sha256": "0" * 64, "engine": "onnx"},
    "preparation": {"window": {"center": 40, "width": 400, "from": "file (1 of 1)"}},
    "patches": {"used": 210, "masked": 46},
    "warnings": [],
    "software": "saqm",
    "created": "2026-01-31T12:00:00+00:00",
}
JOB = {
    "id": "Zr0y3hFqkZ6hUu1m1n0b8A",
    "state": "running",
    "detail": None,
    "files": 12,
    "files_done": 3,
    "images": 90,
    "created": "2026-01-31T12:00:00+00:00",
    "expires": None,
}

BODY = {
    "requestBody": {
        "required": True,
        "description": "One or more files as parts called file, or a single file as the body itself.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            **{media: {"schema": {"type": "string", "format": "binary"}} for media in BARE},
        },
    }
}

_REFUSALS = {
    400: "Not understood.",
    401: "A key is needed, or this one is wrong.",
    403: "Another site's page asked.",
    404: "No such thing.",
    406: "Not to be had in that form.",
    408: "The body came too slowly.",
    409: "Not yet.",
    413: "Too many bytes or files.",
    415: "No type of file that is taken.",
    421: "Addressed to another host.",
    422: "A wrong option, or not one file that could be read.",
    429: "Too much at once; ask again after Retry-After.",
    503: "The service comes to its end.",
    507: "No room on the disk.",
}
_EXAMPLE = {"type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": "64 requests are at work"}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation, for its documentation; those of the door are always among them."""
    reference = {"$ref": "#/components/schemas/Problem"}
    made: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 401, 403, 421}):
        content = {"application/problem+json": {"schema": reference, "example": _EXAMPLE | {"status": status}}}
        made[status] = {"description": _REFUSALS[status], "content": content}
        if status == 429:
            wait = {"description": "seconds", "schema": {"type": "integer", "minimum": 1}, "required": True}
            made[status]["headers"] = {"Retry-After": wait}
    return made


def answer(model: type[BaseModel], example: object, description: str) -> dict[str, Any]:
    """An answer in JSON, for documentation."""
    return {"model": model, "description": description, "content": {"application/json": {"example": example}}}


def bytes_of(media: str, description: str, **headers: str) -> dict[str, Any]:
    """An answer that is no JSON, for documentation. headers: name and type of each, _ for -."""
    told = {name.replace("_", "-"): {"schema": {"type": kind}} for name, kind in headers.items()}
    content = {media: {"schema": {"type": "string", "format": "binary"}}}
    return {"description": description, "content": content, "headers": told}


Problem.model_rebuild()
