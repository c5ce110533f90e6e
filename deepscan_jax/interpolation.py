"""Between two models: each parameter on the straight line from where a training began to where it ended.

A model that goes on from another one learns the new and loses a little of the old. On the way between the two
lie models that know most of both, often more of either than its end does (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903). How far to go is chosen on validation.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import checkpoints, lineage
from deepscan_jax.config import ModelConfig, from_dict
from deepscan_jax.inference import CALIBRATIONS
from deepscan_jax.models.detector import FUSION, make_branch


def interpolate(start: str | Path, end: str | Path, folder: str | Path, *, share: float) -> dict:
  """Writes the model between two others.

  Its facts are those of the end, but for the calibration of what changed, which it has to be given again, and
  for the figures of its training, which are not its own.

  Args:
    start, end: models of one configuration of the network.
    folder: to write; replaced where it exists.
    share: of the way from start to end, 0 to 1.

  Returns:
    The facts that were written.

  Raises:
    CheckpointError: one of them is no sound model.
    ValueError: share is not 0 to 1, or the networks are not alike.
  """
  if not 0 <= share <= 1:
    raise ValueError(f"The share of the way must be 0 to 1; got {share:g}.")
  facts, variables = (
    [read(path) for path in (start, end)] for read in (checkpoints.read_model, checkpoints.read_params)
  )
  if facts[0]["inputs"] != facts[1]["inputs"] or jax.tree.map(np.shape, variables[0]) != jax.tree.map(
    np.shape, variables[1]
  ):
    raise ValueError(
      f"{start} and {end} are of different networks; give two of which one began with the other."
    )
  mixed = jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), *variables)
  # Whatever they were stored in, this one is float32.
  dropped = {"sha256", "training", "stored_dtype", *CALIBRATIONS}
  made = {key: value for key, value in facts[1].items() if key not in dropped}
  shown = [lineage.trainings(each) for each in facts]
  made |= {
    "training": {},
    "lineage": [*shown[1], *(training for training in shown[0] if training not in shown[1])],
    "interpolation": between(*facts, share=share),
  }
  changed = _changed(variables[0]["params"], variables[1]["params"])
  made |= {key: facts[1][key] for key in _kept(facts[1], changed) if key in facts[1]}
  checkpoints.save_model(folder, params=mixed, model=made)
  return made


def between(start: Mapping, end: Mapping, *, share: float) -> dict:
  """What a model says of where it lies, of the facts of both ends: their sha256, and the share of the way."""
  return {"start": start["sha256"], "end": end["sha256"], "share": share}


def _changed(a: Mapping, b: Mapping) -> set[str]:
  """Which branches differ."""
  return {name for name in a if not all(jax.tree.leaves(jax.tree.map(np.array_equal, a[name], b[name])))}


def _kept(facts: Mapping, changed: set[str]) -> list[str]:
  """The calibrations of what no branch that changed has a say in."""
  if FUSION in changed:
    return []
  config = from_dict(facts["config"]["model"], ModelConfig)
  read = {key for name in changed for key in make_branch(name, config).INPUTS}
  return [
    key for key, looked_at in zip(CALIBRATIONS, ("crops", "waveform"), strict=True) if looked_at not in read
  ]
