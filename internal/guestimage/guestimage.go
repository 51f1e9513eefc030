// Package guestimage makes what a virtual machine boots from: an uncompressed
// kernel and an initrd with our agent as /init.
//
// The kernel is the configured one, the tuned one of `make kernel`, the host's
// own, or that of Debian's kernel package, which is fetched but not installed.
// From the kernel's modules the initrd gets those that a guest may need.
//
// Everything lives in a cache directory and can be made again:
//
//	lock                 held by the one builder at work
//	memo/CONFIG.json     what Ensure found last time, and which files it read
//	image/KEY/           initrd and image.json; KEY is a hash of the content
//	kernel/elf/HASH/     vmlinux and kernel.json; HASH is of the source image
//	kernel/debian/NAME/  the unpacked part of a kernel package
//	kernel/tuned/        vmlinux, written by guest/kernel/build.sh
//
// Directories appear by rename, complete or not at all. The host's files are
// trusted; nothing in here comes from a guest or a container image.
package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// formatVersion changes when the same sources make another kernel or initrd in
// the cache, for another reason than the list of wanted modules.
const formatVersion = "1"

// ErrNoKernel is wrapped by the error of Ensure when no kernel can be had.
var ErrNoKernel = errors.New("no usable guest kernel")

// ErrNoAgent is wrapped by the error of Ensure when the agent cannot be used.
var ErrNoAgent = errors.New("no usable guest agent")

// Kernel is a guest kernel ready for the VMM.
type Kernel struct {
	// Version is the release, as `uname -r` prints it in the guest.
	Version string `json:"version"`
	// VMLinux is the path of the uncompressed ELF image in the cache.
	VMLinux string `json:"vmlinux"`
	// ModulesDir is the host's directory with the kernel's modules
	// (…/lib/modules/VERSION), or "" if it needs none.
	ModulesDir string `json:"modules_dir"`
	// Source says where the kernel came from: "configured", "tuned",
	// "host /boot" or "debian package".
	Source string `json:"source"`
	// Microvm is set if the kernel takes virtio-mmio devices from its command
	// line, as the machine type microvm needs without ACPI.
	Microvm bool `json:"microvm"`
}

// Image is all that a machine boots from.
type Image struct {
	Kernel Kernel `json:"kernel"`
	// Initrd is the path of the uncompressed cpio archive in the cache.
	Initrd string `json:"initrd"`
	// Key is a hash of the kernel's and the initrd's content.
	Key string `json:"key"`
	// Created is when the image was built.
	Created time.Time `json:"created"`
}

// Builder makes images. Its methods may be called concurrently, also from
// several processes.
type Builder struct {
	// CacheDir holds kernels and images. It is made if need be.
	CacheDir string
	// Agent is the path of the static kata-agent binary.
	Agent string
	// Kernel is the configured kernel (vmlinuz or vmlinux) and Modules its
	// modules directory (…/lib/modules/VERSION). Both may be empty.
	Kernel, Modules string
	// Log receives what an operator may want to know later.
	Log *slog.Logger
	// Progress, when set, is called with one line on each step that may take
	// long. The fast path has none.
	Progress func(string)
}

// Ensure returns the image for this host, which it builds first if it is not
// in the cache or if what it was made of has changed. The fast path looks at
// the state of some files and takes about a millisecond. A kernel that was not
// in the cache takes seconds, one that must be fetched a minute or more.
//
// The error wraps ErrNoKernel or ErrNoAgent for these two, and then says what
// was tried and what to do.
func (b *Builder) Ensure(ctx context.Context) (Image, error) {
	c := cache{dir: b.CacheDir}
	id := b.memoID()
	if img, ok := c.recall(id); ok {
		return img, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if img, ok := c.recall(id); ok {
		return img, nil
	}
	c.removeTemporary()

	start := time.Now()
	seen := inputs{}
	img, err := b.build(ctx, c, seen)
	if err != nil {
		return Image{}, err
	}
	if err := c.remember(id, img, seen); err != nil {
		return Image{}, err
	}
	b.Log.Info("guest image built", "key", img.Key, "kernel", img.Kernel.Version,
		"source", img.Kernel.Source, "dur", time.Since(start))
	if err := c.prune(expiry); err != nil {
		b.Log.Warn("old guest images remain", "error", err)
	}
	return img, nil
}

// memoID names the memo of this configuration.
func (b *Builder) memoID() string {
	return hash([]byte(formatVersion), fmt.Append(nil, wanted), []byte(b.Agent), []byte(b.Kernel), []byte(b.Modules))
}

func (b *Builder) progress(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(fmt.Sprintf(format, args...))
	}
}

func (b *Builder) build(ctx context.Context, c cache, seen inputs) (Image, error) {
	agent, err := readInput(seen, b.Agent)
	if err == nil {
		err = checkAgent(agent)
	}
	if err != nil {
		return Image{}, fmt.Errorf("%w: %s: %w; run `make build` or reinstall", ErrNoAgent, b.Agent, err)
	}
	k, err := b.findKernel(ctx, c, seen)
	if err != nil {
		return Image{}, err
	}
	b.progress("writing the guest image for kernel %s", k.Version)
	for _, f := range k.plan.files {
		seen.look(f)
	}
	if k.plan.missing != nil {
		b.Log.Info("kernel lacks optional modules", "kernel", k.Version, "modules", k.plan.missing)
	}
	var initrd bytes.Buffer
	if err := writeInitrd(&initrd, agent, k.plan); err != nil {
		return Image{}, fmt.Errorf("write initrd: %w", err)
	}
	img := Image{
		Kernel:  k.Kernel,
		Key:     hash([]byte(formatVersion), []byte(k.hash), initrd.Bytes()),
		Created: time.Now().UTC(),
	}
	return c.putImage(img, initrd.Bytes())
}

// List returns the images in the cache, the newest first.
func List(cacheDir string) ([]Image, error) { return cache{dir: cacheDir}.images() }

// readInput reads a whole file and notes its state from before the reading.
func readInput(seen inputs, name string) ([]byte, error) {
	seen.look(name)
	return os.ReadFile(filepath.Clean(name))
}

// hash returns a name for the given parts that differs if any of them does.
func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		io.Copy(h, bytes.NewReader(p)) //nolint:errcheck // a hash does not fail
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
