"""Finds and runs a verb: `deepscan VERB`, `python -m launch VERB` and `python -m launch.VERB` are the same.

A verb is a module of this package that has a function `main(argv)`. Its flags are absl flags, its docstring
is its help: the first line stands in the list of verbs. At its end it says

    if __name__ == "__main__":
      from .__main__ import run_module

      run_module(__name__)

Only one verb runs in a process, but tests import them all: a flag that several verbs have is defined with
allow_override=True.

What `main` returns is the exit code (None is 0). A ValueError, an OSError or an app.UsageError that it lets
out is a user's mistake: one sentence on stderr, exit code 2. Anything else is ours: a traceback, exit code 1.
A verb with LEAVES_AT_ONCE = True has nothing left to do after `main`, and its process ends there and then.
"""

import ast
import contextlib
import difflib
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from absl import app, flags

PROGRAM = "deepscan"
WIDTH = 100
# What absl adds to the help of a flag that may be given again.
MULTI_SUFFIX = ";\n    repeat this option to specify a list of values"

_YNNPACK_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# Those that know the flag and its value, as tried.
_YNNPACK_JAXLIBS = {("0", "10"), ("0", "12")}

OK, INTERNAL_ERROR, USAGE = 0, 1, 2
INTERRUPTED = 130


def run(argv: Sequence[str] | None = None) -> NoReturn:
  """Runs the verb named by the first argument, and ends the process with its exit code.

  Args:
    argv: the arguments without the program's name; None takes the process's own.
  """
  if argv is None:
    _start_again_tuned()
  args = list(sys.argv[1:] if argv is None else argv)
  if args[:1] == ["help"]:
    args = [*args[1:2], "--help"]
  if not args or args[0] in ("-h", "--help"):
    print(overview())
    sys.exit(OK)
  if args[0] == "--version":
    print(PROGRAM, _version())
    sys.exit(OK)
  known = verbs()
  verb = args[0].replace("-", "_")
  if verb not in known:
    _complain(_unknown_verb(args[0], known))
    sys.exit(USAGE)
  module = importlib.import_module(f"{__package__}.{verb}")
  _run(module, f"{PROGRAM} {args[0]}", args[1:], own_process=argv is None)


def run_module(name: str) -> NoReturn:
  """Runs a verb's module that was started by itself (`python -m launch.detect`).

  Args:
    name: the module's __name__.
  """
  _start_again_tuned()
  module = sys.modules[name]
  _run(module, f"python -m {module.__spec__.name}", sys.argv[1:], own_process=True)


def verbs() -> dict[str, str]:
  """The verbs: module name to first line of docstring, in order of name. Imports none of them."""
  found = {}
  for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
      found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
  return found


def overview() -> str:
  """What `deepscan --help` prints."""
  known = verbs()
  width = max(map(len, known))
  lines = [
    f"{PROGRAM} {_version()} tells whether a video, a picture or a voice recording is a deepfake.",
    "",
    f"Usage: {PROGRAM} VERB [--flag=value ...] [file ...]",
    "",
    *(f"  {name:<{width}}  {line}" for name, line in known.items()),
    "",
    f"`{PROGRAM} VERB --help` says what a verb takes. `--debug` shows the traceback behind an error.",
  ]
  return "\n".join(lines)


def normalise(args: Sequence[str], *, booleans: Collection[str] = ()) -> list[str]:
  """Returns args with flag names as absl knows them: `--model-path=a-b` becomes `--model_path=a-b`.

  Args:
    args: command-line arguments; those after a lone `--` are files and stay as they are.
    booleans: names of the flags that can be switched off: `--no-json` and `--no_json` become `--nojson`.
  """
  done = []
  for i, arg in enumerate(args):
    if arg == "--":
      return [*done, *args[i:]]
    match = re.fullmatch(r"(--?)([A-Za-z][\w-]*)(=.*)?", arg, re.DOTALL)
    if match:
      dashes, name, value = match.groups()
      name = name.replace("-", "_")
      if name.startswith("no_") and name not in booleans and name[3:] in booleans:
        name = f"no{name[3:]}"
      arg = f"{dashes}{name}{value or ''}"
    done.append(arg)
  return done


def verb_help(doc: str, program: str, defined: Sequence[flags.Flag]) -> str:
  """What `deepscan VERB --help` prints: the module's docstring, then its flags with their defaults."""
  lines = [f"Usage: {program} [--flag=value ...]", "", doc.strip(), "", "Flags:"]
  for flag in defined:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, False, []) else f" (default: {flag.default_as_str.strip(chr(39))})"
    text = textwrap.fill(flag.help.removesuffix(MULTI_SUFFIX) + default, WIDTH - 6)
    lines += [f"  {name}", textwrap.indent(text, " " * 6)]
  return "\n".join(lines)


def sentence(error: Exception) -> str:
  """A user's mistake in words; what the system says of a file begins with its name, not with a number."""
  if isinstance(error, OSError) and error.strerror and error.filename is not None:
    return f"{os.fspath(error.filename)} cannot be used: {error.strerror}."
  return str(error)


def flag_sentence(error: flags.Error) -> str:
  """What is wrong with a flag, in words where absl shows Python's own; no full stop at its end."""
  text = str(error).rstrip(".")
  text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", text)
  return re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", text)


def _start_again_tuned() -> None:
  """Starts this process again with the settings that make a CPU quick, unless it has them already.

  glibc reads its setting only when a process starts, and XLA once. What the user has set stays.
  """
  tuned = tuned_environment(os.environ, jaxlib=metadata.version("jaxlib"))
  if sys.platform == "linux" and tuned != os.environ:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned)


def tuned_environment(environment: Mapping[str, str], *, jaxlib: str) -> dict[str, str]:
  """Returns the environment with large memory pages, and with convolutions by Eigen on CPUs.

  XLA takes and returns gigabytes at each call; with pages of 4 kB the kernel spends a quarter of a training
  step on a CPU with handing them out. YNNPACK, which XLA gives its convolutions to, takes up to twice as long
  for them as Eigen. An XLA that does not know a flag aborts, so versions that have not been tried get none.

  Args:
    environment: of the process; a variable or flag that it sets itself stays as it is.
    jaxlib: the version of jaxlib.
  """
  tuned = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **environment}
  xla_flags = tuned.get("XLA_FLAGS", "")
  if tuple(jaxlib.split(".")[:2]) in _YNNPACK_JAXLIBS and _YNNPACK_FLAG not in xla_flags:
    tuned["XLA_FLAGS"] = f"{xla_flags} {_YNNPACK_FLAG}=-individual_convolution".strip()
  return tuned


def _run(module, program: str, args: list[str], *, own_process: bool) -> NoReturn:
  debug = "--debug" in args
  if debug:
    args.remove("--debug")
  known = flags.FLAGS
  before_files = args[: args.index("--")] if "--" in args else args
  if {"-h", "--help"} & set(before_files):
    # absl files the flags of the module that runs as __main__ under the program's path
    name = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    defined = sorted(known.get_key_flags_for_module(name), key=lambda flag: flag.name)
    print(verb_help(module.__doc__ or "", program, defined))
    sys.exit(OK)
  try:
    positional = known([program, *normalise(args, booleans={n for n in known if known[n].boolean})])
  except flags.Error as error:
    _complain(f"{flag_sentence(error)}. See `{program} --help`.")
    sys.exit(USAGE)
  code = _guard(module.main, positional, debug=debug)
  if own_process and getattr(module, "LEAVES_AT_ONCE", False):
    # Taking JAX, its threads and a gigabyte of memory apart in good order takes half a second.
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError):
        stream.flush()
    os._exit(code or OK)
  sys.exit(code)


def _guard(main, argv: list[str], *, debug: bool) -> int | None:
  """Calls main(argv); returns its exit code, or that of the error which ended it."""
  try:
    code = main(argv)
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    # The reader went away (`| head`): nobody to tell, and the interpreter must not try again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK
  except KeyboardInterrupt:
    _complain("Stopped.")
    return INTERRUPTED
  except (app.UsageError, ValueError, OSError) as error:
    if debug:
      traceback.print_exc()
    _complain(sentence(error))
    return USAGE
  except Exception as error:
    traceback.print_exc()
    _complain(
      f"This is a defect of {PROGRAM} ({type(error).__name__}); please report it with the lines above."
    )
    return INTERNAL_ERROR


def _unknown_verb(word: str, known: Collection[str]) -> str:
  close = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
  hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
  return f"There is no verb {word!r}; {hint}"


def _complain(sentence: str) -> None:
  print(f"{PROGRAM}: {sentence}", file=sys.stderr)


def _version() -> str:
  from deepscan_jax.version import __version__

  return __version__


if __name__ == "__main__":
  run()
