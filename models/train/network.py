# SPDX-License-Identifier: Apache-2.0
"""The paper's network, and the way it becomes a model file for earlydrop."""
import json
import math
import os
import warnings

import numpy as np
import torch
from torch import nn

SIDE = 32
PIXELS = SIDE * SIDE

# The version of the contract between a model file and the Go program; the Go
# side is classifier/manifest.go.
FORMAT = 1
PREFIX = "earlydrop."


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


def check_images(count, planes=1):
    """Fixed images; classifier/engine.go makes the same bytes (checkImage)."""
    i = np.arange(planes * PIXELS)
    rows = [((i + 1) * (2 * n + 3) + i // SIDE * (7 * n + 1)) & 255 for n in range(count)]
    return torch.from_numpy(np.stack(rows).astype(np.uint8).reshape(count, planes, SIDE, SIDE))


def export_onnx(net, path, *, name, version, labels, channels, mask, temperature, thresholds,
                training_data, figures, created_by):
    """Writes net to path with the metadata of the contract, atomically.

    The logits that net gives for fixed images go along, so that whoever loads
    the file can tell whether it computes the same network.
    """
    import onnx

    net = net.cpu().eval()
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
    net = PaperNet(len(meta["labels"]), len(meta["channels"]))
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    state = net.state_dict()
    for key in state:
        if key not in weights:
            raise ValueError(f"{path}: no weights {key}; this is not the paper's network")
        state[key] = torch.from_numpy(weights[key].copy())
    net.load_state_dict(state)
    net.eval()
    with torch.no_grad():
        got = net(check_images(len(meta["check"]), len(meta["channels"]))).numpy()
    want = np.array(meta["check"])
    if not np.allclose(got, want, atol=1e-3 * max(1.0, np.abs(want).max())):
        raise ValueError(f"{path}: the network computes other logits than its metadata says")
    meta["temperature"] = float(meta["temperature"])
    return net, meta


def softmax(logits, temperature):
    """Probabilities of float64 logits [N, K] at a temperature."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True)


def wilson(hits, total, z=1.959964):
    """The Wilson score interval (95 %) of a share; (0, 1) for nothing counted."""
    if total == 0:
        return 0.0, 1.0
    p = hits / total
    middle = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
