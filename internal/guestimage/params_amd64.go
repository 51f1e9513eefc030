package guestimage

// KernelParams returns the part of the kernel's command line that makes the
// guest start fast and quietly; tcg says that the guest is emulated.
func KernelParams(k Kernel, tcg bool) string {
	return "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable"
}
