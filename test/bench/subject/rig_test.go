package subject

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/seed-efd44b36/kata/test/harness"
)

// testRig is one without anything behind it.
func testRig(t *testing.T) *Rig {
	t.Helper()
	dir := t.TempDir()
	return &Rig{dir: dir, env: &harness.Env{State: dir + "/state/s"}}
}

// emptyLayout is that of an image without layers.
func emptyLayout(dir string) (string, error) {
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", err
	}
	return dir, path.AppendImage(empty.Image)
}
