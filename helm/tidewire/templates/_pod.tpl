{{/* What the Deployment's pods and those of `helm test` have in common. */}}

{{- define "tidewire.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tidewire.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tidewire.env" -}}
- {name: TIDEWIRE_CONFIG, value: /etc/tidewire/settings/settings.yaml}
{{- if include "tidewire.authSecretName" . }}
- {name: TIDEWIRE_AUTH__SECRET_FILE, value: /etc/tidewire/secrets/auth-secret}
{{- end }}
{{- if .Values.secrets.authIssuers.existingSecret }}
- {name: TIDEWIRE_AUTH__ISSUERS_FILE, value: /etc/tidewire/secrets/auth-issuers.json}
{{- end }}
{{- if include "tidewire.apiKeyName" . }}
- {name: TIDEWIRE_API__KEY_FILE, value: /etc/tidewire/secrets/api-key}
{{- end }}
{{- if .Values.secrets.apiKeys.existingSecret }}
- {name: TIDEWIRE_API__KEYS_FILE, value: /etc/tidewire/secrets/api-keys.json}
{{- end }}
{{- if .Values.secrets.brokerPassword.existingSecret }}
- {name: TIDEWIRE_BROKER__PASSWORD_FILE, value: /etc/tidewire/secrets/broker/password}
{{- end }}
{{- if .Values.secrets.sentinelPassword.existingSecret }}
- {name: TIDEWIRE_BROKER__SENTINEL_PASSWORD_FILE, value: /etc/tidewire/secrets/broker/sentinel-password}
{{- end }}
{{- end -}}

{{- define "tidewire.secretSources" -}}
{{- $s := .Values.secrets -}}
{{- with include "tidewire.authSecretName" . }}
- secret: {name: {{ . | quote }}, items: [{key: {{ include "tidewire.authSecretKey" $ | quote }}, path: auth-secret}]}
{{- end }}
{{- with $s.authIssuers.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.authIssuers.key | quote }}, path: auth-issuers.json}]}
{{- end }}
{{- with include "tidewire.apiKeyName" . }}
- secret: {name: {{ . | quote }}, items: [{key: {{ include "tidewire.apiKeyKey" $ | quote }}, path: api-key}]}
{{- end }}
{{- with $s.apiKeys.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.apiKeys.key | quote }}, path: api-keys.json}]}
{{- end }}
{{- with $s.brokerPassword.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.brokerPassword.key | quote }}, path: broker/password}]}
{{- end }}
{{- with $s.sentinelPassword.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.sentinelPassword.key | quote }}, path: broker/sentinel-password}]}
{{- end }}
{{- with $s.brokerCa.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.brokerCa.key | quote }}, path: broker/ca.crt}]}
{{- end }}
{{- with $s.brokerCa.existingConfigMap }}
- configMap: {name: {{ . | quote }}, items: [{key: {{ $s.brokerCa.key | quote }}, path: broker/ca.crt}]}
{{- end }}
{{- with $s.brokerClient.existingSecret }}
- secret: {name: {{ . | quote }}, items: [{key: {{ $s.brokerClient.certificateKey | quote }}, path: broker/tls.crt}, {key: {{ $s.brokerClient.privateKeyKey | quote }}, path: broker/tls.key}]}
{{- end }}
{{- end -}}

{{- define "tidewire.mounts" -}}
- {name: settings, mountPath: /etc/tidewire/settings, readOnly: true}
- {name: contract, mountPath: /etc/tidewire/contract, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if include "tidewire.secretSources" . }}
- {name: secrets, mountPath: /etc/tidewire/secrets, readOnly: true}
{{- end }}
{{- if or .Values.secrets.jwks.existingSecret .Values.secrets.jwks.existingConfigMap }}
- {name: jwks, mountPath: /etc/tidewire/jwks, readOnly: true}
{{- end }}
{{- end -}}

{{- define "tidewire.volumes" -}}
- name: settings
  configMap: {name: {{ include "tidewire.fullname" . }}, items: [{key: settings.yaml, path: settings.yaml}]}
- name: contract
  configMap:
    {{- if .Values.contract.existingConfigMap }}
    name: {{ .Values.contract.existingConfigMap | quote }}
    {{- else }}
    name: {{ include "tidewire.fullname" . }}
    items:
      - {key: contract.yaml, path: contract.yaml}
      {{- range $path, $_ := .Values.contract.files }}
      - {key: {{ include "tidewire.fileKey" $path }}, path: {{ $path | quote }}}
      {{- end }}
    {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with include "tidewire.secretSources" . }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- . | trim | nindent 6 }}
{{- end }}
{{- with .Values.secrets.jwks.existingSecret }}
- name: jwks
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.secrets.jwks.existingConfigMap }}
- name: jwks
  configMap: {name: {{ . | quote }}}
{{- end }}
{{- end -}}
