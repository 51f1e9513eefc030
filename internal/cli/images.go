package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/schollz/progressbar/v3"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) pullCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch an image and unpack its layers",
		Long: "Fetch an image and unpack its layers. IMAGE is a registry reference, oci:DIR[:TAG],\n" +
			"or the path of an archive (docker save, OCI).",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newPullProgress()
			defer p.end()
			img, err := a.images.Pull(cmd.Context(), args[0], image.PullOptions{Progress: p.show})
			if err != nil {
				return err
			}
			p.end()
			fmt.Fprintln(a.out, img.Name)
			return nil
		},
	}
}

// pullProgress draws a bar for each layer when standard error is a terminal.
type pullProgress struct {
	bar   *progressbar.ProgressBar
	layer int
}

// newPullProgress returns nil, on which all methods do nothing, when there is
// nobody to look.
func newPullProgress() *pullProgress {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return &pullProgress{}
}

func (p *pullProgress) show(s image.Progress) {
	if p == nil || s.Layer == 0 || s.Cached {
		return
	}
	if s.Layer != p.layer {
		p.end()
		total := s.Total
		if total == 0 {
			total = -1 // a spinner
		}
		p.layer = s.Layer
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetDescription(fmt.Sprintf("layer %d of %d %s", s.Layer, s.Layers, short(strings.TrimPrefix(s.Digest, "sha256:")))),
			progressbar.OptionShowBytes(true),
			progressbar.OptionSetWidth(30),
			progressbar.OptionClearOnFinish(),
		)
	}
	_ = p.bar.Set64(s.Done) // a bar that cannot be drawn is no failure
}

func (p *pullProgress) end() {
	if p != nil && p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}

// ensureImage returns the image, fetching it when it is not there.
func (a *app) ensureImage(ctx context.Context, ref string) (image.Image, error) {
	p := newPullProgress()
	defer p.end()
	return a.images.Ensure(ctx, ref, image.PullOptions{Progress: p.show})
}

func (a *app) imagesDir() string { return filepath.Join(a.conf.Runtime.DataDir, "images") }

func (a *app) imagesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List container images",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			images, err := a.images.Images()
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(a.out)
				enc.SetIndent("", "  ")
				return enc.Encode(images)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tID\tCREATED\tSIZE")
			for _, i := range images {
				fmt.Fprintf(w, "%s\t%s\t%s ago\t%s\n", i.Name, short(strings.TrimPrefix(i.ID, "sha256:")), age(i.Created), mebibytes(i.Size))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove container images",
		Long:  "Remove container images. Layers that a container or another image needs stay until `kata gc`\nfinds that nothing does.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				img, err := a.images.Remove(cmd.Context(), name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.out, img.Name)
			}
			_, err := a.images.GC(cmd.Context(), a.containers.dirs)
			return errors.Join(append(errs, err)...)
		},
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
