"""The detector: the branches that a configuration names, and their fusion."""

import flax.linen as nn
import jax

from deepscan_jax.config import ModelConfig
from deepscan_jax.models.fusion import AttentionFusion, weighted_ensemble
from deepscan_jax.models.interface import DetectorOutput
from deepscan_jax.models.spatial import SpatialBranch

BRANCHES = {
  "spatial": lambda config, axis_name: SpatialBranch(
    backbone=config.backbone,
    features=config.features,
    dropout=config.dropout,
    axis_name=axis_name,
    name="spatial",
  ),
}
FUSIONS = ("attention", "weighted")


class Detector(nn.Module):
  """All branches over one batch, and one logit.

  Attributes:
    config: which branches, how joined.
    axis_name: the pmap axis; None outside of pmap.
  """

  config: ModelConfig
  axis_name: str | None = None

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> DetectorOutput:
    """Judges every example of the batch.

    Args:
      batch: the INPUTS of every branch; see deepscan_jax.examples.
      train: dropout on; needs the rngs "dropout" and "modality".

    Raises:
      ValueError: an unknown branch or fusion, or a key that a branch reads is missing.
    """
    if self.config.fusion not in FUSIONS:
      raise ValueError(f"Unknown fusion {self.config.fusion!r}; there are {', '.join(FUSIONS)}.")
    branches = {}
    for name in self.config.branches:
      if name not in BRANCHES:
        raise ValueError(f"Unknown branch {name!r}; there are {', '.join(BRANCHES)}.")
      branch = BRANCHES[name](self.config, self.axis_name)
      missing = [key for key in branch.INPUTS if key not in batch]
      if missing:
        raise ValueError(
          f"Branch {name!r} reads {', '.join(missing)}; the batch has {', '.join(sorted(batch))}."
        )
      branches[name] = branch(batch, train=train)
    if self.config.fusion == "weighted":
      logit, weights = weighted_ensemble(branches)
    else:
      fusion = AttentionFusion(self.config.fusion_heads, self.config.modality_dropout, name="fusion")
      logit, weights = fusion(branches, train=train)
    return DetectorOutput(logit=logit, branches=branches, weights=weights)
