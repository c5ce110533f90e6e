"""Stretches of time over which a branch gives an opinion of its own, beside the one over all of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.models.interface import hide


class TimeWindows(NamedTuple):
  """Overlapping windows over steps that lie at fixed times; the first window is always all of the time.

  Attributes:
    member: [1 + window, step] bool, which steps each holds.
    times_s: [window] float32, the middles of the windows after the first.
    window_s: how long these are.
  """

  member: np.ndarray
  times_s: np.ndarray
  window_s: float

  def over(self, step_times_s: np.ndarray) -> np.ndarray:
    """`member` of the same windows over steps at other times [step]: [1 + window, step] bool."""
    return _member(np.asarray(step_times_s), self.times_s - 0.5 * self.window_s, self.window_s)

  def present(self, mask: jax.Array, *, least: int = 1) -> jax.Array:
    """Which windows have something to say: [batch, 1 + window] bool.

    All of the time needs `least` valid steps; a window needs that half of its steps are valid, and all of
    the time to be present.

    Args:
      mask: [batch, step] bool.
      least: steps, at least 1.
    """
    valid = mask.astype(jnp.float32) @ self.member.T.astype(np.float32)
    needed = np.maximum(1, np.concatenate([[least], 0.5 * self.member[1:].sum(axis=1)]))
    enough = valid >= needed
    return enough & enough[:, :1]

  def times_of(self, present: jax.Array) -> jax.Array:
    """The middles of the windows [batch, window] in seconds, 0 where present [batch, 1 + window] is False."""
    times = jnp.broadcast_to(self.times_s, (present.shape[0], len(self.times_s)))
    return hide(times, present[:, 1:])


def time_windows(
  step_times_s: np.ndarray, *, window_s: float, hop_s: float, duration_s: float
) -> TimeWindows:
  """Windows that cover duration_s; one that reaches beyond its end is moved back, one alone begins at 0.

  Args:
    step_times_s: [step], the middle of each step.
    window_s, hop_s: seconds, positive.
    duration_s: of all steps.
  """
  count = 1 + max(0, math.ceil((duration_s - window_s) / hop_s - 1e-6))
  starts = np.minimum(np.arange(count) * hop_s, max(0.0, duration_s - window_s))
  member = _member(np.asarray(step_times_s), starts, window_s)
  return TimeWindows(member, (starts + 0.5 * window_s).astype(np.float32), window_s)


def _member(times: np.ndarray, starts: np.ndarray, window_s: float) -> np.ndarray:
  inside = (times >= starts[:, None] - 1e-6) & (times < starts[:, None] + window_s - 1e-6)
  return np.concatenate([np.ones((1, len(times)), bool), inside])
