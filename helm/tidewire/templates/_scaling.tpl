{{/* How many pods the Deployment asks for while an autoscaler decides: never fewer than run. */}}

{{/* The autoscaler that is on, as a JSON object with its name and bounds; without one an empty object. */}}
{{- define "tidewire.autoscaler" -}}
{{- $found := dict -}}
{{- range $name := list "hpa" "keda" -}}
{{- $scaler := index $.Values.autoscaling $name -}}
{{- if $scaler.enabled }}{{ $found = dict "name" $name "minReplicas" (int $scaler.minReplicas) "maxReplicas" (int $scaler.maxReplicas) }}{{ end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/*
What is known of the live Deployment, as a JSON object: `replicas`, and `isScaled` if somebody set them through the subresource
`scale`, as autoscalers and `kubectl scale` do. A render that cannot see the cluster knows autoscaling.liveReplicas alone.
*/}}
{{- define "tidewire.live" -}}
{{- $live := lookup "apps/v1" "Deployment" (include "tidewire.namespace" .) (include "tidewire.fullname" .) | default dict -}}
{{- $isScaled := false -}}
{{- range dig "metadata" "managedFields" list $live -}}
{{- if eq (dig "subresource" "" .) "scale" }}{{ $isScaled = true }}{{ end -}}
{{- end -}}
{{- dict "replicas" (max (dig "spec" "replicas" 0 $live | int) (int .Values.autoscaling.liveReplicas)) "isScaled" $isScaled | toJson -}}
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
{{- /* Another number would be a conflict with the autoscaler under server-side apply; it keeps minReplicas by itself. */ -}}
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
{{- /* The cluster is asked for autoscalers only where it matters: not everybody may read them. */ -}}
{{- if and (gt (int $live.replicas) (int .Values.replicas)) (include "tidewire.hasAutoscaler" .) -}}
{{- fail (printf "replicas (%d) is below the %d pods that run, and the autoscaler is turned off: Kubernetes would end %d of them at once; set replicas to %d, and lower it later in steps" (int .Values.replicas) (int $live.replicas) (sub (int $live.replicas) (int .Values.replicas)) (int $live.replicas)) -}}
{{- end -}}
{{- else -}}
{{- /* While an autoscaler is at work, a lower maximum is meant. */ -}}
{{- if and (gt (int $live.replicas) (int $scaler.maxReplicas)) (not (include "tidewire.hasAutoscaler" .)) -}}
{{- fail (printf "autoscaling.%s.maxReplicas (%d) is below the %d pods that run: the autoscaler would end %d of them at once; set it to %d or more, and lower it later in steps" $scaler.name (int $scaler.maxReplicas) (int $live.replicas) (sub (int $live.replicas) (int $scaler.maxReplicas)) (int $live.replicas)) -}}
{{- end -}}
{{- if eq $scaler.name "keda" -}}
{{- $hpa := lookup "autoscaling/v2" "HorizontalPodAutoscaler" (include "tidewire.namespace" .) $name | default dict -}}
{{- if and $hpa (ne (dig "metadata" "annotations" "validations.keda.sh/hpa-ownership" "" $hpa) "false") -}}
{{- fail (printf "autoscaling.keda: an older chart made the HorizontalPodAutoscaler %s, and KEDA's admission webhook refuses a second autoscaler of the same pods: upgrade once more with autoscaling.hpa.enabled, then switch to autoscaling.keda.enabled" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" if the cluster has an autoscaler for the Deployment, the chart's own or KEDA's. */}}
{{- define "tidewire.hasAutoscaler" -}}
{{- $name := include "tidewire.fullname" . -}}
{{- range $hpa := list $name (printf "keda-hpa-%s" $name) -}}
{{- if lookup "autoscaling/v2" "HorizontalPodAutoscaler" (include "tidewire.namespace" $) $hpa }}true{{ end -}}
{{- end -}}
{{- end -}}
