"""Draws fpi-ablation.png, the picture of the README, from model_cards/ablations/fpi.csv: python fpi_ablation.py."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
NUMBERS = HERE.parents[1] / "model_cards" / "ablations" / "fpi.csv"
NAMES = {
    "bm25": "BM25",
    "text_only": "text only",
    "image_only": "photo only",
    "naive_concat": "concatenation, frozen encoders",
    "concat": "concatenation",
    "weighted_mean_learned": "weighted mean",
    "cross_attention": "cross-attention",
    "gated": "gated fusion (default)",
}
METRICS = {"recall@100": "Recall@100", "ndcg@10": "nDCG@10"}


def main() -> None:
    with NUMBERS.open(encoding="utf-8") as file:
        overall = [row for row in csv.DictReader(file) if row["perturbation"] == "none" and not row["column"]]
    found = {(row["variant"], row["metric"]): row for row in overall if row["seed"] == "mean" and row["mean"]}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), METRICS.items(), strict=True):
        base = float(found["text_only", metric]["mean"])
        axes.axvline(100 * base, color="grey", linestyle="--", linewidth=1, zorder=0)
        for place, variant in enumerate(NAMES):
            row = found[variant, metric]
            mean = 100 * float(row["mean"])
            axes.barh(place, mean, 0.68, color="#c2410c" if variant == "gated" else "#94a3b8")
            ends = [mean]
            if row["text_only_low"]:
                ends = [100 * (base + float(row[f"text_only_{end}"])) for end in ("low", "high")]
                axes.plot(ends, [place, place], color="black", linewidth=1.2, marker="|", markersize=6)
            axes.text(max(mean, *ends) + 1.5, place, f"{mean:.1f}", va="center", fontsize=8, backgroundcolor="white")
        axes.set_xlim(0, 112)
        axes.set_xlabel(f"{title}, per cent", fontsize=9)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_yticks(range(len(NAMES)), NAMES.values())
    axes.set_ylim(len(NAMES) - 0.5, -0.5)
    figure.suptitle(
        "670 test queries over 4,696 fashion products, means of three seeds; whiskers: 95 % interval of the difference "
        "to text only.\nSynthetic queries; grades derived from the retailer's attributes, no human judged them.",
        fontsize=8,
    )
    figure.savefig(HERE / "fpi-ablation.png", dpi=130)


if __name__ == "__main__":
    main()
