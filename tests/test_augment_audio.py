"""Degradation of voices: the same for both twins, nothing moved in time, and each step what it says it is."""

import dataclasses

import numpy as np
import pytest
import scipy.signal
import voices

from deepscan_jax.augment_audio import (
  AudioAugmentConfig,
  band_limit,
  codec_round_trip,
  degrade_one,
  degrade_pair,
  draw_degradation,
  draw_noise,
  level,
  reverberate,
  room_response,
)
from deepscan_jax.pseudofakes import VoiceConfig, voice_pair

NOTHING = AudioAugmentConfig(
  reverb_probability=0,
  noise_probability=0,
  band_probability=0,
  gain_probability=0,
  codec_probability=0,
  second_codec_probability=0,
)
EVERYTHING = AudioAugmentConfig(
  reverb_probability=1,
  noise_probability=1,
  band_probability=1,
  gain_probability=1,
  codec_probability=1,
  second_codec_probability=1,
)
CODECS = [
  ("mp3", 24000),
  ("mp3", 64000),
  ("opus", 12000),
  ("opus", 32000),
  ("aac", 24000),
  ("aac", 64000),
  ("mulaw", 0),
  ("alaw", 0),
]


@pytest.fixture(scope="module")
def voice():
  return voices.voice(seconds=1.5, seed=3)


def steady(frequency_hz, *, seconds=1.0):
  return (0.1 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * 16000)) / 16000)).astype(
    np.float32
  )


def test_without_any_step_nothing_changes(voice):
  np.testing.assert_array_equal(degrade_one(voice, rng=np.random.default_rng(0), config=NOTHING), voice)


def test_twins_that_are_equal_stay_equal_and_the_input_stays(voice):
  rng, before = np.random.default_rng(0), voice.copy()
  for config in (AudioAugmentConfig(), EVERYTHING):
    for _ in range(6):
      real, fake = degrade_pair(voice, voice.copy(), rng=rng, config=config)
      assert real.dtype == np.float32 and real.shape == voice.shape and np.abs(real).max() <= 1
      np.testing.assert_array_equal(real, fake)
  np.testing.assert_array_equal(voice, before)


def test_a_seed_says_it_all(voice):
  first, second, other = (
    degrade_one(voice, rng=np.random.default_rng(seed), config=EVERYTHING) for seed in (1, 1, 2)
  )
  assert first.tobytes() == second.tobytes()
  assert (first != other).any()


def test_everything_is_drawn_before_the_first_sample_is_touched(voice):
  """The function that was drawn holds no generator: it does the same twice, to any waveform."""
  rng = np.random.default_rng(4)
  degrade = draw_degradation(rng, len(voice), voice_level=level(voice), config=EVERYTHING)
  state = rng.bit_generator.state
  first = degrade(voice)
  degrade(voice[::-1].copy())
  np.testing.assert_array_equal(degrade(voice), first)
  assert rng.bit_generator.state == state


def test_a_pair_stays_equal_outside_of_its_segment_up_to_what_reaches_over(voice):
  """Gain, noise and G.711 look at no more than a few samples; outside of the forged span nothing differs."""
  pair = voice_pair(
    voice,
    rng=np.random.default_rng(1),
    config=VoiceConfig(partial_probability=1, partial_share=(0.3, 0.4), silence_probability=0),
  )
  ((start, end),) = pair.segments
  config = dataclasses.replace(
    NOTHING, gain_probability=1, noise_probability=1, codec_probability=1, mp3=0, opus=0, aac=0
  )
  real, fake = degrade_pair(pair.real, pair.fake, rng=np.random.default_rng(2), config=config)
  near = 800  # samples that the filter of the telephone band rings
  first, stop = round(start * 16000), round(end * 16000)
  difference = np.abs(real - fake)
  assert difference[first:stop].max() > 0.005
  outside = np.concatenate([difference[: max(first - near, 0)], difference[stop + near :]])
  assert len(outside) > 4000
  # A step of the quantiser where a hair's breadth decides.
  assert np.mean(outside > 1e-5) < 0.01


@pytest.mark.parametrize(("codec", "bit_rate"), CODECS)
def test_codecs_change_the_sound_and_move_nothing(codec, bit_rate, voice):
  decoded = codec_round_trip(voice, codec=codec, bit_rate=bit_rate)
  assert decoded.dtype == np.float32 and decoded.shape == voice.shape and np.abs(decoded).max() <= 1
  assert voices.lag(decoded, voice) == 0
  band = {"highpass_hz": 400.0, "lowpass_hz": 2500.0}
  original, heard = (band_limit(x, **band) for x in (voice, decoded))
  assert np.corrcoef(original, heard)[0, 1] > 0.9
  # Nor at either end: not cut off, not filled up.
  for part in (slice(0, 4000), slice(-4000, None)):
    assert level(heard[part] - original[part]) < 0.5 * level(original) + 1e-4
  assert level(decoded - voice) > 1e-3 * level(voice)
  np.testing.assert_array_equal(codec_round_trip(voice, codec=codec, bit_rate=bit_rate), decoded)


@pytest.mark.parametrize("codec", ["mp3", "opus", "aac"])
def test_fewer_bits_lose_more(codec, voice):
  few, many = (level(codec_round_trip(voice, codec=codec, bit_rate=rate) - voice) for rate in (16000, 64000))
  assert few > 1.5 * many


def test_the_telephone_carries_its_band_and_rounds_as_g711_does():
  for frequency, kept in ((100, False), (1000, True), (5000, False)):
    tone = steady(frequency)
    share = level(codec_round_trip(tone, codec="mulaw")[2000:-2000]) / level(tone)
    assert (0.9 < share < 1.1) if kept else share < 0.1
  # About 38 dB over noise at any level worth the name (ITU-T G.711).
  tone = steady(1000)
  found = codec_round_trip(tone, codec="mulaw")[2000:-2000]
  snr_db = 20 * np.log10(level(tone) / level(found - tone[2000:-2000]))
  assert 25 < snr_db < 45


def test_noise_has_the_ratio_that_was_drawn_and_is_one_for_both(voice):
  config = dataclasses.replace(NOTHING, noise_probability=1, noise_snr_db=(12, 12))
  other = np.ascontiguousarray(voice[::-1])
  real, fake = degrade_pair(voice, other, rng=np.random.default_rng(0), config=config)
  assert 20 * np.log10(level(voice) / level(real - voice)) == pytest.approx(12, abs=0.1)
  np.testing.assert_allclose(real - voice, fake - other, atol=1e-6)


def test_noise_lies_between_white_and_pink():
  slopes = []
  for seed in range(20):
    noise = draw_noise(32768, np.random.default_rng(seed))
    assert noise.dtype == np.float32 and level(noise) == pytest.approx(1, rel=1e-3)
    power = np.square(np.abs(np.fft.rfft(noise)))
    octaves = [10 * np.log10(power[2**k : 2 ** (k + 1)].mean()) for k in range(9, 14)]
    slopes.append(np.polyfit(np.arange(5), octaves, 1)[0])
  assert min(slopes) > -3.3 and max(slopes) < 0.3 and np.ptp(slopes) > 1.5


def test_a_band_keeps_what_is_inside_without_delay():
  ends = {"highpass_hz": 200.0, "lowpass_hz": 4000.0}
  click = np.zeros(16001, np.float32)
  click[8000] = 0.5
  found = band_limit(click, **ends)
  assert np.abs(found).argmax() == 8000
  np.testing.assert_allclose(found, found[::-1], atol=1e-5)  # as much before as after
  response = np.abs(np.fft.rfft(found)) / 0.5
  at = lambda hz: 20 * np.log10(response[round(hz * 16001 / 16000)])  # noqa: E731
  assert at(1000) == pytest.approx(0, abs=0.1)
  assert at(200) == pytest.approx(-6, abs=0.3) and at(4000) == pytest.approx(-6, abs=0.3)
  assert at(100) < -22 and at(6000) < -60


def test_a_room_dies_away_in_the_time_it_is_given():
  for rt60_s in (0.2, 0.6):
    response = room_response(np.random.default_rng(0), rt60_s=rt60_s, direct_db=3.0)
    assert np.square(response).sum() == pytest.approx(1, rel=1e-4)
    direct, tail = response[0] ** 2, np.square(response[1:]).sum()
    assert 10 * np.log10(direct / tail) == pytest.approx(3, abs=1e-3)
    # Schroeder 1965: the decay is the energy that is still to come; its slope gives the time.
    still = 10 * np.log10(np.cumsum(np.square(response[1:])[::-1])[::-1] / tail)
    between = (still < -5) & (still > -35)
    slope = np.polyfit(np.flatnonzero(between) / 16000, still[between], 1)[0]
    assert -60 / slope == pytest.approx(rt60_s, rel=0.1)


def test_a_room_moves_nothing_and_fills_pauses():
  voice = np.concatenate([voices.voice(seconds=1, seed=2), np.zeros(8000, np.float32)])
  heard = reverberate(voice, response=room_response(np.random.default_rng(1), rt60_s=0.5, direct_db=6.0))
  assert heard.shape == voice.shape and voices.lag(heard, voice) == 0
  assert level(heard[16500:17500]) > 0.01 * level(voice)


def test_gain_clips_what_exceeds_full_scale(voice):
  config = dataclasses.replace(NOTHING, gain_probability=1, gain_db=(60, 60))
  loud = degrade_one(voice, rng=np.random.default_rng(0), config=config)
  assert np.abs(loud).max() == 1 and np.mean(np.abs(loud) == 1) > 0.1
  config = dataclasses.replace(NOTHING, gain_probability=1, gain_db=(-6, -6))
  soft = degrade_one(voice, rng=np.random.default_rng(0), config=config)
  np.testing.assert_allclose(soft, voice * 10 ** (-6 / 20), rtol=1e-5)


def test_every_codec_is_drawn(voice, monkeypatch):
  from deepscan_jax import augment_audio

  drawn = set()
  monkeypatch.setattr(
    augment_audio, "codec_round_trip", lambda x, *, codec, bit_rate=0: drawn.add((codec, bit_rate)) or x
  )
  config = dataclasses.replace(NOTHING, codec_probability=1)
  rng = np.random.default_rng(0)
  for _ in range(200):
    degrade_one(voice, rng=rng, config=config)
  default = AudioAugmentConfig()
  rates = {codec: getattr(default, f"{codec}_bit_rates") for codec in ("mp3", "opus", "aac")}
  assert drawn == {("mulaw", 0), ("alaw", 0)} | {(codec, r) for codec in rates for r in rates[codec]}


@pytest.mark.parametrize("samples", [1, 100, 700, 8001])
def test_any_length_comes_back_at_its_length(samples):
  rng = np.random.default_rng(0)
  waveform = (0.1 * np.random.default_rng(1).standard_normal(samples)).astype(np.float32)
  for codec, bit_rate in CODECS[::2]:
    assert codec_round_trip(waveform, codec=codec, bit_rate=bit_rate).shape == waveform.shape
  assert degrade_one(waveform, rng=rng, config=EVERYTHING).shape == waveform.shape


@pytest.mark.parametrize(
  ("real", "fake", "message"),
  [
    (np.zeros(9), np.zeros(9, np.float32), r"The real twin must be float32 \[sample\].*got float64"),
    (np.zeros(9, np.float32), np.zeros((9, 1), np.float32), r"The fake twin must be .*\[9, 1\]"),
    (np.zeros(9, np.float32), np.zeros(8, np.float32), "equally long, got 9 and 8"),
    (np.zeros(0, np.float32), np.zeros(0, np.float32), "at least 1 samples"),
    (np.full(9, np.inf, np.float32), np.zeros(9, np.float32), "finite, got 9"),
    (np.full(9, -2, np.float32), np.zeros(9, np.float32), "peak of 2"),
  ],
)
def test_wrong_input_is_named(real, fake, message):
  with pytest.raises(ValueError, match=message):
    degrade_pair(real, fake, rng=np.random.default_rng(0), config=AudioAugmentConfig())


def test_unknown_codecs_and_rates_are_named(voice):
  with pytest.raises(ValueError, match="Unknown codec 'wma'; there are mp3, opus"):
    codec_round_trip(voice, codec="wma")
  with pytest.raises(ValueError, match=r"for mp3 must lie in 8000\.\.128000, got 0"):
    codec_round_trip(voice, codec="mp3")
  with pytest.raises(ValueError, match="finite, got 24000"):  # which would end the process inside of LAME
    codec_round_trip(voice * np.float32(np.nan), codec="mp3", bit_rate=32000)


def test_what_overshoots_in_the_telephone_is_clipped_and_does_not_wrap():
  # A square wave without its low and high harmonics exceeds its own height.
  square = np.sign(np.sin(2 * np.pi * 1010 * np.arange(8000) / 16000)).astype(np.float32)
  narrow = band_limit(square, highpass_hz=300.0, lowpass_hz=3400.0)
  assert np.abs(narrow).max() > 1.1
  found = codec_round_trip(square, codec="alaw")
  assert np.abs(found - np.clip(narrow, -1, 1))[1000:-1000].max() < 0.4


def test_resampling_for_the_telephone_has_no_delay():
  click = np.zeros(8000, np.float32)
  click[4000] = 0.5
  found = codec_round_trip(click, codec="alaw")
  assert np.abs(scipy.signal.hilbert(found)).argmax() in range(3999, 4002)
