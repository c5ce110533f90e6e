"""The web page: its files from the package, under a policy that lets it ask nobody but this service.

The page holds no state of anybody and needs no key; what it asks of the API does. All its parts are files of
their own, so that the policy can forbid scripts and styles inside of the page, and handlers in attributes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import fastapi
from fastapi.responses import Response

from deepscan_jax import report
from deepscan_jax.version import __version__

if TYPE_CHECKING:
  from deepscan_jax.serve.context import Context

POLICY = "; ".join(
  (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    # data: the faces and maps of an answer; blob: the file, which the page shows without asking for it.
    "img-src 'self' blob: data:",
    "media-src blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # The one place that may make elements of a text is app.js's policy of this name.
    "require-trusted-types-for 'script'",
    "trusted-types deepscan-report",
  )
)
_OFF = "accelerometer camera display-capture geolocation gyroscope magnetometer microphone midi payment usb"
HEADERS = {
  "Content-Security-Policy": POLICY,
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
  "Referrer-Policy": "no-referrer",
  "Permissions-Policy": ", ".join(f"{name}=()" for name in _OFF.split()),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
}
# Name in the address -> file, type. The report's own style and script are the page's too.
_LIBRARY, _WEB = Path(report.__file__).parent, Path(__file__).parent / "web"
ASSETS = {
  "report.css": (_LIBRARY / "report.css", "text/css; charset=utf-8"),
  "report.js": (_LIBRARY / "report.js", "text/javascript; charset=utf-8"),
  "style.css": (_WEB / "style.css", "text/css; charset=utf-8"),
  "app.js": (_WEB / "app.js", "text/javascript; charset=utf-8"),
  "icon.svg": (_WEB / "icon.svg", "image/svg+xml"),
}
_FOREVER, _ASK_FIRST = "public, max-age=31536000, immutable", "no-cache"
_GONE = "It is deleted as soon as it is judged; only the answer may be kept."
_KEPT = "This service is set to keep the files that it judged."


def router(context: Context) -> fastapi.APIRouter:
  """The page at / and its files at /web/."""
  routes = fastapi.APIRouter(include_in_schema=False)
  page = page_html(keeps_files=bool(context.settings.keep)).encode()
  page_tag = f'"{_digest(page)}"'

  @routes.api_route("/", methods=["GET", "HEAD"])
  def index(request: fastapi.Request) -> Response:
    return _answer(request, page, page_tag, "text/html; charset=utf-8", _ASK_FIRST)

  @routes.api_route("/web/{name}", methods=["GET", "HEAD"])
  def asset(request: fastapi.Request, name: str, v: str = "") -> Response:
    if name not in ASSETS:
      raise fastapi.HTTPException(404, f"The page has no file {name!r}.")
    data, digest = _read(name)
    # While a new version is rolled out, a page may ask the other one for its files: those are not kept.
    caching = _FOREVER if v == digest else _ASK_FIRST
    return _answer(request, data, f'"{digest}"', ASSETS[name][1], caching)

  return routes


def page_html(*, keeps_files: bool) -> str:
  """The page, with the addresses of its files and the limits that the report tells of too.

  Args:
    keeps_files: whether the service keeps files after the answer; the page has to say so.
  """
  values = {f"url:{name}": f"web/{name}?v={_read(name)[1]}" for name in ASSETS}
  values["limits"] = report.tag("ul", *(report.tag("li", text) for text in report.LIMITS))
  values["kept"] = _KEPT if keeps_files else _GONE
  values["version"] = __version__
  template = (_WEB / "index.html").read_text(encoding="utf-8")
  return re.sub(r"\{\{([^{}]+)\}\}", lambda found: values[found[1]], template)


def _answer(request: fastapi.Request, data: bytes, tag: str, kind: str, caching: str) -> Response:
  headers = {**HEADERS, "ETag": tag, "Cache-Control": caching}
  known = [known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")]
  if tag in known or known == ["*"]:
    return Response(status_code=304, headers=headers)
  return Response(data, media_type=kind, headers=headers)


@functools.cache
def _read(name: str) -> tuple[bytes, str]:
  """A file of the page and its digest."""
  data = ASSETS[name][0].read_bytes()
  return data, _digest(data)


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]
