"""The contract of every branch, and the detector that joins them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny import TinyBranch, random_variables, tiny_branch

from deepscan_jax import examples, losses
from deepscan_jax.config import Config, ModelConfig, WindowConfig
from deepscan_jax.models import detector
from deepscan_jax.models.detector import BRANCHES, Detector, detector_inputs
from deepscan_jax.models.interface import BranchOutput, DetectorOutput

CONFIG = ModelConfig(backbone="pico", features=32)
# The tiny branch of the tests has to keep the contract as well; it shows that the contract's tests are quick.
# The other branches keep it in test modules of their own, and all of them together below.
NAMES = ("spatial", "tiny")
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
  return quick_jit(lambda variables, batch: module.apply(variables, batch, train=False))


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
  value, gradients = quick_jit(jax.value_and_grad(total))(variables["params"], rest)
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
  from deepscan_jax.train_state import abstract_batch

  module = Detector(CONFIG)
  output, _ = jax.eval_shape(
    lambda batch: module.init_with_output(jax.random.key(0), batch, train=False),
    abstract_batch(2, Config(model=CONFIG)),
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
    ({"branches": ()}, "model.branches is empty; there are spatial"),
  ],
)
def test_what_does_not_exist_is_refused(changes, message):
  module = Detector(dataclasses.replace(CONFIG, **changes))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), inputs("spatial"))


ALL = ModelConfig(
  branches=tuple(BRANCHES),
  backbone="pico",
  densenet="pico_densenet",
  xception="pico_xception",
  features=32,
  bottlenecks=2,
)
# Which mask says what of each input is there.
MASK_OF = {
  "crops": "crop_mask",
  "landmarks": "crop_mask",
  "frame_times_s": "crop_mask",
  "mouth_crops": "mouth_mask",
  "waveform": "waveform_mask",
  "file_facts": "file_facts_mask",
}


@functools.cache
def everything() -> tuple:
  """A detector of all branches: its variables, its compiled evaluation, and a batch of three.

  Of the first example everything is there, of the second its picture alone, of the third nothing.
  """
  module = Detector(ALL)
  shapes = examples.input_shapes(WindowConfig(frames=3, mouth_frames=32, samples=22_400))
  rng = np.random.default_rng(0)
  batch = {key: rng.normal(size=(3, *shapes[key][0])).astype(np.float32) * 0.1 for key in MASK_OF}
  batch["crops"] = rng.uniform(0, 255, (3, 3, 64, 64, 3)).astype(np.float32)
  batch["frame_times_s"] = np.broadcast_to(np.arange(3, dtype=np.float32) / 25, (3, 3))
  for key in set(MASK_OF.values()):
    there = np.zeros((3, *shapes[key][0]), bool)
    there[0] = True
    if key == "crop_mask":
      there[1, 0] = True
    batch[key] = there
  for key in MASK_OF:
    batch[key] = hidden(batch, key, 0)
  variables = random_variables(module, batch, train=False)
  return module, variables, quick_jit(lambda v, b: module.apply(v, b, train=False)), batch


def hidden(batch: dict, key: str, value: float) -> np.ndarray:
  """An input with a value wherever its mask says that nothing is there."""
  mask = batch[MASK_OF[key]]
  return np.where(mask.reshape(mask.shape + (1,) * (batch[key].ndim - 2)), batch[key], np.float32(value))


def test_all_branches_together_say_what_is_there():
  _, variables, apply, batch = everything()
  output = apply(variables, batch)
  assert set(detector_inputs(ALL)) == batch.keys()
  assert np.isfinite(output.logit).all() and output.logit[2] == 0
  present = {name: np.asarray(branch.present).tolist() for name, branch in output.branches.items()}
  sees_pictures = {"spatial", "spatial_densenet", "spatial_xception", "cnn3d", "autoencoder"}
  assert present == {name: [True, name in sees_pictures, False] for name in BRANCHES}
  weights = np.asarray(output.weights)
  np.testing.assert_array_equal(weights > 0, np.array([present[name] for name in BRANCHES]).T)
  np.testing.assert_allclose(weights.sum(axis=1), [1, 1, 0], atol=1e-5)


def test_what_is_absent_has_no_effect_on_all_branches_together():
  _, variables, apply, batch = everything()
  hostile = batch | {key: hidden(batch, key, np.nan) for key in MASK_OF}
  for ours, theirs in zip(*(jax.tree.leaves(apply(variables, b)) for b in (batch, hostile)), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_the_temporal_branch_reads_what_the_spatial_branch_saw_whatever_their_order():
  shapes = [
    jax.eval_shape(
      functools.partial(Detector(dataclasses.replace(ALL, branches=branches)).init, train=False),
      jax.random.key(0),
      everything()[3],
    )["params"]
    for branches in (("temporal", "spatial"), ("spatial", "temporal"), ("temporal",))
  ]
  assert shapes[0]["temporal"] == shapes[1]["temporal"]
  assert "read_features" in shapes[0]["temporal"] and "read_features" not in shapes[2]["temporal"]


def test_a_missing_key_is_named():
  with tiny_branch(), pytest.raises(ValueError, match="Branch 'tiny' reads crop_mask; the batch has crops"):
    Detector(ModelConfig(branches=("tiny",))).apply({}, {"crops": np.zeros((1, 1, 28, 28, 3))}, train=False)


def test_a_branch_of_ones_own_learns_the_label_that_it_names(monkeypatch):
  for registry in ("BRANCHES", "LABEL_OF"):
    monkeypatch.setattr(detector, registry, dict(getattr(detector, registry)))
  monkeypatch.setattr(losses, "LABEL_OF", detector.LABEL_OF)
  for label, learnt in (("face_label", 0), ("sound_label", 1), ("label", 2)):
    # Registered again, the name stands for the new one.
    detector.register_branch(
      "mine", lambda config, axis_name: TinyBranch(config.features, name="mine"), label=label
    )
    config = ModelConfig(branches=("mine",), features=8)
    assert detector.detector_inputs(config) == TinyBranch.INPUTS
    logit = jnp.array([3.0])
    output = BranchOutput(jnp.zeros((1, 1, 8)), jnp.ones((1, 1), bool), logit)
    batch = {"label": 2, "face_label": 0, "sound_label": 1}
    # Each label is known in turn.
    batch = {key: jnp.array([1 if value == learnt else -1]) for key, value in batch.items()}
    found = losses.detector_losses(
      DetectorOutput(logit, {"mine": output}, jnp.ones((1, 1))),
      {**batch, "example_mask": jnp.ones(1, bool)},
      gamma=0.0,
      smoothing=0.0,
    )
    assert float(found["branch_mine"].weight) == 1


@pytest.mark.parametrize(
  ("name", "label", "message"),
  [
    ("spatial", "label", "'spatial' is a branch of deepscan_jax already"),
    ("my branch", "label", "letters, digits and _, from a letter on; got 'my branch'"),
    ("mine", "voice", "cannot learn 'voice'; there are face_label, sound_label, label"),
  ],
)
def test_a_branch_that_cannot_be_registered_is_refused(name, label, message):
  with pytest.raises(ValueError, match=message):
    detector.register_branch(name, lambda config, axis_name: None, label=label)
  assert "mine" not in detector.BRANCHES and detector.BRANCHES["spatial"] is not None
