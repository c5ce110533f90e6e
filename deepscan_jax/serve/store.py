"""The service's database: its tables, past answers, answers that may be asked for twice, and feedback.

SQLite for one process, PostgreSQL by URL for several. Times are seconds since 1970. Callers run these
functions in threads, so that nobody else waits.
"""

import dataclasses
import json
import secrets
import time
import zlib
from collections.abc import Callable

import sqlalchemy as sa

from deepscan_jax.serve import databases

METADATA = sa.MetaData()
KEYS = sa.Table(
  "keys",
  METADATA,
  sa.Column("id", sa.String(8), primary_key=True),
  sa.Column("digest", sa.LargeBinary(32), nullable=False),
  sa.Column("label", sa.String(200), nullable=False),
  sa.Column("scopes", sa.String(200), nullable=False),
  sa.Column("created", sa.Float, nullable=False),
  sa.Column("expires", sa.Float),
  sa.Column("revoked", sa.Float),
  sa.Column("requests_per_hour", sa.Integer),
)
RESULTS = sa.Table(
  "results",
  METADATA,
  sa.Column("id", sa.String(32), primary_key=True),
  sa.Column("key_id", sa.String(32), nullable=False),
  # Whose requests it may answer again; "" is everybody's.
  sa.Column("shared_with", sa.String(32), nullable=False),
  sa.Column("sha256", sa.String(64), nullable=False),
  sa.Column("model", sa.String(64), nullable=False),
  sa.Column("settings", sa.String(300), nullable=False),
  sa.Column("created", sa.Float, nullable=False, index=True),
  sa.Column("size", sa.Integer, nullable=False),
  sa.Column("body", sa.LargeBinary, nullable=False),
  sa.Index("results_by_file", "sha256", "model", "settings", "shared_with"),
)
ANSWERS = sa.Table(
  "idempotent_answers",
  METADATA,
  sa.Column("key_id", sa.String(32), primary_key=True),
  sa.Column("idempotency_key", sa.String(128), primary_key=True),
  sa.Column("request", sa.String(64), nullable=False),
  sa.Column("owner", sa.String(32), nullable=False),
  sa.Column("started", sa.Float, nullable=False, index=True),
  # None while the first request is under way.
  sa.Column("status", sa.Integer),
  sa.Column("headers", sa.Text),
  sa.Column("body", sa.LargeBinary),
)
FEEDBACK = sa.Table(
  "feedback",
  METADATA,
  sa.Column("id", sa.String(32), primary_key=True),
  sa.Column("result_id", sa.String(32), nullable=False, index=True),
  sa.Column("key_id", sa.String(32), nullable=False),
  sa.Column("created", sa.Float, nullable=False, index=True),
  sa.Column("label", sa.String(20), nullable=False),
  sa.Column("comment", sa.Text, nullable=False),
  # Of the answer, which will be gone when somebody reads this.
  sa.Column("sha256", sa.String(64), nullable=False),
  sa.Column("model", sa.String(64), nullable=False),
  sa.Column("outcome", sa.String(30), nullable=False),
  sa.Column("deepfake_probability", sa.Float),
)

IDEMPOTENT_FOR_S = 24 * 3600.0
# Made once: making a statement takes longer than SQLite needs to answer it.
_FIND_RESULT = (
  sa.select(RESULTS.c.id, RESULTS.c.body)
  .where(
    RESULTS.c.sha256 == sa.bindparam("of_sha256"),
    RESULTS.c.model == sa.bindparam("of_model"),
    RESULTS.c.settings == sa.bindparam("of_settings"),
    RESULTS.c.shared_with == sa.bindparam("of_shared_with"),
    RESULTS.c.created > sa.bindparam("after"),
  )
  .order_by(RESULTS.c.created.desc())
  .limit(1)
)


def open_database(url: str) -> sa.Engine:
  """The service's database, with the tables of this module; `url` and errors as of databases.connect.

  The folder of an SQLite file is made.
  """
  database = databases.connect(url, make_folder=True)
  databases.make_tables(database, METADATA)
  return database


@dataclasses.dataclass(frozen=True)
class StoredAnswer:
  """An answer that was given before; `headers` are those that belong to it."""

  status: int
  headers: dict[str, str]
  body: bytes


class KeyReused(Exception):
  """An Idempotency-Key came with another request before."""


class InProgress(Exception):
  """The first request with this Idempotency-Key is under way."""


class Store:
  """Results, idempotent answers and feedback.

  Args:
    database: of `open_database`.
    kept_s: how long results are kept; 0 keeps none.
    most_bytes: how many bytes results may take.
    in_progress_s: after so long, a request that has not ended is taken for lost with its process.
    clock: seconds since 1970.
  """

  def __init__(
    self,
    database: sa.Engine,
    *,
    kept_s: float,
    most_bytes: int,
    in_progress_s: float = 1800.0,
    clock: Callable[[], float] = time.time,
  ):
    self._database, self._kept_s, self._most_bytes = database, kept_s, most_bytes
    self._in_progress_s, self._clock = in_progress_s, clock
    self._results = databases.Insert(database, sa.insert(RESULTS))

  def is_well(self) -> bool:
    """Whether the database answers."""
    try:
      with self._database.connect() as connection:
        return connection.execute(sa.select(1)).scalar_one() == 1
    except sa.exc.SQLAlchemyError:
      return False

  # Results -----------------------------------------------------------------------------------------------

  def find_result(
    self, *, sha256: str, model: str, settings: str, shared_with: str
  ) -> tuple[str, dict] | None:
    """The id and the answer for a file that was judged before; None where it was not, or is forgotten."""
    if not self._kept_s:
      return None
    asked = {
      "of_sha256": sha256,
      "of_model": model,
      "of_settings": settings,
      "of_shared_with": shared_with,
      "after": self._clock() - self._kept_s,
    }
    with self._database.connect() as connection:
      row = connection.execute(_FIND_RESULT, asked).first()
    return (row.id, json.loads(zlib.decompress(row.body))) if row else None

  def result(self, result_id: str) -> dict | None:
    """The answer of an id, whoever got it; None where it is forgotten."""
    query = sa.select(RESULTS.c.body).where(RESULTS.c.id == result_id)
    with self._database.connect() as connection:
      body = connection.execute(query).scalar()
    return None if body is None else json.loads(zlib.decompress(body))

  def add_result(
    self, answer: dict, *, key_id: str, sha256: str, model: str, settings: str, shared_with: str
  ) -> str:
    """Keeps an answer, and returns the id by which feedback names it."""
    result_id = new_id()
    if self._kept_s:
      body = zlib.compress(json.dumps(answer).encode(), 3)
      row = {
        "id": result_id,
        "key_id": key_id,
        "shared_with": shared_with,
        "sha256": sha256,
        "model": model,
        "settings": settings,
        "created": self._clock(),
        "size": len(body),
        "body": body,
      }
      self._results.add(row)
    return result_id

  # Feedback ----------------------------------------------------------------------------------------------

  def add_feedback(self, result_id: str, *, key_id: str, label: str, comment: str) -> str | None:
    """Keeps what somebody says of an answer; returns its id, or None where this key has no such answer."""
    query = sa.select(RESULTS).where(
      RESULTS.c.id == result_id,
      (RESULTS.c.key_id == key_id) | (RESULTS.c.shared_with == ""),
      RESULTS.c.created > self._clock() - self._kept_s,
    )
    with databases.writing(self._database) as connection:
      result = connection.execute(query).first()
      if result is None:
        return None
      answer = json.loads(zlib.decompress(result.body))
      row = {
        "id": new_id(),
        "result_id": result_id,
        "key_id": key_id,
        "created": self._clock(),
        "label": label,
        "comment": comment,
        "sha256": result.sha256,
        "model": result.model,
        "outcome": answer["outcome"],
        "deepfake_probability": answer["deepfake_probability"],
      }
      connection.execute(sa.insert(FEEDBACK), row)
    return row["id"]

  # Idempotent answers ------------------------------------------------------------------------------------

  def begin_answer(
    self, key_id: str, idempotency_key: str, request: str, *, owner: str
  ) -> StoredAnswer | None:
    """Claims an Idempotency-Key for a request; returns the answer that it was given before, if it was.

    Args:
      key_id: of the API key.
      idempotency_key: as the client sent it.
      request: SHA-256, in hexadecimal digits, of what makes it this request and no other.
      owner: names this attempt; `end_answer` and `drop_answer` want it again.

    Raises:
      KeyReused: it was another request.
      InProgress: it is being answered.
    """
    now = self._clock()
    claim = {
      "request": request,
      "owner": owner,
      "started": now,
      "status": None,
      "headers": None,
      "body": None,
    }
    mine = (ANSWERS.c.key_id == key_id) & (ANSWERS.c.idempotency_key == idempotency_key)
    try:
      with databases.writing(self._database) as connection:
        connection.execute(
          sa.insert(ANSWERS), {"key_id": key_id, "idempotency_key": idempotency_key, **claim}
        )
      return None
    except sa.exc.IntegrityError:
      pass  # there is one, and it says what to do
    with databases.writing(self._database) as connection:
      row = connection.execute(sa.select(ANSWERS).where(mine)).first()
      if row is not None:
        forgotten = row.started < now - IDEMPOTENT_FOR_S
        lost = row.status is None and row.started < now - self._in_progress_s
        if row.request != request and not forgotten:
          raise KeyReused
        if row.status is not None and not forgotten:
          return StoredAnswer(row.status, json.loads(row.headers), zlib.decompress(row.body))
        if forgotten or lost:
          taken = connection.execute(
            sa.update(ANSWERS).where(mine, ANSWERS.c.owner == row.owner).values(claim)
          )
          if taken.rowcount:
            return None
    raise InProgress

  def end_answer(self, key_id: str, idempotency_key: str, answer: StoredAnswer, *, owner: str) -> None:
    """Keeps the answer for whoever asks again."""
    values = {
      "status": answer.status,
      "headers": json.dumps(answer.headers),
      "body": zlib.compress(answer.body, 3),
    }
    with databases.writing(self._database) as connection:
      connection.execute(sa.update(ANSWERS).where(self._claim(key_id, idempotency_key, owner)).values(values))

  def drop_answer(self, key_id: str, idempotency_key: str, *, owner: str) -> None:
    """Gives the Idempotency-Key back: the request may be tried again."""
    with databases.writing(self._database) as connection:
      connection.execute(
        sa.delete(ANSWERS).where(self._claim(key_id, idempotency_key, owner), ANSWERS.c.status.is_(None))
      )

  @staticmethod
  def _claim(key_id: str, idempotency_key: str, owner: str):
    return (
      (ANSWERS.c.key_id == key_id)
      & (ANSWERS.c.idempotency_key == idempotency_key)
      & (ANSWERS.c.owner == owner)
    )

  # Cleaning ----------------------------------------------------------------------------------------------

  def clean(self) -> int:
    """Deletes what is too old, and of results the oldest that are too much; returns how many rows."""
    now = self._clock()
    with databases.writing(self._database) as connection:
      gone = connection.execute(sa.delete(RESULTS).where(RESULTS.c.created <= now - self._kept_s)).rowcount
      gone += connection.execute(
        sa.delete(ANSWERS).where(ANSWERS.c.started <= now - IDEMPOTENT_FOR_S)
      ).rowcount
      # Idempotent answers hold reports too, and are bounded likewise.
      size = sa.func.length(ANSWERS.c.body)
      own = (ANSWERS.c.key_id, ANSWERS.c.idempotency_key)
      finished = ANSWERS.c.body.is_not(None)
      gone += self._shrink(connection, (RESULTS.c.id,), RESULTS.c.size, RESULTS.c.created, sa.true())
      gone += self._shrink(connection, own, size, ANSWERS.c.started, finished)
    return gone

  def _shrink(self, connection: sa.Connection, key: tuple, size, age, where) -> int:
    """Deletes the oldest rows of the key's table until the rest may stay; returns how many."""
    total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(size), 0)).where(where)).scalar_one()
    if total <= self._most_bytes:
      return 0
    gone = 0
    for *row, bytes_ in connection.execute(sa.select(*key, size).where(where).order_by(age)).all():
      if total <= self._most_bytes:
        break
      same = [column == value for column, value in zip(key, row, strict=True)]
      connection.execute(sa.delete(key[0].table).where(*same))
      total, gone = total - bytes_, gone + 1
    return gone


def new_id() -> str:
  """22 random characters of base64, 128 bits."""
  return secrets.token_urlsafe(16)
