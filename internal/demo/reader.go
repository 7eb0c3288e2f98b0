package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// A load reads one file of a mount again and again, past the kernel's cache,
// and writes and reads back small ones, until it is stopped. Every byte is
// compared.
type load struct {
	passes, bytes atomic.Int64
	slowest       atomic.Int64 // ns, of one read

	stop        context.CancelFunc
	done        sync.WaitGroup
	read, wrote error // valid after done
}

// startLoad starts a load: it reads file, whose checksum is sum, on one mount
// and writes in a folder of the other.
func startLoad(file string, sum [sha256.Size]byte, folder string) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop}
	l.done.Go(func() { l.read = l.readAgain(ctx, file, sum) })
	l.done.Go(func() { l.wrote = l.write(ctx, folder) })
	return l
}

// end stops the load and returns what it did.
func (l *load) end() (said string, bytes int64, err error) {
	l.stop()
	l.done.Wait()
	said = fmt.Sprintf("%d passes, slowest read %v", l.passes.Load(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	return said, l.bytes.Load(), errors.Join(l.read, l.wrote)
}

// begun waits until the load reads.
func (l *load) begun(ctx context.Context) error {
	return until(ctx, func() error {
		if l.bytes.Load() < bigFile/4 {
			return errors.New("nothing is read")
		}
		return nil
	})
}

// pass waits until the file was read from start to end once more.
func (l *load) pass(ctx context.Context) error {
	want := l.passes.Load() + 2 // the next one may have begun before
	return until(ctx, func() error {
		if l.passes.Load() < want {
			return errors.New("the file is not read to its end any more")
		}
		return nil
	})
}

func (l *load) readAgain(ctx context.Context, file string, sum [sha256.Size]byte) error {
	for ctx.Err() == nil {
		got, err := l.sumDirect(file)
		if err != nil {
			return err
		}
		if got != sum {
			return fmt.Errorf("%s read wrong", file)
		}
		l.passes.Add(1)
	}
	return nil
}

// sumDirect reads a file with O_DIRECT.
func (l *load) sumDirect(file string) (sum [sha256.Size]byte, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	for buf := aligned(1 << 20); ; {
		start := time.Now()
		n, err := f.Read(buf)
		if took := int64(time.Since(start)); took > l.slowest.Load() {
			l.slowest.Store(took)
		}
		h.Write(buf[:n])
		l.bytes.Add(int64(n))
		if err == io.EOF {
			return [sha256.Size]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// aligned returns n bytes that begin at a page, as O_DIRECT wants.
func aligned(n int) []byte {
	const page = 4096
	buf := make([]byte, n+page)
	off := page - int(uintptr(unsafe.Pointer(&buf[0]))%page)
	return buf[off : off+n : off+n]
}

// write writes files, each with its fsync, and reads them back.
func (l *load) write(ctx context.Context, folder string) error {
	data := make([]byte, 300<<10)
	for i := 0; ctx.Err() == nil; i++ {
		for j := range data {
			data[j] = byte(i + j>>8)
		}
		name := filepath.Join(folder, fmt.Sprint(i%16))
		if err := writeSynced(name, data); err != nil {
			return err
		}
		got, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if sha256.Sum256(got) != sha256.Sum256(data) {
			return fmt.Errorf("%s read wrong", name)
		}
		l.bytes.Add(2 * int64(len(data)))
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // leave the machine to the reader
		}
	}
	return nil
}

func writeSynced(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
