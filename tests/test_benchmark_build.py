"""The benchmark of building times a build, and decoding and faces of the same frames."""

from deepscan_jax.launch import benchmark, benchmark_build


def test_a_build_is_timed_beside_decoding_and_faces(real_media, monkeypatch):
  monkeypatch.setattr(benchmark_build.building, "default_workers", lambda: 1)
  rows = benchmark_build.build_rows(
    real_media,
    frames=2,
    row=lambda *values, limit_s=None: (*values, limit_s),
    repeats=1,
    decode=benchmark._decode_alone,
  )
  assert [row[1].partition(": ")[2] for row in rows] == [
    "PyAV alone, the same frames",
    "faces alone, the same frames",
    "build (reference: both)",
  ]
  decoding, search, build = rows
  assert build[3] == decoding[2] + search[2] > 0
  assert build[2] > 0 and build[4] == build[3] / 0.8
