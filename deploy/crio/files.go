// Package crio has what CRI-O's configuration needs for kata, as a file that
// administrators can read and copy; internal/install writes the same.
package crio

import _ "embed"

// Runtimes is a drop-in for crio.conf with both types of runtimes.
//
//go:embed kata.conf
var Runtimes []byte
