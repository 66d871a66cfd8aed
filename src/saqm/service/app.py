"""The service over HTTP: routes, and nothing that three lines of Python could not do with the library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from saqm import __version__
from saqm.service import schemas
from saqm.service.desk import Desk
from saqm.service.problems import MEDIA_TYPE, Problem, fault_told
from saqm.service.schemas import Options, ScoreOptions, answer, bytes_of, refusals
from saqm.service.uploads import ClientGone

STATIC = Path(__file__).with_name("static")
DICOM = "application/dicom"
BYTES = "application/octet-stream"
PAGE = 1000  # records of a job that are given at a time

ASKS = refusals(422)
WORKS = refusals(400, 408, 413, 415, 422, 429, 503, 507)
OF_JOB = refusals(404, 422)
OF_IMAGE = refusals(404, 415, 422, 429, 503)


def application(desk: Desk) -> FastAPI:
    """The routes to a desk. Who may enter is not asked here: see `saqm.service.door`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with desk:
            yield

    app = FastAPI(
        title="saqm",
        version=__version__,
        summary="How good a medical image looks, with no reference image: 0 to 100, higher is better.",
        description="Not a medical device. Errors are problems of RFC 9457. Where keys are set up, every request "
        "brings one: `Authorization: Bearer KEY`.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its page would be fetched from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    _tell_problems(app)
    _add_state(app, desk)
    _add_scoring(app, desk)
    _add_jobs(app, desk)
    _add_images(app, desk)
    _add_page(app)
    _finish_openapi(app, [model["name"] for model in desk.models], keys=desk.keys_needed)
    return app


def _add_state(app: FastAPI, desk: Desk) -> None:
    @app.get("/healthz", responses=refusals() | {200: answer(schemas.Health, {"status": "ok"}, "It is.")})
    async def healthz() -> Any:
        """Is the process alive."""
        return {"status": "ok"}

    @app.get("/readyz", responses=refusals(503) | {200: answer(schemas.Health, {"status": "ok"}, "It is.")})
    async def readyz() -> Any:
        """Are the workers up, and does the service go on."""
        desk.refuse_unready()
        return {"status": "ok"}

    @app.get(
        "/metrics",
        responses=refusals()
        | {200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(desk.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/limits", responses=refusals() | {200: answer(schemas.LimitsTold, desk.limits(), "The limits.")})
    async def limits() -> Any:
        """What may be sent, and whether a key is needed."""
        return JSONResponse(desk.limits())

    @app.get(
        "/v1/models",
        responses=refusals() | {200: answer(schemas.Models, {"models": [schemas.RECORD["model"]]}, "All.")},
    )
    async def models() -> Any:
        """The models and metrics that are served; the first is the default."""
        return JSONResponse({"models": list(desk.models)})


def _add_scoring(app: FastAPI, desk: Desk) -> None:
    @app.post(
        "/v1/score",
        openapi_extra=schemas.BODY,
        responses=WORKS
        | refusals(406)
        | {
            200: {
                **answer(schemas.Records, {"records": [schemas.RECORD]}, "The rows; or the report, by Accept."),
                "content": {
                    "application/json": {"example": {"records": [schemas.RECORD]}},
                    DICOM: {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def score(request: Request, options: Annotated[ScoreOptions, Query()]) -> Response:
        """Score files, and wait for it. By `Accept: application/dicom` a DICOM structured report comes back instead."""
        as_report = _wants_report(request)
        async with desk.received(request.receive, request.headers, options) as parcel, _unless_gone(request):
            if as_report:
                return Response(await desk.report_now(parcel, options), media_type=DICOM)
            return JSONResponse({"records": await desk.score_now(parcel, options)})


def _add_jobs(app: FastAPI, desk: Desk) -> None:
    job_answer = answer(schemas.Job, schemas.JOB, "The job.")

    @app.post(
        "/v1/jobs",
        status_code=202,
        openapi_extra=schemas.BODY,
        responses=WORKS | {202: {**job_answer, "headers": {"Location": {"schema": {"type": "string"}}}}},
    )
    async def begin(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Leave files to be scored, and ask for the rows later."""
        job = await desk.begin_job(request.receive, request.headers, options)
        return JSONResponse(job.status(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @app.get("/v1/jobs/{id}", responses=OF_JOB | {200: job_answer})
    async def status(id: str) -> Any:
        """How far a job is."""
        return JSONResponse(desk.jobs.get(id).status())

    @app.delete("/v1/jobs/{id}", status_code=204, responses=OF_JOB | {204: {"description": "It is forgotten."}})
    async def forget(id: str) -> Response:
        """Stop a job, and forget it with its files."""
        desk.jobs.forget(desk.jobs.get(id))
        return Response(status_code=204)

    @app.get(
        "/v1/jobs/{id}/records",
        responses=OF_JOB
        | {
            200: {
                **answer(schemas.JobRecords, {}, "The rows there are."),
                "content": {
                    "application/json": {
                        "example": {"records": [schemas.RECORD], "after": 0, "next": 1, "state": "running"}
                    },
                    "application/jsonl": {"schema": {"type": "string"}},
                    "text/tab-separated-values": {"schema": {"type": "string"}},
                },
            }
        },
    )
    async def records(
        id: str,
        after: Annotated[int, Query(ge=0, le=2**31, description="From this row on.")] = 0,
        format: Annotated[
            Literal["json", "jsonl", "tsv"], Query(description="The others are files of all rows.")
        ] = "json",
    ) -> Response:
        """The rows of a job, as they come."""
        job = desk.jobs.get(id)
        if format == "json":
            found = list(job.records(after, after + PAGE))
            said = {"records": found, "after": after, "next": min(after, job.images) + len(found), "state": job.state}
            return JSONResponse(said)
        media = "application/jsonl" if format == "jsonl" else "text/tab-separated-values"
        file = {"Content-Disposition": f'attachment; filename="saqm.{format}"'}
        return StreamingResponse(_table(job.records(after), format), media_type=media, headers=file)

    @app.get(
        "/v1/jobs/{id}/report",
        responses=OF_JOB
        | refusals(406, 409, 429, 503)
        | {
            200: {
                "description": "A DICOM structured report; of several series a .zip of one each.",
                "content": {
                    DICOM: {"schema": {"type": "string", "format": "binary"}},
                    "application/zip": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
        response_class=Response,
    )
    async def report(id: str) -> Response:
        """The report of a job that is done."""
        name, data = await desk.report_of(desk.jobs.get(id))
        media = DICOM if name.endswith(".dcm") else "application/zip"
        return Response(data, media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _add_images(app: FastAPI, desk: Desk) -> None:
    @app.get(
        "/v1/jobs/{id}/images/{n}/picture",
        responses=OF_IMAGE | {200: bytes_of("image/png", "8 bits, as the scorer sees it")},
        response_class=Response,
    )
    async def picture(id: str, n: int, request: Request) -> Response:
        """The picture of a row."""
        async with _unless_gone(request):
            return Response(await desk.picture(desk.jobs.get(id), n), media_type="image/png")

    @app.get(
        "/v1/jobs/{id}/images/{n}/values",
        responses=OF_IMAGE
        | {
            200: bytes_of(
                BYTES,
                "Little-endian unsigned integers of 16 bits, row by row: value = low + (high - low) * v / 65535.",
                X_Rows="integer",
                X_Columns="integer",
                X_Low="number",
                X_High="number",
                X_Center="number",
                X_Width="number",
                X_Unit="string",
                X_Inverted="boolean",
            )
        },
        response_class=Response,
    )
    async def values(id: str, n: int, request: Request) -> Response:
        """The values behind a grey picture, before any window. A colour picture has none: 415."""
        async with _unless_gone(request):
            found = await desk.values(desk.jobs.get(id), n)
        told = {
            "X-Rows": str(found.rows),
            "X-Columns": str(found.columns),
            "X-Low": repr(found.low),
            "X-High": repr(found.high),
            "X-Center": repr(found.center),
            "X-Width": repr(found.width),
            "X-Unit": _ascii(found.unit or ""),
            "X-Inverted": "true" if found.inverted else "false",
        }
        return Response(found.data, media_type=BYTES, headers=told)

    @app.get(
        "/v1/jobs/{id}/images/{n}/map",
        responses=OF_IMAGE
        | {
            200: bytes_of(
                BYTES,
                "Little-endian floats of 32 bits, row by row, 0 to 100; NaN where nothing was judged.",
                X_Rows="integer",
                X_Columns="integer",
            )
        },
        response_class=Response,
    )
    async def quality_map(id: str, n: int, request: Request) -> Response:
        """Where the score of a row comes from. What was not scored has no map: 404."""
        async with _unless_gone(request):
            data, rows, columns = await desk.map(desk.jobs.get(id), n)
        return Response(data, media_type=BYTES, headers={"X-Rows": str(rows), "X-Columns": str(columns)})


def _add_page(app: FastAPI) -> None:
    if not (STATIC / "index.html").is_file():
        return

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The page."""
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))


def _tell_problems(app: FastAPI) -> None:
    """Every refusal in one form."""

    def told(problem: Problem) -> Response:
        return Response(problem.body, problem.status, {**problem.headers}, MEDIA_TYPE)

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return told(error)

    @app.exception_handler(Exception)
    async def fault(request: Request, _: Exception) -> Response:
        return told(fault_told(request.scope["state"]["request_id"]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return told(Problem(404, "there is nothing here; /openapi.json says what there is"))
        if error.status_code == 405:
            allowed = ", ".join(_methods(app, request))
            return told(Problem(405, f"here goes {allowed}", headers={"Allow": allowed}))
        return told(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        wrong = (f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors())
        return told(Problem(422, "; ".join(wrong)))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What a path may be asked for by: each method is a route of its own, and the first to match knows but its own."""
    found = (route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted(method for route in found for method in getattr(route, "methods", None) or ())


def _finish_openapi(app: FastAPI, models: Sequence[str], *, keys: bool) -> None:
    """What FastAPI does not know: problems, which are no JSON to it; the models there are; how a key is sent."""
    made = app.openapi()
    known = made["components"]["schemas"]
    problem = schemas.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    known.update(problem.pop("$defs", {}))
    known["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    for operations in made["paths"].values():
        for parameter in (each for operation in operations.values() for each in operation.get("parameters", ())):
            if parameter["name"] == "model":
                parameter["schema"] = {"type": "string", "enum": list(models)}
    if keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in made["paths"].items():
            for operation in operations.values():
                if (path.startswith("/v1/") and path != "/v1/limits") or path == "/metrics":
                    operation["security"] = [{"key": []}]


def _wants_report(request: Request) -> bool:
    """Whether the answer is to be DICOM. Raises Problem for what it cannot be. q-values are not weighed."""
    accepted = request.headers.get("accept", "*/*").lower()
    kinds = [part.partition(";")[0].strip() for part in accepted.split(",")]
    for kind in kinds:
        if kind == DICOM:
            return True
        if kind in ("application/json", "application/*", "*/*", ""):
            return False
    raise Problem(406, f"the answer is application/json or {DICOM}")


@asynccontextmanager
async def _unless_gone(request: Request) -> AsyncIterator[None]:
    """An end to what is done for a client that hangs up. The body is to be read before."""
    here, gone = asyncio.current_task(), False
    assert here is not None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        here.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and here.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watching.cancel()


def _table(records: Iterator[Any], format: Literal["jsonl", "tsv"]) -> Iterator[str]:
    """Records as text, a piece at a time."""
    import io

    from saqm.outputs.table import write_records

    if format == "jsonl":
        for record in records:
            yield json.dumps(record, allow_nan=False) + "\n"
        return
    first = True
    for record in records:
        text = io.StringIO()
        write_records([record], text, "tsv")
        head, _, row = text.getvalue().partition("\n")
        yield f"{head}\n{row}" if first else row
        first = False


def _ascii(text: str) -> str:
    """What a header may hold."""
    return "".join(c for c in text if c.isascii() and c.isprintable())
