package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/attach"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/timeline/chart"
	"github.com/spf13/cobra"
)

// traceTimeout bounds the wait for the time line that --trace prints.
const traceTimeout = 10 * time.Second

func (a *app) runCommand(release func()) *cobra.Command {
	var (
		fl     runflags.Flags
		rootfs string
		trace  bool
	)
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]\n  kata run [flags] --rootfs DIR COMMAND [ARG...]",
		Short: "Run a command in a new container, in a virtual machine of its own",
		Long: "Run a command in a new container, in a virtual machine of its own.\n" +
			"IMAGE is a registry reference (fetched when it is not there), oci:DIR[:TAG], or the\n" +
			"path of an archive. The flags are those of `docker run`.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if fl.TTY && fl.Detach {
				fl.Interactive = false
			}
			r := &run{app: a, fl: &fl, rootfs: rootfs, trace: trace, release: release}
			return r.do(cmd.Context(), args)
		},
	}
	f := cmd.Flags()
	f.Bool("help", false, "help for run") // -h is --hostname, as in docker
	fl.Register(f)
	f.StringVar(&rootfs, "rootfs", "", "use this directory as the root file system, instead of an image")
	f.BoolVar(&trace, "trace", false, "print the time line of the start to standard error, at the end or when it is detached")
	return cmd
}

// run is one `kata run`.
type run struct {
	*app
	fl      *runflags.Flags
	rootfs  string
	trace   bool
	release func()

	record record
	dir    string // of the container; its bundle
	letGo  func() // of dir
	plan   *runflags.Plan
	mounts []*proxyv1.RootfsMount
	client *proxy.Client
	line   *timeline.Start // as far as this program has come
}

func (r *run) do(ctx context.Context, args []string) (err error) {
	r.line = timeline.Program("kata")
	ctx = r.line.In(ctx)
	defer r.printTrace()
	if err := r.ensureGuestImage(ctx); err != nil {
		return err
	}
	if err := r.prepare(ctx, args); err != nil {
		return err
	}
	keep := false
	defer r.letGo()
	defer func() {
		if !keep {
			err = errors.Join(err, r.containers.remove(r.record.ID))
		}
	}()
	if err := r.boot(ctx); err != nil {
		return errors.Join(err, r.end())
	}
	if r.fl.Detach {
		if err := r.startDetached(ctx); err != nil {
			return errors.Join(err, r.end())
		}
		keep = true
		r.printTrace()
		return r.client.Close()
	}
	keep = !r.fl.Remove
	resp, err := r.attach(ctx)
	if errors.Is(err, attach.ErrOutputClosed) {
		return errors.Join(r.end(), command.ExitError(command.Piped))
	}
	if err := errors.Join(err, r.end()); err != nil {
		keep = keep && resp != nil
		return err
	}
	return exitOf(resp, r.app)
}

// ensureGuestImage makes kernel and initrd ready, where the person can see what
// takes long; kata-proxy finds them made.
func (r *run) ensureGuestImage(ctx context.Context) error {
	defer timeline.Step(ctx, "guest image")()
	b, err := r.guestImages(func(line string) { fmt.Fprintln(r.errOut, "kata: "+line) })
	if err != nil {
		return err
	}
	_, err = b.Ensure(ctx)
	return err
}

// prepare makes the container's directory: the OCI bundle.
func (r *run) prepare(ctx context.Context, args []string) (err error) {
	ctx, end := timeline.Begin(ctx, "image and bundle")
	defer end()
	id := newID()
	r.record = record{
		ID: id, Name: r.fl.Name, Image: r.rootfs, Created: time.Now(),
		Detached: r.fl.Detach, Remove: r.fl.Remove, TTY: r.fl.TTY,
	}
	if r.record.Name == "" {
		r.record.Name = short(id)
	} else if err := sandbox.CheckID(r.record.Name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	r.dir = r.containers.path(id)
	in := runflags.Input{
		ID: id, Dir: r.dir, VolumeDir: filepath.Join(r.conf.Runtime.DataDir, "volumes"), LookupEnv: os.LookupEnv,
		BlockDevice: blockDevice,
	}
	var (
		img   image.Image
		files image.Tree
	)
	if r.rootfs == "" {
		if len(args) == 0 {
			return errors.New("no image is given; see `kata run --help`")
		}
		// Its layers must not be removed before the container is on record.
		letGo, err := r.images.Hold(ctx)
		if err != nil {
			return err
		}
		defer letGo()
		if img, err = r.ensureImage(ctx, args[0]); err != nil {
			return err
		}
		r.record.Image, args = args[0], args[1:]
		in.Image, in.Root = img.Config, filepath.Join(r.dir, "rootfs")
		files = r.images.Tree(img, "")
	} else {
		if in.Root, err = filepath.Abs(r.rootfs); err != nil {
			return fmt.Errorf("--rootfs: %w", err)
		}
		r.record.Image = in.Root // kata exec looks users up there
		if st, err := os.Stat(in.Root); err != nil || !st.IsDir() {
			return fmt.Errorf("--rootfs %s: not a directory", r.rootfs)
		}
		in.Image, files = imagespec.ImageConfig{}, image.Tree{Dirs: []string{in.Root}}
	}
	in.Args, in.Files = args, files
	if r.plan, err = r.fl.Plan(in); err != nil {
		return err
	}
	r.record.Command = r.plan.Spec.Process.Args
	r.record.StopSignal = r.plan.StopSignal
	for _, p := range r.plan.Ports {
		r.record.Ports = append(r.record.Ports, p.String())
	}
	if r.letGo, err = r.containers.create(r.record); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.containers.remove(id))
			r.letGo()
		}
	}()
	if r.rootfs == "" {
		if r.mounts, err = r.images.Mount(img, r.dir); err != nil {
			return err
		}
	}
	for _, v := range r.plan.Volumes {
		if err := v.Make(files); err != nil {
			return err
		}
	}
	b, err := json.Marshal(r.plan.Spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// boot starts the sandbox and writes the files that depend on its network.
func (r *run) boot(ctx context.Context) (err error) {
	r.client, err = proxy.Spawn(ctx, proxy.SpawnOptions{
		ID: r.record.ID, Config: r.conf, ConfigPath: r.configPath,
	})
	if err != nil {
		return err
	}
	resources, err := json.Marshal(r.plan.Spec.Linux.Resources)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	req := &proxyv1.BootRequest{
		Hostname: r.plan.Hostname, Resources: resources,
		Sysctls: r.plan.Sysctls, ShmBytes: r.plan.ShmBytes, EndWithFirstContainer: r.fl.Detach,
	}
	if r.fl.Remove {
		req.OwnedDirs = []string{r.dir}
	}
	if r.plan.Network != runflags.NoNetwork {
		req.Cni = &proxyv1.CNI{Network: r.plan.Network}
		for _, p := range r.plan.Ports {
			req.Cni.Ports = append(req.Cni.Ports, &proxyv1.PortMapping{
				HostIp: p.HostIP, HostPort: uint32(p.HostPort), ContainerPort: uint32(p.ContainerPort), Protocol: p.Protocol,
			})
		}
	}
	resp, err := r.client.Boot(ctx, req)
	if err != nil {
		return proxy.Explain(err)
	}
	nf := runflags.NetFiles{
		Hostname: r.plan.Hostname, Addresses: resp.GetAddresses(), Nameservers: resp.GetNameservers(), Search: resp.GetSearch(),
	}
	switch {
	case len(r.plan.Nameservers) > 0:
		nf.Nameservers = r.plan.Nameservers
	case len(nf.Nameservers) == 0 && req.GetCni() != nil:
		// The network has none of its own, as the default one.
		if nf.Nameservers, nf.Search, err = runflags.HostResolver(); err != nil {
			fmt.Fprintf(r.errOut, "kata: the container has no name server, give it one with --dns: %v\n", err)
		}
	}
	return runflags.WriteNetFiles(r.dir, nf)
}

func (r *run) create(ctx context.Context, req *proxyv1.CreateRequest) error {
	req.Id, req.Bundle, req.Rootfs = r.record.ID, r.dir, r.mounts
	req.ExitPath = filepath.Join(r.dir, exitFile)
	if _, err := r.client.Create(ctx, req); err != nil {
		return proxy.Explain(err)
	}
	return nil
}

func (r *run) start(ctx context.Context) error {
	if _, err := r.client.Start(ctx, &proxyv1.StartRequest{Container: r.record.ID}); err != nil {
		return proxy.Explain(err)
	}
	return nil
}

// startDetached starts the container with its output going to the log, and
// leaves it to itself.
func (r *run) startDetached(ctx context.Context) error {
	if err := r.create(ctx, &proxyv1.CreateRequest{
		Stdout: true, Stderr: !r.fl.TTY, LogPath: filepath.Join(r.dir, logFile),
	}); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.client.Disown(); err != nil {
		return err
	}
	fmt.Fprintln(r.out, r.record.ID)
	return nil
}

// attach runs the container with this program's own standard streams. The
// answer is nil when the container did not start.
func (r *run) attach(ctx context.Context) (*proxyv1.WaitResponse, error) {
	err := r.create(ctx, &proxyv1.CreateRequest{Stdin: r.fl.Interactive, Stdout: true, Stderr: !r.fl.TTY})
	if err != nil {
		return nil, err
	}
	s := &attach.Session{
		Client: r.client, Container: r.record.ID, Stdout: os.Stdout, Stderr: os.Stderr, TTY: r.fl.TTY, Signals: true,
	}
	if r.fl.Interactive {
		s.Stdin = os.Stdin
	}
	if err := s.Open(ctx); err != nil {
		return nil, err
	}
	defer s.Close()
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	// From here on signals are the container's.
	r.release()
	return s.Run(context.WithoutCancel(ctx))
}

// end ends the sandbox and waits until nothing of it is left.
func (r *run) end() error {
	if r.client == nil {
		return nil
	}
	r.printTrace() // while there is somebody to ask
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Should kata-proxy have died, what it left is removed here.
	err := errors.Join(r.client.End(ctx), r.collect(ctx, r.record.ID))
	_ = r.client.Close()
	return err
}

// printTrace prints the time line of the start, once: as the owner of the sandbox
// has it, or if there is none, as far as this program has come.
func (r *run) printTrace() {
	if !r.trace {
		return
	}
	r.trace = false
	ch := chart.Chart{Sandbox: r.record.ID, History: timeline.NewRecorder(r.record.ID, r.line).History()}
	if r.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), traceTimeout)
		defer cancel()
		h, err := r.client.History(ctx)
		if err != nil {
			fmt.Fprintln(r.errOut, "kata: "+err.Error())
		} else {
			ch.History = h
		}
	}
	_ = ch.Write(r.errOut, chart.Table)
}
