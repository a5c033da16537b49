"""The paths of the server, its errors in OpenAI's shape, and the page."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from modeling_siglip_ext import __version__

from .batcher import QueueFull
from .guard import Guard, error_body
from .schemas import ClassifyRequest, EmbeddingsRequest, SimilarityRequest
from .service import BadRequest, Service
from .settings import LOOPBACK
from .workers import WorkerLost


PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with service.running():
            yield

    # the pages of FastAPI's documentation load scripts from elsewhere
    app = FastAPI(title="siglip-ext-serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """Vectors of unit length of texts and images, in OpenAI's shape."""
        return await as_json(await service.embeddings(body))

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> Response:
        """Labels of images with their scores, best first."""
        return await as_json(await service.classify(body))

    @app.post("/v1/similarity")
    async def similarity(body: SimilarityRequest) -> Response:
        """Cosines of queries and documents, and the probabilities that image and text belong together."""
        return await as_json(await service.similarity(body))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return service.models()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = service.ready and any(worker.ready for worker in service.workers)
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    page = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    add_errors(app)
    settings = service.settings
    paths = [str(getattr(route, "path", "")) for route in app.routes]
    if settings.host in LOOPBACK:  # a page elsewhere whose name is made to lead here would be its own origin otherwise
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    own = {"limits": settings.limits, "held": service.held, "metrics": service.metrics}
    app.add_middleware(Guard, paths=paths, keys=settings.keys, **own)
    return app


async def as_json(content: dict[str, Any]) -> Response:
    """Thousands of numbers become text in a thread, so that the others are not kept waiting."""
    return await run_in_threadpool(JSONResponse, content)


def failed(status: int, message: str, headers: dict[str, str] | None = None, **details: Any) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(error_body(message, kind, **details), status, headers)


def add_errors(app: FastAPI) -> None:
    @app.exception_handler(BadRequest)
    async def bad_request(_: Request, error: BadRequest) -> Response:
        return failed(error.status, str(error), code=error.code, param=error.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """The first thing that is wrong, without what was sent."""
        if "json" not in request.headers.get("content-type", ""):
            message = "the body is read as JSON where the request says so: content-type: application/json"
            return failed(400, message, code="invalid_request")
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not JSON (at character {first['loc'][-1]})"
            return failed(400, message, code="invalid_request")
        place = [str(part) for part in first["loc"] if part != "body" and not str(part).startswith("<")]
        message = f"{'.'.join(place) or 'the body'}: {first['msg']}"
        return failed(400, message[:500], code="invalid_request", param=place[0] if place else None)

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> Response:
        return failed(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> Response:
        return failed(429, str(error), {"retry-after": str(error.retry_after)}, code="overloaded")

    @app.exception_handler(WorkerLost)
    async def lost(_: Request, error: WorkerLost) -> Response:
        return failed(503, f"{error}: send the request again", {"retry-after": "1"}, code="worker_lost")

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return failed(500, "the server failed at this request; its log says why")
