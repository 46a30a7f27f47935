"""A `Trainer` whose models are saved whole or not at all, and published as `hf_robust_transfer.hub` does it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import broadcast, send_to_device
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, get_last_checkpoint
from transformers.utils.hub import PushInProgress

from ..errors import UsageError
from ..hub import PublishingError, publish, publish_in_background, stand_alone
from ..hub.access import reason
from ..modeling.adapters import check_saved_adapter, is_adapted, merged
from ..modeling.weights import not_finite
from ..run_folder import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS_NAME,
    CARD_NAME,
    CONFIG_NAME,
    RUN_NAME,
    step_of,
)
from .arguments import RobustTrainingArguments
from .averaging import AveragingTrainer


class SavingTrainer(AveragingTrainer):
    """All of `RobustTrainer` that touches folders and the Hub.

    A checkpoint also holds what an objective carries from step to step (``carried``), each process's its own. The Hub
    gets one commit with what is for others, by either of the base class's ways. ``trained_on`` are the options that say
    where the training's images come from, for the configuration of what is saved. ``last_checkpoint`` is where the last
    one was saved, as far as it came.
    """

    args: RobustTrainingArguments
    model: PreTrainedModel
    carried: dict[str, Tensor]
    resumed_from: str | bool | None
    last_checkpoint: Path | None = None
    trained_on: dict[str, Any] | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as for `transformers.Trainer`.

        Raises:
            UsageError: the checkpoint is of a model with an adapter of peft and this one has none, or another.
        """
        self.resumed_from = resume_from_checkpoint
        checkpoint = self._checkpoint(resume_from_checkpoint)
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)  # which write other files
        if checkpoint is not None and checkpoint.is_dir() and self.model is not None and whole:
            check_saved_adapter(self.model, checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository that is pushed to.

        Raises:
            PublishingError: the Hub refuses, before anything is trained.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub client raises its HTTP library's errors, too
            raise PublishingError(f"--push_to_hub is not possible: {reason(error)}") from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its image processor; a disk that fills up leaves the model that was there.

        Of a model with an adapter of peft, that is the adapter, as peft saves it. With ``args.merge_adapter`` it is the
        model with the adapter merged into the weights, which stands alone, and the adapter in the folder ``adapter`` beside
        it. Checkpoints to resume from have the adapter alone.

        Args:
            output_dir: where to, by default ``args.output_dir``.

        Raises:
            FloatingPointError: a weight is NaN or infinite; nothing is saved then.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        to_resume = _internal_call and folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        self._save_to(folder, together=_internal_call, whole=self.args.merges_adapter and not to_resume)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_to(self, folder: Path, *, together: bool, whole: bool) -> None:
        """Save into a folder; ``together`` with all other processes, and ``whole`` with what adapters there are merged."""
        if together:
            self.share_buffers()
        self.check_weights()
        if together:
            # First of all that goes into a checkpoint: whatever a kill leaves without its mark of completeness goes unused.
            if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
                self.last_checkpoint = folder
                self.save_average(folder)
            if folder.name.startswith(PREFIX_CHECKPOINT_DIR) and self.carried and not self.args.save_only_model:
                folder.mkdir(parents=True, exist_ok=True)
                save_file({name: value.contiguous() for name, value in self.carried.items()}, self._carried_file(folder))
            run = Path(str(self.args.output_dir), RUN_NAME)
            if step_of(folder) is not None and self.args.should_save and run.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run, folder / RUN_NAME)  # so that the checkpoint says which run it is of
        with self.averaged():
            self._write_to(folder, whole)

    def _write_to(self, folder: Path, whole: bool) -> None:
        """Have the model in a folder, or what was there where that fails."""
        if self.args.should_save and not self.is_deepspeed_enabled:  # whose processes write into one folder together
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix="_saving-", dir=folder) as staging:
                self._save_with_data(staging, whole)
                if Path(staging, CONFIG_NAME).is_file():  # a sharded FSDP checkpoint has none, nor has an adapter
                    stand_alone(staging)
                    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):  # it would be loaded in the model's place
                        (folder / name).unlink(missing_ok=True)
                for file in [each for each in Path(staging).rglob("*") if each.is_file() and each.name != CARD_NAME]:
                    target = folder / file.relative_to(staging)  # no card: peft would put its own in the user's place
                    target.parent.mkdir(exist_ok=True)
                    file.replace(target)
        else:
            self._save_with_data(str(folder), whole)

    def check_weights(self) -> None:
        """Make sure that the weights are numbers.

        Raises:
            FloatingPointError: some are NaN or infinite.
        """
        if broken := not_finite(self.model):
            raise FloatingPointError(
                f"step {self.state.global_step}: {len(broken)} tensors of weights are not finite ({broken[0]}, …) and not"
                " saved. Lower --learning_rate, or start from the last checkpoint with another --seed"
            )

    def _save_with_data(self, folder: str, whole: bool) -> None:
        """Save with the places of the data in the configuration, which tells later evaluations here, and no log."""
        model, training = self.model, getattr(self.model.config, "robust_training", None)
        if training is not None and self.trained_on is not None:
            model.config.robust_training = {**training, "data": self.trained_on}
        try:
            if whole and is_adapted(model) and self.args.should_save:
                model.save_pretrained(str(Path(folder, ADAPTER_FOLDER)))
                self.model = merged(model)
            super().save_model(folder, _internal_call=True)
        finally:
            self.model = model
            if training is not None:
                model.config.robust_training = training

    def share_buffers(self) -> None:
        """Give every process the batch-norm statistics of the first, which are those that are saved."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                broadcast(buffer)

    def _checkpoint(self, given: str | bool | None) -> Path | None:
        found = get_last_checkpoint(str(self.args.output_dir)) if given is True else given
        return Path(str(found)) if found else None

    def _carried_file(self, folder: Path) -> Path:
        return folder / f"carried_{self.args.process_index}.safetensors"

    def load_carried(self, checkpoint: str | bool | None) -> None:
        """Carry on what this process carried when a checkpoint was saved, the average included; nothing without one.

        Args:
            checkpoint: its folder, or True for the last in the output folder, as for `transformers.Trainer.train`.
        """
        folder = self._checkpoint(checkpoint)
        self.begin_average(folder)
        self.carried.clear()
        if folder is not None and (file := self._carried_file(folder)).is_file():
            self.carried.update(send_to_device(load_file(file), self.args.device))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save the model, and publish the output folder with its model card as `hf_robust_transfer.hub.publish` does.

        Args:
            commit_message: of the one commit.
            blocking: wait for it; otherwise return a future.
            token, revision, private: by default ``args.hub_token``, ``args.hub_revision`` and ``args.hub_private_repo``.
            card: ``license``, of the weights; what else the base class's kind of card takes has no place here.

        Returns:
            The commit, or a future of it; on processes other than the first, None.

        Raises:
            UsageError: ``args.merge_adapter`` is False for a model with an adapter of peft, which is published merged.
            PublishingError: the Hub refused or could not be reached; the output folder holds everything.
        """
        if is_adapted(self.model) and self.args.merge_adapter is False:
            raise UsageError("what is published stands alone, but --merge_adapter is false: leave it out to publish")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._save_to(Path(str(self.args.output_dir)), together=True, whole=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        options = self._hub_options(token=token, revision=revision, private=private)
        options |= {"commit_message": commit_message or "End of training", "license": card.get("license")}
        if blocking:
            return publish(str(self.args.output_dir), **options)
        return HfApi().run_as_future(publish, str(self.args.output_dir), **options)

    # No public hook: `on_save` comes after the base class's own upload, which sends the pickled arguments and their token.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress
        if running is not None and not running.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        with self._whole(Path(checkpoint_folder)) as folder:
            job = publish_in_background(
                folder,
                Path(str(self.args.output_dir), f"_publishing-{self.state.global_step}"),
                checkpoint=checkpoint_folder,
                resumable_at=places.get(strategy),
                commit_message=f"Training in progress, step {self.state.global_step}",
                **self._hub_options(),
            )
        self.push_in_progress: Any = PushInProgress([job])  # type: ignore[arg-type]

    @contextmanager
    def _whole(self, checkpoint: Path) -> Iterator[Path]:
        """A folder with the whole model of the checkpoint just saved: where that has an adapter alone, another folder."""
        if not is_adapted(self.model):
            yield checkpoint
            return
        with self.averaged(), TemporaryDirectory(prefix="_publishing-", dir=str(self.args.output_dir)) as place:
            self._save_with_data(place, whole=True)
            stand_alone(place)
            yield Path(place)

    def _hub_options(self, **given: Any) -> dict[str, Any]:
        args = self.args
        own = {"token": args.hub_token, "revision": args.hub_revision or "main", "private": args.hub_private_repo}
        repo_id = self.hub_model_id or args.hub_model_id or Path(str(args.output_dir)).resolve().name
        return {"repo_id": repo_id, **own, **{name: value for name, value in given.items() if value is not None}}
