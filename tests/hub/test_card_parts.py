"""The parts of the card: evidence, measured rows, formula, licences, what a teacher's card says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from markdown_it import MarkdownIt

from hf_distill.hub import StudentCard, render, validate, write
from hf_distill.hub.card import BEGIN, END, with_repo_id
from hf_distill.hub.comparison import size, weight
from hf_distill.hub.exported import add_exports
from hf_distill.hub.files import images_of
from hf_distill.hub.formula import latex, legend
from hf_distill.hub.inherit import LONGEST, local_card
from hf_distill.hub.licences import warnings
from hf_distill.hub.samples import Sample, read_samples, write_samples
from hf_distill.recipe.claims import gain
from hf_distill.training.run_facts import log_rows, measured_carbon
from hf_distill.utils.directions import lower_is_better
from tests.hub.test_card import FACTS, _metadata, _table

MEASURED = {
    "student": {"size_bytes": 36_320_000, "latency_ms": 12.3, "throughput": 650.4},
    "baseline": {"latency_ms": 12.4},
    "teacher": {"size_bytes": 90_852_864, "latency_ms": 41.0, "throughput": 1950.0},
}
EXPORTS = [
    {
        "format": "ONNX int8",
        "file": "onnx/model_int8.onnx",
        "size_bytes": 9_180_000,
        "max_difference": 0.0412,
        "same_argmax": 0.9925,
        "examples": 400,
        "metric": "accuracy",
        "value": 0.7975,
        "float_value": 0.8,
    }
]


def _card(**changes: Any) -> StudentCard:
    return StudentCard(**(copy.deepcopy(FACTS) | changes))


# ---- the claim -----------------------------------------------------------------------------------


def test_a_gain_that_was_not_tested_is_called_so() -> None:
    """A difference between two runs reads as proof that distillation helped."""
    text = render(_card(claim={"metric": "accuracy", "gain": {"value": 0.05}}))
    assert "reaches 0.7500: a difference of +0.0500 (not tested)." in text
    assert "better" not in text.split("## Quick start")[0]


def test_the_claim_has_its_interval_and_its_test() -> None:
    """Numbers without their uncertainty cannot be compared with another card's."""
    interval = {"low": 0.7818, "high": 0.8170, "level": 0.95, "method": "Wilson, over the examples"}
    gain = {"value": 0.05, "low": 0.031, "high": 0.069, "level": 0.95, "p": 0.0078125}
    gain |= {"method": "paired over 8 seeds", "word": "better"}
    claim = {"metric": "accuracy", "interval": interval, "gain": gain}
    text = render(_card(claim=claim))
    assert (
        "(0.8000 ± 0.0021 against 0.8400 on 2,000 test examples; 95 % interval 0.7818 to 0.8170, "
        "Wilson, over the examples)" in text
    )
    assert (
        "a difference of +0.0500 (95 % interval +0.0310 to +0.0690, paired over 8 seeds, "
        "p = 0.0078, better)." in text
    )
    preliminary = render(_card(claim=claim | {"gain": gain | {"word": "preliminary"}}))
    assert "preliminary: fewer than 6 seeds, no claim about the method" in preliminary
    assert "p = " not in preliminary
    validate(text)
    holm = gain | {"p_adjusted": 0.0625, "word": "not distinguishable"}
    assert "p = 0.0078, after Holm 0.062, not distinguishable)." in render(
        _card(claim=claim | {"gain": holm})
    )


def test_unequal_training_arguments_stand_in_the_claim() -> None:
    """A baseline at half the rate loses to its student, and the teacher gets the credit."""
    claim = {"metric": "accuracy", "arguments": "learning_rate = 0.0001 in place of 0.0002"}
    assert (
        "without a teacher, with learning_rate = 0.0001 in place of 0.0002) reaches 0.7500."
        in render(_card(claim=claim))
    )


# ---- the table -----------------------------------------------------------------------------------


def test_measured_rows_stand_under_their_model() -> None:
    """A latency in the wrong column sells the teacher's speed as the student's."""
    hardware = {"hardware": "AMD EPYC, 2 cores", "threads": 1, "batch_size": 8, "dtype": "float32"}
    text = render(_card(measured=MEASURED, measured_on=hardware | {"input": "41 tokens"}))
    assert _table(text, "Size on disk") == ["36.3 MB", "36.3 MB", "90.9 MB"]
    assert _table(text, "Latency, ms per batch") == ["12.3", "12.4", "41"]
    assert _table(text, "Throughput, examples per second") == ["650", "–", "1,950"]
    assert "takes 30 % of its time: 12.3 ms against 41 ms per batch." in text  # 12.3 / 41 = 0.3
    assert (
        "Latency is the median time of one forward pass on 8 examples of 41 tokens in float32, on "
        "AMD EPYC, 2 cores with 1 thread." in text
    )


@pytest.mark.parametrize(
    ("p10", "p90", "said"),
    [
        (38.1, 47.0, "12.3 ms (11.9 to 14.1) against 41 ms (38.1 to 47) per batch."),
        (
            14.0,
            47.0,
            "12.3 ms (11.9 to 14.1) against 41 ms (14 to 47) per batch, not distinguishable ",
        ),
    ],
)
def test_a_latency_has_its_spread(p10: float, p90: float, said: str) -> None:
    """Of two times on a busy machine the smaller one reads as the faster model."""
    measured = copy.deepcopy(MEASURED)
    measured["student"] |= {"p10_ms": 11.9, "p90_ms": 14.1}
    measured["teacher"] |= {"p10_ms": p10, "p90_ms": p90}
    text = render(_card(measured=measured, measured_on={"repeats": 20}))
    assert said in text
    assert _table(text, "Latency, ms per batch")[:2] == ["12.3 (11.9 to 14.1)", "12.4"]
    assert "the median time (in brackets the 10th and 90th percentile of 20 runs) of one" in text


def test_robustness_rows_are_in_the_table() -> None:
    """Whoever reads the first table only would take a brittle student for a sound one."""
    rows = {"accuracy under noise, mean": {"student": 0.61, "baseline": 0.55, "teacher": 0.7}}
    text = render(_card(robustness={"rows": rows}))
    assert _table(text, "accuracy under noise, mean") == ["0.6100", "0.5500", "0.7000"]
    assert "## Robustness" not in text  # rows alone make no section


LANGUAGE = {
    "student": {
        **{"perplexity": 25.5, "entropy": 3.1, "entropy_gap": 0.3, "forward_kl_divergence": 0.42},
        **{"reverse_kl_divergence": 0.51, "acceptance_rate": 0.71, "agreement": 0.64, "ece": 0.03},
    },
    "baseline": {"perplexity": 28.0, "forward_kl_divergence": 0.9},
    "teacher": {"perplexity": 20.0, "entropy": 2.8},
}


def test_figures_of_a_language_model() -> None:
    """An entropy would be claimed as a result, and a teacher's perplexity kept to 127 %."""
    text = render(_card(task="text-generation", results=LANGUAGE, claim={}))
    assert "reaches perplexity 25.50 (lower is better) on 2,000 test examples; its teacher" in text
    assert _table(text, "perplexity") == ["25.50", "28.00", "20.00"]
    assert _table(text, "entropy") == ["3.1000", "–", "2.8000"]
    assert _table(text, "acceptance_rate") == ["0.7100", "–", "–"]
    assert ", retention" not in text
    assert "acceptance_rate: the expected share of draft tokens" in text
    assert _metadata(text)["metrics"] == ["perplexity", "ece"], "what is a result of the student"
    swapped = {role: dict(reversed(rows.items())) for role, rows in LANGUAGE.items()}
    assert "reaches perplexity 25.50" in render(_card(results=swapped, claim={}))
    assert "acceptance_rate" not in render(_card()), "of a classifier nothing is explained"


def test_of_which_figures_less_is_better() -> None:
    """A student that is worse would be called better, or the other way round."""
    less = (
        "perplexity",
        "teacher_perplexity",
        "forward_kl_divergence",
        "reverse_kl_divergence",
        "ece",
        "nll",
        "loss",
    )
    more = ("accuracy", "agreement", "acceptance_rate", "next_token", "f1", "rouge", "bleu")
    assert all(lower_is_better(metric) for metric in (*less, "wer", "bits_per_byte", "word_ppl"))
    assert not any(lower_is_better(metric) for metric in more)


# ---- what the models write -----------------------------------------------------------------------

SAMPLES = [Sample(f"Prompt {n}:", {"student": "one", "teacher": "two"}) for n in range(7)]


def test_samples_stand_side_by_side(tmp_path: Path) -> None:
    """The teacher's text under the student's name would sell a model that nobody can load."""
    texts = {"student": "a tale\n\nof one", "teacher": "a tale of two", "baseline": "(nothing)"}
    write_samples([Sample("It was", texts)], tmp_path)
    text = render(_card(samples=read_samples(tmp_path)))
    section = text.split("## Samples")[1].split("## Distillation")[0]
    rows = section.replace("  ", "").split("- ")
    assert [row.split(":")[0] for row in rows[1:]] == [
        *("**Prompt 1**", "Teacher", "Baseline (no teacher)", "Student")
    ]
    assert [row.split("```text\n")[1].split("\n```")[0] for row in rows[1:]] == [
        *("It was", "a tale of two", "(nothing)", "a tale\n\nof one")
    ]
    validate(text)
    assert "## Samples" not in render(_card())


def test_many_and_long_samples_are_cut_visibly() -> None:
    """A card of a hundred pages is read by nobody, and a text cut in silence ends as it did not."""
    rows: list[dict[str, Any]] = [{"prompt": one.prompt, "texts": one.texts} for one in SAMPLES]
    text = render(_card(samples=rows))
    assert "first 5 of 7 prompts" in text
    assert "Prompt 4:" in text
    assert "Prompt 5:" not in text
    text = render(_card(samples=[{"prompt": "Go", "texts": {"student": "word " * 1000}}]))
    shown = next(line for line in text.splitlines() if "word word" in line).strip()
    assert len(shown) <= 800
    assert shown.endswith(" […]")


HOSTILE = "\n".join(
    [
        *("## Data", "```", "</details><script>alert(1)</script>", "| a | None |", "````yaml"),
        *("![x](y.png)", "More information needed", "[]()", "~~~", END, 'model_id = "evil/x"'),
        *("## Other formats", "HF_TOKEN=hf_" + "aB3x" * 9, "/home/me/secret/file", "$$x$$", "---"),
    ]
)


def test_hostile_samples_stay_in_their_fence(tmp_path: Path) -> None:
    """A student says what it read: it could end its block, show pictures, and speak as the card."""
    rows = [{"prompt": HOSTILE, "texts": {"student": HOSTILE, HOSTILE: HOSTILE}}]
    card = _card(samples=rows, plots=[])
    text = render(card)
    validate(text)
    assert "aB3x" not in text
    assert "/home/me" not in text
    assert not images_of(text)
    tokens = MarkdownIt("commonmark").parse(text.split(BEGIN)[1].split(END)[0])
    fences = [t.content for t in tokens if t.type == "fence" and "## Other formats" in t.content]
    assert len(fences) == 3
    assert all(fence.count("alert(1)") == 1 for fence in fences)
    titles = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    assert "Other formats" not in titles
    assert titles.count("Data") == 1
    write(card, tmp_path)
    add_exports(tmp_path, EXPORTS)
    exported = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert exported.count("| ONNX int8") == 1
    assert exported.replace("\n", "").count("alert(1)") == text.count("alert(1)"), "nothing was cut"
    assert 'model_id = "evil/x"' in with_repo_id(text, "me/student")


def test_a_file_that_holds_no_samples(tmp_path: Path) -> None:
    """A file of that name by somebody else would end a push after days of training."""
    assert read_samples(tmp_path) == []
    (tmp_path / "samples.json").write_text('{"prompt": "x"}')
    with pytest.warns(UserWarning, match="leaves the samples out"):
        assert read_samples(tmp_path) == []


# ---- exported files ------------------------------------------------------------------------------


def test_exported_files_are_listed() -> None:
    """The int8 file would be used without anyone knowing what it costs."""
    text = render(_card(exports=EXPORTS))
    row = next(line for line in text.splitlines() if line.startswith("| ONNX int8"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("ONNX int8", "`onnx/model_int8.onnx`", "9.18 MB", "0.0412", "99.2 %"),
        *("accuracy 0.7975", "0.8000"),
    ]
    validate(text)


def test_exports_come_into_a_card_that_is_there(tmp_path: Path) -> None:
    """An export a week after the training would be missing from the card, or cost its prose."""
    path = write(_card(), tmp_path)
    theirs = "\n## Thanks\n\nTo Ada.\n"
    path.write_text(path.read_text(encoding="utf-8") + theirs, encoding="utf-8")
    for _ in range(2):  # a second export takes the first one's place
        assert add_exports(tmp_path, EXPORTS) == path
    assert path.read_text(encoding="utf-8") == render(_card(exports=EXPORTS)) + theirs
    path.write_text("# Mine\n", encoding="utf-8")
    assert add_exports(tmp_path, EXPORTS) is None
    assert path.read_text(encoding="utf-8") == "# Mine\n"


def test_exports_come_into_a_short_card(tmp_path: Path) -> None:
    """A card without any section has no place to put them before."""
    path = write(StudentCard("me/bare"), tmp_path)
    add_exports(tmp_path, EXPORTS)
    text = path.read_text(encoding="utf-8")
    assert text == render(StudentCard("me/bare", exports=EXPORTS))
    assert text.index(BEGIN) < text.index("| ONNX int8") < text.index(END)


# ---- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ({"name": "hard_labels", "weight": 0.3}, r"0.3\, \mathrm{CE}(y, q)"),
        (
            {"name": "forward_kl", "settings": {"temperature": 4.0, "t_squared": True}},
            r"4^2\, \mathrm{KL}(p_{T=4} \,\|\, q_{T=4})",
        ),
        (
            {"name": "reverse_kl", "settings": {"temperature": 2.0, "t_squared": False}},
            r"\mathrm{KL}(q_{T=2} \,\|\, p_{T=2})",
        ),
        ({"name": "reverse_kl", "settings": {"temperature": 1.0}}, r"\mathrm{KL}(q \,\|\, p)"),
        (
            {"name": "weight_decay", "weight": 2, "settings": {"strength": 1e-5, "target": "init"}},
            r"2 \cdot 10^{-5}\, \lVert \theta - \theta_0 \rVert^2",
        ),
        (
            {"name": "hidden_states", "settings": {"distance": "cosine"}},
            r"\bigl(1 - \cos(h_q, h_p)\bigr)",
        ),
        (
            {"name": "forward_kl", "weight": {"start": 1.0, "end": 0.0}},
            r"w_\mathrm{forward\,kl}\, \mathrm{KL}(p \,\|\, q)",
        ),
        ({"name": "my_own$loss"}, r"\mathcal{L}_\mathrm{my\,own\,loss}"),
    ],
)
def test_the_formula(term: dict[str, Any], expected: str) -> None:
    """A factor T² or a direction of KL that is not what was trained misleads who repeats it."""
    assert latex([term]) == rf"\mathcal{{L}} = {expected}"


def test_the_legend_names_the_symbols_of_the_formula_and_no_others() -> None:
    """A symbol without meaning cannot be read; one that is not there is searched for."""
    terms = [{"name": "hard_labels"}, {"name": "forward_kl", "settings": {"temperature": 2.0}}]
    assert [part.split(":")[0] for part in legend(terms).split("; ")] == [
        "*p*",
        "*q*",
        "*y*",
        "*T*",
    ]
    assert legend([{"name": "logit_mse"}]).startswith("*z*")


# ---- licences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "source", "told"),
    [
        ("mit", "apache-2.0", None),
        ("apache-2.0", "cc-by-4.0", None),
        ("apache-2.0", "cc-by-nc-4.0", "conditions on derived models"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", None),
        ("mit", "cc-by-sa-3.0", "conditions on derived models"),
        ("cc-by-sa-3.0", "cc-by-sa-3.0", None),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "conditions on derived models"),
        ("gpl-3.0", "gpl-3.0", None),
        ("mit", "agpl-3.0", "conditions on derived models"),
        ("mit", "llama3", "conditions on derived models"),
        ("mit", "llama3.1", "conditions on derived models"),
        ("llama3.1", "llama3.1", None),
        ("apache-2.0", "gemma", "conditions on derived models"),
        ("mit", "bigscience-openrail-m", "conditions on derived models"),
        ("mit", "other", "check its terms"),
        (None, "mit", "No licence is stated"),
    ],
)
def test_licence_conflicts(student: str | None, source: str, told: str | None) -> None:
    """A non-commercial teacher behind an Apache-2.0 student makes its users break a contract."""
    found = warnings(student, {"the teacher": source})
    if told is None:
        assert found == []
    else:
        assert any(told in line for line in found)
        assert all("check" in line for line in found)


def test_a_conflict_is_in_the_card() -> None:
    """Known to the code and not said to the reader."""
    teacher = FACTS["teacher"] | {"license": "cc-by-nc-4.0"}
    text = render(_card(teacher=teacher))
    section = text.split("## Licences")[1].split("\n## ")[0]
    assert "| This student | apache-2.0 |" in section
    assert (
        "| The teacher: [org/large](https://huggingface.co/org/large) | cc-by-nc-4.0 |" in section
    )
    assert "| The base model: [org/mini](https://huggingface.co/org/mini) | not stated |" in section
    assert "| The data: [org/films](https://huggingface.co/datasets/org/films) | mit |" in section
    assert "- ⚠️ The licence of the teacher, cc-by-nc-4.0, may have conditions" in section
    assert "not legal advice" in section
    assert "⚠️" not in render(_card())
    validate(text)


# ---- the teacher ---------------------------------------------------------------------------------


def test_the_teachers_own_card_is_quoted(tmp_path: Path) -> None:
    """A bias that the teacher's authors warn of goes on unmentioned."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\n# Large\n\n```python\n# Limitations of nothing\n```\n\n"
        "## Bias, Risks and Limitations\n\nIt prefers [long](https://a.org) *reviews* much.\n\n"
        "## Use\n\nx\n"
    )
    found = local_card(str(tmp_path))
    assert found == {"license": "cc-by-4.0", "quote": "It prefers long reviews much."}
    text = render(_card(teacher=FACTS["teacher"] | {"quote": found["quote"]}))
    assert "relevant for the student" in text
    assert "> It prefers long reviews" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# T\n",
        "## Limitations\n\n[More Information Needed]\n",
        "---\na: [\n---\n",
        "---\n- x\n---\n## Limitations\n",
        "## Limitations\n\n<!-- to be written -->\n",
    ],
)
def test_a_teachers_card_without_a_word_gives_none(tmp_path: Path, text: str) -> None:
    """Somebody else's filler or broken YAML would end in our card, or end our run."""
    (tmp_path / "README.md").write_text(text)
    assert local_card(str(tmp_path)) == {}
    assert local_card(str(tmp_path / "nothing")) == {}
    assert local_card(None) == {}


def test_a_long_section_is_cut_at_a_sentence(tmp_path: Path) -> None:
    """Pages of another card would bury our own limitations."""
    (tmp_path / "README.md").write_text("## Limitations\n\n" + "It is small. " * 200)
    quote = local_card(str(tmp_path))["quote"]
    assert quote.endswith("small. …")
    assert len(quote) <= LONGEST + 2


# ---- metadata, results, carbon, log --------------------------------------------------------------


def test_eval_results_are_what_the_hub_reads(tmp_path: Path) -> None:
    """A file of another shape is skipped by the Hub without a word."""
    write(_card(), tmp_path, eval_results=True)
    text = (tmp_path / ".eval_results" / "films.yaml").read_text(encoding="utf-8")
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/films", "en", 0.8)
    assert entry.notes == "accuracy, split test, 2,000 examples"
    with pytest.raises(ValueError, match="a data set of the Hub, got accuracy on films"):
        write(_card(data={"name": "films"}), tmp_path, eval_results=True)
    assert not (tmp_path / "none").exists()


def test_a_fine_tuned_teacher_is_not_the_model_it_was_made_from() -> None:
    """The Hub would say that the base model itself was distilled."""
    teacher = FACTS["teacher"] | {"how": "fine-tuned on films"}
    text = render(_card(teacher=teacher))
    assert "teacher_model" not in _metadata(text)
    assert "its teacher [org/large](https://huggingface.co/org/large) fine-tuned on films" in text


def test_measured_carbon_is_told_in_both_places(tmp_path: Path) -> None:
    """Kilograms under a key that means grams are wrong by a thousand."""
    (tmp_path / "emissions.csv").write_text(
        "run_id,emissions,energy_consumed,country_name,cpu_model,gpu_model,codecarbon_version\n"
        "a,0.001,0.002,Norway,old,,3.3.1\nb,0.0123,0.041,Norway,AMD EPYC,,3.3.1\n"
    )
    text = render(_card(carbon=measured_carbon(tmp_path)))
    found = _metadata(text)["co2_eq_emissions"]
    assert found["emissions"] == pytest.approx(12.3)
    assert (found["source"], found["hardware_used"]) == ("codecarbon 3.3.1", "AMD EPYC")
    assert "an estimated 12.3 g of CO₂-equivalents with 41 Wh on AMD EPYC in Norway" in text
    assert measured_carbon(tmp_path / "none") == {}


def test_the_log_is_short_and_ends_at_the_end() -> None:
    """A thousand rows make the card unreadable; without the last one the result has no source."""
    history = [{"step": 0, "eval_loss": 9.0}]  # before training: no training loss yet
    for step in range(1, 101):
        history += [{"step": step, "loss": 1 / step}, {"step": step, "eval_loss": 2 / step}]
    rows = log_rows(history)
    assert len(rows) == 12
    assert rows[-1] == {"step": 100, "training loss": 0.01, "validation loss": 0.02}
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert log_rows([]) == []
    text = render(_card(history=rows))
    assert "| step | training loss | validation loss |" in text
    assert "| 100 | 0.01 | 0.02 |" in text


def test_sizes_in_three_digits() -> None:
    """`1e+03 MB` and `1000 kB` are read twice; a card and a dry run say the same of one file."""
    sizes = (12, 999_400, 999_600, 28_072, 999_900_000, 4e9, 1.2345e12)
    shown = ["12 B", "999 kB", "1 MB", "28.1 kB", "1 GB", "4 GB", "1,234 GB"]
    assert [weight(number) for number in sizes] == shown
    assert [size(number) for number in (999, 999_600, 22_713_986)] == ["999", "1 M", "22.7 M"]


@pytest.mark.parametrize(
    ("differences", "higher_is_better", "word"),
    [
        ([0.02], True, None),
        ([0.02, 0.03], True, "preliminary"),
        ([0.02, 0.03, 0.01, 0.02, 0.03, 0.01, 0.02, 0.03], True, "better"),
        ([0.02, 0.03, 0.01, 0.02, 0.03, 0.01, 0.02, 0.03], False, "worse"),
        ([0.02, -0.03, 0.01, -0.02, 0.03, -0.01, 0.02, -0.03], True, "not distinguishable"),
    ],
)
def test_a_claim_has_the_word_of_its_test(
    differences: list[float], higher_is_better: bool, word: str | None
) -> None:
    """A card that says "better" of two lucky seeds is what this project was made against."""
    alone = [0.7 + 0.001 * n for n in range(len(differences))]
    ours = [one + more for one, more in zip(alone, differences, strict=True)]
    found = gain("accuracy", ours, alone, higher_is_better)
    assert found.get("word") == word
    assert ("p" in found) == (len(differences) >= 6)
    assert ("why" in found) == (1 < len(differences) < 6)
    assert found["value"] == pytest.approx(sum(differences) / len(differences))
    results = {"student": {"accuracy": ours[0]}, "baseline": {"accuracy": alone[0]}}
    claimed = {"metric": "accuracy", "gain": found}
    text = render(StudentCard("tiny", results=results, claim=claimed))
    assert f"{word or 'not tested'}" in text
    assert ("better" in text) == (word == "better")
    assert ("p = " in text) == ("p" in found)
    assert ("2 pairs of seeds the least is 0.5" in text) == (word == "preliminary")
