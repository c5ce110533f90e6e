"""The models that answer requests."""

import dataclasses
from pathlib import Path

from deepscan_jax.verdict import Thresholds


class Busy(Exception):
  """The queue is full; try again after `retry_after_s` seconds."""

  def __init__(self, retry_after_s: float):
    super().__init__(f"The queue is full; try again in {retry_after_s:g} s.")
    self.retry_after_s = retry_after_s


class UnknownModel(ValueError):
  """No model of this name, version or hash is loaded; the message lists those that are."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
  """One loaded model.

  Attributes:
    name, version, sha256: of the model.
    folder: None for the model in the package.
    default: whether it answers where no model is named.
    inputs: what it reads.
    thresholds: of faces, or of sound where it judges no faces.
    card: its model card in Markdown; "" where there is none.
  """

  name: str
  version: str
  sha256: str
  folder: Path | None
  default: bool
  inputs: tuple[str, ...]
  thresholds: Thresholds
  card: str = ""
