"""The models that answer requests.

Every request has a thread of its caller. In it the file is decoded (in a child process forked from one that
has loaded the decoder, a few at a time), faces are looked for and cut out, and the verdict is made; what the
networks have to do on the way goes through one `Batcher`, in which requests take turns. Everything is
compiled before the engine is ready: no request ever waits for a compiler.

A row's score does not depend on who shares its batch: networks work row by row, and programs for different
sizes of batch differ by rounding alone. On a CPU the pictures in which faces are looked for never share a
batch: it would save nothing there, and a landmark that moves by a rounding moves a crop. They are run in the
batches in which a plain Detector runs them, and crops are the same to the last bit.

Several versions of a model stand side by side; the first folder's is the default. `reload` reads the folders
again: what has changed is loaded and compiled beside what is there, then takes its place, and requests that
had begun end on the model that they began with.
"""

import collections
import contextlib
import ctypes
import dataclasses
import importlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import checkpoints, examples, faces, inference, live, media
from deepscan_jax.faces import blazeface, mesh
from deepscan_jax.faces.network import BATCH_SIZE
from deepscan_jax.media_decoder import picture_format
from deepscan_jax.serve import garbage
from deepscan_jax.serve.batching import Batcher, Closed, Network
from deepscan_jax.verdict import Thresholds, Verdict

# Frames and sound that decoded files may hold in memory, in bytes, before the next file is begun; pictures
# have as much for themselves. A file that is begun may add media.Budget.output_bytes.
HELD_BYTES = 1 << 30
# How many of the last requests tell how long the queue will take.
_RECENT = 32
_LONGEST_WAIT_S = 60.0
_LOADING_ENDS_S = 5.0
# How often memory that was freed is given back while requests come; it takes some milliseconds.
_GIVE_BACK_EVERY_S = 30.0
# As malloc.h has it.
_M_ARENA_MAX, _ARENAS = -8, 2
_SHORTEST_HASH = 6
_CARDS = ("MODEL_CARD.md", "README.md")


class Busy(Exception):
  """The queue is full, or the models are not there yet; try again after `retry_after_s` seconds."""

  def __init__(self, retry_after_s: float):
    super().__init__(f"The queue is full; try again in {retry_after_s:g} s.")
    self.retry_after_s = retry_after_s


class UnknownModel(ValueError):
  """No model of this name, version or hash is loaded; the message lists those that are."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
  """One loaded model.

  Attributes:
    name, version, sha256: of the model.
    folder: None for the model in the package.
    default: whether it answers where no model is named.
    inputs: what it reads.
    thresholds: of faces, or of sound where it judges no faces.
    card: its model card in Markdown; "" where there is none.
  """

  name: str
  version: str
  sha256: str
  folder: Path | None
  default: bool
  inputs: tuple[str, ...]
  thresholds: Thresholds
  card: str = ""


class ServedDetector(inference.Detector):
  """A Detector whose networks are run by a Batcher, between those of other requests.

  Args:
    folder: of a model.
    batcher: runs the networks.
    face_networks: of `face_networks`.
    max_batch: rows in a batch, at most.

  Raises:
    CheckpointError: as Detector does.
  """

  def __init__(self, folder: Path, *, batcher: Batcher, face_networks: dict, max_batch: int):
    super().__init__(folder)
    if jax.default_backend() == "cpu":
      max_batch = min(max_batch, inference.LARGEST_ON_CPU)
    self._batch_sizes = [1 << power for power in range(max_batch.bit_length())]
    self._batcher, self._face_networks = batcher, face_networks
    self._networks: dict[tuple[str, ...], Network] = {}

  def compile(self) -> None:
    """Compiles, and times, all that a request may need."""
    read = [self.face_inputs] * self.judges_faces + [self.sound_inputs] * self.judges_sound
    wanted = [(size, keys) for size in reversed(self._batch_sizes) for keys in dict.fromkeys(read)]
    for program in [self._begin_compiling(size, keys) for size, keys in wanted]:
      program.result()
    shapes = examples.input_shapes(self.window)
    for keys in dict.fromkeys(read):
      kind = "faces" if keys == self.face_inputs and self.judges_faces else "sound"
      network = Network(
        f"{self.metadata['name']}@{self.metadata['version']} {kind}",
        lambda batch, keys=keys: self._run_batch(batch, keys),
        sizes=self._batch_sizes,
      )
      network.measure({key: shapes[key] for key in keys})
      self._networks[keys] = network

  def _run_network(self, inputs: dict[str, np.ndarray], keys: tuple[str, ...]) -> dict:
    return self._batcher.run(self._networks[keys], inputs)

  def _judge_faces(self, clip: media.Clip, clock):
    with faces.run_by(self._run_face_network):
      return super()._judge_faces(clip, clock)

  def _run_face_network(self, network, load_weights, images: np.ndarray) -> tuple[np.ndarray, ...]:
    return self._batcher.run(self._face_networks[network], {"images": images})


@dataclasses.dataclass(frozen=True)
class _Served:
  """A model with what its folder said when it was read."""

  info: ModelInfo
  detector: ServedDetector
  facts: dict


class Engine:
  """Models, compiled and kept ready, for many requests at a time; `start` it, and `close` it at the end.

  Args:
    folders: of models, the default first; None is the model in the package.
    max_batch: rows in a batch of a network, at most; on a CPU 8 whatever it says.
    max_wait_s: how long rows wait for those of requests that are on their way, where larger batches pay.
    queue_limit: requests that are being answered or wait, at most; others are refused with Busy.
    decodings: files that are decoded at a time; videos and sound leave one place to pictures, where there are
      two or more.
    budget: what one file may cost.
    share_faces: whether pictures in which faces are looked for may share batches; None: on accelerators.

  Attributes:
    ready: whether requests are answered: everything was compiled, and nobody has called `close`.
    problem: why the models could not be loaded, in a sentence, or why they could not be the last time; None
      where they were.

  Raises:
    ValueError: no folder, or a number below its least.
  """

  def __init__(
    self,
    folders: Sequence[str | Path | None] = (None,),
    *,
    max_batch: int = 32,
    max_wait_s: float = 0.008,
    queue_limit: int = 512,
    decodings: int | None = None,
    budget: media.Budget = media.Budget(),  # noqa: B008 - immutable
    share_faces: bool | None = None,
  ):
    decodings = decodings or os.cpu_count() or 1
    least = {"max_batch": max_batch, "queue_limit": queue_limit, "decodings": decodings}
    for name, value in least.items():
      if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}.")
    if not folders:
      raise ValueError("Give at least one model; None is the one in the package.")
    self._folders = tuple(None if folder is None else Path(folder) for folder in folders)
    self.ready, self.problem = False, None
    self._max_batch, self._queue_limit, self._budget = max_batch, queue_limit, budget
    self._served: tuple[_Served, ...] = ()
    self._lock = threading.Condition()
    self._in_flight, self._closing = 0, False
    self._given_back_s = time.monotonic()
    self._loading, self._load_again = False, False
    self._ends: collections.deque[float] = collections.deque(maxlen=_RECENT)
    self._counts: collections.Counter[str] = collections.Counter()
    self._seconds: collections.Counter[str] = collections.Counter()
    self._gate = _Gate(at_once=decodings, held_bytes=HELD_BYTES)
    self._forks: media.DecoderForks | None = None
    on_cpu = jax.default_backend() == "cpu"
    self._batcher = Batcher(
      threads=(os.cpu_count() or 1) if on_cpu else 2,
      max_wait_s=max_wait_s,
      callers=lambda: self._in_flight,
    )
    self._face_networks = face_networks(shared=not on_cpu if share_faces is None else share_faces)
    self._faces_compiled = False

  def start(self) -> None:
    """Begins to load and compile; returns at once."""
    self.reload()

  @property
  def models(self) -> list[ModelInfo]:
    """What answers now, the default first."""
    return [served.info for served in self._served]

  def detect(self, path: str | Path, *, frames: int = 32, model: str | None = None) -> Verdict:
    """Judges one file; may be called from many threads, and returns when it is judged.

    Args:
      path: a video, an image or a sound file, decoded in the sandbox.
      frames: how many frames of a video are looked at.
      model: "name", "name@version", or the first six or more digits of its sha256; None: the default.

    Raises:
      MediaError: the file cannot be used.
      Busy: too many requests are on their way, or the engine is not ready.
      UnknownModel: no such model.
    """
    served = self._find(model) if self._served else None
    with self._admitted():
      if served is None:  # loaded in between
        raise Busy(1.0)
      started = time.perf_counter()
      try:
        verdict = self._detect(path, served.detector, frames=frames, started=started)
      except Closed as error:
        raise Busy(1.0) from error
      except media.MediaError:
        self._count("refused_files")
        raise
      except Exception:
        self._count("defects")
        raise
      self._count("detections")
      return verdict

  def detect_clip(self, clip: media.Clip, *, model: str | None = None) -> Verdict:
    """As `detect`, of what was decoded already, such as a window of a stream; the same batches serve both.

    Raises:
      Busy, UnknownModel: as `detect` does.
    """
    served = self._find(model) if self._served else None
    with self._admitted():
      if served is None:  # loaded in between
        raise Busy(1.0)
      try:
        verdict = served.detector.detect_clip(clip)
      except Closed as error:
        raise Busy(1.0) from error
      except Exception:
        self._count("defects")
        raise
      self._count("live_windows")
      return verdict

  def wanted(
    self, model: str | None = None, *, window_s: float, frames: int, longest_side: int
  ) -> live.Wanted:
    """What a model looks at in windows of a stream, as `live.wanted_of` says.

    Raises:
      Busy: no model is loaded yet.
      UnknownModel: as `detect` does.
    """
    if not self._served:
      raise Busy(self._retry_after_s())
    detector = self._find(model).detector
    return live.wanted_of(detector, window_s=window_s, frames=frames, longest_side=longest_side)

  def check_room(self) -> None:
    """Raises Busy where `detect` would; for those who have something to do before they call it."""
    with self._lock:
      self._check_room()

  def reload(self) -> None:
    """Reads the folders again; returns at once.

    Where one cannot be read, everything stays as it was and `problem` says why.
    """
    with self._lock:
      if self._closing:
        return
      self._load_again = True
      if self._loading:
        return
      self._loading = True
    threading.Thread(target=self._load_all, name="loading", daemon=True).start()

  def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
    """Waits until no model is being loaded any more; returns `ready`."""
    with self._lock:
      self._lock.wait_for(lambda: not self._loading, timeout_s)
    return self.ready

  def close(self, *, drain_s: float = 0.0) -> None:
    """Refuses new requests, gives those on their way so many seconds, and ends."""
    with self._lock:
      self._closing, self.ready = True, False
      self._lock.wait_for(lambda: not self._in_flight, drain_s)
    self._batcher.close()
    with self._lock:
      # What is being loaded now would be left behind; a compiler cannot be stopped, so not for ever.
      self._lock.wait_for(lambda: not self._loading, max(drain_s, _LOADING_ENDS_S))
    if self._forks is not None:
      self._forks.close()

  def stats(self) -> dict:
    """For metrics: numbers, and numbers by name.

    in_flight: requests being answered or waiting; decoding; held_bytes: frames and sound in memory;
    detections, live_windows, refused_files, refused_busy, defects, reloads: counts since the start; seconds:
    by stage, all requests together; and Batcher.stats.
    """
    with self._lock:
      counts = {
        name: self._counts[name]
        for name in ("detections", "live_windows", "refused_files", "refused_busy", "defects", "reloads")
      }
      return {
        "in_flight": self._in_flight,
        **self._gate.stats(),
        **counts,
        "seconds": dict(self._seconds),
        **self._batcher.stats(),
      }

  def _detect(self, path: str | Path, detector: ServedDetector, *, frames: int, started: float) -> Verdict:
    with self._gate.decoding(picture=_is_picture(path)) as hold:
      waited_s = time.perf_counter() - started
      plan = examples.sampling_plan(detector.window, frames=frames)
      decoding = media.Decoding(path, plan=plan, budget=self._budget, forks=self._forks)
      try:
        clip = decoding.result()
      finally:
        # The next file may be decoded from here on.
        hold(0)
      hold(clip.frames.nbytes + clip.waveform.nbytes)
      verdict = detector.detect(path, frames=frames, decoding=decoding)
    timings = {"wait_s": waited_s, **verdict.timings}
    with self._lock:
      self._seconds.update(timings)
    return dataclasses.replace(verdict, timings=timings)

  @contextlib.contextmanager
  def _admitted(self) -> Iterator[None]:
    with self._lock:
      self._check_room()
      self._in_flight += 1
    try:
      yield
    finally:
      now = time.monotonic()
      with self._lock:
        self._in_flight -= 1
        self._ends.append(now)
        self._lock.notify_all()
        due = now > self._given_back_s + _GIVE_BACK_EVERY_S
        self._given_back_s = now if due else self._given_back_s
      if due:
        _give_memory_back()

  def _check_room(self) -> None:
    if not self.ready or self._in_flight >= self._queue_limit:
      self._counts["refused_busy"] += 1
      raise Busy(self._retry_after_s())

  def _retry_after_s(self) -> float:
    """Whole seconds until about what is in the queue now will have been answered."""
    if not self.ready or len(self._ends) < 2:
      return 5.0 if not self.ready else 1.0
    each_s = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
    return float(math.ceil(min(max(each_s * self._in_flight, 1.0), _LONGEST_WAIT_S)))

  def _count(self, name: str) -> None:
    with self._lock:
      self._counts[name] += 1

  def _find(self, asked: str | None) -> _Served:
    for served in self._served:
      info = served.info
      hashed = asked is not None and len(asked) >= _SHORTEST_HASH and info.sha256.startswith(asked)
      if asked is None or asked in (info.name, f"{info.name}@{info.version}") or hashed:
        return served
    known = ", ".join(f"{info.name}@{info.version}" for info in self.models)
    raise UnknownModel(f"There is no model {asked!r}; there are {known}.")

  def _load_all(self) -> None:
    while True:
      with self._lock:
        if not self._load_again or self._closing:
          self._loading = False
          self._lock.notify_all()
          return
        self._load_again = False
      try:
        loaded = self._load()
      except Exception as error:  # whatever it is, the models that are there go on answering
        self.problem = str(error)
        logging.exception("The models cannot be loaded.")
        continue
      _give_memory_back()
      garbage.keep_what_is_there()
      with self._lock:
        again, self._served, self.problem = bool(self._served), loaded, None
        self._counts["reloads"] += again
        self.ready = not self._closing

  def _load(self) -> tuple[_Served, ...]:
    if self._forks is None and media.DecoderForks.supported():
      self._forks = media.DecoderForks()
    # Or the first picture of two people, or the first sound, would wait for them.
    for part in ("fft", "ndimage", "optimize", "signal"):
      importlib.import_module(f"scipy.{part}")
    loaded = []
    for place, folder in enumerate(self._folders):
      path = inference.DEFAULT_MODEL if folder is None else folder
      facts = checkpoints.read_model(path)
      there = next((s for s in self._served if (s.info.folder, s.facts) == (folder, facts)), None)
      if there is not None:
        loaded.append(there)
        continue
      detector = ServedDetector(
        path, batcher=self._batcher, face_networks=self._face_networks, max_batch=self._max_batch
      )
      if detector.judges_faces and not self._faces_compiled:
        compile_faces(self._face_networks)
        self._faces_compiled = True
      detector.compile()
      info = ModelInfo(
        **detector.metadata,
        folder=folder,
        default=place == 0,
        inputs=detector.inputs,
        thresholds=detector.thresholds,
        card=_card(path),
      )
      loaded.append(_Served(info, detector, facts))
    return tuple(loaded)


def keep_memory_together() -> None:
  """Has all threads share two heaps; to be called before there are threads.

  glibc gives each thread its own, up to eight for each core, and each keeps what the largest picture took
  that its thread ever looked at.
  """
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def _give_memory_back() -> None:
  """Gives the system what is free in the heap: glibc keeps it until it is told, after compiling a gigabyte,
  and a piece more for each large picture that some thread is the first to look at."""
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)


def face_networks(*, shared: bool) -> dict:
  """By the function that faces.run_by hands on, the networks that look for faces, as a Batcher runs them."""
  made = {}
  for function, load_weights in (
    (blazeface._detect_short_range, blazeface.load_short_range),
    (blazeface._detect_full_range, blazeface.load_full_range),
    (mesh._find_landmarks, mesh.load_mesh),
  ):
    made[function] = Network(
      f"look {function.__name__.strip('_')}",
      lambda batch, f=function, load=load_weights: faces.run_batch(f, load, batch["images"]),
      sizes=(1, BATCH_SIZE),
      shared=shared,
    )
  return made


def compile_faces(networks: dict) -> None:
  """Compiles the networks of `face_networks`, and times them where they are shared."""
  faces.prepare(batches=(1, BATCH_SIZE))
  sides = dict(
    zip(networks, (blazeface.SHORT_RANGE_SIZE, blazeface.FULL_RANGE_SIZE, mesh.MESH_SIZE), strict=True)
  )
  for function, network in networks.items():
    network.measure({"images": ((sides[function], sides[function], 3), np.dtype(np.uint8))})


class _Gate:
  """Lets files in to be decoded, in the order in which they came: so many at a time, while the memory that
  earlier ones hold is below a limit. Pictures are counted apart, so that long videos do not keep them out."""

  def __init__(self, *, at_once: int, held_bytes: int):
    self._at_once, self._limit = at_once, held_bytes
    self._changed = threading.Condition()
    self._waiting = {True: collections.deque(), False: collections.deque()}
    self._running, self._held = {True: 0, False: 0}, {True: 0, False: 0}

  @contextlib.contextmanager
  def decoding(self, *, picture: bool) -> Iterator:
    """Inside, a file may be decoded; yields what is to be called with the bytes that it holds once it is.

    The first such call gives the place among the decoders to the next file.
    """
    place, held, running = object(), 0, True
    queue = self._waiting[picture]

    def hold(size: int) -> None:
      nonlocal held, running
      with self._changed:
        self._running[picture] -= running
        self._held[picture] += size - held
        held, running = size, False
        self._changed.notify_all()

    with self._changed:
      queue.append(place)
      self._changed.wait_for(lambda: queue[0] is place and self._has_room(picture))
      queue.popleft()
      self._running[picture] += 1
      self._changed.notify_all()
    try:
      yield hold
    finally:
      hold(0)

  def stats(self) -> dict[str, int]:
    with self._changed:
      return {"decoding": sum(self._running.values()), "held_bytes": sum(self._held.values())}

  def _has_room(self, picture: bool) -> bool:
    most = self._at_once if picture else max(self._at_once - 1, 1)
    running = sum(self._running.values())
    return running < self._at_once and self._running[picture] < most and self._held[picture] < self._limit


def _is_picture(path: str | Path) -> bool:
  """By the first bytes; False where they cannot be read, which the decoder will say better."""
  try:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  except OSError:
    return False
  try:
    return picture_format(os.pread(file, 64, 0)) is not None
  except OSError:
    return False
  finally:
    os.close(file)


def _card(folder: Path) -> str:
  places = [folder / name for name in _CARDS]
  if folder == inference.DEFAULT_MODEL:
    places = [folder.parent / name for name in _CARDS]
  found = next((place for place in places if place.is_file()), None)
  return found.read_text(encoding="utf-8", errors="replace") if found else ""
