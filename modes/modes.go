// Package modes is the program: each mode (a server, the client, a tool) is a
// struct whose fields are its settings, and a command whose flags fill it in.
// Everything is wired together here, and nothing else happens here.
package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"flexfs/internal/tlspin"
)

// What the program ends with.
const (
	exitOK     = 0
	exitFailed = 1 // it could not do what it was asked to
	exitUsage  = 2 // the command line is wrong; nothing was tried
)

// usageError is a command line that is wrong.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Main runs the program with the given command line, args[0] being its name,
// until it is done or the process is told to end, and returns the exit code.
func Main(args ...string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return Run(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}

// Run is Main without the process around it.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	program, args := args[0], args[1:]
	mode := modeOf(program)
	if mode == "" && isMountCall(args) {
		mode = "mount"
	}
	app := &cli.App{
		Name:            "flexfs",
		HelpName:        "flexfs",
		Usage:           "a POSIX file system over object storage",
		Version:         version(),
		Commands:        commands(),
		HideHelpCommand: true,
		Action:          group,
		OnUsageError:    onUsageError,
		ExitErrHandler:  func(*cli.Context, error) {},
		Reader:          in,
		Writer:          out,
		ErrWriter:       errOut,
	}
	prepare(app.Commands)
	if mode != "" {
		args = append([]string{mode}, args...)
	}
	if mode == "mount" {
		args = helperArgs(args)
	}
	args, err := arrange(app.Commands, args)
	if err == nil {
		err = app.RunContext(ctx, append([]string{"flexfs"}, args...))
	}
	return report(err, commandName(app.Commands, args), errOut)
}

// commands returns all commands, each with settings of its own.
func commands() []*cli.Command {
	return []*cli.Command{
		adminCommand(), metaCommand(), proxyCommand(), mountCommand(),
		configureCommand(), upCommand(), statsCommand(), rmtreeCommand(), deletedCommand(), restoreCommand(), versionCommand(), guardCommand(),
	}
}

// prepare makes all commands behave alike.
func prepare(level []*cli.Command) {
	for _, c := range level {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		if c.Action == nil {
			c.Action = group
		}
		prepare(c.Subcommands)
	}
}

// group is the action of a command that only has others below it.
func group(c *cli.Context) error {
	if c.NArg() == 0 {
		return cli.ShowSubcommandHelp(c)
	}
	var names []string
	for _, sub := range c.Command.Subcommands {
		if !sub.Hidden {
			names = append(names, sub.Name)
		}
	}
	return usagef("there is no command %q; there are: %s", c.Args().First(), strings.Join(names, ", "))
}

// positional returns the arguments that are no flags if they are as many as
// there are names; the last may be missing if its name ends in "?".
func positional(c *cli.Context, names ...string) ([]string, error) {
	least := len(names)
	if least > 0 && strings.HasSuffix(names[least-1], "?") {
		least--
	}
	args := c.Args().Slice()
	if len(args) > len(names) {
		return nil, usagef("%q is one argument too many", args[len(names)])
	}
	if len(args) < least {
		return nil, usagef("the %s is missing: %s %s", strings.TrimSuffix(names[len(args)], "?"), c.Command.HelpName, c.Command.ArgsUsage)
	}
	return args, nil
}

func onUsageError(_ *cli.Context, err error, _ bool) error { return usageError{readable(err)} }

// readable words an error of package flag as we do.
func readable(err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		return fmt.Errorf("there is no flag --%s", strings.TrimLeft(name, "-"))
	}
	if rest, ok := strings.CutPrefix(text, "invalid value "); ok {
		if _, rest, ok := strings.Cut(rest, " for flag -"); ok {
			if name, why, ok := strings.Cut(rest, ": "); ok {
				return fmt.Errorf("--%s: %s", name, why)
			}
		}
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean value "); ok {
		value, name, _ := strings.Cut(rest, " for -")
		name, _, _ = strings.Cut(name, ":")
		return fmt.Errorf("--%s: %s is neither true nor false", name, value)
	}
	if rest, ok := strings.CutPrefix(text, "could not parse "); ok { // an environment variable
		value, rest, _ := strings.Cut(rest, `" `)
		if _, rest, ok := strings.Cut(rest, `environment variable "`); ok {
			name, rest, _ := strings.Cut(rest, `"`)
			_, why, _ := strings.Cut(rest, ": ")
			if strings.HasPrefix(why, "strconv.ParseBool") {
				why = value + `" is neither true nor false`
			}
			return fmt.Errorf("environment variable %s: %s", name, why)
		}
	}
	return errors.New(text)
}

// report prints what went wrong and returns the exit code.
func report(err error, command string, errOut io.Writer) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(errOut, "%s: %v\nTry %q.\n", command, err, command+" --help")
		return exitUsage
	}
	fmt.Fprintf(errOut, "%s: %v\n", command, err)
	var mismatch *tlspin.MismatchError
	if errors.As(err, &mismatch) {
		fmt.Fprintf(errOut, "If it was changed on purpose: flexfs configure init --adminPin %s\n", mismatch.Got)
	}
	return exitFailed
}

// commandName returns the name of the command that args (arranged) call.
func commandName(root []*cli.Command, args []string) string {
	name := "flexfs"
	for _, arg := range args {
		c := find(root, arg)
		if c == nil {
			break
		}
		name, root = name+" "+c.Name, c.Subcommands
	}
	return name
}

// logging are the settings of a program's log.
type logging struct {
	verbose bool
	format  string
}

func (l *logging) flags() []cli.Flag {
	l.format = "auto"
	verbose := boolFlag(&l.verbose, "verbose", "log each request too").(*cli.BoolFlag)
	verbose.Aliases = []string{"v"}
	return []cli.Flag{
		verbose,
		choiceFlag(&l.format, "logFormat", "`FORMAT` of the log: text, json, or auto (text on a terminal)", "auto", "text", "json"),
	}
}

// logger returns a log for people if w is a terminal, else for machines.
func (l *logging) logger(w io.Writer) *slog.Logger {
	opt := &slog.HandlerOptions{}
	if l.verbose {
		opt.Level = slog.LevelDebug
	}
	if l.format == "json" || l.format == "auto" && !isTerminal(w) {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && info.Mode()&os.ModeDevice != 0 && f.Name() != os.DevNull
}

// homeFolder returns the folder of our files in the user's home.
func homeFolder(elem ...string) string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root" // mount(8) and systemd may set no HOME
	}
	return filepath.Join(append([]string{home, ".flexfs"}, elem...)...)
}
