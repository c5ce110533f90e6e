"""The service with the model of the package, on real files."""

import json

import face_media
import media_files
import pytest
import voices
from serve_fakes import AUTH, make_settings, received_files
from starlette.testclient import TestClient

from deepscan_jax.launch import demo
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.engine import Engine

FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def client(folder):
  engine = Engine([None], max_batch=FRAMES, decodings=2)
  app = make_app(make_settings(folder), engine)
  with TestClient(app, raise_server_exceptions=False, headers=AUTH) as client:
    assert client.get("/healthz").status_code == 200
    assert engine.wait_until_loaded(600), engine.problem
    yield client


def send(client, kind, path, query=""):
  with path.open("rb") as file:
    return client.post(f"/api/v1/detect/{kind}{query}", files={kind: (path.name, file)})


def test_the_demos_clip_is_judged_as_the_detector_judges_it(client, folder):
  assert client.get("/readyz").status_code == 200
  portrait = demo.sample_portrait()
  path = folder / "forged.mp4"
  demo.write_clip(path, demo.move_camera(demo.forge_face(portrait, seed=demo.SEED)))
  answer = send(client, "video", path, f"?frames={FRAMES}&explain=true")
  told = answer.json()
  assert answer.status_code == 200, told
  assert received_files(folder) == []
  (model,) = client.get("/api/v1/models").json()["models"]
  assert answer.headers["x-model-version"] == f"{model['name']}@{model['version']}" and "# " in model["card"]
  assert told["file"]["name"] == "forged.mp4" and told["file"]["kind"] == "video" and told["people"]
  assert 0 < told["deepfake_probability"] < 1 and told["report_html"].startswith("<!doctype html>")
  # The same as without the service; what a run says of itself is another's.
  alone = client.app.state.context.engine.detect(path, frames=FRAMES).to_dict()
  told = {key: told[key] for key in alone}
  for key in ("timings", "run"):
    del told[key], alone[key]
  assert told == json.loads(json.dumps(alone))


def test_other_files_are_told_apart(client, folder):
  media_files.picture(folder / "face.jpg", face_media.portrait())
  media_files.picture(folder / "face.png", face_media.portrait())
  media_files.sound(folder / "voice.wav", voices.speech(seconds=2.5, seed=3), sample_rate_hz=voices.RATE_HZ)
  for name, kind in (("face.jpg", "image"), ("face.png", "image"), ("voice.wav", "audio")):
    answer = send(client, kind, folder / name)
    assert answer.status_code == 200 and answer.json()["file"]["kind"] == kind, answer.text
  (folder / "letter.png").write_bytes((folder / "face.png").read_bytes()[:200])
  answer = send(client, "image", folder / "letter.png")
  assert answer.status_code == 422 and answer.json()["code"] == "unreadable"
  assert "letter.png" in answer.json()["detail"] or "picture" in answer.json()["detail"]
  # A sound file with the name of a film.
  (folder / "voice.mp4").write_bytes((folder / "voice.wav").read_bytes())
  assert send(client, "video", folder / "voice.mp4").json()["code"] == "type_mismatch"
  assert received_files(folder) == []
