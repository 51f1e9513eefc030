package guestimage

import "debug/elf"

const (
	// machine is the ELF machine of guest kernels and agents.
	machine = elf.EM_X86_64
	// debianKernel is Debian's package that depends on the current kernel.
	debianKernel = "linux-image-amd64"
)
