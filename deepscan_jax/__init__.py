"""deepscan_jax tells whether a video, an image or a voice recording is a deepfake, and shows why.

    import deepscan_jax
    verdict = deepscan_jax.detect("clip.mp4")
    print(verdict.outcome, verdict.deepfake_probability)

The public names are loaded when they are first used, so that importing the package is quick.
"""

import importlib

from deepscan_jax.version import __version__

_HOMES = {
  "Config": "deepscan_jax.config",
  "Detector": "deepscan_jax.inference",
  "Verdict": "deepscan_jax.verdict",
  "calibrate_model": "deepscan_jax.evaluation",
  "cross_validate": "deepscan_jax.cross_validation",
  "detect": "deepscan_jax.inference",
  "evaluate": "deepscan_jax.evaluation",
  "fit": "deepscan_jax.training",
  "load_detector": "deepscan_jax.inference",
  "load_preset": "deepscan_jax.config",
  "override": "deepscan_jax.config",
  "register_branch": "deepscan_jax.models.detector",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module 'deepscan_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)
