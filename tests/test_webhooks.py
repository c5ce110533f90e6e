import contextlib
import hashlib
import hmac
import http.server
import ipaddress
import json
import socket
import ssl
import threading

import pytest

from deepscan_jax.serve import webhooks
from deepscan_jax.serve.webhooks import RefusedError, UndeliveredError

SECRET = webhooks.secret_of("k" * 40, "owner")


@contextlib.contextmanager
def receiver(*answers, headers=()):
  """A server on this machine that gives these statuses in turn; yields its port and what it got."""
  got, left = [], list(answers)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers["Content-Length"]))
      got.append((self.path, dict(self.headers), body))
      self.send_response(left.pop(0) if left else 200)
      for name, value in headers:
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(b"x" * 100)

    do_GET = do_POST

    def log_message(self, *_):
      del _

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield server.server_port, got
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def resolving(*addresses):
  def resolve(host, port, type=None):
    return [(None, type, 0, "", (address, port)) for address in addresses]

  return resolve


@pytest.mark.parametrize(
  "url",
  [
    "http://example.org/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://example.org",
    "//example.org/",
    "example.org",
    "",
    "https://",
    "https://user:hush@example.org/",
    "https://user@example.org/",
    "https://example.org/#part",
    "https://example.org:99999/",
    "https://example.org\\@127.0.0.1/",
    "https://exa mple.org/",
    "https://example.org/\r\nX-Evil: 1",
    "https://example.org/\N{SNOWMAN}",
    "https://127.0.0.1/",
    "https://10.1.2.3/",
    "https://192.168.0.1/",
    "https://172.16.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://100.64.0.1/",
    "https://0.0.0.0/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/",
    "https://[::]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[64:ff9b::a00:1]/",
    "https://[2002:a00:1::]/",
    f"https://example.org/{'x' * 2000}",
  ],
)
def test_addresses_that_no_client_may_give(url):
  with pytest.raises(RefusedError):
    webhooks.target(url)


def test_addresses_that_clients_and_operators_may_give():
  assert webhooks.target("https://example.org/a?b=c") == webhooks.Target(True, "example.org", 443, "/a?b=c")
  assert webhooks.target("https://EXAMPLE.org.:8443") == webhooks.Target(True, "example.org", 8443, "/")
  assert webhooks.target("https://[2606:2800:220:1::1]/").host == "2606:2800:220:1::1"
  assert webhooks.target("http://10.0.0.1:99/", allowed=["10.0.0.1:99"]).port == 99
  assert webhooks.target("http://hooks/", allowed=["hooks"]) == webhooks.Target(False, "hooks", 80, "/")
  with pytest.raises(RefusedError):
    webhooks.target("http://10.0.0.1:98/", allowed=["10.0.0.1:99"])


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:127.0.0.1"])
def test_a_name_that_stands_for_a_private_address_is_not_called(address):
  for addresses in ([address], ["93.184.216.34", address]):
    with pytest.raises(RefusedError, match="not public"):
      webhooks.deliver(
        "https://rebound.example/", {}, secret=SECRET, delivery="1", resolve=resolving(*addresses)
      )


def test_the_address_that_was_looked_at_is_the_one_that_is_called(monkeypatch):
  """A name that stands for another address a moment later changes nothing: nobody asks for it twice."""
  asked, called = [], []

  def resolve(host, port, type=None):
    asked.append(host)
    return resolving("93.184.216.34" if len(asked) == 1 else "127.0.0.1")(host, port, type)

  def connect(address, timeout=None):
    called.append(address)
    raise ConnectionRefusedError

  monkeypatch.setattr(socket, "create_connection", connect)
  with pytest.raises(UndeliveredError, match="does not answer"):
    webhooks.deliver("https://rebound.example/", {}, secret=SECRET, delivery="1", resolve=resolve)
  assert called == [("93.184.216.34", 443)] and len(asked) == 1


def test_a_message_is_signed_and_delivered():
  with receiver() as (port, got):
    host = f"127.0.0.1:{port}"
    webhooks.deliver(
      f"http://{host}/hook?x=1", {"id": "a", "files": 3}, secret=SECRET, delivery="d1", allowed=[host]
    )
  ((path, headers, body),) = got
  assert path == "/hook?x=1" and json.loads(body) == {"id": "a", "files": 3}
  stamp, signed = (part.partition("=")[2] for part in headers[webhooks.SIGNATURE].split(","))
  assert hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest() == signed
  assert headers["X-Deepscan-Delivery"] == "d1" and headers["Host"] == host
  assert webhooks.secret_of("k" * 40, "another") != SECRET and len(SECRET) == 64


@pytest.mark.parametrize(
  ("status", "for_good"), [(500, False), (404, False), (301, False), (307, False), (410, True)]
)
def test_an_answer_that_is_no_yes_is_none_and_redirects_are_not_followed(status, for_good):
  with receiver(status, headers=[("Location", "/elsewhere")]) as (port, got):
    host = f"127.0.0.1:{port}"
    with pytest.raises(UndeliveredError, match=f"answered with {status}") as raised:
      webhooks.deliver(f"http://{host}/", {}, secret=SECRET, delivery="1", allowed=[host])
  assert raised.value.for_good is for_good and len(got) == 1


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
  monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
  with receiver() as (port, got):
    host = f"127.0.0.1:{port}"
    webhooks.deliver(f"http://{host}/", {}, secret=SECRET, delivery="1", allowed=[host])
  assert len(got) == 1


def test_nobody_there_and_nobody_who_answers(monkeypatch):
  monkeypatch.setattr(webhooks, "_WHOLE_S", 0.3)
  listener = socket.create_server(("127.0.0.1", 0))
  host = f"127.0.0.1:{listener.getsockname()[1]}"
  with listener, pytest.raises(UndeliveredError, match="does not answer"):
    webhooks.deliver(f"http://{host}/", {}, secret=SECRET, delivery="1", allowed=[host], timeout_s=20)
  with pytest.raises(UndeliveredError, match="does not answer"):
    webhooks.deliver(f"http://{host}/", {}, secret=SECRET, delivery="1", allowed=[host])

  def unknown(host, port, type=None):
    raise socket.gaierror

  with pytest.raises(UndeliveredError, match="is not known"):
    webhooks.deliver("https://none.example/", {}, secret=SECRET, delivery="1", resolve=unknown)


def test_a_receiver_without_a_right_certificate_gets_nothing():
  with receiver() as (port, got):
    host = f"127.0.0.1:{port}"
    with pytest.raises(UndeliveredError):
      webhooks.deliver(
        f"https://{host}/",
        {},
        secret=SECRET,
        delivery="1",
        allowed=[host],
        tls=ssl.create_default_context(),
      )
  assert got == []


def test_what_is_public():
  told = {a: webhooks.is_public(ipaddress.ip_address(a)) for a in ("8.8.8.8", "::ffff:8.8.8.8", "2600::1")}
  assert all(told.values())
  assert not webhooks.is_public(ipaddress.ip_address("ff02::1"))
