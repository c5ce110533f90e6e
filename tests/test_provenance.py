"""What a file says of itself: name, size, hash and container facts."""

import hashlib
import json

import media_files
import pytest

from deepscan_jax.media import MediaError, decode_clip
from deepscan_jax.provenance import file_facts, file_sha256, inspect_file


def test_hash_is_that_of_the_bytes(tmp_path):
  path = tmp_path / "some.bin"
  path.write_bytes(bytes(range(256)) * 40_000)
  assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_facts_name_the_file_without_its_folder(tmp_path):
  path = media_files.with_audio(tmp_path / "clip.mp4")
  clip = decode_clip(path, trusted=True)
  facts = file_facts(path, clip=clip)
  assert facts["name"] == "clip.mp4"
  assert facts["bytes"] == path.stat().st_size
  assert facts["container"] == clip.facts
  assert str(tmp_path) not in json.dumps(facts)
  assert file_facts(path)["container"] is None


def test_inspect_reports_the_streams(tmp_path):
  path = media_files.rotated(tmp_path / "turned.mp4", degrees=-90, count=30)
  facts = inspect_file(path, trusted=True)["container"]
  expected = {
    "codec": "h264",
    "width": 96,
    "height": 160,
    "rotation_degrees": 90,
    "fps": 25.0,
    "frame_count": 30,
    "keyframe_count": 3,
    "longest_gop": 12,
    "pixel_format": "yuv420p",
  }
  assert {name: facts[name] for name in expected} == expected
  assert facts["duration_s"] == pytest.approx(1.2, abs=0.01)
  assert facts["tags"]["encoder"].startswith("Lavf")
  sound = inspect_file(media_files.sound(tmp_path / "voice.wav"), trusted=True)["container"]
  assert (sound["audio_codec"], sound["audio_sample_rate_hz"], sound["audio_channels"]) == (
    "pcm_s16le",
    44_100,
    1,
  )
  picture = media_files.picture(tmp_path / "p.jpg", media_files.numbered_frames(1)[0], orientation=6)
  assert inspect_file(picture, trusted=True)["container"]["exif_orientation"] == 6


def test_missing_file_is_one_sentence(tmp_path):
  with pytest.raises(MediaError, match=r"no file gone\.mp4") as caught:
    file_facts(tmp_path / "gone.mp4")
  assert caught.value.reason == "missing_file"
