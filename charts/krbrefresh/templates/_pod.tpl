{{/*
What other charts include in their pods. Each takes the root context, this chart's own or a parent's, or a dict with
"root" and options. Lists begin at the margin: include "..." . | nindent N.
*/}}

{{/* Init containers: the native sidecar; with the stop file one that takes the first token. */}}
{{- define "krbrefresh.initContainers" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
{{- if eq (include "krbrefresh.mode" .) "native" -}}
{{- include "krbrefresh.refresher" (dict "chart" . "name" (include "krbrefresh.name" .) "does" "run" "native" true) -}}
{{- else -}}
{{- include "krbrefresh.refresher" (dict "chart" . "name" (include "krbrefresh.part" (list . "-first")) "does" "once" "keepTrying" true) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Containers: the sidecar with the stop file; nothing where it is native. */}}
{{- define "krbrefresh.containers" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if and .Values.enabled (ne (include "krbrefresh.mode" .) "native") -}}
{{- include "krbrefresh.validate" . -}}
{{- include "krbrefresh.refresher" (dict "chart" . "name" (include "krbrefresh.name" .) "does" "run" "stop" true) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An init container for short Jobs: one token, and nobody who refreshes it. */}}
{{- define "krbrefresh.oneShot" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
{{- include "krbrefresh.refresher" (dict "chart" . "name" (include "krbrefresh.part" (list . "-once")) "does" "once" "lifetime" .Values.oneShot.lifetime) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (dict "chart" . "name" ... "does" "run" or "once"): the only container with the keytab. */}}
{{- define "krbrefresh.refresher" -}}
{{- $does := .does -}}
{{- $native := .native -}}
{{- $stop := .stop -}}
{{- $lifetime := .lifetime -}}
{{- $keepTrying := .keepTrying -}}
{{- $name := .name -}}
{{- with .chart -}}
- name: {{ $name | toYaml }}
  image: {{ include "krbrefresh.imageName" (list . .Values.image) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if $native }}
  restartPolicy: Always # what makes it a sidecar
  {{- end }}
  {{- if $keepTrying }}
  # Not just once: each new start would be one more bad attempt with a stale key. It waits as the refresher does.
  args: [{{ $does | quote }}, "--keep-trying"]
  {{- else }}
  args: [{{ $does | quote }}]
  {{- end }}
  {{- $env := list }}
  {{- if .Values.configPath }}
  {{- $env = append $env (dict "name" "KRB5_CONFIG" "value" .Values.configPath) }}
  {{- end }}
  {{- if $stop }}
  {{- $env = append $env (dict "name" "KRBREFRESH__REFRESHER__STOP_PATH" "value" (include "krbrefresh.stopPath" .)) }}
  {{- end }}
  {{- if $lifetime }}
  {{- $env = append $env (dict "name" "KRBREFRESH__KERBEROS__LIFETIME" "value" (toString $lifetime)) }}
  {{- end }}
  {{- with concat $env .Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq $does "run" }}
  {{- if .Values.listen }}
  ports:
    - name: {{ include "krbrefresh.port" . | toYaml }}
      containerPort: {{ include "krbrefresh.portNumber" . }}
      protocol: TCP
  {{- end }}
  {{- if $native }}
  # The worker is started once the first token is published.
  startupProbe:
    {{- include "krbrefresh.probe" (list . "/readyz" .Values.probes.startup) | nindent 4 }}
  {{- end }}
  {{- if ne (include "krbrefresh.handler" .) "check" }}
  livenessProbe:
    {{- include "krbrefresh.probe" (list . "/livez" .Values.probes.liveness) | nindent 4 }}
  {{- end }}
  readinessProbe:
    {{- include "krbrefresh.probe" (list . "/readyz" .Values.probes.readiness) | nindent 4 }}
  {{- end }}
  securityContext:
    {{- $context := dict "runAsUser" (int64 .Values.users.refresher) "runAsGroup" (int64 .Values.users.refresher) }}
    {{- include "krbrefresh.restricted" (list $context .Values.securityContexts.refresher) | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: {{ include "krbrefresh.part" (list . "-token") }}
      mountPath: {{ .Values.ccacheMountPath }}
    - name: {{ include "krbrefresh.part" (list . "-config") }}
      mountPath: /etc/krbrefresh
      readOnly: true
    # The directory: with subPath a rotated Secret would not arrive.
    {{- range $volume, $each := include "krbrefresh.keytabVolumes" . | fromJson }}
    - name: {{ $volume }}
      mountPath: {{ $each.path }}
      readOnly: true
    {{- end }}
    {{- if .Values.configPath }}
    - name: {{ include "krbrefresh.part" (list . "-krb5-conf") }}
      mountPath: {{ dir .Values.configPath }}
      readOnly: true
    {{- end }}
    {{- if .Values.signing.existingSecret }}
    - name: {{ include "krbrefresh.part" (list . "-signing-key") }}
      mountPath: {{ include "krbrefresh.signingDirectory" . }}
      readOnly: true
    {{- end }}
    {{- if $stop }}
    - name: {{ include "krbrefresh.part" (list . "-stop") }}
      mountPath: {{ .Values.sidecar.stopMountPath }}
      readOnly: true
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* (list . path times) */}}
{{- define "krbrefresh.probe" -}}
{{- $path := index . 1 -}}
{{- $times := index . 2 -}}
{{- with index . 0 -}}
{{- $handler := include "krbrefresh.handler" . -}}
{{- if eq $handler "httpGet" -}}
httpGet:
  path: {{ $path }}
  port: {{ include "krbrefresh.port" . | toYaml }}
  {{- if .Values.settings.refresher.tls_certificate }}
  scheme: HTTPS
  {{- end }}
{{- else if eq $handler "exec" -}}
exec:
  command: ["krbrefresh-ready", {{ $path | quote }}]
{{- else -}}
exec:
  command: ["krbrefresh", "check", {{ (first (include "krbrefresh.credentials" . | fromJson).all).ccache | quote }}]
{{- end }}
{{ toYaml $times }}
{{- end -}}
{{- end -}}

{{/* (list context more): a container's security context by the restricted standard, and a read-only root. */}}
{{- define "krbrefresh.restricted" -}}
{{- $restricted := dict
  "runAsNonRoot" true
  "readOnlyRootFilesystem" true
  "allowPrivilegeEscalation" false
  "capabilities" (dict "drop" (list "ALL"))
-}}
{{- toYaml (mergeOverwrite $restricted (index . 0) (deepCopy (index . 1))) -}}
{{- end -}}

{{/* Volumes with keytabs, as JSON: {name: {secret, path}} */}}
{{- define "krbrefresh.keytabVolumes" -}}
{{- $root := . -}}
{{- $volumes := dict -}}
{{- if include "krbrefresh.usesSharedSecret" . -}}
{{- $_ := set $volumes (include "krbrefresh.part" (list . "-keytab")) (dict "secret" (include "krbrefresh.secretName" .) "path" (dir .Values.keytabPath)) -}}
{{- end -}}
{{- range (include "krbrefresh.credentials" . | fromJson).all -}}
{{- if .secret -}}
{{- $volume := include "krbrefresh.part" (list $root (printf "-keytab-%s" .name)) -}}
{{- $_ := set $volumes $volume (dict "secret" (tpl .secret.name $root) "path" (dir .keytab)) -}}
{{- end -}}
{{- end -}}
{{- toJson $volumes -}}
{{- end -}}

{{/* Whether some credential has its keytab in the Secret for all. */}}
{{- define "krbrefresh.usesSharedSecret" -}}
{{- $uses := or .Values.keytab.existingSecret .Values.keytabBase64Content .Values.keytabsBase64Content -}}
{{- range (include "krbrefresh.credentials" . | fromJson).all -}}
{{- if not .secret -}}{{- $uses = "yes" -}}{{- end -}}
{{- end -}}
{{- if $uses -}}yes{{- end -}}
{{- end -}}

{{/* The pod's volumes. */}}
{{- define "krbrefresh.volumes" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
- name: {{ include "krbrefresh.part" (list . "-token") }}
  emptyDir:
    {{- with .Values.token.medium }}
    medium: {{ . }}
    {{- end }}
    sizeLimit: {{ include "krbrefresh.quantity" .Values.token.sizeLimit }}
- name: {{ include "krbrefresh.part" (list . "-config") }}
  configMap:
    name: {{ include "krbrefresh.object" (list . "-config") }}
    defaultMode: 0444
{{- range $volume, $each := include "krbrefresh.keytabVolumes" . | fromJson }}
- name: {{ $volume }}
  secret:
    secretName: {{ $each.secret | toYaml }}
    defaultMode: 0400
{{- end }}
{{- if .Values.configPath }}
- name: {{ include "krbrefresh.part" (list . "-krb5-conf") }}
  configMap:
    name: {{ include "krbrefresh.krb5ConfName" . | toYaml }}
    defaultMode: 0444
{{- end }}
{{- if .Values.signing.existingSecret }}
- name: {{ include "krbrefresh.part" (list . "-signing-key") }}
  secret:
    secretName: {{ tpl .Values.signing.existingSecret . | toYaml }}
    defaultMode: 0400
    items:
      - key: {{ .Values.signing.key | toYaml }}
        path: {{ .Values.signing.key | toYaml }}
{{- end }}
{{- with include "krbrefresh.publicKeyName" . }}
- name: {{ include "krbrefresh.part" (list $box.chart "-public-key") }}
  configMap:
    name: {{ . | toYaml }}
    defaultMode: 0444
    items:
      - key: {{ $box.chart.Values.signing.publicKeyKey | toYaml }}
        path: {{ $box.chart.Values.signing.publicKeyKey | toYaml }}
{{- end }}
{{- if eq (include "krbrefresh.mode" .) "stopFile" }}
- name: {{ include "krbrefresh.part" (list . "-stop") }}
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A worker's mounts: tokens, krb5.conf, the public key; the stop file's volume. */}}
{{- define "krbrefresh.workerMounts" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
- name: {{ include "krbrefresh.part" (list . "-token") }}
  mountPath: {{ .Values.ccacheMountPath }}
  readOnly: true
{{- if .Values.configPath }}
- name: {{ include "krbrefresh.part" (list . "-krb5-conf") }}
  mountPath: {{ dir .Values.configPath }}
  readOnly: true
{{- end }}
{{- if include "krbrefresh.publicKeyName" . }}
- name: {{ include "krbrefresh.part" (list . "-public-key") }}
  mountPath: {{ .Values.signing.publicKeyMountPath }}
  readOnly: true
{{- end }}
{{- if eq (include "krbrefresh.mode" .) "stopFile" }}
- name: {{ include "krbrefresh.part" (list . "-stop") }}
  mountPath: {{ .Values.sidecar.stopMountPath }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A worker's variables. Option "credential": whose token. */}}
{{- define "krbrefresh.workerEnv" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
{{- $credential := include "krbrefresh.credential" $box | fromJson -}}
- name: KRBREFRESH_CCACHE
  value: {{ $credential.ccache | quote }}
- name: KRB5CCNAME
  value: {{ printf "FILE:%s" $credential.ccache | quote }}
{{- with .Values.configPath }}
- name: KRB5_CONFIG
  value: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
A worker's `command`: it waits for the token, and with the stop file leaves that file when it ends. Options: "command",
what it runs, a list; "credential"; "exec", false where the image has no krbrefresh; "stop", false where the pod does not
end with the worker (a Deployment), or has no refresher that stays (`krbrefresh.oneShot`).
*/}}
{{- define "krbrefresh.workerCommand" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- $command := $box.options.command -}}
{{- if not $command -}}
{{- fail "krbrefresh.workerCommand: give it what the worker runs: (dict \"root\" . \"command\" (list \"python3\" \"/app/worker.py\"))" -}}
{{- end -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- include "krbrefresh.validate" . -}}
{{- if ne (toString $box.options.exec) "false" -}}
{{- $command = concat (list "krbrefresh" "exec" "--timeout" "5m") (include "krbrefresh.checks" $box | fromJsonArray) (list "--") $command -}}
{{- end -}}
{{- if and (eq (include "krbrefresh.mode" .) "stopFile") (ne (toString $box.options.stop) "false") -}}
{{- $command = concat (list "/bin/sh" "-c" (include "krbrefresh.stopScript" .) "stop-file") $command -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $command -}}
{{- end -}}

{{/* A worker's readiness probe: it can read its token, and no keytab. It needs krbrefresh in the image. */}}
{{- define "krbrefresh.workerReadinessProbe" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
exec:
  command: {{ concat (list "krbrefresh" "check") (include "krbrefresh.checks" $box | fromJsonArray) (list "--no-keytab") | toJson }}
periodSeconds: 30
timeoutSeconds: 5
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The options of exec and check that say what a token has to be, as JSON. */}}
{{- define "krbrefresh.checks" -}}
{{- $credential := include "krbrefresh.credential" . | fromJson -}}
{{- $checks := list -}}
{{- /* one without a realm, or with _HOST, is known to libkrb5 alone */ -}}
{{- if and (contains "@" $credential.principal) (not (contains "_HOST" $credential.principal)) -}}
{{- $checks = list "--principal" $credential.principal -}}
{{- end -}}
{{- with .chart -}}
{{- if include "krbrefresh.publicKeyName" . -}}
{{- $checks = concat $checks (list "--public-key" (printf "%s/%s" .Values.signing.publicKeyMountPath .Values.signing.publicKeyKey)) -}}
{{- end -}}
{{- end -}}
{{- toJson $checks -}}
{{- end -}}

{{- define "krbrefresh.stopPath" -}}
{{ .Values.sidecar.stopMountPath }}/done
{{- end -}}

{{/* A shell as the first process has to pass TERM on. A worker that is killed leaves no file. */}}
{{- define "krbrefresh.stopScript" -}}
: >{{ .Values.sidecar.stopMountPath }}/begun # a volume that cannot be written to is told here, and ends it
child= early=
trap ': >{{ include "krbrefresh.stopPath" . }}' EXIT
# A shell that has just been forked loses a signal; and one may come before it has a name here.
pass() { until [ -e {{ .Values.sidecar.stopMountPath }}/started ]; do :; done; kill -TERM "$child"; }
trap 'if [ "$child" ]; then pass; else early=yes; fi' TERM
(: >{{ .Values.sidecar.stopMountPath }}/started; exec "$@") &
child=$!
[ -z "$early" ] || pass
wait "$child"
status=$?
if [ "$status" -gt 128 ]; then # by TERM, perhaps, and it has not ended yet
  wait "$child"
  again=$?
  [ "$again" -eq 127 ] || status=$again
fi
exit "$status"
{{- end -}}

{{/* The pod's security context: the group of tokens, and the restricted standard. */}}
{{- define "krbrefresh.podSecurityContext" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- $own := dict
  "runAsNonRoot" true
  "fsGroup" (int64 .Values.users.group)
  "seccompProfile" (dict "type" "RuntimeDefault")
-}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.securityContexts.pod)) -}}
{{- end -}}
{{- end -}}

{{/* A worker's security context: another user than the refresher's. */}}
{{- define "krbrefresh.workerSecurityContext" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- $own := dict -}}
{{- if .Values.users.worker -}}
{{- $own = dict "runAsUser" (int64 .Values.users.worker) "runAsGroup" (int64 .Values.users.worker) -}}
{{- end -}}
{{- include "krbrefresh.restricted" (list $own .Values.securityContexts.worker) -}}
{{- end -}}
{{- end -}}

{{/* Labels of a pod with a refresher that stays: the PodMonitor and the NetworkPolicy look for them. */}}
{{- define "krbrefresh.podLabels" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
{{- toYaml (merge (include "krbrefresh.selector" . | fromYaml) .Values.podLabels) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Annotations of a pod with a refresher: other settings make new pods, since a refresher reads them at its start. */}}
{{- define "krbrefresh.podAnnotations" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if .Values.enabled -}}
checksum/{{ include "krbrefresh.name" . }}: {{ include "krbrefresh.settings" . | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The pod's imagePullSecrets. */}}
{{- define "krbrefresh.imagePullSecrets" -}}
{{- $box := dict -}}
{{- include "krbrefresh.find" (list $box .) -}}
{{- with $box.chart -}}
{{- if and .Values.enabled .Values.imagePullSecrets -}}
{{- toYaml .Values.imagePullSecrets -}}
{{- end -}}
{{- end -}}
{{- end -}}
