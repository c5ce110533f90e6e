"""Named, graded damage to pictures and sound: how far does a score carry when a file is passed on?

Frames are uint8 RGB [frame, height, width, 3], sound is float32 [sample] in -1..1, mono, 16 kHz. Each
perturbation has levels 1 (slight) to 5 (strong) and gives back as many frames or samples of the same size, in
the same place in time; level 0 gives back what came in. The same input, level and seed give the same result,
nothing is mutated, and all levels draw the same random numbers, so that noise grows and does not move.
Nothing here calls JAX: it runs in loader workers. Codecs and filters are those of augment.py and
augment_audio.py.

saturation, contrast, block, noise, blur and pixelation have the levels of DeeperForensics-1.0 (Jiang et al.,
CVPR 2020), whose "JPEG" is what is called pixelation here. Its video codec has CRF 30, 32, 35, 38 and 40;
here h264 begins with 23, as FaceForensics++ does, and leaves out 32.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

from deepscan_jax import augment, augment_audio

FRAMES, SOUND = "frames", "sound"
LEVELS = 5
ALL = "all"
# Blocks of this many pixels, and so many times their number for each 256 pixels of the shorter side.
_BLOCK_PX, _BLOCK_UNIT_PX, _BLOCK_GREY = 8, 256, 128
# Luma of BT.601, and RGB from noise in luma, blue and red difference.
_LUMA = np.array([0.299, 0.587, 0.114])
_FROM_YCBCR = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
# Full range over limited range: 219 steps of luma and 224 of chroma.
_NOISE_GAINS = np.array([255 / 219, 255 / 224, 255 / 224], np.float32)


@dataclasses.dataclass(frozen=True)
class Perturbation:
  """One kind of damage.

  Attributes:
    name: for flags and JSON.
    of: FRAMES or SOUND.
    words: what it is, for people.
    setting: of a level, for people, with {} where its value stands.
    values: of levels 1 to 5; a tuple where a level has several.
    change: (frames or waveform, value, seed) -> same; of SOUND also voice_level.
  """

  name: str
  of: str
  words: str
  setting: str
  values: tuple
  change: Callable

  @property
  def title(self) -> str:
    """The name, for people."""
    return _TITLES.get(self.name, self.name.replace("_", " ").capitalize())

  def say(self, level: int) -> str:
    """What a level is, for people."""
    if level == 0:
      return "untouched"
    value = self.values[level - 1]
    return self.setting.format(*value) if isinstance(value, tuple) else self.setting.format(value)


@dataclasses.dataclass(frozen=True)
class Rung:
  """One step of the ladder: a perturbation at a level.

  Attributes:
    name: of `PERTURBATIONS`.
    level: 0 (untouched) to 5.

  Raises:
    ValueError: there is no such perturbation or level.
  """

  name: str
  level: int

  def __post_init__(self):
    find(self.name)
    if self.level not in range(LEVELS + 1):
      raise ValueError(f"A perturbation has levels 0 (untouched) to {LEVELS}, got {self.level}.")

  @property
  def of(self) -> str:
    """FRAMES or SOUND: what it changes."""
    return PERTURBATIONS[self.name].of

  def frames(self, frames: np.ndarray, *, seed: int | Sequence[int]) -> np.ndarray:
    """The frames of one clip or picture after this step.

    Args:
      frames: uint8 [frame, height, width, 3], in order of time.
      seed: of noise and places; equal for twins.

    Raises:
      ValueError: another dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
      raise ValueError(
        f"Frames must be uint8 [frame, height, width, 3], got {frames.dtype} {list(frames.shape)}."
      )
    if self.of != FRAMES or not self.level or not len(frames):
      return frames
    kind = PERTURBATIONS[self.name]
    return kind.change(frames, kind.values[self.level - 1], seed)

  def sound(
    self, waveform: np.ndarray, *, seed: int | Sequence[int], voice_level: float | None = None
  ) -> np.ndarray:
    """A waveform after this step.

    Args:
      waveform: float32 [sample] in -1..1.
      seed: of noise; equal for twins.
      voice_level: root mean square that noise is measured against; None: the waveform's own. Twins need one
        in common, or the noise would tell them apart.

    Raises:
      ValueError: another dtype, shape or range.
    """
    if self.of != SOUND or not self.level or not len(waveform):
      return waveform
    augment_audio.check_waveform("A waveform", waveform, least=1)
    kind = PERTURBATIONS[self.name]
    voice_level = augment_audio.level(waveform) if voice_level is None else voice_level
    changed = kind.change(waveform, kind.values[self.level - 1], seed, voice_level)
    return np.clip(changed, -1, 1).astype(np.float32)


def find(name: str) -> Perturbation:
  """The perturbation of a name.

  Raises:
    ValueError: there is none; the sentence names those that there are.
  """
  if name not in PERTURBATIONS:
    raise ValueError(f"Unknown perturbation {name!r}; there are {', '.join((ALL, *PERTURBATIONS))}.")
  return PERTURBATIONS[name]


def readable(inputs: Iterable[str]) -> tuple[str, ...]:
  """What of FRAMES and SOUND a model reads that reads these keys (examples.input_shapes)."""
  inputs = set(inputs)
  reads = {FRAMES: bool(inputs & {"crops", "mouth_crops"}), SOUND: "waveform" in inputs}
  return tuple(part for part, read in reads.items() if read)


def chosen(names: Iterable[str], *, inputs: Iterable[str]) -> tuple[str, ...]:
  """Which perturbations of a list can be told by a model.

  Args:
    names: of `PERTURBATIONS`, or `ALL` for all of them.
    inputs: what the model reads (examples.input_shapes).

  Raises:
    ValueError: an unknown name, or none of those named changes anything that the model reads.
  """
  names, read = list(names), readable(inputs)
  wanted = list(PERTURBATIONS) if ALL in names else [find(name).name for name in names]
  found = tuple(dict.fromkeys(name for name in wanted if PERTURBATIONS[name].of in read))
  if not found:
    what = " and ".join(read) or "neither frames nor sound"
    raise ValueError(
      f"None of the perturbations {', '.join(names)} changes what this model reads ({what}); give others, or "
      f"--perturb={ALL}."
    )
  return found


# Pictures -----------------------------------------------------------------------------------------------


def _each(change: Callable) -> Callable:
  """The same change of every frame; nothing is drawn."""
  return lambda frames, value, seed: np.stack([change(frame, value) for frame in frames])


def _saturation(frame: np.ndarray, share: float) -> np.ndarray:
  """grey + share * (frame - grey), with the luma as grey."""
  return cv2.transform(frame, share * np.eye(3) + (1 - share) * np.tile(_LUMA, (3, 1)))


def _contrast(frame: np.ndarray, gain: float) -> np.ndarray:
  """gain * frame, as published: it darkens, too."""
  return augment.scale_channels(frame, gain=np.full(3, gain), offset=np.zeros(3))


def _block(frames: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
  """Grey squares of 8 pixels at random places; all levels of a seed begin with the same ones."""
  changed = frames.copy()
  height, width = frames.shape[1:3]
  # Of crops below 256 pixels, too, some are hit.
  count = count * max(min(height, width) // _BLOCK_UNIT_PX, 1)
  for number, frame in enumerate(changed):
    room = (max(height - _BLOCK_PX, 0) + 1, max(width - _BLOCK_PX, 0) + 1)
    for top, left in _rng(seed, number).integers(0, room, (count, 2)):
      frame[top : top + _BLOCK_PX, left : left + _BLOCK_PX] = _BLOCK_GREY
  return changed


def _noise(frames: np.ndarray, variance: float, seed: int | Sequence[int]) -> np.ndarray:
  """Gaussian noise in YCbCr of limited range, whose values count as 0..1; one field for each frame."""
  strength = np.float32(255 * np.sqrt(variance)) * _NOISE_GAINS
  changed = []
  for number, frame in enumerate(frames):
    field = _rng(seed, number).standard_normal(frame.shape, np.float32) * strength
    noise = np.rint(cv2.transform(field, _FROM_YCBCR)).astype(np.int16)
    changed.append(augment.add_noise(frame, noise))
  return np.stack(changed)


def _blur(frame: np.ndarray, kernel: int) -> np.ndarray:
  return cv2.GaussianBlur(frame, (kernel, kernel), kernel / 6)


def _shrink(
  frame: np.ndarray, factor: float, *, down: int = cv2.INTER_AREA, up: int = cv2.INTER_CUBIC
) -> np.ndarray:
  """Smaller by a factor and as large as before again."""
  height, width = frame.shape[:2]
  small = (max(int(width / factor), 1), max(int(height / factor), 1))
  return cv2.resize(cv2.resize(frame, small, interpolation=down), (width, height), interpolation=up)


def _pixelation(frame: np.ndarray, factor: int) -> np.ndarray:
  """As published: bilinear both ways, so that fine texture aliases on the way down."""
  return _shrink(frame, factor, down=cv2.INTER_LINEAR, up=cv2.INTER_LINEAR)


def _jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
  return augment.jpeg(frame, quality=quality)


def _h264(frames: np.ndarray, crf: int, seed: int | Sequence[int]) -> np.ndarray:
  del seed
  return np.stack(augment.h264_clip(list(frames), crf=crf))


def _platform(frames: np.ndarray, value: tuple[float, int, int], seed: int | Sequence[int]) -> np.ndarray:
  """What a share on a platform does, and another one of that: each makes smaller and encodes."""
  factor, crf, passes = value
  height, width = frames.shape[1:3]
  small = (max(int(width / factor), 1), max(int(height / factor), 1))
  passed = list(frames)
  if factor != 1:
    passed = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in passed]
  for _ in range(passes):
    passed = list(_h264(np.stack(passed), crf, seed))
  if factor != 1:
    passed = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in passed]
  return np.stack(passed)


# Sound --------------------------------------------------------------------------------------------------


def _codec(
  waveform: np.ndarray, bit_rate: int, seed: int | Sequence[int], voice_level: float, *, codec: str
) -> np.ndarray:
  del seed, voice_level
  return augment_audio.codec_round_trip(waveform, codec=codec, bit_rate=bit_rate)


def _telephone(
  waveform: np.ndarray, value: tuple[int, int, str], seed: int | Sequence[int], voice_level: float
) -> np.ndarray:
  """A band, and the codecs of its line one after the other."""
  del seed, voice_level
  low, high, line = value
  heard = augment_audio.band_limit(waveform, highpass_hz=low, lowpass_hz=high)
  for codec in line.split(", then ") if line != "no codec" else ():
    heard = augment_audio.codec_round_trip(np.clip(heard, -1, 1), codec=codec)
  return heard


def _sound_noise(
  waveform: np.ndarray, snr_db: float, seed: int | Sequence[int], voice_level: float
) -> np.ndarray:
  noise = augment_audio.draw_noise(len(waveform), _rng(seed, 0))
  return waveform + noise * np.float32(voice_level * 10 ** (-snr_db / 20))


def _rng(seed: int | Sequence[int], number: int) -> np.random.Generator:
  return np.random.default_rng([*np.atleast_1d(seed).tolist(), number])


_TITLES = {"jpeg": "JPEG", "h264": "H.264", "mp3": "MP3"}
PERTURBATIONS = {
  kind.name: kind
  for kind in (
    Perturbation(
      "saturation", FRAMES, "less colour", "chroma times {}", (0.4, 0.3, 0.2, 0.1, 0.0), _each(_saturation)
    ),
    Perturbation(
      "contrast",
      FRAMES,
      "less contrast, darker",
      "values times {}",
      (0.85, 0.725, 0.6, 0.475, 0.35),
      _each(_contrast),
    ),
    Perturbation("block", FRAMES, "grey squares of 8 px", "{} for each 256 px", (16, 32, 48, 64, 80), _block),
    Perturbation("noise", FRAMES, "camera noise", "variance {}", (0.001, 0.002, 0.005, 0.01, 0.05), _noise),
    Perturbation("blur", FRAMES, "out of focus", "kernel of {} px", (7, 9, 13, 17, 21), _each(_blur)),
    Perturbation(
      "pixelation",
      FRAMES,
      "smaller and back, coarsely",
      "1/{} of the side",
      (2, 3, 4, 5, 6),
      _each(_pixelation),
    ),
    Perturbation(
      "resize", FRAMES, "smaller and back, smoothly", "1/{} of the side", (1.5, 2, 3, 4, 6), _each(_shrink)
    ),
    Perturbation("jpeg", FRAMES, "compressed as a picture", "quality {}", (90, 75, 60, 40, 20), _each(_jpeg)),
    Perturbation("h264", FRAMES, "compressed as a film", "CRF {}", (23, 30, 35, 38, 40), _h264),
    Perturbation(
      "platform",
      FRAMES,
      "smaller and H.264, as when shared",
      "1/{} of the side, CRF {}, encodings: {}",
      ((1, 23, 1), (1.5, 26, 1), (1.5, 28, 2), (2, 28, 2), (2, 30, 3)),
      _platform,
    ),
    Perturbation(
      "mp3",
      SOUND,
      "compressed sound",
      "{} bits a second",
      (64000, 48000, 32000, 24000, 16000),
      functools.partial(_codec, codec="mp3"),
    ),
    Perturbation(
      "opus",
      SOUND,
      "compressed sound, as in calls",
      "{} bits a second",
      (32000, 24000, 16000, 12000, 8000),
      functools.partial(_codec, codec="opus"),
    ),
    Perturbation(
      "telephone",
      SOUND,
      "a telephone's band and codecs",
      "{} to {} Hz, {}",
      (
        (50, 7000, "no codec"),
        (100, 5000, "no codec"),
        (300, 3400, "no codec"),
        (300, 3400, "alaw"),
        (300, 3400, "alaw, then mulaw"),
      ),
      _telephone,
    ),
    Perturbation(
      "sound_noise",
      SOUND,
      "a louder room or line",
      "{} dB below the voice",
      (40, 30, 20, 10, 5),
      _sound_noise,
    ),
  )
}
