# SPDX-License-Identifier: Apache-2.0
"""The two experiments of the paper."""
import time

import numpy as np

import baselines
import dataset
import eval_packets
import eval_report
from counts import among, rate, share, table, text
from eval_base import BASELINE_LIMIT, PAPER_CLASSES, draw_flows, flagged, fold_flows, parts_of

# The ratios of random to real background of experiment 1.
RATIOS = {"0": 0.0, "1/9": 1 / 9, "2/8": 2 / 8, "3/7": 3 / 7}

TEN = 10

# Samples that the forest is trained on, at most.
FOREST_SAMPLES = 12000

CUSUM_SAMPLES = 4000


def experiment1(e):
    """The paper's experiment 1 with random folds, as in the paper, and with
    folds of whole groups."""
    a = e.args
    chosen = draw_flows(e, a.flows, a.seed)
    labels = [dataset.BACKGROUND, *PAPER_CLASSES]
    kinds = {"random": [False], "groups": [True], "both": [False, True]}[a.fold_kind]
    for net in a.network or ["compact"]:
        # Small batches, as there are few flows; all else is the network's own.
        extra = {"batch": 32 if net == "paper" else 64}
        told = {"bf16": True} if a.bf16 else {}
        epochs = e.length(net)[0]
        results, out = {}, []
        for by_group in kinds:
            fold = fold_flows(e, chosen, TEN, by_group, a.seed)
            for name, ratio in RATIOS.items():
                merged = {"predicted": [], "truth": [], "random": []}
                for k in range(a.run_folds):
                    def of_fold(k=k, ratio=ratio):
                        where = parts_of(fold, k, TEN)
                        model = e.train(f"experiment1 {net} R={name} fold {k + 1}", where, network=net, classes=PAPER_CLASSES,
                                        random_ratio=ratio, epoch_samples=len(chosen), **extra, **told)
                        test = np.flatnonzero(where == "test")
                        noise = dataset.training_images(model.predictor.data, np.full(500, -1), model.predictor.channels, "strict",
                                                        0, np.random.default_rng(k), np.flatnonzero(where == "train"))
                        return {"predicted": model.p(test).argmax(axis=1).tolist(),
                                "truth": np.maximum(0, e.truth(test, labels)).tolist(),
                                "random": model.p_images(noise).argmax(axis=1).tolist()}

                    one = e.store.get("experiment1", {"network": net, "ratio": name, "fold": k, "by_group": by_group,
                                                      "flows": a.flows, "epochs": epochs, "seed": a.seed, **told}, of_fold)
                    for key, values in merged.items():
                        values += one[key]
                        one[key] = np.array(one[key])
                    results.setdefault((by_group, name), []).append(one)
                results[by_group, name, "all"] = {key: np.array(v) for key, v in merged.items()}
        out.append(f"Experiment 1, network {net}: {len(chosen)} flows (half background, half of that third-party captures), "
                   f"{a.run_folds} of ten folds run, each with eight tenths for training, one to choose the epoch, one tested; "
                   f"{epochs} epochs of {len(chosen)} samples{', computed in bfloat16' if a.bf16 else ''}. "
                   f"Verdict: the most probable class. Data {e.store.digest}.")
        for by_group in kinds:
            heading = ("Folds of whole groups (a network or source is in one fold only)" if by_group else
                       "Random folds, as in the paper (flows of one network in all folds)")
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
            for by_group in kinds:
                style = "-" if by_group else "--"
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
        raise ValueError("experiment2 runs nDPI on the captures: name the folders of the captures with --captures")
    labels = [dataset.BACKGROUND, *PAPER_CLASSES]
    known = np.isin(d.label, labels) & ~e.wrapped
    test = np.flatnonzero((e.where == "test") & known)
    train = baselines.thin(d, np.flatnonzero((e.where == "train") & known), BASELINE_LIMIT, np.random.default_rng(a.seed))
    truth = e.truth(test, labels)

    def figures(predicted=None, taken=None, seconds=None):
        """predicted: class numbers of labels; taken: for what tells no classes."""
        taken = predicted > 0 if taken is None else taken
        wanted = truth > 0
        out = {"seconds": seconds, "tunnel": share((taken == wanted).sum(), len(test)), "precision": among(wanted, taken),
               "recall": among(taken, wanted), "ordinary": among(taken, e.ordinary[test]),
               "random-like": among(taken, e.random_like[test]),
               "balanced": float((np.mean(taken[wanted]) + np.mean(~taken[~wanted])) / 2)}
        if predicted is not None:
            out["classes"] = share((predicted == truth).sum(), len(test))
            out["class recall"] = float(np.mean([np.mean(predicted[truth == k] == k) for k in range(len(labels))]))
            out["confusion"] = eval_report.confusion(predicted, truth, labels)
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
        model = baselines.fit_forest(baselines.forest_features(d, some)[0], e.truth(some, labels), a.seed)
        features, seconds = baselines.forest_features(d, test)
        begun = time.process_time()
        predicted = baselines.probabilities(model, features, labels).argmax(axis=1)
        seconds += (time.process_time() - begun) / len(test)
        return figures(predicted, seconds=seconds) | {"trained on": len(some), "features": features.shape[1]}

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
            ("4 random forest", "random forest", f"first {dataset.SESSION} packets", "no", get("forest", forest))]
    rows += [("5 CNN" if m.meta.get("network") == "paper" else "network", m.name, "first 1024 bytes", "yes",
              get("model", lambda m=m: of_model(m), model=m.key())) for m in e.models]
    rows += [("exemption rules", "five rules, TCP only", "first packet with payload", "yes", get("rules", rules)),
             ("boosted trees", "boosted trees", "first 1024 bytes", "yes", get("trees", trees))]
    body = [[kind, model, features, early, text(r.get("classes")), f"{100 * r['class recall']:.1f} %" if "class recall" in r else "-",
             text(r["tunnel"]), f"{100 * r['balanced']:.1f} %", text(r["recall"]), text(r["ordinary"]), text(r["random-like"]),
             f"{1000 * r['seconds']:.3f} ms"] for kind, model, features, early, r in rows]
    forest_row = rows[4][4]
    out = [f"Experiment 2: {len(test)} flows of test groups ({', '.join(f'{(truth == k).sum()} {v}' for k, v in enumerate(labels))}); "
           f"other tunnels, and what TLS wraps, are left out. Data {e.store.digest}. Verdict: the most probable class, or what the method says; accuracy "
           "depends on this mix of classes, the means of the classes' recalls do not.", "",
           table(["method", "model", "features from", "early", "all three classes right", "mean recall of the three",
                  "tunnel or not, right", "the same, mean of both", "tunnels taken", "ordinary taken", "random-like taken",
                  "time per flow"], body), "",
           "Times are of one core under load, this program's Python included (nDPI's is its processor time without its start, all flows "
           "of the files; the forest's is features and trees, without waiting for the packets; a network "
           "in ONNX Runtime is several times faster, see its card). The forest was trained on "
           f"{forest_row['trained on']} flows with {forest_row['features']} features.", "", "What nDPI names the flows, the most frequent:", ""]
    out += [table(["class", "nDPI's names (flows)"], [[k, ", ".join(f"{n or 'no such flow'} ({c})" for c, n in v)] for k, v in found["seen"].items()])]
    e.store.show("experiment2", "\n".join(out))
