"""Pictures of a validation: confusion matrix, ROC curve, and sample crops with their region maps.

All are uint8 RGB [height, width, 3].
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from deepscan_jax import data
from deepscan_jax.config import Config
from deepscan_jax.models.detector import detector_inputs

_INK, _SOFT, _GRID, _PAPER = (28, 33, 39), (96, 104, 114), (222, 222, 218), (255, 255, 255)
_BLUE = (31, 90, 140)
_TILE, _GAP, _LINE = 160, 6, 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def confusion_picture(counts: np.ndarray, *, threshold: str) -> np.ndarray:
  """A confusion matrix; the darker a cell, the larger its share of its row.

  Args:
    counts: int [2, 2]: rows real and fake, columns called real and called fake.
    threshold: what an example is called by, in a few words.
  """
  cell, left, top = 150, 90, 70
  picture = _blank(top + 2 * cell + 16, left + 2 * cell + 16)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  for row, column in np.ndindex(2, 2):
    share = float(shares[row, column])
    x, y = left + column * cell, top + row * cell
    shade = tuple(round(p + (b - p) * 0.85 * share) for p, b in zip(_PAPER, _BLUE, strict=True))
    cv2.rectangle(picture, (x, y), (x + cell - 4, y + cell - 4), shade, -1)
    cv2.rectangle(picture, (x, y), (x + cell - 4, y + cell - 4), _GRID, 1)
    ink = _PAPER if share > 0.5 else _INK
    _write(picture, f"{counts[row, column]:,}", x + cell // 2, y + cell // 2, size=0.9, ink=ink)
    _write(picture, f"{100 * share:.1f} %", x + cell // 2, y + cell // 2 + 30, ink=ink)
  for i, label in enumerate(("real", "fake")):
    _write(picture, label, left // 2, top + i * cell + cell // 2 + 5)
    _write(picture, f"called {label}", left + i * cell + cell // 2, top - 12)
  _write(picture, threshold, left + cell, 26, ink=_SOFT)
  return picture


def roc_picture(curve: tuple[np.ndarray, np.ndarray], *, auc: float) -> np.ndarray:
  """A ROC curve over its chance diagonal.

  Args:
    curve: (false positive rate, true positive rate), each [point] in 0..1.
    auc: the area under it.
  """
  side, left, top = 300, 72, 44
  picture = _blank(top + side + 58, left + side + 20)

  def place(x: float, y: float) -> tuple[int, int]:
    return round(left + x * side), round(top + (1 - y) * side)

  for at in (0, 0.25, 0.5, 0.75, 1):
    cv2.line(picture, place(at, 0), place(at, 1), _GRID, 1)
    cv2.line(picture, place(0, at), place(1, at), _GRID, 1)
    _write(picture, f"{at:g}", place(at, 0)[0], top + side + 18, size=0.4, ink=_SOFT)
    _write(picture, f"{at:g}", left - 20, place(0, at)[1] + 4, size=0.4, ink=_SOFT)
  cv2.line(picture, place(0, 0), place(1, 1), _SOFT, 1, cv2.LINE_AA)
  # With four binary digits behind the point.
  x, y = (np.asarray(rates, np.float64) for rates in curve)
  points = np.stack([left + x * side, top + (1 - y) * side], axis=-1)
  cv2.polylines(picture, [np.round(16 * points).astype(np.int32)], False, _BLUE, 2, cv2.LINE_AA, shift=4)
  _write(picture, f"AUC {auc:.4f}", left + side // 2, 26, size=0.6)
  _write(picture, "reals called fake", left + side // 2, top + side + 42, ink=_SOFT)
  upright = _blank(_LINE, side)
  _write(upright, "fakes called fake", side // 2, 15, ink=_SOFT)
  picture[top : top + side, 6 : 6 + _LINE] = cv2.rotate(upright, cv2.ROTATE_90_COUNTERCLOCKWISE)
  return picture


def sample_sheet(
  config: Config, predict, variables: dict, *, data_dir: str | Path, batch_size: int, count: int = 4
) -> np.ndarray | None:
  """Crops of the validation split, always the same, with their region maps.

  With pseudo-fakes each line is a pair: the real crop and its forged twin, not degraded, with the score of
  each (0 to 1, not calibrated), what was blended in, and what the model marks; else it is an example under
  its own label.

  Args:
    config: of the run.
    predict: of `training.make_predict`.
    variables: of the model.
    data_dir: where the datasets are.
    batch_size: of validation, for which `predict` is compiled already.
    count: at most so many pairs or examples.

  Returns:
    A sheet of them; None where the model reads no crops or draws no maps.
  """
  inputs = detector_inputs(config.model)
  if "crops" not in inputs:
    return None
  degraded = False if config.data.pseudofakes else None
  held_out = data.held_out(config.data, "validation", data_dir=data_dir, inputs=inputs, degraded=degraded)
  lines = []
  for batch, _ in data.held_out_batches(held_out, limit=count, batch_size=batch_size):
    logits, maps = predict.with_regions(variables, batch)
    if maps is None:
      return None
    scores = 0.5 + 0.5 * np.tanh(np.asarray(logits, np.float64) / 2)
    shown = batch["example_mask"] & batch["crop_mask"].any(axis=1)
    for first in range(0, len(scores), held_out.rows):
      rows = [row for row in range(first, first + held_out.rows) if shown[row]]
      if not rows:
        continue
      # One frame of each: the first that is there.
      frames = {row: batch["crop_mask"][row].argmax() for row in rows}
      crops = {row: batch["crops"][row, frame] for row, frame in frames.items()}
      names = {row: "fake" if batch["label"][row] else "real" for row in rows}
      line = [(f"{names[row]}, scored {scores[row]:.2f}", crops[row]) for row in rows]
      if "region" in batch:
        last = rows[-1]
        line.append(("blended in", with_region(crops[last], batch["region"][last, frames[last]])))
      line += [
        (f"marked in the {names[row]}", with_region(crops[row], maps[row, frames[row]])) for row in rows
      ]
      lines.append(line)
  return region_sheet(lines) if lines else None


def region_sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
  """Lines of pictures with a caption each, such as the twins of a pair and their maps.

  Args:
    rows: of (caption, uint8 RGB [size, size, 3]); lines of the same length.
  """
  columns = max(len(row) for row in rows)
  sheet = _blank(len(rows) * (_TILE + _LINE + _GAP) + _GAP, columns * (_TILE + _GAP) + _GAP)
  for r, row in enumerate(rows):
    for c, (caption, tile) in enumerate(row):
      x, y = _GAP + c * (_TILE + _GAP), _GAP + r * (_TILE + _LINE + _GAP)
      sheet[y : y + _TILE, x : x + _TILE] = cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
      _write(sheet, caption, x + _TILE // 2, y + _TILE + 16, size=0.42)
  return sheet


def with_region(crop: np.ndarray, region: np.ndarray) -> np.ndarray:
  """A crop in grey under a map of it, as report pages colour them.

  Args:
    crop: uint8 RGB [size, size, 3].
    region: float [rows, columns] in 0..1.
  """
  size = (crop.shape[1], crop.shape[0])
  values = cv2.resize(np.clip(region, 0, 1).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
  colours = cv2.applyColorMap(np.round(255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
  grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[..., None]
  # In proportion to the map: a weak signal has to look weak.
  share = 0.85 * values[..., None]
  return np.round(grey * (1 - share) + colours * share).astype(np.uint8)


def _blank(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), _PAPER, np.uint8)


def _write(
  picture: np.ndarray,
  text: str,
  middle: int,
  baseline: int,
  *,
  size: float = 0.5,
  ink: tuple[int, int, int] = _INK,
) -> None:
  """Writes into the picture."""
  (width, _), _ = cv2.getTextSize(text, _FONT, size, 1)
  cv2.putText(picture, text, (middle - width // 2, baseline), _FONT, size, ink, 1, cv2.LINE_AA)
