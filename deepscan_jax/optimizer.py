"""The optimiser that a TrainConfig names, as one optax transformation."""

import jax
import optax

from deepscan_jax.config import TrainConfig


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up to config.learning_rate, then a half cosine that reaches 0 at config.steps."""
  warmup = min(config.warmup_steps, max(config.steps - 1, 0))
  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), 0.0
  )


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
