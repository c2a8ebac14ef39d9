{{- define "zero.labels" -}}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "zero.selector" . }}
{{- end }}

{{- define "zero.selector" -}}
app.kubernetes.io/name: zero
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "zero.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{- /* What every pod has: nobody is root, nothing is writable but volumes. */ -}}
{{- define "zero.pod" -}}
automountServiceAccountToken: false
# A Service called zero would set ZERO_PORT, which means something else to the replay server.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "zero.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "zero.claim" -}}
- metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .className }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}

{{- define "zero.secretVolumes" -}}
{{- if not .Values.security.insecure }}
- name: token
  secret: { secretName: {{ .Values.security.tokenSecret }}, defaultMode: 0440 }
- name: tls
  secret: { secretName: {{ .Values.security.tlsSecret }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- define "zero.secretMounts" -}}
{{- if not .Values.security.insecure }}
- { name: token, mountPath: /secrets/token, readOnly: true }
- { name: tls, mountPath: /secrets/tls, readOnly: true }
{{- end }}
{{- end }}

{{- define "zero.experiment" -}}
{{ if .Values.experiment.toml }}/experiment/experiment.toml{{ else }}{{ .Values.experiment.name }}{{ end }}
{{- end }}

{{- /* Of a replay server: where its Redis is, unless that is its own. */ -}}
{{- define "zero.redisUrl" -}}
{{- if eq .Values.redis.kind "statefulset" }}
- name: REDIS_PASSWORD
  valueFrom: { secretKeyRef: { name: {{ .Values.redis.passwordSecret }}, key: password } }
- name: ZERO_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ .Release.Name }}-redis:6379/0
{{- else if eq .Values.redis.kind "external" }}
- name: ZERO_REDIS_URL
  valueFrom: { secretKeyRef: { name: {{ .Values.redis.urlSecret }}, key: url } }
{{- end }}
{{- end }}

{{- /* What KubeRay asks a machine of Ray; given here, it needs no program that the image lacks. */ -}}
{{- define "zero.rayProbes" -}}
startupProbe:
  httpGet: { path: /api/healthz, port: 52365 }
  periodSeconds: 5
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /api/healthz, port: 52365 }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 10
livenessProbe:
  httpGet: { path: /api/healthz, port: 52365 }
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 12
{{- end }}

{{- /* What Ray writes: logs and sockets, and its object store. */ -}}
{{- define "zero.rayVolumes" -}}
- name: tmp
  emptyDir: { sizeLimit: 4Gi }
- name: shm
  emptyDir: { medium: Memory, sizeLimit: 256Mi }
{{- end }}

{{- /* How a role of its own pod reaches the replay server, and is reached. */ -}}
{{- define "zero.roleEnv" -}}
- name: ZERO_HOST
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
- { name: ZERO_REPLAY_ADDRESS, value: "{{ .Release.Name }}-replay-server:8470" }
{{- if not .Values.security.insecure }}
- { name: ZERO_REPLAY_TLS_CA, value: /secrets/tls/ca.crt }
- { name: ZERO_REPLAY_TOKEN_FILE, value: /secrets/token/token }
{{- end }}
{{- end }}

{{- /* Of who serves /metrics as soon as the replay server has answered. */ -}}
{{- define "zero.metricsProbes" -}}
startupProbe:
  httpGet: { path: /metrics, port: {{ . }} }
  periodSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet: { path: /metrics, port: {{ . }} }
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{- /* Beside the learner: what all roles record, aggregated into the run's folder. */ -}}
{{- define "zero.statistics" -}}
- name: statistics
  image: {{ include "zero.image" .Values.images.roles }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  {{- include "zero.container" . | nindent 2 }}
  # The learner begins the run.
  command: [sh, -c, 'until [ -e /data/run/run.json ]; do sleep 2; done; exec zero statistics run "$@"', statistics]
  args:
    - --run-dir=/data/run
    - --replay-metrics={{ .Release.Name }}-replay-server:9470
    - --host=$(ZERO_HOST)
    {{- range .Values.statistics.sinks }}
    - --sink={{ . }}
    {{- end }}
  env:
    - { name: ZERO_METRICS_PORT, value: "9472" }
    {{- include "zero.roleEnv" . | nindent 4 }}
  ports:
    - { name: statistics, containerPort: 9472 }
  {{- include "zero.metricsProbes" "statistics" | nindent 2 }}
  resources: {{ toYaml .Values.statistics.resources | nindent 4 }}
  volumeMounts:
    - { name: tmp, mountPath: /tmp }
    - { name: data, mountPath: /data }
    {{- include "zero.secretMounts" . | nindent 4 }}
{{- end }}

{{- /* A learner, an actor, a reanalyser or an evaluator: takes root, component and values. */ -}}
{{- define "zero.rolePod" -}}
{{- $root := .root }}
metadata:
  labels: {{ include "zero.labels" . | nindent 4 }}
  annotations:
    checksum/experiment: {{ toJson $root.Values.experiment | sha256sum }}
spec:
  {{- include "zero.pod" (dict "root" $root "values" .values "user" 10001) | nindent 2 }}
  terminationGracePeriodSeconds: 60
  containers:
    - name: {{ .component }}
      image: {{ include "zero.image" $root.Values.images.roles }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      {{- include "zero.container" . | nindent 6 }}
      {{- if .isNumbered }}
      # By its name, which no other pod has.
      command: [sh, -c, 'exec zero {{ .component }} --index "$(hostname | cksum | cut -d" " -f1)" "$@"', {{ .component }}]
      {{- else }}
      command: [zero, {{ if eq .component "evaluator" }}evaluate{{ else }}learner{{ end }}]
      {{- end }}
      {{- with $root.Values.experiment.overrides }}
      args:
        {{- range . }}
        - {{ printf "--set=%s" . | quote }}
        {{- end }}
      {{- end }}
      env:
        - { name: ZERO_METRICS_PORT, value: "9471" }
        {{- include "zero.roleEnv" $root | nindent 8 }}
        - { name: ZERO_EXPERIMENT, value: {{ include "zero.experiment" $root }} }
        {{- if eq .component "learner" }}
        - { name: ZERO_DEVICE, value: {{ if .values.gpus }}cuda{{ else }}cpu{{ end }} }
        {{- end }}
      ports:
        - { name: metrics, containerPort: 9471 }
      {{- include "zero.metricsProbes" "metrics" | nindent 6 }}
      resources:
        {{- $resources := deepCopy .values.resources }}
        {{- if .values.gpus }}
        {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" .values.gpus) $resources.limits) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - { name: tmp, mountPath: /tmp }
        {{- if not .isNumbered }}
        - { name: data, mountPath: /data }
        {{- end }}
        {{- if $root.Values.experiment.toml }}
        - { name: experiment, mountPath: /experiment, readOnly: true }
        {{- end }}
        {{- include "zero.secretMounts" $root | nindent 8 }}
    {{- if and (eq .component "learner") $root.Values.statistics.enabled }}
    {{- include "zero.statistics" $root | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir: { sizeLimit: 1Gi }
    {{- if $root.Values.experiment.toml }}
    - name: experiment
      configMap: { name: {{ $root.Release.Name }}-experiment }
    {{- end }}
    {{- include "zero.secretVolumes" $root | nindent 4 }}
{{- end }}
