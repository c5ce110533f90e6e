"""The schema of an example, and the one way from a Clip to examples.

An example is one window of a file: of one person's track with the sound of that time, of single sightings, or
of sound alone. As it is cut and stored:

| key             | shape                      | dtype   | what                                          |
|-----------------|----------------------------|---------|-----------------------------------------------|
| faces           | [frame, 256, 256, 3]       | uint8   | stored crops, RGB; 0 where hidden             |
| face_mask       | [frame]                    | bool    | whether the crop is there                     |
| landmarks       | [frame, 468, 2]            | float32 | mesh points x, y in pixels of the stored crop |
| frame_times_s   | [frame]                    | float32 | from the file's timestamps; 0 where hidden    |
| face_sizes_px   | [frame]                    | float32 | of the faces in the file; 0 where hidden      |
| mouths          | [mouth_frame, 96, 96, 3]   | uint8   | at 25 a second from start_s on; 0 where hidden |
| mouth_mask      | [mouth_frame]              | bool    | whether the mouth is there                    |
| sound           | [sample]                   | int16   | mono, 16 kHz, from start_s on, what there is  |
| start_s         | []                         | float32 | where in the file the window begins           |
| file_facts      | [fact]                     | float32 | provenance.fact_vector; 0 where unknown       |
| file_facts_mask | [fact]                     | bool    | which facts are known                         |
| face_label      | []                         | int32   | of the faces: REAL 0, FAKE 1, UNKNOWN -1      |
| sound_label     | []                         | int32   | of the sound, likewise                        |

frame, mouth_frame and sample are 0 where the window holds none. What the network reads, `model_inputs`, has
the fixed shapes of a WindowConfig (`input_shapes`): what is missing is zeros, and False in the mask.

Dataset builders and the detector both come through here, so that training and serving cannot drift apart.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable

import numpy as np

from deepscan_jax import faces, provenance
from deepscan_jax.config import MOUTHS_PER_S, WindowConfig
from deepscan_jax.media import SAMPLE_RATE_HZ, Clip, SamplingPlan
from deepscan_jax.speech import (
  LEAST_BAND_HZ,
  LEAST_LEVEL,
  LEAST_SCORE,
  LEAST_SOUND_S,
  MOST_CLIPPED,
  measure_speech,
  speech_problems,
)

MOUTH_SIZE = faces.MOUTH_SIZE
REAL, FAKE, UNKNOWN = 0, 1, -1
# A window of frames is looked at in place of so many single frames.
_FRAMES_PER_WINDOW = 8
# Frames of slow films are shown until the next one comes: so far from its time a mouth still counts.
_MOUTH_TOLERANCE_S = 0.045
_INT16 = 32767.0
# What the network reads through which mask.
MASKED = {
  "crop_mask": ("crops", "landmarks", "frame_times_s"),
  "mouth_mask": ("mouth_crops",),
  "waveform_mask": ("waveform",),
  "file_facts_mask": ("file_facts",),
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """One person of a clip, one entry per sighting in order of time.

  Attributes:
    frame_times_s: [sighting] float64.
    boxes: [sighting, 4] float32, x_min, y_min, x_max, y_max in pixels of the frame.
    crops: [sighting, 256, 256, 3] uint8.
    landmarks: [sighting, 468, 2] float32 in pixels of the crop.
    transforms: [sighting, 2, 3] float64, the matrices that take pixels of the frame to those of the crop.
    quality: one FaceQuality per sighting.
    reasons: per sighting the codes of what speaks against judging it; empty where nothing does.
  """

  frame_times_s: np.ndarray
  boxes: np.ndarray
  crops: np.ndarray
  landmarks: np.ndarray
  transforms: np.ndarray
  quality: tuple[faces.FaceQuality, ...]
  reasons: tuple[tuple[str, ...], ...]

  @property
  def usable(self) -> np.ndarray:
    """[sighting] bool: which ones pass the quality gate."""
    return np.array([not reasons for reasons in self.reasons], bool)


def sampling_plan(
  window: WindowConfig, *, frames: int, spans_s: tuple[tuple[float, float], ...] = ()
) -> SamplingPlan:
  """Which frames of a video to decode for windows of this kind.

  Args:
    window: of the examples.
    frames: how many single frames to look at; where a window holds several, one window for eight of them.
    spans_s: (start, end) to look into; none: the whole file.
  """
  if not window.frames:
    return SamplingPlan(frame_count=1)
  if not window.is_sequence:
    return SamplingPlan(frame_count=frames, spans_s=spans_s)
  rate_hz = float(MOUTHS_PER_S) if window.mouth_frames else window.frame_rate_hz
  run = math.ceil(window.seen_s * rate_hz - 1e-6)
  windows = windows_to_look_at(window, frames=frames)
  return SamplingPlan(frame_count=windows * run, window_frames=run, rate_hz=rate_hz, spans_s=spans_s)


def windows_to_look_at(window: WindowConfig, *, frames: int) -> int:
  """How many windows of one person are cut where so many single frames would be looked at."""
  return max(1, frames // _FRAMES_PER_WINDOW) if window.is_sequence else frames


def find_subjects(clip: Clip) -> list[Subject]:
  """The people of a clip, whoever is seen most first.

  Args:
    clip: a video or an image; frames uint8 [time, height, width, 3].

  Returns:
    One Subject per track; empty where no face is found.
  """
  return _subjects(clip, faces.find_faces(clip.frames))


def find_subjects_in_pictures(clips: list[Clip]) -> list[list[Subject]]:
  """As `find_subjects` for many pictures at once, which may differ in size: a list of people for each."""
  found = faces.find_faces([clip.frames[0] for clip in clips]) if clips else []
  return [_subjects(clip, [seen]) for clip, seen in zip(clips, found, strict=True)]


def face_windows(subject: Subject, clip: Clip, *, window: WindowConfig) -> list[dict]:
  """Cuts the usable sightings of a person into examples.

  A window that holds one frame and no mouths is one sighting. Others begin at the first usable sighting that
  no earlier window covers and last window.seen_s; each place in them is taken by the sighting nearest to its
  moment, and hidden where there is none.

  Args:
    subject: one person.
    clip: the file, for its sound and facts.
    window: what an example holds. Sound is cut only where a window is more than single frames; sound beside
      single frames is judged by itself (`sound_windows`).

  Returns:
    Examples in order of time, as the module's docstring says, labels UNKNOWN.
  """
  usable = np.flatnonzero(subject.usable)
  if not window.is_sequence:
    return [_face_window(subject, usable[i : i + 1], None, clip, window) for i in range(len(usable))]
  times = subject.frame_times_s[usable]
  cut, begin = [], 0
  while begin < len(usable):
    end = int(np.searchsorted(times, times[begin] + window.seen_s - 1e-6))
    cut.append(_face_window(subject, usable[begin:end], float(times[begin]), clip, window))
    begin = max(end, begin + 1)
  return cut


def sound_windows(
  clip: Clip,
  *,
  window: WindowConfig,
  most: int,
  spans_s: tuple[tuple[float, float], ...] = (),
  least_s: float = LEAST_SOUND_S,
) -> list[dict]:
  """Cuts a clip's sound into examples without faces.

  Windows lie end to end, or where there would be more than `most`, evenly spread. Those that are
  no speech that can be judged are left out (speech.speech_problems).

  Args:
    clip: the file.
    window: its `samples` are the length of an example; 0 gives none.
    most: at most so many.
    spans_s: (start, end) of what is wanted; each is then in the middle of its window as far as the file
      allows. None: the whole file.
    least_s: of shorter sound there are none.

  Returns:
    Examples in order of time, as the module's docstring says, labels UNKNOWN.
  """
  if not window.samples or len(clip.waveform) < least_s * SAMPLE_RATE_HZ:
    return []
  facts = _file_facts(clip)
  cut = [
    {**_empty_faces(0, 0), **_sound(clip, start / SAMPLE_RATE_HZ, window.samples), **facts, **_unlabelled()}
    for start in _sound_starts(len(clip.waveform), window.samples, most, spans_s)
  ]
  return [example for example in cut if len(example["sound"])]


def sound_problem(
  clip: Clip,
  *,
  window: WindowConfig,
  most: int,
  spans_s: tuple[tuple[float, float], ...] = (),
  least_s: float = LEAST_SOUND_S,
) -> str | None:
  """Why `sound_windows` finds nothing to judge.

  Args:
    clip, window, most, spans_s, least_s: as for `sound_windows`.

  Returns:
    "no_sound", "sound_too_short", or what most of the windows suffer from (speech.speech_problems); None if
    one can be judged.
  """
  total = len(clip.waveform)
  if not total:
    return "no_sound"
  if total < least_s * SAMPLE_RATE_HZ:
    return "sound_too_short"
  if not window.samples:
    return None
  starts = _sound_starts(total, window.samples, most, spans_s)
  found = [_problems(clip.waveform[start : start + window.samples], window.samples) for start in starts]
  if not all(found):
    return None
  codes = [codes[0] for codes in found]
  return max(codes, key=codes.count)


def sound_numbers(
  clip: Clip,
  code: str,
  *,
  window: WindowConfig,
  most: int,
  spans_s: tuple[tuple[float, float], ...] = (),
  least_s: float = LEAST_SOUND_S,
) -> dict[str, float]:
  """What `sound_problem` measured, of the best of the windows, beside what is needed.

  Args:
    clip, window, most, spans_s, least_s: as for `sound_problem`.
    code: what that returned.
  """
  total = len(clip.waveform)
  if code == "sound_too_short":
    return {"found_s": round(total / SAMPLE_RATE_HZ, 3), "needed_s": least_s}
  starts = _sound_starts(total, window.samples, most, spans_s) if code != "no_sound" else ()
  heard = [clip.waveform[start : start + window.samples] for start in starts]
  if code == "silent":
    found = max(float(np.std(x, dtype=np.float64)) for x in heard)
    return {"found_level": round(found, 7), "needed_level": LEAST_LEVEL}
  measured = [measure_speech(x) for x in heard if code in _problems(x, window.samples)]
  if code == "no_speech" and measured:
    return {
      "found_speech_score": round(max(m.score for m in measured), 3),
      "needed_speech_score": LEAST_SCORE,
    }
  if code == "clipped" and measured:
    found = min(m.clipped for m in measured)
    return {"found_clipped_share": round(found, 4), "most_clipped_share": MOST_CLIPPED}
  if code == "narrow_band" and measured:
    return {"found_band_hz": max(m.band_hz for m in measured), "needed_band_hz": LEAST_BAND_HZ}
  return {}


def model_inputs(
  example: dict, *, window: WindowConfig, keys: Iterable[str] = ("crops", "crop_mask")
) -> dict[str, np.ndarray]:
  """What the network reads of an example in evaluation.

  Args:
    example: as the module's docstring says; it may hold more or less than the window.
    window: the fixed shapes.
    keys: what the network reads, of `input_shapes`.

  Returns:
    By key an array of the shape and dtype of `input_shapes`.
  """
  keys = tuple(keys)
  fitted = fit(example, window=window, keys=keys)
  made = {}
  for key in keys:
    if key == "crops":
      made[key] = faces.eval_crop(fitted["faces"])
    elif key == "landmarks":
      made[key] = np.where(fitted["face_mask"][:, None, None], faces.eval_points(fitted["landmarks"]), 0)
    else:
      made[key] = fitted["face_mask"] if key == "crop_mask" else fitted[key]
  return made


def fit(example: dict, *, window: WindowConfig, keys: Iterable[str]) -> dict[str, np.ndarray]:
  """An example brought to the fixed shapes of a window, with faces as they are stored.

  Where it holds more frames than the window, the middle ones are taken; where less, places are hidden.

  Args:
    example: as the module's docstring says.
    window: the shapes.
    keys: of `input_shapes`, what is wanted of it.

  Returns:
    With "crops" or "crop_mask" among the keys faces, face_mask, landmarks and frame_times_s; with
    "mouth_crops" mouth_crops and mouth_mask; with "waveform" waveform and waveform_mask; with "file_facts"
    file_facts and file_facts_mask.
  """
  wanted, fitted = set(keys), {}
  if wanted & {"crops", "crop_mask", "landmarks", "frame_times_s"}:
    first = max(len(example["face_mask"]) - window.frames, 0) // 2
    for key in ("faces", "face_mask", "landmarks", "frame_times_s"):
      fitted[key] = padded(np.asarray(example[key])[first : first + window.frames], window.frames)
    if not len(example["face_mask"]):
      fitted["faces"] = _empty_faces(window.frames, 0)["faces"]
  if wanted & {"mouth_crops", "mouth_mask"}:
    for ours, theirs in (("mouth_crops", "mouths"), ("mouth_mask", "mouth_mask")):
      fitted[ours] = padded(np.asarray(example[theirs])[: window.mouth_frames], window.mouth_frames)
    if not len(example["mouth_mask"]):
      fitted["mouth_crops"] = _empty_faces(0, window.mouth_frames)["mouths"]
  if wanted & {"waveform", "waveform_mask"}:
    sound = np.asarray(example["sound"])[: window.samples]
    fitted["waveform"] = padded(sound.astype(np.float32) / np.float32(_INT16), window.samples)
    fitted["waveform_mask"] = np.arange(window.samples) < len(sound)
  if wanted & {"file_facts", "file_facts_mask"}:
    fitted |= {key: np.asarray(example[key]) for key in ("file_facts", "file_facts_mask")}
  return fitted


def labels(example: dict, *, keys: Iterable[str]) -> dict[str, np.int32]:
  """The labels of what a network that reads these keys gets to see of an example.

  Returns:
    face_label and sound_label as they are, UNKNOWN where there are no faces or no sound; label: FAKE where
    anything that is read is forged, else UNKNOWN where anything is, else REAL.
  """
  keys = set(keys)
  face = int(example["face_label"]) if np.any(example["face_mask"]) or np.any(example["mouth_mask"]) else None
  sound = int(example["sound_label"]) if len(example["sound"]) else None
  read = [
    value
    for value, reads in ((face, keys & {"crops", "mouth_crops"}), (sound, keys & {"waveform"}))
    if value is not None and reads
  ]
  label = label_of(read)
  face, sound = (UNKNOWN if value is None else value for value in (face, sound))
  return {"label": np.int32(label), "face_label": np.int32(face), "sound_label": np.int32(sound)}


def label_of(parts: Collection[int]) -> int:
  """The label of what is read in several parts: FAKE where one is, else UNKNOWN where one, or all, are."""
  return next((label for label in (FAKE, UNKNOWN, REAL) if label in parts), UNKNOWN)


def input_shapes(window: WindowConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and dtype, by key, of everything that a branch may read of one example.

  Args:
    window: its sizes.

  Returns:
    crops [frame, 224, 224, 3], the central part of the stored crops; crop_mask; landmarks in pixels of the
    crops; frame_times_s; mouth_crops, mouth_mask; waveform in -1..1, waveform_mask; file_facts,
    file_facts_mask.
  """
  side, frames = faces.EVAL_SIZE, window.frames
  shapes = {
    "crops": ((frames, side, side, 3), np.uint8),
    "crop_mask": ((frames,), np.bool_),
    "landmarks": ((frames, faces.N_LANDMARKS, 2), np.float32),
    "frame_times_s": ((frames,), np.float32),
    "mouth_crops": ((window.mouth_frames, MOUTH_SIZE, MOUTH_SIZE, 3), np.uint8),
    "mouth_mask": ((window.mouth_frames,), np.bool_),
    "waveform": ((window.samples,), np.float32),
    "waveform_mask": ((window.samples,), np.bool_),
    "file_facts": ((len(provenance.FACT_NAMES),), np.float32),
    "file_facts_mask": ((len(provenance.FACT_NAMES),), np.bool_),
  }
  return {key: (shape, np.dtype(dtype)) for key, (shape, dtype) in shapes.items()}


def stack(examples: list[dict[str, np.ndarray]], *, size: int | None = None) -> dict[str, np.ndarray]:
  """Stacks examples into a batch.

  Args:
    examples: at least one, all with the same keys and shapes.
    size: pad with empty examples (zeros, masks False) up to this many.

  Returns:
    Arrays with a batch axis in front.
  """
  size = size or len(examples)
  if not 0 < len(examples) <= size:
    raise ValueError(f"Cannot stack {len(examples)} examples into a batch of {size}.")
  batch = {
    key: np.zeros((size, *np.shape(value)), np.asarray(value).dtype) for key, value in examples[0].items()
  }
  for i, example in enumerate(examples):
    for key, value in example.items():
      batch[key][i] = value
  return batch


def _subjects(clip: Clip, found: list[list[faces.Face]]) -> list[Subject]:
  subjects = [
    _subject(clip, track)
    for track in faces.group_tracks(found, clip.frame_times_s, shots=faces.find_shots(clip.frames))
  ]
  return sorted(
    subjects, key=lambda s: (-len(s.frame_times_s), float(s.frame_times_s[0]), float(s.boxes[0, 0]))
  )


def _subject(clip: Clip, track: faces.Track) -> Subject:
  crops, landmarks, quality, reasons = [], [], [], []
  for index, face in zip(track.frame_indices, track.faces, strict=True):
    crop, points = faces.crop_face(clip.frames[index], face.landmarks)
    measured = faces.measure_quality(crop, face.landmarks)
    crops.append(crop)
    landmarks.append(points)
    quality.append(measured)
    reasons.append(faces.quality_problems(measured))
  return Subject(
    frame_times_s=np.asarray(clip.frame_times_s, np.float64)[np.asarray(track.frame_indices)],
    boxes=np.stack([face.box for face in track.faces]).astype(np.float32),
    crops=np.stack(crops),
    landmarks=np.stack(landmarks).astype(np.float32),
    transforms=np.stack([faces.face_transform(face.landmarks) for face in track.faces]),
    quality=tuple(quality),
    reasons=tuple(tuple(r) for r in reasons),
  )


def _face_window(
  subject: Subject, members: np.ndarray, start_s: float | None, clip: Clip, window: WindowConfig
) -> dict:
  """One example of the sightings `members`, which lie in its time; start_s None: of one sighting alone."""
  example = _empty_faces(window.frames, window.mouth_frames)
  times = subject.frame_times_s[members]
  if start_s is None:
    places, taken = np.zeros(1, int), np.zeros(1, int)
    heard = {"sound": np.zeros(0, np.int16), "start_s": np.float32(times[0])}
  else:
    places, taken = _nearest(times, start_s, window.frames, window.frame_rate_hz, 0.5 / window.frame_rate_hz)
    # Of a film slower than that, no frame is shown twice.
    taken, first = np.unique(taken, return_index=True)
    places = places[first]
    heard = _sound(clip, start_s, window.samples)
    spots, seen = _nearest(times, start_s, window.mouth_frames, MOUTHS_PER_S, _MOUTH_TOLERANCE_S)
    example["mouth_mask"][spots] = True
    for spot, sighting in zip(spots, members[seen], strict=True):
      example["mouths"][spot] = faces.mouth_crop(subject.crops[sighting], subject.landmarks[sighting])
  example["face_mask"][places] = True
  example["faces"][places] = subject.crops[members[taken]]
  example["landmarks"][places] = subject.landmarks[members[taken]]
  example["frame_times_s"][places] = times[taken]
  example["face_sizes_px"][places] = [subject.quality[index].size_px for index in members[taken]]
  return {**example, **heard, **_file_facts(clip), **_unlabelled()}


def _nearest(
  times_s: np.ndarray, start_s: float, count: int, rate_hz: float, tolerance_s: float
) -> tuple[np.ndarray, np.ndarray]:
  """Which of `count` moments at a rate have a time within the tolerance, and the index of the nearest."""
  moments = start_s + np.arange(count) / rate_hz
  distance = np.abs(times_s[None] - moments[:, None])
  places = np.flatnonzero(distance.min(axis=1, initial=np.inf) <= tolerance_s + 1e-6)
  return places, distance[places].argmin(axis=1) if len(places) else places


def _empty_faces(frames: int, mouth_frames: int) -> dict[str, np.ndarray]:
  side = faces.STORED_SIZE
  return {
    "faces": np.zeros((frames, side, side, 3), np.uint8),
    "face_mask": np.zeros((frames,), bool),
    "landmarks": np.zeros((frames, faces.N_LANDMARKS, 2), np.float32),
    "frame_times_s": np.zeros((frames,), np.float32),
    "face_sizes_px": np.zeros((frames,), np.float32),
    "mouths": np.zeros((mouth_frames, MOUTH_SIZE, MOUTH_SIZE, 3), np.uint8),
    "mouth_mask": np.zeros((mouth_frames,), bool),
  }


def _sound_starts(total: int, samples: int, most: int, spans_s: tuple[tuple[float, float], ...]) -> list[int]:
  """First samples of the windows of `sound_windows` in a sound of `total` samples."""
  last = max(total - samples, 0)
  if spans_s:
    middles = [SAMPLE_RATE_HZ * (start + end) / 2 for start, end in spans_s]
    return sorted({round(float(np.clip(m - samples / 2, 0, last))) for m in middles})[:most]
  return np.linspace(0, last, min(most, -(-total // samples))).round().astype(int).tolist()


def _sound(clip: Clip, start_s: float, samples: int) -> dict[str, np.ndarray]:
  """Up to so many samples from start_s on; none where they cannot be judged (speech.speech_problems)."""
  start = round(start_s * SAMPLE_RATE_HZ)
  heard = clip.waveform[start : start + samples]
  if _problems(heard, samples):
    heard = heard[:0]
  return {"sound": np.round(heard * _INT16).astype(np.int16), "start_s": np.float32(start_s)}


def _problems(heard: np.ndarray, samples: int) -> tuple[str, ...]:
  """As `speech_problems`; what windows of so many samples can hold at most is long enough."""
  return speech_problems(heard, least_s=min(LEAST_SOUND_S, samples / SAMPLE_RATE_HZ))


def _file_facts(clip: Clip) -> dict[str, np.ndarray]:
  facts, known = provenance.fact_vector(clip.facts)
  return {"file_facts": facts, "file_facts_mask": known}


def _unlabelled() -> dict[str, np.int32]:
  return {"face_label": np.int32(UNKNOWN), "sound_label": np.int32(UNKNOWN)}


def padded(values: np.ndarray, size: int) -> np.ndarray:
  """Values [count, ...] with zeros behind them up to [size, ...]."""
  return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])
