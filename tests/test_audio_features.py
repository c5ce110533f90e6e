"""Every feature against librosa's own function, and what padding and silence may not do."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from deepscan_jax.models import audio_features
from deepscan_jax.models.audio_features import AudioFeatures, FeatureConfig

CONFIGS = {
  "speech": FeatureConfig(),
  "librosa's defaults": FeatureConfig(
    sample_rate_hz=22050, fft_length=2048, window_length=2048, hop_length=512
  ),
}
# One fills the batch, one ends on a hop of both, one in the middle of one.
LENGTHS = (16000, 10240, 7013)


def voices(sample_rate_hz: int) -> list[np.ndarray]:
  """Three sounds: harmonics of a wandering pitch that swell and fade, in noise."""
  sounds = []
  for index, length in enumerate(LENGTHS):
    rng = np.random.default_rng(index)
    t = np.arange(length) / sample_rate_hz
    phase = 2 * np.pi * np.cumsum(140 + 30 * index + 20 * np.sin(5 * t)) / sample_rate_hz
    swell = 0.1 + np.square(np.sin(3 * np.pi * t + index))
    voice = sum(np.cos(k * phase + k * k) / k for k in range(1, 25))
    sounds.append((0.05 * swell * voice + 0.003 * rng.normal(size=length)).astype(np.float32))
  return sounds


def padded_batch(sounds: list[np.ndarray], *, length: int, fill: float) -> tuple[np.ndarray, np.ndarray]:
  waveform = np.full((len(sounds), length), fill, np.float32)
  mask = np.zeros(waveform.shape, bool)
  for row, sound in enumerate(sounds):
    waveform[row, : len(sound)] = sound
    mask[row, : len(sound)] = True
  return waveform, mask


@functools.cache
def features_of(name: str) -> AudioFeatures:
  """The voices in one batch, NaN on their padding."""
  config = CONFIGS[name]
  waveform, mask = padded_batch(voices(config.sample_rate_hz), length=LENGTHS[0], fill=np.nan)
  compute = jax.jit(functools.partial(audio_features.audio_features, config=config))
  return jax.tree.map(np.asarray, compute(waveform, mask))


def librosa_features(y: np.ndarray, config: FeatureConfig) -> dict[str, np.ndarray]:
  cut = {"n_fft": config.fft_length, "hop_length": config.hop_length, "win_length": config.window_length}
  rate = {"y": y, "sr": config.sample_rate_hz, **cut}
  bands = {"n_mels": config.mel_bands}
  mel = librosa.feature.melspectrogram(**rate, **bands)
  return {
    "mel": mel,
    "log_mel": librosa.power_to_db(mel),
    "mfcc": librosa.feature.mfcc(**rate, **bands, n_mfcc=config.mfcc),
    "chroma": librosa.feature.chroma_stft(**rate, tuning=0.0),
    "centroid": librosa.feature.spectral_centroid(**rate),
    "bandwidth": librosa.feature.spectral_bandwidth(**rate),
    "roll_off": librosa.feature.spectral_rolloff(**rate),
    "flatness": librosa.feature.spectral_flatness(y=y, **cut),
    "contrast": librosa.feature.spectral_contrast(**rate),
    "zero_crossings": librosa.feature.zero_crossing_rate(
      y, frame_length=config.fft_length, hop_length=config.hop_length
    ),
  }


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_librosa_whatever_stands_behind_the_sound(name):
  config, found = CONFIGS[name], features_of(name)
  for row, y in enumerate(voices(config.sample_rate_hz)):
    for feature, expected in librosa_features(y, config).items():
      ours = getattr(found, feature)[row]
      frames = expected.shape[1]
      np.testing.assert_array_equal(found.frame_mask[row], np.arange(len(ours)) < frames)
      np.testing.assert_array_equal(ours[frames:], 0)
      # Relative to each value; where values pass through 0, to the largest.
      np.testing.assert_allclose(
        ours[:frames], expected.T, rtol=1e-3, atol=1e-5 * np.abs(expected).max(), err_msg=f"{feature} {row}"
      )


def test_every_mel_band_of_the_speech_setting_hears_something():
  bank = audio_features._filter_banks(CONFIGS["speech"]).mel
  assert bank.shape == (513, 128) and (bank.max(axis=0) > 0).all()


def test_silence_and_nothing_are_finite():
  config = CONFIGS["speech"]
  waveform = np.zeros((2, LENGTHS[0]), np.float32)
  mask = np.stack([np.ones(LENGTHS[0], bool), np.zeros(LENGTHS[0], bool)])
  found = jax.jit(functools.partial(audio_features.audio_features, config=config))(waveform, mask)
  assert all(np.isfinite(x).all() for x in found)
  expected = librosa_features(waveform[0], config)
  for feature in ("log_mel", "chroma", "centroid", "roll_off", "flatness", "zero_crossings"):
    np.testing.assert_allclose(getattr(found, feature)[0], expected[feature].T, rtol=1e-5, atol=1e-6)
  assert not any(np.asarray(x[1]).any() for x in found)
  np.testing.assert_array_equal(audio_features.audible(waveform, mask), [False, False])


def test_a_track_is_audible_from_80_db_under_full_scale():
  waveform = np.zeros((4, 50), np.float32)
  waveform[1, 7], waveform[2, 7], waveform[3, 30] = -1.1e-4, 0.9e-4, np.nan
  mask = np.ones((4, 50), bool)
  mask[3, 20:] = False
  np.testing.assert_array_equal(audio_features.audible(waveform, mask), [False, True, False, False])


def test_the_spectrogram_of_the_networks_ignores_loudness():
  config = FeatureConfig(fft_length=512, mel_bands=32)
  waveform, mask = padded_batch(voices(16000), length=LENGTHS[0], fill=0.0)
  compute = jax.jit(functools.partial(audio_features.standard_log_mel, config=config))
  loud, quiet = compute(waveform, mask), compute(waveform / 16, mask)
  np.testing.assert_allclose(loud, quiet, atol=1e-4)
  np.testing.assert_allclose(np.asarray(loud).mean(axis=(1, 2)), 0, atol=1e-4)
  assert 0.3 < np.std(loud) < 3


def test_without_its_channel_a_spectrogram_ignores_what_a_line_does_to_every_frame():
  rng = np.random.default_rng(0)
  log_mel, frames = rng.normal(-40, 10, (2, 30, 8)).astype(np.float32), np.ones((2, 30), bool)
  frames[1, 20:] = False
  line = rng.normal(0, 20, (2, 1, 8)).astype(np.float32)
  found = audio_features.without_channel(log_mel, frames)
  np.testing.assert_allclose(audio_features.without_channel(log_mel + line, frames), found, atol=1e-4)
  np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-3)
  assert not np.asarray(found)[1, 20:].any() and 0.3 < np.std(found[0]) < 0.7


def test_mel_bands_end_where_they_are_told_to():
  config = FeatureConfig(mel_bands=32, lowest_hz=80.0, highest_hz=7200.0)
  t = np.arange(LENGTHS[0]) / 16000
  tones = np.stack([np.sin(2 * np.pi * hz * t) for hz in (40, 1000, 7600)]).astype(np.float32)
  power = audio_features.audio_features(tones, np.ones(tones.shape, bool), config).mel
  inside = np.asarray(power)[:, 5:-5].sum(axis=(1, 2))
  assert inside[1] > 100 * max(inside[0], inside[2])


@pytest.mark.parametrize(("length", "hop", "count"), [(5, 2, 4), (4, 4, 3), (3, 5, 2), (7, 3, 9)])
def test_sliding_windows_are_slices_and_zeros_beyond_the_end(length, hop, count):
  x = np.random.default_rng(0).normal(size=(2, 13, 3))
  padded = np.concatenate([x, np.zeros((2, 40, 3))], axis=1)
  expected = np.stack([padded[:, i * hop : i * hop + length] for i in range(count)], axis=1)
  found = audio_features.sliding(jnp.asarray(x), length=length, hop=hop, count=count)
  np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"window_length": 2000}, "got 1024, 2000 and 160"),
    ({"fft_length": 511}, "got 511, 400 and 160"),
    ({"sample_rate_hz": 8000}, "must exceed 12800 Hz; got 8000"),
    ({"highest_hz": 8100.0}, "between 0 and 8000 Hz, the lowest below the highest; got 0 and 8100"),
    ({"lowest_hz": 900.0, "highest_hz": 800.0}, "got 900 and 800"),
  ],
)
def test_frames_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    FeatureConfig(**changes)


def test_librosa_is_not_imported_before_it_is_needed():
  code = (
    "import sys, deepscan_jax.models.audio, deepscan_jax.models.lipsync, deepscan_jax.pseudofakes.audio;"
    "print(sorted({'librosa', 'numba'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
