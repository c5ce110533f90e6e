"""Files to clips: the same frames by every way, right colours and times, one sentence for every fault."""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import av
import media_files
import numpy as np
import pytest
from PIL import Image

from deepscan_jax import media, media_decoder
from deepscan_jax.media import (
  Budget,
  MediaError,
  SamplingPlan,
  decode_bytes,
  decode_clip,
  decode_image_bytes,
)

PICTURE = media_files.numbered_frames(6)[5]


def _mpeg1(path, **settings):
  return media_files.write_video(path, media_files.numbered_frames(60), codec="mpeg1video", **settings)


def _webm(path, codec, **options):
  return media_files.write_video(
    path, media_files.numbered_frames(60), codec=codec, options={"deadline": "realtime", **options}
  )


# Every way that frames can lie in a file; the values write the file of that name.
STRUCTURES = {
  "one_keyframe.mp4": media_files.one_keyframe,
  "all_intra.mp4": media_files.all_intra,
  "open_gop.mp4": media_files.open_gop,
  "open_gop.ts": media_files.open_gop,
  "open_gop.mkv": media_files.open_gop,
  "b_frames.avi": lambda path: media_files.write_video(
    path, media_files.numbered_frames(60), codec="mpeg4", b_frames=2
  ),
  "h264.avi": media_files.no_audio,
  "h264.mov": media_files.no_audio,
  "sound.mp4": media_files.with_audio,
  "shifted.ts": lambda path: media_files.with_audio(path, start_s=7),
  "fragmented.mp4": lambda path: media_files.write_video(
    path,
    media_files.numbered_frames(60),
    b_frames=2,
    container_options={"movflags": "frag_keyframe+empty_moov"},
  ),
  "live.mkv": lambda path: media_files.write_video(
    path, media_files.numbered_frames(60), b_frames=2, container_options={"live": "1"}
  ),
  "program.mpg": lambda path: _mpeg1(path, b_frames=2),
  "elementary.m1v": lambda path: _mpeg1(path, b_frames=2),
  "vp8.webm": lambda path: _webm(path, "libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "16"}),
  "vp9.webm": lambda path: _webm(path, "libvpx-vp9", **{"cpu-used": "8"}),
  "hevc.mp4": lambda path: media_files.write_video(
    path,
    media_files.numbered_frames(60),
    codec="libx265",
    options={"x265-params": "log-level=none:open-gop=1:bframes=3:keyint=12:min-keyint=12"},
  ),
  "variable.mp4": lambda path: media_files.variable_rate(path, np.cumsum([0.01, 0.3, 0.02] * 15)),
  # Its first ten frames are cut off by an edit list, in the middle of a group of pictures.
  "edit_list.mp4": lambda path: media_files.write_video(
    path,
    media_files.numbered_frames(60),
    start_s=-0.4,
    gop=30,
    container_options={"avoid_negative_ts": "disabled"},
  ),
  "intra_refresh.mp4": lambda path: media_files.write_video(
    path, media_files.numbered_frames(90), options={"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
  ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def small_video(folder) -> Path:
  return media_files.with_audio(folder / "small.mp4")


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("plan", [SamplingPlan(8), SamplingPlan(12, 4)], ids=str)
def test_chosen_frames_equal_those_of_decoding_everything(folder, name, plan):
  path = folder / name
  if not path.exists():
    STRUCTURES[name](path)
  clip = decode_clip(path, plan=plan, trusted=True)
  with av.open(str(path)) as container:
    everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  chosen = plan.choose(len(everything))
  first = 10 if name == "edit_list.mp4" else 0
  assert [media_files.read_number(frame) - first for frame in clip.frames] == chosen
  np.testing.assert_array_equal(clip.frames, np.stack([everything[i] for i in chosen]))
  assert clip.warnings == ()


def test_skipping_decodes_only_the_groups_that_hold_a_chosen_frame(folder, monkeypatch):
  decoded = []
  charge = media_decoder._Meter.charge
  monkeypatch.setattr(media_decoder._Meter, "charge", lambda self, frame: decoded.append(charge(self, frame)))
  counts = {}
  for name in ("all_intra.mp4", "open_gop.mp4", "one_keyframe.mp4"):
    path = folder / name
    if not path.exists():
      STRUCTURES[name](path)
    decoded.clear()
    decode_clip(path, plan=SamplingPlan(4), trusted=True)
    counts[name] = len(decoded)
  assert counts["all_intra.mp4"] == 4
  assert counts["open_gop.mp4"] <= 4 * 15
  assert counts["one_keyframe.mp4"] <= 300


@pytest.mark.parametrize("available", [0, 1, 2, 5, 31, 32, 33, 75, 300, 751])
@pytest.mark.parametrize(
  "plan", [SamplingPlan(1), SamplingPlan(32), SamplingPlan(32, 8), SamplingPlan(20, 6)]
)
def test_sampling_plan_spreads_distinct_frames_in_whole_windows(plan, available):
  chosen = np.array(plan.choose(available))
  assert (np.diff(chosen) > 0).all()
  assert ((chosen >= 0) & (chosen < available)).all()
  window = min(plan.window_frames, available)
  windows = chosen.reshape(-1, window) if window else chosen
  assert len(windows) == min(plan.frame_count // plan.window_frames, available // window if window else 0)
  if len(windows):
    assert (np.diff(windows, axis=1) == 1).all()
    gaps = np.diff([-1 - (available - chosen[-1] - 1), *windows[:, 0]])
    assert np.ptp(np.diff(windows[:, 0])) <= 1 if len(windows) > 2 else gaps.all()
    assert abs(chosen[0] - (available - 1 - chosen[-1])) <= 1  # as much left over before as behind


def test_sampling_plan_refuses_windows_longer_than_the_plan():
  with pytest.raises(ValueError, match="window_frames"):
    SamplingPlan(frame_count=4, window_frames=5)


def test_sampling_plan_with_a_rate_takes_the_frames_nearest_to_its_moments():
  times_s = [i / 30 for i in range(300)]
  plan = SamplingPlan(frame_count=30, window_frames=10, rate_hz=12.5)
  chosen = plan.choose_at(times_s)
  runs = np.array(times_s)[chosen].reshape(3, 10)
  moments = np.broadcast_to(np.arange(10) / 12.5, (3, 10))
  np.testing.assert_allclose(runs - runs[:, :1], moments, atol=1 / 30)
  middles = runs.mean(axis=1)
  np.testing.assert_allclose(middles, [10 / 6, 5, 50 / 6], atol=0.1)  # spread evenly
  assert plan.choose_at(times_s[:3]) == [0, 2]  # a film of a tenth of a second: nothing twice
  assert plan.choose_at([]) == [] and plan.choose_at([0.0]) == [0]
  slow = SamplingPlan(frame_count=10, window_frames=10, rate_hz=25.0).choose_at([i / 5 for i in range(50)])
  assert np.diff(slow).tolist() == [1, 1] or np.diff(slow).tolist() == [1]


@pytest.mark.parametrize("count", [4, 25, 26, 51])
def test_a_run_at_the_rate_of_the_film_leaves_out_no_frame(count):
  plan = SamplingPlan(frame_count=count, window_frames=count, rate_hz=25.0)
  for frames in (51, 60, 300):
    chosen = plan.choose_at([i / 25 for i in range(frames)])
    assert np.diff(chosen).tolist() == [1] * (count - 1)


def test_sampling_plan_looks_into_spans():
  times_s = [i / 25 for i in range(250)]
  chosen = SamplingPlan(frame_count=4, spans_s=((2.0, 2.2), (7.0, 7.1))).choose_at(times_s)
  assert len(chosen) == 4 and all(2 <= times_s[i] <= 2.2 or 7 <= times_s[i] <= 7.1 for i in chosen)
  run = SamplingPlan(frame_count=8, window_frames=8, rate_hz=25.0, spans_s=((2.0, 2.2),)).choose_at(times_s)
  assert np.diff(run).tolist() == [1] * 7 and abs(np.mean([times_s[i] for i in run]) - 2.1) < 0.05
  outside = SamplingPlan(frame_count=4, spans_s=((90.0, 91.0),))
  assert outside.choose_at(times_s) == SamplingPlan(frame_count=4).choose_at(times_s)


def test_bytes_are_decoded_as_the_file_is(small_video, tmp_path):
  for path in (small_video, media_files.sound(tmp_path / "voice.flac")):
    ours, theirs = (
      decode_bytes(path.read_bytes(), plan=SamplingPlan(4)),
      decode_clip(path, plan=SamplingPlan(4)),
    )
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    np.testing.assert_array_equal(ours.waveform, theirs.waveform)
    assert ours.kind == theirs.kind
  with pytest.raises(MediaError):
    decode_bytes(b"nothing of the kind")


@pytest.mark.parametrize("name", ["small.mp4", "picture.jpg", "voice.flac"])
def test_child_process_gives_the_same_clip_as_this_process(folder, small_video, name):
  path = folder / name
  if name == "picture.jpg":
    media_files.picture(path, PICTURE)
  if name == "voice.flac":
    media_files.sound(path)
  here, there = decode_clip(path, trusted=True), decode_clip(path)
  for field in ("frames", "frame_times_s", "waveform"):
    np.testing.assert_array_equal(getattr(here, field), getattr(there, field))
  assert here.facts == there.facts
  assert json.loads(json.dumps(there.facts)) == there.facts
  assert (here.kind, here.warnings) == (there.kind, there.warnings)


def test_kept_and_reread_packets_give_the_same_clip(small_video, monkeypatch):
  kept = decode_clip(small_video, trusted=True)
  monkeypatch.setattr(media_decoder, "KEPT_PACKET_BYTES", 2000)
  np.testing.assert_array_equal(decode_clip(small_video, trusted=True).frames, kept.frames)


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_matrix_turns_the_frames_upright(folder, degrees, mirrored):
  path = media_files.rotated(folder / f"turned{degrees}{mirrored}.mp4", degrees=degrees, mirrored=mirrored)
  clip = decode_clip(path, trusted=True)
  with av.open(str(path)) as container:
    raw = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
  expected = np.rot90(raw, degrees // 90, axes=(1, 2))  # counter-clockwise, as the writer says
  expected = expected[:, :, ::-1] if mirrored else expected
  # Turning before the conversion to RGB meets the chroma samples in another order.
  assert clip.frames.shape == expected.shape
  assert np.abs(clip.frames.astype(int) - expected).mean() < 1.5
  assert clip.facts["rotation_degrees"] == (-degrees) % 360 or mirrored
  assert clip.facts["mirrored"] == mirrored


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_orientation_without_listable_side_data_falls_back_to_the_rotation(folder, degrees):
  path = media_files.rotated(folder / f"plain{degrees}.mp4", degrees=degrees)
  with av.open(str(path)) as container:
    frame = next(container.decode(video=0))

  class Unlistable:
    rotation = frame.rotation

    @property
    def side_data(self):
      raise ValueError("31 is not a valid Type")

  assert media_decoder._orientation(Unlistable()) == media_decoder._orientation(frame)


@pytest.mark.parametrize(
  ("color_space", "full_range"), [(1, False), (6, False), (1, True), (6, True), (None, False)]
)
@pytest.mark.parametrize("degrees", [0, 90])
def test_colours_follow_the_matrix_and_range_that_the_stream_names(folder, color_space, full_range, degrees):
  colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 200, 60]], np.uint8)
  frame = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, 0), 32, 1)
  path = folder / f"colour{color_space}{full_range}{degrees}.mp4"
  media_files.write_video(
    path,
    [frame] * 2,
    color_space=color_space,
    full_range=full_range,
    rotation_degrees=degrees,
    pixel_format="yuv444p",
    options={"crf": "1"},
  )
  clip = decode_clip(path, trusted=True)
  expected = np.rot90(frame, degrees // 90)
  assert np.abs(clip.frames[0].astype(int) - expected).max() <= 5


def test_frame_times_are_the_timestamps_of_the_file(folder):
  times = [0.0, 0.01, 0.5, 0.51, 0.52, 2.0, 2.5, 2.6]
  clip = decode_clip(media_files.variable_rate(folder / "times.mp4", times), trusted=True)
  np.testing.assert_allclose(clip.frame_times_s, times, atol=1e-4)
  assert clip.frame_times_s.dtype == np.float64


def test_clock_starts_with_the_first_frame_or_sound_whichever_is_first(folder):
  frames = media_files.numbered_frames(25)
  late_picture = folder / "late_picture.mkv"
  media_files.write_video(
    late_picture,
    frames,
    times_s=0.4 + np.arange(25) / 25,
    sound=media_files.tone(1.4),
    sound_codec="pcm_s16le",
  )
  clip = decode_clip(late_picture, trusted=True)
  np.testing.assert_allclose(clip.frame_times_s[0], 0.4, atol=2e-3)
  assert clip.waveform.size == pytest.approx(1.4 * 16_000, abs=2)
  shifted = decode_clip(media_files.with_audio(folder / "late.ts", start_s=30), trusted=True)
  assert shifted.frame_times_s[0] < 0.05
  assert shifted.facts["duration_s"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "m4a", "ogg"])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_sound_becomes_a_mono_waveform_at_16_khz(folder, suffix, layout):
  path = media_files.sound(folder / f"{layout}.{suffix}", layout=layout)
  clip = decode_clip(path, trusted=True)
  assert clip.kind == "audio"
  assert clip.frames.shape == (0, 0, 0, 3)
  assert clip.waveform.dtype == np.float32
  assert clip.waveform.size == pytest.approx(16_000, rel=0.03)
  middle = clip.waveform[4000:12_000]
  spectrum = np.abs(np.fft.rfft(middle))
  assert spectrum.argmax() * 16_000 / middle.size == pytest.approx(440, abs=2)
  assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)  # equal channels are averaged, not added


def test_sound_of_a_video_is_as_long_as_the_video(small_video):
  clip = decode_clip(small_video, trusted=True)
  assert clip.kind == "video"
  assert clip.waveform.size / clip.sample_rate_hz == pytest.approx(2.0, abs=0.03)


def test_gaps_in_the_sound_are_filled_with_silence(folder):
  path = folder / "gap.mkv"
  with av.open(str(path), "w") as container:
    track = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
    for start in (0, 32_000):  # one second of sound at 0 s and at 2 s
      for piece in range(16):
        samples = np.full((1, 1000), 8192, np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, start + piece * 1000
        container.mux(track.encode(frame))
    container.mux(track.encode())
  waveform = decode_clip(path, trusted=True).waveform
  assert waveform.size == pytest.approx(48_000, abs=200)
  assert np.abs(waveform[17_000:31_000]).max() == 0
  np.testing.assert_allclose(waveform[34_000:46_000], 0.25, atol=1e-3)


def test_sound_that_is_not_finite_or_too_loud_is_brought_into_range(folder):
  path = folder / "wild.wav"
  samples = np.array([[0.1, 3.0, -3.0, np.nan, np.inf] * 2000], np.float32)
  with av.open(str(path), "w") as container:
    track = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.sample_rate = 16_000
    container.mux(track.encode(frame))
    container.mux(track.encode())
  waveform = decode_clip(path, trusted=True).waveform
  assert waveform.size == 10_000
  assert np.abs(waveform).max() <= 1.0


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
def test_cover_art_does_not_make_a_sound_file_a_video(folder, suffix):
  path = media_files.sound(folder / f"cover.{suffix}", cover=PICTURE)
  with av.open(str(path)) as container:
    assert container.streams.video, "the file should hold a picture stream"
  assert decode_clip(path, trusted=True).kind == "audio"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_are_turned_as_their_exif_says(folder, suffix, orientation):
  settings = {"lossless": True} if suffix == "webp" else {}
  path = media_files.picture(
    folder / f"o{orientation}.{suffix}", PICTURE, orientation=orientation, **settings
  )
  clip = decode_clip(path, trusted=True)
  assert clip.kind == "image"
  assert clip.frames.shape == (1, *PICTURE.shape)
  assert np.abs(clip.frames[0].astype(int) - PICTURE).mean() < (8 if suffix == "jpg" else 1e-9)
  of_bytes = decode_image_bytes(path.read_bytes())
  np.testing.assert_array_equal(of_bytes.frames, clip.frames)
  assert (of_bytes.kind, of_bytes.facts, of_bytes.warnings) == (clip.kind, clip.facts, clip.warnings)


def test_picture_modes_become_plain_rgb(folder):
  grey = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
  Image.fromarray(grey).save(folder / "deep.png")
  deep = decode_clip(folder / "deep.png", trusted=True).frames[0]
  assert np.abs(deep[..., 0].astype(float) - grey / 257.0).max() <= 1.5
  clear = np.zeros((8, 8, 4), np.uint8)
  clear[:, :4] = (10, 20, 30, 255)
  Image.fromarray(clear).save(folder / "clear.png")
  shown = decode_clip(folder / "clear.png", trusted=True).frames[0]
  assert shown[0, 0].tolist() == [10, 20, 30]
  assert shown[0, 7].tolist() == [255, 255, 255]
  Image.fromarray(PICTURE).convert("CMYK").save(folder / "print.jpg")
  assert decode_clip(folder / "print.jpg", trusted=True).frames.shape == (1, *PICTURE.shape)
  Image.fromarray(PICTURE).convert("P").save(folder / "palette.png")
  assert decode_clip(folder / "palette.png", trusted=True).frames.shape == (1, *PICTURE.shape)


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_animated_picture_gives_its_first_frame_and_says_so(folder, suffix):
  frames = [Image.fromarray(frame) for frame in media_files.numbered_frames(5)[2:]]
  path = folder / f"animated.{suffix}"
  frames[0].save(path, save_all=True, append_images=frames[1:])
  clip = decode_clip(path, trusted=True)
  assert media_files.read_number(clip.frames[0]) == 2
  assert "animated" in clip.warnings[0]


@pytest.mark.parametrize(
  ("make", "shape"),
  [
    (media_files.no_audio, (32, 96, 160, 3)),
    (media_files.one_frame, (1, 96, 160, 3)),
    (media_files.odd_size, (10, 97, 163, 3)),
    (media_files.ten_bit, (10, 96, 160, 3)),
  ],
)
def test_plain_and_odd_videos_decode(folder, make, shape):
  clip = decode_clip(make(folder / f"{make.__name__}.mp4"), trusted=True)
  assert clip.frames.shape == shape
  assert clip.waveform.size == 0
  assert clip.warnings == ()
  numbers = [media_files.read_number(frame) for frame in clip.frames]
  assert numbers == SamplingPlan().choose(clip.facts["frame_count"])


def test_high_dynamic_range_is_reported(folder):
  options = {"x264-params": "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"}
  path = media_files.write_video(
    folder / "hlg.mp4", media_files.numbered_frames(3), pixel_format="yuv420p10le", options=options
  )
  clip = decode_clip(path, trusted=True)
  assert (clip.facts["color_transfer"], clip.facts["color_space"]) == ("hlg", "bt2020")
  assert "high dynamic range" in clip.warnings[0]


def test_truncated_video_keeps_what_decodes_and_says_so(folder):
  clip = decode_clip(media_files.truncated(folder / "cut.mp4"))
  assert 8 <= len(clip.frames) <= 32
  numbers = [media_files.read_number(frame) for frame in clip.frames]
  assert numbers == sorted(set(numbers))
  assert max(numbers) < 60
  assert any("cut off" in warning for warning in clip.warnings)


def test_damage_in_the_middle_leaves_the_rest(folder):
  path = media_files.no_audio(folder / "scratched.ts", count=100)
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 2000] = os.urandom(2000)
  path.write_bytes(data)
  clip = decode_clip(path)
  assert len(clip.frames) >= 16
  assert media_files.read_number(clip.frames[0]) <= 3


FAULTS = {
  "empty": (media_files.empty, "empty_file"),
  "text": (media_files.text, "not_media"),
  "no_index": (media_files.without_index, "unreadable"),
  "video_bomb": (media_files.video_bomb, "over_budget"),
  "png_bomb": (media_files.png_bomb, "over_budget"),
  "playlist": (lambda path: media_files.playlist(path, path.parent / "small.mp4"), "not_media"),
  "concat": (
    lambda path: path.write_text(f"ffconcat version 1.0\nfile {path.parent}/small.mp4\n"),
    "not_media",
  ),
  "pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n" + bytes(500)), "unsupported_type"),
  "heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(500)), "unsupported_type"),
  "missing": (lambda path: None, "missing_file"),
  "folder": (lambda path: path.mkdir(), "unsupported_type"),
  "pipe": (os.mkfifo, "unsupported_type"),
  "cut_png": (lambda path: path.write_bytes(_png()[:300]), "unreadable"),
  "cut_jpg": (lambda path: path.write_bytes(_jpg()[:500]), "unreadable"),
  "no_packets": (lambda path: path.write_bytes(_header_only(path)), "unreadable"),
}


def _png() -> bytes:
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  return _encoded(noise, "PNG")


def _jpg() -> bytes:
  return _encoded(PICTURE, "JPEG")


def _encoded(pixels, form) -> bytes:
  import io

  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, form)
  return stream.getvalue()


def _header_only(path) -> bytes:
  return media_files.no_audio(path.with_suffix(".mkv")).read_bytes()[:200]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_ends_in_one_sentence(folder, small_video, fault):
  make, reason = FAULTS[fault]
  path = folder / f"{fault}.mp4"
  make(path)
  with pytest.raises(MediaError) as caught:
    decode_clip(path)
  assert caught.value.reason == reason
  message = str(caught.value)
  assert message.endswith(".")
  assert "\n" not in message and ". " not in message
  assert str(folder) not in message
  assert not _children()


@pytest.mark.parametrize(
  ("limit", "trusted"),
  [
    ({"file_bytes": 100}, True),
    ({"frame_pixels": 1000}, True),
    ({"streams": 1}, True),
    ({"duration_s": 0.5}, True),
    ({"decoded_frames": 10}, True),
    ({"decoded_pixels": 100_000}, True),
    ({"output_bytes": 100_000}, True),
    ({"output_bytes": 100_000}, False),
    ({"decoded_pixels": 100_000}, False),
  ],
)
def test_every_budget_is_kept(small_video, limit, trusted):
  with pytest.raises(MediaError) as caught:
    decode_clip(small_video, budget=Budget(**limit), trusted=trusted)
  assert caught.value.reason == "over_budget"


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(("room", "runs", "length"), [(70, 3, 20), (50, 2, 20), (12, 1, 12)])
def test_of_large_pictures_fewer_runs_are_taken(folder, room, runs, length, trusted):
  path = folder / "runs.mp4"
  if not path.exists():
    media_files.with_audio(path, count=100)
  plan = SamplingPlan(60, window_frames=20, rate_hz=25.0)
  everything = decode_clip(path, plan=plan, trusted=True)
  frame_bytes = everything.frames[0].nbytes
  budget = Budget(output_bytes=room * frame_bytes + everything.waveform.nbytes + 3 * 4096)
  clip = decode_clip(path, plan=plan, budget=budget, trusted=trusted)
  np.testing.assert_array_equal(clip.waveform, everything.waveform)
  steps = np.diff([media_files.read_number(frame) for frame in clip.frames])
  assert len(clip.frames) == runs * length and (steps > 0).all() and (steps > 1).sum() == runs - 1
  if runs == 3:
    assert clip.warnings == () and len(everything.frames) == 60
  else:
    assert clip.warnings == (
      f"The pictures are so large that {len(clip.frames)} of 60 frames are looked at.",
    )


def test_wall_clock_limit_ends_the_child(small_video):
  with pytest.raises(MediaError) as caught:
    decode_clip(small_video, budget=Budget(wall_s=0.001))
  assert caught.value.reason == "timeout"
  assert not _children()


@pytest.mark.parametrize(
  ("command", "reason"),
  [
    ("import os; os.kill(os.getpid(), 11)", "decoder_crash"),
    ("raise SystemExit(3)", "decoder_crash"),
    ("import time; time.sleep(600)", "timeout"),
    ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 2))\nwhile True: pass", "timeout"),
    ("import sys\nwhile True: sys.stdout.write('x' * 9999)", "timeout"),
  ],
)
def test_whatever_the_child_does_ends_in_a_media_error(small_video, monkeypatch, command, reason):
  monkeypatch.setattr(media, "CHILD_COMMAND", command)
  with pytest.raises(MediaError) as caught:
    decode_clip(small_video, budget=Budget(wall_s=3))
  assert caught.value.reason == reason
  assert not _children()


def test_interrupting_the_call_leaves_no_child(small_video, monkeypatch):
  def interrupted(stream, *, seconds):
    # Where the call waits. A real signal may be lost to whatever Python runs just then in the test's process.
    assert _children()
    raise KeyboardInterrupt

  monkeypatch.setattr(media, "CHILD_COMMAND", "import time; time.sleep(600)")
  monkeypatch.setattr(media, "_read_answer", interrupted)
  with pytest.raises(KeyboardInterrupt):
    decode_clip(small_video)
  assert not _children()


def test_child_is_small_and_limited(small_video, monkeypatch, tmp_path):
  monkeypatch.setenv("SECRET_KEY", "not for the decoder")
  probe = f"""
import media_decoder as m, os, resource, socket, sys
def probe(file, region, **_):
  try:
    open({str(tmp_path / "written")!r}, "w").write("x" * 10000)
    wrote = os.path.getsize({str(tmp_path / "written")!r})
  except OSError:
    wrote = 0
  names = ("AS", "CPU", "FSIZE", "NOFILE", "CORE")
  facts = dict(
    wrote=wrote,
    limits=[resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names],
    heavy=[name for name in ("numpy", "jax", "deepscan_jax") if name in sys.modules],
    secret="SECRET_KEY" in os.environ,
  )
  return m._result("image", facts, [])
m.decode_file = probe
m.run_child()
"""
  monkeypatch.setattr(media, "CHILD_COMMAND", probe)
  facts = decode_clip(small_video).facts
  assert facts == {
    "wrote": 0,
    "limits": [Budget().address_space_bytes, Budget().cpu_s, 0, 64, 0],
    "heavy": [],
    "secret": False,
  }


@pytest.mark.parametrize(
  "answer",
  [
    "m._result('video', {}, [], width=9999, height=9999, times=[0.0] * 32)",
    "m._result('video', {}, [], width=-1, height=-1, times=[0.0])",
    "m._result('audio', {}, [], sample_count=-1)",
    "m._result('audio', {}, [], sample_count=4, waveform_at=-9)",
    "m._result('spell', {}, [])",
    "7",
  ],
)
def test_lies_of_a_hostile_child_are_refused(small_video, monkeypatch, answer):
  command = f"import media_decoder as m\nm.decode_file = lambda *_, **__: {answer}\nm.run_child()"
  monkeypatch.setattr(media, "CHILD_COMMAND", command)
  with pytest.raises(MediaError) as caught:
    decode_clip(small_video)
  assert caught.value.reason == "decoder_crash"


def test_several_files_decode_at_once(small_video):
  expected = decode_clip(small_video, trusted=True).frames
  with ThreadPoolExecutor(4) as pool:
    for clip in pool.map(decode_clip, [small_video] * 8):
      np.testing.assert_array_equal(clip.frames, expected)


def test_mutated_files_give_a_clip_or_a_media_error(folder, small_video):
  random = np.random.default_rng(0)
  for trial in range(12):
    data = bytearray(small_video.read_bytes())
    for place in random.integers(0, len(data), 30):
      data[place] ^= int(random.integers(1, 256))
    path = folder / f"mutated{trial}.mp4"
    path.write_bytes(data[: random.integers(len(data) // 2, len(data))])
    try:
      clip = decode_clip(path)
    except MediaError as error:
      assert error.reason != "decoder_crash"
    else:
      assert clip.kind in ("video", "audio")


def test_decode_image_bytes_refuses_what_is_no_picture():
  with pytest.raises(MediaError) as caught:
    decode_image_bytes(b"hello")
  assert caught.value.reason == "not_media"


def _children() -> list[str]:
  """Process ids of this process's children, dead ones that nobody waited for included."""
  found = []
  for task in Path("/proc/self/task").iterdir():
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
      found += (task / "children").read_text().split()
  # Stays for good once multiprocessing has started a process, as other tests do.
  return [child for child in found if child != str(resource_tracker._resource_tracker._pid)]
