import os
import threading
import time
from pathlib import Path

import pytest

from deepscan_jax.serve import confined
from deepscan_jax.serve.confined import OutsideError


@pytest.fixture
def root(tmp_path):
  """A root with files, folders and links in and out of it; a secret lies beside it."""
  root = tmp_path / "root"
  (root / "a" / "b").mkdir(parents=True)
  (root / "a" / "one.mp4").write_bytes(b"one")
  (root / "a" / "b" / "TWO.MP4").write_bytes(b"two")
  (root / "a" / "text.txt").write_bytes(b"")
  (tmp_path / "secret").mkdir()
  (tmp_path / "secret" / "secret.mp4").write_bytes(b"secret")
  (tmp_path / "root-two").mkdir()
  (root / "out").symlink_to(tmp_path / "secret")
  (root / "inside").symlink_to(root / "a")
  (root / "a" / "link.mp4").symlink_to(tmp_path / "secret" / "secret.mp4")
  (root / "a" / "linked").symlink_to(tmp_path / "secret")
  os.mkfifo(root / "a" / "pipe.mp4")
  return root


def find(roots, asked, *, recursive=True):
  with confined.opened_folder(roots, asked) as folder:
    return [path.decode() for path, _ in folder.files((".mp4",), recursive=recursive)]


def read(roots, asked, path):
  with confined.opened_folder(roots, asked) as folder, folder.opened_file(path) as opened:
    return Path(opened).read_bytes()


def test_files_below_a_root_are_found_and_read_and_links_are_not_there(root):
  assert find([root], str(root / "a")) == find([root], "a") == ["one.mp4", "b/TWO.MP4"]
  assert find([root], str(root / "a"), recursive=False) == ["one.mp4"]
  assert find([root], str(root)) == ["a/one.mp4", "a/b/TWO.MP4"]
  assert read([root], "a", b"b/TWO.MP4") == b"two"
  for path in (b"link.mp4", b"linked/secret.mp4", b"../../secret/secret.mp4", b"b", b"none", b"pipe.mp4"):
    with pytest.raises(OutsideError):
      read([root], "a", path)
  with confined.opened_folder([root], b"a") as folder:
    assert folder.path == os.fsencode(root / "a")


@pytest.mark.parametrize(
  "asked",
  [
    "out",
    "inside",
    "..",
    "a/../../secret",
    "a/../a",
    "/etc",
    "/",
    "",
    "ROOT/../secret",
    "ROOT/out",
    "ROOT-two",
    "ROOT\0",
    "a\0",
    "none",
    "a/one.mp4",
    "\ud800",
    "a/linked",
    "~",
    "file:///etc",
  ],
)
def test_nothing_else_can_be_asked_for(root, asked):
  with pytest.raises(OutsideError):
    # "" is the root itself where there is one root.
    find([root, root.parent / "root-two"] if not asked else [root], asked.replace("ROOT", str(root)))


def test_of_several_roots_each_counts_and_one_that_is_a_link_may_be(root, tmp_path):
  (tmp_path / "way").symlink_to(root)
  roots = [tmp_path / "root-two", tmp_path / "way"]
  assert find(roots, str(tmp_path / "way" / "a")) == ["one.mp4", "b/TWO.MP4"]
  with pytest.raises(OutsideError):
    find(roots, "a")
  with pytest.raises(OutsideError):
    find([], str(root))


def test_what_is_open_stays_what_it_was_when_its_name_is_given_to_a_link(root, tmp_path):
  with confined.opened_folder([root], "a") as folder:
    (root / "a").rename(root / "gone")
    (root / "a").symlink_to(tmp_path / "secret")
    assert [path for path, _ in folder.files((".mp4",), recursive=False)] == [b"one.mp4"]
    with folder.opened_file(b"one.mp4") as opened:
      (root / "gone" / "one.mp4").rename(root / "gone" / "old.mp4")
      (root / "gone" / "one.mp4").symlink_to(tmp_path / "secret" / "secret.mp4")
      assert Path(opened).read_bytes() == b"one" and os.stat(opened).st_size == 3


def test_a_folder_that_is_swapped_for_a_link_again_and_again_never_leads_out(root, tmp_path):
  """A race: the folder, its file and links to the secret change places while they are opened."""
  stop = threading.Event()
  good, link, file, file_link = (root / name for name in ("good", "link", "good.mp4", "link.mp4"))
  good.mkdir()
  (good / "x.mp4").write_bytes(b"good")
  link.symlink_to(tmp_path / "secret")
  file.write_bytes(b"good")
  file_link.symlink_to(tmp_path / "secret" / "secret.mp4")
  (tmp_path / "secret" / "x.mp4").write_bytes(b"secret")

  def swap():
    # By two renames, for there are moments in which a name leads to nothing, too.
    while not stop.is_set():
      for one, name in ((good, "now"), (link, "now"), (file, "now.mp4"), (file_link, "now.mp4")):
        one.rename(root / name)
        (root / name).rename(one)

  thread = threading.Thread(target=swap)
  thread.start()
  seen = {b"good": 0, "refused": 0}
  until = time.monotonic() + 1.0
  try:
    while time.monotonic() < until:
      for folder, path in (("now", b"x.mp4"), ("", b"now.mp4"), ("", b"now/x.mp4")):
        try:
          told = read([root], folder or str(root), path)
        except OutsideError:
          told = "refused"
        seen[told] = seen.get(told, 0) + 1
  finally:
    stop.set()
    thread.join()
  assert set(seen) == {b"good", "refused"} and sum(seen.values()) > 50


def test_no_open_files_are_left_behind(root):
  before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
  for _ in range(5):
    find([root], "a")
    read([root], "a", b"one.mp4")
    for asked, path in (("out", b"x"), ("a", b"link.mp4"), ("a/b/c", b"x")):
      with pytest.raises(OutsideError):
        read([root], asked, path)
  assert before in (0, len(os.listdir("/proc/self/fd")))
