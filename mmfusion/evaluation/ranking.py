"""Exact top-k over a product pool, in chunks of bounded memory."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LOW_HALF = 2**32

Embeds = Tensor | np.ndarray


def rank(
    query_embeds: Embeds,
    product_embeds: Embeds,
    k: int,
    product_ids: Sequence[str] | np.ndarray,
    *,
    query_chunk: int = 256,
    product_chunk: int = 16_384,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Ranks all products for each query by inner product.

    The order is that of trec_eval (and so of pytrec_eval): score as float32 descending, equal scores by product id
    *descending* in code point order ("9" before "10"). It holds among the first k and also decides who gets the k-th
    place. Scores are accumulated in float64 and rounded to float32 once, so that equal products tie and the chunk
    sizes do not matter.

    Args:
        query_embeds: Float [Q, D].
        product_embeds: Float [N, D]; a memory-mapped array is read chunk by chunk.
        k: Places wanted, at least 1.
        product_ids: N different ids.
        query_chunk: Queries scored together.
        product_chunk: Products scored together; about 32 bytes x query_chunk x product_chunk are needed at a time.
        device: Where scores are computed and sorted; needs float64.

    Returns:
        Scores float32 [Q, k] and columns (positions in `product_embeds`) int64 [Q, k], both on the CPU. Where N is
        below k, the rest is score -inf and column -1.

    Raises:
        ValueError: Shapes do not fit, a product id appears twice, or an embedding is NaN or infinite.

    >>> queries, products = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 1.0], [0.5, 0.0], [1.0, 0.0]])
    >>> rank(queries, products, k=3, product_ids=["10", "9", "1"])[1]
    tensor([[2, 1, 0]])
    """
    check_sizes(k=k, query_chunk=query_chunk, product_chunk=product_chunk)
    _check_embeds(query_embeds, product_embeds)
    order = TieOrder(product_ids)
    if len(order) != product_embeds.shape[0]:
        raise ValueError(f"{len(order)} product ids for {product_embeds.shape[0]} product embeddings; pass one each")
    num_queries, num_products = query_embeds.shape[0], product_embeds.shape[0]
    keys = torch.empty(num_queries, min(k, num_products), dtype=torch.int64)
    for first in range(0, num_queries, query_chunk):
        queries = _chunk(query_embeds, first, query_chunk, device, "query")
        best = torch.empty(queries.shape[0], 0, dtype=torch.int64, device=device)
        for start in range(0, num_products, product_chunk):
            products = _chunk(product_embeds, start, product_chunk, device, "product")
            chunk_keys = order.largest_keys((queries @ products.T).to(torch.float32), k, first_column=start)
            best = _largest(torch.cat([best, chunk_keys], dim=1), k)
        keys[first : first + queries.shape[0]] = best.cpu()
    return order.unpack(keys, k)


class TieOrder:
    """The total order of trec_eval over (score, product id), as sortable integers.

    A key holds the score's bits, made monotone, above the product's place in id order: keys differ whenever products
    do, so any top-k algorithm finds the same products in the same order.

    Args:
        product_ids: N different ids, fewer than 2**32.

    Raises:
        ValueError: An id appears twice.
    """

    def __init__(self, product_ids: Sequence[str] | np.ndarray) -> None:
        ids = np.asarray(product_ids, dtype=object)
        by_id = np.argsort(ids, kind="stable")
        same = np.flatnonzero(ids[by_id[1:]] == ids[by_id[:-1]])
        if same.size:
            first, second = by_id[same[0]], by_id[same[0] + 1]
            raise ValueError(
                f"product id {ids[first]!r} appears twice, in rows {first} and {second}; remove the duplicate"
            )
        self._column_of_place = torch.from_numpy(by_id)
        self._place_of_column = torch.empty_like(self._column_of_place)
        self._place_of_column[self._column_of_place] = torch.arange(len(ids))

    def __len__(self) -> int:
        return len(self._column_of_place)

    def keys(self, scores: Tensor, columns: Tensor) -> Tensor:
        """Packs float32 scores [Q, n] of int64 columns [Q, n] or [n] into int64 keys [Q, n], larger is earlier."""
        places = self._place_of_column[columns.cpu()].to(scores.device)
        # Adding 0 turns -0.0 into 0.0, which trec_eval holds equal; negative floats sort backwards by their bits.
        bits = (scores + 0.0).view(torch.int32)
        monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        return monotone.to(torch.int64) * _LOW_HALF + places

    def largest_keys(self, scores: Tensor, k: int, *, first_column: int = 0) -> Tensor:
        """The min(k, n) largest keys of float32 scores [Q, n] of the columns first_column.., in any order."""
        k = min(k, scores.shape[1])
        values, columns = scores.topk(k, dim=1)
        keys = self.keys(values, columns + first_column)
        # Only where a tie crosses the k-th place does the id decide who is in; packing all scores is slow.
        crossed = (scores >= values[:, -1:]).sum(dim=1) > k
        if bool(crossed.any()):
            every_column = torch.arange(first_column, first_column + scores.shape[1])
            keys[crossed] = _largest(self.keys(scores[crossed], every_column), k)
        return keys

    def unpack(self, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores float32 [Q, k] and columns int64 [Q, k] of int64 keys [Q, <= k], padded with -inf and -1."""
        monotone = torch.div(keys, _LOW_HALF, rounding_mode="floor")
        columns = torch.full((keys.shape[0], k), -1, dtype=torch.int64)
        columns[:, : keys.shape[1]] = self._column_of_place[keys - monotone * _LOW_HALF]
        monotone = monotone.to(torch.int32)
        scores = torch.full((keys.shape[0], k), -torch.inf)
        scores[:, : keys.shape[1]] = torch.where(monotone < 0, monotone ^ 0x7FFFFFFF, monotone).view(torch.float32)
        return scores, columns

    def top(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ranks columns by given float32 scores [Q, N]; returns like `rank`."""
        if scores.shape[1] != len(self):
            raise ValueError(f"scores for {scores.shape[1]} products, but there are {len(self)} product ids")
        if bool(scores.isnan().any()):
            raise ValueError(f"row {int(scores.isnan().any(dim=1).nonzero()[0, 0])} of the scores holds a NaN")
        check_sizes(k=k)
        return self.unpack(_largest(self.largest_keys(scores, k), k).cpu(), k)


def _largest(keys: Tensor, k: int) -> Tensor:
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def _check_embeds(query_embeds: Embeds, product_embeds: Embeds) -> None:
    for name, embeds in (("query", query_embeds), ("product", product_embeds)):
        if embeds.ndim != 2:
            raise ValueError(f"{name} embeddings have shape {tuple(embeds.shape)}; pass [rows, dimension]")
    if query_embeds.shape[1] != product_embeds.shape[1]:
        raise ValueError(
            f"query embeddings have dimension {query_embeds.shape[1]} but product embeddings "
            f"{product_embeds.shape[1]}; embed both with the same model"
        )


def _chunk(embeds: Embeds, first: int, size: int, device: torch.device | str, name: str) -> Tensor:
    block = embeds[first : first + size]
    # A memory-mapped array is read-only, which torch cannot represent: copy the block.
    block = torch.from_numpy(np.array(block)) if isinstance(block, np.ndarray) else block.detach()
    finite = block.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = first + int((~finite).nonzero()[0, 0])
        raise ValueError(f"{name} embedding {row} holds a NaN or an infinite number; check the model that made it")
    return block.to(device=device, dtype=torch.float64)
