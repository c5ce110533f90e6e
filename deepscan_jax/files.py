"""Files that appear whole or not at all, whenever the process that writes them ends; locks; torn archives."""

import contextlib
import errno
import fcntl
import json
import lzma
import os
import secrets
import tarfile
import zlib
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def locked(path: str | Path, *, busy: str) -> Iterator[int]:
  """A lock that one process has at a time, or its children to which the yielded descriptor is passed.

  Args:
    path: of the lock's file, which is made and stays; its folder is there.
    busy: the sentence of the error where another process has it.

  Raises:
    ValueError: another process has it.
  """
  with Path(path).open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise
      raise ValueError(busy) from error
    yield file.fileno()


def claim_folder(folder: Path, made_with: Mapping[str, object], *, what: str) -> None:
  """Makes a folder that one set of settings fills, and writes down in made_with.json what they are.

  Args:
    folder: to make, or to go on with.
    made_with: what everything in it depends on, JSON-able.
    what: it holds, for the message.

  Raises:
    ValueError: it holds what others have made, or something else.
  """
  file = folder / "made_with.json"
  if file.is_file():
    there = json.loads(file.read_text(encoding="utf-8"))
    if changed := [key for key, value in there.items() if made_with.get(key) != value]:
      raise ValueError(
        f"{folder} holds {what} that were made with another {' and '.join(changed)}; choose another --output."
      )
  elif folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder} holds something else; choose another --output.")
  folder.mkdir(parents=True, exist_ok=True)
  write_whole(file, json.dumps(made_with, indent=2) + "\n")


@contextlib.contextmanager
def reading_tar(path: str | Path) -> Iterator[None]:
  """Whatever tarfile raises in the block because of what the archive holds becomes one sentence.

  Raises:
    ValueError: it is damaged or cut off.
  """
  try:
    yield
  except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
    raise ValueError(f"The tar file {path} is damaged or cut off; copy or download it again.") from error
