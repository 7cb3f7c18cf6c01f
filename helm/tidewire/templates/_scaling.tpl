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

{{/* The annotation of the Deployment that names its autoscaler: not every account that upgrades may read autoscalers. */}}
{{- define "tidewire.autoscalerNote" -}}tidewire/autoscaler{{- end -}}

{{/*
What is known of the live Deployment, as a JSON object: `replicas`, `isScaled` if somebody set them through the subresource `scale`, as
autoscalers and `kubectl scale` do, and `autoscaler`: hpa, keda or none, empty where an older chart made it. A render that cannot see
the cluster knows autoscaling.liveReplicas alone.
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
Pods of the release's Deployment of another name or namespace, which ends with this upgrade: nameOverride, fullnameOverride or
namespaceOverride has changed. In a parent there may be others of this chart, so that only one with the same label counts.
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
{{- /* A Deployment that had no autoscaler, or KEDA's, leaves nothing to hand over. */ -}}
{{- if and (eq $scaler.name "keda") $live.isThere (has $live.autoscaler (list "" "hpa")) -}}
{{- $hpa := lookup "autoscaling/v2" "HorizontalPodAutoscaler" (include "tidewire.namespace" .) $name | default dict -}}
{{- if and $hpa (ne (dig "metadata" "annotations" "validations.keda.sh/hpa-ownership" "" $hpa) "false") -}}
{{- fail (printf "autoscaling.keda: an older chart made the HorizontalPodAutoscaler %s, and KEDA's admission webhook refuses a second autoscaler of the same pods: upgrade once more with autoscaling.hpa.enabled, then switch to autoscaling.keda.enabled" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
"true" if there is an autoscaler for the Deployment: the chart's own or KEDA's, or one that `kubectl autoscale` made. The cluster is
asked for it only where the Deployment does not say, or where somebody has scaled it.
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
