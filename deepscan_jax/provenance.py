"""Says what a file is, whoever made it: its name, size, hash, and what its container tells about itself."""

import hashlib
import os
from pathlib import Path

from deepscan_jax.media import Budget, Clip, MediaError, SamplingPlan, decode_clip


def file_sha256(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits; reads it in pieces, so any size will do.

  Raises:
    MediaError: the file is missing or cannot be read.
  """
  try:
    with open(path, "rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()
  except FileNotFoundError as error:
    raise MediaError("missing_file", f"There is no file {Path(path).name}; check the path.") from error
  except OSError as error:
    raise MediaError(
      "unreadable", f"{Path(path).name} cannot be read ({error.strerror}); check its permissions."
    ) from error


def file_facts(path: str | os.PathLike, *, clip: Clip | None = None) -> dict:
  """Returns {name, bytes, sha256, container} of a file, all JSON-able; the name is without its folders.

  Args:
    path: the file.
    clip: what decode_clip made of the file; its facts become `container`, which is None without it.

  Raises:
    MediaError: the file is missing or cannot be read.
  """
  digest = file_sha256(path)
  return {
    "name": Path(path).name,
    "bytes": Path(path).stat().st_size,
    "sha256": digest,
    "container": dict(clip.facts) if clip is not None else None,
  }


def inspect_file(
  path: str | os.PathLike,
  *,
  budget: Budget = Budget(),  # noqa: B008 - immutable
  trusted: bool = False,
) -> dict:
  """Returns file_facts with the container's facts filled in, decoding one frame to be sure that it decodes.

  Raises:
    MediaError: as decode_clip does.
  """
  clip = decode_clip(path, plan=SamplingPlan(frame_count=1), budget=budget, trusted=trusted)
  return file_facts(path, clip=clip)
