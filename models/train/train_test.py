#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the training code; run with `python3 models/train/train_test.py`."""
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import numpy as np
import torch

import counts
import dataset
import fit
import measure
import network
import page
import testdata
import train


def write_folder(folder, n=330, seed=1):
    """A small dataset whose three classes differ in what most of their bytes are."""
    rng = np.random.default_rng(seed)
    capture = rng.integers(0, 256, (n, 1024), dtype=np.uint8)
    labels = np.array(["background", "shadowsocks", "v2ray"])[np.arange(n) % 3]
    for k, pattern in ((1, np.zeros(800)), (2, np.tile([255, 0], 400))):
        capture[np.arange(n) % 3 == k, 100:900] = pattern
    mask = np.zeros((n, 1024), np.uint8)
    mask[:, :12] = 3
    mask[:, 22] = 2
    # One datagram of an IPv4 flow, as long as the capture.
    packets = np.zeros((n, 32, 6), np.int32)
    packets[:, 0] = 0, 1024, 1, 0, 42, 982
    packets[:, 1:, 0] = -1
    fields = np.zeros((n, 1024), np.uint8)
    fields[:, :42] = testdata.header(udp=True)
    session = np.repeat(testdata.session([(982, 1, 0)])[None], n, axis=0)
    columns = ["index", "label", "group", "file", "src", "dst", "proto", "captured", "reason", "program", "kind", "condition"]
    rows = []
    for i in range(n):
        kind = ["ordinary", "tunnel", "tunnel"][i % 3] if i % 7 else "random-like" if i % 3 == 0 else "tunnel"
        rows.append([i, labels[i], f"net-{i // 3 % 10}", "f.pcap", '"a', "b", "udp", 1024, "full", f"program-{i % 3}", kind, "ip=4 vlan=7"])
    testdata.write(folder, columns, rows, "1", capture=capture, mask=mask, fields=fields, packets=packets, session=session)


class Masking(unittest.TestCase):
    def test_deployed_mask_is_the_go_programs(self):
        # The frame and the expected bytes of TestRenderGoldenBytes in
        # classifier/image_test.go.
        frame = bytes.fromhex("ee" * 12 + "0800" "45000020abcd40004011c5c5c0000201c6336402" "c35001bb000cc7c7" "70707070")
        with open(os.path.join(os.path.dirname(__file__), "../../classifier/image_test.go"), encoding="utf-8") as f:
            golden = f.read().split("func TestRenderGoldenBytes")[1].split("want := []uint8{")[1].split("0, 0,")[0]
        want = bytes(int(v, 16) for v in golden.replace(",", " ").split())
        self.assertEqual(len(want), len(frame))
        capture = np.zeros((2, 1024), np.uint8)
        capture[:, :len(frame)] = np.frombuffer(frame, np.uint8)
        mask = np.zeros((2, 1024), np.uint8)
        for a, b, v in ((0, 12, 3), (18, 20, 3), (22, 23, 2), (24, 26, 2), (26, 38, 3), (40, 42, 2)):
            mask[:, a:b] = v
        got = dataset.mask_as_deployed(capture, mask, np.full(2, len(frame)), "strict")
        self.assertEqual(got[1, :len(frame)].tobytes(), want)
        self.assertFalse(got[:, len(frame):].any())

    def test_random_mask_replaces_only_the_recipes_bytes(self):
        capture = np.full((50, 1024), 7, np.uint8)
        mask = np.zeros((50, 1024), np.uint8)
        mask[:, 10:20], mask[:, 30:40] = 3, 2
        for recipe, replaced in (("paper", [*range(10, 20)]), ("strict", [*range(10, 20), *range(30, 40)])):
            got = dataset.mask_at_random(capture, mask, recipe, np.random.default_rng(1))
            self.assertEqual(np.flatnonzero((got != 7).any(axis=0)).tolist(), replaced)


class Planes(unittest.TestCase):
    def test_planes_are_the_go_programs(self):
        # TestRenderIsWhatTheTrainingSees in classifier/image_test.go renders
        # the same captures, whole and damaged ones, to the same digests.
        path = os.path.join(os.path.dirname(__file__), "../../classifier/testdata/planes.tsv")
        with open(path, encoding="utf-8") as f:
            lines = [line.rstrip("\n").split("\t") for line in f]
        self.assertGreaterEqual(len(lines), 40)
        capture = np.zeros((len(lines), 1024), np.uint8)
        captured = np.zeros(len(lines), np.int64)
        packets = np.zeros((len(lines), 32, 6), np.int32)
        packets[:, :, 0] = -1
        udp = np.zeros((len(lines), 32), bool)
        for i, (data, records, _) in enumerate(lines):
            data = np.frombuffer(base64.b64decode(data), np.uint8)
            capture[i, :len(data)], captured[i] = data, len(data)
            for k, record in enumerate(records.split()):
                *packets[i, k, :3], packets[i, k, 4], packets[i, k, 5], udp[i, k] = [int(v) for v in record.split(",")]
        streams, rows = dataset.planes(capture, dataset.payloads_of(captured, packets, udp))
        got = [hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest() for a, b in zip(streams, rows)]
        self.assertEqual(got, [digest for _, _, digest in lines])

    def test_evident_classes(self):
        wireguard = b"\1\0\0\0" + bytes(range(144))
        openvpn = b"\x38" + b"sessions" + b"\0\0\0\0\0"
        flows = [("ssh", False, b"SSH-2.0-x\r\n", b""), ("ssh", False, b"", b"SSH-2.0-server"), ("", True, b"SSH-2.0", b""),
                 ("socks5", False, b"\5\2\0\2", b"\5\2"), ("", False, b"\5\3\0\2", b"\5\2"), ("", False, b"\5\2\0\2", b"\1\2"),
                 ("wireguard", True, wireguard, b""), ("", True, wireguard[:-1], b""), ("", False, wireguard, b""),
                 ("openvpn", True, openvpn, b""), ("openvpn", False, b"\0\x0e" + openvpn, b""), ("", False, b"\0\x0f" + openvpn, b""),
                 ("", True, openvpn[:-1] + b"\1", b"")]
        streams = np.zeros((len(flows), 2, 512), np.uint8)
        rows = np.zeros((len(flows), 32, 32), np.uint8)
        for i, (_, udp, first, answer) in enumerate(flows):
            streams[i, 0, :len(first)] = list(first)
            streams[i, 1, :len(answer)] = list(answer)
            rows[i, 0, :8] = 255, 255, 0, len(first), 0, len(first), 255 if udp else 128, 1
        got = dataset.evident_class(streams.reshape(-1, 1024), rows.reshape(-1, 1024))
        self.assertEqual(got.tolist(), [name for name, *_ in flows])


class Resegment(unittest.TestCase):
    def plane(self, n, packets, protocol=128):
        """Planes "packets" of n equal flows: (initiator?, length, captured)."""
        rows = np.zeros((n, 32, 32), np.uint8)
        messages = []
        for k, (initiator, length, captured) in enumerate(packets):
            rows[:, k, :8] = (255, 255 if initiator else 128, length >> 8, length & 255, captured >> 8, captured & 255, protocol, 1)
            if messages and messages[-1][0] == initiator:
                messages[-1] = [initiator, *(a + b for a, b in zip(messages[-1][1:], (length, captured, 1)))]
            else:
                messages.append([initiator, length, captured, 1])
        for k, (initiator, length, captured, count) in enumerate(messages[:8]):
            rows[:, 24 + k, :8] = (255, 255 if initiator else 128, length >> 8, length & 255, captured >> 8, captured & 255, protocol, count)
        return rows.reshape(n, 1024)

    def packets(self, plane):
        rows = plane.reshape(32, 32).astype(int)
        return [(bool(r[1] == 255), r[2] << 8 | r[3], r[4] << 8 | r[5]) for r in rows[:24] if r[0]]

    def test_the_same_bytes_in_other_packets(self):
        rng = np.random.default_rng(1)
        before = [(True, 90, 90), (True, 300, 300), (False, 500, 500), (True, 40, 40), (False, 1448, 94)]
        planes = self.plane(3000, before)
        dataset.resegment(planes, rng, 0.5)
        forms = {}
        for plane in planes:
            after = self.packets(plane)
            key = tuple(initiator for initiator, _, _ in after)
            forms[key] = forms.get(key, 0) + 1
            for side in (True, False):
                for column in (1, 2):
                    self.assertEqual(sum(p[column] for p in after if p[0] == side), sum(p[column] for p in before if p[0] == side))
            # The message table agrees with the packets.
            again = self.plane(1, after).reshape(32, 32)
            np.testing.assert_array_equal(plane.reshape(32, 32)[24:], again[24:])
            np.testing.assert_array_equal(plane.reshape(32, 32)[:24], again[:24])
        T, F = True, False
        self.assertEqual(set(forms), {(T, T, F, T, F), (T, F, T, F), (T, T, F, F, T, F), (T, F, F, T, F)})
        self.assertAlmostEqual(forms[T, T, F, T, F] / 3000, 0.25, delta=0.04)

    def test_one_packet_becomes_two(self):
        planes = self.plane(2000, [(True, 600, 450)])
        dataset.resegment(planes, np.random.default_rng(1), 1.0)
        after = [self.packets(p) for p in planes]
        self.assertEqual({len(a) for a in after}, {2})
        self.assertEqual((min(a[0][1] for a in after), max(a[0][1] for a in after)), (20, 199))
        for (_, length, captured), (_, length2, captured2) in after:
            self.assertEqual((length, length + length2, captured + captured2), (captured, 600, 450))

    def test_what_stays(self):
        for packets, protocol in (([(True, 500, 500), (True, 500, 300)], 255),          # datagrams
                                  ([(True, 1448, 20), (False, 1000, 20)], 128),         # of the second part nothing was captured
                                  ([(True, 30, 30)], 128), ([], 128),                   # too short to be cut
                                  ([(False, 15, 15), (False, 1448, 500)], 128)):        # joined, they fill more than a segment
            planes = self.plane(300, packets, protocol)
            before = planes.copy()
            dataset.resegment(planes, np.random.default_rng(2), 1.0)
            np.testing.assert_array_equal(planes, before)
        # A full table loses its last row.
        planes = self.plane(300, [(k % 2 == 0, 100, 30) for k in range(24)])
        dataset.resegment(planes, np.random.default_rng(2), 1.0)
        self.assertEqual({len(self.packets(p)) for p in planes}, {24})


class Drawing(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        write_folder(self.dir.name + "/a")
        self.data = dataset.Data([self.dir.name + "/a"])

    def tearDown(self):
        self.dir.cleanup()

    def test_no_group_is_in_two_parts(self):
        part = dataset.split_groups(self.data, ["net-1", "net-[23]"], [], seed=3)
        self.assertEqual(set(part), set(self.data.group))
        self.assertEqual(sorted(g for g in part if part[g] == "test"), ["net-1", "net-2", "net-3"])
        self.assertEqual(set(part.values()), {"train", "validation", "test"})
        self.assertEqual(part, dataset.split_groups(self.data, ["net-1", "net-[23]"], [], seed=3))

    def test_epoch_has_the_shares_asked_for(self):
        rng = np.random.default_rng(1)
        s = dataset.Sampler(self.data, np.arange(300), self.data.labels(), 2000, 1 / 9, 0.4, 1000, rng)
        indices, classes = s.epoch()
        self.assertAlmostEqual(len(indices), 2000, delta=12)
        self.assertEqual((indices < 0).sum(), 100)          # a ninth of the 900 real ones
        self.assertAlmostEqual((classes == 0).sum(), 1000, delta=12)
        self.assertAlmostEqual((classes == 1).sum(), 500, delta=1)
        self.assertLess(indices.max(), 300)
        real = indices >= 0
        names = np.array(self.data.labels())
        self.assertTrue((self.data.label[indices[real]] == names[classes[real]]).all())
        # Every sample comes before one comes again.
        seen = np.bincount(indices[classes == 1], minlength=300)[self.data.label[:300] == "shadowsocks"]
        self.assertEqual((seen.min(), seen.max()), (5, 5))

    def test_random_like_background_gets_its_share(self):
        hard = (self.data.kind == "random-like") & (self.data.label == "background")
        self.assertTrue(0 < hard[:300].sum() < 50)
        s = dataset.Sampler(self.data, np.arange(300), self.data.labels(), 2000, 0, 0.4, 1000, np.random.default_rng(1), 0.7)
        indices, classes = s.epoch()
        self.assertAlmostEqual(hard[indices].sum(), 700, delta=12)

    def test_only_flows_of_random_sorts_get_other_bytes(self):
        # The class shadowsocks has fixed bytes here; background of one program
        # has none, and its bytes are drawn anew, but not beyond their end.
        self.assertEqual(set(self.data.label[self.data.all_random()]), {"background"})
        which = np.array([0, 0, 1, 1])
        a, b = (dataset.training_images(self.data, which, ["streams", "packets"], "strict", 0.0, np.random.default_rng(seed),
                                        np.arange(330)) for seed in (1, 2))
        self.assertFalse((a[0, 0] == b[0, 0])[:512].all())
        self.assertTrue((a[2:, 0] == b[2:, 0]).all())
        self.assertFalse(a[:, 0, 512:].any())
        self.assertTrue((a[:, 1] == dataset.images(self.data, which, ["packets"], "strict")[:, 0]).all())

    def test_cut_captures_keep_the_packets_length(self):
        images = dataset.training_images(self.data, np.zeros(50, np.int64), ["streams", "packets"], "strict", 1.0,
                                         np.random.default_rng(1), np.arange(330))
        rows = images[:, 1].reshape(-1, 32, 32).astype(int)
        self.assertTrue((rows[:, 0, 2] * 256 + rows[:, 0, 3] == 982).all())
        captured = rows[:, 0, 4] * 256 + rows[:, 0, 5]
        self.assertTrue((captured < 982).all() and (captured >= 200 - 42).all())
        for image, n in zip(images[:, 0], captured):
            self.assertFalse(image[min(n, 512):].any())

    def test_folded_classes_are_background(self):
        folded = self.data.folded(["v2ray"])
        self.assertEqual(folded.labels(), ["background", "v2ray"])
        self.assertEqual((folded.label == "background").sum(), 220)
        # What was folded is a tunnel all the same, and not ordinary traffic.
        everything = np.arange(len(folded))
        self.assertEqual(fit.ordinary_of(folded, everything).tolist(), fit.ordinary_of(self.data, everything).tolist())
        self.assertEqual(self.data.labels(), ["background", "shadowsocks", "v2ray"])
        with self.assertRaisesRegex(ValueError, "no flow of class trojan"):
            self.data.folded(["trojan"])

    def test_background_of_a_class_is_left_out(self):
        folder = self.dir.name + "/b"
        write_folder(folder)
        with open(folder + "/samples.tsv", encoding="utf-8") as f:
            lines = f.read().replace("v2ray", "ssh").splitlines()
        # Three flows of third-party captures, of which two say that they are SSH.
        for i in (1, 4, 7):
            columns = lines[i].split("\t")
            for name, value in (("label", "background"), ("kind", ""), ("proto", "tcp")):
                columns[lines[0].split("\t").index(name)] = value
            lines[i] = "\t".join(columns)
        with open(folder + "/samples.tsv", "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
        capture, packets = np.load(folder + "/capture.npy"), np.load(folder + "/packets.npy")
        packets[[0, 3, 6], 0, 4:] = 54, 970   # TCP
        capture[[0, 6], 54:58] = list(b"SSH-")
        np.save(folder + "/capture.npy", capture)
        np.save(folder + "/packets.npy", packets)
        data = dataset.Data([folder])
        self.assertEqual(data.left_out, {"ssh": 2})
        self.assertEqual((len(data), len(data.label), len(data.capture), data.rows[0]["index"]), (328, 328, 328, "1"))
        self.assertEqual(self.data.left_out, {})

    def test_fields_and_sessions_are_those_of_the_samples(self):
        folders = [f"{self.dir.name}/{name}" for name in "cd"]
        for k, folder in enumerate(folders):
            write_folder(folder, n=30)
            session, fields = np.load(folder + "/session.npy"), np.load(folder + "/fields.npy")
            session[:, 0, 0] = fields[:, 0] = 100 * k + np.arange(30)
            np.save(folder + "/session.npy", session)
            np.save(folder + "/fields.npy", fields)
        data = dataset.Data(folders)
        for indices, some in (([31, 0, 59, 29], data), ([1, 0], data.part(np.array([7, 45])))):
            want = [101, 0, 129, 29] if some is data else [115, 7]
            self.assertEqual(some.sessions(np.array(indices))[:, 0, 0].tolist(), want)
            self.assertEqual(some.fields(np.array(indices))[:, 0].tolist(), want)
        self.assertEqual(data.folded(["v2ray"]).sessions(np.array([59]))[0, 0, 0], 129)

    def test_folders_of_another_version_are_refused(self):
        for name, change, word in (("e", {"format": 1}, "dataset format is 1, expected 2: write the folder again"),
                                   ("f", {"fields": ["payload", "EtherType"]}, "its header fields are not those of")):
            folder = f"{self.dir.name}/{name}"
            write_folder(folder, n=30)
            with open(folder + "/dataset.json", encoding="utf-8") as f:
                info = json.load(f)
            with open(folder + "/dataset.json", "w", encoding="utf-8") as f:
                json.dump(info | change, f)
            with self.assertRaisesRegex(ValueError, f"{folder}: {word}"):
                dataset.Data([self.dir.name + "/a", folder])
        np.save(self.dir.name + "/a/session.npy", np.zeros((330, 64, 5), np.int32))
        with self.assertRaisesRegex(ValueError, r"session.npy is int32 \(330, 64, 5\), expected int32 \(330, 64, 6\)"):
            dataset.Data([self.dir.name + "/a"])

    def test_cut_and_random_images(self):
        rng = np.random.default_rng(1)
        images = dataset.training_images(self.data, np.array([0] * 400 + [-1] * 100), ["byte"], "strict", 0.5, rng, np.arange(330))[:, 0]
        cut = (images[:400, -8:] == 0).all(axis=1)
        self.assertTrue(150 < cut.sum() < 250, cut.sum())
        self.assertTrue(images[:400, :200].any(axis=1).all())
        self.assertTrue((images[400:] != 0).mean() > 0.99)
        self.assertEqual(len({i.tobytes() for i in images[400:]}), 100)


class Figures(unittest.TestCase):
    def test_wilson(self):
        # Textbook values: 1 of 10, and none of 100.
        for (hits, total), want in (((1, 10), (0.0179, 0.4042)), ((0, 100), (0.0, 0.0370)), ((0, 0), (0.0, 1.0))):
            self.assertTrue(np.allclose(counts.wilson(hits, total), want, atol=5e-5), (hits, total))

    def test_thresholds_keep_the_budget(self):
        rng = np.random.default_rng(1)
        p = rng.dirichlet([3, 1, 1], 5000)
        labels = ["background", "a", "b"]
        ordinary = np.arange(5000) % 5 != 0
        for budget in (0.0, 0.01, 0.5):
            each, together = fit.choose_thresholds(p, ordinary, labels, budget)
            for taken, t in ((p[:, 1], each["a"]), (p[:, 2], each["b"]), (p[:, 1] + p[:, 2], together)):
                self.assertLessEqual((taken[ordinary] >= t).sum(), budget * 4000)
                self.assertGreaterEqual(t, 0.5)
        # A budget that binds is also used up, but for the rounding.
        _, together = fit.choose_thresholds(p, ordinary, labels, 0.01)
        self.assertGreater((p[ordinary, 1:].sum(axis=1) >= together - 0.0001).sum(), 40)
        self.assertEqual(fit.threshold_for(np.array([]), 0.1), 0.5)
        # Of few flows none is taken, for one would be more than the budget.
        self.assertGreater(fit.threshold_for(np.array([0.7, 0.91]), 0.0005), 0.91)

    def test_unknown_is_the_least_value_that_is_right(self):
        p = np.array([[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
        self.assertEqual(fit.choose_unknown(p, np.array([0, 0, 1, 1, 1])), 0.8)
        self.assertEqual(fit.choose_unknown(p, np.array([0, 0, 1, 0, 1])), 0.0)
        self.assertEqual(fit.choose_unknown(p, np.array([1, 1, 0, 1, 0])), 1.0)

    def test_only_the_class_that_ordinary_traffic_resembles_is_held_back(self):
        rng = np.random.default_rng(1)
        z = rng.normal(0, 1, (4000, 3)) + [4, 0, 0]
        ordinary = np.arange(4000) < 3000
        truth = np.where(ordinary, 0, 1 + np.arange(4000) % 2)
        z[~ordinary, truth[~ordinary]] += 8
        z[:60, 2] += 6                          # looks like the second class
        bias = fit.cautious(z, truth, ordinary, 0.001)
        over = fit.wanted_sum(network.softmax(z + bias, 1.0)) >= 0.5
        self.assertLessEqual(over[ordinary].sum(), 3)
        self.assertLess(bias[2], -3)
        self.assertGreater(bias[1], -1.5)
        self.assertLess(bias[0], 0.5)           # not all of them have to pay
        # Where the budget is kept nothing is done.
        self.assertFalse(fit.cautious(z[60:], truth[60:], ordinary[60:], 0.05).any())

    def test_an_experimental_class_uses_up_nothing_of_the_budget(self):
        rng = np.random.default_rng(1)
        z = rng.normal(0, 1, (4000, 3)) + [6, 0, 0]
        ordinary = np.arange(4000) < 3000
        truth = np.where(ordinary, 0, 1 + np.arange(4000) % 2)
        z[~ordinary, truth[~ordinary]] += 10
        z[:20, 1] += 8                          # as many as the budget allows look like the first class,
        z[20:80, 2] += 8                        # and more look like the second
        over = lambda bias: fit.wanted_sum(network.softmax(z + bias, 1.0)) >= 0.5
        bias = fit.cautious(z, truth, ordinary, 20 / 3000, experimental=[2])
        self.assertEqual(bias[1], 0)
        self.assertEqual(over(bias)[20:80].sum(), 0)
        self.assertGreater(over(bias)[:20].sum(), 15)
        # Without that, both have a part in it.
        both = fit.cautious(z, truth, ordinary, 20 / 3000)
        self.assertGreater(over(both)[20:80].sum(), 0)
        self.assertLessEqual(over(both)[ordinary].sum(), 20)

    def test_decide_adds_the_wanted_classes(self):
        p = np.array([[0.1, 0.5, 0.4], [0.1, 0.4, 0.5], [0.4, 0.5, 0.1], [0.9, 0.1, 0.0]])
        self.assertEqual(measure.decide(p, 0.9).tolist(), [1, 2, 0, 0])
        self.assertEqual(measure.decide(p, 0.5).tolist(), [1, 2, 1, 0])

    def test_calibration_finds_the_temperature(self):
        rng = np.random.default_rng(1)
        logits = rng.normal(0, 2, (20000, 3))
        truth = np.array([rng.choice(3, p=row) for row in network.softmax(logits, 1.0)])
        self.assertAlmostEqual(fit.calibrate(logits * 2.5, truth), 2.5, delta=0.25)

    def test_score(self):
        s = measure.score(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), ["background", "a"])
        self.assertEqual(s["confusion"], {"background": {"background": 1, "a": 1}, "a": {"background": 1, "a": 1}})
        self.assertEqual((s["false_positives"]["hits"], s["false_positives"]["total"]), (1, 2))


class Model(unittest.TestCase):
    def test_network_is_the_papers_table(self):
        shapes = [tuple(p.shape) for n, p in network.PaperNet(3).named_parameters() if n.endswith("weight")]
        self.assertEqual(shapes, [(32, 1, 5, 5), (64, 32, 5, 5), (128, 64, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3),
                                  (1024, 4096), (1024, 1024), (3, 1024)])

    @unittest.mock.patch.object(measure, "RANDOM_IMAGES", 100)
    def test_train_writes_a_model_that_evaluates_the_same(self):
        with tempfile.TemporaryDirectory() as d:
            write_folder(d + "/data")
            out, state = d + "/m.onnx", d + "/state.pt"
            options = ["--data", d + "/data", "--out", out, "--network", "paper", "--checkpoint", state, "--epoch-samples", "300",
                       "--batch", "32", "--lr", "5e-4", "--random-ratio", "1/9", "--seed", "5"]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train.main(options + ["--epochs", "1"])
                train.main(options + ["--epochs", "3", "--resume"])
            net, meta = network.load_onnx(out)
            self.assertEqual(meta["labels"], ["background", "shadowsocks", "v2ray"])
            self.assertEqual((meta["mask"], meta["image"], meta["training_data"]), ("strict", "32x32", "sha256:" + "1" * 64))
            self.assertGreater(meta["figures"]["accuracy"]["hits"], 0.9 * meta["figures"]["accuracy"]["total"])
            with open(d + "/m.figures.json", encoding="utf-8") as f:
                written = json.load(f)
            self.assertEqual(written["figures"], meta["figures"])
            self.assertEqual([e["epoch"] for e in written["losses"]], [1, 2, 3])
            data = dataset.Data([d + "/data"])
            test = np.flatnonzero(np.isin(data.group, meta["figures"]["test_groups"]))
            again = measure.figures_of(fit.deployed_logits(net, data, test, ["byte"], "strict", "cpu"), data, test, meta["labels"],
                                       meta["temperature"], meta["thresholds"], meta["figures"]["min_confidence"], {0.5: 0.5},
                                       measure.random_logits(net, data, test, ["byte"], "strict", "cpu", 5))
            self.assertEqual(again["confusion"], meta["figures"]["confusion"])
            # What the figures count adds up.
            at = meta["figures"]["sums"][f"{meta['figures']['min_confidence']:g}"]
            background = at["lab, ordinary"]["total"] + at["lab, random-like"]["total"]
            self.assertEqual(background, (data.label[test] == "background").sum())
            self.assertEqual(at["ordinary"], at["lab, ordinary"])
            self.assertEqual(set(meta["figures"]["by_vlan"]["v2ray"]), {"yes"})
            with open(d + "/m.figures.md", encoding="utf-8") as f:
                told = f.read()
            for text in ("False positives by group", "--seed 5", "sha256:111", "Where it fails", "networks of the lab"):
                self.assertIn(text, told)
            self.assertNotIn(d, told + json.dumps(written))
            flows = [sum(row["flows"][label] for row in written["data"]) for label in meta["labels"]]
            self.assertEqual(flows, [(data.label == label).sum() for label in meta["labels"]])

    def test_pages_of_the_shipped_models_are_of_their_figures(self):
        models = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
        for name in ("compact", "paper"):
            base = os.path.join(models, name)
            with open(base + page.SUFFIX, encoding="utf-8") as f:
                doc = json.load(f)
            _, meta = network.load_onnx(base + ".onnx")
            self.assertEqual({k: doc[k] for k in meta if k in doc}, {k: meta[k] for k in meta if k in doc}, name)
            with open(base + ".figures.md", encoding="utf-8") as f:
                self.assertEqual(f.read(), page.page(doc, name), f"{name}.figures.md: run models/train/page.py models/{name}{page.SUFFIX}")

    def test_compact_goes_on_where_it_stopped_and_loads_the_same(self):
        with tempfile.TemporaryDirectory() as d:
            write_folder(d + "/data")
            data = dataset.Data([d + "/data"])
            part = dataset.split_groups(data, ["net-1"], ["net-[23]"], seed=1)
            common = {"epochs": 3, "epoch_samples": 1500, "batch": 16, "threads": torch.get_num_threads()}
            whole = fit.fit(data, part, **common)

            class Stop(Exception):
                pass

            def stop(line):
                if line.startswith("epoch   2"):
                    raise Stop

            # What is killed in the middle is done again from the last checkpoint.
            with self.assertRaises(Stop):
                fit.fit(data, part, checkpoint=d + "/c.pt", log=stop, **common)
            model = fit.fit(data, part, checkpoint=d + "/c.pt", resume=True, picture=d + "/c.png", **common)
            self.assertEqual(model.losses, whole.losses)
            with open(d + "/c.png", "rb") as f:
                self.assertEqual(f.read(4), b"\x89PNG")
            test = np.flatnonzero(data.group == "net-1")
            p = model(test)
            self.assertTrue(np.allclose(p, whole(test), atol=1e-6))
            self.assertGreater((p.argmax(axis=1) == [model.labels.index(v) for v in data.label[test]]).mean(), 0.9)
            with self.assertRaisesRegex(ValueError, "other data, another network or another seed"):
                fit.fit(data, part, checkpoint=d + "/c.pt", resume=True, **{**common, "seed": 2})

            network.export_onnx(model.net, d + "/c.onnx", name="compact", version="1", labels=model.labels, channels=model.channels,
                                mask=model.mask, temperature=model.temperature, thresholds=model.thresholds,
                                any_threshold=model.any_threshold, unknown=model.unknown, training_data=data.digest, figures={},
                                created_by="test")
            net, meta = network.load_onnx(d + "/c.onnx")
            self.assertEqual((meta["network"], meta["channels"], meta["any_threshold"], meta["unknown"]),
                             ("compact", ["streams", "packets"], round(model.any_threshold, 6), model.unknown))
            again = fit.deployed_logits(net, data, test, meta["channels"], meta["mask"], "cpu")
            self.assertTrue(np.allclose(again, model.logits(test), atol=1e-4))
            self.assertLess(os.path.getsize(d + "/c.onnx"), 2 << 20)

    def test_wrong_folder_is_refused(self):
        with tempfile.TemporaryDirectory() as d:
            write_folder(d + "/data", n=30)
            np.save(d + "/data/mask.npy", np.zeros((29, 1024), np.uint8))
            with self.assertRaisesRegex(ValueError, "mask.npy is uint8 .29, 1024., expected uint8 .30, 1024."):
                dataset.Data([d + "/data"])


class Commands(unittest.TestCase):
    # -S leaves out all that is no part of Python itself, as on a machine without the packages.
    bare = [sys.executable, "-B", "-E", "-S"]
    here = os.path.dirname(os.path.abspath(__file__))

    def run_bare(self, program, *arguments):
        return subprocess.run([*self.bare, os.path.join(self.here, program), *arguments], capture_output=True, text=True, check=False)

    def test_help_needs_no_package(self):
        self.assertNotEqual(subprocess.run([*self.bare, "-c", "import numpy"], capture_output=True, check=False).returncode, 0)
        for program in ("train.py", "eval.py", "../../classifier/testdata/make_models.py"):
            done = self.run_bare(program, "--help")
            self.assertEqual((done.returncode, done.stderr), (0, ""), program)
            self.assertIn("usage: ", done.stdout)

    def test_a_missing_package_is_one_line_and_2(self):
        with open(os.path.join(self.here, "../../Makefile"), encoding="utf-8") as f:
            makefile = f.read()
        for program, arguments in (("train.py", ("--data", "x", "--out", "y")), ("eval.py", ("bars", "--data", "x"))):
            done = self.run_bare(program, *arguments)
            self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)
            target = re.search(r"No module named '\w+'; sudo make ([a-z-]+) installs", done.stderr)
            self.assertIsNotNone(target, done.stderr)
            self.assertIn(f"\n{target[1]}: ", makefile)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    unittest.main()
