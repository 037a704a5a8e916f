# SPDX-License-Identifier: Apache-2.0
"""What a verdict hangs on: parts of the input replaced by random values."""
import numpy as np

import dataset
import eval_packets
import fit
from eval_base import verdicts
from eval_report import among, share, table, text

# Flows of test groups that shortcuts replaces fields of.
SHORTCUT_FLOWS = 3000


def header_fields(data, indices):
    """{field: bool [n, 1024]}: where the bytes of the capture belong."""
    capture, packets, n = data.capture[indices], data.packets[indices], len(indices)
    offset = packets[:, :, 0].astype(np.int64)
    row, column = np.nonzero(offset >= 0)
    following = np.concatenate([offset[:, 1:], np.full((n, 1), -1)], axis=1)
    end = np.where(following >= 0, following, data.captured[indices][:, None])
    base = row * dataset.BYTES
    start, end = base + offset[row, column], base + end[row, column]
    w = eval_packets.Walk(np.ascontiguousarray(capture).reshape(-1), start, end, packets[row, column, 1].astype(np.int64))
    payloads = data.payloads()
    begin = np.minimum(end, base + payloads.start[indices][row, column].astype(np.int64))
    begin = np.where(w.proto >= 0, begin, end)
    initiator = packets[row, column, 2] != 0
    tcp, udp, four, six = w.proto == 6, w.proto == 17, w.four, w.six
    l3, l4 = w.l3, np.where(w.proto >= 0, np.minimum(w.l4, end), end)
    options = np.minimum(l4 + 20, begin)
    spans = [("MAC addresses", start, start + 12, True), ("EtherType and VLAN tags", start + 12, l3, True),
             ("IP version and header length", l3, l3 + 1, four | six), ("IPv4 type of service", l3 + 1, l3 + 2, four),
             ("IP total or payload length", l3 + np.where(four, 2, 4), l3 + np.where(four, 4, 6), four | six),
             ("IPv4 identification, IPv6 flow label", l3 + np.where(four, 4, 1), l3 + np.where(four, 6, 4), four | six),
             ("IPv4 flags and fragment offset", l3 + 6, l3 + 8, four), ("TTL, hop limit", l3 + np.where(four, 8, 7), l3 + np.where(four, 9, 8), four | six),
             ("IP protocol", l3 + np.where(four, 9, 6), l3 + np.where(four, 10, 7), four | six), ("IPv4 checksum", l3 + 10, l3 + 12, four),
             ("IP addresses", l3 + np.where(four, 12, 8), l3 + np.where(four, 20, 40), four | six),
             ("IP options, extension headers", l3 + np.where(four, 20, 40), l4, four | six),
             ("ports", l4, l4 + 4, tcp | udp), ("TCP sequence and acknowledgement numbers", l4 + 4, l4 + 12, tcp),
             ("TCP header length and flags", l4 + 12, l4 + 14, tcp), ("TCP window", l4 + 14, l4 + 16, tcp),
             ("TCP checksum", l4 + 16, l4 + 18, tcp), ("TCP urgent pointer", l4 + 18, l4 + 20, tcp), ("TCP options", options, begin, tcp),
             ("UDP length", l4 + 4, l4 + 6, udp), ("UDP checksum", l4 + 6, l4 + 8, udp),
             ("payload of the initiator", begin, end, initiator), ("payload of the responder", begin, end, ~initiator)]
    out = {}
    for name, a, b, when in spans:
        a, b = np.clip(a, start, end), np.clip(b, start, end)
        use = np.broadcast_to(when, a.shape) & (b > a)
        edge = np.zeros((n, dataset.BYTES + 1), np.int16)
        np.add.at(edge, (row[use], (a - base)[use]), 1)
        np.add.at(edge, (row[use], (b - base)[use]), -1)
        out[name] = np.cumsum(edge[:, :dataset.BYTES], axis=1) > 0
    return out


def replacements(data, indices, channels, images, rng):
    """Yields (field, share of flows that have it, images with the field
    replaced by random values)."""
    n = len(indices)
    if "byte" in channels:
        c = channels.index("byte")
        for name, where in header_fields(data, indices).items():
            if where.any():
                other = images.copy()
                other[:, c] = np.where(where, rng.integers(0, 256, where.shape, dtype=np.uint8), images[:, c])
                yield name, where.any(axis=1), other
    if "streams" in channels:
        c = channels.index("streams")
        used = dataset.payload_bytes(data.payloads(), indices, np.full(n, dataset.BYTES))
        for side, whose in enumerate(("initiator", "responder")):
            for a, b in ((0, 16), (16, 64), (64, dataset.STREAM)):
                at = np.arange(dataset.STREAM)
                where = (at >= a) & (at < np.minimum(b, used[:, side])[:, None])
                other = images.copy()
                plane = other[:, c].reshape(n, 2, dataset.STREAM)
                plane[:, side] = np.where(where, rng.integers(0, 256, where.shape, dtype=np.uint8), plane[:, side])
                other[:, c] = plane.reshape(n, dataset.BYTES)
                yield f"payload of the {whose}, bytes {a} to {b - 1}", where.any(axis=1), other
    if "packets" in channels:
        c = channels.index("packets")
        present = images[:, c].reshape(n, dataset.SIDE, dataset.SIDE)[:, :, 0] == 255

        def put(column, values, rows):
            other = images.copy()
            plane = other[:, c].reshape(n, dataset.SIDE, dataset.SIDE)
            plane[:, rows, column] = np.where(present[:, rows], values, plane[:, rows, column])
            other[:, c] = plane.reshape(n, dataset.BYTES)
            return other

        shape = (n, dataset.SIDE)
        everywhere, first = slice(0, dataset.SIDE), slice(0, dataset.PACKET_ROWS)
        length = rng.integers(1, 1461, shape)
        for name, rows in (("lengths of packets", first), ("lengths of messages", slice(dataset.PACKET_ROWS, dataset.SIDE)),
                           ("lengths of both", everywhere)):
            high = put(2, (length >> 8)[:, rows], rows)
            plane = high[:, c].reshape(n, dataset.SIDE, dataset.SIDE)
            plane[:, rows, 3] = np.where(present[:, rows], (length & 255)[:, rows], plane[:, rows, 3])
            high[:, c] = plane.reshape(n, dataset.BYTES)
            yield name, present.any(axis=1), high
        for name, column, values in (("directions of packets and messages", 1, np.where(rng.random(shape) < 0.5, 255, 128)),
                                     ("TCP or UDP", 6, np.where(rng.random((n, 1)) < 0.5, 255, 128)),
                                     ("packets per message", 7, rng.integers(1, 9, shape))):
            yield name, present.any(axis=1), put(column, np.broadcast_to(values, shape), everywhere)


def shortcuts(e):
    """Occlusion: which part of the input the verdict hangs on."""
    rng = np.random.default_rng(e.args.seed)
    test = np.sort(rng.permutation(np.flatnonzero((e.where == "test") & ~e.wrapped))[:SHORTCUT_FLOWS])
    out = []
    if not e.models:
        raise ValueError("shortcuts measures model files: name one with --model")
    for m in e.models:
        def one(m=m):
            channels = m.predictor.channels
            images = dataset.images(e.data, test, channels, m.predictor.mask)
            before = m.p_images(images)
            taken, likelier = verdicts(before, m.any_threshold)
            known = np.isin(e.data.label[test], m.labels) & e.wanted[test]
            told = lambda p, who: among(p[:, 1:].argmax(axis=1) + 1 == np.maximum(0, e.truth(test, m.labels)), who)
            found = {"nothing": {"flows": len(test), "moved": 0.0, "changed": share(0, len(test)), "lost": share(0, taken.sum()),
                                 "recall": among(taken, known), "ordinary": among(taken, e.ordinary[test]), "told": told(before, known)}}
            for name, has, replaced in replacements(e.data, test, channels, images, np.random.default_rng(e.args.seed)):
                p = m.p_images(replaced)
                now, _ = verdicts(p, m.any_threshold)
                found[name] = {"flows": int(has.sum()), "moved": float(np.abs(fit.wanted_sum(p) - fit.wanted_sum(before))[has].mean()),
                               "changed": among(now != taken, has), "lost": among(~now, taken & has),
                               "recall": among(now, known), "ordinary": among(now, e.ordinary[test]), "told": told(p, known)}
            return found

        r = e.store.get("shortcuts", e.options(model=m.key(), flows=len(test)), one)
        rows = [[name, s["flows"], f"{s['moved']:.4f}", text(s["changed"]), text(s["lost"]), text(s["recall"]), text(s["told"]), text(s["ordinary"])]
                for name, s in r.items()]
        out += [f"{m.name} (planes {', '.join(m.predictor.channels)}; mask {m.predictor.mask}), {len(test)} flows of test groups:", "",
                table(["replaced by random values", "flows that have it", "P(tunnel) moves by, mean", "verdict changes", "taken flows lost",
                       "tunnels taken", "likelier class is right", "ordinary taken"], rows), ""]
    e.store.show("shortcuts", "What the verdict hangs on: in the masked image each field is replaced by random values (of its range).\n\n" +
                 "\n".join(out).rstrip())
