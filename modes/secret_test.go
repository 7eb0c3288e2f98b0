package modes

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flexfs/admin"
	"flexfs/fuse"
	"flexfs/meta"
)

func TestASecretIsTheLineInItsFile(t *testing.T) {
	for _, c := range []struct {
		text, want string
		err        string
	}{
		{"12345678", "12345678", ""},
		{"12345678\n", "12345678", ""},
		{"12345678\r\n", "12345678", ""},
		{" 1234567\n\n", " 1234567\n", ""},
		{"äöüäöüäö\n", "äöüäöüäö", ""},
		{"äöüäöüä\n", "", "7 characters"},
		{"1234567\n", "", "7 characters"},
		{"", "", "0 characters"},
		{strings.Repeat("x", maxSecret) + "\r\n", strings.Repeat("x", maxSecret), ""},
		{strings.Repeat("x", maxSecret+1), "", "more than 4096 bytes"},
		{strings.Repeat("x", 1<<20), "", "more than 4096 bytes"},
	} {
		name := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(name, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readSecret(name)
		if string(got) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%.20q: %.20q, %v; want %.20q, %q", c.text, got, err, c.want, c.err)
		}
	}
}

// Of two first mounts with different secrets the later is refused when it
// registers, though the volume had no secret when it looked.
func TestTheLaterOfTwoFirstMountsIsRefused(t *testing.T) {
	db, err := admin.Open(filepath.Join(t.TempDir(), "admin.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	account, _, err := db.Bootstrap()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(admin.NewHandler(db, admin.Options{}))
	defer srv.Close()
	access := Access{Addr: srv.URL, Token: account.Token}
	client := access.Client()
	create := func(table string, fields map[string]any, made any) {
		t.Helper()
		if err := client.Create(t.Context(), admin.FindTable(table), fields, made); err != nil {
			t.Fatal(err)
		}
	}
	var token admin.VolumeToken
	place := func(fields map[string]any) map[string]any {
		fields["providerCode"], fields["regionCode"] = "local", "local"
		return fields
	}
	create("meta-store", place(map[string]any{"address": "localhost:1"}), new(any))
	create("block-store", place(map[string]any{"apiCode": "dir", "bucket": t.TempDir()}), new(any))
	create("volume", map[string]any{"name": "vault", "encryption": true, "metaStoreID": 1, "blockStoreID": 1}, new(any))
	create("volume-token", map[string]any{"volumeID": "vault"}, &token)
	access.Token = token.Token

	var mounts []*Mount
	for _, secret := range []string{"the first secret", "another secret"} {
		m := &Mount{Admin: access, Secret: []byte(secret), Log: slog.New(slog.DiscardHandler)}
		if err := m.fetchSettings(t.Context()); err != nil {
			t.Fatal(err)
		}
		given := m.Secret
		if _, err := m.newSealer(&m.settings.Load().Volume); err != nil {
			t.Fatal(err)
		}
		if m.Secret != nil || strings.Trim(string(given), "\x00") != "" {
			t.Error("the secret is still in the mount")
		}
		mounts = append(mounts, m)
	}
	for range 2 { // a second time changes nothing
		if err := mounts[0].registerSecret(t.Context()); err != nil {
			t.Errorf("the first: %v", err)
		}
		if err := mounts[1].registerSecret(t.Context()); err == nil || !strings.Contains(err.Error(), "the secret is not the one of volume vault") {
			t.Errorf("the later: %v", err)
		}
	}
}

// A metadata service that asks for contents of an encrypted volume gets none.
func TestContentsOfAnEncryptedVolumeAreNotInline(t *testing.T) {
	curious := &curiousMeta{}
	s := sealedMeta{curious}
	if v := s.Volume(); v.InlineMax != 0 || v.BlockSize != 4096 {
		t.Errorf("the file system is told %+v", v)
	}
	commit := meta.Request{Op: meta.OpCommit, Blocks: []meta.Block{{}, {Inline: true, Len: 5, Data: []byte("hello")}}}
	for _, req := range []*meta.Request{&commit, {Op: meta.OpCompound, Ops: []meta.Request{{Op: meta.OpPing}, commit}}} {
		if _, err := s.Do(t.Context(), req); err == nil || curious.asked != 0 {
			t.Errorf("%v with contents: %v, %d requests", req.Op, err, curious.asked)
		}
	}
	if _, err := s.Do(t.Context(), &meta.Request{Op: meta.OpCommit, Blocks: []meta.Block{{Len: 5}}}); err != nil || curious.asked != 1 {
		t.Errorf("a commit of a block: %v, %d requests", err, curious.asked)
	}
	for encrypted, want := range map[bool]uint32{true: 0, false: 4096} {
		if n := volumeConfig(admin.Volume{InlineMax: 4096, Encryption: encrypted}).InlineMax; n != want {
			t.Errorf("encryption %v: the service has %d bytes inline, want %d", encrypted, n, want)
		}
	}
}

// curiousMeta wants all contents inline.
type curiousMeta struct {
	fuse.Meta
	asked int
}

func (m *curiousMeta) Volume() meta.Volume { return meta.Volume{BlockSize: 4096, InlineMax: 4096} }

func (m *curiousMeta) Do(context.Context, *meta.Request) (*meta.Reply, error) {
	m.asked++
	return &meta.Reply{}, nil
}
