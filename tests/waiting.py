"""Waits for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], *, patience_s: float = 60.0) -> None:
  """Returns when `true` says yes; AssertionError where it never does."""
  end = time.monotonic() + patience_s
  while not true():
    assert time.monotonic() < end
    time.sleep(0.01)
