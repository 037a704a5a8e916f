// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSecret is how large a file of a secret may be.
const maxSecret = 64 << 10

// ReadToken reads a token: the text of a file that nobody but its owner and root can read.
func ReadToken(path string) (string, error) {
	text, err := readSecret(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	switch {
	case len(token) < MinToken:
		return "", fmt.Errorf("%s: the token has %d bytes, and has to have %d at least: openssl rand -hex 32 prints one", path, len(token), MinToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s: the token has to be one word of ASCII letters, digits and signs: openssl rand -hex 32 prints one", path)
	}
	return token, nil
}

// ReadCertificate reads a certificate with those that it depends on, and its key, both as PEM.
// Nobody but its owner and root can read the key.
func ReadCertificate(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readSecret(keyFile)
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return &c, nil
}

// readSecret reads a file, unless others could read it as well: those that are neither its
// owner nor root. Root's group may, which is how systemd hands over credentials.
func readSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would have it wait
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	others := info.Mode().Perm() & 0o007
	if st.Gid != 0 {
		others |= info.Mode().Perm() & 0o070
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no plain file", path)
	case others != 0:
		return nil, fmt.Errorf("%s: others than its owner can read or change it (mode %04o): chmod 0600 it", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(text) > maxSecret {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxSecret)
	}
	return text, err
}
