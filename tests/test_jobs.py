import collections
import multiprocessing
import os
import secrets
import stat
import subprocess
import sys
import time

import batch_fakes
import postgres_server
import pytest

from deepscan_jax.serve import answers, jobs
from deepscan_jax.serve.jobs import Ledger

VERDICT = {"outcome": "likely_authentic", "file": {"sha256": "11" * 32}}
ERROR = answers.unread(b"a.mp4", code="worker_crash", message="It crashed.")


@pytest.fixture(scope="module")
def postgresql():
  with postgres_server.running() as url:
    yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
  """Of a database with tables; in one of PostgreSQL there may be jobs of other tests."""
  if request.param == "sqlite":
    return str(tmp_path / "ledger.sqlite")
  pytest.importorskip("psycopg")
  found = request.getfixturevalue("postgresql")
  if found is None:
    pytest.skip("PostgreSQL is not installed.")
  return found


@pytest.fixture
def ledger(url):
  database = jobs.open_database(url)
  yield Ledger(database)
  database.dispose()


def job_of(ledger, count, **changes):
  job = ledger.open_job(settings={"model": batch_fakes.MODEL}, directory=b"/media", **changes)
  assert list(ledger.add(job.id, [(b"%04d.mp4" % n, "1:1") for n in range(count)])) == []
  return job


def claims(ledger, job, count, owner="me", **changes):
  return [ledger.claim(job.id, owner, **changes) for _ in range(count)]


def finish_all(url, job, owner, start, done):
  """Of a process: claims and answers until nothing is left."""
  ledger = Ledger(jobs.open_database(url))
  start.wait()
  while (lease := ledger.claim(job, owner)) is not None:
    time.sleep(0.004)
    assert ledger.finish(lease, {**VERDICT, "by": owner})
    done.put((owner, lease.item))
  done.put(None)


def test_two_processes_share_the_work_fairly_and_no_item_is_done_twice(ledger, url):
  job = job_of(ledger, 200)
  context = multiprocessing.get_context("spawn")
  start, done = context.Barrier(2), context.Queue()
  crew = [context.Process(target=finish_all, args=(url, job.id, o, start, done)) for o in ("a", "b")]
  for process in crew:
    process.start()
  taken, ended = [], 0
  while ended < 2:
    news = done.get(timeout=120)
    taken, ended = (taken, ended + 1) if news is None else ([*taken, news], ended)
  for process in crew:
    process.join()
  assert len({item for _, item in taken}) == len(taken) == 200
  shares = collections.Counter(owner for owner, _ in taken)
  assert min(shares["a"], shares["b"]) >= 40
  assert ledger.counts(job.id)[jobs.DONE] == 200
  assert collections.Counter(a.answer["by"] for a in ledger.answers(job.id)) == shares
  assert ledger.complete(job.id) and not ledger.complete(job.id)


def test_a_try_is_counted_before_the_work_begins_and_items_come_in_order(ledger):
  job = job_of(ledger, 3)
  first, second = claims(ledger, job, 2)
  assert (first.path, second.path, first.tries, first.claim) == (b"0000.mp4", b"0001.mp4", 1, 1)
  assert ledger.counts(job.id) | {} == {
    jobs.QUEUED: 1,
    jobs.RUNNING: 2,
    jobs.DONE: 0,
    jobs.FAILED: 0,
    jobs.CANCELLED: 0,
  }
  assert not ledger.complete(job.id)
  assert claims(ledger, job, 2)[1] is None


def test_a_lease_that_ran_out_is_taken_over_and_what_its_first_owner_says_then_does_not_count(ledger):
  job = job_of(ledger, 1)
  late = ledger.claim(job.id, "late", lease_s=0.05)
  time.sleep(0.1)
  second = ledger.claim(job.id, "second", lease_s=60)
  assert (second.item, second.claim, second.tries) == (late.item, 2, 1)
  assert not ledger.holds(late) and ledger.holds(second)
  assert not ledger.finish(late, {**VERDICT, "by": "late"}) and ledger.fail(late, ERROR) is None
  assert not ledger.release(late)
  assert ledger.finish(second, {**VERDICT, "by": "second"}) and not ledger.finish(second, VERDICT)
  assert [a.answer["by"] for a in ledger.answers(job.id)] == ["second"]


def test_an_owner_cannot_answer_by_an_older_lease_of_its_own(ledger):
  job = job_of(ledger, 1)
  old = ledger.claim(job.id, "me", lease_s=0.05)
  time.sleep(0.1)
  new = ledger.claim(job.id, "me", lease_s=60)
  assert not ledger.finish(old, VERDICT) and ledger.finish(new, VERDICT)


def test_what_metrics_are_told_is_what_is_under_way(ledger):
  before = ledger.stats()
  assert set(before) == {"jobs", "expired_leases", "waiting_webhooks"}

  def more() -> dict:
    now = ledger.stats()
    return {
      **{state: now["jobs"][state] - before["jobs"][state] for state in (jobs.LISTING, jobs.RUNNING)},
      **{name: now[name] - before[name] for name in ("expired_leases", "waiting_webhooks")},
    }

  listing = job_of(ledger, 0, state=jobs.LISTING)
  job = job_of(ledger, 2, webhook="https://example.org/hook")
  alive, lost = ledger.claim(job.id, "alive", lease_s=60), ledger.claim(job.id, "dead", lease_s=0.0)
  time.sleep(0.01)
  assert more() == {"listing": 1, "running": 1, "expired_leases": 1, "waiting_webhooks": 0}
  ledger.take_back_expired(job.id)
  assert more()["expired_leases"] == 0 and not ledger.holds(lost)
  ledger.finish(alive, VERDICT)
  ledger.finish(ledger.claim(job.id, "alive"), VERDICT)
  ledger.complete(job.id)
  ledger.cancel(listing.id)
  assert more() == {"listing": 0, "running": 0, "expired_leases": 0, "waiting_webhooks": 1}
  ledger.webhook_told(job.id, state="told")
  assert more()["waiting_webhooks"] == 0


def test_a_heartbeat_keeps_leases(ledger):
  job = job_of(ledger, 2)
  kept = ledger.claim(job.id, "alive", lease_s=0.2)
  lost = ledger.claim(job.id, "dead", lease_s=0.2)
  assert ledger.heartbeat("alive", lease_s=60) == 1
  time.sleep(0.3)
  assert ledger.take_back_expired(job.id) == 1
  assert ledger.holds(kept) and not ledger.holds(lost)


def test_after_three_failed_tries_an_item_is_given_up_and_the_others_come_first(ledger):
  job = job_of(ledger, 3)
  (poison,) = claims(ledger, job, 1)
  assert ledger.fail(poison, ERROR) == jobs.QUEUED
  others = claims(ledger, job, 2)
  assert [lease.path for lease in others] == [b"0001.mp4", b"0002.mp4"]
  for tries in (2, 3):
    (poison,) = claims(ledger, job, 1)
    assert (poison.path, poison.tries) == (b"0000.mp4", tries)
    state = ledger.fail(poison, ERROR)
  assert state == jobs.FAILED
  (found,) = ledger.answers(job.id)
  assert (found.path, found.state, found.tries, found.answer) == (b"0000.mp4", jobs.FAILED, 3, ERROR)
  assert ledger.outcomes(job.id) == {"worker_crash": 1}
  assert ledger.retry(job.id) == 1
  assert ledger.counts(job.id)[jobs.QUEUED] == 1


def test_interruptions_count_apart_and_releases_not_at_all(ledger):
  job = job_of(ledger, 1)
  for n in range(1, 8):
    lease = ledger.claim(job.id, "told to stop")
    assert (lease.tries, lease.claim) == (1, n)
    assert ledger.release(lease) if n % 2 else ledger.release_all("told to stop") == 1
  for n in range(jobs.MOST_INTERRUPTIONS):
    lease = ledger.claim(job.id, "switched off", lease_s=0.0)
    assert lease.tries == 1
    time.sleep(0.01)
    assert ledger.take_back_expired(job.id) == (n < jobs.MOST_INTERRUPTIONS - 1)
  (found,) = ledger.answers(job.id)
  assert found.answer["error"]["code"] == jobs.INTERRUPTED and found.state == jobs.FAILED


def test_leases_of_dead_processes_of_this_machine_come_back_at_once(ledger):
  job = job_of(ledger, 4)
  told = subprocess.run(
    [sys.executable, "-c", "from deepscan_jax.serve import jobs; print(jobs.new_owner())"],
    capture_output=True,
    text=True,
    check=True,
  )
  dead, alive = told.stdout.strip(), jobs.new_owner()
  machine, pid, created, token = alive.split("/")
  elsewhere = "/".join(["0" * 16, dead.split("/")[1], created, token])
  recycled = f"{machine}/{pid}/{float(created) - 100:.2f}/{token}"
  assert [jobs.has_died(o) for o in (dead, alive, elsewhere, recycled, "x")] == [
    True,
    False,
    False,
    True,
    False,
  ]
  leases = [ledger.claim(job.id, owner) for owner in (dead, alive, elsewhere, recycled)]
  assert ledger.take_back_dead(job.id) == 2
  assert [ledger.holds(lease) for lease in leases] == [False, True, True, False]


def test_a_cancelled_job_keeps_what_was_found_and_takes_nothing_more(ledger):
  job = job_of(ledger, 4)
  done, running = claims(ledger, job, 2)
  ledger.finish(done, VERDICT)
  assert ledger.cancel(job.id) and not ledger.cancel(job.id)
  assert not ledger.finish(running, VERDICT)
  assert ledger.claim(job.id, "me") is None
  counts = ledger.counts(job.id)
  assert (counts[jobs.DONE], counts[jobs.CANCELLED]) == (1, 3)
  assert not ledger.complete(job.id) and ledger.job(job.id).state == jobs.CANCELLED


def test_a_key_finds_its_job_again_and_other_settings_have_another(ledger):
  key, other = secrets.token_hex(32), secrets.token_hex(32)
  job = job_of(ledger, 2, key=key)
  assert ledger.open_job(key=key, settings={}, directory=b"/elsewhere") == job == ledger.job_of(key)
  assert ledger.open_job(key=other, settings={}, directory=b"/media").id != job.id
  ledger.forget(job.id)
  assert ledger.job(job.id) is None and ledger.paths(job.id) == []
  assert ledger.job_of(key) is None


def test_files_that_were_added_before_are_told_only_where_they_changed_since(ledger):
  job = job_of(ledger, 4)
  for lease in claims(ledger, job, 3):
    ledger.finish(lease, ERROR if lease.path == b"0002.mp4" else VERDICT)
  now = [
    (b"0000.mp4", "1:1"),
    (b"0001.mp4", "1:2"),
    (b"0002.mp4", "2:2"),
    (b"0003.mp4", "3:3"),
    (b"4.mp4", ""),
  ]
  same, other = ledger.add(job.id, now)
  assert (same.path, same.sha256, same.file_state) == (b"0001.mp4", "11" * 32, "1:2")
  assert (other.path, other.sha256) == (b"0002.mp4", None)
  ledger.same_file(same)
  ledger.judge_again(other)
  assert [known.path for known in ledger.add(job.id, now)] == []
  counts = ledger.counts(job.id)
  assert (counts[jobs.DONE], counts[jobs.QUEUED], counts[jobs.FAILED]) == (2, 3, 0)
  assert ledger.known(job.id, [b"0001.mp4", b"none"]) == {b"0001.mp4": (jobs.DONE, "1:2")}


def test_any_bytes_may_be_a_name_and_any_answer_comes_back(ledger):
  job = job_of(ledger, 0)
  names = [b"new\nline\x1b[31m\xff\xfe.mp4", b"'; DROP TABLE batch_items; --.mp4", "\N{SNOWMAN}.mp4".encode()]
  assert list(ledger.add(job.id, [(name, "") for name in names * 2])) == []
  odd = {**VERDICT, "text": "a\0b\ud800 \N{SNOWMAN}", "number": 1e-300}
  for lease in claims(ledger, job, 3):
    assert ledger.finish(lease, odd)
  found = list(ledger.answers(job.id))
  assert [a.path for a in found] == names and all(a.answer == odd for a in found)


def test_answers_come_in_pages(ledger, monkeypatch):
  monkeypatch.setattr(jobs, "_ROWS_AT_ONCE", 3)
  job = job_of(ledger, 8)
  for lease in claims(ledger, job, 8):
    if lease.path != b"0002.mp4":
      ledger.finish(lease, VERDICT)
  every = list(ledger.answers(job.id))
  assert [a.path for a in every] == [b"%04d.mp4" % n for n in range(8) if n != 2]
  assert list(ledger.answers(job.id, limit=4)) == every[:4]
  assert list(ledger.answers(job.id, after=every[3].item, limit=9)) == every[4:]
  assert list(ledger.answers(job.id, after=every[-1].item)) == []


def test_a_job_is_listed_by_one_and_its_webhook_called_by_one(ledger):
  owner = secrets.token_hex(8)
  job = ledger.open_job(
    settings={}, directory=b"/m", owner=owner, state=jobs.LISTING, webhook="https://example.org"
  )
  assert ledger.open_jobs_of(owner) == 1
  assert ledger.claim_listing(lease_s=60).id == job.id
  assert ledger.claim_listing(lease_s=60) is None and ledger.claim_webhook() is None
  assert ledger.renew_listing(job.id) and ledger.listed(job.id) and not ledger.listed(job.id)
  assert ledger.complete(job.id)
  called = ledger.claim_webhook(lease_s=60)
  assert (called.id, called.webhook_tries, called.state) == (job.id, 1, jobs.DONE)
  assert ledger.claim_webhook() is None
  ledger.webhook_told(job.id, state="told")
  assert ledger.job(job.id, owner=owner).webhook_state == "told" and ledger.job(job.id, owner="x") is None
  assert ledger.open_jobs_of(owner) == 0
  ledger.forget_older(3600)
  assert ledger.job(job.id)
  time.sleep(0.02)
  ledger.forget_older(0.01)
  assert ledger.job(job.id) is None


def test_jobs_whose_files_one_node_has_are_its_alone_and_end_with_it(ledger):
  node = secrets.token_hex(8)
  job = job_of(ledger, 1, node=node)
  assert job.id in {found.id for found in ledger.jobs(jobs.RUNNING, node=node)}
  assert job.id not in {found.id for found in ledger.jobs(jobs.RUNNING, node="another")}
  assert ledger.uploads_of(node, [b"0000.mp4", b"other"]) == {b"0000.mp4"}

  def forget_when_it_was_seen():
    with ledger._database.begin() as connection:
      connection.execute(jobs.JOBS.update().where(jobs.JOBS.c.id == job.id).values(node_seen_at=0))

  forget_when_it_was_seen()
  ledger.seen_alive(node)
  assert ledger.give_up_lost_nodes(600) == 0
  forget_when_it_was_seen()
  assert ledger.give_up_lost_nodes(600) == 1
  assert (
    ledger.job(job.id).problem["code"] == "upload_lost" and ledger.uploads_of(node, [b"0000.mp4"]) == set()
  )


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("sqlite://", "must be a file"),
    ("mysql://u:hush@h/d", "one of SQLite or PostgreSQL, not of 'mysql'"),
    ("nonsense://:", "is not one"),
    # Where its driver is not installed, that is said.
    ("postgresql://u:hush@127.0.0.1:1/d", "cannot be opened|needs psycopg"),
    ("sqlite:////nowhere/at/all.sqlite", "cannot be opened: No such file"),
  ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(url, message):
  with pytest.raises(ValueError, match=message) as raised:
    jobs.open_database(url)
  assert "hush" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_no_database_and_who_may_read_one(tmp_path):
  (tmp_path / "text").write_text("This is no database, however long one looks at it." * 99)
  with pytest.raises(ValueError, match="file is not a database"):
    jobs.open_database(tmp_path / "text")
  jobs.open_database(tmp_path / "ledger").dispose()
  assert stat.S_IMODE(os.stat(tmp_path / "ledger").st_mode) == 0o600


def test_legible_text_has_no_half_characters():
  told = answers.legible({"a": ["x\udcff\ud800", 1, None], "b\udc80": ("\N{SNOWMAN}",)})
  assert told == {"a": ["x\\xff\\ud800", 1, None], "b\\x80": ["\N{SNOWMAN}"]}
  assert answers.path_text(b"a\xff/b") == "a\\xff/b"
