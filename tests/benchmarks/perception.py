"""What limits visual queries: fusion, or what the photo tells; by hand: python tests/benchmarks/perception.py --help

The same small heads are trained over frozen encoders on train and measured on val, with four views of the photo:

- none: the title alone;
- seen: states of the vision encoder, pooled by attention, as the product tower has them;
- named: probabilities of a classifier that was taught the retailer's values on other train products, from these states;
- known: the retailer's own values, which a model may never see.

Where *named* is no better than *seen*, neither supervision nor fusion is what is missing, but how well the values can
be read off the photo at all, and *known* says what that would be worth. Accuracies for a quarter, a half and all of the
train products say whether more of them would help.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCache, build_feature_cache
from mmfusion.data.tables import ProductTable, QueryTable
from mmfusion.evaluation import Evaluation, evaluate_rankings, format_table
from mmfusion.evaluation.ranking import rank
from mmfusion.model.heads import Encoded, Projection, VisionNeck
from mmfusion.model.vision_encoders import encode_photos_from
from mmfusion.training import load_base, load_catalogue

sys.path.append(str(Path(__file__).parents[1]))
from dense_losses import contrastive_of_rows

FOLDS, EPOCHS, STEPS, QUERIES, PRODUCTS, HIDDEN, DROPOUT = 3, 12, 250, 384, 1024, 256, 0.4
RATE, DECAY = 2e-3, 0.3

Embed = Callable[[Tensor], Tensor]


class Data:
    """Frozen features of all train and val products and queries.

    Attributes:
        text, query: (P, hidden), (Q, hidden) pooled texts, scaled to unit variance.
        classes: Values by attribute; `labels` (P, attributes) int64 holds their places, -1 for rare or missing ones.
    """

    def __init__(self, catalogue: Catalogue, base: str, cache: Path, attributes: list[str]) -> None:
        self.model, processor = load_base(base)
        self.model.eval().freeze_vision(self.model.num_vision_blocks)
        self.train, self.val = catalogue.product_rows("train"), catalogue.product_rows("val")
        self.rows = np.concatenate([self.train, self.val])
        self.queries = {split: catalogue.query_rows(split) for split in ("train", "val")}
        self.catalogue, products = catalogue, ProductTable(catalogue, processor)
        splits = {"train": self.train, "val": self.val}
        read = [self._read(build_feature_cache(cache / name, self.model, products, r), r) for name, r in splits.items()]
        self.tokens, self.pooled = (torch.cat(states) for states in zip(*read, strict=True))
        self.query_rows = np.concatenate(list(self.queries.values()))
        asked = QueryTable(catalogue, processor).texts(self.query_rows)
        self.text = self._pooled(products.texts(self.rows), processor.process_product_texts)
        self.query = self._pooled(asked, processor.process_queries)
        self.classes, self.labels = self._labels(attributes)

    @torch.no_grad()
    def _pooled(self, texts: list[str], encode: Callable[[list[str]], Any]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 256):
            batch = encode(texts[start : start + 256])
            states = self.model.get_text_states(batch["input_ids"], batch["attention_mask"], "product")
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append((states * mask).sum(1) / mask.sum(1).clamp_min(1))
        pooled = F.normalize(torch.cat(parts), dim=-1)
        return pooled * pooled.shape[1] ** 0.5

    def _labels(self, attributes: list[str]) -> tuple[list[list[str]], Tensor]:
        records = [json.loads(text or "{}") for text in self.catalogue.products[self.rows.tolist()]["attributes"]]
        classes, columns = [], []
        for path in attributes:
            values = [_value(record, path) for record in records]
            counts = {value: values[: len(self.train)].count(value) for value in set(values)}
            classes.append(sorted(value for value, count in counts.items() if value is not None and count >= 10))
            places: dict[str | None, int] = {value: place for place, value in enumerate(classes[-1])}
            columns.append(torch.tensor([places.get(value, -1) for value in values]))
        return classes, torch.stack(columns, 1)

    def states(self, places: Tensor) -> Encoded:
        """States of the first photos at places of `rows`; zeros for products without one."""
        return Encoded(self.tokens[places], self.pooled[places])

    def _read(self, cache: FeatureCache, rows: np.ndarray) -> Encoded:
        model, config = self.model, self.model.config
        found, blocks, sizes = cache.photos(rows), model.num_vision_blocks, model.photo_sizes
        activations, layers = found["vision_activations"][:, 0], config.vision_feature_layers
        states = encode_photos_from(model.vision_model, activations, blocks, config.image_pooling, layers, sizes)
        there = found["photo_mask"][:, 0, None]
        return Encoded(states.tokens * there.unsqueeze(-1), states.pooled * there)

    def wanted(self, split: str, places: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the split's queries that have a best product among those at `places`, and (Q, P) grades."""
        first = 0 if split == "train" else len(self.queries["train"])
        queries = torch.arange(first, first + len(self.queries[split]))
        grades = self.catalogue.qrels.grades(self.query_rows[queries.numpy()], self.rows[places.numpy()])
        keep = torch.from_numpy((grades == grades.max()).any(1))
        return queries[keep], torch.from_numpy(grades)[keep]


class Seen(nn.Module):
    """States of photos through a neck as the product tower has it, to `width` outputs."""

    def __init__(self, data: Data, width: int) -> None:
        super().__init__()
        one, config = data.states(torch.zeros(1, dtype=torch.long)), data.model.config
        size, heads = config.neck_hidden_size, config.neck_heads
        self.states = data.states
        self.neck = VisionNeck(one.tokens.shape[2], one.pooled.shape[1], size, heads)
        inputs = one.pooled.shape[1] + size * heads
        self.norm, self.out = nn.LayerNorm(inputs), Projection(inputs, width, HIDDEN, DROPOUT)

    def forward(self, places: Tensor) -> Tensor:
        return self.out(self.norm(self.neck(self.states(places)).pooled))


class Values(nn.Module):
    """Rows of a table, to `width` outputs."""

    def __init__(self, table: Tensor, width: int) -> None:
        super().__init__()
        self.table = (table - table.mean(0)) / (table.std(0) + 1e-3)
        self.out = Projection(table.shape[1], width, HIDDEN, DROPOUT)

    def forward(self, places: Tensor) -> Tensor:
        return self.out(self.table[places])


def classifier(data: Data, places: Tensor) -> Seen:
    """Names all attributes; trained on the products at `places`."""
    torch.manual_seed(0)
    sizes = [len(names) for names in data.classes]
    net, batches = Seen(data, sum(sizes)), EPOCHS * math.ceil(len(places) / 128)
    optimizer, schedule = _optimizer(net, batches)
    for _ in range(EPOCHS):
        for batch in places[torch.randperm(len(places))].split(128):
            columns = zip(net(batch).split(sizes, 1), data.labels[batch].T, strict=True)
            # A sum over a count, as a batch in which a value is missing everywhere has no mean.
            terms = [F.cross_entropy(*column, ignore_index=-1, reduction="sum") / len(batch) for column in columns]
            _step(optimizer, schedule, torch.stack(terms).sum())
    return net.eval()


@torch.no_grad()
def probabilities(data: Data, net: Seen, places: Tensor) -> Tensor:
    """(P, all values) float, one distribution for each attribute."""
    sizes = [len(names) for names in data.classes]
    parts = [torch.cat([part.softmax(1) for part in net(batch).split(sizes, 1)], 1) for batch in places.split(256)]
    return torch.cat(parts)


def accuracies(data: Data, found: Tensor, places: Tensor) -> list[float]:
    """Share of products with a frequent value for which it is the most probable one, by attribute."""
    parts = zip(found.split([len(names) for names in data.classes], 1), data.labels[places].T, strict=True)
    return [float((part.argmax(1) == label)[label >= 0].float().mean()) for part, label in parts]


def retrieval(data: Data, photo: nn.Module | None, name: str) -> Evaluation:
    """Trains heads over frozen texts and the given view of the photo, and ranks the products of val."""
    width = data.text.shape[1]
    heads = nn.ModuleList([Projection(width, width, HIDDEN, DROPOUT), Projection(width, width, HIDDEN, DROPOUT)])
    scale = nn.Parameter(torch.tensor(3.0))
    everything = nn.ModuleList([heads, *([photo] if photo is not None else [])])
    everything.register_parameter("scale", scale)
    optimizer, schedule = _optimizer(everything, STEPS)
    products = torch.arange(len(data.train))
    queries, grades = data.wanted("train", products)
    levels = [int(level) for level in grades.unique() if level > 0]
    draw = torch.Generator().manual_seed(0)

    def embed(places: Tensor) -> list[Tensor]:
        text = F.normalize(heads[1](data.text[places]), dim=-1)
        if photo is None:
            return [text]
        view = F.normalize(photo(places), dim=-1)
        return [F.normalize(text + view, dim=-1), text, view]

    for _ in range(STEPS):
        asked = torch.randperm(len(queries), generator=draw)[:QUERIES]
        shown = torch.randperm(len(products), generator=draw)[:PRODUCTS]
        query, wanted = F.normalize(heads[0](data.query[queries[asked]]), dim=-1), grades[asked][:, shown]
        terms = []
        for place, product in enumerate(embed(shown)):
            total, count = contrastive_of_rows(scale.exp() * query @ product.T, wanted, levels)
            terms.append((0.2 if place else 1.0) * total / count.clamp_min(1))
        _step(optimizer, schedule, torch.stack(terms).sum())
    everything.eval()
    return _evaluated(data, lambda places: heads[0](data.query[places]), lambda places: embed(places)[0], name)


@torch.no_grad()
def _evaluated(data: Data, ask: Embed, show: Embed, name: str) -> Evaluation:
    places = torch.arange(len(data.train), len(data.rows))
    queries = torch.arange(len(data.queries["train"]), len(data.query_rows))
    shown = torch.cat([show(batch) for batch in places.split(256)])
    ids = [data.catalogue.products["product_id"][row] for row in data.val.tolist()]
    _, ranked = rank(F.normalize(ask(queries), dim=-1), shown, min(100, len(ids)), ids)
    return evaluate_rankings(
        data.val[ranked.numpy()],
        data.queries["val"],
        data.catalogue.qrels,
        queries=data.catalogue.queries,
        product_rows=data.val,
        relevant_grade=int(data.catalogue.qrels.grade.max()),
        name=name,
    )


def _optimizer(net: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)


def _step(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _value(record: dict[str, Any], path: str) -> str | None:
    found: Any = record
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def out_of_fold(data: Data) -> Tensor:
    """Probabilities for all products, of train products by a classifier that was not trained on them."""
    train, all_places = torch.arange(len(data.train)), torch.arange(len(data.rows))
    found = probabilities(data, classifier(data, train), all_places)
    fold = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)) % FOLDS
    for number in range(FOLDS):
        own = train[fold == number]
        found[own] = probabilities(data, classifier(data, train[fold != number]), own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogue", required=True, help="with a column of JSON records named attributes")
    parser.add_argument("--base", required=True, help="model whose encoders are frozen")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument("--feature_cache", type=Path, help="as of the recipes; default: in the output folder")
    parser.add_argument("--attributes", nargs="+", default=["base_colour", "article_attributes.Pattern"])
    arguments = parser.parse_args()
    catalogue = load_catalogue(arguments.catalogue, arguments.base, arguments.output)
    cache = arguments.feature_cache or arguments.output / "features"
    data = Data(catalogue, arguments.base, cache, arguments.attributes)
    val = torch.arange(len(data.train), len(data.rows))
    mixed = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    for share in (0.25, 0.5, 1.0):
        part = mixed[: int(share * len(mixed))]
        right = accuracies(data, probabilities(data, classifier(data, part), val), val)
        texts = [f"{name} {100 * value:.1f} %" for name, value in zip(arguments.attributes, right, strict=True)]
        print(f"named from {len(part)} train products: {', '.join(texts)}", flush=True)
    known = torch.cat([F.one_hot(own + 1)[:, 1:].float() for own in data.labels.T], 1)
    torch.manual_seed(0)
    width = data.text.shape[1]
    views = {
        "none": None,
        "seen": Seen(data, width),
        "named": Values(out_of_fold(data).clamp_min(1e-4).log(), width),
        "known": Values(known, width),
    }
    found = [retrieval(data, photo, name) for name, photo in views.items()]
    for evaluation in found:
        evaluation.save(arguments.output)
    print(format_table(found, slice_by="kind"))


if __name__ == "__main__":
    main()
