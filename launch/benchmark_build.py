"""Times building a dataset beside what it cannot do without: decoding alone and the face models alone.

Both sides work on all cores: the build with a worker on each, the reference with as many processes, which
share the files among them and are limited to one core each in the same way.
"""

import concurrent.futures
import contextlib
import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from deepscan_jax import faces, media
from deepscan_jax.rooms import find_builder, import_room

building = import_room("datasets.building")
# A build may take so many times the seconds of decoding and faces: 0.8 of their speed.
_OVER_REFERENCE = 1 / 0.8


def build_rows(path: Path, *, frames: int, row: Callable, repeats: int, decode: Callable) -> list:
  """Rows of a build with one worker, then with one on each core, each with its two references.

  Args:
    path: a folder or tar file of media.
    frames: looked at in each video.
    row: makes a row of (benchmark, case, seconds, reference seconds, limit_s=).
    repeats: turns of each side; the fastest counts.
    decode: (what av.open takes, set of frame numbers) -> RGB arrays, in one thread.
  """
  builder_class, _ = find_builder("real_only")
  with tempfile.TemporaryDirectory() as folder:
    builder = builder_class(media_paths=[path], frames_per_clip=frames, data_dir=folder)
    files = [file for chosen in builder.split_files().values() for file in chosen]
  rows = []
  for workers in sorted({1, building.default_workers()}):
    with _reference(files, frames, workers, decode) as take_turn:
      builds, decodings, searches = [], [], []
      for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
          started = time.perf_counter()
          builder_class(media_paths=[path], frames_per_clip=frames, data_dir=folder).prepare(workers=workers)
          builds.append(time.perf_counter() - started)
        decoding, search = take_turn()
        decodings.append(decoding)
        searches.append(search)
    alone = min(decodings) + min(searches)
    count = f"{workers} process" + ("es" if workers > 1 else "")
    rows += [
      row("build", f"{len(files)} files, {count}: PyAV alone, the same frames", min(decodings)),
      row("build", f"{len(files)} files, {count}: faces alone, the same frames", min(searches)),
      row(
        "build",
        f"{len(files)} files, {count}: build (reference: both)",
        min(builds),
        alone,
        limit_s=_OVER_REFERENCE * alone,
      ),
    ]
  return rows


@contextlib.contextmanager
def _reference(files: Sequence, frames: int, workers: int, decode: Callable):
  """A function that returns the seconds of decoding and of finding faces, evenly shared among processes."""
  with contextlib.ExitStack() as stack:
    crew = [
      stack.enter_context(
        concurrent.futures.ProcessPoolExecutor(
          1,
          multiprocessing.get_context("spawn"),
          initializer=_hold,
          initargs=(files[i::workers], frames, decode),
        )
      )
      for i in range(workers)
    ]

    def take_turn() -> tuple[float, float]:
      seconds = [turn.result() for turn in [worker.submit(_take_turn) for worker in crew]]
      return tuple(np.sum(seconds, axis=0) / workers)

    take_turn()  # Compiles, and reads the files into the system's cache.
    yield take_turn


# Of a process: what decodes each of its pictures, and each of its clips.
_pictures: list[Callable] = []
_clips: list[Callable] = []


def _hold(files: Sequence, frames: int, decode: Callable) -> None:
  building.use_one_core()
  for file in files:
    try:
      chosen = _frame_numbers(_source(file), frames)
    except av.FFmpegError:
      continue  # The build rejects it as quickly.
    (_pictures if file.is_image else _clips).append(
      lambda file=file, chosen=chosen: decode(_source(file), chosen)
    )


def _take_turn() -> tuple[float, float]:
  decoding = search = 0.0
  size = building.PICTURES_IN_PART
  batches = [_pictures[i : i + size] for i in range(0, len(_pictures), size)]
  for batch in [*batches, *([clip] for clip in _clips)]:
    started = time.perf_counter()
    decoded = [read() for read in batch]
    decoding += time.perf_counter() - started
    frames = np.stack(decoded[0]) if batch[0] in _clips else [picture[0] for picture in decoded]
    started = time.perf_counter()
    faces.find_faces(frames)
    search += time.perf_counter() - started
  return decoding, search


def _source(file) -> str | io.BytesIO:
  return io.BytesIO(file.read()) if file.read else str(file.path)


def _frame_numbers(source: str | io.BytesIO, count: int) -> set[int]:
  with av.open(source) as container:
    total = sum(1 for _ in container.decode(video=0))
  return set(media.SamplingPlan(frame_count=count).choose(total))
