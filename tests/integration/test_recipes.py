"""The whole path through the shipped recipes on a small toy catalogue, and their refusals."""

import json
import os
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from commands import Nothing, command
from processes import run_to_end

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.commands import run_command
from mmfusion.evaluation import Evaluation
from mmfusion.retrieval import MilvusError, ProductIndex
from mmfusion.stages import Optimization
from mmfusion.training import RunError, load_base, open_run

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stage1 -> stage2 -> evaluate -> embed -> index on 120 products."""
    folder = tmp_path_factory.mktemp("outputs")
    command("stage1")(output=str(folder / "stage1"), steps=4, batch_size=16, num_products=120, validate_every=2)
    stage1 = str(folder / "stage1")
    command("stage2")(base=stage1, output=str(folder / "stage2"), steps=3, batch_size=16, validate_every=2)
    command("stage2")(base=stage1, output=str(folder / "text"), fusion="text_only", steps=2, batch_size=16)
    for name in ("text", "stage2"):
        command("evaluate")(base=str(folder / name), output=str(folder / "evaluation"))
    command("embed")(base=str(folder / "stage2"), output=str(folder / "embeddings"))
    command("index")(embeddings=str(folder / "embeddings"), output=str(folder / "index"))
    return folder


def test_stages_leave_model_processor_logs_and_curves(outputs: Path) -> None:
    for name in ("stage1", "stage2"):
        for file in ("model.safetensors", "config.json", "processor_config.json", "curves.png", "run.json"):
            assert (outputs / name / file).stat().st_size > 0, f"{name}/{file}"
        assert (outputs / name / "logs" / "version_0" / "metrics.csv").is_file()
        assert json.loads((outputs / name / "run.json").read_text())["complete"]
    assert MMFusionModel.from_pretrained(outputs / "stage2").config.fusion == "gated"


def test_an_index_takes_no_photos_from_the_catalogue(outputs: Path) -> None:
    used = {name: list((outputs / name / "cache").rglob("*.arrow")) for name in ("embeddings", "index")}
    columns = {name: [datasets.Dataset.from_file(str(path)).column_names for path in used[name]] for name in used}
    assert [("image" in names) for names in columns["embeddings"]] == [True]
    assert [("image" in names) for names in columns["index"]] == [False]


def test_a_routed_model_is_trained_evaluated_indexed_and_searched(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routed = str(tmp_path / "routed")
    frozen = Optimization(text_learning_rate=0, vision_learning_rate=0)
    options = {"fusion": "gated", "query_router": True, "steps": 2, "batch_size": 16, "extra_products": 8}
    command("stage2")(base=str(outputs / "stage1"), output=routed, optimization=frozen, **options)
    model, _ = load_base(routed)
    assert model.query_router is not None and model.config.vector_dim == 3 * model.config.embedding_dim
    command("evaluate")(base=routed, output=str(tmp_path / "evaluation"), name="routed")
    result = Evaluation.load(tmp_path / "evaluation", "routed")
    assert result.means["recall@100"] > 0
    kinds = {f"kind={part.value}" for part in result.slices if part.column == "kind"}
    assert set(result.provenance["router_weights"]) == {"all", *kinds}
    assert "| queries | fused | text | image |" in capsys.readouterr().out
    dim, untrained = model.config.embedding_dim, {"allow_untrained_width": True}
    for name, options in (("evaluate", {}), ("embed", {"vector_type": "int8"})):
        with pytest.raises(
            ValueError, match=rf"truncate_dim is 7, .* not trained for \(trained: {dim}\); .*--allow_un"
        ):
            command(name)(base=routed, output=str(tmp_path / f"short_{name}"), truncate_dim=7, **options)
    command("evaluate")(
        base=routed, output=str(tmp_path / "evaluation"), name="short", truncate_dim=dim // 3, **untrained
    )
    sizes = [
        Evaluation.load(tmp_path / "evaluation", name).provenance["bytes_per_product"] for name in ("routed", "short")
    ]
    assert sizes == [4 * 3 * dim, 4 * 3 * (dim // 3)]
    with pytest.raises(ValueError, match="binary vectors keep signs alone"):
        command("embed")(base=routed, output=str(tmp_path / "binary"), vector_type="binary")
    command("embed")(
        base=routed, output=str(tmp_path / "embeddings"), vector_type="int8", truncate_dim=dim // 4, **untrained
    )
    command("index")(embeddings=str(tmp_path / "embeddings"), output=str(tmp_path / "short_index"))
    short = ProductIndex.load(tmp_path / "short_index" / "index").description
    assert (short.dimension, short.factory) == (3 * (dim // 4), "SQ8")
    capsys.readouterr()
    command("search")("red dress", index=str(tmp_path / "short_index"), k=3)
    assert len(capsys.readouterr().out.splitlines()) == 5
    command("embed")(base=routed, output=str(tmp_path / "vectors"))
    command("index")(embeddings=str(tmp_path / "vectors"), output=str(tmp_path / "index"))
    capsys.readouterr()
    command("search")("red dress", index=str(tmp_path / "index"), k=3)
    assert capsys.readouterr().out.strip()
    with pytest.raises(ValueError, match="single view"):
        load_base(str(outputs / "stage1"), fusion="text_only", query_router=True)


def test_fields_of_the_fusion_network_are_set_where_it_is_added(outputs: Path) -> None:
    base = str(outputs / "stage1")
    kind = load_base(base)[0].config.fusion
    mean = load_base(base, fusion="weighted_mean", fusion_config={"fusion_text_weight": 0.1})[0]
    assert (mean.config.fusion, mean.config.fusion_text_weight) == ("weighted_mean", 0.1)
    narrow = load_base(base, fusion=kind, fusion_config={"fusion_hidden_size": 32})[0]
    assert narrow.config.fusion_hidden_size == 32
    assert all(bool(parameter.isfinite().all()) for parameter in narrow.parameters())
    with pytest.raises(RunError, match="'embedding_dim'; the fields of fusion networks are fusion_kwargs, "):
        load_base(base, fusion_config={"embedding_dim": 8})
    with pytest.raises(ValueError, match=r"fusion_text_weight is 1\.5"):
        load_base(base, fusion_config={"fusion_text_weight": 1.5})


def test_published_files_name_no_path_of_this_machine(outputs: Path) -> None:
    for path in (outputs / "stage2").glob("*.json"):
        if path.name != "run.json":
            assert str(outputs) not in path.read_text(), path.name


def test_a_new_process_reproduces_the_embeddings_bit_for_bit(outputs: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); from mmfusion import MMFusionModel, MMFusionProcessor\n"
        "from PIL import Image\n"
        "m = MMFusionModel.from_pretrained(sys.argv[1]).eval(); p = MMFusionProcessor.from_pretrained(sys.argv[1])\n"
        "photo = Image.linear_gradient('L').convert('RGB')\n"
        "with torch.inference_mode():\n"
        "  o = m(**p(queries=['red dress', 'mug'], products=[{'title': 'Dress', 'image': photo}, {'title': 'Mug'}]))\n"
        "torch.save([o.query_embeds, o.product_embeds, o.modality_weights], sys.argv[2])\n"
    )
    for name in ("a.pt", "b.pt"):
        done = run_to_end([sys.executable, "-c", code, outputs / "stage2", tmp_path / name])
        assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_evaluation_covers_every_product_of_the_split_and_says_so(outputs: Path) -> None:
    result = Evaluation.load(outputs / "evaluation", "gated")
    products = pq.read_table(outputs / "stage1" / "toy_catalogue" / "products.parquet", columns=["split"])
    assert result.num_products == products.column("split").to_pylist().count("test")
    assert result.pool == "split" and result.relevant_grade == 3
    assert set(result.means) == {"recall@10", "recall@100", "ndcg@10"}
    for suffix in (".json", ".md", ".png", ".slices.csv", ".per_query.parquet"):
        assert (outputs / "evaluation" / f"gated{suffix}").is_file()


def test_evaluation_from_cached_features_equals_that_from_photos(outputs: Path, tmp_path: Path) -> None:
    options = {"base": str(outputs / "stage2"), "output": str(tmp_path / "evaluation"), "name": "cached"}
    cache = {"freeze_vision_blocks": 1, "feature_cache": str(tmp_path / "features")}
    command("evaluate")(**options, **cache, weights_agree=True)
    agreement = json.loads((tmp_path / "evaluation" / "cached.weights.json").read_text())
    assert agreement["num_products"] > 0 and -1 <= agreement["balance"] <= 1
    cached = Evaluation.load(tmp_path / "evaluation", "cached")
    plain = Evaluation.load(outputs / "evaluation", "gated")
    assert cached.means == pytest.approx(plain.means, abs=1e-6)
    assert cached.provenance["model"] == plain.provenance["model"]


def test_baseline_control_pool_and_comparison(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"base": str(outputs / "stage2"), "output": str(outputs / "evaluation")}
    command("evaluate")(**options, ranker="bm25")
    command("evaluate")(**options, name="shuffled", perturb="photos_shuffled", compare=["text_only", "bm25"])
    printed = capsys.readouterr().out
    assert "shuffled against bm25" in printed and "95 % interval" in printed
    command("evaluate")(**options, name="everything", pool="all", product_slices=["text_sparse"])
    everything = Evaluation.load(outputs / "evaluation", "everything")
    assert everything.pool == "all" and everything.num_products == 120
    assert {part.value for part in everything.slices if part.table == "product"} == {"True", "False"}


def test_perturbed_evaluations_are_named_after_what_was_done(outputs: Path, tmp_path: Path) -> None:
    options = {"base": str(outputs / "stage2"), "output": str(tmp_path)}
    cached = {"freeze_vision_blocks": 1, "feature_cache": str(tmp_path / "features")}
    command("evaluate")(**options, **cached, perturb="photos_dropped", seed=3)
    result = Evaluation.load(tmp_path, "gated.photos_dropped")
    assert (result.provenance["perturbation"], result.provenance["seed"]) == ("photos_dropped", 3)
    assert not (tmp_path / "features").exists()
    command("evaluate")(**options, **cached, perturb="misleading_titles", name="misled")
    assert Evaluation.load(tmp_path, "misled").means != result.means
    command("evaluate")(**options, ranker="bm25", perturb="text_dropped")
    silent = Evaluation.load(tmp_path, "bm25.text_dropped")
    assert silent.num_queries_without_ranking == silent.num_queries and set(silent.means.values()) == {0}


def test_an_index_of_bits_is_searched_by_text_and_can_be_of_another_kind(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = str(tmp_path / "bits")
    command("embed")(base=str(outputs / "stage2"), output=bits, vector_type="binary")
    for chosen, options in (
        ("RaBitQ", {}),
        ("RaBitQ,Refine(SQ8)", {"factory": "RaBitQ,Refine(SQ8)", "search_parameters": "k_factor_rf=4"}),
    ):
        folder = tmp_path / f"index{len(options)}"
        command("index")(embeddings=bits, output=str(folder), **options)
        description = ProductIndex.load(folder / "index").description
        assert (description.factory, description.search_parameters) == (chosen, options.get("search_parameters", ""))
        capsys.readouterr()
        command("search")("red floral dress", index=str(folder), k=3)
        assert len(capsys.readouterr().out.splitlines()) == 5


def test_search_prints_products_with_their_weights(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("search")("red floral dress", index=str(outputs / "index"), k=3)
    *lines, _ = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "text", "photo", "product"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    scores = [float(line.split()[1]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True) and max(scores) <= 1.0
    for line in lines[1:]:
        text, photo = map(float, line.split()[2:4])
        assert text + photo == pytest.approx(1.0, abs=0.011)


def test_search_by_photo_writes_a_page_of_hits(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    products = pq.read_table(outputs / "stage1" / "toy_catalogue" / "products.parquet").to_pylist()
    (tmp_path / "photo.png").write_bytes(products[3]["image"][0]["bytes"])
    options: dict[str, Any] = {"index": str(outputs / "index"), "image": str(tmp_path / "photo.png"), "k": 4}
    page = tmp_path / "new" / "hits.html"
    command("search")(html=str(page), **options)
    alone = capsys.readouterr().out
    assert "next: mmfusion serve --index" in alone and "then open http://127.0.0.1:8000/" in alone
    # Those of four hits and of the query.
    assert page.read_text().count("data:image/jpeg;base64,") == 5
    command("search")("in green", html=str(page), **options)
    assert capsys.readouterr().out != alone and "in green" in page.read_text()
    (tmp_path / "mine.html").write_text("<p>Mine</p>")
    for wrong, message in (
        ({"html": str(tmp_path / "mine.html")}, "was not written by mmfusion search"),
        ({"html": str(tmp_path)}, "is a folder; give the name of a file"),
        ({"image": "https://shop.example/1.jpg"}, "is a URL, which is not fetched"),
        ({"image": str(tmp_path / "mine.html")}, "HTML or XML text instead of a raster image"),
        ({"image": None}, "nothing to search for"),
        ({"catalogue": str(tmp_path / "gone"), "html": str(page)}, "gone"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=message):
            command("search")(**{**options, **wrong})


def test_words_and_vectors_are_searched_and_measured_together(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"embeddings": str(outputs / "embeddings"), "output": str(tmp_path / "index")}
    command("index")(**options, lexical=True, calibrate=0.1)
    calibration = ProductIndex.load(tmp_path / "index" / "index").description.calibration
    assert calibration is not None and calibration.precision >= 0.1 and str(calibration) in capsys.readouterr().out
    how: dict[str, Any] = {"mode": "hybrid", "weight": 0.5, "group_by": "title", "min_score": "calibrated"}
    command("search")("red floral dress", index=str(tmp_path / "index"), k=3, boosts={"price": 0.1}, **how)
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert 1 <= len(rows) <= 3 and len({row.split(maxsplit=5)[5] for row in rows}) == len(rows)
    command("evaluate")(base=str(outputs / "stage2"), output=str(tmp_path), hybrid=True)
    printed = capsys.readouterr().out
    assert "weight of vectors, chosen on" in printed and "gated.hybrid against gated.words, kind visual" in printed
    command("evaluate")(base=str(outputs / "stage2"), output=str(tmp_path), ranker="bm25")
    words, alone = (Evaluation.load(tmp_path, name).means for name in ("gated.words", "bm25"))
    assert words == pytest.approx(alone)
    for command_name, flags, message in (
        ("evaluate", {"base": str(outputs / "stage2"), "hybrid": True, "ranker": "bm25"}, "and ranker is 'bm25'"),
        ("index", {**options, "lexical_columns": ["title"]}, "are for --lexical true"),
        ("index", {**options, "calibrate": 1.5}, r"the precision to calibrate for is 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            command(command_name)(**flags)


def test_an_index_in_milvus_is_searched_as_one_with_faiss(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    options = {"embeddings": str(outputs / "embeddings"), "milvus_uri": "sh@p.db", "collection": "dresses"}
    command("index")(output="index", **options)
    assert "collection 'dresses' at" in capsys.readouterr().out
    found = []
    for index in (outputs / "index", tmp_path / "index"):
        monkeypatch.chdir("/")
        command("search")("red floral dress", index=str(index), k=20, filter=[["split", "in", ["train", "test"]]])
        found.append(capsys.readouterr().out.rpartition("next:")[0])
    assert found[0] == found[1] and len(found[0].splitlines()) == 21
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MilvusError, match=r"'dresses' at .* holds an index; pass overwrite=True"):
        command("index")(output="index", **options)
    command("index")(output="index", overwrite=True, **options)
    for flags, message in (
        ({**options, "factory": "Flat"}, "factory 'Flat' is for an index in FAISS"),
        ({**options, "milvus_uri": "http://user:secret@host"}, "put them into MILVUS_TOKEN"),
        ({"embeddings": options["embeddings"], "index_type": "HNSW"}, "index_type 'HNSW' is for an index in Milvus"),
    ):
        with pytest.raises(ValueError, match=message):
            command("index")(output="other", **flags)


def test_search_refuses_another_model_and_a_missing_index(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the index was built with model"):
        command("search")("dress", index=str(outputs / "index"), base=str(outputs / "text"))
    with pytest.raises(RunError, match=r"no finished index.*mmfusion index"):
        command("search")("dress", index=str(tmp_path))


def test_a_finished_run_is_left_alone_and_another_one_refused(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"base": str(outputs / "stage1"), "output": str(outputs / "stage2"), "batch_size": 16}
    before = (outputs / "stage2" / "model.safetensors").stat().st_mtime_ns
    command("stage2")(**options, steps=3, validate_every=2)
    assert "is complete" in capsys.readouterr().out
    assert (outputs / "stage2" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match=r"batch_size was 16, now 8.*another --output"):
        command("stage2")(**{**options, "batch_size": 8}, steps=3, validate_every=2)
    with pytest.raises(RunError, match="belongs to stage2, not stage1"):
        command("stage1")(output=str(outputs / "stage2"))


def test_a_run_that_saved_nothing_may_start_again_with_other_arguments(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.json"):
        command("stage2")(base=str(tmp_path / "nowhere"), output=str(tmp_path / "run"))
    open_run(tmp_path / "run", "stage2", {"steps": 5})
    assert not open_run(tmp_path / "run", "stage2", {"steps": 5}).complete
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step=1.ckpt").touch()
    with pytest.raises(RunError, match="steps was 5, now 6"):
        open_run(tmp_path / "run", "stage2", {"steps": 6})


def test_a_rank_waits_for_the_first_one_to_begin_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = open_run(tmp_path / "of_first", "stage1", {"steps": 1}).folder / "run.json"
    folder = tmp_path / "run"
    monkeypatch.setenv("RANK", "1")
    folder.mkdir()
    # Of an earlier attempt that saved nothing, which the first rank is about to replace.
    (folder / "run.json").write_text(begun.read_text().replace('"steps": 1', '"steps": 2'))
    first = Timer(0.3, os.replace, (begun, folder / "run.json"))
    first.start()
    assert open_run(folder, "stage1", {"steps": 1}).record["arguments"] == {"steps": 1}
    assert not begun.exists()


def test_a_rank_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("mmfusion.training.run._FIRST_RANK_SECONDS", 0.2)
    with pytest.raises(RunError, match="first rank has not started a run"):
        open_run(tmp_path / "run", "stage1", {"steps": 1})
    assert not (tmp_path / "run").exists()


def test_an_output_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(RunError, match="files that no command wrote"):
        command("stage1")(output=str(tmp_path))


def test_a_base_that_is_no_mmfusion_model_is_refused(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.json"):
        load_base(str(tmp_path))
    with pytest.raises(RunError, match=r"is a 'bert' model, not an mmfusion model.*mmfusion base"):
        load_base(str(outputs / "stage1" / "toy_encoders" / "text"))
    with pytest.raises(ValueError, match=r"'conact'.*concat.*cross_attention"):
        load_base(str(outputs / "stage1"), fusion="conact")


def test_a_processor_that_renders_another_text_is_refused(outputs: Path, tmp_path: Path) -> None:
    model = MMFusionModel.from_pretrained(outputs / "stage1")
    processor = MMFusionProcessor.from_pretrained(outputs / "stage1")
    processor.product_template = "{title} {description}"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"product_template is '\{title\}' in config.json"):
        load_base(str(tmp_path))


def test_base_recipe_assembles_a_model(outputs: Path, tmp_path: Path) -> None:
    backbones = outputs / "stage1" / "toy_encoders"
    command("base")(
        text=str(backbones / "text"),
        vision=str(backbones / "vision"),
        output=str(tmp_path / "base"),
        image_size=(48, 32),
        product_template="{title} {description}",
        model_config={"embedding_dim": 24, "fusion": "concat"},
    )
    model, processor = load_base(str(tmp_path / "base"))
    assert (model.config.embedding_dim, model.config.fusion) == (24, "concat")
    assert processor.template_columns == ["title", "description"]
    assert (processor.image_processor.size["height"], processor.image_processor.size["width"]) == (48, 32)


@pytest.mark.parametrize("arguments", [["--step", "3"], ["--steps", "3", "--hardware.device", "2"]])
def test_a_misspelt_or_abbreviated_flag_is_an_error(arguments: list[str], tmp_path: Path) -> None:
    script = str(CHECKOUT / "recipes" / "stage1.py")
    command = [sys.executable, script, "--output", str(tmp_path / "run"), *arguments]
    done = run_to_end(command)
    assert done.returncode == 2
    assert arguments[-2] in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_refusal_is_one_line_and_not_a_traceback(tmp_path: Path) -> None:
    script = str(CHECKOUT / "recipes" / "stage2.py")
    command = [sys.executable, script, "--base", str(tmp_path), "--output", str(tmp_path / "run")]
    done = run_to_end(command)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("RunError: --base ")
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_a_line_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Nothing) -> None:
        """Does nothing for long."""
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_printed_config_can_be_replayed(tmp_path: Path) -> None:
    script = str(CHECKOUT / "recipes" / "stage2.py")
    changed = ["--steps", "7", "--optimization.learning_rate", "0.5"]
    printed = run_to_end([sys.executable, script, *changed, "--print_config"]).stdout
    assert "steps: 7" in printed
    (tmp_path / "config.yaml").write_text(printed.replace("steps: 7", "steps: 9"))
    again = run_to_end([sys.executable, script, "--config", tmp_path / "config.yaml", "--print_config"]).stdout
    assert again == printed.replace("steps: 7", "steps: 9")
