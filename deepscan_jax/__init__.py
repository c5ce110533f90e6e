"""deepscan_jax tells whether a video, an image or a voice recording is a deepfake, and shows why.

    import deepscan_jax
    verdict = deepscan_jax.detect("clip.mp4")
    print(verdict.outcome, verdict.deepfake_probability)

The public names are loaded when they are first used, so that importing the package is quick.
"""

import importlib

from deepscan_jax.version import __version__

_HOMES = {
  "Detector": "deepscan_jax.inference",
  "Verdict": "deepscan_jax.verdict",
  "detect": "deepscan_jax.inference",
  "load_detector": "deepscan_jax.inference",
  "load_preset": "deepscan_jax.config",
}

__all__ = ["Detector", "Verdict", "__version__", "detect", "load_detector", "load_preset"]


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module 'deepscan_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)
