import asyncio
import hmac
import time

import anyio
import httpx
import pytest
import sqlalchemy as sa
from serve_fakes import API_KEY, METRICS_KEY, SECRET_KEY, FakeEngine, make_settings, png, service
from starlette.routing import Route

from deepscan_jax.serve import auth, limits, store
from deepscan_jax.serve import keys as keys_module
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.keys import KeyStore, WrongKey

NO_KEY = {"Authorization": ""}


def bearer(key: str) -> dict[str, str]:
  return {"Authorization": f"Bearer {key}"}


def every_route(app) -> list[tuple[str, str]]:
  """(method, path) of all that the app answers, described or not, with something for each parameter."""
  found = []

  def look(routes, prefix=""):
    for route in routes:
      if isinstance(route, Route) or hasattr(route, "endpoint"):
        path = prefix + route.path.replace("{", "").replace("}", "")
        found.extend((method, path) for method in sorted(getattr(route, "methods", None) or ()))
      else:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        look(getattr(inner, "routes", ()), prefix + getattr(route, "path", "").rstrip("/"))

  look(app.routes)
  return sorted(set(found))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
  folder = tmp_path_factory.mktemp("auth")
  with service(folder, failed_auth_per_hour=1000) as client:
    yield client


@pytest.fixture(scope="module")
def keys(client):
  """A key of each sort, by what is wrong with it."""
  made = client.app.state.context.keys
  expired, info = made.create(label="old", scopes=["detect"], expires_s=60)
  with client.app.state.context.database.begin() as connection:
    connection.execute(
      sa.update(store.KEYS).where(store.KEYS.c.id == info.id).values(expires=time.time() - 1)
    )
  revoked, info = made.create(label="gone", scopes=["detect"])
  made.revoke(info.id)
  right = made.create(label="right", scopes=["detect", "batch"])[0]
  return {
    "missing": None,
    "wrong": right[:-1] + ("A" if right[-1] != "A" else "B"),
    "unknown": "dfk_" + "a" * 8 + "_" + "b" * 43,
    "malformed": "hello",
    "expired": expired,
    "revoked": revoked,
    "right": right,
    "static": API_KEY,
  }


REFUSED = {
  "missing": (401, "missing_key"),
  "wrong": (401, "wrong_key"),
  "unknown": (401, "wrong_key"),
  "malformed": (401, "wrong_key"),
  "expired": (401, "expired_key"),
  "revoked": (401, "wrong_key"),
}


@pytest.mark.parametrize("sort", REFUSED)
def test_every_route_but_health_and_docs_wants_a_right_key(client, keys, sort):
  routes = every_route(client.app)
  assert len([path for _, path in routes if path.startswith("/api/v1/detect/")]) >= 3
  asked = 0
  for method, path in routes:
    answer = client.request(method, path, headers=NO_KEY if keys[sort] is None else bearer(keys[sort]))
    if auth.is_public(path):
      assert answer.status_code in (200, 404), path
      continue
    asked += 1
    status, code = REFUSED[sort]
    assert answer.status_code == status, path
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="deepscan"'
    if method == "HEAD":  # has no body
      continue
    assert answer.json()["code"] == code, path
    assert answer.json()["remedy"] and answer.json()["request_id"] == answer.headers["x-request-id"]
  assert asked >= 5


def test_what_is_public_is_health_docs_and_the_page_only(client):
  public = {path for _, path in every_route(client.app) if auth.is_public(path)}
  allowed = {
    "/",
    "/web/name",
    "/healthz",
    "/readyz",
    "/api/v1/openapi.json",
    "/api/v1/docs",
    "/api/v1/docs/name",
  }
  assert public <= allowed and {"/healthz", "/readyz", "/api/v1/docs"} <= public
  # Neither is what only looks like it.
  for path in ("/healthz/", "/api/v1/docs/../models", "/api/v1", "/nothing", "//healthz", "/metrics"):
    assert not auth.is_public(path) or path == "/api/v1/docs/../models"
    # With its host, for two strokes alone would begin one.
    assert client.get(f"http://testserver{path}", headers=NO_KEY).status_code in (401, 404)


@pytest.mark.parametrize(
  "path, key", [("/metrics", API_KEY), ("/api/v1/models", METRICS_KEY), ("/metrics", "right")]
)
def test_a_key_without_the_scope_is_told_so(client, keys, path, key):
  answer = client.get(path, headers=bearer(keys.get(key, key)))
  assert (answer.status_code, answer.json()["code"]) == (403, "wrong_scope")
  assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_without_the_scope_sends_no_file(client):
  answer = client.post("/api/v1/detect/image", files={"image": ("a.png", png())}, headers=bearer(METRICS_KEY))
  assert (answer.status_code, answer.json()["code"]) == (403, "wrong_scope")
  assert not client.app.state.context.engine.calls


def test_right_keys_open(client, keys):
  for key in (keys["right"], API_KEY):
    assert client.get("/api/v1/models", headers=bearer(key)).status_code == 200
  assert client.get("/metrics", headers=bearer(METRICS_KEY)).status_code == 200
  # The scheme's name has no case (RFC 9110), the key has.
  assert client.get("/api/v1/models", headers={"Authorization": f"bEARER {API_KEY}"}).status_code == 200
  assert client.get("/api/v1/models", headers=bearer(API_KEY.upper())).status_code == 401
  assert client.get("/api/v1/models", headers={"Authorization": f"Basic {API_KEY}"}).status_code == 401


def test_all_checks_do_the_same_work(client, keys, monkeypatch):
  """Time is not measured, for it says little on a busy machine; what takes it is counted."""
  context = client.app.state.context
  monkeypatch.setattr(keys_module, "REMEMBERED_S", 0.0)
  counts = {}

  def counting(name, function):
    def counted(*args, **kwargs):
      counts[name] = counts.get(name, 0) + 1
      return function(*args, **kwargs)

    return counted

  monkeypatch.setattr(hmac, "digest", counting("hashes", hmac.digest))
  monkeypatch.setattr(hmac, "compare_digest", counting("comparisons", hmac.compare_digest))
  statements = []

  def asked(*args) -> None:
    # Those who work on jobs look for some all the time.
    if "batch_" not in args[2]:
      statements.append(args[2])

  sa.event.listen(context.database, "before_cursor_execute", asked)
  work = {}
  for sort, key in keys.items():
    counts.clear()
    statements.clear()
    client.get("/api/v1/models", headers=NO_KEY if key is None else bearer(key))
    work[sort] = (dict(counts), list(statements))
  assert work["right"][0] == {"hashes": 1, "comparisons": 3} and len(work["right"][1]) == 1
  for sort, done in work.items():
    assert done == work["right"], sort


def test_a_right_key_is_remembered_for_a_moment_and_not_past_its_end(tmp_path):
  now = [1000.0]
  database = store.open_database(f"sqlite:///{tmp_path / 'keys.sqlite3'}")
  here, elsewhere = (KeyStore(database, SECRET_KEY, clock=lambda: now[0]) for _ in range(2))
  key, info = here.create(label="", scopes=["detect"], expires_s=10.3)
  assert here.remembered(here.digest(key)) is None
  here.check(key)
  for clock, remembered in ((1000.9, True), (1001.1, False), (999.0, False), (1010.2, False)):
    now[0] = clock
    assert (here.remembered(here.digest(key)) == info) is remembered, clock
  assert here.check(key) == info and here.remembered(here.digest(key)) == info
  now[0] = 1010.4
  assert here.remembered(here.digest(key)) is None
  with pytest.raises(WrongKey, match="expired_key"):
    here.check(key)
  second, info = here.create(label="", scopes=["detect"])
  here.check(second)
  elsewhere.revoke(info.id)
  now[0] += 1.0
  assert here.remembered(here.digest(second)) is None
  with pytest.raises(WrongKey, match="wrong_key"):
    here.check(second)
  third, info = here.create(label="", scopes=["detect"])
  here.check(third)
  here.revoke(info.id)
  assert here.remembered(here.digest(third)) is None
  for wrong in (None, "", "nothing", key[:-1]):
    assert here.remembered(here.digest(wrong)) is None


def test_only_a_keyed_hash_is_kept(tmp_path):
  database = store.open_database(f"sqlite:///{tmp_path / 'keys.sqlite3'}")
  key, info = KeyStore(database, SECRET_KEY).create(label="a", scopes=["detect"])
  assert len(key) == 4 + 8 + 1 + 43 and key.startswith(f"dfk_{info.id}_")
  stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
  assert info.id.encode() in stored and key.encode() not in stored and key[13:].encode() not in stored
  assert hmac.digest(SECRET_KEY.encode(), key.encode(), "sha256") in stored
  assert KeyStore(database, SECRET_KEY).check(key).id == info.id
  # Under another secret, nothing is right.
  with pytest.raises(WrongKey):
    KeyStore(database, SECRET_KEY[::-1]).check(key)
  assert (tmp_path / "keys.sqlite3").stat().st_mode & 0o777 == 0o600


def test_keys_differ_and_say_what_they_may(tmp_path):
  now = [1000.0]
  made = KeyStore(
    store.open_database(f"sqlite:///{tmp_path / 'keys.sqlite3'}"), SECRET_KEY, clock=lambda: now[0]
  )
  all_keys = {made.create(label="x", scopes=["batch"], expires_s=5)[0] for _ in range(50)}
  assert len(all_keys) == 50
  key = all_keys.pop()
  assert made.check(key).scopes == {"batch"} and made.check(key).expires == 1005
  now[0] = 1005.0
  with pytest.raises(WrongKey) as error:
    made.check(key)
  assert error.value.code == "expired_key"
  with pytest.raises(ValueError, match="Scopes are detect, batch, metrics; got all"):
    made.create(label="x", scopes=["all"])
  with pytest.raises(ValueError, match="Scopes are"):
    made.create(label="x", scopes=[])
  with pytest.raises(ValueError, match="no key nothing"):
    made.revoke("nothing")


# Limits ---------------------------------------------------------------------------------------------------


def ask_at_once(app, count: int, *, at_once: int, key: str = API_KEY) -> list[httpx.Response]:
  """The answers to so many requests for a picture, each another one."""

  async def ask() -> list[httpx.Response]:
    tokens = asyncio.Semaphore(at_once)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:

      async def one(number: int) -> httpx.Response:
        async with tokens:
          return await client.post(
            "http://test/api/v1/detect/image",
            files={"image": ("a.png", png(note=b"%d" % number))},
            headers=bearer(key),
          )

      return await asyncio.gather(*(one(number) for number in range(count)))

  return asyncio.run(ask())


def test_exactly_as_many_pass_as_may(tmp_path):
  app = make_app(make_settings(tmp_path, requests_per_hour=20), FakeEngine())
  answers = ask_at_once(app, 35, at_once=8)
  passed = [a for a in answers if a.status_code == 200]
  refused = [a for a in answers if a.status_code == 429]
  assert (len(passed), len(refused)) == (20, 15)
  assert sorted(int(a.headers["ratelimit"].split("r=")[1].split(";")[0]) for a in passed) == list(range(20))
  for answer in refused:
    assert answer.json()["code"] == "rate_limited" and answer.headers["ratelimit"].startswith(
      '"requests";r=0;t='
    )
    assert answer.headers["ratelimit-policy"] == '"requests";q=20;w=3600'
    assert 3590 < int(answer.headers["retry-after"]) <= 3600


def test_a_key_may_have_a_limit_of_its_own(tmp_path):
  with service(tmp_path, requests_per_hour=1) as client:
    key, _ = client.app.state.context.keys.create(label="", scopes=["detect"], requests_per_hour=2)

    def ask(key):
      return client.post("/api/v1/detect/image", files={"image": ("a.png", png())}, headers=bearer(key))

    assert [ask(key).status_code for _ in range(3)] == [200, 200, 429]
    assert [ask(API_KEY).status_code for _ in range(2)] == [200, 429]
    # What costs nothing is not counted among them.
    assert client.get("/api/v1/models").status_code == 200


def test_wrong_keys_from_one_address_are_slowed_down(tmp_path):
  with service(tmp_path, failed_auth_per_hour=3) as client:
    ask = lambda key: client.get("/api/v1/models", headers=bearer(key))  # noqa: E731
    # No key at all is no guess.
    assert {client.get("/api/v1/models", headers=NO_KEY).status_code for _ in range(5)} == {401}
    assert [ask("wrong" * 10).status_code for _ in range(4)] == [401, 401, 401, 429]
    answer = ask(API_KEY)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_failures")
    assert 3590 < int(answer.headers["retry-after"]) <= 3600
    assert client.get("/healthz", headers=NO_KEY).status_code == 200


def test_an_address_stands_for_who_owns_it():
  assert auth.neighbourhood("2001:db8::1") == auth.neighbourhood("2001:db8::ffff:2") == "2001:db8::/64"
  assert auth.neighbourhood("::ffff:192.0.2.1") == auth.neighbourhood("192.0.2.1") == "192.0.2.1"
  assert auth.neighbourhood("unknown") == "unknown"


def test_windows_move_and_are_forgotten():
  now = [0.0]
  windows = limits.Windows(clock=lambda: now[0])
  ask = lambda who, count=True: windows.ask("a", who, limit=2, window_s=10, count=count)  # noqa: E731
  assert ask("x") == (True, 1, 10)
  now[0] = 4.0
  assert ask("x") == (True, 0, 6) and ask("x") == (False, 0, 6)
  now[0] = 10.0
  assert ask("x", count=False) == (True, 1, 4) and ask("x") == (True, 0, 4)
  for number in range(1000):
    ask(str(number))
  assert len(windows) == 1001
  now[0] = 100.0
  assert ask("y") == (True, 1, 10) and len(windows) == 1


def test_without_redis_this_process_counts(caplog):
  fallbacks = []
  # Nobody listens at this port.
  shared = limits.Limits("redis://:secret@127.0.0.1:1/0", on_fallback=lambda: fallbacks.append(1))

  async def ask() -> list[bool]:
    return [(await shared.hit("requests", "me", limit=3)).allowed for _ in range(5)]

  assert anyio.run(ask) == [True, True, True, False, False]
  # It is not asked again at once.
  assert fallbacks == [1] and "secret" not in caplog.text and "Redis does not answer" in caplog.text
  with pytest.raises(ValueError, match="must begin with redis://"):
    limits.Limits("http://secret@elsewhere")


def test_more_wrong_keys_at_once_than_may_be_tried_are_told_apart(tmp_path):
  app = make_app(make_settings(tmp_path, failed_auth_per_hour=5), FakeEngine())
  answers = ask_at_once(app, 20, at_once=8, key="wrong" * 10)
  assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 15
  assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {"too_many_failures"}


def test_no_key_is_ever_in_the_answers(client, keys):
  for key in (keys["right"], keys["wrong"], API_KEY):
    for path in (f"/api/v1/{key}", f"/api/v1/models?key={key}", "/api/v1/models"):
      answer = client.get(path, headers=bearer(key) | {"X-Request-ID": key})
      # An id of one's own choice comes back; a key is none.
      assert key not in answer.text and key not in str(answer.headers)
