package sandbox_test

import (
	"os"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Run(m)) }
