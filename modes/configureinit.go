package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
)

// An initialising is one run of flexfs configure init.
type initialising struct {
	access accessFlags
	volume string
	cli    *cli.Context
}

func initCommand() *cli.Command {
	i := &initialising{}
	return &cli.Command{
		Name:  "init",
		Usage: "write a credentials file, after trying it",
		Description: "Learns the key of admin, tries the token, and writes both for later commands: of an account to\n" +
			"~/.flexfs/credentials.json, with --volume of that volume to ~/.flexfs/mount/<volume>.json for flexfs mount.\n" +
			"Without a token among the flags it is read from standard input.",
		Flags: append(i.access.flags("accountToken", "an account, or with --volume of the volume"),
			textFlag(&i.volume, "volume", "write what flexfs mount needs for this `VOLUME`")),
		Action: func(c *cli.Context) error {
			if _, err := positional(c); err != nil {
				return err
			}
			i.cli = c
			return i.run(c.Context)
		},
	}
}

func (i *initialising) run(ctx context.Context) error {
	file := homeFolder("credentials.json")
	if i.volume != "" {
		file = homeFolder("mount", i.volume+".json")
	}
	if i.access.credsFile != "" {
		file, i.access.credsFile = i.access.credsFile, ""
	}
	if err := i.readToken(); err != nil {
		return err
	}
	access, err := i.access.resolve(ctx, i.say, file, homeFolder("credentials.json"))
	if err != nil {
		return err
	}
	if err := i.try(ctx, access.Client()); err != nil {
		return err
	}
	if i.access.Pin != "" { // the operator's word counts for later first contacts, too
		if err := remember(access.hostPort(), access.Pin, homeFolder("admins.json")); err != nil {
			return err
		}
	}
	creds := Credentials{AdminAddr: access.Addr, AdminPin: access.Pin, Token: access.Token}
	if err := creds.write(file); err != nil {
		return err
	}
	i.say("Written: " + file)
	return nil
}

// readToken reads the token from standard input if no flag says it.
func (i *initialising) readToken() error {
	if i.access.Token != "" || i.access.tokenFile != "" {
		return nil
	}
	if f, ok := i.cli.App.Reader.(*os.File); ok && isTerminal(f) {
		fmt.Fprint(i.cli.App.ErrWriter, "Token: ")
	}
	line, err := io.ReadAll(io.LimitReader(oneLine{i.cli.App.Reader}, 1024))
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	i.access.Token = strings.TrimSpace(string(line))
	return nil
}

// try makes a request with the token that changes nothing.
func (i *initialising) try(ctx context.Context, client *admin.Client) error {
	if i.volume == "" {
		_, err := admin.List[admin.Provider](ctx, client, nil)
		return err
	}
	got, err := admin.Fetch(ctx, client, admin.Fetched[admin.MountSettings]{}, 0)
	if err != nil {
		return err
	}
	if v := got.Settings.Volume; i.volume != v.Name && !strings.EqualFold(i.volume, v.ID) {
		return fmt.Errorf("the token is for volume %s, not for %s", v.Name, i.volume)
	}
	return nil
}

func (i *initialising) say(text string) { fmt.Fprintln(i.cli.App.ErrWriter, text) }

// oneLine reads from r to the end of the line, byte by byte, so that nothing of
// the next is taken.
type oneLine struct{ r io.Reader }

func (l oneLine) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := l.r.Read(p[:1])
	if n == 1 && p[0] == '\n' {
		return 0, io.EOF
	}
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, err
}
