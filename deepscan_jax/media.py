"""Opens videos, pictures and sound files: one file in, one Clip out.

Frames are uint8 RGB [time, height, width, channel], upright, with their times from the file's own
timestamps; sound is mono float32 at 16 kHz in [-1, 1]. A file that is not trusted is decoded in a child
process with limits on memory, processor time, open files and written bytes; its frames come back through
shared memory, so that costs one process start and no copy. A server that decodes many files spares the start
as well (media_forks.py).

Colours follow what the stream says of itself; a stream that says nothing is read as BT.601, limited range,
which is what FFmpeg-made files without a mark hold. Sample aspect ratio is reported, not applied; HDR is not
tone-mapped.
"""

import fcntl
import json
import math
import mmap
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deepscan_jax.media_decoder import (
  SAMPLE_RATE_HZ,
  Budget,
  MediaError,
  Region,
  SamplingPlan,
  decode_file,
  open_picture,
)
from deepscan_jax.media_forks import DecoderForks, Fork, ForksLost, child_environment

__all__ = [
  "SAMPLE_RATE_HZ",
  "Budget",
  "Clip",
  "DecoderForks",
  "Decoding",
  "MediaError",
  "SamplingPlan",
  "decode_bytes",
  "decode_clip",
  "decode_image_bytes",
]

KINDS = ("video", "image", "audio")
CRASHED = (
  "The decoder gave up on this file, which may be damaged or hostile; convert it to mp4 and try again."
)
# The child's answer is a few kilobytes; more than this can only come from a decoder that was taken over.
ANSWER_BYTES = 4 << 20
# A child that has answered ends at once; one that goes on is up to something else.
ENDING_S = 5.0
CHILD_COMMAND = "from media_decoder import run_child; run_child()"


@dataclass(frozen=True)
class Clip:
  """What was taken out of one file.

  kind is "video", "image" or "audio". frames: uint8 RGB [time, height, width, channel], time = 0 for sound
  files; frame_times_s: float64 [time], seconds since the clip's start (its first frame or sound sample,
  whichever is first); waveform: float32 [sample] in [-1, 1] on the same clock, empty if there is none; facts:
  JSON-able properties of the container and its streams; warnings: sentences for people.
  """

  kind: str
  frames: np.ndarray
  frame_times_s: np.ndarray
  waveform: np.ndarray
  sample_rate_hz: int
  facts: dict
  warnings: tuple[str, ...]


class Decoding:
  """A file that is being decoded in its child process, while the caller does something else.

  Args:
    path, plan, budget, forks: as of `decode_clip`.

  Attributes:
    path: of the file.
    started_s: time.perf_counter() at the start.
    seconds: how long it took; None before the end, and if it failed.
    file_state: what changes when the file is replaced or written to, as it was at the start; None if it could
      not be looked at.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    plan: SamplingPlan = SamplingPlan(),  # noqa: B008 - immutable
    budget: Budget = Budget(),  # noqa: B008 - immutable
    forks: DecoderForks | None = None,
  ):
    self.path = path
    self.started_s = time.perf_counter()
    self.seconds: float | None = None
    self.file_state = file_state(path)
    self._clip: Future[Clip] = Future()
    # Not joined at the end of the program: a child without its parent ends by itself.
    threading.Thread(target=self._run, args=(plan, budget, forks), name="decoding", daemon=True).start()

  def wait(self, timeout_s: float = 0.0) -> bool:
    """Whether it has ended, well or badly, within so many seconds from now."""
    return bool(wait([self._clip], timeout_s).done)

  def result(self) -> Clip:
    """Returns the Clip once it is there; raises MediaError as `decode_clip` does."""
    return self._clip.result()

  def _run(self, plan: SamplingPlan, budget: Budget, forks: DecoderForks | None) -> None:
    try:
      clip = decode_clip(self.path, plan=plan, budget=budget, forks=forks)
    except BaseException as error:
      self._clip.set_exception(error)
    else:
      self.seconds = time.perf_counter() - self.started_s
      self._clip.set_result(clip)


def file_state(path: str | os.PathLike) -> tuple[int, ...] | None:
  """What changes when a file is replaced or written to; None if it cannot be looked at."""
  try:
    state = os.stat(path)
  except OSError:
    return None
  return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def decode_clip(
  path: str | os.PathLike,
  *,
  plan: SamplingPlan = SamplingPlan(),  # noqa: B008 - immutable
  budget: Budget = Budget(),  # noqa: B008 - immutable
  trusted: bool = False,
  forks: DecoderForks | None = None,
) -> Clip:
  """Returns the Clip of a video, picture or sound file.

  Args:
    path: the file.
    plan: which frames of a video to take; a picture has one frame.
    budget: what the file may cost in bytes, pixels, seconds and memory.
    trusted: True decodes in this process: for builders of one's own data, not for files that others sent.
    forks: what the child process is forked from; None starts one.

  Raises:
    MediaError: the file is missing, empty, not media, damaged beyond use or over budget.
  """
  file = _open_regular_file(path)
  try:
    return _decode(file, plan=plan, budget=budget, trusted=trusted, forks=forks)
  finally:
    os.close(file)


def decode_bytes(
  data: bytes,
  *,
  plan: SamplingPlan = SamplingPlan(),  # noqa: B008 - immutable
  budget: Budget = Budget(),  # noqa: B008 - immutable
) -> Clip:
  """As `decode_clip` of a file that one trusts, such as a member of an archive of one's own.

  Raises:
    MediaError: the bytes are not media, or damaged or over budget.
  """
  with tempfile.TemporaryFile() as file:
    file.write(data)
    file.flush()
    return _decode(file.fileno(), plan=plan, budget=budget, trusted=True)


def _decode(
  file: int, *, plan: SamplingPlan, budget: Budget, trusted: bool, forks: DecoderForks | None = None
) -> Clip:
  with _shared_memory(budget.output_bytes) as region:
    if trusted:
      memory = mmap.mmap(region.fileno(), budget.output_bytes)
      result = decode_file(file, Region(memory), plan=plan, budget=budget)
    else:
      result = _decode_in_child(file, region.fileno(), plan=plan, budget=budget, forks=forks)
    try:
      return _clip(result, region.fileno(), budget=budget)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
      raise MediaError("decoder_crash", CRASHED) from error


def decode_image_bytes(data: bytes) -> Clip:
  """Returns the Clip, of one frame, of one's own jpg, png or webp bytes.

  The same reading as decode_clip's, without its child process.

  Raises:
    MediaError: the bytes are not a picture, or it is damaged or too large.
  """
  picture, facts, warnings = open_picture(data, frame_pixels=Budget().frame_pixels)
  return Clip(
    kind="image",
    frames=np.array(picture)[None],
    frame_times_s=np.zeros(1),
    waveform=np.zeros(0, np.float32),
    sample_rate_hz=SAMPLE_RATE_HZ,
    facts=facts,
    warnings=tuple(warnings),
  )


def _open_regular_file(path: str | os.PathLike) -> int:
  name = Path(path).name
  try:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking, or a named pipe would hang here
  except FileNotFoundError as error:
    raise MediaError("missing_file", f"There is no file {name}; check the path.") from error
  except OSError as error:
    raise MediaError(
      "unreadable", f"{name} cannot be opened ({error.strerror}); check its permissions."
    ) from error
  if not stat.S_ISREG(os.fstat(file).st_mode):
    os.close(file)
    raise MediaError("unsupported_type", f"{name} is not a regular file; give the path of one media file.")
  return file


def _shared_memory(size: int):
  """An unnamed file in memory; pages cost nothing before they are written."""
  if hasattr(os, "memfd_create"):
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    region = os.fdopen(os.memfd_create("deepscan-frames", flags), "r+b", buffering=0)
  else:
    region = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller closes it
  region.truncate(size)
  if hasattr(os, "memfd_create"):
    # A child that was taken over could cut the memory off under our reading, which would kill this process.
    fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
  return region


def _clip(result: dict, region: int, *, budget: Budget) -> Clip:
  """Maps what the decoder wrote; every number is checked against the region, for the child is not trusted."""
  times = np.array(result["frame_times_s"], np.float64)
  shape = (len(times), int(result["height"]), int(result["width"]), 3)
  samples = int(result["sample_count"])
  if min(*shape, samples) < 0 or result["kind"] not in KINDS:
    raise ValueError(f"A decoder cannot have found {shape} frames and {samples} samples.")
  memory = mmap.mmap(region, budget.output_bytes)
  frames = np.frombuffer(memory, np.uint8, math.prod(shape), int(result["frames_at"])).reshape(shape)
  waveform = np.frombuffer(memory, np.float32, samples, int(result["waveform_at"]))
  if not np.isfinite(waveform).all():  # float sound files may hold anything
    waveform = np.nan_to_num(waveform, nan=0.0, posinf=1.0, neginf=-1.0)
  return Clip(
    kind=result["kind"],
    frames=frames,
    frame_times_s=times,
    waveform=np.clip(waveform, -1.0, 1.0),
    sample_rate_hz=SAMPLE_RATE_HZ,
    facts=result["facts"],
    warnings=tuple(result["warnings"]),
  )


def _decode_in_child(
  file: int, region: int, *, plan: SamplingPlan, budget: Budget, forks: DecoderForks | None
) -> dict:
  order = {"plan": asdict(plan), "budget": asdict(budget)}
  if forks is not None:
    try:
      child = forks.begin(order, file, region)
      return _result_of(child, seconds=budget.wall_s)
    except ForksLost:
      # No fault of the file's: below it gets a process of its own.
      pass
  order = {"file": file, "region": region, "parent": os.getpid(), **order}
  child = subprocess.Popen(
    [sys.executable, "-S", "-B", "-P", "-c", CHILD_COMMAND, json.dumps(order)],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    pass_fds=(file, region),
    env=child_environment(),
  )
  return _result_of(child, seconds=budget.wall_s)


def _result_of(child: subprocess.Popen | Fork, *, seconds: float) -> dict:
  """What the child answers; it has ended when this returns."""
  try:
    answer = _read_answer(child.stdout, seconds=seconds)
    if answer is not None:
      child.wait(timeout=ENDING_S)
  except subprocess.TimeoutExpired:
    answer = None
  finally:
    child.kill()
    try:
      child.wait()
    finally:
      child.stdout.close()
  if answer is None or child.returncode == -signal.SIGXCPU:
    raise MediaError("timeout", "Decoding took longer than the limit allows; cut or shrink the file first.")
  if child.returncode != 0:
    raise MediaError("decoder_crash", CRASHED)
  try:
    reply = json.loads(answer)
    if "result" in reply:
      return reply["result"]
    refusal = MediaError(str(reply["reason"]), str(reply["message"]))
  except (KeyError, TypeError, ValueError) as error:
    raise MediaError("decoder_crash", CRASHED) from error
  raise refusal


def _read_answer(pipe, *, seconds: float) -> bytes | None:
  """Everything the child writes until it ends; None when the time is up or it writes too much."""
  deadline = time.monotonic() + seconds
  answer = bytearray()
  while len(answer) <= ANSWER_BYTES:
    ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
    if not ready:
      return None
    piece = os.read(pipe.fileno(), 1 << 16)
    if not piece:
      return bytes(answer)
    answer += piece
  return None
