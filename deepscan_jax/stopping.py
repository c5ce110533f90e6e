"""Being asked to stop by a signal: noted at once, obeyed where it is safe."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# What schedulers send before they take a machine away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
  """The first signal that has asked this process to stop.

  Attributes:
    number: of the signal; 0 as long as there was none.
  """

  number: int = 0

  def __bool__(self) -> bool:
    return self.number != 0


class Interrupted(Exception):
  """Something was broken off because a signal, the number, has asked this process or another to stop."""

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number


@contextlib.contextmanager
def listening(already: StopRequest | None = None) -> Iterator[StopRequest]:
  """Inside, SIGTERM and SIGINT are noted and end nothing; a SIGINT after the first signal raises as usual.

  One that was ignored before stays so: Ctrl-C is not meant for what a script has put into the background.
  Signals reach the main thread alone, so in another thread nothing is changed and nothing is noted. Who
  listens and does not obey hands the signal on with `raise_again`, or it is lost.

  Args:
    already: of a caller who listens; then this is what comes back, and nothing is changed.
  """
  if already is not None:
    yield already
    return
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return

  def note(number: int, frame) -> None:
    del frame
    if request:
      return
    request.number = number
    more = " Ctrl-C stops at once, and what was not saved is lost." if number == signal.SIGINT else ""
    # Not print, which may have been interrupted in the middle of a line.
    os.write(2, f"\ndeepscan: {name(number)}: the run is saved and stops as soon as it can.{more}\n".encode())
    if signal.SIGINT in before:
      signal.signal(signal.SIGINT, before[signal.SIGINT])

  before = {}
  try:
    for number in SIGNALS:
      if signal.getsignal(number) == signal.SIG_IGN:
        continue
      # None: set by something that is not Python, which cannot be put back.
      before[number] = signal.signal(number, note) or signal.SIG_DFL
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def name(number: int) -> str:
  """What a signal is called: "SIGTERM"."""
  return signal.Signals(number).name


def raise_again(request: StopRequest) -> None:
  """Sends this process the signal that was noted, once nobody listens who could obey it."""
  if request:
    signal.raise_signal(request.number)


def ignore_in_worker(index: int, count: int) -> None:
  """Called in a loader's worker process: the signals are for the process that it works for.

  Ctrl-C in a terminal, and some schedulers, send them to all processes, and a run that is about to stop may
  need a batch more.
  """
  del index, count
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
