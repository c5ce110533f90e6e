"""A Redis server of a test's own, where one is installed."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class RedisServer:
  """A server on a socket of its own, which can go away and come back.

  Attributes:
    url: of it.
  """

  def __init__(self, program: str, folder: Path):
    self._socket = folder / "redis.sock"
    self._command = [
      program,
      "--port",
      "0",
      "--unixsocket",
      str(self._socket),
      "--save",
      "",
      "--dir",
      str(folder),
    ]
    self._process: subprocess.Popen | None = None
    self.url = f"redis+unix://{self._socket}?db=0"
    self.start()

  def start(self) -> None:
    """Starts it, empty."""
    self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not self._socket.exists():
      assert self._process.poll() is None and time.monotonic() < until, "redis-server does not start"
      time.sleep(0.02)

  def stop(self) -> None:
    """Ends it at once; its socket is gone."""
    self._process.kill()
    self._process.wait()
    self._socket.unlink(missing_ok=True)


@contextlib.contextmanager
def running() -> Iterator[RedisServer | None]:
  """A server that runs until the block ends; None where none is installed."""
  program = shutil.which("redis-server")
  if program is None:
    yield None
    return
  # Not pytest's folder: the path of a socket may have 107 characters.
  folder = Path(tempfile.mkdtemp(prefix="redis"))
  try:
    server = RedisServer(program, folder)
    try:
      yield server
    finally:
      server.stop()
  finally:
    shutil.rmtree(folder)
