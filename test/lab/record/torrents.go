// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// seeders are BitTorrent programs that have a whole file and give it to who
// asks. A client begins plainly or, when it requires message stream encryption
// with RC4, with bytes that are random from the first on.
var seeders = []string{"libtorrent", "aria2"}

func torrentActivities() []activity {
	var list []activity
	for _, s := range seeders {
		carried := s == "libtorrent"
		list = append(list,
			act("torrent-"+s+"-plain", s, s, "libtorrent", ordinary, 2, carried, torrent(s, "plain")),
			act("torrent-"+s+"-encrypted", s, s, "libtorrent-encrypted", randomLike, 2, carried, torrent(s, "encrypted")),
			act("torrent-"+s+"-aria2c", s, s, "aria2c-encrypted", randomLike, 2, carried, aria2c(s)))
	}
	return append(list, act("torrent-libtorrent-utp", "libtorrent", "libtorrent", "libtorrent-utp", ordinary, 2, false, torrent("libtorrent", "utp")))
}

// share makes a file and its metainfo in a directory of a seeder.
func (e *env) share(name string) (metainfo, dir string, err error) {
	if _, dir, err = e.config(name, ""); err != nil {
		return "", "", err
	}
	r := e.draws(name)
	size := logUniform(r, 20000, 300000)
	data := randomBytes(r, size)
	if r.Float64() < 0.5 {
		data = words(r, size)
	}
	const piece = 16384
	var sums []byte
	for at := 0; at < size; at += piece {
		sum := sha1.Sum(data[at:min(at+piece, size)])
		sums = append(sums, sum[:]...)
	}
	file := fmt.Sprintf("file%d", r.IntN(1e6))
	info := fmt.Sprintf("d6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%se", size, len(file), file, piece, len(sums), sums)
	metainfo = filepath.Join(dir, "lab.torrent")
	if err := os.WriteFile(metainfo, []byte("d4:info"+info+"e"), 0o644); err != nil {
		return "", "", err
	}
	e.set(func() { e.torrents[name] = metainfo })
	return metainfo, dir, os.WriteFile(filepath.Join(dir, file), data, 0o644)
}

// torrentPeer is a seeder or a client of libtorrent. Its arguments: mode,
// metainfo, directory, address and port, the own ones or the seeder's.
const torrentPeer = `import sys, time
import libtorrent as lt
mode, metainfo, folder, addr, port = sys.argv[1:6]
at = ("[%s]" if ":" in addr else "%s") % addr
p = {"enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False, "alert_mask": 0, "listen_interfaces": "",
     "enable_outgoing_utp": mode == "utp", "enable_outgoing_tcp": mode != "utp", "prefer_rc4": True,
     "out_enc_policy": int(lt.enc_policy.forced if mode == "encrypted" else lt.enc_policy.disabled)}
if mode == "seed":
    p.update({"listen_interfaces": "%s:%s" % (at, port), "allow_multiple_connections_per_ip": True, "unchoke_interval": 1, "unchoke_slots_limit": -1})
elif mode == "utp":
    p["listen_interfaces"] = "[::]:0" if ":" in addr else "0.0.0.0:0"
if mode == "encrypted":
    p["allowed_enc_level"] = int(lt.enc_level.rc4)
s = lt.session(p)
h = s.add_torrent({"ti": lt.torrent_info(metainfo), "save_path": folder})
end = time.monotonic() + 9
asked = met = 0
while mode == "seed" or time.monotonic() < end:
    st = h.status()
    if mode != "seed":
        # The seeder may let others go first, for longer than a flow matters.
        if not met and any(i.total_download for i in h.get_peer_info()):
            met = time.monotonic()
        if st.is_seeding or met and time.monotonic() > met + 3:
            s.pause()
            time.sleep(0.1)
            sys.exit(0)
        if st.state == lt.torrent_status.downloading and not asked:
            asked = 1
            h.connect_peer((addr, int(port)))
    time.sleep(0.02 if mode != "seed" else 1)
sys.exit("nothing came from the seeder")
`

func (e *env) startLibtorrent(ctx context.Context, port uint16) error {
	metainfo, dir, err := e.share("libtorrent")
	if err != nil {
		return err
	}
	return e.run(ctx, port, "/usr/bin/python3", "-c", torrentPeer, "seed", metainfo, dir, e.server().String(), num(port))
}

// aria2Args are of both ends: nothing is asked but what is told.
func aria2Args(dir string) []string {
	return []string{"aria2c", "--no-conf", "--quiet", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false", "--file-allocation=none", "-d", dir}
}

func (e *env) startAria2(ctx context.Context, port uint16) error {
	metainfo, dir, err := e.share("aria2")
	if err != nil {
		return err
	}
	return e.run(ctx, port, append(aria2Args(dir), "--listen-port="+num(port), "--bt-seed-unverified=true", "--seed-ratio=0", "--allow-overwrite=true", metainfo)...)
}

// torrent fetches a seeder's file with libtorrent.
func torrent(service, mode string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		defer os.RemoveAll(a.file)
		return a.program(ctx, service, nil, func(addr netip.AddrPort) []string {
			return []string{"/usr/bin/python3", "-c", torrentPeer, mode, a.e.torrents[service], a.file, addr.Addr().String(), num(addr.Port())}
		})
	}
}

// aria2c fetches a seeder's file with aria2, which is told of peers by a
// tracker only: it has one on its own host.
func aria2c(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		peer, err := a.addr(a.e.port[service])
		if err != nil {
			return err
		}
		ln, err := a.e.l.Client.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		b := peer.Addr().AsSlice()
		b = append(b, byte(peer.Port()>>8), byte(peer.Port()))
		key := "peers"
		if peer.Addr().Is6() {
			key = "peers6"
		}
		answer := fmt.Appendf(nil, "d8:intervali600e%d:%s%d:%se", len(key), key, len(b), b)
		if key != "peers" {
			answer = bytes.Replace(answer, []byte("6:peers6"), []byte("5:peers0:6:peers6"), 1)
		}
		srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) })}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(ln) }()
		defer func() { srv.Close(); <-done }()
		defer os.RemoveAll(a.file)
		argv := append(aria2Args(a.file), "--seed-time=0", "--bt-tracker=http://"+ln.Addr().String()+"/announce", "--bt-stop-timeout=9", "--bt-require-crypto=true", "--bt-min-crypto-level=arc4")
		_, err = a.e.l.Exec(ctx, a.e.l.Client, append(argv, a.e.torrents[service])...)
		return err
	}
}
