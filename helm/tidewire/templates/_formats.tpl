{{/*
Refuses values that the API server would refuse in the middle of an install. The rules are those of Kubernetes' own validation. The error
names the place, the value, and what would be valid.
*/}}

{{/* Fails with one sentence: [place, value, what would be right] */}}
{{- define "tidewire.refuse" -}}
{{- fail (printf "%s: %s is %s" (index . 0) (include "tidewire.text" (index . 1) | quote) (index . 2)) -}}
{{- end -}}

{{/* Names of most objects: [place, name]. Empty passes. */}}
{{- define "tidewire.checkName" -}}
{{- $name := include "tidewire.text" (index . 1) -}}
{{- if and $name (or (gt (len $name) 253) (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" $name))) -}}
{{- include "tidewire.refuse" (list (index . 0) $name "not a valid object name: use lower-case letters, digits, dashes and dots, at most 253, beginning and ending with a letter or digit") -}}
{{- end -}}
{{- end -}}

{{/* Names of namespaces, volumes and containers: [place, name]. Empty passes. */}}
{{- define "tidewire.checkLabel" -}}
{{- $name := include "tidewire.text" (index . 1) -}}
{{- if and $name (not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" $name)) -}}
{{- include "tidewire.refuse" (list (index . 0) $name "not a DNS label: use lower-case letters, digits and dashes, at most 63, beginning and ending with a letter or digit") -}}
{{- end -}}
{{- end -}}

{{/* A host: [place, name, whether it may begin with "*."]. */}}
{{- define "tidewire.checkHost" -}}
{{- $name := include "tidewire.text" (index . 1) -}}
{{- $bare := ternary (trimPrefix "*." $name) $name (index . 2) -}}
{{- if or (gt (len $name) 253) (regexMatch "^[0-9.]+$" $bare) (not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$" $bare)) -}}
{{- include "tidewire.refuse" (list (index . 0) $name (print "not a host name: use lower-case letters, without scheme, port, path or IP address, such as rt.example.com" (ternary " or *.example.com" "" (index . 2)))) -}}
{{- end -}}
{{- end -}}

{{/* Keys of labels and annotations: [place, key] */}}
{{- define "tidewire.checkKey" -}}
{{- $key := index . 1 -}}
{{- $key = include "tidewire.text" $key -}}
{{- $parts := splitList "/" $key -}}
{{- $isKey := and (le (len $parts) 2) (regexMatch "^[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$" (last $parts)) -}}
{{- if eq (len $parts) 2 -}}
{{- $isKey = and $isKey (le (len (first $parts)) 253) (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" (first $parts)) -}}
{{- end -}}
{{- if not $isKey -}}
{{- include "tidewire.refuse" (list (index . 0) $key "not a key of a label or annotation: use a name of at most 63 letters, digits, dashes, dots and underscores, with at most one prefix such as example.com/ before it") -}}
{{- end -}}
{{- end -}}

{{/* Labels: [place, map] */}}
{{- define "tidewire.checkLabels" -}}
{{- $place := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- include "tidewire.checkKey" (list $place $key) -}}
{{- if not (regexMatch "^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$" (include "tidewire.text" $value)) -}}
{{- include "tidewire.refuse" (list (printf "%s: %s" $place $key) $value "not a label value: use at most 63 letters, digits, dashes, dots and underscores, beginning and ending with a letter or digit") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Annotations: [place, map]. Their keys may have capitals in the prefix. */}}
{{- define "tidewire.checkAnnotations" -}}
{{- $place := index . 0 -}}
{{- $size := 0 -}}
{{- range $key, $value := index . 1 -}}
{{- include "tidewire.checkKey" (list $place (lower $key)) -}}
{{- $size = add $size (len $key) (len (include "tidewire.text" $value)) -}}
{{- end -}}
{{- if gt $size 262144 }}{{ fail (printf "%s: %d bytes are more than the 262144 that an object's annotations may have" $place $size) }}{{ end -}}
{{- end -}}

{{/* [place, address] */}}
{{- define "tidewire.checkAddress" -}}
{{- if not (include "tidewire.isAddress" (index . 1)) }}{{ include "tidewire.refuse" (list (index . 0) (index . 1) "not an IP address, such as 10.0.0.7 or fd00::7") }}{{ end -}}
{{- end -}}
{{- define "tidewire.isAddress" -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])" -}}
{{- $text := toString . -}}
{{- if regexMatch (printf "^(%s\\.){3}%s$" $octet $octet) $text -}}true
{{- else if regexMatch "^[0-9a-fA-F:]+$" (regexReplaceAll (printf "(%s\\.){3}%s$" $octet $octet) $text "0:0") -}}
{{- $whole := regexReplaceAll (printf "(%s\\.){3}%s$" $octet $octet) $text "0:0" -}}
{{- $groups := len (regexFindAll "[0-9a-fA-F]+" $whole -1) -}}
{{- if and (not (regexMatch "[0-9a-fA-F]{5}|:::|^:[^:]|[^:]:$" $whole)) (le (len (regexFindAll "::" $whole -1)) 1) (or (and (contains "::" $whole) (le $groups 7)) (and (not (contains "::" $whole)) (eq $groups 8))) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* [place, range of addresses] */}}
{{- define "tidewire.checkCidr" -}}
{{- $range := toString (index . 1) -}}
{{- $parts := splitList "/" $range -}}
{{- $most := ternary 128 32 (contains ":" $range) -}}
{{- if or (ne (len $parts) 2) (not (include "tidewire.isAddress" (first $parts))) (not (regexMatch "^(0|[1-9][0-9]{0,2})$" (last $parts))) (gt (last $parts | int) $most) -}}
{{- include "tidewire.refuse" (list (index . 0) $range "not an address range, such as 203.0.113.0/24 or 2001:db8::/32") -}}
{{- end -}}
{{- end -}}

{{/* A key of a Secret or ConfigMap: [place, key] */}}
{{- define "tidewire.checkDataKey" -}}
{{- $key := toString (index . 1) -}}
{{- if or (not (regexMatch "^[-._a-zA-Z0-9]{1,253}$" $key)) (hasPrefix ".." $key) (eq $key ".") -}}
{{- include "tidewire.refuse" (list (index . 0) $key "not a key of a Secret or ConfigMap: use letters, digits, dashes, dots and underscores, at most 253") -}}
{{- end -}}
{{- end -}}

{{/* Fails for duplicates in a list: [place, list, reason] */}}
{{- define "tidewire.checkTwice" -}}
{{- $seen := dict -}}
{{- $args := . -}}
{{- range index . 1 -}}
{{- if hasKey $seen (toString .) }}{{ include "tidewire.refuse" (list (index $args 0) . (index $args 2)) }}{{ end -}}
{{- $_ := set $seen (toString .) true -}}
{{- end -}}
{{- end -}}

{{/* Fails for a key of a map that Kubernetes does not know: [place, map, keys that it knows] */}}
{{- define "tidewire.checkKeys" -}}
{{- $args := . -}}
{{- if not (kindIs "map" (index . 1)) }}{{ include "tidewire.refuse" (list (index . 0) (index . 1) (printf "not a map with %s" (index . 2 | join ", "))) }}{{ end -}}
{{- range $key, $_ := index . 1 -}}
{{- if not (has $key (index $args 2)) }}{{ include "tidewire.refuse" (list (index $args 0) $key (printf "not one of its keys: %s" (index $args 2 | join ", "))) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* A selector's expressions: [place, expressions, operators] */}}
{{- define "tidewire.checkExpressions" -}}
{{- $args := . -}}
{{- range index . 1 -}}
{{- $operator := index . "operator" -}}
{{- if not (has $operator (index $args 2)) }}{{ include "tidewire.refuse" (list (printf "%s: operator" (index $args 0)) $operator (printf "not one of %s" (index $args 2 | join ", "))) }}{{ end -}}
{{- if and (has $operator (list "In" "NotIn")) (not (index . "values")) }}{{ fail (printf "%s: %s needs values" (index $args 0) $operator) }}{{ end -}}
{{- if and (has $operator (list "Exists" "DoesNotExist")) (index . "values") }}{{ fail (printf "%s: %s takes no values" (index $args 0) $operator) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Affinity: common mistakes. */}}
{{- define "tidewire.checkAffinity" -}}
{{- include "tidewire.checkKeys" (list "affinity" . (list "nodeAffinity" "podAffinity" "podAntiAffinity")) -}}
{{- range $kind, $rules := . -}}
{{- $place := printf "affinity.%s" $kind -}}
{{- include "tidewire.checkKeys" (list $place $rules (list "requiredDuringSchedulingIgnoredDuringExecution" "preferredDuringSchedulingIgnoredDuringExecution")) -}}
{{- $terms := list -}}
{{- range index $rules "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- if or (lt (index . "weight" | int) 1) (gt (index . "weight" | int) 100) }}{{ include "tidewire.refuse" (list (printf "%s: weight" $place) (index . "weight") "not between 1 and 100") }}{{ end -}}
{{- $terms = append $terms (index . (ternary "preference" "podAffinityTerm" (eq $kind "nodeAffinity"))) -}}
{{- end -}}
{{- if hasKey $rules "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $required := index $rules "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- if eq $kind "nodeAffinity" -}}
{{- if not (index $required "nodeSelectorTerms") }}{{ fail (printf "%s: requiredDuringSchedulingIgnoredDuringExecution has no nodeSelectorTerms" $place) }}{{ end -}}
{{- $terms = concat $terms (index $required "nodeSelectorTerms") -}}
{{- else -}}
{{- $terms = concat $terms $required -}}
{{- end -}}
{{- end -}}
{{- range $term := $terms -}}
{{- if not (kindIs "map" $term) }}{{ fail (printf "%s: a term is %s" $place (ternary "missing: it is preference, with its weight" "missing: it is podAffinityTerm, with its weight" (eq $kind "nodeAffinity"))) }}{{ end -}}
{{- if eq $kind "nodeAffinity" -}}
{{- include "tidewire.checkExpressions" (list $place (index $term "matchExpressions") (list "In" "NotIn" "Exists" "DoesNotExist" "Gt" "Lt")) -}}
{{- else -}}
{{- if not (index $term "topologyKey") }}{{ fail (printf "%s: a term has no topologyKey, such as kubernetes.io/hostname" $place) }}{{ end -}}
{{- include "tidewire.checkExpressions" (list $place (dig "labelSelector" "matchExpressions" list $term) (list "In" "NotIn" "Exists" "DoesNotExist")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity as a number for comparison; -1 if it is not a quantity. */}}
{{- define "tidewire.quantity" -}}
{{- $text := include "tidewire.text" . -}}
{{- if not (regexMatch "^[+-]?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$" $text) -}}-1
{{- else -}}
{{- $number := regexFind "^[+-]?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][+-]?[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- mulf (float64 $number) (get (dict "" 1.0 "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0) $unit) -}}
{{- end -}}
{{- end -}}

{{/* [place, resources] */}}
{{- define "tidewire.checkResources" -}}
{{- $place := index . 0 -}}
{{- $resources := index . 1 -}}
{{- range $part, $quantities := $resources -}}
{{- if not (has $part (list "requests" "limits" "claims")) }}{{ include "tidewire.refuse" (list $place $part "neither requests nor limits") }}{{ end -}}
{{- if and (ne $part "claims") (not (kindIs "invalid" $quantities)) -}}
{{- if not (kindIs "map" $quantities) }}{{ include "tidewire.refuse" (list (printf "%s.%s" $place $part) $quantities "not a map of quantities, such as {cpu: 250m, memory: 512Mi}") }}{{ end -}}
{{- range $name, $quantity := $quantities -}}
{{- if not (or (has $name (list "cpu" "memory" "ephemeral-storage")) (hasPrefix "hugepages-" $name) (contains "/" $name)) -}}
{{- include "tidewire.refuse" (list (printf "%s.%s" $place $part) $name "not a container resource: use cpu, memory, ephemeral-storage, or one with a prefix such as example.com/") -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $quantity)) (lt (include "tidewire.quantity" $quantity | float64) 0.0) -}}
{{- include "tidewire.refuse" (list (printf "%s.%s.%s" $place $part $name) $quantity "not a quantity: use a number with or without a unit, such as 250m, 512Mi, 2Gi") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $limits := index $resources "limits" | default dict -}}
{{- range $name, $quantity := index $resources "requests" | default dict -}}
{{- $limit := index $limits $name -}}
{{- if and (hasKey $limits $name) (not (kindIs "invalid" $limit)) (gt (include "tidewire.quantity" $quantity | float64) (include "tidewire.quantity" $limit | float64)) -}}
{{- include "tidewire.refuse" (list (printf "%s.requests.%s" $place $name) $quantity (printf "above %s.limits.%s (%s): lower the one or raise the other" $place $name (include "tidewire.text" $limit))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A Prometheus duration in milliseconds; -1 if it is not a duration. */}}
{{- define "tidewire.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 "w" 604800000 "y" 31536000000 -}}
{{- if not (and . (regexMatch "^(0|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$" .)) -}}-1
{{- else -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|[smhdwy])" . -1 -}}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | int64) (get $units (regexFind "[a-z]+$" .) | int64)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}
{{- end -}}

{{/* A number or per cent up to 100: [place, value] */}}
{{- define "tidewire.checkShare" -}}
{{- $value := include "tidewire.text" (index . 1) -}}
{{- if not (regexMatch "^([0-9]+|([0-9]{1,2}|100)%)$" $value) -}}
{{- include "tidewire.refuse" (list (index . 0) $value "not a number of pods: use a whole number, or a percentage from 0% to 100%") -}}
{{- end -}}
{{- end -}}

{{/* Peers of a NetworkPolicy: [place, list] */}}
{{- define "tidewire.checkPeers" -}}
{{- $place := index . 0 -}}
{{- range $peer := index . 1 -}}
{{- include "tidewire.checkKeys" (list $place $peer (list "namespaceSelector" "podSelector" "ipBlock")) -}}
{{- if not $peer }}{{ fail (printf "%s: a peer is empty: name a namespaceSelector, podSelector or ipBlock" $place) }}{{ end -}}
{{- with index $peer "ipBlock" -}}
{{- if gt (len $peer) 1 }}{{ fail (printf "%s: a peer has ipBlock and a selector: make two peers of them" $place) }}{{ end -}}
{{- include "tidewire.checkCidr" (list (printf "%s: ipBlock.cidr" $place) (index . "cidr" | default "")) -}}
{{- range index . "except" }}{{ include "tidewire.checkCidr" (list (printf "%s: ipBlock.except" $place) .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A hook of the container: [place, hook] */}}
{{- define "tidewire.checkHook" -}}
{{- $kinds := keys (index . 1) | sortAlpha -}}
{{- if or (ne (len $kinds) 1) (not (has (first $kinds) (list "exec" "httpGet" "tcpSocket" "sleep"))) -}}
{{- fail (printf "%s: a hook is one of exec, httpGet, tcpSocket and sleep; here: %s" (index . 0) (join ", " $kinds | default "nothing")) -}}
{{- end -}}
{{- $hook := index . 1 -}}
{{- if and (hasKey $hook "exec") (not (dig "exec" "command" list $hook)) }}{{ fail (printf "%s.exec has no command" (index . 0)) }}{{ end -}}
{{- range $kind := list "httpGet" "tcpSocket" -}}
{{- if and (hasKey $hook $kind) (not (dig $kind "port" "" $hook)) }}{{ fail (printf "%s.%s has no port" (index $ 0) $kind) }}{{ end -}}
{{- end -}}
{{- if and (hasKey $hook "sleep") (not (regexMatch "^[0-9]+$" (include "tidewire.text" (dig "sleep" "seconds" "" $hook)))) }}{{ include "tidewire.refuse" (list (printf "%s.sleep.seconds" (index . 0)) (dig "sleep" "seconds" "" $hook) "not a number of seconds") }}{{ end -}}
{{- end -}}

{{/* Scaling in one direction: [place, rules] */}}
{{- define "tidewire.checkScaling" -}}
{{- $place := index . 0 -}}
{{- with index . 1 -}}
{{- $window := index . "stabilizationWindowSeconds" -}}
{{- if and (not (kindIs "invalid" $window)) (or (lt (float64 $window) 0.0) (gt (float64 $window) 3600.0)) -}}
{{- include "tidewire.refuse" (list (printf "%s.stabilizationWindowSeconds" $place) $window "not between 0 and 3600") -}}
{{- end -}}
{{- $select := index . "selectPolicy" -}}
{{- if and $select (not (has $select (list "Max" "Min" "Disabled"))) }}{{ include "tidewire.refuse" (list (printf "%s.selectPolicy" $place) $select "neither Max nor Min nor Disabled") }}{{ end -}}
{{- if not (index . "policies") }}{{ fail (printf "%s.policies is empty: name one policy at least, such as {type: Pods, value: 4, periodSeconds: 60}" $place) }}{{ end -}}
{{- range index . "policies" -}}
{{- if not (has (index . "type") (list "Pods" "Percent")) }}{{ include "tidewire.refuse" (list (printf "%s.policies: type" $place) (index . "type") "neither Pods nor Percent") }}{{ end -}}
{{- if not (gt (index . "value" | float64) 0.0) }}{{ include "tidewire.refuse" (list (printf "%s.policies: value" $place) (index . "value") "not above 0") }}{{ end -}}
{{- if or (le (index . "periodSeconds" | float64) 0.0) (gt (index . "periodSeconds" | float64) 1800.0) }}{{ include "tidewire.refuse" (list (printf "%s.policies: periodSeconds" $place) (index . "periodSeconds") "not between 1 and 1800") }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tidewire.validateOverrides" -}}
{{- $v := .Values -}}
{{- range $name := list "nameOverride" "fullnameOverride" -}}
{{- if not (regexMatch "^([A-Za-z0-9]([-_.A-Za-z0-9]*[-A-Za-z0-9])?)?$" (index $v $name)) }}{{ include "tidewire.refuse" (list $name (index $v $name) "not part of a valid name: use letters, digits, dashes, dots and underscores, beginning with a letter or digit") }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkLabel" (list "namespaceOverride" $v.namespaceOverride) -}}
{{- end -}}

{{- define "tidewire.validateFormats" -}}
{{- $v := .Values -}}

{{- /* --- names --- */ -}}
{{- include "tidewire.checkLabel" (list "dashboards.namespace" $v.dashboards.namespace) -}}
{{- range $place, $name := dict
  "contract.existingConfigMap" $v.contract.existingConfigMap
  "serviceAccount.name" $v.serviceAccount.name
  "ingress.className" $v.ingress.className
  "gateway.create.className" $v.gateway.create.className
  "priorityClassName" $v.priorityClassName
  "runtimeClassName" $v.runtimeClassName
  "autoscaling.keda.triggerAuthentication" $v.autoscaling.keda.triggerAuthentication -}}
{{- include "tidewire.checkName" (list $place $name) -}}
{{- end -}}
{{- include "tidewire.checkDataKey" (list "contract.key" $v.contract.key) -}}
{{- range $name, $secret := $v.secrets -}}
{{- if kindIs "map" $secret -}}
{{- range $field, $value := $secret -}}
{{- if hasPrefix "existing" $field }}{{ include "tidewire.checkName" (list (printf "secrets.%s.%s" $name $field) $value) }}{{ else }}{{ include "tidewire.checkDataKey" (list (printf "secrets.%s.%s" $name $field) $value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (kindIs "map" $v.global) }}{{ fail "global is no map, such as {imageRegistry: registry.example.com}" }}{{ end -}}
{{- range (include "tidewire.pullSecrets" . | fromJson).secrets -}}
{{- if not . }}{{ fail "imagePullSecrets: an entry has no name: they are [name] or [{name: …}], in global.imagePullSecrets too" }}{{ end -}}
{{- include "tidewire.checkName" (list "imagePullSecrets" .) -}}
{{- end -}}

{{- /* --- the image --- */ -}}
{{- if regexMatch "\\s|[A-Z][^.:]*$" $v.image.repository }}{{ include "tidewire.refuse" (list "image.repository" $v.image.repository "not a repository: use lower-case letters, digits, dashes, dots and slashes, such as registry.example.com/tidewire") }}{{ end -}}
{{- if and (kindIs "float64" $v.image.tag) (or (ne (floor $v.image.tag) $v.image.tag) (ge $v.image.tag 1e15) (lt $v.image.tag 0.0)) -}}
{{- fail (printf "image.tag: YAML reads it as the number %v, which may differ from what you wrote: put it in quotes" $v.image.tag) -}}
{{- end -}}
{{- if not (regexMatch "^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$" (include "tidewire.text" $v.image.tag)) }}{{ include "tidewire.refuse" (list "image.tag" $v.image.tag "not a tag: use at most 128 letters, digits, dashes, dots and underscores") }}{{ end -}}
{{- range $place, $registry := dict "image.registry" $v.image.registry "global.imageRegistry" $v.global.imageRegistry -}}
{{- if and $registry (or (contains "://" $registry) (not (regexMatch "^[-a-zA-Z0-9.\\[\\]:]+(/[-a-z0-9._]+)*/?$" $registry))) }}{{ include "tidewire.refuse" (list $place $registry "not a registry: use a host, with a port and a path if needed, such as registry.example.com:5000, without https://") }}{{ end -}}
{{- end -}}

{{- /* --- labels and annotations --- */ -}}
{{- range $place, $labels := dict
  "commonLabels" $v.commonLabels
  "podLabels" $v.podLabels
  "service.labels" $v.service.labels
  "nodeSelector" $v.nodeSelector
  "serviceMonitor.labels" $v.serviceMonitor.labels
  "podMonitor.labels" $v.podMonitor.labels
  "dashboards.labels" $v.dashboards.labels
  "prometheusRule.labels" $v.prometheusRule.labels -}}
{{- include "tidewire.checkLabels" (list $place $labels) -}}
{{- end -}}
{{- range $place, $annotations := dict
  "commonAnnotations" $v.commonAnnotations
  "deploymentAnnotations" $v.deploymentAnnotations
  "podAnnotations" $v.podAnnotations
  "ingress.annotations" $v.ingress.annotations
  "gateway.annotations" $v.gateway.annotations
  "service.annotations" $v.service.annotations
  "serviceAccount.annotations" $v.serviceAccount.annotations
  "dashboards.annotations" $v.dashboards.annotations -}}
{{- include "tidewire.checkAnnotations" (list $place $annotations) -}}
{{- end -}}
{{- range $name, $_ := $v.prometheusRule.alertLabels -}}
{{- if not (regexMatch "^[a-zA-Z_][a-zA-Z0-9_]*$" $name) }}{{ include "tidewire.refuse" (list "prometheusRule.alertLabels" $name "not a Prometheus label: use letters, digits and underscores, without a digit first") }}{{ end -}}
{{- end -}}

{{- /* --- paths and hosts --- */ -}}
{{- range $v.publicPaths -}}
{{- if or (regexMatch "//|/\\./|/\\.\\./|%2[fF]|#|/\\.\\.?$" .) (not (regexMatch "^/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$" .)) (gt (len .) 1024) -}}
{{- include "tidewire.refuse" (list "publicPaths" . "not a path, such as /ws: it has no empty or dot segments, no #, and at most 1024 characters") -}}
{{- end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "publicPaths" $v.publicPaths "listed twice") -}}
{{- range $v.ingress.hosts }}{{ include "tidewire.checkHost" (list "ingress.hosts" . true) }}{{ end -}}
{{- include "tidewire.checkTwice" (list "ingress.hosts" $v.ingress.hosts "listed twice") -}}
{{- range $v.ingress.tls -}}
{{- range $key, $_ := . }}{{ if not (has $key (list "hosts" "secretName")) }}{{ include "tidewire.refuse" (list "ingress.tls" $key "neither secretName nor hosts") }}{{ end }}{{ end -}}
{{- include "tidewire.checkName" (list "ingress.tls: secretName" (index . "secretName")) -}}
{{- range index . "hosts" }}{{ include "tidewire.checkHost" (list "ingress.tls: hosts" . true) }}{{ end -}}
{{- end -}}
{{- range $v.gateway.hostnames }}{{ include "tidewire.checkHost" (list "gateway.hostnames" . true) }}{{ end -}}
{{- if gt (len $v.gateway.hostnames) 16 }}{{ fail (printf "gateway.hostnames: a route has at most 16, and you list %d" (len $v.gateway.hostnames)) }}{{ end -}}
{{- range $v.gateway.parentRefs -}}
{{- include "tidewire.checkKeys" (list "gateway.parentRefs" . (list "group" "kind" "namespace" "name" "sectionName" "port")) -}}
{{- if not (index . "name") }}{{ fail "gateway.parentRefs: an entry has no name: they are [{name: …, namespace: …}]" }}{{ end -}}
{{- include "tidewire.checkName" (list "gateway.parentRefs: name" (index . "name")) -}}
{{- include "tidewire.checkLabel" (list "gateway.parentRefs: namespace" (index . "namespace")) -}}
{{- end -}}
{{- if $v.gateway.create.enabled -}}
{{- $listeners := list -}}
{{- $places := list -}}
{{- range $v.gateway.create.listeners -}}
{{- $name := index . "name" -}}
{{- if not $name }}{{ fail "gateway.create.listeners: a listener has no name" }}{{ end -}}
{{- include "tidewire.checkName" (list "gateway.create.listeners: name" $name) -}}
{{- $listeners = append $listeners $name -}}
{{- $port := toString (index . "port") -}}
{{- if or (not (regexMatch "^[1-9][0-9]{0,4}$" $port)) (gt (int $port) 65535) }}{{ include "tidewire.refuse" (list (printf "gateway.create.listeners: port of %s" $name) (index . "port") "not a port: use 1 to 65535") }}{{ end -}}
{{- $protocol := index . "protocol" -}}
{{- $places = append $places (printf "%s %v %s" $port $protocol (index . "hostname" | default "")) -}}
{{- if not $protocol }}{{ fail (printf "gateway.create.listeners: %s has no protocol: HTTP or HTTPS" $name) }}{{ end -}}
{{- if and (eq $protocol "HTTP") (hasKey . "tls") }}{{ fail (printf "gateway.create.listeners: %s has tls, and its protocol is HTTP: make it HTTPS" $name) }}{{ end -}}
{{- if and (eq $protocol "HTTPS") (not (hasKey . "tls")) }}{{ fail (printf "gateway.create.listeners: %s is HTTPS without tls: name its Secret, as tls: {certificateRefs: [{name: …}]}" $name) }}{{ end -}}
{{- with index . "hostname" }}{{ include "tidewire.checkHost" (list (printf "gateway.create.listeners: hostname of %s" $name) . true) }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "gateway.create.listeners" $listeners "the name of two listeners") -}}
{{- include "tidewire.checkTwice" (list "gateway.create.listeners" $places "the port, protocol and hostname of two listeners") -}}
{{- end -}}

{{- /* --- Services --- */ -}}
{{- if gt (int $v.service.port) 65535 }}{{ include "tidewire.refuse" (list "service.port" $v.service.port "not a port: use 1 to 65535") }}{{ end -}}
{{- $range := splitList "-" $v.service.nodePortRange -}}
{{- if and (int $v.service.nodePort) (or (lt (int $v.service.nodePort) (first $range | int)) (gt (int $v.service.nodePort) (last $range | int))) -}}
{{- include "tidewire.refuse" (list "service.nodePort" $v.service.nodePort (printf "not in the cluster's range of node ports (%s): if your cluster has another range, set service.nodePortRange" $v.service.nodePortRange)) -}}
{{- end -}}
{{- if and $v.service.clusterIP (ne $v.service.clusterIP "None") }}{{ include "tidewire.checkAddress" (list "service.clusterIP" $v.service.clusterIP) }}{{ end -}}
{{- if and (eq $v.service.clusterIP "None") (ne $v.service.type "ClusterIP") }}{{ fail (printf "service.clusterIP None makes a headless Service, and service.type is %s: leave one of them out" $v.service.type) }}{{ end -}}
{{- with $v.service.loadBalancerIP }}{{ include "tidewire.checkAddress" (list "service.loadBalancerIP" .) }}{{ end -}}
{{- if and $v.service.loadBalancerSourceRanges (ne $v.service.type "LoadBalancer") }}{{ fail (printf "service.loadBalancerSourceRanges has no effect: service.type is %s, and only a LoadBalancer has source ranges; for other types use networkPolicy.publicFrom" $v.service.type) }}{{ end -}}
{{- range $v.service.loadBalancerSourceRanges }}{{ include "tidewire.checkCidr" (list "service.loadBalancerSourceRanges" .) }}{{ end -}}
{{- include "tidewire.checkTwice" (list "service.ipFamilies" $v.service.ipFamilies "listed twice") -}}
{{- if and (eq $v.service.ipFamilyPolicy "SingleStack") (gt (len $v.service.ipFamilies) 1) }}{{ fail "service.ipFamilies has two families, and service.ipFamilyPolicy is SingleStack: make it PreferDualStack or RequireDualStack, or name one family" }}{{ end -}}
{{- if and $v.service.ipFamilies $v.service.clusterIP (ne $v.service.clusterIP "None") (ne (eq (first $v.service.ipFamilies) "IPv6") (contains ":" $v.service.clusterIP)) }}{{ fail (printf "service.clusterIP (%s) is not of the first of service.ipFamilies (%s)" $v.service.clusterIP (first $v.service.ipFamilies)) }}{{ end -}}
{{- if not (has $v.service.appProtocol (list "auto" "none")) }}{{ include "tidewire.checkKey" (list "service.appProtocol" $v.service.appProtocol) }}{{ end -}}
{{- with $v.service.loadBalancerClass }}{{ include "tidewire.checkKey" (list "service.loadBalancerClass" .) }}{{ end -}}

{{- /* Refuses changes that a Service does not allow, before Helm applies half of an upgrade. */ -}}
{{- $live := (lookup "v1" "Service" (include "tidewire.namespace" .) (include "tidewire.fullname" .) | default dict).spec | default dict -}}
{{- $change := "and a Service cannot change it: leave it as it is, or delete the Service first, which interrupts its clients" -}}
{{- if and $v.service.clusterIP $live.clusterIP (ne $v.service.clusterIP $live.clusterIP) -}}
{{- fail (printf "service.clusterIP is %q, and the Service has %q, %s" $v.service.clusterIP $live.clusterIP $change) -}}
{{- end -}}
{{- if and $v.service.ipFamilies $live.ipFamilies (ne (first $v.service.ipFamilies) (first $live.ipFamilies)) -}}
{{- fail (printf "service.ipFamilies begins with %s, and the Service with %s, %s" (first $v.service.ipFamilies) (first $live.ipFamilies) $change) -}}
{{- end -}}
{{- if and $v.service.loadBalancerClass (eq $v.service.type "LoadBalancer") (eq ($live.type | default "") "LoadBalancer") (ne $v.service.loadBalancerClass ($live.loadBalancerClass | default "")) -}}
{{- fail (printf "service.loadBalancerClass is %q, and the LoadBalancer has %q, %s" $v.service.loadBalancerClass ($live.loadBalancerClass | default "") $change) -}}
{{- end -}}

{{- /* --- pods --- */ -}}
{{- include "tidewire.checkResources" (list "resources" $v.resources) -}}
{{- include "tidewire.checkResources" (list "tests.resources" $v.tests.resources) -}}
{{- range $v.tolerations -}}
{{- include "tidewire.checkKeys" (list "tolerations" . (list "key" "operator" "value" "effect" "tolerationSeconds")) -}}
{{- $operator := index . "operator" | default "Equal" -}}
{{- if not (has $operator (list "Exists" "Equal" "Lt" "Gt")) }}{{ include "tidewire.refuse" (list "tolerations: operator" $operator "neither Exists nor Equal") }}{{ end -}}
{{- if and (not (index . "key")) (ne $operator "Exists") }}{{ fail "tolerations: without a key the operator must be Exists" }}{{ end -}}
{{- with index . "key" }}{{ include "tidewire.checkKey" (list "tolerations: key" .) }}{{ end -}}
{{- if and (eq $operator "Exists") (index . "value") }}{{ fail (printf "tolerations: %s has a value, and its operator Exists takes none" (index . "key" | default "one without a key")) }}{{ end -}}
{{- if and (index . "value") (not (kindIs "string" (index . "value"))) }}{{ fail (printf "tolerations: the value of %s is a number or boolean: put it in quotes" (index . "key")) }}{{ end -}}
{{- if eq $operator "Equal" }}{{ include "tidewire.checkLabels" (list "tolerations" (dict (index . "key") (index . "value" | default ""))) }}{{ end -}}
{{- $effect := index . "effect" -}}
{{- if and $effect (not (has $effect (list "NoSchedule" "PreferNoSchedule" "NoExecute"))) }}{{ include "tidewire.refuse" (list "tolerations: effect" $effect "neither NoSchedule nor PreferNoSchedule nor NoExecute") }}{{ end -}}
{{- if and (hasKey . "tolerationSeconds") (ne $effect "NoExecute") }}{{ fail "tolerations: tolerationSeconds is only for the effect NoExecute" }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkAffinity" $v.affinity -}}
{{- $pairs := list -}}
{{- range include "tidewire.topologySpread" . | fromJsonArray -}}
{{- include "tidewire.checkKeys" (list "topologySpreadConstraints" . (list "topologyKey" "maxSkew" "whenUnsatisfiable" "labelSelector" "matchLabelKeys" "minDomains" "nodeAffinityPolicy" "nodeTaintsPolicy")) -}}
{{- if not (index . "topologyKey") }}{{ fail "topologySpreadConstraints: topologyKey is empty: use topology.kubernetes.io/zone or kubernetes.io/hostname, for example" }}{{ end -}}
{{- if lt (index . "maxSkew" | int) 1 }}{{ include "tidewire.refuse" (list "topologySpreadConstraints: maxSkew" (index . "maxSkew") "not 1 or more") }}{{ end -}}
{{- if not (has (index . "whenUnsatisfiable") (list "DoNotSchedule" "ScheduleAnyway")) }}{{ include "tidewire.refuse" (list "topologySpreadConstraints: whenUnsatisfiable" (index . "whenUnsatisfiable") "neither DoNotSchedule nor ScheduleAnyway") }}{{ end -}}
{{- if and (hasKey . "minDomains") (ne (index . "whenUnsatisfiable") "DoNotSchedule") }}{{ fail "topologySpreadConstraints: minDomains is only for whenUnsatisfiable: DoNotSchedule" }}{{ end -}}
{{- $pairs = append $pairs (printf "%s, %s" (index . "topologyKey") (index . "whenUnsatisfiable")) -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "topologySpreadConstraints" $pairs "listed twice: use one constraint for each topologyKey and whenUnsatisfiable") -}}
{{- $addresses := list -}}
{{- range $v.hostAliases -}}
{{- include "tidewire.checkKeys" (list "hostAliases" . (list "ip" "hostnames")) -}}
{{- include "tidewire.checkAddress" (list "hostAliases: ip" (index . "ip")) -}}
{{- $addresses = append $addresses (index . "ip") -}}
{{- range index . "hostnames" }}{{ include "tidewire.checkName" (list "hostAliases: hostnames" .) }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "hostAliases" $addresses "listed twice: put all its hostnames into one entry") -}}
{{- range $v.dnsConfig.nameservers }}{{ include "tidewire.checkAddress" (list "dnsConfig.nameservers" .) }}{{ end -}}
{{- range $v.dnsConfig.searches -}}
{{- if or (gt (len .) 253) (not (regexMatch "^(\\.|(_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*\\.?)$" .)) }}{{ include "tidewire.refuse" (list "dnsConfig.searches" . "not a domain: use lower-case letters, digits, dashes, underscores and dots") }}{{ end -}}
{{- end -}}
{{- range $v.dnsConfig.options }}{{ include "tidewire.checkKeys" (list "dnsConfig.options" . (list "name" "value")) }}{{ end -}}
{{- if and (eq $v.dnsPolicy "None") (not $v.dnsConfig.nameservers) }}{{ fail "dnsPolicy None leaves pods without nameservers: name some in dnsConfig.nameservers" }}{{ end -}}
{{- range $name := list "preStop" "postStart" -}}
{{- if hasKey $v.lifecycle $name }}{{ include "tidewire.checkHook" (list (printf "lifecycle.%s" $name) (index $v.lifecycle $name)) }}{{ end -}}
{{- end -}}
{{- range $v.extraArgs -}}
{{- range $flag, $here := dict "--workers" "a pod runs one node; raise replicas" "--demo" "set secrets and a contract" "--config" "use settings" -}}
{{- $given := $.Values.extraArgs | join " " -}}
{{- if regexMatch (printf "(^| )%s( |=|$)" $flag) $given }}{{ fail (printf "extraArgs: the chart sets %s: %s" $flag $here) }}{{ end -}}
{{- end -}}
{{- $option := regexFind "^--[a-z][-_a-z0-9]*" (include "tidewire.text" .) | trimPrefix "--" | replace "-" "_" -}}
{{- range $group, $names := $.Files.Get "files/settings-names.yaml" | fromYaml -}}
{{- range $name, $_ := $names | default (dict $group "") -}}
{{- $place := ternary $name (printf "%s.%s" $group $name) (eq $name $group) -}}
{{- if has $option (list $name (replace "." "_" $place)) }}{{ fail (printf "extraArgs: tidewire serve has no option --%s, and pods would not start: set settings.%s" (replace "_" "-" $option) $place) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range concat (include "tidewire.env" . | fromYamlArray) (include "tidewire.extraEnv" . | fromYamlArray) -}}
{{- include "tidewire.checkKeys" (list "extraEnv" . (list "name" "value" "valueFrom")) -}}
{{- if not (kindIs "string" .name) }}{{ include "tidewire.refuse" (list "extraEnv: name" .name "not text: YAML reads y, n, yes, no, on and off as booleans, so put them in quotes") }}{{ end -}}
{{- if not (regexMatch "^[ -<>-~]+$" .name) }}{{ include "tidewire.refuse" (list "extraEnv" .name "not a variable name: use visible characters without =") }}{{ end -}}
{{- if and (hasKey . "value") (hasKey . "valueFrom") .value }}{{ fail (printf "extraEnv: %s has value and valueFrom: set only one of them" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "extraEnv" $names "listed twice, or set by the chart") -}}
{{- range include "tidewire.renderedList" (list . $v.extraEnvFrom) | fromYamlArray -}}
{{- include "tidewire.checkKeys" (list "extraEnvFrom" . (list "prefix" "configMapRef" "secretRef")) -}}
{{- if eq (hasKey . "configMapRef") (hasKey . "secretRef") }}{{ fail "extraEnvFrom: an entry is either {configMapRef: {name: …}} or {secretRef: {name: …}}" }}{{ end -}}
{{- end -}}
{{- $names := list -}}
{{- range include "tidewire.volumes" . | fromYamlArray }}{{ $names = append $names .name }}{{ end -}}
{{- range include "tidewire.renderedList" (list . $v.extraVolumes) | fromYamlArray -}}
{{- include "tidewire.checkLabel" (list "extraVolumes" (index . "name")) -}}
{{- $names = append $names (index . "name") -}}
{{- if gt (len .) 2 }}{{ fail (printf "extraVolumes: %s has %d sources and needs exactly one, such as {name: %s, emptyDir: {}}" (index . "name") (sub (len .) 1) (index . "name")) }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "extraVolumes" $names "listed twice, or set by the chart") -}}
{{- $paths := list -}}
{{- range include "tidewire.mounts" . | fromYamlArray }}{{ $paths = append $paths .mountPath }}{{ end -}}
{{- range include "tidewire.renderedList" (list . $v.extraVolumeMounts) | fromYamlArray -}}
{{- include "tidewire.checkKeys" (list "extraVolumeMounts" . (list "name" "mountPath" "subPath" "subPathExpr" "readOnly" "recursiveReadOnly" "mountPropagation")) -}}
{{- $paths = append $paths (index . "mountPath") -}}
{{- if not (has (index . "name") $names) }}{{ include "tidewire.refuse" (list "extraVolumeMounts: name" (index . "name") (printf "not a volume of the pod: add it to extraVolumes, or use one of %s" (join ", " $names))) }}{{ end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "extraVolumeMounts" $paths "listed twice, or set by the chart") -}}
{{- $names := list "tidewire" -}}
{{- range $place := list "initContainers" "extraContainers" -}}
{{- range include "tidewire.renderedList" (list $ (index $v $place)) | fromYamlArray -}}
{{- include "tidewire.checkLabel" (list (printf "%s: name" $place) (index . "name")) -}}
{{- $names = append $names (index . "name") -}}
{{- if not (index . "image") }}{{ fail (printf "%s: %s has no image" $place (index . "name")) }}{{ end -}}
{{- with index . "resources" }}{{ include "tidewire.checkResources" (list (printf "%s: resources" $place) .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- include "tidewire.checkTwice" (list "initContainers and extraContainers" $names "the name of two containers, or of the chart's own") -}}
{{- include "tidewire.checkKeys" (list "podSecurityContext" $v.podSecurityContext (list "appArmorProfile" "fsGroup" "fsGroupChangePolicy" "runAsGroup" "runAsNonRoot" "runAsUser" "seLinuxChangePolicy" "seLinuxOptions" "seccompProfile" "supplementalGroups" "supplementalGroupsPolicy" "sysctls" "windowsOptions")) -}}
{{- include "tidewire.checkKeys" (list "securityContext" $v.securityContext (list "allowPrivilegeEscalation" "appArmorProfile" "capabilities" "privileged" "procMount" "readOnlyRootFilesystem" "runAsGroup" "runAsNonRoot" "runAsUser" "seLinuxOptions" "seccompProfile" "windowsOptions")) -}}
{{- if not (dig "allowPrivilegeEscalation" false $v.securityContext) -}}
{{- if dig "privileged" false $v.securityContext }}{{ fail "securityContext.privileged needs securityContext.allowPrivilegeEscalation, which is false" }}{{ end -}}
{{- range index (index $v.securityContext "capabilities" | default dict) "add" -}}
{{- if eq . "CAP_SYS_ADMIN" }}{{ fail "securityContext.capabilities.add: CAP_SYS_ADMIN needs securityContext.allowPrivilegeEscalation, which is false" }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* --- rollout, disruptions, scaling --- */ -}}
{{- include "tidewire.checkShare" (list "strategy.maxUnavailable" $v.strategy.maxUnavailable) -}}
{{- range $name := list "maxUnavailable" "minAvailable" -}}
{{- if not (kindIs "invalid" (index $v.podDisruptionBudget $name)) }}{{ include "tidewire.checkShare" (list (printf "podDisruptionBudget.%s" $name) (index $v.podDisruptionBudget $name)) }}{{ end -}}
{{- end -}}
{{- range $direction := list "scaleUp" "scaleDown" }}{{ include "tidewire.checkScaling" (list (printf "autoscaling.behavior.%s" $direction) (index $v.autoscaling.behavior $direction)) }}{{ end -}}
{{- range $direction, $_ := $v.autoscaling.behavior -}}
{{- if not (has $direction (list "scaleUp" "scaleDown")) }}{{ include "tidewire.refuse" (list "autoscaling.behavior" $direction "neither scaleUp nor scaleDown") }}{{ end -}}
{{- end -}}

{{- /* --- network, monitoring --- */ -}}
{{- range $v.networkPolicy.extraIngress }}{{ include "tidewire.checkKeys" (list "networkPolicy.extraIngress" . (list "ports" "from")) }}{{ include "tidewire.checkPeers" (list "networkPolicy.extraIngress: from" (index . "from")) }}{{ end -}}
{{- range $v.networkPolicy.extraEgress }}{{ include "tidewire.checkKeys" (list "networkPolicy.extraEgress" . (list "ports" "to")) }}{{ include "tidewire.checkPeers" (list "networkPolicy.extraEgress: to" (index . "to")) }}{{ end -}}
{{- range $name := list "publicFrom" "opsFrom" "brokerTo" }}{{ include "tidewire.checkPeers" (list (printf "networkPolicy.%s" $name) (index $v.networkPolicy $name)) }}{{ end -}}
{{- range $v.networkPolicy.brokerPorts }}{{ if gt (int .) 65535 }}{{ include "tidewire.refuse" (list "networkPolicy.brokerPorts" . "not a port: use 1 to 65535") }}{{ end }}{{ end -}}
{{- range $name := list "serviceMonitor" "podMonitor" -}}
{{- $monitor := index $v $name -}}
{{- range $field := list "interval" "scrapeTimeout" -}}
{{- $value := index $monitor $field -}}
{{- if and $value (lt (include "tidewire.milliseconds" $value | int64) 0) }}{{ include "tidewire.refuse" (list (printf "%s.%s" $name $field) $value "not a Prometheus duration, such as 15s or 1m") }}{{ end -}}
{{- end -}}
{{- if and $monitor.interval $monitor.scrapeTimeout (gt (include "tidewire.milliseconds" $monitor.scrapeTimeout | int64) (include "tidewire.milliseconds" $monitor.interval | int64)) -}}
{{- fail (printf "%s.scrapeTimeout (%s) is above %s.interval (%s), and Prometheus would refuse its configuration: lower the one or raise the other" $name $monitor.scrapeTimeout $name $monitor.interval) -}}
{{- end -}}
{{- end -}}

{{- /* --- contract --- */ -}}
{{- $size := add (len "settings.yaml") (len (include "tidewire.settings" .)) -}}
{{- range $key, $text := ternary (include "tidewire.contractFiles" . | fromYaml) dict (eq $v.contract.existingConfigMap "") }}{{ $size = add $size (len $key) (len $text) }}{{ end -}}
{{- if gt $size 1048576 }}{{ fail (printf "contract.text, contract.files and settings have %d bytes, and a ConfigMap takes 1048576: mount files of yours with extraVolumes, or make the schemas smaller" $size) }}{{ end -}}
{{- range $path, $_ := $v.contract.files }}{{ if or (not $path) (hasPrefix ".." $path) }}{{ include "tidewire.refuse" (list "contract.files" $path "not a path below the contract's folder") }}{{ end }}{{ end -}}
{{- if hasKey $v.contract.files "contract.yaml" }}{{ fail "contract.files: contract.yaml is the contract itself: set it in contract.text" }}{{ end -}}

{{- /* --- the user's objects --- */ -}}
{{- range $index, $object := $v.extraObjects -}}
{{- if kindIs "map" $object -}}
{{- range $field := list "apiVersion" "kind" "metadata" -}}
{{- if not (index $object $field) }}{{ fail (printf "extraObjects[%d] has no %s" $index $field) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
