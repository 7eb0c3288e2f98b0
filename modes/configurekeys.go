package modes

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
)

func listTicketKeysCommand() *cli.Command {
	c := &configuring{}
	return &cli.Command{
		Name:  "ticket-keys",
		Usage: "The keys that sign the tickets of mounts; their ids, not themselves.",
		Flags: c.commonFlags(),
		Action: func(ctx *cli.Context) error {
			c.cli = ctx
			return c.ticketKeys(ctx.Context, func(client *admin.Client) ([]admin.TicketKey, error) { return client.TicketKeys(ctx.Context) })
		},
	}
}

func rotateTicketKeyCommand() *cli.Command {
	c := &configuring{}
	var r admin.Rotation
	return &cli.Command{
		Name:  "ticket-key",
		Usage: "The key that signs the tickets of mounts.",
		Description: "Makes a new key. Proxies and metadata servers learn it at once, tickets are signed with it some minutes later, and the\n" +
			"old key ends when the last ticket by it has expired: no mount notices. With --now the old key ends at once, as it must if\n" +
			"somebody may have it: proxies refuse its tickets within seconds. Mounts get new ones at once, and what they ask for in that\n" +
			"moment is tried again. A mount that is connected to a metadata server by an old ticket stays connected: restart the server to end that.",
		Flags: append(c.commonFlags(),
			&cli.BoolFlag{Name: "now", Usage: "end all other keys and the tickets by them at once", Destination: &r.Now, DisableDefaultText: true}),
		Action: func(ctx *cli.Context) error {
			c.cli = ctx
			return c.ticketKeys(ctx.Context, func(client *admin.Client) ([]admin.TicketKey, error) { return client.RotateTicketKey(ctx.Context, r) })
		},
	}
}

// ticketKeys prints the keys that ask returns.
func (c *configuring) ticketKeys(ctx context.Context, ask func(*admin.Client) ([]admin.TicketKey, error)) error {
	if _, err := positional(c.cli); err != nil {
		return err
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	keys, err := ask(client)
	if err != nil {
		return err
	}
	if c.output == "json" {
		return printJSON(c.cli.App.Writer, keys)
	}
	tw := tabwriter.NewWriter(c.cli.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tSTATE\tSIGNS FROM\tENDS AT")
	for _, k := range keys {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", k.ID, k.State, orDash(k.SignsFrom), orDash(k.EndsAt))
	}
	return tw.Flush()
}

func orDash(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}
