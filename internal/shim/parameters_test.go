package shim

import (
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseParameters(t *testing.T) {
	t.Parallel()
	options, err := publisher.Pack(&runtimeoptions.Options{ConfigPath: "/x"})
	if err != nil {
		t.Fatal(err)
	}
	other := &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}}
	dir := "/run/elsewhere"
	for _, tt := range []struct {
		name              string
		input             []byte
		config, socketDir string
		results           bool
	}{
		{"nothing", nil, "", defaultSocketDir, false},
		{"garbage", []byte("\xff\xff"), "", defaultSocketDir, false},
		{"before 2.3", encode(t, options), "/x", defaultSocketDir, false},
		{"of another runtime", encode(t, other), "", defaultSocketDir, false},
		{"from 2.3", encode(t, &bootstrap.BootstrapParams{
			InstanceID: "c", ContainerdBinary: "/usr/bin/containerd", SocketDir: &dir,
			Extensions: []*bootstrap.Extension{{Value: other}, {Value: options}},
		}), "/x", dir, true},
		{"from 2.3, plain", encode(t, &bootstrap.BootstrapParams{ContainerdBinary: "/usr/bin/containerd"}), "", defaultSocketDir, true},
	} {
		p := parseParameters(tt.input)
		if got := p.options.GetConfigPath(); got != tt.config || p.socketDir != tt.socketDir || p.results != tt.results {
			t.Errorf("%s: %q, %q, %v; want %q, %q, %v", tt.name, got, p.socketDir, p.results, tt.config, tt.socketDir, tt.results)
		}
	}
}
