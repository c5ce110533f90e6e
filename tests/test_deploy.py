"""The service's image, its chart in launch/helm, rules and dashboard, as far as that goes without a cluster.

What renders the chart wants helm: on the path, or named by DEEPSCAN_HELM; tests/fetch_helm.py fetches one.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chart_schemas
import jsonschema
import pytest
import yaml
from serve_fakes import METRICS_KEY, FakeEngine, make_settings, service

from deepscan_jax.serve import front, metrics, problems
from deepscan_jax.serve.app import make_app
from deepscan_jax.serve.settings import Settings, environment_names
from deepscan_jax.version import __version__

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "launch" / "helm" / "deepscan"
TEMPLATES, FILES = CHART / "templates", CHART / "files"
DOCKERFILE = ROOT / "launch" / "docker" / "Dockerfile.serve"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
# Variables that others than settings.py read: Python, numba, XLA, and what looks for a user's folders.
OTHERS = {"HOME", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NPROC", "PATH"}
OTHERS |= {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}


def changed(changes: dict, base: dict = VALUES) -> dict:
  """Values with some of them, by their dotted names, set to others."""
  values = copy.deepcopy(base)
  for name, value in changes.items():
    *above, last = name.split(".")
    place = values
    for key in above:
      place = place[key]
    place[last] = value
  return values


def variables() -> set[str]:
  """All variables that the service reads."""
  names = environment_names()
  files = {f"{names[f.name]}_FILE" for f in Settings.__dataclass_fields__.values() if f.metadata["secret"]}
  return set(names.values()) | files


# The image ------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
  """(instruction, the rest of it) of the image's Dockerfile."""
  text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
  lines = [line for line in text.splitlines() if line and not line.startswith("#")]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_is_nobody_special_by_number_and_hears_signals():
  last = dict(dockerfile())
  assert last["USER"] == f"{VALUES['runAs']['user']}:{VALUES['runAs']['group']}" == "1000:1000"
  # Without a shell: what is told to end is the service.
  assert json.loads(last["ENTRYPOINT"]) == ["deepscan"] and json.loads(last["CMD"]) == ["serve"]
  assert last["STOPSIGNAL"] == "SIGTERM"
  check = json.loads(re.search(r"CMD (\[.*\])", last["HEALTHCHECK"])[1])
  assert check == ["python", "-m", "deepscan_jax.serve.health"]
  assert (ROOT / "deepscan_jax" / "serve" / "health.py").is_file()
  assert all(re.fullmatch(r"BASE=\S+:\S+|EXTRA=", rest) for name, rest in dockerfile() if name == "ARG")


def test_the_images_environment_is_what_the_service_reads_and_holds_no_secret():
  text = next(rest for name, rest in dockerfile() if name == "ENV")
  environment = dict(part.split("=", 1) for part in text.split())
  assert set(environment) <= variables() | OTHERS
  assert not any(re.search("KEY|URL|TOKEN", name) for name in environment)
  # It writes in its volumes and in /tmp; the chart mounts the same.
  folders = {environment[name] for name in ("DEEPSCAN_DATA_DIR", "XDG_CACHE_HOME")}
  assert folders == set(json.loads(dict(dockerfile())["VOLUME"]))
  assert environment["HOME"] in folders and Path(environment["NUMBA_CACHE_DIR"]).parent in map(Path, folders)
  chart = (TEMPLATES / "deployment.yaml").read_text(encoding="utf-8")
  for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TMPDIR", "DEEPSCAN_DATA_DIR"):
    assert f"- name: {name}\n              value: {environment[name]}\n" in chart
  for folder in (*folders, "/tmp"):
    assert f"mountPath: {folder}\n" in chart
  assert environment["HOST"] == "0.0.0.0" and environment["PORT"] == dict(dockerfile())["EXPOSE"] == "5000"


def test_the_image_gets_what_is_installed_and_nothing_else():
  ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
  assert "*" in ignored and {"launch/cluster", "launch/docker", "launch/helm"} <= set(ignored)
  copied = {line[1:] for line in ignored if line.startswith("!")}
  assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "deepscan_jax", "launch"} <= copied
  assert not any(re.fullmatch(r"\.git|\.venv|tests|data|runs", name) for name in copied)
  (extras,) = re.findall(r'pip install "\.\[([^\]$]+)', DOCKERFILE.read_text(encoding="utf-8"))
  assert set(extras.split(",")) == {"serve", "postgres"}
  for extra in extras.split(","):
    assert re.search(rf'^    "{extra}": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)


def program(name: str, variable: str | None = None) -> str | None:
  """A program of the environment's own folder, of the path, or that a variable names."""
  folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  return os.environ.get(variable or "") or shutil.which(name, path=folders)


@pytest.mark.skipif(not program("hadolint"), reason="hadolint is not installed (the `test` extra)")
def test_hadolint_has_nothing_to_say_about_the_image():
  done = subprocess.run([program("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


# Values ---------------------------------------------------------------------------------------------------


def objects(schema, above=()):
  """(place, schema) of every object of a schema."""
  if isinstance(schema, dict):
    if schema.get("type") == "object":
      yield above, schema
    for key, part in schema.items():
      yield from objects(part, (*above, key))
  elif isinstance(schema, list):
    for number, part in enumerate(schema):
      yield from objects(part, (*above, number))


def test_the_schema_knows_every_value_and_nothing_else():
  jsonschema.Draft7Validator.check_schema(SCHEMA)
  VALIDATOR.validate(VALUES)

  def compare(values, schema):
    assert set(schema.get("required", ())) == set(values), values
    for key, value in values.items():
      if "properties" in schema["properties"][key]:
        compare(value, schema["properties"][key])

  compare(VALUES, SCHEMA)
  # What may hold anything is of Kubernetes itself.
  free = {place[-1] for place, part in objects(SCHEMA) if "additionalProperties" not in part}
  assert free == {
    "podSelector",
    "namespaceSelector",
    "nodeAffinity",
    "podAffinity",
    "podAntiAffinity",
    "global",
  }


def leaves(values, above=""):
  for key, value in values.items():
    if isinstance(value, dict) and value:
      yield from leaves(value, f"{above}{key}.")
    else:
      yield f"{above}{key}", value


def test_a_slip_or_a_wrong_type_is_refused_wherever_it_is():
  named = {name for name, value in leaves(VALUES) if "labels." not in name and "matchLabels" not in name}
  assert len(named) > 80
  for name in named:
    for wrong in ({"no": "such"}, ["x"], None):
      if VALUES_MAPS.search(name) and isinstance(wrong, dict):
        continue
      with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(changed({name: wrong}))
        pytest.fail(f"{name} may be {wrong}")
    slip = changed({f"{name}z": 1})
    if not VALUES_MAPS.search(name):
      with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(slip)
        pytest.fail(f"{name}z is let through")


# Maps of the user's own names to text.
VALUES_MAPS = re.compile(
  r"(annotations|Annotations|abels|nodeSelector|^env)$|grafana_dashboard|^resources\.(requests|limits)\."
)

WRONG = [
  {"replicas": 0},
  {"replicas": "2"},
  {"config.queue": 1.5},
  {"config.host": "localhost"},
  {"config.forwardedAllowIps": "*"},
  {"config.drainSeconds": 0},
  {"image.tag": 1.2},
  {"image.digest": "sha256:12"},
  {"secret.existingSecret": ""},
  {"secret.secretKey": ""},
  {"env": {"SECRET_KEY": "x"}},
  {"env": {"DATABASE_URL": "postgresql://u:p@x/y"}},
  {"env": {"DEEPSCAN_QUEUE": "7"}},
  {"env": {"AWS_SECRET_ACCESS_KEY": "x"}},
  {"models": [{"name": "a"}]},
  {"models": [{"name": "a", "claim": "b", "image": "c:1"}]},
  {"models": [{"name": "A B", "claim": "b"}]},
  {"batchRoots": [{"name": "a", "claim": "b", "path": "../x"}]},
  {"batchRoots": [{"name": "a", "claim": "b", "path": "/x"}]},
  {"uploads.sizeLimit": "lots"},
  {"networkPolicy.from": []},
  {"resources.limits": {"cpu": "4"}},
  {"runAs.user": 0},
  {"service.type": "ExternalName"},
  {"podDisruptionBudget.maxUnavailable": 0},
]


@pytest.mark.parametrize("changes", WRONG, ids=json.dumps)
def test_what_cannot_be_is_refused(changes):
  with pytest.raises(jsonschema.ValidationError):
    VALIDATOR.validate(changed(changes))


STORES = {
  "database.existingSecret": "stores",
  "redis.existingSecret": "stores",
  "networkPolicy.databaseTo": [{"podSelector": {"matchLabels": {"app": "postgres"}}}],
  "networkPolicy.redisTo": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
}
SEVERAL = [{"replicas": 3}, {"autoscaling.enabled": True}, {"autoscaling.enabled": True, "replicas": 3}]
# These are one replica, whatever else is set.
ONE = [
  {},
  {"autoscaling.maxReplicas": 9},
  {"replicas": 3, "autoscaling.enabled": True, "autoscaling.maxReplicas": 1},
]
ONLY_ONE_STORE = [{"database.existingSecret": "stores"}, {"redis.existingSecret": "stores"}]


@pytest.mark.parametrize("changes", SEVERAL, ids=json.dumps)
def test_several_replicas_need_shared_stores(changes):
  for stores in ({}, *ONLY_ONE_STORE):
    with pytest.raises(
      jsonschema.ValidationError, match=r"database\.existingSecret .* and redis\.existingSecret"
    ):
      VALIDATOR.validate(changed(changes | stores))
  VALIDATOR.validate(changed(changes | STORES))
  for alone in ONE:
    VALIDATOR.validate(changed(alone))


# Templates, without helm ----------------------------------------------------------------------------------


def test_what_the_templates_set_is_what_the_service_reads():
  text = (TEMPLATES / "deployment.yaml").read_text(encoding="utf-8")
  named = re.findall(r"- name: ([A-Z][A-Z0-9_]+)\n", text)
  assert len(named) == len(set(named)) > 25
  assert set(named) <= variables() | OTHERS
  # Each of the values that are settings is used, and bounded where the service bounds it.
  used = set(re.findall(r"\.(\w+)", "".join(path.read_text() for path in TEMPLATES.rglob("*.*"))))
  assert {name.rpartition(".")[2] for name, _ in leaves(VALUES["config"])} <= used
  assert set(VALUES) <= used


def test_the_chart_is_of_this_version():
  chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
  assert chart["appVersion"] == __version__ and chart["apiVersion"] == "v2"


def test_probes_and_metrics_ask_for_what_is_there(tmp_path):
  app = make_app(make_settings(tmp_path), FakeEngine())
  known = {route.path for route in _routes(app)}
  for path in TEMPLATES.rglob("*.yaml"):
    for asked in re.findall(r"^\s+path: (/[a-z]+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
      assert asked in known
  app.state.context.uploads.close()


def _routes(app):
  found = []
  for route in app.routes:
    inner = getattr(route, "original_router", None)
    found += [r for r in inner.routes] if inner else [route]
  return [route for route in found if hasattr(route, "path")]


# Templates, with helm -------------------------------------------------------------------------------------

HELM = program("helm", "DEEPSCAN_HELM")
needs_helm = pytest.mark.skipif(not HELM, reason="helm is not installed; tests/fetch_helm.py fetches one")
CHECKER = program("kubernetes-validate")


def helm(verb: str, changes: dict, folder: Path, *more: str) -> subprocess.CompletedProcess:
  values = folder / "values.yaml"
  values.write_text(json.dumps(changed(changes)), encoding="utf-8")
  words = {"lint": ["lint", "--strict"], "template": ["template", "release", "--namespace", "media"]}[verb]
  environment = {**os.environ, "HELM_CACHE_HOME": str(folder), "HELM_CONFIG_HOME": str(folder)}
  return subprocess.run(
    [HELM, *words, str(CHART), "--values", str(values), *more],
    capture_output=True,
    text=True,
    check=False,
    env=environment | {"HELM_DATA_HOME": str(folder)},
    timeout=60,
  )


INGRESS = {
  "ingress.enabled": True,
  "ingress.hosts": [{"host": "deepscan.example.org"}],
  "ingress.tls": [{"secretName": "deepscan-tls", "hosts": ["deepscan.example.org"]}],
  "config.forwardedAllowIps": "10.0.0.0/8",
}
MONITORING = {
  "secret.metricsKey": "METRICS_KEY",
  "networkPolicy.monitoringFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
  "monitoring.serviceMonitor.enabled": True,
  "monitoring.rules.enabled": True,
  "monitoring.dashboard.enabled": True,
}
MATRIX = {
  "default": {},
  "replicas": {"replicas": 3, "secret.apiKey": "API_KEY", **STORES},
  "autoscaling": {"autoscaling.enabled": True, "autoscaling.files": 8, **STORES},
  "database": {k: v for k, v in STORES.items() if "database" in k} | {"persistence.enabled": False},
  "ingress": INGRESS | {"ingress.className": "nginx", "service.annotations": {"a": "b"}},
  "tls": INGRESS
  | {"tls.existingSecret": "pod-tls", "monitoring.serviceMonitor.labels": {"release": "p"}}
  | MONITORING,
  "monitoring": MONITORING,
  "gpu": {
    "gpu.enabled": True,
    "gpu.count": 2,
    "gpu.runtimeClassName": "nvidia",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    **STORES,
  },
  "models": {
    "models": [
      {"name": "news", "claim": "models", "path": "news/1.2.0"},
      {"name": "voices", "image": "registry.example.org/voices:1.0.0", "path": "voices"},
    ],
    "batchRoots": [
      {"name": "archive", "claim": "archive", "path": "2026"},
      {"name": "inbox", "claim": "inbox"},
    ],
    "uploads.medium": "Memory",
    "uploads.sizeLimit": "2Gi",
    "env": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"},
    "imagePullSecrets": [{"name": "registry"}],
    "image.digest": f"sha256:{'ab' * 32}",
    "image.repository": "registry.example.org:5000/deepscan",
    "priorityClassName": "high",
    "podLabels": {"team": "news"},
    "podAnnotations": {"a": "b"},
  },
  "plain": {
    "networkPolicy.enabled": False,
    "podDisruptionBudget.enabled": False,
    "persistence.existingClaim": "1e3",
    "serviceAccount.create": False,
    # What YAML would take for numbers.
    "serviceAccount.name": "12",
    "fullnameOverride": "34",
    "secret.existingSecret": "56",
    "secret.apiKey": "78",
    "service.type": "LoadBalancer",
    "tls.elsewhere": True,
    "config.host": "::",
  },
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
  """By name of MATRIX, the objects by kind; and the folder in which each lies as a file."""
  folder = tmp_path_factory.mktemp("chart")
  found = {}
  for name, changes in MATRIX.items():
    done = helm("template", changes, folder)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    (folder / f"{name}.rendered").write_text(done.stdout, encoding="utf-8")
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    found[name] = {each["kind"]: each for each in objects}
    assert len(found[name]) == len(objects)
  return found, folder


def pod_of(objects: dict) -> dict:
  return objects["Deployment"]["spec"]["template"]["spec"]


def environment_of(objects: dict) -> dict:
  entries = pod_of(objects)["containers"][0]["env"]
  assert len({entry["name"] for entry in entries}) == len(entries)
  return {entry["name"]: entry.get("value") for entry in entries}


@needs_helm
def test_helm_finds_nothing_to_object_to(tmp_path):
  for name in ("default", "autoscaling", "tls", "models"):
    done = helm("lint", MATRIX[name], tmp_path)
    assert done.returncode == 0 and "[ERROR]" not in done.stdout + done.stderr, done.stdout + done.stderr


@needs_helm
def test_what_is_rendered_is_what_the_schemas_know(rendered):
  found, _ = rendered
  for name, objects in found.items():
    for kind, each in objects.items():
      problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(chart_schemas.SCHEMAS[kind]).iter_errors(each)
      )
      assert problem is None, f"{name}: {kind} {list(problem.absolute_path)}: {problem.message}"
      assert name == "plain" or each["metadata"]["name"].startswith("release-deepscan")
  kinds = {kind for objects in found.values() for kind in objects}
  assert kinds == set(chart_schemas.SCHEMAS) and "Secret" not in kinds
  assert set(found["plain"]) == {"Service", "Deployment", "Pod"}


@needs_helm
@pytest.mark.skipif(not CHECKER, reason="kubernetes-validate is not installed")
def test_the_schemas_of_kubernetes_agree(rendered):
  _, folder = rendered
  for path in sorted(folder.glob("*.rendered")):
    objects = [each for each in yaml.safe_load_all(path.read_text()) if each]
    own = [each for each in objects if "monitoring.coreos.com" not in each["apiVersion"]]
    whole = folder / f"{path.stem}.yaml"
    whole.write_text(yaml.safe_dump_all(own), encoding="utf-8")
    done = subprocess.run([CHECKER, "--strict", str(whole)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{path.stem}: {done.stdout}{done.stderr}"


@needs_helm
def test_it_runs_as_nobody_special_and_can_write_only_where_it_has_to(rendered):
  for name, objects in rendered[0].items():
    for pod in (pod_of(objects), objects["Pod"]["spec"]):
      assert pod["securityContext"]["runAsUser"] > 0 and pod["automountServiceAccountToken"] is False
      assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    mounts = {mount["mountPath"]: mount for mount in pod_of(objects)["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(objects)["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/tmp", "/var/cache/deepscan", "/var/lib/deepscan"}, name
    assert not any("hostPath" in volume for volume in volumes.values())


@needs_helm
def test_secrets_are_named_and_never_there(rendered):
  for objects in rendered[0].values():
    environment = environment_of(objects)
    assert set(environment) <= variables() | OTHERS | {"XLA_FLAGS"}
    files = {name: path for name, path in environment.items() if name.endswith("_FILE")}
    volume = next(each for each in pod_of(objects)["volumes"] if each["name"] == "secrets")
    items = [item for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
    assert sorted(files.values()) == sorted(f"/run/secrets/deepscan/{item['path']}" for item in items)
    assert "SECRET_KEY_FILE" in files
    # The URL of a store may hold a password.
    for name in ("SECRET_KEY", "API_KEY", "METRICS_KEY", "DATABASE_URL", "REDIS_URL"):
      assert name not in environment
  several = environment_of(rendered[0]["replicas"])
  assert {"DATABASE_URL_FILE", "REDIS_URL_FILE", "API_KEY_FILE"} <= set(several)


@needs_helm
def test_the_settings_of_the_pod_are_taken_by_the_service(rendered, tmp_path):
  for name, objects in rendered[0].items():
    environment = {key: value for key, value in environment_of(objects).items() if value is not None}
    for key in [key for key in environment if key.endswith("_FILE")]:
      (tmp_path / key).write_text(f"{key}-{'0123456789abcdef' * 2}")
      environment[key] = str(tmp_path / key)
    for key in ("DEEPSCAN_ROOTS", "DEEPSCAN_SSL_CERTFILE", "DEEPSCAN_SSL_KEYFILE"):
      environment.pop(key, None)  # those have to be there
    settings = Settings.read({}, environment | {"DEEPSCAN_TEMP_DIR": str(tmp_path)})
    assert settings.queue == VALUES["config"]["queue"], name
    assert settings.video_bytes == VALUES["config"]["videoBytes"] and settings.drain_s == 60.0
    assert settings.shared_results is False and settings.results_kept_h == 24.0
  models = environment_of(rendered[0]["models"])
  assert models["MODEL_PATH"] == "/models/news,/models/voices/voices"
  assert models["DEEPSCAN_ROOTS"] == "/batch/archive,/batch/inbox"


@needs_helm
def test_nothing_goes_out_but_to_the_stores(rendered):
  policies = {name: objects.get("NetworkPolicy") for name, objects in rendered[0].items()}
  for name in ("default", "ingress", "tls", "monitoring", "models"):
    assert policies[name]["spec"]["egress"] == []
  ports = [[p["port"] for p in rule["ports"]] for rule in policies["replicas"]["spec"]["egress"]]
  assert ports == [[53, 53], [5432], [6379]]
  assert [len(rule["to"]) for rule in policies["replicas"]["spec"]["egress"]] == [1, 1, 1]
  for policy in filter(None, policies.values()):
    labels = rendered[0]["default"]["Deployment"]["spec"]["selector"]["matchLabels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    # `helm test` is let in, by the labels that its pod has.
    test = rendered[0]["default"]["Pod"]["metadata"]["labels"]
    allowed = policy["spec"]["ingress"][0]["from"][-1]["podSelector"]["matchLabels"]
    assert allowed.items() <= test.items() and not labels.items() <= test.items()


@needs_helm
def test_probes_wait_for_the_compiler_and_ends_for_the_requests(rendered):
  for name, objects in rendered[0].items():
    container, pod = pod_of(objects)["containers"][0], pod_of(objects)
    startup, ready, live = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1200
    assert (ready["httpGet"]["path"], live["httpGet"]["path"]) == ("/readyz", "/healthz")
    scheme = "HTTPS" if name == "tls" else "HTTP"
    assert {probe["httpGet"]["scheme"] for probe in (startup, ready, live)} == {scheme}
    assert container["ports"][0]["name"] == startup["httpGet"]["port"]
    environment = environment_of(objects)
    delay, drain = float(environment["DEEPSCAN_DRAIN_DELAY_S"]), float(environment["DEEPSCAN_DRAIN_S"])
    # The server waits for its requests, then the engine for files of jobs.
    assert pod["terminationGracePeriodSeconds"] >= delay + 2 * drain + 15
    # After SIGTERM it is told twice that it is not ready before it stops accepting.
    assert delay >= ready["periodSeconds"] * ready["failureThreshold"]
    assert objects["Deployment"]["spec"]["progressDeadlineSeconds"] > 1200


@needs_helm
def test_only_shared_stores_have_more_than_one_writer(rendered):
  strategies = {name: objects["Deployment"]["spec"]["strategy"] for name, objects in rendered[0].items()}
  for name, strategy in strategies.items():
    shared = "database.existingSecret" in MATRIX[name]
    assert (strategy["type"] == "Recreate") is not shared
    state = next(each for each in pod_of(rendered[0][name])["volumes"] if each["name"] == "state")
    assert ("persistentVolumeClaim" in state) is not shared
  assert strategies["gpu"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
  assert "replicas" not in rendered[0]["autoscaling"]["Deployment"]["spec"]
  assert rendered[0]["autoscaling"]["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 6
  limits = pod_of(rendered[0]["gpu"])["containers"][0]["resources"]["limits"]
  assert limits["nvidia.com/gpu"] == 2 and "nvidia.com/gpu" not in VALUES["resources"]["limits"]
  assert pod_of(rendered[0]["gpu"])["tolerations"][-1]["key"] == "nvidia.com/gpu"


@needs_helm
def test_the_volume_of_uploads_holds_what_may_come(rendered):
  volume = next(each for each in pod_of(rendered[0]["default"])["volumes"] if each["name"] == "uploads")
  config = VALUES["config"]
  need = (config["queue"] + config["jobsPerKey"]) * config["videoBytes"]
  assert need < int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 2**20 < 1.1 * need
  annotations = rendered[0]["ingress"]["Ingress"]["metadata"]["annotations"]
  assert (
    int(annotations["nginx.ingress.kubernetes.io/proxy-body-size"]) == config["videoBytes"] + front.BODY_BYTES
  )
  assert "nginx.ingress.kubernetes.io/backend-protocol" not in annotations
  tls = rendered[0]["tls"]["Ingress"]["metadata"]["annotations"]
  assert tls["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
  assert rendered[0]["tls"]["Service"]["spec"]["ports"][0]["appProtocol"] == "https"


@needs_helm
def test_prometheus_has_its_own_key_by_reference(rendered):
  (endpoint,) = rendered[0]["monitoring"]["ServiceMonitor"]["spec"]["endpoints"]
  assert endpoint["authorization"]["credentials"] == {"name": "deepscan", "key": "METRICS_KEY"}
  assert rendered[0]["tls"]["ServiceMonitor"]["spec"]["endpoints"][0]["scheme"] == "https"
  assert rendered[0]["tls"]["ServiceMonitor"]["metadata"]["labels"]["release"] == "p"
  # As they stand in their files, whatever braces are in them.
  assert rendered[0]["monitoring"]["PrometheusRule"]["spec"] == RULES
  assert json.loads(rendered[0]["monitoring"]["ConfigMap"]["data"]["deepscan.json"]) == DASHBOARD


@needs_helm
def test_the_test_of_a_release_asks_its_own_service(rendered):
  for name, objects in rendered[0].items():
    pod = objects["Pod"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (url,) = pod["spec"]["containers"][0]["args"]
    scheme = "https" if name == "tls" else "http"
    assert url == f"{scheme}://{objects['Service']['metadata']['name']}:80/readyz"


REFUSED = [
  ({"replicas": 3}, "Up to 3 replicas would each have their own keys, jobs and counts"),
  ({"autoscaling.enabled": True}, "Up to 6 replicas would each have their own"),
  ({"replicas": 2, "redis.existingSecret": "stores"}, "set database.existingSecret (PostgreSQL) and redis"),
  ({"database.existingSecret": "stores"}, "cut the pods off from the database"),
  ({"redis.existingSecret": "stores"}, "cut the pods off from Redis"),
  (STORES | {"autoscaling.enabled": True, "autoscaling.minReplicas": 9}, "minReplicas is larger"),
  (STORES | {"autoscaling.enabled": True, "autoscaling.cpuPercent": 0}, "autoscaling has nothing to go by"),
  (INGRESS | {"ingress.hosts": []}, "ingress.hosts is empty"),
  (INGRESS | {"ingress.tls": []}, "Keys and files would travel in the clear"),
  ({"service.type": "LoadBalancer"}, "in the clear through the LoadBalancer"),
  (INGRESS | {"config.forwardedAllowIps": ""}, "one with a wrong key would lock out all"),
  (MONITORING | {"secret.metricsKey": ""}, "Prometheus needs a key for /metrics"),
  (MONITORING | {"networkPolicy.monitoringFrom": []}, "keep Prometheus out"),
  (MONITORING | {"config.readsPerHour": 100}, "240 times an hour, more than config.readsPerHour"),
  (
    {"gpu.enabled": True, "resources.limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}},
    "gpu.count only",
  ),
]


@needs_helm
@pytest.mark.parametrize("changes, sentence", REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_would_not_work_or_not_be_safe_is_told_in_a_sentence(tmp_path, changes, sentence):
  # The schema comes first; where it is skipped, the templates refuse as well.
  done = helm("template", changes, tmp_path, "--skip-schema-validation")
  assert done.returncode != 0 and not done.stdout and sentence in done.stderr


@needs_helm
def test_the_schema_speaks_in_a_sentence_too(tmp_path):
  done = helm("template", {"replicas": 3}, tmp_path)
  assert done.returncode != 0 and "which more than one replica share: set both, or keep" in done.stderr
  done = helm("template", {"image.tagg": "x"}, tmp_path)
  assert done.returncode != 0 and "additional properties 'tagg' not allowed" in done.stderr
  old = helm("template", MATRIX["models"], tmp_path, "--kube-version", "1.30.0")
  assert old.returncode != 0 and "The model voices is an image" in old.stderr


# Rules and dashboard --------------------------------------------------------------------------------------

RULES = yaml.safe_load((FILES / "rules.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
RULE_TESTS = Path(__file__).with_name("deploy_rules.yaml")
_SELECTED = re.compile(r"\b(deepscan_\w+)(?:\{([^}]*)\})?")
# Labels that Prometheus itself adds.
ADDED = {"namespace", "job", "instance", "pod"}


def rules() -> list[dict]:
  return [rule for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[dict]:
  return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
  shown = [target["expr"] for panel in panels() for target in panel["targets"]]
  return [rule["expr"] for rule in rules()] + shown


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """By name of a series, the labels that the service gives it; with the readings of the real engine."""
  from deepscan_jax.serve.engine import Engine

  with service(tmp_path_factory.mktemp("exported")) as client:
    told = client.app.state.context.metrics
    engine = Engine()
    told.watch(lambda: {f"real_{name}": value for name, value in engine.stats().items()})
    text = client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_KEY}"}).text
    engine.close()
    counted = {c._name: set(c._labelnames) for c in vars(told).values() if hasattr(c, "_labelnames")}
  found = {}
  for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
    name = name.replace("deepscan_real_", "deepscan_")
    base = name.removesuffix("_total") if kind == "counter" else name
    parts = {"histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
    for part in parts:
      labels = counted.get(
        base, {"of"} if name in ("deepscan_seconds", "deepscan_batches", "deepscan_jobs") else set()
      )
      found[name + part] = labels | ({"le"} if part == "_bucket" else set())
  return found


def test_rules_and_dashboard_go_by_what_is_exported(exported):
  used = set()
  for expression in expressions():
    for name, selector in _SELECTED.findall(expression):
      assert name in exported, f"{name} of {expression} is not exported"
      used.add(name)
      for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
        assert label in exported[name] | ADDED, f"{name} has no label {label}"
    by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert by <= ADDED | {"le"} | set().union(*exported.values())
  assert {
    "deepscan_ready",
    "deepscan_expired_leases",
    "deepscan_temp_free_bytes",
    "deepscan_job_files_total",
  } <= used
  # Two readings have one name: a part of the engine that is renamed is seen.
  assert {"deepscan_held_bytes", "deepscan_padded_rows", "deepscan_seconds"} <= used
  recorded = {rule["record"] for rule in rules() if "record" in rule}
  named = {name for text in expressions() for name in re.findall(r"\bdeepscan(?::\w+)+", text)}
  assert named == recorded


def test_rules_look_for_values_that_there_are(tmp_path):
  app = make_app(make_settings(tmp_path), FakeEngine())
  app.state.context.uploads.close()
  routes = {route.path for route in _routes(app)}
  limits = {"failed-auth", "requests", "reads"}
  bounds = {f"{bound:g}" for bound in metrics._SECONDS}
  for expression in expressions():
    for values in re.findall(r'\bcode=~?"([^"]+)"', expression):
      assert set(values.split("|")) <= set(problems.PROBLEMS)
    for value in re.findall(r'\broute=~?"([^"]+)"', expression):
      assert any(re.fullmatch(value, route) for route in routes), value
    assert set(re.findall(r'\blimit="([^"]+)"', expression)) <= limits
    assert set(re.findall(r'\bof="([^"]+)"', expression)) <= {"running", "listing"}
  # What latency is compared with is an edge of the histogram, so nothing is guessed there.
  slow = re.findall(
    r"request_seconds:p95_rate10m\{[^}]*\} > (\d+)", " ".join(rule["expr"] for rule in rules())
  )
  assert len(slow) == 3 and set(slow) <= bounds


def test_rules_are_what_prometheus_reads():
  jsonschema.validate(RULES, chart_schemas.RULES)
  names = [rule.get("alert") or rule["record"] for rule in rules()]
  assert len(set(names)) == len(names)
  asked = RULE_TESTS.read_text(encoding="utf-8")
  for rule in rules():
    if "alert" in rule:
      assert rule["alert"] in asked, f"no test asks for {rule['alert']}"


@pytest.mark.skipif(not program("promtool", "DEEPSCAN_PROMTOOL"), reason="promtool is not installed")
def test_promtool_agrees_and_alerts_come_when_they_should(tmp_path):
  tool = program("promtool", "DEEPSCAN_PROMTOOL")
  shown = [re.sub(r"\$(namespace|job)\b", ".*", e) for e in expressions()]
  (tmp_path / "shown.yaml").write_text(
    yaml.safe_dump(
      {"groups": [{"name": "a", "rules": [{"record": f"x:{i}", "expr": e} for i, e in enumerate(shown)]}]}
    )
  )
  for command in (
    ["check", "rules", str(FILES / "rules.yaml"), str(tmp_path / "shown.yaml")],
    ["test", "rules", str(RULE_TESTS)],
  ):
    done = subprocess.run([tool, *command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_dashboard_can_be_imported_and_nothing_lies_on_another():
  jsonschema.validate(DASHBOARD, chart_schemas.DASHBOARD)
  ids = [panel["id"] for panel in DASHBOARD["panels"]]
  assert len(set(ids)) == len(ids) > 25
  taken = set()
  for panel in DASHBOARD["panels"]:
    grid = panel["gridPos"]
    assert grid["x"] + grid["w"] <= 24
    cells = {
      (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
    }
    assert not cells & taken, panel["title"]
    taken |= cells
  for panel in panels():
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)
    for target in panel["targets"]:
      # Another service's numbers never mix in.
      assert target["expr"].count("$namespace") == target["expr"].count("deepscan") >= 1
  first, *others = DASHBOARD["templating"]["list"]
  assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
  assert [variable["name"] for variable in others] == ["namespace", "job"]
