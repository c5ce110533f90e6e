{{- define "deepscan.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "deepscan.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "deepscan.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "deepscan.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "deepscan.selectorLabels" -}}
app.kubernetes.io/name: {{ include "deepscan.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: service
{{- end -}}

{{- define "deepscan.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "deepscan.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "deepscan.labels" -}}
{{ include "deepscan.commonLabels" . }}
app.kubernetes.io/component: service
{{- end -}}

{{- define "deepscan.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "deepscan.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "deepscan.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "deepscan.scheme" -}}
{{- ternary "https" "http" (not (empty .Values.tls.existingSecret)) -}}
{{- end -}}

{{/* The most replicas that there may be. */}}
{{- define "deepscan.mostReplicas" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- end -}}

{{/* Bytes of the largest file of all kinds. */}}
{{- define "deepscan.largestBytes" -}}
{{- max (int64 .Values.config.videoBytes) (int64 .Values.config.imageBytes) (int64 .Values.config.audioBytes) -}}
{{- end -}}

{{- define "deepscan.uploadsLimit" -}}
{{- if .Values.uploads.sizeLimit -}}
{{- .Values.uploads.sizeLimit -}}
{{- else -}}
{{- $files := add (int64 .Values.config.queue) (int64 .Values.config.jobsPerKey) -}}
{{- printf "%dMi" (add 64 (div (mul $files (include "deepscan.largestBytes" . | int64)) 1048576)) -}}
{{- end -}}
{{- end -}}

{{/* Seconds after SIGTERM: the requests under way, then files of jobs that are being judged, then tidying up. */}}
{{- define "deepscan.graceSeconds" -}}
{{- add (int64 .Values.config.drainDelaySeconds) (mul 2 (int64 .Values.config.drainSeconds)) 20 -}}
{{- end -}}

{{/* What would not work, or not be safe, in one sentence each; values.schema.json refuses the rest. */}}
{{- define "deepscan.check" -}}
{{- $most := include "deepscan.mostReplicas" . | int -}}
{{- if gt $most 1 -}}
{{- if or (not .Values.database.existingSecret) (not .Values.redis.existingSecret) -}}
{{- fail (printf "Up to %d replicas would each have their own keys, jobs and counts: set database.existingSecret (PostgreSQL) and redis.existingSecret, or keep replicas at 1 and autoscaling.enabled at false." $most) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is larger than autoscaling.maxReplicas; lower it." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.cpuPercent) (not .Values.autoscaling.files) -}}
{{- fail "autoscaling has nothing to go by; set autoscaling.cpuPercent or autoscaling.files." -}}
{{- end -}}
{{- if .Values.networkPolicy.enabled -}}
{{- if and .Values.database.existingSecret (not .Values.networkPolicy.databaseTo) -}}
{{- fail "The network policy would cut the pods off from the database; say where it is in networkPolicy.databaseTo." -}}
{{- end -}}
{{- if and .Values.redis.existingSecret (not .Values.networkPolicy.redisTo) -}}
{{- fail "The network policy would cut the pods off from Redis; say where it is in networkPolicy.redisTo." -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor.enabled (not .Values.networkPolicy.monitoringFrom) -}}
{{- fail "The network policy would keep Prometheus out; say where it is in networkPolicy.monitoringFrom." -}}
{{- end -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}
{{- if not .Values.ingress.hosts -}}
{{- fail "ingress.hosts is empty; name the host." -}}
{{- end -}}
{{- if not (or .Values.ingress.tls .Values.tls.elsewhere) -}}
{{- fail "Keys and files would travel in the clear: set ingress.tls, or tls.elsewhere where HTTPS ends in front of the ingress." -}}
{{- end -}}
{{- if not .Values.config.forwardedAllowIps -}}
{{- fail "Behind an ingress all clients would count as one, and one with a wrong key would lock out all: set config.forwardedAllowIps to the addresses of the ingress controller." -}}
{{- end -}}
{{- end -}}
{{- if and (ne .Values.service.type "ClusterIP") (not (or .Values.tls.existingSecret .Values.tls.elsewhere)) -}}
{{- fail (printf "Keys and files would travel in the clear through the %s: set tls.existingSecret, or tls.elsewhere where HTTPS ends in front of it." .Values.service.type) -}}
{{- end -}}
{{- if .Values.monitoring.serviceMonitor.enabled -}}
{{- if not .Values.secret.metricsKey -}}
{{- fail "Prometheus needs a key for /metrics: put one into the Secret and name it in secret.metricsKey." -}}
{{- end -}}
{{- $reads := div (mul 3600 $most) (int64 .Values.monitoring.serviceMonitor.intervalSeconds) -}}
{{- if gt (mul 2 $reads) (int64 .Values.config.readsPerHour) -}}
{{- fail (printf "Two Prometheus servers would read /metrics %d times an hour, more than config.readsPerHour; raise it, or monitoring.serviceMonitor.intervalSeconds." (mul 2 $reads)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.models -}}
{{- if and .image (not (semverCompare ">=1.33.0-0" $.Capabilities.KubeVersion.Version)) -}}
{{- fail (printf "The model %s is an image, which Kubernetes mounts from 1.33 on; use a claim." .name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gpu.enabled (hasKey .Values.resources.limits .Values.gpu.resource) -}}
{{- fail (printf "%s stands in resources.limits already; give it in gpu.count only." .Values.gpu.resource) -}}
{{- end -}}
{{- end -}}
