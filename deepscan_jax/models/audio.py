"""The audio branch: listens for what synthesis and voice cloning leave in a spectrum."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.models.audio_features import (
  AudioFeatures,
  FeatureConfig,
  audible,
  audio_features,
  check_waveform,
  power_spectrum,
  without_channel,
)
from deepscan_jax.models.audio_statistics import pulse_frames, pulse_statistics, spectral_statistics
from deepscan_jax.models.convnext import halve_mask, with_height
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import Conv, Dense, LayerNorm
from deepscan_jax.models.time_windows import TimeWindows, time_windows

_HIDDEN_SCORE = -1e9


class AudioBranch(nn.Module):
  """A convolutional network over the log-mel spectrogram, beside hand-made features, pooled by attention.

  Statistics of the spectrogram over the same time (`audio_statistics`) join what is pooled.

  The same pooling and the same last layers judge the whole and each of the overlapping windows, so that these
  show where in time the whole found its evidence. Attentive mean and deviation: Okabe et al. 2018
  (https://arxiv.org/abs/1803.10963).

  Attributes:
    features: width of a token.
    network: False leaves the convolutional network out and judges by a linear function of the statistics: of
      few engines, a hidden layer learns those it is shown and hears less in those it never heard.
    widths: channels of each stage; a stage halves time and frequency.
    depths: residual blocks of each stage.
    dropout: of a token, in training.
    least_s: seconds of sound without which the branch is absent.
    whole_s: seconds of sound from which on the logit of the whole counts in full; 0: always. What is measured
      on less strays further, as a mean does, with the root of its length; so the logit is multiplied by the
      root of the share, or real voices of two seconds would exceed a threshold that was set on four several
      times as often.
    window_s, window_hop_s: of the windows in time.
    sound: frames and bands. The outermost bands are left out: what a recorder or a resampler did tells
      recordings apart there, and is not what makes a voice synthetic.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("waveform", "waveform_mask")

  features: int = 256
  network: bool = True
  widths: tuple[int, ...] = (16, 32, 64)
  depths: tuple[int, ...] = (0, 1, 2)
  dropout: float = 0.2
  least_s: float = 0.25
  whole_s: float = 0.0
  window_s: float = 1.0
  window_hop_s: float = 0.5
  sound: FeatureConfig = FeatureConfig(hop_length=320, window_length=512, lowest_hz=80.0, highest_hz=7200.0)
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token for all of the sound and one for each window of it.

    The branch is absent where less than least_s of the waveform is valid, or where all is silence.

    Args:
      batch: waveform [batch, sample] float in -1..1, waveform_mask [batch, sample] bool.
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, 1 + window, features], the first of the whole; logit of the whole, by whole_s; maps
      "window_logit" [batch, window] and "window_times_s" [batch, window], the middle of each window, both 0
      where less than half of a window is sound.
    """
    waveform, mask = batch["waveform"], batch["waveform_mask"]
    check_waveform(waveform, mask)
    mask = mask & audible(waveform, mask)[:, None]
    heard = audio_features(waveform, mask, self.sound)
    windows = time_windows(
      _times_s(heard.frame_mask.shape[1], self.sound),
      window_s=self.window_s,
      hop_s=self.window_hop_s,
      duration_s=waveform.shape[1] / self.sound.sample_rate_hz,
    )
    frame_s = self.sound.hop_length / self.sound.sample_rate_hz
    present = windows.present(heard.frame_mask, least=max(1, round(self.least_s / frame_s)))
    pooled = self._statistics(heard, waveform, mask, windows)
    # For who asks for "intermediates" (launch/benchmark_voices.py).
    self.sow("intermediates", "statistics", pooled)
    pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
    if self.network:
      steps, step_mask = self._spectrogram_steps(heard)
      series = self._feature_steps(heard, len(self.widths))
      steps = nn.gelu(Dense(self.features, name="join")(jnp.concatenate([steps, series], axis=-1)))
      member = windows.over(2 ** len(self.widths) * _times_s(steps.shape[1], self.sound))
      found = AttentivePooling(name="pool")(steps, step_mask, member)
      pooled = jnp.concatenate([found, pooled], axis=-1)
    tokens = nn.Dense(self.features, name="describe")(pooled)
    if self.network:
      tokens = nn.relu(tokens)
    tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
    # A linear judgement begins at none: what chance drew would stay where nothing is learned.
    begin = nn.linear.default_kernel_init if self.network else nn.initializers.zeros
    logits = hide(nn.Dense(1, kernel_init=begin, name="classify")(tokens)[..., 0], present)
    logit = logits[:, 0]
    if self.whole_s:
      seconds = mask.sum(axis=1) / self.sound.sample_rate_hz
      logit = logit * jnp.sqrt(jnp.minimum(seconds / self.whole_s, 1.0))
    return BranchOutput(
      tokens=hide(tokens, present),
      token_mask=present,
      logit=logit,
      maps={"window_logit": logits[:, 1:], "window_times_s": windows.times_of(present)},
    )

  def _spectrogram_steps(self, heard: AudioFeatures) -> tuple[jax.Array, jax.Array]:
    """The spectrogram through the stages: [batch, step, feature] and which steps are sound."""
    mask = heard.frame_mask
    x = hide(with_height(without_channel(heard.log_mel, mask)), mask).astype(self.dtype)
    block = 0
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      mask = halve_mask(mask)
      size = 3 if stage else 5
      x = Conv(width, (size, size), 2, padding=size // 2, use_bias=False, name=f"reduce{stage}")(x)
      x = nn.relu(ExampleNorm(name=f"norm{stage}")(x, mask))
      for _ in range(depth):
        x = ResidualBlock(name=f"block{block}")(x, mask)
        block += 1
    x = nn.relu(ExampleNorm(name="norm")(x, mask))
    x = MaskedChannelAttention(name="channel_attention")(x, mask)
    # Which band a trace lies in matters, so bands are not averaged.
    x = x.reshape(*x.shape[:2], -1)
    return hide(nn.gelu(Dense(self.features, name="bands")(x)), mask), mask

  def _statistics(
    self, heard: AudioFeatures, waveform: jax.Array, mask: jax.Array, windows: TimeWindows
  ) -> jax.Array:
    """Statistics of all of the sound and of each window: [batch, 1 + window, statistic]."""
    frames, pulses = heard.frame_mask, pulse_frames(self.sound)
    of_bands = spectral_statistics(
      heard.log_mel, power_spectrum(waveform, mask, self.sound), frames, windows.member, self.sound
    )
    count = 1 + waveform.shape[1] // pulses.hop_length
    of_pulses = pulse_statistics(waveform, mask, windows.over(_times_s(count, pulses)), self.sound)
    return jnp.concatenate([of_bands, of_pulses], axis=-1)

  def _feature_steps(self, heard: AudioFeatures, stages: int) -> jax.Array:
    """The hand-made features of frames, reduced to the same steps: [batch, step, feature]."""
    mask = heard.frame_mask
    x = _scaled_features(heard, self.sound).astype(self.dtype)
    for stage in range(stages):
      mask = halve_mask(mask)
      x = Conv(64, (5,), 2, padding=2, name=f"series{stage}")(x)
      x = hide(nn.gelu(LayerNorm(epsilon=1e-6, name=f"series_norm{stage}")(x)), mask)
    return x


class ExampleNorm(nn.Module):
  """Mean 0 and deviation 1 over all of one example, then a scale and a bias for each channel.

  Group norm of a single group (Wu & He 2018, https://arxiv.org/abs/1803.08494) that padding stays out of.
  No statistics of a batch: those of a batch of pairs tell each twin what the other is. Computes in
  float32 and answers in the type of its input.
  """

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [batch, rows, columns, channel], zero where the mask is False.

    Args:
      x: [batch, rows, columns, channel].
      mask: [batch, rows] bool.
    """
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    dtype = x.dtype
    x = hide(x.astype(jnp.float32), mask)
    mean = masked_mean(x.mean(axis=(-2, -1)), mask)[:, None, None, None]
    variance = masked_mean(jnp.square(x - mean).mean(axis=(-2, -1)), mask)[:, None, None, None]
    return hide((x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias, mask).astype(dtype)


class ResidualBlock(nn.Module):
  """Two convolutions behind norms, around which the input is added (He et al. 2016, arXiv:1603.05027)."""

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [batch, rows, columns, channel], zero where the mask is False.

    Args:
      x: [batch, rows, columns, channel], zero where the mask is False.
      mask: [batch, rows] bool, rows being time.
    """
    y = x
    for i in range(2):
      y = nn.relu(ExampleNorm(name=f"norm{i}")(y, mask))
      y = Conv(x.shape[-1], (3, 3), padding=1, use_bias=False, name=f"conv{i}")(y)
    return x + hide(y, mask)


class AttentivePooling(nn.Module):
  """Mean and deviation over the steps of each window, weighted by how much a step tells.

  Attributes:
    hidden: units of the network that scores a step.
  """

  hidden: int = 64

  @nn.compact
  def __call__(self, steps: jax.Array, mask: jax.Array, member: np.ndarray) -> jax.Array:
    """Returns [batch, window, 2 * feature] float32; zeros for a window without a valid step.

    Args:
      steps: [batch, step, feature].
      mask: [batch, step] bool.
      member: [window, step] bool, which steps each window holds.
    """
    scores = Dense(1, name="score")(jnp.tanh(Dense(self.hidden, name="hidden")(steps)))[..., 0]
    steps = steps.astype(jnp.float32)
    inside = mask[:, None] & member
    scores = jnp.where(inside, scores[:, None].astype(jnp.float32), _HIDDEN_SCORE)
    weights = jnp.where(inside, nn.softmax(scores, axis=-1), 0.0)
    mean = weights @ steps
    variance = jnp.maximum(weights @ jnp.square(steps) - jnp.square(mean), 0.0)
    pooled = jnp.concatenate([mean, jnp.sqrt(variance + 1e-4)], axis=-1)
    return jnp.where(inside.any(axis=-1, keepdims=True), pooled, 0.0)


class MaskedChannelAttention(nn.Module):
  """layers.ChannelAttention over the valid rows only, rows being time."""

  reduction: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns x [batch, rows, columns, channel], each channel multiplied by its weight in 0..1.

    Args:
      x: zero where the mask is False.
      mask: [batch, rows] bool.
    """
    channels = x.shape[-1]
    reduce = Dense(max(1, channels // self.reduction), use_bias=False, name="reduce")
    expand = Dense(channels, use_bias=False, name="expand")
    highest = jnp.where(mask[..., None], x.max(axis=2), -jnp.inf).max(axis=1)
    highest = jnp.where(mask.any(axis=1, keepdims=True), highest, 0.0)
    pooled = jnp.stack([masked_mean(x.mean(axis=2), mask), highest], axis=1)
    weights = nn.sigmoid(expand(nn.relu(reduce(pooled))).sum(axis=1))
    return x * weights[:, None, None, :]


def _times_s(count: int, sound: FeatureConfig) -> np.ndarray:
  return sound.hop_length / sound.sample_rate_hz * np.arange(count)


def _scaled_features(heard: AudioFeatures, sound: FeatureConfig) -> jax.Array:
  """All features of a frame but the spectrogram, each in about -2..2, as [batch, frame, feature]."""
  mask = heard.frame_mask
  highest_hz = sound.sample_rate_hz / 2
  scaled = [
    heard.mfcc / 50.0,
    heard.chroma * 2.0 - 1.0,
    heard.centroid / highest_hz * 4.0 - 1.0,
    heard.bandwidth / highest_hz * 8.0 - 2.0,
    heard.roll_off / highest_hz * 3.0 - 1.0,
    jnp.log10(heard.flatness + 1e-6) / 2.0 + 1.0,
    heard.contrast / 10.0 - 2.0,
    heard.zero_crossings * 8.0 - 1.0,
  ]
  scaled = jnp.concatenate(scaled, axis=-1)
  # Loudness, room and line are in the mean.
  return hide(scaled - masked_mean(scaled, mask)[:, None], mask)
