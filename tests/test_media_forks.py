"""Decoders that are forked: the same clips, a process for each file, nothing that reaches another file."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import media_files
import numpy as np
import pytest
from waiting import wait_until

from deepscan_jax import media, media_forks
from deepscan_jax.media import Budget, DecoderForks, MediaError, SamplingPlan, decode_clip

pytestmark = pytest.mark.skipif(not DecoderForks.supported(), reason="Forked decoders need Linux.")
PLAN = SamplingPlan(frame_count=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  return (
    media_files.with_audio(folder / "a.mp4"),
    media_files.picture(folder / "b.jpg", media_files.numbered_frames(6)[5]),
    media_files.picture(folder / "c.png", media_files.numbered_frames(9)[8]),
    media_files.sound(folder / "d.wav"),
  )


@pytest.fixture(scope="module")
def forks():
  with DecoderForks() as made:
    yield made


def commanded(monkeypatch, command: str) -> DecoderForks:
  """Forks of a process that does something else first."""
  monkeypatch.setattr(
    media_forks,
    "SERVER_COMMAND",
    f"import media_decoder as m\n{command}\nfrom media_forks import serve; serve()",
  )
  return DecoderForks()


def children(process: int) -> list[str]:
  return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_a_fork_gives_the_same_clip_as_a_process_of_its_own(files, forks):
  for path in files:
    ours, alone = decode_clip(path, plan=PLAN, forks=forks), decode_clip(path, plan=PLAN)
    assert (ours.kind, ours.facts, ours.warnings) == (alone.kind, alone.facts, alone.warnings)
    for name in ("frames", "frame_times_s", "waveform"):
      np.testing.assert_array_equal(getattr(ours, name), getattr(alone, name))


def test_each_file_has_a_process_of_its_own_that_ends_with_it(files, monkeypatch):
  command = "m.decode_file = lambda *_, **__: m._result('image', {'process': __import__('os').getpid()}, [])"
  with commanded(monkeypatch, command) as forks:
    seen = {decode_clip(files[0], forks=forks).facts["process"] for _ in range(5)}
    assert len(seen) == 5 and forks._server.pid not in seen
    assert not children(forks._server.pid)
  assert forks._server is None


def test_many_files_decode_at_once(files, forks):
  expected = decode_clip(files[2], trusted=True).frames
  with ThreadPoolExecutor(8) as pool:
    for clip in pool.map(lambda path: decode_clip(path, forks=forks), [files[2]] * 24):
      np.testing.assert_array_equal(clip.frames, expected)


@pytest.mark.parametrize(
  ("command", "reason"),
  [
    (
      "m.decode_file = lambda *_, **__: __import__('os').kill(__import__('os').getpid(), 11)",
      "decoder_crash",
    ),
    ("m.decode_file = lambda *_, **__: 1 / 0", "decoder_crash"),
    ("m.decode_file = lambda *_, **__: __import__('time').sleep(600)", "timeout"),
    (
      "m.decode_file = lambda *_, **__: m._result('video', {}, [], width=9999, height=9999, times=[0.0] * 9)",
      "decoder_crash",
    ),
    ("m.decode_file = lambda *_, **__: 7", "decoder_crash"),
  ],
)
def test_whatever_a_fork_does_ends_in_a_media_error(files, monkeypatch, command, reason):
  with commanded(monkeypatch, command) as forks:
    with pytest.raises(MediaError) as caught:
      decode_clip(files[0], budget=Budget(wall_s=2), forks=forks)
    assert caught.value.reason == reason
    assert not children(forks._server.pid)


def test_a_fork_is_limited_and_holds_nothing_of_other_files(files, monkeypatch):
  monkeypatch.setenv("SECRET_KEY", "not for the decoder")
  probe = """
import os, resource, sys
def probe(file, region, **_):
  names = ("AS", "CPU", "FSIZE", "NOFILE", "CORE")
  opened = filter(os.path.lexists, ["/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")])
  return m._result("image", dict(
    limits=[resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names],
    heavy=[name for name in ("numpy", "jax", "deepscan_jax") if name in sys.modules],
    secret="SECRET_KEY" in os.environ,
    open=sorted({os.readlink(name).split(":[")[0] for name in opened}),
  ), [])
m.decode_file = probe
"""
  with commanded(monkeypatch, probe) as forks, ThreadPoolExecutor(8) as pool:
    for clip in pool.map(lambda path: decode_clip(path, forks=forks), [files[0]] * 16):
      assert clip.facts == {
        "limits": [Budget().address_space_bytes, Budget().cpu_s, 0, 64, 0],
        "heavy": [],
        "secret": False,
        # The memory, the file and the answer; no socket, and nothing of another file.
        "open": ["/dev/null", "/memfd:deepscan-frames (deleted)", str(files[0]), "pipe"],
      }


def test_a_fork_whose_asker_has_gone_is_killed(files, monkeypatch):
  with commanded(monkeypatch, "m.decode_file = lambda *_, **__: __import__('time').sleep(600)") as forks:
    with files[0].open("rb") as file, media._shared_memory(1 << 20) as region:
      order = {"plan": {}, "budget": {"output_bytes": 1 << 20}}
      fork = forks.begin(order, file.fileno(), region.fileno())
      assert len(children(forks._server.pid)) == 1
      fork._leave()
      fork.stdout.close()
    wait_until(lambda: not children(forks._server.pid))


def test_files_are_decoded_all_the_same_when_the_server_is_killed(files):
  with DecoderForks() as forks:
    first = forks._server.pid
    os.kill(first, signal.SIGKILL)
    assert decode_clip(files[1], forks=forks).kind == "image"
    assert decode_clip(files[1], forks=forks).kind == "image" and forks._server.pid != first


def test_a_fork_that_kills_the_server_harms_no_other_file(files, monkeypatch):
  command = "m.decode_file = lambda *_, **__: __import__('os').kill(__import__('os').getppid(), 9)"
  with commanded(monkeypatch, command) as forks, ThreadPoolExecutor(4) as pool:
    clips = list(pool.map(lambda path: decode_clip(path, plan=PLAN, forks=forks), files))
  # Each was decoded by a process of its own in the end, in which nothing is amiss.
  assert [clip.kind for clip in clips] == ["video", "image", "image", "audio"]


def test_nothing_is_left_behind(files):
  before = len(os.listdir("/proc/self/fd"))
  with DecoderForks() as forks:
    server = forks._server.pid
    for path in files:
      decode_clip(path, forks=forks)
  assert len(os.listdir("/proc/self/fd")) == before
  assert not Path(f"/proc/{server}").exists()
  # Closed forks are as good as none.
  assert decode_clip(files[1], forks=forks).kind == "image"
