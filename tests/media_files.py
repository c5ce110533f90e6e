"""Makes the media files that the tests need, each by one small function that takes the path to write.

The frames of `numbered_frames` carry their number as black and white blocks that survive lossy coding, so
that a test can read back (`read_number`) which frames a decoder picked.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

NUMBER_BITS = 10
TICKS_PER_S = 90_000


def numbered_frames(count: int, *, width: int = 160, height: int = 96) -> np.ndarray:
  """Returns uint8 RGB [count, height, width, 3]: a moving gradient under its frame number."""
  x, y, time = np.arange(width), np.arange(height), np.arange(count)
  red = (x[None, None, :] * 255 // width + time[:, None, None] * 3) % 256
  green = np.broadcast_to(y[None, :, None] * 255 // height, (count, height, width))
  blue = (x[None, None, :] + y[None, :, None] + time[:, None, None] * 5) % 256
  frames = np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)
  block = width // NUMBER_BITS
  for bit in range(NUMBER_BITS):
    on = (time >> bit & 1).astype(np.uint8) * 255
    frames[:, : height // 3, bit * block : (bit + 1) * block] = on[:, None, None, None]
  return frames


def read_number(frame: np.ndarray) -> int:
  """Returns the number in a frame of `numbered_frames`, which may have been through a lossy codec."""
  height, width = frame.shape[:2]
  block = width // NUMBER_BITS
  strip = frame[height // 12 : height // 4].astype(float)
  return sum(
    int(strip[:, bit * block + block // 4 : bit * block + 3 * block // 4].mean() > 127) << bit
    for bit in range(NUMBER_BITS)
  )


def tone(seconds: float, *, sample_rate_hz: int = 44_100, frequency_hz: float = 440.0) -> np.ndarray:
  """Returns a sine at half of full scale, float32 [sample]."""
  time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
  return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def write_video(
  path: Path,
  frames: Iterable[np.ndarray],
  *,
  fps: int = 25,
  times_s: Sequence[float] | None = None,
  start_s: float = 0.0,
  codec: str = "libx264",
  pixel_format: str = "yuv420p",
  gop: int = 12,
  b_frames: int = 0,
  options: dict[str, str] | None = None,
  rotation_degrees: int = 0,
  mirrored: bool = False,
  color_space: int | None = None,
  full_range: bool = False,
  sound: np.ndarray | None = None,
  sound_codec: str = "aac",
  sound_rate_hz: int = 44_100,
  container_options: dict[str, str] | None = None,
) -> Path:
  """Writes uint8 RGB frames, and a mono float32 waveform if given, to the container that the suffix names.

  times_s gives every frame its own time (variable rate), start_s shifts all timestamps, rotation_degrees
  (counter-clockwise) and mirrored go into the display matrix, color_space is FFmpeg's number (1 BT.709,
  6 BT.601) and is both used and marked.
  """
  frames = iter(frames)
  first = next(frames)
  height, width = first.shape[:2]
  with av.open(str(path), "w", options=container_options or {}) as container:
    stream = container.add_stream(codec, rate=fps, options=options or {})
    stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
    context = stream.codec_context
    context.gop_size, context.max_b_frames = gop, b_frames
    if codec != "mpeg4" and times_s is not None:
      context.time_base = Fraction(1, TICKS_PER_S)
    if rotation_degrees or mirrored:
      stream.set_display_rotation(rotation_degrees, hflip=mirrored)
    if color_space is not None:
      context.colorspace = color_space
    if full_range:
      context.color_range = 2
    track = None
    if sound is not None:
      track = container.add_stream(sound_codec, rate=sound_rate_hz, layout="mono")
    for i, pixels in enumerate([first, *frames]):
      picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
      picture = picture.reformat(
        format=pixel_format, dst_colorspace=color_space, dst_color_range=2 if full_range else None
      )
      if times_s is not None:
        picture.pts, picture.time_base = round((times_s[i] + start_s) * TICKS_PER_S), Fraction(1, TICKS_PER_S)
      else:
        picture.pts, picture.time_base = i + round(start_s * fps), Fraction(1, fps)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
    if track is not None:
      _encode_sound(container, track, sound, start_s=start_s)
  return path


def no_audio(path: Path, *, count: int = 40) -> Path:
  """A plain H.264 video without sound."""
  return write_video(path, numbered_frames(count))


def with_audio(path: Path, *, count: int = 50, **settings) -> Path:
  """A video at 25 frames a second and a 440 Hz tone of the same length; settings are write_video's."""
  rate = settings.get("sound_rate_hz", 44_100)
  return write_video(path, numbered_frames(count), sound=tone(count / 25, sample_rate_hz=rate), **settings)


def one_frame(path: Path) -> Path:
  """A video of a single frame."""
  return write_video(path, numbered_frames(1))


def rotated(path: Path, *, degrees: int = -90, mirrored: bool = False, count: int = 10) -> Path:
  """A landscape video whose display matrix turns it by `degrees` counter-clockwise."""
  return write_video(path, numbered_frames(count), rotation_degrees=degrees, mirrored=mirrored)


def odd_size(path: Path) -> Path:
  """A video of 163 x 97 pixels, which chroma subsampling cannot halve."""
  return write_video(path, numbered_frames(10, width=163, height=97), pixel_format="yuv444p")


def variable_rate(path: Path, times_s: Sequence[float]) -> Path:
  """A video with one frame at each of the given times."""
  return write_video(path, numbered_frames(len(times_s)), times_s=times_s)


def ten_bit(path: Path) -> Path:
  """A video of ten bits a sample."""
  return write_video(path, numbered_frames(10), pixel_format="yuv420p10le")


def one_keyframe(path: Path, *, count: int = 300) -> Path:
  """A video whose only keyframe is its first frame."""
  return write_video(path, numbered_frames(count), gop=count + 1, b_frames=2, options=_exact_gop(count + 1))


def all_intra(path: Path, *, count: int = 120) -> Path:
  """A video of keyframes only."""
  return write_video(path, numbered_frames(count), gop=1)


def open_gop(path: Path, *, count: int = 120) -> Path:
  """A video whose groups of pictures overlap: B-frames shown before a keyframe need the group before it."""
  options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
  return write_video(path, numbered_frames(count), gop=12, b_frames=3, options=options)


def truncated(path: Path, *, keep: float = 0.5, count: int = 100) -> Path:
  """A video whose index stands in front and whose end is cut off."""
  write_video(path, numbered_frames(count), container_options={"movflags": "faststart"})
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * keep)])
  return path


def without_index(path: Path) -> Path:
  """A video whose end, where its index stands, is cut off: nothing of it can be decoded."""
  data = no_audio(path).read_bytes()
  path.write_bytes(data[: len(data) // 2])
  return path


def empty(path: Path) -> Path:
  """A file of no bytes."""
  path.write_bytes(b"")
  return path


def text(path: Path) -> Path:
  """A text, whatever the path's suffix promises."""
  path.write_text("This is a shopping list: milk, bread, two lemons.\n" * 50)
  return path


def playlist(path: Path, target: Path) -> Path:
  """An HLS playlist that names another file, whatever the path's suffix promises."""
  path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{target}\n#EXT-X-ENDLIST\n")
  return path


def video_bomb(path: Path, *, side: int = 4096, count: int = 60) -> Path:
  """A video of some kilobytes that unpacks to gigabytes: `count` grey frames of side x side pixels."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(
      "libx264",
      rate=25,
      options={"preset": "ultrafast", "tune": "zerolatency", "x264-params": "cabac=1:qp=51"},
    )
    stream.width = stream.height = side
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = 1
    grey = av.VideoFrame(side, side, "yuv420p")
    for plane in grey.planes:
      plane.update(bytes([128]) * plane.buffer_size)
    pair = []
    for i in range(2):
      grey.pts, grey.time_base = i, Fraction(1, 25)
      pair += [(bytes(packet), packet) for packet in stream.encode(grey)]
    # Two encoded keyframes, written again and again: encoding all of them would take seconds.
    for i in range(count):
      packet = av.Packet(pair[i % 2][0])
      packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 25)
      packet.duration, packet.is_keyframe = 1, True
      container.mux(packet)
  return path


def png_bomb(path: Path, *, side: int = 30_000) -> Path:
  """A PNG of some kilobytes that names side x side pixels."""
  packer = zlib.compressobj(9)
  row = bytes(1 + (side + 7) // 8)
  packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
  header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
  chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
  body = b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in chunks
  )
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
  return path


def picture(path: Path, pixels: np.ndarray, *, orientation: int = 1, **settings) -> Path:
  """A jpg, png or webp (by suffix) that shows `pixels`, uint8 RGB, once its EXIF orientation is applied."""
  undo = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }
  image = Image.fromarray(pixels)
  if orientation != 1:
    image = image.transpose(undo[orientation])
  exif = Image.Exif()
  exif[274] = orientation
  image.save(path, exif=exif, **settings)
  return path


def sound(
  path: Path,
  waveform: np.ndarray | None = None,
  *,
  sample_rate_hz: int = 44_100,
  layout: str = "mono",
  cover: np.ndarray | None = None,
) -> Path:
  """A wav, mp3, flac, m4a or ogg (by suffix) of a float32 waveform; by default one second of a 440 Hz tone.

  cover, uint8 RGB, is attached as cover art (mp3, m4a, flac).
  """
  codecs = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".flac": "flac", ".m4a": "aac", ".ogg": "libvorbis"}
  codec = codecs[path.suffix]
  if codec not in av.codecs_available:
    codec = "libopus"
  waveform = tone(1.0, sample_rate_hz=sample_rate_hz) if waveform is None else waveform
  with av.open(str(path), "w") as container:
    track = container.add_stream(codec, rate=48_000 if codec == "libopus" else sample_rate_hz, layout=layout)
    if cover is not None:
      art = container.add_stream("mjpeg", rate=1)
      art.width, art.height, art.pix_fmt = cover.shape[1], cover.shape[0], "yuvj420p"
      art.disposition = av.stream.Disposition.attached_pic
      frame = av.VideoFrame.from_ndarray(cover, format="rgb24").reformat(format="yuvj420p")
      frame.pts, frame.time_base = 0, Fraction(1, 25)
      container.mux(art.encode(frame))
      container.mux(art.encode())
    _encode_sound(container, track, waveform, rate_hz=sample_rate_hz, layout=layout)
  return path


def _encode_sound(container, track, waveform, *, rate_hz=None, layout="mono", start_s=0.0):
  rate_hz = rate_hz or track.rate
  resampler = av.AudioResampler(track.codec_context.format, layout, track.rate)
  channels = av.AudioLayout(layout).nb_channels
  size = 1024
  for start in range(0, len(waveform), size):
    piece = np.repeat(waveform[None, start : start + size], channels, 0)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
    frame.pts = start + round(start_s * rate_hz)
    for resampled in resampler.resample(frame):
      container.mux(track.encode(resampled))
  for resampled in resampler.resample(None):
    container.mux(track.encode(resampled))
  container.mux(track.encode())


def _exact_gop(length: int) -> dict[str, str]:
  return {"x264-params": f"keyint={length}:min-keyint={length}:scenecut=0"}
