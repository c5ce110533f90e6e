"""The launches in launch/cluster and the image in launch/docker, as far as that goes without a cluster."""

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import launch_schemas
import pytest
import yaml

from deepscan_jax.config import load_preset, override

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
CLUSTER, DOCKERFILE = LAUNCH / "cluster", LAUNCH / "docker" / "Dockerfile"
TPU, GPU = CLUSTER / "gke_tpu_jobset.yaml", CLUSTER / "gke_gpu_jobset.yaml"
SKYPILOT, SLURM = CLUSTER / "skypilot.yaml", CLUSTER / "slurm.sbatch"
LAUNCHES = (TPU, GPU, SKYPILOT, SLURM)
# How `deepscan train` ends once it was told to stop and has saved.
STOPPED = 143
PLACEHOLDER = re.compile(r"YOUR_[A-Z_]+")
MULTIHOST = {"coordinator_address", "num_processes", "process_id"}


def read(path):
  """(what a launch says, the schema of that)."""
  text = path.read_text(encoding="utf-8")
  if path == SLURM:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(lines) == text.count("#SBATCH ") == len(dict(lines))
    return dict(lines), launch_schemas.SBATCH
  return yaml.safe_load(text), launch_schemas.SKYPILOT if path == SKYPILOT else launch_schemas.JOBSET


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_a_launch_says_what_its_schema_knows(path):
  launch, schema = read(path)
  jsonschema.Draft202012Validator.check_schema(schema)
  jsonschema.validate(launch, schema)


def test_every_launch_is_tested():
  assert sorted(CLUSTER.iterdir()) == sorted(LAUNCHES)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_a_slip_of_the_pen_is_seen_at_every_level(path):
  launch, schema = read(path)
  slips = list(misspelt(launch))
  assert len(slips) > 10
  for keys, slip in slips:
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate(slip, schema)
      pytest.fail(f"{path.name}: another name in place of {keys} passes")


def misspelt(launch):
  """(where, the launch with one key misspelt) for each key whose name is not the user's own."""
  for keys in key_paths(launch):
    if keys[-2:-1] == ("nodeSelector",):
      continue
    slip = copy.deepcopy(launch)
    parent = slip
    for key in keys[:-1]:
      parent = parent[key]
    parent[f"{keys[-1][:-1]}z"] = parent.pop(keys[-1])
    yield keys, slip


def key_paths(node, above=()):
  if isinstance(node, dict):
    for key, value in node.items():
      if not key.startswith("/"):
        yield (*above, key)
      yield from key_paths(value, (*above, key))
  elif isinstance(node, list):
    for index, value in enumerate(node):
      yield from key_paths(value, (*above, index))


def test_misspelling_is_tried_where_it_hurts():
  tried = {keys[-1] for keys, _ in misspelt(read(TPU)[0])}
  assert {"replicas", "completions", "google.com/tpu", "restartPolicy", "claimName", "mountPath"} <= tried


@pytest.mark.parametrize("path", [*LAUNCHES, DOCKERFILE], ids=lambda path: path.stem)
def test_what_has_to_be_filled_in_is_explained(path):
  lines = path.read_text(encoding="utf-8").splitlines()
  comments = [line for line in lines if line.startswith("#") and not line.startswith("#SBATCH")]
  explained = {match[1] for line in comments if (match := re.match(r"#   (YOUR_[A-Z_]+)  +\S", line))}
  used = {name for line in lines if line not in comments for name in PLACEHOLDER.findall(line)}
  assert used == explained
  assert bool(used) == (path != DOCKERFILE)


def test_a_command_of_each_launch_is_one_that_train_takes(tmp_path):
  for path in LAUNCHES:
    command = command_of(path, tmp_path / path.stem)
    assert command[0] == "train"
    values = parsed(command[1:])
    config = load_preset(values["preset"])
    for assignment in values["set"]:
      config = override(config, assignment)
    assert config.name == "full" and config.data.datasets == ("real_fake_folder/clips",)
    assert config.data.batch_size % devices(path) == 0
    assert config.data.workers > 0
    assert values["data_dir"] != values["workdir"] and {"data_dir", "workdir"} <= values.keys()
    assert values["multihost"] is True and values["stopped_exit_code"] == STOPPED
    # JAX knows the processes of a TPU slice and of a Slurm job by itself.
    assert MULTIHOST & values.keys() == (set() if path in (TPU, SLURM) else MULTIHOST)
    if path in (GPU, SKYPILOT):
      assert values["process_id"] == 1 and values["num_processes"] == 2


# In a process of its own: here, verbs that other tests import have defined flags as well.
PARSE = """
import json, sys
from absl import flags
from launch import train
known = flags.FLAGS
assert known(["train", *sys.argv[1:]]) == ["train"]
own = known.get_key_flags_for_module(train)
assert all(flag in own for flag in map(known.__getitem__, known) if flag.present)
print(json.dumps({flag.name: flag.value for flag in own if flag.present}))
"""


def parsed(arguments):
  """The flags that the arguments set, parsed by the flags of launch/train.py and no others."""
  done = subprocess.run(
    [sys.executable, "-c", PARSE, *arguments], cwd=LAUNCH.parent, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_a_flag_that_train_does_not_have_is_seen():
  with pytest.raises(AssertionError, match="Unknown command line flag 'workdirs'"):
    parsed(["--preset=full", "--workdirs=/tmp/x"])


def command_of(path, folder):
  """The arguments that `deepscan` gets from the second process of a launch."""
  if path == SKYPILOT:
    return skypilot_command(folder)
  if path == SLURM:
    (command,) = run_slurm(folder, exit_code=0)["deepscan"]
    return command
  container = pod_of(path)["containers"][0]
  # What the pod's fields hold is known when it runs only.
  given = {e["name"]: e.get("value", "1") for e in container.get("env", [])}
  program, *arguments = container["command"] + container["args"]
  assert program == "deepscan"
  return [re.sub(r"\$\((\w+)\)", lambda match: given[match[1]], argument) for argument in arguments]


def job_of(path):
  (job,) = read(path)[0]["spec"]["replicatedJobs"]
  return job["template"]["spec"]


def pod_of(path):
  return job_of(path)["template"]["spec"]


def devices(path):
  launch, _ = read(path)
  if path == SLURM:
    return int(launch["nodes"]) * int(launch["gpus-per-node"])
  if path == SKYPILOT:
    return launch["num_nodes"] * int(launch["resources"]["accelerators"].partition(":")[2])
  (each,) = pod_of(path)["containers"][0]["resources"]["limits"].values()
  return job_of(path)["parallelism"] * each


@pytest.mark.parametrize("path", [TPU, GPU], ids=lambda path: path.stem)
def test_a_preempted_job_goes_on(path):
  jobset, job = read(path)[0], job_of(path)
  assert job["parallelism"] == job["completions"]
  container = pod_of(path)["containers"][0]
  exit_codes = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
  assert [(rule["containerName"], rule["values"]) for rule in exit_codes] == [(container["name"], [STOPPED])]
  assert any("onPodConditions" in rule for rule in job["podFailurePolicy"]["rules"])
  assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  mounts, volumes = ({v["name"] for v in vs} for vs in (container["volumeMounts"], pod_of(path)["volumes"]))
  assert mounts == volumes
  for flag in ("data_dir", "workdir"):
    (folder,) = [a.partition("=")[2] for a in container["args"] if a.startswith(f"--{flag}=")]
    assert any(folder.startswith(mount["mountPath"]) for mount in container["volumeMounts"])


def test_a_tpu_slice_has_the_chips_of_its_topology():
  rows = pod_of(TPU)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert devices(TPU) == math.prod(map(int, rows))
  assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in read(TPU)[0]["metadata"]["annotations"]


def test_the_first_gpu_process_is_where_the_others_look_for_it():
  launch = read(GPU)[0]
  name, job = launch["metadata"]["name"], launch["spec"]["replicatedJobs"][0]
  arguments = dict(a[2:].partition("=")[::2] for a in pod_of(GPU)["containers"][0]["args"])
  host, _, port = arguments["coordinator_address"].partition(":")
  assert host == f"{name}-{job['name']}-0-0.{name}" and 1024 < int(port) < 65536
  assert int(arguments["num_processes"]) == job["template"]["spec"]["parallelism"]


def recording(folder, name, *, then=""):
  """A program that writes its arguments down, one JSON list for each call."""
  folder.mkdir(parents=True, exist_ok=True)
  program = folder / name
  log = json.dumps(str(folder / f"{name}.log"))
  program.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" >> {log}\nprintf '\\n' >> {log}\n{then}\n")
  program.chmod(0o755)


def recorded(folder, name):
  log = folder / f"{name}.log"
  return [line.split("\0")[:-1] for line in log.read_text().splitlines()] if log.exists() else []


def run_slurm(folder, *, exit_code):
  """What the batch script calls, by program, where training ends with that code."""
  for place in (folder / "env" / "bin", folder):
    recording(place, "deepscan", then=f"exit {exit_code}")
  recording(folder, "srun", then='while [[ $1 == -* ]]; do shift; done; exec "$@"')
  recording(folder, "scontrol")
  script = SLURM.read_text(encoding="utf-8").replace("YOUR_FOLDER", str(folder))
  environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8"}
  done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == exit_code, done.stderr
  return {
    "deepscan": recorded(folder / "env" / "bin", "deepscan"),
    "scontrol": recorded(folder, "scontrol"),
    "srun": recorded(folder, "srun"),
  }


@pytest.mark.parametrize(("exit_code", "asked"), [(0, []), (1, []), (2, []), (STOPPED, [["requeue", "77"]])])
def test_slurm_goes_on_after_training_was_told_to_stop_and_only_then(tmp_path, exit_code, asked):
  assert run_slurm(tmp_path, exit_code=exit_code)["scontrol"] == asked


def test_slurm_tells_each_process_its_cores(tmp_path):
  """Since 22.05, srun does not take them from sbatch."""
  (command,) = run_slurm(tmp_path, exit_code=0)["srun"]
  assert command[:2] == ["--cpus-per-task=8", f"{tmp_path}/env/bin/deepscan"]
  (workers,) = [int(a.rpartition("=")[2]) for a in command if a.startswith("--set=data.workers=")]
  assert 0 < workers < int(read(SLURM)[0]["cpus-per-task"]) == 8


def test_slurm_leaves_time_to_save_and_gives_each_process_one_gpu():
  assert subprocess.run(["bash", "-n", str(SLURM)], check=False).returncode == 0
  launch, _ = read(SLURM)
  assert int(launch["signal"].partition("@")[2]) >= 60
  # As JAX counts them where Slurm started it.
  assert launch["ntasks-per-node"] == launch["gpus-per-node"]


def skypilot_command(folder):
  launch, _ = read(SKYPILOT)
  program = folder / "deepscan" / "bin"
  recording(program, "deepscan")
  environment = {
    "PATH": os.environ["PATH"],
    "HOME": str(folder),
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_NODES": "2",
  }
  subprocess.run(["bash", "-euc", launch["run"]], env=environment, check=True)
  (command,) = recorded(program, "deepscan")
  return command


def test_skypilot_names_the_first_machine_and_comes_back_after_preemption(tmp_path):
  assert "--coordinator_address=10.0.0.5:8476" in skypilot_command(tmp_path)
  launch, _ = read(SKYPILOT)
  assert launch["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]
  assert launch["num_nodes"] == 2
  assert subprocess.run(["bash", "-nc", launch["setup"]], check=False).returncode == 0
  (mount,) = launch["file_mounts"]
  assert launch["run"].count(f"={mount}/") == 2


def test_the_image_runs_as_nobody_special_and_pins_its_base():
  text = DOCKERFILE.read_text(encoding="utf-8")
  assert re.search(r"^ARG BASE=\S+:\S+$", text, re.MULTILINE)
  users = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
  contexts = [pod_of(path)["securityContext"] for path in (TPU, GPU)]
  assert users == [(str(c["runAsUser"]), str(c["fsGroup"])) for c in contexts[:1]]
  assert contexts[0] == contexts[1]
  assert "apt" not in text


@pytest.mark.parametrize("path", [SKYPILOT, SLURM, DOCKERFILE], ids=lambda path: path.stem)
def test_what_is_installed_draws_for_tensorboard(path):
  (extras,) = re.findall(r"pip\"? install ['\"]\.\[([^\]]+)\]", path.read_text(encoding="utf-8"))
  assert {"pretrained", "tensorboard"} <= set(re.sub(r"\$\{.*\}", "", extras).split(","))


# In the environment's own folder, which need not be on the path.
HADOLINT = shutil.which(
  "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
needs_hadolint = pytest.mark.skipif(not HADOLINT, reason="hadolint is not installed (the `test` extra)")


@needs_hadolint
def test_hadolint_has_nothing_to_say_about_the_image():
  done = subprocess.run([HADOLINT, str(DOCKERFILE)], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@needs_hadolint
def test_hadolint_sees_what_it_should(tmp_path):
  careless = tmp_path / "Dockerfile"
  careless.write_text("FROM python\nRUN apt-get install curl\n")
  assert subprocess.run([HADOLINT, str(careless)], capture_output=True, check=False).returncode == 1
