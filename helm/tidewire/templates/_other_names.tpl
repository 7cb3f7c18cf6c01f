{{/* Refuses names that this chart does not have and that people guess. The error gives the name here: files/other-names.yaml. */}}
{{- define "tidewire.validateNames" -}}
{{- $values := .Values -}}
{{- $faults := dict "found" list -}}
{{- range $place, $here := .Files.Get "files/other-names.yaml" | fromYaml -}}
{{- $held := $values -}}
{{- $steps := splitList "." $place -}}
{{- range $step := initial $steps -}}
{{- $held = ternary (get (ternary $held dict (kindIs "map" $held)) $step) dict (kindIs "map" $held) -}}
{{- end -}}
{{- if and (kindIs "map" $held) (hasKey $held (last $steps)) -}}
{{- $parts := splitList "; " $here -}}
{{- $hint := ternary (trimPrefix ": " $here) (printf "did you mean %s?%s" (first $parts) (ternary (printf " Note: %s." (last $parts)) "" (gt (len $parts) 1))) (hasPrefix ":" $here) -}}
{{- $_ := set $faults "found" (append $faults.found (printf "%s is not a value of this chart: %s" $place $hint)) -}}
{{- end -}}
{{- end -}}
{{- $_ := include "tidewire.validateSlips" (list "" .Values (.Files.Get "files/without-null.yaml" | fromYaml) $faults) -}}
{{- $settings := .Files.Get "files/settings-names.yaml" | fromYaml -}}
{{- $_ := include "tidewire.validateSlips" (list "settings." (.Values.settings | default dict) $settings $faults) -}}
{{- $_ := include "tidewire.validateGroups" (list (.Values.settings | default dict) $settings $faults) -}}
{{- $_ := include "tidewire.validateShapes" (list . $faults) -}}
{{- if $faults.found }}{{ fail ($faults.found | uniq | join "\n") }}{{ end -}}
{{- end -}}

{{/* Finds names that are similar to one of this chart: [group, its values, what the group has, faults] */}}
{{- define "tidewire.validateSlips" -}}
{{- $group := index . 0 -}}
{{- $known := index . 2 -}}
{{- $faults := index . 3 -}}
{{- range $name, $value := index . 1 -}}
{{- if hasKey $known $name -}}
{{- $inside := index $known $name -}}
{{- if and (kindIs "map" $value) (kindIs "map" $inside) $inside (ne $name "global") }}{{ $_ := include "tidewire.validateSlips" (list (printf "%s%s." $group $name) $value $inside $faults) }}{{ end -}}
{{- else -}}
{{- range $here, $_ := $known -}}
{{- if eq (regexReplaceAll "[-_]|s$" (lower $here) "") (regexReplaceAll "[-_]|s$" (lower $name) "") }}{{ $_ := set $faults "found" (append $faults.found (printf "%s%s is not a value of this chart: did you mean %s%s?" $group $name $group $here)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Finds settings outside their group: [settings, what there is, faults] */}}
{{- define "tidewire.validateGroups" -}}
{{- $known := index . 1 -}}
{{- $faults := index . 2 -}}
{{- range $name, $_ := index . 0 -}}
{{- if not (hasKey $known $name) -}}
{{- $places := list -}}
{{- range $group, $names := $known -}}
{{- range $here, $_ := $names -}}
{{- if eq (replace "_" "" $here) (lower $name | replace "_" "") }}{{ $places = append $places (printf "settings.%s.%s" $group $here) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $places }}{{ $_ := set $faults "found" (append $faults.found (printf "settings.%s is not a value of this chart: did you mean %s?" $name (join " or " $places))) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Finds values of a wrong type, such as text instead of a group: [context, faults] */}}
{{- define "tidewire.validateShapes" -}}
{{- $v := (index . 0).Values -}}
{{- $faults := index . 1 -}}
{{- $found := list -}}
{{- if kindIs "string" $v.contract }}{{ $found = append $found "contract is a group: give the contract's text in contract.text, such as --set-file contract.text=contract.yaml, or name a ConfigMap in contract.existingConfigMap" }}{{ end -}}
{{- $ingress := ternary $v.ingress dict (kindIs "map" $v.ingress) -}}
{{- if kindIs "string" $ingress.hosts }}{{ $found = append $found (printf "ingress.hosts is a list, such as [%s]" ($ingress.hosts | default "rt.example.com")) }}{{ end -}}
{{- if kindIs "slice" $ingress.hosts -}}
{{- range $ingress.hosts -}}
{{- if kindIs "map" . }}{{ $found = append $found (printf "ingress.hosts is a list of names, such as [%s]: set paths in publicPaths and certificates in ingress.tls" (get . "host" | default (get . "name") | default "rt.example.com" | quote)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $isTls := or (kindIs "invalid" $ingress.tls) (kindIs "slice" $ingress.tls) -}}
{{- if kindIs "slice" $ingress.tls }}{{ range $ingress.tls }}{{ if not (kindIs "map" .) }}{{ $isTls = false }}{{ end }}{{ end }}{{ end -}}
{{- if not $isTls }}{{ $found = append $found "ingress.tls is a list, such as [{secretName: rt-tls, hosts: [rt.example.com]}]; cert-manager makes that Secret if ingress.annotations name an issuer" }}{{ end -}}
{{- if and (kindIs "string" $v.enabled) (ne $v.enabled "true") }}{{ $found = append $found (printf "enabled is the text %q, which Helm does not read as a condition, so that the chart would be installed: write true or false without quotes" $v.enabled) }}{{ end -}}
{{- if kindIs "map" $v.extraEnv }}{{ $found = append $found "extraEnv is a list, such as [{name: LANG, value: C.UTF-8}]" }}{{ end -}}
{{- $_ := set $faults "found" (concat $faults.found $found) -}}
{{- end -}}
