// SPDX-License-Identifier: Apache-2.0

//go:build tools

package suite

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
