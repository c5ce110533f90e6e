"""Joins the branches: a learned probe's attention over their tokens, or the fixed ensemble it has to beat."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.interface import BranchOutput, hide

# The mission's ensemble; a branch that is not named gets the last weight.
ENSEMBLE_WEIGHTS = {"spatial": 0.6, "temporal": 0.2, "audio": 0.2}
OTHER_WEIGHT = 0.2


def weighted_ensemble(branches: dict[str, BranchOutput]) -> tuple[jax.Array, jax.Array]:
  """The mean of the branches' logits with fixed weights, renormalised over what is present.

  Args:
    branches: outputs by name.

  Returns:
    logit [batch], 0 where nothing is present, and weights [batch, branch], each row summing to 1 or to 0.
  """
  fixed = jnp.array([ENSEMBLE_WEIGHTS.get(name, OTHER_WEIGHT) for name in branches])
  present = jnp.stack([branch.present for branch in branches.values()], axis=1)
  weights = fixed * present
  weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
  return _weighted_logit(branches, weights), weights


class AttentionFusion(nn.Module):
  """A learned probe attends over the tokens of all branches that are present.

  The fused logit is the branches' logits, averaged by the attention that each branch drew, plus a correction
  read from the attended tokens that starts at zero: training begins at an ensemble and departs from it where
  that pays. The probe is itself a token that is always valid, so the attention is finite when nothing else
  is.

  Attributes:
    heads: attention heads; must divide the token width.
    modality_dropout: probability of hiding a present branch in training (rng "modality"), never the last one.
  """

  heads: int = 4
  modality_dropout: float = 0.0

  @nn.compact
  def __call__(self, branches: dict[str, BranchOutput], *, train: bool) -> tuple[jax.Array, jax.Array]:
    """Returns logit [batch], 0 where nothing is present, and the branches' shares [batch, branch]."""
    present = jnp.stack([branch.present for branch in branches.values()], axis=1)
    if train and self.modality_dropout > 0:
      present = drop_modalities(self.make_rng("modality"), present, rate=self.modality_dropout)
    tokens, masks, owner = [], [], []
    for index, (name, branch) in enumerate(branches.items()):
      width = branch.tokens.shape[-1]
      kind = self.param(f"kind_{name}", nn.initializers.normal(0.02), (width,))
      mask = branch.token_mask & present[:, index, None]
      tokens.append(hide(branch.tokens, mask) + hide(jnp.broadcast_to(kind, branch.tokens.shape), mask))
      masks.append(mask)
      owner += [index] * branch.tokens.shape[1]
    probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width))
    probe = jnp.broadcast_to(probe, (present.shape[0], 1, width))
    keys = jnp.concatenate([probe, *tokens], axis=1)
    valid = jnp.concatenate([jnp.ones((present.shape[0], 1), bool), *masks], axis=1)

    project = {"features": (self.heads, width // self.heads), "axis": -1}
    query = nn.DenseGeneral(**project, name="query")(probe)
    key = nn.DenseGeneral(**project, name="key")(keys)
    value = nn.DenseGeneral(**project, name="value")(keys)
    scores = einops.einsum(query, key, "batch one head depth, batch token head depth -> batch head token")
    scores = jnp.where(valid[:, None], scores.astype(jnp.float32) * (width // self.heads) ** -0.5, -1e9)
    attention = nn.softmax(scores, axis=-1)
    fused = einops.einsum(attention, value, "batch head token, batch token head depth -> batch head depth")
    fused = nn.LayerNorm(name="norm")(einops.rearrange(fused, "batch head depth -> batch (head depth)"))

    owners = jax.nn.one_hot(jnp.array(owner), len(branches))
    shares = attention.mean(axis=1)[:, 1:] @ owners
    shares = shares / jnp.maximum(shares.sum(axis=1, keepdims=True), 1e-6)
    correction = nn.Dense(1, kernel_init=nn.initializers.zeros, name="correct")(fused)[:, 0]
    correction = jnp.where(present.any(axis=1), correction, 0.0)
    return _weighted_logit(branches, shares) + correction, shares


def drop_modalities(key: jax.Array, present: jax.Array, *, rate: float) -> jax.Array:
  """Hides present branches at random, but never the last one of an example.

  Args:
    key: a PRNG key.
    present: [batch, branch] bool.
    rate: probability of hiding each.

  Returns:
    [batch, branch] bool, a subset of present; a row that had any True keeps at least one.
  """
  draw = jax.random.uniform(key, present.shape)
  # The present branch with the highest draw stays whatever the rate.
  spared = jnp.arange(present.shape[1]) == jnp.where(present, draw, -1.0).argmax(axis=1, keepdims=True)
  return present & ((draw >= rate) | spared)


def _weighted_logit(branches: dict[str, BranchOutput], weights: jax.Array) -> jax.Array:
  logits = jnp.stack([branch.logit for branch in branches.values()], axis=1)
  return (logits * weights).sum(axis=1)
