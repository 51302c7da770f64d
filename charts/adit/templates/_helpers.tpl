{{- define "adit.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if .Values.nameOverride -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- /* Services need a name that begins with a letter (RFC 1035). */ -}}
{{- define "adit.checkName" -}}
{{- if regexMatch "^[0-9]" (include "adit.name" .) -}}
{{- fail (printf "a Service cannot be called %q: set fullnameOverride to a name that begins with a letter" (include "adit.name" .)) -}}
{{- end -}}
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

{{- define "adit.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "adit.name" .) "default") -}}
{{- end }}

{{- define "adit.last" -}}
{{- sub (add .Values.public.first .Values.public.count) 1 -}}
{{- end }}

{{- /* All of them are ports of one pod. */ -}}
{{- define "adit.checkPorts" -}}
{{- $first := int .Values.public.first -}}
{{- $last := int (include "adit.last" .) -}}
{{- if gt $last 65535 -}}
{{- fail (printf "public.first %d and public.count %d: the last port would be %d, above 65535" $first (int .Values.public.count) $last) -}}
{{- end -}}
{{- $ports := dict "control.port" .Values.control.port "metrics.port" .Values.metrics.port -}}
{{- if .Values.http.domain -}}
{{- $_ := set $ports "http.port" .Values.http.port -}}
{{- end -}}
{{- range $key, $port := $ports -}}
{{- if and (ge (int $port) $first) (le (int $port) $last) -}}
{{- fail (printf "%s %d is one of the public ports, %d to %d: choose another" $key (int $port) $first $last) -}}
{{- end -}}
{{- range $other, $same := $ports -}}
{{- if and (ne $key $other) (eq (int $port) (int $same)) -}}
{{- fail (printf "%s and %s are both %d: choose two ports" $key $other (int $port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* A name without a registry is pulled from docker.io, where nobody publishes it. */ -}}
{{- define "adit.image" -}}
{{- $image := .Values.image -}}
{{- $repository := $image.repository -}}
{{- if $image.registry -}}
{{- $repository = printf "%s/%s" ($image.registry | trimSuffix "/") $image.repository -}}
{{- end -}}
{{- $host := regexFind "^[^/]+/" $repository | trimSuffix "/" -}}
{{- if and (ne $image.pullPolicy "Never") (not (or (contains "." $host) (contains ":" $host) (eq $host "localhost"))) -}}
{{- fail (printf "image.repository %q names no registry: build the image with the Dockerfile, push it, and set image.repository=REGISTRY/adit. For an image that is on the nodes already, set image.pullPolicy=Never" $repository) -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* The selector of a Service: of the only pod, or of the pod with an index. Takes a dict: root, index. */ -}}
{{- define "adit.podSelector" -}}
{{- include "adit.selector" .root -}}
{{- if gt (int .root.Values.replicas) 1 }}
apps.kubernetes.io/pod-index: {{ .index | quote }}
{{- end -}}
{{- end }}

{{- /* The suffix of names of Services that belong to one pod. Takes a dict: root, index. */ -}}
{{- define "adit.podSuffix" -}}
{{- if gt (int .root.Values.replicas) 1 -}}-{{ .index }}{{- end -}}
{{- end }}
