import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path

import httpx
import pytest
from serve_fakes import (
  API_KEY,
  FakeEngine,
  make_settings,
  mp4,
  png,
  real_server,
  received_files,
  service,
  wav,
)
from starlette.requests import Request

from deepscan_jax.serve import uploads
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.problems import Problem

LIMIT = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def client(folder):
  with service(folder, image_bytes=LIMIT, audio_bytes=2 * LIMIT, video_bytes=3 * LIMIT) as client:
    yield client
  # With the service goes its folder.
  assert not list((folder / "temp").glob(f"{uploads.FOLDER}-*/*"))


def send(client, data: bytes, *, name: str = "a.png", kind: str = "image", field: str | None = None, **more):
  return client.post(f"/api/v1/detect/{kind}", files={field or kind: (name, data)}, **more)


def code_of(answer) -> tuple[int, str]:
  assert answer.headers["content-type"] == "application/problem+json" and answer.json()["remedy"]
  return answer.status_code, answer.json()["code"]


def png_of(size: int) -> bytes:
  return png(note=os.urandom(size - 32))


# Sizes ----------------------------------------------------------------------------------------------------


def test_a_file_may_be_as_large_as_its_kind_allows(client, folder):
  assert send(client, png_of(LIMIT)).status_code == 200
  answer = send(client, png_of(LIMIT + 1))
  assert code_of(answer) == (413, "too_large") and "larger than 20000 bytes" in answer.json()["detail"]
  assert send(client, wav(note=bytes(LIMIT + 1)), name="a.wav", kind="audio").status_code == 200
  assert send(client, mp4(note=bytes(2 * LIMIT + 1)), name="a.mp4", kind="video").status_code == 200
  assert received_files(folder) == []


def test_both_framings_of_too_large_a_file_are_refused_and_leave_nothing(tmp_path):
  app = make_app(make_settings(tmp_path, image_bytes=LIMIT), FakeEngine())
  most_seen = []
  head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
  with real_server(app) as (host, port):
    for size, framing in [
      (LIMIT + 1, "length"),
      (LIMIT + 1, "chunked"),
      (10**12, "length"),  # only said, never sent
      (50 * LIMIT, "length"),
      (50 * LIMIT, "chunked"),
    ]:
      with socket.create_connection((host, port), timeout=30) as client:
        body = head + png_of(min(size, 60 * LIMIT)) + b"\r\n--x--\r\n"
        length = size if size == 10**12 else len(body)
        lines = [
          "POST /api/v1/detect/image HTTP/1.1",
          "Host: x",
          f"Authorization: Bearer {API_KEY}",
          "Content-Type: multipart/form-data; boundary=x",
          f"Content-Length: {length}" if framing == "length" else "Transfer-Encoding: chunked",
        ]
        pieces = [body[start : start + 9000] for start in range(0, len(body), 9000)]
        if framing == "chunked":
          pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
        with contextlib.suppress(ConnectionError):  # the answer may come before all is sent
          client.sendall("\r\n".join([*lines, "", ""]).encode())
          for piece in [] if size == 10**12 else pieces:
            client.sendall(piece)
            most_seen.append(sum(path.stat().st_size for path in received_files(tmp_path)))
        answer = b""
        with contextlib.suppress(ConnectionError):
          while piece := client.recv(1 << 16):
            answer += piece
      status, _, rest = answer.partition(b"\r\n")
      assert b" 413 " in status and b"application/problem+json" in rest and b'"code":"too_large"' in rest
      assert received_files(tmp_path) == []
    # The server goes on.
    files = {"image": ("a.png", png())}
    url = f"http://{host}:{port}/api/v1/detect/image"
    assert httpx.post(url, files=files, headers={"Authorization": f"Bearer {API_KEY}"}).status_code == 200
  assert max(most_seen) <= LIMIT + uploads.FORM_BYTES


def test_other_bodies_are_small(client):
  for path in ("/api/v1/feedback", "/api/v1/models"):
    method = "POST" if path.endswith("feedback") else "GET"
    for content in (b"x" * 70_000, iter([b"x" * 7000] * 10)):
      answer = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
      if method == "POST" or isinstance(content, bytes):
        assert code_of(answer) == (413, "too_large")


def test_a_lying_length_is_refused(client):
  answer = client.post("/api/v1/detect/image", content=b"", headers={"Content-Length": "-5"})
  assert code_of(answer) == (413, "too_large")


# What a file is -------------------------------------------------------------------------------------------

ISO = b"\x00\x00\x00\x18ftypisom"
BEGINNINGS = {
  "mp4": ISO,
  "mov": b"\x00\x00\x00\x14ftypqt  ",
  "m4v": ISO,
  "3gp": ISO,
  "m4a": ISO,
  "avi": b"RIFF\x00\x00\x00\x00AVI LIST",
  "mkv": b"\x1aE\xdf\xa3\x93B\x82\x88matroska",
  "webm": b"\x1aE\xdf\xa3\x93B\x82\x88webm",
  "mpg": b"\x00\x00\x01\xba",
  "mpeg": b"\x00\x00\x01\xb3",
  "jpg": b"\xff\xd8\xff\xe0",
  "jpeg": b"\xff\xd8\xff\xe1",
  "png": b"\x89PNG\r\n\x1a\n",
  "webp": b"RIFF\x00\x00\x00\x00WEBP",
  "wav": b"RIFF\x00\x00\x00\x00WAVE",
  "mp3": b"\xff\xfb\x90\x00",
  "flac": b"fLaC",
  "ogg": b"OggS",
  "opus": b"OggS",
}


def test_every_type_is_known_by_its_beginning():
  assert set(BEGINNINGS) == set(uploads.TYPES)
  for extension, beginning in BEGINNINGS.items():
    assert uploads._family(beginning.ljust(64, b"\0")) == uploads.TYPES[extension][1], extension
  assert uploads._family(b"ID3\x04") == "mp3"
  for other in (
    b"",
    b"\0" * 64,
    b"MZ",
    b"PK\x03\x04",
    b"GIF89a",
    b"\xff\xf1\x50\x80",
    b"<svg",
    b"RIFFxxxxACON",
  ):
    assert uploads._family(other) is None


@pytest.mark.parametrize("extension", BEGINNINGS)
def test_an_extension_and_the_content_have_to_be_the_same(client, extension):
  kind = uploads.TYPES[extension][0][0]
  right = BEGINNINGS[extension].ljust(100, b"\0")
  answer = send(client, right, name=f"a.{extension.upper()}", kind=kind)
  # The decoder in its place says what the name says, and so of some that they are another container.
  assert answer.status_code == 200 or code_of(answer) in ((415, "type_mismatch"), (415, "wrong_kind"))
  wrong = send(
    client,
    BEGINNINGS["png" if extension != "png" else "wav"].ljust(100, b"\0"),
    name=f"a.{extension}",
    kind=kind,
  )
  assert code_of(wrong) == (415, "type_mismatch") and f".{extension} file" in wrong.json()["detail"]
  assert code_of(send(client, b"MZ" * 200, name=f"a.{extension}", kind=kind)) == (415, "type_mismatch")


@pytest.mark.parametrize(
  "name", ["a", "a.exe", "png", "a.png.exe", "a.mp4", "", ".", "a.png/", "a.png\0.exe"]
)
def test_other_names_are_refused(client, name):
  answer = send(client, png(), name=name)
  assert code_of(answer) in ((415, "unknown_extension"), (422, "missing_file"))


def test_what_the_decoder_finds_has_the_last_word(client, monkeypatch):
  engine = client.app.state.context.engine
  detect = engine.detect

  def finding(kind, container):
    def found(path, **asked):
      import dataclasses

      verdict = detect(path, **asked)
      media = {**verdict.file["media"], "container": container}
      return dataclasses.replace(verdict, file={**verdict.file, "kind": kind, "media": media})

    return found

  monkeypatch.setattr(engine, "detect", finding("audio", "png"))
  answer = send(client, png_of(100))
  assert (
    code_of(answer) == (415, "wrong_kind") and answer.json()["remedy"] == "Send it to /api/v1/detect/audio."
  )
  monkeypatch.setattr(engine, "detect", finding("image", "webp"))
  assert code_of(send(client, png_of(100))) == (415, "type_mismatch")
  monkeypatch.setattr(engine, "detect", finding("video", "avi"))
  assert code_of(send(client, mp4(note=b"x"), name="a.mp4", kind="video")) == (415, "type_mismatch")
  # Phones write a second picture behind the first, and the decoder calls that otherwise.
  monkeypatch.setattr(engine, "detect", finding("image", "mpo"))
  assert send(client, b"\xff\xd8\xff\xe0" + bytes(90), name="a.jpg").status_code == 200


# Forms ----------------------------------------------------------------------------------------------------


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> dict:
  body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end
  return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


def part(disposition: str, data: bytes = png()) -> bytes:
  return f"Content-Disposition: form-data; {disposition}\r\n\r\n".encode() + data


A_FILE = part('name="image"; filename="a.png"')


@pytest.mark.parametrize(
  "sent, expected",
  [
    (form(A_FILE), (200, None)),
    (form(part('name="picture"; filename="a.png"')), (422, "missing_file")),
    (form(part('name="image"', b"text")), (422, "missing_file")),
    (form(part('filename="a.png"')), (422, "missing_file")),
    (form(b"\r\n" + png()), (422, "missing_file")),
    (form(), (422, "missing_file")),
    (form(A_FILE, A_FILE), (422, "unexpected_field")),
    (form(A_FILE, part('name="more"', b"x")), (422, "unexpected_field")),
    (form(part('name="image"; filename="a.png"', b"")), (422, "empty_file")),
    (form(A_FILE, end=b""), (400, "bad_multipart")),
    (form(A_FILE[:-10], end=b"")["content"], None),
    (form(part('name="image"; filename="a.png"' + "\r\nX: " + "y" * 20_000)), (400, "bad_multipart")),
    (
      form(part('name="image"; filename="a.png"' + "".join(f"\r\nX{i}: y" for i in range(50)))),
      (400, "bad_multipart"),
    ),
    (
      {"content": b"hello", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
      (400, "bad_multipart"),
    ),
    ({"content": b"hello", "headers": {"Content-Type": "multipart/form-data"}}, (400, "bad_multipart")),
    (
      {"content": b"hello", "headers": {"Content-Type": f"multipart/form-data; boundary={'x' * 500}"}},
      (400, "bad_multipart"),
    ),
    ({"content": png(), "headers": {"Content-Type": "image/png"}}, (415, "unsupported_media_type")),
    ({"content": png()}, (415, "unsupported_media_type")),
    ({"json": {"image": "x"}}, (415, "unsupported_media_type")),
    ({"data": {"image": "x"}}, (415, "unsupported_media_type")),
  ],
)
def test_a_form_holds_one_file(client, folder, sent, expected):
  if expected is None:
    sent, expected = {**form(), "content": sent}, (400, "bad_multipart")
  answer = client.post("/api/v1/detect/image", **sent)
  if expected[1] is None:
    assert answer.status_code == 200, answer.text
  else:
    assert code_of(answer) == expected
  assert received_files(folder) == []


# Names and places -----------------------------------------------------------------------------------------

HOSTILE = [
  "../../etc/passwd.png",
  "/etc/cron.d/x.png",
  "..\\..\\x.png",
  "a\x1b[31m\u202egnp.png",
  "x" * 3000 + ".png",
  "-rf.png",
  "~root.png",
  "$(id).png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_clients_touch_no_disk(client, folder, name):
  engine = client.app.state.context.engine
  answer = send(client, png(note=name.encode()), name=name)
  assert answer.status_code == 200
  used = Path(engine.calls[-1][0])
  mine = client.app.state.context.uploads.path
  assert used.parent == mine and len(used.stem) == 32 and int(used.stem, 16) >= 0 and used.suffix == ".png"
  shown = answer.json()["file"]["name"]
  assert (
    shown == uploads.shown_name(name) and len(shown) <= 255 and shown.isprintable() and shown.endswith(".png")
  )
  assert not set("/\\") & set(shown)
  # Nor does the answer tell where it lay.
  assert used.stem not in answer.text and str(folder) not in answer.text
  assert not used.exists() and received_files(folder) == []


def test_a_file_is_its_owners_alone_while_it_is_there(client, folder, monkeypatch):
  engine, seen = client.app.state.context.engine, {}
  detect = engine.detect

  def look(path, **asked):
    seen.update(file=path.stat().st_mode & 0o777, folder=path.parent.stat().st_mode & 0o777)
    seen["there"] = received_files(folder)
    return detect(path, **asked)

  monkeypatch.setattr(engine, "detect", look)
  data = png_of(5000)
  answer = send(client, data)
  assert (seen["file"], seen["folder"], len(seen["there"])) == (0o600, 0o700, 1)
  assert answer.json()["file"]["sha256"] == hashlib.sha256(data).hexdigest()
  assert answer.json()["file"]["bytes"] == 5000


@pytest.mark.parametrize("note", [b"BAD", b"BUSY", b"DEFECT", b"NONE", b""])
def test_nothing_is_kept_however_it_ends(client, folder, note):
  send(client, png(note=note + os.urandom(4)))
  assert received_files(folder) == []


def test_files_are_kept_where_that_is_asked_for(tmp_path):
  with service(tmp_path, keep=tmp_path / "kept") as client:
    data = png_of(100)
    for _ in range(2):
      assert send(client, data, name="../x.png").status_code == 200
    kept = tmp_path / "kept" / f"{hashlib.sha256(data).hexdigest()}.png"
    assert [path for path in kept.parent.iterdir()] == [kept] and kept.read_bytes() == data
    assert kept.stat().st_mode & 0o777 == 0o600 and received_files(tmp_path) == []


def test_the_janitor_removes_what_dead_processes_left(tmp_path):
  with contextlib.closing(uploads.UploadFolder(tmp_path)) as living:
    dead = uploads.UploadFolder(tmp_path)
    (dead.path / "0123.mp4").write_bytes(b"left")
    (living.path / "4567.mp4").write_bytes(b"orphan")
    living._open.add("89ab")
    (living.path / "89ab.mp4").write_bytes(b"in use")
    other = contextlib.closing(uploads.UploadFolder(tmp_path))
    with other as other_living:
      os.close(dead._lock)  # as the kernel does when a process dies
      assert living.clean() == 2
      assert not dead.path.exists() and other_living.path.exists()
      assert [path.name for path in living.path.glob("*.mp4")] == ["89ab.mp4"]
      assert living.clean() == 0
    dead._lock = None


def test_a_folder_of_somebody_else_is_not_used(tmp_path):
  (tmp_path / f"{uploads.FOLDER}-{os.getuid()}").mkdir()
  os.chmod(tmp_path / f"{uploads.FOLDER}-{os.getuid()}", 0o777)
  with pytest.raises(ValueError, match="is not a private folder"):
    uploads.UploadFolder(tmp_path)
  other = tmp_path / "other"
  other.mkdir()
  (other / f"{uploads.FOLDER}-{os.getuid()}").symlink_to(tmp_path)
  with pytest.raises(ValueError, match="is not a private folder"):
    uploads.UploadFolder(other)


# Time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"idle_s": 0.05}, {"whole_s": 0.05}])
def test_an_upload_that_stands_still_ends(tmp_path, limits):
  received = []

  async def receive():
    if received:
      await asyncio.sleep(30)
    received.append(1)
    return {"type": "http.request", "body": b"--x\r\n" + A_FILE, "more_body": True}

  scope = {
    "type": "http",
    "method": "POST",
    "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
  }

  async def send_it(folder):
    async with folder.receive(Request(scope, receive), kind="image", most_bytes=1000):
      raise AssertionError("The upload never ended.")

  with contextlib.closing(uploads.UploadFolder(tmp_path, **limits)) as folder:
    with pytest.raises(Problem) as error:
      asyncio.run(send_it(folder))
    assert (error.value.status_code, error.value.code) == (408, "slow_upload")
    assert [path.name for path in folder.path.iterdir()] == ["lock"] and not folder._open


def test_a_client_that_goes_away_leaves_nothing(tmp_path):
  app = make_app(make_settings(tmp_path), FakeEngine())
  with real_server(app) as (host, port):
    with socket.create_connection((host, port)) as client:
      head = f"POST /api/v1/detect/video HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
      head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000000\r\n\r\n"
      film = part('name="video"; filename="a.mp4"', mp4(note=bytes(4_000_000)))
      client.sendall(head.encode() + b"--x\r\n" + film)
      for _ in range(500):
        if received_files(tmp_path):
          break
        threading.Event().wait(0.02)
      assert received_files(tmp_path)
    for _ in range(500):
      # The file goes a moment before its name does.
      if not received_files(tmp_path) and not app.state.context.uploads._open:
        break
      threading.Event().wait(0.02)
    assert received_files(tmp_path) == []
  # The server has ended, and with it every request.
  assert not app.state.context.uploads._open
