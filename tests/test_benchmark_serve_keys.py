"""The benchmark of what a refusal tells by its time: turns, the statistic, and its rows."""

import random

import pytest

from deepscan_jax.launch import benchmark_serve_keys as keys


def test_sorts_take_turns_in_an_order_that_changes():
  asked = []

  def ask(sort: str) -> float:
    asked.append(sort)
    return float(len(asked))

  taken = keys.in_random_turns(["a", "b", "c"], ask, rounds=30, rng=random.Random(0))
  assert {sort: len(times) for sort, times in taken.items()} == {"a": 30, "b": 30, "c": 30}
  rounds = [tuple(asked[i : i + 3]) for i in range(0, len(asked), 3)]
  assert all(sorted(one) == ["a", "b", "c"] for one in rounds) and len(set(rounds)) == 6
  # The first ones warm up, and do not count.
  assert min(min(times) for times in taken.values()) > 3 * keys._WARM_UP


def test_time_that_tells_something_shows():
  assert keys.longer([1.0, 2.0], [1.0, 2.0]) == 0.5 and keys.longer([3.0, 4.0], [1.0, 2.0]) == 1.0
  rng = random.Random(1)
  taken = {sort: [rng.gauss(1, 0.1) for _ in range(400)] for sort in ("no key", *keys.SECRETS)}
  *medians, alike = keys.rows_of(taken, row=lambda *cells: cells, share_row=lambda *cells: cells)
  assert len(medians) == 5 and medians[0] == ("refused: no key, half of them", pytest.approx(1.0, abs=0.05))
  assert alike[1] < alike[2] == keys.MOST_APART
  # Less than half of what comes and goes by itself.
  taken["expired"] = [seconds + 0.04 for seconds in taken["expired"]]
  *_, told = keys.rows_of(taken, row=lambda *cells: cells, share_row=lambda *cells: cells)
  assert told[1] > told[2] and "expired" in told[0]


def test_each_sort_is_refused_for_what_it_is(tmp_path):
  from deepscan_jax.serve import store
  from deepscan_jax.serve.keys import KeyStore, WrongKey

  made = keys._keys(tmp_path)
  database = store.open_database(f"sqlite:///{tmp_path / 'service.sqlite3'}")
  known = KeyStore(database, keys.overhead.SECRET)
  codes = {}
  for sort, key in made.items():
    try:
      codes[sort] = sorted(known.check(key).scopes)
    except WrongKey as error:
      codes[sort] = error.code
  assert codes == {
    "no key": "missing_key",
    "another secret": "wrong_key",
    "an id that nobody has": "wrong_key",
    "expired": "expired_key",
    "revoked": "wrong_key",
    "without the scope": ["metrics"],
  }
