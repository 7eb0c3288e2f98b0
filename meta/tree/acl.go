package tree

import (
	"encoding/binary"
	"syscall"

	"flexfs/meta"
)

// POSIX access control lists. The kernels of the clients enforce them. Here they
// are kept, as the extended attributes by which the kernels know them, in step
// with the mode, and handed on to what is made in a directory.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default" // of a directory: for what is made in it
)

// The value of such an attribute is that of setxattr(2): a version, 2 (u32), and
// the entries: tag(u16) permissions(u16) id(u32), little-endian.
const (
	aclVersion  = 2
	aclHeadLen  = 4
	aclEntryLen = 8
	aclNoID     = 1<<32 - 1 // of entries that are about nobody in particular
)

// Tags, in the order in which entries must be. Those marked + may be there more
// than once or not at all; there must be a mask if there is one of them.
const (
	aclOwner = 0x01
	aclUser  = 0x02 // +
	aclGroup = 0x04
	aclNamed = 0x08 // +, a group
	aclMask  = 0x10 // or not at all; bounds users, group and named groups
	aclOther = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// An acl is a list that is well formed: see parseACL.
type acl []aclEntry

// parseACL refuses what is not an access control list.
func parseACL(b []byte) (acl, error) {
	if len(b) < aclHeadLen || (len(b)-aclHeadLen)%aclEntryLen != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, refuse(syscall.EINVAL, "%d bytes are not an access control list of version %d", len(b), aclVersion)
	}
	var a acl
	for b = b[aclHeadLen:]; len(b) > 0; b = b[aclEntryLen:] {
		a = append(a, aclEntry{
			tag:  binary.LittleEndian.Uint16(b),
			perm: binary.LittleEndian.Uint16(b[2:]),
			id:   binary.LittleEndian.Uint32(b[4:]),
		})
	}
	return a, a.check()
}

// check refuses a list whose entries are not in order, or not complete.
func (a acl) check() error {
	seen := make(map[uint16]int)
	last := uint16(0)
	for _, e := range a {
		switch {
		case e.perm&^7 != 0:
			return refuse(syscall.EINVAL, "permissions %#o in an access control list", e.perm)
		case e.tag < last:
			return refuse(syscall.EINVAL, "an access control list is not in order: tag %#x after %#x", e.tag, last)
		}
		seen[e.tag]++
		last = e.tag
	}
	named := seen[aclUser] + seen[aclNamed]
	once := seen[aclOwner] == 1 && seen[aclGroup] == 1 && seen[aclOther] == 1 && seen[aclMask] <= 1
	known := 3 + named + seen[aclMask]
	if !once || known != len(a) || named > 0 && seen[aclMask] == 0 {
		return refuse(syscall.EINVAL, "an access control list of %d entries lacks some, or has some twice", len(a))
	}
	return nil
}

func (a acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, aclHeadLen+aclEntryLen*len(a)), aclVersion)
	for _, e := range a {
		if e.tag != aclUser && e.tag != aclNamed {
			e.id = aclNoID
		}
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// minimal reports whether a mode says the same.
func (a acl) minimal() bool { return len(a) == 3 }

// classes returns the entries that a mode shows: as its bits for the group those
// of the mask, if there is one.
func (a acl) classes() (owner, group, other *aclEntry) {
	for i := range a {
		switch e := &a[i]; e.tag {
		case aclOwner:
			owner = e
		case aclGroup, aclMask: // the mask comes later
			group = e
		case aclOther:
			other = e
		}
	}
	return owner, group, other
}

// mode returns the permissions that a mode shows.
func (a acl) mode() uint32 {
	owner, group, other := a.classes()
	return uint32(owner.perm)<<6 | uint32(group.perm)<<3 | uint32(other.perm)
}

// setMode makes the list show the permissions of mode.
func (a acl) setMode(mode uint32) {
	owner, group, other := a.classes()
	owner.perm, group.perm, other.perm = uint16(mode>>6&7), uint16(mode>>3&7), uint16(mode&7)
}

// acl returns a list of an inode, or nil.
func (c *change) acl(in *loaded, name string) (acl, error) {
	if in.Xattrs == 0 {
		return nil, nil
	}
	b, err := c.Get(c.v.xattrKey(in.Ino, name))
	if err != nil || b == nil {
		return nil, err
	}
	return parseACL(b)
}

// putACL carries out the setting of a list by a client. One that says no more
// than a mode is not kept.
func (c *change) putACL(in *loaded, name string, value []byte) error {
	a, err := parseACL(value)
	switch {
	case err != nil:
		return err
	case in.IsSymlink():
		return refuse(syscall.EOPNOTSUPP, "a symbolic link has no access control list")
	case name == aclDefault && !in.IsDir():
		return refuse(syscall.EACCES, "only directories have a default access control list")
	case name == aclDefault:
		return c.putXattr(in, name, a.encode())
	}
	in.Mode = in.Mode&^0o777 | a.mode()
	if c.req.Set&meta.SetKillSgid != 0 {
		in.Mode &^= syscall.S_ISGID
	}
	if a.minimal() {
		return c.putXattr(in, name, nil)
	}
	return c.putXattr(in, name, a.encode())
}

// setMode gives an inode other permissions, and makes its list show them.
func (c *change) setMode(in *loaded, mode uint32) error {
	in.Mode = in.Mode&typeMask | mode&permMask
	a, err := c.acl(in, aclAccess)
	if err != nil || a == nil {
		return err
	}
	a.setMode(mode)
	return c.putXattr(in, aclAccess, a.encode())
}

// inherit gives a new inode what its directory has for it: lists, narrowed to the
// permissions that were asked for, or if there is none those permissions without
// the caller's umask.
func (c *change) inherit(in, dir *loaded) error {
	if in.IsSymlink() {
		return nil
	}
	a, err := c.acl(dir, aclDefault)
	if err != nil {
		return err
	}
	if a == nil {
		in.Mode &^= c.req.Umask & 0o777
		return nil
	}
	if in.IsDir() {
		if err := c.putXattr(in, aclDefault, a.encode()); err != nil {
			return err
		}
	}
	in.Mode &= a.mode() | ^uint32(0o777)
	a.setMode(in.Mode)
	if a.minimal() {
		return nil
	}
	return c.putXattr(in, aclAccess, a.encode())
}
