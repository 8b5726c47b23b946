// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"

	"go.uber.org/goleak"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// TestMain checks that no goroutine stays. The client library's error handlers hold a time of the
// real clock, on which a goroutine of a bubble would wait for years.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}
