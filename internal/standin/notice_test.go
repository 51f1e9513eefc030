package standin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestNoticeInBundle(t *testing.T) {
	t.Parallel()
	bundle := t.TempDir()
	file := filepath.Join(bundle, oomFile)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := Notice{Bundle: bundle}.open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a life before: %v", err)
	}
	n.give("c1")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestNoNotice(t *testing.T) {
	t.Parallel()
	n, err := Notice{}.open()
	if err != nil {
		t.Fatal(err)
	}
	n.give("c1") // to nobody
}
