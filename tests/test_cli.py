import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import app, flags

from deepscan_jax import compilation_cache, doctor, examples, media, report, verdict
from deepscan_jax.config import Config, DataConfig, TrainConfig, WindowConfig
from deepscan_jax.launch import __main__ as dispatcher
from deepscan_jax.launch import detect, train
from deepscan_jax.verdict import Person, Reason, Sighting, Sound, SoundWindow, Thresholds, Verdict

ROOT = Path(__file__).resolve().parents[1]
SCORES = {"fake": (verdict.LIKELY_MANIPULATED, 0.9), "real": (verdict.LIKELY_AUTHENTIC, 0.1)}


class FakeDetector:
  """Answers by name: fake.mp4, real.jpg, empty.jpg (no face), cloned.wav (a voice), defect.mp4; anything else
  cannot be read."""

  metadata = {"name": "default", "version": "1", "sha256": "ab" * 32}  # noqa: RUF012

  def detect(self, path, *, frames=32):
    stem = Path(path).stem
    if stem == "defect":
      raise ValueError("shapes do not fit")
    if stem == "cloned":
      return self.hear(Path(path).name)
    if stem not in ("fake", "real", "empty"):
      raise media.MediaError("truncated", f"{Path(path).name} ends too early.")
    outcome, probability = SCORES.get(stem, (verdict.NOT_APPLICABLE, None))
    seen = (
      ()
      if probability is None
      else (Person(1, probability, (Sighting(0.0, (0, 0, 9, 9), probability),), {}),)
    )
    return Verdict(
      outcome=outcome,
      deepfake_probability=probability,
      frame_consistency_score=None,
      reasons=() if seen else (Reason("no_face", "No face was found."),),
      branches={},
      people=seen,
      thresholds=Thresholds(0.4, 0.7, 0.02),
      model=self.metadata,
      file={"name": Path(path).name, "kind": "video" if str(path).endswith("mp4") else "image"},
      timings={"all": 0.1},
    )

  def hear(self, name):
    thresholds = Thresholds(0.5, 0.8, 0.05)
    windows = (SoundWindow(0.0, 4.0, 0.7), SoundWindow(4.0, 8.0, 0.96))
    return Verdict(
      outcome=verdict.LIKELY_MANIPULATED,
      deepfake_probability=0.9,
      frame_consistency_score=None,
      reasons=(Reason("synthetic_voice_traces", "Traces of a synthetic voice."),),
      branches={},
      people=(),
      thresholds=thresholds,
      model=self.metadata,
      file={"name": name, "kind": "audio"},
      timings={},
      sound=Sound(verdict.LIKELY_MANIPULATED, 0.9, (), thresholds, windows),
      decided_by="sound",
    )


def answer(*names, **changes):
  return detect.detect(FakeDetector(), [detect.Input(Path(name)) for name in names], frames=4, **changes)


def run(*arguments, **changes):
  environment = {**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu", **changes}
  return subprocess.run(
    [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize(
  ("given", "normal"),
  [
    ("--model-path=a-b", "--model_path=a-b"),
    ("--model_path=a-b", "--model_path=a-b"),
    ("-model-path", "-model_path"),
    ("--no-json", "--nojson"),
    ("--no_json", "--nojson"),
    ("--nojson", "--nojson"),
    ("--no-dry-run", "--nodry_run"),
    ("--no-cache", "--no_cache"),
    ("--no-op", "--no_op"),
    ("--set=train.a-b=--c-d", "--set=train.a-b=--c-d"),
    ("a-file.mp4", "a-file.mp4"),
    ("-0.5", "-0.5"),
    ("-", "-"),
    ("--x=two\nlines-here", "--x=two\nlines-here"),
  ],
)
def test_flag_names_lose_their_dashes_and_nothing_else_does(given, normal):
  assert dispatcher.normalise([given], booleans={"json", "dry_run", "op", "no_op"}) == [normal]


def test_what_follows_a_lone_double_dash_are_files():
  given = ["--a-b", "--", "--c-d", "--no-json"]
  assert dispatcher.normalise(given, booleans={"json"}) == ["--a_b", "--", "--c-d", "--no-json"]


def test_verbs_are_found_by_name_and_each_tells_what_it_does():
  known = dispatcher.verbs()
  assert {"detect", "doctor", "demo", "reproduce"} <= set(known)
  assert all(line.endswith(".") and len(line) < 110 for line in known.values())
  assert not any(name.startswith("_") for name in known)


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (app.UsageError("no"), 2),
    (ValueError("no"), 2),
    (FileNotFoundError("no"), 2),
    (KeyboardInterrupt(), 130),
    (RuntimeError("no"), 1),
  ],
)
def test_errors_become_a_sentence_and_a_code(error, code, capsys):
  def main(_):
    raise error

  assert dispatcher._guard(main, [], debug=False) == code
  told = capsys.readouterr()
  assert told.out == ""
  assert told.err.splitlines()[-1].startswith("deepscan: ")
  assert ("Traceback" in told.err) == (code == 1)


def test_what_the_system_and_absl_say_becomes_words(tmp_path):
  with pytest.raises(OSError) as caught:
    (tmp_path / "file").write_text("")
    (tmp_path / "file" / "below").mkdir()
  assert dispatcher.sentence(caught.value) == f"{tmp_path}/file/below cannot be used: Not a directory."
  values = flags.FlagValues()
  flags.DEFINE_integer("frames", 1, "", flag_values=values)
  flags.DEFINE_float("rate", 1, "", flag_values=values)
  for given, words in (("--frames=x", "'x' is not a whole number"), ("--rate=x", "'x' is not a number")):
    with pytest.raises(flags.Error) as caught:
      values(["deepscan", given])
    assert dispatcher.flag_sentence(caught.value) == f"flag {given}: {words}"


def test_a_short_run_leaves_out_the_restarts_behind_its_end(capsys):
  config = Config(train=TrainConfig(steps=50, restarts=(20, 50, 2600)))
  assert train.without_late_restarts(config).train.restarts == (20,)
  assert "50, 2600" in capsys.readouterr().err
  assert train.without_late_restarts(Config()) == Config() and not capsys.readouterr().err


def test_help_lists_flags_with_defaults():
  values = flags.FlagValues()
  flags.DEFINE_boolean("fast", True, "Hurry.", flag_values=values)
  flags.DEFINE_multi_string("file", [], "A file.", flag_values=values)
  text = dispatcher.verb_help("Does it.\n\nLong.", "deepscan x", [values["fast"], values["file"]])
  assert text.startswith("Usage: deepscan x [--flag=value ...]\n\nDoes it.")
  assert "--[no]fast\n      Hurry. (default: true)" in text
  assert text.endswith("--file\n      A file.")


@pytest.mark.parametrize(
  ("names", "fail_on_fake", "code"),
  [
    (["real.jpg"], False, 0),
    (["fake.mp4"], False, 0),
    (["empty.jpg"], True, 0),
    (["real.jpg", "cloned.wav"], True, 3),
    (["real.jpg", "fake.mp4"], True, 3),
    (["broken.mp4", "fake.mp4"], True, 3),
    (["broken.mp4", "real.jpg"], True, 4),
    (["broken.mp4", "fake.mp4"], False, 4),
    (["broken.mp4"], False, 5),
    (["broken.mp4", "worse.mp4"], True, 5),
    (["defect.mp4", "real.jpg"], False, 1),
    (["defect.mp4", "fake.mp4"], True, 3),
  ],
)
def test_exit_codes_of_detect(names, fail_on_fake, code):
  assert answer(*names, fail_on_fake=fail_on_fake) == code


def test_a_bad_file_gives_one_sentence_and_the_others_are_answered(tmp_path, capsys):
  page, table = tmp_path / "r.html", tmp_path / "r.json"
  assert answer("fake.mp4", "bro\x1bken.mp4", "real.jpg", output_json=str(table), output_html=str(page)) == 4
  told = capsys.readouterr()
  assert told.err.count("\n") == 1 and "ends too early" in told.err and "\x1b" not in told.err
  assert "Likely manipulated" in told.out and "Likely authentic" in told.out
  first, second, third = json.loads(table.read_text())
  assert (first["is_deepfake"], second["error"]["code"], third["is_deepfake"]) == (True, "truncated", False)
  assert "Could not be read" in page.read_text()


def test_a_defect_on_one_file_is_told_and_the_others_are_answered(tmp_path, capsys):
  table = tmp_path / "r.json"
  assert answer("defect.mp4", "real.jpg", output_json=str(table)) == 1
  told = capsys.readouterr()
  assert "Traceback" in told.err and "Likely authentic" in told.out
  first, second = json.loads(table.read_text())
  assert first["error"]["code"] == "internal_error" and second["is_deepfake"] is False


def test_a_voice_is_answered_in_words_json_and_page(tmp_path, capsys):
  page, table = tmp_path / "r.html", tmp_path / "r.json"
  given = detect.gather_inputs({"audio": ["cloned.wav"]}, [])
  settings = {"frames": 4, "output_json": str(table), "output_html": str(page)}
  assert detect.detect(FakeDetector(), given, **settings) == 0
  told = capsys.readouterr()
  words = " ".join(told.out.split())
  assert told.err == "" and "The sound was judged." in words and "marked: 4.0 to 8.0 s" in words
  assert "listen to the stretches that score highest" in words
  facts = json.loads(table.read_text())
  assert facts["decided_by"] == "sound" and facts["faces"] is None and facts["people"] == []
  assert facts["sound"]["windows"][1] == {"start_s": 4.0, "end_s": 8.0, "probability": 0.96}
  assert facts["sound"]["thresholds"] == facts["thresholds"]
  assert "Marked as likely manipulated: 4.0 to 8.0" in page.read_text()


def test_json_goes_to_stdout_alone(capsys):
  assert answer("fake.mp4", as_json=True) == 0
  told = capsys.readouterr()
  assert json.loads(told.out)["outcome"] == verdict.LIKELY_MANIPULATED
  assert told.err == ""


def test_quiet_says_nothing_but_errors(capsys):
  assert answer("fake.mp4", "broken.mp4", quiet=True) == 4
  told = capsys.readouterr()
  assert told.out == "" and told.err.count("\n") == 1


def test_a_file_that_is_not_what_the_user_called_it_is_told(capsys):
  detect.detect(FakeDetector(), [detect.Input(Path("real.jpg"), "video")], frames=4)
  assert "was given as video but is image" in capsys.readouterr().err


def test_files_come_by_flag_by_comma_list_and_plainly(tmp_path):
  comma = tmp_path / "a,b.mp4"
  comma.touch()
  inputs = detect.gather_inputs({"video": [str(comma), "c.mp4,d.mp4"], "image": ["e.jpg"]}, ["f.wav"])
  assert inputs == [
    detect.Input(comma, "video"),
    detect.Input(Path("c.mp4"), "video"),
    detect.Input(Path("d.mp4"), "video"),
    detect.Input(Path("e.jpg"), "image"),
    detect.Input(Path("f.wav")),
  ]
  with pytest.raises(app.UsageError, match="No file"):
    detect.gather_inputs({"video": [""]}, [])


def test_places_that_cannot_be_written_are_found_out_early(tmp_path):
  detect.check_writable(tmp_path / "r.json")
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(FileNotFoundError, match="no folder"):
    detect.check_writable(tmp_path / "missing" / "r.json")
  with pytest.raises(IsADirectoryError, match="is a folder"):
    detect.check_writable(tmp_path)
  with pytest.raises(PermissionError, match="Cannot write"):
    detect.check_writable(Path("/proc/r.json"))


def test_an_output_never_overwrites_what_was_given(tmp_path):
  given = [detect.Input(tmp_path / "a.mp4")]
  detect.check_outputs([tmp_path / "r.json", tmp_path / "r.html"], given)
  for outputs in (["x/../a.mp4"], ["r.json", "r.json"]):
    (tmp_path / "x").mkdir(exist_ok=True)
    with pytest.raises(app.UsageError, match="named twice"):
      detect.check_outputs([tmp_path / name for name in outputs], given)


@pytest.mark.parametrize(
  ("terminal", "environment", "wanted"),
  [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(terminal, environment, wanted, monkeypatch):
  for name in ("NO_COLOR", "TERM"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert detect.wants_color(SimpleNamespace(isatty=lambda: terminal)) is wanted


def test_the_compilation_cache_is_private(tmp_path, monkeypatch):
  folder = compilation_cache.private_folder(tmp_path / "a" / "b")
  assert folder.stat().st_mode & 0o777 == 0o700
  folder.chmod(0o777)
  with pytest.raises(ValueError, match="chmod 700"):
    compilation_cache.private_folder(folder)
  with pytest.raises(OSError, match="exists"):
    (tmp_path / "file").touch()
    compilation_cache.private_folder(tmp_path / "file")
  monkeypatch.setattr(os, "geteuid", lambda: 12345)
  folder.chmod(0o700)
  with pytest.raises(ValueError, match="another user"):
    compilation_cache.private_folder(folder)


def test_a_cache_that_nobody_chose_is_gone_without_and_a_chosen_one_is_an_error(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert compilation_cache.default_folder() == tmp_path / "file" / "deepscan_jax" / "compiled"
  warning = compilation_cache.switch_on()
  assert "without a compilation cache" in warning and "Errno" not in warning
  assert compilation_cache.switch_on("none") == ""
  with pytest.raises(OSError, match="file"):
    compilation_cache.switch_on(str(tmp_path / "file" / "x"))


def test_a_user_without_a_home_goes_without_a_cache(monkeypatch):
  def nowhere(_):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(compilation_cache.Path, "home", classmethod(nowhere))
  assert compilation_cache.switch_on() == (
    "Going on without a compilation cache. This user has no home folder; set HOME or XDG_CACHE_HOME."
  )
  assert doctor._cache().status == doctor.WARN


def test_golden_inputs_are_the_same_on_every_machine():
  inputs = doctor.golden_inputs()
  assert {name: (image.shape, image.dtype) for name, image in inputs.items()} == {
    "portrait": ((1, 224, 224, 3), np.uint8),
    "blended": ((1, 224, 224, 3), np.uint8),
  }
  difference = np.abs(inputs["portrait"].astype(int) - inputs["blended"])
  assert difference[0, 60:180, 80:150].mean() > 5
  assert difference[0, :30].max() == difference[0, :, :40].max() == 0
  assert [int(image.astype(np.int64).sum()) for image in inputs.values()] == [19986546, 20193891]


def test_golden_scores_are_compared_by_their_distance():
  expected = {"portrait": -2.0, "blended": 3.0}
  assert doctor.compare_golden(expected, expected).status == doctor.OK
  assert doctor.compare_golden({**expected, "blended": 3.0009}, expected).status == doctor.OK
  assert doctor.compare_golden({**expected, "blended": 3.0011}, expected).status == doctor.FAIL
  assert doctor.compare_golden({"portrait": -2.0}, expected).status == doctor.FAIL
  assert doctor.compare_golden({**expected, "blended": float("nan")}, expected).status == doctor.FAIL


def test_a_device_that_shortens_factors_is_told_how_to_stop(monkeypatch):
  found = {"device": "Some GPU", "matmul_precision": "default"}
  monkeypatch.setattr(doctor.environment, "device", lambda: found)
  check = doctor.compare_golden({"portrait": 1.01}, {"portrait": 1.0})
  assert check.status == doctor.FAIL and "JAX_DEFAULT_MATMUL_PRECISION=highest" in check.remedy
  found["matmul_precision"] = "highest"
  check = doctor.compare_golden({"portrait": 1.01}, {"portrait": 1.0})
  assert check.status == doctor.FAIL and "PRECISION" not in check.remedy


def test_networks_that_find_faces_are_checked(monkeypatch):
  assert doctor._face_networks().status == doctor.OK
  monkeypatch.setattr(doctor, "FACE_NETWORKS_SHA256", "0" * 64)
  assert doctor._face_networks().status == doctor.FAIL


@pytest.mark.parametrize(
  ("faces_read", "sound_read", "expected"),
  [
    (("crops", "crop_mask"), (), {"portrait", "blended"}),
    ((), ("waveform", "waveform_mask"), {"sound"}),
    (("crops", "crop_mask"), ("waveform", "waveform_mask"), {"portrait", "blended", "sound"}),
    (
      ("crops", "crop_mask", "frame_times_s", "landmarks", "mouth_crops", "mouth_mask", "waveform"),
      ("waveform", "waveform_mask"),
      {"portrait", "blended", "sound"},
    ),
  ],
)
def test_each_model_is_tried_with_what_it_reads(faces_read, sound_read, expected):
  window = WindowConfig(frames=3, mouth_frames=5, samples=8_000)
  stand_in = SimpleNamespace(
    config=Config(data=DataConfig(window=window)),
    window=window,
    face_inputs=faces_read,
    sound_inputs=sound_read,
  )
  batches = doctor.golden_batches(stand_in)
  assert batches.keys() == expected
  shapes = examples.input_shapes(window)
  for name, batch in batches.items():
    assert tuple(batch) == (sound_read if name == "sound" else faces_read)
    for key, values in batch.items():
      assert (values.shape, values.dtype) == ((1, *shapes[key][0]), shapes[key][1])
      assert np.isfinite(values).all() and (values.dtype == bool or len(np.unique(values)) > 2)
  if "portrait" in batches:
    assert (batches["portrait"]["crops"][0, 1] != batches["portrait"]["crops"][0, 0]).any()
  if "sound" in batches:
    assert 0.25 < np.abs(batches["sound"]["waveform"]).max() < 0.31


def test_a_check_that_breaks_is_a_failed_check():
  def look():
    raise RuntimeError("boom")

  check = doctor._guarded("x", look)
  assert (check.status, check.detail) == (doctor.FAIL, "RuntimeError: boom")
  assert check.remedy


def test_the_sandbox_check_decodes_a_clip():
  assert doctor._sandbox().status == doctor.OK


def test_the_dispatcher_in_a_process_of_its_own():
  listed = run("launch")
  assert listed.returncode == 0
  assert all(f"  {name} " in listed.stdout for name in ("detect", "doctor", "demo"))
  assert run("deepscan_jax.launch", "--help").stdout == listed.stdout
  unknown = run("launch", "detct")
  assert unknown.returncode == 2
  assert unknown.stderr == "deepscan: There is no verb 'detct'; did you mean 'detect'?\n"


def test_both_ways_to_name_a_verb_take_the_same_flags():
  for start in (["launch", "detect"], ["launch.detect"], ["deepscan_jax.launch.detect"]):
    shown = run(*start, "--help")
    assert shown.returncode == 0 and "--video_path" in shown.stdout and "Exit codes" in shown.stdout
    refused = run(*start, "--output-json=/nowhere/r.json", "--no-quiet", "x.mp4")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "deepscan: Cannot write /nowhere/r.json: there is no folder /nowhere.\n"


def test_help_does_not_wait_for_jax():
  code = "import sys, deepscan_jax.launch.__main__ as m; m.overview(); import deepscan_jax.launch.detect"
  done = subprocess.run(
    [sys.executable, "-c", f"{code}; print([n for n in ('jax', 'numpy', 'av') if n in sys.modules])"],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout == "[]\n"


def test_verbs_can_be_imported_beside_each_other():
  for name in dispatcher.verbs():
    module = importlib.import_module(f"deepscan_jax.launch.{name}")
    assert callable(module.main)


def test_an_unread_file_is_reported_as_such():
  assert report.to_json(report.Unread("a", "b", "c."))["error"] == {"code": "b", "message": "c."}


def test_a_command_starts_again_with_large_pages_and_without_ynnpack_unless_the_user_chose():
  tuned = dispatcher.tuned_environment({"HOME": "/h"}, jaxlib="0.12.0.1")
  flag = "--xla_cpu_experimental_ynn_fusion_type"
  assert tuned == {
    "HOME": "/h",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_FLAGS": f"{flag}=-individual_convolution",
  }
  assert dispatcher.tuned_environment(tuned, jaxlib="0.12.0.1") == tuned
  chosen = {"GLIBC_TUNABLES": "", "XLA_FLAGS": f"--a=1 {flag}="}
  assert dispatcher.tuned_environment(chosen, jaxlib="0.10.2") == chosen
  added = dispatcher.tuned_environment({"XLA_FLAGS": "--a=1"}, jaxlib="0.10.2")
  assert added["XLA_FLAGS"] == f"--a=1 {flag}=-individual_convolution"
  # An XLA that does not know a flag aborts.
  assert "XLA_FLAGS" not in dispatcher.tuned_environment({}, jaxlib="0.99.0")


def test_a_prevalence_is_told_with_each_verdict(capsys):
  assert answer("fake.mp4", "real.jpg", as_json=True, prevalence=0.1) == 0
  first, second = json.loads(capsys.readouterr().out)
  # 0.9 of one half is 9 to 1; of a tenth 1 to 1.
  assert first["at_prevalence"]["probability"] == pytest.approx(0.5)
  assert second["at_prevalence"]["prevalence"] == 0.1
  assert answer("fake.mp4", as_json=True) == 0
  assert json.loads(capsys.readouterr().out)["at_prevalence"] is None


def test_a_prevalence_is_one_share():
  assert detect.one_prevalence(None) is None and detect.one_prevalence([0.02]) == 0.02
  for values in ([0.0], [1.0], [0.1, 0.2]):
    with pytest.raises(app.UsageError, match="one share above 0"):
      detect.one_prevalence(values)
