package remote

import "sync/atomic"

// A budget bounds what is done on top of the requests that are asked for: each of
// those earns a part of a token, and each extra one takes a whole token. So there
// are never many more extra requests than that part of all, whatever fails, and
// trouble is not made worse by them. It is full at first: a few may follow each
// other at once.
type budget struct {
	tokens atomic.Int64 // in thousandths
	gain   int64        // thousandths that a request earns
	burst  int64        // thousandths that are kept at most
}

func newBudget(perThousand, burst int64) *budget {
	b := &budget{gain: perThousand, burst: 1000 * burst}
	b.tokens.Store(b.burst)
	return b
}

// earn is called for each request.
func (b *budget) earn() {
	for {
		had := b.tokens.Load()
		if had >= b.burst || b.tokens.CompareAndSwap(had, min(had+b.gain, b.burst)) {
			return
		}
	}
}

// take reports whether there was a token, which it took.
func (b *budget) take() bool {
	for {
		had := b.tokens.Load()
		if had < 1000 {
			return false
		}
		if b.tokens.CompareAndSwap(had, had-1000) {
			return true
		}
	}
}
