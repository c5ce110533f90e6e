"""Self-blended clips and moving stills: what stays along a clip, what drifts, and where landmarks go."""

import dataclasses

import cv2
import numpy as np
import pytest
from face_media import portrait
from rough_faces import IDENTITY, NO_COLOUR, rough_landmarks

from deepscan_jax.config import from_dict, to_dict
from deepscan_jax.pseudofakes import (
  MASK_KINDS,
  BlendConfig,
  BlendedClip,
  ClipBlendConfig,
  MotionConfig,
  moving_still,
  self_blend,
  self_blend_clip,
)

STEADY = ClipBlendConfig(amplitude=(0.0, 0.0))
LIVELY = ClipBlendConfig(amplitude=(1.0, 1.0))
SILENT = MotionConfig(noise_probability=0)


@pytest.fixture(scope="module")
def face():
  return portrait(side=256, zoom=1.3)


def repeated(face, frames=4):
  return np.stack([face] * frames), np.stack([rough_landmarks()] * frames)


def test_types_shapes_and_ranges(face):
  clip = self_blend_clip(*repeated(face), rng=np.random.default_rng(0), config=ClipBlendConfig())
  assert isinstance(clip, BlendedClip) and clip.kind in MASK_KINDS
  assert clip.real.dtype == clip.fake.dtype == np.uint8
  assert clip.real.shape == clip.fake.shape == (4, 256, 256, 3)
  assert clip.mask.dtype == np.float32 and clip.mask.shape == (4, 256, 256)
  assert clip.mask.min() == 0 and 0 < clip.mask.max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_a_clip_of_one_frame_is_a_picture(face, seed):
  pair = self_blend(face, rough_landmarks(), rng=np.random.default_rng(seed), config=BlendConfig())
  clip = self_blend_clip(*repeated(face, 1), rng=np.random.default_rng(seed), config=LIVELY)
  for name in ("real", "fake", "mask"):
    np.testing.assert_array_equal(getattr(clip, name)[0], getattr(pair, name))
  assert clip.kind == pair.kind


def test_a_seed_says_it_all_and_the_input_stays(face):
  crops, landmarks = repeated(face)
  kept = crops.copy(), landmarks.copy()
  first, second, other = (
    self_blend_clip(crops, landmarks, rng=np.random.default_rng(seed), config=LIVELY) for seed in (5, 5, 6)
  )
  for name in ("real", "fake", "mask"):
    np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
  assert (first.mask != other.mask).any()
  np.testing.assert_array_equal(crops, kept[0])
  np.testing.assert_array_equal(landmarks, kept[1])


def test_twins_are_equal_exactly_outside_the_mask_in_every_frame(face):
  rng = np.random.default_rng(1)
  for _ in range(6):
    crops, landmarks = moving_still(face, rough_landmarks(), frames=3, rng=rng, config=MotionConfig())
    clip = self_blend_clip(crops, landmarks, rng=rng, config=LIVELY)
    untouched = clip.mask == 0
    np.testing.assert_array_equal(clip.fake[untouched], clip.real[untouched])
    assert all((fake != real).any() for fake, real in zip(clip.fake, clip.real, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_without_drift_a_face_that_rests_gives_one_and_the_same_pair(face, seed):
  clip = self_blend_clip(*repeated(face), rng=np.random.default_rng(seed), config=STEADY)
  for frames in (clip.real, clip.fake, clip.mask):
    np.testing.assert_array_equal(frames, np.repeat(frames[:1], len(frames), axis=0))


def test_the_drift_touches_the_forgery_alone(face):
  clip = self_blend_clip(*repeated(face), rng=np.random.default_rng(2), config=LIVELY)
  np.testing.assert_array_equal(clip.real, np.repeat(clip.real[:1], 4, axis=0))
  assert all((clip.fake[i] != clip.fake[i + 1]).any() for i in range(3))
  assert all((clip.mask[i] != clip.mask[i + 1]).any() for i in range(3))


def test_a_larger_amplitude_drifts_further(face):
  changes = []
  for amplitude in (0.1, 0.5, 2.0):
    config = ClipBlendConfig(amplitude=(amplitude, amplitude))
    clips = [self_blend_clip(*repeated(face), rng=np.random.default_rng(s), config=config) for s in range(4)]
    changes.append(np.mean([np.abs(np.diff(clip.fake.astype(int), axis=0)).mean() for clip in clips]))
  assert 0 < changes[0] < changes[1] < changes[2]


def test_the_colour_of_the_source_drifts_about_its_own():
  grey = np.full((12, 256, 256, 3), 120, np.uint8)
  colour = dataclasses.replace(NO_COLOUR, rgb_shift_probability=1.0)
  blend = dataclasses.replace(IDENTITY, colour=colour, ratios=(1.0,), jitter_target_probability=0.0)
  landmarks = np.stack([rough_landmarks()] * 12)
  drifting = ClipBlendConfig(blend=blend, amplitude=(1.0, 1.0), smooth_frames=(1.0, 1.0))
  steady, clip = (
    self_blend_clip(grey, landmarks, rng=np.random.default_rng(0), config=c)
    for c in (dataclasses.replace(drifting, amplitude=(0.0, 0.0)), drifting)
  )
  core = np.unravel_index(clip.mask.min(axis=0).argmax(), (256, 256))
  levels = clip.fake[:, *core].astype(float)
  assert levels.std(axis=0).max() > 0.5
  np.testing.assert_allclose(levels.mean(axis=0), steady.fake[0, *core], atol=0.6)


def test_masks_and_blend_follow_the_landmarks_of_each_frame(face):
  moves = np.array([[0, 0], [9, -6], [-7, 12]])
  crops = np.stack([np.roll(face, move[::-1], axis=(0, 1)) for move in moves])
  landmarks = np.stack([rough_landmarks() + move.astype(np.float32) for move in moves])
  for seed in range(6):
    clip = self_blend_clip(crops, landmarks, rng=np.random.default_rng(seed), config=STEADY)
    back = np.stack(
      [np.roll(mask, -move[::-1], axis=(0, 1)) for mask, move in zip(clip.mask, moves, strict=True)]
    )
    # What softens the mask has a grid of its own, of 192 to 256 places.
    assert np.abs(back - back[0]).max() < 0.2
    assert np.abs(back - back[0]).mean() < 0.005
    middles = [np.argwhere(mask > mask.max() / 2).mean(axis=0)[::-1] for mask in clip.mask]
    np.testing.assert_allclose(np.array(middles) - middles[0], moves, atol=0.6)


def test_a_mask_opens_with_its_mouth(face):
  crops, landmarks = repeated(face, 3)
  landmarks[1:, :, 1] += np.array([4, 12])[:, None] * (landmarks[0, :, 1] > 160)
  lower = dataclasses.replace(IDENTITY, face=0, face_below_brows=0, inner_face=0, parts=0, ratios=(1.0,))
  config = dataclasses.replace(STEADY, blend=lower)
  clip = self_blend_clip(crops, landmarks, rng=np.random.default_rng(0), config=config)
  lowest = [np.flatnonzero((mask > 0.5).any(axis=1)).max() for mask in clip.mask]
  assert lowest[0] < lowest[1] < lowest[2]


def test_black_outside_is_treated_alike_in_all_frames(face):
  crops, landmarks = repeated(face, 3)
  crops[:, :, :30] = 0
  cut = crops.copy()
  cut[1, :, :30] = 90  # in one frame there is no black
  for seed in range(4):
    rng = np.random.default_rng(seed)
    outside = self_blend_clip(
      crops, landmarks, rng=rng, config=dataclasses.replace(STEADY, blend=IDENTITY)
    ).real
    assert len({bool(frame[:, :24].any()) for frame in outside}) == 1
    kept = self_blend_clip(cut, landmarks, rng=rng, config=dataclasses.replace(STEADY, blend=IDENTITY)).real
    np.testing.assert_array_equal(kept, cut)


def dots():
  """A crop with white dots, and landmarks at the middle of each."""
  crop, points = np.zeros((256, 256, 3), np.uint8) + 30, rough_landmarks()
  places = np.array([(60, 70), (190, 60), (128, 128), (70, 200), (200, 190)])
  for x, y in places:
    crop[y - 1 : y + 2, x - 1 : x + 2] = 255
  points[:5] = places + 0.5
  return crop, points


def test_landmarks_go_where_the_picture_goes():
  crop, points = dots()
  config = MotionConfig(shift_px=5, zoom=0.04, rotation_deg=3, noise_probability=0)
  crops, landmarks = moving_still(crop, points, frames=12, rng=np.random.default_rng(0), config=config)
  assert crops.dtype == np.uint8 and crops.shape == (12, 256, 256, 3)
  assert landmarks.dtype == np.float32 and landmarks.shape == (12, 468, 2)
  assert np.abs(landmarks - points).max() > 4
  for frame, moved in zip(crops, landmarks, strict=True):
    for x, y in moved[:5]:
      left, top = int(x) - 6, int(y) - 6
      light = frame[top : top + 13, left : left + 13, 0].astype(float) - 30
      rows, columns = np.mgrid[:13, :13]
      seen = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum() + (left + 0.5, top + 0.5)
      np.testing.assert_allclose(seen, (x, y), atol=0.1)


def test_a_still_that_does_not_move_is_itself_but_for_one_interpolation(face):
  config = MotionConfig(shift_px=0, zoom=0, rotation_deg=0, noise_probability=0)
  crops, landmarks = moving_still(
    face, rough_landmarks(), frames=2, rng=np.random.default_rng(0), config=config
  )
  np.testing.assert_array_equal(crops[0], crops[1])
  np.testing.assert_allclose(landmarks[0], rough_landmarks(), atol=1e-4)
  assert np.abs(crops[0].astype(int) - face).mean() < 3


def test_the_camera_moves_smoothly_and_keeps_its_sharpness(face):
  config = dataclasses.replace(SILENT, smooth_frames=(8, 8))
  crops, landmarks = moving_still(
    face, rough_landmarks(), frames=24, rng=np.random.default_rng(0), config=config
  )
  speed = np.diff(landmarks, axis=0)
  assert np.abs(np.diff(speed, axis=0)).max() < 0.3 * np.abs(speed).max()
  sharpness = [cv2.Laplacian(frame[24:-24, 24:-24], cv2.CV_32F).std() for frame in crops]
  assert max(sharpness) < 1.15 * min(sharpness)


def test_no_border_is_black_and_noise_is_new_in_each_frame():
  grey = np.full((256, 256, 3), 128, np.uint8)
  grey[:, :40] = 0  # the photograph ends here
  config = MotionConfig(shift_px=6, noise_probability=1, noise_level=(2, 2))
  crops, _ = moving_still(grey, rough_landmarks(), frames=3, rng=np.random.default_rng(0), config=config)
  assert crops.min() > 100
  assert crops.std() == pytest.approx(2, rel=0.1)
  assert np.corrcoef(crops[0].ravel(), crops[1].ravel())[0, 1] < 0.02


def test_a_seed_says_where_the_camera_goes(face):
  (first, points), (second, same), (other, _) = (
    moving_still(face, rough_landmarks(), frames=3, rng=np.random.default_rng(s), config=MotionConfig())
    for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(points, same)
  assert (first != other).any()


@pytest.mark.parametrize("config", [LIVELY, MotionConfig(shift_px=3)])
def test_configs_can_be_stored(config):
  assert from_dict(to_dict(config), type(config)) == config


def test_without_smoothness_every_frame_is_new(face):
  config = dataclasses.replace(SILENT, smooth_frames=(0.0, 0.0))
  _, landmarks = moving_still(
    face, rough_landmarks(), frames=200, rng=np.random.default_rng(0), config=config
  )
  path = landmarks[:, 10, 0]
  assert path.std() == pytest.approx(2, rel=0.25) and abs(np.corrcoef(path[1:], path[:-1])[0, 1]) < 0.2


CROPS, LANDMARKS = np.zeros((2, 256, 256, 3), np.uint8) + 9, np.stack([rough_landmarks()] * 2)


@pytest.mark.parametrize(
  ("crops", "landmarks", "message"),
  [
    (CROPS[0], LANDMARKS, r"\[frame, size, size, 3\].*got uint8 \[256, 256, 3\]"),
    (CROPS[:0], LANDMARKS[:0], "at least one frame"),
    (CROPS, LANDMARKS[:1], r"2 crops and landmarks \[1, 468, 2\]"),
    (CROPS.astype(np.float32), LANDMARKS, "must be uint8.*got float32"),
    (CROPS[:, :, :200], LANDMARKS, r"\[256, 200, 3\]"),
    (CROPS, LANDMARKS[:, :68], "468"),
    (CROPS, LANDMARKS * np.nan, "finite"),
    (CROPS, LANDMARKS + 900, "inside the crop"),
  ],
)
def test_wrong_clips_are_named(crops, landmarks, message):
  with pytest.raises(ValueError, match=message):
    self_blend_clip(crops, landmarks, rng=np.random.default_rng(0), config=ClipBlendConfig())


@pytest.mark.parametrize(
  ("crop", "landmarks", "frames", "message"),
  [
    (CROPS, LANDMARKS[0], 3, r"\[size, size, 3\], got uint8 \[2, 256, 256, 3\]"),
    (CROPS[0], LANDMARKS, 3, "468"),
    (CROPS[0], LANDMARKS[0], 0, "at least 1 frame, got 0"),
  ],
)
def test_wrong_stills_are_named(crop, landmarks, frames, message):
  with pytest.raises(ValueError, match=message):
    moving_still(crop, landmarks, frames=frames, rng=np.random.default_rng(0), config=MotionConfig())
