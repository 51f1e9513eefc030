package entropy

import (
	"errors"
	"testing"
)

func TestAddRefuses(t *testing.T) {
	for _, seed := range [][]byte{nil, make([]byte, maxSeed+1)} {
		if err := Add(seed); !errors.Is(err, ErrInvalid) {
			t.Errorf("seed of %d bytes: %v", len(seed), err)
		}
	}
}
