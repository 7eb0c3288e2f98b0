package modes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// readyFD is the file on which a program in the background reports to the one
// that started it, and readyEnv says that there is one.
const (
	readyFD  = 3
	readyEnv = "FLEXFS_INTERNAL_READY"
)

// Lines of the report: what to print, and how it ended.
const (
	reportSay   = "say "
	reportReady = "ready"
	reportFail  = "fail "
)

// inBackground tells whether this process was started by startBackground.
func inBackground() bool { return os.Getenv(readyEnv) != "" }

// startBackground runs this program again with the same arguments, apart from
// the terminal, with its log in logFile. It returns when the program reports
// that it works, or why it does not.
func startBackground(ctx context.Context, args []string, logFile string, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self)
	cmd.Args = args
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if err := readReport(r, out); err != nil {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		return err
	}
	return cmd.Process.Release()
}

// readReport prints what the program in the background says until it works or
// fails.
func readReport(r io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, reportSay); ok {
			fmt.Fprintln(out, text)
		} else if text, ok := strings.CutPrefix(line, reportFail); ok {
			return errors.New(strings.ReplaceAll(text, "\x00", "\n"))
		} else if line == reportReady {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the program in the background ended without saying why; its log may")
}

// A reporter tells how a start goes: to the terminal, or to the program that
// started this one in the background.
type reporter struct {
	w          io.Writer
	background *os.File // nil: in the foreground
}

func newReporter(out io.Writer) *reporter {
	if !inBackground() {
		return &reporter{w: out}
	}
	os.Unsetenv(readyEnv)
	syscall.CloseOnExec(readyFD)
	return &reporter{w: out, background: os.NewFile(readyFD, "report")}
}

// say prints a line.
func (r *reporter) say(text string) {
	if r.background != nil {
		for _, line := range strings.Split(text, "\n") {
			fmt.Fprintln(r.background, reportSay+line)
		}
		return
	}
	fmt.Fprintln(r.w, text)
}

// ready says that the program works.
func (r *reporter) ready() {
	notifySystemd("READY=1")
	r.end(reportReady)
}

// fail passes on why the program does not work. It returns what remains to be
// said by this process.
func (r *reporter) fail(err error) error {
	if err != nil {
		r.end(reportFail + strings.ReplaceAll(err.Error(), "\n", "\x00"))
	}
	return err
}

func (r *reporter) end(line string) {
	if r.background != nil {
		fmt.Fprintln(r.background, line)
		r.background.Close()
		r.background = nil
	}
}
