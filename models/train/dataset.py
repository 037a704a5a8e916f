# SPDX-License-Identifier: Apache-2.0
"""Folders that `earlydrop dataset` writes: reading, masking, splitting."""
import collections
import copy
import csv
import hashlib
import json
import os
import re

import numpy as np

from counts import matches
from settings import RECIPES

FORMAT = 2
BYTES = 1024
BACKGROUND = "background"

# The planes that a model's image may have (classifier/image.go). "byte" is the
# masked capture; the other two leave the headers out, so nothing in them needs
# a mask.
CHANNELS = ("byte", "streams", "packets")

# The plane "packets": rows of 32 bytes, one per packet with payload, behind
# them one per message, which is a run of packets of one direction.
SIDE = 32
SESSION = 64   # packets of session.npy
PACKET_ROWS = 24
MESSAGE_ROWS = 8
STREAM = BYTES // 2


class Data:
    """One or more dataset folders, one behind the other.

    capture, mask: uint8 [N, 1024]; captured: int64 [N], bytes that are in;
    packets: int32 [N, 32, 6], per packet its offset in the capture (-1: no
    packet), its length on the wire, whether the initiator sent it, the
    microseconds since the flow began, where its payload begins in the capture,
    and how long that is on the wire; udp: bool [N]; label, group: arrays of str
    [N]; rows: one dict per sample, all columns of samples.tsv; digest:
    "sha256:..." over the folders' own digests.
    """

    def __init__(self, folders):
        captures, masks, packets, fields, sessions, rows, digests = [], [], [], [], [], [], []
        self.field_names = None
        for folder in folders:
            with open(os.path.join(folder, "dataset.json"), encoding="utf-8") as f:
                info = json.load(f)
            if info.get("format") != FORMAT:
                raise ValueError(f"{folder}: dataset format is {info.get('format')!r}, expected {FORMAT}: write the folder "
                                 "again with this version's earlydrop dataset")
            if self.field_names not in (None, info["fields"]):
                raise ValueError(f"{folder}: its header fields are not those of {folders[0]}: write both with one version of earlydrop")
            self.field_names = info["fields"]
            with open(os.path.join(folder, "samples.tsv"), encoding="utf-8", newline="") as f:
                part = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
            for name, to, kind, shape in (("capture", captures, np.uint8, (BYTES,)), ("mask", masks, np.uint8, (BYTES,)),
                                          ("fields", fields, np.uint8, (BYTES,)), ("packets", packets, np.int32, (SIDE, 6)),
                                          ("session", sessions, np.int32, (SESSION, 6))):
                array = np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")
                if array.dtype != kind or array.shape != (len(part), *shape):
                    raise ValueError(f"{folder}: {name}.npy is {array.dtype} {array.shape}, "
                                     f"expected {np.dtype(kind)} {(len(part), *shape)} as samples.tsv has {len(part)} rows")
                to.append(array)
            rows += part
            digests.append(info["digest"])
        self.capture = np.concatenate(captures)
        self.mask = np.concatenate(masks)
        self.packets = np.concatenate(packets)
        self._fields, self._sessions = fields, sessions   # on disk; few studies need them
        self._place = np.arange(len(rows))                # where in these the samples are
        self.rows = rows
        self.label = np.array([r["label"] for r in rows])
        self.group = np.array([r["group"] for r in rows])
        self.kind = self.column("kind")
        self.captured = np.array([int(r["captured"]) for r in rows])
        self.udp = self.column("proto") == "udp"
        self._payloads = self._planes = self._all_random = None
        self._leave_out()
        self.digest = digests[0]
        if len(digests) > 1:
            self.digest = "sha256:" + hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()

    def __len__(self):
        return len(self.rows)

    def _leave_out(self):
        """Drops background that is of a class all the same: third-party captures
        hold SSH, OpenVPN and so on under the label background. Where that is a
        class of the data, to learn or to count them as background is wrong,
        and to relabel them would be guessing. What a flow is is seen from its
        first bytes, or from the name that its file or folder was given.
        left_out counts them by class."""
        self.left_out = {}
        told = set(self.labels()[1:])
        foreign = np.flatnonzero((self.label == BACKGROUND) & (self.kind == ""))
        if not told or not len(foreign):
            return
        name = evident_class(*self.some_planes(foreign))
        for label in sorted(told):
            word = re.compile(rf"(^|[^a-z]){label}([^a-z]|$)")
            named = np.array([word.search(self.rows[i].get("file", "").lower()) is not None for i in foreign])
            name[named & (name == "")] = label
        drop = foreign[np.isin(name, sorted(told))]
        self.left_out = dict(collections.Counter(name[np.isin(name, sorted(told))].tolist()))
        self._take(np.setdiff1d(np.arange(len(self)), drop))

    def _take(self, indices):
        """Leaves out all samples but those at indices."""
        for name in ("capture", "mask", "packets", "label", "group", "kind", "captured", "udp", "_place"):
            setattr(self, name, getattr(self, name)[indices])
        self.rows = [self.rows[i] for i in indices]
        self._payloads = self._planes = self._all_random = None

    def part(self, indices):
        """A Data of the samples at indices only."""
        other = copy.copy(self)
        other._take(indices)
        return other

    def fields(self, indices):
        """uint8 [n, 1024]: of each byte of the captures at indices the header
        field that it is of, a place in field_names; 0: payload, or behind the
        end."""
        return rows_of(self._fields, self._place[indices])

    def sessions(self, indices):
        """int32 [n, 64, 6]: the first packets of the sessions at indices, also
        those behind the capture: per packet its length on the wire (-1: no
        packet), that of its payload, whether the initiator sent it, the
        microseconds since the session began, its TCP flags and TCP window."""
        return rows_of(self._sessions, self._place[indices])

    def some_planes(self, indices):
        """(streams, packets) of samples, not kept."""
        found = payloads_of(self.captured[indices], self.packets[indices], self.udp[indices, None])
        return planes(self.capture[indices], found)

    def payloads(self):
        """Where the payload is, of all samples; worked out once."""
        if self._payloads is None:
            self._payloads = payloads_of(self.captured, self.packets, self.udp[:, None])
        return self._payloads

    def planes(self):
        """(streams, packets) of all samples, uint8 [N, 1024] each; worked out
        once."""
        if self._planes is None:
            payloads = self.payloads()
            self._planes = tuple(np.empty((len(self), BYTES), np.uint8) for _ in range(2))
            for i in range(0, len(self), 4096):
                some = planes(self.capture[i:i + 4096], Payloads(*(a[i:i + 4096] for a in payloads)))
                for whole, plane in zip(self._planes, some):
                    whole[i:i + 4096] = plane
        return self._planes

    def all_random(self):
        """all_random of these samples; worked out once."""
        if self._all_random is None:
            self._all_random = all_random(self)
        return self._all_random

    def folded(self, classes):
        """The same data in which only classes are distinguished: the flows of all
        other labels are background."""
        missing = sorted(set(classes) - set(self.label))
        if missing:
            raise ValueError(f"the data has no flow of class {', '.join(missing)}")
        self.payloads(), self.planes(), self.all_random()   # shared, so that they are made once
        other = copy.copy(self)
        other.label = np.where(np.isin(self.label, list(classes)), self.label, BACKGROUND)
        return other

    def labels(self):
        """The classes, background first, the others by name."""
        return [BACKGROUND] + sorted(set(self.label) - {BACKGROUND})

    def column(self, name):
        """A column of samples.tsv as an array of str, "" where it has none."""
        return np.array([r.get(name) or "" for r in self.rows])


def mix(x):
    """The finishing step of SplitMix64 on uint64 arrays (classifier/mask.go)."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mask_as_deployed(capture, mask, captured, recipe):
    """Images [N, 1024] with exactly the replacement bytes of the Go program.

    They depend on the capture alone, so an evaluation gives the verdicts that
    `earlydrop replay` gives.
    """
    words = np.ascontiguousarray(capture).view("<u8")
    state = captured.astype(np.uint64) ^ np.uint64(0x243F6A8885A308D3)
    # Whole words first, then always one more, which holds what is left over.
    for w in range(BYTES // 8 + 1):
        word = words[:, w] if w < BYTES // 8 else np.zeros(len(capture), np.uint64)
        state = np.where(w <= captured // 8, mix(state ^ word), state)
    replaced = (mask & RECIPES[recipe]) != 0
    nth = np.cumsum(replaced, axis=1) - 1
    step = (nth // 8 + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    random = mix(state[:, None] + step) >> (nth % 8 * 8).astype(np.uint64)
    return np.where(replaced, random.astype(np.uint8), capture)


def mask_at_random(capture, mask, recipe, rng):
    """Images [N, 1024] with fresh random bytes where the recipe replaces."""
    random = rng.integers(0, 256, capture.shape, dtype=np.uint8)
    return np.where((mask & RECIPES[recipe]) != 0, random, capture)


def rows_of(arrays, places):
    """The rows at places of arrays that stand one behind the other."""
    out = np.empty((len(places), *arrays[0].shape[1:]), arrays[0].dtype)
    first = 0
    for array in arrays:
        here = np.flatnonzero((places >= first) & (places < first + len(array)))
        out[here] = array[places[here] - first]
        first += len(array)
    return out


# What payloads_of tells of each packet, arrays [N, 32]: where its captured
# payload begins and how many bytes of it were captured (uint16), how long it is
# on the wire (int32; 0 where none of it was captured), whether the initiator
# sent it, whether it is UDP (bool), the microseconds since the flow began (int32).
Payloads = collections.namedtuple("Payloads", "start captured length initiator time udp")


def payloads_of(captured, packets, udp):
    """Payloads of captures of `captured` bytes. packets: int [N, 32, 6] as in
    Data; udp: bool [N, 32] or [N, 1]."""
    offset, start, length = packets[:, :, 0], packets[:, :, 4], packets[:, :, 5]
    present = offset >= 0
    end = np.broadcast_to(np.minimum(captured, BYTES)[:, None], offset.shape).copy()
    end[:, :-1] = np.where(present[:, 1:], np.minimum(end[:, :-1], offset[:, 1:]), end[:, :-1])
    inside = np.where(present, np.clip(end - start, 0, length), 0)
    return Payloads(np.where(present, np.minimum(start, end), 0).astype(np.uint16), inside.astype(np.uint16),
                    np.where(inside > 0, length, 0).astype(np.int32), packets[:, :, 2] != 0, packets[:, :, 3].copy(),
                    np.broadcast_to(udp, present.shape) & present)


def planes(capture, payloads):
    """The planes "streams" and "packets", uint8 [N, 1024] each, of captures.

    streams: the initiator's first 512 bytes of payload in the order captured,
    then the responder's. packets: 32 rows of 32 bytes. Rows 0 to 23 are the
    packets of which payload was captured; 24 to 31 the first messages, runs of
    such packets of one direction. In a row: 255; 255 for the initiator, 128
    for the responder; the length of the payload on the wire (two bytes, high
    first, at most 65535); the bytes of it that were captured (two); 255 for
    UDP, 128 for TCP; how many packets it is.
    """
    n = len(capture)
    streams = np.zeros((n, 2, STREAM), np.uint8)
    rows = np.zeros((n, SIDE, SIDE), np.uint8)
    at = np.arange(BYTES)
    # Which bytes of the capture are payload, and whose: +1 where it begins, -1
    # behind its end, summed up.
    present = payloads.captured > 0
    sample, slot = np.nonzero(present)
    begin = payloads.start[sample, slot].astype(np.int64)
    count = payloads.captured[sample, slot].astype(np.int64)
    side = np.where(payloads.initiator[sample, slot], 0, 1)
    edge = np.zeros((n, 2, BYTES + 1), np.int8)
    np.add.at(edge, (sample, side, begin), 1)
    np.add.at(edge, (sample, side, begin + count), -1)
    inside = np.cumsum(edge[:, :, :BYTES], axis=2, dtype=np.int8) > 0
    rank = np.cumsum(inside, axis=2, dtype=np.int16) - 1
    who, whose, where = np.nonzero(inside & (rank < STREAM))
    streams[who, whose, rank[who, whose, where]] = capture[who, at[where]]

    nth = (np.cumsum(present, axis=1) - 1)[sample, slot]
    length = np.minimum(payloads.length[sample, slot], 65535).astype(np.int64)
    proto = np.where(payloads.udp[sample, slot], 255, 128)
    direction = np.where(side == 0, 255, 128)
    keep = nth < PACKET_ROWS
    fill_rows(rows, sample[keep], nth[keep], direction[keep], length[keep], count[keep], proto[keep], 1)

    # Messages: a new one where the sample or the side changes.
    if len(sample):
        new = np.ones(len(sample), bool)
        new[1:] = (sample[1:] != sample[:-1]) | (side[1:] != side[:-1])
        first = np.flatnonzero(new)
        lengths = np.minimum(np.add.reduceat(payloads.length[sample, slot].astype(np.int64), first), 65535)
        counts = np.add.reduceat(count, first)
        many = np.diff(np.append(first, len(sample)))
        order = np.cumsum(new) - 1
        begun = np.zeros(n, np.int64)
        np.add.at(begun, sample[first], 1)
        before = np.cumsum(begun) - begun
        nth = order[first] - before[sample[first]]
        keep = nth < MESSAGE_ROWS
        f = first[keep]
        fill_rows(rows, sample[f], PACKET_ROWS + nth[keep], direction[f], lengths[keep], counts[keep], proto[f], many[keep])
    return streams.reshape(n, BYTES), rows.reshape(n, BYTES)


def fill_rows(rows, sample, row, direction, length, captured, proto, packets):
    rows[sample, row, 0] = 255
    rows[sample, row, 1] = direction
    rows[sample, row, 2] = length >> 8
    rows[sample, row, 3] = length & 255
    rows[sample, row, 4] = captured >> 8
    rows[sample, row, 5] = captured & 255
    rows[sample, row, 6] = proto
    rows[sample, row, 7] = packets


def evident_class(streams, packets):
    """Which of some classes flows are of by their own words, "" for none: an
    array of str [n]. It knows the first messages of SSH, SOCKS5, WireGuard and
    of OpenVPN with TLS, and nothing that random bytes could be."""
    side = streams.reshape(-1, 2, STREAM).astype(np.int64)
    rows = packets.reshape(-1, SIDE, SIDE).astype(np.int64)
    first, answer = side[:, 0], side[:, 1]
    length, udp = rows[:, 0, 2] << 8 | rows[:, 0, 3], rows[:, 0, 6] == 255
    begins = lambda s, text: (s[:, :len(text)] == list(text)).all(axis=1)
    out = np.full(len(streams), "", dtype="U16")
    out[(begins(first, b"SSH-") | begins(answer, b"SSH-")) & ~udp] = "ssh"
    out[begins(first, b"\5") & (length == 2 + first[:, 1]) & begins(answer, b"\5") & np.isin(answer[:, 1], (0, 2, 255)) & ~udp] = "socks5"
    out[begins(first, b"\1\0\0\0") & (length == 148) & udp] = "wireguard"
    # A reset of either side, new or old, and its length before it over TCP.
    reset = lambda s, at: np.isin(s[:, at], (1 << 3, 7 << 3, 10 << 3)) & (s[:, at + 9:at + 14] == 0).all(axis=1)
    out[reset(first, 0) & (length >= 14) & udp] = "openvpn"
    out[reset(first, 2) & ((first[:, 0] << 8 | first[:, 1]) + 2 == length) & ~udp] = "openvpn"
    return out


def split_groups(data, test_patterns, validation_patterns, seed, test_share=0.2, validation_share=0.15):
    """Assigns whole groups to train, validation and test.

    Returns {group: "train" | "validation" | "test"}. Patterns decide where
    they match, test before validation. Without a pattern for a part, its share
    of the remaining groups is drawn: among the groups with wanted classes and
    among those with background only, each by themselves, so that every part
    has both.
    """
    groups = sorted(set(data.group))
    wanted = set(data.group[data.label != BACKGROUND])
    part = {}
    for g in groups:
        if matches(g, test_patterns):
            part[g] = "test"
        elif matches(g, validation_patterns):
            part[g] = "validation"
    rng = np.random.default_rng(seed)
    for pool in ([g for g in groups if g in wanted], [g for g in groups if g not in wanted]):
        free = [g for g in pool if g not in part]
        rng.shuffle(free)
        for name, patterns, share in (("test", test_patterns, test_share),
                                      ("validation", validation_patterns, validation_share)):
            if patterns or not free:
                continue
            n = min(max(1, round(share * len(pool))), len(free))
            for g in free[:n]:
                part[g] = name
            free = free[n:]
        for g in free:
            part[g] = "train"
    return part


class Sampler:
    """Draws the training samples of an epoch.

    Half of them are background, the other half are the flows of the other
    classes, each as often as any. Of
    the background, random : real is random_ratio, where the random part is
    images of uniformly random bytes (the paper's approximate completeness).
    Of the real background, captures_share comes from groups that hold nothing
    else, the rest from groups that hold wanted classes too, random_like_share
    of that from their flows of the kind random-like (None: as many as there
    are). Among the groups of a kind each is drawn with the square root of its size, counted up to limit:
    a large source must not drown the small ones.
    """

    def __init__(self, data, indices, labels, size, random_ratio, captures_share, limit, rng, random_like_share=None):
        self.data, self.rng = data, rng
        background = size // 2
        self.random = round(background * random_ratio / (1 + random_ratio))
        self.pools = []   # (class number, indices, draws per epoch)
        innocent = indices[data.label[indices] == BACKGROUND]
        wanted = set(data.group[indices[data.label[indices] != BACKGROUND]])
        lab = np.isin(data.group[innocent], sorted(wanted))
        hard = lab & (data.kind[innocent] == "random-like")
        kinds = [(captures_share, innocent[~lab]), (1 - captures_share, innocent[lab])]
        if random_like_share is not None and hard.any():
            kinds[1:] = [((1 - captures_share) * (1 - random_like_share), innocent[lab & ~hard]),
                         ((1 - captures_share) * random_like_share, innocent[hard])]
        kinds = [(share, part) for share, part in kinds if len(part) and share > 0]
        whole = sum(share for share, _ in kinds)
        for share, part in kinds:
            index = {g: part[data.group[part] == g] for g in sorted(set(data.group[part]))}
            weight = {g: np.sqrt(min(len(i), limit)) for g, i in index.items()}
            for g, i in index.items():
                draws = (background - self.random) * share / whole * weight[g] / sum(weight.values())
                self.pools.append((0, i, draws))
        among = np.isin(data.label[indices], labels[1:]).sum()
        for k, label in enumerate(labels[1:], 1):
            i = indices[data.label[indices] == label]
            if len(i) == 0:
                raise ValueError(f"no training sample of class {label}: its groups are all held out")
            self.pools.append((k, i, (size - background) * len(i) / among))
        self.decks = [np.empty(0, np.int64) for _ in self.pools]

    def draw(self, pool, n):
        """n indices of a pool; all of it is dealt before any comes again."""
        out = []
        while n > 0:
            if len(self.decks[pool]) == 0:
                self.decks[pool] = self.rng.permutation(self.pools[pool][1])
            out.append(self.decks[pool][:n])
            self.decks[pool] = self.decks[pool][n:]
            n -= len(out[-1])
        return np.concatenate(out) if out else np.empty(0, np.int64)

    def epoch(self):
        """(indices, classes) of one epoch in random order; index -1 stands for
        a random image."""
        indices, classes = [np.full(self.random, -1)], [np.zeros(self.random, np.int64)]
        for p, (k, _, share) in enumerate(self.pools):
            n = int(share) + (self.rng.random() < share % 1)
            indices.append(self.draw(p, n))
            classes.append(np.full(n, k))
        indices, classes = np.concatenate(indices), np.concatenate(classes)
        order = self.rng.permutation(len(indices))
        return indices[order], classes[order]


def images(data, indices, channels, recipe):
    """Images uint8 [n, channels, 1024] exactly as the Go program renders them."""
    out = np.empty((len(indices), len(channels), BYTES), np.uint8)
    if "byte" in channels:
        out[:, channels.index("byte")] = mask_as_deployed(data.capture[indices], data.mask[indices],
                                                          data.captured[indices], recipe)
    fill_planes(out, data, indices, channels)
    return out


def fill_planes(out, data, indices, channels):
    for name, plane in zip(("streams", "packets"), data.planes() if set(channels) & {"streams", "packets"} else ()):
        if name in channels:
            out[:, channels.index(name)] = plane[indices]


def all_random(data):
    """bool [N]: flows of the lab whose payload is random from the first byte on
    by the way their protocol is made, so that other random bytes in its place
    make another flow of the same kind.

    It is told from many flows of one label, program and cipher (and, of
    ordinary background, of what was carried): in none of the first 32 bytes, nor in some
    behind them, of the first six packets of either side may a half of the byte
    have its values more unevenly than chance makes them.
    """
    carried = np.where(data.kind == "ordinary", data.column("carried"), "")
    sort = np.array(["\t".join(v) for v in zip(data.label, data.column("program"), data.column("cipher"), carried)])
    payloads = data.payloads()
    out = np.zeros(len(data), bool)
    for name in sorted(set(sort[data.kind != ""])):
        flows = np.flatnonzero((sort == name) & (data.kind != ""))
        if len(flows) < 50:
            continue
        present = payloads.captured[flows] > 0
        sample, slot = np.nonzero(present)
        nth = (np.cumsum(present, axis=1) - 1)[sample, slot]
        begin = payloads.start[flows][sample, slot].astype(np.int64)
        count = payloads.captured[flows][sample, slot]
        place = nth * 2 + payloads.initiator[flows][sample, slot]
        out[flows] = True
        for byte in (*range(32), *range(39, 400, 8)):
            some = (count > byte) & (nth < 6)
            value = data.capture[flows[sample[some]], begin[some] + byte]
            for half in (value >> 4, value & 15):
                seen = np.bincount(place[some] * 16 + half, minlength=192).reshape(12, 16)
                expected = seen.sum(axis=1) / 16
                # Chi-squared of 15 degrees of freedom, in standard deviations.
                far = (((seen - expected[:, None]) ** 2).sum(axis=1) / np.maximum(expected, 1) - 15) / np.sqrt(30)
                if (far[expected >= 2.5] > 10).any():
                    out[flows] = False
    return out


def training_images(data, indices, channels, recipe, cut_share, rng, pool, segment_share=0.0):
    """Images uint8 [n, channels, 1024] of a batch.

    Everything that may differ without the class being another one is drawn
    again: the bytes under the mask, the payload of flows that are random
    throughout, for a cut_share of the captures where they end, so that no
    class is told by how much of it was captured, and for a segment_share the
    packets that a message goes out in (see resegment).

    Index -1 stands for a flow that is made up, and background: random bytes
    all over the plane byte; in the planes without headers, either the packets
    of some flow of background with random bytes in them, or the packets of any
    flow with the bytes of some ordinary one. pool: indices of the samples that
    such flows are made of.
    """
    n = len(indices)
    noise = indices < 0
    real = np.maximum(indices, 0)
    mixed = noise & (rng.random(n) < 0.5)
    if noise.any() and set(channels) != {"byte"}:
        innocent = data.label[pool] == BACKGROUND
        real[noise] = rng.choice(pool[innocent], int(noise.sum()))
        some = pool if innocent.all() else pool[~innocent]
        real[mixed] = rng.choice(some, int(mixed.sum()))
    out = np.empty((n, len(channels), BYTES), np.uint8)
    cut = rng.random(n) < cut_share
    ends = rng.integers(200, BYTES, n)
    if "byte" in channels:
        plane = mask_at_random(data.capture[real], data.mask[real], recipe, rng)
        plane[cut[:, None] & (np.arange(BYTES) >= ends[:, None])] = 0
        plane[noise] = rng.integers(0, 256, (int(noise.sum()), BYTES), dtype=np.uint8)
        out[:, channels.index("byte")] = plane
    fill_planes(out, data, real, channels)
    if "streams" in channels or "packets" in channels:
        which = np.flatnonzero(cut)
        if len(which):
            shortened = cut_payloads(data.payloads(), real[which], ends[which])
            for name, plane in zip(("streams", "packets"), planes(data.capture[real[which]], shortened)):
                if name in channels:
                    out[which, channels.index(name)] = plane
    if "packets" in channels and segment_share:
        resegment(out[:, channels.index("packets")], rng, segment_share)
    if "streams" in channels:
        used = payload_bytes(data.payloads(), real, np.where(cut, ends, BYTES))
        which = np.flatnonzero(noise & ~mixed | data.all_random()[real] & ~noise)
        streams = out[which, channels.index("streams")].reshape(-1, 2, STREAM)
        random = rng.integers(0, 256, streams.shape, dtype=np.uint8)
        streams = np.where(np.arange(STREAM) < used[which][:, :, None], random, streams)
        out[which, channels.index("streams")] = streams.reshape(-1, BYTES)
        which = np.flatnonzero(mixed)
        if len(which):
            plain = pool[(data.label[pool] == BACKGROUND) & (data.kind[pool] != "random-like")]
            donor = rng.choice(plain, len(which))
            given = np.clip(payload_bytes(data.payloads(), donor, np.full(len(which), BYTES)), 1, STREAM)
            # The donor's bytes over and over where it has fewer.
            place = np.arange(STREAM) % given[:, :, None]
            streams = np.take_along_axis(data.planes()[0][donor].reshape(-1, 2, STREAM), place, axis=2)
            streams = np.where(np.arange(STREAM) < used[which][:, :, None], streams, 0)
            out[which, channels.index("streams")] = streams.reshape(-1, BYTES)
        ordinary = mixed | (data.label[real] == BACKGROUND) & (data.kind[real] != "random-like") & ~noise
        which = np.flatnonzero(ordinary & (rng.random(n) < SCRAMBLED))
        if len(which):
            out[which, channels.index("streams")] = scrambled(out[which, channels.index("streams")], used[which], rng)
    return out


# Share of the ordinary background in which bytes change their places.
SCRAMBLED = 0.3


# Where resegment may cut a packet in two, how short the parts may be, and how
# long what it joins: no longer than a segment.
CUT_AT = (20, 200)
PART = 16
JOINED = 1400


def resegment(planes, rng, share):
    """Sends the first message of a side in other packets, in a share of the
    planes "packets" [n, 1024], in place, for each side by itself: its first two
    packets become one, or its first packet two.

    Whether a header goes out by itself or together with what it is about is a
    matter of the program, and of its release, not of the protocol. Datagrams
    stay as they are, and so do the messages, but for their number of packets.
    """
    n = len(planes)
    rows, every, place = planes.reshape(n, SIDE, SIDE), np.arange(n), np.arange(PACKET_ROWS)
    for direction in (255, 128):
        first = (rows[:, :PACKET_ROWS, 1] == direction).argmax(axis=1)
        second = np.minimum(first + 1, PACKET_ROWS - 1)
        message = PACKET_ROWS + (rows[:, PACKET_ROWS:, 1] == direction).argmax(axis=1)
        word = lambda row, at: rows[every, row, at].astype(np.int64) << 8 | rows[every, row, at + 1]
        length, captured, length2, captured2 = word(first, 2), word(first, 4), word(second, 2), word(second, 4)
        chosen = (rng.random(n) < share) & (rows[every, first, 1] == direction) & (rows[every, first, 6] == 128)
        joins = chosen & (first < second) & (rows[every, second, 1] == direction) & (length + length2 <= JOINED)
        at = rng.integers(*CUT_AT, n)
        cuts = chosen & ~joins & (first < second) & (length >= at + PART) & (captured > at)
        # Rows move up behind two that become one, and down behind one that becomes two.
        source = place + np.where(place > first[:, None], joins[:, None].astype(int) - cuts[:, None], 0)
        moved = np.where((source < PACKET_ROWS)[:, :, None], np.take_along_axis(rows, np.minimum(source, SIDE - 1)[:, :, None], axis=1), 0)
        rows[:, :PACKET_ROWS] = moved

        def put(which, row, lengths, bytes_captured):
            i = np.flatnonzero(which)
            for column, values in ((2, lengths[i]), (4, bytes_captured[i])):
                rows[i, row[i], column], rows[i, row[i], column + 1] = values >> 8, values & 255

        put(joins, first, length + length2, captured + captured2)
        put(cuts, first, at, at)
        put(cuts, second, length - at, captured - at)
        rows[every, message, 7] += cuts.astype(np.uint8) - joins.astype(np.uint8)


def scrambled(streams, used, rng):
    """Streams [n, 1024] in which up to 60 % of each flow's bytes are replaced by
    others of the same side, so that what is ordinary is not known by its exact
    words. used: bytes of the sides, [n, 2]."""
    streams = streams.reshape(-1, 2, STREAM)
    used = np.clip(used, 1, STREAM)[:, :, None]
    place = np.arange(STREAM)
    other = (rng.random(streams.shape, dtype=np.float32) * used).astype(np.int64)
    move = (rng.random(streams.shape, dtype=np.float32) < 0.6 * rng.random((len(streams), 1, 1))) & (place < used)
    return np.take_along_axis(streams, np.where(move, other, place), axis=2).reshape(-1, BYTES)


def cut_payloads(payloads, indices, ends):
    """Payloads of samples as if their captures ended earlier."""
    part = Payloads(*(a[indices] for a in payloads))
    captured = np.clip(ends[:, None] - part.start.astype(np.int64), 0, part.captured).astype(np.uint16)
    return part._replace(captured=captured, length=np.where(captured > 0, part.length, 0))


def payload_bytes(payloads, indices, ends):
    """int64 [n, 2]: bytes of payload captured of the initiator and of the
    responder, before the ends."""
    part = cut_payloads(payloads, indices, ends)
    of = part.initiator
    count = part.captured.astype(np.int64)
    return np.stack([(count * of).sum(axis=1), (count * ~of).sum(axis=1)], axis=1)
