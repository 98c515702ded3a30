"""What the offline files of Weights & Biases hold, read as their format is laid out."""

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32_768  # of LevelDB's log format, which a head of seven bytes precedes
MIDDLE_OR_LAST = (3, 4)


def records(path):
    """All records of a .wandb file; what a killed process left half-written ends them."""
    data, position, parts, found = path.read_bytes(), 7, [], []
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        if len(chunk) < length:
            break
        parts = [*parts, chunk] if kind in MIDDLE_OR_LAST else [chunk]
        if kind in (1, 4):
            found.append(Record.FromString(b"".join(parts)))
        position += 7 + length
    return found


def runs(folder):
    """[(id, config, [(step, {name: value})], exit status or None)] of its runs, oldest first."""
    found = map(records, sorted(folder.glob("wandb/offline-run-*/*.wandb")))
    return [_run(x) for x in found if x]


def _run(found):
    run = next(x.run for x in found if x.WhichOneof("record_type") == "run")
    config = {x.key: json.loads(x.value_json) for x in run.config.update}
    rows, status = [], None
    for record in found:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(x.nested_key) or x.key: x.value_json for x in record.history.item}
            row = {name: json.loads(value) for name, value in row.items()}
            rows.append((row["_step"], {k: x for k, x in row.items() if not k.startswith("_")}))
        elif record.WhichOneof("record_type") == "exit":
            status = record.exit.exit_code
    return run.run_id, config, rows, status
