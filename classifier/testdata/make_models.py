#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the small ONNX models that the tests of classifier and what is below it load.

usage: make_models.py [FOLDER]   (default: the folder of this file)

The output depends on nothing but this file, so a second run changes nothing.
The expected logits in the metadata are computed with numpy, not with ONNX
Runtime: the tests hold one against the other.
"""
import json
import pathlib
import sys

if {"-h", "--help"} & set(sys.argv[1:]):  # needs no package
    sys.exit(print(__doc__.strip()))

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

LABELS = ["background", "shadowsocks", "v2ray"]
CHANNELS = ["byte", "direction", "payload", "length", "time", "streams", "packets"]
OPSET = [helper.make_opsetid("", 13)]


def weights(planes, labels):
    """A convolution of four 8x8 filters with stride 8 and a full layer."""
    rng = np.random.default_rng(7)
    return {
        "filter": rng.normal(0, 0.5, (4, planes, 8, 8)).astype(np.float32),
        "full": rng.normal(0, 0.5, (64, labels)).astype(np.float32),
        "bias": rng.normal(0, 0.1, labels).astype(np.float32),
    }


def check_image(n, planes):
    """The same bytes as checkImage in check.go."""
    i = np.arange(planes * 1024)
    return (((i + 1) * (2 * n + 3) + i // 32 * (7 * n + 1)) & 255).astype(np.uint8).reshape(planes, 32, 32)


def logits(image, w):
    """What the network of conv_graph computes, in numpy."""
    x = image.astype(np.float64) / 255
    planes = x.shape[0]
    blocks = x.reshape(planes, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4)  # [4][4][planes][8][8]
    y = np.maximum(np.einsum("yxcij,fcij->fyx", blocks, w["filter"].astype(np.float64)), 0)
    return y.reshape(-1) @ w["full"].astype(np.float64) + w["bias"]


def conv_graph(planes, w, input_type=TensorProto.UINT8, side=32, batch="N", names=("image", "logits"), op="Relu"):
    nodes = [
        helper.make_node("Cast", [names[0]], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "filter"], ["conv"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node(op, ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "full", "bias"], [names[1]]),
    ]
    constants = [numpy_helper.from_array(v, k) for k, v in w.items()]
    constants.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    labels = w["bias"].shape[0]
    return helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(names[0], input_type, [batch, planes, side, side])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, labels])],
        constants)


def failing_graph():
    """Fails at run time for an image whose last pixel is 200 or more."""
    table = np.zeros((200, 3), np.float32)
    table[:, 0] = 1
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gather", ["flat", "last"], ["pixel"], axis=1),
        helper.make_node("Cast", ["pixel"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["logits"], axis=0),
    ]
    return helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(1023, np.int64), "last")])


def planted_graph():
    """Hangs on a pixel of each of the channels byte, length, direction, streams and packets."""
    pixels = np.array([48, 3 * 1024 + 200, 1024 + 400, 5 * 1024 + 5, 6 * 1024 + 32 + 2], np.int64)
    full = np.zeros((5, 3), np.float32)
    full[:, 1] = [4 / 255, 3 / 255, 2 / 255, 2 / 255, 20 / 255]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gather", ["flat", "pixels"], ["few"], axis=1),
        helper.make_node("Cast", ["few"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["float", "full", "bias"], ["logits"]),
    ]
    return helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 7, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(pixels, "pixels"), numpy_helper.from_array(full, "full"),
         numpy_helper.from_array(np.array([2, -4, 0], np.float32), "bias")])


def metadata(planes=1, mask="strict", check=None):
    values = {
        "format": "1", "name": "test", "version": "0.1.0", "image": "32x32", "mask": mask,
        "labels": json.dumps(LABELS), "channels": json.dumps(CHANNELS[:planes]),
        "temperature": "1.5", "thresholds": json.dumps({"shadowsocks": 0.9, "v2ray": 0.8}),
        "training_data": "sha256:" + "0" * 64, "figures": "{}", "created_by": "make_models.py",
    }
    if check is not None:
        values["check"] = json.dumps(check)
    return {"earlydrop." + k: v for k, v in values.items()}


def write(path, graph, properties, valid=True):
    model = helper.make_model(graph, opset_imports=OPSET, producer_name="earlydrop")
    model.ir_version = 8
    helper.set_model_props(model, properties)
    if valid:
        checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for planes, name, mask in ((1, "tiny", "strict"), (5, "tiny5", "paper")):
        w = weights(planes, 3)
        expected = [[round(float(v), 6) for v in logits(check_image(n, planes), w)] for n in range(3)]
        write(out / f"{name}.onnx", conv_graph(planes, w), metadata(planes, mask, expected))
    w = weights(1, 3)
    wrong = [[9.0, -9.0, 0.0]]
    write(out / "wrong-check.onnx", conv_graph(1, w), metadata(check=wrong))
    write(out / "wrong-input-type.onnx", conv_graph(1, w, input_type=TensorProto.FLOAT), metadata())
    write(out / "wrong-input-name.onnx", conv_graph(1, w, names=("picture", "logits")), metadata())
    write(out / "wrong-output-name.onnx", conv_graph(1, w, names=("image", "scores")), metadata())
    write(out / "wrong-side.onnx", conv_graph(1, w, side=28), metadata())
    write(out / "wrong-planes.onnx", conv_graph(2, weights(2, 3)), metadata())
    write(out / "wrong-outputs.onnx", conv_graph(1, weights(1, 2)), metadata())
    write(out / "fixed-batch.onnx", conv_graph(1, w, batch=1), metadata())
    write(out / "unknown-operator.onnx", conv_graph(1, w, op="NoSuchOperator"), metadata(), valid=False)
    write(out / "fails-at-run.onnx", failing_graph(), metadata())
    write(out / "planted.onnx", planted_graph(), metadata(7))
    # Takes everything for one of the two tunnels.
    write(out / "suspicious.onnx", conv_graph(1, {**w, "full": 0 * w["full"], "bias": np.array([-9, 3, 3], np.float32)}), metadata())


if __name__ == "__main__":
    main()
