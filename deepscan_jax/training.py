"""The training loop: from a configuration to a model, resumable to the bit."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax import data, evaluation
from deepscan_jax.checkpoints import RunCheckpoints, read_model, save_model
from deepscan_jax.config import Config, to_dict
from deepscan_jax.inference import CALIBRATIONS
from deepscan_jax.logs import Progress, ScalarLog
from deepscan_jax.losses import Sum
from deepscan_jax.models.detector import Detector, detector_inputs
from deepscan_jax.optimizer import after_validation, create_optimizer, learning_rate
from deepscan_jax.parallel import AXIS, parallel_map, parallel_step, replicate, split_batch
from deepscan_jax.train_state import (
  TrainState,
  abstract_batch,
  check_config,
  create_state,
  first_statistics,
  frozen_parameters,
  model_folder,
  train_step,
  trained_part,
)
from deepscan_jax.version import __version__

_LOG_EVERY = 20


class TrainingError(RuntimeError):
  """Training cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a run ended: its state, the best validation metric and its step, and why training stopped."""

  state: TrainState
  best: float
  best_step: int
  stopped: str


def fit(config: Config, *, workdir: str | Path, data_dir: str | Path) -> FitResult:
  """Trains a detector, going on where an earlier run in the same workdir stopped.

  Writes workdir/config.json, workdir/scalars.jsonl, workdir/checkpoints/ (to go on) and workdir/best/ (the
  model with the best validation metric, loadable by `load_detector`). The test split is never opened.

  Args:
    config: of the run.
    workdir: a folder of this run alone.
    data_dir: where the datasets are.

  Raises:
    ValueError: the workdir holds a run of another configuration; the message shows the difference.
    TrainingError: the loss or its gradient is not finite. No state of that step or a later one was saved.
  """
  workdir = Path(workdir)
  check_config(config)  # Raises before anything is written.
  _claim_workdir(config, workdir)
  config = with_steps(config, data_dir=data_dir)
  # What is computed; the state holds the whole model.
  part = trained_part(config)
  model, optimizer = Detector(part.model, axis_name=AXIS), create_optimizer(config.train)
  inputs = detector_inputs(part.model)
  dataset = data.train_dataset(config.data, data_dir=data_dir, seed=config.seed, inputs=inputs)
  batches = iter(dataset)
  checkpoints = RunCheckpoints(workdir, keep=config.train.keep_checkpoints)
  state, record = create_state(config), {"best": -math.inf, "best_step": 0, "waited": 0}
  if (last := checkpoints.latest_step()) is not None:
    state = _restore(checkpoints, last, state, batches)
    record = checkpoints.meta(last)["record"]
    logging.info("Going on at step %d of %s.", last, workdir)
  elif not config.train.pretrained and not config.train.start_from:
    with contextlib.closing(iter(dataset)) as first:
      state = state.replace(batch_stats=first_statistics(config, state.variables, next(first)))
  state = replicate(state)
  step_fn = parallel_step(
    functools.partial(
      train_step, model=model, optimizer=optimizer, config=part, frozen=frozen_parameters(config)
    )
  )
  predict = make_predict(part)
  log, progress = ScalarLog(workdir / "scalars.jsonl"), Progress(config.train.steps)
  shown: dict[str, float] = {}
  unchecked: list[dict[str, Sum]] = []
  with contextlib.ExitStack() as closing:
    # However training ends, what is being saved gets saved.
    for open_thing in (log, batches, checkpoints):
      closing.callback(open_thing.close)
    for step in range(int(state.step) + 1, config.train.steps + 1):
      if _stop_reason(record, config):
        break
      state, sums = step_fn(state, split_batch(next(batches)))
      unchecked.append(sums)
      final = step == config.train.steps
      logs, validates, saves = (
        final or step % every == 0
        for every in (_LOG_EVERY, config.train.validate_every, config.train.save_every)
      )
      if logs or validates or saves:
        # Looking at a value waits for its step, so not after each; but before any state is kept.
        losses, unchecked = _finite(unchecked, step), []
      if logs:
        rate = learning_rate(state.opt_state, step=step, config=config.train)
        log.write(step, {f"train/{k}": v for k, v in losses.items()} | {"learning_rate": rate})
        shown |= losses
      if validates:
        figures = validate(part, predict, state, data_dir=data_dir)
        log.write(step, {f"validation/{k}": v for k, v in figures.items()})
        shown |= {"auc": figures["auc"], "accuracy": figures["accuracy"]}
        record = _note(record, figures, step, config)
        better = record["best_step"] == step
        state = _after_validation(state, better=better, step=step, config=config)
        if better:
          save_model(workdir / "best", params=state.variables, model=model_facts(config, record | figures))
      if saves:
        _save(checkpoints, step, state, batches, config, record)
      progress.show(step, "  ".join(f"{k} {v:.3f}" for k, v in shown.items()))
  return FitResult(
    state=state,
    best=record["best"],
    best_step=record["best_step"],
    stopped=_stop_reason(record, config) or "all steps done",
  )


def with_steps(config: Config, *, data_dir: str | Path) -> Config:
  """The configuration with train.epochs, where it is set, told as train.steps of its training split.

  Raises:
    ValueError: train.epochs is negative.
    FileNotFoundError: a dataset has not been built.
  """
  epochs = config.train.epochs
  if epochs < 0:
    raise ValueError(f"train.epochs must be 0 (train.steps counts) or more, got {epochs}.")
  if not epochs:
    return config
  inputs = detector_inputs(trained_part(config).model)
  rows = data.rows_in_pass(config.data, data_dir=data_dir, inputs=inputs)
  steps = math.ceil(epochs * rows / config.data.batch_size)
  logging.info("%d epochs are %d steps.", epochs, steps)
  return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def make_predict(config: Config):
  """Returns f(variables, batch) -> logits [batch], split over all local devices, in eval mode."""
  model = Detector(config.model)
  apply = parallel_map(lambda variables, batch: model.apply(variables, batch, train=False).logit)
  keys = tuple(abstract_batch(1, config))

  def predict(variables: dict, batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(apply(variables, split_batch({key: batch[key] for key in keys}))).reshape(-1)

  return predict


def validate(config: Config, predict, state: TrainState, *, data_dir: str | Path) -> dict[str, float]:
  """Figures on the validation split, single examples in eval mode.

  Returns:
    "auc", "accuracy" and, with pseudo-fakes, "paired_accuracy" of plain and degraded pairs pooled, the same
    of each as "plain_auc" and so on, where several kinds of pseudo-fakes are made of each kind as "voice_auc"
    and so on, and where there are known forgeries beside them, of all untouched examples as "labelled_auc"
    and so on; "mean_auc" is the mean of all AUCs of parts.
  """

  def score(*, degraded: bool | None) -> evaluation.Scores:
    inputs = detector_inputs(config.model)
    return evaluation.score(
      functools.partial(predict, state.variables),
      data.held_out(config.data, "validation", data_dir=data_dir, inputs=inputs, degraded=degraded),
      limit=config.data.validation_limit,
      batch_size=config.data.batch_size,
    )

  if not config.data.pseudofakes:
    return score(degraded=None).summary()
  plain, degraded = (score(degraded=d) for d in (False, True))
  both = plain + degraded
  figures, parts = both.summary(), {"plain": plain, "degraded": degraded}
  if len(kinds := np.unique(both.kind)) > 1:
    parts |= {str(kind): both.rows(both.kind == kind) for kind in kinds}
  if config.data.labelled_share:
    parts["labelled"] = score(degraded=None)
  for name, scores in parts.items():
    figures |= {f"{name}_{key}": value for key, value in scores.summary().items()}
  return {**figures, "mean_auc": float(np.mean([figures[f"{name}_auc"] for name in parts]))}


def model_facts(config: Config, training: dict) -> dict:
  """What is written beside the parameters; see checkpoints.save_model.

  Where train.branches leaves the faces as they are, so is their calibration.
  """
  facts = {
    "name": config.name,
    "version": __version__,
    "config": to_dict(config),
    "inputs": detector_inputs(config.model),
    "training": training,
  }
  if config.train.branches and "crops" not in detector_inputs(trained_part(config).model):
    given = read_model(model_folder(config))
    facts |= {key: given[key] for key in CALIBRATIONS[:1] if key in given}
  return facts


def _claim_workdir(config: Config, workdir: Path) -> None:
  file, wanted = workdir / "config.json", to_dict(config)
  if file.exists():
    there = json.loads(file.read_text(encoding="utf-8"))
    if there != wanted:
      changed = ", ".join(f"{path}: {a!r} -> {b!r}" for path, a, b in _differences(there, wanted))
      raise ValueError(
        f"{workdir} holds a run of another configuration ({changed}); choose another --workdir."
      )
  workdir.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _differences(a, b, path: str = ""):
  if isinstance(a, dict) and isinstance(b, dict):
    for key in sorted(a.keys() | b.keys()):
      yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
  elif a != b:
    yield path, a, b


def _save(
  checkpoints: RunCheckpoints, step: int, state: TrainState, batches, config: Config, record: dict
) -> None:
  # Copied, because the next step donates these very buffers while the checkpoint is still being written.
  state = jax.tree.map(jnp.copy, state)
  rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
  meta = {"config": to_dict(config), "version": __version__, "record": record}
  checkpoints.save(step, params=state.variables, train=rest, data=batches, meta=meta)


def _restore(checkpoints: RunCheckpoints, step: int, state: TrainState, batches) -> TrainState:
  rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
  variables, rest = checkpoints.restore(step, params=state.variables, train=rest, data=batches)
  return TrainState(ema=variables["params"], batch_stats=variables["batch_stats"], **rest)


def _note(record: dict, figures: dict[str, float], step: int, config: Config) -> dict:
  if config.train.metric not in figures:
    known = ", ".join(sorted(figures))
    raise ValueError(f"train.metric is {config.train.metric!r}; validation measures {known}.")
  if math.isnan(figures[config.train.metric]):
    raise ValueError(
      f"The validation {config.train.metric} is undefined: the validation split needs real and fake examples."
    )
  better = figures[config.train.metric] > record["best"]
  return {
    "best": figures[config.train.metric] if better else record["best"],
    "best_step": step if better else record["best_step"],
    "waited": 0 if better else record["waited"] + 1,
    "accuracy": figures["accuracy"],
  }


def _after_validation(state: TrainState, *, better: bool, step: int, config: Config) -> TrainState:
  changed = after_validation(state.opt_state, better=better, step=step, config=config.train)
  # Placed as the step returns it, or the step would be compiled again.
  return state if changed is state.opt_state else state.replace(opt_state=replicate(changed))


def _stop_reason(record: dict, config: Config) -> str | None:
  if config.train.patience and record["waited"] >= config.train.patience:
    return f"no better {config.train.metric} in {config.train.patience} validations"
  if config.train.target_accuracy and record.get("accuracy", 0.0) >= config.train.target_accuracy:
    return f"validation accuracy reached {config.train.target_accuracy}"
  return None


def _finite(sums: list[dict[str, Sum]], step: int) -> dict[str, float]:
  """The figures of the last of some steps that end with `step`, once those of all of them are finite."""
  first, values = step - len(sums) + 1, {}
  for number, of_step in enumerate(jax.device_get(sums), start=first):
    values = {name: float(s.total) / max(float(s.weight), 1e-6) for name, s in of_step.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
      raise TrainingError(
        f"The loss or its gradient is not finite at step {number} ({', '.join(sorted(broken))}); nothing of "
        f"steps {first} to {step} was saved. Lower train.learning_rate."
      )
  return values
