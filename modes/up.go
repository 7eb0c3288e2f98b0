package modes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
)

const (
	upGroups  = 2
	upMembers = 2 // of each group
	upVolume  = "my-volume"

	startTimeout = 30 * time.Second // for one server to answer
	stopTimeout  = 60 * time.Second // for a mount to write what it has
	lockPatience = 3 * time.Second  // for the processes of an up that was killed to end
)

// Up is a whole cluster on this machine, for a first look: admin with the
// metadata service, two groups of two proxies, and a mount, each a process of
// its own on a loopback port. What it keeps is in one folder and is found
// again at the next start.
type Up struct {
	Dir        string // where the file system is mounted; made if it is not there
	StateDir   string
	BlockStore string    // s3://bucket/prefix?endpoint=URL&region=CODE; "": a folder in StateDir
	Program    string    // the flexfs binary
	Out        io.Writer // for what is told to the user

	state  upState
	lock   *os.File
	family *family
	mount  *child
}

// upState is what a second start must know, in state.json.
type upState struct {
	Dir        string     `json:"dir"`
	BlockStore string     `json:"blockStore"`
	AdminPort  int        `json:"adminPort"`
	MetaPort   int        `json:"metaPort"`
	Groups     []upMember `json:"proxies"`
	Complete   bool       `json:"complete"` // admin has all objects
}

type upMember struct {
	Group int `json:"group"` // from 1
	Port  int `json:"port"`
}

func (m upMember) addr() string { return loopback(m.Port) }

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func upCommand() *cli.Command {
	u := &Up{}
	return &cli.Command{
		Name:      "up",
		Usage:     "run a whole cluster on this machine and mount it, for a first look",
		ArgsUsage: "<dir>",
		Description: "Starts admin with the metadata service, two groups of two proxies, and a mount at <dir>, all on loopback.\n" +
			"Ctrl-C stops everything; the next start on the same <dir> finds everything again.",
		Flags: []cli.Flag{
			textFlag(&u.StateDir, "stateDir", "`FOLDER` for what the cluster keeps; else one in ~/.flexfs/up that belongs to <dir>"),
			textFlag(&u.BlockStore, "blockStore", "`URL` of a bucket, s3://bucket/prefix?endpoint=https://host:port&region=code, with the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; else a folder in stateDir"),
		},
		Action: func(c *cli.Context) error {
			args, err := positional(c, "dir")
			if err != nil {
				return err
			}
			u.Dir, u.Out = args[0], c.App.Writer
			if u.Program, err = os.Executable(); err != nil {
				return err
			}
			if err := u.Listen(); err != nil {
				return err
			}
			return u.Serve(c.Context)
		},
	}
}

// Listen checks the settings, claims the folder of the state, and chooses
// ports at the first start.
func (u *Up) Listen() error {
	dir, err := filepath.Abs(u.Dir)
	if err != nil {
		return err
	}
	u.Dir = dir
	if u.StateDir == "" {
		sum := sha256.Sum256([]byte(dir))
		u.StateDir = homeFolder("up", hex.EncodeToString(sum[:6]))
	}
	if u.StateDir, err = filepath.Abs(u.StateDir); err != nil {
		return err
	}
	if u.StateDir == dir || strings.HasPrefix(u.StateDir, dir+"/") {
		return usagef("--stateDir %s is within %s, where the file system is to be: choose another", u.StateDir, dir)
	}
	if _, err := parseBlockStore(u.BlockStore); err != nil {
		return usageError{err}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the mount point: %w", err)
	}
	if err := checkMountPoint(dir, false); err != nil {
		return err
	}
	for _, folder := range []string{"", "log", "admin", "bucket"} {
		if err := os.MkdirAll(filepath.Join(u.StateDir, folder), 0o700); err != nil {
			return fmt.Errorf("make the state folder: %w", err)
		}
	}
	if u.lock, err = lockFile(filepath.Join(u.StateDir, "lock")); err != nil {
		return fmt.Errorf("another flexfs up runs on %s: stop that first, or choose another --stateDir (%w)", u.StateDir, err)
	}
	if err := u.load(); err != nil {
		u.lock.Close()
		return err
	}
	return nil
}

// lockFile takes a lock that ends with this process and those it is passed on
// to. It waits a moment for processes that are about to end.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, err
		}
	}
}

// load reads the state of the last start, or makes a new one.
func (u *Up) load() error {
	name := u.file("state.json")
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return u.choosePorts()
	}
	if err == nil {
		err = json.Unmarshal(data, &u.state)
	}
	if err != nil {
		return fmt.Errorf("the state in %s cannot be read: %w; move %s away to begin anew", name, err, u.StateDir)
	}
	if u.BlockStore != "" && u.BlockStore != u.state.BlockStore {
		return fmt.Errorf("the cluster in %s has its blocks in %s: leave out --blockStore, or choose another --stateDir", u.StateDir, orFolder(u.state.BlockStore))
	}
	return nil
}

func orFolder(blockStore string) string {
	if blockStore == "" {
		return "a folder"
	}
	return blockStore
}

func (u *Up) choosePorts() error {
	ports, err := freePorts(2 + upGroups*upMembers)
	if err != nil {
		return err
	}
	u.state = upState{Dir: u.Dir, BlockStore: u.BlockStore, AdminPort: ports[0], MetaPort: ports[1]}
	for i, port := range ports[2:] {
		u.state.Groups = append(u.state.Groups, upMember{Group: 1 + i/upMembers, Port: port})
	}
	return u.save()
}

func (u *Up) save() error {
	if err := writeSecret(u.file("state.json"), u.state); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}

// freePorts returns ports of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // all are held until all are chosen
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (u *Up) file(elem ...string) string {
	return filepath.Join(append([]string{u.StateDir}, elem...)...)
}

// Serve starts everything, says what runs where, and waits until ctx is done
// or the mount has ended. Whatever was started is stopped when it returns.
func (u *Up) Serve(ctx context.Context) (err error) {
	defer u.lock.Close()
	u.family = newFamily(u.Program, u.file("log"), u.lock)
	defer func() {
		if len(u.family.all) > 0 {
			u.say("Stopping.")
		}
		err = errors.Join(err, u.family.close(stopTimeout))
	}()
	client, err := u.startAdmin(ctx)
	if err != nil {
		return unlessEnding(ctx, err)
	}
	if err := u.configure(ctx, client); err != nil {
		return unlessEnding(ctx, err)
	}
	if err := u.startProxies(ctx); err != nil {
		return unlessEnding(ctx, err)
	}
	if err := u.startMount(ctx); err != nil {
		return unlessEnding(ctx, err)
	}
	u.say(u.hints())
	return u.watch(ctx)
}

func (u *Up) say(text string) { fmt.Fprintln(u.Out, text) }

// startAdmin starts admin with the metadata service and returns a client of it.
func (u *Up) startAdmin(ctx context.Context) (*admin.Client, error) {
	c, err := u.family.run("admin", nil, nil, "admin",
		"--bindAddr", loopback(u.state.AdminPort), "--dbFolder", u.file("admin"),
		"--metaBindAddr", loopback(u.state.MetaPort), "--metaAddress", loopback(u.state.MetaPort))
	if err != nil {
		return nil, err
	}
	var creds Credentials
	err = waitUntil(ctx, c, func() (err error) {
		creds, err = ReadCredentials(u.file("admin", "credentials.json"))
		return err
	})
	if err != nil {
		return nil, err
	}
	client := Access{Addr: creds.AdminAddr, Pin: creds.AdminPin, Token: creds.Token}.Client()
	err = waitUntil(ctx, c, func() error {
		return healthy(ctx, client.HTTP, client.URL+"/v1/health")
	})
	return client, err
}

// waitUntil waits until try succeeds or the child has ended.
func waitUntil(ctx context.Context, c *child, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return c.why()
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer after %v (%w); its log is %s", c.name, startTimeout, err, c.log)
		case <-tick.C:
		}
	}
}

func healthy(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// configure creates the objects at the first start. An attempt that failed
// half-way is continued.
func (u *Up) configure(ctx context.Context, client *admin.Client) error {
	if u.state.Complete {
		return nil
	}
	if err := u.setup(ctx, client); err != nil {
		return fmt.Errorf("configure the cluster: %w", err)
	}
	u.state.Complete = true
	return u.save()
}

// members returns the addresses of a group.
func (u *Up) members(group int) (list []string) {
	for _, m := range u.state.Groups {
		if m.Group == group {
			list = append(list, m.addr())
		}
	}
	return list
}

// parseBlockStore parses the URL of a bucket; "" is an empty BlockStore.
func parseBlockStore(text string) (b admin.BlockStore, err error) {
	if text == "" {
		return b, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil {
		return b, fmt.Errorf("--blockStore %q is not like s3://bucket/prefix?endpoint=https://host:port&region=code", text)
	}
	b.APICode, b.Bucket, b.Prefix = "s3", u.Host, strings.Trim(u.Path, "/")
	b.RegionCode = "us-east-1"
	for name, values := range u.Query() {
		switch name {
		case "endpoint":
			b.Address = values[0]
		case "region":
			b.RegionCode = values[0]
		default:
			return b, fmt.Errorf("--blockStore: %q is neither endpoint nor region", name)
		}
	}
	b.Username, b.Password = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	return b, nil
}

func (u *Up) startProxies(ctx context.Context) error {
	var started []*child
	for i, m := range u.state.Groups {
		name := fmt.Sprintf("proxy-%d", i+1)
		c, err := u.family.run(name, nil, nil, "proxy", "--credsFile", u.file(groupFile(m.Group)), "--bindAddr", m.addr(), "--address", m.addr(),
			"--stateFolder", u.file(name), "--diskFolder", u.file(name, "blocks"), "--diskQuota", "10GiB")
		if err != nil {
			return err
		}
		started = append(started, c)
	}
	for i, c := range started {
		err := waitUntil(ctx, c, func() error {
			conn, err := net.DialTimeout("tcp", u.state.Groups[i].addr(), time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startMount starts the mount and waits until it works.
func (u *Up) startMount(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	c, err := u.family.run("mount", []string{readyEnv + "=1"}, []*os.File{w}, "mount", "--foreground", "--credsFile", u.file("mount.json"), upVolume, u.Dir)
	w.Close()
	if err != nil {
		return err
	}
	u.mount = c
	stop := context.AfterFunc(ctx, func() { c.cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	return readReport(r, u.Out)
}

// watch tells of processes that end, until ctx is done or the mount ends.
func (u *Up) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-u.family.ended:
			if ctx.Err() != nil {
				return nil
			}
			if c == u.mount {
				return c.why()
			}
			u.say(fmt.Sprintf("%v. Everything else runs on. To have it back: %s", c.why(), strings.Join(c.cmd.Args, " ")))
		}
	}
}

// hints says what runs where and what to try.
func (u *Up) hints() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nA file system is at %s. These run on this machine (logs in %s):\n", u.Dir, u.file("log"))
	fmt.Fprintf(&b, "  admin        https://%s\n", loopback(u.state.AdminPort))
	fmt.Fprintf(&b, "  metadata     %s\n", loopback(u.state.MetaPort))
	for i, m := range u.state.Groups {
		fmt.Fprintf(&b, "  proxy-%d      https://%s   group %d, cache in %s, process %d\n", i+1, m.addr(), m.Group, u.file(fmt.Sprintf("proxy-%d", i+1), "blocks"), u.childPid(fmt.Sprintf("proxy-%d", i+1)))
	}
	if u.state.BlockStore == "" {
		fmt.Fprintf(&b, "  blocks       in %s\n", u.file("bucket"))
	} else {
		fmt.Fprintf(&b, "  blocks       in %s\n", u.state.BlockStore)
	}
	program := filepath.Base(u.Program)
	fmt.Fprintf(&b, "\nTry, in another terminal:\n")
	fmt.Fprintf(&b, "  cp -r . %s && ls -l %[1]s\n", u.Dir)
	fmt.Fprintf(&b, "  %s stats %s\n", program, u.Dir)
	fmt.Fprintf(&b, "  export FLEXFS_CREDS_FILE=%s\n", u.file("admin", "credentials.json"))
	fmt.Fprintf(&b, "  %s configure list proxy-groups\n", program)
	fmt.Fprintf(&b, "  %s configure update proxy-group 1 --addresses %s    # one server less; the mount notices\n", program, u.members(1)[0])
	fmt.Fprintf(&b, "  kill %d    # a proxy dies; reads go on\n", u.childPid("proxy-1"))
	fmt.Fprintf(&b, "Ctrl-C stops everything; the same command starts it again with all its files.\n")
	return b.String()
}

func (u *Up) childPid(name string) int {
	for _, c := range u.family.all {
		if c.name == name {
			return c.cmd.Process.Pid
		}
	}
	return 0
}
