package modes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"flexfs/admin"
)

// printOne prints an object: a line per field, or JSON.
func (c *configuring) printOne(object json.RawMessage, secrets bool) error {
	values := map[string]json.RawMessage{}
	if err := json.Unmarshal(object, &values); err != nil {
		return fmt.Errorf("admin's answer: %w", err)
	}
	hidden := ""
	for _, f := range c.table.Fields {
		if f.Secret && !secrets && values[f.Name] != nil {
			hidden = f.Name
			delete(values, f.Name)
		}
	}
	w := c.cli.App.Writer
	if c.output == "json" {
		return printJSON(w, ordered{c.table.Fields, values})
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, f := range c.table.Fields {
		v, ok := values[f.Name]
		if !ok || f.Name == "former" { // status has more of it
			continue
		}
		for i, line := range strings.Split(formatField(f, v), "\n") {
			name := f.Name
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(tw, "%s\t%s\n", name, line)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if hidden != "" {
		c.say(fmt.Sprintf("Its %s is shown by: flexfs configure show %s %s", hidden, c.table.Singular, c.idOf(values)))
	}
	return nil
}

// idOf returns an object's key as arguments.
func (c *configuring) idOf(values map[string]json.RawMessage) string {
	var id []string
	for _, key := range c.table.Key {
		id = append(id, formatField(*c.table.Field(key), values[key]))
	}
	return strings.Join(id, " ")
}

// ordered prints as a JSON object with the fields in the table's order.
type ordered struct {
	fields []admin.Field
	values map[string]json.RawMessage
}

func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for _, f := range o.fields {
		v, ok := o.values[f.Name]
		if !ok {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", f.Name, v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// printList prints objects: a line each, or a JSON array.
func (c *configuring) printList(objects []json.RawMessage) error {
	w := c.cli.App.Writer
	if c.output == "json" {
		if objects == nil {
			objects = []json.RawMessage{}
		}
		return printJSON(w, objects)
	}
	var columns []admin.Field
	for _, f := range c.table.Fields {
		if !f.Secret && !f.Action && f.Kind != admin.KindMap && f.Kind != admin.KindObjects && !slices.Contains(narrow, f.Name) {
			columns = append(columns, f)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, f := range columns {
		fmt.Fprint(tw, tab(i), strings.ToUpper(spaced(f.Name)))
	}
	fmt.Fprintln(tw)
	for _, object := range objects {
		values := map[string]json.RawMessage{}
		if err := json.Unmarshal(object, &values); err != nil {
			return fmt.Errorf("admin's answer: %w", err)
		}
		for i, f := range columns {
			fmt.Fprint(tw, tab(i), strings.ReplaceAll(formatField(f, values[f.Name]), "\n", " "))
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// narrow are fields that a listing leaves to show: it would not fit a screen.
var narrow = []string{"pin", "refusedPin", "notes", "accountID", "inlineMax", "secretID", "maxBlocks", "maxInodes", "createdAt", "changedAt", "removedAt"}

func tab(column int) string {
	if column == 0 {
		return ""
	}
	return "\t"
}

// spaced returns the words of a name: "provider code" of providerCode.
func spaced(name string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(envName(name), "FLEXFS_"), "_", " "))
}

// formatField prints a field's JSON for people.
func formatField(f admin.Field, v json.RawMessage) string {
	switch f.Kind {
	case admin.KindSize, admin.KindDuration:
		var n int64
		if json.Unmarshal(v, &n) == nil {
			if f.Kind == admin.KindSize {
				return formatSize(n)
			}
			return formatRetention(n)
		}
	case admin.KindList:
		var list []string
		if json.Unmarshal(v, &list) == nil {
			return strings.Join(list, ",")
		}
	case admin.KindMap:
		var m map[string]string
		if json.Unmarshal(v, &m) == nil {
			var lines []string
			for _, k := range slices.Sorted(maps.Keys(m)) {
				lines = append(lines, k+" "+m[k])
			}
			return strings.Join(lines, "\n")
		}
	case admin.KindObjects:
		var list []admin.MemberStatus
		if json.Unmarshal(v, &list) == nil {
			return formatStatus(list, time.Now())
		}
	case admin.KindString, admin.KindTime:
		var s string
		if json.Unmarshal(v, &s) == nil {
			return s
		}
	}
	return string(v)
}
