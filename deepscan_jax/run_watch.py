"""What one sees of a run: JSON lines, a line of progress and TensorBoard while it trains, then a summary."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import data, metrics, training_pictures, training_report
from deepscan_jax.checkpoints import folder_bytes
from deepscan_jax.config import Config, to_dict
from deepscan_jax.evaluation import Scores
from deepscan_jax.event_files import EventFiles
from deepscan_jax.logs import TIMING, Pace, Progress, ScalarLog, clock, read_scalars
from deepscan_jax.parallel import device_count
from deepscan_jax.report import TIMES
from deepscan_jax.version import __version__

SCALARS_FILE = "scalars.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Of a validation, shown in the line of progress beside what chooses the model.
_SHOWN = ("auc", "accuracy")


class RunWatch:
  """Sees what a training loop does, and tells of it.

  Args:
    workdir: of the run.
    config: of the run, with its steps.
    step: done before; what files hold of later steps is left out.
    examples: in a step.
    log, progress: open; closed with this.
    tells: False measures alone and writes nothing, where another process tells of the same run.
    pace: None measures by itself.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    config: Config,
    step: int,
    examples: int,
    log: ScalarLog,
    progress: Progress,
    tells: bool = True,
    pace: Pace | None = None,
  ):
    self._workdir, self._config, self._log, self._progress = workdir, config, log, progress
    self._pace = pace or Pace(examples)
    self._events = EventFiles(workdir / "tensorboard", after=step) if tells else None
    self._tells = tells
    self._shown: dict[str, float] = {}
    self._scores: Scores | None = None
    before = [row for row in read_scalars(workdir / SCALARS_FILE) if row["step"] <= step]
    self._started_s = time.monotonic() - max((row.get(f"{TIMING}run_s", 0.0) for row in before), default=0.0)
    self._validation_s = next((s for row in reversed(before) if (s := row.get(f"{TIMING}validation_s"))), 0.0)

  @property
  def draws(self) -> bool:
    """Whether pictures of a validation go anywhere."""
    return self._events is not None and self._events.wanted

  def next(self, batches: Iterator) -> dict:
    """The next batch; what it costs to wait for it is measured."""
    with self._pace.waiting():
      return next(batches)

  def began(self, sums) -> None:
    """After each step, with its sums."""
    self._pace.began(jax.tree.leaves(sums)[0])

  def trained(self, step: int, losses: Mapping[str, float], *, learning_rate: float) -> None:
    """Writes the losses of a step that is done."""
    self._shown |= losses
    scalars = {f"train/{name}": value for name, value in losses.items()}
    self._write(step, scalars | {"learning_rate": float(learning_rate)} | self._pace.lap())

  @contextlib.contextmanager
  def validating(self) -> Iterator[None]:
    """Around a validation, which is no part of the training's pace."""
    self._scores = None
    with self._pace.paused():
      yield
    self._validation_s = self._pace.last_pause_s or 0.0

  def scored(self, scores: Scores) -> None:
    """Takes the scores that the figures of the validation are of."""
    self._scores = scores

  def drew(self, step: int, sheet) -> None:
    """Takes a picture of sample crops, or None."""
    if sheet is not None and self.draws:
      self._events.draw(step, "samples", sheet)

  def validated(self, step: int, figures: Mapping[str, float]) -> None:
    """Writes the figures of a validation, and the curves of the scores that it gave to `scored`."""
    self._shown |= {name: figures[name] for name in (self._config.train.metric, *_SHOWN) if name in figures}
    row = {f"validation/{name}": value for name, value in figures.items()}
    if self._scores is not None and len(self._scores.real) and len(self._scores.fake):
      labels, logits = self._scores.labels, self._scores.logits
      counts, ranking = metrics.Confusion.of(labels, logits >= 0).table(), metrics.Ranking.of(labels, logits)
      curve = ranking.false_positive_rates, ranking.true_positive_rates
      thin = metrics.thinned_curve(*curve)
      row["validation/confusion"] = counts
      row["validation/roc"] = [[round(float(x), 4) for x in rates] for rates in thin]
      if self.draws:
        words = "fake from logit 0 on"
        self._events.draw(
          step, "confusion", training_pictures.confusion_picture(np.array(counts), threshold=words)
        )
        self._events.draw(step, "roc", training_pictures.roc_picture(curve, auc=figures["auc"]))
    self._write(step, row | {f"{TIMING}validation_s": self._validation_s})

  def show(self, step: int) -> None:
    """Shows where the run is."""
    if not self._tells:
      return
    # First, whatever else there is: a terminal may have no room for all.
    first = dict.fromkeys(("fused", self._config.train.metric, *_SHOWN))
    names = [name for name in first if name in self._shown]
    parts = [f"{name} {self._shown[name]:.3f}" for name in names]
    left_s = None
    if (recent := self._pace.recent()) is not None:
      seconds, rate, wait = recent
      left_s = seconds * (self._config.train.steps - step) + self._validation_s * self._validations_after(
        step
      )
      parts += [f"{rate:,.0f} examples/s" if rate >= 100 else f"{rate:.1f} examples/s"]
      parts += [f"data wait {100 * wait:.0f} %"]
    parts.append(f"{clock(left_s)} left")
    parts += [f"{name} {value:.3f}" for name, value in self._shown.items() if name not in names]
    self._progress.show(step, "  ".join(parts))

  def close(self) -> None:
    """Ends the line of progress and closes the files."""
    for thing in (self._progress, self._pace, self._events, self._log):
      if thing is not None:
        thing.close()

  def summarise(self, *, record: Mapping, stopped: str, step: int, params, data_dir: str | Path) -> None:
    """Writes summary.html and summary.md into the workdir; all that they need is in its files and given here.

    Args:
      record: "best" and "best_step", 0 where there was no validation.
      stopped: why training ended.
      step: at which it did.
      params: the parameters of the model.
      data_dir: where the datasets are.
    """
    if not self._tells:
      return
    config = to_dict(self._config)
    best = self._workdir / "best"
    training_report.write(
      self._workdir,
      read_scalars(self._workdir / SCALARS_FILE),
      {
        "name": self._config.name,
        "config": config,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "defaults": to_dict(Config()),
        "workdir": str(self._workdir),
        "data_dir": str(data_dir),
        "best": record["best"],
        "best_step": record["best_step"],
        "stopped": stopped,
        "step": step,
        "examples": data.split_sizes(self._config.data, data_dir=data_dir),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "model_bytes": folder_bytes(best) if best.is_dir() else None,
        "device": f"{device_count()} {TIMES} {jax.local_devices()[0].device_kind}",
        "versions": {"deepscan_jax": __version__, "Python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
      },
    )

  def _write(self, step: int, row: dict) -> None:
    if not self._tells:
      return
    row = row | {f"{TIMING}run_s": time.monotonic() - self._started_s}
    row |= {key: round(value, 4) for key, value in row.items() if key.startswith(TIMING)}
    self._log.write(step, row)
    self._events.write(step, {key: value for key, value in row.items() if not isinstance(value, list)})

  def _validations_after(self, step: int) -> int:
    total, every = self._config.train.steps, self._config.train.validate_every
    # The last step is validated too.
    return total // every - step // every + (step < total and total % every != 0)
