"""From prepared datasets to batches: TFDS data sources, grain iterators, pseudo-fakes and augmentation.

Everything here is numpy: grain calls it in threads or in worker processes. A picture's random numbers come
from the iterator's seed and position (training) or from the picture's own id (validation), so a resumed run
draws what an uninterrupted one would have drawn, and every validation sees the same twins.
"""

import dataclasses
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds

from deepscan_jax import examples
from deepscan_jax.augment import augment_one, augment_pair
from deepscan_jax.config import DataConfig
from deepscan_jax.faces.align import eval_crop
from deepscan_jax.pseudofakes.image import self_blend

# Places of the region map along a side: 224 px at stride 16.
REGION_SIZE = 14
_TEXT_KEYS = ("id", "group", "source", "method")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class ExampleSource:
  """Random access to the examples of one split of several prepared datasets; workers get it pickled.

  Args:
    names: of datasets below data_dir, "real_only" or with a config, "real_only/mine".
    split: "train", "validation" or "test".
    data_dir: where build_dataset wrote them.
    source_weights: (source, times) pairs; that source's examples are listed so many times.

  Raises:
    FileNotFoundError: a dataset has not been built; the message says how to build it.
    ValueError: the split is empty.
  """

  def __init__(self, names: Sequence[str], split: str, data_dir: str | Path, *, source_weights=()):
    self._sources = [_open(name, split, Path(data_dir)) for name in names]
    rows = [(s, i) for s, source in enumerate(self._sources) for i in range(len(source))]
    if source_weights:
      weights = dict(source_weights)
      # Decodes every picture once: TFDS cannot leave them out without TensorFlow.
      labels = [row["source"].decode() for source in self._sources for row in source]
      for missing in sorted(set(weights) - set(labels)):
        logging.warning("No example comes from %r, which data.source_weights names.", missing)
      rows = [row for row, label in zip(rows, labels, strict=True) for _ in range(weights.get(label, 1))]
    if not rows:
      raise ValueError(f"Split {split!r} of {', '.join(names)} is empty.")
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict:
    source, row = self._rows[index]
    element = self._sources[source][row]
    text = {
      key: element[key].decode() if isinstance(element[key], bytes) else element[key] for key in _TEXT_KEYS
    }
    return {**element, **text, "faces": np.stack(element["faces"]), "label": np.int32(element["label"])}


def train_dataset(config: DataConfig, *, data_dir: str | Path, seed: int) -> grain.IterDataset:
  """An endless, shuffled stream of batches; its iterators can be saved and restored exactly.

  Args:
    config: what to read.
    data_dir: where the datasets are.
    seed: of order, pseudo-fakes and augmentation.

  Returns:
    Batches of crops [batch, frame, 224, 224, 3] uint8, crop_mask [batch, frame] bool, label [batch] int32,
    example_mask [batch] bool, and with pseudo-fakes region [batch, frame, 14, 14] float32. With pseudo-fakes
    even rows are real and the row after each is its twin.
  """
  # The training step wants the cores; at this picture size OpenCV's own threads gain nothing.
  cv2.setNumThreads(1)
  twins = 2 if config.pseudofakes else 1
  if config.batch_size % twins:
    raise ValueError(
      f"Batch size {config.batch_size} must be even: each real face comes with its pseudo-fake."
    )
  source = ExampleSource(config.datasets, "train", data_dir, source_weights=config.source_weights)
  dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  dataset = dataset.random_map(PairMaker(config) if config.pseudofakes else SingleMaker(config))
  dataset = dataset.batch(config.batch_size // twins, drop_remainder=True).map(_merge_twins)
  threads = 1 if config.workers else 2
  iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4))
  if config.workers:
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
  return iterable


def rows_in_pass(config: DataConfig, *, data_dir: str | Path) -> int:
  """How many rows of a batch one pass over the training split fills, both twins counted."""
  source = ExampleSource(config.datasets, "train", data_dir, source_weights=config.source_weights)
  return len(source) * (2 if config.pseudofakes else 1)


@dataclasses.dataclass(frozen=True)
class PairMaker(grain.transforms.RandomMap):
  """Example -> itself and its self-blended twin, augmented alike, each key with a twin axis in front."""

  config: DataConfig

  def random_map(self, element: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws the twin and the augmentation from rng."""
    degraded = bool(rng.random() >= self.config.plain_probability)
    return make_pair(element, rng=rng, config=self.config, degraded=degraded)


@dataclasses.dataclass(frozen=True)
class SingleMaker(grain.transforms.RandomMap):
  """Example -> augmented crops with the example's own label, with a twin axis of one in front."""

  config: DataConfig

  def random_map(self, element: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws the augmentation from rng."""
    crops = np.stack([augment_one(face, rng=rng, config=self.config.augment) for face in element["faces"]])
    one = {"crops": crops, "crop_mask": np.asarray(element["face_mask"], bool), "label": element["label"]}
    return {key: np.asarray(value)[None] for key, value in one.items()} | {"example_mask": np.ones(1, bool)}


def make_pair(
  element: dict, *, rng: np.random.Generator, config: DataConfig, degraded: bool
) -> dict[str, np.ndarray]:
  """A real example and its self-blended twin as two rows.

  Args:
    element: an example (deepscan_jax.examples).
    rng: the only source of randomness.
    config: of blend and augmentation.
    degraded: augment both alike as in training; else both are the plain evaluation crop.

  Returns:
    crops [2, frame, 224, 224, 3] uint8, crop_mask [2, frame] bool, label [2] int32 = 0, 1, example_mask [2]
    bool, region [2, frame, 14, 14] float32: how much of each place was blended in.
  """
  rows: list[tuple] = []
  for face, landmarks in zip(element["faces"], element["landmarks"], strict=True):
    pair = self_blend(face, landmarks, rng=rng, config=config.blend)
    if degraded:
      rows.append(augment_pair(pair.real, pair.fake, pair.mask, rng=rng, config=config.augment))
    else:
      mask = eval_crop(np.repeat(pair.mask[..., None], 3, axis=-1))[..., 0]
      rows.append((eval_crop(pair.real), eval_crop(pair.fake), mask))
  real, fake, masks = (np.stack(column) for column in zip(*rows, strict=True))
  region = np.stack([cv2.resize(m, (REGION_SIZE, REGION_SIZE), interpolation=cv2.INTER_AREA) for m in masks])
  return {
    "crops": np.stack([real, fake]),
    "crop_mask": np.repeat(np.asarray(element["face_mask"], bool)[None], 2, axis=0),
    "label": np.array([examples.REAL, examples.FAKE], np.int32),
    "example_mask": np.ones(2, bool),
    "region": np.stack([np.zeros_like(region), region]).astype(np.float32),
  }


@dataclasses.dataclass(frozen=True)
class HeldOutPairs:
  """Random access to held-out pairs; pair i is the same whenever and in whatever order it is asked for.

  Attributes:
    source: real examples.
    config: of blend and augmentation.
    draws: twins drawn of each example.
    degraded: see `make_pair`.
  """

  source: ExampleSource
  config: DataConfig
  draws: int = 1
  degraded: bool = True
  rows: int = 2

  def __len__(self) -> int:
    return len(self.source) * self.draws

  def __getitem__(self, index: int) -> dict:
    element = self.source[index // self.draws]
    seed = [zlib.crc32(element["id"].encode()), index % self.draws, int(self.degraded)]
    pair = make_pair(element, rng=np.random.default_rng(seed), config=self.config, degraded=self.degraded)
    return {**pair, **{key: element[key] for key in _TEXT_KEYS}}


@dataclasses.dataclass(frozen=True)
class HeldOutExamples:
  """Random access to held-out examples under their own labels, cut as for the detector."""

  source: ExampleSource
  rows: int = 1

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    element = self.source[index]
    inputs = {**examples.model_inputs(element), "label": element["label"], "example_mask": np.bool_(True)}
    return {k: np.asarray(v)[None] for k, v in inputs.items()} | {key: element[key] for key in _TEXT_KEYS}


def held_out_batches(
  held_out: HeldOutPairs | HeldOutExamples, *, limit: int, batch_size: int
) -> Iterator[tuple[dict, list[dict]]]:
  """Batches for evaluation, evenly spread over the split; the last one is padded.

  Args:
    held_out: random access.
    limit: at most so many pairs or examples; 0 = all.
    batch_size: rows in a batch, both twins counted.

  Yields:
    A batch as `train_dataset` gives them (example_mask False on padding), and for each pair or example in it
    a dict of its id, group, source and method.
  """
  at_once = batch_size // held_out.rows
  count = min(limit, len(held_out)) if limit else len(held_out)
  chosen = np.linspace(0, len(held_out) - 1, count).astype(int).tolist()
  dataset = grain.MapDataset.source(chosen).map(held_out.__getitem__)
  iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=32)))
  waiting: list[dict] = []
  for position, element in enumerate(iterator, start=1):
    waiting.append(element)
    if len(waiting) == at_once or position == count:
      facts = [{key: e.pop(key) for key in _TEXT_KEYS} for e in waiting]
      # Padding is zeros, and so is the example_mask of its rows.
      batch = examples.stack(waiting, size=at_once)
      yield _merge_twins({key: batch[key] for key in waiting[0]}), facts
      waiting = []
  iterator.close()


def _merge_twins(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}


def _directory(name: str, data_dir: Path) -> Path:
  versions = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
  # A build that was interrupted leaves a folder whose name goes on after the version.
  versions = sorted((path for path in versions if _VERSION.fullmatch(path.name)), key=_version)
  if not versions:
    found = sorted(str(p.parent.parent.relative_to(data_dir)) for p in data_dir.rglob("dataset_info.json"))
    raise FileNotFoundError(
      f"Dataset {name!r} is not in {data_dir} (found there: {', '.join(found) or 'none'}); build it with: "
      f"deepscan build_dataset --name={name} --media=FOLDER --data_dir={data_dir}"
    )
  return versions[-1]


def _version(folder: Path) -> tuple[int, ...]:
  return tuple(int(part) for part in folder.name.split("."))


def _open(name: str, split: str, data_dir: Path) -> Sequence[dict]:
  builder = tfds.builder_from_directory(_directory(name, data_dir))
  # A small dataset may have no group in a split.
  return builder.as_data_source(split) if split in builder.info.splits else ()
