package posixtest

import (
	"encoding/binary"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// An ace is an entry of a POSIX access control list.
type ace struct {
	tag, perm uint16
	id        uint32
}

func owner(perm uint16) ace              { return ace{0x01, perm, 1<<32 - 1} }
func user(id uint32, perm uint16) ace    { return ace{0x02, perm, id} }
func ownGroup(perm uint16) ace           { return ace{0x04, perm, 1<<32 - 1} }
func inGroup(id uint32, perm uint16) ace { return ace{0x08, perm, id} }
func mask(perm uint16) ace               { return ace{0x10, perm, 1<<32 - 1} }
func other(perm uint16) ace              { return ace{0x20, perm, 1<<32 - 1} }

// acl returns a list in the form that setxattr(2) has for it.
func acl(entries ...ace) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

func setACL(name, which string, entries ...ace) error {
	return syscall.Setxattr(name, which, []byte(acl(entries...)), 0)
}

// hasACL fails the test unless a file has exactly that list, or none.
func hasACL(t *testing.T, name, which string, entries ...ace) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := syscall.Getxattr(name, which, buf)
	if len(entries) == 0 {
		refused(t, "getxattr of a list that is not there", err, unix.ENODATA)
		return
	}
	do(t, "getxattr of a list", err)
	if got := string(buf[:n]); got != acl(entries...) {
		t.Errorf("%s of %s is %x, want %x", which, name, got, acl(entries...))
	}
}

func hasMode(t *testing.T, name string, want uint32) {
	t.Helper()
	if got := stat(t, name).Mode & 0o7777; got != want {
		t.Errorf("mode %o of %s, want %o", got, name, want)
	}
}

// needACLs skips the test if the file system has no access control lists.
func needACLs(t *testing.T, dir string) {
	t.Helper()
	if _, err := syscall.Getxattr(dir, aclAccess, nil); err == syscall.EOPNOTSUPP {
		t.Skip("this file system has no access control lists")
	}
}

var acls = []check{
	{name: "an access control list lets a user in", root: true, run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		name := join(dir, "f")
		write(t, name, "secret")
		do(t, "chmod", os.Chmod(name, 0o600))
		tries := func() (r, w error) {
			as(stranger, group, func() {
				_, r = os.ReadFile(name)
				w = os.WriteFile(name, []byte("mine"), 0)
			})
			return r, w
		}
		r, _ := tries()
		refused(t, "read without a list", r, syscall.EACCES)
		do(t, "set", setACL(name, aclAccess, owner(6), user(stranger, 4), ownGroup(0), mask(4), other(0)))
		r, w := tries()
		do(t, "read with a list", r)
		refused(t, "write with a list for reading", w, syscall.EACCES)
		do(t, "set", setACL(name, aclAccess, owner(6), ownGroup(0), inGroup(group, 6), mask(6), other(0)))
		r, w = tries()
		do(t, "read by a group of the list", r)
		do(t, "write by a group of the list", w)
		do(t, "set", setACL(name, aclAccess, owner(6), user(stranger, 6), ownGroup(0), mask(4), other(0)))
		_, w = tries()
		refused(t, "write beyond the mask", w, syscall.EACCES)
		do(t, "set", setACL(name, aclAccess, owner(6), user(stranger, 0), ownGroup(0), mask(6), other(6)))
		r, _ = tries()
		refused(t, "read by a user whom the list shuts out", r, syscall.EACCES)
		do(t, "remove", syscall.Removexattr(name, aclAccess))
		r, _ = tries()
		do(t, "read by the others when the list is gone", r)
	}},
	{name: "an access control list and the mode say the same", run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		name := join(dir, "f")
		write(t, name, "x")
		do(t, "chmod", os.Chmod(name, 0o644))
		hasACL(t, name, aclAccess)
		do(t, "set", setACL(name, aclAccess, owner(7), user(1, 7), ownGroup(4), mask(5), other(1)))
		hasMode(t, name, 0o751)
		buf := make([]byte, 4096)
		n, err := syscall.Listxattr(name, buf)
		do(t, "listxattr", err)
		if !strings.Contains(string(buf[:n]), aclAccess+"\x00") {
			t.Errorf("%q does not list it", buf[:n])
		}
		do(t, "chmod", os.Chmod(name, 0o624))
		hasACL(t, name, aclAccess, owner(6), user(1, 7), ownGroup(4), mask(2), other(4))
		do(t, "chown", os.Chown(name, -1, -1))
		do(t, "set", setACL(name, aclAccess, owner(6), ownGroup(4), other(0)))
		hasMode(t, name, 0o640)
		hasACL(t, name, aclAccess)
		do(t, "set", setACL(name, aclAccess, owner(6), ownGroup(4), mask(6), other(0)))
		hasMode(t, name, 0o660)
		do(t, "remove", syscall.Removexattr(name, aclAccess))
		hasMode(t, name, 0o660)
		hasACL(t, name, aclAccess)
	}},
	{name: "default lists are handed on", run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		defer syscall.Umask(syscall.Umask(0o077))
		def := []ace{owner(7), user(1, 6), ownGroup(5), mask(7), other(4)}
		do(t, "set", setACL(dir, aclDefault, def...))
		hasACL(t, dir, aclDefault, def...)

		f := open(t, join(dir, "f"), os.O_CREATE|os.O_WRONLY) // 0644
		do(t, "close", f.Close())
		hasMode(t, join(dir, "f"), 0o644)
		hasACL(t, join(dir, "f"), aclAccess, owner(6), user(1, 6), ownGroup(5), mask(4), other(4))
		hasACL(t, join(dir, "f"), aclDefault)

		do(t, "mkdir", os.Mkdir(join(dir, "d"), 0o777))
		hasMode(t, join(dir, "d"), 0o774)
		hasACL(t, join(dir, "d"), aclAccess, def...)
		hasACL(t, join(dir, "d"), aclDefault, def...)

		do(t, "mkfifo", syscall.Mkfifo(join(dir, "p"), 0o666))
		hasMode(t, join(dir, "p"), 0o664)
		do(t, "symlink", os.Symlink("f", join(dir, "l")))
		hasMode(t, join(dir, "l"), 0o777)

		do(t, "set", setACL(dir, aclDefault, owner(7), ownGroup(5), other(5)))
		open(t, join(dir, "g"), os.O_CREATE|os.O_WRONLY)
		hasMode(t, join(dir, "g"), 0o644)
		hasACL(t, join(dir, "g"), aclAccess)

		do(t, "remove", syscall.Removexattr(dir, aclDefault))
		open(t, join(dir, "h"), os.O_CREATE|os.O_WRONLY)
		hasMode(t, join(dir, "h"), 0o600)
		do(t, "mkdir", os.Mkdir(join(dir, "e"), 0o777))
		hasMode(t, join(dir, "e"), 0o700)
		hasACL(t, join(dir, "e"), aclDefault)
	}},
	{name: "a file without a name gets the directory's list", run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		do(t, "set", setACL(dir, aclDefault, owner(7), user(1, 6), ownGroup(5), mask(6), other(0)))
		f := openNameless(t, dir, 0) // 0640
		do(t, "linkat", giveName(f, join(dir, "f")))
		hasMode(t, join(dir, "f"), 0o640)
		hasACL(t, join(dir, "f"), aclAccess, owner(6), user(1, 6), ownGroup(5), mask(4), other(0))
	}},
	{name: "who may set an access control list", root: true, run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		name := join(dir, "f")
		write(t, name, "x")
		list := []ace{owner(6), user(1, 4), ownGroup(4), mask(4), other(4)}
		as(stranger, group, func() { refused(t, "set by a stranger", setACL(name, aclAccess, list...), syscall.EPERM) })
		do(t, "chown", os.Chown(name, stranger, 0))
		as(stranger, group, func() { do(t, "set by the owner", setACL(name, aclAccess, list...)) })
		refused(t, "a default list of a file", setACL(name, aclDefault, list...), syscall.EACCES)
		do(t, "symlink", os.Symlink("f", join(dir, "l")))
		refused(t, "a list of a symbolic link",
			unix.Lsetxattr(join(dir, "l"), aclAccess, []byte(acl(list...)), 0), syscall.EOPNOTSUPP)
		for what, bad := range map[string][]ace{
			"without a mask":   {owner(6), user(1, 4), ownGroup(4), other(4)},
			"without an owner": {ownGroup(4), other(4)},
			"not in order":     {ownGroup(4), owner(6), other(4)},
			"with two groups":  {owner(6), ownGroup(4), ownGroup(4), other(4)},
		} {
			refused(t, "a list "+what, setACL(name, aclAccess, bad...), syscall.EINVAL)
		}
		hasACL(t, name, aclAccess, list...)
	}},
	{name: "a list set from outside of the group clears setgid", root: true, run: func(t *testing.T, dir string) {
		needACLs(t, dir)
		name := join(dir, "f")
		write(t, name, "x")
		do(t, "chown", os.Chown(name, stranger, 0))
		list := []ace{owner(7), user(1, 5), ownGroup(5), mask(5), other(5)}
		do(t, "chmod", syscall.Chmod(name, 0o2755))
		do(t, "set by root", setACL(name, aclAccess, list...))
		hasMode(t, name, 0o2755)
		as(stranger, group, func() { do(t, "set by the owner", setACL(name, aclAccess, list...)) })
		hasMode(t, name, 0o755)
		do(t, "chown", os.Chown(name, -1, group))
		do(t, "chmod", syscall.Chmod(name, 0o2755))
		as(stranger, group, func() { do(t, "set by an owner in the group", setACL(name, aclAccess, list...)) })
		hasMode(t, name, 0o2755)
	}},
	{name: "a chmod from outside of the group clears setgid", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		do(t, "chown", os.Chown(name, stranger, 0))
		as(stranger, group, func() { do(t, "chmod", syscall.Chmod(name, 0o2755)) })
		hasMode(t, name, 0o755)
	}},
}
