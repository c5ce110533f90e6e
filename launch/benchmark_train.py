"""What stands around the training step, virtual devices, and memory: parts of `deepscan benchmark train`.

Around: a real `training.fit` of the default preset runs for some steps in a process of its own, with a watch
on its main thread: on the batches that it waits for, and on whatever the modules that save and log do for it.
What such seconds cost at each step, each save, each validation and once in a run makes their share of a run
of the preset's own length. That run is counted as its steps alone; validations would only make shares
smaller. What is written in the background takes cores from the steps beside it; one row says what saving
would take if nothing of it ran beside them.

Scaling: steps of the default preset with the same batch on each of 1, 2, 4 and 8 virtual devices. They share
the cores, so the time of an example should stay what it is with one.

Memory: what a compiled step of the preset `full` needs, and the most that a process held which has compiled
it and taken two, where the machine has that much.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import inspect
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from deepscan_jax.config import Config

# Promises, as shares of a step or of a run, and of the time of an example on one device.
MOST_DATA, MOST_SAVING, MOST_LOGGING = 0.05, 0.02, 0.01
MOST_SCALING = 1.1
# The modules of the library whose time, on the main thread, is that of saving and of logging.
SAVING = ("checkpoints",)
LOGGING = ("logs", "run_watch", "training_pictures", "training_report")

DEVICES, EACH, SHOWN_EXAMPLES = (1, 2, 4, 8), 4, 16
FULL_BATCH, STEPS = 4, 2
_DEVICES_FLAG = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long the watched run is.

  Attributes:
    warm: steps that are not counted: compilation, and what was made ahead meanwhile.
    counted: steps after them. Both are multiples of the steps between two lines of the log, which wait until
      all is computed that was asked for.
    save_every: steps; some of those that are counted save.
  """

  warm: int = 20
  counted: int = 60
  save_every: int = 40

  @property
  def validate_every(self) -> int:
    """The step after those that are counted validates."""
    return self.warm + self.counted + 1

  @property
  def steps(self) -> int:
    """All steps; the last one saves, validates and ends the run."""
    return self.validate_every + 1


@dataclasses.dataclass(frozen=True)
class Costs:
  """Seconds of one thing, by what they come with."""

  step: float
  save: float
  validation: float
  once: float

  def in_run(self, config: Config) -> float:
    """Seconds in a run of the configuration's own length."""
    train = config.train
    saves, validations = train.steps // train.save_every, train.steps // train.validate_every
    return self.step * train.steps + self.save * saves + self.validation * validations + self.once


@dataclasses.dataclass(frozen=True)
class Around:
  """What a watched run showed: seconds of a step, all but saving, and of what stands around it.

  A batch may be waited for while the step before it is still computed: no more is lost than `data` says, and
  `idle` is what was lost, the share of the time in which the devices had nothing to do for want of a batch
  (logs.Pace).
  """

  step_s: float
  data: Costs
  saving: Costs
  logging: Costs
  idle: float = 0.0

  def share(self, costs: Costs, config: Config) -> float:
    """Of a run of the configuration's own length, counted as its steps alone."""
    return costs.in_run(config) / (self.step_s * config.train.steps)


class Watch:
  """Seconds that the thread which made it spends in what it watches, by name.

  What is watched inside of something that is watched counts for itself alone.

  Attributes:
    spent: (name, moment at which it ended, seconds), in order.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self.spent: list[tuple[str, float, float]] = []
    self._clock, self._thread = clock, threading.get_ident()
    self._inside: list[float] = []

  def wrap(self, name: str, function: Callable) -> Callable:
    """The function, its seconds noted under the name."""

    @functools.wraps(function)
    def watched(*args, **kwargs):
      if threading.get_ident() != self._thread:
        return function(*args, **kwargs)
      started = self._clock()
      self._inside.append(0.0)
      try:
        return function(*args, **kwargs)
      finally:
        ended = self._clock()
        within = self._inside.pop()
        self.spent.append((name, ended, ended - started - within))
        if self._inside:
          self._inside[-1] += ended - started

    return watched


class _WatchedDataset:
  """A grain dataset whose iterators are watched, each under a name of its own."""

  def __init__(self, dataset, watch: Watch, names: list[str]):
    self._dataset, self._watch, self._names = dataset, watch, names

  def __getattr__(self, name: str):
    return getattr(self._dataset, name)

  def __iter__(self) -> Iterator:
    iterator, name = iter(self._dataset), f"data {len(self._names)}"
    self._names.append(name)
    kind = type(iterator)
    # It stays the iterator that it was: checkpoints look at what they are given.
    iterator.__class__ = type(
      kind.__name__, (kind,), {"__slots__": (), "__next__": self._watch.wrap(name, kind.__next__)}
    )
    return iterator


def around_rows(
  config: Config, data_dir: Path, *, alone_s: float | None, share_row: Callable, row: Callable
) -> list:
  """The rows of what stands around the step, for launch.benchmark, whose rows these are.

  Args:
    config: of the run; its length is that of the run whose shares these are.
    data_dir: where its dataset is.
    alone_s: seconds of its step with a batch that is there, where they were measured.
  """
  around = in_own_process(functools.partial(watch_fit, config, str(data_dir), plan=Plan()))
  saves = config.train.steps // config.train.save_every
  # The last save of a run, with what opens and what ends it, all waited for.
  waited = around.saving.once * saves / (around.step_s * config.train.steps)
  return [
    row(
      "train", f"step in the loop, batch {config.data.batch_size} (reference: alone)", around.step_s, alone_s
    ),
    share_row("devices without a batch / run time", around.idle, MOST_DATA),
    share_row("waiting for a batch, also beside a step / step", around.share(around.data, config), None),
    share_row("checkpointing / run time", around.share(around.saving, config), MOST_SAVING),
    share_row("checkpointing, if nothing of it ran beside the steps / run time", waited, None),
    share_row("logging / run time", around.share(around.logging, config), MOST_LOGGING),
  ]


def watch_fit(config: Config, data_dir: str, *, plan: Plan) -> Around:
  """Trains for some steps in a folder that is then removed, and says what stood around the steps."""
  from absl import flags

  from deepscan_jax import data, logs, run_watch, training

  # The processes of the loader ask for the flags of this one.
  flags.FLAGS.mark_as_parsed()
  lengths = {"steps": plan.steps, "save_every": plan.save_every, "validate_every": plan.validate_every}
  short = dataclasses.replace(
    config, train=dataclasses.replace(config.train, **lengths, epochs=0, restarts=(), patience=0)
  )
  watch, names = Watch(), []
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    make = data.train_dataset
    stack.enter_context(
      mock.patch.object(data, "train_dataset", lambda *a, **k: _WatchedDataset(make(*a, **k), watch, names))
    )
    for name, modules in (("saving", SAVING), ("logging", LOGGING)):
      _watch_modules(watch, name, modules, training, stack)
    training.fit(short, workdir=folder, data_dir=data_dir)
    rows = logs.read_scalars(Path(folder) / run_watch.SCALARS_FILE)
  # What was measured since the row before; the first of them looks back on the start.
  waits = [row["time/data_wait"] for row in rows if row["step"] > plan.warm and "time/data_wait" in row]
  return dataclasses.replace(costs_around(watch.spent, plan=plan), idle=float(np.mean(waits or [0.0])))


def costs_around(spent: Sequence[tuple[str, float, float]], *, plan: Plan) -> Around:
  """Reads a watched run.

  Args:
    spent: of the `Watch`; names "saving", "logging", and "data N" for the iterators of batches.
    plan: of the run.

  Raises:
    ValueError: no iterator gave a batch for each step.
  """
  iterators = {name for name, _, _ in spent if name.startswith("data ")}
  got = {name: [(end, seconds) for n, end, seconds in spent if n == name] for name in iterators}
  # Another one may have been asked for a batch to measure statistics on.
  batches = max(got.values(), key=len, default=[])
  if len(batches) < plan.steps:
    raise ValueError(f"The run took {len(batches)} batches and not one for each of its {plan.steps} steps.")
  starts = [end for end, _ in batches]
  by_step = {name: np.zeros(plan.steps + 1) for name in ("data", "saving", "logging")}
  for step, (_, seconds) in enumerate(batches[: plan.steps], start=1):
    by_step["data"][step] = seconds
  for name, end, seconds in spent:
    if name in ("saving", "logging"):
      # A call belongs to the step whose batch was the last before its end; 0: before the first.
      by_step[name][min(bisect.bisect_right(starts, end), plan.steps)] += seconds

  counted = np.arange(plan.warm + 1, plan.warm + plan.counted + 1)
  saves = counted % plan.save_every == 0
  # Not the batch after a pause, which was made meanwhile.
  waiting = counted[(counted - 1) % plan.save_every != 0]
  # From the first counted step's batch to the batch after the last one's.
  whole = starts[plan.warm + plan.counted] - starts[plan.warm]

  def costs(name: str, *, step: float, save: float = 0.0) -> Costs:
    seconds = by_step[name]
    validation = max(float(seconds[plan.validate_every]) - step, 0.0)
    return Costs(step=step, save=save, validation=validation, once=float(seconds[0] + seconds[-1]))

  saving = by_step["saving"][counted]
  plain = float(saving[~saves].mean())
  return Around(
    step_s=(whole - float(saving.sum())) / plan.counted,
    data=Costs(step=float(by_step["data"][waiting].mean()), save=0.0, validation=0.0, once=0.0),
    saving=costs("saving", step=plain, save=float(saving[saves].mean()) - plain),
    logging=costs("logging", step=float(by_step["logging"][counted].mean())),
  )


def _watch_modules(
  watch: Watch, name: str, modules: Sequence[str], user, stack: contextlib.ExitStack
) -> None:
  """Watches the functions of modules that `user` has imported by name, and the methods of the classes."""
  owners = {f"deepscan_jax.{module}" for module in modules}
  for key, value in list(vars(user).items()):
    if getattr(value, "__module__", None) not in owners:
      continue
    if inspect.isfunction(value):
      stack.enter_context(mock.patch.object(user, key, watch.wrap(name, value)))
    elif inspect.isclass(value):
      for method, function in list(vars(value).items()):
        if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
          stack.enter_context(mock.patch.object(value, method, watch.wrap(name, function)))


def scaling_rows(*, make: Callable[[int], list], in_turns: Callable, row: Callable, repeats: int) -> list:
  """The rows of virtual devices, for launch.benchmark, whose `in_turns` and rows these are.

  Args:
    make: examples in a batch -> [a call that takes one step], on all devices of the process.
  """
  with contextlib.ExitStack() as workers:
    calls = []
    for devices in DEVICES:
      worker = workers.enter_context(_process())
      worker.submit(_hold_steps, devices, make).result()
      calls.append(functools.partial(_ask, worker))
    seconds = in_turns(*calls, repeats=repeats)
  # The same number of examples in each row.
  times = [SHOWN_EXAMPLES * s / (EACH * devices) for devices, s in zip(DEVICES, seconds, strict=True)]
  title = f"{SHOWN_EXAMPLES} examples on {{}}, {EACH} on each"
  rows = [row("train", title.format("1 virtual device"), times[0])]
  for devices, time_s in zip(DEVICES[1:], times[1:], strict=True):
    name = title.format(f"{devices} virtual devices") + " (reference: on 1)"
    rows.append(row("train", name, time_s, times[0], limit_s=MOST_SCALING * times[0]))
  return rows


def with_virtual_devices(xla_flags: str, devices: int) -> str:
  """The XLA_FLAGS with so many virtual CPU devices, in place of the number that they may say already."""
  kept = re.sub(rf"(^|\s){_DEVICES_FLAG}=\S*", " ", xla_flags)
  return " ".join([*kept.split(), f"{_DEVICES_FLAG}={devices}"])


def memory_rows(*, memory_row: Callable) -> list:
  """The rows of memory, for launch.benchmark, whose row this is."""
  from deepscan_jax.config import load_preset

  full, rows = load_preset("full"), []
  # At once, and one example after the other.
  for parts in (1, FULL_BATCH):
    config = dataclasses.replace(full, train=dataclasses.replace(full.train, accumulate=parts))
    needed, peak = in_own_process(functools.partial(peak_of_steps, config, FULL_BATCH))
    what = f"of a training step of the preset full, batch {FULL_BATCH}"
    what += f", train.accumulate={parts}" if parts > 1 else ""
    rows.append(memory_row(f"arguments, results and temporaries {what}", needed))
    if peak is None:
      print(f"This machine has too little memory to take {what[3:]}.", file=sys.stderr)
    else:
      rows.append(memory_row(f"peak memory, with the compiler, {what}", peak))
  return rows


def peak_of_steps(config: Config, size: int) -> tuple[float, float | None]:
  """What training steps on `size` examples of made numbers take of memory.

  Returns:
    1e9 bytes that the compiled step says it needs on each device, and those that this process has held at
    most once it has taken some; None where there were not as many.
  """
  import jax

  from deepscan_jax import train_state
  from deepscan_jax.models.detector import Detector
  from deepscan_jax.optimizer import create_optimizer
  from deepscan_jax.parallel import AXIS, parallel_step, replicate, split_batch

  # Numbers other than 0, whose pages nobody would have to hold.
  state = replicate(jax.tree.map(_filled, train_state.abstract_state(config)))
  batch = jax.tree.map(_filled, train_state.abstract_training_batch(size, config))
  step = parallel_step(
    functools.partial(
      train_state.train_step,
      model=Detector(config.model, axis_name=AXIS),
      optimizer=create_optimizer(config.train),
      config=config,
      frozen=train_state.frozen_parameters(config),
    )
  )
  batch = split_batch(batch)
  compiled = step.lower(state, batch).compile()
  sizes = compiled.memory_analysis()
  needed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  needed = (needed - sizes.alias_size_in_bytes) / 1e9
  try:
    for _ in range(STEPS):
      state, sums = compiled(state, batch)
      jax.block_until_ready(sums)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return needed, None
  return needed, peak_bytes() / 1e9


def peak_bytes() -> int:
  """The most memory that this process has held resident since it was started."""
  # What getrusage says begins with the memory of the process that started this one.
  with contextlib.suppress(OSError):
    match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match:
      return int(match[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(function: Callable[[], object]):
  """What a function returns in a process of its own."""
  with _process() as worker:
    return worker.submit(function).result()


def _process() -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _filled(shape) -> np.ndarray:
  return np.full(shape.shape, 0.01 if np.dtype(shape.dtype).kind == "f" else 1, shape.dtype)


# Of a process: the steps that it times.
_steps: list[Callable[[], object]] = []


def _hold_steps(devices: int, make: Callable[[int], list]) -> None:
  # Read when JAX first looks for devices.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = with_virtual_devices(os.environ.get("XLA_FLAGS", ""), devices)
  import jax

  if jax.local_device_count() != devices:
    raise RuntimeError(f"Asked for {devices} virtual devices, got {jax.local_device_count()}.")
  _steps[:] = make(EACH * devices)


def _ask(worker: concurrent.futures.Executor) -> None:
  worker.submit(_take_step).result()


def _take_step() -> None:
  _steps[0]()
