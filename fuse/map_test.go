package fuse

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mapVar is set in a process that maps files. A page fault stops a thread, which
// must not be one that serves the mount.
const mapVar = "FLEXFS_TEST_MAP"

// TestMapChild does what it reads from its input, one command a line, and answers
// each with a line.
func TestMapChild(t *testing.T) {
	if os.Getenv(mapVar) == "" {
		t.Skip("only as a child of other tests")
	}
	debug.SetPanicOnFault(true)
	var m mapper
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println("> " + m.do(strings.Fields(in.Text())))
	}
}

// A mapper has a file open and mapped.
type mapper struct {
	f *os.File
	m []byte
}

// do does one command. A fault is answered with "fault".
func (m *mapper) do(args []string) (answer string) {
	defer func() {
		if v := recover(); v != nil {
			answer = "fault"
		}
	}()
	var off, n int
	var err error
	switch args[0] {
	case "open": // name, length of the map
		fmt.Sscan(args[2], &n)
		if m.f, err = os.OpenFile(args[1], os.O_RDWR, 0); err == nil {
			m.m, err = syscall.Mmap(int(m.f.Fd()), 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		}
	case "get": // offset
		fmt.Sscan(args[1], &off)
		return fmt.Sprint(m.m[off])
	case "set": // offset, number, byte
		var b byte
		fmt.Sscan(args[1]+" "+args[2]+" "+args[3], &off, &n, &b)
		for i := range n {
			m.m[off+i] = b
		}
	case "msync":
		err = msync(m.m)
	case "close":
		err = m.f.Close()
	case "unmap":
		err = syscall.Munmap(m.m)
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// A mapping is a process with a file mapped.
type mapping struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

func startMapping(t testing.TB, name string, n int) *mapping {
	t.Helper()
	read, in, err := os.Pipe()
	must(t, "pipe", err)
	m := &mapping{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestMapChild$"), in: in}
	m.cmd.Env = append(os.Environ(), mapVar+"=1")
	m.cmd.Stdin, m.cmd.Stderr = read, os.Stderr
	out, err := m.cmd.StdoutPipe()
	must(t, "pipe", err)
	must(t, "start", m.cmd.Start())
	read.Close()
	m.out = bufio.NewScanner(out)
	t.Cleanup(m.end)
	m.want("ok", "open", name, n)
	return m
}

// end ends the process: what it has mapped is unmapped.
func (m *mapping) end() {
	if m.in != nil {
		m.in.Close()
		m.in = nil
		m.cmd.Wait()
	}
}

// kill is end with SIGKILL.
func (m *mapping) kill() {
	m.cmd.Process.Kill()
	m.end()
}

func (m *mapping) do(args ...any) string {
	m.t.Helper()
	fmt.Fprintln(m.in, args...)
	for m.out.Scan() {
		if text, ok := strings.CutPrefix(m.out.Text(), "> "); ok {
			return text
		}
	}
	m.t.Fatalf("%v: the process has ended: %v", args, m.out.Err())
	return ""
}

func (m *mapping) want(want string, args ...any) {
	m.t.Helper()
	if got := m.do(args...); got != want {
		m.t.Errorf("%v: %s, want %s", args, got, want)
	}
}

// soon waits until what comes by itself has come.
func soon(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("%s: not within 30 s", what)
}

// mapped makes a file of 4 pages on the first of two mounts and maps it there.
func mapped(t *testing.T) (m *mapping, a, b string, data []byte) {
	_, a, b = twoMounts(t)
	a, b = filepath.Join(a, "f"), filepath.Join(b, "f")
	data = pattern(4*unit, 1)
	put(t, a, data)
	return startMapping(t, a, len(data)), a, b, data
}

func TestAMapAndReadsAndWritesOfOneMountAgree(t *testing.T) {
	m, a, _, data := mapped(t)
	f, err := os.OpenFile(a, os.O_RDWR, 0)
	must(t, "open", err)
	defer f.Close()
	direct, err := os.OpenFile(a, os.O_RDWR|syscall.O_DIRECT, 0)
	must(t, "open", err)
	defer direct.Close()
	m.want(fmt.Sprint(data[unit]), "get", unit)
	for i, g := range []*os.File{f, direct} {
		_, err = g.WriteAt([]byte{byte(77 + i)}, unit)
		must(t, "write", err)
		m.want(fmt.Sprint(77+i), "get", unit)
		m.want("ok", "set", unit+9, 2, 88+i)
		got := make([]byte, 4)
		_, err = g.ReadAt(got, unit+8)
		must(t, "read", err)
		if want := []byte{data[unit+8], byte(88 + i), byte(88 + i), data[unit+11]}; !bytes.Equal(got, want) {
			t.Errorf("reads %d, want %d", got, want)
		}
	}
}

func TestWhatIsWrittenThroughAMapReachesTheOtherMounts(t *testing.T) {
	for name, end := range map[string]func(m *mapping){
		"msync": func(m *mapping) { m.want("ok", "msync") },
		"close, then unmap": func(m *mapping) {
			m.want("ok", "close")
			m.want("ok", "set", 1, 2, 99)
			m.want("ok", "unmap")
		},
		"close while mapped":  func(m *mapping) { m.want("ok", "close") },
		"the process's end":   (*mapping).end,
		"kill -9":             (*mapping).kill,
		"msync after a close": func(m *mapping) { m.want("ok", "close"); m.want("ok", "msync") },
	} {
		t.Run(name, func(t *testing.T) {
			m, _, b, data := mapped(t)
			expect(t, "before", b, data)
			m.want("ok", "set", 2*unit-1, 2, 55)
			data[2*unit-1], data[2*unit] = 55, 55
			if name == "close, then unmap" {
				data[1], data[2] = 99, 99
			}
			end(m)
			if name == "msync" || name == "close while mapped" {
				expect(t, "at once", b, data)
			}
			soon(t, name, func() bool {
				got, err := os.ReadFile(b)
				return err == nil && bytes.Equal(got, data)
			})
		})
	}
}

func TestAMapSeesWhatOtherMountsWrite(t *testing.T) {
	m, _, b, data := mapped(t)
	m.want(fmt.Sprint(data[unit]), "get", unit)
	f, err := os.OpenFile(b, os.O_RDWR, 0)
	must(t, "open", err)
	defer f.Close()
	_, err = f.WriteAt([]byte{data[unit] + 1}, unit)
	must(t, "write", errors.Join(err, f.Sync()))
	soon(t, "a map that was open", func() bool { return m.do("get", unit) == fmt.Sprint(data[unit]+1) })
}

func TestAccessBeyondTheEndOfAMappedFileFaults(t *testing.T) {
	m, a, b, data := mapped(t)
	for i, name := range []string{a, b} { // cut here and on another mount
		m.want(fmt.Sprint(data[3*unit+5]), "get", 3*unit+5)
		must(t, "cut", os.Truncate(name, unit+10))
		soon(t, "a fault", func() bool { return m.do("get", 3*unit+5) == "fault" })
		m.want(fmt.Sprint(data[unit+9]), "get", unit+9)
		m.want("0", "get", unit+10)
		must(t, "extend", os.Truncate(name, 4*unit))
		_, err := os.Stat(a) // a fault alone does not make the kernel ask how long the file is
		must(t, "stat", err)
		soon(t, "zeros", func() bool { return m.do("get", 3*unit+5) == "0" })
		if i == 0 {
			put(t, a, data)
		}
	}
}

func TestAnUnlinkedFileStaysMapped(t *testing.T) {
	m, a, b, data := mapped(t)
	must(t, "unlink", os.Remove(b))
	m.want(fmt.Sprint(data[unit]), "get", unit)
	m.want("ok", "set", unit, 10, 44)
	m.want("ok", "msync")
	m.want("ok", "close")
	m.want("44", "get", unit+9)
	m.want("ok", "set", 0, 10, 45)
	m.want("ok", "unmap")
	m.end()
	if _, err := os.Stat(a); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}

// What msync could not store it says, and so does the next fsync.
func TestALossThroughAMapIsTold(t *testing.T) {
	w := newWorldOf(t, small(testBlockSize))
	fs, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	must(t, "create", err)
	defer f.Close()
	must(t, "extend", f.Truncate(4*testBlockSize))
	m := startMapping(t, name, 4*testBlockSize)
	m.want("ok", "set", 0, 3*testBlockSize, 7)
	if got := m.do("msync"); !strings.Contains(got, "no space") {
		t.Errorf("msync: %s", got)
	}
	if err := f.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fsync of another that has it open: %v", err)
	}
	must(t, "fsync again", f.Sync())
	m.end()
	soon(t, "the end of what is written out", func() bool {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		return len(fs.dirty) == 0
	})
}
