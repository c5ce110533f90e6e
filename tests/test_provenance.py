"""What a file says of itself: name, size, hash and container facts."""

import datetime
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import media_files
import numpy as np
import pytest

from deepscan_jax import provenance
from deepscan_jax.manifest_reader import summarise
from deepscan_jax.media import MediaError, decode_clip
from deepscan_jax.provenance import (
  FACT_NAMES,
  fact_vector,
  file_facts,
  file_sha256,
  inspect_file,
  read_manifest,
)


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


def test_groups_and_order_of_the_packets(tmp_path):
  options = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2:b-adapt=0:b-pyramid=none"}
  path = media_files.write_video(
    tmp_path / "b.mp4", media_files.numbered_frames(45), gop=10, b_frames=2, options=options
  )
  facts = inspect_file(path, trusted=True)["container"]
  assert {name: facts[name] for name in ("usual_gop", "usual_gop_share", "longest_gop", "longest_b_run")} == {
    "usual_gop": 10,
    "usual_gop_share": 1.0,
    "longest_gop": 10,
    "longest_b_run": 2,
  }
  with av.open(str(path)) as container:
    packets = [packet for packet in container.demux(video=0) if packet.size]
    kinds = ["?IPB"[frame.pict_type] for frame in container_frames(path)]
  sizes = {
    kind: [p.size for p in packets if (kinds[round(p.pts * p.time_base * 25)]) == kind] for kind in "IPB"
  }
  assert facts["b_frame_share"] == len(sizes["B"]) / 45 > 0.4
  assert facts["key_packet_bytes"] == pytest.approx(np.mean(sizes["I"]))
  assert facts["p_packet_bytes"] == pytest.approx(np.mean(sizes["P"]))
  assert facts["b_packet_bytes"] == pytest.approx(np.mean(sizes["B"]))
  assert facts["p_packet_spread"] == pytest.approx(np.std(sizes["P"]) / np.mean(sizes["P"]))
  assert (facts["encoder_mark"], facts["writer"]) == ("x264", "lavf")


def container_frames(path):
  with av.open(str(path)) as container:
    return list(container.decode(video=0))


def test_uneven_frames_are_told_from_even_ones(tmp_path):
  times_s = np.cumsum([0.0, *([0.04] * 20), 0.2, *([0.04] * 18)])
  uneven = inspect_file(media_files.variable_rate(tmp_path / "v.mp4", times_s), trusted=True)["container"]
  steps = np.diff(times_s)
  assert uneven["odd_interval_share"] == pytest.approx(1 / 39)
  assert uneven["frame_interval_s"] == pytest.approx(0.04)
  assert uneven["frame_interval_spread"] == pytest.approx(np.std(steps) / np.mean(steps), rel=1e-3)
  # Matroska's timestamps are rounded to milliseconds: that alone is no unevenness.
  even = media_files.write_video(tmp_path / "e.mkv", media_files.numbered_frames(40), fps=30)
  assert inspect_file(even, trusted=True)["container"]["odd_interval_share"] == 0


def test_streams_that_do_not_begin_or_end_together(tmp_path):
  frames = media_files.numbered_frames(50)
  path = media_files.write_video(
    tmp_path / "gap.mkv", frames, sound=media_files.tone(1.5), sound_codec="flac"
  )
  facts = inspect_file(path, trusted=True)["container"]
  assert facts["video_length_s"] == pytest.approx(2.0, abs=0.01)
  assert facts["audio_length_s"] == pytest.approx(1.5, abs=0.01)
  assert facts["video_start_s"] == pytest.approx(facts["audio_start_s"], abs=0.01)
  values, known = fact_vector(facts)
  at = FACT_NAMES.index("video_length")
  assert known[at] and values[at] == pytest.approx(np.tanh(0.5 / 0.2), abs=0.01)


def restless(count: int) -> Iterator[np.ndarray]:
  """A noisy window that wanders over a texture, as a hand-held camera films it."""
  rng = np.random.default_rng(0)
  texture = cv2.resize(
    rng.integers(0, 255, (60, 80, 3)).astype(np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC
  )
  x, y = np.clip(100 + np.cumsum(rng.normal(0, 1.5, (2, count)), axis=1), 0, 380).astype(int)
  for i in range(count):
    view = texture[y[i] : y[i] + 96, x[i] : x[i] + 160] + rng.normal(0, 6, (96, 160, 3))
    yield view.clip(0, 255).astype(np.uint8)


def test_an_earlier_compression_shows_by_the_length_of_its_groups(tmp_path):
  def compress(path, frames, gop):
    options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0", "preset": "veryfast", "crf": "28"}
    return media_files.write_video(path, frames, gop=gop, options=options)

  once = compress(tmp_path / "once.mp4", restless(200), 12)
  again = compress(
    tmp_path / "again.mp4", (frame.to_ndarray(format="rgb24") for frame in container_frames(once)), 250
  )
  straight = compress(tmp_path / "straight.mp4", restless(200), 250)
  found = {path.stem: inspect_file(path, trusted=True)["container"] for path in (once, again, straight)}
  assert {name: facts["earlier_gop"] for name, facts in found.items()} == {
    "once": None,
    "again": 12,
    "straight": None,
  }
  assert found["again"]["recompression_score"] > 3 > 2 > found["straight"]["recompression_score"]


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_quality_is_read_off_the_table(tmp_path, quality):
  pixels = media_files.numbered_frames(1)[0]
  facts = inspect_file(media_files.picture(tmp_path / "p.jpg", pixels, quality=quality), trusted=True)
  assert (facts["container"]["jpeg_quality"], facts["container"]["jpeg_standard_table"]) == (quality, True)
  other = media_files.picture(tmp_path / "o.jpg", pixels, qtables=[[9] * 64, [9] * 64])
  assert inspect_file(other, trusted=True)["container"]["jpeg_standard_table"] is False
  plain = inspect_file(media_files.picture(tmp_path / "p.png", pixels), trusted=True)["container"]
  assert "jpeg_quality" not in plain


def test_the_vector_of_a_video_is_finite_small_and_without_its_name(tmp_path):
  path = media_files.with_audio(tmp_path / "clip.mp4")
  facts = inspect_file(path, trusted=True)["container"]
  values, known = fact_vector(facts)
  assert 24 <= len(FACT_NAMES) <= 40 and len(set(FACT_NAMES)) == len(FACT_NAMES)
  assert (values.shape, values.dtype, known.shape, known.dtype) == (
    (len(FACT_NAMES),),
    np.float32,
    (len(FACT_NAMES),),
    bool,
  )
  assert np.isfinite(values).all() and np.abs(values).max() <= 2 and not values[~known].any()
  named = dict(zip(FACT_NAMES, values, strict=True))
  assert (named["codec_h264"], named["codec_hevc"], named["container_mp4"], named["audio_aac"]) == (
    1,
    0,
    1,
    1,
  )
  assert (named["writer_lavf"], named["encoder_x264"]) == (1, 1)
  bits = facts["video_bit_rate"] / (160 * 96 * 25)
  assert named["bits_per_pixel"] == pytest.approx((np.log10(bits) + 1) / 1.5, rel=1e-5)
  assert not known[FACT_NAMES.index("jpeg_quality")] and not known[FACT_NAMES.index("declared_generated")]


NOTHING = dict.fromkeys(
  ("codec", "usual_gop", "video_bit_rate", "width", "height", "fps", "tags", "c2pa", "jpeg_quality")
)
ODD = [
  {},
  NOTHING,
  dict.fromkeys(NOTHING, float("nan")),
  dict.fromkeys(NOTHING, 10**400),
  {name: [] for name in NOTHING},
  dict.fromkeys(NOTHING, True),
  {"c2pa": {"state": ["valid"], "declares": ["generated"]}},
  {"c2pa": {"state": "valid", "declares": ["generated"]}},
  {"usual_gop": 0, "fps": -1, "key_packet_bytes": 5, "p_packet_bytes": 0},
]


@pytest.mark.parametrize("facts", ODD, ids=range(len(ODD)))
def test_what_is_not_known_or_of_a_wrong_kind_is_nought(facts):
  values, known = fact_vector(facts)
  assert not known.any() and not values.any()


# C2PA ---------------------------------------------------------------------------------------------------

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def claim(source: str, **more) -> dict:
  action = {"action": "c2pa.created", "digitalSourceType": SOURCE + source}
  return {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}], **more}


def test_a_store_is_summarised():
  generated, captured = claim("trainedAlgorithmicMedia"), claim("digitalCapture")
  signed = {"signature_info": {"issuer": "Someone"}, "claim_generator_info": [{"name": "painter"}]}
  edited = {"ingredients": [{"relationship": "parentOf", "active_manifest": "a"}]}
  pasted = {"ingredients": [{"relationship": "componentOf", "active_manifest": "a"}]}

  def declares(**manifests):
    return summarise({"active_manifest": "z", "manifests": manifests, "validation_state": "Valid"})[
      "declares"
    ]

  assert summarise(
    {"active_manifest": "z", "manifests": {"z": generated | signed}, "validation_state": "Trusted"}
  ) == {"state": "trusted", "declares": "generated", "signer": "Someone", "tool": "painter", "problems": []}
  assert declares(z=captured) is None
  assert declares(z=claim("compositeWithTrainedAlgorithmicMedia")) == "composite"
  assert declares(z=edited, a=generated) == "generated"
  assert declares(z=pasted, a=generated) is None
  assert declares(z={"ingredients": [{"relationship": "parentOf", "active_manifest": "z"}]}) is None
  wrong = [{"code": "assertion.dataHash.mismatch"}]
  broken = summarise({"active_manifest": "z", "manifests": {"z": generated}, "validation_status": wrong})
  assert (broken["state"], broken["problems"]) == ("invalid", ["assertion.dataHash.mismatch"])


def marked(path: Path) -> Path:
  """A picture that holds the first bytes of a manifest, and no manifest."""
  media_files.picture(path, media_files.numbered_frames(1)[0])
  path.write_bytes(path.read_bytes() + provenance.MANIFEST_MARK)
  return path


def test_a_file_without_a_manifest_starts_no_reader(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance, "MANIFEST_COMMAND", "raise SystemExit(1)")
  path = media_files.picture(tmp_path / "p.jpg", media_files.numbered_frames(1)[0])
  nothing = {"state": "none", "declares": None, "signer": None, "tool": None, "problems": []}
  assert read_manifest(path) == nothing
  assert inspect_file(path, trusted=True, manifest=True)["container"]["c2pa"] == nothing
  with pytest.raises(MediaError, match=r"no file gone\.jpg"):
    read_manifest(tmp_path / "gone.jpg")
  with pytest.raises(MediaError, match="regular file"):
    read_manifest(tmp_path)


def test_the_mark_is_found_across_the_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance, "PIECE_BYTES", 10)
  monkeypatch.setattr(provenance, "_ask_child", lambda file: {"state": "valid"})
  monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: name)
  path = tmp_path / "x.bin"
  for before in range(25):
    path.write_bytes(b"." * before + provenance.MANIFEST_MARK + b"." * 5)
    assert read_manifest(path)["state"] == "valid"
  path.write_bytes(b"jumdc2p" * 20)
  assert read_manifest(path)["state"] == "none"


def test_a_missing_package_is_neutral(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: None)
  answer = read_manifest(marked(tmp_path / "p.jpg"))
  assert (answer["state"], answer["problems"]) == ("unread", ["c2pa-python is not installed"])
  container = {"codec": "jpeg"}
  for without, given in zip(fact_vector(container), fact_vector({**container, "c2pa": answer}), strict=True):
    np.testing.assert_array_equal(without, given)


@pytest.mark.parametrize(
  ("command", "state"),
  [
    ('print(\'{"state": "valid", "declares": "generated", "problems": 7, "signer": {}}\')', "valid"),
    ("print('[1]')", "unread"),
    ("print('[' * 10_000)", "unread"),
    ('print(\'{"state": "excellent"}\')', "unread"),
    ("import os; os.kill(os.getpid(), 11)", "unread"),
    ("import time; time.sleep(60)", "unread"),
    ("import sys; sys.stdout.write('x' * 1_000_000)", "unread"),
  ],
)
def test_a_reader_that_lies_dies_or_hangs_is_survived(tmp_path, monkeypatch, command, state):
  monkeypatch.setattr(provenance, "MANIFEST_COMMAND", command)
  monkeypatch.setattr(provenance, "MANIFEST_SECONDS", 60.0 if "sleep" not in command else 0.5)
  monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: name)
  answer = read_manifest(marked(tmp_path / "p.jpg"))
  assert answer["state"] == state
  assert all(isinstance(problem, str) for problem in answer["problems"])


def test_the_reader_runs_limited_and_without_our_environment(tmp_path, monkeypatch):
  monkeypatch.setenv("SECRET_KEY", "xyz")
  probe = """
import os, resource, sys, manifest_reader as m
def probe(file):
  names = ("AS", "CPU", "FSIZE", "NOFILE", "CORE")
  limits = [resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names]
  heavy = [name for name in ("numpy", "jax", "av", "deepscan_jax") if name in sys.modules]
  return {"state": "none", "problems": [*limits, *heavy, "SECRET_KEY" in os.environ]}
m.read_manifest = probe
m.run_child()
"""
  monkeypatch.setattr(provenance, "MANIFEST_COMMAND", probe)
  monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: name)
  limits = provenance.MANIFEST_LIMITS
  expected = [limits["address_space_bytes"], limits["cpu_s"], limits["answer_bytes"], 64, 0, False]
  assert read_manifest(marked(tmp_path / "p.jpg"))["problems"] == [str(value) for value in expected]


def signing_chain() -> tuple[bytes, bytes]:
  """A certificate with its authority's below it, and the key, as PEM: nobody trusts them."""
  x509 = pytest.importorskip("cryptography.x509")
  from cryptography.hazmat.primitives import hashes, serialization
  from cryptography.hazmat.primitives.asymmetric import ec

  now = datetime.datetime.now(datetime.UTC)
  keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
  names = [
    x509.Name(
      [
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test Signer"),
        x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
      ]
    )
    for name in ("authority", "signer")
  ]
  pems = []
  for i, (key, name) in enumerate(zip(keys, names, strict=True)):
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
    builder = (
      x509.CertificateBuilder()
      .subject_name(name)
      .issuer_name(names[0])
      .public_key(key.public_key())
      .serial_number(x509.random_serial_number())
      .not_valid_before(now - datetime.timedelta(days=1))
      .not_valid_after(now + datetime.timedelta(days=30))
      .add_extension(x509.BasicConstraints(ca=i == 0, path_length=None), critical=True)
      .add_extension(
        x509.KeyUsage(digital_signature=i == 1, key_cert_sign=i == 0, crl_sign=i == 0, **usage), critical=True
      )
      .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
      .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
    )
    if i == 1:
      purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
      builder = builder.add_extension(purpose, critical=False)
    pems.insert(0, builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
  private = keys[1].private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  )
  return b"".join(pems), private


def test_a_signed_declaration_is_read_and_a_changed_file_is_no_evidence(tmp_path):
  c2pa = pytest.importorskip("c2pa")
  chain, key = signing_chain()
  path = media_files.picture(tmp_path / "p.jpg", media_files.numbered_frames(1)[0])
  manifest = {
    "claim_generator_info": [{"name": "painter", "version": "1"}],
    **claim("trainedAlgorithmicMedia"),
  }
  signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
  signed = tmp_path / "signed.jpg"
  with open(path, "rb") as source, open(signed, "w+b") as target:
    c2pa.Builder(manifest).sign(signer, "image/jpeg", source, target)
  answer = read_manifest(signed)
  assert (answer["state"], answer["declares"]) == ("valid", "generated"), answer
  assert (answer["signer"], answer["tool"]) == ("Test Signer", "painter")
  facts = inspect_file(signed, trusted=True, manifest=True)["container"]
  values, known = fact_vector(facts)
  assert known[0] and values[0] == 1 and FACT_NAMES[0] == "declared_generated"

  data = bytearray(signed.read_bytes())
  data[-40] ^= 1
  signed.write_bytes(data)
  answer = read_manifest(signed)
  assert answer["state"] == "invalid" and answer["problems"]
  assert not fact_vector({"c2pa": answer})[1].any()
  assert read_manifest(marked(tmp_path / "m.jpg"))["state"] in ("none", "invalid")
