"""Folds of names: nobody is in two, and what lies between them is in none."""

import itertools
from collections import Counter

import pytest

from deepscan_jax import folds

# 40 people, each with two videos and swapped with the next three: all linked.
PEOPLE = [f"id{number}" for number in range(40)]
SWAPS = [(PEOPLE[i], PEOPLE[(i + step) % 40]) for i in range(40) for step in (1, 2, 3)]
LINKED = [(person, person) for person in PEOPLE for _ in (0, 1)] + [(a, a, b) for a, b in SWAPS]
# Pairs of videos swapped with each other, as FaceForensics++ has them.
PAIRS = [
  (f"{a}_{b}", *shown)
  for a, b in (("071", "054"), ("087", "081"), ("720", "672"), ("953", "974"))
  for shown in ((a,), (b,), (a, b), (b, a))
]


@pytest.mark.parametrize("names", [LINKED, PAIRS, [(f"group{i // 3}",) for i in range(60)]])
@pytest.mark.parametrize("count", [2, 5])
def test_nobody_is_learnt_from_and_scored_in_one_fold(names, count):
  found = folds.assign(names, count=count)
  scored = Counter()
  for fold in range(count):
    parts = {
      split: [i for i, each in enumerate(found) if folds.belongs(each, split, fold)]
      for split in ("train", "validation")
    }
    seen = {split: {name for i in rows for name in names[i]} for split, rows in parts.items()}
    assert not seen["train"] & seen["validation"]
    scored.update(parts["validation"])
  assert set(scored.values()) == {1}
  assert set(scored) == {i for i, each in enumerate(found) if len(each) == 1}


def test_groups_stay_whole_and_knots_are_undone():
  assert all(len(each) == 1 for each in folds.assign(PAIRS, count=2))
  assert len(set(folds.assign(PAIRS[:4], count=5))) == 1
  linked = folds.assign(LINKED, count=5)
  assert set(linked[:80]) == {frozenset({fold}) for fold in range(5)}
  for each, (a, b) in zip(linked[80:], SWAPS, strict=True):
    assert each == {folds.fold_of(a, 5), folds.fold_of(b, 5)}


def test_the_order_of_examples_does_not_matter():
  found = folds.assign(LINKED, count=3)
  assert folds.assign(LINKED[::-1], count=3) == found[::-1]


def test_every_fold_gets_its_share():
  counts = Counter(folds.fold_of(f"person {i}", 5) for i in range(5000))
  assert set(counts) == set(range(5)) and all(900 < count < 1100 for count in counts.values())
  assert [folds.fold_of("id0", n) for n in (2, 3, 5)] == [folds.fold_of("id0", n) for n in (2, 3, 5)]
  assert len({folds.fold_of(name, 5) for name in itertools.islice(PEOPLE, 30)}) == 5
