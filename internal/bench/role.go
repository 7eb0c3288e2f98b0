package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"flexfs/internal/memfs"
)

// roleFlag makes this program be one of its own helpers, which are processes of
// their own so that their CPU time can be told from that of others.
const roleFlag = "-as"

// self is this program's path for its helpers.
const self = "/proc/self/exe"

func playRole(role string, args []string) error {
	switch {
	case role == "memfs" && len(args) == 1:
		return memfs.Serve(context.Background(), args[0])
	case role == "driver" && len(args) == 1:
		var job smallJob
		if err := json.Unmarshal([]byte(args[0]), &job); err != nil {
			return err
		}
		done, err := job.do()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(done)
	}
	return fmt.Errorf("there is no helper %q with %d arguments", role, len(args))
}

// ask runs a helper to its end: it is told what as JSON, and so is its answer.
func ask(ctx context.Context, role string, what, answer any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	out, err := output(exec.CommandContext(ctx, self, roleFlag, role, string(text)))
	if err != nil {
		return err
	}
	return json.Unmarshal(out, answer)
}
