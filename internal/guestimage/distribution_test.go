package guestimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDistributionKernel uses the kernel that this machine really has, or
// Debian's package. The latter is kept for the next run.
func TestDistributionKernel(t *testing.T) {
	userCache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	c := cache{dir: filepath.Join(userCache, "kata-test", "guestimage")}
	b := testBuilder(t)
	b.Kernel, b.Modules, b.CacheDir = "", "", c.dir
	if _, err := b.Find(); err != nil {
		if _, err := exec.LookPath("apt-get"); err != nil {
			t.Skip("neither a kernel with modules in /boot nor apt-get to fetch one")
		}
	}
	img := ensure(t, b)
	t.Cleanup(func() {
		// The agent of this test is of no use to others.
		if err := os.RemoveAll(c.path("image", img.Key)); err != nil {
			t.Error(err)
		}
	})
	if img.Kernel.ModulesDir == "" {
		return // the tuned kernel
	}
	p, err := planModules(img.Kernel.ModulesDir, img.Kernel.Version)
	if err != nil {
		t.Fatal(err)
	}
	checkPlan(t, p)
	if len(p.missing) > 0 {
		t.Logf("kernel %s lacks %v", img.Kernel.Version, p.missing)
	}
}
