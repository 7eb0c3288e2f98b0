package writeback

import (
	"context"
	"sync"
	"time"

	"flexfs/store"
)

const (
	// maxMails bounds the mails on their way at the same time.
	maxMails = 16

	// maxNews bounds the blocks that one peer is still to be told of, for each
	// volume. It asks for itself about the others.
	maxNews = 1 << 16

	// maxTells bounds the attempts to tell a peer.
	maxTells = 3
)

// A mailbox is a peer that is told of blocks of a volume.
type mailbox struct {
	peer   string
	volume store.Volume
}

// A mail is what a peer is to be told: that the bucket has blocks, or that nobody
// needs them. The Store's mu guards it.
type mail struct {
	volume  *volume
	keys    []store.Key
	due     time.Time
	fails   int
	sending bool
}

// tell has peer be told of b. s.mu must be held.
func (s *Store) tell(peer string, b *block) {
	box := mailbox{peer, b.key.Volume}
	m := s.news[box]
	if m == nil {
		m = &mail{volume: b.volume, due: time.Now().Add(s.cfg.Timing.Batch)}
		s.news[box] = m
	}
	if len(m.keys) < maxNews {
		m.keys = append(m.keys, b.key)
	}
	s.poke()
}

// mails sends what is due, or is enough. It returns when the next is due. s.mu
// must be held.
func (s *Store) mails(ctx context.Context, work *sync.WaitGroup, now time.Time) (next time.Time) {
	for box, m := range s.news {
		switch {
		case m.sending || s.sending >= maxMails:
		case m.due.After(now) && (m.fails > 0 || len(m.keys) < MaxBatch):
			next = earliest(next, m.due)
		default:
			m.sending = true
			s.sending++
			keys := m.keys[:min(len(m.keys), MaxBatch):min(len(m.keys), MaxBatch)]
			m.keys = m.keys[len(keys):]
			own, cancel := background(ctx, m.volume.values, s.cfg.Timing.Answer)
			work.Go(func() {
				defer cancel()
				s.sent(box, m, keys, s.cfg.Peers.Uploaded(own, box.peer, keys))
			})
		}
	}
	return next
}

// sent notes whether a peer has been told. One that cannot be told for long will
// ask.
func (s *Store) sent(box mailbox, m *mail, keys []store.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.poke()
	s.sending--
	m.sending = false
	if err == nil {
		m.fails = 0
	} else {
		m.fails++
		m.keys = append(keys, m.keys...)
		m.due = time.Now().Add(s.cfg.Timing.pause(m.fails))
	}
	if m.fails == maxTells {
		s.count.untold.Add(int64(len(m.keys)))
		m.keys = nil
	}
	if len(m.keys) == 0 {
		delete(s.news, box)
		s.checkQuiet()
	}
}
