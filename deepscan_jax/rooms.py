"""Finds the rooms that lie beside the library: experiments/, datasets/ and launch/.

Installed, they are deepscan_jax.experiments and so on (setup.py says why); in a bare checkout they are
top-level folders.
"""

import importlib
from pathlib import Path
from types import ModuleType


def import_room(name: str) -> ModuleType:
  """Returns the module `name`, such as "experiments" or "datasets.real_only", wherever it lies."""
  try:
    return importlib.import_module(f"deepscan_jax.{name}")
  except ModuleNotFoundError as error:
    if not error.name or not f"deepscan_jax.{name}".startswith(error.name):
      raise  # The room is there, and something that it needs is not.
    return importlib.import_module(name)


def find_builder(name: str) -> tuple[type, str | None]:
  """Returns (builder class, config) of a dataset by its name, such as "dfdc" or "faceforensics/c23".

  Args:
    name: a folder in datasets/, and after a slash a config: one of the builder's own or the name of
      a collection, the form of the examples, or both (datasets/media_builder.py); without it the config is
      None.

  Raises:
    ValueError: there is no such dataset or config; the sentence names those that there are.
  """
  known = sorted(
    path.parent.name for path in Path(import_room("datasets").__path__[0]).glob("*/*_dataset_builder.py")
  )
  dataset, _, config = name.partition("/")
  if dataset not in known:
    raise ValueError(f"Unknown dataset {dataset!r}; there are {', '.join(known)}.")
  builder_class = import_room(f"datasets.{dataset}.{dataset}_dataset_builder").Builder
  builder_class.form_of(config)
  return builder_class, config or None
