"""Parquet files as pyarrow (so datasets, pandas) writes them: python make_parquet.py (writes next to itself).

messages.parquet holds all of assets/rustc_explain.jsonl; the others its first 24 records, each in another layout, compression and
page version, in several row groups."""
import json, pathlib
import pyarrow as pa, pyarrow.parquet as pq

here = pathlib.Path(__file__).parent
lines = (here / "../../../assets/rustc_explain.jsonl").read_text().splitlines()
chats = [json.loads(line)["messages"] for line in lines]
few = chats[:24]


def write(name, columns, **options):
    pq.write_table(pa.table(columns), here / f"{name}.parquet", **options)


write("messages", {"messages": chats, "source": ["rustc"] * len(chats)}, compression="zstd", compression_level=19)
# A field that only some messages have: null in the others.
named = [[dict(m, name="x") if i % 3 == 0 else m for m in chat] for i, chat in enumerate(few)]
write("snappy", {"id": list(range(24)), "messages": named}, compression="snappy", row_group_size=7)
share = [[{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in chat] for chat in few]
write("sharegpt_gzip", {"conversations": share, "score": [0.5] * 24}, compression="gzip", row_group_size=10)
write("alpaca_lz4", {"instruction": [c[0]["content"] for c in few], "input": ["", None] * 12, "output": [c[1]["content"] for c in few]},
    compression="lz4", use_dictionary=False)
write("completion_v2", {"prompt": [c[:1] for c in few], "completion": [c[1:] for c in few]}, compression="none",
    data_page_version="2.0", row_group_size=5)
large = pa.array([json.dumps(c) for c in few], pa.large_string())
write("json_text", {"messages": large, "image": [b"\x00\xff"] * 24}, compression="zstd")
print(sum(f.stat().st_size for f in here.glob("*.parquet")), "bytes")
