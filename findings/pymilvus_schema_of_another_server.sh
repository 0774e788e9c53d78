#!/usr/bin/env bash
# pymilvus 3.0.2 with milvus-lite 3.2.2: a new client can send rows in the layout of a server that is gone.
#
# A process works with a collection on a server and closes its client. Later it opens a new client on a server with
# other data at the same address, and creates a collection of the same name there. We expected the new client to use the
# schema that it was just given.
#
# What happens: pymilvus keeps schemas for the life of the process, by address, database and name of the collection.
# Neither close() nor create_collection() drops them. So the client adds the old collection's nullable fields to each row
# as nulls, and milvus-lite raises an error that names fields which the caller's rows do not have. pymilvus would ask for
# the schema again after an error that says so, but milvus-lite answers with another code. In a new process, or with
# drop_collection before create_collection, all is well.
#
# One does not choose addresses with files: each .db that is opened gets a free port of 127.0.0.1, and after many files
# a port comes back. We met it as a test that failed in one run and passed in the next. Here the servers have the same
# port by choice, so that it happens at once.
#
# What to do instead: give collections names of their own, or call drop_collection before create_collection.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pymilvus==3.0.2 milvus-lite==3.2.2
cat > "$work/look.py" <<'PY'
import os, socket, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
from pymilvus import DataType, MilvusClient, MilvusException

work = Path(sys.argv[1])
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

def serve(name):
    command = [Path(sys.executable).with_name("milvus-lite"), "server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, "--data-dir", work / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")

def use(name, fields, drop=False):
    """Creates a collection on a new server with a new client, and upserts one row that fits it."""
    server = serve(name)
    client = MilvusClient(uri=f"http://127.0.0.1:{port}")
    try:
        if drop:
            client.drop_collection("products")
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        for field in fields:
            schema.add_field(field, DataType.INT64, nullable=True)
        client.create_collection("products", schema=schema)
        row = {"id": 1, "vector": [1.0, 0.0], **dict.fromkeys(fields, 7)}
        return f"{client.upsert('products', [row])['upsert_count']} row"
    except MilvusException as error:
        return error.message
    finally:
        client.close()
        server.terminate()
        server.wait()

print("pymilvus", version("pymilvus"), "milvus-lite", version("milvus-lite"))
failed = False
for what, seen, want in [
    ("fields id, vector, price", use("one", ["price"]), "1 row"),
    ("another server, fields id, vector", use("two", []),
     "record has fields ['price'] not in schema (enable_dynamic_field is False)"),
    ("a third, dropped before", use("three", [], drop=True), "1 row"),
]:
    failed |= seen != want
    print(f"{what}: {seen}", "" if seen == want else f" CHANGED: this finding states {want!r}")
sys.exit(failed)
PY
"$work/venv/bin/python" "$work/look.py" "$work"
echo "as stated"
