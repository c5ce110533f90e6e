"""Keeps compiled programs between two runs of the command line, in a folder that nobody else can write to.

There are two ways. `switch_on` is JAX's own: it spares the compiler, for whatever a verb compiles, but every
program has still to be traced in Python before JAX knows what it is. `keep_programs` spares the tracing as
well, for the few programs that the detector runs: they are found again by the sources of this package, the
versions, the environment and the machine that they were made from.

What lies in the folder is run as machine code, and unpickled: a folder that others can write to would let
them run theirs. Each kind of processor has a folder of its own, for a home may be shared between machines.
"""

import functools
import hashlib
import logging
import os
import pickle
import platform
import stat
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepscan_jax.files import whole_file

if TYPE_CHECKING:
  import jax

# What a program may depend on beside the sources: packages, and settings of JAX and its compiler.
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_SETTINGS = ("CUDA_", "JAX_", "LIBTPU_", "TF_", "XLA_")
# Programs of one name that are kept, the latest: each change of code, versions or settings makes another.
_KEPT_OF_A_NAME = 4

_programs_folder: Path | None = None
# Compiling and writing, beside the caller.
_compilers = ThreadPoolExecutor(5, thread_name_prefix="compiler")
_writing: list[Future] = []


def default_folder() -> Path:
  """Where compiled programs are kept unless the user says otherwise: below XDG_CACHE_HOME, or ~/.cache.

  Raises:
    FileNotFoundError: this user has no home folder, as in some containers.
  """
  root = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(root):
    try:
      root = Path.home() / ".cache"
    except RuntimeError as error:
      raise FileNotFoundError("This user has no home folder; set HOME or XDG_CACHE_HOME.") from error
  return Path(root) / "deepscan_jax" / "compiled"


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
  folder, warning = _machine_folder(choice)
  if folder is None:
    return warning

  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder))
  # Everything is worth keeping: the many small programs of a cold start take as long as the large one.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return ""


def keep_programs(choice: str | None = None) -> str:
  """Makes `compiling` and `loaded` keep what they make in a private folder; arguments and returns as of
  `switch_on`.

  Not beside JAX's own cache: what JAX took from there cannot be kept once more (it loads, but does not run),
  so while that cache is on, nothing new is kept.
  """
  global _programs_folder
  _programs_folder, warning = _machine_folder(choice)

  import jax

  # Where each operation was written down is for those who read the program; it takes a tenth of the tracing.
  jax.config.update("jax_traceback_in_locations_limit", 0)
  return warning


def compiling(name: str, lower: "Callable[[], jax.stages.Lowered]", *, facts: str) -> "Future":
  """Returns a future jax.stages.Compiled for the first local device: the one that was kept, or a new one.

  A new one is traced at once, in the caller's thread, and compiled in another: tracing is Python, which runs
  one thread at a time, while the compiler needs none of it. Who wants several should ask for those first that
  take long to compile.

  Args:
    name: of the program, made of letters, digits, "_" and "-".
    lower: traces it; called where none was kept.
    facts: what the program depends on beside this package's sources, such as its shapes.
  """
  path = _path(name, facts)
  if path is not None and path.is_file():
    return _compilers.submit(lambda: _read(path, _load_program) or _compile(lower(), path))
  return _compilers.submit(_compile, lower(), path)


def loaded(name: str, load: Callable[[], Any], *, facts: str) -> Any:
  """Returns a tree of arrays on the first local device: as it was kept, or from load().

  Args:
    name: of the tree, as in `compiling`.
    load: gives a tree of jax arrays, made of dicts, lists and tuples; called where none was kept.
    facts: what the arrays depend on beside this package's sources.
  """
  import jax

  path = _path(name, facts)
  kept = None if path is None else _read(path, pickle.loads)
  if kept is not None:
    return jax.device_put(kept, jax.local_devices()[0])
  tree = load()
  if path is not None:
    _writing.append(_compilers.submit(_write, path, lambda: pickle.dumps(jax.device_get(tree), protocol=5)))
  return tree


def finish() -> None:
  """Waits until everything that `loaded` is to keep is written."""
  while _writing:
    _writing.pop().result()


def _machine_folder(choice: str | None) -> tuple[Path | None, str]:
  """The folder for this kind of processor, or None and, where it is not the user's wish, why."""
  if choice == "none":
    return None, ""
  try:
    folder = private_folder(Path(choice) if choice else default_folder())
    return private_folder(folder / _processor()), ""
  except (OSError, ValueError) as error:
    if choice:
      raise
    told = isinstance(error, OSError) and error.filename is not None
    why = f"{error.filename} cannot be used: {error.strerror}." if told else str(error)
    return None, f"Going on without a compilation cache. {why}"


def _processor() -> str:
  """A name for processors that run the same machine code."""
  if sys.platform == "linux":
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    # Not its clock, which changes all the time.
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
    about = [line for line in first.splitlines() if line.startswith(wanted)]
  else:
    about = [platform.processor()]
  return f"{platform.machine()}-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}"


def _path(name: str, facts: str) -> Path | None:
  if _programs_folder is None:
    return None
  key = hashlib.sha256(f"{_circumstances()} {facts}".encode()).hexdigest()
  return _programs_folder / f"{name}-{key[:24]}.kept"


@functools.cache
def _circumstances() -> str:
  """Everything that all programs depend on, as one hash."""
  import jax

  sources = hashlib.sha256()
  package = Path(__file__).parent
  for path in sorted(package.rglob("*.py")):
    sources.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode())
    sources.update(path.read_bytes())
  device = jax.local_devices()[0]
  about = (
    sources.hexdigest(),
    sys.version,
    {name: _version(name) for name in _PACKAGES},
    {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    # The compiler divides the work for so many threads.
    (device.platform, device.device_kind, device.client.platform_version, os.cpu_count()),
  )
  return hashlib.sha256(repr(about).encode()).hexdigest()


def _version(package: str) -> str:
  try:
    return version(package)
  except PackageNotFoundError:
    return "none"


def _jax_cache_is_on() -> bool:
  import jax

  return jax.config.jax_compilation_cache_dir is not None


def _compile(lowered: "jax.stages.Lowered", path: Path | None) -> "jax.stages.Compiled":
  program = lowered.compile()
  if path is not None and not _jax_cache_is_on():
    _write(path, lambda: _pack_program(program))
  return program


def _pack_program(program: "jax.stages.Compiled") -> bytes:
  from jax.experimental import serialize_executable

  return pickle.dumps(serialize_executable.serialize(program))


def _load_program(data: bytes) -> "jax.stages.Compiled":
  import jax
  from jax.experimental import serialize_executable

  return serialize_executable.deserialize_and_load(
    *pickle.loads(data), execution_devices=jax.local_devices()[:1]
  )


def _read(path: Path, unpack: Callable[[bytes], Any]) -> Any:
  """What was kept, None where nothing was; a file that is damaged is as good as none."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:
    logging.warning("%s cannot be read (%s) and is made anew.", path, error)
    return None
  digest, packed = data[:32], memoryview(data)[32:]
  if hashlib.sha256(packed).digest() == digest:
    try:
      return unpack(packed)
    except Exception as error:  # JAX promises nothing of what it wrote under another of its builds
      logging.warning("%s cannot be used (%s) and is made anew.", path, error)
  return None


def _write(path: Path, pack: Callable[[], bytes]) -> None:
  """Keeps what pack() gives; failing is no error, for the cache is only there to save time."""
  try:
    packed = pack()
    with whole_file(path, durable=False) as file:
      file.write(hashlib.sha256(packed).digest() + packed)
    others = path.parent.glob(f"{path.name.rpartition('-')[0]}-{'?' * 24}.kept")
    for old in sorted(others, key=lambda other: -other.stat().st_mtime)[_KEPT_OF_A_NAME:]:
      old.unlink(missing_ok=True)
  except Exception as error:  # a full disk, or a device whose programs JAX cannot write
    logging.warning("%s is not kept (%s); the next start takes as long as this one.", path.name, error)
