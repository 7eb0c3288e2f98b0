package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"flexfs/admin"
	"flexfs/fuse"
	"flexfs/meta"
	"flexfs/store"
	"flexfs/store/seal"
)

// Bounds of the secret of an encrypted volume. Whoever has a block can guess a
// short one.
const (
	minSecret = 8    // characters
	maxSecret = 4096 // bytes
)

// readSecret reads a secret from a file, which nobody but its owner may be able
// to read. The end of its line does not belong to it.
func readSecret(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the secret in %s can be read by others (mode %04o): run chmod 600 %[1]s", name, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+3))
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(text) > maxSecret:
		return nil, fmt.Errorf("the secret in %s has more than %d bytes", name, maxSecret)
	case utf8.RuneCountInString(text) < minSecret:
		return nil, fmt.Errorf("the secret in %s has %d characters; at least %d are needed, and many random ones are better", name, utf8.RuneCountInString(text), minSecret)
	}
	return []byte(text), nil
}

// newSealer returns what seals the volume's blocks, and for an encrypted volume
// its secret's id, after it made sure that the secret is not another's.
func (m *Mount) newSealer(v *admin.Volume) (*seal.Sealer, error) {
	codec, err := seal.ParseCodec(v.Compression)
	if err != nil {
		return nil, err
	}
	id, err := store.ParseVolume(v.ID)
	if err != nil {
		return nil, err
	}
	sealer := seal.NewSealer(seal.Options{Codec: codec, Secret: m.Secret})
	given := len(m.Secret) > 0
	clear(m.Secret) // the sealer has a copy
	m.Secret = nil
	switch {
	case given && !v.Encryption:
		return nil, fmt.Errorf("volume %s is not encrypted, and a secret was given: leave out --secretFile, or create a volume with --encryption", v.Name)
	case !given && v.Encryption:
		return nil, fmt.Errorf("volume %s is encrypted: give --secretFile with the file that has its secret", v.Name)
	case !given:
		return sealer, nil
	}
	m.secretID = sealer.Fingerprint(id)
	switch {
	case v.SecretID == "" && m.ReadOnly:
		return nil, fmt.Errorf("nobody has written to volume %s yet, and a mount that is read-only does not register its secret: mount it to write first", v.Name)
	case v.SecretID != "" && v.SecretID != m.secretID:
		return nil, wrongSecret(v.Name)
	}
	return sealer, nil
}

func wrongSecret(volume string) error {
	return fmt.Errorf("the secret is not the one of volume %s: its first mount had another", volume)
}

// registerSecret tells admin the secret's id, if this is the first mount of an
// encrypted volume. Nothing is written before.
func (m *Mount) registerSecret(ctx context.Context) error {
	v := m.settings.Load().Volume
	if m.secretID == "" || v.SecretID == m.secretID {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, firstFetch)
	defer cancel()
	err := m.Admin.Client().RegisterSecret(within, m.secretID)
	var refused *admin.Error
	switch {
	case errors.As(err, &refused) && refused.Status == http.StatusConflict:
		return wrongSecret(v.Name) // somebody was faster
	case err != nil:
		return fmt.Errorf("register the secret: %w", err)
	}
	m.Log.Info("first mount of an encrypted volume, its secret is registered", "volume", v.Name)
	return nil
}

// sealedMeta is the metadata service of an encrypted volume. Whatever it says,
// no contents go to it.
type sealedMeta struct{ fuse.Meta }

// Volume returns what the service told, with nothing kept inline.
func (s sealedMeta) Volume() meta.Volume {
	v := s.Meta.Volume()
	v.InlineMax = 0
	return v
}

// Do refuses to send contents.
func (s sealedMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if hasContents(req) {
		return nil, errors.New("contents of an encrypted volume are not sent to the metadata service")
	}
	return s.Meta.Do(ctx, req)
}

func hasContents(req *meta.Request) bool {
	return slices.ContainsFunc(req.Blocks, func(b meta.Block) bool { return len(b.Data) > 0 }) ||
		slices.ContainsFunc(req.Ops, func(part meta.Request) bool { return hasContents(&part) })
}
