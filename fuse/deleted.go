package fuse

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// Deleted files are listed and restored by way of extended attributes of the
// directory that they were in, so that whoever may use the mount needs nothing
// else. The kernel wants read permission for the one and write permission for
// the other; what more is wanted is looked at here.
const (
	// DeletedName is read: a [DeletedPage]. What follows it says which.
	DeletedName = "flexfs.deleted"

	// RestoreName is set to a [Restore].
	RestoreName = "flexfs.restore"
)

// A DeletedPage is a part of the names that a directory lost, as JSON.
type DeletedPage struct {
	Entries []DeletedEntry `json:"entries"`
	Next    string         `json:"next,omitempty"` // the attribute that has the next part; "": there is none
}

// A DeletedEntry is a name that was deleted.
type DeletedEntry struct {
	Name  []byte    `json:"name"` // any bytes
	At    int64     `json:"at"`   // the second since 1970
	Ino   meta.Ino  `json:"ino"`
	Mode  uint32    `json:"mode"`
	Uid   uint32    `json:"uid"`
	Gid   uint32    `json:"gid"`
	Links uint32    `json:"links"` // names that it still has
	Size  uint64    `json:"size"`
	Mtime meta.Time `json:"mtime"`
	List  string    `json:"list,omitempty"` // of a directory: the attribute that has what was deleted from it
}

// A Restore says which name is to be given back.
type Restore struct {
	Name []byte   `json:"name"`
	At   int64    `json:"at"`
	Ino  meta.Ino `json:"ino"`
	As   []byte   `json:"as,omitempty"` // the new name; empty: the same
}

// deletedPerPage bounds a page to 64 KiB, as extended attributes have.
const deletedPerPage = 64

// lossLists are the parts of lists of deleted names that were promised.
type lossLists struct {
	mu   sync.Mutex
	last uint64
	list [maxLossLists]lossList // number i at i % maxLossLists
}

const maxLossLists = 4096

// A lossList is the rest of a list: what dir lost after a second in a name, for
// those who may list top.
type lossList struct {
	num  uint64
	top  meta.Ino // the directory that has the attribute
	dir  meta.Ino
	name string
	at   int64
}

// promise returns the attribute that has a lossList. The oldest are forgotten.
func (l *lossLists) promise(k lossList) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	k.num = l.last
	l.list[k.num%maxLossLists] = k
	return DeletedName + "." + strconv.FormatUint(k.num, 10)
}

// find returns the lossList that an attribute of top has.
func (l *lossLists) find(top meta.Ino, name string) (lossList, error) {
	suffix := strings.TrimPrefix(name, DeletedName)
	if suffix == "" {
		return lossList{top: top, dir: top}, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(suffix, "."), 10, 64)
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[n%maxLossLists]
	if err != nil || n == 0 || k.num != n || k.top != top {
		return lossList{}, syscall.ENODATA
	}
	return k, nil
}

// getDeleted answers the attribute that lists what was deleted.
func (c *call) getDeleted(op *fuseops.GetXattrOp) error {
	fs := c.fs
	k, err := fs.lossLists.find(meta.Ino(op.Inode), op.Name)
	if err != nil {
		return err
	}
	rep, err := c.do(&meta.Request{Op: meta.OpDeleted, Ino: k.dir, Name: k.name, At: k.at, Limit: deletedPerPage})
	if err != nil {
		return err
	}
	if !mayUse(&rep.Attr, &op.OpContext, 0o5) {
		return syscall.EACCES
	}
	var page DeletedPage
	for i := range rep.Deleted {
		e := &rep.Deleted[i]
		page.Entries = append(page.Entries, fs.deletedEntry(k.top, e))
	}
	if !rep.EOF {
		page.Next = fs.lossLists.promise(lossList{top: k.top, dir: k.dir, name: rep.Next.Name, at: rep.Next.At})
	}
	b, err := json.Marshal(page)
	if err != nil {
		return err
	}
	return give(b, op.Dst, &op.BytesRead)
}

func (fs *FS) deletedEntry(top meta.Ino, e *meta.Deleted) DeletedEntry {
	a := &e.Attr
	out := DeletedEntry{
		Name: []byte(e.Name), At: e.At, Ino: a.Ino, Mode: a.Mode, Uid: a.Uid, Gid: a.Gid, Links: a.Nlink, Size: a.Size, Mtime: a.Mtime,
	}
	if a.IsDir() {
		out.List = fs.lossLists.promise(lossList{top: top, dir: a.Ino})
	}
	return out
}

// setRestore restores what was deleted from a directory. Who asks must be the
// owner of it, or root.
func (c *call) setRestore(op *fuseops.SetXattrOp) error {
	var want Restore
	if err := json.Unmarshal(op.Value, &want); err != nil || want.Ino == 0 || want.At == 0 {
		return syscall.EINVAL
	}
	if uid := op.OpContext.Uid; uid != 0 {
		dir, err := c.do(&meta.Request{Op: meta.OpGetattr, Ino: meta.Ino(op.Inode)})
		if err != nil {
			return err
		}
		what, err := c.do(&meta.Request{Op: meta.OpGetattr, Ino: want.Ino})
		if err != nil {
			return err
		}
		switch {
		case !mayUse(&dir.Attr, &op.OpContext, 0o3):
			return syscall.EACCES
		case what.Attr.Uid != uid:
			return syscall.EPERM
		}
	}
	_, err := c.do(&meta.Request{
		Op: meta.OpRestore, Ino: meta.Ino(op.Inode), Name: string(want.Name), At: want.At, Ino2: want.Ino, Name2: string(want.As),
	})
	return err
}

// mayUse tells whether the permission bits of an inode let a caller do what want
// says: 4 read, 2 write, 1 search. It is for what the kernel does not check.
func mayUse(a *meta.Attr, who *fuseops.OpContext, want uint32) bool {
	bits := a.Mode
	switch {
	case who.Uid == 0:
		return true
	case who.Uid == a.Uid:
		bits >>= 6
	case who.Gid == a.Gid || slices.Contains(groupsOf(who.Pid), a.Gid):
		bits >>= 3
	}
	return bits&want == want
}

// groupsOf returns the supplementary groups of a process, which the kernel does
// not tell. A process that is not found has none.
func groupsOf(pid uint32) (groups []uint32) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		list, ok := strings.CutPrefix(lines.Text(), "Groups:")
		if !ok {
			continue
		}
		for _, field := range strings.Fields(list) {
			if n, err := strconv.ParseUint(field, 10, 32); err == nil {
				groups = append(groups, uint32(n))
			}
		}
	}
	return groups
}
