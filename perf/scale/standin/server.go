// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

// Options of New.
type Options struct {
	// Clock gives the times of events; nil: nanoseconds since New.
	Clock func() int64
	// Version is what the server says it is, such as v1.36.3.
	Version string
	// NoStreams refuses to send whole sets as events, as servers before 1.32 do.
	NoStreams bool
}

// Server is the stand-in.
type Server struct {
	o     Options
	store *store
	ca    []byte
	http  *http.Server
	quit  chan struct{}
}

// New makes a server without objects.
func New(o Options) (*Server, error) {
	if o.Clock == nil {
		start := time.Now()
		o.Clock = func() int64 { return int64(time.Since(start)) }
	}
	cert, ca, err := selfSigned()
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, store: newStore(o.Clock), ca: ca, quit: make(chan struct{})}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}},
	}
	return s, nil
}

// Serve answers on a listener until Close; several may be served at a time.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("stand-in of the API server: %w", err)
	}
	return nil
}

// Close ends all watches and listeners.
func (s *Server) Close() error {
	close(s.quit)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// Kubeconfig is a client's configuration for the server at an address.
func (s *Server) Kubeconfig(addr string) ([]byte, error) {
	c := clientapi.NewConfig()
	c.Clusters["standin"] = &clientapi.Cluster{Server: "https://" + addr, CertificateAuthorityData: s.ca}
	c.AuthInfos["standin"] = &clientapi.AuthInfo{Token: "anyone"}
	c.Contexts["standin"] = &clientapi.Context{Cluster: "standin", AuthInfo: "standin"}
	c.CurrentContext = "standin"
	return clientcmd.Write(*c)
}

// Put writes an object of a built-in kind, whatever is there. The object gets the version that it has.
func (s *Server) Put(obj runtime.Object) (*Change, error) { return s.put(obj, either) }

func (s *Server) put(obj runtime.Object, m mode) (*Change, error) {
	k, err := kindOf(obj)
	if err != nil {
		return nil, err
	}
	acc, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	return s.store.write(k, m, acc, func() (*object, error) { return fromTyped(k, obj) })
}

// Delete takes away the object that has the kind and the name of obj.
func (s *Server) Delete(obj runtime.Object) (*Change, error) {
	k, err := kindOf(obj)
	if err != nil {
		return nil, err
	}
	acc, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	return s.store.remove(k, acc.GetNamespace()+"/"+acc.GetName())
}

// Fresh drops the history, so that what has been put so far is what is listed first and no event.
func (s *Server) Fresh() {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	for _, p := range s.store.parts {
		p.log, p.floor = nil, s.store.version
	}
}

func selfSigned() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("key: %w", err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "standin"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", mediaJSON)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}
