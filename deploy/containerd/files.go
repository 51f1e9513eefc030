// Package containerd has what containerd's configuration needs for kata, as
// files that administrators can read and copy; internal/install writes the same.
package containerd

import "embed"

// Files are config-vN.toml, with the runtime handler, and untrusted-vN.toml, with
// the runtime of untrusted workloads, for version N of the configuration. Those
// with kata-runtime, katacli-vN.toml and linux-vN.toml, are for administrators only.
//
//go:embed *.toml
var Files embed.FS
