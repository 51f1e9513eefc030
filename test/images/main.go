// Command images builds OCI images for tests and demonstrations from Debian's
// packages, and prints the directory of each.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/seed-efd44b36/kata/test/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("images", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: images [-out DIR] NAME…\nNAME is one of: %s\n", strings.Join(testimage.Names(), ", "))
		flags.PrintDefaults()
	}
	out := flags.String("out", "", "directory to build into (default: the cache of the tests)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir := *out
	if dir == "" {
		var err error
		if dir, err = testimage.CacheDir(); err != nil {
			return err
		}
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return fmt.Errorf("no image is named")
	}
	for _, name := range flags.Args() {
		layout, err := testimage.Build(ctx, dir, name)
		if err != nil {
			return err
		}
		fmt.Println(layout)
	}
	return nil
}
