"""How a dataset is built: in parts, on all cores or on Beam, and from where a build was stopped.

The files of each split are divided into parts, always alike: so many pictures or so few clips. A part is
decoded by itself, in this process, in one of several worker processes or on a worker of Apache Beam, and
written to `<version>.parts` beside the dataset in one move. There it stays until the dataset is whole, so a
build that was killed decodes only what is missing. Once all parts are there, TFDS shuffles and writes their
examples, which are stored as they will be in the dataset: reading and writing only. Then the parts go.

The dataset is the same byte for byte whichever way was taken, because a part is the same: its files are found
together in the same calls, and the face networks give equal numbers with one thread as with many. Workers
compute on the CPU, also where there is an accelerator, whose numbers would differ in the last digits.

A file that makes the decoder crash takes its worker along. Its part is tried again when all others are done
and nothing else needs memory; if it crashes again its files are tried one by one, and those that crash alone
are rejected.

Parts go into a folder that all workers see under one path: on a cluster, media and data lie on a network
drive or in a bucket that is mounted on every machine.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, splits, writer
from tqdm import tqdm

import deepscan_jax
from deepscan_jax.files import PARTIAL, locked, whole_file
from deepscan_jax.version import __version__

if TYPE_CHECKING:
  from .media_builder import MediaBuilder, MediaFile

MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
# What is lost when a build is killed, and what a worker takes at a time: some seconds of work.
PICTURES_IN_PART, CLIPS_IN_PART = 32, 4
# What a worker may come to hold: the networks, and the chosen frames of a clip.
WORKER_BYTES = 1_500_000_000

# What of a MediaFile says where its bytes are.
_WHERE = ("path", "read", "frames", "sound_path")
_FINGERPRINT, _LOCK = "fingerprint.json", "lock"
# What examples depend on beside our own sources.
_LIBRARIES = ("av", "jax", "jaxlib", "numpy", "opencv-python-headless", "pillow", "tensorflow-datasets")
_FOOTER = struct.Struct("<Q")
_CRASHED = "decoder_crash"
_STARTED = "started"
# Lines of progress where there is no terminal, and looks at what Beam has done.
_LINE_EVERY_S, _LOOK_EVERY_S = 30.0, 2.0
_NAMES_IN_SENTENCE = 3


@dataclasses.dataclass(frozen=True)
class Part:
  """Files of one split that are decoded together.

  Attributes:
    name: of the file that holds its examples.
    split: of the dataset.
    files: in order.
  """

  name: str
  split: str
  files: tuple["MediaFile", ...]


class WorkerDiedError(Exception):
  """A worker process ended in the middle of a part; the text says how."""


def build(
  builder: "MediaBuilder", *, overwrite: bool = False, workers: int = 0, beam_options: str | None = None
) -> None:
  """Builds the builder's dataset, with rejected.jsonl and manifest.json in its folder.

  Args:
    builder: what to build, and where.
    overwrite: build again what is there; it stays until the parts of the new one are complete.
    workers: processes that decode, each on one core; 0 decodes in this process.
    beam_options: flags of an Apache Beam pipeline, such as "--runner=DirectRunner"; it decodes instead.

  Raises:
    ValueError: no file of a split can be used, another process builds the same, or a flag is wrong.
    FileNotFoundError: the media are not there.
    OSError: something cannot be written.
  """
  if beam_options is not None and importlib.util.find_spec("apache_beam") is None:
    raise ValueError("Apache Beam is not installed; `pip install 'deepscan_jax[beam]'` adds it.")
  folder = Path(builder.data_dir)
  if folder.exists() and not overwrite:
    return
  by_split = builder.split_files()
  listed = list(builder.rejected)
  parts = divide(by_split)
  with _working_folder(folder, fingerprint(builder, by_split)) as work:
    missing = [part for part in parts if not (work / part.name).exists()]
    if len(missing) < len(parts):
      done = sum(len(part.files) for part in parts) - sum(len(part.files) for part in missing)
      _say(f"Going on with a build that was stopped: {done} files are done.")
    with _Progress(parts, missing) as progress:
      if beam_options is not None:
        _compute_on_beam(builder, missing, work, beam_options, progress)
      elif workers:
        _compute_in_processes(builder, missing, work, workers, progress)
      else:
        for part in missing:
          compute_part(builder, part.files, work / part.name)
          progress.add(part)
    rejected = listed + [row for part in parts for row in _footer(work / part.name)["rejected"]]
    _check_splits(by_split, parts, work)
    _remove(folder)
    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    builder.write(
      {split: [work / part.name for part in parts if part.split == split] for split in by_split}, rejected
    )
    _sync(folder.parent)
    shutil.rmtree(work)


def default_workers() -> int:
  """A worker for each core that this process may use, as far as the free memory goes; at least one."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES))


def use_one_core(cache: str | None = None) -> None:
  """Makes this process one of as many as there are cores: it decodes and computes in one thread, on the CPU.

  Call it before JAX runs its first program.

  Args:
    cache: where compiled programs are kept; by default below the user's home.
  """
  # XLA reads it when its first program is made.
  os.environ["NPROC"] = "1"

  import cv2
  import jax

  from deepscan_jax import compilation_cache, media_decoder

  cv2.setNumThreads(1)
  media_decoder.MAX_THREADS = 1
  jax.config.update("jax_platforms", "cpu")
  compilation_cache.keep_programs(cache)


def divide(by_split: Mapping[str, Sequence["MediaFile"]]) -> list[Part]:
  """The parts of a dataset in order: of each split the pictures first, as they are found together."""
  parts = []
  for split, files in by_split.items():
    pictures = [file for file in files if file.is_image]
    clips = [file for file in files if not file.is_image]
    pieces = [
      (kind[i : i + size])
      for kind, size in ((pictures, PICTURES_IN_PART), (clips, CLIPS_IN_PART))
      for i in range(0, len(kind), size)
    ]
    parts += [Part(f"{split}-{i:06d}.part", split, tuple(piece)) for i, piece in enumerate(pieces)]
  return parts


def fingerprint(builder: "MediaBuilder", by_split: Mapping[str, Sequence["MediaFile"]]) -> dict[str, Any]:
  """Everything that the parts of a dataset depend on, as facts that can be compared one by one.

  Where the media lie is none of it: a folder may be moved between two attempts.
  """
  files = hashlib.sha256()
  for split, chosen in by_split.items():
    for file in chosen:
      known = {name: value for name, value in vars(file).items() if name not in _WHERE}
      readers = [*(file.frames or (file.read or file.path,)), *([file.sound_path] if file.sound_path else [])]
      files.update(json.dumps([split, known, [_state(reader) for reader in readers]]).encode())
  sources = hashlib.sha256()
  for room in (Path(deepscan_jax.__file__).parent, Path(__file__).parent):
    for path in sorted(room.rglob("*.py")):
      sources.update(path.read_bytes())
  return {
    "builder": f"{builder.name}/{builder.builder_config.name if builder.builder_config else ''}",
    "version": str(builder.version),
    "package": __version__,
    "sources": sources.hexdigest(),
    "libraries": {name: _library_version(name) for name in _LIBRARIES},
    "settings": {name: str(value) for name, value in builder.settings.items() if name != "media_paths"},
    "part sizes": [PICTURES_IN_PART, CLIPS_IN_PART],
    "media": files.hexdigest(),
  }


def compute_part(
  builder: "MediaBuilder", files: Sequence["MediaFile"], path: Path | None, *, crashed: Iterable[dict] = ()
) -> None:
  """Decodes files and writes their examples, and what could not be used, to one file that appears whole.

  The file holds the serialized examples one after the other, then a footer in JSON, {"examples": [[key,
  bytes], ...], "rejected": rows, "sha256": of the examples}, then the footer's length as eight bytes.

  Args:
    builder: knows how.
    files: of one split.
    path: the file to write; None only tries whether they can be decoded.
    crashed: rows of rejected.jsonl for files that were taken out of the part.
  """
  if path is None:
    for _ in builder.encode_examples(files):
      pass
    return
  index, digest = [], hashlib.sha256()
  with whole_file(path) as file:
    for key, data in builder.encode_examples(files):
      file.write(data)
      digest.update(data)
      index.append((key, len(data)))
    rejected = [*crashed, *builder.rejected]
    footer = json.dumps({"examples": index, "rejected": rejected, "sha256": digest.hexdigest()}).encode()
    file.write(footer + _FOOTER.pack(len(footer)))


def read_part(path: Path) -> Iterator[tuple[str, bytes]]:
  """The (key, serialized example) pairs of a part in order.

  Raises:
    ValueError: the file is damaged.
  """
  footer, digest = _footer(path), hashlib.sha256()
  with path.open("rb") as file:
    for key, size in footer["examples"]:
      data = file.read(size)
      digest.update(data)
      yield key, data
  if digest.hexdigest() != footer["sha256"]:
    raise ValueError(f"{path} is damaged; remove it and build again: only this part is decoded anew.")


def write_splits(builder: "MediaBuilder", parts: Mapping[str, Sequence[Path]]) -> splits.SplitDict:
  """Writes the shards of all splits from their parts, with TFDS's own writer, into the builder's folder."""
  infos = []
  features = builder.info.features
  for split, paths in parts.items():
    template = builder._get_filename_template(split_name=split)
    out = writer.Writer(
      serializer=_AsItIs(features.get_serialized_info()),
      filename_template=template,
      hash_salt=split,
      disable_shuffling=False,
      example_writer=writer.ExampleWriter(file_format=builder.info.file_format),
    )
    for path in paths:
      for key, data in read_part(path):
        out.write(key, data)
    lengths, size = out.finalize()
    infos.append(
      splits.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
    )
  return splits.SplitDict(infos)


def write_rejected(folder: Path, rows: Sequence[dict]) -> None:
  """Writes rejected.jsonl, unless there is nothing to say."""
  if rows:
    with whole_file(folder / REJECTED) as file:
      file.write("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def write_manifest(builder: "MediaBuilder", folder: Path) -> None:
  """Writes manifest.json: the size and sha256 of each file of a dataset, once all have reached the disk."""
  files = {}
  for path in _files(folder):
    _sync(path)
    files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
  config = builder.builder_config
  manifest = {
    "name": builder.name,
    "config": config.name if config else None,
    "version": str(builder.version),
    "files": files,
  }
  with whole_file(folder / MANIFEST) as file:
    file.write((json.dumps(manifest, indent=2) + "\n").encode())


def verify(folder: Path) -> int:
  """Compares a prepared dataset with its manifest; returns how many files it has.

  Raises:
    FileNotFoundError: there is no dataset, or no manifest.
    ValueError: a file is damaged, missing or not of the dataset.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"There is no dataset in {folder}; build it, or give its --name and --data_dir.")
  path = folder / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(f"{folder} has no {MANIFEST} to compare with; --overwrite builds it with one.")
  try:
    listed = json.loads(path.read_text(encoding="utf-8"))["files"]
    facts = {name: (file["bytes"], file["sha256"]) for name, file in listed.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged; copy it again, or build again with --overwrite.") from error
  found = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
  kinds = {
    "damaged": [
      name
      for name, (size, digest) in facts.items()
      if name in found and (found[name].stat().st_size != size or _sha256(found[name]) != digest)
    ],
    "missing": [name for name in facts if name not in found],
    "extra": [name for name in found if name not in facts],
  }
  if any(kinds.values()):
    wrong = "; ".join(f"{kind}: {_names(names)}" for kind, names in kinds.items() if names)
    mend = "copy those files again or build again with --overwrite"
    cure = mend if kinds["damaged"] or kinds["missing"] else "remove what does not belong there"
    raise ValueError(f"{folder} is not as it was built ({wrong}); {cure}.")
  return len(facts)


def _compute_in_processes(
  builder: "MediaBuilder", parts: Sequence[Part], work: Path, workers: int, progress: "_Progress"
) -> None:
  """Computes the parts in worker processes, then those that made a worker crash, alone and carefully."""
  crew = [_Worker(builder) for _ in range(min(workers, len(parts)))]
  crashed: list[Part] = []
  busy: dict[connection.Connection, tuple[_Worker, Part]] = {}
  todo = iter(parts)

  def employ(worker: _Worker) -> None:
    if (part := next(todo, None)) is not None:
      busy[worker.start(part.files, work / part.name)] = worker, part

  try:
    for worker in crew:
      employ(worker)
    while busy:
      for ready in connection.wait(list(busy)):
        worker, part = busy[ready]
        try:
          if not worker.finish():
            continue
          progress.add(part)
        except WorkerDiedError as death:
          _say(f"{death} while it decoded {part.name}; its files will be tried again.")
          crashed.append(part)
        del busy[ready]
        employ(worker)
    for part in crashed:
      _compute_carefully(crew[0], part, work)
      progress.add(part)
  finally:
    for worker in crew:
      worker.close()


def _compute_carefully(worker: "_Worker", part: Part, work: Path) -> None:
  """Computes a part whatever its files do: those that crash a worker twice by themselves are rejected."""
  with contextlib.suppress(WorkerDiedError):
    return worker.run(part.files, work / part.name)
  deaths = [(file, _death_of(worker, file)) for file in part.files]
  rows = [
    {
      "id": file.id,
      "reason": _CRASHED,
      "message": f"The decoder crashed on this file, also when it was alone: {death}.",
      "split": part.split,
      "label": file.label,
      "method": file.method,
      "source": file.source,
    }
    for file, death in deaths
    if death
  ]
  left = [file for file, death in deaths if not death]
  try:
    worker.run(left, work / part.name, crashed=rows)
  except WorkerDiedError as death:
    raise ValueError(
      f"{death}, three times, over {len(left)} files that can be decoded one by one (from {part.files[0].id}"
      " on); this machine may have too little memory."
    ) from death


def _death_of(worker: "_Worker", file: "MediaFile") -> str:
  """How the worker dies each time that it decodes the file and nothing else; empty where it does not."""
  how = ""
  for _ in range(2):
    try:
      worker.run((file,), None)
    except WorkerDiedError as death:
      how = str(death)
    else:
      return ""
  return how


def _compute_on_beam(
  builder: "MediaBuilder", parts: Sequence[Part], work: Path, options: str, progress: "_Progress"
) -> None:
  """Computes the parts as a Beam pipeline; each of its workers decodes in a process of its own, as we do."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  given = shlex.split(options)
  # Beam passes over what it does not know; a word without dashes can only be a slip.
  if wrong := [word for word in given if not word.startswith("--")]:
    raise ValueError(f"--beam_options takes flags such as --runner=DirectRunner, not {wrong[0]!r}.")
  if not parts:
    return
  ended = threading.Event()
  watcher = threading.Thread(target=_watch, args=(parts, work, progress, ended), daemon=True)
  watcher.start()
  try:
    with beam.Pipeline(options=PipelineOptions(given)) as pipeline:
      _ = (
        pipeline
        | "Parts" >> beam.Create(list(parts), reshuffle=True)
        | "Decode" >> beam.Map(functools.partial(_compute_for_beam, builder=builder, work=work))
      )
  finally:
    ended.set()
    watcher.join()
  if absent := [part.name for part in parts if not (work / part.name).exists()]:
    raise ValueError(
      f"The pipeline has ended, and {len(absent)} of {len(parts)} parts are not in {work}; see that all of"
      " its workers write to that folder."
    )


# Of a thread of a Beam worker: the process that decodes for it.
_beam_thread = threading.local()


def _compute_for_beam(part: Part, *, builder: "MediaBuilder", work: Path) -> None:
  if (work / part.name).exists():
    return  # Beam may ask twice.
  worker = getattr(_beam_thread, "worker", None)
  if worker is None or worker.builder.data_dir != builder.data_dir:
    worker = _beam_thread.worker = _Worker(builder)
  try:
    worker.run(part.files, work / part.name)
  except WorkerDiedError:
    _compute_carefully(worker, part, work)


def _watch(parts: Sequence[Part], work: Path, progress: "_Progress", ended: threading.Event) -> None:
  """Shows the parts that appear in the folder until the pipeline has ended."""
  waiting = {part.name: part for part in parts}
  last = False
  while not last:
    last = ended.wait(_LOOK_EVERY_S)
    for name in waiting.keys() & {entry.name for entry in os.scandir(work)}:
      progress.add(waiting.pop(name))


class _Worker:
  """A process that decodes parts, one at a time; where it dies, the next part gets a new one.

  Args:
    builder: is sent to the process.
  """

  def __init__(self, builder: "MediaBuilder"):
    self.builder = builder
    self._process: multiprocessing.process.BaseProcess | None = None
    self._has_started = False
    self._pipe: connection.Connection | None = None

  def start(
    self, files: Sequence["MediaFile"], path: Path | None, *, crashed: Sequence[dict] = ()
  ) -> connection.Connection:
    """Begins `compute_part`; returns what becomes ready (multiprocessing.connection.wait) at its end."""
    if self._process is None:
      context = multiprocessing.get_context("spawn")
      self._pipe, theirs = context.Pipe()
      self._process = context.Process(
        target=_serve, args=(theirs, self.builder, _compilation_cache()), daemon=True
      )
      self._process.start()
      theirs.close()
    # A process that has died shows it in `finish`.
    with contextlib.suppress(BrokenPipeError):
      self._pipe.send((tuple(files), path, tuple(crashed)))
    return self._pipe

  def finish(self) -> bool:
    """Waits for news; returns whether what was begun is done; if not, the process has only now started.

    Raises:
      WorkerDiedError: the process has ended before it was done.
      ValueError: the process cannot even start.
      Exception: what `compute_part` raised.
    """
    try:
      news = self._pipe.recv()
    except (EOFError, ConnectionError):
      self._process.join()
      code, had_started = self._process.exitcode, self._has_started
      self.close()
      how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
      if not had_started:
        raise ValueError(
          f"A worker process {how} before it could begin; fewer --workers take less memory."
        ) from None
      raise WorkerDiedError(f"A worker process {how}") from None
    if news == _STARTED:
      self._has_started = True
      return False
    if news is not None:
      raise news
    return True

  def run(self, files: Sequence["MediaFile"], path: Path | None, *, crashed: Sequence[dict] = ()) -> None:
    """`start`, and `finish` until it is done."""
    self.start(files, path, crashed=crashed)
    while not self.finish():
      pass

  def close(self) -> None:
    """Ends the process, whatever it does."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._pipe.close()
      self._process, self._has_started = None, False


def _serve(pipe: connection.Connection, builder: "MediaBuilder", cache: str | None) -> None:
  """The life of a worker process."""
  threading.Thread(target=_end_with_parent, daemon=True).start()
  # Ctrl-C reaches all processes of a terminal; the first one ends us.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  use_one_core(cache)
  pipe.send(_STARTED)
  while True:
    files, path, crashed = pipe.recv()
    try:
      compute_part(builder, files, path, crashed=crashed)
    except Exception as error:
      # Users' mistakes and full disks keep their kind; the text of others may not survive the way.
      told = error if type(error) in (ValueError, FileNotFoundError, PermissionError, OSError) else None
      pipe.send(told or RuntimeError("".join(traceback.format_exception(error))))
    else:
      pipe.send(None)


def _end_with_parent() -> None:
  # A parent that was killed cannot tell its workers.
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _compilation_cache() -> str | None:
  """Where workers keep compiled programs: where this process does, by default below the user's home."""
  import jax

  folder = jax.config.jax_compilation_cache_dir
  return str(Path(folder).parent) if folder else None


class _AsItIs(example_serializer.Serializer):
  """Examples that are serialized already."""

  def serialize_example(self, example: bytes) -> bytes:
    return example


class _Progress:
  """Files done, their rate and the time left: a bar on a terminal, else a line now and then; on stderr."""

  def __init__(self, parts: Sequence[Part], missing: Sequence[Part]):
    self._total = sum(len(part.files) for part in parts)
    self._before = self._done = self._total - sum(len(part.files) for part in missing)
    self._started = self._shown = time.monotonic()
    on_terminal = sys.stderr.isatty()
    self._bar = tqdm(total=self._total, initial=self._done, unit=" files") if on_terminal else None

  def __enter__(self) -> "_Progress":
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.close()

  def add(self, part: Part) -> None:
    """A part is done."""
    self._done += len(part.files)
    if self._bar is not None:
      self._bar.update(len(part.files))
      return
    now = time.monotonic()
    if now - self._shown >= _LINE_EVERY_S or self._done == self._total:
      self._shown = now
      meter = tqdm.format_meter(
        self._done, self._total, now - self._started, unit=" files", initial=self._before, ncols=0
      )
      _say(meter.strip())


@contextlib.contextmanager
def _working_folder(folder: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
  """The folder of the parts of a dataset, for this process alone; emptied if it is of something else."""
  work = folder.with_name(f"{folder.name}.parts")
  work.mkdir(parents=True, exist_ok=True)
  with locked(work / _LOCK, busy=f"Another process is building {folder}; wait for it, or stop it."):
    # What TFDS was writing when it was killed.
    for old in folder.parent.glob(f"incomplete.*_{folder.name}"):
      _remove(old)
    path = work / _FINGERPRINT
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if before != facts:
      for old in work.iterdir():
        if old.name != _LOCK:
          old.unlink()
      if before is not None:
        changed = [name for name in facts if facts[name] != before.get(name)]
        _say(f"A build that was stopped here is begun anew, because of other {', '.join(changed)}.")
      with whole_file(path) as file:
        file.write(json.dumps(facts).encode())
    for old in work.glob(f"*{PARTIAL}"):
      old.unlink()
    yield work


def _check_splits(by_split: Mapping[str, Sequence["MediaFile"]], parts: Sequence[Part], work: Path) -> None:
  """Raises a ValueError where a split has no example: TFDS refuses to write it."""
  for split, files in by_split.items():
    footers = [_footer(work / part.name) for part in parts if part.split == split]
    if not any(footer["examples"] for footer in footers):
      reasons = Counter(row["reason"] for footer in footers for row in footer["rejected"])
      raise ValueError(
        f"None of the {len(files)} files of a split can be used "
        f"({', '.join(f'{reason}: {count}' for reason, count in reasons.items())}); give more media."
      )


def _footer(path: Path) -> dict:
  with path.open("rb") as file:
    file.seek(-_FOOTER.size, os.SEEK_END)
    size = _FOOTER.unpack(file.read())[0]
    file.seek(-_FOOTER.size - size, os.SEEK_END)
    return json.loads(file.read(size))


def _state(reader: Path | Callable[[], bytes]) -> list[int] | None:
  """What changes when a file, or a member of an archive, is replaced; None where there is no file."""
  if isinstance(reader, functools.partial):  # A member: (archive, its state, offset, size).
    return list(reader.args[1:])
  path = reader if isinstance(reader, Path) else reader.__self__  # or path.read_bytes
  try:
    facts = path.stat()
  except OSError:
    return None  # Decoding will say why.
  return [facts.st_size, facts.st_mtime_ns]


def _library_version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "none"


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _names(names: Sequence[str]) -> str:
  more = len(names) - _NAMES_IN_SENTENCE
  return ", ".join(names[:_NAMES_IN_SENTENCE]) + (f" and {more} more" if more > 0 else "")


def _sync(path: Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _remove(folder: Path) -> None:
  """Removes a folder, which is gone at once under its name."""
  if folder.exists():
    doomed = folder.with_name(f"incomplete.removed_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _say(sentence: str) -> None:
  tqdm.write(sentence, file=sys.stderr)
