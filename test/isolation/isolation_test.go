//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMain lets the test program be what runs in the container.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-collect" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestEverythingIsTheMachines: whatever a container sees is of its own machine.
func TestEverythingIsTheMachines(t *testing.T) {
	dir := os.Getenv("KATA_BIN")
	if dir == "" {
		t.Fatal("KATA_BIN is not set: run `make test-e2e`")
	}
	rows, err := compare(t.Context(), []string{filepath.Join(dir, "kata-runtime"), "run", "--bundle", "{bundle}", "{id}"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Whose != "own" {
			t.Errorf("%s is %s: the host has %q, the container %q", r.What, r.Whose, r.Host, r.Container)
		}
	}
}

// TestSharedKernelIsSeen: the table tells when a container runs on the host's
// kernel, as runc's do, and the host's clock is not touched then.
func TestSharedKernelIsSeen(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is missing (apt-get install runc)")
	}
	rows, err := compare(t.Context(), []string{runc, "--root", filepath.Join(t.TempDir(), "runc"), "run", "--bundle", "{bundle}", "{id}"})
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{"top: processes": true, "host name": true}
	for _, r := range rows {
		if (r.Whose == "own") != own[r.What] {
			t.Errorf("%s is %s: the host has %q, the container %q", r.What, r.Whose, r.Host, r.Container)
		}
	}
}
