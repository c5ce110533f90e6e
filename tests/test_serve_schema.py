"""Schemathesis, all its checks, against a service whose models are made up.

DEEPSCAN_SCHEMA_EXAMPLES=120 makes thousands of cases of the few that run here:

    DEEPSCAN_SCHEMA_EXAMPLES=120 python -m pytest -s tests/test_serve_schema.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serve_fakes import FakeEngine, make_settings, png, real_server

from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.keys import SCOPES

EXAMPLES = int(os.environ.get("DEEPSCAN_SCHEMA_EXAMPLES", "2"))
# At least: what is tried in any case, and for each example.
FIXED_CASES, CASES_OF_EXAMPLE = 150, 3


@pytest.mark.parametrize("with_key", [True, False])
def test_the_service_is_as_it_describes_itself(tmp_path, with_key):
  pytest.importorskip("schemathesis")
  generous = {"requests_per_hour": 10**9, "reads_per_hour": 10**9, "failed_auth_per_hour": 10**9}
  root = tmp_path / "root"
  root.mkdir()
  (root / "a.png").write_bytes(png())
  (root / "damaged.png").write_bytes(png(note=b"BAD"))
  generous |= {"jobs_per_key": 10**9, "roots": (root,)}
  app = make_app(make_settings(tmp_path, **generous), FakeEngine())
  key, _ = app.state.context.keys.create(label="", scopes=SCOPES)
  with real_server(app) as (host, port):
    command = [
      *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{host}:{port}/api/v1/openapi.json"),
      *("--checks=all", f"--max-examples={EXAMPLES}", "--seed=1", "--no-color", "--continue-on-failure"),
      *(["-H", f"Authorization: Bearer {key}"] if with_key else []),
    ]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {
      **os.environ,
      "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
      "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60 + 60 * EXAMPLES
    )
  summary = done.stdout[done.stdout.find(" SUMMARY ") :]
  print(summary)
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
  generated = int(re.search(r"(\d+) generated", summary)[1])
  assert generated >= FIXED_CASES + CASES_OF_EXAMPLE * EXAMPLES, summary
  engine = app.state.context.engine
  assert bool(engine.calls) is with_key
