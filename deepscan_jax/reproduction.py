"""Whether a file judged again gets the verdict that its report holds.

Strict is the rule: outcomes, codes and the number of things must be equal, and every number must lie within
TOLERANCE. The exceptions are named here: what depends on the clock or on where a file lies is not compared,
and what a decoder or a sentence says of the same facts (sizes, boxes, messages) may differ and is told.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deepscan_jax.verdict import SCHEMA_VERSION

# Of probabilities and of other scores. Reports round to 6 digits.
TOLERANCE = 1e-3
_ROUNDING = 1e-9
# Not compared: of the clock and the machine; and what `deepscan detect` adds when asked, out of the rest.
NOT_COMPARED = ("schema_version", "timings", "run", "at_prevalence", "stability")
# Told, but no failure, with all below them: words, measures of pictures, and stretches above a threshold,
# whose ends jump where a score moves by a hair.
_ASIDE = (
  "name",
  "media",
  "box",
  "quality",
  "message",
  "remedy",
  "recommendation",
  "warnings",
  "facts",
  "marked",
)
ABSENT = "nothing"


@dataclasses.dataclass(frozen=True)
class Difference:
  """One thing that is not as the report has it.

  Attributes:
    place: in the report, such as "people[1].boxes[3.2 s].probability".
    then, now: JSON; ABSENT where one side has nothing.
  """

  place: str
  then: object
  now: object

  def __str__(self) -> str:
    return f"{self.place}: {_said(self.then)} then, {_said(self.now)} now"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What a second run says of the first.

  Attributes:
    differences: each of them means that the report is not reproduced.
    asides: what else differs.
    scores: how many numbers were compared.
    largest: difference of two scores, 0 or more; 0 without scores.
    largest_place: where.
  """

  differences: tuple[Difference, ...]
  asides: tuple[Difference, ...]
  scores: int
  largest: float
  largest_place: str

  @property
  def reproduces(self) -> bool:
    """Whether all that counts is the same."""
    return not self.differences


def read_report(path: str | Path) -> list[dict]:
  """The entries of a report by `deepscan detect --output_json`: verdicts, or errors in their place.

  Args:
    path: one object, a list of them, or one object a line.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no such report, or of a version that is not known here; the message says which.
  """
  text = Path(path).read_text(encoding="utf-8", errors="replace")
  try:
    found = json.loads(text)
  except ValueError:
    try:
      found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
      raise ValueError(
        f"{path} is no JSON ({error}); give a report of `deepscan detect --output_json`."
      ) from error
  entries = found if isinstance(found, list) else [found]
  if not entries or not all(map(_is_entry, entries)):
    raise ValueError(
      f"{path} is no report of `deepscan detect --output_json`: that is an object, or a list of objects, "
      "each with schema_version, file, and an outcome and a model, or an error."
    )
  ours = SCHEMA_VERSION.partition(".")[0]
  for entry in entries:
    if str(entry["schema_version"]).partition(".")[0] != ours:
      raise ValueError(
        f"{path} has schema version {entry['schema_version']}, and this deepscan_jax reads {ours}.x; "
        "reproduce it with the version that wrote it."
      )
  return entries


def compare(then: Mapping, now: Mapping, *, tolerance: float = TOLERANCE) -> Comparison:
  """Compares a verdict of a report with that of a second run.

  Args:
    then, now: as of Verdict.to_dict. What only `now` holds counts as a difference, unless `then` is of
      another schema version: fields may be added.
    tolerance: of every number that counts.
  """
  walk = _Walk(tolerance, same_schema=then.get("schema_version") == now.get("schema_version"))
  walk.visit({k: v for k, v in then.items() if k not in NOT_COMPARED},
             {k: v for k, v in now.items() if k not in NOT_COMPARED}, "", key="", aside=False)  # fmt: skip
  return Comparison(
    differences=tuple(walk.differences),
    asides=tuple(walk.asides),
    scores=walk.scores,
    largest=walk.largest[0],
    largest_place=walk.largest[1],
  )


def changed_run(then: Mapping, now: Mapping) -> dict[str, tuple[object, object]]:
  """Versions and devices that are not the same, by name (then, now); what the report does not tell is left
  out.

  Args:
    then, now: verdicts as JSON.
  """
  old, new = then.get("run") or {}, now.get("run") or {}
  pairs = {"schema": (then.get("schema_version"), now.get("schema_version"))}
  pairs |= {name: (old.get(name), new.get(name)) for name in ("device", "matmul_precision")}
  old_versions, new_versions = old.get("versions") or {}, new.get("versions") or {}
  pairs |= {name: (old_versions[name], new_versions.get(name)) for name in old_versions}
  return {name: pair for name, pair in pairs.items() if pair[0] is not None and pair[0] != pair[1]}


class _Walk:
  """Goes through two trees of JSON at once."""

  def __init__(self, tolerance: float, *, same_schema: bool):
    self._tolerance, self._same_schema = tolerance, same_schema
    self.differences: list[Difference] = []
    self.asides: list[Difference] = []
    self.scores = 0
    self.largest = (0.0, "")

  def visit(self, then: object, now: object, place: str, *, key: str, aside: bool) -> None:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
      for name in dict.fromkeys([*then, *now]):
        if name not in then and not self._same_schema:
          continue
        inside = f"{place}.{name}" if place else str(name)
        pair = then.get(name, ABSENT), now.get(name, ABSENT)
        self.visit(*pair, inside, key=str(name), aside=aside or name in _ASIDE)
    elif isinstance(then, list) and isinstance(now, list):
      for name, one, other in _aligned(then, now):
        self.visit(one, other, f"{place}[{name}]", key=key, aside=aside)
    elif _is_number(then) and _is_number(now) and float in (type(then), type(now)):
      self._compare_numbers(then, now, place, aside=aside, counts=not key.endswith("_s"))
    # A sentence says in words what codes and numbers say too.
    elif then != now or type(then) is not type(now):
      words = all(isinstance(x, str) and " " in x for x in (then, now))
      self._note(then, now, place, aside=aside or words)

  def _compare_numbers(self, then: float, now: float, place: str, *, aside: bool, counts: bool) -> None:
    difference = abs(then - now)
    # What stands aside may be pixels or bits a second.
    allowed = self._tolerance * (max(1.0, abs(then)) if aside else 1.0) + _ROUNDING
    if not aside and counts:
      self.scores += 1
      self.largest = max(self.largest, (difference, place), key=lambda found: found[0])
    if not difference <= allowed:  # NaN is no agreement
      self._note(then, now, place, aside=aside)

  def _note(self, then: object, now: object, place: str, *, aside: bool) -> None:
    (self.asides if aside else self.differences).append(Difference(place, then, now))


def _aligned(then: Sequence, now: Sequence) -> Iterator[tuple[object, object, object]]:
  """(name, then, now) of what belongs together: of people by id, of moments by time, of all else by place."""
  for key, unit in (("id", ""), ("time_s", " s")):
    sides = [{entry.get(key): entry for entry in side if isinstance(entry, Mapping)} for side in (then, now)]
    if all(
      len(side) == len(found) and None not in found for side, found in zip((then, now), sides, strict=True)
    ):
      for name in dict.fromkeys([*sides[0], *sides[1]]):
        yield f"{name}{unit}", sides[0].get(name, ABSENT), sides[1].get(name, ABSENT)
      return
  for i in range(max(len(then), len(now))):
    yield i, then[i] if i < len(then) else ABSENT, now[i] if i < len(now) else ABSENT


def _is_entry(entry: object) -> bool:
  return (
    isinstance(entry, Mapping)
    and "schema_version" in entry
    and isinstance(entry.get("file"), Mapping)
    and (
      ("outcome" in entry and isinstance(entry.get("model"), Mapping))
      or isinstance(entry.get("error"), Mapping)
    )
  )


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _said(value: object) -> str:
  """A value in a few words."""
  if value == ABSENT:
    return ABSENT
  if isinstance(value, Mapping | list):
    return "something" if value else "an empty one"
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= 80 else f"{text[:77]}..."
