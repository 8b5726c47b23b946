// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"lash.internal/lash/agent/api"
)

// A replica that ends gives its lease up; one that dies loses it after leaseTime.
const (
	leaseTime     = 15 * time.Second
	leaseDeadline = 10 * time.Second
	leaseRetry    = 2 * time.Second
)

// ErrLostLease says that another replica has taken over. The process should end: what it knows is
// stale.
var ErrLostLease = errors.New("the lease " + api.OperatorLease + " was lost")

// lease is the lock of the working replica. It remembers what keeps this replica from it.
type lease struct {
	resourcelock.Interface
	now func() time.Time

	mu    sync.Mutex
	err   error
	since time.Time
}

func (o *Operator) lease() *lease {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &lease{now: o.now, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: api.OperatorLease, Namespace: o.cfg.KubernetesNamespace},
		Client:     o.client.Kubernetes.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "-" + string(uuid.NewUUID())[:8]},
	}}
}

// note remembers an error. That there is no lease yet, and that another replica was faster, is
// none.
func (l *lease) note(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		l.err = nil
		return err
	}
	if l.err == nil {
		l.since = l.now()
	}
	l.err = err
	return err
}

// problem is what has kept this replica from the lease for as long as a lease lasts, or nil.
func (l *lease) problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil || l.now().Sub(l.since) < leaseTime {
		return nil
	}
	return fmt.Errorf("lease %s: %w", l.Describe(), l.err)
}

// Get implements resourcelock.Interface.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r, raw, err := l.Interface.Get(ctx)
	return r, raw, l.note(err)
}

// Create implements resourcelock.Interface.
func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Create(ctx, r))
}

// Update implements resourcelock.Interface.
func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Update(ctx, r))
}

// lead waits for the lease and works while it is held. It returns when ctx is done (nil), with the
// error of work that failed, or with ErrLostLease. The lease is given up after the work has ended,
// never before.
func (o *Operator) lead(ctx context.Context, l *lease, watchdog *leaderelection.HealthzAdaptor) error {
	electing, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	leading := make(chan context.Context, 1)
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: api.OperatorLease, Lock: l, WatchDog: watchdog,
		LeaseDuration: leaseTime, RenewDeadline: leaseDeadline, RetryPeriod: leaseRetry, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) { leading <- held },
			OnStoppedLeading: func() { o.log.Info("lease given up") },
			OnNewLeader:      func(who string) { o.log.Info("leader", "replica", who) },
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer giveUp()
		select {
		case <-ctx.Done():
		case held := <-leading:
			working, stop := context.WithCancel(held)
			defer stop()
			defer context.AfterFunc(ctx, stop)()
			if err := o.work(working); err != nil && working.Err() == nil {
				failed = err
			}
		}
	})
	e.Run(electing)
	lost := electing.Err() == nil
	giveUp()
	wg.Wait()
	switch {
	case failed != nil:
		return failed
	case lost && ctx.Err() == nil:
		return ErrLostLease
	}
	return nil
}
