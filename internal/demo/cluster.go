package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A cluster is what flexfs up runs, a second mount, and proxies started beside
// it. All its processes are children of this one or of the up that it started.
type cluster struct {
	bin    string // the flexfs program
	dir    string // everything is in it
	mount  string // of up
	second string // of ours

	up      *exec.Cmd
	beside  []*exec.Cmd       // proxies that we started
	proxies map[string]int    // process id by address
	folders map[string]string // of up's proxies' state, by address
}

const patience = 30 * time.Second // for one thing to start or to stop

func (c *cluster) state(name string) string { return filepath.Join(c.dir, "state", name) }

// flexfs runs the program with the operator's credentials.
func (c *cluster) flexfs(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "FLEXFS_CREDS_FILE="+c.state("admin/credentials.json"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("flexfs %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out), nil
}

// proxyLine is how up tells of a proxy.
var proxyLine = regexp.MustCompile(`(proxy-\d+) +https://(\S+) .* process (\d+)`)

// start runs flexfs up and waits until it has said how to end it.
func (c *cluster) start(ctx context.Context) error {
	c.up = exec.Command(c.bin, "up", "--stateDir", filepath.Join(c.dir, "state"), c.mount)
	c.up.Env = append(os.Environ(), "HOME="+c.dir)
	c.up.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we end it
	c.up.Stderr = os.Stderr
	out, err := c.up.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.up.Start(); err != nil {
		return err
	}
	ready := make(chan bool, 1)
	go func() {
		c.readProxies(out)
		ready <- true
		io.Copy(io.Discard, out)
	}()
	select {
	case <-ready:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return errors.New("flexfs up says nothing")
	}
	if len(c.proxies) == 0 {
		return errors.New("flexfs up did not start its proxies")
	}
	return nil
}

// readProxies reads what up says until it is done, or ends.
func (c *cluster) readProxies(out io.Reader) {
	c.proxies, c.folders = map[string]int{}, map[string]string{}
	for s := bufio.NewScanner(out); s.Scan(); {
		if m := proxyLine.FindStringSubmatch(s.Text()); m != nil {
			c.proxies[m[2]], _ = strconv.Atoi(m[3])
			c.folders[m[2]] = c.state(m[1])
		}
		if strings.HasPrefix(s.Text(), "Ctrl-C") {
			return
		}
	}
}

// mountSecond mounts the volume again, in the background as a user would.
func (c *cluster) mountSecond(ctx context.Context) error {
	if err := os.Mkdir(c.second, 0o755); err != nil {
		return err
	}
	_, err := c.flexfs(ctx, "mount", "--credsFile", c.state("mount.json"), "--memCapacity", "64MiB", "my-volume", c.second)
	return err
}

// addProxy starts a proxy of group 1 beside up and returns its address: a new one
// or, if addr is that of a proxy that up started and that is gone, the same one
// again, with its key and its cache.
func (c *cluster) addProxy(ctx context.Context, addr string) (string, error) {
	folder := c.folders[addr]
	if addr == "" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		addr, folder = ln.Addr().String(), filepath.Join(c.dir, fmt.Sprintf("proxy-%d", len(c.beside)))
		ln.Close()
	}
	cmd := exec.Command(c.bin, "proxy", "--credsFile", c.state("proxy-group-1.json"), "--bindAddr", addr, "--address", addr,
		"--stateFolder", folder, "--diskFolder", filepath.Join(folder, "blocks"), "--diskQuota", "2GiB", "--memCapacity", "128MiB")
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	c.beside = append(c.beside, cmd)
	c.proxies[addr] = cmd.Process.Pid
	return addr, until(ctx, func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// kill ends a proxy the hard way and waits until it is gone.
func (c *cluster) kill(ctx context.Context, addr string) error {
	pid := c.proxies[addr]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill proxy %s: %w", addr, err)
	}
	delete(c.proxies, addr)
	for _, cmd := range c.beside {
		if cmd.Process.Pid == pid {
			cmd.Wait()
		}
	}
	return until(ctx, func() error {
		if syscall.Kill(pid, 0) == nil {
			return errors.New("the killed proxy is still there")
		}
		return nil
	})
}

// until waits until try succeeds, and returns its last error if it does not in
// time.
func until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stats returns what a mount says of itself.
func (c *cluster) stats(ctx context.Context, dir string) (s stats, err error) {
	out, err := c.flexfs(ctx, "stats", "--output", "json", dir)
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// down ends everything that was started, whatever state it is in.
func (c *cluster) down() error {
	var errs []error
	if mounted(c.second) {
		if err := syscall.Unmount(c.second, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", c.second, err), syscall.Unmount(c.second, syscall.MNT_DETACH))
		}
	}
	if c.up != nil && c.up.Process != nil {
		c.up.Process.Signal(syscall.SIGINT)
		errs = append(errs, c.wait(c.up, "flexfs up"))
	}
	for _, cmd := range c.beside {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGTERM)
			errs = append(errs, c.wait(cmd, "proxy"))
		}
	}
	if mounted(c.mount) {
		errs = append(errs, fmt.Errorf("%s was still mounted", c.mount), syscall.Unmount(c.mount, syscall.MNT_DETACH))
	}
	return errors.Join(errs...)
}

// wait waits for a process that was told to end, and kills it if it does not.
func (c *cluster) wait(cmd *exec.Cmd, name string) error {
	t := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer t.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s ended with %w", name, err)
	}
	return nil
}

func mounted(dir string) bool {
	table, err := os.ReadFile("/proc/mounts")
	return err == nil && bytes.Contains(table, []byte(" "+dir+" "))
}

// nothingLeft checks that no process of the demo runs and that its folder is
// gone. The second mount's process ends a moment after its mount.
func (c *cluster) nothingLeft() error {
	err := until(context.Background(), func() error {
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, name := range commands {
			line, _ := os.ReadFile(name)
			if bytes.Contains(line, []byte(c.dir)) {
				return fmt.Errorf("process %s is still there: %q", filepath.Base(filepath.Dir(name)), line)
			}
		}
		return nil
	})
	if mounted(c.mount) || mounted(c.second) {
		err = errors.Join(err, errors.New("a mount is still there"))
	}
	if _, e := os.Lstat(c.dir); e == nil {
		err = errors.Join(err, fmt.Errorf("folder %s is still there", c.dir))
	}
	return err
}
