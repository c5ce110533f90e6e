"""Puts the service together: an ASGI app of settings, models and a database."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI

from deepscan_jax.serve import problems, routes_detect, routes_jobs, routes_live, routes_service, routes_web
from deepscan_jax.serve.context import Context, Phase
from deepscan_jax.serve.front import Front
from deepscan_jax.serve.keys import BATCH, DETECT, METRICS, KeyStore
from deepscan_jax.serve.limits import Limits
from deepscan_jax.serve.metrics import Metrics
from deepscan_jax.serve.settings import Settings
from deepscan_jax.serve.store import Store, open_database
from deepscan_jax.serve.uploads import UploadFolder
from deepscan_jax.version import __version__

if TYPE_CHECKING:
  from deepscan_jax.serve.engine import Engine

__all__ = ["ROUTERS", "Context", "Phase", "key_store", "make_app"]

# Each makes its routes of the Context; the last one first, so that routes_detect knows what others offer.
ROUTERS: tuple[Callable[[Context], APIRouter], ...] = (
  routes_detect.router,
  routes_service.router,
  routes_jobs.router,
  routes_live.router,
  routes_web.router,
)
CLEAN_EVERY_S = 300.0
# When the app ends, requests have had their time; files of jobs, which go back to the table, get no more.
_LAST_FILES_S = 2.0
_ABOUT = """\
Tells whether a video, a picture or a sound file is a deepfake, and shows why.

A score is the opinion of a statistical model, not a finding of fact. Every error is
`application/problem+json` (RFC 9457) with a `code` for programs and a `remedy` for people. Files are deleted
when they are answered.

Streams are sent over a WebSocket at `/api/v1/live`: first a text message `{"key": "..."}` (with `window_s`,
`frames`, `model`, `false_alarm_rate`, `miss_rate` as you like), then, in binary messages, the bytes of WebM
(as MediaRecorder gives it), fragmented MP4 or MPEG-TS, then `{"type": "end"}`. Each window is answered with a
message of the type `window`.
"""

logger = logging.getLogger(__name__)


def key_store(settings: Settings, database: sa.Engine) -> KeyStore:
  """The keys of a service: those of the database and those of the environment."""
  static = {"env": (settings.api_key, (DETECT, BATCH)), "metrics": (settings.metrics_key, (METRICS,))}
  return KeyStore(
    database,
    settings.secret_key,
    static={key_id: (key, scopes) for key_id, (key, scopes) in static.items() if key},
  )


def make_context(settings: Settings, engine: "Engine") -> Context:
  """Opens what a service needs.

  Raises:
    ValueError: the database, Redis or a folder cannot be used.
  """
  database = open_database(settings.database_url)
  metrics = Metrics()
  metrics.watch(engine.stats)
  uploads = UploadFolder(
    settings.temp_dir, keep=settings.keep, idle_s=settings.upload_idle_s, whole_s=settings.upload_s
  )
  # What a full one of these is measured by; /readyz goes by the same.
  metrics.watch(
    lambda: {
      "ready": int(engine.ready),
      "models_failed": int(engine.problem is not None),
      "files_limit": settings.queue,
      "temp_free_bytes": uploads.free_bytes(),
      "temp_needed_bytes": settings.largest_bytes,
    }
  )
  return Context(
    settings=settings,
    engine=engine,
    database=database,
    store=Store(database, kept_s=settings.results_kept_h * 3600, most_bytes=settings.results_bytes),
    keys=key_store(settings, database),
    limits=Limits(settings.redis_url, on_fallback=metrics.redis_fallbacks.inc),
    uploads=uploads,
    metrics=metrics,
  )


def make_app(
  settings: Settings, engine: "Engine", *, routers: Sequence[Callable[[Context], APIRouter]] = ROUTERS
) -> FastAPI:
  """The ASGI app of a service; `app.state.context` is its Context.

  The engine is started with the app and closed with it.

  Args:
    settings: of the service.
    engine: the models, not started yet.
    routers: each makes routes of the Context; one that needs to start or stop something has a lifespan.

  Raises:
    ValueError: the database, Redis or a folder cannot be used.
  """
  context = make_context(settings, engine)
  app = FastAPI(
    title="deepscan",
    version=__version__,
    description=_ABOUT,
    docs_url=None,
    redoc_url=None,
    openapi_url="/api/v1/openapi.json",
    lifespan=functools.partial(_lifespan, context),
    separate_input_output_schemas=False,
  )
  app.state.context = context
  problems.install(app)
  made = [make_router(context) for make_router in reversed(routers)]
  for router in reversed(made):
    app.include_router(router)
  app.add_middleware(Front, context=context)
  app.openapi = functools.partial(_openapi, app, app.openapi)
  return app


@contextlib.asynccontextmanager
async def _lifespan(context: Context, app: FastAPI) -> AsyncIterator[None]:
  del app
  await anyio.to_thread.run_sync(context.engine.start)
  cleaning = asyncio.create_task(_clean_for_ever(context))
  try:
    yield
  finally:
    cleaning.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await cleaning
    drain_s = min(context.settings.drain_s, _LAST_FILES_S)
    await anyio.to_thread.run_sync(lambda: context.engine.close(drain_s=drain_s))
    context.uploads.close()
    context.database.dispose()


async def _clean_for_ever(context: Context) -> None:
  """The janitor: removes files that nobody answers any more, and what is too old in the database."""
  while True:
    for what, clean in (("files", context.uploads.clean), ("rows", context.store.clean)):
      try:
        removed = await anyio.to_thread.run_sync(clean)
      except Exception:
        logger.exception("Cleaning %s failed.", what)
      else:
        if removed:
          logger.info("Cleaned.", extra={what: removed})
    await asyncio.sleep(CLEAN_EVERY_S)


def _openapi(app: FastAPI, make: Callable[[], dict]) -> dict:
  """The description, with the errors of all routes as they are answered."""
  if app.openapi_schema is None:
    schema = make()
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in (problems.ProblemDetails, problems.Fault):
      components[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
      components[model.__name__].pop("$defs", None)
    # FastAPI describes its own answer to what is invalid, which is not given here.
    for name in ("HTTPValidationError", "ValidationError"):
      components.pop(name, None)
    app.openapi_schema = schema
  return app.openapi_schema
