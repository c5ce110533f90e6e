import functools
import hashlib
import hmac
import json
import os
import time

import pytest
import serve_fakes

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from test_webhooks import receiver

from deepscan_jax.serve import job_runner, jobs, routes_jobs
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.job_runner import JobRunner
from deepscan_jax.serve.settings import Settings

KEY, SECRET = "the key of the tests, long enough".replace(" ", "-"), "abcdefgh" * 5


@pytest.fixture
def media(tmp_path):
  folder = tmp_path / "root" / "clips"
  (folder / "deep").mkdir(parents=True)
  for name, data in {"a": b"a", "b": b"b", "bad": b"BAD", "deep/c": b"c", "none": b"NONE"}.items():
    (folder / f"{name}.mp4").write_bytes(data)
  (folder / "notes.txt").write_bytes(b"")
  (folder / "link.mp4").symlink_to("/etc/passwd")
  return folder


@pytest.fixture
def serving(tmp_path, media):
  """Returns a function that starts a service over the same folders and database; all end with the test."""
  begun = []

  def serve(**changes):
    engine = changes.pop("engine", None) or serve_fakes.FakeEngine()
    settings = Settings(
      **{
        "secret_key": SECRET,
        "api_key": KEY,
        "data_dir": tmp_path / "data",
        "temp_dir": tmp_path,
        "roots": (tmp_path / "root",),
        "requests_per_hour": 1000,
        **changes,
      }
    )
    client = TestClient(make_app(settings, engine), headers={"Authorization": f"Bearer {KEY}"})
    client.__enter__()
    begun.append(client)
    return client

  yield serve
  for client in begun:
    client.__exit__(None, None, None)


def process(client, media, **asked):
  answer = client.post(
    "/api/v1/batch/process", json={"directory": str(media), "file_extension": ".mp4", **asked}
  )
  assert answer.status_code == 202, answer.text
  assert answer.headers["location"] == answer.json()["url"]
  return answer.json()


def wait_for(client, url, state="done", **query):
  until = time.monotonic() + 60
  while time.monotonic() < until:
    answer = client.get(url, params=query)
    assert answer.status_code == 200, answer.text
    if answer.json()["state"] == state:
      return answer.json()
    time.sleep(0.05)
  raise AssertionError(answer.json())


def other_key(client, *scopes):
  key, info = client.app.state.context.keys.create(label="another", scopes=scopes)
  return {"Authorization": f"Bearer {key}"}, info


def test_a_folder_is_judged_and_its_owner_alone_sees_what_was_found(serving, media):
  client = serving()
  job = process(client, media)
  found = wait_for(client, job["url"])
  assert (found["files"], found["judged"], found["without_verdict"], found["waiting"]) == (5, 4, 1, 0)
  results = {row["path"]: row for row in found["results"]}
  assert sorted(results) == ["a.mp4", "b.mp4", "bad.mp4", "deep/c.mp4", "none.mp4"]
  good = results["deep/c.mp4"]
  assert good["deepfake_probability"] == pytest.approx(hashlib.sha256(b"c").digest()[0] / 255, abs=1e-6)
  assert good["verdict"]["file"]["name"] == good["verdict"]["run"]["path"] == "c.mp4"
  assert results["bad.mp4"]["error"] == {
    "code": "unreadable",
    "message": "bad.mp4 is damaged; copy or download it again.",
  }
  assert results["none.mp4"]["outcome"] == "not_applicable" and found["outcomes"]["unreadable"] == 1
  assert found["next_after"] is None and found["model_version"] == "fake@1.0.0" and found["webhook"] is None
  text = json.dumps(found)
  assert str(media) not in text and "/proc/" not in text and "/fd/" not in text
  counted = client.app.state.context.metrics.text().decode()
  for outcome, files in found["outcomes"].items():
    assert f'deepscan_job_files_total{{outcome="{outcome}"}} {files}.0' in counted
  headers, _ = other_key(client, "batch", "detect")
  for method in ("GET", "DELETE"):
    answer = client.request(method, job["url"], headers=headers)
    assert answer.status_code == 404 and answer.json()["code"] == "unknown_job"
    assert client.request(method, f"/api/v1/batch/{'0' * 32}").json()["code"] == "unknown_job"
    assert client.request(method, job["url"], headers={"Authorization": ""}).status_code == 401
  only_detect, _ = other_key(client, "detect")
  asked = {"directory": str(media)}
  assert client.post("/api/v1/batch/process", json=asked, headers=only_detect).status_code == 403


def test_results_come_in_pages(serving, media):
  client = serving()
  job = process(client, media)
  whole = wait_for(client, job["url"])["results"]
  pages, after = [], 0
  while after is not None:
    page = client.get(job["url"], params={"limit": 2, "after": after}).json()
    assert len(page["results"]) <= 2
    pages += page["results"]
    after = page["next_after"]
  assert pages == whole
  assert client.get(job["url"], params={"limit": 0}).json()["results"] == []
  assert client.get(job["url"], params={"limit": 201}).status_code == 422


@pytest.mark.parametrize(
  "asked", ["/etc", "..", "clips/..", "out", "clips/none", "/", "\0", "clips\0", "\ud800"]
)
def test_folders_outside_of_the_roots_are_all_the_same_nothing(serving, media, asked):
  (media.parent / "out").symlink_to("/etc")
  client = serving()
  answer = client.post("/api/v1/batch/process", content=json.dumps({"directory": asked}))
  assert answer.json()["code"] in ("unknown_folder", "invalid") and answer.status_code in (404, 422), (
    answer.text
  )
  assert str(media.parent) not in answer.text


@pytest.mark.parametrize(
  ("asked", "code"),
  [
    ({"directory": ""}, "invalid"),
    ({"directory": "clips", "file_extension": "*.mp4"}, "invalid"),
    ({"directory": "clips", "file_extension": "a.b"}, "invalid"),
    ({"directory": "clips", "frames": 0}, "invalid"),
    ({"directory": "clips", "frames": 100_000}, "invalid"),
    ({"directory": "clips", "model": "none"}, "unknown_model"),
    ({"directory": "clips", "webhook_url": "https://169.254.169.254/"}, "bad_webhook"),
    ({"directory": "clips", "webhook_url": "http://example.org/"}, "bad_webhook"),
    ({"directory": "clips", "more": 1}, "invalid"),
  ],
)
def test_what_cannot_be_asked_for(serving, asked, code):
  answer = serving().post("/api/v1/batch/process", json=asked)
  assert answer.json()["code"] == code and 400 <= answer.status_code < 500, answer.text


def test_a_file_that_becomes_a_link_after_it_was_listed_is_not_followed(serving, media, tmp_path):
  secret = tmp_path / "secret.mp4"
  secret.write_bytes(b"secret")
  engine = serve_fakes.FakeEngine(ready=False)
  engine.start = lambda: None
  client = serving(engine=engine)
  engine.ready = True
  ledger = jobs.Ledger(client.app.state.context.database)
  engine.ready = False
  job = ledger.open_job(
    settings={
      "model": {"name": "fake", "version": "1.0.0", "sha256": "ab" * 32},
      "frames": 4,
      "extensions": [".mp4"],
      "recursive": True,
    },
    directory=os.fsencode(media),
    owner="env",
    state=jobs.LISTING,
  )
  wait_for(client, f"/api/v1/batch/{job.id}", "running")
  (media / "a.mp4").unlink()
  (media / "a.mp4").symlink_to(secret)
  (media / "deep").rename(media / "gone")
  (media / "deep").symlink_to(media / "gone")
  engine.ready = True
  results = {row["path"]: row for row in wait_for(client, f"/api/v1/batch/{job.id}")["results"]}
  for path in ("a.mp4", "deep/c.mp4"):
    assert results[path]["error"]["code"] == "missing_file"
  assert results["b.mp4"]["verdict"] and len(engine.calls) == 3


def test_a_cancelled_job_stops_and_keeps_what_was_found(serving, media):
  for n in range(30):
    (media / f"slow{n:02}.mp4").write_bytes(b"SLOW%d" % n)
  client = serving(engine=serve_fakes.FakeEngine(slow_s=0.1))
  job = process(client, media)
  until = time.monotonic() + 60
  while not client.get(job["url"]).json()["judged"] and time.monotonic() < until:
    time.sleep(0.02)
  answer = client.delete(job["url"])
  assert answer.status_code == 200 and answer.json()["state"] == "cancelled"
  time.sleep(0.4)
  ended = client.get(job["url"]).json()
  assert ended["cancelled"] > 0 and ended["running"] == ended["waiting"] == 0 and ended["judged"] > 0
  assert ended["judged"] + ended["without_verdict"] + ended["cancelled"] == 35
  assert client.delete(job["url"]).json() == {**ended, "results": [], "next_after": None}


def test_a_service_that_ends_gives_its_files_back_and_another_goes_on(serving, media):
  slow = serve_fakes.FakeEngine(slow_s=30)
  (media / "a.mp4").write_bytes(b"SLOW")
  first = serving(engine=slow)
  job = process(first, media)
  until = time.monotonic() + 60
  while not slow.running and time.monotonic() < until:
    time.sleep(0.02)
  ledger = jobs.Ledger(first.app.state.context.database)
  runner = JobRunner(first.app.state.context, job_runner.Spool(first.app.state.context.settings.temp_dir))
  assert runner.close() == 0, "what others hold is theirs"
  assert ledger.counts(job["id"])[jobs.RUNNING] == 1
  first.__exit__(None, None, None)
  first.__enter__ = first.__exit__ = lambda *_: None
  second = serving(engine=serve_fakes.FakeEngine(slow_s=0))
  found = wait_for(second, job["url"])
  assert (found["judged"], found["without_verdict"]) == (4, 1)
  assert {row["path"]: row["tries"] for row in found["results"]}["a.mp4"] == 1


def test_a_long_video_is_judged_later_and_then_deleted(serving, tmp_path):
  client = serving()
  spool = tmp_path / f"{job_runner.FOLDER}-{os.getuid()}"
  for note, code in ((b"fine", None), (b"BAD", "unreadable")):
    form = {"video": ("holiday.mp4", serve_fakes.mp4(note=note), "video/mp4")}
    answer = client.post("/api/v1/detect/video", params={"async": "true"}, files=form)
    assert answer.status_code == 202, answer.text
    found = wait_for(client, answer.headers["location"])
    (row,) = found["results"]
    assert row["path"] == "holiday.mp4" and (row["error"] or {}).get("code") == code
    if code is None:
      assert row["verdict"]["file"]["name"] == "holiday.mp4"
    else:
      assert row["error"]["message"].startswith("holiday.mp4 is damaged")
    assert [path.name for path in spool.iterdir()] == ["node"]


def test_what_waits_for_a_job_is_deleted_when_it_is_cancelled_or_nobodys(serving, tmp_path, monkeypatch):
  engine = serve_fakes.FakeEngine(slow_s=10)
  client = serving(engine=engine)
  spool = job_runner.Spool(tmp_path)
  urls = []
  for note in (b"SLOW", b"SLOW too"):
    form = {"video": ("x.mp4", serve_fakes.mp4(note=note), "video/mp4")}
    urls.append(client.post("/api/v1/detect/video", params={"async": "true"}, files=form).headers["location"])
  assert len(list(spool.path.glob("*.mp4"))) == 2
  monkeypatch.setattr(job_runner, "_ORPHAN_S", -5)
  (spool.path / "orphan.mp4").write_bytes(b"")
  ledger = jobs.Ledger(client.app.state.context.database)
  assert spool.clean(ledger) == 1 and len(list(spool.path.glob("*.mp4"))) == 2
  for url in urls:
    assert client.delete(url).json()["state"] == "cancelled"
  assert list(spool.path.glob("*.mp4")) == []


def detect(client, data, *, kind="video", name="a.mp4", headers=None, **query):
  form = {kind: (name, data, "application/octet-stream")}
  return client.post(f"/api/v1/detect/{kind}", params=query, files=form, headers=headers)


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_judged_once_whoever_asks_by_whatever_way(serving, media, shared, monkeypatch):
  # The made-up engine goes by names, and a file of a folder is opened without one.
  monkeypatch.setattr(serve_fakes, "_container", lambda suffix: "mov,mp4,m4a,3gp,3g2,mj2")
  for path in media.rglob("*.mp4"):
    path.unlink()
  (media / "b.mp4").write_bytes(serve_fakes.mp4(note=b"b"))
  (media / "copy.mp4").write_bytes(serve_fakes.mp4(note=b"b"))
  client = serving(shared_results=shared)
  engine, context = client.app.state.context.engine, client.app.state.context
  sent = detect(client, serve_fakes.mp4(note=b"b")).json()
  (copy, other) = wait_for(client, process(client, media)["url"])["results"]
  assert len(engine.calls) == 1 and copy["result_id"] == other["result_id"] == sent["result_id"]
  assert (copy["path"], copy["verdict"]["file"]["name"]) == ("b.mp4", "b.mp4")
  assert other["verdict"]["file"]["name"] == other["verdict"]["run"]["path"] == "copy.mp4"
  assert copy["verdict"]["deepfake_probability"] == sent["deepfake_probability"]
  # And the other way: what a job has found is known to the detect route.
  (media / "c.mp4").write_bytes(serve_fakes.mp4(note=b"c"))
  found = wait_for(client, process(client, media)["url"])["results"]
  assert len(engine.calls) == 2
  again = detect(client, serve_fakes.mp4(note=b"c"), name="again.mp4").json()
  assert again["cached"] and again["result_id"] == found[1]["result_id"] and len(engine.calls) == 2
  told = {"result_id": found[1]["result_id"], "label": "authentic"}
  assert client.post("/api/v1/feedback", json=told).status_code == 201
  # Another key's answers are its own, unless the operator wants otherwise.
  headers, _ = other_key(client, "batch", "detect")
  theirs = client.post("/api/v1/batch/process", json={"directory": str(media)}, headers=headers).json()
  client.headers.update(headers)
  wait_for(client, theirs["url"])
  # In a job of its own the second copy is the same key's already.
  assert len(engine.calls) == (2 if shared else 4)
  assert context.metrics.cached.labels("video")._value.get() > 0


def test_a_kept_answer_is_no_way_around_what_a_file_was_sent_as(serving, media, monkeypatch):
  for path in media.rglob("*.mp4"):
    path.unlink()
  monkeypatch.setattr(serve_fakes, "_container", lambda suffix: "avi")
  (media / "a.mp4").write_bytes(serve_fakes.mp4())
  client = serving()
  assert wait_for(client, process(client, media)["url"])["judged"] == 1
  answer = detect(client, serve_fakes.mp4())
  assert (answer.status_code, answer.json()["code"]) == (415, "type_mismatch")
  assert len(client.app.state.context.engine.calls) == 1


@pytest.mark.parametrize(("kind", "name"), [("video", "talk.mp4"), ("audio", "call.wav")])
@pytest.mark.parametrize("kept_h", [24.0, 0.0])
def test_a_file_that_is_judged_later_can_be_explained(serving, kind, name, kept_h):
  client = serving(results_kept_h=kept_h)
  data = serve_fakes.mp4() if kind == "video" else serve_fakes.wav()
  answer = detect(client, data, kind=kind, name=name, **{"async": "true", "explain": "true"})
  assert answer.status_code == 202, answer.text
  (row,) = wait_for(client, answer.headers["location"])["results"]
  assert "<article" in row["verdict"]["report_html"] and row["verdict"]["evidence"][0]["crop"]
  assert name in row["verdict"]["report_html"] and row["verdict"]["model_version"] == "fake@1.0.0"
  context = client.app.state.context
  (stored,) = jobs.Ledger(context.database).answers(answer.json()["id"])
  assert bool(stored.answer["report_html"]) is (kept_h == 0), "it is kept once"
  plain = detect(client, data, kind=kind, name=name, **{"async": "true"})
  (row,) = wait_for(client, plain.headers["location"])["results"]
  assert row["verdict"]["report_html"] is row["verdict"]["evidence"] is None


def test_the_end_of_a_long_video_is_told_too(serving, impatient):
  with receiver(200) as (port, got):
    client = serving(webhook_hosts=f"127.0.0.1:{port}")
    hook = {"webhook_url": f"http://127.0.0.1:{port}/hook"}
    answer = detect(client, serve_fakes.mp4(), **{"async": "true", **hook})
    assert answer.status_code == 202 and answer.json()["webhook_secret"]
    wait_for_webhook(client, answer.json(), "told")
    assert json.loads(got[0][2])["id"] == answer.json()["id"]
    refused = detect(client, serve_fakes.mp4(), **hook)
    assert (refused.status_code, refused.json()["code"]) == (403, "bad_webhook")
    assert "async=true" in refused.json()["remedy"]
  for url in ("https://169.254.169.254/", "http://example.org/", "https://u:p@example.org/"):
    refused = detect(client, serve_fakes.mp4(), **{"async": "true", "webhook_url": url})
    assert (refused.status_code, refused.json()["code"]) == (403, "bad_webhook"), url


def test_what_cannot_be_begun_is_refused_before_its_file_is_received(serving, monkeypatch):
  client = serving(jobs_per_key=1)
  ledger = jobs.Ledger(client.app.state.context.database)
  facts = {"model": {"name": "fake", "version": "1", "sha256": "ab" * 32}, "frames": 1, "extensions": []}
  ledger.open_job(settings=facts, directory=b"/", owner="env", state=jobs.RUNNING, node="another")
  monkeypatch.setattr(client.app.state.context.uploads, "receive", None)
  answer = detect(client, serve_fakes.mp4(), **{"async": "true"})
  assert (answer.status_code, answer.json()["code"]) == (429, "too_many_jobs")


@pytest.fixture
def impatient(monkeypatch):
  """Services that wait but a moment before they call a webhook again, and do so twice."""
  quick = functools.partial(JobRunner, pauses_s=(0.01, 0.01), poll_s=0.05)
  monkeypatch.setattr(routes_jobs, "JobRunner", quick)


def wait_for_webhook(client, job, state):
  until = time.monotonic() + 60
  while client.get(job["url"]).json()["webhook"] != state:
    assert time.monotonic() < until
    time.sleep(0.05)


def test_the_end_of_a_job_is_told_until_it_is_heard(serving, media, impatient):
  with receiver(500, 503, 200) as (port, got):
    client = serving(webhook_hosts=f"127.0.0.1:{port}")
    job = process(client, media, webhook_url=f"http://127.0.0.1:{port}/hook")
    wait_for_webhook(client, job, "told")
  assert len(got) == 3 and {headers["X-Deepscan-Delivery"] for _, headers, _ in got} == {job["id"]}
  path, headers, body = got[-1]
  stamp, signed = (part.partition("=")[2] for part in headers["X-Deepscan-Signature"].split(","))
  expected = hmac.new(job["webhook_secret"].encode(), f"{stamp}.".encode() + body, hashlib.sha256)
  assert path == "/hook" and signed == expected.hexdigest()
  told = json.loads(body)
  assert (told["id"], told["state"], told["files"], told["judged"]) == (job["id"], "done", 5, 4)


def test_a_webhook_that_nobody_hears_is_given_up(serving, media, impatient):
  with receiver(500, 500, 500, 200) as (port, got):
    client = serving(webhook_hosts=f"127.0.0.1:{port}")
    job = process(client, media, webhook_url=f"http://127.0.0.1:{port}/hook")
    wait_for_webhook(client, job, "gave_up")
  assert len(got) == 3


def test_jobs_take_turns_and_a_key_has_so_many_at_once(serving, media):
  for n in range(40):
    (media / f"slow{n:02}.mp4").write_bytes(b"SLOW%d" % n)
  one = media.parent / "one"
  one.mkdir()
  (one / "x.mp4").write_bytes(b"x")
  client = serving(engine=serve_fakes.FakeEngine(slow_s=0.05), jobs_per_key=2)
  long = process(client, media)
  short = process(client, one)
  answer = client.post("/api/v1/batch/process", json={"directory": str(one)})
  assert answer.status_code == 429 and answer.json()["code"] == "too_many_jobs"
  wait_for(client, short["url"])
  assert client.get(long["url"]).json()["waiting"] > 10
  client.delete(long["url"])


def test_a_folder_with_too_many_files_is_refused_as_a_whole(serving, media):
  client = serving(batch_files=4)
  found = wait_for(client, process(client, media)["url"], "failed")
  assert found["problem"]["code"] == "too_many_files" and found["cancelled"] == found["files"]


def test_a_job_is_judged_by_the_model_that_it_began_with_or_not_at_all(serving, media):
  engine = serve_fakes.FakeEngine()
  client = serving(engine=engine)
  job = process(client, media, model="fake@2.0.0")
  found = wait_for(client, job["url"])
  assert found["model_version"] == "fake@2.0.0"
  assert {row["verdict"]["model"]["version"] for row in found["results"] if row["verdict"]} == {"2.0.0"}
  assert {model for _, _, model in engine.calls} == {"cd" * 32}
  del engine.models[1]
  ledger = jobs.Ledger(client.app.state.context.database)
  ledger.retry(job["id"])
  ledger.go_on(job["id"])
  found = wait_for(client, job["url"])
  assert {row["error"]["code"] for row in found["results"] if row["error"]} == {"unknown_model"}


def test_defects_and_busy_engines_cost_no_answer(serving, media):
  (media / "a.mp4").write_bytes(b"DEFECT")
  client = serving()
  busy = iter([True, True])
  detect = client.app.state.context.engine.detect

  def often_busy(path, **asked):
    if next(busy, False):
      raise serve_fakes.Busy(0.01)
    return detect(path, **asked)

  client.app.state.context.engine.detect = often_busy
  found = wait_for(client, process(client, media)["url"])
  results = {row["path"]: row for row in found["results"]}
  assert results["a.mp4"]["error"]["code"] == "internal_error" and results["a.mp4"]["tries"] == 3
  assert "secret" not in json.dumps(found) and found["judged"] == 3
  assert all(row["tries"] == 1 for path, row in results.items() if path != "a.mp4")


def test_a_repeated_request_gets_the_same_job(serving, media):
  client = serving()
  asked = {"directory": str(media)}
  headers = {"Idempotency-Key": "request-1"}
  first, second = (client.post("/api/v1/batch/process", json=asked, headers=headers) for _ in range(2))
  assert first.json() == second.json() and second.headers["location"] == first.headers["location"]
  other = client.post("/api/v1/batch/process", json={**asked, "frames": 3}, headers=headers)
  assert other.status_code == 422 and other.json()["code"] == "key_reused"


def test_other_methods_are_told_which_there_are(serving):
  client = serving()
  for path, allowed in (("process", "POST"), ("0" * 32, "DELETE, GET")):
    for method in {"GET", "DELETE", "POST", "PUT", "OPTIONS"} - set(allowed.split(", ")):
      answer = client.request(method, f"/api/v1/batch/{path}")
      assert (answer.status_code, answer.headers["allow"]) == (405, allowed), method
      assert answer.json()["code"] == "method_not_allowed"


def test_a_service_without_roots_begins_no_job(serving, media):
  answer = serving(roots=()).post("/api/v1/batch/process", json={"directory": str(media)})
  assert answer.status_code == 404 and answer.json()["code"] == "unknown_folder"


def test_a_spool_that_others_can_read_is_not_used(tmp_path):
  path = job_runner.Spool(tmp_path).path
  assert job_runner.Spool(tmp_path).node == job_runner.Spool(tmp_path).node
  path.chmod(0o755)
  with pytest.raises(ValueError, match="is not a private folder"):
    job_runner.Spool(tmp_path)
