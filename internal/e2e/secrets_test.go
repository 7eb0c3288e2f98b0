package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flexfs/internal/s3test"
)

// The key of a bucket is in the settings of programs that need it, and nowhere
// else: not in what admin shows, not in logs, also of failures, not in metrics,
// not in what other users of the machine see of a process.
func TestTheKeyOfABucketIsShownNowhere(t *testing.T) {
	server := s3test.Start(t)
	w := newWorld(t)
	const wrong = "a-wrong-secret-key-that-nobody-should-see-either"

	// A volume in the bucket, with a group of its own, whose proxy logs all it
	// has to say, and a mount that does so too.
	file := func(name, text string) string {
		if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return w.path(name)
	}
	place := []string{"--providerCode", "onprem", "--regionCode", "dc1"}
	blocks := w.create("block-store", append(place, "--apiCode", "s3", "--bucket", server.Bucket(), "--address", server.Endpoint(),
		"--username", server.AccessKey, "--passwordFile", file("right-key", server.SecretKey))...)
	var metaStores []struct{ ID int64 }
	w.json(&metaStores, "configure", "list", "meta-stores", "--output", "json")
	w.create("volume", "--name", "s3", "--metaStoreID", fmt.Sprint(metaStores[0].ID), "--blockStoreID", fmt.Sprint(blocks["id"]))
	addr, debug := freeAddr(t), freeAddr(t)
	group := w.create("proxy-group", append(place, "--addresses", addr)...)
	w.create("volume-proxy-group", "--volumeID", "s3", "--proxyGroupID", fmt.Sprint(group["id"]))
	groupToken := w.tokenFile("proxy-group", group["id"])
	creds := []string{"--adminAddr", w.procs["admin"].args[2], "--credsFile", w.path("admin", "credentials.json")}
	w.start("proxy-s3", answers(addr), append([]string{"proxy", "--verbose", "--tokenFile", groupToken, "--bindAddr", addr, "--address", addr,
		"--debugAddr", debug, "--diskFolder", w.path("proxy-s3"), "--diskQuota", "1GiB", "--memCapacity", "64MiB", "--stateFolder", w.path("state")}, creds...)...)
	token := w.create("volume-token", "--volumeID", "s3")
	dir := w.path("mnt-s3")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	there := func() error {
		if !mounted(dir) {
			return fmt.Errorf("%s is not mounted", dir)
		}
		return nil
	}
	w.start("mount-s3", there, append(append([]string{"mount", "--foreground", "--verbose", "--tokenFile", w.tokenFile("volume-token", token["id"])}, creds...), "s3", dir)...)

	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	write := func(name string) error { return os.WriteFile(filepath.Join(dir, name), data, 0o644) }
	if err := write("first"); err != nil {
		t.Fatal(err)
	}

	// The bucket does not answer, and then it does not know the key.
	log := func(want string) {
		t.Helper()
		w.await(func() error {
			for _, name := range []string{"proxy-s3", "mount-s3"} {
				if text, _ := os.ReadFile(w.path(name + ".log")); bytes.Contains(text, []byte(want)) {
					return nil
				}
			}
			return fmt.Errorf("no log has %q", want)
		})
	}
	server.Stop()
	done := make(chan error, 1)
	go func() { done <- write("second") }()
	log("connection refused")
	server.Restart()
	if err := <-done; err != nil {
		t.Logf("a write without a bucket failed, as it may: %v", err)
	}
	id := fmt.Sprint(blocks["id"])
	w.flexfs("configure", "update", "block-store", id, "--passwordFile", file("wrong-key", wrong))
	w.await(func() error {
		if text, err := os.ReadFile(w.path("state", "settings.json")); !bytes.Contains(text, []byte(wrong)) {
			return fmt.Errorf("the proxy has not heard of the key: %v", err)
		}
		return nil
	})
	if err := write("third"); err == nil {
		t.Log("a write with a wrong key waits for its upload")
	}
	log("SignatureDoesNotMatch")
	shown := map[string][]byte{}
	for _, path := range []string{"https://" + addr + "/metrics", "https://" + addr + "/v1/stats", "http://" + debug + "/metrics"} {
		shown[path] = get(t, path)
	}
	shown["stats"] = w.flexfs("stats", dir, "--output", "json")
	for _, format := range []string{"table", "json"} {
		shown["list "+format] = w.flexfs("configure", "list", "block-stores", "--output", format)
		shown["show "+format] = w.flexfs("configure", "show", "block-store", id, "--output", format)
		shown["volume "+format] = w.flexfs("configure", "show", "volume", "s3", "--output", format)
		shown["group "+format] = w.flexfs("configure", "show", "proxy-group", fmt.Sprint(group["id"]), "--output", format)
	}
	for _, name := range w.order {
		for _, of := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", w.procs[name].cmd.Process.Pid, of))
			if err != nil {
				t.Error(err)
			}
			shown[name+"'s "+of] = text
		}
	}
	w.flexfs("configure", "update", "block-store", id, "--passwordFile", w.path("right-key"))
	w.await(func() error { return write("fourth") })
	for _, name := range w.order {
		text, err := os.ReadFile(w.path(name + ".log"))
		if err != nil || len(text) == 0 {
			t.Errorf("log of %s: %d bytes, error %v", name, len(text), err)
		}
		shown["log of "+name] = text
	}
	for where, text := range shown {
		for _, secret := range []string{server.SecretKey, wrong} {
			if i := bytes.Index(text, []byte(secret)); i >= 0 {
				t.Errorf("%s shows the key:\n%s", where, text[max(0, i-300):min(len(text), i+len(secret)+100)])
			}
		}
	}

	// Where it is, only its owner looks.
	for _, name := range []string{w.path("state", "settings.json"), w.path("admin", "admin.db")} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, error %v", name, info.Mode(), err)
		}
		if text, _ := os.ReadFile(name); !bytes.Contains(text, []byte(server.SecretKey)) {
			t.Errorf("%s does not have the key: where would this test find it?", name)
		}
	}
}

// get returns the answer to a GET.
func get(t *testing.T, url string) []byte {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it sends nothing that matters
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), "flexfs") && !strings.Contains(string(text), "requests") {
		t.Errorf("%s: %s, error %v: %.100q", url, resp.Status, err, text)
	}
	return text
}
