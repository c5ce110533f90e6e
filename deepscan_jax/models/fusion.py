"""Joins the branches: a learned probe's attention over their tokens, or the fixed ensemble it has to beat."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.interface import BranchOutput, hide
from deepscan_jax.models.layers import Dense, DenseGeneral

# The fixed ensemble: what is seen in single frames, over time, and heard. The branches of one kind that are
# present share its weight; a branch of no kind counts as a kind of its own.
ENSEMBLE_WEIGHTS = {"spatial": 0.6, "temporal": 0.2, "audio": 0.2}
ENSEMBLE_KINDS = {
  "spatial_densenet": "spatial",
  "spatial_xception": "spatial",
  "autoencoder": "spatial",
  "cnn3d": "temporal",
  "lipsync": "audio",
}
OTHER_WEIGHT = 0.2


def weighted_ensemble(branches: dict[str, BranchOutput]) -> tuple[jax.Array, jax.Array]:
  """The mean of the branches' logits with fixed weights, renormalised over what is present.

  Args:
    branches: outputs by name.

  Returns:
    logit [batch], 0 where nothing is present, and weights [batch, branch], each row summing to 1 or to 0.
  """
  kinds = [ENSEMBLE_KINDS.get(name, name) for name in branches]
  fixed = jnp.array([ENSEMBLE_WEIGHTS.get(kind, OTHER_WEIGHT) for kind in kinds])
  same_kind = jnp.array([[a == b for a in kinds] for b in kinds], jnp.float32)
  present = jnp.stack([branch.present for branch in branches.values()], axis=1).astype(jnp.float32)
  weights = fixed * present / jnp.maximum(present @ same_kind, 1.0)
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
    bottlenecks: tokens through which the branches tell each other what they see, before the probe asks; 0:
      they do not.
    dtype: what the network computes in; see models/interface.py.
  """

  heads: int = 4
  modality_dropout: float = 0.0
  bottlenecks: int = 0
  dtype: str = "float32"

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
    if self.bottlenecks:
      exchange = BottleneckExchange(self.heads, self.bottlenecks, dtype=self.dtype, name="exchange")
      tokens = exchange(tokens, masks)
    probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width))
    probe = jnp.broadcast_to(probe, (present.shape[0], 1, width))
    keys = jnp.concatenate([probe, *tokens], axis=1)
    valid = jnp.concatenate([jnp.ones((present.shape[0], 1), bool), *masks], axis=1)

    project = {"features": (self.heads, width // self.heads), "axis": -1}
    query = DenseGeneral(**project, name="query")(probe.astype(self.dtype))
    key = DenseGeneral(**project, name="key")(keys.astype(self.dtype))
    value = DenseGeneral(**project, name="value")(keys.astype(self.dtype)).astype(jnp.float32)
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


class BottleneckExchange(nn.Module):
  """Branches tell each other what they see through a few shared tokens, and in no other way.

  The multimodal bottleneck of Nagrani et al. 2021 (arXiv:2107.00135): in each layer every branch attends to
  its own tokens and the shared ones, and the shared ones become the mean of what the branches that are
  present made of them. What one branch wrote in one layer the others read in the next, so there are two
  layers at least. Unlike in the paper the branches share a layer's weights, for their tokens say of which
  kind they are: weights of their own would make the fusion of eight branches larger than most branches.

  Attributes:
    heads: attention heads; must divide the token width.
    bottlenecks: number of shared tokens.
    layers: at least 2.
    dtype: what the network computes in; see models/interface.py.
  """

  heads: int
  bottlenecks: int
  layers: int = 2
  dtype: str = "float32"

  @nn.compact
  def __call__(self, tokens: list[jax.Array], masks: list[jax.Array]) -> list[jax.Array]:
    """Returns the tokens of each branch, [batch, token, feature], 0 where hidden.

    Args:
      tokens: of each branch, [batch, token, feature], 0 where hidden, the branch's kind added to them.
      masks: of each branch, [batch, token] bool.
    """
    batch, _, width = tokens[0].shape
    start = self.param("bottlenecks", nn.initializers.normal(0.02), (self.bottlenecks, width))
    shared = jnp.broadcast_to(start, (batch, self.bottlenecks, width))
    present = jnp.stack([mask.any(axis=1) for mask in masks]).astype(jnp.float32)[..., None, None]
    for layer in range(self.layers):
      block = _AttentionBlock(self.heads, self.dtype, name=f"layer{layer}")
      seen, heard = [], []
      for own, mask in zip(tokens, masks, strict=True):
        valid = jnp.concatenate([jnp.ones((batch, self.bottlenecks), bool), mask], axis=1)
        x = block(jnp.concatenate([shared, own], axis=1), valid)
        heard.append(x[:, : self.bottlenecks])
        seen.append(hide(x[:, self.bottlenecks :], mask))
      tokens = seen
      mean = (jnp.stack(heard) * present).sum(axis=0) / jnp.maximum(present.sum(axis=0), 1.0)
      shared = jnp.where(present.any(axis=0), mean, shared)
    return tokens


class _AttentionBlock(nn.Module):
  """A pre-norm transformer block over the valid tokens; what is added up stays float32."""

  heads: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
    mask = valid[:, None, None, :]
    attention = nn.MultiHeadAttention(
      self.heads, dtype=jnp.dtype(self.dtype), force_fp32_for_softmax=True, name="attention"
    )
    x = x + attention(nn.LayerNorm(name="norm")(x), mask=mask)
    hidden = nn.LayerNorm(name="norm_wide")(x).astype(self.dtype)
    hidden = nn.gelu(Dense(2 * x.shape[-1], name="widen")(hidden))
    return x + Dense(x.shape[-1], name="narrow")(hidden)


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
