package admin

import (
	"strings"
	"testing"
)

func TestAddressesHaveOneForm(t *testing.T) {
	for in, want := range map[string]string{
		"proxy1.example.com:443":   "proxy1.example.com:443",
		" Proxy1.Example.COM:0443": "proxy1.example.com:443",
		"localhost:1":              "localhost:1",
		"my_host:65535":            "my_host:65535",
		"10.0.0.1:80":              "10.0.0.1:80",
		"[::1]:443":                "[::1]:443",
		"[2001:DB8::0:1]:443":      "[2001:db8::1]:443",
	} {
		if got, err := cleanAddress("address", in); err != nil || got != want {
			t.Errorf("cleanAddress(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for in, words := range map[string]string{
		"":                                    "no port",
		"proxy1":                              "no port",
		"[::1]":                               "no port",
		":443":                                "host is missing",
		"proxy1:":                             "1 to 65535",
		"proxy1:0":                            "1 to 65535",
		"proxy1:65536":                        "1 to 65535",
		"proxy1:-1":                           "1 to 65535",
		"proxy1:+1":                           "1 to 65535",
		"proxy1:https":                        "1 to 65535",
		"proxy1:443:443":                      "not a host name",
		"::1:443":                             "brackets",
		"[10.0.0.1]:443":                      "not a host name",
		"[::1:443":                            "brackets",
		"[fe80::1%eth0]:443":                  "not a host name",
		"0.0.0.0:443":                         "cannot connect",
		"[::]:443":                            "cannot connect",
		"10.0.0.256:443":                      "not a host name",
		"1.2.3:443":                           "not a host name",
		"https://proxy1:443":                  "not a host name",
		"proxy1/x:443":                        "not a host name",
		"user@proxy1:443":                     "not a host name",
		"proxy 1:443":                         "not a host name",
		"-proxy:443":                          "not a host name",
		"proxy-:443":                          "not a host name",
		"a..b:443":                            "not a host name",
		"proxy1.:443":                         "not a host name",
		"pröxy:443":                           "not a host name",
		"proxy\x001:443":                      "not a host name",
		strings.Repeat("a.", 127) + "com:443": "not a host name",
		strings.Repeat("a", 64) + ":443":      "not a host name",
	} {
		if got, err := cleanAddress("address", in); err == nil || !strings.Contains(err.Message, words) {
			t.Errorf("cleanAddress(%q) = %q, %v; want an error that says %q", in, got, err, words)
		}
	}
}

func FuzzAddressesStayAsTheyAre(f *testing.F) {
	for _, s := range []string{"proxy1:443", "[::1]:1", "A.b:01", "1.2.3.4:5", "::ffff:1.2.3.4:5", "[::ffff:1.2.3.4]:5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		clean, err := cleanAddress("address", s)
		if err != nil {
			return
		}
		if again, err := cleanAddress("address", clean); err != nil || again != clean {
			t.Errorf("%q became %q, and that %q, %v", s, clean, again, err)
		}
	})
}

// try calls check on each value and compares whether it is refused.
func try(t *testing.T, what string, check func(string) *Error, good, bad []string) {
	t.Helper()
	for _, s := range good {
		if err := check(s); err != nil {
			t.Errorf("%s %q: %v", what, s, err)
		}
	}
	for _, s := range bad {
		if check(s) == nil {
			t.Errorf("%s %q was accepted", what, s)
		}
	}
}

func TestFormsOfNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	try(t, "code", func(s string) *Error { return checkCode("code", s) },
		[]string{"aws", "us-east-1", "a", "1", "my_cloud.x", long},
		[]string{"", "AWS", "a b", "-a", "a-", "a/b", "a\x00b", "ä", long + "a", ".", "..", "a\n"})
	try(t, "volume name", checkVolumeName,
		[]string{"my-volume", "Genomes_2026.v1", "a", long},
		[]string{"", "a b", "a/b", "-a", "a-", "..", "a\n", long + "a", newUUID(), strings.ToUpper(newUUID())})
	try(t, "bucket", checkBucket,
		[]string{"abc", "my-bucket.eu", "123", long},
		[]string{"", "ab", "Bucket", "my_bucket", "a..b", ".abc", "abc-", "10.0.0.1", "a/b", long + "a"})
	try(t, "prefix", checkPrefix,
		[]string{"", "flexfs", "a/b/c", "my prefix"},
		[]string{"/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\x00", "a\xff", strings.Repeat("a", 513)})
	try(t, "folder", func(s string) *Error { return checkFolder("mountPath", s) },
		[]string{"/", "/a", "/a/b c", "/ä", "/" + strings.Repeat("a", 255)},
		[]string{"", "a", "/a/", "//", "/a//b", "/./a", "/..", "/a/..", "/a\x00", "/\xff", "/" + strings.Repeat("a", 256), strings.Repeat("/a", 2049)})
	try(t, "endpoint", checkEndpoint,
		[]string{"", "https://s3.example.com", "http://127.0.0.1:9000", "http://[::1]:9000/"},
		[]string{"s3.example.com", "ftp://x", "https://", "https://user:pw@x", "https://x/path", "https://x?y", "https://x#y", "https://x:port", "://", "https://:443"})
	try(t, "token", checkToken,
		[]string{newUUID(), "01234567-89ab-cdef-0123-456789abcdef"},
		[]string{"", "x", strings.ToUpper("01234567-89ab-cdef-0123-456789abcdef"), "0123456789abcdef0123456789abcdef", " " + newUUID(), newUUID() + "\n"})
	try(t, "pin", checkPin,
		[]string{somePin(1), somePin(255)},
		[]string{"", "sha256:", "sha256:x", somePin(1) + "A", "md5:" + somePin(1)[7:], somePin(1)[7:]})
}

func TestBlockSizes(t *testing.T) {
	for _, n := range []int64{256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20} {
		if err := checkBlockSize(n); err != nil {
			t.Errorf("%d: %v", n, err)
		}
	}
	for _, n := range []int64{-1, 0, 1, 128 << 10, 256<<10 + 1, 3 << 20, 16 << 20, -4 << 20} {
		if checkBlockSize(n) == nil {
			t.Errorf("%d was accepted", n)
		}
	}
}

func TestFlagsHaveOneForm(t *testing.T) {
	for in, want := range map[string]string{"": "", "ro": "ro", " ro , noExec,,ro": "ro,noExec", ",": ""} {
		if got, err := cleanFlags(in); err != nil || got != want {
			t.Errorf("cleanFlags(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"RO", "rw", "ro;noExec", "noexec"} {
		if _, err := cleanFlags(in); err == nil || !strings.Contains(err.Message, "noExec") {
			t.Errorf("cleanFlags(%q): %v; want an error that names the flags there are", in, err)
		}
	}
}

func TestTokensAreRandomUUIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newUUID()
		if !isUUID(id) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("%s is not a new random UUID", id)
		}
		seen[id] = true
	}
}
