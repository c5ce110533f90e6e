"""What the files in launch/cluster may say: JSON schemas of the parts that we use, which allow nothing else.

They are ours, not those of Kubernetes or SkyPilot, so that they need no network; names and types follow the
JobSet API (jobset.x-k8s.io/v1alpha2), the Kubernetes API (batch/v1, v1), SkyPilot's YAML and sbatch(1).
"""

TEXT, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1}, {"type": "boolean"}


def strict(required: dict, optional: dict | None = None) -> dict:
  """An object of these keys and no others."""
  return {
    "type": "object",
    "properties": {**required, **(optional or {})},
    "required": list(required),
    "additionalProperties": False,
  }


def listed(item: dict) -> dict:
  """A list of one or more."""
  return {"type": "array", "items": item, "minItems": 1}


def one_of(*values) -> dict:
  """One of these values."""
  return {"enum": list(values)}


_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_QUANTITY = {"type": "string", "pattern": "^[0-9]+(Mi|Gi|Ti)?$"}

CONTAINER = strict(
  {
    "name": _NAME,
    "image": {"type": "string", "pattern": "^[^ :]+:[^ :]+$"},
    "command": listed(TEXT),
    "args": listed(TEXT),
    "resources": strict(
      {
        "limits": {
          **strict({}, {"google.com/tpu": COUNT, "nvidia.com/gpu": COUNT}),
          "minProperties": 1,
        }
      }
    ),
    "volumeMounts": listed(strict({"name": _NAME, "mountPath": TEXT}, {"subPath": TEXT, "readOnly": FLAG})),
  },
  {
    "env": listed(
      {
        "oneOf": [
          strict({"name": TEXT, "value": TEXT}),
          strict({"name": TEXT, "valueFrom": strict({"fieldRef": strict({"fieldPath": TEXT})})}),
        ]
      }
    )
  },
)

VOLUME = {
  "oneOf": [
    strict({"name": _NAME, "persistentVolumeClaim": strict({"claimName": TEXT})}),
    strict({"name": _NAME, "emptyDir": strict({"medium": one_of("Memory"), "sizeLimit": _QUANTITY})}),
  ]
}

POD = strict(
  {
    # A pod failure policy wants it so.
    "restartPolicy": one_of("Never"),
    "terminationGracePeriodSeconds": {"type": "integer", "minimum": 120},
    "nodeSelector": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    "securityContext": strict({"runAsNonRoot": one_of(True), "runAsUser": COUNT, "fsGroup": COUNT}),
    "containers": listed(CONTAINER),
    "volumes": listed(VOLUME),
  }
)

JOB = strict(
  {
    "parallelism": COUNT,
    "completions": COUNT,
    "completionMode": one_of("Indexed"),
    "backoffLimit": one_of(0),
    "podFailurePolicy": strict(
      {
        "rules": listed(
          {
            "oneOf": [
              strict(
                {
                  "action": one_of("FailJob"),
                  "onPodConditions": listed(
                    strict({"type": one_of("DisruptionTarget"), "status": one_of("True")})
                  ),
                }
              ),
              strict(
                {
                  "action": one_of("FailJob"),
                  "onExitCodes": strict(
                    {"containerName": _NAME, "operator": one_of("In"), "values": listed(COUNT)}
                  ),
                }
              ),
            ]
          }
        )
      }
    ),
    "template": strict({"spec": POD}),
  }
)

JOBSET = strict(
  {
    "apiVersion": one_of("jobset.x-k8s.io/v1alpha2"),
    "kind": one_of("JobSet"),
    "metadata": strict(
      {"name": _NAME, "labels": strict({"kueue.x-k8s.io/queue-name": TEXT})},
      {"annotations": strict({"alpha.jobset.sigs.k8s.io/exclusive-topology": TEXT})},
    ),
    "spec": strict(
      {
        "network": strict({"enableDNSHostnames": one_of(True), "publishNotReadyAddresses": one_of(True)}),
        "failurePolicy": strict(
          {
            "maxRestarts": COUNT,
            "rules": listed(
              strict(
                {
                  "name": _NAME,
                  "action": one_of("RestartJobSetAndIgnoreMaxRestarts"),
                  "onJobFailureReasons": listed(one_of("PodFailurePolicy")),
                }
              )
            ),
          }
        ),
        "replicatedJobs": listed(
          strict({"name": _NAME, "replicas": COUNT, "template": strict({"spec": JOB})})
        ),
      }
    ),
  }
)

SKYPILOT = strict(
  {
    "name": _NAME,
    "num_nodes": COUNT,
    "workdir": TEXT,
    "resources": strict(
      {
        "infra": TEXT,
        "accelerators": {"type": "string", "pattern": "^[A-Za-z0-9-]+:[0-9]+$"},
        "use_spot": FLAG,
        "disk_size": COUNT,
        "job_recovery": strict(
          {
            "max_restarts_on_errors": COUNT,
            "recover_on_exit_codes": listed({"type": "integer", "minimum": 1, "maximum": 255}),
          }
        ),
      }
    ),
    "file_mounts": {
      "type": "object",
      "patternProperties": {"^/": strict({"source": TEXT, "mode": one_of("MOUNT")})},
      "additionalProperties": False,
      "minProperties": 1,
    },
    "setup": TEXT,
    "run": TEXT,
  }
)

_NUMBER = {"type": "string", "pattern": "^[0-9]+$"}
# The values of #SBATCH lines; "" where there is none.
SBATCH = strict(
  {
    "job-name": _NAME,
    "partition": TEXT,
    "nodes": _NUMBER,
    "gpus-per-node": _NUMBER,
    "ntasks-per-node": _NUMBER,
    "cpus-per-task": _NUMBER,
    "mem": _NUMBER,
    "time": {"type": "string", "pattern": "^[0-9]+:[0-5][0-9]:[0-5][0-9]$"},
    "signal": {"type": "string", "pattern": "^TERM@[0-9]+$"},
    "requeue": one_of(""),
    "open-mode": one_of("append"),
    "output": {"type": "string", "pattern": "%j"},
  }
)
