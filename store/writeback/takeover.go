package writeback

import (
	"context"
	"time"
)

// ask asks a peer about the copies that it has given and that it has not told
// about for long, until there are none left to ask about.
func (s *Store) ask(ctx context.Context, peer string) {
	for {
		due := s.takeAsks(peer)
		if due == nil {
			return
		}
		silent := s.cfg.Peers.Down(peer)
		taken := 0
		for _, b := range due {
			pending := false
			if !silent {
				var err error
				pending, err = s.pendingAt(ctx, peer, b)
				silent = err != nil
			}
			if ctx.Err() != nil {
				return
			}
			if s.answered(b, peer, pending) {
				taken++
			}
		}
		s.tookOver(peer, taken, silent)
	}
}

// tookOver counts and logs what was taken over from a peer.
func (s *Store) tookOver(peer string, blocks int, silent bool) {
	if blocks == 0 {
		return
	}
	s.count.takeovers.Add(int64(blocks))
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.took.due(blocks, s.cfg.Timing.Report); ok {
		s.cfg.Log.Info("blocks that other proxies have not uploaded are uploaded from here", "blocks", n, "of", peer, "answers", !silent)
	}
}

// takeAsks returns what peer is to be asked about. Nil: nothing; whoever has
// asked is done.
func (s *Store) takeAsks(peer string) []*block {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.asks[peer]
	delete(s.asks, peer)
	if due == nil {
		delete(s.asking, peer)
	}
	return due
}

func (s *Store) pendingAt(ctx context.Context, peer string, b *block) (bool, error) {
	s.mu.Lock()
	values := b.volume.values
	s.mu.Unlock()
	ctx, cancel := background(ctx, values, s.cfg.Timing.Answer)
	defer cancel()
	return s.cfg.Peers.Pending(ctx, peer, b.key)
}

// answered draws the conclusion from an answer about b: to wait on, or to upload
// it. It reports whether that is up to this proxy now.
func (s *Store) answered(b *block, peer string, pending bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case b.where != asking || b.own:
		return false // overtaken by events
	case b.from != peer:
		s.await(b, time.Now())
		return false
	case pending:
		s.await(b, time.Now().Add(s.cfg.Timing.Takeover+jitter(s.cfg.Timing.Takeover/2)))
		return false
	}
	b.look = true
	s.enqueue(b)
	return true
}
