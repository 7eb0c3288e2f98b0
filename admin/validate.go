package admin

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what an object may hold.
const (
	maxMembers   = 1024              // of a proxy group
	maxText      = 4096              // bytes of a note
	maxName      = 255               // bytes of a name
	maxPrefix    = 512               // bytes; S3 names have at most 1024
	minBlockSize = 256 << 10         // bytes
	maxBlockSize = 8 << 20           // bytes
	maxInline    = 64 << 10          // bytes; metadata values stay below 100 kB
	maxRetention = 100 * 8766 * 3600 // seconds; 100 years
)

var (
	codePattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	volumePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	uuidPattern   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	secretPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	labelPattern  = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
)

// newUUID returns a random UUID (version 4): 122 bits of secret for a token.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func isUUID(s string) bool { return uuidPattern.MatchString(s) }

// checkToken does not repeat the token: it is a secret.
func checkToken(s string) *Error {
	if !isUUID(s) {
		return bad("token", "must be a UUID in lower case; leave it out and one is made")
	}
	return nil
}

func checkCode(field, s string) *Error {
	if !codePattern.MatchString(s) {
		return bad(field, "%q is not a code: use 1 to 63 lower-case letters, digits, '.', '_' and '-', with a letter or digit at both ends", s)
	}
	return nil
}

// checkText wants one line of text for people.
func checkText(field, s string, max int) *Error {
	switch {
	case len(s) > max:
		return bad(field, "has %d bytes, more than %d", len(s), max)
	case !utf8.ValidString(s):
		return bad(field, "is not UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
		return bad(field, "has a control character")
	}
	return nil
}

func checkVolumeName(s string) *Error {
	switch {
	case isUUID(strings.ToLower(s)):
		return bad("name", "%q looks like an id", s)
	case !volumePattern.MatchString(s):
		return bad("name", "%q is not a volume name: use 1 to 63 letters, digits, '.', '_' and '-', with a letter or digit at both ends", s)
	}
	return nil
}

// cleanAddress returns host:port in its one form: host in lower case, the
// port without leading zeros.
func cleanAddress(field, s string) (string, *Error) {
	s = strings.ToLower(strings.TrimSpace(s))
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return "", bad(field, "%q has no port: write host:port, like proxy1.example.com:443", s)
	}
	host, port := s[:i], s[i+1:]
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil || n < 1 || n > 65535 {
		return "", bad(field, "%q: port %q is not one of 1 to 65535", s, port)
	}
	host, problem := cleanHost(host)
	if problem != "" {
		return "", bad(field, "%q: %s", s, problem)
	}
	return host + ":" + strconv.FormatUint(n, 10), nil
}

func cleanHost(host string) (clean, problem string) {
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		inner, bracketed = strings.CutSuffix(inner, "]")
	}
	ip, err := netip.ParseAddr(inner)
	switch {
	case err == nil && ip.IsUnspecified():
		return "", "clients cannot connect to " + host + "; name the address that they reach it by"
	case err == nil && ip.Is6() && !bracketed:
		return "", "an IPv6 address is written in brackets, like [::1]:443"
	case err == nil && ip.Is6() && ip.Zone() == "":
		return "[" + ip.String() + "]", ""
	case err == nil && ip.Is4() && !bracketed:
		return ip.String(), ""
	case host == "":
		return "", "the host is missing"
	case len(host) > 253 || !isHostName(host):
		return "", strconv.Quote(host) + " is not a host name or IP address"
	}
	return host, ""
}

// isHostName tells names from mistyped IPv4 addresses too: no top-level domain
// is a number.
func isHostName(host string) bool {
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if !labelPattern.MatchString(label) {
			return false
		}
	}
	_, err := strconv.ParseUint(labels[len(labels)-1], 10, 64)
	return err != nil
}

// cleanAddresses returns the addresses of a group in their one form, in the
// order given.
func cleanAddresses(field string, list []string) ([]string, *Error) {
	if len(list) > maxMembers {
		return nil, bad(field, "has %d proxies, more than %d", len(list), maxMembers)
	}
	clean := make([]string, 0, len(list))
	for _, s := range list {
		addr, err := cleanAddress(field, s)
		if err != nil {
			return nil, err
		}
		if slices.Contains(clean, addr) {
			return nil, bad(field, "%s is there twice", addr)
		}
		clean = append(clean, addr)
	}
	return clean, nil
}

func checkBucket(s string) *Error {
	ip, err := netip.ParseAddr(s)
	if !bucketPattern.MatchString(s) || strings.Contains(s, "..") || (err == nil && ip.Is4()) {
		return bad("bucket", "%q is not a bucket name: use 3 to 63 lower-case letters, digits, '.' and '-', with a letter or digit at both ends", s)
	}
	return nil
}

// checkFolder wants an absolute path that has one spelling only.
func checkFolder(field, s string) *Error {
	if !path.IsAbs(s) || path.Clean(s) != s || len(s) > maxText {
		return bad(field, "%q is not an absolute path without '.', '..' and needless slashes", s)
	}
	for _, name := range strings.Split(s, "/") {
		if len(name) > maxName {
			return bad(field, "a name in it has %d bytes, more than %d", len(name), maxName)
		}
	}
	return checkText(field, s, maxText)
}

func checkPrefix(s string) *Error {
	if s != "" && (path.Clean("/"+s) != "/"+s || len(s) > maxPrefix) {
		return bad("prefix", "%q must be names joined by single slashes, with none at the ends and at most %d bytes", s, maxPrefix)
	}
	return checkText("prefix", s, maxPrefix)
}

func checkEndpoint(s string) *Error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return bad("address", "must be a URL like https://s3.example.com:9000")
	}
	if u.User != nil {
		return bad("address", "must not hold credentials: they belong in username and password")
	}
	if u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return bad("address", "%q must end after host and port", s)
	}
	return nil
}

func checkBlockSize(n int64) *Error {
	if n < minBlockSize || n > maxBlockSize || n&(n-1) != 0 {
		return bad("blockSize", "%d is not one of 262144 (256KiB), 524288, 1048576, 2097152, 4194304, 8388608 (8MiB)", n)
	}
	return nil
}

func checkRange(field string, n, min, max int64) *Error {
	if n < min || n > max {
		return bad(field, "%d is not from %d to %d", n, min, max)
	}
	return nil
}

func checkOneOf(field, s string, values []string) *Error {
	if !slices.Contains(values, s) {
		return bad(field, "%q is none of %s", s, strings.Join(values, ", "))
	}
	return nil
}

// cleanFlags returns mount flags without spaces and repetitions.
func cleanFlags(s string) (string, *Error) {
	var clean []string
	for _, flag := range splitFlags(s) {
		if !slices.Contains(MountFlags, flag) {
			return "", bad("flags", "%q is none of %s", flag, strings.Join(MountFlags, ", "))
		}
		if !slices.Contains(clean, flag) {
			clean = append(clean, flag)
		}
	}
	return strings.Join(clean, ","), nil
}

func splitFlags(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// checkSecretID wants what seal.Sealer.Fingerprint returns.
func checkSecretID(s string) *Error {
	if !secretPattern.MatchString(s) {
		return bad("secretID", "must be 32 hexadecimal digits in lower case")
	}
	return nil
}

// checkPin wants what package tlspin writes.
func checkPin(s string) *Error {
	text, ok := strings.CutPrefix(s, "sha256:")
	sum, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(sum) != 32 {
		return bad("pin", "%q is not the pin of a key, like sha256: and 43 letters", s)
	}
	return nil
}
