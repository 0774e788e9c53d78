"""A PostgreSQL server with pgvector for tests, where both are installed, as by Debian's packages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import started


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A connection string; skips where there is no server, no pgvector or no psycopg."""
    psycopg = pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    programs = found[-1].parent
    if not (programs / "postgres").is_file():
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    shared = subprocess.run([programs / "pg_config", "--sharedir"], capture_output=True, text=True)
    if not (Path(shared.stdout.strip()) / "extension" / "vector.control").is_file():
        pytest.skip("needs pgvector, as postgresql-17-pgvector of Debian 13")
    # It refuses to run as root, and paths of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="mm-pg-", dir="/tmp"))
    options: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        options["user"] = "postgres"
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "shop", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(make, check=True, capture_output=True, **options)
    serve = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    address = f"postgresql://shop@/postgres?host={folder}"
    try:
        with started(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as server:
            for _ in range(600):
                try:
                    psycopg.connect(address).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(0.1)
            yield address
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
