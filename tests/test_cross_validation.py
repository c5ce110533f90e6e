"""Folds as runs: each example is scored once by a model that has not seen it, whatever interrupts them."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import labelled_media
import numpy as np
import pytest
from absl.testing import flagsaver
from labelled_media import FOLDS
from tiny import tiny_branch, tiny_config

from deepscan_jax import compilation_cache, cross_validation, data, metrics, training
from deepscan_jax.inference import load_detector
from deepscan_jax.launch import train


class Interrupted(Exception):
  pass


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


def folded_config(**changes):
  config = tiny_config(learning_rate=0.01, **changes)
  labelled = {"datasets": ("real_fake_folder",), "pseudofakes": False, "batch_size": 8}
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **labelled))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
  """(data folder, {group: split})."""
  data_dir = tmp_path_factory.mktemp("people_data")
  return data_dir, labelled_media.pictures_of_people(tmp_path_factory.mktemp("people") / "mine", data_dir)


@pytest.fixture(scope="module")
def whole(people, tmp_path_factory):
  """(summary, workdir, splits that were opened) of a cross-validation that broke off in its second fold."""
  data_dir, _ = people
  workdir, opened, begun = tmp_path_factory.mktemp("folds"), [], []

  def opening(name, split, *args, **kept):
    opened.append(split)
    return open_split(name, split, *args, **kept)

  class Progress(training.Progress):
    def __init__(self, steps):
      begun.append(steps)
      super().__init__(steps)

    def show(self, step, text):
      if len(begun) == 2 and step == 3:
        raise Interrupted

  open_split = data._open
  run = functools.partial(cross_validation.cross_validate, data_dir=data_dir, folds=FOLDS)
  with pytest.MonkeyPatch.context() as patch, tiny_branch():
    patch.setattr(training, "Progress", Progress)
    patch.setattr(data, "_open", opening)
    with pytest.raises(Interrupted):
      run(folded_config(), workdir=workdir)
    first = (workdir / "fold_0" / "fold.json").read_bytes()
    summary = run(folded_config(), workdir=workdir)
  # One begins in each fold, and one goes on in the second.
  assert len(begun) == 3 and (workdir / "fold_0" / "fold.json").read_bytes() == first
  return summary, workdir, set(opened)


def examples_of(data_dir, split, **fold) -> list[dict]:
  config = dataclasses.replace(folded_config().data, **fold)
  source = data.held_out(config, split, data_dir=data_dir).source
  return [source[index] for index in range(len(source))]


def test_each_example_of_train_and_validation_is_scored_once_and_test_stays_shut(whole, people):
  data_dir, groups = people
  summary, workdir, opened = whole
  scored = [cross_validation.out_of_fold(workdir, fold) for fold in range(FOLDS)]
  ids = [name for scores in scored for name in scores.id.tolist()]
  expected = [
    f"{row['dataset']}:{row['id']}"
    for split in ("train", "validation")
    for row in examples_of(data_dir, split)
  ]
  assert sorted(ids) == sorted(expected) and len(set(ids)) == len(ids) == summary["pooled"]["count"]
  assert opened == {"train", "validation"}
  assert "test" in groups.values() and summary["between_folds"] == 0


@pytest.mark.parametrize("fold", range(FOLDS))
def test_a_fold_learns_from_nobody_whom_it_scores(fold, people, whole):
  data_dir, groups = people
  learnt, held = (
    {row["group"] for row in examples_of(data_dir, split, folds=FOLDS, fold=fold)}
    for split in ("train", "validation")
  )
  assert learnt and held and not learnt & held
  assert learnt | held == {group for group, split in groups.items() if split != "test"}
  # Both of the splits that are divided are in it.
  assert {groups[group] for group in held} == {"train", "validation"}
  assert set(cross_validation.out_of_fold(whole[1], fold).group.tolist()) == held
  test = {row["group"] for row in examples_of(data_dir, "test", folds=FOLDS, fold=fold)}
  assert test == {group for group, split in groups.items() if split == "test"}


def test_the_summary_is_that_of_the_scores(whole):
  summary, workdir, _ = whole
  assert json.loads((workdir / "folds.json").read_text()) == summary
  scored = [cross_validation.out_of_fold(workdir, fold) for fold in range(FOLDS)]
  each = [metrics.auc(scores.labels, scores.logits) for scores in scored]
  assert [row["figures"]["auc"] for row in summary["per_fold"]] == each
  spread = summary["spread"]["auc"]
  np.testing.assert_allclose(spread["mean"], sum(each) / FOLDS)
  np.testing.assert_allclose(
    spread["std"], np.sqrt(sum((x - spread["mean"]) ** 2 for x in each) / (FOLDS - 1))
  )
  assert (spread["min"], spread["max"]) == (min(each), max(each))
  labels, logits = (np.concatenate([getattr(s, name) for s in scored]) for name in ("labels", "logits"))
  assert summary["pooled"]["auc"] == metrics.auc(labels, logits)
  assert summary["pooled"]["accuracy"] == metrics.accuracy(labels, logits)
  low, high = summary["pooled"]["auc_interval"]
  assert low <= summary["pooled"]["auc"] <= high


def test_a_model_of_a_fold_can_be_used_and_scores_what_it_has_not_seen(whole, people):
  detector = load_detector(whole[1] / "fold_1" / "best")
  assert (detector.config.data.folds, detector.config.data.fold) == (FOLDS, 1)
  held = data.held_out(detector.config.data, "validation", data_dir=people[0])
  again = detector.judge(
    {key: np.concatenate([held[i][key] for i in range(len(held))]) for key in detector.inputs}
  )
  np.testing.assert_allclose(again.logits, cross_validation.out_of_fold(whole[1], 1).logits, atol=1e-5)


def test_folds_from_two_machines_sum_up_to_the_same(whole, people, tmp_path, caplog):
  run = functools.partial(cross_validation.cross_validate, folded_config(), data_dir=people[0], folds=FOLDS)
  with caplog.at_level("INFO"):
    assert run(workdir=tmp_path / "one", fold=1) is None
  assert "Not there yet: fold 0." in caplog.text and not (tmp_path / "one" / "fold_0").exists()
  shutil.copytree(whole[1] / "fold_0", tmp_path / "one" / "fold_0")
  together = run(workdir=tmp_path / "one")
  assert together["pooled"] == whole[0]["pooled"] and together["spread"] == whole[0]["spread"]


def test_a_signal_stops_a_fold_where_it_is_and_the_same_call_goes_on(
  whole, people, tmp_path, monkeypatch, caplog
):
  run = functools.partial(
    cross_validation.cross_validate, folded_config(), workdir=tmp_path, data_dir=people[0], folds=FOLDS
  )

  def asked(function):
    def called(*args, **kwargs):
      os.kill(os.getpid(), signal.SIGTERM)
      return function(*args, **kwargs)

    return called

  step = training.parallel_step
  for module, name, ask, told in (
    (training, "parallel_step", lambda *args: asked(step(*args)), "stopped by SIGTERM at step 1;"),
    # When it is trained and about to be scored.
    (cross_validation, "Detector", asked(cross_validation.Detector), "stopped by SIGTERM;"),
  ):
    caplog.clear()
    with caplog.at_level("INFO"), monkeypatch.context() as patch:
      patch.setattr(module, name, ask)
      assert run() is None
    assert f"Fold 0: {told} the same command goes on." in caplog.text
    assert "Not there yet" not in caplog.text and "Fold 1" not in caplog.text
    assert not (tmp_path / "fold_1").exists() and not (tmp_path / "fold_0" / "fold.json").exists()
  assert run(fold=0) is None
  ours, theirs = (cross_validation.fold_figures(folder, 0) for folder in (tmp_path, whole[1]))
  # Files of the same numbers differ in names that are drawn.
  assert {**ours, "model": ""} == {**theirs, "model": ""}
  ours, theirs = (cross_validation.out_of_fold(folder, 0) for folder in (tmp_path, whole[1]))
  np.testing.assert_array_equal(ours.logits, theirs.logits)


def test_the_verb_says_that_a_signal_stopped_a_fold(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(compilation_cache, "switch_on", lambda: "")
  monkeypatch.setattr(
    cross_validation, "cross_validate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
  )
  with flagsaver.flagsaver(workdir=str(tmp_path), preset="default", folds=FOLDS, stopped_exit_code=143):
    assert train.main(["train"]) == 143
  assert capsys.readouterr().out == "stopped by SIGTERM; the same command goes on.\n"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"folds": 1}, r"2 folds or more"),
    ({"folds": FOLDS, "fold": FOLDS}, r"There is no fold 2 of 2: give 2 folds or more"),
    ({"folds": FOLDS, "resume": False}, r"fold_0 holds a run already; leave out --noresume"),
    (
      {"folds": FOLDS, "config": folded_config(steps=9)},
      r"fold_0 .*another configuration \(train.steps: 4 -> 9\)",
    ),
  ],
)
def test_what_cannot_be_is_refused(changes, message, whole, people):
  settings = {"config": folded_config(), "workdir": whole[1], "data_dir": people[0], **changes}
  with pytest.raises(ValueError, match=message):
    cross_validation.cross_validate(settings.pop("config"), **settings)


def test_folds_without_fakes_or_over_another_run_are_refused_before_anything_is_written(
  people, prepared_dataset, tmp_path
):
  real = dataclasses.replace(folded_config().data, datasets=("real_only",))
  config = dataclasses.replace(folded_config(), data=real)
  with pytest.raises(ValueError, match=r"train split of real_only \(fold 0 of 2\) has no fake examples"):
    cross_validation.cross_validate(config, workdir=tmp_path / "a", data_dir=prepared_dataset, folds=FOLDS)
  assert not (tmp_path / "a").exists()
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="b holds a run without folds"):
    cross_validation.cross_validate(folded_config(), workdir=tmp_path / "b", data_dir=people[0], folds=FOLDS)


def test_scores_of_other_data_are_not_summed_up(whole, people, tmp_path):
  shutil.copytree(whole[1], tmp_path / "folds")
  file = tmp_path / "folds" / "fold_0" / "out_of_fold.npz"
  for cut, message in (
    (slice(1, None), "examples were scored and"),
    (slice(None), "was scored in folds 0 and 1"),
  ):
    source = file if cut.start else whole[1] / "fold_1" / "out_of_fold.npz"
    with np.load(source) as stored:
      rows = {name: values[cut] if values.ndim else values for name, values in stored.items()}
    np.savez(file, **rows)
    with pytest.raises(ValueError, match=message):
      cross_validation.cross_validate(
        folded_config(), workdir=tmp_path / "folds", data_dir=people[0], folds=FOLDS
      )


def test_the_verb_prints_a_table_and_trains_nothing_that_is_done(
  whole, people, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(compilation_cache, "switch_on", lambda: "")
  monkeypatch.setattr(training, "fit", None)
  (tmp_path / "preset.py").write_text(
    "from test_cross_validation import folded_config\n\n\ndef get_config():\n  return folded_config()\n"
  )
  settings = {"preset": str(tmp_path / "preset.py"), "data_dir": str(people[0]), "workdir": str(whole[1])}
  with flagsaver.flagsaver(**settings, folds=FOLDS):
    assert train.main(["train"]) == 0
  told = capsys.readouterr().out
  assert "| fold | scored | auc | accuracy | video auc |" in told and "| pooled | 16 |" in told
  assert f"{whole[1]}/folds.json" in told
  with flagsaver.flagsaver(**settings), pytest.raises(train.app.UsageError, match="holds a cross-validation"):
    train.main(["train"])
  with flagsaver.flagsaver(**settings, fold=1), pytest.raises(train.app.UsageError, match="give --folds too"):
    train.main(["train"])
