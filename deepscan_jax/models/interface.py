"""The contract of a branch, and the shape of what the detector answers.

A branch reads only the keys in its INPUTS, never writes into the batch, returns the same type in train and
eval, and zeroes what its mask hides before the first multiplication: a mask alone lets NaN through (0 * NaN =
NaN). A missing modality is data, not an error: zeros and a False mask.

A branch has a `dtype`, "float32" or "bfloat16": what the convolutions and dense layers of its network compute
in (mixed precision, Micikevicius et al. 2018, arXiv:1710.03740). Parameters and their gradients stay float32,
and so do norms, softmax, spectra, errors and distances, and all from a branch's pooled description on: its
tokens and its logits. bfloat16 has the range of float32, so losses need no scale.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

# Whose label a branch learns: that of the faces, unless LABEL_OF has another for its name.
FACE_LABEL, SOUND_LABEL, LABEL = LABELS = ("face_label", "sound_label", "label")
LABEL_OF = {"audio": SOUND_LABEL, "lipsync": LABEL, "provenance": LABEL}


@flax.struct.dataclass
class BranchOutput:
  """What a branch says of a batch.

  Attributes:
    tokens: [batch, token, feature] float32, what the fusion attends to.
    token_mask: [batch, token] bool, False where there is nothing to attend to.
    logit: [batch] float32, the branch's own opinion; 0 where it is absent.
    maps: explanation maps by name, each [batch, ...] float32.
  """

  tokens: jax.Array
  token_mask: jax.Array
  logit: jax.Array
  maps: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

  @property
  def present(self) -> jax.Array:
    """[batch] bool: whether the branch had anything to look at."""
    return jnp.any(self.token_mask, axis=1)


@flax.struct.dataclass
class DetectorOutput:
  """The fused opinion and what it was made of.

  Attributes:
    logit: [batch] float32; positive speaks for fake. 0 where no branch is present.
    branches: each branch's own output by name.
    weights: [batch, branch] float32, each branch's share of the fusion's attention, in the order of
      the configuration (that of `branches` is lost where jit returns it).
  """

  logit: jax.Array
  branches: dict[str, BranchOutput]
  weights: jax.Array


def hide(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Values with zeros where mask is False, whatever stood there, NaN included.

  Args:
    values: [batch, time, ...].
    mask: [batch, time] bool.
  """
  return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, 0)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Averages values over time where mask is True; 0 where nothing is.

  Args:
    values: [batch, time, ...] float.
    mask: [batch, time] bool.

  Returns:
    [batch, ...] float.
  """
  weights = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).astype(values.dtype)
  return hide(values, mask).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
