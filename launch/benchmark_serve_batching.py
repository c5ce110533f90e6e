"""What serving many clients at once is worth: `deepscan benchmark serve --part=batching`.

Thirty-two clients, each a thread that asks for one picture after the other, ask the service's engine; and the
same pictures go through a plain Detector, one request at a time. Both take turns, so that a busy machine
disturbs the ratio as little as possible. What bounds the engine is timed as well: decoding alone, by
processes of their own and by forks, and the networks alone.

Processor seconds of a request tell what a machine can do at most when nothing else runs on it: its processors
over these seconds. They, unlike the clock, hardly depend on what else the machine does.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import resource
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepscan_jax import compilation_cache, inference, media
from deepscan_jax.serve.engine import Engine

CLIENTS = 32
# Promised: requests a second of the engine, over those of a Detector that answers one at a time.
LEAST_RATIO = 3.0
MOST_DIFFERENCE = 1e-5
# Width, height, and side of the face, in pixels.
KINDS = {"small": (224, 224, 224), "middle": (640, 480, 400), "photo": (1920, 1080, 700)}
_PICTURES = 16
_READY_S = 900.0


@dataclasses.dataclass(frozen=True)
class Load:
  """What a turn of requests took.

  Attributes:
    seconds: from the first request to the last answer.
    latencies_s: of each request.
    processor_s: of this process, and of the children that ended meanwhile.
    scores: probability by file.
  """

  seconds: float
  latencies_s: tuple[float, ...]
  processor_s: float
  scores: dict[Path, float | None]

  @property
  def per_second(self) -> float:
    """Requests."""
    return len(self.latencies_s) / self.seconds


def batching_rows(
  folder: Path,
  *,
  kinds: Sequence[str] = tuple(KINDS),
  requests: int = 96,
  clients: int = CLIENTS,
  turns: int = 3,
  rate_row: Callable,
  row: Callable,
  tell: Callable[[str], None] = lambda line: None,
) -> list:
  """The rows of the benchmark.

  Args:
    folder: for the pictures.
    kinds: of KINDS.
    requests: to the engine in a turn; the Detector gets a quarter of them.
    clients: that ask at a time.
    turns: of each side; the fastest counts.
    rate_row: rate_row(case, per_second, least_per_s=...).
    row: row(case, seconds, limit_s=...).
    tell: called with a line of progress, and with what the engine counted.
  """
  compilation_cache.keep_programs()
  detector, engine = inference.load_detector(), Engine([None])
  engine.start()
  if not engine.wait_until_loaded(_READY_S):
    raise RuntimeError(engine.problem or "The engine was not ready in time.")
  rows = []
  try:
    for kind in kinds:
      files = make_pictures(folder, kind)
      ask = lambda path: engine.detect(path).deepfake_probability  # noqa: E731
      alone = lambda path: detector.detect(path).deepfake_probability  # noqa: E731
      load(files, ask, requests=len(files), clients=clients)
      load(files[:2], alone, requests=2, clients=1)
      served, plain = [], []
      for turn in range(turns):
        tell(f"{kind}: turn {turn + 1} of {turns}")
        served.append(load(files, ask, requests=requests, clients=clients))
        plain.append(load(files, alone, requests=max(requests // 4, len(files)), clients=1))
      rows += rows_of(kind, served, plain, clients=clients, rate_row=rate_row, row=row)
      rows += _limits(kind, files, engine, rate_row=rate_row)
      tell(f"{kind}: {engine.stats()}")
  finally:
    engine.close()
  return rows


def make_pictures(folder: Path, kind: str) -> list[Path]:
  """Writes pictures of one face each before a coloured ground, as JPEG; returns their paths."""
  import cv2
  import skimage.data

  width, height, side = KINDS[kind]
  rng = np.random.default_rng(0)
  portrait, files = skimage.data.astronaut(), []
  for number in range(_PICTURES):
    coarse = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    matrix = cv2.getRotationMatrix2D((222.0, 122.0), float(rng.uniform(-10, 10)), side / 200)
    matrix[:, 2] += side / 2 - np.array((222.0, 122.0)) + rng.uniform(-10, 10, 2)
    face = cv2.warpAffine(portrait, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    x, y = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
    picture[y : y + side, x : x + side] = face
    files.append(folder / f"{kind}_{number}.jpg")
    cv2.imwrite(str(files[-1]), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
  return files


def load(files: Sequence[Path], ask: Callable[[Path], float | None], *, requests: int, clients: int) -> Load:
  """Has so many clients ask for the files in turn until all requests are answered."""
  waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
  for number in range(requests):
    waiting.put(files[number % len(files)])
  latencies, scores, lock = [], {}, threading.Lock()

  def client() -> None:
    while True:
      try:
        path = waiting.get_nowait()
      except queue.Empty:
        return
      begun = time.perf_counter()
      score = ask(path)
      taken = time.perf_counter() - begun
      with lock:
        latencies.append(taken)
        scores[path] = score

  spent, began = processor_seconds(), time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    for done in [pool.submit(client) for _ in range(clients)]:
      done.result()
  seconds = time.perf_counter() - began
  return Load(seconds, tuple(latencies), processor_seconds() - spent, scores)


def processor_seconds() -> float:
  """Of this process, its children that have ended, and those of the process that decoders are forked from."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  seconds = sum(u.ru_utime + u.ru_stime for u in used)
  tick = os.sysconf("SC_CLK_TCK")
  for task in Path("/proc/self/task").iterdir():
    try:
      children = (task / "children").read_text().split()
    except OSError:  # a thread that has ended
      continue
    for child in children:
      try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
      except OSError:
        continue
      seconds += sum(map(int, fields[11:15])) / tick  # its own, and that of its children that have ended
  return seconds


def rows_of(
  kind: str, served: Sequence[Load], plain: Sequence[Load], *, clients: int, rate_row: Callable, row: Callable
) -> list:
  """The rows of the engine's turns, and of those of a Detector that answers one request at a time."""
  ours, theirs = max(served, key=lambda x: x.per_second), max(plain, key=lambda x: x.per_second)
  apart = max(
    abs((a or 0) - (b or 0)) if (a is None) == (b is None) else 1.0
    for each in served
    for a, b in ((score, theirs.scores[path]) for path, score in each.scores.items())
  )
  processor = {
    name: min(x.processor_s / len(x.latencies_s) for x in loads)
    for name, loads in (("engine", served), ("one at a time", plain))
  }
  p50, p95 = np.percentile(ours.latencies_s, [50, 95])
  return [
    rate_row(f"{kind}: one at a time", theirs.per_second, least_per_s=None),
    rate_row(
      f"{kind}: engine, {clients} clients ({ours.per_second / theirs.per_second:.2f} times)",
      ours.per_second,
      least_per_s=LEAST_RATIO * theirs.per_second,
    ),
    row(f"{kind}: engine, p50", float(p50), limit_s=None),
    row(f"{kind}: engine, p95", float(p95), limit_s=None),
    row(f"{kind}: one at a time, p50", float(np.median(theirs.latencies_s)), limit_s=None),
    *(row(f"{kind}: processor seconds, {name}", value, limit_s=None) for name, value in processor.items()),
    row(f"{kind}: scores differ by at most (no seconds)", apart, limit_s=MOST_DIFFERENCE),
  ]


def _limits(kind: str, files: list[Path], engine: Engine, *, rate_row: Callable) -> list:
  """What decoding alone, and everything but decoding, would allow on all processors."""
  threads = len(os.sched_getaffinity(0))

  def decode(forks: media.DecoderForks | None) -> float:
    done = load(
      files, lambda path: media.decode_clip(path, forks=forks) and None, requests=len(files), clients=threads
    )
    return done.per_second

  rows = [rate_row(f"{kind}: decoding alone, a process each", decode(None), least_per_s=None)]
  if engine._forks is not None:
    rows.append(rate_row(f"{kind}: decoding alone, forks", decode(engine._forks), least_per_s=None))
  clips = {path: media.decode_clip(path, trusted=True) for path in files}
  detector = engine._served[0].detector
  done = load(
    files,
    lambda path: detector.detect_clip(clips[path]).deepfake_probability,
    requests=2 * len(files),
    clients=2 * threads,
  )
  return [*rows, rate_row(f"{kind}: decoded already", done.per_second, least_per_s=None)]
