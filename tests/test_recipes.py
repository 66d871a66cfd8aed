"""Recipes: the table, and what a TOML file may change of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from saqm.adaptation import ALIGNMENTS, Alignment
from saqm.errors import TrainingError
from saqm.loop import LoopConfig, described
from saqm.pretrain import TWO_STAGES, PretrainConfig
from saqm.recipes import RECIPES, Recipe, changed_by, read_recipe


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# The table


def test_table_names_each_recipe_and_whose_scores_it_reads() -> None:
    assert {name: recipe.scored_on for name, recipe in RECIPES.items()} == {
        "paper": ("target",),
        "target-only": ("target",),
        "source-only": ("source",),
        "pooled": ("source", "target"),
        "unsupervised": ("source",),
        "semi-supervised": ("source", "target"),
        "paper-unsupervised": ("source",),
        "paper-semi-supervised": ("source", "target"),
    }
    assert all(recipe.name == name and read_recipe(name) is recipe for name, recipe in RECIPES.items())


def test_domains_differ_and_nothing_else() -> None:
    ours = RECIPES["target-only"]
    for name in ("source-only", "pooled"):
        assert replace(RECIPES[name], name=ours.name, scored_on=ours.scored_on) == ours


def test_both_domains_are_met_where_they_are_aligned_or_standardised_apart() -> None:
    met = {name: recipe.meets for name, recipe in RECIPES.items()}
    assert met["target-only"] == met["paper"] == ("target",)
    assert met["source-only"] == ("source",)
    both = ("pooled", "unsupervised", "semi-supervised", "paper-unsupervised", "paper-semi-supervised")
    assert all(met[name] == ("source", "target") for name in both)
    control = RECIPES["source-only"]
    apart = replace(control, teaching=replace(control.teaching, standardise="by-domain"))
    assert apart.meets == ("source", "target")


def test_adaptation_differs_from_its_controls_in_what_it_says() -> None:
    for name, control in (("unsupervised", "source-only"), ("semi-supervised", "pooled")):
        ours, other = RECIPES[name], RECIPES[control]
        assert ours.aligned and not other.aligned  # noqa: PT018
        unaligned = replace(ours, name=control, aligned=False)
        assert replace(unaligned, teaching=replace(ours.teaching, standardise="shared")) == other
    for name, control in (("paper-unsupervised", "paper"), ("paper-semi-supervised", "paper")):
        ours, paper = RECIPES[name], RECIPES[control]
        assert ours.alignment == ALIGNMENTS["paper"]
        assert ours.aligned
        changed = replace(ours, name="paper", aligned=False, scored_on=paper.scored_on, alignment=paper.alignment)
        assert changed == paper


def test_paper_recipe_is_the_paper_s() -> None:
    recipe = RECIPES["paper"]
    arch, teaching = recipe.architecture, recipe.teaching
    assert (arch.width, arch.trunks, arch.norm, arch.pool) == (1.0, "separate", "none", "max")
    assert (arch.members, arch.weighted) == (1, False)
    assert (teaching.loss, teaching.level, teaching.trains, teaching.epochs) == ("bce", "window", "all", 100)
    assert (teaching.order, teaching.ladders, recipe.aligned) == (0, 0, False)
    assert teaching.loop == LoopConfig(
        learning_rate=5e-4, optimiser="adam", weight_decay=0, schedule="constant", clip_norm=None, precision="32"
    )
    assert (recipe.preparation.patch, recipe.preparation.stride, recipe.preparation.channels) == (32, 32, "rgb")


def test_shipped_recipe_fits_the_towers_that_pre_training_makes() -> None:
    towers, ours = PretrainConfig().architecture, RECIPES["target-only"].architecture
    assert replace(ours, hidden=towers.hidden, members=towers.members, weighted=towers.weighted) == towers
    assert RECIPES["target-only"].preparation == PretrainConfig().preparation


# Files


def test_file_changes_nested_fields_and_nothing_else(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        base = "paper"
        scored_on = ["source", "target"]
        [architecture]
        width = 1
        hidden = [32, 16]
        [teaching]
        epochs = 3
        [teaching.loop]
        optimiser = "adamw"
        clip_norm = 2.5
        """,
    )
    paper = RECIPES["paper"]
    assert read_recipe(str(path)) == read_recipe(path) == Recipe(
        name="mine",
        scored_on=("source", "target"),
        aligned=False,
        architecture=replace(paper.architecture, hidden=(32, 16)),
        preparation=paper.preparation,
        teaching=replace(
            paper.teaching, epochs=3, loop=replace(paper.teaching.loop, optimiser="adamw", clip_norm=2.5)
        ),
    )  # fmt: skip
    assert RECIPES["paper"].teaching.epochs == 100  # the table itself is left alone


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ('alignment = "mmd"', ALIGNMENTS["mmd"]),
        ('[alignment]\nbase = "grl"\nweight = 1\npace = 5', replace(ALIGNMENTS["grl"], weight=1, pace=5)),
        ('[alignment]\nweight = 0.5\ntap = "image"', replace(ALIGNMENTS["coral"], weight=0.5, tap="image")),
    ],
)
def test_file_names_an_alignment_and_changes_it(tmp_path: Path, lines: str, wanted: Alignment) -> None:
    recipe = read_recipe(written(tmp_path, f'base = "unsupervised"\n{lines}'))
    assert recipe.alignment == wanted
    assert recipe.aligned


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('alignment = "mdd"', r"mine.toml: alignment: base is 'mdd'; known are paper, grl, coral"),
        ("alignment = 3", r"mine.toml: alignment is a name or a table, not 3"),
        ('[alignment]\nkind = "mmd"', r"alignment: write base = one of paper, grl, .*, whose weight suits its kind"),
        ("[alignment]\nweigth = 1", r"alignment: unknown field 'weigth'; did you mean 'weight'"),
        ('[alignment]\ntap = "head"', r"alignment: tap is 'head'; wanted one of 'window', 'value', 'image'"),
        ('[teaching]\nstandardise = "by-side"', r"standardise is 'by-side'; wanted one of 'shared', 'by-domain'"),
    ],
)
def test_what_is_wrong_with_an_alignment_is_said(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_recipe(written(tmp_path, f'base = "unsupervised"\n{lines}'))


def test_what_came_later_is_no_part_of_an_older_description() -> None:
    for name in ("target-only", "paper"):
        old = described(RECIPES[name])
        assert set(old) == {"name", "scored_on", "aligned", "architecture", "preparation", "teaching"}
        assert "standardise" not in old["teaching"]
        assert "momentum" not in old["teaching"]["loop"]
    assert "momentum" not in described(TWO_STAGES)["then"]["loop"]
    new = described(replace(RECIPES["unsupervised"], transductive=True, labelled=0.5))
    assert (new["transductive"], new["labelled"], new["alignment"]["kind"]) == (True, 0.5, "coral")
    assert new["teaching"]["standardise"] == "by-domain"


def test_file_may_name_itself(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, 'base = "pooled"\nname = "ours"')).name == "ours"


def test_unknown_recipe_is_told_the_known() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'papr'; known are paper, target-only, .*or give a \.toml file"):
        read_recipe("papr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "paper"\nepochs = 3', r"mine.toml: unknown field 'epochs'; known are name, scored_on"),
        ('base = "paper"\n[teaching]\nepoch = 3', r"mine.toml: teaching: unknown field 'epoch'; did you mean 'epochs'"),
        (
            'base = "paper"\n[teaching.loop]\nlearningrate = 3',
            r"teaching: loop: unknown field 'learningrate'; did you mean 'learning_rate'\?",
        ),
        ("name = 'x'", r"mine.toml: base is None; write base = one of paper, target-only"),
        ("base = 'papers'", r"base is 'papers'; write base = one of paper"),
        ("base = ['paper']", r"base is \['paper'\]; write base = one of paper"),
        ("base = 'paper", r"mine.toml: cannot be read as a recipe"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "line", "wanted"),
    [
        ("teaching", 'epochs = "3"', "epochs is '3'; wanted int, such as 100"),
        ("teaching", "epochs = 3.5", "epochs is 3.5; wanted int"),
        ("teaching", "epochs = true", "epochs is True; wanted int"),
        ("teaching", 'order = "much"', "order is 'much'; wanted float, such as 0.0"),
        ("teaching", "loop = 3", "loop is a table, not 3"),
        ("teaching", 'loss = "mse"', "loss is 'mse'; wanted one of 'bce', 'smooth-l1', such as 'bce'"),
        ("architecture", "hidden = 256", r"hidden is 256; wanted tuple\[int, ...\], such as \(256,\)"),
        ("architecture", 'hidden = ["a"]', r"hidden is \['a'\]; wanted tuple"),
        ("architecture", 'trunks = "one"', "trunks is 'one'; wanted one of 'separate', 'shared'"),
        ("architecture", "weighted = 1", "weighted is 1; wanted bool, such as False"),
        ("preparation", "mean = [0.5, 0.5]", r"mean is \[0.5, 0.5\]; wanted tuple\[float, float, float\]"),
        ("teaching.loop", 'clip_norm = "no"', r"clip_norm is 'no'; wanted float \| None, such as None"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, table: str, line: str, wanted: str) -> None:
    with pytest.raises(TrainingError, match=wanted):
        read_recipe(written(tmp_path, f'base = "paper"\n[{table}]\n{line}'))


def test_one_name_is_no_list_of_sides(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="scored_on is 'target'; wanted tuple"):
        read_recipe(written(tmp_path, 'base = "paper"\nscored_on = "target"'))
    with pytest.raises(TrainingError, match=r"scored_on is \['goal'\]; wanted tuple"):
        read_recipe(written(tmp_path, 'base = "paper"\nscored_on = ["goal"]'))


def test_missing_file_and_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none.toml: cannot be read as a recipe: .*No such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match=r"bytes.toml: cannot be read as a recipe"):
        read_recipe(tmp_path / "bytes.toml")


def test_pre_training_is_changed_the_same_way() -> None:
    changed = changed_by(PretrainConfig(), {"steps": 5, "architecture": {"width": 0.125}}, "here")
    assert changed == replace(
        PretrainConfig(), steps=5, architecture=replace(PretrainConfig().architecture, width=0.125)
    )
    with pytest.raises(TrainingError, match="here: unknown field 'stepz'; did you mean 'steps'"):
        changed_by(PretrainConfig(), {"stepz": 5}, "here")
