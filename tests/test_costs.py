import jax
import pytest
from tiny import random_variables

from deepscan_jax import checkpoints, train_state
from deepscan_jax.config import Config, ModelConfig, override
from deepscan_jax.models.costs import model_costs
from deepscan_jax.models.detector import Detector

SMALL = ModelConfig(branches=("spatial", "temporal", "autoencoder"), backbone="pico", features=32)


def small_config() -> Config:
  return override(Config(model=SMALL), "data.window.frames=2")


def test_costs_of_the_parts_add_up_to_those_of_the_whole():
  config = small_config()
  costs = {
    cost.name: cost
    for cost in model_costs(config.model, train_state.abstract_batch(1, config), narrow_from=256)
  }
  assert list(costs) == ["spatial", "temporal", "autoencoder", "fusion", "all"]
  parts = [cost for name, cost in costs.items() if name != "all"]
  for field in ("parameters", "float32_bytes", "bfloat16_bytes"):
    assert sum(getattr(cost, field) for cost in parts) == getattr(costs["all"], field)
  variables = random_variables(Detector(config.model), train_state.abstract_batch(1, config), train=False)
  assert costs["all"].parameters == sum(x.size for x in jax.tree.leaves(variables["params"]))
  assert costs["all"].float32_bytes == sum(x.nbytes for x in jax.tree.leaves(variables))
  large = sum(x.size for x in jax.tree.leaves(variables["params"]) if x.size >= 256)
  assert costs["all"].float32_bytes - costs["all"].bfloat16_bytes == 2 * large > 0


def test_operations_grow_with_the_frames_that_are_looked_at():
  one, two = (
    model_costs(
      SMALL,
      train_state.abstract_batch(1, override(Config(model=SMALL), f"data.window.frames={n}")),
      narrow_from=checkpoints.NARROW_FROM,
    )
    for n in (1, 2)
  )
  assert two[0].flops == pytest.approx(2 * one[0].flops, rel=0.01)
  # A multiplication and an addition for each parameter of a dense layer, at the least.
  assert one[0].flops > 2 * one[0].parameters
