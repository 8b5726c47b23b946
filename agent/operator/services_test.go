// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube"
)

func webService(name, clusterIP string, created int64, annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "uid", CreationTimestamp: metav1.NewTime(time.Unix(created, 0)), Annotations: annotations},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			ExternalIPs: []string{"192.0.2.5"}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

// said is what a Service and its events say: the message of the condition and the number of events.
func (w *world) said(name string) string {
	s, err := w.api.Kubernetes.CoreV1().Services("default").Get(w.ctx, name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	events, err := w.api.Kubernetes.CoreV1().Events("default").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, e := range events.Items {
		if e.InvolvedObject.Name == name && e.InvolvedObject.UID == "uid" && e.Type == corev1.EventTypeWarning {
			n++
		}
	}
	for _, c := range s.Status.Conditions {
		if c.Type == kube.ServiceHonored {
			return fmt.Sprintf("%s %s: %s; %d events", c.Status, c.Reason, c.Message, n)
		}
	}
	return fmt.Sprintf("nothing; %d events", n)
}

// TestServicesAreTold puts on a Service what of it is not honoured, and takes it away when it is.
func TestServicesAreTold(t *testing.T) {
	cfg := defaults()
	cfg.KubeProxyReplacement, cfg.SourceRangeCheck, cfg.LBMode, cfg.LBAlgorithm, cfg.NodePortMin, cfg.NodePortMax = true, true, "snat", "random", 30000, 32767
	ok := webService("ok", "10.96.0.1", 100, nil)
	other := metav1.Condition{Type: "example.org/Mine", Status: metav1.ConditionTrue, Reason: "R", LastTransitionTime: metav1.Now()}
	ok.Status.Conditions = []metav1.Condition{other}
	bubble(t, cfg, nil, func(w *world) {
		const clash = "False AddressInUse: 192.0.2.5:80/TCP is served for Service default/ok, which was there before; 1 events"
		settle(time.Second)
		if got := w.said("ok"); got != "nothing; 0 events" {
			t.Errorf("ok: %s", got)
		}
		if got := w.said("late"); got != clash {
			t.Errorf("late: %s", got)
		}
		settle(time.Hour) // audits write nothing
		if got := w.said("late"); got != clash {
			t.Errorf("late, an hour after: %s", got)
		}
		if err := w.api.Kubernetes.CoreV1().Services("default").Delete(w.ctx, "ok", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := w.said("late"); got != "nothing; 1 events" {
			t.Errorf("late, when the address is free: %s", got)
		}
		s := webService("late", "10.96.0.2", 200, map[string]string{"service.cilium.io/global": "true"})
		s.Status.Conditions = []metav1.Condition{other}
		if _, err := w.api.Kubernetes.CoreV1().Services("default").Update(w.ctx, s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := w.said("late"); got != "False UnsupportedAnnotation: annotation service.cilium.io/global=true is not honoured; 2 events" {
			t.Errorf("late, with an annotation: %s", got)
		}
		now, err := w.api.Kubernetes.CoreV1().Services("default").Get(w.ctx, "late", metav1.GetOptions{})
		if err != nil || len(now.Status.Conditions) != 2 {
			t.Errorf("somebody else's condition is gone: %+v, %v", now.Status.Conditions, err)
		}
	}, ok, webService("late", "10.96.0.2", 200, nil))
}
