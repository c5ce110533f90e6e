"""The detector: the branches that a configuration names, and their fusion."""

import functools
import re
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.config import ModelConfig
from deepscan_jax.models.audio import AudioBranch
from deepscan_jax.models.autoencoder import AutoencoderBranch
from deepscan_jax.models.cnn3d import CNN3DBranch
from deepscan_jax.models.fusion import AttentionFusion, weighted_ensemble
from deepscan_jax.models.interface import FACE_LABEL, LABEL_OF, LABELS, DetectorOutput
from deepscan_jax.models.lipsync import LipSyncBranch
from deepscan_jax.models.provenance import ProvenanceBranch
from deepscan_jax.models.spatial import SpatialBranch
from deepscan_jax.models.temporal import TemporalBranch

# Read by one branch, made by another: never part of a batch.
FRAME_FEATURES = "frame_features"
# What joins the branches, among the parameters.
FUSION = "fusion"


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
  return {"features": config.features, "dropout": config.dropout, "dtype": config.dtype}


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
    network=config.audio_network, whole_s=config.whole_sound_s, name="audio", **_widths(config)
  ),
  "lipsync": lambda config, axis_name: LipSyncBranch(name="lipsync", **_widths(config)),
  "provenance": lambda config, axis_name: ProvenanceBranch(
    features=config.features, dtype=config.dtype, name="provenance"
  ),
}
FUSIONS = ("attention", "weighted")
_OWN = frozenset(BRANCHES)


def register_branch(
  name: str, make: Callable[[ModelConfig, str | None], nn.Module], *, label: str = FACE_LABEL
) -> None:
  """Adds a branch of your own, which configurations then name in model.branches.

  To be called before a configuration that names it is used, in every program that trains it or loads a model
  that has it: best in the module that holds the branch. A name that was registered may be registered again,
  and then stands for the new branch.

  Args:
    name: letters, digits and "_".
    make: f(config, axis_name) -> a Flax module of that name (name=...) which keeps the contract of
      models/interface.py. axis_name, for batch statistics, is that of the devices while training, or None.
    label: whose label its own loss has: "face_label", "sound_label", or "label" of all that the model reads.

  Raises:
    ValueError: the name is none, or is that of a branch of this package; there is no such label.
  """
  if not re.fullmatch(r"[A-Za-z]\w*", name):
    raise ValueError(f"A branch is called by letters, digits and _, from a letter on; got {name!r}.")
  if name in _OWN:
    raise ValueError(f"{name!r} is a branch of deepscan_jax already; choose another name for yours.")
  if label not in LABELS:
    raise ValueError(f"Branch {name!r} cannot learn {label!r}; there are {', '.join(LABELS)}.")
  BRANCHES[name], LABEL_OF[name] = make, label


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
      logit, weights = _attention_fusion(config)(branches, train=train)
    return DetectorOutput(logit=logit, branches=branches, weights=weights)


def leave_one_out(config: ModelConfig, variables: dict, output: DetectorOutput) -> dict[str, jax.Array]:
  """The fused logit of all branches but one, for each of them.

  The fusion alone is run again, with one branch hidden as if it were absent; what the other branches said
  stays, so this is exact at the cost of a few tokens. A branch that reads another's tokens keeps them.

  Args:
    config: of the detector.
    variables: its variables.
    output: what it said of a batch, in eval mode, within the same jit: there its branches keep their order.

  Returns:
    By name, [batch] float32; 0 where no other branch is present.
  """

  def fuse(kept: jax.Array) -> jax.Array:
    branches = {
      name: branch.replace(token_mask=branch.token_mask & kept[i])
      for i, (name, branch) in enumerate(output.branches.items())
    }
    if config.fusion == "weighted":
      return weighted_ensemble(branches)[0]
    fusion = _attention_fusion(config)
    return fusion.apply({"params": variables["params"][FUSION]}, branches, train=False)[0]

  logits = jax.vmap(fuse)(~jnp.eye(len(output.branches), dtype=bool))
  return {name: logits[i] for i, name in enumerate(output.branches)}


def _attention_fusion(config: ModelConfig) -> AttentionFusion:
  return AttentionFusion(
    config.fusion_heads, config.modality_dropout, config.bottlenecks, config.dtype, name=FUSION
  )
