// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package kube pins the Kubernetes and etcd programs of the local cluster. It holds no code:
// the imports keep `go mod tidy` from dropping the modules that the build below needs.
package kube

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
