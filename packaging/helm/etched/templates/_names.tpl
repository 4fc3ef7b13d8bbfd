{{- define "etched.labels" -}}
app.kubernetes.io/name: etched
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A value as text. Numbers come as floats, which would be written as 1e+06 from a million on. */}}
{{- define "etched.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- end }}
