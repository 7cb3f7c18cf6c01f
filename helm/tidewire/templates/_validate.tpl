{{/* Values that cannot work together: each is refused with a sentence that says what to do. */}}
{{- define "tidewire.validate" -}}
{{- $v := .Values -}}
{{- $settings := $v.settings | default dict -}}
{{- $url := include "tidewire.brokerUrl" . -}}
{{- $most := include "tidewire.mostReplicas" . | int -}}
{{- $heartbeat := include "tidewire.heartbeat" . | float64 -}}

{{- /* --- the service's settings: what the chart sets, and what must not be readable in a ConfigMap --- */ -}}
{{- range $name, $why := dict
  "contract" "give the contract by contract.text or contract.existingConfigMap"
  "port" "pods always listen on 8080; service.port is the Service's"
  "ops_port" "pods always serve health and metrics on 9090"
  "workers" "a pod is one node, so that nodes are watched and replaced one by one; raise replicas in its stead"
  "demo" "the demo makes development credentials; set secrets and a contract in its stead" -}}
{{- if and (hasKey $settings $name) (not (kindIs "invalid" (index $settings $name))) }}{{ fail (printf "settings.%s is the chart's: %s" $name $why) }}{{ end -}}
{{- end -}}
{{- range $place, $value := dict
  "auth.secret" "secrets.authSecret.existingSecret"
  "api.key" "secrets.apiKey.existingSecret"
  "api.keys" "secrets.apiKeys.existingSecret"
  "broker.password" "secrets.brokerPassword.existingSecret"
  "broker.sentinel_password" "secrets.sentinelPassword.existingSecret" -}}
{{- $steps := splitList "." $place -}}
{{- if dig (first $steps) (last $steps) "" $settings }}{{ fail (printf "settings.%s would be readable in a ConfigMap: put it into a Secret and name that in %s" $place $value) }}{{ end -}}
{{- end -}}
{{- if contains "@" $url }}{{ fail "settings.broker.url would be readable in a ConfigMap, and holds a user or password: leave them out, put the password into a Secret and name that in secrets.brokerPassword.existingSecret; a user's name is settings.broker.user" }}{{ end -}}
{{- if not (regexMatch "^(memory://$|(rediss?(\\+(sentinel|cluster))?|nats|tls)://)" $url) }}{{ fail "settings.broker.url is no address of a broker: it begins with memory://, redis://, redis+sentinel://, redis+cluster:// (each also as rediss, for TLS), nats:// or tls://" }}{{ end -}}
{{- range $place, $value := dict "ca" "secrets.brokerCa" "certificate" "secrets.brokerClient" "private_key" "secrets.brokerClient" -}}
{{- if dig "broker" $place "" $settings }}{{ fail (printf "settings.broker.%s is a file in the pod: name the Secret that holds it in %s" $place $value) }}{{ end -}}
{{- end -}}
{{- range dig "auth" "issuers" (list) $settings -}}
{{- if .secret }}{{ fail "settings.auth.issuers: a secret in it would be readable in a ConfigMap: put the whole list as JSON into a Secret and name that in secrets.authIssuers.existingSecret" }}{{ end -}}
{{- end -}}
{{- if and $v.secrets.authIssuers.existingSecret (dig "auth" "issuers" (list) $settings) }}{{ fail "secrets.authIssuers and settings.auth.issuers both list issuers, and the first would hide the second: keep one" }}{{ end -}}
{{- if and (not (include "tidewire.authSecretName" .)) (not $v.secrets.authIssuers.existingSecret) (not (dig "auth" "issuers" (list) $settings)) (not (dig "auth" "anonymous" false $settings)) -}}
{{- fail "nobody could get in: set secrets.generate, secrets.authSecret.existingSecret, secrets.authIssuers.existingSecret, settings.auth.issuers or settings.auth.anonymous" -}}
{{- end -}}
{{- if and $v.secrets.jwks.existingSecret $v.secrets.jwks.existingConfigMap }}{{ fail "secrets.jwks names a Secret and a ConfigMap; only one of them can be meant" }}{{ end -}}
{{- if and $v.secrets.brokerCa.existingSecret $v.secrets.brokerCa.existingConfigMap }}{{ fail "secrets.brokerCa names a Secret and a ConfigMap; only one of them can be meant" }}{{ end -}}
{{- if and (or $v.secrets.brokerCa.existingSecret $v.secrets.brokerCa.existingConfigMap $v.secrets.brokerClient.existingSecret) (not (regexMatch "^(rediss|tls)" $url)) }}{{ fail "secrets.brokerCa and secrets.brokerClient are for TLS, and settings.broker.url is without it: begin it with rediss (Redis, Valkey) or tls (NATS), or leave them out" }}{{ end -}}
{{- if and $v.contract.text $v.contract.existingConfigMap }}{{ fail "contract.text and contract.existingConfigMap are both set; only one of them can be meant" }}{{ end -}}
{{- if and $v.contract.files (not $v.contract.text) }}{{ fail "contract.files stand beside contract.text, which is empty: set it too" }}{{ end -}}
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
{{- if and $v.autoscaling.keda.enabled (not $v.autoscaling.keda.prometheusAddress) }}{{ fail "autoscaling.keda asks Prometheus for connections: set autoscaling.keda.prometheusAddress, such as http://prometheus.monitoring:9090" }}{{ end -}}
{{- if and $v.autoscaling.keda.enabled (not (regexMatch "^https?://" $v.autoscaling.keda.prometheusAddress)) }}{{ fail (printf "autoscaling.keda.prometheusAddress (%s) is no address: it begins with http:// or https://, such as http://prometheus.monitoring:9090" $v.autoscaling.keda.prometheusAddress) }}{{ end -}}
{{- if and (gt $most 1) (eq $url "memory://") -}}
{{- fail (printf "%d pods need a broker that they share, and memory:// is one pod's own: set settings.broker.url to redis://…, redis+sentinel://…, redis+cluster://… or nats://…, or stay with one pod" $most) -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $v.podDisruptionBudget.maxUnavailable)) (not (kindIs "invalid" $v.podDisruptionBudget.minAvailable)) $v.podDisruptionBudget.enabled -}}
{{- fail "podDisruptionBudget: maxUnavailable and minAvailable exclude each other: set one of them" -}}
{{- end -}}
{{- if and (has (toString $v.strategy.maxUnavailable) (list "0" "0%")) (has (toString $v.strategy.maxSurge) (list "0" "0%")) -}}
{{- fail "strategy: with maxUnavailable and maxSurge both 0 no pod could ever be replaced" -}}
{{- end -}}

{{- /* --- time --- */ -}}
{{- if and $v.terminationGracePeriodSeconds (lt (int $v.terminationGracePeriodSeconds) (include "tidewire.leastGrace" . | int)) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) would kill a pod that still drains: it takes preStopSeconds (%d), settings.deadlines.shutdown (%v) and 15, so at least %s; or leave it at 0" (int $v.terminationGracePeriodSeconds) (int $v.preStopSeconds) (include "tidewire.shutdown" .) (include "tidewire.leastGrace" .)) -}}
{{- end -}}
{{- $rate := include "tidewire.drainRate" . | float64 -}}
{{- $age := include "tidewire.maxAge" . | float64 -}}
{{- /* On average a connection lasts three quarters of its greatest age. */ -}}
{{- $least := divf (include "tidewire.connections" . | float64) $rate 0.75 | ceil | int -}}
{{- if and (gt $age 0.0) (lt $age (float64 $least)) -}}
{{- fail (printf "settings.rollout.max_age (%v s) would move more connections a second of a full pod (settings.limits.connections: %v) than settings.rollout.drain_rate (%v) lets a drain: set it to %d or more, or to 0" (include "tidewire.maxAge" .) (include "tidewire.connections" .) (include "tidewire.drainRate" .) $least) -}}
{{- end -}}
{{- if lt (include "tidewire.acceptRate" . | float64) $rate -}}
{{- fail (printf "settings.rollout.drain_rate (%v) is above settings.rollout.accept_rate.per_second (%v): of two pods one that drains would send the other more connections than that accepts; lower the one or raise the other" (include "tidewire.drainRate" .) (include "tidewire.acceptRate" .)) -}}
{{- end -}}
{{- $hops := dict -}}
{{- with include "tidewire.proxyIdle" . }}{{ $_ := set $hops (printf "ingress.preset %s" $v.ingress.preset) . }}{{ end -}}
{{- with include "tidewire.gatewayIdle" . }}{{ $_ := set $hops (printf "gateway.implementation %s" $v.gateway.implementation) . }}{{ end -}}
{{- range $name, $idle := $v.idleTimeouts }}{{ $_ := set $hops (printf "idleTimeouts.%s" $name) $idle }}{{ end -}}
{{- range $name, $idle := $hops -}}
{{- if ge (mulf $heartbeat 2.0) (float64 $idle) -}}
{{- fail (printf "settings.deadlines.heartbeat (%v s) is not below half of the idle timeout at %s (%v s): a ping that comes late would race the cut; lower the one or raise the other" $heartbeat $name $idle) -}}
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
{{- if not (kindIs "string" $given) }}{{ fail (printf "%s (%v) is a number, and as numbers 1.10 and 1.1 are the same: put the version in quotes, such as \"1.10\"" $place $given) }}{{ end -}}
{{- if not (regexMatch "^(v?(0|[1-9][0-9]{0,5})\\.(0|[1-9][0-9]{0,5})([.+-].*)?)?$" $given) }}{{ fail (printf "%s (%s) is no version: write it as \"1.10\" or \"v1.10.2\"" $place $given) }}{{ end -}}
{{- $controller := include "tidewire.versions" (list $ (index . 2) (index . 3)) | fromJson -}}
{{- with $controller.least -}}
{{- if and $given (semverCompare (printf "<%s" .) (printf "%s.0" (include "tidewire.versionOf" (list $ (index (splitList "." $place) 0))))) -}}
{{- fail (printf "%s (%s): the chart's objects need %s %s or newer: update it, or put objects of your own into extraObjects in their stead" $place $given $controller.name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* --- proxies --- */ -}}
{{- if and (eq $v.ingress.preset "contour") $v.ingress.enabled (not $v.ingress.hosts) }}{{ fail "ingress.preset contour makes an HTTPProxy for each host, and ingress.hosts is empty: name at least one" }}{{ end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) (not $v.gateway.create.enabled) }}{{ fail "gateway: the route belongs to no Gateway: set gateway.parentRefs, or gateway.create.enabled" }}{{ end -}}
{{- if and $v.gateway.create.enabled (not $v.gateway.enabled) }}{{ fail "gateway.create.enabled has no effect while gateway.enabled is false" }}{{ end -}}
{{- if and $v.gateway.create.enabled (not $v.gateway.create.className) }}{{ fail "gateway.create: a Gateway needs its class: set gateway.create.className" }}{{ end -}}
{{- if and $v.gateway.enabled $v.gateway.timeouts -}}
{{- if eq $v.gateway.implementation "gke" }}{{ fail "gateway.timeouts: GKE rejects a route with timeouts: leave them empty, the preset sets timeoutSec in a GCPBackendPolicy" }}{{ end -}}
{{- if has $v.gateway.implementation (list "traefik" "ngf") }}{{ fail (printf "gateway.timeouts: %s ignores timeouts of a route without a word: leave them empty" $v.gateway.implementation) }}{{ end -}}
{{- end -}}
{{- if and $v.gateway.enabled $v.stickySessions.enabled (has $v.gateway.implementation (list "" "cilium" "traefik" "ngf")) -}}
{{- fail (printf "stickySessions: the chart knows no policy of gateway.implementation %q for them; if it carries out sessionPersistence, set gateway.sessionPersistence in its stead" $v.gateway.implementation) -}}
{{- end -}}
{{- if and $v.ingress.enabled $v.stickySessions.enabled (not $v.ingress.preset) }}{{ fail "stickySessions: every controller has its own words for them: set ingress.preset" }}{{ end -}}

{{- if and (include "tidewire.isSticky" .) (eq (include "tidewire.setting" (list . "rollout" "rebalance" false)) "true") -}}
{{- fail "settings.rollout.rebalance: sticky cookies would lead clients back to the very pod that asks them to go: leave it out, or turn the cookies off" -}}
{{- end -}}

{{- /* --- monitoring --- */ -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled }}{{ fail "serviceMonitor and podMonitor would scrape every pod twice: enable one" }}{{ end -}}
{{- $alerts := include "tidewire.alertNames" . | fromJsonArray -}}
{{- range $name, $_ := $v.prometheusRule.alerts -}}
{{- if not (has $name $alerts) }}{{ fail (printf "prometheusRule.alerts: the chart has no alert %s; it has %s" $name (join ", " $alerts)) }}{{ end -}}
{{- end -}}
{{- end -}}
