package pod

import (
	"errors"
	"testing"
)

func TestSysctlFile(t *testing.T) {
	for _, tt := range []struct{ key, want string }{
		{"net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net/ipv4/conf/eth0.100/forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"},
		{"net.ipv4.conf.eth0/100.forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"},
		{"net/../kernel/core_pattern", ""},
		{"net.", ""},
		{"kernel.core_pattern", ""},
		{"", ""},
	} {
		got, err := sysctlFile(tt.key)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.key, got, err, tt.want)
		}
	}
	if err := setSysctls(map[string]string{"kernel.core_pattern": "|/bin/x"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a sysctl of the kernel was set: %v", err)
	}
}
