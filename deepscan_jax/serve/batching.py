"""Rows of many callers in one batch.

A `Batcher` runs networks, one batch after the other in each of its threads. Callers hand in rows and wait.
The next batch is taken from whoever waits longest; of a network whose batches are shared, every caller gives
one row in turn until the batch is full, so that many rows of one caller do not keep the single row of another
waiting. Sizes of batches are those that are compiled; which one begins the quickest way through the rows that
wait is worked out from what each was measured to cost: where a batch of eight takes eight times as long as
one row, as on most CPUs, nobody waits for another, and nothing is padded.

What fails, fails for its own caller: a batch that cannot be run is run again, each caller's part alone.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

# Of two ways through the rows that take about as long, the one that takes more of them first.
_ABOUT_AS_LONG = 1.03
_MEASURED_TURNS = 3


class Closed(Exception):
  """The batcher was closed while rows waited."""


class Network:
  """A compiled network, as a `Batcher` runs it.

  Args:
    name: for `Batcher.stats`.
    run: called with a batch, by key an array [size, ...]; gives a tree of arrays [size, ...].
    sizes: for which it is compiled.
    shared: whether rows of several callers may lie in one batch. Where not, all of a caller's rows go through
      batches of one size, the smallest that holds them or the largest there is, the last one padded: by their
      number alone, and as a Detector runs them (faces.network.run_in_batches), so that they get the same
      answers to the last bit.
    costs: seconds by size; None takes one second a row, as `measure` would find where batches do not pay.
  """

  def __init__(
    self,
    name: str,
    run: Callable[[dict[str, np.ndarray]], Any],
    *,
    sizes: Sequence[int],
    shared: bool = True,
    costs: Mapping[int, float] | None = None,
  ):
    self.name, self.run, self.shared = name, run, shared
    self.sizes = tuple(sorted(sizes))
    self.costs = dict(costs or {size: float(size) for size in self.sizes})
    # Callers whose rows wait or run.
    self.callers = 0

  def measure(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Sets `costs` by running every size on zeros; where nobody goes by them, each runs just once.

    Args:
      shapes: by key shape and dtype of a row.
    """
    for size in self.sizes:
      batch = {key: np.zeros((size, *shape), dtype) for key, (shape, dtype) in shapes.items()}
      taken = []
      for _ in range(1 + _MEASURED_TURNS * self.shared):  # the first is slower than all that follow
        started = time.perf_counter()
        jax.tree.map(np.asarray, self.run(batch))
        taken.append(time.perf_counter() - started)
      self.costs[size] = min(taken)

  @property
  def best_size(self) -> int:
    """The smallest size whose rows cost about as little as they ever do."""
    least = min(cost / size for size, cost in self.costs.items())
    return next(size for size in self.sizes if self.costs[size] / size <= _ABOUT_AS_LONG * least)

  def size_for(self, rows: int) -> int:
    """The size of the batch that begins the quickest way through so many rows.

    Where batches are not shared: of the batches of a caller who has handed in so many.
    """
    if not self.shared:
      return next((size for size in self.sizes if size >= rows), self.sizes[-1])
    # The least seconds for 0, 1, ... rows.
    least = [0.0]
    for count in range(1, rows + 1):
      least.append(min(self.costs[size] + least[max(count - size, 0)] for size in self.sizes))
    quick = [
      size
      for size in self.sizes
      if self.costs[size] + least[max(rows - size, 0)] <= _ABOUT_AS_LONG * least[rows]
    ]
    return max(quick, key=lambda size: (min(size, rows), -size))


@dataclasses.dataclass(eq=False)
class _Caller:
  """Whose rows wait: how many there are and were taken, and what came back, by the first row of each part."""

  network: Network
  rows: dict[str, np.ndarray]
  total: int
  arrived_s: float
  taken: int = 0
  answered: int = 0
  answers: dict[int, Any] = dataclasses.field(default_factory=dict)
  done: Future = dataclasses.field(default_factory=Future)

  @property
  def left(self) -> int:
    return self.total - self.taken


@dataclasses.dataclass(frozen=True)
class _Part:
  """Rows start to start + count of a caller."""

  caller: _Caller
  start: int
  count: int


class Batcher:
  """Threads that run batches; close it at the end.

  Args:
    threads: how many batches run at a time: several on a CPU, whose small operations leave processors idle;
      two on an accelerator, so that one batch is handed over while the other is computed.
    max_wait_s: how long rows wait for others where more in a batch cost less each, and more are coming.
    callers: how many callers there are in all, with those that have not handed in anything yet.
  """

  def __init__(self, *, threads: int = 1, max_wait_s: float = 0.0, callers: Callable[[], int] = lambda: 0):
    self._max_wait_s, self._callers = max_wait_s, callers
    self._changed = threading.Condition()
    self._turns: collections.deque[_Caller] = collections.deque()
    self._closed = False
    self._batches: collections.Counter[str] = collections.Counter()
    self._counted: collections.Counter[str] = collections.Counter()
    self._threads = [threading.Thread(target=self._work, name="batches", daemon=True) for _ in range(threads)]
    for thread in self._threads:
      thread.start()

  def run(self, network: Network, rows: dict[str, np.ndarray]) -> Any:
    """Waits for what the network says of rows, and returns it: a tree of arrays [row, ...].

    Args:
      network: with the same object, rows may share a batch.
      rows: by key an array [row, ...], at least one row.

    Raises:
      Closed: the batcher is, or was meanwhile.
      Whatever the network raises on these rows.
    """
    caller = _Caller(network, rows, len(next(iter(rows.values()))), time.monotonic())
    with self._changed:
      if self._closed:
        raise Closed("The batcher is closed.")
      network.callers += 1
      self._turns.append(caller)
      self._changed.notify()
    try:
      caller.done.result()
    finally:
      with self._changed:
        network.callers -= 1
    parts = [caller.answers[start] for start in sorted(caller.answers)]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

  def close(self) -> None:
    """Ends the threads once their batches are through; rows that still wait raise Closed."""
    with self._changed:
      self._closed = True
      waiting, self._turns = list(self._turns), collections.deque()
      self._changed.notify_all()
    for caller in waiting:
      _fail(caller, Closed("The batcher was closed."))
    for thread in self._threads:
      thread.join()

  def stats(self) -> dict[str, Any]:
    """Counts since the start: "batches" by network and size, "rows", "padded_rows", "batch_seconds"; and
    "waiting_rows" now."""
    with self._changed:
      return {
        "batches": dict(self._batches),
        "rows": int(self._counted["rows"]),
        "padded_rows": int(self._counted["padded"]),
        "batch_seconds": float(self._counted["seconds"]),
        "waiting_rows": sum(caller.left for caller in self._turns),
      }

  def _work(self) -> None:
    while True:
      with self._changed:
        while not isinstance(found := self._take(), tuple):
          if self._closed:
            return
          self._changed.wait(found)
      network, parts, size = found
      self._run(network, parts, size)

  def _take(self) -> tuple[Network, list[_Part], int] | float | None:
    """The next batch; or for how many seconds to wait for it, None until something changes."""
    now, due_s = time.monotonic(), None
    looked_at = set()
    for first in self._turns:
      network = first.network
      if network in looked_at:
        continue
      looked_at.add(network)
      waiting = [c for c in self._turns if c.network is network] if network.shared else [first]
      rows = min(sum(caller.left for caller in waiting), network.sizes[-1])
      if network.shared and rows < network.best_size and self._callers() > network.callers:
        until_s = min(caller.arrived_s for caller in waiting) + self._max_wait_s
        if until_s > now:
          due_s = until_s if due_s is None else min(due_s, until_s)
          continue
      size = network.size_for(rows if network.shared else first.total)
      return network, self._parts(waiting, min(size, rows)), size
    return None if due_s is None else due_s - now

  def _parts(self, waiting: list[_Caller], count: int) -> list[_Part]:
    """Takes so many rows off those who wait, one of each in turn, and puts behind the others who has more."""
    taken: collections.Counter[_Caller] = collections.Counter()
    while count:
      for caller in waiting:
        if count and caller.left > taken[caller]:
          taken[caller] += 1
          count -= 1
    parts = []
    for caller, rows in taken.items():
      if not rows:
        continue
      parts.append(_Part(caller, caller.taken, rows))
      caller.taken += rows
      self._turns.remove(caller)
      if caller.left:
        self._turns.append(caller)
        self._changed.notify()
    return parts

  def _run(self, network: Network, parts: list[_Part], size: int) -> None:
    started = time.perf_counter()
    try:
      answer = jax.tree.map(np.asarray, network.run(_joined(parts, size)))
    except Exception as error:  # a caller's, whatever it is: this thread goes on
      if len(parts) == 1:
        with self._changed:
          if parts[0].caller in self._turns:
            self._turns.remove(parts[0].caller)
        _fail(parts[0].caller, error)
        return
      for part in parts:
        self._run(network, [part], next(s for s in network.sizes if s >= part.count))
      return
    with self._changed:
      self._batches[f"{network.name} {size}"] += 1
      used = sum(part.count for part in parts)
      self._counted.update(rows=used, padded=size - used, seconds=time.perf_counter() - started)
    begin = 0
    for part in parts:
      self._answer(part, jax.tree.map(lambda x, a=begin, b=begin + part.count: x[a:b], answer))
      begin += part.count

  def _answer(self, part: _Part, answer: Any) -> None:
    caller = part.caller
    with self._changed:
      caller.answers[part.start] = answer
      caller.answered += part.count
      complete = caller.answered == caller.total and not caller.done.done()
    if complete:
      caller.done.set_result(None)


def _fail(caller: _Caller, error: Exception) -> None:
  if not caller.done.done():
    caller.done.set_exception(error)


def _joined(parts: list[_Part], size: int) -> dict[str, np.ndarray]:
  """The rows of the parts, one after the other, then zeros up to `size`."""
  first = parts[0].caller.rows
  batch = {key: np.zeros((size, *rows.shape[1:]), rows.dtype) for key, rows in first.items()}
  begin = 0
  for part in parts:
    for key, into in batch.items():
      rows = part.caller.rows[key][part.start : part.start + part.count]
      if rows.shape[1:] != into.shape[1:] or rows.dtype != into.dtype:
        raise ValueError(
          f"Rows of {key} are {rows.dtype} {rows.shape[1:]} and {into.dtype} {into.shape[1:]}."
        )
      into[begin : begin + part.count] = rows
    begin += part.count
  return batch
