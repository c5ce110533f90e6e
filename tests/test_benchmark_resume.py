import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoints import positions

from deepscan_jax import checkpoints
from deepscan_jax.launch import benchmark, benchmark_resume


def test_trees_are_compared_to_the_bit():
  one = {"a": np.array([1.0, np.nan], np.float32), "b": [1, {"config": {"keep_checkpoints": 2}}]}
  same = {"a": jnp.array([1.0, np.nan]), "b": [1, {"config": {"keep_checkpoints": 90}}]}
  assert benchmark_resume.unlike(one, same) == []
  bit = {**one, "a": np.array([np.nextafter(np.float32(1), np.float32(2)), np.nan], np.float32)}
  assert benchmark_resume.unlike(one, bit) == ["['a'] differs"]
  zero, minus = {"a": np.zeros(1)}, {"a": -np.zeros(1)}
  assert benchmark_resume.unlike(zero, minus) == ["['a'] differs"]
  assert benchmark_resume.unlike(one, {**one, "a": one["a"].astype(np.float64)}) == ["['a'] differs"]
  assert benchmark_resume.unlike(one, {**one, "a": one["a"][None]}) == ["['a'] differs"]
  assert benchmark_resume.unlike({"a": 1}, {"a": 1, "c": 2}) == ["['c'] differs"]
  assert benchmark_resume.unlike({"a": 1, "c": 2}, {"a": 1}) == ["['c'] differs"]


class Forgetful:
  """In place of a process: a run whose state is the sum of its steps' numbers; kills end it between two.

  Attributes:
    lost: what is added to the sum whenever a run goes on.
  """

  lost = 0

  def __init__(self, workdir, data_dir, *, keep):
    del data_dir
    workdir.mkdir(exist_ok=True)
    self._workdir, self._run = workdir, checkpoints.RunCheckpoints(workdir, keep=keep)
    self.step = self._start = self._run.recover() or 0
    self._sum = int(self._run.read(self.step)["train"]["sum"]) + self.lost if self.step else 0

  def wait_for_first_step(self) -> float:
    self.step = max(self.step, self._start + 1)
    self._sum = self._sum if self.step > self._start + 1 else self._sum + self.step
    return 0.01

  def end_within(self, seconds: float) -> int | None:
    steps = benchmark_resume.STEPS
    last = min(steps, self.step + int(seconds * 1e4) % 9) if seconds < 100 else steps
    for step in range(self.step + 1, last + 1):
      self.step, self._sum = step, self._sum + step
      if step % benchmark_resume.SAVE_EVERY == 0:
        value = jnp.asarray(self._sum)
        self._run.save(
          step, params={"a": value}, train={"sum": value}, data=positions(0), meta={"record": {}}
        )
    self._run.close()
    if self.step < steps:
      return None
    (self._workdir / "scalars.jsonl").write_text(json.dumps({"step": steps, "train/sum": self._sum}) + "\n")
    checkpoints.save_model(self._workdir / "best", params={"a": jnp.asarray(self._sum)}, model={})
    return 0

  def kill(self) -> None:
    torn = self._workdir / "checkpoints" / f"{self.step + 1}.orbax-checkpoint-tmp"
    if self.step % 2:
      torn.mkdir(parents=True)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_goes_on_otherwise_is_told(tmp_path, monkeypatch, lost):
  monkeypatch.setattr(benchmark_resume, "Life", Forgetful)
  monkeypatch.setattr(benchmark_resume, "STEPS", 18)
  monkeypatch.setattr(Forgetful, "lost", lost)
  monkeypatch.setattr(benchmark_resume, "next_batch", lambda position, data_dir: dict(position))
  told = []
  rows = benchmark_resume.resume_rows(
    tmp_path,
    kills=4,
    seed=1,
    row=lambda case, count, promised: benchmark.CountRow("resume", case, count, promised, "cpu", 2),
    tell=told.append,
  )
  counts = {row.case: (row.count, row.promised) for row in rows}
  survived, promised = counts["kills that changed nothing, to the bit"]
  ended, runs = counts["runs that ended as the undisturbed one"]
  assert promised == 4 and len([line for line in told if line.startswith("kill ")]) == 4
  assert (survived, ended) == (4, runs) if not lost else survived < 4 and ended < runs
  assert any("['best']['params']['a'] differs" in line for line in told) == bool(lost)
  worst, most = counts["steps lost by a kill, at most"]
  assert worst <= most == 2 * benchmark_resume.SAVE_EVERY
  assert benchmark.table(rows).splitlines()[1].split()[-4:] == [str(survived), "-", "-", "4"]


def test_a_command_that_fails_shows_what_it_said(tmp_path):
  life = benchmark_resume.Life(tmp_path / "run", tmp_path / "nothing", keep=2)
  with pytest.raises(RuntimeError, match=r"deepscan train ended with 2: .*Dataset 'real_only' is not in"):
    life.end_within(300)
  assert life.step == 0 and life.wait_for_first_step() < 1
