"""Says whether a video, a picture or a voice recording is a deepfake, and shows why.

    deepscan detect clip.mp4
    deepscan detect --video_path=a.mp4 --image_path=b.jpg --output_json=report.json --output_html=report.html
    deepscan detect --model_path=runs/voices/best --audio_path=voice.wav
    deepscan detect --stability --output_html=report.html clip.mp4
    deepscan detect --stream=rtsp://camera.local/live --jsonl > windows.jsonl

A model judges faces, sound, or both; of both the more suspicious decides, and the answer says which.
Files may be given by flag or plainly; plain ones are told apart by their content. --output_json holds one
object for one file and a list, in the order given, for several; a file that could not be read has an "error"
in place of a verdict. --output_html is one page that needs nothing else, whatever the number of files.
--stability judges each file again after growing damage (blur, noise, smaller sizes, JPEG, H.264 and so on; of
sound MP3, Opus, telephone, noise) and says how far the verdict holds and what changes it first.
--stream watches an address, a camera, a file or standard input (-) and prints a line for each window as it
comes, with what a sequential test at the rates of --false_alarm_rate and --miss_rate decides on the way.
Results go to stdout, progress to stderr.

Exit codes:
    0    every file was answered ("not applicable", where there is nothing to judge, is an answer)
    1    a defect of this program; files on which it did not show are answered
    2    wrong usage: a flag, or a place that cannot be written
    3    with --fail_on=fake (or manipulated): a file is likely manipulated (also if others could not be read)
    4    some files could not be read, or the stream broke off; the others, or what came, were answered
    5    none of the files could be read, or the stream never began
    6    the model is missing or damaged
    130  stopped by the user (143: by the system)
"""

import dataclasses
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from . import detect_stream

# Read by __main__: when `main` returns, all is written, and nobody needs to wait for JAX to be taken apart.
LEAVES_AT_ONCE = True
PARTIAL, UNREADABLE, FLAGGED, NO_MODEL = 4, 5, 3, 6
INTERNAL_ERROR = 1
_STEPS_PER_LINE = 10
INTERRUPTED = 130
# The code of the answer for a file on which this program failed.
DEFECT = "internal_error"
KINDS = ("video", "image", "audio")

_PATHS = {
  kind: flags.DEFINE_multi_string(
    f"{kind}_path", [], f"A{'n' * (kind != 'video')} {kind} file; several: a comma list, or the flag again."
  )
  for kind in KINDS
}
_MODEL_PATH = flags.DEFINE_string(
  "model_path",
  None,
  "A checkpoint folder; without it the model that comes with the package.",
  allow_override=True,
)
_OUTPUT_JSON = flags.DEFINE_string(
  "output_json", None, "Write the verdicts to this JSON file.", allow_override=True
)
_OUTPUT_HTML = flags.DEFINE_string("output_html", None, "Write a report to this HTML file.")
_FRAMES = flags.DEFINE_integer(
  "frames",
  32,
  "How many frames of a video are looked at; a model of moving faces looks at one stretch for eight of them.",
  lower_bound=1,
  upper_bound=4096,
  allow_override=True,
)
_STABILITY = flags.DEFINE_boolean(
  "stability", False, "Say how far each verdict holds under damage; a minute or more for each file."
)
_STABILITY_FRAMES = flags.DEFINE_integer(
  "stability_frames", 16, "How many frames of a video --stability damages.", lower_bound=1, upper_bound=4096
)
_JSON = flags.DEFINE_boolean("json", False, "Print the verdicts as JSON instead of words.")
_QUIET = flags.DEFINE_boolean("quiet", False, "Print neither progress nor verdicts; errors are still told.")
_FAIL_ON = flags.DEFINE_enum(
  "fail_on", None, ["fake", "manipulated"], "End with exit code 3 when a file is likely manipulated."
)
_PREVALENCE = flags.DEFINE_multi_float(
  "prevalence",
  None,
  "Share of fakes among the files that these came with, such as 0.01: says what a verdict is worth there.",
  allow_override=True,
)
_CACHE = flags.DEFINE_string(
  "compilation_cache_dir",
  None,
  "Private folder that keeps compiled programs, so that the next start is fast; 'none' keeps nothing "
  "(default: deepscan_jax/compiled in the user's cache folder).",
)
flags.adopt_module_key_flags(detect_stream)


@dataclasses.dataclass(frozen=True)
class Input:
  """A file that was asked for; `kind` is what the user called it, None where nothing was said."""

  path: Path
  kind: str | None = None


def main(argv: Sequence[str]) -> int:
  """Answers the files of the flags and of argv[1:]; returns the exit code."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  if detect_stream.STREAM.value is not None:
    return _watch(argv[1:])
  prevalence = one_prevalence(_PREVALENCE.value)
  inputs = gather_inputs({kind: flag.value for kind, flag in _PATHS.items()}, argv[1:])
  check_outputs([Path(path) for path in (_OUTPUT_JSON.value, _OUTPUT_HTML.value) if path], inputs)

  # JAX's modules and what it traces are a million objects that stay: looking through them for garbage again
  # and again would take a fifth of the start.
  gc.set_threshold(100_000, 50, 100)

  from deepscan_jax import media

  # The child process that decodes the first file has its work done when JAX has been loaded here.
  # That of a model of one's own is known once the model is.
  plan = media.SamplingPlan(frame_count=_FRAMES.value)
  decoding = None if _MODEL_PATH.value else media.Decoding(inputs[0].path, plan=plan)

  from deepscan_jax import checkpoints, compilation_cache, faces, inference

  warning = compilation_cache.keep_programs(_CACHE.value)
  if warning:
    print(f"deepscan: {warning}", file=sys.stderr)

  say = _silent if _QUIET.value else _progress
  started = time.monotonic()
  if decoding and not decoding.wait():  # a picture or a sound file is read by now
    faces.prepare(wait=False)
  try:
    detector = inference.load_detector(_MODEL_PATH.value)
  except checkpoints.CheckpointError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return NO_MODEL
  about = detector.metadata
  say(f"Model {about['name']} {about['version']} loaded in {time.monotonic() - started:.1f} s.")
  return detect(
    detector,
    inputs,
    frames=_FRAMES.value,
    output_json=_OUTPUT_JSON.value,
    output_html=_OUTPUT_HTML.value,
    as_json=_JSON.value,
    quiet=_QUIET.value,
    fail_on_fake=_FAIL_ON.value is not None,
    say=say,
    decoding=decoding,
    prevalence=prevalence,
    stability_frames=_STABILITY_FRAMES.value if _STABILITY.value else 0,
  )


def _watch(files: Sequence[str]) -> int:
  """Watches the stream of --stream; returns the exit code."""
  if files or any(flag.value for flag in _PATHS.values()):
    raise app.UsageError("--stream watches one stream; judge files without it.")
  if _OUTPUT_JSON.value or _OUTPUT_HTML.value or _STABILITY.value or _PREVALENCE.value:
    raise app.UsageError(
      "--stream prints lines (--jsonl); --output_json, --output_html, --stability and --prevalence are for "
      "files."
    )
  from deepscan_jax import live, media

  try:
    live.parse_source(detect_stream.STREAM.value)  # a wrong one is told before the model is loaded
  except media.MediaError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return UNREADABLE
  gc.set_threshold(100_000, 50, 100)

  from deepscan_jax import checkpoints, compilation_cache, inference

  warning = compilation_cache.keep_programs(_CACHE.value)
  if warning:
    print(f"deepscan: {warning}", file=sys.stderr)
  try:
    detector = inference.load_detector(_MODEL_PATH.value)
  except checkpoints.CheckpointError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return NO_MODEL
  code = detect_stream.run(
    detector,
    fail_on_fake=_FAIL_ON.value is not None,
    quiet=_QUIET.value,
    as_json=_JSON.value,
    say=_silent if _QUIET.value else _progress,
    codes={"flagged": FLAGGED, "partial": PARTIAL, "unreadable": UNREADABLE, "interrupted": INTERRUPTED},
  )
  compilation_cache.finish()
  return code


def detect(
  detector,
  inputs: Sequence[Input],
  *,
  frames: int,
  output_json: str | None = None,
  output_html: str | None = None,
  as_json: bool = False,
  quiet: bool = False,
  fail_on_fake: bool = False,
  say: Callable[[str], None] = lambda line: None,
  decoding=None,
  prevalence: float | None = None,
  stability_frames: int = 0,
) -> int:
  """Answers each file, prints and writes what is asked for, and returns the exit code.

  Args:
    detector: what `load_detector` returns.
    inputs: at least one.
    frames: how many frames of a video are looked at.
    output_json, output_html: where to write, checked by `check_writable`.
    as_json: print JSON instead of words.
    quiet: print no verdict.
    fail_on_fake: return 3 when a file is likely manipulated.
    say: called with one line of progress at a time.
    decoding: media.Decoding of the first input, begun before; None begins here.
    prevalence: of fakes among such files, for what a verdict is worth; None leaves that out.
    stability_frames: of how many frames to say how far the verdict holds under damage; 0: not at all.
  """
  from deepscan_jax import compilation_cache, media, report, verdict

  answers: list[verdict.Verdict | report.Unread] = []
  for number, asked in enumerate(inputs, start=1):
    name = report.printable(asked.path.name)
    say(f"[{number}/{len(inputs)}] {name}")
    begun = {"decoding": decoding} if decoding and number == 1 else {}
    try:
      if stability_frames and not begun:
        # Frames that were decoded once are needed again.
        begun = {"decoding": _begin_decoding(detector, asked.path, frames)}
      answer = dataclasses.replace(detector.detect(asked.path, frames=frames, **begun), prevalence=prevalence)
      if stability_frames:
        answer = _with_stability(detector, answer, begun["decoding"].result(), stability_frames, say)
    except media.MediaError as error:
      answer = report.Unread(name=asked.path.name, code=error.reason, message=str(error))
      print(f"deepscan: {name}: {report.printable(str(error))}", file=sys.stderr)
    except Exception as error:  # ours, whatever it is: the other files are answered all the same
      traceback.print_exc()
      message = f"A defect of this program ({type(error).__name__}) kept the file from being judged."
      answer = report.Unread(name=asked.path.name, code=DEFECT, message=message)
      print(f"deepscan: {name}: {message} Please report it with the lines above.", file=sys.stderr)
    else:
      found = answer.file.get("kind")
      if asked.kind and found and asked.kind != found:
        print(
          f"deepscan: {name} was given as {asked.kind} but is {found}.",
          file=sys.stderr,
        )
      if not quiet and not as_json:
        gap = "\n" if answers else ""
        print(gap + report.summary_text(answer, color=wants_color(sys.stdout)), flush=True)
    answers.append(answer)

  single_or_all = answers[0] if len(answers) == 1 else answers
  if as_json and not quiet:
    print(json.dumps(report.to_json(single_or_all), indent=2, allow_nan=False))
  if output_json:
    report.write_json(single_or_all, Path(output_json))
    say(f"JSON written to {output_json}")
  if output_html:
    report.write_html(single_or_all, Path(output_html))
    say(f"Report written to {output_html}")
  compilation_cache.finish()
  return exit_code(answers, fail_on_fake=fail_on_fake)


def _begin_decoding(detector, path: Path, frames: int):
  from deepscan_jax import examples, media

  return media.Decoding(path, plan=examples.sampling_plan(detector.window, frames=frames))


def _with_stability(detector, answer, clip, frames: int, say: Callable[[str], None]):
  """The answer with how far it holds under damage."""
  from deepscan_jax import stability

  def say_progress(done: int, total: int) -> None:
    if done % _STEPS_PER_LINE == 0:
      say(f"{done} of {total} steps of damage judged")

  started = time.monotonic()
  found = stability.measure(detector, clip, frames=frames, report_progress=say_progress)
  if found is None:
    say("Nothing was judged, so there is nothing whose stability could be measured.")
  timings = {**answer.timings, "stability_s": time.monotonic() - started}
  return dataclasses.replace(answer, stability=found, timings=timings)


def exit_code(answers: Sequence, *, fail_on_fake: bool = False) -> int:
  """The exit code for these answers, as the module's docstring lists them."""
  from deepscan_jax import report, verdict

  unread = sum(isinstance(answer, report.Unread) for answer in answers)
  if fail_on_fake and any(
    getattr(answer, "outcome", None) == verdict.LIKELY_MANIPULATED for answer in answers
  ):
    return FLAGGED
  if any(getattr(answer, "code", None) == DEFECT for answer in answers):
    return INTERNAL_ERROR
  if unread == len(answers):
    return UNREADABLE
  return PARTIAL if unread else 0


def gather_inputs(by_kind: dict[str, Sequence[str]], plain: Sequence[str]) -> list[Input]:
  """Returns the files in the order video, image, audio, plain.

  Args:
    by_kind: kind to the values of its flag; a value that is no file is taken as a comma list.
    plain: files given without a flag.

  Raises:
    app.UsageError: no file at all.
  """
  inputs = [
    Input(Path(name), kind)
    for kind, values in by_kind.items()
    for value in values
    for name in ([value] if os.path.exists(value) else filter(None, value.split(",")))
  ]
  inputs += [Input(Path(name)) for name in plain]
  if not inputs:
    raise app.UsageError("No file was given; try `deepscan detect clip.mp4`.")
  return inputs


def one_prevalence(values: Sequence[float] | None) -> float | None:
  """The one value of --prevalence; None where it was not given.

  Raises:
    app.UsageError: several, or one that is not above 0 and below 1.
  """
  if not values:
    return None
  if len(values) > 1 or not 0 < values[0] < 1:
    told = ", ".join(f"{value:g}" for value in values)
    raise app.UsageError(f"--prevalence takes one share above 0 and below 1, such as 0.01; got {told}.")
  return values[0]


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Input]) -> None:
  """Raises app.UsageError or OSError where writing would fail, or overwrite what was given."""
  taken = {asked.path.resolve() for asked in inputs}
  for path in outputs:
    if path.resolve() in taken:
      raise app.UsageError(f"{path} is named twice; each output needs a file of its own.")
    taken.add(path.resolve())
    check_writable(path)


def check_writable(path: Path) -> None:
  """Raises OSError, with a sentence, where a file cannot be written at path; leaves nothing behind."""
  if path.is_dir():
    raise IsADirectoryError(f"Cannot write {path}: it is a folder.")
  folder = path.parent
  if not folder.is_dir():
    raise FileNotFoundError(f"Cannot write {path}: there is no folder {folder}.")
  # os.access looks at permissions alone, which says yes to root on a read-only disk.
  probe = folder / f".{path.name}.{os.getpid()}.probe"
  try:
    probe.touch(exist_ok=False)
    probe.unlink()
  except OSError as error:
    raise PermissionError(f"Cannot write {path}: {error.strerror}.") from error


def wants_color(stream) -> bool:
  """True for a terminal, unless NO_COLOR is set or the terminal is a dumb one (no-color.org)."""
  return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _progress(line: str) -> None:
  dim, plain = ("\x1b[2m", "\x1b[0m") if wants_color(sys.stderr) else ("", "")
  print(f"{dim}{line}{plain}", file=sys.stderr, flush=True)


def _silent(line: str) -> None:
  del line


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
