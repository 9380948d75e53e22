"""Recipes are the same list of stages as code, and tell the line of each mistake."""

import pytest

import sgdap
from sgdap.compression import recipes


@pytest.mark.parametrize("name", ["mobile-int8", "tiny-flash", "server-latency", "sparse-2:4"])
def test_recipes_that_come_with_sgdap(name, tmp_path):
    stages = sgdap.load_recipe(name)
    recipes.save_recipe(stages, tmp_path / "again.yaml")
    assert sgdap.load_recipe(tmp_path / "again.yaml") == stages


def test_a_recipe_is_the_list_in_code(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "# what I ship\n"
        "- prune: {flops: 0.3, layers: ['conv*'], epochs: 3}\n"
        "- distill\n"
        "- quantize:\n"
        "    scheme: {class_name: Affine, config: {bits: 4, per: 32}}\n"
        "    overrides: {end: int8}\n"
        "- pack: {path: a.sgdap}\n"
    )
    assert sgdap.load_recipe(path) == [
        sgdap.Prune(flops=0.3, layers=["conv*"], epochs=3),
        sgdap.Distill(),
        sgdap.Quantize(
            {"class_name": "Affine", "config": {"bits": 4, "per": 32}}, overrides={"end": "int8"}
        ),
        sgdap.Pack("a.sgdap"),
    ]


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("- prune: {flops: 0.5}\n- cut: {flops: 1}\n", 2, "No stage is called 'cut'"),
        ("- prune: {flop: 0.5}\n", 1, "'prune' takes no 'flop'"),
        ("\n- prune: {flops: 50}\n- sparsify: {sparsity: 2}\n", 3, "share of zeros"),
        ("- quantize: {scheme: int4}\n\n- sparsify: {sparsity: 0.5}\n", 3, "Put Sparsify before"),
        ("- prune: [1]\n", 1, "has arguments with names"),
        ("- prune: {flops: 0.5}\n  pack: {path: a}\n", 1, "a stage is a name"),
        ("prune: {flops: 0.5}\n", 1, "a recipe is a list"),
        ("- prune: {flops: 0.5\n- pack\n", 3, "no YAML"),
        ("- prune: !!python/object/apply:os.getcwd []\n", 1, "no YAML"),
        ("", 1, "a recipe is a list"),
    ],
)
def test_mistakes_name_their_line(text, line, words, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml, line {line}: .*{words}"):
        sgdap.load_recipe(path)


def test_a_recipe_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="mobile-int8"):
        sgdap.load_recipe("mobile")
