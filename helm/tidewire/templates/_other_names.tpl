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
{{- fail (printf "%s is no value of this chart: did you mean %s?" $place $here) -}}
{{- end -}}
{{- end -}}
{{- range (.Values.ingress | default dict).hosts -}}
{{- if kindIs "map" . }}{{ fail (printf "ingress.hosts is a list of names, such as [%s]: the paths are publicPaths, and certificates stand in ingress.tls" (get . "host" | default (get . "name") | default "rt.example.com" | quote)) }}{{ end -}}
{{- end -}}
{{- if kindIs "map" .Values.extraEnv }}{{ fail "extraEnv is a list, such as [{name: LANG, value: C.UTF-8}]" }}{{ end -}}
{{- end -}}
