"""The training loop: from a configuration to a model, resumable to the bit.

`train_step` is pure and runs under jit on one device or under pmap on many, with the same result. What is
random in a step is derived from the seed and the step's number, so a resumed run repeats what an
uninterrupted one would have done.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
from pathlib import Path

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from deepscan_jax import data, evaluation, examples
from deepscan_jax.checkpoints import RunCheckpoints, read_model, read_params, save_model
from deepscan_jax.config import Config, to_dict
from deepscan_jax.inference import CALIBRATIONS, DEFAULT_MODEL
from deepscan_jax.logs import Progress, ScalarLog
from deepscan_jax.losses import Sum, detector_losses
from deepscan_jax.models.backbones import backbone, measured_statistics
from deepscan_jax.models.detector import Detector, detector_inputs, image_networks
from deepscan_jax.models.freezing import frozen_layers, layers_in_order, restore_frozen, stop_gradients
from deepscan_jax.models.pretrained import load_imagenet
from deepscan_jax.optimizer import create_optimizer, learning_rate_schedule
from deepscan_jax.parallel import AXIS, parallel_map, parallel_step, replicate, split_batch
from deepscan_jax.version import __version__

_DROPOUT, _MODALITY = 0, 1
_LOG_EVERY = 20


class TrainingError(RuntimeError):
  """Training cannot go on; the message says at which step and why."""


@flax.struct.dataclass
class TrainState:
  """All of a run that changes.

  Attributes:
    step: [] int32, optimiser steps done.
    params: the parameters.
    batch_stats: running statistics of the norms (frozen).
    ema: average of the parameters; what is validated and shipped.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  ema: dict
  opt_state: optax.OptState

  @property
  def variables(self) -> dict:
    """What the detector loads: {"params", "batch_stats"}, with the averaged parameters."""
    return {"params": self.ema, "batch_stats": self.batch_stats}


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
  trained_part(config)  # Raises before anything is written.
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
  schedule = learning_rate_schedule(config.train)
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
        log.write(step, {f"train/{k}": v for k, v in losses.items()} | {"learning_rate": schedule(step)})
        shown |= losses
      if validates:
        figures = validate(part, predict, state, data_dir=data_dir)
        log.write(step, {f"validation/{k}": v for k, v in figures.items()})
        shown |= {"auc": figures["auc"], "accuracy": figures["accuracy"]}
        record = _note(record, figures, step, config)
        if record["best_step"] == step:
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


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  axis_name: str | None = None,
  *,
  model: Detector,
  optimizer: optax.GradientTransformation,
  config: Config,
  frozen: frozenset = frozenset(),
) -> tuple[TrainState, dict[str, Sum]]:
  """One optimiser step; the same under jit (axis_name None) and under pmap.

  Args:
    state: before.
    batch: of this device.
    axis_name: the pmap axis.
    model, optimizer, config: of the run.
    frozen: layers that stay as they are; see `frozen_parameters`.

  Returns:
    The state after, and the losses and the accuracy as sums over all devices, with the gradient's norm before
    it is clipped.
  """
  base = jax.random.fold_in(jax.random.key(config.seed), state.step)
  if axis_name is not None:
    # Else every device would draw the same dropout mask.
    base = jax.random.fold_in(base, jax.lax.axis_index(axis_name))
  rngs = {"dropout": jax.random.fold_in(base, _DROPOUT), "modality": jax.random.fold_in(base, _MODALITY)}

  def total(values):
    return values if axis_name is None else jax.lax.psum(values, axis_name)

  def loss_fn(params):
    variables = {"params": stop_gradients(params, frozen), "batch_stats": state.batch_stats}
    output = model.apply(variables, batch, train=True, rngs=rngs)
    losses = detector_losses(
      output,
      batch,
      gamma=config.train.focal_gamma,
      smoothing=config.train.label_smoothing,
      class_weights=config.train.class_weights,
    )
    # Divided by the weight of all devices, so that the devices' gradients add up to that of the whole batch.
    scale = {
      name: _loss_weight(name, config) / jnp.maximum(total(loss.weight), 1e-6)
      for name, loss in losses.items()
    }
    return sum(scale[name] * loss.total for name, loss in losses.items()), (losses, output.logit)

  gradients, (losses, logit) = jax.grad(loss_fn, has_aux=True)(state.params)
  gradients = total(gradients)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = restore_frozen(optax.apply_updates(state.params, updates), state.params, frozen)
  decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
  valid = (batch["example_mask"] & (batch["label"] >= 0)).astype(jnp.float32)
  right = ((logit > 0) == (batch["label"] > 0)) * valid
  sums = total({**losses, "train_accuracy": Sum(right.sum(), valid.sum())})
  sums["gradient_norm"] = Sum(optax.tree.norm(gradients), jnp.ones(()))
  average = optax.incremental_update(params, state.ema, step_size=1.0 - decay)
  state = state.replace(
    step=state.step + 1,
    params=params,
    # An average of equal numbers is not always that number.
    ema=restore_frozen(average, state.ema, frozen),
    opt_state=opt_state,
  )
  return state, sums


def create_state(config: Config) -> TrainState:
  """The state before the first step.

  With train.start_from, parameters and statistics that the other model has too are its own; else with
  train.pretrained the picture networks carry ImageNet weights.

  Raises:
    CheckpointError: there is no such model.
    ValueError: a parameter of both differs in shape.
  """
  networks = image_networks(config.model) if config.train.pretrained and not config.train.start_from else {}
  imagenet = {branch: load_imagenet(network) for branch, network in networks.items()}
  inputs = abstract_batch(1, config)

  def initialise(key: jax.Array) -> dict:
    variables = Detector(config.model).lazy_init(key, inputs, train=False)
    for branch in imagenet:
      # Not asked for, not compiled: random numbers for a whole backbone take half a minute to compile.
      for collection in ("params", "batch_stats"):
        variables[collection][branch].pop("backbone")
    return variables

  variables = jax.jit(initialise)(jax.random.key(config.seed))
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  if imagenet:
    expected = jax.eval_shape(
      functools.partial(Detector(config.model).init, train=False), jax.random.key(0), inputs
    )
    for branch, weights in imagenet.items():
      for ours, collection in ((params, "params"), (batch_stats, "batch_stats")):
        wanted = expected[collection][branch]["backbone"]
        ours[branch]["backbone"] = _matching(wanted, weights[collection])
  if config.train.start_from:
    given = read_params(_model_folder(config))
    params = _overlaid(params, given["params"])
    batch_stats = _overlaid(batch_stats, given.get("batch_stats", {}))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    ema=jax.tree.map(jnp.copy, params),
    opt_state=create_optimizer(config.train).init(params),
  )


def trained_part(config: Config) -> Config:
  """The configuration with the branches of train.branches alone, where it names some.

  Raises:
    ValueError: train.branches names one that the model has not, or there is no train.start_from.
  """
  branches = config.train.branches
  if not branches:
    return config
  if unknown := sorted(set(branches) - set(config.model.branches)):
    raise ValueError(
      f"train.branches names {', '.join(unknown)}; the model has {', '.join(config.model.branches)}."
    )
  if not config.train.start_from:
    raise ValueError("train.branches needs train.start_from, which holds the branches that are not trained.")
  kept = tuple(name for name in config.model.branches if name in branches)
  return dataclasses.replace(config, model=dataclasses.replace(config.model, branches=kept))


def first_statistics(config: Config, variables: dict, batch: dict[str, np.ndarray]) -> dict:
  """batch_stats of a detector without ImageNet weights: those of its picture networks as a batch has them."""
  statistics = dict(variables["batch_stats"])
  for branch, name in image_networks(config.model).items():
    ours = {key: variables[key][branch]["backbone"] for key in ("params", "batch_stats")}
    images = einops.rearrange(batch["crops"], "batch frame ... -> (batch frame) ...")
    measure = jax.jit(functools.partial(measured_statistics, backbone(name)))
    statistics[branch] = {**statistics[branch], "backbone": measure(ours, images)}
  return statistics


def abstract_batch(size: int, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of what the network of a configuration reads, `size` examples."""
  shapes = examples.input_shapes(config.data.window)
  return {
    key: jax.ShapeDtypeStruct((size, *shapes[key][0]), shapes[key][1])
    for key in detector_inputs(config.model)
    if key in shapes
  }


def abstract_training_batch(size: int, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch as the training step takes it: `abstract_batch` and what the losses read."""
  batch = abstract_batch(size, config)
  for key in ("label", "face_label", "sound_label"):
    batch[key] = jax.ShapeDtypeStruct((size,), jnp.int32)
  batch["example_mask"] = jax.ShapeDtypeStruct((size,), jnp.bool_)
  if config.data.pseudofakes and "crops" in batch:
    places = (size, config.data.window.frames, data.REGION_SIZE, data.REGION_SIZE)
    batch["region"] = jax.ShapeDtypeStruct(places, jnp.float32)
    batch["region_mask"] = jax.ShapeDtypeStruct((size,), jnp.bool_)
  return batch


def abstract_state(config: Config) -> TrainState:
  """Shapes and dtypes of the state, without the weights that it starts from, which need not be there."""
  fresh = dataclasses.replace(config.train, pretrained=False, start_from="")
  without = dataclasses.replace(config, train=fresh)
  return jax.eval_shape(functools.partial(create_state, without))


def frozen_parameters(config: Config) -> frozenset[tuple[str, ...]]:
  """The layers that train.freeze_all_but_last leaves as they are, and the parameters that train.branches
  does.

  Raises:
    ValueError: train.freeze_all_but_last is negative.
  """
  frozen: frozenset = frozenset()
  if config.train.freeze_all_but_last:
    order = layers_in_order(Detector(config.model), abstract_batch(1, config), train=False)
    frozen = frozen_layers(order, keep_last=config.train.freeze_all_but_last)
  if config.train.branches:
    given = traverse_util.flatten_dict(read_params(_model_folder(config))["params"])
    frozen |= {path for path in given if path[0] not in config.train.branches}
  return frozen


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
    given = read_model(_model_folder(config))
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


def _loss_weight(name: str, config: Config) -> float:
  own = {
    "region": config.train.region_weight,
    "reconstruction": config.train.reconstruction_weight,
    "sync": config.train.sync_weight,
  }
  return own.get(name, config.train.branch_weight if name.startswith("branch_") else 1.0)


def _model_folder(config: Config) -> Path:
  return DEFAULT_MODEL if config.train.start_from == "default" else Path(config.train.start_from)


def _overlaid(ours: dict, theirs: dict) -> dict:
  """Ours, with the values of theirs wherever they have one of the same name.

  Raises:
    ValueError: the two differ in shape; it names the first that does.
  """
  flat, given = traverse_util.flatten_dict(ours), traverse_util.flatten_dict(theirs)
  for path in flat.keys() & given.keys():
    if flat[path].shape != given[path].shape:
      raise ValueError(
        f"train.start_from has {'/'.join(path)} as {list(given[path].shape)}, the model needs "
        f"{list(flat[path].shape)}; choose the same model settings."
      )
    flat[path] = jnp.asarray(given[path], flat[path].dtype)
  return traverse_util.unflatten_dict(flat)


def _matching(ours: dict, theirs: dict) -> dict:
  """Theirs, without what we have no place for (the ImageNet classifier)."""
  return {
    key: _matching(value, theirs[key]) if isinstance(value, dict) else jnp.asarray(theirs[key], value.dtype)
    for key, value in ours.items()
  }
