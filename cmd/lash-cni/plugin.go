// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"lash.internal/lash/agent/cni/wire"
)

// How long the plugin waits for an agent that is restarting.
const (
	patienceAdd    = 30 * time.Second
	patienceStatus = 10 * time.Second
	// patienceDel is short: a deletion that finds no agent is queued.
	patienceDel = 0
)

// plugin is one call of the plugin.
type plugin struct {
	agent   client
	queue   string
	logFile string
	command string
	version string // of the specification, as the configuration has it
	gone    func() bool
}

func newPlugin(socket string) *plugin {
	p := &plugin{agent: client{socket: wire.Socket}, queue: wire.QueueDir, command: os.Getenv("CNI_COMMAND"), version: current.ImplementedSpecVersion, gone: removed}
	if socket != "" {
		p.agent.socket = socket
		p.queue = strings.TrimSuffix(socket, "/cilium.sock") + "/deleteQueue"
	}
	return p
}

// netConf is the plugin's part of the network configuration list.
type netConf struct {
	types.NetConf
	EnableDebug bool   `json:"enable-debug"`
	LogFile     string `json:"log-file"`
}

func (p *plugin) config(args *skel.CmdArgs) (*netConf, error) {
	c := &netConf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration is not readable", err.Error())
	}
	p.logFile = c.LogFile
	if c.CNIVersion != "" {
		p.version = c.CNIVersion
	}
	if c.EnableDebug {
		p.log(fmt.Sprintf("container %s interface %s netns %s args %s", args.ContainerID, args.IfName, args.Netns, args.Args))
	}
	return c, nil
}

// removed says whether this program's file has been removed since it was started, as an uninstallation
// does: a call that has waited for the agent in vain must not leave a file behind then.
func removed() bool {
	exe, err := os.Executable()
	if err != nil {
		return false
	}
	_, err = os.Stat(exe)
	return errors.Is(err, fs.ErrNotExist)
}

// log appends a line to the log file of the configuration. The runtime shows what matters, so a
// log that cannot be written is no error.
func (p *plugin) log(msg string) {
	if p.logFile == "" || p.gone() {
		return
	}
	f, err := os.OpenFile(p.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = fmt.Fprintf(f, "%s %s %s\n", time.Now().UTC().Format(time.RFC3339), p.command, msg)
}

// printError prints an error with the version, which the specification wants and the library leaves
// out.
func (p *plugin) printError(w io.Writer, err *types.Error) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	_ = enc.Encode(struct { // the runtime is gone when this fails
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{p.version, err})
}

func (p *plugin) logError(err *types.Error) { p.log("error: " + err.Error()) }

// attachment reads what names this call's interface.
func attachment(args *skel.CmdArgs) wire.Attachment {
	a := wire.Attachment{ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns}
	for _, kv := range strings.Split(args.Args, ";") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "K8S_POD_NAMESPACE":
			a.PodNamespace = v
		case "K8S_POD_NAME":
			a.PodName = v
		case "K8S_POD_UID":
			a.PodUID = v
		}
	}
	return a
}

// cniError turns an error into one with a code, in one sentence.
func cniError(err error) error {
	var we *wire.Error
	switch {
	case errors.As(err, &we):
		return types.NewError(we.Code, we.Message, we.Details)
	case errors.Is(err, errNoAgent):
		return types.NewError(types.ErrTryAgainLater, "the network agent of this node does not answer, will be tried again: see \"lash status\"", err.Error())
	}
	return err
}

func (p *plugin) add(args *skel.CmdArgs) error {
	conf, err := p.config(args)
	if err != nil {
		return err
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "cannot open the network namespace of the pod", err.Error())
	}
	defer ns.close()
	a := attachment(args)
	a.NetnsCookie = ns.cookie
	var itf wire.Interface
	deadline := time.Now().Add(patienceAdd)
	if err := p.agent.post(wire.PathAdd, a, &itf, deadline); err != nil {
		return cniError(err)
	}
	if err := ns.setup(args.IfName, itf); err != nil {
		// The agent forgets the endpoint, so that the next ADD starts clean.
		_ = p.agent.post(wire.PathDel, a, nil, time.Now().Add(time.Second))
		return fmt.Errorf("set up %s in the pod: %w", args.IfName, err)
	}
	if err := p.agent.post(wire.PathReady, a, nil, deadline.Add(patienceStatus)); err != nil {
		return cniError(err)
	}
	return types.PrintResult(result(args, itf), conf.CNIVersion)
}

// result describes what was set up: the node's end, the pod's end with its addresses, routes.
func result(args *skel.CmdArgs, itf wire.Interface) *current.Result {
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: itf.HostName, Mac: itf.HostMAC, Mtu: itf.MTU},
			{Name: args.IfName, Mac: itf.PodMAC, Mtu: itf.MTU, Sandbox: args.Netns},
		},
	}
	for _, a := range itf.Addresses {
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(1), Address: hostNet(a.IP), Gateway: a.Gateway.AsSlice()})
		r.Routes = append(r.Routes,
			&types.Route{Dst: hostNet(a.Gateway), Scope: current.Int(scopeLink)},
			&types.Route{Dst: defaultNet(a.IP), GW: a.Gateway.AsSlice(), MTU: itf.RouteMTU})
	}
	return r
}

const scopeLink = 253

func hostNet(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func defaultNet(a netip.Addr) net.IPNet {
	zero := make(net.IP, a.BitLen()/8)
	return net.IPNet{IP: zero, Mask: net.CIDRMask(0, a.BitLen())}
}

func (p *plugin) del(args *skel.CmdArgs) error {
	if _, err := p.config(args); err != nil {
		return err
	}
	a := attachment(args)
	err := p.agent.post(wire.PathDel, a, nil, time.Now().Add(patienceDel))
	if err == nil {
		return nil
	}
	// A pod must be deletable whatever state the agent is in.
	p.log("agent does not take the deletion, queued: " + err.Error())
	if err := enqueue(p.queue, a); err != nil {
		p.log("cannot queue the deletion: " + err.Error())
	}
	// The pair goes with the pod's namespace, or now, if the namespace is still there.
	if ns, err := openNetns(args.Netns); err == nil {
		defer ns.close()
		if err := ns.remove(args.IfName); err != nil {
			p.log("cannot remove the interface: " + err.Error())
		}
	}
	return nil
}

func (p *plugin) check(args *skel.CmdArgs) error {
	conf, err := p.config(args)
	if err != nil {
		return err
	}
	a := attachment(args)
	var itf wire.Interface
	if err := p.agent.post(wire.PathCheck, a, &itf, time.Now().Add(patienceAdd)); err != nil {
		return cniError(err)
	}
	if err := version.ParsePrevResult(&conf.NetConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult is not readable", err.Error())
	}
	if conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs prevResult", "")
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult is not readable", err.Error())
	}
	for _, want := range itf.Addresses {
		if !hasIP(prev, want.IP) {
			return types.NewError(wire.CodeBrokenAttach, fmt.Sprintf("address %s of the endpoint is not in prevResult", want.IP), "")
		}
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "cannot open the network namespace of the pod", err.Error())
	}
	defer ns.close()
	if err := ns.verify(args.IfName, itf); err != nil {
		return types.NewError(wire.CodeBrokenAttach, err.Error(), "")
	}
	return nil
}

func hasIP(r *current.Result, a netip.Addr) bool {
	for _, ip := range r.IPs {
		if got, ok := netip.AddrFromSlice(ip.Address.IP); ok && got.Unmap() == a {
			return true
		}
	}
	return false
}

func (p *plugin) status(args *skel.CmdArgs) error {
	if _, err := p.config(args); err != nil {
		return err
	}
	err := p.agent.post(wire.PathStatus, struct{}{}, nil, time.Now().Add(patienceStatus))
	if errors.Is(err, errNoAgent) {
		return types.NewError(wire.CodeUnavailable, "the network agent of this node does not answer: see \"lash status\"", err.Error())
	}
	return cniError(err)
}

// gcConf is what the runtime adds to the configuration for GC.
type gcConf struct {
	Valid []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	} `json:"cni.dev/valid-attachments"`
}

func (p *plugin) gc(args *skel.CmdArgs) error {
	if _, err := p.config(args); err != nil {
		return err
	}
	var c gcConf
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return types.NewError(types.ErrDecodingFailure, "list of valid attachments is not readable", err.Error())
	}
	if c.Valid == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "GC needs cni.dev/valid-attachments", "")
	}
	req := wire.GCRequest{Valid: []wire.Attachment{}}
	for _, v := range c.Valid {
		req.Valid = append(req.Valid, wire.Attachment{ContainerID: v.ContainerID, IfName: v.IfName})
	}
	return cniError(p.agent.post(wire.PathGC, req, nil, time.Now().Add(patienceStatus)))
}
