# SPDX-License-Identifier: Apache-2.0
"""The networks, and the way they become model files for earlydrop."""
import json
import os
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dataset

SIDE = 32
PIXELS = SIDE * SIDE

# The version of the contract between a model file and the Go program; the Go
# side is classifier/manifest.go.
FORMAT = 1
PREFIX = "earlydrop."


# The planes that each network sees.
CHANNELS = {"paper": ["byte"], "compact": ["streams", "packets"]}


class PaperNet(nn.Module):
    """The CNN of the paper's Table 2: five convolutions, three full layers.

    The paper leaves open where the three poolings stand, their kind, and the
    padding; here they are max poolings after C1, C2 and C5, and "same".

    Input:  uint8 [N, 1, 32, 32]. It is scaled to 0..1 inside the network, so
            that whoever runs the model has nothing to do but copy bytes.
    Output: float32 [N, labels], logits.
    """

    def __init__(self, labels, planes=1, dropout=0.5):
        super().__init__()

        def conv(i, o, kernel):
            return nn.Sequential(nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.ReLU(inplace=True))

        pool = nn.MaxPool2d(2, 2)
        self.features = nn.Sequential(
            conv(planes, 32, 5), pool,     # C1, P1: 32 x 16 x 16
            conv(32, 64, 5), pool,         # C2, P2: 64 x 8 x 8
            conv(64, 128, 3),              # C3
            conv(128, 256, 3),             # C4
            conv(256, 256, 3), pool,       # C5, P3: 256 x 4 x 4
        )
        self.classifier = nn.Sequential(
            nn.Flatten(1),
            nn.Linear(256 * 4 * 4, 1024), nn.ReLU(inplace=True), nn.Dropout(dropout),   # F1
            nn.Linear(1024, 1024), nn.ReLU(inplace=True), nn.Dropout(dropout),          # F2
            nn.Linear(1024, labels),
        )

    def forward(self, image):
        return self.classifier(self.features(image.float() * (1 / 255)))

    def last(self):
        """The layer that gives the logits."""
        return self.classifier[-1]


# What CompactNet looks at: so many packets and messages, so many bytes at the
# beginning of each side by themselves, and the rest in chunks.
PACKETS = 10
MESSAGES = dataset.MESSAGE_ROWS
FIRST = 32
CHUNK = 16
STREAM = dataset.STREAM
LENGTHS = 2048   # a payload of this length or more is like any other such
LENGTH_SIZE = 16
BYTE_SIZE = 8


def length_features():
    """float32 [LENGTHS, F]: what is known of a length before anything is
    learnt: its bits, where it lies on a logarithmic scale, and its phase."""
    n = np.arange(LENGTHS)
    log = np.log2(1 + n)
    columns = [(n >> b & 1) * 2.0 - 1 for b in range(11)]
    columns += [np.clip((log - t) * 4, -1, 1) for t in np.arange(0.5, 11, 0.5)]
    columns += [f(2 * np.pi * n / period) for period in (16, 32, 64, 128, 256, 512) for f in (np.sin, np.cos)]
    columns += [log / 11, (n > 0) * 1.0]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def byte_features():
    """float32 [257, BYTE_SIZE]: what the network begins with to know of a byte,
    the value one less than the index: its bits set, whether it is printable,
    a letter, a digit or 0, and how large it is. Index 0 is no byte."""
    n = np.arange(256)
    ones = np.array([bin(v).count("1") for v in n]) - 4.0
    letter = ((n | 32) >= ord("a")) & ((n | 32) <= ord("z"))
    columns = [ones / np.sqrt(2), (ones ** 2 - 2) / 2, (n >= 32) & (n < 127), letter, (n >= 48) & (n < 58), n == 0,
               n >= 128, n / 128 - 1]
    return torch.from_numpy(np.vstack([np.zeros(BYTE_SIZE), np.stack(columns, axis=1)]).astype(np.float32))


class Lengths(nn.Module):
    """A table of vectors, one for each direction and length: a linear function
    of length_features and what is learnt about single lengths."""

    def __init__(self):
        super().__init__()
        self.register_buffer("features", length_features(), persistent=False)
        self.linear = nn.Linear(self.features.shape[1], 2 * LENGTH_SIZE)
        self.exact = nn.Parameter(torch.zeros(2 * LENGTHS, LENGTH_SIZE))

    def table(self):
        known = self.linear(self.features)
        table = torch.cat([known[:, :LENGTH_SIZE], known[:, LENGTH_SIZE:]]) + self.exact
        # A row without a packet has the length 0, and says nothing.
        return torch.cat([torch.zeros_like(table[:1]), table[1:]])

    def forward(self, indices):
        return F.embedding(indices, self.table())


class CompactNet(nn.Module):
    """A small network over the packets' lengths and the payload's bytes.

    It has no convolution in the usual sense: the first FIRST bytes of both
    sides and chunks of CHUNK bytes go through full layers, at fixed places of
    the streams, and the packets' and messages' lengths through a table. Of the
    packets it knows order, direction, length and protocol; it sees no time
    and no header. It is made of few operations, for with one flow at a time
    each of them costs more than what it computes.

    Input:  uint8 [N, 2, 32, 32], the planes streams and packets.
    Output: float32 [N, labels], logits.
    """

    def __init__(self, labels, folded=False, dropout=0.1):
        super().__init__()
        # What is folded gives the same logits, faster, and learns no more.
        self.lengths = nn.Embedding(2 * LENGTHS, LENGTH_SIZE) if folded else Lengths()
        self.bytes = nn.Embedding(257, BYTE_SIZE, _weight=byte_features())   # 0: behind the end
        self.rows = nn.Linear((PACKETS + MESSAGES) * (LENGTH_SIZE + 4), 256)
        self.first = nn.Linear(2 * FIRST * BYTE_SIZE, 96)
        self.chunk = nn.Linear(CHUNK * BYTE_SIZE, 16)
        self.chunks = nn.Linear(2 * STREAM // CHUNK * 16, 64)
        self.means = nn.Linear(2 * BYTE_SIZE, 32)
        self.mix = nn.Linear(256 + 96 + 64 + 32, 192)
        self.hidden = nn.Linear(192, 128)
        self.out = nn.Linear(128, labels)
        self.dropout = nn.Dropout(dropout)
        # Constants; they need no place among the file's weights. What stands
        # in a row of packets, from its first eight pixels: direction, length,
        # bytes captured; UDP, packets, bytes captured, scaled.
        read = torch.zeros(8, 6)
        read[1, 0] = read[3, 1] = read[5, 2] = 1
        read[2, 1] = read[4, 2] = 256
        read[6, 3], read[7, 4], read[4, 5], read[5, 5] = 1 / 255, 1 / 8, 256 / 512, 1 / 512
        constants = {"read": read, "place": torch.arange(STREAM).float(),
                     "seen": torch.tensor([*range(PACKETS), *range(dataset.PACKET_ROWS, dataset.PACKET_ROWS + MESSAGES)])}
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, image):
        packets = torch.matmul(image[:, 1, :, :8].float(), self.read)
        initiator = (packets[:, :, 0] > 192).float()

        # Rows: the packets and behind them the messages.
        rows = packets[:, self.seen]
        length = rows[:, :, 1]
        index = torch.clamp(length, max=LENGTHS - 1) + initiator[:, self.seen] * LENGTHS
        log = torch.log(1 + length) * (1 / 11)
        rows = torch.cat([self.lengths(index.int()), rows[:, :, 3:], log.unsqueeze(2)], dim=2)
        rows = rows.reshape(-1, (PACKETS + MESSAGES) * (LENGTH_SIZE + 4))

        # Bytes: 1 + value, 0 behind the end.
        captured = packets[:, :dataset.PACKET_ROWS, 2]
        whose = initiator[:, :dataset.PACKET_ROWS]
        whose = torch.stack([whose, 1 - whose], dim=1)
        used = torch.matmul(whose, captured.unsqueeze(2))                                # [N, 2, 1]
        streams = image[:, 0].reshape(-1, 2, STREAM).float()
        streams = (streams + 1) * (self.place < used).float()
        vectors = self.bytes(streams.int())                                              # [N, 2, STREAM, BYTE_SIZE]
        chunks = torch.relu(self.chunk(vectors.reshape(-1, CHUNK * BYTE_SIZE)))
        chunks = chunks.reshape(-1, 2 * STREAM // CHUNK * 16)
        first = vectors[:, :, :FIRST].reshape(-1, 2 * FIRST * BYTE_SIZE)
        means = (vectors.sum(dim=2) / torch.clamp(used, 1, STREAM)).reshape(-1, 2 * BYTE_SIZE)
        x = [layer(self.dropout(x)) for layer, x in ((self.rows, rows), (self.first, first), (self.chunks, chunks))]
        x.append(self.means(means))
        x = torch.relu(self.mix(self.dropout(torch.relu(torch.cat(x, dim=1)))))
        return self.out(self.dropout(torch.relu(self.hidden(x))))

    def last(self):
        """The layer that gives the logits."""
        return self.out

    def fold(self):
        """The same network with its table of lengths worked out."""
        if isinstance(self.lengths, nn.Embedding):
            return self
        net = CompactNet(self.out.out_features, folded=True)
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("lengths.")}
        with torch.no_grad():
            state["lengths.weight"] = self.lengths.table()
        net.load_state_dict(state)
        return net.eval()


def create(kind, labels):
    """A new network: "paper" or "compact"."""
    return {"paper": PaperNet, "compact": CompactNet}[kind](labels)


def check_images(count, planes=1):
    """Fixed images; classifier/check.go makes the same bytes (checkImage)."""
    i = np.arange(planes * PIXELS)
    rows = [((i + 1) * (2 * n + 3) + i // SIDE * (7 * n + 1)) & 255 for n in range(count)]
    return torch.from_numpy(np.stack(rows).astype(np.uint8).reshape(count, planes, SIDE, SIDE))


def export_onnx(net, path, *, name, version, labels, channels, mask, temperature, thresholds,
                training_data, figures, created_by, any_threshold, unknown):
    """Writes net to path with the metadata of the contract, atomically.

    The logits that net gives for fixed images go along, so that whoever loads
    the file can tell whether it computes the same network.
    """
    import onnx

    net = net.cpu().eval()
    if isinstance(net, CompactNet):
        net = net.fold()
    images = check_images(4, len(channels))
    with torch.no_grad():
        check = net(images)
    if not torch.isfinite(check).all():
        raise ValueError("the network's logits are not finite; nothing is exported")
    part = f"{path}.part"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, images, part, opset_version=13, input_names=["image"], output_names=["logits"],
                          dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}})
    model = onnx.load(part)
    # The exporter's text about where the code stood is of no use to others.
    for node in model.graph.node:
        node.doc_string = ""
    properties = {
        "format": str(FORMAT), "name": name, "version": version, "image": f"{SIDE}x{SIDE}",
        "labels": json.dumps(labels), "channels": json.dumps(channels), "mask": mask,
        "temperature": repr(float(temperature)),
        "thresholds": json.dumps({k: round(float(v), 6) for k, v in thresholds.items()}),
        "any_threshold": repr(round(float(any_threshold), 6)), "unknown": repr(round(float(unknown), 6)),
        "training_data": training_data, "figures": json.dumps(figures, sort_keys=True),
        "created_by": created_by,
        "check": json.dumps([[round(float(v), 5) for v in row] for row in check]),
    }
    onnx.helper.set_model_props(model, {PREFIX + k: v for k, v in properties.items()})
    onnx.checker.check_model(model)
    onnx.save(model, part)
    os.replace(part, path)


def load_onnx(path):
    """Returns (network, metadata): the weights of a file of export_onnx."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    meta = {p.key[len(PREFIX):]: p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    if meta.get("format") != str(FORMAT):
        raise ValueError(f"{path}: format is {meta.get('format')!r}, expected {FORMAT}")
    for key in ("labels", "channels", "thresholds", "figures", "check"):
        meta[key] = json.loads(meta[key])
    kinds = [k for k, channels in CHANNELS.items() if channels == meta["channels"]]
    if not kinds:
        raise ValueError(f"{path}: no network here has the channels {meta['channels']}")
    net = PaperNet(len(meta["labels"])) if kinds[0] == "paper" else CompactNet(len(meta["labels"]), folded=True)
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    state = net.state_dict()
    for key in state:
        if key not in weights:
            raise ValueError(f"{path}: no weights {key}; this is not the network {kinds[0]}")
        state[key] = torch.from_numpy(weights[key].copy())
    net.load_state_dict(state)
    net.eval()
    with torch.no_grad():
        got = net(check_images(len(meta["check"]), len(meta["channels"]))).numpy()
    want = np.array(meta["check"])
    if not np.allclose(got, want, atol=1e-3 * max(1.0, np.abs(want).max())):
        raise ValueError(f"{path}: the network computes other logits than its metadata says")
    meta["network"] = kinds[0]
    meta["temperature"] = float(meta["temperature"])
    for key in ("any_threshold", "unknown"):
        if key in meta:
            meta[key] = float(meta[key])
    return net, meta


def softmax(logits, temperature):
    """Probabilities of float64 logits [N, K] at a temperature."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True)
