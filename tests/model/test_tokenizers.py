"""Tokenizers of folders that hold the slow files alone, lack the vocabulary, or need a package that is not there."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import transformers
from processes import run_to_end

from mmfusion.model.errors import HubError
from mmfusion.model.text_tokenizers import load_tokenizer, open_tokenizer

TITLES = ["red floral summer dress", "blue denim jacket with pockets", "mug hand made ceramic", "black boots size 42"]
LETTERS = [chr(code) for code in range(33, 127)]
KINDS = ["bert", "clip", "qwen2", "siglip", "t5", "xlm-roberta"]


@cache
def sentencepiece_model(**ids: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TITLES * 20),
        model_writer=model,
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, kind: str, tokenizer_class: str, files: dict[str, bytes]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def ids_of(tokens: Iterable[str]) -> bytes:
    return json.dumps({token: index for index, token in enumerate(tokens)}).encode()


def slow_files(kind: str) -> tuple[str, dict[str, bytes]]:
    """Class and files of a tokenizer as its first authors wrote them, without tokenizer.json."""
    t5 = sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    merges = b"#version: 0.2\n"
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\ndress"
    clip = ids_of([*LETTERS, *(one + "</w>" for one in LETTERS), "<|startoftext|>", "<|endoftext|>"])
    return {
        "siglip": ("SiglipTokenizer", {"spiece.model": t5}),
        "t5": ("T5Tokenizer", {"spiece.model": t5}),
        "xlm-roberta": ("XLMRobertaTokenizer", {"sentencepiece.bpe.model": sentencepiece_model()}),
        "bert": ("BertTokenizer", {"vocab.txt": words}),
        "clip": ("CLIPTokenizer", {"merges.txt": merges, "vocab.json": clip}),
        "qwen2": ("Qwen2Tokenizer", {"merges.txt": merges, "vocab.json": ids_of([*LETTERS, "Ġ", "<|endoftext|>"])}),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_slow_files_alone_are_read_by_what_we_install(kind: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / kind, kind, *slow_files(kind)))
    dress, jacket = (tokenizer(title)["input_ids"] for title in ("red dress", "blue jacket"))
    assert dress != jacket
    assert "red" in tokenizer.decode(dress).replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_its_vocabulary_is_an_error(kind: str, tmp_path: Path) -> None:
    # For most kinds transformers gives a tokenizer that reads each word as unknown, or drops it.
    folder = write_tokenizer(tmp_path / kind, kind, slow_files(kind)[0], {})
    with pytest.raises(HubError, match=r"tokenizer of .* (has special tokens and no|cannot be built)") as raised:
        open_tokenizer(folder)
    assert folder in str(raised.value) and "vocab" in str(raised.value) and "\n" not in str(raised.value)


NEEDS = {
    "flaubert": ("sacremoses", "FlaubertTokenizer", {"vocab.json": ids_of(LETTERS), "merges.txt": b"#version: 0.2\n"}),
    # "!", in base64, has the rank 0.
    "llama": ("tiktoken", "PreTrainedTokenizerFast", {"tokenizer.model": b"IQ== 0\n"}),
    "roformer": ("rjieba", "RoFormerTokenizer", {"vocab.txt": b"[UNK]\nred\n"}),
}


@pytest.mark.parametrize("kind", NEEDS)
def test_a_package_that_we_do_not_install_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, tokenizer_class, files = NEEDS[kind]
    monkeypatch.setitem(sys.modules, package, None)
    folder = write_tokenizer(tmp_path / kind, kind, tokenizer_class, files)
    with pytest.raises(HubError, match=rf"needs a package that is not installed: pip install {package}$"):
        open_tokenizer(folder)


def test_missing_sentencepiece_and_protobuf_are_named_and_not_tiktoken(tmp_path: Path) -> None:
    folders = [write_tokenizer(tmp_path / kind, kind, *slow_files(kind)) for kind in ("t5", "siglip")]
    code = (
        "import sys; sys.modules['sentencepiece'] = sys.modules['google.protobuf'] = None\n"
        "from mmfusion.model.text_tokenizers import open_tokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    try: open_tokenizer(folder)\n"
        "    except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, *folders]
    done = run_to_end(command, cwd=Path(__file__).parents[2], fresh=True)
    assert done.stdout.splitlines() == [
        f"The tokenizer of {folder} needs a package that is not installed: pip install {packages}"
        for folder, packages in zip(folders, ("sentencepiece protobuf", "sentencepiece"), strict=True)
    ]


def test_a_tokenizer_whose_class_pads_on_the_left_is_saved_with_the_side_that_is_read(tmp_path: Path) -> None:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefgh"]
    made = transformers.GemmaTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    assert made.padding_side == "left"
    made.save_pretrained(tmp_path / "own")
    tokenizer, _ = load_tokenizer(str(tmp_path / "own"), {}, trust_remote_code=False)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = ["abc", "a"]
    assert again(texts, padding=True)["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert again.padding_side == tokenizer.padding_side == "right"
