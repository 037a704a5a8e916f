// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ShadowsocksRequest returns the first bytes of a client of Shadowsocks with cipher
// aes-256-gcm, which ask the server to connect to target and send it data: a salt, then
// two sealed chunks. For tests that decide themselves how these bytes become segments;
// everything else uses ss-local. Source: Shadowsocks' SIP004 (AEAD ciphers). data takes
// at most 16 KiB less the target's address.
func ShadowsocksRequest(password string, target netip.AddrPort, data []byte) ([]byte, error) {
	const keyLen = 32
	// The key is OpenSSL's EVP_BytesToKey with MD5 and no salt.
	var key, digest []byte
	for len(key) < keyLen {
		sum := md5.Sum(append(digest, password...))
		digest = sum[:]
		key = append(key, digest...)
	}
	out := make([]byte, keyLen) // the salt
	if _, err := rand.Read(out); err != nil {
		return nil, err
	}
	subkey, err := hkdf.Key(sha1.New, key[:keyLen], out, "ss-subkey", keyLen)
	if err != nil {
		return nil, fmt.Errorf("derive the session's key: %w", err)
	}
	block, err := aes.NewCipher(subkey)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	chunk, err := socksAddr(target.Addr().String(), target.Port())
	if err != nil {
		return nil, err
	}
	chunk = append(chunk, data...)
	if len(chunk) > 0x3fff {
		return nil, fmt.Errorf("%d bytes do not fit into one chunk of 16 KiB", len(chunk))
	}
	nonce := make([]byte, aead.NonceSize()) // counts up, little endian
	out = aead.Seal(out, nonce, binary.BigEndian.AppendUint16(nil, uint16(len(chunk))), nil)
	nonce[0]++
	return aead.Seal(out, nonce, chunk, nil), nil
}
