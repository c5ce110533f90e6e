"""Says whether the labels of a dataset can be guessed without looking at a face.

Real and forged files of a dataset often come from different programs, and a detector may learn that in place
of forgery. Here small models see nuisance facts alone: of the container, of the sound as a whole, of the
light and sharpness of whole frames. What they reach, a detector may reach without seeing a forgery.

A fact is cut into bins of equal numbers of files (a category has a bin for each value), and a file that lacks
the fact is in a bin of its own, because what is missing tells as well. A logistic regression with a ridge
penalty over these bins, both classes weighing the same, is fitted for each fact and for all of them together.
It is fitted on train and measured on validation and test, or, where a part has too few groups, by
cross-validation over groups. Intervals come from a bootstrap over groups of the measured files: they hold for
this fit, and say nothing of what another training set would give, so those of a small dataset are somewhat
too narrow. Some thirty facts are tried at once, and no correction is made for that but the line for warnings,
which lies above 0.5. An interval from 1 to 1 says that no measured file is on the wrong side, not that no
other would be.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from deepscan_jax import copies, media, metrics

SCHEMA_VERSION = 1
# A warning is given where the lower end of the 95 % interval of an AUC lies above this. 0.5 is guessing; that
# one fact of some thirty is a little above it by chance is no reason to cry wolf.
WARNING_AUC = 0.6
# Fewer groups of either class give no figure: the bootstrap of so few is too narrow.
LEAST_GROUPS = 10
CROSS_VALIDATION_FOLDS = 5
# Copies across splits that are named; all are counted.
SHOWN_COPIES = 10

_MOST_BINS = 8
_FILES_PER_BIN = 8
_RIDGE = 1.0
# Sound below this level is silence: -60 dB of full scale, the noise of a quiet room, in pieces of 10 ms.
_SILENCE = 1e-3
_SILENCE_PIECE_S = 0.01
_LOWEST_DB = -120.0
# A frame of less contrast than this (standard deviation of its grey levels) is nobody's copy: black is black.
_LEAST_CONTRAST = 4.0
_LABELS = {"real": 0, "fake": 1}


@dataclasses.dataclass(frozen=True)
class Fact:
  """What a fact is called and how it is read.

  Attributes:
    words: for people.
    unit: "" for a ratio, "category" for a name.
    read: f(sample) -> float, str or None, where the file does not have it.
  """

  words: str
  unit: str
  read: Callable[["Sample"], float | str | None]

  @property
  def is_category(self) -> bool:
    """Whether its values are names, not numbers."""
    return self.unit == "category"


@dataclasses.dataclass(frozen=True)
class Sample:
  """What was read of one file.

  Attributes:
    name: of the file, for its ending; "" for a clip that is stored as pictures.
    kind: "video", "image", "audio" or "pictures".
    container: facts as provenance lists them.
    size_bytes: of the file; of a clip that is stored as pictures, the mean of those that were looked at.
    frames: the looked-at frames, each uint8 RGB [height, width, 3].
    waveform: float32 [sample] in [-1, 1] at 16 kHz; empty without sound.
  """

  name: str
  kind: str
  container: Mapping
  size_bytes: float
  frames: Sequence[np.ndarray]
  waveform: np.ndarray


def audit_dataset(
  splits: Mapping[str, Sequence],
  *,
  dataset: str,
  left_out: Iterable[Mapping] = (),
  frames: int = 4,
  limit: int | None = None,
  draws: int = 1000,
  report_progress: Callable[[int, int], None] | None = None,
) -> dict:
  """Returns what nuisance facts tell of the labels, as plain values for JSON; the same files give the same.

  Args:
    splits: the files of each split, as `split_files()` of a dataset's builder gives them.
    dataset: its name, for the report.
    left_out: what the builder did not use, {"id", "reason", "message"} each.
    frames: looked at in each video or clip, for brightness, sharpness and copies; 0 looks at none.
    limit: about so many files at most, in whole groups drawn by a hash of their names; None takes all.
    draws: resamples of the bootstrap.
    report_progress: f(done, total) after each file.

  Returns:
    schema_version, dataset, settings (frames, limit, warning_auc, least_groups),
    counts: {split: {class: {files, groups}}} of what could be read,
    unreadable: {id, split, label, reason, message} each,
    left_out: {reason: count} of what the builder did not use,
    protocol: kind ("split", "cross_validation" or "none"), fitted and measured splits, folds, and groups of
      each class that were measured,
    facts: best first, {fact, words, unit, auc, interval, known, typical} each; known is the share of either
      class that has the fact, typical the median or the most frequent value of either class,
    constant_facts: names of those that are the same in all fitted files, and absent_facts of those that no
      file has,
    together: {auc, interval} of all facts, or None,
    warnings, notes: sentences,
    duplicates: {compared, files, pairs, examples}, files of different splits that look nearly the same.

  Raises:
    ValueError: frames or limit is out of range, or nothing can be read.
  """
  if frames < 0 or (limit is not None and limit < 1):
    raise ValueError(f"An audit needs frames >= 0 and limit >= 1; got frames={frames}, limit={limit}.")
  files = [(split, file) for split, chosen in splits.items() for file in chosen]
  if limit is not None:
    files = _limited(files, limit)
  rows, unreadable = [], []
  for done, (split, file) in enumerate(files, start=1):
    try:
      sample = read_sample(file, frames=frames)
    except (media.MediaError, OSError) as error:
      reason = getattr(error, "reason", "unreadable")
      label = _label_name(file.label)
      unreadable.append(
        {"id": file.id, "split": split, "label": label, "reason": reason, "message": str(error)}
      )
    else:
      rows.append(_row(split, file, sample))
    if report_progress is not None:
      report_progress(done, len(files))
  if not rows:
    reasons = Counter(row["reason"] for row in unreadable)
    raise ValueError(
      f"None of the {len(files)} files of {dataset} can be read "
      f"({', '.join(f'{reason}: {count}' for reason, count in sorted(reasons.items()))})."
    )
  table = _Table(rows)
  protocol, folds, notes = _protocol(table)
  absent = [name for name in FACTS if not _known(table.values[name]).any()]
  found, constant, together = [], [], None
  if folds:
    present = [name for name in FACTS if name not in absent]
    bins_of = {name: [_Bins(table.values[name], fitted) for fitted, _ in folds] for name in present}
    constant = [name for name in present if all(bins.count < 2 for bins in bins_of[name])]
    varying = [name for name in present if name not in constant]
    for name in varying:
      found.append(
        {
          "fact": name,
          "words": FACTS[name].words,
          "unit": FACTS[name].unit,
          **_measure(table, folds, [bins_of[name]], draws=draws),
          "known": _by_class(table, name, _share_known),
          "typical": _by_class(table, name, _typical),
        }
      )
    # Of equals, the one whose interval begins higher, then the earlier one of the list.
    found.sort(key=lambda row: (-row["auc"], -row["interval"][0]))
    if varying:
      together = _measure(table, folds, [bins_of[name] for name in varying], draws=draws)
  if unreadable:
    lost = Counter(row["label"] for row in unreadable)
    notes.append(
      f"{len(unreadable)} of {len(files)} files cannot be read ({lost['real']} real, {lost['fake']} fake)."
    )
  duplicates = _copies_across_splits(rows)
  if not frames and any(row.kind != "image" for row in rows):
    notes.append("No frames of videos were looked at, so no copies were searched for among them.")
  return {
    "schema_version": SCHEMA_VERSION,
    "dataset": dataset,
    "settings": {"frames": frames, "limit": limit, "warning_auc": WARNING_AUC, "least_groups": LEAST_GROUPS},
    "counts": {split: _counts(rows, split) for split in splits},
    "unreadable": unreadable,
    "left_out": dict(sorted(Counter(row["reason"] for row in left_out).items())),
    "protocol": protocol,
    "facts": found,
    "constant_facts": constant,
    "absent_facts": absent,
    "together": together,
    "warnings": _warnings(found, together, protocol),
    "notes": notes,
    "duplicates": duplicates,
  }


def read_sample(file, *, frames: int) -> Sample:
  """Decodes what an audit needs of one file.

  Args:
    file: a MediaFile of a dataset's builder.
    frames: how many frames of a video; 0 decodes one, to be sure that it decodes, and gives none.

  Raises:
    MediaError: it is missing, damaged or no media.
    OSError: it cannot be read from its archive.
  """
  plan = media.SamplingPlan(frame_count=max(frames, 1))
  if file.frames:
    pieces = [file.frames[index]() for index in plan.choose(len(file.frames))]
    clips = [media.decode_image_bytes(piece) for piece in pieces]
    return Sample(
      name="",
      kind="pictures",
      container={**clips[0].facts, "frame_count": len(file.frames)},
      size_bytes=float(np.mean([len(piece) for piece in pieces])),
      frames=[clip.frames[0] for clip in clips][:frames],
      waveform=clips[0].waveform,
    )
  if file.read:
    data = file.read()
    clip, size = media.decode_image_bytes(data), len(data)
  else:
    clip = media.decode_clip(file.path, plan=plan, trusted=True)
    size = file.path.stat().st_size
  # A picture is decoded whole in any case.
  looked_at = clip.frames if frames or clip.kind == "image" else ()
  return Sample(file.id, clip.kind, clip.facts, float(size), list(looked_at), clip.waveform)


# The facts ----------------------------------------------------------------------------------------------


def _number(name: str) -> Callable[[Sample], float | None]:
  return lambda sample: _float(sample.container.get(name))


def _category(name: str) -> Callable[[Sample], str | None]:
  def read(sample: Sample) -> str | None:
    value = sample.container.get(name)
    return None if value is None else str(value)

  return read


def _float(value: object) -> float | None:
  """The value as a finite float; None for everything else."""
  number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
  return number if math.isfinite(number) else None


def _pixels(sample: Sample) -> float | None:
  width, height = (_float(sample.container.get(name)) for name in ("width", "height"))
  return width * height if width and height else None


def _bits_per_pixel(sample: Sample) -> float | None:
  pixels = _pixels(sample)
  if pixels is None:
    return None
  if sample.kind != "video":
    return 8 * sample.size_bytes / pixels
  rate, fps = (_float(sample.container.get(name)) for name in ("video_bit_rate", "fps"))
  return rate / (pixels * fps) if rate and fps else None


def _difference(name: str, other: str) -> Callable[[Sample], float | None]:
  def read(sample: Sample) -> float | None:
    one, two = _float(sample.container.get(name)), _float(sample.container.get(other))
    return None if one is None or two is None else round(one - two, 6)

  return read


def _has_sound(sample: Sample) -> str | None:
  return ("yes" if sample.container.get("audio_codec") else "no") if sample.kind == "video" else None


def _names_a_device(sample: Sample) -> str:
  tags = sample.container.get("tags") or {}
  return "yes" if tags.get("make") or tags.get("model") else "no"


def leading_silence_s(waveform: np.ndarray) -> float | None:
  """Seconds before the sound first rises above -60 dB of full scale, in steps of 10 ms; None without sound.

  Args:
    waveform: float [sample] in [-1, 1] at 16 kHz. Where the sound begins after the picture, decoding has put
      silence in front.
  """
  piece = round(_SILENCE_PIECE_S * media.SAMPLE_RATE_HZ)
  if len(waveform) < piece:
    return None
  whole = waveform[: len(waveform) // piece * piece].reshape(-1, piece)
  heard = np.flatnonzero(np.sqrt(np.mean(np.square(whole, dtype=np.float64), axis=1)) > _SILENCE)
  return round(float(heard[0] if len(heard) else len(whole)) * _SILENCE_PIECE_S, 6)


def loudness_db(waveform: np.ndarray) -> float | None:
  """Root mean square level behind the leading silence, in dB of full scale; None without sound.

  Args:
    waveform: float [sample] in [-1, 1] at 16 kHz.
  """
  silence_s = leading_silence_s(waveform)
  if silence_s is None:
    return None
  power = np.square(waveform[round(silence_s * media.SAMPLE_RATE_HZ) :], dtype=np.float64)
  return max(10 * math.log10(power.mean()), _LOWEST_DB) if power.any() else _LOWEST_DB


def _brightness(sample: Sample) -> float | None:
  return float(np.mean([_grey(frame).mean() for frame in sample.frames])) if len(sample.frames) else None


def _sharpness(sample: Sample) -> float | None:
  if not len(sample.frames):
    return None
  return float(np.mean([math.log10(cv2.Laplacian(_grey(f), cv2.CV_64F).var() + 1) for f in sample.frames]))


def _grey(frame: np.ndarray) -> np.ndarray:
  return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


# Of facts that tell equally much, the first one here is named first: the plainest of each kind leads.
FACTS: dict[str, Fact] = {
  "kind": Fact("kind of file", "category", lambda sample: sample.kind),
  "extension": Fact(
    "ending of the name", "category", lambda sample: Path(sample.name).suffix.lower() or None
  ),
  "container": Fact("container", "category", _category("container")),
  "codec": Fact("codec", "category", _category("codec")),
  "profile": Fact("profile of the codec", "category", _category("profile")),
  "pixel_format": Fact("pixel format", "category", _category("pixel_format")),
  "color_space": Fact("colour space", "category", _category("color_space")),
  "color_range": Fact("colour range", "category", _category("color_range")),
  "rotation": Fact("rotation mark", "category", _category("rotation_degrees")),
  "exif_orientation": Fact("EXIF orientation", "category", _category("exif_orientation")),
  "writer": Fact("program that wrote the container", "category", _category("writer")),
  "encoder": Fact("encoder's mark", "category", _category("encoder_mark")),
  "device_named": Fact("device named in the tags", "category", _names_a_device),
  "has_sound": Fact("has sound", "category", _has_sound),
  "audio_codec": Fact("sound codec", "category", _category("audio_codec")),
  "audio_channels": Fact("sound channels", "category", _category("audio_channels")),
  "chroma_subsampling": Fact("JPEG chroma subsampling", "category", _category("chroma_subsampling")),
  "jpeg_standard_table": Fact("JPEG standard table", "category", _category("jpeg_standard_table")),
  "width": Fact("width", "px", _number("width")),
  "height": Fact("height", "px", _number("height")),
  "pixels": Fact("pixels of a frame", "px", _pixels),
  "duration_s": Fact("duration", "s", _number("duration_s")),
  "frame_count": Fact("number of frames", "frames", _number("frame_count")),
  "fps": Fact("frame rate", "1/s", _number("fps")),
  "leading_silence_s": Fact("leading silence", "s", lambda sample: leading_silence_s(sample.waveform)),
  "loudness_db": Fact("loudness", "dB", lambda sample: loudness_db(sample.waveform)),
  "audio_sample_rate_hz": Fact("sound sample rate", "Hz", _number("audio_sample_rate_hz")),
  "audio_bit_rate": Fact("sound bit rate", "bit/s", _number("audio_bit_rate")),
  "audio_start_gap_s": Fact(
    "start of sound after picture", "s", _difference("audio_start_s", "video_start_s")
  ),
  "audio_length_gap_s": Fact(
    "length of sound over picture", "s", _difference("audio_length_s", "video_length_s")
  ),
  "jpeg_quality": Fact("JPEG quality", "", _number("jpeg_quality")),
  "bits_per_pixel": Fact("bits per pixel and frame", "bit", _bits_per_pixel),
  "bit_rate": Fact("bit rate of the picture", "bit/s", _number("video_bit_rate")),
  "file_bytes": Fact("file size", "bytes", lambda sample: sample.size_bytes),
  "usual_gop": Fact("usual distance of keyframes", "frames", _number("usual_gop")),
  "b_frame_share": Fact("share of B-frames", "", _number("b_frame_share")),
  "brightness": Fact("brightness", "0..255", _brightness),
  "sharpness": Fact("sharpness (log of the Laplacian's variance)", "", _sharpness),
}


# The table ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Row:
  id: str
  split: str
  label: int
  group: str
  kind: str
  facts: Mapping[str, float | str | None]
  hashes: np.ndarray  # uint8 [frame, HASH_BYTES]
  hashed: np.ndarray  # bool [frame], False for a flat frame


class _Table:
  """The facts of all files, by column.

  Attributes:
    labels, groups, splits: [file].
    values: name of a fact -> [file] float with NaN, or object with None.
  """

  def __init__(self, rows: Sequence[_Row]):
    self.labels = np.array([row.label for row in rows])
    self.groups = np.array([row.group for row in rows])
    self.splits = np.array([row.split for row in rows])
    self.values = {
      name: np.array([row.facts[name] for row in rows], object if fact.is_category else np.float64)
      for name, fact in FACTS.items()
    }


def _row(split: str, file, sample: Sample) -> _Row:
  greys = [_grey(frame) for frame in sample.frames]
  hashes = [copies.difference_hash(grey) for grey in greys]
  return _Row(
    id=file.id,
    split=split,
    label=int(file.label),
    group=file.group,
    kind=sample.kind,
    facts={name: fact.read(sample) for name, fact in FACTS.items()},
    hashes=np.array(hashes, np.uint8).reshape(len(greys), copies.HASH_BYTES),
    hashed=np.array([grey.std() >= _LEAST_CONTRAST for grey in greys], bool),
  )


def _limited(files: list[tuple], limit: int) -> list[tuple]:
  # Not the hash that splits go by: its beginning would be one split.
  sizes = Counter(file.group for _, file in files)
  chosen, taken = set(), 0
  for group in sorted(sizes, key=lambda group: _position(f"audit {group}")):
    if taken >= limit:
      break
    chosen.add(group)
    taken += sizes[group]
  return [(split, file) for split, file in files if file.group in chosen]


def _position(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _label_name(label: int) -> str:
  return "fake" if label else "real"


def _counts(rows: Sequence[_Row], split: str) -> dict:
  counts = {}
  for name, label in _LABELS.items():
    own = [row for row in rows if row.split == split and row.label == label]
    counts[name] = {"files": len(own), "groups": len({row.group for row in own})}
  return counts


def _by_class(table: _Table, name: str, summary: Callable[[np.ndarray, np.ndarray], object]) -> dict:
  found = {}
  for label_name, label in _LABELS.items():
    values = table.values[name][table.labels == label]
    found[label_name] = summary(values, _known(values))
  return found


def _share_known(values: np.ndarray, known: np.ndarray) -> float:
  return float(known.mean())


def _typical(values: np.ndarray, known: np.ndarray) -> float | str | None:
  if not known.any():
    return None
  if values.dtype == object:
    counts = Counter(values[known])
    return min(counts, key=lambda value: (-counts[value], value))
  return float(np.median(values[known]))


def _known(values: np.ndarray) -> np.ndarray:
  if values.dtype == object:
    return np.array([value is not None for value in values], bool)
  return ~np.isnan(values)


# The models ---------------------------------------------------------------------------------------------


def _protocol(table: _Table) -> tuple[dict, list[tuple[np.ndarray, np.ndarray]], list[str]]:
  """(protocol, (fitted, measured) rows of each fold, notes); no folds where groups are too few."""
  everything = np.ones(len(table.labels), bool)
  train = table.splits == "train"
  notes = []
  fewest = {name: min(_group_counts(table, part).values()) for name, part in _parts(train).items()}
  if all(count >= LEAST_GROUPS for count in fewest.values()):
    measured = sorted(set(table.splits[~train]), key=("validation", "test").index)
    kind, folds, fitted = "split", [(train, ~train)], ["train"]
  else:
    fitted = measured = list(dict.fromkeys(table.splits))
    counts = _group_counts(table, everything)
    if min(counts.values()) < LEAST_GROUPS:
      notes.append(
        f"Too few groups for figures: {counts['real']} hold real files and {counts['fake']} hold fakes; "
        f"{LEAST_GROUPS} of each are needed."
      )
      kind, folds, fitted, measured = "none", [], [], []
    else:
      part = min(fewest, key=fewest.get)
      notes.append(
        f"The {part} of the dataset has only {fewest[part]} groups of one class, so figures come from "
        f"{CROSS_VALIDATION_FOLDS}-fold cross-validation over the groups of all splits."
      )
      fold_of = _deal_groups(table)
      folds = [(fold_of != fold, fold_of == fold) for fold in range(CROSS_VALIDATION_FOLDS)]
      kind = "cross_validation"
  seen = np.logical_or.reduce([part for _, part in folds]) if folds else ~everything
  protocol = {
    "kind": kind,
    "fitted": fitted,
    "measured": measured,
    "folds": len(folds) if kind == "cross_validation" else 0,
    "groups": _group_counts(table, seen),
  }
  return protocol, folds, notes


def _parts(train: np.ndarray) -> dict[str, np.ndarray]:
  return {"training part": train, "held-out part": ~train}


def _group_counts(table: _Table, chosen: np.ndarray) -> dict[str, int]:
  """How many groups of the chosen rows hold files of either class."""
  return {name: len(set(table.groups[chosen & (table.labels == label)])) for name, label in _LABELS.items()}


def _deal_groups(table: _Table) -> np.ndarray:
  """The fold of each row, [file]; groups are dealt like cards, those of the same classes after each other."""
  classes = {group: set() for group in table.groups}
  for group, label in zip(table.groups, table.labels, strict=True):
    classes[group].add(int(label))
  order = sorted(classes, key=lambda group: (sorted(classes[group]), _position(f"fold {group}")))
  fold_of = {group: place % CROSS_VALIDATION_FOLDS for place, group in enumerate(order)}
  return np.array([fold_of[group] for group in table.groups])


class _Bins:
  """The bins of one fact, made from the fitted rows.

  Attributes:
    columns: float [file, bin], 1 where the file is in the bin; a value of a category that was not seen in
      fitting is in none. Only bins that hold fitted rows are kept.
    count: of bins.
  """

  def __init__(self, values: np.ndarray, fitted: np.ndarray):
    known = _known(values)
    if values.dtype == object:
      names = sorted(set(values[known & fitted]))
      columns = [known & (values == name) for name in names]
    else:
      place = np.searchsorted(_edges(values[known & fitted]), values, side="right")
      columns = [known & (place == bin_) for bin_ in range(int(place.max(initial=0)) + 1)]
    columns = [column for column in (*columns, ~known) if column[fitted].any()]
    self.columns = np.stack(columns, axis=1).astype(np.float64)
    self.count = len(columns)


def _edges(values: np.ndarray) -> np.ndarray:
  """Where one bin of a number ends and the next begins.

  Few distinct values have a bin each. Of many, bins hold equal numbers of files, and a value that many files
  share has one for itself.
  """
  distinct, counts = np.unique(values, return_counts=True)
  bins = int(np.clip(len(values) // _FILES_PER_BIN, 2, _MOST_BINS))
  if len(distinct) <= bins:
    return (distinct[1:] + distinct[:-1]) / 2
  shared = distinct[counts * bins > len(values)]
  between = np.quantile(values, np.arange(1, bins) / bins)
  return np.unique(np.concatenate([between, shared, np.nextafter(shared, np.inf)]))


def _measure(
  table: _Table,
  folds: Sequence[tuple[np.ndarray, np.ndarray]],
  facts: Sequence[Sequence[_Bins]],
  *,
  draws: int,
) -> dict:
  """{"auc", "interval"} of a model of some facts, each given by its bins for each fold."""
  scores = np.full(len(table.labels), np.nan)
  fold_of = np.full(len(table.labels), -1)
  for fold, (fitted, measured) in enumerate(folds):
    columns = np.concatenate([bins[fold].columns for bins in facts], axis=1)
    weights = _fit(columns[fitted], table.labels[fitted])
    scores[measured], fold_of[measured] = columns[measured] @ weights, fold
  seen = fold_of >= 0
  # What should be equal is equal: rounding in the sums must not break ties.
  arrays = table.labels[seen], np.round(scores[seen], 9), fold_of[seen]
  interval = metrics.bootstrap_interval(_auc_within_folds, *arrays, groups=table.groups[seen], draws=draws)
  return {"auc": _auc_within_folds(*arrays), "interval": list(interval)}


def _auc_within_folds(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> float:
  """The AUC over all pairs of a fake and a real file of the same fold; NaN where there is none.

  Scores of different folds come from different fits. Compared with each other they would lean below 0.5 where
  there is nothing to learn: the more fakes of a kind are held out, the fewer are left to fit on.
  """
  total = pairs = 0.0
  for fold in np.unique(folds):
    own = labels[folds == fold]
    weight = float(own.sum()) * float((1 - own).sum())
    if weight:
      total += weight * metrics.auc(own, scores[folds == fold])
      pairs += weight
  return total / pairs if pairs else float("nan")


def _fit(columns: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Weights [column] of a logistic regression with a ridge penalty, both classes weighing the same.

  Minimises sum_i c_i log(1 + exp(-y_i x_i w)) + ridge / 2 |w|^2, y = -1 or 1, where c_i makes up for the
  sizes of the classes, by Newton's method with halved steps.
  """
  signs = 2.0 * labels - 1.0
  share = np.where(labels == 1, labels.mean(), 1 - labels.mean())
  costs = 0.5 / share

  def loss(weights: np.ndarray) -> float:
    return float(costs @ np.logaddexp(0, -signs * (columns @ weights)) + 0.5 * _RIDGE * weights @ weights)

  weights = np.zeros(columns.shape[1])
  for _ in range(50):
    chance = 1 / (1 + np.exp(signs * (columns @ weights)))  # of the wrong class
    slope = _RIDGE * weights - columns.T @ (costs * signs * chance)
    curve = (columns.T * (costs * chance * (1 - chance))) @ columns + _RIDGE * np.eye(len(weights))
    step = np.linalg.solve(curve, slope)
    if np.abs(step).max() < 1e-10:
      break
    before = loss(weights)
    while loss(weights - step) > before and np.abs(step).max() > 1e-12:
      step = step / 2
    weights = weights - step
  return weights


def _warnings(found: Sequence[Mapping], together: Mapping | None, protocol: Mapping) -> list[str]:
  if protocol["kind"] == "split":
    where = f"files of {' and '.join(protocol['measured'])}, fitted on train"
  else:
    where = "files held out in cross-validation"
  sentences = []
  for row in ({"words": "all facts together", **together} if together else None, *found):
    if row is None or row["interval"][0] <= WARNING_AUC:
      continue
    low, high = row["interval"]
    sentence = (
      f"Labels can be guessed without looking at a face: {row['words']} "
      f"{'reach' if row['words'].startswith('all') else 'alone reaches'} AUC {row['auc']:.2f} "
      f"(95 % interval {low:.2f} to {high:.2f}) on {where}."
    )
    known = row.get("known")
    if known and known["real"] != known["fake"]:
      sentence += (
        f" It is there in {100 * known['real']:.0f} % of real files and {100 * known['fake']:.0f} % of fakes."
      )
    sentences.append(sentence)
  return sentences


# Copies -------------------------------------------------------------------------------------------------


def _copies_across_splits(rows: Sequence[_Row]) -> dict:
  """{compared, files, pairs, examples}: files of different splits that look nearly the same.

  Files are compared that gave equally many frames: those at the same places have to be copies, but flat ones.
  """
  alike: dict[int, list[_Row]] = {}
  for row in rows:
    if row.hashed.any():
      alike.setdefault(len(row.hashes), []).append(row)
  pairs = []
  for same in alike.values():
    hashes = np.stack([row.hashes for row in same])
    hashed = np.stack([row.hashed for row in same])
    splits = np.array([row.split for row in same])
    for place in range(len(same) - 1):
      # Splits first: most files share theirs, and need no comparing.
      others = place + 1 + np.flatnonzero(splits[place + 1 :] != splits[place])
      both = hashed[others] & hashed[place]
      same_frame = copies.copies_of(hashes[place], hashes[others])
      found = others[both.any(axis=1) & (same_frame | ~both).all(axis=1)]
      pairs += [(same[place], same[other]) for other in found]
  return {
    "compared": sum(map(len, alike.values())),
    "files": len({row.id for pair in pairs for row in pair}),
    "pairs": len(pairs),
    "examples": [
      [{"id": row.id, "split": row.split, "label": _label_name(row.label)} for row in pair]
      for pair in pairs[:SHOWN_COPIES]
    ],
  }
