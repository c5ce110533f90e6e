import os
import stat
import threading

import pytest

from deepscan_jax import files


def test_a_file_appears_at_the_end_and_takes_the_place_of_the_old_one(tmp_path):
  path = tmp_path / "table.json"
  path.write_text("old")
  with files.whole_file(path) as file:
    file.write(b"ne")
    file.flush()
    assert path.read_text() == "old"
    (part,) = set(tmp_path.iterdir()) - {path}
    assert part.name.startswith(".table.json.") and part.suffix == files.PARTIAL
    file.write(b"w")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
  files.write_whole(path, "caf\u00e9\n")
  assert path.read_bytes() == b"caf\xc3\xa9\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_there_is_the_old_one_and_nothing_else(tmp_path, error):
  path = tmp_path / "table.json"
  path.write_text("old")
  with pytest.raises(error), files.whole_file(path) as file:
    file.write(b"new")
    raise error
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
  with pytest.raises(FileNotFoundError):
    files.write_whole(tmp_path / "gone" / "table.json", "")


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, durable):
  path, synced = tmp_path / "x", []
  monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_size, path.exists())))
  files.write_whole(path, "12345", durable=durable)
  assert synced == ([(5, False)] if durable else []) and path.read_text() == "12345"


def test_it_is_as_readable_as_any_new_file(tmp_path):
  (tmp_path / "any").touch()
  files.write_whole(tmp_path / "ours", "")
  modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("any", "ours")]
  assert modes[0] == modes[1]


def test_many_may_write_one_file_at_once(tmp_path):
  path, texts = tmp_path / "x", [str(number) * 10_000 for number in range(8)]
  threads = [threading.Thread(target=files.write_whole, args=(path, text)) for text in texts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
