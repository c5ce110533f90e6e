import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepscan_jax import compilation_cache

ROOT = Path(__file__).resolve().parents[1]
# Says what was made anew and what came out, once in each process: JAX's own cache, which the tests share, is
# off there, as it is in `deepscan detect`.
SCRIPT = """
import json, sys
import jax, numpy as np
from deepscan_jax import compilation_cache

made = []

def lower():
  made.append("program")
  return jax.jit(lambda w, x: {"sum": (w["k"] * x).sum(), "both": (x, x + 1)}).lower(weights, x)

def load():
  made.append("arrays")
  return {"k": jax.numpy.arange(4.0), "deep": [{"b": jax.numpy.ones((2, 3), jax.numpy.bfloat16)}]}

x = np.ones(4, np.float32)
assert compilation_cache.keep_programs(sys.argv[1]) == ""
weights = compilation_cache.loaded("weights", load, facts="a")
if sys.argv[3:] == ["jax-cache"]:
  jax.config.update("jax_compilation_cache_dir", sys.argv[1])
program = compilation_cache.compiling("double", lower, facts=sys.argv[2]).result()
answer = program(weights, x)
print(json.dumps({
  "made": made,
  "sum": float(answer["sum"]),
  "both": [y.tolist() for y in answer["both"]],
  "kinds": [str(weights["deep"][0]["b"].dtype), type(weights["k"]).__name__, str(weights["k"].device)],
}))
"""


def run(folder: Path, *arguments: str, **environment: str) -> dict:
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(folder), *(arguments or ("facts",))],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": "", **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return {**json.loads(done.stdout), "told": done.stderr}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
  folder = tmp_path_factory.mktemp("home") / "compiled"
  first = run(folder)
  assert first["made"] == ["arrays", "program"] and first["told"] == ""
  return folder, first


def kept(folder: Path, name: str) -> list[Path]:
  return sorted(folder.rglob(f"{name}-*.kept"))


def test_a_second_process_neither_traces_nor_loads(filled):
  folder, first = filled
  second = run(folder)
  assert second == {**first, "made": []}
  assert second["sum"] == 6.0 and second["both"] == [[1.0] * 4, [2.0] * 4]
  assert second["kinds"][0] == "bfloat16"


def test_what_is_kept_lies_in_a_private_folder_for_this_processor(filled):
  folder, _ = filled
  (machine,) = folder.iterdir()
  assert machine.name == compilation_cache._processor()
  assert folder.stat().st_mode & 0o777 == machine.stat().st_mode & 0o777 == 0o700
  assert len(list(machine.iterdir())) == 2  # nothing half written is left behind


def test_other_facts_or_settings_make_another_program(filled):
  folder, _ = filled
  assert run(folder, "other facts")["made"] == ["program"]
  assert run(folder, JAX_ENABLE_X64="0")["made"] == ["arrays", "program"]


def test_a_damaged_file_is_as_good_as_none(filled):
  folder, _ = filled
  for path in (*kept(folder, "double"), *kept(folder, "weights")):
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"damaged!!")
  assert run(folder)["made"] == ["arrays", "program"]
  assert run(folder)["made"] == []


def test_what_jax_took_from_its_own_cache_is_not_kept(tmp_path):
  """JAX would write it, but what it wrote could not be run."""
  for _ in range(2):
    assert run(tmp_path / "c", "facts", "jax-cache")["made"][-1] == "program"
  assert kept(tmp_path / "c", "double") == []


def test_only_the_latest_of_a_name_are_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(compilation_cache, "_programs_folder", tmp_path)
  for number in range(6):
    path = tmp_path / f"a-{number:024x}.kept"
    compilation_cache._write(path, lambda: b"x")
    os.utime(path, (number, number))
  compilation_cache._write(tmp_path / f"a-b-{0:024x}.kept", lambda: b"x")
  names = sorted(path.name for path in tmp_path.iterdir())
  assert [name for name in names if name.startswith("a-0")] == [f"a-{n:024x}.kept" for n in (2, 3, 4, 5)]
  assert len(names) == 5


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path, caplog):
  compilation_cache._write(tmp_path / "missing" / "a.kept", lambda: b"x")
  assert "is not kept" in caplog.text
