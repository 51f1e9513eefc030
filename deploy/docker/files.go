// Package docker has what Docker's configuration needs for kata, as a file that
// administrators can read and copy; internal/install writes the same.
package docker

import _ "embed"

// Daemon is a daemon.json with the runtime kata and nothing else.
//
//go:embed daemon.json
var Daemon []byte
