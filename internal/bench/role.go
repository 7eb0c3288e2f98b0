package main

import (
	"bytes"
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
	case role == "driver" && len(args) == 0:
		return perform(new(smallJob))
	case role == "raw" && len(args) == 0:
		return perform(new(rawJob))
	}
	return fmt.Errorf("there is no helper %q with %d arguments", role, len(args))
}

// perform reads a job as JSON, does it, and prints what came of it.
func perform(job interface{ do() (*smallDone, error) }) error {
	if err := json.NewDecoder(os.Stdin).Decode(job); err != nil {
		return err
	}
	done, err := job.do()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(done)
}

// ask runs a helper to its end: it is told what as JSON, and so is its answer.
func ask(ctx context.Context, role string, what, answer any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, roleFlag, role)
	cmd.Stdin = bytes.NewReader(text)
	out, err := output(cmd)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, answer)
}
