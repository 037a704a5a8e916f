# SPDX-License-Identifier: Apache-2.0
"""What the baselines of the evaluation see of a flow: the payload of a sample,
the first packets of its session, the key of its flow in its capture file."""
import os

import numpy as np

BYTES = 1024


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


# Columns of Data.sessions.
WIRE, LENGTH, INITIATOR, MICROSECONDS, FLAGS, WINDOW = range(6)


def signed_lengths(sessions, count):
    """int64 [n, count]: payload lengths of the first packets with payload of
    sessions (rows of Data.sessions), less than 0 where the responder sent it; 0
    behind the last one that is known. What was sent again counts again, as it
    does in a capture of the first bytes."""
    length = sessions[:, :, LENGTH].astype(np.int64)
    present = (sessions[:, :, WIRE] >= 0) & (length > 0)
    nth = np.cumsum(present, axis=1) - 1
    row, column = np.nonzero(present & (nth < count))
    out = np.zeros((len(sessions), count), np.int64)
    out[row, nth[row, column]] = np.where(sessions[row, column, INITIATOR] != 0, 1, -1) * length[row, column]
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
