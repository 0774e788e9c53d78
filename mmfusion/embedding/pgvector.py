"""Embedded products in a table of PostgreSQL, whose extension pgvector searches them."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from mmfusion.embedding.documents import OWN_COLUMNS, ExportError, check_columns, digest, documents
from mmfusion.embedding.shards import EmbeddedCatalogue
from mmfusion.extras import library

# Of PostgreSQL: the longest name, which it would cut.
_MOST_NAME_BYTES = 63
# Of pgvector: the most components that an index takes, of 32 and of 16 bits.
_INDEXED, _HALF_INDEXED, _MOST_COMPONENTS = 2_000, 4_000, 16_000

logger = logging.getLogger(__name__)


def load_pgvector(
    connection: str,
    embedded: EmbeddedCatalogue,
    metadata: pa.Table,
    table: str,
    *,
    overwrite: bool = False,
    progress: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Loads a table of products, their columns and vectors, with an HNSW index for inner products.

    Rows go into a table beside it, shard by shard; a load that was cut off goes on with the shards that are missing.
    Once all are there, the new table takes the place of the old one in one step: who searches sees one or the other.

    Args:
        connection: As libpq takes it, e.g. `postgresql://user@host/shop`; the password is in PGPASSWORD or a
            `.pgpass` file.
        embedded: Vectors. Those of float16 become a `halfvec`, all others a `vector` of floats.
        metadata: Columns of the catalogue, in the order of the vectors.
        table: Its name.
        overwrite: Whether the table may replace one that this function did not write.
        progress: Called with the number of rows of each shard.

    Raises:
        MissingLibraryError: psycopg is not installed.
        ExportError: The server cannot be reached, lacks pgvector, or refuses; names and values that it has no place
            for.
    """
    psycopg = library("psycopg", "pgvector")
    check_columns(metadata)
    for name in (f"{table}_loading", *metadata.column_names):
        if len(name.encode()) > _MOST_NAME_BYTES:
            raise ExportError(
                f"The name {name!r} is longer than the {_MOST_NAME_BYTES} bytes of PostgreSQL; shorten it."
            )
    try:
        with psycopg.connect(connection, autocommit=True) as opened:
            _Load(psycopg, opened, embedded, metadata, table).run(overwrite, progress)
    except psycopg.Error as error:
        said = " ".join(str(error).split()) or type(error).__name__
        remedy = "check address, user and password (PGPASSWORD), and that the server has the extension pgvector"
        raise ExportError(f"PostgreSQL says, of table {table!r}: {said}; {remedy}.") from error


class _Load:
    def __init__(self, psycopg: Any, opened: Any, embedded: EmbeddedCatalogue, metadata: pa.Table, table: str) -> None:
        self.sql, self.opened, self.json = psycopg.sql, opened, psycopg.types.json.Jsonb
        self.embedded, self.metadata, self.name = embedded, metadata, table
        provenance = embedded.manifest.provenance
        self.dimension = provenance.dimension
        if self.dimension > _MOST_COMPONENTS:
            raise ExportError(
                f"Vectors have {self.dimension} components, and pgvector takes {_MOST_COMPONENTS} at most."
            )
        self.kind = "halfvec" if provenance.vector_type == "float16" else "vector"
        self.note = {"by": "mmfusion", "model_fingerprint": provenance.model_fingerprint}

    def run(self, overwrite: bool, progress: Callable[[int], Any]) -> None:
        old = self._note_of(self.name)
        if old is not None and old.get("by") != "mmfusion" and not overwrite:
            raise ExportError(
                f"There is a table {self.name!r} that mmfusion did not write; give another --name, or --overwrite true."
            )
        self._do("CREATE EXTENSION IF NOT EXISTS vector")
        loading, made_of = f"{self.name}_loading", digest(self.embedded, self.metadata)
        begun = self._note_of(loading) or {}
        done = int(begun.get("shards", 0)) if begun.get("made_of") == made_of else None
        if done is None:
            self._create(loading, made_of)
        shards = self.embedded.manifest.shards
        for entry in shards[: done or 0]:
            progress(entry.rows)
        for at, part in enumerate(documents(self.embedded, self.metadata, done or 0), (done or 0) + 1):
            with self.opened.transaction():
                self._copy(loading, part)
                self._comment(loading, {**self.note, "made_of": made_of, "shards": at})
            progress(len(part.ids))
        self._index(loading)
        with self.opened.transaction():
            self._do("DROP TABLE IF EXISTS {}", self.name)
            self._do("ALTER TABLE {} RENAME TO {}", loading, self.name)
            self._comment(self.name, {**self.note, "made_of": made_of})

    def _create(self, loading: str, made_of: str) -> None:
        types = {"product_id": "text PRIMARY KEY", "embedding": f"{self.kind}({self.dimension}) NOT NULL"}
        types |= dict.fromkeys(OWN_COLUMNS[2:], "real")
        types |= {field.name: _type(field.type) for field in self.metadata.schema}
        columns = self.sql.SQL(", ").join(
            self.sql.SQL("{} " + kind).format(self.sql.Identifier(name)) for name, kind in types.items()
        )
        with self.opened.transaction():
            self._do("DROP TABLE IF EXISTS {}", loading)
            self.opened.execute(self.sql.SQL("CREATE TABLE {} ({})").format(self.sql.Identifier(loading), columns))
            self._comment(loading, {**self.note, "made_of": made_of, "shards": 0})

    def _copy(self, loading: str, part: Any) -> None:
        as_json = {field.name for field in self.metadata.schema if _type(field.type) == "jsonb"}
        names = ["product_id", *part.columns, "embedding"]
        into = self.sql.SQL("COPY {} ({}) FROM STDIN").format(
            self.sql.Identifier(loading), self.sql.SQL(", ").join(map(self.sql.Identifier, names))
        )
        with self.opened.cursor() as cursor, cursor.copy(into) as copy:
            for row, product_id in enumerate(part.ids):
                values = [self._value(own[row], name in as_json) for name, own in part.columns.items()]
                if any(isinstance(value, str) and "\0" in value for value in (product_id, *values)):
                    raise ExportError(
                        f"A text of product {product_id!r} holds a NUL, which PostgreSQL has no place for; remove it."
                    )
                copy.write_row([product_id, *values, "[" + ",".join(map(repr, part.vectors[row].tolist())) + "]"])

    def _value(self, value: Any, as_json: bool) -> Any:
        return self.json(value) if as_json and value is not None else value

    def _index(self, loading: str) -> None:
        if self.dimension > (_HALF_INDEXED if self.kind == "halfvec" else _INDEXED):
            return logger.warning(
                "an index of pgvector takes at most %d components (%d of float16), and vectors have %d: a search reads "
                "all of them; embed with --vector_type float16 or a shorter --truncate_dim",
                *(_INDEXED, _HALF_INDEXED, self.dimension),
            )
        # A name of its own would stay behind where the table is renamed.
        self._do("DROP INDEX IF EXISTS {}", f"{loading}_embedding_idx")
        self._do(f"CREATE INDEX ON {{}} USING hnsw (embedding {self.kind}_ip_ops)", loading)

    def _comment(self, table: str, note: dict[str, Any]) -> None:
        text = self.sql.Literal(json.dumps(note))
        self.opened.execute(self.sql.SQL("COMMENT ON TABLE {} IS {}").format(self.sql.Identifier(table), text))

    def _note_of(self, table: str) -> dict[str, Any] | None:
        """What we noted of a table; {} of a table of others, None where there is none."""
        quoted = self.sql.Identifier(table).as_string(self.opened)
        found = self.opened.execute(
            "SELECT obj_description(to_regclass(%s), 'pg_class'), to_regclass(%s) IS NULL", (quoted, quoted)
        ).fetchone()
        if found[1]:
            return None
        try:
            note = json.loads(found[0] or "{}")
        except ValueError:
            note = {}
        return note if isinstance(note, dict) else {}

    def _do(self, statement: str, *names: str) -> None:
        self.opened.execute(self.sql.SQL(statement).format(*map(self.sql.Identifier, names)))


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _type(kind.value_type)
        return "jsonb" if inner == "jsonb" or inner.endswith("[]") else f"{inner}[]"
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    for is_kind, name in (
        (pa.types.is_boolean, "boolean"),
        (lambda one: one == pa.uint64(), "numeric"),
        (pa.types.is_integer, "bigint"),
        (pa.types.is_floating, "double precision"),
        (pa.types.is_decimal, "numeric"),
        (pa.types.is_date, "date"),
        (pa.types.is_timestamp, "timestamptz" if getattr(kind, "tz", None) else "timestamp"),
        (lambda one: pa.types.is_string(one) or pa.types.is_large_string(one), "text"),
    ):
        if is_kind(kind):
            return str(name)
    return "jsonb"
