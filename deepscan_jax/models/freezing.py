"""Which parameters stay as they are where only the last layers of a pretrained network are trained.

A layer is a module that owns parameters (a convolution, a norm, a dense layer), counted in the order of the
forward pass. Frozen norms keep their running statistics too: nothing here updates any.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

Path = tuple[str, ...]


def layers_in_order(module: nn.Module, *inputs: Any, **settings: Any) -> list[Path]:
  """The paths of a module's layers in the order in which a forward pass enters them; nothing is computed.

  Args:
    module: an unbound module.
    inputs, settings: of its call; arrays or jax.ShapeDtypeStruct.
  """
  entered: dict[Path, None] = {}

  def note(call, args, kwargs, context):
    entered.setdefault(context.module.path)
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    shapes = jax.eval_shape(functools.partial(module.init, **settings), jax.random.key(0), *inputs)
  owners = {path[:-1] for path in traverse_util.flatten_dict(shapes["params"])}
  return [path for path in entered if path in owners]


def frozen_layers(order: list[Path], *, backbone: str = "backbone", keep_last: int) -> frozenset[Path]:
  """The layers of every pretrained network but its last ones; empty for keep_last 0, which trains all.

  Args:
    order: what `layers_in_order` gives for a detector: (branch, ..., layer).
    backbone: name of the pretrained network inside of a branch.
    keep_last: how many layers of each are trained.

  Raises:
    ValueError: keep_last is negative.
  """
  if keep_last < 0:
    raise ValueError(f"train.freeze_all_but_last must be 0 (train all layers) or more, got {keep_last}.")
  if not keep_last:
    return frozenset()
  networks: dict[Path, list[Path]] = {}
  for path in order:
    if backbone in path:
      networks.setdefault(path[: path.index(backbone) + 1], []).append(path)
  return frozenset(path for layers in networks.values() for path in layers[:-keep_last])


def stop_gradients(params: Any, frozen: frozenset[Path]) -> Any:
  """The same parameters; no gradient flows into the frozen ones, nor is it computed.

  Args:
    params: a tree of dicts.
    frozen: paths of layers, or of single parameters.
  """
  return _map_frozen(jax.lax.stop_gradient, params, frozen)


def restore_frozen(updated: Any, params: Any, frozen: frozenset[Path]) -> Any:
  """The updated parameters with the frozen ones as they were: weight decay would have moved them."""
  return _map_frozen(lambda _, old: old, updated, frozen, params)


def _map_frozen(function, tree: Any, frozen: frozenset[Path], *others: Any) -> Any:
  if not frozen:
    return tree

  def apply(path, leaf, *rest):
    path = tuple(key.key for key in path)
    return function(leaf, *rest) if path in frozen or path[:-1] in frozen else leaf

  return jax.tree_util.tree_map_with_path(apply, tree, *others)
