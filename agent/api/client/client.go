// SPDX-License-Identifier: Apache-2.0

// Package client talks to the agent over its unix socket.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"lash.internal/lash/agent/api"
)

// ErrUnreachable means that nobody answers on the socket.
var ErrUnreachable = errors.New("daemon unreachable")

// NotFoundError is the agent's answer 404.
type NotFoundError struct{ Msg string }

func (e *NotFoundError) Error() string { return e.Msg }

// Client is a connection to one agent. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the agent on socket (a path, or unix://path). An empty string means
// the environment variable CILIUM_SOCK, and the default path when that is empty too.
func New(socket string) *Client {
	if socket == "" {
		socket = os.Getenv(api.SocketEnv)
	}
	if socket == "" {
		socket = api.SocketPath
	}
	socket = strings.TrimPrefix(socket, "unix://")
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}}}
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, c.socket, op.Err)
		}
		return nil, err
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return nil, answerError(resp.StatusCode, b)
}

func answerError(code int, body []byte) error {
	var e api.Error
	if json.Unmarshal(body, &e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(body))
	}
	if code == http.StatusNotFound {
		return &NotFoundError{Msg: e.Message}
	}
	return fmt.Errorf("agent answers %d: %s", code, e.Message)
}

// Get decodes the JSON answer of GET path ("/v1/...") into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// Post sends in as JSON and decodes the answer into out, which may be nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodPost, path, in, out)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("decode answer of %s: %w", path, err)
	}
	return nil
}

// Status asks for the agent's account of itself.
func (c *Client) Status(ctx context.Context) (*api.StatusResponse, error) {
	out := &api.StatusResponse{}
	return out, c.Get(ctx, "/v1/healthz", out)
}

// Endpoints lists the endpoints of the node, by id.
func (c *Client) Endpoints(ctx context.Context) ([]api.Endpoint, error) {
	var out []api.Endpoint
	return out, c.Get(ctx, "/v1/endpoint", &out)
}

// Endpoint finds one endpoint by number or by prefixed name ("pod-name:ns/name", "ipv4:...").
func (c *Client) Endpoint(ctx context.Context, id string) (*api.Endpoint, error) {
	out := &api.Endpoint{}
	return out, c.Get(ctx, "/v1/endpoint/"+url.PathEscape(id), out)
}

// Identities lists the identities that the agent knows. Labels limit the list to identities that
// have all of them.
func (c *Client) Identities(ctx context.Context, labels ...string) ([]api.Identity, error) {
	q := url.Values{"labels": labels}
	path := "/v1/identity"
	if len(labels) > 0 {
		path += "?" + q.Encode()
	}
	var out []api.Identity
	return out, c.Get(ctx, path, &out)
}

// Identity returns one identity.
func (c *Client) Identity(ctx context.Context, id string) (*api.Identity, error) {
	out := &api.Identity{}
	return out, c.Get(ctx, "/v1/identity/"+url.PathEscape(id), out)
}

// IPs lists the addresses that the agent knows the identity of.
func (c *Client) IPs(ctx context.Context) ([]api.IPEntry, error) {
	var out []api.IPEntry
	return out, c.Get(ctx, "/v1/ip", &out)
}

// Services lists frontends and backends; a namespace or a name that is not empty limits the list.
func (c *Client) Services(ctx context.Context, namespace, name string) ([]api.Service, error) {
	q := url.Values{}
	for k, v := range map[string]string{"namespace": namespace, "name": name} {
		if v != "" {
			q.Set(k, v)
		}
	}
	var out []api.Service
	return out, c.Get(ctx, "/v1/service?"+q.Encode(), &out)
}

// FlushFlows has the agent forget all connections and returns how many entries there were.
func (c *Client) FlushFlows(ctx context.Context) (uint64, error) {
	var out api.Flushed
	err := c.call(ctx, http.MethodDelete, "/v1/flows", nil, &out)
	return out.Entries, err
}

// Nodes lists the nodes that the agent knows.
func (c *Client) Nodes(ctx context.Context) (*api.ClusterStatus, error) {
	out := &api.ClusterStatus{}
	return out, c.Get(ctx, "/v1/cluster/nodes", out)
}

// Maps lists the BPF maps without their entries.
func (c *Client) Maps(ctx context.Context) ([]api.BPFMap, error) {
	var out []api.BPFMap
	return out, c.Get(ctx, "/v1/map", &out)
}

// Map returns one BPF map with its entries.
func (c *Client) Map(ctx context.Context, name string) (*api.BPFMap, error) {
	out := &api.BPFMap{}
	return out, c.Get(ctx, "/v1/map/"+url.PathEscape(name), out)
}

// Metrics lists the agent's metrics.
func (c *Client) Metrics(ctx context.Context) ([]api.Metric, error) {
	var out []api.Metric
	return out, c.Get(ctx, "/v1/metrics", &out)
}

// Config returns what the agent runs with.
func (c *Client) Config(ctx context.Context) (*api.Config, error) {
	out := &api.Config{}
	return out, c.Get(ctx, "/v1/config", out)
}

// Monitor streams events until ctx ends, the agent closes the stream (nil) or each returns an error.
func (c *Client) Monitor(ctx context.Context, each func(api.MonitorEvent) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/monitor", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		var ev api.MonitorEvent
		if err := json.Unmarshal(sc.Bytes(), &ev); err != nil {
			return fmt.Errorf("decode event: %w", err)
		}
		if err := each(ev); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return sc.Err()
}
