"""Decoders that need not start: a process that has loaded the decoder is forked for each file.

Starting Python and PyAV takes a tenth of a second of a processor, several times what a picture takes to
decode. `DecoderForks` starts one process that loads them, and never looks at a file. It forks itself for each
file; the fork limits itself as every decoder does (media_decoder.run_child), decodes that file, and is killed
and waited for. So a file still has a process of its own, and what takes that process over finds no other
file: descriptors of the others are closed in it, and its memory is a copy from before any file was opened.

What is weaker than with processes of their own: the addresses of code are the same in all forks, so what one
learns of them another can use; and a fork that was taken over may kill the process that it was forked from
(as it may kill this one: they belong to the same user). That process is then started again, and files whose
forks ended with it are decoded by processes of their own.

Both sides of the protocol are here. Each order is one message with three descriptors: the file, the memory
that frames are laid out in, and a socket, on which the fork's pidfd comes back, then its exit status. The
answer comes over a pipe, as from every decoder.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SERVER_COMMAND = "from media_forks import serve; serve()"
# Orders are a few hundred bytes; one message holds no more than this.
ORDER_BYTES = 32 << 10
# A fork begins, and is waited for, within moments.
PATIENCE_S = 10.0
ENDING_S = 2.0
# More descriptors than this, three or four for each fork, are never open at one time.
DESCRIPTORS = 4096
_STATUS = struct.Struct("i")
_DUMPABLE, _NO_NEW_PRIVILEGES = 4, 38  # of prctl


class ForksLost(Exception):
  """The process that is forked, or the fork's own line to here, has gone; nothing is known of the file."""


class DecoderForks:
  """The process that is forked for each file; a context manager, or call `close` at the end.

  Methods may be called from several threads.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._server: subprocess.Popen | None = None
    self._control: socket.socket | None = None
    self._closed = False
    with self._lock:
      self._start()

  @staticmethod
  def supported() -> bool:
    """Whether this system can: Linux, with descriptors that stand for processes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")

  def __enter__(self) -> "DecoderForks":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the process, and with it every fork that is under way."""
    with self._lock:
      self._closed = True
      self._stop()

  def begin(self, order: dict, file: int, region: int) -> "Fork":
    """Begins to decode a file.

    Args:
      order: {plan, budget} as of media_decoder.run_child, JSON-able.
      file, region: open descriptors, which stay the caller's.

    Raises:
      ForksLost: no process could be forked; decode the file another way.
    """
    message = json.dumps(order).encode()
    if len(message) > ORDER_BYTES:
      raise ForksLost("The order is too long.")
    for _ in range(2):
      with self._lock:
        if self._closed:
          raise ForksLost("Closed.")
        if self._server is None or self._server.poll() is not None:
          self._stop()
          self._start()
        # A copy: another thread may begin the process again while this one still writes.
        control = self._control.dup()
      answer, to_answer = os.pipe()
      ours, theirs = socket.socketpair()
      try:
        with control, theirs:
          socket.send_fds(control, [message], [file, region, to_answer, theirs.fileno()])
        os.close(to_answer)
        return Fork(answer, ours)
      except OSError:
        with contextlib.suppress(OSError):
          os.close(to_answer)
        os.close(answer)
        ours.close()
    raise ForksLost("The process ends as soon as it has started.")

  def _start(self) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
      self._server = subprocess.Popen(
        [sys.executable, "-S", "-B", "-P", "-c", SERVER_COMMAND, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        env=child_environment(),
      )
    self._control = ours

  def _stop(self) -> None:
    if self._control is not None:
      self._control.close()
    if self._server is not None:
      # It ends by itself, and its forks first, once nobody is left to ask.
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._server.wait(ENDING_S)
      self._server.kill()
      self._server.wait()
    self._server = self._control = None


class Fork:
  """One decoder; what media.py needs of a subprocess.Popen, and no more.

  Attributes:
    stdout: the answer; a binary file.
    returncode: as of Popen; None before `wait` has returned.

  Raises:
    ForksLost: it never began.
  """

  def __init__(self, answer: int, line: socket.socket):
    self.stdout = os.fdopen(answer, "rb", buffering=0)
    self.returncode: int | None = None
    self._line = line
    self._process: int | None = None
    try:
      line.settimeout(PATIENCE_S)
      _, found, _, _ = socket.recv_fds(line, 1, 1)
      if not found:
        raise ForksLost("The process has ended.")
      self._process = found[0]
    except (OSError, ForksLost) as error:
      self._leave()
      self.stdout.close()
      raise ForksLost(str(error)) from error

  def kill(self) -> None:
    """Kills it, if it still runs."""
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(self._process, signal.SIGKILL)

  def wait(self, timeout: float = PATIENCE_S) -> int:
    """Waits for its end and returns its returncode.

    Raises:
      subprocess.TimeoutExpired: it still runs after `timeout` seconds.
      ForksLost: the process that it was forked from has ended, and so has this one, or is about to.
    """
    if self.returncode is not None:
      return self.returncode
    self._line.settimeout(max(timeout, 1e-3))
    try:
      status = self._line.recv(_STATUS.size)
    except TimeoutError as error:
      raise subprocess.TimeoutExpired("decoder", timeout) from error
    except OSError:
      status = b""
    if len(status) < _STATUS.size:
      self.kill()
      # It may not write any more where another decoder is about to.
      select.select([self._process], [], [], PATIENCE_S)
      self.returncode = -signal.SIGKILL
      self._leave()
      raise ForksLost("The process has ended.")
    self.returncode = _STATUS.unpack(status)[0]
    self._leave()
    return self.returncode

  def _leave(self) -> None:
    self._line.close()
    if self._process is not None:
      os.close(self._process)
      self._process = None


def child_environment() -> dict[str, str]:
  """What a decoder gets of this process's environment, which may hold secrets.

  It finds PyAV where this process did, and the decoder by its file's folder: importing it through its package
  would start JAX.
  """
  search = [*(entry for entry in sys.path if entry), str(Path(__file__).parent)]
  environment = {"PYTHONPATH": os.pathsep.join(search)}
  if "LD_LIBRARY_PATH" in os.environ:
    environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
  return environment


def serve() -> None:
  """The process that is forked: loads the decoder, then forks for each order until nobody is there to ask."""
  import gc
  import importlib
  import resource

  import media_decoder

  for name in ("Image", "ImageOps", "JpegImagePlugin", "PngImagePlugin", "WebPImagePlugin", "GifImagePlugin"):
    importlib.import_module(f"PIL.{name}")
  _harden()
  # Ctrl-C in a terminal reaches this process as well; it ends when nobody is left to ask.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  most = min(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
  # What is there now stays: neither this process nor a fork needs to look through it, or to copy its pages.
  gc.collect()
  gc.freeze()
  control, server = socket.socket(fileno=int(sys.argv[1])), os.getpid()
  poll = select.poll()
  poll.register(control, select.POLLIN)
  # By the fork's pidfd, its process id and the line to whoever asked; by the line's number, the pidfd.
  forks: dict[int, tuple[int, socket.socket]] = {}
  lines: dict[int, int] = {}
  while True:
    # New descriptors last: numbers that are free again must not be taken for those that were told of.
    for ready, _ in sorted(poll.poll(), key=lambda event: event[0] == control.fileno()):
      if ready == control.fileno():
        message, found, _, _ = socket.recv_fds(control, ORDER_BYTES, 4)
        if not message:  # nobody is there any more
          for process in forks:
            signal.pidfd_send_signal(process, signal.SIGKILL)
          os._exit(0)
        file, region, answer, line = found
        line = socket.socket(fileno=line)
        process = os.fork()
        if process == 0:
          _decode(media_decoder, {**json.loads(message), "parent": server}, file, region, answer)
        for mine in (file, region, answer):
          os.close(mine)
        handle = os.pidfd_open(process)
        forks[handle], lines[line.fileno()] = (process, line), handle
        poll.register(handle, select.POLLIN)
        poll.register(line, 0)  # tells of its end alone
        with contextlib.suppress(OSError):
          socket.send_fds(line, [b"p"], [handle])
      elif ready in forks:
        process, line = forks.pop(ready)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if lines.pop(line.fileno(), None) is not None:
          poll.unregister(line)
        with contextlib.suppress(OSError):
          line.send(_STATUS.pack(status), socket.MSG_NOSIGNAL)
        line.close()
        poll.unregister(ready)
        os.close(ready)
      elif ready in lines:  # whoever asked has gone
        poll.unregister(ready)
        signal.pidfd_send_signal(lines.pop(ready), signal.SIGKILL)


def _decode(decoder, order: dict, file: int, region: int, answer: int) -> None:
  """In the fork: leaves nothing open but what it needs, then decodes as media_decoder.run_child does."""
  import fcntl

  status = 1
  try:
    # First out of the way of the places that they are to get.
    kept = [fcntl.fcntl(each, fcntl.F_DUPFD, 64) for each in (answer, file, region)]
    for place, each in zip((1, 3, 4), kept, strict=True):
      os.dup2(each, place)
    os.closerange(5, DESCRIPTORS)
    decoder.answer_order({**order, "file": 3, "region": 4})
    status = 0
  finally:
    # Nothing of what the server was about to do is done here, whatever went wrong.
    os._exit(status)


def _harden() -> None:
  """Where the kernel allows it, forks may not look into the memory of this process."""
  import ctypes

  libc = ctypes.CDLL(None, use_errno=True)
  libc.prctl(_DUMPABLE, 0, 0, 0, 0)
  libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
