"""Training with every branch on learns by heart what it sees, and nothing where there is nothing."""

import functools

import numpy as np
from compiling import quick_jit
from small_detector import clips, first_state, small_branches, small_config

from deepscan_jax import train_state
from deepscan_jax.models.detector import Detector
from deepscan_jax.optimizer import create_optimizer

STEPS = 15
HELD_OUT = 64


def test_sixteen_clips_are_learnt_by_heart_and_random_labels_of_others_are_not_guessed():
  """All labels are random, so what is right on other clips is a matter of chance: binomial, 0.5 of 64.

  Four standard deviations are 0.25; a fair coin lies outside of them once in 16,000 times. Where the label
  leaks (by its place in a batch, by statistics of the batch), more would be right.
  """
  with small_branches():
    config = small_config(steps=STEPS, warmup_steps=2, learning_rate=3e-3, ema_decay=0.0, weight_decay=0.0)
    batch = clips(16, seed=0)
    model = Detector(config.model)
    step = quick_jit(
      functools.partial(
        train_state.train_step, model=model, optimizer=create_optimizer(config.train), config=config
      )
    )
    state, losses = first_state(config, batch), []
    for _ in range(STEPS):
      state, figures = step(state, batch)
      losses.append(means(figures))
    # Nothing drops out but the provenance branch now and then, so the step itself tells what is right.
    others = clips(HELD_OUT, seed=1)
    parts = [{k: v[i : i + 16] for k, v in others.items()} for i in range(0, HELD_OUT, 16)]
    right = {
      "seen": means(step(state, batch)[1])["train_accuracy"],
      "held out": np.mean([means(step(state, part)[1])["train_accuracy"] for part in parts]),
    }
  assert right["seen"] == 1.0
  assert abs(right["held out"] - 0.5) <= 4 * 0.5 / np.sqrt(HELD_OUT)
  first, last = losses[0], losses[-1]
  # Guessing gives 0.69.
  assert last["fused"] < 0.69 / 3 < 0.5 < first["fused"]
  # What each branch is trained for gets better; the fused logit could be right without them.
  worse = {name for name in last if name.startswith("branch_") and last[name] > first[name] + 0.02}
  assert not worse
  assert last["reconstruction"] < first["reconstruction"] and last["sync"] < first["sync"]


def means(figures) -> dict[str, float]:
  return {name: float(x.total) / max(float(x.weight), 1e-6) for name, x in figures.items()}
