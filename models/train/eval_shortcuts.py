# SPDX-License-Identifier: Apache-2.0
"""What a verdict depends on: parts of the input replaced by random values."""
import numpy as np

import dataset
import fit
from counts import among, share, table, text
from eval_base import verdicts

# Flows of test groups that shortcuts replaces fields of.
SHORTCUT_FLOWS = 3000


# The header fields whose bytes are replaced together, by the beginning of their
# names in the dataset.
GROUPS = {
    "MAC addresses": ("Ethernet",),
    "EtherType and VLAN tags": ("EtherType", "VLAN tag"),
    "IP version and header length": ("IPv4 version", "IPv6 version"),
    "IPv4 type of service": ("IPv4 DSCP",),
    "IP total or payload length": ("IPv4 total length", "IPv6 payload length"),
    "IPv4 identification, IPv6 flow label": ("IPv4 identification", "IPv6 flow label"),
    "IPv4 flags and fragment offset": ("IPv4 flags",),
    "TTL, hop limit": ("IPv4 TTL", "IPv6 hop limit"),
    "IP protocol": ("IPv4 protocol", "IPv6 next header"),
    "IPv4 checksum": ("IPv4 header checksum",),
    "IP addresses": ("IPv4 source", "IPv4 destination address", "IPv6 source", "IPv6 destination address"),
    "IP options, extension headers": ("IPv4 options", "IPv6 hop-by-hop", "IPv6 destination options", "IPv6 routing",
                                      "IPv6 fragment", "IPv6 authentication"),
    "ports": ("TCP source", "TCP destination", "UDP source", "UDP destination"),
    "TCP sequence and acknowledgement numbers": ("TCP sequence", "TCP acknowledgement"),
    "TCP header length and flags": ("TCP header length", "TCP flags"),
    "TCP window": ("TCP window",),
    "TCP checksum": ("TCP checksum",),
    "TCP urgent pointer": ("TCP urgent",),
    "TCP options": ("TCP option",),
    "UDP length": ("UDP length",),
    "UDP checksum": ("UDP checksum",),
}


def header_fields(data, indices):
    """{field: bool [n, 1024]}: where the bytes of the capture belong."""
    fields, n = data.fields(indices), len(indices)
    out = {}
    for group, beginnings in GROUPS.items():
        numbers = [k for k, name in enumerate(data.field_names) if name.startswith(beginnings)]
        if not numbers:
            raise ValueError(f"the dataset has no header field that begins with {' or '.join(beginnings)}")
        out[group] = np.isin(fields, numbers)
    payloads = data.payloads()
    for side in ("initiator", "responder"):
        row, column = np.nonzero((payloads.captured[indices] > 0) & (payloads.initiator[indices] == (side == "initiator")))
        begin = payloads.start[indices][row, column].astype(np.int64)
        edge = np.zeros((n, dataset.BYTES + 1), np.int16)
        np.add.at(edge, (row, begin), 1)
        np.add.at(edge, (row, begin + payloads.captured[indices][row, column]), -1)
        out[f"payload of the {side}"] = np.cumsum(edge[:, :dataset.BYTES], axis=1) > 0
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
    """Occlusion: which part of the input the verdict depends on."""
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
    e.store.show("shortcuts", "What the verdict depends on: in the masked image each field is replaced by random values (of its range).\n\n" +
                 "\n".join(out).rstrip())
