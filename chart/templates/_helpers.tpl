{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* Labels of every object. */ -}}
{{- define "lash.labels" -}}
app.kubernetes.io/part-of: cilium
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Reference of the one image. */ -}}
{{- define "lash.image" -}}
{{- with .Values.image -}}
{{- if .override -}}
{{ .override }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.Version }}
{{- if and .useDigest .digest }}@{{ .digest }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* "true" or "false" from a boolean or its text; Helm's schema has checked that it is one. */ -}}
{{- define "lash.kubeProxyReplacement" -}}
{{ .Values.kubeProxyReplacement | default false | toString }}
{{- end -}}

{{- /* A list, or a text with one or more words, as words. */ -}}
{{- define "lash.words" -}}
{{- if kindIs "slice" . -}}{{ join " " . }}{{- else -}}{{ . | default "" | toString }}{{- end -}}
{{- end -}}

{{- /* Where the API server is, for pods that cannot rely on Services. */ -}}
{{- define "lash.apiServerEnv" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | toString | quote }}
{{- end }}
{{- if .Values.k8sServicePort }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | toString | quote }}
{{- end }}
{{- end -}}

{{- /* The parts that all privileged-looking containers share: root without any capability. */ -}}
{{- define "lash.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* The data of cilium-config as a dictionary; extraConfig wins. */ -}}
{{- define "lash.config" -}}
{{- $v := .Values -}}
{{- $c := dict -}}
{{- $kpr := include "lash.kubeProxyReplacement" . -}}
{{- $_ := set $c "cluster-name" $v.cluster.name -}}
{{- $_ := set $c "cluster-id" $v.cluster.id -}}
{{- $_ := set $c "compatibility-level" ($v.compatibility.level | default .Chart.AppVersion) -}}
{{- $_ := set $c "enable-ipv4" $v.ipv4.enabled -}}
{{- $_ := set $c "enable-ipv6" $v.ipv6.enabled -}}
{{- $_ := set $c "ipam" $v.ipam.mode -}}
{{- if eq $v.ipam.mode "cluster-pool" -}}
{{- if $v.ipv4.enabled -}}
{{- $_ := set $c "cluster-pool-ipv4-cidr" (include "lash.words" $v.ipam.operator.clusterPoolIPv4PodCIDRList) -}}
{{- $_ := set $c "cluster-pool-ipv4-mask-size" $v.ipam.operator.clusterPoolIPv4MaskSize -}}
{{- end -}}
{{- if $v.ipv6.enabled -}}
{{- $_ := set $c "cluster-pool-ipv6-cidr" (include "lash.words" $v.ipam.operator.clusterPoolIPv6PodCIDRList) -}}
{{- $_ := set $c "cluster-pool-ipv6-mask-size" $v.ipam.operator.clusterPoolIPv6MaskSize -}}
{{- end -}}
{{- end -}}
{{- $_ := set $c "routing-mode" ($v.routingMode | default "tunnel") -}}
{{- if eq $v.routingMode "native" -}}
{{- $_ := set $c "auto-direct-node-routes" $v.autoDirectNodeRoutes -}}
{{- else -}}
{{- $_ := set $c "tunnel-protocol" ($v.tunnelProtocol | default "vxlan") -}}
{{- $_ := set $c "tunnel-port" ($v.tunnelPort | default 8472) -}}
{{- end -}}
{{- with (include "lash.words" $v.k8s.apiServerURLs) -}}{{- $_ := set $c "k8s-api-server-urls" . -}}{{- end -}}
{{- $_ := set $c "kube-proxy-replacement" $kpr -}}
{{- $_ := set $c "bpf-lb-sock" (or $v.socketLB.enabled (eq $kpr "true")) -}}
{{- $_ := set $c "bpf-lb-sock-hostns-only" $v.socketLB.hostNamespaceOnly -}}
{{- /* These come with kubeProxyReplacement; without it the agents say what is wrong. */ -}}
{{- if $v.nodePort.enabled -}}{{- $_ := set $c "enable-node-port" true -}}{{- end -}}
{{- if $v.hostPort.enabled -}}{{- $_ := set $c "enable-host-port" true -}}{{- end -}}
{{- if $v.externalIPs.enabled -}}{{- $_ := set $c "enable-external-ips" true -}}{{- end -}}
{{- $_ := set $c "bpf-lb-mode" $v.loadBalancer.mode -}}
{{- $_ := set $c "bpf-lb-algorithm" $v.loadBalancer.algorithm -}}
{{- $_ := set $c "bpf-lb-acceleration" $v.loadBalancer.acceleration -}}
{{- with $v.loadBalancer.dsrDispatch -}}{{- $_ := set $c "bpf-lb-dsr-dispatch" . -}}{{- end -}}
{{- with (include "lash.words" $v.nodePort.addresses) -}}{{- $_ := set $c "nodeport-addresses" . -}}{{- end -}}
{{- if eq $kpr "true" -}}
{{- $_ := set $c "node-port-range" (include "lash.words" $v.nodePort.range | replace " " ",") -}}
{{- $_ := set $c "node-port-bind-protection" $v.nodePort.bindProtection -}}
{{- $_ := set $c "enable-auto-protect-node-port-range" $v.nodePort.autoProtectPortRange -}}
{{- $_ := set $c "enable-health-check-nodeport" $v.nodePort.enableHealthCheck -}}
{{- $_ := set $c "enable-svc-source-range-check" $v.svcSourceRangeCheck -}}
{{- $_ := set $c "kube-proxy-replacement-healthz-bind-address" $v.kubeProxyReplacementHealthzBindAddr -}}
{{- if eq $v.loadBalancer.algorithm "maglev" -}}
{{- $_ := set $c "bpf-lb-maglev-table-size" $v.maglev.tableSize -}}
{{- with $v.maglev.hashSeed -}}{{- $_ := set $c "bpf-lb-maglev-hash-seed" . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $c "enable-ipv4-masquerade" $v.enableIPv4Masquerade -}}
{{- $_ := set $c "enable-ipv6-masquerade" $v.enableIPv6Masquerade -}}
{{- with $v.ipv4NativeRoutingCIDR -}}{{- $_ := set $c "ipv4-native-routing-cidr" . -}}{{- end -}}
{{- with $v.ipv6NativeRoutingCIDR -}}{{- $_ := set $c "ipv6-native-routing-cidr" . -}}{{- end -}}
{{- with (include "lash.words" $v.devices) -}}{{- $_ := set $c "devices" . -}}{{- end -}}
{{- $_ := set $c "mtu" $v.MTU -}}
{{- with $v.bpf.ctTcpMax -}}{{- $_ := set $c "bpf-ct-global-tcp-max" . -}}{{- end -}}
{{- $_ := set $c "cgroup-root" $v.cgroup.hostRoot -}}
{{- $_ := set $c "bpf-root" $v.bpf.root -}}
{{- $_ := set $c "force-cls-bpf" (eq ($v.bpf.enableTCX | toString) "false") -}}
{{- $_ := set $c "monitor-aggregation" $v.bpf.monitorAggregation -}}
{{- $_ := set $c "monitor-aggregation-interval" $v.bpf.monitorInterval -}}
{{- $_ := set $c "enable-policy" $v.policyEnforcementMode -}}
{{- $_ := set $c "identity-allocation-mode" "crd" -}}
{{- with $v.labels -}}{{- $_ := set $c "labels" . -}}{{- end -}}
{{- $_ := set $c "agent-health-port" $v.healthPort -}}
{{- $_ := set $c "enable-endpoint-health-checking" $v.endpointHealthChecking.enabled -}}
{{- if $v.prometheus.enabled -}}
{{- $_ := set $c "prometheus-serve-addr" (printf ":%v" $v.prometheus.port) -}}
{{- end -}}
{{- if $v.operator.prometheus.enabled -}}
{{- $_ := set $c "operator-prometheus-serve-addr" (printf ":%v" $v.operator.prometheus.port) -}}
{{- end -}}
{{- $_ := set $c "operator-api-serve-addr" "127.0.0.1:9234" -}}
{{- $_ := set $c "agent-not-ready-taint-key" $v.agentNotReadyTaintKey -}}
{{- $_ := set $c "remove-cilium-node-taints" $v.operator.removeNodeTaints -}}
{{- $_ := set $c "set-cilium-node-taints" ($v.operator.setNodeTaints | default false) -}}
{{- $_ := set $c "set-cilium-is-up-condition" $v.operator.setNodeNetworkStatus -}}
{{- $_ := set $c "unmanaged-pod-watcher-interval" (ternary $v.operator.unmanagedPodWatcher.intervalSeconds 0 $v.operator.unmanagedPodWatcher.restart) -}}
{{- $_ := set $c "write-cni-conf-when-ready" "/host/etc/cni/net.d/05-cilium.conflist" -}}
{{- $_ := set $c "cni-exclusive" $v.cni.exclusive -}}
{{- $_ := set $c "debug" $v.debug.enabled -}}
{{- with $v.logOptions.format -}}{{- $_ := set $c "log-opt" (printf `{"format":%q}` .) -}}{{- end -}}
{{- $_ := set $c "identity-gc-interval" $v.operator.identityGCInterval -}}
{{- $_ := set $c "cilium-endpoint-gc-interval" $v.operator.endpointGCInterval -}}
{{- range $k, $x := $v.extraConfig -}}{{- $_ := set $c $k $x -}}{{- end -}}
{{- range $k, $x := $c }}
{{ $k }}: {{ $x | toString | quote }}
{{- end }}
{{- end -}}
