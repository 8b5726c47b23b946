// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"helm.sh/helm/v3/pkg/release"
)

// settings are those of an installation with the options of data.
func settings(t *testing.T, data map[string]string) (s Settings, said *[]string) {
	t.Helper()
	i := with(t, past{"{}", release.StatusDeployed})
	i.live(data)
	said = &[]string{}
	return Settings{Cluster: i.c, Say: func(f string, a ...any) { *said = append(*said, fmt.Sprintf(f, a...)) }}, said
}

var options = map[string]string{"cluster-name": "c", "debug": "false", "x-mine": "1"}

func TestSetAndDelete(t *testing.T) {
	s, said := settings(t, options)
	ctx := context.Background()
	for _, c := range []struct {
		do      func() (bool, error)
		changed bool
		said    string
		want    map[string]string
	}{
		{func() (bool, error) { return s.Set(ctx, "debug", "true") }, true, "✨ Patching ConfigMap cilium-config with debug=true...", map[string]string{"cluster-name": "c", "debug": "true", "x-mine": "1"}},
		{func() (bool, error) { return s.Set(ctx, "debug", "true") }, false, "ℹ️  cilium-config has debug=true already", map[string]string{"cluster-name": "c", "debug": "true", "x-mine": "1"}},
		{func() (bool, error) { return s.Delete(ctx, "debug") }, true, "✨ Removing key debug from ConfigMap cilium-config...|ℹ️  Its default counts again: \"false\"", map[string]string{"cluster-name": "c", "x-mine": "1"}},
		{func() (bool, error) { return s.Delete(ctx, "debug") }, false, "ℹ️  cilium-config does not set debug; its default is \"false\"", map[string]string{"cluster-name": "c", "x-mine": "1"}},
		{func() (bool, error) { return s.Delete(ctx, "x-mine") }, true, "✨ Removing key x-mine from ConfigMap cilium-config...", map[string]string{"cluster-name": "c"}},
	} {
		*said = nil
		changed, err := c.do()
		if err != nil || changed != c.changed || strings.Join(*said, "|") != c.said {
			t.Errorf("changed %v, %v, said %q, want %q", changed, err, *said, c.said)
		}
		if got, err := s.All(ctx); err != nil || !maps.Equal(got, c.want) {
			t.Errorf("after %q: %v, %v", c.said, got, err)
		}
	}
}

// TestSetRefuses wants every refusal to come before anything is written.
func TestSetRefuses(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		data       map[string]string
		key, value string
		kind       error
		want       string
	}{
		"misspelt":           {options, "debgu", "true", ErrUnknownOption, "unknown option debgu: did you mean debug?"},
		"like nothing":       {options, "zzzzzzzzzzzzzzzzzz", "1", ErrUnknownOption, "`lash config view` lists"},
		"wrong value":        {options, "debug", "perhaps", ErrBadOption, `nothing was changed: option debug (cilium-config): "perhaps" is neither true nor false`},
		"wrong with others":  {options, "enable-ipv4", "false", ErrBadOption, "enable-ipv4 and enable-ipv6: one of them must be true"},
		"pool and mask":      {options, "cluster-pool-ipv4-mask-size", "30", nil, ""},
		"wrong mask":         {options, "cluster-pool-ipv4-mask-size", "4", ErrBadOption, "does not fit the pool"},
		"wrong before, too":  {map[string]string{"ipam": "eni"}, "debug", "true", nil, ""},
		"healing":            {map[string]string{"ipam": "eni"}, "ipam", "kubernetes", nil, ""},
		"feature of another": {options, "enable-hubble", "true", ErrBadOption, "true is not supported"},
	} {
		s, said := settings(t, c.data)
		_, err := s.Set(ctx, c.key, c.value)
		if c.kind == nil {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		got, _ := s.All(ctx)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || len(*said) > 0 || !maps.Equal(got, c.data) {
			t.Errorf("%s: %v, said %q, %v", name, err, *said, got)
		}
	}
	s, _ := settings(t, options)
	if _, err := s.Delete(ctx, "x-mien"); !errors.Is(err, ErrUnknownOption) || !strings.Contains(err.Error(), "did you mean x-mine?") {
		t.Errorf("deleting what is not there: %v", err)
	}
}

func TestSetSaysWhatWinsOverIt(t *testing.T) {
	s, said := settings(t, options)
	ctx := context.Background()
	ds := daemonSet("cilium")
	ds.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "CILIUM_DEBUG", Value: "false"}}
	ds.Spec.Template.Spec.Containers[0].Args = []string{"--mtu=1300"}
	if _, err := s.Cluster.Clientset.AppsV1().DaemonSets("kube-system").Create(ctx, ds, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"debug": "DaemonSet cilium sets CILIUM_DEBUG=false, which wins", "mtu": "has the argument --mtu=1300, which wins"} {
		*said = nil
		value := map[string]string{"debug": "true", "mtu": "1400"}[key]
		if _, err := s.Set(ctx, key, value); err != nil || len(*said) != 2 || !strings.Contains((*said)[1], want) {
			t.Errorf("%v, said %q, want %q", err, *said, want)
		}
	}
}

func TestConfigMapOfOthers(t *testing.T) {
	ctx := context.Background()
	s, _ := settings(t, options)
	if err := s.Cluster.Clientset.CoreV1().ConfigMaps("kube-system").Delete(ctx, ConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Set(ctx, "debug", "true"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("without the ConfigMap: %v", err)
	}
	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Namespace: "kube-system", Labels: map[string]string{"helm.sh/chart": "cilium-1.15.1"}}}
	if _, err := s.Cluster.Clientset.CoreV1().ConfigMaps("kube-system").Create(ctx, foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Set(ctx, "debug", "true"); !errors.Is(err, ErrForeign) {
		t.Errorf("Cilium's own ConfigMap: %v", err)
	}
}

func TestSetMeetsAnotherWriter(t *testing.T) {
	s, _ := settings(t, options)
	s.Cluster.Clientset.(*fake.Clientset).PrependReactor("patch", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, ConfigMap, errors.New("the object has been modified"))
	})
	if _, err := s.Set(context.Background(), "debug", "true"); err == nil || !strings.Contains(err.Error(), "changed by somebody else at the same moment") {
		t.Errorf("got %v", err)
	}
}
