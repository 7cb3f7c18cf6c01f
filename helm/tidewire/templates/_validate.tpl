{{/* Values that cannot work together: each is refused with a sentence that says what to do. */}}
{{- define "tidewire.validate" -}}
{{- $v := .Values -}}
{{- $settings := $v.settings | default dict -}}
{{- $url := include "tidewire.brokerUrl" . -}}
{{- $most := include "tidewire.maxReplicas" . | int -}}
{{- $heartbeat := include "tidewire.heartbeat" . | float64 -}}

{{- /* --- the service's settings: what the chart sets, and what must not be readable in a ConfigMap --- */ -}}
{{- range $name, $why := dict
  "contract" "set the contract in contract.text or contract.existingConfigMap"
  "port" "pods always listen on 8080; the port of the Service is service.port"
  "ops_port" "pods always serve health and metrics on 9090"
  "workers" "a pod runs one node; raise replicas instead"
  "demo" "the demo creates development credentials; set secrets and a contract instead" -}}
{{- if and (hasKey $settings $name) (not (kindIs "invalid" (index $settings $name))) }}{{ fail (printf "settings.%s is set by the chart: %s" $name $why) }}{{ end -}}
{{- end -}}
{{- range $place, $value := dict
  "auth.secret" "secrets.authSecret.existingSecret"
  "api.key" "secrets.apiKey.existingSecret"
  "api.keys" "secrets.apiKeys.existingSecret"
  "broker.password" "secrets.brokerPassword.existingSecret"
  "broker.sentinel_password" "secrets.sentinelPassword.existingSecret" -}}
{{- $steps := splitList "." $place -}}
{{- if dig (first $steps) (last $steps) "" $settings }}{{ fail (printf "settings.%s would be readable in a ConfigMap: put it into a Secret, and set %s to the Secret's name" $place $value) }}{{ end -}}
{{- end -}}
{{- range $name := list "receipt_secret" "page_secrets" -}}
{{- if dig "auth" $name "" $settings }}{{ fail (printf "settings.auth.%s would be readable in a ConfigMap: put it into a Secret, and set the variable TIDEWIRE_AUTH__%s from it in extraEnv" $name (upper $name)) }}{{ end -}}
{{- end -}}
{{- if contains "@" $url }}{{ fail "settings.broker.url holds a user or password, which would be readable in a ConfigMap: set the user in settings.broker.user, put the password into a Secret, and set secrets.brokerPassword.existingSecret to the Secret's name" }}{{ end -}}
{{- if not (regexMatch "^(memory://$|(rediss?(\\+(sentinel|cluster))?|nats|tls)://)" $url) }}{{ fail "settings.broker.url is not a broker URL: begin it with memory://, redis://, redis+sentinel://, redis+cluster:// (rediss instead of redis for TLS), nats:// or tls://" }}{{ end -}}
{{- range $place, $value := dict "ca" "secrets.brokerCa" "certificate" "secrets.brokerClient" "private_key" "secrets.brokerClient" -}}
{{- if dig "broker" $place "" $settings }}{{ fail (printf "settings.broker.%s is a file in the pod: put it into a Secret, and name the Secret in %s" $place $value) }}{{ end -}}
{{- end -}}
{{- range dig "auth" "issuers" (list) $settings -}}
{{- if .secret }}{{ fail "settings.auth.issuers holds a secret, which would be readable in a ConfigMap: put the whole list as JSON into a Secret, and set secrets.authIssuers.existingSecret to the Secret's name" }}{{ end -}}
{{- end -}}
{{- range $group := list "hooks" "webhooks" -}}
{{- range dig $group "endpoints" (list) $settings -}}
{{- if .secrets }}{{ fail (printf "settings.%s.endpoints holds secrets, which would be readable in a ConfigMap: put them into a Secret, one a line, set secrets.%s.existingSecret to the Secret's name, and secrets_file to /etc/tidewire/%s/ and the key" $group $group $group) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $v.secrets.authIssuers.existingSecret (dig "auth" "issuers" (list) $settings) }}{{ fail "secrets.authIssuers and settings.auth.issuers both list issuers, and the first would replace the second: set only one of them" }}{{ end -}}
{{- if and (not (include "tidewire.authSecretName" .)) (not $v.secrets.authIssuers.existingSecret) (not (dig "auth" "issuers" (list) $settings)) (not (dig "auth" "anonymous" false $settings)) (not (dig "hooks" "connect" "endpoint" "" $settings)) -}}
{{- fail "no client could authenticate: set secrets.generate, secrets.authSecret.existingSecret, secrets.authIssuers.existingSecret, settings.auth.issuers, settings.auth.anonymous or settings.hooks.connect.endpoint" -}}
{{- end -}}
{{- if and $v.secrets.jwks.existingSecret $v.secrets.jwks.existingConfigMap }}{{ fail "secrets.jwks names a Secret and a ConfigMap; set only one of them" }}{{ end -}}
{{- if and $v.secrets.brokerCa.existingSecret $v.secrets.brokerCa.existingConfigMap }}{{ fail "secrets.brokerCa names a Secret and a ConfigMap; set only one of them" }}{{ end -}}
{{- if and (or $v.secrets.brokerCa.existingSecret $v.secrets.brokerCa.existingConfigMap $v.secrets.brokerClient.existingSecret) (not (regexMatch "^(rediss|tls)" $url)) }}{{ fail "secrets.brokerCa and secrets.brokerClient need TLS, which settings.broker.url does not use: begin it with rediss (Redis, Valkey) or tls (NATS), or leave the secrets out" }}{{ end -}}
{{- if and $v.contract.text $v.contract.existingConfigMap }}{{ fail "contract.text and contract.existingConfigMap are both set; set only one of them" }}{{ end -}}
{{- if and $v.contract.files (not $v.contract.text) }}{{ fail "contract.files needs contract.text, which is empty: set both" }}{{ end -}}
{{- range $path, $_ := $v.contract.files -}}
{{- if or (hasPrefix "/" $path) (regexMatch "(^|/)\\.\\.(/|$)" $path) }}{{ fail (printf "contract.files: %s is not below the contract's folder" $path) }}{{ end -}}
{{- end -}}

{{- if or (contains "@" $v.image.repository) (regexMatch ":[^/]*$" $v.image.repository) }}{{ fail (printf "image.repository (%s) holds a tag or digest: put that into image.tag or image.digest" $v.image.repository) }}{{ end -}}

{{- /* --- how many --- */ -}}
{{- if and $v.autoscaling.hpa.enabled $v.autoscaling.keda.enabled }}{{ fail "autoscaling.hpa and autoscaling.keda would both scale the same pods: enable one" }}{{ end -}}
{{- range $name := list "hpa" "keda" -}}
{{- $scaler := index $v.autoscaling $name -}}
{{- if and $scaler.enabled (gt (int $scaler.minReplicas) (int $scaler.maxReplicas)) }}{{ fail (printf "autoscaling.%s: minReplicas (%d) is above maxReplicas (%d)" $name (int $scaler.minReplicas) (int $scaler.maxReplicas)) }}{{ end -}}
{{- end -}}
{{- include "tidewire.validateScaling" . -}}
{{- if and $v.autoscaling.keda.enabled (not $v.autoscaling.keda.prometheusAddress) }}{{ fail "autoscaling.keda reads the number of connections from Prometheus: set autoscaling.keda.prometheusAddress, such as http://prometheus.monitoring:9090" }}{{ end -}}
{{- if and $v.autoscaling.keda.enabled (not (regexMatch "^https?://" $v.autoscaling.keda.prometheusAddress)) }}{{ fail (printf "autoscaling.keda.prometheusAddress (%s) is not a URL: begin it with http:// or https://, such as http://prometheus.monitoring:9090" $v.autoscaling.keda.prometheusAddress) }}{{ end -}}
{{- if and (gt $most 1) (eq $url "memory://") -}}
{{- fail (printf "%d pods need a broker that they share, and memory:// belongs to one pod: set settings.broker.url to redis://…, redis+sentinel://…, redis+cluster://… or nats://…, or run one pod" $most) -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $v.podDisruptionBudget.maxUnavailable)) (not (kindIs "invalid" $v.podDisruptionBudget.minAvailable)) $v.podDisruptionBudget.enabled -}}
{{- fail "podDisruptionBudget: maxUnavailable and minAvailable exclude each other: set one of them" -}}
{{- end -}}
{{- if and (has (toString $v.strategy.maxUnavailable) (list "0" "0%")) (has (toString $v.strategy.maxSurge) (list "0" "0%")) -}}
{{- fail "strategy: with maxUnavailable and maxSurge both 0 no pod could ever be replaced" -}}
{{- end -}}

{{- /* --- time --- */ -}}
{{- if and $v.terminationGracePeriodSeconds (lt (int $v.terminationGracePeriodSeconds) (include "tidewire.minGrace" . | int)) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) would kill a pod before its drain ends: set it to %[4]s or more, the sum of preStopSeconds (%[2]d), settings.deadlines.shutdown (%[3]v) and 15, or to 0" (int $v.terminationGracePeriodSeconds) (int $v.preStopSeconds) (include "tidewire.shutdown" .) (include "tidewire.minGrace" .)) -}}
{{- end -}}
{{- $rate := include "tidewire.drainRate" . | float64 -}}
{{- $age := include "tidewire.maxAge" . | float64 -}}
{{- /* On average a connection lasts three quarters of its greatest age. */ -}}
{{- $least := divf (include "tidewire.connections" . | float64) $rate 0.75 | ceil | int -}}
{{- if and (gt $age 0.0) (lt $age (float64 $least)) -}}
{{- fail (printf "settings.rollout.max_age (%v s) would move more connections a second from a full pod (settings.limits.connections: %v) than a drain does (settings.rollout.drain_rate: %v): set it to %d or more, or to 0" (include "tidewire.maxAge" .) (include "tidewire.connections" .) (include "tidewire.drainRate" .) $least) -}}
{{- end -}}
{{- if lt (include "tidewire.acceptRate" . | float64) $rate -}}
{{- fail (printf "settings.rollout.drain_rate (%v) is above settings.rollout.accept_rate.per_second (%v): one of two pods would drain faster than the other accepts connections; lower the former or raise the latter" (include "tidewire.drainRate" .) (include "tidewire.acceptRate" .)) -}}
{{- end -}}
{{- $hops := dict -}}
{{- with include "tidewire.proxyIdle" . }}{{ $_ := set $hops (printf "ingress.preset %s" $v.ingress.preset) . }}{{ end -}}
{{- with include "tidewire.gatewayIdle" . }}{{ $_ := set $hops (printf "gateway.implementation %s" $v.gateway.implementation) . }}{{ end -}}
{{- range $name, $idle := $v.idleTimeouts }}{{ $_ := set $hops (printf "idleTimeouts.%s" $name) $idle }}{{ end -}}
{{- range $name, $idle := $hops -}}
{{- if ge (mulf $heartbeat 2.0) (float64 $idle) -}}
{{- fail (printf "settings.deadlines.heartbeat (%v s) is not below half of the idle timeout at %s (%v s), so the proxy could cut a connection between two pings: lower the heartbeat or raise the idle timeout" $heartbeat $name $idle) -}}
{{- end -}}
{{- end -}}

{{- /* --- versions --- */ -}}
{{- if and $v.gateway.implementationVersion (not $v.gateway.implementation) }}{{ fail (printf "gateway.implementationVersion (%v) is the version of gateway.implementation, which is empty: set that too" $v.gateway.implementationVersion) }}{{ end -}}
{{- if and $v.ingress.presetVersion (not $v.ingress.preset) }}{{ fail (printf "ingress.presetVersion (%v) is the version of the controller in ingress.preset, which is empty: set that too" $v.ingress.presetVersion) }}{{ end -}}
{{- range list
  (list "ingress.presetVersion" $v.ingress.presetVersion "ingress" $v.ingress.preset)
  (list "gateway.implementationVersion" $v.gateway.implementationVersion "gateway" $v.gateway.implementation)
  (list "autoscaling.keda.version" $v.autoscaling.keda.version "autoscaling" "keda") -}}
{{- $place := index . 0 -}}
{{- $given := index . 1 | default "" -}}
{{- if not (kindIs "string" $given) }}{{ fail (printf "%s (%v) is a number, and YAML reads 1.10 as 1.1: put the version in quotes, such as \"1.10\"" $place $given) }}{{ end -}}
{{- if not (regexMatch "^(v?(0|[1-9][0-9]{0,5})\\.(0|[1-9][0-9]{0,5})([.+-].*)?)?$" $given) }}{{ fail (printf "%s (%s) is not a version: write it as \"1.10\" or \"v1.10.2\"" $place $given) }}{{ end -}}
{{- $controller := include "tidewire.versions" (list $ (index . 2) (index . 3)) | fromJson -}}
{{- with $controller.least -}}
{{- if and $given (semverCompare (printf "<%s" .) (printf "%s.0" (include "tidewire.versionOf" (list $ (index (splitList "." $place) 0))))) -}}
{{- fail (printf "%s (%s): the chart's objects need %s %s or newer: update it, or put your own objects into extraObjects" $place $given $controller.name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* --- proxies --- */ -}}
{{- if and (eq $v.ingress.preset "contour") $v.ingress.enabled (not $v.ingress.hosts) }}{{ fail "ingress.preset contour creates an HTTPProxy for each host, and ingress.hosts is empty: list at least one host" }}{{ end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) (not $v.gateway.create.enabled) }}{{ fail "gateway: the route has no Gateway: set gateway.parentRefs or gateway.create.enabled" }}{{ end -}}
{{- if and $v.gateway.create.enabled (not $v.gateway.enabled) }}{{ fail "gateway.create.enabled has no effect while gateway.enabled is false" }}{{ end -}}
{{- if and $v.gateway.create.enabled (not $v.gateway.create.className) }}{{ fail "gateway.create: a Gateway needs a GatewayClass: set gateway.create.className" }}{{ end -}}
{{- if and $v.gateway.enabled $v.gateway.timeouts -}}
{{- if eq $v.gateway.implementation "gke" }}{{ fail "gateway.timeouts: GKE rejects a route with timeouts: leave them empty, the preset sets timeoutSec in a GCPBackendPolicy" }}{{ end -}}
{{- if has $v.gateway.implementation (list "traefik" "ngf") }}{{ fail (printf "gateway.timeouts: %s silently ignores the timeouts of a route: leave them empty" $v.gateway.implementation) }}{{ end -}}
{{- end -}}
{{- if and $v.gateway.enabled $v.stickySessions.enabled (has $v.gateway.implementation (list "" "cilium" "traefik" "ngf")) -}}
{{- fail (printf "stickySessions: the chart has no policy for gateway.implementation %q; if it supports sessionPersistence, set gateway.sessionPersistence instead" $v.gateway.implementation) -}}
{{- end -}}
{{- if and $v.ingress.enabled $v.stickySessions.enabled (not $v.ingress.preset) }}{{ fail "stickySessions: they are configured differently for each controller: set ingress.preset" }}{{ end -}}

{{- if and (include "tidewire.isSticky" .) (eq (include "tidewire.setting" (list . "rollout" "rebalance" false)) "true") -}}
{{- fail "settings.rollout.rebalance: sticky sessions would route clients back to the pod that asks them to leave: unset it, or disable stickySessions" -}}
{{- end -}}

{{- /* --- monitoring --- */ -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled }}{{ fail "serviceMonitor and podMonitor would scrape every pod twice: enable one" }}{{ end -}}
{{- $alerts := include "tidewire.alertNames" . | fromJsonArray -}}
{{- range $name, $_ := $v.prometheusRule.alerts -}}
{{- if not (has $name $alerts) }}{{ fail (printf "prometheusRule.alerts: the chart has no alert %s; it has %s" $name (join ", " $alerts)) }}{{ end -}}
{{- end -}}
{{- end -}}
