"""Every recipe composes and resolves, and the task it names can be learnt by the model it chooses."""

import json
from pathlib import Path

import pytest

from distllm.config.compose import PACKAGE_CONF, compose
from distllm.config.resolve import resolve

RECIPES = {
    "causal_lm": ("causal_lm", "decoder"),
    "masked_lm": ("masked_lm", "encoder"),
    "span_corruption": ("span_corruption", "encoder_decoder"),
    "translate": ("seq2seq", "encoder_decoder"),
    "translate_decoder": ("seq2seq", "decoder"),
    "summarise": ("seq2seq", "decoder"),
    "qa_extractive": ("extractive_qa", "encoder"),
    "qa_generative": ("instruct", "decoder"),
    "embed": ("contrastive", "encoder"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves(recipe):
    config = compose([f"experiment={recipe}"])
    settled = resolve(config, starts_here=False)
    assert (config.task.name, config.model.family) == RECIPES[recipe]
    assert config.name == recipe
    assert settled.shape.num_params < 10_000_000
    assert settled.max_steps <= 1000


LARGE = {"decoder": "llama-1b", "encoder": "modernbert-base", "encoder_decoder": "t5-base"}


@pytest.mark.slow
def test_at_scale_a_recipe_has_the_model_that_was_chosen_and_nothing_of_its_small_one():
    chosen = {family: compose([f"model={name}"]).model for family, name in LARGE.items()}
    for recipe, (_, family) in RECIPES.items():
        assert compose([f"experiment={recipe}", f"model={LARGE[family]}"]).model == chosen[family], recipe


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_at_scale_a_recipe_needs_another_model_and_another_machine_only(recipe):
    large = f"model={LARGE[RECIPES[recipe][1]]}"
    for cluster in ("h100", "slurm-gpu8"):
        settled = resolve(compose([f"experiment={recipe}", large, f"cluster={cluster}"]), starts_here=False)
        assert settled.world.size == 8
        assert settled.shape.num_params > 90_000_000


def test_at_scale_preferences_need_another_model_to_begin_with_and_another_machine_only(tmp_path):
    """A folder's config.json says all that is asked before a run; the weights are read by the ranks."""
    large = {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(large))
    begin = [f"model.init_from={tmp_path}", f"tokenizer.path={tmp_path}"]
    for cluster in ("h100", "slurm-gpu8"):
        config = compose(["experiment=dpo", "model=hf", *begin, f"cluster={cluster}"])
        settled = resolve(config, starts_here=False)
        assert settled.world.size == 8
        assert settled.shape.num_params > 1_000_000_000


def test_preferences_ask_for_the_model_to_begin_with():
    config = compose(["experiment=dpo"])
    assert config.task.name == "dpo"
    with pytest.raises(Exception, match="needs a trained model"):
        resolve(config, starts_here=False)


def test_hiding_needs_its_special_tokens():
    assert compose(["experiment=masked_lm"]).tokenizer.special_tokens == ("<|mask|>",)
    spans = compose(["experiment=span_corruption"]).tokenizer.special_tokens
    assert spans[:2] == ("<extra_id_0>", "<extra_id_1>")


def test_every_recipe_says_what_it_is_for():
    for recipe in (*RECIPES, "dpo"):
        lines = (PACKAGE_CONF / "experiment" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
        assert lines[1].startswith("# ")
        assert lines[1].endswith(".")


@pytest.mark.parametrize("recipe", [*RECIPES, "dpo"])
def test_every_recipe_has_a_page_with_its_command_its_curve_and_a_table_beside_a_baseline(recipe):
    pages = Path(__file__).parents[2] / "docs" / "recipes"
    page = (pages / f"{recipe}.md").read_text(encoding="utf-8")
    assert f"\ndistllm train experiment={recipe}" in page
    assert f"\ndistllm evaluate run={recipe}" in page
    assert f"]({recipe}.png)" in page
    assert (pages / f"{recipe}.png").read_bytes().startswith(b"\x89PNG")
    assert "\n|---|" in page
    assert f"]({recipe}.md)" in (pages / "index.md").read_text(encoding="utf-8")
