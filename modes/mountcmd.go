package modes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

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
		boolFlag(&m.NoATime, "noATime", "do not record when files were read"),
		boolFlag(&m.NoDev, "noDev", "device files do not open devices"),
		boolFlag(&m.NoExec, "noExec", "programs on it cannot be run"),
		boolFlag(&m.NoSUID, "noSUID", "set-user-ID and set-group-ID bits have no effect"),
		boolFlag(&m.NonEmpty, "nonEmpty", "mount on a folder that has files, which are hidden meanwhile"),
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
	r := newReporter(c.App.ErrWriter)
	if !m.foreground && r.background == nil && os.Getenv("NOTIFY_SOCKET") == "" {
		return m.startBackground(c)
	}
	m.Log = m.log.logger(c.App.ErrWriter)
	limitMemory(m.MemCapacity + 32<<20)
	return r.fail(m.serve(c.Context, r))
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
	defer m.onSignals()()
	return m.Serve(ctx)
}

// onSignals has a second signal to end hurry the end, and a terminal that goes
// away change nothing. The function returned undoes it.
func (m *mounting) onSignals() (undo func()) {
	signal.Ignore(syscall.SIGHUP)
	again := make(chan os.Signal, 2)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		for range 2 { // the first is what ends ctx
			select {
			case <-again:
			case <-done:
				return
			}
		}
		m.Log.Warn("told to end once more: what is not stored yet is given up")
		signal.Stop(again) // a third ends the process
		m.Hurry()
	}()
	return func() { signal.Stop(again); close(done) }
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
