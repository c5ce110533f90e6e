"""The contract of every branch, and the detector that joins them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TinyBranch, random_variables, tiny_branch

from deepscan_jax.config import ModelConfig
from deepscan_jax.models.detector import BRANCHES, Detector
from deepscan_jax.models.interface import BranchOutput, DetectorOutput

CONFIG = ModelConfig(backbone="pico", features=32)
# The tiny branch of the tests has to keep the contract as well; it shows that the contract's tests are quick.
NAMES = (*BRANCHES, "tiny")
# 64 pixels are the least that the region map's sixteen strongest places need.
SIDES = {"tiny": 28}
MASK = np.array([[True, True], [True, False], [False, False]])


def inputs(name: str, *, seed: int = 0) -> dict[str, np.ndarray]:
  """A batch of three with two frames each, absent as MASK says; zeros there."""
  side = SIDES.get(name, 64)
  crops = np.random.default_rng(seed).uniform(0, 255, (3, 2, side, side, 3)).astype(np.float32)
  return {"crops": np.where(MASK[..., None, None, None], crops, 0), "crop_mask": MASK, "unread": np.ones(3)}


def make(name: str):
  if name == "tiny":
    return TinyBranch(features=32, dropout=0.2)
  return BRANCHES[name](CONFIG, None)


@functools.cache
def variables_of(name: str) -> dict:
  return random_variables(make(name), inputs(name), train=False)


@functools.cache
def evaluate(name: str):
  """Compiled once for all tests of a branch."""
  module = make(name)
  return jax.jit(lambda variables, batch: module.apply(variables, batch, train=False))


def poisoned(name: str) -> dict[str, np.ndarray]:
  batch = inputs(name)
  return {**batch, "crops": np.where(MASK[..., None, None, None], batch["crops"], np.nan)}


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_returns_the_same_shapes_in_training_and_evaluation(name):
  module, batch = make(name), inputs(name)
  rngs = {"dropout": jax.random.key(0)}
  shapes = [
    jax.eval_shape(
      lambda v, b, train=train: module.apply(v, b, train=train, rngs=rngs), variables_of(name), batch
    )
    for train in (False, True)
  ]
  assert shapes[0] == shapes[1] and isinstance(shapes[0], BranchOutput)
  tokens, mask, logit = shapes[0].tokens, shapes[0].token_mask, shapes[0].logit
  assert tokens.ndim == 3 and tokens.shape[0] == 3 and tokens.shape[2] == 32
  assert mask.shape == tokens.shape[:2] and mask.dtype == jnp.bool_
  assert logit.shape == (3,) and logit.dtype == tokens.dtype == jnp.float32
  assert all(x.shape[0] == 3 and x.dtype == jnp.float32 for x in shapes[0].maps.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_reads_only_its_inputs_and_changes_none(name):
  batch = inputs(name)
  before = {key: value.copy() for key, value in batch.items()}
  only = {key: batch[key] for key in make(name).INPUTS}
  for a, b in zip(
    *(jax.tree.leaves(evaluate(name)(variables_of(name), x)) for x in (batch, only)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert batch.keys() == before.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_absent_has_no_effect_even_if_it_is_nan(name):
  clean, hostile = (evaluate(name)(variables_of(name), batch) for batch in (inputs(name), poisoned(name)))
  for a, b in zip(*map(jax.tree.leaves, (clean, hostile)), strict=True):
    np.testing.assert_array_equal(a, b)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(hostile))
  np.testing.assert_array_equal(clean.present, [True, True, False])
  np.testing.assert_array_equal(np.asarray(clean.tokens)[~np.asarray(clean.token_mask)], 0)
  assert clean.logit[2] == 0 and (np.asarray(clean.logit[:2]) != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_flows_into_the_parameters_of_an_absent_branch(name):
  module, batch = make(name), poisoned(name)
  batch["crop_mask"] = np.zeros_like(MASK)

  def total(params, rest):
    output = module.apply({**rest, "params": params}, batch, train=False)
    return output.logit.sum() + output.tokens.sum() + sum(x.sum() for x in output.maps.values())

  variables = variables_of(name)
  rest = {key: value for key, value in variables.items() if key != "params"}
  value, gradients = jax.jit(jax.value_and_grad(total))(variables["params"], rest)
  assert value == 0
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    np.testing.assert_array_equal(gradient, 0, err_msg=jax.tree_util.keystr(path))


def test_the_tiny_network_has_the_maps_of_its_family():
  from deepscan_jax.models.efficientnet import EfficientNet

  module = EfficientNet("pico")
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  maps, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False), images)
  sides = {name: value.shape[1:3] for name, value in maps.items()}
  assert sides == {
    "stride4": (56, 56),
    "stride8": (28, 28),
    "stride16": (14, 14),
    "stride32": (7, 7),
    "head": (7, 7),
  }


def test_the_region_map_has_the_size_of_the_masks_that_train_it():
  from deepscan_jax.data import REGION_SIZE
  from deepscan_jax.training import abstract_batch

  module = Detector(CONFIG)
  output, _ = jax.eval_shape(
    lambda batch: module.init_with_output(jax.random.key(0), batch, train=False), abstract_batch(2)
  )
  assert output.branches["spatial"].maps["region"].shape == (2, 1, REGION_SIZE, REGION_SIZE)


@pytest.mark.parametrize("fusion", ["attention", "weighted"])
def test_the_detector_joins_its_branches(fusion):
  batch = poisoned("tiny")
  with tiny_branch():
    module = Detector(ModelConfig(branches=("tiny",), features=32, fusion=fusion))
    variables = random_variables(module, batch, train=False)
    rngs = {"dropout": jax.random.key(0), "modality": jax.random.key(1)}
    output = module.apply(variables, batch, train=False)
    shapes = jax.eval_shape(lambda b: module.apply(variables, b, train=True, rngs=rngs), batch)
  assert isinstance(output, DetectorOutput)
  np.testing.assert_allclose(output.weights, [[1], [1], [0]])
  assert np.isfinite(output.logit).all() and output.logit[2] == 0
  if fusion == "weighted":
    np.testing.assert_allclose(output.logit, output.branches["tiny"].logit, rtol=1e-6)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), output) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"fusion": "mean"}, "Unknown fusion 'mean'; there are attention, weighted"),
    ({"branches": ("spatial", "lips")}, "Unknown branch 'lips'; there are spatial"),
  ],
)
def test_what_does_not_exist_is_refused(changes, message):
  module = Detector(dataclasses.replace(CONFIG, **changes))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), inputs("spatial"))


def test_a_missing_key_is_named():
  with tiny_branch(), pytest.raises(ValueError, match="Branch 'tiny' reads crop_mask; the batch has crops"):
    Detector(ModelConfig(branches=("tiny",))).apply({}, {"crops": np.zeros((1, 1, 28, 28, 3))}, train=False)
