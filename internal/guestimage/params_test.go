package guestimage

import (
	"slices"
	"strings"
	"testing"
)

func TestKernelParams(t *testing.T) {
	kvm, tcg := strings.Fields(KernelParams(Kernel{}, false)), strings.Fields(KernelParams(Kernel{}, true))
	for _, word := range []string{"quiet", "cryptomgr.notests", "scsi_mod.scan=manual", "GODEBUG=asyncpreemptoff=1"} {
		if !slices.Contains(kvm, word) || !slices.Contains(tcg, word) {
			t.Errorf("%q is missing in %q or %q", word, kvm, tcg)
		}
	}
	// Real CPUs need their mitigations, and their TSC may really be bad.
	for _, word := range []string{"mitigations=off", "tsc=reliable"} {
		if slices.Contains(kvm, word) {
			t.Errorf("%q is set for KVM", word)
		}
	}
}
