"""deepscan detect --stream, with a detector that looks at nothing."""

import dataclasses
import json
import types

import media_files
import pytest
from absl import flags
from absl.testing import flagsaver
from test_live import said_of

from deepscan_jax.config import WindowConfig
from deepscan_jax.launch import detect, detect_stream
from deepscan_jax.verdict import LIKELY_MANIPULATED

CODES = {"flagged": 3, "partial": 4, "unreadable": 5, "interrupted": 130}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  return media_files.no_audio(tmp_path_factory.mktemp("stream") / "film.mp4", count=100)


def detector(judge=said_of):
  return types.SimpleNamespace(
    window=WindowConfig(frames=1, mouth_frames=0, samples=0),
    judges_faces=True,
    judges_sound=False,
    face_inputs=("crops", "crop_mask"),
    prepare=lambda *, windows: None,
    detect_clip=judge,
  )


@pytest.fixture
def run(capsys):
  def run(judge=said_of, *, fail_on_fake=False, quiet=False, **values):
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    said = []
    with flagsaver.flagsaver(**{"fast": True, "window_s": 1.0} | values):
      code = detect_stream.run(
        detector(judge), fail_on_fake=fail_on_fake, quiet=quiet, as_json=False, say=said.append, codes=CODES
      )
    told = capsys.readouterr()
    return code, told.out.splitlines(), said, told.err

  return run


def test_each_window_is_a_line(run, film):
  code, lines, said, error = run(stream=str(film))
  assert code == 0 and len(lines) == 4 and not error
  assert lines[0].startswith("0.00 s to 1.00 s | likely authentic, ") and "stream: undecided" in lines[0]
  assert "4 windows judged" in said[-1] and "of 100 frames 32 were looked at, 0 dropped" in said[-1]


def test_each_line_may_be_json(run, film):
  code, lines, _, _ = run(stream=str(film), jsonl=True, duration_s=2.0)
  told = [json.loads(line) for line in lines]
  assert code == 0 and [line["number"] for line in told][:2] == [0, 1]
  assert told[0]["counts"]["frames_scored"] == 8 and told[0]["decision"]["state"] == "undecided"


def suspicious(clip):
  return dataclasses.replace(said_of(clip), outcome=LIKELY_MANIPULATED, deepfake_probability=0.999)


def test_what_is_decided_on_the_way_may_fail(run, film):
  code, lines, _, _ = run(suspicious, stream=str(film), fail_on_fake=True)
  assert code == 3 and "stream: likely manipulated" in lines[-1]
  assert run(suspicious, stream=str(film))[0] == 0
  # Rates that nothing can reach in four windows: nothing is decided.
  assert run(suspicious, stream=str(film), fail_on_fake=True, false_alarm_rate=1e-9)[0] == 0


def test_a_stream_that_cannot_be_had_or_breaks_off_has_its_codes(run, film, tmp_path):
  code, lines, _, error = run(stream="http://127.0.0.1:9/x?token=secret", fast=False)
  assert code == 5 and not lines and "cannot be reached" in error and "secret" not in error
  empty = tmp_path / "text.mp4"
  empty.write_text("no film" * 100)
  assert run(stream=str(empty))[0] == 5


def test_ctrl_c_ends_with_a_summary(run, film):
  def stop(clip):
    raise KeyboardInterrupt

  code, _, said, _ = run(stop, stream=str(film))
  assert code == 130 and "0 windows judged" in said[-1]


def test_flags_that_do_not_go_together_are_told(run, film):
  with pytest.raises(detect_stream.app.UsageError, match="--fast is for files"):
    run(stream="rtsp://host/live")
  with pytest.raises(ValueError, match="false_alarm_rate must be"):
    run(stream=str(film), false_alarm_rate=0.7)
  with flagsaver.flagsaver(stream=str(film), output_json="x.json"):
    with pytest.raises(detect_stream.app.UsageError, match="for files"):
      detect.main(["detect"])
    with pytest.raises(detect_stream.app.UsageError, match="one stream"):
      detect.main(["detect", "other.mp4"])
