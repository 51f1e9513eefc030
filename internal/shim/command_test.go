package shim

import (
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/proto"
)

// TestAnswer: each containerd gets the address in the form that it reads.
func TestAnswer(t *testing.T) {
	t.Parallel()
	const address = "unix:///x"
	for _, tt := range []struct {
		name                string
		results, forSandbox bool
		want                string
	}{
		{"containerd 1", false, false, address},
		{"a sandbox, for 2.0 to 2.2", false, true, `{"version":3,"address":"unix:///x","protocol":"ttrpc"}`},
	} {
		got, err := answer(address, tt.results, tt.forSandbox)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	for _, forSandbox := range []bool{false, true} {
		b, err := answer(address, true, forSandbox)
		var r bootstrap.BootstrapResult
		if err != nil || proto.Unmarshal(b, &r) != nil || r.GetAddress() != address || r.GetVersion() != 3 || r.GetProtocol() != "ttrpc" {
			t.Errorf("from 2.3 on: %v, %v", &r, err)
		}
	}
}
