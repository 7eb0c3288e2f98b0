package modes

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"
)

// setting is a flag's value: how text becomes it and what it looks like.
type setting[T any] struct {
	dst    *T
	parse  func(string) (T, error)
	format func(T) string
	set    bool // by a flag or the environment
}

func (s *setting[T]) Set(text string) error {
	v, err := s.parse(text)
	if err != nil {
		return err
	}
	*s.dst, s.set = v, true
	return nil
}

func (s *setting[T]) String() string {
	if s.dst == nil {
		return "" // package flag asks a zero value
	}
	return s.format(*s.dst)
}

// flagOf returns a flag that fills dst, whose present value is the default. A
// word in back quotes in help stands for the value there.
func flagOf[T any](dst *T, name, help string, parse func(string) (T, error), format func(T) string) cli.Flag {
	return &cli.GenericFlag{
		Name:    name,
		Usage:   help,
		EnvVars: []string{envName(name)},
		Value:   &setting[T]{dst: dst, parse: parse, format: format},
	}
}

func textFlag(dst *string, name, help string) cli.Flag {
	return flagOf(dst, name, help, func(s string) (string, error) { return s, nil }, func(s string) string { return s })
}

// secretFlag is a textFlag whose value help does not show.
func secretFlag(dst *string, name, help string) cli.Flag {
	f := textFlag(dst, name, help).(*cli.GenericFlag)
	f.DefaultText = "none"
	return f
}

func amountFlag(dst *Amount, name, help string) cli.Flag {
	return flagOf(dst, name, help, parseAmount, Amount.String)
}

func durationFlag(dst *time.Duration, name, help string) cli.Flag {
	return flagOf(dst, name, help, parseDuration, formatDuration)
}

// countFlag is a flag of a number that is not negative.
func countFlag(dst *int, name, help string) cli.Flag {
	parse := func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%q is not a number like 100", s)
		}
		return n, nil
	}
	return flagOf(dst, name, help, parse, strconv.Itoa)
}

// choiceFlag takes one of a few words.
func choiceFlag(dst *string, name, help string, words ...string) cli.Flag {
	parse := func(s string) (string, error) {
		for _, w := range words {
			if s == w {
				return s, nil
			}
		}
		return "", fmt.Errorf("%q is not one of %s", s, strings.Join(words, ", "))
	}
	return flagOf(dst, name, help, parse, func(s string) string { return s })
}

func boolFlag(dst *bool, name, help string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: help, EnvVars: []string{envName(name)}, Value: *dst, Destination: dst, DisableDefaultText: true}
}

// envName returns the environment variable of a flag: FLEXFS_ADMIN_ADDR of
// adminAddr, FLEXFS_NO_SSL of noSSL.
func envName(flag string) string {
	name := []rune("FLEXFS_")
	runes := []rune(flag)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && !unicode.IsUpper(runes[i-1]) {
			name = append(name, '_')
		}
		name = append(name, unicode.ToUpper(r))
	}
	return string(name)
}
