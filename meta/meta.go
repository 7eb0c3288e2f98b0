// Package meta is the metadata service as its clients see it: what net/http is
// to documents, this package is to names, attributes, locks and block maps.
//
// A [Client] carries a [Request] to a [Handler], which answers with a [Reply].
// The wire between them (see docs/format/wire.md) is the one place for
// retries, request numbers, deadlines, faults and versions. Package meta/tree is the Handler that keeps a
// file system; package metatest examines any of them.
package meta

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// Ino is an inode number. Numbers are never given out twice within a volume.
type Ino uint64

// Root is the inode of a volume's top directory.
const Root Ino = 1

// Limits of a volume. A request beyond one is refused with the errno named.
const (
	MaxName   = 255      // bytes of one name (ENAMETOOLONG)
	MaxTarget = 4095     // bytes of a symbolic link's target (ENAMETOOLONG)
	MaxXattr  = 64 << 10 // bytes of one extended attribute's value (E2BIG)
	MaxLinks  = 65000    // hard links to one inode (EMLINK)
	MaxInline = 64 << 10 // bytes of a file's contents kept with its metadata
	MaxSize   = 16 << 40 // bytes of a file (EFBIG)
	MaxCommit = 1000     // blocks in one OpCommit or OpClone (EINVAL)
)

// A Time is a moment since 1970 in UTC. Sec may be negative; 0 <= Nsec < 1e9.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts t.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Time converts t to the local time zone.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Compare returns -1, 0 or +1 as t is before, at or after u.
func (t Time) Compare(u Time) int { return t.Time().Compare(u.Time()) }

// An Attr holds what stat(2) tells about an inode, and a little more.
type Attr struct {
	Ino   Ino
	Mode  uint32 // file type and permissions, as in st_mode
	Uid   uint32
	Gid   uint32
	Nlink uint32
	Rdev  uint32
	Size  uint64 // bytes; for a directory the number of its entries
	Bytes uint64 // stored for it, holes excluded, before compression; shared blocks count in each file

	Xattrs uint32 // how many extended attributes it has

	Atime, Mtime, Ctime, Btime Time

	// Change grows with every change of the inode, Data with every change of
	// a file's contents or size. Equal means unchanged.
	Change uint64
	Data   uint64

	Parent Ino    // of a directory: what ".." is
	Target string // of a symbolic link
}

// IsDir, IsRegular and IsSymlink tell the file type.
func (a *Attr) IsDir() bool     { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }
func (a *Attr) IsRegular() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFREG }
func (a *Attr) IsSymlink() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFLNK }

// An Entry is a name in a directory and what it stands for. If the listing was
// not asked for attributes only Ino and the type in Mode are set in Attr.
type Entry struct {
	Name  string
	Attr  Attr
	Block *Block // as in the answer to an OpLookup, if the listing was asked for it
}

// A Gen is the version of a block: the session that wrote it and its number
// there. Zero is no version. It is the Gen of a store.Key.
type Gen struct {
	Session uint64
	Seq     uint64
}

// A Block says where one block of a file's contents is. A block without a
// record is a hole and reads as zeros, and so does what lies between Len and
// the block size. Block 0 of a small file has its bytes here instead of in the
// bucket (Inline).
type Block struct {
	Index uint32 // offset in the file / block size
	Gen   Gen
	Len   uint32 // valid plain bytes; what the object has beyond them is not part of the file

	// What of Len is not stored. Not if Inline.
	Holes []Hole

	// Where the object was made, if not here: zero is here. See [Block.Object].
	// The service says it; a commit cannot.
	Origin Origin

	Inline bool
	Data   []byte // if Inline: the contents, at most Len bytes long

	// In an OpCommit: the version that this one was made from, and that must
	// still be current, or the commit is refused with ESTALE. Zero: there was
	// none. Ignored if Whole is set: the writer replaced every byte of the
	// block that is within the file. BaseLen, if not 0, is the Len that the
	// Base had, and must still have, and BaseHoles are its holes: a cut of the
	// file and a punch change a block without giving it a new version.
	//
	// A block whose Gen is its Base only shows less of it: a smaller Len, more
	// Holes. One with neither Gen nor Len becomes a hole.
	Base      Gen
	BaseLen   uint32
	BaseHoles []Hole
	Whole     bool
}

// A Deleted is a name that a directory lost, and what it stood for. That has no
// name now (Nlink 0), or fewer than it had.
type Deleted struct {
	Name string
	At   int64 // the second since 1970
	Attr Attr  // as it is now
}

// A Lock is an advisory lock or the question for one. Range locks of fcntl(2)
// and whole-file locks of flock(2) do not see each other.
type Lock struct {
	Type  uint32 // syscall.F_RDLCK, F_WRLCK or F_UNLCK
	Flock bool
	Owner uint64 // within the session
	Pid   uint32
	Start uint64
	End   uint64 // inclusive; 1<<63-1 is the end of the file wherever it is

	// Alone makes it exclude every range lock of another session, whatever their
	// types and ranges. Mounts set it for files that programs share by mapping
	// them: two mounts cannot.
	Alone bool
}

// A Statfs is the space of a volume. A zero limit is no limit.
type Statfs struct {
	Bytes, MaxBytes   uint64
	Inodes, MaxInodes uint64
}

// An Inval tells a client what it must no longer believe. See [OpInval].
type Inval struct {
	Ino     Ino
	Attr    bool     // attributes, xattrs
	Data    bool     // contents: block map, pages
	Entries bool     // the listing of this directory
	Names   []string // these names in this directory, present or absent, and so its listing
	// If nothing is set: only that the directory is delegated.
}

// A Volume is what a session is told about its volume.
type Volume struct {
	ID        string // UUID
	Name      string
	BlockSize uint32
	InlineMax uint32 // largest contents kept inline, in bytes; at most MaxInline
	ReadOnly  bool   // the session may not change anything
	At        int64  // the session sees the volume as it was at the end of this second since 1970; 0: as it is
}

// An Op is the verb of a [Request]. Values are part of the wire format: add at
// the end, never reorder.
type Op uint16

// The operations, each with the fields of Request it reads -> fields of Reply
// it sets. Those marked * change something: they carry Slot and Seq, and are
// done once however often they are sent.
const (
	_ Op = iota

	// OpHello opens or resumes a session and must be the first request on a
	// connection. Token (admin's ticket), Volume (its UUID), Session and Secret
	// (0 and "": a new session), Name (of the client, for people), Version (the
	// newest protocol it speaks), Inos (open files, of a session that is resumed or
	// was lost), Locks (held, when resuming) -> Session, Secret, Version (to speak), Lease, VolumeInfo.
	// Partial: there is more than one request should have of Inos and Locks; they are
	// taken note of, and the session has returned only with a request that is not Partial,
	// the next or a later one of the same connection, which names the session. Seq grows
	// with each connection of a client: a request with a smaller one than the session had
	// comes too late and is refused with ECONNABORTED.
	// A session that is gone is refused with ESTALE. At (the second since 1970
	// whose end is to be seen; negative: so many seconds ago): the session is of
	// the past, where nothing changes. It has no locks. What lies in the future
	// is refused with EINVAL, what is not kept with ESTALE, and so is every
	// operation of such a session from then on.
	OpHello

	// OpPing keeps the session. Each answered request does.
	OpPing

	// OpBye ends the session: its locks are released, its open files closed.
	OpBye

	// OpLookup: Ino (directory), Name -> Attr, Block (block 0 of a file of one
	// block, unless it is a hole). ENOENT grants a lease on the absence.
	OpLookup

	// OpGetattr: Ino -> Attr, Block (as in OpLookup).
	OpGetattr

	// OpReaddir: Ino, Name (start after it; "" is the start), Limit (entries),
	// Plus (with attributes), Size (with attributes and blocks, as in OpLookup,
	// until these have so many bytes) -> Entries in the order of their names'
	// bytes, EOF, Attr (of the directory). "." and ".." are not among them.
	OpReaddir

	// OpBlocks: Ino, Index (first), Limit (records) -> Blocks, ascending,
	// without holes; EOF if there are no more. Attr.
	OpBlocks

	// OpMake* creates an inode and its name: a file, directory, symbolic link
	// or special file as Mode says. Ino (directory), Name, Mode, Uid, Gid, Rdev,
	// Umask, Data (a link's target), Time, Exist (an existing regular file is the
	// answer instead of EEXIST) -> Attr, Block, Parent, Existed. A file without
	// a Name is only in use, by this session, until an OpLink gives it a name or
	// an OpClose ends it: Nlink 0, no Parent.
	// In a setgid directory the group, and a directory's setgid bit, are
	// inherited, and so are default ACLs; Umask counts where there are none.
	//
	// A regular file may be made with what it was given before the service heard
	// of it: Ino2 (its number, of an OpReserve), Time (when it was made, and so when
	// the directory was changed), Attr (its Atime, Mtime and Ctime, if the last is
	// set), Blocks and Size as in OpCommit.
	// If the number has been made already, nothing is done: Existed.
	//
	// Delegate: the client asks to have the directory delegated -> Delegated. Then
	// nobody but its session sees or changes what is in the directory without an
	// OpInval of it before, which ends that; so it may make regular files there
	// first, and tell of them later.
	OpMake

	// OpLink*: Ino (what), Ino2 (directory), Name, Time -> Attr, Parent.
	OpLink

	// OpUnlink* removes a name that is not a directory's: Ino (directory), Name,
	// Time, Delegate (as of an OpMake) -> Attr (of what it named; Nlink 0 if that
	// was the last), Parent.
	OpUnlink

	// OpRmdir* removes an empty directory: Ino (parent), Name, Time -> Parent,
	// Replaced (the directory, Nlink 0).
	OpRmdir

	// OpRename*: Ino (from directory), Name, Ino2 (to directory), Name2, Flags
	// (RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4; Uid and Gid of
	// the whiteout), Time -> Attr (moved), Parent, Parent2, Replaced (what was
	// there, Nlink 0 if gone).
	OpRename

	// OpSetattr*: Ino, Set (which), Attr (values), Time -> Attr. Size cuts or
	// extends the file.
	OpSetattr

	// OpCommit* makes written blocks part of the file: Ino, Blocks (new
	// records), Size (the file is at least this long now), Time (new mtime,
	// ctime), Set and Attr as in OpSetattr, after it, Size excluded -> Attr.
	// ESTALE: a Base is not current; nothing was done.
	OpCommit

	// OpPunch* makes blocks Index <= i < Index2 holes: Ino, Time -> Attr.
	OpPunch

	// OpGetxattr: Ino, Name -> Data. OpListxattr: Ino -> Names.
	// OpSetxattr*: Ino, Name, Data, Flags (XATTR_CREATE 1, XATTR_REPLACE 2),
	// Set (SetKillSgid), Time. OpRemovexattr*: Ino, Name, Time. The last two ->
	// Attr. system.posix_acl_access and system.posix_acl_default are POSIX ACLs,
	// in the form that setxattr(2) has for them. An access ACL and the mode are
	// kept in step; one that says no more than a mode is not kept.
	OpGetxattr
	OpListxattr
	OpSetxattr
	OpRemovexattr

	// OpStatfs -> Statfs.
	OpStatfs

	// OpGetlk: Ino, Lock -> Lock (one in the way, or of type F_UNLCK).
	// OpSetlk: Ino, Lock, Wait: takes, changes or (F_UNLCK) releases a lock;
	// EAGAIN if it is held by another, unless Wait is set. It is safe to
	// repeat. EINTR: cancelled by OpCancel.
	OpGetlk
	OpSetlk

	// OpCancel: ID of a waiting OpSetlk of the same connection. No harm if it
	// is done.
	OpCancel

	// OpClose* tells that the client's last use of unlinked inodes has ended:
	// Inos. Only those that an OpInval answer or a Nlink of 0 said were in use
	// need it.
	OpClose

	// OpCompound does Ops in order, each in a transaction of its own, until one
	// fails -> Replies (of those done and of the one that failed). In each, an
	// Ino of 0 is the Ino of the last Attr before it. When it is answered, all
	// that was done is on stable storage: the parts wait for that together, at
	// the end, so a compound of several changes takes one sync. Others may see
	// a part before; who repeats a part, or asks for its answer, waits.
	OpCompound

	// OpInval goes from server to client: Invals. The client drops what it and
	// its kernel cached of them, makes what it has not told of yet in those that
	// were delegated to it, and then answers -> Inos (those of them that
	// have open files, so that it is told again). The change that caused it is
	// acknowledged only after that, or when the client's lease has ended.
	OpInval

	// OpClone* makes blocks of a file the same as those of another or of the
	// same file, without a copy of their objects: Ino (from), Index (first), Ino2
	// (to), Index2 (first), Limit (blocks, at most MaxCommit), Size (the file
	// written to is at least this long now, and its last block is cut here),
	// Time -> Attr (of the file written to). Holes become holes. EINVAL: they
	// overlap, or a block is inline. ESTALE: Size is within the last block, and
	// the file has bytes after it, or the one cloned from ends before what is to
	// be cloned; nothing was done.
	OpClone

	// OpRemoveTree* removes a directory with all that is in it: Ino (parent),
	// Name, Time -> Parent, Replaced (the directory, Nlink 0). It has no name
	// any more when that is answered. What is in it goes in the background;
	// files that are in use live until their last close, and what has another
	// name elsewhere keeps that.
	OpRemoveTree

	// OpDeleted: Ino (directory, which may itself be deleted), Name and At (go on
	// after that second of that name), Limit -> Deleted, in the order of names and
	// then of time; EOF, or Next: how to go on. Attr (of the directory). What is
	// told may not be cached.
	OpDeleted

	// OpRestore* gives an inode back a name that was deleted: Ino (directory), Name
	// and At (what was deleted and when), Ino2 (what that was), Name2 (the new name;
	// "": the same one) -> Attr, Parent. A directory comes back empty.
	// EBUSY: an OpRemoveTree is still at work in it. The session itself is sent the
	// OpInval too.
	OpRestore

	// OpReserve: Limit -> Inos: two, the first of some inode numbers that nobody
	// else is given, and the one after the last. They need not be used.
	OpReserve
)

// SetMask says which values an OpSetattr changes.
type SetMask uint32

// Bits of a SetMask. Part of the wire format.
const (
	SetMode SetMask = 1 << iota
	SetUid
	SetGid
	SetSize
	SetAtime
	SetMtime
	SetKillPriv // clear setuid, and setgid if group-executable, as a write by an ordinary user does
	SetKillSgid // clear setgid; also in an OpSetxattr of an access ACL by somebody who is not in the group
	SetGrow     // with SetSize: a file that is larger stays so
)

// A Request is one operation. Which fields count is said at each Op; the others
// are zero. A Handler may keep the Request and its slices.
type Request struct {
	Op   Op
	Slot uint16 // see Seq
	Seq  uint32 // in a change: number within Slot, from 1; a repeated number gets the first answer. See OpHello, too

	Ino, Ino2      Ino
	Name, Name2    string
	Mode, Uid, Gid uint32
	Rdev           uint32
	Flags          uint32
	Set            SetMask
	Attr           Attr
	Time           Time // of a commit, by the server's clock as the client knows it; zero, and in other changes: now
	Size           uint64
	Index, Index2  uint32
	Limit          uint32
	Data           []byte
	Blocks         []Block
	Lock           Lock
	Plus           bool
	Exist          bool
	Wait           bool
	ID             uint64
	Inos           []Ino
	Locks          []InoLock
	Invals         []Inval
	Ops            []Request
	Umask          uint32
	Delegate       bool

	// Of OpHello.
	Token, Volume, Secret string
	Session               uint64
	Version               uint32
	At                    int64
	Partial               bool
}

// An InoLock is a lock and the inode it is on.
type InoLock struct {
	Ino  Ino
	Lock Lock
}

// A Reply answers a Request. If Errno is not 0 the operation was not done, and
// the other fields do not count unless the Op says so.
type Reply struct {
	Errno syscall.Errno
	Msg   string // for people, if Errno is set

	// Cache is set if the client may cache what it was told: it has a lease on
	// it and will be sent an OpInval.
	Cache bool

	Attr            Attr // Attr.Ino is 0 if not set
	Parent, Parent2 Attr // directories after the change
	Replaced        Attr
	Block           *Block
	Blocks          []Block
	Entries         []Entry
	EOF             bool
	Existed         bool
	Delegated       bool
	Data            []byte
	Names           []string
	Lock            Lock
	Statfs          Statfs
	Inos            []Ino
	Replies         []Reply
	Deleted         []Deleted
	Next            Deleted

	// Of OpHello.
	Session    uint64
	Secret     string
	Version    uint32
	Lease      time.Duration
	VolumeInfo Volume

	Time Time // the server's, in an answer to OpHello and OpPing
}

// An Error is an operation that the metadata service refused. The errno is the
// service's choice and goes to the program as it is; errors.Is finds
// fs.ErrExist and its like through it.
type Error struct {
	Op    Op
	Errno syscall.Errno
	Msg   string
	Cache bool // of the Reply: an absence may be cached
}

func (e *Error) Error() string {
	if e.Msg != "" {
		return fmt.Sprintf("meta: %v: %s", e.Op, e.Msg)
	}
	return fmt.Sprintf("meta: %v: %v", e.Op, e.Errno)
}

func (e *Error) Unwrap() error { return e.Errno }

// A Handler answers requests, concurrently. conn is where the request came
// from, the same value for all requests of one connection. ctx ends when the
// connection does or when the request is cancelled.
type Handler interface {
	ServeMeta(ctx context.Context, conn Conn, req *Request) *Reply

	// Closed tells that a connection is gone. No request of it follows.
	Closed(conn Conn)
}

// A Conn is a Handler's way back to a client.
type Conn interface {
	// Push sends a request to the client and returns its reply.
	Push(ctx context.Context, req *Request) (*Reply, error)

	// Close breaks the connection.
	Close() error

	// String names the client for people: its address.
	String() string
}
