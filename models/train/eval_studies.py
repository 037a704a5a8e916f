# SPDX-License-Identifier: Apache-2.0
"""The studies of the evaluation; eval.py runs them."""
import copy
import sys
import time

import numpy as np

import baselines
import dataset
import eval_packets
import eval_report
import fit
import network
from eval_report import among, rate, share, table, text

# The classes of the paper.
PAPER_CLASSES = ["shadowsocks", "v2ray"]

# The ratios of random to real background of experiment 1.
RATIOS = {"0": 0.0, "1/9": 1 / 9, "2/8": 2 / 8, "3/7": 3 / 7}

TEN = 10

# Numbers of bytes that the study of bytes shows to the models.
BYTES_SEEN = (128, 256, 512, 768, 1024)

# Ordinary flows for each tunnel, of the study of base rates.
BASE_RATES = (1, 100, 1000, 10000)

# A source of captures with fewer flows says too little about itself.
SOURCE_FLOWS = 200

# Samples that a baseline is trained on, per source of background.
BASELINE_LIMIT = 3000

# Samples of the trained baselines whose captures are read.
FOREST_SAMPLES = 12000
CUSUM_SAMPLES = 4000

# Flows of test groups that shortcuts replaces fields of.
SHORTCUT_FLOWS = 3000


class Model:
    """A network with its thresholds, from a file or from a training.

    name; labels, background first; any_threshold, thresholds; p(indices) are
    calibrated probabilities, float64 [n, labels], p_images those of images
    uint8 [n, channels, 1024].
    """

    def __init__(self, name, predictor, meta=None):
        self.name, self.predictor, self.meta = name, predictor, meta or {}
        self.labels, self.any_threshold = predictor.labels, predictor.any_threshold
        self.thresholds = predictor.thresholds

    @classmethod
    def load(cls, path, data):
        net, meta = network.load_onnx(path)
        predictor = fit.Predictor(data, net, meta["labels"], fit.Options(network=meta["network"], mask=meta["mask"]))
        predictor.temperature, predictor.thresholds = meta["temperature"], meta["thresholds"]
        # Models from before there was any_threshold recommend a min_confidence.
        predictor.any_threshold = meta.get("any_threshold", meta["figures"].get("min_confidence", 1.0))
        return cls(meta["name"], predictor, meta)

    def key(self):
        """What tells this file from another, for Store."""
        return {k: self.meta.get(k) for k in ("name", "version", "training_data", "any_threshold", "check")}

    def groups(self, part):
        """The groups of a part, as the training wrote them into the file."""
        groups = self.meta["figures"].get(f"{part}_groups", [])
        if not groups:
            raise ValueError(f"model {self.name} does not say what its {part} groups were: name them with --holdout-group "
                             "and --validation-group")
        return groups

    def p(self, indices, data=None):
        predictor = self.predictor
        if data is not None:
            predictor = copy.copy(predictor)
            predictor.data = data
        return predictor(indices)

    def p_images(self, images):
        return network.softmax(fit.logits_of(self.predictor.net, images, self.predictor.device), self.predictor.temperature)


class Evaluation:
    """What all studies share: options, data, models, the split into parts."""

    def __init__(self, args, data, models, part, store):
        self.args, self.data, self.models, self.part, self.store = args, data, models, part, store
        self.labels = data.labels()
        if len(self.labels) < 2:
            raise ValueError(f"the data has the classes {sorted(set(data.label))}: background and another are needed")
        self.where = np.array([part[g] for g in data.group])
        self.wanted = data.label != dataset.BACKGROUND
        self.kind = data.column("kind")
        self.program = data.column("program")
        # Groups with background only are captures of others.
        self.lab = np.isin(data.group, list(set(data.group[self.wanted])))
        self.real = self.named_by_ndpi()
        self.ordinary = ~self.wanted & (self.kind != fit.RANDOM_LIKE) & ~self.real
        self.random_like = ~self.wanted & (self.kind == fit.RANDOM_LIKE)

    def named_by_ndpi(self):
        """bool [N]: flows in captures of others whose bytes nDPI names as one of
        the data's classes. They are no false positives where they are taken,
        and are counted by themselves; none where the captures are not named."""
        out = np.zeros(len(self.data), bool)
        if self.args.captures and set(baselines.NDPI_CLASSES.values()) & set(self.labels):
            others = np.flatnonzero(~self.lab)
            names = self.store.get("named", {"classes": self.labels}, lambda: baselines.by_ndpi(
                self.data, others, self.args.captures, guess=False, progress=eval_report.Progress("nDPI on captures of others"))[0])
            out[others] = [baselines.ndpi_class(n, self.labels) > 0 for n in names]
        return out

    def train(self, name, where, epochs=None, epoch_samples=None, **options):
        """A Model trained on a part, where: array of part names."""
        print(f"{name}: training on {(where == 'train').sum()} flows", flush=True, file=sys.stderr)
        options = {"network": "compact", "seed": self.args.seed, "false_positives": self.args.budget, **options}
        epochs, epoch_samples = epochs or self.args.epochs, epoch_samples or self.args.epoch_samples
        return Model(name, fit.fit(self.data, where, epochs=epochs, epoch_samples=epoch_samples, **options))

    def options(self, **more):
        """What every trained result depends on."""
        a = self.args
        return {"seed": a.seed, "budget": a.budget, "epochs": a.epochs, "epoch_samples": a.epoch_samples,
                "test": sorted(g for g in self.part if self.part[g] == "test"),
                "validation": sorted(g for g in self.part if self.part[g] == "validation"), **more}

    def truth(self, indices, labels):
        return np.array([labels.index(v) if v in labels else -1 for v in self.data.label[indices]])


def counted(e, indices, taken, likelier=None, labels=None):
    """The counts of a verdict on samples. taken: bool [n], flows called a tunnel;
    likelier: class numbers of the likeliest wanted class, labels its classes."""
    d = e.data
    label, wanted = d.label[indices], e.wanted[indices]
    out = {"ordinary": among(taken, e.ordinary[indices]),
           "captures": among(taken, e.ordinary[indices] & ~e.lab[indices]),
           "lab ordinary": among(taken, e.ordinary[indices] & e.lab[indices]),
           "random-like": among(taken, e.random_like[indices]),
           "real": among(taken, e.real[indices])}
    group, captures = d.group[indices], e.ordinary[indices] & ~e.lab[indices]
    out["sources"] = {g: among(taken, captures & (group == g)) for g in sorted(set(group[captures]))
                      if (captures & (group == g)).sum() >= SOURCE_FLOWS}
    out["recall"] = {k: among(taken, label == k) for k in e.labels[1:] if (label == k).any()}
    program, transport = e.program[indices], d.column("proto")[indices]
    out["programs"] = {f"{k}: {v}": among(taken, (label == k) & (program == v)) for k in e.labels[1:]
                       for v in sorted(set(program[label == k]))}
    out["transports"] = {f"{k}, {v}": among(taken, (label == k) & (transport == v)) for k in e.labels[1:]
                         for v in sorted(set(transport[label == k]))}
    if likelier is not None:
        named = np.array(labels)[likelier]
        known = wanted & np.isin(label, labels)
        out["told apart"] = {"all": among(named == label, known), "taken": among(named == label, known & taken),
                             "paper's classes, taken": among(named == label, known & taken & np.isin(label, PAPER_CLASSES)),
                             **{k: among(named == label, taken & (label == k)) for k in labels[1:] if (label == k).any()}}
    return out


def verdicts(p, threshold):
    """(taken, likelier wanted class) from probabilities."""
    return fit.wanted_sum(p) >= threshold, p[:, 1:].argmax(axis=1) + 1


# --- the bars -------------------------------------------------------------------

def tree_model(e, where, name="boosted trees"):
    """Trees on a part, with the threshold of the budget chosen on validation;
    (probabilities(indices), threshold)."""
    d = e.data
    rng = np.random.default_rng(e.args.seed)
    chosen = baselines.thin(d, np.flatnonzero(where == "train"), BASELINE_LIMIT, rng)
    classes = e.truth(chosen, e.labels)
    print(f"{name}: training on {len(chosen)} flows", file=sys.stderr, flush=True)
    model = baselines.fit_trees(baselines.tree_features(eval_packets.Flows.of(d, chosen)), classes, e.args.seed)

    def p(indices):
        out = [baselines.probabilities(model, baselines.tree_features(eval_packets.Flows.of(d, indices[i:i + 8192])), e.labels)
               for i in range(0, len(indices), 8192)]
        return np.concatenate(out)

    validation = np.flatnonzero((where == "validation") & e.ordinary)
    return p, eval_report.cut_for(fit.wanted_sum(p(validation)), e.args.budget)


def flagged(e, indices):
    """bool: flows that the exemption rules would block."""
    out = []
    for i in range(0, len(indices), 8192):
        f = eval_packets.Flows.of(e.data, indices[i:i + 8192])
        out.append(baselines.exemption(f.first, f.first_length, f.tcp) == 0)
    return np.concatenate(out) if out else np.zeros(0, bool)


def bars(e):
    """Every bar, for the models and what they are measured against."""
    test = np.flatnonzero(e.where == "test")
    rows = {}
    for m in e.models:
        unknown = sorted(set(m.labels) - set(e.labels))
        if unknown:
            raise ValueError(f"model {m.name} has classes that the data has not: {', '.join(unknown)}")

        def of_model(m=m):
            p = m.p(test)
            taken, likelier = verdicts(p, m.any_threshold)
            out = counted(e, test, taken, likelier, m.labels)
            out["threshold"] = m.any_threshold
            out["alone"] = {k: {"recall": among(p[:, i] >= m.thresholds[k], e.data.label[test] == k),
                                "ordinary": among(p[:, i] >= m.thresholds[k], e.ordinary[test]), "threshold": m.thresholds[k]}
                            for i, k in enumerate(m.labels) if k in m.thresholds}
            return out

        rows[m.name] = e.store.get("bars", e.options(model=m.key()), of_model)

    def of_trees():
        p, threshold = tree_model(e, e.where)
        p = p(test)
        return counted(e, test, *verdicts(p, threshold), e.labels) | {"threshold": threshold}

    rows["boosted trees"] = e.store.get("bars", e.options(model="trees"), of_trees)
    rows["exemption rules"] = e.store.get("bars", e.options(model="rules"), lambda: counted(e, test, flagged(e, test)))
    e.store.show("bars", bars_text(e, rows))
    return rows


def verdict_word(s, bar, at_most):
    if not s or s["total"] == 0:
        return "not measured"
    met = rate(s) <= bar if at_most else rate(s) >= bar
    sure = s["high"] <= bar if at_most else s["low"] >= bar
    return "met" if met and sure else "met; the interval reaches beyond" if met else "MISSED"


def bars_text(e, rows):
    def left_out(name):
        return dataset.matches(name.split(": ", 1)[1], e.args.left_out)

    def programs(r, label, out):
        chosen = [s for k, s in r["programs"].items() if k.startswith(label + ": ") and left_out(k) == out]
        return share(sum(s["hits"] for s in chosen), sum(s["total"] for s in chosen))

    def worst(r):
        return max(r["sources"].values(), key=rate, default=None)

    lines = [("ordinary background, all sources", 0.0005, True, lambda r: r["ordinary"]),
             ("captures of others", 0.0005, True, lambda r: r["captures"]),
             ("new networks of the lab", 0.0005, True, lambda r: r["lab ordinary"]),
             (f"worst source with {SOURCE_FLOWS} flows or more", 0.003, True, worst),
             ("random-like background", 0.1, True, lambda r: r["random-like"])]
    aims = {"shadowsocks": 0.985, "v2ray": 0.99}
    for label in e.labels[1:]:
        lines.append((f"recall of {label}, programs in training", aims.get(label, 0.95), False,
                      lambda r, label=label: programs(r, label, False)))
        if e.args.left_out:
            lines.append((f"recall of {label}, programs left out", 0.9, False, lambda r, label=label: programs(r, label, True)))
    lines.append(("told apart, taken flows of all classes", 0.95, False, lambda r: r.get("told apart", {}).get("taken")))
    lines.append(("told apart, taken shadowsocks and v2ray", 0.95, False,
                  lambda r: r.get("told apart", {}).get("paper's classes, taken")))
    out = [f"Bars, on {(e.where == 'test').sum()} flows of {sum(v == 'test' for v in e.part.values())} groups that were in no "
           f"other part, data {e.store.digest}.",
           "A flow is taken when the sum of the wanted classes reaches the threshold, which was chosen on validation groups.",
           "In brackets: counts and 95 % Wilson interval.", ""]
    for name, r in rows.items():
        at = f", threshold {r['threshold']:.6g}" if "threshold" in r else ", no threshold; TCP only; tells no classes apart"
        body = []
        for what, bar, at_most, value in lines:
            known = name in ("boosted trees", "exemption rules") or not what.startswith("recall of ") or any(
                what.startswith(f"recall of {k},") for m in e.models if m.name == name for k in m.labels[1:])
            if known:
                s = value(r)
                body.append([what, f"{'<=' if at_most else '>='} {100 * bar:g} %", text(s), verdict_word(s, bar, at_most)])
        out += [f"{name}{at}", "", table(["bar", "aim", "measured", ""], body), ""]
        out += [table(["source", "false positives"], [[g, text(s)] for g, s in r["sources"].items()] +
                      [["(captures of others, named as one of the classes by nDPI: in no figure but this)", text(r["real"])]]), ""]
        if "alone" in r:
            out += [table(["class by its own threshold", "threshold", "taken", "ordinary taken"],
                          [[k, f"{s['threshold']:.6g}", text(s["recall"]), text(s["ordinary"])] for k, s in r["alone"].items()]), ""]
        out += [table(["program", "taken"], [[k, text(s)] for k, s in r["programs"].items()]), ""]
        out += [table(["class and transport", "taken"], [[k, text(s)] for k, s in r["transports"].items()]), ""]
        if r.get("told apart"):
            out += [table(["told apart", "named rightly"], [[k, text(s)] for k, s in r["told apart"].items()]), ""]
    names = list(rows)
    out += ["Side by side:", "", table(["", *names], [[what, *(f"{100 * rate(s):.2f} %" if (s := value(rows[n])) and s["total"] else "-"
                                                               for n in names)] for what, _, _, value in lines])]
    return "\n".join(out)


def base_rates(e):
    """Precision where few flows are tunnels, from the bars' counts."""
    rows = bars(e)
    body, curves = [], {}
    for name, r in rows.items():
        known = [s for k, s in r["recall"].items() if name in ("boosted trees", "exemption rules") or
                 any(k in m.labels for m in e.models if m.name == name)]
        recall = share(sum(s["hits"] for s in known), sum(s["total"] for s in known))
        wrong = r["ordinary"]
        cells = []
        for base in BASE_RATES:
            low, at, high = (eval_report.precision_at(a, b, base) for a, b in (
                (recall["low"], wrong["high"]), (rate(recall), rate(wrong)), (recall["high"], wrong["low"])))
            cells.append(f"{100 * at:.2f} % ({100 * low:.2f} to {100 * high:.2f})")
            curves.setdefault(name, []).append(at)
        body.append([name, text(recall), text(wrong), *cells])
    e.store.show("base-rates", "Of the flows taken, the share that is a tunnel, where one flow in 1 + N is one. In brackets: with "
                 "recall and false positives at the far ends of their intervals.\n\n" +
                 table(["", "recall, all tunnels it knows", "ordinary taken", *(f"1:{n}" for n in BASE_RATES)], body))

    def draw(axes):
        for name, values in curves.items():
            axes.plot(BASE_RATES, values, marker="o", label=name)
        axes.set_xscale("log")
        axes.set_xlabel("ordinary flows per tunnel")
        axes.set_ylabel("precision")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend()

    e.store.picture("base-rates", draw)


# --- the paper's experiments ------------------------------------------------------

def draw_flows(e, count, seed):
    """Flows of the paper's classes: half background (half of that captures of
    others), the other half the two classes in equal shares. Sources are drawn
    with at most their equal share where there are enough of others."""
    rng = np.random.default_rng(seed)
    chosen = []
    for mask, n in ((~e.wanted & ~e.lab, count // 4), (~e.wanted & e.lab, count // 4),
                    *((e.data.label == k, count // 4) for k in PAPER_CLASSES)):
        pool = np.flatnonzero(mask)
        if len(pool) == 0:
            raise ValueError(f"the data lacks flows for this study: it needs {' and '.join(PAPER_CLASSES)} of the lab, background of "
                             "the lab and captures of others")
        # Round robin over the groups: each gives its first, then each its second...
        order = rng.permutation(pool)
        group = e.data.group[order]
        nth = np.zeros(len(order), np.int64)
        for g in set(group):
            nth[group == g] = np.arange((group == g).sum())
        chosen.append(order[np.argsort(nth, kind="stable")][:n])
    return np.sort(np.concatenate(chosen))


def fold_flows(e, chosen, count, by_group, seed):
    """Fold numbers 0..count-1 of the flows chosen, -1 for others, int64 [N]."""
    rng = np.random.default_rng(seed)
    fold = np.full(len(e.data), -1)
    if not by_group:
        fold[rng.permutation(chosen)] = np.arange(len(chosen)) % count
        return fold
    groups, sizes = np.unique(e.data.group[chosen], return_counts=True)
    wanted = set(e.data.group[e.wanted])
    # Networks and sources by themselves, so that each fold has both; the large
    # ones first, each to the smallest fold.
    for kind in (True, False):
        load = np.zeros(count)
        for g in sorted((g for g in groups if (g in wanted) == kind), key=lambda g: (-sizes[groups == g][0], g)):
            k = int(np.argmin(load))
            load[k] += sizes[groups == g][0]
            fold[chosen[e.data.group[chosen] == g]] = k
    return fold


def parts_of(fold, k, count):
    """Part names: fold k is tested, the next is for validation."""
    return np.where(fold == k, "test", np.where(fold == (k + 1) % count, "validation", np.where(fold >= 0, "train", "")))


def experiment1(e):
    """The paper's experiment 1 with random folds, as in the paper, and with
    folds of whole groups."""
    a = e.args
    chosen = draw_flows(e, a.flows, a.seed)
    labels = [dataset.BACKGROUND, *PAPER_CLASSES]
    for net in a.network or ["compact"]:
        # Small batches, as there are few flows; all else is the network's own.
        extra = {"batch": 32 if net == "paper" else 64}
        results, out = {}, []
        for by_group in (False, True):
            fold = fold_flows(e, chosen, TEN, by_group, a.seed)
            for name, ratio in RATIOS.items():
                merged = {"predicted": [], "truth": [], "random": []}
                for k in range(a.run_folds):
                    def of_fold(k=k, ratio=ratio):
                        where = parts_of(fold, k, TEN)
                        model = e.train(f"experiment1 {net} R={name} fold {k + 1}", where, network=net, classes=PAPER_CLASSES,
                                        random_ratio=ratio, epoch_samples=len(chosen), **extra)
                        test = np.flatnonzero(where == "test")
                        noise = dataset.training_images(model.predictor.data, np.full(500, -1), model.predictor.channels, "strict",
                                                        0, np.random.default_rng(k), np.flatnonzero(where == "train"))
                        return {"predicted": model.p(test).argmax(axis=1).tolist(),
                                "truth": np.maximum(0, e.truth(test, labels)).tolist(),
                                "random": model.p_images(noise).argmax(axis=1).tolist()}

                    one = e.store.get("experiment1", {"network": net, "ratio": name, "fold": k, "by_group": by_group,
                                                      "flows": a.flows, "epochs": a.epochs, "seed": a.seed}, of_fold)
                    for key, values in merged.items():
                        values += one[key]
                        one[key] = np.array(one[key])
                    results.setdefault((by_group, name), []).append(one)
                results[by_group, name, "all"] = {key: np.array(v) for key, v in merged.items()}
        out.append(f"Experiment 1, network {net}: {len(chosen)} flows (half background, half of that captures of others), "
                   f"{a.run_folds} of ten folds run, each with eight tenths for training, one to choose the epoch, one tested; "
                   f"{a.epochs} epochs of {len(chosen)} samples. Verdict: the most probable class. Data {e.store.digest}.")
        for by_group, heading in ((False, "Random folds, as in the paper (flows of one network in all folds)"),
                                  (True, "Folds of whole groups (a network or source is in one fold only)")):
            body = []
            for name in RATIOS:
                folds = results[by_group, name]
                mean = {key: np.mean([[rate(eval_report.one_against_rest(f["predicted"], f["truth"], c)[key])
                                       for c in (1, 2)] for f in folds]) for key in ("accuracy", "precision", "recall")}
                everything = results[by_group, name, "all"]
                body.append([name, *(f"{mean[key]:.3f}" for key in ("accuracy", "precision", "recall")),
                             text(share((everything["predicted"] == everything["truth"]).sum(), len(everything["truth"]))),
                             text(among(everything["predicted"] > 0, everything["truth"] == 0)),
                             text(share((everything["random"] > 0).sum(), len(everything["random"])))])
            out += ["", heading + ":", "",
                    table(["R", "Acc", "Pre", "Rec", "all three classes right", "background taken", "random images taken"], body),
                    "", "(Acc, Pre, Rec: one against the rest, mean of both classes and of the folds.)"]
            for name in RATIOS:
                everything = results[by_group, name, "all"]
                out += ["", f"Confusion, R = {name}:", "",
                        eval_report.confusion_table(eval_report.confusion(everything["predicted"], everything["truth"], labels))]
        e.store.show(f"experiment1-{net}", "\n".join(out))

        def draw(axes):
            for by_group, style in ((False, "--"), (True, "-")):
                for key, colour in (("accuracy", "tab:blue"), ("precision", "tab:orange"), ("recall", "tab:green")):
                    y = [np.mean([[rate(eval_report.one_against_rest(f["predicted"], f["truth"], c)[key]) for c in (1, 2)]
                                  for f in results[by_group, name]]) for name in RATIOS]
                    axes.plot(range(len(RATIOS)), y, style, marker="o", color=colour,
                              label=f"{key}, {'groups' if by_group else 'random folds'}")
            axes.set_xticks(range(len(RATIOS)), RATIOS)
            axes.set_xlabel("R (random : real background)")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)

        e.store.picture(f"experiment1-{net}", draw)


def experiment2(e):
    """All methods on the same test flows: background and the paper's classes."""
    d, a = e.data, e.args
    if not a.captures:
        raise ValueError("experiment2 reads whole sessions: name the folders of the captures with --captures")
    labels = [dataset.BACKGROUND, *PAPER_CLASSES]
    known = np.isin(d.label, labels)
    test = np.flatnonzero((e.where == "test") & known)
    train = baselines.thin(d, np.flatnonzero((e.where == "train") & known), BASELINE_LIMIT, np.random.default_rng(a.seed))
    truth = e.truth(test, labels)

    def figures(predicted=None, taken=None, seconds=None, at=None):
        """predicted: class numbers of labels; taken: for what tells no classes."""
        at = np.arange(len(test)) if at is None else at
        taken = predicted > 0 if taken is None else taken
        wanted, here = truth[at] > 0, test[at]
        out = {"seconds": seconds, "tunnel": share((taken == wanted).sum(), len(at)), "precision": among(wanted, taken),
               "recall": among(taken, wanted), "ordinary": among(taken, e.ordinary[here]),
               "random-like": among(taken, e.random_like[here]),
               "balanced": float((np.mean(taken[wanted]) + np.mean(~taken[~wanted])) / 2)}
        if predicted is not None:
            out["classes"] = share((predicted == truth[at]).sum(), len(at))
            out["class recall"] = float(np.mean([np.mean(predicted[truth[at] == k] == k) for k in range(len(labels))]))
            out["confusion"] = eval_report.confusion(predicted, truth[at], labels)
        return out

    def ports():
        services = baselines.read_services()
        begun = time.process_time()
        predicted = baselines.by_port(d.column("proto")[test], baselines.responder_ports(d, test), labels, services)
        return figures(predicted, seconds=(time.process_time() - begun) / len(test))

    def dpi():
        names, seconds = baselines.by_ndpi(d, test, a.captures, progress=eval_report.Progress("experiment2, nDPI"))
        seen = {}
        for k, label in enumerate(labels):
            among_label = [n for n, t in zip(names, truth) if t == k]
            seen[label] = sorted(((among_label.count(n), n) for n in set(among_label)), reverse=True)[:8]
        return {"named": figures(np.array([baselines.ndpi_class(n, labels) for n in names]), seconds=seconds),
                "unknown": figures(taken=np.array([n in ("", "Unknown") for n in names]), seconds=seconds), "seen": seen}

    def cusum():
        some = np.random.default_rng(a.seed).permutation(train)[:CUSUM_SAMPLES]
        cut = baselines.best_cut(baselines.cusum_scores(d.capture[some], eval_packets.Flows.of(d, some)), e.wanted[some])
        flows = eval_packets.Flows.of(d, test)
        begun = time.process_time()
        score = baselines.cusum_scores(d.capture[test], flows)
        return figures(taken=score >= cut, seconds=(time.process_time() - begun) / len(test)) | {"cut": cut}

    def forest():
        some = np.sort(np.random.default_rng(a.seed).permutation(train)[:FOREST_SAMPLES])
        features, found, _ = baselines.forest_features(d, some, a.captures, progress=eval_report.Progress("experiment2, sessions of training"))
        model = baselines.fit_forest(features[found], e.truth(some[found], labels), a.seed)
        features, found, seconds = baselines.forest_features(d, test, a.captures, progress=eval_report.Progress("experiment2, sessions"))
        begun = time.process_time()
        predicted = baselines.probabilities(model, features[found], labels).argmax(axis=1)
        seconds += (time.process_time() - begun) / max(1, found.sum())
        return figures(predicted, seconds=seconds, at=np.flatnonzero(found)) | {
            "trained on": len(some), "features": features.shape[1], "missing": int((~found).sum())}

    def rules():
        begun = time.process_time()
        taken = flagged(e, test)
        return figures(taken=taken, seconds=(time.process_time() - begun) / len(test))

    def trees():
        model = baselines.fit_trees(baselines.tree_features(eval_packets.Flows.of(d, train)), e.truth(train, labels), a.seed)
        begun = time.process_time()
        p = baselines.probabilities(model, baselines.tree_features(eval_packets.Flows.of(d, test)), labels)
        return figures(p.argmax(axis=1), seconds=(time.process_time() - begun) / len(test))

    def of_model(m):
        begun = time.process_time()
        p = m.p(test)
        seconds = (time.process_time() - begun) / len(test)
        # Other classes that the model knows are background here.
        place = np.array([labels.index(v) if v in labels else 0 for v in m.labels])
        return figures(place[p.argmax(axis=1)], seconds=seconds)

    get = lambda name, make, **more: e.store.get("experiment2", e.options(method=name, **more), make)
    found = get("nDPI", dpi)
    rows = [("1 port mapping", "IANA's table", "port numbers", "yes", get("ports", ports)),
            ("2 deep packet inspection", "nDPI 4.2: what it names", "packets", "no", found["named"]),
            ("2 deep packet inspection", "nDPI 4.2: what it can't name is a tunnel", "packets", "no", found["unknown"]),
            ("3 statistical", "weighted cumulative sums", "packets", "yes, here", get("cusum", cusum)),
            ("4 random forest", "random forest", "whole session", "no", get("forest", forest))]
    rows += [("5 CNN" if m.meta.get("network") == "paper" else "network", m.name, "first 1024 bytes", "yes",
              get("model", lambda m=m: of_model(m), model=m.key())) for m in e.models]
    rows += [("exemption rules", "five rules, TCP only", "first packet with payload", "yes", get("rules", rules)),
             ("boosted trees", "boosted trees", "first 1024 bytes", "yes", get("trees", trees))]
    body = [[kind, model, features, early, text(r.get("classes")), f"{100 * r['class recall']:.1f} %" if "class recall" in r else "-",
             text(r["tunnel"]), f"{100 * r['balanced']:.1f} %", text(r["recall"]), text(r["ordinary"]), text(r["random-like"]),
             f"{1000 * r['seconds']:.3f} ms"] for kind, model, features, early, r in rows]
    forest_row = rows[4][4]
    out = [f"Experiment 2: {len(test)} flows of test groups ({', '.join(f'{(truth == k).sum()} {v}' for k, v in enumerate(labels))}); "
           f"other tunnels are left out. Data {e.store.digest}. Verdict: the most probable class, or what the method says; accuracy "
           "depends on this mix of classes, the means of the classes' recalls do not.", "",
           table(["method", "model", "features from", "early", "all three classes right", "mean recall of the three",
                  "tunnel or not, right", "the same, mean of both", "tunnels taken", "ordinary taken", "random-like taken",
                  "time per flow"], body), "",
           "Times are of one core under load, this program's Python included (nDPI's is its processor time without its start, all flows "
           "of the files; the forest's is reading the session, features and trees, without waiting for the session's end; a network "
           "in ONNX Runtime is several times faster, see its card). The forest was trained on "
           f"{forest_row['trained on']} flows with {forest_row['features']} features; {forest_row['missing']} sessions of link types "
           "that are not read are left out of its row.", "", "What nDPI names the flows, the most frequent:", ""]
    out += [table(["class", "nDPI's names (flows)"], [[k, ", ".join(f"{n or 'no such flow'} ({c})" for c, n in v)] for k, v in found["seen"].items()])]
    e.store.show("experiment2", "\n".join(out))


# --- what the paper did not test ---------------------------------------------------

def implementations(e):
    """Each program of a wanted class left out of training; its flows in test
    groups are new in network and in program."""
    rows = []
    test = e.where == "test"

    def verdict(model, mask, label):
        at = np.flatnonzero(mask)
        taken, likelier = verdicts(model.p(at), model.any_threshold)
        named = np.array(model.labels)[likelier]
        return {"taken": share(taken.sum(), len(at)), "named": among(named == label, taken)}

    def trees_verdict(where, mask):
        p, threshold = tree_model(e, where)
        return share((fit.wanted_sum(p(np.flatnonzero(mask))) >= threshold).sum(), mask.sum())

    # The classes of the bars first, in case the time ends.
    order = sorted(e.labels[1:], key=lambda label: (label not in PAPER_CLASSES, label))
    pairs = [(label, program) for label in order for program in sorted(set(e.program[e.data.label == label]))]
    whole, begun, skipped = None, time.monotonic(), []
    for label, program in pairs:
        mine = (e.data.label == label) & (e.program == program)
        rest = sorted(set(e.program[e.data.label == label]) - {program})
        scored = mine & test
        if scored.sum() < 20:
            continue

        def one(mine=mine, scored=scored, label=label, rest=rest):
            nonlocal whole
            where = np.where(mine, "", e.where)
            classes = [k for k in e.labels[1:] if rest or k != label]
            model = e.train(f"without {label}: {mine.sum()} flows", where, classes=classes)
            whole = whole or e.train("with all programs", e.where)
            ordinary = np.flatnonzero(test & e.ordinary)
            return {"without": verdict(model, scored, label), "with": verdict(whole, scored, label),
                    "ordinary without": share((fit.wanted_sum(model.p(ordinary)) >= model.any_threshold).sum(), len(ordinary)),
                    "trees": trees_verdict(where, scored)}

        options = e.options(label=label, program=program)
        if e.args.max_minutes and time.monotonic() - begun > 60 * e.args.max_minutes and not e.store.has("implementations", options):
            skipped.append(f"{label} {program}")
            continue
        r = e.store.get("implementations", options, one)
        rows.append([label, program, ", ".join(rest) or "none", text(r["with"]["taken"]), text(r["without"]["taken"]),
                     text(r["without"]["named"]) if rest else "-", text(r["ordinary without"]), text(r["trees"])])
    e.store.show("implementations", f"Each implementation left out of training and validation; scored on its flows in test groups "
                 f"(new networks). compact, {e.args.epochs} epochs of {e.args.epoch_samples} samples, thresholds of a budget of "
                 f"{e.args.budget:g} on validation groups. Data {e.store.digest}. Where no other program of the class is in training, "
                 "the class itself is new.\n\n" +
                 table(["class", "left out", "other programs in training", "taken, it was in training", "taken, it was not",
                        "of these named rightly", "ordinary taken", "boosted trees: taken, it was not"], rows) +
                 (f"\n\nNot run, the time was over: {', '.join(skipped)}." if skipped else ""))


def groups(e):
    """Each network and each source left out once: folds of whole groups."""
    count = e.args.folds
    fold = fold_flows(e, np.arange(len(e.data)), count, True, e.args.seed)
    merged = {}
    for method in ("compact", "boosted trees", "exemption rules"):
        taken, named = np.zeros(len(e.data), bool), np.zeros(len(e.data), bool)
        for k in range(count):
            test = np.flatnonzero(fold == k)

            def of_fold(k=k, test=test):
                where = parts_of(fold, k, count)
                if method == "exemption rules":
                    hit, likelier = flagged(e, test), np.zeros(len(test), int)
                elif method == "boosted trees":
                    p, threshold = tree_model(e, where, f"groups fold {k + 1} trees")
                    hit, likelier = verdicts(p(test), threshold)
                else:
                    model = e.train(f"groups fold {k + 1}", where, classes=e.labels[1:])
                    hit, likelier = verdicts(model.p(test), model.any_threshold)
                return {"taken": np.flatnonzero(hit).tolist(),
                        "named": np.flatnonzero(np.array(e.labels)[likelier] == e.data.label[test]).tolist()}

            r = e.store.get("groups", e.options(method=method, fold=k, folds=count), of_fold)
            taken[test[r["taken"]]], named[test[r["named"]]] = True, True
        merged[method] = (taken, named)
    every = np.arange(len(e.data))
    counts = {m: counted(e, every, taken) for m, (taken, _) in merged.items()}
    lines = [("ordinary, all", lambda c: c["ordinary"]), ("ordinary, captures of others", lambda c: c["captures"]),
             ("ordinary, lab", lambda c: c["lab ordinary"]), ("random-like", lambda c: c["random-like"])]
    lines += [(f"recall of {k}", lambda c, k=k: c["recall"].get(k)) for k in e.labels[1:]]
    body = [[what, *(text(value(c)) for c in counts.values())] for what, value in lines]
    body.append(["taken tunnels named rightly", *("-" if m == "exemption rules" else text(among(n, t & e.wanted))
                                                  for m, (t, n) in merged.items())])
    networks = sorted(set(e.data.group[e.lab]))
    worst = []
    for what, where in (("recall of all tunnels", e.wanted), ("ordinary taken", e.ordinary)):
        for method, (taken, _) in merged.items():
            by = {g: among(taken, where & (e.data.group == g)) for g in networks}
            pick = min if what.startswith("recall") else max
            g = pick(by, key=lambda g: rate(by[g]))
            values = np.array([rate(s) for s in by.values()])
            worst.append([what, method, f"{g}: {text(by[g])}", *(f"{100 * v:.2f} %" for v in np.percentile(values, (5, 50, 95)))])
    e.store.show("groups", f"Every group is left out once: {count} folds of whole groups ({len(networks)} networks, "
                 f"{len(set(e.data.group)) - len(networks)} sources of captures), one fold tested, one for the thresholds (budget "
                 f"{e.args.budget:g}), the others for training. compact, {e.args.epochs} epochs of {e.args.epoch_samples} samples. "
                 f"Data {e.store.digest}.\n\n" +
                 table(["", *merged], body) + "\n\nSources of captures, ordinary taken:\n\n" +
                 table(["source", *merged], [[g, *(text(c["sources"][g]) for c in counts.values())] for g in next(iter(counts.values()))["sources"]]) +
                 "\n\nNetworks of the lab:\n\n" +
                 table(["", "", "worst network", "5th percentile", "median", "95th percentile"], worst))


def transfer(e):
    """Trained on the lab, thresholds from the lab, tested on captures of others."""
    where = np.where(e.lab, e.where, "captures")
    test = np.flatnonzero(~e.lab)

    def both():
        model = e.train("transfer", where, classes=e.labels[1:])
        new = np.flatnonzero((where == "test"))
        p, threshold = tree_model(e, where)
        return {"compact": counted(e, test, verdicts(model.p(test), model.any_threshold)[0]),
                "compact, lab": counted(e, new, verdicts(model.p(new), model.any_threshold)[0]),
                "boosted trees": counted(e, test, fit.wanted_sum(p(test)) >= threshold),
                "boosted trees, lab": counted(e, new, fit.wanted_sum(p(new)) >= threshold)}

    r = e.store.get("transfer", e.options(), both)
    rows = [["captures of others, all", text(r["compact"]["ordinary"]), text(r["boosted trees"]["ordinary"])]]
    rows += [[g, text(s), text(r["boosted trees"]["sources"][g])] for g, s in r["compact"]["sources"].items()]
    rows += [["lab, test networks: ordinary", text(r["compact, lab"]["ordinary"]), text(r["boosted trees, lab"]["ordinary"])],
             ["lab, test networks: random-like", text(r["compact, lab"]["random-like"]), text(r["boosted trees, lab"]["random-like"])]]
    rows += [[f"lab, test networks: recall of {k}", text(s), text(r["boosted trees, lab"]["recall"][k])]
             for k, s in r["compact, lab"]["recall"].items()]
    e.store.show("transfer", f"Trained on networks of the lab only (thresholds, too), tested on captures of others: flows taken. compact, "
                 f"{e.args.epochs} epochs of {e.args.epoch_samples} samples. Data {e.store.digest}.\n\n" +
                 table(["", "compact", "boosted trees"], rows))


def masks(e):
    """The network of the paper with both recipes; compact sees no header."""
    a = e.args
    chosen = np.zeros(len(e.data), bool)
    chosen[draw_flows(e, a.flows, a.seed)] = True
    where = np.where((e.where == "train") & ~chosen, "", e.where)
    test = np.flatnonzero((e.where == "test") & np.isin(e.data.label, [dataset.BACKGROUND, *PAPER_CLASSES]))
    rows = []
    for recipe in dataset.RECIPES:
        def one(recipe=recipe):
            model = e.train(f"masks {recipe}", where, network="paper", classes=PAPER_CLASSES, mask=recipe,
                            epoch_samples=a.flows, batch=32)
            p = model.p(test)
            truth = np.maximum(0, e.truth(test, model.labels))
            return counted(e, test, *verdicts(p, model.any_threshold), model.labels) | {
                "classes": share((p.argmax(axis=1) == truth).sum(), len(test)), "epoch": model.predictor.epoch,
                "loss": model.predictor.losses[model.predictor.epoch - 1],
                "mean": float(np.mean([np.mean(p.argmax(axis=1)[truth == k] == k) for k in range(3)]))}

        r = e.store.get("masks", e.options(recipe=recipe, flows=a.flows), one)
        rows.append([recipe, f"{r['loss']['train']:.3f}", f"{r['loss']['validation']:.3f}", text(r["classes"]), f"{100 * r['mean']:.1f} %",
                     text(r["ordinary"]), text(r["random-like"]), *(text(r["recall"][k]) for k in PAPER_CLASSES)])
    e.store.show("masks", f"The network of the paper with either recipe: trained on {(where == 'train').sum()} flows, {a.epochs} epochs of "
                 f"{a.flows} samples; thresholds of a budget of {a.budget:g}. Data {e.store.digest}. compact has no headers in its planes, "
                 "so the recipe does not matter to it.\n\n" +
                 table(["recipe", "loss, training", "loss, validation", "most probable class is right", "mean of the classes' recalls",
                        "ordinary taken", "random-like taken", *PAPER_CLASSES], rows))


def cut_captures(data, n):
    """The same data as if each capture had ended after n bytes."""
    other = copy.copy(data)
    other.capture = data.capture.copy()
    other.capture[:, n:] = 0
    other.captured = np.minimum(data.captured, n)
    other.mask = data.mask.copy()
    other.mask[:, n:] = 0
    other.packets = data.packets.copy()
    other.packets[:, :, 0] = np.where(data.packets[:, :, 0] < n, data.packets[:, :, 0], -1)
    other._payloads = other._planes = other._all_random = None
    return other


def part_of(data, indices):
    """A Data of some of the samples only."""
    other = copy.copy(data)
    for name in ("capture", "mask", "packets", "label", "group", "captured", "kind"):
        setattr(other, name, getattr(data, name)[indices])
    other.rows = [data.rows[i] for i in indices]
    other._payloads = other._planes = other._all_random = None
    return other


def bytes_seen(e):
    """The models on captures that end early."""
    test = np.flatnonzero(e.where == "test")
    some = part_of(e.data, test)
    curves, out = {}, []
    for m in e.models:
        def one(m=m):
            known = np.isin(e.data.label[test], m.labels)
            truth = np.maximum(0, e.truth(test, m.labels))
            found = {}
            for n in BYTES_SEEN:
                p = m.p(np.arange(len(test)), cut_captures(some, n))
                taken, likelier = verdicts(p, m.any_threshold)
                found[str(n)] = {"classes": share((p.argmax(axis=1) == truth)[known].sum(), known.sum()),
                                 "mean": float(np.mean([np.mean(p.argmax(axis=1)[known & (truth == k)] == k)
                                                        for k in range(len(m.labels)) if (known & (truth == k)).any()])),
                                 "wanted": among(taken, known & (truth > 0)), **counted(e, test, taken)}
            return found

        r = e.store.get("bytes", e.options(model=m.key()), one)
        rows = [[n, text(s["classes"]), f"{100 * s['mean']:.1f} %", text(s["wanted"]), text(s["ordinary"]), text(s["random-like"])]
                for n, s in r.items()]
        out += [f"{m.name}, captures cut after so many bytes (the model and its thresholds are those of 1024):", "",
                table(["bytes", "most probable class is right", "mean of the classes' recalls", "tunnels taken", "ordinary taken",
                       "random-like taken"], rows), ""]
        curves[m.name] = r
    if not out:
        raise ValueError("bytes measures model files: name one with --model")

    def draw(axes):
        for name, r in curves.items():
            axes.plot([int(n) for n in r], [s["mean"] for s in r.values()], marker="o", label=f"{name}, mean of the classes' recalls")
            axes.plot([int(n) for n in r], [rate(s["wanted"]) for s in r.values()], marker="x", linestyle="--", label=f"{name}, tunnels taken")
        axes.set_xlabel("bytes seen")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    e.store.show("bytes", "\n".join(out).rstrip())
    e.store.picture("bytes", draw)


# --- shortcuts ---------------------------------------------------------------------

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
    test = np.sort(rng.permutation(np.flatnonzero(e.where == "test"))[:SHORTCUT_FLOWS])
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
