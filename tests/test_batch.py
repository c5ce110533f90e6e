import base64
import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import batch_fakes
import pytest
from absl import app
from absl.testing import flagsaver

from deepscan_jax.launch import batch as command
from deepscan_jax.launch import detect
from deepscan_jax.serve import batch, batch_report, jobs, judging
from deepscan_jax.stopping import StopRequest

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = b"new\nline\x1b[31m\xff.mp4"
FORMULA = "=cmd|' -C calc'!A0.mp4"


def write(folder, **files):
  folder.mkdir(exist_ok=True)
  for name, data in files.items():
    (folder / f"{name}.mp4").write_bytes(data)
  return folder


def judge(folder, media, load=None, **options):
  """Runs the command as it is after its flags; returns its exit code."""
  settings = options.pop("settings", batch_fakes.settings())
  load = load or batch_fakes.loading(seen=str(folder / "seen"))
  return command.judge(folder / "ledger", media, settings, load, command.Options(**options))


def seen(folder):
  return sorted((folder / "seen").read_bytes().decode("utf-8", "replace").split("\n"))[1:]


def rows(path):
  return {row["path"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  """A batch of files that crash, hang, are damaged or oddly named among good ones, run twice."""
  folder = tmp_path_factory.mktemp("hostile")
  files = {f"good{n}": b"file %d" % n for n in range(4)}
  odd = {"bad": b"BAD", "crash": b"CRASH", "once": b"CRASHONCE", "defect": b"DEFECT", "none": b"NONE"}
  media = write(folder / "media", **files, **odd, changing=b"CHANGING")
  (media / FORMULA).write_bytes(b"formula")
  (media / "deep").mkdir()
  (media / "deep" / "UPPER.MP4").write_bytes(b"upper")
  (media / "picture.jpg").write_bytes(b"not asked for")
  with open(os.path.join(os.fsencode(media), HOSTILE), "wb") as file:
    file.write(b"odd")
  reports = tuple(folder / f"report.{ending}" for ending in ("json", "jsonl", "csv", "html"))
  runs = []
  for as_json in (False, True):
    for path in reports:
      path.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, "stdout", out)
      patch.setattr(sys, "stderr", err)
      code = judge(folder, media, reports=reports, as_json=as_json)
    runs.append((code, out.getvalue(), err.getvalue(), seen(folder)))
  return folder, runs


def test_what_crashes_the_process_is_given_up_after_three_tries_and_the_rest_goes_on(hostile):
  folder, runs = hostile
  found = rows(folder / "report.jsonl")
  assert len(found) == 13
  crash, once = found["crash.mp4"], found["once.mp4"]
  assert (crash["error"]["code"], crash["tries"]) == ("worker_crash", 3)
  assert "was ended by SIGSEGV, 3 of 3 times" in crash["error"]["message"]
  assert (once["outcome"], once["tries"]) == ("inconclusive", 2)
  assert (found["bad.mp4"]["error"]["code"], found["bad.mp4"]["tries"]) == ("truncated", 1)
  defect, changing = found["defect.mp4"], found["changing.mp4"]
  assert (defect["error"]["code"], defect["tries"]) == (judging.DEFECT, 3)
  assert "secret" not in json.dumps(defect)
  assert (changing["error"]["code"], changing["tries"]) == ("changed_while_read", 3)
  assert all(found[f"good{n}.mp4"]["tries"] == 1 for n in range(4))
  assert found["deep/UPPER.MP4"]["file"]["name"] == "UPPER.MP4" and "picture.jpg" not in found
  # Only what was charged with a try was judged more than once.
  tries = runs[0][3]
  assert {name: tries.count(name) for name in tries if tries.count(name) > 1} == {
    "changing.mp4": 3,
    "crash.mp4": 3,
    "defect.mp4": 3,
    "once.mp4": 2,
  }


def test_the_same_command_again_judges_nothing_and_writes_the_same_report(hostile):
  folder, ((code, words, told, first), (again, lines, told_again, second)) = hostile
  assert code == again == command.INTERNAL_ERROR
  assert first == second
  assert "13 files: 0 answered before, 13 to judge." in told
  assert "13 files: 13 answered before, 0 to judge." in told_again
  assert len(words.splitlines()) == len(lines.splitlines()) == 13
  assert [json.loads(line) for line in lines.splitlines()] == list(rows(folder / "report.jsonl").values())
  report = json.loads((folder / "report.json").read_text())
  assert report["results"] == list(rows(folder / "report.jsonl").values())
  about = report["batch"]
  assert (about["files"], about["judged"], about["without_verdict"], about["complete"]) == (13, 9, 4, True)
  assert about["outcomes"]["worker_crash"] == 1 and about["model"] == batch_fakes.MODEL


def test_names_steer_no_terminal_and_no_spreadsheet(hostile):
  folder, runs = hostile
  for text in (
    *runs[0][1:3],
    *runs[1][1:3],
    *((folder / f"report.{e}").read_text() for e in ("csv", "html")),
  ):
    assert "\x1b[31m" not in text and "\udcff" not in text and "new\nline" not in text
  odd = rows(folder / "report.jsonl")["new\nline\x1b[31m\\xff.mp4"]
  assert base64.b64decode(odd["path_base64"]) == HOSTILE
  assert "new\\nline\\x1b[31m\\xff.mp4" in runs[0][1]
  with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
    table = list(csv.DictReader(file))
  assert len(table) == 13 and list(table[0]) == list(batch_report.COLUMNS)
  by_path = {row["path"]: row for row in table}
  assert f"'{FORMULA}" in by_path and by_path["bad.mp4"]["error_code"] == "truncated"
  good = by_path["good0.mp4"]
  assert (
    float(good["deepfake_probability"]) == rows(folder / "report.jsonl")["good0.mp4"]["deepfake_probability"]
  )
  assert good["is_deepfake"] in ("true", "false") and len(good["sha256"]) == 64
  assert not any(line.startswith(("=", '"=')) for line in (folder / "report.csv").read_text().splitlines())


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    ("=1+1", "'=1+1"),
    (" =1+1", "' =1+1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("+1", "'+1"),
    ("-1", "'-1"),
    ("\t=1", "'\\t=1"),
    ("\uff1d1", "'\uff1d1"),
    ("a=1", "a=1"),
    ('say "x"; =1', 'say "x"; =1'),
    (-0.5, "-0.5"),
    (True, "true"),
    (None, ""),
    ("a\r\n=1", "a\\r\\n=1"),
    ("", ""),
  ],
)
def test_no_cell_is_a_formula_or_a_second_line(value, shown):
  assert batch_report.cell(value) == shown


def test_the_page_shows_the_most_suspicious_first_and_asks_for_nothing(hostile, monkeypatch):
  folder, _ = hostile
  page = (folder / "report.html").read_text()
  assert "http://" not in page and "https://" not in page and "<script" not in page
  order = [page.index(f'class="mark {name}"') for name in ("likely_manipulated", "inconclusive", "unread")]
  assert order == sorted(order)
  assert "&lt;" not in page.split("<title>")[1].split("</title>")[0]
  monkeypatch.setattr(batch_report, "PAGE_ROWS", 2)
  ledger = jobs.Ledger(jobs.open_database(folder / "ledger"))
  job = ledger.job_of(batch_fakes.settings().key(str(folder / "media")))
  about = batch_report.about(job, ledger.counts(job.id), ledger.outcomes(job.id), now=0.0)
  batch_report.write(folder / "short.html", about, ledger.answers(job.id))
  assert "The 2 most suspicious files; 11 more stand in" in (folder / "short.html").read_text()


def test_only_what_changed_is_judged_again_and_another_model_is_another_batch(tmp_path, capsys):
  media = write(tmp_path / "media", a=b"a", b=b"b", c=b"c")
  assert judge(tmp_path, media, reports=(tmp_path / "r.jsonl",)) == 0
  (media / "a.mp4").write_bytes(b"other")
  os.utime(media / "b.mp4", (1, 1))
  write(media, d=b"d")
  assert judge(tmp_path, media, reports=(tmp_path / "r.jsonl",)) == 0
  assert seen(tmp_path) == ["a.mp4", "a.mp4", "b.mp4", "c.mp4", "d.mp4"]
  assert "4 files: 2 answered before, 2 to judge, 1 of them changed" in capsys.readouterr().err
  other = {**batch_fakes.MODEL, "sha256": "cd" * 32}
  settings = batch_fakes.settings(model=other)
  load = batch_fakes.loading(model=other, seen=str(tmp_path / "other"))
  assert judge(tmp_path, media, load, settings=settings, reports=(tmp_path / "o.jsonl",)) == 0
  assert (tmp_path / "other").read_text().count("\n") == 4
  assert {row["model"]["sha256"] for row in rows(tmp_path / "o.jsonl").values()} == {"cd" * 32}
  # The first batch is as it was.
  assert judge(tmp_path, media, reports=(tmp_path / "r.jsonl",)) == 0
  assert len(seen(tmp_path)) == 5 and len(rows(tmp_path / "r.jsonl")) == 4


def test_settings_that_decide_answers_have_keys_of_their_own():
  base = batch_fakes.settings()
  others = [
    batch_fakes.settings(frames=5),
    batch_fakes.settings(extensions=(".mov",)),
    batch_fakes.settings(recursive=False),
    batch_fakes.settings(program="0"),
  ]
  keys = {settings.key("x") for settings in (base, *others)}
  assert len(keys) == 5 and base.key("y") not in keys and base.key("x") in keys
  assert len(base.key("\udcff")) == 64


def test_a_limit_ends_early_and_the_next_run_goes_on(tmp_path, capsys):
  media = write(tmp_path / "media", **{f"f{n}": b"%d" % n for n in range(5)})
  assert judge(tmp_path, media, limit=2, reports=(tmp_path / "r.json",)) == 0
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == 2 and "3 wait; the same command goes on" in err
  assert json.loads((tmp_path / "r.json").read_text())["batch"]["complete"] is False
  assert judge(tmp_path, media, quiet=True) == 0
  assert capsys.readouterr() == ("", "")
  assert len(seen(tmp_path)) == 5
  assert judge(tmp_path, media, resume=False, limit=1, quiet=True) == 0
  assert len(seen(tmp_path)) == 6


def test_what_hangs_is_stopped_and_what_failed_can_be_tried_again(tmp_path, capsys):
  media = write(tmp_path / "media", hang=b"HANG", good=b"good")
  assert judge(tmp_path, media, item_s=0.3, reports=(tmp_path / "r.jsonl",)) == command.PARTIAL
  found = rows(tmp_path / "r.jsonl")
  assert "took too long and was stopped, 3 of 3 times" in found["hang.mp4"]["error"]["message"]
  assert found["good.mp4"]["outcome"]
  (media / "hang.mp4").write_bytes(b"HANX")
  assert judge(tmp_path, media, retry=True, reports=(tmp_path / "r.jsonl",)) == 0
  assert rows(tmp_path / "r.jsonl")["hang.mp4"]["tries"] == 1


@pytest.mark.parametrize(
  ("load", "code", "message"),
  [
    (batch_fakes.no_model, command.NO_MODEL, "The model is damaged; fetch it again."),
    (batch_fakes.loading(model={**batch_fakes.MODEL, "sha256": "00"}), command.NO_MODEL, "was changed while"),
  ],
)
def test_a_model_that_is_missing_or_another_one_ends_the_batch(tmp_path, capsys, load, code, message):
  assert judge(tmp_path, write(tmp_path / "media", a=b"a"), load) == code
  assert message in capsys.readouterr().err


def test_workers_that_cannot_begin_end_the_batch_and_charge_no_file(tmp_path):
  media = write(tmp_path / "media", a=b"a")
  with pytest.raises(ValueError, match=r"was ended by SIGKILL before they could begin; fewer --workers"):
    judge(tmp_path, media, batch_fakes.die)
  assert judge(tmp_path, media, reports=(tmp_path / "r.jsonl",)) == 0
  assert rows(tmp_path / "r.jsonl")["a.mp4"]["tries"] == 1


def test_told_to_stop_it_gives_back_what_it_has(tmp_path):
  ledger = jobs.Ledger(jobs.open_database(tmp_path / "ledger"))
  media = write(tmp_path / "media", **{f"slow{n}": b"SLOW%d" % n for n in range(9)})
  job = ledger.open_job(settings=batch_fakes.settings().to_dict(), directory=os.fsencode(media))
  files = batch.find_files(os.fsencode(media), (".mp4",), recursive=True, trouble=lambda *_: None)
  batch.add_files(ledger, job.id, os.fsencode(media), files)
  stop = StopRequest()
  stopped = functools.partial(setattr, stop, "number", signal.SIGTERM)
  progress = batch.run(ledger, job, batch_fakes.loading(), stop=stop, on_answer=lambda _: stopped())
  counts = ledger.counts(job.id)
  assert progress.done_here == counts[jobs.DONE] >= 1 and counts[jobs.RUNNING] == 0
  assert counts[jobs.QUEUED] == 9 - counts[jobs.DONE] > 0
  assert all(ledger.claim(job.id, "me").tries == 1 for _ in range(counts[jobs.QUEUED]))


def test_a_batch_ends_when_others_have_answered_the_rest(tmp_path, capsys):
  """Another machine holds a file: this one waits for it, and takes it over where the lease runs out."""
  media = write(tmp_path / "media", a=b"a", b=b"b")
  ledger = jobs.Ledger(jobs.open_database(tmp_path / "ledger"))
  settings = batch_fakes.settings()
  key, root = settings.key(str(media)), os.fsencode(media)
  job = ledger.open_job(key=key, settings=settings.to_dict(), directory=root)
  files = batch.find_files(root, (".mp4",), recursive=True, trouble=lambda *_: None)
  batch.add_files(ledger, job.id, root, files)
  theirs = ledger.claim(job.id, "another machine", lease_s=60)
  answer = {**batch_fakes.answer("a.mp4", b"a").to_dict(), "by": "another"}

  def answer_later():
    while not (tmp_path / "seen").exists():
      time.sleep(0.05)
    time.sleep(0.5)
    ledger.finish(theirs, answer)

  thread = threading.Thread(target=answer_later)
  thread.start()
  assert judge(tmp_path, media, as_json=True) == 0
  thread.join()
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [(row["path"], row.get("by")) for row in lines] == [("b.mp4", None), ("a.mp4", "another")]
  assert seen(tmp_path) == ["b.mp4"]


@pytest.mark.parametrize(
  ("done", "outcomes", "trouble", "fail_on", "code"),
  [
    (2, {"likely_authentic": 2}, 0, True, 0),
    (2, {"likely_manipulated": 1, "inconclusive": 1}, 0, False, 0),
    (2, {"likely_manipulated": 1, "inconclusive": 1}, 0, True, detect.FLAGGED),
    (1, {"likely_manipulated": 1, "internal_error": 1}, 0, True, detect.FLAGGED),
    (1, {"likely_authentic": 1, "internal_error": 1}, 0, False, detect.INTERNAL_ERROR),
    (1, {"likely_authentic": 1, "worker_crash": 1}, 0, False, detect.PARTIAL),
    (2, {"likely_authentic": 2}, 1, False, detect.PARTIAL),
    (0, {"truncated": 2}, 0, False, detect.UNREADABLE),
    (0, {}, 0, False, detect.UNREADABLE),
  ],
)
def test_exit_codes_of_batch(done, outcomes, trouble, fail_on, code):
  counts = dict.fromkeys(jobs.ITEM_STATES, 0)
  counts |= {jobs.DONE: done, jobs.FAILED: sum(outcomes.values()) - done}
  found = command.exit_code(counts, outcomes, trouble=trouble, fail_on_manipulated=fail_on)
  assert found == code


def test_files_are_found_in_order_and_links_to_folders_lead_nowhere(tmp_path):
  media = write(tmp_path / "media", b=b"", a=b"")
  for name in ("sub", "sub/sub", "z"):
    (media / name).mkdir()
    write(media / name, x=b"1")
  (media / "loop").symlink_to(media)
  (media / "link.mp4").symlink_to(media / "a.mp4")
  (media / "broken.mp4").symlink_to(media / "nothing")
  os.mkfifo(media / "pipe.mp4")
  (media / "folder.mp4").mkdir()
  trouble = []

  def find(**changes):
    settings = {"recursive": True, "trouble": lambda path, error: trouble.append(path), **changes}
    return [path.decode() for path, _ in batch.find_files(os.fsencode(media), (".mp4",), **settings)]

  assert find() == ["a.mp4", "b.mp4", "link.mp4", "sub/x.mp4", "sub/sub/x.mp4", "z/x.mp4"]
  assert trouble == [b"broken.mp4"]
  assert find(recursive=False) == ["a.mp4", "b.mp4", "link.mp4"]


def test_extensions_are_told_with_or_without_dot():
  assert batch.extensions(["MP4,.mov", " mkv "]) == (".mkv", ".mov", ".mp4")
  assert set(batch.extensions([])) >= {".mp4", ".jpg", ".wav"}
  for wrong in ("*.mp4", ".tar.gz", "./x", "."):
    with pytest.raises(ValueError, match="is no file extension"):
      batch.extensions([wrong])


def test_a_detector_judges_what_it_began_to_decode():
  class Detector:
    metadata, window = batch_fakes.MODEL, None

    def detect(self, path, *, frames, decoding):
      return path, frames, decoding

  judge = judging.DetectorJudge(Detector(), frames=7)
  assert judge.judge("a.mp4", "decoding") == ("a.mp4", 7, "decoding")
  assert judge.metadata == batch_fakes.MODEL


def test_the_command_tells_what_it_would_do(tmp_path):
  media = write(tmp_path / "media", a=b"a", b=b"b")
  environment = {**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}
  dry = subprocess.run(
    [sys.executable, "-m", "launch", "batch", f"--directory={media}", "--file_ext=.mp4", "--dry_run"],
    cwd=ROOT,
    env={**environment, "XDG_STATE_HOME": str(tmp_path / "state")},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (dry.returncode, dry.stdout) == (0, "a.mp4\nb.mp4\n"), dry.stderr
  assert "2 files, 2 of them would be judged." in dry.stderr and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
  ("given", "folder", "error", "message"),
  [
    ({}, "nowhere", OSError, r"There is no folder .*nowhere"),
    ({"output_report": ["report.pdf"]}, ".", ValueError, r"report.pdf ends in none of .json, .jsonl, .csv"),
    (
      {"output_report": ["/nowhere/r.json"]},
      ".",
      OSError,
      r"Cannot write /nowhere/r.json: there is no folder",
    ),
    ({"file_ext": ["*.mp4"]}, ".", ValueError, r"'\*.mp4' is no file extension"),
    ({"directory": "x"}, ".", app.UsageError, r"Say which folder"),
  ],
)
def test_wrong_usage_is_a_sentence(tmp_path, given, folder, error, message):
  values = {"file_ext": [], "output_report": [], "directory": None, **given}
  with flagsaver.flagsaver(**values), pytest.raises(error, match=message):
    command.main(["batch", str(tmp_path / folder)])


def test_a_dry_run_leaves_out_what_was_answered(tmp_path, capsys):
  media = write(tmp_path / "media", a=b"a", b=b"b")
  assert judge(tmp_path, media, limit=1, quiet=True) == 0
  assert command.dry_run(tmp_path / "ledger", media, batch_fakes.settings()) == 0
  assert capsys.readouterr().out == "b.mp4\n"
  assert command.dry_run(tmp_path / "ledger", media, batch_fakes.settings(extensions=(".mov",))) == 5


def test_beam_that_is_not_there_is_said_to_be(tmp_path, monkeypatch):
  from deepscan_jax.serve import batch_beam

  monkeypatch.setattr(batch_beam.importlib.util, "find_spec", lambda name: None)
  options = command.Options(reports=(tmp_path / "r.jsonl",))
  with pytest.raises(ValueError, match=r"Apache Beam is not installed; `pip install 'deepscan_jax\[beam\]'`"):
    command.on_beam(tmp_path, batch_fakes.settings(), batch_fakes.load, options, flags_of_beam="")


def test_beam_gives_the_same_answers_and_dead_letters(tmp_path, capsys):
  pytest.importorskip("apache_beam")
  media = write(tmp_path / "media", a=b"a", b=b"b", crash=b"CRASH", bad=b"BAD", none=b"NONE")
  options = command.Options(reports=(tmp_path / "r.jsonl",))
  flags = "--runner=DirectRunner --direct_num_workers=1"
  code = command.on_beam(media, batch_fakes.settings(), batch_fakes.loading(), options, flags_of_beam=flags)
  assert code == command.PARTIAL
  lines = {kind: {} for kind in ("r-", "r.dead_letter-")}
  for kind, found in lines.items():
    for path in tmp_path.glob(f"{kind}*.jsonl"):
      found |= rows(path)
  assert sorted(lines["r-"]) == ["a.mp4", "b.mp4", "none.mp4"]
  dead = {name: (row["error"]["code"], row["tries"]) for name, row in lines["r.dead_letter-"].items()}
  assert dead == {"bad.mp4": ("truncated", 1), "crash.mp4": ("worker_crash", 3)}
  assert judge(tmp_path, media, reports=(tmp_path / "local.jsonl",)) == command.PARTIAL
  local = rows(tmp_path / "local.jsonl")
  assert {**lines["r-"], **lines["r.dead_letter-"]} == local
