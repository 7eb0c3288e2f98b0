package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A state is what a model knows of a block.
type state int

const (
	gone    state = iota // deleted, or never there
	waiting              // acknowledged as dirty: must be here
	stored               // in the store below: must be readable
	unknown              // somebody is at work on it, or failed
)

// A model is a Disk on fake files with what must be true of it. Some goroutines
// work on it, each on its own blocks.
type model struct {
	t     *testing.T
	files *fakeFiles
	next  *mem.Store
	cfg   DiskConfig
	d     *Disk

	mu      sync.Mutex
	rand    *rand.Rand
	state   [60]state
	stopped bool
	acks    int
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, files: newFakeFiles(), next: mem.New(t), rand: rand.New(rand.NewPCG(seed, 0))}
	m.cfg = DiskConfig{Quota: Quota{Bytes: 40 * charge(8000)}, Verify: verifyData, Whole: true}
	m.open()
	return m
}

func (m *model) open() {
	m.t.Helper()
	d, err := newDisk(m.next, m.cfg, m.files)
	if err != nil {
		m.t.Fatal(err)
	}
	d.wg.Go(d.tend)
	m.d, m.stopped = d, false
	<-d.scanned
	m.files.setFail(func(string, string) error {
		time.Sleep(time.Duration(m.intn(1000)) * time.Microsecond)
		return nil
	})
}

func (m *model) close() {
	m.t.Helper()
	if err := m.d.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *model) intn(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rand.IntN(n)
}

// verifyData is for blocks from blockData.
func verifyData(key store.Key, b []byte) (uint32, error) {
	for i := range len(model{}.state) {
		if storetest.Key(i) == key && bytes.Equal(b, blockData(i)) {
			return store.Sum(context.Background(), b), nil
		}
	}
	return 0, errors.New("wrong bytes")
}

func blockData(i int) []byte { return storetest.Data(storetest.Key(i), 4000+i*100) }

// set notes the state of a block. It returns the one before, and reports false
// when the power is off.
func (m *model) set(i int, s state) (before state, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before = m.state[i]
	if !m.stopped {
		m.state[i] = s
	}
	return before, !m.stopped
}

func (m *model) get(i int) (state, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state[i], !m.stopped
}

// work does n operations on the blocks whose numbers are g modulo of.
func (m *model) work(g, of, n int) {
	for range n {
		i := g + of*m.intn(len(m.state)/of)
		switch m.intn(10) {
		case 0, 1, 2, 3:
			m.putDirty(i)
		case 4, 5, 6:
			m.upload(i)
		case 7:
			m.remove(i)
		default:
			m.read(i)
		}
	}
}

func (m *model) putDirty(i int) {
	before, ok := m.get(i)
	if before == gone {
		_, ok = m.set(i, unknown)
	}
	if !ok {
		return
	}
	ctx := m.t.Context()
	if m.intn(5) == 0 { // is not waited for
		c, cancel := context.WithTimeout(ctx, time.Duration(m.intn(3000))*time.Microsecond)
		defer cancel()
		ctx = c
	}
	err := m.d.PutDirty(ctx, storetest.Key(i), blockData(i))
	switch {
	case err == nil:
		m.set(i, waiting)
		m.mu.Lock()
		m.acks++
		m.mu.Unlock()
	case before == gone:
		if m.d.IsDirty(storetest.Key(i)) {
			m.t.Errorf("block %d is dirty after error %v", i, err)
		}
		m.set(i, gone)
	}
	if err != nil && !errors.Is(err, ErrNoRoom) && ctx.Err() == nil {
		m.t.Errorf("PutDirty: %v", err)
	}
}

func (m *model) upload(i int) {
	if s, ok := m.get(i); !ok || s != waiting {
		return
	}
	if err := m.next.Put(m.t.Context(), storetest.Key(i), blockData(i)); err != nil {
		m.t.Error(err)
	}
	if _, ok := m.set(i, stored); ok {
		m.d.Clean(storetest.Key(i))
	}
}

func (m *model) remove(i int) {
	if _, ok := m.set(i, unknown); !ok {
		return
	}
	if err := m.d.Delete(m.t.Context(), storetest.Key(i)); err != nil {
		m.t.Error(err)
	}
	m.set(i, gone)
}

func (m *model) read(i int) {
	s, _ := m.get(i)
	got, err := m.d.Get(m.t.Context(), storetest.Key(i), 0, -1)
	m.want(i, s, got, err)
}

func (m *model) want(i int, s state, got []byte, err error) {
	m.t.Helper()
	switch {
	case s == unknown:
	case s == gone && !errors.Is(err, store.ErrNotExist):
		m.t.Errorf("block %d was deleted: Get returned error %v", i, err)
	case s != gone && err != nil:
		m.t.Errorf("block %d in state %d: %v", i, s, err)
	case s != gone && !bytes.Equal(got, blockData(i)):
		m.t.Errorf("block %d: %d wrong bytes", i, len(got))
	}
}

// check compares everything, when nobody is at work.
func (m *model) check() {
	m.t.Helper()
	dirty := make(map[store.Key]bool)
	for _, b := range m.d.Dirty() {
		dirty[b.Key] = true
	}
	for i, s := range m.state {
		key := storetest.Key(i)
		if dirty[key] != (s == waiting) || m.d.IsDirty(key) != (s == waiting) {
			m.t.Errorf("block %d is dirty: %v, want %v", i, dirty[key], s == waiting)
		}
		if s == waiting {
			got, err := m.d.Get(store.WithLocal(m.t.Context()), key, 0, -1)
			m.want(i, s, got, err)
		}
		m.read(i)
	}
	m.d.idle()
	checkFiles(m.t, m.d, m.files)
}

// checkFiles wants the index to be what is there.
func checkFiles(t *testing.T, d *Disk, f *fakeFiles) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := int64(0)
	for _, e := range d.index {
		n := f.m[e.name()]
		if n == nil || int64(len(n.data)) != e.size {
			t.Errorf("the file %s is not there, or has another size", e.name())
		}
		if e.queue == dirty && !e.inDirty {
			t.Errorf("the block %v is dirty and not in the dirty folder", e.key)
		}
		sum += charge(e.size)
	}
	there := f.bytes
	for name, n := range f.m {
		switch path.Dir(name) {
		case damagedName:
			sum += charge(int64(len(n.data)))
		case tmpName: // it could not be removed; the next start does it
			there -= charge(int64(len(n.data)))
		}
	}
	if len(d.busy) > 0 || d.used != sum || there != sum {
		t.Errorf("%d files are held; %d bytes are counted, %d indexed, %d there", len(d.busy), d.used, sum, there)
	}
	if quota := d.limits.quota; d.used > quota || f.peak > quota {
		t.Errorf("%d bytes are used, %d were, %d are allowed", d.used, f.peak, quota)
	}
}

// cut stops the machine at a random moment, and starts it again when the workers
// have noticed.
func (m *model) cut(workers *sync.WaitGroup) {
	m.t.Helper()
	time.Sleep(time.Duration(m.intn(60_000)) * time.Microsecond)
	m.mu.Lock()
	m.stopped = true
	after := m.files.cut(m.rand)
	m.mu.Unlock()
	workers.Wait() // what was under way ends, on files that nobody sees any more
	m.close()
	m.files = after
	m.open()
	m.survived()
}

// survived checks what a power cut left, and learns what chance decided.
func (m *model) survived() {
	m.t.Helper()
	for i, s := range m.state {
		key := storetest.Key(i)
		isDirty := m.d.IsDirty(key)
		if s == waiting && !isDirty {
			m.t.Errorf("block %d was acknowledged and is not dirty after the power cut", i)
		}
		if isDirty {
			got, err := m.d.Get(store.WithLocal(m.t.Context()), key, 0, -1)
			m.want(i, waiting, got, err)
			m.state[i] = waiting
			continue
		}
		if s == stored || s == waiting {
			m.read(i)
			continue
		}
		m.remove(i) // it may be below, or have a copy here that came back
	}
	if s := m.d.Stats(); s.DirtyLost > 0 {
		m.t.Errorf("%d dirty blocks were damaged", s.DirtyLost)
	}
}

// TestDirtyBlocksSurviveRestartsAndPowerCuts does random operations from several
// goroutines, and stops the machine in the middle of them, or restarts the Disk
// after them.
func TestDirtyBlocksSurviveRestartsAndPowerCuts(t *testing.T) {
	acks, evictions := 0, int64(0)
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(t, seed)
				for round := range 6 {
					var wg sync.WaitGroup
					for g := range 4 {
						wg.Go(func() { m.work(g, 4, 60) })
					}
					if round%2 == 0 {
						m.cut(&wg)
						continue
					}
					wg.Wait()
					m.check()
					evictions += m.d.Stats().Evictions
					m.close()
					m.open()
					m.check()
				}
				m.close()
				acks += m.acks
			})
		})
	}
	if acks == 0 || evictions == 0 {
		t.Errorf("%d acknowledgements, %d evictions: the test does not test", acks, evictions)
	}
}

// TestAFailingDiskLosesTrackOfNothing has several goroutines do anything with the
// same blocks, while operations fail, also after they were done.
func TestAFailingDiskLosesTrackOfNothing(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(t, seed)
				errno := []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS}[seed%3]
				m.files.setFail(func(op, _ string) error {
					time.Sleep(time.Duration(m.intn(1000)) * time.Microsecond)
					if m.intn(30) == 0 {
						return errno
					}
					return nil
				})
				var wg sync.WaitGroup
				for range 6 {
					wg.Go(func() {
						for range 80 {
							m.anything(m.intn(12))
						}
					})
				}
				wg.Wait()
				m.files.setFail(nil)
				m.d.idle()
				time.Sleep(3 * maxPause)
				checkFiles(t, m.d, m.files)
				before := m.d.Dirty()
				inFolder, _ := m.files.list(dirtyName)
				m.close()
				m.open()
				if after := m.d.Dirty(); len(after) != len(inFolder) || len(after) < len(before) {
					t.Errorf("%d blocks are dirty after a restart, %d were before, %d files are there", len(after), len(before), len(inFolder))
				} else {
					for _, b := range before {
						if !slices.ContainsFunc(after, func(a store.DirtyBlock) bool { return a.Key == b.Key }) {
							t.Errorf("block %v is not dirty any more", b.Key)
						}
					}
				}
				m.files.setFail(nil)
				m.close()
			})
		})
	}
}

func (m *model) anything(i int) {
	key := storetest.Key(i)
	switch m.intn(8) {
	case 0, 1, 2, 3:
		if err := m.d.PutDirty(m.t.Context(), key, blockData(i)); err != nil && !errors.Is(err, ErrNoRoom) {
			m.t.Errorf("PutDirty: %v", err)
		}
	case 4:
		m.d.Clean(key)
	case 5:
		if err := m.d.Delete(m.t.Context(), key); err != nil {
			m.t.Error(err)
		}
	case 6:
		time.Sleep(time.Duration(m.intn(20)) * time.Second)
	default:
		got, err := m.d.Get(store.WithLocal(m.t.Context()), key, 0, -1)
		if err == nil && !bytes.Equal(got, blockData(i)) {
			m.t.Errorf("block %d: %d wrong bytes", i, len(got))
		}
	}
}
