"""The spatial branch: looks at each face crop alone, for traces of blending and regions that do not fit."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.backbones import backbone
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import ChannelAttention, Dense, SpatialAttention

_REGION_FEATURES = 128


class SpatialBranch(nn.Module):
  """A picture network with channel and spatial attention, a region head, and inside compared with outside.

  Attributes:
    backbone: a name of models/backbones.py.
    features: width of a token.
    dropout: of the pooled description, in training.
    axis_name: the pmap axis.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("crops", "crop_mask")

  backbone: str = "lite0"
  features: int = 256
  dropout: float = 0.2
  axis_name: str | None = None
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token per crop.

    Args:
      batch: crops [batch, frame, height, width, 3] uint8 or float in 0..255, crop_mask [batch, frame] bool.
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, frame, features]; logit, the mean over the frames present; maps "region" [batch, frame,
      rows, columns], the logit of each place lying in a blended region, and "frame_logit" [batch, frame].
    """
    mask = batch["crop_mask"]
    crops = hide(batch["crops"], mask)
    frames = crops.shape[1]
    network = backbone(self.backbone)
    images = network.normalise(einops.rearrange(crops, "batch frame ... -> (batch frame) ..."))
    images = images.astype(self.dtype)
    maps = network.make(axis_name=self.axis_name, name="backbone")(images, train=train)
    description, region = RegionHead(name="region_head")(maps)
    description = nn.relu(nn.Dense(self.features, name="describe")(description))
    tokens = nn.Dropout(self.dropout, deterministic=not train)(description)
    logits = nn.Dense(1, name="classify")(tokens)[:, 0]

    def by_frame(x: jax.Array) -> jax.Array:
      return einops.rearrange(x, "(batch frame) ... -> batch frame ...", frame=frames)

    frame_logit = hide(by_frame(logits), mask)
    return BranchOutput(
      tokens=hide(by_frame(tokens), mask),
      token_mask=mask,
      logit=masked_mean(frame_logit, mask),
      maps={"region": hide(by_frame(region), mask), "frame_logit": frame_logit},
    )


class RegionHead(nn.Module):
  """Where a face may have been blended, and how that place differs from the rest of the same picture.

  A picture has its own noise, compression and light, so a single statistic says little; the difference
  between the suspected region and its surroundings is what a forgery cannot avoid. The region map is trained
  on the blend masks of pseudo-fakes (the use of masks as supervision: Dang et al., CVPR 2020,
  arXiv:1910.01717); attention as in CBAM.
  """

  @nn.compact
  def __call__(self, maps: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the description [batch, feature] and the region logits [batch, rows, columns] at stride 16.

    Both are float32, whatever the type of the maps.
    """
    middle = maps["stride16"]
    rows, columns = middle.shape[1:3]
    fine = nn.avg_pool(_fitted(maps["stride8"], 2 * rows, 2 * columns), (2, 2), strides=(2, 2))
    coarse = _fitted(maps["stride32"].repeat(2, axis=1).repeat(2, axis=2), rows, columns)
    x = jnp.concatenate([fine, middle, coarse], axis=-1)
    x = nn.relu(Dense(_REGION_FEATURES, name="mix")(x))
    x = ChannelAttention(name="channel_attention")(x)
    x, _ = SpatialAttention(name="spatial_attention")(x)
    x = x.astype(jnp.float32)
    region = nn.Dense(1, name="region")(x)
    inside = nn.sigmoid(region)
    flat = (1, 2)
    strongest = jax.lax.top_k(einops.rearrange(region, "batch rows columns 1 -> batch (rows columns)"), 16)[0]
    description = jnp.concatenate(
      [
        maps["head"].mean(flat, dtype=jnp.float32),
        (inside * x).sum(flat) / (inside.sum(flat) + 1e-3),
        ((1 - inside) * x).sum(flat) / ((1 - inside).sum(flat) + 1e-3),
        strongest.mean(axis=1, keepdims=True),
        inside.mean(flat),
      ],
      axis=-1,
    )
    return description, region[..., 0]


def _fitted(x: jax.Array, rows: int, columns: int) -> jax.Array:
  """x [batch, row, column, channel] cut or its edge repeated: odd maps are halved downwards or upwards."""
  x = x[:, :rows, :columns]
  missing = ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2]), (0, 0))
  return jnp.pad(x, missing, mode="edge")
