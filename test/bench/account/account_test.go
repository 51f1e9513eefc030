package account

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestPathIn(t *testing.T) {
	const text = "12:cpuset:/\n4:cpuacct:/a/b\n3:cpu:/c\n0::/d\n"
	for marker, want := range map[string]string{":cpuacct:": "/a/b", "0::": "/d", ":blkio:": ""} {
		if got, ok := pathIn(text, marker); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", marker, got, ok, want)
		}
	}
}

func TestPSSIn(t *testing.T) {
	got, err := pssIn("00-ff ---p 0 00:00 0  [rollup]\nRss:  4096 kB\nPss:     1536 kB\nPss_Anon: 7 kB\n")
	if err != nil || got != 1.5 {
		t.Errorf("got %v, %v; want 1.5", got, err)
	}
	if _, err := pssIn("Rss: 1 kB\n"); err == nil {
		t.Error("no Pss is no error")
	}
}

func TestAdded(t *testing.T) {
	before := []Process{{1, "a"}, {2, "b"}}
	got := Added([]Process{{2, "b"}, {3, "c"}, {1, "z"}}, before)
	if want := []Process{{3, "c"}, {1, "z"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A child is counted while it runs and when it has ended, and found.
func TestGroup(t *testing.T) {
	g, err := New("kata-test-account-" + filepath.Base(t.TempDir()))
	if err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(g.dir); err == nil {
			t.Errorf("%s is still there", g.dir)
		}
	}()
	if err := g.Settle(t.Context(), time.Minute); err != nil {
		t.Errorf("settle: %v", err)
	}
	before, err := g.CPU()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo; read x || :")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	list, err := g.Processes()
	if err != nil || !slices.ContainsFunc(list, func(p Process) bool { return p.PID == cmd.Process.Pid }) {
		t.Errorf("got %v, %v; want the shell in it", list, err)
	}
	if v, err := PSS(cmd.Process.Pid); err != nil || v <= 0 {
		t.Errorf("PSS: got %v, %v", v, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if v, err := PSS(cmd.Process.Pid); err != nil || v != 0 {
		t.Errorf("PSS of a process that has ended: got %v, %v", v, err)
	}
	left := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }() // the test waits for it
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("what was left was not killed")
	}
	after, err := g.CPU()
	if err != nil || after <= before {
		t.Errorf("got %v seconds, then %v, %v", before, after, err)
	}
}
