{{/* The credentials, as JSON: {"all": [{name, principal, keytab, ccache, secret, settings}]}; that of `principal`
comes first. */}}
{{- define "krbrefresh.credentials" -}}
{{- $root := . -}}
{{- $all := list -}}
{{- $directory := dir .Values.keytabPath -}}
{{- if .Values.principal -}}
{{- $all = append $all (dict
  "name" "default"
  "principal" (tpl .Values.principal .)
  "keytab" .Values.keytabPath
  "ccache" (printf "%s/default/%s" .Values.ccacheMountPath .Values.ccacheFileName)
  "settings" dict
) -}}
{{- end -}}
{{- range $name, $given := .Values.credentials -}}
{{- $where := $directory -}}
{{- $file := $given.keytab | default (base $root.Values.keytabPath) -}}
{{- if $given.keytabSecret -}}
{{- $where = printf "%s-%s" $directory $name -}}
{{- $file = $given.keytabSecret.key | default (base $root.Values.keytabPath) -}}
{{- end -}}
{{- $all = append $all (dict
  "name" $name
  "principal" (tpl $given.principal $root)
  "keytab" (ternary $file (printf "%s/%s" $where $file) (isAbs $file))
  "ccache" ($given.ccache | default (printf "%s/%s/%s" $root.Values.ccacheMountPath $name $root.Values.ccacheFileName))
  "secret" ($given.keytabSecret | default dict)
  "settings" (omit $given "principal" "keytab" "keytabSecret" "ccache")
) -}}
{{- end -}}
{{- dict "all" $all | toJson -}}
{{- end -}}

{{/* (dict "chart" . "options" ...): the credential of a worker, as JSON. */}}
{{- define "krbrefresh.credential" -}}
{{- $all := (include "krbrefresh.credentials" .chart | fromJson).all -}}
{{- $names := list -}}
{{- range $all -}}{{- $names = append $names .name -}}{{- end -}}
{{- $wanted := .options.credential | default (ternary "default" (first $names) (gt (len $names) 1)) -}}
{{- if not (has $wanted $names) -}}
{{- $say := printf "krbrefresh: there is no credential %q; say which one a worker uses: (dict \"root\" . \"credential\" NAME), NAME being one of %s" $wanted (join ", " $names) -}}
{{- fail $say -}}
{{- end -}}
{{- range $all -}}{{- if eq .name $wanted -}}{{- toJson . -}}{{- end -}}{{- end -}}
{{- end -}}

{{/* Keys and values, in TOML. JSON's texts and lists of texts are TOML's. */}}
{{- define "krbrefresh.toml" -}}
{{- range $key, $value := . }}
{{- if kindIs "invalid" $value }}
{{- else if or (kindIs "string" $value) (kindIs "bool" $value) (kindIs "slice" $value) }}
{{ $key }} = {{ toJson $value }}
{{- else }}
{{ $key }} = {{ int64 $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* krbrefresh.toml */}}
{{- define "krbrefresh.settings" -}}
{{- $root := . -}}
{{- $all := (include "krbrefresh.credentials" . | fromJson).all -}}
{{- $directory := dir .Values.keytabPath -}}
[refresher]
{{- include "krbrefresh.toml" (merge (dict "listen" .Values.listen) .Values.settings.refresher) }}

[kerberos]
{{- $shared := dict "group" (printf "%d" (int64 .Values.users.group)) "keytab" .Values.keytabPath -}}
{{- if .Values.signing.existingSecret -}}
{{- $_ := set $shared "signing_key" (printf "%s/%s" (include "krbrefresh.signingDirectory" .) .Values.signing.key) -}}
{{- end -}}
{{- $shared = merge $shared (include "krbrefresh.paths" (list . .Values.settings.kerberos) | fromJson) -}}
{{- range $all -}}
{{- if and (eq .name "default") $root.Values.principal -}}
{{- $_ := set $shared "principal" .principal -}}
{{- $_ := set $shared "ccache" .ccache -}}
{{- end -}}
{{- end -}}
{{- include "krbrefresh.toml" $shared }}
{{- range $all }}
{{- if not (and (eq .name "default") $root.Values.principal) }}

[credentials.{{ .name }}]
{{- include "krbrefresh.toml" (merge (dict "principal" .principal "keytab" .keytab "ccache" .ccache) (include "krbrefresh.paths" (list $root .settings) | fromJson)) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (list . settings): with a FAST keytab, given by its file name, where it is mounted. As JSON. */}}
{{- define "krbrefresh.paths" -}}
{{- $settings := deepCopy (index . 1) -}}
{{- with $settings.fast_keytab -}}
{{- if not (isAbs .) -}}
{{- $_ := set $settings "fast_keytab" (printf "%s/%s" (dir (index $ 0).Values.keytabPath) .) -}}
{{- end -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{- define "krbrefresh.signingDirectory" -}}
/run/secrets/{{ include "krbrefresh.name" . }}-signing-key
{{- end -}}

{{/* How probes ask: httpGet, exec or check. */}}
{{- define "krbrefresh.handler" -}}
{{- if ne .Values.probes.handler "auto" -}}
{{- .Values.probes.handler -}}
{{- else if or (not .Values.listen) .Values.settings.refresher.tls_client_ca -}}
check
{{- else if include "krbrefresh.onLoopback" . -}}
exec
{{- else -}}
httpGet
{{- end -}}
{{- end -}}

{{- define "krbrefresh.onLoopback" -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\]:)" .Values.listen -}}yes{{- end -}}
{{- end -}}

{{- define "krbrefresh.portNumber" -}}
{{- regexFind "[0-9]+$" .Values.listen -}}
{{- end -}}
