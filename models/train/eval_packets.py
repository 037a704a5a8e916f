# SPDX-License-Identifier: Apache-2.0
"""What the baselines of the evaluation see of a flow: the payload of a sample,
the packets of a whole session in its capture file."""
import os

import numpy as np

BYTES = 1024

# Most packets of a session that its features are made of; a bound on memory,
# far above what the captures of a lab's flow hold.
SESSION_PACKETS = 20000


class Walk:
    """Where the headers of a file's packets lie, one value per packet.

    flat is the bytes of all packets, uint8 [total]; start and end (exclusive)
    say where each lies, wire how long it was on the wire. Offsets are those of
    flat. proto is 6, 17, or -1 for a packet that has no known payload; l3 and
    l4 are where the IP and the TCP or UDP header begin; length is the payload
    on the wire; four is whether it is IPv4.
    """

    def __init__(self, flat, start, end, wire, ethernet=True):
        self.flat, self.start, self.end = flat, start, end
        self.l3 = start.copy()
        if ethernet:
            ether, self.l3 = self.be16(start + 12), start + 14
            for _ in range(2):
                tagged = np.isin(ether, (0x8100, 0x88A8, 0x9100))
                ether = np.where(tagged, self.be16(self.l3 + 2), ether)
                self.l3 = np.where(tagged, self.l3 + 4, self.l3)
        else:
            ether = np.where(self.at(start) >> 4 == 6, 0x86DD, 0x0800)
        version, l3 = self.at(self.l3) >> 4, self.l3
        self.four = (ether == 0x0800) & (version == 4) & (self.at(l3) & 15 >= 5) & (self.be16(l3 + 6) & 0x1FFF == 0)
        self.six = (ether == 0x86DD) & (version == 6)
        proto = np.where(self.four, self.at(l3 + 9), np.where(self.six, self.at(l3 + 6), -1))
        l4 = np.where(self.four, l3 + 4 * (self.at(l3) & 15), l3 + 40)
        for _ in range(6):   # extension headers, as many as the data path walks
            options, hash_, part = self.six & np.isin(proto, (0, 43, 60)), self.six & (proto == 51), self.six & (proto == 44)
            if not (options | hash_ | part).any():
                break
            later = part & (self.be16(l4 + 2) & 0xFFF8 != 0)
            size = np.where(options, 8 + 8 * self.at(l4 + 1), np.where(hash_, 8 + 4 * self.at(l4 + 1), 8))
            walked = options | hash_ | part
            proto, l4 = np.where(walked, self.at(l4), proto), np.where(walked, l4 + size, l4)
            proto = np.where(later, -1, proto)
        tcp, udp = proto == 6, proto == 17
        size = np.where(tcp, 4 * (self.at(l4 + 12) >> 4), 8)
        known = (tcp & (size >= 20)) | udp
        self.proto = np.where(known & (l4 < end), proto, -1)
        self.l4 = l4
        payload = np.where(known, l4 + size, end)
        datagram = self.be16(l4 + 4)
        wire_end = start + wire
        wire_end = np.where(udp & (datagram >= 8), np.minimum(wire_end, l4 + datagram), wire_end)
        self.length = np.where(self.proto >= 0, np.maximum(0, wire_end - payload), 0)

    def at(self, offset):
        """The byte at offset of each packet, 0 behind its end; int64."""
        inside = (offset >= self.start) & (offset < self.end)
        return np.where(inside, self.flat[np.minimum(np.maximum(offset, 0), max(len(self.flat) - 1, 0))], 0).astype(np.int64)

    def be16(self, offset):
        return self.at(offset) << 8 | self.at(offset + 1)


class Flows:
    """Payload of samples of a dataset, for the baselines.

    length, start, kept: int64 [N, 32]: of each packet the payload on the wire
    (0: none), where it begins in the capture and how much of it was captured;
    initiator: bool [N, 32], who sent it; tcp: bool [N]; stream: uint8
    [N, 2, 1024], the payload captured of initiator and responder in the order
    captured; stream_length: int64 [N, 2]; first: uint8 [N, 1024], the
    initiator's first packet with payload; first_length: int64 [N].
    """

    def __init__(self, capture, payloads):
        n = len(capture)
        self.length, self.start = payloads.length.astype(np.int64), payloads.start.astype(np.int64)
        self.kept, self.initiator = payloads.captured.astype(np.int64), payloads.initiator
        self.tcp = ~payloads.udp.reshape(n, -1).any(axis=1)
        self.stream = np.zeros((n, 2, BYTES), np.uint8)
        self.stream_length = np.zeros((n, 2), np.int64)
        for side, whose in enumerate((self.initiator, ~self.initiator)):
            mask = self._bytes(n, (self.kept > 0) & whose)
            self.stream_length[:, side] = mask.sum(axis=1)
            self.stream[:, side] = self._left(capture, mask)
        has = (self.kept > 0) & self.initiator
        only = np.zeros_like(has)
        only[np.arange(n), np.argmax(has, axis=1)] = has.any(axis=1)
        mask = self._bytes(n, only)
        self.first_length = mask.sum(axis=1)
        self.first = self._left(capture, mask)

    @classmethod
    def of(cls, data, indices):
        """The samples of a dataset.Data at indices."""
        return cls(data.capture[indices], type(data.payloads())(*(a[indices] for a in data.payloads())))

    def _bytes(self, n, packets):
        """bool [N, 1024]: the payload bytes of the packets chosen, [N, 32]."""
        edge = np.zeros((n, BYTES + 1), np.int16)
        row, column = np.nonzero(packets)
        np.add.at(edge, (row, self.start[row, column]), 1)
        np.add.at(edge, (row, self.start[row, column] + self.kept[row, column]), -1)
        return np.cumsum(edge[:, :BYTES], axis=1) > 0

    @staticmethod
    def _left(capture, mask):
        """The chosen bytes of each row, moved to the left."""
        out = np.zeros(capture.shape, np.uint8)
        row, column = np.nonzero(mask)
        out[row, (np.cumsum(mask, axis=1) - 1)[row, column]] = capture[row, column]
        return out


# Link types of pcap files that have an Ethernet header, or none, or one of a
# fixed length in front of the IP header.
LINKS = {1: 0, 0: 4, 12: 0, 14: 0, 101: 0, 113: 16, 276: 20}


def read_pcap(path):
    """(link type, flat bytes, start, end, wire length, seconds) of a pcap file.

    A file that ends inside a packet gives those before. Raises ValueError for
    what is no pcap file.
    """
    with open(path, "rb") as f:
        raw = f.read()
    orders = {b"\xd4\xc3\xb2\xa1": ("<u4", 1e-6), b"\xa1\xb2\xc3\xd4": (">u4", 1e-6),
              b"\x4d\x3c\xb2\xa1": ("<u4", 1e-9), b"\xa1\xb2\x3c\x4d": (">u4", 1e-9)}
    if raw[:4] not in orders or len(raw) < 24:
        raise ValueError(f"{path}: no pcap file")
    kind, unit = orders[raw[:4]]
    little = "little" if kind[0] == "<" else "big"
    link = int.from_bytes(raw[20:24], little) & 0xFFFF
    at, offsets = 24, []
    while at + 16 <= len(raw) and len(offsets) < SESSION_PACKETS:
        size = int.from_bytes(raw[at + 8:at + 12], little)
        if at + 16 + size > len(raw):
            break
        offsets.append(at)
        at += 16 + size
    offsets = np.array(offsets, np.int64)
    flat = np.frombuffer(raw, np.uint8)
    field = lambda k: flat[offsets[:, None] + 4 * k + np.arange(4)].copy().view(kind)[:, 0].astype(np.int64)
    if len(offsets) == 0:
        none = np.zeros(0, np.int64)
        return link, flat, none, none, none, np.zeros(0)
    start = offsets + 16
    return link, flat, start, start + field(2), field(3), field(0) + field(1) * unit


def sessions(path):
    """The sessions of a pcap file, {endpoints: packets in the order of the file}.

    endpoints is (a, b, protocol) with a < b as `address_key` gives them; a
    packet is (endpoint bytes of the sender, length on the wire, bytes of
    payload on the wire, seconds, TCP flags, TCP window).
    """
    link, flat, start, end, wire, seconds = read_pcap(path)
    if link not in LINKS or len(start) == 0:
        return {}
    skip = LINKS[link]
    walk = Walk(flat, np.minimum(start + skip, end), end, np.maximum(0, wire - skip), ethernet=link == 1)
    tcp = walk.proto == 6
    of = [v.tolist() for v in (wire, walk.length, seconds, np.where(tcp, walk.at(walk.l4 + 13), 0),
                               np.where(tcp, walk.be16(walk.l4 + 14), 0), walk.proto)]
    # Both endpoints of each packet as bytes, address and port; of IPv4 and IPv6
    # at once each, as there are millions of packets.
    sides = [None] * len(start)
    for family, offset, size in ((walk.four, 12, 4), (walk.six, 8, 16)):
        at = np.flatnonzero((walk.proto >= 0) & family)
        part = lambda begin, n, at=at: flat[np.minimum(begin[at, None] + np.arange(n), len(flat) - 1)]
        both = np.concatenate([part(walk.l3 + offset, size), part(walk.l4, 2), part(walk.l3 + offset + size, size),
                               part(walk.l4 + 2, 2)], axis=1).tobytes()
        size += 2
        for k, i in enumerate(at.tolist()):
            sides[i] = both[2 * size * k:2 * size * k + size], both[2 * size * k + size:2 * size * (k + 1)]
    out = {}
    for side, *packet, proto in zip(sides, *of):
        if side:
            out.setdefault((min(side), max(side), proto), []).append((side[0], *packet))
    return out


def signed_lengths(packets, initiator, count):
    """int64 [count]: payload lengths of the first packets with payload of a
    session (rows of `sessions`), less than 0 where the initiator's peer sent
    it; 0 behind the last. initiator: endpoint bytes. What was sent again
    counts again, as it does in a capture of the first bytes."""
    out = np.zeros(count, np.int64)
    signed = [p[2] if p[0] == initiator else -p[2] for p in packets if p[2] > 0][:count]
    out[:len(signed)] = signed
    return out


def address_key(text):
    """The bytes of an endpoint "192.0.2.1:80" or "[2001:db8::1]:80"."""
    import ipaddress

    host, _, port = text.rpartition(":")
    host = host.strip("[]").split("%")[0]
    address = ipaddress.ip_address(host)
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.packed + int(port).to_bytes(2, "big")


def locate(file, folders):
    """The path of a sample's capture below one of folders; raises ValueError."""
    for folder in folders:
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return path
    raise ValueError(f"{file}: not found below {', '.join(folders) or 'no folder'}; name the folder with --captures")
