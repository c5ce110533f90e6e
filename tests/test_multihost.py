"""Several processes that train together, each started as it would be on a host of its own."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from compiling import QUICK_FLAGS
from tiny import tiny_branch, tiny_config

from deepscan_jax import checkpoints, evaluation, parallel, training
from deepscan_jax.config import override
from deepscan_jax.launch import train as verb
from deepscan_jax.logs import untimed

ROOT = Path(__file__).resolve().parents[1]
# SGD, because Adam hides a wrong scale of the gradients.
TINY = {"optimizer": "sgd", "learning_rate": 0.5, "ema_decay": 0.5, "steps": 6, "validate_every": 3}


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(arguments: list[str], *, devices: int, folder: Path, **environment: str) -> subprocess.Popen:
  """A Python process of its own with so many virtual devices; what it compiles is shared below the folder."""
  mine = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
  mine |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{QUICK_FLAGS} --xla_force_host_platform_device_count={devices}",
    "XDG_CACHE_HOME": str(folder / "cache"),
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
  }
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=mine | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ends(processes: list[subprocess.Popen], *, timeout_s: int = 300) -> list[tuple[int, str, str]]:
  """Exit code, stdout and stderr of each; none is left running."""
  try:
    results = []
    for process in processes:
      out, err = process.communicate(timeout=timeout_s)
      results.append((process.returncode, out, err))
    return results
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()


def train(
  workdir: Path, data_dir: Path, folder: Path, *, processes: int, devices: int, signal_at: str = "-1 0"
) -> list[tuple[int, str, str]]:
  """`deepscan train` by so many processes of so many devices each."""
  command = ["-m", "launch", "train", f"--preset={ROOT}/tests/tiny_preset.py"]
  command += [f"--workdir={workdir}", f"--data_dir={data_dir}"]
  if processes > 1:
    address = f"127.0.0.1:{free_port()}"
    command += ["--multihost", f"--coordinator_address={address}", f"--num_processes={processes}"]
  started = []
  for index in range(processes):
    own = [f"--process_id={index}"] if processes > 1 else []
    tiny = {"TINY": json.dumps(TINY), "SIGNAL_AT": signal_at}
    started.append(start([*command, *own], devices=devices, folder=folder, **tiny))
  return ends(started)


def last_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """The arrays of a saved step by their names."""
  run = checkpoints.RunCheckpoints(workdir)
  saved = {item: tree for item, tree in run.read(step).items() if item in ("params", "train")}
  run.close()
  leaves = jax.tree_util.tree_leaves_with_path(saved)
  return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def steps_saved(workdir: Path) -> set[int]:
  return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()}


def scalars(workdir: Path) -> list[dict]:
  """The rows of scalars.jsonl without the times."""
  return [untimed(json.loads(line)) for line in (workdir / "scalars.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp("multihost")


@pytest.fixture(scope="module")
def two_processes(shared, prepared_dataset) -> Path:
  """The workdir of six steps in one go by two processes of two devices."""
  results = train(shared / "two", prepared_dataset, shared, processes=2, devices=2)
  assert [code for code, *_ in results] == [0, 0], results
  return shared / "two"


def test_two_processes_of_two_devices_do_what_one_of_four_does(two_processes, shared, prepared_dataset):
  ((code, _, err),) = train(shared / "one", prepared_dataset, shared, processes=1, devices=4)
  assert code == 0, err
  one, two = last_state(shared / "one", 6), last_state(two_processes, 6)
  assert one.keys() == two.keys()
  for name, value in one.items():
    np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  first, last = last_state(shared / "one", 4), one
  assert max(np.abs(last[name] - first[name]).max() for name in one if name.startswith("['params']")) > 1e-3
  for ours, theirs in zip(scalars(two_processes), scalars(shared / "one"), strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_only_the_first_process_says_and_writes(two_processes):
  assert [row["step"] for row in scalars(two_processes)] == [3, 6, 6]
  assert "calibration" in json.loads((two_processes / "best" / "model.json").read_text())


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_go_on_to_the_bit(
  two_processes, shared, prepared_dataset
):
  workdir = shared / "stopped"
  results = train(workdir, prepared_dataset, shared, processes=2, devices=2, signal_at="1 4")
  assert [code for code, *_ in results] == [0, 0], results
  # Given before the fifth step, and told to all before the sixth.
  said = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for _, out, _ in results]
  assert said == [["stopped by SIGTERM at step 5; the same command goes on."], []]
  assert "SIGTERM" in results[1][2] and max(steps_saved(workdir)) == 5
  assert "calibration" not in json.loads((workdir / "best" / "model.json").read_text())
  results = train(workdir, prepared_dataset, shared, processes=2, devices=2)
  assert [code for code, *_ in results] == [0, 0], results
  ours, theirs = last_state(workdir, 6), last_state(two_processes, 6)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value, err_msg=name)
  assert scalars(workdir) == scalars(two_processes)
  ours, theirs = (json.loads((w / "best" / "model.json").read_text()) for w in (workdir, two_processes))
  assert ours == theirs


def test_a_run_goes_on_with_as_many_processes_only(two_processes, prepared_dataset):
  with tiny_branch(), pytest.raises(ValueError, match=r"of 2 processes, .* there is 1; start 2, or choose"):
    training.fit(
      override(tiny_config(**TINY), "model.dropout=0.0"), workdir=two_processes, data_dir=prepared_dataset
    )


def test_what_processes_tell_each_other(shared):
  given = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2, "timeout_s": 120}
  script = str(ROOT / "tests" / "multihost_probe.py")
  started = [
    start([script, json.dumps({**given, "process_id": i})], devices=2, folder=shared) for i in range(2)
  ]
  results = ends(started)
  assert [code for code, *_ in results] == [0, 0], results
  first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in results)
  assert (first.pop("shard"), second.pop("shard")) == ([0, 2], [1, 2])
  assert (
    first.pop("error") == "Process 1 cannot train: no data here" and second.pop("error") == "no data here"
  )
  # Each over its own devices and rows.
  assert (first.pop("alone"), second.pop("alone")) == ([2.0, 10.0], [6.0, 14.0])
  assert first == second
  assert first["devices"] == 4 and first["rows"] == 4
  assert first["each"] == [{"index": i, "text": "x" * i, "value": 0.1 + i} for i in range(2)]
  assert first["first"] == [np.array([-0.0, np.nan, 0.1], np.float32).tobytes().hex(), 7]
  assert first["poll"] == [0, 0, 15, 0]
  assert first["refused"] == [
    "Batch size 6 must be divisible by the number of devices, 4; try 4 or 8.",
    "Batch size 2 must be divisible by the number of devices, 4; try 4.",
  ]
  assert len(set(first["bits"])) == 4


def test_who_cannot_meet_is_told_why(shared):
  cases = {
    "--num_processes=2": "no cluster here .*; give --coordinator_address .*, --process_id",
    "--coordinator_address=127.0.0.1:1 --num_processes=2 --process_id=1 --connect_timeout_s=2": (
      "did not all meet at 127.0.0.1:1 within 2 s. Start all of them"
    ),
  }
  command = ["-m", "launch", "train", "--multihost", f"--workdir={shared / 'none'}"]
  results = ends([start([*command, *flags.split()], devices=1, folder=shared) for flags in cases])
  for (code, _, err), message in zip(results, cases.values(), strict=True):
    assert code == 2 and len(err.splitlines()) == 1 and re.search(message, err), err


@pytest.mark.parametrize(
  ("address", "index", "message"),
  [
    ("host", 0, "must be host:port of process 0, got 'host'"),
    ("127.0.0.1:1", 2, "less than --num_processes=2, got 2"),
    ("127.0.0.1:{taken}", 0, r"cannot listen at port \d+ \(Address already in use\); choose another"),
  ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_tried(address, index, message):
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = address.format(taken=server.getsockname()[1])
    with pytest.raises(ValueError, match=message):
      parallel.connect(coordinator_address=address, num_processes=2, process_id=index)


def test_the_flags_of_several_hosts_are_not_taken_without_them():
  with flagsaver.flagsaver(workdir="x", process_id=1), pytest.raises(app.UsageError, match="add --multihost"):
    verb.main(["train"])


def test_the_environment_says_who_is_who():
  nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
  found = {"coordinator_address": "10.0.0.1:8476", "num_processes": 2, "process_id": 1}
  assert parallel.from_environment(nodes) == found
  plain = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"}
  assert parallel.from_environment(nodes | plain) == {
    "coordinator_address": "a:1",
    "num_processes": 3,
    "process_id": 0,
  }
  assert parallel.from_environment({"HOME": "/"}) == {}
  with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a whole number, got 'two'"):
    parallel.from_environment({"JAX_PROCESS_ID": "two"})


@pytest.mark.parametrize("paired", [False, True])
def test_parts_of_scores_come_together_in_order(paired):
  rows = 14
  whole = evaluation.Scores(
    labels=np.arange(rows) % 2,
    logits=np.arange(rows) / 7,
    group=np.arange(rows).astype(str),
    source=np.full(rows, "a source"),
    kind=np.full(rows, "face"),
    has_faces=np.arange(rows) % 3 == 0,
    paired=paired,
  )
  place = np.arange(rows) // (2 if paired else 1)
  for count in (1, 3, 9):
    merged = evaluation.merged([whole.rows(place % count == i) for i in range(count)])
    for name in ("labels", "logits", "group", "source", "kind", "has_faces"):
      np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert merged.paired == paired
