import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
CHECKLIST = TESTS.parent / "deepscan_jax" / "serve" / "README.md"


def test_every_test_that_the_checklist_names_is_there():
  rows = [
    line for line in CHECKLIST.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+\.\d", line)
  ]
  assert len(rows) >= 30
  known: dict[str, set[str]] = {}
  for row in rows:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
    assert named, f"There is no test for {row}"
    for file, name in named:
      if file not in known:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        known[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
      assert name in known[file], f"{file} has no {name}"


def test_the_checklist_covers_files_api_keys_and_secrets():
  items = re.findall(r"\b(\d+)\.\d+\.\d+ \[[123]\]", CHECKLIST.read_text(encoding="utf-8"))
  assert {"4", "5", "6", "8", "11", "12", "13", "16"} <= set(items)
