// SPDX-License-Identifier: Apache-2.0

// Command node is the helper that the local cluster runs in three places: as the process that
// keeps a node's namespaces alive, as the pause container of every pod, and as the forwarder
// between a port of the machine's loopback and the API server. It uses the standard library
// only, because it is built from its embedded source on machines that have no checkout.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "forward" {
		if err := forward(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "node: "+err.Error())
			os.Exit(1)
		}
		return
	}
	hold()
}

// hold sleeps until it is told to end, and reaps what is left to it as process 1 of a pod.
func hold() {
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for sig := range sigs {
		if sig != syscall.SIGCHLD {
			return
		}
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// forward accepts connections on the listener that it inherited as descriptor 3 and joins each
// with a connection of its own to addr. The listener belongs to the machine's network
// namespace, the dialled connection to the one that this process was started in.
func forward(addr string) error {
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("inherited listener: %w", err)
	}
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "node: accept: "+err.Error())
			continue
		}
		go join(conn, addr)
	}
}

func join(near net.Conn, addr string) {
	defer near.Close()
	far, err := net.Dial("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "node: "+err.Error())
		return
	}
	defer far.Close()
	var both sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src) // either end may go at any time
		if tcp, ok := dst.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}
	both.Go(func() { pipe(far, near) })
	both.Go(func() { pipe(near, far) })
	both.Wait()
}
