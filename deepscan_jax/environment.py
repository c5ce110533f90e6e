"""What a result was computed with: versions of packages, and the device; reports and `doctor` tell it."""

import functools
import importlib.metadata
import platform

from deepscan_jax.version import __version__

# Those that what is computed depends on.
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "opencv-python-headless", "av", "grain")
MISSING = "missing"


def package_versions() -> dict[str, str]:
  """Versions of PACKAGES by name; MISSING where one is not installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = MISSING
  return found


@functools.cache
def _versions() -> dict[str, str]:
  return {"deepscan_jax": __version__, "python": platform.python_version(), **package_versions()}


def versions() -> dict[str, str]:
  """Versions of deepscan_jax, Python and PACKAGES by name, as this process runs them."""
  return dict(_versions())


def device() -> dict[str, str]:
  """Where JAX computes: "device", such as "cpu" or "NVIDIA H100", and "matmul_precision", an option of
  JAX, as set or "default".

  By default accelerators shorten factors, and scores move with it.
  """
  import jax

  first = jax.devices()[0]
  return {
    "device": first.platform if first.platform == "cpu" else first.device_kind,
    "matmul_precision": jax.config.jax_default_matmul_precision or "default",
  }
