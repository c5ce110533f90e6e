"""Says what a file is, whoever made it: its name, size, hash, and what its container tells about itself.

The container's facts, gathered by the decoder in one pass over the packets; a fact that does not apply or
cannot be told is None or missing:

| fact | unit | what |
|---|---|---|
| container, codec, profile, pixel_format | | names as FFmpeg or Pillow give them |
| bit_rate, video_bit_rate, audio_bit_rate | bits a second | of the file, of its packets, as the header says |
| duration_s, fps, frame_count, width, height | s, 1/s, frames, px | of what is shown |
| rotation_degrees, mirrored, exif_orientation | | how the pictures were turned to stand upright |
| sample_aspect_ratio, color_space, color_range, color_transfer | | what the stream marks, None if nothing |
| tags | | the encoder, dates and devices that the file names |
| writer | | class of the program that wrote the container last: media_decoder.WRITERS, or "other" |
| encoder_mark | | the encoder's own note in the first packet: x264, x265, xvid, lavc |
| keyframe_count, longest_gop, usual_gop | frames | groups of pictures: longest, most frequent length |
| usual_gop_share | 0..1 | how many of the groups have that length, the last one aside |
| b_frame_share, longest_b_run | 0..1, frames | frames stored after one that is shown later than they are |
| key_, p_, b_packet_bytes | bytes | mean packet of keyframes, of other frames in order, of B-frames |
| p_packet_spread | 1 | standard deviation over mean of the P-frames' packets |
| recompression_score | bans | -log10 of the chance that P-frames peak so regularly by accident |
| earlier_gop | frames | the group length of an earlier compression, where that score is at least 2 |
| cut_frame_count | frames | stored but left out by an edit list |
| video_start_s, audio_start_s | s | first timestamp of each stream; edit lists and cutting shift them |
| video_length_s, audio_length_s | s | of each stream alone |
| frame_interval_s | s | the median time between frames |
| frame_interval_spread | 1 | standard deviation over mean of these times |
| odd_interval_share | 0..1 | how many differ from the median by more than a tenth and a tick |
| audio_codec, audio_sample_rate_hz, audio_channels | | of the sound |
| jpeg_quality | 1..100 | quality whose standard luma table is nearest to the picture's |
| jpeg_standard_table | | whether the table is that one exactly |
| chroma_subsampling | | of a JPEG picture: 4:4:4, 4:2:2, 4:2:0 or other |
| c2pa | | read_manifest's answer, where it was asked for |
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepscan_jax.media import Budget, Clip, MediaError, SamplingPlan, decode_clip

MANIFEST_STATES = ("none", "unread", "invalid", "valid", "trusted")
DECLARATIONS = ("generated", "composite")
# How the outermost box of every embedded manifest store begins: the description box and the store's type.
MANIFEST_MARK = b"jumdc2pa"
MANIFEST_COMMAND = "from manifest_reader import run_child; run_child()"
MANIFEST_SECONDS = 20.0
MANIFEST_LIMITS = {"cpu_s": 20, "address_space_bytes": 2 << 30, "answer_bytes": 1 << 16}
PIECE_BYTES = 1 << 20


def file_sha256(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits; reads it in pieces, so any size will do.

  Raises:
    MediaError: the file is missing or cannot be read.
  """
  with _readable(path), open(path, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: str | os.PathLike, *, clip: Clip | None = None, manifest: bool = False) -> dict:
  """Returns {name, bytes, sha256, container} of a file, all JSON-able; the name is without its folders.

  Args:
    path: the file.
    clip: what decode_clip made of the file; its facts (this module's docstring lists them) become
      `container`, which is None without it.
    manifest: adds what `read_manifest` says as the container's fact "c2pa".

  Raises:
    MediaError: the file is missing or cannot be read.
  """
  digest = file_sha256(path)
  container = dict(clip.facts) if clip is not None else None
  if manifest:
    container = {**(container or {}), "c2pa": read_manifest(path)}
  return {
    "name": Path(path).name,
    "bytes": Path(path).stat().st_size,
    "sha256": digest,
    "container": container,
  }


def inspect_file(
  path: str | os.PathLike,
  *,
  budget: Budget = Budget(),  # noqa: B008 - immutable
  trusted: bool = False,
  manifest: bool = False,
) -> dict:
  """Returns file_facts with the container's facts filled in, decoding one frame to be sure that it decodes.

  Raises:
    MediaError: as decode_clip does.
  """
  clip = decode_clip(path, plan=SamplingPlan(frame_count=1), budget=budget, trusted=trusted)
  return file_facts(path, clip=clip, manifest=manifest)


def read_manifest(path: str | os.PathLike) -> dict:
  """Returns {state, declares, signer, tool, problems} of the C2PA manifest embedded in a file.

  state is "none" (no manifest in the file), "unread" (c2pa-python is not installed, or gave up), "invalid"
  (signature or hashes do not fit: reported, and no evidence of anything), "valid" (they fit, whoever signed)
  or "trusted" (and the signer is on the reader's trust list). declares is "generated" or "composite" if the
  manifest says that a trained model made the content or a part of it, else None. A missing manifest proves
  nothing: most software writes none and most platforms strip it.

  The file is searched for a manifest's first bytes here, which is as quick as reading it; only where they are
  found does c2pa-python see it, in a child process with limits on memory, time, files and what it may write,
  kept off the network. Manifests that are not in the file but behind an address in it are not fetched.

  Raises:
    MediaError: the file is missing or cannot be read.
  """
  with _readable(path):
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking, or a named pipe would hang here
  try:
    if not stat.S_ISREG(os.fstat(file).st_mode):
      raise MediaError("unsupported_type", f"{Path(path).name} is not a regular file; give a media file.")
    with _readable(path):
      marked = _holds(file, MANIFEST_MARK)
    if not marked:
      return _manifest({"state": "none"})
    if importlib.util.find_spec("c2pa") is None:
      return _manifest({"state": "unread", "problems": ["c2pa-python is not installed"]})
    return _manifest(_ask_child(file))
  finally:
    os.close(file)


def _holds(file: int, mark: bytes) -> bool:
  """Whether the bytes occur anywhere in the file; read, not mapped, as a mapped file that shrinks kills."""
  at, kept = 0, b""
  while piece := os.pread(file, PIECE_BYTES, at):
    if mark in kept + piece:
      return True
    at, kept = at + len(piece), piece[1 - len(mark) :]
  return False


def _ask_child(file: int) -> object:
  folder = Path(__file__).parent
  search = [*(entry for entry in sys.path if entry), str(folder)]
  order = json.dumps({"file": file, **MANIFEST_LIMITS})
  with tempfile.TemporaryFile() as answer:
    try:
      child = subprocess.run(
        [sys.executable, "-S", "-B", "-P", "-c", MANIFEST_COMMAND, order],
        stdin=subprocess.DEVNULL,
        stdout=answer,
        stderr=subprocess.DEVNULL,
        pass_fds=(file,),
        env={"PYTHONPATH": os.pathsep.join(search)},
        cwd=folder,  # c2pa-python looks for its library in the working directory too
        timeout=MANIFEST_SECONDS,
        check=False,
      )
    except subprocess.TimeoutExpired:
      return {"state": "unread", "problems": ["the reader took too long"]}
    answer.seek(0)
    text = answer.read(MANIFEST_LIMITS["answer_bytes"])
  try:
    return json.loads(text if child.returncode == 0 else "null")
  except (ValueError, RecursionError):
    return None


def _manifest(answer: object) -> dict:
  """The answer with its five entries, each of its kind and of a bounded size; the child is not trusted."""
  if not isinstance(answer, dict):
    answer = {"state": "unread", "problems": ["the reader gave up"]}
  state, declares, problems = (answer.get(name) for name in ("state", "declares", "problems"))
  return {
    "state": state if state in MANIFEST_STATES else "unread",
    "declares": declares if declares in DECLARATIONS else None,
    "signer": _text(answer.get("signer")),
    "tool": _text(answer.get("tool")),
    "problems": [_text(problem) for problem in problems[:16]] if isinstance(problems, list) else [],
  }


def _text(value: object) -> str | None:
  if value is None:
    return None
  return "".join(c for c in str(value)[:200] if c.isprintable()).strip()


@contextlib.contextmanager
def _readable(path: str | os.PathLike):
  """Inside, failures to open or read the file become a MediaError."""
  name = Path(path).name
  try:
    yield
  except FileNotFoundError as error:
    raise MediaError("missing_file", f"There is no file {name}; check the path.") from error
  except OSError as error:
    raise MediaError(
      "unreadable", f"{name} cannot be read ({error.strerror}); check its permissions."
    ) from error


# The vector ---------------------------------------------------------------------------------------------

FACTS_VERSION = 1
"""Raised when FACT_NAMES or a scale changes: models trained on another version must not read the vector."""


def _one_of(name: str, *values: str) -> Callable[[dict], float | None]:
  return lambda facts: float(facts[name] in values) if isinstance(facts.get(name), str) else None


def _number(name: str, *, center: float = 0.0, scale: float = 1.0, log: bool = False):
  def fact(facts: dict) -> float | None:
    return _scaled(_float(facts.get(name)), center=center, scale=scale, log=log)

  return fact


def _ratio(numerator: str, denominator: str, *, center: float = 0.0, scale: float = 1.0, log: bool = False):
  def fact(facts: dict) -> float | None:
    top, bottom = _float(facts.get(numerator)), _float(facts.get(denominator))
    return _scaled(top / bottom if top is not None and bottom else None, center=center, scale=scale, log=log)

  return fact


def _difference(name: str, other: str, *, scale: float):
  def fact(facts: dict) -> float | None:
    one, two = _float(facts.get(name)), _float(facts.get(other))
    return None if one is None or two is None else math.tanh((one - two) / scale)

  return fact


def _true(name: str) -> Callable[[dict], float | None]:
  return lambda facts: float(facts[name]) if isinstance(facts.get(name), bool) else None


def _float(value: object) -> float | None:
  """The value as a finite float; None for everything else, booleans included."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:
    return None


def _scaled(value: float | None, *, center: float, scale: float, log: bool) -> float | None:
  if value is None or (log and value <= 0):
    return None
  return ((math.log10(value) if log else value) - center) / scale


def _bits_per_pixel(facts: dict) -> float | None:
  parts = [_float(facts.get(name)) for name in ("video_bit_rate", "width", "height", "fps")]
  if None in parts or min(parts) <= 0:
    return None
  rate, width, height, fps = parts
  return (math.log10(rate) - math.log10(width) - math.log10(height) - math.log10(fps) + 1) / 1.5


def _declared(facts: dict) -> float | None:
  manifest = facts.get("c2pa")
  if not isinstance(manifest, dict) or manifest.get("state") not in ("valid", "trusted"):
    return None
  return {"generated": 1.0, "composite": 0.5}.get(str(manifest.get("declares")))


def _names_camera(facts: dict) -> float | None:
  tags = facts.get("tags")
  return 1.0 if isinstance(tags, dict) and (tags.get("make") or tags.get("model")) else None


_FACTS: dict[str, Callable[[dict], float | None]] = {
  "declared_generated": _declared,
  "codec_h264": _one_of("codec", "h264"),
  "codec_hevc": _one_of("codec", "hevc"),
  "codec_vp": _one_of("codec", "vp8", "vp9"),
  "codec_av1": _one_of("codec", "av1", "libdav1d"),
  "codec_mpeg": _one_of("codec", "mpeg4", "mpeg2video", "mpeg1video", "msmpeg4v3"),
  "codec_jpeg": _one_of("codec", "jpeg", "mjpeg"),
  "codec_lossless": _one_of("codec", "png", "gif", "ffv1", "rawvideo", "pcm_s16le", "flac"),
  "container_mp4": _one_of("container", "mov,mp4,m4a,3gp,3g2,mj2"),
  "container_matroska": _one_of("container", "matroska,webm"),
  "container_avi": _one_of("container", "avi"),
  "writer_lavf": _one_of("writer", "lavf", "handbrake"),
  "writer_device": _one_of("writer", "apple", "android", "camera"),
  "writer_platform": _one_of("writer", "google"),
  "encoder_x264": _one_of("encoder_mark", "x264"),
  "camera_named": _names_camera,
  "bits_per_pixel": _bits_per_pixel,
  "key_to_p_bytes": _ratio("key_packet_bytes", "p_packet_bytes", center=0.7, scale=1.0, log=True),
  "p_packet_spread": _number("p_packet_spread", center=0.5, scale=1.0),
  "usual_gop": _number("usual_gop", center=1.5, scale=1.0, log=True),
  "usual_gop_share": _number("usual_gop_share", center=0.5, scale=0.5),
  "b_frame_share": _number("b_frame_share"),
  "frame_interval_spread": _number("frame_interval_spread"),
  "odd_interval_share": _number("odd_interval_share"),
  "cut_frame_share": _ratio("cut_frame_count", "frame_count"),
  "video_start": _difference("video_start_s", "audio_start_s", scale=0.2),
  "video_length": _difference("video_length_s", "audio_length_s", scale=0.2),
  "recompression": _number("recompression_score", scale=5.0),
  "earlier_gop": _number("earlier_gop", center=1.3, scale=1.0, log=True),
  "audio_aac": _one_of("audio_codec", "aac"),
  "audio_bit_rate": _number("audio_bit_rate", center=5.0, scale=1.0, log=True),
  "jpeg_quality": _number("jpeg_quality", center=75.0, scale=25.0),
  "jpeg_standard_table": _true("jpeg_standard_table"),
}
FACT_NAMES = tuple(_FACTS)


def fact_vector(container_facts: dict) -> tuple[np.ndarray, np.ndarray]:
  """Returns the container's facts as numbers for the provenance branch, and which of them are known.

  FACT_NAMES is the fixed list, FACTS_VERSION its version:

  | facts | value | known |
  |---|---|---|
  | declared_generated | 1 a valid C2PA manifest declares generation, 0.5 of a part | only then |
  | codec_*, container_*, audio_aac | 0 or 1; all 0 is another one | where there is one |
  | writer_*, encoder_x264 | 0 or 1 | where a tag or note says who wrote it: stripped ones are neutral |
  | camera_named | 1 | where the file names its device |
  | bits_per_pixel | (log10 of video bits a pixel and frame + 1) / 1.5 | videos |
  | key_to_p_bytes | log10 of the mean packets' ratio - 0.7 | videos with both |
  | p_packet_spread | spread - 0.5 | videos with P-frames |
  | usual_gop, earlier_gop | log10 of frames - 1.5; - 1.3 | two keyframes; a trace found |
  | usual_gop_share | 2 share - 1 | two keyframes |
  | b_frame_share, frame_interval_spread, odd_interval_share, cut_frame_share | as they are | timed videos |
  | video_start, video_length | tanh of (video's - sound's) seconds / 0.2 | with both streams |
  | recompression | score / 5 | enough P-frames |
  | audio_bit_rate | log10 - 5 | where the header says |
  | jpeg_quality | (quality - 75) / 25 | JPEG pictures |
  | jpeg_standard_table | 0 or 1 | JPEG pictures |

  All are clipped to -2..2. No file name, date, size in bytes, width, height or frame rate goes in; but
  bits_per_pixel depends on the resolution, for encoders spend fewer bits a pixel on larger pictures, and
  usual_gop on the frame rate, which many programs set groups by.

  Args:
    container_facts: a Clip's facts, or file_facts()["container"], which may hold "c2pa" too. Values of a
      wrong kind count as unknown.

  Returns:
    values float32 [fact], 0 where unknown; known bool [fact].
  """
  found = [fact(container_facts) for fact in _FACTS.values()]
  known = np.array([value is not None for value in found])
  values = np.array([0.0 if value is None else value for value in found])
  return np.clip(values, -2.0, 2.0).astype(np.float32), known
