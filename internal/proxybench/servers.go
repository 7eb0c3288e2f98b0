package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"flexfs/internal/measure"
)

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
func startNginx(ctx context.Context, program, dir, root, certs string, workers int) (s *measure.Process, plain, secure string, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, "", "", err
	}
	plain, err = measure.FreeAddr()
	if err == nil {
		secure, err = measure.FreeAddr()
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
	if s, err = measure.Start("nginx", nil, program, "-p", dir, "-c", conf, "-e", "stderr"); err != nil {
		return nil, "", "", fmt.Errorf("nginx: %w", err)
	}
	return s, plain, secure, errors.Join(s.AwaitListening(ctx, plain), s.AwaitListening(ctx, secure))
}

// pidsOf returns a process and its children.
func pidsOf(p *measure.Process) ([]int, error) {
	all := []int{p.Pid}
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
