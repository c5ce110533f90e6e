"""Self-blended pairs: what is equal, what differs, where, and that a seed says it all."""

import dataclasses

import cv2
import numpy as np
import pytest
from rough_faces import IDENTITY, NO_COLOUR, rough_landmarks
from skimage import data

from deepscan_jax.augment import AugmentConfig, augment_pair
from deepscan_jax.pseudofakes import (
  MASK_KINDS,
  BlendConfig,
  BlendedPair,
  SwapConfig,
  contact_sheet,
  self_blend,
  swap_face,
)
from deepscan_jax.pseudofakes.image import best_donor, face_mask


@pytest.fixture(scope="module")
def face():
  portrait = data.astronaut()[0:215, 117:332]
  return cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def pairs(face):
  rng = np.random.default_rng(0)
  return [self_blend(face, rough_landmarks(), rng=rng, config=BlendConfig()) for _ in range(60)]


def test_types_and_ranges(pairs):
  for pair in pairs:
    assert pair.real.dtype == pair.fake.dtype == np.uint8
    assert pair.real.shape == pair.fake.shape == (256, 256, 3)
    assert pair.mask.dtype == np.float32 and pair.mask.shape == (256, 256)
    assert pair.mask.min() == 0 and 0 < pair.mask.max() <= 1


def test_twins_are_equal_exactly_outside_the_mask_and_differ_inside(pairs):
  differ = 0
  for pair in pairs:
    touched = pair.mask > 0
    np.testing.assert_array_equal(pair.fake[~touched], pair.real[~touched])
    differ += np.abs(pair.fake[touched].astype(int) - pair.real[touched]).mean() >= 2
  assert differ >= len(pairs) - 1


def test_every_kind_and_every_ratio_is_drawn(pairs):
  assert {pair.kind for pair in pairs} == set(MASK_KINDS)
  np.testing.assert_allclose(
    sorted({round(float(p.mask.max()), 3) for p in pairs}), [0.25, 0.5, 0.75, 1], atol=1e-3
  )


def test_a_seed_says_it_all_and_the_input_stays(face):
  before, points = face.copy(), rough_landmarks()
  first, second, other = (
    self_blend(face, points, rng=np.random.default_rng(seed), config=BlendConfig()) for seed in (5, 5, 6)
  )
  for name in ("real", "fake", "mask"):
    np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
  assert first.kind == second.kind
  assert (first.mask != other.mask).any()
  np.testing.assert_array_equal(face, before)
  np.testing.assert_array_equal(points, rough_landmarks())


def test_without_any_change_the_twins_are_one_picture_also_after_augmentation(face):
  rng = np.random.default_rng(0)
  for _ in range(10):
    pair = self_blend(face, rough_landmarks(), rng=rng, config=IDENTITY)
    np.testing.assert_array_equal(pair.real, face)
    np.testing.assert_array_equal(pair.fake, face)
    assert pair.mask.any()
    real, fake, _ = augment_pair(pair.real, pair.fake, pair.mask, rng=rng, config=AugmentConfig())
    np.testing.assert_array_equal(real, fake)


def test_the_blend_is_mask_times_source_plus_the_rest_of_the_target():
  grey = np.full((256, 256, 3), 120, np.uint8)
  colour = dataclasses.replace(NO_COLOUR, rgb_shift_probability=1.0)
  rng, targets_changed = np.random.default_rng(1), []
  for _ in range(20):
    pair = self_blend(grey, rough_landmarks(), rng=rng, config=dataclasses.replace(IDENTITY, colour=colour))
    changed = (pair.real != 120).any()
    targets_changed.append(changed)
    assert (pair.real == pair.real[0, 0]).all()
    source = grey[0, 0] if changed else None
    core = np.unravel_index(pair.mask.argmax(), pair.mask.shape)
    if source is None:  # the source's one colour, as far as the fake shows it
      source = pair.real[0, 0] + (pair.fake[core].astype(float) - pair.real[core]) / pair.mask[core]
    expected = pair.mask[..., None] * source + (1 - pair.mask[..., None]) * pair.real
    tolerance = 0.51 if changed else 0.51 + 0.5 / pair.mask[core]
    assert np.abs(pair.fake - expected).max() <= tolerance
  assert 0 < sum(targets_changed) < 20  # sometimes the target is the changed copy, sometimes the source


@pytest.mark.parametrize(
  ("kind", "covered", "bare"),
  [
    ("face", ["forehead", "eyes", "nose", "mouth", "chin"], []),
    ("face_below_brows", ["eyes", "nose", "mouth", "chin"], ["forehead"]),
    ("inner_face", ["eyes", "nose", "mouth"], ["forehead", "chin"]),
    ("mouth_and_chin", ["mouth", "chin"], ["forehead", "eyes"]),
  ],
)
def test_masks_cover_what_their_kind_says(kind, covered, bare):
  places = {
    "forehead": (58, 128),
    "eyes": (108, 98),
    "nose": (130, 128),
    "mouth": (172, 128),
    "chin": (205, 128),
  }
  mask = face_mask(rough_landmarks(), 256, kind=kind, rng=np.random.default_rng(0), config=BlendConfig())
  assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
  assert all(mask[places[name]] for name in covered)
  assert not any(mask[places[name]] for name in bare)


def test_parts_are_drawn_in_every_combination():
  rng, seen = np.random.default_rng(0), set()
  for _ in range(60):
    mask = face_mask(rough_landmarks(), 256, kind="parts", rng=rng, config=BlendConfig())
    seen.add(tuple(bool(mask[place]) for place in ((108, 98), (108, 158), (135, 128))))
    assert not mask[172, 128]
  assert len(seen) == 7


def test_masks_follow_the_face(face):
  moved = rough_landmarks() + np.float32([14, -9])
  for kind in MASK_KINDS:
    masks = [
      face_mask(points, 256, kind=kind, rng=np.random.default_rng(3), config=BlendConfig())
      for points in (rough_landmarks(), moved)
    ]
    centres = [np.argwhere(mask).mean(axis=0) for mask in masks]
    np.testing.assert_allclose(centres[1] - centres[0], [-9, 14], atol=0.5)


def framed(angle_deg, *, centre=(128, 128), side=170):
  """A bright photograph that fills only a turned square of its crop, and where it is."""
  noise = np.random.default_rng(0).integers(100, 256, (64, 64, 3)).astype(np.uint8)
  photograph = cv2.resize(noise, (side, side))
  matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle_deg, 1)
  matrix[:, 2] += np.array(centre) - (side - 1) / 2
  white = np.full((side, side), 255, np.uint8)
  return cv2.warpAffine(photograph, matrix, (256, 256)), cv2.warpAffine(white, matrix, (256, 256)) == 255


@pytest.mark.parametrize("place", [(0.0, {}), (12.0, {}), (-7.0, {"centre": (190, 230), "side": 300})])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_black_outside_of_the_photograph_stays_black_or_goes_in_both_twins(place, fill):
  crop, inside = framed(place[0], **place[1])
  well_inside = cv2.erode(inside.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=1) > 0
  outside = ~(cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
  whole_face = {"face_below_brows": 0, "inner_face": 0, "mouth_and_chin": 0, "parts": 0}
  config = BlendConfig(colour=NO_COLOUR, sharpen_probability=0, fill_probability=fill, **whole_face)
  rng = np.random.default_rng(2)
  for _ in range(8):
    pair = self_blend(crop, rough_landmarks(), rng=rng, config=config)
    for twin in (pair.real, pair.fake):
      assert twin[well_inside].min() > 60  # no shift drags black into the photograph
      assert (twin[outside].max() == 0) if fill == 0 else (twin.min() > 60)
    assert fill or not pair.mask[outside].any()


def test_a_dark_picture_is_not_taken_for_the_outside():
  rng = np.random.default_rng(0)
  crop = np.zeros((256, 256, 3), np.uint8)
  cv2.ellipse(crop, (128, 128), (75, 95), 0, 0, 360, (180, 150, 130), -1)
  pair = self_blend(
    crop, rough_landmarks(), rng=rng, config=dataclasses.replace(IDENTITY, fill_probability=1)
  )
  np.testing.assert_array_equal(pair.real, crop)


def test_contact_sheet_shows_real_fake_mask_and_difference(pairs):
  sheet = contact_sheet(pairs[:3])
  assert sheet.dtype == np.uint8 and sheet.shape == (3 * 256, 4 * 256, 3)
  np.testing.assert_array_equal(sheet[256:512, 256:512], pairs[1].fake)
  difference = np.abs(pairs[1].fake.astype(int) - pairs[1].real)
  np.testing.assert_array_equal(sheet[256:512, 768:], np.minimum(4 * difference, 255))
  with pytest.raises(ValueError, match="at least one"):
    contact_sheet([])


@pytest.mark.parametrize(
  ("image", "landmarks", "message"),
  [
    (np.zeros((256, 256, 3), np.float32), rough_landmarks(), "uint8"),
    (np.zeros((256, 200, 3), np.uint8), rough_landmarks(), "256, 200"),
    (np.zeros((256, 256, 3), np.uint8), rough_landmarks()[:68], "468"),
    (np.zeros((256, 256, 3), np.uint8), rough_landmarks() * np.nan, "finite"),
    (np.full((256, 256, 3), 99, np.uint8), rough_landmarks() + 900, "inside the crop"),
  ],
)
def test_wrong_input_is_named(image, landmarks, message):
  with pytest.raises(ValueError, match=message):
    self_blend(image, landmarks, rng=np.random.default_rng(0), config=BlendConfig())


def test_unknown_kind_lists_the_kinds():
  with pytest.raises(ValueError, match="inner_face"):
    face_mask(rough_landmarks(), 256, kind="ear", rng=np.random.default_rng(0), config=BlendConfig())


def test_other_sizes_work(face):
  small = cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA)
  pair = self_blend(small, rough_landmarks() / 2, rng=np.random.default_rng(0), config=BlendConfig())
  assert isinstance(pair, BlendedPair) and pair.mask.shape == (128, 128) and pair.mask.any()


def moved(points, image, *, by=(9, -6), scale=0.9):
  """A face somewhere else in its crop."""
  matrix = np.column_stack([np.eye(2) * scale, np.array(by) + 128 * (1 - scale)])
  return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32), cv2.warpAffine(
    image, matrix, (256, 256)
  )


def test_a_swapped_face_is_the_other_one_laid_on_the_first(face):
  points = rough_landmarks()
  rng = np.random.default_rng(0)
  texture = cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), (0, 0), 4)
  donor_points, donor = moved(points, texture)
  whole = dataclasses.replace(IDENTITY, ratios=(1.0,), clone_probability=0.0, elastic_px=0.0)
  for _ in range(6):
    pair = swap_face(face, points, donor, donor_points, rng=rng, config=whole)
    np.testing.assert_array_equal(pair.real, face)
    np.testing.assert_array_equal(pair.fake[pair.mask == 0], face[pair.mask == 0])
    inside = pair.mask == 1
    assert inside.any()
    # Where nothing of the target is left, it is the donor at the target's place.
    assert np.abs(pair.fake[inside].astype(int) - texture[inside]).mean() < 4
    assert np.abs(pair.fake[inside].astype(int) - face[inside]).mean() > 15


def test_gradients_are_cloned_where_asked_and_change_nothing_where_source_and_target_are_one(face):
  points = rough_landmarks()
  cloning = dataclasses.replace(IDENTITY, ratios=(1.0,), clone_probability=1.0)
  for seed in range(4):
    pair = self_blend(face, points, rng=np.random.default_rng(seed), config=cloning)
    assert np.abs(pair.fake.astype(int) - face).max() <= 2
  darker = (face * 0.5).astype(np.uint8)
  light = dataclasses.replace(cloning, clone_probability=0.0)
  cloned, mixed = (
    swap_face(face, points, darker, points, rng=np.random.default_rng(1), config=c) for c in (cloning, light)
  )
  inside = mixed.mask > 0.99
  # Mixing takes the darker colours over, cloning does not.
  assert cloned.fake[inside].mean() > mixed.fake[inside].mean() + 20
  np.testing.assert_array_equal(cloned.fake[cloned.mask == 0], face[cloned.mask == 0])


def test_the_donor_that_fits_is_chosen(face):
  points = rough_landmarks()
  bent = points + np.random.default_rng(0).normal(0, 6, points.shape).astype(np.float32)
  red = face.copy()
  red[..., 0] = 255
  assert best_donor(face, points, [(red, bent), (face, moved(points, face)[0]), (face, bent)]) == 1


def test_swaps_of_two_sizes_and_of_nothing_are_refused(face):
  points = rough_landmarks()
  rng, config = np.random.default_rng(0), SwapConfig().blend
  with pytest.raises(ValueError, match="one size, got 256 and 128"):
    swap_face(face, points, cv2.resize(face, (128, 128)), points / 2, rng=rng, config=config)
  with pytest.raises(ValueError, match="Landmarks must be finite"):
    swap_face(face, points, face, points[:5], rng=rng, config=config)
