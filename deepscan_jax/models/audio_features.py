"""What the ear of the model hears: spectral features of a waveform, computed where the network runs.

Each feature is librosa's own of the same name with librosa's defaults (centred frames, zero padding, periodic
Hann window, Slaney mel scale and norm), from one shared short-time Fourier transform; its filter banks are
librosa's, computed once as constants. librosa takes long to import, which is put off until the first waveform
is judged. Samples are float in -1..1; axes are batch, frame, feature (librosa's the other way round).

Padding has no effect: where waveform_mask ends an example early, its frames are those that librosa gives for
the sound without the padding, and the frames behind are zero.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.models.interface import hide, masked_mean

# librosa's constants: the floor of a power, how far under the loudest place decibels go down, the share of a
# frame's sum below the roll-off, lowest edge and number of the octave bands, the share of a band that makes
# its peak and its valley, and the amplitude that still is zero to a zero crossing.
_POWER_FLOOR = 1e-10
_TOP_DB = 80.0
_ROLL_OFF = 0.85
_CONTRAST_LOWEST_HZ = 200.0
_CONTRAST_OCTAVES = 6
_CONTRAST_QUANTILE = 0.02
_ZERO_AMPLITUDE = 1e-10
_TINY = float(np.finfo(np.float32).tiny)
# A track that never exceeds this (-80 dB of full scale) is silence.
_SILENCE = 1e-4
_LOG_MEL_DB = 20.0


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
  """How sound is cut into frames and bands.

  The defaults suit speech: windows of 25 ms every 10 ms. They are padded to 1024 samples, for at 512 some of
  the 128 mel bands would lie between two frequencies and stay empty. librosa's defaults are a sample rate of
  22050, 2048, 2048, 512.

  Attributes:
    sample_rate_hz: of the waveform; more than 12800, the lower edge of the highest octave band twice.
    fft_length, window_length, hop_length: samples; even, the window no longer than the transform.
    mel_bands, mfcc, chroma: numbers of each.
    lowest_hz, highest_hz: ends of the mel bands; a highest of 0 is half the sample rate.
  """

  sample_rate_hz: int = 16000
  fft_length: int = 1024
  window_length: int = 400
  hop_length: int = 160
  mel_bands: int = 128
  mfcc: int = 13
  chroma: int = 12
  lowest_hz: float = 0.0
  highest_hz: float = 0.0

  def __post_init__(self):
    lengths = (self.fft_length, self.window_length, self.hop_length)
    if min(lengths) < 1 or self.window_length > self.fft_length or self.fft_length % 2:
      raise ValueError(
        "Transform, window and hop are positive, the transform even and no shorter than the window; got "
        f"{self.fft_length}, {self.window_length} and {self.hop_length}."
      )
    if self.sample_rate_hz <= _CONTRAST_LOWEST_HZ * 2**_CONTRAST_OCTAVES:
      raise ValueError(f"The sample rate must exceed 12800 Hz; got {self.sample_rate_hz}.")
    if not 0 <= self.lowest_hz < (self.highest_hz or self.sample_rate_hz / 2) <= self.sample_rate_hz / 2:
      raise ValueError(
        f"Mel bands lie between 0 and {self.sample_rate_hz / 2:g} Hz, the lowest below the highest; got "
        f"{self.lowest_hz:g} and {self.highest_hz:g}."
      )


class AudioFeatures(NamedTuple):
  """Features by frame, each [batch, frame, feature] float32, zero where frame_mask is False.

  Attributes:
    frame_mask: [batch, frame] bool; frame t is centred on sample t * hop_length.
    mel: power in mel bands.
    log_mel: the same in decibels, at most 80 under the example's loudest place.
    mfcc: cepstral coefficients of log_mel.
    chroma: pitch classes from C, the loudest 1; of a tuning of 0 (librosa estimates one, for music).
    centroid, bandwidth, roll_off: one feature each, in Hz.
    flatness: one feature, 0 (a tone) to 1 (white noise).
    contrast: peak over valley of each octave, in decibels.
    zero_crossings: one feature, crossings per sample.
  """

  frame_mask: jax.Array
  mel: jax.Array
  log_mel: jax.Array
  mfcc: jax.Array
  chroma: jax.Array
  centroid: jax.Array
  bandwidth: jax.Array
  roll_off: jax.Array
  flatness: jax.Array
  contrast: jax.Array
  zero_crossings: jax.Array


def audio_features(waveform: jax.Array, mask: jax.Array, config: FeatureConfig) -> AudioFeatures:
  """All features of a batch of waveforms.

  Args:
    waveform: [batch, sample] float.
    mask: [batch, sample] bool, False on padding.
    config: frames and bands.

  Returns:
    1 + sample // hop_length frames, those of padding hidden.
  """
  frames = frame_mask(mask, config)
  power = power_spectrum(waveform, mask, config)
  magnitude = _safe_sqrt(power)
  mel, log_mel = _mel_and_log_mel(power, frames, config)
  banks = _filter_banks(config)
  centroid, bandwidth = _centroid_and_bandwidth(magnitude, config)
  features = AudioFeatures(
    frame_mask=frames,
    mel=mel,
    log_mel=log_mel,
    mfcc=_project(log_mel, banks.cosine),
    chroma=_normalised(_project(power, banks.chroma), jnp.max),
    centroid=centroid,
    bandwidth=bandwidth,
    roll_off=_roll_off(magnitude, config),
    flatness=_flatness(power),
    contrast=_contrast(magnitude, frames, config),
    zero_crossings=_zero_crossings(waveform, mask, config),
  )
  return features._replace(**{name: hide(x, frames) for name, x in features._asdict().items()})


def standard_log_mel(waveform: jax.Array, mask: jax.Array, config: FeatureConfig) -> jax.Array:
  """The log-mel spectrogram as networks read it: less its mean over an example, in units of 20 dB.

  So loudness has no effect.

  Args:
    waveform, mask, config: as for `audio_features`.

  Returns:
    [batch, frame, mel band] float32, zero on padding and silence.
  """
  frames = frame_mask(mask, config)
  _, log_mel = _mel_and_log_mel(power_spectrum(waveform, mask, config), frames, config)
  return standardise(log_mel, frames)


def standardise(log_mel: jax.Array, frames: jax.Array) -> jax.Array:
  """See `standard_log_mel`; of log_mel [batch, frame, mel band] in decibels, frames [batch, frame] bool."""
  mean = masked_mean(log_mel.mean(axis=-1), frames)
  return hide((log_mel - mean[:, None, None]) / _LOG_MEL_DB, frames)


def without_channel(log_mel: jax.Array, frames: jax.Array) -> jax.Array:
  """Each band less its own mean over an example, in units of 20 dB: [batch, frame, mel band].

  What a microphone or a line does to a band is the same in every frame, and so has no effect (cepstral mean
  subtraction, Atal 1974, in the spectral domain); nor has loudness.

  Args:
    log_mel: [batch, frame, mel band] in decibels.
    frames: [batch, frame] bool.
  """
  return hide((log_mel - masked_mean(log_mel, frames)[:, None]) / _LOG_MEL_DB, frames)


def audible(waveform: jax.Array, mask: jax.Array) -> jax.Array:
  """Whether there is a sound at all: [batch] bool, False if no sample exceeds -80 dB of full scale.

  Args:
    waveform: [batch, sample] float.
    mask: [batch, sample] bool.
  """
  return (jnp.abs(hide(waveform, mask)) > _SILENCE).any(axis=1)


def check_waveform(waveform: jax.Array, mask: jax.Array) -> None:
  """Raises ValueError unless waveform and mask are [batch, sample] of one shape with at least one sample."""
  if waveform.ndim != 2 or waveform.shape != mask.shape or waveform.shape[1] == 0:
    raise ValueError(
      "waveform and waveform_mask must be [batch, sample] of one shape with at least one sample; got "
      f"{waveform.shape} and {mask.shape}."
    )


def frame_mask(mask: jax.Array, config: FeatureConfig) -> jax.Array:
  """Which frames have a sample at their centre or just before: [batch, 1 + sample // hop_length] bool.

  Args:
    mask: [batch, sample] bool.
    config: of which the hop is read.
  """
  count = 1 + mask.shape[1] // config.hop_length
  centre = jnp.pad(mask, ((0, 0), (0, 1)))[:, :: config.hop_length][:, :count]
  before = jnp.pad(mask, ((0, 0), (1, 0)))[:, :: config.hop_length][:, :count]
  return centre | before


def power_spectrum(waveform: jax.Array, mask: jax.Array, config: FeatureConfig) -> jax.Array:
  """|short-time Fourier transform| squared, [batch, frame, fft_length / 2 + 1] float32, of centred frames.

  Args:
    waveform, mask, config: as for `audio_features`.
  """
  samples = hide(waveform.astype(jnp.float32), mask)
  length = config.window_length
  # Where the window starts within the transform changes phases only, so what is left of it is left out.
  before = config.fft_length // 2 - (config.fft_length - length) // 2
  cut = _centred_frames(samples, before=before, length=length, config=config)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
  spectrum = jnp.fft.rfft(cut * window.astype(np.float32), n=config.fft_length)
  return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def sliding(x: jax.Array, *, length: int, hop: int, count: int) -> jax.Array:
  """Overlapping windows of a series; zeros beyond its end.

  Written as slices of blocks of one hop, joined: a gather of every window takes many times longer on CPUs.

  Args:
    x: [batch, time, ...].
    length: of a window; hop: from one to the next; count: how many, the first at 0.

  Returns:
    [batch, count, length, ...].
  """
  blocks = -(-length // hop)
  needed = (count + blocks - 1) * hop
  x = jnp.pad(x[:, :needed], ((0, 0), (0, max(0, needed - x.shape[1])), *((0, 0),) * (x.ndim - 2)))
  x = x.reshape(x.shape[0], count + blocks - 1, hop, *x.shape[2:])
  return jnp.concatenate([x[:, i : i + count] for i in range(blocks)], axis=2)[:, :, :length]


class _FilterBanks(NamedTuple):
  mel: np.ndarray  # [frequency, mel band]
  chroma: np.ndarray  # [frequency, pitch class]
  cosine: np.ndarray  # [mel band, coefficient]


@functools.cache
def _filter_banks(config: FeatureConfig) -> _FilterBanks:
  import librosa.filters  # numba and scipy.signal come with it: seconds

  rate = {"sr": config.sample_rate_hz, "n_fft": config.fft_length}
  band = np.arange(config.mel_bands)
  cosine = np.cos(np.pi / config.mel_bands * np.outer(band + 0.5, np.arange(config.mfcc)))
  cosine *= np.sqrt(np.where(np.arange(config.mfcc) == 0, 1, 2) / config.mel_bands)
  return _FilterBanks(
    mel=librosa.filters.mel(
      **rate, n_mels=config.mel_bands, fmin=config.lowest_hz, fmax=config.highest_hz or None
    ).T.astype(np.float32),
    chroma=librosa.filters.chroma(**rate, n_chroma=config.chroma, tuning=0.0).T.astype(np.float32),
    cosine=cosine.astype(np.float32),
  )


def _project(x: jax.Array, bank: np.ndarray) -> jax.Array:
  # Accelerators would round the operands to bfloat16.
  return jnp.matmul(x, bank, precision=jax.lax.Precision.HIGHEST)


def _mel_and_log_mel(power, frames, config):
  mel = _project(power, _filter_banks(config).mel)
  return mel, hide(_decibels(mel, frames), frames)


def _decibels(power: jax.Array, frames: jax.Array) -> jax.Array:
  """librosa.power_to_db: decibels of [batch, frame, band], none more than 80 under the example's highest."""
  decibels = 10.0 * jnp.log10(jnp.maximum(power, _POWER_FLOOR))
  highest = jnp.where(frames[..., None], decibels, -jnp.inf).max(axis=(1, 2), keepdims=True)
  return jnp.maximum(decibels, highest - _TOP_DB)


def _frequencies(config: FeatureConfig) -> np.ndarray:
  return np.linspace(0, config.sample_rate_hz / 2, config.fft_length // 2 + 1).astype(np.float32)


def _normalised(x: jax.Array, norm) -> jax.Array:
  """x over its norm along the last axis; x itself where that is zero."""
  size = norm(x, axis=-1, keepdims=True)
  return x / jnp.where(size < _TINY, 1.0, size)


def _centroid_and_bandwidth(magnitude, config):
  frequencies = _frequencies(config)
  shares = _normalised(magnitude, jnp.sum)
  centroid = (shares * frequencies).sum(axis=-1, keepdims=True)
  variance = (shares * jnp.square(frequencies - centroid)).sum(axis=-1, keepdims=True)
  return centroid, _safe_sqrt(variance)


def _roll_off(magnitude, config):
  total = jnp.cumsum(magnitude, axis=-1)
  reached = total >= _ROLL_OFF * total[..., -1:]
  return jnp.asarray(_frequencies(config))[jnp.argmax(reached, axis=-1)][..., None]


def _flatness(power):
  floored = jnp.maximum(power, _POWER_FLOOR)
  return jnp.exp(jnp.log(floored).mean(axis=-1, keepdims=True)) / floored.mean(axis=-1, keepdims=True)


def _contrast(magnitude, frames, config):
  """Mean of the highest places of each octave band over that of the lowest, in decibels."""
  valleys, peaks = [], []
  for start, stop, count in _octave_bands(config):
    band = magnitude[..., start:stop]
    peaks.append(_mean_of_highest(band, count))
    valleys.append(-_mean_of_highest(-band, count))
  return _decibels(jnp.stack(peaks, axis=-1), frames) - _decibels(jnp.stack(valleys, axis=-1), frames)


def _mean_of_highest(x, count):
  return x.max(axis=-1) if count == 1 else jax.lax.top_k(x, count)[0].mean(axis=-1)


def _octave_bands(config: FeatureConfig) -> list[tuple[int, int, int]]:
  """(start, stop, places that make a peak) of each band, as librosa.feature.spectral_contrast draws them.

  A band has the frequencies between its edges, both counted, and the one below; the last has all that are
  left. All but the last lose their highest again, which then still counts in the number of places.
  """
  frequencies = np.linspace(0, config.sample_rate_hz / 2, config.fft_length // 2 + 1)
  edges = np.concatenate([[0.0], _CONTRAST_LOWEST_HZ * 2.0 ** np.arange(_CONTRAST_OCTAVES + 1)])
  bands = []
  for k, (low, high) in enumerate(itertools.pairwise(edges)):
    inside = np.flatnonzero((frequencies >= low) & (frequencies <= high))
    last = k == _CONTRAST_OCTAVES
    start = inside[0] - (k > 0)
    stop = len(frequencies) if last else inside[-1] + 1
    count = max(1, int(np.rint(_CONTRAST_QUANTILE * (stop - start))))
    bands.append((int(start), int(stop if last else stop - 1), count))
  return bands


def _zero_crossings(waveform, mask, config):
  negative = hide(waveform.astype(jnp.float32), mask) < -_ZERO_AMPLITUDE
  # A step into padding or out of it is none.
  crossing = (negative[:, 1:] != negative[:, :-1]) & mask[:, 1:] & mask[:, :-1]
  crossing = jnp.pad(crossing, ((0, 0), (1, 0))).astype(jnp.float32)
  length = config.fft_length
  frames = _centred_frames(crossing, before=length // 2, length=length, config=config)
  # The first sample of a frame has none before it.
  return frames[..., 1:].sum(axis=-1, keepdims=True) / length


def _centred_frames(samples, *, before, length, config):
  """Frames of [batch, sample], frame t starting `before` samples ahead of sample t * hop_length."""
  count = 1 + samples.shape[1] // config.hop_length
  return sliding(jnp.pad(samples, ((0, 0), (before, 0))), length=length, hop=config.hop_length, count=count)


def _safe_sqrt(x):
  # The gradient of a plain root is infinite at 0, and 0 times that is NaN.
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
