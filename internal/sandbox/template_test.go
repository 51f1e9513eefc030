package sandbox_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"github.com/seed-efd44b36/kata/internal/template"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/warm"
	"google.golang.org/grpc/codes"
)

// templates has one template, or none, and notes what is asked of it.
type templates struct {
	dir              string
	none             bool
	wanted, rejected int
}

func (f *templates) Find(vmm.Config) (*template.Template, error) {
	if f.none {
		return nil, template.ErrNone
	}
	t := &template.Template{}
	var err error
	for _, file := range []**os.File{&t.Memory, &t.State} {
		if *file, err = os.CreateTemp(f.dir, ""); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (*templates) Claim(context.Context, vmm.Config) (*warm.Clone, error) { return nil, warm.ErrNone }

func (f *templates) Want(context.Context, vmm.Config) error {
	f.wanted++
	return nil
}

func (f *templates) Reject(_ string, why error) {
	if strings.Contains(why.Error(), "no such device") {
		f.rejected++
	}
}

// TestTemplates: which machines are restored and which boot, and when a template is
// asked for, or thrown out.
func TestTemplates(t *testing.T) {
	cannot := func(c vmm.Config) error {
		if c.State != nil {
			return errors.New("no such device")
		}
		return nil
	}
	for name, tt := range map[string]struct {
		none             bool
		start            func(vmm.Config) error
		faults           map[string]sandboxtest.Fault
		machines         string
		wanted, rejected int
		fails            string
	}{
		"restored":       {machines: "restored"},
		"none":           {none: true, machines: "booted", wanted: 1},
		"cannot be used": {start: cannot, machines: "restored booted", wanted: 1, rejected: 1},
		"nothing works": {
			start:    func(vmm.Config) error { return errors.New("no such host") },
			machines: "restored booted", fails: "no such host",
		},
		"the guest refuses": {
			faults: map[string]sandboxtest.Fault{"SetupSandbox": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
				c.Fail(codes.Internal, "set sysctl net.x: invalid argument")
			}},
			machines: "restored", fails: "set sysctl net.x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := &sandboxtest.Guest{Faults: tt.faults}
			r := sandboxtest.NewRig(t, g.Serve)
			f := &templates{dir: t.TempDir(), none: tt.none}
			r.Options.Templates = f
			var machines []string
			working := r.Options.NewMachine
			r.Options.NewMachine = func(c vmm.Config, log *slog.Logger) (vmm.Machine, error) {
				kind := "booted"
				if c.State != nil {
					kind = "restored"
				}
				machines = append(machines, kind)
				if tt.start != nil {
					if err := tt.start(c); err != nil {
						return nil, err
					}
				}
				return working(c, log)
			}
			s, err := sandbox.New(r.Options)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Boot(t.Context(), sandbox.BootOptions{})
			if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("Boot: %v, want %q", err, tt.fails)
			}
			if got := strings.Join(machines, " "); got != tt.machines {
				t.Errorf("machines: %s, want %s", got, tt.machines)
			}
			if f.wanted != tt.wanted || f.rejected != tt.rejected {
				t.Errorf("%d templates were wanted, %d rejected; want %d and %d", f.wanted, f.rejected, tt.wanted, tt.rejected)
			}
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}
