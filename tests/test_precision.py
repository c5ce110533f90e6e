"""Mixed precision: what is computed in bfloat16, what never is, and how far logits move by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from small_detector import clips, first_state, small_branches, small_config

from deepscan_jax import train_state
from deepscan_jax.config import load_preset, override
from deepscan_jax.models.detector import BRANCHES, FRAME_FEATURES, Detector, make_branch
from deepscan_jax.optimizer import create_optimizer

# Of these a rounded operand costs more than it saves: norms, softmax, logarithms of losses and of spectra.
FLOAT32_ONLY = {"exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "cumsum", "erf_inv"}
PRODUCTS = {"dot_general", "conv_general_dilated"}


@pytest.fixture(autouse=True)
def small():
  with small_branches():
    yield


def equations(jaxpr):
  """All equations, those of the programs inside of them too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def operand_types(closed_jaxpr) -> dict[str, set]:
  """By primitive, the float types of what it is given."""
  found: dict[str, set] = {}
  for equation in equations(closed_jaxpr.jaxpr):
    types = {x.aval.dtype.name for x in equation.invars if jnp.issubdtype(x.aval.dtype, jnp.floating)}
    found.setdefault(equation.primitive.name, set()).update(types)
  return found


def read_by(name: str) -> dict[str, np.ndarray]:
  batch = clips(3, seed=0)
  batch[FRAME_FEATURES] = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)
  return {key: batch[key] for key in make_branch(name, small_config().model).INPUTS}


@functools.cache
def outcome(name: str, dtype: str):
  """A branch's output on three clips, and the gradients of all that it says; the same parameters for all.

  Gradients are those of mixed precision: in float32 there are none, and half as much to compile.
  """
  module, batch = make_branch(name, small_config(dtype=dtype).model), read_by(name)
  shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), batch)
  rng = np.random.default_rng(1)

  def draw(path, shape):
    if path[-1].key in ("scale", "var"):
      return np.ones(shape.shape, np.float32)
    return (rng.normal(size=shape.shape) / np.sqrt(max(np.prod(shape.shape[:-1]), 1))).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)

  def say(params):
    output = module.apply({**variables, "params": params}, batch, train=False)
    return output.logit.sum() + output.tokens.mean() + sum(x.mean() for x in output.maps.values()), output

  if dtype == "float32":
    return quick_jit(say)(variables["params"])[1], None
  run = quick_jit(jax.value_and_grad(say, has_aux=True))
  (_, output), gradients = run(variables["params"])
  return output, gradients


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_says_nearly_the_same_in_bfloat16(name):
  """bfloat16 has 8 binary digits, 0.4 %. Of the largest logit, logits moved by 2.8 % at most (Xception)."""
  (wide, _), (narrow, gradients) = outcome(name, "float32"), outcome(name, "bfloat16")
  difference = np.abs(narrow.logit - wide.logit).max()
  assert 0 < difference < 0.05 * np.abs(wide.logit).max()
  assert all(x.dtype == jnp.float32 or x.dtype == jnp.bool_ for x in jax.tree.leaves(narrow))
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert gradient.dtype == jnp.float32 and np.isfinite(gradient).all(), jax.tree_util.keystr(path)


def test_products_are_bfloat16_and_norms_softmax_and_losses_are_not():
  config = small_config(dtype="bfloat16", focal_gamma=2.0)
  batch = clips(4, seed=0)
  state = jax.eval_shape(functools.partial(first_state, config, batch))
  step = functools.partial(
    train_state.train_step,
    model=Detector(config.model),
    optimizer=create_optimizer(config.train),
    config=config,
  )
  types = operand_types(jax.make_jaxpr(step)(state, batch))
  for primitive in sorted(FLOAT32_ONLY & types.keys()):
    assert types[primitive] <= {"float32"}, f"{primitive} of {types[primitive]}"
  assert {"exp", "rsqrt", "log1p"} <= types.keys()
  for primitive in PRODUCTS:
    assert "bfloat16" in types[primitive], primitive
  after, _ = jax.eval_shape(step, state, batch)
  assert {x.dtype.name for x in jax.tree.leaves(after)} <= {"float32", "int32"}


@pytest.mark.parametrize("name", ["default", "audio_visual"])
def test_a_preset_trains_in_bfloat16_with_parameters_in_float32(name):
  config = override(load_preset(name), "model.dtype=bfloat16")
  state = train_state.abstract_state(config)
  step = functools.partial(
    train_state.train_step,
    model=Detector(config.model),
    optimizer=create_optimizer(config.train),
    config=config,
  )
  after, sums = jax.eval_shape(step, state, train_state.abstract_training_batch(2, config))
  kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after)]
  assert kinds[0] == kinds[1]
  assert {x.dtype.name for x in jax.tree.leaves(sums)} == {"float32"}
