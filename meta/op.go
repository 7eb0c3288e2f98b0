package meta

import "strconv"

// opNames is in the order of the Op values.
var opNames = [...]string{
	OpHello:       "hello",
	OpPing:        "ping",
	OpBye:         "bye",
	OpLookup:      "lookup",
	OpGetattr:     "getattr",
	OpReaddir:     "readdir",
	OpBlocks:      "blocks",
	OpMake:        "make",
	OpLink:        "link",
	OpUnlink:      "unlink",
	OpRmdir:       "rmdir",
	OpRename:      "rename",
	OpSetattr:     "setattr",
	OpCommit:      "commit",
	OpPunch:       "punch",
	OpGetxattr:    "getxattr",
	OpListxattr:   "listxattr",
	OpSetxattr:    "setxattr",
	OpRemovexattr: "removexattr",
	OpStatfs:      "statfs",
	OpGetlk:       "getlk",
	OpSetlk:       "setlk",
	OpCancel:      "cancel",
	OpClose:       "close",
	OpCompound:    "compound",
	OpInval:       "inval",
	OpClone:       "clone",
	OpRemoveTree:  "removetree",
	OpDeleted:     "deleted",
	OpRestore:     "restore",
	OpReserve:     "reserve",
}

// String returns the operation's name, like "lookup".
func (op Op) String() string {
	if int(op) < len(opNames) && opNames[op] != "" {
		return opNames[op]
	}
	return "op(" + strconv.Itoa(int(op)) + ")"
}

// Changes reports whether the operation changes the file system, so that its
// request carries a Slot and a Seq. A compound does not: its parts do.
func (op Op) Changes() bool {
	switch op {
	case OpMake, OpLink, OpUnlink, OpRmdir, OpRename, OpSetattr, OpCommit,
		OpPunch, OpSetxattr, OpRemovexattr, OpClose, OpClone, OpRemoveTree, OpRestore:
		return true
	}
	return false
}
