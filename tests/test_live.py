"""Streams: a decoder without an end, windows, what is dropped, how it ends."""

import contextlib
import dataclasses
import functools
import http.server
import os
import socket
import threading
import time
from pathlib import Path

import media_files
import numpy as np
import psutil
import pytest
from rtsp_server import rtsp_server

from deepscan_jax import live, media
from deepscan_jax.verdict import LIKELY_AUTHENTIC, NOT_APPLICABLE, Person, Sighting, Thresholds, Verdict

THRESHOLDS = Thresholds(0.4, 0.7, 0.02)
WANTED = live.Wanted(rate_hz=2.0, sound=True)


def said_of(clip: media.Clip, *, people=()) -> Verdict:
  """A verdict that depends on every frame and sample."""
  pixels = float(clip.frames.mean() / 255) if len(clip.frames) else 0.0
  probability = (pixels + abs(float(clip.waveform.sum())) % 1) / 2
  return Verdict(
    outcome=LIKELY_AUTHENTIC,
    deepfake_probability=probability,
    frame_consistency_score=None,
    reasons=(),
    branches={},
    people=people,
    thresholds=THRESHOLDS,
    model={},
    file={},
    timings={},
  )


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
  return media_files.with_audio(tmp_path_factory.mktemp("live") / "film.mp4", count=150)


def watch(
  source: live.Source, judge=said_of, *, wanted=WANTED, pace=False, limits=None, **settings
) -> live.Live:
  settings = {"window_s": 2.0, **settings}
  return live.Live(
    lambda: live.Stream(source, wanted=wanted, pace=pace, **limits or {}), judge, wanted=wanted, **settings
  )


def children() -> set[int]:
  return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_files_windows_are_judged_as_they_would_be_offline(film):
  before = children()
  with watch(live.parse_source(str(film)), lossless=True) as watched:
    windows = list(watched.windows())
  assert [w.number for w in windows] == [0, 1, 2] and watched.end.reason == "ended"
  assert watched.counts.frames_seen == 150 and watched.counts.frames_scored == 12
  assert watched.counts.frames_dropped == watched.counts.windows_dropped == 0
  whole = media.decode_clip(film, plan=media.SamplingPlan(frame_count=150))
  for window in windows:
    middles = window.start_s + 0.25 + 0.5 * np.arange(4)
    chosen = [int(np.abs(whole.frame_times_s - m - 1e-6).argmin()) for m in middles]
    begin, end = (round(s * media.SAMPLE_RATE_HZ) for s in (window.start_s, window.end_s))
    offline = said_of(
      media.Clip(
        kind="video",
        frames=whole.frames[chosen],
        frame_times_s=whole.frame_times_s[chosen] - window.start_s,
        waveform=whole.waveform[begin:end],
        sample_rate_hz=media.SAMPLE_RATE_HZ,
        facts={},
        warnings=(),
      )
    )
    assert window.probability == pytest.approx(offline.deepfake_probability, abs=1e-5)
  assert children() == before


def test_a_file_is_played_at_its_own_pace(film):
  started, ends = time.monotonic(), []
  with watch(live.parse_source(str(film)), pace=True, duration_s=2.0) as watched:
    for window in watched.windows():
      ends.append(time.monotonic() - started)
      assert window.delay_s < 1.0
  assert ends[0] > 1.7 and watched.end == live.End("ended", "2 s are over.")


def test_sound_alone_is_cut_into_windows_too(tmp_path):
  path = media_files.sound(tmp_path / "tone.wav", media_files.tone(3.0))
  clips = []
  with watch(live.parse_source(str(path)), lambda c: clips.append(c) or said_of(c), lossless=True) as watched:
    list(watched.windows())
  assert [clip.kind for clip in clips] == ["audio"] * 2
  heard = np.concatenate([clip.waveform for clip in clips])
  assert heard == pytest.approx(media.decode_clip(path).waveform, abs=1e-6)


class Records:
  """In place of a Stream: gives the records that it was made of; `pause_s` between two of them."""

  def __init__(self, records, *, pause_s: float = 0.0):
    self._records, self._pause_s = records, pause_s
    self.closed = self.stopped = False

  def records(self):
    for record in self._records:
      if self.stopped:
        return
      time.sleep(self._pause_s)
      yield record

  def stop(self):
    self.stopped = True

  def close(self):
    self.closed = True


def picture(value: int) -> np.ndarray:
  return np.full((4, 6, 3), value % 256, np.uint8)


def film_of(seconds: int, *, step_s: float = 0.5, end=("ended", "Over.")):
  for i in range(round(seconds / step_s)):
    time_s = i * step_s
    yield live._Frame(time_s, picture(i))
    yield live._Progress(time_s + step_s, None, i + 1, 0)
  if end:
    yield live.End(*end)


VIDEO = live.Wanted(rate_hz=2.0, sound=False)


def test_a_slow_model_drops_the_oldest_and_is_never_far_behind():
  """Sixty seconds of a stream come in 1.2 s, and a window takes 0.1 s: some thirty of sixty pass by."""
  stream = Records(film_of(60), pause_s=0.005)
  held, took = [], []

  def judge(clip):
    started = time.monotonic()
    time.sleep(0.1)
    held.append(len(watched._waiting) + len(watched._cutter._open))
    said = said_of(clip)
    took.append(time.monotonic() - started)
    return said

  watched = live.Live(lambda: stream, judge, wanted=VIDEO, window_s=1.0, max_delay_s=0.25, waiting=2)
  with watched:
    windows = list(watched.windows())
  counts = watched.counts
  assert counts.frames_seen == 120
  assert counts.windows_scored + counts.windows_dropped == 60
  assert counts.frames_scored + counts.frames_dropped == 120
  assert counts.windows_dropped >= 20 and len(windows) == len(took) >= 5
  assert max(held) <= 2 + live.MOST_OPEN
  assert counts.longest_delay_s <= 0.25 + 2 * max(took) + 0.1
  assert [w.number for w in windows] == sorted({w.number for w in windows})
  # The newest is what is told, not what came first.
  assert windows[-1].number == 59 and stream.closed


def test_nothing_is_dropped_where_the_stream_can_wait():
  def judge(clip):
    time.sleep(0.01)
    return said_of(clip)

  with live.Live(lambda: Records(film_of(30)), judge, wanted=VIDEO, window_s=1.0, lossless=True) as watched:
    assert [w.number for w in watched.windows()] == list(range(30))
  assert watched.counts.windows_dropped == 0


def test_memory_does_not_grow_with_the_stream():
  process, sizes = psutil.Process(), []

  def endless():
    for i in range(800):
      yield live._Frame(i * 0.5, np.full((200, 300, 3), i % 256, np.uint8))  # 180 kB each, 144 MB in all
      yield live._Progress(i * 0.5 + 0.5, None, i + 1, 0)
    yield live.End("ended", "Over.")

  with live.Live(lambda: Records(endless()), said_of, wanted=VIDEO, window_s=1.0, lossless=True) as watched:
    for window in watched.windows():
      if window.number % 40 == 39:
        sizes.append(process.memory_info().rss)
  assert len(sizes) == 10 and max(sizes[2:]) - sizes[1] < 40e6


def test_errors_that_pass_cost_one_window():
  seen = []

  def judge(clip):
    seen.append(clip)
    if len(seen) == 2:
      raise TimeoutError
    return said_of(clip)

  stream = Records(film_of(4))
  with live.Live(
    lambda: stream, judge, wanted=VIDEO, window_s=1.0, lossless=True, passing=(TimeoutError,)
  ) as watched:
    assert [w.number for w in watched.windows()] == [0, 2, 3]
  assert watched.counts.windows_dropped == 1 and watched.counts.frames_dropped == 2


@pytest.mark.parametrize("back", [True, False])
def test_a_stream_that_breaks_off_is_tried_again_with_limits(monkeypatch, back):
  monkeypatch.setattr(live, "_LONGEST_PAUSE_S", 0.02)
  broken, gone = ("broken", "The stream broke off."), Records([live.End("unreachable", "Not there.")])
  streams = [Records(film_of(3, end=broken)), gone]
  streams += [Records(film_of(3))] if back else [Records([live.End("unreachable", "No.")]) for _ in range(9)]
  opened = iter(streams)
  with live.Live(
    lambda: next(opened),
    said_of,
    wanted=VIDEO,
    window_s=1.0,
    reconnects=3,
    comes_back=True,
    lossless=True,
  ) as watched:
    windows = list(watched.windows())
  starts = [w.start_s for w in windows]
  assert starts == sorted(set(starts)) and starts[:3] == [0, 1, 2]
  if back:
    assert watched.end.reason == "ended" and watched.counts.reconnections == 1
    assert len(windows) == 6 and watched.counts.frames_seen == 12 and starts[3] >= 3
  else:
    assert watched.end == live.End(
      "broken", "The stream broke off after 3 s and was not there again in 3 attempts."
    )
    assert len(windows) == 3
  assert all(stream.closed for stream in streams[:3])


def test_what_was_never_there_is_told_at_once():
  source = live.parse_source("http://user:secret@127.0.0.1:9/live?token=1")
  assert source.name == "http://127.0.0.1:9/live"
  with watch(source, reconnects=5, comes_back=source.comes_back) as watched:
    assert list(watched.windows()) == []
  assert watched.end.reason == "unreachable" and "cannot be reached" in watched.end.message
  assert "secret" not in watched.end.message
  with watch(live.parse_source("http://no-such-host.invalid/live")) as watched:
    assert list(watched.windows()) == [] and "no such host" in watched.end.message


@pytest.mark.parametrize(
  ("text", "error", "words"),
  [
    ("ftp://host/file", ValueError, "rtsp://"),
    ("file:///etc/passwd", ValueError, "rtsp://"),
    ("concat://a|b", ValueError, "rtsp://"),
    ("rtsp://", ValueError, "names a host"),
    ("/dev/video99", media.MediaError, "no camera"),
    ("99", media.MediaError, "no camera"),
    ("nothing.mp4", media.MediaError, "no file nothing.mp4"),
    ("/dev", media.MediaError, "no regular file"),
  ],
)
def test_a_wrong_source_is_one_sentence(text, error, words):
  with pytest.raises(error, match=words) as raised:
    live.parse_source(text)
  assert str(raised.value).endswith(".") or "got" in str(raised.value)


def test_a_playlist_opens_nothing(tmp_path):
  """It names another file, which must not be read."""
  path = tmp_path / "list.m3u8"
  path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfilm.ts\n#EXT-X-ENDLIST\n")
  with watch(live.parse_source(str(path))) as watched:
    assert list(watched.windows()) == [] and watched.end.reason == "not_media"


def test_a_file_that_is_cut_off_gives_what_it_has(film, tmp_path):
  path = media_files.with_audio(tmp_path / "cut.ts", count=75)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  with watch(live.parse_source(str(path)), lossless=True) as watched:
    assert len(list(watched.windows())) >= 1
  assert watched.end.reason in ("ended", "damaged")


def test_a_large_picture_is_made_smaller_and_a_larger_one_refused(film):
  small = live.Wanted(rate_hz=2.0, sound=False, longest_side=80)
  clips = []
  with watch(
    live.parse_source(str(film)), lambda c: clips.append(c) or said_of(c), wanted=small, lossless=True
  ) as watched:
    list(watched.windows())
  assert clips[0].frames.shape == (4, 48, 80, 3)
  tiny = live.Wanted(rate_hz=2.0, sound=False, frame_pixels=1000)
  with watch(live.parse_source(str(film)), wanted=tiny) as watched:
    assert list(watched.windows()) == [] and watched.end.reason == "over_budget"


def test_stopping_ends_the_child_at_once(film):
  before = children()
  watched = watch(live.parse_source(str(film)), pace=True)
  windows = watched.windows()
  threading.Timer(0.5, watched.stop).start()
  started = time.monotonic()
  assert list(windows) == [] and time.monotonic() - started < 2
  watched.close()
  assert watched.end.reason == "stopped" and children() == before


def test_a_decoder_that_lies_is_found_out():
  """Whatever a child that was taken over may write, it is an end and no crash."""
  head = live.RECORD
  lies = [
    b"",
    b"garbage that is no record",
    head.pack(b"F", 1 << 31),
    head.pack(b"Z", 0),
    head.pack(b"F", live.FRAME.size + 3) + live.FRAME.pack(1.0, 2, 2) + b"\0" * 3,
    head.pack(b"F", live.FRAME.size + 3) + live.FRAME.pack(float("nan"), 1, 1) + b"\0" * 3,
    head.pack(b"F", live.FRAME.size + 3) + live.FRAME.pack(1e300, 1, 1) + b"\0" * 3,
    head.pack(b"P", live.PROGRESS.size) + live.PROGRESS.pack(float("inf"), 0.0, 1, 1),
    head.pack(b"E", 2) + b"[]",
    head.pack(b"E", 4) + b"\xff\xff\xff\xff",
    head.pack(b"S", live.SOUND.size + 3) + live.SOUND.pack(0.0) + b"\0" * 3,
  ]
  for lie in lies:
    stream = object.__new__(live.Stream)
    to_read, to_write = os.pipe()
    os.write(to_write, lie)
    os.close(to_write)
    stream.wanted, stream._pipe, stream._begun = WANTED, to_read, False
    stream._open_s = stream._stall_s = 5.0
    stream._child = _Ended()
    (*_, end) = stream.records()
    assert end.reason == "decoder_crash", lie
    os.close(to_read)


class _Ended:
  def wait(self, timeout=None):
    return 0


def test_a_child_that_says_nothing_is_given_up():
  to_read, to_write = os.pipe()
  source = live.Source("pipe", "", "a pipe", to_read)
  try:
    with watch(source, limits={"open_s": 0.5}) as watched:
      assert list(watched.windows()) == []
    assert watched.end == live.End("unreachable", "For 0.5 s it did not begin.")
  finally:
    os.close(to_read)
    os.close(to_write)


def test_jumps_of_time_cost_nothing():
  """Ten years are no ten years of windows."""
  records = [
    *film_of(2, end=None),
    live._Frame(3e8, picture(1)),
    live._Progress(3e8 + 1, None, 5, 0),
    live.End("ended", "Over."),
  ]
  started = time.monotonic()
  with live.Live(lambda: Records(records), said_of, wanted=VIDEO, window_s=1.0, lossless=True) as watched:
    assert [w.start_s for w in watched.windows()] == [0.0, 1.0, 3e8]
  assert time.monotonic() - started < 2


def person(number: int, box) -> Person:
  return Person(number, 0.5, (Sighting(0.1, box, 0.5), Sighting(0.9, box, 0.5)), {})


def test_people_keep_their_ids_from_window_to_window():
  left, right = (10.0, 10.0, 50.0, 50.0), (110.0, 10.0, 150.0, 50.0)
  # They are numbered anew in each window, the most suspicious first; then one leaves, and one comes.
  seen = [(left, right), (right, left), (left,), (left, right)]
  verdicts = iter(seen)

  def judge(clip):
    boxes = next(verdicts)
    return said_of(clip, people=tuple(person(i, box) for i, box in enumerate(boxes, start=1)))

  def frames():
    for i in range(8):
      yield live._Frame(i * 0.5, np.full((60, 160, 3), 90, np.uint8))
      yield live._Progress(i * 0.5 + 0.5, None, i, 0)
    yield live.End("ended", "Over.")

  with live.Live(lambda: Records(frames()), judge, wanted=VIDEO, window_s=1.0, lossless=True) as watched:
    ids = [[p.id for p in w.people] for w in watched.windows()]
  assert ids == [[1, 2], [2, 1], [1], [1, 3]]


def test_a_window_without_anything_to_judge_leaves_the_decision_as_it_was():
  def nothing(clip):
    return dataclasses.replace(
      said_of(clip), outcome=NOT_APPLICABLE, deepfake_probability=None, decided_by=None
    )

  with live.Live(lambda: Records(film_of(3)), nothing, wanted=VIDEO, window_s=1.0, lossless=True) as watched:
    for window in watched.windows():
      told = window.to_dict()
      assert told["deepfake_probability"] is None and told["decision"]["windows"] == 0


def test_an_orphaned_decoder_ends(film):
  """Whoever watched is killed: its child does not go on."""
  to_read, to_write = os.pipe()
  pid = os.fork()
  if not pid:
    with contextlib.suppress(BaseException):
      stream = live.Stream(live.parse_source(str(film)), wanted=WANTED, pace=True)
      os.write(to_write, str(stream.process_id).encode())
      time.sleep(60)
    os._exit(0)
  child = psutil.Process(int(os.read(to_read, 20)))
  os.kill(pid, 9)
  os.waitpid(pid, 0)
  child.wait(10)
  os.close(to_read)
  os.close(to_write)


def test_rtsp_is_watched_and_reached_again(tmp_path, monkeypatch):
  monkeypatch.setattr(live, "_LONGEST_PAUSE_S", 0.05)
  film = media_files.with_audio(tmp_path / "film.ts", count=75).read_bytes()
  with rtsp_server(film, bytes_per_s=len(film), plays=2) as address:
    source = live.parse_source(address)
    with watch(
      source,
      window_s=1.0,
      reconnects=2,
      comes_back=source.comes_back,
      may_end=source.may_end,
      max_delay_s=30.0,
      waiting=10,
    ) as watched:
      windows = list(watched.windows())
  # Played twice; then nobody answers any more.
  assert watched.counts.reconnections == 1 and len(windows) >= 4
  assert 140 <= watched.counts.frames_seen <= 150
  assert watched.end.reason == "broken" and "was not there again in 2 attempts" in watched.end.message


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


def test_http_and_udp_are_watched(tmp_path):
  film = media_files.no_audio(tmp_path / "film.ts", count=75)
  handler = functools.partial(_Quiet, directory=str(tmp_path))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = live.parse_source(f"http://127.0.0.1:{server.server_port}/film.ts")
    with watch(source, window_s=1.0, lossless=True, may_end=source.may_end) as watched:
      assert len(list(watched.windows())) == 3
    missing = live.parse_source(f"http://127.0.0.1:{server.server_port}/nothing.ts")
    with watch(missing) as none:
      assert not list(none.windows()) and none.end.reason == "unreachable"
    server.shutdown()
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  ended = threading.Event()

  def play():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
      data, size = film.read_bytes(), 188 * 7
      while not ended.is_set():
        for start in range(0, len(data), size):
          line.sendto(data[start : start + size], ("127.0.0.1", port))
          time.sleep(0.002)

  sender = threading.Thread(target=play)
  sender.start()
  try:
    with watch(
      live.parse_source(f"udp://127.0.0.1:{port}"), window_s=1.0, waiting=9, duration_s=3.0
    ) as watched:
      assert len(list(watched.windows())) >= 2
    assert watched.end.reason == "ended"
  finally:
    ended.set()
    sender.join()
