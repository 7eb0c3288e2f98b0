package coherence

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flexfs/internal/faultnet"
	"flexfs/internal/soak"
)

// lockerVar makes this program one that does what it reads, see locker.
const lockerVar = "FLEXFS_LOCKER"

func TestMain(m *testing.M) {
	if name := os.Getenv(lockerVar); name != "" {
		locker(name)
		return
	}
	os.Exit(m.Run())
}

// locker locks bytes of a file as it is told: "lock 3", "wait 3", "unlock 3",
// "who 3", "open" (and close it again); or all of it: "flock", "unflock". "once 3"
// waits until there is a signal, as "flock" does. "thread" tells whom to send it to.
func locker(name string) {
	runtime.LockOSThread()
	interruptible(unix.SIGALRM)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var verb string
		l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
		fmt.Sscan(lines.Text(), &verb, &l.Start)
		switch verb {
		case "lock":
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l)
		case "wait":
			err = again(func() error { return unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &l) })
		case "once":
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &l)
		case "flock":
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		case "unflock":
			err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		case "thread":
			err = fmt.Errorf("%d", unix.Gettid())
		case "unlock":
			l.Type = unix.F_UNLCK
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l)
		case "who":
			if err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err == nil {
				err = fmt.Errorf("type %d start %d len %d", l.Type, l.Start, l.Len)
			}
		case "open":
			var g *os.File
			if g, err = os.Open(name); err == nil {
				err = g.Close()
			}
		}
		fmt.Println(outcome(err))
	}
}

// interruptible has a signal that is caught end the call of the thread that it is
// sent to, which Go does not want.
func interruptible(sig unix.Signal) {
	signal.Notify(make(chan os.Signal, 1), sig)
	const restart = 0x10000000
	var action struct{ handler, flags, restorer, mask uintptr }
	for _, args := range [][2]uintptr{{0, uintptr(unsafe.Pointer(&action))}, {uintptr(unsafe.Pointer(&action)), 0}} {
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), args[0], args[1], unsafe.Sizeof(action.mask), 0, 0); e != 0 {
			panic(e)
		}
		action.flags &^= restart
	}
}

// A process is a locker.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

func startLocker(t *testing.T, name string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), lockerVar+"="+name)
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.in = in, w
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.in.Close()
	p.cmd.Wait()
}

func (p *process) tell(what string) { fmt.Fprintln(p.in, what) }

func (p *process) hear() string {
	p.out.Scan()
	return p.out.Text()
}

// says tells the process to do something, and fails the test if another thing
// comes of it than want.
func (p *process) says(want, what string) {
	p.t.Helper()
	p.tell(what)
	if got := p.hear(); got != want {
		p.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// waits fails the test unless the process says nothing until f was called, and
// then that it is done.
func (p *process) waits(f func()) {
	p.t.Helper()
	heard := make(chan string, 1)
	go func() { heard <- p.hear() }()
	select {
	case got := <-heard:
		p.t.Fatalf("it did not wait: %s", got)
	case <-time.After(100 * time.Millisecond):
	}
	f()
	select {
	case got := <-heard:
		if got != "done" {
			p.t.Errorf("the one that waited: %s", got)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("it waits for ever")
	}
}

func TestLocksOfProcessesHoldAcrossMounts(t *testing.T) {
	w := New(t, Options{Lease: 30 * time.Second})
	w.must("create", os.WriteFile(w.Mounts[0].Path("f"), make([]byte, 10), 0o644))
	a, b := startLocker(t, w.Mounts[0].Path("f")), startLocker(t, w.Mounts[1].Path("f"))
	a.says("done", "lock 1")
	b.says("EAGAIN", "lock 1")
	b.says(fmt.Sprintf("type %d start 1 len 1", unix.F_WRLCK), "who 1")
	b.says("done", "lock 2")
	b.tell("wait 1")
	b.waits(func() {
		before := w.Mounts[1].Net.Bytes()
		time.Sleep(300 * time.Millisecond)
		if n := w.Mounts[1].Net.Bytes() - before; n != 0 {
			t.Errorf("%d bytes went over the line of the one that only waits", n)
		}
		a.says("done", "unlock 1")
	})
	a.tell("wait 2")
	time.Sleep(100 * time.Millisecond)
	b.says("done", "unlock 1")
	a.waits(func() { b.says("done", "unlock 2") })

	a.says("done", "lock 1")
	b.says("done", "lock 3")
	a.tell("wait 3")
	time.Sleep(100 * time.Millisecond)
	b.says("EDEADLK", "wait 1")
	a.waits(func() { b.says("done", "unlock 3") })

	b.says("EAGAIN", "lock 3")
	a.says("done", "open") // and a close of any descriptor gives them up
	b.says("done", "lock 3")

	b.tell("wait 9")
	b.hear()
	a.tell("wait 9")
	time.Sleep(100 * time.Millisecond)
	a.kill() // it waits, and dies
	b.says("done", "unlock 9")
	c := startLocker(t, w.Mounts[2].Path("f"))
	c.says("done", "lock 9")
	b.kill()
	c.tell("wait 3")
	if got := c.hear(); got != "done" {
		t.Errorf("the lock of a process that was killed: %s", got)
	}
}

// A signal that is caught ends a wait, and what was waited for is not taken later.
func TestASignalEndsTheWaitForALock(t *testing.T) {
	w := New(t, Options{Lease: 30 * time.Second})
	w.must("create", os.WriteFile(w.Mounts[0].Path("f"), make([]byte, 10), 0o644))
	holder, next := startLocker(t, w.Mounts[0].Path("f")), startLocker(t, w.Mounts[2].Path("f"))
	for mount := range 2 {
		waiter := startLocker(t, w.Mounts[mount].Path("f"))
		waiter.tell("thread")
		thread, err := strconv.Atoi(waiter.hear())
		w.must("thread", err)
		for _, lock := range []struct{ take, wait, give string }{{"lock 1", "once 1", "unlock 1"}, {"flock", "flock", "unflock"}} {
			holder.says("done", lock.take)
			waiter.tell(lock.wait)
			heard := make(chan string, 1)
			go func() { heard <- waiter.hear() }()
			select {
			case got := <-heard:
				t.Fatalf("%s on mount %d did not wait: %s", lock.wait, mount, got)
			case <-time.After(200 * time.Millisecond):
			}
			w.must("signal", unix.Tgkill(waiter.cmd.Process.Pid, thread, unix.SIGALRM))
			select {
			case got := <-heard:
				if got != "EINTR" {
					t.Errorf("%s on mount %d, when there was a signal: %s, want EINTR", lock.wait, mount, got)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s on mount %d goes on waiting after a signal", lock.wait, mount)
			}
			holder.says("done", lock.give)
			time.Sleep(100 * time.Millisecond)
			next.says("done", lock.take)
			next.says("done", lock.give)
		}
	}
}

// An opener is a file opened on a mount, and on the local file system.
type opener struct{ got, want int }

// lockers opens a file several times on each mount, and on a local file system.
func lockers(t *testing.T, w *World, name string, n int) []opener {
	t.Helper()
	model := oracle(t)
	w.must("create", os.WriteFile(w.Mounts[0].Path(name), make([]byte, 100), 0o644))
	w.must("create", os.WriteFile(model.path(name), make([]byte, 100), 0o644))
	var out []opener
	for i := range n {
		got, err := open(w.Mounts[i%len(w.Mounts)].Path(name), unix.O_RDWR, 0)
		w.must("open", err)
		want, err := open(model.path(name), unix.O_RDWR, 0)
		w.must("open", err)
		out = append(out, opener{got, want})
		t.Cleanup(func() { unix.Close(got); unix.Close(want) })
	}
	return out
}

// Locks of open files on three mounts, taken, changed and given up at random, are
// as on one machine.
func TestRandomLocksOfThreeMountsAreAsOnOneMachine(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := New(t, Options{Lease: 5 * time.Second})
			randomLocks(t, w, rand.New(rand.NewPCG(seed, 5)), 300, seed%2 == 1)
		})
	}
}

func randomLocks(t *testing.T, w *World, r *rand.Rand, steps int, faults bool) {
	t.Helper()
	owners := lockers(t, w, "f", 6)
	for step := range steps {
		if faults && r.IntN(60) == 0 {
			w.Mounts[r.IntN(3)].Net.Cut()
		}
		if faults && step == steps/2 {
			w.Crash(r.IntN(101), uint64(step))
		}
		o := owners[r.IntN(len(owners))]
		if r.IntN(3) == 0 {
			how := []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[r.IntN(3)] | unix.LOCK_NB
			got, want := again(func() error { return unix.Flock(o.got, how) }), unix.Flock(o.want, how)
			if outcome(got) != outcome(want) {
				t.Fatalf("step %d: flock %d: %s, not %s", step, how, outcome(got), outcome(want))
			}
			continue
		}
		l := unix.Flock_t{Type: []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}[r.IntN(3)], Start: int64(r.IntN(20)), Len: int64(r.IntN(8))}
		what := fmt.Sprintf("step %d: type %d, %d+%d", step, l.Type, l.Start, l.Len)
		q, p := l, l
		got, want := again(func() error { return unix.FcntlFlock(uintptr(o.got), unix.F_OFD_SETLK, &q) }), unix.FcntlFlock(uintptr(o.want), unix.F_OFD_SETLK, &p)
		if outcome(got) != outcome(want) {
			t.Fatalf("%s: %s, not %s", what, outcome(got), outcome(want))
		}
		l.Type = []int16{unix.F_RDLCK, unix.F_WRLCK}[r.IntN(2)]
		q, p = l, l
		w.must(what, again(func() error { return unix.FcntlFlock(uintptr(o.got), unix.F_OFD_GETLK, &q) }))
		w.must(what, unix.FcntlFlock(uintptr(o.want), unix.F_OFD_GETLK, &p))
		if (q.Type == unix.F_UNLCK) != (p.Type == unix.F_UNLCK) {
			t.Fatalf("%s: in the way is %+v, not %+v", what, q, p)
		}
	}
}

// What a mount holds that is cut off is its own until its lease is over, and
// then others go on.
func TestAMountThatIsCutOffDelaysOthersByItsLease(t *testing.T) {
	w := New(t, Options{Lease: 2 * time.Second})
	dead, m := w.Mounts[0], w.Mounts[1]
	w.must("create", os.WriteFile(m.Path("f"), []byte("x"), 0o644))
	f, err := open(dead.Path("f"), unix.O_RDWR, 0)
	w.must("open", err)
	defer unix.Close(f)
	g, err := open(m.Path("f"), unix.O_RDWR, 0)
	w.must("open", err)
	defer unix.Close(g)
	w.must("flock", unix.Flock(f, unix.LOCK_EX))
	_, err = unix.Pwrite(f, []byte("lost"), 0)
	w.must("write", err)
	w.must("freeze", dead.Net.Set(faultnet.Line{State: faultnet.Frozen}))
	var wg sync.WaitGroup
	start := time.Now()
	for what, do := range map[string]func() error{
		"chmod": func() error { return unix.Chmod(m.Path("f"), 0o600) },
		"flock": func() error { return again(func() error { return unix.Flock(g, unix.LOCK_EX) }) },
	} {
		wg.Go(func() {
			err := do()
			if until := dead.client.LeaseUntil(); err != nil || time.Now().Before(until) {
				t.Errorf("%s: %v, %v before the end of the lease of the mount that was cut off", what, err, time.Until(until))
			}
		})
	}
	wg.Wait()
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v, and a lease is 2 s", d)
	}
	w.must("mend", dead.Net.Set(faultnet.Line{}))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err = unix.Pwrite(f, []byte("y"), 0); err == unix.EIO {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the file can be written under a lock that is lost")
		}
	}
	if err := unix.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != unix.EIO {
		t.Errorf("a lock for one whose lock was lost: %v, want EIO", err)
	}
	if got, err := os.ReadFile(m.Path("f")); string(got) != "x" || err != nil {
		t.Errorf("in the file is %q, %v", got, err)
	}
}

// Records that programs on three mounts append to one file are all there, once
// and whole, those of each in their order; also though connections break and the
// service dies.
func TestRecordsAppendedOnThreeMountsAreKeptInOrder(t *testing.T) {
	for _, faults := range []bool{false, true} {
		t.Run(fmt.Sprint("faults ", faults), func(t *testing.T) {
			w := New(t, Options{Lease: 5 * time.Second})
			appendRecords(t, w, 1, 60, faults)
		})
	}
}

func appendRecords(t *testing.T, w *World, seed uint64, records int, faults bool) {
	t.Helper()
	name := fmt.Sprint("log", seed)
	w.must("create", os.WriteFile(w.Mounts[0].Path(name), nil, 0o644))
	var wg sync.WaitGroup
	for id := range len(w.Mounts) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(id)))
			fd, err := open(w.Mounts[id].Path(name), unix.O_WRONLY|unix.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for n := range records {
				text := fmt.Sprintf("%d %d %s", id, n, strings.Repeat(string(rune('a'+id)), r.IntN(3000)))
				line := fmt.Sprintf("%08x %s\n", crc32.ChecksumIEEE([]byte(text)), text)
				if k, err := unix.Write(fd, []byte(line)); err != nil || k != len(line) {
					t.Errorf("write: %d, %v", k, err)
				}
				if r.IntN(5) == 0 {
					if err := again(func() error { return unix.Fsync(fd) }); err != nil {
						t.Error(err)
					}
				}
				if faults && r.IntN(20) == 0 {
					w.Mounts[id].Net.Cut()
				}
				if faults && id == 0 && n%40 == 20 {
					w.Crash(r.IntN(101), uint64(n))
				}
			}
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var first []byte
	for i, m := range w.Mounts {
		got, err := os.ReadFile(m.Path(name))
		w.must("read", err)
		if i == 0 {
			first = got
		} else if !bytes.Equal(got, first) {
			t.Errorf("mount %d has %d bytes that are not the %d of the first", i, len(got), len(first))
		}
	}
	next := make([]int, len(w.Mounts))
	for line := range strings.Lines(string(first)) {
		var sum uint32
		var id, n int
		text := strings.TrimSuffix(line[min(9, len(line)):], "\n")
		_, err := fmt.Sscanf(line, "%x %d %d", &sum, &id, &n)
		if err != nil || crc32.ChecksumIEEE([]byte(text)) != sum {
			t.Fatalf("a record is not whole: %.60q", line)
		}
		if n != next[id] {
			t.Fatalf("record %d of mount %d follows its %d", n, id, next[id]-1)
		}
		next[id]++
	}
	for id, n := range next {
		if n != records {
			t.Errorf("%d records of mount %d, want %d", n, id, records)
		}
	}
}

// Each of three programs on three mounts takes the lock of the next byte before it
// gives up its own, and under it adds one to a number in the file. What was written
// under a lock is read under the next, without fsync or close.
func TestWhatIsWrittenUnderALockIsReadUnderTheNext(t *testing.T) {
	w := New(t, Options{})
	const n, rounds = 3, 40
	name := "pingpong"
	w.must("create", os.WriteFile(w.Mounts[0].Path(name), make([]byte, 2*n), 0o644))
	var wg sync.WaitGroup
	for id := range n {
		wg.Go(func() {
			fd, err := open(w.Mounts[id].Path(name), unix.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			lock := func(typ int16, at int) {
				l := unix.Flock_t{Type: typ, Start: int64(at), Len: 1}
				if err := again(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &l) }); err != nil {
					t.Error(err)
				}
			}
			at := id // of n+1 locks, so that they do not wait for each other in a circle
			lock(unix.F_WRLCK, at)
			for range rounds {
				b := make([]byte, 1)
				_, err := unix.Pread(fd, b, int64(n-1))
				next := (at + 1) % (n + 1)
				lock(unix.F_WRLCK, next)
				lock(unix.F_UNLCK, at)
				at = next
				lock(unix.F_WRLCK, 100)
				_, e := unix.Pread(fd, b, 1)
				b[0]++
				_, f := unix.Pwrite(fd, b, 1)
				lock(unix.F_UNLCK, 100)
				if err := errors.Join(err, e, f); err != nil {
					t.Error(err)
				}
			}
			lock(unix.F_UNLCK, at)
		})
	}
	wg.Wait()
	for i, m := range w.Mounts {
		got, err := os.ReadFile(m.Path(name))
		if err != nil || got[1] != n*rounds {
			t.Errorf("mount %d: the number is %d, want %d (%v)", i, got[1], n*rounds, err)
		}
	}
}

func TestSoakLocks(t *testing.T) {
	s := soak.Start(t)
	w := New(t, Options{Lease: 5 * time.Second})
	for n := uint64(0); !s.Over(); n++ {
		t.Run(fmt.Sprint("seed ", s.Seed+n), func(t *testing.T) {
			randomLocks(t, w, s.Part(n), 1000, true)
			appendRecords(t, w, n, 200, true)
		})
	}
}
