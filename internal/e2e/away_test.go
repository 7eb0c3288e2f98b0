package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// longerThanALease is how long a server is away whose absence must end no session.
const longerThanALease = 12 * time.Second

// The metadata service is away for longer than a lease. When it is back calls that
// waited succeed, what was written is stored, a file without a name is there, and a
// lock was held all the time.
func TestNothingIsLostWhileTheMetadataServiceIsAwayForLongerThanALease(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1, mounts: 2})
	t.Setenv(awayVar, w.dir)
	said := marks(w.dir)
	for _, dir := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(w.mount, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	start := func(name, says string) *user {
		t.Helper()
		u := use(t, os.Args[0], "-test.run=^"+name+"$", "-test.v", "-test.timeout=5m")
		t.Cleanup(func() { u.cmd.Process.Kill() })
		u.says(said, says)
		return u
	}
	program := start("TestAUserOfAServiceThatIsAway", "it has the lock")
	waiter := start("TestAWaiterWhileTheServiceIsAway", "it waits for the lock")
	waiter.waits()
	said.put(t, "write")
	program.says(said, "it has written")

	w.kill("admin")
	began := time.Now()
	said.put(t, "it is away")
	time.Sleep(longerThanALease)
	for _, call := range callsThatWait {
		if said.has(call + " is done") {
			t.Errorf("%s does not wait for the service", call)
		}
	}
	killed := use(t, "mkdir", filepath.Join(w.mount, "2", "d"))
	killed.waits()
	killed.dies(syscall.SIGKILL)
	w.again("admin")
	t.Logf("the service was away for %v", time.Since(began))
	program.says(said, "all is done")
	t.Logf("all that waited was done after %v", time.Since(began))

	wantFile(t, filepath.Join(w.dirs[1], "written"), large("before")+large("dirty")+large("meanwhile"))
	wantFile(t, filepath.Join(w.dirs[1], "new"), large("new"))
	for _, dir := range w.dirs {
		if err := tryLock(filepath.Join(dir, "locked")); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("at %s others may lock what is locked: %v, want EAGAIN", dir, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "1", "d")); err != nil {
			t.Errorf("the folder of a mkdir that waited: %v", err)
		}
	}
	waiter.waits()
	said.put(t, "end")
	for _, u := range []*user{program, waiter} {
		if err := u.ends(); err != nil {
			t.Errorf("%v\n%s", err, u.out.Bytes())
		}
	}
}

// awayVar names the folder of a world to those that use it while a server is away.
const awayVar = "FLEXFS_AWAY_WORLD"

// callsThatWait are those of [TestAUserOfAServiceThatIsAway].
var callsThatWait = []string{"fsync", "fsync of a file without a name", "close", "mkdir", "stat"}

// TestAUserOfAServiceThatIsAway is a process of its own, as [TestWorkersOfASoak] is.
func TestAUserOfAServiceThatIsAway(t *testing.T) {
	dir, said := os.Getenv(awayVar), marks(os.Getenv(awayVar))
	if dir == "" {
		t.Skip("only as a child of a test in which the service is away")
	}
	path := func(name string) string { return filepath.Join(dir, "mnt", name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(name string) *os.File {
		t.Helper()
		f, err := os.Create(path(name))
		must(err)
		return f
	}
	write := func(f *os.File, text string) {
		t.Helper()
		_, err := f.WriteString(large(text))
		must(err)
	}
	written, nameless, locked := create("written"), create("nameless"), create("locked")
	write(written, "before")
	write(nameless, "nameless")
	for _, f := range []*os.File{written, nameless, locked} {
		must(f.Sync())
	}
	must(os.Remove(nameless.Name()))
	must(setLock(locked, syscall.F_SETLK))
	said.put(t, "it has the lock")
	said.await("write")
	created := create("new")
	write(created, "new")
	write(written, "dirty")
	write(nameless, "dirty")
	said.put(t, "it has written")
	said.await("it is away")
	write(written, "meanwhile")

	calls := []func() error{ // in the order of callsThatWait
		written.Sync,
		nameless.Sync,
		created.Close,
		func() error { return os.Mkdir(path("1/d"), 0o755) },
		func() error { _, err := os.Stat(path("2")); return err },
	}
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			if i == 4 {
				time.Sleep(longerThanALease - time.Second) // until then it is known
			}
			if err := call(); err != nil {
				t.Errorf("%s: %v", callsThatWait[i], err)
			}
			said.put(t, callsThatWait[i]+" is done")
		})
	}
	wg.Wait()
	want := large("nameless") + large("dirty")
	got := make([]byte, len(want)+1)
	if n, _ := nameless.ReadAt(got, 0); string(got[:n]) != want {
		t.Errorf("the file without a name has %d bytes, want %d, and those", n, len(want))
	}
	write(nameless, "after")
	if err := nameless.Sync(); err != nil {
		t.Errorf("what is written to a file without a name afterwards: %v", err)
	}
	said.put(t, "all is done")
	said.await("end")
}

// TestAWaiterWhileTheServiceIsAway is a process of its own, too, on the other mount.
func TestAWaiterWhileTheServiceIsAway(t *testing.T) {
	dir, said := os.Getenv(awayVar), marks(os.Getenv(awayVar))
	if dir == "" {
		t.Skip("only as a child of a test in which the service is away")
	}
	f, err := os.OpenFile(filepath.Join(dir, "mnt2", "locked"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	said.put(t, "it waits for the lock")
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = setLock(f, syscall.F_SETLKW)
	}
	if err != nil {
		t.Error(err)
	}
	if !said.has("end") {
		t.Error("it has the lock while another has it")
	}
}

func setLock(f *os.File, how int) error {
	return syscall.FcntlFlock(f.Fd(), how, &syscall.Flock_t{Type: syscall.F_WRLCK})
}

// tryLock has the lock of a file for a moment, if nobody else has it.
func tryLock(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return setLock(f, syscall.F_SETLK)
}

// marks is a folder by which processes tell each other how far they are.
type marks string

func (m marks) path(what string) string { return filepath.Join(string(m), "said "+what) }

func (m marks) put(t *testing.T, what string) {
	t.Helper()
	if err := os.WriteFile(m.path(what), nil, 0o600); err != nil {
		t.Error(err)
	}
}

func (m marks) has(what string) bool {
	_, err := os.Stat(m.path(what))
	return err == nil
}

func (m marks) await(what string) {
	for !m.has(what) {
		time.Sleep(10 * time.Millisecond)
	}
}

// says waits for the program to say something.
func (u *user) says(m marks, what string) {
	u.t.Helper()
	for deadline := time.Now().Add(patience); !m.has(what); time.Sleep(10 * time.Millisecond) {
		if u.gone() {
			u.t.Fatalf("%v ended before it said that %s: %v\n%s", u.cmd.Args, what, u.err, u.out.Bytes())
		}
		if time.Now().After(deadline) {
			u.t.Fatalf("%v does not say that %s", u.cmd.Args, what)
		}
	}
}
