"""A service that decodes as any does, and judges nothing: for `benchmark hostile --nojudge`, and for tests.

Its settings come from the environment.
"""

import os
import sys
from pathlib import Path

from deepscan_jax import media, verdict
from deepscan_jax.config import WindowConfig
from deepscan_jax.serve import engine as engines
from deepscan_jax.serve import json_logs, server
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.settings import Settings

METADATA = {"name": "nobody", "version": "1", "sha256": "0" * 64}


class Nobody:
  """In place of a detector: finds nobody in whatever was decoded."""

  window, inputs, thresholds = WindowConfig(mouth_frames=0), ("crops",), verdict.Thresholds(0.4, 0.7, 0.05)

  def detect(self, path: str | Path, *, frames: int, decoding: media.Decoding) -> verdict.Verdict:
    """The verdict on a file without faces; MediaError as the detector raises it."""
    del frames
    clip = decoding.result()
    return verdict.Verdict(
      outcome=verdict.NOT_APPLICABLE,
      deepfake_probability=None,
      frame_consistency_score=None,
      reasons=(),
      branches={},
      people=(),
      thresholds=self.thresholds,
      model=METADATA,
      file={"name": Path(path).name, "bytes": 0, "sha256": "0" * 64, "kind": clip.kind, "media": clip.facts},
      timings={},
    )


class DecodingEngine(engines.Engine):
  """Queues, gates and decodes; has no networks to compile."""

  def _load(self):
    if self._forks is None and media.DecoderForks.supported():
      self._forks = media.DecoderForks()
    nobody = Nobody()
    info = engines.ModelInfo(
      **METADATA, folder=None, default=True, inputs=nobody.inputs, thresholds=nobody.thresholds
    )
    return (engines._Served(info, nobody, {}),)


if __name__ == "__main__":
  json_logs.set_up()
  settings = Settings.read({}, os.environ)
  sys.exit(server.serve(make_app(settings, DecodingEngine([None], decodings=settings.workers))))
