package check

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteText writes the report for people: a line for each warning and error with
// its remedy, and, when verbose, for what is in order too; then the verdict.
func (r Report) WriteText(w io.Writer, verbose bool) error {
	var b strings.Builder
	var fine []string
	for _, res := range r.Results {
		if res.Status == OK && !verbose {
			fine = append(fine, res.Name)
			continue
		}
		fmt.Fprintf(&b, "%-8s %-12s %s\n", res.Status, res.Name, res.Detail)
		if res.Remedy != "" {
			fmt.Fprintf(&b, "%-21s -> %s\n", "", res.Remedy)
		}
	}
	if len(fine) > 0 {
		fmt.Fprintf(&b, "%-8s %s\n", OK, strings.Join(fine, ", "))
	}
	if r.Capable {
		b.WriteString("Mode: " + r.Mode.explain() + "\n")
	}
	b.WriteString(r.Verdict())
	_, err := io.WriteString(w, b.String())
	return err
}

func (m Mode) explain() string {
	if m == KVM {
		return "KVM (guests run on the processor)"
	}
	return "emulation (guests run on QEMU's TCG: as well separated, but slower)"
}

// Verdict returns the two sentences that end the report, as two lines, or what
// is true in their place.
func (r Report) Verdict() string {
	switch {
	case !r.Capable:
		return "System is not capable of running Kata Containers\n"
	case !r.CanCreate:
		return "System is capable of running Kata Containers\n" +
			"System cannot currently create Kata Containers\n"
	}
	return "System is capable of running Kata Containers\n" +
		"System can currently create Kata Containers\n"
}

// WriteJSON writes the report for programs.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
