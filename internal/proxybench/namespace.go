package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside tells a process that it is in the namespace already.
const inside = "FLEXFS_PROXYBENCH_INSIDE"

// An endedError is the exit status of the process in the namespace.
type endedError struct{ code int }

func (e *endedError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// inNamespace runs this program again in a network namespace of its own, where
// it runs f.
func inNamespace(ctx context.Context, f func() error) error {
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &endedError{max(exit.ExitCode(), 1)}
	}
	if err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
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
