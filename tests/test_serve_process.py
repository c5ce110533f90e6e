"""What only a process of its own shows: signals, TLS, what a killed one leaves."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from serve_fakes import API_KEY, AUTH, FakeEngine, make_settings, png, received_files, self_signed
from websockets.asyncio.client import connect

from deepscan_jax.serve import server, uploads
from deepscan_jax.serve.app import make_app


class Service:
  """A service in a process of its own.

  Attributes:
    url: its address.
    process: the process.
    lines: what it has logged.
  """

  def __init__(self, folder: Path, **changes):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    arguments = [f"{name}={value}" for name, value in changes.items()]
    self.process = subprocess.Popen(
      [sys.executable, str(Path(__file__).with_name("serve_process.py")), str(folder), *arguments],
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    self.lines: list[dict] = []
    self._thread = threading.Thread(target=self._read, daemon=True)
    self._thread.start()
    self.url = self.wait_for("Listening.")["url"]

  def _read(self) -> None:
    for line in self.process.stderr:
      with contextlib.suppress(json.JSONDecodeError):
        self.lines.append(json.loads(line))

  def wait_for(self, message: str, seconds: float = 120) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      found = next((line for line in self.lines if line["message"] == message), None)
      if found:
        return found
      assert self._thread.is_alive() or self.process.poll() is None, self.lines
      time.sleep(0.02)
    raise AssertionError(f"{message} was never logged: {self.lines}")

  def send(self, data: bytes) -> httpx.Response:
    return httpx.post(
      f"{self.url}/api/v1/detect/image", files={"image": ("a.png", data)}, headers=AUTH, timeout=60
    )


@contextlib.contextmanager
def running(folder: Path, **changes) -> Iterator[Service]:
  service = Service(folder, **changes)
  try:
    yield service
  finally:
    service.process.kill()
    service.process.wait()


def test_told_to_end_it_answers_what_it_began(tmp_path):
  with running(tmp_path, drain_s=60) as service:
    answers = []
    slow = threading.Thread(target=lambda: answers.append(service.send(png(note=b"SLOW"))))
    slow.start()
    while not received_files(tmp_path):
      time.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    slow.join()
    assert service.process.wait(60) == 0
    assert [answer.status_code for answer in answers] == [200]
    with pytest.raises(httpx.ConnectError):
      httpx.get(f"{service.url}/healthz")
  assert not list((tmp_path / "temp").glob(f"{uploads.FOLDER}-*/*")) and received_files(tmp_path) == []


def test_while_others_learn_that_it_ends_it_goes_on(tmp_path):
  with running(tmp_path, drain_delay_s=600) as service:
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("The models' folders are read again; what has changed is loaded beside what answers.")
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("Ending.")
    told = httpx.get(f"{service.url}/readyz")
    assert told.status_code == 503 and told.json()["draining"] is True
    assert service.send(png()).status_code == 200
    # A second signal ends it at once.
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(60) == 0


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
  with running(tmp_path) as service:

    def send() -> None:
      with contextlib.suppress(httpx.HTTPError):
        service.send(png(note=b"SLOW"))

    sending = threading.Thread(target=send)
    sending.start()
    while not received_files(tmp_path):
      time.sleep(0.01)
    service.process.kill()
    sending.join()
    service.process.wait()
  assert len(received_files(tmp_path)) == 1
  with running(tmp_path) as service:
    assert service.wait_for("Cleaned.")["files"] == 1
    assert received_files(tmp_path) == []


async def first_answer(url: str, trusting: ssl.SSLContext) -> str:
  # One thread: two at one connection of OpenSSL, as the other client has them, now and then lose an answer.
  async with connect(url, ssl=trusting) as stream:
    await stream.send(json.dumps({"key": API_KEY}))
    return json.loads(await stream.recv())["type"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_it_speaks_tls(tmp_path):
  certificate, key = self_signed(tmp_path, "-addext", "subjectAltName=IP:127.0.0.1")
  with running(tmp_path, ssl_certfile=certificate, ssl_keyfile=key) as service:
    assert service.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(certificate))
    answer = httpx.get(f"{service.url}/healthz", verify=trusting)
    assert answer.status_code == 200 and answer.headers["strict-transport-security"] == "max-age=31536000"
    # Streams too: there is no other port for them.
    live = service.url.replace("https", "wss") + "/api/v1/live"
    assert asyncio.run(first_answer(live, trusting)) == "ready"
    old = ssl.create_default_context(cafile=str(certificate))
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(httpx.ConnectError):
      httpx.get(f"{service.url}/healthz", verify=old)
    with pytest.raises(httpx.HTTPError):
      httpx.get(service.url.replace("https", "http") + "/healthz")


def test_an_address_that_cannot_be_had_is_told(tmp_path):
  settings = make_settings(tmp_path, port=0)
  with contextlib.closing(server._listen(settings)) as taken:
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f"Nothing can listen on 127.0.0.1:{port}"):
      server._listen(make_settings(tmp_path, port=port))
  with pytest.raises(ValueError, match="Nothing can listen on no-such-host"):
    server._listen(make_settings(tmp_path, host="no-such-host.invalid"))


def test_proxies_are_believed_only_where_they_are_named(tmp_path):
  async def app(scope, receive, send):
    raise AssertionError("Nobody asks.")

  assert server._config(app, make_settings(tmp_path)).proxy_headers is False
  named = server._config(app, make_settings(tmp_path, forwarded_allow_ips="192.0.2.1"))
  assert named.proxy_headers is True and named.forwarded_allow_ips == "192.0.2.1"


@contextlib.contextmanager
def in_a_thread(folder: Path):
  """The address of a server as `serve` sets it up, in a thread."""
  app = make_app(make_settings(folder), FakeEngine())
  running_server = uvicorn.Server(server._config(app, app.state.context.settings))
  listener = socket.create_server(("127.0.0.1", 0))
  thread = threading.Thread(target=running_server.run, kwargs={"sockets": [listener]}, daemon=True)
  thread.start()
  while not running_server.started:
    thread.join(0.02)
  try:
    yield listener.getsockname()
  finally:
    running_server.should_exit = True
    thread.join(20)


def until_closed(connection: socket.socket) -> bytes:
  """All that comes until the other side has closed."""
  connection.settimeout(60)
  said = b""
  with contextlib.suppress(ConnectionError):
    while part := connection.recv(65536):
      said += part
  return said


def test_a_request_has_to_begin_in_time(tmp_path, monkeypatch):
  monkeypatch.setattr(server, "_HEAD_S", 0.3)
  slow = b"POST /api/v1/detect/image HTTP/1.1\r\nHost: x\r\n"
  with in_a_thread(tmp_path) as address:
    for begun in (b"", slow):
      with socket.create_connection(address) as connection:
        connection.sendall(begun)
        assert until_closed(connection) == b""
    # One that has begun may take its time, and so may the pause before the next; that has to be quick again.
    with socket.create_connection(address) as connection:
      part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
      form = part + png(note=b"SLOW") + b"\r\n--x--\r\n"
      head = f"Authorization: {AUTH['Authorization']}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
      connection.sendall(slow + f"{head}Content-Length: {len(form)}\r\n\r\n".encode())
      time.sleep(0.5)
      connection.sendall(form)
      assert b" 200 " in connection.recv(65536)
      time.sleep(0.5)
      connection.sendall(slow)
      assert b"HTTP/1.1" not in until_closed(connection)


@pytest.mark.parametrize("begins", [b"GET /", b"GET / HTTP/1.1\r\nX: "], ids=["address", "header"])
def test_the_head_of_a_request_is_bounded(tmp_path, begins):
  with in_a_thread(tmp_path) as address, socket.create_connection(address) as connection:
    sent = 0
    with contextlib.suppress(ConnectionError):
      connection.sendall(begins)
      for _ in range(100):
        connection.sendall(b"a" * 65536)
        sent += 65536
        time.sleep(0.01)
    assert sent < 100 * 65536
    with contextlib.suppress(ConnectionError):
      assert b" 400 " in until_closed(connection)
    assert httpx.get(f"http://{address[0]}:{address[1]}/healthz").status_code == 200


def test_what_is_no_http_is_a_problem_too(tmp_path):
  with in_a_thread(tmp_path) as address, socket.create_connection(address) as connection:
    connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    told = json.loads(body)
  assert head.startswith(b"HTTP/1.1 400 ") and b"content-type: application/problem+json" in head
  assert told["code"] == "bad_request" and told["remedy"] and len(told["request_id"]) == 32
