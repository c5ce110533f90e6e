"""Keeps compiled programs between two runs of the command line, in a folder that nobody else can write to.

What lies in the folder is run as machine code: a folder that others can write to would let them run theirs.
"""

import os
import stat
from pathlib import Path


def default_folder() -> Path:
  """Where compiled programs are kept unless the user says otherwise: below XDG_CACHE_HOME, or ~/.cache."""
  root = os.environ.get("XDG_CACHE_HOME", "")
  return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "deepscan_jax" / "compiled"


def private_folder(path: Path) -> Path:
  """Returns the resolved folder, made (mode 0700) where missing, once it is known to be ours alone to write.

  Raises:
    ValueError: it is no folder, another user owns it, or other users may write to it.
    OSError: it cannot be made.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  path.mkdir(mode=0o700, exist_ok=True)
  path = path.resolve(strict=True)
  facts = path.stat()
  if not stat.S_ISDIR(facts.st_mode):
    raise ValueError(f"The compilation cache {path} is not a folder.")
  if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
    raise ValueError(f"The compilation cache {path} belongs to another user; choose a folder of your own.")
  if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise ValueError(
      f"Others may write to the compilation cache {path}; `chmod 700 {path}` makes it private."
    )
  if not os.access(path, os.W_OK):
    raise PermissionError(f"The compilation cache {path} cannot be written.")
  return path


def switch_on(choice: str | None = None) -> str:
  """Makes JAX read and write compiled programs in a private folder; call it before anything is compiled.

  Args:
    choice: the folder; None is `default_folder()`, "none" leaves the cache off.

  Returns:
    A sentence where the default folder cannot be used and the cache stays off; empty otherwise.

  Raises:
    ValueError, OSError: the chosen folder is not private, or cannot be made.
  """
  if choice == "none":
    return ""
  try:
    folder = private_folder(Path(choice) if choice else default_folder())
  except (OSError, ValueError) as error:
    if choice:
      raise
    return f"Going on without a compilation cache. {error}"

  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder))
  # Everything is worth keeping: the many small programs of a cold start take as long as the large one.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return ""
