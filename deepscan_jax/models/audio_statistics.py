"""How a voice moves, band by band, in numbers: what a vocoder smooths, repeats or ties together.

Moments and correlations over time of the bands of a log-mel spectrogram and of its fine structure. A small
network learns from them within few steps what a convolution has to find first, and finds it in engines that
it never heard: the classical detectors of synthetic speech model spectra and their steps likewise (Sahidullah
et al. 2015, "A Comparison of Features for Synthetic Speech Detection", Interspeech). None sees the mean of a
band, and so neither loudness nor the colour of a microphone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.models.audio_features import FeatureConfig, frame_mask, power_spectrum, without_channel
from deepscan_jax.models.interface import hide, masked_mean

_FLATNESS_BAND_HZ = 250.0
_FLATNESS_LOWEST_HZ, _FLATNESS_HIGHEST_HZ = 125.0, 7125.0
_LEAST_DEVIATION = 1e-3
_POWER_FLOOR = 1e-8  # of the loudest place
_DB = 20.0
# Windows of 4 ms every millisecond see each pulse of the larynx, in 28 bands from 250 Hz on; what they tell
# from the mean over the 25 ms around them is fine.
_PULSE_WINDOW, _PULSE_HOP, _PULSE_BANDS, _PULSE_MEAN = 64, 16, slice(1, 29), 25
# Mean and deviation of each kind over speech, so that all come to about -2..2; in the order of the columns.
_USUAL = {
  "deviation": (0.53, 0.15),
  "step": (0.36, 0.07),
  "skew": (0.47, 0.46),
  "fine": (0.22, 0.04),
  "fine_step": (0.27, 0.043),
  "neighbours": (0.86, 0.06),
  "neighbour_steps": (0.70, 0.09),
  "next_step": (-0.13, 0.135),
  "flatness": (0.67, 0.17),
  "flatness_deviation": (0.40, 0.15),
}
_USUAL_PULSES = {
  "deviation": (0.276, 0.04),
  "skew": (-0.62, 0.29),
  "neighbours": (0.42, 0.13),
  "next_neighbours": (0.20, 0.14),
  "together": (0.40, 0.13),
  "next_step": (-0.22, 0.09),
}


def spectral_statistics(
  log_mel: jax.Array, power: jax.Array, frames: jax.Array, member: np.ndarray, config: FeatureConfig
) -> jax.Array:
  """Statistics of each of several windows in time.

  Of each band: deviation and skew of its level, deviation of its step from frame to frame, and how the next
  step goes on; of bands next to each other: correlation of levels and of steps. Of the louder half of the
  frames: the bend of the spectrum over three bands, how far it is from its mean and how far it moves between
  frames; and the flatness of 250 Hz each (0 of noise that is white there), its mean and deviation.

  Args:
    log_mel: [batch, frame, band] in decibels, of three bands or more.
    power: [batch, frame, frequency], `audio_features.power_spectrum`.
    frames: [batch, frame] bool, which are sound.
    member: [window, frame] bool, which frames each window holds.
    config: of the spectra.

  Returns:
    [batch, window, statistic] float32, each in about -2..2; of no meaning where a window holds no sound.
  """
  x = without_channel(log_mel, frames)
  level = log_mel.mean(axis=-1)
  loud = frames & (level > masked_mean(level, frames)[:, None])

  mean = functools.partial(_window_mean, member=member)
  first, second, third = (mean(x**n, frames) for n in (1, 2, 3))
  variance = jnp.maximum(second - jnp.square(first), 0.0)
  deviation = jnp.sqrt(variance + _LEAST_DEVIATION**2)
  skew = (third - 3 * first * second + 2 * first**3) / (deviation**3 + _LEAST_DEVIATION)
  together = mean(x[..., 1:] * x[..., :-1], frames) - first[..., 1:] * first[..., :-1]

  moved, step = _steps(x, frames)
  step_deviation = jnp.sqrt(mean(jnp.square(step), moved) + _LEAST_DEVIATION**2)
  moved_twice = moved & jnp.pad(moved, ((0, 0), (1, 0)))[:, :-1]
  before = jnp.pad(step, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  step_products = mean(step[..., 1:] * step[..., :-1], moved)
  step_scale = step_deviation[..., 1:] * step_deviation[..., :-1]

  bend = x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]
  bend_moved, bend_step = _steps(bend, loud)
  flat = _flatness(power, config)
  flatness = mean(flat, loud)
  found = {
    "deviation": deviation,
    "step": step_deviation,
    "skew": skew,
    "fine": mean(jnp.abs(bend - masked_mean(bend, loud)[:, None]), loud),
    "fine_step": mean(jnp.abs(bend_step), bend_moved),
    "neighbours": together / (deviation[..., 1:] * deviation[..., :-1] + _LEAST_DEVIATION),
    "neighbour_steps": step_products / (step_scale + _LEAST_DEVIATION),
    "next_step": mean(step * before, moved_twice) / (jnp.square(step_deviation) + _LEAST_DEVIATION),
    "flatness": flatness,
    "flatness_deviation": jnp.sqrt(
      jnp.maximum(mean(jnp.square(flat), loud) - jnp.square(flatness), 0.0) + _LEAST_DEVIATION**2
    ),
  }
  return _scaled(found, _USUAL)


def pulse_frames(config: FeatureConfig) -> FeatureConfig:
  """The frames of `pulse_statistics` for sound of this sample rate."""
  return FeatureConfig(
    sample_rate_hz=config.sample_rate_hz,
    fft_length=_PULSE_WINDOW,
    window_length=_PULSE_WINDOW,
    hop_length=_PULSE_HOP,
  )


def pulse_statistics(
  waveform: jax.Array, mask: jax.Array, member: np.ndarray, config: FeatureConfig
) -> jax.Array:
  """Statistics of how bands rise and fall within a pitch period, for each of several windows in time.

  A larynx excites all bands at once, pulse by pulse, and a throat lets them ring; vocoders that put phases
  together do so less, those that add pulses more. Of each of 28 bands of 250 Hz, in the louder half of the
  time: deviation and skew of its fine level, how the next step goes on, and correlation with the band above,
  the one above that, and the mean of all.

  Args:
    waveform: [batch, sample] float.
    mask: [batch, sample] bool.
    member: [window, frame] bool, which frames of `pulse_frames` each window holds.
    config: of whose sample rate the sound is.

  Returns:
    [batch, window, statistic] float32, each in about -2..2; of no meaning where a window holds no sound.
  """
  config = pulse_frames(config)
  frames = frame_mask(mask, config)
  power = hide(power_spectrum(waveform, mask, config)[..., _PULSE_BANDS], frames)
  floor = _POWER_FLOOR * power.max(axis=(1, 2), keepdims=True) + jnp.finfo(jnp.float32).tiny
  level = hide(10.0 / _DB * jnp.log10(jnp.maximum(power, floor)), frames)
  smooth = _moving_sum(level) / jnp.maximum(_moving_sum(frames[..., None].astype(jnp.float32)), 1.0)
  envelope = smooth.mean(axis=-1)
  loud = frames & (envelope > masked_mean(envelope, frames)[:, None])
  fine = hide(level - smooth, loud)
  fine = hide(fine - masked_mean(fine, loud)[:, None], loud)
  usual = jnp.sqrt(masked_mean(jnp.square(fine), loud) + _LEAST_DEVIATION**2)[:, None]
  each = fine / usual
  every = each.mean(axis=-1, keepdims=True)

  mean = functools.partial(_window_mean, member=member)
  deviation = jnp.sqrt(mean(jnp.square(fine), loud) + _LEAST_DEVIATION**2)
  moved, step = _steps(fine, loud)
  moved_twice = moved & jnp.pad(moved, ((0, 0), (1, 0)))[:, :-1]
  before = jnp.pad(step, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  found = {
    "deviation": deviation,
    "skew": mean(fine**3, loud) / deviation**3,
    "neighbours": mean(each[..., 1:] * each[..., :-1], loud),
    "next_neighbours": mean(each[..., 2:] * each[..., :-2], loud),
    "together": mean(each * every, loud) / (jnp.sqrt(mean(jnp.square(every), loud)) + _LEAST_DEVIATION),
    "next_step": mean(step * before, moved_twice) / (mean(jnp.square(step), moved) + _LEAST_DEVIATION),
  }
  return _scaled(found, _USUAL_PULSES)


def _window_mean(values: jax.Array, where: jax.Array, *, member: np.ndarray) -> jax.Array:
  """[batch, window, kind]: mean of values [batch, frame, kind] over each window's frames in `where`."""
  inside = (where[:, None] & member).astype(jnp.float32)
  total = jnp.einsum("bwt,btk->bwk", inside, hide(values, where), precision=jax.lax.Precision.HIGHEST)
  return total / jnp.maximum(inside.sum(axis=-1, keepdims=True), 1.0)


def _scaled(found: dict[str, jax.Array], usual: dict[str, tuple[float, float]]) -> jax.Array:
  scaled = [(found[kind] - middle) / spread for kind, (middle, spread) in usual.items()]
  return jnp.clip(jnp.concatenate(scaled, axis=-1), -5.0, 5.0)


def _moving_sum(x: jax.Array) -> jax.Array:
  """Over _PULSE_MEAN frames of [batch, frame, band], as many before as behind."""
  size = (1, _PULSE_MEAN, 1)
  return jax.lax.reduce_window(x, 0.0, jax.lax.add, size, (1, 1, 1), "SAME")


def _steps(x: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[batch, frame] whether a frame and the one before are there, and x less that before, zero elsewhere."""
  both = frames & jnp.pad(frames, ((0, 0), (1, 0)))[:, :-1]
  return both, hide(x - jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], both)


def _flatness(power: jax.Array, config: FeatureConfig) -> jax.Array:
  """Log of the arithmetic over the geometric mean of power: [batch, frame, 28], 0 where all are equal."""
  per_hz = config.fft_length / config.sample_rate_hz
  width = round(_FLATNESS_BAND_HZ * per_hz)
  first = round(_FLATNESS_LOWEST_HZ * per_hz)
  highest_hz = min(_FLATNESS_HIGHEST_HZ, config.sample_rate_hz / 2)
  count = int((highest_hz - _FLATNESS_LOWEST_HZ) / _FLATNESS_BAND_HZ)
  floor = _POWER_FLOOR * power.max(axis=(1, 2), keepdims=True) + jnp.finfo(jnp.float32).tiny
  bands = jnp.maximum(power[..., first : first + count * width], floor)
  bands = bands.reshape(*bands.shape[:-1], count, width)
  return jnp.log(bands.mean(axis=-1)) - jnp.log(bands).mean(axis=-1)
