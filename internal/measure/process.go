package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// stopPatience is how long a process may take to end that was told to.
const stopPatience = 15 * time.Second

// A Process is a child, which dies with this process.
type Process struct {
	Name string
	Pid  int

	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{} // closed when it has ended
}

// Start starts a program. The name is for messages; env comes on top of this
// process's environment.
func Start(name string, env []string, program string, args ...string) (*Process, error) {
	p := &Process{Name: name, cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	// Setpgid: Ctrl-C is for this process, which ends the others in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the child dies with the thread that started it
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.Pid = p.cmd.Process.Pid
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Await waits until try succeeds, which it does when the process is ready.
func (p *Process) Await(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at once:\n%s", p.Name, p.log.Bytes())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", p.Name, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// AwaitListening waits until somebody listens at addr.
func (p *Process) AwaitListening(ctx context.Context, addr string) error {
	return p.Await(ctx, func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Stop tells the process to end and waits until it has; it kills it if need be.
func (p *Process) Stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	return p.AwaitEnd()
}

// AwaitEnd waits until the process has ended, and kills it if it takes too long.
func (p *Process) AwaitEnd() error {
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end when it was told to:\n%s", p.Name, p.log.Bytes())
	}
	if s := p.cmd.ProcessState.Sys().(syscall.WaitStatus); s.Exited() && s.ExitStatus() != 0 {
		return errors.New(p.Name + " failed:\n" + p.log.String())
	}
	return nil
}

// nextPort is below the ports that the kernel gives to connections, which could
// take one that is free at the moment.
var nextPort atomic.Int32

const firstPort = 20000

// FreeAddr returns a loopback address that nobody listens on, and that is not
// returned again. In a namespace of one's own it stays free.
func FreeAddr() (string, error) {
	for {
		port := firstPort + nextPort.Add(1)
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return ln.Addr().String(), ln.Close()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return "", err
		}
	}
}

// Kill ends the process at once.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	return err
}
