"""Decodes a stream that has no end, in a process of its own, and writes what is kept to its standard output.

As media_decoder.py, which it builds on, it needs PyAV and the standard library only, and the child imports it
by its file name. It holds one frame and one piece of sound at a time, whatever the stream's length. What it
writes stands in live_records.py.
"""

import errno
import json
import math
import os
import sys
import time
from fractions import Fraction

import av
import media_decoder
from live_records import FRAME, JUMP_BACK_S, JUMP_S, PROGRESS, RECORD, SOUND, SOUND_PIECE_S, Wanted
from media_decoder import SAMPLE_BYTES, SAMPLE_RATE_HZ, SOUND_GAP_S, MediaError

PROGRESS_S = 0.1
# How much of a stream is looked at before it begins: what is not there by then is not waited for.
PROBE = {"probesize": "1000000", "analyzeduration": "1000000"}
CONTAINERS = f"{media_decoder.DEMUXERS},flv"
# By scheme: the protocols that may be used, and the containers that may come over them. No playlists: they
# name further addresses.
NETWORK = {
  "rtsp": ("rtsp,rtp,udp,tcp", "rtsp,rtp,mpegts"),
  "rtsps": ("rtsps,rtsp,rtp,udp,tcp,tls", "rtsp,rtp,mpegts"),
  "rtmp": ("rtmp,tcp", "flv,live_flv"),
  "http": ("http,tcp", f"{CONTAINERS},mpjpeg,mjpeg"),
  "https": ("https,tls,tcp", f"{CONTAINERS},mpjpeg,mjpeg"),
  "udp": ("udp", "mpegts"),
}
# setrlimit takes seconds of a processor; this many are no limit.
_NO_LIMIT_S = 10**9
_REFUSED = (av.HTTPUnauthorizedError, av.HTTPForbiddenError, av.PermissionError)


class _NobodyThere(Exception):
  """Whoever read the records has gone."""


class _Out:
  """Writes records."""

  def __init__(self, pipe: int):
    self._pipe = pipe

  def write(self, letter: bytes, *parts: bytes | memoryview) -> None:
    self._all(RECORD.pack(letter, sum(len(part) for part in parts)))
    for part in parts:
      self._all(part)

  def _all(self, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    try:
      while rest:
        rest = rest[os.write(self._pipe, rest) :]
    except BrokenPipeError as error:
      raise _NobodyThere from error


class _Pace:
  """Holds a stream that comes faster than its own clock back to it."""

  def __init__(self, wanted: bool):
    self._wanted, self._offset_s = wanted, None

  def wait(self, time_s: float) -> None:
    if not self._wanted:
      return
    now = time.monotonic()
    if self._offset_s is None:
      self._offset_s = now - time_s
    ahead_s = time_s + self._offset_s - now
    if ahead_s > 0:
      time.sleep(ahead_s)


class _Clock:
  """The time of one of a stream's parts, without its jumps."""

  def __init__(self, zero_s: float):
    self._shift_s, self.last_s = -zero_s, None

  def seconds(self, stamp_s: float | None, step_s: float) -> float:
    """Where the next piece begins: by its own stamp, or a step after the last one's."""
    follows_s = 0.0 if self.last_s is None else self.last_s + step_s
    now = follows_s if stamp_s is None else stamp_s + self._shift_s
    last_s = self.last_s if self.last_s is not None else 0.0
    if not last_s - JUMP_BACK_S <= now <= last_s + JUMP_S:
      if stamp_s is not None:
        self._shift_s = follows_s - stamp_s
      now = follows_s
    self.last_s = max(last_s, now)
    return now


class _Player:
  """Keeps what is wanted of an open container.

  Args:
    container: open.
    wanted: what is kept.
    out: takes the records.
    pace: whether to play it no faster than its own clock.
  """

  def __init__(self, container, wanted: Wanted, out: _Out, *, pace: bool):
    if len(container.streams) > wanted.streams:
      raise MediaError(
        "over_budget", f"It holds {len(container.streams)} streams and the limit is {wanted.streams}."
      )
    self._container, self._wanted, self._out, self._pace = container, wanted, out, _Pace(pace)
    self._video = media_decoder._pick_video(container) if wanted.rate_hz else None
    sounds = [s for s in container.streams.audio if s.codec_context is not None] if wanted.sound else []
    self._sound = sounds[0] if sounds else None
    if self._video is None and self._sound is None:
      raise MediaError("no_frames", "It holds nothing that this model could look at or listen to.")
    start = container.start_time
    zero_s = start / av.time_base if start is not None and abs(start) < 1 << 62 else None
    self._zero_s, self._video_clock, self._sound_clock = zero_s, None, None
    self._size, self._orientation, self._turn = None, None, None
    self._step_s, self._next_tick = 0.04, 0
    self._graph, self._sound_format, self._heard = None, None, bytearray()
    self._piece_s = self._fed_s = self._sound_step_s = self._due_s = 0.0
    self.seen = self.damaged = 0
    if self._video is not None:
      media_decoder._check_pixels(self._video.width, self._video.height, wanted.frame_pixels)
      self._step_s = float(1 / media_decoder._rate(self._video))
      context = self._video.codec_context
      context.options = {"max_pixels": str(wanted.frame_pixels)}
      context.thread_count = min(media_decoder.MAX_THREADS, os.cpu_count() or 1)
      context.thread_type = "AUTO"

  def run(self) -> None:
    """Plays to the end; FFmpegError where it breaks off."""
    facts = {
      "container": self._container.format.name,
      "video": self._video.codec_context.name if self._video is not None else None,
      "sound": self._sound.codec_context.name if self._sound is not None else None,
      "fps": 1 / self._step_s,
    }
    self._out.write(b"I", json.dumps(facts).encode())
    parts = [part for part in (self._video, self._sound) if part is not None]
    try:
      for packet in self._container.demux(parts):
        is_sound = self._sound is not None and packet.stream.index == self._sound.index
        try:
          frames = packet.decode()
        except av.EOFError:
          continue
        except (av.FFmpegError, ValueError):
          self.damaged += 1
          continue
        for frame in frames:
          (self._hear if is_sound else self._see)(frame)
    finally:
      self._end_piece()
      self._tell(force=True)

  def _stamp(self, frame) -> float | None:
    known = frame.pts is not None and frame.time_base
    stamp_s = float(frame.pts * Fraction(frame.time_base)) if known else None
    if self._zero_s is None:
      self._zero_s = stamp_s or 0.0
    return stamp_s

  def _see(self, frame: av.VideoFrame) -> None:
    media_decoder._check_pixels(frame.width, frame.height, self._wanted.frame_pixels)
    stamp_s = self._stamp(frame)
    self._video_clock = self._video_clock or _Clock(self._zero_s)
    time_s = self._video_clock.seconds(stamp_s, self._step_s)
    self._pace.wait(time_s)
    self.seen += 1
    # The frame nearest to the middle of each part of a second is kept: the first that is at most half a step
    # before it.
    tick = math.floor((time_s + self._step_s / 2) * self._wanted.rate_hz - 0.5 + 1e-6)
    if tick >= self._next_tick:
      self._next_tick = tick + 1
      self._write_frame(frame, max(time_s, 0.0))
    self._tell()

  def _write_frame(self, frame: av.VideoFrame, time_s: float) -> None:
    if self._orientation is None:
      self._orientation = media_decoder._orientation(frame)
    if any(self._orientation):
      form = (frame.width, frame.height, frame.format.name)
      if self._turn is None or self._turn[0] != form:
        self._turn = form, media_decoder._turning_graph(frame, self._orientation)
      self._turn[1].push(frame)
      frame = self._turn[1].pull()
    if self._size is None:
      shrink = min(1.0, self._wanted.longest_side / max(frame.width, frame.height))
      self._size = max(round(frame.width * shrink), 1), max(round(frame.height * shrink), 1)
    width, height = self._size
    picture = frame.reformat(width=width, height=height, format="rgb24")
    rows = bytearray(width * height * 3)
    media_decoder._copy_rows(picture, memoryview(rows))
    self._out.write(b"F", FRAME.pack(time_s, width, height), rows)

  def _hear(self, frame: av.AudioFrame) -> None:
    stamp_s = self._stamp(frame)
    self._sound_clock = self._sound_clock or _Clock(self._zero_s)
    time_s = self._sound_clock.seconds(stamp_s, self._sound_step_s)
    self._pace.wait(time_s)
    form = (frame.format.name, frame.layout.name, frame.sample_rate)
    # Stamps are rounded, samples are not: those are counted until both are too far apart.
    if form != self._sound_format or abs(time_s - self._fed_s) > SOUND_GAP_S:
      self._end_piece()
      self._sound_format, self._graph = form, media_decoder._mono_graph(frame)
      self._piece_s = self._fed_s = time_s
    self._sound_step_s = frame.samples / frame.sample_rate
    self._fed_s += self._sound_step_s
    frame.pts = None
    self._graph.push(frame)
    self._pull()
    if len(self._heard) >= SOUND_PIECE_S * SAMPLE_RATE_HZ * SAMPLE_BYTES:
      self._write_sound()
    self._tell()

  def _end_piece(self) -> None:
    if self._graph is not None:
      self._graph.push(None)
      self._pull()
      self._graph = None
    self._write_sound()

  def _pull(self) -> None:
    while True:
      try:
        frame = self._graph.pull()
      except (av.BlockingIOError, av.EOFError):
        return
      self._heard.extend(memoryview(frame.planes[0]).cast("B")[: frame.samples * SAMPLE_BYTES])

  def _write_sound(self) -> None:
    most = round(4 * SOUND_PIECE_S * SAMPLE_RATE_HZ) * SAMPLE_BYTES
    for start in range(0, len(self._heard), most):
      piece = bytes(self._heard[start : start + most])
      self._out.write(b"S", SOUND.pack(self._piece_s), piece)
      self._piece_s += len(piece) / SAMPLE_BYTES / SAMPLE_RATE_HZ
    self._heard.clear()

  def _tell(self, *, force: bool = False) -> None:
    shown_s = -1.0 if self._video is None else self._video_clock.last_s if self._video_clock else 0.0
    # Sound counts as far as it was written.
    heard_s = -1.0 if self._sound is None else max(self._piece_s, 0.0)
    if force or max(shown_s, heard_s) >= self._due_s:
      self._due_s = max(shown_s, heard_s) + PROGRESS_S
      self._out.write(b"P", PROGRESS.pack(shown_s, heard_s, self.seen, self.damaged))


def play(order: dict, out: _Out) -> None:
  """Plays what an order names and writes all its records, the end's included."""
  begun = False
  try:
    with _open(order) as container:
      player = _Player(container, Wanted(**order["wanted"]), out, pace=order["pace"])
      begun = True
      player.run()
    end = {"reason": "ended", "message": "The stream has ended."}
  except MediaError as error:
    end = {"reason": error.reason, "message": str(error)}
  except MemoryError:
    end = {"reason": "over_budget", "message": "It needs more memory than the limit allows."}
  except (av.FFmpegError, ValueError, OverflowError, OSError) as error:
    end = _what_went_wrong(error, order, begun=begun)
  out.write(b"E", json.dumps(end).encode())


def _open(order: dict):
  kind, place = order["kind"], order["place"]
  given = {"options": dict(PROBE), **media_decoder.LENIENT_TAGS}
  if kind in ("file", "pipe"):
    given["options"] = {
      **(PROBE if kind == "pipe" else {}),
      "fd": str(order["file"]),
      "protocol_whitelist": "fd",
      "format_whitelist": CONTAINERS,
    }
    return av.open("fd:", **given)
  given["timeout"] = (order["open_s"], order["stall_s"])
  if kind == "camera":
    given["options"] = {"protocol_whitelist": "none"}
    return av.open(place, format=order["device"], **given)
  scheme = place.partition(":")[0].lower()
  protocols, containers = NETWORK[scheme]
  given["options"] |= {"protocol_whitelist": protocols, "format_whitelist": containers}
  if scheme.startswith("rtsp"):
    given["options"]["rtsp_flags"] = "prefer_tcp"
  if scheme == "https" and order.get("ca_file"):
    given["options"] |= {"tls_verify": "1", "ca_file": order["ca_file"]}
  return av.open(place, **given)


def _what_went_wrong(error: Exception, order: dict, *, begun: bool) -> dict:
  kind = order["kind"]
  if begun:
    if kind in ("file", "pipe"):
      return {"reason": "damaged", "message": "What comes from here on is damaged and cannot be decoded."}
    return {"reason": "broken", "message": "The stream broke off."}
  if isinstance(error, _REFUSED):
    message = "It may not be read: check its user name, its password and its permissions."
    return {"reason": "refused", "message": message}
  if kind == "camera":
    if isinstance(error, av.FileNotFoundError):
      return {"reason": "missing_file", "message": "There is no such camera; check that it is plugged in."}
    return {"reason": "unreachable", "message": f"The camera cannot be used: {_said(error)}."}
  if isinstance(error, av.InvalidDataError):
    message = "It is not a video or sound that can be read as a stream."
    if kind == "pipe":
      message += " Send WebM, MPEG-TS or fragmented MP4: a plain MP4 says at its end how it is read."
    return {"reason": "not_media", "message": message}
  if kind == "url" and isinstance(error, (av.FFmpegError, OSError)):
    why = "it did not answer in time" if isinstance(error, av.ExitError) else _said(error)
    if getattr(error, "errno", None) == errno.EIO:  # what FFmpeg makes of a name that is not known
      why = "there is no such host, or nothing is sent there"
    return {"reason": "unreachable", "message": f"It cannot be reached: {why}; check the address."}
  return {"reason": "not_media", "message": "It is not a video or sound that can be read as a stream."}


def _said(error: Exception) -> str:
  words = getattr(error, "strerror", None) or type(error).__name__
  return media_decoder._clean(words)[:1].lower() + media_decoder._clean(words)[1:]


def run_child() -> None:
  """Plays in a process of its own, under limits that it sets itself; the order comes over pipe argv[1]."""
  with os.fdopen(int(sys.argv[1]), "rb") as pipe:
    order = json.loads(pipe.read())
  budget = media_decoder.Budget(
    address_space_bytes=order["address_space_bytes"], cpu_s=order["cpu_s"] or _NO_LIMIT_S
  )
  media_decoder._limit_this_process(budget, parent=order["parent"])
  try:
    play(order, _Out(1))
  except _NobodyThere:
    os._exit(1)
  os._exit(0)
