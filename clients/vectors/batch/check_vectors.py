#!/usr/bin/env python3
"""Decode every `rust-*.bin` with kafka-python and compare each field with the `.json` beside it.

The batches were written by our encoder: `cargo run -p millstream-batch --example write_batch_vectors`.
With `--all` the `kafka-*.bin` are held to their descriptions as well.
"""

import base64
import json
import pathlib
import sys

from kafka.record.default_records import DefaultRecordBatch

HERE = pathlib.Path(__file__).parent
NAMES = ["none", "gzip", "snappy", "lz4", "zstd"]


def base64_or_none(data):
    return None if data is None else base64.b64encode(data).decode()


def expand(description):
    """Long periodic bytes are described by one period."""

    def field(value):
        if not isinstance(value, dict):
            return value
        unit = base64.b64decode(value["repeat"])
        return base64_or_none((unit * (value["length"] // len(unit) + 1))[: value["length"]])

    for record in description["records"]:
        record["key"], record["value"] = field(record["key"]), field(record["value"])
        record["headers"] = [[key, field(value)] for key, value in record["headers"]]
    return description


def decode(data):
    batch = DefaultRecordBatch(data)
    assert batch.magic == 2
    assert batch.validate_crc(), "the CRC does not match"
    header = {
        "codec": NAMES[batch.compression_type],
        "size": batch.size_in_bytes,
        "crc": batch.crc,
        "base_offset": batch.base_offset,
        "leader_epoch": batch.leader_epoch,
        "last_offset_delta": batch.last_offset_delta,
        "base_timestamp": batch.first_timestamp,
        "max_timestamp": batch.max_timestamp,
        "transactional": batch.is_transactional,
        "producer_id": batch.producer_id,
        "producer_epoch": batch.producer_epoch,
        "base_sequence": batch.base_sequence,
    }
    count = batch.records_count
    # Iterating ends with an error unless the records end exactly where the batch does.
    header["records"] = [
        {
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": base64_or_none(record.key),
            "value": base64_or_none(record.value),
            "headers": [[key, base64_or_none(value)] for key, value in record.headers],
        }
        for record in batch
    ]
    assert len(header["records"]) == count
    return header


def main():
    patterns = ["rust-*.bin"] + (["kafka-*.bin"] if "--all" in sys.argv[1:] else [])
    paths = sorted(path for pattern in patterns for path in HERE.glob(pattern))
    assert paths, "no vectors: write them first"
    wrong = 0
    for path in paths:
        data = path.read_bytes()
        expected = expand(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        found = decode(data)
        faults = [
            "%s: %r, not %r" % (name, found.get(name), expected.get(name))
            for name in sorted(set(found) | set(expected))
            if found.get(name) != expected.get(name)
        ]
        if len(data) != expected["size"]:
            faults.append("%d bytes in the file" % len(data))
        wrong += bool(faults)
        print("%-40s %s" % (path.name, "; ".join(faults)[:500] if faults else "ok"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
