"""What the parameters of a model were trained on: by its own training, and by those of models before it.

A model that began with another one's parameters knows what that one was shown. Each model of today lists all
trainings in its facts ("lineage"), so that this is known where the folder of the other one is not here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from deepscan_jax.checkpoints import read_model
from deepscan_jax.config import Config
from deepscan_jax.inference import DEFAULT_MODEL


def model_folder(start_from: str) -> Path:
  """Where the model lies that train.start_from names."""
  return DEFAULT_MODEL if start_from == "default" else Path(start_from)


def begun(
  config: Config, *, version: str, builds: Mapping[str, str | None], divisions: Mapping[str, str]
) -> list[dict]:
  """The lineage of a model that is trained now.

  Args:
    config: of its training.
    version: of the package.
    builds: by dataset the fingerprint of its build, None where it has none.
    divisions: by dataset data.division of it.

  Raises:
    CheckpointError: there is no model at train.start_from.
  """
  datasets = {name: {"build": builds[name], "division": divisions[name]} for name in sorted(builds)}
  this = {"name": config.name, "version": version, "datasets": datasets}
  if not (start := config.train.start_from):
    return [this]
  return [this, *trainings(read_model(model_folder(start)))]


def trainings(facts: Mapping) -> list[dict]:
  """The trainings that a model's parameters went through, the last one first.

  Args:
    facts: of checkpoints.read_model.

  Returns:
    name and version of the model that each made, and datasets: by name "build" and "division" (see
    `begun`), None where they are not known. Of older models only the last training is known; where they began
    with another model, a second one follows of which all three are None. Its folder is not looked into:
    another model may lie there by now.
  """
  if "lineage" in facts:
    return [dict(training) for training in facts["lineage"]]
  unknown = {"build": None, "division": None}
  datasets = {name: dict(unknown) for name in sorted(facts["config"]["data"]["datasets"])}
  last = {"name": facts["name"], "version": facts["version"], "datasets": datasets}
  if not facts["config"]["train"].get("start_from"):
    return [last]
  return [last, {"name": None, "version": None, "datasets": None}]


def trained_on(lineage: Iterable[Mapping]) -> dict[str, list[dict]]:
  """By name of each dataset of a lineage what is known of it, once for each training."""
  found: dict[str, list[dict]] = {}
  for training in lineage:
    for name, known in (training["datasets"] or {}).items():
      found.setdefault(name, []).append(known)
  return found


def notes(
  lineage: Sequence[Mapping],
  builds: Mapping[str, str | None],
  split: str,
  *,
  division: Callable[[str], str],
) -> list[str]:
  """What a lineage leaves open of figures on a split, in sentences.

  Args:
    lineage: of `trainings`.
    builds: by dataset that the model is evaluated on the fingerprint of its build.
    split: of them.
    division: name -> data.division of it; asked only of other builds than those that were trained on, for it
      reads all examples.
  """
  found, known = [], trained_on(lineage)
  for name, build in builds.items():
    trained = [each for each in known.get(name, ()) if each["division"]]
    if all(each["build"] == build for each in trained):
      continue
    here = division(name)
    if any(each["division"] != here for each in trained):
      found.append(
        f"The model was trained on {name} as it was divided otherwise, into training and test; it may know "
        f"files of this {split} split, and then the figures flatter it."
      )
  if split != "test" and any(training["datasets"] is None for training in lineage):
    found.append(
      "What the model that this one began with was trained on is not known; if it was any of these files, "
      "the figures flatter this one."
    )
  return found
