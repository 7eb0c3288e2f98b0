package modes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// A guard is a small process beside a mount that cuts the mount off when the
// mount's process is killed. The kernel does that itself, but only after the
// last thread's end. A thread may be waiting in the kernel for a lock that a call
// on the mount holds, which nobody but this process could have answered: killed,
// it would wait for ever, and with it all who use the mount.
type guard struct {
	abort *os.File // see fuse.Config.OnMount
	log   *slog.Logger
	stop  context.CancelFunc
	done  chan struct{} // closed when there is no guard any more
}

const (
	// guardSignal is what the kernel sends the guard when the thread that started
	// it ends. The end of a pipe would come too late, with the last thread's.
	guardSignal = syscall.SIGUSR1

	// guardFD is the descriptor of the abort file in the guard.
	guardFD = 3

	// guardPause passes before a guard that has ended is replaced.
	guardPause = time.Second
)

// startGuard returns when the guard is at work. It owns abort. The guard is to be
// closed.
func startGuard(abort *os.File, log *slog.Logger) (*guard, error) {
	ctx, stop := context.WithCancel(context.Background())
	g := &guard{abort: abort, log: log, stop: stop, done: make(chan struct{})}
	started := make(chan error)
	go g.keep(ctx, started)
	if err := <-started; err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// close ends the guard; nil is none.
func (g *guard) close() {
	if g != nil {
		g.stop()
		<-g.done
		g.abort.Close()
	}
}

// keep has a guard run until ctx ends. It reports how the first start went.
func (g *guard) keep(ctx context.Context, started chan<- error) {
	runtime.LockOSThread() // see guardSignal
	defer runtime.UnlockOSThread()
	defer close(g.done)
	cmd, err := g.start(ctx)
	if started <- err; err != nil {
		return
	}
	for {
		if err == nil {
			err = cmd.Wait()
		}
		if ctx.Err() != nil {
			return
		}
		g.log.Warn("the mount has no guard and gets another", "err", err)
		select {
		case <-time.After(guardPause):
		case <-ctx.Done():
			return
		}
		cmd, err = g.start(ctx)
	}
}

// start starts a guard that ctx kills.
func (g *guard) start(ctx context.Context) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "guard")
	cmd.Args[0] = "flexfs"
	cmd.Env = []string{"GOMAXPROCS=1"} // and no secrets
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{g.abort}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: guardSignal}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("it does not say that it is ready: %w", err), cmd.Wait())
	}
	return cmd, nil
}

func guardCommand() *cli.Command {
	return &cli.Command{Name: "guard", Usage: "cut a mount off when its process is killed; flexfs mount starts it", Hidden: true, Action: guardMount}
}

// fuseControl is the type of the file system that abort files are on.
const fuseControl = 0x65735543

// guardMount is the guard's process.
func guardMount(*cli.Context) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(guardFD, &fs); err != nil || fs.Type != fuseControl {
		return usagef("flexfs mount starts the guard")
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP) // it ends with the mount
	killed := make(chan os.Signal, 1)
	signal.Notify(killed, guardSignal)
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return err
	}
	<-killed
	if _, err := unix.Write(guardFD, []byte{'1'}); err != nil {
		return fmt.Errorf("cut off the mount whose process was killed: %w", err)
	}
	return nil
}
