package engine

import (
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/standin"
)

const (
	// managerAnnotation names the engine where conmon stands between it and us.
	managerAnnotation = "io.container.manager"
	// eventsEnv is how containerd tells its shims where it takes events. They hand
	// their environment on.
	eventsEnv = "TTRPC_ADDRESS"
	// taskDir is where containerd has bundles: below it are its namespaces.
	taskDir = "io.containerd.runtime.v2.task"
)

// noticeTo tells how the engine that has made the bundle wants to hear of kills for
// want of memory. address is the value of eventsEnv.
func noticeTo(sp *specs.Spec, bundle, address string) (n standin.Notice) {
	switch sp.Annotations[managerAnnotation] {
	case "libpod", "cri-o":
		n.Bundle = bundle
	}
	namespace := filepath.Dir(bundle)
	if address != "" && filepath.Base(filepath.Dir(namespace)) == taskDir {
		n.Containerd = strings.TrimPrefix(address, "unix://")
		n.Namespace = filepath.Base(namespace)
	}
	return n
}
