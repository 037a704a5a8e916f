# SPDX-License-Identifier: Apache-2.0
"""What the tests make datasets of."""
import json
import os
import re

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def field_names():
    """The names of header fields as `earlydrop dataset` writes them."""
    with open(os.path.join(HERE, "../../loader/flow/headers/fields.go"), encoding="utf-8") as f:
        text = f.read().split("var fieldNames = ")[1].split("\n}")[0]
    return ["payload", *re.findall(r': "([^"]+)"', text)]


def header(udp=False):
    """uint8 array: of each byte of an Ethernet, an IPv4 and a TCP or UDP header
    without options the number of its field."""
    names = field_names()
    sizes = [("Ethernet destination", 6), ("Ethernet source", 6), ("EtherType", 2), ("IPv4 version and header length", 1),
             ("IPv4 DSCP and ECN", 1), ("IPv4 total length", 2), ("IPv4 identification", 2), ("IPv4 flags and fragment offset", 2),
             ("IPv4 TTL", 1), ("IPv4 protocol", 1), ("IPv4 header checksum", 2), ("IPv4 source address", 4), ("IPv4 destination address", 4)]
    sizes += ([("UDP source port", 2), ("UDP destination port", 2), ("UDP length", 2), ("UDP checksum", 2)] if udp else
              [("TCP source port", 2), ("TCP destination port", 2), ("TCP sequence number", 4), ("TCP acknowledgement number", 4),
               ("TCP header length", 1), ("TCP flags", 1), ("TCP window", 2), ("TCP checksum", 2), ("TCP urgent pointer", 2)])
    return np.concatenate([np.full(size, names.index(name), np.uint8) for name, size in sizes])


def lay_out(frames, udp=False):
    """(capture, fields, packets, captured): a row each of a dataset, of frames
    (bytes, from the initiator, microseconds) with the headers of `header`."""
    capture, fields, packets = np.zeros(1024, np.uint8), np.zeros(1024, np.uint8), np.zeros((32, 6), np.int32)
    packets[:, 0] = -1
    at, head = 0, header(udp)
    for k, (data, initiator, time) in enumerate(frames):
        kept = data[:1024 - at]
        if not kept:
            break
        capture[at:at + len(kept)] = np.frombuffer(kept, np.uint8)
        fields[at:at + min(len(head), len(kept))] = head[:len(kept)]
        packets[k] = at, len(data), initiator, time, at + min(len(head), len(kept)), len(data) - len(head)
        at += len(kept)
    return capture, fields, packets, at


def session(packets):
    """int32 [64, 6], a row of session.npy, of packets (length of the payload,
    from the initiator, microseconds) with 54 bytes of headers."""
    out = np.zeros((64, 6), np.int32)
    out[:, 0] = -1
    for k, (length, initiator, time) in enumerate(packets[:64]):
        out[k] = 54 + length, length, initiator, time, 0x18, 500
    return out


def write(folder, columns, rows, digest, **arrays):
    """Writes a dataset folder. arrays: those of its files, by name."""
    os.makedirs(folder)
    for name, array in arrays.items():
        np.save(os.path.join(folder, f"{name}.npy"), array)
    with open(os.path.join(folder, "samples.tsv"), "w", encoding="utf-8") as f:
        f.writelines("\t".join(map(str, row)) + "\n" for row in [columns, *rows])
    with open(os.path.join(folder, "dataset.json"), "w", encoding="utf-8") as f:
        json.dump({"format": 2, "digest": "sha256:" + 64 * digest, "fields": field_names()}, f)
