"""Event files for TensorBoard, where tensorboardX is installed: the only module that imports it."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class EventFiles:
  """Scalars and pictures of a run for TensorBoard; nothing is written where tensorboardX is not installed.

  A file is opened with the first that is written, so that a run with nothing more to do leaves none.

  Args:
    folder: of the files; every process that goes on with a run adds one.
    after: steps that are done. What files of earlier processes hold of later ones, TensorBoard forgets.

  Attributes:
    wanted: whether anything is written.
  """

  def __init__(self, folder: Path, *, after: int):
    self._folder, self._after, self._writer = folder, after, None
    try:
      self._module = _tensorboardx()
    except ImportError:
      self._module = None
      logging.info("No files for TensorBoard are written: they need tensorboardX (pip install tensorboardX).")
    self.wanted = self._module is not None

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds scalars by name."""
    if self.wanted:
      for name, value in scalars.items():
        self._opened().add_scalar(name, value, step)

  def draw(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture, uint8 RGB [height, width, 3]."""
    if self.wanted:
      self._opened().add_image(name, picture, step, dataformats="HWC")

  def close(self) -> None:
    """Writes what is still waiting."""
    if self._writer is not None:
      self._writer.close()

  def _opened(self):
    if self._writer is None:
      self._writer = self._module.SummaryWriter(
        str(self._folder),
        purge_step=self._after + 1,
        # The names of the files go by seconds, and two processes may start in one.
        filename_suffix=f".{self._after}",
      )
    return self._writer


def _tensorboardx():
  """The package, without PyTorch: it imports that where it is installed, for the name of a type alone, which
  takes seconds and memory.

  Raises:
    ImportError: it is not installed.
  """
  hidden = "torch" not in sys.modules
  if hidden:
    # An import of what stands here as None fails as if it were not installed.
    sys.modules["torch"] = None
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules["torch"]
  return tensorboardX
