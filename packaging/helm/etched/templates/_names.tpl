{{- define "etched.labels" -}}
app.kubernetes.io/name: etched
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
