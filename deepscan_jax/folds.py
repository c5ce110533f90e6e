"""Which fold of a cross-validation an example is in, so that no person and no source video is in two.

Every example has names: its group and whoever is seen in it. Examples that share a name belong together, and
what belongs together falls into one fold, by a hash of the first of its names: nothing is drawn, and examples
that are added later move no other unless they link it to somebody new.

Where forgeries link everyone to everyone (Celeb-DF, the actors of DeepFakeDetection), all would be one. Such
a knot is undone: each person alone is hashed, and an example that shows people of two folds lies between
them. It is in no fold to be scored, and is learnt from in those folds that hold neither of them out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

# A knot has more people than this for each fold, and more than its share of the examples.
_PEOPLE_OF_A_KNOT = 2


def fold_of(name: str, count: int) -> int:
  """The fold, 0 to count - 1, of a name: a stable function of both alone."""
  return int.from_bytes(hashlib.sha256(f"fold of {name}".encode()).digest()[:8], "big") % count


def assign(names: Sequence[tuple[str, ...]], *, count: int) -> list[frozenset[int]]:
  """Returns the folds of each example: one, or several where it lies between them.

  Args:
    names: of each example its group, and after it who is seen in it, where that is known.
    count: how many folds there are.
  """
  parent: dict[str, str] = {}

  def root(name: str) -> str:
    while parent.setdefault(name, name) != name:
      parent[name] = name = parent[parent[name]]
    return name

  for each in names:
    for name in each[1:]:
      first, second = sorted((root(each[0]), root(name)))
      parent[second] = first
  sizes = Counter(root(each[0]) for each in names)
  people = Counter(root(name) for name in {name for each in names for name in each[1:]})
  knots = {
    name
    for name, size in sizes.items()
    if size * count > len(names) and people[name] > _PEOPLE_OF_A_KNOT * count
  }

  def folds(each: tuple[str, ...]) -> frozenset[int]:
    whole = root(each[0])
    units = (each[1:] or each) if whole in knots else (whole,)
    return frozenset(fold_of(unit, count) for unit in units)

  return [folds(each) for each in names]


def belongs(folds: frozenset[int], split: str, fold: int) -> bool:
  """Whether an example of these folds is in "train" or "validation" of a fold."""
  return fold not in folds if split == "train" else folds == {fold}
