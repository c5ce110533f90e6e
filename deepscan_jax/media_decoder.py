"""Decodes one open media file into plain bytes; media.py runs it here or in a limited child process.

It needs PyAV and the standard library only (Pillow for pictures): the child that decodes an untrusted file
imports this one module by its file name, and neither NumPy nor JAX, whose start-up costs more than many files
take to decode.

A file is read once from end to end ("scan": every video packet is noted, sound is decoded), then the chosen
frames are decoded. That order makes the choice exact: it rests on the timestamps that are really in the file,
not on what its header promises, and it is the same however the frames are then reached. The second pass hands
the decoder only the packets that the chosen frames depend on, so whole groups of pictures without a chosen
frame cost no decoding; a seek would skip the same groups, but not every container can seek to an exact
packet.
"""

import functools
import io
import json
import math
import mmap
import os
import resource
import signal
import struct
import sys
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import import_module
from itertools import compress, islice, pairwise

import av

SAMPLE_RATE_HZ = 16_000
SAMPLE_BYTES = 4  # float32

# Only these demuxers may open a file. Playlists, devices and everything that names other files stay out.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,wav,w64,mp3,flac,ogg,aac,aiff"
TAGS = ("encoder", "creation_time", "major_brand", "compatible_brands", "make", "model", "software")
COLOR_SPACES = {
  0: "rgb",
  1: "bt709",
  4: "fcc",
  5: "bt601",
  6: "bt601",
  7: "smpte240m",
  9: "bt2020",
  10: "bt2020",
}

HDR_TRANSFERS = {16: "pq", 18: "hlg"}

# Files that people hand in by mistake, by their first bytes: (offset, bytes, what it is).
REFUSED = (
  (0, b"%PDF", "a PDF document"),
  (0, b"PK\x03\x04", "a ZIP archive or office document"),
  (0, b"\x1f\x8b", "a gzip archive"),
  (0, b"Rar!", "a RAR archive"),
  (0, b"7z\xbc\xaf", "a 7-Zip archive"),
  (0, b"FLV\x01", "a Flash video"),
  (0, b"\x30\x26\xb2\x75", "a Windows Media file"),
  (0, b"II*\x00", "a TIFF picture"),
  (0, b"MM\x00*", "a TIFF picture"),
  (4, b"ftyphei", "an HEIC picture"),
  (4, b"ftyphev", "an HEIC picture"),
  (4, b"ftypmif1", "an HEIF picture"),
  (4, b"ftypmsf1", "an HEIF picture"),
  (4, b"ftypavi", "an AVIF picture"),
)
# Tags need not be UTF-8; PyAV 19 lets them pass by itself and knows this option no more.
LENIENT_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# How accepted containers begin, to tell a damaged one from something else.
BEGINNINGS = (
  (4, b"ftyp"),
  (4, b"moov"),
  (4, b"mdat"),
  (0, b"RIFF"),
  (0, b"\x1aE\xdf\xa3"),
  (0, b"\x00\x00\x01\xba"),
  (0, b"\x00\x00\x01\xb3"),
  (0, b"ID3"),
  (0, b"fLaC"),
  (0, b"OggS"),
)
ACCEPTED = (
  "mp4, mov, avi, mkv, webm and mpg videos, jpg, png and webp pictures, wav, mp3, flac, m4a and ogg sound"
)

# Packets of a file up to this size are kept between the two passes instead of being read again.
KEPT_PACKET_BYTES = 64 << 20
# Silence is filled in where sound stops for longer than this; smaller steps are rounding of the timestamps.
SOUND_GAP_S = 0.1
# In these codecs no other frame ever refers to a frame marked as non-reference, so one that was not chosen
# need not be decoded. (In HEVC the mark only holds within one temporal layer.)
DISPOSABLE_FRAMES = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}

# Who wrote a container last, by what its tags say in small letters; the first line that fits counts, for a
# program that rewrites a camera's file may leave the camera's tags in it.
WRITERS = (
  ("handbrake", ("handbrake",)),
  ("google", ("google",)),
  ("lavf", ("lavf", "lavc", "=videohandler\n", "=soundhandler\n")),
  ("gpac", ("gpac",)),
  ("adobe", ("adobe", "premiere", "after effects")),
  ("mkvmerge", ("mkvmerge", "libmatroska", "libwebm")),
  ("apple", ("com.apple", "core media")),
  ("android", ("com.android", "=videohandle\n", "=soundhandle\n")),
  ("camera", ("gopro", "dji", "canon", "nikon", "sony", "panasonic", "make=")),
)
# Which encoder wrote the pictures, by the note it leaves in the first packet.
ENCODER_MARKS = (("x264", b"x264 - core"), ("x265", b"x265 (build"), ("xvid", b"XviD"), ("lavc", b"Lavc"))
MARK_BYTES = 2048  # the notes stand within so many bytes of the first packet's beginning
# What is looked at for traces of an earlier compression: so many packets, groups of so many frames.
TRACED_PACKETS = 2000
TRACED_GOPS = range(5, 129)
# At least so many frames must be where the earlier keyframes would have been.
TRACED_GROUPS = 4
# The score from which the earlier length is named; see _earlier_gop.
TRACE_SCORE = 2.0
# The example luma quantisation table of JPEG (ITU-T T.81, annex K), sorted; most programs scale it.
# fmt: off
STANDARD_LUMA = (
  10, 11, 12, 12, 13, 14, 14, 14, 16, 16, 16, 17, 18, 19, 22, 22, 24, 24, 24, 26, 29, 35, 37, 40, 40, 49, 51,
  51, 55, 55, 56, 56, 57, 58, 60, 61, 62, 64, 64, 68, 69, 72, 77, 78, 80, 81, 87, 87, 92, 92, 95, 98, 99, 100,
  101, 103, 103, 103, 104, 109, 112, 113, 120, 121,
)
# fmt: on
# Two threads decode 1080p about 1.5 times as fast as one; more mostly add memory.
MAX_THREADS = 2


@dataclass(frozen=True)
class SamplingPlan:
  """Says which frames of a video to take: `frame_count` of them, evenly spread, in runs of `window_frames`.

  With window_frames = 1 the frames are spread evenly over the file. With more, frame_count // window_frames
  runs are spread evenly: of consecutive frames, or with rate_hz > 0 of the frames nearest to moments
  1 / rate_hz seconds apart, so that a run lasts as long whatever the file's own rate. A file with fewer
  frames gives what it has, never a frame twice.

  spans_s: (start, end) in seconds since the clip's start; where any frame lies in one, those outside are only
  taken to fill a run around one that does.

  ends: spread single frames from the first to the last, as many published protocols do, and not over the
  middles of equal parts.
  """

  frame_count: int = 32
  window_frames: int = 1
  rate_hz: float = 0.0
  spans_s: tuple[tuple[float, float], ...] = ()
  ends: bool = False

  def __post_init__(self):
    if not 1 <= self.window_frames <= self.frame_count:
      raise ValueError(
        f"SamplingPlan needs 1 <= window_frames <= frame_count; got window_frames={self.window_frames}, "
        f"frame_count={self.frame_count}."
      )

  def within(self, most: int) -> "SamplingPlan":
    """The same plan for at most `most` frames: with fewer runs, or with one that is shorter."""
    window = min(self.window_frames, most)
    runs = min(self.frame_count, most) // window
    return replace(self, frame_count=runs * window, window_frames=window)

  def choose(self, available: int) -> list[int]:
    """Returns the indices, in order and distinct, of the frames to take out of `available` frames."""
    if self.ends and self.window_frames == 1 and min(self.frame_count, available) > 1:
      count = min(self.frame_count, available)
      # Rounded as a list of evenly spaced floats that is cut off to whole numbers, its last one exact.
      step = (available - 1) / (count - 1)
      return [*(int(i * step) for i in range(count - 1)), available - 1]
    window = min(self.window_frames, available)
    windows = min(self.frame_count // self.window_frames, available // window) if window else 0
    return [
      (2 * i * available + available - windows * window) // (2 * windows) + j
      for i in range(windows)
      for j in range(window)
    ]

  def choose_at(self, times_s: list[float]) -> list[int]:
    """Returns the indices, in order and distinct, of the frames to take out of those at these times.

    Args:
      times_s: of each frame, ascending, seconds since the clip's start.
    """
    inside = [i for i, t in enumerate(times_s) if any(a <= t <= b for a, b in self.spans_s)]
    inside = inside or list(range(len(times_s)))
    if self.rate_hz <= 0 or self.window_frames == 1 or not inside:
      return [inside[i] for i in self.choose(len(inside))]
    run_s = self.window_frames / self.rate_hz
    last = max(times_s[-1] + 1 / self.rate_hz - run_s, times_s[0])
    within_s = len(inside) / len(times_s) * (times_s[-1] - times_s[0] + 1 / self.rate_hz)
    windows = max(1, min(self.frame_count // self.window_frames, int(within_s / run_s + 1e-6)))
    starts = [
      min(max(times_s[inside[(2 * i + 1) * len(inside) // (2 * windows)]] - run_s / 2, times_s[0]), last)
      for i in range(windows)
    ]
    chosen = set()
    for start in starts:
      # A run begins at a frame. Moments halfway between two would take now the one, now the other.
      start = times_s[max(bisect_right(times_s, start + 1e-6) - 1, 0)]
      for tick in range(self.window_frames):
        moment = start + tick / self.rate_hz
        after = bisect_left(times_s, moment)
        near = [i for i in (after - 1, after) if 0 <= i < len(times_s)]
        best = min(near, key=lambda i: abs(times_s[i] - moment))
        if abs(times_s[best] - moment) <= 1 / self.rate_hz:
          chosen.add(best)
    return sorted(chosen)


@dataclass(frozen=True)
class Budget:
  """Says how much one file may cost before it is refused; the defaults pass a 30 minute 4K video.

  Sizes are in bytes, times in seconds. `frame_pixels` bounds one picture or video frame, `decoded_frames` and
  `decoded_pixels` everything the video decoder puts out, `output_bytes` the chosen frames and the waveform;
  of runs of frames that do not fit, fewer or shorter ones are taken.
  `wall_s` holds everywhere; `cpu_s` and `address_space_bytes` only in the child process.
  """

  file_bytes: int = 8 << 30
  frame_pixels: int = 1 << 26
  streams: int = 32
  duration_s: float = 7200.0
  decoded_frames: int = 500_000
  decoded_pixels: int = 200_000_000_000
  output_bytes: int = 1 << 30
  wall_s: float = 300.0
  cpu_s: int = 600
  address_space_bytes: int = 4 << 30


class MediaError(ValueError):
  """A file that cannot be used: `reason` is a short code for programs, the message one sentence for people.

  Reasons: missing_file, empty_file, not_media, unsupported_type, unreadable, no_frames, no_sound,
  over_budget, timeout, decoder_crash.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclass
class Region:
  """A block of memory that decoded bytes are laid out in, one after the other."""

  memory: mmap.mmap
  used: int = 0

  def reserve(self, size: int) -> tuple[int, memoryview]:
    """Returns (offset, writable bytes) of the next `size` bytes; MediaError if they do not fit."""
    offset = -(-self.used // mmap.PAGESIZE) * mmap.PAGESIZE
    if offset + size > len(self.memory):
      raise MediaError(
        "over_budget",
        f"The chosen frames and the sound need {_megabytes(offset + size)} of memory and the limit is "
        f"{_megabytes(len(self.memory))}; ask for fewer frames or a smaller picture.",
      )
    self.used = offset + size
    return offset, memoryview(self.memory)[offset : self.used]


def decode_file(file: int, region: Region, *, plan: SamplingPlan, budget: Budget) -> dict:
  """Returns where in `region` the frames and the waveform of an open file were put, with facts and warnings.

  Args:
    file: descriptor of a regular file, open for reading.
    region: where to put the bytes: frames as packed RGB rows, the waveform as float32.
    plan: which frames of a video to take.
    budget: what the file may cost.

  Returns:
    A dictionary that JSON can hold: kind, width, height, frames_at, frame_times_s, waveform_at, sample_count,
    facts, warnings. Offsets are bytes from the start of the region.

  Raises:
    MediaError: always with one sentence that says what is wrong and what to do.
  """
  size = os.fstat(file).st_size
  if size == 0:
    raise MediaError("empty_file", "The file is empty; copy or download it again.")
  if size > budget.file_bytes:
    raise MediaError(
      "over_budget",
      f"The file has {_megabytes(size)} and the limit is {_megabytes(budget.file_bytes)}; cut it first.",
    )
  head = os.pread(file, 64, 0)
  for offset, magic, what in REFUSED:
    if head[offset : offset + len(magic)] == magic:
      raise MediaError("unsupported_type", f"The file is {what}; accepted are {ACCEPTED}.")
  try:
    if picture_format(head) is not None:
      return _decode_picture(file, region, budget=budget)
    return _decode_streams(file, region, plan=plan, meter=_Meter(budget))
  except MemoryError as error:
    raise MediaError(
      "over_budget", "Decoding the file needs more memory than the limit allows; shrink it first."
    ) from error


def picture_format(head: bytes) -> str | None:
  """Returns Pillow's name of the still picture format that a file's first bytes show; None if it is none."""
  if head.startswith(b"\xff\xd8\xff"):
    return "JPEG"
  if head.startswith(b"\x89PNG\r\n\x1a\n"):
    return "PNG"
  if head.startswith(b"GIF8"):
    return "GIF"
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return "WEBP"
  return None


def open_picture(data: bytes, *, frame_pixels: int):
  """Returns a Pillow image in mode RGB, upright as its EXIF orientation says, and its facts and warnings.

  Transparent pixels are laid over white; 16-bit grey is scaled to 8 bits; of an animation the first frame is
  taken.

  Args:
    data: the bytes of the file.
    frame_pixels: pictures of more pixels are refused before they are decoded.

  Raises:
    MediaError: not_media, unreadable or over_budget.
  """
  form = picture_format(data[:64])
  if form is None:
    raise MediaError("not_media", f"This is not a picture that can be read; accepted are {ACCEPTED}.")
  from PIL import Image, ImageOps

  import_module(
    f"PIL.{form.capitalize() if form != 'WEBP' else 'WebP'}ImagePlugin"
  )  # only the one in question
  try:
    picture = Image.open(io.BytesIO(data), formats=[form])
    _check_pixels(picture.width, picture.height, frame_pixels)
    facts = _picture_facts(picture, form)
    picture.load()
  except (MediaError, MemoryError):
    raise
  except Image.DecompressionBombError as error:
    raise MediaError("over_budget", "The picture has far too many pixels; shrink it first.") from error
  except Exception as error:  # Pillow's plugins raise whatever a damaged file makes them stumble over
    raise MediaError("unreadable", "The picture is damaged or cut off; copy or download it again.") from error
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith("I"):
    picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
  if picture.has_transparency_data:
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    picture = Image.alpha_composite(white, picture.convert("RGBA"))
  facts = {**facts, "width": picture.width, "height": picture.height}
  warnings = ["The picture is animated; only its first frame was used."] if facts["frame_count"] > 1 else []
  return picture.convert("RGB"), facts, warnings


def _picture_facts(picture, form: str) -> dict:
  exif = picture.getexif()
  tags = {"make": 271, "model": 272, "software": 305, "creation_time": 306}
  return {
    "container": form.lower(),
    "codec": form.lower(),
    "pixel_format": picture.mode,
    "frame_count": getattr(picture, "n_frames", 1) if getattr(picture, "is_animated", False) else 1,
    "exif_orientation": int(exif.get(274, 1)),
    "tags": {name: _clean(exif[tag]) for name, tag in tags.items() if tag in exif},
    **_quantisation_facts(picture),
  }


def _quantisation_facts(picture) -> dict:
  """Of a JPEG picture: the quality, 1..100, whose standard luma table is nearest to its own, whether it is
  that table, and how its colours are sampled.
  """
  table = getattr(picture, "quantization", {}).get(0)
  if not table:
    return {}
  quality = min(range(1, 101), key=lambda quality: abs(sum(_standard_luma(quality)) - sum(table)))
  from PIL.JpegImagePlugin import get_sampling

  return {
    "jpeg_quality": quality,
    "jpeg_standard_table": sorted(table) == _standard_luma(quality),
    "chroma_subsampling": ("4:4:4", "4:2:2", "4:2:0", "other")[get_sampling(picture)],
  }


@functools.cache
def _standard_luma(quality: int) -> list[int]:
  percent = 5000 // quality if quality < 50 else 200 - 2 * quality
  return [min(max((entry * percent + 50) // 100, 1), 255) for entry in STANDARD_LUMA]


def _decode_picture(file: int, region: Region, *, budget: Budget) -> dict:
  data = os.pread(file, os.fstat(file).st_size, 0)
  picture, facts, warnings = open_picture(data, frame_pixels=budget.frame_pixels)
  offset, target = region.reserve(picture.width * picture.height * 3)
  target[:] = picture.tobytes()
  return _result(
    "image", facts, warnings, width=picture.width, height=picture.height, frames_at=offset, times=[0.0]
  )


@dataclass
class _Meter:
  """Counts what the decoders put out and raises MediaError when the budget is spent."""

  budget: Budget
  frames: int = 0
  pixels: int = 0
  started_s: float = field(default_factory=time.monotonic)

  def tick(self):
    if time.monotonic() - self.started_s > self.budget.wall_s:
      raise MediaError(
        "timeout",
        f"Decoding took longer than the limit of {self.budget.wall_s:g} s; cut or shrink the file first.",
      )

  def charge(self, frame):
    self.tick()
    _check_pixels(frame.width, frame.height, self.budget.frame_pixels)
    self.frames += 1
    self.pixels += frame.width * frame.height
    if self.frames > self.budget.decoded_frames or self.pixels > self.budget.decoded_pixels:
      raise MediaError(
        "over_budget",
        f"The video unpacks to more than the limit of {self.budget.decoded_frames} frames or "
        f"{self.budget.decoded_pixels:.0e} pixels; cut or shrink it first.",
      )

  def check_duration(self, seconds: float):
    if seconds > self.budget.duration_s:
      raise MediaError(
        "over_budget",
        f"The file lasts longer than the limit of {self.budget.duration_s:g} s; cut it into shorter pieces.",
      )


@dataclass
class _Scan:
  """What one reading of the whole file found.

  pts, keys, shown and sizes (bytes) hold one entry per video packet in file order, `packets` the packets
  while they are few. A packet that an edit list cuts off is not shown, but others may need it. `head` is how
  the first packet begins.
  """

  pts: list[int | None] = field(default_factory=list)
  keys: list[bool] = field(default_factory=list)
  shown: list[bool] = field(default_factory=list)
  sizes: array = field(default_factory=lambda: array("I"))
  head: bytes = b""
  packets: list[av.Packet] | None = field(default_factory=list)
  packet_bytes: int = 0
  damaged: bool = False


def _decode_streams(file: int, region: Region, *, plan: SamplingPlan, meter: _Meter) -> dict:
  try:
    with _open(file) as container:
      if len(container.streams) > meter.budget.streams:
        raise MediaError(
          "over_budget",
          f"The file holds {len(container.streams)} streams and the limit is {meter.budget.streams}; "
          "keep one picture and one sound stream.",
        )
      video = _pick_video(container)
      audio = next((s for s in container.streams.audio if s.codec_context is not None), None)
      if video is None and audio is None:
        raise MediaError("no_frames", "The file holds neither a video nor a sound stream; send another file.")
      sound = _Sound(audio, meter) if audio is not None else None
      if video is not None:
        _check_pixels(video.codec_context.width, video.codec_context.height, meter.budget.frame_pixels)
      scan = _scan(container, video, sound, meter)
      if any(scan.shown):
        return _finish_video(file, container, video, sound, scan, region, plan=plan, meter=meter)
      return _finish_audio(container, sound, scan, region)
  except (MediaError, MemoryError):
    raise
  except (av.FFmpegError, ValueError, OverflowError) as error:
    raise MediaError(
      "unreadable", "The file is damaged and cannot be decoded; copy or record it again."
    ) from error


def _open(file: int) -> av.container.InputContainer:
  os.lseek(file, 0, os.SEEK_SET)
  options = {"fd": str(file), "protocol_whitelist": "fd", "format_whitelist": DEMUXERS}
  try:
    return av.open("fd:", options=options, **LENIENT_TAGS)
  except (av.FFmpegError, ValueError) as error:
    head = os.pread(file, 64, 0)
    if any(head[offset : offset + len(magic)] == magic for offset, magic in BEGINNINGS):
      raise MediaError(
        "unreadable",
        "The file begins like a video or sound but is damaged or cut off; copy or record it again.",
      ) from error
    raise MediaError(
      "not_media", f"The file is not a video, picture or sound that can be read; accepted are {ACCEPTED}."
    ) from error


def _pick_video(container) -> av.VideoStream | None:
  """The largest stream that is a film: cover art in a sound file is flagged as an attached picture."""
  films = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
  films = [s for s in films if s.codec_context is not None]
  return max(films, key=lambda s: s.codec_context.width * s.codec_context.height, default=None)


def _scan(container, video, sound: "_Sound | None", meter: _Meter) -> _Scan:
  scan = _Scan()
  tick = Fraction(video.time_base) if video is not None else None
  first = None
  streams = [stream for stream in (video, sound and sound.stream) if stream is not None]
  packets = container.demux(streams)
  while True:
    meter.tick()
    try:
      packet = next(packets, None)
    except av.FFmpegError:
      scan.damaged = True
      break
    if packet is None:
      break
    if sound is not None and packet.stream.index == sound.stream.index:
      sound.add(packet)
    elif packet.size:
      scan.pts.append(packet.pts)
      scan.keys.append(packet.is_keyframe)
      scan.shown.append(not packet.is_discard)
      scan.sizes.append(packet.size)
      if not scan.head:
        scan.head = bytes(memoryview(packet)[:MARK_BYTES])
      if packet.pts is not None:
        first = packet.pts if first is None else min(first, packet.pts)
        meter.check_duration(float((packet.pts - first) * tick))
      if len(scan.pts) > meter.budget.decoded_frames:
        raise MediaError(
          "over_budget",
          f"The video has more than {meter.budget.decoded_frames} frames, which is the limit; cut it first.",
        )
      scan.packet_bytes += packet.size
      if scan.packets is not None:
        scan.packets.append(packet)
        if scan.packet_bytes > KEPT_PACKET_BYTES:
          scan.packets = None
  if sound is not None:
    sound.finish()
  return scan


class _Sound:
  """Turns the packets of a sound stream into one mono waveform with silence where the stream has gaps."""

  def __init__(self, stream: av.AudioStream, meter: _Meter):
    self.stream = stream
    self.start: Fraction | None = None
    self.samples = bytearray()
    self.damaged_packets = 0
    self._meter = meter
    self._graph: av.filter.Graph | None = None
    self._format = None
    self._fed_s = Fraction(0)  # seconds of sound pushed into the resampler

  def add(self, packet: av.Packet | None):
    """Decodes one packet; an empty one or None drains the decoder."""
    try:
      frames = self.stream.codec_context.decode(packet)
    except av.EOFError:
      return
    except (av.FFmpegError, ValueError):
      self.damaged_packets += 1
      return
    for frame in frames:
      self._push(frame)

  def finish(self):
    """Drains the decoder and the resampler."""
    self.add(None)
    self._drain()

  def _push(self, frame: av.AudioFrame):
    form = (frame.format.name, frame.layout.name, frame.sample_rate)
    if form != self._format:
      self._drain()
      self._format = form
      self._graph = _mono_graph(frame)
    if frame.pts is not None and frame.time_base:
      at = frame.pts * Fraction(frame.time_base)
      if self.start is None:
        self.start = at - self._fed_s
      gap = at - self.start - self._fed_s
      if gap > SOUND_GAP_S:
        self._meter.check_duration(float(at - self.start))
        self._drain()
        self._graph = _mono_graph(frame)
        self._fed_s += gap
        missing = round(self._fed_s * SAMPLE_RATE_HZ) - len(self.samples) // SAMPLE_BYTES
        self.samples.extend(bytes(max(missing, 0) * SAMPLE_BYTES))
    self._fed_s += Fraction(frame.samples, frame.sample_rate)
    self._meter.check_duration(float(self._fed_s))
    frame.pts = None
    self._graph.push(frame)
    self._pull()

  def _drain(self):
    if self._graph is not None:
      self._graph.push(None)
      self._pull()
      self._graph = None

  def _pull(self):
    while True:
      try:
        frame = self._graph.pull()
      except (av.BlockingIOError, av.EOFError):
        return
      self.samples.extend(memoryview(frame.planes[0]).cast("B")[: frame.samples * SAMPLE_BYTES])


def _mono_graph(frame: av.AudioFrame) -> av.filter.Graph:
  graph = av.filter.Graph()
  source = graph.add_abuffer(
    sample_rate=frame.sample_rate,
    format=frame.format.name,
    layout=frame.layout.name,
    time_base=Fraction(1, frame.sample_rate),
  )
  # rematrix_maxval=1: the mono mix is a mean of the channels, so that two equal channels cannot clip.
  resample = graph.add(
    "aresample",
    f"out_sample_rate={SAMPLE_RATE_HZ}:out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1",
  )
  graph.link_nodes(source, resample, graph.add("abuffersink")).configure()
  return graph


def _finish_audio(container, sound: _Sound | None, scan: _Scan, region: Region) -> dict:
  if sound is None:
    raise MediaError(
      "no_frames", "The file has a video stream without a single frame; copy or record it again."
    )
  if not sound.samples:
    raise MediaError(
      "no_sound", "The sound stream holds nothing that can be decoded; copy or record it again."
    )
  offset, target = region.reserve(len(sound.samples))
  target[:] = sound.samples
  count = len(sound.samples) // SAMPLE_BYTES
  facts = {**_container_facts(container), **_sound_facts(sound), "duration_s": count / SAMPLE_RATE_HZ}
  facts["codec"] = facts["audio_codec"]
  return _result("audio", facts, _damage(scan, sound), waveform_at=offset, sample_count=count)


def _finish_video(
  file: int,
  container,
  video,
  sound: _Sound | None,
  scan: _Scan,
  region: Region,
  *,
  plan: SamplingPlan,
  meter: _Meter,
) -> dict:
  timed = None not in scan.pts
  shown = list(compress(scan.pts, scan.shown))
  order = sorted(set(shown)) if timed else list(range(len(shown)))
  rate = _rate(video)
  tick = Fraction(video.time_base) if timed else 1 / rate
  zero, lead = order[0] * tick, 0
  if sound is not None and sound.samples:
    start = sound.start if timed and sound.start is not None else zero
    lead = round((start - min(zero, start)) * SAMPLE_RATE_HZ) * SAMPLE_BYTES
    zero = min(zero, start)
  warnings = _damage(scan, sound)
  times_s = [float(position * tick - zero) for position in order]
  chosen = plan.choose_at(times_s)
  heard_bytes = lead + len(sound.samples) if sound is not None else 0
  frame_bytes = max(video.codec_context.width * video.codec_context.height * 3, 1)
  room = (len(region.memory) - region.used - heard_bytes - 2 * mmap.PAGESIZE) // frame_bytes
  if len(chosen) > room > 0 and plan.window_frames > 1:
    asked, chosen = len(chosen), plan.within(room).choose_at(times_s)
    warnings.append(f"The pictures are so large that {len(chosen)} of {asked} frames are looked at.")
  wanted = [order[i] for i in chosen]
  picker = _Picker(video, wanted, region, meter, timed=timed)
  found = None
  if timed:
    picker.decode(_needed(scan, wanted, _packets(file, video, scan)), exact=True)
    found = picker.found if len(picker.found) == len(wanted) else None
  if found is None:
    # Some packet gave no frame of its own time (a hidden reference frame, a field, damage), or nothing has
    # timestamps: decode all there is and take the first frame at or after each chosen time.
    picker.restart()
    picker.decode(_whole(_packets(file, video, scan)), exact=False)
    found = picker.found
  if not found:
    raise MediaError("no_frames", "No frame of the video can be decoded; copy or record it again.")
  if picker.damaged_packets:
    warnings.append(f"{picker.damaged_packets} damaged pieces of the video were left out.")
  if len(found) < len(wanted):
    warnings.append(f"Only {len(found)} of the {len(wanted)} chosen frames could be decoded.")
  if picker.resized:
    warnings.append(
      "The picture size changes within the video; all frames were brought to the first one's size."
    )
  if int(video.codec_context.color_trc) in HDR_TRANSFERS:
    warnings.append("The video is in high dynamic range; its colours were not mapped to the ordinary range.")
  promised = video.frames
  if promised and len(scan.pts) < 0.95 * promised:
    warnings.append(
      f"The file is cut off: it holds {len(scan.pts)} of the {promised} frames that its header names."
    )

  waveform_at = count = 0
  if sound is not None and sound.samples:
    waveform_at, target = region.reserve(lead + len(sound.samples))
    target[lead:] = sound.samples
    count = len(target) // SAMPLE_BYTES
  last = order[-1] * tick - zero
  facts = {
    **_container_facts(container),
    **_video_facts(video, scan, picker),
    **(_sound_facts(sound) if sound is not None else {}),
    "duration_s": max(float(last + 1 / rate), count / SAMPLE_RATE_HZ),
  }
  return _result(
    "video",
    facts,
    warnings,
    width=picker.width,
    height=picker.height,
    frames_at=picker.offset,
    times=[float(position * tick - zero) for position in found],
    waveform_at=waveform_at,
    sample_count=count,
  )


def _packets(file: int, video, scan: _Scan) -> Iterator[av.Packet]:
  """The video packets in file order, as the scan counted them."""
  if scan.packets is not None:
    yield from scan.packets
    return
  with _open(file) as container:
    packets = (packet for packet in container.demux(container.streams[video.index]) if packet.size)
    yield from islice(packets, len(scan.pts))


def _needed(scan: _Scan, wanted: list[int], packets: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
  """The packets that the wanted frames depend on: for each, from the last keyframe shown at or before it.

  None stands between packets that do not follow on each other: drain and reset the decoder there.

  A frame that is shown before the keyframe preceding it in the file may refer to the group before (open
  groups of pictures), so its run starts one keyframe earlier.
  """
  index = {pts: i for i, pts in enumerate(scan.pts) if scan.shown[i]}
  keys = [i for i, key in enumerate(scan.keys) if key]
  keep = bytearray(len(scan.pts))
  for pts in wanted:
    stop = index[pts]
    group = bisect_right(keys, stop) - 1
    while group > 0 and scan.pts[keys[group]] > pts:
      group -= 1
    start = keys[group] if group >= 0 else 0
    keep[start : stop + 1] = b"\x01" * (stop + 1 - start)
  skipped = False
  for packet, kept in zip(packets, keep, strict=True):
    if kept and skipped:
      yield None
    if kept:
      yield packet
    skipped = not kept
  yield None


def _whole(packets: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
  yield from packets
  yield None


class _Picker:
  """Decodes packets and keeps the wanted frames, upright and as RGB, in the region."""

  def __init__(self, video, wanted: list[int], region: Region, meter: _Meter, *, timed: bool):
    self._video = video
    self._wanted = wanted
    self._region = region
    self._region_used = region.used
    self._meter = meter
    self._timed = timed
    self.restart()
    context = video.codec_context
    # Larger frames fail inside the decoder, before it asks for their memory.
    context.options = {"max_pixels": str(meter.budget.frame_pixels)}
    context.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
    context.thread_type = "AUTO"

  def restart(self):
    """Forgets everything kept so far."""
    self.found: list[int] = []
    self.damaged_packets = 0
    self.width = self.height = self.offset = self.orientation = None
    self.resized = False
    self._turn: av.filter.Graph | None = None
    self._region.used = self._region_used

  def decode(self, steps: Iterable[av.Packet | None], *, exact: bool):
    """Fills `found` with the positions (timestamps or counts) of the frames kept, in order.

    With exact=True the frames whose timestamps are wanted are kept, and those that nothing depends on are not
    even decoded; else everything is decoded and each wanted position takes the first frame at or after it.
    """
    context = self._video.codec_context
    wanted = set(self._wanted)
    skips = exact and context.name in DISPOSABLE_FRAMES
    count = 0
    for packet in steps:
      if skips and packet is not None:
        context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
      for frame in self._frames(packet):
        self._meter.charge(frame)
        position = frame.pts if self._timed else count
        count += 1
        if exact and position in wanted:
          wanted.remove(position)
          self._keep(frame, position)
        elif not exact and position is not None and self._is_due(position):
          self._keep(frame, position)
      if packet is None:
        context.flush_buffers()
    if skips:
      context.skip_frame = "DEFAULT"

  def _is_due(self, position: int) -> bool:
    """Whether a wanted position up to this one has no frame yet."""
    if self.found and position <= self.found[-1]:
      return False
    after = self.found[-1] if self.found else self._wanted[0] - 1
    due = bisect_right(self._wanted, position)
    return due > bisect_right(self._wanted, after)

  def _frames(self, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
      return self._video.codec_context.decode(packet)
    except av.EOFError:
      return []
    except (av.FFmpegError, ValueError):
      self.damaged_packets += 1
      return []

  def _keep(self, frame: av.VideoFrame, position: int):
    if self.orientation is None:
      self.orientation = _orientation(frame)
    if any(self.orientation):
      frame = self._upright(frame)
    if self.width is None:
      self.width, self.height = frame.width, frame.height
      self.offset, self._target = self._region.reserve(len(self._wanted) * self._frame_bytes)
    self.resized = self.resized or (frame.width, frame.height) != (self.width, self.height)
    picture = frame.reformat(width=self.width, height=self.height, format="rgb24")
    start = len(self.found) * self._frame_bytes
    _copy_rows(picture, self._target[start : start + self._frame_bytes])
    self.found.append(position)

  @property
  def _frame_bytes(self) -> int:
    return self.width * self.height * 3

  def _upright(self, frame: av.VideoFrame) -> av.VideoFrame:
    """Turns the frame while it is still YUV: a twentieth of the time that turning packed RGB rows takes."""
    if self._turn is None or self._turn_of != (frame.width, frame.height, frame.format.name):
      self._turn_of = (frame.width, frame.height, frame.format.name)
      self._turn = _turning_graph(frame, self.orientation)
    self._turn.push(frame)
    return self._turn.pull()


def _copy_rows(picture: av.VideoFrame, target: memoryview):
  plane, row = picture.planes[0], picture.width * 3
  source = memoryview(plane).cast("B")
  if plane.line_size == row:
    target[:] = source[: len(target)]
    return
  for y in range(picture.height):
    target[y * row : (y + 1) * row] = source[y * plane.line_size : y * plane.line_size + row]


# Counter-clockwise quarter turns as _orientation says them.
QUARTER_TURNS = ((False, False, False), (True, False, True), (False, True, True), (True, True, False))


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
  """Whether to swap the axes, mirror left-right, then top-bottom, as the stream's display matrix says.

  The matrix holds nine int32, row by row: x' = a x + c y, y' = b x + d y; a, b, c, d are at places 0, 1, 3,
  4.
  """
  try:
    matrix = frame.side_data.get("DISPLAYMATRIX")
  except ValueError:  # PyAV 18 refuses to list kinds of side data that it has no name for
    return QUARTER_TURNS[round(frame.rotation / 90) % 4]
  if matrix is None:
    return False, False, False
  a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
  if abs(b) + abs(c) > abs(a) + abs(d):
    return True, c < 0, b < 0
  return False, a < 0, d < 0


def _turning_graph(frame: av.VideoFrame, orientation: tuple[bool, bool, bool]) -> av.filter.Graph:
  swap, mirror, flip = orientation
  graph = av.filter.Graph()
  nodes = [graph.add_buffer(template=frame, time_base=Fraction(1, 1000))]  # times are not read off its frames
  if swap:
    nodes.append(graph.add("transpose", "cclock_flip"))
  if mirror:
    nodes.append(graph.add("hflip"))
  if flip:
    nodes.append(graph.add("vflip"))
  graph.link_nodes(*nodes, graph.add("buffersink")).configure()
  return graph


def _container_facts(container) -> dict:
  tags = {str(name).lower(): value for name, value in container.metadata.items()}
  return {
    "container": container.format.name,
    "bit_rate": container.bit_rate or None,
    "stream_count": len(container.streams),
    "tags": {name: _clean(tags[name]) for name in TAGS if name in tags},
    "writer": _writer(container),
  }


def _writer(container) -> str | None:
  """The class of program that wrote the container last: one of WRITERS, "other", None if no tag says."""
  tags = [container.metadata, *(stream.metadata for stream in container.streams)]
  text = "".join(f"{name}={str(value)[:200]}\n" for each in tags for name, value in each.items()).lower()
  for writer, marks in WRITERS:
    if any(mark in text for mark in marks):
      return writer
  return "other" if "encoder=" in text or "handler_name=" in text else None


def _video_facts(video, scan: _Scan, picker: _Picker) -> dict:
  context = video.codec_context
  keys = [i for i, key in enumerate(scan.keys) if key] + [len(scan.keys)]
  swap, mirror, flip = picker.orientation
  aspect = video.sample_aspect_ratio
  return {
    "codec": context.name,
    "profile": video.profile,
    "pixel_format": context.pix_fmt,
    "width": picker.width,
    "height": picker.height,
    "rotation_degrees": (90 if mirror else 270) if swap else (180 if mirror and flip else 0),
    "mirrored": (swap + mirror + flip) % 2 == 1,
    "sample_aspect_ratio": f"{aspect.numerator}:{aspect.denominator}" if aspect else None,
    "color_space": COLOR_SPACES.get(int(context.colorspace)),
    "color_range": {1: "limited", 2: "full"}.get(int(context.color_range)),
    "color_transfer": HDR_TRANSFERS.get(int(context.color_trc)),
    "fps": float(_rate(video)),
    "frame_count": sum(scan.shown),
    "keyframe_count": len(keys) - 1,
    "longest_gop": max((stop - start for start, stop in pairwise(keys)), default=None),
    "video_bit_rate": round(scan.packet_bytes * 8 * _rate(video) / len(scan.pts)),
    "encoder_mark": next((name for name, mark in ENCODER_MARKS if mark in scan.head), None),
    **_packet_facts(scan),
    **_timing_facts(scan, Fraction(video.time_base)),
  }


def _packet_facts(scan: _Scan) -> dict:
  """What the sizes and the order of the packets tell: groups of pictures, and traces of an earlier coding."""
  kinds = _packet_kinds(scan)
  starts = [i for i, kind in enumerate(kinds) if kind == "I"]
  lengths = [stop - start for start, stop in pairwise(starts)]  # the last group may be cut off
  usual, count = Counter(lengths).most_common(1)[0] if lengths else (None, None)
  sizes = {kind: [size for size, k in zip(scan.sizes, kinds, strict=True) if k == kind] for kind in "IPB"}
  earlier, score = _earlier_gop(kinds, scan, usual)
  return {
    "usual_gop": usual,
    "usual_gop_share": count / len(lengths) if lengths else None,
    "b_frame_share": len(sizes["B"]) / len(kinds) if None not in scan.pts else None,
    "longest_b_run": max(map(len, "".join(kinds).replace("I", "P").split("P"))),
    "key_packet_bytes": _mean(sizes["I"]),
    "p_packet_bytes": _mean(sizes["P"]),
    "b_packet_bytes": _mean(sizes["B"]),
    "p_packet_spread": _spread(sizes["P"]),
    "recompression_score": score,
    "earlier_gop": earlier,
    "cut_frame_count": len(scan.shown) - sum(scan.shown),
  }


def _packet_kinds(scan: _Scan) -> list[str]:
  """I for keyframes, B for frames shown before one that precedes them in the file, P for the others."""
  kinds = []
  latest = None
  for pts, key in zip(scan.pts, scan.keys, strict=True):
    kinds.append("I" if key else "B" if pts is not None and latest is not None and pts < latest else "P")
    if pts is not None:
      latest = pts if latest is None else max(latest, pts)
  return kinds


def _earlier_gop(kinds: list[str], scan: _Scan, gop: int | None) -> tuple[int | None, float | None]:
  """The group length of an earlier compression, if one shows, and how clearly.

  A frame that was a keyframe once differs more from its neighbours than they do from each other, so when the
  film is compressed again its packet is larger, once every earlier group (the idea of Wang and Farid,
  "Exposing digital forgeries in video by detecting double MPEG compression", 2006, who watch motion errors in
  place of packet sizes). A P-frame larger than two on either side is a peak; for each length and phase it is
  asked how improbable so many peaks among the fitting P-frames are if they fell at random. The score is the
  -log10 of the smallest such probability times the number of lengths and phases tried, 0 if that is over 1;
  None where too few P-frames could tell. Multiples of the present length are not tried.

  It is a hint: films that repeat themselves peak too, and an earlier compression with the same groups, or one
  much finer than the present one, leaves no trace.
  """
  packets = range(min(len(kinds), TRACED_PACKETS))
  frames = [packet for packet in packets if kinds[packet] == "P"]
  shown = packets if None in scan.pts else sorted(packets, key=scan.pts.__getitem__)
  place = {packet: at for at, packet in enumerate(shown)}
  fits, peaks = bytearray(len(packets)), bytearray(len(packets))
  for before2, before, frame, after, after2 in zip(*(frames[i:] for i in range(5)), strict=False):
    if kinds[frame - 1] != "I":  # what follows a keyframe has a size of its own
      fits[place[frame]] = 1
      rivals = max(scan.sizes[before2], scan.sizes[before], scan.sizes[after], scan.sizes[after2])
      peaks[place[frame]] = scan.sizes[frame] > rivals
  rate = peaks.count(1) / max(fits.count(1), 1)
  tried, best, earlier = 0, 1.0, None
  for length in TRACED_GOPS:
    if gop and length % gop == 0:
      continue
    for phase in range(length):
      count, hits = fits[phase::length].count(1), peaks[phase::length].count(1)
      tried += count >= TRACED_GROUPS
      if count >= TRACED_GROUPS and 2 * hits > count:
        chance = _binomial_tail(hits, count, rate)
        if chance < best:
          best, earlier = chance, length
  if not tried:
    return None, None
  score = max(-math.log10(best * tried), 0.0)
  return (earlier if score >= TRACE_SCORE else None), score


def _binomial_tail(hits: int, count: int, rate: float) -> float:
  """The probability of at least so many hits in so many throws; never 0."""
  terms = (math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(hits, count + 1))
  return max(sum(terms), 1e-300)


def _timing_facts(scan: _Scan, tick: Fraction) -> dict:
  """When the shown frames begin, how long they last and how evenly they follow each other, in seconds."""
  times = sorted(set(compress(scan.pts, scan.shown))) if None not in scan.pts else []
  steps = [after - before for before, after in pairwise(times)]
  if not steps:
    return {"video_start_s": float(times[0] * tick) if times else None}
  usual = sorted(steps)[len(steps) // 2]
  # Timestamps are rounded to ticks, which some containers make as coarse as a millisecond.
  odd = sum(abs(step - usual) > max(usual / 10, 1) for step in steps)
  return {
    "video_start_s": float(times[0] * tick),
    "video_length_s": float((times[-1] - times[0] + usual) * tick),
    "frame_interval_s": float(usual * tick),
    "frame_interval_spread": _spread(steps),
    "odd_interval_share": odd / len(steps),
  }


def _mean(values: list[int]) -> float | None:
  return sum(values) / len(values) if values else None


def _spread(values: list[int]) -> float | None:
  """The standard deviation over the mean."""
  mean = _mean(values)
  return (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5 / mean if mean else None


def _sound_facts(sound: _Sound) -> dict:
  context = sound.stream.codec_context
  return {
    "audio_codec": context.name,
    "audio_sample_rate_hz": context.sample_rate,
    "audio_channels": context.layout.nb_channels,
    "audio_bit_rate": context.bit_rate or None,
    "audio_start_s": float(sound.start) if sound.start is not None else None,
    "audio_length_s": len(sound.samples) / SAMPLE_BYTES / SAMPLE_RATE_HZ,
  }


def _rate(video) -> Fraction:
  return Fraction(video.average_rate or video.guessed_rate or 25)


def _damage(scan: _Scan, sound: _Sound | None) -> list[str]:
  warnings = []
  if scan.damaged:
    warnings.append("The file is damaged or cut off; what comes before the damage was used.")
  if sound is not None and not sound.samples:
    warnings.append("The sound could not be decoded and was left out.")
  elif sound is not None and sound.damaged_packets:
    warnings.append(f"{sound.damaged_packets} damaged pieces of the sound were left out.")
  return warnings


def _result(
  kind: str,
  facts: dict,
  warnings: list[str],
  *,
  width: int = 0,
  height: int = 0,
  frames_at: int = 0,
  times: Iterable[float] = (),
  waveform_at: int = 0,
  sample_count: int = 0,
) -> dict:
  return {
    "kind": kind,
    "width": width,
    "height": height,
    "frames_at": frames_at,
    "frame_times_s": list(times),
    "waveform_at": waveform_at,
    "sample_count": sample_count,
    "facts": facts,
    "warnings": warnings,
  }


def _check_pixels(width: int, height: int, limit: int):
  if width * height > limit:
    raise MediaError(
      "over_budget",
      f"The picture has {width} x {height} pixels and the limit is {limit} in all; shrink it first.",
    )


def _clean(value: object) -> str:
  return "".join(c for c in str(value)[:200] if c.isprintable()).strip()


def _megabytes(size: int) -> str:
  return f"{size / 1e6:,.0f} MB"


def run_child():
  """Decodes in a process of its own, under limits that it sets itself before it looks at the file.

  The command line holds one JSON object (file, region, parent, plan, budget); standard output gets one with
  either "result" or "reason" and "message".
  """
  answer_order(json.loads(sys.argv[1]))
  os._exit(0)  # nothing here needs tidying up, and the caller is waiting


def answer_order(order: dict):
  """What `run_child` does with its order, but for ending: this process is limited from here on."""
  budget = Budget(**order["budget"])
  _limit_this_process(budget, parent=order["parent"])
  region = Region(mmap.mmap(order["region"], budget.output_bytes))
  try:
    answer = {"result": decode_file(order["file"], region, plan=SamplingPlan(**order["plan"]), budget=budget)}
  except MediaError as error:
    answer = {"reason": error.reason, "message": str(error)}
  sys.stdout.write(json.dumps(answer))
  sys.stdout.flush()


def _limit_this_process(budget: Budget, *, parent: int):
  for limit, value in (
    (resource.RLIMIT_AS, budget.address_space_bytes),
    (resource.RLIMIT_CPU, budget.cpu_s),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
  ):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    # At the hard limit of processor time the kernel kills as it does for any reason; the soft one says why.
    soft = max(value - 1, 1) if limit == resource.RLIMIT_CPU else value
    resource.setrlimit(limit, (soft, value))

  def leave_if_orphaned(*_):
    if os.getppid() != parent:
      os._exit(1)

  signal.signal(signal.SIGALRM, leave_if_orphaned)
  signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
