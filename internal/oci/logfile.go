package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"
)

// logFile is the file in which an engine looks for what went wrong, in the formats
// of runc's.
type logFile struct {
	path, format string
}

// failure writes down why a verb has failed.
func (l *logFile) failure(text string) { l.write("error", text) }

// warning writes down what is no failure.
func (l *logFile) warning(err error) { l.write("warning", err.Error()) }

// write appends an entry. There is nobody to tell if that fails.
func (l *logFile) write(level, text string) {
	if l.path == "" {
		return
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	now := time.Now().UTC().Format(time.RFC3339)
	if l.format == "json" {
		_ = json.NewEncoder(f).Encode(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, text, now})
		return
	}
	_, _ = fmt.Fprintf(f, "time=%q level=%s msg=%s\n", now, level, strconv.Quote(text))
}
