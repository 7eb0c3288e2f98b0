package tree

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// TestCheckFindsWhatIsWrong breaks one rule at a time.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	v := &volume{num: 1}
	put := func(key, value []byte) func(engine.Tx) error {
		return func(tx engine.Tx) error { return tx.Put(key, value) }
	}
	edit := func(ino meta.Ino, fn func(*inode)) func(engine.Tx) error {
		return func(tx engine.Tx) error {
			in, err := v.inode(tx, ino)
			if err != nil {
				return err
			}
			fn(in)
			return tx.Put(v.attrKey(ino), in.encode())
		}
	}
	past := func(key []byte, second int64, value []byte) func(engine.Tx) error {
		return func(tx engine.Tx) error {
			for name, n := range map[string]uint64{counterPast: 5, counterSecond: 10} {
				if err := tx.Put(v.counterKey(name), binary.BigEndian.AppendUint64(nil, n)); err != nil {
					return err
				}
			}
			return tx.Put(historyAt(key, second), append([]byte{1}, value...))
		}
	}
	const d, s, f, g = 2, 3, 4, 5 // as the test makes them
	object := encodeBlock(&meta.Block{Gen: meta.Gen{Session: 1, Seq: 1}, Len: testBlockSize})
	for _, tc := range []struct {
		want   string
		damage func(engine.Tx) error
	}{
		{"is not known", put([]byte{0, 0, 0, 0, 'Z', 1}, nil)},
		{"which is no volume", put([]byte{0, 0, 0, 9, 'A', 1}, nil)},
		{"is not known", put([]byte{0, 0, 0, 1, 'Z', 1}, nil)},
		{"has not the form", put(v.attrKey(f), []byte{1})},
		{"has no attributes", nil},
		{"is not known", put(append(v.inoKey(f), 'Z'), nil)},
		{"records of parents", func(tx engine.Tx) error { return tx.Put(v.parentKey(g, meta.Root), []byte{0, 0, 0, 1}) }},
		{"mode", edit(f, func(in *inode) { in.Mode = 0o644 })},
		{"nlink", edit(f, func(in *inode) { in.Nlink = 2 })},
		{"nlink", edit(d, func(in *inode) { in.Nlink = 2 })},
		{"entries", edit(d, func(in *inode) { in.Size = 7 })},
		{"parent", edit(s, func(in *inode) { in.Parent = meta.Root })},
		{"not below the root", func(tx engine.Tx) error {
			// d and s in each other, out of the root's reach
			if err := edit(d, func(in *inode) { in.Parent = s })(tx); err != nil {
				return err
			}
			if err := tx.Delete(v.dentryKey(meta.Root, "d")); err != nil {
				return err
			}
			return tx.Put(v.dentryKey(s, "d"), dentry{d, dirm &^ 0o7777}.encode())
		}},
		{"in directory 1, not 2", edit(f, func(in *inode) { in.Parent = d })},
		{"has a target", edit(f, func(in *inode) { in.Target = "x" })},
		{"being removed", edit(f, func(in *inode) { in.dead = true })},
		{"extended attributes", edit(f, func(in *inode) { in.Xattrs++ })},
		{"4 bytes are not an access", put(v.xattrKey(f, aclAccess), []byte{1, 0, 0, 0})},
		{"has an access control list for 777 of 3 entries", put(v.xattrKey(f, aclAccess), acl{{aclOwner, 7, 0}, {aclGroup, 7, 0}, {aclOther, 7, 0}}.encode())},
		{"has an access control list for 774 of 5 entries", put(v.xattrKey(f, aclAccess), testACL.encode())},
		{"has a system.posix_acl_default", put(v.xattrKey(f, aclDefault), testACL.encode())},
		{"are stored", edit(f, func(in *inode) { in.Bytes-- })},
		{"has 10 bytes, and block", edit(f, func(in *inode) { in.Size = 10 })},
		{"inline", edit(f, func(in *inode) { in.inline = true })},
		{"is not a file and has block", put(v.blockKey(d, 0, 0), object)},
		{"says", put(v.blockKey(f, 0, 0), encodeBlock(&meta.Block{Len: 5}))},
		{"going to be deleted", func(tx engine.Tx) error {
			key := append(v.delayedKey(9, delayedBlocks), make([]byte, 18)...)
			binary.BigEndian.PutUint64(key[14:], f)
			k, err := v.block(tx, &inode{Attr: meta.Attr{Ino: f}}, 0)
			if err != nil {
				return err
			}
			return tx.Put(key, appendRef(nil, BlockRef{f, 0, k.Gen}))
		}},
		{"is named 1 times and counted 2 times", func(tx engine.Tx) error {
			k, err := v.block(tx, &inode{Attr: meta.Attr{Ino: f}}, 0)
			if err != nil {
				return err
			}
			return v.setNamed(tx, refOf(f, k), 2)
		}},
		{"is named 0 times and counted 1 times", func(tx engine.Tx) error { return v.setNamed(tx, BlockRef{Ino: 50}, 1) }},
		{"by another file and not counted", func(tx engine.Tx) error {
			return tx.Put(v.blockKey(f, 0, 0), encodeBlock(&meta.Block{
				Gen: meta.Gen{Session: 1, Seq: 1}, Len: testBlockSize, Origin: meta.Origin{Ino: g}}))
		}},
		{"has shed body 1, which will not be removed", func(tx engine.Tx) error { // and none of its own
			if err := edit(f, func(in *inode) { in.body = 2 })(tx); err != nil {
				return err
			}
			return tx.Put(v.blockKey(f, 1, 0), object)
		}},
		{"and it has body 0", put(v.delayedBodyKey(9, f, 0), make([]byte, 8))},
		{"of kind 'c'", put(v.delayedBodyKey(9, f, 0), nil)},
		{"is not a file and has body 1", edit(d, func(in *inode) { in.body = 1 })},
		{"says that it is from where it is", func(tx engine.Tx) error {
			return tx.Put(v.blockKey(f, 0, 0), encodeBlock(&meta.Block{
				Gen: meta.Gen{Session: 1, Seq: 1}, Len: testBlockSize, Origin: meta.Origin{Ino: f}}))
		}},
		{"is named 2 times and not counted", func(tx engine.Tx) error {
			key := append(v.delayedKey(9, delayedCloned), make([]byte, 18)...)
			r := appendCloned(nil, BlockRef{f, 7, meta.Gen{Session: 1}})
			return tx.Put(key, append(r, r...))
		}},
		{"references that end", put(append(v.delayedKey(9, delayedCloned), make([]byte, 18)...), []byte{1})},
		{"count", put(v.sharedKey(BlockRef{Ino: 1}), nil)},
		{"record of block 0", put(v.blockKey(f, 0, 0), []byte("\x03"+strings.Repeat("\x01", 31)))},
		{"stands for inode 99", put(v.dentryKey(d, "x"), dentry{99, reg &^ 0o7777}.encode())},
		{"which is no directory", put(v.dentryKey(f, "x"), dentry{g, reg &^ 0o7777}.encode())},
		{"says type", put(v.dentryKey(meta.Root, "f"), dentry{f, dirm &^ 0o7777}.encode())},
		{"key", put(v.dentryKey(d, "a/b"), dentry{g, reg &^ 0o7777}.encode())},
		{"has 0 names", func(tx engine.Tx) error { return tx.Delete(v.dentryKey(meta.Root, "g")) }},
		{"will not be removed", edit(g, func(in *inode) { in.Nlink = 0 })},
		{"is not there", put(v.delayedInodeKey(9, 99), nil)},
		{"until second 9 inode 99 was there", past(v.dentryKey(d, "x"), 9, dentry{99, reg &^ 0o7777}.encode())},
		{"until second 9 inode 99 was there", past(v.attrKey(99), 9, (&inode{Attr: meta.Attr{Mode: reg, Nlink: 1}}).encode())},
		{"until second 9 inode 4 had block 7, version", past(v.blockKey(f, 0, 7), 9, object)},
		{"and the last change was in 10", past(v.dentryKey(d, "x"), 11, dentry{f, reg &^ 0o7777}.encode())},
		{"history is complete since second 4611686018427387904", put(v.counterKey(counterPast), binary.BigEndian.AppendUint64(nil, 1<<62))},
		{"is to be purged", put(append(v.delayedKey(9, delayedHistory), v.historyKey(v.attrKey(f), 1)[4:]...), nil)},
		{"history record", put(v.historyKey(v.attrKey(f), 1), []byte{1, 2})},
		{"history record", put(v.historyKey(v.attrKey(f), 1), nil)},
		{"counter \"b\"", func(tx engine.Tx) error { return tx.Add(v.counterKey(counterBytes), 1) }},
		{"counter \"i\"", func(tx engine.Tx) error { return tx.Add(v.counterKey(counterInodes), -1) }},
		{"was not given out", put(v.counterKey(counterIno), binary.BigEndian.AppendUint64(nil, 3))},
		{"was not given out", put(v.counterKey(counterSession), make([]byte, 8))},
		{"which is not there", put(v.openKey(77, f), nil)},
		{"in use and gone", put(v.openKey(1, 99), nil)},
		{"session 1", put(v.sessionKey(1, ofSession), []byte("no"))},
		{"session 1", put(v.slotKey(1, 999), make([]byte, 9))},
	} {
		if tc.damage == nil {
			tc.damage = func(tx engine.Tx) error { return tx.Delete(v.attrKey(f)) }
			tc.want = "and no attributes"
		}
		t.Run(tc.want, func(t *testing.T) {
			w := newWorld(t)
			c := w.hello("rw:")
			c.dir(c.dir(meta.Root, "d"), "s")
			c.write(c.file(meta.Root, "f"), 0, 2)
			c.file(meta.Root, "g")
			w.check()
			e := w.engine
			w.engine = nil // not to be checked again
			defer e.Close()
			commit, err := e.Update(context.Background(), nil, tc.damage)
			if err != nil {
				t.Fatal(err)
			}
			commit.Wait()
			problems, err := Check(context.Background(), e)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range problems {
				if strings.Contains(p.Text, tc.want) {
					return
				}
			}
			t.Errorf("found %v", problems)
		})
	}
}

// FuzzValues: what is stored is parsed or refused, and what is parsed prints as
// it was.
func FuzzValues(f *testing.F) {
	in := inode{Attr: meta.Attr{Mode: reg, Nlink: 1, Size: 3}}
	f.Add(in.encode())
	f.Add(encodeBlock(&meta.Block{Gen: meta.Gen{Session: 1}, Len: 3, Inline: true, Data: []byte("abc")}))
	f.Add(encodeBlock(&meta.Block{Gen: meta.Gen{Session: 1}, Len: 3}))
	f.Add(encodeBlock(&meta.Block{Gen: meta.Gen{Session: 1}, Len: 5000, Holes: []meta.Hole{{Lo: 0, Hi: 4096}}}))
	f.Add(dentry{7, 0o100000}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if in, err := decodeInode(1, b); err == nil && string(in.encode()) != string(b) {
			t.Errorf("inode %x became %x", b, in.encode())
		}
		if k, err := decodeBlock(0, b); err == nil && string(encodeBlock(k)) != string(b) {
			t.Errorf("block %x became %x", b, encodeBlock(k))
		}
		if d, err := decodeDentry(b); err == nil && string(d.encode()) != string(b) {
			t.Errorf("entry %x became %x", b, d.encode())
		}
	})
}

// TestFormsArePinned: existing databases have these bytes.
func TestFormsArePinned(t *testing.T) {
	v := &volume{num: 1}
	in := inode{Attr: meta.Attr{
		Mode: reg, Uid: 1, Gid: 2, Nlink: 3, Rdev: 4, Size: 5, Bytes: 6, Atime: meta.Time{Sec: -1, Nsec: 7},
		Change: 8, Data: 9, Parent: 10, Xattrs: 11, Target: "t",
	}, inline: true}
	other := inode{body: 12}
	for _, tc := range []struct {
		got  []byte
		want string
	}{
		{v.attrKey(2), "\x00\x00\x00\x01A\x00\x00\x00\x00\x00\x00\x00\x02\x00"},
		{v.blockKey(2, 0, 3), "\x00\x00\x00\x01A\x00\x00\x00\x00\x00\x00\x00\x02B\x00\x00\x00\x03"},
		{v.blockKey(2, 4, 3), "\x00\x00\x00\x01A\x00\x00\x00\x00\x00\x00\x00\x02C\x00\x00\x00\x04\x00\x00\x00\x03"},
		{v.parentKey(2, 3), "\x00\x00\x00\x01A\x00\x00\x00\x00\x00\x00\x00\x02P\x00\x00\x00\x00\x00\x00\x00\x03"},
		{v.xattrKey(2, "n"), "\x00\x00\x00\x01A\x00\x00\x00\x00\x00\x00\x00\x02Xn"},
		{v.dentryKey(2, "n"), "\x00\x00\x00\x01D\x00\x00\x00\x00\x00\x00\x00\x02n"},
		{v.counterKey("b"), "\x00\x00\x00\x01Cb"},
		{v.counterKey(counterPast), "\x00\x00\x00\x01Ch"},
		{v.clockKey(), "\x00\x00\x00\x01Ct"},
		{v.openKey(2, 3), "\x00\x00\x00\x01S\x00\x00\x00\x00\x00\x00\x00\x02O\x00\x00\x00\x00\x00\x00\x00\x03"},
		{v.slotKey(2, 3), "\x00\x00\x00\x01S\x00\x00\x00\x00\x00\x00\x00\x02R\x00\x03"},
		{v.delayedInodeKey(2, 3), "\x00\x00\x00\x01G\x00\x00\x00\x00\x00\x00\x00\x02i\x00\x00\x00\x00\x00\x00\x00\x03"},
		{v.delayedBodyKey(2, 3, 4), "\x00\x00\x00\x01G\x00\x00\x00\x00\x00\x00\x00\x02c\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x04"},
		{v.historyKey(v.dentryKey(2, "n"), 3), "\x00\x00\x00\x01HD\x00\x00\x00\x00\x00\x00\x00\x02n\x00\x00\x00\x00\x00\x00\x00\x00\x03"},
		{dentry{2, 0o100000}.encode(), "\x00\x00\x00\x00\x00\x00\x00\x02\x08"},
		{encodeBlock(&meta.Block{Gen: meta.Gen{Session: 1, Seq: 2}, Len: 3}),
			"\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03"},
		{encodeBlock(&meta.Block{
			Gen: meta.Gen{Session: 1, Seq: 2}, Len: 1 << 20,
			Holes: []meta.Hole{{Lo: 0, Hi: 4096}, {Lo: 512 << 10, Hi: 516 << 10}}, Origin: meta.Origin{Ino: 5, Index: 6},
		}),
			"\x03\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x10\x00\x00" +
				"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x06" + "\x00\x00\x00\x01\x00\x80\x00\x81"},
		{v.sharedKey(BlockRef{2, 3, meta.Gen{Session: 4, Seq: 5}}), "\x00\x00\x00\x01R\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03" +
			"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05"},
		{appendCloned(nil, BlockRef{2, 3, meta.Gen{Session: 4, Seq: 5}}), "\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03" +
			"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05"},
		{in.encode(), "\x01\x01\x00\x00\x81\xa4\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x04" +
			"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x07" +
			strings.Repeat("\x00", 36) + "\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x0bt"},
		{other.encode(), "\x01\x04" + strings.Repeat("\x00", 112) + "\x00\x00\x00\x0c"},
	} {
		if string(tc.got) != tc.want {
			t.Errorf("%q, pinned is %q", tc.got, tc.want)
		}
	}
}
