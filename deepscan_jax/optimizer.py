"""The optimiser that a TrainConfig names, as one optax transformation."""

import jax
import optax

from deepscan_jax.config import TrainConfig


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up to config.learning_rate, then a half cosine to 0; begun again at each restart.

  Warm restarts are those of Loshchilov and Hutter 2017 (SGDR, arXiv:1608.03983). The last cycle ends at
  config.steps.

  Raises:
    ValueError: restarts that do not rise, or do not lie between 0 and config.steps.
  """
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


def create_optimizer(config: TrainConfig) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW or SGD with momentum 0.9.

  AdamW is that of Loshchilov and Hutter 2019 (arXiv:1711.05101). Weight decay leaves out everything
  one-dimensional: biases, norms and the attention's probe.

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
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _decayed(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)
