// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain checks that no goroutine stays.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
