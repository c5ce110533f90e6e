import dataclasses

import face_media
import numpy as np
import pytest
import voices

from deepscan_jax import data, examples, faces, media, provenance
from deepscan_jax.config import WindowConfig

SINGLE = WindowConfig(mouth_frames=0)


def subject(*, usable: list[bool], rate_hz: float = 1.0, jump_s: float = 0.0) -> examples.Subject:
  """A person of noise, seen at a rate; before the last sighting jump_s pass."""
  rng = np.random.default_rng(0)
  count = len(usable)
  quality = faces.FaceQuality(
    size_px=100.0, sharpness=0.1, yaw=0.0, pitch=0.0, roll=0.0, brightness=120.0, clipped=0.0
  )
  return examples.Subject(
    frame_times_s=np.arange(count) / rate_hz + jump_s * (np.arange(count) == count - 1),
    boxes=np.zeros((count, 4), np.float32),
    crops=rng.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8),
    landmarks=rng.uniform(0, 256, (count, 468, 2)).astype(np.float32),
    transforms=np.tile(np.eye(2, 3), (count, 1, 1)),
    quality=(quality,) * count,
    reasons=tuple(() if good else ("face_too_small",) for good in usable),
  )


def clip_of(*, sound_s: float = 0.0, **kwargs) -> media.Clip:
  """A clip of a voice; its frames do not matter here."""
  waveform = voices.speech(seconds=sound_s, seed=1) if sound_s else np.zeros(0, np.float32)
  facts = {"codec": "h264", "container": "mp4"}
  return media.Clip("video", np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0), waveform, 16_000, facts, ())


def test_single_frames_are_the_usable_sightings_in_order():
  person = subject(usable=[True, False, True])
  first, second = examples.face_windows(person, clip_of(sound_s=5), window=SINGLE)
  np.testing.assert_array_equal(first["faces"], person.crops[[0]])
  np.testing.assert_array_equal(second["faces"], person.crops[[2]])
  np.testing.assert_array_equal(second["frame_times_s"], [2])
  assert second["start_s"] == 2 and second["face_label"] == second["sound_label"] == examples.UNKNOWN
  types = {key: (value.dtype.name, value.shape) for key, value in second.items()}
  facts = len(provenance.FACT_NAMES)
  assert types == {
    "faces": ("uint8", (1, 256, 256, 3)),
    "face_mask": ("bool", (1,)),
    "landmarks": ("float32", (1, 468, 2)),
    "frame_times_s": ("float32", (1,)),
    "face_sizes_px": ("float32", (1,)),
    "mouths": ("uint8", (0, 96, 96, 3)),
    "mouth_mask": ("bool", (0,)),
    "sound": ("int16", (0,)),
    "start_s": ("float32", ()),
    "file_facts": ("float32", (facts,)),
    "file_facts_mask": ("bool", (facts,)),
    "face_label": ("int32", ()),
    "sound_label": ("int32", ()),
  }
  assert second["file_facts_mask"].any()
  assert examples.face_windows(subject(usable=[False, False]), clip_of(), window=SINGLE) == []


def test_a_window_places_each_sighting_at_its_moment():
  window = WindowConfig(frames=4, frame_rate_hz=10.0, mouth_frames=10, samples=8000)
  person = subject(usable=[True] * 3 + [False] + [True] * 6 + [True], rate_hz=25.0, jump_s=3.0)
  clip = clip_of(sound_s=3.45)
  first, second = examples.face_windows(person, clip, window=window)
  # Moments 0, 0.1, 0.2 and 0.3 s; frames lie at multiples of 0.04, and that at 0.12 s cannot be used.
  np.testing.assert_array_equal(first["face_mask"], [True] * 4)
  np.testing.assert_allclose(first["frame_times_s"], [0, 0.08, 0.2, 0.28], atol=1e-6)
  np.testing.assert_array_equal(first["faces"], person.crops[[0, 2, 5, 7]])
  assert first["mouth_mask"].all()  # the hole is filled by a neighbour
  mouth = faces.mouth_crop(person.crops[2], person.landmarks[2])
  np.testing.assert_array_equal(first["mouths"][2], mouth)
  np.testing.assert_array_equal(first["sound"], np.round(clip.waveform[:8000] * 32767).astype(np.int16))
  assert second["start_s"] == pytest.approx(3.4)
  np.testing.assert_array_equal(second["face_mask"], [True, False, False, False])
  assert len(second["sound"]) == 0  # a few samples are too few to be judged
  np.testing.assert_array_equal(second["mouth_mask"].sum(), 2)


def test_a_slow_film_shows_no_frame_twice():
  window = WindowConfig(frames=6, frame_rate_hz=12.0, mouth_frames=0, samples=0)
  (example,) = examples.face_windows(subject(usable=[True] * 3, rate_hz=6.0), clip_of(), window=window)
  np.testing.assert_array_equal(example["face_mask"], [True, False, True, False, True, False])


def test_sound_is_cut_end_to_end_or_spread_over_what_is_too_long():
  window = WindowConfig(samples=16_000)
  clip = clip_of(sound_s=3.5)
  starts = [float(e["start_s"]) for e in examples.sound_windows(clip, window=window, most=8)]
  np.testing.assert_allclose(starts, [0, 2.5 / 3, 5 / 3, 2.5], atol=1e-4)
  few = examples.sound_windows(clip, window=window, most=2)
  assert [float(e["start_s"]) for e in few] == [0, 2.5] and all(len(e["sound"]) == 16_000 for e in few)
  (aimed,) = examples.sound_windows(clip, window=window, most=8, spans_s=((1.2, 1.4),))
  assert aimed["start_s"] == pytest.approx(0.8)
  (short,) = examples.sound_windows(clip_of(sound_s=1.5), window=WindowConfig(), most=8)
  assert len(short["sound"]) == 24_000 and not len(short["face_mask"])
  inputs = examples.model_inputs(short, window=WindowConfig(), keys=("waveform", "waveform_mask"))
  assert inputs["waveform_mask"].sum() == 24_000 and inputs["waveform"].shape == (64_000,)
  np.testing.assert_allclose(inputs["waveform"][:24_000], clip_of(sound_s=1.5).waveform, atol=2e-5)
  for problem, clip in (("no_sound", clip_of()), ("sound_too_short", clip_of(sound_s=0.9))):
    assert examples.sound_problem(clip, window=window, most=8) == problem
    assert examples.sound_windows(clip, window=window, most=8) == []


def test_windows_without_speech_are_left_out():
  window, clip = WindowConfig(samples=32_000), clip_of(sound_s=2)
  rng = np.random.default_rng(0)
  hiss = rng.uniform(-0.5, 0.5, 32_000).astype(np.float32)
  silence = np.zeros(32_000, np.float32)

  def of(*parts: np.ndarray) -> media.Clip:
    return dataclasses.replace(clip, waveform=np.concatenate(parts))

  mixed = of(hiss, clip.waveform, silence, hiss)
  (only,) = examples.sound_windows(mixed, window=window, most=8)
  assert only["start_s"] == 2 and examples.sound_problem(mixed, window=window, most=8) is None
  for problem, heard in (("silent", of(silence)), ("no_speech", of(hiss, silence, hiss))):
    assert examples.sound_windows(heard, window=window, most=8) == []
    assert examples.sound_problem(heard, window=window, most=8) == problem
  # A voice elsewhere in the file does not help where something else is asked for.
  aimed = {"window": window, "most": 8, "spans_s": ((0.5, 1.5),)}
  assert examples.sound_windows(mixed, **aimed) == []
  assert examples.sound_problem(mixed, **aimed) == "no_speech"


def test_sound_beside_faces_is_hidden_where_it_is_no_speech():
  window = WindowConfig(frames=4, frame_rate_hz=2.0, mouth_frames=0, samples=32_000)
  person, clip = subject(usable=[True] * 4, rate_hz=2.0), clip_of(sound_s=2)
  (spoken,) = examples.face_windows(person, clip, window=window)
  hiss = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
  (hissed,) = examples.face_windows(person, dataclasses.replace(clip, waveform=hiss), window=window)
  assert len(spoken["sound"]) == 32_000 and len(hissed["sound"]) == 0
  assert hissed["face_mask"].all()


def test_the_network_sees_the_middle_of_the_stored_crop():
  (example,) = examples.face_windows(subject(usable=[True]), clip_of(), window=SINGLE)
  inputs = examples.model_inputs(example, window=SINGLE)
  np.testing.assert_array_equal(inputs["crops"], example["faces"][:, 16:240, 16:240])
  np.testing.assert_array_equal(inputs["crop_mask"], [True])
  (landmarks,) = examples.model_inputs(example, window=SINGLE, keys=("landmarks",)).values()
  np.testing.assert_allclose(landmarks, example["landmarks"] - 16)


def test_an_example_fits_any_window_and_every_input_has_its_shape():
  window = WindowConfig(frames=3, frame_rate_hz=25.0, mouth_frames=4, samples=20_000)
  (example,) = examples.face_windows(
    subject(usable=[True] * 3, rate_hz=25.0), clip_of(sound_s=2), window=window
  )
  for wanted in (window, WindowConfig(frames=5, mouth_frames=2, samples=32_000), WindowConfig(frames=1)):
    shapes = examples.input_shapes(wanted)
    inputs = examples.model_inputs(example, window=wanted, keys=shapes)
    assert {key: (x.shape, x.dtype) for key, x in inputs.items()} == shapes
    assert inputs["crop_mask"].sum() == min(3, wanted.frames)
  np.testing.assert_array_equal(inputs["crops"], example["faces"][1:2, 16:240, 16:240])  # the middle one
  (sound,) = examples.sound_windows(clip_of(sound_s=2), window=window, most=1)
  inputs = examples.model_inputs(sound, window=window, keys=shapes)
  assert not inputs["crop_mask"].any() and not inputs["mouth_mask"].any() and not inputs["crops"].any()
  assert inputs["waveform_mask"].all()


def test_a_label_is_that_of_what_is_read():
  (example,) = examples.face_windows(
    subject(usable=[True] * 2, rate_hz=25.0), clip_of(sound_s=2), window=WindowConfig(frames=2)
  )
  both, seen = ("crops", "waveform"), ("crops",)

  def label(face: int, sound: int, keys: tuple[str, ...]) -> int:
    facts = {**example, "face_label": face, "sound_label": sound}
    return int(examples.labels(facts, keys=keys)["label"])

  assert label(0, 1, seen) == 0 and label(0, 1, both) == 1 and label(1, -1, both) == 1
  assert label(0, -1, both) == -1 and label(0, -1, seen) == 0 and label(0, 0, both) == 0
  (sound,) = examples.sound_windows(clip_of(sound_s=2), window=WindowConfig(), most=1)
  found = examples.labels({**sound, "face_label": 1, "sound_label": 0}, keys=both)
  assert {key: int(value) for key, value in found.items()} == {
    "label": 0,
    "face_label": -1,
    "sound_label": 0,
  }


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
  cut = examples.face_windows(person, clip, window=SINGLE)
  assert len(cut) == len(stored) == face_media.CLIP_SAMPLES
  for ours, theirs in zip(cut, stored, strict=True):
    for key in ("faces", "face_mask", "landmarks", "frame_times_s", "file_facts", "file_facts_mask"):
      np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  by_id = {held_out[i]["id"]: held_out[i] for i in rows}
  for ours, theirs in zip(cut, stored, strict=True):
    for key, value in examples.model_inputs(ours, window=SINGLE).items():
      np.testing.assert_array_equal(value, by_id[theirs["id"]][key][0], err_msg=key)


def test_training_and_detection_see_the_same_of_a_picture(prepared_dataset, real_media):
  """The builder finds the faces of many pictures at once, detect of one: sums in another order, no more."""
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  stored = source[0]
  (path,) = real_media.parent.glob(stored["id"].split("#")[0])
  clip = media.decode_clip(path)
  (person,) = examples.find_subjects(clip)
  (cut,) = examples.face_windows(person, clip, window=SINGLE)
  np.testing.assert_allclose(cut["landmarks"], stored["landmarks"], atol=0.02)
  difference = np.abs(cut["faces"].astype(int) - stored["faces"])
  assert difference.mean() < 0.02 and difference.max() <= 3
