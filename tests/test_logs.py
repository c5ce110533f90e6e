import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax import logs


class FakeFinishes:
  """Steps that are done when a test says so."""

  def __init__(self):
    self.begun = self.count = 0
    self.first_s = self.last_s = -float("inf")

  def add(self, result):
    self.begun += 1

  def wait(self):
    assert self.count == self.begun

  def done(self, at_s):
    self.first_s = self.first_s if self.count else at_s
    self.count, self.last_s = self.count + 1, at_s


class Loop:
  """A training loop by a clock of its own: batches are there, and steps done, at given seconds."""

  def __init__(self, *, examples=8, **settings):
    self.now_s = 100.0
    self.finishes = FakeFinishes()
    self.pace = logs.Pace(examples, finishes=self.finishes, clock=lambda: self.now_s, **settings)

  def step(self, *, wait_s, compute_s, ahead=False):
    """A wait and a step. With `ahead`, JAX returns at once, and the step is done in the next wait."""
    with self.pace.waiting():
      self.pass_(wait_s)
    if ahead:
      self.pending_s = self.now_s + compute_s
      self.pace.began(None)
    else:
      # Begun, done and seen to be: as on a backend that computes within the call.
      self.pass_(compute_s)
      self.finishes.done(self.now_s)
      self.pace.began(None)

  pending_s = None

  def pass_(self, seconds):
    self.now_s += seconds
    if self.pending_s is not None and self.pending_s <= self.now_s:
      self.finishes.done(self.pending_s)
      self.pending_s = None


def test_scalars_are_appended_as_json_lines(tmp_path):
  for step in (1, 2):
    log = logs.ScalarLog(tmp_path / "run" / "scalars.jsonl")
    log.write(step, {"loss": np.float32(step / 4), "curve": [[0.0, 1.0], [0.5, 1.0]]})
    log.close()
  rows = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.25), (2, 0.5)]
  assert all(row["time_s"] > 1e9 and row["curve"] == [[0.0, 1.0], [0.5, 1.0]] for row in rows)


def test_scalars_are_read_as_the_last_process_left_them(tmp_path):
  path = tmp_path / "scalars.jsonl"
  assert logs.read_scalars(path) == []
  rows = [
    {"step": 2, "train/fused": 0.5},
    {"step": 4, "train/fused": 0.4},
    {"step": 4, "validation/auc": 0.7},
    # Gone on with from step 2.
    {"step": 4, "train/fused": 0.3},
    {"step": 4, "validation/auc": 0.8},
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "tra')
  assert logs.read_scalars(path) == [rows[0], rows[3], rows[4]]
  path.write_text('{"step": 2}\nnonsense\n{"step": 4}\n')
  with pytest.raises(ValueError, match=r"Line 2 of .*scalars\.jsonl is not JSON"):
    logs.read_scalars(path)


def test_what_differs_between_two_runs_is_left_out():
  row = {"step": 2, "time_s": 1.5, "time/data_wait": 0.1, "timeless": 1.0, "train/fused": 0.5}
  assert logs.untimed(row) == {"step": 2, "timeless": 1.0, "train/fused": 0.5}
  assert not logs.is_validation(row) and logs.is_validation({"step": 2, "validation/auc": 0.5})


def test_a_slow_loader_is_waited_for():
  loop = Loop()
  for _ in range(5):
    loop.step(wait_s=3.0, compute_s=1.0)
  seconds, rate, wait = loop.pace.recent()
  assert (seconds, rate, wait) == pytest.approx((4.0, 2.0, 0.75))
  assert loop.pace.lap() == pytest.approx({"time/examples_per_s": 2.0, "time/data_wait": 0.75})


def test_waiting_while_a_step_is_being_computed_is_nobodys_loss():
  loop = Loop()
  for _ in range(5):
    # Each batch takes 2 s, and the step before it 2 s or more.
    loop.step(wait_s=2.0, compute_s=2.0, ahead=True)
  assert loop.pace.recent()[2] == 0.0


def test_only_the_rest_of_a_wait_counts_once_the_devices_are_done():
  loop = Loop()
  for _ in range(5):
    loop.step(wait_s=4.0, compute_s=1.0, ahead=True)
  loop.pass_(1.0)
  # Of 4 s between two steps, 1 s is computing.
  assert loop.pace.lap() == pytest.approx({"time/examples_per_s": 2.0, "time/data_wait": 0.75})


def test_compiling_and_waiting_for_the_first_batch_are_not_counted():
  loop = Loop()
  loop.step(wait_s=30.0, compute_s=200.0)
  assert loop.pace.recent() is None and loop.pace.lap() == {}
  loop.step(wait_s=1.0, compute_s=1.0)
  assert loop.pace.recent() == pytest.approx((2.0, 4.0, 0.5))


def test_a_pause_is_not_counted():
  loop = Loop()
  for _ in range(3):
    loop.step(wait_s=1.0, compute_s=1.0)
    with loop.pace.paused():
      loop.now_s += 50.0
  assert loop.pace.recent() == pytest.approx((2.0, 4.0, 0.5)) and loop.pace.last_pause_s == 50.0


def test_the_pace_is_that_of_late_and_a_lap_that_since_the_last():
  loop = Loop(recent_s=20.0)
  for _ in range(100):
    loop.step(wait_s=0.0, compute_s=10.0)
  assert loop.pace.lap()["time/examples_per_s"] == pytest.approx(0.8)
  for _ in range(20):
    loop.step(wait_s=1.0, compute_s=1.0)
  assert loop.pace.recent() == pytest.approx((2.0, 4.0, 0.5))
  assert loop.pace.lap() == pytest.approx({"time/examples_per_s": 4.0, "time/data_wait": 0.5})
  assert loop.pace.lap() == {}


@pytest.mark.parametrize(("loader_s", "low", "high"), [(0.05, 0.7, 1.0), (0.0, 0.0, 0.3)])
def test_waiting_is_seen_of_steps_that_jax_computes_in_the_background(loader_s, low, high):
  work = jax.jit(lambda x: jax.lax.fori_loop(0, 10 if loader_s else 150, lambda _, y: jnp.sin(y @ y), x))
  x = jnp.ones((200, 200))
  work(x).block_until_ready()
  pace = logs.Pace(1)
  for _ in range(12):
    with pace.waiting():
      time.sleep(loader_s)
    pace.began(work(x))
  wait = pace.lap()["time/data_wait"]
  pace.close()
  assert low <= wait <= high


def test_a_step_that_fails_is_over_too():
  class Failed:
    def block_until_ready(self):
      raise jax.errors.JaxRuntimeError("out of memory")

  finishes = logs.FinishTimes()
  finishes.add(Failed())
  finishes.wait()
  finishes.add(jnp.ones(()))
  finishes.close()
  assert finishes.count == finishes.begun == 2 and finishes.first_s <= finishes.last_s


def test_a_loop_that_runs_ahead_of_all_its_steps_knows_their_pace_once_they_are_done():
  loop = Loop()
  for _ in range(4):
    with loop.pace.waiting():
      loop.now_s += 0.5
    loop.pace.began(None)
  assert loop.pace.recent() is None
  for at_s in (110.0, 112.0, 114.0, 116.0):
    loop.finishes.done(at_s)
  loop.now_s = 116.0
  assert loop.pace.lap() == pytest.approx({"time/examples_per_s": 4.0, "time/data_wait": 0.0})


def test_rows_that_a_resumed_run_writes_again_are_dropped(tmp_path):
  path = tmp_path / "scalars.jsonl"
  logs.drop_rows_after(path, 0)
  assert not path.exists()
  log = logs.ScalarLog(path)
  for step in (2, 2, 4, 6):
    log.write(step, {"loss": step / 4})
  log.close()
  whole = path.read_text()
  with path.open("a") as file:
    file.write('{"step": 6, "lo')
  logs.drop_rows_after(path, 6)
  assert path.read_text() == whole
  # Cut off just before the end of its line.
  path.write_text(whole[:-1])
  logs.drop_rows_after(path, 6)
  assert path.read_text() == whole
  path.write_bytes(whole.encode()[:-9] + b"\xc3")
  logs.drop_rows_after(path, 6)
  assert path.read_text() == "".join(line for line in whole.splitlines(keepends=True)[:3])
  logs.drop_rows_after(path, 3)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 2]
  path.write_text(whole + '{"step": 6, "validation/auc": 0.5}\n')
  logs.drop_rows_after(path, 6)
  assert path.read_text() != whole
  logs.drop_rows_after(path, 6, validated=False)
  assert path.read_text() == whole
  logs.drop_rows_after(path, 0)
  assert path.read_text() == "" and [p.name for p in tmp_path.iterdir()] == ["scalars.jsonl"]


def test_progress_shows_few_lines_and_always_the_last(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  progress = logs.Progress(1000, stream=stream, every_s=30)
  for step in range(901, 1001):
    now[0] += 1
    progress.show(step, "loss 0.5")
  progress.close()
  assert stream.getvalue().splitlines() == [f"step {n}/1000  loss 0.5" for n in (930, 960, 990, 1000)]


def test_progress_rewrites_its_line_on_a_terminal_and_ends_it(monkeypatch):
  monkeypatch.setenv("COLUMNS", "20")
  stream = io.StringIO()
  stream.isatty = lambda: True
  progress = logs.Progress(3, stream=stream)
  progress.show(3, "done and more than fits")
  assert stream.getvalue() == "\r\033[Kstep 3/3  done and "
  progress.close()
  progress.close()
  assert stream.getvalue() == "\r\033[Kstep 3/3  done and \n"


@pytest.mark.parametrize(("seconds", "words"), [(None, "--:--"), (70, "01:10"), (7384.9, "2:03:04")])
def test_a_duration_in_words(seconds, words):
  assert logs.clock(seconds) == words
