// SPDX-License-Identifier: Apache-2.0

package install

import (
	"regexp"
	"strings"

	"lash.internal/lash/agent/config"
)

// valueOf names the value that an option gets its own from, where a single one decides.
var valueOf = map[string]string{
	"kube-proxy-replacement": "kubeProxyReplacement", "routing-mode": "routingMode", "bpf-lb-sock": "socketLB.enabled",
	"enable-node-port": "nodePort.enabled", "enable-external-ips": "externalIPs.enabled", "enable-host-port": "hostPort.enabled",
	"node-port-range": "nodePort.range", "nodeport-addresses": "nodePort.addresses", "bpf-lb-mode": "loadBalancer.mode",
	"bpf-lb-algorithm": "loadBalancer.algorithm", "bpf-lb-acceleration": "loadBalancer.acceleration", "bpf-lb-dsr-dispatch": "loadBalancer.dsrDispatch",
	"bpf-lb-maglev-table-size": "maglev.tableSize", "bpf-lb-maglev-hash-seed": "maglev.hashSeed",
	"kube-proxy-replacement-healthz-bind-address": "kubeProxyReplacementHealthzBindAddr", "k8s-api-server-urls": "k8s.apiServerURLs",
}

var optionWord = regexp.MustCompile(`[a-z0-9]+(-[a-z0-9]+)+`)

// judge finds what the agents would not accept in the configuration that the values make.
func judge(manifest string) error {
	objects, err := objectsOf(manifest)
	if err != nil {
		return err
	}
	for name, o := range objects {
		if !strings.HasPrefix(name, "ConfigMap ") || !strings.HasSuffix(name, "/"+ConfigMap) {
			continue
		}
		options := map[string]string{}
		data, _ := o.at("data").(map[string]any)
		for k, v := range data {
			options[k], _ = v.(string)
		}
		if err := config.Check(options); err != nil {
			return &OptionError{inValues(err)}
		}
	}
	return nil
}

// inValues says the same as err in the words of those who write values.
func inValues(err error) error {
	text := optionWord.ReplaceAllStringFunc(err.Error(), func(w string) string {
		if v := valueOf[w]; v != "" {
			return v
		}
		return w
	})
	return badOption("%s", strings.NewReplacer(" (cilium-config)", "", "option ", "value ", "options ", "values ").Replace(text))
}
