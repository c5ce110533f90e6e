"""Two replicas of the service on one PostgreSQL database, as launch/helm runs them."""

import contextlib
import time

import postgres_server
import pytest
from serve_fakes import AUTH, METRICS_KEY, SECRET_KEY, FakeEngine, mp4, png, service, wav

from deepscan_jax.serve.keys import REMEMBERED_S, KeyStore


@pytest.fixture(scope="module")
def url():
  pytest.importorskip("psycopg")
  with postgres_server.running() as url:
    if url is None:
      pytest.skip("PostgreSQL is not installed.")
    yield url


@pytest.fixture
def replicas(tmp_path, url):
  """Clients of two services, each with a temporary folder of its own, as pods have."""
  with contextlib.ExitStack() as stack:
    clients = []
    for name in ("a", "b"):
      folder = tmp_path / name
      folder.mkdir()
      clients.append(stack.enter_context(service(folder, database_url=url, roots=(tmp_path,))))
    yield clients


def send(client, data: bytes, *, kind: str = "image", query: str = "", **headers):
  name = {"image": "a.png", "video": "a.mp4", "audio": "a.wav"}[kind]
  return client.post(f"/api/v1/detect/{kind}{query}", files={kind: (name, data)}, headers=AUTH | headers)


def engine_of(client) -> FakeEngine:
  return client.app.state.context.engine


def test_a_key_that_one_replica_makes_opens_the_other_until_it_is_revoked(replicas):
  first, second = replicas
  stores = [KeyStore(client.app.state.context.database, SECRET_KEY) for client in replicas]
  key, info = stores[0].create(label="newsroom", scopes=["detect"], expires_s=60)
  bearer = {"Authorization": f"Bearer {key}"}
  assert first.get("/api/v1/models", headers=bearer).status_code == 200
  assert second.get("/api/v1/models", headers=bearer).status_code == 200
  stores[1].revoke(info.id)
  # What another process did is seen once what was found out before is forgotten.
  time.sleep(REMEMBERED_S)
  assert first.get("/api/v1/models", headers=bearer).json()["code"] == "wrong_key"


def test_what_one_replica_answered_the_other_knows(replicas):
  first, second = replicas
  one = send(first, png(note=b"shared")).json()
  two = send(second, png(note=b"shared")).json()
  assert (one["cached"], two["cached"]) == (False, True) and engine_of(second).calls == []
  assert one["deepfake_probability"] == two["deepfake_probability"]
  said = {"result_id": one["result_id"], "label": "manipulated", "comment": "I made it, \u00e4\U0001f600."}
  assert second.post("/api/v1/feedback", json=said).status_code == 201


def test_a_request_with_a_name_of_its_own_is_answered_once_by_both(replicas):
  first, second = replicas
  named = {"Idempotency-Key": "order-17"}
  one, two = (
    send(first, wav(note=b"i"), kind="audio", **named),
    send(second, wav(note=b"i"), kind="audio", **named),
  )
  assert one.status_code == 200 and one.content == two.content
  assert two.headers["idempotency-replayed"] == "true" and engine_of(second).calls == []
  other = send(second, wav(note=b"j"), kind="audio", **named)
  assert (other.status_code, other.json()["code"]) == (422, "key_reused")


def ended(client, job: str) -> dict:
  until = time.monotonic() + 30
  while time.monotonic() < until:
    state = client.get(f"/api/v1/batch/{job}").json()
    if state["state"] not in ("listing", "running"):
      return state
    time.sleep(0.05)
  raise AssertionError(state)


def test_jobs_of_folders_are_everybodys_and_of_uploads_their_replicas(replicas, tmp_path):
  first, second = replicas
  folder = tmp_path / "media"
  folder.mkdir()
  for number in range(20):
    (folder / f"{number}.png").write_bytes(png(note=b"%02d" % number))
  begun = first.post("/api/v1/batch/process", json={"directory": str(folder), "file_extension": ".png"})
  assert begun.status_code == 202
  told = ended(second, begun.json()["id"])
  assert (told["state"], told["judged"], told["without_verdict"]) == ("done", 20, 0)
  assert len(engine_of(first).calls) + len(engine_of(second).calls) == 20
  # The file lies with the one that received it; the other tells how far it is.
  before = len(engine_of(second).calls)
  later = send(first, mp4(note=b"later"), kind="video", query="?async=true")
  assert later.status_code == 202
  assert ended(second, later.json()["id"])["judged"] == 1 and len(engine_of(second).calls) == before


def test_what_is_under_way_is_measured_by_both_alike(replicas):
  for client in replicas:
    text = client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_KEY}"}).text
    for line in ('deepscan_jobs{of="running"} 0.0', "deepscan_expired_leases 0.0", "deepscan_ready 1.0"):
      assert line in text
    assert client.get("/readyz").status_code == 200
