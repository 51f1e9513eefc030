package guestimage

// KernelParams returns the start of the kernel's command line: what makes the
// guest boot fast, keep time and end when it must. tcg says that the guest is
// emulated.
//
// The figures are of Debian's 6.1 kernel on q35 under TCG, from the start of
// QEMU to /init, median of several boots: 2.1 s with nothing but "quiet",
// 1.8 s with all. Tried and left out, because they made no difference that
// could be told from noise: lsm=, audit=0, pci=noaer, 8250.nr_uarts=1,
// i8042.*, nowatchdog, lpj=, random.trust_cpu=on, noreplace-smp,
// swiotlb=noforce, ipv6.disable=1, cgroup_disable=. rcupdate.rcu_expedited=1
// did not make mounts, cgroups or namespaces faster. rodata=off saves some
// 70 ms, which is not worth a writable kernel.
func KernelParams(_ Kernel, tcg bool) string {
	// No message of the boot is printed, each byte of which leaves the guest.
	params := "quiet"
	// The self-tests of ciphers take 250 ms.
	params += " cryptomgr.notests"
	// A kernel with SCSI built in would look for disks at 256 places, which took
	// Debian's 0.1 s when it loaded the driver. The agent looks when one is
	// attached, where it is.
	params += " scsi_mod.scan=manual"
	// What the kernel does not know it puts into the environment of its first
	// process, the agent. That has no loops that must be interrupted, and a signal
	// is code that a restored guest meets for the first time.
	params += " GODEBUG=asyncpreemptoff=1"
	if !tcg {
		return params
	}
	// Two emulated CPUs disagree on their time stamp counters by more than
	// the watchdog allows; then the clock is the HPET, and to read it takes
	// 3.8 µs instead of 0.2.
	params += " tsc=reliable"
	// The check counts timer interrupts in a fixed number of loops, and
	// fails on a busy host.
	params += " no_timer_check"
	// Nothing runs speculatively in an emulator: 60 ms less to patch, and
	// fewer instructions in every system call.
	return params + " mitigations=off"
}
