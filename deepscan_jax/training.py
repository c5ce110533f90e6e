"""The training loop: from a configuration to a model, resumable to the bit."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax import data, evaluation, examples, lineage
from deepscan_jax.checkpoints import (
  CheckpointError,
  RunCheckpoints,
  read_model,
  recover_model,
  save_model,
)
from deepscan_jax.config import Config, DataConfig, differences, from_dict, to_dict
from deepscan_jax.files import write_whole
from deepscan_jax.inference import CALIBRATIONS
from deepscan_jax.lineage import model_folder
from deepscan_jax.logs import Progress, ScalarLog, drop_rows_after
from deepscan_jax.losses import Sum
from deepscan_jax.models.detector import FUSION, Detector, detector_inputs, image_networks
from deepscan_jax.models.pretrained import weight_file
from deepscan_jax.optimizer import after_validation, create_optimizer, learning_rate
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
from deepscan_jax.run_watch import SCALARS_FILE, RunWatch
from deepscan_jax.stopping import Interrupted, StopRequest, listening, raise_again
from deepscan_jax.stopping import name as signal_name
from deepscan_jax.train_state import (
  TrainState,
  abstract_batch,
  check_config,
  create_state,
  first_statistics,
  frozen_parameters,
  train_step,
  trained_part,
)
from deepscan_jax.training_pictures import sample_sheet
from deepscan_jax.version import __version__

_LOG_EVERY = 20


class TrainingError(RuntimeError):
  """Training cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a run ended.

  Attributes:
    state: after the last step.
    best, best_step: the best validation metric and its step.
    stopped: why training stopped.
    signal: the name of the signal that stopped it, "" where none did and nothing is left to train; `fit` goes
      on with such a run.
  """

  state: TrainState
  best: float
  best_step: int
  stopped: str
  signal: str = ""


def fit(
  config: Config,
  *,
  workdir: str | Path,
  data_dir: str | Path,
  resume: bool = True,
  request: StopRequest | None = None,
) -> FitResult:
  """Trains a detector, going on where an earlier run in the same workdir stopped.

  Writes workdir/config.json, workdir/scalars.jsonl, workdir/tensorboard/, workdir/checkpoints/ (to go on)
  and at its end, workdir/summary.html and summary.md; as models workdir/best/ (of the best validation metric)
  and, at the end, workdir/last/. `calibrate_model` makes them loadable by `load_detector`. The test split is
  never opened. Killed at any moment and called again, it ends as it would have ended undisturbed, to the bit.

  After SIGTERM or Ctrl-C the step is finished, the run is saved and this returns; the next call goes on as if
  nothing had happened. Where several processes train together (parallel.connect), all of them call this with
  the same arguments, all stop at the same step, and one of them writes what is not the checkpoint.

  Args:
    config: of the run.
    workdir: a folder of this run alone, which all processes see.
    data_dir: where the datasets are; each process may have its own copy.
    resume: False refuses a workdir that holds a run.
    request: of a caller who listens to signals himself (stopping.listening), for longer than this.

  Raises:
    FileNotFoundError: a dataset has not been built, or weights to start from are not there. Nothing was
      written.
    ValueError: a setting cannot be, the splits lack examples of some label, the batch cannot be split, or the
      workdir holds a run of another configuration, of other builds of the datasets or of another number of
      processes; the message shows the difference. Nothing was written.
    CheckpointError: there are checkpoints, but none is sound.
    TrainingError: the loss or its gradient is not finite. No state of that step or a later one was saved; the
      examples of that step's batch are in workdir/non_finite_step_N.json.
  """
  with listening(request) as heard:
    result = _fit(config, workdir=Path(workdir), data_dir=data_dir, resume=resume, request=heard)
  if request is None and not result.signal:
    # It came when the run had no place left to stop at, and is meant for what comes after.
    raise_again(heard)
  return result


@dataclasses.dataclass(frozen=True)
class _Run:
  """What the loop begins with: everything opened and, where there was a checkpoint, as that has it.

  Attributes:
    config: with its steps.
    part: of the configuration, what is computed; the state holds the whole model.
    inputs: what that part reads.
    builds: by dataset the fingerprint of its build, None of old builds.
    lineage: this training and, with train.start_from, those of that model; see deepscan_jax.lineage.
    checkpoints, batches: open; the batches go on where the checkpoint was.
    state: on all devices.
    record: see `_note`.
    unvalidated: whether the validation of the state's step was broken off.
    closing: closes what is open.
  """

  config: Config
  part: Config
  inputs: tuple[str, ...]
  builds: dict[str, str | None]
  lineage: list[dict]
  checkpoints: RunCheckpoints
  batches: Iterator[dict[str, np.ndarray]]
  state: TrainState
  record: dict
  unvalidated: bool
  closing: contextlib.ExitStack


def _open(config: Config, *, workdir: Path, data_dir: str | Path, resume: bool) -> _Run:
  """Opens a run; what it has opened it closes where it raises."""
  with contextlib.ExitStack() as closing:
    with all_or_none():
      # Whatever raises does so before anything is written.
      check_run(config, workdir=workdir, data_dir=data_dir, resume=resume)
      checkpoints = RunCheckpoints(workdir, keep=config.train.keep_checkpoints)
      closing.callback(checkpoints.close)
    with all_or_none():
      _claim_workdir(config, workdir)
      config = with_steps(config, data_dir=data_dir)
      part = trained_part(config)
      inputs = tuple(detector_inputs(part.model))
      builds = {name: data.fingerprint(name, data_dir=data_dir) for name in config.data.datasets}
      divisions = {name: data.division(name, data_dir=data_dir) for name in builds}
      trainings = lineage.begun(config, version=__version__, builds=builds, divisions=divisions)
      open_dataset = functools.partial(
        data.train_dataset, config.data, data_dir=data_dir, seed=config.seed, inputs=inputs
      )
      batches = iter(open_dataset(shard=shard()))
      closing.callback(batches.close)
      state = create_state(config)
    _check_all_see(config, workdir, builds=builds)
    if config.train.epochs:
      logging.info("%d epochs are %d steps.", config.train.epochs, config.train.steps)
    record, unvalidated = {"best": -math.inf, "best_step": 0, "waited": 0}, False
    with all_or_none():
      last = checkpoints.recover() if is_first() else None
    # The first process has moved aside what is damaged, and says what is left.
    if (last := of_each_process(last)[0]) is not None:
      meta = checkpoints.meta(last)
      _check_processes(meta.get("processes", 1), workdir)
      with all_or_none():
        _check_same_data(meta, config, builds, workdir)
      state = _restore(checkpoints, last, state, batches)
      record, unvalidated = meta["record"], meta.get("unvalidated", False)
      logging.info("Going on at step %d of %s.", last, workdir)
    elif not config.train.pretrained and not config.train.start_from:
      # Measured on the batch of all processes, however many they are.
      with contextlib.closing(iter(open_dataset())) as first:
        state = state.replace(batch_stats=first_statistics(config, state.variables, next(first)))
    return _Run(
      config=config,
      part=part,
      inputs=inputs,
      builds=builds,
      lineage=trainings,
      checkpoints=checkpoints,
      batches=batches,
      state=replicate(from_first(state)),
      record=record,
      unvalidated=unvalidated,
      closing=closing.pop_all(),
    )


def _tidy(run: _Run, workdir: Path) -> None:
  """Removes what a killed run left: rows of what is done again, no model under its name."""
  step = int(run.state.step)
  drop_rows_after(workdir / SCALARS_FILE, step, validated=not run.unvalidated)
  for name in ("best", "last"):
    recover_model(workdir / name)
  with contextlib.suppress(CheckpointError):
    if (later := read_model(workdir / "best")["training"].get("best_step", 0)) > step:
      logging.warning(
        "%s is of step %d, and the run goes on at step %d: where devices do not repeat every bit, there may "
        "be another model at that step now.",
        *(workdir / "best", later, step),
      )


def _fit(
  config: Config, *, workdir: Path, data_dir: str | Path, resume: bool, request: StopRequest
) -> FitResult:
  run = _open(config, workdir=workdir, data_dir=data_dir, resume=resume)
  # `_train` closes it earlier, unless an error comes before its loop.
  with run.closing:
    return _train(run, workdir=workdir, data_dir=data_dir, request=request)


def _train(run: _Run, *, workdir: Path, data_dir: str | Path, request: StopRequest) -> FitResult:
  config, part, state, batches = run.config, run.part, run.state, run.batches
  record, unvalidated = run.record, run.unvalidated
  model, optimizer = Detector(part.model, axis_name=AXIS), create_optimizer(config.train)
  step_fn = parallel_step(
    functools.partial(
      train_step, model=model, optimizer=optimizer, config=part, frozen=frozen_parameters(config)
    )
  )
  predict = make_predict(part)
  if is_first():
    _tidy(run, workdir)
  log, progress = ScalarLog(workdir / SCALARS_FILE), Progress(config.train.steps)
  watch = RunWatch(
    workdir,
    config=config,
    step=int(state.step),
    examples=config.data.batch_size,
    log=log,
    progress=progress,
    tells=is_first(),
  )
  unchecked: list[dict[str, Sum]] = []
  poll, stop, step = Poll(), 0, int(state.step)
  saved = step
  look = functools.partial(_note_batch, config, workdir=workdir, data_dir=data_dir, inputs=run.inputs)

  def judge(step: int) -> tuple[TrainState, dict]:
    # At the end of the run there is nothing to go on with, so its last validation is not broken off.
    waiting_for = request if step < config.train.steps else None
    with watch.validating():
      figures = validate(part, predict, state, data_dir=data_dir, scored=watch.scored, request=waiting_for)
      if watch.draws:
        rows = rows_here(config.data.batch_size)
        sheet = sample_sheet(part, predict, state.variables, data_dir=data_dir, batch_size=rows)
        watch.drew(step, sheet)
    watch.validated(step, figures)
    after = _note(record, figures, step, config)
    better = after["best_step"] == step
    if better and is_first():
      variables, facts = jax.device_get(state.variables), _facts(run, after | figures)
      save_model(workdir / "best", params=variables, model=facts)
    return _after_validation(state, better=better, step=step, config=config), after

  # However training ends, what is being saved gets saved.
  with contextlib.ExitStack() as closing:
    closing.enter_context(run.closing)
    closing.callback(watch.close)
    if unvalidated:
      try:
        (state, record), unvalidated = judge(step), False
      except Interrupted as interrupted:
        stop = interrupted.number
    for number in range(step + 1, config.train.steps + 1):
      stop = stop or poll(request.number)
      if stop or _stop_reason(record, config):
        break
      step = number
      state, sums = step_fn(state, split_batch(watch.next(batches)))
      watch.began(sums)
      unchecked.append(sums)
      final = step == config.train.steps
      logs, validates, saves = (
        final or step % every == 0
        for every in (_LOG_EVERY, config.train.validate_every, config.train.save_every)
      )
      if logs or validates or saves:
        # Looking at a value waits for its step, so not after each; but before any state is kept.
        losses, unchecked = _finite(unchecked, step, look=look), []
      if logs:
        rate = learning_rate(state.opt_state, step=step, config=config.train)
        watch.trained(step, losses, learning_rate=rate)
      if validates:
        try:
          state, record = judge(step)
        except Interrupted as interrupted:
          stop, unvalidated = interrupted.number, True
      if saves or _stop_reason(record, config):
        _save(run, step, state, record, unvalidated)
        saved = step
      watch.show(step)
    if stop and saved < step:
      _finite(unchecked, step, look=look)
      _save(run, step, state, record, unvalidated)
  # A signal that came after the last step is seen here, by all processes alike.
  name = signal_name(stop) if (stop := stop or max(of_each_process(request.number))) else ""
  if not name and is_first():
    _save_last(workdir / "last", state, run, record)
  stopped = f"stopped by {name} at step {step}" if name else _stop_reason(record, config) or "all steps done"
  watch.summarise(record=record, stopped=stopped, step=step, params=state.params, data_dir=data_dir)
  if not name and (stop := max(of_each_process(request.number))):
    # Too late to stop anything here, but not for what comes after; the next call has nothing left to do.
    name = signal_name(stop)
    stopped = f"stopped by {name} at step {step}"
  return FitResult(
    state=state,
    best=record["best"],
    best_step=record["best_step"],
    stopped=stopped,
    signal=name,
  )


def check_run(config: Config, *, workdir: str | Path, data_dir: str | Path, resume: bool = True) -> bool:
  """Whether the workdir holds a run that `fit` would go on with; raises what `fit` raises at its start."""
  there = _check_workdir(config, Path(workdir), resume=resume)
  least = {"data.batch_size": 1, "train.steps": 1, "train.validate_every": 1, "train.save_every": 1,
           "train.epochs": 0, "train.patience": 0, "data.validation_limit": 0}  # fmt: skip
  for path, bound in least.items():
    room, name = path.split(".")
    if (value := getattr(getattr(config, room), name)) < bound:
      raise ValueError(f"{path} must be {bound} or more, got {value}.")
  # So that a value that is no number is refused too.
  if not 0 < config.train.learning_rate < math.inf:
    raise ValueError(f"train.learning_rate must be a number above 0, got {config.train.learning_rate:g}.")
  if not 0 <= config.train.target_accuracy <= 1:
    raise ValueError(
      f"train.target_accuracy must lie from 0 (off) to 1, got {config.train.target_accuracy:g}."
    )
  if config.train.metric not in (names := metric_names(config.data)):
    raise ValueError(
      f"train.metric is {config.train.metric!r}; validation measures {', '.join(sorted(names))}."
    )
  check_config(config)
  rows_here(config.data.batch_size)
  part = trained_part(config)
  inputs = detector_inputs(part.model)
  data.train_dataset(config.data, data_dir=data_dir, seed=config.seed, inputs=inputs, shard=shard())
  create_optimizer(with_steps(config, data_dir=data_dir).train)
  # Pseudo-fakes are made of the real ones.
  needed = {"real": examples.REAL} | ({} if config.data.pseudofakes else {"fake": examples.FAKE})
  for split in ("train", "validation"):
    counts = data.label_counts(config.data, split, data_dir=data_dir, inputs=inputs)
    if absent := [name for name, label in needed.items() if not counts[label]]:
      raise ValueError(
        f"The {split} split of {', '.join(config.data.datasets)}"
        + (f" (fold {config.data.fold} of {config.data.folds})" if config.data.folds else "")
        + f" has no {' and no '.join(absent)} examples, without which no model can be "
        + ("learnt" if split == "train" else "chosen")
        + "; add some, or another dataset"
        + (", or take fewer folds." if config.data.folds else ".")
      )
  if config.train.start_from:
    read_model(model_folder(config.train.start_from))
  elif config.train.pretrained:
    for network in image_networks(config.model).values():
      weight_file(network, config.train.imagenet_dir)
  return there


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
  return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def make_predict(config: Config) -> "Predict":
  """Returns f(variables, batch) -> logits [batch], split over the devices of this process, in eval mode."""
  return Predict(config)


class Predict:
  """What `make_predict` returns; a configuration's network, compiled once for logits and region maps."""

  def __init__(self, config: Config):
    model = Detector(config.model)

    def answer(variables: dict, batch: dict) -> tuple[jax.Array, list[jax.Array]]:
      output = model.apply(variables, batch, train=False)
      maps = [branch.maps["region"] for branch in output.branches.values() if "region" in branch.maps]
      return output.logit, maps

    self._apply = parallel_map(answer)
    self._keys = tuple(abstract_batch(1, config))

  def __call__(self, variables: dict, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The logits, [batch] float32."""
    return np.asarray(self._answer(variables, batch)[0]).reshape(-1)

  def with_regions(
    self, variables: dict, batch: dict[str, np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """The logits and the first branch's region maps, [batch, frame, row, column] float64 in 0..1; None where
    no branch draws one."""
    logits, maps = self._answer(variables, batch)
    logits = np.asarray(logits).reshape(-1)
    if not maps:
      return logits, None
    values = np.asarray(maps[0], np.float64)
    return logits, 0.5 + 0.5 * np.tanh(values.reshape(-1, *values.shape[2:]) / 2)

  def _answer(self, variables: dict, batch: dict[str, np.ndarray]):
    return self._apply(variables, split_batch({key: batch[key] for key in self._keys}))


def validate(
  config: Config,
  predict,
  state: TrainState,
  *,
  data_dir: str | Path,
  scored: Callable[[evaluation.Scores], object] = lambda scores: None,
  request: StopRequest | None = None,
) -> dict[str, float]:
  """Figures on the validation split, in eval mode.

  Several processes score a part each and are told the same figures, those of all examples.

  Args:
    config: of the part that is trained.
    predict: from `make_predict`.
    state: of the run.
    data_dir: where the datasets are.
    scored: called with the scores that "auc" and "accuracy" are of.
    request: breaks the validation off once it holds a signal.

  Raises:
    Interrupted: it did, in this process or another.

  Returns:
    "auc" and "accuracy" of single examples, "video_auc" and "video_accuracy" of whole files (the mean of
    their examples' logits; the twins of a video's examples are a video) and, with pseudo-fakes,
    "paired_accuracy", all of plain and degraded pairs pooled, the same
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
    scored(untouched := score(degraded=None))
    return untouched.summary()
  plain, degraded = (score(degraded=d) for d in (False, True))
  scored(both := plain + degraded)
  figures, parts = both.summary(), {"plain": plain, "degraded": degraded}
  if len(kinds := np.unique(both.kind)) > 1:
    parts |= {str(kind): both.rows(both.kind == kind) for kind in kinds}
  if config.data.labelled_share:
    parts["labelled"] = score(degraded=None)
  for name, scores in parts.items():
    figures |= {f"{name}_{key}": value for key, value in scores.summary().items()}
  return {**figures, "mean_auc": float(np.mean([figures[f"{name}_auc"] for name in parts]))}


def metric_names(config: DataConfig) -> set[str]:
  """The figures of `validate`; those of kinds of pseudo-fakes that the data may turn out not to allow too."""
  two = np.arange(2)
  texts = np.full(2, "")
  pair = evaluation.Scores(two, two * 1.0, texts, texts, texts, two > 0, paired=config.pseudofakes)
  names = set(pair.summary())
  if not config.pseudofakes:
    return names
  parts = ["plain", "degraded", *(kind for kind, weight in config.pseudofake_kinds if weight > 0)]
  figures = names | {f"{part}_{name}" for part in parts for name in names} | {"mean_auc"}
  if config.labelled_share:
    figures |= {f"labelled_{name}" for name in dataclasses.replace(pair, paired=False).summary()}
  return figures


def _facts(run: _Run, training: dict) -> dict:
  return model_facts(run.config, training) | {"lineage": run.lineage}


def model_facts(config: Config, training: dict) -> dict:
  """What is written beside the parameters; see checkpoints.save_model.

  Where train.branches leaves the faces as they are, so is their calibration; and so is that of the sound.
  """
  facts = {
    "name": config.name,
    "version": __version__,
    "config": to_dict(config),
    "inputs": detector_inputs(config.model),
    "training": training,
  }
  # What is said of either goes through the fusion.
  if config.train.branches and FUSION not in config.train.branches:
    given, trained = read_model(model_folder(config.train.start_from)), trained_part(config).model
    for key, read in zip(CALIBRATIONS, ("crops", "waveform"), strict=True):
      if key in given and read in facts["inputs"] and read not in detector_inputs(trained):
        facts[key] = given[key]
  return facts


def _claim_workdir(config: Config, workdir: Path) -> None:
  file = workdir / "config.json"
  if file.exists():
    return  # `_check_workdir` knows it to be of this run.
  if is_first():
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(to_dict(config), indent=2) + "\n")


def _check_all_see(config: Config, workdir: Path, *, builds: dict[str, str | None]) -> None:
  """Raises, in all processes alike, unless all of them train the same thing in the same folder."""
  seen = of_each_process((to_dict(config), builds, _appears(workdir / "config.json")))
  for process, (theirs, of_theirs, there) in enumerate(seen):
    if changed := ", ".join(f"{path}: {a!r} -> {b!r}" for path, a, b in differences(seen[0][0], theirs)):
      raise ValueError(
        f"Process {process} was started with another configuration than process 0 ({changed}); start all "
        "with the same flags and data."
      )
    if changed := ", ".join(name for name, build in seen[0][1].items() if of_theirs[name] != build):
      raise ValueError(
        f"Process {process} has another build of {changed} than process 0; give all hosts a copy of the same."
      )
    if not there:
      raise ValueError(
        f"Process {process} does not see {workdir / 'config.json'}, which process 0 wrote: --workdir must be "
        "a folder that all hosts share."
      )


def _appears(file: Path, *, wait_s: float = 60.0) -> bool:
  """Whether a file is there now or soon: NFS may remember for half a minute that there was none."""
  end = time.monotonic() + wait_s
  while not (there := file.exists()) and time.monotonic() < end:
    time.sleep(min(1.0, wait_s / 10))
  return there


def _check_processes(before: int, workdir: Path) -> None:
  _, now = shard()
  if before != now:
    raise ValueError(
      f"{workdir} holds a run of {before} process{'es' * (before > 1)}, each with its own place in the data, "
      f"and now there {'is' if now == 1 else 'are'} {now}; start {before}, or choose another --workdir."
    )


def _check_same_data(meta: dict, config: Config, builds: dict[str, str | None], workdir: Path) -> None:
  """Raises where a checkpoint, of which the meta is, was trained on other builds of the datasets."""
  # Neither old builds nor old checkpoints say which; but epochs count examples.
  known = {name: build for name, build in meta.get("builds", {}).items() if build and builds[name]}
  changed = [name for name, build in known.items() if build != builds[name]]
  if not changed and (before := meta["config"]["train"]["steps"]) != config.train.steps:
    raise ValueError(
      f"The data of {workdir} have changed: {config.train.epochs} epochs were {before} steps and are "
      f"{config.train.steps} now; put the old data back to go on with it, or choose another --workdir."
    )
  if changed:
    raise ValueError(
      f"The data of {workdir} have changed, for it was trained on another build of {', '.join(changed)}; put "
      "the old data back to go on with it, or choose another --workdir."
    )


def _check_workdir(config: Config, workdir: Path, *, resume: bool) -> bool:
  """Whether the workdir holds a run of this configuration; raises where that of another, or any unwanted."""
  file, wanted = workdir / "config.json", to_dict(config)
  if not file.exists():
    return False
  if not resume:
    raise ValueError(
      f"{workdir} holds a run already; leave out --noresume to go on with it, or choose another --workdir."
    )
  try:
    # A field that came later has its default there.
    there = to_dict(from_dict(json.loads(file.read_text(encoding="utf-8"))))
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}); put it back from a copy, or choose another --workdir."
    ) from error
  if there != wanted:
    changed = ", ".join(f"{path}: {a!r} -> {b!r}" for path, a, b in differences(there, wanted))
    raise ValueError(
      f"{workdir} holds a run of another configuration ({changed}); give the same settings again to go on "
      "with it, or choose another --workdir."
    )
  return True


def _save_last(folder: Path, state: TrainState, run: _Run, record: dict) -> None:
  """Writes the model as it is at the end of the run, unless it is there from an earlier call."""
  facts = _facts(run, record | {"step": int(state.step)})
  with contextlib.suppress(CheckpointError):
    if read_model(folder)["training"] == facts["training"]:
      return
  save_model(folder, params=jax.device_get(state.variables), model=facts)


def _save(run: _Run, step: int, state: TrainState, record: dict, unvalidated: bool) -> None:
  # Copied, because the next step donates these very buffers while the checkpoint is still being written.
  state = of_all_processes(jax.tree.map(jnp.copy, state))
  rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
  meta = {"config": to_dict(run.config), "version": __version__, "record": record}
  meta |= {"processes": shard()[1], "unvalidated": unvalidated, "builds": run.builds}
  run.checkpoints.save(step, params=state.variables, train=rest, data=run.batches, meta=meta)


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


def _finite(
  sums: list[dict[str, Sum]], step: int, *, look: Callable[[int, list[str]], str]
) -> dict[str, float]:
  """The figures of the last of some steps that end with `step`, once those of all of them are finite.

  Args:
    sums: of each of those steps.
    step: the last of them.
    look: told a step and what is not finite in it, notes its batch and says where.
  """
  first, values = step - len(sums) + 1, {}
  for number, of_step in enumerate(jax.device_get(sums), start=first):
    values = {name: float(s.total) / max(float(s.weight), 1e-6) for name, s in of_step.items()}
    broken = sorted(name for name, value in values.items() if not math.isfinite(value))
    if broken:
      raise TrainingError(
        f"The loss or its gradient is not finite at step {number} ({', '.join(broken)}); nothing of "
        f"steps {first} to {step} was saved. {look(number, broken)} Look at them, or lower "
        "train.learning_rate."
      )
  return values


def _note_batch(
  config: Config, step: int, broken: list[str], *, workdir: Path, data_dir: str | Path, inputs: Sequence[str]
) -> str:
  """Writes which examples were in the batch of a step to a file, and says so in a sentence."""
  rows = data.batch_facts(config.data, data_dir=data_dir, seed=config.seed, step=step, inputs=inputs)
  file = workdir / f"non_finite_step_{step}.json"
  if is_first():
    write_whole(file, json.dumps({"step": step, "not_finite": broken, "examples": rows}, indent=2) + "\n")
  ids = list(dict.fromkeys(row["id"] for row in rows))
  more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
  return f"Its batch was made of {', '.join(ids[:3])}{more}; {file} tells of each."
