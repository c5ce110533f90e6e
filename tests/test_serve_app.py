import asyncio
import dataclasses
import io
import json
import logging
import os
import re
import threading
import time

import httpx
import jsonschema
import pytest
import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from serve_fakes import (
  API_KEY,
  AUTH,
  METRICS_KEY,
  SECRET_KEY,
  FakeEngine,
  make_settings,
  mp4,
  png,
  received_files,
  service,
  wav,
)

from deepscan_jax import media
from deepscan_jax.serve import json_logs, problems, routes_detect, routes_service, store
from deepscan_jax.serve.app import make_app
from deepscan_jax.version import __version__

FILES = {"video": ("a.mp4", mp4()), "image": ("a.png", png()), "audio": ("a.wav", wav())}


@pytest.fixture
def client(tmp_path):
  with service(tmp_path) as client:
    yield client


def send(
  client, data: bytes = png(), *, kind: str = "image", name: str | None = None, query: str = "", **more
):
  name = name or FILES[kind][0]
  return client.post(f"/api/v1/detect/{kind}{query}", files={kind: (name, data)}, **more)


def code_of(answer) -> tuple[int, str]:
  assert answer.headers["content-type"] == "application/problem+json"
  return answer.status_code, answer.json()["code"]


def answer_schema(client) -> dict:
  schema = client.get("/api/v1/openapi.json").json()
  return {"$ref": "#/components/schemas/DetectAnswer", "components": schema["components"]}


# Answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_answered_with_its_verdict(client, kind):
  answer = send(client, FILES[kind][1], kind=kind)
  told = answer.json()
  assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
  jsonschema.validate(told, answer_schema(client))
  first = ["deepfake_probability", "is_deepfake", "confidence", "frame_consistency_score", "recommendation"]
  assert set(first) <= set(told) and 0 <= told["deepfake_probability"] <= 1
  assert told["model_version"] == answer.headers["x-model-version"] == "fake@1.0.0"
  assert told["request_id"] == answer.headers["x-request-id"] and len(told["result_id"]) == 22
  assert told["file"]["name"] == FILES[kind][0] and told["file"]["kind"] == kind
  assert told["report_html"] is None and told["cached"] is False
  # It is what the engine said, with another name.
  engine = client.app.state.context.engine
  assert len(engine.calls) == 1 and engine.calls[0][1:] == (32, None)
  for name, value in {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
  }.items():
    assert answer.headers[name] == value
  assert "server" not in answer.headers


def test_a_file_without_anything_to_judge_is_answered_too(client):
  answer = send(client, png(note=b"NONE"))
  told = answer.json()
  assert answer.status_code == 200 and told["outcome"] == "not_applicable"
  assert told["deepfake_probability"] is None and told["is_deepfake"] is None and told["confidence"] is None
  assert told["reasons"][0]["code"] == "no_face"
  jsonschema.validate(told, answer_schema(client))


def test_an_explanation_is_a_page_under_the_senders_name(client):
  told = send(client, name="holiday <b>.png", query="?explain=true").json()
  page = told["report_html"]
  assert page.startswith("<!doctype html>") and "holiday &lt;b&gt;.png" in page and "holiday <b>" not in page
  jsonschema.validate(told, answer_schema(client))
  # The same file under another name is another page.
  other = send(client, name="other.png", query="?explain=true").json()
  assert "holiday" not in other["report_html"] and other["cached"] is False
  assert send(client, name="other.png", query="?explain=true").json()["cached"] is True


def test_questions_reach_the_engine(client):
  engine = client.app.state.context.engine
  assert (
    send(client, mp4(), kind="video", query="?frames=7&model=fake@2.0.0").headers["x-model-version"]
    == "fake@2.0.0"
  )
  assert engine.calls[-1][1:] == (7, "fake@2.0.0")
  assert send(client, query="?model=cdcdcdcd").headers["x-model-version"] == "fake@2.0.0"
  assert code_of(send(client, query="?model=other")) == (404, "unknown_model")
  assert "fake@1.0.0, fake@2.0.0" in send(client, query="?model=other").json()["detail"]
  for query in ("?frames=0", "?frames=257", "?frames=x", "?model=%20", "?explain=maybe"):
    answer = send(client, mp4(), kind="video", query=query)
    assert (
      code_of(answer) == (422, "invalid")
      and answer.json()["errors"][0]["place"] == f"query.{query[1:].split('=')[0]}"
    )
  assert len(engine.calls) == 2


MEDIA_REASONS = (
  "empty_file",
  "not_media",
  "unsupported_type",
  "unreadable",
  "no_frames",
  "no_sound",
  "over_budget",
  "timeout",
  "decoder_crash",
  "changed_while_read",
  "missing_file",
  "something_new",
)


@pytest.mark.parametrize("reason", MEDIA_REASONS)
def test_what_the_decoder_refuses_is_told_with_a_remedy(client, monkeypatch, reason):
  def refuse(path, **asked):
    raise media.MediaError(reason, f"{path.name} cannot be used; send another.")

  monkeypatch.setattr(client.app.state.context.engine, "detect", refuse)
  answer = send(client, name="mine.png")
  status, code = code_of(answer)
  assert code == (reason if reason != "something_new" else "unreadable")
  assert status in ((500,) if reason == "changed_while_read" else (413, 415, 422))
  assert answer.json()["detail"] == "mine.png cannot be used; send another." and answer.json()["remedy"]


def test_a_defect_shows_in_the_log_and_nowhere_else(client, caplog):
  answer = send(client, png(note=b"DEFECT"))
  assert code_of(answer) == (500, "internal_error")
  for inside in ("Traceback", "RuntimeError", "secret details", ".py", "/"):
    assert inside not in answer.text.replace("application/", "")
  assert "secret details" in caplog.text


def test_a_full_engine_sends_away(client):
  answer = send(client, png(note=b"BUSY"))
  assert code_of(answer) == (503, "busy") and answer.headers["retry-after"] == "3"


def test_before_the_models_are_loaded_nothing_is_taken(client, tmp_path):
  engine = client.app.state.context.engine
  engine.ready = False
  answer = send(client)
  assert code_of(answer) == (503, "not_ready") and int(answer.headers["retry-after"]) >= 1
  assert code_of(client.get("/api/v1/models")) == (503, "not_ready")
  assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
  engine.problem = "/srv/models/secret cannot be read"
  assert "secret" not in client.get("/readyz").text and client.get("/readyz").json()["problem"]


@pytest.mark.parametrize("changes, per_key", [({"queue": 3}, 3), ({"queue": 8, "queue_per_key": 2}, 2)])
def test_more_files_than_places_are_sent_away(tmp_path, changes, per_key):
  app = make_app(make_settings(tmp_path, **changes), FakeEngine(slow_s=0.4))

  async def ask():
    transport = httpx.ASGITransport(app)
    async with (
      app.router.lifespan_context(app),
      httpx.AsyncClient(transport=transport, headers=AUTH) as client,
    ):
      jobs = [
        client.post("http://x/api/v1/detect/image", files={"image": ("a.png", png(note=b"SLOW%d" % i))})
        for i in range(6)
      ]
      return await asyncio.gather(*jobs)

  answers = asyncio.run(ask())
  statuses = sorted(answer.status_code for answer in answers)
  assert statuses == [200] * per_key + [503] * (6 - per_key)
  assert all(
    code_of(a) == (503, "busy") and a.headers["retry-after"] for a in answers if a.status_code == 503
  )
  assert app.state.context.engine.most_running <= per_key and received_files(tmp_path) == []


def test_waiting_for_the_engine_keeps_nobody_else_waiting(tmp_path):
  with service(tmp_path, engine=FakeEngine(slow_s=1.5)) as client:
    slow = threading.Thread(target=send, args=(client, png(note=b"SLOW")))
    slow.start()
    while not client.app.state.context.engine.running:
      time.sleep(0.01)
    assert client.get("/healthz").status_code == 200 and client.app.state.context.engine.running == 1
    slow.join()


def test_a_video_is_judged_later_where_there_are_jobs(tmp_path):
  def described(client) -> bool:
    operation = client.get("/api/v1/openapi.json").json()["paths"]["/api/v1/detect/video"]["post"]
    return any(parameter["name"] == "async" for parameter in operation["parameters"])

  without = (routes_detect.router, routes_service.router)
  with service(tmp_path, routers=without) as client:
    answer = send(client, mp4(), kind="video", query="?async=true")
    assert code_of(answer) == (422, "no_jobs") and not described(client)

  def jobs(context):
    async def submit(upload, *, key, frames, model, explain, webhook):
      told = {"kept": upload.path.is_file(), "of": key.id, "frames": frames, "model": model}
      told |= {"explain": explain, "webhook": webhook}
      return JSONResponse(told, 202, headers={"Location": "/api/v1/batch/x"})

    context.later.submit = submit
    return APIRouter()

  more = "&explain=true&webhook_url=https://example.org/hook"
  with service(tmp_path, routers=(*without, jobs)) as client:
    answer = send(client, mp4(), kind="video", query=f"?async=true&frames=9&model=fake{more}")
    assert answer.status_code == 202 and answer.headers["location"] == "/api/v1/batch/x" and described(client)
    expected = {"kept": True, "of": "env", "frames": 9, "model": "fake", "explain": True}
    assert answer.json() == expected | {"webhook": "https://example.org/hook"}
    assert not client.app.state.context.engine.calls and received_files(tmp_path) == []


# Twice the same -------------------------------------------------------------------------------------------


def test_the_same_file_is_judged_once(client):
  engine = client.app.state.context.engine
  first, second = send(client, name="one.png").json(), send(client, name="two.png").json()
  assert len(engine.calls) == 1 and (first["cached"], second["cached"]) == (False, True)
  assert second["file"]["name"] == second["run"]["path"] == "two.png"
  assert first["result_id"] == second["result_id"] and first["request_id"] != second["request_id"]
  for key in ("request_id", "cached", "file", "run"):
    del first[key], second[key]
  assert first == second


def test_another_question_is_another_answer(client):
  engine = client.app.state.context.engine
  send(client, mp4(), kind="video")
  for change in (
    {"data": mp4(note=b"x")},
    {"query": "?frames=8"},
    {"query": "?model=fake@2.0.0"},
    {"query": "?explain=1"},
  ):
    assert send(client, **{"data": mp4(), "kind": "video"} | change).json()["cached"] is False
  assert len(engine.calls) == 5
  # A new model under an old name is another model.
  engine.models[0] = dataclasses.replace(engine.models[0], sha256="ef" * 32)
  assert send(client, mp4(), kind="video").json()["cached"] is False


@pytest.mark.parametrize("shared", [False, True])
def test_answers_of_others_are_given_only_where_that_is_wanted(tmp_path, shared):
  with service(tmp_path, shared_results=shared) as client:
    other, _ = client.app.state.context.keys.create(label="", scopes=["detect"])
    send(client)
    assert send(client, headers={"Authorization": f"Bearer {other}"}).json()["cached"] is shared


def test_answers_can_be_forgotten_at_once(tmp_path):
  with service(tmp_path, results_kept_h=0) as client:
    result = [send(client).json() for _ in range(2)][-1]
    assert result["cached"] is False
    sent = {"result_id": result["result_id"], "label": "authentic"}
    assert code_of(client.post("/api/v1/feedback", json=sent)) == (404, "unknown_result")


def test_what_failed_is_not_kept(client):
  assert [send(client, png(note=b"BAD")).status_code for _ in range(2)] == [422, 422]
  assert len(client.app.state.context.engine.calls) == 2


def test_a_request_with_a_name_of_its_own_is_answered_once(client):
  engine = client.app.state.context.engine
  named = {"headers": {"Idempotency-Key": "order-1"}}
  first = send(client, **named)
  with client.app.state.context.database.begin() as connection:
    connection.execute(sa.delete(store.RESULTS))  # it is not the cache that answers
  second = send(client, **named)
  assert second.content == first.content and len(engine.calls) == 1
  assert second.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
  assert second.headers["x-model-version"] == "fake@1.0.0"
  # Another request may not have the name, another key may.
  assert code_of(send(client, png(note=b"other"), **named)) == (422, "key_reused")
  assert code_of(send(client, query="?explain=true", **named)) == (422, "key_reused")
  other, _ = client.app.state.context.keys.create(label="", scopes=["detect"])
  headers = {"Authorization": f"Bearer {other}", "Idempotency-Key": "order-1"}
  assert send(client, png(note=b"other"), headers=headers).status_code == 200
  for wrong in ("", "a b", "x" * 129, "\u00e4"):
    assert code_of(send(client, headers={"Idempotency-Key": wrong.encode()})) == (422, "invalid")


def test_a_refusal_of_a_named_request_stays_and_a_failure_does_not(client):
  engine = client.app.state.context.engine
  for note, calls in ((b"BAD", 1), (b"DEFECT", 2), (b"BUSY", 2)):
    before = len(engine.calls)
    named = {"headers": {"Idempotency-Key": f"of-{note.decode()}"}}
    answers = [send(client, png(note=note), **named) for _ in range(2)]
    assert answers[0].status_code == answers[1].status_code and len(engine.calls) - before == calls
    assert answers[1].headers["content-type"] == "application/problem+json"


def test_two_requests_of_one_name_at_once_are_not_both_judged(tmp_path):
  app = make_app(make_settings(tmp_path), FakeEngine(slow_s=0.5))

  async def ask():
    transport = httpx.ASGITransport(app)
    async with (
      app.router.lifespan_context(app),
      httpx.AsyncClient(transport=transport, headers=AUTH) as client,
    ):

      def one():
        files = {"image": ("a.png", png(note=b"SLOW"))}
        return client.post("http://x/api/v1/detect/image", files=files, headers={"Idempotency-Key": "a"})

      return await asyncio.gather(*(one() for _ in range(4))), await one()

  at_once, later = asyncio.run(ask())
  assert sorted(a.status_code for a in at_once) == [200, 409, 409, 409]
  assert all(
    code_of(a) == (409, "in_progress") and a.headers["retry-after"] for a in at_once if a.status_code == 409
  )
  assert later.headers["idempotency-replayed"] == "true" and len(app.state.context.engine.calls) == 1


def test_a_named_request_that_died_can_be_sent_again(tmp_path):
  now = [0.0]
  database = store.open_database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
  kept = store.Store(database, kept_s=60, most_bytes=1000, in_progress_s=100, clock=lambda: now[0])
  assert kept.begin_answer("k", "a", "r", owner="first") is None
  now[0] = 99.0
  with pytest.raises(store.InProgress):
    kept.begin_answer("k", "a", "r", owner="second")
  now[0] = 101.0
  assert kept.begin_answer("k", "a", "r", owner="second") is None
  # The first one was only slow: its answer is not the one that counts any more.
  kept.end_answer("k", "a", store.StoredAnswer(200, {}, b"first"), owner="first")
  kept.drop_answer("k", "a", owner="first")
  kept.end_answer("k", "a", store.StoredAnswer(200, {"x": "y"}, b"second"), owner="second")
  assert kept.begin_answer("k", "a", "r", owner="third") == store.StoredAnswer(200, {"x": "y"}, b"second")
  with pytest.raises(store.KeyReused):
    kept.begin_answer("k", "a", "other", owner="third")
  now[0] += store.IDEMPOTENT_FOR_S + 1
  assert kept.begin_answer("k", "a", "other", owner="fourth") is None


def test_old_answers_go_and_of_too_many_the_oldest(tmp_path):
  now = [0.0]
  database = store.open_database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
  kept = store.Store(database, kept_s=100, most_bytes=5_000, clock=lambda: now[0])

  def add(name):
    answer = {"text": os.urandom(1000).hex()}
    return kept.add_result(answer, key_id="k", sha256=name, model="m", settings="s", shared_with="")

  def found(name):
    return kept.find_result(sha256=name, model="m", settings="s", shared_with="")

  for number in range(8):
    now[0] = float(number)
    add(str(number))
  assert kept.clean() >= 3 and found("0") is None and found("7")
  left = [str(n) for n in range(8) if found(str(n))]
  assert left == [str(n) for n in range(8 - len(left), 8)] and 3 <= len(left) <= 5
  now[0] = 107.5
  assert found("7") is None and kept.clean() == len(left) and kept.clean() == 0
  # Idempotent answers may hold reports: they have the same bound; those under way stay.
  for number in range(8):
    now[0] = 200.0 + number
    assert kept.begin_answer("k", str(number), "r", owner="o") is None
    if number:
      answer = store.StoredAnswer(200, {}, os.urandom(1000))
      kept.end_answer("k", str(number), answer, owner="o")
  assert kept.clean() == 3
  with pytest.raises(store.InProgress):
    kept.begin_answer("k", "0", "r", owner="p")
  assert kept.begin_answer("k", "3", "r", owner="p") is None
  assert kept.begin_answer("k", "4", "r", owner="p").status == 200


# Feedback -------------------------------------------------------------------------------------------------


def test_feedback_is_kept_with_what_it_is_about(client):
  result = send(client).json()
  sent = {"result_id": result["result_id"], "label": "manipulated", "comment": "I made it."}
  answer = client.post("/api/v1/feedback", json=sent)
  assert answer.status_code == 201 and answer.json()["label"] == "manipulated"
  with client.app.state.context.database.connect() as connection:
    (row,) = connection.execute(sa.select(store.FEEDBACK)).all()
  assert (row.id, row.label, row.comment) == (answer.json()["feedback_id"], "manipulated", "I made it.")
  assert (row.sha256, row.outcome) == (result["file"]["sha256"], result["outcome"])
  assert row.deepfake_probability == result["deepfake_probability"] and row.key_id == "env"
  # An answer from the cache can be told about as well.
  assert (
    client.post("/api/v1/feedback", json=sent | {"result_id": send(client).json()["result_id"]}).status_code
    == 201
  )


def test_feedback_is_for_ones_own_results(client):
  sent = {"result_id": send(client).json()["result_id"], "label": "unsure"}
  other, _ = client.app.state.context.keys.create(label="", scopes=["detect"])
  theirs = {"Authorization": f"Bearer {other}"}
  assert code_of(client.post("/api/v1/feedback", json=sent, headers=theirs)) == (404, "unknown_result")
  for wrong in (
    {"label": "fake"},
    {"result_id": "x"},
    {"comment": "x" * 2001},
    {"comment": "\0"},
    {"more": 1},
  ):
    assert code_of(client.post("/api/v1/feedback", json=sent | wrong)) == (422, "invalid")
  for content in (b"", b"{", b"[]", b"\xff", b'{"a":' * 5000):
    answer = client.post("/api/v1/feedback", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.headers["content-type"] == "application/problem+json"
  # What was sent is not repeated.
  secret = {"result_id": API_KEY, "label": API_KEY}
  assert API_KEY not in client.post("/api/v1/feedback", json=secret).text


# About the service ----------------------------------------------------------------------------------------


def test_models_are_listed_without_their_folders(client):
  told = client.get("/api/v1/models").json()["models"]
  assert [(m["name"], m["version"], m["default"]) for m in told] == [
    ("fake", "1.0.0", True),
    ("fake", "2.0.0", False),
  ]
  assert told[0]["card"] == "# A fake\n" and told[0]["sha256"] == "ab" * 32 and "folder" not in told[1]


def test_health_and_readiness(client, monkeypatch):
  assert client.get("/healthz").json() == {"status": "ok", "version": __version__}
  context = client.app.state.context
  ready = client.get("/readyz")
  assert ready.status_code == 200 and ready.json()["status"] == "ready"
  context.phase.draining = True
  told = client.get("/readyz")
  assert told.status_code == 503 and told.json()["draining"] is True and told.json()["status"] == "not_ready"
  # Who comes nevertheless is answered: whoever shares out the requests needs a moment to see it.
  assert send(client).status_code == 200
  context.phase.draining = False
  monkeypatch.setattr(context.uploads, "free_bytes", lambda: 1000)
  assert client.get("/readyz").json()["disk"] is False and client.get("/readyz").status_code == 503
  monkeypatch.undo()
  monkeypatch.setattr(context.store, "is_well", lambda: False)
  assert client.get("/readyz").json()["database"] is False


def test_metrics_count_without_names(client):
  send(client, name="private-name.png")
  send(client, name="private-name.png")
  send(client, png(note=b"BAD"))
  client.get("/api/v1/private-name")
  text = client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_KEY}"}).text
  assert 'deepscan_requests_total{method="POST",route="/api/v1/detect/image",status="200"} 2.0' in text
  assert 'deepscan_requests_total{method="GET",route="none",status="404"} 1.0' in text
  assert 'deepscan_problems_total{code="unreadable"} 1.0' in text
  assert 'deepscan_cached_results_total{kind="image"} 1.0' in text
  assert re.search(r'deepscan_results_total\{kind="image",model="fake@1.0.0",outcome="\w+"\} 2.0', text)
  assert "deepscan_detections 2.0" in text and "deepscan_resident_bytes" in text
  assert "deepscan_in_progress 1.0" in text and "deepscan_files 0.0" in text
  assert "private-name" not in text and API_KEY not in text


def test_the_description_asks_nobody_else(client):
  page = client.get("/api/v1/docs", headers={"Authorization": ""})
  assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
  named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
  assert len(named) == 4 and not [url for url in named if "//" in url]
  # No script stands in the page itself: the policy would not run it.
  assert re.findall(r"<script[^>]*>([^<]*)</script>", page.text) == ["", ""]
  for url in named:
    answer = client.get(f"/api/v1/{url}", headers={"Authorization": ""})
    assert answer.status_code == 200 and len(answer.content) > 100
  assert 'url: "openapi.json"' in client.get("/api/v1/docs/start.js").text
  assert code_of(client.get("/api/v1/docs/other.js")) == (404, "not_found")
  assert "https:" not in routes_service._START


def test_the_description_says_all_there_is(client):
  schema = client.get("/api/v1/openapi.json").json()
  assert schema["info"] == {
    "title": "deepscan",
    "version": __version__,
    "description": schema["info"]["description"],
  }
  for path, methods in schema["paths"].items():
    for method, operation in methods.items():
      public = path in ("/healthz", "/readyz")
      assert bool(operation.get("security")) is not public, path
      if not public:
        assert {"401", "403", "429"} <= set(operation["responses"]), path
      for status, answer in operation["responses"].items():
        kinds = set(answer.get("content", {}))
        if status[0] in "45" and path != "/readyz":
          assert kinds == {"application/problem+json"}, (path, method, status)
  assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
  assert "HTTPValidationError" not in json.dumps(schema)


def test_problems_are_what_the_standard_says(client):
  for method, path, expected in (
    ("GET", "/api/v1/nothing", (404, "not_found")),
    ("DELETE", "/api/v1/models", (405, "method_not_allowed")),
    ("GET", "/api/v1/detect/image", (405, "method_not_allowed")),
  ):
    answer = client.request(method, path)
    assert code_of(answer) == expected
    told = answer.json()
    jsonschema.validate(told, problems.ProblemDetails.model_json_schema())
    assert told["type"] == f"urn:deepscan:problem:{expected[1]}" and told["status"] == answer.status_code
    assert ("allow" in answer.headers) == (expected[0] == 405)


def test_every_code_says_what_to_do():
  for code, (status, title, remedy) in problems.PROBLEMS.items():
    assert (
      re.fullmatch(r"[a-z_]+", code) and 400 <= status < 600 and title and remedy.endswith(".")
    ) or "curl" in remedy
  with pytest.raises(KeyError):
    problems.Problem("no_such_code", "x")


def test_requests_keep_the_id_that_they_came_with(client):
  mine = "0b7ac1f4-9d0e-4f7c-8a57-9cdd5f0f3f11"
  assert client.get("/healthz", headers={"X-Request-ID": mine}).headers["x-request-id"] == mine
  for other in ("x", "a" * 200, "a\tb", API_KEY):
    assert client.get("/healthz", headers={"X-Request-ID": other}).headers["x-request-id"] != other


# Logs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def log_lines():
  """Reads what the service logs, as it would be written."""
  stream = io.StringIO()
  root = logging.getLogger()
  before = root.handlers[:], root.level
  json_logs.set_up(secrets=[SECRET_KEY, API_KEY, METRICS_KEY], stream=stream)

  def read() -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]

  read.text = stream.getvalue
  yield read
  root.handlers[:], root.level = before
  logging.getLogger("uvicorn.access").disabled = False


def test_a_request_is_a_line_of_json(client, log_lines):
  answer = send(client, name="private.png")
  (line,) = [line for line in log_lines() if line["message"] == "request"]
  assert line["request_id"] == answer.headers["x-request-id"] and line["route"] == "/api/v1/detect/image"
  assert (line["method"], line["status"], line["key_id"], line["level"]) == ("POST", 200, "env", "info")
  assert line["seconds"] > 0 and line["received_bytes"] > 32 and line["problem"] is None
  assert "private" not in log_lines.text()
  client.get("/healthz")
  assert len([line for line in log_lines() if line["message"] == "request"]) == 1


def test_no_key_is_ever_logged(client, log_lines):
  made, _ = client.app.state.context.keys.create(label="", scopes=["detect"])
  wrong = made[:-1] + ("A" if made[-1] != "A" else "B")
  secrets = (made, wrong, API_KEY, METRICS_KEY, "some-other-secret")
  for secret in secrets:
    headers = {
      "Authorization": f"Bearer {secret}",
      "X-Request-ID": secret,
      "User-Agent": secret,
      "Referer": secret,
    }
    client.get("/api/v1/models", headers=headers)
    client.get(f"/api/v1/{secret}?key={secret}", headers=headers)
    client.post("/api/v1/feedback", headers=headers, json={"result_id": secret})
    client.post("/api/v1/detect/image", headers=headers, files={"image": (f"{secret}.png", png())})
    send(client, png(note=b"DEFECT"), name=f"{secret}.png")
    # Whatever a library says of a request is cleaned too.
    logging.getLogger("library").error("Authorization: Bearer %s failed", secret)
    try:
      raise ValueError(f"bearer {secret} is not right")
    except ValueError:
      logging.getLogger("library").exception("It failed.", extra={"header": f"Bearer {secret}"})
  assert len(log_lines()) > 20
  for secret in secrets:
    assert secret not in log_lines.text(), secret
  assert json_logs.REDACTED in log_lines.text() and "traceback" in log_lines()[-1]


def test_refused_keys_are_logged(client, log_lines):
  for key, code in (("wrong" * 10, "wrong_key"), (METRICS_KEY, "wrong_scope")):
    answer = client.get("/api/v1/models", headers={"Authorization": f"Bearer {key}"})
    lines = [line for line in log_lines() if line["request_id"] == answer.headers["x-request-id"]]
    assert lines[-1]["problem"] == code and lines[-1]["address"] == "testclient"
  assert [line["code"] for line in log_lines() if line["message"] == "A key was refused."] == ["wrong_key"]


def test_lines_stay_lines(log_lines):
  logging.getLogger("x").warning("two\nlines \u202e %s", {"a": 1}, extra={"odd": object()})
  (line,) = log_lines()
  assert line["message"] == "two\nlines \u202e {'a': 1}" and "\u202e" not in log_lines.text()
