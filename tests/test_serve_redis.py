"""Limits that several replicas share in Redis, which may go away; skipped without redis-server."""

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import redis_server
from serve_fakes import API_KEY, AUTH, png, service
from test_serve_process import running

from deepscan_jax.serve import limits

WRONG = {"Authorization": "Bearer " + "wrong" * 10}


@pytest.fixture
def redis():
  with redis_server.running() as server:
    if server is None:
      pytest.skip("redis-server is not installed.")
    yield server


def test_exactly_as_many_pass_as_may_of_two_processes_together(redis, tmp_path):
  limit, more = 15, 9
  folders = [tmp_path / name for name in ("a", "b")]
  for folder in folders:
    folder.mkdir()
  changes = {"redis_url": redis.url, "requests_per_hour": limit}
  with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as clients:
    begun = [
      clients.submit(lambda f=folder: stack.enter_context(running(f, **changes))) for folder in folders
    ]
    replicas = [service.result() for service in begun]
    answers = list(
      clients.map(lambda number: replicas[number % 2].send(png(note=b"%d" % number)), range(limit + more))
    )
  statuses = [answer.status_code for answer in answers]
  assert (statuses.count(200), statuses.count(429)) == (limit, more)
  # Each of them let some through: neither counted for itself.
  assert all(200 in statuses[place::2] for place in (0, 1))
  refused = next(answer for answer in answers if answer.status_code == 429)
  assert refused.json()["code"] == "rate_limited" and 3500 < int(refused.headers["retry-after"]) <= 3600


def test_wrong_keys_count_wherever_they_are_tried(redis, tmp_path):
  folders = [tmp_path / name for name in ("a", "b")]
  for folder in folders:
    folder.mkdir()
  with contextlib.ExitStack() as stack:
    replicas = [
      stack.enter_context(service(folder, redis_url=redis.url, failed_auth_per_hour=4)) for folder in folders
    ]
    turns = itertools.cycle(replicas)
    ask = lambda headers: next(turns).get("/api/v1/models", headers=headers)  # noqa: E731
    assert [ask(WRONG).status_code for _ in range(6)] == [401] * 4 + [429] * 2
    assert [ask(AUTH).json()["code"] for _ in range(2)] == ["too_many_failures"] * 2


def test_without_redis_each_counts_until_it_is_back(redis, monkeypatch, caplog):
  monkeypatch.setattr(limits, "_AGAIN_S", 0.1)
  fallbacks: list[int] = []
  replicas = [limits.Limits(redis.url, on_fallback=lambda n=n: fallbacks.append(n)) for n in range(2)]

  async def ask(count: int) -> list[bool]:
    return [(await replicas[n % 2].hit("requests", API_KEY, limit=4)).allowed for n in range(count)]

  async def story() -> None:
    assert await ask(6) == [True] * 4 + [False] * 2 and not fallbacks
    redis.stop()
    # Each lets through as many as it would alone, and nobody is locked out.
    assert await ask(10) == [True] * 8 + [False] * 2
    assert set(fallbacks) == {0, 1} and "Redis does not answer" in caplog.text
    redis.start()
    await anyio.sleep(0.2)
    known = len(fallbacks)
    assert await ask(6) == [True] * 4 + [False] * 2 and len(fallbacks) == known

  anyio.run(story)


def test_a_service_goes_on_when_redis_goes_away(redis, tmp_path):
  with service(tmp_path, redis_url=redis.url) as client:
    post = lambda note: client.post("/api/v1/detect/image", files={"image": ("a.png", png(note=note))})  # noqa: E731
    assert post(b"1").status_code == 200
    redis.stop()
    answer = post(b"2")
    assert answer.status_code == 200 and answer.headers["ratelimit"]
    metrics = client.app.state.context.metrics.text().decode()
    assert "deepscan_redis_fallbacks_total 1.0" in metrics
