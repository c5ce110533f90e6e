"""Whether the time of a refusal tells what was wrong with a key: `deepscan benchmark serve --part=keys`.

Requests with keys that are refused for each of the reasons there are take turns, in an order that is drawn
anew each time, so that whatever else the machine does falls on all of them alike. That two sorts differ is
told by how often a request of the one takes longer than one of the other: half of the time where time tells
nothing. Tests see to it that the work is the same (test_serve_auth.py); this is what is left of it at a
client.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from . import benchmark_serve_overhead as overhead

# Pairs of sorts, which nobody should be able to tell apart: what is known of an id, or of a secret, stays so.
SECRETS = ("another secret", "an id that nobody has", "expired", "revoked")
# A share of the pairs, beside one half: chance alone stays below it with 400 requests of each sort.
MOST_APART = 0.07
_ROUNDS = 400
_WARM_UP = 20


def keys_rows(
  folder: Path, *, row: Callable, share_row: Callable, rounds: int = _ROUNDS, seed: int = 0
) -> list:
  """Half of the refusals of each sort take so long, and how far time tells one from another.

  Args:
    folder: of the service's own files.
    row: row(case, seconds).
    share_row: share_row(case, share, limit).
    rounds: requests of each sort.
    seed: of their order.

  Raises:
    RuntimeError: the service did not start, or did not refuse one of them as it should.
  """
  headers = {
    sort: {} if key is None else {"Authorization": f"Bearer {key}"} for sort, key in _keys(folder).items()
  }
  log = folder / "service.log"
  with (
    log.open("wb") as stderr,
    subprocess.Popen([sys.executable, "-m", overhead.__name__, str(folder)], stderr=stderr) as process,
  ):
    try:
      host, port = overhead.address(process, log)
      with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:

        def ask(sort: str) -> float:
          started = time.perf_counter()
          connection.request("GET", "/api/v1/models", headers=headers[sort])
          answer = connection.getresponse()
          answer.read()
          seconds = time.perf_counter() - started
          if answer.status != _STATUS.get(sort, 401):
            raise RuntimeError(f"A key that is {sort} was answered {answer.status}.")
          return seconds

        taken = in_random_turns(list(headers), ask, rounds=rounds, rng=random.Random(seed))
    finally:
      process.kill()
  return rows_of(taken, row=row, share_row=share_row)


def in_random_turns(
  sorts: list[str], ask: Callable[[str], float], *, rounds: int, rng: random.Random
) -> dict[str, list[float]]:
  """What `ask` says of each sort so many times, in rounds of all of them, after some to begin with."""
  taken: dict[str, list[float]] = {sort: [] for sort in sorts}
  for number in range(_WARM_UP + rounds):
    for sort in rng.sample(sorts, len(sorts)):
      seconds = ask(sort)
      if number >= _WARM_UP:
        taken[sort].append(seconds)
  return taken


def rows_of(taken: Mapping[str, list[float]], *, row: Callable, share_row: Callable) -> list:
  """The rows: medians, and the pair of SECRETS that time tells apart most."""
  rows = [row(f"refused: {sort}, half of them", statistics.median(times)) for sort, times in taken.items()]
  pairs = [(abs(longer(taken[a], taken[b]) - 0.5), a, b) for a, b in itertools.combinations(SECRETS, 2)]
  most, a, b = max(pairs)
  rows.append(share_row(f"time tells {a} from {b}, beside one half", most, MOST_APART))
  return rows


def longer(these: list[float], those: list[float]) -> float:
  """How often one of these takes longer than one of those, ties half: one half where they are alike."""
  a, b = np.array(these)[:, None], np.array(those)[None]
  return float(((a > b) + 0.5 * (a == b)).mean())


_STATUS = {"without the scope": 403}


def _keys(folder: Path) -> dict[str, str | None]:
  """A key of each sort that is refused, in the database of a service that is about to start."""
  from deepscan_jax.serve import keys, settings, store

  settings = settings.Settings(secret_key=overhead.SECRET, data_dir=folder)
  database = store.open_database(settings.database_url)
  known = keys.KeyStore(database, overhead.SECRET)
  long_ago = keys.KeyStore(database, overhead.SECRET, clock=lambda: 1e9)
  right, _ = known.create(label="", scopes=["detect"])
  gone, info = known.create(label="", scopes=["detect"])
  known.revoke(info.id)
  made = {
    "no key": None,
    "another secret": right[:-8] + ("A" * 8 if right[-8:] != "A" * 8 else "B" * 8),
    "an id that nobody has": "dfk_" + "a" * 8 + right[12:],
    "expired": long_ago.create(label="", scopes=["detect"], expires_s=60)[0],
    "revoked": gone,
    "without the scope": known.create(label="", scopes=["metrics"])[0],
  }
  database.dispose()
  return made
