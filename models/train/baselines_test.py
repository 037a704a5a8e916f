#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the evaluation's baselines; run with `python3 models/train/baselines_test.py`."""
import os
import struct
import tempfile
import types
import unittest

import numpy as np

import baselines
import dataset
import eval_packets
import testdata

# 256 bytes of which exactly half of the bits are set and 95 are printable.
EVERY_BYTE = bytes(range(256))

# Neither printable nor of few or many set bits: four of each eight bits, above 0x7e.
DULL = bytes([0x8B, 0x95, 0xA9, 0xC6]) * 10


def frame(source, target, payload, udp=False, flags=0x18):
    """An Ethernet frame with IPv4; source and target are (last byte, port)."""
    transport = (struct.pack(">HHHH", source[1], target[1], 8 + len(payload), 0) if udp else
                 struct.pack(">HHIIBBHHH", source[1], target[1], 1, 1, 0x50, flags, 500, 0, 0))
    ip = struct.pack(">BBHHHBBH4B4B", 0x45, 0, 20 + len(transport) + len(payload), 1, 0, 64, 17 if udp else 6, 0,
                     192, 0, 2, source[0], 192, 0, 2, target[0])
    return bytes(6) + b"\2" * 6 + b"\x08\x00" + ip + transport + payload


def write_pcap(path, frames):
    with open(path, "wb") as f:
        f.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for k, data in enumerate(frames):
            f.write(struct.pack("<IIII", 1000, 1000 * k, len(data), len(data)) + data)


class Exemptions(unittest.TestCase):
    def check(self, payload, want, tcp=True):
        array = np.zeros((1, 1024), np.uint8)
        array[0, :len(payload)] = np.frombuffer(payload, np.uint8)
        got = baselines.exemption(array, [len(payload)], np.array([tcp]))[0]
        self.assertEqual(baselines.EXEMPTIONS[got], want, payload[:30])

    def test_each_rule_at_its_border(self):
        level = lambda n: b"c" * n   # printable, four set bits
        for payload, want in (
                (DULL, "flagged"),
                (EVERY_BYTE, "printable run"),                             # the ASCII part of it
                (b"", "no payload of the initiator"),
                (b"\x01" * 40, "set bits"),
                (b"\xff" * 40, "set bits"),
                (b"\x0f" * 6 + b"\x07" * 4, "flagged"),                    # 3.6 per byte
                (b"\x0f" * 4 + b"\x07" * 6, "set bits"),                   # 3.4
                (b"\xf0" * 4 + b"\xf8" * 6, "set bits"),                   # 4.6
                (b"\xf0" * 5 + b"\xf8" * 5, "flagged"),                    # 4.5
                (level(6) + DULL, "first six printable"),
                (level(5) + b"\x8b" + DULL, "flagged"),
                (b"\x8b" + level(10) + DULL[:9], "flagged"),               # 10 of 20 are half, not more
                (b"\x8b" + level(10) + DULL[:8], "half printable"),        # 10 of 19
                (DULL + level(20) + DULL, "flagged"),
                (DULL + level(21) + DULL, "printable run"),
                (DULL + level(11) + b"\x8b" + level(11) + DULL, "flagged"),   # two runs are not one
                (b"\x16\x03\x01" + DULL, "TLS"),
                (b"\x17\x03\x09" + DULL, "TLS"),
                (b"\x18\x03\x01" + DULL, "flagged"),
                (b"\x16\x03\x0a" + DULL, "flagged"),
                (b"GET " + DULL, "HTTP"),
                (b"GETX" + DULL, "flagged")):
            self.check(payload, want)

    def test_udp_is_never_flagged(self):
        self.check(DULL, "not TCP", tcp=False)

    def test_bytes_behind_the_end_do_not_count(self):
        array = np.full((1, 1024), 0x63, np.uint8)
        array[0, :len(DULL)] = np.frombuffer(DULL, np.uint8)
        self.assertEqual(baselines.exemption(array, [len(DULL)], np.array([True]))[0], 0)


class CumulativeSums(unittest.TestCase):
    def test_examples_of_the_standard(self):
        pi = ("11001001000011111101101010100010001000010110100011"
              "00001000110100110001001100011001100010100010111000")
        for bits, want in (("1011010111", 0.4116588), (pi, 0.219194), (pi[::-1], 0.114866)):
            self.assertAlmostEqual(baselines.cusum_p([int(b) for b in bits]), want, places=6)

    def test_one_sided_sequences_are_not_random(self):
        self.assertLess(baselines.cusum_p([1] * 200), 1e-9)
        self.assertGreater(baselines.cusum_p([0, 1] * 100), 0.99)
        self.assertEqual(baselines.cusum_p([]), 0.0)

    def test_packets_count_with_their_length(self):
        capture = np.zeros(1024, np.uint8)
        capture[100:400] = np.tile([0x55, 0xAA], 150)     # passes
        self.assertEqual(baselines.cusum_score(capture, [100, 500], [300, 100]), 0.75)
        self.assertEqual(baselines.cusum_score(capture, [100, 500], [12, 12]), 0)   # too short to tell
        self.assertEqual(baselines.cusum_score(capture, [500], [200]), 0)

    def test_best_cut(self):
        score, wanted = np.array([0, 0.1, 0.2, 0.8, 0.9, 1]), np.array([False] * 3 + [True] * 3)
        self.assertEqual(baselines.best_cut(score, wanted), 0.8)


class Ports(unittest.TestCase):
    def test_table_and_usual_ports(self):
        services = {("tcp", 22): "ssh", ("tcp", 443): "https", ("udp", 1194): "openvpn"}
        labels = ["background", "openvpn", "shadowsocks", "ssh"]
        got = baselines.by_port(["tcp", "tcp", "udp", "tcp", "udp", "tcp"], [22, 443, 1194, 1194, 8388, 1080], labels, services)
        self.assertEqual([labels[k] for k in got], ["ssh", "background", "openvpn", "background", "shadowsocks", "background"])

    def test_services_of_the_system(self):
        services = baselines.read_services()
        self.assertEqual((services["tcp", 22], services["udp", 53]), ("ssh", "domain"))


class Dpi(unittest.TestCase):
    def test_table_is_matched_in_either_direction(self):
        found = baselines.read_ndpi(["#flow_id,protocol,src_ip,src_port,dst_ip,dst_port,ndpi_proto\n",
                                     "0,6,192.0.2.1,40000,192.0.2.2,22,SSH\n",
                                     "1,17,2001:db8::1,1194,2001:db8::2,50000,OpenVPN\n",
                                     "2,1,192.0.2.1,,192.0.2.2,,ICMP\n"])
        row = {"src": "192.0.2.2:22", "dst": "192.0.2.1:40000", "proto": "tcp"}
        self.assertEqual(found[baselines.sample_key(row)], "SSH")
        row = {"src": "[2001:db8::2]:50000", "dst": "[2001:db8::1]:1194", "proto": "udp"}
        self.assertEqual(found[baselines.sample_key(row)], "OpenVPN")
        self.assertNotIn(baselines.sample_key(row | {"proto": "tcp"}), found)
        self.assertEqual(len(found), 2)
        with self.assertRaisesRegex(ValueError, "ndpi_proto"):
            baselines.read_ndpi(["#flow_id,protocol,src_ip,src_port,dst_ip,dst_port\n"])

    def test_names_become_classes(self):
        labels = ["background", "openvpn", "ssh"]
        for name, want in (("SSH", "ssh"), ("OpenVPN.Google", "openvpn"), ("TLS.Google", "background"),
                           ("WireGuard", "background"), ("", "background")):
            self.assertEqual(labels[baselines.ndpi_class(name, labels)], want, name)

    def test_the_program_itself(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "ssh.pcap")
            a, b = (1, 40000), (2, 2222)
            write_pcap(path, [frame(a, b, b"", flags=2), frame(b, a, b"", flags=0x12),
                              frame(b, a, b"SSH-2.0-OpenSSH_9.2\r\n"), frame(a, b, b"SSH-2.0-OpenSSH_9.2\r\n")])
            found, seconds = baselines.run_ndpi(path)
            self.assertEqual(found, {baselines.sample_key({"src": "192.0.2.1:40000", "dst": "192.0.2.2:2222", "proto": "tcp"}): "SSH"})
            self.assertGreater(seconds, 0)
            with open(path, "wb") as f:
                f.write(b"not a capture")
            with self.assertRaisesRegex(ValueError, "ndpiReader could not read"):
                baselines.run_ndpi(path)


class Sessions(unittest.TestCase):
    def test_features_tell_the_sides_apart(self):
        packets = [(30, 1, 0), (500, 0, 1000), (500, 0, 2000)]
        there = lambda rows: rows[rows[:, 0] >= 0]
        mine = baselines.session_features(there(testdata.session(packets)))
        other = baselines.session_features(there(testdata.session([(n, 1 - side, time) for n, side, time in packets])))
        self.assertEqual(mine.shape, other.shape)
        self.assertTrue(np.isfinite(mine).all())
        self.assertAlmostEqual(mine[0], 0.002)
        first = mine[-baselines.FIRST_PACKETS:]
        self.assertEqual(first[:4].tolist(), [30, -500, -500, 0])
        self.assertEqual((-other[-baselines.FIRST_PACKETS:]).tolist(), first.tolist())

    def test_forest_features_are_those_of_each_session(self):
        sessions = np.stack([testdata.session([(n, 1, 0), (7, 0, 500)]) for n in (10, 20, 30)])
        data = types.SimpleNamespace(sessions=lambda indices: sessions[indices])
        features, seconds = baselines.forest_features(data, np.array([2, 0]))
        self.assertEqual(features[:, -baselines.FIRST_PACKETS].tolist(), [30, 10])
        self.assertGreater(seconds, 0)

    def test_lengths_of_the_first_packets_with_payload(self):
        sessions = np.stack([testdata.session([(0, 1, 0), (500, 0, 1), (30, 1, 2), (0, 0, 3), (40, 1, 4)]), testdata.session([]),
                             testdata.session([(k + 1, k % 2, k) for k in range(100)])])
        for count, want in ((2, [[-500, 30], [0, 0], [-1, 2]]), (4, [[-500, 30, 40, 0], [0] * 4, [-1, 2, -3, 4]])):
            self.assertEqual(eval_packets.signed_lengths(sessions, count).tolist(), want)
        self.assertEqual(np.count_nonzero(eval_packets.signed_lengths(sessions, 80)[2]), 64)

    def test_captures_are_looked_for(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(ValueError, "missing.pcap: not found below"):
            eval_packets.locate("missing.pcap", [folder])


def flows_of(packets, udp=False):
    """Flows of one capture; packets: (frame, from the initiator)."""
    capture, _, records, captured = testdata.lay_out([(data, initiator, k) for k, (data, initiator) in enumerate(packets)], udp)
    return eval_packets.Flows(capture[None], dataset.payloads_of(np.array([captured]), records[None], np.array([[udp]])))


class Payload(unittest.TestCase):
    def test_streams_and_first_payload(self):
        a, b = (1, 40000), (2, 80)
        f = flows_of([(frame(a, b, b"", flags=2), 1), (frame(b, a, b"hello"), 0), (frame(a, b, b"one"), 1),
                      (frame(a, b, b"two"), 1), (frame(b, a, b"z" * 2000), 0)])
        self.assertEqual(f.first[0, :f.first_length[0]].tobytes(), b"one")
        self.assertEqual(f.stream[0, 0, :f.stream_length[0, 0]].tobytes(), b"onetwo")
        self.assertTrue(f.stream[0, 1].tobytes().startswith(b"hellozzz"))
        self.assertEqual(f.stream_length.tolist(), [[6, 1024 - 5 * 54 - 6]])
        self.assertTrue(f.tcp[0])
        row = baselines.tree_features(f)[0]
        self.assertEqual(row[:4].tolist(), [-5, 3, 3, -2000])
        self.assertTrue(np.isnan(row[4:8]).all())

    def test_udp_and_a_silent_initiator(self):
        f = flows_of([(frame((1, 9), (2, 53), b"q", udp=True), 0)], udp=True)
        self.assertFalse(f.tcp[0])
        self.assertEqual(f.first_length[0], 0)


class Trees(unittest.TestCase):
    def test_probabilities_keep_the_places_of_missing_classes(self):
        rng = np.random.default_rng(1)
        features, classes = rng.normal(size=(300, 3)), np.array([0, 2] * 150)
        features[classes == 2, 0] += 4
        for fit in (lambda x, y: baselines.fit_trees(x, y, 1, rounds=10), lambda x, y: baselines.fit_forest(x, y, 1, trees=10)):
            p = baselines.probabilities(fit(features[:200], classes[:200]), features[200:], ["background", "a", "b"])
            self.assertEqual(p.shape, (100, 3))
            self.assertFalse(p[:, 1].any())
            self.assertTrue(np.allclose(p.sum(axis=1), 1))
            self.assertGreater((p.argmax(axis=1) == classes[200:]).mean(), 0.9)


if __name__ == "__main__":
    unittest.main()
