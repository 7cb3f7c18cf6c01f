{{/* What each proxy is told, in its own words. Facts and sources: docs/operations.md, "Kubernetes". */}}

{{/* The idle time that a connection has at the proxy of the preset; empty where it has none, or none is known. */}}
{{- define "tidewire.proxyIdle" -}}
{{- if .Values.ingress.enabled -}}
{{- get (dict "nginx" .Values.idleTimeout "f5-nginx" .Values.idleTimeout "jcmoraisjr" .Values.idleTimeout "alb" .Values.idleTimeout "agic" .Values.idleTimeout "traefik" 180 "haproxytech" 3600) .Values.ingress.preset -}}
{{- end -}}
{{- end -}}
{{- define "tidewire.gatewayIdle" -}}
{{- if .Values.gateway.enabled -}}
{{- get (dict "envoy-gateway" .Values.idleTimeout "ngf" .Values.idleTimeout "aws" .Values.idleTimeout "istio" 300 "cilium" 300 "traefik" 180) .Values.gateway.implementation -}}
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
nginx.org/sticky-cookie-services: {{ printf "serviceName=%s %s expires=%ds path=/" $service $sticky.cookieName (int $sticky.duration) | quote }}
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

{{/* The broker's ports, from its address: of each server the one that it names, else the usual one. Sentinels lead to servers on theirs. */}}
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

{{/* 443, and the other ports at which issuers have their keys. */}}
{{- define "tidewire.httpsPorts" -}}
{{- $ports := list 443 -}}
{{- range dig "auth" "issuers" (list) (.Values.settings | default dict) -}}
{{- with .jwks_url }}{{ with regexFind ":[0-9]+$" (urlParse .).host }}{{ $ports = append $ports (trimPrefix ":" . | int) }}{{ end }}{{ end -}}
{{- end -}}
{{- dict "ports" ($ports | uniq) | toJson -}}
{{- end -}}
