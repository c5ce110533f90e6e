"""Watches streams: windows of a stream that has no end, judged as they come, with bounded delay and memory.

    for window in Live(lambda: Stream(source, wanted=wanted), detector.detect_clip, wanted=wanted).windows():
      print(window.start_s, window.probability, window.decision.state)

A stream is decoded in a child process of its own (live_decoder.py), which is limited as every decoder is but
for its duration, and which hands over the few frames and the sound that the model looks at. A thread reads
them and cuts them into windows that lie end to end; whoever iterates over `windows` judges one after the
other. Where judging is slower than the stream, the oldest windows that wait are dropped, and counted: a
window is told at most `max_delay_s`, and the time that judging two takes, after it came. What is held in
memory is the windows that are open or wait, the last frame, and some numbers.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import select
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from deepscan_jax import faces
from deepscan_jax.config import MOUTHS_PER_S
from deepscan_jax.live_records import FRAME, PROGRESS, RECORD, SCHEMES, SOUND, SOUND_PIECE_S, Wanted
from deepscan_jax.media import SAMPLE_RATE_HZ, Clip, MediaError
from deepscan_jax.media_forks import child_environment
from deepscan_jax.sequential import Decision, SequentialTest
from deepscan_jax.verdict import Reason, Verdict

__all__ = [
  "Counts",
  "End",
  "Live",
  "Seen",
  "Source",
  "Stream",
  "Wanted",
  "Window",
  "parse_source",
  "wanted_of",
]

CHILD_COMMAND = "from live_decoder import run_child; run_child()"
# A child that has sent its last record ends at once; one that goes on is up to something else.
ENDING_S = 5.0
# Windows that may be open at a time: pictures and sound do not come in step.
MOST_OPEN = 3
# Of pictures and sound, the one that is behind by more is not waited for.
SLACK_S = 1.0
# Records of JSON, and messages in them, are no longer.
_JSON_BYTES, _MESSAGE_LENGTH = 64 << 10, 300
_PIPE_BYTES = 1 << 20
# A window of sound alone that is shorter, the last of a stream, is no window.
_LEAST_SOUND_S = 0.5
# Waits between attempts to reach a stream again double up to this.
_LONGEST_PAUSE_S = 30.0
_WAIT_S = 0.5
_CRASHED = "The decoder gave up on this stream, which may be damaged or hostile."


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a stream comes from.

  Attributes:
    kind: "url", "file", "camera", or "pipe": an open descriptor.
    place: the address or path; "" of a pipe.
    name: for people, without user names, passwords and queries.
    descriptor: of a pipe; the caller's, and stays open.
  """

  kind: str
  place: str
  name: str
  descriptor: int | None = None

  @property
  def comes_back(self) -> bool:
    """Whether it makes sense to try again once it broke off."""
    return self.kind in ("url", "camera")

  @property
  def may_end(self) -> bool:
    """Whether an end is an end: a camera, or an address that sends for ever, only breaks off."""
    return self.kind in ("file", "pipe") or self.place.lower().startswith("http")


def parse_source(text: str) -> Source:
  """What a person means by a stream: an address, a camera (its number or /dev/video0), a file, - for stdin.

  Raises:
    ValueError: an address of another kind.
    MediaError: there is no such file or camera.
  """
  if text == "-":
    return Source("pipe", "", "standard input", 0)
  if "://" in text:
    parts = urlsplit(text)
    if parts.scheme.lower() not in SCHEMES or not parts.hostname:
      kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
      raise ValueError(f"A stream's address begins with {kinds} and names a host; got {text[:100]!r}.")
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return Source("url", text, f"{parts.scheme}://{host}{parts.path}")
  if text.isdigit() or text.startswith("/dev/video"):
    if sys.platform != "linux":
      raise ValueError(
        "Cameras can be read on Linux only; elsewhere have ffmpeg read it and pipe it to --stream=-."
      )
    place = f"/dev/video{text}" if text.isdigit() else text
    if not os.path.exists(place):
      raise MediaError(
        "missing_file", f"There is no camera {place}; check that it is plugged in, or give another number."
      )
    return Source("camera", place, place)
  try:
    mode = os.stat(text).st_mode
  except OSError as error:
    raise MediaError(
      "missing_file",
      f"There is no file {text}; check the path, or give an address such as rtsp://camera/live.",
    ) from error
  if not stat.S_ISREG(mode):
    raise MediaError(
      "unsupported_type",
      f"{text} is no regular file; give a media file, an address, a camera, or - for stdin.",
    )
  return Source("file", text, Path(text).name)


def wanted_of(detector, *, window_s: float, frames: int = 8, longest_side: int = 1920) -> Wanted:
  """What a detector looks at in windows of a stream.

  Args:
    detector: an inference.Detector.
    window_s: how long windows are.
    frames: of a window, for a model of single frames; others need all that they look at.
    longest_side: larger frames are made smaller.
  """
  window = detector.window
  rate_hz = 0.0
  if detector.judges_faces:
    sequence_hz = float(MOUTHS_PER_S) if window.mouth_frames else window.frame_rate_hz
    rate_hz = sequence_hz if window.is_sequence else frames / window_s
  sound = detector.judges_sound or "waveform" in detector.face_inputs
  return Wanted(rate_hz=rate_hz, sound=bool(sound), longest_side=longest_side)


@dataclasses.dataclass(frozen=True)
class End:
  """How a stream ended.

  Attributes:
    reason: ended; stopped, by whoever watched; broken, damaged: it broke off; or why it never began:
      missing_file, unreachable, refused, not_media, no_frames, over_budget; timeout, decoder_crash.
    message: one sentence for people.
  """

  reason: str
  message: str


@dataclasses.dataclass(frozen=True)
class _Frame:
  time_s: float
  pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Heard:
  time_s: float
  samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Progress:
  """Seconds up to which pictures and sound have come, None where there are none; counts since the start."""

  shown_s: float | None
  heard_s: float | None
  seen: int
  damaged: int


class Stream:
  """A stream that is being decoded in a child process; close it at the end.

  Args:
    source: where it comes from. Only whoever runs this program may name one of kind "url".
    wanted: what is kept.
    pace: whether what comes faster than its own clock is held back to it.
    open_s: seconds after which a stream that has not begun is given up.
    stall_s: likewise, one that has begun and of which nothing comes; None waits.
    address_space_bytes: memory of the child, at most.
    cpu_s: seconds of a processor that the child may use in all; None: as many as it takes.
  """

  def __init__(
    self,
    source: Source,
    *,
    wanted: Wanted,
    pace: bool = False,
    open_s: float = 15.0,
    stall_s: float | None = 15.0,
    address_space_bytes: int = 4 << 30,
    cpu_s: int | None = None,
  ):
    self.wanted = wanted
    self._open_s, self._stall_s, self._begun = open_s, stall_s, False
    file = None
    if source.kind == "file":
      file = os.open(source.place, os.O_RDONLY | os.O_NONBLOCK)
    elif source.kind == "pipe":
      file = os.dup(source.descriptor)
    order = {
      "kind": source.kind,
      "place": source.place,
      "file": file,
      "device": "video4linux2",
      "wanted": dataclasses.asdict(wanted),
      "pace": pace,
      "open_s": open_s,
      "stall_s": stall_s or 3600.0,
      "parent": os.getpid(),
      "address_space_bytes": address_space_bytes,
      "cpu_s": cpu_s,
      "ca_file": ssl.get_default_verify_paths().cafile,
    }
    # An address may hold a password: it is handed over in a pipe, not as an argument that all users see.
    to_read, to_write = os.pipe()
    given = [to_read] if file is None else [to_read, file]
    try:
      self._child = subprocess.Popen(
        [sys.executable, "-S", "-B", "-P", "-c", CHILD_COMMAND, str(to_read)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=given,
        env=child_environment(),
        start_new_session=True,  # Ctrl-C in a terminal is for us
      )
      with os.fdopen(to_write, "wb") as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(json.dumps(order).encode())
    finally:
      for each in given:
        os.close(each)
    self._pipe = self._child.stdout.fileno()
    with contextlib.suppress(OSError, AttributeError):
      fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

  @property
  def process_id(self) -> int:
    """Of the child."""
    return self._child.pid

  def records(self) -> Iterator["_Frame | _Heard | _Progress | End"]:
    """Yields what the child sends, checked; an End is the last, whatever the child does."""
    side, rate_hz = self.wanted.longest_side, SAMPLE_RATE_HZ
    most = {
      b"I": _JSON_BYTES,
      b"E": _JSON_BYTES,
      b"P": PROGRESS.size,
      b"F": FRAME.size + side * side * 3,
      b"S": SOUND.size + round(4 * SOUND_PIECE_S * rate_hz) * 4,
    }
    try:
      while True:
        head = self._read(RECORD.size)
        if head is None:
          yield self._death()
          return
        letter, size = RECORD.unpack(head)
        if size > most.get(letter, -1):
          yield End("decoder_crash", _CRASHED)
          return
        payload = self._read(size)
        if payload is None:
          yield self._death()
          return
        record = _record(letter, payload)
        self._begun = True
        if record is not None:
          yield record
        if isinstance(record, End):
          return
    except _Stalled:
      late = "nothing came" if self._begun else "it did not begin"
      seconds = self._stall_s if self._begun else self._open_s
      yield End("broken" if self._begun else "unreachable", f"For {seconds:g} s {late}.")
    except (ArithmeticError, KeyError, TypeError, ValueError):
      yield End("decoder_crash", _CRASHED)

  def stop(self) -> None:
    """Kills the child; may be called from any thread, also while another reads."""
    self._child.kill()

  def close(self) -> None:
    """Kills the child, waits for it and frees what it had; not while another thread reads."""
    self._child.kill()
    self._child.wait()
    self._child.stdout.close()

  def _death(self) -> End:
    try:
      code = self._child.wait(ENDING_S)
    except subprocess.TimeoutExpired:
      return End("decoder_crash", _CRASHED)
    if code == -signal.SIGXCPU:
      return End("timeout", "Decoding this stream took more of a processor than it may.")
    return End("decoder_crash", _CRASHED)

  def _read(self, size: int) -> bytearray | None:
    """So many bytes; None where the child's end comes first.

    Raises:
      _Stalled: they did not come in time.
    """
    data = bytearray(size)
    rest = memoryview(data)
    patience_s = self._stall_s if self._begun else self._open_s
    while rest:
      ready, _, _ = select.select([self._pipe], [], [], patience_s)
      if not ready:
        raise _Stalled
      count = os.readv(self._pipe, [rest])
      if not count:
        return None
      rest = rest[count:]
    return data


class _Stalled(Exception):
  """Nothing came for too long."""


def _record(letter: bytes, payload: bytearray) -> "_Frame | _Heard | _Progress | End | None":
  """What a record says; ArithmeticError, TypeError, KeyError or ValueError where it cannot be right."""
  if letter == b"F":
    time_s, width, height = FRAME.unpack_from(payload)
    pixels = np.frombuffer(payload, np.uint8, offset=FRAME.size)
    return _Frame(_moment(time_s), pixels.reshape(height, width, 3))
  if letter == b"S":
    (time_s,) = SOUND.unpack_from(payload)
    samples = np.frombuffer(payload, np.float32, offset=SOUND.size)
    samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
    return _Heard(_moment(time_s, least=-3600.0), samples)
  if letter == b"P":
    shown_s, heard_s, seen, damaged = PROGRESS.unpack(payload)
    parts = [None if part == -1.0 else _moment(part) for part in (shown_s, heard_s)]
    return _Progress(*parts, seen, damaged)
  if letter == b"E":
    told = json.loads(payload)
    return End(_printable(told["reason"], 40), _printable(told["message"], _MESSAGE_LENGTH))
  json.loads(payload)
  return None


def _moment(time_s: float, *, least: float = 0.0) -> float:
  if not least <= time_s < 1e9:
    raise ValueError(f"A stream cannot be at {time_s} s.")
  return time_s


def _printable(text: object, length: int) -> str:
  if not isinstance(text, str):
    raise TypeError("A text is missing.")
  return "".join(c for c in text[:length] if c.isprintable())


@dataclasses.dataclass(eq=False)
class _Piece:
  """A window before it is judged; `sound` holds what came, with silence where nothing did."""

  number: int
  start_s: float
  length_s: float
  frames: list[np.ndarray] = dataclasses.field(default_factory=list)
  times_s: list[float] = dataclasses.field(default_factory=list)
  sound: np.ndarray | None = None
  sound_until: int = 0
  arrived_s: float = 0.0

  def clip(self) -> Clip | None:
    """What a detector judges, on the window's own clock; None where nothing came."""
    if not self.frames and self.sound_until < _LEAST_SOUND_S * SAMPLE_RATE_HZ:
      return None
    waveform = self.sound[: self.sound_until] if self.sound is not None else np.zeros(0, np.float32)
    shape = self.frames[0].shape if self.frames else (1, 1, 3)
    return Clip(
      kind="video" if self.frames else "audio",
      frames=np.stack(self.frames) if self.frames else np.zeros((0, *shape), np.uint8),
      frame_times_s=np.array(self.times_s, np.float64) - self.start_s,
      waveform=waveform,
      sample_rate_hz=SAMPLE_RATE_HZ,
      facts={"width": shape[1], "height": shape[0]} if self.frames else {},
      warnings=(),
    )


class _Cutter:
  """Cuts what comes into windows that lie end to end; holds at most MOST_OPEN of them."""

  def __init__(self, window_s: float, *, most_frames: int):
    self._window_s, self._most_frames = window_s, most_frames
    self._open: dict[int, _Piece] = {}
    self._closed_before = 0

  def add(self, record: "_Frame | _Heard | _Progress", *, offset_s: float, now_s: float) -> list[_Piece]:
    """Takes a record in; returns the windows that are complete with it, in order."""
    if isinstance(record, _Progress):
      return self._complete(record, offset_s)
    if isinstance(record, _Frame):
      time_s = record.time_s + offset_s
      piece = self._piece(time_s, now_s)
      if piece is not None and len(piece.frames) < self._most_frames:
        last_s = piece.times_s[-1] if piece.times_s else -math.inf
        if time_s > last_s and (not piece.frames or piece.frames[0].shape == record.pixels.shape):
          piece.frames.append(record.pixels)
          piece.times_s.append(time_s)
    else:
      self._hear(record, offset_s, now_s)
    return self._too_many()

  def finish(self) -> list[_Piece]:
    """All that is open."""
    pieces = [self._open[number] for number in sorted(self._open)]
    self._open.clear()
    if pieces:
      self._closed_before = pieces[-1].number + 1
    return pieces

  def _hear(self, record: _Heard, offset_s: float, now_s: float) -> None:
    place = round((record.time_s + offset_s) * SAMPLE_RATE_HZ)
    samples = record.samples
    if place < 0:
      place, samples = 0, samples[-place:]
    whole = round(self._window_s * SAMPLE_RATE_HZ)
    while len(samples):
      # A piece of sound may lie in two windows.
      number = place // whole
      inside = place - number * whole
      part, samples = samples[: whole - inside], samples[whole - inside :]
      piece = self._piece((number + 0.5) * self._window_s, now_s)
      if piece is not None:
        if piece.sound is None:
          piece.sound = np.zeros(whole, np.float32)
        piece.sound[inside : inside + len(part)] = part
        piece.sound_until = max(piece.sound_until, inside + len(part))
      place += len(part)

  def _piece(self, time_s: float, now_s: float) -> _Piece | None:
    """The window of a moment; None where it is closed already."""
    number = int(time_s / self._window_s + 1e-9)
    if number < self._closed_before:
      return None
    if number not in self._open:
      self._open[number] = _Piece(number, number * self._window_s, self._window_s)
    self._open[number].arrived_s = now_s
    return self._open[number]

  def _complete(self, progress: _Progress, offset_s: float) -> list[_Piece]:
    known = [part + offset_s for part in (progress.shown_s, progress.heard_s) if part is not None]
    if not known:
      return []
    until = max(min(known), max(known) - SLACK_S)
    return self._close(
      [n for n, piece in self._open.items() if piece.start_s + self._window_s <= until + 1e-9]
    )

  def _too_many(self) -> list[_Piece]:
    return self._close(sorted(self._open)[:-MOST_OPEN])

  def _close(self, numbers: list[int]) -> list[_Piece]:
    pieces = [self._open.pop(number) for number in sorted(numbers)]
    if pieces:
      self._closed_before = max(self._closed_before, pieces[-1].number + 1)
    return pieces


@dataclasses.dataclass(frozen=True)
class Seen:
  """A person in a window.

  Attributes:
    id: stays the same from window to window as long as the person stays in the picture and in the shot.
    probability: calibrated, of the window; None where the face was not judged.
    box: x_min, y_min, x_max, y_max in pixels of the frame, where the person was seen last.
    frames: in so many frames.
  """

  id: int
  probability: float | None
  box: tuple[float, float, float, float]
  frames: int


@dataclasses.dataclass(frozen=True)
class Window:
  """What is said of one window.

  Attributes:
    number: from 0 on; those that are missing were dropped, or held nothing.
    start_s, end_s: since the stream's beginning.
    outcome: one of verdict.OUTCOMES, of this window alone.
    probability: calibrated; None where nothing was judged.
    decided_by: whose outcome it is, faces or sound.
    people: who was seen.
    reasons: as in a Verdict.
    frames: how many were looked at.
    delay_s: from when the last of the window came until it was judged.
    decision: what the sequential test says after it.
  """

  number: int
  start_s: float
  end_s: float
  outcome: str
  probability: float | None
  decided_by: str | None
  people: tuple[Seen, ...]
  reasons: tuple[Reason, ...]
  frames: int
  delay_s: float
  decision: Decision

  def to_dict(self) -> dict:
    """Plain values for JSON; floats rounded to 6 digits."""
    return {
      "number": self.number,
      "start_s": round(self.start_s, 3),
      "end_s": round(self.end_s, 3),
      "outcome": self.outcome,
      "deepfake_probability": _rounded(self.probability),
      "decided_by": self.decided_by,
      "people": [
        {
          "id": person.id,
          "deepfake_probability": _rounded(person.probability),
          "box": [round(side, 1) for side in person.box],
          "frames": person.frames,
        }
        for person in self.people
      ],
      "reasons": [reason.code for reason in self.reasons],
      "frames": self.frames,
      "delay_s": round(self.delay_s, 3),
      "decision": {**dataclasses.asdict(self.decision), "evidence": _rounded(self.decision.evidence)},
    }


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 6)


@dataclasses.dataclass
class Counts:
  """What became of a stream so far.

  Attributes:
    frames_seen: that were decoded.
    frames_scored, frames_dropped: that the model looked at, or would have but for the time.
    windows_scored, windows_dropped: likewise.
    damaged: pieces that could not be decoded.
    reconnections: how often the stream was reached again.
    last_delay_s, longest_delay_s: of windows.
    judging_s: seconds that judging took in all.
  """

  frames_seen: int = 0
  frames_scored: int = 0
  frames_dropped: int = 0
  windows_scored: int = 0
  windows_dropped: int = 0
  damaged: int = 0
  reconnections: int = 0
  last_delay_s: float = 0.0
  longest_delay_s: float = 0.0
  judging_s: float = 0.0

  def to_dict(self) -> dict:
    """Plain values for JSON."""
    return {key: round(value, 3) for key, value in dataclasses.asdict(self).items()}


class Live:
  """A stream that is watched; iterate over `windows`, and `close` it at the end, or use it as a context.

  Args:
    open_stream: makes the Stream; called again where it broke off and may come back.
    judge: says what a Clip is; Detector.detect_clip, or the same of a service's engine.
    wanted: as the stream's.
    window_s: how long windows are.
    max_delay_s: a window that could be judged only later than this after it has come is dropped, if a newer
      one waits.
    waiting: so many windows may wait; the oldest is dropped for one more.
    lossless: nothing is dropped: the stream waits until windows are judged. For files, not for what is live.
    test: decides on the way; None takes one with the usual rates.
    reconnects: attempts to reach the stream again, one after the other without success; 0: none.
    comes_back, may_end: as those of the source.
    passing: errors of `judge` that cost the window and no more.
    duration_s: ends after so many seconds of the stream; None: goes on.

  Attributes:
    counts: what became of it so far.
    end: how it ended; None before.
  """

  def __init__(
    self,
    open_stream: Callable[[], Stream],
    judge: Callable[[Clip], Verdict],
    *,
    wanted: Wanted,
    window_s: float = 4.0,
    max_delay_s: float = 5.0,
    waiting: int = 2,
    lossless: bool = False,
    test: SequentialTest | None = None,
    reconnects: int = 0,
    comes_back: bool = False,
    may_end: bool = True,
    passing: tuple[type[Exception], ...] = (),
    duration_s: float | None = None,
  ):
    if not 0.1 <= window_s <= 60:
      raise ValueError(f"Windows of a stream last 0.1 to 60 s, got {window_s:g}.")
    if waiting < 1:
      raise ValueError(f"At least one window must be able to wait, got {waiting}.")
    self.counts, self.end = Counts(), None
    # A whole number of samples, or pictures and sound would drift apart.
    window_s = round(window_s * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    self._open_stream, self._judge, self._window_s = open_stream, judge, window_s
    self._max_delay_s, self._most_waiting, self._lossless = max_delay_s, waiting, lossless
    self._test = test or SequentialTest()
    self._reconnects, self._comes_back, self._may_end = reconnects, comes_back, may_end
    self._passing, self._duration_s = passing, duration_s
    most_frames = math.ceil(wanted.rate_hz * window_s) + 1
    self._cutter = _Cutter(window_s, most_frames=most_frames)
    self._people = _People()
    self._changed = threading.Condition()
    self._waiting: collections.deque[_Piece] = collections.deque()
    self._stopped, self._stream, self._judging_s = False, None, 0.0
    self._thread = threading.Thread(target=self._read, name="live", daemon=True)
    self._thread.start()

  def __enter__(self) -> "Live":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  @property
  def decision(self) -> Decision:
    """What is decided so far."""
    return self._test.decision

  def windows(self) -> Iterator[Window]:
    """Yields windows as they come, until the stream ends or somebody calls `stop`; judges in this thread."""
    while (piece := self._take()) is not None:
      clip = piece.clip()
      if clip is None:
        continue
      started_s = time.monotonic()
      try:
        verdict = self._judge(clip)
      except self._passing:
        self._drop(piece)
        continue
      now_s = time.monotonic()
      # The longer of the last ones, slowly forgotten: what the next one may take.
      self._judging_s = max(now_s - started_s, 0.7 * self._judging_s)
      delay_s = now_s - piece.arrived_s
      counts = self.counts
      with self._changed:
        counts.windows_scored += 1
        counts.frames_scored += len(piece.frames)
        counts.judging_s += now_s - started_s
        counts.last_delay_s, counts.longest_delay_s = delay_s, max(counts.longest_delay_s, delay_s)
      yield Window(
        number=piece.number,
        start_s=piece.start_s,
        end_s=piece.start_s + piece.length_s,
        outcome=verdict.outcome,
        probability=verdict.deepfake_probability,
        decided_by=verdict.decided_by,
        people=self._people.follow(verdict, piece),
        reasons=verdict.reasons,
        frames=len(piece.frames),
        delay_s=delay_s,
        decision=self._test.add(verdict.deepfake_probability),
      )

  def stop(self) -> None:
    """Ends it from any thread: `windows` ends after what it judges now."""
    with self._changed:
      self._stopped = True
      self._waiting.clear()
      if self._stream is not None:
        self._stream.stop()
      self._changed.notify_all()

  def close(self) -> None:
    """Ends it, and returns when its child and its thread have ended."""
    self.stop()
    self._thread.join()

  def _take(self) -> _Piece | None:
    with self._changed:
      while not self._waiting:
        if self.end is not None or self._stopped:
          return None
        self._changed.wait(_WAIT_S)
      while len(self._waiting) > 1 and not self._lossless and self._is_late(self._waiting[0]):
        self._drop(self._waiting.popleft())
      piece = self._waiting.popleft()
      self._changed.notify_all()
      return piece

  def _is_late(self, piece: _Piece) -> bool:
    return time.monotonic() + self._judging_s - piece.arrived_s > self._max_delay_s

  def _drop(self, piece: _Piece) -> None:
    with self._changed:
      self.counts.windows_dropped += 1
      self.counts.frames_dropped += len(piece.frames)

  def _put(self, pieces: list[_Piece]) -> None:
    for piece in pieces:
      with self._changed:
        if self._lossless:
          self._changed.wait_for(lambda: len(self._waiting) < self._most_waiting or self._stopped)
        if self._stopped:
          return
        if len(self._waiting) >= self._most_waiting:
          self._drop(self._waiting.popleft())
        self._waiting.append(piece)
        self._changed.notify_all()

  def _read(self) -> None:
    """The thread: reads the stream, again where it comes back, and says how it ended."""
    end = End("decoder_crash", _CRASHED)
    try:
      end = self._read_all()
      self._put(self._cutter.finish())
    finally:
      with self._changed:
        self.end = End("stopped", "It was stopped.") if self._stopped else end
        self._changed.notify_all()

  def _read_all(self) -> End:
    offset_s, came_s, tries, began = 0.0, 0.0, 0, False
    while True:
      end, until_s = self._read_once(offset_s)
      if until_s is not None:
        self.counts.reconnections += began
        began, tries, offset_s, came_s = True, 0, until_s, until_s
      # What was never there, or is not what it should be, is told at once.
      over = end.reason not in ("ended", "broken", "unreachable")
      over |= end.reason == "ended" and self._may_end
      if self._stopped or over or not began or not self._comes_back:
        return end
      if tries >= self._reconnects:
        more = f" and was not there again in {tries} attempts" if tries else ""
        return End("broken", f"The stream broke off after {came_s:.0f} s{more}.")
      broke_s, tries = time.monotonic(), tries + 1
      with self._changed:
        self._changed.wait_for(lambda: self._stopped, min(2.0 ** (tries - 1), _LONGEST_PAUSE_S))
      self._put(self._cutter.finish())
      # The time that it was away counts, and a new window begins.
      away = offset_s + time.monotonic() - broke_s
      offset_s = math.ceil(away / self._window_s) * self._window_s

  def _read_once(self, offset_s: float) -> tuple[End, float | None]:
    """How it ended, and up to what time it came; None where nothing did."""
    with self._changed:
      if self._stopped:
        return End("stopped", "It was stopped."), None
      stream = self._stream = self._open_stream()
    until_s, before = None, (self.counts.frames_seen, self.counts.damaged)
    try:
      for record in stream.records():
        if isinstance(record, End):
          return record, until_s
        if isinstance(record, _Progress):
          until_s = offset_s + max(record.shown_s or 0.0, record.heard_s or 0.0)
          with self._changed:
            self.counts.frames_seen = before[0] + record.seen
            self.counts.damaged = before[1] + record.damaged
        self._put(self._cutter.add(record, offset_s=offset_s, now_s=time.monotonic()))
        if self._stopped:
          return End("stopped", "It was stopped."), until_s
        if self._duration_s is not None and until_s is not None and until_s >= self._duration_s:
          self._comes_back = False
          return End("ended", f"{self._duration_s:g} s are over."), until_s
      raise AssertionError("Records end with an End.")
    finally:
      with self._changed:
        self._stream = None
      stream.close()


class _People:
  """Follows people from one window to the next; remembers the last window only."""

  def __init__(self):
    self._boxes: dict[int, np.ndarray] = {}
    self._frame: np.ndarray | None = None
    self._time_s, self._known = 0.0, 0

  def follow(self, verdict: Verdict, piece: _Piece) -> tuple[Seen, ...]:
    """The people of a window, with the ids that they had in the window before."""
    people = [person for person in verdict.people if person.sightings]
    ids: list[int | None] = [None] * len(people)
    if self._boxes and people and piece.frames:
      known = list(self._boxes)
      before = [_face(self._boxes[number]) for number in known]
      now = [_face(np.array(person.sightings[0].box, np.float32)) for person in people]
      shots = np.zeros(2, int)
      if self._frame.shape == piece.frames[0].shape:
        shots = faces.find_shots(np.stack([self._frame, piece.frames[0]]))
      for track in faces.group_tracks([before, now], np.array([self._time_s, piece.times_s[0]]), shots=shots):
        if len(track.faces) == 2:
          first, second = track.faces
          place = next(i for i, face in enumerate(now) if face is second)
          ids[place] = known[next(i for i, face in enumerate(before) if face is first)]
    for place, found in enumerate(ids):
      if found is None:
        self._known += 1
        ids[place] = self._known
    self._boxes = {
      number: np.array(person.sightings[-1].box, np.float32)
      for number, person in zip(ids, people, strict=True)
    }
    if piece.frames:
      self._frame, self._time_s = piece.frames[-1], piece.times_s[-1]
    return tuple(
      Seen(number, person.deepfake_probability, person.sightings[-1].box, len(person.sightings))
      for number, person in zip(ids, people, strict=True)
    )


def _face(box: np.ndarray) -> faces.Face:
  """A face of which only the place is known."""
  nothing = np.zeros((0, 3), np.float32)
  return faces.Face(box=box, score=1.0, keypoints=nothing, landmarks=nothing, presence=1.0)
