"""Checkpoints: the only module that imports orbax.

Two forms. A run's checkpoint holds everything that training needs to go on (params, train, data, meta). A
model is what the detector loads: a folder with `params/` (orbax) and `model.json` (name, version,
configuration, calibration). Both hold a `manifest.json` (sha256 of every file), verified before anything is
read.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from deepscan_jax.files import PARTIAL, write_whole

MODEL_FILE = "model.json"
# Arrays of fewer numbers stay float32 in a bfloat16 copy: depthwise kernels and last layers are next to
# nothing on disk, and rounding them moved the default model's probabilities by 0.02, the rest by 0.001.
NARROW_FROM = 8192
MANIFEST_FILE = "manifest.json"
PARAMS_FOLDER = "params"
# Lies among the steps of a run until the first of them is complete: so long there is nothing to lose.
FIRST_FILE = "nothing_complete.txt"
# Of what is no longer a step: moved aside, about to be deleted, never completed by orbax.
_DAMAGED, _DELETED, _UNFINISHED = ".damaged", ".deleted", "*.orbax-checkpoint-tmp*"

# orbax tells of every step it takes.
logging.getLogger("absl").setLevel(logging.WARNING)


class CheckpointError(ValueError):
  """A checkpoint that is missing, damaged or of another model; the message says which and what to do."""


class RunCheckpoints:
  """The checkpoints of one training run, below workdir/checkpoints, a folder for each step.

  A process may be killed at any moment. orbax writes a step under another name and renames it when it is
  whole; then a thread beside training hashes all its files into a manifest, which appears whole as well; only
  then is an older step deleted. So `keep` complete steps stay, whatever happens to the one being saved, and
  a step whose files are not those of its manifest is never gone on from.

  Of several processes that train together each calls everything here, in the same order. orbax makes them
  wait for each other. The manifest, moving and deleting are the first process's business alone, once orbax
  has told it that all of them have written; there is no barrier of our own. The others do not look at the
  folder again before their next start, where the first one tells them what `recover` has told it.

  Args:
    workdir: of the run.
    keep: how many of the latest complete steps are kept, 2 or more: one to go back to where the last is
      damaged.

  Raises:
    ValueError: keep is below 2.
  """

  def __init__(self, workdir: str | Path, *, keep: int = 2):
    if keep < 2:
      raise ValueError(
        "train.keep_checkpoints must be 2 or more, so that there is one to go back to where the last is "
        f"damaged; got {keep}."
      )
    self._folder = Path(workdir).absolute() / "checkpoints"
    self._keep = keep
    # At once: grain writes its place without waiting for a folder that another process has still to make.
    at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=at_once))
    self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=at_once)
    self._finisher = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="manifest")
    self._finishing: concurrent.futures.Future | None = None

  def steps(self) -> list[int]:
    """The steps that are there, sound or not, in order."""
    if not self._folder.is_dir():
      return []
    return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

  def latest_step(self) -> int | None:
    """The last step that is sound; None where there is none. Changes nothing."""
    return next((step for step in reversed(self.steps()) if self.damage(step) is None), None)

  def damage(self, step: int) -> str | None:
    """What is wrong with a step, in words that begin with a file; None where all is as it was saved."""
    folder = self._step(step)
    try:
      written = (folder / MANIFEST_FILE).read_bytes()
      files = _hashes(folder)
    except FileNotFoundError as error:
      return f"{Path(error.filename).name} is missing"
    except OSError as error:
      return f"{error.filename} cannot be read: {error.strerror}"
    # To the byte: of a manifest, too, not a bit may change.
    if written == _manifest(step, files).encode():
      return None
    try:
      expected = json.loads(written)["files"]
      changed = [name for name in expected.keys() | files.keys() if expected.get(name) != files.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError):
      changed = []
    return f"{min(changed, default=MANIFEST_FILE)} is not as it was saved"

  def recover(self) -> int | None:
    """The step to go on from, the last sound one, after moving what is damaged aside; None: the beginning.

    Each damaged step is told in a warning, and its folder is renamed, so that nothing is lost and the step
    can be saved again. Where the first save of a run was cut off there is no step to go on from.

    Raises:
      CheckpointError: there are steps, but none is sound. Nothing has been moved.
    """
    first = jax.process_index() == 0
    found, sound = {}, None
    for step in reversed(self.steps()):
      problem = self.damage(step)
      if problem is None:
        sound = step
        break
      found[step] = problem
    if sound is None and found and not self._first.is_file():
      told = "; ".join(f"step {step}: {problem}" for step, problem in sorted(found.items()))
      raise CheckpointError(
        f"None of the checkpoints in {self._folder} is sound ({told}), and nothing was changed. Put their "
        "files back from a copy, or remove that folder to start from the beginning, or choose another "
        f"--workdir; what older versions wrote, without {MANIFEST_FILE}, cannot be told from what is damaged."
      )
    if first:
      instead = "training starts from the beginning" if sound is None else f"step {sound} is used instead"
      for step, problem in found.items():
        aside = self._move_aside(step)
        logging.warning(
          "The checkpoint of step %d in %s is damaged or was cut off (%s); %s. It was moved to %s.",
          *(step, self._folder, problem, instead, aside),
        )
      for left in (*self._folder.glob(_UNFINISHED), *self._folder.glob(f"*{_DELETED}")):
        shutil.rmtree(left)
    return sound

  def save(self, step: int, *, params: Any, train: Any, data: Any, meta: dict) -> None:
    """Saves in the background; call before the next batch is drawn, so that state and iterator agree.

    Waits for the save before it, should that still be going on.

    Args:
      step: optimiser steps done.
      params: what a detector needs; a tree of arrays.
      train: the rest of the state; a tree of arrays.
      data: a grain iterator.
      meta: JSON.
    """
    import grain  # Only training has iterators; detect stays free of the import.

    self._wait()
    if jax.process_index() == 0 and not self.steps():
      self._folder.mkdir(parents=True, exist_ok=True)
      write_whole(self._first, "No step in this folder has been complete yet.\n")
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      train=ocp.args.StandardSave(train),
      data=grain.checkpoint.CheckpointSave(data),
      meta=ocp.args.JsonSave(meta),
    )
    self._checkpointer.save(self._step(step), args=items)
    self._finishing = self._finisher.submit(self._finish, step)

  def meta(self, step: int) -> dict:
    """The JSON saved with a step."""
    wanted = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self._checkpointer.restore(self._step(step), args=wanted)["meta"]

  def restore(self, step: int, *, params: Any, train: Any, data: Any) -> tuple[Any, Any]:
    """Returns (params, train) of a step and sets the iterator back to where it was.

    Args:
      step: one that is sound, see `recover`.
      params, train: trees of arrays or jax.ShapeDtypeStruct to say what is expected.
      data: a fresh grain iterator over the same data.
    """
    import grain

    restored = self._checkpointer.restore(
      self._step(step),
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(params)),
        train=ocp.args.StandardRestore(_abstract(train)),
        data=grain.checkpoint.CheckpointRestore(data),
      ),
    )
    return restored["params"], restored["train"]

  def read(self, step: int) -> dict[str, Any]:
    """All that a step holds, without anybody saying what is expected: to compare two.

    Returns:
      "params" and "train": trees of arrays; "data": the iterator's position, JSON by file; "meta": JSON.
    """
    folder = self._step(step)
    trees = {name: _read_tree(folder / name) for name in ("params", "train")}
    places = {path.name: json.loads(path.read_text()) for path in sorted((folder / "data").glob("*.json"))}
    return {**trees, "data": places, "meta": self.meta(step)}

  def close(self) -> None:
    """Waits until everything is written."""
    try:
      self._wait()
    finally:
      self._finisher.shutdown()
      self._checkpointer.close()

  @property
  def _first(self) -> Path:
    return self._folder / FIRST_FILE

  def _step(self, step: int) -> Path:
    return self._folder / str(step)

  def _wait(self) -> None:
    finishing, self._finishing = self._finishing, None
    if finishing is not None:
      finishing.result()

  def _finish(self, step: int) -> None:
    """In the thread beside training: waits until a step is whole, says so in it, deletes what is too old."""
    self._checkpointer.wait_until_finished()
    if jax.process_index():
      return
    folder = self._step(step)
    write_whole(folder / MANIFEST_FILE, _manifest(step, _hashes(folder, to_disk=True)))
    self._first.unlink(missing_ok=True)
    complete = [step for step in self.steps() if (self._step(step) / MANIFEST_FILE).is_file()]
    for old in complete[: -self._keep]:
      # Renamed first: half a step would be taken for a damaged one.
      gone = self._step(old).rename(self._folder / f"{old}{_DELETED}")
      shutil.rmtree(gone)

  def _move_aside(self, step: int) -> Path:
    aside, count = self._folder / f"{step}{_DAMAGED}", 1
    while aside.exists():
      count += 1
      aside = self._folder / f"{step}{_DAMAGED}-{count}"
    return self._step(step).rename(aside)


def save_model(folder: str | Path, *, params: Any, model: dict) -> None:
  """Writes a model: everything beside it first, then renamed, so that a reader never sees half of one.

  A process that is killed between the two renames leaves none under the name; readers take the one before,
  which still lies beside it, and `recover_model` puts it back.

  Args:
    folder: replaced where it exists.
    params: {"params": ..., "batch_stats": ...} of the Detector; numpy arrays where several processes train.
    model: JSON with name, version, config and, once measured, calibration.
  """
  folder = Path(folder).absolute()
  fresh = _empty_beside(folder)
  fresh.mkdir(parents=True)
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
    checkpointer.save(fresh / PARAMS_FOLDER, params)
  # A marker for object stores, which names the folder it was written in: nobody else's business.
  (fresh / PARAMS_FOLDER / "commit_success.txt").unlink(missing_ok=True)
  _write_facts(fresh, model)
  _put_in_place(fresh, folder)


def recover_model(folder: str | Path) -> None:
  """Puts back the model that a killed process left beside its name; does nothing where one is there."""
  folder = Path(folder).absolute()
  if not folder.exists() and _old(folder).exists():
    _old(folder).rename(folder)
    logging.warning("The writing of %s was cut off; the model before it was put back.", folder)


def export_model(source: str | Path, folder: str | Path, *, dtype: str) -> None:
  """Writes a copy of a model with its large kernels stored in another type; everything else is the same.

  Args:
    source: a model's folder.
    folder: of the copy; must not exist.
    dtype: "bfloat16" or "float32", of parameters of NARROW_FROM numbers or more; `read_params` gives float32
      again.

  Raises:
    CheckpointError: source is no sound model, or folder exists.
  """
  if Path(folder).exists():
    raise CheckpointError(f"{folder} exists; choose another folder, or remove it first.")
  model = {key: value for key, value in read_model(source).items() if key != "sha256"}
  variables = read_params(source)
  params = jax.tree.map(lambda x: x.astype(dtype) if x.size >= NARROW_FROM else x, variables["params"])
  save_model(folder, params={**variables, "params": params}, model={**model, "stored_dtype": dtype})


def folder_bytes(folder: str | Path) -> int:
  """The bytes of all files in a folder."""
  return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def write_model_json(folder: str | Path, model: dict) -> None:
  """Replaces a model's facts (its calibration, say) and brings the manifest up to date, both at once.

  The model is replaced by a copy that differs in them: a process that is killed must not leave new facts
  with an old manifest.
  """
  folder = Path(folder).absolute()
  fresh = _empty_beside(folder)
  shutil.copytree(folder, fresh)
  _write_facts(fresh, model)
  _put_in_place(fresh, folder)


def read_model(folder: str | Path) -> dict:
  """Returns a model's facts after checking every file's sha256; "sha256" is the hash of the whole model.

  Raises:
    CheckpointError: no model there, or a file that is missing, extra or changed.
  """
  folder = _standing(folder)
  if not (folder / MODEL_FILE).is_file() or not (folder / MANIFEST_FILE).is_file():
    raise CheckpointError(
      f"No model at {folder}: a model folder holds {MODEL_FILE}, {MANIFEST_FILE} and {PARAMS_FOLDER}/, as "
      "`deepscan train` writes it to WORKDIR/best."
    )
  try:
    expected = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    model = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
  except ValueError as error:
    raise CheckpointError(f"The model at {folder} is damaged ({error}); fetch or write it again.") from error
  actual = _hashes(folder)
  if actual != expected:
    changed = sorted(
      name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)
    )
    raise CheckpointError(
      f"The model at {folder} is damaged: {', '.join(changed[:3])} differ from the manifest; "
      "fetch or write it again."
    )
  return {**model, "sha256": hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()}


def read_params(folder: str | Path) -> Any:
  """Returns the parameters of a model, as a tree of float32 arrays on the first local device.

  Args:
    folder: checked before by `read_model`, so that configuration and parameters are known to belong together.

  Raises:
    CheckpointError: the parameters cannot be read.
  """
  path = _standing(folder).absolute() / PARAMS_FOLDER
  try:
    params = _read_tree(path)
  except (ValueError, KeyError, AttributeError, FileNotFoundError) as error:
    raise CheckpointError(
      f"The parameters at {path} cannot be read; fetch or write the model again."
    ) from error
  return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, params)


def _empty_beside(folder: Path) -> Path:
  """Where the next model is written; nothing is there."""
  fresh = folder.parent / f"{folder.name}.new"
  shutil.rmtree(fresh, ignore_errors=True)
  return fresh


def _old(folder: Path) -> Path:
  return folder.parent / f"{folder.name}.old"


def _put_in_place(fresh: Path, folder: Path) -> None:
  old = _old(folder)
  if folder.exists():
    # Else the old one may be the only one there is.
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
  fresh.rename(folder)
  shutil.rmtree(old, ignore_errors=True)


def _standing(folder: str | Path) -> Path:
  """The folder, or the one beside it where a killed process left none under the name."""
  folder = Path(folder)
  old = _old(folder)
  return old if not folder.exists() and old.exists() else folder


def _write_facts(folder: Path, model: dict) -> None:
  write_whole(folder / MODEL_FILE, json.dumps(model, indent=2, sort_keys=True) + "\n")
  files = _hashes(folder, to_disk=True)
  write_whole(folder / MANIFEST_FILE, json.dumps(files, indent=2, sort_keys=True) + "\n")


def _manifest(step: int, files: dict[str, str]) -> str:
  """What stands in the manifest of a step; the step too, for a folder may be copied to another's name."""
  return json.dumps({"step": step, "files": files}, indent=2, sort_keys=True) + "\n"


def _read_tree(path: Path) -> Any:
  """A saved tree of arrays, on the first local device."""
  # What was saved says its own shapes: tracing the network for them would take longer than the reading.
  saved = ocp.StandardCheckpointHandler().metadata(epath.Path(path)).tree
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
    return checkpointer.restore(path, _abstract(saved))


def _alone() -> ocp.options.MultiprocessingOptions:
  """Of a model that this process reads or writes by itself, whatever others train with it."""
  this = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


def _abstract(tree: Any) -> Any:
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    tree,
    is_leaf=lambda x: hasattr(x, "shape"),
  )


def _hashes(folder: Path, *, to_disk: bool = False) -> dict[str, str]:
  """The sha256 of every file but the manifest, by its path below the folder.

  Args:
    folder: with everything below it.
    to_disk: also wait until the files have left the memory of the system, before anything relies on them.
  """
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
  # What was being written when a process was killed is no part of it.
  files = [path for path in files if path.suffix != PARTIAL]
  return {path.relative_to(folder).as_posix(): _sha256(path, to_disk=to_disk) for path in files}


def _sha256(path: Path, *, to_disk: bool) -> str:
  with path.open("rb") as file:
    if to_disk:
      os.fsync(file.fileno())
    return hashlib.file_digest(file, "sha256").hexdigest()
