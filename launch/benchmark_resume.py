"""Whether training survives being killed: `deepscan benchmark resume --kills=20`.

`deepscan train` runs twice on the same examples of made pictures. One run is left alone and keeps all its
checkpoints. The other is killed (SIGKILL) at random moments, while it starts as well as while it trains,
validates, saves or calibrates, and started again by the same command until it ends; where it ends before it
was killed often enough, another one begins. After each kill, what the next start will find, the last sound
checkpoint, is compared with that of the undisturbed run at the same step: parameters, their average, the
statistics, the optimiser's state, the position in the data and the record of the best model. When a run ends,
so are its last checkpoint, the batch that would come next, its scalars and its best model. All to the bit. A
kill counts as survived where what it left was equal, and what its run came to in the end.

All of it is done on the CPU, where the same program rounds in the same way each time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import checkpoints, data, training
from deepscan_jax.config import Config, load_preset, override

PRESET = "testing"
STEPS, SAVE_EVERY, VALIDATE_EVERY = 90, 3, 9
# Of the kills, those while a process starts; and how long one that trains may live on, of a whole training.
WHILE_STARTING, LONGEST_LIFE = 0.25, 0.25
# A run may be looked at for so long before it counts as stuck.
_PATIENCE_S = 1800.0


@dataclasses.dataclass(frozen=True)
class Kill:
  """What one kill left.

  Attributes:
    run: number of the run.
    step: the last that was trained before; that gone on from where none was since the start.
    sound: the step that is gone on from; 0 is the beginning.
    cut_off: whether a checkpoint was being written.
    differences: what is not as the undisturbed run had it; empty where all is.
  """

  run: int
  step: int
  sound: int
  cut_off: bool
  differences: tuple[str, ...]


def resume_rows(data_dir: Path, *, kills: int, seed: int, row: Callable, tell: Callable[[str], None]) -> list:
  """The rows of the benchmark, for launch.benchmark, whose rows these are.

  Args:
    data_dir: where the dataset of the preset is.
    kills: how often a run is killed.
    seed: of the moments.
    row: row(case, count, limit).
    tell: shows a line of what goes on.
  """
  with tempfile.TemporaryDirectory() as folder:
    left, ended = killed_runs(Path(folder), data_dir, kills=kills, rng=np.random.default_rng(seed), tell=tell)
  survived = [kill for kill in left if not kill.differences and not ended[kill.run]]
  return [
    row("kills that changed nothing, to the bit", len(survived), kills),
    row("kills while a checkpoint was being written", sum(kill.cut_off for kill in left), None),
    row("kills before a step was trained", sum(kill.step == kill.sound for kill in left), None),
    row("runs that ended as the undisturbed one", sum(not d for d in ended), len(ended)),
    # The save before the last may have been under way.
    row("steps lost by a kill, at most", max(kill.step - kill.sound for kill in left), 2 * SAVE_EVERY),
    row("steps lost by all kills", sum(kill.step - kill.sound for kill in left), None),
  ]


def killed_runs(
  folder: Path, data_dir: Path, *, kills: int, rng: np.random.Generator, tell: Callable[[str], None]
) -> tuple[list[Kill], list[list[str]]]:
  """What each kill left, and for each run the differences when it had ended."""
  undisturbed = folder / "undisturbed"
  started = time.monotonic()
  life = Life(undisturbed, data_dir, keep=STEPS)
  first_s = life.wait_for_first_step()
  if life.end_within(_PATIENCE_S) is None:
    raise TimeoutError(f"A run of {STEPS} steps did not end in {_PATIENCE_S:.0f} s.")
  training_s = time.monotonic() - started - first_s
  tell(f"undisturbed: first step after {first_s:.1f} s, {STEPS} steps and calibration in {training_s:.1f} s")
  left: list[Kill] = []
  ended: list[list[str]] = []
  before, torn = 0, set()
  while len(left) < kills or len(ended) <= left[-1].run:
    number, workdir = len(ended), folder / f"run_{len(ended)}"
    life = Life(workdir, data_dir, keep=2)
    if len(left) == kills:
      moment = _PATIENCE_S
    elif rng.random() < WHILE_STARTING:
      moment = rng.uniform(0, first_s)
    else:
      life.wait_for_first_step()
      moment = rng.uniform(0, LONGEST_LIFE * training_s)
    if life.end_within(moment) is not None:
      ended.append(ended_differences(workdir, undisturbed, data_dir))
      tell(f"run {number} ended: {'; '.join(ended[-1]) or 'equal'}")
      before, torn = 0, set()
      continue
    life.kill()
    if len(left) == kills:
      raise TimeoutError(f"A run of {STEPS} steps did not end in {_PATIENCE_S:.0f} s.")
    was_torn, torn = torn, unfinished(workdir)
    kill = Kill(
      run=number,
      step=life.step or before,
      sound=(sound := sound_step(workdir)),
      cut_off=bool(torn - was_torn),
      differences=tuple(kept_differences(workdir, undisturbed, sound=sound, before=before)),
    )
    left.append(kill)
    before = sound
    tell(
      f"kill {len(left)}, of run {number}, at step {kill.step}; goes on at {sound}"
      f"{', a save was cut off' if kill.cut_off else ''}: {'; '.join(kill.differences) or 'equal'}"
    )
  return left, ended


class Life:
  """One process of a run: `deepscan train`, with an eye on its steps.

  Args:
    workdir: of the run.
    data_dir: where its dataset is.
    keep: checkpoints that it keeps.
  """

  def __init__(self, workdir: Path, data_dir: Path, *, keep: int):
    from .__main__ import tuned_environment

    workdir.parent.mkdir(parents=True, exist_ok=True)
    self._seen = workdir.parent / f"{workdir.name}.step"
    self._seen.write_bytes(b"")
    self._told = workdir.parent / f"{workdir.name}.log"
    fields = [f"--set={field}" for field in _changes(keep)]
    arguments = ["train", f"--preset={PRESET}", *fields, f"--data_dir={data_dir}", f"--workdir={workdir}"]
    with self._told.open("ab") as log:
      self._process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(self._seen), *arguments],
        stdout=log,
        stderr=log,
        env=tuned_environment({**os.environ, "JAX_PLATFORMS": "cpu"}, jaxlib=jax.lib.__version__),
      )

  @property
  def step(self) -> int:
    """The last step that this process has trained; 0 before the first."""
    return int(self._seen.read_bytes() or 0)

  def wait_for_first_step(self) -> float:
    """Seconds until the first step was trained."""
    started = time.monotonic()
    while not self.step and self._process.poll() is None and time.monotonic() - started < _PATIENCE_S:
      time.sleep(0.05)
    return time.monotonic() - started

  def end_within(self, seconds: float) -> int | None:
    """0 where the process ends by itself in that time, None where it does not.

    Raises:
      RuntimeError: it ended with an error; the message shows what it said.
    """
    try:
      code = self._process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
      return None
    if code:
      raise RuntimeError(f"deepscan train ended with {code}: {self._told.read_text()[-2000:]}")
    return code

  def kill(self) -> None:
    """Kills the process, and waits until it is gone."""
    self._process.kill()
    self._process.wait()


def sound_step(workdir: Path) -> int:
  """The step that the next start will go on from; 0 is the beginning. Changes nothing."""
  return checkpoints.RunCheckpoints(workdir).latest_step() or 0


def unfinished(workdir: Path) -> set[tuple[str, int]]:
  """The folders of saves that were cut off: their names, and what tells a later one of the same name."""
  folder, run = workdir / "checkpoints", checkpoints.RunCheckpoints(workdir)
  torn = [folder / str(step) for step in run.steps() if run.damage(step)]
  return {(path.name, path.stat().st_ino) for path in (*torn, *folder.glob("*.orbax-checkpoint-tmp*"))}


def kept_differences(workdir: Path, undisturbed: Path, *, sound: int, before: int) -> list[str]:
  """What the last sound checkpoint holds other than the undisturbed run's of the same step.

  Args:
    workdir: of the killed run.
    undisturbed: workdir of the run to compare with, which kept all checkpoints.
    sound: the step.
    before: the last step that was sound before; it must not have been lost.
  """
  lost = [f"step {before} was sound before and is not now"] if sound < before else []
  if not sound:
    return lost
  return lost + unlike(*(checkpoints.RunCheckpoints(folder).read(sound) for folder in (workdir, undisturbed)))


def ended_differences(workdir: Path, undisturbed: Path, data_dir: Path) -> list[str]:
  """What a run that ended has come to, and is not as the undisturbed run has it."""
  runs = [checkpoints.RunCheckpoints(folder) for folder in (workdir, undisturbed)]
  last = [run.latest_step() for run in runs]
  if last != [STEPS, STEPS]:
    return [f"the last checkpoints are of steps {last[0]} and {last[1]}"]
  states = [run.read(STEPS) for run in runs]
  found = unlike(*states)
  found += unlike(*({"next batch": next_batch(state["data"], data_dir)} for state in states))
  found += unlike(*({"scalars": scalars(folder)} for folder in (workdir, undisturbed)))
  found += unlike(*({"best": best_model(folder / "best")} for folder in (workdir, undisturbed)))
  return found


def unlike(ours: object, theirs: object) -> list[str]:
  """Where two trees of arrays and JSON differ, by path; to the bit, so that NaN is equal to itself.

  Of the configuration, how many checkpoints are kept may differ.
  """
  one, other = (
    {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for tree in (ours, theirs)
  )
  return [
    f"{path} differs"
    for path in sorted(one.keys() | other.keys())
    if not path.endswith("['keep_checkpoints']")
    and (
      path not in one
      or path not in other
      or (one[path].dtype, one[path].shape) != (other[path].dtype, other[path].shape)
      or one[path].tobytes() != other[path].tobytes()
    )
  ]


def next_batch(position: Mapping[str, dict], data_dir: Path) -> dict[str, np.ndarray]:
  """The batch that follows a saved position."""
  config = _config(2)
  batches = iter(data.train_dataset(config.data, data_dir=data_dir, seed=config.seed))
  (state,) = position.values()
  batches.set_state(state)
  batch = next(batches)
  batches.close()
  return batch


def scalars(workdir: Path) -> list[dict]:
  """The rows of a run's scalars, without what depends on the time."""
  from deepscan_jax.logs import untimed

  rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text(encoding="utf-8").splitlines()]
  return [untimed(row) for row in rows]


def best_model(folder: Path) -> dict:
  """All of a model but the hash of its files, which hold the time of day."""
  facts = {key: value for key, value in checkpoints.read_model(folder).items() if key != "sha256"}
  return {"facts": facts, "params": checkpoints.read_params(folder)}


def train_watched(seen: str, arguments: Sequence[str]) -> None:
  """Runs a command of `deepscan`, and notes each step that training has taken in a file."""
  from .__main__ import run

  note = os.open(seen, os.O_WRONLY)

  class Progress(training.Progress):
    def show(self, step: int, text: str) -> None:
      os.pwrite(note, f"{step:09d}".encode(), 0)
      super().show(step, text)

  training.Progress = Progress
  run(arguments)


def _changes(keep: int) -> list[str]:
  return [
    f"train.steps={STEPS}",
    f"train.save_every={SAVE_EVERY}",
    f"train.validate_every={VALIDATE_EVERY}",
    f"train.keep_checkpoints={keep}",
  ]


def _config(keep: int) -> Config:
  config = load_preset(PRESET)
  for change in _changes(keep):
    config = override(config, change)
  return config


if __name__ == "__main__":
  train_watched(sys.argv[1], sys.argv[2:])
