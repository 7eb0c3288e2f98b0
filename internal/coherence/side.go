package coherence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A side is a directory on which operations are done: in a mount, or the one of
// a local file system that they are compared with. Its methods say what came of
// an operation in words, which must be the same on both.
type side struct {
	dir   string
	files map[int]int // descriptors of open files, by slot
}

func newSide(dir string) *side { return &side{dir: dir, files: map[int]int{}} }

// oracle returns a directory of a local file system that can do what a mount
// must.
func oracle(t testing.TB) *side {
	t.Helper()
	for _, parent := range []string{"/dev/shm", os.TempDir()} {
		dir, err := os.MkdirTemp(parent, "flexfs-model-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if able(dir) {
			return newSide(dir)
		}
	}
	t.Skip("no local file system here counts a directory's links, keeps extended attributes and exchanges names")
	return nil
}

// able tries what some file systems cannot.
func able(dir string) bool {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var st unix.Stat_t
	err := errors.Join(os.Mkdir(a, 0o755), os.Mkdir(filepath.Join(a, "c"), 0o755), os.Mkdir(b, 0o755), unix.Lstat(a, &st),
		unix.Setxattr(a, "user.x", nil, 0), unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	os.RemoveAll(a)
	os.RemoveAll(b)
	return err == nil && st.Nlink == 3
}

func (s *side) path(p string) string { return s.dir + "/" + p }

// again repeats what a signal interrupted: Go's runtime sends them.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// outcome says what an error is.
func outcome(err error) string {
	if err == nil {
		return "done"
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// An id tells one inode from all others, also from those that had its number
// before.
type id struct {
	ino  uint64
	born [2]int64
}

// A status is what stat tells of an inode.
type status struct {
	id   id
	text string // without the size and the times of a file
	size int64  // -1 for a directory
	time [2]unix.Timespec
}

func describe(st *unix.Statx_t) status {
	out := status{
		id:   id{st.Ino, [2]int64{st.Btime.Sec, int64(st.Btime.Nsec)}},
		text: fmt.Sprintf("mode %o nlink %d owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid),
		size: int64(st.Size),
		time: [2]unix.Timespec{{Sec: st.Mtime.Sec, Nsec: int64(st.Mtime.Nsec)}, {Sec: st.Ctime.Sec, Nsec: int64(st.Ctime.Nsec)}},
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		out.size = -1
	}
	return out
}

func (s *side) stat(p string) (status, error) {
	var st unix.Statx_t
	err := again(func() error {
		return unix.Statx(unix.AT_FDCWD, s.path(p), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_ALL, &st)
	})
	return describe(&st), err
}

func (s *side) fstat(slot int) (status, error) {
	var st unix.Statx_t
	err := again(func() error { return unix.Statx(s.files[slot], "", unix.AT_EMPTY_PATH, unix.STATX_ALL, &st) })
	return describe(&st), err
}

// list tells the names in a directory and their types.
func (s *side) list(p string) string {
	es, err := os.ReadDir(s.path(p))
	if err != nil {
		return outcome(err)
	}
	var out []string
	for _, e := range es {
		out = append(out, fmt.Sprintf("%s %v", e.Name(), e.Type()))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// contents tells all bytes of a file.
func (s *side) contents(p string) string {
	fd, err := open(s.path(p), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(fd)
	return readAt(fd, 0, 1<<20)
}

func open(name string, flags int, mode uint32) (fd int, err error) {
	err = again(func() error {
		fd, err = unix.Open(name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// readAt tells what is read from an open file, in short.
func readAt(fd int, off int64, n int) string {
	buf := make([]byte, n)
	got := 0
	for got < n {
		var k int
		err := again(func() (err error) { k, err = unix.Pread(fd, buf[got:], off+int64(got)); return err })
		if err != nil {
			return outcome(err)
		}
		if k == 0 {
			break
		}
		got += k
	}
	return summary(buf[:got])
}

// summary describes bytes so that different ones differ, and the first and the
// last of each run can be seen.
func summary(b []byte) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d bytes:", len(b))
	for i := 0; i < len(b); {
		j := i
		for j < len(b) && b[j] == b[i] {
			j++
		}
		fmt.Fprintf(&out, " %d×%d", j-i, b[i])
		i = j
	}
	return out.String()
}

// open opens a file in a slot.
func (s *side) open(slot int, p string, flags int, mode uint32) string {
	fd, err := open(s.path(p), flags, mode)
	if err == nil {
		s.files[slot] = fd
	}
	return outcome(err)
}

func (s *side) close(slot int) string {
	fd := s.files[slot]
	delete(s.files, slot)
	return outcome(unix.Close(fd))
}

func (s *side) closeAll() {
	for _, fd := range s.files {
		unix.Close(fd)
	}
	clear(s.files)
}

// write writes n times b.
func (s *side) write(slot int, b byte, off int64, n int) string {
	buf := make([]byte, n)
	for i := range buf {
		buf[i] = b
	}
	done := 0
	for done < n {
		var k int
		err := again(func() (err error) {
			if off < 0 {
				k, err = unix.Write(s.files[slot], buf[done:])
			} else {
				k, err = unix.Pwrite(s.files[slot], buf[done:], off+int64(done))
			}
			return err
		})
		if err != nil {
			return outcome(err)
		}
		done += k
	}
	return "done"
}

func (s *side) getxattr(p, name string) string {
	buf := make([]byte, 1024)
	var n int
	err := again(func() (err error) { n, err = unix.Lgetxattr(s.path(p), name, buf); return err })
	if err != nil {
		return outcome(err)
	}
	return string(buf[:n])
}

func (s *side) listxattr(p string) string {
	buf := make([]byte, 4096)
	var n int
	err := again(func() (err error) { n, err = unix.Llistxattr(s.path(p), buf); return err })
	if err != nil {
		return outcome(err)
	}
	var names []string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if strings.HasPrefix(name, "user.") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}
