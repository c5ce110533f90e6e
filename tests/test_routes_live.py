"""Streams over the WebSocket, with an engine that looks at brightness; what is wrong ends with a code."""

import contextlib
import io
import json
import logging
import random
import shutil
import time

import media_files
import psutil
import pytest
from serve_fakes import API_KEY, METRICS_KEY, FakeEngine, make_settings, real_server, service
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from deepscan_jax.serve import json_logs, routes_live
from deepscan_jax.serve.app import make_app

LIVE = routes_live.PATH
NO_KEY = {"Authorization": ""}
END = {"type": "end"}


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
  """Four seconds, as a browser or an encoder would send them: nothing of it stands at the end."""
  return media_files.no_audio(tmp_path_factory.mktemp("live") / "film.ts", count=100).read_bytes()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
  with service(tmp_path_factory.mktemp("service"), failed_auth_per_hour=1000, live_per_key=8) as client:
    yield client


def children() -> set[int]:
  return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def nothing_stays():
  """Whatever a test does to a stream, its decoder is gone when it has ended, and so are its descriptors."""
  before, files = children(), psutil.Process().num_fds()
  yield
  deadline = time.monotonic() + 10
  while (children() - before or psutil.Process().num_fds() > files + 12) and time.monotonic() < deadline:
    time.sleep(0.02)
  assert children() <= before
  assert psutil.Process().num_fds() <= files + 12  # of a service that a test has started


def send(socket, data: bytes, *, piece: int = 50_000) -> None:
  for start in range(0, len(data), piece):
    socket.send_bytes(data[start : start + piece])


def all_of(socket) -> tuple[list[dict], int]:
  """What is still sent, and the code of the end."""
  messages = []
  while True:
    try:
      messages.append(socket.receive_json())
    except WebSocketDisconnect as end:
      return messages, end.code


def refused(client, start=None, *, data=(), url=LIVE, headers=None) -> tuple[dict, int]:
  """The problem that a connection ends with, and its code."""
  with client.websocket_connect(url, headers=headers or {}) as socket:
    if start is not None:
      socket.send_text(start if isinstance(start, str) else json.dumps(start))
    for piece in data:
      with contextlib.suppress(WebSocketDisconnect):
        socket.send_bytes(piece)
    messages, code = all_of(socket)
  assert messages[-1]["type"] == "problem" and messages[-1]["remedy"] and messages[-1]["request_id"]
  return messages[-1], code


def test_a_stream_is_answered_window_by_window(client, film):
  with client.websocket_connect(LIVE) as socket:
    socket.send_json({"window_s": 1.0, "frames": 2})
    ready = socket.receive_json()
    assert ready["type"] == "ready" and ready["bytes_per_s"] == 2_000_000
    send(socket, film)
    socket.send_json(END)
    messages, code = all_of(socket)
  assert code == 1000
  windows = [message for message in messages if message["type"] == "window"]
  summary = messages[-1]
  assert summary["type"] == "summary" and summary["end"]["reason"] == "ended"
  # More came at once than may wait: what was left out is told.
  assert len(windows) + summary["counts"]["windows_dropped"] == 4 and windows
  assert summary["counts"]["frames_seen"] == 100
  for window in windows:
    assert window["frames"] == 2 and 0 < window["deepfake_probability"] < 1 and window["people"][0]["id"]
    assert window["decision"]["state"] in ("undecided", "likely_authentic", "likely_manipulated")


def test_what_a_browser_records_is_understood(client, tmp_path):
  film = media_files.write_video(
    tmp_path / "film.webm", media_files.numbered_frames(50), codec="libvpx", options={"deadline": "realtime"}
  ).read_bytes()
  with client.websocket_connect(LIVE, headers=NO_KEY) as socket:
    socket.send_json({"key": API_KEY, "window_s": 1.0})
    assert socket.receive_json()["type"] == "ready"
    send(socket, film, piece=7001)
    socket.send_json(END)
    messages, code = all_of(socket)
  assert code == 1000 and messages[0]["type"] == "window"


@pytest.mark.parametrize(
  ("start", "code", "reason"),
  [
    ({}, 4401, "missing_key"),
    ({"key": "wrong"}, 4401, "wrong_key"),
    ({"key": METRICS_KEY}, 4403, "wrong_scope"),
    ({"key": API_KEY, "model": "other"}, 4404, "unknown_model"),
    ({"key": API_KEY, "frames": 1000}, 4422, "invalid"),
    ({"key": API_KEY, "window_s": "NaN"}, 4422, "invalid"),
    ({"key": API_KEY, "source": "rtsp://10.0.0.1/"}, 4422, "invalid"),
    ("[" * 4000, 4422, "invalid"),
    ("no json", 4422, "invalid"),
    (json.dumps({"key": "x" * 5000}), 4422, "invalid"),
  ],
)
def test_the_first_message_is_checked(client, start, code, reason):
  problem, closed = refused(client, start, headers=NO_KEY)
  assert (closed, problem["code"]) == (code, reason)
  assert API_KEY not in json.dumps(problem)


def test_a_key_in_the_address_opens_nothing(client):
  problem, closed = refused(client, {}, url=f"{LIVE}?key={API_KEY}", headers=NO_KEY)
  assert (closed, problem["code"]) == (4401, "missing_key")


@pytest.mark.parametrize(
  ("path", "headers", "status", "code"),
  [
    (LIVE, {"Authorization": "Bearer wrong"}, 401, "wrong_key"),
    (LIVE, {"Origin": "https://evil.example"}, 403, "forbidden"),
    (LIVE, {"Origin": "null"}, 403, "forbidden"),
    ("/api/v1/other", NO_KEY, 401, "missing_key"),
    ("/", NO_KEY, 401, "missing_key"),
    ("/healthz", NO_KEY, 401, "missing_key"),
  ],
)
def test_what_may_not_connect_is_answered_as_http_has_it(client, path, headers, status, code):
  with pytest.raises(WebSocketDenialResponse) as refusal, client.websocket_connect(path, headers=headers):
    raise AssertionError
  answer = refusal.value
  assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
  assert answer.json()["code"] == code and answer.headers["x-content-type-options"] == "nosniff"


def test_the_same_site_and_named_ones_may_connect(client, tmp_path):
  with client.websocket_connect(LIVE, headers={"Origin": "http://testserver"}) as socket:
    socket.send_json({})
    assert socket.receive_json()["type"] == "ready"
  other = {"Origin": "https://other.example"}
  with (
    service(tmp_path, live_origins="https://example.org, https://other.example/") as client,
    client.websocket_connect(LIVE, headers=other) as socket,
  ):
    socket.send_json({})
    assert socket.receive_json()["type"] == "ready"


@pytest.mark.parametrize("sort", ["noise", "text", "playlist", "png", "cut", "flipped"])
def test_hostile_bytes_end_with_a_sentence(client, film, sort):
  noise = random.Random(7)
  data = {
    "noise": noise.randbytes(300_000),
    "text": b"This is no film.\n" * 20_000,
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "png": b"\x89PNG\r\n\x1a\n" + noise.randbytes(1000),
    "cut": film[: len(film) // 2],
    "flipped": bytes(x ^ (noise.random() < 0.01) << noise.randrange(8) for x in film),
  }[sort]
  with client.websocket_connect(LIVE) as socket:
    socket.send_json({"window_s": 1.0})
    send(socket, data)
    socket.send_json(END)
    messages, code = all_of(socket)
  if sort in ("cut", "flipped"):  # is a film, as far as it goes
    assert code in (1000, 4415, 4422)
  else:
    assert code in (4415, 4422) and messages[-1]["type"] == "problem"
    assert "passwd" not in json.dumps(messages)


def test_messages_have_an_order(client, film):
  assert refused(client, "{}", data=[b"x" * (routes_live.MESSAGE_BYTES + 1)])[1] == 4413
  with client.websocket_connect(LIVE) as socket:
    socket.send_bytes(film)
    messages, code = all_of(socket)
  assert (messages[-1]["code"], code) == ("bad_request", 4400)
  with client.websocket_connect(LIVE) as socket:
    socket.send_json({})
    socket.send_json({"type": "more"})
    messages, code = all_of(socket)
  assert (messages[-1]["code"], code) == ("bad_request", 4400)


def test_streams_at_once_are_counted(tmp_path):
  with service(tmp_path, live_per_key=1) as client:
    with client.websocket_connect(LIVE) as first:
      first.send_json({})
      assert first.receive_json()["type"] == "ready"
      problem, closed = refused(client, {})
      assert (closed, problem["code"]) == (1013, "busy") and problem["retry_after_s"] == 30
    deadline = time.monotonic() + 10
    while client.app.state.context.metrics.live_connections._value.get() and time.monotonic() < deadline:
      time.sleep(0.02)
    with client.websocket_connect(LIVE) as again:
      again.send_json({})
      assert again.receive_json()["type"] == "ready"


@pytest.mark.parametrize(
  ("changes", "closed", "code"),
  [
    ({"live_bytes_per_s": 10_000}, 4413, "too_large"),
    ({"live_idle_s": 0.2}, 4408, "slow_upload"),
    ({"live_s": 0.2}, 4408, "slow_upload"),
    ({"live_connections": 0}, 1013, "busy"),
  ],
)
def test_streams_have_limits(tmp_path, film, changes, closed, code):
  with service(tmp_path, **changes) as client:
    data = (
      [film[i : i + 20_000] for i in range(0, len(film), 20_000)] if "live_bytes_per_s" in changes else []
    )
    problem, ended = refused(client, {}, data=data)
    assert (ended, problem["code"]) == (closed, code)


def test_a_first_message_that_does_not_come_ends_it(client, monkeypatch):
  monkeypatch.setattr(routes_live, "START_S", 0.1)
  assert refused(client)[1] == 4408


def test_streams_count_as_requests(tmp_path, film):
  with service(tmp_path, requests_per_hour=2, live_windows_per_request=1) as client:
    with client.websocket_connect(LIVE) as socket:
      socket.send_json({"window_s": 1.0})
      assert socket.receive_json()["requests_left"] == 1
      send(socket, film)
      socket.send_json(END)
      messages, code = all_of(socket)
    assert (messages[-1]["code"], code) == ("rate_limited", 4429) and messages[-1]["retry_after_s"] > 0
    assert refused(client, {})[1] == 4429


def test_a_slow_model_leaves_windows_out_and_says_so(tmp_path, film):
  engine = FakeEngine()
  engine.clip_s = 0.3
  with service(tmp_path, engine=engine) as client:
    with client.websocket_connect(LIVE) as socket:
      socket.send_json({"window_s": 1.0})
      socket.receive_json()
      send(socket, film)
      socket.send_json(END)
      messages, code = all_of(socket)
    metrics = client.app.state.context.metrics.text().decode()
  counts = messages[-1]["counts"]
  assert code == 1000 and counts["windows_scored"] + counts["windows_dropped"] == 4
  assert counts["windows_scored"] == engine.clips
  assert f"deepscan_live_windows_dropped_total {counts['windows_dropped']:.1f}" in metrics


def test_models_that_are_not_ready_and_a_service_that_ends(tmp_path):
  with service(tmp_path, engine=FakeEngine()) as client:
    client.app.state.context.engine.ready = False
    assert refused(client, {})[1] == 1013
    client.app.state.context.engine.ready = True
    with client.websocket_connect(LIVE) as socket:
      socket.send_json({})
      assert socket.receive_json()["type"] == "ready"
      client.app.state.context.phase.draining = True
      assert all_of(socket) == ([], 1012)


def test_a_defect_shows_in_the_log_and_nowhere_else(client, film, monkeypatch, caplog):
  def defect(clip, model=None):
    raise RuntimeError("secret details")

  monkeypatch.setattr(client.app.state.context.engine, "detect_clip", defect)
  with client.websocket_connect(LIVE) as socket:
    socket.send_json({})
    socket.receive_json()
    send(socket, film)
    socket.send_json(END)
    messages, code = all_of(socket)
  assert code == 1011 and messages[-1]["code"] == "internal_error" and "secret" not in json.dumps(messages)
  assert "secret details" in caplog.text


def test_a_stream_is_a_line_of_json_without_its_key(client, film):
  lines = io.StringIO()
  handler = logging.StreamHandler(lines)
  handler.setFormatter(json_logs.JsonFormatter())
  logger = logging.getLogger("deepscan_jax.serve.front")
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  try:
    with client.websocket_connect(LIVE, headers=NO_KEY) as socket:
      socket.send_json({"key": API_KEY, "window_s": 1.0})
      socket.receive_json()
      send(socket, film)
      socket.send_json(END)
      all_of(socket)
  finally:
    logger.removeHandler(handler)
  (line,) = [json.loads(text) for text in lines.getvalue().splitlines()]
  assert line["method"] == "WEBSOCKET" and line["route"] == LIVE and line["status"] == 1000
  assert line["received_bytes"] == len(film) and line["key_id"] == "env" and line["windows"] >= 1
  assert API_KEY not in lines.getvalue()


def test_over_a_real_server_large_messages_and_lost_clients_leave_nothing(tmp_path, film):
  app = make_app(make_settings(tmp_path), FakeEngine())
  with real_server(app) as (host, port):
    url = f"ws://{host}:{port}{LIVE}"
    before = children()
    with connect(url, compression=None) as socket:
      socket.send(json.dumps({"key": API_KEY, "window_s": 1.0}))
      assert json.loads(socket.recv())["type"] == "ready"
      socket.send(film[:100_000])
      assert len(children() - before) == 1
      # The line is cut, as when a laptop is closed.
      socket.socket.close()
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
      time.sleep(0.02)
    assert not children() - before
    with connect(url, compression=None) as socket:
      socket.send(json.dumps({"key": "wrong"}))
      assert json.loads(socket.recv())["code"] == "wrong_key"
      with pytest.raises(ConnectionClosed) as end:
        socket.recv()
      assert end.value.rcvd.code == 4401


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RECORDING = """
async ([key, seconds]) => {
  const canvas = document.createElement("canvas");
  canvas.width = 320; canvas.height = 240;
  const pen = canvas.getContext("2d");
  const draw = setInterval(() => {
    pen.fillStyle = `hsl(${performance.now() / 10 % 360} 80% 60%)`;
    pen.fillRect(0, 0, 320, 240);
  }, 40);
  const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: "video/webm"});
  const socket = new WebSocket(`${location.origin.replace("http", "ws")}/api/v1/live`);
  const messages = [];
  socket.onopen = () => socket.send(JSON.stringify({key, window_s: 1}));
  socket.onmessage = ({data}) => {
    messages.push(JSON.parse(data));
    if (messages.length === 1) recorder.start(250);
  };
  recorder.ondataavailable = ({data}) => socket.send(data);
  recorder.onstop = () => socket.send('{"type": "end"}');
  setTimeout(() => recorder.stop(), 1000 * seconds);
  const code = await new Promise((done) => { socket.onclose = (event) => done(event.code); });
  clearInterval(draw);
  return [code, messages];
}
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_sends_what_it_records(tmp_path):
  playwright = pytest.importorskip("playwright.sync_api")
  app = make_app(make_settings(tmp_path), FakeEngine())
  with real_server(app) as (host, port), playwright.sync_playwright() as program:
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    browser = program.chromium.launch(executable_path=CHROMIUM, args=arguments)
    page = browser.new_page()
    page.goto(f"http://{host}:{port}/")
    code, messages = page.evaluate(RECORDING, [API_KEY, 3.5])
    browser.close()
  assert code == 1000 and messages[0]["type"] == "ready"
  windows = [message for message in messages if message["type"] == "window"]
  assert len(windows) >= 2 and all(0 < window["deepfake_probability"] < 1 for window in windows)
  assert messages[-1]["type"] == "summary" and messages[-1]["counts"]["frames_seen"] > 10
