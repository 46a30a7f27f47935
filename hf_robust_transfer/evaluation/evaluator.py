"""An evaluator with the interface of `evaluate`'s own, whose images are attacked before the model sees them."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from evaluate import EvaluationModule
from evaluate.evaluator.base import Evaluator
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, Pipeline, PreTrainedModel

from ..data import PixelDataset, as_labels_of, choose_split
from ..data.arguments import check_data_set_name
from ..data.columns import refuse_streams
from ..data.labels import check_label_column, with_labels, without_format
from ..data.sizes import resizing_of, tell_of_images
from ..errors import UsageError
from ..modeling import PixelClassifier, load_model
from ..threat_model import ThreatModel
from .chunks import Outcomes, Task, attack_in_chunks
from .metrics import METRICS, load_metric
from .named_attacks import parse_attacks
from .subject import Settings, make_ready


class RobustnessEvaluator(Evaluator):
    """Compute any metric on clean and adversarial predictions, as ``evaluate.evaluator(…)`` does on clean ones.

    The upstream evaluator for image classification takes no pipeline with transformers 5, and knows no attack. This one
    attacks in pixel space, at the model's resolution, and hands the metric those of ``predictions``,
    ``adversarial_predictions`` and ``references`` that it asks for, all as class indices: this package's metrics get all
    three, while a stock metric such as accuracy gets the clean predictions.

    Args:
        threat_model: what the adversary may do.
        attack: one attack, as `parse_attack` reads it, or a function of your own.
        seed: of the attack.
        chunk_size: images attacked at a time.
        precision: to craft the attack in, as for `evaluate_robustness`.

    Example:
        >>> evaluator = RobustnessEvaluator(ThreatModel("linf", "8/255"), "pgd-20")
        >>> evaluator.compute(model_or_pipeline="outputs/quickstart", data=images)  # doctest: +SKIP
        {'clean_accuracy': 0.937, …, 'robust_accuracy': 0.755, …, 'total_time_in_seconds': 4.1, …}
    """

    def __init__(
        self,
        threat_model: ThreatModel,
        attack: str | Callable[..., Tensor] = "pgd-20",
        *,
        seed: int = 0,
        chunk_size: int = 50,
        precision: str = "auto",
    ) -> None:
        (parsed,) = parse_attacks([attack], surrogate=False, norm=threat_model.norm)
        super().__init__("image-classification", default_metric_name="robust_accuracy")
        self.threat_model, self.attack = threat_model, parsed
        self.settings = Settings(seed=seed, precision=precision, chunk_size=chunk_size)

    def compute(
        self,
        model_or_pipeline: str | Pipeline | PreTrainedModel | None = None,
        data: str | Dataset | DatasetDict | None = None,
        subset: str | None = None,
        split: str | None = None,
        metric: str | EvaluationModule | None = None,
        tokenizer: None = None,
        feature_extractor: str | BaseImageProcessor | None = None,
        strategy: str = "simple",
        confidence_level: float = 0.95,
        n_resamples: int = 9999,
        device: int | None = None,
        random_state: int | None = None,
        input_column: str = "image",
        label_column: str = "label",
        label_mapping: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Evaluate; the arguments are those of `evaluate.ImageClassificationEvaluator.compute`.

        Args:
            model_or_pipeline: a checkpoint folder or Hub id, a model (with ``feature_extractor``) or a pipeline.
            data: a data set with images and labels, its splits, or the name of one.
            subset: of a data set that is given by its name.
            split: likewise; of splits, by default the test split, else the validation split.
            metric: a metric, or its name; by default this package's ``robust_accuracy``.
            tokenizer: has no meaning for images.
            feature_extractor: the image processor of a model that comes without.
            strategy: ``"simple"``, or ``"bootstrap"`` for bootstrapped intervals of every value.
            confidence_level, n_resamples, random_state: of the bootstrap.
            device: -1 for the CPU, else the number of the GPU; by default the first GPU, if there is one.
            input_column, label_column: the columns of images and labels.
            label_mapping: from the model's label names to the labels in the data; by default they are matched by name, and
                plain integers count the model's labels.

        Returns:
            The metric's values, and time: ``total_time_in_seconds``, ``samples_per_second``, ``latency_in_seconds``.

        Raises:
            UsageError: a missing column, no model or no data, or labels that the model does not have.
        """
        if tokenizer is not None:
            raise UsageError("an image classifier has no tokenizer: leave it out")
        if isinstance(data, str):
            check_data_set_name(data, "data=")
        if isinstance(data, Mapping):
            data = data[choose_split(data, split or "test")]
        if data is not None and not isinstance(data, str):
            refuse_streams(data, "data")
            data = without_format(data)
        loaded: Dataset = self.load_data(data=data, subset=subset, split=split)
        self.check_required_columns(loaded, {"input_column": input_column, "label_column": label_column})
        classifier, processor = self._classifier(model_or_pipeline, feature_extractor, device)
        images = loaded.select_columns([input_column, label_column]).rename_columns(
            {old: new for old, new in ((input_column, "image"), (label_column, "label")) if old != new}
        )
        if label_mapping is not None:
            labels = list(images["label"])
            index_of = {label_mapping[name]: index for index, name in enumerate(classifier.labels)}
            if not set(labels) <= set(index_of):
                raise UsageError(f"label_mapping does not lead to the labels {sorted(set(labels) - set(index_of))}")
            images = with_labels(images, [index_of[label] for label in labels], classifier.labels)
        else:
            check_label_column(images.features["label"], label_column)
            images = as_labels_of(images, classifier.labels, remedy="label_mapping")

        task = Task(self.attack, self.threat_model)
        began = perf_counter()
        dataset = PixelDataset(images, processor, "evaluation")
        if PartialState().is_main_process:
            tell_of_images(resizing_of(dataset), dataset.name)
        subject = make_ready(classifier, dataset, self.settings)
        outcomes = attack_in_chunks(subject, dataset, [task], progress=False)
        time = self._compute_time_perf(began, perf_counter(), len(images))
        module = self.prepare_metric(metric)
        inputs = self.predictions_processor(outcomes, task)
        result = self.compute_metric(
            module,
            {name: inputs[name] for name in inputs if name in module.features},
            strategy,
            confidence_level,
            n_resamples,
            random_state,
        )
        return {**result, **time}

    def prepare_metric(self, metric: str | EvaluationModule | None) -> EvaluationModule:
        """The metric itself, one of this package's by its name, or another one that `evaluate` finds."""
        metric = self.default_metric_name if metric is None else metric
        return load_metric(metric) if metric in METRICS else super().prepare_metric(metric)

    def predictions_processor(self, outcomes: Outcomes, task: Task) -> dict[str, Any]:
        """The columns that metrics may ask for, as class indices.

        Args:
            outcomes: of the attacked images.
            task: the attack among them.
        """
        return {
            "predictions": outcomes.clean,
            "adversarial_predictions": outcomes.tasks[task.key].predictions,
            "references": outcomes.labels,
        }

    def _classifier(self, given: Any, processor: Any, device: int | None) -> tuple[PixelClassifier, BaseImageProcessor]:
        if given is None:
            raise UsageError("model_or_pipeline is missing: a checkpoint folder, a Hub id, a model or a pipeline")
        number = self._infer_device() if device is None else device
        model, own = given, None
        if isinstance(given, str):
            model, own = load_model(given)
        elif isinstance(given, Pipeline):
            model, own = given.model, given.image_processor
        if isinstance(processor, str):
            processor = AutoImageProcessor.from_pretrained(processor)
        processor = processor if processor is not None else own
        if processor is None:
            raise UsageError("a model comes without its image processor: pass feature_extractor, or a pipeline")
        model = model.to(torch.device("cpu" if number < 0 else f"cuda:{number}"))
        return PixelClassifier(model, processor), processor
