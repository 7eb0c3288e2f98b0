package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside tells a process that it is in the namespaces already.
const inside = "FLEXFS_MEASURE_INSIDE"

// An EndedError is the exit status of the process in the namespaces.
type EndedError struct{ Code int }

func (e *EndedError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// Apart runs this program again in a network namespace of its own, where it runs
// f: on its loopback device, with TCP Reno. What a machine's own congestion
// control does to loopback would otherwise be measured too.
func Apart(ctx context.Context, f func() error) error {
	return apart(ctx, 0, f)
}

// ApartWithMounts is Apart with namespaces of mounts and of processes, too. What is
// mounted in there nobody else sees, and when the process ends, however that
// comes, all that it started and mounted is gone. It needs root.
func ApartWithMounts(ctx context.Context, f func() error) error {
	return apart(ctx, syscall.CLONE_NEWNS|syscall.CLONE_NEWPID, func() error {
		if err := ownMounts(); err != nil {
			return fmt.Errorf("set up the mount namespace: %w", err)
		}
		return f()
	})
}

func apart(ctx context.Context, spaces uintptr, f func() error) error {
	if os.Getenv(inside) != "" {
		if err := setLoopback(); err != nil {
			return fmt.Errorf("set up the network namespace: %w", err)
		}
		return f()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | spaces, Pdeathsig: syscall.SIGTERM}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &EndedError{max(exit.ExitCode(), 1)}
	}
	if err != nil {
		return fmt.Errorf("make a namespace: %w", err)
	}
	return nil
}

// setLoopback brings the loopback device up and chooses TCP Reno, which never
// paces.
func setLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0o644)
}

// ownMounts cuts the mounts off from those of the machine, and shows the
// processes of this namespace.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return leaveFUSE()
}

// leaveFUSE takes out the FUSE mounts of others that the namespace began with: as
// long as it has them, those who unmount them elsewhere wait.
func leaveFUSE() error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(mounts)) {
		field := strings.Fields(line)
		if len(field) > 2 && (field[2] == "fuse" || strings.HasPrefix(field[2], "fuse.")) {
			// One that is gone, or below one that is, is no concern of ours.
			unix.Unmount(plain.Replace(field[1]), unix.MNT_DETACH)
		}
	}
	return nil
}
