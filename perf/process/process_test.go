// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"testing"
	"time"
)

// TestProcess reads this
func TestProcess(t *testing.T) {
	started, err := Started(os.Getpid())
	if err != nil || time.Since(started) < 0 || time.Since(started) > time.Hour {
		t.Errorf("started %s, %v", started, err)
	}
	if _, err := Time(os.Getpid()); err != nil {
		t.Error(err)
	}
	if n, err := MappedMaps(os.Getpid()); err != nil || n != 0 {
		t.Errorf("%v bytes of BPF maps, %v", n, err)
	}
	if _, _, err := Maps(os.Getpid()); err == nil {
		t.Error("this process has BPF maps open")
	}
	if n, err := StatusField("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS"); err != nil || n != 12288 {
		t.Errorf("%v, %v", n, err)
	}
	if _, err := StatusField("Name:\tx\n", "VmRSS"); err == nil {
		t.Error("a field that is not there was read")
	}
}
