// Package podman has what Podman's configuration needs for kata, as a file that
// administrators can read and copy; internal/install writes the same.
package podman

import _ "embed"

// Containers is a drop-in for containers.conf with the runtime kata.
//
//go:embed containers.conf
var Containers []byte
