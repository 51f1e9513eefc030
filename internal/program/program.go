// Package program finds the programs of this project that belong together.
package program

import (
	"fmt"
	"os"
	"path/filepath"
)

// Find returns the path of another program of the same build: beside the one
// that runs, or in ../libexec/kata, where `make install` puts what people do
// not call by hand. PATH is not searched: a helper that runs as root must not
// come from wherever the environment points.
func Find(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return find(filepath.Dir(self), name)
}

// Environment is what a program of ours gets that is started by another one:
// nothing of the caller's surroundings, which may be anything, as what is started
// from there (CNI plugins, hooks) runs as root. Its heap has no huge pages: where the
// host gives them to all, as Debian does, they are most of the memory of a process
// that lives as long as a sandbox.
func Environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GODEBUG=disablethp=1"}
}

func find(dir, name string) (string, error) {
	places := []string{filepath.Join(dir, name), filepath.Join(dir, "../libexec/kata", name)}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("program %s is missing: neither %s nor %s exists; run `make build`, or `make install` again", name, places[0], places[1])
}
