package boot

import "testing"

func TestCommandLine(t *testing.T) {
	c := CommandLine("console=ttyS0 quiet kata.debug kata.link=serial kata.log=debug kata.link=vsock kata.x=a=b\n")
	for _, tt := range []struct{ key, want string }{
		{"kata.debug", "1"},
		{"kata.link", "vsock"},
		{"kata.log", "debug"},
		{"kata.x", "a=b"},
		{"kata", ""},
		{"debug", ""},
		{"quiet", "1"},
	} {
		if got := c.Get(tt.key); got != tt.want {
			t.Errorf("Get(%q) = %q, want %q", tt.key, got, tt.want)
		}
	}
}
