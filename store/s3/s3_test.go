package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flexfs/internal/s3test"
	"flexfs/store"
	"flexfs/store/s3"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

func config(server *s3test.Server, bucket string) s3.Config {
	return s3.Config{Bucket: bucket, Endpoint: server.Endpoint(), AccessKey: server.AccessKey, SecretKey: server.SecretKey}
}

func open(t *testing.T, cfg s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestS3(t *testing.T) {
	server := s3test.Start(t)
	for name, change := range map[string]func(*s3.Config){
		"plain":         func(*s3.Config) {},
		"prefix":        func(cfg *s3.Config) { cfg.Prefix = "/some/folder/" },
		"no checksum":   func(cfg *s3.Config) { cfg.NoChecksum = true },
		"one at a time": func(cfg *s3.Config) { cfg.MaxRequests = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				cfg := config(server, server.Bucket())
				change(&cfg)
				return open(t, cfg)
			})
		})
	}
}

func TestSealedInS3(t *testing.T) {
	server := s3test.Start(t)
	storetest.Run(t, func(t *testing.T) store.Store {
		return seal.New(open(t, config(server, server.Bucket())), seal.Options{Codec: seal.LZ4})
	})
}

// The names are what an existing bucket has; they must not change.
func TestTheNameOfAnObjectIsPinned(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.Bucket()
	cfg := config(server, bucket)
	cfg.Prefix = "pre/fix"
	key := storetest.Key(1)
	if err := open(t, cfg).Put(t.Context(), key, []byte("bytes")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(server.Folder(bucket), "pre", "fix", key.String()))
	if err != nil || string(data) != "bytes" {
		t.Errorf("the object holds %q, %v", data, err)
	}
}

func TestManyBlocksAreListedAndDeleted(t *testing.T) {
	const blocks = 2_300 // three pages, three batches
	server := s3test.Start(t)
	bucket := server.Bucket()
	s := open(t, config(server, bucket))
	var keys []store.Key
	for i := range blocks {
		name := filepath.Join(server.Folder(bucket), storetest.Key(i).String())
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, storetest.Key(i))
	}
	count := func() int {
		seen := make(map[store.Key]bool)
		if err := s.List(t.Context(), keys[0].Volume, func(found store.Listed) error { seen[found.Key] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		return len(seen)
	}
	if n := count(); n != blocks {
		t.Errorf("List returned %d blocks of %d", n, blocks)
	}
	before := s.Stats.Requests.Load()
	if err := s.DeleteAll(t.Context(), keys[:blocks-1]); err != nil {
		t.Fatal(err)
	}
	if sent := s.Stats.Requests.Load() - before; sent != 3 {
		t.Errorf("deleting %d blocks took %d requests, want 3", blocks-1, sent)
	}
	if n := count(); n != 1 {
		t.Errorf("after DeleteAll of all but one, List returned %d", n)
	}
}

func TestABucketThatReturnsIsWaitedFor(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, config(server, server.Bucket()))
	key := storetest.Key(1)
	server.Stop()
	done := make(chan error, 1)
	go func() { done <- s.Put(context.WithoutCancel(t.Context()), key, []byte("bytes")) }()
	for s.Stats.Retries.Load() == 0 {
		select {
		case err := <-done:
			t.Fatalf("Put while the bucket was away returned %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	server.Restart()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if data, err := s.Get(t.Context(), key, 0, -1); err != nil || string(data) != "bytes" {
		t.Errorf("Get: %q, %v", data, err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.Bucket()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String()
	closed.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	tls := httptest.NewUnstartedServer(http.NotFoundHandler())
	tls.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	tls.StartTLS()
	t.Cleanup(tls.Close)
	const secret = "hunter2-hunter2"

	for name, test := range map[string]struct {
		change     func(*s3.Config)
		says       []string
		permission bool
	}{
		"no bucket":      {func(c *s3.Config) { c.Bucket = "" }, []string{"no bucket"}, false},
		"missing bucket": {func(c *s3.Config) { c.Bucket = "nosuch" }, []string{"bucket nosuch does not exist at " + server.Endpoint(), "create it"}, false},
		"bucket as path": {func(c *s3.Config) { c.Bucket = "a/b" }, []string{`"a/b" is not the name of a bucket`, "prefix"}, false},
		"unknown key":    {func(c *s3.Config) { c.AccessKey = "stranger" }, []string{"credentials", bucket, "access key"}, true},
		"wrong secret":   {func(c *s3.Config) { c.SecretKey = secret }, []string{"credentials", bucket, "secret key"}, true},
		"half a key":     {func(c *s3.Config) { c.SecretKey = "" }, []string{"both"}, false},
		"nobody there":   {func(c *s3.Config) { c.Endpoint = nobody }, []string{nobody + " cannot be reached", "check the address"}, false},
		"unknown host":   {func(c *s3.Config) { c.Endpoint = "http://no-such-host.invalid" }, []string{"no-such-host.invalid", "host that is not known"}, false},
		"not S3":         {func(c *s3.Config) { c.Endpoint = web.URL }, []string{web.URL, "not as S3"}, false},
		"stranger's TLS": {func(c *s3.Config) { c.Endpoint = tls.URL }, []string{"certificate", "not trusted"}, false},
		"no URL":         {func(c *s3.Config) { c.Endpoint = "localhost:9000" }, []string{`"localhost:9000"`, "like https://"}, false},
		"other scheme":   {func(c *s3.Config) { c.Endpoint = "s3://bucket" }, []string{"like https://"}, false},
		"key in URL":     {func(c *s3.Config) { c.Endpoint = "http://user:" + secret + "@host" }, []string{"access key"}, false},
		"broken URL":     {func(c *s3.Config) { c.Endpoint = "http://user:" + secret + "@ho st" }, []string{"like https://"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(server, bucket)
			test.change(&cfg)
			_, err := s3.Open(t.Context(), cfg)
			if err == nil {
				t.Fatal("Open succeeded")
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
			if got := errors.Is(err, fs.ErrPermission); got != test.permission {
				t.Errorf("errors.Is(err, fs.ErrPermission) = %v: %v", got, err)
			}
			for _, hidden := range []string{secret, server.SecretKey} {
				if strings.Contains(err.Error(), hidden) {
					t.Errorf("the error contains a secret: %v", err)
				}
			}
		})
	}
}

func TestAWrongRegionIsCorrected(t *testing.T) {
	server := s3test.Start(t)
	cfg := config(server, server.Bucket())
	cfg.Region = "dc1" // what an operator calls the site
	if err := open(t, cfg).Put(t.Context(), storetest.Key(1), nil); err != nil {
		t.Error(err)
	}
}

func TestARegionThatAnAnswerNamesIsTaken(t *testing.T) {
	var regions []string
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		region := strings.Split(r.Header.Get("Authorization"), "/")[2]
		regions = append(regions, region)
		if region == "eu-west-9" {
			return false
		}
		w.Header().Set("X-Amz-Bucket-Region", "eu-west-9")
		refuse(w, http.StatusMovedPermanently, "PermanentRedirect")
		return true
	}))
	if err := s.Put(t.Context(), storetest.Key(1), nil); err != nil || strings.Join(regions, " ") != "us-east-1 eu-west-9 eu-west-9" {
		t.Errorf("the requests were for the regions %v; %v", regions, err)
	}
}

func TestAWrongRegionThatNobodyCorrectsIsReported(t *testing.T) {
	_, err := s3.Open(t.Context(), fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		refuse(w, http.StatusBadRequest, "AuthorizationHeaderMalformed")
		return true
	}))
	if err == nil || !strings.Contains(err.Error(), "correct the region") {
		t.Errorf("Open: %v", err)
	}
}

func TestOpenWithoutAnyCredentialsSaysSo(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	_, err := s3.Open(t.Context(), s3.Config{Bucket: "b", Endpoint: "http://127.0.0.1:1"})
	if err == nil || !strings.Contains(err.Error(), "no credentials") {
		t.Errorf("Open: %v", err)
	}
}

func TestTheMachinesOwnCredentialsAreUsed(t *testing.T) {
	server := s3test.Start(t)
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	cfg := config(server, server.Bucket())
	cfg.AccessKey, cfg.SecretKey = "", ""
	if err := open(t, cfg).Put(t.Context(), storetest.Key(1), nil); err != nil {
		t.Error(err)
	}
}

// A fake answers like an S3 server that has nothing, except where handle
// answers first.
func fake(t *testing.T, handle func(w http.ResponseWriter, r *http.Request) bool) s3.Config {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if handle(w, r) {
			return
		}
		if r.Method == http.MethodGet && r.URL.Query().Has("list-type") {
			io.WriteString(w, `<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return
		}
		io.Copy(io.Discard, r.Body)
	}))
	t.Cleanup(server.Close)
	return s3.Config{Bucket: "bucket", Endpoint: server.URL, AccessKey: "access", SecretKey: "secret"}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	io.WriteString(w, "<Error><Code>"+code+"</Code><Message>no</Message></Error>")
}

// What a Put says on the wire decides which stores understand it, and what it
// costs.
func TestWhatAPutLooksLike(t *testing.T) {
	data := bytes.Repeat([]byte("123456789"), 500_000)
	for _, checksum := range []bool{true, false} {
		var got *http.Request
		var body []byte
		cfg := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				got = r.Clone(context.Background())
				body, _ = io.ReadAll(r.Body)
			}
			return false
		})
		cfg.SSE, cfg.NoChecksum = true, !checksum
		if err := open(t, cfg).Put(t.Context(), storetest.Key(1), data); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, data) || got.ContentLength != int64(len(data)) {
			t.Errorf("%d bytes arrived, Content-Length %d, want %d", len(body), got.ContentLength, len(data))
		}
		for name, want := range map[string]string{
			"Expect":                       "",
			"Content-Encoding":             "",
			"X-Amz-Trailer":                "",
			"X-Amz-Content-Sha256":         "UNSIGNED-PAYLOAD",
			"X-Amz-Server-Side-Encryption": "AES256",
		} {
			if value := got.Header.Get(name); value != want {
				t.Errorf("header %s is %q, want %q (with a checksum: %v)", name, value, want, checksum)
			}
		}
		if sent := got.Header.Get("X-Amz-Checksum-Crc32c") != ""; sent != checksum {
			t.Errorf("a checksum was sent: %v, want %v", sent, checksum)
		}
	}
}

func TestTheChecksumIsS3s(t *testing.T) {
	// The check value of CRC-32C is that of "123456789": e3069283.
	var sum string
	cfg := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			sum = r.Header.Get("X-Amz-Checksum-Crc32c")
		}
		return false
	})
	s := open(t, cfg)
	if err := s.Put(t.Context(), storetest.Key(1), []byte("123456789")); err != nil {
		t.Fatal(err)
	}
	if sum != "4waSgw==" {
		t.Errorf("the checksum is %q, want 4waSgw==", sum)
	}
}

// The checksum that whoever made the data says it has is what the store compares
// them with, so damage on the way to the store is found.
func TestDataOfAnotherSumAreRefused(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, config(server, server.Bucket()))
	data := []byte("123456789")
	ctx := store.WithSum(t.Context(), data, store.Sum(t.Context(), data))
	if err := s.Put(ctx, storetest.Key(1), data); err != nil {
		t.Error(err)
	}
	data[0]++
	if err := s.Put(ctx, storetest.Key(2), data); err == nil {
		t.Error("bytes were stored that are not those with the checksum")
	}
	if err := s.Put(ctx, storetest.Key(3), bytes.Clone(data)); err != nil {
		t.Errorf("the checksum of other data was used: %v", err)
	}
}

func TestFailuresAreRepeatedAndAnswersAreNot(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		code   string
		repeat bool
	}{
		"internal error": {500, "InternalError", true},
		"bad gateway":    {502, "", true},
		"slow down":      {503, "SlowDown", true},
		"too many":       {429, "TooManyRequests", true},
		"timeout":        {400, "RequestTimeout", true},
		"damaged body":   {400, "BadDigest", true},
		"denied":         {403, "AccessDenied", false},
		"invalid":        {400, "InvalidArgument", false},
	} {
		t.Run(name, func(t *testing.T) {
			var puts atomic.Int64
			s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut || puts.Add(1) > 1 {
					return false
				}
				io.Copy(io.Discard, r.Body)
				refuse(w, test.status, test.code)
				return true
			}))
			err := s.Put(t.Context(), storetest.Key(1), []byte("bytes"))
			if test.repeat != (err == nil) || test.repeat != (puts.Load() == 2) {
				t.Errorf("after one answer of %d %s: %d requests, %v", test.status, test.code, puts.Load(), err)
			}
		})
	}
}

// A store may drop the connection in the middle of an answer.
func TestACutOffAnswerIsRepeated(t *testing.T) {
	var gets atomic.Int64
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.Query().Has("list-type") {
			return false
		}
		w.Header().Set("Content-Length", "1000")
		data := bytes.Repeat([]byte("x"), 1000)
		if gets.Add(1) == 1 {
			w.Write(data[:500])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Write(data)
		return true
	}))
	data, err := s.Get(t.Context(), storetest.Key(1), 0, -1)
	if err != nil || len(data) != 1000 || gets.Load() != 2 {
		t.Errorf("Get: %d bytes, %v, after %d requests", len(data), err, gets.Load())
	}
}

func TestAStoreThatIgnoresRangesIsUnderstood(t *testing.T) {
	block := storetest.Data(storetest.Key(1), 5000)
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.Query().Has("list-type") {
			return false
		}
		w.Write(block)
		return true
	}))
	data, err := s.Get(t.Context(), storetest.Key(1), 1000, 10)
	if err != nil || !bytes.Equal(data, block[1000:1010]) {
		t.Errorf("Get: %x, %v", data, err)
	}
}

func TestAHugeObjectIsNotRead(t *testing.T) {
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.Query().Has("list-type") {
			return false
		}
		w.Header().Set("Content-Length", "1000000000000")
		return true
	}))
	if _, err := s.Get(t.Context(), storetest.Key(1), 0, -1); err == nil || !strings.Contains(err.Error(), "is not a block") {
		t.Errorf("Get of a terabyte: %v", err)
	}
}

func TestAStoreWithoutBulkDeleteGetsSingleOnes(t *testing.T) {
	var single atomic.Int64
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPost:
			refuse(w, http.StatusNotImplemented, "NotImplemented")
			return true
		case http.MethodDelete:
			single.Add(1)
			w.WriteHeader(http.StatusNoContent)
			return true
		}
		return false
	}))
	if err := s.DeleteAll(t.Context(), []store.Key{storetest.Key(1), storetest.Key(2)}); err != nil || single.Load() != 2 {
		t.Errorf("DeleteAll of two: %v, %d single requests", err, single.Load())
	}
}

func TestWhatOneObjectOfManyIsRefusedForIsReported(t *testing.T) {
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		io.WriteString(w, "<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>")
		return true
	}))
	err := s.DeleteAll(t.Context(), []store.Key{storetest.Key(1), storetest.Key(2)})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("DeleteAll: %v, want a refused permission", err)
	}
}
