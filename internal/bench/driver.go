package main

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/internal/measure"
)

const (
	smallFile   = 4 << 10 // bytes
	filesPerDir = 250
)

// A smallJob is one kind of operation, done to many small files by threads at
// once. Each thread has folders of its own.
type smallJob struct {
	Op      string // one of smallOps
	Dir     string
	Files   int
	Threads int
	Limit   time.Duration // it stops then, with less done
	Have    []int         // files that each thread has; nil: all of its share
}

// A smallDone is what came of a job.
type smallDone struct {
	Have     []int // what each thread did
	Ops      int
	Took     time.Duration
	P50, P99 time.Duration
}

// smallOps does an operation with a path. They use system calls directly: what
// Go's own files do for a program would be measured too.
var smallOps = map[string]func(*worker, string) error{
	"create": (*worker).create,
	"stat":   (*worker).stat,
	"read":   (*worker).read,
	"delete": (*worker).remove,
}

// A worker is a thread of the driver.
type worker struct {
	job  *smallJob
	id   int
	buf  []byte
	took []time.Duration
	ops  int
	err  error
}

// do does the job.
func (j *smallJob) do() (*smallDone, error) {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(j.Threads + 1) // a thread that waits in the kernel keeps its place
	all := make([]*worker, j.Threads)
	for i := range all {
		all[i] = &worker{job: j, id: i, buf: make([]byte, 64<<10)}
	}
	if j.Op == "create" {
		if err := j.makeDirs(); err != nil {
			return nil, err
		}
	}
	var wg sync.WaitGroup
	start := time.Now()
	for _, w := range all {
		wg.Go(func() {
			runtime.LockOSThread()
			w.err = w.work(start.Add(j.Limit))
		})
	}
	wg.Wait()
	done := &smallDone{Took: time.Since(start)}
	var took []time.Duration
	var err error
	for _, w := range all {
		took = append(took, w.took...)
		done.Have = append(done.Have, w.ops)
		done.Ops += w.ops
		err = errors.Join(err, w.err)
	}
	slices.Sort(took)
	done.P50, done.P99 = measure.Quantile(took, 0.5), measure.Quantile(took, 0.99)
	return done, err
}

// dirs is how many folders there are.
func (j *smallJob) dirs() int { return (j.Files + filesPerDir - 1) / filesPerDir }

func (j *smallJob) folder(i int) string { return fmt.Sprintf("%s/d%03d", j.Dir, i) }

func (j *smallJob) makeDirs() error {
	for i := range j.dirs() {
		if err := unix.Mkdir(j.folder(i), 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", j.folder(i), err)
		}
	}
	return nil
}

// work does the worker's share until the deadline.
func (w *worker) work(deadline time.Time) error {
	have := w.job.Files
	if w.job.Have != nil {
		have = w.job.Have[w.id]
	}
	for i := w.id; i < w.job.dirs(); i += w.job.Threads {
		n := min(filesPerDir, w.job.Files-i*filesPerDir, have-w.ops)
		if n <= 0 {
			return nil
		}
		if err := w.folder(w.job.folder(i), n, deadline); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
	return nil
}

// folder does the operation to the first n files of a folder.
func (w *worker) folder(dir string, n int, deadline time.Time) error {
	if w.job.Op == "list" {
		start := time.Now()
		seen, err := w.list(dir)
		w.took, w.ops = append(w.took, time.Since(start)), w.ops+seen
		if err == nil && seen != n {
			err = fmt.Errorf("%s has %d files, not %d", dir, seen, n)
		}
		return err
	}
	do := smallOps[w.job.Op]
	for i := range n {
		path := fmt.Sprintf("%s/f%03d", dir, i)
		start := time.Now()
		if start.After(deadline) {
			return nil
		}
		if err := do(w, path); err != nil {
			return fmt.Errorf("%s %s: %w", w.job.Op, path, err)
		}
		w.took = append(w.took, time.Since(start))
		w.ops++
	}
	return nil
}

func (w *worker) create(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	for i := range 64 { // no two files are the same
		w.buf[i*64] = byte(w.ops>>(i&3*8)) ^ byte(w.id<<4) ^ byte(i*37)
	}
	n, err := unix.Write(fd, w.buf[:smallFile])
	if err == nil && n != smallFile {
		err = fmt.Errorf("only %d bytes were written", n)
	}
	return errors.Join(err, unix.Close(fd))
}

func (w *worker) stat(path string) error {
	var s unix.Stat_t
	err := unix.Lstat(path, &s)
	if err == nil && s.Size != smallFile {
		err = fmt.Errorf("its size is %d", s.Size)
	}
	return err
}

func (w *worker) read(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	n, err := unix.Read(fd, w.buf)
	if err == nil && n != smallFile {
		err = fmt.Errorf("only %d bytes were read", n)
	}
	return errors.Join(err, unix.Close(fd))
}

func (w *worker) remove(path string) error { return unix.Unlink(path) }

// list reads a folder and stats each entry, as ls -l does. It returns how many
// there were.
func (w *worker) list(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	seen := 0
	var names []string
	for {
		n, err := unix.ReadDirent(fd, w.buf)
		if err != nil || n == 0 {
			return seen, err
		}
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names[:0])
		for _, name := range names {
			var s unix.Stat_t
			if err := unix.Fstatat(fd, name, &s, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return seen, err
			}
			seen++
		}
	}
}
