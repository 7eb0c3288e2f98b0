package tree

import (
	"encoding/hex"
	"syscall"
	"testing"

	"flexfs/meta"
)

// testACL is for the owner, user 7, the group and others.
var testACL = acl{{aclOwner, 7, aclNoID}, {aclUser, 6, 7}, {aclGroup, 5, aclNoID}, {aclMask, 7, aclNoID}, {aclOther, 4, aclNoID}}

func (c *client) setACL(ino meta.Ino, name string, a acl) meta.Attr {
	c.t.Helper()
	return c.ok(&meta.Request{Op: meta.OpSetxattr, Ino: ino, Name: name, Data: a.encode()}).Attr
}

func (c *client) hasACL(ino meta.Ino, name string, want acl) {
	c.t.Helper()
	reply := c.do(on(meta.OpGetxattr, ino, name))
	if want == nil && reply.Errno == syscall.ENODATA {
		return
	}
	if string(reply.Data) != string(want.encode()) {
		c.t.Errorf("inode %d has %x (errno %d), want %x", ino, reply.Data, reply.Errno, want.encode())
	}
}

func TestAnAccessControlListAndTheModeSayTheSame(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	f := c.file(meta.Root, "f")
	if got := c.setACL(f, aclAccess, testACL); got.Mode != syscall.S_IFREG|0o774 || got.Xattrs != 1 {
		t.Errorf("mode %o and %d attributes with a list for 774", got.Mode, got.Xattrs)
	}
	c.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o2631}})
	c.hasACL(f, aclAccess, acl{{aclOwner, 6, aclNoID}, {aclUser, 6, 7}, {aclGroup, 5, aclNoID}, {aclMask, 3, aclNoID}, {aclOther, 1, aclNoID}})
	w.check()
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o2640}})
	w.check()
	if got := c.attr(f).Mode; got != syscall.S_IFREG|0o2640 {
		t.Errorf("mode %o, want 102640", got)
	}
	got := c.ok(&meta.Request{Op: meta.OpSetxattr, Ino: f, Name: aclAccess, Data: testACL.encode(), Set: meta.SetKillSgid}).Attr
	if got.Mode != syscall.S_IFREG|0o774 {
		t.Errorf("mode %o of one who may not keep setgid, want 100774", got.Mode)
	}
	if got := c.setACL(f, aclAccess, acl{testACL[0], testACL[2], testACL[4]}); got.Mode != syscall.S_IFREG|0o754 || got.Xattrs != 0 {
		t.Errorf("mode %o and %d attributes with a list that says no more than 754", got.Mode, got.Xattrs)
	}
}

func TestDefaultAccessControlListsAreHandedOn(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	d := c.dir(meta.Root, "d")
	made := func(name string, mode uint32) meta.Attr {
		t.Helper()
		return c.ok(&meta.Request{Op: meta.OpMake, Ino: d, Name: name, Mode: mode, Umask: 0o027}).Attr
	}
	if got := made("before", syscall.S_IFDIR|0o777).Mode & 0o777; got != 0o750 {
		t.Errorf("mode %o where there is no list, want 750", got)
	}
	c.setACL(d, aclDefault, testACL)
	sub := made("sub", syscall.S_IFDIR|0o777)
	if sub.Mode&0o777 != 0o774 || sub.Xattrs != 2 {
		t.Errorf("mode %o and %d attributes of a directory, want 774 and 2", sub.Mode, sub.Xattrs)
	}
	c.hasACL(sub.Ino, aclDefault, testACL)
	c.hasACL(sub.Ino, aclAccess, testACL)
	f := made("f", syscall.S_IFREG|0o4640)
	if f.Mode&0o7777 != 0o4640 || f.Xattrs != 1 {
		t.Errorf("mode %o and %d attributes of a file, want 4640 and 1", f.Mode, f.Xattrs)
	}
	c.hasACL(f.Ino, aclAccess, acl{{aclOwner, 6, aclNoID}, {aclUser, 6, 7}, {aclGroup, 5, aclNoID}, {aclMask, 4, aclNoID}, {aclOther, 0, aclNoID}})
	w.check()
	c.setACL(d, aclDefault, acl{testACL[0], testACL[2], testACL[4]})
	if got := made("g", syscall.S_IFREG|0o666); got.Mode&0o777 != 0o644 || got.Xattrs != 0 {
		t.Errorf("mode %o and %d attributes below a list of three entries, want 644 and 0", got.Mode, got.Xattrs)
	}
	if got := c.make(d, "l", syscall.S_IFLNK); c.attr(got).Mode != syscall.S_IFLNK|0o777 {
		t.Errorf("mode %o of a symbolic link", c.attr(got).Mode)
	}
}

func TestWhatIsNoAccessControlListIsRefused(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	f, l := c.file(meta.Root, "f"), c.make(meta.Root, "l", syscall.S_IFLNK)
	for what, a := range map[string]acl{
		"nothing":              {},
		"no others":            testACL[:4],
		"a user and no mask":   {testACL[0], testACL[1], testACL[2], testACL[4]},
		"not in order":         {testACL[1], testACL[0], testACL[2], testACL[3], testACL[4]},
		"two owners":           {testACL[0], testACL[0], testACL[2], testACL[4]},
		"an unknown tag":       {testACL[0], testACL[2], testACL[4], {0x40, 7, 0}},
		"a tag of two":         {testACL[0], {0x03, 7, 0}, testACL[2], testACL[3], testACL[4]},
		"too many permissions": {{aclOwner, 8, aclNoID}, testACL[2], testACL[4]},
	} {
		t.Run(what, func(t *testing.T) {
			c.refused(syscall.EINVAL, &meta.Request{Op: meta.OpSetxattr, Ino: f, Name: aclAccess, Data: a.encode()})
		})
	}
	for _, bad := range []string{"", "\x01\x00\x00\x00", string(testACL.encode()[:11]), "\x03" + string(testACL.encode()[1:])} {
		c.refused(syscall.EINVAL, &meta.Request{Op: meta.OpSetxattr, Ino: f, Name: aclAccess, Data: []byte(bad)})
	}
	c.refused(syscall.EACCES, &meta.Request{Op: meta.OpSetxattr, Ino: f, Name: aclDefault, Data: testACL.encode()})
	c.refused(syscall.EOPNOTSUPP, &meta.Request{Op: meta.OpSetxattr, Ino: l, Name: aclAccess, Data: testACL.encode()})
}

func FuzzACL(f *testing.F) {
	f.Add(testACL.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseACL(b)
		if err != nil {
			return
		}
		again, err := parseACL(a.encode())
		if err != nil || len(again) != len(a) || again.mode() != a.mode() || len(a.encode()) != len(b) {
			t.Errorf("%x became %x: %v", b, a.encode(), err)
		}
	})
}

// Existing databases, and kernels, have these bytes.
func TestTheFormOfAnAccessControlListIsPinned(t *testing.T) {
	const want = "02000000" + "01000700ffffffff" + "0200060007000000" + "04000500ffffffff" + "10000700ffffffff" + "20000400ffffffff"
	if got := hex.EncodeToString(testACL.encode()); got != want {
		t.Errorf("encoded as %s, want %s", got, want)
	}
}
