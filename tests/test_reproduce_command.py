"""`deepscan reproduce`: a report's files are judged again, with the report's model or not at all."""

import json
import os
from pathlib import Path

import face_media
import media_files
import pytest
from absl import flags
from tiny import tiny_branch, write_model

from deepscan_jax import checkpoints, inference, report
from deepscan_jax.launch import detect, reproduce

FRAMES = 4


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
  return write_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
  """A folder with media, and reports of one file (one.json) and of three, one of which cannot be read."""
  folder = tmp_path_factory.mktemp("made")
  media_files.picture(folder / "a.png", face_media.portrait())
  media_files.write_video(folder / "b.mp4", face_media.moving_portrait(8))
  media_files.text(folder / "c.jpg")
  with tiny_branch():
    detector = inference.load_detector(model)
    for name, files in (("one", ["b.mp4"]), ("all", ["a.png", "b.mp4", "c.jpg"]), ("none", ["c.jpg"])):
      given = [detect.Input(folder / file) for file in files]
      detect.detect(detector, given, frames=FRAMES, quiet=True, output_json=str(folder / f"{name}.json"))
  return folder


@pytest.fixture
def run(monkeypatch):
  def call(report_path: Path, **given) -> int:
    settings = {"media": [], "model_path": None, "frames": None, "output_json": None, **given}
    for name, value in settings.items():
      monkeypatch.setattr(reproduce, f"_{name.upper()}", type("Flag", (), {"value": value}))
    return reproduce.main(["reproduce", str(report_path)])

  return call


def entries_of(path: Path) -> list[dict]:
  found = json.loads(path.read_text())
  return found if isinstance(found, list) else [found]


def test_a_report_holds_what_it_takes_to_do_it_again(made, model):
  (entry,) = entries_of(made / "one.json")
  assert entry["run"]["path"] == str(made / "b.mp4") and entry["run"]["frames"] == FRAMES
  assert entry["run"]["model_path"] == str(model) and entry["run"]["device"]
  assert {"jax", "python", "deepscan_jax"} <= entry["run"]["versions"].keys()
  assert len(entry["file"]["sha256"]) == len(entry["model"]["sha256"]) == 64


def test_a_report_of_one_file_reproduces(made, run, capsys):
  assert run(made / "one.json") == 0
  told = capsys.readouterr()
  assert (
    told.out.startswith("b.mp4: reproduces; the largest of ")
    and "differences of scores is 0.0000" in told.out
  )
  assert told.out.endswith("1 of 1 verdict reproduced.\n") and "Other than then" not in told.out


def test_of_several_files_those_that_could_be_read_are_compared(made, run, tmp_path, capsys):
  assert run(made / "all.json", output_json=str(tmp_path / "r.json")) == 0
  assert "2 of 2 verdicts reproduced: 1 not read then." in capsys.readouterr().out
  found = json.loads((tmp_path / "r.json").read_text())
  assert found["reproduces"] is True and found["tolerance"] == 1e-3
  assert [row["status"] for row in found["files"]] == ["reproduces", "reproduces", "was_not_read"]


def test_a_report_without_a_verdict_compares_nothing(made, run, capsys):
  assert run(made / "none.json") == reproduce.NOTHING
  assert "nothing was compared" in capsys.readouterr().out


def test_a_verdict_that_differs_is_told_with_its_places_and_versions(made, run, tmp_path, capsys):
  (entry,) = entries_of(made / "one.json")
  entry["outcome"] = "likely_manipulated"
  entry["people"][0]["boxes"][1]["probability"] += 0.01
  entry["run"]["versions"]["jax"] = "0.0.1"
  path = tmp_path / "edited.json"
  path.write_text(json.dumps(entry))
  assert run(path, output_json=str(tmp_path / "r.json")) == reproduce.DIFFERS
  told = capsys.readouterr().out
  assert "does NOT reproduce" in told and "0 of 1 verdict reproduced: 1 differ." in told
  assert "    outcome: likely_manipulated then, " in told and "].probability: " in told
  assert "Other than then: jax 0.0.1 then, " in told
  found = json.loads((tmp_path / "r.json").read_text())
  assert found["reproduces"] is False and found["files"][0]["largest_difference"] == pytest.approx(
    0.01, abs=1e-4
  )


def test_fewer_frames_are_no_reproduction(made, run, tmp_path):
  (entry,) = entries_of(made / "one.json")
  entry["run"]["frames"] = 2
  path = tmp_path / "edited.json"
  path.write_text(json.dumps(entry))
  assert run(path) == reproduce.DIFFERS


def test_old_reports_do_not_say_how_many_frames(made, run, tmp_path, model):
  (entry,) = entries_of(made / "one.json")
  del entry["run"]
  entry["schema_version"] = "1.1"
  path = tmp_path / "old.json"
  path.write_text(json.dumps(entry))
  given = {"model_path": str(model), "media": [str(made / "b.mp4")]}
  assert run(path, frames=FRAMES, **given) == 0
  assert run(path, **given) == reproduce.DIFFERS  # 8 frames, not 4


def moved(made: Path, folder: Path) -> Path:
  """A report of all files whose videos lie in folder/deep; where they were, nothing is."""
  folder.joinpath("deep").mkdir()
  entries = entries_of(made / "all.json")[:2]
  for entry, name in zip(entries, ("x.png", "y.mp4"), strict=True):
    os.link(made / entry["file"]["name"], folder / "deep" / name)
    entry["run"]["path"] = entry["file"]["name"] = f"gone-{name}"
  path = folder / "moved.json"
  path.write_text(json.dumps(entries))
  return path


def test_files_that_were_moved_are_found_by_what_they_hold(made, run, tmp_path, capsys):
  path = moved(made, tmp_path)
  assert run(path) == reproduce.NO_FILE
  told = capsys.readouterr().out
  assert "There is no gone-x.png any more; say where the file lies now with --media=FILE." in told
  assert run(path, media=[str(tmp_path / "deep")]) == 0
  assert run(path, media=[str(tmp_path / "deep" / "x.png"), str(tmp_path / "deep" / "y.mp4")]) == 0
  assert run(path, media=[str(tmp_path / "deep" / "y.mp4")]) == reproduce.NO_FILE


def test_another_file_under_the_name_is_refused_in_a_sentence(made, run, tmp_path, capsys):
  assert run(made / "one.json", media=[str(made / "a.png")]) == reproduce.NO_FILE
  told = capsys.readouterr().out
  assert f"b.mp4: {made / 'a.png'} is another file than that of the report: its sha256 is " in told
  changed = bytearray((made / "b.mp4").read_bytes())
  changed[-1] ^= 1
  (tmp_path / "b.mp4").write_bytes(changed)
  assert run(made / "one.json", media=[str(tmp_path / "b.mp4")]) == reproduce.NO_FILE
  with pytest.raises(FileNotFoundError, match="There is no "):
    run(made / "one.json", media=[str(tmp_path / "nowhere")])


def test_a_file_beside_the_report_is_found(made, run, tmp_path, monkeypatch):
  (entry,) = entries_of(made / "one.json")
  entry["run"]["path"] = "b.mp4"
  os.link(made / "b.mp4", tmp_path / "b.mp4")
  (tmp_path / "r.json").write_text(json.dumps(entry))
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  assert run(Path("..") / "r.json") == 0


def test_another_model_is_refused_in_a_sentence(made, run, tmp_path, model, capsys):
  other = write_model(tmp_path / "other")
  facts = {k: v for k, v in checkpoints.read_model(other).items() if k != "sha256"}
  checkpoints.write_model_json(other, {**facts, "version": "9"})
  assert run(made / "one.json", model_path=str(other)) == reproduce.NO_MODEL
  told = capsys.readouterr().err
  assert "The report was made by the model" in told and "--model_path" in told and told.count("\n") == 1
  (entry,) = entries_of(made / "one.json")
  entry["run"]["model_path"] = str(tmp_path / "gone")
  (tmp_path / "r.json").write_text(json.dumps(entry))
  assert run(tmp_path / "r.json") == reproduce.NO_MODEL
  assert "If it lies elsewhere now, say where with --model_path." in capsys.readouterr().err
  assert run(tmp_path / "r.json", model_path=str(model)) == 0
  mixed = entries_of(made / "all.json")
  mixed[0]["model"]["sha256"] = "0" * 64
  (tmp_path / "r.json").write_text(json.dumps(mixed))
  with pytest.raises(ValueError, match="2 models"):
    run(tmp_path / "r.json")


def test_a_file_that_cannot_be_read_any_more_is_no_reproduction(made, run, tmp_path, monkeypatch, capsys):
  from deepscan_jax import media

  def refuse(self, path, **_):
    raise media.MediaError("timeout", "It took too long.")

  monkeypatch.setattr(inference.Detector, "detect", refuse)
  assert run(made / "one.json") == reproduce.DIFFERS
  assert "It cannot be read any more: It took too long." in capsys.readouterr().out


def test_verdicts_of_pictures_from_memory_have_no_file(model, run, tmp_path, capsys):
  answer = inference.load_detector(model).detect_images(face_media.portrait()[None])
  report.write_json(answer, tmp_path / "r.json")
  assert run(tmp_path / "r.json") == reproduce.NO_FILE
  assert "pictures from memory" in capsys.readouterr().out


def test_one_report_is_wanted():
  from absl import app

  for given in ([], ["a.json", "b.json"]):
    with pytest.raises(app.UsageError, match="one report"):
      reproduce.main(["reproduce", *given])
  assert flags.FLAGS["media"].help
