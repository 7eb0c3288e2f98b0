package coherence

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"

	"flexfs/internal/soak"
)

// Operations on a few names in two directories, recorded with when they began
// and ended. Names 0 to 2 are made, renamed and removed; 3 and 4 are links.
const (
	dirs   = 2
	names  = 5
	places = dirs * names
)

// A place is a name in one of the directories.
type place int

func (p place) String() string { return fmt.Sprintf("d%d/%c", p/names, 'a'+p%names) }

// somewhere returns a place whose name is one of from..to.
func somewhere(r *rand.Rand, from, to int) place {
	return place(r.IntN(dirs)*names + from + r.IntN(to-from))
}

// An entry is what a name stands for: nothing, a directory, or the file of that
// number.
type entry uint64

const directory = entry(1<<64 - 1)

// A state is what the names stand for, and what they stood for last.
type state struct {
	now, was [places]entry
}

// put makes a name stand for something else.
func (s *state) put(at place, e entry) {
	if s.now[at] != e && s.now[at] != 0 {
		s.was[at] = s.now[at]
	}
	s.now[at] = e
}

type input struct {
	op     string
	at, to place
	ino    entry
	flags  uint
}

type output struct {
	err  unix.Errno
	ino  entry
	text string
}

// model says which outcomes an operation may have in a state. Operations on two
// names find each of them on its own before they come to the service, so their
// failures depend on one name only.
var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(s, in, out any) []any {
		var all []any
		if ok, next := step(s.(state), in.(input), out.(output)); ok {
			all = append(all, next)
		}
		if foundTwice(s.(state), in.(input), out.(output)) {
			all = append(all, s)
		}
		return all
	},
	Equal: func(a, b any) bool { return a.(state) == b.(state) },
	DescribeOperation: func(in, out any) string {
		i, o := in.(input), out.(output)
		return fmt.Sprintf("%s %v %v ino %d flags %d: %s ino %d %s", i.op, i.at, i.to, i.ino, i.flags, outcome(errOf(o.err)), o.ino, o.text)
	},
}).ToModel()

// foundTwice reports whether a rename may have found one file by both names, as
// another mount moved it from the one to the other meanwhile: then the kernel
// does nothing and says that it is done.
func foundTwice(s state, in input, out output) bool {
	to := s.now[in.to]
	return in.op == "rename" && out.err == 0 && to != 0 && (to == s.now[in.at] || to == s.was[in.at])
}

func errOf(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func step(s state, in input, out output) (bool, state) {
	is := s.now[in.at]
	if out.err == unix.ESTALE { // a directory was renamed elsewhere: the kernel did nothing
		return true, s
	}
	switch in.op {
	case "create":
		if out.err == unix.EEXIST {
			return is != 0, s
		}
		s.put(in.at, out.ino)
		return out.err == 0 && is == 0, s
	case "mkdir":
		if out.err == unix.EEXIST {
			return is != 0, s
		}
		s.put(in.at, directory)
		return out.err == 0 && is == 0, s
	case "unlink", "rmdir":
		switch out.err {
		case unix.ENOENT:
			return is == 0, s
		case unix.EISDIR:
			return is == directory && in.op == "unlink", s
		case unix.ENOTDIR:
			return is != directory && is != 0 && in.op == "rmdir", s
		}
		s.put(in.at, 0)
		return out.err == 0 && is != 0 && (is == directory) == (in.op == "rmdir"), s
	case "link":
		switch out.err {
		case unix.EEXIST:
			return s.now[in.to] != 0, s
		case unix.ENOENT:
			// The file has no name, or so the kernel believes: for a link by
			// descriptor it does not ask how many there are, and may not have heard of
			// one that another mount made before it removed its own.
			return true, s
		}
		ok := out.err == 0 && s.now[in.to] == 0 && slices.Contains(s.now[:], in.ino)
		s.put(in.to, in.ino)
		return ok, s
	case "rename":
		return rename(s, in, out)
	case "stat":
		if out.err == unix.ENOENT {
			return is == 0, s
		}
		return out.err == 0 && is == out.ino, s
	case "nlink":
		n := 0
		for _, e := range s.now {
			if e == in.ino {
				n++
			}
		}
		return fmt.Sprint(n) == out.text, s
	case "list":
		return out.text == listing(s, in.at), s
	}
	panic(in.op)
}

func rename(s state, in input, out output) (bool, state) {
	is, to := s.now[in.at], s.now[in.to]
	switch out.err {
	case unix.ENOENT:
		return is == 0 || in.flags == unix.RENAME_EXCHANGE && to == 0, s
	case unix.EEXIST:
		return in.flags == unix.RENAME_NOREPLACE && to != 0, s
	case unix.EISDIR:
		return to == directory, s
	case unix.ENOTDIR:
		return to != 0 && to != directory, s
	case 0:
	default:
		return false, s
	}
	switch {
	case is == 0, in.flags == unix.RENAME_NOREPLACE && to != 0, in.flags == unix.RENAME_EXCHANGE && to == 0,
		in.flags == 0 && to != 0 && (is == directory) != (to == directory):
		return false, s
	case in.at == in.to:
		return true, s
	case in.flags == unix.RENAME_EXCHANGE:
		s.put(in.at, to)
		s.put(in.to, is)
	default:
		s.put(in.at, 0)
		s.put(in.to, is)
	}
	return true, s
}

// listing is what a list of the directory of a place says.
func listing(s state, at place) string {
	var out []string
	first := int(at) / names * names
	for i := first; i < first+names; i++ {
		switch s.now[i] {
		case 0:
		case directory:
			out = append(out, fmt.Sprintf("%c/", 'a'+i%names))
		default:
			out = append(out, fmt.Sprintf("%c", 'a'+i%names))
		}
	}
	return strings.Join(out, " ")
}

// A recorder does operations on one mount and notes them.
type recorder struct {
	*rand.Rand
	dir   string
	mount int
	id    int
	start time.Time
	all   *history
}

// A history is what several recorders did.
type history struct {
	mu  sync.Mutex
	ops []recorded
}

type recorded struct {
	porcupine.Operation
	mount int
}

// note does an operation.
func (r *recorder) note(in input, do func() output) output {
	op := recorded{Operation: porcupine.Operation{ClientId: r.id, Input: in, Call: int64(time.Since(r.start))}, mount: r.mount}
	out := do()
	op.Return = int64(time.Since(r.start))
	op.Output = out
	r.all.mu.Lock()
	r.all.ops = append(r.all.ops, op)
	r.all.mu.Unlock()
	return out
}

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	if err != nil && !errors.As(err, &e) {
		e = unix.EIO
	}
	return e
}

func (r *recorder) path(p place) string { return filepath.Join(r.dir, p.String()) }

// step does one random operation.
func (r *recorder) step() {
	at, to := somewhere(r.Rand, 0, 3), somewhere(r.Rand, 0, 3)
	simple := func(op string, at place, f func(string) error) {
		r.note(input{op: op, at: at}, func() output { return output{err: errnoOf(f(r.path(at)))} })
	}
	switch r.IntN(12) {
	case 0, 1:
		r.note(input{op: "create", at: at}, func() output {
			fd, err := unix.Open(r.path(at), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			if err != nil {
				return output{err: errnoOf(err)}
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			return output{err: errnoOf(err), ino: entry(st.Ino)}
		})
	case 2:
		simple("mkdir", at, func(path string) error { return unix.Mkdir(path, 0o755) })
	case 3:
		if r.IntN(2) == 0 {
			at = somewhere(r.Rand, 3, 5)
		}
		simple("unlink", at, unix.Unlink)
	case 4:
		simple("rmdir", at, unix.Rmdir)
	case 5, 6:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(4)]
		r.note(input{op: "rename", at: at, to: to, flags: flags}, func() output {
			return output{err: errnoOf(unix.Renameat2(unix.AT_FDCWD, r.path(at), unix.AT_FDCWD, r.path(to), flags))}
		})
	case 7:
		r.link(at, somewhere(r.Rand, 3, 5))
	case 8, 9, 10:
		if r.IntN(3) == 0 {
			at = somewhere(r.Rand, 3, 5)
		}
		r.stat(at)
	case 11:
		r.list(at)
	}
}

// list reads the directory of a place.
func (r *recorder) list(at place) {
	r.note(input{op: "list", at: at}, func() output {
		es, err := os.ReadDir(filepath.Dir(r.path(at)))
		var out []string
		for _, e := range es {
			name := e.Name()
			if e.IsDir() {
				name += "/"
			}
			out = append(out, name)
		}
		return output{err: errnoOf(err), text: strings.Join(out, " ")}
	})
}

// stat looks up a name, and then tells how many links the inode has that it
// found.
func (r *recorder) stat(at place) {
	var st unix.Stat_t
	in := input{op: "stat", at: at}
	call := int64(time.Since(r.start))
	out := r.note(in, func() output {
		err := unix.Lstat(r.path(at), &st)
		return output{err: errnoOf(err), ino: fileOf(&st, err)}
	})
	if out.err != 0 || out.ino == directory {
		return
	}
	n := recorded{Operation: porcupine.Operation{
		ClientId: r.id + 1000, Input: input{op: "nlink", ino: out.ino}, Output: output{text: fmt.Sprint(st.Nlink)},
		Call: call, Return: int64(time.Since(r.start)),
	}, mount: r.mount}
	r.all.mu.Lock()
	r.all.ops = append(r.all.ops, n)
	r.all.mu.Unlock()
}

func fileOf(st *unix.Stat_t, err error) entry {
	switch {
	case err != nil:
		return 0
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return directory
	}
	return entry(st.Ino)
}

// link gives the file at a place one more name. The two steps are operations of
// their own: linkat(2) does not make them one, on any file system.
func (r *recorder) link(at, to place) {
	fd := -1
	out := r.note(input{op: "stat", at: at}, func() output {
		var st unix.Stat_t
		var err error
		if fd, err = unix.Open(r.path(at), unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			err = unix.Fstat(fd, &st)
		}
		return output{err: errnoOf(err), ino: fileOf(&st, err)}
	})
	if fd < 0 {
		return
	}
	defer unix.Close(fd)
	if out.err != 0 || out.ino == directory {
		return
	}
	r.note(input{op: "link", to: to, ino: out.ino}, func() output {
		return output{err: errnoOf(unix.Linkat(fd, "", unix.AT_FDCWD, r.path(to), unix.AT_EMPTY_PATH))}
	})
}

// reads reports whether an operation may have been answered from what a mount
// knows: those that change nothing, and those that failed.
func reads(op *recorded) bool {
	switch op.Input.(input).op {
	case "stat", "nlink", "list":
		return true
	}
	return op.Output.(output).err != 0
}

// operations returns what was recorded, for the search. While a program on a
// mount changes something, others on the same mount may still see what was
// before, though it is seen elsewhere already: what they see may be as old as
// the beginning of that change.
func (h *history) operations() []porcupine.Operation {
	var out []porcupine.Operation
	for i := range h.ops {
		op := h.ops[i]
		if reads(&op) {
			for j := range h.ops {
				w := &h.ops[j]
				if w.mount == op.mount && !reads(w) && w.Call < h.ops[i].Call && h.ops[i].Call < w.Return {
					op.Call = min(op.Call, w.Call)
				}
			}
		}
		out = append(out, op.Operation)
	}
	return out
}

// record has two programs on each mount at work for a while, in directories of
// their own, during which something else may happen, and returns what they did and
// what each mount has then.
func record(t *testing.T, w *World, seed uint64, steps int, meanwhile func()) *history {
	t.Helper()
	top := fmt.Sprint("history", seed)
	for i := range dirs {
		w.must("mkdir", os.MkdirAll(w.Mounts[0].Path(top, fmt.Sprint("d", i)), 0o755))
	}
	h := &history{}
	start := time.Now()
	var wg sync.WaitGroup
	var all []*recorder
	for id := range 2 * len(w.Mounts) {
		m := id % len(w.Mounts)
		r := &recorder{Rand: rand.New(rand.NewPCG(seed, uint64(id))), dir: w.Mounts[m].Path(top), mount: m, id: id, start: start, all: h}
		all = append(all, r)
		wg.Go(func() {
			for range steps {
				r.step()
			}
		})
	}
	wg.Go(meanwhile)
	wg.Wait()
	for _, r := range all[:len(w.Mounts)] {
		for at := range place(places) {
			if at%names == 0 {
				r.list(at)
			}
			r.stat(at)
		}
	}
	return h
}

// explain fails the test if there is no order of the operations in which one
// machine might have done them. It may be that no answer is found in time.
func (h *history) explain(t *testing.T) (answered bool) {
	t.Helper()
	ops := h.operations()
	switch porcupine.CheckOperationsTimeout(model, ops, time.Minute) {
	case porcupine.Unknown:
		t.Log("no answer in time")
		return false
	case porcupine.Illegal:
		// Once more, for what it takes much memory to tell.
		_, info := porcupine.CheckOperationsVerbose(model, ops, 2*time.Minute)
		if dir := os.Getenv("FLEXFS_TEST_HISTORY"); dir != "" {
			name := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "_")+".html")
			if err := porcupine.VisualizePath(model, info, name); err != nil {
				t.Error(err)
			}
			t.Logf("it is drawn in %s", name)
		}
		t.Errorf("no order explains these %d operations; what the longest order leaves over is marked:\n%s", len(ops), unexplained(ops, info))
	}
	return true
}

// unexplained tells a history, and what of it makes no sense.
func unexplained(ops []porcupine.Operation, info porcupine.LinearizationInfo) string {
	longest := 0
	var done map[int]bool
	for _, part := range info.PartialLinearizations() {
		for _, order := range part {
			if len(order) > longest {
				longest = len(order)
				done = map[int]bool{}
				for _, i := range order {
					done[i] = true
				}
			}
		}
	}
	var out strings.Builder
	index := make([]int, len(ops))
	for i := range index {
		index[i] = i
	}
	slices.SortFunc(index, func(a, b int) int { return int(ops[a].Call - ops[b].Call) })
	for _, i := range index {
		op := ops[i]
		mark := "  "
		if !done[i] {
			mark = "? "
		}
		fmt.Fprintf(&out, "%s%9d to %9d, %4d: %s\n", mark, op.Call/1000, op.Return/1000, op.ClientId, model.DescribeOperation(op.Input, op.Output))
	}
	return out.String()
}

// What programs on three mounts do at the same time is as if it were done one
// after the other.
func TestOperationsOfThreeMountsHaveAnOrder(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := New(t, Options{Late: late})
		for seed := range uint64(7) {
			t.Run(fmt.Sprintf("late %v, seed %d", late, seed), func(t *testing.T) { record(t, w, seed, 25, func() {}).explain(t) })
		}
	}
}

// So it is though connections break and the service dies: what was acknowledged
// before is there on what is left. Histories that tell nothing are few.
func TestSoakOrder(t *testing.T) {
	s := soak.Start(t)
	worlds := []*World{New(t, Options{Lease: 3 * time.Second}), New(t, Options{Lease: 3 * time.Second, Late: true})}
	var histories, lost, unanswered int
	for n := uint64(0); !s.Over(); n++ {
		seed := s.Seed + n
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := worlds[seed%2]
			r := rand.New(rand.NewPCG(seed, 100))
			meanwhile := func() {}
			switch seed / 2 % 4 {
			case 0, 1: // all lose their connections
				w.Mounts[seed%3].Net.Cut()
				meanwhile = func() { time.Sleep(30 * time.Millisecond); w.Cut() }
			case 2:
				meanwhile = func() { time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond); w.Crash(r.IntN(101), seed) }
			}
			was := w.sessions()
			h := record(t, w, seed, 30, meanwhile)
			histories++
			if now := w.sessions(); now != was { // and with it the answers of what it had asked for, which failed with EIO
				t.Logf("a session was lost: %s, now %s", was, now)
				lost++
			} else if !h.explain(t) {
				unanswered++
			}
		})
	}
	t.Logf("%d histories: a session was lost in %d, no answer was found in time for %d", histories, lost, unanswered)
	if mute := lost + unanswered; mute >= 2 && 20*mute > histories {
		t.Errorf("%d of %d histories tell nothing", mute, histories)
	}
}
