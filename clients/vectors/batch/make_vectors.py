#!/usr/bin/env python3
"""Write record batches with kafka-python's encoder: `kafka-<case>-<codec>.bin` and its `.json`.

Our decoder reads them in `core/batch/tests/vectors.rs`. See README.md for how to run this.
The description is made from what was put in, never from what we or kafka-python decode.
"""

import base64
import gzip
import json
import pathlib
import struct

import lz4.frame
import zstandard
from kafka import codec
from kafka.record import default_records
from kafka.record.default_records import DefaultRecordBatchBuilder

HERE = pathlib.Path(__file__).parent
NAMES = ["none", "gzip", "snappy", "lz4", "zstd"]
NOW = 1_760_000_000_000

# codec name -> (code in the attributes, encoder or None for kafka-python's own)
CODECS = {
    "none": (0, None),
    # kafka-python's gzip call, but for the clock in its header.
    "gzip": (1, lambda data: gzip.compress(data, 9, mtime=0)),
    "snappy": (2, None),  # xerial framing, as Kafka's Java producer
    "snappy-raw": (2, lambda data: codec.snappy_encode(data, xerial_compatible=False)),
    "lz4": (3, None),
    "lz4-sums": (
        3,
        lambda data: lz4.frame.compress(
            data, block_linked=False, block_checksum=True, content_checksum=True, store_size=True
        ),
    ),
    "zstd": (4, None),
    "zstd-stream": (4, lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data)),
}


def text(n, step=7):
    """`n` bytes that compress, but not to nothing."""
    return bytes((i * i // step) % 23 + 97 for i in range(n))


# case -> (records as (timestamp, key, value, headers), builder options)
CASES = {
    "plain": ([(NOW + i, b"key-%d" % (i % 3), text(60 + i), []) for i in range(10)], {}),
    "headers": (
        [
            (NOW, b"k", text(50), [("trace", b"00-abc"), ("trace", b"00-def"), ("empty", b""), ("null", None)]),
            (NOW, b"k", text(50), []),
            (NOW, b"k", text(50), [("", b"no name"), ("größe/尺寸", "größe/尺寸".encode())]),
            (NOW, b"k", text(50), [("h%d" % i, text(i)) for i in range(70)]),
        ],
        {},
    ),
    "nulls": (
        [
            (NOW, None, text(90), []),
            (NOW, text(90), None, []),
            (NOW, None, None, []),
            (NOW, b"", b"", []),
            (NOW, None, b"", [("only", None)]),
            (NOW, b"", None, []),
        ],
        {},
    ),
    "timestamps": (
        [
            (NOW + delta, b"t", text(40), [])
            for delta in [0, -1, 1, -64, 64, 8191, -8193, 1 << 20, -(1 << 21), 1 << 34, -(1 << 35), 1 << 40, 5]
        ],
        {},
    ),
    # Offset deltas and lengths around where their varints grow.
    "many": ([(NOW + i // 10, b"%d" % i, text(i % 9, 3), []) for i in range(300)], {}),
    "large": (
        [(NOW, text(n), text(n + 1), [("h", text(n))]) for n in [62, 63, 64, 65, 127, 128]]
        + [(NOW, None, text(n), []) for n in [8190, 8191, 8192, 8193]],
        {},
    ),
    # Two of the 64 KiB blocks of LZ4 and two of xerial's.
    "blocks": ([(NOW, None, text(35_000, 7 + i), []) for i in range(3)], {}),
    "transactional": (
        [(NOW, b"k", text(80), [])],
        {"is_transactional": True, "producer_id": 77, "producer_epoch": 3, "base_sequence": 12},
    ),
    "idempotent": (
        [(NOW, b"k", text(80), []), (NOW, b"k", text(80), [])],
        {"producer_id": 1 << 40, "producer_epoch": 0x7FFF, "base_sequence": 0x7FFFFFFF},
    ),
}

# Every case in every codec would say little more: the layout does not know the codec.
PLAN = (
    [(case, "none") for case in CASES if case != "blocks"]
    + [("headers", name) for name in CODECS if name != "none"]
    + [("blocks", name) for name in CODECS if name != "none"]
)


def field(data):
    """null, base64, or for long periodic bytes {"repeat": base64 of one period, "length": n}."""
    if data is None:
        return None
    if len(data) > 1000:
        for period in range(1, 1000):
            if data[period:] == data[:-period]:
                return {"repeat": base64.b64encode(data[:period]).decode(), "length": len(data)}
    return base64.b64encode(data).decode()


def encode(records, options, name):
    code, encoder = CODECS[name]
    attribute = "%s_encode" % NAMES[code]
    own = getattr(default_records, attribute, None)
    if encoder:
        setattr(default_records, attribute, encoder)
    try:
        settings = {
            "is_transactional": False,
            "producer_id": -1,
            "producer_epoch": -1,
            "base_sequence": -1,
            "batch_size": 1 << 30,
        }
        settings.update(options)
        builder = DefaultRecordBatchBuilder(magic=2, compression_type=code, **settings)
        for offset, (timestamp, key, value, headers) in enumerate(records):
            assert builder.append(offset, timestamp, key, value, headers) is not None
        return bytes(builder.build()), settings
    finally:
        if own:
            setattr(default_records, attribute, own)


def describe(records, settings, name, data):
    return {
        "codec": NAMES[CODECS[name][0]],
        "size": len(data),
        "crc": struct.unpack_from(">I", data, 17)[0],
        "base_offset": 0,
        "leader_epoch": struct.unpack_from(">i", data, 12)[0],
        "last_offset_delta": len(records) - 1,
        "base_timestamp": records[0][0],
        "max_timestamp": max(record[0] for record in records),
        "transactional": settings["is_transactional"],
        "producer_id": settings["producer_id"],
        "producer_epoch": settings["producer_epoch"],
        "base_sequence": settings["base_sequence"],
        "records": [
            {
                "offset": offset,
                "timestamp": timestamp,
                "key": field(key),
                "value": field(value),
                "headers": [[h, field(v)] for h, v in headers],
            }
            for offset, (timestamp, key, value, headers) in enumerate(records)
        ],
    }


def main():
    for case, name in PLAN:
        records, options = CASES[case]
        data, settings = encode(records, options, name)
        stem = "kafka-%s-%s" % (case, name)
        if name != "none":
            assert data[22] & 7 == CODECS[name][0], "%s was not compressed" % stem
        (HERE / (stem + ".bin")).write_bytes(data)
        description = json.dumps(describe(records, settings, name, data), indent=1, ensure_ascii=False)
        (HERE / (stem + ".json")).write_text(description + "\n", encoding="utf-8")
        print("%-32s %7d bytes, %d records" % (stem, len(data), len(records)))


if __name__ == "__main__":
    main()
