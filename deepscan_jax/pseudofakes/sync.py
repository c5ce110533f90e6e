"""Clips whose mouth does not say what is heard, made from real talking clips, beside an untouched twin.

Sound and picture of each negative are real, so that neither gives it away alone: what is wrong is only that
they do not belong together, in all of the window (the sound is shifted, or another clip's; Chung & Zisserman
2016, "Out of Time: Automated Lip Sync in the Wild") or in a span of it (mouths of another moment, as local
edits leave; Cai et al. 2022, "Do You Really Mean That? Content Driven Audio-Visual Deepfake Dataset and
Multimodal Method for Temporal Forgery Localization", https://arxiv.org/abs/2204.06228). Both twins are
windows cut out of a longer clip: a shift never needs silence at an end to fill up with.

Waveforms are float32 [sample] in -1..1, mono, 16 kHz; mouth crops uint8 [mouth_frame, ...] at 25 a second,
the first at the first sample. Every random number comes from the Generator passed in, nothing is mutated, and
nothing here calls JAX, for it runs in loader workers.
"""

from dataclasses import dataclass

import numpy as np

from deepscan_jax.augment_audio import SAMPLE_RATE_HZ, check_waveform, level

FRAMES_PER_SECOND = 25
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAMES_PER_SECOND  # 640
SYNC_KINDS = ("shift", "long_shift", "swap", "mouth_span")


@dataclass(frozen=True)
class SyncConfig:
  """How a pair of windows is drawn.

  Attributes:
    shift: relative frequency of: the sound is a little early or late.
    long_shift: the sound is of another moment of the clip.
    swap: the sound is another clip's; drawn only where one is given.
    mouth_span: the mouths of a span are of another moment of the clip.
    mouth_frames: of a window; 640 times as many samples.
    shift_frames: (least, most) of a small shift, in mouth frames, early as often as late.
    long_shift_s: (least, most) of a long one.
    span_s: (shortest, longest) span of replaced mouths.
    span_distance_s: how far from there they come at least.
    span_candidates: moments drawn to take the mouths from; the one whose ends fit best is taken, so that the
      cut shows little.
  """

  shift: float = 0.4
  long_shift: float = 0.2
  swap: float = 0.2
  mouth_span: float = 0.2
  mouth_frames: int = 50
  shift_frames: tuple[int, int] = (2, 15)
  long_shift_s: tuple[float, float] = (1.0, 3.0)
  span_s: tuple[float, float] = (0.5, 1.5)
  span_distance_s: float = 0.5
  span_candidates: int = 8


@dataclass(frozen=True, eq=False)
class SyncPair:
  """A window of a talking clip, and one whose sound and mouths do not belong together.

  Attributes:
    waveform: float32 [640 * mouth_frames], what is really heard.
    mouth_crops: uint8 [mouth_frames, ...], what is really seen.
    fake_waveform, fake_mouth_crops: of the twin. The mouths differ for "mouth_span", the sound for all
      other kinds.
    fake_mouth_index: int [mouth_frames], which frame of the clip each mouth of the twin is; for masks and
      landmarks, which follow it.
    start_frame: the frame of the clip that the window begins with.
    shift_frames: by how many mouth frames the twin's sound is late; 0 for "swap" and "mouth_span".
    segments: (start_s, end_s) of the mismatch, from the window's beginning, in order of time.
    kind: which of `SYNC_KINDS` was drawn.
  """

  waveform: np.ndarray
  mouth_crops: np.ndarray
  fake_waveform: np.ndarray
  fake_mouth_crops: np.ndarray
  fake_mouth_index: np.ndarray
  start_frame: int
  shift_frames: int
  segments: tuple[tuple[float, float], ...]
  kind: str


def sync_pair(
  waveform: np.ndarray,
  mouth_crops: np.ndarray,
  *,
  rng: np.random.Generator,
  config: SyncConfig,
  other_waveform: np.ndarray | None = None,
) -> SyncPair:
  """Returns a window of a talking clip as it was, and one in which sound and mouths do not belong together.

  Kinds that the clip is too short for are not drawn, nor is "swap" without another clip.

  Args:
    waveform: float32 [sample] in -1..1.
    mouth_crops: uint8 [mouth_frame, ...] at 25 a second. Where sound or picture is longer than the other, the
      rest of it is not used.
    rng: the only source of randomness.
    config: what is drawn how often.
    other_waveform: float32 [sample] of another clip, at least as long as a window.

  Returns:
    SyncPair.

  Raises:
    ValueError: wrong types, shapes, ranges or lengths, no sound, or no kind that the clip allows.
  """
  frames = _check(waveform, mouth_crops, config)
  if other_waveform is not None:
    check_waveform("The other waveform", other_waveform, least=_samples(config), audible=True)
  kind = _draw_kind(frames, rng, config, has_other=other_waveform is not None)
  window = config.mouth_frames
  shift = _draw_shift(kind, frames, rng, config)
  # With sound late by `shift` frames, the mouths of frame i hear what was said at frame i - shift.
  first, last = max(0, shift), frames - window + min(0, shift)
  start = _draw_audible_start(waveform, first, last, (0, -shift), rng, config)
  index = np.arange(start, start + window)
  heard = _sound(waveform, start, window)
  fake_heard, fake_index, segments = heard, index, ((0.0, window / FRAMES_PER_SECOND),)
  if kind == "swap":
    spare = len(other_waveform) // SAMPLES_PER_FRAME - window
    fake_heard = _sound(
      other_waveform, _draw_audible_start(other_waveform, 0, spare, (0,), rng, config), window
    )
  elif kind == "mouth_span":
    begin, end, source = _draw_span(mouth_crops[:frames], waveform, start, rng, config)
    fake_index = index.copy()
    fake_index[begin:end] = source + np.arange(end - begin)
    segments = ((begin / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND),)
  else:
    fake_heard = _sound(waveform, start - shift, window)
  return SyncPair(
    waveform=heard.copy(),
    mouth_crops=mouth_crops[index],
    fake_waveform=fake_heard.copy(),
    fake_mouth_crops=mouth_crops[fake_index],
    fake_mouth_index=fake_index,
    start_frame=start,
    shift_frames=shift,
    segments=segments,
    kind=kind,
  )


_ATTEMPTS = 8  # windows and spans that are looked for
_LEAST_LEVEL = 0.3  # of a window or span against the clip: in a pause nothing is out of step


def _draw_kind(frames: int, rng: np.random.Generator, config: SyncConfig, *, has_other: bool) -> str:
  spare = frames - config.mouth_frames
  fits = {
    "shift": spare >= config.shift_frames[0],
    "long_shift": spare >= _frames(config.long_shift_s[0]),
    "swap": has_other,
    "mouth_span": _longest_span(frames, config) >= _frames(config.span_s[0]),
  }
  weights = np.array([getattr(config, kind) * fits[kind] for kind in SYNC_KINDS], float)
  if weights.min() < 0 or not weights.sum() > 0:
    raise ValueError(
      f"No kind of mismatch is possible: {frames} mouth frames for windows of {config.mouth_frames}, "
      f"{'another' if has_other else 'no other'} waveform, and frequencies "
      f"{ {kind: getattr(config, kind) for kind in SYNC_KINDS} }; give a longer clip or another waveform."
    )
  return SYNC_KINDS[rng.choice(len(SYNC_KINDS), p=weights / weights.sum())]


def _draw_shift(kind: str, frames: int, rng: np.random.Generator, config: SyncConfig) -> int:
  if kind == "shift":
    least, most = config.shift_frames
  elif kind == "long_shift":
    least, most = (_frames(v) for v in config.long_shift_s)
  else:
    return 0
  size = int(rng.integers(least, min(most, frames - config.mouth_frames) + 1))
  return size if rng.random() < 0.5 else -size


def _draw_audible_start(
  waveform: np.ndarray,
  first: int,
  last: int,
  offsets: tuple[int, ...],
  rng: np.random.Generator,
  config: SyncConfig,
) -> int:
  """A frame in first..last at which windows begin, at each of the offsets from there, that are no pause."""
  starts = rng.integers(first, last + 1, _ATTEMPTS)
  levels = np.array(
    [min(level(_sound(waveform, s + offset, config.mouth_frames)) for offset in offsets) for s in starts]
  )
  return int(starts[_first_loud(levels, waveform)])


def _draw_span(
  mouth_crops: np.ndarray,
  waveform: np.ndarray,
  start: int,
  rng: np.random.Generator,
  config: SyncConfig,
) -> tuple[int, int, int]:
  """Begin and end of a span, in frames of the window, and the clip's frame that replaces the first of it."""
  frames, window, apart = len(mouth_crops), config.mouth_frames, max(1, _frames(config.span_distance_s))
  longest = _longest_span(frames, config)
  length = int(rng.integers(_frames(config.span_s[0]), longest + 1))
  begins = rng.integers(0, window - length + 1, _ATTEMPTS)
  levels = np.array([level(_sound(waveform, start + begin, length)) for begin in begins])
  begin = int(begins[_first_loud(levels, waveform)])
  place = start + begin
  far = np.arange(frames - length + 1)
  far = far[np.abs(far - place) >= apart]
  sources = far[rng.integers(0, len(far), config.span_candidates)]

  def misfit(source: int) -> float:
    ends = ((place, source), (place + length - 1, source + length - 1))
    return sum(np.abs(mouth_crops[a].astype(np.int16) - mouth_crops[b]).mean() for a, b in ends)

  return begin, begin + length, int(min(sources, key=misfit))


def _longest_span(frames: int, config: SyncConfig) -> int:
  """Mouth frames that a span may have so that, wherever it lies, others are far enough away to replace it.

  Both may begin at 0..frames - length; from its middle, the worst place, the ends are half of it away.
  """
  room = frames - 2 * max(1, _frames(config.span_distance_s))
  return min(_frames(config.span_s[1]), config.mouth_frames, room)


def _first_loud(levels: np.ndarray, waveform: np.ndarray) -> int:
  loud = levels >= _LEAST_LEVEL * level(waveform)
  return int(loud.argmax() if loud.any() else levels.argmax())


def _sound(waveform: np.ndarray, start: int, frames: int) -> np.ndarray:
  return waveform[start * SAMPLES_PER_FRAME : (start + frames) * SAMPLES_PER_FRAME]


def _frames(seconds: float) -> int:
  return round(seconds * FRAMES_PER_SECOND)


def _samples(config: SyncConfig) -> int:
  """Of a window."""
  return config.mouth_frames * SAMPLES_PER_FRAME


def _check(waveform: np.ndarray, mouth_crops: np.ndarray, config: SyncConfig) -> int:
  """The mouth frames that both sound and picture have."""
  check_waveform("A waveform", waveform, least=_samples(config), audible=True)
  if mouth_crops.dtype != np.uint8 or mouth_crops.ndim < 2:
    raise ValueError(
      f"Mouth crops must be uint8 [mouth_frame, ...], got {mouth_crops.dtype} {list(mouth_crops.shape)}."
    )
  if len(mouth_crops) < config.mouth_frames:
    raise ValueError(
      f"A clip must have at least the {config.mouth_frames} mouth frames of a window, got {len(mouth_crops)}."
    )
  return min(len(mouth_crops), len(waveform) // SAMPLES_PER_FRAME)
