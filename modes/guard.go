package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/fuse"
)

// A guard is a small process beside a mount that cuts the mount off when the
// mount's process is killed. The kernel does that itself, but only after the
// last thread's end. A thread may be waiting in the kernel for a lock that a call
// on the mount holds, which nobody but this process could have answered: killed,
// it would wait for ever, and with it all who use the mount.
type guard struct {
	log        *slog.Logger
	connection chan string // what is to be guarded
	watching   chan error  // whether it is
	stop       context.CancelFunc
	done       chan struct{} // closed when there is no guard any more
}

const (
	// guardSignal is what the kernel sends the guard when the thread that started
	// it ends. The end of a pipe would come too late, with the last thread's.
	guardSignal = syscall.SIGUSR1

	// guardPause passes before a guard that has ended is replaced.
	guardPause = time.Second
)

// startGuard starts a guard. It is to be closed.
func startGuard(log *slog.Logger) *guard {
	ctx, stop := context.WithCancel(context.Background())
	g := &guard{log: log, connection: make(chan string), watching: make(chan error), stop: stop, done: make(chan struct{})}
	go g.keep(ctx)
	return g
}

// watch tells the guard, once, which mount it is for; see fuse.OpenAbort.
func (g *guard) watch(connection string) error {
	select {
	case g.connection <- connection:
		return <-g.watching
	case <-g.done:
		return errors.New("it could not be started")
	}
}

// close ends the guard; nil is none.
func (g *guard) close() {
	if g != nil {
		g.stop()
		<-g.done
	}
}

// keep has a guard run until ctx ends, if the first one can do its work.
func (g *guard) keep(ctx context.Context) {
	runtime.LockOSThread() // see guardSignal
	defer runtime.UnlockOSThread()
	defer close(g.done)
	p, err := startGuardProcess(ctx)
	if err != nil {
		g.log.Warn("guard of the mount", "err", err)
		return
	}
	var connection string
	select {
	case connection = <-g.connection:
		err = p.watch(connection)
		g.watching <- err
	case <-ctx.Done():
	}
	if p.cmd.Wait(); err != nil {
		return
	}
	for ctx.Err() == nil {
		g.log.Warn("the guard of the mount has ended; it gets another", "err", err)
		select {
		case <-time.After(guardPause):
		case <-ctx.Done():
			return
		}
		if p, err = startGuardProcess(ctx); err == nil {
			err = errors.Join(p.watch(connection), p.cmd.Wait())
		}
	}
}

type guardProcess struct {
	cmd *exec.Cmd
	in  io.Writer
	out io.Reader
}

// startGuardProcess starts a guard that the end of ctx kills.
func startGuardProcess(ctx context.Context) (*guardProcess, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "guard")
	cmd.Args[0] = "flexfs"
	cmd.Env = []string{"GOMAXPROCS=1"} // and no secrets
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: guardSignal}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &guardProcess{cmd, in, out}, cmd.Start()
}

// watch returns when the guard watches the mount.
func (p *guardProcess) watch(connection string) error {
	if _, err := fmt.Fprintln(p.in, connection); err != nil {
		return err
	}
	if _, err := p.out.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("it has ended: %w", err)
	}
	return nil
}

func guardCommand() *cli.Command {
	return &cli.Command{Name: "guard", Usage: "cut a mount off when its process is killed; flexfs mount starts it", Hidden: true, Action: guardMount}
}

// guardMount is the guard's process. It is told the mount on its standard input, and
// says when it is ready.
func guardMount(c *cli.Context) error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP) // it ends with the mount
	killed := make(chan os.Signal, 1)
	signal.Notify(killed, guardSignal)
	var connection string
	if _, err := fmt.Fscanln(c.App.Reader, &connection); err != nil {
		return usagef("flexfs mount starts the guard")
	}
	abort, err := fuse.OpenAbort(connection)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c.App.Writer); err != nil {
		return err
	}
	<-killed
	if _, err := abort.Write([]byte{'1'}); err != nil {
		return fmt.Errorf("cut off the mount whose process was killed: %w", err)
	}
	return nil
}
