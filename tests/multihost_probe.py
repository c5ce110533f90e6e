"""What two processes tell each other, one of them; called with its arguments for parallel.connect as JSON.

Prints what it was told as one line of JSON.
"""

import json
import sys

import jax
import numpy as np
from tiny import tiny_batch, tiny_branch, tiny_config

from deepscan_jax import parallel, train_state
from deepscan_jax.models.detector import Detector
from deepscan_jax.optimizer import create_optimizer


def main() -> None:
  parallel.connect(**json.loads(sys.argv[1]))
  index, count = parallel.shard()
  told = {"shard": [index, count], "devices": parallel.device_count(), "rows": parallel.rows_here(8)}
  told["each"] = parallel.of_each_process({"index": index, "text": "x" * index, "value": 0.1 + index})
  # Of types and shapes of a state; -0.0 and NaN, because sums would change the one and lose the other.
  tree = {"a": np.array([[-0.0, np.nan, 0.1 + index]], np.float32), "b": np.int32(7 + index)}
  given = parallel.from_first(tree)
  told["first"] = [given["a"].tobytes().hex(), int(given["b"])]
  poll = parallel.Poll()
  told["poll"] = [poll(15 if (index, turn) == (1, 1) else 0) for turn in range(4)]
  told["refused"] = []
  for wrong in (6, 2):
    try:
      parallel.rows_here(wrong)
    except ValueError as error:
      told["refused"].append(str(error))
  try:
    with parallel.all_or_none():
      if index == 1:
        raise RuntimeError("no data here")
  except (ValueError, RuntimeError) as error:
    told["error"] = str(error)
  with tiny_branch():
    told["bits"] = dropout_bits(rows=2)
  # As often as it likes.
  for _ in range(1 + index):
    alone = parallel.parallel_map(lambda scale, batch: scale * batch.sum())
    told["alone"] = np.asarray(alone(np.float32(2), np.arange(4.0).reshape(2, 2) + index)).tolist()
  parallel.disconnect()
  print(json.dumps(told))


def dropout_bits(rows: int) -> list[int]:
  """Random bits from the key of dropout in a step on so many rows, of all devices of all processes."""
  config = tiny_config()
  model, keys = Detector(config.model), []

  class Listener:
    def apply(self, variables, batch, *, train, rngs):
      keys.append(rngs["dropout"])
      return model.apply(variables, batch, train=train, rngs=rngs)

  def bits_of_all(state, batch, axis_name):
    train_state.train_step(
      state, batch, axis_name, model=Listener(), optimizer=create_optimizer(config.train), config=config
    )
    return state, jax.lax.all_gather(jax.random.bits(keys[-1]), axis_name)

  state = parallel.replicate(train_state.create_state(config))
  _, bits = parallel.parallel_step(bits_of_all)(state, parallel.split_batch(tiny_batch(rows)))
  return np.asarray(bits).tolist()


if __name__ == "__main__":
  main()
