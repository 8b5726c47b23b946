// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/leaderelection"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/config"
	"lash.internal/lash/agent/kube/fake"
)

// replica is an operator that has been started.
type replica struct {
	op    *Operator
	lease *lease
	stop  context.CancelFunc
	ended chan error
	dog   *leaderelection.HealthzAdaptor
}

func (w *world) start(cfg config.Config) *replica {
	ctx, stop := context.WithCancel(w.ctx)
	r := &replica{op: w.operator(cfg), stop: stop, ended: make(chan error, 1), dog: leaderelection.NewLeaderHealthzAdaptor(20 * time.Second)}
	r.lease = r.op.lease()
	go func() { r.ended <- r.op.lead(ctx, r.lease, r.dog) }()
	settle(5 * time.Second)
	return r
}

func (r *replica) health(query string) (int, string) {
	w := httptest.NewRecorder()
	healthz(r.dog, r.lease).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz"+query, nil))
	return w.Code, w.Body.String()
}

func (w *world) holder() string {
	w.t.Helper()
	l, err := w.api.Kubernetes.CoordinationV1().Leases("kube-system").Get(w.ctx, api.OperatorLease, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// podCIDRs adds a node to see which replica works, if any.
func (w *world) podCIDRs(node string) []string {
	w.t.Helper()
	w.put(newCiliumNode(node))
	if _, err := w.api.Kubernetes.CoreV1().Nodes().Create(w.ctx, newNode(node), metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	settle(2 * time.Second)
	return w.ciliumNode(node).Spec.IPAM.PodCIDRs
}

// TestLeaseHandOver: one replica works at a time; one that ends hands over at once and only after
// its work has ended, one that dies after the lease's time; what was given to nodes stays theirs.
func TestLeaseHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, poolConfig())
		first := w.start(poolConfig())
		second := w.start(poolConfig())
		if w.holder() != first.lease.Identity() {
			t.Fatalf("%s holds the lease", w.holder())
		}
		if got := w.podCIDRs("n1"); len(got) != 1 || got[0] != "10.1.0.0/24" {
			t.Errorf("n1 has %v", got)
		}
		first.stop()
		if err := <-first.ended; err != nil {
			t.Errorf("the first ended with %v", err)
		}
		if h := w.holder(); h != "" {
			t.Errorf("after a proper end the lease is of %s", h)
		}
		settle(5 * time.Second)
		if w.holder() != second.lease.Identity() {
			t.Fatalf("%s holds the lease", w.holder())
		}
		if got := w.podCIDRs("n2"); len(got) != 1 || got[0] != "10.1.1.0/24" {
			t.Errorf("n2 has %v", got)
		}
		// The second cannot renew any more: it stops before the lease runs out.
		third := w.start(poolConfig())
		w.api.Fail("update", "leases", api.OperatorLease, errors.New("connection refused"), -1)
		settle(leaseDeadline + 3*time.Second)
		select {
		case err := <-second.ended:
			if !errors.Is(err, ErrLostLease) {
				t.Errorf("the second ended with %v", err)
			}
		default:
			t.Error("the second works on without a lease")
		}
		w.api.Heal()
		settle(leaseTime + 5*time.Second)
		if w.holder() != third.lease.Identity() {
			t.Errorf("%s holds the lease", w.holder())
		}
		if got := w.ciliumNode("n1").Spec.IPAM.PodCIDRs; len(got) != 1 || got[0] != "10.1.0.0/24" {
			t.Errorf("n1 has %v now", got)
		}
		third.stop()
		<-third.ended
	})
}

// TestLeaseIsGivenUpAfterTheWork: a replica that is told to end writes nothing that a new leader
// could not know of.
func TestLeaseIsGivenUpAfterTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, poolConfig())
		var held string
		slow := func(clienttesting.Action) (bool, runtime.Object, error) {
			time.Sleep(3 * time.Second) // longer than the retries of an idle replica take
			held = w.holder()
			return false, nil, nil
		}
		r := w.start(poolConfig())
		w.api.Dynamic.PrependReactor("update", "ciliumnodes", slow)
		w.put(newCiliumNode("n1"))
		r.stop()
		if err := <-r.ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		if held != r.lease.Identity() || w.holder() != "" {
			t.Errorf("at its last write the lease was of %q, then of %q", held, w.holder())
		}
	})
}

func TestWorkThatFailsEndsTheReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, defaults())
		w.ext.PrependReactor("create", "customresourcedefinitions", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, fake.Forbidden("customresourcedefinitions")
		})
		r := w.start(defaults())
		if err := <-r.ended; err == nil || !strings.HasPrefix(err.Error(), "create definition ") {
			t.Errorf("ended with %v", err)
		}
		if h := w.holder(); h != "" {
			t.Errorf("the lease is still of %s", h)
		}
	})
}

// TestReadinessNamesTheLease: a replica that may not touch the lease will never work, and says so.
func TestReadinessNamesTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, defaults())
		w.api.Fail("*", "leases", "", fake.Forbidden("leases"), -1)
		r := w.start(defaults())
		if code, body := r.health("?ready"); code != http.StatusOK {
			t.Errorf("at once: %d %s", code, body)
		}
		settle(leaseTime)
		if code, body := r.health("?ready"); code != http.StatusInternalServerError || !strings.Contains(body, "lease kube-system/"+api.OperatorLease+": ") || !strings.Contains(body, "no role allows it") {
			t.Errorf("later: %d %s", code, body)
		}
		if code, body := r.health(""); code != http.StatusOK {
			t.Errorf("a restart would not help, and the liveness is %d %s", code, body)
		}
		w.api.Heal()
		settle(5 * time.Second)
		if code, body := r.health("?ready"); code != http.StatusOK || w.holder() == "" {
			t.Errorf("with permission: %d %s", code, body)
		}
		r.stop()
		<-r.ended
	})
}

// TestStandbyIsReady: waiting for another replica is no problem.
func TestStandbyIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other, seconds := "somebody", int32(15)
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: api.OperatorLease}}
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = &other, &seconds
		w := newWorld(t, defaults(), l)
		r := w.start(defaults())
		settle(leaseTime / 2)
		if code, body := r.health("?ready"); code != http.StatusOK {
			t.Errorf("%d %s", code, body)
		}
		if len(w.api.Writes()) > 0 {
			t.Errorf("a standby wrote %v", w.api.Writes())
		}
		r.stop()
		<-r.ended
	})
}
