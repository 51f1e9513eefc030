//go:build integration

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/test/harness"
)

// welcome is on the first page of Debian's nginx.
const welcome = "Welcome to nginx!"

// TestPublishedPorts: Debian's nginx is fetched through forwarded ports and by
// another container; nothing of its network is left when it has gone.
func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	local, public := freePort(t), freePort(t)
	id := e.MustKata(t, "run", "-d", "--name", "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", local), "-p", fmt.Sprintf("%d:80", public), image(t, "nginx"))
	harness.Poll(t, "nginx answers", func() bool {
		_, err := fetch(t.Context(), "127.0.0.1", local)
		return err == nil
	})
	host := hostAddress(t)
	for _, tt := range []struct {
		address string
		port    int
		open    bool
	}{
		{"127.0.0.1", local, true},
		{"127.0.0.1", public, true},
		{host, public, true},
		{host, local, false},
	} {
		page, err := fetch(t.Context(), tt.address, tt.port)
		if tt.open && (err != nil || !strings.Contains(page, welcome)) {
			t.Errorf("%s:%d: %v, %.100q", tt.address, tt.port, err, page)
		}
		if !tt.open && err == nil {
			t.Errorf("%s:%d answers; it is published on 127.0.0.1 only", tt.address, tt.port)
		}
	}
	if out := e.MustKata(t, "ps"); !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d->80/tcp, 0.0.0.0:%d->80/tcp", local, public)) {
		t.Errorf("kata ps does not tell the ports:\n%s", out)
	}

	// A second container reaches the first by its address, and by the host's;
	// and a server on the host.
	address := e.MustKata(t, "exec", "web", "hostname", "-i")
	server, fromHost := serve(t)
	out := e.MustKata(t, "run", "--rm", "--dns", "192.0.2.53", busybox, "sh", "-ec", fmt.Sprintf(
		`wget -q -O - http://%s/ | grep -c %q; wget -q -O - http://%s:%d/ | grep -c %q; wget -q -O - http://%s/; cat /etc/resolv.conf`,
		address, welcome, host, public, welcome, net.JoinHostPort(host, strconv.Itoa(server))))
	lines := strings.Split(out, "\n")
	if len(lines) < 3 || lines[0] == "0" || lines[1] == "0" || lines[2] != fromHost {
		t.Errorf("fetched by another container: %q", out)
	}
	if lines[len(lines)-1] != "nameserver 192.0.2.53" {
		t.Errorf("with --dns, resolv.conf has %q", lines[len(lines)-1])
	}

	// A port can be given once only, to containers and to the host's programs.
	for _, p := range []int{local, public, server} {
		r := e.Kata(t, "run", "--rm", "-p", fmt.Sprintf("%d:80", p), busybox, "true")
		oneError(t, r, 125, fmt.Sprintf("port %d/tcp of the host", p), "in use")
	}
	e.MustKata(t, "rm", "-f", id)
	if _, err := fetch(t.Context(), "127.0.0.1", public); err == nil {
		t.Error("the port answers after the container was removed")
	}
}

// TestPublishedUDP: a datagram goes in and its answer comes back.
func TestPublishedUDP(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	start(t, "-p", fmt.Sprintf("127.0.0.1:%d:5000/udp", port), image(t, "debian"), "perl", "-MIO::Socket::INET", "-e",
		`$s = IO::Socket::INET->new(LocalPort => 5000, Proto => "udp"); $s->send($b) while defined $s->recv($b, 100)`)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	harness.Poll(t, "a datagram is answered", func() bool {
		if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "to and fro") // nobody may be there yet
		answer := make([]byte, 100)
		n, _ := c.Read(answer)
		return string(answer[:n]) == "to and fro"
	})
}

// TestNetworkFiles: a container on the default network has one interface, the
// host's name servers, and its own name.
func TestNetworkFiles(t *testing.T) {
	t.Parallel()
	out := env.MustKata(t, "run", "--rm", "--hostname", "name.example.org", busybox, "sh", "-ec", `
ls /sys/class/net | tr '\n' ' '; echo
ip -4 -o address show eth0 | awk '{print $4}'
ip route | awk '/^default/{print $3}'
hostname; cat /etc/hostname
grep example /etc/hosts
grep -c localhost /etc/hosts
echo; cat /etc/resolv.conf`)
	head, resolv, _ := strings.Cut(out, "\n\n")
	lines := strings.Split(head, "\n")
	if len(lines) != 7 {
		t.Fatalf("got %q", out)
	}
	address, _, _ := strings.Cut(lines[1], "/")
	if !strings.HasPrefix(lines[1], env.Network) || !strings.HasSuffix(lines[1], "/24") {
		t.Errorf("address %q, want one of %s0/24", lines[1], env.Network)
	}
	lines[1] = ""
	want(t, strings.Join(lines, "\n"), "eth0 lo ", "", env.Network+"1", "name.example.org", "name.example.org",
		address+"\tname.example.org name", "2")
	servers, search, err := runflags.HostResolver()
	if err != nil {
		t.Fatal(err)
	}
	var wanted []string
	for _, s := range servers {
		wanted = append(wanted, "nameserver "+s)
	}
	if len(search) > 0 {
		wanted = append(wanted, "search "+strings.Join(search, " "))
	}
	if resolv != strings.Join(wanted, "\n") {
		t.Errorf("resolv.conf %q, want the host's %q", resolv, wanted)
	}
}

func TestNoNetwork(t *testing.T) {
	t.Parallel()
	want(t, sh(t, `ls /sys/class/net; ip route; ping -c 1 -w 5 127.0.0.1 | grep -c '1 packets received'; ping -c 1 -w 5 $(hostname) >/dev/null; cat /etc/resolv.conf`),
		"lo", "1")
}

// oneError wants a program to have failed with the code and one line that
// contains all of the words.
func oneError(t *testing.T, r harness.Result, code int, words ...string) {
	t.Helper()
	if r.Code != code || strings.Count(strings.TrimSpace(r.Stderr), "\n") != 0 {
		t.Errorf("exit code %d, want %d and one line of error:\n%s", r.Code, code, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("error %q does not tell %q", r.Stderr, w)
		}
	}
}

// freePort is a port that nobody listens at.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serve serves a page on all addresses of the host.
func serve(t *testing.T) (port int, page string) {
	t.Helper()
	page = "a page of the host"
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, page)
	})}
	go func() { _ = s.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().(*net.TCPAddr).Port, page
}

// hostAddress is an address of the host that is not of its loopback interface.
func hostAddress(t *testing.T) string {
	t.Helper()
	// Nothing is sent; the kernel only looks for the way.
	c, err := (&net.Dialer{}).DialContext(t.Context(), "udp4", "198.51.100.1:9")
	if err != nil {
		t.Skipf("the host has no route to the outside: %v", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}

func fetch(ctx context.Context, address string, port int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(address, strconv.Itoa(port)), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
