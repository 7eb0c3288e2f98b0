package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/crypto/argon2"

	"flexfs/store"
)

// ErrSecret is wrapped by the error of a Get for a block that the given secret,
// or none, does not open.
var ErrSecret = errors.New("the secret is not the one that the block was sealed with")

// What argon2id is asked for: the second recommendation of RFC 9106. They are
// part of the format. It takes a tenth of a second and 64 MiB, once per volume.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	argonSalt    = "flexfs block format 1\x00" // before the volume's 16 bytes
)

// maxVolumes bounds the volumes whose keys are remembered. A mount has one.
const maxVolumes = 64

// volumeKeys are derived from the secret and the volume.
type volumeKeys struct {
	block [32]byte // the keys of blocks are derived from it
	nonce [32]byte // and their nonces
}

// A keyring derives and remembers the keys of volumes.
type keyring struct {
	secret []byte

	mu   sync.Mutex
	keys map[store.Volume]func() *volumeKeys // guarded by mu; each derives once
}

func newKeyring(secret []byte) *keyring {
	return &keyring{secret: bytes.Clone(secret), keys: make(map[store.Volume]func() *volumeKeys)}
}

func (r *keyring) of(volume store.Volume) *volumeKeys {
	r.mu.Lock()
	derive := r.keys[volume]
	if derive == nil {
		if len(r.keys) >= maxVolumes {
			clear(r.keys)
		}
		derive = sync.OnceValue(func() *volumeKeys { return deriveKeys(r.secret, volume) })
		r.keys[volume] = derive
	}
	r.mu.Unlock()
	return derive()
}

func deriveKeys(secret []byte, volume store.Volume) *volumeKeys {
	salt := append([]byte(argonSalt), volume[:]...)
	derived := argon2.IDKey(secret, salt, argonTime, argonMemory, argonThreads, 64)
	k := new(volumeKeys)
	copy(k.block[:], derived[:32])
	copy(k.nonce[:], derived[32:])
	return k
}

// aead returns the cipher of one block: each block version has its own key, so
// frames cannot be passed off as another block's.
func (k *volumeKeys) aead(key store.Key) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, k.block[:])
	mac.Write(appendKey(make([]byte, 0, keyLen), key))
	c, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	gcm, err := cipher.NewGCM(c)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return gcm, nil
}

// syntheticNonce derives a block's nonce from all that it will protect: the
// head's fixed part, and the frame table and frames before encryption. So
// sealing a block again gives the same bytes, as a Put that is repeated must,
// and a nonce never serves two different messages, even if a key does.
func (k *volumeKeys) syntheticNonce(fixed []byte, frames [][]byte) [nonceLen]byte {
	mac := hmac.New(sha256.New, k.nonce[:])
	mac.Write(fixed[:nonceAt])
	var size [4]byte
	for _, f := range frames {
		binary.BigEndian.PutUint32(size[:], uint32(len(f)))
		mac.Write(size[:])
		mac.Write(f)
	}
	return [nonceLen]byte(mac.Sum(nil)[:nonceLen])
}

// headNonce is the number of the head among a block's nonces.
const headNonce = 1<<32 - 1

// nonceFor returns the nonce of frame i of a block, or of its head.
func nonceFor(nonce [nonceLen]byte, i uint32) []byte {
	last := binary.BigEndian.Uint32(nonce[nonceLen-4:])
	binary.BigEndian.PutUint32(nonce[nonceLen-4:], last^i)
	return nonce[:]
}

// Fingerprint returns a value by which the secret of a volume can be told from
// other secrets, or "" if there is none: mounts compare it with the one that the
// volume was created with, so that nobody writes blocks that the others cannot
// read. Guessing the secret from it is as hard as guessing it from a block.
func (s *Sealer) Fingerprint(volume store.Volume) string {
	if s.keys == nil {
		return ""
	}
	mac := hmac.New(sha256.New, s.keys.of(volume).nonce[:])
	mac.Write([]byte("flexfs secret fingerprint 1"))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
