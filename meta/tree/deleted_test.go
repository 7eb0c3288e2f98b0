package tree

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// losses lists what a directory lost: name, second since the start of the test,
// nlink.
func (c *client) losses(dir meta.Ino, limit uint32) (text string, all []meta.Deleted) {
	c.t.Helper()
	req := &meta.Request{Op: meta.OpDeleted, Ino: dir, Limit: limit}
	var b strings.Builder
	for range 1000 {
		r := c.ok(req)
		for _, e := range r.Deleted {
			fmt.Fprintf(&b, "%s@%d:%d ", e.Name, e.At-946684800, e.Attr.Nlink)
		}
		all = append(all, r.Deleted...)
		if r.EOF {
			return strings.TrimSpace(b.String()), all
		}
		req = &meta.Request{Op: meta.OpDeleted, Ino: dir, Limit: limit, Name: r.Next.Name, At: r.Next.At}
	}
	c.t.Fatal("the list does not end")
	return "", nil
}

func (c *client) wantLosses(dir meta.Ino, want string) []meta.Deleted {
	c.t.Helper()
	got, all := c.losses(dir, 0)
	if got != want {
		c.t.Errorf("directory %d lost %q, want %q", dir, got, want)
	}
	if paged, _ := c.losses(dir, 1); paged != got {
		c.t.Errorf("one by one directory %d lost %q, at once %q", dir, paged, got)
	}
	return all
}

func restoring(dir meta.Ino, e meta.Deleted, as string) *meta.Request {
	return &meta.Request{Op: meta.OpRestore, Ino: dir, Name: e.Name, At: e.At, Ino2: e.Attr.Ino, Name2: as}
}

func TestDeletedNamesAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		c := w.hello("rw:")
		second := func() { time.Sleep(time.Second) }
		f, d := c.file(meta.Root, "f"), c.dir(meta.Root, "d")
		c.file(d, "child")
		c.file(meta.Root, "moved")
		c.file(meta.Root, "replaced")
		c.file(meta.Root, "by")
		c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "f2"})
		c.wantLosses(meta.Root, "")
		second() // 1
		c.ok(on(meta.OpUnlink, meta.Root, "f2"))
		c.ok(renaming(meta.Root, "moved", d, "moved", 0))
		c.ok(renaming(meta.Root, "by", meta.Root, "replaced", 0))
		second() // 2
		c.ok(on(meta.OpUnlink, d, "child"))
		c.ok(on(meta.OpUnlink, d, "moved"))
		second() // 3
		c.ok(on(meta.OpRmdir, meta.Root, "d"))
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		second() // 4
		c.file(meta.Root, "f")
		second() // 5
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.wantLosses(meta.Root, "d@3:0 f@3:0 f@5:0 f2@1:0 replaced@1:0")
		c.wantLosses(d, "child@2:0 moved@2:0")
	})
}

func TestADeletedFileIsRestoredWithAllItHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		w.run(t)
		c, other := w.hello("rw:"), w.hello("rw:")
		defer c.pinging(t)()
		defer other.pinging(t)()
		d := c.dir(meta.Root, "d")
		f := c.file(d, "f")
		c.write(f, 0, 4)
		c.ok(&meta.Request{Op: meta.OpSetxattr, Ino: f, Name: "user.a", Data: []byte("x")})
		c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: d, Name: "g"})
		time.Sleep(time.Second)
		was := c.snapshot()
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, d, "f"))
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, d, "g"))
		c.ok(on(meta.OpRmdir, meta.Root, "d"))
		time.Sleep(30 * time.Minute)

		dirs := c.wantLosses(meta.Root, "d@3:0")
		other.refused(syscall.ENOENT, on(meta.OpLookup, meta.Root, "d")) // it may cache that
		c.conn.told()
		other.conn.told()
		c.ok(restoring(meta.Root, dirs[0], ""))
		for name, conn := range map[string]*fakeConn{"the session that restores": c.conn, "another session": other.conn} {
			if told := fmt.Sprint(conn.told()); !strings.Contains(told, "[d]") {
				t.Errorf("%s was told %s", name, told)
			}
		}
		for _, e := range c.wantLosses(d, "f@2:0 g@3:0") {
			c.ok(restoring(d, e, ""))
		}
		time.Sleep(3 * time.Hour) // the collector looks at them
		got := c.snapshot()
		w.wantObjects(got.objects)
		plain := func(s string) string { // without what a change of an inode changes
			var out []string
			for _, line := range strings.Split(s, "\n") {
				words := strings.Fields(line)
				for i, word := range words {
					if strings.HasPrefix(word, "Change:") || strings.HasPrefix(word, "Mtime:") || strings.HasPrefix(word, "Ctime:") || strings.HasPrefix(word, "Nsec:") {
						words[i] = ""
					}
				}
				out = append(out, strings.Join(words, " "))
			}
			return strings.Join(out, "\n")
		}
		if plain(got.text) != plain(was.text) {
			t.Errorf("there was\n%s\nand now there is\n%s", was.text, got.text)
		}
		c.wantLosses(d, "")
	})
}

func TestWhatIsRestoredCountsAndOverwritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention, w.config.MaxBytes, w.config.MaxInodes = time.Hour, 4*testBlockSize, 4
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		c.write(f, 0, 3)
		d := c.dir(meta.Root, "d")
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(on(meta.OpRmdir, meta.Root, "d"))
		list := c.wantLosses(meta.Root, "d@1:0 f@1:0")
		g := c.file(meta.Root, "f")
		c.refused(syscall.EEXIST, restoring(meta.Root, list[1], ""))
		c.refused(syscall.EINVAL, restoring(meta.Root, list[1], "a/b"))
		c.refused(syscall.ENAMETOOLONG, restoring(meta.Root, list[1], long))
		c.write(g, 0, 2)
		c.refused(syscall.ENOSPC, restoring(meta.Root, list[1], "old"))
		c.ok(&meta.Request{Op: meta.OpSetattr, Ino: g, Set: meta.SetSize})
		c.ok(restoring(meta.Root, list[1], "old"))
		c.file(meta.Root, "last")
		c.refused(syscall.ENOSPC, restoring(meta.Root, list[0], ""))
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, meta.Root, "last"))
		c.ok(restoring(meta.Root, list[0], ""))
		c.refused(syscall.EEXIST, restoring(meta.Root, list[0], "again")) // a directory has one name
		wrong := list[1]
		wrong.At++
		c.refused(syscall.ENOENT, restoring(meta.Root, wrong, "x"))
		c.refused(syscall.ENOENT, restoring(d, list[1], "x"))
		if st := c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs; st.Bytes != 3*testBlockSize || st.Inodes != 4 {
			t.Errorf("the volume has %+v", st)
		}
		ro := w.hello("ro:")
		ro.wantLosses(meta.Root, "last@2:0")
		ro.refused(syscall.EROFS, restoring(meta.Root, list[1], "x"))
		time.Sleep(time.Second)
		p, _ := w.helloAt(-1)
		p.refused(syscall.EROFS, &meta.Request{Op: meta.OpDeleted, Ino: meta.Root})
	})
}

// What was deleted, restored and deleted again is part of the past for as long as
// the last deletion says, not the first.
func TestWhatIsDeletedTwiceIsKeptFromTheSecondTimeOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		c.write(f, 0, 4)
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		_, list := c.losses(meta.Root, 0)
		time.Sleep(30 * time.Minute)
		c.ok(restoring(meta.Root, list[0], ""))
		at := time.Now().Unix()
		time.Sleep(20 * time.Minute)
		was := c.snapshot()
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		time.Sleep(35 * time.Minute)
		p, reply := w.helloAt(at)
		if reply.Errno != 0 {
			t.Fatal(reply.Msg)
		}
		if got := p.snapshot(); got.text != was.text {
			t.Errorf("there was\n%s\nthe past says\n%s", was.text, got.text)
		}
		w.wantObjects(was.objects)
		time.Sleep(2 * time.Hour)
		if n := w.deletes(); n != 4 {
			t.Errorf("in the end %d objects were deleted", n)
		}
	})
}

// A directory that is removed with all that is in it comes back when it has been
// taken apart, and what is put into it then stays.
func TestARemovedTreeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		c := w.hello("rw:")
		d := c.dir(meta.Root, "d")
		s := c.dir(d, "s")
		c.write(c.file(d, "f"), 0, 2)
		c.write(c.file(s, "g"), 0, 2)
		time.Sleep(time.Second)
		was := c.snapshot()
		c.ok(on(meta.OpRemoveTree, meta.Root, "d"))
		top := c.wantLosses(meta.Root, "d@1:0")[0]
		c.refused(syscall.EBUSY, restoring(meta.Root, top, ""))

		// Somebody inside empties it before its turn comes.
		c.ok(on(meta.OpUnlink, d, "f"))
		c.ok(on(meta.OpUnlink, s, "g"))
		c.ok(on(meta.OpRmdir, d, "s"))
		c.ok(restoring(meta.Root, top, ""))
		c.file(d, "new")
		w.run(t)
		defer c.pinging(t)()
		time.Sleep(time.Minute)
		if names := c.names(d); names != "[new]" {
			t.Errorf("in the restored directory there is %s", names)
		}
		c.ok(on(meta.OpUnlink, d, "new"))

		// The collector takes it apart, and all of it comes back.
		for _, e := range c.wantLosses(d, "f@1:0 new@61:0 s@1:0") {
			if e.Name != "new" {
				c.ok(restoring(d, e, ""))
			}
		}
		_, inside := c.losses(s, 0)
		c.ok(restoring(s, inside[0], ""))
		time.Sleep(time.Second)
		c.ok(on(meta.OpRemoveTree, meta.Root, "d"))
		time.Sleep(30 * time.Second)
		restore := func(dir meta.Ino, name string) {
			t.Helper()
			_, all := c.losses(dir, 0)
			for i := len(all) - 1; i >= 0; i-- {
				if all[i].Name == name {
					c.ok(restoring(dir, all[i], ""))
					return
				}
			}
			t.Errorf("%s is not listed", name)
		}
		restore(meta.Root, "d")
		restore(d, "f")
		restore(d, "s")
		restore(s, "g")
		time.Sleep(3 * time.Hour)
		got := c.snapshot()
		w.wantObjects(got.objects)
		if fmt.Sprint(got.objects) != fmt.Sprint(was.objects) {
			t.Errorf("there were %v, and now there are %v", was.objects, got.objects)
		}
	})
}

// Whether the collector or who restores is first: what is there is whole.
func TestARestoreAndTheCollectorDoNotBothHaveAFile(t *testing.T) {
	won := map[bool]int{}
	for offset := -4 * time.Second; offset < 16*time.Second; offset += 500 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.keep, w.config.Retention = 3*time.Second, 20*time.Second
			w.start()
			w.run(t)
			c := w.hello("rw:")
			defer c.pinging(t)()
			f := c.file(meta.Root, "f")
			c.write(f, 0, 4)
			time.Sleep(time.Second)
			refs := c.snapshot().objects
			c.ok(on(meta.OpUnlink, meta.Root, "f"))
			c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
			_, list := c.losses(meta.Root, 0)
			time.Sleep(20*time.Second + offset)
			reply := c.do(restoring(meta.Root, list[0], ""))
			won[reply.Errno == 0]++
			time.Sleep(5 * time.Minute)
			switch reply.Errno {
			case 0:
				w.wantObjects(refs)
				if got := c.snapshot().objects; fmt.Sprint(got) != fmt.Sprint(refs) {
					t.Errorf("%v after the end of the retention: the file has %v, it had %v", offset, got, refs)
				}
			case syscall.ENOENT:
				if w.deletes() != 4 {
					t.Errorf("%v after the end of the retention: the file is gone, and %d objects were deleted", offset, w.deletes())
				}
			default:
				t.Errorf("restore: %v, %s", reply.Errno, reply.Msg)
			}
		})
	}
	if won[true] == 0 || won[false] == 0 {
		t.Errorf("restored %d times, refused %d times", won[true], won[false])
	}
}
