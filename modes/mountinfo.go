package modes

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// isDeadMount tells the error of a stat of a mount that nobody serves.
func isDeadMount(err error) bool {
	return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED)
}

// mountedAt returns the type of the file system that is mounted on path, or ""
// if none is.
func mountedAt(path string) (kind string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || unescapeMount(fields[4]) != path {
			continue
		}
		for i, field := range fields[:len(fields)-1] {
			if field == "-" {
				kind = fields[i+1] // the last mount on a path is the one seen
			}
		}
	}
	return kind, nil
}

// unescapeMount undoes the octal escapes of mountinfo, \040 for a space.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
