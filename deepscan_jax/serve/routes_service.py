"""What the service says of itself: models, health, metrics, and its description, all from here."""

import html
from importlib import resources
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from deepscan_jax.serve import schemas
from deepscan_jax.serve.auth import require
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.keys import DETECT, METRICS, KeyInfo
from deepscan_jax.serve.metrics import CONTENT_TYPE
from deepscan_jax.serve.problems import KEY_PROBLEMS, Problem, describe
from deepscan_jax.version import __version__

DOCS = "/api/v1/docs"
_ASSETS = {
  "swagger-ui-bundle.js": "text/javascript",
  "swagger-ui.css": "text/css",
  "favicon.png": "image/png",
}
_START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""
# Swagger UI sets styles on its elements, and draws its icons from data: addresses.
DOCS_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
  "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def router(context: Context) -> APIRouter:
  """The routes."""
  routes = APIRouter()
  _add_health(routes, context)
  _add_models(routes, context)
  _add_docs(routes, context)
  return routes


def _add_health(routes: APIRouter, context: Context) -> None:
  @routes.get(
    "/healthz", response_model=schemas.Health, tags=["service"], summary="Whether the process lives"
  )
  async def healthz():
    return {"status": "ok", "version": __version__}

  @routes.get(
    "/readyz",
    response_model=schemas.Readiness,
    responses={503: {"model": schemas.Readiness, "description": "Send nothing here now."}},
    tags=["service"],
    summary="Whether files are judged",
  )
  async def readyz():
    engine, most = context.engine, context.settings.largest_bytes
    parts = {
      "models": bool(engine.ready),
      "database": await anyio.to_thread.run_sync(context.store.is_well),
      "disk": await anyio.to_thread.run_sync(context.uploads.free_bytes) > most,
    }
    ready = all(parts.values()) and not context.phase.draining
    answer = {
      "status": "ready" if ready else "not_ready",
      **parts,
      "draining": context.phase.draining,
      # What went wrong inside stands in the log.
      "problem": "The models could not be loaded." if engine.problem else None,
    }
    return JSONResponse(answer, 200 if ready else 503)

  @routes.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {}}}, **describe(*KEY_PROBLEMS)},
    tags=["service"],
    summary="Numbers for Prometheus",
  )
  async def metrics(key: Annotated[KeyInfo, Depends(require(METRICS, counted=False))]):
    del key
    text = await anyio.to_thread.run_sync(context.metrics.text)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _add_models(routes: APIRouter, context: Context) -> None:
  @routes.get(
    "/api/v1/models",
    response_model=schemas.Models,
    responses=describe(*KEY_PROBLEMS, "not_ready"),
    tags=["models"],
    summary="The loaded models, with their cards",
  )
  async def models(key: Annotated[KeyInfo, Depends(require(DETECT, counted=False))]):
    del key
    if not context.engine.ready:
      raise Problem("not_ready", "The models are being loaded.", retry_after_s=5)
    return {
      "models": [
        {
          "name": model.name,
          "version": model.version,
          "sha256": model.sha256,
          "default": model.default,
          "inputs": list(model.inputs),
          "thresholds": vars(model.thresholds),
          "card": model.card,
        }
        for model in context.engine.models
      ]
    }


def _add_docs(routes: APIRouter, context: Context) -> None:
  del context
  folder = resources.files("fastapi_offline") / "static"
  assets = {name: (folder / name).read_bytes() for name in _ASSETS}

  @routes.get(DOCS, include_in_schema=False)
  async def docs(request: Request):
    title = html.escape(request.app.title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="docs/swagger-ui.css"><link rel="icon" href="docs/favicon.png"></head>
<body><div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
    return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})

  @routes.get(f"{DOCS}/{{name}}", include_in_schema=False)
  async def asset(name: str):
    if name == "start.js":
      return Response(_START, media_type="text/javascript")
    if name not in assets:
      raise Problem("not_found", "The description has no such file.")
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response(assets[name], media_type=_ASSETS[name], headers=headers)
