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
from deepscan_jax.optimizer import create_optimizer, learning_rate_schedule
from deepscan_jax.parallel import (
  AXIS,
  Poll,
  all_or_none,
  from_first,
  is_first,
  of_all_processes,
  of_each_process,
  parallel_map,
  parallel_step,
  replicate,
  rows_here,
  shard,
  split_batch,
)
from deepscan_jax.stopping import StopRequest, listening
from deepscan_jax.stopping import name as signal_name
from deepscan_jax.train_state import (
  TrainState,
  abstract_batch,
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


class Interrupted(Exception):
  """A validation that was broken off because a signal, the number, has asked one of the processes to stop."""

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a run ended: its state, the best validation metric and its step, and why training stopped.

  `signal` is the name of the signal that stopped it, "" where none did; such a run is gone on with by `fit`.
  """

  state: TrainState
  best: float
  best_step: int
  stopped: str
  signal: str = ""


def fit(config: Config, *, workdir: str | Path, data_dir: str | Path) -> FitResult:
  """Trains a detector, going on where an earlier run in the same workdir stopped.

  Writes workdir/config.json, workdir/scalars.jsonl, workdir/checkpoints/ (to go on) and workdir/best/ (the
  model with the best validation metric, loadable by `load_detector`). The test split is never opened.

  After SIGTERM or Ctrl-C the step is finished, the run is saved and this returns; the next call goes on as if
  nothing had happened. Where several processes train together (parallel.connect), all of them call this with
  the same arguments, all stop at the same step, and one of them writes what is not the checkpoint.

  Args:
    config: of the run.
    workdir: a folder of this run alone, which all processes see.
    data_dir: where the datasets are; each process may have its own copy.

  Raises:
    ValueError: the workdir holds a run of another configuration, or of another number of processes; the
      message shows the difference. Or the batch cannot be split.
    TrainingError: the loss or its gradient is not finite. No state of that step or a later one was saved.
  """
  with listening() as request:
    return _fit(config, workdir=Path(workdir), data_dir=data_dir, request=request)


def _fit(config: Config, *, workdir: Path, data_dir: str | Path, request: StopRequest) -> FitResult:
  with all_or_none():
    trained_part(config)  # Raises before anything is written.
    rows_here(config.data.batch_size)
    _claim_workdir(config, workdir)
    config = with_steps(config, data_dir=data_dir)
    # What is computed; the state holds the whole model.
    part = trained_part(config)
    inputs = detector_inputs(part.model)
    open_dataset = functools.partial(
      data.train_dataset, config.data, data_dir=data_dir, seed=config.seed, inputs=inputs
    )
    batches = iter(open_dataset(shard=shard()))
    state = create_state(config)
  _check_all_see(config, workdir)
  model, optimizer = Detector(part.model, axis_name=AXIS), create_optimizer(config.train)
  checkpoints = RunCheckpoints(workdir, keep=config.train.keep_checkpoints)
  record, unvalidated = {"best": -math.inf, "best_step": 0, "waited": 0}, False
  last = checkpoints.latest_step()
  if len(seen := set(of_each_process(last))) > 1:
    raise ValueError(
      f"The processes see different last steps in {workdir} ({seen}); all hosts must share it."
    )
  if last is not None:
    meta = checkpoints.meta(last)
    _check_processes(meta.get("processes", 1), workdir)
    state = _restore(checkpoints, last, state, batches)
    record, unvalidated = meta["record"], meta.get("unvalidated", False)
    logging.info("Going on at step %d of %s.", last, workdir)
  elif not config.train.pretrained and not config.train.start_from:
    # Measured on the batch of all processes, however many they are.
    with contextlib.closing(iter(open_dataset())) as first:
      state = state.replace(batch_stats=first_statistics(config, state.variables, next(first)))
  state = replicate(from_first(state))
  step_fn = parallel_step(
    functools.partial(
      train_step, model=model, optimizer=optimizer, config=part, frozen=frozen_parameters(config)
    )
  )
  predict = make_predict(part)
  log, progress = ScalarLog(workdir / "scalars.jsonl"), Progress(config.train.steps)
  schedule = learning_rate_schedule(config.train)
  shown: dict[str, float] = {}
  unchecked: list[dict[str, Sum]] = []
  poll, stop, step = Poll(), 0, int(state.step)
  saved = step

  def judge(step: int) -> dict:
    # At the end of the run there is nothing to go on with, so its last validation is not broken off.
    waiting_for = request if step < config.train.steps else None
    figures = validate(part, predict, state, data_dir=data_dir, request=waiting_for)
    shown.update(auc=figures["auc"], accuracy=figures["accuracy"])
    after = _note(record, figures, step, config)
    if is_first():
      log.write(step, {f"validation/{k}": v for k, v in figures.items()})
      if after["best_step"] == step:
        variables, facts = jax.device_get(state.variables), model_facts(config, after | figures)
        save_model(workdir / "best", params=variables, model=facts)
    return after

  with contextlib.ExitStack() as closing:
    # However training ends, what is being saved gets saved.
    for open_thing in (log, batches, checkpoints):
      closing.callback(open_thing.close)
    if unvalidated:
      try:
        record, unvalidated = judge(step), False
      except Interrupted as interrupted:
        stop = interrupted.number
    for number in range(step + 1, config.train.steps + 1):
      stop = stop or poll(request.number)
      if stop or _stop_reason(record, config):
        break
      step = number
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
        if is_first():
          log.write(step, {f"train/{k}": v for k, v in losses.items()} | {"learning_rate": schedule(step)})
        shown |= losses
      if validates:
        try:
          record = judge(step)
        except Interrupted as interrupted:
          stop, unvalidated = interrupted.number, True
      if saves:
        _save(checkpoints, step, state, batches, config, record, unvalidated)
        saved = step
      if is_first():
        progress.show(step, "  ".join(f"{k} {v:.3f}" for k, v in shown.items()))
    if stop and saved < step:
      _finite(unchecked, step)
      _save(checkpoints, step, state, batches, config, record, unvalidated)
  # A signal that came after the last step is seen here, by all processes alike.
  name = signal_name(stop) if (stop := stop or max(of_each_process(request.number))) else ""
  done = _stop_reason(record, config) or "all steps done"
  return FitResult(
    state=state,
    best=record["best"],
    best_step=record["best_step"],
    stopped=f"stopped by {name} at step {step}" if name else done,
    signal=name,
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
  """Returns f(variables, batch) -> logits [batch], split over the devices of this process, in eval mode."""
  model = Detector(config.model)
  apply = parallel_map(lambda variables, batch: model.apply(variables, batch, train=False).logit)
  keys = tuple(abstract_batch(1, config))

  def predict(variables: dict, batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(apply(variables, split_batch({key: batch[key] for key in keys}))).reshape(-1)

  return predict


def validate(
  config: Config,
  predict,
  state: TrainState,
  *,
  data_dir: str | Path,
  request: StopRequest | None = None,
) -> dict[str, float]:
  """Figures on the validation split, single examples in eval mode.

  Several processes score a part each and are told the same figures, those of all examples.

  Args:
    config: of the part that is trained.
    predict: from `make_predict`.
    state: of the run.
    data_dir: where the datasets are.
    request: breaks the validation off once it holds a signal.

  Raises:
    Interrupted: it did, in this process or another.

  Returns:
    "auc", "accuracy" and, with pseudo-fakes, "paired_accuracy" of plain and degraded pairs pooled, the same
    of each as "plain_auc" and so on, where several kinds of pseudo-fakes are made of each kind as "voice_auc"
    and so on, and where there are known forgeries beside them, of all untouched examples as "labelled_auc"
    and so on; "mean_auc" is the mean of all AUCs of parts.
  """

  def score(*, degraded: bool | None) -> evaluation.Scores:
    inputs = detector_inputs(config.model)
    try:
      part = evaluation.score(
        judge,
        data.held_out(config.data, "validation", data_dir=data_dir, inputs=inputs, degraded=degraded),
        limit=config.data.validation_limit,
        batch_size=rows_here(config.data.batch_size),
        shard=shard(),
      )
    except Interrupted as interrupted:
      part = interrupted.number
    parts = of_each_process(part)
    # One alone cannot leave: the others would wait for its part.
    if numbers := [number for number in parts if isinstance(number, int)]:
      raise Interrupted(max(numbers))
    return evaluation.merged(parts)

  def judge(batch: dict[str, np.ndarray]) -> np.ndarray:
    if request:
      raise Interrupted(request.number)
    return predict(state.variables, batch)

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
    return
  if is_first():
    workdir.mkdir(parents=True, exist_ok=True)
    # Another process may look while it is being written.
    part = file.with_suffix(".part")
    part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def _check_all_see(config: Config, workdir: Path) -> None:
  """Raises, in all processes alike, unless all of them train the same thing in the same folder."""
  seen = of_each_process((to_dict(config), (workdir / "config.json").exists()))
  for process, (theirs, there) in enumerate(seen):
    if changed := ", ".join(f"{path}: {a!r} -> {b!r}" for path, a, b in _differences(seen[0][0], theirs)):
      raise ValueError(
        f"Process {process} was started with another configuration than process 0 ({changed}); start all "
        "with the same flags and data."
      )
    if not there:
      raise ValueError(
        f"Process {process} does not see {workdir / 'config.json'}, which process 0 wrote: --workdir must be "
        "a folder that all hosts share."
      )


def _check_processes(before: int, workdir: Path) -> None:
  _, now = shard()
  if before != now:
    raise ValueError(
      f"{workdir} holds a run of {before} process{'es' * (before > 1)}, each with its own place in the data, "
      f"and now there {'is' if now == 1 else 'are'} {now}; start {before}, or choose another --workdir."
    )


def _differences(a, b, path: str = ""):
  if isinstance(a, dict) and isinstance(b, dict):
    for key in sorted(a.keys() | b.keys()):
      yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
  elif a != b:
    yield path, a, b


def _save(
  checkpoints: RunCheckpoints,
  step: int,
  state: TrainState,
  batches,
  config: Config,
  record: dict,
  unvalidated: bool,
) -> None:
  # Copied, because the next step donates these very buffers while the checkpoint is still being written.
  state = of_all_processes(jax.tree.map(jnp.copy, state))
  rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
  meta = {"config": to_dict(config), "version": __version__, "record": record}
  meta |= {"processes": shard()[1], "unvalidated": unvalidated}
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
