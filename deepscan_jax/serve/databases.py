"""Opens the database of a service or a batch: SQLite by default, PostgreSQL by URL."""

import contextlib
import dataclasses
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

# Any number, the same in all processes: PostgreSQL's lock while tables are made.
_MAKING_TABLES = 7271406
# Connections to an SQLite file that are kept open, at most.
_SQLITE_KEPT = 32


def connect(url: str | Path, *, make_folder: bool = False) -> sa.Engine:
  """Returns a database; it has been asked for nothing yet.

  Args:
    url: the path of an SQLite file, or a URL that begins with "sqlite:///", "postgresql://" or so. A new file
      is its owner's alone to read, for what is kept tells of people.
    make_folder: whether the folder of an SQLite file is made where it is missing, for its owner alone.

  Raises:
    ValueError: it cannot be used; one sentence, without the password in the URL.
  """
  text = str(url)
  try:
    address = sa.make_url(text if "://" in text else f"sqlite:///{text}")
  except (sa.exc.ArgumentError, ValueError) as error:
    # Without the URL itself, which may hold a password.
    raise ValueError("The database's URL is not one; give a file, or postgresql://USER@HOST/NAME.") from error
  if address.drivername in ("postgres", "postgresql"):
    address = address.set(drivername="postgresql+psycopg")
  kind = address.get_backend_name()
  if kind not in ("sqlite", "postgresql"):
    raise ValueError(f"The database can be one of SQLite or PostgreSQL, not of {kind!r}.")
  if kind == "sqlite":
    _private_file(address.database, make_folder=make_folder)
  try:
    # SQLite costs nothing to keep open, and nobody is to wait for, or make anew, what others hold.
    pool = {"pool_size": _SQLITE_KEPT, "max_overflow": -1} if kind == "sqlite" else {"pool_pre_ping": True}
    engine = sa.create_engine(address, **pool)
  except ImportError as error:
    raise ValueError(
      f"The database needs {error.name}, which is not installed; `pip install 'psycopg[binary]'` adds it."
    ) from error
  if kind == "sqlite":
    sa.event.listen(engine, "connect", _tune_sqlite)
    _WRITING[engine] = threading.Lock()
  return engine


@contextlib.contextmanager
def writing(database: sa.Engine) -> Iterator[sa.Connection]:
  """A transaction that writes, committed at the end; the threads of a process take turns at an SQLite file.

  SQLite lets one write at a time, and who finds it taken sleeps before it asks again, longer each time, up to
  a tenth of a second, however short the others are. A lock lets the next one in at once.
  """
  with _WRITING.get(database, contextlib.nullcontext()), database.begin() as connection:
    yield connection


class Insert:
  """Inserts rows of many threads; those that come while others are being written go in together.

  A thread that waits for the interpreter between two calls of SQLite holds up whoever writes next. With one
  transaction for all who wait, the time does not grow with their number. PostgreSQL writes for many at once,
  and there each row goes in by itself.

  Args:
    database: of `connect`.
    statement: an insert, executed with rows.
  """

  def __init__(self, database: sa.Engine, statement: sa.Insert):
    self._database, self._statement = database, statement
    self._taking, self._writing = threading.Lock(), threading.Lock()
    self._waiting: list[_Row] = []

  def add(self, values: dict) -> None:
    """Returns when the row is in the database.

    Raises:
      SQLAlchemyError: it could not be written.
    """
    if self._database not in _WRITING:
      self._write([values])
      return
    row = _Row(values)
    with self._taking:
      self._waiting.append(row)
    with self._writing:
      if not row.is_done:
        self._write_all()
    if row.error is not None:
      raise row.error

  def _write_all(self) -> None:
    with self._taking:
      rows, self._waiting = self._waiting, []
    try:
      self._write([row.values for row in rows])
    except Exception:
      # Whose row it is that cannot be written shows one by one.
      for row in rows:
        row.error = self._failure(row.values)
    for row in rows:
      row.is_done = True

  def _failure(self, values: dict) -> Exception | None:
    try:
      self._write([values])
    except Exception as error:  # whoever waits has to hear of it, whatever it is
      return error
    return None

  def _write(self, rows: list[dict]) -> None:
    with writing(self._database) as connection:
      connection.execute(self._statement, rows)


@dataclasses.dataclass
class _Row:
  values: dict
  is_done: bool = False
  error: Exception | None = None


# By engine, of SQLite files.
_WRITING: weakref.WeakKeyDictionary[sa.Engine, threading.Lock] = weakref.WeakKeyDictionary()


def make_tables(database: sa.Engine, metadata: sa.MetaData) -> None:
  """Makes the tables and indexes that are missing; several processes may do so at once.

  Raises:
    ValueError: the database cannot be used; one sentence, without the password in its URL.
  """
  try:
    with writing(database) as connection:
      if database.dialect.name == "postgresql":
        # IF NOT EXISTS alone lets two that come at the same time fail over the catalogue.
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MAKING_TABLES})"))
      for table in metadata.sorted_tables:
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: index.name):
          connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
  except sa.exc.DBAPIError as error:
    raise ValueError(f"The database {database.url!r} cannot be opened: {first_line(error)}.") from error


def first_line(error: sa.exc.DBAPIError) -> str:
  """What the database said, without the statement and the lines behind the first."""
  return str(error.orig).strip().partition("\n")[0].rstrip(".")


def _private_file(path: str | None, *, make_folder: bool) -> None:
  if not path or path == ":memory:":
    raise ValueError("The database must be a file, such as sqlite:///service.sqlite3: memory is forgotten.")
  try:
    if make_folder:
      Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
  except OSError as error:
    raise ValueError(f"The database {path} cannot be opened: {error.strerror}.") from error


def _tune_sqlite(connection, record) -> None:
  del record
  # WAL lets others read while one writes; NORMAL survives the death of the process, whatever its moment, and
  # may lose the last answers when the power fails: a ledger's files are judged again.
  for setting in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
    connection.execute(f"PRAGMA {setting}")
