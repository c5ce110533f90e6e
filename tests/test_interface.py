import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax.models.interface import BranchOutput, hide, masked_mean


@pytest.fixture
def values():
  return np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)


MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], bool)


def test_masked_mean_is_a_loop(values):
  expected = np.zeros((3, 2))
  for b in range(3):
    present = [values[b, t] for t in range(4) if MASK[b, t]]
    expected[b] = sum(present) / len(present) if present else 0
  np.testing.assert_allclose(masked_mean(jnp.array(values), jnp.array(MASK)), expected, rtol=1e-6)


@pytest.mark.parametrize("hidden", [np.nan, np.inf, 1e30])
def test_what_is_hidden_has_no_effect(values, hidden):
  other = np.where(MASK[..., None], values, hidden).astype(np.float32)
  for function in (hide, masked_mean):
    np.testing.assert_array_equal(
      function(jnp.array(other), jnp.array(MASK)), function(jnp.array(values), jnp.array(MASK))
    )
  np.testing.assert_array_equal(hide(jnp.array(other), jnp.array(MASK))[1], 0)


def test_hide_keeps_the_type():
  assert hide(jnp.ones((3, 4), jnp.uint8), jnp.array(MASK)).dtype == jnp.uint8


def test_a_branch_is_present_where_any_token_is():
  output = BranchOutput(jnp.zeros((3, 4, 2)), jnp.array(MASK), jnp.zeros(3))
  np.testing.assert_array_equal(output.present, [True, False, True])
