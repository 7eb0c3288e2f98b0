package modes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
)

// A configuring is one run of flexfs configure.
type configuring struct {
	access accessFlags
	output string
	force  bool // delete what uses it, too

	table  *admin.Table
	values map[string]any // of fields, as given
	cli    *cli.Context
}

func configureCommand() *cli.Command {
	verb := func(name, usage string, tables []*cli.Command) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Subcommands: tables}
	}
	return &cli.Command{
		Name:  "configure",
		Usage: "create, list, show, update and delete what admin keeps; rotate its key",
		Description: "Without flags, admin's address and the account token are those in ~/.flexfs/credentials.json, which\n" +
			"flexfs configure init writes, or those that admin on this machine wrote at its first start. Wherever a volume's id is wanted, its name will do.",
		Subcommands: []*cli.Command{
			verb("create", "create an object", verbCommands("create", (*configuring).create)),
			verb("list", "list the objects of a kind", append(verbCommands("list", (*configuring).list), listTicketKeysCommand())),
			verb("show", "show an object, secrets too", verbCommands("show", (*configuring).show)),
			verb("update", "change an object", verbCommands("update", (*configuring).update)),
			verb("delete", "delete an object that nothing uses", verbCommands("delete", (*configuring).remove)),
			verb("rotate", "replace a key", []*cli.Command{rotateTicketKeyCommand()}),
			initCommand(),
		},
	}
}

// verbCommands returns a verb's command for each table that has it.
func verbCommands(verb string, action func(*configuring, context.Context) error) []*cli.Command {
	var list []*cli.Command
	for _, table := range admin.Tables {
		c := &configuring{table: table, values: map[string]any{}}
		flags := c.fieldFlags(verb)
		if verb == "update" && len(flags) == 0 {
			continue // an association has nothing to change
		}
		if verb == "delete" && table.Force != "" {
			flags = append(flags, &cli.BoolFlag{Name: "force", Usage: table.Force, Destination: &c.force, DisableDefaultText: true})
		}
		name := table.Singular
		if verb == "list" {
			name = table.Name
		}
		list = append(list, &cli.Command{
			Name:      name,
			Usage:     table.Doc,
			ArgsUsage: c.argsUsage(verb),
			Flags:     append(flags, c.commonFlags()...),
			Action: func(ctx *cli.Context) error {
				c.cli = ctx
				return action(c, ctx.Context)
			},
		})
	}
	return list
}

// commonFlags are the flags of all commands of configure.
func (c *configuring) commonFlags() []cli.Flag {
	c.output = "table"
	return append(c.access.flags("accountToken", "an account"),
		choiceFlag(&c.output, "output", "`FORMAT` of what is printed: table for people, json for programs", "table", "json"))
}

func (c *configuring) argsUsage(verb string) string {
	if verb == "create" || verb == "list" {
		return ""
	}
	var names []string
	for _, key := range c.table.Key {
		names = append(names, "<"+key+">")
	}
	return strings.Join(names, " ")
}

// fieldFlags returns the flags of the table's fields that the verb takes. They
// have no environment variables: what an object is to be belongs on the command
// line.
func (c *configuring) fieldFlags(verb string) []cli.Flag {
	var flags []cli.Flag
	for _, f := range c.table.Fields {
		isKey := slices.Contains(c.table.Key, f.Name)
		wanted := map[string]bool{
			"create": !f.ReadOnly && !f.Action,
			"update": !f.ReadOnly && !f.Fixed,
			"list":   !f.Secret && !f.Action && f.Kind != admin.KindMap && f.Kind != admin.KindList && f.Kind != admin.KindObjects,
			"show":   isKey && f.Fixed,
			"delete": isKey && f.Fixed,
		}[verb]
		if !wanted {
			continue
		}
		flags = append(flags, c.fieldFlag(verb, f))
		if f.Secret {
			flags = append(flags, c.secretFileFlag(f))
		}
	}
	return flags
}

func (c *configuring) fieldFlag(verb string, f admin.Field) cli.Flag {
	help := f.Doc
	if verb == "list" {
		help = "only those with this " + f.Name
	}
	if len(f.Values) > 0 {
		help += ": " + strings.Join(f.Values, ", ")
	}
	if verb == "create" && f.Required {
		help += " (required)"
	}
	if f.Kind == admin.KindBool {
		return &cli.BoolFlag{Name: f.Name, Usage: help, DisableDefaultText: true}
	}
	text := ""
	flag := &cli.GenericFlag{Name: f.Name, Usage: help, Value: &setting[string]{
		dst: &text,
		parse: func(s string) (string, error) {
			v, err := parseField(f, s)
			if err != nil {
				return "", err
			}
			c.values[f.Name] = v
			return s, nil
		},
		format: func(s string) string { return s },
	}}
	if verb == "create" && f.Default != nil {
		flag.DefaultText = formatField(f, jsonOf(f.Default))
	}
	return flag
}

// secretFileFlag lets a secret come from a file, since others see the command
// line.
func (c *configuring) secretFileFlag(f admin.Field) cli.Flag {
	text := ""
	return &cli.GenericFlag{Name: f.Name + "File", Usage: "`FILE` with the " + f.Name, Value: &setting[string]{
		dst: &text,
		parse: func(name string) (string, error) {
			data, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			c.values[f.Name] = strings.TrimSpace(string(data))
			return name, nil
		},
		format: func(s string) string { return s },
	}}
}

// parseField returns the value of a field in JSON's terms.
func parseField(f admin.Field, s string) (any, error) {
	switch f.Kind {
	case admin.KindInt:
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", s)
		}
		return n, nil
	case admin.KindSize:
		return parseSize(s)
	case admin.KindDuration:
		return parseRetention(s)
	case admin.KindList:
		return append([]string{}, splitList(s)...), nil // none is a list, too
	}
	return s, nil
}

// given returns the fields that the command line sets.
func (c *configuring) given() map[string]any {
	values := maps.Clone(c.values)
	for _, f := range c.table.Fields {
		if f.Kind == admin.KindBool && c.cli.IsSet(f.Name) {
			values[f.Name] = c.cli.Bool(f.Name)
		}
	}
	return values
}

// id returns the key of the object that the command line names, by arguments or
// by flags.
func (c *configuring) id() ([]string, error) {
	var fromFlags []string
	for _, key := range c.table.Key {
		if v, ok := c.values[key]; ok && c.table.Field(key).Fixed {
			fromFlags = append(fromFlags, fmt.Sprint(v))
		}
	}
	if c.cli.NArg() == 0 && len(fromFlags) == len(c.table.Key) {
		for _, key := range c.table.Key {
			delete(c.values, key)
		}
		return fromFlags, nil
	}
	if len(fromFlags) > 0 {
		return nil, usagef("name the object by %s or by flags, not by both", c.cli.Command.ArgsUsage)
	}
	return positional(c.cli, c.table.Key...)
}

func (c *configuring) client(ctx context.Context) (*admin.Client, error) {
	own := homeFolder("credentials.json")
	if _, err := os.Stat(own); errors.Is(err, fs.ErrNotExist) {
		own = homeFolder("admin", "credentials.json") // admin may be on this machine
	}
	access, err := c.access.resolve(ctx, c.say, own, own)
	if err != nil {
		return nil, err
	}
	return access.Client(), nil
}

// say tells the operator something that is not the answer.
func (c *configuring) say(text string) { fmt.Fprintln(c.cli.App.ErrWriter, text) }

func (c *configuring) create(ctx context.Context) error {
	if _, err := positional(c.cli); err != nil {
		return err
	}
	values := c.given()
	for _, f := range c.table.Fields {
		if _, ok := values[f.Name]; f.Required && !f.ReadOnly && !ok {
			return usagef("--%s is missing: %s", f.Name, f.Doc)
		}
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	var made json.RawMessage
	if err := client.Create(ctx, c.table, values, &made); err != nil {
		return err
	}
	return c.printOne(made, c.table.Singular == "volume-token" || c.table.Singular == "account")
}

func (c *configuring) list(ctx context.Context) error {
	if _, err := positional(c.cli); err != nil {
		return err
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	var found []json.RawMessage
	if err := client.List(ctx, c.table, c.filter(), &found); err != nil {
		return err
	}
	return c.printList(found)
}

func (c *configuring) show(ctx context.Context) error {
	id, err := c.id()
	if err != nil {
		return err
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	var object json.RawMessage
	if err := client.Get(ctx, c.table, &object, id...); err != nil {
		return err
	}
	return c.printOne(object, true)
}

func (c *configuring) update(ctx context.Context) error {
	id, err := c.id()
	if err != nil {
		return err
	}
	values := c.given()
	if len(values) == 0 {
		return usagef("nothing to change: give at least one of the flags that --help lists")
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	return client.Update(ctx, c.table, values, id...)
}

func (c *configuring) remove(ctx context.Context) error {
	id, err := c.id()
	if err != nil {
		return err
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	if c.force {
		return client.DeleteByForce(ctx, c.table, id...)
	}
	return client.Delete(ctx, c.table, id...)
}

// filter returns what a listing is to be narrowed to.
func (c *configuring) filter() url.Values {
	filter := url.Values{}
	for name, value := range c.given() {
		filter.Set(name, fmt.Sprint(value))
	}
	return filter
}

func jsonOf(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		return nil // defaults are strings and numbers
	}
	return data
}

// printJSON prints what admin answered, indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
