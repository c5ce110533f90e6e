"""What happens to a voice on its way to the network: a room, a microphone, a line, a codec.

Waveforms are float32 [sample] in -1..1, mono, 16 kHz. Every random number comes from the Generator passed in,
nothing is mutated, and nothing here calls JAX: it runs in loader workers. All parameters of one degradation
are drawn before the first sample is touched, so the two twins of a pair go through exactly the same steps:
same room, same noise sample by sample, same codec. No step moves anything in time, codecs included, so labels
in seconds and the mouth that is seen stay true.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import scipy  # its parts come when they are first used: signal takes as long to import as JAX

SAMPLE_RATE_HZ = 16000
Step = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AudioAugmentConfig:
  """How a waveform becomes a training waveform. The steps follow each other as they are listed.

  Attributes:
    reverb_probability: how often a synthetic room answers.
    reverb_rt60_s: (shortest, longest) time in which its sound falls by 60 dB.
    direct_to_reverb_db: (wettest, driest) energy of the direct sound against the room's.
    noise_probability, noise_snr_db: (loudest, faintest) noise below the level of the voice as it came, white
      to pink, one field for both twins.
    band_probability: how often the band is narrowed at both ends.
    highpass_hz, lowpass_hz: (lowest, highest) ends of the band.
    gain_probability, gain_db: (softest, loudest) gain; what then exceeds -1..1 is clipped, as recorders do.
    codec_probability: how often a codec is passed through.
    mp3, opus, aac, mulaw, alaw: relative frequency of each; the last two are G.711 over the telephone band,
      300 to 3400 Hz at 8 kHz.
    second_codec_probability: how often one more follows, as from a re-upload.
    mp3_bit_rates, opus_bit_rates, aac_bit_rates: bits a second, drawn evenly.
  """

  reverb_probability: float = 0.25
  reverb_rt60_s: tuple[float, float] = (0.1, 0.8)
  direct_to_reverb_db: tuple[float, float] = (-3.0, 15.0)
  noise_probability: float = 0.4
  noise_snr_db: tuple[float, float] = (5.0, 40.0)
  band_probability: float = 0.2
  highpass_hz: tuple[float, float] = (30.0, 300.0)
  lowpass_hz: tuple[float, float] = (3400.0, 7500.0)
  gain_probability: float = 0.5
  gain_db: tuple[float, float] = (-12.0, 6.0)
  codec_probability: float = 0.5
  mp3: float = 0.3
  opus: float = 0.25
  aac: float = 0.25
  mulaw: float = 0.1
  alaw: float = 0.1
  second_codec_probability: float = 0.1
  mp3_bit_rates: tuple[int, ...] = (24000, 32000, 48000, 64000)
  opus_bit_rates: tuple[int, ...] = (12000, 16000, 24000, 32000)
  aac_bit_rates: tuple[int, ...] = (24000, 32000, 48000, 64000)


def degrade_pair(
  real: np.ndarray, fake: np.ndarray, *, rng: np.random.Generator, config: AudioAugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both twins after one and the same degradation.

  Args:
    real, fake: float32 [sample] in -1..1.
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    (real, fake): float32 [sample] in -1..1, where nothing has moved in time.

  Raises:
    ValueError: a waveform has the wrong type, shape or range, or the two differ in length.
  """
  check_waveform("The real twin", real, least=1)
  check_waveform("The fake twin", fake, least=1)
  if real.shape != fake.shape:
    raise ValueError(f"Twins must be equally long, got {len(real)} and {len(fake)} samples.")
  # One level for both, or the noise would tell them apart.
  shared = np.sqrt((np.square(level(real)) + np.square(level(fake))) / 2)
  degrade = draw_degradation(rng, len(real), voice_level=shared, config=config)
  return degrade(real), degrade(fake)


def degrade_one(waveform: np.ndarray, *, rng: np.random.Generator, config: AudioAugmentConfig) -> np.ndarray:
  """Returns one waveform after a random degradation, as `degrade_pair` gives to each twin.

  Args:
    waveform: float32 [sample] in -1..1.
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    float32 [sample] in -1..1.

  Raises:
    ValueError: the waveform has the wrong type, shape or range.
  """
  check_waveform("A waveform", waveform, least=1)
  return draw_degradation(rng, len(waveform), voice_level=level(waveform), config=config)(waveform)


def draw_degradation(
  rng: np.random.Generator, samples: int, *, voice_level: float, config: AudioAugmentConfig
) -> Step:
  """Returns a function that gives every waveform of that many samples the same room, noise, line and codec.

  Args:
    rng: the only source of randomness.
    samples: of the waveforms.
    voice_level: root mean square that the signal-to-noise ratio refers to.
    config: what is drawn how often.
  """
  steps: list[Step] = []
  if rng.random() < config.reverb_probability:
    response = room_response(
      rng, rt60_s=rng.uniform(*config.reverb_rt60_s), direct_db=rng.uniform(*config.direct_to_reverb_db)
    )
    steps.append(functools.partial(reverberate, response=response))
  if rng.random() < config.noise_probability:
    noise = draw_noise(samples, rng)
    noise *= np.float32(voice_level * 10 ** (-rng.uniform(*config.noise_snr_db) / 20))
    steps.append(lambda waveform: waveform + noise)
  if rng.random() < config.band_probability:
    ends = (rng.uniform(*config.highpass_hz), rng.uniform(*config.lowpass_hz))
    steps.append(functools.partial(band_limit, highpass_hz=ends[0], lowpass_hz=ends[1]))
  if rng.random() < config.gain_probability:
    gain = np.float32(10 ** (rng.uniform(*config.gain_db) / 20))
    steps.append(lambda waveform: waveform * gain)
  steps.append(_clip)
  for probability in (config.codec_probability, config.second_codec_probability):
    if rng.random() < probability:
      steps.append(_draw_codec(rng, config))
  return lambda waveform: functools.reduce(lambda heard, step: step(heard), steps, waveform)


def check_waveform(name: str, waveform: np.ndarray, *, least: int, audible: bool = False) -> None:
  """Raises ValueError, beginning with the name, unless it is float32 [sample], finite, in -1..1, long enough.

  Args:
    name: what the sentence calls it.
    waveform: to be checked.
    least: samples that it needs.
    audible: whether it must hold sound too.
  """
  if waveform.dtype != np.float32 or waveform.ndim != 1:
    raise ValueError(
      f"{name} must be float32 [sample], mono at 16 kHz, got {waveform.dtype} {list(waveform.shape)}."
    )
  if len(waveform) < least:
    raise ValueError(f"{name} must have at least {least} samples at 16 kHz, got {len(waveform)}.")
  if not np.isfinite(waveform).all():
    wrong = np.count_nonzero(~np.isfinite(waveform))
    raise ValueError(f"{name} must be finite, got {wrong} samples that are not.")
  if np.abs(waveform).max() > 1:
    raise ValueError(f"{name} must lie in -1..1, got a peak of {np.abs(waveform).max():.3g}.")
  if audible and waveform.std() < _SILENCE:
    raise ValueError(
      f"{name} must hold sound (a standard deviation of {_SILENCE} or more), got {waveform.std():.2g}."
    )


def level(waveform: np.ndarray) -> float:
  """Root mean square."""
  return float(np.sqrt(np.square(waveform).mean()))


def draw_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
  """Returns float32 [sample] noise of level 1, whose spectrum falls by 0 (white) to 3 dB (pink) an octave."""
  # A length that the transform is fast at, and enough for a level; the noise is cut from it.
  length = scipy.fft.next_fast_len(max(samples, 1024), real=True)
  spectrum = scipy.fft.rfft(rng.standard_normal(length, np.float32))
  # Level below a hundredth of the band (80 Hz), or rumble would be all there is.
  place = np.maximum(np.arange(len(spectrum), dtype=np.float32) / len(spectrum), np.float32(0.01))
  spectrum *= place ** np.float32(-rng.uniform(0, 0.5))
  spectrum[0] = 0
  noise = scipy.fft.irfft(spectrum, n=length)
  return (noise[:samples] / np.float32(level(noise))).astype(np.float32)


def band_limit(waveform: np.ndarray, *, highpass_hz: float, lowpass_hz: float) -> np.ndarray:
  """Returns [..., sample] float32 without what lies outside of a band, and without delay.

  Butterworth sections run forwards and then backwards, so that phases stay; at the ends of the band 6 dB are
  lost, an octave outside about 24 dB at the lower end and 72 dB at the upper.
  """
  sections = np.concatenate(
    [
      scipy.signal.butter(2, highpass_hz, "highpass", fs=SAMPLE_RATE_HZ, output="sos"),
      scipy.signal.butter(6, lowpass_hz, "lowpass", fs=SAMPLE_RATE_HZ, output="sos"),
    ]
  )
  padding = min(1024, waveform.shape[-1] - 1)
  return scipy.signal.sosfiltfilt(sections, waveform, axis=-1, padlen=padding).astype(np.float32)


def room_response(rng: np.random.Generator, *, rt60_s: float, direct_db: float) -> np.ndarray:
  """Returns the answer of a synthetic room to a click: the click, then noise that dies away exponentially.

  The diffuse sound of a room is Gaussian noise under exp(-6.91 t / rt60), which falls by 60 dB in rt60
  (Polack 1988; Moorer 1979, "About This Reverberation Business", Computer Music Journal 3(2)); it begins 2 to
  15 ms after the direct sound.

  Args:
    rng: draws noise and beginning.
    rt60_s: time in which the sound falls by 60 dB.
    direct_db: energy of the direct sound against the rest.

  Returns:
    float32 [sample] of energy 1; the direct sound is sample 0, so nothing moves in time.
  """
  begin = round(rng.uniform(0.002, 0.015) * SAMPLE_RATE_HZ)
  times_s = np.arange(max(1, round(rt60_s * SAMPLE_RATE_HZ))) / SAMPLE_RATE_HZ
  tail = rng.standard_normal(len(times_s)) * np.exp(-3 * np.log(10) * times_s / rt60_s)
  tail *= 10 ** (-direct_db / 20) / np.sqrt(np.square(tail).sum())
  response = np.concatenate([[1.0], np.zeros(begin - 1), tail])
  return (response / np.sqrt(np.square(response).sum())).astype(np.float32)


def reverberate(waveform: np.ndarray, *, response: np.ndarray) -> np.ndarray:
  """Returns the waveform as it sounds in a room, cut to its own length."""
  return scipy.signal.oaconvolve(waveform, response)[: len(waveform)].astype(np.float32)


def codec_round_trip(waveform: np.ndarray, *, codec: str, bit_rate: int = 0) -> np.ndarray:
  """Returns the waveform after a real encoder and decoder, at its own length and time.

  Args:
    waveform: float32 [sample] in -1..1.
    codec: "mp3", "opus" or "aac"; or "mulaw" or "alaw", which are G.711 at 8 kHz over 300 to 3400 Hz.
    bit_rate: bits a second, constant, so that no twin gets more of them; G.711 has its own 64000.

  Returns:
    float32 [sample] in -1..1.

  Raises:
    ValueError: unknown codec, a bit rate that it cannot have, or a waveform that is not as said above.
  """
  # Not only for whoever calls this alone: LAME ends the whole process at the first sample that is not finite.
  check_waveform("A waveform", waveform, least=1)
  if codec not in _CODECS:
    raise ValueError(f"Unknown codec {codec!r}; there are {', '.join(_CODECS)}.")
  if _CODECS[codec].telephone:
    narrow = band_limit(waveform, highpass_hz=300.0, lowpass_hz=3400.0)
    narrow = scipy.signal.resample_poly(narrow, 1, 2).astype(np.float32)
    decoded = scipy.signal.resample_poly(_encode_and_decode(narrow, codec, 0), 2, 1)
    return _clip(decoded[: len(waveform)])
  if not _LEAST_BIT_RATE <= bit_rate <= _MOST_BIT_RATE:
    raise ValueError(
      f"Bits a second for {codec} must lie in {_LEAST_BIT_RATE}..{_MOST_BIT_RATE}, got {bit_rate}."
    )
  delay = _codec_delay(codec, bit_rate)
  # What the encoder still holds back at the end comes out after silence.
  padded = np.pad(waveform, (0, _FLUSH_SAMPLES))
  return _clip(_encode_and_decode(padded, codec, bit_rate)[delay : delay + len(waveform)])


@dataclass(frozen=True)
class _Codec:
  encoder: str
  decoder: str
  sample_format: str
  telephone: bool = False


_CODECS = {
  "mp3": _Codec("libmp3lame", "mp3float", "fltp"),
  "opus": _Codec("libopus", "opus", "flt"),
  "aac": _Codec("aac", "aac", "fltp"),
  "mulaw": _Codec("pcm_mulaw", "pcm_mulaw", "s16", telephone=True),
  "alaw": _Codec("pcm_alaw", "pcm_alaw", "s16", telephone=True),
}
_SILENCE = 1e-4  # -80 dB of full scale
_LEAST_BIT_RATE, _MOST_BIT_RATE = 8000, 128000
_FLUSH_SAMPLES = 4096


@functools.cache
def _codec_delay(codec: str, bit_rate: int) -> int:
  """Samples that the sound comes out late, measured once: builds of FFmpeg differ in what they cut off."""
  sound = np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ).astype(np.float32)
  sound = band_limit(np.float32(0.1) * sound, highpass_hz=200.0, lowpass_hz=3000.0)
  found = _encode_and_decode(np.pad(sound, (0, _FLUSH_SAMPLES)), codec, bit_rate)
  return int(scipy.signal.correlate(found, sound, mode="valid").argmax())


def _encode_and_decode(waveform: np.ndarray, codec: str, bit_rate: int) -> np.ndarray:
  """float32 [sample] at the rate that went in, as late and as long as it comes."""
  names = _CODECS[codec]
  rate = SAMPLE_RATE_HZ // 2 if names.telephone else SAMPLE_RATE_HZ
  encoder = av.CodecContext.create(names.encoder, "w")
  encoder.sample_rate, encoder.layout, encoder.format = rate, "mono", names.sample_format
  encoder.time_base, encoder.thread_count = Fraction(1, rate), 1
  if bit_rate:
    encoder.bit_rate = bit_rate
  if codec == "opus":
    encoder.options = {"vbr": "off"}
  encoder.open()
  size = encoder.frame_size or len(waveform)
  sound = np.pad(waveform, (0, -len(waveform) % size))
  if names.sample_format == "s16":
    # The band's filters overshoot, and beyond full scale a whole number would come out at the other end.
    sound = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)
  packets = []
  for start in range(0, len(sound), size):
    frame = av.AudioFrame.from_ndarray(sound[None, start : start + size], names.sample_format, "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    packets += encoder.encode(frame)
  packets += encoder.encode(None)
  decoder = av.CodecContext.create(names.decoder, "r")
  decoder.thread_count = 1
  if encoder.extradata:
    decoder.extradata = encoder.extradata
  if names.telephone:  # nothing in the stream says so
    decoder.sample_rate, decoder.layout = rate, "mono"
  frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
  found = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
  if found.dtype == np.int16:
    found = found / np.float32(32768)
  if frames[0].sample_rate != rate:  # Opus always puts out 48 kHz
    found = scipy.signal.resample_poly(found, rate, frames[0].sample_rate)
  return found.astype(np.float32)


def _draw_codec(rng: np.random.Generator, config: AudioAugmentConfig) -> Step:
  weights = np.array([getattr(config, codec) for codec in _CODECS], float)
  codec = tuple(_CODECS)[rng.choice(len(_CODECS), p=weights / weights.sum())]
  if _CODECS[codec].telephone:
    return functools.partial(codec_round_trip, codec=codec)
  rates = getattr(config, f"{codec}_bit_rates")
  return functools.partial(codec_round_trip, codec=codec, bit_rate=rates[rng.integers(len(rates))])


def _clip(waveform: np.ndarray) -> np.ndarray:
  return np.clip(waveform, -1, 1).astype(np.float32)
