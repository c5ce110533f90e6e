import cv2
import numpy as np
import pytest
import skimage.data
import voices

from deepscan_jax import augment, augment_audio, perturb
from deepscan_jax.perturb import FRAMES, PERTURBATIONS, SOUND, Rung

OF_FRAMES = [name for name, kind in PERTURBATIONS.items() if kind.of == FRAMES]
OF_SOUND = [name for name, kind in PERTURBATIONS.items() if kind.of == SOUND]
SEED = 7
# A camera pans over a photograph.
CLIP = np.stack([skimage.data.astronaut()[10 * i : 10 * i + 120, 150:310] for i in range(3)])
VOICE = voices.voice(seconds=1.0, seed=3)


def value(name: str, level: int):
  return PERTURBATIONS[name].values[level - 1]


def changed(name: str, level: int, frames: np.ndarray = CLIP, *, seed=SEED) -> np.ndarray:
  return Rung(name, level).frames(frames, seed=seed)


def heard(name: str, level: int, waveform: np.ndarray = VOICE, *, seed=SEED, **settings) -> np.ndarray:
  return Rung(name, level).sound(waveform, seed=seed, **settings)


@pytest.mark.parametrize("name", OF_FRAMES)
def test_damage_of_frames_is_graded_repeatable_and_changes_nothing_in_place(name):
  before = CLIP.copy()
  assert changed(name, 0) is CLIP
  found = {level: changed(name, level) for level in (1, 5)}
  np.testing.assert_array_equal(CLIP, before)
  for level, frames in found.items():
    assert frames.shape == CLIP.shape and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, changed(name, level))
  slight, strong = (np.abs(frames.astype(float) - CLIP).mean() for frames in found.values())
  assert 0 < slight < strong
  # Sound is none of its business.
  assert Rung(name, 3).sound(VOICE, seed=SEED) is VOICE


@pytest.mark.parametrize("name", OF_SOUND)
def test_damage_of_sound_is_graded_repeatable_and_changes_nothing_in_place(name):
  before = VOICE.copy()
  assert heard(name, 0) is VOICE
  found = {level: heard(name, level) for level in (1, 5)}
  np.testing.assert_array_equal(VOICE, before)
  for level, sound in found.items():
    assert sound.shape == VOICE.shape and sound.dtype == np.float32 and np.abs(sound).max() <= 1
    np.testing.assert_array_equal(sound, heard(name, level))
    # Nothing has moved in time.
    assert abs(voices.lag(sound, VOICE)) <= 1
  slight, strong = (np.square(sound - VOICE).mean() for sound in found.values())
  assert 0 < slight < strong
  assert Rung(name, 3).frames(CLIP, seed=SEED) is CLIP


@pytest.mark.parametrize("level", [1, 4, 5])
def test_saturation_moves_colours_towards_their_luma(level):
  x, share = CLIP.astype(float), value("saturation", level)
  luma = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]
  expected = np.clip(luma + share * (x - luma), 0, 255)
  assert np.abs(changed("saturation", level) - expected).max() < 0.88  # OpenCV counts in 1/1024


@pytest.mark.parametrize("level", [1, 5])
def test_contrast_multiplies(level):
  assert np.abs(changed("contrast", level) - value("contrast", level) * CLIP.astype(float)).max() <= 0.501


def test_blocks_are_grey_and_of_eight_pixels_and_more_are_added_level_by_level():
  large = np.zeros((2, 520, 600, 3), np.uint8)
  before = np.zeros(large.shape[:3], bool)
  for level in (1, 2):
    found = changed("block", level, large)
    hit = (found != 0).any(axis=-1)
    assert set(np.unique(found)) == {0, 128} and (hit | ~before).all()
    # At most two times the count, for the shorter side holds 256 pixels twice; few lie on each other.
    most = 2 * value("block", level) * 64
    assert all(0.75 * most < area <= most for area in hit.sum(axis=(1, 2)))
    assert (hit[0] != hit[1]).any()
    before = hit
  # Whoever is smaller than a block is hit too.
  assert (changed("block", 1, np.zeros((1, 5, 6, 3), np.uint8)) == 128).all()


@pytest.mark.parametrize("level", [1, 3])
def test_noise_has_the_variance_of_its_level_in_luma_and_chroma(level):
  grey = np.full((2, 200, 200, 3), 128, np.uint8)
  noise = changed("noise", level, grey).astype(float) - 128
  assert (noise[0] != noise[1]).any() and np.abs(noise.mean()) < 0.5
  r, g, b = (noise[..., i] for i in range(3))
  luma = 0.299 * r + 0.587 * g + 0.114 * b
  sigma = 255 * value("noise", level) ** 0.5
  assert luma.std() == pytest.approx(sigma * 255 / 219, rel=0.03)
  assert ((b - luma) / 1.772).std() == pytest.approx(sigma * 255 / 224, rel=0.03)
  assert ((r - luma) / 1.402).std() == pytest.approx(sigma * 255 / 224, rel=0.03)


@pytest.mark.parametrize("level", [1, 5])
def test_blur_is_a_gaussian_of_a_sixth_of_its_kernel(level):
  kernel = value("blur", level)
  places = np.arange(kernel) - kernel // 2
  weights = np.exp(-(places**2) / (2 * (kernel / 6) ** 2))
  weights /= weights.sum()
  row, column = 60, 80
  half = kernel // 2
  part = CLIP[0, row - half : row + half + 1, column - half : column + half + 1].astype(float)
  expected = np.einsum("i,j,ijc->c", weights, weights, part)
  np.testing.assert_allclose(changed("blur", level)[0, row, column], expected, atol=1.5)


def bilinear(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """A picture of another size: each pixel is read at its middle, between the nearest four."""
  found = picture.astype(float)
  for axis, size in ((0, height), (1, width)):
    at = np.clip((np.arange(size) + 0.5) * found.shape[axis] / size - 0.5, 0, found.shape[axis] - 1)
    low = np.minimum(at.astype(int), found.shape[axis] - 2)
    part = np.expand_dims(at - low, tuple(a for a in range(3) if a != axis))
    found = (1 - part) * found.take(low, axis) + part * found.take(low + 1, axis)
  return found


@pytest.mark.parametrize("level", [1, 3, 5])
def test_pixelation_reads_fewer_pixels_and_spreads_them(level):
  factor = value("pixelation", level)
  expected = bilinear(np.rint(bilinear(CLIP[1], 120 // factor, 160 // factor)), 120, 160)
  assert np.abs(changed("pixelation", level)[1] - expected).max() <= 2


@pytest.mark.parametrize("level", [2, 3])
def test_a_smaller_picture_holds_the_means_of_its_blocks(level):
  factor = value("resize", level)
  blocks = CLIP[1, : 120 // factor * factor, : 160 // factor * factor].astype(float)
  means = blocks.reshape(120 // factor, factor, 160 // factor, factor, 3).mean(axis=(1, 3))
  cut = CLIP[1:2, : 120 // factor * factor, : 160 // factor * factor]
  small = np.rint(means).astype(np.uint8)
  expected = cv2.resize(small, (cut.shape[2], cut.shape[1]), interpolation=cv2.INTER_CUBIC)
  assert np.abs(changed("resize", level, cut)[0].astype(int) - expected).max() <= 2


def test_codecs_are_those_of_the_augmentation():
  np.testing.assert_array_equal(changed("jpeg", 2)[1], augment.jpeg(CLIP[1], quality=75))
  np.testing.assert_array_equal(changed("h264", 1), augment.h264_clip(list(CLIP), crf=23))
  first, fifth = (changed("platform", level) for level in (1, 5))
  np.testing.assert_array_equal(first, changed("h264", 1))
  passed = [cv2.resize(frame, (80, 60), interpolation=cv2.INTER_AREA) for frame in CLIP]
  for _ in range(3):
    passed = augment.h264_clip(passed, crf=30)
  expected = [cv2.resize(frame, (160, 120), interpolation=cv2.INTER_CUBIC) for frame in passed]
  np.testing.assert_array_equal(fifth, expected)
  for codec, level, rate in (("mp3", 3, 32000), ("opus", 5, 8000)):
    expected = augment_audio.codec_round_trip(VOICE, codec=codec, bit_rate=rate)
    np.testing.assert_array_equal(heard(codec, level), expected)


def test_a_stream_of_constant_quality_keeps_the_order_of_its_frames():
  """Its frames are predicted from later ones, too, and come in another order than they are shown in."""
  shades = np.broadcast_to(np.arange(20, 240, 20, dtype=np.uint8)[:, None, None, None], (11, 64, 64, 3))
  found = augment.h264_clip(list(shades), crf=23)
  assert len(found) == 11
  for frame, shade in zip(found, shades, strict=True):
    assert abs(float(frame.mean()) - float(shade[0, 0, 0])) < 4
  with pytest.raises(ValueError, match="either qp or crf"):
    augment.h264_clip(list(shades))
  with pytest.raises(ValueError, match="either qp or crf"):
    augment.h264_clip(list(shades), qp=20, crf=20)


def test_a_telephone_keeps_its_band():
  noise = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
  for level in (3, 5):
    power = np.square(np.abs(np.fft.rfft(heard("telephone", level, noise))))
    at_hz = np.fft.rfftfreq(len(noise), 1 / 16_000)
    inside = power[(at_hz > 500) & (at_hz < 3000)].mean()
    assert power[(at_hz > 4200) & (at_hz < 7800)].mean() < 1e-3 * inside
    assert power[at_hz < 100].mean() < 2e-2 * inside
  narrow = augment_audio.band_limit(VOICE, highpass_hz=300, lowpass_hz=3400)
  expected = augment_audio.codec_round_trip(np.clip(narrow, -1, 1), codec="alaw")
  expected = augment_audio.codec_round_trip(expected, codec="mulaw")
  np.testing.assert_array_equal(heard("telephone", 5), expected)


def test_noise_in_the_sound_is_so_many_decibels_below_the_voice_and_grows_in_its_place():
  added = {level: heard("sound_noise", level) - VOICE for level in (2, 4)}
  for level, noise in added.items():
    below_db = 20 * np.log10(augment_audio.level(VOICE) / augment_audio.level(noise))
    assert below_db == pytest.approx(value("sound_noise", level), abs=0.05)
  assert np.corrcoef(*added.values())[0, 1] > 0.999
  # Twins of unlike loudness get one and the same noise.
  twin = 0.5 * VOICE
  shared = heard("sound_noise", 3, twin, voice_level=augment_audio.level(VOICE)) - twin
  np.testing.assert_allclose(shared, heard("sound_noise", 3) - VOICE, atol=1e-6)


@pytest.mark.parametrize("name", ["noise", "block"])
def test_twins_get_the_same_random_numbers_and_others_do_not(name):
  grey, other = np.full_like(CLIP, 120), np.full_like(CLIP, 124)
  added = [changed(name, 1, frames).astype(int) - frames for frames in (grey, other)]
  if name == "block":
    added = [noise != 0 for noise in added]
  np.testing.assert_array_equal(*added)
  assert (changed(name, 1, grey, seed=SEED + 1) != changed(name, 1, grey)).any()
  assert (changed(name, 1, grey, seed=[SEED, 1]) != changed(name, 1, grey)).any()


def test_every_perturbation_has_five_levels_with_words():
  assert set(OF_FRAMES) >= {"saturation", "contrast", "block", "noise", "blur", "pixelation", "h264"}
  for kind in PERTURBATIONS.values():
    assert len(kind.values) == perturb.LEVELS
    said = [kind.say(level) for level in range(perturb.LEVELS + 1)]
    assert said[0] == "untouched" and len(set(said)) == len(said) and "{" not in "".join(said)


def test_a_model_is_asked_about_what_it_reads():
  faces, sound = ("crops", "crop_mask"), ("waveform", "waveform_mask")
  assert perturb.chosen(["all"], inputs=faces) == tuple(OF_FRAMES)
  assert perturb.chosen(["all"], inputs=sound) == tuple(OF_SOUND)
  assert perturb.chosen(["all"], inputs=faces + sound) == tuple(PERTURBATIONS)
  assert perturb.chosen(["mp3", "blur", "blur"], inputs=faces) == ("blur",)
  assert perturb.readable(("file_facts",)) == ()
  with pytest.raises(ValueError, match="changes what this model reads \\(frames\\)"):
    perturb.chosen(["mp3"], inputs=faces)
  with pytest.raises(ValueError, match="Unknown perturbation 'fog'; there are all, saturation"):
    perturb.chosen(["fog"], inputs=faces)


def test_what_is_no_level_or_no_picture_is_told():
  with pytest.raises(ValueError, match="levels 0 \\(untouched\\) to 5, got 6"):
    Rung("blur", 6)
  with pytest.raises(ValueError, match="uint8 \\[frame, height, width, 3\\], got float64"):
    Rung("blur", 1).frames(CLIP.astype(float), seed=0)
  with pytest.raises(ValueError, match="must be float32"):
    Rung("mp3", 1).sound(VOICE.astype(float), seed=0)
  empty = np.zeros((0, 4, 4, 3), np.uint8)
  assert Rung("blur", 1).frames(empty, seed=0) is empty
  silence = np.zeros(0, np.float32)
  assert Rung("mp3", 1).sound(silence, seed=0) is silence
