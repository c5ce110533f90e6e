import io
import json

from deepscan_jax import logs


def test_scalars_are_appended_as_json_lines(tmp_path):
  for step in (1, 2):
    log = logs.ScalarLog(tmp_path / "run" / "scalars.jsonl")
    log.write(step, {"loss": step / 4})
    log.close()
  rows = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.25), (2, 0.5)]
  assert all(row["time_s"] > 1e9 for row in rows)


def test_rows_that_a_resumed_run_writes_again_are_dropped(tmp_path):
  path = tmp_path / "scalars.jsonl"
  logs.drop_rows_after(path, 0)
  assert not path.exists()
  log = logs.ScalarLog(path)
  for step in (2, 2, 4, 6):
    log.write(step, {"loss": step / 4})
  log.close()
  whole = path.read_text()
  with path.open("a") as file:
    file.write('{"step": 6, "lo')
  logs.drop_rows_after(path, 6)
  assert path.read_text() == whole
  # Cut off just before the end of its line.
  path.write_text(whole[:-1])
  logs.drop_rows_after(path, 6)
  assert path.read_text() == whole
  path.write_bytes(whole.encode()[:-9] + b"\xc3")
  logs.drop_rows_after(path, 6)
  assert path.read_text() == "".join(line for line in whole.splitlines(keepends=True)[:3])
  logs.drop_rows_after(path, 3)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 2]
  logs.drop_rows_after(path, 0)
  assert path.read_text() == "" and [p.name for p in tmp_path.iterdir()] == ["scalars.jsonl"]


def test_progress_shows_few_lines_and_always_the_last(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  progress = logs.Progress(1000, stream=stream, every_s=30)
  for step in range(901, 1001):
    now[0] += 1
    progress.show(step, "loss 0.5")
  lines = stream.getvalue().splitlines()
  assert len(lines) == 4
  assert lines[0] == "step 930/1000  loss 0.5  01:10 left"
  assert lines[-1] == "step 1000/1000  loss 0.5  00:00 left"


def test_progress_rewrites_its_line_on_a_terminal():
  stream = io.StringIO()
  stream.isatty = lambda: True
  logs.Progress(3, stream=stream).show(3, "done")
  assert stream.getvalue() == "\r\033[Kstep 3/3  done  --:-- left"
