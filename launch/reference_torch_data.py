"""The loader that `deepscan benchmark data` times ours against: torch's own; needs the `benchmark` extra.

It reads the same examples from the same array_record and makes the same of them, by the same code: what is
compared is who carries them from there to batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from deepscan_jax.data import use_one_thread

_ENDLESS = 2**40


class Examples(Dataset):
  """A map-style dataset: example -> rows, with random numbers of the example and of this process's count."""

  def __init__(self, source: Sequence[dict], make: Callable[[dict, np.random.Generator], dict]):
    self._source, self._make, self._drawn = source, make, 0

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    use_one_thread()
    self._drawn += 1
    return self._make(self._source[index], np.random.default_rng([index, self._drawn]))


def batches(
  source: Sequence[dict],
  make: Callable[[dict, np.random.Generator], dict],
  *,
  batch_size: int,
  workers: int,
) -> Iterator[dict[str, torch.Tensor]]:
  """An endless, shuffled stream of batches.

  Args:
    source: of the examples.
    make: example -> rows [row, ...]; all have as many.
    batch_size: examples in a batch, before their rows are counted.
    workers: processes; 0 makes the batches in this one, when they are asked for.
  """
  dataset = Examples(source, make)
  loader = DataLoader(
    dataset,
    batch_size=batch_size,
    sampler=RandomSampler(dataset, replacement=True, num_samples=_ENDLESS),
    num_workers=workers,
    drop_last=True,
  )
  for batch in loader:
    yield {key: value.flatten(0, 1) for key, value in batch.items()}
