package proxy

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/version"
	"golang.org/x/sys/unix"
)

// Main is the program kata-proxy. It is started by Spawn only and returns its
// exit status.
func Main(args []string) int {
	start := timeline.Program("kata-proxy")
	fs := flag.NewFlagSet("kata-proxy", flag.ContinueOnError)
	id := fs.String("id", "", "id of the sandbox")
	path := fs.String("config", "", "path of the configuration file")
	template := fs.Bool(owner.TemplateFlag, false, "make the template of the request on standard input")
	tell := fs.Bool("version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *tell {
		fmt.Fprintln(os.Stdout, "kata-proxy", version.String())
		return 0
	}
	if err := guest.SilenceRPC(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if *template {
		return owner.MakerMain()
	}
	ready := os.NewFile(readyFD, "ready")
	caller := os.NewFile(ownerFD, "owner")
	mounts := os.NewFile(mountsFD, "mounts")
	if _, err := ready.Stat(); *id == "" || err != nil {
		fmt.Fprintln(os.Stderr, "kata-proxy is started by kata and kata-runtime; it is of no use by hand")
		return 2
	}
	unix.Umask(0o022) // the caller's may be anything
	answer := func(text string) {
		_, _ = ready.WriteString(text)
		_ = ready.Close()
	}
	// SIGTERM (an operator, a shutdown of the host) ends the sandbox in order.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for _, fd := range []uintptr{readyFD, ownerFD, mountsFD} {
		syscall.CloseOnExec(int(fd))
	}

	sb, conf, log, err := open(*id, *path, mounts, start)
	if err != nil {
		answer(err.Error())
		return 1
	}
	err = Serve(ctx, Options{
		Sandbox: sb, Log: log, Owner: caller, Network: setupNetwork(networks(conf)), Ready: func() { answer("ok") },
	})
	if err != nil {
		log.Error("sandbox did not end cleanly; `kata gc` removes what is left", "error", err)
		return 1
	}
	return 0
}

// open makes the sandbox and the log in its directory.
func open(id, configPath string, mounts *os.File, start *timeline.Start) (*sandbox.Sandbox, config.Config, *slog.Logger, error) {
	defer timeline.Step(start.In(context.Background()), "open sandbox")()
	loaded, err := config.Load(configPath)
	if err != nil {
		return nil, config.Config{}, nil, err
	}
	sb, log, err := owner.Open(owner.Options{ID: id, Config: loaded.Config, HostMounts: mounts, Start: start})
	return sb, loaded.Config, log, err
}
