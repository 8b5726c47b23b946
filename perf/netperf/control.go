// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Test names a kind of measurement as netperf does.
type Test string

// The tests.
const (
	TCPRR     Test = "TCP_RR"     // transactions, one after the other, on one connection
	TCPCRR    Test = "TCP_CRR"    // a connection for each transaction
	UDPRR     Test = "UDP_RR"     // transactions of one datagram each way
	UDPStream Test = "UDP_STREAM" // the client sends datagrams as fast as it can
	TCPStream Test = "TCP_STREAM" // the client sends as much as it can
	TCPMaerts Test = "TCP_MAERTS" // the server does
)

// Tests lists all tests.
var Tests = []Test{TCPRR, TCPCRR, UDPRR, TCPStream, TCPMaerts, UDPStream}

// Datagrams says whether the test runs over UDP.
func (t Test) Datagrams() bool { return t == UDPRR || t == UDPStream }

// ParseTest finds a test by its name, in letters of either size.
func ParseTest(name string) (Test, error) {
	for _, t := range Tests {
		if strings.EqualFold(name, string(t)) {
			return t, nil
		}
	}
	return "", fmt.Errorf("unknown test %q: use one of %s", name, TestNames())
}

// TestNames are the names of all tests, for messages.
func TestNames() string {
	names := make([]string, len(Tests))
	for i, t := range Tests {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}

// Transactions says whether the test counts transactions; the others count bytes.
func (t Test) Transactions() bool { return t == TCPRR || t == TCPCRR || t == UDPRR }

// request gives the fields in which the tests differ.
func (t Test) request() Request {
	r := Request{
		BindCPU: -1, SendBuffer: -1, RecvBuffer: -1, SendSize: -1, RecvSize: -1, RequestSize: -1, ResponseSize: -1,
		Flags: FlagRoutingAllowed, Direction: BothWays, Priority: -1, TOS: -1, SendWidth: 1,
	}
	switch t {
	case TCPCRR:
		r.Flags |= FlagConnectTest
	case UDPRR:
		r.Datagram = true
	case UDPStream:
		r.Datagram, r.Direction = true, ServerReceives
	case TCPStream:
		r.Direction, r.SendWidth = ServerReceives, 2
	case TCPMaerts:
		r.Direction, r.SendWidth = ServerSends, 2
	}
	return r
}

// test tells which test a request asks for.
func (r *Request) test() (Test, error) {
	transactions := r.RequestSize > 0 && r.ResponseSize > 0 && r.Direction == BothWays
	switch {
	case r.Flags&FlagConnectTest != 0 && !r.Datagram && transactions:
		return TCPCRR, nil
	case r.Flags&FlagConnectTest != 0:
	case transactions && r.Datagram:
		return UDPRR, nil
	case transactions:
		return TCPRR, nil
	case r.Direction == ServerReceives && r.Datagram:
		return UDPStream, nil
	case r.Direction == ServerReceives:
		return TCPStream, nil
	case r.Direction == ServerSends && !r.Datagram:
		return TCPMaerts, nil
	}
	return "", fmt.Errorf("the request (direction %d, flags %#x, sizes %d and %d, datagrams %t) is none of %v",
		r.Direction, uint32(r.Flags), r.RequestSize, r.ResponseSize, r.Datagram, Tests)
}

// errOldClient is a peer from before the messages grew to their present length.
var errOldClient = errors.New("the other side stopped in the middle of a message: netperf before 2.6.0 has shorter ones")

// midMessage is how long the rest of a message may take once its first byte is there.
const midMessage = 10 * time.Second

// readMessage waits for a message until the deadline, if there is one. io.EOF means that the other
// side has no more to say.
func readMessage(c net.Conn, deadline time.Time) (*message, error) {
	m := &message{}
	if err := c.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, m[:1]); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(midMessage)); err != nil {
		return nil, err
	}
	n, err := io.ReadFull(c, m[1:])
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, fmt.Errorf("%w (%d of %d bytes)", errOldClient, n+1, MessageSize)
	}
	return m, err
}

func writeMessage(c net.Conn, m *message) error {
	if err := c.SetWriteDeadline(time.Now().Add(midMessage)); err != nil {
		return err
	}
	_, err := c.Write(m[:])
	return err
}

// errnoOf is the number that a failure has on the wire.
func errnoOf(err error) int32 {
	var e unix.Errno
	if errors.As(err, &e) && e != 0 {
		return int32(e)
	}
	return int32(unix.EINVAL)
}
