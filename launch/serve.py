"""Serves detection over HTTP: the API, its description and the web page; makes and revokes its keys.

    export SECRET_KEY=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')
    deepscan serve
    deepscan serve --host=0.0.0.0 --port=8443 --ssl_certfile=chain.pem --ssl_keyfile=key.pem
    deepscan serve keys create --label=newsroom --scopes=detect,batch --expires_days=90
    deepscan serve keys list
    deepscan serve keys revoke ID

Every setting may come from a flag or from the environment: HOST, PORT, MODEL_PATH, SECRET_KEY, API_KEY,
METRICS_KEY, DATABASE_URL and REDIS_URL, the others as DEEPSCAN_ and the setting's name in capitals. A secret
or URL may stand in a file instead: SECRET_KEY_FILE names it. A flag goes before the environment.

A key is shown once, when it is made; only a hash of it is kept, made with SECRET_KEY, without which it is
worth nothing. Scopes are detect, batch and metrics. Logs go to stderr, a line of JSON each.

SIGTERM ends it when what is under way is answered; SIGHUP loads the models again beside the old ones.

Exit codes: 0 ended as told, 1 a defect of this program, 2 wrong usage, 6 a model is missing or damaged.
"""

import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence

from absl import app, flags

from deepscan_jax.serve.settings import Settings, environment_names

# Read by __main__: when `main` returns, all is written, and nobody needs to wait for JAX to be taken apart.
LEAVES_AT_ONCE = True
NO_MODEL = 6
DAY_S = 86400.0
# Where a setting's flag has another name: that one means something else to other verbs.
FLAG_NAMES = {"models": "model_path", "data_dir": "service_dir", "workers": "decode_workers"}


def _define_flags() -> None:
  variables = environment_names()
  for field in dataclasses.fields(Settings):
    name = FLAG_NAMES.get(field.name, field.name)
    text = f"{field.metadata['help']} Environment: {variables[field.name]}."
    if field.default not in (None, "", (), False):
      text += f" Default: {field.default}."
    # No flag has a default: None says that it was not given, so that the environment counts.
    define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}.get(
      field.type, flags.DEFINE_string
    )
    define(name, None, text, allow_override=True)
    if field.metadata["secret"]:
      flags.DEFINE_string(f"{name}_file", None, f"File that holds {variables[field.name]}.")


_define_flags()
_LABEL = flags.DEFINE_string("label", "", "Whose key it is; for `keys create`.")
_SCOPES = flags.DEFINE_list("scopes", ["detect"], "What a key may do: detect, batch, metrics.")
_EXPIRES_DAYS = flags.DEFINE_float("expires_days", 365.0, "Days that a key holds; 0 is for ever.")


def main(argv: Sequence[str]) -> int | None:
  """Serves, or makes, lists or revokes keys; returns the exit code."""
  words = list(argv[1:])
  if words and words[0] != "keys":
    raise app.UsageError(f"serve knows `keys create|list|revoke`, not {words[0]!r}.")
  settings = read_settings()
  if words:
    return keys(settings, words[1:])
  return run(settings)


def read_settings() -> Settings:
  """The settings of the flags and the environment."""
  names = [(field.name, FLAG_NAMES.get(field.name, field.name)) for field in dataclasses.fields(Settings)]
  names += [(f"{field}_file", f"{flag}_file") for field, flag in names if f"{flag}_file" in flags.FLAGS]
  return Settings.read({field: flags.FLAGS[flag].value for field, flag in names}, os.environ)


def run(settings: Settings) -> int:
  """Serves until the process is told to end."""
  from deepscan_jax import checkpoints, compilation_cache
  from deepscan_jax.serve import engine, json_logs, server
  from deepscan_jax.serve.app import make_app

  engine.keep_memory_together()
  secrets = (settings.secret_key, settings.api_key, settings.metrics_key)
  json_logs.set_up(secrets=[secret for secret in secrets if secret])
  try:
    for folder in settings.models:
      checkpoints.read_model(folder)
  except checkpoints.CheckpointError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return NO_MODEL
  warning = compilation_cache.keep_programs(None)
  if warning:
    print(f"deepscan: {warning}", file=sys.stderr)
  models = engine.Engine(
    settings.models or [None], decodings=settings.workers, queue_limit=8 * settings.queue
  )
  service = make_app(settings, models)
  known = service.state.context.keys
  if not settings.api_key and not any(key.revoked is None for key in known.all()):
    print("deepscan: There is no key yet; make one with `deepscan serve keys create`.", file=sys.stderr)
  if not settings.tls and settings.host not in ("127.0.0.1", "::1", "localhost"):
    print(
      "deepscan: Keys and files are sent in the clear; use --ssl_certfile and --ssl_keyfile, or a proxy that "
      "speaks HTTPS.",
      file=sys.stderr,
    )
  return server.serve(service)


def keys(settings: Settings, words: Sequence[str]) -> int:
  """Makes, lists or revokes keys; returns the exit code."""
  from deepscan_jax.serve.app import key_store
  from deepscan_jax.serve.store import open_database

  usage = "Use `keys create`, `keys list` or `keys revoke ID`."
  store = key_store(settings, open_database(settings.database_url))
  match list(words):
    case ["create"]:
      days = _EXPIRES_DAYS.value
      if days < 0:
        raise app.UsageError(f"--expires_days must be 0 or more, got {days:g}.")
      key, info = store.create(
        label=_LABEL.value,
        scopes=[scope.strip() for scope in _SCOPES.value],
        expires_s=days * DAY_S or None,
        requests_per_hour=flags.FLAGS["requests_per_hour"].value,
      )
      print(key)
      until = f"until {_date(info.expires)}" if info.expires else "for ever"
      print(f"deepscan: Key {info.id} holds {until}; it is not shown again.", file=sys.stderr)
    case ["list"]:
      rows = [("id", "scopes", "made", "ends", "state", "an hour", "label")]
      now = datetime.datetime.now().timestamp()
      for key in store.all():
        ended = key.expires is not None and key.expires <= now
        state = "revoked" if key.revoked else "expired" if ended else "valid"
        limit = str(key.requests_per_hour or "")
        row = (key.id, ",".join(sorted(key.scopes)), _date(key.created), _date(key.expires), state, limit)
        rows.append((*row, key.label))
      widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
      for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    case ["revoke", key_id]:
      store.revoke(key_id)
      print(f"deepscan: Key {key_id} is revoked.", file=sys.stderr)
    case _:
      raise app.UsageError(usage)
  return 0


def _date(seconds: float | None) -> str:
  if seconds is None:
    return "never"
  return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}"


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
