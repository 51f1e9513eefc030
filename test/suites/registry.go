package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	registries "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registry answers for the registries whose images the suites use.
type registry struct {
	server *http.Server
	done   chan error
	// certificate is the path of what its clients have to trust.
	certificate string
	// list is the path of the names of images, in the form that the suites read.
	list string
}

// startRegistry starts it on the loopback device, leads the registries' names
// there, and fills it.
func startRegistry(ctx context.Context, dir string) (*registry, error) {
	all, err := images(ctx)
	if err != nil {
		return nil, err
	}
	hosts := map[string]bool{}
	for ref := range all {
		host, _, _ := strings.Cut(ref, "/")
		hosts[host] = true
	}
	r := &registry{done: make(chan error, 1), certificate: filepath.Join(dir, "registry.pem"), list: filepath.Join(dir, "images.toml")}
	cert, err := r.certify(hosts)
	if err != nil {
		return nil, err
	}
	if err := leadHere(hosts); err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:443", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	r.server = &http.Server{Handler: registries.New(registries.Logger(quiet)), ErrorLog: quiet, ReadHeaderTimeout: time.Minute}
	go func() { r.done <- r.server.Serve(listener) }() // stop waits for it
	if err := r.fill(ctx, all); err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return r, nil
}

func (r *registry) stop() error {
	err := r.server.Close()
	if serr := <-r.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// certify makes a certificate for the hosts that is trusted by name.
func (r *registry) certify(hosts map[string]bool) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for h := range hosts {
		template.DNSNames = append(template.DNSNames, h)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	err = os.WriteFile(r.certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// leadHere makes the names of the hosts those of the loopback device.
func leadHere(hosts map[string]bool) error {
	var text strings.Builder
	text.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for h := range hosts {
		fmt.Fprintln(&text, "127.0.0.1", h)
	}
	// Not the host's: see settle. It may be a link to what is not there.
	const file = "/etc/hosts"
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(file, []byte(text.String()), 0o644)
}

// fill puts the images into the registry, and writes the list. Names of images
// that the suites use by digest have to be in the list, as ours have digests of
// their own.
func (r *registry) fill(ctx context.Context, all map[string]image) error {
	pem, err := os.ReadFile(r.certificate)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	var list strings.Builder
	for ref, i := range all {
		tag, err := name.NewTag(ref)
		if err != nil {
			return err
		}
		if err := remote.Write(tag, i.Image, remote.WithTransport(transport), remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
		if i.key != "" {
			fmt.Fprintf(&list, "%s = %q\n", i.key, ref)
		}
		if i.digestKey != "" {
			digest, err := i.Digest()
			if err != nil {
				return err
			}
			fmt.Fprintf(&list, "%s = %q\n", i.digestKey, tag.Context().Digest(digest.String()).Name())
		}
	}
	return os.WriteFile(r.list, []byte(list.String()), 0o644)
}
