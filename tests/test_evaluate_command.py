import dataclasses
import json

import pytest
from absl import app
from absl.testing import flagsaver
from test_card import PROTOCOL, better, made, scored, videos

from deepscan_jax import card, scoring
from deepscan_jax.launch import evaluate


def write(path, found: dict) -> str:
  path.write_text(json.dumps(found, allow_nan=False))
  return str(path)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"checkpoint": "a", "model_path": "b"}, "the same flag"),
    ({"media": ["a"], "datasets": ["b"]}, "either --datasets or --media"),
    ({"name": "dfdc"}, "--name goes with --media"),
    ({"perturb": ["all"], "media": ["a"]}, "--perturb goes with prepared datasets"),
    ({"split": "all"}, "--split=all goes with --media"),
    ({"output_json": "/nowhere/at/all.json"}, "no such folder"),
  ],
)
def test_flags_that_contradict_each_other(flags, message):
  with flagsaver.flagsaver(**flags), pytest.raises(app.UsageError, match=message):
    evaluate.main(["evaluate"])


def test_a_card_is_no_argument_unless_it_is_compared():
  with pytest.raises(app.UsageError, match=r"Unexpected argument 'a\.json'"):
    evaluate.main(["evaluate", "a.json"])
  with flagsaver.flagsaver(compare=True), pytest.raises(app.UsageError, match="needs two cards"):
    evaluate.main(["evaluate", "a.json"])


def test_cards_are_compared(tmp_path, capsys):
  rows = videos(shift=0.5)
  names = [
    write(tmp_path / "a.json", made(scored(rows))),
    write(tmp_path / "b.json", made(scored(better(rows, 1.5)))),
  ]
  output = tmp_path / "result.json"
  with flagsaver.flagsaver(compare=True, draws=200, output_json=str(output)):
    assert evaluate.main(["evaluate", *names]) == 0
  told = capsys.readouterr().out
  assert "The second is better: AUC" in told and told.count("| real_only |") == 2
  assert json.loads(output.read_text())["figures"]["auc"]["distinguishable"]


def test_cards_of_different_protocols_need_a_word(tmp_path, capsys):
  rows = videos()
  other = made(scored(rows), protocol=dataclasses.replace(PROTOCOL, preprocessing="sbi"))
  names = [write(tmp_path / "a.json", made(scored(rows))), write(tmp_path / "b.json", other)]
  with flagsaver.flagsaver(compare=True, draws=100):
    with pytest.raises(card.ProtocolError, match="--allow_different_protocols"):
      evaluate.main(["evaluate", *names])
    with flagsaver.flagsaver(allow_different_protocols=True):
      assert evaluate.main(["evaluate", *names]) == 0
  assert "The protocols differ: preprocessing: 'own' and 'sbi'." in capsys.readouterr().out


def test_a_folder_of_ones_own_goes_by_no_datasets_name(monkeypatch):
  asked = []

  def evaluate_model(model, **given):
    asked.append((given["datasets"], given["split"]))
    return made(scored(videos()))

  monkeypatch.setattr(scoring, "evaluate_model", evaluate_model)
  monkeypatch.setattr(evaluate, "_media_files", lambda name, split: [name, split])
  for name in (None, "dfdc"):
    with flagsaver.flagsaver(media=["folder"], name=name, frames=32):
      assert evaluate.main(["evaluate"]) == 0
  # A model that was trained on somebody's real_fake_folder has not seen everybody's.
  assert asked == [(["own_files"], "all"), (["dfdc"], "test")]


def test_what_is_no_card_is_told(tmp_path):
  good = write(tmp_path / "a.json", made(scored(videos())))
  bad = tmp_path / "b.json"
  bad.write_text("{")
  with flagsaver.flagsaver(compare=True), pytest.raises(ValueError, match="is no evaluation card"):
    evaluate.main(["evaluate", good, str(bad)])
  with flagsaver.flagsaver(compare=True), pytest.raises(FileNotFoundError):
    evaluate.main(["evaluate", good, str(tmp_path / "c.json")])
