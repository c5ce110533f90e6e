"""Many threads at one database."""

import concurrent.futures
import threading

import pytest
import sqlalchemy as sa
from waiting import wait_until

from deepscan_jax.serve import databases

METADATA = sa.MetaData()
ROWS = sa.Table("rows", METADATA, sa.Column("number", sa.Integer, primary_key=True))


@pytest.fixture
def database(tmp_path):
  engine = databases.connect(tmp_path / "rows.sqlite3")
  databases.make_tables(engine, METADATA)
  return engine


def numbers(database) -> list[int]:
  with database.connect() as connection:
    return sorted(connection.execute(sa.select(ROWS.c.number)).scalars())


def test_rows_that_come_at_once_go_in_together_and_each_once(database):
  insert, transactions, all_came = databases.Insert(database, sa.insert(ROWS)), [], threading.Event()

  @sa.event.listens_for(database, "commit")
  def count(connection):
    del connection
    transactions.append(1)
    all_came.wait(30)

  with concurrent.futures.ThreadPoolExecutor(40) as threads:
    first = threads.submit(insert.add, {"number": 0})
    wait_until(lambda: transactions)
    # The first is being written; these wait for it.
    others = [threads.submit(insert.add, {"number": number}) for number in range(1, 40)]
    wait_until(lambda: len(insert._waiting) == 39)
    all_came.set()
    for one in (first, *others):
      one.result()
  assert numbers(database) == list(range(40))
  assert len(transactions) == 2


def test_who_could_not_be_written_hears_of_it_and_the_next_can(database):
  insert = databases.Insert(database, sa.insert(ROWS))
  insert.add({"number": 1})
  with pytest.raises(sa.exc.IntegrityError):
    insert.add({"number": 1})
  insert.add({"number": 2})
  assert numbers(database) == [1, 2]


def test_one_that_cannot_be_written_takes_no_other_with_it(database):
  insert = databases.Insert(database, sa.insert(ROWS))
  insert.add({"number": 1})
  rows = [databases._Row({"number": number}) for number in (2, 1, 3)]
  insert._waiting = rows
  insert._write_all()
  assert numbers(database) == [1, 2, 3]
  assert [type(row.error) for row in rows] == [type(None), sa.exc.IntegrityError, type(None)]


def test_threads_of_a_process_take_turns_at_a_file(database):
  """Without turns some would wait in SQLite, a tenth of a second at a time."""
  inside = []

  def write(number: int) -> None:
    with databases.writing(database) as connection:
      inside.append(1)
      assert len(inside) == 1
      connection.execute(sa.insert(ROWS), {"number": number})
      inside.pop()

  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    list(threads.map(write, range(80)))
  assert numbers(database) == list(range(80))


def test_what_fails_within_is_not_kept(database):
  with pytest.raises(RuntimeError), databases.writing(database) as connection:
    connection.execute(sa.insert(ROWS), {"number": 1})
    raise RuntimeError
  with databases.writing(database) as connection:
    connection.execute(sa.insert(ROWS), {"number": 2})
  assert numbers(database) == [2]
