{{/* A pod template: Spark sets image, arguments, resources and more of its own, and keeps what is here. */}}
{{- define "spark.pod" -}}
metadata:
  labels:
    {{- include "krbrefresh.podLabels" .root | nindent 4 }}
  annotations:
    {{- include "krbrefresh.podAnnotations" .root | nindent 4 }}
spec:
  {{- if not .makesPods }}
  automountServiceAccountToken: false
  {{- end }}
  securityContext:
    {{- include "krbrefresh.podSecurityContext" .root | nindent 4 }}
  initContainers:
    {{- include "krbrefresh.initContainers" .root | nindent 4 }}
  containers:
    # The first container is Spark's.
    - name: {{ .container }}
      image: {{ .root.Values.image }}
      env:
        {{- include "krbrefresh.workerEnv" .root | nindent 8 }}
      securityContext:
        {{- include "krbrefresh.workerSecurityContext" .root | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: work
          mountPath: /opt/spark/work-dir
        {{- include "krbrefresh.workerMounts" .root | nindent 8 }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    - name: work
      emptyDir:
        sizeLimit: 10Gi
    {{- include "krbrefresh.volumes" .root | nindent 4 }}
{{- end -}}

{{- define "spark.driver" -}}
{{- include "spark.pod" (dict "root" . "container" "spark-kubernetes-driver" "makesPods" true) -}}
{{- end -}}

{{- define "spark.executor" -}}
{{- include "spark.pod" (dict "root" . "container" "spark-kubernetes-executor" "makesPods" false) -}}
{{- end -}}

{{/* Java reads no KRB5_CONFIG. Hadoop's libraries take the login from the token, by KRB5CCNAME. */}}
{{- define "spark.conf" -}}
{{- $java := printf "-Djava.security.krb5.conf=%s" .Values.krbrefresh.configPath -}}
spark.driver.extraJavaOptions: {{ $java }}
spark.executor.extraJavaOptions: {{ $java }}
spark.kerberos.renewal.credentials: ccache
{{- end -}}
