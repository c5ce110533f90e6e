"""Checkpoints: the only module that imports orbax.

Two forms. A run's checkpoint holds everything that training needs to go on (params, train, data, meta). A
model is what the detector loads: a folder with `params/` (orbax), `model.json` (name, version, configuration,
calibration) and `manifest.json` (sha256 of every file), verified before anything is read.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

MODEL_FILE = "model.json"
# Arrays of fewer numbers stay float32 in a bfloat16 copy: depthwise kernels and last layers are next to
# nothing on disk, and rounding them moved the default model's probabilities by 0.02, the rest by 0.001.
NARROW_FROM = 8192
MANIFEST_FILE = "manifest.json"
PARAMS_FOLDER = "params"

# orbax tells of every step it takes.
logging.getLogger("absl").setLevel(logging.WARNING)


class CheckpointError(ValueError):
  """A checkpoint that is missing, damaged or of another model; the message says which and what to do."""


class RunCheckpoints:
  """The checkpoints of one training run, below workdir/checkpoints.

  Args:
    workdir: of the run.
    keep: how many of the latest steps are kept.
  """

  def __init__(self, workdir: str | Path, *, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)

  def latest_step(self) -> int | None:
    """The last step that was saved completely; None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, *, params: Any, train: Any, data: Any, meta: dict) -> None:
    """Saves in the background; call before the next batch is drawn, so that state and iterator agree.

    Args:
      step: optimiser steps done.
      params: what a detector needs; a tree of arrays.
      train: the rest of the state; a tree of arrays.
      data: a grain iterator.
      meta: JSON.
    """
    import grain  # Only training has iterators; detect stays free of the import.

    items = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      train=ocp.args.StandardSave(train),
      data=grain.checkpoint.CheckpointSave(data),
      meta=ocp.args.JsonSave(meta),
    )
    self._manager.save(step, args=items)

  def meta(self, step: int) -> dict:
    """The JSON saved with a step."""
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

  def restore(self, step: int, *, params: Any, train: Any, data: Any) -> tuple[Any, Any]:
    """Returns (params, train) of a step and sets the iterator back to where it was.

    Args:
      step: one that was saved.
      params, train: trees of arrays or jax.ShapeDtypeStruct to say what is expected.
      data: a fresh grain iterator over the same data.
    """
    import grain

    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(params)),
        train=ocp.args.StandardRestore(_abstract(train)),
        data=grain.checkpoint.CheckpointRestore(data),
      ),
    )
    return restored["params"], restored["train"]

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_model(folder: str | Path, *, params: Any, model: dict) -> None:
  """Writes a model: everything beside it first, then renamed, so that a reader never sees half of one.

  Args:
    folder: replaced where it exists.
    params: {"params": ..., "batch_stats": ...} of the Detector; numpy arrays where several processes train.
    model: JSON with name, version, config and, once measured, calibration.
  """
  folder = Path(folder).absolute()
  fresh = folder.with_name(folder.name + ".new")
  shutil.rmtree(fresh, ignore_errors=True)
  fresh.mkdir(parents=True)
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
    checkpointer.save(fresh / PARAMS_FOLDER, params)
  # A marker for object stores, which names the folder it was written in: nobody else's business.
  (fresh / PARAMS_FOLDER / "commit_success.txt").unlink(missing_ok=True)
  write_model_json(fresh, model)
  old = folder.with_name(folder.name + ".old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  fresh.rename(folder)
  shutil.rmtree(old, ignore_errors=True)


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
  """Replaces a model's facts (its calibration, say) and brings the manifest up to date."""
  folder = Path(folder)
  (folder / MODEL_FILE).write_text(json.dumps(model, indent=2, sort_keys=True) + "\n", encoding="utf-8")
  (folder / MANIFEST_FILE).write_text(
    json.dumps(_hashes(folder), indent=2, sort_keys=True) + "\n", encoding="utf-8"
  )


def read_model(folder: str | Path) -> dict:
  """Returns a model's facts after checking every file's sha256; "sha256" is the hash of the whole model.

  Raises:
    CheckpointError: no model there, or a file that is missing, extra or changed.
  """
  folder = Path(folder)
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
  path = Path(folder).absolute() / PARAMS_FOLDER
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
    try:
      # What was saved says its own shapes: tracing the network for them would take longer than the reading.
      saved = checkpointer.metadata(path).item_metadata.tree
      params = checkpointer.restore(path, _abstract(saved))
    except (ValueError, KeyError, AttributeError, FileNotFoundError) as error:
      raise CheckpointError(
        f"The parameters at {path} cannot be read; fetch or write the model again."
      ) from error
  return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, params)


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


def _hashes(folder: Path) -> dict[str, str]:
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
  }
