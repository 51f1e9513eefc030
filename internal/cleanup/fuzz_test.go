package cleanup

import (
	"bytes"
	"strings"
	"testing"
)

func splitFields(s string) [][]string {
	var out [][]string
	for l := range strings.Lines(s) {
		out = append(out, strings.Fields(l))
	}
	return out
}

// FuzzReadLedger feeds the reader damaged files: it must neither panic nor
// give a record that names nothing, and never the same record twice.
func FuzzReadLedger(f *testing.F) {
	for _, s := range []string{
		"",
		"\n\n",
		`{"op":"add","kind":"dir","name":"/a"}` + "\n" + `{"op":"done","kind":"dir","name":"/a"}` + "\n",
		`{"op":"add","kind":"tap","name":"t","extra":{"netns":"/n"}}` + "\n" + `{"op":"add"`,
		`{"op":"add","kind":"tap"}` + "\n",
		`{"op":"what","kind":"tap","name":"x"}` + "\n",
		"null\n[]\n\"\"\n",
		strings.Repeat("x", maxLine+1) + "\n" + `{"op":"add","kind":"dir","name":"/a"}` + "\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		records, _ := readLedger(bytes.NewReader(b))
		for i, r := range records {
			if r.Kind == "" || r.Name == "" {
				t.Errorf("record %d names nothing: %q", i, r)
			}
			if indexOf(records, r) != i {
				t.Errorf("record %d comes twice: %q", i, r)
			}
		}
	})
}
