"""The optimiser that a TrainConfig names, as one optax transformation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from deepscan_jax.config import TrainConfig

# Parameters that weight decay leaves alone, whatever their shape, by the last part of their name.
_NEVER_DECAYED = frozenset({"bias", "scale", "probe", "bottlenecks"})


class PlateauState(NamedTuple):
  """How far the schedule "plateau" has come; arrays in the optimiser's state, where checkpoints keep it.

  Attributes:
    scale: [] float32, by which the learning rate is multiplied.
    waited: [] int32, validations since the last better one or the last reduction.
  """

  scale: jax.Array
  waited: jax.Array


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up to config.learning_rate, then a half cosine to 0; begun again at each restart.

  Warm restarts are those of Loshchilov and Hutter 2017 (SGDR, arXiv:1608.03983). The last cycle ends at
  config.steps. For config.schedule "plateau" the rate stays after the warm-up: what it is multiplied by is
  known at validations only, see `after_validation`.

  Raises:
    ValueError: restarts that do not rise, or do not lie between 0 and config.steps; "plateau" with restarts,
      with a plateau_min above the learning rate, or with a patience that ends training before it acts.
  """
  check_schedule(config)
  if config.schedule == "plateau":
    rising = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    return optax.join_schedules(
      [rising, optax.constant_schedule(config.learning_rate)], [config.warmup_steps]
    )
  ends = (*config.restarts, config.steps)
  if any(later <= earlier for earlier, later in zip((0, *ends), ends, strict=False)) and config.restarts:
    raise ValueError(f"train.restarts must rise from 1 to below {config.steps}, got {config.restarts}.")
  cycles = []
  for start, end in zip((0, *ends), ends, strict=False):
    steps = end - start
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    cycles.append(
      optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1), 0.0)
    )
  return optax.join_schedules(cycles, config.restarts)


def check_schedule(config: TrainConfig) -> None:
  """Raises ValueError where settings of the schedule "plateau" contradict others."""
  if config.schedule != "plateau":
    return
  if config.restarts:
    raise ValueError(
      f"train.restarts is {config.restarts}, which train.schedule=plateau does not have; set "
      "train.restarts=[] or train.schedule=cosine."
    )
  if config.plateau_min > config.learning_rate:
    raise ValueError(
      f"train.plateau_min must be at most train.learning_rate, {config.learning_rate:g}, got "
      f"{config.plateau_min:g}."
    )
  if 0 < config.patience <= config.plateau_patience:
    raise ValueError(
      f"train.patience={config.patience} ends training before the learning rate is reduced; it must be 0 or "
      f"more than train.plateau_patience, {config.plateau_patience}."
    )


def after_validation(
  opt_state: optax.OptState, *, better: bool, step: int, config: TrainConfig
) -> optax.OptState:
  """The optimiser's state after a validation: with the schedule "plateau" it counts, and reduces the rate.

  Args:
    opt_state: of `create_optimizer`.
    better: whether the validation metric was better than ever.
    step: optimiser steps done; during the warm-up nothing is counted.
    config: of the run.

  Returns:
    The same structure with the same types, so that a compiled step takes it; for other schedules the same
    state.
  """
  if config.schedule != "plateau":
    return opt_state
  *others, plateau = opt_state
  scale, waited = float(plateau.scale), int(plateau.waited)
  waited = 0 if better or step <= config.warmup_steps else waited + 1
  if waited == config.plateau_patience:
    scale, waited = max(scale * config.plateau_factor, config.plateau_min / config.learning_rate), 0
  return (*others, PlateauState(jnp.asarray(scale, jnp.float32), jnp.asarray(waited, jnp.int32)))


def learning_rate(opt_state: optax.OptState, *, step: int, config: TrainConfig) -> float:
  """The rate at which step number `step`, counted from 1, was done from this state of the optimiser."""
  scale = float(opt_state[-1].scale) if config.schedule == "plateau" else 1.0
  return float(learning_rate_schedule(config)(step - 1)) * scale


def create_optimizer(config: TrainConfig) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW or SGD with momentum 0.9, then the schedule "plateau" where it is on.

  AdamW is that of Loshchilov and Hutter 2019 (arXiv:1711.05101). Weight decay leaves out biases, norms, the
  fusion's probe and bottleneck tokens, and everything of one dimension or none, whatever its name.

  Raises:
    ValueError: an unknown optimizer name.
  """
  schedule = learning_rate_schedule(config)
  if config.optimizer == "adamw":
    update = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decayed)
  elif config.optimizer == "sgd":
    update = optax.sgd(schedule, momentum=0.9)
  else:
    raise ValueError(f"Unknown optimizer {config.optimizer!r}; there are adamw, sgd.")
  transforms = [optax.clip_by_global_norm(config.clip_norm), update]
  if config.schedule == "plateau":
    transforms.append(_scale_on_plateau())
  return optax.chain(*transforms)


def _scale_on_plateau() -> optax.GradientTransformation:
  def init(params):
    del params
    return PlateauState(jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    return jax.tree.map(lambda x: x * state.scale, updates), state

  return optax.GradientTransformation(init, update)


def _decayed(params):
  def matrix(path, value) -> bool:
    # By name: those of attention heads and of both directions of an LSTM have two dimensions.
    return value.ndim > 1 and path[-1].key not in _NEVER_DECAYED

  return jax.tree_util.tree_map_with_path(matrix, params)
