{{- /* Parts that the pods of servers and workers share. Each takes a dict: root, part ("server" or "worker"). */}}

{{- define "safecb.podMetadata" -}}
{{- $values := index .root.Values .part -}}
labels:
  {{- include "safecb.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "safecb.podSpec" -}}
{{- $values := index .root.Values .part -}}
serviceAccountName: {{ include "safecb.serviceAccount" .root }}
automountServiceAccountToken: {{ .root.Values.serviceAccount.automountToken }}
enableServiceLinks: false
# Then safecb is not process 1, which would ignore signals before it handles them, and the pod reaps orphans.
shareProcessNamespace: true
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  -
    {{- toYaml . | nindent 4 }}
    labelSelector:
      matchLabels:
        {{- include "safecb.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.part }}
  {{- end }}
{{- end }}
volumes:
  {{- include "safecb.volumes" . | nindent 2 }}
{{- end }}

{{- define "safecb.container" -}}
{{- $values := index .root.Values .part -}}
image: {{ include "safecb.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError  # the last line of the log has the reason
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
volumeMounts:
  {{- include "safecb.mounts" . | nindent 2 }}
env:
  {{- include "safecb.env" . | nindent 2 }}
{{- end }}

{{- /* Whether the pod publishes versions, which the signing key signs. */}}
{{- define "safecb.publishes" -}}
{{- if and .root.Values.signing.existingSecret (or .root.Values.standalone (eq .part "worker")) }}true{{ end }}
{{- end }}

{{- define "safecb.env" -}}
{{- $v := .root.Values -}}
- {name: SAFECB_HOME, value: /data}
- {name: HOME, value: /tmp}  # for caches: the image is read-only
{{- if eq .part "server" }}
- {name: SAFECB_PORT, value: "8000"}
{{- else }}
- {name: OMP_NUM_THREADS, value: {{ $v.worker.threads | int64 | quote }}}
{{- end }}
{{- if not $v.standalone }}
- {name: SAFECB_STORE, value: {{ include "safecb.store" .root | quote }}}
- {name: AWS_REGION, value: {{ $v.store.region | quote }}}
{{- with $v.store.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with $v.store.existingSecret }}
{{- range tuple "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- {name: {{ . }}, valueFrom: {secretKeyRef: {name: {{ $v.store.existingSecret }}, key: {{ . }}}}}
{{- end }}
{{- end }}
{{- with $v.redis.existingSecret }}
- {name: SAFECB_REDIS_URL, valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $v.redis.key | quote }}}}}
{{- end }}
{{- end }}
{{- if and $v.keys.existingSecret (eq .part "server") }}
- {name: SAFECB_KEYS, value: {{ printf "/etc/safecb/keys/%s" $v.keys.key | quote }}}
{{- end }}
{{- if include "safecb.publishes" . }}
- {name: SAFECB_SIGNING_KEY, value: {{ printf "/etc/safecb/signing/%s" $v.signing.key | quote }}}
{{- end }}
{{- if $v.publicKeys.existingSecret }}
- {name: SAFECB_PUBLIC_KEYS, value: {{ printf "/etc/safecb/public/%s" $v.publicKeys.key | quote }}}
{{- end }}
{{- range $name, $value := $v.settings }}
- {name: {{ $name }}, value: {{ kindIs "string" $value | ternary $value ($value | int64) | quote }}}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "safecb.mounts" -}}
{{- $v := .root.Values -}}
- {name: home, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- if and $v.keys.existingSecret (eq .part "server") }}
- {name: keys, mountPath: /etc/safecb/keys, readOnly: true}
{{- end }}
{{- if include "safecb.publishes" . }}
- {name: signing, mountPath: /etc/safecb/signing, readOnly: true}
{{- end }}
{{- if $v.publicKeys.existingSecret }}
- {name: public, mountPath: /etc/safecb/public, readOnly: true}
{{- end }}
{{- if $v.model.existingClaim }}
- {name: model, mountPath: {{ $v.model.mountPath | quote }}, readOnly: true}
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "safecb.volumes" -}}
{{- $v := .root.Values -}}
{{- if $v.home.existingClaim -}}
- {name: home, persistentVolumeClaim: {claimName: {{ $v.home.existingClaim }}}}
{{- else -}}
- {name: home, emptyDir: {sizeLimit: {{ $v.home.sizeLimit }}}}
{{- end }}
- {name: tmp, emptyDir: {sizeLimit: {{ $v.tmp.sizeLimit }}}}
{{- if and $v.keys.existingSecret (eq .part "server") }}
- {name: keys, secret: {secretName: {{ $v.keys.existingSecret }}, defaultMode: 0440}}
{{- end }}
{{- if include "safecb.publishes" . }}
- {name: signing, secret: {secretName: {{ $v.signing.existingSecret }}, defaultMode: 0440}}
{{- end }}
{{- with $v.publicKeys.existingSecret }}
- {name: public, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- with $v.model.existingClaim }}
- {name: model, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
