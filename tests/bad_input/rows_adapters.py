"""Adapters of peft that cannot be trained or saved, each refused before anything is trained."""

import torch
from peft import LoraConfig, PromptEncoderConfig, get_peft_model
from row import Row

from hf_robust_transfer import PixelClassifier, RobustTrainer, RobustTrainingArguments
from hf_robust_transfer.modeling import load_model, replace_head


def training(make, **arguments):
    """A row's act: a training of what a function makes of the shared model, with options of the trainer if it likes."""

    def act(here, places):
        model, processor = load_model(str(places["model"]))
        options = {"model": make(model)} if make is not teacher_of_the_same_weights else make(model, processor)
        images = [{"pixel_values": torch.rand(3, 8, 8), "labels": label} for label in (0, 1)]
        args = RobustTrainingArguments(str(here / "run"), use_cpu=True, report_to="none", **arguments)
        RobustTrainer(args=args, processing_class=processor, train_dataset=images, **options)

    return act


def config(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["fc1"], "modules_to_save": ["head.fc"], **options})


def lora(**options):
    return lambda model: get_peft_model(model, config(**options))


def the_model_inside(model):
    return get_peft_model(model, config()).get_base_model()


def mixed(model):
    return get_peft_model(model, config(), mixed=True)


def prompts(model):
    return get_peft_model(model, PromptEncoderConfig(num_virtual_tokens=2))


def named(model):
    return get_peft_model(model, config(), adapter_name="mine")


def two_at_once(model):
    adapted = get_peft_model(model, config())
    adapted.add_adapter("other", config(target_modules=["fc2"], modules_to_save=None))
    adapted.base_model.set_adapter(["default", "other"])
    return adapted


def head_unfrozen_by_hand(model):
    adapted = get_peft_model(model, config(modules_to_save=None))
    adapted.timm_model.get_classifier().requires_grad_(True)
    return adapted


def frozen_by_hand(model):
    return get_peft_model(model, config()).requires_grad_(False)


def depthwise(model):
    return get_peft_model(model, config(r=16, target_modules=["conv_dw"]))


def teacher_of_the_same_weights(model, processor):
    return {"model": get_peft_model(model, config()), "teacher": PixelClassifier(model, processor)}


def head_after_the_adapter(here, places):
    replace_head(get_peft_model(load_model(str(places["model"]))[0], config()), {0: "a", 1: "b"})


def adapter_alone(here, places):
    get_peft_model(load_model(str(places["model"]))[0], config()).save_pretrained(here / "adapter")


ROWS = [
    Row("a model with adapters inside", training(the_model_inside), ("is no PeftModel", "get_peft_model(model, config)")),
    Row("mixed adapters", training(mixed), "is no PeftModel"),
    Row("no adapter to merge", training(lambda model: model, merge_adapter=True), ("--merge_adapter", "leave it out")),
    Row("an adapter for texts", training(lora(task_type="SEQ_CLS")), "task_type=SEQ_CLS is for language models"),
    Row("an adapter of another name", training(named), ("mine", "leave out adapter_name")),
    Row("two adapters at once", training(two_at_once), "active adapters are default, other"),
    Row("a head that is not saved", training(head_unfrozen_by_hand), ("head.fc.weight", "modules_to_save")),
    Row("nothing trains", training(frozen_by_hand), ("is frozen", "is_trainable=True")),
    Row("a head that does not train", training(lora(modules_to_save=None), lwf_weight=1), 'modules_to_save=["head.fc"]'),
    Row("a head alone that does not train", training(lora(modules_to_save=None), freeze="backbone"), "is frozen"),
    Row("nothing merges", training(depthwise, merge_adapter=True), ("cannot be merged", "groups", "--merge_adapter")),
    Row("the teacher is the student", training(teacher_of_the_same_weights), ("teacher shares its weights", "load_model")),
    Row("the teacher is the student with LwF", training(teacher_of_the_same_weights, lwf_weight=1), "shares its weights"),
    Row("a new head after the adapter", head_after_the_adapter, "replace its head before get_peft_model"),
    Row(
        "an adapter as a model", lambda here, places: load_model(str(here / "adapter")), "is an adapter", make=adapter_alone
    ),
    Row("publishing an adapter", "publish <publish> --folder adapter", "merge_adapter=True", make=adapter_alone),
    Row(
        "exporting an adapter",
        "export --model_name_or_path adapter --output out.pt2 --format torch",
        "is an adapter",
        make=adapter_alone,
    ),
    Row(
        "starting from an adapter", "finetune <finetune> --model_name_or_path adapter", "is an adapter", make=adapter_alone
    ),
    Row("evaluating an adapter", "evaluate <evaluate> --model_name_or_path adapter", "is an adapter", make=adapter_alone),
    Row("merging without an adapter", "pretrain <pretrain> --merge_adapter true", "--merge_adapter is for a model with"),
    Row("published unmerged", "pretrain <pretrain> --push_to_hub --merge_adapter false", "--merge_adapter false"),
]
