package modes

import (
	"testing"

	"github.com/urfave/cli/v2"
)

func TestABoolFlagHasTheDefaultOfItsField(t *testing.T) {
	for args, want := range map[string]bool{"": true, "--here": true, "--here=false": false} {
		here, asked := true, false
		app := &cli.App{
			Flags:  []cli.Flag{boolFlag(&here, "here", "")},
			Action: func(*cli.Context) error { asked = here; return nil },
		}
		line := []string{"x"}
		if args != "" {
			line = append(line, args)
		}
		if err := app.Run(line); err != nil {
			t.Fatal(err)
		}
		if asked != want {
			t.Errorf("with %q the flag is %v", args, asked)
		}
	}
}
