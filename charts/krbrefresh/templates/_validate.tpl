{{/* What cannot work together is refused here, in words; what a value looks like is values.schema.json's. */}}
{{- define "krbrefresh.validate" -}}
{{- $root := . -}}
{{- $values := .Values -}}
{{- if not (kindIs "invalid" .Values.reinitFrequency) -}}
{{- fail "krbrefresh: reinitFrequency is not a setting here: a token is refreshed by its own end, in the last third of its life; settings.kerberos.expiry_window says how long before it (\"33%\" or \"2h\")" -}}
{{- end -}}
{{- if not .Values.image.repository -}}
{{- fail "krbrefresh: image.repository is not set: no image is published; build docker/Dockerfile (target refresher), push it to your registry, and name it here" -}}
{{- end -}}

{{- /* Credentials */ -}}
{{- $all := (include "krbrefresh.credentials" . | fromJson).all -}}
{{- if not $all -}}
{{- fail "krbrefresh: whose token? Set principal, or credentials.NAME.principal" -}}
{{- end -}}
{{- if and .Values.principal (hasKey .Values.credentials "default") -}}
{{- fail "krbrefresh: principal and credentials.default are the same credential twice; keep one of them" -}}
{{- end -}}
{{- if not .Values.listen -}}
{{- if and (eq (include "krbrefresh.handler" .) "check") (gt (len $all) 1) -}}
{{- fail "krbrefresh: with listen empty a probe can check one token alone, and there are several credentials; set listen to \"127.0.0.1:9464\"" -}}
{{- end -}}
{{- end -}}
{{- range $name, $each := .Values.credentials -}}
{{- if and $each.keytab $each.keytabSecret -}}
{{- fail (printf "krbrefresh: credential %q: keytab names a file of the Secret for all, and keytabSecret a Secret of its own; give keytabSecret.key in place of keytab" $name) -}}
{{- end -}}
{{- end -}}
{{- $owners := dict -}}
{{- range $all -}}
{{- $path := clean .ccache -}}
{{- if hasKey $owners $path -}}
{{- fail (printf "krbrefresh: the credentials %q and %q have one ccache, %s; give each one a directory of its own" (get $owners $path) .name $path) -}}
{{- end -}}
{{- $_ := set $owners $path .name -}}
{{- if or (not (hasPrefix (printf "%s/" $values.ccacheMountPath) $path)) (eq (dir $path) (clean $values.ccacheMountPath)) -}}
{{- fail (printf "krbrefresh: credential %q: its ccache %s has to be in a directory below ccacheMountPath, as %s/%s/%s is: the refresher makes that directory" .name .ccache $values.ccacheMountPath .name $values.ccacheFileName) -}}
{{- end -}}
{{- $directory := dir $values.keytabPath -}}
{{- if .secret -}}{{- $directory = printf "%s-%s" $directory .name -}}{{- end -}}
{{- if ne (dir .keytab) (clean $directory) -}}
{{- fail (printf "krbrefresh: credential %q: its keytab %s is not where its Secret is mounted, %s; give the file's name alone, which is the key in the Secret" .name .keytab $directory) -}}
{{- end -}}
{{- $settings := deepCopy $values.settings.kerberos -}}
{{- range $key, $value := .settings -}}{{- $_ := set $settings $key $value -}}{{- end -}}
{{- if eq (toString $settings.include_tgt) "false" -}}
{{- if eq (toString $settings.method) "renew" -}}
{{- fail (printf "krbrefresh: credential %q: without the TGT (include_tgt: false) there is nothing to renew; take method: keytab" .name) -}}
{{- end -}}
{{- if not $settings.services -}}
{{- fail (printf "krbrefresh: credential %q: include_tgt: false without services leaves nothing to publish; name the services that workers need" .name) -}}
{{- end -}}
{{- end -}}
{{- if and $settings.fast_keytab $settings.fast_ccache -}}
{{- fail (printf "krbrefresh: credential %q: fast_keytab and fast_ccache are two ways to one thing; keep one of them" .name) -}}
{{- end -}}
{{- end -}}

{{- /* The keytab */ -}}
{{- $given := or .Values.keytabBase64Content .Values.keytabsBase64Content -}}
{{- if and .Values.keytab.existingSecret $given -}}
{{- fail "krbrefresh: keytab.existingSecret and keytabBase64Content (or keytabsBase64Content) are two sources of one thing; keep one of them" -}}
{{- end -}}
{{- if and (include "krbrefresh.usesSharedSecret" .) (not .Values.keytab.existingSecret) -}}
{{- if not $given -}}
{{- fail "krbrefresh: where is the keytab? Set keytab.existingSecret to a Secret in this namespace (kubectl create secret generic NAME --from-file=kerberos.keytab), or keytabBase64Content" -}}
{{- end -}}
{{- range $all -}}
{{- if not .secret -}}
{{- $file := base .keytab -}}
{{- $there := hasKey $values.keytabsBase64Content $file -}}
{{- if and $values.keytabBase64Content (eq $file (base $values.keytabPath)) -}}{{- $there = true -}}{{- end -}}
{{- if not $there -}}
{{- fail (printf "krbrefresh: credential %q: its keytab %s is neither keytabBase64Content nor in keytabsBase64Content" .name $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $content := include "krbrefresh.keytabs" . | fromJson -}}
{{- if not (regexMatch "^BQ[I-L][A-Za-z0-9+/]+={0,2}$" $content) -}}
{{- fail (printf "krbrefresh: the content of %s is not a keytab in base64 (it would begin with BQI): base64 %s" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* krb5.conf */ -}}
{{- if and .Values.config .Values.krb5Conf.existingConfigMap -}}
{{- fail "krbrefresh: config and krb5Conf.existingConfigMap are two sources of one krb5.conf; keep one of them" -}}
{{- end -}}
{{- if and .Values.configPath (not .Values.config) (not .Values.krb5Conf.existingConfigMap) -}}
{{- fail "krbrefresh: where is krb5.conf? Set krb5Conf.existingConfigMap or config; or configPath to \"\", for the one in the images" -}}
{{- end -}}
{{- if and (not .Values.configPath) (or .Values.config .Values.krb5Conf.existingConfigMap) -}}
{{- fail "krbrefresh: configPath is empty, which stands for the images' own krb5.conf; config and krb5Conf.existingConfigMap have no place then" -}}
{{- end -}}

{{- /* Signatures */ -}}
{{- if and .Values.signing.publicKey .Values.signing.publicKeyConfigMap -}}
{{- fail "krbrefresh: signing.publicKey and signing.publicKeyConfigMap are two sources of one thing; keep one of them" -}}
{{- end -}}
{{- if and (include "krbrefresh.publicKeyName" .) (not .Values.signing.existingSecret) -}}
{{- fail "krbrefresh: workers would have a public key, and no token would be signed: set signing.existingSecret to the Secret with the private key (krbrefresh keygen)" -}}
{{- end -}}
{{- if contains "PRIVATE KEY" .Values.signing.publicKey -}}
{{- fail "krbrefresh: signing.publicKey is a private key; it belongs into a Secret, signing.existingSecret, and its .pub here" -}}
{{- end -}}

{{- /* Users */ -}}
{{- if eq (toString .Values.users.worker) (toString .Values.users.refresher) -}}
{{- fail "krbrefresh: users.worker and users.refresher are one: in a pod with one process namespace the worker could read the refresher's files; give the worker another" -}}
{{- end -}}

{{- range $what, $value := dict "pod" "worker and users.group" "refresher" "refresher" "worker" "worker" -}}
{{- range $key := list "runAsUser" "runAsGroup" "fsGroup" -}}
{{- if hasKey (get $values.securityContexts $what | default dict) $key -}}
{{- fail (printf "krbrefresh: securityContexts.%s.%s would go before users, which says who may read keytabs and tokens; set users.%s" $what $key $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $what := list "refresher" "worker" -}}
{{- if eq (toString (get (get $values.securityContexts $what | default dict) "privileged")) "true" -}}
{{- fail (printf "krbrefresh: securityContexts.%s.privileged: a privileged container has the node, and with it every keytab of the node's pods" $what) -}}
{{- end -}}
{{- end -}}

{{- /* The sidecar */ -}}
{{- if and (eq .Values.sidecar.mode "native") (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "krbrefresh: sidecar.mode native needs Kubernetes 1.29, and this is %s; take auto or stopFile (helm template: say which with --kube-version)" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- /* Probes and metrics */ -}}
{{- $handler := include "krbrefresh.handler" . -}}
{{- $tls := .Values.settings.refresher -}}
{{- if ne $handler "check" -}}
{{- if not .Values.listen -}}
{{- fail (printf "krbrefresh: probes.handler %s has nobody to ask: listen is empty; take check, or set listen" $handler) -}}
{{- end -}}
{{- if $tls.tls_client_ca -}}
{{- fail (printf "krbrefresh: probes.handler %s has no certificate, and settings.refresher.tls_client_ca asks for one; take check" $handler) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $handler "httpGet") (include "krbrefresh.onLoopback" .) -}}
{{- fail (printf "krbrefresh: probes.handler httpGet asks from outside of the pod, and listen is %s; take exec, or \":9464\"" .Values.listen) -}}
{{- end -}}
{{- if and (eq $handler "check") (gt (len $all) 1) -}}
{{- fail "krbrefresh: probes.handler check looks at one token alone, and there are several credentials; take exec, with listen on 127.0.0.1:9464" -}}
{{- end -}}
{{- if ne (not $tls.tls_certificate) (not $tls.tls_key) -}}
{{- fail "krbrefresh: settings.refresher.tls_certificate and tls_key go together" -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled (or (not .Values.listen) (include "krbrefresh.onLoopback" .)) -}}
{{- fail (printf "krbrefresh: podMonitor.enabled, but nobody outside of the pod can ask: listen is %q; set it to \":9464\"" .Values.listen) -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled $tls.tls_client_ca (not .Values.podMonitor.tlsConfig) -}}
{{- fail "krbrefresh: podMonitor.enabled with settings.refresher.tls_client_ca: Prometheus needs a client certificate; set podMonitor.tlsConfig" -}}
{{- end -}}
{{- if .Values.prometheusRule.enabled -}}
{{- if or (not .Values.listen) (include "krbrefresh.onLoopback" .) -}}
{{- fail (printf "krbrefresh: prometheusRule.enabled, but no alert could see this release: nobody outside of the pod can ask for metrics, as listen is %q; set it to \":9464\", or enable the rule in a release whose metrics are asked for" .Values.listen) -}}
{{- end -}}
{{- $alerts := list -}}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).groups -}}{{- range .rules -}}{{- $alerts = append $alerts .alert -}}{{- end -}}{{- end -}}
{{- range .Values.prometheusRule.exclude -}}
{{- if not (has . $alerts) -}}
{{- fail (printf "krbrefresh: prometheusRule.exclude: there is no alert %q, but %s" . (join ", " $alerts)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Mounts: none in place of a directory that a system needs, none in another */ -}}
{{- $mounts := dict "ccacheMountPath" .Values.ccacheMountPath "the settings" "/etc/krbrefresh" -}}
{{- range $volume, $each := include "krbrefresh.keytabVolumes" . | fromJson -}}
{{- $_ := set $mounts (printf "keytabPath (%s)" $volume) $each.path -}}
{{- end -}}
{{- if .Values.configPath -}}{{- $_ := set $mounts "configPath" (dir .Values.configPath) -}}{{- end -}}
{{- if .Values.signing.existingSecret -}}{{- $_ := set $mounts "the signing key" (include "krbrefresh.signingDirectory" .) -}}{{- end -}}
{{- if include "krbrefresh.publicKeyName" . -}}{{- $_ := set $mounts "signing.publicKeyMountPath" .Values.signing.publicKeyMountPath -}}{{- end -}}
{{- if eq (include "krbrefresh.mode" .) "stopFile" -}}{{- $_ := set $mounts "sidecar.stopMountPath" .Values.sidecar.stopMountPath -}}{{- end -}}
{{- range $what, $path := $mounts -}}
{{- if has (clean $path) (list "/" "." "/bin" "/dev" "/etc" "/home" "/lib" "/opt" "/proc" "/root" "/run" "/run/secrets" "/sbin" "/sys" "/tmp" "/usr" "/usr/bin" "/usr/local" "/var" "/var/run" "/var/run/secrets") -}}
{{- fail (printf "krbrefresh: %s: a whole directory is mounted, so that what is rotated arrives, and %s is one that cannot be replaced; put a directory of its own in between, like /run/secrets/keytab/kerberos.keytab or /etc/krb5/krb5.conf" $what $path) -}}
{{- end -}}
{{- end -}}
{{- range $what, $path := $mounts -}}
{{- range $other, $outer := $mounts -}}
{{- if and (ne $what $other) (hasPrefix (printf "%s/" (clean $outer)) (printf "%s/" (clean $path))) -}}
{{- fail (printf "krbrefresh: %s (%s) and %s (%s) are mounted in one place, or one in the other; give each a directory of its own" $what $path $other $outer) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The keytabs of the chart's own Secret, as JSON: {file: base64} */}}
{{- define "krbrefresh.keytabs" -}}
{{- $keytabs := dict -}}
{{- range $name, $content := .Values.keytabsBase64Content -}}
{{- $_ := set $keytabs $name (regexReplaceAll "\\s+" $content "") -}}
{{- end -}}
{{- with .Values.keytabBase64Content -}}
{{- $_ := set $keytabs (base $.Values.keytabPath) (regexReplaceAll "\\s+" . "") -}}
{{- end -}}
{{- toJson $keytabs -}}
{{- end -}}
