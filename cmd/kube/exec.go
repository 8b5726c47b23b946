// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// ExecError is a command in a container that ended with a code other than 0.
type ExecError struct {
	Pod    string
	Code   int
	Stderr string
}

func (e *ExecError) Error() string {
	return fmt.Sprintf("command in pod %s ended with code %d: %s", e.Pod, e.Code, strings.TrimSpace(e.Stderr))
}

// Streams are the streams of a command in a container; nil ones are not connected.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command in a container and returns what it printed. A code other than 0 is an
// *ExecError.
func (c *Client) Exec(ctx context.Context, namespace, pod, container string, command ...string) (stdout, stderr []byte, err error) {
	var out, errOut bytes.Buffer
	err = c.ExecStream(ctx, namespace, pod, container, Streams{Out: &out, Err: &errOut}, command...)
	var ee *ExecError
	if errors.As(err, &ee) {
		ee.Stderr = errOut.String()
	}
	return out.Bytes(), errOut.Bytes(), err
}

// ExecStream runs a command in a container with the streams connected. It tries WebSocket first
// and SPDY where a server or a proxy does not know it.
func (c *Client) ExecStream(ctx context.Context, namespace, pod, container string, s Streams, command ...string) error {
	u := c.Clientset.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: command,
			Stdin: s.In != nil, Stdout: s.Out != nil, Stderr: s.Err != nil,
		}, scheme.ParameterCodec).URL()
	exec, err := c.executor(u)
	if err != nil {
		return fmt.Errorf("exec in pod %s/%s: %w", namespace, pod, err)
	}
	err = exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: s.In, Stdout: s.Out, Stderr: s.Err})
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		return &ExecError{Pod: namespace + "/" + pod, Code: code.Code}
	}
	if err != nil {
		return fmt.Errorf("exec in pod %s/%s: %w", namespace, pod, err)
	}
	return nil
}

func (c *Client) executor(u *url.URL) (remotecommand.Executor, error) {
	old, err := remotecommand.NewSPDYExecutor(c.Config, http.MethodPost, u)
	if err != nil {
		return nil, err
	}
	ws, err := remotecommand.NewWebSocketExecutor(c.Config, http.MethodGet, u.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, old, needsSPDY)
}

func needsSPDY(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}

// Forward is an open port-forward.
type Forward struct {
	Local uint16 // port on 127.0.0.1

	stop chan struct{}
	done chan error
}

// PortForward forwards a port of 127.0.0.1 (0 picks one) to a port of a pod until Close is called
// or ctx ends.
func (c *Client) PortForward(ctx context.Context, namespace, pod string, local, remote uint16) (*Forward, error) {
	u := c.Clientset.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	}
	dialer := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, c.Config)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	}
	dialer = portforward.NewFallbackDialerForStreaming(tunnel, dialer, needsSPDY)

	f := &Forward{stop: make(chan struct{}), done: make(chan error, 1)}
	ready := make(chan struct{})
	fw, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"},
		[]string{fmt.Sprintf("%d:%d", local, remote)}, f.stop, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	}
	go func() { f.done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-f.done:
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	case <-ctx.Done():
		f.Close()
		return nil, ctx.Err()
	}
	ports, err := fw.GetPorts()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	}
	f.Local = ports[0].Local
	return f, nil
}

// Close ends the forward and waits until it has.
func (f *Forward) Close() {
	close(f.stop)
	<-f.done //nolint:errcheck // it ends because it was told to
}
