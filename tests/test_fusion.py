import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax.config import ModelConfig
from deepscan_jax.models import detector, fusion
from deepscan_jax.models.interface import BranchOutput, DetectorOutput

BATCH, WIDTH = 5, 8
# Sorted by name, as jit returns dicts.
TOKENS = {"audio": 3, "metadata": 2, "spatial": 1}
# Which branch is present in which example; nothing at all in the last.
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


def fake_branches(*, seed=0, present=PRESENT) -> dict[str, BranchOutput]:
  """Branches of noise that keep the contract: zeros where they are absent. The first hides its last token."""
  rng = np.random.default_rng(seed)
  branches = {}
  for index, (name, count) in enumerate(TOKENS.items()):
    mask = np.repeat(present[:, index, None], count, axis=1)
    mask[:, -1] &= count == 1 or index > 0
    tokens = rng.normal(size=(len(present), count, WIDTH)).astype(np.float32) * mask[..., None]
    logit = rng.normal(size=len(present)).astype(np.float32) * present[:, index]
    branches[name] = BranchOutput(jnp.array(tokens), jnp.array(mask), jnp.array(logit))
  return branches


def poisoned(branches, value) -> dict[str, BranchOutput]:
  """The same with every hidden token replaced."""
  return {
    name: dataclasses.replace(b, tokens=jnp.where(b.token_mask[..., None], b.tokens, value))
    for name, b in branches.items()
  }


@pytest.fixture(scope="module", params=[0, 3], ids=["no bottleneck", "bottleneck"])
def attention(request):
  module = fusion.AttentionFusion(heads=2, modality_dropout=0.5, bottlenecks=request.param)
  variables = random_variables(module, fake_branches(), train=False)
  return module, variables, quick_jit(lambda branches: module.apply(variables, branches, train=False))


def test_branches_of_one_kind_share_its_weight():
  names = ("spatial", "spatial_xception", "temporal")
  whole = {name: fake_branches(present=np.ones((BATCH, 3), bool))["audio"] for name in names}
  weights = np.asarray(fusion.weighted_ensemble(whole)[1])
  np.testing.assert_allclose(weights, [[0.375, 0.375, 0.25]] * BATCH, atol=1e-6)
  gone = dataclasses.replace(whole["spatial"], token_mask=jnp.zeros((BATCH, 3), bool))
  weights = np.asarray(fusion.weighted_ensemble(whole | {"spatial": gone})[1])
  np.testing.assert_allclose(weights, [[0, 0.75, 0.25]] * BATCH, atol=1e-6)


def test_what_one_branch_sees_reaches_the_others_tokens_through_the_bottleneck():
  module = fusion.BottleneckExchange(heads=2, bottlenecks=3)
  branches = fake_branches(present=np.ones((BATCH, 3), bool))
  tokens, masks = ([getattr(b, k) for b in branches.values()] for k in ("tokens", "token_mask"))
  variables = random_variables(module, tokens, masks)
  apply = quick_jit(module.apply)
  before = apply(variables, tokens, masks)
  after = apply(variables, [*tokens[:-1], tokens[-1][..., ::-1]], masks)
  assert list(branches) == ["audio", "metadata", "spatial"]
  assert np.abs(np.asarray(after[0] - before[0])).max() > 1e-4
  np.testing.assert_array_equal(before[0][:, -1], 0)


def plain_ensemble(branches) -> tuple[np.ndarray, np.ndarray]:
  fixed = {"spatial": 0.6, "temporal": 0.2, "audio": 0.2}
  logits, weights = np.zeros(BATCH), np.zeros((BATCH, len(branches)))
  for row in range(BATCH):
    here = {n: fixed.get(n, 0.2) for n, b in branches.items() if bool(b.token_mask[row].any())}
    for column, name in enumerate(branches):
      if name in here:
        weights[row, column] = here[name] / sum(here.values())
        logits[row] += weights[row, column] * float(branches[name].logit[row])
  return logits, weights


def test_the_weighted_ensemble_is_its_plain_loop():
  branches = fake_branches()
  logit, weights = fusion.weighted_ensemble(branches)
  expected_logit, expected_weights = plain_ensemble(branches)
  np.testing.assert_allclose(logit, expected_logit, atol=1e-6)
  np.testing.assert_allclose(weights, expected_weights, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_hidden_tokens_have_no_effect(attention, value):
  _, _, apply = attention
  branches = fake_branches()
  for a, b in zip(apply(branches), apply(poisoned(branches, value)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_absent_branch_is_as_if_it_were_not_there(attention):
  module, variables, apply = attention
  here = np.array([[1, 0, 1]] * BATCH, bool)
  branches = fake_branches(present=here)
  logit, shares = apply(branches)
  without = {name: branch for name, branch in branches.items() if name != "metadata"}
  logit_without, shares_without = module.apply(variables, without, train=False)
  np.testing.assert_allclose(logit, logit_without, atol=1e-6)
  np.testing.assert_allclose(np.delete(shares, 1, axis=1), shares_without, atol=1e-6)


def test_shares_sum_to_one_over_what_is_present(attention):
  logit, shares = attention[2](fake_branches())
  np.testing.assert_allclose(shares.sum(axis=1), PRESENT.any(axis=1), atol=1e-6)
  np.testing.assert_array_equal(np.asarray(shares) > 0, PRESENT)
  assert np.isfinite(logit).all()


def test_with_everything_absent_the_answer_is_zero(attention):
  nothing = poisoned(fake_branches(present=np.zeros((BATCH, 3), bool)), np.nan)
  for answer in (attention[2](nothing), fusion.weighted_ensemble(nothing)):
    for part in answer:
      np.testing.assert_array_equal(part, 0)


def test_nothing_flows_back_into_what_is_absent(attention):
  module, variables, _ = attention
  here = np.array([[1, 0, 1]] * BATCH, bool)

  def total(variables, branches):
    return module.apply(variables, branches, train=False)[0].sum()

  by_variables, by_branches = quick_jit(jax.grad(total, argnums=(0, 1), allow_int=True))(
    variables, poisoned(fake_branches(present=here), np.nan)
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(by_variables))
  np.testing.assert_array_equal(by_variables["params"]["kind_metadata"], 0)
  assert np.abs(by_variables["params"]["kind_spatial"]).max() > 0
  np.testing.assert_array_equal(by_branches["metadata"].tokens, 0)
  np.testing.assert_array_equal(by_branches["metadata"].logit, 0)
  np.testing.assert_array_equal(by_branches["audio"].tokens[:, -1], 0)
  assert np.abs(by_branches["audio"].tokens[:, 0]).max() > 0


def test_training_begins_at_an_ensemble():
  module = fusion.AttentionFusion(heads=2)
  branches = fake_branches()
  variables = module.init(jax.random.key(0), branches, train=False)
  logit, shares = module.apply(variables, branches, train=False)
  logits = np.stack([b.logit for b in branches.values()], axis=1)
  np.testing.assert_allclose(logit, (logits * shares).sum(axis=1), atol=1e-6)


def test_training_and_evaluation_return_the_same_types(attention):
  module, variables, _ = attention
  rngs = {"modality": jax.random.key(0)}
  shapes = [
    jax.eval_shape(
      lambda v, b, train=train: module.apply(v, b, train=train, rngs=rngs), variables, fake_branches()
    )
    for train in (False, True)
  ]
  assert shapes[0] == shapes[1]
  assert [x.shape for x in shapes[0]] == [(BATCH,), (BATCH, 3)]


def test_modality_dropout_never_hides_the_last_branch():
  present = jnp.array(np.tile(PRESENT, (400, 1)))
  for rate in (0.3, 1.0):
    kept = np.asarray(fusion.drop_modalities(jax.random.key(1), present, rate=rate))
    assert not (kept & ~np.asarray(present)).any()
    np.testing.assert_array_equal(kept.any(axis=1), np.asarray(present).any(axis=1))
  assert kept.sum(axis=1).max() == 1
  # Every one of three is the one that stays in about a third of the draws.
  np.testing.assert_allclose(kept[::5].mean(axis=0), 1 / 3, atol=0.08)


def test_modality_dropout_hides_at_its_rate():
  present = jnp.ones((4000, 2), bool)
  kept = np.asarray(fusion.drop_modalities(jax.random.key(1), present, rate=0.3))
  # Each is hidden with probability 0.3, unless both would be: then one is spared.
  assert kept.mean() == pytest.approx(1 - 0.3 + 0.09 / 2, abs=0.02)


@pytest.mark.parametrize("name", ["weighted", "attention", "bottlenecks"])
def test_leaving_one_out_is_a_fusion_that_never_knew_it(name):
  config = ModelConfig(
    branches=tuple(TOKENS),
    fusion="weighted" if name == "weighted" else "attention",
    fusion_heads=2,
    bottlenecks=3 if name == "bottlenecks" else 0,
  )
  branches = fake_branches()
  module = fusion.AttentionFusion(heads=2, bottlenecks=config.bottlenecks)
  variables = random_variables(module, branches, train=False)
  output = DetectorOutput(logit=jnp.zeros(BATCH), branches=branches, weights=jnp.zeros((BATCH, 3)))
  found = detector.leave_one_out(config, {"params": {"fusion": variables["params"]}}, output)
  assert list(found) == list(TOKENS)
  for left_out, logit in found.items():
    others = {key: branch for key, branch in branches.items() if key != left_out}
    if name == "weighted":
      expected, _ = fusion.weighted_ensemble(others)
    else:
      expected, _ = module.apply(variables, others, train=False)
    np.testing.assert_allclose(logit, expected, atol=1e-5)
  # What was absent all along changes nothing, and where all else is absent nothing is left.
  whole = (
    fusion.weighted_ensemble(branches)
    if name == "weighted"
    else module.apply(variables, branches, train=False)
  )
  for index, key in enumerate(TOKENS):
    gone = ~PRESENT[:, index]
    np.testing.assert_allclose(found[key][gone], whole[0][gone], atol=1e-5)
    assert (found[key][PRESENT[:, index] & (PRESENT.sum(axis=1) == 1)] == 0).all()
