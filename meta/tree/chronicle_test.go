package tree

import (
	"testing"

	"flexfs/meta"
)

func TestAChronicleIsSureOfItsSecondOnly(t *testing.T) {
	v := &volume{num: 1}
	var ch chronicle
	a, b := v.dentryKey(5, "a"), v.attrKey(6)
	has := func(second int64, key []byte, recorded, sure bool) {
		t.Helper()
		if r, s := ch.has(second, key); r != recorded || s != sure {
			t.Errorf("second %d, key %q: recorded %v, sure %v", second, key, r, s)
		}
	}
	has(10, a, false, true)
	ch.add(10, map[string]struct{}{string(a): {}}, nil)
	has(10, a, true, true)
	has(10, b, false, true)
	ch.remove(10, map[string]struct{}{string(a): {}}, nil)
	has(10, a, false, true)
	ch.add(10, map[string]struct{}{string(a): {}}, nil)
	has(11, a, false, true)
	has(10, a, false, false) // a change that began before the second ended
	ch.add(10, map[string]struct{}{string(b): {}}, nil)
	has(11, b, false, true)
}

func TestAChronicleKnowsWhatWasMadeInItsSecond(t *testing.T) {
	v := &volume{num: 1}
	var ch chronicle
	ch.add(10, nil, []meta.Ino{6})
	for _, key := range [][]byte{v.attrKey(6), v.blockKey(6, 0, 1), v.xattrKey(6, "user.a"), v.dentryKey(6, "a")} {
		if recorded, sure := ch.has(10, key); !recorded || !sure {
			t.Errorf("key %q: recorded %v, sure %v", key, recorded, sure)
		}
	}
	if recorded, _ := ch.has(10, v.attrKey(7)); recorded {
		t.Error("an inode that was not made in this second needs no history")
	}
}

func TestAFullChronicleLeavesItToTheEngine(t *testing.T) {
	v := &volume{num: 1}
	var ch chronicle
	keys := make(map[string]struct{})
	for i := range maxChronicle {
		keys[string(v.attrKey(meta.Ino(i)))] = struct{}{}
	}
	ch.add(10, keys, nil)
	ch.add(10, nil, []meta.Ino{maxChronicle + 1})
	if recorded, sure := ch.has(10, v.attrKey(1)); !recorded || !sure {
		t.Errorf("what it took: recorded %v, sure %v", recorded, sure)
	}
	if recorded, sure := ch.has(10, v.attrKey(maxChronicle+1)); recorded || sure {
		t.Errorf("what it did not take: recorded %v, sure %v", recorded, sure)
	}
}
