// Command load is what the benchmark runs inside containers to measure files and
// network. It measures itself, prints one JSON object of figures, and is static,
// so that it is the same program in every image:
//
//	load files DATA DIR     reads files of DATA, writes one in DIR
//	load serve PORT         takes one connection, counts what comes
//	load send ADDR SECONDS  connects to a server and writes to it
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	block = 1 << 20 // for what is sequential
	page  = 4 << 10 // for what is random
	// written is the size of the file that is written, in blocks.
	written = 64
	// accesses and patience bound what is random: so many, or so long.
	accesses = 4096
	patience = 2 * time.Second
	// connectTimeout is for a server to listen.
	connectTimeout = 20 * time.Second
)

func main() {
	figures, err := run(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(figures)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// figures are MB/s, or accesses a second, by name.
type figures map[string]float64

func run(args []string) (figures, error) {
	var verb, first, second string
	for i, into := range []*string{&verb, &first, &second} {
		if i < len(args) {
			*into = args[i]
		}
	}
	switch {
	case verb == "files" && len(args) == 3:
		return files(first, second)
	case verb == "serve" && len(args) == 2:
		return serve(first)
	case verb == "send" && len(args) == 3:
		seconds, err := strconv.ParseFloat(second, 64)
		if err != nil {
			return nil, err
		}
		return send(first, time.Duration(seconds*float64(time.Second)))
	}
	return nil, errors.New("usage: load files DATA DIR | serve PORT | send ADDR SECONDS")
}

// files measures reading of DATA/random and DATA/sequential, which nobody in the
// container has read before, and writing in dir.
func files(data, dir string) (figures, error) {
	f := figures{}
	for _, step := range []struct {
		name    string
		measure func() (float64, error)
	}{
		{"randread", func() (float64, error) { return randomRead(filepath.Join(data, "random")) }},
		{"read", func() (float64, error) { return read(filepath.Join(data, "sequential")) }},
		{"reread", func() (float64, error) { return read(filepath.Join(data, "sequential")) }},
		{"write", func() (float64, error) { return write(filepath.Join(dir, "written")) }},
		{"randwrite", func() (float64, error) { return randomWrite(filepath.Join(dir, "written")) }},
	} {
		v, err := step.measure()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		f[step.name] = v
	}
	return f, os.Remove(filepath.Join(dir, "written"))
}

// rate is n a second since start.
func rate(n int, start time.Time) float64 { return float64(n) / time.Since(start).Seconds() }

func read(path string) (float64, error) {
	start := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, block)
	total := 0
	for {
		n, err := f.Read(buf)
		total += n
		if errors.Is(err, io.EOF) {
			return rate(total, start) / 1e6, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// write includes the time until the data is where fsync wants it.
func write(path string) (float64, error) {
	buf := make([]byte, block)
	for i := range buf {
		buf[i] = byte(i / page)
	}
	start := time.Now()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for range written {
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return rate(written*block, start) / 1e6, nil
}

func randomRead(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return random(f, f.ReadAt)
}

func randomWrite(path string) (float64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	perSecond, err := random(f, f.WriteAt)
	if err != nil {
		return 0, err
	}
	// What has been buffered only is not written yet.
	n := perSecond * time.Since(start).Seconds()
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return n / time.Since(start).Seconds(), nil
}

// random accesses pages of the file in no order, the same one each time.
func random(f *os.File, access func([]byte, int64) (int, error)) (float64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	pages := st.Size() / page
	if pages == 0 {
		return 0, fmt.Errorf("%s is too small", f.Name())
	}
	order := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret
	buf := make([]byte, page)
	start := time.Now()
	n := 0
	for n < accesses && time.Since(start) < patience {
		if _, err := access(buf, order.Int64N(pages)*page); err != nil {
			return 0, err
		}
		n++
	}
	return rate(n, start), nil
}

func serve(port string) (figures, error) {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	// Whoever was to come may have failed.
	if t, ok := l.(*net.TCPListener); ok {
		if err := t.SetDeadline(time.Now().Add(2 * connectTimeout)); err != nil {
			return nil, err
		}
	}
	return count(l)
}

// count counts what one connection brings.
func count(l net.Listener) (figures, error) {
	conn, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 128<<10)
	// The first bytes are not timed: the clock begins when data flows.
	total, err := conn.Read(buf)
	start := time.Now()
	for err == nil {
		var n int
		n, err = conn.Read(buf)
		total += n
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	return figures{"received": rate(total, start) / 1e6}, nil
}

// send connects, for which it tries for a while: the server may not listen yet.
func send(addr string, d time.Duration) (figures, error) {
	conn, err := connect(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 128<<10)
	start := time.Now()
	total := 0
	for time.Since(start) < d {
		n, err := conn.Write(buf)
		total += n
		if err != nil {
			return nil, err
		}
	}
	return figures{"sent": rate(total, start) / 1e6}, nil
}

func connect(addr string) (net.Conn, error) {
	deadline := time.Now().Add(connectTimeout)
	for {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
