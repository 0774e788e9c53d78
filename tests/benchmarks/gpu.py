"""What a GPU does: one script of at most ten minutes that needs no network; by hand, on a machine with a GPU:

    python tests/benchmarks/gpu.py --output outputs/gpu

Encoders are a CLIP with ViT-B/16 and a text tower of 12 layers with random weights, precision is bf16-mixed, photos and
texts are those of a toy catalogue. With `--tiny`, and without a GPU, everything is small and runs on the CPU, and the
cells that are about a GPU say "not measured". Writes gpu.md and gpu.json. Parts:

training: samples/s and MFU of stage 1, with and without torch.compile and gradient caching. Batches come from memory,
    and each is copied to the device; MFU counts the operations of forward and backward pass once, as torch counts them,
    over the peak of the device. Steps that wait for the host are those that torch.cuda.set_sync_debug_mode warns of.
peers: the same CLIP with its contrastive loss in sentence-transformers (MultipleNegativesRankingLoss), and open_clip's
    own ViT-B-16 with its `ClipLoss`, each with one text and one photo a sample, where stage 1 has two texts.
embedding: products/s of `mmfusion embed` from start to manifest, with 16 processes that decode photos.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from row_files import machine
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.evaluation.tables import markdown_table
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.stages import Stage1
from mmfusion.training.hardware import Hardware
from mmfusion.training.trainer import PrepareModel

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISION = "bf16-mixed"
NOT_MEASURED = "not measured"
# Dense TFLOP/s in bf16, by part of the device's name.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "4090": 165.0}
WATCHED = 3  # steps in which waits are counted


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def make_encoders(folder: Path, tiny: bool) -> str:
    """Writes a CLIP with random weights, a tokenizer and an image processor."""
    clip = folder / "clip"
    if (clip / "preprocessor_config.json").is_file():
        return str(clip)
    write_toy_encoders(folder / "encoders")
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoders" / "text")
    tokenizer.model_max_length = 77
    size = (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} if tiny else {}
    )
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    text = {**ids, "vocab_size": max(len(tokenizer), 49_408 * (not tiny)), **size}
    photo = {"image_size": 32 if tiny else 224, "patch_size": 16, **size}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=photo, projection_dim=32 if tiny else 512)).save_pretrained(
        clip
    )
    tokenizer.save_pretrained(clip)
    edge = photo["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=edge).save_pretrained(clip)
    return str(clip)


class Repeated:
    """Hands out the same batches again and again."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(self.batches)


class FewBatches(MMFusionDataModule):
    """Reads a few batches once, so that loading is no part of a step."""

    def train_dataloader(self) -> Any:
        return Repeated([*itertools.islice(super().train_dataloader(), 4)])


class Watch(L.Callback):
    """Seconds of the steps after the first ones, and then what torch warns of in a few more."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps, self.seconds = warm_up, steps, 0.0
        self.waits: list[str] = []
        self.caught = warnings.catch_warnings(record=True)

    def on_train_batch_start(self, trainer: L.Trainer, stage: L.LightningModule, batch: Any, index: int) -> None:
        if index == self.warm_up:
            synchronize()
            self.start = time.perf_counter()
        if index == self.warm_up + self.steps:
            synchronize()
            self.seconds = time.perf_counter() - self.start
            self.found = self.caught.__enter__()
            warnings.simplefilter("always")
            if CUDA:
                torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, *_: Any) -> None:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        self.waits = [
            f"{Path(one.filename).name}:{one.lineno}" for one in self.found if "synchroniz" in str(one.message)
        ]


def train(options: argparse.Namespace, clip: str, compiled: bool, micro_batch: int) -> dict[str, Any]:
    """One cell of stage 1."""
    L.seed_everything(0, verbose=False)
    model = MMFusionModel.from_backbones(clip, clip)
    processor = MMFusionProcessor.from_backbones(clip, clip)
    catalogue = Catalogue.load(options.output / "catalogue", cache_dir=options.output / "cache")
    data = FewBatches(catalogue, processor, batch_size=options.batch, num_workers=options.workers)
    stage, watch = Stage1(model, micro_batch=micro_batch), Watch(options.warm_up, options.steps)
    trainer = L.Trainer(
        default_root_dir=options.output,
        accelerator="gpu" if CUDA else "cpu",
        devices=1,
        precision=PRECISION,
        max_steps=options.warm_up + options.steps + WATCHED,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PrepareModel(Hardware(compile=compiled)), watch],
    )
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(stage, datamodule=data)
    found = {
        "samples_per_second": options.batch * options.steps / watch.seconds,
        "waits": sorted(set(watch.waits)) if CUDA else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if CUDA else None,
    }
    if not compiled and not micro_batch:
        batch = data.transfer_batch_to_device(next(iter(data.train_dataloader())), DEVICE, 0)
        stage.to(DEVICE)
        found["flops_per_sample"] = flops(lambda: sum(w * v for w, v in stage.terms(batch).values())) / options.batch
        model.save_pretrained(options.output / "model")
        processor.save_pretrained(options.output / "model")
    return found


def flops(loss: Callable[[], Any]) -> int:
    """Operations of forward and backward pass."""
    with FlopCounterMode(display=False) as counter, torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss().backward()
    return counter.get_total_flops()


def timed_steps(options: argparse.Namespace, parameters: Iterator[Any], loss: Callable[[], Any]) -> dict[str, Any]:
    """Samples/s of a plain loop with AdamW and clipping."""
    trained = [one for one in parameters if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=CUDA)
    for step in range(options.warm_up + options.steps):
        if step == options.warm_up:
            synchronize()
            start = time.perf_counter()
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    speed = options.batch * options.steps / (time.perf_counter() - start)
    return {"samples_per_second": speed, "flops_per_sample": flops(loss) / options.batch}


def drawn(options: argparse.Namespace, length: int, vocabulary: int, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and pixels of a batch."""
    tokens = torch.randint(5, vocabulary, (options.batch, length), device=DEVICE)
    return tokens, torch.randn(options.batch, 3, edge, edge, device=DEVICE)


def sentence_transformers(options: argparse.Namespace, clip: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(clip, device=DEVICE.type)
    config = CLIPConfig.from_pretrained(clip)
    tokens, pixels = drawn(options, 77, config.text_config.vocab_size, config.vision_config.image_size)
    # As CLIP pools it.
    tokens[:, -1] = config.text_config.eos_token_id
    texts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "modality": "text"}
    loss = MultipleNegativesRankingLoss(model)
    photos = {"pixel_values": pixels, "modality": "image"}
    return timed_steps(options, model.parameters(), lambda: loss([dict(texts), dict(photos)], None))


def open_clip(options: argparse.Namespace) -> dict[str, Any]:
    import open_clip as library

    model = library.create_model("ViT-B-16", device=DEVICE)
    model.train()
    tokens, pixels = drawn(options, 77, 49_408, 224)
    loss = library.ClipLoss()
    return timed_steps(options, model.parameters(), lambda: loss(*model(pixels, tokens)))


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """`mmfusion embed` of the whole catalogue, from start to manifest."""
    words = ["embed", "--catalogue", "catalogue", "--base", "model", "--output", "embeddings"]
    words += ["--hardware.num_workers", str(options.workers), "--hardware.precision", PRECISION]
    words += ["--hardware.accelerator", "gpu" if CUDA else "cpu"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mmfusion", *words], cwd=options.output, check=True)
    return {"products_per_second": options.products / (time.perf_counter() - start)}


def as_markdown(found: dict[str, Any]) -> str:
    """The page."""
    peak, rows = found["peak_tflops"], [["", "samples/s", "MFU", "waits for the host a step", "peak, GiB"]]
    stage_flops = found["cells"].get("stage 1", {}).get("flops_per_sample")
    for name, cell in found["cells"].items():
        speed, waits = cell.get("samples_per_second"), cell.get("waits")
        work = stage_flops if name.startswith("stage 1") else cell.get("flops_per_sample")
        mfu = NOT_MEASURED if None in (speed, work, peak) else f"{speed * work / (peak * 1e12):.3f}"
        shown = "" if not name.startswith("stage 1") else NOT_MEASURED if waits is None else ", ".join(waits) or "none"
        memory = NOT_MEASURED if cell.get("peak_gib") is None else f"{cell['peak_gib']:.1f}"
        rows.append([name, cell.get("why", "") if speed is None else f"{speed:,.1f}", mfu, shown, memory])
    speed = found["embedding"]["products_per_second"]
    return "\n\n".join(
        [
            "# On a GPU",
            f"Device: {found['device']}; {found['machine']}; torch {torch.__version__}; batch {found['batch']}.",
            markdown_table(rows),
            f"Embedding, from start to manifest, {found['workers']} processes that decode: {speed:,.1f} products/s.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--tiny", action="store_true", help="small encoders and few products; for the CPU")
    parser.add_argument("--batch", type=int, help="pairs; default: 256, tiny 8")
    parser.add_argument("--micro_batch", type=int, help="of gradient caching; default: 64, tiny 4")
    parser.add_argument("--products", type=int, help="default: 20,000, tiny 64")
    parser.add_argument("--workers", type=int, help="processes that decode; default: 16, tiny 0")
    parser.add_argument("--warm_up", type=int, default=5, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, help="default: 30, tiny 2")
    parser.add_argument("--peak_tflops", type=float, help="of the device, dense, bf16; default: by its name")
    options = parser.parse_args()
    if not CUDA and not options.tiny:
        parser.error("there is no GPU; --tiny runs everything small on the CPU")
    usual = {"batch": (256, 8), "micro_batch": (64, 4), "products": (20_000, 64), "workers": (16, 0), "steps": (30, 2)}
    for name, sizes in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, sizes[options.tiny])
    options.output = options.output.resolve()
    clip, name = make_encoders(options.output, options.tiny), torch.cuda.get_device_name() if CUDA else "none"
    if not (options.output / "catalogue").is_dir():
        write_toy_catalogue(options.output / "catalogue", num_products=options.products)
    cells: dict[str, Any] = {}
    contenders = {
        "stage 1": lambda: train(options, clip, False, 0),
        "stage 1, caching": lambda: train(options, clip, False, options.micro_batch),
        "stage 1, compiled": lambda: train(options, clip, True, 0),
        "stage 1, compiled, caching": lambda: train(options, clip, True, options.micro_batch),
        "sentence-transformers": lambda: sentence_transformers(options, clip),
        "open_clip": lambda: open_clip(options),
    }
    for contender, run in contenders.items():
        # On a CPU, compiling takes minutes and tells nothing.
        if not CUDA and ("compiled" in contender or contender == "open_clip"):
            cells[contender] = {"why": NOT_MEASURED}
            continue
        try:
            cells[contender] = run()
        except ImportError as error:
            cells[contender] = {"why": f"{NOT_MEASURED}: {error}"}
        print(contender, cells[contender], flush=True)
    found = {
        "device": name,
        "machine": machine(),
        "peak_tflops": options.peak_tflops or next((peak for key, peak in PEAKS.items() if key in name), None),
        "batch": options.batch,
        "workers": options.workers,
        "cells": cells,
        "embedding": embed(options),
    }
    (options.output / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (options.output / "gpu.md").write_text(as_markdown(found) + "\n", "utf-8")
    print(as_markdown(found))


if __name__ == "__main__":
    main()
