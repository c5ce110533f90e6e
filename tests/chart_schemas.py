"""What launch/helm may render, and its rules and dashboard: JSON schemas of the parts that it uses.

They allow nothing else, and are ours, so that they need no network; names and types follow the Kubernetes
API (v1, apps/v1, autoscaling/v2, networking.k8s.io/v1, policy/v1), that of Prometheus Operator
(monitoring.coreos.com/v1) and what Grafana exports.
"""

from launch_schemas import COUNT, FLAG, TEXT, listed, one_of, strict

NUMBER = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
LABEL = {"type": "string", "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", "maxLength": 63}
LABELS = {"type": "object", "additionalProperties": LABEL, "minProperties": 1}
METADATA = strict({"name": NAME, "labels": LABELS}, {"annotations": STRINGS})
SELECTOR = strict({"matchLabels": LABELS})
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
SCHEME = one_of("HTTP", "HTTPS")


def _resource(version: str, kind: str, **parts) -> dict:
  return strict({"apiVersion": one_of(version), "kind": one_of(kind), "metadata": METADATA, **parts})


ENV = {
  "oneOf": [
    strict({"name": TEXT, "value": {"type": "string"}}),
    strict(
      {
        "name": TEXT,
        "valueFrom": strict({"resourceFieldRef": strict({"containerName": NAME, "resource": TEXT})}),
      }
    ),
  ]
}
PROBE = strict(
  {
    "periodSeconds": COUNT,
    "failureThreshold": COUNT,
    "timeoutSeconds": COUNT,
    "httpGet": strict(
      {"path": {"type": "string", "pattern": "^/"}, "port": one_of("http"), "scheme": SCHEME}
    ),
  }
)
HARDENED = strict(
  {
    "allowPrivilegeEscalation": one_of(False),
    "privileged": one_of(False),
    "readOnlyRootFilesystem": one_of(True),
    "runAsNonRoot": one_of(True),
    "capabilities": strict({"drop": {"const": ["ALL"]}}),
  }
)
POD_SECURITY = strict(
  {
    "runAsNonRoot": one_of(True),
    "runAsUser": COUNT,
    "runAsGroup": COUNT,
    "seccompProfile": strict({"type": one_of("RuntimeDefault")}),
  },
  {"fsGroup": COUNT, "fsGroupChangePolicy": one_of("OnRootMismatch")},
)
AMOUNTS = {
  "type": "object",
  "properties": {"cpu": QUANTITY, "memory": QUANTITY},
  "additionalProperties": COUNT,
  "required": ["cpu", "memory"],
}
CONTAINER = strict(
  {
    "name": NAME,
    "image": {"type": "string", "pattern": "^[^ :@]+(:[0-9]+/[^ :@]+)?(:[^ :@]+|@sha256:[0-9a-f]{64})$"},
    "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
    "args": listed(TEXT),
    "securityContext": HARDENED,
    "resources": strict({"requests": AMOUNTS, "limits": AMOUNTS}),
  },
  {
    "command": listed(TEXT),
    "ports": listed(strict({"name": NAME, "containerPort": PORT, "protocol": one_of("TCP")})),
    "env": listed(ENV),
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": listed(
      strict(
        {"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}}, {"readOnly": FLAG, "subPath": TEXT}
      )
    ),
  },
)
# Files that the group of the pod may read, and nobody else.
_MODE = one_of(0o440)
_SECRET = strict({"secret": strict({"name": NAME, "items": listed(strict({"key": TEXT, "path": TEXT}))})})
VOLUME = {
  "oneOf": [
    strict({"name": NAME, "projected": strict({"defaultMode": _MODE, "sources": listed(_SECRET)})}),
    strict({"name": NAME, "secret": strict({"secretName": NAME, "defaultMode": _MODE})}),
    strict({"name": NAME, "emptyDir": strict({"sizeLimit": QUANTITY}, {"medium": one_of("Memory")})}),
    strict({"name": NAME, "persistentVolumeClaim": strict({"claimName": NAME}, {"readOnly": one_of(True)})}),
    strict({"name": NAME, "image": strict({"reference": TEXT, "pullPolicy": one_of("IfNotPresent")})}),
  ]
}
TOLERATION = strict(
  {"key": TEXT, "operator": one_of("Exists", "Equal"), "effect": TEXT}, {"value": {"type": "string"}}
)
SPREAD = strict(
  {
    "maxSkew": COUNT,
    "topologyKey": TEXT,
    "whenUnsatisfiable": one_of("ScheduleAnyway"),
    "labelSelector": SELECTOR,
  }
)
_POD = {
  "automountServiceAccountToken": one_of(False),
  "enableServiceLinks": one_of(False),
  "securityContext": POD_SECURITY,
  "containers": {**listed(CONTAINER), "maxItems": 1},
}
POD = strict(
  {
    **_POD,
    "serviceAccountName": NAME,
    "shareProcessNamespace": FLAG,
    "terminationGracePeriodSeconds": COUNT,
    "volumes": listed(VOLUME),
  },
  {
    "imagePullSecrets": listed(strict({"name": NAME})),
    "priorityClassName": NAME,
    "runtimeClassName": NAME,
    "nodeSelector": STRINGS,
    "tolerations": listed(TOLERATION),
    "affinity": {"type": "object"},
    "topologySpreadConstraints": listed(SPREAD),
  },
)
STRATEGY = {
  "oneOf": [
    strict({"type": one_of("Recreate")}),
    strict(
      {
        "type": one_of("RollingUpdate"),
        "rollingUpdate": strict({"maxSurge": NUMBER, "maxUnavailable": NUMBER}),
      }
    ),
  ]
}
PEER = {
  "oneOf": [
    strict({"ipBlock": strict({"cidr": TEXT}, {"except": listed(TEXT)})}),
    {
      **strict({}, {"podSelector": {"type": "object"}, "namespaceSelector": {"type": "object"}}),
      "minProperties": 1,
    },
  ]
}
_NETWORK_PORT = strict({"port": {"anyOf": [PORT, NAME]}, "protocol": one_of("TCP", "UDP")}, {"endPort": PORT})
_BACKEND = strict({"service": strict({"name": NAME, "port": strict({"name": one_of("http")})})})

SCHEMAS = {
  "Deployment": _resource(
    "apps/v1",
    "Deployment",
    spec=strict(
      {
        "revisionHistoryLimit": NUMBER,
        "progressDeadlineSeconds": COUNT,
        "strategy": STRATEGY,
        "selector": SELECTOR,
        "template": strict({"metadata": strict({"labels": LABELS}, {"annotations": STRINGS}), "spec": POD}),
      },
      {"replicas": COUNT},
    ),
  ),
  "Pod": _resource(
    "v1",
    "Pod",
    spec=strict(
      {**_POD, "restartPolicy": one_of("Never")}, {"imagePullSecrets": listed(strict({"name": NAME}))}
    ),
  ),
  "Service": _resource(
    "v1",
    "Service",
    spec=strict(
      {
        "type": one_of("ClusterIP", "NodePort", "LoadBalancer"),
        "selector": LABELS,
        "ports": listed(
          strict(
            {
              "name": NAME,
              "port": PORT,
              "targetPort": one_of("http"),
              "protocol": one_of("TCP"),
              "appProtocol": one_of("http", "https"),
            }
          )
        ),
      },
      {"externalTrafficPolicy": one_of("Local")},
    ),
  ),
  "ServiceAccount": _resource("v1", "ServiceAccount", automountServiceAccountToken=one_of(False)),
  "PersistentVolumeClaim": _resource(
    "v1",
    "PersistentVolumeClaim",
    spec=strict(
      {
        "accessModes": {"const": ["ReadWriteOnce"]},
        "resources": strict({"requests": strict({"storage": QUANTITY})}),
      },
      {"storageClassName": NAME},
    ),
  ),
  "ConfigMap": _resource("v1", "ConfigMap", data=STRINGS),
  "Ingress": _resource(
    "networking.k8s.io/v1",
    "Ingress",
    spec=strict(
      {
        "rules": listed(
          strict(
            {
              "host": TEXT,
              "http": strict(
                {
                  "paths": listed(
                    strict({"path": one_of("/"), "pathType": one_of("Prefix"), "backend": _BACKEND})
                  )
                }
              ),
            }
          )
        )
      },
      {"ingressClassName": NAME, "tls": listed(strict({"secretName": NAME, "hosts": listed(TEXT)}))},
    ),
  ),
  "HorizontalPodAutoscaler": _resource(
    "autoscaling/v2",
    "HorizontalPodAutoscaler",
    spec=strict(
      {
        "scaleTargetRef": strict(
          {"apiVersion": one_of("apps/v1"), "kind": one_of("Deployment"), "name": NAME}
        ),
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "metrics": listed(
          {
            "oneOf": [
              strict(
                {
                  "type": one_of("Resource"),
                  "resource": strict(
                    {
                      "name": one_of("cpu"),
                      "target": strict({"type": one_of("Utilization"), "averageUtilization": COUNT}),
                    }
                  ),
                }
              ),
              strict(
                {
                  "type": one_of("Pods"),
                  "pods": strict(
                    {
                      "metric": strict({"name": TEXT}),
                      "target": strict({"type": one_of("AverageValue"), "averageValue": QUANTITY}),
                    }
                  ),
                }
              ),
            ]
          }
        ),
        "behavior": strict(
          {
            "scaleDown": strict(
              {
                "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
                "policies": listed(
                  strict({"type": one_of("Pods", "Percent"), "value": COUNT, "periodSeconds": COUNT})
                ),
              }
            )
          }
        ),
      }
    ),
  ),
  "PodDisruptionBudget": _resource(
    "policy/v1",
    "PodDisruptionBudget",
    spec=strict(
      {
        "maxUnavailable": {"anyOf": [COUNT, TEXT]},
        "unhealthyPodEvictionPolicy": one_of("AlwaysAllow", "IfHealthyBudget"),
        "selector": SELECTOR,
      }
    ),
  ),
  "NetworkPolicy": _resource(
    "networking.k8s.io/v1",
    "NetworkPolicy",
    spec=strict(
      {
        "podSelector": SELECTOR,
        "policyTypes": {"const": ["Ingress", "Egress"]},
        "ingress": listed(strict({"from": listed(PEER), "ports": listed(_NETWORK_PORT)})),
        "egress": {"type": "array", "items": strict({"to": listed(PEER), "ports": listed(_NETWORK_PORT)})},
      }
    ),
  ),
  "ServiceMonitor": _resource(
    "monitoring.coreos.com/v1",
    "ServiceMonitor",
    spec=strict(
      {
        "selector": SELECTOR,
        "endpoints": listed(
          strict(
            {
              "port": one_of("http"),
              "path": one_of("/metrics"),
              "scheme": one_of("http", "https"),
              "interval": {"type": "string", "pattern": "^[0-9]+s$"},
              "authorization": strict(
                {"type": one_of("Bearer"), "credentials": strict({"name": NAME, "key": TEXT})}
              ),
            },
            {"tlsConfig": strict({"insecureSkipVerify": FLAG})},
          )
        ),
      }
    ),
  ),
}

_DURATION = {"type": "string", "pattern": "^[0-9]+[smhd]$"}
_RULE = {
  "oneOf": [
    strict({"record": {"type": "string", "pattern": "^deepscan(:[a-z0-9_]+)+$"}, "expr": TEXT}),
    strict(
      {
        "alert": {"type": "string", "pattern": "^Deepscan[A-Z][A-Za-z]+$"},
        "expr": TEXT,
        "labels": strict({"severity": one_of("page", "ticket")}),
        "annotations": strict({"summary": TEXT, "runbook": TEXT}),
      },
      {"for": _DURATION},
    ),
  ]
}
RULES = strict({"groups": listed(strict({"name": NAME, "rules": listed(_RULE)}, {"interval": _DURATION}))})
SCHEMAS["PrometheusRule"] = _resource("monitoring.coreos.com/v1", "PrometheusRule", spec=RULES)

_SOURCE = strict({"type": one_of("prometheus"), "uid": one_of("${datasource}")})
_PANEL = strict(
  {
    "id": COUNT,
    "type": one_of("timeseries", "stat"),
    "title": TEXT,
    "description": {"type": "string"},
    "datasource": _SOURCE,
    "gridPos": strict({"x": NUMBER, "y": NUMBER, "w": COUNT, "h": COUNT}),
    "fieldConfig": strict(
      {
        "defaults": strict(
          {
            "unit": one_of("none", "s", "bytes", "percentunit", "reqps", "ops"),
            "thresholds": strict(
              {
                "mode": one_of("absolute"),
                "steps": listed(strict({"color": TEXT, "value": {"type": ["number", "null"]}})),
              }
            ),
          },
          {"min": {"type": "number"}, "max": {"type": "number"}, "decimals": COUNT},
        ),
        "overrides": {"const": []},
      }
    ),
    "options": {"type": "object", "minProperties": 1},
    "targets": listed(
      strict(
        {
          "datasource": _SOURCE,
          "editorMode": one_of("code"),
          "expr": TEXT,
          "legendFormat": TEXT,
          "range": one_of(True),
          "refId": {"type": "string", "pattern": "^[A-Z]$"},
        }
      )
    ),
  }
)
_ROW = strict(
  {
    "id": COUNT,
    "type": one_of("row"),
    "title": TEXT,
    "collapsed": one_of(False),
    "gridPos": strict({"x": one_of(0), "y": NUMBER, "w": one_of(24), "h": one_of(1)}),
    "panels": {"const": []},
  }
)
_VARIABLE = strict(
  {
    "name": TEXT,
    "label": TEXT,
    "type": one_of("datasource", "query"),
    "query": {},
    "refresh": COUNT,
    "regex": {"type": "string"},
    "multi": FLAG,
    "includeAll": FLAG,
    "hide": NUMBER,
    "current": {"type": "object"},
    "options": {"const": []},
    "skipUrlSync": FLAG,
  },
  {"datasource": _SOURCE, "definition": TEXT, "sort": NUMBER, "allValue": TEXT},
)
DASHBOARD = strict(
  {
    "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
    "title": TEXT,
    "description": TEXT,
    "tags": listed(TEXT),
    "schemaVersion": {"type": "integer", "minimum": 36},
    "version": COUNT,
    "editable": FLAG,
    "graphTooltip": NUMBER,
    "timezone": {"type": "string"},
    "refresh": TEXT,
    "time": strict({"from": TEXT, "to": TEXT}),
    "timepicker": {"type": "object"},
    "weekStart": {"type": "string"},
    "fiscalYearStartMonth": NUMBER,
    "liveNow": FLAG,
    "links": {"type": "array"},
    "annotations": {"type": "object"},
    "templating": strict({"list": listed(_VARIABLE)}),
    "panels": listed({"oneOf": [_PANEL, _ROW]}),
  }
)
