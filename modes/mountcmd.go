package modes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/cache"
	"flexfs/fuse"
)

// A mounting is one run of flexfs mount.
type mounting struct {
	Mount
	access     accessFlags
	log        logging
	memory     Amount
	secretFile string
	foreground bool
	remount    bool
	logFile    string
	options    string // expanded before flags are parsed, see expandOptions
}

func mountCommand() *cli.Command {
	m := &mounting{memory: Amount{Percent: 10}, Mount: Mount{DiskQuota: cache.Quota{Percent: 80}, AllowOther: os.Getuid() == 0, Drain: fuse.DefaultDrain}}
	flags := []cli.Flag{
		boolFlag(&m.foreground, "foreground", "stay in the foreground"),
		textFlag(&m.logFile, "logFile", "`FILE` for the log of a mount in the background; else one in ~/.flexfs/mount"),
		amountFlag(&m.memory, "memCapacity", "`SIZE` of memory for blocks, or the share of the machine's: 2GiB, 10%"),
		textFlag(&m.DiskFolder, "diskFolder", "`FOLDER` for a cache of blocks on disk, which survives a restart; else there is none"),
		quotaFlag(&m.DiskQuota, "diskQuota", "`SIZE` that the cache may take, or the share of the disk: 100GiB, 80%"),
		textFlag(&m.secretFile, "secretFile", "`FILE` with the secret of an encrypted volume, a line of at least 8 characters that only its owner can read"),
		boolFlag(&m.ReadOnly, "ro", "mount read-only"),
		flagOf(&m.At, "atTime", "`TIME` whose state is shown, read-only: 2026-11-01T12:00:00Z, or how long ago that was: 2h, 7d", parseAtTime, formatAtTime),
		boolFlag(&m.AllowOther, "allowOther", "let all users in, not only the one who mounts; root's mounts do unless --allowOther=false"),
		boolFlag(&m.NoATime, "noATime", "changes nothing, as reads are never recorded; it is there for fstab and mount -o noatime"),
		boolFlag(&m.NoDev, "noDev", "device files do not open devices"),
		boolFlag(&m.NoExec, "noExec", "programs on it cannot be run"),
		boolFlag(&m.NoSUID, "noSUID", "set-user-ID and set-group-ID bits have no effect"),
		boolFlag(&m.remount, "remount", "change a mount that is there: --ro, --noATime, --noDev, --noExec and --noSUID hold from now on if given, else not"),
		boolFlag(&m.NonEmpty, "nonEmpty", "mount on a folder that has files, which are hidden meanwhile"),
		boolFlag(&m.WriteBehind, "writeBehind", "the close of a small new file does not wait for the metadata service, which is told some milliseconds later; after a crash of this machine what was closed last may be missing, and nothing before it; fsync waits as ever"),
		durationFlag(&m.GiveUp, "giveUp", "`TIME` for which calls wait for a metadata service or bucket that is out of reach, before they fail with EIO until it is back; 0s is for ever, but a signal ends a wait"),
		durationFlag(&m.Drain, "drainTimeout", "`TIME` for which a mount that is unmounted, or told to end, tries to store what was written; what is not stored then is lost, and named"),
		debugFlag(&m.DebugAddr),
		&cli.GenericFlag{Name: "options", Aliases: []string{"o"}, Usage: "`OPTIONS` as mount(8) has them: flags without dashes, comma-separated",
			Value: &setting[string]{dst: &m.options, parse: noText, format: noFormat}},
	}
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount a volume",
		ArgsUsage: "<volume> <dir>",
		Description: "The token of the volume, admin's address and the key of admin come from flags, from the environment, or from\n" +
			"~/.flexfs/mount/<volume>.json, which flexfs configure init --volume <volume> writes.\n" +
			"In /etc/fstab: <volume> <dir> flexfs _netdev,nofail 0 0, with a link /sbin/mount.flexfs to this program.",
		Flags:  slices.Concat(flags, m.access.flags("token", "the volume"), m.log.flags()),
		Action: m.run,
	}
}

func noText(string) (string, error) { return "", errors.New("give it as -o a,b or --options a,b") }
func noFormat(s string) string      { return s }

func quotaFlag(dst *cache.Quota, name, help string) cli.Flag {
	return flagOf(dst, name, help, cache.ParseQuota, cache.Quota.String)
}

func (m *mounting) run(c *cli.Context) error {
	args, err := positional(c, "volume", "dir")
	if err != nil {
		return err
	}
	m.Volume = args[0]
	if m.Dir, err = filepath.Abs(args[1]); err != nil {
		return err
	}
	if m.DiskFolder != "" {
		if m.DiskFolder, err = filepath.Abs(m.DiskFolder); err != nil {
			return err
		}
	}
	if m.MemCapacity, err = m.memory.memory(); err != nil {
		return err
	}
	m.ReadOnly = m.ReadOnly || m.At != 0
	m.guarded = true
	if m.remount {
		return m.change()
	}
	r := newReporter(c.App.ErrWriter)
	if !m.foreground && r.background == nil && os.Getenv("NOTIFY_SOCKET") == "" {
		return m.startBackground(c)
	}
	m.Log = m.log.logger(c.App.ErrWriter)
	limitMemory(m.MemCapacity + 32<<20)
	return r.fail(m.serve(c.Context, r))
}

// change gives the mount at Dir the kernel's flags that were asked for.
func (m *mounting) change() error {
	text, err := readStats(m.Dir)
	if err != nil {
		return err
	}
	var now MountStats
	if err := json.Unmarshal(text, &now); err != nil {
		return fmt.Errorf("state of %s: %w", m.Dir, err)
	}
	if now.Dir != m.Dir {
		return fmt.Errorf("%s is in the mount at %s, and is none itself", m.Dir, now.Dir)
	}
	if now.ReadOnly && !m.ReadOnly {
		return fmt.Errorf("%s was mounted read-only, or its token is: umount it and mount it again", m.Dir)
	}
	for flag, field := range m.forced() {
		*field = *field || slices.Contains(now.Forced, flag)
	}
	flags := uintptr(syscall.MS_REMOUNT)
	if !m.NoATime {
		flags |= syscall.MS_RELATIME // else the kernel leaves noatime as it is
	}
	for flag, on := range map[uintptr]bool{syscall.MS_RDONLY: m.ReadOnly, syscall.MS_NOATIME: m.NoATime, syscall.MS_NODEV: m.NoDev, syscall.MS_NOEXEC: m.NoExec, syscall.MS_NOSUID: m.NoSUID} {
		if on {
			flags |= flag
		}
	}
	if err := syscall.Mount("", m.Dir, "", flags, ""); err != nil {
		return fmt.Errorf("remount %s: %w", m.Dir, err)
	}
	return nil
}

// serve mounts, reports, and serves until it is unmounted.
func (m *mounting) serve(ctx context.Context, r *reporter) (err error) {
	if err := checkMountPoint(m.Dir, m.NonEmpty); err != nil {
		return err
	}
	if m.secretFile != "" {
		if m.Secret, err = readSecret(m.secretFile); err != nil {
			return err
		}
	}
	m.Admin, err = m.access.resolve(ctx, r.say, homeFolder("mount", m.Volume+".json"), homeFolder("credentials.json"))
	if err != nil {
		return err
	}
	signals := endSignals()
	defer signal.Stop(signals)
	if err := m.Listen(ctx); err != nil {
		return err
	}
	if r.background != nil {
		if err := os.Chdir("/"); err != nil { // keep no other file system busy
			m.Log.Warn("working directory stays", "err", err)
		}
	}
	r.say(m.Chosen())
	r.ready()
	served := make(chan struct{})
	defer close(served)
	go m.hurryOn(signals, served)
	return m.Serve(ctx)
}

// endSignals catches the signals to end, the first of which ends the program's
// context, so that none ends the process itself. A terminal that goes away changes
// nothing.
func endSignals() chan os.Signal {
	signal.Ignore(syscall.SIGHUP)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	return signals
}

// sameSignal is how far apart signals to end may be that count as one: to a child
// of a process that is killed the kernel sends one for each thread that may have
// been its parent's.
const sameSignal = 200 * time.Millisecond

// hurryOn has a second signal to end hurry the end, and a third end the process.
func (m *mounting) hurryOn(signals chan os.Signal, served <-chan struct{}) {
	var last time.Time
	for told := 0; told < 2; {
		select {
		case <-signals:
		case <-served:
			return
		}
		if now := time.Now(); now.Sub(last) > sameSignal {
			told, last = told+1, now
		}
	}
	m.Log.Warn("told to end once more: what is not stored yet is given up")
	signal.Stop(signals)
	m.Hurry()
}

// startBackground runs the mount in a process of its own and waits until it
// works. Secrets do not go by its command line, which others can see.
func (m *mounting) startBackground(c *cli.Context) error {
	if m.logFile == "" {
		sum := sha256.Sum256([]byte(m.Dir))
		m.logFile = homeFolder("mount", "log", fmt.Sprintf("%s-%s.log", strings.ReplaceAll(m.Volume, "/", "_"), hex.EncodeToString(sum[:4])))
	}
	args := os.Args
	if m.access.Token != "" {
		args = withoutToken(args)
		os.Setenv(envName("token"), m.access.Token)
	}
	return startBackground(c.Context, args, m.logFile, c.App.Writer)
}

// withoutToken returns args without --token and its value, also where it is an
// option of mount(8).
func withoutToken(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		name := strings.TrimLeft(args[i], "-")
		switch {
		case name != args[i] && name == "token":
			i++
		case name != args[i] && strings.HasPrefix(name, "token="):
		case args[i] == "-o" && i+1 < len(args):
			i++
			isToken := func(o string) bool { return strings.HasPrefix(o, "token=") }
			out = append(out, "-o", strings.Join(slices.DeleteFunc(strings.Split(args[i], ","), isToken), ","))
		default:
			out = append(out, args[i])
		}
	}
	return out
}
