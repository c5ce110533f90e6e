import face_media
import numpy as np
import pytest

from deepscan_jax import data, examples, faces, media


def subject(*, usable: list[bool]) -> examples.Subject:
  """A person of noise, seen once a second."""
  rng = np.random.default_rng(0)
  count = len(usable)
  quality = faces.FaceQuality(
    size_px=100.0, sharpness=0.1, yaw=0.0, pitch=0.0, roll=0.0, brightness=120.0, clipped=0.0
  )
  return examples.Subject(
    frame_times_s=np.arange(count, dtype=np.float64),
    boxes=np.zeros((count, 4), np.float32),
    crops=rng.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8),
    landmarks=rng.random((count, 468, 2), np.float32),
    quality=(quality,) * count,
    reasons=tuple(() if good else ("face_too_small",) for good in usable),
  )


def test_windows_hold_the_usable_sightings_in_order():
  person = subject(usable=[True, False, True, True, True])
  first, second = examples.windows(person, frames_per_window=3, label=examples.FAKE)
  np.testing.assert_array_equal(first["faces"], person.crops[[0, 2, 3]])
  np.testing.assert_array_equal(first["frame_times_s"], [0, 2, 3])
  np.testing.assert_array_equal(second["face_mask"], [True, False, False])
  np.testing.assert_array_equal(second["landmarks"][0], person.landmarks[4])
  np.testing.assert_array_equal(second["faces"][1:], 0)
  assert first["label"] == second["label"] == 1
  types = {key: (value.dtype.name, value.shape) for key, value in second.items()}
  assert types == {
    "faces": ("uint8", (3, 256, 256, 3)),
    "face_mask": ("bool", (3,)),
    "landmarks": ("float32", (3, 468, 2)),
    "frame_times_s": ("float32", (3,)),
    "label": ("int32", ()),
  }
  assert examples.windows(subject(usable=[False, False])) == []


def test_the_network_sees_the_middle_of_the_stored_crop():
  (example,) = examples.windows(subject(usable=[True]))
  inputs = examples.model_inputs(example)
  np.testing.assert_array_equal(inputs["crops"], example["faces"][:, 16:240, 16:240])
  np.testing.assert_array_equal(inputs["crop_mask"], [True])


def test_stack_pads_with_zeros():
  batch = examples.stack([{"a": np.full(2, i, np.int32)} for i in (1, 2)], size=3)
  np.testing.assert_array_equal(batch["a"], [[1, 1], [2, 2], [0, 0]])
  assert batch["a"].dtype == np.int32
  for given, size in (([], None), ([{"a": 1}] * 3, 2)):
    with pytest.raises(ValueError, match="Cannot stack"):
      examples.stack(given, size=size)


def test_whoever_is_seen_most_comes_first():
  frames = np.stack([face_media.portrait(side=128, shift=(i, 0)) for i in range(3)])
  frames = np.concatenate([np.zeros_like(frames), frames], axis=2)
  frames[1:, :, :128] = face_media.portrait(side=128, mirrored=True)
  clip = media.Clip("video", frames, np.arange(3) / 5, np.zeros(0, np.float32), 16_000, {}, ())
  most, other = examples.find_subjects(clip)
  assert len(most.frame_times_s) == 3 and most.boxes[:, 0].min() > 128
  assert len(other.frame_times_s) == 2 and other.boxes[:, 2].max() < 128
  np.testing.assert_allclose(other.frame_times_s, [0.2, 0.4])


def test_training_and_detection_see_the_same_of_a_clip(prepared_dataset, real_media):
  """The builder decodes in its own process and stores what it cut; detect decodes in the child process."""
  source = data.ExampleSource(["real_only"], face_media.CLIP_SPLIT, prepared_dataset)
  rows = [i for i in range(len(source)) if ".mp4#" in source[i]["id"]]
  stored = sorted((source[i] for i in rows), key=lambda row: float(row["frame_times_s"][0]))
  held_out = data.HeldOutExamples(source)
  (path,) = real_media.rglob("*.mp4")
  clip = media.decode_clip(path, plan=media.SamplingPlan(frame_count=face_media.CLIP_SAMPLES))
  (person,) = examples.find_subjects(clip)
  cut = examples.windows(person)
  assert len(cut) == len(stored) == face_media.CLIP_SAMPLES
  for ours, theirs in zip(cut, stored, strict=True):
    for key in ("faces", "face_mask", "landmarks", "frame_times_s", "label"):
      np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  by_id = {held_out[i]["id"]: held_out[i] for i in rows}
  for ours, theirs in zip(cut, stored, strict=True):
    for key, value in examples.model_inputs(ours).items():
      np.testing.assert_array_equal(value, by_id[theirs["id"]][key][0], err_msg=key)


def test_training_and_detection_see_the_same_of_a_picture(prepared_dataset, real_media):
  """The builder finds the faces of many pictures at once, detect of one: sums in another order, no more."""
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  stored = source[0]
  (path,) = real_media.parent.glob(stored["id"].split("#")[0])
  (person,) = examples.find_subjects(media.decode_clip(path))
  (cut,) = examples.windows(person)
  np.testing.assert_allclose(cut["landmarks"], stored["landmarks"], atol=0.02)
  difference = np.abs(cut["faces"].astype(int) - stored["faces"])
  assert difference.mean() < 0.02 and difference.max() <= 3
