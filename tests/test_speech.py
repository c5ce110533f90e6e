import numpy as np
import pytest
import scipy.signal
import voices

from deepscan_jax import augment_audio, speech

RATE_HZ = 16_000
TIMES_S = np.arange(4 * RATE_HZ) / RATE_HZ


def noise(seed: int = 0, samples: int = 4 * RATE_HZ) -> np.ndarray:
  return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def notes(*pitches_hz: float, seconds: float = 0.5) -> np.ndarray:
  """Plucked tones with eight partials, one chord after the other, 4 s."""
  rng, sound = np.random.default_rng(3), np.zeros(len(TIMES_S))
  for start in np.arange(0, 4, seconds):
    heard = np.maximum(TIMES_S - start, 0)
    for pitch in rng.choice(pitches_hz, 3):
      for k in range(1, 9):
        sound += np.exp(-3 * heard) * (heard > 0) * np.sin(2 * np.pi * k * pitch * heard) / k
  return (0.1 * sound / sound.std()).astype(np.float32)


def applause(claps: int) -> np.ndarray:
  """Bursts of noise of 5 ms at random moments, 4 s."""
  rng = np.random.default_rng(4)
  clicks = np.bincount(rng.integers(0, len(TIMES_S), claps), minlength=len(TIMES_S))
  sound = clicks * rng.standard_normal(len(TIMES_S))
  sound = scipy.signal.lfilter(*scipy.signal.iirpeak(1500, 1.5, fs=RATE_HZ), sound)
  return (0.05 * sound / sound.std()).clip(-1, 1).astype(np.float32)


NOT_SPEECH = {
  "tone": (0.3 * np.sin(2 * np.pi * 440 * TIMES_S)).astype(np.float32),
  "beeps": (0.3 * np.sin(2 * np.pi * 440 * TIMES_S) * (np.sin(2 * np.pi * TIMES_S) > 0)).astype(np.float32),
  "hum": (0.01 * np.sin(2 * np.pi * 50 * TIMES_S) + 0.01 * noise()).astype(np.float32),
  "white noise": noise(),
  "pink noise": 0.1 * augment_audio.draw_noise(4 * RATE_HZ, np.random.default_rng(1)),
  "music": notes(220, 277.2, 329.6, 440),
  "applause": applause(4000),
}


@pytest.mark.parametrize("seconds", [1.0, 1.5, 4.0])
def test_voices_pass(seconds):
  problems = [speech.speech_problems(voices.speech(seconds=seconds, seed=seed)) for seed in range(40)]
  assert sum(map(bool, problems)) <= 1, problems


@pytest.mark.parametrize("name", NOT_SPEECH)
def test_what_is_no_speech_is_refused(name):
  for length in (4, 2):
    assert speech.speech_problems(NOT_SPEECH[name][: length * RATE_HZ])[0] == "no_speech"


def test_what_is_too_short_silent_or_overdriven_is_refused():
  voice = voices.speech(seconds=4, seed=1)
  assert speech.speech_problems(voice) == ()
  assert speech.speech_problems(voice[: RATE_HZ - 1]) == ("sound_too_short",)
  assert speech.speech_problems(voice[:0]) == ("sound_too_short",)
  assert speech.speech_problems(np.zeros_like(voice)) == ("silent",)
  assert speech.speech_problems(np.full_like(voice, 0.5)) == ("silent",)  # nothing moves
  assert "clipped" in speech.speech_problems(np.clip(100 * voice, -1, 1))


@pytest.mark.parametrize("seed", range(5))
def test_what_went_through_a_telephone_is_refused(seed):
  voice = voices.speech(seconds=4, seed=seed)
  narrow = voices.telephone(voice)
  assert speech.speech_problems(narrow) == ("narrow_band",)
  assert speech.measure_speech(narrow).band_hz <= 4500 < 7000 < speech.measure_speech(voice).band_hz
  # A codec's low-pass, or a dull microphone, is none.
  dull = scipy.signal.sosfilt(scipy.signal.butter(6, 5500, fs=RATE_HZ, output="sos"), voice)
  assert speech.speech_problems(dull.astype(np.float32)) == ()


def test_of_what_is_meant_to_be_shorter_than_a_second_only_the_level_is_asked():
  assert speech.speech_problems(noise()[:8000], least_s=0.5) == ()
  assert speech.speech_problems(0 * noise()[:8000], least_s=0.5) == ("silent",)
  assert speech.speech_problems(noise()[:7999], least_s=0.5) == ("sound_too_short",)


def test_gain_and_offset_have_no_effect_and_nothing_is_mutated():
  voice = voices.speech(seconds=4, seed=2)
  before = voice.copy()
  first, second = speech.measure_speech(voice), speech.measure_speech(0.25 * voice + np.float32(0.1))
  np.testing.assert_array_equal(voice, before)
  assert first.level == pytest.approx(4 * second.level, rel=1e-3)
  assert second.score == pytest.approx(first.score, abs=0.02)


def test_the_gate_does_not_ask_where_a_voice_was_recorded():
  rng = np.random.default_rng(0)
  config = augment_audio.AudioAugmentConfig()
  spoken = [voices.speech(seconds=4, seed=seed) for seed in range(30)]
  heard = [augment_audio.degrade_one(voice, rng=rng, config=config) for voice in spoken]
  # Some of these rooms end in a telephone.
  assert sum(bool({*speech.speech_problems(x)} - {"narrow_band"}) for x in heard) <= 2
