// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
)

// ErrFailed says that a probe failed; its result has been written.
var ErrFailed = errors.New("the probe failed")

// Ready is the line that the echo command writes when it listens.
type Ready struct {
	Ready bool `json:"ready"`
	// Addresses are those of the host, without loopback and link-local ones.
	Addresses []string `json:"addresses"`
}

// parse reads flags. helped says that they were shown instead, as was asked for.
func parse(fs *flag.FlagSet, args []string) (helped bool, err error) {
	err = fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return true, nil
	}
	return false, err
}

// EchoCommand is the command line "echo [--http PORT] [--tcp PORT] [--udp PORT]". It writes one
// line of JSON, a Ready, and serves until ctx ends.
func EchoCommand(ctx context.Context, args []string, out, errOut io.Writer) error {
	fs := flag.NewFlagSet("echo", flag.ContinueOnError)
	fs.SetOutput(errOut)
	httpPort := fs.Uint("http", 0, "port of the HTTP server (/, /ip, /size?n=BYTES)")
	tcpPort := fs.Uint("tcp", 0, "port of the TCP echo")
	udpPort := fs.Uint("udp", 0, "port of the UDP echo")
	bind := fs.String("bind", "", "address to listen on (default: all)")
	host := fs.String("host", "", "name to answer with (default: the host name)")
	if helped, err := parse(fs, args); helped || err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("echo takes no argument %q", fs.Arg(0))
	}
	for _, p := range []uint{*httpPort, *tcpPort, *udpPort} {
		if p > math.MaxUint16 {
			return fmt.Errorf("%d is not a port", p)
		}
	}
	s := Server{HTTP: uint16(*httpPort), TCP: uint16(*tcpPort), UDP: uint16(*udpPort), Bind: *bind, Host: *host}
	return s.Run(ctx, func() {
		_ = json.NewEncoder(out).Encode(Ready{Ready: true, Addresses: hostAddrs()})
	})
}

func hostAddrs() []string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr().String())
		}
	}
	return out
}

// ProbeCommand is the command line "probe [flags] PROTO TARGET" and "probe --batch".
func ProbeCommand(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	fs := flag.NewFlagSet("probe", flag.ContinueOnError)
	fs.SetOutput(errOut)
	var p Probe
	batch := fs.Bool("batch", false, "read probes as JSON from standard input, answer each with a line of JSON")
	parallel := fs.Int("parallel", 64, "probes of a batch at a time")
	fs.IntVar(&p.Size, "size", 0, "payload in bytes")
	fs.BoolVar(&p.FromMTU, "from-mtu", false, "add --size to the MTU of the route")
	fs.BoolVar(&p.DontFragment, "dont-fragment", false, "udp, icmp: forbid fragments")
	fs.IntVar(&p.Count, "count", 1, "number of exchanges")
	fs.IntVar(&p.IntervalMillis, "interval-ms", 0, "time between exchanges")
	fs.IntVar(&p.TimeoutMillis, "timeout-ms", int(DefaultTimeout.Milliseconds()), "time for one exchange")
	fs.StringVar(&p.Server, "server", "", "dns: host:port of the name server (default: the first of /etc/resolv.conf)")
	fs.StringVar(&p.Network, "network", "udp", "dns: udp or tcp")
	fs.StringVar(&p.Type, "type", "A", "dns: A or AAAA")
	fs.Usage = func() {
		fmt.Fprintln(errOut, "Usage: probe [flags] tcp|udp|icmp|http|dns|mtu|route TARGET\n       probe --batch < probes.json")
		fs.PrintDefaults()
	}
	if helped, err := parse(fs, args); helped || err != nil {
		return err
	}
	if *batch {
		if fs.NArg() > 0 {
			return fmt.Errorf("probe --batch takes no argument %q", fs.Arg(0))
		}
		return Batch(ctx, in, out, *parallel)
	}
	if fs.NArg() != 2 {
		fs.Usage()
		return errors.New("probe needs a protocol and a target")
	}
	p.Proto, p.Target = Proto(fs.Arg(0)), fs.Arg(1)
	res := Run(ctx, p)
	if err := json.NewEncoder(out).Encode(res); err != nil {
		return err
	}
	if !res.OK {
		return ErrFailed
	}
	return nil
}
