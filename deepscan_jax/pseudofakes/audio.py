"""Copy synthesis: a voice that says the same in the same voice, put together by a vocoder.

Waveforms are float32 in -1..1; every random number comes from the Generator passed in; nothing here calls
JAX, for it runs in loader workers.
"""

import functools

import numpy as np


def copy_synthesis(
  waveform: np.ndarray,
  rng: np.random.Generator,
  *,
  sample_rate_hz: int = 16000,
  fft_length: int = 1024,
  mel_bands: int = 80,
  iterations: int = 32,
) -> np.ndarray:
  """The sound that Griffin & Lim (1984) find for the mel spectrogram of a waveform, as loud as it was.

  Content and speaker stay; what mel bands and lost phases cannot carry goes. As training material: Wang &
  Yamagishi 2023 (https://arxiv.org/abs/2210.10570).

  Args:
    waveform: [..., sample].
    rng: draws the phases that the search begins with.
    sample_rate_hz: of the waveform.
    fft_length: of the windows; a quarter of it is the hop.
    mel_bands: fewer lose more.
    iterations: more make a cleaner sound.

  Returns:
    Same shape, float32.
  """
  import librosa  # seconds, on first use

  hop = fft_length // 4
  bank, inverse = _mel_bank(sample_rate_hz, fft_length, mel_bands)
  magnitude = np.abs(librosa.stft(waveform, n_fft=fft_length, hop_length=hop))
  smoothed = np.maximum(np.matmul(inverse, np.matmul(bank, magnitude)), 0.0)
  found = librosa.griffinlim(
    smoothed,
    n_iter=iterations,
    n_fft=fft_length,
    hop_length=hop,
    length=waveform.shape[-1],
    random_state=rng,
  )
  found *= _loudness(waveform) / np.maximum(_loudness(found), 1e-8)
  return np.clip(found, -1.0, 1.0).astype(np.float32)


def _loudness(waveform: np.ndarray) -> np.ndarray:
  return np.sqrt(np.square(waveform).mean(axis=-1, keepdims=True))


@functools.cache
def _mel_bank(sample_rate_hz: int, fft_length: int, mel_bands: int) -> tuple[np.ndarray, np.ndarray]:
  """The bank [mel band, frequency] and its pseudo-inverse."""
  import librosa.filters

  bank = librosa.filters.mel(sr=sample_rate_hz, n_fft=fft_length, n_mels=mel_bands)
  return bank, np.linalg.pinv(bank).astype(np.float32)
