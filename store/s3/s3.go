// Package s3 is a block store in a bucket of Amazon S3 or of what speaks its
// protocol.
//
// A block is one object, {prefix}/{key}, where {key} is [store.Key.String]. The
// names of objects with other forms are left alone.
package s3

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"flexfs/store"
)

const (
	// attempts bounds how often an operation is tried. With the pauses
	// between them a bucket may be away for some 10 seconds.
	attempts = 7

	// openAttempts is the same for the check at Open, where a person waits.
	openAttempts = 3

	// openTimeout bounds that check.
	openTimeout = 30 * time.Second

	// firstPause is the longest first pause; each next one is twice as long,
	// up to lastPause. How long it really is, is random.
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second

	// attemptTimeout bounds one attempt, however slowly its bytes move.
	attemptTimeout = 5 * time.Minute

	// maxObject bounds the memory for an object: the largest block, and
	// room for what a layer above adds.
	maxObject = store.MaxBlock + 1<<20

	// deleteBatch is how many objects one request may delete, says S3.
	deleteBatch = 1000

	// defaultRequests bounds the requests in flight unless the Config says:
	// some 16 connections fill 10 Gbit/s, small blocks want more.
	defaultRequests = 64
)

// Config says where the blocks are and how to get there.
type Config struct {
	Bucket string
	Prefix string // of the names of objects, without slashes around; may be empty

	Region   string // corrected if the bucket is in another; empty: "us-east-1" with an Endpoint, else what the machine's own settings say
	Endpoint string // URL of a store that speaks S3; empty: Amazon's for the Region

	AccessKey string // empty: the machine's own credentials (environment, profile, instance role)
	SecretKey string

	MaxRequests int  // in flight at a time; 0: 64
	SSE         bool // ask for server-side encryption (AES256) of each object
	NoChecksum  bool // do not send checksums, for stores that refuse them

	Log *slog.Logger // nil: nowhere
}

// Stats counts what happened since the start. Fields only grow.
type Stats struct {
	Requests  atomic.Int64 // sent, repeated ones included
	Retries   atomic.Int64 // repeated after a failure
	SlowDowns atomic.Int64 // answered with "slow down"
	BytesIn   atomic.Int64 // of blocks, received
	BytesOut  atomic.Int64 // of blocks, sent
}

// A Store is a [store.Store] in a bucket.
type Store struct {
	Stats Stats

	cfg      Config
	client   *s3.Client
	http     *http.Transport
	governor *governor
}

// Open returns the store, having made sure that the bucket is there and that
// the credentials open it. Its errors say what to do about them.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxRequests <= 0 {
		cfg.MaxRequests = defaultRequests
	}
	cfg.Prefix = strings.Trim(cfg.Prefix, "/")
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, governor: newGovernor(cfg.MaxRequests), http: newTransport(cfg.MaxRequests)}
	opt, err := s.options(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.connect(ctx, opt); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// connect makes the client and tries it out. If the bucket turns out to be in
// another region than the one that was given, it takes that: operators name
// their sites as they like, and stores that are not Amazon's have a region of
// their own, often "us-east-1".
func (s *Store) connect(ctx context.Context, opt s3.Options) error {
	s.client = s3.New(opt)
	err := s.probe(ctx, openTimeout)
	var other *regionError
	if !errors.As(err, &other) || other.region == "" || other.region == opt.Region {
		return err
	}
	s.cfg.Log.Info("the bucket is in another region than the one that was given",
		"bucket", s.cfg.Bucket, "given", opt.Region, "using", other.region)
	opt.Region = other.region
	s.client = s3.New(opt)
	return s.probe(ctx, openTimeout)
}

// Close closes idle connections. Operations may not be started any more.
func (s *Store) Close() { s.http.CloseIdleConnections() }

func (cfg *Config) check() error {
	switch {
	case cfg.Bucket == "":
		return errors.New("s3: no bucket was given")
	case strings.ContainsAny(cfg.Bucket, "/\\ "):
		return fmt.Errorf("s3: %q is not the name of a bucket: give the name alone, and folders as the prefix", cfg.Bucket)
	case (cfg.AccessKey == "") != (cfg.SecretKey == ""):
		return errors.New("s3: give both the access key and the secret key, or neither to use the machine's own credentials")
	case cfg.Endpoint == "":
		return nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("s3: the address %q is not the URL of a store: want one like https://s3.example.com:9000", redact(cfg.Endpoint))
	}
	if u.User != nil {
		return errors.New("s3: the address contains a user or password: give them as the access key and the secret key")
	}
	return nil
}

// redact removes what may be a password from something that should be a URL.
func redact(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return "…" + address[i:]
	}
	return address
}

// where names the store in errors.
func (s *Store) where() string {
	if s.cfg.Endpoint != "" {
		return s.cfg.Endpoint
	}
	return "Amazon S3"
}

// options turn off what the SDK does beyond one request: tries of its own,
// checksums in trailers (several stores refuse them) and "Expect: 100-continue"
// (a round trip per block).
func (s *Store) options(ctx context.Context) (s3.Options, error) {
	opt := s3.Options{
		Region:                       s.cfg.Region,
		HTTPClient:                   &http.Client{Transport: s.http},
		Retryer:                      aws.NopRetryer{},
		RequestChecksumCalculation:   aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:   aws.ResponseChecksumValidationWhenRequired,
		ContinueHeaderThresholdBytes: -1,
	}
	if s.cfg.Endpoint != "" {
		opt.BaseEndpoint = aws.String(s.cfg.Endpoint)
		opt.UsePathStyle = true
		if opt.Region == "" {
			opt.Region = "us-east-1"
		}
	}
	if s.cfg.AccessKey != "" {
		opt.Credentials = credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, "")
	}
	if opt.Credentials == nil || opt.Region == "" {
		own, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return opt, fmt.Errorf("s3: read the machine's own settings: %w", err)
		}
		if opt.Credentials == nil {
			opt.Credentials = own.Credentials
		}
		if opt.Region == "" {
			opt.Region = own.Region
		}
	}
	if s.cfg.AccessKey == "" {
		if _, err := opt.Credentials.Retrieve(ctx); err != nil {
			return opt, fmt.Errorf("s3: no credentials were given for bucket %s, and this machine has none of its own: give an access key and a secret key: %w", s.cfg.Bucket, err)
		}
	}
	if opt.Region == "" {
		return opt, fmt.Errorf("s3: the region of bucket %s is not known: give one, like us-east-1", s.cfg.Bucket)
	}
	return opt, nil
}

// probe asks for one name, which needs bucket, keys and region to be right.
func (s *Store) probe(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("%s did not answer within %v: check the address and the network", s.where(), timeout))
	defer cancel()
	return s.do(ctx, openAttempts, operation{verb: "open"}, func(ctx context.Context) error {
		_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
			Bucket:  &s.cfg.Bucket,
			Prefix:  aws.String(s.prefix()),
			MaxKeys: aws.Int32(1),
		})
		return err
	})
}

func (s *Store) prefix() string {
	if s.cfg.Prefix == "" {
		return ""
	}
	return s.cfg.Prefix + "/"
}

func (s *Store) name(key store.Key) *string { return aws.String(s.prefix() + key.String()) }

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if off < 0 {
		return nil, nil
	}
	var data []byte
	err := s.do(ctx, attempts, operation{"get", key}, func(ctx context.Context) (err error) {
		data, err = s.get(ctx, key, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.Stats.BytesIn.Add(int64(len(data)))
	return data, nil
}

func (s *Store) get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	in := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: s.name(key), Range: rangeHeader(off, n)}
	out, err := s.client.GetObject(ctx, in)
	if in.Range != nil && errorCode(err) == "InvalidRange" {
		return nil, nil // the block is there, and does not reach past off
	}
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	data, err := readBody(out)
	if err != nil {
		return nil, err
	}
	if in.Range != nil && out.ContentRange == nil {
		return store.Clip(data, off, n), nil // a store that ignores ranges
	}
	return store.Clip(data, 0, n), nil
}

// rangeHeader returns the header for Get's arguments, or nil for the whole. For
// no bytes at all it asks for one: the answer still tells whether the block is
// there.
func rangeHeader(off, n int64) *string {
	switch {
	case off == 0 && (n < 0 || n >= maxObject):
		return nil
	case n < 0 || n >= maxObject:
		return aws.String(fmt.Sprintf("bytes=%d-", off))
	}
	return aws.String(fmt.Sprintf("bytes=%d-%d", off, off+max(n, 1)-1))
}

func readBody(out *s3.GetObjectOutput) ([]byte, error) {
	size := aws.ToInt64(out.ContentLength)
	if size > maxObject {
		return nil, &permanentError{fmt.Errorf("an object of %d bytes is not a block", size)}
	}
	if out.ContentLength == nil || size < 0 {
		data, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
		if err == nil && len(data) > maxObject {
			err = &permanentError{fmt.Errorf("an object of more than %d bytes is not a block", maxObject)}
		}
		return data, err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(out.Body, data); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return data, nil
}

// Put implements [store.Store]. A Put that is repeated after its answer was lost
// stores the same bytes again.
func (s *Store) Put(ctx context.Context, key store.Key, data []byte) error {
	in := s3.PutObjectInput{
		Bucket:        &s.cfg.Bucket,
		Key:           s.name(key),
		ContentLength: aws.Int64(int64(len(data))),
	}
	if s.cfg.SSE {
		in.ServerSideEncryption = types.ServerSideEncryptionAes256
	}
	if !s.cfg.NoChecksum {
		in.ChecksumCRC32C = aws.String(checksumHeader(store.Sum(ctx, data)))
	}
	return s.do(ctx, attempts, operation{"put", key}, func(ctx context.Context) error {
		in := in
		body := newBody(data)
		defer body.release()
		in.Body = body
		s.Stats.BytesOut.Add(int64(len(data)))
		_, err := s.client.PutObject(ctx, &in, s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
		return err
	})
}

// checksumHeader is a CRC-32C as S3 wants it. The store refuses bytes that were
// damaged on the way.
func checksumHeader(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, key store.Key) error {
	err := s.do(ctx, attempts, operation{"delete", key}, func(ctx context.Context) error {
		_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: s.name(key)})
		return err
	})
	if errors.Is(err, store.ErrNotExist) {
		return nil // some stores say so
	}
	return err
}

// DeleteAll implements [store.BulkDeleter], with one request for 1,000 blocks,
// or for each one where the store does not know such requests.
func (s *Store) DeleteAll(ctx context.Context, keys []store.Key) error {
	for len(keys) > 0 {
		batch := keys[:min(len(keys), deleteBatch)]
		keys = keys[len(batch):]
		err := s.do(ctx, attempts, operation{verb: "delete"}, func(ctx context.Context) error { return s.deleteBatch(ctx, batch) })
		if noBulk(err) {
			err = s.deleteEach(ctx, batch)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) deleteBatch(ctx context.Context, keys []store.Key) error {
	in := &s3.DeleteObjectsInput{Bucket: &s.cfg.Bucket, Delete: &types.Delete{Quiet: aws.Bool(true)}}
	for _, key := range keys {
		in.Delete.Objects = append(in.Delete.Objects, types.ObjectIdentifier{Key: s.name(key)})
	}
	out, err := s.client.DeleteObjects(ctx, in)
	if err != nil {
		return err
	}
	for _, e := range out.Errors {
		if code := aws.ToString(e.Code); code != "NoSuchKey" {
			return &objectError{name: aws.ToString(e.Key), code: code, message: aws.ToString(e.Message)}
		}
	}
	return nil
}

func (s *Store) deleteEach(ctx context.Context, keys []store.Key) error {
	for _, key := range keys {
		if err := s.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// List implements [store.Lister].
func (s *Store) List(ctx context.Context, volume store.Volume, fn func(store.Listed) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: aws.String(s.prefix() + volume.String() + "/")}
	for {
		var out *s3.ListObjectsV2Output
		err := s.do(ctx, attempts, operation{verb: "list"}, func(ctx context.Context) (err error) {
			out, err = s.client.ListObjectsV2(ctx, in)
			return err
		})
		if err != nil {
			return err
		}
		for _, object := range out.Contents {
			key, err := store.ParseKey(strings.TrimPrefix(aws.ToString(object.Key), s.prefix()))
			if err != nil || key.Volume != volume {
				continue
			}
			found := store.Listed{Key: key, Size: aws.ToInt64(object.Size), Modified: aws.ToTime(object.LastModified)}
			if err := fn(found); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) || out.NextContinuationToken == nil {
			return nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// An operation is what an error was met in.
type operation struct {
	verb string
	key  store.Key // zero: of no one block
}

func (o operation) String() string {
	if o.key == (store.Key{}) {
		return o.verb
	}
	return o.verb + " " + o.key.String()
}

// do tries op up to n times, each within the bounds of the governor. What comes
// back says what was tried, and is one of the errors of [store.Store] where
// that is the case.
func (s *Store) do(ctx context.Context, n int, what operation, op func(context.Context) error) error {
	pause := firstPause
	for i := 1; ; i++ {
		err := s.try(ctx, op)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("s3: %v: %w", what, context.Cause(ctx))
		}
		kind := classify(err)
		if kind == answer || i == n {
			return s.explain(what, err)
		}
		if kind == slowDown {
			s.Stats.SlowDowns.Add(1)
			if limit, shrunk := s.governor.shrink(); shrunk {
				s.cfg.Log.Warn("the bucket asks to slow down", "bucket", s.cfg.Bucket, "requests_at_once", limit)
			}
		}
		s.Stats.Retries.Add(1)
		t := time.NewTimer(rand.N(pause))
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("s3: %v: %w", what, context.Cause(ctx))
		case <-t.C:
		}
		pause = min(2*pause, lastPause)
	}
}

func (s *Store) try(ctx context.Context, op func(context.Context) error) error {
	if err := s.governor.acquire(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	s.Stats.Requests.Add(1)
	err := op(ctx)
	s.governor.release(err == nil)
	return err
}

// newTransport returns a transport for n requests at a time: HTTP/1.1, which
// moves blocks with a fraction of HTTP/2's work, and as many idle connections
// as requests, or each burst would begin with handshakes.
func newTransport(n int) *http.Transport {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(n)},
		TLSHandshakeTimeout:   10 * time.Second,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   n,
		IdleConnTimeout:       15 * time.Second, // stores close theirs after 20 and more
		ResponseHeaderTimeout: stallTimeout,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		Protocols:             new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}
