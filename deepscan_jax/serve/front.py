"""What stands before every route: request ids, keys, sizes of bodies, safe headers, a line in the log."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepscan_jax.serve import auth
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.problems import Problem, internal_error, request_id
from deepscan_jax.serve.uploads import FORM_BYTES

# Of every request that is not an upload.
BODY_BYTES = 64 << 10
# A client may name its request by a UUID; anything looser would let a key into the log by mistake.
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
SAFE_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Frame-Options": "DENY",
  "Cache-Control": "no-store",
  "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_HSTS = "max-age=31536000"

logger = logging.getLogger(__name__)


class Front:
  """ASGI middleware around the whole service.

  A request under /api/ or to /metrics has to have a key even where its route forgot to ask for one; what it
  may do is up to `auth.require`. The key stands in request.state.key. Headers in request.state.headers are
  sent with the answer, whatever it is.
  """

  def __init__(self, app: ASGIApp, context: Context):
    self._app, self._context = app, context

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers one request."""
    if scope["type"] not in ("http", "websocket"):
      await self._app(scope, receive, send)
      return
    headers = Headers(scope=scope)
    asked = headers.get("x-request-id", "")
    token = request_id.set(asked if _ID.fullmatch(asked) else uuid.uuid4().hex)
    exchange = _Exchange(self._context, scope, receive, send)
    try:
      await self._answer(exchange, headers)
    finally:
      exchange.log()
      request_id.reset(token)

  async def _answer(self, exchange: "_Exchange", headers: Headers) -> None:
    scope = exchange.scope
    try:
      if scope["type"] == "websocket":
        await self._check_socket(exchange, headers)
      elif not auth.is_public(scope["path"]):
        key = auth.presented_key(headers.get("authorization"))
        exchange.state["key"] = await auth.authenticate(self._context, key, address=exchange.address)
        exchange.check_length(headers)
      await self._app(scope, exchange.receive, exchange.send)
    except ClientDisconnect:
      exchange.status = 499
    except Problem as problem:
      await exchange.answer(problem)
    except Exception:
      logger.exception("A request failed.")
      await exchange.answer(internal_error())

  async def _check_socket(self, exchange: "_Exchange", headers: Headers) -> None:
    """Lets a WebSocket through with a right key; without one only where its first message may hold it."""
    if exchange.scope["path"] not in auth.KEY_IN_FIRST_MESSAGE or headers.get("authorization"):
      key = auth.presented_key(headers.get("authorization"))
      exchange.state["key"] = await auth.authenticate(self._context, key, address=exchange.address)


class _Exchange:
  """A request and its answer."""

  def __init__(self, context: Context, scope: Scope, receive: Receive, send: Send):
    self.scope, self._receive, self._send = scope, receive, send
    self._context, self._started_s = context, time.perf_counter()
    self.state = scope.setdefault("state", {})
    self.state["headers"] = {}
    self.status: int | None = None
    self._received = 0
    kind = scope["path"].removeprefix("/api/v1/detect/")
    is_upload = kind != scope["path"] and kind in ("video", "image", "audio")
    self._most = context.settings.most_bytes(kind) + FORM_BYTES if is_upload else BODY_BYTES
    context.metrics.in_progress.inc()

  @property
  def address(self) -> str:
    """Of the client."""
    client = self.scope.get("client")
    return client[0] if client else "unknown"

  @property
  def _may_refuse(self) -> bool:
    """Whether the server can answer a WebSocket that was not accepted with a status and a body."""
    return "websocket.http.response" in (self.scope.get("extensions") or {})

  def check_length(self, headers: Headers) -> None:
    """Refuses a body that says of itself that it is too large; nothing of it is read."""
    length = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._most:
      raise self._too_large()

  def _too_large(self) -> Problem:
    return Problem(
      "too_large",
      f"The request is larger than the {self._most} bytes that are read here.",
      headers={"Connection": "close"},
    )

  async def receive(self) -> Message:
    """As the server's, but for more than may be sent here."""
    message = await self._receive()
    if message["type"] == "http.request":
      self._received += len(message.get("body", b""))
      if self._received > self._most:
        raise self._too_large()
    return message

  async def send(self, message: Message) -> None:
    """As the server's, with the headers that every answer has."""
    if message["type"] in ("http.response.start", "websocket.http.response.start"):
      self.status = message["status"]
      headers = MutableHeaders(scope=message)
      for name, value in {**SAFE_HEADERS, **self.state["headers"]}.items():
        headers.setdefault(name, value)
      if self._context.settings.tls:
        headers.setdefault("Strict-Transport-Security", _HSTS)
      headers["X-Request-ID"] = request_id.get()
    elif message["type"] == "websocket.accept":
      message = {**message, "headers": [*message.get("headers", ()), _id_header()]}
      self.status = 101
    elif message["type"] == "websocket.close":
      self.status = message.get("code", 1000)
    await self._send(message)

  async def answer(self, problem: Problem) -> None:
    """Answers with a problem, unless an answer was begun."""
    self.state["problem"] = problem.code
    if self.status is None and self.scope["type"] == "websocket" and not self._may_refuse:
      await self.send({"type": "websocket.close", "code": 1008, "reason": problem.title})
    elif self.status is None:
      await problem.response()(self.scope, self._receive, self.send)
    else:
      # Half an answer cannot be taken back; that it breaks off is all that can be said.
      logger.error("An answer broke off.")
      raise ConnectionResetError("The answer broke off.") from problem

  def log(self) -> None:
    """Writes the line of this request and counts it."""
    metrics, seconds = self._context.metrics, time.perf_counter() - self._started_s
    route = getattr(self.scope.get("route"), "path", None)
    status = self.status or 499
    metrics.in_progress.dec()
    method = self.scope.get("method", "WEBSOCKET")
    method = method if method in _METHODS else "other"
    metrics.requests.labels(route or "none", method, status).inc()
    metrics.request_seconds.labels(route or "none").observe(seconds)
    problem = self.state.get("problem")
    if problem:
      metrics.problems.labels(problem).inc()
    quiet = route in ("/healthz", "/readyz", "/metrics") and status < 400
    key = self.state.get("key")
    logger.log(
      logging.DEBUG if quiet else logging.INFO,
      "request",
      extra={
        # Of an unknown address only that it is one: it may hold anything.
        "route": route,
        "method": method,
        "status": status,
        "seconds": round(seconds, 4),
        "received_bytes": self._received,
        "address": self.address,
        "key_id": key.id if key else None,
        "problem": problem,
        **self.state.get("log", {}),
      },
    )


# As the log and the metrics name them; a WebSocket has none of its own.
_METHODS = frozenset(
  {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WEBSOCKET"}
)


def _id_header() -> tuple[bytes, bytes]:
  return b"x-request-id", request_id.get().encode()
