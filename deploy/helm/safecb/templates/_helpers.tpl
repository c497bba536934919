{{- define "safecb.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "safecb.fullname" -}}
{{- $name := include "safecb.name" . }}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $release | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "safecb.selector" -}}
app.kubernetes.io/name: {{ include "safecb.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "safecb.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "safecb.selector" . }}
{{- end }}

{{- define "safecb.serviceAccount" -}}
{{- $created := ternary (include "safecb.fullname" .) "default" .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default $created }}
{{- end }}

{{- define "safecb.image" -}}
{{- $tag := printf ":%s" (.Values.image.tag | default .Chart.AppVersion) }}
{{- .Values.image.repository }}{{ .Values.image.digest | empty | ternary $tag (printf "@%s" .Values.image.digest) }}
{{- end }}

{{- /* SAFECB_STORE as it is set: the queue's name is made of it. */}}
{{- define "safecb.store" -}}
{{ .Values.store.url | trimSuffix "/" }}
{{- end }}

{{- define "safecb.queue" -}}
improve-{{ include "safecb.store" . | sha256sum | trunc 8 }}
{{- end }}

{{- /* Where KEDA's two triggers of the workers look. */}}
{{- define "safecb.redisTrigger" -}}
address: {{ required "autoscaling.worker.redisAddress: host:port of Redis" .redisAddress | quote }}
databaseIndex: {{ .redisDatabase | int64 | quote }}
enableTLS: {{ .redisTls | quote }}
{{- end }}

{{- /* Combinations of values that no pod could serve with; the schema checks each value by itself. */}}
{{- define "safecb.check" -}}
{{- $v := .Values }}
{{- if and (not $v.keys.existingSecret) (ne ($v.settings.SAFECB_OPEN | default "off") "on") }}
{{- fail "keys.existingSecret is empty: name a Secret with keys, or let all steer by settings.SAFECB_OPEN \"on\"" }}
{{- end }}
{{- if and $v.standalone (or (ne (int $v.server.replicas) 1) $v.autoscaling.server.enabled) }}
{{- fail "standalone is one pod: set server.replicas to 1 and autoscaling.server.enabled to false" }}
{{- end }}
{{- $prefix := $v.settings.SAFECB_ROOT_PATH | default "" }}
{{- if and $v.ingress.enabled (ne (trimSuffix "/" $v.ingress.path) $prefix) }}
{{- fail "ingress.path and settings.SAFECB_ROOT_PATH name different prefixes: set both to the same; / is no prefix" }}
{{- end }}
{{- if and $v.home.existingClaim (not $v.standalone) }}
{{- fail "home.existingClaim is for standalone: pods that share a bucket have homes of their own" }}
{{- end }}
{{- if and (not $v.standalone) $v.worker.enabled (not $v.redis.existingSecret) }}
{{- fail "redis.existingSecret is empty: name the Secret of the workers' Redis, or set worker.enabled to false" }}
{{- end }}
{{- end }}
