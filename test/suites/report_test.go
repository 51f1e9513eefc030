package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	output := "\x16=== RUN   TestA\nsome output without an end\x16--- PASS: TestA (0.10s)\n" +
		"--- FAIL: TestA (0.10s)\n" + // said by what was tested
		"\x16=== RUN   TestB\n\x16=== RUN   TestB/part\n\x16=== RUN   TestB/other\n" +
		"\x16    --- FAIL: TestB/part (0.00s)\n\x16    --- SKIP: TestB/other (0.00s)\n\x16--- FAIL: TestB (1.00s)\n" +
		"\x16=== RUN   TestHangs\npanic: test timed out after 3m0s\n"
	want := results{"TestA": passed, "TestB": failed, "TestB/part": failed, "TestB/other": skipped, "TestHangs": failed}
	if diff := cmp.Diff(want, parse(output)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestJudge(t *testing.T) {
	all := map[string]pair{
		"Both":              {passed, passed},
		"Late":              {passed, late},
		"NotOurs":           {failed, ""},
		"Skipped":           {skipped, ""},
		"Broken":            {passed, failed},
		"Parts":             {passed, failed},
		"Parts/good":        {passed, passed},
		"Parts/bad":         {passed, failed},
		"NeverBegan":        {passed, failed},
		"NeverBegan/part":   {passed, ""},
		"AfterParts":        {passed, failed},
		"AfterParts/good":   {passed, passed},
		"Excepted":          {passed, failed},
		"Excepted/one":      {passed, failed},
		"ExceptedPart":      {passed, failed},
		"ExceptedPart/bad":  {passed, failed},
		"ExceptedPart/good": {passed, passed},
		"Recovered":         {passed, passed},
		"Race":              {passed, passed},
		"ListedNotOurs":     {failed, ""},
	}
	reasons := map[string]string{"Excepted": "r", "ExceptedPart/bad": "r", "Recovered": "r", "Race": slow + "it loses", "ListedNotOurs": "r", "Gone": "r"}
	got := judge(all, reasons, true)
	want := report{
		both:      []string{"AfterParts/good", "Both", "ExceptedPart/good", "Late", "Parts/good", "Race", "Recovered"},
		late:      []string{"Late"},
		notOurs:   []string{"ListedNotOurs", "NotOurs", "Skipped"},
		broken:    []string{"AfterParts", "Broken", "NeverBegan/part", "Parts/bad"},
		excepted:  []string{"Excepted/one", "ExceptedPart/bad"},
		recovered: []string{"Recovered"},
		unknown:   []string{"Gone"},
		reasons:   reasons,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(report{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !got.bad() {
		t.Error("it is not bad")
	}
	if part := judge(all, reasons, false); len(part.unknown) != 0 {
		t.Errorf("unknown %v, though not all tests were run", part.unknown)
	}
	var said strings.Builder
	got.print(&said, "s")
	for _, want := range []string{"suite s: 7 tests pass", "  Excepted/one: r\n", "  Parts/bad\n"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &said)
		}
	}
}

// TestExceptionsAreDocumented holds the page to the list, both ways.
func TestExceptionsAreDocumented(t *testing.T) {
	all, err := exceptions()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/containerd.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.SplitSeq(string(page), "\n") {
		if strings.HasPrefix(line, "| client | `Test") || strings.HasPrefix(line, "| cri | `Test") {
			rows++
		}
	}
	for suite, list := range all {
		if _, err := find(suite); err != nil {
			t.Error(err)
		}
		rows -= len(list)
		for name, reason := range list {
			if row := "| " + suite + " | `" + name + "` | " + reason + " |"; !strings.Contains(string(page), row) {
				t.Errorf("docs/containerd.md lacks the row %s", row)
			}
		}
	}
	if rows != 0 {
		t.Errorf("docs/containerd.md has %d rows more than exceptions.txt has lines", rows)
	}
}
