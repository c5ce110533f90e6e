"""The detector: the branches that a configuration names, and their fusion."""

import functools
from collections.abc import Iterable

import flax.linen as nn
import jax

from deepscan_jax.config import ModelConfig
from deepscan_jax.models.audio import AudioBranch
from deepscan_jax.models.autoencoder import AutoencoderBranch
from deepscan_jax.models.cnn3d import CNN3DBranch
from deepscan_jax.models.fusion import AttentionFusion, weighted_ensemble
from deepscan_jax.models.interface import DetectorOutput
from deepscan_jax.models.lipsync import LipSyncBranch
from deepscan_jax.models.provenance import ProvenanceBranch
from deepscan_jax.models.spatial import SpatialBranch
from deepscan_jax.models.temporal import TemporalBranch

# Read by one branch, made by another: never part of a batch.
FRAME_FEATURES = "frame_features"


def image_networks(config: ModelConfig) -> dict[str, str]:
  """The spatial branches of a configuration and the picture network that each sits on, in their order."""
  networks = {
    "spatial": config.backbone,
    "spatial_densenet": config.densenet,
    "spatial_xception": config.xception,
  }
  return {name: networks[name] for name in config.branches if name in networks}


def _spatial(config: ModelConfig, axis_name: str | None, *, name: str, network: str) -> nn.Module:
  return SpatialBranch(getattr(config, network), axis_name=axis_name, name=name, **_widths(config))


def _widths(config: ModelConfig) -> dict:
  return {"features": config.features, "dropout": config.dropout}


BRANCHES = {
  "spatial": functools.partial(_spatial, name="spatial", network="backbone"),
  "spatial_densenet": functools.partial(_spatial, name="spatial_densenet", network="densenet"),
  "spatial_xception": functools.partial(_spatial, name="spatial_xception", network="xception"),
  "cnn3d": lambda config, axis_name: CNN3DBranch(
    factorised=config.cnn3d_factorised, axis_name=axis_name, name="cnn3d", **_widths(config)
  ),
  "temporal": lambda config, axis_name: TemporalBranch(
    frame_features=bool(image_networks(config)), name="temporal", **_widths(config)
  ),
  "autoencoder": lambda config, axis_name: AutoencoderBranch(
    axis_name=axis_name, name="autoencoder", **_widths(config)
  ),
  "audio": lambda config, axis_name: AudioBranch(
    network=config.audio_network, name="audio", **_widths(config)
  ),
  "lipsync": lambda config, axis_name: LipSyncBranch(name="lipsync", **_widths(config)),
  "provenance": lambda config, axis_name: ProvenanceBranch(features=config.features, name="provenance"),
}
FUSIONS = ("attention", "weighted")


def make_branch(name: str, config: ModelConfig, axis_name: str | None = None) -> nn.Module:
  """Returns the branch of that name; ValueError with the names that there are."""
  if name not in BRANCHES:
    raise ValueError(f"Unknown branch {name!r}; there are {', '.join(BRANCHES)}.")
  return BRANCHES[name](config, axis_name)


def detector_inputs(config: ModelConfig) -> tuple[str, ...]:
  """The keys of a batch that a detector of this configuration reads, each once, in the branches' order.

  Raises:
    ValueError: an unknown branch.
  """
  keys = (key for name in config.branches for key in make_branch(name, config).INPUTS)
  return tuple(dict.fromkeys(key for key in keys if key != FRAME_FEATURES))


def branches_that_read(config: ModelConfig, keys: Iterable[str]) -> tuple[str, ...]:
  """The branches of a configuration that find everything they read among these keys, in their order.

  A detector of these alone answers a batch of these keys as the whole one would if all else were absent.
  """
  keys = {*keys, FRAME_FEATURES}
  return tuple(name for name in config.branches if keys.issuperset(make_branch(name, config).INPUTS))


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

    The temporal branch reads the frames' tokens of the first spatial branch, so that a picture network looks
    at each frame once.

    Args:
      batch: the INPUTS of every branch; see deepscan_jax.examples.
      train: dropout on; needs the rngs "dropout" and "modality".

    Raises:
      ValueError: no branch or an unknown one, an unknown fusion, or a key that a branch reads is missing.
    """
    config = self.config
    if config.fusion not in FUSIONS:
      raise ValueError(f"Unknown fusion {config.fusion!r}; there are {', '.join(FUSIONS)}.")
    if not config.branches:
      raise ValueError(f"model.branches is empty; there are {', '.join(BRANCHES)}.")
    describing = next(iter(image_networks(config)), None)
    outputs = {}
    # What another branch reads comes first; the order of the configuration is kept in the output.
    for name in sorted(config.branches, key=lambda name: name != describing):
      branch = make_branch(name, config, self.axis_name)
      seen = batch
      if describing in outputs:
        seen = {**batch, FRAME_FEATURES: outputs[describing].tokens}
      missing = [key for key in branch.INPUTS if key not in seen]
      if missing:
        raise ValueError(
          f"Branch {name!r} reads {', '.join(missing)}; the batch has {', '.join(sorted(batch))}."
        )
      outputs[name] = branch(seen, train=train)
    branches = {name: outputs[name] for name in config.branches}
    if config.fusion == "weighted":
      logit, weights = weighted_ensemble(branches)
    else:
      fusion = AttentionFusion(
        config.fusion_heads, config.modality_dropout, config.bottlenecks, name="fusion"
      )
      logit, weights = fusion(branches, train=train)
    return DetectorOutput(logit=logit, branches=branches, weights=weights)
