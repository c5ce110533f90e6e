"""Augmentation: the same for both twins, registered with the mask, and each step what it says it is."""

import dataclasses

import cv2
import numpy as np
import pytest
from skimage import data

from deepscan_jax import augment
from deepscan_jax.augment import (
  AugmentConfig,
  ColourConfig,
  augment_one,
  augment_pair,
  draw_augmentation,
  draw_crop,
  h264,
  h264_clip,
  jpeg,
  scale_channels,
  shift_hsv,
  warp,
)
from deepscan_jax.faces import regions

GEOMETRY = AugmentConfig(
  colour=ColourConfig(
    rgb_shift_probability=0, hsv_probability=0, brightness_contrast_probability=0, gamma_probability=0
  ),
  shrink_probability=0,
  blur_probability=0,
  noise_probability=0,
  h264_probability=0,
  jpeg_probability=0,
  second_jpeg_probability=0,
)
STILL = dataclasses.replace(GEOMETRY, translation=0, rotation_deg=0, flip_probability=0)
EVERYTHING = AugmentConfig(
  colour=ColourConfig(
    rgb_shift_probability=1, hsv_probability=1, brightness_contrast_probability=1, gamma_probability=1
  ),
  shrink_probability=1,
  blur_probability=1,
  noise_probability=1,
  h264_probability=1,
  jpeg_probability=1,
  second_jpeg_probability=1,
)
JPEG_LUMA_AT_50 = np.array([  # ITU-T T.81, table K.1
  [16, 11, 10, 16, 24, 40, 51, 61],
  [12, 12, 14, 19, 26, 58, 60, 55],
  [14, 13, 16, 24, 40, 57, 69, 56],
  [14, 17, 22, 29, 51, 87, 80, 62],
  [18, 22, 37, 56, 68, 109, 103, 77],
  [24, 35, 55, 64, 81, 104, 113, 92],
  [49, 64, 78, 87, 103, 121, 120, 101],
  [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip


@pytest.fixture(scope="module")
def picture():
  return np.ascontiguousarray(data.astronaut()[0:256, 100:356])


def blob_mask():
  rows, columns = np.mgrid[:256, :256]
  return np.exp(-(((rows - 110) / 40) ** 2) - ((columns - 150) / 25) ** 2).astype(np.float32)


@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING, GEOMETRY])
def test_equal_twins_stay_equal(picture, config):
  rng = np.random.default_rng(0)
  for _ in range(15):
    real, fake, mask = augment_pair(picture, picture.copy(), blob_mask(), rng=rng, config=config)
    np.testing.assert_array_equal(real, fake)
    assert real.dtype == np.uint8 and real.shape == (224, 224, 3) and real.flags.c_contiguous
    assert mask.dtype == np.float32 and mask.shape == (224, 224)
    assert mask.min() >= 0 and mask.max() <= 1


def test_a_seed_says_it_all_and_nothing_is_mutated(picture):
  fake, mask = picture[::-1].copy(), blob_mask()
  kept = [v.copy() for v in (picture, fake, mask)]
  first, second, other = (
    augment_pair(picture, fake, mask, rng=np.random.default_rng(seed), config=EVERYTHING)
    for seed in (3, 3, 4)
  )
  for a, b, c in zip(first, second, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
  for after, before in zip((picture, fake, mask), kept, strict=True):
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("seed", range(6))
def test_one_picture_is_augmented_as_a_twin_is(picture, seed):
  config = AugmentConfig()
  one = augment_one(picture, rng=np.random.default_rng(seed), config=config)
  real, _, _ = augment_pair(picture, picture, blob_mask(), rng=np.random.default_rng(seed), config=config)
  np.testing.assert_array_equal(one, real)


def test_exact_scale_without_shift_is_the_evaluation_crop(picture):
  config = dataclasses.replace(STILL, exact_scale_probability=1)
  out = augment_one(picture, rng=np.random.default_rng(0), config=config)
  np.testing.assert_array_equal(out, picture[16:240, 16:240])


def test_exact_scale_only_moves_and_mirrors_whole_pixels():
  rows, columns = np.mgrid[:256, :256].astype(np.uint8)
  addresses = np.stack([rows, columns, rows ^ columns], axis=-1)
  config = dataclasses.replace(GEOMETRY, exact_scale_probability=1)
  rng, tops, flips = np.random.default_rng(0), set(), set()
  for _ in range(30):
    out = augment_one(addresses, rng=rng, config=config)
    flip = bool(out[0, 0, 1] > out[0, -1, 1])
    top, left = (int(v) for v in out[0, -1 if flip else 0, :2])
    np.testing.assert_array_equal(
      out[:, ::-1] if flip else out, addresses[top : top + 224, left : left + 224]
    )
    tops.add(top)
    flips.add(flip)
  assert flips == {False, True}
  assert len(tops) > 5 and min(tops) >= 16 - 9 and max(tops) <= 16 + 9


def test_the_warp_with_the_evaluation_margin_is_the_evaluation_crop(picture):
  config = dataclasses.replace(STILL, exact_scale_probability=0, margin=(0.15, 0.15))
  out = augment_one(picture, rng=np.random.default_rng(0), config=config)
  assert np.abs(out.astype(int) - picture[16:240, 16:240]).max() <= 1


@pytest.mark.parametrize("margin", [0.04, 0.1, 0.24])
def test_the_margin_sets_the_size_of_the_face(margin):
  face_px = 224 / 1.3
  image = np.zeros((256, 256, 3), np.uint8)
  low, high = round(128 - face_px / 2), round(128 + face_px / 2)
  image[low:high, low:high] = 255
  config = dataclasses.replace(STILL, exact_scale_probability=0, margin=(margin, margin))
  out = augment_one(image, rng=np.random.default_rng(0), config=config)
  side = out[112, :, 0].sum() / 255
  assert side == pytest.approx(224 / (1 + 2 * margin), abs=1.0)
  assert np.argwhere(out[112, :, 0] > 127).mean() == pytest.approx(111.5, abs=0.6)


def test_the_mask_stays_registered_with_the_images():
  mask = blob_mask()
  image = np.repeat(np.rint(mask * 255).astype(np.uint8)[..., None], 3, axis=-1)
  rng, mirrored_error = np.random.default_rng(0), []
  for _ in range(40):
    real, fake, moved = augment_pair(image, image, mask, rng=rng, config=GEOMETRY)
    assert np.abs(real[..., 0] / 255 - moved).max() < 0.02
    assert np.abs(fake[..., 2] / 255 - moved).max() < 0.02
    mirrored_error.append(np.abs(real[:, ::-1, 0] / 255 - moved).max())
  assert min(mirrored_error) > 0.1  # the test would notice a mask that missed a flip


def test_the_window_never_leaves_the_stored_crop():
  columns, rows = np.meshgrid(np.arange(256, dtype=np.float32), np.arange(256, dtype=np.float32))
  rng, angles = np.random.default_rng(0), []
  for _ in range(100):
    crop = draw_crop(rng, 256, config=GEOMETRY)
    x, y = crop(columns), crop(rows)
    # Where a border were mirrored, coordinates would no longer rise at one constant rate.
    for plane in (x, y):
      for axis in (0, 1):
        assert np.ptp(np.diff(plane, axis=axis)) < 0.05
    angles.append(np.rad2deg(np.arctan2(y[0, -1] - y[0, 0], abs(x[0, -1] - x[0, 0]))))
    side = np.hypot(x[0, -1] - x[0, 0], y[0, -1] - y[0, 0]) / 223 * 224
    assert 224 / 1.3 * 1.08 - 0.1 <= side <= 256.1
  assert np.ptp(angles) > 6 and np.abs(angles).max() <= 5.01


@pytest.mark.parametrize("grid", [(0, 0), (3, 6), (15, 1)])
def test_jpeg_quantises_on_the_stated_grid(picture, grid):
  grey = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:224, :224, None], 3, axis=-1)
  out = jpeg(grey, quality=50, grid=grid)[..., 0].astype(np.float32)

  def misfit(top, left):
    rows, columns = (224 - top) // 8, (224 - left) // 8
    blocks = out[top : top + rows * 8, left : left + columns * 8].reshape(rows, 8, columns, 8).swapaxes(1, 2)
    steps = np.array([[cv2.dct(block - 128) for block in row] for row in blocks]) / JPEG_LUMA_AT_50
    coarse = JPEG_LUMA_AT_50 > 40
    return np.abs(steps - np.rint(steps))[..., coarse].mean()

  aligned = ((-grid[0]) % 8, (-grid[1]) % 8)
  assert misfit(*aligned) < 0.02
  assert misfit((aligned[0] + 4) % 8, (aligned[1] + 4) % 8) > 3 * misfit(*aligned)


def test_jpeg_keeps_colours_and_full_colour_keeps_more(picture):
  half, full = (jpeg(picture, quality=95, full_colour=value).astype(int) - picture for value in (False, True))
  assert np.abs(half.mean(axis=(0, 1))).max() < 1 and np.abs(full.mean(axis=(0, 1))).max() < 1
  assert np.abs(full).mean() < np.abs(half).mean() < 6


@pytest.mark.parametrize("shape", [(224, 224), (97, 131)])
def test_h264_degrades_by_its_quantiser(picture, shape):
  image = picture[: shape[0], : shape[1]]
  errors = []
  for qp in (18, 26, 34):
    out = h264(image, qp=qp)
    assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(out, h264(image, qp=qp))
    errors.append(np.abs(out.astype(int) - image).mean())
    assert np.abs((out.astype(int) - image).mean(axis=(0, 1))).max() < 2
  assert 0 < errors[0] < errors[1] < errors[2] < 12


def test_shrinking_takes_detail_away(picture):
  config = dataclasses.replace(STILL, exact_scale_probability=1)
  small = dataclasses.replace(config, shrink_probability=1, shrink_face_px=(60, 60))
  sharpness = [
    cv2.Laplacian(augment_one(picture, rng=np.random.default_rng(0), config=c), cv2.CV_32F).std()
    for c in (config, small)
  ]
  assert sharpness[1] < 0.5 * sharpness[0]


def test_noise_has_the_stated_level():
  grey = np.full((256, 256, 3), 128, np.uint8)
  config = dataclasses.replace(STILL, noise_probability=1, noise_level=(4, 4))
  out = augment_one(grey, rng=np.random.default_rng(0), config=config)
  assert out.std() == pytest.approx(4, rel=0.05) and out.mean() == pytest.approx(128, abs=0.1)


def test_scale_channels_against_a_plain_loop(picture):
  gain, offset = np.array([0.8, 1.0, 1.3]), np.array([20.0, -5.0, -40.0])
  expected = np.clip(np.rint(picture * gain + offset), 0, 255)
  np.testing.assert_array_equal(scale_channels(picture, gain=gain, offset=offset), expected)


def test_hue_turns_in_degrees(picture):
  red = np.array([[[200, 20, 20]]], np.uint8)
  np.testing.assert_array_equal(shift_hsv(red, shift=np.array([120, 0, 0])), [[[20, 200, 20]]])
  np.testing.assert_array_equal(shift_hsv(red, shift=np.array([-120, 0, 0])), [[[20, 20, 200]]])
  whole_turn = shift_hsv(picture, shift=np.array([360, 0, 0]))
  np.testing.assert_array_equal(whole_turn, shift_hsv(picture, shift=np.zeros(3)))
  assert shift_hsv(red, shift=np.array([0, 0, 30]))[0, 0, 0] == 230


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_warp_shifts_by_whole_pixels_and_mirrors_at_the_border(channels):
  image = np.random.default_rng(0).integers(0, 256, (20, 30, *channels)).astype(np.uint8)
  move = np.array([[1.0, 0, 3], [0, 1, 2]])
  np.testing.assert_array_equal(warp(image, matrix=move, size=(30, 20))[2:, 3:], image[:-2, :-3])
  back = warp(image, matrix=move, size=(30, 20), inverse=True)
  np.testing.assert_array_equal(back[:-2, :-3], image[2:, 3:])
  np.testing.assert_array_equal(back[:-2, -1], image[2:, -4])  # column 32 mirrors to 26


@pytest.mark.parametrize(
  ("real", "fake", "mask", "message"),
  [
    (np.zeros((256, 256, 3)), np.zeros((256, 256, 3), np.uint8), blob_mask(), "uint8"),
    (np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200, 3), np.uint8), blob_mask(), "224"),
    (np.zeros((256, 256, 3), np.uint8), np.zeros((260, 260, 3), np.uint8), blob_mask(), "agree"),
    (np.zeros((260, 260, 3), np.uint8), np.zeros((260, 260, 3), np.uint8), blob_mask(), "agree"),
    (np.zeros((0, 256, 256, 3), np.uint8), np.zeros((256, 256, 3), np.uint8), blob_mask(), r"\[0, 256"),
    (np.zeros((2, 256, 256, 3), np.uint8), np.zeros((2, 256, 256, 3), np.uint8), blob_mask(), "agree"),
  ],
)
def test_wrong_input_is_named(real, fake, mask, message):
  with pytest.raises(ValueError, match=message):
    augment_pair(real, fake, mask, rng=np.random.default_rng(0), config=AugmentConfig())


def clip_of(picture, frames=4):
  return np.stack([picture] * frames)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING])
def test_a_clip_of_one_frame_is_augmented_as_a_picture(picture, seed, config):
  twins = picture, picture[::-1].copy(), blob_mask()
  expected = augment_pair(*twins, rng=np.random.default_rng(seed), config=config)
  clips = augment_pair(*(v[None] for v in twins), rng=np.random.default_rng(seed), config=config)
  for one, clip in zip(expected, clips, strict=True):
    np.testing.assert_array_equal(clip, one[None])


@pytest.mark.parametrize("seed", range(4))
def test_all_frames_of_a_clip_get_the_same(picture, seed):
  # Noise is new in each frame, and a video's frames depend on those before.
  config = dataclasses.replace(EVERYTHING, noise_probability=0, h264_probability=0)
  out = augment_one(clip_of(picture), rng=np.random.default_rng(seed), config=config)
  assert out.dtype == np.uint8 and out.shape == (4, 224, 224, 3)
  np.testing.assert_array_equal(out, np.repeat(out[:1], 4, axis=0))
  one = augment_one(picture, rng=np.random.default_rng(seed), config=config)
  np.testing.assert_array_equal(out[0], one)


def test_equal_twins_of_clips_stay_equal_and_masks_registered(picture):
  rng, masks = np.random.default_rng(0), np.stack([blob_mask(), blob_mask().T])
  clip = np.stack([picture, picture[::-1]])
  for _ in range(4):
    real, fake, moved = augment_pair(clip, clip.copy(), masks, rng=rng, config=EVERYTHING)
    np.testing.assert_array_equal(real, fake)
    assert moved.dtype == np.float32 and moved.shape == (2, 224, 224)
  for _ in range(8):
    image = np.repeat(np.rint(masks * 255).astype(np.uint8)[..., None], 3, axis=-1)
    real, _, moved = augment_pair(image, image, masks, rng=rng, config=GEOMETRY)
    assert np.abs(real[..., 0] / 255 - moved).max() < 0.02


def test_noise_is_new_in_each_frame_and_the_same_in_both_twins():
  grey = np.full((3, 256, 256, 3), 128, np.uint8)
  config = dataclasses.replace(STILL, noise_probability=1, noise_level=(4, 4))
  masks = np.zeros((3, 256, 256), np.float32)
  real, fake, _ = augment_pair(grey, grey, masks, rng=np.random.default_rng(0), config=config)
  np.testing.assert_array_equal(real, fake)
  assert real.std() == pytest.approx(4, rel=0.05)
  assert abs(np.corrcoef(real[0].ravel(), real[1].ravel())[0, 1]) < 0.02


def test_a_clip_is_one_stream_in_which_a_resting_picture_is_not_coded_again(picture):
  frames = h264_clip(clip_of(picture, 5), qp=30)
  assert len(frames) == 5 and all(f.dtype == np.uint8 and f.shape == picture.shape for f in frames)
  for frame in frames:
    np.testing.assert_array_equal(frame, h264(picture, qp=30))
  moving = [np.roll(picture, 2 * i, axis=1) for i in range(5)]
  separate = h264_clip(moving, qp=30, key_frames_only=True)
  together = h264_clip(moving, qp=30)
  np.testing.assert_array_equal(separate[3], h264(moving[3], qp=30))
  assert (together[3] != separate[3]).any()
  assert np.abs(together[3].astype(int) - moving[3]).mean() < 12


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("exact", [0.0, 1.0])
def test_landmarks_go_where_the_pixels_go(seed, exact):
  crop, points = np.zeros((256, 256, 3), np.uint8), np.full((468, 2), 128, np.float32)
  right, left = regions.RIGHT_EYE_OUTER_CORNER, regions.LEFT_EYE_OUTER_CORNER
  for index, (x, y), value in ((right, (80, 110), 255), (left, (170, 120), 128)):
    crop[y - 1 : y + 2, x - 1 : x + 2] = value
    points[index] = x + 0.5, y + 0.5
  config = dataclasses.replace(GEOMETRY, exact_scale_probability=exact)
  drawn = draw_augmentation(np.random.default_rng(seed), 256, frames=2, config=config)
  (picture,) = drawn.pictures(clip_of(crop, 2))
  moved = drawn.landmarks(np.stack([points] * 2))
  assert moved.dtype == np.float32 and moved.shape == (2, 468, 2)
  # The person's right eye lies on the left, also in a mirrored picture: there it is the other one.
  assert moved[0, right, 0] < moved[0, left, 0]
  brighter = left if drawn.crop.flip else right
  for index, value in ((brighter, 255), (left + right - brighter, 128)):
    x, y = moved[0, index]
    rows, columns = np.mgrid[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6]
    light = picture[0, int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6, 0].astype(float)
    assert light.max() == pytest.approx(value, abs=20)
    seen = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum() + 0.5
    np.testing.assert_allclose(seen, (x, y), atol=0.1)


def test_an_augmentation_is_for_as_many_frames_as_it_was_drawn_for(picture):
  drawn = draw_augmentation(np.random.default_rng(0), 256, frames=2, config=EVERYTHING)
  with pytest.raises(ValueError, match=r"2 frames, got \[3\]"):
    drawn.pictures(clip_of(picture, 3))


def test_the_mirrored_mesh_exchanges_left_and_right():
  mirrored = regions.MIRRORED
  np.testing.assert_array_equal(mirrored[mirrored], np.arange(regions.N_LANDMARKS))
  np.testing.assert_array_equal(np.flatnonzero(mirrored == np.arange(468)), sorted(regions.MIDLINE))
  for right, left in ((regions.RIGHT_EYE, regions.LEFT_EYE), (regions.RIGHT_EYEBROW, regions.LEFT_EYEBROW)):
    np.testing.assert_array_equal(mirrored[list(right)], left)
  for outline in (regions.FACE_OVAL, regions.LIPS_OUTER, regions.LIPS_INNER, regions.NOSE):
    assert set(mirrored[list(outline)]) == set(outline)


def test_gamma_bends_the_middle_and_keeps_the_ends():
  ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
  for gamma in (0.7, 1.4):
    bent = augment.bend_tones(ramp, gamma=gamma)[:, 0, 0].astype(int)
    np.testing.assert_array_equal(bent, [round(255 * (v / 255) ** gamma) for v in range(256)])
    assert bent[0] == 0 and bent[255] == 255 and (np.diff(bent) >= 0).all()
    assert (bent[1:255] >= np.arange(1, 255)).all() == (gamma < 1)


def test_without_gamma_nothing_is_drawn_for_it():
  config = ColourConfig(gamma_probability=0.0)
  rng = np.random.default_rng(0)
  augment.draw_colour(rng, config=config)
  drawn = np.random.default_rng(0)
  for probability, count in (
    (config.rgb_shift_probability, 3),
    (config.hsv_probability, 3),
    (config.brightness_contrast_probability, 2),
  ):
    if drawn.random() < probability:
      drawn.uniform(size=count)
  assert rng.random() == drawn.random()
