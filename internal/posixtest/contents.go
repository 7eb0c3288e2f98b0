package posixtest

import (
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var contents = []check{
	{name: "large files read back", run: func(t *testing.T, dir string) {
		data := pattern(9<<20+123, 1)
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		_, err := f.Write(data)
		do(t, "write", err)
		got := make([]byte, len(data))
		_, err = f.ReadAt(got, 0)
		do(t, "read before close", err)
		equal(t, "before close", got, data)
		do(t, "close", f.Close())
		equal(t, "after close", []byte(read(t, join(dir, "f"))), data)
	}},
	{name: "overwrites in any order", run: func(t *testing.T, dir string) {
		const size = 3 << 20
		want := pattern(size, 2)
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		_, err := f.Write(want)
		do(t, "write", err)
		for i := range 200 {
			off := (i * 1046527) % (size - 5000)
			p := pattern(1+i*37%4900, byte(i))
			copy(want[off:], p)
			_, err := f.WriteAt(p, int64(off))
			do(t, "write", err)
			if i%50 == 0 {
				do(t, "fsync", f.Sync())
			}
		}
		do(t, "close", f.Close())
		equal(t, "contents", []byte(read(t, join(dir, "f"))), want)
	}},
	{name: "sparse files have zeros in their holes", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		const far = 1 << 33
		_, err := f.WriteAt([]byte("end"), far)
		do(t, "write", err)
		_, err = f.WriteAt([]byte("start"), 0)
		do(t, "write", err)
		do(t, "fsync", f.Sync())
		st := stat(t, join(dir, "f"))
		if st.Size != far+3 || st.Blocks*512 > 64<<20 {
			t.Errorf("size %d with %d bytes, want %d with few", st.Size, st.Blocks*512, far+3)
		}
		buf := make([]byte, 100)
		_, err = f.ReadAt(buf, far/2)
		do(t, "read", err)
		equal(t, "hole", buf, make([]byte, 100))
		n, err := f.ReadAt(buf, far)
		if n != 3 || err != io.EOF || string(buf[:3]) != "end" {
			t.Errorf("at the end %d bytes, %v, %q", n, err, buf[:n])
		}
	}},
	{name: "holes can be found", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		do(t, "truncate", f.Truncate(64<<20))
		_, err := f.WriteAt([]byte("x"), 32<<20)
		do(t, "write", err)
		at, err := f.Seek(0, unix.SEEK_DATA)
		do(t, "SEEK_DATA", err)
		if at > 32<<20 {
			t.Errorf("the first data is at %d, and should not be after %d", at, 32<<20)
		}
		at, err = f.Seek(32<<20, unix.SEEK_HOLE)
		do(t, "SEEK_HOLE", err)
		if at <= 32<<20 || at > 64<<20 {
			t.Errorf("the hole after the data is at %d", at)
		}
		_, err = f.Seek(64<<20, unix.SEEK_DATA)
		refused(t, "SEEK_DATA at the end", err, syscall.ENXIO)
	}},
	{name: "truncation cuts and extends with zeros", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		for _, size := range []int{100, 70_000, 5 << 20} {
			data := pattern(size, 3)
			write(t, name, string(data))
			do(t, "truncate", os.Truncate(name, int64(size/3)))
			do(t, "truncate", os.Truncate(name, int64(size)))
			want := append(append([]byte(nil), data[:size/3]...), make([]byte, size-size/3)...)
			equal(t, "cut and extended", []byte(read(t, name)), want)
		}
		f := open(t, name, os.O_RDWR)
		_, err := f.WriteAt(pattern(1000, 4), 0)
		do(t, "write", err)
		do(t, "ftruncate while dirty", f.Truncate(500))
		_, err = f.WriteAt([]byte("Z"), 999)
		do(t, "write", err)
		do(t, "close", f.Close())
		want := append(pattern(500, 4), make([]byte, 500)...)
		want[999] = 'Z'
		equal(t, "cut while dirty", []byte(read(t, name)), want)
		open(t, name, os.O_WRONLY|os.O_TRUNC)
		same(t, "after O_TRUNC", read(t, name), "")
	}},
	{name: "an unlinked file that is open keeps its contents", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		_, err := f.Write(pattern(2<<20, 5))
		do(t, "write", err)
		do(t, "unlink", os.Remove(join(dir, "f")))
		_, err = f.WriteAt([]byte("after"), 100)
		do(t, "write after unlink", err)
		do(t, "fsync after unlink", f.Sync())
		buf := make([]byte, 2<<20)
		_, err = f.ReadAt(buf, 0)
		do(t, "read after unlink", err)
		want := pattern(2<<20, 5)
		copy(want[100:], "after")
		equal(t, "contents", buf, want)
		st, err := f.Stat()
		do(t, "fstat", err)
		if n := st.Sys().(*syscall.Stat_t).Nlink; n != 0 || st.Size() != 2<<20 {
			t.Errorf("%d links and %d bytes, want 0 and %d", n, st.Size(), 2<<20)
		}
		do(t, "close", f.Close())
		same(t, "listing", list(t, dir), "")
	}},
	{name: "O_APPEND writes at the end", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		a := open(t, name, os.O_CREATE|os.O_WRONLY|os.O_APPEND)
		b := open(t, name, os.O_WRONLY|os.O_APPEND)
		for range 3 {
			_, err := a.WriteString("a")
			do(t, "write", err)
			_, err = b.WriteString("bb")
			do(t, "write", err)
		}
		do(t, "close", a.Close())
		do(t, "close", b.Close())
		same(t, "contents", read(t, name), "abbabbabb")
	}},
	{name: "mmap reads and writes", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, string(pattern(300_000, 6)))
		f := open(t, name, os.O_RDWR)
		m, err := syscall.Mmap(int(f.Fd()), 0, 300_000, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		do(t, "mmap", err)
		want := pattern(300_000, 6)
		equal(t, "mapped", m, want)
		copy(m[200_000:], "through the map")
		copy(want[200_000:], "through the map")
		do(t, "msync", unix.Msync(m, unix.MS_SYNC))
		equal(t, "read after msync", []byte(read(t, name)), want)
		copy(m[:], "once more")
		copy(want[:], "once more")
		do(t, "munmap", syscall.Munmap(m))
		do(t, "close", f.Close())
		equal(t, "read after close", []byte(read(t, name)), want)
	}},
	{name: "a write is seen through a map", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		_, err := f.Write(make([]byte, 8192))
		do(t, "write", err)
		m, err := syscall.Mmap(int(f.Fd()), 0, 8192, syscall.PROT_READ, syscall.MAP_SHARED)
		do(t, "mmap", err)
		defer syscall.Munmap(m)
		same(t, "before", string(m[5000:5001]), "\x00")
		_, err = f.WriteAt([]byte("X"), 5000)
		do(t, "write", err)
		same(t, "after", string(m[5000:5001]), "X")
	}},
	{name: "fallocate extends and punches", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		size := 6<<20 + 100
		want := pattern(size, 7)
		write(t, name, string(want))
		f := open(t, name, os.O_RDWR)
		fd := int(f.Fd())
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1000, 5<<20); err == syscall.EOPNOTSUPP {
			t.Skip("this file system cannot punch")
		} else {
			do(t, "punch", err)
		}
		clear(want[1000 : 1000+5<<20])
		equal(t, "punched", []byte(read(t, name)), want)
		do(t, "keep size", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 20<<20))
		if st := stat(t, name); st.Size != int64(size) {
			t.Errorf("size %d after keep size, want %d", st.Size, size)
		}
		do(t, "allocate", unix.Fallocate(fd, 0, 0, int64(size+50)))
		want = append(want, make([]byte, 50)...)
		equal(t, "extended", []byte(read(t, name)), want)
	}},
	{name: "fallocate zeroes", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		size := 6<<20 + 100
		want := pattern(size, 7)
		write(t, name, string(want))
		fd := int(open(t, name, os.O_RDWR).Fd())
		if err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 1000, 5<<20); err == syscall.EOPNOTSUPP {
			t.Skip("this file system cannot zero a range")
		} else {
			do(t, "zero", err)
		}
		clear(want[1000 : 1000+5<<20])
		equal(t, "zeroed", []byte(read(t, name)), want)
		do(t, "zero beyond the end", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, int64(size-10), 100))
		clear(want[size-10:])
		want = append(want, make([]byte, 90)...)
		equal(t, "zeroed and extended", []byte(read(t, name)), want)
	}},
	{name: "copy_file_range copies", run: func(t *testing.T, dir string) {
		data := pattern(3<<20, 8)
		write(t, join(dir, "a"), string(data))
		a, b := open(t, join(dir, "a"), os.O_RDONLY), open(t, join(dir, "b"), os.O_CREATE|os.O_RDWR)
		from, to := int64(1000), int64(10)
		for left := 2 << 20; left > 0; {
			n, err := unix.CopyFileRange(int(a.Fd()), &from, int(b.Fd()), &to, left, 0)
			do(t, "copy_file_range", err)
			if n == 0 {
				t.Fatal("it ended early")
			}
			left -= n
		}
		do(t, "close", b.Close())
		equal(t, "copy", []byte(read(t, join(dir, "b"))), append(make([]byte, 10), data[1000:1000+2<<20]...))
	}},
	{name: "O_DIRECT", run: func(t *testing.T, dir string) {
		fd, err := syscall.Open(join(dir, "f"), syscall.O_CREAT|syscall.O_RDWR|syscall.O_DIRECT, 0o644)
		if err == syscall.EINVAL {
			t.Skip("this file system has no O_DIRECT")
		}
		do(t, "open", err)
		defer syscall.Close(fd)
		m, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		do(t, "mmap", err)
		defer syscall.Munmap(m)
		copy(m, pattern(1<<20, 9))
		_, err = syscall.Pwrite(fd, m, 0)
		do(t, "write", err)
		clear(m)
		n, err := syscall.Pread(fd, m, 0)
		do(t, "read", err)
		equal(t, "contents", m[:n], pattern(1<<20, 9))
	}},
	{name: "access modes of descriptors", run: func(t *testing.T, dir string) {
		write(t, join(dir, "f"), "x")
		_, err := open(t, join(dir, "f"), os.O_RDONLY).Write([]byte("y"))
		refused(t, "write to a file open for reading", err, syscall.EBADF)
		_, err = open(t, join(dir, "f"), os.O_WRONLY).Read(make([]byte, 1))
		refused(t, "read of a file open for writing", err, syscall.EBADF)
	}},
}
