import json
import logging
import shutil
import threading
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax import checkpoints
from deepscan_jax.checkpoints import CheckpointError, RunCheckpoints

FACTS = {"name": "small", "version": "1", "config": {}}


def parameters(seed: int = 0) -> dict:
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(3, 4)).astype(np.float32)
  return {"params": {"dense": {"kernel": kernel}}, "batch_stats": {"norm": {"mean": kernel[0]}}}


@pytest.fixture
def folder(tmp_path):
  checkpoints.save_model(tmp_path / "best", params=parameters(), model=FACTS)
  return tmp_path / "best"


def data_file(folder):
  """The file of the parameters that holds the most."""
  return max((p for p in (folder / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_model_comes_back_as_it_was_saved(folder):
  facts = checkpoints.read_model(folder)
  assert {key: facts[key] for key in FACTS} == FACTS and len(facts["sha256"]) == 64
  restored = checkpoints.read_params(folder)
  np.testing.assert_array_equal(
    restored["params"]["dense"]["kernel"], parameters()["params"]["dense"]["kernel"]
  )
  np.testing.assert_array_equal(
    restored["batch_stats"]["norm"]["mean"], parameters()["batch_stats"]["norm"]["mean"]
  )


def test_no_file_says_where_the_model_was_saved(folder):
  place = str(folder.parent).encode()
  assert not [path.name for path in folder.rglob("*") if path.is_file() and place in path.read_bytes()]


def test_a_single_changed_bit_is_found(folder):
  file = data_file(folder)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(
    CheckpointError, match=rf"damaged: params/.*{file.name} differ.*fetch or write it again"
  ):
    checkpoints.read_model(folder)


def test_a_missing_file_is_found(folder):
  data_file(folder).unlink()
  with pytest.raises(CheckpointError, match="damaged"):
    checkpoints.read_model(folder)


def test_a_file_too_many_is_found(folder):
  (folder / "params" / "more").write_text("")
  with pytest.raises(CheckpointError, match="params/more"):
    checkpoints.read_model(folder)


def test_changed_facts_are_found(folder):
  file = folder / checkpoints.MODEL_FILE
  file.write_text(file.read_text().replace("small", "large"))
  with pytest.raises(CheckpointError, match=r"model\.json"):
    checkpoints.read_model(folder)


@pytest.mark.parametrize("name", [checkpoints.MODEL_FILE, checkpoints.MANIFEST_FILE])
def test_a_folder_that_is_no_model_is_refused_in_one_sentence(folder, name):
  (folder / name).write_text("{")
  with pytest.raises(CheckpointError, match="damaged"):
    checkpoints.read_model(folder)
  (folder / name).unlink()
  with pytest.raises(CheckpointError, match=rf"No model at {folder}: a model folder holds"):
    checkpoints.read_model(folder)


def test_new_facts_change_the_hash_and_stay_valid(folder):
  before = checkpoints.read_model(folder)
  checkpoints.write_model_json(folder, {**FACTS, "calibration": {"scale": 2.0}})
  after = checkpoints.read_model(folder)
  assert after["calibration"] == {"scale": 2.0} and after["sha256"] != before["sha256"]


def test_the_hash_is_of_the_content_alone(folder, tmp_path):
  manifest = json.loads((folder / checkpoints.MANIFEST_FILE).read_text())
  assert set(manifest) == {
    p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"
  }
  moved = folder.rename(tmp_path / "elsewhere")
  assert checkpoints.read_model(moved)["name"] == "small"


def test_a_model_is_replaced_whole_or_not_at_all(folder, monkeypatch):
  def fail(*_):
    raise OSError("no space left")

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "_write_facts", fail)
    with pytest.raises(OSError, match="no space left"):
      checkpoints.save_model(folder, params=parameters(1), model={**FACTS, "name": "next"})
  assert checkpoints.read_model(folder)["name"] == "small"
  checkpoints.save_model(folder, params=parameters(1), model={**FACTS, "name": "next"})
  assert checkpoints.read_model(folder)["name"] == "next"
  assert [p.name for p in folder.parent.iterdir()] == ["best"]


def test_parameters_that_cannot_be_read_are_refused(folder):
  data_file(folder).unlink()
  with pytest.raises(CheckpointError, match="again"):
    checkpoints.read_params(folder / "nothing")


class Killed(BaseException):
  """In place of the signal that no process survives."""


def dies_at(name: str, monkeypatch, *, call: int = 1):
  """Makes the process die when a method of Path is called for the n-th time, before it does anything."""
  real, calls = getattr(Path, name), iter(range(1, 1000))

  def method(self, *args):
    if next(calls) == call:
      raise Killed
    return real(self, *args)

  monkeypatch.setattr(Path, name, method)


@pytest.mark.parametrize("write", ["save_model", "write_model_json"])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_two_renames_leaves_the_model_before(folder, monkeypatch, caplog, write, rename):
  writers = {
    "save_model": lambda: checkpoints.save_model(
      folder, params=parameters(1), model={**FACTS, "name": "next"}
    ),
    "write_model_json": lambda: checkpoints.write_model_json(folder, {**FACTS, "name": "next"}),
  }
  with monkeypatch.context() as patch:
    if write == "save_model":
      # orbax renames as well: only ours are counted.
      put_in_place = checkpoints._put_in_place
      patch.setattr(
        checkpoints,
        "_put_in_place",
        lambda *paths: (dies_at("rename", patch, call=rename), put_in_place(*paths)),
      )
    else:
      dies_at("rename", patch, call=rename)
    with pytest.raises(Killed):
      writers[write]()
  assert folder.exists() == (rename == 1)
  # Whoever reads it now, and whoever trains on.
  assert checkpoints.read_model(folder)["name"] == "small"
  np.testing.assert_array_equal(
    checkpoints.read_params(folder)["params"]["dense"]["kernel"], parameters()["params"]["dense"]["kernel"]
  )
  checkpoints.recover_model(folder)
  assert folder.exists() and checkpoints.read_model(folder)["name"] == "small"
  assert len(caplog.records) == (rename == 2)
  writers[write]()
  assert checkpoints.read_model(folder)["name"] == "next"
  assert [p.name for p in folder.parent.iterdir()] == ["best"]


def positions(step: int):
  """A grain iterator that has given `step` numbers."""
  iterator = iter(grain.MapDataset.range(1000).to_iter_dataset())
  for _ in range(step):
    next(iterator)
  return iterator


def contents(step: int) -> dict:
  """What is saved at a step."""
  values = jnp.arange(12.0).reshape(3, 4) + step
  return {
    "params": {"params": {"dense": {"kernel": values}}},
    "train": {"step": jnp.asarray(step), "params": {"dense": {"kernel": values / 7}}, "opt_state": (values,)},
    "meta": {"record": {"best_step": step}},
  }


def save_steps(workdir: Path, *steps: int, keep: int = 2) -> None:
  run = RunCheckpoints(workdir, keep=keep)
  run.recover()
  for step in steps:
    run.save(step, data=positions(step), **contents(step))
  run.close()


def assert_goes_on_at(workdir: Path, step: int) -> None:
  """Goes on as training does; what comes back has to be what was saved at that step."""
  run, iterator = RunCheckpoints(workdir), positions(0)
  assert run.recover() == step
  saved = contents(step)
  params, train = run.restore(step, params=saved["params"], train=saved["train"], data=iterator)
  for ours, theirs in zip(
    *map(jax.tree.leaves, ((params, train), (saved["params"], saved["train"]))), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert next(iterator) == step and run.meta(step) == saved["meta"]
  run.close()


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  save_steps(workdir, 2, 4, 6)
  return workdir


@pytest.fixture
def run(saved_run, tmp_path):
  """A workdir with the steps 4 and 6."""
  return Path(shutil.copytree(saved_run, tmp_path / "run"))


def files_of(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_step_comes_back_as_it_was_saved_and_the_latest_are_kept(run):
  assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]
  assert_goes_on_at(run, 6)
  # Reading has changed nothing.
  assert RunCheckpoints(run).damage(6) is None
  read = RunCheckpoints(run).read(6)
  np.testing.assert_array_equal(read["train"]["opt_state"][0], contents(6)["train"]["opt_state"][0])
  assert read["meta"] == contents(6)["meta"] and len(read["data"]) == 1


def test_two_complete_steps_at_least_are_kept(tmp_path):
  with pytest.raises(ValueError, match=r"train\.keep_checkpoints must be 2 or more, .*got 1"):
    RunCheckpoints(tmp_path, keep=1)
  save_steps(tmp_path, 1, 2, 3, 4, keep=3)
  assert RunCheckpoints(tmp_path).steps() == [2, 3, 4]


def test_saving_goes_on_beside_training(tmp_path, monkeypatch):
  """The manifest is written by another thread; the next save waits for it."""
  go, threads, write = threading.Event(), [], checkpoints.write_whole

  def slowly(path, text):
    if path.name == checkpoints.MANIFEST_FILE:
      threads.append(threading.current_thread())
      assert go.wait(60)
    write(path, text)

  monkeypatch.setattr(checkpoints, "write_whole", slowly)
  run = RunCheckpoints(tmp_path)
  run.save(2, data=positions(2), **contents(2))
  assert run.latest_step() is None
  go.set()
  run.save(4, data=positions(4), **contents(4))
  assert run.damage(2) is None
  run.close()
  assert run.steps() == [2, 4] and run.latest_step() == 4
  assert len(threads) == 2 and threading.main_thread() not in threads


def test_what_went_wrong_in_the_background_is_raised_by_the_next_save(tmp_path, monkeypatch):
  def fail(path, text):
    del text
    if path.name == checkpoints.MANIFEST_FILE:
      raise OSError("no space left")
    path.touch()

  monkeypatch.setattr(checkpoints, "write_whole", fail)
  run = RunCheckpoints(tmp_path)
  run.save(2, data=positions(2), **contents(2))
  with pytest.raises(OSError, match="no space left"):
    run.save(4, data=positions(4), **contents(4))
  run.close()


def test_no_flipped_byte_is_loaded(run, caplog):
  """Over all files of a step, its manifest among them: each flip is found, and the step before is used."""
  rng = np.random.default_rng(0)
  files = files_of(run / "checkpoints" / "6")
  assert {"manifest.json", "metadata"} <= {file.name for file in files}
  sizes = np.array([file.stat().st_size for file in files])
  # Half of them anywhere in the files, half in a file of its own turn, or small ones would not be met.
  places = [
    (files[i % len(files)], int(rng.integers(sizes[i % len(files)])))
    for i in range(100)
    if sizes[i % len(files)]
  ]
  while len(places) < 200:
    file = rng.choice(len(files), p=sizes / sizes.sum())
    places.append((files[file], int(rng.integers(sizes[file]))))
  met, ways, silent = set(), set(), []
  for count, (file, place) in enumerate(places):
    before = file.read_bytes()
    flipped = bytearray(before)
    flipped[place] ^= 1 << int(rng.integers(8)) if count % 2 else int(rng.integers(1, 256))
    file.write_bytes(flipped)
    met.add(file)
    checked = RunCheckpoints(run)
    problem = checked.damage(6)
    if problem is None or checked.latest_step() != 4:
      silent.append((file, place))
    ways.add(str(problem))
    if count % 40 == 0:
      # The whole way, as training goes it.
      other = Path(shutil.copytree(run, run.parent / f"damaged_{count}"))
      caplog.clear()
      assert_goes_on_at(other, 4)
      (record,) = caplog.records
      assert record.levelno == logging.WARNING and problem in record.getMessage()
    file.write_bytes(before)
  assert len(places) == 200 and not silent
  assert met == {file for file in files if file.stat().st_size}
  assert RunCheckpoints(run).latest_step() == 6


def torn(step: Path, state: str) -> str:
  """Brings a step into a state in which a kill or a disk may leave it; returns what names the damage."""
  data_file = max(files_of(step), key=lambda path: path.stat().st_size)
  manifest = step / checkpoints.MANIFEST_FILE
  if state == "no manifest":
    manifest.unlink()
  elif state == "manifest under its first name":
    manifest.rename(step / f"{manifest.name}.part")
  elif state == "manifest cut off":
    manifest.write_bytes(manifest.read_bytes()[:-100])
    return manifest.name
  elif state == "manifest empty":
    manifest.write_bytes(b"")
  elif state == "manifest of another step":
    shutil.copy(step.parent / "4" / manifest.name, manifest)
    return ""
  elif state == "file cut off":
    data_file.write_bytes(data_file.read_bytes()[:-1])
    return data_file.name
  elif state == "file empty":
    data_file.write_bytes(b"")
    return data_file.name
  elif state == "file missing":
    data_file.unlink()
    return data_file.name
  elif state == "file too many":
    (step / "train" / "more").touch()
    return "train/more"
  elif state == "item missing":
    shutil.rmtree(step / "data")
    return "data/"
  elif state == "empty folder":
    shutil.rmtree(step)
    step.mkdir()
  elif state == "copy of another step":
    shutil.rmtree(step)
    shutil.copytree(step.parent / "4", step)
  return manifest.name


STATES = (
  *("no manifest", "manifest under its first name", "manifest cut off", "manifest empty"),
  *("manifest of another step", "file cut off", "file empty", "file missing", "file too many"),
  *("item missing", "empty folder", "copy of another step"),
)


@pytest.mark.parametrize("state", STATES)
def test_a_torn_step_is_told_and_moved_aside_and_the_one_before_is_used(run, state, caplog):
  folder = run / "checkpoints"
  named = torn(folder / "6", state)
  left = [path.relative_to(folder / "6") for path in files_of(folder / "6")]
  assert_goes_on_at(run, 4)
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  for words in ("step 6 ", named, "step 4 is used instead", "moved to ", "6.damaged"):
    assert words in record.getMessage()
  # Nothing is lost, and the step can be saved again.
  assert [path.relative_to(folder / "6.damaged") for path in files_of(folder / "6.damaged")] == left
  save_steps(run, 6)
  assert_goes_on_at(run, 6)
  assert len(caplog.records) == 1


def test_a_step_may_be_damaged_twice(run):
  for aside in ("6.damaged", "6.damaged-2", "6.damaged-3"):
    torn(run / "checkpoints" / "6", "file cut off")
    assert_goes_on_at(run, 4)
    assert (run / "checkpoints" / aside).is_dir()
    save_steps(run, 6)
  assert_goes_on_at(run, 6)


def test_what_a_kill_leaves_beside_the_steps_is_cleared_away(run, caplog):
  folder = run / "checkpoints"
  (folder / "8.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
  (folder / "8.orbax-checkpoint-tmp-1700000000" / "params").mkdir(parents=True)
  (folder / "2.deleted" / "params").mkdir(parents=True)
  assert_goes_on_at(run, 6)
  assert not caplog.records
  assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]


def test_where_no_step_is_sound_training_is_refused_and_nothing_changed(run, caplog):
  folder = run / "checkpoints"
  torn(folder / "4", "file cut off")
  torn(folder / "6", "no manifest")
  before = files_of(run)
  message = (
    r"None of the checkpoints in .* is sound \(step 4: .* is not as it was saved; step 6: manifest\.json is "
    r"missing\), and nothing was changed\. Put .* or remove that folder to start from the beginning, or "
  )
  with pytest.raises(CheckpointError, match=message):
    RunCheckpoints(run).recover()
  assert files_of(run) == before and not caplog.records


def test_where_the_first_save_was_cut_off_training_starts_from_the_beginning(tmp_path, caplog, monkeypatch):
  def killed(path, text):
    if path.name == checkpoints.MANIFEST_FILE:
      raise Killed
    path.write_text(text)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(checkpoints, "write_whole", killed)
    save_steps(tmp_path, 2)
  assert RunCheckpoints(tmp_path).recover() is None
  (record,) = caplog.records
  assert "training starts from the beginning" in record.getMessage() and "2.damaged" in record.getMessage()
  save_steps(tmp_path, 2)
  assert_goes_on_at(tmp_path, 2)
  # From now on there is something to lose.
  torn(tmp_path / "checkpoints" / "2", "no manifest")
  with pytest.raises(CheckpointError, match="is sound"):
    RunCheckpoints(tmp_path).recover()


def test_steps_of_an_older_version_cannot_be_verified_and_are_refused(run):
  for step in ("4", "6"):
    torn(run / "checkpoints" / step, "no manifest")
  with pytest.raises(CheckpointError, match=r"older versions wrote, without manifest\.json, cannot be told"):
    RunCheckpoints(run).recover()


def test_a_run_without_steps_starts_from_the_beginning(tmp_path, caplog):
  run = RunCheckpoints(tmp_path)
  assert run.recover() is None and run.latest_step() is None and run.steps() == []
  assert not caplog.records and not list(tmp_path.iterdir())
