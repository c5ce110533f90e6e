"""Receives files of strangers: one at a time from a form, to a random name, counted, hashed and looked at.

A form is read as it comes in, and nothing of it but the one file is kept, at no time in a second place: the
form readers of web frameworks store every part first, before anybody has been asked for a key.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from deepscan_jax.serve.problems import Problem

FOLDER = "deepscan-uploads"
# What a form may hold besides its file: the lines around it.
FORM_BYTES = 16 << 10
_HEADER_BYTES = 8 << 10
_LONGEST_NAME = 255
_WRITE_BYTES = 1 << 20
# Enough of a file to see what it is.
_LOOK_BYTES = 64
_LOCK = "lock"

_ISO = ("mp4", "mov", "m4v", "m4a", "3gp")
# Extension: kinds that it may be sent as, what its first bytes say (one of `_family`), and how FFmpeg or
# Pillow calls the container.
TYPES: dict[str, tuple[tuple[str, ...], str, str]] = {
  **{ext: (("video",), "iso", "mov,mp4,m4a,3gp,3g2,mj2") for ext in ("mp4", "mov", "m4v", "3gp")},
  "m4a": (("audio",), "iso", "mov,mp4,m4a,3gp,3g2,mj2"),
  "avi": (("video",), "avi", "avi"),
  "mkv": (("video",), "matroska", "matroska,webm"),
  # What a browser records has this name with and without pictures.
  "webm": (("video", "audio"), "matroska", "matroska,webm"),
  "mpg": (("video",), "mpeg", "mpeg"),
  "mpeg": (("video",), "mpeg", "mpeg"),
  "jpg": (("image",), "jpeg", "jpeg"),
  "jpeg": (("image",), "jpeg", "jpeg"),
  "png": (("image",), "png", "png"),
  "webp": (("image",), "webp", "webp"),
  "wav": (("audio",), "wav", "wav"),
  "mp3": (("audio",), "mp3", "mp3"),
  "flac": (("audio",), "flac", "flac"),
  "ogg": (("audio",), "ogg", "ogg"),
  "opus": (("audio",), "ogg", "ogg"),
}
# FFmpeg calls a stream without a container otherwise; phones' pictures may be JPEG with a second one behind.
_ALSO = {"mpeg": ("mpegvideo",), "jpeg": ("mpo",)}

logger = logging.getLogger(__name__)


def extensions(kind: str) -> list[str]:
  """The extensions that files of a kind may have."""
  return [extension for extension, (kinds, _, _) in TYPES.items() if kind in kinds]


@dataclasses.dataclass(frozen=True)
class Upload:
  """A received file.

  Attributes:
    path: where it lies, under a random name.
    name: as the client called it, without folders and control characters; for people only.
    extension: of TYPES.
    kind: "video", "image" or "audio", as it was sent.
    size: bytes.
    sha256: hexadecimal digits.
  """

  path: Path
  name: str
  extension: str
  kind: str
  size: int
  sha256: str

  def check_answer(self, answer: dict) -> None:
    """As `check_decoded`, by the JSON of a verdict."""
    file = answer["file"]
    self.check_decoded(kind=file["kind"], container=(file["media"] or {}).get("container"))

  def check_decoded(self, *, kind: str, container: str | None) -> None:
    """Compares what the decoder found with what the file was sent as.

    Raises:
      Problem: it is something else.
    """
    if kind != self.kind:
      raise Problem(
        "wrong_kind",
        f"This was sent as {_A[self.kind]} and is {_A.get(kind, kind)}.",
        remedy=f"Send it to /api/v1/detect/{kind}.",
      )
    _, family, wanted = TYPES[self.extension]
    if container is not None and container not in (wanted, *_ALSO.get(family, ())):
      raise Problem("type_mismatch", f"A file named .{self.extension} cannot hold {container[:40]}.")


_A = {"video": "a video", "image": "a picture", "audio": "sound"}


class UploadFolder:
  """A private folder of this process for received files; what a process that died has left is removed.

  Args:
    temp_dir: where to make it; it has to be there.
    keep: a folder that keeps every file, by hash; None keeps none.
    idle_s, whole_s: how long an upload may stand still, and take.
  """

  def __init__(
    self, temp_dir: Path, *, keep: Path | None = None, idle_s: float = 30.0, whole_s: float = 900.0
  ):
    parent = temp_dir / f"{FOLDER}-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    state = parent.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or parent.is_symlink():
      raise ValueError(f"{parent} is not a private folder of this user; remove it.")
    self._keep, self._idle_s, self._whole_s = keep, idle_s, whole_s
    if keep is not None:
      keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    self.path = parent / secrets.token_hex(8)
    self.path.mkdir(mode=0o700)
    # Held as long as this process lives, however it ends.
    self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Names, without extension, of files that belong to a request.
    self._open: set[str] = set()

  def close(self) -> None:
    """Removes the folder with all that is in it."""
    if self._lock is not None:
      shutil.rmtree(self.path, ignore_errors=True)
      os.close(self._lock)
      self._lock = None

  def clean(self) -> int:
    """Removes folders of processes that died, and files here that belong to no request; returns how many."""
    removed = 0
    for folder in self.path.parent.iterdir():
      if folder != self.path and _is_abandoned(folder):
        shutil.rmtree(folder, ignore_errors=True)
        removed += 1
    for path in self.path.iterdir():
      if path.name != _LOCK and path.stem not in self._open:
        with contextlib.suppress(FileNotFoundError):
          path.unlink()
          removed += 1
    return removed

  def free_bytes(self) -> int:
    """Bytes that the disk has left."""
    return shutil.disk_usage(self.path).free

  @contextlib.asynccontextmanager
  async def receive(self, request: Request, *, kind: str, most_bytes: int) -> AsyncIterator["Received"]:
    """Receives the one file of a form; it is there until the block ends, or it is removed.

    Args:
      request: multipart/form-data with one file in the field that is named like its kind.
      kind: "video", "image" or "audio".
      most_bytes: of the file.

    Raises:
      Problem: it is not such a form, or the file is too large, or not what its name says.
    """
    path = self.path / secrets.token_hex(16)
    self._open.add(path.stem)
    form = _Form(path, kind=kind, most_bytes=most_bytes)
    try:
      await self._read(request, form)
      yield Received(form, keep=None if self._keep is None else self._keep_copy)
    finally:
      form.remove()
      self._open.discard(path.stem)

  async def _read(self, request: Request, form: "_Form") -> None:
    parser = _parser(request.headers.get("content-type", ""), form)
    chunks = request.stream().__aiter__()
    ends_s = anyio.current_time() + self._whole_s
    try:
      with anyio.fail_after(min(self._idle_s, self._whole_s)) as patience:
        async for chunk in chunks:
          form.count(len(chunk))
          parser.write(chunk)
          if form.pending >= _WRITE_BYTES:
            await anyio.to_thread.run_sync(form.write)
          patience.deadline = min(anyio.current_time() + self._idle_s, ends_s)
        parser.finalize()
    except TimeoutError as error:
      raise Problem("slow_upload", "The file did not arrive in time.", headers=_CLOSE) from error
    except FormParserError as error:
      raise Problem("bad_multipart", "The form is broken or cut off.", headers=_CLOSE) from error
    finally:
      await chunks.aclose()

  def _keep_copy(self, upload: Upload) -> None:
    target = self._keep / f"{upload.sha256}.{upload.extension}"
    if target.exists():
      return
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
      shutil.copyfile(upload.path, part)
      part.chmod(0o600)
      part.replace(target)
    finally:
      part.unlink(missing_ok=True)


# What was not read yet is not worth reading.
_CLOSE = {"Connection": "close"}


class Received:
  """A form that was received, of which the last part may still have to be written.

  Args:
    form: read to its end.
    keep: called with the Upload before anybody has it; None: nobody wants a copy.
  """

  def __init__(self, form: "_Form", *, keep: Callable[[Upload], None] | None):
    self._form, self._keep = form, keep

  def upload(self) -> Upload:
    """The file; on a thread.

    Raises:
      Problem: it is empty, cut off, or not what its name says.
    """
    upload = self._form.finish()
    if self._keep is not None:
      self._keep(upload)
    return upload

  def remove(self) -> None:
    """Deletes the file before the block ends; on a thread."""
    self._form.remove()


class _Form:
  """Callbacks of the form's parser, and the file that they fill."""

  def __init__(self, path: Path, *, kind: str, most_bytes: int):
    self.path, self._kind, self._most_bytes = path, kind, most_bytes
    self._file, self._digest, self._beginning = None, hashlib.sha256(), b""
    self._buffer, self._received, self.size = bytearray(), 0, 0
    self._headers: dict[bytes, bytes] = {}
    self._field, self._value = b"", b""
    self.name, self.extension, self._parts = "", "", 0
    self._looked_at = self._ended = self._is_there = False

  def count(self, size: int) -> None:
    """Counts received bytes, the form's own lines too."""
    self._received += size
    if self._received > self._most_bytes + FORM_BYTES:
      raise self.too_large()

  def too_large(self) -> Problem:
    most = f"{self._most_bytes / 1e6:g} MB" if self._most_bytes >= 1e5 else f"{self._most_bytes} bytes"
    return Problem("too_large", f"The file is larger than {most}, the most for {self._kind}.", headers=_CLOSE)

  @property
  def pending(self) -> int:
    """Bytes that `write` would write."""
    return len(self._buffer)

  def on_part_begin(self) -> None:
    self._parts += 1
    if self._parts > 1:
      raise Problem("unexpected_field", "The form holds more than one part.", headers=_CLOSE)

  def on_header_field(self, data: bytes, start: int, end: int) -> None:
    self._field += data[start:end]
    self._bound()

  def on_header_value(self, data: bytes, start: int, end: int) -> None:
    self._value += data[start:end]
    self._bound()

  def _bound(self) -> None:
    if len(self._field) + len(self._value) > _HEADER_BYTES or len(self._headers) > 16:
      raise Problem("bad_multipart", "The form's headers are too long.", headers=_CLOSE)

  def on_header_end(self) -> None:
    self._headers[self._field.lower()] = self._value
    self._field, self._value = b"", b""

  def on_headers_finished(self) -> None:
    _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
    field = options.get(b"name", b"").decode("utf-8", "replace")
    if field != self._kind or b"filename" not in options:
      raise Problem(
        "missing_file",
        f"There is no file in the field {self._kind!r}.",
        remedy=f"Send it as: curl -F {self._kind}=@FILE",
        headers=_CLOSE,
      )
    self.name = shown_name(options[b"filename"].decode("utf-8", "replace"))
    self.extension = Path(self.name).suffix.removeprefix(".").lower()
    if self.extension not in TYPES or self._kind not in TYPES[self.extension][0]:
      raise Problem(
        "unknown_extension",
        f"The name of the file does not end in an extension of {self._kind} files.",
        remedy=f"Accepted are {', '.join(extensions(self._kind))}.",
        headers=_CLOSE,
      )

  def on_end(self) -> None:
    self._ended = True

  def on_part_data(self, data: bytes, start: int, end: int) -> None:
    self.size += end - start
    if self.size > self._most_bytes:
      raise self.too_large()
    self._buffer += data[start:end]
    if not self._looked_at and self.size >= _LOOK_BYTES:
      self._look()

  def _look(self) -> None:
    self._looked_at = True
    found, wanted = _family(bytes(self._buffer[:_LOOK_BYTES])), TYPES[self.extension][1]
    if found != wanted:
      seems = f"; it begins like {found} files do" if found else ""
      raise Problem(
        "type_mismatch", f"This is not a .{self.extension} file by its content{seems}.", headers=_CLOSE
      )

  def write(self) -> None:
    """Writes what has come in; on a thread."""
    if self._file is None:
      self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
      self._is_there = True
    rest = memoryview(bytes(self._buffer))
    self._buffer.clear()
    self._digest.update(rest)
    while rest:
      rest = rest[os.write(self._file, rest) :]

  def finish(self) -> Upload:
    """The received file; on a thread."""
    if not self._ended:
      raise Problem("bad_multipart", "The form is cut off.")
    if not self._parts:
      raise Problem(
        "missing_file",
        f"There is no file in the field {self._kind!r}.",
        remedy=f"Send it as: curl -F {self._kind}=@FILE",
      )
    if not self.size:
      raise Problem("empty_file", "The file is empty.")
    if not self._looked_at:
      self._look()
    self.write()
    self.close()
    # The extension is one of ours by now; the decoder's answers and logs show it.
    named = self.path.with_name(f"{self.path.name}.{self.extension}")
    self.path.rename(named)
    self.path = named
    return Upload(named, self.name, self.extension, self._kind, self.size, self._digest.hexdigest())

  def close(self) -> None:
    """Closes the file; more than once does no harm."""
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def remove(self) -> None:
    """Deletes the file, if one was written; more than once does no harm."""
    self.close()
    if self._is_there:
      self.path.unlink(missing_ok=True)
      self._is_there = False


def _parser(content_type: str, form: _Form) -> MultipartParser:
  media_type, options = parse_options_header(content_type)
  if media_type != b"multipart/form-data":
    raise Problem(
      "unsupported_media_type",
      "The request is not multipart/form-data.",
      remedy=f"Send it as: curl -F {form._kind}=@FILE",
      headers=_CLOSE,
    )
  boundary = options.get(b"boundary", b"")
  if not re.fullmatch(rb"[ -~]{1,70}", boundary):
    raise Problem("bad_multipart", "The form's boundary is missing or too long.", headers=_CLOSE)
  names = ("on_part_begin", "on_part_data", "on_header_field", "on_header_value", "on_header_end", "on_end")
  callbacks = {name: getattr(form, name) for name in (*names, "on_headers_finished")}
  return MultipartParser(boundary, callbacks)


def shown_name(sent: str) -> str:
  """A client's file name as it may be shown: no folders, no control or direction characters, not long."""
  name = re.split(r"[/\\]", sent)[-1]
  name = "".join(c for c in name if unicodedata.category(c)[0] != "C").strip()
  stem, dot, extension = name.rpartition(".")
  if len(name) > _LONGEST_NAME:
    name = stem[: _LONGEST_NAME - len(extension) - 1] + dot + extension[-20:]
  return name


def _family(beginning: bytes) -> str | None:
  """What the first bytes of a file say that it is; None for nothing that is known."""
  if beginning[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
    return "iso"
  if beginning[:4] == b"RIFF":
    return {b"AVI ": "avi", b"WAVE": "wav", b"WEBP": "webp"}.get(beginning[8:12])
  for prefix, family in (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpeg"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"ID3", "mp3"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
  ):
    if beginning.startswith(prefix):
      return family
  # A frame of MPEG sound: eleven bits set, layer III.
  if len(beginning) > 1 and beginning[0] == 0xFF and beginning[1] & 0xE6 == 0xE2:
    return "mp3"
  return None


def _is_abandoned(folder: Path) -> bool:
  """Whether the process of a folder is gone: nobody holds its lock."""
  try:
    lock = os.open(folder / _LOCK, os.O_RDWR)
  except OSError:
    # One that is being made has none for a moment.
    with contextlib.suppress(OSError):
      return folder.is_dir() and not any(folder.iterdir()) and _age_s(folder) > 60
    return False
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  finally:
    os.close(lock)
  return True


def _age_s(path: Path) -> float:
  return time.time() - path.stat().st_mtime
