package engine

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/standin"
)

func TestNotice(t *testing.T) {
	t.Parallel()
	const (
		plain  = "/b/c1"
		task   = "/run/x/io.containerd.runtime.v2.task/moby/c1"
		socket = "/run/x/containerd.sock.ttrpc"
	)
	for _, row := range []struct {
		name, manager, bundle, address string
		want                           standin.Notice
	}{
		{"nobody", "", plain, "", standin.Notice{}},
		{"podman", "libpod", plain, "", standin.Notice{Bundle: plain}},
		{"cri-o", "cri-o", plain, "", standin.Notice{Bundle: plain}},
		{"another", "other", plain, "", standin.Notice{}},
		{"containerd", "", task, socket, standin.Notice{Containerd: socket, Namespace: "moby"}},
		{"containerd, as an address", "", task, "unix://" + socket, standin.Notice{Containerd: socket, Namespace: "moby"}},
		{"containerd without a socket", "", task, "", standin.Notice{}},
		{"a socket of somebody else", "", plain, socket, standin.Notice{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sp := &specs.Spec{}
			if row.manager != "" {
				sp.Annotations = map[string]string{managerAnnotation: row.manager}
			}
			if got := noticeTo(sp, row.bundle, row.address); got != row.want {
				t.Errorf("%+v, want %+v", got, row.want)
			}
		})
	}
}
