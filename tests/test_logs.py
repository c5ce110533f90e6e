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
