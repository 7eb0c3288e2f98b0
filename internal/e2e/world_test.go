// Package e2e tells stories with real processes: the program as it is built,
// configured as its README says, killed and started again.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/powercut"
)

// program is the built binary; TestMain makes it.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flexfs-e2e-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "flexfs")
	if cmp.Or(os.Getenv(boardVar), os.Getenv(notesVar), os.Getenv(awayVar)) != "" {
		os.Exit(m.Run()) // that needs no program
	}
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

	lab     *lab
	dirs    []string        // of all mounts, w.mount first
	proxies []string        // their names
	lines   []*faultnet.Net // to the proxies, if the shape says so
	meta    *faultnet.Net   // to the metadata service, if the shape says so
	bucket  *sink           // nil: a folder
	disks   []*powercut.Disk

	adminAddr, creds, mountToken string
	mountFlags                   []string
}

// A proc is a process and how to start it again.
type proc struct {
	args  []string
	ready func() error
	cmd   *exec.Cmd
	past  int // bytes that its log had before
}

// A shape says what a world is made of. The zero value is a group of two proxies
// and one mount, with a folder as bucket.
type shape struct {
	proxies    int // 0: 2; negative: there is no group
	mounts     int // 0: 1
	mountFlags []string
	faulty     bool     // the mounts and the proxies reach proxies by lines that can fail: see world.lines
	spaces     *lab     // each process has a network of its own; nil: all are on loopback
	bucket     *sink    // nil: a folder
	blockSize  string   // of the volume; "": the usual one
	metaLine   bool     // admin and the mounts reach the metadata service by a line that can fail: see world.meta
	disks      []string // processes whose folders are on disks of their own, see world.disks
}

// newWorld starts admin with the metadata service, a group of two proxies and a
// mount, with a folder as bucket, by the README's commands.
func newWorld(t *testing.T, mountFlags ...string) *world {
	t.Helper()
	return newWorldOf(t, shape{mountFlags: mountFlags})
}

func newWorldOf(t *testing.T, s shape) *world {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	w := &world{t: t, dir: t.TempDir(), procs: map[string]*proc{}, lab: s.spaces, bucket: s.bucket}
	w.mount = filepath.Join(w.dir, "mnt")
	if err := os.Mkdir(w.path("bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range s.disks {
		if err := os.Mkdir(w.path(name), 0o700); err != nil {
			t.Fatal(err)
		}
		w.disks = append(w.disks, powercut.New(t, w.path(name)))
	}
	t.Cleanup(w.end)

	adminAddr, metaAddr := w.addr("admin"), w.addr("admin")
	metaKnown := metaAddr
	if s.metaLine {
		w.meta = w.line(metaAddr)
		metaKnown = w.meta.Addr()
	}
	w.start("admin", w.answers(adminAddr), "admin", "--bindAddr", adminAddr, "--dbFolder", w.path("admin"), "--metaBindAddr", metaAddr, "--metaAddress", metaKnown)
	w.adminAddr, w.creds = adminAddr, w.path("admin", "credentials.json")
	w.await(func() error { _, err := os.Stat(w.creds); return err })

	w.flexfs("configure", "create", "provider", "--code", "onprem", "--name", "Here")
	w.flexfs("configure", "create", "region", "--providerCode", "onprem", "--code", "dc1", "--name", "Hall 1")
	store := w.create("block-store", append([]string{"--providerCode", "onprem", "--regionCode", "dc1"}, s.bucket.flags(w)...)...)
	var metaStores []struct{ ID int64 }
	w.json(&metaStores, "configure", "list", "meta-stores", "--output", "json")
	volume := []string{"--name", "v", "--metaStoreID", strconv.FormatInt(metaStores[0].ID, 10), "--blockStoreID", fmt.Sprint(store["id"])}
	if s.blockSize != "" {
		volume = append(volume, "--blockSize", s.blockSize)
	}
	w.create("volume", volume...)
	if s.proxies >= 0 {
		w.startProxies(cmp.Or(s.proxies, 2), s.faulty)
	}
	token := w.create("volume-token", "--volumeID", "v")
	w.mountToken = w.tokenFile("volume-token", token["id"])
	w.mountFlags = s.mountFlags
	w.addMount("mount", w.mount)
	for i := 2; i <= s.mounts; i++ {
		w.addMount(fmt.Sprint("mount", i), fmt.Sprint(w.mount, i))
	}
	return w
}

// startProxies makes a group of n proxies and starts them.
func (w *world) startProxies(n int, faulty bool) {
	w.t.Helper()
	var binds, addresses []string
	for i := range n {
		bind := w.addr(fmt.Sprint("proxy", i+1))
		address := bind
		if faulty {
			line := w.line(bind)
			w.lines = append(w.lines, line)
			address = line.Addr()
		}
		binds, addresses = append(binds, bind), append(addresses, address)
	}
	group := w.create("proxy-group", "--providerCode", "onprem", "--regionCode", "dc1", "--addresses", strings.Join(addresses, ","))
	w.flexfs("configure", "create", "volume-proxy-group", "--volumeID", "v", "--proxyGroupID", fmt.Sprint(group["id"]))
	groupToken := w.tokenFile("proxy-group", group["id"])
	for i, bind := range binds {
		name := fmt.Sprintf("proxy%d", i+1)
		w.proxies = append(w.proxies, name)
		w.start(name, w.answers(bind), "proxy", "--adminAddr", w.adminAddr, "--tokenFile", groupToken, "--credsFile", w.creds,
			"--bindAddr", bind, "--address", addresses[i], "--diskFolder", w.path(name), "--diskQuota", "4GiB", "--memCapacity", "64MiB")
	}
}

// line returns a line to addr that can fail.
func (w *world) line(addr string) *faultnet.Net {
	w.t.Helper()
	line, err := faultnet.New(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return line
}

// addMount mounts the volume once more, in the folder dir, which it makes.
func (w *world) addMount(name, dir string, flags ...string) {
	w.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.dirs = append(w.dirs, dir)
	args := []string{"mount", "--foreground", "--adminAddr", w.adminAddr, "--tokenFile", w.mountToken, "--credsFile", w.creds, "v", dir}
	w.start(name, w.works(name, dir), slices.Concat(args, w.mountFlags, flags)...)
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// addr returns an address for a server of the process.
func (w *world) addr(name string) string {
	if w.lab != nil {
		return w.lab.addr(name)
	}
	return freeAddr(w.t)
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

// answers tells whether somebody in the world listens at addr.
func (w *world) answers(addr string) func() error {
	return func() error { return w.lab.in("admin", answers(addr)) }
}

// works tells whether a mount says that it is there, and answers.
func (w *world) works(name, dir string) func() error {
	return func() error {
		if !strings.Contains(w.log(name)[w.procs[name].past:], " is mounted at "+dir) {
			return errors.New("not mounted yet")
		}
		_, err := os.ReadDir(dir)
		return err
	}
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
	p.past = len(w.log(name))
	p.cmd = w.lab.command(name, program, p.args...)
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
	w.awaitEnd(name, p.cmd)
	for _, dir := range w.dirs {
		if slices.Contains(p.cmd.Args, dir) {
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	}
}

// awaitEnd waits for a killed program to be gone. A mount that the kernel does not
// let go is cut off, so that the test ends.
func (w *world) awaitEnd(name string, cmd *exec.Cmd) {
	w.t.Helper()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		cmd.Wait()
	}()
	select {
	case <-gone:
		return
	case <-time.After(patience):
		w.t.Errorf("%s was killed and does not end", name)
	}
	for _, dir := range w.dirs {
		if slices.Contains(cmd.Args, dir) {
			syscall.Unmount(dir, syscall.MNT_FORCE)
		}
	}
	<-gone
}

// signal stops a process in its tracks (SIGSTOP), or has it go on (SIGCONT).
func (w *world) signal(name string, sig syscall.Signal) {
	w.t.Helper()
	if err := w.procs[name].cmd.Process.Signal(sig); err != nil {
		w.t.Fatalf("%v to %s: %v", sig, name, err)
	}
}

// setLines changes the lines to all proxies.
func (w *world) setLines(line faultnet.Line) {
	w.t.Helper()
	for _, n := range w.lines {
		if err := n.Set(line); err != nil {
			w.t.Fatal(err)
		}
	}
}

// ends waits for a process to end by itself and returns its exit code.
func (w *world) ends(name string) int {
	w.t.Helper()
	p := w.procs[name]
	waitFor(p.cmd, patience)
	return p.cmd.ProcessState.ExitCode()
}

// log returns what a process logged.
func (w *world) log(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name + ".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// stop ends a process as an operator does.
func (w *world) stop(name string) {
	w.t.Helper()
	p := w.procs[name]
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Process.Signal(syscall.SIGCONT)                                           // a test may have stopped it
	t := time.AfterFunc(patience, func() { p.cmd.Process.Signal(syscall.SIGQUIT) }) // its log shows where it is
	defer t.Stop()
	if err := p.cmd.Wait(); err != nil {
		w.t.Errorf("%s, told to end, ended with %v", name, err)
	}
}

// end ends what runs, the last started first, verifies what is left, and shows the
// logs if the test failed.
func (w *world) end() {
	lines := w.lines
	if w.meta != nil {
		lines = append(lines, w.meta)
	}
	if w.bucket != nil {
		w.bucket.set(w.t, faultnet.Line{})
	}
	for _, n := range lines {
		defer n.Close()
		if err := n.Set(faultnet.Line{}); err != nil {
			w.t.Error(err)
		}
	}
	for i := len(w.order) - 1; i >= 0; i-- {
		if p := w.procs[w.order[i]]; p.cmd != nil && p.cmd.ProcessState == nil {
			w.stop(w.order[i])
		}
	}
	for _, dir := range w.dirs {
		if mounted(dir) {
			w.t.Errorf("%s was still mounted", dir)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	}
	w.check()
	for _, name := range w.order {
		if log, _ := os.ReadFile(w.path(name + ".log")); w.t.Failed() {
			w.t.Logf("log of %s:\n%s", name, log[max(0, len(log)-20_000):])
		}
	}
}

// check verifies the metadata, whose service has ended, and that the bucket has all
// that it names: mounts have stored what was written before they end, and proxies
// have uploaded it. A test that failed may have killed one that had not.
func (w *world) check() {
	args := []string{"meta", "check", "--dbFolder", w.path("admin")}
	if !w.t.Failed() {
		args = append(args, "--blocks")
	}
	began := time.Now()
	if _, err := w.flexfsWithin(5*time.Minute, args...); err != nil {
		w.t.Error(err)
	}
	if took := time.Since(began); took > time.Second {
		w.t.Logf("the check took %v", took)
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
	return w.flexfsWithin(patience, args...)
}

func (w *world) flexfsWithin(limit time.Duration, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := w.lab.commandContext(ctx, "admin", program, args...)
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
