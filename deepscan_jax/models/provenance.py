"""The provenance branch: looks at what the container says of itself, never at pictures or sound."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.interface import BranchOutput, hide
from deepscan_jax.models.layers import Dense

# Where deepscan_jax.provenance.FACT_NAMES holds the valid declaration of generation.
DECLARATION = 0


class ProvenanceBranch(nn.Module):
  """A small network over container facts.

  No preset trains it by default: file facts leak labels in public sets. Fakes there were all written by one
  script and reals by another, so codec, groups of pictures and bit rate alone separate them nearly without
  error, and nothing of that holds in the world. Train it only on reals and fakes that went through the same
  channels, and even then `branch_dropout` hides the whole branch from a random part of the examples, so that
  the fusion cannot lean on it.

  An unknown fact is exactly as if it were not in the vector. The first layer begins at zero, so a fact that
  no training example knew keeps no weight at all and has no effect later either. The one exception is a valid
  declaration that the content was generated, which public sets do not hold: it is evidence before any
  training, as a prior in the branch's logit that training may move.

  Attributes:
    features: width of the token; the fusion wants the same from all branches.
    hidden: width of the hidden layer.
    branch_dropout: the probability, 0..1, that an example loses the branch in training (rng "dropout").
    declaration_logit: what the declaration, with value 1, adds to the logit before training; 3 is odds of 20
      to 1. Not more, as a signature tells who signed, not that it is true.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("file_facts", "file_facts_mask")

  features: int = 256
  hidden: int = 64
  branch_dropout: float = 0.5
  declaration_logit: float = 3.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token per example.

    Args:
      batch: file_facts [batch, fact] float in about -1..1, file_facts_mask [batch, fact] bool, as
        deepscan_jax.provenance.fact_vector gives them.
      train: whole examples hidden at random; needs the rng "dropout".

    Returns:
      tokens [batch, 1, features]; logit. Absent where no fact is known.

    Raises:
      ValueError: the two inputs are not two equal [batch, fact] shapes.
    """
    facts, mask = batch["file_facts"], batch["file_facts_mask"]
    if facts.ndim != 2 or facts.shape != mask.shape:
      raise ValueError(
        "file_facts and file_facts_mask must both be [batch, fact]; "
        f"got {list(facts.shape)} and {list(mask.shape)}."
      )
    present = mask.any(axis=1)
    if train and self.branch_dropout > 0:
      present &= jax.random.bernoulli(self.make_rng("dropout"), 1 - self.branch_dropout, present.shape)
    mask = mask & present[:, None]
    facts = hide(facts, mask).astype(jnp.float32)
    # A fact known to be zero differs from an unknown one, so which are known goes in beside the values.
    known = jnp.concatenate([facts, mask.astype(jnp.float32)], axis=1)
    x = Dense(
      self.hidden,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.normal(0.5),  # not all alike, or a zero kernel would learn one feature only
      name="mix",
    )(known.astype(self.dtype))
    x = Dense(self.features, name="describe")(nn.gelu(x))
    token = nn.gelu(x).astype(jnp.float32)
    prior = self.param("declaration", nn.initializers.constant(self.declaration_logit), ())
    logit = nn.Dense(1, kernel_init=nn.initializers.normal(0.01), name="classify")(token)[:, 0]
    logit = logit + prior * facts[:, DECLARATION]
    return BranchOutput(
      tokens=hide(token[:, None], present[:, None]),
      token_mask=present[:, None],
      logit=jnp.where(present, logit, 0.0),
    )
