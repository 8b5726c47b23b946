// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"lash.internal/lash/agent/cni/wire"
	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/state"
)

// Options configures a Server.
type Options struct {
	Tables     *state.Tables
	Datapath   Datapath
	Addresses  Addresses
	Identities Identities
	Objects    Objects
	// Exhausted recognizes the error of Addresses.Allocate that means that no address is free.
	Exhausted func(error) bool
	// StateDir holds a file for each endpoint, QueueDir the deletions that the plugin left while
	// the agent was away.
	StateDir string
	QueueDir string
	// Ready says whether ADD can be served; nil means that it always can.
	Ready func() error
	Log   *slog.Logger
}

// Server makes, restores and removes endpoints. Its methods are safe for concurrent use.
type Server struct {
	o       Options
	t       *state.Tables
	log     *slog.Logger
	restore func(w *state.WriteTxn) // commits the initializer of Endpoints

	mu     sync.Mutex      // guards links, next and every read-modify-write of an Endpoints row
	links  map[uint16]Link // by number of the endpoint; one that has an entry is taken
	next   uint16
	locks  map[string]*attachLock
	refuse error // set while ADD cannot be served
}

type attachLock struct {
	sync.Mutex
	users int
}

// New registers the server as the source of the Endpoints table. Restore must run before the
// table counts as complete.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Exhausted == nil {
		o.Exhausted = func(error) bool { return false }
	}
	return &Server{
		o: o, t: o.Tables, log: o.Log,
		restore: o.Tables.Endpoints.RegisterInitializer("cni"),
		links:   map[uint16]Link{},
		locks:   map[string]*attachLock{},
		refuse:  errors.New("the agent is still starting"),
	}
}

// SetReady opens (nil) or closes the server for ADD.
func (s *Server) SetReady(err error) {
	s.mu.Lock()
	s.refuse = err
	s.mu.Unlock()
}

// Status says whether ADD can be served now.
func (s *Server) Status() error {
	s.mu.Lock()
	err := s.refuse
	s.mu.Unlock()
	if err == nil && s.o.Ready != nil {
		err = s.o.Ready()
	}
	if err != nil {
		return &wire.Error{Code: wire.CodeUnavailable, Message: "the agent cannot set up pods now: " + err.Error()}
	}
	return nil
}

// HostName is the name of the node's end of an attachment's veth pair.
func HostName(a wire.Attachment) string {
	h := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return "lxc" + hex.EncodeToString(h[:6])
}

func (s *Server) lock(a wire.Attachment) (unlock func()) {
	key := a.ContainerID
	s.mu.Lock()
	l := s.locks[key]
	if l == nil {
		l = &attachLock{}
		s.locks[key] = l
	}
	l.users++
	s.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		s.mu.Lock()
		if l.users--; l.users == 0 {
			delete(s.locks, key)
		}
		s.mu.Unlock()
	}
}

// find returns the endpoints of an attachment: of all interfaces when IfName is empty.
func (s *Server) find(a wire.Attachment) []state.Endpoint {
	var out []state.Endpoint
	if a.ContainerID == "" {
		return nil // nor has the node's own endpoint any
	}
	for _, e := range s.t.Endpoints.ByIndex("container", a.ContainerID) {
		if a.IfName == "" || e.ContainerIf == a.IfName {
			out = append(out, e)
		}
	}
	return out
}

// tryAgain marks an error as one that time may heal; wait, as one that a moment may heal.
func tryAgain(wait bool, format string, args ...any) error {
	return &wire.Error{Code: wire.CodeTryAgain, Message: fmt.Errorf(format, args...).Error(), Wait: wait}
}

// Add makes the endpoint of an attachment, or returns the one that is there. When it returns, the
// identity is allocated, the programs are attached and the maps are written.
func (s *Server) Add(ctx context.Context, a wire.Attachment) (*wire.Interface, error) {
	if a.PodName == "" || a.PodNamespace == "" {
		return nil, &wire.Error{Code: wire.CodeBadConfig, Message: "CNI_ARGS lacks K8S_POD_NAMESPACE or K8S_POD_NAME"}
	}
	if err := s.Status(); err != nil {
		return nil, tryAgain(true, "%w", err)
	}
	defer s.lock(a)()
	if have := s.find(a); len(have) > 0 {
		return s.addAgain(ctx, a, have[0])
	}
	ep, err := s.identify(ctx, a, state.Endpoint{
		Pod:           state.Name{Namespace: a.PodNamespace, Name: a.PodName},
		ContainerID:   a.ContainerID,
		ContainerIf:   a.IfName,
		NetnsPath:     a.Netns,
		NetnsCookie:   a.NetnsCookie,
		IfName:        HostName(a),
		State:         state.EndpointRegenerating,
		CreatedUnixMs: time.Now().UnixMilli(),
	})
	if err != nil {
		return nil, err
	}
	ep.IPv4, ep.IPv6, err = s.o.Addresses.Allocate(ep.Pod.String())
	if s.o.Exhausted(err) {
		return nil, &wire.Error{Code: wire.CodePool, Message: fmt.Sprintf("no address for pod %s: %v", ep.Pod, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("allocate address for pod %s: %w", ep.Pod, err)
	}
	if ep.ID, err = s.takeID(); err != nil {
		s.o.Addresses.Release(func() {}, ep.IPv4, ep.IPv6)
		return nil, err
	}
	out, err := s.connect(ctx, ep)
	if err != nil {
		s.remove(context.WithoutCancel(ctx), ep)
		return nil, err
	}
	s.log.Info("new endpoint", "endpoint", ep.ID, "pod", ep.Pod.String(), "ipv4", ep.IPv4, "ipv6", ep.IPv6, "identity", ep.Identity)
	return out, nil
}

// addAgain answers a repeated ADD from what is there. A pair that is gone is made anew.
func (s *Server) addAgain(ctx context.Context, a wire.Attachment, ep state.Endpoint) (*wire.Interface, error) {
	s.mu.Lock()
	link, ok := s.links[ep.ID]
	s.mu.Unlock()
	if _, there := s.o.Datapath.HasLink(ep.IfName); ok && there && ep.NetnsCookie == a.NetnsCookie {
		return s.answer(ep, link), nil
	}
	ep.NetnsPath, ep.NetnsCookie, ep.State = a.Netns, a.NetnsCookie, state.EndpointRegenerating
	return s.connect(ctx, ep)
}

// identify fills what follows from the pod: UID, labels, identity, named ports.
func (s *Server) identify(ctx context.Context, a wire.Attachment, ep state.Endpoint) (state.Endpoint, error) {
	pod, ok := s.t.Pods.Get(ep.Pod)
	if !ok || (a.PodUID != "" && pod.UID != a.PodUID) {
		var err error
		if pod, ok, err = s.o.Objects.Pod(ctx, ep.Pod); err != nil {
			return ep, tryAgain(true, "%w", err)
		}
	}
	if !ok {
		return ep, tryAgain(false, "pod %s does not exist", ep.Pod)
	}
	if a.PodUID != "" && pod.UID != a.PodUID {
		return ep, tryAgain(false, "pod %s has UID %s, the sandbox is for %s", ep.Pod, pod.UID, a.PodUID)
	}
	ns, ok := s.t.Namespaces.Get(ep.Pod.Namespace)
	if !ok {
		var err error
		if ns, ok, err = s.o.Objects.Namespace(ctx, ep.Pod.Namespace); err != nil {
			return ep, tryAgain(true, "%w", err)
		}
		if !ok {
			return ep, tryAgain(false, "namespace %s does not exist", ep.Pod.Namespace)
		}
	}
	ep.PodUID = pod.UID
	ep.Labels = s.o.Identities.Labels(pod, ns)
	ep.NamedPorts = pod.NamedPorts
	id, err := s.o.Identities.Allocate(ctx, ep.Labels)
	if err != nil {
		return ep, tryAgain(true, "pod %s: %w", ep.Pod, err)
	}
	ep.Identity = id
	return ep, nil
}

// TakeNumber gives the number of an endpoint to something that is no pod: want, which an earlier run has
// given it, if it is free and not 0. It is called after Restore.
func (s *Server) TakeNumber(want uint16) (uint16, error) {
	s.mu.Lock()
	_, reserved := s.links[want]
	_, used := s.t.Endpoints.Get(want)
	if free := want != 0 && !used && !reserved; free {
		s.links[want] = Link{}
		s.mu.Unlock()
		return want, nil
	}
	s.mu.Unlock()
	return s.takeID()
}

// takeID returns a free endpoint number; numbers are not used again before all others were.
func (s *Server) takeID() (uint16, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 1 << 16 {
		s.next++
		_, reserved := s.links[s.next]
		if _, used := s.t.Endpoints.Get(s.next); s.next != 0 && !used && !reserved {
			s.links[s.next] = Link{}
			return s.next, nil
		}
	}
	return 0, errors.New("all 65535 endpoint numbers of this node are in use")
}

// connect makes the pair of an endpoint, writes its row and file, and waits for the kernel.
func (s *Server) connect(ctx context.Context, ep state.Endpoint) (*wire.Interface, error) {
	link, err := s.o.Datapath.CreateLink(ctx, ep)
	if err != nil {
		return nil, fmt.Errorf("create interface %s of pod %s: %w", ep.IfName, ep.Pod, err)
	}
	crash.At(crash.PodLink)
	ep.IfIndex, ep.MAC, ep.NodeMAC = link.HostIndex, link.PodMAC, link.HostMAC
	s.mu.Lock()
	s.links[ep.ID] = link
	s.mu.Unlock()
	if err := s.save(ep, link); err != nil {
		return nil, err
	}
	rev := s.put(ep)
	crash.At(crash.PodKnown)
	if err := s.o.Datapath.Publish(ctx, ep, rev); err != nil {
		return nil, fmt.Errorf("program endpoint %d of pod %s: %w", ep.ID, ep.Pod, err)
	}
	crash.At(crash.Published)
	return s.answer(ep, link), nil
}

func (s *Server) put(ep state.Endpoint) state.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.t.DB.WriteTxn()
	s.t.Endpoints.Insert(w, ep)
	return w.Commit()
}

// change writes what f makes of the row and the file of an endpoint; it does nothing when the row is
// gone.
func (s *Server) change(id uint16, f func(*state.Endpoint)) (state.Endpoint, state.Revision, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ep, rev, ok := s.changeRow(id, f)
	if !ok {
		return ep, rev, ok
	}
	if err := s.save(ep, s.links[id]); err != nil {
		s.log.Warn("cannot save endpoint", "endpoint", id, "error", err)
	}
	return ep, rev, true
}

// changeRow writes what f makes of the row of an endpoint. The caller holds mu.
func (s *Server) changeRow(id uint16, f func(*state.Endpoint)) (state.Endpoint, state.Revision, bool) {
	ep, ok := s.t.Endpoints.Get(id)
	if !ok {
		return state.Endpoint{}, 0, false
	}
	f(&ep)
	w := s.t.DB.WriteTxn()
	s.t.Endpoints.Insert(w, ep)
	return ep, w.Commit(), true
}

func (s *Server) answer(ep state.Endpoint, link Link) *wire.Interface {
	out := &wire.Interface{
		EndpointID: ep.ID,
		HostName:   ep.IfName,
		HostMAC:    ep.NodeMAC.String(),
		PeerName:   link.PeerName,
		PodMAC:     ep.MAC.String(),
		MTU:        link.MTU,
		RouteMTU:   link.RouteMTU,
	}
	if ep.IPv4.IsValid() {
		out.Addresses = append(out.Addresses, wire.Address{IP: ep.IPv4, Gateway: s.o.Addresses.Router4()})
	}
	if ep.IPv6.IsValid() {
		out.Addresses = append(out.Addresses, wire.Address{IP: ep.IPv6, Gateway: s.o.Addresses.Router6()})
	}
	return out
}

// MarkReady says that the pod's side of an attachment is set up.
func (s *Server) MarkReady(_ context.Context, a wire.Attachment) error {
	defer s.lock(a)()
	have := s.find(a)
	if len(have) == 0 {
		return tryAgain(false, "no endpoint of container %s", a.ContainerID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The file says nothing of it: a start brings every endpoint back to ready by itself.
	s.changeRow(have[0].ID, func(e *state.Endpoint) { e.State = state.EndpointReady })
	return nil
}

// Del removes the endpoints of an attachment; there may be none.
func (s *Server) Del(ctx context.Context, a wire.Attachment) error {
	defer s.lock(a)()
	for _, ep := range s.find(a) {
		s.remove(ctx, ep)
		s.log.Info("endpoint removed", "endpoint", ep.ID, "pod", ep.Pod.String())
	}
	return nil
}

// remove takes everything of an endpoint back. Nothing in it may fail a DEL: what is left over is
// found by the loops of the datapath.
func (s *Server) remove(ctx context.Context, ep state.Endpoint) {
	s.mu.Lock()
	w := s.t.DB.WriteTxn()
	s.t.Endpoints.Delete(w, ep.ID)
	w.Commit()
	s.mu.Unlock()
	if err := s.o.Datapath.DeleteLink(ctx, ep.IfName); err != nil {
		s.log.Warn("cannot delete interface", "interface", ep.IfName, "pod", ep.Pod.String(), "error", err)
	}
	s.release(ep.ID, ep.IPv4, ep.IPv6)
}

// release takes the number and the addresses of an endpoint back. Its file stays as long as these are
// taken, so that a start in between knows that they are.
func (s *Server) release(id uint16, addrs ...netip.Addr) {
	s.o.Addresses.Release(func() {
		if err := os.Remove(s.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot remove the file of an endpoint that is gone", "endpoint", id, "error", err)
		}
		s.mu.Lock()
		delete(s.links, id)
		s.mu.Unlock()
	}, addrs...)
}

// Check compares an attachment with its endpoint and returns what the pod's side must look like.
func (s *Server) Check(_ context.Context, a wire.Attachment) (*wire.Interface, error) {
	defer s.lock(a)()
	have := s.find(a)
	if len(have) == 0 {
		return nil, &wire.Error{Code: wire.CodeBrokenAttach, Message: fmt.Sprintf("no endpoint of container %s, interface %s", a.ContainerID, a.IfName)}
	}
	ep := have[0]
	if _, ok := s.o.Datapath.HasLink(ep.IfName); !ok {
		return nil, &wire.Error{Code: wire.CodeBrokenAttach, Message: fmt.Sprintf("interface %s of endpoint %d is gone", ep.IfName, ep.ID)}
	}
	if ep.State != state.EndpointReady {
		return nil, &wire.Error{Code: wire.CodeBrokenAttach, Message: fmt.Sprintf("endpoint %d is %s", ep.ID, ep.State)}
	}
	s.mu.Lock()
	link := s.links[ep.ID]
	s.mu.Unlock()
	return s.answer(ep, link), nil
}

// GC removes the endpoints of all attachments that are not listed.
func (s *Server) GC(ctx context.Context, valid []wire.Attachment) error {
	for _, ep := range s.t.Endpoints.All() {
		if ep.ContainerID == "" {
			continue
		}
		stays := slices.ContainsFunc(valid, func(a wire.Attachment) bool {
			return a.ContainerID == ep.ContainerID && a.IfName == ep.ContainerIf
		})
		if !stays {
			s.log.Info("endpoint of an unknown attachment", "endpoint", ep.ID, "pod", ep.Pod.String(), "container", ep.ContainerID)
			if err := s.Del(ctx, wire.Attachment{ContainerID: ep.ContainerID, IfName: ep.ContainerIf}); err != nil {
				return err
			}
		}
	}
	return nil
}
