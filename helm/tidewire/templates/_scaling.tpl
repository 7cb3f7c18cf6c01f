{{/* The Deployment's `replicas` with an autoscaler: never fewer than the running pods. */}}

{{/* The autoscaler that is on, as a JSON object with its name and bounds; without one an empty object. */}}
{{- define "tidewire.autoscaler" -}}
{{- $found := dict -}}
{{- range $name := list "hpa" "keda" -}}
{{- $scaler := index $.Values.autoscaling $name -}}
{{- if $scaler.enabled }}{{ $found = dict "name" $name "minReplicas" (int $scaler.minReplicas) "maxReplicas" (int $scaler.maxReplicas) }}{{ end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The annotation of the Deployment that names its autoscaler. It is needed because not every account may read autoscalers. */}}
{{- define "tidewire.autoscalerNote" -}}tidewire/autoscaler{{- end -}}

{{/*
The live Deployment, as a JSON object. `replicas`: the number of pods. `isScaled`: whether it was set through the subresource `scale`, as
autoscalers and `kubectl scale` do. `autoscaler`: hpa, keda or none; empty if an older chart created the Deployment. A render that cannot
read the cluster uses only autoscaling.liveReplicas.
*/}}
{{- define "tidewire.live" -}}
{{- $live := lookup "apps/v1" "Deployment" (include "tidewire.namespace" .) (include "tidewire.fullname" .) | default dict -}}
{{- $isScaled := false -}}
{{- range dig "metadata" "managedFields" list $live -}}
{{- if eq (dig "subresource" "" .) "scale" }}{{ $isScaled = true }}{{ end -}}
{{- end -}}
{{- $note := get (dig "metadata" "annotations" dict $live | default dict) (include "tidewire.autoscalerNote" .) -}}
{{- $replicas := dig "spec" "replicas" 0 $live | int -}}
{{- if and (not $live) .Release.IsUpgrade (include "tidewire.autoscaler" . | fromJson) }}{{ $replicas = include "tidewire.renamedReplicas" . | int }}{{ end -}}
{{- dict "isThere" (not (empty $live)) "replicas" (max $replicas (int .Values.autoscaling.liveReplicas)) "isScaled" $isScaled "autoscaler" $note | toJson -}}
{{- end -}}

{{/*
Pods of the release's Deployment under its previous name or namespace, which this upgrade removes because nameOverride, fullnameOverride
or namespaceOverride has changed. A parent chart may contain this chart several times, so only a Deployment with the same label counts.
*/}}
{{- define "tidewire.renamedReplicas" -}}
{{- $most := 0 -}}
{{- $namespaces := list (include "tidewire.namespace" .) .Release.Namespace | uniq -}}
{{- range $namespace := $namespaces -}}
{{- range (lookup "apps/v1" "Deployment" $namespace "" | default dict).items -}}
{{- $annotations := dig "metadata" "annotations" dict . | default dict -}}
{{- $labels := dig "metadata" "labels" dict . | default dict -}}
{{- $isOwn := and (eq (get $annotations "meta.helm.sh/release-name") $.Release.Name) (eq (get $annotations "meta.helm.sh/release-namespace") $.Release.Namespace) -}}
{{- $isNode := and (eq (get $labels "app.kubernetes.io/component") "node") (or $.Chart.IsRoot (eq (get $labels "app.kubernetes.io/name") (include "tidewire.appName" $))) -}}
{{- if and $isOwn $isNode }}{{ $most = max $most (dig "spec" "replicas" 0 . | int) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $most -}}
{{- end -}}

{{/*
`replicas` of the Deployment. It is rendered with an autoscaler too: a field that an upgrade leaves out is removed from the live
object, and the API server fills in 1.
*/}}
{{- define "tidewire.replicas" -}}
{{- $scaler := include "tidewire.autoscaler" . | fromJson -}}
{{- if not $scaler -}}
{{- int .Values.replicas -}}
{{- else -}}
{{- $live := include "tidewire.live" . | fromJson -}}
{{- if and $live.isScaled (gt (int $live.replicas) 0) -}}
{{- /* Under server-side apply, another number would conflict with the autoscaler, which ensures minReplicas itself. */ -}}
{{- int $live.replicas -}}
{{- else -}}
{{- max (int $live.replicas) (int $scaler.minReplicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tidewire.validateScaling" -}}
{{- $scaler := include "tidewire.autoscaler" . | fromJson -}}
{{- $name := include "tidewire.fullname" . -}}
{{- $live := include "tidewire.live" . | fromJson -}}
{{- if not $scaler -}}
{{- /* Autoscalers are looked up only if the result matters, because not every account may read them. */ -}}
{{- if and (gt (int $live.replicas) (int .Values.replicas)) (include "tidewire.hasAutoscaler" .) -}}
{{- fail (printf "replicas (%d) is below the %d pods that run, and the autoscaler is turned off: Kubernetes would end %d of them at once; set replicas to %d, and lower it later in steps" (int .Values.replicas) (int $live.replicas) (sub (int $live.replicas) (int .Values.replicas)) (int $live.replicas)) -}}
{{- end -}}
{{- else -}}
{{- /* If an autoscaler is on already, the lower maximum is intended. */ -}}
{{- if and (gt (int $live.replicas) (int $scaler.maxReplicas)) (not (include "tidewire.hasAutoscaler" .)) -}}
{{- fail (printf "autoscaling.%s.maxReplicas (%d) is below the %d pods that run: the autoscaler would end %d of them at once; set it to %d or more, and lower it later in steps" $scaler.name (int $scaler.maxReplicas) (int $live.replicas) (sub (int $live.replicas) (int $scaler.maxReplicas)) (int $live.replicas)) -}}
{{- end -}}
{{- /* Without a previous autoscaler, or after KEDA's, there is nothing to hand over. */ -}}
{{- if and (eq $scaler.name "keda") $live.isThere (has $live.autoscaler (list "" "hpa")) -}}
{{- $hpa := lookup "autoscaling/v2" "HorizontalPodAutoscaler" (include "tidewire.namespace" .) $name | default dict -}}
{{- if and $hpa (ne (dig "metadata" "annotations" "validations.keda.sh/hpa-ownership" "" $hpa) "false") -}}
{{- fail (printf "autoscaling.keda: an older chart made the HorizontalPodAutoscaler %s, and KEDA's admission webhook refuses a second autoscaler of the same pods: upgrade once more with autoscaling.hpa.enabled, then switch to autoscaling.keda.enabled" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
"true" if the Deployment has an autoscaler: the chart's own, KEDA's, or one of `kubectl autoscale`. It is looked up only if the Deployment
does not name one, or has been scaled.
*/}}
{{- define "tidewire.hasAutoscaler" -}}
{{- $live := include "tidewire.live" . | fromJson -}}
{{- $name := include "tidewire.fullname" . -}}
{{- if has $live.autoscaler (list "hpa" "keda") -}}true
{{- else if and $live.isThere (or $live.isScaled (not $live.autoscaler)) -}}
{{- range $hpa := list $name (printf "keda-hpa-%s" $name) -}}
{{- if lookup "autoscaling/v2" "HorizontalPodAutoscaler" (include "tidewire.namespace" $) $hpa }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
