import dataclasses
import json

import pytest

from deepscan_jax.config import Config, differences, from_dict, load_preset, override, preset_names, to_dict
from deepscan_jax.models.detector import BRANCHES
from deepscan_jax.models.efficientnet import family_member


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_names_what_exists(name):
  config = load_preset(name)
  assert isinstance(config, Config) and config.name
  assert set(config.model.branches) <= set(BRANCHES)
  family_member(config.model.backbone)


def test_a_preset_may_be_a_file(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "from deepscan_jax.config import Config\n\n\ndef get_config():\n  return Config(name='mine', seed=7)\n"
  )
  assert load_preset(str(file)) == Config(name="mine", seed=7)


def test_a_preset_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"Unknown preset 'defualt'.*default.*testing"):
    load_preset("defualt")
  with pytest.raises(FileNotFoundError, match="does not exist"):
    load_preset(str(tmp_path / "none.py"))
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(ValueError, match="no function get_config"):
    load_preset(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
  ("assignment", "value"),
  [
    ("seed=3", 3),
    ("name=trial", "trial"),
    ("train.learning_rate=1", 1.0),
    ("train.pretrained=false", False),
    ("data.datasets=mine", ("mine",)),
    ('data.datasets=["a", "b"]', ("a", "b")),
    ('data.source_weights=[["ffhq", 2]]', (("ffhq", 2),)),
    ("data.blend.hull_scale=[1, 1.5]", (1.0, 1.5)),
    ("data.augment.colour.rgb_shift=5", 5.0),
  ],
)
def test_an_override_changes_one_field_and_keeps_its_type(assignment, value):
  before = Config()
  after = override(before, assignment)
  node, plain = after, to_dict(before)
  *folders, field = assignment.partition("=")[0].split(".")
  branch = plain
  for folder in folders:
    node, branch = getattr(node, folder), branch[folder]
  got = getattr(node, field)
  assert got == value and type(got) is type(value)
  branch[field] = to_dict(after) and json.loads(json.dumps(value))
  assert to_dict(after) == plain
  assert before == Config()


@pytest.mark.parametrize(
  ("assignment", "message"),
  [
    ("train.steps", "must have the form"),
    ("train.step=3", r"No field 'step' in 'train.step'; TrainConfig has .*steps"),
    ("optimiser.steps=3", "No field 'optimiser'.* Config has data, model, name, seed, train"),
    ("seed.value=3", "goes on after 'seed'"),
    ("train.steps=many", "train.steps must be int, got 'many'"),
    ("train.steps=1.5", "train.steps must be int, got 1.5"),
    ("train.steps=true", "train.steps must be int, got True"),
    ("train.learning_rate=true", "must be float, got True"),
    ("train.pretrained=1", "must be bool, got 1"),
    ("data.blend.hull_scale=[1]", "must have 2 values"),
    ("model.dtype=float16", r"Unknown model\.dtype 'float16'; there are float32, bfloat16\."),
    ("train.schedule=step", r"Unknown train\.schedule 'step'; there are cosine, plateau\."),
    ("train.plateau_factor=1", r"train\.plateau_factor must be between 0 and 1, got 1\.0\."),
    ("train.plateau_factor=0", r"train\.plateau_factor must be between 0 and 1, got 0\.0\."),
    ("train.plateau_patience=0", r"train\.plateau_patience must be 1 validation or more, got 0\."),
    ("train.plateau_min=-1", r"train\.plateau_min must be 0 or more, got -1\.0\."),
    ("train.sam_rho=-0.1", r"train\.sam_rho must be 0 \(off\) or more, got -0\.1\."),
    ("train.sam_rho=NaN", r"train\.sam_rho must be 0 \(off\) or more, got nan\."),
    ("train.accumulate=0", r"train\.accumulate must be 1 \(the whole batch at once\) or more, got 0\."),
    ("train.focal_alpha=1", r"train\.focal_alpha must be 0 \(off\) or between 0 and 1, got 1\.0\."),
    ("train.focal_gamma=-2", r"train\.focal_gamma must be 0 \(cross entropy\) or more, got -2\.0\."),
  ],
)
def test_a_wrong_override_is_refused_with_what_is_accepted(assignment, message):
  with pytest.raises(ValueError, match=message):
    override(Config(), assignment)


def test_a_config_survives_json():
  config = override(override(Config(), "data.source_weights=[['a', 2]]".replace("'", '"')), "seed=5")
  assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_fills_what_is_missing_and_refuses_what_is_unknown():
  assert from_dict({"train": {"steps": 7}}) == dataclasses.replace(
    Config(), train=dataclasses.replace(Config().train, steps=7)
  )
  with pytest.raises(ValueError, match="Unknown fields of TrainConfig: stepps"):
    from_dict({"train": {"stepps": 7}})


def test_differences_are_told_by_their_dotted_paths():
  one = to_dict(Config())
  other = to_dict(override(override(Config(), "train.steps=7"), 'model.branches=["audio"]'))
  assert list(differences(one, other)) == [
    ("model.branches", ["spatial"], ["audio"]),
    ("train.steps", 1000, 7),
  ]
  assert list(differences(one, one)) == [] and list(differences({"a": {"b": 1}}, {})) == [
    ("a", {"b": 1}, None)
  ]


def test_a_configuration_from_before_there_were_these_fields_means_what_it_meant():
  stored = to_dict(Config())
  for field in ("schedule", "plateau_factor", "plateau_patience", "plateau_min", "sam_rho", "accumulate"):
    del stored["train"][field]
  del stored["train"]["focal_alpha"], stored["model"]["dtype"]
  assert from_dict(stored) == Config()
  train = Config().train
  assert (train.schedule, train.sam_rho, train.accumulate, train.focal_alpha) == ("cosine", 0.0, 1, 0.0)
  assert Config().model.dtype == "float32"
