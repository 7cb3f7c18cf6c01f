{{/* Parts shared by the Deployment's pods and those of `helm test`. */}}

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

{{/* Admission and scheduling of pods, for the Deployment and tests. A test needs the same nodes, but no spreading. */}}
{{- define "tidewire.podPlacement" -}}
serviceAccountName: {{ include "tidewire.serviceAccount" . | quote }}
automountServiceAccountToken: {{ .Values.automountServiceAccountToken }}
{{- with (include "tidewire.pullSecrets" . | fromJson).secrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ quote . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ quote . }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ quote . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- with .nameservers }}
  nameservers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .searches }}
  searches:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .options }}
  options:
    {{- range . }}
    - name: {{ .name | quote }}
      {{- if not (kindIs "invalid" .value) }}
      value: {{ include "tidewire.text" .value | quote }}
      {{- end }}
    {{- end }}
  {{- end }}
{{- end }}
{{- with include "tidewire.texts" .Values.nodeSelector | fromYaml }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The names of pull secrets, those of all charts first: {"secrets": […]} */}}
{{- define "tidewire.pullSecrets" -}}
{{- $names := list -}}
{{- $given := list -}}
{{- range list .Values.global.imagePullSecrets .Values.imagePullSecrets -}}
{{- if . }}{{ $given = concat $given (ternary (list .) . (kindIs "string" .)) }}{{ end -}}
{{- end -}}
{{- range $given -}}
{{- $names = append $names (ternary . (ternary (get (ternary . dict (kindIs "map" .)) "name") "" (kindIs "map" .)) (kindIs "string" .)) -}}
{{- end -}}
{{- dict "secrets" (uniq $names) | toJson -}}
{{- end -}}

{{/* Requests and limits, each quantity as text. */}}
{{- define "tidewire.resources" -}}
{{- $resources := deepCopy . -}}
{{- range $part := list "requests" "limits" -}}
{{- if kindIs "map" (get $resources $part) }}{{ $_ := set $resources $part (include "tidewire.texts" (get $resources $part) | fromYaml) }}{{ end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Constraints in full, or one for each key of topologySpread, as a JSON list. */}}
{{- define "tidewire.topologySpread" -}}
{{- $constraints := list -}}
{{- $own := dict "matchLabels" (include "tidewire.selector" . | fromYaml) -}}
{{- range .Values.topologySpreadConstraints -}}
{{- $constraint := merge (deepCopy .) (dict "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- if not (hasKey . "labelSelector") -}}
{{- $constraint = merge $constraint (dict "labelSelector" $own "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- $constraints = append $constraints $constraint -}}
{{- end -}}
{{- if and (not $constraints) .Values.topologySpread.enabled -}}
{{- range .Values.topologySpread.topologyKeys -}}
{{- $constraints = append $constraints (dict "topologyKey" . "maxSkew" 1 "whenUnsatisfiable" $.Values.topologySpread.whenUnsatisfiable "labelSelector" $own "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- end -}}
{{- toJson $constraints -}}
{{- end -}}

{{/* Hooks of the container: the chart's preStop, unless `lifecycle` has one. */}}
{{- define "tidewire.lifecycle" -}}
{{- $seconds := include "tidewire.preStopSeconds" . | int -}}
{{- $hooks := deepCopy .Values.lifecycle -}}
{{- if and (not (hasKey $hooks "preStop")) (gt $seconds 0) -}}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version -}}
{{- $_ := set $hooks "preStop" (dict "sleep" (dict "seconds" $seconds)) -}}
{{- else -}}
{{- /* Kubernetes 1.30 and newer have a sleep hook. */ -}}
{{- $_ := set $hooks "preStop" (dict "exec" (dict "command" (list "python3" "-c" (printf "import time; time.sleep(%d)" $seconds)))) -}}
{{- end -}}
{{- end -}}
{{- if $hooks }}{{ toYaml $hooks }}{{ end -}}
{{- end -}}

{{/* The user's environment variables as a YAML list; numbers and booleans become text. */}}
{{- define "tidewire.extraEnv" -}}
{{- $variables := list -}}
{{- range include "tidewire.renderedList" (list . .Values.extraEnv) | fromYamlArray -}}
{{- $variable := . -}}
{{- if and (kindIs "map" .) (hasKey . "value") }}{{ $variable = set . "value" (include "tidewire.text" .value) }}{{ end -}}
{{- $variables = append $variables $variable -}}
{{- end -}}
{{- toYaml $variables -}}
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
{{- if .Values.secrets.hooks.existingSecret }}
- {name: hooks, mountPath: /etc/tidewire/hooks, readOnly: true}
{{- end }}
{{- if .Values.secrets.webhooks.existingSecret }}
- {name: webhooks, mountPath: /etc/tidewire/webhooks, readOnly: true}
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
{{- with .Values.secrets.hooks.existingSecret }}
- name: hooks
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.secrets.webhooks.existingSecret }}
- name: webhooks
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end -}}
