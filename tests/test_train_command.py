"""The training command: flags for fields, what is refused before anything is written, which labels count."""

import json
import shutil
from pathlib import Path

import labelled_media
import numpy as np
import pytest
from absl.testing import flagsaver
from tiny import tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, compilation_cache, data
from deepscan_jax.config import from_dict, load_preset, override
from deepscan_jax.inference import load_detector
from deepscan_jax.launch import __main__ as dispatcher
from deepscan_jax.launch import train
from deepscan_jax.models import detector

PRESET = "from tiny import tiny_config\n\n\ndef get_config():\n  return tiny_config()\n"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setattr(compilation_cache, "switch_on", lambda: "")
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def public_sets(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("public_data")
  labelled_media.three_public_sets(tmp_path_factory.mktemp("public"), data_dir)
  return data_dir


@pytest.fixture
def preset(tmp_path) -> str:
  (tmp_path / "preset.py").write_text(PRESET)
  return str(tmp_path / "preset.py")


def deepscan(*arguments: str) -> int:
  """The exit code of a command that runs in this process."""
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
    dispatcher.run(["train", *arguments])
  return ended.value.code


def configured(preset="default", /, *assignments, data_dir="nowhere", pretrained_dir=None, **given):
  return train.configured(preset, given, assignments, data_dir=str(data_dir), pretrained_dir=pretrained_dir)


def test_a_detector_is_trained_on_three_public_sets_by_one_command(
  public_sets, preset, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  command = [
    "--model-name=my_detector",
    "--epochs=2",
    "--batch_size=8",
    "--learning-rate=1e-4",
    "--datasets=celeb_df,faceforensics,wild_deepfake",
    "--target_accuracy=0.99",
    f"--preset={preset}",
    f"--data-dir={public_sets}",
    "--set",
    "train.validate_every=1",
  ]
  assert deepscan(*command) == 0
  told = capsys.readouterr()
  assert "The run is written to runs/my_detector." in told.err
  assert "The labels of celeb_df/v2, faceforensics/c23, wild_deepfake are learnt (" in told.err
  assert "the model: runs/my_detector/best" in told.out
  config = from_dict(json.loads(Path("runs/my_detector/config.json").read_text()))
  assert config.data.datasets == ("celeb_df/v2", "faceforensics/c23", "wild_deepfake")
  assert not config.data.pseudofakes and config.data.balance_classes and config.data.batch_size == 8
  assert (config.name, config.train.epochs, config.train.learning_rate) == ("my_detector", 2, 1e-4)
  assert config.train.target_accuracy == 0.99
  # The preset names another metric, for pictures without labels.
  assert (tiny_config().train.metric, config.train.metric) == ("auc", "video_auc")
  assert (config.train.focal_gamma, config.train.class_weights) == (2.0, (1.0, 1.5))
  assert config.train.weight_decay == 1e-4
  assert "train.metric=video_auc, train.focal_gamma=2.0, " in told.err.replace('"', "")
  assert load_detector("runs/my_detector/best").metadata["name"] == "my_detector"
  rows = [json.loads(line) for line in Path("runs/my_detector/scalars.jsonl").read_text().splitlines()]
  validated = [row for row in rows if "validation/video_auc" in row]
  assert validated and "validation/paired_accuracy" not in validated[-1]
  # What chose the model, and counts towards an early stop.
  best = max(row["validation/video_auc"] for row in validated)
  assert f"best video_auc {best:.4f} at step " in told.out
  # The same command goes on, which at the end is to stay; another one is refused, naming what changed.
  lines = Path("runs/my_detector/scalars.jsonl").read_text()
  assert deepscan(*command) == 0 and Path("runs/my_detector/scalars.jsonl").read_text() == lines
  capsys.readouterr()
  assert deepscan(*command, "--noresume") == 2
  assert "runs/my_detector holds a run already; leave out --noresume" in capsys.readouterr().err
  assert deepscan(*command, "--learning_rate=1e-3") == 2
  assert "(train.learning_rate: 0.0001 -> 0.001)" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--batch_size=0"], "data.batch_size must be 1 or more, got 0."),
    (["--learning_rate=-1"], "train.learning_rate must be a number above 0, got -1."),
    (["--learning_rate=nan"], "train.learning_rate must be a number above 0, got nan."),
    (["--target_accuracy=2"], "train.target_accuracy must lie from 0 (off) to 1, got 2."),
    (["--epochs=0"], "--epochs must be 1 or more, got 0."),
    (["--epochs=many"], "flag --epochs=many: 'many' is not a whole number."),
    (["--set=train.validate_every=0"], "train.validate_every must be 1 or more, got 0."),
    (["--datasets=celebdf"], "Unknown dataset 'celebdf'; there are asvspoof2019_la, "),
    (
      ["--datasets=celeb_df"],
      "'celeb_df/v2' is not in DATA (found there: real_only); build it with: deepscan ",
    ),
    (["--set=data.datasets=mine"], "Dataset 'mine' is not in DATA (found there: real_only); build it with: "),
    (["--datasets="], "--datasets names none;"),
    (["--model_name=a/b"], "--model_name must be letters, digits and ._- and begin with none of . and -"),
    (["--pretrained_dir=gone"], "--pretrained_dir=gone is no folder."),
    (
      ["--pretrained_dir=DATA", "--set=model.branches=spatial"],
      "DATA has no ImageNet weights of lite0: expected a file whose name begins with efficientnetlite0 and",
    ),
    (["--set=train.start_from=gone"], "No model at gone"),
    (
      ["--folds=1"],
      "There is no fold 0 of 1: give 2 folds or more (0: none), and a fold from 0 to below them.",
    ),
    (["--folds=5", "--fold=5"], "There is no fold 5 of 5: "),
    (["--fold=1"], "--fold says which fold of a cross-validation: give --folds too."),
    (["--folds=40"], "of 40) has no real examples, without which no model can be chosen; add some,"),
    (["--epochs=2", "--set=train.steps=3"], "--epochs=2 and --set=train.steps=3 both say how long to train"),
    (["--set=data.pseudofakes=false"], "The train split of real_only has no fake examples, without which"),
  ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
  arguments, message, prepared_dataset, preset, tmp_path, capsys
):
  workdir = tmp_path / "run"
  arguments = [argument.replace("DATA", str(prepared_dataset)) for argument in arguments]
  code = deepscan(f"--preset={preset}", f"--data_dir={prepared_dataset}", f"--workdir={workdir}", *arguments)
  told = capsys.readouterr().err
  assert code == 2 and message.replace("DATA", str(prepared_dataset)) in told
  assert "Traceback" not in told and len(told.strip().splitlines()) == 1
  assert not workdir.exists()


def test_flags_stand_for_fields_between_the_preset_and_set(prepared_dataset):
  config = configured("default", "train.patience=3", model_name="mine", batch_size=4, learning_rate=0.1)
  expected = load_preset("default")
  for assignment in ("name=mine", "data.batch_size=4", "train.learning_rate=0.1", "train.patience=3"):
    expected = override(expected, assignment)
  assert config == expected
  # The same twice is no contradiction.
  assert configured(
    "default", "data.batch_size=4", "name=mine", model_name="mine", batch_size=4
  ) == configured("default", model_name="mine", batch_size=4)
  with pytest.raises(ValueError, match=r"--batch_size=4 and --set=data.batch_size=8 contradict each other"):
    configured("default", "data.batch_size=8", batch_size=4)


def test_a_set_of_steps_takes_the_place_of_epochs(capsys):
  assert configured("spatial_only", "train.steps=7").train.epochs == 0
  assert "train.steps=7 takes the place of the preset's 150 epochs." in capsys.readouterr().err
  counted = configured("default", epochs=3).train
  assert (counted.epochs, counted.restarts) == (3, ())
  assert "does not restart at 2600: the run counts epochs." in capsys.readouterr().err


def test_pseudofakes_stay_where_nothing_is_known_to_be_forged(prepared_dataset, capsys):
  config = configured("default", data_dir=prepared_dataset, datasets=["real_only"])
  assert config.data.pseudofakes and config.data.source_weights == () and not capsys.readouterr().err


def test_what_is_learnt_can_be_decided(public_sets, capsys):
  sets = {"data_dir": public_sets, "datasets": ["faceforensics"]}
  assert not configured("default", **sets).data.pseudofakes
  assert "(1 real and 1 fake examples, drawn equally often)" in capsys.readouterr().err
  assert configured("default", "data.pseudofakes=true", **sets).data.pseudofakes
  mixed = configured("default", "data.labelled_share=0.5", **sets).data
  assert mixed.pseudofakes and mixed.labelled_share == 0.5
  assert not configured("default", "data.balance_classes=false", **sets).data.balance_classes
  assert "(1 real and 1 fake examples);" in capsys.readouterr().err
  assert configured("spatial_only", **sets).data == override(
    load_preset("spatial_only"), "data.datasets=faceforensics/c23"
  ).data  # fmt: skip
  assert not capsys.readouterr().err


def test_labels_have_an_objective_of_their_own_unless_it_is_set(public_sets, capsys):
  sets = {"data_dir": public_sets, "datasets": ["faceforensics"]}
  preset, found = load_preset("default").train, configured("default", **sets).train
  changed = {name for name, value in vars(found).items() if value != getattr(preset, name)}
  assert changed == {"metric", "focal_gamma", "class_weights", "weight_decay"}
  assert (found.metric, found.focal_gamma, found.weight_decay) == ("video_auc", 2.0, 1e-4)
  told = capsys.readouterr().err
  assert "train.class_weights=[1.0,1.5], train.weight_decay=0.0001; --set changes it." in told
  ours = ("train.metric=auc", "train.focal_gamma=0", "train.class_weights=[1,1]", "train.weight_decay=0.01")
  assert configured("default", *ours, **sets).train == preset
  assert "this counts" not in capsys.readouterr().err
  # Without labels, the preset counts.
  assert configured("default", "data.pseudofakes=true", **sets).train == preset


def test_training_starts_from_a_folder_of_weights_or_of_a_model(tmp_path):
  config = configured("spatial_only", pretrained_dir=str(tmp_path)).train
  assert (config.imagenet_dir, config.start_from, config.pretrained) == (str(tmp_path), "", True)
  model = write_model(tmp_path / "model")
  config = configured("spatial_only", pretrained_dir=str(model)).train
  assert (config.imagenet_dir, config.start_from) == ("", str(model))
  with pytest.raises(ValueError, match=r"--pretrained_dir and --set=train.start_from both say what to start"):
    configured("spatial_only", "train.start_from=x", pretrained_dir=str(model))


def test_people_of_several_archives_never_meet_in_two_folds(public_sets):
  """wild_deepfake knows archives, of which each sequence is a group of its own."""
  names = ("wild_deepfake",)
  source = data.ExampleSource(names, "train", public_sets)
  people = {source[i]["identities"] for i in range(len(source))}
  assert people == {f"{name}_train/{n}".encode() for name in ("real", "fake") for n in _archives(source)}
  homes: dict[str, set[int]] = {}
  for fold in range(2):
    held = data.ExampleSource(names, "validation", public_sets, fold=data.Fold(fold, 2, names))
    for i in range(len(held)):
      homes.setdefault(held[i]["id"].rpartition("/")[0], set()).add(fold)
  assert len(homes) == 4 and all(len(folds) == 1 for folds in homes.values())


def _archives(source) -> set[str]:
  return {source[i]["id"].split("/")[1] for i in range(len(source))}


def test_training_never_opens_the_test_split(prepared_dataset, preset, tmp_path):
  poisoned = tmp_path / "data"
  shutil.copytree(prepared_dataset, poisoned)
  files = list(poisoned.rglob("*-test.array_record*"))
  assert files
  for file in files:
    file.write_bytes(b"nobody may read this")
  for name, data_dir in (("whole", prepared_dataset), ("poisoned", poisoned)):
    assert deepscan(f"--preset={preset}", f"--data_dir={data_dir}", f"--workdir={tmp_path / name}") == 0
  ours, theirs = (checkpoints.read_params(tmp_path / name / "best") for name in ("whole", "poisoned"))
  np.testing.assert_array_equal(*(x["params"]["tiny"]["describe"]["kernel"] for x in (ours, theirs)))
  with pytest.raises(Exception):  # noqa: B017 - whatever reading such a file raises.
    source = data.ExampleSource(["real_only"], "test", poisoned)
    source[0]


def test_the_readme_shows_a_branch_of_ones_own_that_trains(prepared_dataset, tmp_path, monkeypatch):
  readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
  blocks = [block.partition("```")[0] for block in readme.split("```python\n")[1:]]
  (code,) = [block for block in blocks if "register_branch" in block]
  assert len(code.splitlines()) < 40
  short, folder = "steps=2, validate_every=2, warmup_steps=1", tmp_path / "data"
  assert code.count("steps=2000") == 1
  code = code.replace("steps=2000", short)
  folder.symlink_to(prepared_dataset)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(detector, "BRANCHES", dict(detector.BRANCHES))
  monkeypatch.setattr(detector, "LABEL_OF", dict(detector.LABEL_OF))
  names: dict = {}
  exec(code, names)
  result, figures = names["result"], names["figures"]
  assert int(result.state.step) == 2 and "spectrum" in result.state.params
  assert 0 <= figures["pairs"]["all"]["auc"] <= 1
  assert load_detector("runs/spectrum/best").config.model.branches == ("spectrum",)
