"""The lip-sync branch: whether the mouth that is seen says what is heard.

Chung & Zisserman 2016, "Out of Time: Automated Lip Sync in the Wild" (the SyncNet): two towers describe the
same 0.2 s, one from the picture and one from the sound, and are trained on real clips so that what belongs
together lies close and what is shifted in time lies apart (losses.sync_loss). Their distances over shifts
then tell by how much the sound is off, and how sure that is.

The picture runs at 25 frames a second, the spectrogram at 100; picture i lies at i / 25 s after the first
sample. A MOMENT is five pictures and the 20 spectrogram frames beside them; moment i begins with picture i.
"""

from __future__ import annotations

from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.models.audio_features import (
  FeatureConfig,
  audible,
  check_waveform,
  frame_mask,
  sliding,
  standard_log_mel,
)
from deepscan_jax.models.convnext import ConvNextBlock, Reduce, with_height
from deepscan_jax.models.interface import BranchOutput, hide
from deepscan_jax.models.layers import ChannelAttention, Conv, Dense, LayerNorm
from deepscan_jax.models.time_windows import TimeWindows, time_windows

PICTURES_PER_SECOND = 25
MOMENT = 5  # pictures
_FRAMES_PER_PICTURE = 4
_LEAST_PAIRS = 5  # moments, without which the distance of a shift is not known
_HIGHEST_SCALE = 100.0


class LipSyncBranch(nn.Module):
  """Distances between what is seen and what is heard over shifts of the sound, and what they say of a clip.

  A real clip has one deep minimum, at a shift that stays the same; sound of another origin has none, and an
  edited span moves it. The judgement reads the distances without a gradient into the towers: these learn from
  real clips what belongs together (losses.sync_loss on the maps "shift_logit" and "shift_mask"), and never
  from the fakes that happen to be in a data set.

  Attributes:
    features: width of a token.
    embedding: width of what the towers put out.
    video_widths: channels of the video tower at strides 4, 8 and 16.
    audio_widths: channels of the audio tower's stages.
    max_shift: pictures, in both directions.
    least_moments: moments that must be both seen and heard, or the branch is absent; 25 are 29 pictures.
    window_s, window_hop_s: of the windows in time that are judged on their own.
    dropout: of a token, in training.
    sound: frames and bands; 100 frames a second.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("mouth_crops", "mouth_mask", "waveform", "waveform_mask")

  features: int = 256
  embedding: int = 256
  video_widths: tuple[int, int, int] = (24, 64, 128)
  audio_widths: tuple[int, ...] = (32, 64, 128)
  max_shift: int = 15
  least_moments: int = 25
  window_s: float = 1.0
  window_hop_s: float = 0.5
  dropout: float = 0.2
  sound: FeatureConfig = FeatureConfig()
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token for the clip and one for each window of it.

    Present where at least least_moments are seen and heard and the sound is not all silence; a window,
    where half of its moments are.

    Args:
      batch: mouth_crops [batch, mouth frame, height, width, 3] uint8 or float in 0..255, mouth_mask [batch,
        mouth frame] bool, waveform [batch, sample] float in -1..1, waveform_mask [batch, sample] bool.
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, 1 + window, features], the first of the clip; logit of the clip; maps, 0 where absent:
        "distance" [batch, shift]: mean distance of the embeddings, 0..2, by shift from -max_shift; 0 where
          fewer than 5 moments could be compared.
        "offset" [batch]: pictures by which the sound lags behind the picture, where the distance is least.
        "confidence" [batch]: median of the distances over shifts minus the least.
        "drift" [batch]: standard deviation of the windows' offsets, weighted by their confidence; pictures.
        "window_offset", "window_confidence", "window_logit", "window_times_s" [batch, window]: the same of
          each window, and its middle.
        "shift_logit" [batch, moment, shift]: scaled similarity of what is seen at a moment to what is heard a
          shift later, with "shift_mask", 1 where both are there.
    """
    self._check(batch)
    video, video_mask = self._seen(batch, train=train)
    audio, audio_mask = self._heard(batch, moments=video.shape[1], train=train)
    windows = time_windows(
      (np.arange(video.shape[1]) + 0.5 * MOMENT) / PICTURES_PER_SECOND,
      window_s=self.window_s,
      hop_s=self.window_hop_s,
      duration_s=(video.shape[1] + MOMENT - 1) / PICTURES_PER_SECOND,
    )
    present = windows.present(video_mask & audio_mask, least=self.least_moments)
    similarity, pairs = shifted_similarity(video, video_mask, audio, audio_mask, max_shift=self.max_shift)
    pairs = pairs & present[:, :1, None]
    scale = jnp.exp(self.param("log_scale", nn.initializers.constant(np.log(10.0)), ()))
    shift_logit = jnp.where(pairs, similarity * jnp.minimum(scale, _HIGHEST_SCALE), 0.0)

    curve = distance_curves(jax.lax.stop_gradient(similarity), pairs, windows)
    summary = summarise(curve, max_shift=self.max_shift)
    drift = hide(_drift(summary["offset"], summary["confidence"], present[:, 1:]), present[:, 0])
    tokens = self._describe(curve, summary, drift)
    tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
    logits = hide(nn.Dense(1, name="classify")(tokens)[..., 0], present)
    offset, confidence = hide(summary["offset"], present), hide(summary["confidence"], present)
    return BranchOutput(
      tokens=hide(tokens, present),
      token_mask=present,
      logit=logits[:, 0],
      maps={
        "distance": jnp.where(curve.known[:, 0], curve.distance[:, 0], 0.0),
        "offset": offset[:, 0],
        "confidence": confidence[:, 0],
        "drift": drift,
        "window_offset": offset[:, 1:],
        "window_confidence": confidence[:, 1:],
        "window_logit": logits[:, 1:],
        "window_times_s": windows.times_of(present),
        "shift_logit": shift_logit,
        "shift_mask": pairs.astype(jnp.float32),
      },
    )

  def _seen(self, batch: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, jax.Array]:
    """Embeddings of what is seen [batch, moment, embedding], and which moments are seen throughout."""
    mask = batch["mouth_mask"]
    crops = hide(batch["mouth_crops"], mask).astype(jnp.float32)
    short = max(0, MOMENT - mask.shape[1])
    mask = jnp.pad(mask, ((0, 0), (0, short)))
    crops = jnp.pad(crops, ((0, 0), (0, short), (0, 0), (0, 0), (0, 0)))
    pictures = mask.shape[1]
    fine, middle, coarse = self.video_widths
    x = einops.rearrange((crops - 127.0) / 128.0, "batch picture ... -> (batch picture) ...")
    x = x.astype(self.dtype)
    x = nn.gelu(Reduce(fine, kernel_size=7, strides=(4, 4), name="video_stem")(x))
    x = nn.gelu(Reduce(middle, name="video_reduce1")(x))
    # Motion: the five pictures of a moment together, at a stride where that is affordable.
    rows = x.shape[1]
    x = einops.rearrange(
      x, "(batch picture) row column channel -> batch picture (row column) channel", picture=pictures
    )
    x = Conv(middle, (MOMENT, 1), padding="VALID", name="video_join")(x)
    moments = x.shape[1]
    x = einops.rearrange(
      x, "batch moment (row column) channel -> (batch moment) row column channel", row=rows
    )
    x = LayerNorm(epsilon=1e-6, name="video_join_norm")(x)
    x = ConvNextBlock(name="video_block1")(x, train=train)
    x = Reduce(coarse, name="video_reduce2")(x)
    x = ConvNextBlock(name="video_block2")(x, train=train)
    x = ChannelAttention(name="video_channel_attention")(x)
    x = Dense(self.embedding, name="video_embed")(x.mean(axis=(1, 2)))
    x = einops.rearrange(_unit(x), "(batch moment) feature -> batch moment feature", moment=moments)
    return x, sliding(mask, length=MOMENT, hop=1, count=moments).all(axis=2)

  def _heard(self, batch: dict[str, jax.Array], *, moments: int, train: bool) -> tuple[jax.Array, jax.Array]:
    """Embeddings of what is heard [batch, moment, embedding], and which moments are heard throughout."""
    waveform, mask = batch["waveform"], batch["waveform_mask"]
    mask = mask & audible(waveform, mask)[:, None]
    cut = {"length": MOMENT * _FRAMES_PER_PICTURE, "hop": _FRAMES_PER_PICTURE, "count": moments}
    heard = sliding(frame_mask(mask, self.sound), **cut).all(axis=2)
    x = sliding(standard_log_mel(waveform, mask, self.sound), **cut)
    x = with_height(einops.rearrange(x, "batch moment frame band -> (batch moment) frame band"))
    x = x.astype(self.dtype)
    for stage, width in enumerate(self.audio_widths):
      size, strides = (3, (2, 2)) if stage else (5, (2, 4))
      x = Reduce(width, kernel_size=size, strides=strides, name=f"audio_reduce{stage}")(x)
      # The first stage is wide and has little to say: a block there would cost more than all the others.
      x = ConvNextBlock(name=f"audio_block{stage}")(x, train=train) if stage else nn.gelu(x)
    x = ChannelAttention(name="audio_channel_attention")(x)
    # Bands stay apart, time is averaged: it is one moment.
    x = einops.rearrange(x.mean(axis=1), "moments band channel -> moments (band channel)")
    x = Dense(self.embedding, name="audio_embed")(x)
    return einops.rearrange(_unit(x), "(batch moment) feature -> batch moment feature", moment=moments), heard

  def _describe(self, curve: DistanceCurves, summary: dict[str, jax.Array], drift: jax.Array) -> jax.Array:
    """[batch, 1 + window, features] of the curves, relative to their medians, and what sums them up."""
    relative = jnp.where(curve.known, curve.distance - summary["median"][..., None], 0.0)
    drifts = jnp.zeros_like(summary["offset"]).at[:, 0].set(drift)
    numbers = [
      summary["median"] - 1.0,
      summary["confidence"] * 4.0,
      jnp.abs(summary["offset"]) / self.max_shift,
      drifts / self.max_shift * 4.0,
    ]
    x = jnp.concatenate([relative * 4.0, jnp.stack(numbers, axis=-1)], axis=-1)
    x = nn.gelu(nn.Dense(64, name="curve")(x))
    return nn.relu(nn.Dense(self.features, name="describe")(x))

  def _check(self, batch: dict[str, jax.Array]) -> None:
    check_waveform(batch["waveform"], batch["waveform_mask"])
    crops, mask = batch["mouth_crops"], batch["mouth_mask"]
    if crops.ndim != 5 or crops.shape[-1] != 3 or crops.shape[:2] != mask.shape or mask.shape[1] == 0:
      raise ValueError(
        "mouth_crops must be [batch, mouth frame, height, width, 3] and mouth_mask [batch, mouth frame], "
        f"with at least one frame; got {crops.shape} and {mask.shape}."
      )
    frames_per_second = self.sound.sample_rate_hz / self.sound.hop_length
    if frames_per_second != PICTURES_PER_SECOND * _FRAMES_PER_PICTURE:
      raise ValueError(f"Lip-sync needs 100 frames of sound a second; got {frames_per_second:g}.")


class DistanceCurves(NamedTuple):
  """Mean distances over shifts, [batch, 1 + window, shift]: of the clip, then of each window.

  Attributes:
    distance: 0..2; 0 where not known.
    known: bool, False where too few moments could be compared.
  """

  distance: jax.Array
  known: jax.Array


def shifted_similarity(
  video: jax.Array, video_mask: jax.Array, audio: jax.Array, audio_mask: jax.Array, *, max_shift: int
) -> tuple[jax.Array, jax.Array]:
  """Cosine of what is seen at each moment and what is heard up to max_shift before and after.

  Args:
    video, audio: [batch, moment, feature] of length 1.
    video_mask, audio_mask: [batch, moment] bool.
    max_shift: moments.

  Returns:
    similarity [batch, moment, shift], shifts from -max_shift to max_shift; and [batch, moment, shift] bool,
    whether both are there; similarity is 0 where not.
  """
  moments = video.shape[1]
  both_ends = ((0, 0), (max_shift, max_shift))
  shifts = range(2 * max_shift + 1)
  heard_mask = jnp.pad(audio_mask, both_ends)
  pairs = jnp.stack([video_mask & heard_mask[:, k : k + moments] for k in shifts], axis=-1)
  # The product of all with all is cheap; the band about its diagonal is what a row-major buffer yields when
  # each row is read one place later than the one before.
  products = einops.einsum(video, audio, "batch seen feature, batch heard feature -> batch seen heard")
  rows = jnp.pad(products, ((0, 0), *both_ends))
  rows = jnp.pad(rows.reshape(rows.shape[0], -1), ((0, 0), (0, moments)))
  band = rows.reshape(rows.shape[0], moments, moments + 2 * max_shift + 1)
  return jnp.where(pairs, band[:, :, : len(shifts)], 0.0), pairs


def distance_curves(similarity: jax.Array, pairs: jax.Array, windows: TimeWindows) -> DistanceCurves:
  """Mean distances of embeddings by shift, of each window.

  Args:
    similarity, pairs: see `shifted_similarity`.
    windows: over moments.
  """
  # Of vectors of length 1: |a - b|^2 = 2 - 2 a.b
  distances = jnp.where(pairs, jnp.sqrt(jnp.maximum(2.0 - 2.0 * similarity, 0.0)), 0.0)
  member = windows.member.astype(np.float32)
  total = einops.einsum(distances, member, "batch moment shift, window moment -> batch window shift")
  count = einops.einsum(
    pairs.astype(jnp.float32), member, "batch moment shift, window moment -> batch window shift"
  )
  known = count >= _LEAST_PAIRS
  return DistanceCurves(jnp.where(known, total / jnp.maximum(count, 1.0), 0.0), known)


def summarise(curve: DistanceCurves, *, max_shift: int) -> dict[str, jax.Array]:
  """What the SyncNet says of a curve: "offset", "median", "confidence".

  Args:
    curve: over shifts from -max_shift.
    max_shift: pictures.

  Returns:
    [batch, window] each, 0 where no shift is known.
  """
  ordered = jnp.sort(jnp.where(curve.known, curve.distance, jnp.inf), axis=-1)
  number = curve.known.sum(axis=-1)
  middles = jnp.stack([jnp.maximum(number - 1, 0) // 2, number // 2], axis=-1)
  middles = jnp.minimum(middles, ordered.shape[-1] - 1)
  median = jnp.take_along_axis(ordered, middles, axis=-1).mean(axis=-1)
  any_known = number > 0
  offset = jnp.argmin(jnp.where(curve.known, curve.distance, jnp.inf), axis=-1) - max_shift
  return {
    "offset": jnp.where(any_known, offset, 0).astype(jnp.float32),
    "median": jnp.where(any_known, median, 0.0),
    "confidence": jnp.where(any_known, median - ordered[..., 0], 0.0),
  }


def _drift(offset, confidence, present):
  """Weighted standard deviation of the offsets [batch, 1 + window] without the first, the clip's."""
  weights = hide(confidence[:, 1:], present)
  weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
  mean = (weights * offset[:, 1:]).sum(axis=1, keepdims=True)
  return jnp.sqrt((weights * jnp.square(offset[:, 1:] - mean)).sum(axis=1))


def _unit(x):
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-8)
