"""The HTTP API: its routes are made from the table of verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from triptych import __version__
from triptych.core.errors import TriptychError
from triptych.index.search import ImageIndex
from triptych.server.forms import JSON, MULTIPART, read_request
from triptych.server.guard import CLIENT_HAS_LEFT, Guard, Places
from triptych.server.metrics import Metrics
from triptych.server.problems import MEDIA_TYPE, Problem, ProblemDocument, problem_of
from triptych.server.schemas import Strict, answer_model, form_schema, request_model
from triptych.server.searching import SEARCH
from triptych.server.service import Service
from triptych.server.settings import ServerSettings
from triptych.server.worker import Busy
from triptych.serving.engine import Engine
from triptych.serving.verb import Verb
from triptych.serving.verbs import VERBS

SMALL_BODY = 2**16
"""Bytes of a body that is read between two other requests; longer ones by another thread."""

REFUSALS = {
    400: "The body cannot be read.",
    401: "A token is needed.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is neither JSON nor a form.",
    421: "The server is asked under a name that it does not know.",
    422: "The request asks for what is impossible, or an image or a text cannot be used.",
    500: "The server failed.",
    503: "There is no room for the request now: ask again later.",
}
REF = "#/components/schemas/{model}"
ABOUT = """Ask models for captions, answers, boxes, scores and embeddings, and search an index.

One request has one or many items, as JSON with images in base64, or as a multipart form with
files. Of a form, the k-th item has the k-th value of each field; a field with one value has it for
all items."""

Handler = Callable[[Request], Awaitable[Response]]


class ModelDocument(BaseModel):
    """A model and what it can be asked."""

    name: str
    family: str
    trained_for: list[str]
    image_size: int
    verbs: list[str]
    refusals: dict[str, str]


class IndexDocument(BaseModel):
    """An index that can be searched."""

    name: str
    images: int
    model: str


class ModelsDocument(BaseModel):
    """What is loaded."""

    models: list[ModelDocument]
    index: IndexDocument | None


class StateDocument(BaseModel):
    """Whether the server works."""

    status: str


def build_app(
    engines: Mapping[str, Engine],
    index: ImageIndex | None = None,
    settings: ServerSettings | None = None,
    tokens: Sequence[str] = (),
) -> FastAPI:
    """Return the application; `app.state.service` is what its page asks.

    Args:
        engines: Loaded models by name; the application alone may ask them from now on.
        index: An open index, or None.
        settings: Limits; None is the defaults.
        tokens: Whoever asks must present one of these; none is needed if there are none.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()
    service = Service(engines, index, settings, metrics.count_batch)
    places = Places(settings.queue, settings.max_bodies)
    metrics.watch(
        "triptych_requests_in_server", "Requests without an answer", lambda: places.requests
    )
    metrics.watch("triptych_body_bytes", "Bytes of their bodies", lambda: places.bytes)
    metrics.watch("triptych_queue_length", "Jobs that wait or run", lambda: len(service.worker))
    # the documentation pages of FastAPI load scripts from another host
    app = FastAPI(
        title="Triptych", version=__version__, description=ABOUT, docs_url=None, redoc_url=None
    )
    app.state.service, app.state.places = service, places
    schemas = [_add_verb(app, service, verb) for verb in [*VERBS.values(), SEARCH]]
    _add_states(app, service, metrics)
    _add_errors(app)
    app.openapi = lambda: _openapi(app, schemas)  # type: ignore[method-assign]
    routes = [route.path for route in app.routes]  # type: ignore[attr-defined]
    app.add_middleware(
        Guard, settings=settings, tokens=tokens, places=places, metrics=metrics, routes=routes
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return app


def _add_verb(app: FastAPI, service: Service, verb: Verb) -> type[Strict]:
    """Add the route of a verb; return the schema of its requests."""
    settings = service.settings
    schema = request_model(verb, settings.max_items)
    options = REF.format(model=schema.model_fields["options"].annotation.__name__)  # type: ignore[union-attr]
    content = {
        JSON: {"schema": {"$ref": REF.format(model=schema.__name__)}},
        MULTIPART: {
            "schema": form_schema(verb, settings.max_items, options),
            "encoding": {"options": {"contentType": JSON}},
        },
    }

    async def handle(request: Request) -> Response:
        body = await request.body()
        told = request.headers.get("content-type", "")
        reading = (verb, schema, told, body, settings.max_pixels)
        if len(body) <= SMALL_BODY:
            asked = read_request(*reading)
        else:
            asked = await asyncio.to_thread(read_request, *reading)
        name, future = service.submit(
            verb,
            asked.prepare,
            size=len(asked.items),
            pixels=asked.pixels,
            options=asked.options,
            model=asked.model,
        )
        del body, reading, asked
        answers = await _unless_gone(request, asyncio.wrap_future(future))
        if answers is None:
            return Response(status_code=CLIENT_HAS_LEFT)
        return JSONResponse({"model": name, "answers": answers})

    app.add_api_route(
        f"/v1/{verb.name}",
        handle,
        methods=["POST"],
        name=verb.name,
        summary=verb.about[0].upper() + verb.about[1:],
        response_model=answer_model(verb),
        responses=_refusals(*REFUSALS),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    return schema


async def _unless_gone(request: Request, answers: asyncio.Future[list[Any]]) -> list[Any] | None:
    """Wait for answers; None, and their place is free, where the client leaves before."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(wait())
    try:
        either: set[asyncio.Future[Any]] = {answers, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return answers.result() if answers.done() else None
    except Exception as error:  # the worker has logged what is no fault of the client
        raise problem_of(error) from error
    finally:
        answers.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


def _add_states(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Add what tells about the server itself."""

    @app.get("/v1/models", response_model=ModelsDocument, responses=_refusals(401, 421))
    async def models() -> ModelsDocument:
        """List the models, what each can be asked, and why not the rest."""
        index = service.index
        return ModelsDocument(
            models=[_describe(service, name) for name in service.engines],
            index=None
            if index is None
            else IndexDocument(
                name=index.folder.name, images=index.state.num_images, model=index.state.model
            ),
        )

    @app.get("/healthz", response_model=StateDocument, responses=_refusals(421))
    async def healthz() -> StateDocument:
        """Say that the process answers."""
        return StateDocument(status="ok")

    @app.get("/readyz", response_model=StateDocument, responses=_refusals(421, 503))
    async def readyz() -> StateDocument:
        """Say whether requests are computed: not before models are loaded, nor while stopping."""
        if not service.worker.is_alive:
            raise Problem(503, "the server is stopping, or its computing thread has died")
        return StateDocument(status="ready")

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

    @app.get("/metrics", response_class=Response, responses=text | _refusals(401, 421))
    async def prometheus() -> Response:
        """Return metrics in the format of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _describe(service: Service, name: str) -> ModelDocument:
    engine = service.engines[name]
    refusals = service.why_not(name)
    return ModelDocument(
        name=name,
        family=type(engine.model).__name__,
        trained_for=list(engine.settings.trained_for),
        image_size=engine.model.image_size,
        verbs=[verb for verb in VERBS if verb not in refusals],
        refusals=refusals,
    )


def _add_errors(app: FastAPI) -> None:
    """Answer every error with a problem document."""

    async def told(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Problem(error.status_code, str(error.detail), error.headers)
        elif isinstance(error, RequestValidationError):
            error = Problem(422, "; ".join(part["msg"] for part in error.errors()))
        return problem_of(error).response()

    for kind in (Problem, HTTPException, RequestValidationError, TriptychError, Busy):
        app.add_exception_handler(kind, told)


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how problems look to OpenAPI."""
    schema = {"schema": {"$ref": REF.format(model=ProblemDocument.__name__)}}
    return {
        status: {"description": REFUSALS[status], "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }


def _openapi(app: FastAPI, schemas: list[type[Strict]]) -> dict[str, Any]:
    """Return the description, with the schemas of the requests, which are read by hand."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        kinds = [(model, "validation") for model in [*schemas, ProblemDocument]]
        made = models_json_schema(kinds, ref_template=REF)[1]["$defs"]  # type: ignore[arg-type]
        found["components"]["schemas"] |= made
        app.openapi_schema = found
    return app.openapi_schema
