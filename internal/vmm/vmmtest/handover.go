package vmmtest

import (
	"testing"

	"github.com/seed-efd44b36/kata/internal/vmm"
)

// testHandOver gives a machine that runs to another owner, who finds it as it was, can
// talk to it, and ends it; its parent learns of that.
func testHandOver(t *testing.T, d Driver) {
	c := d.config(t)
	m, g := d.boot(t, c)
	giver, ok := m.(vmm.Giver)
	if !ok {
		t.Skip("the driver hands no machines over")
	}
	g.ask(t, "write", "/token", "of-the-first-owner")
	r, err := giver.Give()
	if err != nil {
		t.Fatalf("Give: %v", err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if _, err := giver.Give(); err == nil {
		t.Error("a machine was given away twice")
	}
	if len(m.PIDs()) == 0 {
		t.Error("its parent does not know its process any more")
	}
	c.Running = &r
	taken, g := d.boot(t, c)
	if got := g.ask(t, "read", "/token"); got != "of-the-first-owner" {
		t.Errorf("the guest's memory has %q", got)
	}
	if got, want := taken.PIDs(), m.PIDs(); len(got) == 0 || got[0] != want[0] {
		t.Errorf("processes %v, want %v", got, want)
	}
	if exit := taken.Kill(deadline(t)); exit.Err != nil {
		t.Errorf("Kill: %v", exit.Err)
	}
	select {
	case <-m.Done():
	case <-deadline(t).Done():
		t.Error("its parent does not learn of the end")
	}
}
