"""The least of an RTSP server: plays an MPEG-TS file to one client after the other, over the client's line.

RTP carries seven packets of the stream each (RFC 2250), in frames on the RTSP connection (RFC 2326, 10.12).
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

TS_PACKET, TS_PACKETS = 188, 7
_SDP_TYPE = "Content-Type: application/sdp\r\n"
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"


@contextlib.contextmanager
def rtsp_server(film: bytes, *, bytes_per_s: int, plays: int = 1) -> Iterator[str]:
  """The address of a server that plays `film` to its end, to so many clients, and then hangs up.

  Args:
    film: MPEG-TS.
    bytes_per_s: how fast.
    plays: after so many clients, it listens no more.
  """
  listener = socket.create_server(("127.0.0.1", 0))
  thread = threading.Thread(target=_serve, args=(listener, film, bytes_per_s, plays), daemon=True)
  thread.start()
  try:
    yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live"
  finally:
    listener.close()


def _serve(listener: socket.socket, film: bytes, bytes_per_s: int, plays: int) -> None:
  with contextlib.suppress(OSError):
    for _ in range(plays):
      line, _ = listener.accept()
      with line, contextlib.suppress(OSError):
        _answer(line, film, bytes_per_s)
    listener.close()


def _answer(line: socket.socket, film: bytes, bytes_per_s: int) -> None:
  asked = b""
  while True:
    while b"\r\n\r\n" not in asked:
      piece = line.recv(4096)
      if not piece:
        return
      asked += piece
    head, _, asked = asked.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    method, address, _ = lines[0].split(" ")
    number = next(text.split(":")[1].strip() for text in lines if text.lower().startswith("cseq"))
    headers = {
      "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
      "DESCRIBE": f"Content-Base: {address}/\r\n{_SDP_TYPE}Content-Length: {len(_SDP)}\r\n",
      "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
      "PLAY": "Session: 1\r\n",
    }.get(method, "")
    body = _SDP if method == "DESCRIBE" else ""
    line.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{headers}\r\n{body}".encode())
    if method == "PLAY":
      return _play(line, film, bytes_per_s)


def _play(line: socket.socket, film: bytes, bytes_per_s: int) -> None:
  started, size = time.monotonic(), TS_PACKET * TS_PACKETS
  for number, start in enumerate(range(0, len(film), size)):
    part = film[start : start + size]
    packet = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 3000 & 0xFFFFFFFF, 1) + part
    line.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
    wait_s = started + start / bytes_per_s - time.monotonic()
    if wait_s > 0:
      time.sleep(wait_s)
