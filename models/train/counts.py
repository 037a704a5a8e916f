# SPDX-License-Identifier: Apache-2.0
"""Shares with their counts, and how they are written. It needs nothing but Python
itself."""
import fnmatch
import math


def matches(name, patterns):
    """Whether a name fits one of the file name patterns."""
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def wilson(hits, total, z=1.959964):
    """The Wilson score interval (95 %) of a share; (0, 1) for nothing counted."""
    if total == 0:
        return 0.0, 1.0
    p = hits / total
    middle = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share(hits, total):
    """A share with its counts and 95 % Wilson interval."""
    low, high = wilson(int(hits), int(total))
    return {"hits": int(hits), "total": int(total), "low": round(low, 6), "high": round(high, 6)}


def among(hit, where):
    """share of hit among where, both bool [N]."""
    return share((hit & where).sum(), where.sum())


def rate(s):
    return s["hits"] / s["total"] if s["total"] else float("nan")


def text(s):
    """"1.20 % (3 of 250; 0.41 to 3.46)"; "-" where nothing was counted."""
    if not s or s["total"] == 0:
        return "-"
    return (f"{100 * s['hits'] / s['total']:.2f} % ({s['hits']} of {s['total']}; "
            f"{100 * s['low']:.2f} to {100 * s['high']:.2f})")


def table(header, rows):
    """A Markdown table with aligned columns."""
    rows = [[str(c) for c in r] for r in [header] + list(rows)]
    width = [max(len(r[i]) for r in rows) for i in range(len(header))]
    line = lambda r: "| " + " | ".join(c.ljust(w) for c, w in zip(r, width)) + " |"
    return "\n".join([line(rows[0]), "| " + " | ".join("-" * w for w in width) + " |"] + [line(r) for r in rows[1:]])
