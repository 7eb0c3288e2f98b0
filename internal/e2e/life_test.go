package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"flexfs/internal/faultnet"
)

// A user is a program that uses a mount and may have to be killed.
type user struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    bytes.Buffer
	ended  chan struct{}
	err    error // valid after ended
	status syscall.WaitStatus
}

// use starts a program.
func use(t *testing.T, name string, args ...string) *user {
	t.Helper()
	u := &user{t: t, cmd: exec.Command(name, args...), ended: make(chan struct{})}
	u.cmd.Stdout, u.cmd.Stderr = &u.out, &u.out
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		u.err = u.cmd.Wait()
		u.status = u.cmd.ProcessState.Sys().(syscall.WaitStatus)
		close(u.ended)
	}()
	return u
}

// waits fails the test if the program ends within a while.
func (u *user) waits() {
	u.t.Helper()
	select {
	case <-u.ended:
		u.t.Errorf("%v does not wait: %v\n%s", u.cmd.Args, u.err, u.out.Bytes())
	case <-time.After(time.Second):
	}
}

// gone reports whether the program has ended.
func (u *user) gone() bool {
	select {
	case <-u.ended:
		return true
	default:
		return false
	}
}

// ends waits for the program's end.
func (u *user) ends() error {
	u.t.Helper()
	select {
	case <-u.ended:
		return u.err
	case <-time.After(patience):
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", u.cmd.Process.Pid))
		u.t.Fatalf("%v does not end; it is in\n%s", u.cmd.Args, stack)
		return nil
	}
}

// atOnce is for what takes a second or two, on a machine that has other things to do.
const atOnce = 8 * time.Second

// dies sends a signal that ends the program, whatever it waits for.
func (u *user) dies(sig syscall.Signal) {
	u.t.Helper()
	began := time.Now()
	u.cmd.Process.Signal(sig)
	if u.ends(); !u.status.Signaled() {
		u.t.Errorf("%v, sent %v, ended with %v\n%s", u.cmd.Args, sig, u.err, u.out.Bytes())
	}
	if took := time.Since(began); took > atOnce {
		u.t.Errorf("%v, sent %v, ended after %v", u.cmd.Args, sig, took)
	}
}

func (w *world) file(name, contents string) string {
	w.t.Helper()
	path := filepath.Join(w.mount, name)
	if err := os.WriteFile(path, []byte(contents), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func wantFile(t *testing.T, path string, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s has %d bytes, want %d, and those: %v", path, len(got), len(want), err)
	}
}

// large makes contents that do not fit with the metadata.
func large(text string) string { return strings.Repeat(text+"\n", (100<<10)/len(text)) }

// While the bucket is away what is cached can be read, all else waits; who waits
// can be killed, and what it wrote is stored in the end.
func TestCallsWaitForABucketThatIsAway(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{proxies: -1, mounts: 2, bucket: bucket})
	warm, cold := w.file("warm", large("warm")), filepath.Join(w.dirs[1], "warm")
	wantFile(t, warm, large("warm"))
	local := filepath.Join(t.TempDir(), "local") // a copy within the mount needs no bucket
	if err := os.WriteFile(local, []byte(large("warm")), 0o600); err != nil {
		t.Fatal(err)
	}

	bucket.set(t, faultnet.Line{State: faultnet.Refused})
	wantFile(t, warm, large("warm"))
	reader, victim := use(t, "cat", cold), use(t, "cat", cold)
	writer := use(t, "cp", local, filepath.Join(w.mount, "written"))
	dead := use(t, "cp", local, filepath.Join(w.mount, "dead"))
	reader.waits()
	writer.waits()
	victim.dies(syscall.SIGKILL)
	dead.dies(syscall.SIGKILL)
	wantFile(t, warm, large("warm"))

	bucket.set(t, faultnet.Line{})
	if err := reader.ends(); err != nil || reader.out.String() != large("warm") {
		t.Errorf("a read that waited: %d bytes, %v", reader.out.Len(), err)
	}
	if err := writer.ends(); err != nil {
		t.Errorf("a copy that waited: %v\n%s", err, writer.out.Bytes())
	}
	wantFile(t, filepath.Join(w.dirs[1], "written"), large("warm"))
	w.await(func() error {
		got, err := os.ReadFile(filepath.Join(w.dirs[1], "dead"))
		if err == nil && string(got) != large("warm") {
			err = fmt.Errorf("what a killed program wrote is not stored: %d bytes", len(got))
		}
		return err
	})
}

// The kernel does not let a killed mount end while a thread of it waits to have
// pages forgotten that are being read, which only the mount could answer.
func TestUsersOfAKilledMountDoNotHang(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{proxies: -1, mounts: 2, bucket: bucket})
	w.file("f", large("f"))
	bucket.set(t, faultnet.Line{State: faultnet.Refused})
	reader := use(t, "cat", filepath.Join(w.dirs[1], "f"))
	reader.waits()
	w.file("f", "so small that it needs no bucket")
	w.await(func() error {
		stacks, err := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/stack", w.procs["mount2"].cmd.Process.Pid)).Output()
		if err == nil && !bytes.Contains(stacks, []byte("fuse_reverse_inval_inode")) {
			err = errors.New("no thread of the mount waits in the kernel")
		}
		return err
	})
	w.kill("mount2")
	if err := reader.ends(); err == nil {
		t.Error("who read through a mount that was killed is told that all is well")
	}
}

// The same for the metadata service.
func TestCallsWaitForAMetadataServiceThatIsAway(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1})
	path := func(name string) string { return filepath.Join(w.mount, name) }
	for _, dir := range []string{"1", "2", "3"} {
		if err := os.Mkdir(path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	held := w.file("held", large("held"))
	locker := use(t, "flock", "-F", held, "sleep", "1000")
	w.await(func() error {
		if err := exec.Command("flock", "-n", held, "true").Run(); err == nil {
			return errors.New("it is not locked")
		}
		return nil
	})
	w.kill("admin")
	// In folders of their own: the kernel has who makes something wait for others
	// that do in the same, and does not let signals through then.
	maker, killed, stopped := use(t, "mkdir", path("1/d")), use(t, "mkdir", path("2/d")), use(t, "mkdir", path("3/d"))
	maker.waits()
	killed.dies(syscall.SIGKILL)
	stopped.dies(syscall.SIGINT)
	locker.dies(syscall.SIGKILL)
	w.again("admin")
	if err := maker.ends(); err != nil {
		t.Errorf("a mkdir that waited: %v\n%s", err, maker.out.Bytes())
	}
	if _, err := os.Stat(path("1/d")); err != nil {
		t.Error(err)
	}
	// The lock of who died meanwhile is not kept.
	w.await(func() error { return exec.Command("flock", "-n", held, "true").Run() })
}

// With --giveUp calls fail with EIO when the servers are away for longer, at once
// from then on, and work when they are back.
func TestServersThatStayAwayAreGivenUp(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{proxies: -1, mounts: 2, bucket: bucket, mountFlags: []string{"--giveUp", "3s"}})
	file := w.file("f", large("f"))
	cold := filepath.Join(w.dirs[1], "f")
	fails := func(what string, do func() error, limit time.Duration) {
		t.Helper()
		began := time.Now()
		err := do()
		if took := time.Since(began); !errors.Is(err, syscall.EIO) || took > limit {
			t.Errorf("%s: %v after %v, want EIO", what, err, took)
		}
	}
	write := func() error { return os.WriteFile(filepath.Join(w.mount, "g"), []byte(large("g")), 0o644) }
	read := func() error { _, err := os.ReadFile(cold); return err }
	mkdir := func() error { return os.Mkdir(filepath.Join(w.mount, "d"), 0o755) }

	bucket.set(t, faultnet.Line{State: faultnet.Refused})
	fails("a write without the bucket", write, patience)
	fails("a read without the bucket", read, patience)
	wantFile(t, file, large("f"))
	bucket.set(t, faultnet.Line{})
	w.await(read)
	w.await(write)
	wantFile(t, filepath.Join(w.dirs[1], "g"), large("g"))

	w.kill("admin")
	fails("a mkdir without the service", mkdir, patience)
	fails("the next", mkdir, 2*time.Second)
	w.again("admin")
	w.await(func() error {
		if err := mkdir(); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	})
}

// A mount that is told to end stores what was written, whoever has files open;
// a terminal that closes does not end it.
func TestAMountThatIsToldToEndStoresWhatWasWritten(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		mount, name := w.procs["mount"].cmd.Process, filepath.Join(w.mount, "open until "+sig.String())
		mount.Signal(syscall.SIGHUP)
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(large("open")); err != nil {
			t.Fatal(err)
		}
		mount.Signal(sig)
		time.Sleep(time.Second)
		mount.Signal(sig) // do not wait for who has files open
		if code := w.ends("mount"); code != 1 {
			t.Errorf("%v: a mount that cut its users off ended with code %d, want 1", sig, code)
		}
		if log := w.log("mount")[w.procs["mount"].past:]; !strings.Contains(log, "users were cut off") {
			t.Errorf("%v: that users were cut off is not said", sig)
		}
		if mounted(w.mount) {
			t.Errorf("%v: it is still mounted", sig)
		}
		w.again("mount")
		wantFile(t, name, large("open"))
	}
}

// umount -l takes the mount out of sight; who has files open goes on, and the
// mount ends when the last is closed and all is stored.
func TestALazyUnmountEndsWithTheLastClose(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1})
	f, err := os.Create(filepath.Join(w.mount, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(large("before")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(w.mount, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(large("after")); err != nil {
		t.Errorf("a write after the lazy unmount: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("the close: %v", err)
	}
	if code := w.ends("mount"); code != 0 {
		t.Errorf("the mount ended with code %d", code)
	}
	w.again("mount")
	wantFile(t, filepath.Join(w.mount, "open"), large("before")+large("after"))
}

// The locks of a mount are those of who has the file open, until that is over or the
// mount is: also if it is taken out of sight, or by force.
func TestLocksEndWithAnUnmountThatDoesNotWait(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1, mounts: 2})
	file := w.file("f", large("f"))
	other := filepath.Join(w.dirs[1], "f")
	for _, how := range []struct {
		name  string
		flags int
	}{{"umount -l", syscall.MNT_DETACH}, {"umount -f -l", syscall.MNT_FORCE | syscall.MNT_DETACH}} {
		holder := use(t, "flock", "-F", file, "sleep", "1000")
		w.await(func() error {
			if exec.Command("flock", "-n", other, "true").Run() == nil {
				return errors.New("it is not locked")
			}
			return nil
		})
		waiter := use(t, "flock", other, "true")
		waiter.waits()
		if err := syscall.Unmount(w.mount, how.flags); err != nil {
			t.Fatalf("%s: %v", how.name, err)
		}
		if how.flags&syscall.MNT_FORCE == 0 {
			waiter.waits() // who has the file open goes on, with its lock
			holder.dies(syscall.SIGKILL)
		}
		began := time.Now()
		if err := waiter.ends(); err != nil {
			t.Errorf("%s: the one that waited: %v", how.name, err)
		}
		t.Logf("%s: the other mount had the lock after %v", how.name, time.Since(began))
		w.ends("mount")
		if how.flags&syscall.MNT_FORCE != 0 {
			holder.dies(syscall.SIGKILL)
		}
		w.again("mount")
	}
}

// A mount that cannot reach the metadata service when it starts says so and ends;
// one that has nothing to store ends at once though the service is away.
func TestMountsBeginAndEndWithoutTheMetadataService(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1, metaLine: true})
	dir := w.path("second")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.file("f", large("f"))
	for _, away := range []struct {
		state faultnet.State
		end   func() error
	}{
		{faultnet.Refused, func() error { return w.procs["mount"].cmd.Process.Signal(syscall.SIGTERM) }},
		{faultnet.Frozen, exec.Command("fusermount3", "-u", w.mount).Run},
	} {
		if err := w.meta.Set(faultnet.Line{State: away.state}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := w.tryMount("v", dir)
		took := time.Since(began)
		t.Logf("%v: after %v the mount says %v", away.state, took, err)
		if err == nil || !strings.Contains(err.Error(), "flexfs mount: metadata service at "+w.meta.Addr()) || took > 20*time.Second || mounted(dir) {
			t.Errorf("%v: after %v a mount without the metadata service says %v", away.state, took, err)
		}
		began = time.Now()
		if err := away.end(); err != nil {
			t.Errorf("%v: %v", away.state, err)
		}
		if code := w.ends("mount"); code != 0 {
			t.Errorf("%v: the mount ended with code %d", away.state, code)
		}
		if took = time.Since(began); took > 10*time.Second {
			t.Errorf("%v: the mount ended after %v", away.state, took)
		}
		t.Logf("%v: the mount ended after %v", away.state, took)
		if err := w.meta.Set(faultnet.Line{}); err != nil {
			t.Fatal(err)
		}
		w.again("mount")
	}
}

// A mount that ends while a server is away does so in time, and says what is lost.
func TestAMountThatCannotStoreSaysWhatIsLost(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{proxies: -1, bucket: bucket, mountFlags: []string{"--drainTimeout", "3s"}})
	for _, away := range []string{"bucket", "admin"} {
		name := "lost-without-" + away
		w.file(name, large("old"))
		if away == "bucket" {
			bucket.set(t, faultnet.Line{State: faultnet.Refused})
		} else {
			w.kill("admin")
		}
		writer := use(t, "dd", "if=/bin/true", "of="+filepath.Join(w.mount, name), "conv=notrunc")
		writer.waits()
		writer.dies(syscall.SIGKILL) // and what it wrote waits to be stored
		w.procs["mount"].cmd.Process.Signal(syscall.SIGTERM)
		if code := w.ends("mount"); code != 1 {
			t.Errorf("without %s: a mount that lost data ended with code %d, want 1", away, code)
		}
		if log := w.log("mount"); !strings.Contains(log, "/"+name+" (inode") {
			t.Errorf("without %s: that the file is lost is not said", away)
		}
		if mounted(w.mount) {
			t.Errorf("without %s: it is still mounted", away)
		}
		bucket.set(t, faultnet.Line{})
		if away == "admin" {
			w.again("admin")
		}
		w.again("mount")
		wantFile(t, filepath.Join(w.mount, name), large("old"))
	}
}

// A mount that was killed leaves an honest error, and the next one says what to do.
func TestAfterAKilledMountTheNextSaysWhatToDo(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1})
	p := w.procs["mount"]
	p.cmd.Process.Kill()
	p.cmd.Wait()
	if _, err := os.Stat(w.mount); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("stat of a mount that was killed: %v, want ENOTCONN", err)
	}
	err := w.tryMount("v", w.mount)
	if err == nil || !strings.Contains(err.Error(), "umount -l "+w.mount) {
		t.Errorf("the next mount says %v", err)
	}
	if err := exec.Command("umount", "-l", w.mount).Run(); err != nil {
		t.Fatal(err)
	}
	w.again("mount")
}

// tryMount mounts in the background.
func (w *world) tryMount(args ...string) error {
	w.t.Helper()
	all := append([]string{"mount", "--adminAddr", w.adminAddr, "--tokenFile", w.mountToken, "--credsFile", w.creds, "--logFile", w.path("background.log")}, args...)
	out, err := w.tryFlexfs(all...)
	if err == nil {
		w.t.Logf("%s", out)
	}
	return err
}

// A mount in the background reports success when it answers, and else why not; then
// nothing is left of it.
func TestAMountInTheBackgroundSaysWhyItFails(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1})
	dir := w.path("second")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bad := w.path("bad-token")
	if err := os.WriteFile(bad, []byte("nobody-gave-this"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path("a-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails := func(what, want string, args ...string) {
		t.Helper()
		err := w.tryMount(args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the mount says %v\nwant something with %q", what, err, want)
		}
		if mounted(dir) {
			t.Errorf("%s: it is mounted", what)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	}
	fails("a wrong token", "token", "--tokenFile", bad, "v", dir)
	fails("another volume", "the token is for volume v", "other", dir)
	fails("no such folder", "make the folder first", "v", w.path("nowhere"))
	fails("a file", "is not a folder", "v", w.path("a-file"))
	fails("a mount already", "umount it first", "v", w.mount)
	fails("a folder with files", "--nonEmpty", "v", w.dir)
	fails("admin elsewhere", "127.0.0.1:1", "--adminAddr", "127.0.0.1:1", "v", dir)

	if err := w.tryMount("v", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		t.Errorf("it said that it works: %v", err)
	}
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Errorf("umount: %v\n%s", err, out)
	}
	w.kill("admin")
	fails("admin is away", "a mount needs admin to start", "v", dir)
	w.again("admin")
}

// A machine that sleeps loses its session, and sees the truth when it wakes up; what
// was written before is stored then.
func TestAMountThatWasStoppedSeesTheTruth(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1, mounts: 2})
	one, two := func(name string) string { return filepath.Join(w.dirs[0], name) }, func(name string) string { return filepath.Join(w.dirs[1], name) }
	w.file("f", "old")
	wantFile(t, two("f"), "old")
	written, err := os.Create(two("written"))
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	if _, err := written.WriteString(large("written")); err != nil {
		t.Fatal(err)
	}
	w.signal("mount2", syscall.SIGSTOP)
	time.Sleep(12 * time.Second) // longer than a lease
	w.file("f", "new, and longer")
	if err := os.Mkdir(one("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.signal("mount2", syscall.SIGCONT)
	wantFile(t, two("f"), "new, and longer")
	if _, err := os.Stat(two("d")); err != nil {
		t.Error(err)
	}
	if err := written.Close(); err != nil {
		t.Errorf("close of what was written before: %v", err)
	}
	wantFile(t, one("written"), large("written"))
}
