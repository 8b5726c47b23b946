// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"lash.internal/lash/agent/api"
)

// Kinds of failure of a push; test with errors.Is.
var (
	// ErrReference is a name that no image can have in a registry.
	ErrReference = errors.New("invalid image reference")
	// ErrRefused is a registry that does not accept the credentials, or asks for some.
	ErrRefused = errors.New("refused by the registry")
	// ErrRegistry is a registry that cannot be spoken to.
	ErrRegistry = errors.New("cannot talk to the registry")
)

// PushOptions say where an image goes and how to talk to the registry.
type PushOptions struct {
	Options // which image; Repository and Version are not used

	Ref       string // REGISTRY/NAME[:TAG]; the tag defaults to the version of this program
	PlainHTTP bool   // use HTTP where the registry has no TLS
	Insecure  bool   // that, and accept any certificate
	CAFile    string // PEM file with more authorities to trust

	// Keychain finds the credentials; nil means none.
	Keychain authn.Keychain
	// Progress hears how many bytes are there, of how many; it may be nil.
	Progress func(done, total int64)
}

// Pushed is an image in a registry.
type Pushed struct {
	Repository string // REGISTRY/NAME
	Tag        string
	Digest     string // sha256:...
	Size       int64  // of layers and configuration, compressed, in bytes
}

// String is the reference that names exactly this image.
func (p Pushed) String() string { return p.Repository + ":" + p.Tag + "@" + p.Digest }

// Push puts the project's image into a registry. It talks to nobody else.
func Push(ctx context.Context, o PushOptions) (Pushed, error) {
	tag, err := o.tag()
	if err != nil {
		return Pushed{}, err
	}
	out := Pushed{Repository: tag.Repository.Name(), Tag: tag.TagStr()}
	client, err := o.transport()
	if err != nil {
		return out, err
	}
	spec, err := o.spec()
	if err != nil {
		return out, err
	}
	spec.Ref = tag.Name()
	img, err := spec.build(packedLayer)
	if err != nil {
		return out, err
	}
	if err := out.describe(img); err != nil {
		return out, err
	}
	keys := o.Keychain
	if keys == nil {
		keys = authn.NewMultiKeychain()
	}
	auth, err := authn.Resolve(ctx, keys, tag.Repository)
	if err != nil {
		return out, fmt.Errorf("credentials for %s: %w", tag.RegistryStr(), err)
	}
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(client), remote.WithUserAgent("lash/" + api.Version),
	}
	wait := func() {}
	if o.Progress != nil {
		updates := make(chan v1.Update, 64)
		done := make(chan struct{})
		go func() { // ends when Write closes the channel
			defer close(done)
			for u := range updates {
				o.Progress(u.Complete, u.Total)
			}
		}()
		wait = func() { <-done }
		options = append(options, remote.WithProgress(updates))
	}
	err = remote.Write(tag, img, options...)
	wait()
	if err != nil {
		return out, explainPush(ctx, err, tag, auth)
	}
	return out, nil
}

func (p *Pushed) describe(img v1.Image) error {
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("image digest: %w", err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("image manifest: %w", err)
	}
	p.Digest, p.Size = digest.String(), manifest.Config.Size
	for _, l := range manifest.Layers {
		p.Size += l.Size
	}
	return nil
}

// packedLayer is a layer for a registry, compressed.
func packedLayer(files []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching)
}

// tag parses the reference. A name without a registry is an error: by convention it would mean the
// registry of Docker.
func (o PushOptions) tag() (name.Tag, error) {
	ref := o.Ref
	wrong := func(why string) error {
		return fmt.Errorf("%w: %q %s; it must be REGISTRY/NAME[:TAG], such as registry.example.com/lash:%s", ErrReference, ref, why, api.Version)
	}
	host, rest, ok := strings.Cut(ref, "/")
	switch {
	case !ok || rest == "" || (!strings.ContainsAny(host, ".:") && host != "localhost"):
		return name.Tag{}, wrong("names no registry")
	case strings.Contains(ref, "@"):
		return name.Tag{}, wrong("has a digest, which follows from the content")
	}
	options := []name.Option{name.WithDefaultTag(api.Version)}
	if o.PlainHTTP || o.Insecure {
		options = append(options, name.Insecure)
	}
	tag, err := name.NewTag(ref, options...)
	if err != nil {
		return name.Tag{}, wrong("is not valid (" + err.Error() + ")")
	}
	return tag, nil
}

func (o PushOptions) transport() (http.RoundTripper, error) {
	t, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		t = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	t = t.Clone()
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			cfg.RootCAs = x509.NewCertPool()
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities: %s holds no certificate in PEM form", o.CAFile)
		}
	}
	t.TLSClientConfig = cfg
	return t, nil
}

// explainPush says what is wrong and what to do about it.
func explainPush(ctx context.Context, err error, tag name.Tag, auth authn.Authenticator) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	host := tag.RegistryStr()
	var answer *transport.Error
	var cert *tls.CertificateVerificationError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		user := userOf(ctx, auth)
		switch {
		case user == "":
			return fmt.Errorf("%w: %s wants a login and there are no credentials for it: run `docker login %s` or `helm registry login %s` first (%w)", ErrRefused, host, host, host, err)
		case answer.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %s does not let %s write to %s (%w)", ErrRefused, host, user, tag.RepositoryStr(), err)
		}
		return fmt.Errorf("%w: %s does not accept the credentials of %s: log in again with `docker login %s` (%w)", ErrRefused, host, user, host, err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w: %s speaks HTTP without TLS: add --plain-http (%w)", ErrRegistry, host, err)
	case errors.As(err, &cert):
		return fmt.Errorf("%w: the certificate of %s is not trusted: give its authority with --ca-file, or --insecure-registry to accept any (%w)", ErrRegistry, host, err)
	case errors.As(err, &dns):
		return fmt.Errorf("%w: the name %s is not known: %w", ErrRegistry, dns.Name, err)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%w: nothing answers at %s: %w", ErrRegistry, host, err)
	}
	return fmt.Errorf("pushing %s: %w", tag.Name(), err)
}

// userOf names whose credentials were used; empty for none.
func userOf(ctx context.Context, auth authn.Authenticator) string {
	if auth == authn.Anonymous {
		return ""
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil || cfg == nil {
		return ""
	}
	switch {
	case cfg.Username != "":
		return "user " + cfg.Username
	case cfg.RegistryToken != "", cfg.IdentityToken != "", cfg.Auth != "":
		return "the token that is configured"
	}
	return ""
}
