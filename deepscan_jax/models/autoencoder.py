"""The anomaly branch: an autoencoder that has only ever learnt real faces, and what it cannot rebuild.

It needs no fakes, so it may notice a kind that nobody has shown it; in return it says only "unlike the real
faces I know", which a rare camera is too.
"""

from __future__ import annotations

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.crops import reduce_crops
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import Conv, ConvNorm, Dense

# Where the scale starts: the logarithm of a usual error, and how steeply the logit rises from there.
_USUAL_LOG_ERROR = -2.5
_FIRST_SLOPE = 4.0
_SMALLEST_ERROR = 1e-3


class AutoencoderBranch(nn.Module):
  """An autoencoder of face crops with a calibrated scale for its errors.

  Only `losses.reconstruction_loss` trains the autoencoder, and it counts real faces only. What classifies
  reads the errors through a stop_gradient: it fits the scale and the tokens, and nothing before them.

  Attributes:
    widths: channels of the encoder's convolutions, each of stride 2; the decoder mirrors them.
    code: channels of the code, at the encoder's last resolution. With the defaults a 112-pixel crop of
      37,632 numbers has a code of 392: too few to copy it.
    reduction: crops are reduced by this factor; 2 makes 112 pixels of 224.
    features: width of a token.
    dropout: of the tokens, in training.
    axis_name: the pmap axis.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("crops", "crop_mask")

  widths: Sequence[int] = (32, 64, 96, 128)
  code: int = 8
  reduction: int = 2
  features: int = 256
  dropout: float = 0.2
  axis_name: str | None = None
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token per crop.

    Args:
      batch: crops [batch, frame, height, width, 3] uint8 or float in 0..255, sides divisible by reduction *
        2 ** len(widths); crop_mask [batch, frame] bool.
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, frame, features]; logit, the mean over the frames present; maps "reconstruction_error"
      [batch, frame, rows, columns], for each pixel of the reduced crop the mean size of the error over the
      colours, 0..2 and more where the network is far off; and "frame_logit" [batch, frame], rising with
      the mean error of the frame and never falling: an oddity is never counted in favour.
    """
    mask = batch["crop_mask"]
    crops = reduce_crops(batch["crops"], mask, reduction=self.reduction)
    images = einops.rearrange(crops, "batch frame ... -> (batch frame) ...")
    rebuilt = Autoencoder(self.widths, self.code, axis_name=self.axis_name, name="autoencoder")(
      images.astype(self.dtype), train=train
    )
    rebuilt = rebuilt.reshape(crops.shape).astype(jnp.float32)
    error = hide(jnp.abs(rebuilt - crops).mean(axis=-1), mask)

    seen = jax.lax.stop_gradient(error)
    frame_logit = hide(ErrorScale(name="scale")(_log(seen.mean(axis=(2, 3)))), mask)
    fields = einops.reduce(
      seen,
      "batch frame (row rows) (column columns) -> batch frame (row column)",
      "mean",
      rows=2 ** len(self.widths),
      columns=2 ** len(self.widths),
    )
    tokens = nn.relu(nn.Dense(self.features, name="describe")(_log(fields) - _USUAL_LOG_ERROR))
    tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
    return BranchOutput(
      tokens=hide(tokens, mask),
      token_mask=mask,
      logit=masked_mean(frame_logit, mask),
      maps={"reconstruction_error": error, "frame_logit": frame_logit},
    )


class Autoencoder(nn.Module):
  """Images rebuilt from a code that is far smaller than they are.

  Attributes:
    widths: see AutoencoderBranch.
    code: see AutoencoderBranch.
    axis_name: see layers.BatchNorm.
  """

  widths: Sequence[int] = (32, 64, 96, 128)
  code: int = 8
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns images [batch, height, width, 3] float as rebuilt, the same shape.

    Raises:
      ValueError: the sides are no multiples of 2 ** len(widths).
    """
    step = 2 ** len(self.widths)
    if images.shape[1] % step or images.shape[2] % step:
      raise ValueError(f"The autoencoder needs sides that {step} divides; got {images.shape[1:3]}.")
    x = images
    for level, width in enumerate(self.widths):
      x = ConvNorm(
        width, kernel_size=3, stride=2, activation=nn.silu, axis_name=self.axis_name, name=f"down{level}"
      )(x, train=train)
    x = Dense(self.code, name="encode")(x)
    x = nn.silu(Dense(self.widths[-1], name="decode")(x))
    for level, width in reversed(list(enumerate((3, *self.widths[:-1])))):
      # Four times the channels at half the size, then spread over the pixels (Shi et al. 2016,
      # arXiv:1609.05158).
      x = Conv(4 * width, (3, 3), name=f"up{level}")(x)
      x = einops.rearrange(
        x,
        "batch row column (rows columns channel) -> batch (row rows) (column columns) channel",
        rows=2,
        columns=2,
      )
      x = nn.silu(x) if level else x
    return x


class ErrorScale(nn.Module):
  """The logit of an error: a line that never falls, fitted by the losses that classify (as Platt 1999)."""

  @nn.compact
  def __call__(self, log_error: jax.Array) -> jax.Array:
    """Returns a logit of the same shape for each logarithm of a mean error."""
    slope = nn.softplus(self.param("slope", nn.initializers.constant(_FIRST_SLOPE), (), jnp.float32))
    bias = self.param("bias", nn.initializers.zeros, (), jnp.float32)
    return slope * (log_error - _USUAL_LOG_ERROR) + bias


def _log(error: jax.Array) -> jax.Array:
  return jnp.log(error + _SMALLEST_ERROR)
