// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Outcome is a result with what netperf's output selectors want to know beside it.
type Outcome struct {
	Result
	// Throughput, Rates and times are means over the iterations when there was more than one, while
	// latencies and TRANSACTION_RATE are those of the last: that is how netperf has them.
	MeanThroughput, MeanSeconds float64
	Confidence                  Confidence
	Brand                       string
	CommandLine                 string
}

// selector is one of netperf's output selectors: its heading, with | between the lines of a column, and
// its value.
type selector struct {
	name, heading string
	value         func(*Outcome) string
}

// throughputUnits are netperf's words for what THROUGHPUT counts.
func throughputUnits(t Test) string {
	if t.Transactions() {
		return "Trans/s"
	}
	return "10^6bits/s"
}

func megabits(bytes uint64, seconds float64) string {
	if seconds <= 0 {
		return "0.00"
	}
	return fmt.Sprintf("%.2f", float64(bytes)*8/1e6/seconds)
}

// latency is a selector of the distribution, in whole microseconds like netperf's.
func latency(name, heading string, of func(*Outcome) float64) selector {
	return selector{name, heading, func(o *Outcome) string {
		if o.Latency == nil {
			return "-1"
		}
		return fmt.Sprintf("%d", int(of(o)))
	}}
}

func number(name, heading string, of func(*Outcome) int) selector {
	return selector{name, heading, func(o *Outcome) string { return fmt.Sprintf("%d", of(o)) }}
}

func float(name, heading, format string, of func(*Outcome) float64) selector {
	return selector{name, heading, func(o *Outcome) string { return fmt.Sprintf(format, of(o)) }}
}

func text(name, heading string, of func(*Outcome) string) selector {
	return selector{name, heading, of}
}

// sent and received are bytes each way as a side saw them.
func (o *Outcome) sent() uint64 {
	if o.Test.Transactions() {
		return uint64(o.Transactions) * uint64(o.RequestSize)
	}
	if o.Test == TCPMaerts {
		return 0
	}
	return o.Sent
}

func (o *Outcome) received() uint64 {
	if o.Test.Transactions() {
		return uint64(o.Transactions) * uint64(o.ResponseSize)
	}
	if o.Test == TCPMaerts {
		return o.Bytes
	}
	return 0
}

func (o *Outcome) serverSent() uint64 {
	if o.Test == TCPMaerts {
		return o.Sent
	}
	return o.received()
}

func (o *Outcome) serverReceived() uint64 {
	if o.Test == TCPStream || o.Test == UDPStream {
		return o.Bytes
	}
	return o.sent()
}

// pick is one of three by the shape of the test: transactions, client sends, server sends.
func pick[T any](o *Outcome, rr, stream, maerts T) T {
	switch {
	case o.Test.Transactions():
		return rr
	case o.Test == TCPMaerts:
		return maerts
	}
	return stream
}

func familyOf(a netip.AddrPort) int {
	if a.Addr().Unmap().Is4() {
		return 2 // the kernel's number, as netperf prints it
	}
	return 10
}

// selectors are those of performance tools' use, by netperf's names, headings and formats.
var selectors = slices.Concat(latencySelectors, rateSelectors, processorSelectors, sizeSelectors, addressSelectors)

var latencySelectors = []selector{
	{"RT_LATENCY", "Round|Trip|Latency|usec/tran", func(o *Outcome) string {
		if !o.Test.Transactions() {
			return "-1.000"
		}
		return fmt.Sprintf("%.3f", o.RTLatency)
	}},
	latency("MIN_LATENCY", "Minimum|Latency|Microseconds", func(o *Outcome) float64 { return o.Latency.Min }),
	latency("MAX_LATENCY", "Maximum|Latency|Microseconds", func(o *Outcome) float64 { return o.Latency.Max }),
	latency("P50_LATENCY", "50th|Percentile|Latency|Microseconds", func(o *Outcome) float64 { return o.Latency.P50 }),
	latency("P90_LATENCY", "90th|Percentile|Latency|Microseconds", func(o *Outcome) float64 { return o.Latency.P90 }),
	latency("P99_LATENCY", "99th|Percentile|Latency|Microseconds", func(o *Outcome) float64 { return o.Latency.P99 }),
	{"MEAN_LATENCY", "Mean|Latency|Microseconds", func(o *Outcome) string {
		if o.Latency == nil {
			return "-1.00"
		}
		return fmt.Sprintf("%.2f", o.Latency.Mean)
	}},
	{"STDDEV_LATENCY", "Stddev|Latency|Microseconds", func(o *Outcome) string {
		if o.Latency == nil {
			return "-1.00"
		}
		return fmt.Sprintf("%.2f", o.Latency.StdDev)
	}},
}

var rateSelectors = []selector{
	float("TRANSACTION_RATE", "Transaction|Rate|Tran/s", "%.3f", func(o *Outcome) float64 {
		if !o.Test.Transactions() {
			return 1 // netperf's word for none
		}
		return o.Rate
	}),
	float("THROUGHPUT", "Throughput", "%.2f", func(o *Outcome) float64 { return o.MeanThroughput }),
	text("THROUGHPUT_UNITS", "Throughput|Units", func(o *Outcome) string { return throughputUnits(o.Test) }),
	float("ELAPSED_TIME", "Elapsed|Time|(sec)", "%.2f", func(o *Outcome) float64 { return o.MeanSeconds }),
	number("CONFIDENCE_LEVEL", "Confidence|Level|Percent", func(o *Outcome) int { return o.Confidence.Level }),
	float("CONFIDENCE_INTERVAL", "Confidence|Width|Target", "%f", func(o *Outcome) float64 { return o.Confidence.Width }),
	number("CONFIDENCE_ITERATION", "Confidence|Iterations|Run", func(o *Outcome) int { return o.Confidence.Iterations }),
	float("THROUGHPUT_CONFID", "Throughput|Confidence|Width (%)", "%.3f", func(o *Outcome) float64 { return o.Confidence.Reached }),
	text("LOCAL_SEND_THROUGHPUT", "Local|Send|Throughput", func(o *Outcome) string { return megabits(o.sent(), o.Seconds) }),
	text("LOCAL_RECV_THROUGHPUT", "Local|Recv|Throughput", func(o *Outcome) string { return megabits(o.received(), o.Seconds) }),
	text("REMOTE_SEND_THROUGHPUT", "Remote|Send|Throughput", func(o *Outcome) string { return megabits(o.serverSent(), o.Seconds) }),
	text("REMOTE_RECV_THROUGHPUT", "Remote|Recv|Throughput", func(o *Outcome) string { return megabits(o.serverReceived(), o.Seconds) }),
}

var processorSelectors = []selector{
	float("LOCAL_CPU_UTIL", "Local|CPU|Util|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.Busy }),
	float("LOCAL_CPU_PERCENT_USER", "Local|CPU|User|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.User }),
	float("LOCAL_CPU_PERCENT_SYSTEM", "Local|CPU|System|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.System }),
	float("LOCAL_CPU_PERCENT_IOWAIT", "Local|CPU|I/O|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.IOWait }),
	float("LOCAL_CPU_PERCENT_IRQ", "Local|CPU|IRQ|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.IRQ }),
	float("LOCAL_CPU_PERCENT_SWINTR", "Local|CPU|swintr|%", "%.2f", func(o *Outcome) float64 { return o.LocalCPU.SoftIRQ }),
	text("LOCAL_CPU_METHOD", "Local|CPU|Util|Method", func(*Outcome) string { return "S" }),
	float("REMOTE_CPU_UTIL", "Remote|CPU|Util|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.Busy }),
	float("REMOTE_CPU_PERCENT_USER", "Remote|CPU|User|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.User }),
	float("REMOTE_CPU_PERCENT_SYSTEM", "Remote|CPU|System|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.System }),
	float("REMOTE_CPU_PERCENT_IOWAIT", "Remote|CPU|I/O|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.IOWait }),
	float("REMOTE_CPU_PERCENT_IRQ", "Remote|CPU|IRQ|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.IRQ }),
	float("REMOTE_CPU_PERCENT_SWINTR", "Remote|CPU|swintr|%", "%.2f", func(o *Outcome) float64 { return o.RemoteCPU.SoftIRQ }),
	text("REMOTE_CPU_METHOD", "Remote|CPU|Util|Method", func(*Outcome) string { return "S" }),
	float("LOCAL_SD", "Local|Service|Demand", "%.3f", func(o *Outcome) float64 { return o.LocalDemand }),
	float("REMOTE_SD", "Remote|Service|Demand", "%.3f", func(o *Outcome) float64 { return o.RemoteDemand }),
	text("SD_UNITS", "Service|Demand|Units", func(o *Outcome) string { return pick(o, "usec/Tran", "usec/KB", "usec/KB") }),
}

var sizeSelectors = []selector{
	number("LOCAL_TRANSPORT_RETRANS", "Local|Transport|Retransmissions", func(o *Outcome) int {
		if o.Test == TCPCRR || o.Test.Datagrams() {
			return -1 // no socket is left to ask; netperf says so too
		}
		return o.Retransmits
	}),
	number("REMOTE_TRANSPORT_RETRANS", "Remote|Transport|Retransmissions", func(o *Outcome) int { return o.ServerRetrans }),
	number("TRANSPORT_MSS", "Transport|MSS|bytes", func(o *Outcome) int {
		if o.MSS == 0 {
			return -1
		}
		return o.MSS
	}),
	number("REQUEST_SIZE", "Request|Size|Bytes", func(o *Outcome) int { return pick(o, o.RequestSize, -1, -1) }),
	number("RESPONSE_SIZE", "Response|Size|Bytes", func(o *Outcome) int { return pick(o, o.ResponseSize, -1, -1) }),
	number("BURST_SIZE", "Initial|Burst|Requests", func(*Outcome) int { return 0 }),
	number("LOCAL_SEND_SIZE", "Local|Send|Size", func(o *Outcome) int { return pick(o, o.RequestSize, o.SendSize, 0) }),
	number("LOCAL_RECV_SIZE", "Local|Recv|Size", func(o *Outcome) int { return pick(o, o.ResponseSize, 0, o.RecvSize) }),
	number("REMOTE_SEND_SIZE", "Remote|Send|Size", func(o *Outcome) int { return pick(o, o.ResponseSize, -1, o.SendSize) }),
	number("REMOTE_RECV_SIZE", "Remote|Recv|Size", func(o *Outcome) int { return pick(o, o.RequestSize, o.RecvSize, -1) }),
	number("LOCAL_SEND_CALLS", "Local|Send|Calls", func(o *Outcome) int { return o.SendCalls }),
	number("LOCAL_RECV_CALLS", "Local|Recv|Calls", func(o *Outcome) int { return o.RecvCalls }),
	number("REMOTE_SEND_CALLS", "Remote|Send|Calls", func(o *Outcome) int { return o.ServerSendCalls }),
	number("REMOTE_RECV_CALLS", "Remote|Recv|Calls", func(o *Outcome) int { return o.ServerRecvCalls }),
	number("LSS_SIZE_END", "Local|Send Socket|Size|Final", func(o *Outcome) int { return o.SendBuffer }),
	number("LSR_SIZE_END", "Local|Recv Socket|Size|Final", func(o *Outcome) int { return o.RecvBuffer }),
	number("RSS_SIZE_END", "Remote|Send Socket|Size|Final", func(o *Outcome) int { return o.ServerSendBuffer }),
	number("RSR_SIZE_END", "Remote|Recv Socket|Size|Final", func(o *Outcome) int { return o.ServerRecvBuffer }),
}

var addressSelectors = []selector{
	number("SOURCE_PORT", "Source|Port", func(o *Outcome) int { return int(o.Client.Port()) }),
	text("SOURCE_ADDR", "Source|Address", func(o *Outcome) string { return o.Client.Addr().String() }),
	number("SOURCE_FAMILY", "Source|Family", func(o *Outcome) int { return familyOf(o.Client) }),
	number("DEST_PORT", "Destination|Port", func(o *Outcome) int { return int(o.Server.Port()) }),
	text("DEST_ADDR", "Destination|Address", func(o *Outcome) string { return o.Server.Addr().String() }),
	number("DEST_FAMILY", "Destination|Family", func(o *Outcome) int { return familyOf(o.Server) }),
	text("PROTOCOL", "Protocol", func(o *Outcome) string {
		if o.Test.Datagrams() {
			return "UDP"
		}
		return "TCP"
	}),
	text("DIRECTION", "Direction", func(o *Outcome) string { return pick(o, "Send|Recv", "Send", "Receive") }),
	text("SOCKET_TYPE", "Socket|Type", func(o *Outcome) string {
		if o.Test.Datagrams() {
			return "Datagram"
		}
		return "Stream"
	}),
	text("LOCAL_CONG_CONTROL", "Local|Congestion|Control|Algorithm", func(o *Outcome) string { return o.Congestion }),
	text("REMOTE_CONG_CONTROL", "Remote|Congestion|Control|Algorithm", func(o *Outcome) string { return o.ServerCongestion }),
	text("RESULT_BRAND", "Result|Tag", func(o *Outcome) string { return o.Brand }),
	text("COMMAND_LINE", "Command|Line", func(o *Outcome) string { return `"` + o.CommandLine + `"` }),
}

// SelectorNames are the names of all selectors.
func SelectorNames() []string {
	var names []string
	for _, s := range selectors {
		names = append(names, s.name)
	}
	return names
}

// maxBlocks is how many blocks of selectors there may be.
const maxBlocks = 4

// Selection is a parsed list of selectors, in blocks.
type Selection [][]selector

// ParseSelection reads a list of selectors with commas between them and semicolons between blocks. "all"
// is all of them. The original passes over names that it does not know; here they are an error.
func ParseSelection(list string) (Selection, error) {
	if strings.EqualFold(list, "all") {
		return Selection{selectors}, nil
	}
	var out Selection
	for block := range strings.SplitSeq(list, ";") {
		var all []selector
		for name := range strings.SplitSeq(block, ",") {
			name = strings.TrimSpace(name)
			if name == "" {
				continue
			}
			i := slices.IndexFunc(selectors, func(s selector) bool { return strings.EqualFold(s.name, name) })
			if i < 0 {
				return nil, fmt.Errorf("unknown output selector %q: `-o ?` lists them", name)
			}
			all = append(all, selectors[i])
		}
		if len(all) > 0 {
			out = append(out, all)
		}
	}
	if len(out) == 0 || len(out) > maxBlocks {
		return nil, fmt.Errorf("output selection %q: use 1 to %d blocks of selectors", list, maxBlocks)
	}
	return out, nil
}

// DefaultSelection is what netperf prints for a test when nothing is selected.
func DefaultSelection(t Test, cpu bool) Selection {
	list := "ELAPSED_TIME,THROUGHPUT,THROUGHPUT_UNITS"
	switch {
	case t.Transactions():
		list = "LSS_SIZE_END,LSR_SIZE_END,RSR_SIZE_END,RSS_SIZE_END,REQUEST_SIZE,RESPONSE_SIZE," + list
	case t == TCPMaerts:
		list = "RSS_SIZE_END,LSR_SIZE_END,REMOTE_SEND_SIZE," + list
	default:
		list = "LSS_SIZE_END,RSR_SIZE_END,LOCAL_SEND_SIZE," + list
	}
	if cpu {
		list += ",LOCAL_CPU_UTIL,LOCAL_CPU_PERCENT_USER,LOCAL_CPU_PERCENT_SYSTEM,LOCAL_CPU_PERCENT_IOWAIT,LOCAL_CPU_PERCENT_IRQ," +
			"LOCAL_CPU_PERCENT_SWINTR,LOCAL_CPU_METHOD,REMOTE_CPU_UTIL,REMOTE_CPU_PERCENT_USER,REMOTE_CPU_PERCENT_SYSTEM," +
			"REMOTE_CPU_PERCENT_IOWAIT,REMOTE_CPU_PERCENT_IRQ,REMOTE_CPU_PERCENT_SWINTR,REMOTE_CPU_METHOD,LOCAL_SD,REMOTE_SD,SD_UNITS"
	}
	s, _ := ParseSelection(list) // names of the table above, as a test checks
	return s
}

// Form is how a selection is printed, in the letter of netperf's flag.
type Form byte

// The forms.
const (
	CSV     Form = 'o' // a line of headings, a line of values
	KeyVal  Form = 'k' // NAME=value, one a line
	Columns Form = 'O' // headings above values
)

// Write prints the selected values of an outcome.
func (s Selection) Write(w io.Writer, form Form, headings bool, o *Outcome) error {
	var b strings.Builder
	switch form {
	case KeyVal:
		for _, block := range s {
			for _, sel := range block {
				fmt.Fprintf(&b, "%s=%s\n", sel.name, sel.value(o))
			}
		}
	case CSV:
		var names, values []string
		for _, block := range s {
			for _, sel := range block {
				names = append(names, strings.ReplaceAll(sel.heading, "|", " "))
				values = append(values, sel.value(o))
			}
		}
		if headings {
			b.WriteString(strings.Join(names, ",") + "\n")
		}
		b.WriteString(strings.Join(values, ",") + "\n")
	default:
		for _, block := range s {
			writeColumns(&b, block, headings, o)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeColumns(b *strings.Builder, block []selector, headings bool, o *Outcome) {
	height := 0
	var cells [][]string
	for _, sel := range block {
		lines := strings.Split(sel.heading, "|")
		height = max(height, len(lines))
		cells = append(cells, lines)
	}
	for i, sel := range block {
		for len(cells[i]) < height {
			cells[i] = append(cells[i], "")
		}
		cells[i] = append(cells[i], sel.value(o))
	}
	first := 0
	if !headings {
		first = height
	}
	for line := first; line <= height; line++ {
		for _, c := range cells {
			width := 0
			for _, text := range c {
				width = max(width, len(text))
			}
			fmt.Fprintf(b, "%-*s ", width, c[line])
		}
		b.WriteByte('\n')
	}
}
