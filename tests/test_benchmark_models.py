"""The benchmark of networks compares with PyTorch what computes the same numbers."""

import numpy as np
import pytest

pytest.importorskip("torch")

from deepscan_jax.launch import benchmark_models
from deepscan_jax.launch.benchmark_models import Case


@pytest.mark.parametrize(
  ("case", "ours", "reference"),
  [
    (Case("pico", 64, 2, 1.0), "our_forward", "torch_forward"),
    (Case("pico_densenet", 64, 2, 1.0), "our_forward", "torch_forward"),
    (Case("pico_xception", 75, 2, 1.0), "our_forward", "torch_forward"),
    (Case("R(2+1)D", 32, 2, 1.0, frames=3), "our_clip_forward", "torch_clip_forward"),
    (Case("R3D", 32, 1, 1.0, frames=3), "our_clip_forward", "torch_clip_forward"),
  ],
  ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_both_sides_answer_alike(case, ours, reference):
  (our_call,) = getattr(benchmark_models, ours)(case)
  answer = our_call()
  assert answer.std() > 1e-3
  for call in getattr(benchmark_models, reference)(case):
    np.testing.assert_allclose(call(), answer, atol=2e-4 * np.abs(answer).max())


def test_a_case_is_named_by_what_is_timed():
  assert Case("b3", 300, 8, 1.0).title == "b3, 300 px, batch 8"
  assert Case("R3D", 112, 1, 1.2, frames=16).title == "R3D, 16 x 112 px, batch 1"
