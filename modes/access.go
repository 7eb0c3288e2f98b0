package modes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
	"flexfs/internal/tlspin"
)

// Access is how a program reaches admin and what it shows there.
type Access struct {
	Addr  string // host:port, or a URL; with http:// there is no TLS
	Pin   string // of admin's key; "": its certificate must be one that the system trusts
	Token string
}

// Client returns a client of admin.
func (a Access) Client() *admin.Client {
	return &admin.Client{URL: a.url(), Token: a.Token, HTTP: adminHTTP(a.Pin)}
}

// url returns where admin is, with a scheme.
func (a Access) url() string {
	if strings.Contains(a.Addr, "://") {
		return strings.TrimSuffix(a.Addr, "/")
	}
	return "https://" + a.hostPort()
}

// hostPort returns admin's host:port.
func (a Access) hostPort() string {
	_, addr, ok := strings.Cut(a.Addr, "://")
	if !ok {
		addr = a.Addr
	}
	addr = strings.TrimSuffix(addr, "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		if strings.HasPrefix(a.Addr, "http://") {
			return net.JoinHostPort(strings.Trim(addr, "[]"), "80")
		}
		return net.JoinHostPort(strings.Trim(addr, "[]"), "443")
	}
	return addr
}

// Credentials are what a credentials file holds.
type Credentials struct {
	AdminAddr string `json:"adminAddr"`
	AdminPin  string `json:"adminPin,omitempty"`
	Token     string `json:"token"`
}

// ReadCredentials reads a credentials file, which nobody but its owner may be
// able to read.
func ReadCredentials(name string) (Credentials, error) {
	var c Credentials
	info, err := os.Stat(name)
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return c, fmt.Errorf("credentials in %s can be read by others (mode %04o): run chmod 600 %s, and replace the token if this machine has other users",
			name, info.Mode().Perm(), name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("credentials in %s are not what `flexfs configure init` writes: %w", name, err)
	}
	return c, nil
}

// write stores the credentials for the owner's eyes only.
func (c Credentials) write(name string) error {
	if err := writeSecret(name, c); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return nil
}

// writeSecret puts v as JSON into a file that only its owner can read. The
// file appears whole and durable, or stays as it was.
func writeSecret(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// accessFlags are the flags about admin of a mode.
type accessFlags struct {
	Access
	tokenFile string
	credsFile string
}

// flags returns the flags; the token's is named tokenFlag, because some
// objects have a field "token".
func (a *accessFlags) flags(tokenFlag, whose string) []cli.Flag {
	return []cli.Flag{
		textFlag(&a.Addr, "adminAddr", "`ADDRESS` of admin, host:port or a URL; else the credentials file says it"),
		textFlag(&a.Pin, "adminPin", "`PIN` of admin's key, as admin prints it at its start; else learnt at first contact"),
		secretFlag(&a.Token, tokenFlag, "`TOKEN` of "+whose+"; other users of the machine see it in the process list, so better in a file or the environment"),
		textFlag(&a.tokenFile, tokenFlag+"File", "`FILE` with the token"),
		textFlag(&a.credsFile, "credsFile", "`FILE` with admin's address and the token, as flexfs configure init writes it"),
	}
}

// resolve returns the access that flags, environment and credentials files say:
// the file own, and about admin alone the file shared too. A key of admin that
// is not known yet is learnt; say tells the operator.
func (a *accessFlags) resolve(ctx context.Context, say func(string), own, shared string) (Access, error) {
	access := a.Access
	if a.tokenFile != "" {
		data, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return access, fmt.Errorf("read token: %w", err)
		}
		access.Token = strings.TrimSpace(string(data))
	}
	if a.credsFile != "" {
		own = a.credsFile
	}
	creds, err := ReadCredentials(own)
	optional := a.credsFile == ""
	if optional && errors.Is(err, fs.ErrNotExist) && shared != own {
		creds, err = ReadCredentials(shared)
		creds.Token = ""
	}
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return access, err
	}
	access.complete(creds)
	switch {
	case access.Addr == "":
		return access, usagef("it is not known where admin is: give --adminAddr host:port, or write %s with flexfs configure init", own)
	case access.Token == "":
		return access, usagef("there is no token: name a file with it, or write %s with flexfs configure init", own)
	}
	if access.Pin == "" {
		access.Pin, err = firstContact(ctx, access, homeFolder("admins.json"), say)
	}
	return access, err
}

// complete fills what is missing from credentials.
func (a *Access) complete(c Credentials) {
	if a.Addr == "" {
		a.Addr = c.AdminAddr
	}
	if a.Token == "" {
		a.Token = c.Token
	}
	if a.Pin == "" && (Access{Addr: c.AdminAddr}).hostPort() == a.hostPort() {
		a.Pin = c.AdminPin
	}
}

// firstContact returns the pin of admin's key that the file says, or learns it
// and adds it to the file. Without TLS, or if the system trusts admin's
// certificate, there is none.
func firstContact(ctx context.Context, access Access, file string, say func(string)) (string, error) {
	if strings.HasPrefix(access.Addr, "http://") {
		return "", nil
	}
	addr := access.hostPort()
	known, err := knownAdmins(file)
	if err != nil {
		return "", err
	}
	if pin := known[addr]; pin != "" {
		return pin, nil
	}
	if trusted(ctx, addr) {
		return "", nil
	}
	pin, err := tlspin.Fetch(ctx, addr)
	if err != nil {
		return "", fmt.Errorf("first contact with admin: %w", err)
	}
	if err := remember(addr, pin, file); err != nil {
		return "", err
	}
	say(fmt.Sprintf("First contact with admin at %s: its key is %s. It is trusted from now on (%s); compare it with what admin printed at its start.", addr, pin, file))
	return pin, nil
}

// knownAdmins returns the pins by host:port that were learnt at first contacts.
func knownAdmins(file string) (map[string]string, error) {
	known := map[string]string{}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err != nil {
		return nil, fmt.Errorf("read the keys of known admins: %s: %w", file, err)
	}
	return known, nil
}

// remember adds a pin to the file.
func remember(addr, pin, file string) error {
	known, err := knownAdmins(file)
	if err != nil || known[addr] == pin {
		return err
	}
	known[addr] = pin
	if err := writeSecret(file, known); err != nil {
		return fmt.Errorf("remember admin's key: %w", err)
	}
	return nil
}

// trusted tells whether the system trusts the server's certificate for its
// name.
func trusted(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := dialTLS(ctx, addr, "")
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
