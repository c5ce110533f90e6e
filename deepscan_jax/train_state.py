"""What changes in a run, and one step of it.

`train_step` is pure and runs under jit on one device or under pmap on many, with the same result. What is
random in a step is derived from the seed and the step's number, so a resumed run repeats what an
uninterrupted one would have done.
"""

import dataclasses
import functools

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from deepscan_jax import data, examples
from deepscan_jax.checkpoints import read_params
from deepscan_jax.config import Config
from deepscan_jax.lineage import model_folder
from deepscan_jax.losses import Sum, detector_losses
from deepscan_jax.models.backbones import backbone, measured_statistics
from deepscan_jax.models.detector import (
  FRAME_FEATURES,
  FUSION,
  Detector,
  detector_inputs,
  image_networks,
  make_branch,
)
from deepscan_jax.models.freezing import frozen_layers, layers_in_order, restore_frozen, stop_gradients
from deepscan_jax.models.pretrained import load_imagenet
from deepscan_jax.optimizer import check_schedule, create_optimizer
from deepscan_jax.parallel import device_count

_DROPOUT, _MODALITY = 0, 1


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

  With train.accumulate the batch is gone through in parts, with the gradient of the whole. With train.sam_rho
  the gradient is that at the place where the loss is the highest within that radius, to first order
  (sharpness-aware minimisation, Foret et al. 2021, arXiv:2010.01412): a second pass with the same dropout.
  The place is found by the gradient of the whole batch over all devices; the losses are those before it.

  Args:
    state: before.
    batch: of this device.
    axis_name: the pmap axis.
    model, optimizer, config: of the run.
    frozen: layers that stay as they are; see `frozen_parameters`.

  Returns:
    The state after, and the losses and the accuracy as sums over all devices, with the gradient's norm before
    it is clipped.

  Raises:
    ValueError: train.accumulate does not divide the examples of a device.
  """
  parts, examples_here = config.train.accumulate, batch["example_mask"].shape[0]
  if examples_here % parts:
    raise ValueError(
      f"train.accumulate={parts} must divide the {examples_here} examples of a batch that each device has; "
      "choose another train.accumulate or data.batch_size."
    )
  base = jax.random.fold_in(jax.random.key(config.seed), state.step)
  if axis_name is not None:
    # Else every device would draw the same dropout mask.
    base = jax.random.fold_in(base, jax.lax.axis_index(axis_name))
  streams = {"dropout": jax.random.fold_in(base, _DROPOUT), "modality": jax.random.fold_in(base, _MODALITY)}

  def total(values):
    return values if axis_name is None else jax.lax.psum(values, axis_name)

  def losses_of(params, part, rngs):
    variables = {"params": stop_gradients(params, frozen), "batch_stats": state.batch_stats}
    output = model.apply(variables, part, train=True, rngs=rngs)
    losses = detector_losses(
      output,
      part,
      gamma=config.train.focal_gamma,
      alpha=config.train.focal_alpha,
      smoothing=config.train.label_smoothing,
      class_weights=config.train.class_weights,
    )
    return losses, output.logit

  def objective(params, part, rngs, weights=None):
    losses, logit = losses_of(params, part, rngs)
    weights = weights or {name: total(loss.weight) for name, loss in losses.items()}
    # Divided by the weight of all devices, so that the devices' gradients add up to that of the whole batch.
    scale = {name: _loss_weight(name, config) / jnp.maximum(weight, 1e-6) for name, weight in weights.items()}
    valid = (part["example_mask"] & (part["label"] >= 0)).astype(jnp.float32)
    right = ((logit > 0) == (part["label"] > 0)) * valid
    sums = {**losses, "train_accuracy": Sum(right.sum(), valid.sum())}
    return sum(scale[name] * loss.total for name, loss in losses.items()), sums

  if parts == 1:
    gradient = functools.partial(jax.grad(objective, has_aux=True), part=batch, rngs=streams)
  else:
    gradient = _gradient_by_parts(
      objective, losses_of, total, batch, streams, parts=parts, params=state.params
    )
  gradients, sums = gradient(state.params)
  gradients = total(gradients)
  if config.train.sam_rho:
    stretch = config.train.sam_rho / jnp.maximum(optax.tree.norm(gradients), 1e-12)
    gradients, _ = gradient(jax.tree.map(lambda p, g: p + stretch * g, state.params, gradients))
    gradients = total(gradients)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = restore_frozen(optax.apply_updates(state.params, updates), state.params, frozen)
  decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
  sums = total(sums)
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


def _gradient_by_parts(objective, losses_of, total, batch, streams, *, parts: int, params):
  """The gradient function of a whole batch that is gone through in parts; see `train_step`.

  A loss is divided by its weight in the whole batch, which has to be known before the first part. Weights
  depend on labels and masks, and on which examples a branch hides from itself, but on no number that the
  network computes: of the pass below XLA keeps nothing but those, and its cost is next to nothing.
  """

  def parted(x):
    return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

  numbered = jnp.arange(parts), jax.tree.map(parted, batch)

  def rngs_of(number):
    return {name: jax.random.fold_in(key, number) for name, key in streams.items()}

  def weights_of(numbered_part):
    number, part = numbered_part
    losses, _ = losses_of(params, part, rngs_of(number))
    return {name: loss.weight for name, loss in losses.items()}

  weights = total(jax.tree.map(lambda x: x.sum(), jax.lax.map(weights_of, numbered)))

  def gradient(params):
    def add_part(gradients, numbered_part):
      number, part = numbered_part
      more, sums = jax.grad(objective, has_aux=True)(params, part, rngs_of(number), weights)
      return jax.tree.map(jnp.add, gradients, more), sums

    gradients, sums = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, params), numbered)
    return gradients, jax.tree.map(lambda x: x.sum(), sums)

  return gradient


def check_config(config: Config) -> None:
  """Raises ValueError where settings of a run contradict each other; before anything is written."""
  trained_part(config)
  check_schedule(config.train)
  parts, size, devices = config.train.accumulate, config.data.batch_size, device_count()
  if parts > 1 and size % (parts * devices):
    raise ValueError(
      f"data.batch_size={size} must be divisible by train.accumulate={parts} times {devices} devices; choose "
      f"a multiple of {parts * devices}."
    )


def create_state(config: Config) -> TrainState:
  """The state before the first step.

  With train.start_from, parameters and statistics that the other model has too are its own; else with
  train.pretrained the picture networks carry ImageNet weights.

  Raises:
    CheckpointError: there is no such model.
    ValueError: a parameter of both differs in shape.
  """
  networks = image_networks(config.model) if config.train.pretrained and not config.train.start_from else {}
  folder = config.train.imagenet_dir
  imagenet = {branch: load_imagenet(network, folder=folder) for branch, network in networks.items()}
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
    given = read_params(model_folder(config.train.start_from))
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
  """The configuration with the branches of train.branches alone, where it names some, and what those read of
  another branch.

  Raises:
    ValueError: train.branches names one that the model has not, or there is no train.start_from.
  """
  branches = config.train.branches
  if not branches:
    return config
  if unknown := sorted(set(branches) - set(config.model.branches) - {FUSION}):
    raise ValueError(
      f"train.branches names {', '.join(unknown)}; the model has {', '.join(config.model.branches)}."
    )
  if not config.train.start_from:
    raise ValueError("train.branches needs train.start_from, which holds the branches that are not trained.")
  if not (named := [name for name in config.model.branches if name in branches]):
    raise ValueError(
      f"train.branches names no branch; give some of {', '.join(config.model.branches)} beside {FUSION}."
    )
  described = any(FRAME_FEATURES in make_branch(name, config.model).INPUTS for name in named)
  read = list(image_networks(config.model))[:1] if described else []
  kept = tuple(name for name in config.model.branches if name in {*named, *read})
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
    given = traverse_util.flatten_dict(read_params(model_folder(config.train.start_from))["params"])
    frozen |= {path for path in given if path[0] not in config.train.branches}
  return frozen


def _loss_weight(name: str, config: Config) -> float:
  own = {
    "region": config.train.region_weight,
    "reconstruction": config.train.reconstruction_weight,
    "sync": config.train.sync_weight,
  }
  return own.get(name, config.train.branch_weight if name.startswith("branch_") else 1.0)


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
