"""How fast prepared examples become batches, and what that costs in memory: `deepscan benchmark data`.

Our loader and torch's (the `benchmark` extra) read the same examples of the same array_record and do the same
to them by the same code, in turns, each in a process of its own. Before a turn's clock starts, what was made
ahead while the other side worked is drawn off. Without workers ours makes batches ahead in two threads, as
it does in training, and torch's makes them when they are asked for: there the columns differ in what they
are, with workers they do not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from deepscan_jax import data, faces
from deepscan_jax.config import Config, DataConfig

DATASET = "real_only"
PICTURES = 48
# Batches that are timed in one turn, and drawn off before.
TIMED, DRAWN_OFF = 30, 12
# What a training run may grow by, from its first batches to its last.
MOST_GROWTH_GB = 0.2
# Examples of a small batch, both twins counted, and batches until all caches are filled.
SMALL_BATCH, SETTLED = 2, 100

Make = Callable[[dict, np.random.Generator], dict]


@dataclasses.dataclass(frozen=True)
class Case:
  """Who carries what to batches.

  Attributes:
    carrier: "ours" or "torch".
    work: "cut": decode, and cut for evaluation; "pairs": as training does.
    workers: processes of the loader.
    config: of the data.
    data_dir: where the dataset is.
  """

  carrier: str
  work: str
  workers: int
  config: DataConfig
  data_dir: str


class Watch:
  """A clock that is put forward by hand; for `in_turns`, whose functions also do what is not timed."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self) -> float:
    """The seconds so far."""
    return self.seconds


def data_rows(
  config: Config,
  data_dir: Path,
  *,
  workers: Sequence[int],
  batches: int,
  with_torch: bool,
  in_turns: Callable,
  row: Callable,
  rate_row: Callable,
  memory_row: Callable,
  resident_bytes: Callable[[int], int],
  consumption: Callable[[], dict[str, float]],
  repeats: int,
) -> list:
  """The rows of the benchmark, for launch.benchmark, whose `in_turns`, rows and `_resident_bytes` these are.

  Args:
    config: a preset that reads faces.
    data_dir: where its dataset is.
    workers: numbers of loader processes to try.
    batches: small ones that are drawn to see whether memory grows.
    with_torch: whether torch is installed.
    consumption: measures what training steps take, by name, in pictures a second.
    repeats: turns.
  """
  size, taken = config.data.batch_size, consumption()
  least = min(taken.values(), default=None)
  rows = []
  for count in workers:
    for work, words in (("pairs", "pairs as in training"), ("cut", "decode and cut")):
      ours = Case("ours", work, count, config.data, str(data_dir))
      cases = [ours, dataclasses.replace(ours, carrier="torch")] if with_torch else [ours]
      seconds = batch_seconds(cases, in_turns=in_turns, repeats=repeats)
      title = f"{words}, workers {count}"
      if work == "pairs":
        rows.append(rate_row("data", f"{title}: pictures", size / seconds[0], least_per_s=least))
        rows.append(rate_row("data", f"{title}: batches of {size}", 1 / seconds[0]))
      reference = 100 * seconds[1] if with_torch else None
      words = " (reference: DataLoader)" if with_torch else ""
      rows.append(row("data", f"{title}: 100 batches{words}", 100 * seconds[0], reference))
  rows += [rate_row("data", f"{name} takes: pictures", rate) for name, rate in taken.items()]
  for count in workers:
    small = Case(
      "ours", "pairs", count, dataclasses.replace(config.data, batch_size=SMALL_BATCH), str(data_dir)
    )
    first, last = in_own_process(small, functools.partial(_memory, batches=batches, measure=resident_bytes))
    title = f"memory, workers {count}, after"
    rows.append(memory_row(f"{title} {SETTLED} batches of {SMALL_BATCH}", first, None))
    rows.append(memory_row(f"{title} {batches}", last, first + MOST_GROWTH_GB))
  return rows


def batch_seconds(cases: Sequence[Case], *, in_turns: Callable, repeats: int) -> list[float]:
  """Seconds of a batch of each case, in turns, each in a process of its own."""
  watch = Watch()

  def take(worker: concurrent.futures.Executor) -> None:
    watch.seconds += worker.submit(_seconds).result()

  with contextlib.ExitStack() as stack:
    turns = [functools.partial(take, stack.enter_context(_process(case))) for case in cases]
    return [seconds / TIMED for seconds in in_turns(*turns, repeats=repeats, clock=watch)]


def in_own_process(case: Case, function: Callable[[], object]):
  """What a function of this module returns in a process that loads a case."""
  with _process(case) as worker:
    return worker.submit(function).result()


def batch_iterator(case: Case) -> Iterator[dict]:
  """Endless batches of a case."""
  config = dataclasses.replace(case.config, workers=case.workers)
  if case.carrier == "ours" and case.work == "pairs":
    return iter(data.train_dataset(config, data_dir=case.data_dir, seed=0))
  source = data.ExampleSource(
    config.datasets, "train", case.data_dir, labels=(0,), source_weights=config.source_weights
  )
  maker = data.PairMaker(config)
  make, rows = (maker.random_map, 2) if case.work == "pairs" else (cut, 1)
  if case.carrier == "torch":
    from . import reference_torch_data

    return reference_torch_data.batches(
      source, make, batch_size=config.batch_size // rows, workers=case.workers
    )
  dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat().random_map(_Cut())
  return iter(data.batched(dataset, rows=rows, config=config))


def cut(element: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """The plain crops of an example: crops [1, frame, 224, 224, 3]."""
  del rng
  return {"crops": faces.eval_crop(element["faces"])[None]}


class _Cut(grain.transforms.RandomMap):
  def random_map(self, element: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    data.use_one_thread()
    return cut(element, rng)


def make_dataset(folder: Path) -> Path:
  """Builds real_only of views of the demo's portrait; returns the data folder."""
  import cv2

  from deepscan_jax.rooms import find_builder

  from . import demo

  portrait, rng = demo.sample_portrait(), np.random.default_rng(0)
  side = min(portrait.shape[:2])
  media = folder / "media" / "portraits"
  media.mkdir(parents=True)
  for number in range(PICTURES):
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-8, 8), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * side
    view = cv2.warpAffine(portrait, matrix, portrait.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    # Unlike each other, or all would be copies of one group, which has one split.
    view = np.clip(view * rng.uniform(0.7, 1.2) + rng.normal(0, 12, view.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(media / f"{number:03d}.png"), view[..., ::-1])
  builder, config = find_builder(DATASET)
  builder(config=config, media_paths=[media.parent], data_dir=folder / "data").prepare()
  return folder / "data"


def _process(case: Case) -> concurrent.futures.ProcessPoolExecutor:
  context = multiprocessing.get_context("spawn")
  return concurrent.futures.ProcessPoolExecutor(1, context, initializer=_hold, initargs=(case,))


# Of a process: what it draws from.
_held: list[Iterator[dict]] = []


def _hold(case: Case) -> None:
  from absl import flags

  # The processes of our loader ask for the flags of this one.
  flags.FLAGS.mark_as_parsed()
  _held[:] = [batch_iterator(case)]


def _draw(count: int) -> None:
  for _ in range(count):
    next(_held[0])


def _seconds() -> float:
  _draw(DRAWN_OFF)
  started = time.perf_counter()
  _draw(TIMED)
  return time.perf_counter() - started


def _memory(*, batches: int, measure: Callable[[int], int]) -> tuple[float, float]:
  """1e9 bytes that this process and those of its loader hold when all is settled, and after all batches."""
  settled = min(SETTLED, batches)
  _draw(settled)
  first = measure(os.getpid()) / 1e9
  _draw(batches - settled)
  return first, measure(os.getpid()) / 1e9
