package modes

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
)

// modeOf returns the mode that the program's name asks for: mount of
// /sbin/mount.flexfs, and "" of flexfs.
func modeOf(program string) string {
	mode, ok := strings.CutSuffix(filepath.Base(program), ".flexfs")
	if !ok || !slices.Contains([]string{"admin", "meta", "proxy", "mount", "configure"}, mode) {
		return ""
	}
	return mode
}

// arrange brings the arguments into the order that package cli understands:
// commands, flags, the rest. So flags may stand anywhere on our command line.
// args does not include the program's name.
func arrange(root []*cli.Command, args []string) ([]string, error) {
	takesValue := map[string]bool{}
	collectFlags(root, takesValue)
	flags, rest, err := splitFlags(args, takesValue)
	if err != nil {
		return args, err
	}
	var path []string
	for level := root; len(rest) > 0; {
		c := find(level, rest[0])
		if c == nil {
			break
		}
		path, rest = append(path, c.Name), rest[1:]
		level = c.Subcommands
	}
	switch {
	case len(path) > 0 && path[0] == "mount":
		flags = expandOptions(flags)
	case slices.Equal(path, []string{"meta"}) && len(rest) == 0 && !slices.ContainsFunc(flags, isHelp):
		path = append(path, "serve") // flexfs meta is the service
	}
	return slices.Concat(path, flags, []string{"--"}, rest), nil
}

// splitFlags separates flags, with their values, from other arguments.
func splitFlags(args []string, takesValue map[string]bool) (flags, rest []string, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return flags, append(rest, args[i+1:]...), nil
		}
		name := strings.TrimLeft(arg, "-")
		if name == arg || name == "" {
			rest = append(rest, arg) // "-" is an argument too
			continue
		}
		flags = append(flags, arg)
		if takesValue[name] {
			if i++; i == len(args) {
				return nil, nil, usagef("%s needs a value", arg)
			}
			flags = append(flags, args[i])
		}
	}
	return flags, rest, nil
}

func isHelp(flag string) bool { return flag == "--help" || flag == "-help" || flag == "-h" }

// find returns the command of that name, or nil. Objects are found by their
// plural and their singular.
func find(level []*cli.Command, name string) *cli.Command {
	table := admin.FindTable(name)
	i := slices.IndexFunc(level, func(c *cli.Command) bool {
		return c.Name == name || table != nil && (c.Name == table.Singular || c.Name == table.Name)
	})
	if i < 0 {
		return nil
	}
	return level[i]
}

// collectFlags notes of every flag of every command whether it takes a value.
// A name means the same in all commands, or they could not stand anywhere.
func collectFlags(level []*cli.Command, takesValue map[string]bool) {
	for _, c := range level {
		for _, f := range c.Flags {
			_, isBool := f.(*cli.BoolFlag)
			for _, name := range f.Names() {
				takesValue[name] = !isBool
			}
		}
		collectFlags(c.Subcommands, takesValue)
	}
}

// expandOptions replaces -o a,b=c, as mount(8) passes them, by --a --b=c.
// Options that are not ours but mount(8)'s or systemd's are left out.
func expandOptions(flags []string) []string {
	var out []string
	for i := 0; i < len(flags); i++ {
		options, together := strings.CutPrefix(flags[i], "-o=")
		if flags[i] == "-o" {
			i++
			options, together = flags[i], true
		}
		if !together {
			out = append(out, flags[i])
			continue
		}
		for _, o := range strings.Split(options, ",") {
			if o = ourOption(o); o != "" {
				out = append(out, "--"+o)
			}
		}
	}
	return out
}

// ourOption returns the flag, without dashes, that a mount option stands for.
func ourOption(option string) string {
	if isSystemOption(option) {
		return ""
	}
	if flag, ok := mountOptions[option]; ok {
		return flag
	}
	return option
}

// mountOptions are mount(8)'s names of some of our flags.
var mountOptions = map[string]string{
	"allow_other": "allowOther", "nosuid": "noSUID", "nodev": "noDev", "noexec": "noExec", "noatime": "noATime", "nodiratime": "noATime",
}

// isSystemOption tells the options of fstab that are for mount(8) and systemd,
// or say what is so anyway.
func isSystemOption(option string) bool {
	name, _, _ := strings.Cut(option, "=")
	switch name {
	case "user_id", "group_id", "rootmode", "default_permissions", "max_read", "blksize": // of a mount that is there
		return true
	case "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "async", "sync",
		"dev", "suid", "exec", "atime", "diratime", "relatime", "norelatime", "strictatime", "comment":
		return true
	}
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

// isMountCall tells the command line with which mount.fuse(8) starts the program of
// a mount of type fuse.flexfs: <volume> <dir> -o <options>.
func isMountCall(args []string) bool {
	return len(args) == 4 && args[2] == "-o" && !strings.HasPrefix(args[0], "-") && !strings.HasPrefix(args[1], "-")
}

// helperArgs drops what mount(8) adds when it calls mount.flexfs and what
// means nothing to us: -n (no mtab), -s (sloppy), -v, -t type, -N namespace.
func helperArgs(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "-n", "-s", "-v", "-sn", "-nv", "-sv", "-w":
		case "-r":
			out = append(out, "--ro")
		case "-t", "-N":
			i++
		default:
			out = append(out, args[i])
		}
	}
	return out
}
