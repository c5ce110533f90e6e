"""What a model costs before it is trained, by branch: parameters, size on disk, floating point operations."""

import dataclasses
import functools
import math

import jax
import numpy as np

from deepscan_jax.config import ModelConfig
from deepscan_jax.models.detector import FRAME_FEATURES, Detector, image_networks, make_branch


@dataclasses.dataclass(frozen=True)
class Cost:
  """The costs of a part of a model.

  Attributes:
    name: of a branch, "fusion" or "all".
    parameters: numbers that training moves; the running statistics of norms are not counted.
    float32_bytes: of all its arrays, running statistics included.
    bfloat16_bytes: the same with the large parameters in bfloat16, as `deepscan export` stores them.
    flops: floating point operations of a forward pass over the batch, as XLA counts them for this machine's
      kind of device; a multiplication and an addition are two.
  """

  name: str
  parameters: int
  float32_bytes: int
  bfloat16_bytes: int
  flops: float


def model_costs(
  config: ModelConfig, batch: dict[str, jax.ShapeDtypeStruct], *, narrow_from: int
) -> list[Cost]:
  """The costs of each branch, of the fusion and of all together. Nothing is compiled, no memory is taken.

  Args:
    config: of the model.
    batch: shapes of what it reads, such as train_state.abstract_batch(1, ...) gives.
    narrow_from: parameters of so many numbers or more count as bfloat16 (checkpoints.NARROW_FROM).
  """
  whole = Detector(config)
  variables = _shapes(whole, batch)
  size = jax.tree.leaves(batch)[0].shape[0]
  costs, counted = [], 0.0
  for name in config.branches:
    branch = make_branch(name, config)
    inputs = {key: batch[key] for key in branch.INPUTS if key != FRAME_FEATURES}
    if FRAME_FEATURES in branch.INPUTS and image_networks(config):
      frames = batch["crops"].shape[1]
      inputs[FRAME_FEATURES] = jax.ShapeDtypeStruct((size, frames, config.features), np.float32)
    flops = _flops(branch, _shapes(branch, inputs), inputs)
    costs.append(_cost(name, _part(variables, name), flops, narrow_from))
    counted += flops
  total = _flops(whole, variables, batch)
  if "fusion" in variables["params"]:
    costs.append(_cost("fusion", _part(variables, "fusion"), max(total - counted, 0.0), narrow_from))
  return [*costs, _cost("all", variables, total, narrow_from)]


def _shapes(module, batch: dict) -> dict:
  return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), batch)


def _part(variables: dict, name: str) -> dict:
  return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def _flops(module, variables: dict, batch: dict) -> float:
  lowered = jax.jit(functools.partial(module.apply, train=False)).lower(variables, batch)
  return float(lowered.cost_analysis()["flops"])


def _cost(name: str, variables: dict, flops: float, narrow_from: int) -> Cost:
  arrays = [math.prod(x.shape) for x in jax.tree.leaves(variables)]
  params = [math.prod(x.shape) for x in jax.tree.leaves(variables["params"])]
  narrow = sum(size for size in params if size >= narrow_from)
  return Cost(
    name=name,
    parameters=sum(params),
    float32_bytes=4 * sum(arrays),
    bfloat16_bytes=4 * sum(arrays) - 2 * narrow,
    flops=flops,
  )
