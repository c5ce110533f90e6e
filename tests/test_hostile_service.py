"""Hostile files, bombs and mixed load against a service that runs; `benchmark hostile` and `soak` do more."""

import collections
import dataclasses
import random
import sys

import pytest

from deepscan_jax.launch import benchmark_hostile, benchmark_soak, hostile_media, watched_service
from deepscan_jax.launch.benchmark_hostile import Outcome
from deepscan_jax.launch.hostile_media import BOMBS, Case, Maker
from deepscan_jax.launch.watched_service import Figure, Sample, WatchedService

SERVICE = [sys.executable, "-m", "deepscan_jax.launch.decoding_service"]
LIMIT_S = 120.0
# What each bomb is answered. Those that take seconds are sent by the benchmark alone.
TOLD = {
  "PNG of 30000 x 30000": (413, "over_budget"),
  "PNG of 2147483647 x 2147483647": (413, "over_budget"),
  "JPEG of 65500 x 65500": (413, "over_budget"),
  "WebP of 16383 x 16383": (413, "over_budget"),
  "PNG with a text of 100 MB": (422, "unreadable"),
  "PNG with a profile of 100 MB": (422, "unreadable"),
  "AVI of 12000 x 12000": (413, "over_budget"),
  "AVI of 2147483647 x 2147483647": (422, "no_frames"),
  "MP4, 60 frames of 4096 x 4096": (413, "over_budget"),
  "MP4, a frame every hour": (413, "over_budget"),
  "MP4 of 100000000 frames": (422, "no_frames"),
  "MKV of 900 streams": (413, "over_budget"),
  "MP4 of 20000 boxes in each other": (422, "unreadable"),
  "zip in zip in zip as MP4": (415, "type_mismatch"),
  "gzip of 100 MB as JPEG": (415, "type_mismatch"),
}
REST = b'"detail": "x", "remedy": "y", "request_id": "z"}'
SAMPLE = Sample(at_s=0.0, server_bytes=0, all_bytes=0, handles=9, threads=3, processes=1, files=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
  with WatchedService(tmp_path_factory.mktemp("hostile"), command=SERVICE) as service:
    yield service


def test_a_case_is_the_same_for_the_same_number_and_seed():
  maker, again, other = Maker(3), Maker(3), Maker(4)
  numbers = (5, 0, 17, 40)
  assert [maker.case(n) for n in numbers] == [again.case(n) for n in numbers]
  assert all(maker.case(n).form() != other.case(n).form() for n in numbers)
  # Whatever is drawn before it.
  whole = {
    name: make() for name, (_, make) in hostile_media.WHOLE.items() if name in ("plain.mp4", "plain.png")
  }
  assert all(hostile_media.whole(name) == data for name, data in whole.items())


def test_all_families_are_drawn():
  maker = Maker(0)
  made = [maker.case(number) for number in range(150)]
  assert {case.family for case in made} >= set(hostile_media.WEIGHTS) - {"bomb"}
  assert {case.kind for case in made} == {"video", "image", "audio"}
  lies = "; ".join(hostile_media._lying(random.Random(number)).what for number in range(300))
  wanted = ("width 0", "height 0", "duration 0", "sample rate 0", "channels 0", "rate 4294967295")
  assert [lie for lie in wanted if lie not in lies] == [] and lies.count("no lie") < 30


def test_hostile_files_are_answered_and_leave_nothing(service):
  told = []
  cases = (Maker(0).case(number) for number in range(100))
  found = benchmark_hostile.flood(
    service,
    (case for case in cases if case.family != "bomb"),
    warm_up=40,
    clients=4,
    limit_s=LIMIT_S,
    tell=told.append,
  )
  rows = benchmark_hostile.rows_of(found)
  assert all(row.kept for row in rows), told
  statuses = collections.Counter()
  for (status, _), count in found.answers.items():
    statuses[status] += count
  assert statuses.total() >= 95 and statuses[200] > 10 and statuses[422] > 10 and statuses[415] > 5
  assert {code for (status, code) in found.answers if status == 422} >= {"unreadable"}


def test_every_bomb_is_refused_with_its_reason(service):
  assert set(TOLD) < set(BOMBS)
  before = service.settled()
  found = {}
  for name in TOLD:
    kind, file_name, _ = BOMBS[name]
    case = Case(0, "bomb", name, kind, file_name, hostile_media.bomb(name))
    answer = benchmark_hostile.send(service, case, limit_s=LIMIT_S)
    found[name] = (answer.status, answer.code)
    assert not answer.fault and answer.seconds < LIMIT_S, (name, answer)
  assert found == TOLD
  after = service.settled()
  assert service.lives() and not service.defects() and after.files == 0 and after.processes == 1
  assert after.server_bytes - before.server_bytes < 50e6


def test_mixed_load_leaves_nothing(service):
  told = []
  found = benchmark_soak.soak(service, minutes=0.05, per_second=25.0, seed=1, every_s=0.5, tell=told.append)
  assert found.lived and not found.wrong and not found.defects, told
  assert found.last.files == 0 and found.last.processes == 1
  assert len(found.samples) >= 5 and len(found.asked) >= 10


def test_what_figures_are_made_of_shows_when_a_service_is_not_well():
  found = Outcome(
    answers=collections.Counter({(200, ""): 3, (500, ""): 1, (503, "busy"): 2}),
    faults=["a"],
    slowest=(400.0, "b"),
    late=1,
    warm=SAMPLE,
    last=dataclasses.replace(SAMPLE, server_bytes=51_000_000, handles=20, processes=3, files=2),
    lived=False,
    defects=["c"],
  )
  broken = [row.case.partition(" (")[0] for row in benchmark_hostile.rows_of(found) if not row.kept]
  assert broken == [
    "crashes",
    "wrong answers",
    "answers past the limit",
    "slowest answer",
    "errors in the log",
    "memory more",
    "handles more",
    "files left",
    "processes left, beside the one that is forked",
  ]
  samples = [
    dataclasses.replace(SAMPLE, at_s=10.0 * i, server_bytes=10**6 * i, all_bytes=0) for i in range(60)
  ]
  # A few large ones move nothing.
  samples[20] = dataclasses.replace(samples[20], server_bytes=10**10)
  soaked = benchmark_soak.Soaked(
    samples, samples[-1], collections.Counter(a=4), collections.Counter({("a", 200): 4}), ["x"], True, []
  )
  rows = {row.case: row for row in benchmark_soak.rows_of(soaked, minutes=10)}
  grows = rows["memory of the server, a minute"]
  assert grows.value == pytest.approx(6.0, rel=0.05) and not grows.kept
  assert rows["memory with its processes, a minute"].kept and not rows["wrong answers"].kept


@pytest.mark.parametrize(
  "status, content_type, body, fault",
  [
    (200, "application/json", b'{"outcome": "x"}', "missing"),
    (500, "application/problem+json", b"{}", "failed with 500"),
    (422, "text/plain", b"no", "without a reason"),
    (422, "application/problem+json", b'{"code": "unheard_of"}', "without a reason"),
    (422, "application/problem+json", b'{"code": "unreadable", "detail": "x"}', "without a remedy"),
    (503, "application/problem+json", b'{"code": "busy", ' + REST, "503"),
    (422, "application/problem+json", b'{"code": "unreadable", ' + REST, ""),
  ],
)
def test_a_wrong_answer_is_known_as_one(status, content_type, body, fault):
  answer = benchmark_hostile._looked_at(status, {"content-type": content_type}, body, 1.0)
  assert (fault in answer.fault) if fault else not answer.fault


def test_the_table_says_what_is_not_kept():
  rows = [Figure("soak", "files left", 2.0, "", 0.0), Figure("soak", "memory more", 1.5, "MB", 50.0)]
  lines = watched_service.table(rows).splitlines()
  assert lines[0].endswith("NOT KEPT") and lines[1].split()[-4:] == ["1.50", "MB", "50.00", "MB"]
