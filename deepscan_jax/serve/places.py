"""How much of one kind may be under way at once, in all and of each key."""

import contextlib
from collections.abc import Iterator

from prometheus_client import Gauge

from deepscan_jax.serve.problems import Problem


class Places:
  """Places that are taken and given back, in one thread.

  Args:
    most, most_of_key: how many there are, in all and for each key.
    full: what is said when all are taken; a sentence.
    full_of_key: likewise when a key has all of its own; "{}" stands for how many.
    again_s: seconds after which it makes sense to come again.
    gauge: shows how many are taken.
  """

  def __init__(
    self, most: int, most_of_key: int, *, full: str, full_of_key: str, again_s: float, gauge: Gauge
  ):
    self._most, self._most_of_key = most, most_of_key
    self._full, self._full_of_key, self._again_s = full, full_of_key, again_s
    self._gauge = gauge
    self._of_key: dict[str, int] = {}
    self._in_all = 0

  @contextlib.contextmanager
  def take(self, key_id: str) -> Iterator[None]:
    """Takes a place while the block runs.

    Raises:
      Problem: there is none.
    """
    mine = self._of_key.get(key_id, 0)
    if self._in_all >= self._most:
      raise Problem("busy", self._full, retry_after_s=self._again_s)
    if mine >= self._most_of_key:
      raise Problem("busy", self._full_of_key.format(mine), retry_after_s=self._again_s)
    self._in_all, self._of_key[key_id] = self._in_all + 1, mine + 1
    self._gauge.set(self._in_all)
    try:
      yield
    finally:
      self._in_all -= 1
      self._of_key[key_id] -= 1
      if not self._of_key[key_id]:
        del self._of_key[key_id]
      self._gauge.set(self._in_all)
