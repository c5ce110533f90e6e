import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from absl import flags
from serve_fakes import API_KEY, SECRET_KEY, make_settings

from deepscan_jax.launch import serve
from deepscan_jax.serve import store
from deepscan_jax.serve.keys import KeyStore
from deepscan_jax.serve.settings import Settings, environment_names

ENVIRONMENT = {"SECRET_KEY": SECRET_KEY}


def read(tmp_path, environ=None, **given) -> Settings:
  return Settings.read({"data_dir": tmp_path, "temp_dir": tmp_path} | given, ENVIRONMENT | (environ or {}))


def test_the_defaults_are_those_of_the_order(tmp_path):
  settings = read(tmp_path)
  assert (settings.port, settings.host, settings.models, settings.keep) == (5000, "127.0.0.1", (), None)
  assert 50 <= settings.requests_per_hour <= 100 and settings.shared_results is False
  assert settings.database_url == f"sqlite:///{tmp_path / 'service.sqlite3'}" and not settings.tls
  assert settings.most_bytes("video") > settings.most_bytes("audio") > settings.most_bytes("image") > 0


def test_flags_go_before_the_environment(tmp_path):
  environ = {"PORT": "8080", "MODEL_PATH": "a, b", "API_KEY": API_KEY, "DEEPSCAN_SHARED_RESULTS": "true"}
  environ |= {"DEEPSCAN_DRAIN_S": "2.5", "HOST": "", "DEEPSCAN_VIDEO_BYTES": "1000"}
  settings = read(tmp_path, environ)
  assert (settings.port, settings.models, settings.api_key) == (8080, (Path("a"), Path("b")), API_KEY)
  assert (settings.shared_results, settings.drain_s, settings.video_bytes) == (True, 2.5, 1000)
  assert settings.host == "127.0.0.1"
  assert read(tmp_path, environ, port=9000).port == 9000


def test_secrets_may_stand_in_files(tmp_path):
  (tmp_path / "secret").write_text(SECRET_KEY[::-1] + "\n")
  names = {"SECRET_KEY_FILE": str(tmp_path / "secret")}
  assert Settings.read({"temp_dir": tmp_path}, names).secret_key == SECRET_KEY[::-1]
  assert Settings.read({"temp_dir": tmp_path, "secret_key_file": names["SECRET_KEY_FILE"]}, {}).secret_key
  with pytest.raises(
    ValueError, match=r"SECRET_KEY cannot be read from .*none, which SECRET_KEY_FILE names: No such"
  ):
    Settings.read({}, {"SECRET_KEY_FILE": str(tmp_path / "none")})
  (tmp_path / "secret").write_text("")
  with pytest.raises(ValueError, match="SECRET_KEY is not set"):
    Settings.read({}, names)


def test_urls_of_stores_may_stand_in_files_and_empty_ones_are_none(tmp_path):
  for name, url in (("DATABASE_URL", f"sqlite:///{tmp_path}/of_file"), ("REDIS_URL", "redis://of-file/0")):
    (tmp_path / name).write_text(f"{url}\n")
    settings = read(tmp_path, {f"{name}_FILE": str(tmp_path / name)})
    assert getattr(settings, name.lower()) == url and url not in repr(settings)
    # The variable itself goes before its file, and nothing is as good as none of both.
    given = read(tmp_path, {name: "redis://other/1", f"{name}_FILE": str(tmp_path / name)})
    assert getattr(given, name.lower()) == "redis://other/1"
  empty = read(tmp_path, {"DATABASE_URL": "", "REDIS_URL": ""})
  assert empty.redis_url is None and empty.database_url == f"sqlite:///{tmp_path / 'service.sqlite3'}"


WEAK = [
  "short",
  "x" * 31,
  "x" * 64,
  "abcabcabcabcabcabcabcabcabcabcabcabc",
  "pass word " * 5,
  "\u00e4bcdefghi" * 5,
]


@pytest.mark.parametrize("secret", ["", *WEAK])
@pytest.mark.parametrize("name", ["SECRET_KEY", "API_KEY", "METRICS_KEY"])
def test_weak_secrets_are_refused(tmp_path, name, secret):
  with pytest.raises(ValueError, match=rf"{name} (is too weak|may hold|is not set)") as error:
    read(tmp_path, {name: secret})
  assert "secrets.token_urlsafe(32)" in str(error.value)
  assert not secret or secret not in str(error.value)


def test_a_service_without_a_secret_does_not_start(tmp_path):
  with pytest.raises(ValueError, match="SECRET_KEY is not set"):
    Settings.read({"temp_dir": tmp_path}, {})
  with pytest.raises(ValueError, match="must differ"):
    read(tmp_path, {"API_KEY": SECRET_KEY})


WRONG = [
  ({"PORT": "x"}, "PORT must be a whole number, got 'x'"),
  ({"PORT": "70000"}, "PORT must be 0 to 65535, got 70000"),
  ({"PORT": "-1"}, "PORT must be 0 or more, got -1"),
  ({"DEEPSCAN_DRAIN_S": "soon"}, "DEEPSCAN_DRAIN_S must be a number"),
  ({"DEEPSCAN_DRAIN_S": "nan"}, "DEEPSCAN_DRAIN_S must be 0 or more"),
  ({"DEEPSCAN_SHARED_RESULTS": "maybe"}, "DEEPSCAN_SHARED_RESULTS must be true or false"),
  ({"DEEPSCAN_REQUESTS_PER_HOUR": "0"}, "DEEPSCAN_REQUESTS_PER_HOUR must be 1 or more"),
  ({"DEEPSCAN_TEMP_DIR": "/nowhere"}, "temporary folder /nowhere is not there"),
  ({"DEEPSCAN_ROOTS": "/nowhere"}, "batch folder /nowhere is not there"),
  (
    {"DEEPSCAN_SSL_CERTFILE": "/nowhere"},
    "HTTPS needs both ssl_certfile and ssl_keyfile; ssl_keyfile is not",
  ),
  ({"DEEPSCAN_SSL_CERTFILE": "/nowhere", "DEEPSCAN_SSL_KEYFILE": "/nowhere"}, "There is no file /nowhere"),
  (
    {"DEEPSCAN_SSL_CERTFILE": __file__, "DEEPSCAN_SSL_KEYFILE": __file__},
    "are not a certificate and its key",
  ),
]


@pytest.mark.parametrize("environ, message", WRONG)
def test_wrong_values_are_told_in_a_sentence(environ, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    Settings.read({}, ENVIRONMENT | environ)


def test_no_secret_shows_where_settings_are_printed(tmp_path):
  settings = make_settings(
    tmp_path, redis_url="redis://:hunter2@x", database_url="postgresql://u:hunter2@x/y"
  )
  for secret in (SECRET_KEY, API_KEY, "hunter2"):
    assert secret not in repr(settings) and secret not in str(settings)


@pytest.mark.parametrize(
  "url, message",
  [
    ("sqlite://", "must be a file"),
    ("sqlite:////proc/nothing/x.db", "cannot be opened"),
    ("nonsense://:", "is not one"),
    ("mysql+nothing://u:hunter2@x/y", "not of 'mysql'"),
    ("postgresql://u:hunter2@127.0.0.1:1/y", "cannot be opened|needs psycopg"),
  ],
)
def test_a_database_that_cannot_be_opened_is_told(url, message):
  with pytest.raises(ValueError, match=message) as error:
    store.open_database(url)
  assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_two_processes_may_open_a_database_at_once(tmp_path):
  url = f"sqlite:///{tmp_path / 'deep' / 'x.sqlite3'}"
  first, second = store.open_database(url), store.open_database(url)
  key, _ = KeyStore(first, SECRET_KEY).create(label="x", scopes=["detect"])
  assert KeyStore(second, SECRET_KEY).check(key).label == "x"
  with first.connect() as connection:
    assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"


# The verb -------------------------------------------------------------------------------------------------


_TELL_FLAGS = """
import json
from absl import flags
from deepscan_jax.launch import serve
print(json.dumps({name: [flags.FLAGS[name].value is None, flags.FLAGS[name].help] for name in flags.FLAGS}))
"""


def test_every_setting_has_a_flag_and_an_environment_variable():
  names = environment_names()
  assert len(set(names.values())) == len(names) == len(dataclasses.fields(Settings))
  # In a process of its own: other verbs, which tests import too, have flags of the same names.
  told = json.loads(
    subprocess.run([sys.executable, "-c", _TELL_FLAGS], capture_output=True, check=True).stdout
  )
  for field in names:
    is_none, text = told[serve.FLAG_NAMES.get(field, field)]
    assert is_none and names[field] in text
  assert {"API_KEY", "SECRET_KEY", "MODEL_PATH", "PORT"} <= set(names.values())
  assert {"api_key_file", "secret_key_file"} <= set(told)


def deepscan(*args: str, **environ: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "launch", "serve", *args],
    capture_output=True,
    text=True,
    env={**os.environ, **ENVIRONMENT, **environ},
    cwd=Path(__file__).parents[1],
    timeout=120,
  )


def test_a_key_can_be_made_and_used(tmp_path):
  made = deepscan(
    "keys", "create", "--label=news room", "--scopes=detect,batch", DATABASE_URL=f"sqlite:///{tmp_path}/a"
  )
  assert made.returncode == 0, made.stderr
  key = made.stdout.strip()
  info = KeyStore(store.open_database(f"sqlite:///{tmp_path}/a"), SECRET_KEY).check(key)
  assert (info.label, info.scopes) == ("news room", {"detect", "batch"}) and key not in made.stderr


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
  """Runs the verb in this process; gives its exit code and what it printed."""
  monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
  monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'keys.sqlite3'}")

  def run(*words: str, **given):
    saved = {name: flags.FLAGS[name].value for name in given}
    try:
      for name, value in given.items():
        flags.FLAGS[name].value = value
      return serve.main(["deepscan serve", *words]), capsys.readouterr().out
    finally:
      for name, value in saved.items():
        flags.FLAGS[name].value = value

  return run


def test_keys_are_made_listed_and_revoked(verb):
  _, first = verb("keys", "create", label="one", expires_days=30.0)
  _, second = verb("keys", "create", label="two", expires_days=0.0, requests_per_hour=7, scopes=["metrics"])
  first_id, second_id = first[4:12], second[4:12]
  code, listed = verb("keys", "list")
  lines = [re.split(r"\s{2,}", line) for line in listed.splitlines()]
  assert code == 0 and lines[0] == ["id", "scopes", "made", "ends", "state", "an hour", "label"]
  rows = {line[0]: line[1:] for line in lines[1:]}
  ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
  assert rows[first_id][0] == "detect" and rows[first_id][3:] == ["valid", "one"]
  assert rows[first_id][2] in (f"{ends:%Y-%m-%d}", f"{ends - datetime.timedelta(minutes=5):%Y-%m-%d}")
  assert rows[second_id][0] == "metrics" and rows[second_id][2:] == ["never", "valid", "7", "two"]
  assert first.strip() not in listed and first.strip()[13:] not in listed
  assert verb("keys", "revoke", first_id)[0] == 0
  assert re.search(rf"{first_id}.*revoked", verb("keys", "list")[1])
  with pytest.raises(ValueError, match="that could be revoked"):
    verb("keys", "revoke", first_id)


def test_other_words_are_refused(verb):
  for words in (["nothing"], ["keys"], ["keys", "make"], ["keys", "revoke"], ["keys", "list", "all"]):
    with pytest.raises(serve.app.UsageError):
      verb(*words)
  with pytest.raises(ValueError, match="Scopes are"):
    verb("keys", "create", scopes=["everything"])
  with pytest.raises(serve.app.UsageError, match="0 or more"):
    verb("keys", "create", expires_days=-1.0)


def test_a_missing_secret_or_model_is_told(tmp_path):
  told = deepscan(SECRET_KEY="short")
  assert told.returncode == 2 and "SECRET_KEY is too weak" in told.stderr and "Traceback" not in told.stderr
