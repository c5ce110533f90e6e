import http.server
import ssl
import threading

import pytest
from serve_fakes import self_signed

from deepscan_jax.serve import health


class _Answers(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response({"/readyz": 200, "/other": 204}.get(self.path, 503))
    self.end_headers()
    if self.path == "/busy":
      self.wfile.write(b'{"status": "not_ready"}')

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def environment(server, **more) -> dict[str, str]:
  return {"PORT": str(server.server_address[1]), **more}


def test_a_service_that_is_ready_is_healthy_and_no_other(server, capsys, monkeypatch):
  # A proxy would answer for it.
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
  assert health.main([], environment(server, HOST="0.0.0.0")) == 0
  address = f"http://127.0.0.1:{server.server_address[1]}"
  assert health.main([f"{address}/readyz"], {}) == 0
  assert capsys.readouterr().err == ""
  for path, told in (("/busy", 'answers 503: {"status": "not_ready"}'), ("/other", "answers 204.")):
    assert health.main([f"{address}{path}"], {}) == 1
    assert told in capsys.readouterr().err
  assert health.main(["a", "b"], {}) == 2


def test_one_that_does_not_answer_is_told_in_a_line(server, capsys):
  given = environment(server)
  server.shutdown()
  server.server_close()
  assert health.main([], given) == 1
  assert "does not answer: [Errno 111]" in capsys.readouterr().err
  assert health.main(["nonsense"], {}) == 1
  assert "nonsense does not answer" in capsys.readouterr().err


def test_a_service_with_https_is_asked_by_https(server, tmp_path):
  certificate, key = self_signed(tmp_path)
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(certificate, key)
  server.socket = context.wrap_socket(server.socket, server_side=True)
  assert health.main([], environment(server, DEEPSCAN_SSL_CERTFILE=str(certificate))) == 0
  assert health.main([], environment(server)) == 1


@pytest.mark.parametrize(
  "environ, url",
  [
    ({}, "http://127.0.0.1:5000/readyz"),
    ({"HOST": "0.0.0.0", "PORT": "8080"}, "http://127.0.0.1:8080/readyz"),
    ({"HOST": "::"}, "http://[::1]:5000/readyz"),
    ({"HOST": "10.0.0.7", "DEEPSCAN_SSL_CERTFILE": "x"}, "https://10.0.0.7:5000/readyz"),
  ],
)
def test_it_asks_where_the_service_listens(environ, url):
  assert health.own_url(environ) == url
