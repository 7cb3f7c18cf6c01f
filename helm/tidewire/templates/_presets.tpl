{{/* Settings of each proxy. Facts and sources: docs/deploy/proxies.md. */}}

{{/* The version of a controller in values, as major.minor; empty if none is given: [root, "ingress", "gateway" or "autoscaling"] */}}
{{- define "tidewire.versionOf" -}}
{{- $v := (index . 0).Values -}}
{{- $given := get (dict "ingress" $v.ingress.presetVersion "gateway" $v.gateway.implementationVersion "autoscaling" $v.autoscaling.keda.version) (index . 1) -}}
{{- regexFind "[0-9]+\\.[0-9]+" ($given | default "" | toString) -}}
{{- end -}}

{{/* A controller's entry in files/versions.yaml, as JSON: [root, group, name there] */}}
{{- define "tidewire.versions" -}}
{{- $all := (index . 0).Files.Get "files/versions.yaml" | fromYaml -}}
{{- dig (index . 1) (index . 2) dict $all | toJson -}}
{{- end -}}

{{/*
"true" if the version in values is too old for a feature of files/versions.yaml. No version means the newest one, which has all features:
[root, group, name of the controller, feature]
*/}}
{{- define "tidewire.lacks" -}}
{{- with include "tidewire.versionOf" . -}}
{{- $since := index (include "tidewire.versions" $ | fromJson).since (index $ 3) -}}
{{- if semverCompare (printf "<%s" $since) (printf "%s.0" .) }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Idle timeout at the proxy of the preset; empty if there is none or it is unknown. */}}
{{- define "tidewire.proxyIdle" -}}
{{- if .Values.ingress.enabled -}}
{{- get (dict "nginx" .Values.idleTimeout "f5-nginx" .Values.idleTimeout "jcmoraisjr" .Values.idleTimeout "alb" .Values.idleTimeout "agic" .Values.idleTimeout "traefik" 180 "haproxytech" 3600) .Values.ingress.preset -}}
{{- end -}}
{{- end -}}
{{- define "tidewire.gatewayIdle" -}}
{{- if .Values.gateway.enabled -}}
{{- $envoyGateway := .Values.idleTimeout -}}
{{- if include "tidewire.lacks" (list . "gateway" "envoy-gateway" "timeout.http.streamIdleTimeout") -}}
{{- /* An older Envoy Gateway derives the idle timeout from the route's request timeout: none for 0s, else an hour or more. */ -}}
{{- $envoyGateway = ternary 3600 "" (regexMatch "[1-9]" (dig "request" "" (.Values.gateway.timeouts | default dict))) -}}
{{- end -}}
{{- $ngf := ternary 60 .Values.idleTimeout (include "tidewire.lacks" (list . "gateway" "ngf" "ProxySettingsPolicy.timeout") | not | empty) -}}
{{- get (dict "envoy-gateway" $envoyGateway "ngf" $ngf "aws" .Values.idleTimeout "istio" 300 "cilium" 300 "traefik" 180) .Values.gateway.implementation -}}
{{- end -}}
{{- end -}}

{{- define "tidewire.ingressAnnotations" -}}
{{- $preset := .Values.ingress.preset -}}
{{- $sticky := .Values.stickySessions -}}
{{- $idle := int .Values.idleTimeout -}}
{{- $drain := include "tidewire.drainSeconds" . -}}
{{- $service := include "tidewire.fullname" . -}}
{{- if eq $preset "nginx" }}
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $idle | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $idle | quote }}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
{{- if $sticky.enabled }}
nginx.ingress.kubernetes.io/affinity: cookie
nginx.ingress.kubernetes.io/affinity-mode: persistent
nginx.ingress.kubernetes.io/session-cookie-name: {{ $sticky.cookieName | quote }}
nginx.ingress.kubernetes.io/session-cookie-max-age: {{ int $sticky.duration | quote }}
{{- end }}
{{- else if eq $preset "f5-nginx" }}
nginx.org/websocket-services: {{ $service | quote }}
nginx.org/proxy-read-timeout: {{ printf "%ds" $idle | quote }}
nginx.org/proxy-send-timeout: {{ printf "%ds" $idle | quote }}
nginx.org/proxy-buffering: "False"
{{- if $sticky.enabled }}
{{- /* Older releases have another name for it, and NGINX Plus is needed. */}}
{{ ternary "nginx.com" "nginx.org" (include "tidewire.lacks" (list . "ingress" "f5-nginx" "nginx.org/sticky-cookie-services") | eq "true") }}/sticky-cookie-services: {{ printf "serviceName=%s %s expires=%ds path=/" $service $sticky.cookieName (int $sticky.duration) | quote }}
{{- end }}
{{- else if eq $preset "jcmoraisjr" }}
haproxy-ingress.github.io/timeout-tunnel: {{ printf "%ds" $idle | quote }}
haproxy-ingress.github.io/timeout-server: {{ printf "%ds" $idle | quote }}
{{- if $sticky.enabled }}
haproxy-ingress.github.io/affinity: cookie
haproxy-ingress.github.io/session-cookie-name: {{ $sticky.cookieName | quote }}
{{- end }}
{{- else if eq $preset "alb" }}
alb.ingress.kubernetes.io/target-type: ip
alb.ingress.kubernetes.io/load-balancer-attributes: {{ printf "idle_timeout.timeout_seconds=%d" $idle | quote }}
alb.ingress.kubernetes.io/target-group-attributes: {{ printf "deregistration_delay.timeout_seconds=%s%s" $drain (ternary (printf ",stickiness.enabled=true,stickiness.type=lb_cookie,stickiness.lb_cookie.duration_seconds=%d" (int $sticky.duration)) "" $sticky.enabled) | quote }}
alb.ingress.kubernetes.io/healthcheck-path: /readyz
alb.ingress.kubernetes.io/healthcheck-port: "9090"
{{- else if eq $preset "agic" }}
appgw.ingress.kubernetes.io/request-timeout: {{ $idle | quote }}
appgw.ingress.kubernetes.io/connection-draining: "true"
appgw.ingress.kubernetes.io/connection-draining-timeout: {{ $drain | quote }}
appgw.ingress.kubernetes.io/health-probe-path: /readyz
appgw.ingress.kubernetes.io/health-probe-port: "9090"
{{- if $sticky.enabled }}
appgw.ingress.kubernetes.io/cookie-based-affinity: "true"
{{- end }}
{{- end }}
{{- end -}}

{{/* The API version of the AWS Load Balancer Controller's configurations. */}}
{{- define "tidewire.awsApiVersion" -}}
{{- .Values.gateway.aws.apiVersion | default (ternary "gateway.k8s.aws/v1beta1" "gateway.k8s.aws/v1" (include "tidewire.lacks" (list . "gateway" "aws" "gateway.k8s.aws/v1") | eq "true")) -}}
{{- end -}}

{{/* Features that the versions in values lack, for NOTES. */}}
{{- define "tidewire.versionNotes" -}}
{{- if and .Values.ingress.enabled (eq .Values.ingress.preset "f5-nginx") .Values.stickySessions.enabled }}
{{- if include "tidewire.lacks" (list . "ingress" "f5-nginx" "nginx.org/sticky-cookie-services") }}
- Sticky sessions need NGINX Plus with F5 NGINX Ingress Controller {{ .Values.ingress.presetVersion }}: without Plus it rejects the Ingress. Version 5.4 and newer
  need no Plus.
{{- else if not .Values.ingress.presetVersion }}
- F5 NGINX Ingress Controller older than 5.4 ignores nginx.org/sticky-cookie-services: if you have one, set ingress.presetVersion.
{{- end }}
{{- end }}
{{- if .Values.gateway.enabled }}
{{- $implementation := .Values.gateway.implementation }}
{{- $version := .Values.gateway.implementationVersion }}
{{- if and (eq $implementation "envoy-gateway") (include "tidewire.lacks" (list . "gateway" "envoy-gateway" "timeout.http.streamIdleTimeout")) }}
- Envoy Gateway {{ $version }} has no idle timeout for a route (1.8 has), so idleTimeout has no effect. Silent connections are cut
  {{ ternary "never, as the route has no request timeout" "after an hour, or after the route's request timeout if that is longer" (include "tidewire.gatewayIdle" . | empty) }}. If you have a ClientTrafficPolicy with
  timeout.http.streamIdleTimeout, add that time to idleTimeouts: the chart then checks the heartbeat against it.
{{- else if and (eq $implementation "ngf") (include "tidewire.lacks" (list . "gateway" "ngf" "ProxySettingsPolicy.timeout")) }}
- NGINX Gateway Fabric {{ $version }} has no idle timeout (2.6 has), so idleTimeout has no effect: connections that are silent for 60 s are cut.
  Pings are sent every {{ include "tidewire.heartbeat" . }} s.
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.keda.enabled (include "tidewire.lacks" (list . "autoscaling" "keda" "fallback.behavior")) }}
- KEDA {{ .Values.autoscaling.keda.version }} has no fallback that keeps the number of pods (2.17 has), so the chart sets none. While Prometheus does not answer, the
  HPA adds pods by CPU and removes none.
{{- end }}
{{- end -}}

{{/* The listeners of a Gateway; a port may be given as text. */}}
{{- define "tidewire.listeners" -}}
{{- $listeners := list -}}
{{- range .Values.gateway.create.listeners }}{{ $listeners = append $listeners (mergeOverwrite (deepCopy .) (dict "port" (int .port))) }}{{ end -}}
{{- toYaml $listeners -}}
{{- end -}}

{{- define "tidewire.serviceAnnotations" -}}
{{- if .Values.ingress.enabled }}
{{- $preset := .Values.ingress.preset -}}
{{- $sticky := .Values.stickySessions -}}
{{- if and (eq $preset "traefik") $sticky.enabled }}
traefik.ingress.kubernetes.io/service.sticky.cookie: "true"
traefik.ingress.kubernetes.io/service.sticky.cookie.name: {{ $sticky.cookieName | quote }}
traefik.ingress.kubernetes.io/service.sticky.cookie.httponly: "true"
{{- else if eq $preset "haproxytech" }}
haproxy.org/load-balance: leastconn
{{- if $sticky.enabled }}
haproxy.org/cookie-persistence: {{ $sticky.cookieName | quote }}
{{- end }}
{{- else if eq $preset "gce" }}
cloud.google.com/neg: {{ dict "ingress" true | toJson | quote }}
cloud.google.com/backend-config: {{ dict "default" (include "tidewire.fullname" .) | toJson | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tidewire.appProtocol" -}}
{{- if eq .Values.service.appProtocol "auto" -}}
{{- if and .Values.gateway.enabled (has .Values.gateway.implementation (list "istio" "envoy-gateway" "cilium")) -}}kubernetes.io/ws{{- end -}}
{{- else if ne .Values.service.appProtocol "none" -}}
{{- .Values.service.appProtocol -}}
{{- end -}}
{{- end -}}

{{/* The timeouts of the route: a WebSocket is one request, and may last. */}}
{{- define "tidewire.routeTimeouts" -}}
{{- if .Values.gateway.timeouts -}}
{{- toYaml .Values.gateway.timeouts -}}
{{- else if has .Values.gateway.implementation (list "istio" "envoy-gateway" "cilium") -}}
request: 0s
{{- end -}}
{{- end -}}

{{/* The broker's ports: of each server in the URL its port, or the default one. With Sentinels, also the default port of Redis. */}}
{{- define "tidewire.brokerPorts" -}}
{{- $url := include "tidewire.brokerUrl" . -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.brokerPorts }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- if and (not $ports) (ne $url "memory://") -}}
{{- $isSentinel := contains "+sentinel://" $url -}}
{{- $usual := ternary 26379 (ternary 6379 4222 (hasPrefix "redis" $url)) $isSentinel -}}
{{- range splitList "://" $url | last | splitList "/" | first | splitList "," -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default $usual | int) -}}
{{- end -}}
{{- if $isSentinel }}{{ $ports = append $ports 6379 }}{{ end -}}
{{- end -}}
{{- dict "ports" ($ports | uniq | sortAlpha) | toJson -}}
{{- end -}}

{{/* 443, and the other ports of hooks, of webhooks and at which issuers have their keys. */}}
{{- define "tidewire.httpsPorts" -}}
{{- $ports := list 443 -}}
{{- range dig "auth" "issuers" (list) (.Values.settings | default dict) -}}
{{- with .jwks_url }}{{ with regexFind ":[0-9]+$" (urlParse .).host }}{{ $ports = append $ports (trimPrefix ":" . | int) }}{{ end }}{{ end -}}
{{- end -}}
{{- $settings := .Values.settings | default dict -}}
{{- range concat (dig "hooks" "endpoints" (list) $settings) (dig "webhooks" "endpoints" (list) $settings) -}}
{{- $url := urlParse (.url | default "") -}}
{{- with regexFind ":[0-9]+$" $url.host }}{{ $ports = append $ports (trimPrefix ":" . | int) }}{{ else }}{{ if eq $url.scheme "http" }}{{ $ports = append $ports 80 }}{{ end }}{{ end -}}
{{- end -}}
{{- dict "ports" ($ports | uniq) | toJson -}}
{{- end -}}
