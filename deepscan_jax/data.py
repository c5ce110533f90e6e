"""From prepared datasets to batches: TFDS data sources, grain iterators, pseudo-fakes and augmentation.

Everything here is numpy: grain calls it in threads or in worker processes. An example's random numbers come
from the iterator's seed and position (training) or from the example's own id (validation), so a resumed run
draws what an uninterrupted one would have drawn, and every validation sees the same twins.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl

from deepscan_jax import augment_audio, examples, folds, stopping
from deepscan_jax.augment import draw_augmentation
from deepscan_jax.augment_audio import degrade_one, degrade_pair
from deepscan_jax.config import DataConfig, WindowConfig
from deepscan_jax.faces.align import eval_crop, eval_points
from deepscan_jax.perturb import SOUND, Rung
from deepscan_jax.pseudofakes.audio import matched_pair, voice_pair
from deepscan_jax.pseudofakes.clip import moving_still, self_blend_clip
from deepscan_jax.pseudofakes.image import BlendedPair, best_donor, self_blend, swap_face
from deepscan_jax.pseudofakes.sync import SAMPLES_PER_FRAME, sync_pair

# Places of the region map along a side: 224 px at stride 16.
REGION_SIZE = 14
FACE_INPUTS = ("crops", "crop_mask")
PSEUDOFAKES = ("face", "swap", "voice", "sync")
# Of these, those of the face.
FORGED_FACES = ("face", "swap")
_TEXT_KEYS = ("id", "group", "source", "method")
_FACT_KEYS = (*_TEXT_KEYS, "dataset", "kind", "face_size_px")
_ENCODED_KEYS = ("faces", "mouths")
# Of which a validation with a limit takes no more while it leaves files out.
_EXAMPLES_OF_A_FILE = 4
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# The splits that folds divide.
_DIVIDED = ("train", "validation")
# Full scale of stored sound (examples).
_INT16 = 32767.0

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fold:
  """One of the parts into which train and validation of some datasets together are divided; see folds.py.

  Attributes:
    number: from 0 on.
    count: how many parts there are.
    datasets: all that are divided, whichever of them are then read.

  Raises:
    ValueError: there is no such part.
  """

  number: int
  count: int
  datasets: tuple[str, ...]

  def __post_init__(self):
    if self.count < 2 or not 0 <= self.number < self.count:
      raise ValueError(
        f"There is no fold {self.number} of {self.count}: give 2 folds or more (0: none), and a fold from 0 "
        "to below them."
      )

  @classmethod
  def of(cls, config: DataConfig) -> "Fold | None":
    """The one that a configuration asks for; None where it asks for none."""
    return cls(config.fold, config.folds, config.datasets) if config.folds else None


class ExampleSource:
  """Random access to the examples of one split of several prepared datasets; workers get it pickled.

  Args:
    names: of datasets below data_dir, "real_only" or with a config, "real_only/mine".
    split: "train", "validation" or "test".
    data_dir: where build_dataset wrote them.
    inputs: what the model reads (models.detector.detector_inputs); examples that hold nothing of it are left
      out, and pictures that it does not read are not decoded.
    labels: only examples whose label, of what the model reads, is one of these; None: all.
    source_weights: (source, times) pairs; that source's examples are listed so many times.
    fold: read train or validation as this fold has them; test stays as it is.

  Attributes:
    groups: by (source, what it holds of what the model looks at, in words) the indices of such examples.

  Raises:
    FileNotFoundError: a dataset has not been built; the message says how to build it.
    ValueError: nothing in the split fits.
  """

  def __init__(
    self,
    names: Sequence[str],
    split: str,
    data_dir: str | Path,
    *,
    inputs: Sequence[str] = FACE_INPUTS,
    labels: Iterable[int] | None = None,
    source_weights=(),
    fold: Fold | None = None,
  ):
    self.inputs = tuple(inputs)
    self._data_dir = Path(data_dir)
    data_dir, fold = Path(data_dir), fold if split != "test" else None
    places = [(name, part) for name in names for part in (_DIVIDED if fold else (split,))]
    self._places, self._names = places, [name for name, _ in places]
    self._sources = [_open(name, part, data_dir) for name, part in places]
    divided = _divided(fold, data_dir) if fold else {}
    weights, wanted = dict(source_weights), None if labels is None else set(labels)
    rows, seen = [], set()
    self.groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for s, (place, source) in enumerate(zip(places, self._sources, strict=True)):
      if not len(source):
        continue
      for i, (facts, origin) in enumerate(_index(*place, data_dir)):
        seen.add(origin)
        if fold and not folds.belongs(divided[place][i], split, fold.number):
          continue
        held = _held(facts, self.inputs)
        if held and (wanted is None or int(examples.labels(facts, keys=self.inputs)["label"]) in wanted):
          times = weights.get(origin, 1)
          self.groups.setdefault((origin, held), []).extend(range(len(rows), len(rows) + times))
          rows += [(s, i)] * times
    for missing in sorted(set(weights) - seen):
      logging.warning("No example comes from %r, which data.source_weights names.", missing)
    if not rows:
      raise ValueError(
        f"Split {split!r} of {', '.join(names)}"
        + (f" (fold {fold.number} of {fold.count})" if fold else "")
        + f" has no example that holds {' or '.join(_kinds(self.inputs))}"
        + ("" if wanted is None else f" with a label that is wanted ({', '.join(map(_name, wanted))})")
        + "."
      )
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def files(self) -> list[tuple[int, str]]:
    """Of each example which file it is a part of: pairs that are equal for examples of one file."""
    indices = [
      _index(*place, self._data_dir) if len(s) else []
      for place, s in zip(self._places, self._sources, strict=True)
    ]
    ids = [(s, indices[s][i][0]["id"].decode()) for s, i in self._rows]
    # An example's id ends in its place in the file.
    return [(s, name.rpartition("#")[0] or name) for s, name in ids]

  @property
  def empty(self) -> tuple[str, ...]:
    """Masks (examples.MASKED) of `inputs` that are False all over every example."""
    held = {word for _, words in self.groups for word in words}
    return tuple(
      mask
      for mask, (key, *_) in examples.MASKED.items()
      if key in self.inputs and _LOOKED_AT[key] not in held
    )

  def reading(self, inputs: Sequence[str]) -> "ExampleSource":
    """The same examples for who reads only these of `inputs`."""
    other = copy.copy(self)
    other.inputs = tuple(inputs)
    return other

  def __getitem__(self, index: int) -> dict:
    source, row = self._rows[index]
    element = {**self._sources[source][row], "dataset": self._names[source]}
    for key in _TEXT_KEYS:
      if isinstance(element[key], bytes):
        element[key] = element[key].decode()
    read = {"faces": "crops" in self.inputs, "mouths": "mouth_crops" in self.inputs}
    for key in _ENCODED_KEYS:
      element[key] = _decode_pictures(element[key]) if read[key] else ()
    for key in ("face_label", "sound_label"):
      element[key] = np.int32(element[key])
    return element


def train_dataset(
  config: DataConfig,
  *,
  data_dir: str | Path,
  seed: int,
  inputs: Sequence[str] = FACE_INPUTS,
  shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
  """An endless, shuffled stream of batches; its iterators can be saved and restored exactly.

  Args:
    config: what to read.
    data_dir: where the datasets are.
    seed: of order, pseudo-fakes and augmentation.
    inputs: what the model reads, keys of `examples.input_shapes`.
    shard: (index, count) of this process among those that train together. Each gets its own examples, and as
      many of a batch of config.batch_size as all others; a step's batches of all processes together hold what
      the batch of one process alone would.

  Returns:
    Batches of the inputs, each [batch, ...] as `examples.input_shapes` says, label, face_label and
    sound_label [batch] int32 (examples.UNKNOWN where nobody knows), example_mask [batch] bool, and with
    pseudo-fakes of faces region [batch, frame, 14, 14] float32. With pseudo-fakes even rows are real and the
    row after each is its twin.

  Raises:
    FileNotFoundError, ValueError: see `ExampleSource`; or the configuration contradicts itself.
  """
  twins = 2 if config.pseudofakes else 1
  index, count = shard
  if config.batch_size % twins:
    raise ValueError(
      f"Batch size {config.batch_size} must be even: each real example comes with its pseudo-fake."
    )
  if config.batch_size % (twins * count):
    pairs = "whole pairs of a real example and its pseudo-fake" if twins == 2 else "as many examples"
    raise ValueError(
      f"Batch size {config.batch_size} must be a multiple of {twins * count}, so that each of {count} "
      f"processes reads {pairs}."
    )
  dataset, make = _stream(config, data_dir=data_dir, seed=seed, inputs=inputs)
  dataset = dataset.random_map(make)
  if count > 1:
    # After the random numbers, which come from the position among all processes' examples; and before they
    # are batched, so that the processes' n-th batches together are the n-th stretch of all examples.
    dataset = dataset[index::count]
    config = dataclasses.replace(config, batch_size=config.batch_size // count)
  return batched(dataset, rows=twins, config=config)


def batch_facts(
  config: DataConfig, *, data_dir: str | Path, seed: int, step: int, inputs: Sequence[str] = FACE_INPUTS
) -> list[dict]:
  """What stands in the rows of one batch of `train_dataset`, whose batches carry no names.

  Each place of the stream holds the same whenever it is asked for, so that this batch alone is made once
  more. It is that of all processes together, process after process taking its rows in turn.

  Args:
    config, data_dir, seed, inputs: as of `train_dataset`.
    step: which batch; 1 is the first.

  Returns:
    For each row, JSON: id, group, source and method of the example that it was made of; label, face_label and
    sound_label of the row; pseudofake: what was forged in it, and how, in words ("" where nothing was); and
    not_finite: the inputs that hold a NaN or an infinity.
  """
  dataset, make = _stream(config, data_dir=data_dir, seed=seed, inputs=inputs)
  rows = dataset.random_map(_Described(make))
  count = config.batch_size // (2 if config.pseudofakes else 1)
  return [row for place in range((step - 1) * count, step * count) for row in rows[place]]


def _stream(
  config: DataConfig, *, data_dir: str | Path, seed: int, inputs: Sequence[str]
) -> tuple[grain.MapDataset, "PairMaker | SingleMaker"]:
  """The endless examples of training, shuffled and mixed, and what makes rows of them."""
  parts = _parts(config, "train", data_dir, inputs)
  if config.pseudofakes:
    needs_others = config.labelled_share or any(kind == "swap" for kind, _ in config.pseudofake_kinds)
    fakes = None
    if config.swap.synthetic_share:
      # A forgery may be one of the voice alone.
      fakes = _source(config, "train", data_dir, FACE_INPUTS, labels=(examples.FAKE,), weighted=False)
    make = PairMaker(config, tuple(inputs), reals=parts[0][0] if needs_others else None, fakes=fakes)
  else:
    make = SingleMaker(config, tuple(inputs))
  datasets = [grain.MapDataset.source(part).seed(seed).shuffle().repeat() for part, _ in parts]
  if len(datasets) == 1:
    return datasets[0], make
  return grain.MapDataset.mix(datasets, weights=[weight for _, weight in parts]).seed(seed), make


def batched(dataset: grain.MapDataset, *, rows: int, config: DataConfig) -> grain.IterDataset:
  """Rows -> batches of config.batch_size, made ahead by threads or by config.workers processes.

  Args:
    dataset: of rows, each with an axis of twins in front.
    rows: how long that axis is.
    config: of batch_size and workers.
  """
  dataset = dataset.batch(config.batch_size // rows, drop_remainder=True).map(_merge_twins)
  threads = 1 if config.workers else 2
  iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4))
  if config.workers:
    options = grain.MultiprocessingOptions(num_workers=config.workers)
    iterable = iterable.mp_prefetch(options, worker_init_fn=_begin_worker)
  return iterable


def _begin_worker(index: int, count: int) -> None:
  """Makes this worker process leave signals to the one that started it, and end when that is gone.

  Killed, that cannot tell it to.
  """
  stopping.ignore_in_worker(index, count)
  parent = multiprocessing.parent_process()

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def rows_in_pass(config: DataConfig, *, data_dir: str | Path, inputs: Sequence[str] = FACE_INPUTS) -> int:
  """How many rows of a batch one pass over the training split fills, both twins counted.

  With dataset_weights or balance_classes, a pass is as long as all examples, whichever are drawn.
  """
  source = _source(config, "train", data_dir, inputs)
  return len(source) * (2 if config.pseudofakes else 1)


def split_sizes(config: DataConfig, *, data_dir: str | Path) -> dict[str, dict[str, int]]:
  """How many examples each split of each dataset holds, as its dataset_info.json says; no split is opened.

  Of a fold, those that its train and its validation hold; test stays as it is.

  Raises:
    FileNotFoundError: a dataset has not been built.
  """
  sizes = {
    name: {
      split: info.num_examples
      for split, info in tfds.builder_from_directory(_directory(name, Path(data_dir))).info.splits.items()
    }
    for name in config.datasets
  }
  if fold := Fold.of(config):
    divided = _divided(fold, Path(data_dir))
    for name, split in itertools.product(config.datasets, _DIVIDED):
      stored = [of for part in _DIVIDED for of in divided[name, part]]
      sizes[name][split] = sum(folds.belongs(of, split, fold.number) for of in stored)
  return sizes


@functools.cache
def use_one_thread() -> None:
  """Keeps OpenCV and matrix products of NumPy to one thread of this process, from the first call on.

  Called where examples are made, which may be a worker process of the loader. The training step wants the
  cores; at these sizes threads gain nothing and wait for each other by spinning, and products that are split
  over them are rounded in another way on a machine with another number of cores.
  """
  cv2.setNumThreads(1)
  threadpoolctl.threadpool_limits(1, user_api="blas")


def _step_back() -> None:
  """Lets this thread, which reads ahead, have only what the network leaves of the cores.

  The network splits each operation over all of them, and where one is taken away for a moment the others
  wait. Between its operations there are gaps enough. Only Linux has priorities of threads; the main thread,
  which could not be given its own back, is left alone.
  """
  if hasattr(_behind, "done") or threading.current_thread() is threading.main_thread():
    return
  _behind.done = True
  if sys.platform == "linux":
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


_behind = threading.local()


@dataclasses.dataclass(frozen=True)
class PairMaker(grain.transforms.RandomMap):
  """Example -> itself and its forged twin, augmented alike, each key with a twin axis in front.

  An example that is known to be forged comes after one of `reals`, drawn for it; and faces that are swapped
  in are theirs, or those of `fakes` as often as config.swap.synthetic_share says.
  """

  config: DataConfig
  inputs: tuple[str, ...] = FACE_INPUTS
  reals: ExampleSource | None = None
  fakes: ExampleSource | None = None

  def random_map(self, element: dict, rng: np.random.Generator) -> Rows:
    """Draws the twin and the augmentation from rng."""
    return self.draw(element, rng)[0]

  def draw(self, element: dict, rng: np.random.Generator) -> tuple[Rows, "Forgery", bool]:
    """The same, with how the twin was forged, and whether both were degraded."""
    rows, forgery, degraded, _ = self._draw(element, rng)
    return rows, forgery, degraded

  def described(self, element: dict, rng: np.random.Generator) -> tuple[Rows, list[tuple[dict, str]]]:
    """The rows of `random_map`, and for each its example and what was forged in it, in words."""
    rows, forgery, _, pair = self._draw(element, rng)
    forged = "" if forgery.kind == "labelled" else f"{forgery.kind} ({forgery.method})"
    return rows, list(zip(pair, ("", forged), strict=True))

  def _draw(self, element: dict, rng: np.random.Generator) -> tuple[Rows, "Forgery", bool, tuple[dict, dict]]:
    use_one_thread()
    degraded = bool(rng.random() >= self.config.plain_probability)
    forged = None
    if self.reals is not None and examples.labels(element, keys=self.inputs)["label"] == examples.FAKE:
      forged, element = element, self.reals[int(rng.integers(len(self.reals)))]
    synthetic = self.fakes is not None and rng.random() < self.config.swap.synthetic_share
    rows, forgery = draw_pair(
      element,
      rng=rng,
      config=self.config,
      inputs=self.inputs,
      degraded=degraded,
      forged=forged,
      donors=self.fakes if synthetic else self.reals,
    )
    return rows, forgery, degraded, (element, forged or element)


@dataclasses.dataclass(frozen=True)
class SingleMaker(grain.transforms.RandomMap):
  """Example -> itself, augmented, with its own labels and a twin axis of one in front."""

  config: DataConfig
  inputs: tuple[str, ...] = FACE_INPUTS

  def random_map(self, element: dict, rng: np.random.Generator) -> Rows:
    """Draws the augmentation from rng."""
    use_one_thread()
    window = self.config.window.reading(self.inputs)
    fitted = examples.fit(element, window=window, keys=self.inputs)
    rows = {key: np.asarray(value)[None] for key, value in fitted.items()}
    if "crops" in self.inputs:
      made, _ = _face_twins([fitted], rng, self.config, window, forged=False, degraded=True)
      rows |= {key: value[:1] for key, value in made.items() if key != "region"}
    if "waveform" in fitted and (count := int(fitted["waveform_mask"].sum())):
      heard = degrade_one(fitted["waveform"][:count], rng=rng, config=self.config.augment_audio)
      rows["waveform"] = examples.padded(heard, window.samples)[None]
    labels = {key: value[None] for key, value in examples.labels(element, keys=self.inputs).items()}
    return _as_inputs(rows, self.inputs) | labels | {"example_mask": np.ones(1, bool)}

  def described(self, element: dict, rng: np.random.Generator) -> tuple[Rows, list[tuple[dict, str]]]:
    """As of `PairMaker.described`."""
    return self.random_map(element, rng), [(element, "")]


@dataclasses.dataclass(frozen=True)
class _Described(grain.transforms.RandomMap):
  """Example -> facts of the rows that `make` makes of it with the same random numbers."""

  make: PairMaker | SingleMaker

  def random_map(self, element: dict, rng: np.random.Generator) -> list[dict]:
    rows, made_of = self.make.described(element, rng)
    numbers = {key: value for key, value in rows.items() if value.dtype.kind == "f"}
    return [
      {key: example[key] for key in _TEXT_KEYS}
      | {key: int(rows[key][i]) for key in ("label", "face_label", "sound_label")}
      | {"pseudofake": forged, "not_finite": [k for k, v in numbers.items() if not np.isfinite(v[i]).all()]}
      for i, (example, forged) in enumerate(made_of)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Forgery:
  """How the forged twin of a pair was made.

  Attributes:
    kind: one of `PSEUDOFAKES`; "labelled" of an example that is known to be forged and is no twin.
    method: of `MASK_KINDS`, `VOICE_KINDS` or `SYNC_KINDS`; the example's own where it is no twin.
    mask: float32 [frame, 224, 224] in 0..1, how much of each pixel of the crops was blended in; frames that
      are hidden are 0. None where no face was forged.
    segments_s: (start, end) of what is forged in the sound, or does not belong to the mouths, from the
      beginning of the window on.
    late_s: by how much the sound is late; below 0 it is early.
  """

  kind: str
  method: str
  mask: np.ndarray | None = None
  segments_s: tuple[tuple[float, float], ...] = ()
  late_s: float = 0.0


def make_pair(
  element: dict,
  *,
  rng: np.random.Generator,
  config: DataConfig,
  degraded: bool,
  inputs: Sequence[str] = FACE_INPUTS,
  forged: dict | None = None,
  donors: ExampleSource | None = None,
  rung: Rung | None = None,
  seed: int = 0,
) -> dict:
  """A real example and its forged twin as two rows.

  What is forged is drawn from config.pseudofake_kinds among those that the example allows and the model can
  see; all else is the same in both rows, and both go through the same camera, room and codecs.

  Args:
    element: a real example (deepscan_jax.examples).
    rng: the only source of randomness.
    config: of the window, the pseudo-fakes and the augmentation.
    degraded: augment both alike as in training; else both are as in evaluation.
    inputs: what the model reads.
    forged: an example that is known to be forged, in place of a twin.
    donors: examples, of which the faces are that "swap" blends in; None: there are none.
    rung: damage done to both twins alike, before they are cut and augmented; None: none.
    seed: of that damage; what is drawn from rng does not depend on it.

  Returns:
    The inputs, each [2, ...]; label, face_label, sound_label [2] int32; example_mask [2] bool; where the
    model reads crops, region [2, frame, 14, 14] float32: how much of each place was blended in, and
    region_mask [2] bool: whether that is known; kind: str, "labelled" with `forged`.

  Raises:
    ValueError: the example allows none of the kinds.
  """
  rows, forgery = draw_pair(
    element,
    rng=rng,
    config=config,
    degraded=degraded,
    inputs=inputs,
    forged=forged,
    donors=donors,
    rung=rung,
    seed=seed,
  )
  return rows | {"kind": forgery.kind}


def draw_pair(
  element: dict,
  *,
  rng: np.random.Generator,
  config: DataConfig,
  degraded: bool,
  inputs: Sequence[str] = FACE_INPUTS,
  forged: dict | None = None,
  donors: ExampleSource | None = None,
  rung: Rung | None = None,
  seed: int = 0,
) -> tuple[Rows, Forgery]:
  """The rows of `make_pair` without their kind, and how the second of them was forged."""
  window = config.window.reading(inputs)
  pair = [examples.fit(e, window=window, keys=inputs) for e in (element, forged) if e is not None]
  donor = None
  if forged is not None:
    kind = "labelled"
  else:
    kind = _draw_kind(pair[0], rng, config, inputs, has_donors=donors is not None)
    if kind == "swap":
      donor = _draw_donor(element, donors, rng, config)
  # Two of the same, unless another example is given.
  rows = {key: np.stack([np.asarray(row[key]) for row in (pair[0], pair[-1])]) for key in pair[0]}
  labels = [examples.labels(e, keys=inputs) for e in (element, forged or element)]
  labels = {key: np.stack([row[key] for row in labels]) for key in labels[0]}
  forgery = Forgery("labelled", forged["method"]) if forged is not None else None
  if kind == "sync":
    twins, forgery = _sync_twins(pair[0], rng, config, window, keep_mouths="crops" in inputs)
    rows |= twins
  damage = None if rung is None else functools.partial(rung.frames, seed=seed)
  if "crops" in inputs:
    twins, blended = _face_twins(
      pair, rng, config, window, forged=kind in FORGED_FACES, degraded=degraded, donor=donor, damage=damage
    )
    rows, forgery = rows | twins, blended or forgery
    rows["region_mask"] = np.array([True, kind != "labelled"])
  if "waveform" in inputs:
    twins, voiced = _sound_twins(rows, rng, config, kind=kind, degraded=degraded, rung=rung, seed=seed)
    rows, forgery = rows | twins, voiced or forgery
  if damage and "mouth_crops" in rows:
    twins = zip(rows["mouth_crops"], rows["mouth_mask"], strict=True)
    rows["mouth_crops"] = np.stack([_damaged(mouths, there, damage) for mouths, there in twins])
  labels["label"][1] = examples.FAKE
  if kind in (*FORGED_FACES, "voice"):
    labels["sound_label" if kind == "voice" else "face_label"][1] = examples.FAKE
  regions = {key: rows[key] for key in ("region", "region_mask") if key in rows}
  return _as_inputs(rows, inputs) | labels | {"example_mask": np.ones(2, bool)} | regions, forgery


@dataclasses.dataclass(frozen=True)
class HeldOutPairs:
  """Random access to held-out pairs; pair i is the same whenever and in whatever order it is asked for.

  Attributes:
    source: real examples.
    config: of window, pseudo-fakes and augmentation.
    draws: twins drawn of each example.
    degraded, rung: see `make_pair`.
  """

  source: ExampleSource
  config: DataConfig
  draws: int = 1
  degraded: bool = True
  rung: Rung | None = None
  rows: int = 2

  def __len__(self) -> int:
    return len(self.source) * self.draws

  def __getitem__(self, index: int) -> dict:
    element = self.source[index // self.draws]
    seed = [zlib.crc32(element["id"].encode()), index % self.draws, int(self.degraded)]
    pair = make_pair(
      element,
      rng=np.random.default_rng(seed),
      config=self.config,
      inputs=self.source.inputs,
      degraded=self.degraded,
      donors=self.source,
      rung=self.rung,
      seed=seed[0],
    )
    return {**pair, **_facts(element)}


@dataclasses.dataclass(frozen=True)
class HeldOutExamples:
  """Random access to held-out examples under their own labels, cut as for the detector.

  Attributes:
    source: of the examples.
    window: what the network reads of each.
    rung: damage done to each before it is cut; None: none.
  """

  source: ExampleSource
  window: WindowConfig = WindowConfig()  # noqa: RUF009 - immutable
  rung: Rung | None = None
  rows: int = 1

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    use_one_thread()
    element, keys = self.source[index], self.source.inputs
    if self.rung is not None:
      element = perturbed(element, self.rung, seed=zlib.crc32(element["id"].encode()))
    inputs = examples.model_inputs(element, window=self.window.reading(keys), keys=keys)
    inputs |= examples.labels(element, keys=keys) | {"example_mask": np.bool_(True)}
    kind = "face" if len(element["face_mask"]) else "voice"
    return {k: np.asarray(v)[None] for k, v in inputs.items()} | {
      "kind": kind,
      **_facts(element),
    }


def _facts(element: dict) -> dict[str, str | float]:
  texts = {key: element[key] for key in _TEXT_KEYS}
  return {"dataset": element.get("dataset", ""), **texts, "face_size_px": _face_size(element)}


def held_out(
  config: DataConfig,
  split: str,
  *,
  data_dir: str | Path,
  inputs: Sequence[str] = FACE_INPUTS,
  degraded: bool | None = None,
  rung: Rung | None = None,
) -> HeldOutPairs | HeldOutExamples:
  """The examples of a split for evaluation: untouched, or as plain or degraded pairs with pseudo-fakes.

  Args:
    config: of the model's data.
    split: "validation" or "test".
    data_dir: where the datasets are.
    inputs: what the model reads.
    degraded: None: untouched examples; else pairs, see `make_pair`.
    rung: damage done to all of them alike; None: none.
  """
  if degraded is None:
    source = ExampleSource(
      config.datasets,
      split,
      data_dir,
      inputs=inputs,
      labels=(examples.REAL, examples.FAKE),
      fold=Fold.of(config),
    )
    return HeldOutExamples(source, config.window, rung)
  source = _source(config, split, data_dir, inputs, weighted=False)
  return HeldOutPairs(source, config, degraded=degraded, rung=rung)


def perturbed(element: dict, rung: Rung, *, seed: int) -> dict:
  """An example whose pictures, or whose sound, were damaged before anything is cut out of them.

  Faces and mouths that were stored go through it as they are stored, each window of them as one film; nobody
  looks for the faces again.

  Args:
    element: of an `ExampleSource`.
    rung: what is done.
    seed: of it.
  """
  use_one_thread()
  changed = dict(element)
  damage = functools.partial(rung.frames, seed=seed)
  for key, mask in (("faces", "face_mask"), ("mouths", "mouth_mask")):
    if len(element[key]):
      changed[key] = _damaged(np.asarray(element[key]), np.asarray(element[mask], bool), damage)
  sound = np.asarray(element["sound"])
  if rung.of == SOUND and rung.level and len(sound):
    heard = np.clip(sound.astype(np.float32) / np.float32(_INT16), -1, 1)
    changed["sound"] = np.round(rung.sound(heard, seed=seed) * _INT16).astype(np.int16)
  return changed


def _damaged(pictures: np.ndarray, there: np.ndarray, damage: Callable) -> np.ndarray:
  """Pictures [place, ...] after `damage` of those that are there, as one film."""
  changed = pictures.copy()
  if there.any():
    changed[there] = damage(pictures[there])
  return changed


def held_out_batches(
  held_out: HeldOutPairs | HeldOutExamples, *, limit: int, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> Generator[tuple[dict, list[dict]]]:
  """Batches for evaluation, evenly spread over the split; the last one is padded.

  Args:
    held_out: random access.
    limit: at most so many pairs or examples, see `chosen_examples`; 0 = all.
    batch_size: rows in a batch, both twins counted.
    shard: (index, count): of count parts the one with every count-th pair or example, from index on.

  Yields:
    A batch as `train_dataset` gives them (example_mask False on padding), and for each pair or example in it
    a dict of its dataset, id, group, source, method, kind (what is forged in the twin, or what the example
    holds) and face_size_px, the median size of its faces in the file, NaN where not known.
  """
  at_once = batch_size // held_out.rows
  chosen = chosen_examples(held_out, limit=limit)[shard[0] :: shard[1]]
  if not chosen:
    return

  def read(index: int) -> dict:
    _step_back()
    return held_out[index]

  dataset = grain.MapDataset.source(chosen).map(read)
  iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=32)))
  waiting: list[dict] = []
  with contextlib.closing(iterator):
    for position, element in enumerate(iterator, start=1):
      waiting.append(element)
      if len(waiting) == at_once or position == len(chosen):
        facts = [{key: e.pop(key) for key in _FACT_KEYS} for e in waiting]
        # Padding is zeros, and so is the example_mask of its rows.
        batch = examples.stack(waiting, size=at_once)
        yield _merge_twins({key: batch[key] for key in waiting[0]}), facts
        waiting = []


def chosen_examples(held_out: HeldOutPairs | HeldOutExamples, *, limit: int) -> list[int]:
  """The indices, in their order, of at most so many pairs or examples, evenly spread over the split's files.

  A figure of whole videos needs several examples of each. So files are chosen rather than examples: of each
  file at most four, evenly spread in it, and as many files as the limit then allows; where it allows all of
  them, more of each. Limits below 32 take fewer of a file, so that there are some files.

  Args:
    held_out: of what.
    limit: 0 = all.
  """
  if not limit or limit >= len(held_out):
    return list(range(len(held_out)))
  draws, members = len(held_out) // len(held_out.source), {}
  for index, file in enumerate(held_out.source.files()):
    members.setdefault(file, []).extend(range(index * draws, (index + 1) * draws))
  files = list(members.values())
  most = min(max(limit // 8, 1), _EXAMPLES_OF_A_FILE)
  while sum(min(len(file), most + 1) for file in files) <= limit:
    most += 1
  files = [_evenly(file, min(len(file), most)) for file in files]
  count = min(len(files), limit * len(files) // sum(map(len, files)))
  while sum(map(len, chosen := _evenly(files, count))) > limit:
    count -= 1
  return sorted(index for file in chosen for index in file)


def _evenly(things: list, count: int) -> list:
  return [things[place] for place in np.linspace(0, len(things) - 1, count).astype(int).tolist()]


def listed_examples(
  name: str, split: str, *, data_dir: str | Path, inputs: Sequence[str] = FACE_INPUTS
) -> list[dict]:
  """Every example of a split, whether or not a model can use it.

  Returns:
    By example id, group, source and method as str; label, what the file is; read_label, what a model of these
    inputs would get to see (examples.labels); held: whether it holds anything that such a model looks at.
  """
  listed = []
  for facts, origin in _index(name, split, Path(data_dir)):
    row = {key: facts[key].decode() for key in ("id", "group", "method")} | {"source": origin}
    read = int(examples.labels(facts, keys=inputs)["label"])
    row |= {"label": int(facts["label"]), "read_label": read, "held": bool(_held(facts, inputs))}
    listed.append(row)
  return listed


def fingerprint(name: str, *, data_dir: str | Path) -> str | None:
  """SHA-256 of a prepared dataset's manifest, which holds that of each of its files; None of old builds."""
  file = _directory(name, Path(data_dir)) / "manifest.json"
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def division(name: str, *, data_dir: str | Path) -> str:
  """SHA-256 of which files of a prepared dataset are for training and which for validation.

  Builds of the same files on other machines differ in some bytes; this does not, unless a file is divided
  otherwise.

  Raises:
    FileNotFoundError: the dataset has not been built.
  """
  digest = hashlib.sha256()
  for split in _DIVIDED:
    files = {facts["id"].rpartition(b"#")[0] for facts, _ in _index(name, split, Path(data_dir))}
    digest.update(b"\n".join([split.encode(), *sorted(files)]) + b"\n\n")
  return digest.hexdigest()


def left_out_files(name: str, *, data_dir: str | Path) -> list[dict]:
  """What the builder of a prepared dataset could not use, as rejected.jsonl beside it says."""
  file = _directory(name, Path(data_dir)) / "rejected.jsonl"
  if not file.is_file():
    return []
  return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _parts(
  config: DataConfig, split: str, data_dir: str | Path, inputs: Sequence[str]
) -> list[tuple[ExampleSource, float]]:
  """The sources that are mixed, and how often each is drawn."""
  if config.balance_classes and config.pseudofakes:
    raise ValueError("data.balance_classes has no meaning with data.pseudofakes, whose pairs are balanced.")
  if not 0 <= config.labelled_share < 1 or (config.labelled_share and not config.pseudofakes):
    raise ValueError(
      f"data.labelled_share must be 0 or, with data.pseudofakes, below 1; got {config.labelled_share:g}."
    )
  if not 0 <= config.swap.synthetic_share <= 1:
    raise ValueError(f"data.swap.synthetic_share must be 0 to 1; got {config.swap.synthetic_share:g}.")
  if config.swap.synthetic_share and not (
    config.labelled_share and dict(config.pseudofake_kinds).get("swap")
  ):
    raise ValueError(
      "data.swap.synthetic_share swaps in faces of known forgeries: set data.labelled_share too, and have "
      "swap in data.pseudofake_kinds."
    )
  if config.labelled_share:
    if config.dataset_weights:
      raise ValueError("data.labelled_share and data.dataset_weights cannot be had together.")
    reals, fakes = (
      _source(config, split, data_dir, inputs, labels=(label,)) for label in (examples.REAL, examples.FAKE)
    )
    return [(reals, 1 - config.labelled_share), (fakes, config.labelled_share)]
  if not config.dataset_weights and not config.balance_classes:
    return [(_source(config, split, data_dir, inputs), 1.0)]
  weights = config.dataset_weights or (0.0,) * len(config.datasets)
  if (
    len(weights) != len(config.datasets) or min(weights) < 0 or (config.dataset_weights and not sum(weights))
  ):
    raise ValueError(
      f"data.dataset_weights needs one weight of 0 or more for each of {', '.join(config.datasets)}, not all "
      f"0; got {config.dataset_weights}."
    )
  labels = [(examples.REAL,), (examples.FAKE,)] if config.balance_classes else [None]
  groups = [[name] for name in config.datasets] if config.dataset_weights else [list(config.datasets)]
  parts = []
  for names, weight in zip(groups, weights if config.dataset_weights else (1.0,), strict=True):
    if weight:
      sources = [_source(config, split, data_dir, inputs, names=names, labels=wanted) for wanted in labels]
      parts += [(source, weight / len(sources)) for source in sources]
  return parts


def _source(
  config: DataConfig,
  split: str,
  data_dir: str | Path,
  inputs: Sequence[str],
  *,
  names: Sequence[str] = (),
  labels: Iterable[int] | None = None,
  weighted: bool = True,
) -> ExampleSource:
  if labels is None:
    labels = (examples.REAL,) if config.pseudofakes else (examples.REAL, examples.FAKE)
  return ExampleSource(
    names or config.datasets,
    split,
    data_dir,
    inputs=inputs,
    labels=labels,
    source_weights=config.source_weights if weighted else (),
    fold=Fold.of(config),
  )


def label_counts(
  config: DataConfig, split: str, *, data_dir: str | Path, inputs: Sequence[str] = FACE_INPUTS
) -> dict[int, int]:
  """How many examples of a split, that a model of these inputs can use, have each label of what it reads.

  Raises:
    FileNotFoundError: see `ExampleSource`.
  """
  counts = {examples.REAL: 0, examples.FAKE: 0, examples.UNKNOWN: 0}
  fold, data_dir = Fold.of(config), Path(data_dir)
  divided = _divided(fold, data_dir) if fold else {}
  for name in config.datasets:
    for part in _DIVIDED if fold and split != "test" else (split,):
      _directory(name, data_dir)
      for i, (facts, _) in enumerate(_index(name, part, data_dir)):
        if _held(facts, inputs) and (
          not fold or split == "test" or folds.belongs(divided[name, part][i], split, fold.number)
        ):
          counts[int(examples.labels(facts, keys=inputs)["label"])] += 1
  return counts


def held_words(name: str, split: str, data_dir: str | Path, inputs: Sequence[str]) -> frozenset[str]:
  """What the examples of a split hold of what a model of these inputs looks at: "faces", "mouths", "sound",
  "file facts".

  Raises:
    FileNotFoundError: see `ExampleSource`.
  """
  return frozenset(word for facts, _ in _index(name, split, Path(data_dir)) for word in _held(facts, inputs))


def possible_kinds(
  element: dict, *, config: DataConfig, inputs: Sequence[str], has_donors: bool = False
) -> tuple[str, ...]:
  """Which of `PSEUDOFAKES` an example allows and a model of these inputs can see, whatever is drawn.

  Args:
    element, config, inputs: as of `make_pair`.
    has_donors: whether there are other examples, whose faces can be swapped in.
  """
  fitted = examples.fit(element, window=config.window.reading(inputs), keys=inputs)
  return _possible_kinds(fitted, config, inputs, has_donors)


def _possible_kinds(
  fitted: dict, config: DataConfig, inputs: Sequence[str], has_donors: bool
) -> tuple[str, ...]:
  heard = int(fitted["waveform_mask"].sum()) if "waveform" in fitted else 0
  mouths = _first_run(fitted["mouth_mask"]) if "mouth_mask" in fitted else 0
  seen = "crops" in inputs and bool(fitted["face_mask"].any())
  possible = {
    "face": seen,
    # Another person's face does not move with this one's.
    "swap": seen and has_donors and config.window.reading(inputs).frames == 1,
    "voice": heard > 0,
    "sync": mouths >= config.sync.mouth_frames + config.sync.shift_frames[0]
    and heard >= mouths * SAMPLES_PER_FRAME,
  }
  return tuple(kind for kind in PSEUDOFAKES if possible[kind])


def _draw_donor(
  element: dict, donors: ExampleSource, rng: np.random.Generator, config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Stored crop and mesh points of another face: of several, the one that fits best.

  Where all that are drawn show the same person, it is theirs all the same, which no label depends on.
  """
  found = []
  for index in rng.integers(len(donors), size=config.swap.candidates):
    other = donors[int(index)]
    place = int(np.argmax(other["face_mask"])) if len(other["face_mask"]) else 0
    if len(other["faces"]) and other["face_mask"][place]:
      found.append((other["group"] == element["group"], other["faces"][place], other["landmarks"][place]))
  if not found:
    raise ValueError("None of the examples that were drawn to swap faces with has a face.")
  found = [other[1:] for other in found if not other[0]] or [other[1:] for other in found]
  place = int(np.argmax(element["face_mask"]))
  return found[best_donor(element["faces"][place], element["landmarks"][place], found)]


def _draw_kind(
  fitted: dict, rng: np.random.Generator, config: DataConfig, inputs: Sequence[str], *, has_donors: bool
) -> str:
  possible = _possible_kinds(fitted, config, inputs, has_donors)
  for kind, weight in config.pseudofake_kinds:
    if kind not in PSEUDOFAKES or weight < 0:
      raise ValueError(
        f"data.pseudofake_kinds has {kind!r} with {weight:g}; there are {', '.join(PSEUDOFAKES)}, with 0 or "
        "more."
      )
  kinds = [(kind, weight) for kind, weight in config.pseudofake_kinds if weight and kind in possible]
  if not kinds:
    raise ValueError(
      f"None of the pseudo-fakes {', '.join(k for k, _ in config.pseudofake_kinds)} can be made of an "
      f"example that allows {', '.join(possible) or 'none'}; set "
      "data.pseudofake_kinds."
    )
  if len(kinds) == 1:
    return kinds[0][0]
  weights = np.array([weight for _, weight in kinds])
  return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))][0]


def _face_twins(
  pair: list[dict],
  rng: np.random.Generator,
  config: DataConfig,
  window: WindowConfig,
  *,
  forged: bool,
  degraded: bool,
  donor: tuple[np.ndarray, np.ndarray] | None = None,
  damage: Callable | None = None,
) -> tuple[Rows, Forgery | None]:
  """crops, face_mask, frame_times_s, landmarks in the crops' pixels and region, each [2, frame, ...].

  Args:
    pair: one fitted example, of which two rows are made, or two that belong together for the camera alone.
    rng, config, window: as in `make_pair`.
    forged: blend the second row.
    degraded: as in `make_pair`.
    donor: crop and mesh points of the face that is swapped in; None: the face is blended into itself.
    damage: of each clip before it is cut; None: none.
  """
  twins = [_clip_of(fitted, rng, config, window) for fitted in pair]
  clips, masks, forgery = [faces for faces, *_ in twins], None, None
  if forged:
    faces, points, *_ = twins[0]
    if len(faces) == 1:
      blended = _blend_still(faces[0], points[0], donor, rng, config)
      clips, masks = [blended.real[None], blended.fake[None]], blended.mask[None]
    else:
      drift = dataclasses.replace(config.clip_blend, blend=config.blend)
      blended = self_blend_clip(faces, points, rng=rng, config=drift)
      clips, masks = [blended.real, blended.fake], blended.mask
    forgery = Forgery("face" if donor is None else "swap", blended.kind)
  if damage:
    clips = [damage(clip) for clip in clips]
  # Not both at once where they differ in length; twins that are drawn for one camera get one camera.
  seed = None if len(twins) == 1 else rng.integers(2**63)
  made: list[Rows] = []
  for row in range(2):
    faces, (_, points, times_s, places) = clips[min(row, len(clips) - 1)], twins[min(row, len(twins) - 1)]
    if degraded and len(places):
      if row == 0 or seed is not None:
        drawn = rng if seed is None else np.random.default_rng(seed)
        augmentation = draw_augmentation(drawn, faces.shape[1], frames=len(places), config=config.augment)
        pictures = augmentation.pictures(*(clips if seed is None else [faces]))
      crops = pictures[min(row, len(pictures) - 1)]
      points = augmentation.landmarks(points)
      blend = augmentation.mask(masks) if masks is not None and row else None
    else:
      crops, points = eval_crop(faces), eval_points(points)
      blend = eval_crop(masks[..., None])[..., 0] if masks is not None and row else None
    small = (REGION_SIZE, REGION_SIZE)
    region = np.zeros((len(places), *small), np.float32)
    if blend is not None:
      region = np.stack([cv2.resize(mask, small, interpolation=cv2.INTER_AREA) for mask in blend])
    values = {
      "crops": crops,
      "region": region,
      "landmarks": points,
      "frame_times_s": times_s,
      "face_mask": np.ones(len(places), bool),
    }
    if row and blend is not None and forgery:
      forgery = dataclasses.replace(forgery, mask=_placed(blend, places, window.frames))
    made.append({key: _placed(value, places, window.frames) for key, value in values.items()})
  return {key: np.stack([row[key] for row in made]) for key in made[0]}, forgery


def _blend_still(
  face: np.ndarray,
  points: np.ndarray,
  donor: tuple[np.ndarray, np.ndarray] | None,
  rng: np.random.Generator,
  config: DataConfig,
) -> BlendedPair:
  if donor is None:
    return self_blend(face, points, rng=rng, config=config.blend)
  return swap_face(face, points, *donor, rng=rng, config=config.swap.blend)


def _clip_of(
  fitted: dict, rng: np.random.Generator, config: DataConfig, window: WindowConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """faces, landmarks and frame_times_s of the frames that are there, and their places in the window.

  A single picture becomes a clip as often as config.moving_stills says.
  """
  places = np.flatnonzero(fitted["face_mask"])
  faces, points, times_s = (fitted[key][places] for key in ("faces", "landmarks", "frame_times_s"))
  if len(places) == 1 and window.frames > 1 and config.moving_stills and rng.random() < config.moving_stills:
    places = np.arange(window.frames)
    faces, points = moving_still(faces[0], points[0], frames=window.frames, rng=rng, config=config.motion)
    times_s = (times_s[0] + places / window.frame_rate_hz).astype(np.float32)
  return faces, points, times_s, places


def _placed(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
  """[size, ...] with values [count, ...] at their places and zeros elsewhere."""
  spread = np.zeros((size, *values.shape[1:]), values.dtype)
  spread[places] = values
  return spread


def _sound_twins(
  rows: Rows,
  rng: np.random.Generator,
  config: DataConfig,
  *,
  kind: str,
  degraded: bool,
  rung: Rung | None = None,
  seed: int = 0,
) -> tuple[Rows, Forgery | None]:
  """waveform and waveform_mask [2, sample] of rows that hold them: equal in both, or of two twins."""
  samples = rows["waveform"].shape[1]
  counts = rows["waveform_mask"].sum(axis=1)
  if not counts.all():
    return {}, None
  real, fake = (waveform[:count] for waveform, count in zip(rows["waveform"], counts, strict=True))
  forgery = None
  if kind == "voice":
    pair = voice_pair(real, rng=rng, config=config.voice)
    real, fake = pair.real, pair.fake
    forgery = Forgery("voice", pair.kind, segments_s=pair.segments)
  elif kind == "labelled":
    real, fake = matched_pair(real, fake, rng=rng, config=config.voice)
  if rung is not None:
    # One level for both, or the noise would tell them apart.
    shared = float(np.sqrt(np.mean([np.square(augment_audio.level(sound)) for sound in (real, fake)])))
    real, fake = (rung.sound(sound, seed=seed, voice_level=shared) for sound in (real, fake))
  if degraded:
    real, fake = degrade_pair(real, fake, rng=rng, config=config.augment_audio)
  rows = {
    "waveform": np.stack([examples.padded(sound, samples) for sound in (real, fake)]),
    "waveform_mask": np.arange(samples) < np.array([[len(real)], [len(fake)]]),
  }
  return rows, forgery


def _sync_twins(
  fitted: dict, rng: np.random.Generator, config: DataConfig, window: WindowConfig, *, keep_mouths: bool
) -> tuple[Rows, Forgery]:
  """Mouths and sound [2, ...] of a window whose sound is its own, and of one whose sound is not."""
  # Where the faces are read too, their mouths would have to be replaced with them.
  settings = dataclasses.replace(config.sync, mouth_span=0.0) if keep_mouths else config.sync
  seen = _first_run(fitted["mouth_mask"])
  pair = sync_pair(
    fitted["waveform"][: seen * SAMPLES_PER_FRAME],
    fitted["mouth_crops"][:seen],
    rng=rng,
    config=settings,
  )
  sounds, mouths = (pair.waveform, pair.fake_waveform), (pair.mouth_crops, pair.fake_mouth_crops)
  rows = {
    "waveform": np.stack([examples.padded(sound, window.samples) for sound in sounds]),
    "waveform_mask": np.stack([np.arange(window.samples) < len(sound) for sound in sounds]),
    "mouth_crops": np.stack([examples.padded(crops, window.mouth_frames) for crops in mouths]),
    "mouth_mask": np.stack([np.arange(window.mouth_frames) < len(crops) for crops in mouths]),
  }
  late_s = pair.shift_frames / examples.MOUTHS_PER_S
  return rows, Forgery("sync", pair.kind, segments_s=pair.segments, late_s=late_s)


def _first_run(mask: np.ndarray) -> int:
  """How many places at the beginning are True without a gap."""
  return len(mask) if mask.all() else int(mask.argmin())


def _as_inputs(rows: Rows, inputs: Sequence[str]) -> Rows:
  """Rows under the names that the network knows; `_face_twins` and the others made all that they hold."""
  return {key: rows["face_mask" if key == "crop_mask" else key] for key in inputs}


def _merge_twins(batch: Rows) -> Rows:
  return {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}


# What a model of an input looks at, in words.
_LOOKED_AT = {"crops": "faces", "mouth_crops": "mouths", "waveform": "sound", "file_facts": "file facts"}


def _kinds(inputs: Sequence[str]) -> list[str]:
  """What a model of these inputs looks at, in words."""
  return [word for key, word in _LOOKED_AT.items() if key in inputs]


def _held(facts: dict, inputs: Sequence[str]) -> tuple[str, ...]:
  """What an example has of what a model of these inputs looks at, in words."""
  there = {
    "faces": np.any(facts["face_mask"]),
    "mouths": np.any(facts["mouth_mask"]),
    "sound": len(facts["sound"]) > 0,
    "file facts": np.any(facts["file_facts_mask"]),
  }
  return tuple(word for word in _kinds(inputs) if there[word])


def _face_size(element: dict) -> float:
  """The median size of an example's faces; datasets that were built before sizes were stored have none."""
  sizes = np.asarray(element.get("face_sizes_px", ()), np.float64)
  sizes = sizes[sizes > 0]
  return float(np.median(sizes)) if len(sizes) else float("nan")


def _name(label: int) -> str:
  return {examples.REAL: "real", examples.FAKE: "fake"}.get(label, "unknown")


def _decode_pictures(encoded: Sequence[bytes]) -> np.ndarray | tuple:
  pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data in encoded]
  return np.stack(pictures) if pictures else ()


class _KeptBytes(tfds.decode.SkipDecoding):
  """Leaves a feature as it is stored, without TensorFlow as well."""

  def decode_example_np(self, example):
    return example

  def decode_batch_example_np(self, examples):
    return examples


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


def _open(name: str, split: str, data_dir: Path, *, kept: tuple[str, ...] = _ENCODED_KEYS) -> Sequence[dict]:
  folder = _directory(name, data_dir)
  builder = tfds.builder_from_directory(folder)
  if missing := sorted({"mouths", "sound", "face_label"} - set(builder.info.features)):
    raise ValueError(
      f"{folder} was built by an older version (it has no {', '.join(missing)}); build it again with: "
      f"deepscan build_dataset --overwrite --name={name} --media=FOLDER --data_dir={data_dir}"
    )
  # A small dataset may have no group in a split.
  if split not in builder.info.splits:
    return ()
  return builder.as_data_source(split, decoders={key: _KeptBytes() for key in kept})


def _index(name: str, split: str, data_dir: Path) -> list[tuple[dict, str]]:
  """Of each example what tells whether a model can use it (masks, labels, sound), and its source."""
  folder = _directory(name, data_dir)
  return _index_of(name, split, data_dir, (folder / "dataset_info.json").stat().st_mtime_ns)


# As long as the file is the same; a validation asks for the same index each time.
@functools.lru_cache(maxsize=64)
def _index_of(name: str, split: str, data_dir: Path, state: int) -> list[tuple[dict, str]]:
  del state
  source = _open(name, split, data_dir, kept=("faces", "mouths", "landmarks", "sound"))
  kept = ("face_mask", "mouth_mask", "face_label", "sound_label", "file_facts_mask")
  kept += ("id", "group", "method", "label")
  index = []
  for row in source:
    facts = {key: row[key] for key in kept}
    facts["people"] = _people(row)
    # One sample tells as much as all of them.
    index.append(({**facts, "sound": row["sound"][:1]}, row["source"].decode()))
  return index


def _people(row: dict) -> tuple[str, ...]:
  """The group of a stored example, and after it who is seen."""
  # Datasets of before 2.1.0 do not say it.
  names = row["identities"].decode().split("\n") if row.get("identities") else ()
  return (row["group"].decode(), *names)


def _divided(fold: Fold, data_dir: Path) -> dict[tuple[str, str], list[frozenset[int]]]:
  """By (dataset, split) the folds of each example."""
  states = tuple((_directory(n, data_dir) / "dataset_info.json").stat().st_mtime_ns for n in fold.datasets)
  return _divided_of(fold.datasets, fold.count, data_dir, states)


@functools.lru_cache(maxsize=8)
def _divided_of(
  datasets: tuple[str, ...], count: int, data_dir: Path, states: tuple[int, ...]
) -> dict[tuple[str, str], list[frozenset[int]]]:
  del states
  places = [(name, part) for name in dict.fromkeys(datasets) for part in _DIVIDED]
  people = []
  for name, part in places:
    if part == _DIVIDED[0] and not _knows_people(name, data_dir):
      logging.warning(
        "%s was built by an older version, which did not store who is seen: its folds keep groups together, "
        "and may share people; build it again with --overwrite.",
        name,
      )
    # Configs of one builder hold the same people, or may.
    builder = name.partition("/")[0]
    people += [tuple(f"{builder}/{n}" for n in facts["people"]) for facts, _ in _index(name, part, data_dir)]
  found = iter(folds.assign(people, count=count))
  return {place: [next(found) for _ in _index(*place, data_dir)] for place in places}


def _knows_people(name: str, data_dir: Path) -> bool:
  return "identities" in tfds.builder_from_directory(_directory(name, data_dir)).info.features
