"""The engine: verdicts as the Detector gives them, whoever asks beside; versions, reloads, a full queue."""

import ctypes
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import face_media
import jax
import media_files
import numpy as np
import psutil
import pytest
import voices
from tiny import CALIBRATION, tiny_branch, tiny_config, write_model
from waiting import wait_until

from deepscan_jax import checkpoints, inference, live, media
from deepscan_jax.config import override
from deepscan_jax.serve import engine as engines
from deepscan_jax.serve.batching import Batcher
from deepscan_jax.serve.engine import Busy, Engine, UnknownModel


@pytest.fixture(autouse=True, scope="module")
def tiny():
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model that judges faces, and sound by itself."""
  config = override(tiny_config(), 'model.branches=["tiny", "tiny_voice"]')
  config = override(config, "data.window.samples=32000")
  return write_model(tmp_path_factory.mktemp("model") / "best", config=config, sound_calibration=CALIBRATION)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  made = tmp_path_factory.mktemp("files")
  media_files.picture(made / "one.png", face_media.portrait(shift=(5, 0)))
  media_files.picture(made / "two.png", face_media.two_people(side=200))
  # Nine views of it are searched.
  media_files.picture(made / "large.jpg", np.tile(face_media.portrait(side=540), (2, 4, 1))[:, :1920])
  media_files.picture(made / "nobody.png", face_media.no_face())
  media_files.write_video(made / "pan.mp4", face_media.moving_portrait(10))
  media_files.sound(made / "voice.wav", voices.speech(seconds=2.5, seed=3), sample_rate_hz=voices.RATE_HZ)
  media_files.text(made / "letter.jpg")
  return {path.name: path for path in sorted(made.iterdir())}


def started(*folders, max_batch=2, **settings):
  engine = Engine(folders, max_batch=max_batch, **settings)
  engine.start()
  assert engine.wait_until_loaded(300), engine.problem
  return engine


@pytest.fixture(scope="module")
def engine(folder):
  made = started(folder, max_batch=8)
  yield made
  made.close(drain_s=10)


def said(verdict) -> dict:
  return {key: value for key, value in verdict.to_dict().items() if key not in ("timings", "run")}


def numbers(value) -> list[float]:
  if isinstance(value, dict | list):
    return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers(v)]
  return [value] if isinstance(value, float) else []


def places(person) -> list:
  return [sighting["box"] for sighting in person["boxes"]]


def relabelled(folder, version):
  """The same parameters as another version."""
  model = json.loads((folder / "model.json").read_text())
  checkpoints.write_model_json(folder, {**model, "version": version})
  return folder


@pytest.fixture
def held(monkeypatch):
  """Requests that have been decoded stay where they are until this event is set."""
  go, detect = threading.Event(), inference.Detector.detect

  def detect_later(self, *args, **kwargs):
    assert go.wait(60)
    return detect(self, *args, **kwargs)

  monkeypatch.setattr(inference.Detector, "detect", detect_later)
  yield go
  go.set()


def test_what_it_says_is_what_the_detector_says_however_many_ask(engine, folder, files):
  detector = inference.load_detector(folder)
  names = [name for name in files if name != "letter.jpg"]
  expected = {name: said(detector.detect(files[name], frames=4)) for name in names}
  asked = names * 4

  def ask(name):
    if name == "letter.jpg":
      with pytest.raises(media.MediaError):
        engine.detect(files[name])
      return None
    return said(engine.detect(files[name], frames=4))

  before = engine.stats()
  with ThreadPoolExecutor(16) as pool:
    bad = [pool.submit(ask, "letter.jpg") for _ in range(4)]
    answers = list(pool.map(ask, asked))
    assert [b.result() for b in bad] == [None] * 4
  for name, answer in zip(asked, answers, strict=True):
    first, other = json.dumps(answer), json.dumps(expected[name])
    np.testing.assert_allclose(numbers(answer), numbers(expected[name]), atol=1e-5, err_msg=name)
    assert answer["outcome"] == expected[name]["outcome"] and len(first) == pytest.approx(
      len(other), rel=0.02
    )
    # Both look for faces in the same batches: where they are is the same to the last bit.
    assert [places(person) for person in answer["people"]] == [places(p) for p in expected[name]["people"]]
    if answer["deepfake_probability"] is not None:
      assert answer["deepfake_probability"] == pytest.approx(expected[name]["deepfake_probability"], abs=1e-5)
  # The company makes no difference at all to what is not rounded away.
  for name in names:
    probabilities = [a["deepfake_probability"] for n, a in zip(asked, answers, strict=True) if n == name]
    assert probabilities == [engine.detect(files[name], frames=4).to_dict()["deepfake_probability"]] * 4
  stats = engine.stats()
  assert stats["detections"] - before["detections"] == len(asked) + len(names)
  assert stats["refused_files"] - before["refused_files"] == 4 and stats["defects"] == 0
  assert stats["in_flight"] == stats["held_bytes"] == stats["decoding"] == stats["waiting_rows"] == 0
  assert stats["rows"] > len(asked) and stats["seconds"]["faces_s"] > 0


def test_windows_of_streams_are_judged_beside_files(engine, folder, files):
  detector = inference.load_detector(folder)
  wanted = engine.wanted(window_s=0.2, frames=2, longest_side=320)
  assert wanted == live.wanted_of(detector, window_s=0.2, frames=2, longest_side=320)
  assert wanted.sound and wanted.rate_hz == 10.0
  before = engine.stats()["live_windows"]
  clips = []

  def judge(clip):
    clips.append(clip)
    return engine.detect_clip(clip)

  source = live.parse_source(str(files["pan.mp4"]))
  with ThreadPoolExecutor(2) as pool:
    others = [pool.submit(engine.detect, files["one.png"]) for _ in range(6)]
    with live.Live(
      lambda: live.Stream(source, wanted=wanted), judge, wanted=wanted, window_s=0.2, lossless=True
    ) as watched:
      windows = list(watched.windows())
  assert [other.result().outcome for other in others] and len(windows) == len(clips) == 2
  assert engine.stats()["live_windows"] == before + 2
  for window, clip in zip(windows, clips, strict=True):
    assert window.people and window.decided_by == "faces"
    assert window.probability == pytest.approx(detector.detect_clip(clip).deepfake_probability, abs=1e-5)
  with pytest.raises(UnknownModel):
    engine.detect_clip(clips[0], model="other")


def test_nothing_is_compiled_for_a_request(engine, files):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
  )
  jax.jit(lambda x: x * 41.5 + 1).lower(np.float32(3)).compile()
  assert compiled  # the listener hears of it
  compiled.clear()
  for name, path in files.items():
    if name != "letter.jpg":
      for frames in (1, 3, 8):
        engine.detect(path, frames=frames)
  assert not compiled


def test_it_is_not_ready_before_everything_is_compiled(folder, files, monkeypatch):
  go, compile_all = threading.Event(), engines.ServedDetector.compile
  monkeypatch.setattr(engines.ServedDetector, "compile", lambda self: (go.wait(60), compile_all(self))[1])
  engine = Engine([folder], max_batch=2)
  assert not engine.ready and engine.problem is None
  engine.start()
  try:
    with pytest.raises(Busy) as caught:
      engine.detect(files["one.png"])
    assert caught.value.retry_after_s == 5 and not engine.ready and engine.models == []
    go.set()
    assert engine.wait_until_loaded(300)
    assert engine.detect(files["one.png"]).deepfake_probability is not None
  finally:
    go.set()
    engine.close()
  assert not engine.ready
  with pytest.raises(Busy):
    engine.detect(files["one.png"])


def test_a_model_that_is_missing_is_a_problem_in_a_sentence(tmp_path):
  engine = Engine([tmp_path / "nothing"])
  engine.start()
  assert not engine.wait_until_loaded(60)
  assert str(tmp_path / "nothing") in engine.problem
  engine.close()


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"queue_limit": 0}, {"decodings": -1}, {"folders": ()}])
def test_wrong_numbers_are_refused(wrong):
  with pytest.raises(ValueError, match=r"1 or more|at least one"):
    Engine(**{"folders": [None], **wrong})


def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(folder, files, held):
  engine = started(folder, queue_limit=3)
  with ThreadPoolExecutor(3) as pool:
    calls = [pool.submit(engine.detect, files["one.png"]) for _ in range(3)]
    wait_until(lambda: engine.stats()["in_flight"] == 3)
    for refused in (engine.check_room, lambda: engine.detect(files["one.png"])):
      with pytest.raises(Busy) as caught:
        refused()
      assert 1 <= caught.value.retry_after_s <= 60
    held.set()
    assert all(call.result().deepfake_probability is not None for call in calls)
  engine.check_room()
  assert engine.stats()["refused_busy"] == 2
  engine.close()


def test_versions_stand_side_by_side(folder, files, tmp_path):
  config = tiny_config()
  other = relabelled(write_model(tmp_path / "other", config=config), "9.9.9")
  engine = started(folder, other)
  first, second = engine.models
  assert (first.default, second.default, second.version, second.folder) == (True, False, "9.9.9", other)
  assert (
    first.inputs == ("crops", "crop_mask", "waveform", "waveform_mask") and second.inputs == first.inputs[:2]
  )
  one = files["one.png"]
  assert engine.detect(one).model == {k: getattr(first, k) for k in ("name", "version", "sha256")}
  for asked in (f"{second.name}@9.9.9", second.sha256[:8]):
    if asked != first.sha256[:8]:
      verdict = engine.detect(one, model=asked)
      assert verdict.model["version"] == "9.9.9"
      alone = inference.load_detector(other).detect(one)
      assert verdict.deepfake_probability == pytest.approx(alone.deepfake_probability, abs=1e-5)
  with pytest.raises(UnknownModel, match=r"9\.9\.9"):
    engine.detect(one, model="unknown")
  with pytest.raises(UnknownModel):
    engine.detect(one, model="")
  engine.close()


def test_a_reload_loses_no_request_and_old_ones_end_on_the_old_model(files, tmp_path, held):
  folder = relabelled(write_model(tmp_path / "best"), "1.0.0")
  engine = started(folder)
  with ThreadPoolExecutor(4) as pool:
    old = [pool.submit(engine.detect, files["one.png"]) for _ in range(2)]
    wait_until(lambda: engine.stats()["in_flight"] == 2)
    relabelled(folder, "2.0.0")
    engine.reload()
    assert engine.wait_until_loaded(300) and engine.models[0].version == "2.0.0"
    new = [pool.submit(engine.detect, files["one.png"]) for _ in range(2)]
    wait_until(lambda: engine.stats()["in_flight"] == 4)
    held.set()
    assert [call.result().model["version"] for call in old + new] == ["1.0.0"] * 2 + ["2.0.0"] * 2
  assert engine.stats()["reloads"] == 1
  engine.close()


def test_a_reload_that_fails_leaves_everything_as_it_was(files, tmp_path):
  folder = relabelled(write_model(tmp_path / "best"), "1.0.0")
  engine = started(folder)
  kept = engine._served[0].detector
  engine.reload()
  assert engine.wait_until_loaded(60) and engine._served[0].detector is kept  # nothing has changed
  (folder / "model.json").write_text("{}")
  engine.reload()
  assert engine.wait_until_loaded(60) and "damaged" in engine.problem
  assert engine.detect(files["one.png"]).model["version"] == "1.0.0"
  write_model(folder)
  engine.reload()
  assert engine.wait_until_loaded(300) and engine.problem is None
  engine.close()


def test_closing_lets_requests_end(folder, files, held):
  engine = started(folder)
  with ThreadPoolExecutor(2) as pool:
    call = pool.submit(engine.detect, files["one.png"])
    wait_until(lambda: engine.stats()["in_flight"] == 1)
    closing = pool.submit(engine.close, drain_s=60)
    wait_until(lambda: not engine.ready)
    with pytest.raises(Busy):
      engine.detect(files["one.png"])
    held.set()
    assert call.result().deepfake_probability is not None
    closing.result(60)


def test_the_gate_keeps_a_place_for_pictures_and_a_limit_on_memory():
  gate = engines._Gate(at_once=2, held_bytes=100)
  with ThreadPoolExecutor(8) as pool:
    ends = {name: threading.Event() for name in ("film", "second", "picture")}
    begun = []

    def decode(name, picture, size):
      with gate.decoding(picture=picture) as hold:
        begun.append(name)
        hold(size)  # decoded at once, what it holds stays
        assert ends[name].wait(30)

    film = pool.submit(decode, "film", False, 150)
    wait_until(lambda: begun == ["film"])
    second = pool.submit(decode, "second", False, 10)
    picture = pool.submit(decode, "picture", True, 10)
    wait_until(lambda: "picture" in begun)
    assert begun == ["film", "picture"] and gate.stats() == {"decoding": 0, "held_bytes": 160}
    for name in ("film", "second", "picture"):
      ends[name].set()
    for call in (film, second, picture):
      call.result(30)
  assert gate.stats() == {"decoding": 0, "held_bytes": 0}
  with gate.decoding(picture=False), ThreadPoolExecutor(1) as pool:
    assert not gate._has_room(False)  # the last place is for a picture
    place = gate.decoding(picture=True)
    pool.submit(place.__enter__).result(30)
    assert gate.stats()["decoding"] == 2 and not gate._has_room(True)
    place.__exit__(None, None, None)


def test_the_model_of_the_package_gives_a_crop_the_same_score_in_any_company():
  batcher = Batcher(threads=1)
  detector = engines.ServedDetector(inference.DEFAULT_MODEL, batcher=batcher, face_networks={}, max_batch=4)
  detector.compile()
  network = detector._networks[detector.face_inputs]
  rng = np.random.default_rng(0)
  coarse = rng.uniform(0, 255, (5, 1, 14, 14, 3)).repeat(16, axis=2).repeat(16, axis=3)
  crops = np.clip(coarse + rng.normal(size=coarse.shape) * 20, 0, 255).astype(np.uint8)
  crops[0, 0] = face_media.portrait(side=224)
  rows = {"crops": crops, "crop_mask": np.ones((5, 1), bool)}
  calibration = detector.calibration

  def scores(size, order):
    network.costs = {s: 0.1 if s == size else 9.0 for s in network.sizes}
    ran = batcher.stats()["batches"].get(f"{network.name} {size}", 0)
    judged = detector.judge({key: x[order] for key, x in rows.items()})
    assert batcher.stats()["batches"][f"{network.name} {size}"] > ran
    return calibration.probability(judged.logits)

  alone = scores(1, np.arange(5))
  for size in network.sizes:
    order = rng.permutation(5)
    np.testing.assert_allclose(scores(size, order), alone[order], atol=1e-5)
  assert network.sizes == (1, 2, 4) and np.ptp(alone) > 1e-3
  batcher.close()


def test_memory_is_given_back_from_time_to_time(monkeypatch):
  now, given = [100.0], []
  monkeypatch.setattr(engines.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(engines, "_give_memory_back", lambda: given.append(now[0]))
  engine = Engine([None])
  engine.ready = True
  for now[0] in (101.0, 129.0, 131.0, 132.0, 160.0, 170.0):
    with engine._admitted():
      pass
  assert given == [131.0, 170.0]
  engine.ready = False
  engine._batcher.close()


def test_memory_that_was_freed_goes_back_to_the_system():
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "malloc_trim"):
    pytest.skip("This C library does not keep what is freed.")
  libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  size, process = 60_000, psutil.Process()
  blocks = [libc.malloc(size) for _ in range(4000)]
  for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, size)
  # One in fifty stays, so that the heap cannot shrink from its end.
  for number, block in enumerate(blocks):
    if number % 50:
      libc.free(block)
  held = process.memory_info().rss
  engines._give_memory_back()
  assert held - process.memory_info().rss > 100e6
  for block in blocks[::50]:
    libc.free(block)
