{{/* The first part of a repository is a registry if it has a dot or a port, or is localhost. A registry of the values replaces it. */}}
{{- define "tidewire.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.global.imageRegistry | default .Values.image.registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^(localhost|[^/]*[.:][^/]*)/" $repository "") -}}
{{- end -}}
{{- $repository -}}
{{- if .Values.image.digest -}}@{{ .Values.image.digest }}{{- else -}}:{{ include "tidewire.text" .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- end -}}

{{/*
A setting of the service as text; 0 and false stay what they are: [root, group, name, the service's default]. Null unsets it.
*/}}
{{- define "tidewire.setting" -}}
{{- $group := index (index . 0).Values.settings (index . 1) -}}
{{- $found := index . 3 -}}
{{- if and (kindIs "map" $group) (hasKey $group (index . 2)) -}}
{{- $given := index $group (index . 2) -}}
{{- if not (kindIs "invalid" $given) }}{{ $found = $given }}{{ end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{- define "tidewire.heartbeat" -}}{{ include "tidewire.setting" (list . "deadlines" "heartbeat" 25.0) }}{{- end -}}
{{- define "tidewire.shutdown" -}}{{ include "tidewire.setting" (list . "deadlines" "shutdown" 20.0) }}{{- end -}}
{{- define "tidewire.connections" -}}{{ include "tidewire.setting" (list . "limits" "connections" 15000) }}{{- end -}}
{{- define "tidewire.drainRate" -}}{{ include "tidewire.setting" (list . "rollout" "drain_rate" 200.0) }}{{- end -}}
{{- define "tidewire.maxAge" -}}{{ include "tidewire.setting" (list . "rollout" "max_age" 0.0) }}{{- end -}}
{{- define "tidewire.acceptRate" -}}
{{- include "tidewire.setting" (list (dict "Values" (dict "settings" (.Values.settings.rollout | default dict))) "accept_rate" "per_second" 1000.0) -}}
{{- end -}}

{{/* settings.deadlines.shutdown in seconds that a full pod needs to drain at its rate. Closes may take three quarters of it. */}}
{{- define "tidewire.drainNeeds" -}}
{{- divf (include "tidewire.connections" . | float64) (include "tidewire.drainRate" . | float64) 0.75 | ceil | int -}}
{{- end -}}

{{- define "tidewire.brokerUrl" -}}{{ include "tidewire.setting" (list . "broker" "url" "memory://") }}{{- end -}}

{{/* Duration of the container's preStop hook, in seconds. */}}
{{- define "tidewire.preStopSeconds" -}}
{{- dig "preStop" "sleep" "seconds" .Values.preStopSeconds .Values.lifecycle | int -}}
{{- end -}}

{{/* Minimum seconds from a pod's deletion to SIGKILL. Less would cut connections. */}}
{{- define "tidewire.minGrace" -}}
{{- add (include "tidewire.preStopSeconds" . | int) (include "tidewire.shutdown" . | float64 | ceil | int) 15 -}}
{{- end -}}

{{/* Scrape interval of the chart's monitor in seconds; 0 without a monitor, or if Prometheus decides. */}}
{{- define "tidewire.scrapeInterval" -}}
{{- $seconds := 0 -}}
{{- $interval := "" -}}
{{- if .Values.serviceMonitor.enabled }}{{ $interval = .Values.serviceMonitor.interval }}{{ else if .Values.podMonitor.enabled }}{{ $interval = .Values.podMonitor.interval }}{{ end -}}
{{- range $part := regexFindAll "[0-9]+(ms|[smh])" (toString $interval) -1 -}}
{{- $number := regexFind "^[0-9]+" $part | int -}}
{{- if hasSuffix "ms" $part }}{{ $seconds = add $seconds (ternary 1 0 (gt $number 0)) -}}
{{- else if hasSuffix "s" $part }}{{ $seconds = add $seconds $number -}}
{{- else if hasSuffix "m" $part }}{{ $seconds = add $seconds (mul $number 60) -}}
{{- else }}{{ $seconds = add $seconds (mul $number 3600) }}{{ end -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* settings.deadlines.last_scrape, or a default that is longer than the scrape interval. */}}
{{- define "tidewire.lastScrape" -}}
{{- include "tidewire.setting" (list . "deadlines" "last_scrape" (max 35 (add 5 (include "tidewire.scrapeInterval" . | int)))) -}}
{{- end -}}

{{/* Seconds from a pod's deletion to SIGKILL. They include the wait for the last scrape, which tidewire.minGrace does not: a pod that is
killed during that wait has no connections left. */}}
{{- define "tidewire.grace" -}}
{{- if .Values.terminationGracePeriodSeconds -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- else -}}
{{- add (include "tidewire.minGrace" .) (include "tidewire.lastScrape" . | float64 | ceil | int) -}}
{{- end -}}
{{- end -}}

{{/* Seconds that a load balancer keeps connections of a pod that ends: the longest drain, at least 180 s. */}}
{{- define "tidewire.drainSeconds" -}}
{{- max 180 (.Values.terminationGracePeriodSeconds | default (include "tidewire.minGrace" .) | int) -}}
{{- end -}}

{{/* Minimum number of pods. */}}
{{- define "tidewire.minReplicas" -}}
{{- if .Values.autoscaling.hpa.enabled -}}{{ int .Values.autoscaling.hpa.minReplicas }}
{{- else if .Values.autoscaling.keda.enabled -}}{{ int .Values.autoscaling.keda.minReplicas }}
{{- else -}}{{ int .Values.replicas }}{{- end -}}
{{- end -}}

{{/* Maximum number of pods at the same time. */}}
{{- define "tidewire.maxReplicas" -}}
{{- if .Values.autoscaling.hpa.enabled -}}{{ int .Values.autoscaling.hpa.maxReplicas }}
{{- else if .Values.autoscaling.keda.enabled -}}{{ int .Values.autoscaling.keda.maxReplicas }}
{{- else -}}{{ int .Values.replicas }}{{- end -}}
{{- end -}}

{{- define "tidewire.connectionsTarget" -}}
{{- $most := include "tidewire.setting" (list . "limits" "connections" 15000) | float64 -}}
{{- max 1 (div (mul (int64 $most) (int64 .Values.autoscaling.connectionsUtilization)) 100) -}}
{{- end -}}

{{/* "true" for each of the credentials that the chart's own Secret holds. */}}
{{- define "tidewire.generatesAuthSecret" -}}
{{- $auth := .Values.settings.auth | default dict -}}
{{- if and .Values.secrets.generate (not .Values.secrets.authSecret.existingSecret) (not .Values.secrets.authIssuers.existingSecret) (not $auth.issuers) (not $auth.anonymous) -}}true{{- end -}}
{{- end -}}
{{- define "tidewire.generatesApiKey" -}}
{{- if and .Values.secrets.generate (not .Values.secrets.apiKey.existingSecret) (not .Values.secrets.apiKeys.existingSecret) -}}true{{- end -}}
{{- end -}}

{{/* The Secret with the secret of HS256 tokens; empty if there is none. */}}
{{- define "tidewire.authSecretName" -}}
{{- if include "tidewire.generatesAuthSecret" . -}}{{ include "tidewire.fullname" . }}{{- else -}}{{ .Values.secrets.authSecret.existingSecret }}{{- end -}}
{{- end -}}
{{- define "tidewire.authSecretKey" -}}
{{- if include "tidewire.generatesAuthSecret" . -}}auth-secret{{- else -}}{{ .Values.secrets.authSecret.key }}{{- end -}}
{{- end -}}
{{- define "tidewire.apiKeyName" -}}
{{- if include "tidewire.generatesApiKey" . -}}{{ include "tidewire.fullname" . }}{{- else -}}{{ .Values.secrets.apiKey.existingSecret }}{{- end -}}
{{- end -}}
{{- define "tidewire.apiKeyKey" -}}
{{- if include "tidewire.generatesApiKey" . -}}api-key{{- else -}}{{ .Values.secrets.apiKey.key }}{{- end -}}
{{- end -}}

{{/* True if a proxy is in front of the pods, so that one hop of X-Forwarded-For is trusted. */}}
{{- define "tidewire.isBehindProxy" -}}
{{- if or .Values.ingress.enabled .Values.gateway.enabled -}}true{{- end -}}
{{- end -}}

{{/* The service's settings file. */}}
{{/* "true" with sticky sessions by cookie. */}}
{{- define "tidewire.isSticky" -}}
{{- if or .Values.stickySessions.enabled (and .Values.gateway.enabled .Values.gateway.sessionPersistence.enabled) -}}true{{- end -}}
{{- end -}}

{{- define "tidewire.settings" -}}
{{- $own := dict "host" "::" "ops_host" "::" -}}
{{- if include "tidewire.isBehindProxy" . }}{{ $_ := set $own "proxy" (dict "hops" 1) }}{{ end -}}
{{- if include "tidewire.isSticky" . }}{{ $_ := set $own "rollout" (dict "rebalance" false) }}{{ end -}}
{{- $scrape := include "tidewire.lastScrape" . | float64 -}}
{{- if gt $scrape 35.0 }}{{ $_ := set $own "deadlines" (dict "last_scrape" $scrape) }}{{ end -}}
{{- $broker := dict -}}
{{- if or .Values.secrets.brokerCa.existingSecret .Values.secrets.brokerCa.existingConfigMap }}{{ $_ := set $broker "ca" "/etc/tidewire/secrets/broker/ca.crt" }}{{ end -}}
{{- if .Values.secrets.brokerClient.existingSecret -}}
{{- $_ := set $broker "certificate" "/etc/tidewire/secrets/broker/tls.crt" -}}
{{- $_ := set $broker "private_key" "/etc/tidewire/secrets/broker/tls.key" -}}
{{- end -}}
{{- $fixed := dict "contract" (include "tidewire.contractPath" .) "port" 8080 "ops_port" 9090 "broker" $broker -}}
{{- mergeOverwrite $own (deepCopy .Values.settings) $fixed | toYaml -}}
{{- end -}}

{{/* Path of the contract. */}}
{{- define "tidewire.contractPath" -}}
/etc/tidewire/contract/{{ include "tidewire.contractKey" . }}
{{- end -}}

{{- define "tidewire.contractKey" -}}
{{- ternary .Values.contract.key "contract.yaml" (ne .Values.contract.existingConfigMap "") -}}
{{- end -}}

{{/* The contract and its files as a map of keys. A ConfigMap's key cannot contain "/". */}}
{{- define "tidewire.contractFiles" -}}
contract.yaml: {{ .Values.contract.text | default (.Files.Get "files/contract.yaml") | toJson }}
{{- range $path, $text := .Values.contract.files }}
{{ include "tidewire.fileKey" $path }}: {{ include "tidewire.text" $text | toJson }}
{{- end }}
{{- end -}}
{{- define "tidewire.fileKey" -}}contract-file.{{ sha256sum . | trunc 16 }}{{- end -}}

{{- define "tidewire.usesStarterContract" -}}
{{- if not (or .Values.contract.text .Values.contract.existingConfigMap) -}}true{{- end -}}
{{- end -}}

{{/* Renders the templates in a list: [root, list] */}}
{{- define "tidewire.renderedList" -}}
{{- ternary "[]" (include "tidewire.rendered" .) (empty (index . 1)) -}}
{{- end -}}

{{/* Renders the templates in text or a mapping: [root, value] */}}
{{- define "tidewire.rendered" -}}
{{- $value := index . 1 -}}
{{- tpl (ternary $value (toYaml $value) (kindIs "string" $value)) (index . 0) -}}
{{- end -}}

{{/* The one field that the PodDisruptionBudget sets. */}}
{{- define "tidewire.budget" -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- if not (kindIs "invalid" $budget.minAvailable) -}}
minAvailable: {{ $budget.minAvailable }}
{{- else -}}
maxUnavailable: {{ ternary 1 $budget.maxUnavailable (kindIs "invalid" $budget.maxUnavailable) }}
{{- end -}}
{{- end -}}
