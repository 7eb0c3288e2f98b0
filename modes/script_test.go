package modes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"flexfs/admin"
	"flexfs/internal/tlspin"
)

func TestMain(m *testing.M) {
	program := func() { os.Exit(Main(os.Args...)) }
	testscript.Main(m, map[string]func(){
		"flexfs": program, "admin.flexfs": program, "configure.flexfs": program, "mount.flexfs": program, "proxy.flexfs": program, "meta.flexfs": program,
	})
}

// The command line is tested as sessions. Each script has a home of its own,
// and in its environment free addresses for admin, the metadata service and
// two proxies, and one for metrics.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "../testdata/script",
		Setup:               setupScript,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(name string) (bool, error) {
			switch name {
			case "fuse":
				_, err := os.Stat("/dev/fuse")
				return err == nil, nil
			case "root":
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"usage":     usage,
			"serving":   serving,
			"listening": listening,
			"mounted":   mounted,
			"token":     token,
			"scrape":    scrape,
			"await":     awaitText,
			"report":    reportTo,
		},
	})
}

func setupScript(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	env.Setenv("HOME", home)
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each command takes a second more under the race detector
	ports, err := freePorts(5)
	if err != nil {
		return err
	}
	for i, name := range []string{"ADMIN", "META", "PROXY1", "PROXY2", "DEBUG"} {
		env.Setenv(name, loopback(ports[i]))
	}
	env.Defer(func() {
		for _, dir := range mountsBelow(env.WorkDir) {
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return nil
}

// mountsBelow returns the mount points below a folder.
func mountsBelow(folder string) (list []string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for _, line := range strings.Split(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], folder+"/") {
			list = append(list, fields[4])
		}
	}
	return list
}

// usage runs a command that must find its command line wrong: exit code 2, and
// nothing on standard output.
func usage(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[0], args[1:]...)
	exit, ok := err.(*exec.ExitError)
	if code := exitUsage; neg || !ok || exit.ExitCode() != code {
		ts.Fatalf("%v: %v; want exit code %d", args, err, code)
	}
}

// serving waits until a server speaks TLS at an address.
func serving(ts *testscript.TestScript, neg bool, args []string) {
	await(ts, func() error {
		_, err := tlspin.Fetch(context.Background(), args[0])
		return err
	})
}

// listening waits until somebody listens at an address.
func listening(ts *testscript.TestScript, neg bool, args []string) {
	await(ts, func() error {
		conn, err := net.DialTimeout("tcp", args[0], time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// mounted waits until there is a mount, or with ! until there is none.
func mounted(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	await(ts, func() error {
		kind, err := mountedAt(dir)
		if err == nil && (kind == "") != neg {
			err = fmt.Errorf("mount at %s: %q", dir, kind)
		}
		return err
	})
}

// awaitText waits until a file matches a pattern.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	pattern := regexp.MustCompile(args[1])
	await(ts, func() error {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && !pattern.Match(text) {
			err = fmt.Errorf("%s does not match %q:\n%s", args[0], args[1], text)
		}
		return err
	})
}

// scrape prints what a URL answers.
func scrape(ts *testscript.TestScript, neg bool, args []string) {
	resp, err := http.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s", args[0], resp.Status)
	}
	fmt.Fprint(ts.Stdout(), string(text))
}

// token keeps a token that admin shows in a file: token FILE OBJECT ID.
func token(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("configure.flexfs", "show", args[1], args[2]))
	for _, line := range strings.Split(ts.ReadFile("stdout"), "\n") {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "token" {
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(fields[1]+"\n"), 0o600))
			return
		}
	}
	ts.Fatalf("%s %s has no token", args[1], args[2])
}

// reportTo tells admin how a proxy is, in its place: report TOKENFILE JSON.
func reportTo(ts *testscript.TestScript, neg bool, args []string) {
	var r admin.ProxyReport
	ts.Check(json.Unmarshal([]byte(args[1]), &r))
	addr := ts.Getenv("ADMIN")
	pin, err := tlspin.Fetch(context.Background(), addr)
	ts.Check(err)
	_, err = (Access{Addr: addr, Pin: pin, Token: strings.TrimSpace(ts.ReadFile(args[0]))}).Client().Report(context.Background(), r)
	ts.Check(err)
}

func await(ts *testscript.TestScript, try func() error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
	}
}
