// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const serverUsage = `usage: netserver [flags]

  -4, -6       serve IPv4 or IPv6 only
  -D, -f, -N   in the foreground, one process, no debugging file: it is never otherwise
  -L ADDRESS   address to listen on, for control and for data
  -p PORT      port of the control connection (12865)
  -Z PHRASE    what clients have to send first
  -v LEVEL     0: say nothing of sessions that fail
  -h           this help
  -V           the version of the protocol
`

// ServerCommand is netserver with its own flags.
func ServerCommand(ctx context.Context, args []string, out, errOut io.Writer) error {
	s := Server{Log: slog.New(slog.NewTextHandler(errOut, nil))}
	opts, rest, err := getopt(args, "DdfhL:n:Np:v:VZ:46")
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("unexpected %q: netserver takes flags only", rest[0])
	}
	host, port := "", strconv.Itoa(DefaultPort)
	for _, o := range opts {
		switch o.name {
		case 'D', 'f', 'N': // one process serves all, in the foreground, and writes no file
		case '4', '6':
			s.Network = "tcp" + string(o.name)
		case 'L':
			if h, _, both := strings.Cut(o.value, ","); both {
				o.value = h
			}
			host = o.value
		case 'p':
			if n, err := strconv.ParseUint(o.value, 10, 16); err != nil || n == 0 {
				return fmt.Errorf("-p %q: use a port from 1 to 65535", o.value)
			}
			port = o.value
		case 'v':
			if o.value == "0" {
				s.Log = nil
			}
		case 'Z':
			s.Passphrase = o.value
		case 'h':
			_, err := io.WriteString(out, serverUsage)
			return err
		case 'V':
			_, err := fmt.Fprintln(out, "netserver of Lash, speaks the protocol of netperf 2.7")
			return err
		default:
			return refusal(o.name, "netserver -h lists the flags")
		}
	}
	s.Listen = net.JoinHostPort(host, port)
	return s.Run(ctx, func(a net.Addr) {
		fmt.Fprintf(out, "Starting netserver on %s\n", a)
	})
}

const clientUsage = `usage: netperf [flags] -- [flags of the test]

  -4, -6             over IPv4 or IPv6 only
  -H HOST            server (localhost)
  -p PORT            port of its control connection (12865)
  -t TEST            %s
  -l LENGTH          seconds, or minus a number of transactions or bytes (10)
  -P 0               without banner and headings
  -c, -C             with processor use here and there
  -T HERE,THERE      processors to bind to
  -L ADDRESS         address to send from
  -i MAX[,MIN]       repeat until the interval of -I is reached
  -I LEVEL[,WIDTH]   95 or 99 percent, width in percent of the mean
  -B TEXT            RESULT_BRAND
  -Z PHRASE          what the server wants first
  -h                 this help

flags of the test:

  -P HERE,THERE      data ports; the first is ignored by TCP_CRR, as netperf does
  -r REQUEST[,RESPONSE]  bytes of a transaction
  -m, -M BYTES       of a call that sends, that receives
  -s, -S BYTES[,BYTES]   socket buffers here, there
  -p MIN,MAX         local ports of TCP_CRR
  -D                 TCP_NODELAY
  -K NAME            congestion control
  -o, -k, -O [LIST]  output selectors as CSV, NAME=value or columns; ? lists them
`

// netperfOptions is a parsed command line.
type netperfOptions struct {
	o          Options
	host       string
	port       string
	family     string // "ip", "ip4", "ip6"
	quiet      bool
	cpu        bool
	selection  Selection
	form       Form
	confidence Confidence
	brand      string
}

// ClientCommand is netperf with its own flags.
func ClientCommand(ctx context.Context, args []string, out, errOut io.Writer) error {
	n, err := parseNetperf(args, out)
	if errors.Is(err, errHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if n.o.Server, err = ResolveServer(ctx, n.family, n.host, n.port); err != nil {
		return err
	}
	if !n.quiet {
		fmt.Fprintf(out, "%s TEST to %s port %s\n", n.o.Test, n.o.Server.Addr(), n.port)
	}
	outcome := Outcome{Confidence: n.confidence, Brand: n.brand, CommandLine: "netperf " + strings.Join(args, " ")}
	var rates, seconds []float64
	for {
		if outcome.Result, err = Measure(ctx, n.o); err != nil {
			return err
		}
		rate := outcome.Throughput
		if n.o.Test.Transactions() {
			rate = outcome.Rate
		}
		rates, seconds = append(rates, rate), append(seconds, outcome.Seconds)
		if outcome.Confidence.done(rates) {
			break
		}
	}
	outcome.MeanThroughput, outcome.MeanSeconds = meanOf(rates), meanOf(seconds)
	if c := outcome.Confidence; c.Level > 0 && c.Reached > 100*c.Width {
		fmt.Fprintf(errOut, "warning: the %d %% interval is %.1f %% wide after %d iterations, not the %.1f %% asked for\n", c.Level, c.Reached, c.Iterations, 100*c.Width)
	}
	if sum := total(outcome.Errors); sum > 0 {
		fmt.Fprintf(errOut, "warning: %d connections failed: %v\n", sum, outcome.Errors)
	}
	return n.selection.Write(out, n.form, !n.quiet, &outcome)
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func parseNetperf(args []string, out io.Writer) (*netperfOptions, error) {
	n := &netperfOptions{
		host: "localhost", port: strconv.Itoa(DefaultPort), family: "ip", form: Columns, confidence: single(),
		o: Options{Test: TCPStream, Length: 10 * time.Second, CPU: -1, ServerCPU: -1},
	}
	opts, rest, err := getopt(args, "A:a:b:B:CcdD::f:F:H:hi:I:jk:K:l:L:n:NO:o:P:p:rSs:t:T:v:VW:w:y:Y:Z:46")
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		if err := n.global(o, out); err != nil {
			return nil, err
		}
	}
	opts, rest, err = getopt(rest, "aAb:BcCd:De:FgGhH:Ij:k::K:l:L:m:M:nNo::O::p:P:q:r:R:s:S:t:T:u:UVw:W:46")
	if err != nil {
		return nil, fmt.Errorf("flags of the test: %w", err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("unexpected %q: netperf takes flags only", rest[0])
	}
	for _, o := range opts {
		if err := n.test(o, out); err != nil {
			return nil, err
		}
	}
	if n.selection == nil {
		n.selection = DefaultSelection(n.o.Test, n.cpu)
	}
	return n, nil
}

// global takes a flag before the "--".
func (n *netperfOptions) global(o option, out io.Writer) (err error) {
	switch o.name {
	case '4', '6':
		n.family = "ip" + string(o.name)
	case 'H':
		n.host, _, _ = strings.Cut(o.value, ",")
	case 'p':
		n.port, _, _ = strings.Cut(o.value, ",")
	case 't':
		n.o.Test, err = ParseTest(o.value)
	case 'l':
		v, perr := strconv.Atoi(o.value)
		switch {
		case perr != nil || v == 0:
			return fmt.Errorf("-l %q: use seconds, or minus a number of transactions or bytes", o.value)
		case v < 0:
			n.o.Count = -v
		default:
			n.o.Length = time.Duration(v) * time.Second
		}
	case 'P':
		n.quiet = o.value == "0"
	case 'c', 'C':
		n.cpu = true
	case 'T':
		here, there, both := strings.Cut(o.value, ",")
		if !both {
			there = here
		}
		if n.o.CPU, err = processor(here); err == nil {
			n.o.ServerCPU, err = processor(there)
		}
	case 'L':
		here, _, _ := strings.Cut(o.value, ",")
		if n.o.Local, err = netip.ParseAddr(here); err != nil {
			return fmt.Errorf("-L %q: use an IP address: %w", o.value, err)
		}
	case 'i':
		err = n.confidence.setIterations(o.value)
	case 'I':
		err = n.confidence.setInterval(o.value)
	case 'B':
		n.brand = o.value
	case 'Z':
		n.o.Passphrase = o.value
	case 'r', 'j': // confidence in the result alone, statistics of the latencies: it is never otherwise
	case 'v':
		if o.value != "1" {
			return refusal('v', "there is one level, 1")
		}
	case 'D':
		return refusal('D', "there are no interim results")
	case 'f':
		if o.value != "m" && o.value != "x" {
			return refusal('f', "throughput is in 10^6 bits a second")
		}
	case 'h':
		fmt.Fprintf(out, clientUsage, TestNames())
		return errHelp
	case 'V':
		fmt.Fprintln(out, "netperf of Lash, speaks the protocol of netperf 2.7")
		return errHelp
	case 'N':
		return refusal('N', "there is no test without a control connection")
	case 'F':
		return refusal('F', "what is sent is zeros, no file is read")
	default:
		return refusal(o.name, "netperf -h lists the flags")
	}
	return err
}

func processor(text string) (int, error) {
	if text == "" {
		return -1, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < -1 {
		return 0, fmt.Errorf("-T %q: use numbers of processors", text)
	}
	return n, nil
}

// test takes a flag behind the "--".
func (n *netperfOptions) test(o option, out io.Writer) (err error) {
	switch o.name {
	case '4', '6':
		n.family = "ip" + string(o.name)
	case 'P':
		here, there, both := strings.Cut(o.value, ",")
		if !both {
			there = here
		}
		if there != "" {
			var p uint64
			if p, err = strconv.ParseUint(there, 10, 16); err != nil {
				return fmt.Errorf("-P %q: use a port from 0 to 65535: %w", o.value, err)
			}
			n.o.DataPort = uint16(p)
		}
	case 'r':
		n.o.RequestSize, n.o.ResponseSize, err = pair(o, 1)
	case 'm':
		n.o.SendSize, _, err = pair(o, 1)
	case 'M':
		n.o.RecvSize, _, err = pair(o, 1)
	case 's':
		n.o.SendBuffer, n.o.RecvBuffer, err = pair(o, 0)
	case 'S':
		n.o.ServerSendBuffer, n.o.ServerRecvBuffer, err = pair(o, 0)
	case 'p':
		var low, high int
		low, high, err = pair(o, 1)
		if err == nil && high > 65535 {
			err = fmt.Errorf("-p %q: ports end at 65535", o.value)
		}
		n.o.FirstPort, n.o.LastPort = uint16(low), uint16(high)
	case 'D':
		n.o.NoDelay = true
	case 'K':
		n.o.Congestion, _, _ = strings.Cut(o.value, ",")
	case 'j': // nor does netperf use it
	case 'R':
		if o.value != "1" {
			return refusal('R', "packets may always be routed")
		}
	case 'o', 'k', 'O':
		n.form = Form(o.name)
		switch o.value {
		case "":
		case "?":
			fmt.Fprintln(out, strings.Join(SelectorNames(), "\n"))
			return errHelp
		default:
			n.selection, err = ParseSelection(o.value)
		}
	case 'h':
		fmt.Fprintf(out, clientUsage, TestNames())
		return errHelp
	default:
		return refusal(o.name, "netperf -h lists the flags")
	}
	return err
}

// pair reads "N" or "N,M"; one number stands for both.
func pair(o option, least int) (a, b int, err error) {
	first, second, both := strings.Cut(o.value, ",")
	if a, err = strconv.Atoi(first); err == nil {
		b = a
		if both {
			b, err = strconv.Atoi(second)
		}
	}
	if err != nil || a < least || b < least {
		return 0, 0, fmt.Errorf("-%c %q: use one or two numbers of at least %d", o.name, o.value, least)
	}
	return a, b, nil
}

// ResolveServer finds the address of a server by its name. family is "ip", "ip4" or "ip6".
func ResolveServer(ctx context.Context, family, host, port string) (netip.AddrPort, error) {
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return netip.AddrPort{}, fmt.Errorf("port %q: use 1 to 65535", port)
	}
	host = strings.Trim(host, "[]")
	if a, err := netip.ParseAddr(host); err == nil {
		if family == "ip4" && !a.Unmap().Is4() || family == "ip6" && a.Unmap().Is4() {
			return netip.AddrPort{}, fmt.Errorf("server %s is not of the family that was asked for", host)
		}
		return netip.AddrPortFrom(a, uint16(p)), nil
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("server %q: %w", host, err)
	}
	if len(all) == 0 {
		return netip.AddrPort{}, fmt.Errorf("server %q has no address", host)
	}
	return netip.AddrPortFrom(all[0].Unmap(), uint16(p)), nil
}
