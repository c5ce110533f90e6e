"""Names and answers of files as text, whatever the files are called."""

from collections.abc import Mapping

from deepscan_jax.verdict import SCHEMA_VERSION


def unread(path: bytes, *, code: str, message: str) -> dict:
  """What stands in the place of a verdict, see report.Unread."""
  name = path_text(path.rpartition(b"/")[2])
  return {
    "schema_version": SCHEMA_VERSION,
    "file": {"name": name},
    "error": {"code": code, "message": message},
  }


def path_text(path: bytes) -> str:
  """A path as text; bytes that are no UTF-8 become escapes such as \\xff."""
  return path.decode("utf-8", "backslashreplace")


def legible(value):
  """Plain values without what is no text: bytes of names that are no UTF-8 become escapes such as \\xff."""
  if isinstance(value, str):
    return "".join(_spelled(c) if "\ud800" <= c <= "\udfff" else c for c in value)
  if isinstance(value, Mapping):
    return {legible(key): legible(item) for key, item in value.items()}
  return [legible(item) for item in value] if isinstance(value, list | tuple) else value


def _spelled(surrogate: str) -> str:
  code = ord(surrogate)
  return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
