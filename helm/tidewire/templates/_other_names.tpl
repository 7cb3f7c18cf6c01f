{{/* Refuses what other charts call a value of this one, and says what it is called here: files/other-names.yaml. */}}
{{- define "tidewire.validateNames" -}}
{{- $values := .Values -}}
{{- range $place, $here := .Files.Get "files/other-names.yaml" | fromYaml -}}
{{- $held := $values -}}
{{- $steps := splitList "." $place -}}
{{- range $step := initial $steps -}}
{{- $held = ternary (get (ternary $held dict (kindIs "map" $held)) $step) dict (kindIs "map" $held) -}}
{{- end -}}
{{- if and (kindIs "map" $held) (hasKey $held (last $steps)) -}}
{{- if hasPrefix ":" $here }}{{ fail (printf "%s is no value of this chart%s" $place $here) }}{{ end -}}
{{- $parts := splitList "; " $here -}}
{{- fail (printf "%s is no value of this chart: did you mean %s?%s" $place (first $parts) (ternary (printf " By the way: %s." (last $parts)) "" (gt (len $parts) 1))) -}}
{{- end -}}
{{- end -}}
{{- $_ := include "tidewire.validateSlips" (list "" .Values (.Files.Get "files/without-null.yaml" | fromYaml)) -}}
{{- range (.Values.ingress | default dict).hosts -}}
{{- if kindIs "map" . }}{{ fail (printf "ingress.hosts is a list of names, such as [%s]: the paths are publicPaths, and certificates stand in ingress.tls" (get . "host" | default (get . "name") | default "rt.example.com" | quote)) }}{{ end -}}
{{- end -}}
{{- if kindIs "map" .Values.extraEnv }}{{ fail "extraEnv is a list, such as [{name: LANG, value: C.UTF-8}]" }}{{ end -}}
{{- end -}}

{{/* Refuses a name that is nearly one of this chart: [group, its values, what the group has] */}}
{{- define "tidewire.validateSlips" -}}
{{- $group := index . 0 -}}
{{- $known := index . 2 -}}
{{- range $name, $value := index . 1 -}}
{{- if hasKey $known $name -}}
{{- $inside := index $known $name -}}
{{- if and (kindIs "map" $value) (kindIs "map" $inside) $inside (ne $name "global") }}{{ $_ := include "tidewire.validateSlips" (list (printf "%s%s." $group $name) $value $inside) }}{{ end -}}
{{- else -}}
{{- range $here, $_ := $known -}}
{{- if eq (regexReplaceAll "[-_]|s$" (lower $here) "") (regexReplaceAll "[-_]|s$" (lower $name) "") }}{{ fail (printf "additional properties '%s' not allowed: %s%s is no value of this chart: did you mean %s%s?" $name $group $name $group $here) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
