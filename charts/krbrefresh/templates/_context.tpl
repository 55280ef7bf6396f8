{{/*
Which chart is it? The named templates work with this chart's own root context, with that of a parent, and with a
dict of either and options: (dict "root" . "credential" "reports").

(list $box .): puts this chart's context into $box as "chart", and the options as "options".
*/}}
{{- define "krbrefresh.find" -}}
{{- $box := index . 0 -}}
{{- $given := index . 1 -}}
{{- $options := dict -}}
{{- if not (kindIs "map" $given) -}}
{{- fail "krbrefresh: a named template wants the root context: include \"krbrefresh.volumes\" . or $" -}}
{{- end -}}
{{- if hasKey $given "root" -}}
{{- $options = omit $given "root" -}}
{{- $given = $given.root -}}
{{- end -}}
{{- if include "krbrefresh.isOwn" $given -}}
{{- $_ := set $box "chart" $given -}}
{{- else -}}
{{- $found := list -}}
{{- range $name, $each := $given.Subcharts -}}
{{- if include "krbrefresh.isOwn" $each -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- if ne (len $found) 1 -}}
{{- fail (printf "krbrefresh: a named template was given a context with %d dependencies that are this chart (%s); give it the root context of the chart that has it as a dependency, or that dependency's own: .Subcharts.NAME" (len $found) (join ", " $found)) -}}
{{- end -}}
{{- $_ := set $box "chart" (index $given.Subcharts (first $found)) -}}
{{- end -}}
{{- if not (hasKey $box.chart "Template") -}}
{{- /* tpl of older Helms looks for it */ -}}
{{- $_ := set $box.chart "Template" (dict "Name" "krbrefresh" "BasePath" "krbrefresh/templates") -}}
{{- end -}}
{{- $_ := set $box "options" $options -}}
{{- end -}}

{{- define "krbrefresh.isOwn" -}}
{{- if kindIs "map" . -}}
{{- with .Chart -}}{{- if .Annotations -}}{{- index .Annotations "krbrefresh/named-templates" -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list name suffix limit): name and suffix within the limit; what is cut off is told apart by a hash. */}}
{{- define "krbrefresh.fit" -}}
{{- $name := index . 0 -}}
{{- $suffix := index . 1 -}}
{{- $limit := int (index . 2) -}}
{{- $room := sub $limit (len $suffix) | int -}}
{{- if le (len $name) $room -}}
{{- $name -}}
{{- else -}}
{{- $name | trunc (sub $room 9 | int) | trimSuffix "-" | trimSuffix "." -}}-{{- sha256sum $name | trunc 8 -}}
{{- end -}}
{{- $suffix -}}
{{- end -}}

{{- define "krbrefresh.name" -}}
{{- include "krbrefresh.fit" (list (.Values.nameOverride | default .Chart.Name) "" 24) -}}
{{- end -}}

{{/*
Not cut yet: each object's name is, with its suffix. The release's name alone would do wherever it contains the chart's;
but then the releases etl and etl-krbrefresh would have one name.
*/}}
{{- define "krbrefresh.wholeName" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if eq $name .Release.Name -}}{{- $name -}}{{- else -}}{{- .Release.Name }}-{{ $name -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "krbrefresh.fullname" -}}
{{- include "krbrefresh.fit" (list (include "krbrefresh.wholeName" .) "" 63) -}}
{{- end -}}

{{/* (list . suffix): the name of an object. */}}
{{- define "krbrefresh.object" -}}
{{- include "krbrefresh.fit" (list (include "krbrefresh.wholeName" (index . 0)) (index . 1) 63) -}}
{{- end -}}

{{/* (list . suffix): the name of a volume or container, which a pod may have beside others. */}}
{{- define "krbrefresh.part" -}}
{{- include "krbrefresh.fit" (list (include "krbrefresh.name" (index . 0)) (index . 1) 63) -}}
{{- end -}}

{{/* The name of the port; it has 15 letters at the most. */}}
{{- define "krbrefresh.port" -}}
{{- include "krbrefresh.fit" (list (include "krbrefresh.name" .) "" 15) -}}
{{- end -}}

{{/* (list . name labels annotations): an object's metadata; the last two are more of them, and may be left out. */}}
{{- define "krbrefresh.metadata" -}}
{{- $labels := list -}}
{{- with index . 0 -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "krbrefresh.name" .)
  "app.kubernetes.io/instance" (.Release.Name | trunc 63)
  "app.kubernetes.io/version" (.Chart.AppVersion | trunc 63)
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
-}}
{{- $labels = merge dict .Values.labels $own -}}
{{- end -}}
name: {{ index . 1 | toYaml }}
namespace: {{ (index . 0).Release.Namespace | toYaml }}
labels:
  {{- if gt (len .) 2 }}
  {{- $labels = merge dict (index . 2) $labels }}
  {{- end }}
  {{- toYaml $labels | nindent 2 }}
{{- $annotations := (index . 0).Values.annotations }}
{{- if gt (len .) 3 }}
{{- $annotations = merge dict (index . 3) $annotations }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (list . image): an image's name. */}}
{{- define "krbrefresh.imageName" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- $image.repository }}@{{ $image.digest -}}
{{- else -}}
{{- $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion -}}
{{- end -}}
{{- end -}}

{{/* A quantity as it was written: a large number is no 1.048576e+06. */}}
{{- define "krbrefresh.quantity" -}}
{{- if kindIs "string" . -}}{{- . | toYaml -}}{{- else -}}{{- int64 . | toString | quote -}}{{- end -}}
{{- end -}}

{{/* native or stopFile */}}
{{- define "krbrefresh.mode" -}}
{{- if ne .Values.sidecar.mode "auto" -}}
{{- .Values.sidecar.mode -}}
{{- else if semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
native
{{- else -}}
stopFile
{{- end -}}
{{- end -}}

{{- define "krbrefresh.secretName" -}}
{{- if .Values.keytab.existingSecret -}}
{{- tpl .Values.keytab.existingSecret . -}}
{{- else -}}
{{- include "krbrefresh.object" (list . "-keytab") -}}
{{- end -}}
{{- end -}}

{{- define "krbrefresh.krb5ConfName" -}}
{{- if .Values.krb5Conf.existingConfigMap -}}
{{- tpl .Values.krb5Conf.existingConfigMap . -}}
{{- else -}}
{{- include "krbrefresh.object" (list . "-krb5-conf") -}}
{{- end -}}
{{- end -}}

{{- define "krbrefresh.publicKeyName" -}}
{{- if .Values.signing.publicKeyConfigMap -}}
{{- tpl .Values.signing.publicKeyConfigMap . -}}
{{- else if .Values.signing.publicKey -}}
{{- include "krbrefresh.object" (list . "-public-key") -}}
{{- end -}}
{{- end -}}

{{/* The label by which the PodMonitor and the NetworkPolicy find the pods, and its value: one for each release. */}}
{{- define "krbrefresh.selector" -}}
{{ include "krbrefresh.name" . | toYaml }}: {{ include "krbrefresh.fullname" . | toYaml }}
{{- end -}}
