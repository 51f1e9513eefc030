package standin

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox/report"
)

// What kata-runtime hears of a failure is one line, of a bounded length.
func TestRefuse(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"one line", "no such sandbox", "no such sandbox\n"},
		{"lines", "no\nsuch\nsandbox", "no such sandbox\n"},
	} {
		if got := refused(t, tc.text); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := refused(t, strings.Repeat("x", 2*maxAnswer)); len(got) > 2*maxAnswer || strings.Count(got, "\n") != 1 {
		t.Errorf("a long one: %d bytes", len(got))
	}
}

func refused(t *testing.T, text string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code := refuse(w, errors.New(text))
	_ = w.Close()
	got, err := io.ReadAll(r)
	if err != nil || code != report.LostCode {
		t.Errorf("exit code %d, %v", code, err)
	}
	return string(got)
}

// A process of a sandbox that is not there is an error.
func TestJoinNothing(t *testing.T) {
	if j, err := join(t.Context(), Process{StateDir: t.TempDir(), Sandbox: "none", Container: "c"}); err == nil {
		j.close()
		t.Error("joined a process of a sandbox that is not there")
	}
}
