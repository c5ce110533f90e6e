"""From a folder of pictures to a verdict by a model of one's own, every step a command of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import face_media
from compiling import QUICK_FLAGS
from media_files import picture

from deepscan_jax import logs, verdict

ROOT = Path(__file__).resolve().parents[1]


def deepscan(*arguments: str, cache: Path) -> subprocess.CompletedProcess:
  """Runs a verb in a process of its own, on one device; compiled programs are kept for the next one.

  Networks that do a few steps here are compiled quickly, faces are found and judged as users have it.
  """
  xla_flags = QUICK_FLAGS if arguments[0] in ("train", "evaluate") else ""
  environment = {**os.environ, "XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
  done = subprocess.run(
    [sys.executable, "-m", "launch", *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done


def trained(run: Path) -> tuple[list[dict], dict]:
  """What a run has logged, without times, and the facts of its best model."""
  rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
  return [logs.untimed(row) for row in rows], json.loads((run / "best" / "model.json").read_text())


def test_pictures_become_a_dataset_a_model_and_a_verdict(tmp_path, pytestconfig):
  cache = pytestconfig.cache.mkdir("pipeline")
  pictures, data_dir, run = tmp_path / "pictures", tmp_path / "data", tmp_path / "run"
  (pictures / "studio").mkdir(parents=True)
  counts = {"train": 3, "validation": 2, "test": 2}
  names = [
    name
    for split, count in counts.items()
    for name in face_media.names_in(split, "studio", count=count, ending=".png")
  ]
  for number, name in enumerate(names):
    # Unlike each other: copies are one group, and would share a split.
    view = {"turn_deg": 7 * number - 20, "shift": (5 * number - 15, 0), "mirrored": bool(number % 2)}
    picture(pictures / "studio" / name, face_media.portrait(**view))
  told = deepscan("build_dataset", f"--media={pictures}", f"--data_dir={data_dir}", cache=cache).stdout
  shown = [line.split() for line in told.splitlines()]
  assert {words[0]: int(words[1]) for words in shown if words[0] in counts} == counts

  train = ("train", "--preset=testing", f"--data_dir={data_dir}", f"--workdir={run}")
  told = deepscan(*train, cache=cache)
  assert "stopped: all steps done" in told.stdout and f"the model: {run}/best" in told.stdout
  rows, model = trained(run)
  assert rows[-1]["step"] == 4 and model["name"] == "testing"

  # As if the run had been killed after its save at step 2; the same command goes on from there.
  shutil.rmtree(run / "checkpoints" / "4")
  shutil.rmtree(run / "best")
  assert "Going on at step 2" in deepscan(*train, cache=cache).stderr
  rows_of_both, again = trained(run)
  # Each step stands there once.
  assert rows_of_both == rows and again == model

  figures, cards = tmp_path / "figures.json", tmp_path / "cards"
  of_model = ("evaluate", f"--checkpoint={run}/best", f"--data_dir={data_dir}", "--draws=100")
  told = deepscan(*of_model, f"--output_json={figures}", f"--workdir={cards}", cache=cache).stdout
  card = json.loads(figures.read_text())
  assert card["pairs"]["all"]["count"] == 8 and "| plain | 4 |" in told and "| studio | 2 |" in told
  assert json.loads((cards / "card.json").read_text()) == card
  assert "<bdi>testing " in (cards / "card.html").read_text()
  assert (cards / "card.md").read_text().splitlines()[2].startswith("| testing ")
  told = deepscan("evaluate", "--compare", f"{cards}/card.json", str(figures), cache=cache).stdout
  # Two people are too few to tell anything apart.
  assert "Not distinguishable: too few groups" in told and "| real_only | " in told

  answer = tmp_path / "answer.json"
  image = next((pictures / "studio").iterdir())
  deepscan(
    "detect", f"--model_path={run}/best", f"--image_path={image}", f"--output_json={answer}", cache=cache
  )
  found = json.loads(answer.read_text())
  assert found["model"]["name"] == "testing" and found["outcome"] != verdict.NOT_APPLICABLE
  assert 0 <= found["deepfake_probability"] <= 1
