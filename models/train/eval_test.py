#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the evaluation; run with `python3 models/train/eval_test.py`."""
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import types
import unittest

import numpy as np

import baselines_test
import counts
import dataset
import eval as evaluation
import eval_bars
import eval_base
import eval_limits
import eval_report
import eval_shortcuts
import fit
import network
import settings
import testdata

LABELS = ["background", "shadowsocks", "v2ray"]


def write_folder(folder, n=600, seed=1, alike=False):
    """A small dataset of parsable frames: three classes whose first payload
    differs, 20 networks of the lab and 10 sources of captures.

    alike: Shadowsocks, VMess and random-like background begin with random bytes
    of the same lengths, of which the captures have one packet, or the second as well;
    the third packet, which the session alone has, distinguishes them."""
    rng = np.random.default_rng(seed)
    laid_out, sessions, rows = [], [], []
    for i in range(n):
        label = LABELS[max(0, i % 6 - 3)]
        lab = label != "background" or i % 6 < 2
        first = {"background": b"GET /index.html HTTP/1.1\r\nHost: example.net\r\n\r\n",
                 "shadowsocks": rng.bytes(150), "v2ray": b"\x55" * 60 + rng.bytes(20)}[label]
        third = {"background": 30, "shadowsocks": 90, "v2ray": 300}[label]
        if alike and (label != "background" or i % 6 == 1):
            first = rng.bytes(150)
        a, b = (1, 40000 + i), (2, 443)
        frames = [(baselines_test.frame(a, b, first), 1, 0), (baselines_test.frame(b, a, rng.bytes(200)), 0, 1000)]
        sessions.append(testdata.session([(len(first), 1, 0), (200, 0, 1000), (third, 1, 2000)]))
        laid_out.append(testdata.lay_out(frames[:1 if alike and i % 12 < 6 else 2]))
        kind = "" if not lab else "tunnel" if label != "background" else ("ordinary", "random-like")[i % 2]
        # A small number first, so that each source has flows of its own.
        group = f"net-{i // 6 % 20:02d}" if lab else f"source-{i // 6 % 10}"
        rows.append([i, label, group, "f.pcap", f"192.0.2.1:{40000 + i}", "192.0.2.2:443", "tcp", laid_out[-1][3], "full",
                     f"program-{i // 6 % 2}" if lab else "", kind, "tls" if i % 30 == 5 else "plain"])
    capture, fields, packets, _ = (np.stack(a) for a in zip(*laid_out))
    testdata.write(folder, ["index", "label", "group", "file", "src", "dst", "proto", "captured", "reason", "program", "kind", "cipher"], rows,
                   "2", capture=capture, mask=np.zeros((n, 1024), np.uint8), fields=fields, packets=packets, session=np.stack(sessions))


class Counting(unittest.TestCase):
    def test_one_against_rest_and_confusion(self):
        truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2, 2])
        got = eval_report.one_against_rest(predicted, truth, 1)
        self.assertEqual({k: (s["hits"], s["total"]) for k, s in got.items()},
                         {"accuracy": (4, 6), "precision": (1, 2), "recall": (1, 2)})
        confusion = eval_report.confusion(predicted, truth, LABELS)
        self.assertEqual(confusion["v2ray"], {"background": 0, "shadowsocks": 1, "v2ray": 1})
        # The paper's own table: M1 of experiment 1.
        self.assertIn("| shadowsocks      | 1 ", eval_report.confusion_table(confusion))

    def test_text_has_counts_and_the_wilson_interval(self):
        self.assertEqual(counts.text(counts.share(0, 100)), "0.00 % (0 of 100; 0.00 to 3.70)")
        self.assertEqual(counts.text(counts.share(0, 0)), "-")
        self.assertEqual(counts.text(None), "-")

    def test_precision_at_base_rates(self):
        # 1 % tunnels, 1 % false positives, all tunnels taken: half of the blocks are right.
        self.assertAlmostEqual(eval_report.precision_at(1, 0.01, 100), 0.5)
        self.assertEqual(eval_report.precision_at(0.5, 0.0, 10000), 1)
        self.assertTrue(np.isnan(eval_report.precision_at(0, 0, 1)))

    def test_cut_keeps_the_budget_and_uses_it(self):
        p = np.array([0.1, 0.9, 0.99999999, 0.5, 0.9, 0.2, 0.3, 0.4, 0.6, 0.7])
        for budget, taken in ((0, 0), (0.05, 0), (0.1, 1), (0.2, 1), (0.3, 3)):   # two are 0.9: both or none
            self.assertEqual((p >= eval_report.cut_for(p, budget)).sum(), taken, budget)
        self.assertEqual(eval_report.cut_for(np.array([]), 0.1), 0)

    def test_bar_says_whether_the_interval_is_inside(self):
        for hits, total, bar, at_most, want in ((0, 10, 0.05, True, "met; the interval reaches beyond"),
                                                (0, 100000, 0.0005, True, "met"), (1, 10, 0.05, True, "MISSED"),
                                                (999, 1000, 0.9, False, "met"), (9, 10, 0.9, False, "met; the interval reaches beyond"),
                                                (8, 10, 0.9, False, "MISSED"), (0, 0, 0.9, False, "not measured")):
            self.assertEqual(eval_bars.verdict_word(counts.share(hits, total), bar, at_most), want, (hits, total, bar))

    def test_a_result_is_computed_once_for_its_data_and_options(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            calls = []
            make = lambda: calls.append(1) or {"n": len(calls)}
            for digest, options, want in (("a", {"k": 1}, 1), ("a", {"k": 1}, 1), ("a", {"k": 2}, 2), ("b", {"k": 1}, 3), ("a", {"k": 2}, 2)):
                self.assertEqual(eval_report.Store(folder, digest).get("study", options, make), {"n": want})


class OnData(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        write_folder(cls.dir.name + "/set")
        cls.data = dataset.Data([cls.dir.name + "/set"])

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def evaluation(self, out="out"):
        args = types.SimpleNamespace(captures=[], seed=1, budget=0.01, epochs=1, epoch_samples=200, left_out=["program-1"], folds=3,
                                     flows=200, run_folds=1, network=[], threads=1, max_minutes=0, bf16=False, fold_kind="both",
                                     no_trees=False, skip=["v2ray/tls"], experimental=[])
        part = dataset.split_groups(self.data, [], [], 1)
        return eval_base.Evaluation(args, self.data, [], part, eval_report.Store(f"{self.dir.name}/{out}", self.data.digest))

    def test_folds_of_groups_split_no_group_and_have_both_kinds(self):
        e = self.evaluation()
        chosen = eval_base.draw_flows(e, 200, 1)
        self.assertEqual([(e.data.label[chosen] == k).sum() for k in LABELS], [100, 50, 50])
        for by_group in (False, True):
            fold = eval_base.fold_flows(e, chosen, 5, by_group, 1)
            self.assertEqual(np.flatnonzero(fold >= 0).tolist(), chosen.tolist())
            split = [g for g in set(e.data.group[chosen]) if len(set(fold[chosen][e.data.group[chosen] == g])) > 1]
            self.assertEqual(bool(split), not by_group)
            for k in range(5):
                self.assertTrue(e.lab[fold == k].any() and (~e.lab[fold == k]).any())
            parts = eval_base.parts_of(fold, 4, 5)
            self.assertEqual({v: set(fold[parts == v]) for v in set(parts)},
                             {"test": {4}, "validation": {0}, "train": {1, 2, 3}, "": {-1}})

    def test_header_fields_lie_where_the_headers_are(self):
        fields = eval_shortcuts.header_fields(self.data, np.arange(6))
        second = 54 + int(self.data.packets[0, 0, 1] - 54)
        for name, where in (("MAC addresses", [*range(12)]), ("TTL, hop limit", [22]), ("IP addresses", [*range(26, 34)]),
                            ("ports", [*range(34, 38)]), ("TCP window", [48, 49])):
            got = np.flatnonzero(fields[name][0]).tolist()
            self.assertEqual(got, where + [second + k for k in where], name)
        self.assertEqual(np.flatnonzero(fields["payload of the initiator"][0]).tolist(), [*range(54, second)])
        self.assertFalse(fields["UDP length"].any())
        # Every field of a header is replaced with one group.
        stray = ("payload", "not IP", "IPv4 header, damaged", "IPv6 header, damaged", "part of a fragmented packet", "neither TCP nor UDP",
                 "TCP header, damaged")
        for name in self.data.field_names:
            groups = [g for g, beginnings in eval_shortcuts.GROUPS.items() if name.startswith(beginnings)]
            self.assertEqual(len(groups), 0 if name in stray else 1, (name, groups))
        together = np.sum([v[0] for v in fields.values()], axis=0)
        self.assertEqual(together.tolist(), (np.arange(1024) < self.data.captured[0]).astype(int).tolist())

    def test_replacing_a_field_changes_nothing_else(self):
        indices = np.arange(12)
        for channels in (["byte"], ["streams", "packets"]):
            images = dataset.images(self.data, indices, channels, "strict")
            seen = []
            for name, has, other in eval_shortcuts.replacements(self.data, indices, channels, images, np.random.default_rng(1)):
                changed = (other != images).reshape(len(indices), -1).any(axis=1)
                self.assertFalse((changed & ~has).any(), name)
                self.assertTrue(changed.any() or name in ("TCP or UDP", "IP version and header length"), name)
                seen.append(name)
            self.assertEqual(len(seen), len(set(seen)))
        # A row that has no packet stays empty, and a length keeps its range.
        images = dataset.images(self.data, indices, ["packets"], "strict")
        for name, _, other in eval_shortcuts.replacements(self.data, indices, ["packets"], images, np.random.default_rng(1)):
            rows = other.reshape(len(indices), 32, 32)
            self.assertFalse(rows[:, 2:24].any(), name)
            if name == "lengths of packets":
                self.assertLessEqual((rows[:, :2, 2].astype(int) * 256 + rows[:, :2, 3]).max(), 1460)

    def test_cut_captures_are_those_of_a_shorter_capture(self):
        cut = eval_base.cut_captures(self.data, 100)
        self.assertEqual(cut.captured.max(), 100)
        self.assertFalse(cut.capture[:, 100:].any())
        self.assertEqual(cut.payloads().captured.sum(axis=1)[0], 46)
        self.assertEqual(self.data.payloads().captured.sum(axis=1)[0], self.data.captured[0] - 108)
        part = self.data.part(np.array([5, 7]))
        self.assertEqual((part.payloads().start.shape, part.label.tolist()), ((2, 32), self.data.label[[5, 7]].tolist()))

    def test_bars_count_what_they_say(self):
        e = self.evaluation()
        test = np.flatnonzero(e.where == "test")
        truth = np.array([LABELS.index(v) for v in self.data.label[test]])
        wrapped = e.wrapped[test]
        self.assertTrue(wrapped.any() and (truth[wrapped] == 2).all())
        taken = (truth > 0) & ~wrapped | e.random_like[test]
        r = eval_base.counted(e, test, taken, np.maximum(truth, 1), LABELS)
        self.assertEqual((r["ordinary"]["hits"], r["ordinary"]["total"]), (0, e.ordinary[test].sum()))
        self.assertEqual(r["random-like"]["hits"], e.random_like[test].sum())
        self.assertEqual(r["told apart"]["all"]["total"], (truth > 0).sum() - wrapped.sum())
        self.assertEqual(r["recall"]["v2ray"]["hits"], r["recall"]["v2ray"]["total"])
        self.assertEqual((r["variants"]["v2ray/tls"]["hits"], r["variants"]["v2ray/tls"]["total"]), (0, wrapped.sum()))
        words = eval_bars.bars_text(e, {"boosted trees": r})
        for name in ("program-0", "program-1"):
            self.assertIn(f"shadowsocks: {name}", words)
        self.assertRegex(words, r"recall of v2ray, programs left out *\| >= 90 % *\| 100.00 %")
        self.assertEqual(r["captures"]["total"] + r["lab ordinary"]["total"], r["ordinary"]["total"])

    def test_studies_run_and_are_resumed(self):
        model = f"{self.dir.name}/m.onnx"
        part = dataset.split_groups(self.data, [], [], 1)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            p = fit.fit(self.data, part, epochs=2, epoch_samples=1000, batch=32, threads=1)
            figures = {f"{name}_groups": sorted(g for g in part if part[g] == name) for name in ("test", "validation")}
            network.export_onnx(p.net, model, name="small", version="0", labels=p.labels, channels=p.channels, mask=p.mask,
                                temperature=p.temperature, thresholds=p.thresholds, training_data=self.data.digest, figures=figures,
                                created_by="test", any_threshold=p.any_threshold, unknown=p.unknown)
        command = ["bars", "base-rates", "bytes", "shortcuts", "groups", "transfer", "implementations", "--data", f"{self.dir.name}/set", "--model", model,
                   "--out", f"{self.dir.name}/eval", "--epochs", "1", "--epoch-samples", "300", "--folds", "3", "--threads", "1"]
        told = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(told):
            evaluation.main(command)
        text = told.getvalue()
        for name in ("bars", "base-rates", "bytes", "shortcuts", "groups", "transfer", "implementations"):
            with open(f"{self.dir.name}/eval/{name}.md", encoding="utf-8") as f:
                heading, _, tables = f.read().split("\n\n", 2)
            self.assertEqual(heading, f"# {name}")
            self.assertIn(tables, text)
        for name in ("base-rates", "bytes"):
            with open(f"{self.dir.name}/eval/{name}.png", "rb") as f:
                self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")
        # Plain HTTP is exempt, random bytes are not.
        self.assertRegex(text, r"ordinary background, all sources *\| *[0-9.]+ % *\| *[0-9.]+ % *\| 0\.00 %")
        again, steps = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(steps), contextlib.redirect_stdout(again):
            evaluation.main(command)
        self.assertEqual(again.getvalue(), text)
        self.assertEqual(steps.getvalue(), "")

    def test_a_training_is_as_long_as_told_or_as_the_network_is_used_to(self):
        e = self.evaluation()
        e.args.epochs, e.args.epoch_samples = 3, 200
        self.assertEqual((e.length(), e.options()["epochs"], e.trained_text()), ((3, 200), 3, "compact, 3 epochs of 200 samples"))
        e.args.epochs, e.args.epoch_samples = 0, 0
        for net in settings.DEFAULTS:
            own = fit.Options(network=net)
            self.assertEqual(e.length(net), (own.epochs, own.epoch_samples))
            self.assertEqual((e.options(net)["epochs"], e.options(net)["epoch_samples"]), e.length(net))

    def test_trees_and_kinds_of_folds_can_be_left_out(self):
        command = lambda *words: [*words, "--data", f"{self.dir.name}/set", "--out", f"{self.dir.name}/some", "--threads", "1", "--epochs", "1",
                                  "--epoch-samples", "300", "--folds", "3"]
        told = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(told):
            evaluation.main(command("groups", "transfer", "implementations", "--no-trees", "--holdout-group", "net-0*", "--holdout-group",
                                    "source-[0-3]"))
        self.assertNotIn("boosted trees", told.getvalue())
        rows = [line for line in told.getvalue().splitlines() if line.startswith("| shadowsocks ")]
        self.assertEqual([len(line.split("|")) for line in rows], [10, 10])
        told = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(told):
            evaluation.main(command("experiment1", "--flows", "120", "--run-folds", "1", "--fold-kind", "groups", "--bf16"))
        self.assertIn("Folds of whole groups", told.getvalue())
        self.assertNotIn("Random folds", told.getvalue())
        self.assertIn("bfloat16", told.getvalue())

    def test_limits_are_of_what_was_captured(self):
        folder, out = f"{self.dir.name}/alike", f"{self.dir.name}/limits"
        write_folder(folder, n=900, alike=True)
        command = ["limits", "--data", folder, "--out", out, "--threads", "1", "--holdout-group", "net-0*"]
        told, again, steps = io.StringIO(), io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(told):
            evaluation.main(command)
        with contextlib.redirect_stderr(steps), contextlib.redirect_stdout(again):
            evaluation.main(command)
        self.assertEqual((again.getvalue(), steps.getvalue()), (told.getvalue(), ""))
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in told.getvalue().splitlines() if line.startswith("| ")]
        shares = lambda start: [float(c.split(" %")[0]) for c in next(r for r in rows if r[0] == start)[1:] if "%" in c]
        # Told apart, random-like taken, of them custom (none: no figure), others.
        first, two, four = (shares(name)[:2] for name in ("trees, first 1024 bytes", "trees, and first 2 packets", "trees, and first 4 packets"))
        for name, (apart, random_like) in (("first", first), ("two", two)):
            self.assertTrue(25 < apart < 75 and random_like > 70, (name, apart, random_like))
        self.assertEqual(four, [100, 0])
        # One observation: the counts know no more than the commoner class, and no rule could.
        bound = next(r for r in rows if r[0] == "one packet only, less" and r[1] == "1")
        self.assertEqual(bound[2], bound[4])
        self.assertLess(float(bound[4].split(" %")[0]), 75)
        # The sorts of programs: told apart with packets only, and no longer taken.
        for start in ("v2ray: program-0", "program-1: plain"):
            row = shares(start)
            self.assertEqual((len(row), row[0] != row[1], row[1]), (2, True, 100 if "v2ray" in start else 0), start)
        with open(f"{out}/limits.png", "rb") as f:
            self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")

    def test_situations_of_captures(self):
        def case(*packets):   # (from the initiator, length, captured)
            slots = [*packets, *[(0, 0, 0)] * (32 - len(packets))]
            columns = np.array(slots).T[:, None]
            return dataset.Payloads(None, columns[2], columns[1], columns[0] != 0, None, None)

        for packets, want in (([(1, 1460, 900)], 0), ([(1, 1200, 900)], 0), ([(1, 1199, 900)], 1), ([(1, 600, 600)], 1), ([(1, 599, 599)], 2),
                              ([(1, 100, 100), (1, 1460, 700)], 3), ([(1, 100, 100), (0, 1460, 700)], 4), ([(1, 100, 100), (0, 50, 50)], 5),
                              ([(1, 100, 100), (0, 50, 50), (1, 9, 9), (0, 1460, 700)], 5), ([(1, 100, 100), (0, 50, 50), (1, 1460, 600)], 5),
                              ([(0, 50, 50), (1, 1460, 600)], 5), ([(0, 50, 50)], 6), ([], 6)):
            self.assertEqual(eval_limits.situations(case(*packets)).tolist(), [want], packets)

    def test_threshold_keeps_each_class_to_its_aim(self):
        score, label = np.arange(400) / 400, np.array(["shadowsocks"] * 200 + ["v2ray"] * 200)
        for swap in (False, True):
            names = label[::-1] if swap else label
            cut = eval_limits.threshold_of_aims(score, names)
            got = {k: np.mean(score[names == k] >= cut) for k in ("shadowsocks", "v2ray")}
            self.assertEqual((got["shadowsocks"], got["v2ray"]), (0.985, 1.0) if not swap else (1.0, 0.99))

    def test_no_rule_beats_hindsight(self):
        right, best = eval_limits.by_observation(["a", "a", "a", "b", "c"], np.array([1, 1, 0, 0, 1], bool), ["a", "b", "b"],
                                                 np.array([0, 0, 0], bool))
        self.assertEqual((right.tolist(), best), ([False, False, True, True, False], 4))

    def test_bad_input_is_one_line_and_2(self):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "eval.py")
        done = subprocess.run([sys.executable, "-B", program, "bars", "--data", f"{self.dir.name}/none"], capture_output=True, text=True,
                              check=False)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)
        self.assertIn("dataset.json", done.stderr)
        for arguments, word in ((["experiment2", "--data", f"{self.dir.name}/set"], "--captures"),
                                (["bytes", "--data", f"{self.dir.name}/set"], "--model")):
            with self.assertRaisesRegex(ValueError, word):
                evaluation.main([*arguments, "--out", f"{self.dir.name}/bad"])
        for arguments, word in ((["groups", "--folds", "2", "--data", "x"], "--folds is 2"), (["nonsense", "--data", "x"], "nonsense"),
                                (["groups", "--epochs", "-1", "--data", "x"], "--epochs is -1"),
                                (["bars", "--budget", "1", "--data", "x"], "--budget is 1")):
            told = io.StringIO()
            with contextlib.redirect_stderr(told), self.assertRaises(SystemExit) as ended:
                evaluation.main(arguments)
            self.assertEqual((ended.exception.code, word in told.getvalue()), (2, True), told.getvalue())


if __name__ == "__main__":
    unittest.main()
