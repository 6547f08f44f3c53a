{{- define "agent-executor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "agent-executor.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "agent-executor.selectorLabels" -}}
app.kubernetes.io/name: {{ include "agent-executor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "agent-executor.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "agent-executor.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: agent-executor
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata that every object has: dict "root" $ "name" "…" "component" "…" */}}
{{- define "agent-executor.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "agent-executor.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (default (dict) .annotations) .root.Values.annotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "agent-executor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "agent-executor.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "agent-executor.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{/* What the size gives, as JSON; fails for a size nobody knows. */}}
{{- define "agent-executor.size" -}}
{{- if .Values.size -}}
{{- $size := index .Values.sizes .Values.size -}}
{{- if not $size }}{{ fail (printf "size %q is none of: %s" .Values.size (keys .Values.sizes | sortAlpha | join ", ")) }}{{ end -}}
{{- toJson $size -}}
{{- else -}}
{}
{{- end -}}
{{- end }}

{{- define "agent-executor.resources" -}}
{{- $size := include "agent-executor.size" . | fromJson -}}
{{- if .Values.resources -}}
{{- toYaml .Values.resources -}}
{{- else if $size.cpu -}}
requests:
  cpu: {{ $size.cpu | quote }}
  memory: {{ $size.memory }}
limits:
  cpu: {{ $size.cpuLimit | quote }}
  memory: {{ $size.memory }}
{{- else -}}
{{- fail "give `size` or `resources`" -}}
{{- end -}}
{{- end }}

{{/* The settings of the ConfigMap: those of the size, those the chart knows, those of `config`. */}}
{{- define "agent-executor.settings" -}}
{{- $size := include "agent-executor.size" . | fromJson -}}
{{- $settings := dict
    "PORT" "8080"
    "NATS_EXECUTION_STREAM" .Values.nats.executionStream
    "NATS_EXECUTION_SUBJECTS" (join "," .Values.nats.executionSubjects)
    "NATS_CONSUMER" .Values.nats.consumer
    "NATS_RESULTS_STREAM" .Values.nats.resultsStream
    "NATS_DLQ_STREAM" .Values.nats.dlqStream
    "NATS_ADVISORIES_STREAM" .Values.nats.advisoriesStream
    "NATS_STREAM_REPLICAS" (toString .Values.nats.replicas)
    "NATS_ACK_WAIT_SECONDS" (toString .Values.nats.ackWaitSeconds)
    "NATS_PROVISION" (ternary "true" "false" (eq .Values.nats.provision "self"))
    "SHUTDOWN_GRACE_SECONDS" (toString .Values.shutdownGraceSeconds)
    "MODEL_LIMIT_PARTS" (toString (max 1 (int (ternary .Values.keda.maxReplicas .Values.replicas .Values.keda.enabled))))
-}}
{{- if $size.jobs -}}
{{- $_ := set $settings "MAX_CONCURRENT_JOBS" (toString (int $size.jobs)) -}}
{{- $_ := set $settings "MAX_BYTES_IN_FLIGHT" (toString (int64 $size.bytesInFlight)) -}}
{{- $_ := set $settings "POSTGRES_MAX_CONNECTIONS" (toString (int $size.databaseConnections)) -}}
{{- end -}}
{{- with .Values.vault.address -}}
{{- $_ := set $settings "VAULT_ADDR" . -}}
{{- end -}}
{{- with .Values.vault.role -}}
{{- if not $.Values.vault.address }}{{ fail "vault.role needs vault.address" }}{{ end -}}
{{- $_ := set $settings "VAULT_AUTH_ROLE" . -}}
{{- $_ := set $settings "VAULT_JWT_FILE" "/var/run/secrets/vault/token" -}}
{{- end -}}
{{- range $name, $value := .Values.config -}}
{{- /* Helm reads numbers as floats, and would write large ones as 2.6e+08. */ -}}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) -}}{{- $value = int64 $value -}}{{- end -}}
{{- $_ := set $settings $name (toString $value) -}}
{{- end -}}
{{- range $name, $value := $settings }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "agent-executor.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "agent-executor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where settings come from. */}}
{{- define "agent-executor.envFrom" -}}
- configMapRef:
    name: {{ include "agent-executor.fullname" . }}
{{- range .Values.secrets }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- end }}

{{/* Jobs of lag a pod is worth. */}}
{{- define "agent-executor.lagThreshold" -}}
{{- $jobs := dig "MAX_CONCURRENT_JOBS" "" .Values.config -}}
{{- if .Values.keda.lagThreshold -}}
{{- toString .Values.keda.lagThreshold -}}
{{- else if $jobs -}}
{{- max 1 (div (int $jobs) 10) -}}
{{- else -}}
5
{{- end -}}
{{- end }}
