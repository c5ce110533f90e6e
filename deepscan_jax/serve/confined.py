"""Opens what lies below configured folders, and nothing else, whatever links and names say.

A folder that others may write to changes while one looks: a check of a path and its use are two moments. So
nothing here is opened by its path. Each folder is opened by its name from the one above, already open, and no
link is followed, not even one that stays inside; what is open can be renamed and replaced, and stays what it
was. The real path of what was opened is compared with the one that was asked for, where the system tells it.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepscan_jax.serve.jobs import file_state

# Folders in folders that are looked into; each costs an open file.
DEEPEST = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Non-blocking, or a named pipe would hang here.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class OutsideError(Exception):
  """There is no such folder or file below the roots, or a link is in the way; which of it is not told."""


@contextlib.contextmanager
def opened_folder(roots: Sequence[Path], asked: str | bytes) -> Iterator["Folder"]:
  """The folder that was asked for, open until the block ends.

  Args:
    roots: folders that are allowed, with all below them. They may be links: who configures may choose.
    asked: an absolute path below one of them, or one relative to the root where there is only one.

  Raises:
    OutsideError: there is no such folder below the roots.
  """
  root, parts = _below(roots, _name(asked))
  try:
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  except OSError as error:
    raise OutsideError from error
  try:
    real_root = _real_path(handle)
    for part in parts:
      inside = _open(part, _FOLDER, handle)
      os.close(handle)
      handle = inside
    real = _real_path(handle)
    if real is not None and real != os.path.join(real_root, *parts):
      raise OutsideError
    yield Folder(handle, os.path.join(root, *parts))
  finally:
    os.close(handle)


class Folder:
  """A folder that is open.

  Attributes:
    path: its absolute path, as bytes, with which `opened_folder` opens it again.
  """

  def __init__(self, handle: int, path: bytes):
    self._handle, self.path = handle, path

  def files(self, wanted: Sequence[str], *, recursive: bool) -> Iterator[tuple[bytes, str]]:
    """Yields path, relative to the folder, and state of each file with one of the extensions, in order.

    Links, and what cannot be opened, are left out.
    """
    ends = tuple(word.encode() for word in wanted)
    handle = os.dup(self._handle)
    try:
      yield from _files(handle, b"", ends, DEEPEST if recursive else 0)
    finally:
      os.close(handle)

  @contextlib.contextmanager
  def opened_file(self, path: bytes) -> Iterator[str]:
    """A path to what a relative path leads to now, which stays that file until the block ends.

    Raises:
      OutsideError: there is no such file, or a link is in the way.
    """
    *folders, name = _parts(path)
    handle = os.dup(self._handle)
    try:
      for part in folders:
        inside = _open(part, _FOLDER, handle)
        os.close(handle)
        handle = inside
      file = _open(name, _FILE, handle)
    finally:
      os.close(handle)
    try:
      if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OutsideError
      yield path_of(file)
    finally:
      os.close(file)


def path_of(handle: int) -> str:
  """A path by which processes of this user can open what is open here."""
  own = f"/proc/{os.getpid()}/fd/{handle}"
  return own if os.path.exists(own) else f"/dev/fd/{handle}"


def _files(handle: int, folder: bytes, ends: tuple[bytes, ...], deeper: int) -> Iterator[tuple[bytes, str]]:
  with os.scandir(handle) as found:
    names = sorted(os.fsencode(entry.name) for entry in found)
  inside = []
  for name in names:
    try:
      facts = os.stat(name, dir_fd=handle, follow_symlinks=False)
    except OSError:
      continue  # It went while we looked.
    if stat.S_ISDIR(facts.st_mode):
      inside.append(name)
    elif stat.S_ISREG(facts.st_mode) and name.lower().endswith(ends):
      yield os.path.join(folder, name), file_state(facts)
  for name in inside if deeper else ():
    try:
      below = _open(name, _FOLDER, handle)
    except OutsideError:
      continue
    try:
      yield from _files(below, os.path.join(folder, name), ends, deeper - 1)
    finally:
      os.close(below)


def _name(asked: str | bytes) -> bytes:
  try:
    return os.fsencode(asked)
  except UnicodeEncodeError as error:
    raise OutsideError from error


def _below(roots: Sequence[Path], asked: bytes) -> tuple[bytes, list[bytes]]:
  """The root, and the names from there."""
  for root in roots:
    root = os.fsencode(root.absolute())
    if asked == root or asked.startswith(root.rstrip(b"/") + b"/"):
      return root, _parts(asked[len(root) :])
  if len(roots) == 1 and not asked.startswith(b"/"):
    return os.fsencode(roots[0].absolute()), _parts(asked)
  raise OutsideError


def _parts(path: bytes) -> list[bytes]:
  parts = [part for part in path.split(b"/") if part not in (b"", b".")]
  if b".." in parts or b"\0" in path:
    raise OutsideError
  return parts


def _open(name: bytes, flags: int, folder: int) -> int:
  try:
    return os.open(name, flags, dir_fd=folder)
  except OSError as error:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
      raise
    raise OutsideError from error


def _real_path(handle: int) -> bytes | None:
  """Where an open folder lies now; None where the system does not tell."""
  try:
    return os.readlink(f"/proc/self/fd/{handle}".encode())
  except OSError:
    return None
