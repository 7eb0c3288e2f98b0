// Package s3test runs a real S3 server for tests: versitygw, which keeps
// ordinary files in a directory. Its version is pinned in tools/go.mod.
//
// The first test on a machine builds it into the project's bin folder, which
// takes two minutes and downloads its sources. FLEXFS_VERSITYGW names a
// binary to use instead.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds the wait for a server that was started. It takes a fifth
// of a second on an idle machine.
const startTimeout = 30 * time.Second

// A Server is a running S3 server that belongs to one test.
type Server struct {
	AccessKey string
	SecretKey string

	t      testing.TB
	binary string
	dir    string // its buckets are folders here
	addr   string

	mu      sync.Mutex
	process *process // guarded by mu; nil: stopped
	buckets int      // guarded by mu
}

// Start starts a server, which the end of the test stops.
func Start(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real S3 server; not in short mode")
	}
	binary, err := Binary()
	if err != nil {
		t.Fatalf("s3test: %v", err)
	}
	s := &Server{
		AccessKey: "test-access-key",
		SecretKey: "test-secret-key-that-nobody-should-see",
		t:         t,
		binary:    binary,
		dir:       t.TempDir(),
	}
	t.Cleanup(s.Stop)
	s.start()
	return s
}

// Endpoint returns the server's URL. It stays the same over Stop and Restart.
func (s *Server) Endpoint() string { return "http://" + s.addr }

// Bucket makes a new bucket and returns its name.
func (s *Server) Bucket() string {
	s.t.Helper()
	s.mu.Lock()
	s.buckets++
	name := fmt.Sprintf("bucket-%d", s.buckets)
	s.mu.Unlock()
	if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
		s.t.Fatalf("s3test: %v", err)
	}
	return name
}

// Folder returns where the objects of a bucket are files.
func (s *Server) Folder(bucket string) string { return filepath.Join(s.dir, bucket) }

// Stop stops the server, as a power cut would. Its buckets stay.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// Restart starts the server again after Stop, at the same address.
func (s *Server) Restart() {
	s.t.Helper()
	s.start()
}

// start starts the server: the first time at a port of its choice.
func (s *Server) start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.t.Fatal("s3test: the server is running already")
	}
	const attempts = 5 // another program may take the port before the server does
	for i := 1; ; i++ {
		addr := s.addr
		if addr == "" {
			addr = freeAddr(s.t)
		}
		p, err := startProcess(s.binary, s.dir, addr, s.AccessKey, s.SecretKey)
		if err == nil {
			s.process, s.addr = p, addr
			return
		}
		if i == attempts {
			s.t.Fatalf("s3test: %v", err)
		}
	}
}

func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("s3test: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A process is a child that a goroutine waits for.
type process struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
	ended  chan struct{} // closed when the child is gone
}

// startProcess starts the server and waits until it answers.
func startProcess(binary, dir, addr, accessKey, secretKey string) (*process, error) {
	p := &process{output: new(bytes.Buffer), ended: make(chan struct{})}
	p.cmd = exec.Command(binary, "--port", addr, "--keep-alive", "--quiet", "posix", dir)
	p.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // if the test is killed

	started := make(chan error)
	go func() {
		// The child dies with the thread that started it: keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := p.awaitAnswer(addr); err != nil {
		p.kill()
		return nil, fmt.Errorf("versitygw at %s: %w\n%s", addr, err, p.output)
	}
	return p, nil
}

// awaitAnswer returns when the server accepts connections.
func (p *process) awaitAnswer(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.ended:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-tick.C:
		}
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// Binary returns the path of the server, which it builds if need be. The working
// directory must be in the project.
func Binary() (string, error) {
	if binary := os.Getenv("FLEXFS_VERSITYGW"); binary != "" {
		return binary, nil
	}
	root, err := projectRoot()
	if err != nil {
		return "", err
	}
	version, err := pinnedVersion(filepath.Join(root, "tools", "go.mod"))
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(bin, "versitygw.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	binary := filepath.Join(bin, "versitygw-"+version)
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	return binary, build(filepath.Join(root, "tools"), binary)
}

// projectRoot returns the folder above this one that has tools/go.mod.
func projectRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tools", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("tools/go.mod is not in any folder above the test's")
		}
		dir = parent
	}
}

func pinnedVersion(goMod string) (string, error) {
	text, err := os.ReadFile(goMod)
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`github\.com/versity/versitygw (v\S+)`).FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%s does not require versitygw", goMod)
	}
	return string(m[1]), nil
}

// lock waits until no other test process builds.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// build builds the server, so that the binary appears whole or not at all.
func build(tools, binary string) error {
	tmp := binary + ".tmp"
	cmd := exec.Command("go", "build", "-o", tmp, "-ldflags", "-s -w", "github.com/versity/versitygw/cmd/versitygw")
	cmd.Dir = tools
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build versitygw: %w\n%s", err, out)
	}
	return os.Rename(tmp, binary)
}
