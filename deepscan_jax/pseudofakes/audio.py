"""Copy synthesis: a real voice beside a twin that says the same at the same time, put together by a vocoder.

Cloned voices differ by who made them; what most share is that a waveform was put together from a description
of it: bands of a spectrum without phases, pitch and formants that were moved. A real voice taken apart and
put together again carries these traces and no others (Wang & Yamagishi 2023, "Spoofed Training Data for
Speech Spoofing Countermeasure Can Be Efficiently Created Using Neural Vocoders",
https://arxiv.org/abs/2210.10570). What would give a twin away without them (loudness, peak, offset, band,
noise floor, the silence at both ends) is made the same in both.

Waveforms are float32 in -1..1, mono, 16 kHz; every random number comes from the Generator passed in, nothing
is mutated, and nothing here calls JAX, for it runs in loader workers.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # its parts come when they are first used: signal takes as long to import as JAX

from deepscan_jax.augment_audio import SAMPLE_RATE_HZ, band_limit, check_waveform, draw_noise, level

VOICE_KINDS = ("griffin_lim", "mel", "phase", "pitch", "formant", "world")


@dataclass(frozen=True)
class VoiceConfig:
  """How a pair of voices is drawn.

  Attributes:
    griffin_lim: relative frequency of: mel bands only, and phases that the fast Griffin-Lim search finds.
    mel: mel bands only, but the true phases.
    phase: the true magnitudes, but phases that are noisy or rounded.
    pitch: another pitch, the same formants.
    formant: other formants, the same pitch.
    world: the WORLD vocoder; above 0 it needs the package pyworld.
    fft_lengths, mel_bands: of the spectrograms of the first three kinds, drawn evenly; a quarter of the
      window is the hop.
    iterations: (fewest, most) of the Griffin-Lim search.
    phase_noise: (least, most) noise of the phases, as a part of the whole circle.
    phase_levels: (fewest, most) phases that rounding leaves.
    pitch_semitones, formant_ratio: (least, most) shift, up as often as down.
    partial_probability, partial_share: how often only a span is forged, and its (least, most) part of the
      whole.
    fade_s: (shortest, longest) cross-fade at the ends of a span; it lies within the span.
    highpass_hz, lowpass_hz: (lowest, highest) ends of the band that both twins keep.
    noise_snr_db: (loudest, faintest) noise floor that both twins get, below the level of the voice.
    silence_probability, silence_s: how often the beginning and the end are muted in both twins, each drawn
      for itself, and for how long at most: no more than a tenth of the whole at either end.
  """

  griffin_lim: float = 0.3
  mel: float = 0.2
  phase: float = 0.2
  pitch: float = 0.15
  formant: float = 0.15
  world: float = 0.0
  fft_lengths: tuple[int, ...] = (512, 1024)
  mel_bands: tuple[int, ...] = (64, 80, 100)
  iterations: tuple[int, int] = (6, 20)
  phase_noise: tuple[float, float] = (0.5, 1.0)
  phase_levels: tuple[int, int] = (2, 5)
  pitch_semitones: tuple[float, float] = (1.0, 4.0)
  formant_ratio: tuple[float, float] = (1.08, 1.25)
  partial_probability: float = 0.4
  partial_share: tuple[float, float] = (0.1, 0.8)
  fade_s: tuple[float, float] = (0.005, 0.03)
  highpass_hz: tuple[float, float] = (20.0, 60.0)
  lowpass_hz: tuple[float, float] = (5500.0, 7600.0)
  noise_snr_db: tuple[float, float] = (25.0, 50.0)
  silence_probability: float = 0.7
  silence_s: float = 0.4


@dataclass(frozen=True, eq=False)
class VoicePair:
  """A real voice and its forged twin.

  Attributes:
    real: float32 [sample] in -1..1.
    fake: float32 [sample] in -1..1, equal to `real` outside of the segments.
    segments: (start_s, end_s) of what is forged, in order of time.
    kind: which of `VOICE_KINDS` was drawn.
  """

  real: np.ndarray
  fake: np.ndarray
  segments: tuple[tuple[float, float], ...]
  kind: str


def voice_pair(waveform: np.ndarray, *, rng: np.random.Generator, config: VoiceConfig) -> VoicePair:
  """Returns a real voice and a forgery of it, made by taking it apart and putting it together again.

  Both twins keep one band of frequencies and are muted at both ends alike; the forgery, or the span of it
  that is spliced in, gets the level and the highest peak of what it replaces; then one noise goes on both.

  Args:
    waveform: float32 [sample] in -1..1, at least 0.5 s.
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    VoicePair of the same length; no moment of it is moved in time.

  Raises:
    ValueError: the waveform has the wrong type, shape, range or length, is not finite or holds no sound.
    ImportError: the config names WORLD, and pyworld is not installed.
  """
  check_waveform("A waveform", waveform, least=_LEAST_SAMPLES, audible=True)
  _check_kinds(config)
  kind = VOICE_KINDS[rng.choice(len(VOICE_KINDS), p=_kind_probabilities(config))]
  samples = len(waveform)
  forged = _SYNTHESES[kind](waveform, rng, config)
  audible = _draw_audible(samples, rng, config)
  ends = {"highpass_hz": rng.uniform(*config.highpass_hz), "lowpass_hz": rng.uniform(*config.lowpass_hz)}
  real, forged = band_limit(np.stack([waveform, forged]), **ends).astype(np.float64) * audible
  span = _draw_span(real, audible, rng, config)
  fake = _replace(real, forged, span.weight, audible)
  noise = draw_noise(samples, rng) * (level(real) * 10 ** (-rng.uniform(*config.noise_snr_db) / 20))
  real, fake = real + noise, fake + noise
  # One factor for both, so that what is equal stays so.
  scale = 1 / max(1.0, np.abs(real).max(), np.abs(fake).max())
  segment = (span.start / SAMPLE_RATE_HZ, span.stop / SAMPLE_RATE_HZ)
  return VoicePair(
    real=(real * scale).astype(np.float32),
    fake=(fake * scale).astype(np.float32),
    segments=(segment,),
    kind=kind,
  )


def matched_pair(
  real: np.ndarray, fake: np.ndarray, *, rng: np.random.Generator, config: VoiceConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a real voice and another that is known to be forged, without what tells recordings apart.

  Synthetic speech is too clean: it has another band, noise floor, level and silence than recordings, which a
  network would learn in place of the synthesis. Both get the same ones, as in `voice_pair`; each first gets
  the hiss that the other's pauses have and its own have not, frequency by frequency.

  Args:
    real, fake: float32 [sample] in -1..1, at least 0.5 s each, of any two lengths.
    rng: the only source of randomness.
    config: of band, noise and silence.

  Returns:
    (real, fake): float32 [sample] in -1..1, cut to the shorter one's length.

  Raises:
    ValueError: as `voice_pair`.
  """
  check_waveform("The real voice", real, least=_LEAST_SAMPLES, audible=True)
  check_waveform("The forged voice", fake, least=_LEAST_SAMPLES, audible=True)
  samples = min(len(real), len(fake))
  ends = {"highpass_hz": rng.uniform(*config.highpass_hz), "lowpass_hz": rng.uniform(*config.lowpass_hz)}
  both = band_limit(np.stack([real[:samples], fake[:samples]]), **ends).astype(np.float64)
  both = both * _draw_audible(samples, rng, config)
  both[1] *= level(both[0]) / max(level(both[1]), 1e-9)
  both = both + _missing_floors(both, rng)
  both = both + draw_noise(samples, rng) * (level(both[0]) * 10 ** (-rng.uniform(*config.noise_snr_db) / 20))
  real, fake = (both / max(1.0, np.abs(both).max())).astype(np.float32)
  return real, fake


def copy_synthesis(
  waveform: np.ndarray,
  rng: np.random.Generator,
  *,
  sample_rate_hz: int = SAMPLE_RATE_HZ,
  fft_length: int = 1024,
  mel_bands: int | None = 80,
  iterations: int = 32,
) -> np.ndarray:
  """The sound that Griffin & Lim (1984) find for the mel spectrogram of a waveform, as loud as it was.

  Content and speaker stay; what mel bands and lost phases cannot carry goes. The search is the fast one of
  Perraudin et al. 2013 ("A fast Griffin-Lim algorithm", WASPAA): with P the way to a waveform and back, and
  |t| the magnitudes wanted, t[n] = P(c[n - 1]) and c[n] = |t| of the phase of t[n] + a (t[n] - t[n - 1]).

  Args:
    waveform: [..., sample].
    rng: draws the phases that the search begins with.
    sample_rate_hz: of the waveform.
    fft_length: of the windows, a multiple of 4; a quarter of it is the hop.
    mel_bands: fewer lose more; None: all magnitudes are known, and the phases alone are lost.
    iterations: more make a cleaner sound.

  Returns:
    Same shape, float32.
  """
  samples = waveform.shape[-1]
  magnitude = np.abs(_spectrum(waveform, fft_length))
  if mel_bands is not None:
    magnitude = _through_mel(magnitude, *_mel_bank(sample_rate_hz, fft_length, mel_bands))
  found = _griffin_lim(magnitude, samples, rng, iterations=iterations)
  wanted, got = (np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) for x in (waveform, found))
  found *= wanted / np.maximum(got, 1e-8)
  return np.clip(found, -1.0, 1.0).astype(np.float32)


def world_synthesis(
  waveform: np.ndarray, *, semitones: float = 0.0, formant_ratio: float = 1.0
) -> np.ndarray:
  """A waveform as its pitch, envelope and aperiodicity, put together again by WORLD.

  Morise, Yokomori & Ozawa 2016, "WORLD: A Vocoder-Based High-Quality Speech Synthesis System for Real-Time
  Applications", IEICE Transactions E99-D.

  Args:
    waveform: [sample] in -1..1, at 16 kHz.
    semitones: that the pitch is moved up by.
    formant_ratio: that frequencies of the envelope are multiplied by.

  Returns:
    float32 [sample] in -1..1, of the same length.

  Raises:
    ImportError: pyworld is not installed.
  """
  import pyworld

  sound = waveform.astype(np.float64)
  pitch, times = pyworld.dio(sound, SAMPLE_RATE_HZ)
  pitch = pyworld.stonemask(sound, pitch, times, SAMPLE_RATE_HZ)
  envelope = pyworld.cheaptrick(sound, pitch, times, SAMPLE_RATE_HZ)
  aperiodicity = pyworld.d4c(sound, pitch, times, SAMPLE_RATE_HZ)
  if formant_ratio != 1:
    place = np.arange(envelope.shape[1])
    moved = np.clip(place / formant_ratio, 0, place[-1])
    envelope = np.stack([np.exp(np.interp(moved, place, np.log(frame))) for frame in envelope])
  pitch = pitch * 2 ** (semitones / 12)
  found = pyworld.synthesize(pitch, envelope, aperiodicity, SAMPLE_RATE_HZ)[: len(sound)]
  found = np.pad(found, (0, len(sound) - len(found)))
  return np.clip(found, -1.0, 1.0).astype(np.float32)


_LEAST_SAMPLES = 8000  # 0.5 s
_MOMENTUM = 0.99  # the a of the fast search
_ENVELOPE_S = 0.003  # longer quefrencies are pitch
_HARMONICS_HZ = 200.0  # from one to the next
_MOST_GAIN = 3.0  # nepers (26 dB) that moving formants may lift or lower a frequency by
_MUTE_FADE_S = 0.02
_FLOOR_FFT = 512
_QUIET_SHARE = 0.1  # of the frames, the quietest: pauses, of which speech has more
_LIMITER_S = 0.02
_ACCENT_S = 0.04
_MATCHES = 8
_ATTEMPTS = 8  # places that a span is looked for at
_LEAST_SPAN_LEVEL = 0.5  # of a span against the whole: forged silence is no forgery


def _griffin_lim_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  return copy_synthesis(
    waveform,
    rng,
    fft_length=_choose(rng, config.fft_lengths),
    mel_bands=_choose(rng, config.mel_bands),
    iterations=int(rng.integers(config.iterations[0], config.iterations[1] + 1)),
  )


def _mel_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  """Magnitudes as mel bands hold them, under the true phases."""
  length = _choose(rng, config.fft_lengths)
  spectrum = _spectrum(waveform, length)
  magnitude = np.abs(spectrum)
  smoothed = _through_mel(magnitude, *_mel_bank(SAMPLE_RATE_HZ, length, _choose(rng, config.mel_bands)))
  return _waveform(spectrum * (smoothed / np.maximum(magnitude, 1e-9)), len(waveform))


def _phase_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  """True magnitudes, under phases with noise on them or rounded to few."""
  spectrum = _spectrum(waveform, _choose(rng, config.fft_lengths))
  if rng.random() < 0.5:
    width = np.float32(2 * np.pi * rng.uniform(*config.phase_noise))
    turn = (rng.random(spectrum.shape, np.float32) - np.float32(0.5)) * width
    spectrum = spectrum * _turned(turn)
  else:
    step = np.float32(2 * np.pi / rng.integers(config.phase_levels[0], config.phase_levels[1] + 1))
    offset = np.float32(rng.uniform(0, 2 * np.pi))  # else two levels would make every spectrum real
    phase = np.rint((np.angle(spectrum) - offset) / step) * step + offset
    spectrum = np.abs(spectrum) * _turned(phase)
  return _waveform(spectrum, len(waveform))


def _pitch_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  """Another pitch by phase vocoder and resampling, then the formants back to where they were."""
  import librosa.effects  # seconds, on first use

  semitones = _either_sign(rng) * rng.uniform(*config.pitch_semitones)
  moved = librosa.effects.pitch_shift(waveform, sr=SAMPLE_RATE_HZ, n_steps=semitones)
  original, spectrum = _spectrum(waveform, 1024), _spectrum(moved, 1024)
  gain = np.clip(_log_envelope(original) - _log_envelope(spectrum), -_MOST_GAIN, _MOST_GAIN)
  spectrum = spectrum * np.exp(gain)
  # A pitch that went down leaves the top of the band empty; the voice's own hiss stays there.
  filled = int(spectrum.shape[-1] * min(1.0, 0.97 * 2 ** (semitones / 12)))
  spectrum[..., filled:] = original[..., filled:]
  return _waveform(spectrum, len(waveform))


def _formant_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  """The spectrum's envelope stretched or squeezed over frequency, with the harmonics where they were."""
  ratio = rng.uniform(*config.formant_ratio) ** _either_sign(rng)
  spectrum = _spectrum(waveform, 1024)
  envelope = _log_envelope(spectrum)
  last = envelope.shape[-1] - 1
  place = np.minimum(np.arange(last + 1) / ratio, last)
  below = np.minimum(place.astype(int), last - 1)
  part = (place - below).astype(np.float32)
  stretched = envelope[..., below] * (1 - part) + envelope[..., below + 1] * part
  return _waveform(spectrum * np.exp(np.clip(stretched - envelope, -_MOST_GAIN, _MOST_GAIN)), len(waveform))


def _world_voice(waveform: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  return world_synthesis(waveform)


_SYNTHESES: dict[str, Callable[[np.ndarray, np.random.Generator, VoiceConfig], np.ndarray]] = {
  "griffin_lim": _griffin_lim_voice,
  "mel": _mel_voice,
  "phase": _phase_voice,
  "pitch": _pitch_voice,
  "formant": _formant_voice,
  "world": _world_voice,
}


def _griffin_lim(
  magnitude: np.ndarray, samples: int, rng: np.random.Generator, *, iterations: int
) -> np.ndarray:
  """[..., sample] for [..., time, frequency]; four times as fast as librosa's, which loader workers need."""
  length = 2 * (magnitude.shape[-1] - 1)
  current = magnitude * _turned(np.float32(2 * np.pi) * rng.random(magnitude.shape, np.float32))
  before = None
  for _ in range(iterations):
    rebuilt = _spectrum(_waveform(current, samples), length)
    # In place: memory that is new in each step costs as much as the sums.
    if before is None:
      ahead = rebuilt.copy()
    else:
      ahead = np.subtract(rebuilt, before, out=before)
      ahead *= np.float32(_MOMENTUM)
      ahead += rebuilt
    scale = np.abs(ahead)
    np.maximum(scale, np.float32(1e-9), out=scale)
    np.divide(magnitude, scale, out=scale)
    before, current = rebuilt, np.multiply(ahead, scale, out=ahead)
  return _waveform(current, samples)


def _spectrum(waveform: np.ndarray, length: int) -> np.ndarray:
  """[..., time, frequency] complex64 of [..., sample]; frame i is centred on sample i * length / 4."""
  hop = length // 4
  frames = -(-waveform.shape[-1] // hop) + 1
  after = (frames - 1) * hop + length // 2 - waveform.shape[-1]
  padding = [(0, 0)] * (waveform.ndim - 1) + [(length // 2, after)]
  padded = np.pad(waveform.astype(np.float32, copy=False), padding)
  windows = np.lib.stride_tricks.sliding_window_view(padded, length, axis=-1)[..., ::hop, :]
  return scipy.fft.rfft(windows * _window(length), axis=-1)


def _waveform(spectrum: np.ndarray, samples: int) -> np.ndarray:
  """[..., sample] float32 whose spectrum is closest to [..., time, frequency] (Griffin & Lim 1984, eq. 6)."""
  length = 2 * (spectrum.shape[-1] - 1)
  pieces = scipy.fft.irfft(spectrum, n=length, axis=-1)
  pieces *= _window(length)
  summed = _overlap_add(pieces)[..., length // 2 : length // 2 + samples]
  return summed / _overlapping(length, pieces.shape[-2])[length // 2 : length // 2 + samples]


# Examples of a dataset have few lengths.
@functools.lru_cache(maxsize=16)
def _overlapping(length: int, frames: int) -> np.ndarray:
  """[sample] float32: the sum of the squares of so many windows."""
  return _overlap_add(np.broadcast_to(np.square(_window(length)), (frames, length)))


def _overlap_add(pieces: np.ndarray) -> np.ndarray:
  """[..., sample] of [..., time, 4 * hop]: each piece begins a hop after the one before."""
  *outer, frames, length = pieces.shape
  quarters = pieces.reshape(*outer, frames, 4, length // 4)
  summed = np.zeros((*outer, frames + 3, length // 4), np.float32)
  for i in range(4):
    summed[..., i : i + frames, :] += quarters[..., i, :]
  return summed.reshape(*outer, -1)


@functools.cache
def _window(length: int) -> np.ndarray:
  return scipy.signal.windows.hann(length, sym=False).astype(np.float32)


def _turned(phase: np.ndarray) -> np.ndarray:
  """exp(i phase) as complex64."""
  turned = np.empty(phase.shape, np.complex64)
  np.cos(phase, out=turned.real)
  np.sin(phase, out=turned.imag)
  return turned


def _through_mel(magnitude: np.ndarray, bank: np.ndarray, inverse: np.ndarray) -> np.ndarray:
  """What mel bands keep of magnitudes; the logarithm that is often taken of them loses nothing more."""
  return np.maximum(magnitude @ bank.T @ inverse.T, 0.0)


@functools.cache
def _mel_bank(sample_rate_hz: int, fft_length: int, mel_bands: int) -> tuple[np.ndarray, np.ndarray]:
  """The bank [mel band, frequency] and its pseudo-inverse."""
  import librosa.filters  # seconds, on first use

  bank = librosa.filters.mel(sr=sample_rate_hz, n_fft=fft_length, n_mels=mel_bands)
  return bank, np.linalg.pinv(bank).astype(np.float32)


def _log_envelope(spectrum: np.ndarray) -> np.ndarray:
  """Log magnitude from harmonic to harmonic, as formants shape it: low quefrencies of the real cepstrum.

  Between harmonics there is little; highest values over the distance of two close that gap first, or the
  envelope would follow the pitch and flatten the formants (as the peak picking of Paul 1981, "The Spectral
  Envelope Estimation Vocoder", IEEE Transactions on Acoustics, Speech, and Signal Processing 29).
  """
  magnitude = np.abs(spectrum)
  floor = 1e-4 * magnitude.max() + 1e-9  # keeps empty bands from ruling
  bins = round(_HARMONICS_HZ / SAMPLE_RATE_HZ * 2 * (spectrum.shape[-1] - 1)) | 1
  height = np.log(scipy.ndimage.maximum_filter1d(magnitude, bins, axis=-1, mode="nearest") + floor)
  cepstrum = scipy.fft.irfft(height, axis=-1)
  keep = round(_ENVELOPE_S * SAMPLE_RATE_HZ)
  cepstrum[..., keep : cepstrum.shape[-1] - keep + 1] = 0
  return scipy.fft.rfft(cepstrum, axis=-1).real


def _draw_audible(samples: int, rng: np.random.Generator, config: VoiceConfig) -> np.ndarray:
  """float32 [sample]: 0 where both twins are muted, 1 elsewhere, with soft edges."""
  edges = []
  for _ in range(2):
    muted = rng.random() < config.silence_probability
    longest = min(config.silence_s * SAMPLE_RATE_HZ, samples / 10)
    edges.append(round(rng.uniform(0, longest)) if muted else 0)
  fade = round(_MUTE_FADE_S * SAMPLE_RATE_HZ)
  ramp = np.arange(samples, dtype=np.float32)
  rise = np.clip((ramp - edges[0]) / fade, 0, 1) if edges[0] else np.ones_like(ramp)
  fall = np.clip((samples - 1 - edges[1] - ramp) / fade, 0, 1) if edges[1] else np.ones_like(ramp)
  return rise * fall


@dataclass(frozen=True, eq=False)
class _Span:
  """Samples start..stop, and float [sample]: how much of each comes from the forgery."""

  start: int
  stop: int
  weight: np.ndarray


def _missing_floors(both: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Noise [2, sample] that lifts the floor of each of two sounds to the higher one of both."""
  samples = both.shape[-1]
  power = np.square(np.abs(_spectrum(both, _FLOOR_FFT)))
  loudness = power.sum(axis=-1)
  quiet = max(1, round(_QUIET_SHARE * power.shape[1]))
  # Frames at either end see the padding.
  order = 1 + np.argsort(loudness[:, 1:-1], axis=-1)[:, :quiet]
  floor = np.take_along_axis(power, order[..., None], axis=1).mean(axis=1)
  missing = np.maximum(floor[::-1] - floor, 0)
  noise = rng.standard_normal((2, samples)).astype(np.float32)
  spectrum = _spectrum(noise, _FLOOR_FFT) * np.sqrt(missing / np.square(_window(_FLOOR_FFT)).sum())[:, None]
  return _waveform(spectrum, samples)


def _draw_span(real: np.ndarray, audible: np.ndarray, rng: np.random.Generator, config: VoiceConfig) -> _Span:
  """All that is audible, or a part of it that is not a pause."""
  samples = len(real)
  heard = np.flatnonzero(audible)
  first, last = int(heard[0]), int(heard[-1]) + 1
  if rng.random() >= config.partial_probability:
    return _Span(first, last, np.ones(samples))
  length = min(round(samples * rng.uniform(*config.partial_share)), last - first)
  fade = max(1, min(round(SAMPLE_RATE_HZ * rng.uniform(*config.fade_s)), length // 2))
  starts = rng.integers(first, last - length + 1, _ATTEMPTS)
  levels = np.array([level(real[start : start + length]) for start in starts])
  loud = levels >= _LEAST_SPAN_LEVEL * level(real)
  start = int(starts[loud.argmax() if loud.any() else levels.argmax()])
  ramp = (np.arange(fade) + 0.5) / fade
  weight = np.zeros(samples)
  weight[start : start + length] = 1
  weight[start : start + fade] = ramp
  weight[start + length - fade : start + length] = ramp[::-1]
  return _Span(start, start + length, weight)


def _replace(real: np.ndarray, forged: np.ndarray, weight: np.ndarray, audible: np.ndarray) -> np.ndarray:
  """weight * forged + (1 - weight) * real, with the level and mean of `real`, and its peak where it differs.

  A peak too high is limited, one too low gets an accent; both by a gain that changes slowly, over the forgery
  alone: outside of it the twins stay equal sample by sample. Where no voice could have both (a click, a
  square wave), the peak is kept and the level is not.
  """
  touched = weight > 0
  kept = (1 - weight) * real
  wanted = np.abs(real[touched]).max()
  missing = np.square(real).sum() - np.square(kept).sum()
  for _ in range(_MATCHES):
    forged = forged - audible * ((weight * (forged - real)).sum() / (weight * audible).sum())
    replaced = weight * forged
    # The positive root g of |g * replaced + kept|^2 = |real|^2.
    power, across = max(np.square(replaced).sum(), 1e-12), (replaced * kept).sum()
    forged = forged * ((np.sqrt(across**2 + power * missing) - across) / power)
    height = np.abs(weight * forged + kept) * touched
    peak = height.max()
    if abs(peak - wanted) <= 1e-4 * wanted:
      break
    forged = forged * (_limiter(height, wanted) if peak > wanted else _accent(height, wanted))
  return np.where(touched, weight * forged + kept, real)


def _limiter(height: np.ndarray, highest: float) -> np.ndarray:
  """A smooth gain [sample] under which no height exceeds the highest."""
  size = round(_LIMITER_S * SAMPLE_RATE_HZ) | 1
  gain = np.minimum(1, highest / np.maximum(height, 1e-12))
  # Each mean is one of minima whose windows all reach the sample itself, so none is above its own gain.
  return scipy.ndimage.uniform_filter1d(
    scipy.ndimage.minimum_filter1d(gain, size, mode="nearest"), size, mode="nearest"
  )


def _accent(height: np.ndarray, highest: float) -> np.ndarray:
  """A smooth gain [sample] that lifts the highest peak, and what lies close to it, to the height wanted."""
  reach = round(_ACCENT_S * SAMPLE_RATE_HZ / 2)
  peak = int(height.argmax())
  distance = np.minimum(np.abs(np.arange(len(height)) - peak) / reach, 1)
  return 1 + (highest / max(height[peak], 1e-12) - 1) * (0.5 + 0.5 * np.cos(np.pi * distance))


def _choose(rng: np.random.Generator, options: tuple[int, ...]) -> int:
  return options[rng.integers(len(options))]


def _either_sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


def _kind_probabilities(config: VoiceConfig) -> np.ndarray:
  weights = np.array([getattr(config, kind) for kind in VOICE_KINDS], float)
  return weights / weights.sum()


def _check_kinds(config: VoiceConfig) -> None:
  weights = {kind: getattr(config, kind) for kind in VOICE_KINDS}
  if min(weights.values()) < 0 or not sum(weights.values()) > 0:
    raise ValueError(
      f"Frequencies of the kinds of forged voice must be 0 or more, and one above 0, got {weights}."
    )
  if config.world > 0 and not _has_world():
    raise ImportError(
      f"VoiceConfig draws WORLD voices (world={config.world}), which need pyworld: "
      "pip install 'deepscan_jax[world]', or set world=0."
    )


@functools.cache
def _has_world() -> bool:
  return importlib.util.find_spec("pyworld") is not None
