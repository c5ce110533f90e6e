"""Files that appear whole or not at all, whenever the process that writes them ends."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# How the names of files end that are being written; a process that is killed leaves one behind.
PARTIAL = ".tmp"


@contextlib.contextmanager
def whole_file(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
  """A binary file to write, which appears under its name at the end of the block, or not at all.

  Until then, and after an error in the block, there is what was there before. Several processes may write the
  same file at once: the last one to end wins.

  Args:
    path: the file; its folder is there.
    durable: it reaches the disk before it appears, so that a loss of power leaves the old or the new one too.

  Raises:
    OSError: it cannot be written.
  """
  path = Path(path)
  # Hidden beside it. Not of tempfile, whose files their owner alone may read, whatever the umask is.
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
  try:
    with part.open("xb") as file:
      yield file
      if durable:
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


def write_whole(path: str | Path, text: str, *, durable: bool = True) -> None:
  """Writes a text file as UTF-8, see `whole_file`."""
  with whole_file(path, durable=durable) as file:
    file.write(text.encode())
