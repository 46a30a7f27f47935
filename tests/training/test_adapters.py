"""Models with adapters of peft through the trainer: what trains, what is saved, and how a training goes on."""

import ast
from pathlib import Path

import pytest
import timm
import torch
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors import safe_open
from tiny_models import PLAIN
from transformers import AutoModelForImageClassification, pipeline

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments, ThreatModel
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import evaluate_robustness
from hf_robust_transfer.hub.card import model_card, read_facts
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.adapters import merged
from hf_robust_transfer.modeling.attack_copy import attack_copy
from hf_robust_transfer.modeling.fingerprint import fingerprint
from hf_robust_transfer.transfer import describe, eval_where_frozen, freeze

# kind: what LoRA adapts, and the head
TARGETS = {
    "timm-vit": (["qkv", "fc1"], "head"),
    "timm-resnet": (["conv1", "conv2"], "fc"),
    "hf-vit": (["q_proj", "v_proj"], "classifier"),
    "hf-convnext": (["pwconv1", "pwconv2"], "classifier"),
}


@pytest.fixture
def base(tiny):
    """A function (kind) -> a tiny model, no residual branch of which begins at zero as in timm; and its processor."""

    def make(kind="timm-vit"):
        model, processor = tiny(kind)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        return model, processor

    return make


@pytest.fixture
def adapted(base):
    """A function (kind, **LoRA's options) -> a tiny model with an adapter, its head trained whole; and its processor."""

    def make(kind="timm-vit", config=LoraConfig, **options):
        targets, head = TARGETS[kind]
        options = {"target_modules": targets, "modules_to_save": [head], **options}
        if config is LoraConfig:
            options = {"r": 4, **options}
        model, processor = base(kind)
        return get_peft_model(model, config(**options)), processor

    return make


@pytest.fixture
def trainer_of(digit_batch, tmp_path):
    """A function (model and processor, kind, **arguments) -> a trainer of it on digits; LwF's teacher is a copy of it."""

    def make(model, processor, kind="timm-vit", count=24, **arguments):
        images, labels = digit_batch(32 if kind.endswith("resnet") else 8, count)
        data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
        arguments = {"output_dir": str(tmp_path / "run"), "save_strategy": "no", "eval_attack_steps": 2, **arguments}
        args = RobustTrainingArguments(
            **{**PLAIN, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8}
            | arguments
        )
        return RobustTrainer(model, args, processing_class=processor, train_dataset=data, eval_dataset=data)

    return make


def images_of(trainer):
    return torch.stack([row["pixel_values"] for row in trainer.train_dataset])


def logits_of(model, processor, images):
    with torch.no_grad():
        return PixelClassifier(model.eval(), processor)(images)


def assert_equal(logits, expected):
    """The same but for rounding."""
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", TARGETS)
def test_lora_trains_what_peft_lets_train_and_is_saved_beside_the_merged_model(adapted, base, trainer_of, tmp_path, kind):
    model, processor = adapted(kind)
    before, lets = state(model), {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    options = {"objective": "pgd", "attack_steps": 1, "lwf_weight": 0.5, "warm_start_steps": 1, "max_steps": 3}
    trainer = trainer_of(model, processor, kind, merge_adapter=True, **options)
    trainer.train()
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed == lets
    assert 0 <= trainer.evaluate()["eval_robust_accuracy"] <= 1

    trainer.save_model()
    folder, images = tmp_path / "run", images_of(trainer)
    expected = logits_of(model, processor, images)
    loaded, its_processor = load_model(str(folder))
    onto = PeftModel.from_pretrained(base(kind)[0], folder, subfolder="adapter")
    for other in (loaded, AutoModelForImageClassification.from_pretrained(folder), onto):
        assert_equal(logits_of(other, its_processor, images), expected)
    assert not (folder / "adapter_config.json").exists() and not (folder / "README.md").exists()
    assert pipeline("image-classification", model=str(folder)).model.config.id2label == model.config.id2label
    if kind.startswith("timm"):
        of_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        classifier = PixelClassifier(model, processor)
        with torch.no_grad():
            logits = of_timm((images - classifier.mean) / classifier.std)
        assert_equal(logits, expected)

    # What was measured with the adapter in memory is evidence for what was saved, whose card tells what it is.
    assert fingerprint(model, processor) == fingerprint(loaded, its_processor)
    quick = {"self_check_samples": 0, "curve_samples": 0, "progress": False, "data_name": "me/digits"}
    data = trainer.eval_dataset
    evaluate_robustness(PixelClassifier(model, processor), data, ThreatModel(), ["pgd-2"], **quick).save(folder)
    facts = read_facts(folder)
    assert facts.report is not None
    card = " ".join(str(model_card(facts, "me/mine")).replace("\\", "").split())
    trained = sum(before[name].numel() for name in lets)
    assert "LORA of rank 4" in card and f"{trained:,} of" in card and "does not say" not in card
    assert all(target in card for target in (*TARGETS[kind][0], TARGETS[kind][1]))


def test_without_merging_the_adapter_is_saved_as_peft_saves_it(adapted, base, trainer_of, tmp_path):
    model, processor = adapted()
    trainer = trainer_of(model, processor, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "run/config.json").exists()
    onto = PeftModel.from_pretrained(base()[0], tmp_path / "run")
    expected = logits_of(model, processor, images_of(trainer))
    assert_equal(logits_of(onto, processor, images_of(trainer)), expected)
    # Merged into the same folder, the adapter there is out of the way.
    trainer.args.merge_adapter = True
    trainer.save_model()
    assert not (tmp_path / "run/adapter_config.json").exists()
    loaded = logits_of(*load_model(str(tmp_path / "run")), images_of(trainer))
    assert_equal(loaded, expected)


@pytest.mark.parametrize("merge", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_training_ends_with_the_weights_of_one_that_was_not_stopped(adapted, base, trainer_of, tmp_path, merge):
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": None,
        "max_steps": 5,
        "lwf_weight": 0.5,
        "warm_start_steps": 3,  # one checkpoint inside the warm start, one after it
        "freeze": 2,
        "merge_adapter": merge,
    }
    model, processor = adapted(lora_dropout=0.2)
    trainer_of(model, processor, **options).train()
    for step in (2, 4):
        again, _ = adapted(lora_dropout=0.2)
        trainer_of(again, processor, **options).train(str(tmp_path / f"run/checkpoint-{step}"))
        assert all(torch.equal(value, state(model)[name]) for name, value in state(again).items())
    checkpoint = str(tmp_path / "run/checkpoint-2")
    for other, refused in (
        (base()[0], "is of a model with an adapter of peft, but"),
        (adapted(r=2)[0], "has another adapter: other ranks or layers"),
        (adapted(target_modules=["qkv", "fc2"])[0], "has another adapter: .*fc2"),
        (adapted(modules_to_save=None)[0], "has another adapter: .*head.weight"),
    ):
        merging = {"merge_adapter": None, "warm_start_steps": 0}
        with pytest.raises(UsageError, match=refused):
            trainer_of(other, processor, **{**options, **merging}).train(checkpoint)


def test_the_best_adapter_is_loaded_at_the_end(adapted, trainer_of, tmp_path):
    options = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "save_total_limit": None,
    }
    options |= {"metric_for_best_model": "loss", "load_best_model_at_end": True, "max_steps": 3, "learning_rate": 3.0}
    model, processor = adapted()
    trainer = trainer_of(model, processor, **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-3"  # so that something is loaded
    with safe_open(best / "adapter_model.safetensors", "pt") as saved:
        name = "base_model.model.timm_model.head.weight"
        assert torch.equal(saved.get_tensor(name), merged(model).timm_model.head.weight)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LoraConfig, {"use_dora": True}),
        (LoraConfig, {"target_modules": "all-linear", "modules_to_save": None}),
        (LNTuningConfig, {"target_modules": ["norm1"]}),
        *(
            pytest.param(config, options, marks=pytest.mark.slow)
            for config, options in (
                (LoraConfig, {"bias": "all"}),
                (LoraConfig, {"r": 10}),  # as many as there are labels
                (AdaLoraConfig, {"total_step": 10, "init_r": 4, "target_r": 2}),
                (IA3Config, {"feedforward_modules": ["fc1"]}),
                (OFTConfig, {"oft_block_size": 4}),
            )
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
def test_other_adapters_train_and_merge_as_well(adapted, trainer_of, tmp_path, config, options):
    model, processor = adapted(config=config, **options)
    before = state(model)
    trainer = trainer_of(model, processor, merge_adapter=True, max_steps=2, lwf_weight=0.1, warm_start_steps=1)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in state(model).items() if "blocks" in name)
    trainer.save_model()
    expected = logits_of(model, processor, images_of(trainer))
    loaded = logits_of(*load_model(str(tmp_path / "run")), images_of(trainer))
    assert_equal(loaded, expected)


def test_dropout_of_an_adapter_drops_and_batch_norm_that_is_not_saved_with_it_stays(adapted):
    model, _ = adapted("timm-resnet", lora_dropout=0.5, bias="all")
    model.train()
    eval_where_frozen(model)
    kinds = {torch.nn.Dropout: True, torch.nn.BatchNorm2d: False}
    for kind, training in kinds.items():
        modules = [module for module in model.modules() if isinstance(module, kind)]
        assert modules and all(module.training == training for module in modules)
    freeze(model, "backbone")
    model.train()
    eval_where_frozen(model)
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_batch_norm_that_trains_whole_measures_its_statistics_and_they_are_saved(adapted, base, trainer_of, tmp_path):
    model, processor = adapted("timm-resnet", modules_to_save=["fc", "bn1"])
    trainer = trainer_of(model, processor, "timm-resnet", max_steps=2)
    trainer.train()
    own = model.base_model.model.timm_model.bn1.modules_to_save.default
    assert own.running_mean.abs().sum() > 0
    trainer.save_model()
    onto = PeftModel.from_pretrained(base("timm-resnet")[0], tmp_path / "run")
    images = images_of(trainer)
    torch.testing.assert_close(logits_of(onto, processor, images), logits_of(model, processor, images))


def test_blocks_freeze_their_part_of_an_adapter_and_the_table_tells(adapted):
    model, _ = adapted()
    inside = dict(model.get_base_model().named_parameters())
    was_frozen = {name for name, parameter in inside.items() if not parameter.requires_grad}
    freeze(model, 2)
    now = {name for name, parameter in inside.items() if not parameter.requires_grad}
    assert now - was_frozen == {name for name in inside if "blocks.0" in name and "lora" in name}
    freeze(model, "none")
    assert {name for name, parameter in inside.items() if not parameter.requires_grad} == was_frozen
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"trainable: {trained:,} of" in describe(model) and "trains in part" in describe(model)


def test_a_copy_for_attacks_and_what_merges_keep_the_logits_of_an_adapter_that_cannot_be_merged(adapted, digit_batch):
    with pytest.warns(UserWarning, match="groups"):
        model, processor = adapted("hf-convnext", r=16, target_modules=["dwconv"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    classifier, images = PixelClassifier(model.eval(), processor), digit_batch()[0]
    assert classifier.merged() is classifier
    with torch.no_grad():
        torch.testing.assert_close(attack_copy(classifier, images[:2], "float32")(images), classifier(images))


def test_a_head_that_does_not_train_stays_and_is_told_of(adapted, trainer_of, caplog):
    model, processor = adapted(modules_to_save=None)
    before = state(model)
    trainer_of(model, processor, max_steps=1).train()
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)
    assert 'name it in the adapter\'s modules_to_save=["head"]' in caplog.text


def test_peft_is_imported_only_where_a_model_has_it():
    """At the top of no module, so that all works without it."""
    for file in (Path(__file__).resolve().parents[2] / "hf_robust_transfer").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
        imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level}
        assert not any(name.partition(".")[0] == "peft" for name in imported), file
