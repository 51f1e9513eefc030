package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// parent is the argument of this program as one that starts a daemon and is killed;
// the path of a log follows.
const parent = "parent-of-a-daemon"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == parent {
		fmt.Println(beParent(os.Args[2]))
		select {}
	}
	os.Exit(m.Run())
}

// beParent starts a daemon that has our standard output open, and says how that went.
func beParent(log string) string {
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{os.Stdout}
	if _, err := Start(cmd, "sleep", log); err != nil {
		return err.Error()
	}
	return "started"
}

func TestEndsWithTheTest(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", parent, filepath.Join(t.TempDir(), "log"))
	cmd.Stdout = w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if err := r.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	line, err := out.ReadString('\n')
	if kill := cmd.Process.Kill(); err != nil || line != "started\n" || kill != nil {
		t.Fatalf("%q, %v, %v", line, err, kill)
	}
	// The pipe ends with the last that has it open, the daemon.
	if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
		t.Errorf("after the end of its parent: %q, %v", rest, err)
	}
}

func TestDaemon(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	start := func(script string) *Process {
		p, err := Start(exec.Command("sh", "-c", script), "the daemon", log)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	said := func(context.Context) ([]byte, error) {
		if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "up") {
			return []byte("nothing"), errors.New("it has not said it")
		}
		return nil, nil
	}
	p := start(`echo level=info; echo '{"level":"DEBUG"}'; trap 'echo down; exit 3' TERM; echo up; while :; do sleep 0.1; done`)
	if err := p.Ready(t.Context(), said); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.End(unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if got := Said(log); got != "up\ndown\n" {
		t.Errorf("it said %q", got)
	}
	never := func(context.Context) ([]byte, error) { return []byte("nothing"), errors.New("no answer") }
	err := start(`echo why; exit 4`).Ready(t.Context(), never)
	if err == nil || !strings.Contains(err.Error(), "the daemon ended: exit status 4") || !strings.HasSuffix(err.Error(), "why\n") {
		t.Errorf("a daemon that ends: %v", err)
	}
	if _, err := Start(exec.Command("/nowhere"), "the daemon", log); err == nil || !strings.HasPrefix(err.Error(), "start the daemon: ") {
		t.Errorf("a program that is not there: %v", err)
	}
}
