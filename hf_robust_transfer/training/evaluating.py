"""A `Trainer` that evaluates on clean and adversarial images, judged in float32."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..attacks import pgd
from ..data import as_pixels
from ..modeling.classifier import PixelClassifier, full_precision
from ..randomness import fold_in
from .reporting import random_state_kept
from .saving import SavingTrainer

logger = logging.get_logger(__name__)
EVALUATION = 2  # the purpose that the attack's randomness is drawn for, as a part of its address


class EvaluatingTrainer(SavingTrainer):
    """All of `RobustTrainer` that judges."""

    processing_class: Any

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate or predict, leaving the random state of training as it was, with a warning for a model of no use."""
        self.share_buffers()
        with random_state_kept(self.args.device), self.averaged():
            output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train and self.is_world_process_zero():
            _warn_of_guessing(output)
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Clean logits and, with labels and an evaluation attack, those on adversarial images, judged in float32."""
        inputs = send_to_device(inputs, self.args.device)
        images, labels = as_pixels(inputs["pixel_values"]), inputs.get("labels")
        classifier = PixelClassifier(self.model, self.processing_class, forward_through=model)
        adversarial = None
        if labels is not None and self.args.eval_attack_steps:
            adversarial = pgd(
                classifier,
                images,
                labels,
                self.args.threat_model,
                steps=self.args.eval_attack_steps,
                step_size=self.args.eval_attack_step,
                seed=fold_in(self.args.seed, EVALUATION),
                indices=inputs["indices"],
            )
        with torch.no_grad(), full_precision(classifier):
            logits: Any = classifier(images) if adversarial is None else (classifier(images), classifier(adversarial))
        return None, logits, labels


def _warn_of_guessing(output: EvalLoopOutput) -> None:
    """Warn of a model that is no better than one that always gives the same answer."""
    if output.label_ids is None:
        return
    predictions = output.predictions if isinstance(output.predictions, tuple) else (output.predictions,)
    labels = np.asarray(output.label_ids)
    accuracy = float((np.asarray(predictions[0]).argmax(1) == labels).mean())
    guessing = float(np.bincount(labels).max() / len(labels))
    if accuracy <= guessing < 1:
        logger.warning(
            f"The model classifies {accuracy:.1%} of {len(labels)} images correctly, no better than always answering with"
            f" their most frequent label, {guessing:.1%}: it is of no use as a classifier. Train for more epochs, lower"
            " --learning_rate or --max_grad_norm, or use --transfer frozen."
        )
