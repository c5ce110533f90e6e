"""A service with made-up models as a process: python serve_process.py FOLDER [SETTING=VALUE ...]."""

import sys
from pathlib import Path

from serve_fakes import FakeEngine, make_settings

from deepscan_jax.serve import json_logs, server
from deepscan_jax.serve.app import make_app


def main(folder: Path, changes: dict[str, str]) -> int:
  kinds = {"drain_s": float, "drain_delay_s": float, "requests_per_hour": int, "redis_url": str}
  values = {name: kinds.get(name, Path)(x) for name, x in changes.items()}
  json_logs.set_up()
  return server.serve(make_app(make_settings(folder, port=0, **values), FakeEngine(slow_s=1.5)))


if __name__ == "__main__":
  sys.exit(main(Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])))
