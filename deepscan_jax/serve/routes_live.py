"""/api/v1/live: a WebSocket on which a stream is sent and its windows are judged as they come.

The client sends, in this order:

1. a text message, within START_S: {"key": "..."}, which may be left out where the header Authorization holds
   the key (browsers cannot set it; the key is never taken from the address), and with it, as they like,
   "model", "window_s", "frames", "false_alarm_rate", "miss_rate", "window_correlation";
2. binary messages: the bytes of one stream, cut anywhere: WebM as a browser's MediaRecorder gives it,
   fragmented MP4 or MPEG-TS; up to MESSAGE_BYTES each;
3. the text message {"type": "end"} when there are no more; or it closes.

The service sends JSON, each with a "type": "ready" once it takes bytes, "window" for each window with what is
decided so far, "dropped" where windows were left out because judging took longer than the stream, "summary"
when the stream has ended, and "problem" with the members of problem details before it closes for one.

Nothing is held but what `live.Live` holds and one message. Bytes that come faster than they are decoded wait
in the client, as TCP has it, for STUCK_S at most.

Closing codes: 1000 the stream has ended and was summed up, 1009 a message is too large, 1012 the service
ends, 1013 there is no place or the models are not ready, 1011 a defect; 4400 a message that is not as it
should be, 4401 no key or a wrong one, 4403 not allowed, 4404 no such model, 4408 too slow, 4413 too much,
4415 and 4422 bytes that cannot be decoded, 4429 over a limit: as the statuses of HTTP, and always after a
"problem".
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from deepscan_jax import live
from deepscan_jax.sequential import SequentialTest
from deepscan_jax.serve import auth
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.engine import Busy, UnknownModel
from deepscan_jax.serve.keys import DETECT, KeyInfo
from deepscan_jax.serve.places import Places
from deepscan_jax.serve.problems import PROBLEMS, Problem, internal_error

PATH = "/api/v1/live"
START_S = 10.0
MESSAGE_BYTES, TEXT_BYTES = 1 << 20, 4096
# A stream whose decoder takes nothing for so long is given up.
STUCK_S = 20.0
LONGEST_SIDE, MOST_FRAMES = 1280, 8
# Bytes that may come at once, in seconds of what may come in the long run.
_BURST_S = 4.0
_BUSY_AGAIN_S = 30.0
# Seconds of a processor that a decoder may take for each second of a connection.
_CORES = 2
_DECODER_BYTES = 2 << 30
_TICK_S = 1.0
_ENDING_S = 10.0
# Ends of a stream that are no problem, and codes of those that are.
_GOOD_ENDS = ("ended", "stopped")
CLOSE_CODES = {"internal_error": 1011, "not_ready": 1013, "busy": 1013}

logger = logging.getLogger(__name__)


class Start(BaseModel):
  """The first message."""

  model_config = ConfigDict(extra="forbid")

  key: str | None = Field(default=None, max_length=512, repr=False)
  model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.@+-]{1,200}$")
  window_s: float = Field(default=4.0, ge=1.0, le=10.0)
  frames: int = Field(default=8, ge=1, le=MOST_FRAMES)
  false_alarm_rate: float = Field(default=0.05, gt=0, lt=0.5)
  miss_rate: float = Field(default=0.1, gt=0, lt=0.5)
  window_correlation: float = Field(default=0.5, ge=0, lt=1)


def router(context: Context) -> APIRouter:
  """The route. It is not in the OpenAPI description, which knows no WebSockets; the description's text is."""
  routes = APIRouter()
  settings = context.settings
  places = Places(
    settings.live_connections,
    settings.live_per_key,
    full="All places for streams are taken.",
    full_of_key="This key watches {} streams already.",
    again_s=_BUSY_AGAIN_S,
    gauge=context.metrics.live_connections,
  )
  threads = anyio.CapacityLimiter(2 * settings.live_connections + 2)

  @routes.websocket(PATH)
  async def watch(websocket: WebSocket):
    await Connection(context, places, threads, websocket).serve()

  return routes


class _Gone(Exception):
  """The client has closed."""


class Connection:
  """One stream of one client."""

  def __init__(self, context: Context, places: Places, threads: anyio.CapacityLimiter, websocket: WebSocket):
    self._context, self._places, self._threads, self._socket = context, places, threads, websocket
    self._state = websocket.scope.setdefault("state", {})
    self._log = self._state.setdefault("log", {})
    self._allowance = _Allowance(context.settings.live_bytes_per_s)
    self._sending = asyncio.Lock()

  async def serve(self) -> None:
    """Answers the connection, whatever happens."""
    try:
      # Problems before this are answered as HTTP has it.
      _check_origin(self._context, self._socket)
      await self._socket.accept()
      await self._serve()
    except (_Gone, WebSocketDisconnect):
      pass
    except Problem as problem:
      await self._refuse(problem)
    except Exception:
      logger.exception("A stream failed.")
      await self._refuse(internal_error())

  async def _serve(self) -> None:
    context, settings = self._context, self._context.settings
    if not context.engine.ready:
      raise Problem("not_ready", "The models are being loaded.", retry_after_s=_BUSY_AGAIN_S)
    start = await self._first_message()
    key = self._state.get("key")
    if key is None:
      address = self._socket.client.host if self._socket.client else "unknown"
      key = self._state["key"] = await auth.authenticate(context, start.key or None, address=address)
    count = await auth.authorize(context, key, DETECT)
    try:
      wanted = context.engine.wanted(
        start.model, window_s=start.window_s, frames=start.frames, longest_side=LONGEST_SIDE
      )
    except Busy as error:
      raise Problem("not_ready", "The models are being loaded.", retry_after_s=error.retry_after_s) from error
    except UnknownModel as error:
      raise Problem("unknown_model", str(error)) from error
    with self._places.take(key.id):
      to_read, to_write = os.pipe()
      pipe = _Pipe(to_write)
      try:
        watched = await anyio.to_thread.run_sync(self._begin, start, wanted, to_read, limiter=self._threads)
        try:
          limits = {"bytes_per_s": settings.live_bytes_per_s, "seconds": settings.live_s}
          ready = {"type": "ready", "window_s": start.window_s, "frames": start.frames, **limits}
          await self._send({**ready, "requests_left": count.remaining})
          await self._play(key, watched, pipe)
        finally:
          await _freed(watched, self._threads)
      finally:
        pipe.close()

  def _begin(self, start: Start, wanted: live.Wanted, pipe: int) -> live.Live:
    settings = self._context.settings
    source = live.Source("pipe", "", "the stream", pipe)
    # The stream is begun here and not when it is read: the decoder has the pipe's end then, and only it.
    try:
      stream = live.Stream(
        source,
        wanted=wanted,
        open_s=settings.live_idle_s + STUCK_S,
        stall_s=settings.live_s,
        address_space_bytes=_DECODER_BYTES,
        cpu_s=_CORES * int(settings.live_s + 60),
      )
    finally:
      os.close(pipe)
    try:
      return live.Live(
        lambda: stream,
        lambda clip: self._context.engine.detect_clip(clip, model=start.model),
        wanted=wanted,
        window_s=start.window_s,
        max_delay_s=settings.live_delay_s,
        test=SequentialTest(
          false_alarm_rate=start.false_alarm_rate,
          miss_rate=start.miss_rate,
          correlation=start.window_correlation,
        ),
        passing=(Busy,),
      )
    except BaseException:
      stream.close()
      raise

  async def _play(self, key: KeyInfo, watched: live.Live, pipe: "_Pipe") -> None:
    """Takes bytes in and sends windows out until one of both ends."""
    feeding = asyncio.create_task(self._feed(pipe))
    telling = asyncio.create_task(self._tell(key, watched))
    tasks = {feeding, telling}
    try:
      while not telling.done():
        await asyncio.wait(tasks, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
          tasks.discard(feeding)
          feeding.result()  # raises what is wrong with what was sent
        if self._context.phase.draining:
          raise _Ending
      telling.result()
      if not feeding.done() and watched.end.reason in _GOOD_ENDS:
        raise Problem("unreadable", "The stream ended before its bytes did.", remedy="Send one stream only.")
      if watched.end.reason not in _GOOD_ENDS:
        code = watched.end.reason if watched.end.reason in PROBLEMS else "unreadable"
        raise Problem(code, watched.end.message)
      await self._close(1000, "The stream has ended.")
    except _Ending:
      await self._close(1012, "The service ends; connect again.")
    finally:
      for task in (feeding, telling):
        task.cancel()
      watched.stop()
      await asyncio.wait({feeding, telling}, timeout=_ENDING_S)

  async def _feed(self, pipe: "_Pipe") -> None:
    """Hands what the client sends to the decoder; ends when there is no more."""
    settings, began_s = self._context.settings, time.monotonic()
    try:
      while True:
        left_s = began_s + settings.live_s - time.monotonic()
        message = await self._receive(min(settings.live_idle_s, left_s))
        if message is None:
          late = left_s <= settings.live_idle_s
          detail = f"A stream may last {settings.live_s:g} s." if late else "Nothing came for too long."
          raise Problem("slow_upload", detail, remedy="Connect again and go on.")
        data = message.get("bytes")
        if data is None:
          if _object(message.get("text")) == {"type": "end"}:
            return
          raise Problem("bad_request", 'After the first message there are bytes, and {"type": "end"}.')
        if len(data) > MESSAGE_BYTES:
          raise Problem("too_large", f"A message may have {MESSAGE_BYTES} bytes.")
        self._log["received_bytes"] = self._log.get("received_bytes", 0) + len(data)
        if not self._allowance.takes(len(data)):
          raise Problem("too_large", f"More than {settings.live_bytes_per_s} bytes a second came.")
        if not await pipe.write(data):
          return  # the decoder has ended, and says why itself
    finally:
      pipe.close()

  async def _tell(self, key: KeyInfo, watched: live.Live) -> None:
    """Sends windows as they come, and the summary."""
    context, settings, dropped, told = self._context, self._context.settings, 0, 0
    async for window in _each(watched, self._threads):
      context.metrics.live_windows.labels(window.outcome).inc()
      told += 1
      if told % settings.live_windows_per_request == 0:
        await auth.authorize(context, key, DETECT)
      counts = watched.counts
      if counts.windows_dropped > dropped:
        context.metrics.live_dropped.inc(counts.windows_dropped - dropped)
        dropped = counts.windows_dropped
        await self._send({"type": "dropped", "windows": dropped, "frames": counts.frames_dropped})
      await self._send({"type": "window", **window.to_dict()})
    self._log["windows"], self._log["dropped"] = told, watched.counts.windows_dropped
    end = dataclasses.asdict(watched.end)
    decision = dataclasses.asdict(watched.decision)
    await self._send(
      {"type": "summary", "end": end, "decision": decision, "counts": watched.counts.to_dict()}
    )

  async def _first_message(self) -> Start:
    message = await self._receive(START_S)
    if message is None:
      raise Problem("slow_upload", f"The first message did not come within {START_S:g} s.")
    text = message.get("text")
    if text is None:
      raise Problem("bad_request", "The first message has to be a JSON object as text.")
    try:
      return Start.model_validate(_object(text))
    except ValidationError as error:
      # What was sent is not repeated: it may be a secret.
      places = ", ".join(
        sorted({".".join(map(str, fault["loc"])) or "all of it" for fault in error.errors()})
      )
      raise Problem("invalid", f"The first message is not valid at {places[:200]}.") from None

  async def _receive(self, patience_s: float) -> dict | None:
    """The next message; None if none came in time."""
    try:
      message = await asyncio.wait_for(self._socket.receive(), max(patience_s, 0.01))
    except TimeoutError:
      return None
    if message["type"] == "websocket.disconnect":
      raise _Gone
    return message

  async def _send(self, message: dict) -> None:
    async with self._sending:
      try:
        await asyncio.wait_for(self._socket.send_text(json.dumps(message, allow_nan=False)), STUCK_S)
      except (RuntimeError, WebSocketDisconnect, TimeoutError) as error:
        raise _Gone from error

  async def _refuse(self, problem: Problem) -> None:
    self._state["problem"] = problem.code
    if self._socket.application_state == WebSocketState.CONNECTING:
      if "websocket.http.response" in self._socket.scope.get("extensions", {}):
        await self._socket.send_denial_response(problem.response())
      else:
        await self._socket.close(1008, problem.title)
      return
    with contextlib.suppress(_Gone):
      await self._send({**problem.body(), "type": "problem", "retry_after_s": _retry_after(problem)})
      await self._close(CLOSE_CODES.get(problem.code, 4000 + problem.status_code), problem.title)

  async def _close(self, code: int, reason: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
      await self._socket.close(code, reason)


class _Ending(Exception):
  """The service ends."""


class _Allowance:
  """Bytes that may come: so many a second, and a burst."""

  def __init__(self, per_s: float):
    self._per_s, self._left, self._at_s = per_s, _BURST_S * per_s, time.monotonic()

  def takes(self, size: int) -> bool:
    now = time.monotonic()
    self._left = min(self._left + (now - self._at_s) * self._per_s, _BURST_S * self._per_s) - size
    self._at_s = now
    return self._left >= 0


async def _each(watched: live.Live, threads: anyio.CapacityLimiter) -> AsyncIterator[live.Window]:
  windows = watched.windows()
  while True:
    window = await anyio.to_thread.run_sync(next, windows, None, limiter=threads, abandon_on_cancel=True)
    if window is None:
      return
    yield window


async def _freed(watched: live.Live, threads: anyio.CapacityLimiter) -> None:
  """Returns when the decoder has ended, also where this task is being cancelled."""
  watched.stop()
  with anyio.CancelScope(shield=True):
    await anyio.to_thread.run_sync(watched.close, limiter=threads)


class _Pipe:
  """The end of a pipe into which a stream's bytes go."""

  def __init__(self, end: int):
    os.set_blocking(end, False)
    self._end: int | None = end

  def close(self) -> None:
    """Says that there is no more; may be called again."""
    if self._end is not None:
      os.close(self._end)
      self._end = None

  async def write(self, data: bytes) -> bool:
    """Writes all of it; False where nobody reads any more.

    Raises:
      Problem: nothing was taken for STUCK_S.
    """
    loop, rest = asyncio.get_running_loop(), memoryview(data)
    while rest:
      try:
        rest = rest[os.write(self._end, rest) :]
      except BrokenPipeError:
        return False
      except BlockingIOError:
        free = loop.create_future()
        loop.add_writer(self._end, _set, free)
        try:
          await asyncio.wait_for(free, STUCK_S)
        except TimeoutError:
          raise Problem("timeout", f"The decoder took nothing for {STUCK_S:g} s.") from None
        finally:
          loop.remove_writer(self._end)
    return True


def _set(free: asyncio.Future) -> None:
  if not free.done():
    free.set_result(None)


def _object(text: str | None) -> object:
  if text is None or len(text) > TEXT_BYTES:
    return None
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None


def _retry_after(problem: Problem) -> int | None:
  value = (problem.headers or {}).get("Retry-After")
  return int(value) if value else None


def _check_origin(context: Context, websocket: WebSocket) -> None:
  """Pages of other sites may not connect; programs, which name no origin, may.

  Raises:
    Problem: the page is of another site.
  """
  origin = websocket.headers.get("origin")
  if origin is None:
    return
  parts = urlsplit(origin)
  named = {
    name.strip().rstrip("/").lower() for name in context.settings.live_origins.split(",") if name.strip()
  }
  if parts.netloc.lower() == websocket.headers.get("host", "").lower() and parts.netloc:
    return
  if origin.rstrip("/").lower() in named:
    return
  raise Problem("forbidden", "Pages of other sites may not connect here.")
