"""Statistics of a voice: the textbook's numbers, and what may not change them."""

import functools

import jax
import numpy as np
import pytest
import voices

from deepscan_jax.models import audio_features
from deepscan_jax.models.audio_features import FeatureConfig
from deepscan_jax.models.audio_statistics import pulse_frames, pulse_statistics, spectral_statistics
from deepscan_jax.models.time_windows import time_windows

CONFIG = FeatureConfig(hop_length=320, window_length=512, mel_bands=40, lowest_hz=80.0, highest_hz=7200.0)
SAMPLES = 24000
# Of each kind the columns, and what they are scaled by.
COLUMNS = {
  "deviation": (slice(0, 40), 0.53, 0.15),
  "step": (slice(40, 80), 0.36, 0.07),
  "skew": (slice(80, 120), 0.47, 0.46),
  "fine": (slice(120, 158), 0.22, 0.04),
  "neighbours": (slice(196, 235), 0.86, 0.06),
  "neighbour_steps": (slice(235, 274), 0.70, 0.09),
  "next_step": (slice(274, 314), -0.13, 0.135),
  "flatness": (slice(314, 342), 0.67, 0.17),
}


@functools.partial(jax.jit, static_argnames="windowed")
def statistics(waveform, mask, windowed=False):
  frames = audio_features.frame_mask(mask, CONFIG)
  power = audio_features.power_spectrum(waveform, mask, CONFIG)
  log_mel = audio_features.audio_features(waveform, mask, CONFIG).log_mel
  times = np.arange(frames.shape[1]) * 0.02
  windows = time_windows(times, window_s=0.5, hop_s=0.5, duration_s=SAMPLES / 16000)
  member = windows.member if windowed else windows.member[:1]
  return spectral_statistics(log_mel, power, frames, member, CONFIG)


@pytest.fixture(scope="module")
def voice():
  return voices.voice(seconds=SAMPLES / 16000, seed=0)[None]


def test_moments_and_correlations_are_those_of_numpy(voice):
  mask = np.ones(voice.shape, bool)
  found = np.asarray(statistics(voice, mask))[0, 0]
  heard = audio_features.audio_features(voice, mask, CONFIG)
  db = np.asarray(heard.log_mel[0], np.float64) / 20
  x, step = db - db.mean(axis=0), np.diff(db, axis=0)
  loud = db.mean(axis=1) > db.mean()
  bend = x[loud, 2:] - 2 * x[loud, 1:-1] + x[loud, :-2]
  power = np.asarray(audio_features.power_spectrum(voice, mask, CONFIG)[0], np.float64)
  bands = power[loud, 8:456].reshape(-1, 28, 16)
  deviation, root = x.std(axis=0), np.sqrt(np.square(step).mean(axis=0))
  expected = {
    "deviation": deviation,
    "step": root,
    "skew": (x**3).mean(axis=0) / deviation**3,
    "fine": np.abs(bend - bend.mean(axis=0)).mean(axis=0),
    # What is added keeps bands without sound at 0.
    "neighbours": (x[:, 1:] * x[:, :-1]).mean(axis=0) / (deviation[1:] * deviation[:-1] + 1e-3),
    "neighbour_steps": (step[:, 1:] * step[:, :-1]).mean(axis=0) / (root[1:] * root[:-1] + 1e-3),
    "next_step": (step[1:] * step[:-1]).mean(axis=0) / (root**2 + 1e-3),
    "flatness": np.log(bands.mean(axis=2) / np.exp(np.log(bands).mean(axis=2))).mean(axis=0),
  }
  for kind, values in expected.items():
    columns, usual, spread = COLUMNS[kind]
    scaled = np.clip((np.asarray(values) - usual) / spread, -5, 5)
    np.testing.assert_allclose(found[columns], scaled, rtol=0.05, atol=0.1, err_msg=kind)
  assert found.shape == (370,)


def test_neither_loudness_nor_padding_changes_them(voice):
  whole = np.ones(voice.shape, bool)
  found = statistics(voice, whole)
  np.testing.assert_allclose(statistics(voice / 8, whole), found, atol=2e-3)
  padded = np.pad(voice, ((0, 0), (0, 8000)), constant_values=0.5)
  mask = np.arange(SAMPLES + 8000)[None] < SAMPLES
  np.testing.assert_allclose(statistics(padded, mask), found, atol=2e-3)


def test_a_window_tells_of_its_own_time(voice):
  mask = np.ones(voice.shape, bool)
  other = voice.copy()
  other[:, 20000:] = voices.voice(seconds=0.25, seed=1)[None] * voice.std()
  before, after = (np.asarray(statistics(x, mask, windowed=True))[0] for x in (voice, other))
  changed = np.abs(after - before).mean(axis=1)
  assert before.shape == (4, 370)
  assert changed[3] > 3 * changed[1] and changed[3] > 3 * changed[2]
  assert np.isfinite(after).all() and np.abs(after).max() <= 5


@functools.partial(jax.jit, static_argnames="windowed")
def pulses(waveform, mask, windowed=False):
  times = 0.001 * np.arange(1 + waveform.shape[1] // 16)
  windows = time_windows(times, window_s=0.5, hop_s=0.5, duration_s=SAMPLES / 16000)
  return pulse_statistics(waveform, mask, windows.member if windowed else windows.member[:1], CONFIG)


def test_pulse_statistics_ignore_loudness_and_padding(voice):
  assert pulse_frames(CONFIG).hop_length == 16
  whole = np.ones(voice.shape, bool)
  found = pulses(voice, whole)
  assert found.shape == (1, 1, 5 * 28 - 1 - 2 + 28) and np.abs(found).max() <= 5
  np.testing.assert_allclose(pulses(voice / 8, whole), found, atol=2e-2)
  padded = np.pad(voice, ((0, 0), (0, 8000)), constant_values=0.5)
  np.testing.assert_allclose(pulses(padded, np.arange(SAMPLES + 8000)[None] < SAMPLES), found, atol=2e-2)
  assert np.isfinite(pulses(np.zeros_like(voice), ~whole)).all()


def test_bands_rise_together_in_a_row_of_pulses_and_not_in_noise():
  """Clicks at 100 Hz against noise; deviations stand first, correlations with all bands from 109 on."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=SAMPLES).astype(np.float32)
  clicks = 0.01 * noise
  clicks[::160] += 10
  # Something softer, so that there is a louder half.
  sound = np.stack([noise, clicks]) * np.repeat([0.02, 0.2], SAMPLES // 2).astype(np.float32)
  found = np.asarray(pulses(sound.astype(np.float32), np.ones(sound.shape, bool)))[:, 0]
  deviation, together = found[:, :28], found[:, 109:137]
  assert together[1].min() > 2 > 0 > together[0].mean()
  assert deviation[1].mean() > deviation[0].mean() + 2


def test_pulse_statistics_of_a_window_are_of_its_own_time(voice):
  mask = np.ones(voice.shape, bool)
  other = voice.copy()
  other[:, 20000:] = np.random.default_rng(0).normal(0, voice.std(), (1, 4000))
  before, after = (np.asarray(pulses(x, mask, windowed=True))[0] for x in (voice, other))
  changed = np.abs(after - before).mean(axis=1)
  assert before.shape == (4, 165)
  assert changed[3] > 3 * changed[1] and changed[3] > 3 * changed[2]
