"""The provenance branch: unknown facts have no effect, nothing known is absence, and it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax import provenance
from deepscan_jax.models.provenance import DECLARATION, ProvenanceBranch

BATCH, FACTS = 6, 10


def facts_batch(*, seed: int = 0, size: int = BATCH) -> dict[str, np.ndarray]:
  """Random facts, a third of them unknown; nothing is known of the last example."""
  rng = np.random.default_rng(seed)
  mask = rng.random((size, FACTS)) < 0.67
  mask[:, 1] = True
  mask[-1] = False
  facts = rng.uniform(-1, 1, (size, FACTS)).astype(np.float32)
  return {"file_facts": facts, "file_facts_mask": mask}


@pytest.fixture(scope="module")
def branch():
  module = ProvenanceBranch(features=16, hidden=8)
  variables = random_variables(module, facts_batch(), train=False)
  return module, variables, quick_jit(functools.partial(module.apply, variables, train=False))


def test_shapes_and_absence(branch):
  output = branch[2](facts_batch())
  assert (output.tokens.shape, output.token_mask.shape) == ((BATCH, 1, 16), (BATCH, 1))
  assert (output.logit.shape, output.logit.dtype) == ((BATCH,), jnp.float32)
  np.testing.assert_array_equal(output.present, [True] * (BATCH - 1) + [False])
  np.testing.assert_array_equal(output.tokens[-1], 0)
  assert output.logit[-1] == 0 and np.all(np.asarray(output.logit[:-1]) != 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_unknown_facts_have_exactly_no_effect(branch, value):
  batch = facts_batch()
  poisoned = {**batch, "file_facts": np.where(batch["file_facts_mask"], batch["file_facts"], value)}
  for a, b in zip(jax.tree.leaves(branch[2](batch)), jax.tree.leaves(branch[2](poisoned)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_nothing_flows_back_from_what_is_unknown(branch):
  module, variables, _ = branch
  batch = facts_batch()
  batch["file_facts"] = np.where(batch["file_facts_mask"], batch["file_facts"], np.nan)

  def total(variables, facts):
    output = module.apply(variables, {**batch, "file_facts": facts}, train=False)
    return output.logit.sum() + output.tokens.sum()

  by_variables, by_facts = jax.grad(total, argnums=(0, 1))(variables, jnp.array(batch["file_facts"]))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_variables))
  np.testing.assert_array_equal(np.asarray(by_facts)[~batch["file_facts_mask"]], 0)
  assert np.all(np.asarray(by_facts)[batch["file_facts_mask"]] != 0)


def test_the_order_of_the_batch_changes_nothing_and_the_batch_stays(branch):
  batch = facts_batch()
  before = {name: value.copy() for name, value in batch.items()}
  order = np.random.default_rng(1).permutation(BATCH)
  output = branch[2](batch)
  moved = branch[2]({name: value[order] for name, value in batch.items()})
  for a, b in zip(jax.tree.leaves(output), jax.tree.leaves(moved), strict=True):
    np.testing.assert_allclose(a[order], b, atol=1e-6)
  for name, value in before.items():
    np.testing.assert_array_equal(batch[name], value)


def test_training_and_evaluation_return_the_same_types_whatever_the_precision(branch):
  module, variables, _ = branch
  batch = facts_batch()
  rngs = {"dropout": jax.random.key(0)}

  def shapes(train, dtype):
    facts = {**batch, "file_facts": jnp.asarray(batch["file_facts"], dtype)}
    return jax.eval_shape(lambda v, b: module.apply(v, b, train=train, rngs=rngs), variables, facts)

  assert shapes(True, jnp.float32) == shapes(False, jnp.float32) == shapes(True, jnp.bfloat16)


def test_wrong_shapes_are_named(branch):
  batch = facts_batch()
  with pytest.raises(ValueError, match=r"file_facts_mask .* got \[6, 10\] and \[6, 9\]"):
    branch[0].apply(branch[1], {**batch, "file_facts_mask": batch["file_facts_mask"][:, 1:]}, train=False)


def test_branch_dropout_hides_the_whole_branch_at_its_rate(branch):
  module, variables, _ = branch
  batch = {name: np.repeat(value[:1], 2000, axis=0) for name, value in facts_batch().items()}
  output = module.apply(variables, batch, train=True, rngs={"dropout": jax.random.key(3)})
  present = np.asarray(output.present)
  assert present.mean() == pytest.approx(0.5, abs=0.04)
  np.testing.assert_array_equal(np.asarray(output.logit)[~present], 0)
  np.testing.assert_array_equal(np.asarray(output.tokens)[~present], 0)
  whole = module.apply(variables, batch, train=False)
  np.testing.assert_allclose(np.asarray(output.logit)[present], np.asarray(whole.logit)[present], rtol=1e-6)


def test_a_fact_that_training_never_knew_has_no_effect_and_a_declaration_has_one():
  module = ProvenanceBranch(features=16, hidden=8)
  batch = facts_batch()
  batch["file_facts_mask"][:, DECLARATION] = False
  variables = module.init(jax.random.key(0), batch, train=False)
  known = {name: value.copy() for name, value in batch.items()}
  known["file_facts_mask"][:, 2] = True
  untrained = module.apply(variables, batch, train=False)
  for a, b in zip(
    jax.tree.leaves(untrained.tokens[:-1]),
    jax.tree.leaves(module.apply(variables, known, train=False).tokens[:-1]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  known["file_facts_mask"][:, DECLARATION] = True
  known["file_facts"][:, DECLARATION] = 1
  declared = module.apply(variables, known, train=False)
  np.testing.assert_allclose(declared.logit[:-1] - untrained.logit[:-1], 3.0, atol=1e-5)
  assert provenance.FACT_NAMES[DECLARATION] == "declared_generated"


def test_a_missing_manifest_is_exactly_neutral():
  """Not read, package missing, none there, and one that declares nothing: the same bits come out."""
  container = {"codec": "h264", "usual_gop": 12, "b_frame_share": 0.5}
  module = ProvenanceBranch(features=16, hidden=8)
  size = len(provenance.FACT_NAMES)
  shapes = {"file_facts": np.zeros((1, size), np.float32), "file_facts_mask": np.ones((1, size), bool)}
  variables = random_variables(module, shapes, train=False)

  def logit(facts: dict) -> np.ndarray:
    values, known = provenance.fact_vector(facts)
    batch = {"file_facts": values[None], "file_facts_mask": known[None]}
    return np.asarray(module.apply(variables, batch, train=False).logit)

  plain = logit(container)
  neutral = [{"state": state, "declares": None} for state in ("none", "unread", "valid", "trusted")]
  neutral += [
    {"state": state, "declares": "generated"} for state in ("invalid", "unread", "none", "odd", None)
  ]
  for manifest in [None, {}, "generated", *neutral]:
    np.testing.assert_array_equal(logit({**container, "c2pa": manifest}), plain)
  declared = logit({**container, "c2pa": {"state": "valid", "declares": "generated"}})
  assert declared != plain


def test_it_learns_which_of_the_facts_tells():
  rng = np.random.default_rng(0)
  batch = facts_batch(size=256)
  batch["file_facts_mask"][:, 1] = rng.random(256) < 0.9
  label = (batch["file_facts"][:, 1] > 0).astype(np.float32)
  module = ProvenanceBranch(features=16, hidden=16)
  params = module.init(jax.random.key(0), batch, train=False)["params"]
  optimizer = optax.adam(2e-2)

  def loss(params, key):
    output = module.apply({"params": params}, batch, train=True, rngs={"dropout": key})
    losses = optax.sigmoid_binary_cross_entropy(output.logit, label) * output.present
    return losses.sum() / output.present.sum()

  @jax.jit
  def step(params, state, key):
    updates, state = optimizer.update(jax.grad(loss)(params, key), state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for key in jax.random.split(jax.random.key(1), 150):
    params, state = step(params, state, key)
  fresh = facts_batch(seed=9, size=256)
  output = module.apply({"params": params}, fresh, train=False)
  seen = np.asarray(output.present)
  right = (np.asarray(output.logit) > 0) == (fresh["file_facts"][:, 1] > 0)
  assert right[seen].mean() > 0.93
