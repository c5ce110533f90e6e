"""Which way imports point. Read from the sources, so that an import inside of a function counts too."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "deepscan_jax"
LOOP = {"training", "train_state", "cross_validation", "run_watch"}
TRAINING = LOOP | {"evaluation", "losses", "optimizer", "data"}
SERVING = {"inference", "report", "verdict", "calibration", "doctor"}
# Modules (or packages) of the library, and what none of their files may import from the library.
FORBIDDEN = {
  "config": TRAINING | SERVING | {"models", "faces", "media", "examples", "checkpoints", "parallel"},
  "media": TRAINING | SERVING | {"models", "faces", "examples", "config"},
  "media_decoder": {""},
  "live_decoder": {""},
  "live_records": {""},
  "live": TRAINING | {"inference", "report", "models", "checkpoints", "examples"},
  "sequential": TRAINING | (SERVING - {"verdict"}) | {"models", "media", "faces", "examples", "config"},
  "media_forks": {""},
  "provenance": TRAINING | SERVING | {"models", "faces", "examples", "config"},
  "faces": TRAINING | SERVING | {"models", "media", "examples", "config", "checkpoints"},
  "examples": TRAINING | SERVING | {"models", "checkpoints", "augment", "augment_audio", "pseudofakes"},
  "pseudofakes": TRAINING | SERVING | {"models", "media", "examples", "config"},
  "augment": TRAINING | SERVING | {"models", "media", "examples", "config"},
  "augment_audio": TRAINING | SERVING | {"models", "media", "examples", "config"},
  "models": TRAINING
  | SERVING
  | {"faces", "media", "examples", "augment", "pseudofakes", "checkpoints", "parallel"},
  "losses": LOOP | {"data", "evaluation", "inference", "examples", "media", "faces"},
  "metrics": {""},
  "data": SERVING
  | {"models", "training", "train_state", "evaluation", "losses", "checkpoints", "parallel", "media"},
  "parallel": TRAINING | SERVING | {"models", "config"},
  "checkpoints": TRAINING | SERVING | {"models", "config", "examples"},
  "verdict": TRAINING | {"inference", "models", "media", "faces", "report"},
  "report": TRAINING | {"inference", "models", "media", "faces"},
  "audit": TRAINING | SERVING | {"models", "faces", "examples", "config", "checkpoints"},
  "audit_report": TRAINING | (SERVING - {"report"}) | {"models", "media", "faces", "audit"},
  "run_watch": {"training", "train_state", "inference"},
  "training_pictures": (TRAINING - {"data"}) | SERVING,
  "training_report": TRAINING | (SERVING - {"report"}) | {"models", "media", "faces", "examples", "data"},
  "logs": {""},
  "event_files": {""},
  "files": {""},
  "serve.evidence": TRAINING | (SERVING - {"report", "verdict"}) | {"models", "media", "faces", "examples"},
  "serve.routes_web": TRAINING | (SERVING - {"report"}) | {"models", "media", "faces", "examples"},
  "preview": (TRAINING - {"data"}) | (SERVING - {"report"}) | {"models", "media", "checkpoints", "parallel"},
  "lineage": TRAINING | (SERVING - {"inference"}) | {"models", "media", "faces", "examples", "protocols"},
  "protocols": TRAINING | SERVING | {"models", "media", "examples", "checkpoints", "config", "card"},
  "levels": TRAINING | SERVING | {"models", "media", "examples", "checkpoints", "config", "faces", "card"},
  "card": TRAINING | SERVING | {"models", "media", "examples", "checkpoints", "config", "faces", "scoring"},
  "card_report": TRAINING | (SERVING - {"report"}) | {"models", "media", "examples", "faces", "scoring"},
  "scoring": LOOP | {"losses", "optimizer", "report", "card_report", "parallel"},
  "faithfulness": (TRAINING - {"data"}) | SERVING | {"models", "media", "faces", "checkpoints", "card"},
  "reasons": TRAINING | (SERVING - {"verdict"}) | {"models", "media", "examples", "config", "checkpoints"},
  "perturb": TRAINING | SERVING | {"models", "media", "examples", "config", "faces", "checkpoints"},
  "stability": TRAINING | {"models", "report", "checkpoints"},
  "copies": {""},
  "environment": TRAINING | SERVING | {"models", "media", "faces", "examples", "config", "checkpoints"},
  "reproduction": TRAINING | {"inference", "report", "models", "media", "faces", "examples", "checkpoints"},
  "matching": TRAINING | SERVING | {"models", "examples", "config", "checkpoints", "augment", "pseudofakes"},
  "resynthesis": TRAINING | SERVING | {"examples", "config", "checkpoints", "augment", "pseudofakes"},
  "folds": {""},
  "speech": {""},
  "stopping": {""},
  "serve": TRAINING | {"models", "audit", "pseudofakes", "augment"},
  "serve.answers": TRAINING | (SERVING - {"verdict"}) | {"models", "media", "faces", "examples", "config"},
  "serve.jobs": TRAINING | SERVING | {"models", "media", "faces", "examples", "config", "checkpoints"},
  "serve.databases": {""},
  "serve.health": {""},
  "serve.garbage": {""},
  "serve.judging": TRAINING | {"report", "models", "serve.jobs", "serve.batch"},
  "serve.batch": TRAINING
  | (SERVING - {"verdict"})
  | {"models", "faces", "examples", "config", "checkpoints", "serve.app"},
  "serve.batch_report": TRAINING | {"inference", "models", "media", "faces", "examples", "checkpoints"},
  "serve.confined": TRAINING | SERVING | {"models", "media", "faces", "examples", "config", "checkpoints"},
  "serve.webhooks": TRAINING | SERVING | {"models", "media", "faces", "examples", "config", "serve"},
  "inference": {
    "training",
    "train_state",
    "data",
    "augment",
    "pseudofakes",
    "evaluation",
    "losses",
    "optimizer",
    "report",
  },
}
# Who may use a package at all, of the modules of the library.
ONLY = {
  "orbax": {"checkpoints"},
  "optax": {"losses", "optimizer", "train_state", "resynthesis"},
  "tensorflow_datasets": {"data"},
  "av": {"media_decoder", "live_decoder", "augment", "augment_audio", "doctor"},
  "PIL": {"media_decoder"},
  "tensorboardX": {"event_files"},
  "uvicorn": {"serve.server"},
  "limits": {"serve.limits"},
  "python_multipart": {"serve.uploads"},
  "prometheus_client": {"serve.metrics", "serve.places"},
  "apache_beam": {"serve.batch_beam"},
  "torch": set(),
  "tensorflow": set(),
}


def modules(folder: Path = LIBRARY) -> list[Path]:
  return sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
  """The path's name below its room: "models.fusion"."""
  return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports(path: Path) -> set[str]:
  """The full names that a source imports; "from a import b" counts as a.b."""
  package = path.relative_to(ROOT).with_suffix("").parts[:-1]
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
      base = ".".join(part for part in (above, node.module) if part)
      found |= {f"{base}.{alias.name}" for alias in node.names}
  return found


def reaches(name: str, target: str) -> bool:
  return name == target or name.startswith(f"{target}.")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_the_right_way(room):
  files = [path for path in modules() if reaches(module_name(path), room)]
  assert files, f"there is no {room}"
  for path in files:
    for name in imports(path):
      # How a file is written whole is asked by all.
      if reaches(name, "deepscan_jax.files"):
        continue
      for target in FORBIDDEN[room]:
        wrong = f"deepscan_jax.{target}".rstrip(".")
        assert not reaches(name, wrong), f"{path.name} imports {name}"


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_used_in_its_own_modules_only(package):
  users = {module_name(path) for path in modules() if any(reaches(name, package) for name in imports(path))}
  assert users <= ONLY[package]


def test_the_library_never_imports_the_rooms_beside_it():
  for path in modules():
    for name in imports(path):
      assert name.split(".")[0] not in ("launch", "experiments", "datasets"), f"{path.name} imports {name}"
      for room in ("launch", "experiments", "datasets"):
        assert not reaches(name, f"deepscan_jax.{room}"), f"{path.name} imports {name}"


def test_nothing_else_in_the_library_knows_the_service():
  for path in modules():
    if not reaches(module_name(path), "serve"):
      for name in imports(path):
        for target in ("deepscan_jax.serve", "fastapi", "starlette", "sqlalchemy"):
          assert not reaches(name, target), f"{path.name} imports {name}"


def test_dataset_builders_never_see_models_or_training():
  for path in modules(ROOT / "datasets"):
    for name in imports(path):
      for target in ("models", "checkpoints", "inference", "pseudofakes", "augment", *sorted(TRAINING)):
        assert not reaches(name, f"deepscan_jax.{target}"), f"{path.name} imports {name}"


@pytest.mark.parametrize(
  "name",
  [
    "data",
    "augment",
    "augment_audio",
    "perturb",
    "pseudofakes.image",
    "pseudofakes.clip",
    "pseudofakes.audio",
    "pseudofakes.sync",
  ],
)
def test_what_runs_in_loader_workers_is_numpy(name):
  path = LIBRARY / Path(*name.split(".")).with_suffix(".py")
  assert not [x for x in imports(path) if x.split(".")[0] in ("jax", "flax", "optax")]


def test_only_parallel_counts_devices():
  for path in modules():
    source = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    counts = used & {"device_count", "local_device_count", "process_count", "pmap"}
    assert not counts or module_name(path) == "parallel", f"{path.name} uses {counts}"


def test_nothing_is_called_by_a_name_that_says_nothing():
  for folder in ("deepscan_jax", "launch", "datasets", "experiments"):
    for path in modules(ROOT / folder):
      assert path.stem not in ("utils", "helpers", "common", "misc"), path
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
          assert not node.name.endswith("Manager") and not node.name.startswith("Base"), node.name
