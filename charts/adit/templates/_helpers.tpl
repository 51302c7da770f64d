{{- define "adit.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "adit.selector" -}}
app.kubernetes.io/name: adit-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "adit.labels" -}}
{{ include "adit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "adit.secret" -}}
{{- .Values.secret.existingSecret | default (printf "%s-keys" (include "adit.name" .)) -}}
{{- end }}

{{- define "adit.last" -}}
{{- sub (add .Values.public.first .Values.public.count) 1 -}}
{{- end }}
