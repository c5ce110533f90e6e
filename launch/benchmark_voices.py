"""How often voices of engines never shown are found, and real ones accused: `deepscan benchmark voices`.

What the audio branch of the preset `default_voice` is, a linear function of its statistics, is fitted here by
logistic regression, which has one optimum and takes seconds, where training takes minutes: again and
again, each time without one engine and its relatives, or without one kind of real recordings. What was left
out is then judged as it is, file by file, at a threshold that only the other kinds of recordings know of. So
these are figures of the method for what it has not met, of which a model that was trained on everything can
show none. Pairs are drawn, matched and degraded as in training.

Each seed draws other pairs, and other speakers whose recordings are kept from the fit and set the threshold.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepscan_jax import calibration, data, examples, metrics
from deepscan_jax.augment_audio import SAMPLE_RATE_HZ
from deepscan_jax.config import Config

# Of real recordings of a kind that reach the threshold: what the docstring of `default_voice` has `calibrate`
# be given, for the same reason.
FALSE_POSITIVE_RATE = 0.002
# Files of an engine, and of a kind of recordings, that a figure needs.
LEAST_FILES = 10
_INPUTS = ("waveform", "waveform_mask")
_SPLITS = ("train", "validation", "test")
_KEPT_SPEAKERS = 0.25
_RIDGE = 0.1
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class EngineRow:
  """An engine that no fit was shown. Figures are (mean, least, most) over seeds.

  Attributes:
    engine: its name.
    related: what was left out of the fit with it.
    files: how many of it were judged.
    auc: against the real recordings of speakers that no fit was shown either.
    recall: share of its files at or above the threshold.
  """

  engine: str
  related: tuple[str, ...]
  files: int
  auc: tuple[float, float, float]
  recall: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class SourceRow:
  """A kind of real recordings that no fit was shown and no threshold was set for.

  Attributes:
    source: its name.
    files: how many of it were judged.
    false_alarms: share of them at or above the threshold, (mean, least, most) over seeds.
  """

  source: str
  files: int
  false_alarms: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Sounds:
  """Statistics of sounds and whose they are.

  Attributes:
    statistics: [sound, statistic] float32.
    fake: [sound] bool.
    engine: [sound] str, "" of real ones.
    source: [sound] str, the kind of recording.
    speaker: [sound] str.
    file: [sound] str.
    certainty: [sound] float32, what the branch multiplies its logit by: less for less sound.
  """

  statistics: np.ndarray
  fake: np.ndarray
  engine: np.ndarray
  source: np.ndarray
  speaker: np.ndarray
  file: np.ndarray
  certainty: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs to fit to: real ones in the even rows of `statistics`, the fake of each in the row after.

  Attributes:
    statistics: [2 * pair, statistic] float32.
    engine: [pair] str, of the fake one; of copy synthesis its kind.
    source: [pair] str, of the real one.
    speakers: [pair, 2] str, of both.
  """

  statistics: np.ndarray
  engine: np.ndarray
  source: np.ndarray
  speakers: np.ndarray


def voice_rows(
  config: Config, data_dir: Path, *, seeds: int, pairs: int, related: Sequence[tuple[str, ...]] = ()
) -> list[EngineRow | SourceRow]:
  """Fits and judges everything.

  Args:
    config: whose data and branch these are.
    data_dir: where its dataset is; all of its splits are read.
    seeds: how often.
    pairs: to draw for each seed.
    related: engines that are left out together; the copy synthesis of training is "voice (griffin_lim)" and
      the like.

  Raises:
    ValueError: the data hold fewer than two engines, or two kinds of real recordings, of LEAST_FILES files.
  """
  describe = statistics_of(config)
  sounds = read_sounds(config, data_dir, describe)
  drawn = []
  for seed in range(seeds):
    print(f"drawing pairs, seed {seed} of {seeds} ...", file=sys.stderr, flush=True)
    drawn.append(draw_pairs(config, data_dir, describe, count=pairs, seed=seed))
  print("fitting ...", file=sys.stderr, flush=True)
  return judge(sounds, drawn, related=related)


def judge(
  sounds: Sounds, drawn: Sequence[Pairs], *, related: Sequence[tuple[str, ...]] = ()
) -> list[EngineRow | SourceRow]:
  """As `voice_rows`, of statistics that are there already, of the pairs of each seed."""
  files = {name: _files_of(sounds, sounds.engine == name) for name in np.unique(sounds.engine[sounds.fake])}
  engines = [name for name, count in files.items() if count >= LEAST_FILES]
  kinds = {
    name: _files_of(sounds, ~sounds.fake & (sounds.source == name))
    for name in np.unique(sounds.source[~sounds.fake])
  }
  kinds = {name: count for name, count in kinds.items() if count >= LEAST_FILES}
  if len(engines) < 2 or len(kinds) < 2:
    raise ValueError(
      f"Leaving one out takes two engines and two folders of real voices with {LEAST_FILES} files each; "
      f"there are {len(engines)} and {len(kinds)}."
    )
  groups = _groups(engines, related)
  auc, recall, alarms = ({} for _ in range(3))
  for seed, pairs in enumerate(drawn):
    kept = _kept_speakers(sounds, seed)
    unseen = ~sounds.fake & np.isin(sounds.speaker, kept)
    fitted = ~np.isin(pairs.speakers, kept).any(axis=1)
    for group in groups:
      score = fit(pairs, fitted & ~np.isin(pairs.engine, group))
      logits = score(sounds.statistics) * sounds.certainty
      threshold = _threshold(sounds, logits, unseen & np.isin(sounds.source, list(kinds)))
      real = _by_file(sounds, logits, unseen)
      for engine in (name for name in group if name in engines):
        found = _by_file(sounds, logits, sounds.engine == engine)
        labels = np.repeat([0, 1], [len(real), len(found)])
        auc.setdefault(engine, []).append(metrics.auc(labels, np.concatenate([real, found])))
        recall.setdefault(engine, []).append(float(np.mean(found >= threshold)))
    for kind in kinds:
      own = ~sounds.fake & (sounds.source == kind)
      score = fit(pairs, fitted & (pairs.source != kind))
      logits = score(sounds.statistics) * sounds.certainty
      threshold = _threshold(sounds, logits, unseen & ~own & np.isin(sounds.source, list(kinds)))
      alarms.setdefault(kind, []).append(float(np.mean(_by_file(sounds, logits, own) >= threshold)))
  rows: list[EngineRow | SourceRow] = []
  for group in groups:
    for engine in (name for name in group if name in engines):
      others = tuple(name for name in group if name != engine)
      rows.append(EngineRow(engine, others, files[engine], _spread(auc[engine]), _spread(recall[engine])))
  return rows + [SourceRow(kind, count, _spread(alarms[kind])) for kind, count in kinds.items()]


def fit(pairs: Pairs, chosen: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Logistic regression with a ridge on some pairs, [pair] bool: statistics [sound, statistic] -> logits."""
  from scipy.optimize import minimize

  rows = np.repeat(chosen, 2)
  x = pairs.statistics[rows].astype(np.float64)
  signs = np.tile([-1.0, 1.0], len(x) // 2)

  def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    margins = signs * (x @ weights[:-1] + weights[-1])
    slopes = -signs / (1 + np.exp(np.clip(margins, -500, 500))) / len(x)
    value = np.logaddexp(0, -margins).mean() + 0.5 * _RIDGE * np.square(weights[:-1]).sum()
    return value, np.append(slopes @ x + _RIDGE * weights[:-1], slopes.sum())

  found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
  return lambda statistics: statistics @ found[:-1] + found[-1]


def statistics_of(config: Config) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """(waveform [sound, sample], waveform_mask) -> statistics [sound, statistic] of the preset's branch."""
  import jax

  from deepscan_jax.models.audio import AudioBranch

  branch = AudioBranch(network=False, features=1)
  window = config.data.window.samples
  empty = {"waveform": np.zeros((1, window), np.float32), "waveform_mask": np.zeros((1, window), bool)}
  variables = branch.init(jax.random.key(0), empty, train=False)

  @jax.jit
  def described(batch):
    _, seen = branch.apply(variables, batch, train=False, mutable=["intermediates"])
    return seen["intermediates"]["statistics"][0][:, 0]

  def describe(waveform: np.ndarray, mask: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(waveform), _BATCH):
      rows = [x[start : start + _BATCH] for x in (waveform, mask)]
      count = len(rows[0])
      # Of one size, so that one program is compiled.
      rows = [np.concatenate([x, np.zeros((_BATCH - count, *x.shape[1:]), x.dtype)]) for x in rows]
      parts.append(np.asarray(described(dict(zip(_INPUTS, rows, strict=True))))[:count])
    return np.concatenate(parts)

  return describe


def read_sounds(config: Config, data_dir: Path, describe: Callable) -> Sounds:
  """Every example of the dataset as it is, with its statistics."""
  waves, masks, facts = [], [], []
  for split in _SPLITS:
    for source in _sources(config, data_dir, split, (examples.REAL, examples.FAKE)):
      for element in (source[i] for i in range(len(source))):
        row = examples.model_inputs(element, window=config.data.window, keys=_INPUTS)
        waves.append(row["waveform"])
        masks.append(row["waveform_mask"])
        fake = examples.labels(element, keys=_INPUTS)["label"] == examples.FAKE
        engine = element["method"] if fake else ""
        file = element["id"].rpartition("#")[0]
        facts.append((bool(fake), engine, element["source"], element["group"], file))
  fake, *texts = zip(*facts, strict=True)
  texts = [np.array(column, str) for column in texts]
  statistics, certainty = describe(np.stack(waves), np.stack(masks)), np.ones(len(masks), np.float32)
  if whole_s := config.model.whole_sound_s:
    seconds = np.sum(masks, axis=1) / SAMPLE_RATE_HZ
    certainty = np.sqrt(np.minimum(seconds / whole_s, 1.0)).astype(np.float32)
  return Sounds(statistics, np.array(fake), *texts, certainty)


def draw_pairs(config: Config, data_dir: Path, describe: Callable, *, count: int, seed: int) -> Pairs:
  """Pairs as training draws them, but of all splits and each engine as often as the root of its examples."""
  parts = {
    label: [s for split in _SPLITS for s in _sources(config, data_dir, split, (label,))]
    for label in (examples.REAL, examples.FAKE)
  }
  reals, fakes = (_Joined(parts[label]) for label in (examples.REAL, examples.FAKE))
  by_engine: dict[str, list[int]] = {}
  for i, engine in enumerate(fakes.methods()):
    by_engine.setdefault(engine, []).append(i)
  often = np.sqrt([len(members) for members in by_engine.values()])
  names = list(by_engine)
  make = data.PairMaker(config.data, _INPUTS, reals)
  waves, masks, facts = [], [], []
  for number in range(count):
    rng = np.random.default_rng([seed, number])
    if rng.random() < config.data.labelled_share:
      members = by_engine[names[rng.choice(len(names), p=often / often.sum())]]
      element = fakes[members[rng.integers(len(members))]]
    else:
      element = reals[int(rng.integers(len(reals)))]
    rows, ((real, _), (fake, forged)) = make.described(element, rng)
    waves.append(rows["waveform"])
    masks.append(rows["waveform_mask"])
    facts.append((forged or fake["method"], real["source"], real["group"], fake["group"]))
  engine, source, *speakers = (np.array(column, str) for column in zip(*facts, strict=True))
  statistics = describe(np.concatenate(waves), np.concatenate(masks))
  return Pairs(statistics, engine, source, np.stack(speakers, axis=1))


def table(rows: Sequence[EngineRow | SourceRow]) -> str:
  """The rows for people, and their means."""
  engines = [row for row in rows if isinstance(row, EngineRow)]
  sources = [row for row in rows if isinstance(row, SourceRow)]
  width = max(len(name) for name in (*(r.engine for r in engines), *(r.source for r in sources), "mean"))

  def line(name: str, files: int | str, *spreads: tuple[float, ...]) -> str:
    cells = [f"{mean:5.2f} ({least:.2f} to {most:.2f})" for mean, least, most in spreads]
    return "  ".join([f"{name:<{width}}", f"{files:>5}", *(f"{cell:>20}" for cell in cells)])

  head = "  ".join([f"{'':<{width}}", "files"])
  lines = [f"{head}  {'AUC, never shown':>20}  {'recall':>20}"]
  lines += [line(row.engine, row.files, row.auc, row.recall) for row in engines]
  lines.append(line("mean", "", *(_over(engines, name) for name in ("auc", "recall"))))
  lines.append(f"\n{head}  {'false alarms':>20}")
  lines += [line(row.source, row.files, row.false_alarms) for row in sources]
  lines.append(line("mean", "", _over(sources, "false_alarms")))
  return "\n".join(lines)


class _Joined:
  """Several sources one after the other, as one."""

  def __init__(self, parts: Sequence[data.ExampleSource]):
    self._places = [(part, i) for part in parts for i in range(len(part))]

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> dict:
    part, i = self._places[index]
    return part[i]

  def methods(self) -> list[str]:
    """Of each example its method."""
    return [part[i]["method"] for part, i in self._places]


def _sources(config: Config, data_dir: Path, split: str, labels: tuple[int, ...]) -> list[data.ExampleSource]:
  """The split's examples of these labels; none where it has none."""
  try:
    names = config.data.datasets
    return [data.ExampleSource(names, split, data_dir, inputs=_INPUTS, labels=labels)]
  except ValueError:
    return []


def _groups(engines: Sequence[str], related: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
  """What is left out together, each engine in one of them; a group may name what is not judged itself."""
  known = {name for group in related for name in group}
  groups = [tuple(group) for group in related if set(group) & set(engines)]
  return groups + [(name,) for name in engines if name not in known]


def _kept_speakers(sounds: Sounds, seed: int) -> np.ndarray:
  """Speakers of real recordings whom no fit is shown: a quarter of each kind, but one at least."""
  rng, kept = np.random.default_rng(seed), []
  for kind in np.unique(sounds.source[~sounds.fake]):
    speakers = np.unique(sounds.speaker[~sounds.fake & (sounds.source == kind)])
    kept.append(rng.permutation(speakers)[: max(1, round(_KEPT_SPEAKERS * len(speakers)))])
  return np.concatenate(kept)


def _files_of(sounds: Sounds, rows: np.ndarray) -> int:
  return len(np.unique(sounds.file[rows]))


def _by_file(sounds: Sounds, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Mean logits of the files of some sounds, as a verdict takes them."""
  _, of = np.unique(sounds.file[rows], return_inverse=True)
  return np.bincount(of, logits[rows]) / np.bincount(of)


def _threshold(sounds: Sounds, logits: np.ndarray, rows: np.ndarray) -> float:
  """As calibration sets it: for the worst of the kinds of recordings, of single sounds."""
  found = []
  for kind in np.unique(sounds.source[rows]):
    own = rows & (sounds.source == kind)
    rate = calibration.rate_to_show(FALSE_POSITIVE_RATE, len(np.unique(sounds.speaker[own])))
    found.append(metrics.threshold_at(logits[own], false_positive_rate=rate))
  return max(found)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
  return float(np.mean(values)), float(min(values)), float(max(values))


def _over(rows: Sequence, name: str) -> tuple[float, ...]:
  """Mean, least and most over rows of their means."""
  return _spread([getattr(row, name)[0] for row in rows])
