package kvm

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A virtual CPU that never stops by itself is stopped, whether it runs on the
// CPU or is emulated in the kernel.
func TestRunStopsAVirtualCPUThatSpins(t *testing.T) {
	dev := openKVM(t)
	for _, test := range []struct {
		name string
		code []byte
	}{
		{"jmp", []byte{0xeb, 0xfe}},
		{"paging", []byte{0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xeb, 0xf8}}, // 1: mov %cr3,%rax; mov %rax,%cr3; jmp 1b
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := run(ctx, dev, []trial{{test.name, test.code}})
			if err == nil {
				t.Fatal("the trial ended by itself")
			}
			t.Log(err)
		})
	}
}

func TestTrialThatHaltsIsAWrongResult(t *testing.T) {
	dev := openKVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := run(ctx, dev, []trial{{"halt", []byte{0xf4}}}); err == nil {
		t.Error("a halt was taken for success")
	}
	if err := run(ctx, dev, []trial{{"done", []byte{0xe6, donePort}}}); err != nil {
		t.Errorf("a write to the port was not taken for success: %v", err)
	}
}

func TestRunOnAnotherDevice(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	if err := run(t.Context(), r, allTrials()); err == nil || errors.Is(err, unix.EBADF) {
		t.Errorf("run() on a pipe = %v, want a refusal", err)
	}
}
