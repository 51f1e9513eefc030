package guestimage

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Found is a kernel that is at hand.
type Found struct {
	// Path of the kernel, Version and Source as in Kernel.
	Path, Version, Source string
	// Initrd is that of the finished image, empty when Ensure has yet to
	// build it.
	Initrd string
}

// Find tells which kernel Ensure would try first, and builds and fetches
// nothing. The error wraps ErrNoKernel when none is at hand.
func (b *Builder) Find() (Found, error) {
	c := cache{dir: b.CacheDir}
	if img, ok := c.recall(b.memoID()); ok {
		return Found{Path: img.Kernel.VMLinux, Version: img.Kernel.Version, Source: img.Kernel.Source, Initrd: img.Initrd}, nil
	}
	if b.Kernel != "" {
		if !exists(b.Kernel) {
			return Found{}, fmt.Errorf("%w: %s, which hypervisor.kernel names, does not exist", ErrNoKernel, b.Kernel)
		}
		return Found{Path: b.Kernel, Source: sourceConfigured}, nil
	}
	if list := b.candidates(c, inputs{}); len(list) > 0 {
		k := list[0]
		return Found{Path: k.image, Version: strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-"), Source: k.source}, nil
	}
	return Found{}, fmt.Errorf("%w at hand: Debian's will be fetched at the first start, or by `kata image build`", ErrNoKernel)
}
