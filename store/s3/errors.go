package s3

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"regexp"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"flexfs/store"
)

// A permanentError would come again.
type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// An objectError is what a bulk request says about one object.
type objectError struct{ name, code, message string }

func (e *objectError) Error() string { return fmt.Sprintf("%s: %s: %s", e.name, e.code, e.message) }

// errorCode returns S3's own word for an error, or "".
func errorCode(err error) string {
	var object *objectError
	if errors.As(err, &object) {
		return object.code
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// status returns the HTTP status that an error came with, or 0.
func status(err error) int {
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	return 0
}

// A kind is what to do about an error.
type kind int

const (
	answer   kind = iota // take it as it is
	failure              // try again
	slowDown             // try again, with fewer requests at once
)

func classify(err error) kind {
	var permanent *permanentError
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch {
	case errors.As(err, &permanent), errors.As(err, &unknownCA), errors.As(err, &wrongHost):
		return answer
	}
	switch errorCode(err) {
	case "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded":
		return slowDown
	case "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted", "BadDigest", "XAmzContentChecksumMismatch":
		return failure
	}
	var object *objectError
	switch code := status(err); {
	case errors.As(err, &object), code == http.StatusNotImplemented:
		return answer
	case code == http.StatusServiceUnavailable, code == http.StatusTooManyRequests:
		return slowDown
	case code >= 300 && code < 500:
		return answer
	}
	return failure
}

// noBulk tells that a store does not know requests that delete many.
func noBulk(err error) bool {
	switch errorCode(err) {
	case "NotImplemented", "MethodNotAllowed", "MissingContentMD5":
		return true
	}
	return false
}

// explain turns an error into one that says what to do, and that wraps what
// callers ask for: [store.ErrNotExist], [fs.ErrPermission]. No error of the
// protocol contains a secret, and none is added.
func (s *Store) explain(op operation, err error) error {
	bucket, where := s.cfg.Bucket, s.where()
	var dns *net.DNSError
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch code := errorCode(err); code {
	case "NoSuchKey":
		return fmt.Errorf("s3: %v: %w", op, store.ErrNotExist)
	case "NoSuchBucket":
		return fmt.Errorf("s3: %v: the bucket %s does not exist at %s: create it, or correct the bucket's name or the address", op, bucket, where)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "XAdminUserNotFound":
		return &refusal{fmt.Sprintf("s3: %v: %s refuses the credentials for bucket %s (%s): check the access key and the secret key", op, where, bucket, code)}
	case "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem":
		return &refusal{fmt.Sprintf("s3: %v: %s denies access to bucket %s (%s): the credentials need the rights to get, put, delete and list objects", op, where, bucket, code)}
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return s.wrongRegion(op, err)
	case "RequestTimeTooSkewed":
		return fmt.Errorf("s3: %v: this machine's clock is wrong, says %s: correct it", op, where)
	}
	switch code := status(err); {
	case code == http.StatusForbidden, code == http.StatusUnauthorized:
		return &refusal{fmt.Sprintf("s3: %v: %s denies access to bucket %s (HTTP %d): check the credentials", op, where, bucket, code)}
	case code == http.StatusMovedPermanently:
		return s.wrongRegion(op, err)
	case code == http.StatusNotFound && (errorCode(err) == "" || errorCode(err) == "NotFound"): // no XML came
		return fmt.Errorf("s3: %v: %s answers, but not as S3 does (HTTP 404): correct the address", op, where)
	case code != 0:
		return fmt.Errorf("s3: %v at %s: %w", op, where, brief(err))
	case errors.As(err, &dns):
		return fmt.Errorf("s3: %v: the address %s names a host that is not known: correct it, or the name service: %w", op, where, dns)
	case errors.As(err, &unknownCA), errors.As(err, &wrongHost):
		return fmt.Errorf("s3: %v: the certificate of %s is not trusted: %w", op, where, brief(err))
	}
	var network net.Error
	if errors.As(err, &network) {
		return fmt.Errorf("s3: %v: %s cannot be reached: check the address and the network: %w", op, where, brief(err))
	}
	return fmt.Errorf("s3: %v at %s: %w", op, where, brief(err))
}

// A regionError says that the bucket is in another region.
type regionError struct {
	text   string
	region string // where it is, if that could be learned, or ""
}

func (e *regionError) Error() string { return e.text }

// expecting matches where S3's message for a wrong region names the right one.
// Stores differ in their quotation marks.
var expecting = regexp.MustCompile(`expecting ['"]([a-z0-9-]+)['"]`)

func (s *Store) wrongRegion(op operation, err error) error {
	e := &regionError{text: fmt.Sprintf("s3: %v: the bucket %s is not in the region that was given: correct the region", op, s.cfg.Bucket)}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil {
		e.region = resp.Response.Header.Get("X-Amz-Bucket-Region")
	}
	if m := expecting.FindStringSubmatch(err.Error()); e.region == "" && m != nil {
		e.region = m[1]
	}
	if e.region != "" {
		e.text += " to " + e.region
	}
	return e
}

// A refusal wraps [fs.ErrPermission] without its words.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return fs.ErrPermission }

// brief returns the part of an error that is not the SDK's own report of what
// it was doing.
func brief(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
