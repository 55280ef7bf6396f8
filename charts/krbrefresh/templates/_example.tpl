{{/* (dict "root" . "component" ...): an example's labels and annotations of pods. */}}
{{- define "krbrefresh.examplePodMetadata" -}}
labels:
  {{- $own := include "krbrefresh.exampleSelector" . | fromYaml }}
  {{- toYaml (merge $own (include "krbrefresh.podLabels" .root | fromYaml)) | nindent 2 }}
annotations:
  {{- include "krbrefresh.podAnnotations" .root | nindent 2 }}
{{- end -}}

{{- define "krbrefresh.exampleSelector" -}}
app.kubernetes.io/name: {{ include "krbrefresh.name" .root | toYaml }}
app.kubernetes.io/instance: {{ .root.Release.Name | trunc 63 | toYaml }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* What all examples have in their pods. */}}
{{- define "krbrefresh.examplePod" -}}
automountServiceAccountToken: false
securityContext:
  {{- include "krbrefresh.podSecurityContext" . | nindent 2 }}
{{- with include "krbrefresh.imagePullSecrets" . }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
volumes:
  {{- include "krbrefresh.volumes" . | nindent 2 }}
  {{- if include "krbrefresh.publicKeyName" . }}
  - name: {{ include "krbrefresh.part" (list . "-tmp") }} # krbrefresh exec has its verified copy of the token there
    emptyDir:
      medium: Memory
      sizeLimit: 1Mi
  {{- end }}
{{- end -}}

{{/* (dict "root" . "command" ...): the worker, but for its command. */}}
{{- define "krbrefresh.exampleWorker" -}}
{{- if not .Values.examples.image.repository -}}
{{- fail "krbrefresh: examples.image.repository is not set: it is the workers' image, docker/Dockerfile's target worker or one that has krbrefresh in it" -}}
{{- end -}}
image: {{ include "krbrefresh.imageName" (list . .Values.examples.image) | quote }}
imagePullPolicy: {{ .Values.examples.image.pullPolicy }}
env:
  {{- include "krbrefresh.workerEnv" (dict "root" . "credential" .Values.examples.credential) | nindent 2 }}
securityContext:
  {{- include "krbrefresh.workerSecurityContext" . | nindent 2 }}
{{- with .Values.examples.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "krbrefresh.workerMounts" . | nindent 2 }}
  {{- if include "krbrefresh.publicKeyName" . }}
  - name: {{ include "krbrefresh.part" (list . "-tmp") }}
    mountPath: /tmp
  {{- end }}
{{- end -}}
