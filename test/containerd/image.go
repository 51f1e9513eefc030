package containerd

import (
	"archive/tar"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeArchive writes the layout as a tar, with the image called name.
func writeArchive(w io.Writer, layout, name string) error {
	t := tar.NewWriter(w)
	root := os.DirFS(layout)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		if path == v1.ImageIndexFile {
			if data, err = named(data, name); err != nil {
				return err
			}
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(path), Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = t.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// named gives the only image of the index the name that containerd asks for.
func named(index []byte, name string) ([]byte, error) {
	var i v1.Index
	if err := json.Unmarshal(index, &i); err != nil {
		return nil, err
	}
	for m := range i.Manifests {
		i.Manifests[m].Annotations = map[string]string{"io.containerd.image.name": name}
	}
	return json.Marshal(i)
}
