//go:build race

package cache

// raceDetector tells that sync.Pool loses things on purpose, and with them what
// ristretto learned of popularity.
const raceDetector = true
