"""The table of work: which files are to be judged, who judges each now, and what was found.

A job is a folder, or an uploaded file, with settings; its items are files. Whoever judges takes an item under
a lease: for so many seconds it is theirs, and they renew it while they live. The lease, and that there was
one more try, are written before the work begins, so a process that is killed at any moment loses nothing: its
leases run out and the items are taken by others. An answer is written together with the end of its lease, and
only if the lease is still held (by owner and number of the claim): no item is answered twice.

A try ends in one of four ways. The file was answered. The try failed, because the process that judged died of
it or an exception got out: after MOST_TRIES of them the item is given up. It was interrupted, because the
lease ran out and nobody knows why (the whole machine may have been switched off): that is counted apart, and
the item is given up after MOST_INTERRUPTIONS. Or it was released, because its process was told to stop: that
counts as nothing. What was tried goes behind what was not, so one bad file holds up no other.

SQLite serves the processes of one machine (in WAL mode, on a local disk), PostgreSQL those of many: there
claims skip rows that others are claiming. Times are the database's, in seconds since 1970, so that the clocks
of the machines do not matter.
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deepscan_jax.serve import answers, databases
from deepscan_jax.serve.judging import MOST_TRIES

MOST_INTERRUPTIONS = 5
LEASE_S = 60.0
# States of an item; those that are answered stand at the end.
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ITEM_STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
OPEN, ANSWERED = (QUEUED, RUNNING), (DONE, FAILED)
# A job is listing (its files are being looked for) or running, then one of the others.
LISTING = "listing"
JOB_STATES = (LISTING, RUNNING, DONE, FAILED, CANCELLED)
# The code of what this table itself says of a file.
INTERRUPTED = "interrupted"
_ROWS_AT_ONCE = 500

METADATA = sa.MetaData()
JOBS = sa.Table(
  "batch_jobs",
  METADATA,
  sa.Column("id", sa.String(32), primary_key=True),
  # What a batch of the command line is found again by; NULL for the jobs of the service.
  sa.Column("key", sa.String(64), unique=True),
  sa.Column("owner", sa.String(64), nullable=False),
  sa.Column("state", sa.String(16), nullable=False),
  sa.Column("directory", sa.LargeBinary),
  sa.Column("settings", sa.Text, nullable=False),
  sa.Column("problem", sa.Text),
  sa.Column("created_at", sa.Double, nullable=False),
  sa.Column("finished_at", sa.Double),
  # Whose files only one node has: which, and when it was last seen alive.
  sa.Column("node", sa.String(64)),
  sa.Column("node_seen_at", sa.Double),
  # The lease of listing, and later of calling the webhook.
  sa.Column("lease_until", sa.Double, nullable=False, server_default="0"),
  sa.Column("webhook", sa.Text),
  sa.Column("webhook_state", sa.String(16)),
  sa.Column("webhook_tries", sa.Integer, nullable=False, server_default="0"),
  sa.Index("batch_jobs_by_state", "state", "created_at"),
  sa.Index("batch_jobs_by_webhook", "webhook_state", "lease_until"),
)
ITEMS = sa.Table(
  "batch_items",
  METADATA,
  sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
  sa.Column("job", sa.String(32), nullable=False),
  # Bytes, for a name need not be text.
  sa.Column("path", sa.LargeBinary, nullable=False),
  sa.Column("file_state", sa.String(64), nullable=False),
  sa.Column("state", sa.String(16), nullable=False),
  sa.Column("claims", sa.Integer, nullable=False, server_default="0"),
  sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
  sa.Column("interruptions", sa.Integer, nullable=False, server_default="0"),
  sa.Column("owner", sa.String(160)),
  sa.Column("lease_until", sa.Double),
  sa.Column("finished_at", sa.Double),
  sa.Column("sha256", sa.String(64)),
  # Of the verdict, or the code of what kept the file from having one.
  sa.Column("outcome", sa.String(64)),
  sa.Column("answer", sa.Text),
  sa.UniqueConstraint("job", "path"),
  sa.Index("batch_items_to_claim", "job", "state", "claims", "id"),
  sa.Index("batch_items_by_lease", "job", "state", "lease_until"),
  sa.Index("batch_items_in_order", "job", "id"),
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A row of JOBS, as it was when it was read.

  Attributes:
    id: 32 hexadecimal digits that cannot be guessed.
    owner: id of the key that made it; "" on the command line.
    state: one of JOB_STATES.
    directory: of its files, as bytes; None for an upload.
    settings: what the files are judged with, JSON-able.
    problem: {"code", "message"} where the state is FAILED, else None.
    created_at, finished_at: seconds since 1970.
    node: the only one that has its files; None: all do.
    webhook, webhook_state: where its end is told, and "waiting", "told" or "gave_up"; None: nowhere.
    webhook_tries: how often that was tried.
  """

  id: str
  owner: str
  state: str
  directory: bytes | None
  settings: dict
  problem: dict | None
  created_at: float
  finished_at: float | None
  node: str | None
  webhook: str | None
  webhook_state: str | None
  webhook_tries: int


@dataclasses.dataclass(frozen=True)
class Lease:
  """An item that is ours for a while.

  Attributes:
    item, job: ids.
    path: as it was added.
    owner: who we are.
    claim: how often the item was taken, this time included: an older lease of the same item differs in it.
    tries: those that count against it, this one included.
  """

  item: int
  job: str
  path: bytes
  owner: str
  claim: int
  tries: int


@dataclasses.dataclass(frozen=True)
class Answered:
  """An item that is done or failed.

  Attributes:
    item: its id.
    path: as it was added.
    state: DONE where there is a verdict, FAILED where there is an error in its place.
    tries: how many counted.
    answer: verdict.Verdict.to_dict(), or report.Unread.to_dict().
  """

  item: int
  path: bytes
  state: str
  tries: int
  answer: dict


@dataclasses.dataclass(frozen=True)
class Known:
  """An item whose file is not in the state it was added in; `sha256` None: that was not known."""

  item: int
  path: bytes
  sha256: str | None
  file_state: str


def open_database(url: str | Path) -> sa.Engine:
  """Returns a database that has the tables of this module; `url` and errors as of databases.connect."""
  database = databases.connect(url)
  databases.make_tables(database, METADATA)
  return database


class Ledger:
  """The jobs and items of one database.

  Args:
    database: any number of Ledgers, threads and processes may use it at once.
  """

  def __init__(self, database: sa.Engine):
    self._database = database
    self._insert = (postgresql if database.dialect.name == "postgresql" else sqlite).insert
    # SQLite before 3.42 has no unixepoch with fractions.
    now = (
      "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
      if database.dialect.name == "postgresql"
      else "((julianday('now') - 2440587.5) * 86400.0)"
    )
    self._now = sa.literal_column(now, sa.Double)

  def create_tables(self) -> None:
    """Makes what is missing; several processes may do so at once."""
    databases.make_tables(self._database, METADATA)

  def now(self) -> float:
    """The database's time, seconds since 1970."""
    with self._database.connect() as connection:
      return connection.execute(sa.select(self._now)).scalar_one()

  # Jobs

  def open_job(
    self,
    *,
    settings: Mapping,
    directory: bytes | None,
    key: str | None = None,
    owner: str = "",
    state: str = RUNNING,
    node: str | None = None,
    webhook: str | None = None,
    leased_s: float = 0.0,
  ) -> Job:
    """Returns the job of a key, made where there is none, or a new one where the key is None.

    Args:
      settings: what its files are judged with.
      directory: of its files.
      key, owner, state, node, webhook: as of JOBS.
      leased_s: so long `claim_listing` leaves it to the caller.
    """
    row = {
      "id": secrets.token_hex(16),
      "key": key,
      "owner": owner,
      "state": state,
      "directory": directory,
      "settings": json.dumps(dict(settings), sort_keys=True),
      "created_at": self._now,
      "lease_until": self._now + leased_s,
      "node": node,
      "node_seen_at": self._now if node else None,
      "webhook": webhook,
      "webhook_state": "waiting" if webhook else None,
    }
    insert = self._insert(JOBS).values(**row).on_conflict_do_nothing(index_elements=["key"])
    with databases.writing(self._database) as connection:
      connection.execute(insert)
    found = self._jobs(JOBS.c.key == key if key else JOBS.c.id == row["id"])
    return found[0]

  def job(self, job: str, *, owner: str | None = None) -> Job | None:
    """The job of an id; None where there is none, or it is not the owner's."""
    mine = [] if owner is None else [JOBS.c.owner == owner]
    return next(iter(self._jobs(JOBS.c.id == job, *mine)), None)

  def job_of(self, key: str) -> Job | None:
    """The job of a key."""
    return next(iter(self._jobs(JOBS.c.key == key)), None)

  def jobs(self, state: str, *, node: str | None = None) -> list[Job]:
    """Those in a state, the oldest first, without those whose files another node has."""
    return self._jobs(JOBS.c.state == state, sa.or_(JOBS.c.node.is_(None), JOBS.c.node == node))

  def go_on(self, job: str) -> None:
    """A job that had ended is running again."""
    self._set_job(job, (DONE, CANCELLED), state=RUNNING, finished_at=None)

  def listed(self, job: str) -> bool:
    """A job's files are all there; False where it is not listing any more."""
    return self._set_job(job, (LISTING,), state=RUNNING, lease_until=0)

  def refuse(self, job: str, *, code: str, message: str) -> bool:
    """A job ends with a problem of its own; its items are cancelled."""
    problem = json.dumps({"code": code, "message": message})
    return self._end(job, state=FAILED, problem=problem)

  def cancel(self, job: str) -> bool:
    """Ends a job; what was answered stays, what is being judged now is thrown away. False: it had ended."""
    return self._end(job, state=CANCELLED)

  def cancel_items(self, job: str) -> int:
    """Cancels what is open of a job that has ended; returns how many items."""
    update = (
      sa.update(ITEMS)
      .where(ITEMS.c.job == job, ITEMS.c.state.in_(OPEN))
      .values(state=CANCELLED, owner=None, lease_until=None)
    )
    return self._count(update)

  def complete(self, job: str) -> bool:
    """Ends a job all of whose items are answered; True for the one caller who has done so."""
    still_open = sa.exists().where(ITEMS.c.job == job, ITEMS.c.state.in_(OPEN))
    return self._set_job(job, (RUNNING,), ~still_open, state=DONE, finished_at=self._now)

  def forget(self, job: str) -> None:
    """Removes a job with its items and answers."""
    with databases.writing(self._database) as connection:
      connection.execute(sa.delete(ITEMS).where(ITEMS.c.job == job))
      connection.execute(sa.delete(JOBS).where(JOBS.c.id == job))

  def forget_older(self, seconds: float) -> int:
    """Removes the service's jobs that ended so long ago, unless their webhook waits; returns how many."""
    old = sa.select(JOBS.c.id).where(
      JOBS.c.key.is_(None),
      JOBS.c.finished_at < self._now - seconds,
      JOBS.c.webhook_state.is_distinct_from("waiting"),
    )
    with self._database.connect() as connection:
      ids = connection.execute(old).scalars().all()
    for job in ids:
      self.forget(job)
    return len(ids)

  def open_jobs_of(self, owner: str) -> int:
    """How many jobs of an owner are listing or running."""
    count = sa.select(sa.func.count()).where(JOBS.c.owner == owner, JOBS.c.state.in_((LISTING, RUNNING)))
    with self._database.connect() as connection:
      return connection.execute(count).scalar_one()

  def stats(self) -> dict:
    """For metrics: "jobs" that are under way, by state; "expired_leases" of theirs, which nobody renews and
    nobody has taken yet; "waiting_webhooks"."""
    is_open = JOBS.c.state.in_((LISTING, RUNNING))
    by_state = sa.select(JOBS.c.state, sa.func.count()).where(is_open).group_by(JOBS.c.state)
    running = sa.select(JOBS.c.id).where(JOBS.c.state == RUNNING)
    expired = sa.select(sa.func.count()).where(
      ITEMS.c.job.in_(running), ITEMS.c.state == RUNNING, ITEMS.c.lease_until < self._now
    )
    waiting = sa.select(sa.func.count()).where(
      JOBS.c.webhook_state == "waiting", JOBS.c.state.not_in((LISTING, RUNNING))
    )
    with self._database.connect() as connection:
      return {
        "jobs": {LISTING: 0, RUNNING: 0} | {state: n for state, n in connection.execute(by_state)},
        "expired_leases": connection.execute(expired).scalar_one(),
        "waiting_webhooks": connection.execute(waiting).scalar_one(),
      }

  def claim_listing(self, *, lease_s: float = LEASE_S) -> Job | None:
    """A job whose files nobody looks for yet, ours to list for so many seconds."""
    return self._claim_job(JOBS.c.state == LISTING, lease_s)

  def renew_listing(self, job: str, *, lease_s: float = LEASE_S) -> bool:
    """The listing goes on; False where the job has ended."""
    return self._set_job(job, (LISTING,), lease_until=self._now + lease_s)

  def claim_webhook(self, *, lease_s: float = LEASE_S) -> Job | None:
    """A job that has ended and whose webhook is due, ours to call for so many seconds."""
    due = (JOBS.c.webhook_state == "waiting", JOBS.c.state.in_((DONE, FAILED, CANCELLED)))
    return self._claim_job(sa.and_(*due), lease_s, webhook_tries=JOBS.c.webhook_tries + 1)

  def webhook_told(self, job: str, *, state: str, again_s: float = 0.0) -> None:
    """What came of calling it: "told", "gave_up", or "waiting" for so many seconds."""
    self._set_job(job, JOB_STATES, webhook_state=state, lease_until=self._now + again_s)

  def seen_alive(self, node: str) -> None:
    """A node still has the files of its jobs."""
    with databases.writing(self._database) as connection:
      connection.execute(
        sa.update(JOBS).where(JOBS.c.state == RUNNING, JOBS.c.node == node).values(node_seen_at=self._now)
      )

  def give_up_lost_nodes(self, seconds: float) -> int:
    """Ends running jobs whose node was not seen for so long, with their files; returns how many."""
    with self._database.connect() as connection:
      lost = connection.execute(
        sa.select(JOBS.c.id).where(
          JOBS.c.state == RUNNING, JOBS.c.node.is_not(None), JOBS.c.node_seen_at < self._now - seconds
        )
      ).scalars()
      ids = lost.all()
    message = "The server that had received this file is gone; send it again."
    return sum(self.refuse(job, code="upload_lost", message=message) for job in ids)

  # Items

  def add(self, job: str, files: Iterable[tuple[bytes, str]]) -> Iterator[Known]:
    """Adds files, a few hundred at a time; yields those that were answered in another state than now.

    Args:
      job: id.
      files: path and state (see `file_state`) of each.
    """
    chunk: list[tuple[bytes, str]] = []
    for file in files:
      chunk.append(file)
      if len(chunk) == _ROWS_AT_ONCE:
        yield from self._add(job, chunk)
        chunk = []
    if chunk:
      yield from self._add(job, chunk)

  def known(self, job: str, paths: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
    """State and file_state of those of the paths that the job has."""
    columns = ITEMS.c.path, ITEMS.c.state, ITEMS.c.file_state
    with self._database.connect() as connection:
      rows = connection.execute(sa.select(*columns).where(ITEMS.c.job == job, ITEMS.c.path.in_(paths)))
      return {path: (state, file_state) for path, state, file_state in rows}

  def same_file(self, known: Known) -> None:
    """The file's bytes are what they were; its answer stays."""
    with databases.writing(self._database) as connection:
      connection.execute(sa.update(ITEMS).where(ITEMS.c.id == known.item).values(file_state=known.file_state))

  def judge_again(self, known: Known) -> None:
    """The file is another one now; its answer is dropped, and it is queued as if it were new."""
    self._requeue(ITEMS.c.id == known.item, file_state=known.file_state)

  def retry(self, job: str) -> int:
    """Queues all items without a verdict once more, as if they were new; returns how many."""
    return self._requeue(ITEMS.c.job == job, ITEMS.c.state == FAILED)

  def claim(self, job: str, owner: str, *, lease_s: float = LEASE_S) -> Lease | None:
    """Takes the next item of a job; None where nothing is queued.

    The try is counted before this returns. Of what is queued, that which was claimed least comes first.
    """
    # Two statements, each on its own index: one that also looks for leases that ran out reads all rows, and
    # starves whoever comes second.
    queued = self._next_item(job)
    update = (
      sa.update(ITEMS)
      .where(ITEMS.c.id == queued, ITEMS.c.state == QUEUED)
      .values(
        state=RUNNING,
        owner=owner,
        claims=ITEMS.c.claims + 1,
        tries=ITEMS.c.tries + 1,
        lease_until=self._now + lease_s,
      )
      .returning(ITEMS.c.id, ITEMS.c.path, ITEMS.c.claims, ITEMS.c.tries)
    )
    for _ in range(2):
      with databases.writing(self._database) as connection:
        row = connection.execute(update).first()
      if row is not None:
        return Lease(item=row[0], job=job, path=row[1], owner=owner, claim=row[2], tries=row[3])
      if not self.take_back_expired(job):
        return None
    return None

  def heartbeat(self, owner: str, *, lease_s: float = LEASE_S) -> int:
    """Renews all leases of an owner; returns how many there are."""
    mine = (ITEMS.c.owner == owner, ITEMS.c.state == RUNNING)
    return self._count(sa.update(ITEMS).where(*mine).values(lease_until=self._now + lease_s))

  def finish(self, lease: Lease, answer: Mapping) -> bool:
    """Writes the answer of an item and ends its lease; False where that was lost: the answer is not written.

    Args:
      lease: of the item.
      answer: of a verdict, or of what stands in its place, as to_dict gives it.
    """
    error = answer.get("error")
    return self._end_lease(
      lease,
      state=FAILED if error else DONE,
      outcome=error["code"] if error else answer["outcome"],
      sha256=answer.get("file", {}).get("sha256"),
      answer=json.dumps(answer, allow_nan=False),
      finished_at=self._now,
    )

  def fail(self, lease: Lease, error: Mapping) -> str | None:
    """A try has failed; the item is queued again, or FAILED with this error after MOST_TRIES.

    Returns:
      The item's new state; None where the lease was lost.
    """
    if lease.tries >= MOST_TRIES:
      return FAILED if self.finish(lease, error) else None
    return QUEUED if self._end_lease(lease, state=QUEUED) else None

  def release(self, lease: Lease) -> bool:
    """Gives an item back as if it had not been tried; False where the lease was lost."""
    return self._end_lease(lease, state=QUEUED, tries=ITEMS.c.tries - 1)

  def release_all(self, owner: str) -> int:
    """`release` of all leases of an owner; returns how many."""
    update = (
      sa.update(ITEMS)
      .where(ITEMS.c.owner == owner, ITEMS.c.state == RUNNING)
      .values(state=QUEUED, tries=ITEMS.c.tries - 1, owner=None, lease_until=None)
    )
    return self._count(update)

  def holds(self, lease: Lease) -> bool:
    """Whether the lease is not lost."""
    with self._database.connect() as connection:
      return connection.execute(sa.select(ITEMS.c.id).where(*_held(lease))).first() is not None

  def take_back_expired(self, job: str) -> int:
    """Ends the leases that ran out; returns how many items are queued again."""
    return self._interrupt(job, ITEMS.c.lease_until < self._now)

  def take_back_dead(self, job: str) -> int:
    """As `take_back_expired`, of the leases of processes of this machine that are no more."""
    with self._database.connect() as connection:
      owners = connection.execute(
        sa.select(ITEMS.c.owner).distinct().where(ITEMS.c.job == job, ITEMS.c.state == RUNNING)
      ).scalars()
      dead = [owner for owner in owners if owner and has_died(owner)]
    return self._interrupt(job, ITEMS.c.owner.in_(dead)) if dead else 0

  def counts(self, job: str) -> dict[str, int]:
    """How many items are in each of ITEM_STATES."""
    select = sa.select(ITEMS.c.state, sa.func.count()).where(ITEMS.c.job == job).group_by(ITEMS.c.state)
    with self._database.connect() as connection:
      return dict.fromkeys(ITEM_STATES, 0) | {state: n for state, n in connection.execute(select)}

  def outcomes(self, job: str) -> dict[str, int]:
    """How many answered items have each outcome, or code in its place."""
    select = (
      sa.select(ITEMS.c.outcome, sa.func.count())
      .where(ITEMS.c.job == job, ITEMS.c.state.in_(ANSWERED))
      .group_by(ITEMS.c.outcome)
    )
    with self._database.connect() as connection:
      return {outcome: count for outcome, count in connection.execute(select)}

  def answers(self, job: str, *, after: int = 0, limit: int | None = None) -> Iterator[Answered]:
    """The answered items in the order in which they were added, behind the item `after`."""
    columns = ITEMS.c.id, ITEMS.c.path, ITEMS.c.state, ITEMS.c.tries, ITEMS.c.answer
    left = limit
    while left is None or left > 0:
      page = min(left or _ROWS_AT_ONCE, _ROWS_AT_ONCE)
      select = (
        sa.select(*columns)
        .where(ITEMS.c.job == job, ITEMS.c.id > after, ITEMS.c.state.in_(ANSWERED))
        .order_by(ITEMS.c.id)
        .limit(page)
      )
      with self._database.connect() as connection:
        rows = connection.execute(select).all()
      for item, path, state, tries, answer in rows:
        yield Answered(item, path, state, tries, json.loads(answer))
      if len(rows) < page:
        return
      after = rows[-1][0]
      left = None if left is None else left - len(rows)

  def paths(self, job: str) -> list[bytes]:
    """Of all items."""
    with self._database.connect() as connection:
      return list(connection.execute(sa.select(ITEMS.c.path).where(ITEMS.c.job == job)).scalars())

  def uploads_of(self, node: str, paths: Sequence[bytes]) -> set[bytes]:
    """Those of the paths that open jobs of the node still need."""
    select = (
      sa.select(ITEMS.c.path)
      .join(JOBS, JOBS.c.id == ITEMS.c.job)
      .where(JOBS.c.node == node, ITEMS.c.state.in_(OPEN), ITEMS.c.path.in_(paths))
    )
    with self._database.connect() as connection:
      return set(connection.execute(select).scalars())

  # What they share

  def _jobs(self, *where) -> list[Job]:
    names = [field.name for field in dataclasses.fields(Job)]
    select = sa.select(*(JOBS.c[name] for name in names)).where(*where).order_by(JOBS.c.created_at)
    with self._database.connect() as connection:
      rows = connection.execute(select).mappings().all()
    return [
      Job(
        **{
          **row,
          "settings": json.loads(row["settings"]),
          "problem": json.loads(row["problem"]) if row["problem"] else None,
        }
      )
      for row in rows
    ]

  def _set_job(self, job: str, states: Sequence[str], *where, **values) -> bool:
    update = sa.update(JOBS).where(JOBS.c.id == job, JOBS.c.state.in_(states), *where).values(**values)
    return self._count(update) == 1

  def _end(self, job: str, *, state: str, problem: str | None = None) -> bool:
    with databases.writing(self._database) as connection:
      ended = connection.execute(
        sa.update(JOBS)
        .where(JOBS.c.id == job, JOBS.c.state.in_((LISTING, RUNNING)))
        .values(state=state, problem=problem, finished_at=self._now, lease_until=0)
      )
    if ended.rowcount == 1:
      self.cancel_items(job)
    return ended.rowcount == 1

  def _claim_job(self, where, lease_s: float, **values) -> Job | None:
    due = (where, JOBS.c.lease_until < self._now)
    chosen = sa.select(JOBS.c.id).where(*due).order_by(JOBS.c.created_at).limit(1)
    if self._database.dialect.name == "postgresql":
      chosen = chosen.with_for_update(skip_locked=True)
    update = (
      sa.update(JOBS)
      .where(JOBS.c.id == chosen.scalar_subquery(), *due)
      .values(lease_until=self._now + lease_s, **values)
      .returning(JOBS.c.id)
    )
    with databases.writing(self._database) as connection:
      job = connection.execute(update).scalar()
    return self.job(job) if job else None

  def _add(self, job: str, files: Sequence[tuple[bytes, str]]) -> Iterator[Known]:
    columns = ITEMS.c.path, ITEMS.c.id, ITEMS.c.state, ITEMS.c.file_state, ITEMS.c.sha256
    with self._database.connect() as connection:
      rows = connection.execute(
        sa.select(*columns).where(ITEMS.c.job == job, ITEMS.c.path.in_([path for path, _ in files]))
      )
      there = {path: known for path, *known in rows}
    if new := [
      {"job": job, "path": path, "file_state": state, "state": QUEUED}
      for path, state in files
      if path not in there
    ]:
      # Another process may have added them since.
      with databases.writing(self._database) as connection:
        connection.execute(self._insert(ITEMS).on_conflict_do_nothing(), new)
    for path, state in files:
      if path in there:
        item, item_state, before, sha256 = there[path]
        if item_state in (*ANSWERED, CANCELLED) and (before != state or item_state == CANCELLED):
          yield Known(item, path, sha256 if item_state == DONE else None, state)

  def _next_item(self, job: str):
    chosen = (
      sa.select(ITEMS.c.id)
      .where(ITEMS.c.job == job, ITEMS.c.state == QUEUED)
      .order_by(ITEMS.c.claims, ITEMS.c.id)
      .limit(1)
    )
    if self._database.dialect.name == "postgresql":
      chosen = chosen.with_for_update(skip_locked=True)
    return chosen.scalar_subquery()

  def _requeue(self, *where, **values) -> int:
    empty = dict.fromkeys(("owner", "lease_until", "finished_at", "sha256", "outcome", "answer"))
    update = (
      sa.update(ITEMS)
      .where(*where, ITEMS.c.state.not_in(OPEN))
      .values(state=QUEUED, tries=0, interruptions=0, **empty, **values)
    )
    return self._count(update)

  def _end_lease(self, lease: Lease, **values) -> bool:
    update = sa.update(ITEMS).where(*_held(lease)).values(owner=None, lease_until=None, **values)
    return self._count(update) == 1

  def _interrupt(self, job: str, *where) -> int:
    lost = (ITEMS.c.job == job, ITEMS.c.state == RUNNING, *where)
    last = ITEMS.c.interruptions + 1 >= MOST_INTERRUPTIONS
    counted = {
      "tries": ITEMS.c.tries - 1,
      "interruptions": ITEMS.c.interruptions + 1,
      "owner": None,
      "lease_until": None,
    }
    message = (
      f"The work on this file was broken off {MOST_INTERRUPTIONS} times without a word, as when a machine "
      "runs out of memory; judge it by itself."
    )
    select = sa.select(ITEMS.c.id, ITEMS.c.path).where(*lost, last)
    with self._database.connect() as connection:
      given_up = connection.execute(select).all()
    for item, path in given_up:
      answer = json.dumps(answers.unread(path, code=INTERRUPTED, message=message))
      values = {"state": FAILED, "outcome": INTERRUPTED, "answer": answer, "finished_at": self._now}
      self._count(sa.update(ITEMS).where(*lost, last, ITEMS.c.id == item).values(**counted, **values))
    return self._count(sa.update(ITEMS).where(*lost, ~last).values(state=QUEUED, **counted))

  def _count(self, statement) -> int:
    with databases.writing(self._database) as connection:
      return connection.execute(statement).rowcount


def file_state(facts: os.stat_result) -> str:
  """What changes when a file is replaced or written to, and is the same on all machines that share it."""
  return f"{facts.st_size}:{facts.st_mtime_ns}"


def new_owner() -> str:
  """A name for this process, or a part of it, as holder of leases; `has_died` reads it."""
  process = psutil.Process()
  return f"{this_machine()}/{process.pid}/{process.create_time():.2f}/{secrets.token_hex(8)}"


def has_died(owner: str) -> bool:
  """Whether an owner was a process of this machine, and is no more; False where one cannot know."""
  try:
    machine, pid, created, _ = owner.split("/")
    if machine != this_machine():
      return False
    process = psutil.Process(int(pid))
    return abs(process.create_time() - float(created)) > 0.1 or process.status() == psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return True
  except (ValueError, psutil.Error):
    return False


@functools.cache
def this_machine() -> str:
  """A name of this machine since it was started, and of this container where process numbers are its own."""
  facts = [socket.gethostname(), platform.node()]
  for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
    try:
      facts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text(encoding="ascii"))
    except OSError:
      facts.append("")  # Not Linux.
  return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _held(lease: Lease) -> tuple:
  return (
    ITEMS.c.id == lease.item,
    ITEMS.c.owner == lease.owner,
    ITEMS.c.claims == lease.claim,
    ITEMS.c.state == RUNNING,
  )
