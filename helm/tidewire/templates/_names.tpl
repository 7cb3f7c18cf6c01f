{{/*
Names, namespace and labels of objects.

A name is at most 52 characters long, so that suffixes such as "-ops" fit into the 63 of a DNS label. It begins with a letter and has
no dots, as names of Services must. If the chart has to change a name for that, it adds a hash of the release's name, which keeps releases distinct.
*/}}

{{- define "tidewire.appName" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | regexFind "^.*[A-Za-z0-9]" -}}
{{- end -}}

{{- define "tidewire.namespace" -}}{{ .Values.namespaceOverride | default .Release.Namespace }}{{- end -}}

{{/*
The first line of every template. Validates the values once, before anything is rendered. Chooses the name once too, because it may depend
on the objects in the cluster.
*/}}
{{- define "tidewire.begin" -}}
{{- if not (hasKey .Values "tidewireFullname") -}}
{{- $_ := include "tidewire.validateNames" . -}}
{{- $_ := include "tidewire.complete" (list .Values (.Files.Get "files/without-null.yaml" | fromYaml)) -}}
{{- $_ := include "tidewire.dropNulls" .Values -}}
{{- $_ := include "tidewire.validateOverrides" . -}}
{{- $_ := set .Values "tidewireFullname" (include "tidewire.chosenName" .) -}}
{{- $_ := include "tidewire.validate" . -}}
{{- $_ := include "tidewire.validateFormats" . -}}
{{- end -}}
{{- end -}}

{{/* Replaces null values by those of files/without-null.yaml, because Helm removes them: [values, replacements] */}}
{{- define "tidewire.complete" -}}
{{- $values := index . 0 -}}
{{- range $name, $empty := index . 1 -}}
{{- if kindIs "invalid" (index $values $name) -}}
{{- $_ := set $values $name (ternary $empty (deepCopy $empty) (not (kindIs "map" $empty))) -}}
{{- else if and (kindIs "map" $empty) (kindIs "map" (index $values $name)) -}}
{{- $_ := include "tidewire.complete" (list (index $values $name) $empty) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Removes nulls inside objects of Kubernetes, where they mean nothing. At the top of a security context, null removes a field of the chart's.
In settings, null is kept.
*/}}
{{- define "tidewire.dropNulls" -}}
{{- $values := . -}}
{{- range list "affinity" "tolerations" "topologySpreadConstraints" "hostAliases" "dnsConfig" "lifecycle" "networkPolicy" "ingress" "gateway" "extraEnv" "extraEnvFrom" "extraVolumes" "extraVolumeMounts" "initContainers" "extraContainers" -}}
{{- $_ := include "tidewire.dropNullsOf" (list $values .) -}}
{{- end -}}
{{- $_ := include "tidewire.dropNullsOf" (list .autoscaling "behavior") -}}
{{- range list .podSecurityContext .securityContext -}}
{{- $context := . -}}
{{- range $name, $_ := . }}{{ $_ := include "tidewire.dropNullsOf" (list $context $name) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* [map, key whose value loses its nulls] */}}
{{- define "tidewire.dropNullsOf" -}}
{{- $holder := index . 0 -}}
{{- $key := index . 1 -}}
{{- $value := index $holder $key -}}
{{- if kindIs "map" $value -}}
{{- range $name, $inside := $value -}}
{{- if kindIs "invalid" $inside }}{{ $_ := unset $value $name }}{{ else }}{{ $_ := include "tidewire.dropNullsOf" (list $value $name) }}{{ end -}}
{{- end -}}
{{- else if kindIs "slice" $value -}}
{{- $kept := list -}}
{{- range $value -}}
{{- $one := dict "item" . -}}
{{- if not (kindIs "invalid" .) }}{{ $_ := include "tidewire.dropNullsOf" (list $one "item") }}{{ $kept = append $kept (index $one "item") }}{{ end -}}
{{- end -}}
{{- $_ := set $holder $key $kept -}}
{{- end -}}
{{- end -}}

{{/* The name of objects, without a suffix. */}}
{{- define "tidewire.fullname" -}}
{{- include "tidewire.begin" . -}}
{{- .Values.tidewireFullname -}}
{{- end -}}

{{/* The name by the usual rule of charts, before the chart makes it valid. */}}
{{- define "tidewire.wantedName" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- /* Two aliases in one parent may both be parts of the release's name. */ -}}
{{- $isAlias := and (ne .Chart.Name "tidewire") (not .Values.nameOverride) -}}
{{- if .Values.fullnameOverride -}}
{{- trimSuffix "-" .Values.fullnameOverride -}}
{{- else if and (contains $name .Release.Name) (not $isAlias) -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tidewire.hashedName" -}}
{{- $wanted := include "tidewire.wantedName" . -}}
{{- $clean := regexReplaceAll "[^a-z0-9]+" (lower $wanted) "-" | trimAll "-" -}}
{{- $clean = ternary $clean (printf "t-%s" $clean) (regexMatch "^[a-z]" $clean) -}}
{{- printf "%s-%s" ($clean | trunc 43 | trimSuffix "-") (printf "%s/%s" .Release.Name $wanted | sha256sum | trunc 8) -}}
{{- end -}}

{{/* A name that ends with "-ops" could be that of another release's Service. YAML does not read "on" and the like as text. */}}
{{- define "tidewire.isPlainName" -}}
{{- if and (regexMatch "^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$" .) (not (hasSuffix "-ops" .)) (not (has . (list "true" "false" "null" "yes" "no" "on" "off" "y" "n"))) -}}true{{- end -}}
{{- end -}}

{{/*
The plain name, or the hashed one if the plain name is invalid or belongs to another release: the releases x and x-tidewire have the same
plain name. An installed release keeps its name, because selectors are immutable and Services would move.
*/}}
{{- define "tidewire.chosenName" -}}
{{- $wanted := include "tidewire.wantedName" . -}}
{{- $plain := $wanted | trunc 52 | trimSuffix "-" -}}
{{- $hashed := include "tidewire.hashedName" . -}}
{{- if eq (include "tidewire.holder" (list . "Service" $plain)) "own" -}}
{{- $plain -}}
{{- else if not (include "tidewire.isPlainName" $wanted) -}}
{{- $hashed -}}
{{- else if eq (include "tidewire.holder" (list . "Service" $hashed)) "own" -}}
{{- $hashed -}}
{{- else if has "other" (list (include "tidewire.holder" (list . "Service" $plain)) (include "tidewire.holder" (list . "Service" (printf "%s-ops" $plain))) (include "tidewire.holder" (list . "ConfigMap" $plain)) (include "tidewire.holder" (list . "Secret" $plain))) -}}
{{- $hashed -}}
{{- else -}}
{{- $plain -}}
{{- end -}}
{{- end -}}

{{/* Owner of an object, "own", "other" or empty: [root, kind, name, namespace (the release's own without it), API version (v1)] */}}
{{- define "tidewire.holder" -}}
{{- $root := index . 0 -}}
{{- $namespace := include "tidewire.namespace" $root -}}
{{- if gt (len .) 3 }}{{ $namespace = index . 3 }}{{ end -}}
{{- $found := lookup (ternary (last .) "v1" (gt (len .) 4)) (index . 1) $namespace (index . 2) -}}
{{- $annotations := dig "metadata" "annotations" dict $found | default dict -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $home := get $annotations "meta.helm.sh/release-namespace" -}}
{{- $name := get (dig "metadata" "labels" dict $found | default dict) "app.kubernetes.io/name" | default (include "tidewire.appName" $root) -}}
{{- if not $release -}}
{{- else if and (eq $release $root.Release.Name) (ne $home $root.Release.Namespace) (eq $name (include "tidewire.appName" $root)) (eq $namespace (include "tidewire.namespace" $root)) -}}
{{- fail (printf "namespaceOverride: the namespace %s already has the release %s of the namespace %s, and the pods of both would have the same labels: give this release another name, or set nameOverride and fullnameOverride" $namespace $release $home) -}}
{{- else if and (eq $release $root.Release.Name) (eq $home $root.Release.Namespace) (eq $name (include "tidewire.appName" $root)) -}}own
{{- else -}}other
{{- end -}}
{{- end -}}

{{/*
The suffix of the HTTPProxy of a host, by its index: "", "-1", "-2". If the name itself ends like this, the first suffix is "-0": otherwise
it could equal the second one of another release: [root, index]
*/}}
{{- define "tidewire.proxySuffix" -}}
{{- $name := include "tidewire.fullname" (index . 0) -}}
{{- $index := index . 1 -}}
{{- if ne $index 0 -}}
{{- printf "-%d" $index -}}
{{- else if regexMatch "-[0-9]+$" $name -}}
{{- ternary "" "-0" (eq (include "tidewire.holder" (list (index . 0) "HTTPProxy" $name (include "tidewire.namespace" (index . 0)) "projectcontour.io/v1")) "own") -}}
{{- end -}}
{{- end -}}

{{/* A pattern of the names of the Deployment's pods. Kubernetes truncates their first part to 58 characters. */}}
{{- define "tidewire.podPattern" -}}
{{- $name := include "tidewire.fullname" . -}}
{{- printf (ternary "%s-[a-z0-9]+-[a-z0-9]+" "%s-[a-z0-9]+-?[a-z0-9]+" (le (len $name) 46)) $name -}}
{{- end -}}

{{- define "tidewire.selector" -}}
app.kubernetes.io/name: {{ include "tidewire.appName" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "tidewire.labels" -}}
{{ include "tidewire.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | regexFind "^.*[A-Za-z0-9]" | quote }}
{{- end -}}

{{/* metadata of an object: [root, suffix of its name, its own labels, its own annotations] */}}
{{- define "tidewire.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "tidewire.fullname" $root }}{{ index . 1 }}
namespace: {{ include "tidewire.namespace" $root | quote }}
labels:
  {{- mergeOverwrite (include "tidewire.texts" $root.Values.commonLabels | fromYaml) (include "tidewire.texts" (index . 2) | fromYaml) (include "tidewire.labels" $root | fromYaml) | toYaml | nindent 2 }}
{{- with mergeOverwrite (include "tidewire.texts" $root.Values.commonAnnotations | fromYaml) (include "tidewire.texts" (index . 3) | fromYaml) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A value as text. A whole number such as 20261128 keeps its digits, and does not become 2.0261128e+07. */}}
{{- define "tidewire.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) (lt . 1e15) (gt . -1e15) -}}{{ int64 . }}{{- else if not (kindIs "invalid" .) -}}{{ toString . }}{{- end -}}
{{- end -}}

{{/* A map with every value as text: labels and annotations are never numbers. Null leaves a key out. */}}
{{- define "tidewire.texts" -}}
{{- $texts := dict -}}
{{- range $name, $value := . }}{{ if not (kindIs "invalid" $value) }}{{ $_ := set $texts $name (include "tidewire.text" $value) }}{{ end }}{{ end -}}
{{- toYaml $texts -}}
{{- end -}}

{{- define "tidewire.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tidewire.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}
