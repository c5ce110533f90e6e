"""The schema of an example, and the one way from a Clip to examples.

An example is one window of one person's track, with fixed shapes and a mask:

| key           | shape                | dtype   | what                                                  |
|---------------|----------------------|---------|-------------------------------------------------------|
| faces         | [frame, 256, 256, 3] | uint8   | stored crops, RGB (see faces/align.py); 0 where hidden |
| face_mask     | [frame]              | bool    | whether the crop is there                             |
| landmarks     | [frame, 468, 2]      | float32 | mesh points x, y in pixels of the stored crop         |
| frame_times_s | [frame]              | float32 | from the file's timestamps                            |
| label         | []                   | int32   | 0 real, 1 fake                                        |

and what the network reads, `model_inputs(example)`:

| key       | shape                | dtype | what                                 |
|-----------|----------------------|-------|--------------------------------------|
| crops     | [frame, 224, 224, 3] | uint8 | the central part of the stored crops |
| crop_mask | [frame]              | bool  | face_mask                            |

Dataset builders and the detector both come through here, so that training and serving cannot drift apart.
"""

import dataclasses

import numpy as np

from deepscan_jax import faces, provenance
from deepscan_jax.media import Clip

FRAMES_PER_WINDOW = 1
MOUTH_SIZE = 96
REAL, FAKE = 0, 1


@dataclasses.dataclass(frozen=True)
class Subject:
  """One person of a clip, one entry per sighting in order of time.

  Attributes:
    frame_times_s: [sighting] float64.
    boxes: [sighting, 4] float32, x_min, y_min, x_max, y_max in pixels of the frame.
    crops: [sighting, 256, 256, 3] uint8.
    landmarks: [sighting, 468, 2] float32 in pixels of the crop.
    quality: one FaceQuality per sighting.
    reasons: per sighting the codes of what speaks against judging it; empty where nothing does.
  """

  frame_times_s: np.ndarray
  boxes: np.ndarray
  crops: np.ndarray
  landmarks: np.ndarray
  quality: tuple[faces.FaceQuality, ...]
  reasons: tuple[tuple[str, ...], ...]

  @property
  def usable(self) -> np.ndarray:
    """[sighting] bool: which ones pass the quality gate."""
    return np.array([not reasons for reasons in self.reasons], bool)


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


def windows(subject: Subject, *, frames_per_window: int = FRAMES_PER_WINDOW, label: int = REAL) -> list[dict]:
  """Cuts the usable sightings of a person into examples; the last window is padded and masked.

  Args:
    subject: one person.
    frames_per_window: sightings in an example.
    label: REAL or FAKE, written into each example.

  Returns:
    Examples in order of time, as the module's docstring says.
  """
  usable = np.flatnonzero(subject.usable)
  starts = range(0, len(usable), frames_per_window)
  return [
    _window(subject, usable[start : start + frames_per_window], frames_per_window, label) for start in starts
  ]


def model_inputs(example: dict) -> dict[str, np.ndarray]:
  """What the network reads of an example in evaluation: {"crops", "crop_mask"}."""
  return {"crops": faces.eval_crop(example["faces"]), "crop_mask": np.asarray(example["face_mask"], bool)}


def input_shapes(
  *, frames: int = FRAMES_PER_WINDOW, mouth_frames: int = 50, samples: int = 64_000
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and dtype, by key, of everything that a branch may read of one example.

  Args:
    frames: crops of one person.
    mouth_frames: mouth crops at 25 a second; the first belongs to the first sample of the waveform.
    samples: of the waveform, mono at 16 kHz, -1..1.

  Returns:
    The keys above and landmarks (pixels of the crop that the network sees), frame_times_s, mouth_crops,
    mouth_mask, waveform, waveform_mask, file_facts and file_facts_mask (see provenance.fact_vector). What is
    missing is zeros, and False in the mask.
  """
  side = faces.EVAL_SIZE
  shapes = {
    "crops": ((frames, side, side, 3), np.uint8),
    "crop_mask": ((frames,), np.bool_),
    "landmarks": ((frames, 468, 2), np.float32),
    "frame_times_s": ((frames,), np.float32),
    "mouth_crops": ((mouth_frames, MOUTH_SIZE, MOUTH_SIZE, 3), np.uint8),
    "mouth_mask": ((mouth_frames,), np.bool_),
    "waveform": ((samples,), np.float32),
    "waveform_mask": ((samples,), np.bool_),
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
    quality=tuple(quality),
    reasons=tuple(tuple(r) for r in reasons),
  )


def _window(subject: Subject, indices: np.ndarray, frames: int, label: int) -> dict:
  count = len(indices)
  example = {
    "faces": np.zeros((frames, *subject.crops.shape[1:]), np.uint8),
    "face_mask": np.arange(frames) < count,
    "landmarks": np.zeros((frames, *subject.landmarks.shape[1:]), np.float32),
    "frame_times_s": np.zeros((frames,), np.float32),
    "label": np.int32(label),
  }
  example["faces"][:count] = subject.crops[indices]
  example["landmarks"][:count] = subject.landmarks[indices]
  example["frame_times_s"][:count] = subject.frame_times_s[indices]
  return example
