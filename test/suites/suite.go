package main

import (
	"fmt"
	"time"
)

// suite is one of containerd's, compiled.
type suite struct {
	name    string
	program string
	// daemon is whether a containerd has to run already; the other suite starts
	// its own.
	daemon bool
}

// find returns the suite of that name, or without a name all.
func find(name string) ([]suite, error) {
	all := []suite{
		{name: "client", program: "client.test"},
		{name: "cri", program: "integration.test", daemon: true},
	}
	if name == "" {
		return all, nil
	}
	for _, s := range all {
		if s.name == name {
			return []suite{s}, nil
		}
	}
	return nil, fmt.Errorf("there is no suite %q; there are: client, cri", name)
}

// runtime is what a suite is run with.
type runtime struct {
	// name is that of the CRI's handler too.
	name, shim string
	// most is how long one test may take.
	most time.Duration
}

// runtimes returns the one that tells what can pass on this machine, and ours.
func runtimes() (reference, ours runtime) {
	return runtime{name: "runc", shim: "io.containerd.runc.v2", most: 3 * time.Minute},
		runtime{name: "kata", shim: "io.containerd.kata.v2", most: 12 * time.Minute}
}
