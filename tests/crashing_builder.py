"""A builder whose decoder dies of some files, as one that is written in C may."""

import os
import signal
from pathlib import Path

from deepscan_jax.rooms import import_room


class CrashingBuilder(
  import_room("datasets.real_only.real_only_dataset_builder").Builder, skip_registration=True
):
  """As real_only; a file named ..._1.png kills its process, one named ..._2.png does so the first time."""

  def _examples_of(self, files):
    for file in files:
      name = file.path.name
      before = Path(f"{file.path}.seen")
      if name.endswith("_1.png") or (name.endswith("_2.png") and not before.exists()):
        before.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return super()._examples_of(files)
