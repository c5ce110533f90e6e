"""Signals like speech, made of numbers: a larynx with a wandering pitch, formants, pauses, a room's hiss."""

import numpy as np
import scipy.signal

RATE_HZ = 16000


def voice(*, seconds: float, seed: int) -> np.ndarray:
  """float32 [sample]: syllables of pulses and of hiss through moving formants, with pauses between words."""
  rng = np.random.default_rng(seed)
  samples = round(seconds * RATE_HZ)
  times_s = np.arange(samples) / RATE_HZ
  vibrato = 1 + rng.uniform(0.02, 0.08) * np.sin(2 * np.pi * rng.uniform(3, 6) * times_s + rng.uniform(0, 6))
  pitch = rng.uniform(90, 230) * vibrato * np.exp(rng.uniform(-0.15, 0.15) * np.sin(times_s))
  phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
  harmonics = np.arange(1, 60)
  # Phases that differ by harmonic, as vocal tracts make them: less of a spike than all in step.
  offsets = rng.uniform(-1, 1, len(harmonics))
  pulses = sum(
    np.where(k * pitch < 7800, 1 / k, 0) * np.cos(k * phase + offset)
    for k, offset in zip(harmonics, offsets, strict=True)
  )
  source = pulses + rng.uniform(0.02, 0.2) * rng.standard_normal(samples)
  sound = np.zeros(samples)
  for low, high in ((300, 800), (900, 2200), (2400, 3400), (3500, 5500)):
    middle, width = rng.uniform(low, high), rng.uniform(60, 200)
    top, bottom = scipy.signal.iirpeak(middle, middle / width, fs=RATE_HZ)
    sound += scipy.signal.lfilter(top, bottom, source)
  knots = np.arange(0, seconds + 0.2, 0.1)
  loudness = rng.uniform(0.1, 1, len(knots)) * (rng.random(len(knots)) > 0.25)
  sound *= np.interp(times_s, knots, loudness)
  sound *= rng.uniform(0.02, 0.1) / sound.std()
  sound += sound.std() * 10 ** (-rng.uniform(40, 60) / 20) * rng.standard_normal(samples)
  return np.clip(sound + rng.uniform(-1e-3, 1e-3), -1, 1).astype(np.float32)


def speech(*, seconds: float, seed: int) -> np.ndarray:
  """float32 [sample]: as `voice`, but each syllable has a vowel of its own and most begin with a hiss.

  So spectrum and pitch move as those of speech do, which is what the gate of deepscan_jax.speech listens for.
  """
  rng = np.random.default_rng(seed)
  samples = round(seconds * RATE_HZ)
  times_s = np.arange(samples) / RATE_HZ
  knots = np.arange(0, seconds + 0.4, 0.2)
  pitch = rng.uniform(90, 220) * np.exp(np.interp(times_s, knots, rng.uniform(-0.25, 0.25, len(knots))))
  phase = np.cumsum(pitch) / RATE_HZ
  pulses = scipy.signal.lfilter([1], [1, -0.95], np.diff(np.floor(phase), prepend=0)) - 0.05
  sound, start = np.zeros(samples), rng.uniform(0, 0.05)
  while start < seconds:
    length, rest = rng.uniform(0.12, 0.25), rng.choice([0.0, 0.02, 0.15], p=[0.5, 0.35, 0.15])
    voiced = slice(round(start * RATE_HZ), round((start + length) * RATE_HZ))
    vowel = pulses[voiced] * np.hanning(len(pulses[voiced])) ** 0.5
    for low, high, width in ((300, 800, 80), (900, 2200, 120), (2400, 3400, 200)):
      poles = scipy.signal.iirpeak(rng.uniform(low, high), rng.uniform(low, high) / width, fs=RATE_HZ)
      vowel = vowel + 6 * scipy.signal.lfilter(*poles, vowel)
    sound[voiced] += vowel / (vowel.std() + 1e-9)
    hiss = rng.standard_normal(round(rng.uniform(0.03, 0.09) * RATE_HZ))
    poles = scipy.signal.iirpeak(rng.uniform(2500, 6000), 2, fs=RATE_HZ)
    hiss = scipy.signal.lfilter(*poles, hiss * np.hanning(len(hiss)))
    behind = sound[voiced.stop : voiced.stop + len(hiss)]
    behind += (0.5 * (rng.random() < 0.7) * hiss / hiss.std())[: len(behind)]
    start += length + 0.06 + rest
  sound *= rng.uniform(0.02, 0.1) / sound.std()
  sound += sound.std() * 10 ** (-rng.uniform(40, 60) / 20) * rng.standard_normal(samples)
  return np.clip(sound, -1, 1).astype(np.float32)


def telephone(waveform: np.ndarray) -> np.ndarray:
  """A waveform as it was sampled at 8 kHz in between."""
  return scipy.signal.resample_poly(scipy.signal.resample_poly(waveform, 1, 2), 2, 1).astype(np.float32)


def lag(heard: np.ndarray, original: np.ndarray) -> int:
  """Samples by which `heard` is late: where the cross-correlation peaks."""
  correlation = scipy.signal.correlate(heard, original, mode="full")
  return int(correlation.argmax()) - (len(original) - 1)


def envelope(waveform: np.ndarray) -> np.ndarray:
  """Loudness over time, [sample], without what lies above 25 Hz."""
  sections = scipy.signal.butter(2, 25, fs=RATE_HZ, output="sos")
  smooth = scipy.signal.sosfiltfilt(sections, np.abs(waveform))
  return smooth - smooth.mean()
