import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deepscan_jax import stopping


@pytest.fixture(autouse=True)
def as_in_a_terminal():
  """These tests may run in the background, where SIGINT is ignored."""
  before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_is_noted_and_ends_nothing(number, capfd):
  before = [signal.getsignal(each) for each in stopping.SIGNALS]
  with stopping.listening() as request:
    assert not request and request.number == 0
    os.kill(os.getpid(), number)
    assert request and request.number == number
    # Only the first counts.
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.number == number
  assert [signal.getsignal(each) for each in stopping.SIGNALS] == before
  said = capfd.readouterr().err
  assert said.count(f"deepscan: {stopping.name(number)}: ") == 1
  assert ("Ctrl-C stops at once" in said) == (number == signal.SIGINT)


@pytest.mark.parametrize("first", stopping.SIGNALS)
def test_ctrl_c_after_a_signal_stops_at_once(first):
  with pytest.raises(KeyboardInterrupt), stopping.listening():
    os.kill(os.getpid(), first)
    os.kill(os.getpid(), signal.SIGINT)


def test_who_listens_already_goes_on_listening_and_what_nobody_obeyed_is_handed_on():
  heard = []
  signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
  with stopping.listening() as request:
    with stopping.listening(request) as inner:
      assert inner is request
      stopping.raise_again(request)
      assert not request
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.number == signal.SIGTERM and not heard
  stopping.raise_again(request)
  assert heard == [signal.SIGTERM]


def test_what_is_ignored_stays_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with stopping.listening() as request:
    os.kill(os.getpid(), signal.SIGINT)
    assert not request
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.number == signal.SIGTERM and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_another_thread_changes_nothing():
  before, seen = signal.getsignal(signal.SIGTERM), []

  def listen():
    with stopping.listening() as request:
      seen.append((bool(request), signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert seen == [(False, before)]


def test_a_worker_of_the_loader_lives_on():
  code = (
    "import os, signal; from deepscan_jax import stopping; stopping.ignore_in_worker(0, 1); "
    "[os.kill(os.getpid(), number) for number in stopping.SIGNALS]; print('alive')"
  )
  root = Path(__file__).resolve().parents[1]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
  assert done.stdout == "alive\n"
