"""Voice pairs: what is equal, what differs, when, and that a seed says it all."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import voices
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepscan_jax import metrics
from deepscan_jax.augment_audio import band_limit, draw_noise
from deepscan_jax.pseudofakes import VOICE_KINDS, VoiceConfig, VoicePair, copy_synthesis, voice_pair
from deepscan_jax.pseudofakes import audio as audio_fakes

KINDS = [kind for kind in VOICE_KINDS if kind != "world" or importlib.util.find_spec("pyworld")]
PAIRS = 40
CHANCE = 0.15  # two standard deviations of the AUC of 40 against 40 that are alike


def only(kind, **changes):
  return VoiceConfig(**{name: float(name == kind) for name in VOICE_KINDS}, **changes)


@pytest.fixture(scope="module")
def originals():
  return [voices.voice(seconds=1.5, seed=seed) for seed in range(PAIRS)]


@pytest.fixture(scope="module")
def pairs(originals):
  rng = np.random.default_rng(0)
  return [voice_pair(waveform, rng=rng, config=VoiceConfig()) for waveform in originals]


def spectrum_db(waveform):
  """[time, frequency], frames of 32 ms, above a floor of -80 dB of full scale."""
  frames = waveform[: len(waveform) // 512 * 512].reshape(-1, 512) * np.hanning(512)
  return 10 * np.log10(np.square(np.abs(np.fft.rfft(frames))) / 512 + 1e-8)


def log_spectral_distance(pair):
  return np.sqrt(np.square(spectrum_db(pair.real) - spectrum_db(pair.fake)).mean(axis=1)).mean()


def simple_statistics(waveform):
  """What a classifier could learn a room, a level or a cutter from."""
  loudness = np.sqrt(np.square(waveform[: len(waveform) // 160 * 160].reshape(-1, 160)).mean(axis=1)) + 1e-9
  loud = np.flatnonzero(loudness > 0.1 * loudness.max())
  power = np.square(np.abs(np.fft.rfft(waveform)))
  share = np.cumsum(power) / power.sum()
  return {
    "rms": np.sqrt(np.square(waveform).mean()),
    "peak": np.abs(waveform).max(),
    "offset": waveform.mean(),
    "duration": len(waveform),
    "leading_silence": loud[0],
    "trailing_silence": len(loudness) - loud[-1],
    "noise_floor": np.log(np.percentile(loudness, 5)),
    "first_10_ms": np.log(loudness[0]),
    "last_10_ms": np.log(loudness[-1]),
    "band_99": np.searchsorted(share, 0.99),
    "band_99.99": np.searchsorted(share, 0.9999),
    "above_7800_hz": np.log(power[round(len(power) * 7.8 / 8) :].mean()),
  }


def separation(real, fake, name):
  """AUC of one statistic, turned so that 0.5 is the least."""
  label = np.repeat([0, 1], [len(real), len(fake)])
  value = metrics.auc(label, np.array([x[name] for x in (*real, *fake)], float))
  return max(value, 1 - value)


def test_types_ranges_and_lengths(pairs, originals):
  for pair, original in zip(pairs, originals, strict=True):
    assert isinstance(pair, VoicePair) and pair.kind in VOICE_KINDS
    for twin in (pair.real, pair.fake):
      assert twin.dtype == np.float32 and twin.shape == original.shape
      assert np.isfinite(twin).all() and np.abs(twin).max() <= 1
    ((start, end),) = pair.segments
    assert 0 <= start < end <= len(original) / 16000


def test_every_kind_is_drawn_and_some_are_partial(pairs):
  assert {pair.kind for pair in pairs} == set(VOICE_KINDS) - {"world"}
  shares = [(end - start) / 1.5 for ((start, end),) in (pair.segments for pair in pairs)]
  assert 5 <= sum(share < 0.79 for share in shares) <= 25


@pytest.mark.parametrize("kind", KINDS)
def test_twins_differ_inside_of_the_segment_and_are_equal_outside(kind, originals):
  rng = np.random.default_rng(3)
  for waveform in originals[:4]:
    pair = voice_pair(waveform, rng=rng, config=only(kind, partial_probability=1))
    ((start, end),) = pair.segments
    first, stop = round(start * 16000), round(end * 16000)
    assert 0.09 <= (end - start) / 1.5 <= 0.81
    np.testing.assert_array_equal(pair.fake[:first], pair.real[:first])
    np.testing.assert_array_equal(pair.fake[stop:], pair.real[stop:])
    inside = slice(first, stop)
    difference = np.abs(pair.fake[inside] - pair.real[inside])
    assert np.square(difference).mean() > 0.003 * np.square(pair.real[inside]).mean()
    # Faded in and out: no step where the span begins or ends.
    step = np.abs(np.diff(pair.fake - pair.real))
    assert max(step[max(first - 1, 0)], step[min(stop - 1, len(step) - 1)]) < 0.2 * difference.max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_spectrum_and_keeps_level_and_time(kind, originals):
  rng = np.random.default_rng(4)
  pairs = [
    voice_pair(x, rng=rng, config=only(kind, partial_probability=0, noise_snr_db=(60, 60)))
    for x in originals[:6]
  ]
  assert np.mean([log_spectral_distance(pair) for pair in pairs]) > 1.0
  for pair in pairs:
    assert np.sqrt(np.square(pair.fake).mean()) == pytest.approx(
      np.sqrt(np.square(pair.real).mean()), rel=0.01
    )
    assert np.abs(pair.fake).max() == pytest.approx(np.abs(pair.real).max(), rel=0.03)
    late = voices.lag(voices.envelope(pair.fake), voices.envelope(pair.real))
    assert abs(late) <= 80  # 5 ms, an eighth of a video frame
  if kind in ("mel", "phase", "formant"):  # these keep phases, so waveforms themselves line up
    assert [voices.lag(pair.fake, pair.real) for pair in pairs] == [0] * len(pairs)


def test_simple_statistics_do_not_tell_the_twins_apart(pairs):
  real, fake = ([simple_statistics(getattr(p, twin)) for p in pairs] for twin in ("real", "fake"))
  assert all(len(pair.real) == len(pair.fake) for pair in pairs)
  for name in real[0]:
    assert separation(real, fake, name) <= 0.5 + CHANCE, name
  # Nor do they all together, for a classifier that has seen other pairs.
  features = np.array([list(x.values()) for x in (*real, *fake)], float)
  label = np.repeat([0, 1], len(pairs))
  groups = np.tile(np.arange(len(pairs)), 2)
  model = make_pipeline(StandardScaler(), LogisticRegression())
  guess = cross_val_predict(model, features, label, groups=groups, cv=GroupKFold(5), method="predict_proba")[
    :, 1
  ]
  assert metrics.auc(label, guess) <= 0.5 + CHANCE
  # While the twins do differ, in what the statistics do not see.
  assert np.median([log_spectral_distance(pair) for pair in pairs]) > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_nor_within_one_kind(kind, originals):
  """Where every forgery is made in the same way, what it leaves cannot hide among the others."""
  rng = np.random.default_rng(8)
  pairs = [voice_pair(x, rng=rng, config=only(kind, partial_probability=0)) for x in originals]
  real, fake = ([simple_statistics(getattr(p, twin)) for p in pairs] for twin in ("real", "fake"))
  for name in real[0]:
    assert separation(real, fake, name) <= 0.5 + CHANCE, name


def test_the_statistics_would_notice_twins_that_were_not_matched(originals):
  """So that the test above can fail: a bare vocoder behind a cutter that leaves a little silence."""
  rng = np.random.default_rng(5)
  fakes = [np.pad(0.7 * copy_synthesis(x, rng, iterations=4), (1600, 0))[: len(x)] for x in originals]
  real, fake = ([simple_statistics(x) for x in twins] for twins in (originals, fakes))
  for name in ("leading_silence", "first_10_ms", "noise_floor"):
    assert separation(real, fake, name) > 0.5 + CHANCE, name


def test_both_twins_are_muted_alike_at_both_ends(originals):
  config = VoiceConfig(silence_probability=1, partial_probability=0, noise_snr_db=(200, 200))
  rng, silences = np.random.default_rng(6), []
  for waveform in originals[:20]:
    pair = voice_pair(waveform, rng=rng, config=config)
    ((start, end),) = pair.segments
    for twin in (pair.real, pair.fake):
      assert np.abs(twin[: round(start * 16000)]).max(initial=0) < 1e-8
      assert np.abs(twin[round(end * 16000) :]).max(initial=0) < 1e-8
    silences.append((start, 1.5 - end))
  silences = np.array(silences)
  assert 0.05 < silences.max() <= 0.15  # a tenth of the whole
  assert (silences.std(axis=0) > 0.02).all()


def test_the_noise_floor_is_one_and_the_same():
  """In digital silence, twins differ by nothing: their noise is equal sample by sample."""
  waveform = np.concatenate([voices.voice(seconds=1, seed=1), np.zeros(16000, np.float32)])
  pair = voice_pair(waveform, rng=np.random.default_rng(0), config=only("mel", partial_probability=0))
  quiet = slice(20000, 28000)
  assert np.abs(pair.real[quiet]).max() > 1e-5
  np.testing.assert_allclose(pair.fake[quiet], pair.real[quiet], atol=1e-5)


def quiet_spectrum_db(waveform):
  """[band of 1 kHz]: level of the quietest tenth of the moments."""
  power = 10 ** (spectrum_db(waveform) / 10)
  quiet = np.argsort(power.sum(axis=1))[: len(power) // 10]
  return 10 * np.log10(power[quiet][:, 8:200].reshape(len(quiet), -1, 32).mean(axis=(0, 2)))


@pytest.mark.parametrize("noisy", [0, 1], ids=["recording", "synthetic"])
def test_a_matched_pair_has_one_floor_whichever_was_cleaner(originals, noisy):
  rng = np.random.default_rng(0)
  both = [np.concatenate([voice, np.zeros(8000, np.float32)]) for voice in originals[:2]]
  # A recording's hiss has a colour of its own.
  hiss = band_limit(draw_noise(len(both[0]), rng), highpass_hz=300.0, lowpass_hz=4000.0)
  both[noisy] = both[noisy] + np.float32(0.05 * both[noisy].std()) * hiss
  faint = VoiceConfig(noise_snr_db=(55.0, 55.0), silence_probability=0.0, lowpass_hz=(7000.0, 7000.0))
  found = audio_fakes.matched_pair(*both, rng=rng, config=faint)
  before, after = (quiet_spectrum_db(x)[:4] - quiet_spectrum_db(y)[:4] for x, y in (both, found))
  assert np.abs(before).min() > 10
  assert np.abs(after).max() < 4
  for x in found:
    assert x.dtype == np.float32 and np.abs(x).max() <= 1


def test_a_seed_says_it_all_and_the_input_stays(originals):
  for kind in KINDS:
    before = originals[0].copy()
    first, second, other = (
      voice_pair(originals[0], rng=np.random.default_rng(seed), config=only(kind)) for seed in (5, 5, 6)
    )
    assert first.real.tobytes() == second.real.tobytes() and first.fake.tobytes() == second.fake.tobytes()
    assert first.segments == second.segments and first.kind == second.kind == kind
    assert (first.fake != other.fake).any()
    np.testing.assert_array_equal(originals[0], before)


@pytest.mark.parametrize("partial", [0, 1])
def test_sounds_that_are_no_speech_end_in_a_pair_too(partial):
  """A click, a burst in silence, a clipped square wave, hiss that is hardly there."""
  rng, samples = np.random.default_rng(0), 8001
  click, burst = np.zeros(samples), np.zeros(samples)
  click[4000] = 1
  burst[2000:2400] = rng.uniform(-1, 1, 400)
  square, hiss = np.sign(np.sin(np.arange(samples) / 20)), 2e-4 * rng.standard_normal(samples)
  for kind in KINDS:
    for sound in (click, burst, square, hiss):
      pair = voice_pair(sound.astype(np.float32), rng=rng, config=only(kind, partial_probability=partial))
      for twin in (pair.real, pair.fake):
        assert np.isfinite(twin).all() and 0 < np.abs(twin).max() <= 1
      ((start, end),) = pair.segments
      assert end > start


def test_pitch_moves_the_harmonics_and_formants_move_the_envelope():
  """A steady vowel of 125 Hz with one formant at 1000 Hz."""
  times_s = np.arange(32000) / 16000
  harmonics = np.arange(1, 56) * 125.0
  heights = 1 / (1 + np.square((harmonics - 1000) / 150)) + 1e-3
  vowel = np.float32(0.05) * (heights[:, None] * np.cos(2 * np.pi * harmonics[:, None] * times_s)).sum(axis=0)
  vowel = vowel.astype(np.float32)

  def peaks(waveform):
    power = np.square(np.abs(np.fft.rfft(waveform[8000:24000] * np.hanning(16000))))  # bins of 1 Hz
    periods = np.fft.irfft(power)[: 16000 // 90]
    return 16000 / (89 + periods[89:].argmax()), (power[:2500] * np.arange(2500)).sum() / power[:2500].sum()

  for seed in range(3):
    same = {"partial_probability": 0, "silence_probability": 0, "noise_snr_db": (80, 80)}
    rng = np.random.default_rng(seed)
    moved = voice_pair(vowel, rng=rng, config=only("pitch", pitch_semitones=(3, 3), **same))
    pitch, formant = peaks(moved.fake)
    assert min(abs(pitch - 125 * 2**0.25), abs(pitch - 125 / 2**0.25)) < 3
    assert abs(formant - 1000) < 80
    moved = voice_pair(vowel, rng=rng, config=only("formant", formant_ratio=(1.25, 1.25), **same))
    pitch, formant = peaks(moved.fake)
    assert pitch == pytest.approx(125, abs=1)
    assert min(abs(formant - 1250), abs(formant - 800)) < 90


def test_a_lower_pitch_leaves_no_empty_band(originals):
  """A shift down by four semitones moves 8 kHz to 6.3 kHz; above, a shortcut would be waiting."""
  config = only(
    "pitch",
    pitch_semitones=(4, 4),
    partial_probability=0,
    silence_probability=0,
    noise_snr_db=(90, 90),
    lowpass_hz=(7600, 7600),
  )
  top = slice(round(6600 / 8000 * 256), round(7300 / 8000 * 256))
  rng, gaps = np.random.default_rng(7), []
  for waveform in originals[:10]:
    pair = voice_pair(waveform, rng=rng, config=config)
    real, fake = (
      np.square(np.abs(audio_fakes._spectrum(x, 512)))[:, top].mean() for x in (pair.real, pair.fake)
    )
    gaps.append(10 * np.log10(fake / real))
  assert np.abs(gaps).max() < 6


def test_a_copy_with_enough_iterations_has_the_mel_spectrum_it_was_made_from(originals):
  """More of the search comes closer to it, and the search is as good as librosa's."""
  import librosa

  bank, inverse = audio_fakes._mel_bank(16000, 1024, 80)
  magnitude = np.abs(librosa.stft(originals[0], n_fft=1024, hop_length=256, pad_mode="constant"))
  smoothed = np.maximum(inverse @ (bank @ magnitude), 0)

  def miss(waveform):
    found = np.abs(librosa.stft(waveform, n_fft=1024, hop_length=256, pad_mode="constant"))
    scale = (found * smoothed).sum() / np.square(found).sum()
    return np.linalg.norm(scale * found - smoothed) / np.linalg.norm(smoothed)

  few, many = (miss(copy_synthesis(originals[0], np.random.default_rng(0), iterations=n)) for n in (1, 32))
  reference = librosa.griffinlim(
    smoothed, n_iter=32, n_fft=1024, hop_length=256, length=len(originals[0]), pad_mode="constant",
    random_state=0,
  )  # fmt: skip
  assert many < 0.6 * few
  assert many < 1.1 * miss(reference)


def test_copies_of_a_batch_have_its_shape_and_loudness(originals):
  batch = np.stack(originals[:4]).reshape(2, 2, -1)
  found = copy_synthesis(batch, np.random.default_rng(0), iterations=2)
  assert found.shape == batch.shape and found.dtype == np.float32
  np.testing.assert_allclose(found.std(axis=-1), batch.std(axis=-1), rtol=0.05)


@pytest.mark.parametrize(
  ("waveform", "message"),
  [
    (np.zeros(16000), r"must be float32 \[sample\], mono at 16 kHz, got float64 \[16000\]"),
    (np.zeros((2, 16000), np.float32), r"got float32 \[2, 16000\]"),
    (np.ones(7999, np.float32), "at least 8000 samples at 16 kHz, got 7999"),
    (np.full(16000, np.nan, np.float32), "finite, got 16000 samples that are not"),
    (np.full(16000, 1.5, np.float32), r"in -1\.\.1, got a peak of 1\.5"),
    (np.full(16000, 0.5, np.float32), r"hold sound \(a standard deviation of 0.0001 or more\), got 0"),
  ],
)
def test_wrong_input_is_named(waveform, message):
  with pytest.raises(ValueError, match=message):
    voice_pair(waveform, rng=np.random.default_rng(0), config=VoiceConfig())


def test_frequencies_of_kinds_must_make_sense(originals):
  nothing = {kind: 0.0 for kind in VOICE_KINDS}
  for wrong in (nothing, {**nothing, "mel": -1.0, "phase": 2.0}):
    with pytest.raises(ValueError, match="0 or more, and one above 0"):
      voice_pair(originals[0], rng=np.random.default_rng(0), config=VoiceConfig(**wrong))


def test_world_without_pyworld_says_what_to_install(originals, monkeypatch):
  """Whichever kind is drawn: what a configuration makes may not depend on what is installed."""
  monkeypatch.setattr(audio_fakes, "_has_world", lambda: False)
  config = dataclasses.replace(VoiceConfig(), world=1e-9)
  with pytest.raises(ImportError, match=r"pip install 'deepscan_jax\[world\]'"):
    voice_pair(originals[0], rng=np.random.default_rng(0), config=config)
