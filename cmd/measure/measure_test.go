// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"lash.internal/lash/perf/netperf"
)

// TestPerf runs server and client as a bench does: the server says where it listens, the client
// prints one result.
func TestPerf(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		ended := make(chan int, 1)
		go func() {
			ended <- Main(ctx, []string{"server", "--listen", host, "--cpu", "0", "-o", "json"}, w, io.Discard)
			w.Close()
		}()
		line, err := bufio.NewReader(r).ReadBytes('\n')
		if err != nil {
			cancel()
			if code := <-ended; code != 0 && strings.Contains(host, "::1") {
				t.Skip("this machine has no IPv6 loopback")
			}
			t.Fatal(err)
		}
		var ready ready
		if err := json.Unmarshal(line, &ready); err != nil || !ready.Ready {
			t.Fatalf("%s: %v", line, err)
		}
		var out, errOut bytes.Buffer
		run := func(args ...string) int {
			out.Reset()
			return Main(ctx, append([]string{"client", ready.Listen, "-l", "1s"}, args...), &out, &errOut)
		}
		if code := run("-t", "tcp_rr", "--cpu", "0", "-o", "json"); code != 0 {
			t.Fatalf("client: code %d: %s", code, errOut.String())
		}
		var res netperf.Result
		if err := json.Unmarshal(out.Bytes(), &res); err != nil || res.Test != netperf.TCPRR || res.Transactions == 0 || res.Latency == nil {
			t.Errorf("%v: %s", err, out.String())
		}
		if code := run("-t", "TCP_CRR", "--streams", "2", "-o", "json"); code != 0 {
			t.Fatalf("two streams: code %d: %s", code, errOut.String())
		}
		res = netperf.Result{}
		if err := json.Unmarshal(out.Bytes(), &res); err != nil || res.Streams != 2 || res.Latency == nil || res.Latency.Count != res.Transactions || res.Histogram == "" {
			t.Errorf("%v: %s", err, out.String())
		}
		if code := run("-t", "UDP_RR", "--count", "100", "--selectors", "rt_latency,THROUGHPUT_UNITS", "--netperf-format", "keyval"); code != 0 || !strings.Contains(out.String(), "\nTHROUGHPUT_UNITS=Trans/s\n") {
			t.Errorf("code %d:\n%s%s", code, out.String(), errOut.String())
		}
		if code := run("-t", "TCP_STREAM"); code != 0 || !strings.Contains(out.String(), "Mbit/s") {
			t.Errorf("code %d:\n%s%s", code, out.String(), errOut.String())
		}
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("server: code %d", code)
		}
	}
}

func TestPerfMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"client":                        "accepts 1 arg",
		"client no.where.invalid":       "no.where.invalid",
		"client 1::2::3":                "use a name or an IP address",
		"client 127.0.0.1:0":            `port "0": use 1 to 65535`,
		"client ::1 -t RR":              `unknown test "RR": use one of TCP_RR`,
		"client ::1 --selectors x":      `unknown output selector "x"`,
		"client ::1 --connect-port 0":   "use 1 to 65535",
		"client ::1 --streams 99":       "99 streams: use 1 to 16",
		"client ::1 --rate -1":          "rate -1",
		"client ::1 --netperf-format x": "want csv, keyval or columns",
		"client 127.0.0.1 -l 1500ms":    "whole seconds",
		"server -o yaml":                "want text or json",
		"server --listen 192.0.2.1:1":   "192.0.2.1:1",
		"server --cpu x":                "--cpu",
		"client 127.0.0.1:1 -l 1s":      "connection refused",
		"client 127.0.0.1:1 -ox":        `invalid output "x"`,
	} {
		var errOut bytes.Buffer
		code := Main(t.Context(), strings.Fields(args), io.Discard, &errOut)
		if code != 1 || !strings.Contains(errOut.String(), want) {
			t.Errorf("%s: code %d, %q; want %q", args, code, errOut.String(), want)
		}
	}
}
