// SPDX-License-Identifier: Apache-2.0

package image

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"lash.internal/lash/agent/api"
)

// registryServer runs a registry in this process. With a user it wants that login; code is what
// it answers to others.
func registryServer(t *testing.T, user, password string, code int, withTLS bool) *httptest.Server {
	t.Helper()
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, ok := r.BasicAuth()
		switch {
		case user != "" && !ok:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case user != "" && (u != user || p != password):
			w.WriteHeader(code)
		default:
			reg.ServeHTTP(w, r)
		}
	})
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if withTLS {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// login is a keychain of one login for every registry.
type login authn.AuthConfig

func (l login) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(l)), nil
}

func host(s *httptest.Server) string { return s.Listener.Addr().String() }

// TestPush pulls what was pushed and compares it with what an archive holds.
func TestPush(t *testing.T) {
	s := registryServer(t, "ann", "secret", 401, false)
	var last int64
	o := PushOptions{
		Options: Options{Dir: programsIn(t)}, Ref: host(s) + "/net/lash", Keychain: login{Username: "ann", Password: "secret"},
		Progress: func(done, _ int64) { last = done },
	}
	p, err := Push(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if p.Tag != api.Version || p.Repository != host(s)+"/net/lash" || last == 0 || p.Size == 0 {
		t.Errorf("pushed %+v, last progress %d", p, last)
	}
	again, err := Push(t.Context(), o)
	if err != nil || again.Digest != p.Digest {
		t.Errorf("the same programs give %s, then %s (%v)", p.Digest, again.Digest, err)
	}
	ref, err := name.NewDigest(p.Repository + "@" + p.Digest)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithAuthFromKeychain(o.Keychain))
	if err != nil {
		t.Fatal(err)
	}
	rootfs := mutate.Extract(img)
	defer rootfs.Close()
	b, err := io.ReadAll(rootfs)
	if err != nil || !strings.Contains(string(b), "program lash-agent") {
		t.Errorf("the image does not hold the node program (%v)", err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatal(layers, err)
	}
	if size, _ := layers[0].Size(); size >= int64(len(b)) {
		t.Errorf("the layer has %d bytes of %d: it is not compressed", size, len(b))
	}
}

func TestPushOverTLS(t *testing.T) {
	s := registryServer(t, "", "", 0, true)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	trust := PushOptions{Options: Options{Dir: programsIn(t)}, Ref: host(s) + "/lash:1", CAFile: ca}
	if _, err := Push(t.Context(), trust); err != nil {
		t.Errorf("with the authority: %v", err)
	}
	trust.CAFile, trust.Insecure = "", true
	if _, err := Push(t.Context(), trust); err != nil {
		t.Errorf("with any certificate: %v", err)
	}
	trust.Insecure = false
	if _, err := Push(t.Context(), trust); !errors.Is(err, ErrRegistry) || !strings.Contains(err.Error(), "--ca-file") {
		t.Errorf("unknown authority: %v", err)
	}
}

func TestPushErrorsSayWhatToDo(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	wants := registryServer(t, "ann", "secret", 401, false)
	denies := registryServer(t, "ann", "secret", 403, false)
	dir := programsIn(t)
	for name, c := range map[string]struct {
		ref  string
		keys authn.Keychain
		kind error
		want string
	}{
		"no login":       {host(wants) + "/lash:1", nil, ErrRefused, "there are no credentials for it: run `docker login " + host(wants)},
		"wrong password": {host(wants) + "/lash:1", login{Username: "ann", Password: "x"}, ErrRefused, "does not accept the credentials of user ann"},
		"no permission":  {host(denies) + "/net/lash:1", login{Username: "bob", Password: "x"}, ErrRefused, "does not let user bob write to net/lash"},
		"nobody there":   {nobody + "/lash:1", nil, ErrRegistry, "nothing answers at " + nobody},
		"no registry":    {"lash:1", nil, ErrReference, "names no registry; it must be REGISTRY/NAME[:TAG]"},
		"user as host":   {"ann/lash:1", nil, ErrReference, "names no registry"},
		"upper case":     {"r.example/LASH:1", nil, ErrReference, "is not valid"},
		"digest":         {"r.example/lash@sha256:1", nil, ErrReference, "has a digest"},
	} {
		_, err := Push(t.Context(), PushOptions{Options: Options{Dir: dir}, Ref: c.ref, Keychain: c.keys})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	_, err = Push(t.Context(), PushOptions{Options: Options{Dir: dir}, Ref: host(wants) + "/lash:1", CAFile: filepath.Join(dir, "lash-agent")})
	if err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("authorities without a certificate: %v", err)
	}
}

// TestPushPlainHTTP uses a name that is not of this machine, as a registry in a lab has.
func TestPushPlainHTTP(t *testing.T) {
	s := registryServer(t, "", "", 0, false)
	_, port, err := net.SplitHostPort(host(s))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := PushOptions{Ref: "registry.example:" + port + "/lash", PlainHTTP: true}.tag()
	if err != nil || tag.Scheme() != "http" {
		t.Errorf("scheme %s, %v", tag.Scheme(), err)
	}
	if tag, err = (PushOptions{Ref: "registry.example:" + port + "/lash"}).tag(); err != nil || tag.Scheme() != "https" {
		t.Errorf("without the flag: scheme %s, %v", tag.Scheme(), err)
	}
	// What a client sees that expects TLS.
	_, err = (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}}).Get("https://" + host(s) + "/v2/")
	if err == nil {
		t.Fatal("a server without TLS spoke it")
	}
	if got := explainPush(t.Context(), err, tag, authn.Anonymous); !errors.Is(got, ErrRegistry) || !strings.Contains(got.Error(), "add --plain-http") {
		t.Errorf("got %v", got)
	}
}
