"""Times detect, builds, training, evaluation, networks, serving and more; kills, floods and soaks what runs.

`benchmark voices` measures no time: it tells of voices that were never shown how often they are found.

    deepscan benchmark detect --media=clip.mp4
    deepscan benchmark build --media=/path/to/photos_and_clips
    deepscan benchmark train --output_json=train.json
    deepscan benchmark train --part=around --part=scaling
    deepscan benchmark models
    deepscan benchmark compile
    deepscan benchmark pairs
    deepscan benchmark data --data_dir=data --loader_workers=0 --loader_workers=2 --batches=10000
    deepscan benchmark evaluate --videos=1000
    deepscan benchmark resume --kills=20
    deepscan benchmark serve --part=batching --part=overhead
    deepscan benchmark batch --kills=20 --files=500
    deepscan benchmark hostile --requests=10000
    deepscan benchmark soak --minutes=30
    deepscan benchmark voices --data_dir=data --seeds=3

Ours and the reference take turns within one run, and each figure is the fastest of --repeats turns, so that a
busy machine disturbs the ratio as little as possible. References: PyAV alone in one thread for decoding,
PyTorch (the `benchmark` extra) for the network, with the layout that is faster for PyTorch. A row is
{benchmark, case, ours_s, reference_s, ratio, limit_s, device, threads}; `limit_s` is what the stage may take,
where there is a promise. Memory stands in rows of its own, {benchmark, case, ours_gb, limit_gb, device,
threads}: the most that the command and the process that decodes for it held resident at one time, the pages
that both see counted twice. Pairs are counted by the second of one processor, {benchmark, case, ours_per_s,
least_per_s, device, threads}: `least_per_s` is the promise. What stands around the training step is told as a
share of a run, {benchmark, case, ours_share, limit_share, device, threads}. What is counted when training or
a batch is killed is {benchmark, case, count, promised, device, threads}. Rows of voices are those of
benchmark_voices; what a service came to under hostile files or a long load is {benchmark, case, value, unit,
limit}, and the exit code is 1 where a limit is not kept.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from absl import app, flags

CASES = (
  "detect",
  "build",
  "train",
  "models",
  "compile",
  "pairs",
  "data",
  "evaluate",
  "resume",
  "serve",
  "batch",
  "voices",
  "hostile",
  "soak",
)
PARTS = ("step", "around", "scaling", "memory", "batching", "overhead", "keys")

_MEDIA = flags.DEFINE_string(
  "media",
  None,
  "detect: the video to time; without it a clip is made. build: a folder or tar file of media. voices: "
  "folders, between commas, one for each kind of recording, in the layout of real_fake_folder.",
  allow_override=True,
)
_FRAMES = flags.DEFINE_integer(
  "frames", 32, "detect, build, evaluate: frames looked at in a video.", lower_bound=1, allow_override=True
)
_BATCH = flags.DEFINE_multi_integer(
  "batch",
  [16, 32],
  "train: pictures in a batch; may be given several times.",
  lower_bound=2,
  allow_override=True,
)
_PART = flags.DEFINE_multi_enum(
  "part",
  PARTS,
  PARTS,
  "Of train (step, around, scaling, memory) or serve (batching, overhead, keys): what is measured; may be "
  "given several times. `memory` compiles the preset full.",
  allow_override=True,
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "data, train, evaluate, resume: where the default preset's dataset is; without it one of made pictures is "
  "built.",
  allow_override=True,
)
_WORKERS = flags.DEFINE_multi_integer(
  "loader_workers",
  [0, 2],
  "data: processes of the loader; may be given several times.",
  lower_bound=0,
  allow_override=True,
)
_BATCHES = flags.DEFINE_integer(
  "batches",
  500,
  "data: small batches that are drawn to see whether memory grows; 10000 for a thorough look.",
  lower_bound=1,
  allow_override=True,
)
_KILLS = flags.DEFINE_integer(
  "kills", 20, "resume, batch: how often the process is killed.", lower_bound=1, allow_override=True
)
_KILL_SEED = flags.DEFINE_integer(
  "kill_seed", 0, "resume, batch: of the moments of the kills.", lower_bound=0, allow_override=True
)
_FILES = flags.DEFINE_integer("files", 500, "batch: of the batch.", lower_bound=1, allow_override=True)
_BATCH_WORKERS = flags.DEFINE_integer(
  "batch_workers", 2, "batch: processes that judge.", lower_bound=1, allow_override=True
)
_VIDEOS = flags.DEFINE_integer(
  "videos", 1000, "evaluate: videos of --frames frames that are scored.", lower_bound=1, allow_override=True
)
_STATISTICS_ROWS = flags.DEFINE_integer(
  "statistics_rows",
  100_000,
  "evaluate: scores of which figures are made.",
  lower_bound=32,
  allow_override=True,
)
_SEEDS = flags.DEFINE_integer(
  "seeds", 3, "voices: how often all is drawn and fitted.", lower_bound=1, allow_override=True
)
_VOICE_PAIRS = flags.DEFINE_integer(
  "voice_pairs", 2500, "voices: pairs that each seed fits to.", lower_bound=8, allow_override=True
)
_RELATED = flags.DEFINE_multi_string(
  "related",
  [],
  "voices: engines, between commas, that share parts and so are left out together; may be given several "
  "times.",
  allow_override=True,
)
_REQUESTS = flags.DEFINE_integer(
  "requests", 10_000, "hostile: files that are sent.", lower_bound=1, allow_override=True
)
_FIRST = flags.DEFINE_integer(
  "first", 0, "hostile: number of the first one, to send one again.", lower_bound=0, allow_override=True
)
_JUDGE = flags.DEFINE_boolean(
  "judge", True, "hostile: judge what was decoded; without it files are only decoded.", allow_override=True
)
_LOAD_SEED = flags.DEFINE_integer(
  "load_seed", 0, "hostile, soak: of what is sent.", lower_bound=0, allow_override=True
)
_MINUTES = flags.DEFINE_float("minutes", 30.0, "soak: how long.", lower_bound=0.1, allow_override=True)
_PER_SECOND = flags.DEFINE_float("per_second", 3.0, "soak: requests.", lower_bound=0.1, allow_override=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each side.", lower_bound=1, allow_override=True)
_COLD = flags.DEFINE_boolean(
  "cold", True, "detect: also time the command from its start.", allow_override=True
)
_OUTPUT_JSON = flags.DEFINE_string("output_json", None, "Write the rows to this file.", allow_override=True)

# Promises, in seconds or as a multiple of the reference.
_TOTAL_OVER_DECODE = 2.2
_COLD_FIRST_S, _COLD_CACHED_S = 15.0, 6.0
_FORWARD_RATIO, _TRAIN_RATIO = 1.0, 1.0
_PEAK_MEMORY_GB = 1.5
_COMPILE_FORWARD_S, _COMPILE_STEP_S = 10.0, 30.0


@dataclasses.dataclass(frozen=True)
class Row:
  """One timing; `reference_s`, `ratio` and `limit_s` are None where there is nothing to compare with."""

  benchmark: str
  case: str
  ours_s: float
  reference_s: float | None
  ratio: float | None
  limit_s: float | None
  device: str
  threads: int


@dataclasses.dataclass(frozen=True)
class MemoryRow:
  """Resident memory, in 1e9 bytes; `limit_gb` is None where nothing is promised."""

  benchmark: str
  case: str
  ours_gb: float
  limit_gb: float | None
  device: str
  threads: int


@dataclasses.dataclass(frozen=True)
class RateRow:
  """How often something is done in a second; `least_per_s` is None where nothing is promised."""

  benchmark: str
  case: str
  ours_per_s: float
  least_per_s: float | None
  device: str
  threads: int


@dataclasses.dataclass(frozen=True)
class CountRow:
  """How often something was so; `promised` is None where nothing is."""

  benchmark: str
  case: str
  count: int
  promised: int | None
  device: str
  threads: int


@dataclasses.dataclass(frozen=True)
class ShareRow:
  """A part of a training run, 0 to 1; `limit_share` is None where nothing is promised."""

  benchmark: str
  case: str
  ours_share: float
  limit_share: float | None
  device: str
  threads: int


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark named by argv[1]; returns the exit code."""
  if len(argv) != 2 or argv[1] not in CASES:
    raise app.UsageError(f"Say which benchmark to run: {' or '.join(CASES)}.")

  from deepscan_jax import report

  runs = {
    "detect": benchmark_detect,
    "build": benchmark_build,
    "train": benchmark_train,
    "models": benchmark_models,
    "compile": benchmark_compile,
    "pairs": benchmark_pairs,
    "data": benchmark_data,
    "evaluate": benchmark_evaluate,
    "resume": benchmark_resume,
    "serve": benchmark_serve,
    "batch": benchmark_batch,
    "voices": benchmark_voices,
    "hostile": benchmark_hostile,
    "soak": benchmark_soak,
  }
  rows = runs[argv[1]]()
  if argv[1] == "voices":
    from . import benchmark_voices as voices

    print(voices.table(rows))
  elif argv[1] in ("hostile", "soak"):
    from . import watched_service

    print(watched_service.table(rows))
  else:
    print(table(rows))
  if _OUTPUT_JSON.value:
    report.write_whole(_OUTPUT_JSON.value, json.dumps([dataclasses.asdict(r) for r in rows], indent=2) + "\n")
  return 0 if all(getattr(row, "kept", True) for row in rows) else 1


def benchmark_detect() -> list[Row | MemoryRow]:
  """The stages of detect in a warm process, the network against PyTorch, and the command from a cold
  start."""
  import numpy as np

  from deepscan_jax import examples, faces, load_detector, media

  with tempfile.TemporaryDirectory() as folder:
    path = Path(_MEDIA.value) if _MEDIA.value else _make_clip(Path(folder) / "clip.mp4")
    plan = media.SamplingPlan(frame_count=_FRAMES.value)
    detector = load_detector()
    clip = media.decode_clip(path, plan=plan)
    subjects = examples.find_subjects(clip)
    window = detector.window
    cut = [e for s in subjects for e in examples.face_windows(s, clip, window=window)]
    batch = examples.stack([examples.model_inputs(e, window=window) for e in cut])
    detector.judge(batch)
    chosen = set(_frame_numbers(path, len(clip.frames)))

    reference, ours = in_turns(
      lambda: _decode_alone(str(path), chosen),
      lambda: media.decode_clip(path, plan=plan),
      repeats=_REPEATS.value,
    )
    find = in_turns(lambda: faces.find_faces(clip.frames), repeats=_REPEATS.value)[0]
    crops = in_turns(lambda: examples.find_subjects(clip), repeats=_REPEATS.value)[0] - find
    model = in_turns(lambda: detector.judge(batch), repeats=_REPEATS.value)[0]
    total, alone = in_turns(
      lambda: detector.detect(path, frames=_FRAMES.value),
      lambda: _decode_alone(str(path), chosen),
      repeats=_REPEATS.value,
    )
    count = len(batch["crop_mask"])
    rows = [
      _row("detect", f"decode {len(clip.frames)} frames (reference: PyAV alone)", ours, reference),
      _row("detect", "find faces and landmarks", find),
      _row("detect", "tracks, crops, quality", max(crops, 0.0)),
      _row("detect", f"model on {count} crops", model),
      _row("detect", "all after decoding", find + max(crops, 0.0) + model, limit_s=ours),
      _row("detect", "total, warm (reference: PyAV alone)", total, alone, limit_s=_TOTAL_OVER_DECODE * alone),
    ]
    crops32 = np.resize(batch["crops"], (32, *batch["crops"].shape[1:]))[:, 0]
    rows += _network_rows(crops32)
    if _COLD.value:
      cases = ("command, first time", _COLD_FIRST_S), ("command, compiled before", _COLD_CACHED_S)
      starts = _cold_starts(path)
      rows += [
        _row("detect", case, s, limit_s=limit) for (case, limit), (s, _) in zip(cases, starts, strict=True)
      ]
      rows += [
        MemoryRow("detect", f"memory of {case}", peak / 1e9, _PEAK_MEMORY_GB, rows[0].device, rows[0].threads)
        for (case, _), (_, peak) in zip(cases, starts, strict=True)
      ]
  return rows


def benchmark_build() -> list[Row]:
  """Building a dataset on one core and on all, against PyAV and the face models alone on the same frames."""
  if not _MEDIA.value:
    raise app.UsageError("Say which media to build from: --media=FOLDER_OR_TAR.")
  from . import benchmark_build

  return benchmark_build.build_rows(
    Path(_MEDIA.value), frames=_FRAMES.value, row=_row, repeats=_REPEATS.value, decode=_decode_alone
  )


def benchmark_train() -> list[Row | ShareRow | MemoryRow]:
  """Training steps against PyTorch's, what stands around them, virtual devices, and memory."""
  from deepscan_jax.config import load_preset

  from . import benchmark_train

  # Asked elsewhere: on an accelerator, asking takes the memory that the processes which measure need.
  device, threads = benchmark_train.in_own_process(_device), len(os.sched_getaffinity(0))
  row = functools.partial(_row_of, device=device)
  rows, parts = [], set(_PART.value)
  if "step" in parts:
    rows += _steps_against_torch(row)
  if "around" in parts:
    config = load_preset("default")
    (alone,) = _step_seconds(config.data.batch_size, with_torch=False)
    with tempfile.TemporaryDirectory() as folder:
      rows += benchmark_train.around_rows(
        config,
        _default_data(Path(folder)),
        alone_s=alone,
        row=row,
        share_row=lambda case, share, limit: ShareRow("train", case, share, limit, device, threads),
      )
  if "scaling" in parts:
    rows += benchmark_train.scaling_rows(
      make=_our_steps, in_turns=in_turns, row=functools.partial(_row_of, device="cpu"), repeats=_REPEATS.value
    )
  if "memory" in parts:
    rows += benchmark_train.memory_rows(
      memory_row=lambda case, gb: MemoryRow("train", case, gb, None, device, threads)
    )
  return rows


def _steps_against_torch(row: Callable[..., Row]) -> list[Row]:
  """A step of the default preset for each batch size, and of EfficientNet-B3."""
  from . import benchmark_models

  seconds = {f"step of the default preset, batch {size}": _step_seconds(size) for size in _BATCH.value}
  sides = {"ours": benchmark_models.our_step}
  if _reference_torch() is not None:
    sides["PyTorch"] = benchmark_models.torch_step
  for case in benchmark_models.TRAINING:
    timed = benchmark_models.timings(sides, case, in_turns=in_turns, repeats=_REPEATS.value)
    seconds[f"step of {case.title}"] = [timed[side] for side in sides]
  rows = []
  for title, (ours, *others) in seconds.items():
    best = min(others, default=None)
    title += " (reference: PyTorch)" if others else ""
    rows.append(row("train", title, ours, best, limit_s=best and _TRAIN_RATIO * best))
  return rows


def _default_data(folder: Path) -> Path:
  """Where the default preset's dataset is: what --data_dir says, or one of made pictures in the folder."""
  if _DATA_DIR.value:
    return Path(_DATA_DIR.value)
  from . import benchmark_data

  with contextlib.redirect_stdout(sys.stderr):
    return benchmark_data.make_dataset(folder)


def benchmark_models() -> list[Row]:
  """Forward passes of the networks, and a training step, against PyTorch."""
  from . import benchmark_models

  with_torch = _reference_torch() is not None
  return benchmark_models.model_rows(
    in_turns=in_turns, row=_row, repeats=_REPEATS.value, with_torch=with_torch
  )


def benchmark_compile() -> list[Row]:
  """Tracing and compiling a detector of each branch alone, as the full preset has it, by an empty cache."""
  import jax

  from deepscan_jax import train_state
  from deepscan_jax.config import load_preset
  from deepscan_jax.models.detector import Detector
  from deepscan_jax.optimizer import create_optimizer

  full = load_preset("full")
  # A cache of earlier compilations would answer in its place.
  jax.config.update("jax_enable_compilation_cache", False)
  rows = []
  for name in full.model.branches:
    config = dataclasses.replace(full, model=dataclasses.replace(full.model, branches=(name,)))
    detector = Detector(config.model)
    state = train_state.abstract_state(config)
    batch = train_state.abstract_training_batch(config.data.batch_size, config)
    forward = jax.jit(functools.partial(detector.apply, train=False))
    step = jax.jit(
      functools.partial(
        train_state.train_step,
        model=detector,
        optimizer=create_optimizer(config.train),
        config=config,
        frozen=train_state.frozen_parameters(config),
      )
    )
    for case, function, inputs, limit in (
      (f"{name}, forward", forward, (state.variables, batch), _COMPILE_FORWARD_S),
      (f"{name}, training step", step, (state, batch), _COMPILE_STEP_S),
    ):
      started = time.perf_counter()
      function.lower(*inputs).compile()
      rows.append(_row("compile", case, time.perf_counter() - started, limit_s=limit))
  return rows


def benchmark_voices() -> list:
  """How voices of engines and kinds of recordings are judged by a fit that was never shown them."""
  from deepscan_jax.config import load_preset

  from . import benchmark_voices

  config = load_preset("default_voice")
  with tempfile.TemporaryDirectory() as folder:
    data_dir = _DATA_DIR.value
    if not data_dir:
      if not _MEDIA.value:
        raise app.UsageError("Say which voices: --data_dir=DATA with real_fake_folder, or --media=FOLDER.")
      from deepscan_jax.rooms import find_builder

      data_dir = folder
      builder, form = find_builder(config.data.datasets[0])
      with contextlib.redirect_stdout(sys.stderr):
        media = [Path(path) for path in _MEDIA.value.split(",")]
        builder(config=form, media_paths=media, data_dir=Path(folder)).prepare()
    return benchmark_voices.voice_rows(
      config,
      Path(data_dir),
      seeds=_SEEDS.value,
      pairs=_VOICE_PAIRS.value,
      related=[tuple(engines.split(",")) for engines in _RELATED.value],
    )


def benchmark_pairs() -> list[RateRow]:
  """Self-blended pairs and windows before and after augmentation, in one thread."""
  from . import benchmark_pairs

  return benchmark_pairs.pair_rows(in_turns=in_turns, row=_rate_row, repeats=_REPEATS.value)


def benchmark_data() -> list[Row | RateRow | MemoryRow]:
  """Batches of the default preset against torch's loader, what training steps take, and memory over time."""
  from deepscan_jax.config import load_preset

  from . import benchmark_data

  with_torch = importlib.util.find_spec("torch") is not None
  if not with_torch:
    print("PyTorch is not installed (the `benchmark` extra), so no other loader is timed.", file=sys.stderr)
  config = load_preset("default")
  threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    return benchmark_data.data_rows(
      config,
      _default_data(Path(folder)),
      workers=_WORKERS.value,
      batches=_BATCHES.value,
      with_torch=with_torch,
      in_turns=in_turns,
      row=functools.partial(_row_of, device="cpu"),
      rate_row=lambda *args, **kwargs: dataclasses.replace(_rate_row(*args, **kwargs), threads=threads),
      memory_row=lambda case, gb, limit: MemoryRow("data", case, gb, limit, "cpu", threads),
      resident_bytes=_resident_bytes,
      consumption=_consumption,
      repeats=_REPEATS.value,
    )


def benchmark_evaluate() -> list[Row | RateRow]:
  """The figures of a card, and the scoring of prepared videos against the network alone."""
  from . import benchmark_data, benchmark_evaluate

  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    return benchmark_evaluate.evaluate_rows(
      _default_data(Path(folder)),
      dataset=benchmark_data.DATASET,
      videos=_VIDEOS.value,
      frames=_FRAMES.value,
      statistics_rows=_STATISTICS_ROWS.value,
      row=functools.partial(_row, "evaluate"),
      rate_row=lambda *args, **kwargs: dataclasses.replace(
        _rate_row("evaluate", *args, **kwargs), device=_device(), threads=len(os.sched_getaffinity(0))
      ),
    )


def benchmark_resume() -> list[CountRow]:
  """Training that is killed at random moments and goes on, against training that is left alone."""
  # Both run on the CPU, and so does what compares them.
  os.environ["JAX_PLATFORMS"] = "cpu"
  from . import benchmark_data, benchmark_resume

  threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    if _DATA_DIR.value:
      data_dir = Path(_DATA_DIR.value)
    else:
      with contextlib.redirect_stdout(sys.stderr):
        data_dir = benchmark_data.make_dataset(Path(folder))
    return benchmark_resume.resume_rows(
      data_dir.absolute(),
      kills=_KILLS.value,
      seed=_KILL_SEED.value,
      row=lambda case, count, promised: CountRow("resume", case, count, promised, "cpu", threads),
      tell=functools.partial(print, file=sys.stderr, flush=True),
    )


def benchmark_serve() -> list[Row | RateRow | ShareRow]:
  """The service's engine with many clients, against a Detector that answers one request at a time; and the
  service around it, with an engine that takes no time: what it adds, and what its refusals tell by time."""
  from . import benchmark_serve_batching, benchmark_serve_keys, benchmark_serve_overhead

  rows, parts = [], set(_PART.value)
  threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    if "overhead" in parts:
      rows += benchmark_serve_overhead.overhead_rows(
        Path(folder), row=functools.partial(_row_of, "serve", device="cpu")
      )
    if "keys" in parts:
      made = Path(folder) / "keys"
      made.mkdir()
      rows += benchmark_serve_keys.keys_rows(
        made,
        row=functools.partial(_row_of, "serve", device="cpu"),
        share_row=lambda case, share, limit: ShareRow("serve", case, share, limit, "cpu", threads),
      )
    if "batching" in parts:
      rows += benchmark_serve_batching.batching_rows(
        Path(folder),
        turns=_REPEATS.value,
        row=functools.partial(_row, "serve"),
        rate_row=lambda *args, **kwargs: dataclasses.replace(
          _rate_row("serve", *args, **kwargs), device=_device(), threads=threads
        ),
        tell=functools.partial(print, file=sys.stderr, flush=True),
      )
  return rows


def benchmark_batch() -> list[CountRow]:
  """A batch that is killed at random moments and goes on, by what its report then holds."""
  from . import benchmark_batch

  threads = len(os.sched_getaffinity(0))
  return benchmark_batch.batch_rows(
    kills=_KILLS.value,
    files=_FILES.value,
    workers=_BATCH_WORKERS.value,
    seed=_KILL_SEED.value,
    row=lambda case, count, promised: CountRow("batch", case, count, promised, "cpu", threads),
    tell=functools.partial(print, file=sys.stderr, flush=True),
  )


def benchmark_hostile() -> list:
  """A service that is sent broken and hostile files, by what it answers and what it holds in the end."""
  from . import benchmark_hostile

  return benchmark_hostile.hostile_rows(
    requests=_REQUESTS.value,
    first=_FIRST.value,
    seed=_LOAD_SEED.value,
    judge=_JUDGE.value,
    tell=functools.partial(print, file=sys.stderr, flush=True),
  )


def benchmark_soak() -> list:
  """A service under mixed load for a long time, by what it holds then."""
  from . import benchmark_soak

  return benchmark_soak.soak_rows(
    minutes=_MINUTES.value,
    per_second=_PER_SECOND.value,
    seed=_LOAD_SEED.value,
    tell=functools.partial(print, file=sys.stderr, flush=True),
  )


def _consumption() -> dict[str, float]:
  """Pictures a second that training steps take: of the default preset, and of EfficientNet-B3."""
  from deepscan_jax.config import load_preset

  from . import benchmark_models

  size, (b3,) = load_preset("default").data.batch_size, benchmark_models.TRAINING
  (step,) = _step_seconds(size, with_torch=False)
  b3_s = benchmark_models.timings(
    {"ours": benchmark_models.our_step}, b3, in_turns=in_turns, repeats=_REPEATS.value
  )["ours"]
  return {
    f"a step of the default preset, batch {size},": size / step,
    f"a step of EfficientNet-B3, {b3.size} px, batch {b3.batch},": b3.batch / b3_s,
  }


def in_turns(
  *functions: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
  """Seconds of the fastest of `repeats` runs of each function, taken in turns after one warm-up each."""
  for function in functions:
    function()
  best = [float("inf")] * len(functions)
  for _ in range(repeats):
    for i, function in enumerate(functions):
      started = clock()
      function()
      best[i] = min(best[i], clock() - started)
  return best


def table(rows: Sequence[Row | MemoryRow | RateRow | CountRow | ShareRow]) -> str:
  """The rows for people."""
  width = max(len(row.case) for row in rows)
  lines = [f"{'':<{width}}  {'ours':>9}  {'reference':>9}  {'ratio':>6}  {'limit':>9}"]
  for row in rows:
    if isinstance(row, MemoryRow):
      limit = f"{row.limit_gb:6.2f} GB" if row.limit_gb is not None else f"{'-':>9}"
      lines.append(f"{row.case:<{width}}  {row.ours_gb:6.2f} GB  {'-':>9}  {'-':>6}  {limit}")
      continue
    if isinstance(row, CountRow):
      promised = f"{row.promised:9d}" if row.promised is not None else f"{'-':>9}"
      lines.append(f"{row.case:<{width}}  {row.count:9d}  {'-':>9}  {'-':>6}  {promised}")
      continue
    if isinstance(row, ShareRow):
      limit = f"{row.limit_share:9.2%}" if row.limit_share is not None else f"{'-':>9}"
      lines.append(f"{row.case:<{width}}  {row.ours_share:9.2%}  {'-':>9}  {'-':>6}  {limit}")
      continue
    if isinstance(row, RateRow):
      digits = 0 if row.ours_per_s >= 100 else 1
      least = f"{row.least_per_s:7.{digits}f}/s" if row.least_per_s is not None else f"{'-':>9}"
      lines.append(f"{row.case:<{width}}  {row.ours_per_s:7.{digits}f}/s  {'-':>9}  {'-':>6}  {least}")
      continue
    seconds = [
      f"{s:8.3f}s" if s is not None else f"{'-':>9}" for s in (row.ours_s, row.reference_s, row.limit_s)
    ]
    ratio = f"{row.ratio:6.2f}" if row.ratio is not None else f"{'-':>6}"
    lines.append(f"{row.case:<{width}}  {seconds[0]}  {seconds[1]}  {ratio}  {seconds[2]}")
  return "\n".join([*lines, f"{rows[0].device}, {rows[0].threads} threads"])


def _row(benchmark: str, case: str, ours: float, reference: float | None = None, *, limit_s=None) -> Row:
  return _row_of(benchmark, case, ours, reference, limit_s=limit_s, device=_device())


def _row_of(
  benchmark: str, case: str, ours: float, reference: float | None = None, *, limit_s=None, device: str
) -> Row:
  return Row(
    benchmark=benchmark,
    case=case,
    ours_s=ours,
    reference_s=reference,
    ratio=None if reference is None else ours / reference,
    limit_s=limit_s,
    device=device,
    threads=len(os.sched_getaffinity(0)),
  )


def _device() -> str:
  import jax

  return jax.devices()[0].device_kind


def _rate_row(benchmark: str, case: str, ours: float, *, least_per_s: float | None = None) -> RateRow:
  # Pairs are made by NumPy, OpenCV and codecs: a processor, whatever else there is.
  return RateRow(benchmark, case, ours, least_per_s, device="cpu", threads=1)


def _network_rows(crops) -> list[Row]:
  """The backbone on 32 crops, the same parameters in both."""
  import jax
  import numpy as np

  from deepscan_jax.models.efficientnet import EfficientNet

  reference_torch = _reference_torch()
  if reference_torch is None:
    return []
  images = (crops.astype(np.float32) - 127) / 128
  network = EfficientNet("lite0", num_classes=1)
  variables = _initialised(network, images)
  apply = jax.jit(lambda variables, x: network.apply(variables, x, train=False)["logits"])

  def theirs_in(channels_last: bool):
    model = reference_torch.EfficientNet("lite0", num_classes=1).load_variables(variables)
    return functools.partial(reference_torch.make_forward(model, channels_last=channels_last), images)

  seconds = in_turns(
    lambda: np.asarray(apply(variables, images)), theirs_in(False), theirs_in(True), repeats=_REPEATS.value
  )
  ours, theirs = seconds[0], min(seconds[1:])
  return [
    _row("detect", "network on 32 crops (reference: PyTorch)", ours, theirs, limit_s=_FORWARD_RATIO * theirs)
  ]


def _step_seconds(size: int, *, with_torch: bool = True) -> list[float]:
  """Seconds of our step, and of PyTorch's in both layouts where it is installed.

  Forward, losses, backward, clipping, AdamW and the average of parameters; in turns, but each side in a
  process of its own, as it is when somebody trains: within one process the threads of one library go on
  spinning, and its allocator goes on holding pages, while the other one works.
  """
  makers, calls = [_our_steps], []
  if with_torch and _reference_torch() is not None:
    makers.append(_reference_steps)
  with contextlib.ExitStack() as workers:
    for make in makers:
      worker = concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_hold_steps, initargs=(make, size)
      )
      workers.enter_context(worker)
      calls += [
        lambda worker=worker, index=index: worker.submit(_take_step, index).result()
        for index in range(worker.submit(_count_steps).result())
      ]
    return in_turns(*calls, repeats=_REPEATS.value)


# Of a worker: the programs that it times.
_steps: list[Callable[[], object]] = []


def _hold_steps(make: Callable[[int], list], size: int) -> None:
  _steps[:] = make(size)


def _count_steps() -> int:
  return len(_steps)


def _take_step(index: int) -> None:
  _steps[index]()


def _our_steps(size: int) -> list[Callable[[], object]]:
  import jax

  from deepscan_jax import train_state
  from deepscan_jax.config import load_preset
  from deepscan_jax.models.detector import Detector
  from deepscan_jax.optimizer import create_optimizer
  from deepscan_jax.parallel import AXIS, parallel_step, replicate, split_batch

  config, batch = load_preset("default"), _training_batch(size)
  step = parallel_step(
    functools.partial(
      train_state.train_step,
      model=Detector(config.model, axis_name=AXIS),
      optimizer=create_optimizer(config.train),
      config=config,
    )
  )
  held = [replicate(train_state.create_state(config))]

  def take() -> None:
    held[0], sums = step(held[0], split_batch(batch))
    jax.block_until_ready(sums)

  return [take]


def _reference_steps(size: int) -> list[Callable[[], object]]:
  from deepscan_jax import train_state
  from deepscan_jax.config import load_preset

  from . import reference_torch

  config, batch = load_preset("default"), _training_batch(size)
  variables = train_state.create_state(config).variables

  def step(channels_last: bool) -> Callable[[], object]:
    model = reference_torch.Detector(config).load_variables(variables)
    return functools.partial(reference_torch.TrainStep(model, config, channels_last=channels_last), batch)

  return [step(channels_last) for channels_last in (False, True)]


def _training_batch(size: int) -> dict:
  import numpy as np

  rng = np.random.default_rng(0)
  return {
    "crops": rng.integers(0, 256, (size, 1, 224, 224, 3), dtype=np.uint8),
    "crop_mask": np.ones((size, 1), bool),
    "label": np.arange(size, dtype=np.int32) % 2,
    "example_mask": np.ones(size, bool),
    "region": rng.random((size, 1, 14, 14), np.float32),
  }


def _initialised(network, images) -> dict:
  import jax

  shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
  return jax.jit(lambda key: network.lazy_init(key, shape, train=False))(jax.random.key(0))


def _reference_torch():
  if importlib.util.find_spec("torch") is None:
    print(
      "PyTorch is not installed (the `benchmark` extra), so nothing is compared with it.", file=sys.stderr
    )
    return None
  from . import reference_torch

  return reference_torch


def _frame_numbers(path: Path, count: int) -> list[int]:
  """The frames that PyAV alone converts: the same as ours."""
  import av

  from deepscan_jax import media

  with av.open(str(path)) as container:
    total = sum(1 for _ in container.decode(video=0))
  return media.SamplingPlan(frame_count=count).choose(total)


def _decode_alone(source: str | BinaryIO, chosen: set[int]) -> list:
  """What decoding costs without us: PyAV, one thread, every frame decoded, the chosen ones as RGB arrays."""
  import av

  with av.open(source) as container:
    container.streams.video[0].thread_count = 1
    frames = container.decode(video=0)
    return [frame.to_ndarray(format="rgb24") for i, frame in enumerate(frames) if i in chosen]


def _cold_starts(path: Path) -> list[tuple[float, int]]:
  """Seconds and peak bytes of the command with an empty, then with a filled cache of compiled programs."""
  with tempfile.TemporaryDirectory() as cache:
    command = [
      sys.executable,
      "-m",
      f"{__package__}.detect",
      "--quiet",
      f"--compilation_cache_dir={cache}",
      str(path),
    ]
    return [_run_watched(command) for _ in range(2)]


def _run_watched(command: Sequence[str]) -> tuple[float, int]:
  """Runs a command; returns its seconds, and the most bytes that it and its children held at one time.

  Where the system does not tell of a running process (/proc), the most of any one of them since we began.
  """
  started = time.perf_counter()
  with subprocess.Popen(command) as process:
    peak = 0
    while process.poll() is None:
      peak = max(peak, _resident_bytes(process.pid))
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.02)
  seconds = time.perf_counter() - started
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return seconds, peak or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _resident_bytes(pid: int) -> int:
  """The resident memory of a process and its children, 0 where it has ended."""
  try:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
  except OSError:
    return 0
  return pages * resource.getpagesize() + sum(map(_resident_bytes, children))


def _make_clip(path: Path) -> Path:
  """A 10 s 1080p clip of a moving portrait, as the demo moves it."""
  import cv2
  import numpy as np

  from . import demo

  there = [cv2.resize(frame, (1080, 1080)) for frame in demo.move_camera(demo.sample_portrait())]
  moves = (there + there[::-1]) * 2
  frames = [np.pad(frame, ((0, 0), (420, 420), (0, 0)), mode="edge") for frame in moves[:250]]
  demo.write_clip(path, frames)
  return path
