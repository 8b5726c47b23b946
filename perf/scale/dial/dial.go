// SPDX-License-Identifier: Apache-2.0

// Package dial finds out when addresses begin to answer: it connects again and again until each has
// accepted a connection. It runs in a process of its own, inside a node, and is told what to do in lines
// of JSON.
package dial

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Order is what to find out.
type Order struct {
	Addrs []netip.AddrPort `json:"addrs"`
	// Pause is how long to rest when nothing answered, Limit when to give up.
	Pause time.Duration `json:"pause"`
	Limit time.Duration `json:"limit"`
}

// Answer is what was found out.
type Answer struct {
	// First is when the first attempt ended, and Last when the last of the addresses answered, by Now.
	First int64 `json:"first"`
	Last  int64 `json:"last"`
	// Refused is how many addresses did not answer the first time, Missing how many never did.
	Refused  int    `json:"refused"`
	Missing  int    `json:"missing"`
	Attempts int    `json:"attempts"`
	Error    string `json:"error,omitempty"`
}

// Now is the time on a clock that all processes of a machine share.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // every kernel has this clock
	}
	return ts.Nano()
}

// Serve carries out orders from in until it ends. For each it writes a line when the first attempt is
// over and then one with the answer.
func Serve(in io.Reader, out io.Writer) error {
	dec, w := json.NewDecoder(in), bufio.NewWriter(out)
	enc := json.NewEncoder(w)
	say := func(a Answer) error {
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		return nil
	}
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("order: %w", err)
		}
		a, err := until(o, say)
		if err != nil {
			a.Error = err.Error()
		}
		if err := say(a); err != nil {
			return err
		}
	}
}

// attemptTimeout is how long one attempt waits. Nothing here is farther away than a veth pair.
const attemptTimeout = 50 // milliseconds

// try makes one connection.
func try(a netip.AddrPort) (bool, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if a.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	// A reset at the end leaves nothing behind that the next connection could meet.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return false, fmt.Errorf("socket: %w", err)
	}
	switch err := unix.Connect(fd, sa); {
	case err == nil:
		return true, nil
	case !errors.Is(err, unix.EINPROGRESS):
		return false, nil // refused, or there is no way
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, attemptTimeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("poll: %w", err)
	}
	if n == 0 || err != nil {
		return false, nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return false, fmt.Errorf("socket: %w", err)
	}
	return code == 0, nil
}

// until connects to the addresses until each has answered.
func until(o Order, say func(Answer) error) (Answer, error) {
	var a Answer
	pending := o.Addrs
	start := Now()
	for round := 0; len(pending) > 0; round++ {
		var left []netip.AddrPort
		for _, addr := range pending {
			ok, err := try(addr)
			if err != nil {
				return a, err
			}
			a.Attempts++
			if ok {
				a.Last = Now()
			} else {
				left = append(left, addr)
			}
			if a.First == 0 {
				a.First = Now()
				if err := say(a); err != nil {
					return a, err
				}
			}
		}
		if round == 0 {
			a.Refused = len(left)
		}
		if time.Duration(Now()-start) > o.Limit {
			a.Missing = len(left)
			return a, nil
		}
		if len(left) == len(pending) {
			time.Sleep(o.Pause)
		}
		pending = left
	}
	return a, nil
}
