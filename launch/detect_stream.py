"""What `deepscan detect --stream=SOURCE` does: a line for each window of a stream as it comes."""

import contextlib
import json
import sys
import time
from collections.abc import Callable

from absl import app, flags

STREAM = flags.DEFINE_string(
  "stream",
  None,
  "Watch a stream: an address (rtsp://, rtmp://, http(s)://, udp://), a camera (0 or /dev/video0), a file, "
  "or - for standard input.",
)
_WINDOW_S = flags.DEFINE_float(
  "window_s", 4.0, "--stream: seconds of a window.", lower_bound=0.1, upper_bound=60.0
)
_WINDOW_FRAMES = flags.DEFINE_integer(
  "window_frames",
  8,
  "--stream: frames that are looked at in a window; a model of moving faces looks at all that it needs.",
  lower_bound=1,
  upper_bound=256,
)
_MAX_DELAY_S = flags.DEFINE_float(
  "max_delay_s",
  5.0,
  "--stream: windows that could only be told later than this are dropped.",
  lower_bound=0.1,
)
_DURATION_S = flags.DEFINE_float("duration_s", None, "--stream: stop after so many seconds.", lower_bound=0.1)
_FAST = flags.DEFINE_boolean(
  "fast", False, "--stream: play a file as fast as its windows can be judged, and drop none of them."
)
_RECONNECTS = flags.DEFINE_integer(
  "reconnects", 5, "--stream: attempts to reach a stream again that broke off.", lower_bound=0
)
_FALSE_ALARM_RATE = flags.DEFINE_float(
  "false_alarm_rate", 0.05, "--stream: of rounds on authentic streams, so many may be called manipulated."
)
_MISS_RATE = flags.DEFINE_float(
  "miss_rate", 0.1, "--stream: of rounds on manipulated streams, so many may be called authentic."
)
_CORRELATION = flags.DEFINE_float(
  "window_correlation",
  0.5,
  "--stream: how much alike the model errs in any two windows of a stream, 0 to 1; the rates rest on it.",
)
_JSONL = flags.DEFINE_boolean("jsonl", False, "--stream: print a line of JSON for each window.")
_SAID_EVERY_S = 10.0


def run(
  detector,
  *,
  fail_on_fake: bool,
  quiet: bool,
  as_json: bool,
  say: Callable[[str], None],
  codes: dict[str, int],
) -> int:
  """Watches the stream of the flags to its end and returns the exit code.

  Args:
    detector: what `load_detector` returns.
    fail_on_fake: return codes["flagged"] where the stream was decided to be manipulated at any time.
    quiet: print no windows.
    as_json: print lines of JSON, as --jsonl does.
    say: called with one line of progress at a time.
    codes: exit codes by name: flagged, partial (it broke off), unreadable (it never began), interrupted.

  Raises:
    ValueError: the source, or a flag, cannot be used.
  """
  from deepscan_jax import live, sequential, verdict
  from deepscan_jax.live_records import JUMP_S

  source = live.parse_source(STREAM.value)
  if _FAST.value and source.kind not in ("file", "pipe"):
    raise app.UsageError("--fast is for files; a camera or an address cannot be made to wait.")
  test = sequential.SequentialTest(
    false_alarm_rate=_FALSE_ALARM_RATE.value, miss_rate=_MISS_RATE.value, correlation=_CORRELATION.value
  )
  window_s, frames = _WINDOW_S.value, _WINDOW_FRAMES.value
  wanted = live.wanted_of(detector, window_s=window_s, frames=frames)
  started = time.monotonic()
  detector.prepare(windows=frames)
  say(f"Ready after {time.monotonic() - started:.1f} s; watching {source.name} in windows of {window_s:g} s.")
  pace = source.kind in ("file", "pipe") and not _FAST.value
  # A pipe is silent for as long as whoever writes to it likes, a film that is played at its own pace for as
  # long as one picture stands.
  stall = {"pipe": {"open_s": 3600.0, "stall_s": None}, "file": {"stall_s": 2 * JUMP_S}}.get(source.kind, {})
  flagged = interrupted = False
  watched = live.Live(
    lambda: live.Stream(source, wanted=wanted, pace=pace, **stall),
    detector.detect_clip,
    wanted=wanted,
    window_s=window_s,
    max_delay_s=_MAX_DELAY_S.value,
    lossless=_FAST.value,
    test=test,
    reconnects=_RECONNECTS.value,
    comes_back=source.comes_back,
    may_end=source.may_end,
    duration_s=_DURATION_S.value,
  )
  with watched:
    try:
      dropped, reached_again, said_s = 0, 0, time.monotonic()
      for window in watched.windows():
        counts = watched.counts
        flagged |= window.decision.state == verdict.LIKELY_MANIPULATED
        if not quiet:
          print(_json_line(window, counts) if as_json or _JSONL.value else _words(window), flush=True)
        if counts.reconnections > reached_again:
          reached_again = counts.reconnections
          say("The stream broke off and is there again.")
        if counts.windows_dropped > dropped and time.monotonic() - said_s > _SAID_EVERY_S:
          dropped, said_s = counts.windows_dropped, time.monotonic()
          say(
            f"{dropped} windows were dropped so far, for judging takes longer than the stream; use fewer "
            "--window_frames."
          )
    except KeyboardInterrupt:
      interrupted = True
      # A second one, while the child ends, is not needed.
      with contextlib.suppress(KeyboardInterrupt):
        watched.stop()
  say(_summary(watched, seconds=time.monotonic() - started))
  end = watched.end
  if end.reason not in ("ended", "stopped"):
    print(f"deepscan: {source.name}: {end.message}", file=sys.stderr)
  if fail_on_fake and flagged:
    return codes["flagged"]
  if interrupted:
    return codes["interrupted"]
  if end.reason in ("ended", "stopped"):
    return 0
  return codes["partial"] if watched.counts.windows_scored else codes["unreadable"]


def _json_line(window, counts) -> str:
  return json.dumps({**window.to_dict(), "counts": counts.to_dict()}, allow_nan=False)


def _words(window) -> str:
  from deepscan_jax import report

  score = "nothing was judged" if window.probability is None else report.percent(window.probability)
  parts = [
    f"{report.clock(window.start_s)} to {report.clock(window.end_s)}",
    f"{report.OUTCOME_WORDS[window.outcome].lower()}, {score}",
  ]
  scores = [
    (person.id, "not judged" if person.probability is None else report.percent(person.probability))
    for person in window.people
  ]
  if scores:
    parts.append(", ".join(f"person {number} {said}" for number, said in scores))
  if window.reasons:
    parts.append(", ".join(reason.code for reason in window.reasons))
  parts.append(f"{window.delay_s:.1f} s late")
  decision = window.decision
  parts.append(f"stream: {decision.state.replace('_', ' ')} (evidence {decision.evidence:+.1f})")
  return " | ".join(parts)


def _summary(watched, *, seconds: float) -> str:
  counts, decision = watched.counts, watched.decision
  each = f", {counts.judging_s / counts.windows_scored:.2f} s each" if counts.windows_scored else ""
  lines = [
    f"{counts.windows_scored} windows judged{each}, {counts.windows_dropped} dropped; of "
    f"{counts.frames_seen} frames {counts.frames_scored} were looked at, {counts.frames_dropped} dropped.",
    f"Windows were told {counts.longest_delay_s:.1f} s after they came at most; in all {seconds:.0f} s.",
    f"The stream is {decision.state.replace('_', ' ')} after {decision.rounds} decisions.",
  ]
  if counts.reconnections:
    lines.append(f"It was reached again {counts.reconnections} times.")
  if counts.damaged:
    lines.append(f"{counts.damaged} damaged pieces were left out.")
  return "\n".join(lines)
