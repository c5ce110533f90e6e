"""What `deepscan evaluate` takes beside the network: `deepscan benchmark evaluate`.

The figures of a card are worked out, with their intervals, for made scores. Videos of made pictures are
scored as an evaluation scores a prepared dataset: examples read, decoded, cut, judged, measured and put
together; and as many examples go through the network alone, stacked beforehand. Both take turns, a part of
the videos each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepscan_jax import card, data, inference, protocols, scoring
from deepscan_jax.levels import FACES, Rows

VIDEOS, STATISTICS_ROWS = 1000, 100_000
FRAMES = 32
# Promises: seconds, and the share of the examples that the network alone would have judged in the time.
STATISTICS_S, LEAST_SHARE = 30.0, 0.9
# So many videos are scored in a turn.
_PART_VIDEOS = 20
_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Videos:
  """In place of a dataset's source: its examples again and again, as the frames of videos.

  Attributes:
    source: real examples.
    first: number of the first video; every other one is called forged.
    videos: how many.
    frames: of each.
  """

  source: data.ExampleSource
  first: int
  videos: int
  frames: int

  @property
  def inputs(self) -> tuple[str, ...]:
    """As of the source."""
    return self.source.inputs

  def __len__(self) -> int:
    return self.videos * self.frames

  def __getitem__(self, index: int) -> dict:
    video, frame = divmod(index, self.frames)
    video += self.first
    element = self.source[(video * self.frames + frame) % len(self.source)]
    label = np.int32(video % 2)
    names = {"id": f"made/{video}.mp4#0.{frame}", "group": f"made/{video}", "method": "made" * int(label)}
    return {**element, **names, "label": label, "face_label": label}


def evaluate_rows(
  data_dir: Path,
  *,
  dataset: str,
  videos: int,
  frames: int,
  statistics_rows: int,
  draws: int = card.DRAWS,
  row: Callable,
  rate_row: Callable,
) -> list:
  """The rows of the benchmark, for launch.benchmark, whose rows these are.

  Args:
    data_dir: where the dataset is.
    dataset: its name; faces are needed.
    videos, frames: to score.
    statistics_rows: scores of which figures are made.
    draws: resamples of the bootstrap.
    row: row(case, ours_s, reference_s, limit_s=...).
    rate_row: rate_row(case, per_second, least_per_s=...).
  """
  rows = statistics_of(statistics_rows, draws=draws, row=row)
  ours_s, alone_s = scoring_seconds(
    inference.load_detector(), data_dir, dataset=dataset, videos=videos, frames=frames
  )
  count = videos * frames
  least = LEAST_SHARE * count / alone_s
  return [
    *rows,
    row(f"{videos:,} videos of {frames} frames scored", ours_s, alone_s, limit_s=alone_s / LEAST_SHARE),
    rate_row("examples: the network alone", count / alone_s, least_per_s=None),
    rate_row("examples: the evaluation", count / ours_s, least_per_s=least),
  ]


def statistics_of(count: int, *, draws: int, row: Callable) -> list:
  """Rows of the figures of so many scores at one level, and of a whole card of so many windows."""
  windows = made_scores(count, each=FRAMES)
  files = windows.take(np.arange(0, count, FRAMES))
  levels = {"frame": windows, "window": windows, "track": files, "video": files}
  scored = scoring.Scored(
    labelled=levels, pairs=None, missing=(), frames=None, faces="", aggregation="", timings={}, parts={}
  )
  protocol = protocols.Protocol(
    train={"datasets": []}, selection={}, media="prepared", preprocessing=protocols.OWN, frames=None,
    faces="", aggregation="", level="video",
  )  # fmt: skip

  def make_card() -> None:
    card.make_card(
      scored, model={}, protocol=protocol, datasets=["made"], split="test", thresholds={}, draws=draws
    )

  cases = {
    f"{count:,} scores, {draws:,} resamples: figures": lambda: card.figures_of(windows, draws=draws),
    f"{count:,} windows of {len(files):,} videos: a card": make_card,
  }
  rows = []
  for case, call in cases.items():
    started = time.perf_counter()
    call()
    rows.append(row(case, time.perf_counter() - started, None, limit_s=STATISTICS_S))
  return rows


def made_scores(count: int, *, each: int) -> Rows:
  """Scores in videos of `each`, half of which are called forged by one of two methods."""
  rng = np.random.default_rng(0)
  video = np.arange(count) // each
  label = video % 2
  score = rng.normal(size=count) + rng.normal(size=video[-1] + 1)[video] + 1.5 * label
  name = np.array([f"made:{number}.mp4" for number in range(video[-1] + 1)])[video]
  return Rows(
    id=np.array([f"{file}#0.{i % each}" for i, file in enumerate(name)]),
    file=name,
    dataset=np.full(count, "made"),
    group=name,
    source=np.array(["left", "right"])[video // 4 % 2],
    method=np.where(label == 1, np.array(["swap", "reenactment"])[video // 2 % 2], ""),
    part=np.full(count, FACES),
    condition=np.full(count, "untouched"),
    label=label,
    score=score,
    called=score >= 1.5,
    doubtful=(score >= 0.5) & (score < 1.5),
    face_size_px=rng.uniform(40, 300, count),
    sharpness=rng.uniform(0, 0.2, count),
  )


def scoring_seconds(
  detector: inference.Detector, data_dir: Path, *, dataset: str, videos: int, frames: int
) -> tuple[float, float]:
  """Seconds in which a dataset's videos are scored, and in which the network alone judges as much.

  Args:
    detector: of single faces.
    data_dir, dataset: where the examples come from.
    videos, frames: how many.
  """
  config = dataclasses.replace(detector.config.data, datasets=(dataset,), dataset_weights=())
  # Examples of sound alone are not among them.
  untouched = data.held_out(config, _SPLIT, data_dir=data_dir, inputs=detector.face_inputs)

  def score(first: int, count: int) -> None:
    source = Videos(untouched.source, first, count, frames)
    held_out = dataclasses.replace(untouched, source=source)
    scoring._score_held_out(detector, held_out, dataset=dataset, condition="untouched", seconds=[])

  crops = [untouched[i % len(untouched)]["crops"][0] for i in range(scoring._BATCH)]
  masks = np.ones((scoring._BATCH, *crops[0].shape[:1]), bool)
  stacked = {"crops": np.stack(crops), "crop_mask": masks}

  def judge(count: int) -> None:
    for begin in range(0, count, scoring._BATCH):
      size = min(scoring._BATCH, count - begin)
      detector.judge({key: values[:size] for key, values in stacked.items()})

  # Compiles, and fills what is cached.
  score(0, 1)
  judge(scoring._BATCH)
  seconds = [0.0, 0.0]
  for first in range(0, videos, _PART_VIDEOS):
    count = min(_PART_VIDEOS, videos - first)
    for side, call in enumerate((lambda: score(first, count), lambda: judge(count * frames))):  # noqa: B023
      started = time.perf_counter()
      call()
      seconds[side] += time.perf_counter() - started
  return seconds[0], seconds[1]
