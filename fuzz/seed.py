"""Makes the seeds in corpus/ from what real servers sent (../protocol/tests/fixtures).

What it makes is committed; run it again when the fixtures change. Names of inputs that once failed start
with "found-", and are kept.
"""

import hashlib
import re
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "protocol" / "tests" / "fixtures"


def put(target, data, name=None):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name or hashlib.sha1(data).hexdigest()[:12])).write_bytes(data)


def said(file, mark):
    """What the server (<) or the client (>) said in a recorded session, message by message."""
    return [bytes.fromhex(line[2:]) for line in file.read_text().splitlines() if line.startswith(mark)]


sessions = sorted(FIXTURES.glob("pg15/login-*.txt")) + [FIXTURES / "pg15/stream.txt"]
kinds = set()
for file in sessions:
    messages = said(file, "<")
    put("frame", b"".join(messages)[:1500], file.stem)
    for message in messages:
        tag, body = message[:1], message[5:]
        if tag not in kinds or tag == b"R":
            kinds.add(tag)
            put("backend", tag + body)
        if tag == b"d":
            put("replication", body)
for file in sessions:
    first, *messages = said(file, ">")
    put("frontend", first, f"first-{file.stem}")
    for message in messages:
        put("frontend", message[:1] + message[5:])
put("frontend", b"B\0s\0\0\1\0\1\0\2\0\0\0\1x\xff\xff\xff\xff\0\0", "bind")
put("frontend", b"Ps\0select $1\0\0\1\0\0\0\x17", "parse")
put("frontend", b"F\0\0\0\7\0\0\0\1\0\0\0\1x\0\1", "function-call")
put("frontend", b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\7key!", "cancel")
put("replication", b"r" + bytes(33), "status")
put("replication", (FIXTURES / "pg15/00000003.history").read_bytes(), "history")

# An exchange, with a zero byte between the server's two messages.
put("scram", b"r=nonceX,s=QSXCR+Q6sek8bf92,i=9\0v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "proof")
put("scram", b"r=nonceX,s=QSXCR+Q6sek8bf92,i=9\0e=invalid-proof", "refused")

# A log-in that is trusted, IDENTIFY_SYSTEM, and a stream; the first byte says how it is cut.
stream = said(FIXTURES / "pg15/stream.txt", "<")
start = next(at for at, message in enumerate(stream) if message[:1] == b"W")
trusted = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I" + b"".join(stream[start - 4 :])
for how in (1, 5, 253):
    put("session", bytes([how]) + trusted, f"stream-{how}")
asked = b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0"
challenge = b"R\0\0\0\x27\0\0\0\x0br=nonceX,s=QSXCR+Q6sek8bf92,i=9"
put("session", b"\0" + asked + challenge, "scram")
bound = b"R\0\0\0\x2a\0\0\0\nSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
put("session", b"\2" + bound + challenge, "scram-plus")
for file in sorted((HERE.parent / "protocol/src/auth/fixtures").glob("*.der")):
    put("certificate", file.read_bytes(), file.stem)


def told(options, messages):
    """Messages of pgoutput behind their lengths, and in front the options of the stream."""
    return bytes([options]) + b"".join(len(data).to_bytes(2, "big") + data for data in messages)


def runs(text):
    """Hexadecimal, in which (78*1000) is a thousand times the same byte."""
    plain = re.sub(r"\((..)\*(\d+)\)", lambda run: run[1] * int(run[2]), text)
    return bytes.fromhex(plain)


VERSION = {"v1": 0, "v2": 1, "v3": 2, "v4": 3}
STREAMING = {"streaming": 1, "both": 1, "parallel": 2}
for file in sorted(FIXTURES.glob("pg1[68]/v*[a-z0-9].txt")):
    if "told" in file.name:
        continue
    words = file.stem.split("-")
    options = VERSION[words[0]] | STREAMING.get((words + [""])[1], 0) << 2
    messages = [runs(line.split("|")[-1]) for line in file.read_text().split()]
    # One of each kind and length, so that the seed stays small; but every block begins and ends.
    ordered, kinds, in_block = [], set(), False
    for data in messages:
        kind = (in_block, data[0], len(data))
        if len(data) < 300 and (data[:1] in (b"S", b"E") or kind not in kinds):
            kinds.add(kind)
            ordered.append(data)
        in_block = data[:1] == b"S" or in_block and data[:1] != b"E"
    put("pgoutput", told(options, ordered)[:4000], f"{file.parent.name}-{file.stem}")
XID, SUBXID = b"\0\0\2\xe2", b"\0\0\2\xe3"
block = [
    b"S" + XID + b"\1",
    b"R" + SUBXID + b"\0\0\0\7\0t\0d\0\1\1id\0\0\0\0\x17\xff\xff\xff\xff",
    b"I" + SUBXID + b"\0\0\0\7N\0\1t\0\0\0\1x",
    b"M" + SUBXID + b"\1" + bytes(8) + b"p\0\0\0\0\1x",
    b"E",
]
commit = b"c" + XID + b"\0" + bytes(24)
put("pgoutput", told(1 | 1 << 2, [*block, b"A" + XID + SUBXID, commit]), "streamed")
prepared = bytes(24) + b"\0\0\0\4g\0"
rolled_back = b"r\0" + bytes(32) + b"\0\0\0\4g\0"
two_phase = [b"b" + prepared, b"P\0" + prepared, b"p\0" + prepared, b"K\0" + prepared, rolled_back]
abort = b"A" + XID + SUBXID + bytes(16)
put("pgoutput", told(3 | 2 << 2, [*block, abort, commit, *two_phase]), "parallel")


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


pair = field(1, b"k") + field(2, b"v")
trace = field(1, b"t") + field(2, b"s") + field(3, pair)
texts = [b"id", b"order", b"42", b"paid", b"\0\xff"]
fields = b"".join(field(number, text) for number, text in enumerate(texts, 1))
put("envelope", fields + b"\x30\x96\x01" + field(7, pair) + field(8, trace), "protobuf")
put(
    "envelope",
    b'{"id":"1","aggregate_type":"order","aggregate_id":"42","event_type":"paid",'
    b'"payload":{"a":[1,null]},"created_at":1,"metadata":{"k":"v"},'
    b'"trace_info":{"trace_id":"t","span_id":"s","metadata":{"m":"n"}}}',
    "json",
)
put("envelope", b'{"aggregate_type":"o","payload_base64":"AP8="}', "json-base64")

# What stands before and behind a password.
put("url", b"me h:5432/db", "plain")
put("url", b"me [::1]/db?sslmode=prefer&connect_timeout=3", "ipv6")
put("url", b"m%40e a,b:1,c/db?target_session_attrs=primary", "hosts")
put("url", b"u /x?host=/tmp&password=x&options=-c%20a=b", "socket")
put("url", b"u h/db?require_auth=md5,scram-sha-256&keepalives=0", "methods")
