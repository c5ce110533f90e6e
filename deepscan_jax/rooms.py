"""Finds the rooms that lie beside the library: experiments/, datasets/ and launch/.

Installed, they are deepscan_jax.experiments and so on (setup.py says why); in a bare checkout they are
top-level folders.
"""

import importlib
from types import ModuleType


def import_room(name: str) -> ModuleType:
  """Returns the module `name`, such as "experiments" or "datasets.real_only", wherever it lies."""
  try:
    return importlib.import_module(f"deepscan_jax.{name}")
  except ModuleNotFoundError as error:
    if not error.name or not f"deepscan_jax.{name}".startswith(error.name):
      raise  # The room is there, and something that it needs is not.
    return importlib.import_module(name)
