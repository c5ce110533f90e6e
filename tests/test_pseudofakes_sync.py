"""Lip-sync negatives: what is heard and seen when, and that only the match of the two is wrong."""

import dataclasses

import numpy as np
import pytest
import voices

from deepscan_jax.pseudofakes import SYNC_KINDS, SyncConfig, SyncPair, sync_pair

FRAMES = 200  # 8 s
WINDOW = SyncConfig().mouth_frames


def only(kind, **changes):
  return SyncConfig(**{name: float(name == kind) for name in SYNC_KINDS}, **changes)


@pytest.fixture(scope="module")
def clip():
  """A sound without pauses, and mouths that carry their own number and open as it gets louder."""
  rng = np.random.default_rng(0)
  samples = FRAMES * 640
  loudness = np.interp(np.arange(samples), np.arange(0, samples + 3200, 3200), rng.uniform(0.2, 1, 42)[:41])
  waveform = (0.1 * loudness * rng.standard_normal(samples)).clip(-1, 1).astype(np.float32)
  opened = loudness[::640]
  mouths = np.zeros((FRAMES, 8, 8, 3), np.uint8)
  mouths[:] = np.rint(200 * opened)[:, None, None, None]
  mouths[:, 0, 0, 0] = np.arange(FRAMES)
  return waveform, mouths


@pytest.fixture(scope="module")
def other():
  return voices.voice(seconds=6, seed=9)


def draw(clip, other, seed, config):
  return sync_pair(*clip, rng=np.random.default_rng(seed), config=config, other_waveform=other)


def place(part, whole):
  """The sample at which `part` lies in `whole`; it has to lie there exactly."""
  start = int(np.flatnonzero(whole[: len(whole) - len(part) + 1] == part[0])[0])
  np.testing.assert_array_equal(whole[start : start + len(part)], part)
  return start


def test_shapes_and_types(clip, other):
  for seed in range(20):
    pair = draw(clip, other, seed, SyncConfig())
    assert isinstance(pair, SyncPair) and pair.kind in SYNC_KINDS
    for waveform in (pair.waveform, pair.fake_waveform):
      assert waveform.dtype == np.float32 and waveform.shape == (WINDOW * 640,)
    for mouths in (pair.mouth_crops, pair.fake_mouth_crops):
      assert mouths.dtype == np.uint8 and mouths.shape == (WINDOW, 8, 8, 3)
    ((start, end),) = pair.segments
    assert 0 <= start < end <= WINDOW / 25


def test_the_real_twin_is_a_window_of_the_clip_in_step(clip, other):
  starts = set()
  for seed in range(30):
    pair = draw(clip, other, seed, SyncConfig())
    assert place(pair.waveform, clip[0]) == pair.start_frame * 640
    np.testing.assert_array_equal(pair.mouth_crops[:, 0, 0, 0], pair.start_frame + np.arange(WINDOW))
    starts.add(pair.start_frame)
  assert len(starts) > 15


@pytest.mark.parametrize("kind", ["shift", "long_shift"])
def test_shifted_sound_is_late_by_what_it_says(kind, clip, other):
  shifts = []
  for seed in range(60):
    pair = draw(clip, other, seed, only(kind))
    shifts.append(pair.shift_frames)
    # Late by k frames: what is heard at the window's beginning was said k frames before.
    assert place(pair.fake_waveform, clip[0]) == (pair.start_frame - pair.shift_frames) * 640
    np.testing.assert_array_equal(pair.fake_mouth_crops, pair.mouth_crops)
    assert pair.segments == ((0.0, WINDOW / 25),)
  least, most = (2, 15) if kind == "shift" else (25, 75)
  sizes = np.abs(shifts)
  assert least <= sizes.min() < least + 5 and most - 8 < sizes.max() <= most
  assert 15 < np.sum(np.array(shifts) > 0) < 45


def test_swapped_sound_comes_from_the_other_clip(clip, other):
  starts = set()
  for seed in range(10):
    pair = draw(clip, other, seed, only("swap"))
    starts.add(place(pair.fake_waveform, other))
    np.testing.assert_array_equal(pair.fake_mouth_crops, pair.mouth_crops)
    assert pair.shift_frames == 0 and pair.segments == ((0.0, WINDOW / 25),)
  assert len(starts) > 3


def test_replaced_mouths_are_of_another_time_and_only_where_it_says(clip, other):
  lengths = []
  for seed in range(40):
    pair = draw(clip, other, seed, only("mouth_span"))
    ((start, end),) = pair.segments
    begin, stop = round(start * 25), round(end * 25)
    np.testing.assert_array_equal(pair.fake_waveform, pair.waveform)
    own = pair.start_frame + np.arange(WINDOW)
    np.testing.assert_array_equal(
      np.delete(pair.fake_mouth_index, np.s_[begin:stop]), np.delete(own, np.s_[begin:stop])
    )
    away = pair.fake_mouth_index[begin:stop] - own[begin:stop]
    assert (away == away[0]).all() and abs(away[0]) >= 12  # one run of frames, half a second away or more
    np.testing.assert_array_equal(pair.fake_mouth_crops, clip[1][pair.fake_mouth_index])
    np.testing.assert_array_equal(pair.fake_mouth_crops[:, 0, 0, 0], pair.fake_mouth_index)
    lengths.append(stop - begin)
  assert 12 <= min(lengths) < 20 and 30 < max(lengths) <= 38


def test_the_cut_shows_less_the_more_moments_are_tried(clip, other):
  def jump(pair):
    mouths = pair.fake_mouth_crops[:, 4, 4, 0].astype(int)
    begin, stop = (round(x * 25) for x in pair.segments[0])
    steps = [mouths[i] - mouths[i - 1] for i in (begin, stop) if 0 < i < WINDOW]
    return np.abs(steps).mean()

  one, many = (
    np.mean([jump(draw(clip, other, seed, only("mouth_span", span_candidates=n))) for seed in range(40)])
    for n in (1, 16)
  )
  assert many < 0.7 * one


def test_every_kind_is_drawn_where_the_clip_allows_it(clip, other):
  waveform, mouths = clip

  def kinds(frames, other_waveform):
    return {
      sync_pair(
        waveform[: frames * 640],
        mouths[:frames],
        rng=np.random.default_rng(seed),
        config=SyncConfig(),
        other_waveform=other_waveform,
      ).kind
      for seed in range(60)
    }

  assert kinds(FRAMES, other) == set(SYNC_KINDS)
  assert kinds(FRAMES, None) == set(SYNC_KINDS) - {"swap"}
  assert kinds(WINDOW + 24, other) == set(SYNC_KINDS) - {"long_shift"}
  assert kinds(WINDOW, other) == {"swap", "mouth_span"}


def test_shifts_fit_into_clips_that_are_hardly_longer_than_a_window(clip):
  waveform, mouths = clip
  for seed in range(20):
    pair = sync_pair(
      waveform[: (WINDOW + 3) * 640],
      mouths[: WINDOW + 3],
      rng=np.random.default_rng(seed),
      config=only("shift"),
    )
    assert abs(pair.shift_frames) in (2, 3)
    assert place(pair.fake_waveform, waveform) == (pair.start_frame - pair.shift_frames) * 640


def test_pauses_are_avoided(clip):
  """Half of the clip is silent; windows are taken from the other half, both of them."""
  waveform = clip[0].copy()
  waveform[: FRAMES // 2 * 640] = 0
  for seed in range(20):
    pair = sync_pair(waveform, clip[1], rng=np.random.default_rng(seed), config=only("shift"))
    for heard in (pair.waveform, pair.fake_waveform):
      assert np.sqrt(np.square(heard).mean()) > 0.3 * np.sqrt(np.square(waveform).mean())


def test_a_seed_says_it_all_and_nothing_is_changed_or_shared(clip, other):
  before = [x.copy() for x in (*clip, other)]
  for kind in SYNC_KINDS:
    first, second, third = (draw(clip, other, seed, only(kind)) for seed in (5, 5, 6))
    for field in dataclasses.fields(SyncPair):
      a, b = getattr(first, field.name), getattr(second, field.name)
      assert (a.tobytes() == b.tobytes()) if isinstance(a, np.ndarray) else a == b
    assert (first.waveform != third.waveform).any()
    for array in (first.waveform, first.fake_waveform, first.mouth_crops, first.fake_mouth_crops):
      array[:] = 0  # copies: what a training step does to them reaches no clip and no twin
    assert second.fake_waveform.any() and second.mouth_crops.any()
  for array, copy in zip((*clip, other), before, strict=True):
    np.testing.assert_array_equal(array, copy)


def test_wrong_input_is_named(clip, other):
  waveform, mouths = clip
  for arguments, message in (
    ((waveform.astype(np.float64), mouths), r"A waveform must be float32 \[sample\].*got float64"),
    ((waveform[:1000], mouths), "at least 32000 samples at 16 kHz, got 1000"),
    ((np.zeros_like(waveform), mouths), "hold sound"),
    ((waveform * np.float32(np.nan), mouths), "finite"),
    ((waveform * 100, mouths), r"in -1\.\.1"),
    ((waveform, mouths.astype(np.float32)), r"uint8 \[mouth_frame, \.\.\.\], got float32"),
    ((waveform, mouths[:49]), "at least the 50 mouth frames of a window, got 49"),
  ):
    with pytest.raises(ValueError, match=message):
      sync_pair(*arguments, rng=np.random.default_rng(0), config=SyncConfig(), other_waveform=other)
  with pytest.raises(ValueError, match="The other waveform must have at least 32000"):
    draw(clip, other[:999], 0, SyncConfig())


def test_a_clip_that_allows_no_kind_is_named(clip):
  waveform, mouths = clip
  with pytest.raises(ValueError, match="50 mouth frames for windows of 50, no other waveform"):
    sync_pair(waveform[:32000], mouths[:50], rng=np.random.default_rng(0), config=only("shift"))
  with pytest.raises(ValueError, match="give a longer clip or another waveform"):
    sync_pair(waveform, mouths, rng=np.random.default_rng(0), config=only("swap"))
