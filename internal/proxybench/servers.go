package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server is a child process, which dies with this one.
type server struct {
	name string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

func startServer(name, program string, args ...string) (*server, error) {
	s := &server{name: name, cmd: exec.Command(program, args...), done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.cmd.Wait(); close(s.done) }()
	return s, nil
}

// await waits until the server accepts connections.
func (s *server) await(ctx context.Context, addr string) error {
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s ended at once:\n%s", s.name, s.log.Bytes())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen: %w", s.name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server and waits for it.
func (s *server) stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		return nil
	case <-time.After(15 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("%s did not end when it was told to", s.name)
	}
}

// freeAddr returns an address that nobody listens on. The namespace is ours
// alone, so it stays free.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// nginxConf is nginx as its manual recommends it for files, with two workers, as
// the proxy has a thread for each CPU. Go's and OpenSSL's first choices of a
// cipher differ; here it is Go's.
const nginxConf = `
worker_processes %d;
daemon off;
pid %[2]s/pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	client_body_temp_path %[2]s/t1; proxy_temp_path %[2]s/t2; fastcgi_temp_path %[2]s/t3; uwsgi_temp_path %[2]s/t4; scgi_temp_path %[2]s/t5;
	default_type application/octet-stream;
	root %[3]s;
	server { listen %[4]s; }
	server {
		listen %[5]s ssl;
		ssl_protocols TLSv1.3;
		ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
		ssl_certificate %[6]s/cert;
		ssl_certificate_key %[6]s/key;
	}
}
`

// startNginx serves the files below root, plain and with the certificate.
func startNginx(ctx context.Context, program, dir, root, certs string, workers int) (s *server, plain, secure string, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, "", "", err
	}
	plain, err = freeAddr()
	if err == nil {
		secure, err = freeAddr()
	}
	if err != nil {
		return nil, "", "", err
	}
	conf := filepath.Join(dir, "conf")
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n" // the folder is root's; nothing but this benchmark reaches it
	}
	text := user + fmt.Sprintf(nginxConf, workers, dir, root, plain, secure, certs)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, "", "", err
	}
	if s, err = startServer("nginx", program, "-p", dir, "-c", conf, "-e", "stderr"); err != nil {
		return nil, "", "", fmt.Errorf("nginx: %w", err)
	}
	return s, plain, secure, errors.Join(s.await(ctx, plain), s.await(ctx, secure))
}

// pids returns the process and its children.
func (s *server) pids() ([]int, error) {
	all := []int{s.cmd.Process.Pid}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[0]))
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, err
			}
			all = append(all, pid)
		}
	}
	return all, nil
}
