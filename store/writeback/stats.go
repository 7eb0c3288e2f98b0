package writeback

import (
	"sync/atomic"
	"time"
)

// Stats tell what a Store did since it was made. Except for Waiting, Memory and
// Lag they only grow.
type Stats struct {
	Acknowledged      int64 `json:"acknowledged"` // Puts that were on two members
	AcknowledgedBytes int64 `json:"acknowledgedBytes"`
	Copies            int64 `json:"copies"` // kept for others
	CopiesBytes       int64 `json:"copiesBytes"`

	// Puts that turned to the bucket, by the cause.
	Asked  int64 `json:"asked"`  // the volume or the group says so, or the proxy is about to leave
	Alone  int64 `json:"alone"`  // there is no other member
	NoRoom int64 `json:"noRoom"` // on the disk here
	Peer   int64 `json:"peer"`   // no other member took a copy
	Late   int64 `json:"late"`   // the disk or the other member took long

	Uploads       int64 `json:"uploads"`
	UploadedBytes int64 `json:"uploadedBytes"`
	Found         int64 `json:"found"`     // blocks that the bucket had already
	Failures      int64 `json:"failures"`  // uploads that the bucket did not take
	Lost          int64 `json:"lost"`      // blocks that could not be read here for their upload
	Takeovers     int64 `json:"takeovers"` // copies that became this proxy's to upload
	Untold        int64 `json:"untold"`    // blocks of which a peer could not be told

	Waiting int64         `json:"waiting"` // blocks that are to be uploaded, or kept for others, now
	Memory  int64         `json:"memory"`  // bytes of blocks kept in memory
	Lag     time.Duration `json:"lag"`     // from the Put to the bucket, of the block uploaded last
	LagSum  time.Duration `json:"lagSum"`  // of all of Uploads and Found
}

// counters are the part of Stats that is counted.
type counters struct {
	acknowledged, acknowledgedBytes, copies, copiesBytes atomic.Int64
	asked, alone, noRoom, peer, late                     atomic.Int64
	uploads, uploadedBytes, found, failures, lost        atomic.Int64
	takeovers, untold                                    atomic.Int64
	lag, lagSum                                          atomic.Int64 // nanoseconds
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	c := &s.count
	st := Stats{
		Acknowledged: c.acknowledged.Load(), AcknowledgedBytes: c.acknowledgedBytes.Load(),
		Copies: c.copies.Load(), CopiesBytes: c.copiesBytes.Load(),
		Asked: c.asked.Load(), Alone: c.alone.Load(), NoRoom: c.noRoom.Load(), Peer: c.peer.Load(), Late: c.late.Load(),
		Uploads: c.uploads.Load(), UploadedBytes: c.uploadedBytes.Load(), Found: c.found.Load(),
		Failures: c.failures.Load(), Lost: c.lost.Load(), Takeovers: c.takeovers.Load(), Untold: c.untold.Load(),
		Lag: time.Duration(c.lag.Load()), LagSum: time.Duration(c.lagSum.Load()),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Waiting, st.Memory = int64(len(s.blocks)), s.held
	return st
}
