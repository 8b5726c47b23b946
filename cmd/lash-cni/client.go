// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"lash.internal/lash/agent/cni/wire"
)

// errNoAgent says that no agent answered in time.
var errNoAgent = errors.New("no agent on the socket")

// retryEvery is the pause between two attempts to reach an agent that is away; requestTime bounds
// one request.
const (
	retryEvery  = 100 * time.Millisecond
	requestTime = 70 * time.Second
)

// client speaks HTTP/1.0 over the agent's socket: one request, one answer that ends with the
// connection. The HTTP library would double the size of the plugin.
type client struct{ socket string }

// post sends in and fills out. Until deadline it starts again when the agent is not there, goes
// away in between, or asks to wait: every call is idempotent. A deadline in the
// past means one attempt.
func (c client) post(path string, in, out any, deadline time.Time) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	for {
		err := c.once(path, body, out)
		var we *wire.Error
		again := errors.Is(err, errNoAgent) || (errors.As(err, &we) && we.Wait)
		if !again || !time.Now().Add(retryEvery).Before(deadline) {
			return err
		}
		time.Sleep(retryEvery)
	}
}

func (c client) once(path string, body []byte, out any) error {
	conn, err := net.DialTimeout("unix", c.socket, time.Second)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAgent, err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	req := fmt.Sprintf("POST %s HTTP/1.0\r\nHost: lash\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	if _, err := io.WriteString(conn, req); err != nil {
		return fmt.Errorf("%w: %w", errNoAgent, err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAgent, err)
	}
	return parseAnswer(path, answer, out)
}

// parseAnswer reads a whole HTTP answer: the body of a 200 fills out, all else is an error.
func parseAnswer(path string, answer []byte, out any) error {
	head, payload, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		// The agent went away in the middle of its answer.
		return fmt.Errorf("%w: answer is cut off", errNoAgent)
	}
	var status int
	if _, err := fmt.Sscanf(string(head), "HTTP/1.%d %d", new(int), &status); err != nil {
		return fmt.Errorf("answer of the agent is not HTTP: %w", err)
	}
	switch {
	case status == 404 || status == 503:
		// The socket is open before all that is behind it.
		return fmt.Errorf("%w: %s answers %d", errNoAgent, path, status)
	case status != 200:
		we := &wire.Error{Code: wire.CodeUnknown}
		if json.Unmarshal(payload, we) != nil || we.Message == "" {
			we.Message = fmt.Sprintf("the agent answers %d: %s", status, payload)
		}
		return we
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(payload, out); err != nil {
		return fmt.Errorf("answer of the agent is not readable: %w", err)
	}
	return nil
}

// enqueue leaves a deletion for the agent's next start.
func enqueue(dir string, a wire.Attachment) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	h := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	path := filepath.Join(dir, hex.EncodeToString(h[:12])+wire.QueueSuffix)
	if err := os.WriteFile(path+".tmp", body, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
