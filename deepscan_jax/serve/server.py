"""Runs the service's app: one process, ended by SIGTERM without breaking off what it answers."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import anyio
import uvicorn
from fastapi import FastAPI

from deepscan_jax.serve import garbage
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.problems import Problem, request_id
from deepscan_jax.serve.routes_live import MESSAGE_BYTES
from deepscan_jax.serve.settings import Settings

if TYPE_CHECKING:
  from deepscan_jax.serve.engine import Engine

_KEEP_ALIVE_S = 30
# Messages of a stream that wait here; then its client waits.
_MESSAGES = 4
_BACKLOG = 1024
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The thread that answers sockets has the interpreter back after so long (5 ms is usual), whatever others do.
_SWITCH_S = 0.001
# What comes before a body, or between parts of one: its most bytes, and how long a request may take to begin.
# Nobody has been asked for a key by then.
_HEAD_BYTES, _HEAD_S = 64 << 10, 20.0

logger = logging.getLogger(__name__)


def serve(app: FastAPI) -> int:
  """Serves an app of `make_app` until SIGTERM or SIGINT; returns the exit code, 0.

  At the first signal /readyz says no; after settings.drain_delay_s nothing new is accepted, and when what is
  under way is answered, or after settings.drain_s, it ends. A second signal ends it at once. SIGHUP loads the
  models again.

  Raises:
    ValueError: nothing can listen there.
  """
  context: Context = app.state.context
  settings = context.settings
  listener = _listen(settings)
  sys.setswitchinterval(_SWITCH_S)
  garbage.keep_what_is_there()
  server = _Server(_config(app, settings))
  with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
    runner.run(_run(server, context, listener))
  return 0


class _Server(uvicorn.Server):
  """Leaves signals to us: uvicorn ends the process with the signal that it got, and not with 0."""

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """As uvicorn's; says where it listens once it does."""
    await super().startup(sockets)
    if self.started and sockets:
      host, port = sockets[0].getsockname()[:2]
      scheme = "https" if self.config.is_ssl else "http"
      host = f"[{host}]" if ":" in host else host
      logger.info("Listening.", extra={"url": f"{scheme}://{host}:{port}"})

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    yield


async def _run(server: _Server, context: Context, listener: socket.socket) -> None:
  loop = asyncio.get_running_loop()
  tasks = set()

  def start(work) -> None:
    task = loop.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)

  def end(name: str) -> None:
    if context.phase.draining:
      server.should_exit = server.force_exit = True
      return
    context.phase.draining = True
    logger.info("Ending.", extra={"signal": name, "drain_s": context.settings.drain_s})
    loop.call_later(context.settings.drain_delay_s, setattr, server, "should_exit", True)

  loop.add_signal_handler(signal.SIGTERM, end, "SIGTERM")
  loop.add_signal_handler(signal.SIGINT, end, "SIGINT")
  loop.add_signal_handler(signal.SIGHUP, lambda: start(_reload(context.engine)))
  await server.serve(sockets=[listener])


async def _reload(engine: "Engine") -> None:
  try:
    await anyio.to_thread.run_sync(engine.reload)
  except Exception:
    logger.exception("The models cannot be loaded again.")
  else:
    logger.info("The models' folders are read again; what has changed is loaded beside what answers.")


class _TimedHead:
  """Ends connections on which no request begins in time: uvicorn waits for ever, and so all places fill.

  What cannot be read as HTTP is answered with problem details, as all else that is refused.
  """

  def connection_made(self, transport: asyncio.Transport) -> None:
    """As uvicorn's."""
    super().connection_made(transport)
    self._late = self.loop.call_later(_HEAD_S, self._give_up)

  def data_received(self, data: bytes) -> None:
    """As uvicorn's."""
    before = self.cycle
    super().data_received(data)
    if self.cycle is not before or (self.cycle is not None and not self.cycle.response_complete):
      self._stop_waiting()
    elif self._late is None:
      self._late = self.loop.call_later(_HEAD_S, self._give_up)

  def connection_lost(self, error: Exception | None) -> None:
    """As uvicorn's."""
    self._stop_waiting()
    super().connection_lost(error)

  def send_400_response(self, msg: str) -> None:
    """As uvicorn's, which gives plain text."""
    token = request_id.set(uuid.uuid4().hex)
    try:
      answer = Problem("bad_request", msg, headers={"Connection": "close"}).response()
    finally:
      request_id.reset(token)
    head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
    self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + answer.body)
    self.transport.close()

  def _stop_waiting(self) -> None:
    if self._late is not None:
      self._late.cancel()
      self._late = None

  def _give_up(self) -> None:
    # A protocol that has taken over, such as WebSocket, has limits of its own.
    if self.transport.get_protocol() is self:
      self.transport.close()


class _BoundedHead(_TimedHead):
  """Bounds what httptools keeps before a body, and between its parts, as h11 does by itself."""

  _head_bytes = 0

  def data_received(self, data: bytes) -> None:
    """As uvicorn's."""
    self._head_bytes += len(data)
    super().data_received(data)
    if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
      self.send_400_response("The head of the request is too large.")

  def on_headers_complete(self) -> None:
    """As httptools calls it."""
    self._head_bytes = 0
    super().on_headers_complete()

  def on_body(self, body: bytes) -> None:
    """As httptools calls it."""
    self._head_bytes = 0
    super().on_body(body)


def _protocol() -> type[asyncio.Protocol]:
  """What reads HTTP: httptools, which takes a third of the time, or, where it is not installed, h11."""
  try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
  except ImportError:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("BoundedH11", (_TimedHead, H11Protocol), {})
  return type("BoundedHttpTools", (_BoundedHead, HttpToolsProtocol), {})


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
  config = uvicorn.Config(
    app,
    http=_protocol(),
    lifespan="on",
    log_config=None,
    access_log=False,
    server_header=False,
    proxy_headers=bool(settings.forwarded_allow_ips),
    forwarded_allow_ips=settings.forwarded_allow_ips or "",
    limit_concurrency=settings.connections,
    backlog=_BACKLOG,
    timeout_keep_alive=_KEEP_ALIVE_S,
    ws_max_size=MESSAGE_BYTES,
    ws_max_queue=_MESSAGES,
    ws_per_message_deflate=False,  # media are compressed, and what unpacks to more is one trouble less
    timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    ssl_certfile=settings.ssl_certfile,
    ssl_keyfile=settings.ssl_keyfile,
    ssl_ciphers=_CIPHERS,
  )
  config.load()
  if config.ssl:
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
  return config


def _listen(settings: Settings) -> socket.socket:
  """The socket, bound before the models are loaded: whoever cannot have it hears of it at once."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except (OSError, UnicodeError) as error:
    reason = getattr(error, "strerror", None) or "there is no such host"
    raise ValueError(
      f"Nothing can listen on {settings.host}:{settings.port} ({reason}); choose another HOST or PORT."
    ) from error
  return listener
