// Package e2e tells stories with real processes: the program as it is built,
// configured as its README says, killed and started again.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is the built binary; TestMain makes it.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flexfs-e2e-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "flexfs")
	build := exec.Command("go", "build", "-o", program, "flexfs")
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience is for one thing to start, to stop, or to be seen.
const patience = 30 * time.Second

// A world is a cluster of processes, each with its name, and the folder that
// they keep everything in.
type world struct {
	t     *testing.T
	dir   string
	mount string
	procs map[string]*proc
	order []string // of starting
}

// A proc is a process and how to start it again.
type proc struct {
	args  []string
	ready func() error
	cmd   *exec.Cmd
}

// newWorld starts admin with the metadata service, a group of two proxies and a
// mount, with a folder as bucket, by the README's commands.
func newWorld(t *testing.T, mountFlags ...string) *world {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	w := &world{t: t, dir: t.TempDir(), procs: map[string]*proc{}}
	w.mount = filepath.Join(w.dir, "mnt")
	for _, d := range []string{w.mount, w.path("bucket")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(w.end)

	adminAddr, metaAddr := freeAddr(t), freeAddr(t)
	w.start("admin", answers(adminAddr), "admin", "--bindAddr", adminAddr, "--dbFolder", w.path("admin"), "--metaBindAddr", metaAddr, "--metaAddress", metaAddr)
	creds := w.path("admin", "credentials.json")
	w.await(func() error { _, err := os.Stat(creds); return err })

	w.flexfs("configure", "create", "provider", "--code", "onprem", "--name", "Here")
	w.flexfs("configure", "create", "region", "--providerCode", "onprem", "--code", "dc1", "--name", "Hall 1")
	store := w.create("block-store", "--providerCode", "onprem", "--regionCode", "dc1", "--apiCode", "dir", "--bucket", w.path("bucket"))
	var metaStores []struct{ ID int64 }
	w.json(&metaStores, "configure", "list", "meta-stores", "--output", "json")
	w.create("volume", "--name", "v", "--metaStoreID", strconv.FormatInt(metaStores[0].ID, 10), "--blockStoreID", fmt.Sprint(store["id"]))

	proxies := []string{freeAddr(t), freeAddr(t)}
	group := w.create("proxy-group", "--providerCode", "onprem", "--regionCode", "dc1", "--addresses", strings.Join(proxies, ","))
	w.flexfs("configure", "create", "volume-proxy-group", "--volumeID", "v", "--proxyGroupID", fmt.Sprint(group["id"]))
	groupToken := w.tokenFile("proxy-group", group["id"])
	for i, addr := range proxies {
		name := fmt.Sprintf("proxy%d", i+1)
		w.start(name, answers(addr), "proxy", "--adminAddr", adminAddr, "--tokenFile", groupToken, "--credsFile", creds,
			"--bindAddr", addr, "--address", addr, "--diskFolder", w.path(name), "--diskQuota", "4GiB", "--memCapacity", "64MiB")
	}
	token := w.create("volume-token", "--volumeID", "v")
	mountToken := w.tokenFile("volume-token", token["id"])
	w.start("mount", w.works, append([]string{"mount", "--foreground", "--adminAddr", adminAddr, "--tokenFile", mountToken, "--credsFile", creds, "v", w.mount}, mountFlags...)...)
	return w
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// answers tells whether somebody listens at addr.
func answers(addr string) func() error {
	return func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	}
}

// works tells whether the mount is there and answers.
func (w *world) works() error {
	if !mounted(w.mount) {
		return errors.New("not mounted yet")
	}
	_, err := os.ReadDir(w.mount)
	return err
}

func mounted(dir string) bool {
	table, err := os.ReadFile("/proc/mounts")
	return err == nil && bytes.Contains(table, []byte(" "+dir+" "))
}

// start starts a process of the program and waits until it is ready.
func (w *world) start(name string, ready func() error, args ...string) {
	w.t.Helper()
	w.procs[name] = &proc{args: args, ready: ready}
	w.order = append(w.order, name)
	w.again(name)
}

// again starts a process that was killed or stopped, with the same arguments.
func (w *world) again(name string) {
	w.t.Helper()
	p := w.procs[name]
	log, err := os.OpenFile(w.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(program, p.args...)
	p.cmd.Env = append(os.Environ(), "HOME="+w.path("home-"+name))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.await(p.ready)
}

// kill ends a process as a power cut of its machine would, but for the disk.
func (w *world) kill(name string) {
	w.t.Helper()
	p := w.procs[name]
	if err := p.cmd.Process.Kill(); err != nil {
		w.t.Fatalf("kill %s: %v", name, err)
	}
	p.cmd.Wait()
	if name == "mount" {
		syscall.Unmount(w.mount, syscall.MNT_DETACH)
	}
}

// stop ends a process as an operator does.
func (w *world) stop(name string) {
	w.t.Helper()
	p := w.procs[name]
	p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer t.Stop()
	if err := p.cmd.Wait(); err != nil {
		w.t.Errorf("%s, told to end, ended with %v", name, err)
	}
}

// end ends what runs, the last started first, and shows the logs if the test
// failed.
func (w *world) end() {
	for i := len(w.order) - 1; i >= 0; i-- {
		if p := w.procs[w.order[i]]; p.cmd != nil && p.cmd.ProcessState == nil {
			w.stop(w.order[i])
		}
	}
	if mounted(w.mount) {
		w.t.Errorf("%s was still mounted", w.mount)
		syscall.Unmount(w.mount, syscall.MNT_DETACH)
	}
	for _, name := range w.order {
		if log, _ := os.ReadFile(w.path(name + ".log")); w.t.Failed() {
			w.t.Logf("log of %s:\n%s", name, log[max(0, len(log)-4000):])
		}
	}
}

// await waits until try succeeds.
func (w *world) await(try func() error) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

// flexfs runs a command of the program and returns its output.
func (w *world) flexfs(args ...string) []byte {
	w.t.Helper()
	out, err := w.tryFlexfs(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) tryFlexfs(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "HOME="+w.path("home"), "FLEXFS_CREDS_FILE="+w.path("admin", "credentials.json"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("flexfs %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out, err
}

func (w *world) json(v any, args ...string) {
	w.t.Helper()
	if err := json.Unmarshal(w.flexfs(args...), v); err != nil {
		w.t.Fatalf("flexfs %s: %v", strings.Join(args, " "), err)
	}
}

func (w *world) create(object string, flags ...string) (made map[string]any) {
	w.t.Helper()
	w.json(&made, append([]string{"configure", "create", object, "--output", "json"}, flags...)...)
	return made
}

// tokenFile writes the token of an object to a file.
func (w *world) tokenFile(object string, id any) string {
	w.t.Helper()
	var o struct{ Token string }
	w.json(&o, "configure", "show", object, fmt.Sprint(id), "--output", "json")
	name := w.path(object + "-token")
	if err := os.WriteFile(name, []byte(o.Token), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// check stops the metadata service, runs its fsck, and starts it again.
func (w *world) check() {
	w.t.Helper()
	w.stop("admin")
	if out, err := w.tryFlexfs("meta", "check", "--dbFolder", w.path("admin")); err != nil {
		w.t.Errorf("%v\n%s", err, out)
	}
	w.again("admin")
}
