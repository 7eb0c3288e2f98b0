package modes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A family is processes of this program that end when this process does,
// however it ends.
type family struct {
	program string   // the binary
	logs    string   // folder of their logs
	lock    *os.File // stays locked until all have ended

	start chan startRequest
	all   []*child
	ended chan *child // each child once
}

// A child is one process of a family.
type child struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how it ended; valid after done
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

// maxChildren bounds a family; ended has room for all of them.
const maxChildren = 64

// newFamily returns an empty family. It is to be closed.
func newFamily(program, logs string, lock *os.File) *family {
	f := &family{program: program, logs: logs, lock: lock, start: make(chan startRequest), ended: make(chan *child, maxChildren)}
	go f.starter()
	return f
}

// starter starts processes from one thread that lives as long as the family:
// the kernel ends them (Pdeathsig) when the thread that started them ends.
func (f *family) starter() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for r := range f.start {
		r.result <- r.cmd.Start()
	}
}

// run starts a child. extra is its files from descriptor 3 on.
func (f *family) run(name string, env []string, extra []*os.File, args ...string) (*child, error) {
	if len(f.all) >= maxChildren {
		return nil, fmt.Errorf("more than %d processes", maxChildren)
	}
	logName := filepath.Join(f.logs, name+".log")
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(f.program, args...)
	cmd.Args[0] = "flexfs"
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = slices.Concat(extra, []*os.File{f.lock})
	// A group of its own, so that Ctrl-C reaches us only and we end them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	r := startRequest{cmd, make(chan error, 1)}
	f.start <- r
	if err := <-r.result; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, log: logName, cmd: cmd, done: make(chan struct{})}
	f.all = append(f.all, c)
	go func() {
		c.err = cmd.Wait()
		close(c.done)
		f.ended <- c
	}()
	return c, nil
}

// close ends the children, the last started first, and waits for them. One
// that does not end in time is killed.
func (f *family) close(patience time.Duration) error {
	var errs []error
	for i := len(f.all) - 1; i >= 0; i-- {
		errs = append(errs, f.all[i].stop(patience))
	}
	close(f.start)
	return errors.Join(errs...)
}

func (c *child) stop(patience time.Duration) error {
	if c.hasEnded() {
		return nil
	}
	c.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c.done:
		return nil
	case <-t.C:
		c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("%s did not end within %v and was killed; its log is %s", c.name, patience, c.log)
	}
}

func (c *child) hasEnded() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// why says how a child that ended did, with the end of its log.
func (c *child) why() error {
	text := "ended"
	if c.err != nil {
		text = "ended (" + c.err.Error() + ")"
	}
	if last := lastLine(c.log); last != "" {
		text += ": " + last
	}
	return fmt.Errorf("%s %s; its log is %s", c.name, text, c.log)
}

// lastLine returns the last line of a file.
func lastLine(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	tail := make([]byte, min(info.Size(), 4096))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(tail)), "\n")
	return lines[len(lines)-1]
}
