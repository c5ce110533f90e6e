"""A PostgreSQL server of a test's own, where one is installed."""

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def find_program(name: str) -> str | None:
  return shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))), None)


def _user() -> str | None:
  """Who runs it: it refuses to run as root."""
  if os.geteuid() != 0:
    return None
  known = {entry.pw_name for entry in pwd.getpwall()}
  return next((name for name in ("postgres", "nobody") if name in known), None)


@contextlib.contextmanager
def running() -> Iterator[str | None]:
  """The URL of a server that runs until the block ends, on a socket of its own; None where there is none."""
  pg_ctl, initdb, user = find_program("pg_ctl"), find_program("initdb"), _user()
  if not pg_ctl or not initdb or (os.geteuid() == 0 and user is None):
    yield None
    return
  # Not pytest's folder, which its user alone may enter.
  folder = Path(tempfile.mkdtemp(prefix="pg"))
  if user:
    shutil.chown(folder, user)

  def run(*command: str) -> None:
    subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

  data, log = str(folder / "data"), str(folder / "log")
  options = f"-k {folder} -c listen_addresses='' -c fsync=off -c shared_buffers=16MB -c max_connections=40"
  try:
    run(initdb, "-D", data, "-A", "trust", "-U", "tester", "--no-sync", "-E", "UTF8")
    run(pg_ctl, "-D", data, "-l", log, "-w", "-o", options, "start")
    try:
      yield f"postgresql://tester@/postgres?host={folder}"
    finally:
      run(pg_ctl, "-D", data, "-m", "immediate", "stop")
  finally:
    shutil.rmtree(folder)
