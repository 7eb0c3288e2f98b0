package metatest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/metatest"
	"flexfs/meta/tree"
)

const volume = "6f1d6a52-0000-4000-8000-000000000001"

// A world is a tree on an engine in memory, which can crash.
type world struct {
	t      *testing.T
	engine *engine.Memory
	stop   func()
}

func TestTree(t *testing.T) {
	metatest.Run(t, func(t *testing.T) *metatest.Service {
		e, err := engine.OpenMemory()
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, engine: e}
		t.Cleanup(func() {
			w.stop()
			w.check()
			w.engine.Close()
		})
		return &metatest.Service{
			Handler: w.start(), Volume: volume, Token: "rw", ReadOnly: "ro", Restart: w.restart,
		}
	})
}

func (w *world) start() meta.Handler {
	srv, err := tree.New(tree.Config{
		Engine: w.engine,
		Lease:  time.Second,
		Authorize: func(token string) (tree.Grant, error) {
			if token != "rw" && token != "ro" {
				return tree.Grant{}, errors.New("the token is not valid")
			}
			return tree.Grant{Volume: volume, Write: token == "rw"}, nil
		},
		Volumes: func(id string) (tree.VolumeConfig, error) {
			if id != volume {
				return tree.VolumeConfig{}, errors.New("no such volume")
			}
			return tree.VolumeConfig{Name: "test", BlockSize: 256 << 10, InlineMax: 16 << 10}, nil
		},
		Delete: func(context.Context, string, []tree.BlockRef) error { return nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Run(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("the service gave up: %v", err)
		}
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	return srv
}

// restart goes on with what had reached the disk, and half of the rest.
func (w *world) restart() meta.Handler {
	w.stop()
	crashed, err := w.engine.Crash(50, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	w.engine.Close()
	w.engine = crashed
	w.check()
	return w.start()
}

func (w *world) check() {
	problems, err := tree.Check(context.Background(), w.engine)
	if err != nil {
		w.t.Errorf("check: %v", err)
	}
	for _, p := range problems {
		w.t.Errorf("check: %v", p)
	}
}
