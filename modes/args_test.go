package modes

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

func TestModeIsTheProgramsName(t *testing.T) {
	for program, want := range map[string]string{
		"configure.flexfs": "configure", "/sbin/mount.flexfs": "mount", "./admin.flexfs": "admin", "proxy.flexfs": "proxy",
		"meta.flexfs": "meta", "flexfs": "", "/usr/bin/flexfs": "", "up.flexfs": "", "other": "", ".flexfs": "",
	} {
		if got := modeOf(program); got != want {
			t.Errorf("modeOf(%q) = %q, want %q", program, got, want)
		}
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	for line, want := range map[string]string{
		"mount vol dir --ro --memCapacity 1G":                       "mount --ro --memCapacity 1G -- vol dir",
		"--ro mount --memCapacity=1G vol dir":                       "mount --ro --memCapacity=1G -- vol dir",
		"mount vol dir -o rw,_netdev,ro,memCapacity=1G,x-systemd.a": "mount --ro --memCapacity=1G -- vol dir",
		"mount vol dir -o nosuid,nodev":                             "mount --noSUID --noDev -- vol dir",
		"configure update proxy-group 1 --addresses a:1,b:2":        "configure update proxy-group --addresses a:1,b:2 -- 1",
		"configure --output json list volumes":                      "configure list volumes --output json --",
		"configure nonsense x":                                      "configure -- nonsense x",
		"mount -- -vol --ro":                                        "mount -- -vol --ro",
		"configure list volume":                                     "configure list volumes --",
		"configure show proxy-groups 1":                             "configure show proxy-group -- 1",
		"meta --dbFolder x":                                         "meta serve --dbFolder x --",
		"meta check --dbFolder x":                                   "meta check --dbFolder x --",
		"meta --help":                                               "meta --help --",
		"mount - --unknown dir":                                     "mount --unknown -- - dir",
		"":                                                          "--",
	} {
		got, err := arrange(commands(), strings.Fields(line))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("arrange(%q) = %q, %v; want %q", line, got, err, want)
		}
	}
	if got, err := arrange(commands(), []string{"mount", "vol", "--memCapacity"}); err == nil {
		t.Errorf("a flag without its value was arranged as %q", got)
	}
}

func TestMount8CallsTheHelper(t *testing.T) {
	got := helperArgs(strings.Fields("vol dir -n -s -v -r -t fuse -o rw,a=b"))
	if want := strings.Fields("vol dir --ro -o rw,a=b"); !slices.Equal(got, want) {
		t.Errorf("helperArgs: got %q, want %q", got, want)
	}
}

// arrange relies on it: it sees flags before it knows the command.
func TestAFlagTakesAValueInAllCommandsOrNone(t *testing.T) {
	takes := map[string]bool{}
	var walk func(path string, level []*cli.Command)
	walk = func(path string, level []*cli.Command) {
		for _, c := range level {
			for _, f := range c.Flags {
				_, isBool := f.(*cli.BoolFlag)
				for _, name := range f.Names() {
					if old, known := takes[name]; known && old == isBool {
						t.Errorf("--%s of %s %s is a switch, and elsewhere it is not, or the reverse", name, path, c.Name)
					}
					takes[name] = !isBool
				}
				if d, ok := f.(cli.DocGenerationFlag); ok && d.GetUsage() == "" {
					t.Errorf("--%s of %s %s has no help", f.Names()[0], path, c.Name)
				}
			}
			walk(path+" "+c.Name, c.Subcommands)
		}
	}
	walk("flexfs", commands())
}

func TestEnvironmentVariableOfAFlag(t *testing.T) {
	for flag, want := range map[string]string{
		"adminAddr": "FLEXFS_ADMIN_ADDR", "noSSL": "FLEXFS_NO_SSL", "sslCert": "FLEXFS_SSL_CERT", "token": "FLEXFS_TOKEN", "memCapacity": "FLEXFS_MEM_CAPACITY",
	} {
		if got := envName(flag); got != want {
			t.Errorf("envName(%q) = %q, want %q", flag, got, want)
		}
	}
}

func TestTheTokenLeavesTheCommandLine(t *testing.T) {
	for line, want := range map[string]string{
		"flexfs mount v d --token secret":           "flexfs mount v d",
		"flexfs mount -token=secret v d --ro":       "flexfs mount v d --ro",
		"mount.flexfs v d -o ro,token=secret,noDev": "mount.flexfs v d -o ro,noDev",
		"flexfs mount v d --tokenFile f":            "flexfs mount v d --tokenFile f",
	} {
		if got := strings.Join(withoutToken(strings.Fields(line)), " "); got != want {
			t.Errorf("withoutToken(%q) = %q, want %q", line, got, want)
		}
	}
}

func TestSystemdIsToldWhenItWantsToKnow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", "")
	notifySystemd("READY=1") // to nobody
	t.Setenv("NOTIFY_SOCKET", name)
	notifySystemd("STOPPING=1")
	got := make([]byte, 100)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := conn.Read(got)
	if err != nil || string(got[:n]) != "STOPPING=1" {
		t.Errorf("systemd was told %q, %v; want STOPPING=1", got[:n], err)
	}
}
