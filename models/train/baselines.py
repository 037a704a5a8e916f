# SPDX-License-Identifier: Apache-2.0
"""The methods that the networks are measured against.

Rules and tests without training (port numbers, nDPI's ndpiReader, the exemption
rules for fully encrypted traffic, the cumulative-sum test) and two that are
trained (a random forest on the first packets of a session, boosted trees on the first 1024 bytes).
"""
import csv
import os
import resource
import subprocess
import tempfile
import time

import numpy as np

import dataset
import eval_packets

# --- port numbers -----------------------------------------------------------

# Names of the services table that stand for a class of a model.
SERVICE_CLASSES = {"ssh": "ssh", "openvpn": "openvpn", "socks": "socks5"}

# What the table does not have: ports that the programs' manuals use.
USUAL_PORTS = {("tcp", 8388): "shadowsocks", ("udp", 8388): "shadowsocks", ("tcp", 10086): "v2ray",
               ("udp", 51820): "wireguard", ("tcp", 1080): "socks5"}


def read_services(path="/etc/services"):
    """{(protocol, port): name} of IANA's table as Debian's netbase has it."""
    out = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            words = line.split("#")[0].split()
            if len(words) >= 2 and "/" in words[1]:
                port, proto = words[1].split("/")
                out[proto, int(port)] = words[0]
    return out


def by_port(protos, ports, labels, services):
    """Class numbers int64 [N] by the responder's port; background where the
    port is of no class. labels: the classes, background first."""
    out = np.zeros(len(ports), np.int64)
    for i, key in enumerate(zip(protos, ports)):
        label = USUAL_PORTS.get(key) or SERVICE_CLASSES.get(services.get(key, ""))
        if label in labels:
            out[i] = labels.index(label)
    return out


def responder_ports(data, indices):
    """The responder's port of each sample, int64 [N]."""
    return np.array([int(data.rows[i]["dst"].rpartition(":")[2]) for i in indices])


# --- the exemption rules for fully encrypted traffic --------------------------

# What exempts a flow, in the order of the checks; 0: nothing, the flow is flagged.
EXEMPTIONS = ("flagged", "no payload of the initiator", "not TCP", "set bits", "first six printable", "half printable",
              "printable run", "TLS", "HTTP")

HTTP_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE ", b"PATCH ")

_ONES = np.array([bin(v).count("1") for v in range(256)], np.int64)


def exemption(payload, length, tcp):
    """Numbers of EXEMPTIONS, int64 [N], of each initiator's first payload.

    payload: uint8 [N, B], length: int64 [N] bytes of it, tcp: bool [N].
    """
    payload = np.asarray(payload)
    length = np.asarray(length, dtype=np.int64)
    inside = np.arange(payload.shape[1]) < length[:, None]
    printable = (payload >= 0x20) & (payload <= 0x7E) & inside
    size = np.maximum(length, 1)
    bits = np.where(inside, _ONES[payload], 0).sum(axis=1) / size
    run, longest = np.zeros(len(payload), np.int64), np.zeros(len(payload), np.int64)
    for column in range(payload.shape[1]):
        run = np.where(printable[:, column], run + 1, 0)
        longest = np.maximum(longest, run)
    first = payload[:, :8].astype(np.int64)
    tls = (length >= 3) & np.isin(first[:, 0], (0x16, 0x17)) & (first[:, 1] == 3) & (first[:, 2] <= 9)
    http = np.array([payload[i, :8].tobytes().startswith(HTTP_METHODS) for i in range(len(payload))], bool)
    out = np.zeros(len(payload), np.int64)
    for rule, holds in (("HTTP", http), ("TLS", tls), ("printable run", longest > 20),
                        ("half printable", printable.sum(axis=1) > 0.5 * size),
                        ("first six printable", (length >= 6) & printable[:, :6].all(axis=1)),
                        ("set bits", (bits <= 3.4) | (bits >= 4.6)), ("not TCP", ~np.asarray(tcp)),
                        ("no payload of the initiator", length == 0)):
        out = np.where(holds, EXEMPTIONS.index(rule), out)
    return out


# --- the weighted cumulative-sum test -----------------------------------------

# A packet's payload passes as random at this p-value or more.
CUSUM_LEVEL = 0.01

# Payloads shorter than the test is meant for (100 bits) say nothing.
CUSUM_BITS = 100


def cusum_p(bits):
    """p-value of the forward cumulative-sums test of NIST SP 800-22 (section
    2.13) for a sequence of 0 and 1."""
    from scipy.special import ndtr

    bits = np.asarray(bits, dtype=np.int64)
    n = len(bits)
    if n == 0:
        return 0.0
    z = int(np.abs(np.cumsum(2 * bits - 1)).max())
    root = np.sqrt(n)
    # Like the standard's reference code, the bounds are rounded towards zero.
    k = np.arange(int((-n / z + 1) / 4), int((n / z - 1) / 4) + 1)
    first = (ndtr((4 * k + 1) * z / root) - ndtr((4 * k - 1) * z / root)).sum()
    k = np.arange(int((-n / z - 3) / 4), int((n / z - 1) / 4) + 1)
    second = (ndtr((4 * k + 3) * z / root) - ndtr((4 * k + 1) * z / root)).sum()
    return float(min(1.0, max(0.0, 1 - first + second)))


def cusum_score(capture, starts, lengths):
    """The share of a flow's payload that lies in packets which pass as random:
    each packet counts with its length. 0 where no packet is long enough."""
    passed = total = 0
    for start, length in zip(starts, lengths):
        if 8 * length < CUSUM_BITS:
            continue
        bits = np.unpackbits(capture[start:start + length])
        passed += length * (cusum_p(bits) >= CUSUM_LEVEL)
        total += length
    return passed / total if total else 0.0


def cusum_scores(capture, flows):
    """cusum_score of all flows, float64 [N]."""
    return np.array([cusum_score(capture[i], flows.start[i], flows.kept[i]) for i in range(len(capture))])


def best_cut(score, wanted):
    """The threshold of the greatest balanced accuracy of `score >= threshold`."""
    best, at = -1.0, 0.5
    for t in np.unique(np.round(score, 3)):
        right = (np.mean(score[wanted] >= t) + np.mean(score[~wanted] < t)) / 2
        if right > best:
            best, at = right, float(t)
    return at


# --- deep packet inspection ---------------------------------------------------

# Names of nDPI's protocols that stand for a class.
NDPI_CLASSES = {"SSH": "ssh", "OpenVPN": "openvpn", "WireGuard": "wireguard", "SOCKS": "socks5"}


def read_ndpi(lines):
    """{(a, b, protocol): nDPI's name} from the lines of ndpiReader's CSV output;
    a < b as eval_packets.address_key gives them."""
    rows = csv.reader(line.rstrip("\n") for line in lines)
    out, header = {}, None
    for row in rows:
        if header is None:
            header = [name.lstrip("#") for name in row]
            missing = {"protocol", "src_ip", "src_port", "dst_ip", "dst_port", "ndpi_proto"} - set(header)
            if missing:
                raise ValueError(f"ndpiReader's table lacks the columns {sorted(missing)}")
            continue
        value = dict(zip(header, row))
        try:
            a = eval_packets.address_key(f"[{value['src_ip']}]:{value['src_port']}")
            b = eval_packets.address_key(f"[{value['dst_ip']}]:{value['dst_port']}")
            out[min(a, b), max(a, b), int(value["protocol"])] = value["ndpi_proto"]
        except (KeyError, ValueError):
            continue   # flows without ports
    return out


def sample_key(row):
    """What read_ndpi names the flow of a sample."""
    a, b = eval_packets.address_key(row["src"]), eval_packets.address_key(row["dst"])
    return min(a, b), max(a, b), 6 if row["proto"] == "tcp" else 17


def run_ndpi(path):
    """read_ndpi of a capture file, and the processor time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        table = os.path.join(folder, "flows.csv")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # It writes the table only when it is told to print flows, and exits
        # with 0 whatever it met.
        done = subprocess.run(["ndpiReader", "-v", "2", "-i", path, "-C", table], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        trouble = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        if done.returncode != 0 or trouble or not os.path.exists(table):
            raise ValueError(f"ndpiReader could not read {path}: {'; '.join(trouble)[:200] or done.returncode}")
        with open(table, encoding="utf-8", errors="replace") as f:
            found = read_ndpi(f)
    return found, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def ndpi_class(name, labels):
    """The class number of nDPI's name, as "TLS.Google" or "SSH"; else 0."""
    for part in name.split("."):
        label = NDPI_CLASSES.get(part)
        if label in labels:
            return labels.index(label)
    return 0


def by_ndpi(data, indices, folders, progress=lambda done, total: None):
    """nDPI's name of each sample ("" where it saw no such flow), and seconds of
    processor time per flow with the program's start left out."""
    files = {}
    for n, i in enumerate(indices):
        files.setdefault(data.rows[i]["file"], []).append((n, i))
    names, spent, flows = [""] * len(indices), 0.0, 0
    with tempfile.NamedTemporaryFile(suffix=".pcap") as empty:
        empty.write(bytes.fromhex("d4c3b2a102000400000000000000000000000400" "01000000"))
        empty.flush()
        start = min(run_ndpi(empty.name)[1] for _ in range(3))
    for done, (file, members) in enumerate(sorted(files.items())):
        found, seconds = run_ndpi(eval_packets.locate(file, folders))
        spent, flows = spent + max(0.0, seconds - start), flows + len(found)
        for n, i in members:
            names[n] = found.get(sample_key(data.rows[i]), "")
        progress(done + 1, len(files))
    return names, spent / max(1, flows)


# --- random forest on the first packets of sessions ------------------------------

SHARES = (10, 25, 50, 75, 90)
FIRST_PACKETS = 24


def _summary(values):
    if len(values) == 0:
        return [0.0] * (5 + len(SHARES))
    v = np.asarray(values, dtype=np.float64)
    return [len(v), v.mean(), v.std(), v.min(), v.max(), *np.percentile(v, SHARES)]


def session_features(packets):
    """float32 features of a session. packets: its rows of Data.sessions, those
    that there are."""
    sender = packets[:, eval_packets.INITIATOR] != 0
    wire, payload, window = (packets[:, k].astype(np.float64) for k in (eval_packets.WIRE, eval_packets.LENGTH, eval_packets.WINDOW))
    seconds, flags = packets[:, eval_packets.MICROSECONDS] / 1e6, packets[:, eval_packets.FLAGS]
    out = [float(seconds.max() - seconds.min()), wire.sum(), payload.sum()]
    for chosen in (np.ones(len(packets), bool), sender, ~sender):
        gaps = np.diff(np.sort(seconds[chosen]))
        full = payload[chosen & (payload > 0)]
        out += _summary(wire[chosen]) + _summary(full) + _summary(gaps) + _summary(window[chosen])
        out += [float((flags[chosen] & bit != 0).sum()) for bit in (1, 2, 4, 8, 16, 32, 64, 128)]
        out += (np.histogram(full, bins=[1, 17, 33, 65, 129, 257, 513, 1025, 1300, 1461, 1e9])[0] / max(1, len(full))).tolist()
    out += eval_packets.signed_lengths(packets[None], FIRST_PACKETS)[0].tolist()
    return np.array(out, dtype=np.float32)


def forest_features(data, indices):
    """(float32 [N, F], seconds per flow): session_features of the samples."""
    begun = time.process_time()
    out = [session_features(rows[rows[:, eval_packets.WIRE] >= 0]) for rows in data.sessions(indices)]
    return np.stack(out), (time.process_time() - begun) / max(1, len(out))


def fit_forest(features, classes, seed, trees=200):
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, class_weight="balanced_subsample", min_samples_leaf=2, random_state=seed,
                                  n_jobs=1).fit(features, classes)


# --- boosted trees on the first 1024 bytes --------------------------------------

TREE_PACKETS = 8
TREE_BYTES = 16


def tree_features(flows):
    """float32 [N, 74]: lengths and directions of the first 8 packets with
    payload, byte statistics and the first 16 bytes of each side."""
    n = len(flows.length)
    signed = np.full((n, TREE_PACKETS), np.nan, np.float32)
    nth = np.cumsum(flows.length > 0, axis=1) - 1
    row, column = np.nonzero((flows.length > 0) & (nth < TREE_PACKETS))
    value = flows.length[row, column]
    signed[row, nth[row, column]] = np.where(flows.initiator[row, column], value, -value)
    parts = [signed, flows.tcp[:, None]]
    for side in (0, 1):
        stream, size = flows.stream[:, side], flows.stream_length[:, side]
        inside = np.arange(stream.shape[1]) < size[:, None]
        row, column = np.nonzero(inside)
        value = stream[row, column].astype(np.int64)
        counts = np.zeros((n, 256), np.float32)
        np.add.at(counts, (row, value), 1)
        total = np.maximum(size, 1)[:, None]
        share = counts / total
        entropy = -(share * np.log2(np.maximum(share, 1e-12))).sum(axis=1)
        bits = (share * _ONES).sum(axis=1)
        head = stream[:, :TREE_BYTES].astype(np.float32)
        head[~inside[:, :TREE_BYTES]] = np.nan
        parts += [size[:, None], entropy[:, None], bits[:, None], share[:, 0x20:0x7F].sum(axis=1)[:, None], share[:, :1],
                  share.max(axis=1)[:, None], (counts > 0).sum(axis=1)[:, None] / np.minimum(total, 256),
                  share.reshape(n, 8, 32).sum(axis=2), head]
    first = np.arange(flows.first.shape[1]) < flows.first_length[:, None]
    ones = np.where(first, _ONES[flows.first], 0).sum(axis=1) / np.maximum(flows.first_length, 1)
    parts += [flows.first_length[:, None], ones[:, None], flows.stream_length.sum(axis=1)[:, None]]
    return np.concatenate([np.asarray(p, dtype=np.float32) for p in parts], axis=1)


def fit_trees(features, classes, seed, rounds=150):
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=rounds, learning_rate=0.1, max_leaf_nodes=31, l2_regularization=1.0,
                                          class_weight="balanced", early_stopping=False, random_state=seed
                                          ).fit(features, classes)


def probabilities(model, features, labels):
    """float64 [N, labels] of a fitted model whose classes are label numbers."""
    out = np.zeros((len(features), len(labels)))
    out[:, model.classes_.astype(int)] = model.predict_proba(features)
    return out


def thin(data, indices, limit, rng):
    """At most limit samples of a background group; all of the other classes."""
    keep = [indices[data.label[indices] != dataset.BACKGROUND]]
    background = indices[data.label[indices] == dataset.BACKGROUND]
    for group in sorted(set(data.group[background])):
        keep.append(rng.permutation(background[data.group[background] == group])[:limit])
    return np.sort(np.concatenate(keep))
