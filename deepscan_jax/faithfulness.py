"""Whether region maps show what a model goes by: by deletion and insertion.

After Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
arXiv:1806.07421, with real twins in place of blank pixels.

A held-out pseudo-fake and its real twin are the same picture but for the blend. Deletion puts the twin's
pixels into the fake, the most marked places first; insertion puts the fake's into the twin. Where the map
marks what the model goes by, the fused logit falls, or rises, early. Nothing is blanked out, so every picture
between the two looks like a face, and both curves have the same ends whatever the order.

Two other orders say how early is early: a random one, of connected patches as those of a map are (scattered
cells would have more seams, which a detector of blending may see), and the map of another face, which knows
where faces are blended as a rule and nothing of this picture.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from deepscan_jax import data, metrics

EXAMPLES = 100
# Shares of the places that are replaced, from none to all.
SHARES = np.linspace(0, 1, 9)
ORDERS = ("map", "random", "other")
WAYS = ("deletion", "insertion")
# Fewer groups have no interval.
LEAST_GROUPS = 5
# Of a random order's patches, in cells of the map.
_PATCH = 1.5
# Seams are softened over this part of a cell.
_SEAM = 0.25
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Curves:
  """Fused logits of pairs along the orders.

  Attributes:
    logits: by (way, order), [pair, share] float64, shares as of SHARES.
    group: [pair] str; pairs of one group are not independent.
  """

  logits: dict[tuple[str, str], np.ndarray]
  group: np.ndarray

  def __len__(self) -> int:
    return len(self.group)


def trace(
  judge: Callable, held_out: data.HeldOutPairs, *, inputs: Sequence[str], limit: int = EXAMPLES, seed: int = 0
) -> Curves | None:
  """The curves of held-out pairs in which the face is forged.

  Args:
    judge: inference.Detector.judge.
    held_out: plain pairs.
    inputs: what the model reads; "crops" among them.
    limit: so many pairs, evenly spread; those of them in which something else is forged are left out.
    seed: of the random orders.

  Returns:
    None where the model draws no region map, or no pair has a forged face.
  """
  maps, groups = [], []
  for batch, facts in data.held_out_batches(held_out, limit=limit, batch_size=_BATCH):
    region = judge({key: batch[key] for key in inputs}).region
    if region is None:
      return None
    # Row 2i + 1 is the fake of pair i; padding follows the pairs.
    for place, fact in enumerate(facts):
      maps.append(region[2 * place + 1] if fact["kind"] in data.FORGED_FACES else None)
      groups.append(f"{fact['dataset']}/{fact['group']}")
  forged = [i for i, found in enumerate(maps) if found is not None]
  if not forged:
    return None
  rng = np.random.default_rng(seed)
  logits = []
  for number, (batch, _) in enumerate(data.held_out_batches(held_out, limit=limit, batch_size=2)):
    if maps[number] is None:
      continue
    # Somebody else's, or of one group alone another picture's.
    others = [i for i in forged if groups[i] != groups[number]] or [i for i in forged if i != number]
    other = maps[others[rng.integers(len(others))]] if others else None
    pair = {key: batch[key] for key in inputs}
    logits.append(_trace_pair(judge, pair, own=maps[number], other=other, rng=rng))
  return Curves(
    logits={key: np.stack([found[key] for found in logits]) for key in logits[0]},
    group=np.array([groups[i] for i in forged]),
  )


def join(parts: Sequence[Curves]) -> Curves | None:
  """Curves of several datasets as one; None of none."""
  parts = [part for part in parts if part is not None]
  if not parts:
    return None
  shared = set.intersection(*(set(part.logits) for part in parts))
  return Curves(
    logits={key: np.concatenate([part.logits[key] for part in parts]) for key in shared},
    group=np.concatenate([part.group for part in parts]),
  )


def figures(curves: Curves, *, draws: int = 1000) -> dict:
  """What curves say, as plain values.

  Args:
    curves: of `trace`.
    draws: resamples of the bootstrap over groups.

  Returns:
    pairs, groups; shares [share]; logit_fake and logit_real, the mean ends of all curves; by way and order
    the mean curve; area: by way and order its mean height; gain: by way and other order {"value",
    "interval"} (95 %; None with fewer than LEAST_GROUPS groups), the area that the map's curve is ahead by,
    in logits: above 0 the map is better than that order, and half of logit_fake - logit_real is about the
    most there is.
  """
  areas = {key: (rows[:, 1:] + rows[:, :-1]).mean(axis=1) / 2 for key, rows in curves.logits.items()}
  found: dict = {
    "pairs": len(curves),
    "groups": len(np.unique(curves.group)),
    "shares": SHARES.tolist(),
    "logit_fake": float(curves.logits["deletion", "map"][:, 0].mean()),
    "logit_real": float(curves.logits["deletion", "map"][:, -1].mean()),
    "area": {},
    "gain": {},
  }
  for way in WAYS:
    orders = [order for order in ORDERS if (way, order) in curves.logits]
    found[way] = {order: curves.logits[way, order].mean(axis=0).tolist() for order in orders}
    found["area"][way] = {order: float(areas[way, order].mean()) for order in orders}
    sign = -1 if way == "deletion" else 1
    found["gain"][way] = {
      order: _mean(sign * (areas[way, "map"] - areas[way, order]), curves.group, draws)
      for order in orders
      if order != "map"
    }
  return found


def mix(real: np.ndarray, fake: np.ndarray, from_fake: np.ndarray) -> np.ndarray:
  """Pictures that are the fake where cells say so, and the real twin elsewhere.

  Args:
    real, fake: uint8 [frame, height, width, 3].
    from_fake: bool [frame, rows, columns].

  Returns:
    uint8 [frame, height, width, 3].
  """
  height, width = real.shape[1:3]
  mixed = np.empty_like(real)
  for frame, cells in enumerate(from_fake):
    share = cv2.resize(cells.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    sigma = _SEAM * width / cells.shape[1]
    share = cv2.GaussianBlur(share, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[..., None]
    both = real[frame] + share * (fake[frame].astype(np.float32) - real[frame])
    mixed[frame] = np.clip(np.rint(both), 0, 255)
  return mixed


def ranks(values: np.ndarray) -> np.ndarray:
  """[frame, rows, columns] int: of each frame's cells, the highest value is 0, the next 1, ..."""
  flat = values.reshape(len(values), -1)
  order = np.argsort(-flat, axis=1, kind="stable")
  found = np.empty_like(order)
  np.put_along_axis(found, order, np.broadcast_to(np.arange(flat.shape[1]), flat.shape), axis=1)
  return found.reshape(values.shape)


def _trace_pair(
  judge: Callable,
  pair: dict[str, np.ndarray],
  *,
  own: np.ndarray,
  other: np.ndarray | None,
  rng: np.random.Generator,
) -> dict[tuple[str, str], np.ndarray]:
  """Logits [share] by way and order of a pair, [2, ...] each, the real one first."""
  real, fake = pair["crops"]
  noise = rng.normal(size=own.shape).astype(np.float32)
  patches = np.stack([cv2.GaussianBlur(x, (0, 0), _PATCH, borderType=cv2.BORDER_REFLECT) for x in noise])
  cells = own[0].size
  wanted: dict[tuple[str, str], list[np.ndarray]] = {}
  for order, values in (("map", own), ("random", patches), ("other", other)):
    if values is None:
      continue
    rank = ranks(values)
    for way in WAYS if order != "random" else ("insertion",):
      counts = np.rint(SHARES[1:-1] * cells)
      wanted[way, order] = [rank >= n if way == "deletion" else rank < n for n in counts]
  crops = np.stack([real, fake, *(mix(real, fake, kept) for rows in wanted.values() for kept in rows)])
  repeated = {key: np.repeat(x[1:], len(crops), axis=0) for key, x in pair.items() if key != "crops"}
  logits = judge({key: repeated.get(key, crops) for key in pair}).logits
  of_real, of_fake = logits[:2]
  between = dict(zip(wanted, logits[2:].reshape(len(wanted), -1), strict=True))
  # What is kept of a random order is as random as what is not: one curve, read from either end.
  between["deletion", "random"] = between["insertion", "random"][::-1]
  ends = {"deletion": (of_fake, of_real), "insertion": (of_real, of_fake)}
  return {
    (way, order): np.array([ends[way][0], *inner, ends[way][1]]) for (way, order), inner in between.items()
  }


def _mean(values: np.ndarray, groups: np.ndarray, draws: int) -> dict:
  """{"value", "interval"} of a mean, by bootstrap over groups."""
  interval = None
  if len(np.unique(groups)) >= LEAST_GROUPS:
    drawn = [w @ values / w.sum(axis=1) for w in metrics.bootstrap_weights(groups, draws=draws)]
    interval = [float(end) for end in metrics.percentile_interval(np.concatenate(drawn))]
  return {"value": float(values.mean()), "interval": interval}
