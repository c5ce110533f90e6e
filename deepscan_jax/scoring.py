"""Scores of files with known labels, at all levels, and which files got none: what an evaluation card shows.

Prepared datasets are scored example by example, and their windows put together as the detector would; raw
media go through the whole detector, or are cut as a published protocol says. A file that gets no score is
listed with the reason; it never gets a score in its place.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import (
  card,
  checkpoints,
  data,
  evaluation,
  examples,
  faces,
  faithfulness,
  levels,
  lineage,
  media,
  perturb,
  protocols,
)
from deepscan_jax.calibration import Calibration
from deepscan_jax.inference import DEFAULT_MODEL, Detector, Judgement, deciding_person
from deepscan_jax.levels import FACES, SOUND, Rows
from deepscan_jax.verdict import Thresholds

# Logits of the probabilities of verdicts: beyond, floats near 1 tell nothing apart.
_LEAST_PROBABILITY = 1e-15
_BATCH = 32
# Frames of a window whose sharpness is looked at.
_FRAMES_MEASURED = 4
_OWN_FACES = (
  "who decides: of those seen in at least 4 windows and a tenth of the most, the highest mean logit"
)
_OWN_AGGREGATION = "mean logit of a person's windows; of the faces, unless the sound alone is called"

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Missing:
  """A file without a score.

  Attributes:
    file: dataset, ":" and its id.
    dataset, method, source, group: as of levels.Rows.
    label: 1 = fake.
    reason: a code.
  """

  file: str
  dataset: str
  label: int
  reason: str
  method: str = ""
  source: str = ""
  group: str = ""


@dataclasses.dataclass(frozen=True)
class Scored:
  """What was scored.

  Attributes:
    labelled: by level, rows of files under their own labels.
    pairs: by level, rows of real examples and their pseudo-fakes; None where none were made.
    missing: files without a score.
    frames: of a video that are looked at; None for prepared data.
    faces, aggregation: for the protocol.
    timings: by stage the seconds of each file, or for prepared data "model_s" of each window.
    parts: evaluation.Scores by kind, as evaluation.measure_scores takes them; empty for raw media.
    notes: sentences.
  """

  labelled: dict[str, Rows]
  pairs: dict[str, Rows] | None
  missing: tuple[Missing, ...]
  frames: int | None
  faces: str
  aggregation: str
  timings: dict[str, list[float]]
  parts: dict[str, evaluation.Scores]
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Scores of the same examples under growing damage.

  Attributes:
    of: the set that was damaged: "labelled" files, or "pairs" of real examples and their pseudo-fakes.
    examples, total: how many examples were scored (a pair is one), of how many there are.
    rungs: by name of a perturbation, of each level from 0 (untouched) on, by level of protocols.LEVELS, rows.
  """

  of: str
  examples: int
  total: int
  rungs: dict[str, list[dict[str, Rows]]]


def evaluate_model(
  folder: str | Path | None,
  *,
  datasets: Sequence[str] = (),
  data_dir: str | Path = "data",
  split: str = "test",
  media_files: Sequence | None = None,
  preprocessing: str = protocols.OWN,
  level: str | None = None,
  frames: int = 32,
  pairs: bool | None = None,
  map_examples: int = faithfulness.EXAMPLES,
  prevalences: Sequence[float] = (0.01,),
  draws: int = card.DRAWS,
  report_progress: Progress | None = None,
  perturbations: Sequence[str] = (),
  perturb_limit: int = 400,
  report_step: Progress | None = None,
) -> dict:
  """The evaluation card of a model on a split of prepared datasets, or on raw media.

  Args:
    folder: of the model; None for the one that comes with the package.
    datasets: names of prepared datasets; none: those of the model's configuration. With media_files, the one
      name that they go by.
    data_dir: where prepared datasets are.
    split: "test", or "validation" or "all" of datasets that the model has never seen.
    media_files: MediaFile objects of a builder; None: prepared datasets.
    preprocessing: `protocols.OWN` or the name of a preset; presets cut raw media.
    level: of the headline; None: that of the preset, or "video".
    frames: of a video of raw media that are looked at.
    pairs: as of `score_prepared`.
    map_examples: where pairs are scored, of how many region maps are tested (deepscan_jax.faithfulness); 0:
      of none.
    prevalences, draws: as of `card.make_card`.
    report_progress: f(done, total) after each raw file.
    perturbations: damage under which prepared examples are scored again (`score_ladder`): names, or "all".
    perturb_limit: of how many examples at most; 0: all.
    report_step: f(done, total) after each step of that.

  Raises:
    CheckpointError: the model is missing, damaged or not calibrated.
    FileNotFoundError: a dataset has not been built.
    ValueError: the model was selected on that split, nothing fits, or an argument is not one of those known.
  """
  preset = protocols.find_preset(preprocessing)
  level = level or (preset.level if preset else "video")
  if level not in protocols.LEVELS:
    raise ValueError(f"Unknown level {level!r}; there are {', '.join(protocols.LEVELS)}.")
  if preset and media_files is None:
    raise ValueError(
      f"The preprocessing {preset.name} cuts raw media, and prepared datasets have been cut already; give "
      "--media."
    )
  if perturbations and media_files is not None:
    raise ValueError(
      "Perturbations are applied to prepared datasets; of raw files `deepscan detect --stability` says how "
      "far each verdict holds."
    )
  folder = Path(DEFAULT_MODEL if folder is None else folder)
  facts = checkpoints.read_model(folder)
  datasets = tuple(datasets) or tuple(facts["config"]["data"]["datasets"])
  trainings = lineage.trainings(facts)
  protocols.check_split(lineage.trained_on(trainings), datasets, split)
  detector = Detector(folder)
  # A wrong name is told before the minutes that scoring takes.
  names = perturb.chosen(perturbations, inputs=detector.inputs) if perturbations else ()
  ladder = None
  if media_files is None:
    scored = score_prepared(detector, datasets=datasets, data_dir=data_dir, split=split, pairs=pairs)
  else:
    scored = score_media(
      detector,
      media_files,
      dataset=datasets[0],
      frames=frames,
      preset=preset,
      report_progress=report_progress,
    )
  if names:
    ladder = score_ladder(
      detector,
      scored,
      data_dir=data_dir,
      split=split,
      names=names,
      limit=perturb_limit,
      report_progress=report_step,
    )
  trained, selection = protocols.model_protocol(facts)
  protocol = protocols.Protocol(
    train=trained,
    selection=selection,
    media="prepared" if media_files is None else "media",
    preprocessing=preprocessing,
    frames=scored.frames,
    faces=scored.faces,
    aggregation=scored.aggregation,
    level=level,
    pairs=protocols.pairs_hash(facts) if scored.pairs else "",
  )
  thresholds = {
    part: dataclasses.asdict(calibration.thresholds)
    for part in (FACES, SOUND)
    if (calibration := _calibration(detector, part)) is not None
  }
  sizes = [leaf.size for leaf in jax.tree.leaves(checkpoints.read_params(folder)["params"])]
  builds = {name: data.fingerprint(name, data_dir=data_dir) for name in datasets if media_files is None}
  left_open = lineage.notes(
    trainings, builds, split, division=functools.partial(data.division, data_dir=data_dir)
  )
  return card.make_card(
    dataclasses.replace(scored, notes=(*scored.notes, *left_open)),
    model={**detector.metadata, "bytes": checkpoints.folder_bytes(folder), "parameters": int(sum(sizes))},
    protocol=protocol,
    datasets=datasets,
    split=split,
    builds=builds,
    trained_on=sorted(lineage.trained_on(trainings)),
    thresholds=thresholds,
    prevalences=prevalences,
    missing_score=preset.missing if preset else None,
    cost=_cost(decoded=media_files is not None),
    faithfulness=_faithfulness(detector, scored, split, data_dir, map_examples, draws=draws),
    legacy=_tables(scored, detector, split),
    draws=draws,
    ladder=ladder,
  )


def score_prepared(
  detector: Detector,
  *,
  datasets: Sequence[str],
  data_dir: str | Path,
  split: str,
  pairs: bool | None = None,
) -> Scored:
  """Scores a split of prepared datasets.

  Args:
    detector: a calibrated model.
    datasets: their names.
    data_dir: where build_dataset wrote them.
    split: of them.
    pairs: whether to make pseudo-fakes of the real examples too; None: of datasets that hold no fakes, with a
      model that was trained on pseudo-fakes.

  Raises:
    FileNotFoundError, ValueError: as of data.ExampleSource.
  """
  labelled, twins, missing, notes = [], [], [], []
  seconds: list[float] = []
  parts: dict[str, evaluation.Scores] = {}
  for name in datasets:
    config = dataclasses.replace(detector.config.data, datasets=(name,), dataset_weights=())

    def scored(
      degraded: bool | None, *, config=config, name=name
    ) -> tuple[dict[str, Rows], evaluation.Scores]:
      held_out = evaluation.held_out(detector, config, split, data_dir=data_dir, degraded=degraded)
      condition = {None: "untouched", False: "plain", True: "degraded"}[degraded]
      return _score_held_out(detector, held_out, dataset=name, condition=condition, seconds=seconds)

    rows, of_all = scored(None)
    kinds = {"untouched": of_all}
    labelled.append(rows)
    only_reals = not of_all.labels.any()
    if (pairs is None and only_reals and config.pseudofakes) or pairs:
      made = {"plain": scored(False), "degraded": scored(True)}
      twins += [of_condition for of_condition, _ in made.values()]
      kinds |= {condition: of_pairs for condition, (_, of_pairs) in made.items()}
    for kind, found in kinds.items():
      parts[kind] = parts[kind] + found if kind in parts else found
    left, said = _prepared_missing(detector, name, split, data_dir, rows)
    missing += left
    notes += said
  # As evaluation.held_out_scores: "all" are the pairs, or without pairs the untouched examples.
  parts["all"] = parts["plain"] + parts["degraded"] if "plain" in parts else parts["untouched"]
  return Scored(
    labelled=levels.join(labelled),
    pairs=levels.join(twins) if twins else None,
    missing=tuple(missing),
    frames=None,
    faces=_OWN_FACES,
    aggregation=_OWN_AGGREGATION,
    timings={"model_s": seconds},
    parts=parts,
    notes=tuple(notes),
  )


def score_ladder(
  detector: Detector,
  scored: Scored,
  *,
  data_dir: str | Path,
  split: str,
  names: Sequence[str],
  limit: int = 0,
  report_progress: Progress | None = None,
) -> Ladder:
  """Scores prepared examples under perturbations of growing strength.

  It damages the set that the headline is of (`card.headline_set`); of pairs the plain ones, both twins alike
  and after the blending. Stored faces are damaged as they are stored, larger than what the network sees, and
  are not looked for again; a detector might miss a face in a file that was damaged so. Of several names,
  those are left out that change nothing that any example holds: sound, where all are pictures.

  Args:
    detector: a calibrated model.
    scored: of `score_prepared`, the same split.
    data_dir, split: as of `score_prepared`.
    names: of perturb.PERTURBATIONS.
    limit: at most so many examples, the same share of each dataset and evenly spread in it; 0: all.
    report_progress: f(done, total) after each step of the ladder.
  """
  of = card.headline_set(scored)
  rows = scored.pairs["video"] if of == "pairs" else scored.labelled["video"]
  datasets = np.unique(rows.dataset).tolist()
  sizes: dict[str, int] = {}

  def score(rung: perturb.Rung) -> dict[str, Rows]:
    found = []
    for name in datasets:
      config = dataclasses.replace(detector.config.data, datasets=(name,), dataset_weights=())
      pairs = of == "pairs"
      held_out = evaluation.held_out(
        detector, config, split, data_dir=data_dir, degraded=False if pairs else None, rung=rung
      )
      sizes[name] = len(held_out)
      rows, _ = _score_held_out(
        detector,
        held_out,
        dataset=name,
        condition="plain" if pairs else "untouched",
        seconds=[],
        limit=_part_of(limit, len(datasets)),
      )
      found.append(rows)
    return levels.join(found)

  held = {word for name in datasets for word in data.held_words(name, split, data_dir, detector.inputs)}
  there = {perturb.FRAMES} if held & {"faces", "mouths"} else set()
  there |= {perturb.SOUND} & held
  names = [name for name in names if perturb.find(name).of in there] or names
  total = perturb.LEVELS * len(names) + 1
  # What nothing was done to is the same for all.
  untouched = score(perturb.Rung(names[0], 0))
  rungs = {name: [untouched] for name in names}
  for done, (name, level) in enumerate(
    ((name, level) for name in names for level in range(1, perturb.LEVELS + 1)), start=2
  ):
    rungs[name].append(score(perturb.Rung(name, level)))
    if report_progress:
      report_progress(done, total)
  part = _part_of(limit, len(datasets))
  return Ladder(
    of=of,
    examples=sum(min(part, size) if part else size for size in sizes.values()),
    total=sum(sizes.values()),
    rungs=rungs,
  )


def _part_of(limit: int, datasets: int) -> int:
  """How many examples of each dataset, where there are at most `limit` in all; 0: all."""
  return max(limit // datasets, 1) if limit else 0


def score_media(
  detector: Detector,
  files: Sequence,
  *,
  dataset: str,
  frames: int = 32,
  preset: protocols.Preset | None = None,
  report_progress: Progress | None = None,
) -> Scored:
  """Scores raw media files.

  Args:
    detector: a calibrated model.
    files: MediaFile objects of a dataset's builder (datasets/media_builder.py).
    dataset: its name.
    frames: of a video that the detector looks at; a preset says so itself.
    preset: cut and count as this published protocol does; None: as the detector does for users.
    report_progress: f(done, total) after each file.

  Raises:
    ValueError: the model reads more than single faces, which a preset has none of.
  """
  if preset and (set(detector.face_inputs) != {"crops", "crop_mask"} or detector.window.frames != 1):
    raise ValueError(
      f"The preprocessing {preset.name} cuts single faces, and this model reads "
      f"{', '.join(detector.face_inputs) or 'no faces'} in windows of {detector.window.frames}; use "
      f"--preprocessing={protocols.OWN}."
    )
  scored, missing, timings = [], [], {}
  for done, file in enumerate(files, start=1):
    known = {
      "dataset": dataset,
      "method": file.method,
      "source": file.source,
      "group": f"{protocols.family(dataset)}/{file.group}",
    }
    # A preset judges faces alone. What else is there of a file shows only when it is judged.
    label = int(file.labels["face_label"] if preset else file.label)
    try:
      if label == examples.UNKNOWN:
        raise _NoScoreError("label_unknown")
      with _path_of(file) as path:
        found, seconds = (
          _score_by_preset(detector, path, file, known, preset)
          if preset
          else _score_by_verdict(detector, path, file, known, frames)
        )
    except _NoScoreError as error:
      reason = error.args[0]
    except (media.MediaError, OSError) as error:
      # An archive may be gone or cut off.
      reason = getattr(error, "reason", "unreadable")
    else:
      reason = None
      scored.append(found)
      for stage, value in seconds.items():
        timings.setdefault(stage, []).append(value)
    if reason:
      missing.append(Missing(file=f"{dataset}:{file.id}", label=label, reason=reason, **known))
    if report_progress:
      report_progress(done, len(files))
  return Scored(
    labelled=levels.join(scored),
    pairs=None,
    missing=tuple(missing),
    frames=preset.frames if preset else frames,
    faces=preset.faces if preset else _OWN_FACES,
    aggregation=f"{preset.frame_score} of faces, {preset.video_score} of frames"
    if preset
    else _OWN_AGGREGATION,
    timings=timings,
    parts={},
    notes=(
      *((_OWN_FILES_NOTE,) if dataset == protocols.OWN_FILES else ()),
      *(preset.departures(size_px=faces.EVAL_SIZE) if preset else ()),
    ),
  )


_OWN_FILES_NOTE = (
  "Whether the model was trained, or its thresholds were set, with any of these files is not known; if so, "
  "the figures flatter it."
)


def _tables(scored: Scored, detector: Detector, split: str) -> dict | None:
  """The tables of evaluation.measure_model, where both classes are there."""
  if "all" not in scored.parts or len(set(scored.parts["all"].labels.tolist())) < 2:
    return None
  return evaluation.measure_scores(scored.parts, detector, split=split)


def _faithfulness(
  detector: Detector, scored: Scored, split: str, data_dir: str | Path, limit: int, *, draws: int
) -> dict | None:
  """faithfulness.figures of plain pairs; None without pairs, faces or region maps."""
  if not limit or not scored.pairs or "crops" not in detector.face_inputs:
    return None
  names = np.unique(scored.pairs["video"].dataset).tolist()
  parts = []
  for name in names:
    config = dataclasses.replace(detector.config.data, datasets=(name,), dataset_weights=())
    held_out = evaluation.held_out(detector, config, split, data_dir=data_dir, degraded=False)
    share = -(-limit // len(names))
    parts.append(faithfulness.trace(detector.judge, held_out, inputs=held_out.source.inputs, limit=share))
  curves = faithfulness.join(parts)
  return None if curves is None else faithfulness.figures(curves, draws=draws)


def _cost(*, decoded: bool) -> dict:
  """What this process took so far, and on what; with what decoders beside it took, where there were any."""
  device = jax.local_devices()[0]
  # Linux counts kilobytes, macOS bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  found = {
    "device": device.device_kind if device.platform != "cpu" else "cpu",
    "peak_memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
  }
  if decoded:
    # Of the largest of them.
    found["decoder_peak_memory_bytes"] = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  if stats := device.memory_stats():
    found["device_peak_bytes"] = stats.get("peak_bytes_in_use")
  return found


# Prepared datasets --------------------------------------------------------------------------------------


def _score_held_out(
  detector: Detector,
  held_out: data.HeldOutPairs | data.HeldOutExamples,
  *,
  dataset: str,
  condition: str,
  seconds: list[float],
  limit: int = 0,
) -> tuple[dict[str, Rows], evaluation.Scores]:
  """Rows of all levels and the plain scores of what is held out; adds the seconds of each window.

  With a limit, of at most so many examples, evenly spread.
  """
  windows, frames, plain = [], [], []
  batches = data.held_out_batches(held_out, limit=limit, batch_size=_BATCH)
  with contextlib.closing(_judge_ahead(detector, batches)) as judgements:
    for number, (batch, of_examples, judged, took_s) in enumerate(judgements):
      valid = np.flatnonzero(batch["example_mask"])
      if number:  # The first batch waits for the compiler.
        seconds += [took_s / len(batch["example_mask"])] * len(valid)
      facts = [fact for fact in of_examples for _ in range(held_out.rows)]
      for row, fact in zip(valid, facts, strict=True):
        label, logit = int(batch["label"][row]), float(judged.logits[row])
        shown = batch["crop_mask"][row] if "crop_mask" in batch else np.zeros(0, bool)
        part = FACES if shown.any() else SOUND
        plain.append(
          {
            "labels": label,
            "logits": logit,
            **{key: fact[key] for key in ("group", "source", "kind")},
            "has_faces": part == FACES,
            "id": f"{dataset}:{fact['id']}",
            "video": f"{dataset}:{levels.file_of(fact['id'])}" + "#degraded" * (condition == "degraded"),
          }
        )
        calibration = _calibration(detector, part)
        if calibration is None:
          continue
        file = f"{dataset}:{levels.file_of(fact['id'])}"
        if held_out.rows == 2:
          file = levels.twin_file(file, condition=condition, label=label)
        place = fact["id"].rpartition("#")[2]
        window = {
          "id": f"{file}#{place}",
          "file": file,
          "dataset": dataset,
          "group": f"{protocols.family(dataset)}/{fact['group']}",
          "source": fact["source"],
          "method": (fact["method"] if held_out.rows == 1 else fact["kind"]) if label else "",
          "part": part,
          "condition": condition,
          "label": label,
          **_read(float(calibration.score(logit)), *_bounds(calibration)),
          "face_size_px": fact["face_size_px"],
          "sharpness": _sharpness(batch["crops"][row], shown)
          if part == FACES and "crops" in batch
          else np.nan,
        }
        windows.append(window)
        if len(shown) > 1:
          for frame in np.flatnonzero(shown):
            score = float(calibration.score(judged.frame_logits[row, frame]))
            read = _read(score, *_bounds(calibration))
            frames.append({**window, "id": f"{window['id']}@{frame}", **read})
  columns = {name: np.array([row[name] for row in plain]) for name in plain[0]}
  scores = evaluation.Scores(**columns, paired=held_out.rows == 2)

  def outcome(part: str, score: float) -> tuple[bool, bool]:
    read = _read(score, *_bounds(_calibration(detector, part)))
    return read["called"], read["doubtful"]

  rows = levels.aggregate(
    Rows.of(windows),
    frames=Rows.of(frames) if frames else None,
    decide=deciding_person,
    outcome=outcome,
  )
  return rows, scores


def _judge_ahead(
  detector: Detector, batches: Generator[tuple[dict, list[dict]]]
) -> Iterator[tuple[dict, list[dict], Judgement, float]]:
  """Yields each batch with its facts, its judgement and the seconds of that; the network goes on meanwhile.

  The seconds are those of the network beside whoever looks at the batch before.
  """
  with contextlib.closing(batches), concurrent.futures.ThreadPoolExecutor(1) as network:

    def judge(batch: dict) -> tuple[Judgement, float]:
      started = time.perf_counter()
      return detector.judge_held(batch), time.perf_counter() - started

    before = None
    for batch, facts in batches:
      judging = network.submit(judge, batch)
      if before:
        yield *before[:2], *before[2].result()
      before = batch, facts, judging
    if before:
      yield *before[:2], *before[2].result()


def _calibration(detector: Detector, part: str) -> Calibration | None:
  return detector.calibration if part == FACES else detector.sound_calibration


def _bounds(calibration: Calibration) -> tuple[float, float]:
  """The calibrated logits at which outcomes change, as validation fixed them."""
  return tuple(
    float(calibration.score(logit)) for logit in (calibration.inconclusive, calibration.manipulated)
  )


def _read(score: float, doubtful: float, manipulated: float) -> dict:
  """What is said of a calibrated logit."""
  return {"score": score, "called": score >= manipulated, "doubtful": doubtful <= score < manipulated}


def _logit(probability: float) -> float:
  p = min(max(probability, _LEAST_PROBABILITY), 1 - _LEAST_PROBABILITY)
  return float(np.log(p) - np.log1p(-p))


def _sharpness(crops: np.ndarray, shown: np.ndarray) -> float:
  places = np.flatnonzero(shown)
  chosen = places[np.linspace(0, len(places) - 1, min(len(places), _FRAMES_MEASURED)).astype(int)]
  return float(np.median([faces.crop_sharpness(crops[place]) for place in chosen]))


def _prepared_missing(
  detector: Detector, name: str, split: str, data_dir: str | Path, rows: dict[str, Rows]
) -> tuple[list[Missing], list[str]]:
  """The files of a split without a score, and what is not known of them in sentences."""
  scored = set(rows["video"].file)
  missing: dict[str, Missing] = {}
  listed: set[str] = set()
  for row in data.listed_examples(name, split, data_dir=data_dir, inputs=detector.inputs):
    file = f"{name}:{levels.file_of(row['id'])}"
    listed.add(file)
    if file in scored:
      continue
    reason = "not_judged_by_this_model" if row["held"] else "nothing_that_this_model_reads"
    if row["held"] and row["read_label"] == examples.UNKNOWN:
      reason = "label_unknown"
    missing[file] = Missing(
      file=file,
      dataset=name,
      label=row["label"],
      reason=reason,
      method=row["method"],
      source=row["source"],
      group=f"{protocols.family(name)}/{row['group']}",
    )
  unknown = 0
  for row in data.left_out_files(name, data_dir=data_dir):
    file = f"{name}:{row['id']}"
    if file in listed or file in missing:
      continue  # Somebody else in it, or its picture, could be used.
    if "split" in row:
      if row["split"] == split:
        known = {key: row[key] for key in ("label", "reason", "method", "source")}
        missing[file] = Missing(file=file, dataset=name, **known)
    elif row["reason"] not in ("absent", "between_splits", "not_listed"):
      unknown += 1
  notes = []
  if unknown:
    notes.append(
      f"{name}: {unknown} files could not be used, and its build does not say of which split they are; "
      "coverage leaves them out. Build it again to count them."
    )
  return list(missing.values()), notes


# Raw media ----------------------------------------------------------------------------------------------


class _NoScoreError(Exception):
  """A file that was read and got no score; its argument is the reason's code."""


@contextlib.contextmanager
def _path_of(file) -> Iterator[Path]:
  """The path of a media file; a member of an archive is written down for as long as it is needed."""
  if file.frames:
    raise _NoScoreError("stored_as_pictures")
  if not file.read:
    yield file.path
    return
  with tempfile.NamedTemporaryFile(suffix=Path(file.id).suffix) as copy:
    copy.write(file.read())
    copy.flush()
    yield Path(copy.name)


def _score_by_verdict(
  detector: Detector, path: Path, file, known: dict, frames: int
) -> tuple[dict[str, Rows], dict[str, float]]:
  """Rows of a file from what the detector says of it, and its seconds by stage."""
  verdict = detector.detect(path, frames=frames)
  if verdict.deepfake_probability is None:
    raise _NoScoreError(verdict.reasons[0].code if verdict.reasons else "not_applicable")
  name = f"{known['dataset']}:{file.id}"
  base = {
    **known,
    "file": name,
    "condition": "untouched",
    "face_size_px": np.nan,
    "sharpness": np.nan,
  }

  def row(place: str, part: str, probability: float, thresholds: Thresholds, label: int, **facts) -> dict:
    read = _read(_logit(probability), *(map(_logit, (thresholds.inconclusive, thresholds.manipulated))))
    method = known["method"] if label else ""
    return {**base, "id": f"{name}{place}", "part": part, "label": label, "method": method, **read, **facts}

  of_part = {FACES: int(file.labels["face_label"]), SOUND: int(file.labels["sound_label"])}
  frame_rows, window_rows, track_rows = [], [], []
  if verdict.faces and of_part[FACES] != examples.UNKNOWN:
    for person in verdict.people:
      if person.deepfake_probability is None:
        continue
      sharpness = person.quality.get("median_sharpness", np.nan)
      common = {"label": of_part[FACES], "sharpness": sharpness, "thresholds": verdict.faces.thresholds}
      for number, seen in enumerate(person.sightings):
        if seen.probability is not None:
          size = max(seen.box[2] - seen.box[0], seen.box[3] - seen.box[1])
          place = f"#{person.id}.{number}"
          frame_rows.append(row(place, FACES, seen.probability, face_size_px=size, **common))
      size = person.quality.get("median_size_px", np.nan)
      place = f"#{person.id}"
      track_rows.append(row(place, FACES, person.deepfake_probability, face_size_px=size, **common))
  if verdict.sound and verdict.sound.deepfake_probability is not None and of_part[SOUND] != examples.UNKNOWN:
    common = {"label": of_part[SOUND], "thresholds": verdict.sound.thresholds}
    for number, heard in enumerate(verdict.sound.windows):
      window_rows.append(row(f"#sound.{number}", SOUND, heard.probability, **common))
    track_rows.append(row("#sound", SOUND, verdict.sound.deepfake_probability, **common))
  read = [FACES] * bool(verdict.faces and verdict.people) + [SOUND] * bool(verdict.sound)
  label = _label([of_part[part] for part in read])
  who = [p for p in verdict.people if p.deepfake_probability == verdict.deepfake_probability]
  quality = who[0].quality if who and verdict.decided_by == FACES else {}
  decided = row(
    "",
    verdict.decided_by,
    verdict.deepfake_probability,
    verdict.thresholds,
    label,
    face_size_px=quality.get("median_size_px", np.nan),
    sharpness=quality.get("median_sharpness", np.nan),
  )
  single = not detector.window.is_sequence
  found = {
    "frame": frame_rows,
    # A verdict says nothing of windows of several frames one by one.
    "window": [*(frame_rows if single else ()), *window_rows],
    "track": track_rows,
    "video": [decided],
  }
  return {level: Rows.of(rows) for level, rows in found.items()}, dict(verdict.timings)


def _label(parts: Sequence[int]) -> int:
  """The label of the parts of a file that a model reads, as prepared datasets have it."""
  label = examples.label_of(parts)
  if label == examples.UNKNOWN:
    raise _NoScoreError("label_unknown")
  return label


def _score_by_preset(
  detector: Detector, path: Path, file, known: dict, preset: protocols.Preset
) -> tuple[dict[str, Rows], dict[str, float]]:
  """Rows of a file that is cut and counted as a preset says, and its seconds by stage."""
  started = time.perf_counter()
  clip = media.decode_clip(path, plan=media.SamplingPlan(frame_count=preset.frames, ends=preset.ends))
  decoded = time.perf_counter()
  if not len(clip.frames):
    raise _NoScoreError("no_picture")
  crops, sizes, frame_of = [], [], []
  for number, found in enumerate(faces.find_faces(clip.frames)):
    boxes = np.array([face.box for face in found]).reshape(-1, 4)
    for face in (found[i] for i in np.flatnonzero(protocols.chosen_faces(boxes, faces=preset.faces))):
      cut = protocols.cut_face(
        clip.frames[number], box=face.box, landmarks=face.landmarks, preset=preset, size=faces.EVAL_SIZE
      )
      crops.append(cut)
      sizes.append(float(max(face.box[2] - face.box[0], face.box[3] - face.box[1])))
      frame_of.append(number)
  if not crops:
    raise _NoScoreError("no_face")
  cut_s = time.perf_counter()
  batch = {"crops": np.stack(crops)[:, None], "crop_mask": np.ones((len(crops), 1), bool)}
  probabilities = detector.calibration.probability(detector.judge(batch).logits)
  judged = time.perf_counter()
  by_frame = [probabilities[np.array(frame_of) == number] for number in range(len(clip.frames))]
  scores = protocols.frame_scores(by_frame, preset=preset)
  places = frame_of if preset.frame_score == "each" else list(range(len(clip.frames)))
  name = f"{known['dataset']}:{file.id}"
  label = int(file.labels["face_label"])
  bounds = [
    _logit(p)
    for p in (detector.calibration.thresholds.inconclusive, detector.calibration.thresholds.manipulated)
  ]
  common = {
    **known,
    "file": name,
    "part": FACES,
    "condition": "untouched",
    "label": label,
    "method": known["method"] if label else "",
    "face_size_px": float(np.median(sizes)),
    "sharpness": float(np.median([faces.crop_sharpness(crop) for crop in crops])),
  }
  frame_rows = [
    {**common, "id": f"{name}#{place}.{number}", **_read(_logit(float(score)), *bounds)}
    for number, (place, score) in enumerate(zip(places, scores, strict=True))
    if np.isfinite(score)
  ]
  whole = protocols.video_score(by_frame, preset=preset)
  found = {
    "frame": frame_rows,
    "window": frame_rows,
    "track": [],
    "video": [{**common, "id": name, **_read(_logit(whole), *bounds)}],
  }
  seconds = {
    "decode_s": decoded - started,
    "faces_s": cut_s - decoded,
    "model_s": judged - cut_s,
    "total_s": judged - started,
  }
  return {level: Rows.of(rows) for level, rows in found.items()}, seconds
