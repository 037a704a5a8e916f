# SPDX-License-Identifier: Apache-2.0
"""The bars that a model has to reach, and precision where tunnels are rare."""
import numpy as np

import counts
import eval_report
from counts import among, rate, share, table, text
from eval_base import SOURCE_FLOWS, counted, flagged, tree_model, verdicts

# Ordinary flows for each tunnel, of the study of base rates.
BASE_RATES = (1, 100, 1000, 10000)

# The recall that is aimed at where it is not OTHER_AIM.
AIMS = {"shadowsocks": 0.985, "v2ray": 0.99}
OTHER_AIM = 0.95


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
            out["alone"] = {k: {"recall": among(p[:, i] >= m.thresholds[k], (e.data.label == k)[test] & ~e.wrapped[test]),
                                "ordinary": among(p[:, i] >= m.thresholds[k], e.ordinary[test]), "threshold": m.thresholds[k]}
                            for i, k in enumerate(m.labels) if k in m.thresholds}
            return out

        rows[m.name] = e.store.get("bars", e.options(model=m.key()), of_model)

    def of_trees():
        p, threshold = tree_model(e, e.where)
        p = p(test)
        return counted(e, test, *verdicts(p, threshold), e.labels) | {"threshold": threshold}

    rows["boosted trees"] = e.store.get("bars", e.options(model="boosted trees"), of_trees)
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
        return counts.matches(name.split(": ", 1)[1], e.args.left_out)

    def programs(r, label, out):
        chosen = [s for k, s in r["programs"].items() if k.startswith(label + ": ") and left_out(k) == out]
        return share(sum(s["hits"] for s in chosen), sum(s["total"] for s in chosen))

    def worst(r):
        return max(r["sources"].values(), key=rate, default=None)

    lines = [("ordinary background, all sources", 0.0005, True, lambda r: r["ordinary"]),
             ("third-party captures", 0.0005, True, lambda r: r["captures"]),
             ("new networks of the lab", 0.0005, True, lambda r: r["lab ordinary"]),
             (f"worst source with {SOURCE_FLOWS} flows or more", 0.003, True, worst),
             ("random-like background", 0.1, True, lambda r: r["random-like"])]
    for label in e.labels[1:]:
        lines.append((f"recall of {label}, programs in training", AIMS.get(label, OTHER_AIM), False,
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
    if e.args.skip:
        out[-1:] = [f"Variants {', '.join(e.args.skip)} are in the table of variants only: what they are wrapped in is all that shows.", ""]
    if e.data.left_out:
        out[-1:] = ["Flows in third-party captures that are of a class by their own first message are in no figure: "
                    + ", ".join(f"{n} {k}" for k, n in sorted(e.data.left_out.items())) + ".", ""]
    for name, r in rows.items():
        at = f", threshold {r['threshold']:.6g}" if "threshold" in r else ", no threshold; TCP only; distinguishes no classes"
        body = []
        for what, bar, at_most, value in lines:
            known = name in ("boosted trees", "exemption rules") or not what.startswith("recall of ") or any(
                what.startswith(f"recall of {k},") for m in e.models if m.name == name for k in m.labels[1:])
            if known:
                s = value(r)
                body.append([what, f"{'<=' if at_most else '>='} {100 * bar:g} %", text(s), verdict_word(s, bar, at_most)])
        out += [f"{name}{at}", "", table(["bar", "aim", "measured", ""], body), ""]
        if r["sources"]:
            out += [table(["source", "false positives"], [[g, text(s)] for g, s in r["sources"].items()]), ""]
        if "alone" in r:
            out += [table(["class by its own threshold", "threshold", "taken", "ordinary taken"],
                          [[k, f"{s['threshold']:.6g}", text(s["recall"]), text(s["ordinary"])] for k, s in r["alone"].items()]), ""]
        out += [table(["program", "taken"], [[k, text(s)] for k, s in r["programs"].items()]), ""]
        out += [table(["class and variant", "taken"], [[k, text(s)] for k, s in r["variants"].items()]), ""]
        out += [table(["class and transport", "taken"], [[k, text(s)] for k, s in r["transports"].items()]), ""]
        if r.get("told apart"):
            out += [table(["told apart", "named rightly"], [[k, text(s)] for k, s in r["told apart"].items()]), ""]
    names = list(rows)
    short = lambda s: f"{100 * rate(s):.2f} %" if s and s["total"] else "-"
    out += ["Side by side:", "", table(["", *names], [[what, *(short(value(rows[n])) for n in names)] for what, _, _, value in lines])]
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
