package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A lab is a set of network namespaces, one for each process, on one switch.
// The nil lab is the network of this process.
type lab struct {
	t     *testing.T
	hosts map[string]int // number by name; the switch is in that of admin
	ports int            // given out
}

const spaces = "/run/netns"

// newLab makes an empty lab, or skips the test where that cannot be done. Its
// namespaces are deleted when the test ends.
func newLab(t *testing.T) *lab {
	t.Helper()
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("network namespaces: %v", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	deleteOrphans()
	l := &lab{t: t, hosts: map[string]int{}}
	if err := exec.Command("ip", "netns", "add", l.space("admin")).Run(); err != nil {
		t.Skipf("network namespaces: %v", err)
	}
	t.Cleanup(l.end)
	l.hosts["admin"] = 1
	l.ip("-n", l.space("admin"), "link", "set", "lo", "up")
	l.ip("-n", l.space("admin"), "link", "add", "switch", "type", "bridge")
	l.ip("-n", l.space("admin"), "addr", "add", "10.77.0.1/24", "dev", "switch")
	l.ip("-n", l.space("admin"), "link", "set", "switch", "up")
	return l
}

// deleteOrphans deletes namespaces of tests that were killed.
func deleteOrphans() {
	all, _ := filepath.Glob(filepath.Join(spaces, "flexfs-e2e-*"))
	for _, path := range all {
		name := filepath.Base(path)
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, "flexfs-e2e-"), "-")
		if n, err := strconv.Atoi(pid); err == nil && unix.Kill(n, 0) == unix.ESRCH {
			exec.Command("ip", "netns", "del", name).Run()
		}
	}
}

// space returns the name of a host's namespace.
func (l *lab) space(host string) string { return fmt.Sprintf("flexfs-e2e-%d-%s", os.Getpid(), host) }

func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// host makes a host when it is first named.
func (l *lab) host(name string) int {
	l.t.Helper()
	if l.hosts[name] == 0 {
		n := len(l.hosts) + 1
		l.hosts[name] = n
		l.ip("netns", "add", l.space(name))
		l.ip("-n", l.space("admin"), "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", l.space(name))
		l.ip("-n", l.space("admin"), "link", "set", name, "master", "switch", "up")
		l.ip("-n", l.space(name), "link", "set", "lo", "up")
		l.ip("-n", l.space(name), "addr", "add", fmt.Sprintf("10.77.0.%d/24", n), "dev", "eth0")
		l.ip("-n", l.space(name), "link", "set", "eth0", "up")
	}
	return l.hosts[name]
}

// addr returns a new address of the host.
func (l *lab) addr(host string) string {
	l.t.Helper()
	l.ports++
	return fmt.Sprintf("10.77.0.%d:%d", l.host(host), 9000+l.ports)
}

// cut pulls the host's plug, and joins puts it in again.
func (l *lab) cut(host string)   { l.ip("-n", l.space("admin"), "link", "set", host, "down") }
func (l *lab) joins(host string) { l.ip("-n", l.space("admin"), "link", "set", host, "up") }

// command returns a command that runs at the host.
func (l *lab) command(host, program string, args ...string) *exec.Cmd {
	return l.commandContext(context.Background(), host, program, args...)
}

func (l *lab) commandContext(ctx context.Context, host, program string, args ...string) *exec.Cmd {
	if l == nil {
		return exec.CommandContext(ctx, program, args...)
	}
	l.host(host)
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + filepath.Join(spaces, l.space(host)), program}, args...)...)
}

// in calls fn, which must not start goroutines, at the host.
func (l *lab) in(host string, fn func() error) error {
	if l == nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		space, err := os.Open(filepath.Join(spaces, l.space(host)))
		if err == nil {
			defer space.Close()
			err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

func (l *lab) end() {
	for name := range l.hosts {
		if out, err := exec.Command("ip", "netns", "del", l.space(name)).CombinedOutput(); err != nil {
			l.t.Errorf("delete namespace of %s: %v\n%s", name, err, out)
		}
	}
}
